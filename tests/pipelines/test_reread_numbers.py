"""Numbers of windows name the rows of windows: none is given twice, however often a job leaves off and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc import daemon
from cdc.state import Read, ReadSpec
from dev.mysql import MySQLServer
from tests.integration.rereading import Rereading
from tests.pipelines.test_rereads import make


def now(rig: Rereading, job: str) -> Read:
    """The job as it is."""
    found = rig.state.read(job)
    assert found is not None
    return found


@pytest.mark.timeout(120)
def test_a_backfill_that_goes_on_before_anything_is_merged_loses_no_row(
    mysql: MySQLServer, schema: str, tmp_path: Path
) -> None:
    table = make(mysql, schema, rows=900)
    entry = {"name": str(table), "mode": "append", "backfill": True}
    rig = Rereading(tmp_path, mysql, [entry], window_rows=20, rows_per_second=300)
    with rig.running():
        job = rig.until(lambda: [r.job for r in rig.state.reads()], "a job")[0]
        rig.until(lambda: now(rig, job).rows_read >= 40, "some rows")
    without_merge: tuple[daemon.NodeName, ...] = ("capture", "reread")
    with rig.running(without_merge):
        before = now(rig, job).rows_read
        rig.until(lambda: now(rig, job).rows_read >= before + 60, "more rows")
        assert rig.state.set_read(job, phase="paused", when=("running",))
        rig.until(lambda: (now(rig, job).progress or {})["counted"] == [], "all of it is in the log")
    with rig.running(without_merge):
        before = now(rig, job).rows_read
        assert rig.state.set_read(job, phase="waiting", when=("paused",))
        rig.until(lambda: now(rig, job).rows_read >= before + 60, "more rows")
    with rig.running():
        rig.read(job)
        rig.ready(table)
        assert rig.lake(table) == rig.source(table)
    ids = [w.id for _, w in rig.windows(table)]
    assert len(set(ids)) == len(ids) >= 20


@pytest.mark.timeout(120)
def test_another_run_of_a_job_has_other_numbers(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema, rows=60)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=20)
    with rig.running():
        rig.ready(table)
        job = rig.state.ask_read(table, table, ReadSpec(), "asked").job
        rig.read(job)
        first = {w.id for _, w in rig.windows(table)}
        rig.state.restart_read(job, "for the test")
        rig.read(job)
        second = [w.id for _, w in rig.windows(table)]
    assert len(set(second)) == len(second) == 2 * len(first)
