"""The merger, over a real log and real Delta tables: every change once, whatever happens to the log, the lake or the process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cdc import faults
from cdc.clock import SystemClock
from cdc.epoch import Extent
from cdc.errors import LakeConflictError, LogDamagedError
from cdc.lake import manifest
from cdc.log import Log, open_log
from cdc.merge import merger as merger_module
from cdc.merge import table as table_module
from cdc.merge.merger import Merger, RoundResult
from cdc.names import TableName
from cdc.position import BinlogEnd
from tests.integration.history import (
    EVENTS,
    ITEMS,
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

ROOT = Path(__file__).resolve().parents[2]
OTHER_SERVER = "00000000-0000-0000-0000-00000000000b"


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """Fifty transactions, of which nothing is logged yet."""
    return Pipeline(tmp_path, Source.random(random.Random(7), 50, busy=True))


def log_of(pipeline: Pipeline) -> Log:
    return open_log(pipeline.config.log, pipeline.config.name)


@pytest.fixture
def log(pipeline: Pipeline) -> Iterator[Log]:
    with closing(log_of(pipeline)) as log:
        yield log


def merger(pipeline: Pipeline, log: Log) -> Merger:
    return Merger(pipeline.config, log, pipeline.state, SystemClock())


def arm(monkeypatch: pytest.MonkeyPatch, *items: str) -> None:
    """As `LAKESYNC_FAULTS` does, in this process."""
    armed, mutants = faults._parse(",".join(items))
    monkeypatch.setattr(faults, "_armed", armed)
    monkeypatch.setattr(faults, "_mutants", mutants)
    faults._counts.clear()


# -- rounds -----------------------------------------------------------------------------------------------------------


def test_every_round_leaves_the_lake_at_the_newest_epoch(pipeline: Pipeline, log: Log) -> None:
    random_ = random.Random(3)
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=20)
        merging = merger(pipeline, log)
        while capture.at < 50:
            capture.epochs(random_, until=min(50, capture.at + random_.randrange(8)))
            result = merging.round()
            assert result.epoch == capture.writer.newest.id
            pipeline.check_all(capture.at)
            found = manifest.read(pipeline.config.lake_root, "shop")
            assert found is not None
            assert found.applied.epoch == result.epoch
            assert found.applied.position == pipeline.source.position(capture.at)
            for table, named in found.tables.items():
                assert named.applied is None
                assert named.version == pipeline.lake(table).load().version
                assert named.state == pipeline.phases()[table]
            ready = "ready" if capture.at >= 20 else "catching-up"
            assert pipeline.phases() == {EVENTS: "ready", ITEMS: ready, ORDERS: ready}
    assert pipeline.state.errors() == []


def test_others_read_what_was_merged(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epochs(random.Random(1))
    merger(pipeline, log).round()
    table = DeltaTable(str(pipeline.lake(ORDERS).folder))
    rows = pa.table(table.scan(columns=["id", "note"])).to_pylist()
    assert sorted((r["id"], r["note"]) for r in rows) == sorted(pipeline.source.rows(ORDERS, 50))
    # What others ask of `txn` to find out how far the table is.
    assert table.transaction_version(f"lakesync:shop:{ORDERS.id}") == pipeline.applied(ORDERS).epoch.number


def test_counts_of_all_commits_balance(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = merger(pipeline, log)
        while capture.at < 50:
            capture.epoch(min(7, 50 - capture.at))
            merging.round()
        states = capture.states
    for table in SCHEMAS:
        snapshot = pipeline.lake(table).load()
        assert snapshot is not None
        totals, logged = snapshot.totals, states[table.id].totals
        assert list(totals["logged"]) == list(logged)
        assert sum(totals["logged"]) == totals["superseded"] + totals["duplicate"] + totals["effective"]
        effects = totals["inserted"] + totals["replaced"] + totals["removed"] + totals["absent"]
        assert totals["effective"] + totals["key_changes"] == effects
        assert totals["inserted"] - totals["removed"] == snapshot.rows
        assert totals["duplicate"] == 0
    assert pipeline.lake(ITEMS).load().totals["key_changes"] > 0


def test_an_empty_log_is_no_error(pipeline: Pipeline, log: Log) -> None:
    assert merger(pipeline, log).round() == RoundResult(None, {}, 1)


def test_a_round_is_cut_into_several_commits_where_there_is_much(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "BATCH_BYTES", 1)
    monkeypatch.setattr(merger_module, "RECORDS", 3)
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        while capture.at < 50:
            capture.epoch(5)
        result = merger(pipeline, log).round()
    assert result.tables[EVENTS].commits == 10
    pipeline.check_all()
    epochs = [c["epoch"] for c in commits(pipeline, EVENTS)]
    assert epochs == sorted(set(epochs))


def commits(pipeline: Pipeline, table: TableName) -> list[Mapping[str, Any]]:
    from cdc.lake.deltalog import commits

    return [c.info for c in commits(pipeline.lake(table).folder)]


# -- tables without changes -----------------------------------------------------------------------------------------


def quiet(length: int) -> Source:
    """Only `orders` changes, but for one transaction of the others at either end."""
    one = [Change(ITEMS, 0, 0, None, (1, "a", 1)), Change(EVENTS, 1, 0, None, (1, "first"))]
    last = [Change(ITEMS, 0, 0, (1, "a", 1), (1, "b", 1)), Change(EVENTS, 1, 0, None, (2, "last"))]
    middle = [[Change(ORDERS, 0, 0, None, (i, f"order {i}"))] for i in range(length)]
    return Source([one, *middle, last])


def test_an_idle_table_is_carried_and_does_not_hold_the_log(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, quiet(30))
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch()
        merging = merger(pipeline, log)
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
        merger(pipeline, log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


def test_a_stopped_table_keeps_its_place_and_the_log_behind_it(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, quiet(30))
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = merger(pipeline, log)
        for _ in range(10):
            capture.epoch()
            merging.round()
            merging.trim()
        at = capture.writer.newest.number
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
        merging = merger(pipeline, log)
        capture.epoch(10)

        def follow() -> bool:
            if capture.at < 50:
                capture.epoch(1)
            return capture.at == 50 and set(pipeline.phases().values()) == {"ready"}

        run_until(merging, follow)
        beat = pipeline.state.nodes()["merge"].info
        assert beat["tables"][str(ORDERS)]["epoch"] <= capture.writer.newest.number
        assert set(beat["tables"][str(ORDERS)]) == {"phase", "version", "rows", "epoch", "lag_ms"}
    merging.round()
    pipeline.check_all()


# -- ready ----------------------------------------------------------------------------------------------------------


def test_ready_is_passing_the_mark_on_the_same_server(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        merging = merger(pipeline, log)
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
        merger(pipeline, log).round()
    assert pipeline.phases()[ORDERS] == "ready"


def test_another_server_before_the_mark_means_a_new_bootstrap(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        capture.epoch(11)
        capture.server = OTHER_SERVER
        capture.epoch(30)
        merger(pipeline, log).round()
    status = pipeline.state.table(ORDERS)
    assert status is not None
    assert (status.phase, status.e0, status.mark) == ("added", None, None)


def test_a_binary_log_of_another_name_means_a_new_bootstrap(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture, mark=12)
        pipeline.state.set_table(ORDERS, "catching-up", mark=BinlogEnd("other.000001", 4))
        capture.epoch(11)
        merger(pipeline, log).round()
    assert pipeline.phases()[ORDERS] == "added"


# -- the log loses records --------------------------------------------------------------------------------------------


def rolled_back(pipeline: Pipeline) -> None:
    """The log loses its last two epochs, which are merged; capture writes them again and goes on, cut otherwise."""
    with closing(log_of(pipeline)) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            for _ in range(6):
                capture.epoch(3)
            merging = merger(pipeline, log)
            merging.round()
            copy = copy_log(pipeline.folder)
            capture.epoch(4)
            capture.epoch(4)
            merging.round()
            pipeline.check_all(26)
        restore_log(pipeline.folder, copy)
        merging.round()  # nothing to take: the log is behind
        pipeline.check_all(26)
        with Capture(log, pipeline.source) as capture:
            assert capture.at == 18
            # The numbers of the lost ones, and one of them begins before, and ends after, what the lake has.
            for count in (1, 10, 3, 2):
                capture.epoch(count)
                merging.round()
                pipeline.check_all(max(26, capture.at))
            capture.epochs(random.Random(2))
        merger(pipeline, log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


def test_a_log_rolled_back_two_epochs_and_written_again(pipeline: Pipeline) -> None:
    rolled_back(pipeline)


def rolled_back_and_merged_late(pipeline: Pipeline) -> None:
    """The same, but the merger sees the log only once its numbers have passed those that the lake knows."""
    with closing(log_of(pipeline)) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(10)
            copy = copy_log(pipeline.folder)
            capture.epoch(4)
            capture.epoch(4)
            merger(pipeline, log).round()
        restore_log(pipeline.folder, copy)
        with Capture(log, pipeline.source) as capture:
            capture.epoch(1)
            capture.epoch(9)
            capture.epochs(random.Random(2))
        merger(pipeline, log).round()
    pipeline.check_all()


def test_a_log_rolled_back_and_seen_late(pipeline: Pipeline) -> None:
    rolled_back_and_merged_late(pipeline)


@pytest.mark.parametrize("announced", [True, False])
def test_a_log_replaced_by_a_fresh_one_goes_on_by_position(pipeline: Pipeline, announced: bool) -> None:
    """It begins at the lowest position of the tables, and at the lake's highest number."""
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(6):
            capture.epoch(4)
        merger(pipeline, log).round()
        states, number = capture.states, capture.writer.newest.number
    restore_log(pipeline.folder, None)
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        if announced:
            capture.add(*SCHEMAS, fresh=(number + 1, 20))
        else:
            capture.states = states
            capture._append(0, fresh=(number + 1, 20))
        capture.epoch(3)
        capture.epoch(3)
        merging = merger(pipeline, log)
        merging.round()
        pipeline.check_all(26)
        capture.epochs(random.Random(2))
        merging.round()
    pipeline.check_all()
    assert set(pipeline.phases().values()) == {"ready"}


