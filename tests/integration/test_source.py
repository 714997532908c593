"""`cdc.source` against a real server: connections, what the server is, tables' columns, the binary log's stream."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdc.config import SourceConfig, TableConfig
from cdc.errors import (
    ConfigError,
    SourceError,
    SourceIdentityError,
    SourcePurgedError,
    SourceUnavailableError,
    TableStoppedError,
)
from cdc.names import TableName
from cdc.position import Gtid, GtidSet
from cdc.schema import Column, TableSchema
from cdc.source import catalogue
from cdc.source.connection import LIMITS, connect, translated
from cdc.source.dump import BinlogStream, server_id
from cdc.source.server import Server
from dev.mysql import MySQLServer
from dev.server import free_port
from tests.contract.binlog import events

SECRET = "pa§swörd-54321"
ROTATE, FORMAT_DESCRIPTION, XID, TABLE_MAP, HEARTBEAT, WRITE_ROWS = 4, 15, 16, 19, 27, 30
GTID, PREVIOUS_GTIDS, GTID_TAGGED = 33, 35, 42


def root(server: MySQLServer, **options: Any) -> SourceConfig:
    return SourceConfig(url=server.url(), **options)


@pytest.fixture
def account(mysql: MySQLServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SourceConfig]]:
    """Makes a user with these grants, and a source that logs in as it."""
    made: list[str] = []
    monkeypatch.setenv("TEST_SOURCE_PASSWORD", SECRET)

    def make(*grants: str, **options: Any) -> SourceConfig:
        name = f"u{random.randrange(10**9)}"
        with mysql.root() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (name, SECRET))
            for grant in grants:
                cursor.execute(f"GRANT {grant.replace('%', '%%')} TO %s@'%%'", (name,))
        made.append(name)
        return SourceConfig(
            url=f"mysql://{name}@127.0.0.1:{mysql.port}", password="env:TEST_SOURCE_PASSWORD", **options
        )

    yield make
    for name in made:
        mysql.execute("DROP USER %s@'%%'", name)


def one(source: SourceConfig, sql: str) -> Any:
    with closing(connect(source, purpose="test")) as connection, translated(connection), connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def one_id(connection: Any) -> int:
    return int(connection.thread_id())


# connections


def test_a_password_of_any_letters_lets_in_over_plain_tcp_on_loopback(account: Callable[..., SourceConfig]) -> None:
    source = account()
    for _ in range(2):  # the server asks for the whole password the first time only
        assert one(source, "SHOW SESSION STATUS LIKE 'Ssl_cipher'") == ("Ssl_cipher", "")


def test_a_wrong_password_is_refused_without_being_shown(
    account: Callable[..., SourceConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = account()
    monkeypatch.setenv("TEST_SOURCE_PASSWORD", "wrong-54321")
    with pytest.raises(SourceError) as error:
        connect(source, purpose="test")
    assert not error.value.retryable
    assert error.value.where == f"127.0.0.1:{source.port}"
    assert "source.password" in error.value.hint
    assert "54321" not in str(error.value)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    for url, word in (
        (f"mysql://u@127.0.0.1:{free_port()}", "nobody listens"),
        ("mysql://u@no-such-host.invalid", "not known"),
    ):
        with pytest.raises(SourceUnavailableError, match=word) as error:
            connect(SourceConfig(url=url, insecure=True, tls="disabled"), purpose="test")
        assert error.value.hint


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.source.connection.LIMITS", type(LIMITS)(connect=0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(SourceUnavailableError):
            connect(SourceConfig(url=f"mysql://u@127.0.0.1:{silent.getsockname()[1]}"), purpose="test")
        assert time.monotonic() - started < 5


def test_tls_verifies_the_authority_and_the_name(
    mysql: MySQLServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cipher = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"
    mysql.add_user("tls", "", "USAGE ON *.*")
    url = f"mysql://tls@127.0.0.1:{mysql.port}"
    assert one(SourceConfig(url=url, tls="verify-identity", tls_ca=mysql.ca), cipher)[1]
    with pytest.raises(SourceError, match="certificate was not accepted") as error:
        connect(SourceConfig(url=url, tls="verify-identity"), purpose="test")
    assert "tls_ca" in error.value.hint
    with pytest.raises(ConfigError, match="authority"):
        connect(SourceConfig(url=url, tls="verify-ca", tls_ca=tmp_path / "none.pem"), purpose="test")

    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **named: resolve("127.0.0.1" if host == "db.test" else host, *rest, **named),
    )
    other = f"mysql://tls@db.test:{mysql.port}"
    assert one(SourceConfig(url=other, tls="verify-ca", tls_ca=mysql.ca), cipher)[1]
    with pytest.raises(SourceError, match="certificate was not accepted"):
        connect(SourceConfig(url=other, tls_ca=mysql.ca), purpose="test")
    mysql.execute("DROP USER tls@'%'")


def test_tls_is_never_given_up_for_a_server_without_it(
    mysql_factory: Callable[..., MySQLServer],
) -> None:
    plain = mysql_factory(options=["--tls-version="])
    with pytest.raises(SourceError, match=r"SSL|TLS"):
        connect(root(plain, tls="verify-ca", tls_ca=plain.ca), purpose="test")


@contextmanager
def rogue(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that greets like MySQL, and answers what it is sent in turn with `answers`; its port, and what it was sent."""
    greeting = (
        b"\x0a8.4.0\0" + struct.pack("<I", 1) + b"12345678\0" + struct.pack("<H", 0xF7FF) + b"\xff\x02\0"
        + struct.pack("<H", 0xDFFF & ~0x0800 >> 16) + bytes([21]) + b"\0" * 10 + b"123456789012\0" + b"mysql_native_password\0"
    )  # fmt: skip
    received: list[bytes] = []

    def serve() -> None:
        with listener.accept()[0] as client:
            client.settimeout(10)
            client.sendall(struct.pack("<I", len(greeting))[:3] + b"\0" + greeting)
            for answer in answers:
                head = client.recv(4)
                if len(head) < 4:
                    return
                received.append(client.recv(int.from_bytes(head[:3], "little")))
                client.sendall(struct.pack("<I", len(answer))[:3] + bytes([head[3] + 1]) + answer)
            while data := client.recv(4096):
                received.append(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], received
        thread.join(10)


