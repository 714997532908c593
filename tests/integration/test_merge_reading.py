"""Tables whose rows come in windows: how they begin, what holds the log for them, how they go on after a stop; shards and their
truncations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdc import sharding
from cdc.epoch import TableState, WindowId
from cdc.errors import LogDamagedError
from cdc.lake import LakeTable, deltalog
from cdc.log import Log
from cdc.merge import resuming
from cdc.names import TableName
from cdc.reads import Read, ReadSpec, Why
from cdc.schema import Column, TableSchema
from cdc.sharding import joined
from tests.integration.history import (
    EVENTS,
    MODES,
    SCHEMAS,
    TEXT,
    Capture,
    Change,
    Pipeline,
    Row,
    Source,
    Windowed,
)
from tests.integration.lake_rows import disk

SALES = TableName("shop", "sales")
ONE, TWO = "shop.sales_1", "shop.sales_2"
OPTIONS = {"shards": {"shop.sales_1": {}, "shop.sales_2": {}}, "shard_column": "_shard"}


@pytest.fixture(autouse=True)
def sales(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more table, of two shards."""
    own = TableSchema((Column("id", "bigint"), Column("note", "text", charset=TEXT)), ("id",))
    monkeypatch.setitem(SCHEMAS, SALES, joined(own, "_shard"))
    monkeypatch.setitem(MODES, SALES, "upsert")


def sold(number: int, shard: str) -> Change:
    return Change(SALES, 0, 0, None, (number, f"note {number}", shard))


def made_up(random_: random.Random, length: int, truncations: float = 0.15) -> Source:
    """Inserts, updates, deletes, key changes and truncations over few keys of two shards."""
    source, live = Source(), dict[tuple[str, int], Row]()
    for number in range(1, length + 1):
        changes = []
        for event in range(random_.choice((0, 1, 2, 3))):
            shard, one = random_.choice((ONE, TWO)), random_.randrange(6)
            old = live.pop((shard, one), None)
            new: Row | None = (random_.choice((one, random_.randrange(6))), f"{number}.{event}", shard)
            assert new is not None
            if random_.random() < truncations:
                changes.append(Change(SALES, event, 0, None, None, shard))
                live = {k: v for k, v in live.items() if k[0] != shard}
                continue
            if old is not None and random_.random() < 0.3:
                new = None
            elif (shard, new[0]) in live:
                new = (one, *new[1:])
            changes.append(Change(SALES, event, 0, old, new))
            if new is not None:
                live[shard, new[0]] = new
        source.transactions.append(changes)
    return source


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path, made_up(random.Random(5), 60))


@pytest.fixture
def log(pipeline: Pipeline) -> Iterator[Log]:
    with closing(pipeline.log()) as log:
        yield log


def add(pipeline: Pipeline, capture: Capture, table: TableName, **options: Any) -> None:
    record = capture.add(table, options=options or None)
    pipeline.state.set_table(table, "added", added=record.id)


def reading(pipeline: Pipeline, table: TableName = SALES, why: Why = "shard") -> Read:
    return pipeline.state.ask_read(table, table, ReadSpec(), why)


def of_shard(pipeline: Pipeline, read: Read, number: int, shard: str, count: int) -> Windowed:
    rows = [row for row in pipeline.source.rows(SALES, count) if row[2] == shard]
    return Windowed(WindowId(read.job, number), SALES, rows)


def equals(pipeline: Pipeline, table: TableName, count: int) -> bool:
    """Whether the lake has exactly the source's rows after so many transactions."""
    snapshot = pipeline.snapshot(table)
    names = SCHEMAS[table].names
    found = [tuple(row[n] for n in names) for b in pipeline.lake(table).scan(snapshot) for row in b.to_pylist()]
    return sorted(found, key=repr) == pipeline.source.rows(table, count)


# -- how they begin -----------------------------------------------------------------------------------------------------


def test_shards_begin_empty_and_are_equal_once_their_windows_are_in(pipeline: Pipeline, log: Log) -> None:
    pipeline.source = made_up(random.Random(5), 60, truncations=0)
    with Capture(log, pipeline.source) as capture:
        capture.epoch(15)
        add(pipeline, capture, SALES, **OPTIONS)
        merging = pipeline.merger(log)
        merging.round()
        assert pipeline.phases()[SALES] == pipeline.manifest().tables[SALES].state == "reading"
        assert (pipeline.snapshot(SALES).rows, pipeline.snapshot(SALES).mode) == (0, "upsert")
        read = reading(pipeline)
        capture.windows(of_shard(pipeline, read, 1, ONE, 18), transactions=3)
        merging.round()
        assert not equals(pipeline, SALES, 18)
        capture.windows(of_shard(pipeline, read, 2, TWO, 20), transactions=2)
        merging.round()
        assert equals(pipeline, SALES, 20)
        pipeline.state.set_table(SALES, "ready", when=("reading",))
        capture.epochs(random.Random(2))
        merging.round()
    assert equals(pipeline, SALES, 60)
    assert pipeline.manifest().tables[SALES].state == "ready"
    assert pipeline.state.errors() == []


