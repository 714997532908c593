"""`lakesync wait` on real servers: what it says to be in the lake is there, and what it cannot wait for it says."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc.daemon import NodeName
from cdc.errors import ConfigError, NotFollowingError, TableStoppedError
from cdc.names import TableName
from cdc.waiting import parse_position, parse_time
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from tests.integration.rereading import Rereading

FOLLOW: tuple[NodeName, ...] = ("capture", "reread", "snapshot", "merge")


@pytest.fixture(params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> SqlServer:
    """Either."""
    found: SqlServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def rig(server: SqlServer, tmp_path: Path, request: pytest.FixtureRequest) -> Rereading:
    """Two tables; the second is idle."""
    name = request.getfixturevalue("schema" if isinstance(server, MySQLServer) else "mariadb_schema")
    for table in ("busy", "idle"):
        server.execute(f"CREATE TABLE {name}.{table} (id INT PRIMARY KEY, v INT)")
        server.execute(f"INSERT INTO {name}.{table} VALUES (1, 1)")
    return Rereading(tmp_path, server, [f"{name}.busy", f"{name}.idle"])


def tables(rig: Rereading) -> tuple[TableName, TableName]:
    busy, idle = (entry.table for entry in rig.config.tables)
    return busy, idle


def position(server: SqlServer) -> str:
    """What a client that committed just now would ask for."""
    name = "gtid_binlog_pos" if isinstance(server, MariaDBServer) else "gtid_executed"
    return str(server.execute(f"SELECT @@global.{name}")[0][0])


def test_what_is_said_to_be_in_is_in(rig: Rereading) -> None:
    busy, idle = tables(rig)
    with rig.running(FOLLOW):
        rig.ready(busy, idle)
        for n in range(2, 12):
            rig.server.execute(f"INSERT INTO {busy} VALUES ({n}, {n})")
            if n % 2:
                found = rig.pipeline.wait_for(position=position(rig.server), timeout_s=20)
            else:
                found = rig.pipeline.wait_for(str(busy), time="now", timeout_s=20)
            assert (n, n) in rig.lake(busy)
            assert found.tables[0].version is not None
        # The source is idle, and so is the table: time goes on for both.
        at = datetime.now(UTC) + timedelta(seconds=3)
        found = rig.pipeline.wait_for(time=at.isoformat(), timeout_s=20)
        assert {w.table for w in found.tables} == {busy, idle}
        assert datetime.now(UTC) >= at
        assert found.waited_s < 8


def test_a_merger_that_stands_still_is_not_waited_for_in_vain(rig: Rereading) -> None:
    busy, idle = tables(rig)
    with rig.running(FOLLOW):
        rig.ready(busy, idle)
        rig.pipeline.wait_for(time="now", timeout_s=20)
    with rig.running(("capture", "reread")):
        rig.server.execute(f"INSERT INTO {busy} VALUES (100, 1)")
        at = datetime.now(UTC).isoformat()
        asked = position(rig.server)
        asked_for: list[dict[str, Any]] = [{"time": "now"}, {"time": at}, {"position": asked}]
        for wanted in asked_for:
            with pytest.raises(NotFollowingError, match=str(idle).rpartition(".")[2]):
                rig.pipeline.wait_for(timeout_s=1.5, **wanted)
    with pytest.raises(NotFollowingError) as late:
        rig.pipeline.wait_for(str(busy), position=asked, timeout_s=0)
    assert "100" not in str(late.value)
    with rig.running(FOLLOW):
        rig.pipeline.wait_for(position=asked, timeout_s=20)
        assert (100, 1) in rig.lake(busy)


def test_a_stopped_table_is_named_with_its_way_out(rig: Rereading) -> None:
    busy, idle = tables(rig)
    with rig.running(FOLLOW):
        rig.ready(busy, idle)
        rig.server.execute(f"ALTER TABLE {busy} DROP COLUMN v")
        rig.server.execute(f"INSERT INTO {busy} VALUES (7)")
        began = time.monotonic()
        with pytest.raises(TableStoppedError, match=str(busy)) as stopped:
            rig.pipeline.wait_for(position=position(rig.server), timeout_s=30)
        assert time.monotonic() - began < 20
        assert "resync" in stopped.value.hint
        assert stopped.value.exit_code == 3
        assert rig.pipeline.wait_for(str(idle), position=position(rig.server), timeout_s=20).tables


def test_what_cannot_be_waited_for(rig: Rereading) -> None:
    busy, idle = tables(rig)
    other = "11111111-2222-3333-4444-555555555555:1-7"
    strange = "77-1-7" if isinstance(rig.server, MariaDBServer) else other
    with rig.running(FOLLOW):
        rig.ready(busy, idle)
        cases: list[tuple[dict[str, Any], str]] = [
            ({"position": other if isinstance(rig.server, MariaDBServer) else "0-1-5"}, "the source is M"),
            ({"position": strange}, "another server's position"),
            ({"position": ""}, "empty"),
            ({"position": "binlog.000003:1234"}, "a file and an offset"),
            ({"time": "yesterday"}, "not a time"),
            ({"time": "2026-03-31T00:00:00"}, "no zone"),
            ({}, "a position, or a time"),
            ({"time": "now", "position": other}, "a position, or a time"),
        ]
        for wanted, what in cases:
            with pytest.raises(ConfigError, match=what) as wrong:
                rig.pipeline.wait_for(timeout_s=5, **wanted)
            assert wrong.value.exit_code == 2
        with pytest.raises(ConfigError, match="not a table of this pipeline"):
            rig.pipeline.wait_for(f"{busy.schema}.other", time="now")


def test_times_and_positions_as_people_write_them() -> None:
    assert parse_time("1970-01-01T00:00:01.5Z") == parse_time("1970-01-01T01:00:01.500000+01:00") == 1_500_000
    assert parse_time(" NOW ") is None
    assert str(parse_position(" 0-1-100, 1-1-5\n")) == "0-1-100,1-1-5"
