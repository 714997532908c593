"""What a reader asks of the server, and what it does when the server, or somebody else, gets in its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from cdc import faults
from cdc.config import PipelineConfig
from cdc.errors import ConfigError, SourceError, SourceUnavailableError, TableStoppedError
from cdc.names import TableName
from cdc.position import Gtid, Position
from cdc.source import results
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from cdc.source.server import Server
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from snapshot import reader as module
from snapshot.chunks import Part, Walk
from snapshot.reader import Ended, Reader, check_where
from snapshot.throttle import Throttle

ROWS = 20_000


@pytest.fixture(params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> SqlServer:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def table(server: SqlServer, request: pytest.FixtureRequest) -> TableName:
    """20,000 rows of about 1 kB."""
    name = request.getfixturevalue("schema" if isinstance(server, MySQLServer) else "mariadb_schema")
    return make(server, TableName(name, "t"))


def make(server: SqlServer, table: TableName, rows: int = ROWS) -> TableName:
    server.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, v VARCHAR(1000))")
    server.execute(f"INSERT INTO {table.quoted} VALUES (0, REPEAT('x', 1000))")
    size = 1
    while size < rows:
        server.execute(
            f"INSERT INTO {table.quoted} SELECT id + %s, v FROM {table.quoted} WHERE id + %s < %s", size, size, rows
        )
        size *= 2
    return table


def config(server: SqlServer, user: str = "root", password: str = "", **snapshot: Any) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "p",
            "source": {"url": server.url(user), **({"password": password} if password else {})},
            "log": "sqlite:///none",
            "lake": "none",
            "state": "none",
            "snapshot": snapshot,
        }
    )


def position(server: SqlServer) -> Position:
    with closing(connect(config(server).source, purpose="test")) as connection:
        asked = Server(connection)
        return replace(asked.position(), end=asked.binlog_end())


@contextmanager
def reading(
    server: SqlServer, table: TableName, stop: threading.Event | None = None, **arguments: Any
) -> Iterator[Reader]:
    with closing(connect(config(server).source, purpose="test")) as connection:
        walk = Walk(table, read_schema(connection, table))
    settings = arguments.pop("settings", None) or config(server)
    with Reader(settings, walk, position(server), stop or threading.Event(), **arguments) as reader:
        yield reader


def count(reader: Reader, limit: int = 10**6, **arguments: Any) -> int:
    return sum(batch.num_rows for batch in reader.read(Part(0), None, limit, **arguments).batches)


def ours(server: SqlServer) -> list[tuple[Any, ...]]:
    """Connections of lakesync that run a SELECT of rows now."""
    return server.execute(
        "SELECT id FROM information_schema.processlist WHERE command IN ('Execute', 'Query') AND info LIKE '%%FORCE INDEX%%'"
        " AND info NOT LIKE '%%processlist%%'"
    )


# no locks


def test_it_takes_no_lock_and_opens_no_transaction(mysql: MySQLServer, schema: str) -> None:
    """Looked at in mid-read: a consistent view of its own, a metadata lock that only a DDL waits for, nothing else."""
    table = make(mysql, TableName(schema, "t"))
    mysql.execute("SET GLOBAL general_log = ON, GLOBAL log_output = 'TABLE'")
    try:
        with reading(mysql, table) as reader:
            chunk = reader.read(Part(0), None, 10**6)
            next(chunk.batches)
            locks = mysql.execute("SELECT COUNT(*) FROM performance_schema.data_locks WHERE OBJECT_SCHEMA = %s", schema)
            kinds = mysql.execute(
                "SELECT DISTINCT LOCK_TYPE, LOCK_DURATION FROM performance_schema.metadata_locks WHERE OBJECT_SCHEMA = %s"
                " AND OBJECT_TYPE = 'TABLE'",
                schema,
            )
            assert locks == [(0,)]
            assert kinds in ([("SHARED_READ", "TRANSACTION")], [])
            mysql.execute(f"UPDATE {table.quoted} SET v = 'y' WHERE id < 100")
            for _ in chunk.batches:
                pass
            assert mysql.execute("SELECT COUNT(*) FROM information_schema.INNODB_TRX") == [(0,)]
        said = [
            bytes(text).decode(errors="replace").upper()
            for (text,) in mysql.execute(
                "SELECT argument FROM mysql.general_log WHERE argument LIKE '%%FORCE INDEX%%' OR argument LIKE '%%LOCK%%'"
            )
        ]
        said = [text for text in said if "GENERAL_LOG" not in text and "PERFORMANCE_SCHEMA" not in text]
        assert any("FORCE INDEX" in text for text in said), "nothing was looked at"
        for text in said:
            assert not text.startswith(("LOCK", "FLUSH"))
            assert "LOCK IN SHARE MODE" not in text
            assert "FOR UPDATE" not in text
            assert "FOR SHARE" not in text
    finally:
        mysql.execute("SET GLOBAL general_log = OFF, GLOBAL log_output = 'FILE'")


def test_an_alter_waits_for_one_chunk_at_most(mysql: MySQLServer, schema: str) -> None:
    table = make(mysql, TableName(schema, "t"))
    done: list[float] = []

    def alter() -> None:
        mysql.execute(f"ALTER TABLE {table.quoted} ADD COLUMN w INT")
        done.append(time.monotonic())

    with reading(mysql, table) as reader:
        chunk = reader.read(Part(0), None, 1000)
        first = next(chunk.batches)
        assert first.num_rows == 1000
        thread = threading.Thread(target=alter)
        thread.start()
        # All rows of a small chunk are on their way at once; the statement ends, whoever takes them.
        thread.join(10)
        assert done, "it waits for whoever takes the rows"
        with pytest.raises(TableStoppedError, match="column w"):
            list(chunk.batches)


# cut by size


@pytest.mark.parametrize("after", [0, 5000])
def test_a_chunk_is_cut_by_its_size(server: SqlServer, table: TableName, after: int) -> None:
    size = 2**20
    with reading(server, table) as reader:
        seen: list[int | None] = []
        bound: Any = (after,)
        sizes = []
        while True:
            chunk = reader.read(Part(0), bound, 10**6, size=size)
            for batch in chunk.batches:
                seen += batch.column("id").to_pylist()
            sizes.append(chunk.size)
            bound = chunk.last or bound
            if chunk.done:
                break
        assert seen == list(range(after + 1, ROWS))
        assert max(sizes) < 2 * size
        assert sorted(sizes)[len(sizes) // 2] > size // 2, "most of them have about the size"


def test_what_follows_a_cut_is_not_read(server: SqlServer, table: TableName, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows are narrow, the others wide: the rest of the result is abandoned, at the server too."""
    server.execute(f"UPDATE {table.quoted} SET v = '' WHERE id < 4000")
    server.execute(f"ALTER TABLE {table.quoted} MODIFY v LONGTEXT")
    server.execute(f"UPDATE {table.quoted} SET v = REPEAT('x', 20000) WHERE id >= 4000")
    with reading(server, table) as reader:
        assert count(reader, 2000, size=2**20) <= 2000
        connection = reader.connection()
        began = time.monotonic()
        chunk = reader.read(Part(0), (3900,), 10**6, size=2**20)
        rows = sum(batch.num_rows for batch in chunk.batches)
        assert not chunk.done
        assert 100 < rows < 2000
        assert chunk.size < 8 * 2**20
        assert time.monotonic() - began < 3
        assert reader.connection() is not connection
        assert wait_until(lambda: not ours(server))
        # … and what comes next begins where it was cut, by the width that is known now.
        connection = reader.connection()
        following = reader.read(Part(0), chunk.last, 10**6, size=2**20)
        first = next(following.batches)
        assert (first.column("id")[0].as_py(),) == (chunk.last[0] + 1,)  # type: ignore[index,operator]
        list(following.batches)
        assert reader.connection() is connection, "it was not cut again"


