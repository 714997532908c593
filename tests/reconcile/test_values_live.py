"""Values while everything moves: writers on all keys, tables that are altered, shards that are truncated, a lake that does not follow."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymysql.cursors import Cursor

from cdc.epoch import CommitRecord
from cdc.errors import NotFollowingError
from cdc.state import State
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from reconcile.values import checksums, sources, windows
from reconcile.values.sources import SourceSide
from reconcile.values.windows import Mark, Windows
from tests.faults.rig import Rig, seed
from tests.integration.comparing import (
    ENTRIES,
    NUMBERS,
    PAIRS,
    ROWS,
    SHARDED,
    TEXTS,
    TIMES,
    compare,
    compared,
    copied,
    delta,
    fill,
    small,
)

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(params=["mysql", "mariadb"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """All tables, caught up, on a server of its own."""
    small(monkeypatch)
    with (MySQLServer if request.param == "mysql" else MariaDBServer)() as server:
        fill(server)
        rig = Rig(tmp_path / "p", server, [], settings={"tables": ENTRIES})
        try:
            assert rig.catch_up().returncode == 0
            yield rig
        finally:
            rig.close()


def started(rig: Rig) -> subprocess.Popen[bytes]:
    """The daemon, once its merger is at work."""
    began_us, daemon = time.time_ns() // 1000, rig.start()
    state = State(rig.state)

    def merges() -> bool:
        assert daemon.poll() is None, rig.last_words()
        node = state.nodes().get("merge")
        return node is not None and node.at_us > began_us

    rig.wait(merges, "the merger is at work")
    return daemon


mysql_only = pytest.mark.parametrize("rig", ["mysql"], indirect=True)


@contextmanager
def writers(rig: Rig, count: int = 3) -> Iterator[None]:
    """Change rows of all tables, all the time, but for those whose price is above 2900."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def write(n: int) -> None:
        r = random.Random(chosen + n)
        names = [NUMBERS, PAIRS, TIMES, TEXTS, "v.shard_a", "v.shard_b"]
        try:
            with rig.server.root() as connection, connection.cursor() as cursor:
                while not stop.is_set():
                    name, low = r.choice(names), r.randrange(1, 2800)
                    few = f"price BETWEEN {low} AND {low + r.randrange(1, 60)}"
                    with_key = {NUMBERS: "id = id + 3", TEXTS: "id = CONCAT(id, 'x')", TIMES: "id = id + 0.001"}.get(
                        name
                    )
                    statements = [
                        f"UPDATE {name} SET x = {r.random()} WHERE {few}",
                        f"UPDATE {name} SET name = CONCAT('w', {r.randrange(10**6)}), x = NULL WHERE {few}",
                        f"DELETE FROM {name} WHERE {few} LIMIT 5",
                    ]
                    if with_key:
                        statements.append(
                            f"UPDATE IGNORE {name} SET {with_key} WHERE {few} AND LENGTH(id) < 18 LIMIT 3"
                        )
                    if name in (NUMBERS, "v.shard_a", "v.shard_b"):
                        statements.append(
                            f"INSERT IGNORE INTO {name} (id, name, price) VALUES ({r.randrange(3 * 10**4)}, 'new', {low})"
                        )
                    try:
                        cursor.execute(r.choice(statements))
                    except Exception as error:
                        if error.args[0] not in (1205, 1213):  # a deadlock among them
                            raise
        except BaseException as error:
            failed.append(error)

    chosen = seed()
    threads = [threading.Thread(target=write, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed


def test_no_false_alarm_and_nothing_missed_while_all_keys_change(rig: Rig) -> None:
    daemon = started(rig)
    tables = (NUMBERS, PAIRS, TIMES, TEXTS, SHARDED)
    with writers(rig):
        time.sleep(2)
        report = compare(rig, *tables)
        assert report.equal, [t.differences for t in report.tables]
        assert all(t.settled > 0 for t in report.tables)
        # What changed meanwhile was taken off both sums: what is left is the same to the last bit.
        assert [t.chunks_unlike for t in report.tables] == [0] * len(tables)
        with rig.server.root() as connection, connection.cursor() as cursor:
            cursor.execute("SET sql_log_bin = 0")
            for table in (NUMBERS, PAIRS, TIMES, TEXTS, "v.shard_b"):
                cursor.execute(f"UPDATE {table} SET name = 'drifted' WHERE price = 2950.50")
                cursor.execute(f"DELETE FROM {table} WHERE price = 2999.50")
        report = compare(rig, *tables)
    for found in report.tables:
        kinds = sorted((d.kind, d.columns) for d in found.differences)
        assert kinds == [("different", ("name",)), ("extra in the lake", ())], found.table
    assert rig.stop(daemon) == 0


def test_the_mark_is_behind_all_that_the_view_shows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = started(rig)
    execute = Cursor.execute
    opened: list[str] = []

    def write_before(cursor: Cursor, sql: Any, *arguments: Any) -> int:
        if str(sql).endswith("SNAPSHOT, READ ONLY"):
            opened.append(sql)
            rig.server.execute("UPDATE v.numbers SET name = CONCAT(name, '+') WHERE price BETWEEN 10 AND 12")
        return execute(cursor, sql, *arguments)

    monkeypatch.setattr(Cursor, "execute", write_before)
    found = compared(rig, NUMBERS)
    assert opened
    assert (found.equal, found.chunks_unlike, found.settled) == (True, 0, 2)
    assert rig.stop(daemon) == 0


def during(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, before: bool = False) -> None:
    """Do this once in a read view, before or after the first sum is read."""
    done = threading.Event()
    summed, view = SourceSide.sum, Windows.view

    def once() -> None:
        if not done.is_set():
            done.set()
            act()

    def read(*arguments: Any) -> Any:
        found = summed(*arguments)
        once()
        return found

    @contextmanager
    def opened(of: Windows) -> Iterator[Mark]:
        with view(of) as mark:
            once()
            yield mark

    if before:
        monkeypatch.setattr(Windows, "view", opened)
    else:
        monkeypatch.setattr(SourceSide, "sum", read)


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE TABLE v.numbers",
        "ALTER TABLE v.numbers DROP COLUMN x",
        "DROP TABLE v.numbers",
        "RENAME TABLE v.numbers TO v.moved",
    ],
)
def test_a_table_that_is_altered_has_no_verdict(rig: Rig, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    daemon = started(rig)
    during(monkeypatch, lambda: rig.server.execute(statement), before=True)
    with pytest.raises(NotFollowingError) as raised:
        compared(rig, NUMBERS, follow_s=30)
    assert raised.value.hint
    assert rig.stop(daemon) == 0


@mysql_only
def test_a_ddl_waits_for_the_view_and_the_comparison_is_of_what_was_there(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = started(rig)
    threads = [threading.Thread(target=rig.server.execute, args=("ALTER TABLE v.numbers ADD COLUMN more INT",))]
    during(monkeypatch, threads[0].start)
    found = compared(rig, NUMBERS)
    threads[0].join(60)
    assert found.equal
    assert found.source_rows == ROWS
    assert rig.stop(daemon) == 0


def test_a_shard_that_is_truncated_meanwhile_is_compared_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = started(rig)
    opened, done = Windows.open, threading.Event()

    def open_and_truncate(of: Windows) -> CommitRecord:
        found = opened(of)
        if not done.is_set():
            done.set()
            rig.server.execute("TRUNCATE TABLE v.shard_a")
            rig.server.execute("INSERT INTO v.shard_a (id, name) VALUES (1, 'after'), (10, 'after')")
        return found

    monkeypatch.setattr(Windows, "open", open_and_truncate)
    found = compared(rig, SHARDED)
    assert (found.equal, found.source_rows, found.lake_rows) == (True, ROWS + 2, ROWS + 2)
    assert rig.stop(daemon) == 0


@mysql_only
def test_a_lake_that_does_not_follow_is_said_to(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "ALIVE_S", 2.0)
    rig.server.execute("UPDATE v.numbers SET x = 1 WHERE id = 10")
    began_s = time.monotonic()
    with pytest.raises(NotFollowingError, match="no merger is running"):
        compare(rig, NUMBERS, TEXTS)
    assert time.monotonic() - began_s < 20


@mysql_only
def test_a_capture_that_reads_another_server_says_nothing_of_this_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = started(rig)
    mark = Windows.mark
    monkeypatch.setattr(Windows, "mark", lambda of: Mark("another", mark(of).end))
    with pytest.raises(NotFollowingError, match="did not reach the source's position"):
        compared(rig, NUMBERS, follow_s=3)
    assert rig.stop(daemon) == 0


@mysql_only
def test_a_connection_that_is_lost_costs_its_group_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill() -> None:
        with rig.server.root() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'rig'")
            for (thread,) in cursor.fetchall():
                cursor.execute(f"KILL {int(thread)}")

    during(monkeypatch, kill)
    delta(rig, NUMBERS).delete("id = 10")
    found = compared(rig, NUMBERS)
    assert (found.source_rows, [d.key for d in found.differences]) == (ROWS, ["10"])


@mysql_only
def test_tables_of_which_one_fails_all_end(rig: Rig) -> None:
    with copied(rig, rig.folder.parent / "copy") as copy:
        rig.server.execute("RENAME TABLE v.pairs TO v.gone")
        began_s = time.monotonic()
        with pytest.raises(Exception, match=r"pairs|exist|follow"):
            compare(copy, NUMBERS, PAIRS, TEXTS, follow_s=20)
        assert time.monotonic() - began_s < 60


def test_a_lake_that_lost_its_rows_differs_while_writes_go_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many to be read by key, and none is named but those that are touched, which are right."""
    monkeypatch.setattr(checksums, "LEAF_ROWS", 100)
    monkeypatch.setattr(sources, "PIECE_ROWS", 50)
    delta(rig, NUMBERS).delete()
    opened = Windows.open

    def open_and_change(self: Windows) -> Any:
        found = opened(self)
        rig.server.execute("UPDATE v.numbers SET x = x + 1 WHERE id = 70")
        return found

    monkeypatch.setattr(Windows, "open", open_and_change)
    daemon = started(rig)
    found = compared(rig, NUMBERS)
    assert rig.stop(daemon) == 0
    assert not found.equal
    assert found.lake_rows <= 1
    assert ROWS - 1 >= found.different >= 500
