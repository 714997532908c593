"""kill -9 while sessions log rows in part: what is completed, and what is read again, ends as the source, and the ledger closes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from dev.sqlserver import SqlServer
from tests.contract.binlog import run
from tests.faults.rig import Rig, seed
from tests.integration.incomplete import create, working

POINTS = (
    "merge.asked-again",
    "lake.before-commit:3",
    "lake.after-commit:2",
    "window.emitting",
    "window.emitted",
    "log.after-commit:9",
    "merge.after-round:4",
    "capture.before-epoch:7",
)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_the_lake_is_the_source_after_kills(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: SqlServer = request.getfixturevalue(kind)
    schema: str = request.getfixturevalue("schema" if kind == "mysql" else "mariadb_schema")
    tables = list(map(str, create(server, schema)))
    rig = Rig(tmp_path / "p", server, tables, settings={"snapshot": {"chunk_rows": 20, "window_rows": 10}})
    with working(server, schema, seed=seed() % 1000, pause_s=0.01):
        for point in POINTS:
            daemon = rig.start(faults=f"kill:{point}")
            try:
                assert daemon.wait(6) == -9, rig.last_words()
            except subprocess.TimeoutExpired:
                rig.kill(daemon)
        daemon = rig.start()
        rig.wait(lambda: all(rig.phase(table) == "ready" for table in tables), "ready", 60)
        time.sleep(1)
        rig.kill(daemon)
    run(server, schema, "UPDATE one SET z = NULL WHERE z = 0")  # what the oracle reads a zero date as is no NULL
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    verdict = rig.verdict()
    assert verdict.green, str(verdict)
    rig.close()