def gap(pipeline: Pipeline) -> None:
    """The log loses two epochs that are not merged, and a capture that never looks back goes on behind them."""
    with closing(log_of(pipeline)) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(10)
            merging = merger(pipeline, log)
            merging.round()
            copy = copy_log(pipeline.folder)
            capture.epoch(4)
            capture.epoch(4)
        restore_log(pipeline.folder, copy)
        with Capture(log, pipeline.source) as capture:
            capture.epoch(4, start=18)
            capture.epoch(4)
        merging.round()
    pipeline.check_all(10)
    for table in SCHEMAS:
        status = pipeline.state.table(table)
        assert status is not None
        assert status.phase == "stopped"
        assert status.error is not None
        assert (status.error["code"], status.error["node"]) == ("LogGap", "merge")
        assert f"{SERVER}:11-18" in status.error["what"]
        assert f"lakesync resync {table}" in status.error["hint"]


def test_a_gap_stops_every_table_with_its_way_out(pipeline: Pipeline) -> None:
    gap(pipeline)


def test_a_table_with_a_gap_stops_alone(pipeline: Pipeline, log: Log) -> None:
    """One table's lake is put back to what it was before the log was trimmed."""
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = merger(pipeline, log)
        capture.epoch(5)
        merging.round()
        lost = [
            pipeline.lake(ORDERS).folder / "_delta_log" / f"{v:020}.json"
            for v in range(pipeline.check(ORDERS, 5).version + 1)
        ]
        kept = len(lost)
        for _ in range(9):
            capture.epoch(5)
            merging.round()
        for path in sorted((pipeline.lake(ORDERS).folder / "_delta_log").glob("*.json"))[kept:]:
            path.unlink()
        log.trim(10)
        merger(pipeline, log).round()
    assert pipeline.phases() == {EVENTS: "ready", ITEMS: "ready", ORDERS: "stopped"}
    pipeline.check(ITEMS, 50)
    pipeline.check(EVENTS, 50)
    pipeline.check(ORDERS, 5)


