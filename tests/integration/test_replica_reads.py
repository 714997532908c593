"""Rows are read from a replica, while the marks are those of the server that capture reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from cdc import faults
from cdc.config import PipelineConfig
from cdc.errors import LakesyncError, SourceUnavailableError
from cdc.names import TableName
from cdc.position import Gtid, GtidSet, Position
from cdc.schema import TableSchema
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from cdc.source.server import Server
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from snapshot import replica, throttle
from snapshot.chunks import Part, Walk
from snapshot.reader import Ended, Reader

TABLE = TableName("d", "t")
SEMI_SYNC_MS = 5000


def config(source: SqlServer, read_from: SqlServer | None = None, **snapshot: Any) -> PipelineConfig:
    """A pipeline of these servers."""
    if read_from is not None:
        snapshot["source"] = {"url": read_from.url()}
    return PipelineConfig.model_validate(
        {
            "name": "p",
            "source": {"url": source.url()},
            "log": "sqlite:///none",
            "lake": "none",
            "state": "none",
            "snapshot": snapshot,
        }
    )


def position(server: SqlServer) -> Position:
    """Where the server is."""
    connection = connect(config(server).source, purpose="test")
    try:
        asked = Server(connection)
        return replace(asked.position(), end=asked.binlog_end())
    finally:
        connection.close()


def schema(server: SqlServer) -> TableSchema:
    connection = connect(config(server).source, purpose="test")
    try:
        return read_schema(connection, TABLE)
    finally:
        connection.close()


def prepare(server: SqlServer, rows: int = 3) -> None:
    """`d.t` with rows 1, 2, …"""
    server.execute("CREATE DATABASE d")
    server.execute("CREATE TABLE d.t (id INT PRIMARY KEY, v VARCHAR(100))")
    for n in range(rows):
        server.execute("INSERT INTO d.t VALUES (%s, 'x')", n + 1)


@contextmanager
def reader(
    source: SqlServer, read_from: SqlServer | None, at: Position | None = None, stop: threading.Event | None = None
) -> Iterator[Reader]:
    walk = Walk(TABLE, schema(source))
    settings = config(source, read_from)
    with Reader(settings, walk, at or position(source), stop or threading.Event()) as made:
        yield made


def ids(made: Reader, limit: int = 1000) -> list[int]:
    """What a chunk has."""
    chunk = made.read(Part(0), None, limit)
    return [int(n or 0) for batch in chunk.batches for n in batch.column("id").to_pylist()]


@contextmanager
def stopped(server: SqlServer) -> Iterator[None]:
    """A replica that receives and does not apply."""
    mysql = isinstance(server, MySQLServer)
    server.execute("STOP REPLICA SQL_THREAD" if mysql else "STOP SLAVE SQL_THREAD")
    try:
        yield
    finally:
        start(server)


@pytest.fixture(scope="module")
def mysql_pair() -> Iterator[tuple[MySQLServer, MySQLServer]]:
    """A source and its replica."""
    with MySQLServer(
        options=["--plugin-load-add=semisync_source.so", f"--rpl-semi-sync-source-timeout={SEMI_SYNC_MS}"]
    ) as source:
        prepare(source)
        with MySQLServer(replica_of=source) as replica_server:
            replica_server.wait_for_source()
            yield source, replica_server


@contextmanager
def _mariadb_pair(logs: str) -> Iterator[tuple[MariaDBServer, MariaDBServer]]:
    with MariaDBServer() as source:
        prepare(source)
        with MariaDBServer(replica_of=source, options=[f"--log-slave-updates={logs}"]) as replica_server:
            replica_server.wait_for_source()
            yield source, replica_server


@pytest.fixture(scope="module")
def mariadb_pair() -> Iterator[tuple[MariaDBServer, MariaDBServer]]:
    """A source and its replica, which logs what it replicates."""
    with _mariadb_pair("ON") as pair:
        yield pair


@pytest.fixture(scope="module")
def mariadb_silent_pair() -> Iterator[tuple[MariaDBServer, MariaDBServer]]:
    """… which does not."""
    with _mariadb_pair("OFF") as pair:
        yield pair


@pytest.fixture(params=["mysql_pair", "mariadb_pair", "mariadb_silent_pair"])
def pair(request: pytest.FixtureRequest) -> tuple[SqlServer, SqlServer]:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def start(server: SqlServer) -> None:
    """Apply again."""
    server.execute("START REPLICA SQL_THREAD" if isinstance(server, MySQLServer) else "START SLAVE SQL_THREAD")


def insert(server: SqlServer) -> int:
    """One more row; its key."""
    ((last,),) = server.execute("SELECT MAX(id) FROM d.t")
    server.execute("INSERT INTO d.t VALUES (%s, 'y')", last + 1)
    return int(last) + 1


@pytest.mark.parametrize("mutant", ["", "wait_once"])
def test_a_replica_is_waited_for(
    pair: tuple[SqlServer, SqlServer], monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    source, replica_server = pair
    monkeypatch.setattr(faults, "_mutants", frozenset({mutant} - {""}))
    with stopped(replica_server):
        key = insert(source)
        timer = threading.Timer(1.5, start, (replica_server,))
        timer.start()
        with reader(source, replica_server) as made:
            assert (key in ids(made)) == (not mutant)
        timer.join()


def test_a_later_position_is_waited_for_on_the_same_connection(pair: tuple[SqlServer, SqlServer]) -> None:
    source, replica_server = pair
    with reader(source, replica_server) as made:
        ids(made)
        connection = made.connection()
        with stopped(replica_server):
            key = insert(source)
            timer = threading.Timer(1, start, (replica_server,))
            timer.start()
            made.wait(position(source))
            assert key in ids(made)
            timer.join()
        assert made.connection() is connection


def test_the_mark_is_the_source_s(pair: tuple[SqlServer, SqlServer]) -> None:
    source, replica_server = pair
    replica_server.execute("FLUSH LOCAL BINARY LOGS")
    key = insert(source)
    with reader(source, replica_server) as made:
        assert key in ids(made)
        end, server = made.mark()
        here = position(source)
        assert (end, server) == (here.end, here.server_uuid)
        insert(source)
        assert made.mark()[0] > end


def test_the_mark_is_behind_what_only_the_replica_shows_yet(mysql_pair: tuple[MySQLServer, MySQLServer]) -> None:
    """A commit that waits for a semi-synchronous replica: logged and replicated, and on the source itself not visible."""
    source, replica_server = mysql_pair
    before = position(source)
    (last,) = source.execute("SELECT MAX(id) FROM d.t")[0]
    source.execute("SET GLOBAL rpl_semi_sync_source_enabled = ON")
    try:
        thread = threading.Thread(target=source.execute, args=("INSERT INTO d.t VALUES (%s, 'held')", last + 1))
        thread.start()
        deadline = time.monotonic() + 3
        while replica_server.execute("SELECT MAX(id) FROM d.t") == [(last,)] and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.monotonic()
        with reader(source, replica_server, before) as made:
            assert last + 1 in ids(made)
            end, _ = made.mark()
            assert time.monotonic() - began < 2, "it need not wait for the source to show it"
        assert source.execute("SELECT MAX(id) FROM d.t") == [(last,)], "held too shortly: nothing is tested"
        thread.join()
        assert end == position(source).end
        assert end > before.end
    finally:
        source.execute("SET GLOBAL rpl_semi_sync_source_enabled = OFF")


@pytest.mark.parametrize("mutant", ["", "capture_behind_reader"])
def test_what_was_written_on_the_replica_itself_is_refused(
    pair: tuple[SqlServer, SqlServer], monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    source, replica_server = pair
    monkeypatch.setattr(replica, "SOURCE_S", 0.5)
    monkeypatch.setattr(faults, "_mutants", frozenset({mutant} - {""}))
    replica_server.execute("SET GLOBAL read_only = OFF")
    try:
        _write_errant(replica_server, "errant")
        insert(source)
        with reader(source, replica_server) as made:
            if mutant:
                assert 1 in ids(made)
            else:
                with pytest.raises(SourceUnavailableError, match="the server which capture reads does not have"):
                    ids(made)
    finally:
        _write_errant(replica_server, "x")
        _forget_errant(source, replica_server)
    with reader(source, replica_server) as made:
        assert 1 in ids(made)


def _write_errant(replica_server: SqlServer, value: str) -> None:
    with replica_server.root() as connection, connection.cursor() as cursor:
        if isinstance(replica_server, MariaDBServer):
            # In the domain of the source's transactions replication would stop at the next of them, in strict mode.
            cursor.execute("SET gtid_domain_id = 7")
        cursor.execute("UPDATE d.t SET v = %s WHERE id = 1", (value,))


def _forget_errant(source: SqlServer, replica_server: SqlServer) -> None:
    if isinstance(source, MySQLServer):
        # The other way to repair it: the source has them as well, empty.
        errant = GtidSet.parse(replica_server.executed).subtract(GtidSet.parse(source.executed))
        for sid, parts in errant.sids.items():
            for first, last in parts:
                for number in range(first, last + 1):
                    with source.root() as connection, connection.cursor() as cursor:
                        cursor.execute("SET gtid_next = %s", (f"{sid}:{number}",))
                        cursor.execute("BEGIN")
                        cursor.execute("COMMIT")
    else:
        assert isinstance(replica_server, MariaDBServer)
        replica_server.execute("STOP SLAVE")
        replica_server.execute("RESET MASTER")
        replica_server.execute("SET GLOBAL gtid_slave_pos = %s", source.executed)
        replica_server.execute("START SLAVE")
    replica_server.execute("SET GLOBAL read_only = ON")


def test_chunks_from_ahead_of_capture_wait_for_it(mysql_factory: Callable[..., MySQLServer]) -> None:
    """Capture reads a replica, rows come from its primary: a chunk is sound once capture's server has what it shows."""
    primary = mysql_factory()
    prepare(primary)
    behind = mysql_factory(replica_of=primary)
    behind.wait_for_source()
    at = position(behind)
    with stopped(behind):
        key = insert(primary)
        timer = threading.Timer(1.5, start, (behind,))
        timer.start()
        began = time.monotonic()
        with reader(behind, primary, at) as made:
            assert key in ids(made)
            assert time.monotonic() - began > 1
            end, _ = made.mark()
        timer.join()
        assert end > at.end
        assert end == position(behind).end


