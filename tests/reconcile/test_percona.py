"""Percona's pt-table-checksum beside a pipeline: it makes its session log statements, and the pipeline goes on."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from dev.sysbench import percona_tool
from tests.faults.rig import Rig

ROWS = 4000
CHUNK_ROWS = 250
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=["mysql", "mariadb"])
def place(request: pytest.FixtureRequest) -> tuple[SqlServer, str]:
    """A server, and an empty schema of its own there."""
    server: MySQLServer | MariaDBServer = request.getfixturevalue(request.param)
    name: str = request.getfixturevalue("schema" if request.param == "mysql" else "mariadb_schema")
    return server, name


def filled(server: SqlServer, table: str) -> None:
    server.execute(f"CREATE TABLE {table} (id INT PRIMARY KEY, v INT NOT NULL, t VARCHAR(40))")
    for start in range(0, ROWS, 1000):
        server.execute(f"INSERT INTO {table} VALUES {', '.join(f'({i}, 0, {i})' for i in range(start, start + 1000))}")
    server.execute(f"ANALYZE TABLE {table}")  # a table that seems small is one chunk


def events(server: SqlServer, text: str) -> int:
    """How many statements with this text the binary log has."""
    logs = [row[0] for row in server.execute("SHOW BINARY LOGS")]
    found = [row for log in logs for row in server.execute(f"SHOW BINLOG EVENTS IN '{log}'")]
    return sum(row[2] == "Query" and text in row[5] for row in found)


def test_the_pipeline_goes_on_beside_pt_table_checksum(place: tuple[SqlServer, str], tmp_path: Path) -> None:
    server, schema = place
    table = f"{schema}.t"
    filled(server, table)
    rig = Rig(tmp_path / "p", server, [table])
    ended = threading.Event()

    def write() -> None:
        with server.root(schema) as connection, connection.cursor() as cursor:
            for n in itertools.count():
                if ended.wait(0.001):
                    return
                cursor.execute(f"UPDATE t SET v = v + 1 WHERE id % {ROWS} = {n % ROWS}")

    daemon = rig.start()
    writer = threading.Thread(target=write)
    try:
        rig.wait_phase(table, "ready")
        writer.start()
        done = percona_tool(
            server,  # its own table is percona.checksums
            "pt-table-checksum",
            f"--databases={schema}",
            f"--chunk-size={CHUNK_ROWS}",
            "--chunk-time=0",
            "--recursion-method=none",
            # It does not understand what EXPLAIN says by default today, and would make the table one chunk.
            *(["--set-vars=explain_format=TRADITIONAL"] if isinstance(server, MySQLServer) else []),
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        ended.set()
        writer.join()
        assert rig.phase(table) == "ready"
        assert daemon.poll() is None
        assert rig.stop(daemon) == 0
    finally:
        ended.set()
        rig.close()
    logged = events(server, f"FROM `{schema}`.`t`")
    assert logged >= ROWS // CHUNK_ROWS, "its statements name the captured table: else nothing was tested"
    assert events(server, "REPLACE INTO `percona`.`checksums`") >= logged
    assert rig.catch_up().returncode == 0
    assert rig.verdict().green, str(rig.verdict())


def test_checksums_kept_in_a_captured_table_stop_that_table_alone(place: tuple[SqlServer, str], tmp_path: Path) -> None:
    server, schema = place
    table, checksums = f"{schema}.t", f"{schema}.checksums"
    filled(server, table)
    arguments = (f"--databases={schema}", "--tables=t", "--recursion-method=none", f"--replicate={checksums}")
    assert percona_tool(server, "pt-table-checksum", *arguments).returncode == 0  # makes its table
    rig = Rig(tmp_path / "p", server, [table, checksums])
    assert rig.catch_up().returncode == 0
    assert percona_tool(server, "pt-table-checksum", *arguments).returncode == 0
    server.execute(f"UPDATE {table} SET v = 7 WHERE id = 7")
    daemon = rig.start()
    try:
        rig.wait_phase(checksums, "stopped")
        rig.wait(lambda: not rig.differences(table), "the other table follows")
        assert rig.phase(table) == "ready"
        (state,) = (t for t in rig.status()["tables"] if t["table"] == checksums)
        assert "logged as text, not as rows" in str(state), state
        assert rig.stop(daemon) in (0, 3)
    finally:
        rig.close()