OK = b"\0\0\0\x02\0\0\0"


def test_a_rogue_server_that_asks_for_a_file_gets_none(tmp_path: Path) -> None:
    file = tmp_path / "private"
    file.write_text("the file's text")
    with rogue(OK, OK, b"\xfb" + str(file).encode()) as (port, received), pytest.raises(SourceError, match="LOCAL"):
        connect(SourceConfig(url=f"mysql://u@127.0.0.1:{port}"), purpose="test")
    assert b"sql_mode" in b"".join(received)
    assert b"the file's text" not in b"".join(received)


def test_a_rogue_server_that_asks_for_the_password_in_plain_text_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SOURCE_PASSWORD", "plain-54321")
    with rogue(b"\xfemysql_clear_password\0", OK) as (port, received):
        source = SourceConfig(url=f"mysql://u@127.0.0.1:{port}", password="env:TEST_SOURCE_PASSWORD")
        with pytest.raises(SourceError):
            connect(source, purpose="test")
    assert b"plain-54321" not in b"".join(received)


def test_what_is_no_mysql_server_is_named_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as client:
                client.sendall(b"\x20\0\0\0HTTP/1.1 400 Bad Request\r\n\r\n....")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SourceError):
            connect(SourceConfig(url=f"mysql://u@127.0.0.1:{listener.getsockname()[1]}"), purpose="test")
        thread.join(10)


