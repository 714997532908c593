"""The mistakes of `spec/` made in the real code, each seen red on real servers; and the same run without it, green.

A scenario returns what the oracle found. It is run twice: as the code is, where it must find nothing, and with the mutant, where it
must find something. `tests/faults/MUTANTS.md` lists them; a test keeps that list and this file alike.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cdc import faults
from dev.kafka import KafkaBroker
from dev.mysql import MySQLServer
from tests.faults.rig import Rig, Verdict

SEMI_SYNC_TIMEOUT_MS = 15000
"""How long a commit is in the binary log and not yet visible."""


@dataclass
class Run:
    """What a scenario gets: a server of its own, a folder, and the faults to arm ("" or "mutant:…")."""

    server: MySQLServer
    folder: Path
    mutant: str
    rigs: list[Rig] = field(default_factory=list)

    def rig(self, *tables: object, log: str | None = None, settings: Mapping[str, Any] | None = None) -> Rig:
        self.rigs.append(Rig(self.folder / "p", self.server, tables, log=log, settings=settings))  # type: ignore[arg-type]
        return self.rigs[-1]

    def close(self) -> None:
        """End what a scenario that failed left running."""
        for rig in self.rigs:
            rig.close()

    def arm(self, *others: str) -> str:
        return ",".join(filter(None, [self.mutant, *others]))

    def table(self, name: str = "t", rows: int = 100) -> None:
        """`m.<name>` with rows 1 to `rows`."""
        self.server.execute("CREATE DATABASE IF NOT EXISTS m")
        self.server.execute(f"CREATE TABLE m.{name} (id INT PRIMARY KEY, v VARCHAR(40))")
        self.insert(1, rows, name)

    def insert(self, first: int, last: int, name: str = "t") -> None:
        """One transaction."""
        values = ", ".join(f"({i}, 'v{i}')" for i in range(first, last + 1))
        self.server.execute(f"INSERT INTO m.{name} VALUES {values}")


def must(done: object) -> None:
    assert getattr(done, "returncode", 1) == 0, f"{getattr(done, 'stdout', '')}\n{getattr(done, 'stderr', '')}"


def outcome(rig: Rig, *, proofs: bool = True) -> Verdict:
    """Catch up without faults, then compare."""
    done = rig.catch_up()
    if done.returncode:
        return Verdict([f"run ended with {done.returncode}: {done.stderr[-2000:]}"])
    return rig.verdict(proofs=proofs)


def appended(rig: Rig, expected: int) -> Verdict:
    """An append table holds every change once."""
    rows = pl.read_delta(str(rig.lake / "m" / "t"))
    found, distinct = rows.height, rows["_cdc_gid"].n_unique()
    return Verdict(
        [] if found == distinct == expected else [f"{found} changes, {distinct} of them distinct, expected {expected}"]
    )


# -- scenarios ---------------------------------------------------------------------------------------------------------


def killed_at_the_first_epoch(run: Run, rig: Rig) -> None:
    process = rig.start("--node", "capture", faults=run.arm("kill:log.after-commit:1"))
    assert process.wait(60) == -9


def killed_inside_a_transaction(run: Run) -> Verdict:
    """kill -9 as soon as an epoch is written, while the events of a large transaction come in."""
    run.table()
    rig = run.rig("m.t")
    must(rig.catch_up())
    run.insert(1000, 12000)
    killed_at_the_first_epoch(run, rig)
    return outcome(rig)


def created_as_a_select(run: Run) -> Verdict:
    """CREATE TABLE … SELECT of another table, kill -9 as soon as an epoch is written."""
    run.table()
    rig = run.rig("m.t")
    must(rig.catch_up())
    run.server.execute("CREATE TABLE m.copy SELECT a.id, b.v FROM m.t a JOIN m.t b")
    killed_at_the_first_epoch(run, rig)
    run.insert(200, 210)
    return outcome(rig)


def _semi_sync(server: MySQLServer) -> None:
    server.execute("INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'")
    server.execute(f"SET GLOBAL rpl_semi_sync_source_timeout = {SEMI_SYNC_TIMEOUT_MS}")
    server.execute("SET GLOBAL rpl_semi_sync_source_enabled = ON")


def _invisible(run: Run, first: int) -> threading.Thread:
    """Start a transaction that is in the binary log at once, and visible only seconds later."""
    writer = threading.Thread(target=run.insert, args=(first, first + 9))
    writer.start()
    time.sleep(1.0)
    assert run.server.execute("SELECT COUNT(*) FROM m.t WHERE id = %s", first)[0][0] == 0
    return writer


def copied_before_it_is_visible(run: Run) -> Verdict:
    """A transaction is sent to capture, logged before e0, and not visible when the chunk would be read."""
    run.table()
    rig = run.rig("m.t")  # makes its user, before commits become slow
    _semi_sync(run.server)
    process = rig.start(faults=run.arm("sleep:snapshot.after-added=5"))
    rig.wait_phase("m.t", "added")
    writer = _invisible(run, 1000)
    rig.wait_phase("m.t", "ready")
    writer.join()
    assert rig.stop(process) == 0
    return outcome(rig)


def added_after_it_was_passed(run: Run) -> Verdict:
    """Capture passes a transaction before it captures the table; it is not visible yet when the chunk would be read."""
    run.table()
    run.table("other")
    rig = run.rig("m.other")
    _semi_sync(run.server)
    process = rig.start(faults=run.mutant)
    rig.wait_phase("m.other", "ready")
    writer = _invisible(run, 1000)
    time.sleep(0.5)
    must(rig.lakesync("add", "m.t"))
    rig.wait_phase("m.t", "ready")
    writer.join()
    assert rig.stop(process) == 0
    rig.tables = ("m.t", "m.other")
    return outcome(rig)


def copy_log(rig: Rig, to: Path) -> None:
    to.mkdir()
    for file in rig.log_file.parent.glob(rig.log_file.name + "*"):
        shutil.copy2(file, to / file.name)


def restore_log(rig: Rig, from_: Path) -> None:
    for file in rig.log_file.parent.glob(rig.log_file.name + "*"):
        file.unlink()
    for file in from_.iterdir():
        shutil.copy2(file, rig.state / file.name)


def _rolled_back(run: Run, rig: Rig) -> None:
    """The log is restored from a copy two epochs old, and its numbers are used again for other changes."""
    must(rig.catch_up())
    copy_log(rig, run.folder / "copy")
    process = rig.start()
    for first in (1000, 2000):
        before = rig.status()["manifest_epoch"]
        run.insert(first, first + 9)
        rig.wait(lambda before=before: rig.status()["manifest_epoch"] > before, "an epoch is merged")
    assert rig.stop(process) == 0
    restore_log(rig, run.folder / "copy")
    run.insert(3000, 3009)


def log_rolled_back(run: Run) -> Verdict:
    """Two epochs are lost, and their numbers are used again."""
    run.table()
    rig = run.rig("m.t")
    _rolled_back(run, rig)
    done = rig.catch_up(faults=run.mutant)
    if done.returncode:
        return Verdict([f"run ended with {done.returncode}: {done.stderr[-1000:]}"])
    return rig.verdict()


def log_rolled_back_append(run: Run) -> Verdict:
    """The same for a table that keeps every change: what it has in part must not be applied whole."""
    run.table()
    rig = run.rig({"name": "m.t", "mode": "append"})
    _rolled_back(run, rig)
    must(rig.catch_up(faults=run.mutant))
    return appended(rig, 30)


def log_loses_its_tail_when_idle(run: Run) -> Verdict:
    """The log loses epochs that no merger has seen, under a capture that has nothing to write."""
    run.table()
    rig = run.rig("m.t")
    must(rig.catch_up())
    newest = rig.status()["log_epoch"]
    process = rig.start("--node", "capture", faults=run.mutant)
    run.insert(1000, 1009)
    rig.wait(lambda: rig.status()["log_epoch"] > newest, "an epoch is logged")
    time.sleep(1)
    with closing(sqlite3.connect(rig.log_file, timeout=30)) as db:
        assert db.execute("DELETE FROM commits WHERE number > ?", (newest,)).rowcount > 0
        db.commit()
    time.sleep(5)
    merger = rig.start("--node", "merge")
    time.sleep(5)
    alive = process.poll() is None
    assert rig.stop(merger) == 0, rig.last_words()
    if alive:
        rig.stop(process)
    return rig.verdict(proofs=False)


def server_reset(run: Run) -> Verdict:
    """RESET, and more transactions than before: the same numbers name others. It must stop, and say so."""
    run.table()
    rig = run.rig("m.t")
    must(rig.catch_up())
    run.server.execute("RESET BINARY LOGS AND GTIDS")
    for i in range(40):
        run.insert(1000 + i, 1000 + i)
    done = rig.catch_up(faults=run.mutant)
    if done.returncode == 3 and "resync --all" in done.stderr:
        return Verdict()
    wrong = rig.verdict(proofs=False)
    return Verdict([f"went on, exit code {done.returncode}", *wrong.problems])


def answer_of_the_log_lost(run: Run) -> Verdict:
    """An epoch is committed, and capture does not know."""
    with KafkaBroker() as broker:
        run.table()
        rig = run.rig({"name": "m.t", "mode": "append"}, log=broker.url)
        must(rig.catch_up())
        process = rig.start(faults=run.arm("fail:log.after-commit:1"))
        time.sleep(2)
        run.insert(1000, 1009)
        time.sleep(4)
        ended = process.poll()
        if ended is None:
            rig.stop(process)
        done = rig.catch_up()
        if done.returncode:
            return Verdict([f"run ended with {done.returncode}: {done.stderr[-1000:]}"])
        return appended(rig, 10)


def killed_between_commit_and_knowing(run: Run) -> Verdict:
    """The Delta commit is made, the merger dies before it knows: the epoch must not be applied again."""
    run.table()
    rig = run.rig({"name": "m.t", "mode": "append"})
    must(rig.catch_up())
    run.insert(1000, 1009)
    killed = rig.catch_up(faults=run.arm("kill:lake.after-commit:1"))
    assert killed.returncode == -9
    must(rig.catch_up(faults=run.mutant))
    return appended(rig, 10)


def answer_of_the_lake_lost(run: Run) -> Verdict:
    """The Delta commit is made, and an error comes back."""
    run.table()
    rig = run.rig({"name": "m.t", "mode": "append"})
    must(rig.catch_up())
    run.insert(1000, 1009)
    done = rig.catch_up(faults=run.arm("fail:lake.after-commit:1"))
    if done.returncode:
        return Verdict([f"run ended with {done.returncode}: {done.stderr[-1000:]}"])
    return appended(rig, 10)


def log_with_a_gap(run: Run) -> Verdict:
    """Records that no merger has seen are gone, later ones are there: the table must stop."""
    run.table()
    rig = run.rig("m.t", settings={"capture": {"checkpoint_epochs": 1}})
    must(rig.catch_up())
    newest = rig.status()["log_epoch"]
    process = rig.start("--node", "capture")
    for first in (1000, 2000, 3000):
        before = rig.status()["log_epoch"]
        run.insert(first, first + 9)
        rig.wait(lambda before=before: rig.status()["log_epoch"] > before, "an epoch is logged")
    assert rig.stop(process) == 0
    with closing(sqlite3.connect(rig.log_file)) as db:
        numbers = [n for (n,) in db.execute("SELECT number FROM commits WHERE number > ? ORDER BY number", (newest,))]
        db.execute("DELETE FROM commits WHERE number > ? AND number < ?", (newest, numbers[-1]))
        db.commit()
    merger = rig.start("--node", "merge", faults=run.mutant)
    time.sleep(5)
    assert rig.stop(merger) == 0, rig.last_words()
    if rig.phase("m.t") == "stopped":
        return Verdict()
    return Verdict(["went on", *rig.differences("m.t")])


@dataclass(frozen=True)
class Case:
    mutant: str
    scenario: Callable[[Run], Verdict]
    ci: bool = False


CASES = (
    Case("applied_check_skipped", killed_between_commit_and_knowing, ci=True),
    Case("position_at_gtid", killed_inside_a_transaction, ci=True),
    Case("no_wait", copied_before_it_is_visible, ci=True),
    Case("skip_by_number", log_rolled_back, ci=True),
    Case("never_looks_back", log_loses_its_tail_when_idle),
    Case("no_read_back", answer_of_the_log_lost),
    Case("no_fingerprint", server_reset, ci=True),
    Case("create_select_position", created_as_a_select),
    Case("e0_before_added", added_after_it_was_passed),
    Case("part_applied_whole", log_rolled_back_append),
    Case("no_gap_check", log_with_a_gap),
    Case("blind_retry", answer_of_the_lake_lost, ci=True),
)


@pytest.fixture
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        yield started


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutated", [False, True], ids=["green", "red"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.mutant, marks=[pytest.mark.ci] if c.ci else []) for c in CASES])
def test_mutant(case: Case, mutated: bool, server: MySQLServer, tmp_path: Path) -> None:
    run = Run(server, tmp_path, f"mutant:{case.mutant}" if mutated else "")
    try:
        verdict = case.scenario(run)
    finally:
        run.close()
    print(verdict)
    assert verdict.green != mutated, f"{case.mutant}: {verdict}"


def test_every_case_is_a_known_mutant_and_is_listed() -> None:
    listed = Path(__file__).with_name("MUTANTS.md").read_text()
    for case in CASES:
        assert case.mutant in faults.MUTANTS
        assert f"`{case.mutant}`" in listed
