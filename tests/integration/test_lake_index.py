"""The key index of a lake table, whatever happened to it or to the table, and deletion vectors of all kinds."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from cdc import _native
from cdc.epoch import Counts
from cdc.errors import LakeConflictError, LakeDamagedError, LakeError
from cdc.lake import FoldCounts, LakeTable, Layout, MergeCounts, Snapshot
from cdc.lake import index as index_module
from cdc.lake.columns import lake_columns
from cdc.lake.index import TableIndex
from cdc.lake.snapshot import identity
from cdc.lake.vectors import Vectors, name_of
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from tests.integration import lake_rows
from tests.integration.lake_rows import (
    BEFORE,
    SIMPLE,
    TABLE,
    Row,
    applied,
    bootstrap,
    content,
    disk,
    same,
    table_of,
    upsert,
)

READERS = [lake_rows.read_deltalake, lake_rows.read_polars, lake_rows.read_chdb]
SHARDED = TableSchema((Column("id", "bigint"), Column("shard", "text", charset="utf8mb4")), ("shard", "id"))


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[LakeTable]:
    lake = opened(tmp_path)
    yield lake
    lake.close()


def opened(tmp_path: Path, index: str = "index") -> LakeTable:
    """A writer with its index in this folder."""
    return LakeTable(tmp_path / "lake", TABLE, "p", index=tmp_path / index)


def reopened(lake: LakeTable, tmp_path: Path, *, save: bool = True) -> tuple[LakeTable, Snapshot]:
    """The same table in another process, as far as the index goes; without `save` the first one was killed."""
    if save:
        lake.close()
    else:
        lake.index.forget()
        lake.index._release()
    again = opened(tmp_path)
    snapshot = again.load()
    assert snapshot is not None
    return again, snapshot


def actions(lake: LakeTable, version: int) -> list[dict[str, Any]]:
    """The lines of a commit."""
    text = (disk(lake) / "_delta_log" / f"{version:020}.json").read_text()
    return [json.loads(line) for line in text.splitlines()]


def commit(lake: LakeTable, version: int, *lines: Any) -> None:
    """A commit of someone else."""
    path = disk(lake) / "_delta_log" / f"{version:020}.json"
    path.write_text("\n".join(map(json.dumps, lines)))


class Builds:
    """Counts how often an index is built from the key columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whys: list[str] = []
        build = TableIndex._build

        def counted(index: TableIndex, snapshot: Any, vectors: Any, form: Any, why: str) -> None:
            self.whys.append(why)
            build(index, snapshot, vectors, form, why)

        monkeypatch.setattr(TableIndex, "_build", counted)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    return Builds(monkeypatch)


def same_everywhere(lake: LakeTable, rows: list[Row]) -> None:
    """Ours and everyone's readers see these rows."""
    snapshot = lake.load()
    assert snapshot is not None
    assert snapshot.rows == len(rows)
    assert content(lake, snapshot) == sorted(rows)
    expected = same(table_of(rows, SIMPLE.arrow), SIMPLE.arrow)
    for reader in READERS:
        assert same(reader(disk(lake)), SIMPLE.arrow) == expected, reader.__name__


# -- vectors -------------------------------------------------------------------------------------------------------------------


def test_what_a_vector_is_called(lake: LakeTable) -> None:
    # The examples of the Delta protocol.
    vector = {
        "storageType": "u",
        "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^",
        "offset": 4,
        "sizeInBytes": 40,
        "cardinality": 6,
    }
    assert name_of(vector) == "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"
    assert identity(vector) == "uab^-aqEH.-t@S}K{vb[*k^@4"
    at = {
        **vector,
        "storageType": "p",
        "pathOrInlineDv": "s3://mytable/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin",
    }
    assert name_of(at, "s3://mytable") == "deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"
    assert name_of(at, "s3://mytab") is None
    assert identity(None) == ""


