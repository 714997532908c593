"""Maintenance: compaction beside commits, purge, checkpoints, log clean-up, files that no one needs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdc.errors import LakeConflictError
from cdc.lake import LakeTable, Snapshot, cleaning, compaction, deltalog
from cdc.lake.checkpoint import superfluous
from cdc.lake.maintain import Keep, Maintenance
from cdc.lake.snapshot import AddFile
from cdc.lake.store import Entry
from tests.integration.lake_rows import (
    SIMPLE,
    TABLE,
    applied,
    bootstrap,
    content,
    disk,
    read_chdb,
    read_deltalake,
    read_polars,
    upsert,
)

SMALL = 64 * 1024
NOW = Keep(files_s=0.0, log_s=0.0, orphans_s=86400.0)
Model = dict[int, str]


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6

    def sleep(self, seconds: float) -> None:
        self.us += int(seconds * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lake(tmp_path: Path, clock: Clock) -> LakeTable:
    return LakeTable(tmp_path, TABLE, "p", file_size=SMALL, clock=clock)


def table(lake: LakeTable, rows: int = 100, commits: int = 0, seed: int = 0) -> tuple[Snapshot, Model]:
    """A table, and what is in it, after so many commits of a few changes."""
    model = {i: f"row {i}" for i in range(rows)}
    snapshot = bootstrap(lake, SIMPLE, list(model.items()))
    rng = random.Random(seed)
    for _ in range(commits):
        snapshot = change(lake, snapshot, model, rng)
    return snapshot, model


def change(lake: LakeTable, on: Snapshot, model: Model, rng: random.Random, count: int = 5) -> Snapshot:
    assert on.applied is not None
    epoch = on.applied.epoch.number + 1
    puts = {rng.randrange(150): f"v{epoch}" for _ in range(count)}
    gone = {rng.randrange(150) for _ in range(2)} - set(puts)
    model.update(puts)
    for key in gone:
        model.pop(key, None)
    return upsert(lake, on, list(puts.items()), [(key,) for key in gone])


def check(lake: LakeTable, snapshot: Snapshot, model: Mapping[int, str]) -> None:
    """By our own reader, from the snapshot and from the log, with the index and without."""
    assert dict(content(lake, snapshot)) == dict(model)
    assert snapshot.rows == len(model)
    other = LakeTable(disk(lake).parents[1], TABLE, "p")
    loaded = other.load()
    assert loaded is not None
    assert loaded.version >= snapshot.version
    assert len(content(other, loaded)) == len(model)
    assert dict(content(other, loaded)) == dict(model)


def check_readers(lake: LakeTable, model: Mapping[int, str], readers: Sequence[Callable[[Path], Any]]) -> None:
    for reader in readers:
        found = reader(disk(lake))
        assert found.num_rows == len(model), reader
        assert dict(zip(found["id"].to_pylist(), found["name"].to_pylist(), strict=True)) == dict(model), reader


def kinds(lake: LakeTable) -> list[str]:
    return [commit.info["kind"] for commit in deltalog.commits(lake.folder)]


class Later(Executor):
    """A worker that works when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self.waiting.append(work)
        return future

    def work(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


# -- compaction ----------------------------------------------------------------------------------------------------------


def test_small_files_become_few_and_rows_stay(lake: LakeTable) -> None:
    snapshot, model = table(lake, commits=8)
    assert len(snapshot.files) == 9
    maintenance = Maintenance(lake)
    after = maintenance.run(snapshot, Keep(), 60)
    assert len(after.files) == 1
    assert after.version == snapshot.version + 1
    assert after.applied == snapshot.applied
    assert maintenance.done.files_before == 9
    assert maintenance.done.rows_purged == sum((f.num_records or 0) for f in snapshot.files.values()) - len(model)
    check(lake, after, model)
    info = list(deltalog.commits(lake.folder))[-1].info
    assert info["kind"] == "optimize"
    assert info["counts"]["rows_added"] == info["counts"]["rows_deleted"] == len(model)
    assert info["totals"]["logged"] == list(snapshot.totals["logged"])
    lines = (disk(lake) / "_delta_log" / f"{after.version:020}.json").read_bytes().splitlines()
    assert all(
        not action[kind]["dataChange"]
        for line in lines
        for action in [orjson.loads(line)]
        for kind in action.keys() & {"add", "remove"}
    )
    # … and the next commits go on from there, by an index that knew what was written and by one that did not.
    rng = random.Random(7)
    for _ in range(3):
        after = change(lake, after, model, rng)
    check(lake, after, model)
    other = LakeTable(disk(lake).parents[1], TABLE, "p")
    loaded = other.load()
    assert loaded is not None
    check(other, change(other, loaded, model, rng), model)


def test_nothing_is_done_where_nothing_is_due(lake: LakeTable) -> None:
    snapshot, _ = table(lake, commits=3)
    maintenance = Maintenance(lake)
    assert maintenance.run(snapshot, Keep(), 60) is snapshot
    assert not maintenance.done


def test_rows_that_die_while_a_file_is_written_are_dead_in_it(lake: LakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.lake.maintain.AT_ONCE_BYTES", 0)
    snapshot, model = table(lake, commits=8)
    worker = Later()
    maintenance = Maintenance(lake, worker)
    assert maintenance.run(snapshot, Keep(), 60) is snapshot
    rng = random.Random(5)
    for _ in range(4):  # one of them while it is written, the others before it is committed
        snapshot = change(lake, snapshot, model, rng, count=20)
        worker.work()
    before = set(snapshot.files)
    after = maintenance.run(snapshot, Keep(), 60)
    assert after.version == snapshot.version + 1
    (made,) = set(after.files) - before
    assert after.files[made].deleted > 10
    check(lake, after, model)
    check_readers(lake, model, [read_deltalake, read_polars])
    after = change(lake, after, model, rng)
    check(lake, after, model)


def test_a_file_of_which_nothing_is_left_while_another_is_written_is_not_in_it(
    lake: LakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.lake.maintain.AT_ONCE_BYTES", 0)
    snapshot, model = table(lake)
    for key in range(200, 208):
        snapshot = upsert(lake, snapshot, [(key, "short-lived"), (key + 100, "kept")])
        model[key + 100] = "kept"
    worker = Later()
    maintenance = Maintenance(lake, worker)
    maintenance.run(snapshot, Keep(), 60)
    worker.work()
    gone = list(snapshot.files)[3]
    keys = [(key,) for key in range(200, 208)]
    (also,) = [300 + i for i in range(8) if list(snapshot.files)[i + 1] == gone]
    snapshot = upsert(lake, snapshot, [], [*keys, (also,)])
    del model[also]
    assert gone not in snapshot.files
    after = maintenance.run(snapshot, Keep(), 60)
    assert maintenance.done.commits == 1
    assert len(after.files) == 1
    check(lake, after, model)


def test_a_compaction_that_meets_another_merger_is_mapped_and_not_lost(
    lake: LakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, model = table(lake, commits=8)
    other = LakeTable(disk(lake).parents[1], TABLE, "p")
    rng = random.Random(9)
    met: list[int] = []
    commit = lake._commit

    def meets(on: Snapshot, *rest: Any, **more: Any) -> Snapshot:
        if len(met) < 3:
            theirs = other.load()
            assert theirs is not None
            met.append(change(other, theirs, model, rng).version)
        return commit(on, *rest, **more)

    monkeypatch.setattr(lake, "_commit", meets)
    maintenance = Maintenance(lake)
    after = maintenance.run(snapshot, Keep(), 60)
    assert len(met) == 3
    assert after.version == met[-1] + 1
    assert maintenance.done.commits == 1
    assert after.applied == applied(snapshot.applied.epoch.number + 3 if snapshot.applied else 0)
    check(lake, after, model)
    vectors = {p.name for p in (disk(lake) / "_dv").iterdir()}
    assert len(vectors) <= 8 + 3 + 1, "vectors of attempts that failed are left"


def test_files_that_someone_replaced_meanwhile_are_not_replaced_again(
    lake: LakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deltalake

    monkeypatch.setattr("cdc.lake.maintain.AT_ONCE_BYTES", 0)
    snapshot, model = table(lake, commits=8)
    worker = Later()
    maintenance = Maintenance(lake, worker)
    maintenance.run(snapshot, Keep(), 60)
    worker.work()
    deltalake.DeltaTable(str(disk(lake))).optimize.compact()
    there = set(disk(lake).glob("*.parquet"))
    snapshot = lake.refresh(snapshot)
    live = set(snapshot.files)
    after = maintenance.run(snapshot, Keep(), 60)
    check(lake, after, model)
    if len(live) == 1:
        assert after is snapshot
        assert len(set(disk(lake).glob("*.parquet"))) == len(there) - 1, "what was written for nothing is left"
    check(lake, change(lake, after, model, random.Random(1)), model)


def test_rows_that_someone_restored_meanwhile_are_not_lost(lake: LakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others put a version back, while what was live after it is written as one file."""
    monkeypatch.setattr("cdc.lake.maintain.AT_ONCE_BYTES", 0)
    old, model = table(lake, commits=7)
    restored = dict(model)
    snapshot = change(lake, old, model, random.Random(3), count=30)
    worker = Later()
    maintenance = Maintenance(lake, worker)
    maintenance.run(snapshot, Keep(), 60)
    worker.work()
    # As Spark's RESTORE does it: other files and vectors for the same rows, no position.
    gone = [file for path, file in snapshot.files.items() if old.files.get(path) != file]
    back = [file for path, file in old.files.items() if snapshot.files.get(path) != file]
    snapshot = deltalog.commit(
        lake.folder,
        snapshot,
        [
            {"commitInfo": {"operation": "RESTORE", "timestamp": 0}},
            *({"remove": file.removed(1)} for file in gone),
            *({"add": file.to_action()} for file in back),
        ],
    )
    after = maintenance.run(snapshot, Keep(), 60)
    assert dict(content(lake, after)) == restored
    assert after is snapshot
    assert maintenance._quiet_s < 0, "it was noticed only when the rows were counted"


def test_of_a_table_in_partitions_files_are_merged_within_them() -> None:
    def file(name: str, partition: str, size: int = 1000, deleted: int = 0) -> AddFile:
        vector = {"cardinality": deleted} if deleted else None
        return AddFile(name, size, 100, None, 0, {"p": partition}, vector)

    files = [file(f"{p}{i}", p) for p in "ab" for i in range(8)] + [file("c", "c")]
    found = compaction.groups(_holding(files), SMALL)
    assert [{f.path for f in group.files} for group in found] == [
        {f"a{i}" for i in range(8)},
        {f"b{i}" for i in range(8)},
    ]


def test_large_files_are_purged_alone_and_others_merged_in_tiers() -> None:
    def file(name: str, size: int, deleted: int = 0) -> AddFile:
        return AddFile(name, size, 100, None, 0, None, {"cardinality": deleted} if deleted else None)

    full = 128 * 2**20
    large = [file(f"l{i}", full, 20 + 10 * i) for i in range(2)]
    tiers = [file(f"t{size}-{i}", size) for size in (20 * 2**20, 2 * 2**20, 200_000, 2000) for i in range(7)]
    assert [[f.path for f in g.files] for g in compaction.groups(_holding(large), full)] == [["l1"]]
    # 28 small files are too many, though no tier is full: those that cost least are merged.
    (group,) = compaction.groups(_holding(tiers), full)
    assert {f.size for f in group.files} == {200_000, 2000}
    (group,) = compaction.groups(_holding([*tiers[:14], file("x", 3 * 2**20)]), full)
    assert {f.path for f in group.files} == {f.path for f in tiers[7:14]} | {"x"}
    assert not compaction.groups(_holding([*large[:1], *tiers[:21]]), full)


def test_each_row_is_moved_a_logarithm_of_times() -> None:
    full, files, moved = 128 * 2**20, dict[str, AddFile](), 0
    most = 0
    for commit in range(20_000):
        files[f"{commit}"] = AddFile(f"{commit}", 40_000, 1000, None)
        while found := compaction.groups(_holding(files.values()), full):
            for group in found:
                for old in group.files:
                    del files[old.path]
                size, rows = group.bytes, sum(f.num_records or 0 for f in group.files)
                moved += rows
                name = f"{commit}-{group.files[0].path}"
                files[name] = AddFile(name, size, rows, None)
        most = max(most, sum(f.size < full // 2 for f in files.values()))
    assert moved / (20_000 * 1000) < 5
    assert most <= compaction.MOST_SMALL
    assert len(files) < 20_000 * 40_000 // (full // 2) + compaction.MOST_SMALL


def _holding(files: Any) -> Snapshot:
    listed = {file.path: file for file in files}
    return Snapshot(None, 0, {}, {}, listed, {}, {}, None, None, None, None)  # type: ignore[arg-type]


# -- the log ---------------------------------------------------------------------------------------------------------------


def test_the_position_is_restated_before_its_commit_goes(lake: LakeTable, clock: Clock) -> None:
    snapshot, model = table(lake, commits=3)
    for number in range(230):
        snapshot = deltalog.commit(
            lake.folder, snapshot, [{"commitInfo": {"operation": f"noise {number}", "timestamp": clock.us // 1000}}]
        )
        clock.us += 1_000_000
    was = snapshot.applied
    maintenance = Maintenance(lake)
    for _ in range(4):
        snapshot = maintenance.run(snapshot, NOW, 60)
        for number in range(120):
            snapshot = deltalog.commit(
                lake.folder, snapshot, [{"commitInfo": {"operation": f"noise {number}", "timestamp": clock.us // 1000}}]
            )
            clock.us += 1_000_000
    left = sorted(p.name for p in (disk(lake) / "_delta_log").glob("*.json"))
    assert int(left[0][:20]) > 230
    loaded = lake.load()
    assert loaded is not None
    assert loaded.applied == was
    assert "restate" in kinds(lake)
    check(lake, snapshot, model)
    check_readers(lake, model, [read_deltalake, read_polars])


def test_the_position_of_a_table_at_rest_is_restated_before_others_clean_its_commit_away(
    lake: LakeTable, clock: Clock
) -> None:
    """Spark deletes commits of 30 days as soon as it writes a checkpoint, ten commits of its own later: that may take a minute."""
    snapshot, _ = table(lake, commits=1)
    maintenance, was = Maintenance(lake), snapshot.applied
    clock.us += 14 * 86_400_000_000
    assert maintenance.run(snapshot, Keep(), 60) is snapshot
    clock.us += 2 * 86_400_000_000
    restated = maintenance.run(snapshot, Keep(log_s=3650 * 86400.0), 60)
    assert restated.version == restated.info_version == snapshot.version + 1
    assert restated.applied == was
    assert maintenance.run(restated, Keep(), 60) is restated


def test_neither_the_position_nor_what_the_retention_needs_is_cleaned_away(lake: LakeTable, clock: Clock) -> None:
    def noise(on: Snapshot, count: int) -> Snapshot:
        for _ in range(count):
            clock.us += 1_000_000
            on = deltalog.commit(lake.folder, on, [{"commitInfo": {"timestamp": clock.us // 1000}}])
        return on

    def left() -> list[int]:
        return sorted(int(p.name[:20]) for p in (disk(lake) / "_delta_log").glob("*.json"))

    def clean(on: Snapshot, keep_s: float) -> None:
        cleaning.clean_log(lake.folder, on, keep_s, None, clock.us // 1000, lambda: False)

    snapshot, model = table(lake, commits=3)
    said = snapshot.version
    for _ in range(5):
        snapshot = lake.checkpoint(noise(snapshot, 10))
    clean(snapshot, 0.0)
    assert left() == list(range(said, snapshot.version + 1))
    assert snapshot.applied is not None
    snapshot = noise(lake.restate(snapshot, snapshot.applied), 5)
    clean(snapshot, 25.0)
    # It was the newest 25 seconds ago (the restated one took no time); it is read from the checkpoint before it.
    needed = snapshot.version - 27
    assert left()[0] == max(v for v in range(said + 10, said + 60, 10) if v <= needed)
    for version in range(needed, snapshot.version + 1, 6):
        assert read_deltalake(disk(lake), version).num_rows == len(model)
    check(lake, snapshot, model)


def test_commits_stay_that_the_trace_has_not_taken(lake: LakeTable, clock: Clock) -> None:
    snapshot, _ = table(lake, commits=1)
    maintenance = Maintenance(lake)
    rng = random.Random(2)
    for _ in range(260):
        snapshot = change(lake, snapshot, {}, rng)
        clock.us += 1_000_000
        snapshot = maintenance.run(snapshot, replace(NOW, traced=50), 60)
    left = sorted(int(p.name[:20]) for p in (disk(lake) / "_delta_log").glob("*.json"))
    assert left[0] == 51
    assert left == list(range(51, snapshot.version + 1))


def test_versions_within_the_retention_can_be_read(lake: LakeTable, clock: Clock) -> None:
    snapshot, model = table(lake)
    maintenance = Maintenance(lake)
    keep = Keep(files_s=150.0, log_s=150.0)
    rng, versions = random.Random(4), dict[int, tuple[int, Model]]()
    for _ in range(500):
        snapshot = change(lake, snapshot, model, rng)
        versions[snapshot.version] = clock.us, dict(model)
        clock.us += 1_000_000
        snapshot = maintenance.run(snapshot, keep, 60)
    names = sorted((disk(lake) / "_delta_log").glob("*.json"))
    assert len(names) < 500
    young = [(version, was) for version, (us, was) in versions.items() if us >= clock.us - 149_000_000]
    assert len(young) > 100
    for version, was in young[:: len(young) // 8]:
        for reader in (read_deltalake, read_polars):
            found = reader(disk(lake), version)
            assert dict(zip(found["id"].to_pylist(), found["name"].to_pylist(), strict=True)) == was


def test_checkpoints_stay_few_and_spread_so_that_the_log_is_not_much_longer_than_it_must_be() -> None:
    there: list[int] = []
    for version in range(0, 1_000_000, 100):
        there.append(version)
        gone = superfluous(there)
        there = [v for v in there if v not in gone]
        assert len(there) <= 3 + 2 * 8
        needed = version - 50_000
        there = [v for v in there if v >= max((w for w in there if w <= needed), default=0)]
        assert version < 100_000 or version - there[0] < 1.5 * 50_000


def test_a_checkpoint_keeps_what_others_said(lake: LakeTable) -> None:
    snapshot, model = table(lake, commits=2)
    path, file = next(iter(snapshot.files.items()))
    snapshot = deltalog.commit(
        lake.folder,
        snapshot,
        [
            {"commitInfo": {"operation": "theirs", "timestamp": 1}},
            {"domainMetadata": {"domain": "theirs", "configuration": '{"a":1}', "removed": False}},
            {"domainMetadata": {"domain": "old", "configuration": "", "removed": True}},
            {"txn": {"appId": "theirs", "version": 7}},
            {"remove": file.removed(1)},
            {"add": file.to_action() | {"tags": {"ZCUBE": "x"}, "clusteringProvider": "liquid"}},
        ],
    )
    snapshot = lake.checkpoint(snapshot)
    log = disk(lake) / "_delta_log"
    for version in range(snapshot.version - 1):  # the one before it bears the position
        (log / f"{version:020}.json").unlink()
    loaded = lake.load()
    assert loaded is not None
    assert loaded.checkpoint == snapshot.version
    assert loaded.domains == {"theirs": {"domain": "theirs", "configuration": '{"a":1}', "removed": False}}
    assert loaded.txns["theirs"] == 7
    assert loaded.files[path].extra == {"tags": {"ZCUBE": "x"}, "clusteringProvider": "liquid"}
    check(lake, loaded, model)


def test_who_reads_a_log_while_it_is_cleaned_lists_it_again(lake: LakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, model = table(lake, commits=5)
    log = lake.folder.folder("_delta_log")
    read = deltalog._read_all
    cleaned: list[range] = []

    def slow(folder: Any, versions: range) -> Any:
        if not cleaned:
            cleaned.append(versions)
            yield from read(folder, range(2))
            lake.checkpoint(snapshot)
            log.delete(f"{v:020}.json" for v in range(5))
            versions = range(2, versions.stop)
        yield from read(folder, versions)

    monkeypatch.setattr(deltalog, "_read_all", slow)
    loaded = lake.load()
    assert loaded is not None
    assert cleaned
    assert loaded.version == 5
    check(lake, loaded, model)


def test_a_commit_is_not_made_where_later_ones_were_cleaned_away(lake: LakeTable, clock: Clock) -> None:
    """The name of its version is free again; but it would be behind a checkpoint, and never read."""
    stale, model = table(lake, commits=1)
    other = LakeTable(disk(lake).parents[1], TABLE, "p", file_size=SMALL, clock=clock)
    snapshot, maintenance, rng = other.load(), Maintenance(other), random.Random(1)
    assert snapshot is not None
    for _ in range(250):
        snapshot = change(other, snapshot, model, rng)
        clock.us += 1_000_000
        snapshot = maintenance.run(snapshot, NOW, 60)
    assert not (disk(lake) / "_delta_log" / f"{stale.version + 1:020}.json").exists()
    with pytest.raises(LakeConflictError, match="is not there any more"):
        upsert(lake, stale, [(1, "lost")])
    assert lake.refresh(stale).version == snapshot.version
    check(lake, snapshot, model)


# -- files -----------------------------------------------------------------------------------------------------------------


def test_files_go_when_no_version_within_the_retention_names_them(lake: LakeTable, clock: Clock) -> None:
    snapshot, model = table(lake)
    maintenance = Maintenance(lake)
    keep = Keep(files_s=3600.0)
    rng = random.Random(1)
    for _ in range(8):
        snapshot = maintenance.run(change(lake, snapshot, model, rng), keep, 60)
    there = {p.name for p in disk(lake).rglob("*.parquet")} | {p.name for p in disk(lake).rglob("*.bin")}
    for _ in range(3):
        clock.us += 1_100_000_000
        snapshot = maintenance.run(snapshot, keep, 60)
        now = {p.name for p in disk(lake).rglob("*.parquet")} | {p.name for p in disk(lake).rglob("*.bin")}
        assert now == there
    clock.us += 1_300_000_000
    snapshot = maintenance.run(snapshot, keep, 60)
    clock.us += 3_700_000_000
    snapshot = maintenance.run(snapshot, keep, 60)
    left = {p.name for p in disk(lake).rglob("*.parquet")} | {p.name for p in disk(lake).rglob("*.bin")}
    vectors = {name.rpartition("/")[2] for name in cleaning.Unnamed().look(snapshot)}
    assert left == set(snapshot.files) | vectors
    assert len(there - left) > 10
    assert not snapshot.tombstones
    check(lake, snapshot, model)
    check_readers(lake, model, [read_deltalake, read_polars])


def test_files_that_are_kept_for_weeks_stay_whoever_reads_the_table_from_a_checkpoint(
    lake: LakeTable, clock: Clock
) -> None:
    snapshot, model = table(lake, commits=12)
    keep, before = Keep(files_s=30 * 86400.0, log_s=60 * 86400.0), snapshot.version
    snapshot = Maintenance(lake).optimize(snapshot, keep)
    assert len(snapshot.tombstones) > 8
    clock.us += 10 * 86_400_000_000
    snapshot = change(lake, snapshot, model, random.Random(1))
    Maintenance(lake).optimize(snapshot, keep)
    other = LakeTable(disk(lake).parents[1], TABLE, "p", file_size=SMALL, clock=clock)
    loaded = other.load()
    assert loaded is not None
    Maintenance(other).run(loaded, keep, 60)
    assert read_deltalake(disk(lake), before).num_rows
    check(lake, loaded, model)


def test_orphans_go_once_no_writer_can_be_that_slow(lake: LakeTable, clock: Clock) -> None:
    snapshot, model = table(lake, commits=2)
    (disk(lake) / "_change_data").mkdir()
    orphans = ["part-" + "0" * 32 + ".zstd.parquet", f"_dv/deletion_vector_{'0' * 8}-0000-0000-0000-{'0' * 12}.bin"]
    others = ["notes.txt", "_dv/other", "c=1/x.parquet"]
    feed = "_change_data/cdc-0.parquet"
    temporary = "_delta_log/_commit_x.json.tmp"
    for name in (*orphans, *others, feed, temporary):
        (disk(lake) / name).parent.mkdir(exist_ok=True)
        (disk(lake) / name).write_bytes(b"")
    maintenance = Maintenance(lake)
    keep = Keep(files_s=10.0)
    snapshot = maintenance.run(snapshot, keep, 60)
    clock.us += 3_700_000_000
    snapshot = maintenance.run(snapshot, keep, 60)
    assert {name for name in (*orphans, *others, feed, temporary) if (disk(lake) / name).exists()} == {
        *orphans,
        *others,
        feed,
    }
    clock.us += 86_400_000_000
    snapshot = maintenance.run(snapshot, keep, 60)
    assert {name for name in (*orphans, *others, feed) if (disk(lake) / name).exists()} == set(others)
    check(lake, snapshot, model)


def test_what_was_restored_since_is_not_deleted(lake: LakeTable, clock: Clock) -> None:
    """The merger knows an older version, in which the file is dead for long."""
    first, model = table(lake, commits=1)
    (old,) = [file for path, file in first.files.items() if file.deleted][:1]
    stale = deltalog.commit(
        lake.folder, first, [{"commitInfo": {"timestamp": 1}}, {"remove": old.removed(clock.us // 1000)}]
    )
    deltalog.commit(lake.folder, stale, [{"commitInfo": {"timestamp": 1}}, {"add": old.to_action()}])
    clock.us += 7_200_000_000
    maintenance = Maintenance(lake)
    maintenance.run(stale, Keep(files_s=60.0), 60)
    clock.us += 7_200_000_000
    maintenance.run(stale, Keep(files_s=60.0), 60)
    loaded = lake.load()
    assert loaded is not None
    check(lake, loaded, model)


def test_a_vector_that_was_replaced_waits_for_the_retention_and_one_that_is_written_for_its_commit(
    lake: LakeTable,
) -> None:
    snapshot, _ = table(lake, commits=1)
    seen = cleaning.Unnamed()
    (named,) = seen.look(snapshot)
    written = f"_dv/deletion_vector_{'1' * 8}-0000-0000-0000-{'1' * 12}.bin"
    snapshot = change(lake, snapshot, {}, random.Random(1), count=50)
    entries = [Entry(name, 1, 1_000_000) for name in (named, written)]
    assert not seen.dead(entries, snapshot, (), 1_000_000, 10.0)
    assert not seen.dead(entries, snapshot, (), 1_009_000, 10.0)
    assert seen.dead(entries, snapshot, (), 1_010_000, 10.0) == [named]
    assert seen.dead(entries, snapshot, (), 1_000_000 + 86_400_001, 10.0) == [named, written]


# -- a long time -----------------------------------------------------------------------------------------------------------


def test_where_the_log_does_not_reach_back_vectors_are_not_taken_for_long_replaced(
    lake: LakeTable, clock: Clock
) -> None:
    snapshot, _ = table(lake, commits=4)
    lake.checkpoint(snapshot)
    for version in range(snapshot.version):
        (disk(lake) / "_delta_log" / f"{version:020}.json").unlink()
    now_ms = clock.us // 1000
    for path in disk(lake).rglob("*.bin"):
        os.utime(path, (now_ms / 1000 - 3 * 86400,) * 2)

    def dead(keep_s: float) -> list[str]:
        unnamed = cleaning.Unnamed()
        unnamed.recall(lake.folder, keep_s, now_ms)
        return unnamed.dead(lake.folder.walk("_delta_log"), snapshot, [], now_ms, keep_s)

    assert not dead(7 * 86400.0)
    clock.us += 1000
    now_ms += 1
    assert len([name for name in dead(0.0) if name.endswith(".bin")]) == 3


def test_thousands_of_commits_leave_few_files_and_a_short_log(tmp_path: Path) -> None:
    """And others read it right all the while."""
    commits = int(os.environ.get("MAINTENANCE_COMMITS", "2000"))
    clock = Clock()
    lake = LakeTable(tmp_path, TABLE, "p", file_size=SMALL, clock=clock)
    snapshot, model = table(lake)
    maintenance, rng = Maintenance(lake), random.Random(0)
    keep = Keep(files_s=30.0, log_s=60.0)
    steps: dict[str, list[float]] = {}
    live = on_disk = in_log = 0
    for number in range(commits):
        snapshot = change(lake, snapshot, model, rng)
        clock.us += 1_000_000
        snapshot = maintenance.run(snapshot, keep, 1.0)
        for step, ms in maintenance.done.ms.items():
            steps.setdefault(step, []).append(ms)
        live = max(live, len(snapshot.files))
        if number % 100 == 99:
            names = [p for p in disk(lake).rglob("*") if p.is_file()]
            in_log = max(in_log, sum(p.suffix == ".json" for p in names))
            on_disk = max(
                on_disk, sum(p.suffix in (".parquet", ".bin") and p.parent.name != "_delta_log" for p in names)
            )
            check_readers(lake, model, [read_deltalake, read_polars])
    check(lake, snapshot, model)
    check_readers(lake, model, [read_chdb])
    for step, each in steps.items():
        print(f"{step}: {sum(each) / commits:.2f} ms a commit, at most {max(each):.1f}, {len(each)} times")
    assert live <= compaction.MOST_SMALL
    assert in_log < 400
    assert on_disk < 200
