"""MariaDB as a source: its sessions, identity, positions, settings, grants and binary log."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymysql.constants import COMMAND

from cdc.config import PipelineConfig, SourceConfig, TableConfig
from cdc.errors import SourceError, SourceIdentityError, SourcePurgedError
from cdc.position import BinlogEnd, Gtid, GtidSet
from cdc.source import preflight
from cdc.source.connection import connect, is_mariadb, release, version_of
from cdc.source.dump import BinlogStream
from cdc.source.preflight import Finding
from cdc.source.server import Server
from dev.mariadb import MariaDBServer
from tests.contract.binlog import events


def source(server: MariaDBServer, user: str = "root") -> SourceConfig:
    return SourceConfig(url=server.url(user).replace("mysql://", "mariadb://"))


@pytest.fixture
def asked(mariadb: MariaDBServer) -> Iterator[Server]:
    with closing(connect(source(mariadb), purpose="test")) as connection:
        yield Server(connection)


def needs(server: MariaDBServer, *version: int) -> None:
    """Skip the test on an older server: one can be named by the environment."""
    if release(server.execute("SELECT VERSION()")[0][0]) < version:
        pytest.skip(f"MariaDB {version} or later")


def write(server: MariaDBServer, schema: str, rows: int = 1) -> None:
    server.execute(f"CREATE TABLE IF NOT EXISTS {schema}.t (id INT AUTO_INCREMENT PRIMARY KEY)")
    for _ in range(rows):
        server.execute(f"INSERT INTO {schema}.t VALUES ()")


def test_the_session_does_not_depend_on_the_servers_settings(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    own = mariadb_factory(
        options=[
            "--sql-mode=ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH",
            "--default-time-zone=+05:00",
            "--transaction-isolation=READ-COMMITTED",
            "--max-statement-time=7",
        ]
    )
    own.execute("SET GLOBAL sql_select_limit = 1")
    with closing(connect(source(own), purpose="test")) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT @@sql_mode, @@time_zone, @@tx_isolation, @@tx_read_only, @@max_statement_time, @@sql_select_limit"
        )
        assert list(cursor.fetchall()) == [("", "+00:00", "REPEATABLE-READ", 1, 0.0, 2**64 - 1)]
        assert is_mariadb(connection)
        assert release(version_of(connection)) >= (10, 6)


def test_who_it_is_and_how_far(asked: Server, mariadb: MariaDBServer, mariadb_schema: str) -> None:
    identity = asked.identity()
    assert identity.is_mariadb
    assert identity.uuid == f"mariadb-1-{mariadb.execute('SELECT @@server_uid')[0][0]}"
    before = asked.position()
    write(mariadb, mariadb_schema)
    after = asked.position()
    assert after.end == asked.binlog_end() > before.end
    assert after.contains(before)
    assert not before.contains(after)
    assert str(after.gtids) == mariadb.executed == str(asked.executed())
    assert (after.server_uuid, after.last) == (identity.uuid, None)
    assert str(asked.newest(after.gtids)) == mariadb.executed
    assert asked.newest(GtidSet({})) is None
    assert not asked.purged()
    assert asked.binlog_filters() == ""


def test_its_identity_outlives_a_crash_and_is_no_replicas(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    one = mariadb_factory()
    two = mariadb_factory(replica_of=one)

    def who(server: MariaDBServer) -> str:
        with closing(connect(source(server), purpose="test")) as connection:
            return Server(connection).identity().uuid

    before = who(one)
    assert who(two) != before
    one.kill()
    one.start()
    assert who(one) == before


def test_what_is_purged(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    own = mariadb_factory(options=["--loose-slave-connections-needed-for-purge=0"])
    own.execute("CREATE DATABASE shop")
    write(own, "shop", 3)
    with closing(connect(source(own), purpose="test")) as connection:
        server = Server(connection)
        gone = server.executed()
        own.execute("FLUSH BINARY LOGS")
        write(own, "shop")
        deadline = time.monotonic() + 20
        while server.purged() != gone and time.monotonic() < deadline:  # a file that a checkpoint needs stays a moment
            own.execute("PURGE BINARY LOGS TO 'binlog.000002'")
            time.sleep(0.1)
        assert server.purged() == gone
        assert server.executed().contains(gone)
        assert len(server.executed().subtract(server.purged())) == 1


def test_waiting_for_what_is_written_and_for_what_is_visible(
    asked: Server, mariadb: MariaDBServer, mariadb_schema: str
) -> None:
    write(mariadb, mariadb_schema)
    here = asked.position()
    ahead = replace(here, gtids=here.gtids.add(Gtid("0-1", len(here.gtids) + 1)), end=BinlogEnd(here.end.file, 10**9))
    assert asked.wait_executed(here.gtids, 0)
    assert asked.wait_visible(here, 0)
    assert asked.wait_visible(replace(here, server_uuid="another's place", end=ahead.end), 0)
    started = time.monotonic()
    assert not asked.wait_executed(ahead.gtids, 0.3)
    assert not asked.wait_visible(ahead, 0.3)
    assert 0.6 <= time.monotonic() - started < 5
    timer = threading.Timer(0.3, write, (mariadb, mariadb_schema))
    timer.start()
    assert asked.wait_visible(replace(ahead, server_uuid="another's place"), 10)
    assert asked.wait_executed(ahead.gtids, 10)
    timer.join()
    mariadb.execute("FLUSH BINARY LOGS")
    assert asked.wait_visible(asked.position(), 5), "the place moves with the files"


def test_what_is_in_the_log_is_not_always_visible(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    own = mariadb_factory(
        options=["--rpl-semi-sync-master-timeout=4000", "--rpl-semi-sync-master-wait-point=AFTER_SYNC"]
    )
    own.execute("CREATE DATABASE shop")
    write(own, "shop")
    own.execute("SET GLOBAL rpl_semi_sync_master_enabled = ON")
    with closing(connect(source(own), purpose="test")) as connection, _silent_replica(own):
        server = Server(connection)
        before = server.position()
        writer = threading.Thread(target=write, args=(own, "shop"))
        writer.start()
        assert server.wait_executed(before.gtids.add(Gtid("0-1", len(before.gtids) + 1)), 10)
        after = server.position()
        assert own.execute("SELECT COUNT(*) FROM shop.t") == [(1,)]
        assert server.wait_visible(before, 0)
        assert not server.wait_visible(after, 0.2)
        assert not server.wait_visible(replace(after, server_uuid="another's place"), 0.2)
        assert own.execute("SELECT COUNT(*) FROM shop.t") == [(1,)], "or the server answered too early for this test"
        assert server.wait_visible(after, 20)
        assert own.execute("SELECT COUNT(*) FROM shop.t") == [(2,)]
        writer.join()


@contextlib.contextmanager
def _silent_replica(server: MariaDBServer) -> Iterator[None]:
    """A semi-synchronous replica that never says what it has: commits wait for it, written and not visible."""
    connection: Any = server.root()
    with closing(connection), connection.cursor() as cursor:
        cursor.execute(
            "SET @mariadb_slave_capability = 4, @rpl_semi_sync_slave = 1, @master_binlog_checksum = 'CRC32',"
            " @slave_connect_state = %s",
            (server.executed,),
        )
        connection._execute_command(COMMAND.COM_BINLOG_DUMP, struct.pack("<IHI", 4, 0, 77))
        connection._read_packet()
        yield
        connection._force_close()


# preflight


def check(server: MariaDBServer, *tables: str) -> list[Finding]:
    config = PipelineConfig(name="p", source=source(server), log="sqlite:///none", lake="none", state=Path("none"))
    return preflight.check(config, [TableConfig(name=t) for t in tables])


def the_only(found: list[Finding], subject: str) -> Finding:
    (finding,) = (f for f in found if f.subject == subject)
    return finding


@pytest.fixture(scope="module")
def tuned() -> Iterator[MariaDBServer]:
    """A server whose settings tests may change, and put back."""
    with MariaDBServer() as server:
        server.execute("CREATE DATABASE shop")
        server.execute("CREATE TABLE shop.orders (id INT PRIMARY KEY, name VARCHAR(20), code UUID)")
        yield server


def test_a_server_and_a_table_that_can_be_followed(tuned: MariaDBServer) -> None:
    found = check(tuned, "shop.orders")
    assert not [f for f in found if f.level == "error"]
    assert the_only(found, "source").what.startswith("MariaDB ")
    assert the_only(found, "binary log").level == "ok"
    assert the_only(found, "shop.orders").what == "upsert, 3 columns, key (id), about 0 rows"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("binlog_format", "MIXED"),
        ("binlog_row_metadata", "NO_LOG"),
        ("gtid_strict_mode", "OFF"),
    ],
)
def test_a_setting_that_loses_changes_is_an_error_and_its_fix_repairs_it(
    tuned: MariaDBServer, setting: str, value: str
) -> None:
    ((good,),) = tuned.execute(f"SELECT @@global.{setting}")
    tuned.execute(f"SET GLOBAL {setting} = %s", value)
    try:
        finding = the_only(check(tuned), setting)
        assert finding.level == "error"
        tuned.execute(finding.fix.split(",")[0])
        assert tuned.execute(f"SELECT @@global.{setting}") == [(good,)]
        assert the_only(check(tuned), "binary log").level == "ok"
    finally:
        tuned.execute(f"SET GLOBAL {setting} = %s", good)


@pytest.mark.parametrize("value", ["MINIMAL", "NOBLOB"])
def test_rows_that_are_completed_are_a_warning(tuned: MariaDBServer, value: str) -> None:
    tuned.execute(f"SET GLOBAL binlog_row_image = {value}")
    try:
        assert the_only(check(tuned), "binlog_row_image").level == "warning"
        assert the_only(check(tuned), "binary log").level == "ok"
    finally:
        tuned.execute("SET GLOBAL binlog_row_image = FULL")


def test_an_after_image_without_repetitions_is_as_good(tuned: MariaDBServer) -> None:
    needs(tuned, 11, 4)
    tuned.execute("SET GLOBAL binlog_row_image = FULL_NODUP")
    try:
        assert the_only(check(tuned), "binary log").level == "ok"
    finally:
        tuned.execute("SET GLOBAL binlog_row_image = FULL")


def test_grants_under_mariadbs_names(tuned: MariaDBServer) -> None:
    tuned.add_user("reader", "x", "REPLICATION SLAVE ON *.*", "SELECT ON shop.*")
    config = PipelineConfig(
        name="p", source=source(tuned, "reader"), log="sqlite:///none", lake="none", state=Path("none")
    )
    tuned.execute("ALTER USER reader IDENTIFIED BY ''")
    finding = the_only(preflight.check(config, []), "grants")
    assert (finding.level, finding.what) == ("error", "reader@% lacks REPLICATION CLIENT")
    tuned.execute(finding.fix)
    assert the_only(preflight.check(config, []), "grants").level == "ok"
    tuned.execute("DROP USER reader")


def test_what_is_no_table_is_named(tuned: MariaDBServer) -> None:
    tuned.execute("CREATE SEQUENCE shop.numbers")
    tuned.execute("CREATE TABLE shop.past (id INT PRIMARY KEY) WITH SYSTEM VERSIONING")
    tuned.execute("CREATE TABLE shop.child (id INT PRIMARY KEY, o INT REFERENCES shop.orders (id) ON DELETE CASCADE)")
    found = check(tuned, "shop.numbers", "shop.past", "shop.child")
    assert the_only(found, "shop.numbers").what == "is a sequence"
    assert the_only(found, "shop.past").what.startswith("is system-versioned")
    cascade = next(f for f in found if f.subject == "shop.child" and f.level == "warning")
    assert "cascade" in cascade.what
    assert "MySQL" not in cascade.fix


def test_generated_columns_are_to_be_left_out(tuned: MariaDBServer) -> None:
    """MariaDB logs them with inserts alone."""
    tuned.execute(
        "CREATE TABLE shop.sums (id INT PRIMARY KEY, a INT, b INT AS (a + 1) STORED, c INT AS (a + 2) VIRTUAL)"
    )
    finding = the_only(check(tuned, "shop.sums"), "shop.sums")
    assert (finding.level, finding.fix) == ("error", "leave out what can be computed: `exclude: [b, c]`")
    entry = TableConfig(name="shop.sums", exclude=("b", "c"))
    config = PipelineConfig(name="p", source=source(tuned), log="sqlite:///none", lake="none", state=Path("none"))
    assert the_only(preflight.check(config, [entry]), "shop.sums").level == "ok"


def test_a_server_without_a_binary_log(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    own = mariadb_factory(options=["--skip-log-bin"])
    assert the_only(check(own), "log_bin").fix == "start the server with --log-bin"
    with (
        closing(connect(source(own), purpose="test")) as connection,
        pytest.raises(SourceError, match="no binary log"),
    ):
        Server(connection).binlog_end()


# the binary log's stream

GTID, HEARTBEAT, ANNOTATE = 162, 27, 160


def read(server: MariaDBServer, gtids: GtidSet, **more: Any) -> list[bytes]:
    """What the stream gives up to the log's end."""
    with BinlogStream(source(server), gtids, heartbeat_s=0.3, **more) as stream:
        found = []
        for event in events(stream):
            found.append(event)
            if event[4] == HEARTBEAT:
                return found
    raise AssertionError("the stream ended")


