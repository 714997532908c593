"""Every change once, whatever happens to the log, the lake or the process; and the mistakes that would break that, each seen."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cdc import faults
from cdc.epoch import Extent
from cdc.errors import LakeConflictError, LogDamagedError
from cdc.lake import LakeTable, manifest
from cdc.log import Log
from cdc.merge import merger as merger_module
from cdc.merge import table as table_module
from tests.integration.history import (
    EVENTS,
    ITEMS,
    ORDERS,
    SCHEMAS,
    SERVER,
    Capture,
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


def arm(monkeypatch: pytest.MonkeyPatch, *items: str) -> None:
    """As `LAKESYNC_FAULTS` does, in this process."""
    armed, mutants = faults._parse(",".join(items))
    monkeypatch.setattr(faults, "_armed", armed)
    monkeypatch.setattr(faults, "_mutants", mutants)
    faults._counts.clear()


# -- the log loses records --------------------------------------------------------------------------------------------


def rolled_back(pipeline: Pipeline) -> None:
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
        pipeline.merger(log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []


def test_a_log_rolled_back_two_epochs_and_written_again(pipeline: Pipeline) -> None:
    rolled_back(pipeline)


def rolled_back_and_merged_late(pipeline: Pipeline) -> None:
    """The same, but the merger sees the log only once its numbers have passed those that the lake knows."""
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(10)
            copy = copy_log(pipeline.folder)
            capture.epoch(4)
            capture.epoch(4)
            pipeline.merger(log).round()
        restore_log(pipeline.folder, copy)
        with Capture(log, pipeline.source) as capture:
            capture.epoch(1)
            capture.epoch(9)
            capture.epochs(random.Random(2))
        pipeline.merger(log).round()
    pipeline.check_all()


def test_a_log_rolled_back_and_seen_late(pipeline: Pipeline) -> None:
    rolled_back_and_merged_late(pipeline)


@pytest.mark.parametrize("announced", [True, False])
def test_a_log_replaced_by_a_fresh_one_goes_on_by_position(pipeline: Pipeline, announced: bool) -> None:
    """It begins at the lowest position of the tables, and at the lake's highest number."""
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(6):
            capture.epoch(4)
        pipeline.merger(log).round()
        states, number = capture.states, capture.newest.number
    restore_log(pipeline.folder, None)
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        if announced:
            capture.add(*SCHEMAS, fresh=(number + 1, 20))
        else:
            capture.states = states
            capture._append(0, fresh=(number + 1, 20))
        capture.epoch(3)
        capture.epoch(3)
        merging = pipeline.merger(log)
        merging.round()
        pipeline.check_all(26)
        capture.epochs(random.Random(2))
        merging.round()
    pipeline.check_all()
    assert set(pipeline.phases().values()) == {"ready"}


def test_an_epoch_that_overlaps_the_one_before_is_taken_in_part(pipeline: Pipeline, log: Log) -> None:
    """As after a partition lost its tail and two captures wrote on. What the part leaves out is not left out of what stands before it."""
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        capture.epoch(4)
        capture.epoch(8, start=10)
        pipeline.merger(log).round()
        pipeline.check_all(18)
        capture.epochs(random.Random(1))
        pipeline.merger(log).round()
    pipeline.check_all()
    assert pipeline.snapshot(EVENTS).totals["duplicate"] > 0


def gap(pipeline: Pipeline) -> None:
    """The log loses two epochs that are not merged, and a capture that never looks back goes on behind them."""
    with closing(pipeline.log()) as log:
        with Capture(log, pipeline.source) as capture:
            pipeline.start(capture)
            capture.epoch(10)
            merging = pipeline.merger(log)
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
        merging = pipeline.merger(log)
        capture.epoch(5)
        merging.round()
        lost = [
            disk(pipeline.lake(ORDERS)) / "_delta_log" / f"{v:020}.json"
            for v in range(pipeline.check(ORDERS, 5).version + 1)
        ]
        kept = len(lost)
        for _ in range(9):
            capture.epoch(5)
            merging.round()
        for path in sorted((disk(pipeline.lake(ORDERS)) / "_delta_log").glob("*.json"))[kept:]:
            path.unlink()
        log.trim(10)
        pipeline.merger(log).round()
    assert pipeline.phases() == {EVENTS: "ready", ITEMS: "ready", ORDERS: "stopped"}
    pipeline.check(ITEMS, 50)
    pipeline.check(EVENTS, 50)
    pipeline.check(ORDERS, 5)


class Meddling:
    """A log in which something happens just before data is read for the first time."""

    def __init__(self, log: Log, meddle: Callable[[], object]) -> None:
        self._log = log
        self._meddle: Callable[[], object] | None = meddle

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
    pipeline.merger(Meddling(log, lambda: restore_log(pipeline.folder, copy))).round()
    assert "stopped" not in pipeline.phases().values()
    with Capture(log, pipeline.source) as capture:
        capture.epochs(random.Random(1))
    pipeline.merger(log).round()
    pipeline.check_all()


