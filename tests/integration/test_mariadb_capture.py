"""Capture from MariaDB: positions by domain, identity without a server uuid, and what only MariaDB logs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymysql
import pytest

from cdc.capture import identity
from cdc.epoch import Op
from cdc.errors import SourceIdentityError, SourcePurgedError, UnsupportedEventError
from cdc.names import TableName
from cdc.position import GtidSet
from dev.mariadb import MariaDBServer
from dev.sqlserver import SqlServer
from tests.contract.binlog import run
from tests.integration.capturing import Rig, fold
from tests.integration.test_mariadb import needs
from tests.integration.windowing import Reading, cancelled, windows

T = TableName("s", "t")
Start = Callable[..., Rig]


@pytest.fixture
def start(tmp_path: Path, mariadb_factory: Callable[..., MariaDBServer]) -> Start:
    """A pipeline of `s.t` on a server of its own, started with these options."""

    def made(*options: str, **capture: str) -> Rig:
        server = mariadb_factory(options=["--loose-slave-connections-needed-for-purge=0", *options])
        run(server, "mysql", "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(20))")
        return Rig(tmp_path, server, "s.t", **capture)

    return made


def contents(server: SqlServer, table: TableName) -> dict[Any, tuple[Any, ...]]:
    return {row[0]: row for row in server.execute(f"SELECT * FROM {table.quoted}")}


def exactly_once(rig: Rig, table: TableName = T) -> None:
    """The log's changes are the table's, each once and in order."""
    rows = rig.rows(table)
    ids = [(gid, op) for gid, op, *_ in rows]
    assert len(set(ids)) == len(ids)
    seqs = [seq for _, op, _, seq, _ in rows if op != Op.MOVE_OUT]
    assert seqs == sorted(set(seqs))
    assert [ts for _, _, ts, _, _ in rows] == sorted(ts for _, _, ts, _, _ in rows)
    assert fold(rows) == contents(rig.server, table)


def added(rig: Rig, table: TableName = T) -> None:
    rig.until(lambda: rig.phase(table) == "added")


def stopped(rig: Rig, table: TableName = T) -> None:
    rig.until(lambda: rig.phase(table) == "stopped")


CHANGES = (
    "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    "UPDATE t SET id = 10, v = 'moved' WHERE id = 1",
    "BEGIN",
    "INSERT INTO t VALUES (4, 'd')",
    "SAVEPOINT x",
    "INSERT INTO t VALUES (5, 'undone')",
    "ROLLBACK TO x",
    "DELETE FROM t WHERE id = 2",
    "COMMIT",
    "INSERT INTO t SELECT id + 100, REPEAT('z', 20) FROM t",
    "REPLACE INTO t VALUES (4, 'again')",
    "INSERT INTO t VALUES (3, 'x') ON DUPLICATE KEY UPDATE v = 'upserted'",
)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--binlog-checksum=NONE",),
        ("--log-bin-compress=ON", "--log-bin-compress-min-len=10"),
        ("--loose-binlog-legacy-event-pos=ON",),
        ("--binlog-annotate-row-events=OFF",),
        ("--binlog-row-event-max-size=256",),
    ],
    ids=lambda options: " ".join(options) or "as it is",
)
def test_every_change_however_it_is_logged(start: Start, options: tuple[str, ...]) -> None:
    rig = start(*options)
    with rig.run():
        added(rig)
        run(rig.server, "s", *CHANGES)
        rig.caught_up()
    with rig.run():
        run(rig.server, "s", "UPDATE t SET v = CONCAT(v, '!')")
        end = rig.caught_up()
    exactly_once(rig)
    assert str(end.end.gtids) == rig.server.executed
    assert all(gid.startswith("0-1-") for gid, *_ in rig.rows(T))
    assert all(ts % 1000 == 0 for _, _, ts, _, _ in rig.rows(T))
    assert not rig.state.tables()[T].error


def test_an_after_image_without_repetitions(start: Start) -> None:
    rig = start()
    assert isinstance(rig.server, MariaDBServer)
    needs(rig.server, 11, 4)
    rig.server.execute("SET GLOBAL binlog_row_image = FULL_NODUP")
    with rig.run():
        added(rig)
        run(rig.server, "s", *CHANGES)
        rig.caught_up()
    exactly_once(rig)
    assert not rig.state.tables()[T].error


def test_an_encrypted_log_is_sent_in_the_clear(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"1;{'ab' * 32}\n")
    rig = start(
        "--plugin-load-add=file_key_management", f"--file-key-management-filename={keys}", "--encrypt-binlog=ON"
    )
    with rig.run():
        added(rig)
        run(rig.server, "s", *CHANGES, "FLUSH BINARY LOGS", "INSERT INTO t VALUES (77, 'x')")
        rig.caught_up()
    exactly_once(rig)


def test_domains_and_servers_and_holes(start: Start) -> None:
    rig = start()
    with rig.run():
        added(rig)
    # It is stopped and started behind each: whatever was last, it is found again.
    for number, setting in enumerate(
        (
            "gtid_seq_no = 100",
            "server_id = 7",
            "server_id = 1",
            "gtid_domain_id = 3",
            "gtid_domain_id = 3, server_id = 9",
            "gtid_domain_id = 0, gtid_seq_no = 1000",
        )
    ):
        run(rig.server, "s", f"SET SESSION {setting}", f"INSERT INTO t VALUES ({number}, 'a')")
        with rig.run():
            end = rig.caught_up()
        assert end.end.last is not None
        assert end.end.last.row_events == 1
    exactly_once(rig)
    assert end.end.gtids == GtidSet.parse("0-1-1000,3-9-2")


def test_numbers_that_do_not_grow_stop(start: Start) -> None:
    rig = start("--gtid-strict-mode=OFF")
    rig.server.execute(
        "SET GLOBAL gtid_strict_mode = ON"
    )  # what `lakesync check` asks for; a session of before may not have it
    with rig.run():
        added(rig)
        run(rig.server, "s", "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'a')")
        before = rig.caught_up()
    rig.server.execute("SET GLOBAL gtid_strict_mode = OFF")

    def write_and_wait(thread: threading.Thread) -> None:
        run(rig.server, "s", "SET SESSION gtid_seq_no = 2, server_id = 5", "INSERT INTO t VALUES (3, 'a')")
        thread.join(20)

    with pytest.raises(SourceIdentityError, match="must grow") as refused, rig.run() as thread:
        write_and_wait(thread)
    assert "gtid_strict_mode" in refused.value.hint
    newest = rig.log.newest()
    assert newest is not None
    assert newest.end.gtids == before.end.gtids


# identity


def test_a_server_that_was_reset_and_wrote_more_is_refused(start: Start) -> None:
    rig = start()
    with rig.run():
        added(rig)
        run(rig.server, "s", *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(5)))
        rig.caught_up()
    before = rig.log.newest()
    time.sleep(1.1)  # commit times are whole seconds
    rig.server.execute("RESET MASTER")
    run(rig.server, "s", *(f"INSERT INTO t VALUES ({n}, 'b')" for n in range(100, 120)))
    with pytest.raises(SourceIdentityError, match="not the one that was read") as refused, rig.run():
        time.sleep(1)
    assert "resync --all" in refused.value.hint
    assert rig.log.newest() == before
    rig.state.ask("resync", "s.t")
    with rig.run():
        rig.until(lambda: not rig.state.open_requests())
        run(rig.server, "s", "INSERT INTO t VALUES (1000, 'c')")
        rig.caught_up()
    assert rig.phase(T) == "added"
    assert rig.rows(T)[-1][4] == (1000, "c")


def test_a_server_that_was_reset_and_wrote_less_is_refused(start: Start) -> None:
    rig = start()
    with rig.run():
        added(rig)
        run(rig.server, "s", *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(5)))
        rig.caught_up()
    rig.server.execute("RESET MASTER")
    run(rig.server, "s", "INSERT INTO t VALUES (100, 'b')")
    with pytest.raises(SourceIdentityError, match=r"does not have transactions.*: 0-1-7"), rig.run():
        time.sleep(1)


def test_a_server_of_another_kind_is_refused(start: Start, mysql: SqlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = start()
    with rig.run():
        added(rig)
        run(rig.server, "s", "INSERT INTO t VALUES (1, 'a')")
        rig.caught_up()
    monkeypatch.setattr(identity, "EXECUTED_WITHIN_S", 0.5)
    rig.server = mysql
    rig.write("s.t")
    with pytest.raises(SourceIdentityError, match="does not have transactions"), rig.run():
        time.sleep(1)


@pytest.mark.parametrize("has_everything", [True, False])
def test_a_failover(
    start: Start,
    mariadb_factory: Callable[..., MariaDBServer],
    has_everything: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "EXECUTED_WITHIN_S", 0.5)
    rig = start()
    source = rig.server
    assert isinstance(source, MariaDBServer)
    replica = mariadb_factory(replica_of=source)
    with rig.run():
        added(rig)
        run(source, "s", "INSERT INTO t VALUES (1, 'a')", *["FLUSH BINARY LOGS"] * 3, "INSERT INTO t VALUES (2, 'b')")
        before = rig.caught_up()
        replica.wait_for_source()
        if not has_everything:
            replica.execute("STOP SLAVE")
            run(source, "s", "INSERT INTO t VALUES (3, 'lost')")
            rig.caught_up()
    replica.promote()
    rig.server = replica
    rig.write("s.t")
    time.sleep(1.1)
    run(replica, "s", "INSERT INTO t VALUES (4, 'd')", "INSERT INTO t VALUES (5, 'd')")
    if not has_everything:
        with pytest.raises(SourceIdentityError, match="not the one that was read"), rig.run():
            time.sleep(1)
        return
    with rig.run():
        after = rig.caught_up()
    exactly_once(rig)
    assert after.end.server_uuid != before.end.server_uuid
    assert set(after.end.gtids.sids) == {"0-2"}


def test_a_purged_log_is_refused_and_says_what_is_missing(start: Start) -> None:
    rig = start()
    with rig.run():
        added(rig)
        rig.caught_up()
    run(rig.server, "s", "INSERT INTO t VALUES (1, 'a')", "FLUSH BINARY LOGS")
    deadline = time.monotonic() + 20
    while len(rig.server.execute("SHOW BINARY LOGS")) > 1 and time.monotonic() < deadline:
        rig.server.execute("PURGE BINARY LOGS TO 'binlog.000002'")
        time.sleep(0.1)
    with pytest.raises(SourcePurgedError, match="0-1-3") as refused, rig.run():
        time.sleep(1)
    assert "resync --all" in refused.value.hint


def test_a_server_killed_and_restarted_is_gone_on_with(start: Start) -> None:
    rig = start()
    with rig.run():
        added(rig)
        run(rig.server, "s", *CHANGES)
        before = rig.caught_up()
    rig.server.kill()
    rig.server.start()
    with rig.run():
        run(rig.server, "s", "UPDATE t SET v = 'after'")
        after = rig.caught_up()
    exactly_once(rig)
    assert before.end.server_uuid == after.end.server_uuid


def killed_while_it_logs(server: MariaDBServer) -> bool:
    """Whether the server was killed with a part of a transaction in its binary log. It runs again then."""
    file = server.folder / "data" / str(server.execute("SHOW MASTER STATUS")[0][0])
    size = file.stat().st_size
    with server.root("s") as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for i in range(20):
            cursor.execute("INSERT INTO large VALUES (%s, REPEAT('x', 6000000))", (i,))

        def commit() -> None:
            with contextlib.suppress(pymysql.err.Error):
                cursor.execute("COMMIT")

        thread = threading.Thread(target=commit)
        thread.start()
        while thread.is_alive() and file.stat().st_size < size + 20_000_000:
            time.sleep(0.0005)
        server.kill()
        thread.join()
    server.start()
    return not server.execute("SELECT COUNT(*) FROM s.large")[0][0] and file.stat().st_size > size + 10_000_000


def test_killed_while_it_logs_a_transaction_a_server_is_gone_on_with(start: Start) -> None:
    rig = start()
    run(rig.server, "s", "CREATE TABLE large (id INT PRIMARY KEY, v LONGBLOB)")
    with rig.run():
        added(rig)
        run(rig.server, "s", "INSERT INTO t VALUES (1, 'before')")
        rig.caught_up()
    assert isinstance(rig.server, MariaDBServer)
    assert killed_while_it_logs(rig.server)
    with rig.run():
        run(rig.server, "s", "UPDATE t SET v = 'after'")
        rig.caught_up()
    exactly_once(rig)


# statements


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t ADD x INT",
        "ALTER TABLE IF EXISTS t WAIT 5 ADD x INT",
        "SET STATEMENT max_statement_time = 9 FOR ALTER TABLE t ADD x INT",
        "TRUNCATE TABLE t",
        "RENAME TABLE IF EXISTS t TO v",
        "CREATE OR REPLACE TABLE t AS SELECT 1 AS id",
        "DROP TABLE t",
        "SET SESSION binlog_alter_two_phase = ON; ALTER TABLE t ADD x INT, ALGORITHM = COPY",
        "SET SESSION binlog_format = STATEMENT; INSERT INTO t VALUES (99, 'x')",
    ],
)
def test_ddl_stops_its_table(start: Start, sql: str) -> None:
    rig = start()
    with rig.run():
        added(rig)
        run(rig.server, "s", "INSERT INTO t VALUES (1, 'a')")
        rig.caught_up()
        rows = rig.rows(T)
        run(rig.server, "s", *sql.split("; "))
        stopped(rig)
        rig.caught_up()
    assert rig.rows(T) == rows


def test_what_does_not_touch_the_table_goes_by(start: Start) -> None:
    rig = start()
    with rig.run():
        added(rig)
        run(
            rig.server,
            "s",
            "CREATE TABLE other AS SELECT 1 AS a UNION SELECT 2",
            "CREATE OR REPLACE TABLE other AS SELECT 3 AS a",
            "INSERT INTO t VALUES (1, 'a')",
            "SET SESSION binlog_alter_two_phase = ON",
            "ALTER TABLE other ADD x INT, ALGORITHM = COPY",
            "CREATE SEQUENCE numbers",
            "INSERT INTO t VALUES (NEXTVAL(numbers) + 1, 'b')",
            "CREATE TABLE plain (id INT PRIMARY KEY) ENGINE = MyISAM",
            "INSERT INTO plain VALUES (1)",
            "BEGIN",
            "INSERT INTO t VALUES (3, 'c')",
            "INSERT INTO plain VALUES (2)",
            "SAVEPOINT a",
            "INSERT INTO t VALUES (4, 'undone')",
            "INSERT INTO plain VALUES (3)",
            "ROLLBACK TO a",
            "COMMIT",
            "BEGIN",
            "INSERT INTO plain VALUES (4)",
            "INSERT INTO t VALUES (5, 'undone')",
            "ROLLBACK",
            "CREATE TEMPORARY TABLE tt (a INT)",
            "INSERT INTO tt VALUES (1)",
            "INSERT INTO t SELECT a + 50, 'from temporary' FROM tt",
            "DROP TEMPORARY TABLE tt",
            "OPTIMIZE TABLE t",
            "CREATE INDEX v ON t (v)",
            "DROP TABLE other, plain",
        )
        end = rig.caught_up()
    exactly_once(rig)
    assert rig.phase(T) == "added"
    assert str(end.end.gtids) == rig.server.executed


def test_xa_is_refused_by_name_until_it_is_skipped(start: Start) -> None:
    rig = start()
    with rig.run():
        added(rig)
        run(rig.server, "s", "INSERT INTO t VALUES (1, 'a')")
        rig.caught_up()
    run(
        rig.server,
        "s",
        "XA START 'x'",
        "INSERT INTO t VALUES (2, 'b')",
        "XA END 'x'",
        "XA PREPARE 'x'",
        "XA COMMIT 'x'",
        "INSERT INTO t VALUES (3, 'c')",
    )
    for _ in range(2):
        with pytest.raises(UnsupportedEventError, match="XA") as refused, rig.run():
            time.sleep(1)
        gtid = refused.value.where.split("(")[1].rstrip(")")
        assert f"lakesync skip {gtid}" in refused.value.hint
        rig.state.ask("skip", gtid)
    with rig.run():
        rig.caught_up()
    assert [cells[0] for *_, cells in rig.rows(T)] == [1, 3]


def test_a_large_transaction_in_parts(start: Start) -> None:
    rig = start(part_size="64KiB")
    run(rig.server, "s", "ALTER TABLE t MODIFY v VARCHAR(500)")
    with rig.run():
        added(rig)
    numbers = "SELECT seq, REPEAT('x', 300) FROM seq_1_to_2000"
    run(rig.server, "s", f"INSERT INTO t {numbers}", "UPDATE t SET v = 'small'", "INSERT INTO t VALUES (0, 'after')")
    inside = 0
    for number in (2, 4, 3):
        process = rig.process(f"kill:log.after-commit:{number}")
        assert process.wait(30) == -9
        assert process.stderr
        process.stderr.close()
        newest = rig.log.newest()
        inside += newest is not None and not newest.whole
    with rig.run():
        rig.caught_up()
    assert inside
    exactly_once(rig)


def test_windows_and_shards_are_as_on_mysql(tmp_path: Path, mariadb_factory: Callable[..., MariaDBServer]) -> None:
    server = mariadb_factory()
    run(
        server,
        "mysql",
        "CREATE DATABASE s",
        "CREATE TABLE s.o_1 (id INT PRIMARY KEY, v VARCHAR(20))",
        "CREATE TABLE s.o_2 (id INT PRIMARY KEY, v VARCHAR(20))",
        "INSERT INTO s.o_1 VALUES (1, 'a'), (2, 'b')",
    )
    into, one = TableName("s", "o"), TableName("s", "o_1")
    rig = Rig(tmp_path, server, "{name: 's.o_*', into: s.o, shard_column: shard}")
    with rig.run(), Reading(rig, one) as reading:
        rig.until(lambda: rig.phase(into) == "added")
        window, opened = reading.open()
        rows = reading.read(opened)
        run(server, "s", "UPDATE o_1 SET id = 3 WHERE id = 2", "INSERT INTO o_2 VALUES (1, 'x')")
        reading.deliver(window, rows)
        reading.emitted(window)
        window, opened = reading.open()
        rows = reading.read(opened)
        run(server, "s", "TRUNCATE TABLE o_1 NOWAIT", "INSERT INTO o_1 VALUES (4, 'd')")
        assert "at once" in cancelled(window, lambda: reading.deliver(window, rows))
        run(server, "s", "CREATE OR REPLACE TABLE o_2 (id INT PRIMARY KEY, v VARCHAR(20))")
        rig.until(lambda: any(r.altered for r in rig.records()))
        rig.caught_up()
    ((_, entry),) = windows(rig)
    assert (entry.read, entry.emitted) == (2, 1)
    shard = [(op, cells[0], cells[2]) for _, op, _, _, cells in sorted(rig.rows(into), key=lambda row: row[3])]
    assert shard == [
        (Op.MOVE_OUT, 2, "s.o_1"),
        (Op.UPDATE, 3, "s.o_1"),
        (Op.INSERT, 1, "s.o_2"),
        (Op.READ, 1, "s.o_1"),
        (Op.TRUNCATE, None, "s.o_1"),
        (Op.INSERT, 4, "s.o_1"),
        (Op.TRUNCATE, None, "s.o_2"),
    ]
