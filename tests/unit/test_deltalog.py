"""The Delta log: what is read of it, what is refused, and who wins a version. Without data files: the log does not look at them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc.epoch import EpochId
from cdc.errors import LakeConflictError, LakeDamagedError, LakeError, LakeUnknownError
from cdc.lake import checkpoint, deltalog
from cdc.lake.columns import configuration, delta_schema, protocol
from cdc.lake.deltalog import LOG, Applied, Snapshot
from cdc.lake.layout import Layout
from cdc.lake.store import open_folder
from cdc.position import BinlogEnd, GtidSet, Position

UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
COLUMNS = pa.schema([pa.field("id", pa.int64())])
METADATA = {
    "id": "0a1b",
    "format": {"provider": "parquet", "options": {}},
    "schemaString": delta_schema(COLUMNS),
    "partitionColumns": [],
    "configuration": configuration(Layout()),
    "createdTime": 1,
}


def applied(epoch: int) -> Applied:
    position = Position(GtidSet.parse(f"{UUID}:1-{epoch}"), UUID, BinlogEnd("binlog.000001", 100 * epoch))
    return Applied("log-1", EpochId(epoch, f"{epoch:064x}"), position, epoch, epoch * 1000, epoch)


def info(epoch: int, added: int, removed: int, version: int = 1) -> dict[str, Any]:
    counts = {"files_added": added, "files_removed": removed}
    data = {"v": version, "pipeline": "p", "table": "s.t", "counts": counts, **applied(epoch).to_dict()}
    return {"commitInfo": {"timestamp": 1, "operation": "MERGE", "lakesync": data}}


def add(name: str, **more: Any) -> dict[str, Any]:
    stats = json.dumps({"numRecords": 10})
    path = {"path": name, "partitionValues": {}, "size": 5, "modificationTime": 1, "dataChange": True, "stats": stats}
    return {"add": path | more}


def remove(name: str, at_ms: int = 7) -> dict[str, Any]:
    return {"remove": {"path": name, "deletionTimestamp": at_ms, "dataChange": True}}


class Log:
    """A table's log, written through `deltalog.commit`."""

    def __init__(self, root: Path) -> None:
        self.folder = open_folder(root).folder("s/t")
        self.log = root / "s" / "t" / LOG
        self.newest: Snapshot | None = None

    def commit(self, *actions: dict[str, Any], epoch: int | None = None, on: Snapshot | None = None) -> Snapshot:
        epoch = epoch if epoch is not None else (self.newest.version + 2 if self.newest else 1)
        adds, removes = (sum(kind in a for a in actions) for kind in ("add", "remove"))
        head: list[Mapping[str, Any]] = [info(epoch, adds, removes)]
        if self.newest is None:
            head += [{"protocol": protocol(COLUMNS, Layout())}, {"metaData": METADATA}]
        head.append({"txn": {"appId": "lakesync:p:s.t", "version": epoch}})
        self.newest = deltalog.commit(self.folder, on or self.newest, [*head, *actions])
        return self.newest

    def foreign(self, *actions: dict[str, Any]) -> Path:
        """A commit of someone else, after the newest one."""
        path = self.path(len(list(self.log.glob("*.json"))))
        path.write_text("\n".join(json.dumps(a) for a in actions))
        return path

    def path(self, version: int) -> Path:
        return self.log / f"{version:020}.json"

    def load(self) -> Snapshot:
        snapshot = deltalog.load(self.folder)
        assert snapshot is not None
        return snapshot

    def checkpoint(self) -> Path:
        snapshot = self.load()
        checkpoint.write(self.folder.folder(LOG), snapshot.version, list(snapshot.actions(0)))
        return self.log / f"{snapshot.version:020}.checkpoint.parquet"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def state(snapshot: Snapshot) -> dict[str, Any]:
    """What must not depend on how the log was read."""
    names = ("version", "protocol", "metadata", "files", "txns", "info", "info_version", "applied", "tombstones")
    return {name: getattr(snapshot, name) for name in names}


# -- replay --------------------------------------------------------------------------------------------------------------


def test_nothing_is_no_table(tmp_path: Path) -> None:
    assert deltalog.load(open_folder(tmp_path)) is None
    (tmp_path / LOG).mkdir()
    (tmp_path / LOG / "_commit_1.json.tmp").write_bytes(b"{")
    assert deltalog.load(open_folder(tmp_path)) is None