def test_a_backfilled_append_table_is_read_and_a_plain_one_is_ready_at_once(tmp_path: Path) -> None:
    source = Source([[Change(EVENTS, 0, 0, None, (i, "x"))] for i in range(8)])
    for backfill, phase in ((True, "reading"), (False, "ready")):
        pipeline = Pipeline(tmp_path / phase, source)
        with closing(pipeline.log()) as log, Capture(log, source) as capture:
            capture.epoch(4)
            add(pipeline, capture, EVENTS, **({"backfill": True} if backfill else {}))
            capture.epoch(1)
            pipeline.merger(log).round()
            assert pipeline.phases()[EVENTS] == phase
            assert pipeline.snapshot(EVENTS).rows == 1


def test_a_table_of_shards_that_is_added_again_begins_empty_again(pipeline: Pipeline, log: Log) -> None:
    def read_of(captured: TableState) -> Read:
        job = sharding.job(log.uuid, SALES.id, captured, TableName.parse(ONE))
        read = pipeline.state.ask_read(TableName.parse(ONE), SALES, ReadSpec(), "shard", job)
        pipeline.state.set_read(read.job, phase="done", epoch=capture.newest.id)
        return read

    with Capture(log, pipeline.source) as capture:
        add(pipeline, capture, SALES, **OPTIONS)
        capture.epoch(20)
        merging = pipeline.merger(log)
        merging.round()
        before = read_of(capture.states[SALES.id])
        assert pipeline.snapshot(SALES).rows > 0
        add(pipeline, capture, SALES, **OPTIONS)
        now = read_of(capture.states[SALES.id])
        merging.round()
        assert pipeline.snapshot(SALES).rows == 0
        assert pipeline.phases()[SALES] == "reading"
        found = {read.job: (read.run, read.phase) for read in pipeline.state.reads()}
        assert found == {before.job: (0, "done"), now.job: (1, "waiting")}
        version = pipeline.snapshot(SALES).version
        pipeline.state.set_table(SALES, "added")  # as if it had been killed before it could say so
        pipeline.merger(log).round()
        assert (pipeline.phases()[SALES], pipeline.snapshot(SALES).version) == ("reading", version)


def test_a_backfilled_append_table_is_never_read_twice(tmp_path: Path) -> None:
    source = Source([[Change(EVENTS, 0, 0, None, (i, "x"))] for i in range(8)])
    pipeline = Pipeline(tmp_path, source)
    with closing(pipeline.log()) as log, Capture(log, source) as capture:
        add(pipeline, capture, EVENTS, backfill=True)
        merging = pipeline.merger(log)
        merging.round()
        add(pipeline, capture, EVENTS, backfill=True)  # nothing is in it yet
        merging.round()
        assert pipeline.phases()[EVENTS] == "reading"
        capture.epoch(4)
        merging.round()
        add(pipeline, capture, EVENTS, backfill=True)
        merging.round()
        status = pipeline.state.table(EVENTS)
        assert status is not None
        assert status.phase == "stopped"
        assert "twice" in (status.error or {})["what"]
        disk(pipeline.lake(EVENTS)).rename(tmp_path / "away")
        pipeline.state.ask("resume", str(EVENTS))
        resuming.take_requests(pipeline.state, pipeline.config, log)
        merging.round()
        assert (pipeline.phases()[EVENTS], pipeline.snapshot(EVENTS).rows) == ("reading", 0)


