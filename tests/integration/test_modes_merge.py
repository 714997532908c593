"""Tables that keep what was there, from log to lake: every change once, whatever happens to the log, the lake or the process; and how they
go on when they are added again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cdc import faults
from cdc.config import Mode
from cdc.epoch import WindowId
from cdc.lake import Snapshot, manifest
from cdc.log import Log
from cdc.merge import resuming
from cdc.merge import table as table_module
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from tests.integration.history import (
    EVENTS,
    ITEMS,
    MODES,
    ORDERS,
    SCHEMAS,
    Capture,
    Change,
    Pipeline,
    Row,
    Source,
    Windowed,
    copy_log,
    key,
    restore_log,
)
from tests.integration.lake_rows import disk
from tests.integration.test_merge_exactly_once import KILLS, World, arm, merging_process

KEPT: dict[TableName, Mode] = {ORDERS: "soft-delete", ITEMS: "history"}
OWN: dict[Mode, tuple[str, ...]] = {
    "soft-delete": ("_cdc_deleted_at",),
    "history": ("valid_from", "valid_to", "is_current"),
}


@pytest.fixture(autouse=True)
def modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One table of each mode, and one to which changes are appended."""
    for table, mode in KEPT.items():
        monkeypatch.setitem(MODES, table, mode)


def at(ts_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ts_ms)


class Kept:
    """A table that keeps what was there, by hand: one change after the other."""

    def __init__(self, table: TableName) -> None:
        self.table, self.mode = table, MODES[table]
        self.ended: list[tuple[Any, ...]] = []
        self.there: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def put(self, row: Row, ts_ms: int, seq: int) -> None:
        self.end(key(self.table, row), ts_ms, seq)
        own: tuple[Any, ...] = (None,) if self.mode == "soft-delete" else (at(ts_ms), None, True)
        self.there[key(self.table, row)] = (*row, ts_ms, seq, *own)

    def end(self, of: tuple[Any, ...], ts_ms: int, seq: int) -> None:
        found = self.there.get(of)
        if found is None:
            return
        if self.mode == "history":
            self.ended.append((*self.there.pop(of)[:-2], at(ts_ms), False))
        elif found[-1] is None:
            self.there[of] = (*found[:-3], ts_ms, seq, at(ts_ms))

    def take(self, changes: Sequence[tuple[int, Change]], seq: int = 0) -> None:
        """Changes of all tables, each with its transaction's number; `seq`: the number of the one before."""
        for number, change in changes:
            seq += 1
            if change.table != self.table:
                continue
            ts_ms = Source.time_us(number) // 1000
            if change.old is not None and (
                change.new is None or key(self.table, change.old) != key(self.table, change.new)
            ):
                self.end(key(self.table, change.old), ts_ms, seq)
            if change.new is not None:
                self.put(change.new, ts_ms, seq)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        return sorted([*self.ended, *self.there.values()], key=repr)


def changes(source: Source, count: int, events: int = 0, start: int = 0) -> list[tuple[int, Change]]:
    """Those of so many transactions, and of so many row events of the next one; without those of the first ones."""
    found = [(n, c) for n, t in enumerate(source.transactions[:count], 1) if n > start for c in t]
    if events:
        found += [(count + 1, c) for c in source.transactions[count] if c.event < events]
    return found


class Keeping(Pipeline):
    """A pipeline whose tables begin empty, before the first transaction."""

    def start(self, capture: Capture, *, mark: int = 0) -> None:
        record = capture.add(*SCHEMAS)
        for table in SCHEMAS:
            self.state.set_table(table, "added", added=record.id)

    def check(self, table: TableName, count: int, events: int = 0) -> Snapshot:
        """That the table is what the source's changes make of it."""
        if MODES[table] == "append":
            return super().check(table, count, events)
        expected = Kept(table)
        expected.take(changes(self.source, count, events))
        snapshot = self.snapshot(table)
        assert rows(self, table) == expected.rows, f"{table} is not the source after {count} transactions"
        assert snapshot.rows == len(expected.rows)
        return snapshot

    def settle(self) -> None:
        """Say that what there was is read: nothing was."""
        for table in KEPT:
            self.state.set_table(table, "ready", when=("reading",))


def rows(pipeline: Pipeline, table: TableName) -> list[tuple[Any, ...]]:
    """All columns, sorted."""
    names = [*SCHEMAS[table].names, "_cdc_ts_ms", "_cdc_seq", *OWN[MODES[table]]]
    lake, snapshot = pipeline.lake(table), pipeline.snapshot(table)
    found = [tuple(row[n] for n in names) for batch in lake.scan(snapshot) for row in batch.to_pylist()]
    return sorted(found, key=repr)