def test_a_commit_of_vectors_is_as_the_protocol_asks(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=2)
    snapshot = upsert(lake, snapshot, [(1, "x"), (2, "y")], [(60,)])
    snapshot = upsert(lake, snapshot, [(3, "z")], [(1,)])
    lines = actions(lake, 2)
    adds, removes = ([line[kind] for line in lines if kind in line] for kind in ("add", "remove"))
    paths = [add["path"] for add in adds]
    assert len(set(paths)) == len(paths) == 3
    removed = {remove["path"]: remove for remove in removes}
    assert len(removed) == len(removes) == 2
    for add in adds:
        stats = json.loads(add["stats"])
        if add["path"] not in removed:
            assert "deletionVector" not in add
            assert (stats["numRecords"], stats["tightBounds"]) == (1, True)
            continue
        vector = add["deletionVector"]
        assert (vector["storageType"], vector["pathOrInlineDv"][:3]) == ("u", "_dv")
        assert (disk(lake) / (name_of(vector) or "")).is_file()
        assert stats["tightBounds"] is False
        assert stats["numRecords"] in (50, 2)
        before = actions(lake, 1)
        known = [line["add"].get("deletionVector") for line in before if line.get("add", {}).get("path") == add["path"]]
        assert [removed[add["path"]].get("deletionVector")] == known
    assert len({add["deletionVector"]["pathOrInlineDv"] for add in adds if "deletionVector" in add}) == 1
    metrics = lines[0]["commitInfo"]["operationMetrics"]
    assert {
        k: metrics[k] for k in ("numTargetRowsUpdated", "numTargetRowsDeleted", "numTargetDeletionVectorsUpdated")
    } == {
        "numTargetRowsUpdated": "1",
        "numTargetRowsDeleted": "1",
        "numTargetDeletionVectorsUpdated": "1",
    }
    assert all(isinstance(value, str) for value in metrics.values())
    assert snapshot.rows == 98
    kept = [(k, v) for k, v in BEFORE if k not in (1, 2, 3, 60)]
    same_everywhere(lake, [*kept, (2, "y"), (3, "z")])


def test_readers_see_every_state_of_many_random_changes(lake: LakeTable, tmp_path: Path) -> None:
    chance = random.Random(5)
    model: dict[Any, Any] = dict(BEFORE)
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=3)
    for turn in range(30):
        changed = {chance.randrange(150): f"turn {turn}" for _ in range(chance.randrange(12))}
        gone = {chance.randrange(150) for _ in range(chance.randrange(12))} - set(changed)
        snapshot = upsert(lake, snapshot, list(changed.items()), [(k,) for k in gone])
        model = {k: v for k, v in (model | changed).items() if k not in gone}
        if turn % 7 == 3:
            lake, snapshot = reopened(lake, tmp_path, save=turn % 2 == 0)
        if turn % 10 == 9:
            same_everywhere(lake, list(model.items()))
    lake.close()


@pytest.mark.parametrize("saved", [True, False])
def test_files_of_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool) -> None:
    for module in ("parquet", "writing", "index"):
        monkeypatch.setattr(f"cdc.lake.{module}.ROW_GROUP_ROWS", 8)
    lake = opened(tmp_path)
    snapshot = bootstrap(lake, SIMPLE, [(i, f"row {i}") for i in range(400)], files=2)
    model = {i: f"row {i}" for i in range(400)}
    chance = random.Random(3)
    for turn in range(6):
        changed = {chance.randrange(450): f"{turn}" for _ in range(25)}
        gone = {chance.randrange(450) for _ in range(25)} - set(changed)
        snapshot = upsert(lake, snapshot, list(changed.items()), [(k,) for k in gone])
        model = {k: v for k, v in (model | changed).items() if k not in gone}
        asked = chance.sample(range(450), 60)
        found = lake.rows(snapshot, pa.table({"id": pa.array(asked, pa.int64())}))
        assert found.column("id").to_pylist() == [k for k in asked if k in model]
        assert found.column("name").to_pylist() == [model[k] for k in asked if k in model]
        if not saved:
            lake.close()
            shutil.rmtree(tmp_path / "index")
    same_everywhere(lake, list(model.items()))
    lake.close()