def test_no_setting_of_the_server_changes_what_is_read(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory(
        options=[
            "--sql-mode=ANSI,PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES",
            "--default-time-zone=+05:00",
            "--transaction-isolation=READ-UNCOMMITTED",
            "--max-execution-time=50",
            "--character-set-server=latin1",
        ]
    )
    server.execute("SET GLOBAL sql_select_limit = 1")
    server.execute("SET GLOBAL show_gipk_in_create_table_and_information_schema = OFF")
    server.execute("CREATE DATABASE d")
    server.execute("CREATE TABLE d.t (a INT, c CHAR(4) CHARACTER SET ascii, t TIMESTAMP) /* */")
    server.execute("INSERT INTO d.t VALUES (1, 'a', '2024-01-01 05:00:00'), (2, 'b', '2024-01-01 05:00:00')")
    server.execute("SET GLOBAL sql_generate_invisible_primary_key = ON")
    server.execute("CREATE TABLE d.g (a INT)")
    with closing(connect(root(server), purpose="test")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT c, t FROM d.t ORDER BY a")
        assert [(c, str(t)) for c, t in cursor.fetchall()] == [
            ("a", "2024-01-01 00:00:00"),
            ("b", "2024-01-01 00:00:00"),
        ]
        cursor.execute("SELECT SLEEP(0.2), @@transaction_isolation, '\\''")
        assert cursor.fetchone() == (0, "REPEATABLE-READ", "'")
        assert catalogue.read_schema(connection, TableName("d", "g")).names == ("my_row_id", "a")
        with pytest.raises(SourceError), translated(connection):
            cursor.execute("INSERT INTO d.t (a) VALUES (3)")


def test_errors_never_hold_values(mysql: MySQLServer) -> None:
    with closing(connect(root(mysql), purpose="test")) as connection, connection.cursor() as cursor:
        with pytest.raises(SourceError) as error, translated(connection):
            cursor.execute("SELECT EXP(54321)")
        assert "54321" not in str(error.value)
        assert "1690" in error.value.what
        assert error.value.__suppress_context__


def test_a_killed_connection_is_unavailable(mysql: MySQLServer) -> None:
    connection = connect(root(mysql), purpose="test")
    mysql.execute("KILL %s", one_id(connection))
    with pytest.raises(SourceUnavailableError), translated(connection), connection.cursor() as cursor:
        cursor.execute("SELECT 1")


# the server


def test_what_the_server_is_and_how_far(mysql: MySQLServer, schema: str) -> None:
    with closing(connect(root(mysql), purpose="test")) as connection:
        server = Server(connection)
        identity = server.identity()
        assert identity.uuid == mysql.execute("SELECT @@server_uuid")[0][0]
        assert (identity.server_id, identity.is_mariadb) == (mysql.server_id, False)
        before, end = server.position(), server.binlog_end()
        mysql.execute(f"CREATE TABLE {schema}.t (a INT PRIMARY KEY)")
        after = server.position()
        assert before.end <= end < server.binlog_end()
        assert after.contains(before)
        assert not before.contains(after)
        assert str(after.gtids) == mysql.gtid_executed
        assert (after.server_uuid, after.last) == (identity.uuid, None)
        assert not server.purged()
        assert server.settings()["binlog_row_metadata"] == "FULL"


def test_waiting_for_what_is_executed(mysql: MySQLServer, schema: str) -> None:
    with closing(connect(root(mysql), purpose="test")) as connection:
        server = Server(connection)
        executed = server.executed()
        next_one = executed.add(Gtid(server.identity().uuid, max(b for i in executed.sids.values() for _, b in i) + 1))
        assert server.wait_executed(executed, 0)
        started = time.monotonic()
        assert not server.wait_executed(next_one, 0.5)
        assert 0.5 <= time.monotonic() - started < 5
        timer = threading.Timer(0.3, mysql.execute, (f"CREATE TABLE {schema}.t (a INT PRIMARY KEY)",))
        timer.start()
        assert server.wait_executed(next_one, 10)
        timer.join()
        many = GtidSet({f"{n:08x}-0000-0000-0000-000000000000": ((1, 5), (7, 9)) for n in range(3000)})
        assert not server.wait_executed(many, 0.2)


def test_missing_grants_are_named_with_the_statement_that_helps(
    account: Callable[..., SourceConfig], mysql: MySQLServer, schema: str
) -> None:
    mysql.execute(f"CREATE TABLE {schema}.t (a INT PRIMARY KEY)")
    source = account()
    with closing(connect(source, purpose="test")) as connection:
        with pytest.raises(SourceError) as error:
            Server(connection).binlog_end()
        assert "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.*" in error.value.hint
        assert not error.value.retryable
        with pytest.raises(SourceError, match="1142") as error, translated(connection), connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {schema}.t")
        assert "GRANT SELECT" in error.value.hint
        with pytest.raises(TableStoppedError) as stopped:
            catalogue.read_schema(connection, TableName(schema, "t"))
        assert "GRANT SELECT" in stopped.value.hint
    with pytest.raises(SourceError) as error, Events(BinlogStream(source, GtidSet({}), heartbeat_s=1)) as stream:
        next(stream)
    assert "GRANT REPLICATION SLAVE" in error.value.hint


# tables


def test_every_column_is_read_as_it_is(mysql: MySQLServer, schema: str) -> None:
    mysql.execute(
        f"""CREATE TABLE {schema}.t (
        a TINYINT(1), b SMALLINT UNSIGNED, c MEDIUMINT, d INTEGER ZEROFILL, e BIGINT UNSIGNED NOT NULL, f DECIMAL(20,5) UNSIGNED,
        g DOUBLE(10,2), h REAL, i CHAR(3), j VARCHAR(300) CHARACTER SET utf8mb3, k LONGTEXT CHARACTER SET ascii, l NCHAR(2),
        m BINARY(16), n VARBINARY(3), o TINYBLOB, p DATE, q DATETIME, r DATETIME(3), s TIMESTAMP(6) NULL,
        t ENUM('a','b''c','d\\\\e','x\\ny','r\\rs','nul\\0z','é','comma,x','') , u INT AS (c + 1) VIRTUAL, v INT AS (c + 2) STORED,
        w INT INVISIBLE, x JSON, y SET('x','y'), z TIME(2), aa YEAR, ab BIT(3), ac FLOAT, ad POINT, ae TEXT CHARACTER SET latin1, af BOOL,
        ag BIT, ah GEOMETRYCOLLECTION, ai VECTOR(5), aj SET('é','b') CHARACTER SET gbk, ak ENUM('x') CHARACTER SET binary, al FLOAT UNSIGNED,
        `ä ``x` INT, PRIMARY KEY (`ä ``x`, e), KEY ((c * 2))) CHARACTER SET utf8mb4"""
    )
    with closing(connect(root(mysql), purpose="test")) as connection:
        found = catalogue.read_schema(connection, TableName(schema, "t"))
    expected = (
        Column("a", "tinyint"),
        Column("b", "smallint", unsigned=True),
        Column("c", "mediumint"),
        Column("d", "int", unsigned=True),
        Column("e", "bigint", unsigned=True),
        Column("f", "decimal", unsigned=True, precision=20, scale=5),
        Column("g", "double"),
        Column("h", "double"),
        Column("i", "text", charset="utf8mb4"),
        Column("j", "text", charset="utf8mb3"),
        Column("k", "text", charset="ascii"),
        Column("l", "text", charset="utf8mb3"),
        Column("m", "binary", length=16),
        Column("n", "varbinary"),
        Column("o", "varbinary"),
        Column("p", "date"),
        Column("q", "datetime"),
        Column("r", "datetime", scale=3),
        Column("s", "timestamp", scale=6),
        Column(
            "t", "enum", charset="utf8mb4", members=("a", "b'c", "d\\e", "x\ny", "r\rs", "nul\0z", "é", "comma,x", "")
        ),
        Column("u", "int"),
        Column("v", "int"),
        Column("w", "int"),
        Column("x", "json"),
        Column("y", "set", charset="utf8mb4", members=("x", "y")),
        Column("z", "time", scale=2),
        Column("aa", "year"),
        Column("ab", "bit", length=3),
        Column("ac", "float"),
        Column("ad", "geometry"),
        Column("ae", "text", charset="latin1"),
        Column("af", "tinyint"),
        Column("ag", "bit", length=1),
        Column("ah", "geometry"),
        Column("ai", "vector"),
        Column("aj", "set", charset="gbk", members=("é", "b")),
        Column("ak", "enum", charset="binary", members=("x",)),
        Column("al", "float", unsigned=True),
        Column("ä `x", "int"),
    )
    assert found.columns == expected
    assert found.key == ("ä `x", "e")


def test_a_table_of_which_only_some_columns_may_be_read_is_not_taken_for_a_smaller_one(
    mysql: MySQLServer, schema: str, account: Callable[..., SourceConfig]
) -> None:
    mysql.execute(f"CREATE TABLE {schema}.t (a INT PRIMARY KEY, b INT)")
    source = account(f"SELECT (a) ON {schema}.t")
    with (
        closing(connect(source, purpose="test")) as connection,
        pytest.raises(TableStoppedError, match="all columns") as error,
    ):
        catalogue.read_schema(connection, TableName(schema, "t"))
    assert "GRANT SELECT" in error.value.hint


def test_members_beyond_the_basic_plane_are_compared_as_the_server_tells_them(mysql: MySQLServer, schema: str) -> None:
    mysql.execute(f"CREATE TABLE {schema}.t (a INT PRIMARY KEY, e ENUM('é','🐬?') CHARACTER SET utf8mb4)")
    with closing(connect(root(mysql), purpose="test")) as connection:
        found = catalogue.read_schema(connection, TableName(schema, "t"))
    real = Column("e", "enum", charset="utf8mb4", members=("é", "🐬?"))
    assert found == catalogue.as_catalogued(TableSchema((Column("a", "int"), real), ("a",)))


def test_a_table_that_does_not_exist_stops(mysql: MySQLServer) -> None:
    with (
        closing(connect(root(mysql), purpose="test")) as connection,
        pytest.raises(TableStoppedError, match=r"no\.such"),
    ):
        catalogue.read_schema(connection, TableName("no", "such"))


def test_a_table_that_is_dropped_while_it_is_looked_at_stops_and_nothing_else(
    mysql: MySQLServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mysql.execute(f"CREATE TABLE {schema}.t (a INT PRIMARY KEY)")
    look = catalogue.may_select

    def dropped(connection: Any, table: TableName) -> bool:
        mysql.execute(f"DROP TABLE {schema}.t")
        return look(connection, table)

    monkeypatch.setattr(catalogue, "may_select", dropped)
    with (
        closing(connect(root(mysql), purpose="test")) as connection,
        pytest.raises(TableStoppedError, match="does not exist"),
    ):
        catalogue.read_schema(connection, TableName(schema, "t"))


def test_patterns_and_names_choose_tables(mysql: MySQLServer, schema: str) -> None:
    for name in ("orders", "order_items", "_orders_gho", "_orders_del", "_orders_new", "a[b]"):
        mysql.execute(f"CREATE TABLE {schema}.`{name}` (a INT PRIMARY KEY)")
    mysql.execute(f"CREATE VIEW {schema}.order_view AS SELECT 1 AS a")

    def match(*names: str, **more: str) -> dict[str, str]:
        entries = [TableConfig(name=name.replace("S.", f"{schema}.")) for name in names]
        with closing(connect(root(mysql), purpose="test")) as connection:
            return {t.name: e.name.partition(".")[2] for t, e in catalogue.match(connection, entries).items()}

    assert match("S.order*", "S.orders") == {"orders": "orders", "order_items": "order*"}
    assert match("S.*") == {"orders": "*", "order_items": "*", "a[b]": "*"}
    assert match("S.order?") == {"orders": "order?"}
    assert match("S.a[b*") == {"a[b]": "a[b*"}
    assert match("S._orders_gho") == {"_orders_gho": "_orders_gho"}
    assert match("S.x*", "mysq?.*", "*.user") == {}
    with pytest.raises(ConfigError, match="order_itms") as error:
        match("S.order_itms")
    assert "order_items" in error.value.hint
    with pytest.raises(ConfigError, match="view"):
        match("S.order_view")


def test_cascades_and_estimates(mysql: MySQLServer, schema: str) -> None:
    parent, child = TableName(schema, "parent"), TableName(schema, "child")
    mysql.execute(f"CREATE TABLE {parent.quoted} (a INT PRIMARY KEY)")
    mysql.execute(
        f"CREATE TABLE {child.quoted} (a INT PRIMARY KEY, b INT, c INT, CONSTRAINT k1 FOREIGN KEY (b) REFERENCES parent (a) ON DELETE CASCADE,"
        " CONSTRAINT k2 FOREIGN KEY (c) REFERENCES parent (a))"
    )
    mysql.execute(f"INSERT INTO {parent.quoted} VALUES (1), (2), (3)")
    with closing(connect(root(mysql), purpose="test")) as connection:
        assert catalogue.foreign_key_cascades(connection, [parent, child]) == {child: ("k1",)}
        assert catalogue.foreign_key_cascades(connection, [parent]) == {}
        assert catalogue.estimate_rows(connection, parent) == 3
        assert catalogue.estimate_rows(connection, TableName(schema, "none")) == 0


# the binary log's stream


def kinds(events: list[bytes]) -> list[int]:
    return [e[4] for e in events]


class Events:
    """A stream's events, told apart."""

    def __init__(self, stream: BinlogStream) -> None:
        self._stream = stream
        self._events = events(stream)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.__exit__(*exception)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        self._stream.close()

    @property
    def thread_id(self) -> int:
        return self._stream.thread_id


def take(stream: Iterator[bytes], until: Callable[[bytes], bool]) -> list[bytes]:
    found = []
    for event in stream:
        assert int.from_bytes(event[9:13], "little") == len(event)
        found.append(event)
        if until(event):
            return found
    raise AssertionError("the stream ended")


def is_kind(*wanted: int) -> Callable[[bytes], bool]:
    return lambda event: event[4] in wanted


def test_the_stream_gives_what_is_not_in_the_set(mysql: MySQLServer, schema: str) -> None:
    source = root(mysql)
    with closing(connect(source, purpose="test")) as connection:
        start = Server(connection).executed()
    mysql.execute(f"CREATE TABLE {schema}.t (a INT PRIMARY KEY, b LONGBLOB)")
    with Events(BinlogStream(source, start, heartbeat_s=5)) as stream:
        mysql.execute(f"INSERT INTO {schema}.t VALUES (1, 'x')")
        first = take(stream, is_kind(XID))
        mysql.execute(f"INSERT INTO {schema}.t VALUES (2, REPEAT('y', 40000000))")
        large = take(stream, is_kind(XID))
    seen = [k for k in kinds(first) if k != HEARTBEAT]
    assert seen[:3] == [ROTATE, FORMAT_DESCRIPTION, PREVIOUS_GTIDS]
    assert seen.count(GTID) == 2  # the table, the row
    assert kinds(large)[-2:] == [WRITE_ROWS, XID]
    assert len(large[-2]) > 40_000_000
    from cdc import _native

    for event in (*first[1:], *large):
        assert _native.crc32(event[:-4]) == int.from_bytes(event[-4:], "little")


def test_the_stream_from_nothing_begins_with_the_servers_first_transaction(
    mysql_factory: Callable[..., MySQLServer],
) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE a")
    server.execute("FLUSH BINARY LOGS")
    server.execute("CREATE DATABASE b")
    with Events(BinlogStream(root(server), GtidSet({}), heartbeat_s=1)) as stream:
        events = take(stream, is_kind(HEARTBEAT))
    numbers = [int.from_bytes(e[36:44], "little") for e in events if e[4] == GTID]
    assert numbers == list(range(1, len(GtidSet.parse(server.gtid_executed)) + 1))


def test_tagged_sets_are_understood_by_the_server(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    with server.root() as writer, writer.cursor() as cursor:
        for tag in ("one", "a_long_tag_of_thirty_two_letters", "one"):
            cursor.execute(f"SET gtid_next = 'AUTOMATIC:{tag}'")
            cursor.execute(f"CREATE DATABASE d{random.randrange(10**9)}")
    executed = GtidSet.parse(server.gtid_executed)
    assert any(":" in sid for sid in executed.sids)
    tagged = next(sid for sid in executed.sids if sid.endswith(":one"))
    less = executed.subtract(GtidSet({tagged: ((2, 2),)}))
    with Events(BinlogStream(root(server), executed, heartbeat_s=0.5)) as stream:
        assert not {GTID, GTID_TAGGED} & set(kinds(take(stream, is_kind(HEARTBEAT))))
    with Events(BinlogStream(root(server), less, heartbeat_s=0.5)) as stream:
        events = take(stream, is_kind(GTID_TAGGED))
        assert kinds(events).count(GTID) == 0


def test_a_purged_log_is_named_so(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE a")
    server.execute("FLUSH BINARY LOGS")
    server.execute("PURGE BINARY LOGS TO 'binlog.000002'")
    with (
        pytest.raises(SourcePurgedError) as error,
        Events(BinlogStream(root(server), GtidSet({}), heartbeat_s=1)) as stream,
    ):
        next(stream)
    assert "resync" in error.value.hint
    assert not error.value.retryable


def test_transactions_that_the_server_does_not_have_are_a_matter_of_identity(mysql: MySQLServer) -> None:
    ahead = GtidSet.parse(mysql.gtid_executed).add(Gtid(mysql.execute("SELECT @@server_uuid")[0][0], 10**9))
    with pytest.raises(SourceIdentityError) as error, Events(BinlogStream(root(mysql), ahead, heartbeat_s=1)) as stream:
        next(stream)
    assert "resync" in error.value.hint


def at_the_end(server: MySQLServer, **options: Any) -> Events:
    stream = Events(BinlogStream(root(server), GtidSet.parse(server.gtid_executed), **{"heartbeat_s": 0.3, **options}))
    take(stream, is_kind(HEARTBEAT))
    return stream


def test_heartbeats_come_as_asked_for(mysql: MySQLServer) -> None:
    with at_the_end(mysql, heartbeat_s=0.2) as stream:
        started = time.monotonic()
        assert {next(stream)[4] for _ in range(5)} == {HEARTBEAT}
        assert 0.5 < time.monotonic() - started < 5


def test_closing_from_another_thread_ends_the_wait(mysql: MySQLServer) -> None:
    with at_the_end(mysql, heartbeat_s=30) as stream:
        timer = threading.Timer(0.3, stream.close)
        timer.start()
        started = time.monotonic()
        assert {e[4] for e in stream} <= {HEARTBEAT}
        assert time.monotonic() - started < 5
        timer.join()
        assert list(stream) == []


def test_a_killed_dump_thread_is_unavailable(mysql: MySQLServer) -> None:
    with at_the_end(mysql) as stream:
        mysql.execute("KILL %s", stream.thread_id)
        with pytest.raises(SourceUnavailableError):
            take(stream, is_kind(XID))


def test_a_server_that_falls_silent_is_unavailable(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    with at_the_end(server) as stream:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(SourceUnavailableError, match="three heartbeats"):
                take(stream, is_kind(XID))
            assert 0.5 < time.monotonic() - started < 5
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_killed_server_is_unavailable(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    with at_the_end(server) as stream:
        server.kill()
        with pytest.raises(SourceUnavailableError):
            take(stream, is_kind(XID))


def test_a_second_stream_of_a_pipeline_ends_the_first(mysql: MySQLServer) -> None:
    own_id = server_id("the pipeline")
    assert own_id == server_id("the pipeline") != server_id("another")
    with at_the_end(mysql, own_id=own_id) as first, at_the_end(mysql, own_id=own_id) as second:
        with pytest.raises(SourceError):
            take(first, is_kind(XID))
        assert next(second)[4] == HEARTBEAT
        assert any(row[0] == own_id for row in mysql.execute("SHOW REPLICAS"))


def test_the_stream_goes_through_tls(mysql: MySQLServer, account: Callable[..., SourceConfig]) -> None:
    source = account("REPLICATION SLAVE ON *.*", tls="verify-identity", tls_ca=mysql.ca)
    stream = Events(BinlogStream(source, GtidSet.parse(mysql.gtid_executed), heartbeat_s=0.3))
    take(stream, is_kind(HEARTBEAT))
    threading.Timer(0.2, stream.close).start()
    assert {e[4] for e in stream} <= {HEARTBEAT}
    with stream:
        pass