def gtids_of(found: list[bytes]) -> list[str]:
    return [
        "{1}-{2}-{0}".format(*struct.unpack_from("<QI", event, 19), struct.unpack_from("<I", event, 5)[0])
        for event in found
        if event[4] == GTID
    ]


@pytest.fixture(scope="module")
def several() -> Iterator[MariaDBServer]:
    """Transactions 0-1-1, 0-1-2 (file 1), 0-1-20, 0-7-21, 0-1-22, 3-1-1, 3-1-2 (file 2), with holes, servers and domains."""
    with MariaDBServer() as server:
        server.execute("CREATE DATABASE shop")
        server.execute("CREATE TABLE shop.t (id INT AUTO_INCREMENT PRIMARY KEY, v LONGBLOB)")
        server.execute("FLUSH BINARY LOGS")
        with server.root("shop") as writer, writer.cursor() as cursor:
            for settings in (
                "gtid_seq_no = 20",
                "server_id = 7",
                "server_id = 1",
                "gtid_domain_id = 3",
                "gtid_domain_id = 3",
            ):
                cursor.execute(f"SET {settings}")
                cursor.execute("INSERT INTO t (v) VALUES ('x')")
        assert GtidSet.parse(server.executed) == GtidSet.parse("0-1-22,3-1-2")
        yield server


