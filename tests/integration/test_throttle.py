"""The pace at which rows are read, measured on a server, and the pauses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from cdc.config import PipelineConfig
from cdc.names import TableName
from cdc.position import Position
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from cdc.source.server import Server
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from snapshot.chunks import Bound, Part, Walk
from snapshot.reader import Ended, Reader
from snapshot.throttle import Throttle

ROWS = 40_000
WIDTH = 200


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    """With `d.t`, 40,000 rows of about 200 bytes."""
    with MySQLServer() as made:
        made.execute("CREATE DATABASE d")
        made.execute("CREATE TABLE d.t (id INT PRIMARY KEY, v VARCHAR(300))")
        made.execute("INSERT INTO d.t VALUES (0, REPEAT('x', %s))", WIDTH)
        size = 1
        while size < ROWS:
            made.execute("INSERT INTO d.t SELECT id + %s, v FROM d.t WHERE id + %s < %s", size, size, ROWS)
            size *= 2
        yield made


def config(server: SqlServer, **snapshot: Any) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "p",
            "source": {"url": server.url()},
            "log": "sqlite:///none",
            "lake": "none",
            "state": "none",
            "snapshot": snapshot,
        }
    )


@contextmanager
def throttled(server: SqlServer, **snapshot: Any) -> Iterator[tuple[PipelineConfig, Throttle]]:
    settings = config(server, **snapshot)
    made = Throttle(settings)
    try:
        yield settings, made
    finally:
        made.close()


def _at(server: SqlServer) -> tuple[Walk, Position]:
    table = TableName("d", "t")
    connection = connect(config(server).source, purpose="test")
    try:
        return Walk(table, read_schema(connection, table)), Server(connection).position()
    finally:
        connection.close()


def read_for(
    server: SqlServer, settings: PipelineConfig, throttle: Throttle, seconds: float, readers: int = 1, rows: int = 10**6
) -> tuple[int, int, float]:
    """Rows and bytes that readers take, over and over, in this time; and the time of the longest chunk."""
    walk, position = _at(server)
    counts: list[tuple[int, int]] = []
    longest = [0.0]
    end = time.monotonic() + seconds
    stop = threading.Event()

    def work() -> None:
        with Reader(settings, walk, position, stop, throttle) as reader:
            after: Bound | None = None
            while time.monotonic() < end:
                chunk, began = reader.read(Part(0), after, rows), 0.0
                for _ in chunk.batches:
                    began = began or time.monotonic()
                if time.monotonic() < end:
                    counts.append((chunk.rows, chunk.size))
                longest[0] = max(longest[0], time.monotonic() - began if began else 0)
                after = None if chunk.done else chunk.last

    def ended() -> None:
        try:
            work()
        except Ended:
            return

    threads = [threading.Thread(target=ended) for _ in range(readers)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(n for n, _ in counts), sum(size for _, size in counts), longest[0]


@pytest.mark.parametrize("readers", [1, 3])
def test_rows_a_second(server: MySQLServer, readers: int) -> None:
    with throttled(server, rows_per_second=4000) as (settings, throttle):
        rows, _, _ = read_for(server, settings, throttle, 8, readers)
    assert 0.8 * 4000 <= rows / 8 <= 1.2 * 4000


def test_bytes_a_second(server: MySQLServer) -> None:
    with throttled(server, bytes_per_second="1MiB") as (settings, throttle):
        _, size, _ = read_for(server, settings, throttle, 8, 2)
    assert 0.8 * 2**20 <= size / 8 <= 1.2 * 2**20


def test_without_limits_nothing_is_slower(server: MySQLServer) -> None:
    with throttled(server) as (settings, throttle):
        rows, _, _ = read_for(server, settings, throttle, 2)
        assert rows / 2 > 50_000
        assert throttle.limit(10**6, 100) == 10**6


def test_chunks_are_cut_to_about_a_second_of_the_limits(server: MySQLServer) -> None:
    with throttled(server, rows_per_second=1000, bytes_per_second="1MiB") as (_, throttle):
        assert throttle.limit(10**6, 10) == 1000
        assert throttle.limit(10, 10) == 10
        assert throttle.limit(10**6, 2**17) == 8
        assert throttle.limit(10**6, 2**30) == 1


def test_no_statement_is_open_in_a_pause(server: MySQLServer) -> None:
    """And no transaction: what a reader leaves behind between two chunks is an idle connection."""
    walk, position = _at(server)
    with throttled(server, rows_per_second=100) as (settings, throttle):
        stop = threading.Event()
        with Reader(settings, walk, position, stop, throttle) as reader:
            for _ in reader.read(Part(0), None, 10**6).batches:
                pass

            def more() -> None:
                with suppress(Ended):
                    while True:
                        list(reader.read(Part(0), None, 10**6).batches)

            throttle.took(10_000, 0)
            thread = threading.Thread(target=more)
            thread.start()
            time.sleep(0.5)
            assert "rows_per_second" in throttle.reason
            assert server.execute("SELECT COUNT(*) FROM information_schema.INNODB_TRX") == [(0,)]
            assert server.execute(
                "SELECT COUNT(*) FROM performance_schema.metadata_locks WHERE OBJECT_SCHEMA = 'd'"
            ) == [(0,)]
            commands = server.execute(
                "SELECT COMMAND FROM information_schema.PROCESSLIST WHERE INFO IS NULL OR INFO NOT LIKE '%%PROCESSLIST%%'"
            )
            assert ("Execute",) not in commands
            assert ("Query",) not in commands
            began = time.monotonic()
            stop.set()
            thread.join()
            assert time.monotonic() - began < 1


@contextmanager
def busy(server: SqlServer, threads: int) -> Iterator[None]:
    """So many threads of others run at the server."""
    connections: list[Any] = [server.root() for _ in range(threads)]
    ids = [connection.thread_id() for connection in connections]

    def sleep(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(60)")

    running = [threading.Thread(target=sleep, args=(connection,)) for connection in connections]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for number in ids:
            server.execute(f"KILL QUERY {number}")
        for thread in running:
            thread.join()
        for connection in connections:
            connection.close()


def test_reading_pauses_while_threads_run(server: MySQLServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lakesync")
    with throttled(server, throttle={"threads_running": 8, "every": "100ms"}) as (settings, throttle):
        assert read_for(server, settings, throttle, 1)[0] > 0
        with busy(server, 12):
            time.sleep(0.3)
            rows, _, _ = read_for(server, settings, throttle, 2)
            assert rows == 0
        assert caplog.text.count("reading-pauses") == 1
        assert caplog.text.count("reading-goes-on") == 1
        assert "more than 8" in caplog.text
        time.sleep(0.3)
        assert read_for(server, settings, throttle, 1)[0] > 0


def test_the_readers_own_threads_are_not_counted(server: MySQLServer) -> None:
    """Four readers at a limit of one: they never wait for one another."""
    with throttled(server, throttle={"threads_running": 1, "every": "50ms"}) as (settings, throttle):
        waited: list[str] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.01):
                if reason := throttle.reason:
                    waited.append(reason)

        thread = threading.Thread(target=look)
        thread.start()
        rows, _, _ = read_for(server, settings, throttle, 3, 4)
        over.set()
        thread.join()
        assert rows > 0
        assert len(waited) < 40, waited[:3]


def test_a_sign_that_cannot_be_read_is_said_once(server: MySQLServer, caplog: pytest.LogCaptureFixture) -> None:
    """A replica that nobody answers at, and one that may not be asked, are no reason to wait for ever."""
    caplog.set_level("INFO", "lakesync")
    gone = "mysql://root@127.0.0.1:1"
    server.add_user("nobody", "")
    settings = {
        "replica_lag": "1s",
        "every": "10ms",
        "replicas": [{"url": gone}, {"url": server.url()}, {"url": server.url("nobody")}],
    }
    with throttled(server, throttle=settings) as (_, throttle):
        for _ in range(5):
            throttle.before(1, 1)
            throttle.took(1, 1)
            time.sleep(0.03)
        assert throttle.reason == ""
    assert caplog.text.count("sign-unreadable") == 2
    assert caplog.text.count("lag-unknown") == 1


def test_statements_that_are_ended_by_others_become_shorter(server: MySQLServer) -> None:
    with throttled(server) as (_, throttle):
        throttle.before(10**6, 1)
        throttle.interrupted(500_000, 20.0)
        assert throttle.limit(10**6, 10) == 250_000
        throttle.interrupted(250_000, 10.0)
        assert throttle.limit(10**6, 10) == 125_000
