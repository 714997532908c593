"""The merger, over a real log and real Delta tables: rounds, readiness, tables that come and go, trimming."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from cdc.clock import SystemClock
from cdc.epoch import CommitRecord
from cdc.errors import LakeDamagedError, LakeError, LogDamagedError
from cdc.lake import LakeTable, Snapshot, manifest
from cdc.lake.parquet import new_name
from cdc.log import Log
from cdc.merge import adding
from cdc.merge import merger as merger_module
from cdc.merge import table as table_module
from cdc.merge.merger import Merger, RoundResult
from cdc.merge.table import TableMerge
from cdc.position import BinlogEnd
from tests.integration.history import (
    EVENTS,
    ITEMS,
    MODES,
    ORDERS,
    SCHEMAS,
    SERVER,
    Capture,
    Change,
    Pipeline,
    Source,
    copy_log,
    restore_log,
)
from tests.integration.lake_rows import disk

ROOT = Path(__file__).resolve().parents[2]
OTHER_SERVER = "00000000-0000-0000-0000-00000000000b"


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """Fifty transactions, of which nothing is logged yet."""
    return Pipeline(tmp_path, Source.made_up(random.Random(7), 50, busy=True))


@pytest.fixture
def log(pipeline: Pipeline) -> Iterator[Log]:
    with closing(pipeline.log()) as log:
        yield log


# -- rounds -----------------------------------------------------------------------------------------------------------


def test_every_round_leaves_the_lake_at_the_newest_epoch(pipeline: Pipeline, log: Log) -> None:
    random_ = random.Random(3)
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=20)
        merging = pipeline.merger(log)
        while capture.at < 50:
            capture.epochs(random_, until=min(50, capture.at + random_.randrange(8)))
            result = merging.round()
            assert result.epoch == capture.newest.id
            pipeline.check_all(capture.at)
            found = pipeline.manifest()
            assert found.applied.epoch == result.epoch
            assert found.applied.position == pipeline.source.position(capture.at)
            for table, named in found.tables.items():
                assert named.applied is None
                assert named.version == pipeline.snapshot(table).version
                assert named.state == pipeline.phases()[table]
            ready = "ready" if capture.at >= 20 else "catching-up"
            assert pipeline.phases() == {EVENTS: "ready", ITEMS: ready, ORDERS: ready}
    assert pipeline.state.errors() == []


def test_others_read_what_was_merged(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epochs(random.Random(1))
    pipeline.merger(log).round()
    table = DeltaTable(str(pipeline.lake(ORDERS).folder))
    rows = pa.table(table.scan(columns=["id", "note"])).to_pylist()
    assert sorted((r["id"], r["note"]) for r in rows) == sorted(pipeline.source.rows(ORDERS, 50))
    # What others ask of `txn` to find out how far the table is.
    assert table.transaction_version(f"lakesync:shop:{ORDERS.id}") == pipeline.applied(ORDERS).epoch.number


def test_counts_of_all_commits_balance(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        while capture.at < 50:
            capture.epoch(min(7, 50 - capture.at))
            merging.round()
        states = capture.states
    for table in SCHEMAS:
        snapshot = pipeline.snapshot(table)
        totals, logged = snapshot.totals, states[table.id].totals
        assert totals["logged"] == logged.to_list()
        assert sum(totals["logged"]) == totals["superseded"] + totals["duplicate"] + totals["effective"]
        effects = totals["inserted"] + totals["replaced"] + totals["removed"] + totals["absent"]
        assert totals["effective"] + totals["key_changes"] == effects
        assert totals["inserted"] - totals["removed"] == snapshot.rows
        assert totals["duplicate"] == 0
    assert pipeline.snapshot(ITEMS).totals["key_changes"] > 0


def test_an_empty_log_is_no_error(pipeline: Pipeline, log: Log) -> None:
    assert pipeline.merger(log).round() == RoundResult(None, {}, 1)


def test_a_round_is_cut_into_several_commits_where_there_is_much(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "BATCH_BYTES", 1)
    monkeypatch.setattr(merger_module, "RECORDS", 3)
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        while capture.at < 50:
            capture.epoch(5)
        result = pipeline.merger(log).round()
    assert result.tables[EVENTS].commits == 10
    pipeline.check_all()
    epochs = [c["epoch"] for c in pipeline.commits(EVENTS)]
    assert epochs == sorted(set(epochs))


# -- tables without changes -----------------------------------------------------------------------------------------


def quiet(length: int) -> Source:
    """Only `orders` changes, but for one transaction of the others at either end."""
    one = [Change(ITEMS, 0, 0, None, (1, "a", 1)), Change(EVENTS, 1, 0, None, (1, "first"))]
    last = [Change(ITEMS, 0, 0, (1, "a", 1), (1, "b", 1)), Change(EVENTS, 1, 0, None, (2, "last"))]
    middle = [[Change(ORDERS, 0, 0, None, (i, f"order {i}"))] for i in range(length)]
    return Source([one, *middle, last])


def test_an_idle_table_is_carried_and_does_not_hold_the_log(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, quiet(30))
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch()
        merging = pipeline.merger(log)
        merging.round()
        version = pipeline.check(ITEMS, 1).version
        for _ in range(30):
            capture.epoch()
            merging.round()
            merging.trim()
        assert pipeline.check(ITEMS, 31).version == version
        oldest = log.oldest()
        assert oldest is not None
        assert oldest.number > pipeline.applied(ITEMS).epoch.number + 20
        capture.epoch()
        pipeline.merger(log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


def test_a_stopped_table_keeps_its_place_and_the_log_behind_it(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, quiet(30))
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        for _ in range(10):
            capture.epoch()
            merging.round()
            merging.trim()
        at = capture.newest.number
        pipeline.state.stop_table(ITEMS, "merge", LogDamagedError("made up", where=str(ITEMS)))
        for _ in range(21):
            capture.epoch()
            merging.round()
            merging.trim()
        oldest = log.oldest()
        assert oldest is not None
        assert at - 4 <= oldest.number <= at
        capture.epoch()
        request = pipeline.state.ask("resume", str(ITEMS))
        run_until(merging, lambda: ITEMS in pipeline.phases() and pipeline.phases()[ITEMS] == "ready")
        merging.round()
        assert request not in [r.number for r in pipeline.state.open_requests()]
    pipeline.check_all()


def run_until(merging: Merger, done: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Run the node until something is so."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            merging.run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if done() or failed:
            break
        deadline.wait(0.02)
    stop.set()
    thread.join(10)
    if failed:
        raise failed[0]
    assert done(), "it did not happen in time"


def test_the_node_runs_rounds_by_itself_and_gives_signs_of_life(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=50)
        merging = pipeline.merger(log)
        capture.epoch(10)

        def follow() -> bool:
            if capture.at < 50:
                capture.epoch(1)
            return capture.at == 50 and set(pipeline.phases().values()) == {"ready"}

        run_until(merging, follow)
        beat = pipeline.state.nodes()["merge"].info
        assert beat["tables"][str(ORDERS)]["epoch"] <= capture.newest.number
        assert set(beat["tables"][str(ORDERS)]) == {"phase", "version", "rows", "epoch", "lag_ms"}
    merging.round()
    pipeline.check_all()


# -- ready ----------------------------------------------------------------------------------------------------------


def test_ready_is_passing_the_mark_on_the_same_server(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        merging = pipeline.merger(log)
        capture.epoch(11)
        merging.round()
        assert pipeline.phases()[ORDERS] == "catching-up"
        capture.epoch(1)
        merging.round()
        assert pipeline.phases()[ORDERS] == "ready"


def test_a_mark_that_was_passed_before_capture_moved_counts(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        capture.epoch(12)
        capture.server = OTHER_SERVER
        capture.epoch(3)
        pipeline.merger(log).round()
    assert pipeline.phases()[ORDERS] == "ready"


def test_a_table_bootstrapped_again_during_the_round_is_not_ready_by_its_old_mark(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = TableMerge.take

    def slow(self: TableMerge, records: Sequence[CommitRecord]) -> None:
        take(self, records)
        if self.table == ORDERS:
            pipeline.state.set_table(ORDERS, "added", added=capture.newest.id)
            pipeline.bootstrap(capture, ORDERS, mark=40)

    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        capture.epoch(12)
        monkeypatch.setattr(TableMerge, "take", slow)
        merging = pipeline.merger(log)
        merging.round()
        status = pipeline.state.table(ORDERS)
        assert status is not None
        assert (status.phase, status.mark) == ("catching-up", Source.end(40))
        assert pipeline.phases()[ITEMS] == "ready"
        monkeypatch.undo()
        capture.epoch(28)
        merging.round()
        assert pipeline.phases()[ORDERS] == "ready"
        pipeline.check_all(40)


def test_another_server_before_the_mark_means_a_new_bootstrap(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        capture.epoch(11)
        capture.server = OTHER_SERVER
        capture.epoch(30)
        pipeline.merger(log).round()
    status = pipeline.state.table(ORDERS)
    assert status is not None
    assert (status.phase, status.e0, status.mark) == ("added", None, None)


def test_a_binary_log_of_another_name_means_a_new_bootstrap(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        pipeline.state.set_table(ORDERS, "catching-up", mark=BinlogEnd("other.000001", 4))
        capture.epoch(11)
        pipeline.merger(log).round()
    assert pipeline.phases()[ORDERS] == "added"


# -- added, removed, added again ------------------------------------------------------------------------------------


def test_an_append_table_begins_where_the_log_adds_it(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, quiet(4))
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        capture.epoch(1)  # has a change of the table, which is not captured yet
        added = capture.add(EVENTS)
        pipeline.state.set_table(EVENTS, "added", added=added.id)
        pipeline.merger(log).round()
        assert pipeline.phases() == {EVENTS: "ready"}
        assert pipeline.applied(EVENTS).epoch == added.id
        capture.epoch(5)
        pipeline.merger(log).round()
        rows = pa.Table.from_batches(list(pipeline.lake(EVENTS).scan(pipeline.snapshot(EVENTS)))).to_pylist()
        assert [(r["id"], r["_cdc_op"], r["_cdc_gid"]) for r in rows] == [(2, "insert", f"{SERVER}:6/1.0")]


def test_an_upsert_table_waits_for_its_bootstrap(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        capture.add(*SCHEMAS)
        pipeline.state.set_table(ORDERS, "added")
        pipeline.state.set_table(ITEMS, "snapshot")
        capture.epoch(10)
        result = pipeline.merger(log).round()
    assert result.tables == {}
    assert not Path(pipeline.config.lake).joinpath("shop").exists()


def test_a_removed_table_is_applied_up_to_its_end(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        capture.epoch(10)
        removed = capture.remove(ORDERS, EVENTS)
        pipeline.state.set_table(ORDERS, "removed")
        error = LogDamagedError("made up").to_dict() | {"node": "capture"}
        pipeline.state.set_table(EVENTS, "stopped", error=error)
        capture.epoch(10)
        merging.round()
        pipeline.check(ORDERS, 20)
        pipeline.check(EVENTS, 20)
        pipeline.check(ITEMS, 30)
        for anew in (merging, pipeline.merger(log)):
            assert set(anew.round().tables) == {ITEMS}
        found = pipeline.manifest()
        assert found.tables[ORDERS].state == "removed"
        kept = found.tables[ORDERS].applied
        assert kept is not None
        assert kept.epoch == removed.id
        assert pipeline.phases() == {ORDERS: "removed", EVENTS: "stopped", ITEMS: "ready"}


def test_a_table_that_is_added_again_waits_and_its_bootstrap_takes_over(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        again = capture.add(ORDERS)
        capture.epoch(10)
        result = merging.round()  # the state does not say so yet
        assert result.tables[ORDERS].held
        pipeline.check(ORDERS, 10)
        pipeline.check(ITEMS, 20)
        pipeline.state.set_table(ORDERS, "added", added=again.id)
        capture.epoch(5)
        assert ORDERS not in merging.round().tables
        pipeline.bootstrap(capture, ORDERS, mark=30)
        capture.epoch(5)
        merging.round()
        pipeline.check_all(30)
        assert pipeline.phases()[ORDERS] == "ready"


def test_an_append_table_with_a_hole_is_not_gone_on_with(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        capture.remove(EVENTS)
        pipeline.state.set_table(EVENTS, "removed")
        merging.round()
        capture.epoch(10)
        again = capture.add(EVENTS)
        pipeline.state.set_table(EVENTS, "added", added=again.id)
        capture.epoch(5)
        merging.round()
        status = pipeline.state.table(EVENTS)
        assert status is not None
        assert status.phase == "stopped"
        assert status.error is not None
        assert "were not captured" in status.error["what"]
        pipeline.check(EVENTS, 10)
        pipeline.state.ask("resume", str(EVENTS))  # which does not mend it
        run_until(merging, lambda: not pipeline.state.open_requests())
        merging.round()
        assert pipeline.phases()[EVENTS] == "stopped"
        pipeline.check(EVENTS, 10)
        disk(pipeline.lake(EVENTS)).rename(pipeline.folder / "old")
        pipeline.state.ask("resume", str(EVENTS))
        run_until(merging, lambda: pipeline.phases()[EVENTS] == "ready")
        merging.round()
        assert pipeline.snapshot(EVENTS).rows == len(pipeline.source.rows(EVENTS, 25)) - len(
            pipeline.source.rows(EVENTS, 20)
        )


def test_an_append_table_that_stopped_is_not_gone_on_with_though_nothing_else_happened(
    pipeline: Pipeline, log: Log
) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        # As capture stops a table: the transaction that stopped it is before the position, and its rows are in no epoch.
        error = LogDamagedError("made up").to_dict() | {"node": "capture"}
        pipeline.state.set_table(EVENTS, "stopped", error=error)
        capture.stop(EVENTS, error)
        merging.round()
        again = capture.add(EVENTS)
        pipeline.state.set_table(EVENTS, "added", added=again.id, error=None)
        merging.round()
        status = pipeline.state.table(EVENTS)
        assert status is not None
        assert status.phase == "stopped"
        assert status.error is not None
        assert "were not captured" in status.error["what"]


def test_an_append_table_that_the_log_forgot_is_not_carried_over_what_was_not_captured(pipeline: Pipeline) -> None:
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            capture.add(ORDERS, ITEMS)
            before = copy_log(pipeline.folder)
            added = capture.add(EVENTS)
            pipeline.state.set_table(EVENTS, "added", added=added.id)
            capture.epoch(10)
            pipeline.merger(log).round()
            pipeline.check(EVENTS, 10)
        restore_log(pipeline.folder, before)
        with Capture(log, pipeline.source) as capture:
            capture.epoch(15)
            merging = pipeline.merger(log)
            merging.round()  # capture did not come to add it again yet
            again = capture.add(EVENTS)
            pipeline.state.set_table(EVENTS, "added", added=again.id)
            capture.epoch(5)
            merging.round()
        assert pipeline.phases()[EVENTS] == "stopped"
        pipeline.check(EVENTS, 10)


def test_an_append_table_that_was_added_twice_goes_on(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        # Two resyncs, the first of which the merger never began: the entry was wrong, or it did not run.
        capture.add(EVENTS)
        again = capture.add(EVENTS)
        pipeline.state.set_table(EVENTS, "added", added=again.id)
        merging.round()
        capture.epoch(5)
        assert not merging.round().tables[EVENTS].held
        pipeline.check(EVENTS, 15)
        totals, rows = pipeline.snapshot(EVENTS).totals, pipeline.source.rows(EVENTS, 15)
        before = len(pipeline.source.rows(EVENTS, 10))
        assert sum(totals["logged"]) == len(rows) - before, (
            "the log counts anew where it adds a table; the ledger compares"
        )
        third = capture.add(EVENTS)
        capture.epoch(5)
        assert merging.round().tables[EVENTS].held, "the state does not say so yet"
        pipeline.check(EVENTS, 15)
        pipeline.state.set_table(EVENTS, "added", added=third.id)
        merging.round()
        pipeline.check(EVENTS, 20)


def test_an_append_table_that_was_removed_goes_on_if_nothing_else_happened(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        capture.remove(EVENTS)
        pipeline.state.set_table(EVENTS, "removed")
        merging.round()
        again = capture.add(EVENTS)
        pipeline.state.set_table(EVENTS, "added", added=again.id)
        capture.epoch(5)
        merging.round()
        assert pipeline.phases()[EVENTS] == "ready"
        pipeline.check(EVENTS, 15)


def test_an_upserted_table_does_not_go_on_as_an_append_table(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        monkeypatch.setitem(MODES, ORDERS, "append")
        again = capture.add(ORDERS)
        pipeline.state.set_table(ORDERS, "added", added=again.id)
        merging.round()
        status = pipeline.state.table(ORDERS)
        assert status is not None
        assert status.error is not None
        assert "with mode upsert" in status.error["what"]
        assert "move that folder away" in status.error["hint"]


# -- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "outcome"),
    [
        ("merge", "resumed: shop.orders is ready"),
        ("capture", "only `lakesync resync"),
        ("snapshot", "only `lakesync resync"),
    ],
)
def test_resume_goes_on_with_what_the_merger_stopped(pipeline: Pipeline, log: Log, node: str, outcome: str) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        capture.epoch(10)
        merging.round()
        pipeline.state.stop_table(ORDERS, node, LogDamagedError("made up"))
        capture.epoch(10)
        merging.round()
        pipeline.check(ORDERS, 10)
        pipeline.state.ask("resume", str(ORDERS))
        run_until(merging, lambda: not pipeline.state.open_requests("resume"))
    said = outcomes(pipeline)[-1]
    assert outcome in said
    assert (pipeline.phases()[ORDERS] == "ready") == (node == "merge")
    merging.round()
    pipeline.check(ORDERS, 20 if node == "merge" else 10)


def outcomes(pipeline: Pipeline) -> list[str]:
    import sqlite3

    with closing(sqlite3.connect(pipeline.config.state / "state.db")) as sql:
        return [row[0] for row in sql.execute("SELECT outcome FROM requests ORDER BY number")]


@pytest.mark.parametrize(
    ("argument", "said"), [("shop.none", "not a table"), ("shop.orders", "is not stopped"), ("x", "not a table name")]
)
def test_resume_of_what_is_not_stopped_says_so(pipeline: Pipeline, log: Log, argument: str, said: str) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
    pipeline.state.ask("resume", argument)
    run_until(pipeline.merger(log), lambda: not pipeline.state.open_requests("resume"))
    assert said in outcomes(pipeline)[-1]


# -- trimming -----------------------------------------------------------------------------------------------------------


def test_the_log_is_kept_for_whatever_needs_it(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source, checkpoints=1) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        for _ in range(10):
            capture.epoch()
        merging.round()
        behind = capture.newest
        pipeline.state.set_table(ITEMS, "snapshot", e0=behind.id)
        for _ in range(10):
            capture.epoch()
        merging.round()
        assert merging.trim() == behind.number
        pipeline.bootstrap(capture, ITEMS)
        for _ in range(2):
            merging.round()
        assert merging.trim() == capture.newest.number
        assert merging.trim() is None


def test_the_log_is_kept_for_a_table_that_its_first_merge_stopped(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert = LakeTable.upsert

    def full(self: LakeTable, *arguments: Any) -> Snapshot:
        if self.table == ITEMS:
            raise LakeError("No space left on device", hint="make room, then resume the table")
        return upsert(self, *arguments)

    with Capture(log, pipeline.source, checkpoints=1) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
        monkeypatch.setattr(LakeTable, "upsert", full)
        for _ in range(2):
            for _ in range(10):
                capture.epoch()
            merging.round()
        assert pipeline.phases()[ITEMS] == "stopped"
        assert merging.trim() is None
        monkeypatch.undo()
        pipeline.state.ask("resume", str(ITEMS))
        run_until(merging, lambda: pipeline.phases()[ITEMS] == "ready")
        pipeline.check_all(20)
        merging.round()
        assert merging.trim() == capture.newest.number


def test_the_log_is_kept_as_long_as_configured(pipeline: Pipeline, log: Log) -> None:
    long = pipeline.config.model_copy(update={"merge": pipeline.config.merge.model_copy(update={"keep": 3600.0})})
    with Capture(log, pipeline.source, checkpoints=1) as capture:
        pipeline.start(capture)
        for _ in range(10):
            capture.epoch()
        merging = Merger(long, log, pipeline.state, SystemClock())
        merging.round()
        assert merging.trim() is None


def test_the_trace_holds_the_log_back_within_a_cap(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdc.config import TraceConfig
    from cdc.merge import trim

    traced = pipeline.config.model_copy(update={"trace": TraceConfig(url="chdb:///nowhere")})
    with Capture(log, pipeline.source, checkpoints=1) as capture:
        pipeline.start(capture)
        for _ in range(20):
            capture.epoch()
        merging = Merger(traced, log, pipeline.state, SystemClock())
        merging.round()
        assert merging.trim() is None
        (traced.state / "trace.json").write_text('{"log": "x", "epoch": 7, "hash": "y", "versions": {}}')
        assert merging.trim() == 7
        monkeypatch.setattr(trim, "TRACE_EPOCHS", 5)
        assert merging.trim() == capture.newest.number - 5


# -- keeping house ------------------------------------------------------------------------------------------------------


def test_replaced_files_and_what_kills_left_go_after_a_while(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.lake.compaction.TIER", 2)
    folder = disk(pipeline.lake(ORDERS))
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(5):
            capture.epoch(3)
            pipeline.merger(log).round()
        soon = pipeline.config.model_copy(
            update={"merge": pipeline.config.merge.model_copy(update={"keep_files": 0.0})}
        )
        merging = Merger(soon, log, pipeline.state, SystemClock())
        merging.round()
        old, young = folder / new_name(), folder / new_name()
        for path in (old, young):
            path.write_bytes(b"")
        os.utime(old, (0, 0))
        version = merging._snapshots[ORDERS][1].version
        merging.tidy()
        assert not old.exists()
        assert young.exists()
        assert not merging._snapshots[ORDERS][1].tombstones
        for _ in range(8):
            capture.epoch(3)
            merging.round()
            merging.tidy()
        snapshot = merging._snapshots[ORDERS][1]
        assert snapshot.version > version + 8, "nothing was compacted"
        assert len(snapshot.files) < 9
        capture.epoch(11)
        merging.round()
        merging.close()
    pipeline.check_all()


def test_a_manifest_names_versions_that_can_be_read_also_where_nothing_comes_any_more(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.lake.compaction.TIER", 2)
    soon = pipeline.config.model_copy(update={"merge": pipeline.config.merge.model_copy(update={"keep_files": 0.0})})
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(5):
            capture.epoch(3)
            pipeline.merger(log).round()
        capture.epoch(35)
        merging = Merger(soon, log, pipeline.state, SystemClock())
        merging.round()
        before = pipeline.manifest()
        for _ in range(3):
            merging.tidy()
            time.sleep(1.1)
        merging.close()
    found = pipeline.manifest()
    assert found.applied == before.applied
    moved = 0
    for table, named in found.tables.items():
        moved += named.version - before.tables[table].version
        whole = sum(batch.num_rows for batch in pipeline.lake(table).scan(pipeline.snapshot(table)))
        there = pa.table(DeltaTable(str(disk(pipeline.lake(table))), version=named.version).scan())
        assert there.num_rows == whole
        assert manifest.carried(table, pipeline.snapshot(table), found) == (named.applied or found.applied)
    assert moved, "nothing was compacted"
    pipeline.check_all()


def test_a_table_whose_files_went_while_they_were_read_is_looked_at_again_before_it_stops(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process compacted it, and kept nothing."""
    upsert = LakeTable.upsert
    failed: list[int] = []

    def gone(lake: LakeTable, on: Snapshot, *args: Any) -> Snapshot:
        if not failed:
            failed.append(on.version)
            raise LakeDamagedError("data file x is missing")
        return upsert(lake, on, *args)

    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        monkeypatch.setattr(LakeTable, "upsert", gone)
        capture.epoch(50)
        result = pipeline.merger(log).round()
    assert failed
    assert result.passes == 2
    assert not any(table.error for table in result.tables.values())
    pipeline.check_all()


def test_an_append_table_that_never_had_rows_is_made_anew_also_where_its_position_was_said_again(
    pipeline: Pipeline, log: Log
) -> None:
    lake = pipeline.lake(EVENTS)
    with Capture(log, pipeline.source) as capture:
        first = capture.add(EVENTS)
        created, applied = adding.begin(log, lake, EVENTS, first.added[EVENTS.id], None, None)
        restated = lake.restate(created, applied)
        capture.remove(EVENTS)
        again = capture.add(EVENTS, options={"backfill": True})
        found, at = adding.begin(log, lake, EVENTS, again.added[EVENTS.id], restated, applied)
    assert (found.version, at.epoch) == (restated.version + 1, again.id)
