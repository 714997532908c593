"""Rows of windowed reads on their way into the lake: in the stream's order, and where the log's chain and the lake disagree (I5)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdc.epoch import WindowId
from cdc.errors import LogDamagedError
from cdc.lake import manifest
from cdc.log import Log
from cdc.merge import resuming
from cdc.names import TableName
from cdc.reads import Read, ReadSpec
from tests.integration.history import (
    EVENTS,
    ITEMS,
    ORDERS,
    SCHEMAS,
    Capture,
    Change,
    Pipeline,
    Source,
    Windowed,
    copy_log,
    key,
    restore_log,
)
from tests.integration.test_merge_exactly_once import arm, merging_process


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """Fifty transactions, of which nothing is logged yet."""
    return Pipeline(tmp_path, Source.made_up(random.Random(7), 50, busy=True))


@pytest.fixture
def log(pipeline: Pipeline) -> Iterator[Log]:
    with closing(pipeline.log()) as log:
        yield log


def asked(pipeline: Pipeline, table: TableName = ORDERS) -> Read:
    """A job that reads the table again."""
    return pipeline.state.ask_read(table, table, ReadSpec(), "asked")


def whole(pipeline: Pipeline, read: Read, count: int, number: int = 1) -> Windowed:
    """The table as it is after so many transactions, in one window; keys that it once had are not found."""
    rows = pipeline.source.rows(read.table, count)
    there = {key(read.table, row) for row in rows}
    ever = {
        key(read.table, row)
        for transaction in pipeline.source.transactions
        for change in transaction
        if change.table == read.table
        for row in (change.old, change.new)
        if row is not None
    }
    gone = sorted(ever - there) if SCHEMAS[read.table].key else ()
    return Windowed(WindowId(read.job, number), read.table, rows, gone)


def run_of(pipeline: Pipeline, read: Read) -> int:
    """How often the job was begun anew."""
    return next(r.run for r in pipeline.state.reads() if r.job == read.job)


# -- in the stream's order --------------------------------------------------------------------------------------------


def test_a_window_over_the_whole_table_makes_a_lake_equal_that_was_not(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        capture.epoch(20)
        other = Source.made_up(random.Random(8), 20, busy=True)
        true, pipeline.source = pipeline.source, other  # what the lake has is another table's rows
        pipeline.start(capture)
        pipeline.source = true
        merging = pipeline.merger(log)
        merging.round()
        assert other.rows(ORDERS, 20) != true.rows(ORDERS, 20)
        read = asked(pipeline)
        capture.windows(whole(pipeline, read, 22), transactions=2)
        capture.epochs(random.Random(1), until=40)
        merging.round()
        snapshot = pipeline.check(ORDERS, 40)
    counts = pipeline.commits(ORDERS)[-1]["counts"]
    assert counts["logged"][3] == len(true.rows(ORDERS, 22))
    assert sum(counts["logged"]) == counts["superseded"] + counts["effective"]
    assert snapshot.totals["logged"] == capture.states[ORDERS.id].totals.to_list()
    assert run_of(pipeline, read) == 0


def test_windows_and_stream_in_any_cut(pipeline: Pipeline, log: Log) -> None:
    random_ = random.Random(11)
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        read, number = asked(pipeline), 0
        while capture.at < 50:
            count = random_.randrange(min(4, 51 - capture.at))
            if random_.random() < 0.5:
                number += 1
                capture.windows(whole(pipeline, read, capture.at + count, number), transactions=count)
            elif count:
                capture.epoch(count)
            if random_.random() < 0.4:
                merging.round()
                pipeline.check_all(capture.at)
        merging.round()
    pipeline.check_all()
    assert number > 5
    assert run_of(pipeline, read) == 0


def test_records_that_are_read_for_another_table_are_no_new_windows(pipeline: Pipeline, log: Log) -> None:
    """A table that was held back reads on from where it is; the others see records again that they have."""
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        merging.round()
        pipeline.state.stop_table(ITEMS, "merge", LogDamagedError("made up", where=str(ITEMS)))
        merging.round()
        orders, events = asked(pipeline), asked(pipeline, EVENTS)
        capture.windows(whole(pipeline, orders, 5), whole(pipeline, events, 5), transactions=5)
        capture.epoch(5)
        merging.round()
        pipeline.state.ask("resume", str(ITEMS))
        resuming.take_requests(pipeline.state, pipeline.config, log)
        capture.epochs(random.Random(4))
        pipeline.merger(log).round()
    pipeline.check(ORDERS, 50)
    pipeline.check(ITEMS, 50)
    assert pipeline.snapshot(EVENTS).rows == sum(len(pipeline.source.rows(EVENTS, n)) for n in (5, 50))
    assert (run_of(pipeline, orders), run_of(pipeline, events)) == (0, 0)


# -- where the log lost records -----------------------------------------------------------------------------------------


def behind(pipeline: Pipeline, windows_at: int, *, table: TableName = ORDERS, lake_at: int = 20) -> Read:
    """The lake has 20 transactions, the log lost all after 5 of them, and goes on with a window after `windows_at` of them."""
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(5)
            copy = copy_log(pipeline.folder)
            capture.epoch(lake_at - 5)
            pipeline.merger(log).round()
        restore_log(pipeline.folder, copy)
        read = asked(pipeline, table)
        with Capture(log, pipeline.source) as capture:
            capture.windows(whole(pipeline, read, windows_at), transactions=windows_at - 5)
            merging = pipeline.merger(log)
            merging.round()
            if table == ORDERS:
                pipeline.check(ORDERS, max(lake_at, windows_at))
            capture.epochs(random.Random(1))
            merging.round()
            capture_at = capture.at
        assert capture_at == 50
        if table == ORDERS:
            pipeline.check_all()
        assert pipeline.state.errors() == []
    return read


def test_a_window_that_the_lake_is_ahead_of_is_dropped_and_read_again(pipeline: Pipeline) -> None:
    read = behind(pipeline, 12)
    assert run_of(pipeline, read) == 1


def test_the_mistake_of_applying_windowed_rows_wherever_they_stand_is_noticed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm(monkeypatch, "mutant:window_rows_always")
    with pytest.raises(AssertionError, match="is not the source"):
        behind(pipeline, 12)


def test_a_window_behind_what_the_lake_has_is_applied_with_the_rest_of_its_record(pipeline: Pipeline) -> None:
    read = behind(pipeline, 26)
    assert run_of(pipeline, read) == 0


def test_a_window_where_the_lake_is_exactly_is_applied(pipeline: Pipeline) -> None:
    """Else one would never get there while the source rests."""
    read = behind(pipeline, 20)
    assert run_of(pipeline, read) == 0
    logged = [commit["counts"]["logged"] for commit in pipeline.commits(ORDERS)]
    assert [c[3] for c in logged if len(c) > 3] == [len(pipeline.source.rows(ORDERS, 20))]


def test_a_lake_ahead_of_the_log_is_consistent_again_though_the_source_rests(pipeline: Pipeline) -> None:
    """Its windows that were passed over are told then, once; and the next one is applied."""
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(5)
            copy = copy_log(pipeline.folder)
            capture.epoch(15)
            pipeline.merger(log).round()
        restore_log(pipeline.folder, copy)
        read = asked(pipeline)
        with Capture(log, pipeline.source) as capture:
            capture.windows(whole(pipeline, read, 12), transactions=7)
            merging = pipeline.merger(log)
            merging.round()
            assert run_of(pipeline, read) == 0  # the log may go on to what the lake has
            capture.epoch(8)
            merging.round()
            assert run_of(pipeline, read) == 1
            found = manifest.read(pipeline.config.lake_root, pipeline.config.name)
            assert found is not None
            assert found.tables[ORDERS].applied is None
            merging.round()
            pipeline.merger(log).round()
            assert run_of(pipeline, read) == 1
            capture.windows(whole(pipeline, read, 20))
            pipeline.merger(log).round()
            pipeline.check(ORDERS, 20)
            assert pipeline.commits(ORDERS)[-1]["counts"]["logged"][3] == len(pipeline.source.rows(ORDERS, 20))


def test_a_window_from_before_the_loss_is_not_read_again(pipeline: Pipeline) -> None:
    with closing(pipeline.log()) as log:
        read, lost = asked(pipeline), asked(pipeline)
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.windows(whole(pipeline, read, 5), transactions=5)
            pipeline.merger(log).round()
            copy = copy_log(pipeline.folder)
            capture.epoch(15)
            pipeline.merger(log).round()
        restore_log(pipeline.folder, copy)
        with Capture(log, pipeline.source) as capture:
            capture.windows(whole(pipeline, lost, 9), transactions=4)
            capture.epochs(random.Random(1))
        pipeline.merger(log).round()
    pipeline.check_all()
    assert (run_of(pipeline, read), run_of(pipeline, lost)) == (0, 1)


def test_a_dropped_window_is_told_before_the_commit_that_passes_over_it(pipeline: Pipeline) -> None:
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(5)
            copy = copy_log(pipeline.folder)
            capture.epoch(15)
            pipeline.merger(log).round()
        restore_log(pipeline.folder, copy)
        read = asked(pipeline)
        with Capture(log, pipeline.source) as capture:
            capture.windows(whole(pipeline, read, 12), transactions=7)
            capture.epoch(13)
            process = merging_process(pipeline, 1, "kill:lake.after-commit")
            process.communicate(timeout=60)
            assert process.returncode == -9
            for _ in range(3):  # whichever table was first
                pipeline.merger(log).round()
        assert run_of(pipeline, read) >= 1
        pipeline.check_all(25)


@pytest.mark.parametrize("windows_at", [12, 20, 26])
def test_an_append_table_has_every_window_once_whatever_the_log_lost(pipeline: Pipeline, windows_at: int) -> None:
    read = behind(pipeline, windows_at, table=EVENTS)
    snapshot = pipeline.snapshot(EVENTS)
    found = [row for batch in pipeline.lake(EVENTS).scan(snapshot) for row in batch.to_pylist()]
    gids = [row["_cdc_gid"] for row in found]
    assert len(set(gids)) == len(gids)
    read_again = [(row["id"], row["what"]) for row in found if row["_cdc_op"] == "read"]
    assert sorted(read_again, key=repr) == pipeline.source.rows(EVENTS, windows_at)
    inserted = [(row["id"], row["what"]) for row in found if row["_cdc_op"] == "insert"]
    assert sorted(inserted, key=repr) == pipeline.source.rows(EVENTS, 50)
    assert run_of(pipeline, read) == 0


def test_an_append_table_that_has_the_window_does_not_get_it_again(tmp_path: Path) -> None:
    """The log keeps the window and loses the epoch after it, which the lake has."""
    pipeline = Pipeline(tmp_path, Source([[Change(EVENTS, 0, 0, None, (i, "x"))] for i in range(9)]))
    with closing(pipeline.log()) as log:
        read = asked(pipeline, EVENTS)
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.windows(whole(pipeline, read, 3), transactions=3)
            copy = copy_log(pipeline.folder)
            capture.epoch(3)
            pipeline.merger(log).round()
        restore_log(pipeline.folder, copy)
        with Capture(log, pipeline.source) as capture:
            for _ in range(6):
                capture.epoch()
            pipeline.merger(log).round()
    assert pipeline.snapshot(EVENTS).rows == 9 + 3