def test_a_replica_that_has_stopped_is_said(
    pair: tuple[SqlServer, SqlServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, replica_server = pair
    monkeypatch.setattr(replica, "STANDS_S", 2.5)
    monkeypatch.setattr(replica, "TELL_S", 0.5)
    caplog.set_level("INFO", "lakesync")
    with stopped(replica_server):
        insert(source)
        with (
            reader(source, replica_server) as made,
            pytest.raises(SourceUnavailableError, match="replication is stopped: it lacks") as caught,
        ):
            ids(made)
    assert "START REPLICA" in caught.value.hint
    assert "waits-for-replica" in caplog.text


def test_the_wait_for_a_replica_ends_when_it_shall(pair: tuple[SqlServer, SqlServer]) -> None:
    source, replica_server = pair
    stop = threading.Event()
    with stopped(replica_server):
        insert(source)
        threading.Timer(0.5, stop.set).start()
        with reader(source, replica_server, stop=stop) as made, pytest.raises(Ended):
            ids(made)


def test_a_server_that_is_no_replica(
    mysql_pair: tuple[MySQLServer, MySQLServer],
    mariadb_pair: tuple[MariaDBServer, MariaDBServer],
    mysql: MySQLServer,
    mariadb: MariaDBServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "STANDS_S", 1.5)
    for source, other, what in (
        (mysql_pair[0], mysql, "replicates from no server"),
        (mariadb_pair[0], mariadb, "replicates from no server"),
        (mysql_pair[0], mariadb, "MariaDB, the other MySQL"),
    ):
        at = position(source)
        with reader(source, other, at) as made, pytest.raises(LakesyncError, match=what) as caught:
            ids(made)
        assert "snapshot.source" in caught.value.where


def test_the_source_itself_may_be_named(pair: tuple[SqlServer, SqlServer]) -> None:
    source, _ = pair
    with reader(source, source) as made:
        assert 1 in ids(made)
        assert made.mark()[0] == position(source).end


def test_a_replica_that_leaves_rows_out_is_refused(mysql_factory: Callable[..., MySQLServer]) -> None:
    source = mysql_factory()
    prepare(source)
    filtering = mysql_factory(replica_of=source, options=["--replicate-ignore-table=d.t"])
    with reader(source, filtering) as made, pytest.raises(SourceUnavailableError, match=r"leaves out .*d\.t"):
        ids(made)


def test_a_replica_that_goes_away_in_a_chunk(mysql_factory: Callable[..., MySQLServer]) -> None:
    source = mysql_factory()
    prepare(source)
    source.execute(
        "INSERT INTO d.t WITH RECURSIVE n AS (SELECT 100 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
        " SELECT i, REPEAT('x', 100) FROM n"
    )
    for _ in range(7):
        source.execute("INSERT INTO d.t SELECT id + (SELECT MAX(id) FROM d.t AS u), v FROM d.t WHERE id >= 100")
    going = mysql_factory(replica_of=source)
    going.wait_for_source()
    with reader(source, going) as made:
        chunk = made.read(Part(0), None, 10**6, size=10**9)
        next(chunk.batches)
        going.kill()
        with pytest.raises(SourceUnavailableError):
            for _ in chunk.batches:
                pass
        with pytest.raises(SourceUnavailableError):
            ids(made)
        going.start()
        assert len(ids(made, 10**6)) == source.execute("SELECT COUNT(*) FROM d.t")[0][0]


def test_what_is_owned_is_parsed(mysql_pair: tuple[MySQLServer, MySQLServer]) -> None:
    """The server writes nothing between a thread's number and the next uuid."""
    source, _ = mysql_pair
    wanted = [
        "12345678-aaaa-aaaa-aaaa-aaaaaaaaaaaa:3",
        "12345678-aaaa-aaaa-aaaa-aaaaaaaaaaaa:1",
        "22222222-aaaa-aaaa-aaaa-aaaaaaaaaaaa:tag:7",
    ]
    open_ones = []
    for gtid in wanted:
        connection = source.root()
        open_ones.append(connection)
        with connection.cursor() as cursor:
            cursor.execute("SET gtid_next = %s", (gtid,))
            cursor.execute("BEGIN")
    connection = connect(config(source).source, purpose="test")
    shown = Server(connection).shown()
    assert all(Gtid.parse(gtid) in shown for gtid in wanted)
    assert shown.contains(GtidSet.parse(source.executed))
    for other in (connection, *open_ones):
        other.close()


def test_lag_of_a_replica_pauses_reading(pair: tuple[SqlServer, SqlServer], caplog: pytest.LogCaptureFixture) -> None:
    """A replica that is stopped counts as behind."""
    source, replica_server = pair
    caplog.set_level("INFO", "lakesync")
    settings = config(
        source,
        throttle={"replica_lag": "5s", "every": "100ms", "replicas": [{"url": replica_server.url()}]},
    )
    made = throttle.Throttle(settings)
    try:
        made.before(1, 1)
        with stopped(replica_server):
            time.sleep(0.2)
            thread = threading.Thread(target=made.before, args=(1, 1))
            thread.start()
            time.sleep(0.7)
            assert "stands still" in made.reason
            assert thread.is_alive()
        thread.join(5)
        assert not thread.is_alive()
        assert made.reason == ""
    finally:
        made.close()
    assert "reading-pauses" in caplog.text
    assert "reading-goes-on" in caplog.text
