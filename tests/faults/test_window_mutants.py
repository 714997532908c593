"""The mistakes of `spec/window.py` made in the real code, each seen red on real servers.

Most of them are seen by the oracle of `test_windows.py`: its test is run in a process of its own with the mistake made, and must end with
something that the oracle found (that it ends well without is what the test itself shows). The others have a scenario each, run both ways.
`tests/faults/MUTANTS.md` lists them.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from cdc import faults
from cdc.epoch import CommitRecord
from cdc.names import TableName
from cdc.reads import ReadSpec
from cdc.state import State
from dev.mysql import MySQLServer
from tests.faults.rig import Rig, Verdict
from tests.faults.test_mutants import Case, Run, copy_log, must, outcome, restore_log

ROOT = Path(__file__).parents[2]
HERE = "tests/faults/test_windows.py"
FOUND = " problems"
"""What the oracle says when it found something; any other end of a test would be no proof."""
SLOW = ("sleep:window.read=0.03", "sleep:window.delivered=0.03")

TORTURED = (
    # mutant, test, more faults
    ("no_window", "test_windows[composite-mysql]", SLOW),
    ("only_new_keys_win", "test_windows[composite-mysql]", SLOW),
    ("no_point_read", "test_windows[composite-mysql]", ()),
    ("emission_before_mark", "test_windows[composite-mysql]", ("sleep:capture.event=0.02",)),
    ("c0_after_select", "test_windows[composite-mysql]", ()),
    ("point_read_by_collation", "test_windows[composite-mysql]", ()),
    ("window_no_wait", "test_windows_late_acknowledgements[text-mysql]", ()),
    ("point_read_outside", "test_windows_late_acknowledgements[text-mysql]", ()),
    ("mariadb_wait_by_gtid", "test_windows_late_acknowledgements[text-mariadb]", ()),
    ("mark_before_point_reads", "test_windows_at_a_slow_pace[mysql]", ("sleep:capture.event=0.01",)),
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("mutant", "test", "more"), TORTURED, ids=[mutant for mutant, _, _ in TORTURED])
def test_the_oracle_sees_it(mutant: str, test: str, more: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'run'}"]
    environment = os.environ | {"LAKESYNC_FAULTS": ",".join((f"mutant:{mutant}", *more))}
    done = subprocess.run(
        [*command, f"{HERE}::{test}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout[-3000:]
    assert FOUND in done.stdout, done.stdout[-3000:]


# -- scenarios -----------------------------------------------------------------------------------------------------------

LONG_S = 6.0
"""How long a window rests between its reads and its mark, for something to happen in it."""


def _ask(rig: Rig, table: str) -> str:
    name = TableName.parse(table)
    return State(rig.state).ask_read(name, name, ReadSpec(), "asked").job


def _wait_done(rig: Rig, job: str) -> None:
    def done() -> bool:
        read = State(rig.state).read(job)
        assert read is not None
        assert read.phase != "failed", read.error
        return read.phase == "done"

    rig.wait(done, "all is read again")


def _rows_logged(rig: Rig) -> int:
    with sqlite3.connect(rig.log_file, timeout=30) as db:
        (payload,) = db.execute("SELECT payload FROM commits ORDER BY number DESC LIMIT 1").fetchone()
    return CommitRecord.parse(payload).seq


def truncated_in_the_window(run: Run) -> Verdict:
    """A shard is truncated after its rows were read, and before the window's end."""
    run.table("s_1")
    run.table("s_2")
    rig = run.rig({"name": "m.s_*", "into": "m.s"})
    process = rig.start(faults=run.arm(f"sleep:window.read={LONG_S}"))
    rig.wait_phase("m.s", "reading")
    time.sleep(LONG_S / 2)
    run.server.execute("TRUNCATE m.s_1")
    rig.wait_phase("m.s", "ready")
    assert rig.stop(process) == 0, rig.last_words()
    must(rig.catch_up())
    rows = pl.read_delta(str(rig.lake / "m" / "s"))["_cdc_shard"].value_counts()
    found = dict(rows.iter_rows())
    return Verdict([] if found == {"m.s_2": 100} else [f"rows by shard: {found}"])


def reconnected_in_the_window(run: Run) -> Verdict:
    """Capture passes a change of a row that was read, and then loses its connection, before the window's end."""
    run.table()
    rig = run.rig("m.t")
    must(rig.catch_up())
    process = rig.start(faults=run.arm(f"sleep:window.read={LONG_S}"))
    rig.wait(lambda: "event=following" in rig.last_words(), "the stream is followed")
    job = _ask(rig, "m.t")
    time.sleep(LONG_S / 2)  # it is read meanwhile
    before = _rows_logged(rig)
    run.server.execute("UPDATE m.t SET v = 'changed' WHERE id = 5")
    rig.wait(lambda: _rows_logged(rig) > before, "the change is in the log")
    for (connection,) in run.server.execute(
        "SELECT id FROM performance_schema.processlist WHERE command LIKE 'Binlog Dump%%'"
    ):
        run.server.execute(f"KILL {connection}")
    _wait_done(rig, job)
    assert rig.stop(process) == 0, rig.last_words()
    return outcome(rig, proofs=False)


def window_of_another_log(run: Run) -> Verdict:
    """The log is restored from a copy with a window that the lake does not have, and is ahead of."""
    run.table()
    rig = run.rig("m.t")
    must(rig.catch_up())
    copy_log(rig, run.folder / "before")
    process = rig.start("--node", "capture")
    _wait_done(rig, _ask(rig, "m.t"))
    assert rig.stop(process) == 0, rig.last_words()
    copy_log(rig, run.folder / "window")
    restore_log(rig, run.folder / "before")
    run.server.execute("UPDATE m.t SET v = 'changed' WHERE id = 5")
    must(rig.catch_up())
    restore_log(rig, run.folder / "window")
    run.insert(200, 205)
    done = rig.catch_up(faults=run.mutant)
    if done.returncode:
        return Verdict([f"run ended with {done.returncode}: {done.stderr[-1000:]}"])
    return outcome(rig, proofs=False)


CASES = (
    Case("truncate_ignored", truncated_in_the_window, ci=True),
    Case("window_survives_restart", reconnected_in_the_window),
    Case("window_rows_always", window_of_another_log),
)


@pytest.fixture
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        yield started


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutated", [False, True], ids=["green", "red"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.mutant, marks=[pytest.mark.ci] if c.ci else []) for c in CASES])
def test_window_mutant(case: Case, mutated: bool, server: MySQLServer, tmp_path: Path) -> None:
    run = Run(server, tmp_path, f"mutant:{case.mutant}" if mutated else "")
    try:
        verdict = case.scenario(run)
    finally:
        run.close()
    print(verdict)
    assert verdict.green != mutated, f"{case.mutant}: {verdict}"


def test_every_mutant_of_windows_is_listed() -> None:
    listed = Path(__file__).with_name("MUTANTS.md").read_text()
    for mutant in (*(mutant for mutant, _, _ in TORTURED), *(case.mutant for case in CASES)):
        assert mutant in faults.MUTANTS
        assert f"`{mutant}`" in listed