class Meddling:
    """A log in which something happens just before data is read for the first time."""

    def __init__(self, log: Log, meddle: Callable[[], None]) -> None:
        self._log = log
        self._meddle: Callable[[], None] | None = meddle

    def data(self, table: str, extent: Extent) -> list[bytes]:
        meddle, self._meddle = self._meddle, None
        if meddle:
            meddle()
        return self._log.data(table, extent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def test_a_log_that_is_restored_while_it_is_read_stops_nothing(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        copy = copy_log(pipeline.folder)
        capture.epoch(5)
        capture.epoch(5)
    merger(pipeline, Meddling(log, lambda: restore_log(pipeline.folder, copy))).round()
    assert "stopped" not in pipeline.phases().values()
    with Capture(log, pipeline.source) as capture:
        capture.epochs(random.Random(1))
    merger(pipeline, log).round()
    pipeline.check_all()


def test_data_that_is_not_what_its_record_says_stops_its_table(pipeline: Pipeline, log: Log) -> None:
    import sqlite3

    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
    with closing(sqlite3.connect(pipeline.folder / "log.db", isolation_level=None)) as sql:
        sql.execute("UPDATE data SET payload = zeroblob(length(payload)) WHERE tbl = ?", (ORDERS.id,))
    result = merger(pipeline, log).round()
    assert pipeline.phases() == {EVENTS: "ready", ITEMS: "ready", ORDERS: "stopped"}
    assert isinstance(result.tables[ORDERS].error, LogDamagedError)
    pipeline.check(ITEMS, 10)


# -- several mergers --------------------------------------------------------------------------------------------------


def raced(pipeline: Pipeline) -> None:
    """A merger that has read and decided is overtaken by another one before it commits."""
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        merging = merger(pipeline, log)
        merging.round()
        capture.epoch(10)
        slow = merger(pipeline, Meddling(log, lambda: _ignore(merging.round())))
        slow.round()
        pipeline.check_all(20)
        before = {t: pipeline.check(t, 20).version for t in SCHEMAS}
        slow.round()
        assert before == {t: pipeline.check(t, 20).version for t in SCHEMAS}
        capture.epochs(random.Random(1))
        merging.round()
    pipeline.check_all()


def _ignore(_: object) -> None:
    return None


def test_a_merger_that_was_overtaken_decides_again(pipeline: Pipeline) -> None:
    raced(pipeline)


def test_two_mergers_at_once_apply_everything_once(pipeline: Pipeline, log: Log) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with closing(log_of(pipeline)) as own:
                merging = merger(pipeline, own)
                while not stop.is_set():
                    try:
                        merging.round()
                    except LakeConflictError:
                        continue
        except BaseException as error:
            failed.append(error)

    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        random_ = random.Random(4)
        while capture.at < 50:
            capture.epoch(min(random_.randrange(1, 4), 50 - capture.at))
            stop.wait(0.02)
        stop.wait(0.2)
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failed == []
    merger(pipeline, log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []
    for table in SCHEMAS:
        sequence = [c["position"]["gtids"] for c in commits(pipeline, table)]
        lengths = [int(g.rpartition("-")[2].rpartition(":")[2] or 0) for g in sequence]
        assert lengths == sorted(lengths), "the position went back"


# -- crashes ----------------------------------------------------------------------------------------------------------


def merging_process(pipeline: Pipeline, rounds: int, armed: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.merging", str(pipeline.folder), str(rounds)],
        cwd=ROOT,
        env={**os.environ, "LAKESYNC_FAULTS": armed},
        stdout=subprocess.PIPE,
        text=True,
    )


KILLS = [
    "merge.round",
    "merge.after-round",
    "lake.after-data-files",
    "lake.before-commit",
    "lake.after-commit",
    "lake.manifest",
]


@pytest.mark.parametrize("point", KILLS)
def test_a_merger_killed_at_any_point_goes_on_exactly(pipeline: Pipeline, log: Log, point: str) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(12)
        capture.epoch(2)
        process = merging_process(pipeline, 3, f"kill:{point}:2")
        process.communicate(timeout=60)
        assert process.returncode == -9
        merger(pipeline, log).round()
        pipeline.check_all(14)
        capture.epochs(random.Random(5))
    merger(pipeline, log).round()
    pipeline.check_all()
    assert set(pipeline.phases().values()) == {"ready"}
    assert pipeline.state.errors() == []


@pytest.mark.slow
def test_two_processes_at_once_and_one_is_killed(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(20)
        processes = [merging_process(pipeline, 60, "kill:lake.after-commit:5"), merging_process(pipeline, 60)]
        while any(p.poll() is None for p in processes):
            if capture.at < 50:
                capture.epoch(1)
            threading.Event().wait(0.05)
        for process in processes:
            process.communicate()
        capture.epochs(random.Random(1))
    merger(pipeline, log).round()
    pipeline.check_all()


def answer_lost(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit took place and the caller is told that it may not have."""
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = merger(pipeline, log)
        capture.epoch(10)
        merging.round()
        for nth in (1, 2, 3):  # a table each
            armed, _ = faults._parse(f"fail:lake.after-commit:{nth}")
            monkeypatch.setattr(faults, "_armed", armed)
            faults._counts.clear()
            capture.epoch(6)
            merging.round()
            monkeypatch.setattr(faults, "_armed", {})
            pipeline.check_all(capture.at)
        capture.epochs(random.Random(1))
        merging.round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


def test_an_answer_that_was_lost_is_looked_up(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_lost(pipeline, monkeypatch)


def test_a_table_that_never_gets_its_commit_in_is_an_error_after_the_others_are_done(
    pipeline: Pipeline, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merger_module, "FIRST_PAUSE_S", 0.001)
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        merging = merger(pipeline, log)
        refuse = pipeline.lake(ORDERS).folder

        def conflict(self: Any, on: Any, *arguments: Any) -> Any:
            if on.folder == refuse:
                raise LakeConflictError("made up")
            return upsert(self, on, *arguments)

        upsert = table_module.LakeTable.upsert
        monkeypatch.setattr(table_module.LakeTable, "upsert", conflict)
        with pytest.raises(LakeConflictError):
            merging.round()
        monkeypatch.undo()
        pipeline.check(ITEMS, 10)
        pipeline.check(ORDERS, 0)
        found = manifest.read(pipeline.config.lake_root, "shop")
        assert found is not None
        assert ORDERS not in found.tables or found.tables[ORDERS].applied is not None
        merging.round()
        pipeline.check_all(10)


def restarted(pipeline: Pipeline) -> None:
    """Mergers that end and begin, with nothing new in the log."""
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(5):
            capture.epoch(10)
            for _ in range(2):
                merger(pipeline, log).round()
                pipeline.check_all(capture.at)


def test_a_merger_that_starts_again_repeats_nothing(pipeline: Pipeline) -> None:
    restarted(pipeline)


# -- mistakes ---------------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, Callable[[Pipeline, pytest.MonkeyPatch], None]] = {
    "skip_by_number": lambda p, _: rolled_back(p),
    "no_gap_check": lambda p, _: gap(p),
    "part_applied_whole": lambda p, _: rolled_back(p),
    "applied_check_skipped": lambda p, _: restarted(p),
    "applied_from_other_snapshot": lambda p, _: raced(p),
    "blind_retry": answer_lost,
}


@pytest.mark.parametrize("mutant", SCENARIOS)
def test_every_mistake_is_noticed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    arm(monkeypatch, f"mutant:{mutant}")
    with pytest.raises(AssertionError, match=r"is not the source|appended twice|assert"):
        SCENARIOS[mutant](pipeline, monkeypatch)


# -- added, removed, added again ------------------------------------------------------------------------------------


def test_an_append_table_begins_where_the_log_adds_it(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, quiet(4))
    with closing(log_of(pipeline)) as log, Capture(log, pipeline.source) as capture:
        capture.epoch(1)  # has a change of the table, which is not captured yet
        added = capture.add(EVENTS)
        pipeline.state.set_table(EVENTS, "added", added=added.id)
        merger(pipeline, log).round()
        assert pipeline.phases() == {EVENTS: "ready"}
        assert pipeline.applied(EVENTS).epoch == added.id
        capture.epoch(5)
        merger(pipeline, log).round()
        lake = pipeline.lake(EVENTS)
        rows = pa.Table.from_batches(list(lake.scan(lake.load()))).to_pylist()
        assert [(r["id"], r["_cdc_op"], r["_cdc_gid"]) for r in rows] == [(2, "insert", f"{SERVER}:6/1.0")]


def test_an_upsert_table_waits_for_its_bootstrap(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        capture.add(*SCHEMAS)
        pipeline.state.set_table(ORDERS, "added")
        pipeline.state.set_table(ITEMS, "snapshot")
        capture.epoch(10)
        result = merger(pipeline, log).round()
    assert result.tables == {}
    assert not pipeline.config.lake_root.joinpath("shop").exists()


def test_a_removed_table_is_applied_up_to_its_end(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = merger(pipeline, log)
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
        for anew in (merging, merger(pipeline, log)):
            assert set(anew.round().tables) == {ITEMS}
        found = manifest.read(pipeline.config.lake_root, "shop")
        assert found is not None
        assert found.tables[ORDERS].state == "removed"
        assert found.tables[ORDERS].applied.epoch == removed.id
        assert pipeline.phases() == {ORDERS: "removed", EVENTS: "stopped", ITEMS: "ready"}


def test_a_table_that_is_added_again_waits_and_its_bootstrap_takes_over(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = merger(pipeline, log)
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
        merging = merger(pipeline, log)
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
        pipeline.lake(EVENTS).folder.rename(pipeline.folder / "old")
        pipeline.state.ask("resume", str(EVENTS))
        run_until(merging, lambda: pipeline.phases()[EVENTS] == "ready")
        merging.round()
        lake = pipeline.lake(EVENTS)
        assert lake.load().rows == len(pipeline.source.rows(EVENTS, 25)) - len(pipeline.source.rows(EVENTS, 20))


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
        merging = merger(pipeline, log)
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
    run_until(merger(pipeline, log), lambda: not pipeline.state.open_requests("resume"))
    assert said in outcomes(pipeline)[-1]


# -- trimming -----------------------------------------------------------------------------------------------------------


def test_the_log_is_kept_for_whatever_needs_it(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source, checkpoints=1) as capture:
        pipeline.start(capture)
        merging = merger(pipeline, log)
        for _ in range(10):
            capture.epoch()
        merging.round()
        behind = capture.writer.newest
        pipeline.state.set_table(ITEMS, "snapshot", e0=behind.id)
        for _ in range(10):
            capture.epoch()
        merging.round()
        assert merging.trim() == behind.number
        pipeline.bootstrap(capture, ITEMS)
        for _ in range(2):
            merging.round()
        assert merging.trim() == capture.writer.newest.number
        assert merging.trim() is None


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
        assert merging.trim() == capture.writer.newest.number - 5


# -- anything at all ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


class World:
    """A pipeline to which anything happens, in one process: a crash loses the merger's memory."""

    def __init__(self, folder: Path, random_: random.Random) -> None:
        self.random = random_
        self.pipeline = Pipeline(folder, Source.random(random_, random_.randrange(10, 40)))
        self.log = log_of(self.pipeline)
        self.capture = Capture(self.log, self.pipeline.source, checkpoints=random_.choice((1, 3, 100)))
        self.pipeline.start(self.capture, mark=random_.randrange(5))
        self.mergers = [merger(self.pipeline, self.log) for _ in range(2)]
        self.copies = [copy_log(folder)]
        self.countdown: int | None = None

    def point(self, name: str) -> None:
        if self.countdown is not None:
            self.countdown -= 1
            if self.countdown == 0:
                self.countdown = None
                raise Killed

    def step(self) -> None:
        """One thing that happens."""
        left = len(self.pipeline.source.transactions) - self.capture.at
        what = self.random.choice(
            ["epoch", "epoch", "epoch", "round", "round", "crash", "crash", "copy", "restore", "trim", "idle"]
        )
        if what == "epoch" and left:
            self.capture.epoch(self.random.randrange(1, min(5, left) + 1))
        elif what == "idle":
            self.capture.epoch(0)
        elif what in ("round", "crash"):
            self.round(self.random.randrange(2), self.random.randrange(1, 12) if what == "crash" else None)
        elif what == "copy":
            self.copies = [copy_log(self.pipeline.folder)]
        elif what == "restore" and self.random.random() < 0.4:
            self.capture.writer.close()
            restore_log(self.pipeline.folder, self.copies[0])
            if self.random.random() < 0.5:
                self.round(0, None)
            self.capture = Capture(self.log, self.pipeline.source, checkpoints=self.capture.checkpoints)
        elif what == "trim":
            # What was copied before may then be older than what the tables need: that would be a gap, and rightly so.
            self.mergers[0].trim()
            self.copies = [copy_log(self.pipeline.folder)]

    def round(self, which: int, crash: int | None) -> None:
        self.countdown = crash
        try:
            self.mergers[which].round()
        except Killed:
            self.mergers[which] = merger(self.pipeline, self.log)
        else:
            self.check()
        finally:
            self.countdown = None

    def check(self) -> None:
        """Every table is the source at its own position, and has all that the log has."""
        found = manifest.read(self.pipeline.config.lake_root, "shop")
        newest = self.log.newest()
        assert newest is not None
        for table in SCHEMAS:
            snapshot = self.pipeline.lake(table).load()
            assert snapshot is not None
            applied = manifest.carried(table, snapshot, found)
            assert applied is not None
            count = len(applied.position.gtids)
            assert count >= len(newest.end.gtids)
            self.pipeline.check(table, count)


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_the_lake_is_the_source(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    random_ = random.Random(seed)
    world = World(tmp_path_factory.mktemp("world"), random_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "point", world.point)
        for _ in range(random_.randrange(5, 40)):
            world.step()
        world.capture.epochs(random_)
        for merging in world.mergers:
            merging.round()
    world.pipeline.check_all()
    world.check()
    assert world.pipeline.state.errors() == []
    assert set(world.pipeline.phases().values()) == {"ready"}
    world.capture.writer.close()
    world.log.close()
