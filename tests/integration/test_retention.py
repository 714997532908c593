"""What the source keeps of its binary log, against the time that a reading takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc.errors import TableStoppedError
from cdc.names import TableName
from cdc.source.connection import connect
from cdc.source.server import Server
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from snapshot.retention import Budget, Kept, RetentionError
from tests.integration.bootstrapping import Pipeline

TABLE = TableName("d", "t")
DAY_S = 86_400.0


class Hands:
    """A clock whose hands are moved by the test."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self._began_us = time.time_ns() // 1000

    def now_us(self) -> int:
        return self._began_us + int(self.passed_s * 1e6)

    def monotonic(self) -> float:
        return self.passed_s


@pytest.fixture(scope="module")
def mysql_own() -> Iterator[MySQLServer]:
    with MySQLServer() as server:
        server.execute("CREATE DATABASE d")
        server.execute("CREATE TABLE d.t (id INT PRIMARY KEY)")
        yield server


@pytest.fixture(scope="module")
def mariadb_own() -> Iterator[MariaDBServer]:
    with MariaDBServer() as server:
        server.execute("CREATE DATABASE d")
        server.execute("CREATE TABLE d.t (id INT PRIMARY KEY)")
        yield server


@pytest.fixture(params=["mysql_own", "mariadb_own"])
def server(request: pytest.FixtureRequest) -> Iterator[SqlServer]:
    made: SqlServer = request.getfixturevalue(request.param)
    made.execute("SET GLOBAL binlog_expire_logs_seconds = 86400")
    yield made
    made.execute("SET GLOBAL binlog_expire_logs_seconds = 0")


@pytest.fixture
def pipeline(server: SqlServer, tmp_path: Path) -> Iterator[Pipeline]:
    with Pipeline(tmp_path, server.url()) as made:
        yield made


def kept(server: SqlServer, pipeline: Pipeline) -> Kept:
    connection = connect(pipeline.config.source, purpose="test")
    try:
        return Kept.of(Server(connection))
    finally:
        connection.close()


def test_what_a_server_keeps(server: SqlServer, pipeline: Pipeline) -> None:
    assert kept(server, pipeline).seconds == DAY_S
    server.execute("SET GLOBAL binlog_expire_logs_seconds = 0")
    assert kept(server, pipeline).seconds is None
    if isinstance(server, MySQLServer):
        server.execute("SET GLOBAL binlog_expire_logs_seconds = 3600")
        server.execute("SET GLOBAL binlog_expire_logs_auto_purge = OFF")
        assert kept(server, pipeline).seconds is None
        server.execute("SET GLOBAL binlog_expire_logs_auto_purge = ON")
    else:
        server.execute("SET GLOBAL expire_logs_days = 2")
        assert kept(server, pipeline).seconds == 2 * DAY_S


def test_the_statement_that_helps_is_one(server: SqlServer, pipeline: Pipeline) -> None:
    """It is taken as it stands, and then the log is kept for long enough."""
    statement = kept(server, pipeline).statement(10 * DAY_S)
    server.execute(statement.partition(", and the same")[0])
    assert kept(server, pipeline).seconds == 20 * DAY_S
    if isinstance(server, MySQLServer):
        server.execute("RESET PERSIST binlog_expire_logs_seconds")


def test_what_rds_keeps(mysql_own: MySQLServer, tmp_path: Path) -> None:
    """There the server's own setting says nothing."""
    mysql_own.execute("CREATE TABLE mysql.rds_configuration (name VARCHAR(100) PRIMARY KEY, value VARCHAR(100))")
    try:
        with Pipeline(tmp_path, mysql_own.url()) as pipeline:
            mysql_own.execute("INSERT INTO mysql.rds_configuration VALUES ('binlog retention hours', NULL)")
            assert kept(mysql_own, pipeline).seconds == 0
            mysql_own.execute("UPDATE mysql.rds_configuration SET value = '24'")
            assert kept(mysql_own, pipeline) == Kept(DAY_S, "rds")
            assert kept(mysql_own, pipeline).statement(DAY_S) == (
                "CALL mysql.rds_set_configuration('binlog retention hours', 168)"
            )
    finally:
        mysql_own.execute("DROP TABLE mysql.rds_configuration")