def wait_until(reached: Callable[[], bool], timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_statement_that_is_given_up_ends_at_the_server(server: SqlServer, table: TableName) -> None:
    """It finds few rows, so it would not notice for long that nobody listens."""
    server.execute(f"INSERT INTO {table.quoted} VALUES (-1, REPEAT('y', 1000))")
    stop = threading.Event()
    ended: list[float] = []
    with reading(server, table, stop) as reader:
        chunk = reader.read(Part(0), None, 10**6, where="id < 0 OR SLEEP(0.01) = 1")

        def take() -> None:
            with pytest.raises(Ended):
                list(chunk.batches)
            ended.append(time.monotonic())

        thread = threading.Thread(target=take)
        thread.start()
        assert wait_until(lambda: bool(ours(server)))
        began = time.monotonic()
        stop.set()
        thread.join(20)
        assert ended[0] - began < 3
        assert wait_until(lambda: not ours(server)), "it runs on"


# keys


def test_points_return_what_is_equal_by_collation(
    mysql: MySQLServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = TableName(schema, "c")
    mysql.execute(
        f"CREATE TABLE {table.quoted} (k VARCHAR(20) COLLATE utf8mb4_0900_ai_ci, n INT, v INT, PRIMARY KEY (k, n))"
    )
    mysql.execute(f"INSERT INTO {table.quoted} VALUES ('é', 1, 10), ('b', 1, 20), ('c', 2, 30)")
    keys = pa.table({"k": ["E", "b", "c", "none"], "n": pa.array([1, 1, 1, 1], pa.int32())})
    with reading(mysql, table) as reader:
        found = reader.points(keys)
        assert found.column_names == ["k", "n", "v"]
        assert sorted(found.to_pylist(), key=lambda row: row["v"]) == [
            {"k": "é", "n": 1, "v": 10},
            {"k": "b", "n": 1, "v": 20},
        ]
        assert reader.points(keys.slice(3)).num_rows == 0
        assert reader.points(keys.slice(0, 0)).schema.names == ["k", "n", "v"]


def test_points_are_asked_for_in_bounded_statements(
    server: SqlServer, table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = results.read

    def counting(connection: Any, statement: Any, plans: Any, **arguments: Any) -> Any:
        sql, _ = statement(False)
        asked.append(len(sql))
        return read(connection, statement, plans, **arguments)

    monkeypatch.setattr(results, "read", counting)
    keys = pa.table({"id": pa.array([*range(0, 6000, 2), *range(ROWS, ROWS + 500)], pa.int32())})
    with reading(server, table) as reader:
        found = reader.points(keys)
    assert sorted(int(n or 0) for n in found.column("id").to_pylist()) == list(range(0, 6000, 2))
    assert len(asked) == 7
    assert max(asked) < 100_000
    monkeypatch.setattr(module, "POINT_BYTES", 400)
    asked.clear()
    with reading(server, table) as reader:
        assert reader.points(keys.slice(0, 1000)).num_rows == 1000
    assert len(asked) >= 1000 * 4 / 400


# conditions


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("id >", "syntax"),
        ("nothing = 1", "nothing"),
        ("no_such_function(id) = 1", "function"),
        ("id = 1) OR (id", ""),
        ("COUNT(*) > 1", "aggregate"),
    ],
)
def test_a_condition_that_the_server_does_not_take(server: SqlServer, table: TableName, where: str, says: str) -> None:
    with closing(connect(config(server).source, purpose="test")) as connection:
        check_where(connection, table, "v LIKE '%x' -- a comment")
        if not says:
            check_where(connection, table, where)  # odd, and still a condition
            return
        with pytest.raises(ConfigError, match=says) as caught:
            check_where(connection, table, where)
        assert str(table) in caught.value.where


def test_only_rows_of_the_condition_are_read(server: SqlServer, table: TableName) -> None:
    with reading(server, table) as reader:
        assert count(reader, where="id % 10 = 3 AND v LIKE '%x%'") == ROWS // 10
        assert count(reader, where="id < 0") == 0


# what gets in its way


def test_a_killed_statement_can_be_tried_again(server: SqlServer, table: TableName) -> None:
    for what in ("KILL QUERY", "KILL"):
        with reading(server, table) as reader:
            chunk = reader.read(Part(0), None, 10**6, where="id < 3 OR SLEEP(0.001) = 0")
            failed: list[BaseException] = []

            def take(chunk: Any = chunk, failed: list[BaseException] = failed) -> None:
                try:
                    list(chunk.batches)
                except SourceError as error:
                    failed.append(error)

            thread = threading.Thread(target=take)
            thread.start()
            assert wait_until(lambda: bool(ours(server)))
            for (number,) in ours(server):
                server.execute(f"{what} {number}")
            thread.join(30)
            assert isinstance(failed[0], SourceUnavailableError)
            assert count(reader) == ROWS


def test_the_server_s_limits_for_statements_do_not_end_it(mysql_factory: Callable[..., MySQLServer]) -> None:
    """A slow consumer outlives max_execution_time, net_write_timeout and wait_timeout of the server."""
    server = mysql_factory(
        options=["--max-execution-time=500", "--net-write-timeout=1", "--wait-timeout=1", "--interactive-timeout=1"]
    )
    server.execute("CREATE DATABASE d")
    table = make(server, TableName("d", "t"), 60_000)
    _slowly(server, table)


def test_mariadb_s_limits_neither(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    server = mariadb_factory(
        options=["--net-write-timeout=1", "--wait-timeout=1", "--idle-readonly-transaction-timeout=1"]
    )
    server.execute("CREATE DATABASE d")
    table = make(server, TableName("d", "t"), 60_000)
    server.execute("SET GLOBAL max_statement_time = 0.5")
    _slowly(server, table)


def _slowly(server: SqlServer, table: TableName) -> None:
    with reading(server, table) as reader:
        chunk = reader.read(Part(0), None, 10**6)
        rows = 0
        for batch in chunk.batches:
            rows += batch.num_rows
            time.sleep(2.5 if rows < 20_000 else 0)
        assert rows == 60_000
        connection = reader.connection()
        reader.mark()
        time.sleep(2.5)
        reader.mark()
        assert count(reader) == 60_000
        assert reader.connection() is connection


def test_a_server_that_restarts_in_a_chunk(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE d")
    table = make(server, TableName("d", "t"), 60_000)
    with reading(server, table) as reader:
        reader.mark()
        chunk = reader.read(Part(0), None, 10**6)
        next(chunk.batches)
        server.stop()
        with pytest.raises(SourceUnavailableError):
            list(chunk.batches)
        with pytest.raises(SourceUnavailableError):
            count(reader)
        server.start()
        assert count(reader) == 60_000
        reader.mark()


def test_an_account_that_may_read_and_see_the_log_s_end_is_enough(
    server: SqlServer, table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = f"u{table.schema[2:10]}"
    monitor = "REPLICATION CLIENT" if isinstance(server, MySQLServer) else "BINLOG MONITOR"
    server.add_user(user, "p", f"SELECT ON {table.quoted}", f"{monitor} ON *.*")
    monkeypatch.setenv("READER", "p")
    settings = config(server, user, "env:READER")
    throttle = Throttle(settings)
    with reading(server, table, settings=settings, throttle=throttle) as reader:
        chunk = reader.read(Part(0), None, 10**6, size=2**20)
        assert sum(batch.num_rows for batch in chunk.batches) > 0
        assert count(reader) == ROWS
        assert reader.mark()[0] == position(server).end
        reader.wait(position(server))
    throttle.close()
    server.execute(f"DROP USER '{user}'@'%'")


def test_a_later_position_is_waited_for(
    mysql_factory: Callable[..., MySQLServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the binary log and not visible: semi-synchronous, without a replica."""
    server = mysql_factory(options=["--plugin-load-add=semisync_source.so", "--rpl-semi-sync-source-timeout=3000"])
    server.execute("CREATE DATABASE d")
    table = make(server, TableName("d", "t"), 10)
    for mutant, wanted in (("", 11), ("window_no_wait", 11)):
        monkeypatch.setattr(faults, "_mutants", frozenset({mutant} - {""}))
        with reading(server, table) as reader:
            seen = count(reader)
            server.execute("SET GLOBAL rpl_semi_sync_source_enabled = ON")
            here = position(server)
            thread = threading.Thread(
                target=server.execute, args=(f"INSERT INTO {table.quoted} VALUES ({100 + seen}, 'held')",)
            )
            thread.start()
            assert wait_until(lambda here=here: position(server).end > here.end)  # type: ignore[misc]
            (sid, parts), *_ = here.gtids.sids.items()
            reader.wait(replace(position(server), gtids=here.gtids.add(Gtid(sid, parts[-1][1] + 1))))
            assert (count(reader) == seen + 1) == (not mutant), wanted
            thread.join()
            server.execute("SET GLOBAL rpl_semi_sync_source_enabled = OFF")


def test_commits_that_become_visible_in_any_order(mysql_factory: Callable[..., MySQLServer]) -> None:
    """`binlog_order_commits=OFF`: what is waited for is the set, not its end."""
    server = mysql_factory(options=["--binlog-order-commits=OFF"])
    server.execute("CREATE DATABASE d")
    table = make(server, TableName("d", "t"), 10)
    over, before = threading.Event(), len(position(server).gtids) - 10

    def write(first: int) -> None:
        with server.root() as connection, connection.cursor() as cursor:
            number = first
            while not over.is_set():
                cursor.execute(f"INSERT INTO {table.quoted} VALUES (%s, 'w')", (number,))
                number += 8

    writers = [threading.Thread(target=write, args=(1000 + n,)) for n in range(8)]
    for writer in writers:
        writer.start()
    try:
        with reading(server, table) as reader, closing(connect(config(server).source, purpose="test")) as other:
            for _ in range(100):
                # Written, and some of it neither visible nor counted: what a dump thread may have sent.
                sent = Server(other).shown()
                reader.wait(replace(position(server), gtids=sent))
                assert count(reader) >= len(sent) - before
    finally:
        over.set()
        for writer in writers:
            writer.join()