def test_the_stream_begins_behind_what_was_read(several: MariaDBServer) -> None:
    for position, rest in {
        "": ["0-1-1", "0-1-2", "0-1-20", "0-7-21", "0-1-22", "3-1-1", "3-1-2"],
        "0-1-1": ["0-1-2", "0-1-20", "0-7-21", "0-1-22", "3-1-1", "3-1-2"],
        "0-1-20": ["0-7-21", "0-1-22", "3-1-1", "3-1-2"],
        "0-7-21,3-1-1": ["0-1-22", "3-1-2"],
        "0-1-22,3-1-2": [],
    }.items():
        found = read(several, GtidSet.parse(position))
        assert gtids_of(found) == rest, position
        for event in found[1:]:
            assert zlib.crc32(event[:-4]) == int.from_bytes(event[-4:], "little")


def test_the_stream_over_tls(several: MariaDBServer) -> None:
    secure = SourceConfig(url=several.url(), tls="verify-identity", tls_ca=several.ca)
    with BinlogStream(secure, GtidSet({}), heartbeat_s=0.3) as stream:
        found = []
        for event in events(stream):
            found.append(event)
            if event[4] == HEARTBEAT:
                break
    assert len(gtids_of(found)) == 7


@pytest.mark.parametrize("last", ["0-1-2", "0-1-20", "0-7-21", "0-1-22", "3-1-1", "3-1-2"])
def test_the_last_transaction_can_be_asked_for_again(several: MariaDBServer, last: str) -> None:
    """Whatever was before it: a hole in the numbers, another server's."""
    order = ["0-1-1", "0-1-2", "0-1-20", "0-7-21", "0-1-22", "3-1-1", "3-1-2"]
    gtid = Gtid.parse(last)
    position = GtidSet({}).followed_by(Gtid.parse(g) for g in order[: order.index(last) + 1])
    assert gtids_of(read(several, position.without(gtid)))[0] == last