@pytest.fixture
def pipeline(tmp_path: Path) -> Keeping:
    return Keeping(tmp_path, Source.made_up(random.Random(7), 50, busy=True))


@pytest.fixture
def log(pipeline: Keeping) -> Iterator[Log]:
    with closing(pipeline.log()) as log:
        yield log


# -- each change once ----------------------------------------------------------------------------------------------------


def test_the_table_is_the_same_in_one_merge_and_in_many(tmp_path: Path) -> None:
    source = Source.made_up(random.Random(3), 50)
    found = []
    for each in (True, False):
        pipeline = Keeping(tmp_path / str(each), source)
        with closing(pipeline.log()) as log, Capture(log, source) as capture:
            pipeline.start(capture)
            merging = pipeline.merger(log)
            while capture.at < 50:
                capture.epoch(1)
                if each:
                    merging.round()
            pipeline.merger(log).round()
        pipeline.check_all()
        found.append({table: rows(pipeline, table) for table in KEPT})
        assert set(pipeline.phases().values()) == {"reading", "ready"}
    assert found[0] == found[1]
    assert len(found[0][ITEMS]) > 15


def rolled_back(pipeline: Keeping) -> None:
    """The log loses its last two epochs, which are merged; capture writes them again and goes on, cut otherwise."""
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            for _ in range(6):
                capture.epoch(3)
            merging = pipeline.merger(log)
            merging.round()
            copy = copy_log(pipeline.folder)
            capture.epoch(4)
            capture.epoch(4)
            merging.round()
            pipeline.check_all(26)
        restore_log(pipeline.folder, copy)
        merging.round()
        with Capture(log, pipeline.source) as capture:
            for count in (1, 10, 3, 2):  # the second begins before, and ends after, what the lake has
                capture.epoch(count)
                merging.round()
                pipeline.check_all(max(26, capture.at))
            capture.epochs(random.Random(2))
        pipeline.merger(log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


def restarted(pipeline: Keeping) -> None:
    """Mergers that end and begin, with nothing new in the log."""
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(3):
            capture.epoch(10)
            for _ in range(2):
                pipeline.merger(log).round()
                pipeline.check_all(capture.at)


def test_a_log_rolled_back_two_epochs_and_written_again(pipeline: Keeping) -> None:
    rolled_back(pipeline)


def test_a_merger_that_starts_again_repeats_nothing(pipeline: Keeping) -> None:
    restarted(pipeline)


def test_a_log_replaced_by_a_fresh_one_goes_on_by_position(pipeline: Keeping) -> None:
    """It begins before what the tables have, and at the lake's highest number."""
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(6):
            capture.epoch(4)
        pipeline.merger(log).round()
        pipeline.settle()
        number = capture.newest.number
    restore_log(pipeline.folder, None)
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        record = capture.add(*SCHEMAS, fresh=(number + 1, 20))
        for table in SCHEMAS:
            pipeline.state.set_table(table, "ready", added=record.id)
        capture.epoch(3)
        capture.epoch(3)
        merging = pipeline.merger(log)
        merging.round()
        pipeline.check_all(26)
        capture.epochs(random.Random(2))
        merging.round()
    pipeline.check_all()
    assert set(pipeline.phases().values()) == {"ready"}


SCENARIOS = {"skip_by_number": rolled_back, "part_applied_whole": rolled_back, "applied_check_skipped": restarted}


@pytest.mark.parametrize("mutant", SCENARIOS)
def test_every_mistake_is_noticed(pipeline: Keeping, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    arm(monkeypatch, f"mutant:{mutant}")
    monkeypatch.setattr(Keeping, "check_all", only_kept)
    with pytest.raises(AssertionError, match=r"is not the source|assert"):
        SCENARIOS[mutant](pipeline)


def only_kept(pipeline: Keeping, count: int | None = None) -> None:
    """Not the table to which changes are appended: others look at that one."""
    for table in KEPT:
        pipeline.check(table, len(pipeline.source.transactions) if count is None else count)


@pytest.mark.parametrize("point", KILLS)
def test_a_merger_killed_at_any_point_goes_on_exactly(pipeline: Keeping, log: Log, point: str) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        pipeline.merger(log).round()
        capture.epoch(12)
        capture.epoch(2)
        process = merging_process(pipeline, 3, f"kill:{point}:2")
        process.communicate(timeout=60)
        assert process.returncode == -9
        pipeline.merger(log).round()
        pipeline.check_all(14)
        capture.epochs(random.Random(5))
    pipeline.merger(log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


class KeepingWorld(World):
    """The same to tables that keep what was there."""

    def __init__(self, folder: Path, random_: random.Random, source: Source) -> None:
        self.random = random_
        self.pipeline = Keeping(folder, source)
        self.log = self.pipeline.log()
        self.capture = Capture(self.log, self.pipeline.source, checkpoints=random_.choice((1, 3, 100)))
        self.pipeline.start(self.capture)
        self.mergers = [self.pipeline.merger(self.log) for _ in range(2)]
        self.mergers[0].round()
        self.copies = [copy_log(folder)]
        self.countdown = None


@pytest.mark.parametrize("large", [False, True], ids=["many", "large"])
@pytest.mark.timeout(300)
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_every_change_is_there_once(
    large: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random_ = random.Random(seed)
    source = Source.made_up(random_, random_.randrange(10, 40))
    if large:
        source = Source.made_up(random_, random_.randrange(3, 10), busy=True, events=(0, 8, 20))
    world = KeepingWorld(tmp_path_factory.mktemp("world"), random_, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "point", world.point)
        patch.setattr(table_module, "BATCH_BYTES", random_.choice((1, 1, 10**9)))
        for _ in range(random_.randrange(5, 40)):
            world.step()
        world.capture.epochs(random_)
        for merging in world.mergers:
            merging.round()
    world.pipeline.check_all()
    world.check()
    assert world.pipeline.state.errors() == []
    world.capture.writer.close()


# -- windows -------------------------------------------------------------------------------------------------------------


def window(pipeline: Pipeline, table: TableName, number: int, count: int, touched: int = 0) -> Windowed:
    """The whole table as it is after so many transactions; all keys that it ever had besides are not found."""
    found = pipeline.source.rows(table, count)
    ever = {
        key(table, r) for t in pipeline.source.transactions for c in t if c.table == table for r in (c.old, c.new) if r
    }
    return Windowed(WindowId("job", number), table, found, sorted(ever - {key(table, row) for row in found}), touched)


def test_a_window_that_finds_what_is_there_makes_no_versions_and_marks_nothing(pipeline: Keeping, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(30)
        merging = pipeline.merger(log)
        merging.round()
        before = {table: rows(pipeline, table) for table in KEPT}
        capture.windows(*(window(pipeline, table, 1, 30) for table in KEPT))
        merging.round()
        assert rows(pipeline, ITEMS) == before[ITEMS]
        names = len(SCHEMAS[ORDERS].names)
        assert [(row[:names], row[-1]) for row in rows(pipeline, ORDERS)] == [
            (row[:names], row[-1]) for row in before[ORDERS]
        ]
        counts = pipeline.snapshot(ITEMS).counts
        live = len(pipeline.source.rows(ITEMS, 30))
        assert (counts["inserted"], counts["replaced"]) == (0, 0)
        assert counts["absent"] == counts["effective"] >= live


@pytest.mark.parametrize("restored", [False, True])
def test_windows_of_a_log_that_lost_its_tail_double_nothing(pipeline: Keeping, log: Log, restored: bool) -> None:
    """Read again or given again, they find what is there."""
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        merging = pipeline.merger(log)
        merging.round()
        copy = copy_log(pipeline.folder)
        capture.windows(*(window(pipeline, table, 1, 14) for table in KEPT), transactions=4)
        merging.round()
        found = {table: len(rows(pipeline, table)) for table in KEPT}
    if restored:
        restore_log(pipeline.folder, copy)
    with Capture(log, pipeline.source) as capture:
        if restored:
            capture.epoch(4)
        capture.windows(*(window(pipeline, table, 2, 14) for table in KEPT))
        pipeline.merger(log).round()
        assert {table: len(rows(pipeline, table)) for table in KEPT} == found
        capture.epochs(random.Random(1))
        pipeline.merger(log).round()
    for table in KEPT:
        assert live(pipeline, table) == pipeline.source.rows(table, 50)


def live(pipeline: Pipeline, table: TableName) -> list[Row]:
    """The rows that the source has, by the table."""
    names = len(SCHEMAS[table].names)
    is_live = (lambda row: row[-1]) if MODES[table] == "history" else (lambda row: row[-1] is None)
    return sorted((row[:names] for row in rows(pipeline, table) if is_live(row)), key=repr)


# -- added again ---------------------------------------------------------------------------------------------------------


def again(pipeline: Pipeline, capture: Capture, *tables: TableName, **options: Any) -> None:
    record = capture.add(*tables, options=options)
    for table in tables:
        pipeline.state.set_table(table, "added", added=record.id)


def test_a_table_that_is_added_again_keeps_what_it_has_and_gets_what_the_log_has(pipeline: Keeping, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        merging = pipeline.merger(log)
        merging.round()
        pipeline.settle()
        capture.epoch(10)  # not merged when it is added again
        again(pipeline, capture, *KEPT)
        capture.epoch(5)
        merging.round()
        pipeline.check_all(25)
        assert {pipeline.phases()[table] for table in KEPT} == {"reading"}
        kinds = [commit["kind"] for commit in pipeline.commits(ITEMS)]
        assert kinds.count("rejoin") == 1
        info = next(c for c in pipeline.commits(ITEMS) if c["kind"] == "rejoin")
        assert info["totals"]["bootstrapped"] == info["totals"]["rows_added"] == info["counts"]["live_after"] > 0
        assert sum(info["totals"]["logged"]) == 0
        version = pipeline.snapshot(ITEMS).version
        pipeline.state.set_table(ITEMS, "added")  # as if it had been killed before it could say so
        pipeline.merger(log).round()
        assert (pipeline.phases()[ITEMS], pipeline.check(ITEMS, 25).version) == ("reading", version)
        capture.epochs(random.Random(1))
        merging.round()
    pipeline.check_all()


def test_a_gap_is_gone_over_and_a_reading_closes_it(pipeline: Keeping, log: Log) -> None:
    """The stream goes on behind transactions that nobody has; the table keeps its versions, and is the source in the end."""
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        merging = pipeline.merger(log)
        merging.round()
        before = {table: set(rows(pipeline, table)) for table in KEPT}
        copy = copy_log(pipeline.folder)
        capture.epoch(8)
    restore_log(pipeline.folder, copy)
    with Capture(log, pipeline.source) as capture:
        capture.epoch(4, start=18)
        merging.round()
        assert {pipeline.phases()[table] for table in KEPT} == {"stopped"}
        again(pipeline, capture, *KEPT)
        merging.round()
        assert {pipeline.phases()[table] for table in KEPT} == {"reading"}
        assert {table: set(rows(pipeline, table)) for table in KEPT} == before
        capture.epoch(3)
        capture.windows(*(window(pipeline, table, 1, 25) for table in KEPT))
        merging.round()
        for table in KEPT:
            assert live(pipeline, table) == pipeline.source.rows(table, 25)
        capture.epochs(random.Random(1))
        merging.round()
    for table in KEPT:
        assert live(pipeline, table) == pipeline.source.rows(table, 50)
    ended = {row[:3] + row[4:6] for row in before[ITEMS] if not row[-1]}
    assert ended <= {row[:3] + row[4:6] for row in rows(pipeline, ITEMS)}


@pytest.mark.parametrize("what", ["columns", "upsert", "soft-delete"])
def test_a_table_that_keeps_something_is_not_replaced(
    pipeline: Keeping, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        merging = pipeline.merger(log)
        merging.round()
        pipeline.settle()
        if what == "columns":
            schema = SCHEMAS[ITEMS]
            monkeypatch.setitem(SCHEMAS, ITEMS, TableSchema((*schema.columns, Column("more", "int")), schema.key))
        options = {"shards": {}, "shard_column": "sku"} if what == "upsert" else {}
        again(pipeline, capture, ITEMS, **options, **({"mode": what} if what != "columns" else {}))
        merging.round()
        status = pipeline.state.table(ITEMS)
        assert status is not None
        assert status.phase == "stopped"
        assert "would be lost" in (status.error or {})["what"]
        disk(pipeline.lake(ITEMS)).rename(tmp_path / "away")
        pipeline.state.ask("resume", str(ITEMS))
        resuming.take_requests(pipeline.state, pipeline.config, log)
        merging.round()
        assert (pipeline.phases()[ITEMS], pipeline.snapshot(ITEMS).rows) == ("reading", 0)


def test_an_upsert_table_that_becomes_one_that_keeps_begins_empty(pipeline: Keeping, log: Log) -> None:
    with Capture(log, pipeline.source) as capture, pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODES, ORDERS, "upsert")
        pipeline.start(capture)
        pipeline.bootstrap(capture, ORDERS)
        capture.epoch(10)
        merging = pipeline.merger(log)
        merging.round()
        assert pipeline.snapshot(ORDERS).rows > 0
        patch.setitem(MODES, ORDERS, "history")
        again(pipeline, capture, ORDERS)
        merging.round()
        assert (pipeline.snapshot(ORDERS).rows, pipeline.snapshot(ORDERS).mode) == (0, "history")
        assert pipeline.phases()[ORDERS] == "reading"


def test_manifests_name_them(pipeline: Keeping, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        pipeline.merger(log).round()
    found = manifest.read(pipeline.config.lake_root, "shop")
    assert found is not None
    assert {table: found.tables[table].state for table in (*KEPT, EVENTS)} == {
        ORDERS: "reading",
        ITEMS: "reading",
        EVENTS: "ready",
    }