def test_data_that_is_not_what_its_record_says_stops_its_table(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
    with closing(sqlite3.connect(pipeline.folder / "log.db", isolation_level=None)) as sql:
        sql.execute("UPDATE data SET payload = zeroblob(length(payload)) WHERE tbl = ?", (ORDERS.id,))
    result = pipeline.merger(log).round()
    assert pipeline.phases() == {EVENTS: "ready", ITEMS: "ready", ORDERS: "stopped"}
    assert isinstance(result.tables[ORDERS].error, LogDamagedError)
    pipeline.check(ITEMS, 10)


def test_a_log_that_does_not_say_what_is_captured_is_an_error(pipeline: Pipeline, log: Log) -> None:
    with Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(5)
        checkpoint = capture.newest.checkpoint
    with closing(sqlite3.connect(pipeline.folder / "log.db", isolation_level=None)) as sql:
        sql.execute("DELETE FROM commits WHERE number = ?", (checkpoint,))
    with pytest.raises(LogDamagedError, match="which tables are captured"):
        pipeline.merger(log).round()


# -- several mergers --------------------------------------------------------------------------------------------------


def raced(pipeline: Pipeline) -> None:
    """A merger that has read and decided is overtaken by another one before it commits."""
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        capture.epoch(10)
        merging = pipeline.merger(log)
        merging.round()
        capture.epoch(10)
        slow = pipeline.merger(Meddling(log, merging.round))
        slow.round()
        pipeline.check_all(20)
        before = {t: pipeline.check(t, 20).version for t in SCHEMAS}
        slow.round()
        assert before == {t: pipeline.check(t, 20).version for t in SCHEMAS}
        capture.epochs(random.Random(1))
        merging.round()
    pipeline.check_all()


def test_a_merger_that_was_overtaken_decides_again(pipeline: Pipeline) -> None:
    raced(pipeline)


def test_two_mergers_at_once_apply_everything_once(pipeline: Pipeline, log: Log) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with closing(pipeline.log()) as own:
                merging = pipeline.merger(own)
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
    pipeline.merger(log).round()
    pipeline.check_all()
    assert pipeline.state.errors() == []
    for table in SCHEMAS:
        sequence = [c["position"]["gtids"] for c in pipeline.commits(table)]
        lengths = [int(g.rpartition("-")[2].rpartition(":")[2] or 0) for g in sequence]
        assert lengths == sorted(lengths), "the position went back"


# -- crashes ----------------------------------------------------------------------------------------------------------


def merging_process(
    pipeline: Pipeline, rounds: int, armed: str = "", batch_bytes: int = table_module.BATCH_BYTES
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.merging", str(pipeline.folder), str(rounds), str(batch_bytes)],
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
        pipeline.merger(log).round()
        pipeline.check_all(14)
        capture.epochs(random.Random(5))
    pipeline.merger(log).round()
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
    pipeline.merger(log).round()
    pipeline.check_all()


def answer_lost(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit took place and the caller is told that it may not have."""
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        merging = pipeline.merger(log)
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
        merging = pipeline.merger(log)
        refuse = pipeline.lake(ORDERS).folder

        def conflict(self: Any, on: Any, *arguments: Any) -> Any:
            if on.folder == refuse:
                raise LakeConflictError("made up")
            return upsert(self, on, *arguments)

        upsert = LakeTable.upsert
        monkeypatch.setattr(LakeTable, "upsert", conflict)
        with pytest.raises(LakeConflictError):
            merging.round()
        monkeypatch.undo()
        pipeline.check(ITEMS, 10)
        pipeline.check(ORDERS, 0)
        found = pipeline.manifest()
        assert ORDERS not in found.tables or found.tables[ORDERS].applied is not None
        merging.round()
        pipeline.check_all(10)


def restarted(pipeline: Pipeline) -> None:
    """Mergers that end and begin, with nothing new in the log."""
    with closing(pipeline.log()) as log, Capture(log, pipeline.source) as capture:
        pipeline.start(capture)
        for _ in range(5):
            capture.epoch(10)
            for _ in range(2):
                pipeline.merger(log).round()
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


# -- anything at all ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


class World:
    """A pipeline to which anything happens, in one process: a crash loses the merger's memory."""

    def __init__(self, folder: Path, random_: random.Random, source: Source) -> None:
        self.random = random_
        self.pipeline = Pipeline(folder, source)
        self.log = self.pipeline.log()
        self.capture = Capture(self.log, self.pipeline.source, checkpoints=random_.choice((1, 3, 100)))
        self.pipeline.start(self.capture, mark=random_.randrange(min(5, len(source.transactions))))
        self.mergers = [self.pipeline.merger(self.log) for _ in range(2)]
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
            ["epoch", "epoch", "part", "part", "round", "round", "crash", "crash", "copy", "restore", "trim", "idle"]
        )
        within = self.capture.newest.end.partial
        if what == "epoch" and left:
            self.capture.epoch(self.random.randrange(1, min(5, left) + 1))
        elif what == "part" and left:
            begun = within.row_events if within else 0
            rest = len(self.pipeline.source.transactions[self.capture.at]) - begun
            if rest > 0:
                self.capture.part(begun + self.random.randrange(1, rest + 1))
        elif what == "idle" and not within:
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
            self.mergers[which] = self.pipeline.merger(self.log)
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
            snapshot = self.pipeline.snapshot(table)
            applied = manifest.carried(table, snapshot, found)
            assert applied is not None
            count, events = applied.position.reach
            assert count >= len(newest.end.gtids)
            self.pipeline.check(table, count, events)


def many(random_: random.Random) -> Source:
    return Source.made_up(random_, random_.randrange(10, 40))


def large(random_: random.Random) -> Source:
    """Few transactions, each of many row events, which are cut into parts."""
    return Source.made_up(random_, random_.randrange(3, 10), busy=True, events=(0, 8, 20))


@pytest.mark.parametrize("source", [many, large])
@pytest.mark.timeout(300)
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_the_lake_is_the_source(
    source: Callable[[random.Random], Source], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random_ = random.Random(seed)
    world = World(tmp_path_factory.mktemp("world"), random_, source(random_))
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
    assert set(world.pipeline.phases().values()) == {"ready"}
    world.capture.writer.close()
    world.log.close()
