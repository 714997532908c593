"""Rows that are read again, in windows, while the stream goes on."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars
import pymysql
import pytest

from cdc.epoch import EpochId
from cdc.errors import ConfigError, TableStoppedError
from cdc.names import TableName
from cdc.state import Read, ReadSpec, State
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from snapshot import job as job_module
from snapshot import windowed
from tests.integration.rereading import Rereading


def make(server: SqlServer, schema: str, rows: int = 500, name: str = "t") -> TableName:
    """A table with keys 2, 4, 6, …"""
    table = TableName(schema, name)
    server.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, v VARCHAR(40), n INT)")
    values = ", ".join(f"({2 * n}, 'v{n}', {n})" for n in range(1, rows + 1))
    server.execute(f"INSERT INTO {table.quoted} VALUES {values}")
    return table


@pytest.mark.ci
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_a_whole_table_is_repaired(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    mysql: SqlServer = request.getfixturevalue(kind)
    schema: str = request.getfixturevalue("schema" if kind == "mysql" else "mariadb_schema")
    table = make(mysql, schema)
    rig = Rereading(tmp_path, mysql, [str(table)])
    with rig.running():
        rig.ready(table)
        t = table.quoted
        rig.unlogged(
            f"UPDATE {t} SET v = 'drifted' WHERE id IN (2, 500, 1000)",
            f"DELETE FROM {t} WHERE id IN (4, 502)",
            f"INSERT INTO {t} VALUES (1, 'new', 0), (501, 'new', 0), (5001, 'new', 0)",
        )
        mysql.execute(f"INSERT INTO {t} VALUES (6001, 'streamed', 1)")
        rig.current()
        assert rig.lake(table) != rig.source(table)
        job = rig.state.ask_read(table, table, ReadSpec(), "asked")
        done = rig.read(job.job)
        assert rig.lake(table) == rig.source(table)
    assert (done.rows_read, done.rows_emitted, done.rows_gone) == (502, 504, 2)
    entries = [w for _, w in rig.windows(table)]
    assert len({w.id for w in entries}) == len(entries) > 10
    assert sum(w.read for w in entries) == 502 + 2 + 0


def drift(rig: Rereading, table: TableName) -> None:
    """At both ends and in the middle: stale rows, missing rows, rows too many."""
    t = table.quoted
    rig.unlogged(
        f"UPDATE {t} SET v = 'drifted' WHERE id IN (2, 400, 500, 600, 1000)",
        f"DELETE FROM {t} WHERE id IN (4, 402, 502, 602, 998)",
        f"INSERT INTO {t} VALUES (1, 'new', 0), (401, 'new', 0), (501, 'new', 0), (601, 'new', 0), (5001, 'new', 0)",
    )


@pytest.mark.timeout(120)
def test_a_range_is_repaired_and_nothing_else(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=7)
    with rig.running():
        rig.ready(table)
        before = {row[0]: row for row in rig.lake(table)}
        drift(rig, table)
        (read,) = rig.pipeline.snapshot(str(table), low="402", high="600", wait=True)
        source = {row[0]: row for row in rig.source(table)}
        within = range(402, 601)
        expected = [row for key, row in before.items() if key not in within]
        expected += [row for key, row in source.items() if key in within]
        assert rig.lake(table) == sorted(expected, key=repr)
        # Both bounds are a part of it: 402 is gone, 600 is as it is.
        assert 402 not in source
        assert source[600][1] == "drifted"
    assert read.rows_gone == 2
    assert read.rows_read == len([key for key in source if key in within])


@pytest.mark.timeout(120)
def test_keys_are_repaired_and_nothing_else(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema)
    rig = Rereading(tmp_path, mysql, [str(table)])
    with rig.running():
        rig.ready(table)
        before = {row[0]: row for row in rig.lake(table)}
        drift(rig, table)
        keys = ["2", "4", "1", "2", "7777"]
        (read,) = rig.pipeline.snapshot(str(table), keys=keys, wait=True)
        lake = {row[0]: row for row in rig.lake(table)}
    assert lake == {k: row for k, row in before.items() if k != 4} | {2: (2, "drifted", 1), 1: (1, "new", 0)}
    assert (read.rows_read, read.rows_gone) == (2, 2)


@pytest.mark.timeout(120)
def test_a_condition_brings_rows_and_takes_none(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=2)
    with rig.running():
        rig.ready(table)
        before = {row[0]: row for row in rig.lake(table)}
        drift(rig, table)
        (read,) = rig.pipeline.snapshot(str(table), where="v LIKE 'drift%' -- five of them", wait=True)
        lake = {row[0]: row for row in rig.lake(table)}
        assert lake == before | {k: (k, "drifted", k // 2) for k in (2, 400, 500, 600, 1000)}
        assert (read.rows_read, read.rows_emitted, read.rows_gone) == (5, 5, 0)
        (none,) = rig.pipeline.snapshot(str(table), where="n > 1e6", wait=True)
        assert (none.phase, none.rows_read, none.rows_emitted) == ("done", 0, 0)
        (both,) = rig.pipeline.snapshot(str(table), where="v = 'new'", low="2", high="501", wait=True)
        assert both.rows_read == 2


@pytest.mark.timeout(120)
def test_a_condition_looks_at_so_many_rows_in_one_statement(
    mysql: MySQLServer, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make(mysql, schema, rows=4000)
    mysql.execute(f"ANALYZE TABLE {table.quoted}")
    monkeypatch.setattr(windowed, "SECTION_ROWS", 500)
    looked: list[Any] = []
    original = windowed.WindowReader.range

    def range_of(reader: Any, segment: Any, opened: Any) -> Any:
        looked.append((segment.after, segment.to))
        return original(reader, segment, opened)

    monkeypatch.setattr(windowed.WindowReader, "range", range_of)
    rig = Rereading(tmp_path, mysql, [str(table)])
    with rig.running():
        rig.ready(table)
        rig.unlogged(f"UPDATE {table.quoted} SET v = 'drifted' WHERE n % 400 = 0")
        (read,) = rig.pipeline.snapshot(str(table), where="v = 'drifted'", wait=True)
        assert rig.lake(table) == rig.source(table)
    assert read.rows_emitted == 10
    assert 6 <= len(looked) <= 12
    assert looked[0][0] is None
    assert looked[-1][1] is None
    assert all(high == low for (_, high), (low, _) in itertools.pairwise(looked))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"where": "v = "}, "syntax error"),
        ({"where": "1) OR (1"}, "syntax error"),
        ({"where": "n = 1; DELETE FROM t"}, "not one condition"),
        ({"where": "SELECT 1"}, "not one condition"),
        ({"where": "n = 1 /*! ) OR ( 1 */"}, "comment"),
        ({"where": "id IN (SELECT id FROM t FOR UPDATE)"}, "locks"),
        ({"where": "nowhere = 1"}, "nowhere"),
        ({"low": "abc"}, "not a key"),
        ({"keys": ["1,2"]}, "not a key"),
        ({"keys": ["1"], "low": "1"}, "alone"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(
    mysql: MySQLServer, schema: str, tmp_path: Path, asked: dict[str, Any], why: str
) -> None:
    table = make(mysql, schema, 3)
    rig = Rereading(tmp_path, mysql, [str(table)])
    with rig.running():
        rig.ready(table)
        with pytest.raises(ConfigError, match=why):
            rig.pipeline.snapshot(str(table), **asked)
        with pytest.raises(ConfigError, match="not a table"):
            rig.pipeline.snapshot(f"{schema}.other")
    assert rig.state.reads() == []


class Writers:
    """Threads that insert, update, delete and change keys of a table, until the block ends."""

    def __init__(self, server: MySQLServer, table: TableName, keys: Callable[[random.Random], Any], seed: int) -> None:
        self.server, self.table, self.keys, self.seed = server, table, keys, seed
        self.transactions = 0
        self._stop = threading.Event()

    def __enter__(self) -> Writers:
        self._threads = [threading.Thread(target=self._work, args=(self.seed + n,)) for n in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _work(self, seed: int) -> None:
        chosen = random.Random(seed)
        t = self.table.quoted
        with self.server.root() as connection, connection.cursor() as cursor:
            while not self._stop.is_set():
                try:
                    for _ in range(chosen.randrange(1, 4)):
                        a, b = self.keys(chosen), self.keys(chosen)
                        what = chosen.randrange(5)
                        if what == 0:
                            cursor.execute(f"INSERT INTO {t} VALUES (%s, %s, 1)", (a, str(chosen.random())))
                        elif what == 1:
                            cursor.execute(f"DELETE FROM {t} WHERE id = %s", (a,))
                        elif what == 2:
                            cursor.execute(f"UPDATE {t} SET id = %s WHERE id = %s", (b, a))
                        else:
                            cursor.execute(f"UPDATE {t} SET v = %s WHERE id = %s", (str(chosen.random()), a))
                    connection.commit()
                    self.transactions += 1
                except pymysql.err.Error:
                    connection.rollback()
                time.sleep(0.002)


def _words(chosen: random.Random) -> str:
    word = "".join(chosen.choice("aAbBäÄcdefgh") for _ in range(3))
    return word.upper() if chosen.random() < 0.3 else word


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["int", "text"])
def test_under_writes_the_lake_ends_as_the_source(mysql: MySQLServer, schema: str, tmp_path: Path, kind: str) -> None:
    table = TableName(schema, "t")
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    column = "INT" if kind == "int" else "VARCHAR(10) COLLATE utf8mb4_0900_ai_ci"
    mysql.execute(f"CREATE TABLE {table.quoted} (id {column} PRIMARY KEY, v VARCHAR(40), n INT)")
    keys: Callable[[random.Random], Any] = (lambda c: c.randrange(400)) if kind == "int" else _words
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=9)
    with Writers(mysql, table, keys, seed) as writers, rig.running():
        rig.ready(table)
        time.sleep(1.5)
        chosen = random.Random(seed)
        rig.unlogged(
            *(f"DELETE FROM {table.quoted} WHERE id = '{keys(chosen)}'" for _ in range(10)),
            *(f"UPDATE {table.quoted} SET v = 'drifted' WHERE id = '{keys(chosen)}'" for _ in range(10)),
            *(f"INSERT IGNORE INTO {table.quoted} VALUES ('{keys(chosen)}', 'drifted', 0)" for _ in range(10)),
        )
        for _ in range(4):
            rig.pipeline.snapshot(str(table), wait=True)
        writers.__exit__()
        rig.current()
        assert rig.lake(table) == rig.source(table)
    assert writers.transactions > 100
    assert len(rig.windows(table)) > 30


def slow(rig: Rereading, table: TableName, rows: int = 60) -> Read:
    """A reading of the whole table that has begun and takes its time."""
    (read,) = rig.pipeline.snapshot(str(table))
    rig.until(lambda: (r := rig.state.read(read.job)) and r.rows_read >= rows, "it has begun")
    return read


def _newest(rig: Rereading) -> EpochId | None:
    newest = rig.log.newest()
    return newest.id if newest is not None else None


@pytest.mark.timeout(120)
def test_pause_continue_cancel(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=10, rows_per_second=100)
    with rig.running():
        rig.ready(table)
        drift(rig, table)
        read = slow(rig, table)
        assert [r.job for r in rig.pipeline.pause(str(table))] == [read.job]
        time.sleep(0.5)
        paused = rig.read(read.job, "paused")
        time.sleep(0.7)
        assert rig.read(read.job, "paused").rows_read == paused.rows_read < 400
        with pytest.raises(ConfigError, match="nothing is being read"):
            rig.pipeline.pause(str(table))
        # The log is kept for it from now on, and no longer from where it was.
        mysql.execute(f"UPDATE {table.quoted} SET n = n + 1 WHERE id = 6")
        rig.current()
        rig.until(lambda: rig.read(read.job, "paused").epoch == _newest(rig), "its epoch follows")
        rig.pipeline.proceed(str(table))
        rig.read(read.job)
        assert rig.lake(table) == rig.source(table)
        entries = [w for _, w in rig.windows(table)]
        segments = [tuple(map(str, w.progress["segment"])) for w in entries if w.progress["segment"]]
        assert len(set(segments)) == len(segments), "a segment was read twice"
        read = slow(rig, table)
        rig.pipeline.cancel(str(table))
        rig.read(read.job, "cancelled")
        time.sleep(0.5)
        count = len(rig.windows(table))
        time.sleep(0.5)
        assert len(rig.windows(table)) == count
        with pytest.raises(ConfigError, match="nothing"):
            rig.pipeline.cancel(str(table))
        with pytest.raises(ConfigError, match="nothing is paused"):
            rig.pipeline.proceed(str(table))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "statement", ["DROP TABLE {}", "ALTER TABLE {} ADD x INT", "RENAME TABLE {} TO {}2", "TRUNCATE {}"]
)
def test_a_table_that_goes_or_changes_in_mid_read(
    mysql: MySQLServer, schema: str, tmp_path: Path, statement: str
) -> None:
    table = make(mysql, schema)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=10, rows_per_second=100)
    with rig.running():
        rig.ready(table)
        read = slow(rig, table)
        mysql.execute(statement.format(f"{schema}.t", schema + ".t"))
        failed = rig.read(read.job, "failed")
        assert failed.error is not None
        assert failed.error["hint"]
        status = rig.until(lambda: (s := rig.state.table(table)) and s.phase == "stopped" and s, "stopped")
        assert status.error is not None
        with pytest.raises(TableStoppedError):
            rig.pipeline.wait([read])
        with pytest.raises(ConfigError, match="stopped"):
            rig.pipeline.snapshot(str(table))


@pytest.mark.timeout(180)
def test_capture_begins_anew_in_mid_read(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = make(mysql, schema, 1000)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=10, rows_per_second=400)
    with rig.running():
        rig.ready(table)
        drift(rig, table)
        read = slow(rig, table)
        for _ in range(4):
            dumps = mysql.execute("SELECT id FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%'")
            for (thread,) in dumps:
                mysql.execute(f"KILL {thread}")
            time.sleep(0.4)
        rig.read(read.job, timeout_s=90)
        assert rig.lake(table) == rig.source(table)


@pytest.mark.timeout(240)
def test_the_server_is_restarted_in_mid_read(mysql_factory: Callable[..., MySQLServer], tmp_path: Path) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE s")
    table = make(server, "s", 1000)
    rig = Rereading(tmp_path, server, [str(table)], window_rows=10, rows_per_second=400)
    with rig.running():
        rig.ready(table)
        drift(rig, table)
        read = slow(rig, table)
        server.stop()
        server.start()
        rig.read(read.job, timeout_s=120)
        assert rig.lake(table) == rig.source(table)


def _has_read(rig: Rereading, rows: int) -> bool:
    reads = rig.state.reads()
    return bool(reads) and (reads[0].phase == "done" or reads[0].rows_read > rows)


@pytest.mark.timeout(180)
def test_the_daemon_ends_in_mid_read(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    """A table that is appended to has each row that was there before exactly once."""
    table = make(mysql, schema, 600)
    entry = {"name": str(table), "mode": "append", "backfill": True}
    rig = Rereading(tmp_path, mysql, [entry], window_rows=10, rows_per_second=400)
    for n in range(6):
        with rig.running():
            rig.until(partial(_has_read, rig, 100 * n), "read")
            mysql.execute(f"UPDATE {table.quoted} SET n = -{n + 1} WHERE id = {1200 - n}")
        if n == 2:
            # The log alone says how far it is.
            (tmp_path / "state" / "state.db").unlink()
            rig.state = State(rig.config.state)
    with rig.running():
        rig.ready(table)
        rig.current()
        frame = polars.read_delta(str(Path(rig.config.lake) / table.folder))
    found = frame.group_by("id", "_cdc_op").len()
    reads = {row[0]: row[2] for row in found.rows() if row[1] == "read"}
    assert max(reads.values()) == 1, "a row was read twice"
    everything = set(frame["id"])
    assert everything == {2 * n for n in range(1, 601)}
    # The newest row of each key is the source's.
    newest = frame.sort("_cdc_seq").group_by("id", maintain_order=True).last()
    assert sorted(newest.select("id", "v", "n").rows(), key=repr) == rig.source(table)
    numbers = [w.id for _, w in rig.windows(table)]
    assert len(numbers) == len(set(numbers))


@pytest.mark.timeout(180)
def test_shards_are_read_and_read_again(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    shards = [make(mysql, schema, 100, f"t_{n}") for n in range(2)]
    target = TableName(schema, "t")
    entry = {"name": f"{schema}.t_*", "into": str(target)}
    rig = Rereading(tmp_path, mysql, [entry], window_rows=9)

    def expected() -> list[tuple[Any, ...]]:
        return sorted(((*row, str(shard)) for shard in shards for row in rig.source(shard)), key=repr)

    with rig.running():
        rig.ready(target)
        assert rig.lake(target) == expected()
        rig.unlogged(
            f"DELETE FROM {shards[0].quoted} WHERE id < 50",
            f"UPDATE {shards[1].quoted} SET v = 'drifted' WHERE id < 50",
            f"INSERT INTO {shards[1].quoted} VALUES (7, 'new', 0)",
        )
        (one,) = rig.pipeline.snapshot(str(shards[0]), wait=True)
        assert one.rows_gone == 24
        assert rig.lake(target) != expected()
        both = rig.pipeline.snapshot(str(target), wait=True)
        assert len(both) == 2
        assert rig.lake(target) == expected()
        (key,) = rig.pipeline.snapshot(str(shards[1]), keys=["8"], wait=True)
        assert key.rows_read == 1
        assert rig.lake(target) == expected()


@pytest.mark.timeout(120)
def test_keys_whose_order_is_not_the_lakes_are_not_asked_for_twice(
    mysql: MySQLServer, schema: str, tmp_path: Path
) -> None:
    """Random keys of both cases under a collation that ignores it: between two of them lie, by their bytes, many that are not the window's."""
    table = TableName(schema, "t")
    mysql.execute(f"CREATE TABLE {table.quoted} (id VARCHAR(10) PRIMARY KEY, v INT) COLLATE utf8mb4_0900_ai_ci")
    chosen = random.Random(7)
    keys = {"".join(chosen.choices("abcdefghijkABCDEFGHIJK_-", k=8)).casefold(): 0 for _ in range(600)}
    keys = {"".join(c.upper() if chosen.random() < 0.5 else c for c in key): n for n, key in enumerate(keys)}
    values = ", ".join(f"('{key}', {n})" for key, n in keys.items())
    mysql.execute(f"INSERT INTO {table.quoted} VALUES {values}")
    some = chosen.sample(sorted(keys), 30)
    rig = Rereading(tmp_path, mysql, [str(table)], window_rows=20)
    with rig.running():
        rig.ready(table)
        rig.unlogged(
            *(f"DELETE FROM {table.quoted} WHERE id = '{key}'" for key in some[:10]),
            # The same key to the server, another one to the lake.
            *(f"UPDATE {table.quoted} SET id = '{key.swapcase()}' WHERE id = '{key}'" for key in some[10:20]),
            *(f"UPDATE {table.quoted} SET v = -1 WHERE id = '{key}'" for key in some[20:]),
        )
        (read,) = rig.pipeline.snapshot(str(table), wait=True)
        assert rig.lake(table) == rig.source(table)
        assert read.rows_gone == 20
        assert read.rows_read == len(keys) - 10, "rows were asked for by their keys as well"
        (half,) = rig.pipeline.snapshot(str(table), low=sorted(some)[5], high=sorted(some)[20], wait=True)
        assert half.rows_gone == 0
        assert rig.lake(table) == rig.source(table)


