"""Rows that are read again, in windows, while the stream goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.names import TableName
from cdc.state import ReadSpec
from dev.mysql import MySQLServer
from tests.integration.rereading import Rereading


def make(server: MySQLServer, schema: str, rows: int = 500, name: str = "t") -> TableName:
    """A table with keys 2, 4, 6, …"""
    table = TableName(schema, name)
    server.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, v VARCHAR(40), n INT)")
    values = ", ".join(f"({2 * n}, 'v{n}', {n})" for n in range(1, rows + 1))
    server.execute(f"INSERT INTO {table.quoted} VALUES {values}")
    return table


@pytest.mark.timeout(120)
def test_a_whole_table_is_repaired(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema)
    rig = Rereading(tmp_path, mysql, [str(table)])
    with rig.running():
        rig.ready(table)
        t = table.quoted
        rig.unlogged(
            f"UPDATE {t} SET v = 'drifted' WHERE id IN (2, 500, 1000)",
            f"DELETE FROM {t} WHERE id IN (4, 502)",
            f"INSERT INTO {t} VALUES (1, 'new', 0), (501, 'new', 0), (5001, 'new', 0)",
        )
        mysql.execute(f"INSERT INTO {t} VALUES (6001, 'streamed', 1)")
        rig.current()
        assert rig.lake(table) != rig.source(table)
        job = rig.state.ask_read(table, table, ReadSpec(), "asked")
        done = rig.read(job.job)
        assert rig.lake(table) == rig.source(table)
    assert (done.rows_read, done.rows_emitted, done.rows_gone) == (502, 504, 2)
    entries = [w for _, w in rig.windows(table)]
    assert len({w.id for w in entries}) == len(entries) > 10
    assert sum(w.read for w in entries) == 502 + 2 + 0