def test_a_file_whose_path_is_encoded_gets_no_vector(tmp_path: Path) -> None:
    """polars would pass over it, and show rows that are deleted."""
    lake = LakeTable(tmp_path / "lake", TABLE, "p")
    layout = Layout(partition_by=("name",))
    rows: list[Row] = [(i, ("plain", "so/uth", "é x")[i % 3]) for i in range(90)]
    batches = table_of(rows, SIMPLE.arrow).to_batches()
    files = lake.write_files(batches, SIMPLE, layout, lambda name: None, ts_ms=1, seq=1)
    snapshot = lake.bootstrap(files, SIMPLE, layout, applied(1), None, Counts())
    snapshot = upsert(lake, snapshot, [(0, "so/uth"), (1, "so/uth"), (2, "plain"), (200, "é x")], [(3,), (4,), (5,)])
    snapshot = upsert(lake, snapshot, [(7, "so/uth"), (1, "é x")], [(200,), (8,)])
    model = dict(rows) | {0: "so/uth", 1: "é x", 2: "plain"}
    same_everywhere(lake, [row for row in model.items() if row[0] not in (3, 4, 5, 8)])
    encoded = [file for path, file in snapshot.files.items() if "%" in path]
    assert len(encoded) >= 4
    assert not any(file.deletion_vector for file in encoded)
    assert any(file.deletion_vector for file in snapshot.files.values())
    metrics = actions(lake, 1)[0]["commitInfo"]["operationMetrics"]
    assert int(metrics["numTargetRowsCopied"]) == 30 - 2 + 30 - 2
    again = lake.load()
    assert again is not None
    assert named(content(lake, upsert(lake, again, [(1, "plain")])))[1] == "plain"


def vector_of(rows: list[int]) -> bytes:
    """A vector's data."""
    return (1681511377).to_bytes(4, "little") + _native.Bitmap().add(pa.array(rows, pa.uint32())).serialize()


