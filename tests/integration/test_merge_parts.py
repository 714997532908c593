"""Large transactions that are in the log in parts: all or nothing of them in every manifest, in several commits where they are too
much for one."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cdc.epoch import CommitRecord
from cdc.errors import LogError
from cdc.log import Log, captured
from cdc.merge import table as table_module
from tests.integration.history import (
    EVENTS,
    ORDERS,
    SCHEMAS,
    Capture,
    Pipeline,
    Source,
    copy_log,
    restore_log,
)
from tests.integration.test_merge_exactly_once import arm, merging_process

SIZE = 40
"""Row events of the third transaction."""
CUTS = (10, 20, 30)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """Six transactions, of which the third is large; nothing is logged yet."""
    source = Source.made_up(random.Random(3), 6, busy=True, events=(1, 2, SIZE - 1, 1, 2, 1), exactly=True)
    assert {change.table for change in source.transactions[2] if change.event < CUTS[0]} == set(SCHEMAS)
    return Pipeline(tmp_path, source)


@pytest.fixture
def log(pipeline: Pipeline) -> Iterator[Log]:
    with closing(pipeline.log()) as log:
        yield log


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch is a commit of its own."""
    monkeypatch.setattr(table_module, "BATCH_BYTES", 1)


def cut(capture: Capture) -> None:
    """The large transaction, in four epochs."""
    for events in CUTS:
        capture.part(events)
    capture.epoch(1)