def test_every_event_is_there_so_that_places_are_a_chain(several: MariaDBServer) -> None:
    found = read(several, GtidSet.parse("0-1-22,3-1-1"))
    assert ANNOTATE in [event[4] for event in found]


@pytest.mark.parametrize("position", ["0-1-23,3-1-2", "0-7-22", "0-9-3", "0-1-100"])
def test_transactions_that_the_server_does_not_have_are_a_matter_of_identity(
    several: MariaDBServer, position: str
) -> None:
    with pytest.raises(SourceIdentityError) as error:
        read(several, GtidSet.parse(position))
    assert "resync" in error.value.hint


def test_a_purged_log_is_named_so(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    own = mariadb_factory(options=["--loose-slave-connections-needed-for-purge=0"])
    own.execute("CREATE DATABASE shop")
    write(own, "shop", 2)
    own.execute("FLUSH BINARY LOGS")
    deadline = time.monotonic() + 20
    while len(own.execute("SHOW BINARY LOGS")) > 1 and time.monotonic() < deadline:
        own.execute("PURGE BINARY LOGS TO 'binlog.000002'")
        time.sleep(0.1)
    for position in ("", "0-1-2"):
        with pytest.raises(SourcePurgedError) as error:
            read(own, GtidSet.parse(position))
        assert "resync" in error.value.hint
    assert gtids_of(read(own, GtidSet.parse(own.executed))) == []


def test_a_missing_grant_and_a_second_stream(several: MariaDBServer) -> None:
    several.execute("CREATE USER nobody")
    with (
        pytest.raises(SourceError, match="may not read the binary log") as error,
        BinlogStream(source(several, "nobody"), GtidSet({}), heartbeat_s=1) as stream,
    ):
        next(events(stream))
    assert "REPLICATION SLAVE" in error.value.hint
    several.execute("DROP USER nobody")

    with BinlogStream(source(several), GtidSet({}), heartbeat_s=5, own_id=0x80000001) as first:
        one = events(first)
        next(one)
        assert gtids_of(read(several, GtidSet({}), own_id=0x80000001))
        with pytest.raises(SourceError) as error:
            for _ in one:
                pass
    assert "another stream took over" in error.value.what
