"""Capture against a real MySQL server and the embedded log."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdc.capture import identity
from cdc.capture.chain import Chain, Origin
from cdc.capture.native import NativeDecoder
from cdc.clock import SystemClock
from cdc.epoch import Counts, Op
from cdc.errors import (
    ConfigError,
    LogFencedError,
    SourceIdentityError,
    SourcePurgedError,
    SourceUnavailableError,
    UnsupportedEventError,
)
from cdc.lake import Applied, LakeTable, Layout
from cdc.names import TableName
from cdc.position import BinlogEnd, Gtid, GtidSet, Position
from cdc.schema import TableSchema
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from tests.contract.binlog import Packets, recording, run, schema_of
from tests.integration.capturing import Rig, fold


@pytest.fixture
def t(mysql: MySQLServer, schema: str) -> TableName:
    run(
        mysql,
        schema,
        "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(20))",
        "CREATE TABLE u (a INT, b VARCHAR(9), c DECIMAL(9,2), PRIMARY KEY (b, a))",
        "CREATE TABLE wide (id INT PRIMARY KEY, a INT, b INT)",
        "CREATE TABLE nokey (a INT)",
        "CREATE TABLE j (id INT PRIMARY KEY, j JSON)",
    )
    return TableName(schema, "t")


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer, t: TableName) -> Rig:
    """`t` captured."""
    return Rig(tmp_path, mysql, str(t))


@pytest.fixture
def own(tmp_path: Path, mysql_factory: Callable[..., MySQLServer]) -> Rig:
    """`s.t` of a server of its own captured."""
    server = mysql_factory()
    run(server, "mysql", "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(20))")
    return Rig(tmp_path, server, "s.t")


T = TableName("s", "t")


def contents(server: SqlServer, table: TableName) -> dict[Any, tuple[Any, ...]]:
    return {row[0]: row for row in server.execute(f"SELECT * FROM {table.quoted}")}


def exactly_once(rig: Rig, table: TableName) -> None:
    """The log's changes are the table's, each once and in order."""
    rows = rig.rows(table)
    ids = [(gid, op) for gid, op, *_ in rows]
    assert len(set(ids)) == len(ids)
    seqs = [seq for _, op, _, seq, _ in rows if op != Op.MOVE_OUT]
    assert seqs == sorted(set(seqs))
    assert [ts for _, _, ts, _, _ in rows] == sorted(ts for _, _, ts, _, _ in rows)
    assert fold(rows) == contents(rig.server, table)


def added(rig: Rig, table: TableName) -> None:
    rig.until(lambda: rig.phase(table) == "added")


def stopped(rig: Rig, table: TableName) -> None:
    rig.until(lambda: rig.phase(table) == "stopped")


# following


def test_the_log_has_every_change_of_the_tables_in_commit_order(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    u, m = TableName(t.schema, "u"), TableName(t.schema, "m")
    run(mysql, t.schema, "CREATE TABLE m (id INT PRIMARY KEY) ENGINE = MyISAM")
    rig.write(str(t), str(u), str(m))
    with rig.run():
        added(rig, u)
        run(
            mysql,
            t.schema,
            "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
            "BEGIN",
            "INSERT INTO u VALUES (1, 'x', 1.25)",
            "UPDATE t SET id = id + 10 ORDER BY id DESC",
            "SAVEPOINT s",
            "DELETE FROM t",
            "ROLLBACK TO s",
            "INSERT INTO u VALUES (2, 'y', -0.01)",
            "COMMIT",
            "REPLACE INTO t VALUES (11, 'r')",
            "DELETE FROM t WHERE id = 12",
            "INSERT INTO m VALUES (1), (2)",
            "CREATE TABLE copy (PRIMARY KEY (id)) SELECT * FROM t",
        )
        last = rig.caught_up()
    exactly_once(rig, t)
    exactly_once(rig, m)
    assert len(rig.rows(u)) == 2
    assert last.tables[t.id].totals == Counts(3, 4, 1) if t.id in last.tables else True
    assert sum(r.transactions for r in rig.records()) == last.framing_totals["transactions"]
    assert last.framing_totals["row_events"] - last.framing_totals["rows_skipped"] == 7
    # Numbered over all tables, in commit order.
    numbered = sorted((seq, gid) for table in (t, u, m) for gid, op, _, seq, _ in rig.rows(table) if op != Op.MOVE_OUT)
    assert [seq for seq, _ in numbered] == list(range(1, 13))


def test_totals_and_previous_epochs_chain_per_table(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        for n in range(3):
            run(
                mysql, t.schema, f"INSERT INTO t VALUES ({n}, 'a')", "INSERT INTO u VALUES (1, 'x', 1)", "DELETE FROM u"
            )
            rig.caught_up()
    entries = [(r, r.tables[t.id]) for r in rig.records() if t.id in r.tables]
    assert [e.totals for _, e in entries] == [Counts(n) for n in (1, 2, 3)]
    assert entries[0][1].previous is None
    for (before, _), (_, entry) in itertools.pairwise(entries):
        assert entry.previous == before.id
    first, last = rig.records()[0], rig.records()[-1]
    assert set(first.added) == {t.id}
    assert last.checkpoint == first.number
    assert last.end.last is not None


def test_a_checkpoint_restates_every_table(tmp_path: Path, mysql: MySQLServer, t: TableName) -> None:
    rig = Rig(tmp_path, mysql, str(t), checkpoint_epochs="2")
    with rig.run():
        added(rig, t)
        for n in range(5):
            run(mysql, t.schema, f"INSERT INTO t VALUES ({n}, 'a')")
            rig.caught_up()
    states: dict[str, Any] = {}
    restated = 0
    for record in rig.records():
        after = record.states_after(states)
        if record.states is not None:
            restated += 1
            assert record.checkpoint == record.number
            if states:
                stated = {t: (s.totals, s.last) for t, s in after.items()}
                expected = {
                    t: (
                        s.totals if t not in record.tables else record.tables[t].totals,
                        record.id if t in record.tables else s.last,
                    )
                    for t, s in states.items()
                }
                assert stated == expected
        states = after
    assert restated >= 3
    with rig.run():
        run(mysql, t.schema, "INSERT INTO t VALUES (10, 'a')")
        rig.caught_up()
    exactly_once(rig, t)


def test_transactions_are_gathered_for_the_linger_or_up_to_the_size(
    tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    rig = Rig(tmp_path, mysql, str(t), linger="1s", idle="20s", epoch_size="4KiB")
    with rig.run():
        added(rig, t)
        run(mysql, t.schema, *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(3)))
        began = time.monotonic()
        first = rig.caught_up()
        assert time.monotonic() - began > 0.5
        assert first.transactions == 3
        began = time.monotonic()
        run(mysql, t.schema, *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(10, 110)))
        rig.caught_up()
    sizes = [r.framing["bytes"] for r in rig.records() if r.tables][1:]
    assert len(sizes) > 4
    assert all(s >= 4096 for s in sizes[:-1])
    exactly_once(rig, t)


def test_idle_epochs_pass_rotations_and_other_tables_transactions(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO nokey VALUES (1)", "FLUSH BINARY LOGS")
        status = mysql.status("SHOW BINARY LOG STATUS")

        def passed() -> bool:
            newest = rig.log.newest()
            return newest is not None and (newest.end.end.file, newest.end.end.offset) == (
                status["File"],
                status["Position"],
            )

        rig.until(passed)
        number = rig.log.newest().number  # type: ignore[union-attr]
        time.sleep(1)
        # Nothing new is nothing to write.
        assert rig.log.newest().number == number  # type: ignore[union-attr]
    assert not any(r.tables for r in rig.records())


def test_commit_times_never_go_back(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    ahead = time.time_ns() // 1000 + 86_400_000_000
    with rig.run():
        added(rig, t)
        run(mysql, t.schema, f"SET original_commit_timestamp = {ahead}", "INSERT INTO t VALUES (1, 'a')")
        first = rig.caught_up()
        run(mysql, t.schema, "INSERT INTO t VALUES (2, 'b')")
        second = rig.caught_up()
        rig.until(lambda: rig.state.nodes()["capture"].info["clamped"] == 1)
    assert (first.ts_ms, first.raw_us) == (ahead // 1000, ahead)
    assert second.ts_ms == first.ts_ms
    assert second.raw_us < first.raw_us - 80_000_000_000
    exactly_once(rig, t)


# restarts


def test_it_goes_on_where_it_ended(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    for n in range(4):
        with rig.run():
            if n == 0:
                added(rig, t)
            run(mysql, t.schema, f"INSERT INTO t VALUES ({n}, 'while it runs')")
            if n % 2:
                rig.caught_up()
        run(mysql, t.schema, f"INSERT INTO t VALUES ({n + 100}, 'while it does not')")
    with rig.run():
        rig.caught_up()
    exactly_once(rig, t)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_exactly(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    generator = random.Random(3)
    points = ["capture.event", "capture.before-epoch", "log.after-data", "log.before-commit", "log.after-commit"]
    with rig.run():
        added(rig, t)
    done = threading.Event()

    def work() -> None:
        n = 0
        while not done.is_set():
            n += 1
            run(
                mysql,
                t.schema,
                "BEGIN",
                f"INSERT INTO t VALUES ({n}, 'a'), (-{n}, 'b')",
                f"UPDATE t SET id = id + 100000 WHERE id = {n - 3}",
                f"DELETE FROM t WHERE id = -{n - 5}",
                "COMMIT",
            )

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(10):
            point = points[number % len(points)]
            process = rig.process(f"kill:{point}:{generator.randrange(2, 60 if point == 'capture.event' else 5)}")
            assert process.wait(30) == -9
            assert process.stderr
            process.stderr.close()
    finally:
        done.set()
        worker.join()
    with rig.run():
        rig.caught_up()
    exactly_once(rig, t)


def test_a_lost_connection_is_retryable_and_loses_nothing(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run(SourceUnavailableError) as thread:
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')")
        for (number,) in mysql.execute(
            "SELECT id FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%%' AND user = 'root'"
        ):
            mysql.execute(f"KILL {number}")
        thread.join(10)
    run(mysql, t.schema, "INSERT INTO t VALUES (2, 'b')")
    with rig.run():
        rig.caught_up()
    exactly_once(rig, t)


def test_a_commit_of_unknown_outcome_is_looked_up_before_anything_is_written(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    with rig.run():
        added(rig, t)
    process = rig.process("fail:log.after-commit:2")
    try:
        for n in range(3):
            run(mysql, t.schema, f"INSERT INTO t VALUES ({n}, 'a')")
            rig.caught_up()
            time.sleep(0.4)
    finally:
        process.terminate()
        _, error = process.communicate(timeout=20)
    assert process.returncode == 0, error
    exactly_once(rig, t)


# identity


def test_a_server_that_was_reset_and_wrote_more_is_refused(own: Rig) -> None:
    with own.run():
        added(own, T)
        run(own.server, "s", *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(5)))
        own.caught_up()
    before = own.log.newest()
    own.server.execute("RESET BINARY LOGS AND GTIDS")
    run(own.server, "s", *(f"INSERT INTO t VALUES ({n}, 'b')" for n in range(100, 120)))
    with pytest.raises(SourceIdentityError, match="not the one that was read") as refused, own.run():
        time.sleep(1)
    assert "resync --all" in refused.value.hint
    assert own.log.newest() == before
    # The way out.
    own.state.ask("resync", "s.t")
    with own.run():
        own.until(lambda: not own.state.open_requests())
        run(own.server, "s", "INSERT INTO t VALUES (1000, 'c')")
        own.caught_up()
    assert own.phase(T) == "added"
    assert own.rows(T)[-1][4] == (1000, "c")
    again = next(r for r in own.records() if r.added and before and r.number > before.number)
    assert again.before == before.hash  # type: ignore[union-attr]
    assert again.added["s.t"].totals == Counts()


def test_a_server_that_was_reset_and_wrote_less_is_refused(own: Rig) -> None:
    with own.run():
        added(own, T)
        run(own.server, "s", *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(5)))
        own.caught_up()
    own.server.execute("RESET BINARY LOGS AND GTIDS")
    run(own.server, "s", "INSERT INTO t VALUES (100, 'b')")
    uuid = own.server.execute("SELECT @@server_uuid")[0][0]
    with pytest.raises(SourceIdentityError, match=f"{uuid}:2-7"), own.run():
        time.sleep(1)


def test_another_server_is_refused(own: Rig, mysql: MySQLServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with own.run():
        added(own, T)
    monkeypatch.setattr(identity, "EXECUTED_WITHIN_S", 0.5)
    own.server = mysql
    own.write("s.t")
    with pytest.raises(SourceIdentityError, match="does not have transactions"), own.run():
        time.sleep(1)


@pytest.mark.parametrize("purged", [False, True])
def test_a_replica_that_has_everything_is_gone_on_with(
    own: Rig, mysql_factory: Callable[..., MySQLServer], purged: bool
) -> None:
    source = own.server
    replica = mysql_factory(replica_of=source)
    with own.run():
        added(own, T)
        run(
            source,
            "s",
            "INSERT INTO t VALUES (1, 'a')",
            *["FLUSH BINARY LOGS"] * 5,
            "BEGIN",
            "INSERT INTO t VALUES (2, 'b')",
            "UPDATE t SET v = 'c'",
            "COMMIT",
        )
        before = own.caught_up()
    replica.wait_for_source()
    replica.promote()
    own.server = replica
    u = TableName("s", "u")
    if purged:
        run(replica, "s", "FLUSH BINARY LOGS")
        replica.execute("PURGE BINARY LOGS TO %s", replica.status("SHOW BINARY LOG STATUS")["File"])
    run(replica, "s", "CREATE TABLE u (id INT)", "ALTER TABLE u ADD PRIMARY KEY (id)")
    end = own.server.status("SHOW BINARY LOG STATUS")
    own.write("s.t", "s.u")
    with own.run():
        run(replica, "s", "INSERT INTO t VALUES (3, 'c')")
        added(own, u)
        after = own.caught_up()
    exactly_once(own, T)
    # Not before the stream has passed what made the table: the place in the other server's log says nothing of that.
    (made,) = [r.end for r in own.records() if u.id in r.added]
    assert made.server_uuid == after.end.server_uuid
    assert made.end >= BinlogEnd(end["File"], int(end["Position"]))
    assert after.end.server_uuid != before.end.server_uuid
    assert after.end.end.file == replica.status("SHOW BINARY LOG STATUS")["File"]


def test_a_purged_log_is_refused_and_says_what_is_missing(own: Rig) -> None:
    with own.run():
        added(own, T)
    run(own.server, "s", "INSERT INTO t VALUES (1, 'a')", "FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    own.server.execute(f"PURGE BINARY LOGS TO '{own.server.status('SHOW BINARY LOG STATUS')['File']}'")
    with pytest.raises(SourcePurgedError, match=":3") as refused, own.run():
        time.sleep(1)
    assert "resync --all" in refused.value.hint


def test_a_purged_fingerprint_is_no_reason_to_stop(own: Rig) -> None:
    with own.run():
        added(own, T)
        run(own.server, "s", "INSERT INTO t VALUES (1, 'a')")
        own.caught_up()
    run(own.server, "s", "FLUSH BINARY LOGS")
    own.server.execute(f"PURGE BINARY LOGS TO '{own.server.status('SHOW BINARY LOG STATUS')['File']}'")
    with own.run():
        run(own.server, "s", "INSERT INTO t VALUES (2, 'b')")
        own.caught_up()
    exactly_once(own, T)


def test_a_server_killed_and_restarted_is_gone_on_with(own: Rig) -> None:
    with own.run(SourceUnavailableError) as thread:
        added(own, T)
        run(own.server, "s", "INSERT INTO t VALUES (1, 'a')")
        own.caught_up()
        own.server.kill()
        thread.join(20)
    own.server.start()
    with own.run():
        run(own.server, "s", "INSERT INTO t VALUES (2, 'b')")
        own.caught_up()
    exactly_once(own, T)


# the log


def test_an_idle_capture_notices_that_the_log_lost_its_tail(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')")
        rig.caught_up()
        # Fewer epochs, as after the loss of what a broker had not flushed.
        number = rig.log.newest().number  # type: ignore[union-attr]
        with sqlite3.connect(rig.folder / "log.db", timeout=10) as db:
            db.execute("DELETE FROM commits WHERE number = ?", (number,))
        db.close()
        rig.until(lambda: (newest := rig.log.newest()) and newest.number >= number)
        rig.caught_up()
    exactly_once(rig, t)


def test_a_fresh_log_continues_from_the_lake(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')")
        record = rig.caught_up()
    schema = TableSchema.from_dict(rig.records()[0].added[t.id].schema)
    applied = Applied(record.log, record.id, record.end, record.ts_ms, record.raw_us, record.seq)
    LakeTable(rig.config.lake_root, t, "p").create(schema, Layout("append"), applied, Counts())
    rig.state.set_table(t, "ready")
    run(
        mysql,
        t.schema,
        "INSERT INTO t VALUES (2, 'b')",
        "INSERT INTO nokey VALUES (1)",
        "INSERT INTO t VALUES (3, 'c')",
    )
    rig.log.close()
    for file in rig.folder.glob("log.db*"):
        file.unlink()
    fresh = Rig(rig.folder, mysql, str(t))
    with fresh.run():
        fresh.caught_up()
    first = fresh.records()[0]
    assert (first.number, first.before, first.end) == (record.number + 1, None, record.end)
    assert (first.ts_ms, first.seq) == (record.ts_ms, record.seq)
    assert [cells for *_, cells in fresh.rows(t)] == [(2, "b"), (3, "c")]
    assert [seq for _, _, _, seq, _ in fresh.rows(t)] == [2, 3]
    assert fresh.phase(t) == "ready"


@pytest.mark.parametrize("log", ["sqlite", "kafka"])
def test_a_capture_that_was_paused_while_another_took_over_is_fenced(
    log: str, rig: Rig, mysql: MySQLServer, t: TableName, request: pytest.FixtureRequest
) -> None:
    if log == "kafka":
        url = f"kafka://{request.getfixturevalue('kafka').bootstrap}"
        rig = Rig(rig.folder, mysql, str(t), log=url, pipeline=f"p{uuid.uuid4().hex[:8]}")
    with rig.run():
        added(rig, t)
    process = rig.process()
    try:
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')")
        rig.caught_up()
        os.kill(process.pid, signal.SIGSTOP)
        if log == "kafka":
            with rig.run():
                run(mysql, t.schema, "INSERT INTO t VALUES (2, 'b')")
                rig.caught_up()
            run(mysql, t.schema, "INSERT INTO t VALUES (3, 'c')")
            os.kill(process.pid, signal.SIGCONT)
            _, error = process.communicate(timeout=30)
            assert "LogFencedError" in error
        else:
            with pytest.raises(LogFencedError), rig.run():
                time.sleep(0.5)
    finally:
        process.kill()
        process.communicate()
    with rig.run():
        rig.caught_up()
    exactly_once(rig, t)


def test_a_lost_state_folder_begins_bootstraps_anew(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
    rig.state.set_table(t, "ready")
    shutil.rmtree(rig.folder / "state")
    again = Rig(rig.folder, mysql, str(t))
    with again.run():
        added(again, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')")
        again.caught_up()
    assert again.state.table(t).added == again.records()[0].id  # type: ignore[union-attr]
    exactly_once(again, t)


# tables


def test_ddl_stops_its_table_and_resync_brings_it_back(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    u = TableName(t.schema, "u")
    rig.write(str(t), str(u))
    with rig.run():
        added(rig, u)
        run(
            mysql,
            t.schema,
            "INSERT INTO t VALUES (1, 'a')",
            "ALTER TABLE t ADD COLUMN w INT",
            "INSERT INTO t VALUES (2, 'b', 3)",
            "INSERT INTO u VALUES (1, 'x', 1)",
        )
        stopped(rig, t)
        rig.caught_up()
        status = rig.state.table(t)
        assert status is not None
        assert status.error is not None
        assert status.error["node"] == "capture"
        assert "resync" in status.error["hint"]
        removed = next(r for r in rig.records() if t.id in r.removed)
        assert removed.removed[t.id]["what"] == "ALTER TABLE changed it"
        assert [cells for *_, cells in rig.rows(t)] == [(1, "a")]
        assert len(rig.rows(u)) == 1
        rig.state.ask("resync", str(t))
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (4, 'd', 5)")
        rig.caught_up()
    again = next(r for r in rig.records() if t.id in r.added and r.number > removed.number)
    assert not again.tables
    assert [c["name"] for c in again.added[t.id].schema["columns"]] == ["id", "v", "w"]
    assert [cells for *_, cells in rig.rows(t)] == [(1, "a"), (4, "d", 5)]
    assert rig.state.table(t).error is None  # type: ignore[union-attr]
    assert not rig.state.open_requests()


def test_a_resync_of_a_live_table_adds_it_again(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        rig.state.set_table(t, "ready")
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')")
        rig.state.ask("resync", str(t))
        rig.state.ask("resync", f"{t.schema}.unknown")
        run(mysql, t.schema, "INSERT INTO t VALUES (2, 'b')")
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (3, 'c')")
        rig.caught_up()
        rig.until(lambda: not rig.state.open_requests())
    exactly_once(rig, t)
    assert len([r for r in rig.records() if t.id in r.added]) == 2
    assert rig.records()[-1].tables[t.id].totals.inserts < 3


def test_the_pipeline_file_is_followed_while_it_runs(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    u, later = TableName(t.schema, "u"), TableName(t.schema, "later_1")
    with rig.run():
        added(rig, t)
        rig.write(str(t), str(u))
        added(rig, u)
        run(mysql, t.schema, "INSERT INTO u VALUES (1, 'x', 1)", "INSERT INTO t VALUES (1, 'a')")
        rig.caught_up()
        rig.path.write_text("tables: [")
        rig.until(lambda: any("YAML" in e["what"] for e in rig.state.errors()))
        rig.write(str(u), f'"{t.schema}.later_*"')
        rig.until(lambda: rig.phase(t) == "removed")
        # A table that comes into being while its creation is still ahead in the stream is not stopped by it.
        run(
            mysql,
            t.schema,
            "INSERT INTO t VALUES (2, 'b')",
            "CREATE TABLE later_1 (id INT PRIMARY KEY)",
            "CREATE TABLE _later_1_gho (id INT PRIMARY KEY)",
        )
        added(rig, later)
        run(mysql, t.schema, "INSERT INTO later_1 VALUES (1)")
        rig.caught_up()
    assert [cells for *_, cells in rig.rows(t)] == [(1, "a")]
    assert len(rig.rows(u)) == 1
    assert len(rig.rows(later)) == 1
    assert {t.id: {"code": "removed"}} in [r.removed for r in rig.records()]
    assert set(rig.state.tables()) == {t, u, later}


def test_a_table_that_is_named_right_after_it_was_created_is_captured(
    tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    rig = Rig(tmp_path, mysql, str(t))
    with rig.run():
        added(rig, t)
        for n in range(5):
            new = TableName(t.schema, f"new_{n}")
            run(mysql, t.schema, f"CREATE TABLE new_{n} (id INT PRIMARY KEY)", f"ALTER TABLE new_{n} ADD COLUMN x INT")
            rig.write(str(t), *(f"{t.schema}.new_{i}" for i in range(n + 1)))
            added(rig, new)


def test_tables_that_cannot_be_captured_are_stopped_with_their_way_out(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    nokey, own = (TableName(t.schema, n) for n in ("nokey", "own"))
    run(mysql, t.schema, "CREATE TABLE own (id INT PRIMARY KEY, _CDC_seq INT)")
    rig.write(str(t), str(nokey), str(own))
    with rig.run():
        added(rig, t)
        for table, hint in ((nokey, "mode: append"), (own, "rename")):
            stopped(rig, table)
            assert hint in rig.state.table(table).error["hint"]  # type: ignore[union-attr,index]
        rig.write(str(t), f"{{name: {nokey}, mode: append}}")
        rig.state.ask("resync", str(nokey))
        added(rig, nokey)
        run(mysql, t.schema, "INSERT INTO nokey VALUES (1), (1)", "UPDATE nokey SET a = 2")
        rig.caught_up()
        rig.until(lambda: rig.phase(own) == "removed")
    assert [(op, cells) for _, op, _, _, cells in rig.rows(nokey)] == [(0, (1,)), (0, (1,)), (1, (2,)), (1, (2,))]


def test_a_table_that_does_not_exist_is_one_clear_error(rig: Rig, t: TableName) -> None:
    rig.write(str(t), f"{t.schema}.tt")
    with pytest.raises(ConfigError, match="no such table"), rig.run() as thread:
        thread.join(10)
    assert rig.log.newest() is None


def test_a_captured_table_that_was_dropped_does_not_keep_the_others_from_starting(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    u = TableName(t.schema, "u")
    rig.write(str(t), str(u))
    with rig.run():
        added(rig, u)
    run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')", "DROP TABLE t", "INSERT INTO u VALUES (1, 'x', 1)")
    for _ in range(2):
        with rig.run():
            rig.caught_up()
            stopped(rig, t)
    assert [cells for *_, cells in rig.rows(t)] == [(1, "a")]
    assert len(rig.rows(u)) == 1


# what it cannot read


def test_a_transaction_that_is_not_understood_stops_everything_until_it_is_skipped(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    function = "INSERT INTO t VALUES (2, 'f'); RETURN 1;"
    run(mysql, t.schema, f"CREATE FUNCTION f() RETURNS INT DETERMINISTIC MODIFIES SQL DATA BEGIN {function} END")
    statements = ["SET binlog_format = 'STATEMENT'", "SELECT f()", "SET binlog_format = 'ROW'"]
    with rig.run(UnsupportedEventError) as thread:
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')", *statements, "INSERT INTO t VALUES (3, 'c')")
        thread.join(20)
    assert [cells for *_, cells in rig.rows(t)] == [(1, "a")]
    with rig.run(UnsupportedEventError) as thread:
        thread.join(20)
    assert isinstance(rig.error, UnsupportedEventError)
    gtid = rig.error.hint.split("lakesync skip ")[1].split("`")[0]
    rig.state.ask("skip", str(Gtid.parse(gtid)))
    with rig.run():
        rig.caught_up()
    assert [cells for *_, cells in rig.rows(t)] == [(1, "a"), (3, "c")]
    assert [r.skipped for r in rig.records() if r.skipped] == [(gtid,)]
    assert not rig.state.open_requests()
    with rig.run():
        run(mysql, t.schema, "INSERT INTO t VALUES (4, 'd')")
        rig.caught_up()


def test_session_settings_that_spoil_the_log_stop_their_table(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    u = TableName(t.schema, "loose")
    run(mysql, t.schema, "CREATE TABLE loose (id INT, a INT, b TEXT)")
    rig.write(str(t), f"{{name: {u}, mode: append}}")
    with rig.run():
        added(rig, u)
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO loose VALUES (1, 1, 1)")
        run(mysql, t.schema, "SET binlog_row_image = 'MINIMAL'", "INSERT INTO loose (id) VALUES (2)")
        run(mysql, t.schema, "SET binlog_format = 'STATEMENT'", "UPDATE t SET v = 'b'")
        for table, word in ((t, "binlog_format"), (u, "binlog_row_image")):
            stopped(rig, table)
            assert word in rig.state.table(table).error["hint"]  # type: ignore[union-attr,index]
        rig.caught_up()
    assert len(rig.rows(t)) == len(rig.rows(u)) == 1


def test_a_row_too_large_for_the_log_stops_its_table_and_nothing_else(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    large = TableName(t.schema, "large")
    run(mysql, t.schema, "CREATE TABLE large (id INT PRIMARY KEY, v LONGBLOB)")
    rig.write(str(t), str(large))
    with rig.run():
        added(rig, large)
        run(mysql, t.schema, "INSERT INTO large VALUES (1, 'x')", "INSERT INTO large VALUES (2, REPEAT('x', 17000000))")
        stopped(rig, large)
        rig.caught_up()
        # The decoder still has the table: its further rows, and what would stop it again, are of no one.
        run(mysql, t.schema, "INSERT INTO large VALUES (3, 'y')", "INSERT INTO t VALUES (1, 'a')", "TRUNCATE large")
        run(mysql, t.schema, "INSERT INTO t VALUES (2, 'b')")
        rig.caught_up()
    exactly_once(rig, t)
    assert [cells for *_, cells in rig.rows(large)] == [(1, b"x")]
    assert [large.id in r.removed for r in rig.records()].count(True) == 1
    status = rig.state.table(large)
    assert status is not None
    assert status.error is not None
    assert "bytes in the log" in status.error["what"]


def test_a_large_transaction_is_one_epoch(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        run(
            mysql,
            t.schema,
            "SET cte_max_recursion_depth = 100000",
            "INSERT INTO t WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) SELECT i, 'some text' FROM n",
        )
        rig.caught_up()
    (record,) = [r for r in rig.records() if r.tables]
    assert record.tables[t.id].rows == Counts(50_000)
    exactly_once(rig, t)


# large, prepared and compressed transactions


MANY = """INSERT INTO t WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
    SELECT i, CONCAT('text ', i) FROM n"""
IN_PARTS = ["SET cte_max_recursion_depth = 100000", "BEGIN", MANY, "UPDATE t SET id = -id", "COMMIT"]


def in_parts(folder: Path, server: MySQLServer, table: TableName) -> Rig:
    rig = Rig(folder, server, str(table), part_size="128KiB")
    with rig.run():
        added(rig, table)
    return rig


def test_a_transaction_larger_than_a_part_is_several_epochs(tmp_path: Path, mysql: MySQLServer, t: TableName) -> None:
    rig = in_parts(tmp_path, mysql, t)
    with rig.run():
        run(mysql, t.schema, "INSERT INTO t VALUES (0, 'before')", *IN_PARTS, "DELETE FROM t WHERE id = 0")
        rig.caught_up()
    exactly_once(rig, t)
    records = rig.records()
    parts = [r for r in records if not r.whole]
    assert len(parts) > 5
    assert len({r.end.partial.gtid for r in parts if r.end.partial}) == 1
    # What is in part is in no position, and has one time.
    assert (
        len({str(r.end.gtids) for r in parts}) == len({r.end.end for r in parts}) == len({r.ts_ms for r in parts}) == 1
    )
    assert not any(r.added or r.states for r in parts)
    assert sum(r.transactions for r in records) == records[-1].framing_totals["transactions"]
    reached = [r.end.partial.row_events for r in parts if r.end.partial]
    assert reached == sorted(set(reached))


@pytest.mark.parametrize("point", ["log.before-commit", "log.after-commit", "capture.before-epoch"])
def test_killed_between_the_parts_of_a_transaction_it_goes_on_inside(
    point: str, tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    rig = in_parts(tmp_path, mysql, t)
    run(mysql, t.schema, "INSERT INTO t VALUES (0, 'before')", *IN_PARTS, "INSERT INTO t VALUES (1, 'after')")
    inside = 0
    for number in (2, 3, 2):
        process = rig.process(f"kill:{point}:{number}")
        assert process.wait(30) == -9
        assert process.stderr
        process.stderr.close()
        newest = rig.log.newest()
        inside += newest is not None and not newest.whole
    assert inside
    with rig.run():
        rig.caught_up()
    exactly_once(rig, t)
    records = rig.records()
    # Counted once, however often it was begun: as many bytes as the transactions have.
    first = next(r.start for r in records if r.number == 2)
    assert records[-1].framing_totals["transactions"] == len(records[-1].end.gtids.subtract(first.gtids))


@pytest.mark.parametrize("size", ["8192", "16384"])
def test_between_parts_another_server_is_gone_on_with_only_if_it_has_the_same_events(
    size: str, tmp_path: Path, mysql_factory: Callable[..., MySQLServer]
) -> None:
    source = mysql_factory()
    replica = mysql_factory(replica_of=source, options=[f"--binlog-row-event-max-size={size}"])
    run(source, "mysql", "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(20))")
    rig = in_parts(tmp_path, source, T)
    run(source, "s", "INSERT INTO t VALUES (0, 'before')", *IN_PARTS, "INSERT INTO t VALUES (1, 'after')")
    process = rig.process("kill:log.after-commit:3")
    assert process.wait(30) == -9
    assert process.stderr
    process.stderr.close()
    newest = rig.log.newest()
    assert newest is not None
    assert newest.end.partial is not None
    replica.wait_for_source()
    replica.promote()
    rig.server = replica
    rig.write("s.t")
    if size == "8192":
        with rig.run():
            rig.caught_up()
        exactly_once(rig, T)
        return
    # The same number of its events are other rows: what was not read would be passed over.
    with rig.run(ends_with=SourceIdentityError) as thread:
        thread.join(20)
    assert f"lakesync skip {newest.end.partial.gtid}" in str(rig.error)


def test_a_transaction_of_which_a_part_was_read_can_be_skipped(
    tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    rig = in_parts(tmp_path, mysql, t)
    run(mysql, t.schema, *IN_PARTS, "INSERT INTO t VALUES (1, 'after')")
    process = rig.process("kill:log.after-commit:3")
    assert process.wait(30) == -9
    assert process.stderr
    process.stderr.close()
    newest = rig.log.newest()
    assert newest is not None
    assert newest.end.partial is not None
    rig.state.ask("skip", str(newest.end.partial.gtid))
    with rig.run():
        last = rig.caught_up()
    assert last.whole
    assert [r.skipped for r in rig.records() if r.skipped] == [(str(newest.end.partial.gtid),)]
    # Its bytes are counted once, with the parts or with what was passed over; those of the file's head are no transaction's.
    first = next(r for r in rig.records() if r.whole)
    counted = last.framing_totals["bytes"] - first.framing_totals["bytes"]
    assert 0 < counted <= last.end.end.offset - first.end.end.offset
    assert rig.rows(t)[-1][4] == (1, "after")
    assert not rig.state.open_requests()


def test_xa_transactions_are_captured_when_they_are_committed(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        run(mysql, t.schema, "XA START 'x'", "INSERT INTO t VALUES (1, 'xa')", "XA END 'x'", "XA PREPARE 'x'")
        prepared = mysql.gtid_executed
        run(mysql, t.schema, "INSERT INTO t VALUES (2, 'b')")
        rig.until(lambda: len(rig.rows(t)) == 1)
        newest = rig.log.newest()
        assert newest is not None
        assert len(GtidSet.parse(prepared).subtract(newest.end.gtids)) == 1
        run(mysql, t.schema, "XA COMMIT 'x'", "INSERT INTO t VALUES (3, 'c')")
        rig.caught_up()
    exactly_once(rig, t)
    assert [cells for *_, cells in rig.rows(t)] == [(2, "b"), (1, "xa"), (3, "c")]


def test_the_older_one_of_two_that_are_prepared_is_skipped(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (1, 'before')")
        rig.caught_up()
        executed = [GtidSet.parse(mysql.gtid_executed)]
        for n, x in enumerate("xyz", 2):
            insert = f"INSERT INTO t VALUES ({n}, '{x * n}')"
            run(mysql, t.schema, f"XA START '{x}'", insert, f"XA END '{x}'", f"XA PREPARE '{x}'")
            executed.append(GtidSet.parse(mysql.gtid_executed))
        oldest = executed[1].subtract(executed[0])
        rig.until(lambda: (newest := rig.log.newest()) is not None and (newest.prepared_bytes or 0) > 0)
        time.sleep(1)
    rig.state.ask("skip", str(oldest))
    with rig.run():
        rig.until(lambda: not rig.state.open_requests())
        run(
            mysql,
            t.schema,
            "XA COMMIT 'y'",
            "INSERT INTO t VALUES (8, 'between')",
            "XA ROLLBACK 'z'",
            "INSERT INTO t VALUES (9, 'after')",
        )
        rig.caught_up()
    run(mysql, t.schema, "XA ROLLBACK 'x'")
    assert [cells for *_, cells in rig.rows(t)] == [(1, "before"), (3, "yyy"), (8, "between"), (9, "after")]
    found = [r for r in rig.records() if r.transactions]
    assert any(r.skipped for r in found)
    for one, two in itertools.pairwise(found):
        counted = two.framing_totals["bytes"] - one.framing_totals["bytes"]
        grown = two.end.end.offset - one.end.end.offset
        assert grown == counted + (two.prepared_bytes or 0) - (one.prepared_bytes or 0), two.number


@pytest.mark.parametrize("outcome", ["COMMIT", "ROLLBACK"])
def test_killed_while_an_xa_transaction_is_prepared_it_reads_it_again(
    outcome: str, rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    with rig.run():
        added(rig, t)
    run(mysql, t.schema, "XA START 'x'", "INSERT INTO t VALUES (1, 'xa')", "XA END 'x'", "XA PREPARE 'x'")
    for number in (2, 3):
        run(mysql, t.schema, f"INSERT INTO t VALUES ({number}, 'while it is prepared')")
        process = rig.process("kill:log.after-commit:1")
        assert process.wait(30) == -9
        assert process.stderr
        process.stderr.close()
    assert {cells[0] for *_, cells in rig.rows(t)} == {2, 3}
    run(mysql, t.schema, f"XA {outcome} 'x'")
    with rig.run():
        rig.caught_up()
    exactly_once(rig, t)
    assert len(rig.rows(t)) == (3 if outcome == "COMMIT" else 2)


def test_a_prepared_transaction_that_stops_a_table_does_so_after_every_start(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    wide = TableName(t.schema, "wide")
    run(mysql, t.schema, "ALTER TABLE wide MODIFY a TINYINT")
    rig.write(str(t), f"{{name: {wide}, types: {{a: boolean}}}}")
    try:
        with rig.run():
            added(rig, wide)
            run(mysql, t.schema, "XA START 'x'", "INSERT INTO wide VALUES (1, 2, 1)", "XA END 'x'", "XA PREPARE 'x'")
            run(mysql, t.schema, "INSERT INTO t VALUES (1, 'a')")
            stopped(rig, wide)
            rig.state.ask("resync", str(wide))
            added(rig, wide)
            run(mysql, t.schema, "INSERT INTO t VALUES (2, 'b')")
            rig.until(lambda: len(rig.rows(t)) == 2)
        run(mysql, t.schema, "INSERT INTO wide VALUES (3, 1, 1)")
        with rig.run():
            # What it read before the position where the log ends, and threw away, was more than rows.
            stopped(rig, wide)
    finally:
        run(mysql, t.schema, "XA ROLLBACK 'x'")


def test_compressed_transactions_are_captured(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        run(
            mysql,
            t.schema,
            "SET cte_max_recursion_depth = 100000, binlog_transaction_compression = ON",
            "BEGIN",
            MANY,
            "UPDATE t SET id = -id WHERE id < 100",
            "COMMIT",
        )
        rig.caught_up()
    exactly_once(rig, t)


def test_a_table_stops_before_the_whole_transaction_though_it_was_drained_within(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    loose = TableName(t.schema, "loose")
    run(mysql, t.schema, "CREATE TABLE loose (id INT, a INT, b TEXT)")
    schema = schema_of(mysql, t.schema, "loose")
    with recording(mysql) as recorded:
        run(
            mysql,
            t.schema,
            "INSERT INTO loose VALUES (1, 1, 1)",
            "BEGIN",
            "INSERT INTO loose VALUES (2, 2, 2)",
            "SET binlog_row_image = 'MINIMAL'",
            "INSERT INTO loose (id) VALUES (3)",
            "COMMIT",
        )
    decoder, packets = NativeDecoder(), Packets()
    decoder.capture({loose: schema})
    with closing(rig.log.writer()) as writer:
        chain = Chain(rig.log, writer, None, SystemClock(), 100)
        chain.begin(Position(GtidSet({}), "", BinlogEnd("", 0)), Origin())
        chain.publish({loose: (schema, {})})
        for event in recorded.events:
            assert decoder.feed(packets.of(event))
            chain.take(decoder.drain(), "")
        record = chain.publish()
        chain.close()
    assert record.tables[loose.id].rows == Counts(1, 0, 0)
    assert loose.id in record.removed


def test_an_incomplete_row_inside_a_transaction_in_parts_stops_its_table(
    tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    u = TableName(t.schema, "loose")
    run(mysql, t.schema, "CREATE TABLE loose (id INT, a INT, b TEXT)")
    rig = Rig(tmp_path, mysql, str(t), f"{{name: {u}, mode: append}}", part_size="128KiB")
    with rig.run():
        added(rig, u)
    run(mysql, t.schema, "INSERT INTO loose VALUES (1, 1, 1)")
    with rig.run():
        run(
            mysql,
            t.schema,
            *IN_PARTS[:3],
            "SET binlog_row_image = 'MINIMAL'",
            "INSERT INTO loose (id) VALUES (2)",
            MANY.replace("SELECT i,", "SELECT i + 100000,"),
            "COMMIT",
        )
        stopped(rig, u)
        rig.caught_up()
    exactly_once(rig, t)
    assert len(rig.rows(u)) == 1
    removed = next(r for r in rig.records() if u.id in r.removed)
    assert "binlog_row_image" in removed.removed[u.id]["hint"]
