"""Windows in capture, against a real MySQL server: what capture opens, collects, cancels and writes. The reader is the test."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cdc.capture.chain import Chain
from cdc.epoch import CommitRecord, Counts, Op, WindowEntry
from cdc.errors import LogIndefiniteError
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.window import WindowCancelled
from dev.mysql import MySQLServer
from tests.contract.binlog import run
from tests.integration.capturing import Rig
from tests.integration.windowing import Reading, cancelled, lake, windows


@pytest.fixture
def t(mysql: MySQLServer, schema: str) -> TableName:
    """Ten rows that the log has nothing of."""
    rows = ", ".join(f"({i}, 'first {i}')" for i in range(10))
    run(
        mysql,
        schema,
        "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(20))",
        f"INSERT INTO t VALUES {rows}",
        "CREATE TABLE u (a INT, b VARCHAR(9), c DECIMAL(9,2), PRIMARY KEY (b, a))",
        "INSERT INTO u VALUES (1, 'x', 1.25), (2, 'X', 2.5), (1, 'y', NULL)",
        "CREATE TABLE nokey (a INT)",
    )
    return TableName(schema, "t")


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer, t: TableName) -> Rig:
    u, nokey = TableName(t.schema, "u"), TableName(t.schema, "nokey")
    return Rig(tmp_path, mysql, str(t), str(u), f"{{name: {nokey}, mode: append}}")


def added(rig: Rig, table: TableName) -> None:
    rig.until(lambda: rig.phase(table) == "added")


def contents(rig: Rig, table: TableName) -> dict[object, tuple[object, ...]]:
    return {row[0]: row for row in rig.server.execute(f"SELECT * FROM {table.quoted}")}


# what is written


def test_a_window_is_an_epoch_of_rows_behind_everything_that_the_stream_gave(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        run(mysql, t.schema, "INSERT INTO t VALUES (10, 'stream')")
        rig.caught_up()
        window, opened = reading.open()
        reading.deliver(window, reading.read(opened, "id < 10"), gone=pa.table({"id": pa.array([77], pa.int32())}))
        epoch = reading.emitted(window)
        run(mysql, t.schema, "UPDATE t SET v = 'later' WHERE id = 3")
        rig.caught_up()
    ((record, entry),) = windows(rig)
    assert record.id == epoch
    assert record.whole
    assert record.transactions == 0
    assert record.start == record.end
    assert entry == WindowEntry(window.id, t.id, 11, 11, {"at": 1})
    assert window.emitted_rows == 11
    assert record.tables[t.id].rows == Counts(0, 0, 1, 10)
    rows = rig.rows(t)
    assert [op for _, op, *_ in rows] == [Op.INSERT] + [Op.READ] * 10 + [Op.DELETE] + [Op.UPDATE]
    assert [gid for gid, *_ in rows[1:12]] == [f"snap:job/1.{i}" for i in range(11)]
    assert [seq for *_, seq, _ in rows] == list(range(1, 14))
    assert [ts for _, _, ts, _, _ in rows] == sorted(ts for _, _, ts, _, _ in rows)
    assert rows[11][4] == (77, None)
    assert lake(rig, t) == contents(rig, t)


def test_keys_of_several_columns_win_by_their_bytes(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    u = TableName(t.schema, "u")
    with rig.run(), Reading(rig, u) as reading:
        added(rig, u)
        window, opened = reading.open()
        rows = reading.read(opened)
        run(
            mysql,
            t.schema,
            "UPDATE u SET c = 9 WHERE a = 2",
            "UPDATE u SET b = 'Y' WHERE b = 'y'",
            "DELETE FROM u WHERE a = 9",
        )
        gone = pa.table({"b": ["Y", "z", "X"], "a": pa.array([1, 1, 2], pa.int32())})
        reading.deliver(window, rows, gone=gone)
        reading.emitted(window)
        rig.caught_up()
    found = [(op, cells[:2]) for _, op, _, _, cells in rig.rows(u) if op in (Op.READ, Op.DELETE)]
    assert found == [(Op.READ, (1, "x")), (Op.DELETE, (1, "z"))]


def test_a_window_of_which_nothing_is_left_is_in_the_log(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        epoch = reading.whole("id > 100")
        window, opened = reading.open()
        rows = reading.read(opened, "id = 1")
        run(mysql, t.schema, "UPDATE t SET v = 'x' WHERE id = 1")
        reading.deliver(window, rows)
        reading.emitted(window)
    found = windows(rig)
    assert [(e.read, e.emitted) for _, e in found] == [(0, 0), (1, 0)]
    assert found[0][0].id == epoch
    assert t.id not in found[0][0].tables
    assert [op for _, op, *_ in rig.rows(t)] == [Op.UPDATE]


def test_a_window_takes_milliseconds(rig: Rig, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        took = []
        for _ in range(30):
            started = time.monotonic()
            reading.whole("id = 1")
            took.append(time.monotonic() - started)
    median = sorted(took)[len(took) // 2]
    print(f"a window: {median * 1000:.1f} ms")
    assert median < 0.06, "not the next look at the clock, but at once"


def test_many_windows_share_epochs(rig: Rig, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        opened = [reading.open() for _ in range(40)]
        rows = reading.read(opened[0][1], "id = 1")
        mark = reading.server.binlog_end()
        for window, _ in opened:
            reading.deliver(window, rows, mark=mark)
        for window, _ in opened:
            reading.emitted(window)
    found = windows(rig)
    assert sorted(e.id.number for _, e in found) == list(range(1, 41))
    assert len({r.number for r, _ in found}) < 20


# what wins


@pytest.mark.timeout(120)
def test_windows_under_a_workload_make_the_table_what_the_source_has(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    """Nothing of the first rows is in the log: what is right at the end, the windows brought."""
    seed = int(os.environ.get("LAKESYNC_SEED", random.randrange(1 << 30)))
    print(f"LAKESYNC_SEED={seed}")
    stop = threading.Event()
    # Rows that nobody reads any more must not be there either: keys that the lake has, and the source has not.
    before = {i: (i, "lost") for i in range(0, 60, 2)}

    def work(own: random.Random) -> None:
        with mysql.root(t.schema) as connection, connection.cursor() as cursor:
            for n in itertools.count():
                if stop.is_set():
                    return
                a, b = own.randrange(60), own.randrange(60)
                cursor.execute(
                    own.choice(
                        (
                            f"REPLACE INTO t VALUES ({a}, 'r {n}')",
                            f"UPDATE t SET v = 'u {n}' WHERE id = {a}",
                            f"DELETE FROM t WHERE id = {a}",
                            f"UPDATE IGNORE t SET id = {b} WHERE id = {a}",
                        )
                    )
                )

    workers = [threading.Thread(target=work, args=(random.Random(seed + i),)) for i in range(2)]
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        for worker in workers:
            worker.start()
        try:
            for _ in range(2):
                for low in range(0, 60, 10):
                    window, opened = reading.open()
                    rows = reading.read(opened, f"id BETWEEN {low} AND {low + 9}")
                    there = {key.as_py() for batch in rows for key in batch.column(0)}
                    lost = [i for i in range(low, low + 10) if i not in there]
                    found = {
                        key.as_py()
                        for i in lost
                        for batch in reading.read(opened, f"id = {i}")
                        for key in batch.column(0)
                    }
                    gone = pa.table({"id": pa.array([i for i in lost if i not in found], pa.int32())})
                    time.sleep(0.03)
                    reading.deliver(window, rows, gone=gone)
                    reading.emitted(window)
        finally:
            stop.set()
            for worker in workers:
                worker.join()
        rig.caught_up()
    assert sum(e.read - e.emitted for _, e in windows(rig)) > 0, "no window met the workload"
    assert lake(rig, t, before) == contents(rig, t)


def test_nothing_is_written_before_the_mark_is_passed(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        window, opened = reading.open()
        rows = reading.read(opened, "id < 5")
        end = reading.server.binlog_end()
        # As if the server wrote what is visible to the log before capture is sent it.
        reading.deliver(window, rows, mark=BinlogEnd(end.file, end.offset + 1500))
        time.sleep(0.5)
        assert window.phase == "delivered"
        for n in range(20):
            run(mysql, t.schema, f"UPDATE t SET v = '{n}' WHERE id = 2")
        reading.emitted(window)
    ((record, entry),) = windows(rig)
    assert record.end.end.offset >= end.offset + 1500
    assert (entry.read, entry.emitted) == (5, 4)


@pytest.mark.timeout(120)
def test_a_window_is_in_no_part_of_a_transaction(tmp_path: Path, mysql: MySQLServer, t: TableName) -> None:
    rig = Rig(tmp_path, mysql, str(t), part_size="16KiB")
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        window, opened = reading.open()
        rows = reading.read(opened)
        with mysql.root(t.schema) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("UPDATE t SET v = 'large' WHERE id = 4")
            for low in range(1000, 9000, 500):
                values = ", ".join(f"({i}, 'large')" for i in range(low, low + 500))
                cursor.execute(f"INSERT INTO t VALUES {values}")
            cursor.execute("UPDATE t SET id = 11 WHERE id = 5")
            cursor.execute("COMMIT")
        reading.deliver(window, rows)
        reading.emitted(window)
        rig.caught_up()
    assert sum(not r.whole for r in rig.records()) > 2
    ((record, entry),) = windows(rig)
    assert record.whole
    assert (entry.read, entry.emitted) == (10, 8)
    assert lake(rig, t) == contents(rig, t)


def test_rows_that_an_xa_transaction_wrote_win_when_it_is_committed(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        run(mysql, t.schema, "XA START 'w'", "UPDATE t SET v = 'xa' WHERE id = 1", "XA END 'w'", "XA PREPARE 'w'")
        window, opened = reading.open()
        rows = reading.read(opened)
        run(mysql, t.schema, "XA COMMIT 'w'")
        reading.deliver(window, rows)
        reading.emitted(window)
        rig.caught_up()
    ((_, entry),) = windows(rig)
    assert (entry.read, entry.emitted) == (10, 9)
    assert lake(rig, t) == contents(rig, t)


def test_what_a_rollback_to_a_savepoint_took_back_wins_over_nothing(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        window, opened = reading.open()
        rows = reading.read(opened)
        run(
            mysql,
            t.schema,
            "BEGIN",
            "UPDATE t SET v = 'kept' WHERE id = 1",
            "SAVEPOINT s",
            "UPDATE t SET v = 'undone' WHERE id = 2",
            "ROLLBACK TO s",
            "COMMIT",
        )
        reading.deliver(window, rows)
        reading.emitted(window)
        rig.caught_up()
    ((_, entry),) = windows(rig)
    assert entry.emitted == 9
    assert lake(rig, t) == contents(rig, t)


# what cancels


def test_a_start_of_capture_cancels_what_was_read_for_the_one_before(
    rig: Rig, mysql: MySQLServer, t: TableName
) -> None:
    with Reading(rig, t) as reading:
        with rig.run():
            added(rig, t)
            open_, opened = reading.open()
            rows = reading.read(opened)
            run(mysql, t.schema, "UPDATE t SET v = 'in the window' WHERE id = 1")
            rig.caught_up()
        asked = reading.ask()
        with rig.run():
            assert asked.wait_open(threading.Event()).c0.gtids
            with pytest.raises(WindowCancelled, match="capture"):
                reading.deliver(open_, rows)
            asked.cancel("done")
            rig.caught_up()
    assert windows(rig) == []


def test_ddl_of_the_table_cancels(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    u = TableName(t.schema, "u")
    with rig.run(), Reading(rig, t) as reading, Reading(rig, u, "other") as other:
        added(rig, u)
        window, opened = reading.open()
        untouched, of_u = other.open()
        rows = reading.read(opened)
        run(mysql, t.schema, "ALTER TABLE t ADD COLUMN n INT")
        assert "stopped" in cancelled(window, lambda: reading.deliver(window, rows))
        other.deliver(untouched, other.read(of_u))
        other.emitted(untouched)
        assert "not captured" in cancelled(reading.ask())
    assert [e.table for _, e in windows(rig)] == [u.id]


def test_truncate_of_the_table_cancels(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        window, opened = reading.open()
        rows = reading.read(opened)
        run(mysql, t.schema, "TRUNCATE TABLE t")
        assert cancelled(window, lambda: reading.deliver(window, rows))
    assert windows(rig) == []


def test_taking_the_table_out_and_reading_it_anew_cancel(rig: Rig, t: TableName) -> None:
    u = TableName(t.schema, "u")
    with rig.run(), Reading(rig, t) as reading, Reading(rig, u, "other") as other:
        added(rig, u)
        window, opened = reading.open()
        anew, _ = other.open()
        rows = reading.read(opened)
        rig.state.ask("resync", str(u))
        assert "anew" in cancelled(anew)
        rig.write(str(u))
        rig.until(lambda: window.phase == "cancelled")
        with pytest.raises(WindowCancelled):
            reading.deliver(window, rows)
    assert windows(rig) == []


def test_a_transaction_that_is_passed_over_cancels(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    """Nobody knows which keys it changed."""
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        last = reading.server.executed()
        ((sid, runs),) = last.sids.items()
        skipped = f"{sid}:{runs[-1][1] + 1}"
        number = rig.state.ask("skip", skipped)
        window, opened = reading.open()
        rows = reading.read(opened)
        time.sleep(1.2)  # the request is seen
        run(mysql, t.schema, "UPDATE t SET v = 'passed over' WHERE id = 1")
        assert "passed over" in cancelled(window, lambda: reading.deliver(window, rows))
        rig.until(lambda: number not in [r.number for r in rig.state.open_requests()])
    assert windows(rig) == []


def test_tables_that_are_not_captured_or_have_no_key_have_no_windows(rig: Rig, t: TableName) -> None:
    nokey = TableName(t.schema, "nokey")
    with rig.run():
        added(rig, nokey)
        for table, said in ((TableName(t.schema, "strange"), "not captured"), (nokey, "no primary key")):
            with Reading(rig, table) as reading:
                assert said in cancelled(reading.ask())


def test_what_another_server_gave_is_not_written(rig: Rig, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        window, opened = reading.open()
        reading.deliver(window, reading.read(opened), mark_server="00000000-0000-0000-0000-000000000000")
        assert "another server" in cancelled(window)
    assert windows(rig) == []


def test_a_row_too_large_for_the_log_stops_the_table(tmp_path: Path, mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory(options=["--max-allowed-packet=64M"])
    run(
        server,
        "mysql",
        "CREATE DATABASE s",
        "CREATE TABLE s.t (id INT PRIMARY KEY, v LONGBLOB)",
        "INSERT INTO s.t VALUES (1, 'a'), (2, REPEAT('x', 20000000))",
    )
    table = TableName("s", "t")
    rig = Rig(tmp_path, server, "s.t")
    with rig.run(), Reading(rig, table) as reading:
        added(rig, table)
        window, opened = reading.open()
        reading.deliver(window, reading.read(opened))
        assert "too large" in cancelled(window)
        rig.until(lambda: rig.phase(table) == "stopped")
        status = rig.state.table(table)
        assert status is not None
        assert status.error is not None
        assert "snap:job/1.1" in status.error["where"]
    assert windows(rig) == []
    assert rig.rows(table) == []


def test_a_reader_may_cancel_its_window(rig: Rig, t: TableName) -> None:
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        window, opened = reading.open()
        rows = reading.read(opened)
        window.cancel("enough")
        assert cancelled(window) == "enough"
        with pytest.raises(WindowCancelled):
            reading.deliver(window, rows)
        reading.whole("id = 1")
    assert [e.id.number for _, e in windows(rig)] == [2]


def test_a_window_of_which_nobody_knows_whether_it_was_written_says_so(
    rig: Rig, t: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log took it, and its answer was lost."""
    append = Chain._append

    def lost(chain: Chain, epoch: Any) -> CommitRecord:
        record = append(chain, epoch)
        if record.windows and record.number not in seen:
            seen.append(record.number)
            raise LogIndefiniteError("the answer was lost")
        return record

    seen: list[int] = []
    monkeypatch.setattr(Chain, "_append", lost)
    with rig.run(), Reading(rig, t) as reading:
        added(rig, t)
        window, opened = reading.open()
        reading.deliver(window, reading.read(opened))
        assert cancelled(window)
        assert window.is_doubtful
        reading.open()  # capture has begun again: what the log has now is what it will have
        assert [e.id for _, e in windows(rig)] == [window.id]
    assert lake(rig, t) == contents(rig, t)


def test_windows_that_meet_a_stop_of_capture_are_written_or_cancelled(rig: Rig, t: TableName) -> None:
    for n in range(5):
        with Reading(rig, t, f"job{n}") as reading:
            with rig.run():
                added(rig, t)
                window, opened = reading.open()
                reading.deliver(window, reading.read(opened))
                time.sleep(0.002 * n)
            there = window.id in {e.id for _, e in windows(rig)}
            assert (window.phase, window.is_doubtful) == ("emitted" if there else "cancelled", False)