def test_a_reading_that_outlasts_what_is_kept_is_warned_of(
    server: SqlServer, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lakesync")
    pipeline.epoch()
    hands = Hands()
    budget = Budget(pipeline.config, pipeline.log, hands)
    budget.check(TABLE, 0, 10_000_000)
    assert not budget.warnings, "its pace is not known"
    hands.passed_s = 100
    budget.check(TABLE, 1000, 10_000_000)
    assert "reading takes another 278 h, and the source keeps its binary log for 24 h" in budget.warnings[TABLE.id]
    assert "binlog_expire_logs_seconds = 2000000" in budget.warnings[TABLE.id]
    hands.passed_s = 200
    budget.check(TABLE, 2000, 10_000_000)
    assert caplog.text.count("reading-outlasts-binlog") == 1
    budget.check(TABLE, 3000, 1000)
    assert not budget.warnings, "it went faster in the end"
    budget.check(TABLE, 3001, 10_000_000)
    assert budget.warnings
    budget.ended(TABLE)
    assert not budget.warnings


def _behind(server: SqlServer, pipeline: Pipeline, hands: Hands, *, lag_s: float, files: int = 3) -> Callable[[], Any]:
    """Capture's newest record is this old, and there are binary log files after its own. Gives what another such record is made by."""
    here = pipeline.position()
    for _ in range(files):
        server.execute("INSERT INTO d.t SELECT COALESCE(MAX(id), 0) + 1 FROM d.t")
        server.execute("FLUSH BINARY LOGS")

    def record(lag_s: float) -> None:
        pipeline.epoch(here, raw_us=hands.now_us() - int(lag_s * 1e6))

    record(lag_s)
    return lambda: record(lag_s)


def run(budget: Budget, hands: Hands, seconds: float, *, rows_s: float, left: int, since_s: float = 0) -> None:
    """Read on for this time."""
    end_s = hands.passed_s + seconds
    while hands.passed_s < end_s:
        hands.passed_s += 10
        budget.check(TABLE, int((hands.passed_s - since_s) * rows_s), left)


def test_a_capture_that_falls_behind_stops_the_reading(server: SqlServer, pipeline: Pipeline) -> None:
    """12 h of reading are left, capture is 10 h behind and stands still: it would be 22 h, of 24."""
    hands = Hands()
    _behind(server, pipeline, hands, lag_s=10 * 3600)
    budget = Budget(pipeline.config, pipeline.log, hands)
    budget.check(TABLE, 0, 43_200_000)
    with pytest.raises(RetentionError) as caught:
        run(budget, hands, 120, rows_s=1000, left=43_200_000)
    error = caught.value
    assert isinstance(error, TableStoppedError)
    assert error.code == "Retention"
    assert "capture is 10 h behind" in error.what
    assert "reading takes another 12 h" in error.what
    assert "binlog_expire_logs_seconds" in error.hint
    assert f"lakesync snapshot {TABLE} --continue" in error.hint
    assert "rows_per_second" not in error.hint


def test_limits_are_named_only_where_there_are_some(server: SqlServer, pipeline: Pipeline) -> None:
    hands = Hands()
    _behind(server, pipeline, hands, lag_s=13 * 3600)
    snapshot = pipeline.config.snapshot.model_copy(update={"rows_per_second": 1000})
    budget = Budget(pipeline.config.model_copy(update={"snapshot": snapshot}), pipeline.log, hands)
    with pytest.raises(RetentionError, match=r"lift snapshot\.rows_per_second"):
        run(budget, hands, 120, rows_s=1000, left=1000)


def test_a_capture_that_catches_up_stops_nothing(server: SqlServer, pipeline: Pipeline) -> None:
    """However far it is behind, and however long the reading will take."""
    hands = Hands()
    _behind(server, pipeline, hands, lag_s=20 * 3600)
    here = pipeline.log.newest()
    assert here is not None
    budget = Budget(pipeline.config, pipeline.log, hands)
    for n in range(20):
        pipeline.epoch(here.end, raw_us=hands.now_us() - int((20 * 3600 - 100 * n) * 1e6))
        hands.passed_s += 10
        budget.check(TABLE, n * 10_000, 43_200_000)


def test_a_capture_at_the_end_stops_nothing(server: SqlServer, pipeline: Pipeline) -> None:
    """An idle source: its last transaction is old, and capture has it."""
    hands = Hands()
    pipeline.epoch(raw_us=hands.now_us() - int(23 * 3600 * 1e6))
    budget = Budget(pipeline.config, pipeline.log, hands)
    run(budget, hands, 200, rows_s=1000, left=430_200_000)


def test_what_is_kept_for_ever_stops_nothing(server: SqlServer, pipeline: Pipeline) -> None:
    server.execute("SET GLOBAL binlog_expire_logs_seconds = 0")
    hands = Hands()
    _behind(server, pipeline, hands, lag_s=100 * 3600)
    budget = Budget(pipeline.config, pipeline.log, hands)
    run(budget, hands, 200, rows_s=1, left=430_200_000)
    assert not budget.warnings


def purge(server: SqlServer, file: str) -> None:
    """MariaDB keeps a file until a checkpoint of its engines is behind it, which comes by itself."""
    for _ in range(100):
        server.execute("PURGE BINARY LOGS TO %s", file)
        if server.execute("SHOW BINARY LOGS")[0][0] == file:
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} is not the first one")


def test_the_file_that_is_next_to_be_purged_stops_the_reading(server: SqlServer, pipeline: Pipeline) -> None:
    """By size, say, or by hand: capture is not old by the clock."""
    hands = Hands()
    server.execute("FLUSH BINARY LOGS")
    _behind(server, pipeline, hands, lag_s=300)
    newest = pipeline.log.newest()
    assert newest is not None
    budget = Budget(pipeline.config, pipeline.log, hands)
    run(budget, hands, 100, rows_s=1000, left=1000)
    purge(server, newest.end.end.file)
    with pytest.raises(RetentionError, match="is the next to be purged"):
        run(budget, hands, 100, rows_s=1000, left=1000, since_s=-1000)
    last = server.execute("SHOW BINARY LOGS")[-1][0]
    purge(server, last)
    with pytest.raises(RetentionError, match="is purged"):
        run(budget, hands, 100, rows_s=1000, left=1000, since_s=-2000)


def test_a_source_that_cannot_be_asked_stops_nothing(server: SqlServer, pipeline: Pipeline) -> None:
    pipeline.epoch()
    config = pipeline.config.model_copy(
        update={"source": pipeline.config.source.model_copy(update={"url": "mysql://root@127.0.0.1:1"})}
    )
    hands = Hands()
    run(Budget(config, pipeline.log, hands), hands, 100, rows_s=1, left=10**9)
    other = (
        pipeline.invented(pipeline.position(), "00000000-0000-0000-0000-000000000001")
        if isinstance(server, MySQLServer)
        else replace(pipeline.position(), server_uuid="mariadb-9-x")
    )
    pipeline.epoch(other, raw_us=1)
    run(Budget(pipeline.config, pipeline.log, hands), hands, 100, rows_s=1, left=10)
