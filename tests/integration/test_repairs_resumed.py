"""Keys that could not be read again stopped their table: what becomes of them once it is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdc.errors import LakeDamagedError, TableStoppedError
from cdc.log import Log, captured
from cdc.names import TableName
from cdc.reads import Read, ReadSpec
from cdc.window import Windows
from snapshot.reread import _Node
from snapshot.throttle import Throttle
from tests.integration.history import EVENTS, Capture, Change, Pipeline, Source

ERROR = {"code": "TABLE_STOPPED", "what": "windows are cancelled again and again"}


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path, Source([[Change(EVENTS, 0, 0, None, (i, "x"))] for i in range(8)]))


@pytest.fixture
def log(pipeline: Pipeline) -> Iterator[Log]:
    with closing(pipeline.log()) as log:
        yield log


def resumed(pipeline: Pipeline, log: Log, options: dict[str, object]) -> None:
    """A table that was read, and whose phase is `reading` since it was resumed."""
    with Capture(log, pipeline.source) as capture:
        capture.epoch(4)
        record = capture.add(EVENTS, options=options or None)
        pipeline.state.set_table(EVENTS, "added", added=record.id)
        capture.epoch(1)
        pipeline.merger(log).round()
    pipeline.state.set_table(EVENTS, "reading")


def tend(pipeline: Pipeline, log: Log) -> None:
    throttle = Throttle(pipeline.config)
    try:
        node = _Node(pipeline.config, log, pipeline.state, Windows(), throttle)
        node._known = captured.read(log)
        node._tend(pipeline.state.tables()[EVENTS])
    finally:
        throttle.close()


def failed(pipeline: Pipeline, table: TableName = EVENTS) -> Read:
    read = pipeline.state.ask_read(table, table, ReadSpec(keys=((1,),)), "repair")
    pipeline.state.set_read(read.job, phase="failed", error=ERROR)
    return read


def test_they_are_read_before_the_table_is_ready(pipeline: Pipeline, log: Log) -> None:
    resumed(pipeline, log, {"backfill": True})
    before = failed(pipeline)
    tend(pipeline, log)
    whole = next(read for read in pipeline.state.reads() if read.why == "backfill")
    assert whole.phase == "waiting"
    assert pipeline.state.read(before.job) is None, "all is read again"
    pipeline.state.set_read(whole.job, phase="done")
    read = failed(pipeline)
    tend(pipeline, log)
    found = pipeline.state.read(read.job)
    assert found is not None
    assert (found.phase, found.error) == ("waiting", None)
    assert pipeline.phases()[EVENTS] == "reading"
    pipeline.state.set_read(read.job, phase="done")
    tend(pipeline, log)
    assert pipeline.phases()[EVENTS] == "ready"


def test_no_rows_from_before_come_into_a_table_of_changes_by_it(pipeline: Pipeline, log: Log) -> None:
    resumed(pipeline, log, {})
    read = failed(pipeline)
    tend(pipeline, log)
    assert [(r.job, r.why, r.phase) for r in pipeline.state.reads()] == [(read.job, "repair", "waiting")]
    pipeline.state.set_read(read.job, phase="done")
    tend(pipeline, log)
    assert pipeline.phases()[EVENTS] == "ready"


def test_of_a_table_that_was_stopped_meanwhile_they_wait(pipeline: Pipeline, log: Log) -> None:
    """By the merger, say: it is resumed as it was, and its keys are wrong still."""
    resumed(pipeline, log, {})
    read = pipeline.state.ask_read(EVENTS, EVENTS, ReadSpec(keys=((1,),)), "repair")
    pipeline.state.set_read(read.job, phase="running")
    error = TableStoppedError("no window is opened for the table")
    pipeline.state.stop_table(EVENTS, "merge", LakeDamagedError("a file is gone"))
    throttle = Throttle(pipeline.config)
    try:
        _Node(pipeline.config, log, pipeline.state, Windows(), throttle)._fail(read, error)
    finally:
        throttle.close()
    assert [r.phase for r in pipeline.state.reads_of("repair")] == ["running"]
    found = pipeline.state.table(EVENTS)
    assert found is not None
    assert (found.error or {})["node"] == "merge"
