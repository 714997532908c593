"""Row images without all columns and differences of JSON values: the lake is the source all the same."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from cdc.names import TableName
from dev.sqlserver import SqlServer
from tests.integration.incomplete import create, working
from tests.integration.rereading import Rereading


def whole(rig: Rereading, tables: list[TableName]) -> None:
    """Everything is settled, and the lake the source, by lakesync's own proofs and row by row."""
    rig.current()
    rig.until(lambda: not rig.state.reads(open_only=True), "nothing is read any more", 60)
    rig.current()
    report = rig.pipeline.reconcile(ledger=False)
    assert report.values is not None
    assert report.values.equal, [d for t in report.values.tables for d in t.differences]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_the_lake_is_the_source_whatever_sessions_log(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: SqlServer = request.getfixturevalue(kind)
    schema: str = request.getfixturevalue("schema" if kind == "mysql" else "mariadb_schema")
    seed = random.randrange(1000)
    print(f"seed {seed}")
    tables = create(server, schema)
    rig = Rereading(tmp_path, server, list(map(str, tables)))
    with rig.running():
        with working(server, schema, seed=seed) as work:
            rig.ready(*tables)
            time.sleep(6)
        assert sum(one.statements for one in work) > 200
        whole(rig, tables)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_what_drifted_is_mended_while_sessions_write_some_columns(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A window leaves out what the stream touched; a row of which the stream has some columns has the others from the window."""
    server: SqlServer = request.getfixturevalue(kind)
    schema: str = request.getfixturevalue("schema" if kind == "mysql" else "mariadb_schema")
    seed = random.randrange(1000)
    print(f"seed {seed}")
    tables = create(server, schema)
    rig = Rereading(tmp_path, server, list(map(str, tables)), window_rows=10)
    with rig.running():
        rig.ready(*tables)
        rig.unlogged(
            f"UPDATE `{schema}`.one SET s = CONCAT('drifted ', id), b = NULL, j = '[1, 2]'",
            f"UPDATE `{schema}`.two SET v = CONCAT('drifted ', no), w = w + 1",
        )
        with working(server, schema, sessions=3, seed=seed, pause_s=0.001) as work:
            for _ in range(3):
                for table in tables:
                    rig.pipeline.snapshot(str(table))
                time.sleep(1.5)
        assert sum(one.statements for one in work) > 200
        whole(rig, tables)
