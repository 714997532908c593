"""The log loses its tail under a job that runs: no window that was in it is taken for done."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cdc import daemon
from cdc.names import TableName
from cdc.state import Read, ReadSpec
from dev.mysql import MySQLServer
from tests.integration.rereading import Rereading
from tests.pipelines.test_rereads import make

WITHOUT_MERGE: tuple[daemon.NodeName, ...] = ("capture", "reread")


def now(rig: Rereading, job: str) -> Read:
    """The job as it is."""
    found = rig.state.read(job)
    assert found is not None
    return found


def phase(rig: Rereading, table: TableName) -> str:
    """The table's."""
    found = rig.state.table(table)
    return found.phase if found is not None else ""


def lose_tail(rig: Rereading, folder: Path, job: str) -> None:
    """Let the job go on for a while, and the log lose the epochs of its last windows."""
    before = now(rig, job).rows_read
    rig.until(lambda: now(rig, job).rows_read > before + 100, "more rows")
    number = [r.number for r in rig.log.records() if any(w.id.job == job for ws in r.windows.values() for w in ws)][-3]
    with closing(sqlite3.connect(folder / "log.db", timeout=20)) as log:
        log.execute("DELETE FROM commits WHERE number >= ?", (number,))
        log.commit()


@pytest.mark.timeout(120)
def test_what_was_lost_is_read_again(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema, rows=900)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=20, rows_per_second=300)
    with rig.running():
        rig.ready(table)
    rig.unlogged(f"UPDATE {table.quoted} SET v = 'drifted'")
    job = rig.state.ask_read(table, table, ReadSpec(), "asked").job
    with rig.running(WITHOUT_MERGE):
        lose_tail(rig, tmp_path, job)
        rig.until(lambda: now(rig, job).run == 1, "it begins anew")
    with rig.running():
        rig.read(job)
        assert rig.lake(table) == rig.source(table)


@pytest.mark.timeout(120)
def test_an_append_table_stops_and_stays_stopped(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema, rows=900)
    entry = {"name": str(table), "mode": "append", "backfill": True}
    rig = Rereading(tmp_path, mysql, [entry], window_rows=20, rows_per_second=300)
    with rig.running():
        job = rig.until(lambda: [r.job for r in rig.state.reads()], "a job")[0]
        rig.until(lambda: now(rig, job).rows_read > 20, "some rows")
    with rig.running(WITHOUT_MERGE):
        lose_tail(rig, tmp_path, job)
        rig.until(lambda: phase(rig, table) == "stopped", "it stops")
    status = rig.state.table(table)
    assert status is not None
    assert "the log lost rows" in (status.error or {})["what"]
    with rig.running():
        rig.pipeline.resume(str(table))
        rig.until(lambda: not rig.state.open_requests("resume"), "it was tried")
        rig.until(lambda: phase(rig, table) == "stopped", "it stops again")
    assert now(rig, job).phase == "failed"