def test_nothing_of_a_transaction_is_merged_before_its_end_is_there(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        whole = capture.epoch(2)
        merging = pipeline.merger(log)
        for events in CUTS:
            part = capture.part(events)
            result = merging.round()
            assert (result.epoch, result.newest) == (whole.id, part.id)
            assert pipeline.manifest().applied.epoch == whole.id
            pipeline.check_all(2)
        end = capture.epoch(1)
        assert merging.round().epoch == end.id
        assert pipeline.manifest().applied.position == end.end
        pipeline.check_all(3)
        capture.epochs(random.Random(1))
    merging.round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


def test_what_is_captured_is_as_of_the_newest_whole_epoch(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source, checkpoints=2) as capture:
        pipeline.start(capture)
        whole = capture.epoch(2)
        before = capture.states
        for events in CUTS:
            part = capture.part(events)
        fresh = captured.read(log)
        assert fresh is not None
        assert (fresh.record, fresh.newest) == (whole, part)
        assert (fresh.tables, fresh.newest_tables) == (before, capture.states)
        assert part.checkpoint <= whole.number, "no part is a checkpoint"
        capture.epoch(1)
        onwards = captured.read(log, fresh)
        assert onwards == captured.read(log)
        assert onwards is not None
        assert onwards.record == onwards.newest == capture.newest


def test_a_part_neither_adds_nor_restates_tables(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        with pytest.raises(LogError, match="within a transaction"):
            capture._append(2, added={}, removed={}, events=10, restated=True)


@pytest.mark.usefixtures("small_batches")
def test_a_large_transaction_is_several_commits_and_one_step_of_the_manifest(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(2)
        cut(capture)
        pipeline.merger(log).round()
    pipeline.check_all(3)
    for table in SCHEMAS:
        parts = [info["position"].get("partial") for info in pipeline.commits(table)]
        assert [part["row_events"] for part in parts if part] == [*CUTS]
        assert parts[-1] is None
    assert pipeline.manifest().applied.position.whole


@pytest.mark.parametrize("nth", [2, 3, 7, 11])
@pytest.mark.parametrize("point", ["lake.before-commit", "lake.after-commit"])
def test_a_merger_killed_between_the_parts_goes_on_exactly(pipeline: Pipeline, log: Log, point: str, nth: int) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        whole = capture.epoch(2)
        pipeline.merger(log).round()
        cut(capture)
        process = merging_process(pipeline, 1, f"kill:{point}:{nth}", batch_bytes=1)
        process.communicate(timeout=60)
        assert process.returncode == -9
        assert any(not pipeline.applied(table).position.whole for table in SCHEMAS)
        assert pipeline.manifest().applied.epoch == whole.id
        pipeline.merger(log).round()
        pipeline.check_all(3)
        capture.epochs(random.Random(5))
    pipeline.merger(log).round()
    pipeline.check_all()
    assert set(pipeline.phases().values()) == {"ready"}
    assert pipeline.state.errors() == []


def cut_otherwise(pipeline: Pipeline) -> None:
    """The log loses its tail within the transaction, under tables that have a part of it; then it is cut otherwise."""
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(2)
            capture.part(5)
            copy = copy_log(pipeline.folder)
            for events in (10, 20):
                capture.part(events)
            capture.epoch(1)
            process = merging_process(pipeline, 1, "kill:lake.after-commit:4", batch_bytes=1)
            process.communicate(timeout=60)
        assert pipeline.applied(EVENTS).position.reach == (2, 10)
        restore_log(pipeline.folder, copy)
        with Capture(log, pipeline.source) as capture:
            for events in (7, 15, 33):
                capture.part(events)
                pipeline.merger(log).round()
            capture.epoch(1)
            pipeline.merger(log).round()
            pipeline.check_all(3)
            capture.epochs(random.Random(2))
        pipeline.merger(log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


@pytest.mark.usefixtures("small_batches")
def test_a_transaction_that_is_cut_otherwise_the_second_time(pipeline: Pipeline) -> None:
    cut_otherwise(pipeline)


@pytest.mark.usefixtures("small_batches")
def test_the_mistake_of_comparing_without_parts_is_noticed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    arm(monkeypatch, "mutant:parts_ignored")
    with pytest.raises(AssertionError, match=r"is not the source|appended twice|assert"):
        cut_otherwise(pipeline)


@pytest.mark.usefixtures("small_batches")
def test_a_fresh_log_reads_the_transaction_again_from_its_beginning(pipeline: Pipeline) -> None:
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(2)
        pipeline.merger(log).round()
        cut(capture)
        process = merging_process(pipeline, 1, "kill:lake.after-commit:2", batch_bytes=1)
        process.communicate(timeout=60)
        states, number = capture.states, capture.newest.number
    assert pipeline.applied(EVENTS).position.reach == (2, 20)
    restore_log(pipeline.folder, None)
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        capture.states = states
        capture._append(0, fresh=(number + 1, 2))
        capture.part(25)
        capture.epoch(1)
        pipeline.merger(log).round()
        pipeline.check_all(3)
        capture.epochs(random.Random(2))
        pipeline.merger(log).round()
    pipeline.check_all()


@pytest.mark.usefixtures("small_batches")
def test_a_merger_that_stops_within_a_transaction_names_no_version_of_it(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.merge.merger.RECORDS", 1)
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(2)
        merging = pipeline.merger(log)
        merging.round()
        before = pipeline.manifest()
        cut(capture)
        merging._stop = stop = threading.Event()
        take = table_module.TableMerge.take

        def stopping(merge: table_module.TableMerge, records: Sequence[CommitRecord]) -> None:
            take(merge, records)
            if not merge.applied.position.whole:
                stop.set()

        with monkeypatch.context() as patch:
            patch.setattr(table_module.TableMerge, "take", stopping)
            merging.round()
        assert all(pipeline.applied(table).position.reach == (2, CUTS[0]) for table in SCHEMAS)
        assert pipeline.manifest() == before
        stop.clear()
        merging.round()
    pipeline.check_all(3)
    assert set(pipeline.phases().values()) == {"ready"}


def test_a_table_that_stops_within_a_transaction_ends_there(pipeline: Pipeline, log: Log) -> None:
    """What it has is named nowhere as what the source was; the others go on."""
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(2)
        merging = pipeline.merger(log)
        merging.round()
        capture.part(10)
        error = {"code": "TableStopped", "what": "altered", "where": "", "hint": "", "node": "capture"}
        capture._append(0, removed={ORDERS.id: error}, events=20, without=ORDERS)
        pipeline.state.set_table(ORDERS, "stopped", error=error)
        merging.round()
        pipeline.check(ORDERS, 2)
        capture.epoch(1)
        merging.round()
        named = pipeline.manifest().tables
        assert named[ORDERS].state != "ready"
        for table in set(SCHEMAS) - {ORDERS}:
            pipeline.check(table, 3)
            assert named[table].state == "ready"
        assert pipeline.manifest().applied.position.whole


def test_the_log_is_kept_from_the_newest_whole_epoch_on(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source, checkpoints=1) as capture:
        pipeline.start(capture)
        whole = capture.epoch(2)
        for events in CUTS:
            capture.part(events)
        merging = pipeline.merger(log)
        merging.round()
        assert merging.trim() == whole.number
        again = pipeline.merger(log)
        assert again.round().epoch == whole.id
        capture.epoch(1)
        again.round()
    pipeline.check_all(3)
    assert pipeline.snapshot(EVENTS).totals["duplicate"] == 0