def test_a_snapshot_is_what_its_commits_left(log: Log) -> None:
    log.commit(add("a"), add("b"))
    log.commit(remove("a"), add("c"))
    last = log.commit(remove("b", 9))
    loaded = log.load()
    assert (loaded.version, set(loaded.files), loaded.rows) == (2, {"c"}, 10)
    assert {name: t.removed_ms for name, t in loaded.tombstones.items()} == {"a": 7, "b": 9}
    assert loaded.applied == applied(3)
    assert state(loaded) == state(last)


def test_a_file_that_is_removed_and_added_by_one_commit_is_there_whatever_the_order(log: Log) -> None:
    log.commit(add("a"))
    vector = {"storageType": "u", "pathOrInlineDv": "x", "offset": 1, "sizeInBytes": 2, "cardinality": 3}
    log.foreign(add("a", deletionVector=vector), remove("a"))
    assert log.load().files["a"].deletion_vector == vector


def test_a_file_that_comes_back_is_no_longer_dead(log: Log) -> None:
    log.commit(add("a"))
    log.commit(remove("a"))
    log.foreign(add("a"))  # someone's RESTORE
    assert set(log.load().files) == {"a"}
    assert not log.load().tombstones


def test_refreshing_gives_what_loading_gives(log: Log) -> None:
    first = log.commit(add("a"))
    assert deltalog.refresh(first) is first
    log.commit(add("b"))
    log.foreign({"commitInfo": {"operation": "VACUUM START"}})
    log.foreign(remove("a"), add("a-and-b"))
    refreshed = deltalog.refresh(first)
    assert state(refreshed) == state(log.load())
    assert (refreshed.version, refreshed.info_version, refreshed.applied) == (3, 1, applied(2))


def test_commits_are_listed_without_those_of_others(log: Log) -> None:
    for name in "abc":
        log.commit(add(name))
    log.foreign({"commitInfo": {"operation": "VACUUM START"}})
    assert [(c.version, c.info["epoch"]) for c in deltalog.commits(log.folder, after=0)] == [(1, 2), (2, 3)]


# -- the position ----------------------------------------------------------------------------------------------------------


def test_commit_info_and_txn_must_agree(log: Log) -> None:
    log.commit(add("a"))
    log.foreign({"txn": {"appId": "lakesync:p:s.t", "version": 7}})
    with pytest.raises(LakeDamagedError, match="epoch 7 in txn and 1 in commitInfo"):
        log.load()


def test_a_position_behind_a_checkpoint_is_found(log: Log) -> None:
    log.commit(add("a"))
    log.foreign({"commitInfo": {"operation": "OPTIMIZE"}}, remove("a"), add("b"))
    log.checkpoint()
    log.foreign(add("c"))
    loaded = log.load()
    assert (loaded.version, loaded.checkpoint, loaded.info_version, loaded.applied) == (2, 1, 0, applied(1))
    assert set(loaded.files) == {"b", "c"}


def test_a_position_that_was_cleaned_up_with_its_commit_is_damage(log: Log) -> None:
    log.commit(add("a"))
    log.foreign(add("b"))
    log.checkpoint()
    log.path(0).unlink()
    with pytest.raises(LakeDamagedError, match="the commit with its position is gone"):
        log.load()


def test_a_form_of_another_version_is_refused(log: Log) -> None:
    log.commit(add("a"))
    log.foreign(info(2, 0, 0, version=2), {"txn": {"appId": "lakesync:p:s.t", "version": 2}})
    with pytest.raises(LakeError, match="another version of lakesync"):
        log.load()


# -- the tail ----------------------------------------------------------------------------------------------------------------


def cut(path: Path, to: Callable[[bytes], bytes]) -> None:
    path.write_bytes(to(path.read_bytes()))


def lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("torn", "says"),
    [
        pytest.param(lambda data: b"", "is empty", id="empty"),
        pytest.param(lambda data: b"\0" * len(data), "is torn", id="zeros"),
        pytest.param(lambda data: data[: len(data) // 2], "is torn", id="half"),
        pytest.param(lambda data: b"".join(lines(data)[:-1]), "2 files added|\\(2, 1\\) files added", id="lost an add"),
        pytest.param(lambda data: lines(data)[0], "\\(2, 1\\) files added", id="only commitInfo"),
        pytest.param(lambda data: b"7\n", "a line that is no action", id="no action"),
    ],
)
def test_a_torn_tail_is_noticed(log: Log, torn: Callable[[bytes], bytes], says: str) -> None:
    log.commit(add("a"))
    before = log.newest
    log.commit(remove("a"), add("b"), add("c"))
    cut(log.path(1), torn)
    with pytest.raises(LakeDamagedError, match=says) as found:
        log.load()
    assert str(log.path(1)) in str(found.value)
    assert "move it away" in found.value.hint
    assert before is not None
    with pytest.raises(LakeDamagedError, match=says):
        deltalog.refresh(before)


def test_a_commit_of_delta_rs_that_lost_its_add_is_noticed(log: Log) -> None:
    log.commit(add("a"))
    said = {"num_added_files": 1, "num_removed_files": 0}
    path = log.foreign(
        {"commitInfo": {"operation": "WRITE", "engineInfo": "delta-rs:py-1.6.6", "operationMetrics": said}}, add("b")
    )
    assert set(log.load().files) == {"a", "b"}
    cut(path, lambda data: lines(data)[0])
    with pytest.raises(LakeDamagedError, match="is torn"):
        log.load()


@pytest.mark.parametrize("version", [0, 1])
def test_a_version_that_is_missing_is_noticed(log: Log, version: int) -> None:
    first = log.commit(add("a"))
    for name in "bc":
        log.commit(add(name))
    log.path(version).unlink()
    with pytest.raises(LakeDamagedError, match=f"version {version} is missing"):
        log.load()
    with pytest.raises(LakeDamagedError, match=f"version {version} is missing"):
        deltalog.refresh(first)


def test_a_log_that_lost_its_tail_behind_a_checkpoint_is_noticed(log: Log) -> None:
    for name in "abc":
        log.commit(add(name))
    log.checkpoint()
    log.path(2).unlink()
    with pytest.raises(LakeDamagedError, match="lost its newest commits"):
        log.load()


def test_a_log_that_was_put_back_is_read_from_the_start(log: Log, tmp_path: Path) -> None:
    log.commit(add("a"))
    shutil.copytree(log.log, tmp_path / "copy")
    log.commit(add("b"))
    known = log.commit(add("c"))
    shutil.rmtree(log.log)
    shutil.copytree(tmp_path / "copy", log.log)
    assert deltalog.refresh(known).version == 0


def test_an_action_without_its_fields_is_damage(log: Log) -> None:
    log.commit(add("a"))
    log.foreign({"add": {"size": 1}})
    with pytest.raises(LakeDamagedError, match="without what the protocol asks for"):
        log.load()


# -- checkpoints ---------------------------------------------------------------------------------------------------------------


def filled(log: Log) -> dict[str, Any]:
    for i in range(5):
        log.commit(add(f"f{i}"), *([remove(f"f{i - 1}")] if i % 2 else []))
    return state(log.load())


def test_a_checkpoint_says_what_the_commits_say(log: Log) -> None:
    expected = filled(log)
    log.checkpoint()
    for version in range(4):
        log.path(version).unlink()
    loaded = log.load()
    assert loaded.checkpoint == 4
    tombstones = {name: t.removed_ms for name, t in loaded.tombstones.items()}
    assert state(loaded) | {"tombstones": None} == expected | {"tombstones": None}
    assert tombstones == {"f0": 7, "f2": 7}


def test_a_torn_checkpoint_is_passed_over_where_the_commits_are_there(log: Log) -> None:
    filled(log)
    cut(log.checkpoint(), lambda data: data[: len(data) // 2])
    log.commit(add("x"))
    expected = state(log.load())
    assert log.load().checkpoint is None
    older = log.checkpoint()
    assert state(log.load()) | {"tombstones": None} == expected | {"tombstones": None}
    log.path(0).unlink()
    cut(older, lambda data: b"")
    with pytest.raises(
        LakeDamagedError, match="version 0 is missing; version 5 is there, and checkpoint 5, 4 cannot be"
    ):
        log.load()


def test_last_checkpoint_is_never_trusted(log: Log) -> None:
    expected = filled(log)
    (log.log / "_last_checkpoint").write_text('{"version": 77, "size": 1}')
    assert state(log.load()) == expected


def test_checkpoints_of_several_parts_are_read_when_all_are_there(log: Log) -> None:
    expected = filled(log)
    whole = log.checkpoint()
    rows = pq.read_table(whole)
    whole.unlink()
    parts = [log.log / f"{4:020}.checkpoint.{n:010}.{2:010}.parquet" for n in (1, 2)]
    pq.write_table(rows.slice(0, 3), parts[0])
    assert log.load().checkpoint is None
    pq.write_table(rows.slice(3), parts[1])
    for version in range(4):
        log.path(version).unlink()
    loaded = log.load()
    assert loaded.checkpoint == 4
    assert state(loaded) | {"tombstones": None} == expected | {"tombstones": None}


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_checkpoints_with_sidecars_are_read(log: Log, form: str) -> None:
    expected = filled(log)
    whole = log.checkpoint()
    rows = pq.read_table(whole)
    whole.unlink()
    (log.log / "_sidecars").mkdir()
    files = rows.filter(rows.column("add").is_valid()).select(["add"])
    pq.write_table(files, log.log / "_sidecars" / "side.parquet")
    top = [a for a in log.load().actions(0) if "add" not in a and "remove" not in a]
    actions: list[dict[str, Any]] = [*map(dict, top), {"checkpointMetadata": {"version": 4}}]
    actions.append({"sidecar": {"path": "side.parquet", "sizeInBytes": 1, "modificationTime": 1}})
    path = log.log / f"{4:020}.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.{form}"
    if form == "json":
        path.write_text("\n".join(json.dumps(a) for a in actions))
    else:
        fields = [rows.schema.field(n) for n in ("protocol", "metaData", "txn")]
        fields.append(pa.field("sidecar", pa.struct([("path", pa.string()), ("sizeInBytes", pa.int64())])))
        schema = pa.schema(fields)
        pq.write_table(
            pa.table({f.name: pa.array([a.get(f.name) for a in actions], f.type) for f in fields}, schema), path
        )
    for version in range(4):
        log.path(version).unlink()
    loaded = log.load()
    assert loaded.checkpoint == 4
    assert state(loaded) | {"tombstones": None} == expected | {"tombstones": None}


def test_old_tombstones_are_left_out_of_a_checkpoint(log: Log) -> None:
    log.commit(add("a"), add("b"))
    log.commit(remove("a", 100), remove("b", 200))
    kept = [a["remove"]["path"] for a in log.load().actions(150) if "remove" in a]
    assert kept == ["b"]


# -- writing -----------------------------------------------------------------------------------------------------------------


def test_one_of_two_writers_of_a_version_wins(log: Log) -> None:
    first = log.commit(add("a"))
    log.commit(add("mine"), on=first)
    data = log.path(1).read_bytes()
    with pytest.raises(LakeConflictError, match="version 1"):
        log.commit(add("theirs"), epoch=3, on=first)
    assert log.path(1).read_bytes() == data
    assert set(log.load().files) == {"a", "mine"}
    assert not list(log.log.glob("_commit_*"))


def test_an_error_after_the_link_is_an_unknown_outcome(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.commit(add("a"))
    linked = Path.hardlink_to

    def link_and_lose_the_answer(self: Path, target: Path) -> None:
        linked(self, target)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", link_and_lose_the_answer)
        with pytest.raises(LakeUnknownError):
            log.commit(add("b"))
    assert set(log.load().files) == {"a", "b"}


def test_a_failed_fsync_is_an_error_and_is_not_repeated(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.commit(add("a"))
    asked = []

    def fails(descriptor: int) -> None:
        asked.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if asked[-1].endswith(".tmp"):
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(LakeError) as found:
            log.commit(add("b"))
    assert not isinstance(found.value, LakeUnknownError)
    assert sum(name.endswith(".tmp") for name in asked) == 1
    assert log.load().version == 0
    assert not list(log.log.glob("_commit_*"))


def test_no_space_names_the_way_out(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.commit(add("a"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LakeError, match="No space left on device") as found:
            log.commit(add("b"))
    assert "make room" in found.value.hint


def test_links_that_lead_out_of_the_lake_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LakeError, match="outside the lake"):
        open_folder(tmp_path / "lake").folder("s/t")


def test_a_data_file_outside_the_folder_is_refused(log: Log) -> None:
    log.commit(add("a"))
    log.foreign(add("..%2F..%2Fsecret"))
    snapshot = log.load()
    with pytest.raises(LakeError, match="outside the table's folder"):
        snapshot.path(snapshot.files["..%2F..%2Fsecret"])
