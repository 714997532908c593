"""Adoption by position: which changes a table that someone else wrote takes from the log, over a real log and real Delta tables."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from cdc.lake import LakeTable, deltalog
from cdc.lake.adopt import Looked, look
from cdc.log import Log
from cdc.merge import adopting
from cdc.names import TableName
from cdc.schema import TableSchema
from tests.faults.rig import seed
from tests.integration.history import ITEMS, ORDERS, SCHEMAS, SERVER, Capture, Pipeline, Source
from tests.integration.lake_rows import table_of


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path, Source.made_up(random.Random(7), 40, busy=True))


@pytest.fixture
def log(pipeline: Pipeline) -> Iterator[Log]:
    with closing(pipeline.log()) as log:
        yield log


def copied(pipeline: Pipeline, table: TableName, count: int) -> None:
    """The table after so many transactions, as someone else writes it."""
    rows: pa.Table = table_of(pipeline.source.rows(table, count), SCHEMAS[table].arrow)
    write_deltalake(str(pipeline.lake(table).folder), rows)


def add(pipeline: Pipeline, capture: Capture, table: TableName, position: str) -> None:
    """Capture the table from here on, which is to be adopted as of the position."""
    record = capture.add(table, options={"from_position": position})
    pipeline.state.set_table(table, "added", added=record.id)


def kinds(pipeline: Pipeline, table: TableName) -> list[str]:
    return [commit.info["kind"] for commit in deltalog.commits(pipeline.lake(table).folder)]


@pytest.mark.parametrize("number", range(25))
def test_a_copy_ahead_of_the_stream_takes_what_it_lacks_and_nothing_twice(tmp_path: Path, number: int) -> None:
    chosen = random.Random(seed() + number)
    source = Source.made_up(chosen, 40, busy=True)
    pipeline = Pipeline(tmp_path, source)
    start = chosen.randrange(0, 20)
    position = chosen.randrange(max(1, start), 35)
    copied(pipeline, ORDERS, position)
    with closing(pipeline.log()) as log, Capture(log, source) as capture:
        capture.add(ITEMS)
        capture.epochs(chosen, until=start)
        add(pipeline, capture, ORDERS, f"{SERVER}:1-{position}")
        merging = pipeline.merger(log)
        while capture.at < 40:
            assert adopting.waits(log, pipeline.lake(ORDERS), capture.states[ORDERS.id]) == (
                "adopt" not in kinds(pipeline, ORDERS) or kinds(pipeline, ORDERS)[-1] == "adopt"
            )
            capture.epochs(chosen, most=6, until=min(40, capture.at + chosen.randrange(1, 8)))
            merging.round()
            if capture.at < position:
                assert pipeline.phases()[ORDERS] == "added"
                assert kinds(pipeline, ORDERS) == []
            else:
                assert pipeline.phases()[ORDERS] == "ready"
                pipeline.check(ORDERS, capture.at)
            if chosen.random() < 0.3:
                merging = pipeline.merger(log)
        assert kinds(pipeline, ORDERS).count("adopt") == 1
        # All that the log counts is the table's, once: before the position, or merged.
        totals = pipeline.snapshot(ORDERS).totals
        assert sum(totals["logged"]) - totals["duplicate"] == sum(capture.states[ORDERS.id].totals)
    assert pipeline.state.errors() == []


def test_a_copy_behind_the_stream_is_followed_from_there_and_to_be_read(pipeline: Pipeline, log: Log) -> None:
    copied(pipeline, ORDERS, 5)
    with Capture(log, pipeline.source) as capture:
        capture.add(ITEMS)
        capture.epoch(10)
        add(pipeline, capture, ORDERS, f"{SERVER}:1-5")
        capture.epoch(3)
        pipeline.merger(log).round()
    assert pipeline.phases()[ORDERS] == "reading"
    assert pipeline.applied(ORDERS).position.gtids == capture.newest.end.gtids
    assert kinds(pipeline, ORDERS) == ["adopt", "merge"]


def test_a_position_that_is_none_of_the_streams(pipeline: Pipeline, log: Log) -> None:
    copied(pipeline, ORDERS, 5)
    with Capture(log, pipeline.source) as capture:
        capture.add(ITEMS)
        capture.epoch(10)
        add(pipeline, capture, ORDERS, f"{SERVER}:1-5:20")
        capture.epoch(3)
        pipeline.merger(log).round()
    status = pipeline.state.tables()[ORDERS]
    assert status.phase == "stopped"
    assert status.error is not None
    assert f"does not have ({SERVER}:20), and lacks others ({SERVER}:6-10)" in status.error["what"]
    assert kinds(pipeline, ORDERS) == []


def test_an_adoption_whose_state_was_not_written_is_found(pipeline: Pipeline, log: Log) -> None:
    copied(pipeline, ORDERS, 8)
    with Capture(log, pipeline.source) as capture:
        capture.add(ITEMS)
        capture.epoch(3)
        add(pipeline, capture, ORDERS, f"{SERVER}:1-8")
        capture.epoch(5)
        capture.epoch(1)
        captured = capture.states[ORDERS.id]
        made = adopting.begin(log, pipeline.lake(ORDERS), ORDERS, captured)
        assert made is not None
        assert adopting.waits(log, pipeline.lake(ORDERS), captured)
        assert adopting.begin(log, pipeline.lake(ORDERS), ORDERS, captured) == made
        pipeline.merger(log).round()
    assert pipeline.phases()[ORDERS] == "ready"
    assert kinds(pipeline, ORDERS).count("adopt") == 1
    pipeline.check(ORDERS, 9)


def test_added_again_it_is_bootstrapped_as_any_other(pipeline: Pipeline, log: Log) -> None:
    copied(pipeline, ORDERS, 1)
    with Capture(log, pipeline.source) as capture:
        capture.add(ITEMS)
        capture.epoch(1)
        add(pipeline, capture, ORDERS, f"{SERVER}:1")
        capture.epoch(3)
        merging = pipeline.merger(log)
        merging.round()
        assert pipeline.phases()[ORDERS] == "ready"
        add(pipeline, capture, ORDERS, f"{SERVER}:1")
        capture.epoch(3)
        assert not adopting.waits(log, pipeline.lake(ORDERS), capture.states[ORDERS.id])
        merging.round()
        assert pipeline.phases()[ORDERS] == "added"
        pipeline.bootstrap(capture, ORDERS)
        capture.epoch(2)
        merging.round()
        pipeline.check(ORDERS, capture.at)


def test_the_log_is_kept_for_a_table_that_is_to_be_adopted(pipeline: Pipeline, log: Log) -> None:
    copied(pipeline, ORDERS, 30)
    with Capture(log, pipeline.source) as capture:
        capture.add(ITEMS)
        pipeline.bootstrap(capture, ITEMS)
        capture.epochs(random.Random(1), until=5)
        add(pipeline, capture, ORDERS, f"{SERVER}:1-30")
        since = capture.states[ORDERS.id].since
        merging = pipeline.merger(log)
        for until in (20, 30, 40):
            capture.epochs(random.Random(2), until=until)
            merging.round()
            merging.trim()
            oldest = log.oldest()
            assert oldest is not None
            assert (oldest.number <= since) == (until < 30)
    pipeline.check(ORDERS, 40)


def test_a_look_that_takes_long_holds_no_other_table_up(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = threading.Event()

    def looks(lake: LakeTable, schema: TableSchema) -> Looked:
        assert slow.wait(30)
        return look(lake, schema)

    monkeypatch.setattr(adopting, "look", looks)
    monkeypatch.setattr(adopting, "AT_ONCE_S", 0.1)
    copied(pipeline, ORDERS, 3)
    with Capture(log, pipeline.source) as capture:
        capture.add(ITEMS)
        pipeline.bootstrap(capture, ITEMS)
        capture.epoch(3)
        add(pipeline, capture, ORDERS, f"{SERVER}:1-3")
        merging = pipeline.merger(log)
        for at in (4, 5):
            capture.epoch(1)
            merging.round()
            assert pipeline.phases()[ORDERS] == "added"
            pipeline.check(ITEMS, at)
        slow.set()
        capture.epoch(1)
        merging.round()
        assert pipeline.phases()[ORDERS] == "ready"
        pipeline.check(ORDERS, 6)
        pipeline.check(ITEMS, 6)