# -- how they go on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["merge", "reread"])
def test_a_table_that_was_stopped_while_it_was_read_goes_on_being_read(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    with Capture(log, pipeline.source) as capture:
        add(pipeline, capture, SALES, **OPTIONS)
        capture.epoch(5)
        merging = pipeline.merger(log)
        merging.round()
        capture.epoch(5)
        if node == "merge":
            with monkeypatch.context() as patch:

                def upsert(*_: object) -> None:
                    raise LogDamagedError("made up")

                patch.setattr(LakeTable, "upsert", upsert)
                merging.round()
        else:
            pipeline.state.stop_table(SALES, node, LogDamagedError("made up"))
        assert pipeline.phases()[SALES] == "stopped"
        pipeline.state.ask("resume", str(SALES))
        resuming.take_requests(pipeline.state, pipeline.config, log)
        assert pipeline.phases()[SALES] == "reading"
        merging.round()
        assert equals(pipeline, SALES, 10)


def test_the_log_is_kept_for_the_windows_of_jobs_that_are_open(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source, checkpoints=1) as capture:
        add(pipeline, capture, SALES, **OPTIONS)
        merging = pipeline.merger(log)
        merging.round()
        read = reading(pipeline)
        at = capture.epoch(3)
        pipeline.state.set_read(read.job, phase="paused", epoch=at.id)
        for _ in range(5):
            capture.epoch(1)
        merging.round()
        assert merging.trim() == at.number
        pipeline.state.set_read(read.job, phase="done")
        assert merging.trim() == capture.newest.number


# -- truncations --------------------------------------------------------------------------------------------------------


def test_shards_and_truncations_in_any_cut(pipeline: Pipeline, log: Log) -> None:
    random_ = random.Random(3)
    with Capture(log, pipeline.source) as capture:
        add(pipeline, capture, SALES, **OPTIONS)
        merging = pipeline.merger(log)
        while capture.at < 60:
            capture.epoch(random_.randrange(1, min(5, 61 - capture.at)))
            if random_.random() < 0.5:
                merging.round()
                assert equals(pipeline, SALES, capture.at), capture.at
        merging.round()
    assert equals(pipeline, SALES, 60)
    totals = pipeline.snapshot(SALES).totals
    assert totals["truncated"] > 0
    assert totals["inserted"] - totals["removed"] - totals["truncated"] == pipeline.snapshot(SALES).rows
    of_changes = totals["inserted"] + totals["replaced"] + totals["removed"] + totals["absent"]
    assert totals["effective"] + totals["key_changes"] == of_changes
    assert sum(totals["logged"]) == totals["superseded"] + totals["effective"]
    truncations = [c for t in pipeline.source.transactions for c in t if c.truncated]
    assert len(truncations) > 5
    changes = sum(map(len, pipeline.source.transactions)) - len(truncations)
    assert sum(totals["logged"]) == changes


def test_a_truncation_takes_its_own_shards_rows_from_every_file(tmp_path: Path) -> None:
    transactions = [[sold(i, ONE)] for i in range(4)] + [[sold(i, TWO)] for i in range(4)]
    source = Source([*transactions, [Change(SALES, 0, 0, None, None, ONE)], [sold(2, ONE)]])
    pipeline = Pipeline(tmp_path, source)
    with closing(pipeline.log()) as log, Capture(log, source) as capture:
        add(pipeline, capture, SALES, **OPTIONS)
        merging = pipeline.merger(log)
        for _ in range(8):
            capture.epoch()
            merging.round()
        capture.epoch(2)
        merging.round()
        assert equals(pipeline, SALES, 10)
    counts = pipeline.commits(SALES)[-1]["counts"]
    assert (counts["truncated"], counts["replaced"], counts["inserted"]) == (3, 1, 0)
    assert sum(counts["logged"]) == 1


def test_an_append_table_of_shards_has_a_row_for_each_truncation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODES, SALES, "append")
    source = Source([[sold(1, ONE)], [Change(SALES, 0, 0, None, None, ONE)], [sold(2, TWO)]])
    pipeline = Pipeline(tmp_path, source)
    with closing(pipeline.log()) as log, Capture(log, source) as capture:
        add(pipeline, capture, SALES, **OPTIONS)
        assert pipeline.merger(log).round().tables[SALES].phase == "ready"
        capture.epoch(3)
        pipeline.merger(log).round()
    snapshot = pipeline.snapshot(SALES)
    rows = [row for b in pipeline.lake(SALES).scan(snapshot) for row in b.to_pylist()]
    assert sorted((r["_cdc_op"], r["_shard"], r["id"]) for r in rows) == [
        ("insert", ONE, 1),
        ("insert", TWO, 2),
        ("truncate", ONE, None),
    ]
    assert (snapshot.totals["inserted"], snapshot.totals["truncated"], snapshot.totals["logged"]) == (2, -1, [2, 0, 0])
    assert snapshot.rows == 3


def test_lakes_and_logs_without_reads_and_truncations_add_up_with_those(pipeline: Pipeline, log: Log) -> None:
    """What an older version wrote has three counts."""
    with Capture(log, pipeline.source) as capture:
        add(pipeline, capture, SALES, **OPTIONS)
        capture.epoch(4)
        merging = pipeline.merger(log)
        merging.round()
        folder = disk(pipeline.lake(SALES))
        newest = pipeline.snapshot(SALES)
        path = folder / deltalog.LOG / f"{newest.version:020}.json"
        old = path.read_text().replace('"truncated":0,', "").replace(',"truncated":0', "")
        assert "truncated" not in old
        assert '"logged":[' in old
        path.write_text(old)
        read = reading(pipeline)
        capture.windows(of_shard(pipeline, read, 1, ONE, 6), transactions=2)
        pipeline.merger(log).round()
        totals = pipeline.snapshot(SALES).totals
        assert len(newest.totals["logged"]) == 3
        assert totals["logged"] == capture.states[SALES.id].totals.to_list()
        assert len(totals["logged"]) == 4
        assert equals(pipeline, SALES, 6)