def z85(data: bytes) -> str:
    """By the table of RFC 1924's alphabet beside ZeroMQ's."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = ""
    for i in range(0, len(data), 4):
        number, part = int.from_bytes(data[i : i + 4], "big"), ""
        for _ in range(5):
            number, digit = divmod(number, 85)
            part = digits[digit] + part
        text += part
    return text


@pytest.mark.parametrize("kind", ["u", "u-prefix", "p", "p-url", "i"])
def test_vectors_of_others_are_followed_whatever_their_form(lake: LakeTable, kind: str) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    snapshot = upsert(lake, snapshot, [(100, "new")])  # the index knows the file
    (path,) = (path for path, file in snapshot.files.items() if file.num_records == 100)
    data, name = vector_of([5, 6, 70]), uuid.uuid4()
    vector = {"storageType": kind[0], "sizeInBytes": len(data), "cardinality": 3}
    if kind == "i":
        vector["pathOrInlineDv"] = z85(data + bytes(-len(data) % 4))
    else:
        prefix = "x1" if kind == "u-prefix" else ""
        file = disk(lake) / prefix / f"deletion_vector_{name}.bin"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"\x01" + len(data).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big"))
        where = {"u": z85(name.bytes), "u-prefix": prefix + z85(name.bytes), "p": str(file), "p-url": file.as_uri()}
        vector |= {"pathOrInlineDv": where[kind], "offset": 1}
    old = snapshot.files[path]
    commit(lake, 2, {"remove": old.removed(1)}, {"add": old.without(vector, 100).to_action()})
    snapshot = lake.refresh(snapshot)
    assert snapshot.rows == 98
    assert lake.rows(snapshot, pa.table({"id": pa.array([5, 7], pa.int64())})).column("id").to_pylist() == [7]
    snapshot = upsert(lake, snapshot, [(6, "back"), (7, "x")], [(70,), (71,)])
    assert [snapshot.counts[n] for n in ("inserted", "replaced", "removed", "absent", "foreign")] == [1, 1, 1, 1, -3]
    rows = [(k, v) for k, v in BEFORE if k not in (5, 6, 7, 70, 71)]
    same_everywhere(lake, [*rows, (6, "back"), (7, "x"), (100, "new")])


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped"])
def test_a_damaged_vector_is_named(lake: LakeTable, tmp_path: Path, harm: str) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    (file,) = (disk(lake) / "_dv").iterdir()
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if harm == "cut" else data[:20] + bytes([data[20] ^ 1]) + data[21:])
    lake.vectors = Vectors(lake.folder)
    with pytest.raises(LakeDamagedError, match=file.name) as found:
        list(lake.scan(snapshot))
    assert "resync" in found.value.hint


# -- the index is what the table is ------------------------------------------------------------------------------------------------


def files_of(tmp_path: Path) -> list[Path]:
    """What the index has on disk."""
    return sorted(path for path in (tmp_path / "index").rglob("*") if path.is_file() and path.name != "lock")


def test_an_index_that_was_saved_is_opened_and_not_built(lake: LakeTable, tmp_path: Path, builds: Builds) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE, files=3), [(1, "x")], [(2,)])
    lake, snapshot = reopened(lake, tmp_path)
    snapshot = upsert(lake, snapshot, [(1, "y"), (2, "z")])
    assert (snapshot.counts["replaced"], snapshot.counts["inserted"]) == (1, 1)
    assert builds.whys == ["there is none"]
    lake.close()


def test_an_index_that_was_built_is_saved_at_once(lake: LakeTable, tmp_path: Path, builds: Builds) -> None:
    upsert(lake, bootstrap(lake, SIMPLE, BEFORE, files=3), [(1, "x")])
    lake, snapshot = reopened(lake, tmp_path, save=False)
    assert upsert(lake, snapshot, [(1, "y")]).counts["replaced"] == 1
    assert builds.whys == ["there is none"]
    lake.close()


def test_an_index_that_was_not_saved_is_brought_up_to_date(lake: LakeTable, tmp_path: Path, builds: Builds) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE, files=3), [(1, "x")])
    lake, snapshot = reopened(lake, tmp_path)
    for turn in range(5):
        snapshot = upsert(lake, snapshot, [(1, f"{turn}"), (200 + turn, "new")], [(10 + turn,)])
    lake, snapshot = reopened(lake, tmp_path, save=False)
    snapshot = upsert(lake, snapshot, [(1, "y"), (10, "again"), (204, "z")], [(203,), (12,)])
    assert [snapshot.counts[n] for n in ("inserted", "replaced", "removed", "absent")] == [1, 2, 1, 1]
    assert builds.whys == ["there is none"]
    gone = {1, 10, 11, 12, 13, 14}
    rows = [(k, v) for k, v in BEFORE if k not in gone]
    same_everywhere(lake, [*rows, (1, "y"), (10, "again"), (200, "new"), (201, "new"), (202, "new"), (204, "z")])
    lake.close()


@pytest.mark.parametrize("harm", ["gone", "cut", "empty", "flipped", "swapped"])
def test_a_harmed_index_is_built_anew(lake: LakeTable, tmp_path: Path, builds: Builds, harm: str) -> None:
    chance = random.Random(harm)
    model: dict[Any, Any] = dict(BEFORE)
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=2)
    for turn in range(6):
        snapshot = upsert(lake, snapshot, [(turn, "x"), (100 + turn, "new")], [(50 + turn,)])
        model |= {turn: "x", 100 + turn: "new"}
        del model[50 + turn]
        lake, snapshot = reopened(lake, tmp_path)
        lake.index.close()
        harmed = chance.choice(files_of(tmp_path))
        data = harmed.read_bytes()
        match harm:
            case "gone":
                harmed.unlink()
            case "cut":
                harmed.write_bytes(data[: len(data) * 2 // 3])
            case "empty":
                harmed.write_bytes(b"")
            case "flipped":
                at = chance.randrange(len(data))
                harmed.write_bytes(data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :])
            case "swapped":
                harmed.write_bytes(data[::-1])
        snapshot = upsert(lake, snapshot, [(turn, "y")], [(90 - turn,)])
        model[turn] = "y"
        del model[90 - turn]
        assert [snapshot.counts[n] for n in ("inserted", "replaced", "removed", "absent")] == [0, 1, 1, 0]
    assert len(builds.whys) == 7
    same_everywhere(lake, list(model.items()))
    lake.close()


def test_the_index_of_another_table_is_not_believed(lake: LakeTable, tmp_path: Path, builds: Builds) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    other = LakeTable(tmp_path / "lake", TableName("shop", "other"), "p", index=tmp_path / "index")
    theirs = upsert(other, bootstrap(other, SIMPLE, [(i, "theirs") for i in range(200)]), [(1, "x")])
    assert theirs.rows == 200
    other.close()
    shutil.rmtree(tmp_path / "index" / "shop" / "orders", ignore_errors=True)
    shutil.copytree(tmp_path / "index" / "shop" / "other", tmp_path / "index" / "shop" / "orders")
    snapshot = upsert(lake, snapshot, [(1, "x"), (150, "y")])
    assert (snapshot.counts["replaced"], snapshot.counts["inserted"]) == (1, 1)
    assert builds.whys == ["there is none", "there is none"]


def test_a_log_that_was_put_back_is_followed(lake: LakeTable, tmp_path: Path, builds: Builds) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE, files=2), [(1, "x")], [(2,)])
    shutil.copytree(disk(lake), tmp_path / "copy")
    snapshot = upsert(lake, snapshot, [(1, "y"), (2, "back"), (500, "lost")], [(3,), (60,)])
    lake.close()
    shutil.rmtree(disk(lake))
    shutil.copytree(tmp_path / "copy", disk(lake))
    lake, snapshot = reopened(lake, tmp_path)
    snapshot = upsert(lake, snapshot, [(1, "z"), (3, "here"), (500, "new")], [(2,), (60,)])
    assert [snapshot.counts[n] for n in ("inserted", "replaced", "removed", "absent")] == [1, 2, 1, 1]
    assert builds.whys == ["there is none"]
    same_everywhere(lake, [*((k, v) for k, v in BEFORE if k not in (1, 2, 3, 60)), (1, "z"), (3, "here"), (500, "new")])
    lake.close()


def test_two_writers_with_an_index_each_follow_each_other(tmp_path: Path, builds: Builds) -> None:
    one, two = opened(tmp_path), opened(tmp_path, "index-2")
    snapshot = bootstrap(one, SIMPLE, BEFORE, files=2)
    model: dict[Any, Any] = dict(BEFORE)
    at = {one: snapshot, two: snapshot}
    for turn in range(12):
        writer, other = (one, two) if turn % 3 else (two, one)
        at[writer] = writer.refresh(at[writer])
        changed = {turn: f"{turn}", 3 * turn: "also", 100 + turn % 5: f"new {turn}"}
        at[writer] = upsert(writer, at[writer], list(changed.items()), [(90 - turn,)])
        model |= changed
        model.pop(90 - turn)
        if at[other].version < at[writer].version:
            with pytest.raises(LakeConflictError):
                upsert(other, at[other], [(1, "late")])
    same_everywhere(one, list(model.items()))
    assert builds.whys == ["there is none"] * 2
    one.close()
    two.close()


def test_a_folder_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    snapshot = upsert(one, bootstrap(one, SIMPLE, BEFORE), [(1, "x")])
    one.index.save()
    saved = {path: path.read_bytes() for path in files_of(tmp_path)}
    snapshot = upsert(two, two.refresh(snapshot), [(1, "y")], [(2,)])
    two.close()
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == saved
    snapshot = upsert(one, one.refresh(snapshot), [(1, "z")], [(2,)])
    assert [snapshot.counts[n] for n in ("replaced", "removed", "absent")] == [1, 0, 1]
    one.close()


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs a folder that cannot be written"
)
def test_an_index_folder_that_cannot_be_written_costs_only_that(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "shop").write_text("in the way")
    lake = opened(tmp_path)
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    for turn in range(3):
        snapshot = upsert(lake, snapshot, [(turn, "x")])
        assert snapshot.counts["replaced"] == 1
    lake.close()


def test_the_index_is_saved_now_and_then(lake: LakeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "SAVE_KEYS", 40)
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    saved = 0
    save = TableIndex.save

    def counted(index: TableIndex, version: int | None = None) -> None:
        nonlocal saved
        saved += 1
        save(index, version)

    monkeypatch.setattr(TableIndex, "save", counted)
    for turn in range(10):
        snapshot = upsert(lake, snapshot, [(10 * turn + i, "x") for i in range(10)])
    assert saved == 3  # built, and twice in a hundred keys


def test_an_index_that_failed_after_the_commit_does_not_undo_it(
    lake: LakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    monkeypatch.setattr("cdc.faults._armed", {"lake.after-index": ("fail", 1.0)})
    monkeypatch.setattr("cdc.faults._counts", {"lake.after-index": 0})
    snapshot = upsert(lake, snapshot, [(1, "y"), (200, "new")])
    assert snapshot.version == 2
    snapshot = upsert(lake, snapshot, [(1, "z")], [(200,)])
    assert (snapshot.counts["replaced"], snapshot.counts["removed"]) == (1, 1)


def test_a_resync_with_another_key_has_another_index(lake: LakeTable) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    by_name = TableSchema(SIMPLE.columns, ("name",))
    snapshot = bootstrap(lake, by_name, [(1, "a"), (1, "b")])
    snapshot = upsert(lake, snapshot, [(7, "a"), (7, "c")])
    assert (snapshot.counts["replaced"], snapshot.counts["inserted"]) == (1, 1)
    assert sorted(content(lake, snapshot)) == [(1, "b"), (7, "a"), (7, "c")]


def test_a_truncated_shard_goes_by_vector(lake: LakeTable) -> None:
    from dataclasses import replace

    rows: list[Row] = [(i, shard) for i in range(40) for shard in ("a", "b")]
    snapshot = upsert(lake, bootstrap(lake, SHARDED, rows, files=3), [(1, "a")], [("a", 2), ("b", 2)])
    change = lake_rows.folded(SHARDED, [(3, "a"), (99, "a")], [("a", 4)], 3)
    change = replace(change, truncated=pa.array(["a"]))
    after = lake.upsert(snapshot, change, applied(3), MergeCounts(FoldCounts(Counts(2, 0, 1), effective=3), 3))
    assert [after.counts[n] for n in ("inserted", "replaced", "removed", "truncated")] == [1, 1, 1, 37]
    assert after.rows == 39 + 2
    found = content(lake, after)
    assert [row for row in found if row[1] == "a"] == [(3, "a"), (99, "a")]


# -- what others do ------------------------------------------------------------------------------------------------------------------


Foreign = Callable[[deltalake.DeltaTable], object]
FOREIGN: dict[str, tuple[Foreign, Callable[[dict[int, str]], dict[int, str]]]] = {
    "optimize": (lambda t: t.optimize.compact(), lambda m: m),
    "delete": (lambda t: t.delete("id >= 40 AND id < 60"), lambda m: {k: v for k, v in m.items() if not 40 <= k < 60}),
    "update": (
        lambda t: t.update(predicate="id % 10 = 3", updates={"name": "'theirs'"}),
        lambda m: {k: "theirs" if k % 10 == 3 else v for k, v in m.items()},
    ),
    "merge": (
        lambda t: (
            t.merge(
                pa.table({"id": pa.array([1, 7, 900], pa.int64()), "name": ["m", "m", "m"]}), "s.id = t.id", "s", "t"
            )
            .when_matched_update({"name": "s.name"})
            .when_not_matched_insert({"id": "s.id", "name": "s.name"})
            .execute()
        ),
        lambda m: m | {1: "m", 7: "m", 900: "m"},
    ),
    "append": (
        lambda t: deltalake.write_deltalake(
            t,
            pa.table([[700, 701], ["a", "b"], [None, None], [None, None]], schema=lake_columns(SIMPLE, Layout())),
            mode="append",
        ),
        lambda m: m | {700: "a", 701: "b"},
    ),
    "vacuum": (lambda t: t.vacuum(0, dry_run=False, enforce_retention_duration=False), lambda m: m),
    "property": (
        lambda t: t.alter.set_table_properties({"delta.logRetentionDuration": "interval 9 days"}),
        lambda m: m,
    ),
    "checkpoint": (lambda t: t.create_checkpoint(), lambda m: m),
}


@pytest.mark.parametrize("saved", [True, False], ids=["open", "stale"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_others_commit_is_followed(
    lake: LakeTable, tmp_path: Path, builds: Builds, what: str, saved: bool
) -> None:
    act, becomes = FOREIGN[what]
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=3)
    snapshot = upsert(lake, snapshot, [(1, "x"), (45, "x"), (500, "x")], [(2,), (50,)])
    snapshot = upsert(lake, snapshot, [(1, "xx")], [(44,)])
    if not saved:
        lake, snapshot = reopened(lake, tmp_path)
    model = named(content(lake, snapshot))
    act(deltalake.DeltaTable(str(lake.folder)))
    model = becomes(model)
    snapshot = lake.refresh(snapshot)
    assert named(content(lake, snapshot)) == model
    snapshot = upsert(lake, snapshot, [(1, "ours"), (7, "ours"), (700, "ours"), (44, "ours")], [(45,), (500,), (51,)])
    inserted = len({1, 7, 700, 44} - set(model))
    removed = len({45, 500, 51} & set(model))
    assert [snapshot.counts[n] for n in ("inserted", "removed")] == [inserted, removed]
    model |= dict.fromkeys((1, 7, 700, 44), "ours")
    same_everywhere(lake, [(k, v) for k, v in model.items() if k not in (45, 500, 51)])
    if what != "optimize":  # then nothing is left of the files that were known
        assert builds.whys == ["there is none"]
    lake.close()


def named(rows: list[Row]) -> dict[int, str]:
    """Rows of `SIMPLE` by their key."""
    return {row[0]: row[1] for row in rows}


@pytest.mark.parametrize("built", ["before", "after"])
def test_a_restore_brings_rows_back_that_the_index_had_forgotten(
    lake: LakeTable, tmp_path: Path, builds: Builds, built: str
) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=2)
    snapshot = upsert(lake, snapshot, [(1, "x")], [(2,)])
    snapshot = upsert(lake, snapshot, [(1, "y"), (60, "y"), (300, "y")], [(3,), (4,)])
    if built == "after":  # it never heard of rows that were deleted then
        lake.close()
        shutil.rmtree(tmp_path / "index")
        snapshot = upsert(lake, snapshot, [(300, "yy")])
    # As delta-spark writes it: the files of version 1 as they were then.
    now, then = snapshot.files, {}
    for version in (0, 1):
        for line in actions(lake, version):
            if "add" in line:
                then[line["add"]["path"]] = line["add"]
    lines: list[Any] = [{"commitInfo": {"operation": "RESTORE"}}]
    for path, file in now.items():
        if path not in then or then[path].get("deletionVector") != file.deletion_vector:
            lines.append({"remove": file.removed(5)})
    for path, add in then.items():
        if path not in now or now[path].deletion_vector != add.get("deletionVector"):
            lines.append({"add": add})
    commit(lake, snapshot.version + 1, *lines)
    snapshot = lake.refresh(snapshot)
    model = {k: v for k, v in BEFORE if k != 2} | {1: "x"}
    assert named(content(lake, snapshot)) == model
    snapshot = upsert(lake, snapshot, [(3, "z"), (1, "z"), (300, "z")], [(60,), (2,)])
    assert [snapshot.counts[n] for n in ("inserted", "replaced", "removed", "absent")] == [1, 2, 1, 1]
    del model[60]
    same_everywhere(lake, list((model | {3: "z", 1: "z", 300: "z"}).items()))
    assert len(builds.whys) == 1 + (built == "after")


def test_a_key_that_others_wrote_once_more_is_noticed(lake: LakeTable, tmp_path: Path) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    theirs = pa.table([[7, 800], ["a", "b"], [None, None], [None, None]], schema=lake_columns(SIMPLE, Layout()))
    deltalake.write_deltalake(str(lake.folder), theirs, mode="append")
    snapshot = lake.refresh(snapshot)
    for _ in range(2):
        with pytest.raises(LakeDamagedError, match="holds 1 keys more than once") as found:
            upsert(lake, snapshot, [(1, "y")])
        assert "--repair" in found.value.hint
    lake, snapshot = reopened(lake, tmp_path)
    with pytest.raises(LakeDamagedError, match="holds 1 keys more than once"):
        upsert(lake, snapshot, [(1, "y")])
    deltalake.DeltaTable(str(lake.folder)).delete("id = 7 AND name = 'a'")
    snapshot = upsert(lake, lake.refresh(snapshot), [(7, "y")], [(800,)])
    assert (snapshot.counts["replaced"], snapshot.counts["removed"]) == (1, 1)
    lake.close()


def test_a_null_key_of_others_is_noticed(lake: LakeTable) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    theirs = pa.table([[None, 800], ["a", "b"], [None, None], [None, None]], schema=lake_columns(SIMPLE, Layout()))
    deltalake.write_deltalake(str(lake.folder), theirs, mode="append")
    snapshot = lake.refresh(snapshot)
    with pytest.raises(LakeDamagedError, match="a NULL in column id of the key"):
        upsert(lake, snapshot, [(1, "y")])
    deltalake.DeltaTable(str(lake.folder)).delete("id IS NULL")
    assert upsert(lake, lake.refresh(snapshot), [], [(800,)]).counts["removed"] == 1


def test_commits_without_actions_and_files_that_are_no_commits_mean_nothing(lake: LakeTable) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    for version, what in ((2, "VACUUM START"), (3, "VACUUM END")):
        commit(lake, version, {"commitInfo": {"operation": what, "operationParameters": {}}})
    log = disk(lake) / "_delta_log"
    (log / f"{1:020}.crc").write_text("{}")
    (log / f".{1:020}.json.crc").write_bytes(b"x")
    (log / "_last_vacuum_info").write_text("{}")
    snapshot = upsert(lake, lake.refresh(snapshot), [(1, "y")])
    assert (snapshot.version, snapshot.counts["replaced"], snapshot.counts["foreign"]) == (4, 1, 0)


def test_files_of_others_without_statistics_are_counted(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    (file,) = snapshot.files.values()
    commit(lake, 1, {"remove": file.removed(1)}, {"add": file.to_action() | {"stats": None}})
    snapshot = upsert(lake, lake.refresh(snapshot), [(1, "x")], [(2,)])
    assert (snapshot.counts["foreign"], snapshot.counts["live_after"]) == (0, 99)
    (add,) = (line["add"] for line in actions(lake, 2) if line.get("add", {}).get("deletionVector"))
    assert json.loads(add["stats"]) == {"numRecords": 100, "tightBounds": False}
    same_everywhere(lake, [*((k, v) for k, v in BEFORE if k not in (1, 2)), (1, "x")])


def test_json_of_the_log_that_was_cleaned_up_is_not_missed(lake: LakeTable, tmp_path: Path, builds: Builds) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    for turn in range(4):
        snapshot = upsert(lake, snapshot, [(turn, "x")])
    lake, snapshot = reopened(lake, tmp_path)
    for turn in range(4):
        snapshot = upsert(lake, snapshot, [(turn, "y"), (turn + 50, "y")])
    lake.checkpoint(snapshot)
    for version in range(8):
        (disk(lake) / "_delta_log" / f"{version:020}.json").unlink()
    lake, snapshot = reopened(lake, tmp_path, save=False)
    snapshot = upsert(lake, snapshot, [(1, "z"), (51, "z")], [(3,)])
    assert (snapshot.counts["replaced"], snapshot.counts["removed"]) == (2, 1)
    assert builds.whys == ["there is none"]
    lake.close()


@pytest.mark.parametrize("change", ["a column", "the feature", "the property"])
def test_what_makes_it_unsafe_to_write_stops_us(lake: LakeTable, change: str) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    metadata = dict(snapshot.metadata)
    if change == "a column":
        schema = json.loads(metadata["schemaString"])
        schema["fields"].append({"name": "more", "type": "string", "nullable": True, "metadata": {}})
        commit(lake, 2, {"metaData": metadata | {"schemaString": json.dumps(schema)}})
    elif change == "the feature":
        commit(lake, 2, {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}})
    else:
        commit(lake, 2, {"metaData": metadata | {"configuration": {"delta.enableDeletionVectors": "false"}}})
    with pytest.raises(LakeError, match="others changed the table"):
        upsert(lake, lake.refresh(snapshot), [(1, "y")])


def test_base85_is_z85() -> None:
    assert z85(bytes.fromhex("864FD26FB559F75B")) == "HelloWorld"  # ZeroMQ's RFC 32
    assert base64.b85encode(b"\x00" * 4) == b"00000"