@pytest.mark.timeout(120)
def test_more_keys_of_the_lake_than_can_be_held(
    mysql: MySQLServer, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windowed, "HELD_BYTES", 1)
    monkeypatch.setattr(windowed, "STRUCK_BYTES", 1)
    monkeypatch.setattr(job_module, "KEYS_AT_ONCE", 7)
    numbers, words = make(mysql, schema), TableName(schema, "words")
    mysql.execute(f"CREATE TABLE {words.quoted} (id VARCHAR(9) PRIMARY KEY, v VARCHAR(40), n INT)")
    mysql.execute(f"INSERT INTO {words.quoted} SELECT CONCAT(IF(n % 2, 'k', 'K'), id), v, n FROM {numbers.quoted}")
    rig = Rereading(tmp_path, mysql, [str(numbers), str(words)])
    with rig.running():
        rig.ready(numbers, words)
        drift(rig, numbers)
        rig.unlogged(
            f"DELETE FROM {words.quoted} WHERE n % 50 = 0", f"UPDATE {words.quoted} SET v = 'x' WHERE n % 50 = 1"
        )
        for table in (numbers, words):
            rig.pipeline.snapshot(str(table), wait=True)
            assert rig.lake(table) == rig.source(table)


@pytest.mark.timeout(120)
def test_a_shard_that_goes_in_mid_read(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    shards = [make(mysql, schema, 200, f"t_{n}") for n in range(2)]
    target = TableName(schema, "t")
    entry = {"name": f"{schema}.t_*", "into": str(target)}
    rig = Rereading(tmp_path, mysql, [entry], window_rows=5, rows_per_second=150)
    with rig.running():
        rig.ready(target)
        reads = rig.pipeline.snapshot(str(target))
        gone, stays = (next(r for r in reads if r.table == shard) for shard in shards)
        rig.until(lambda: (r := rig.state.read(gone.job)) and r.rows_read >= 10, "it has begun")
        mysql.execute(f"DROP TABLE {shards[0].quoted}")
        failed = rig.read(gone.job, "failed")
        assert failed.error is not None
        rig.read(stays.job)
        rig.current()
        assert rig.lake(target) == sorted(((*row, str(shards[1])) for row in rig.source(shards[1])), key=repr)
        assert (status := rig.state.table(target)) is not None
        assert status.phase == "ready"
