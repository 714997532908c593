"""Modes soft-delete and history over a whole pipeline: real servers, windows, restarts; the tables against the log, change by change."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pymysql
import pytest

from cdc.config import Mode
from cdc.epoch import Op
from cdc.errors import ConfigError
from cdc.lake import LakeTable
from cdc.log.codec import WIDTH, decode
from cdc.names import TableName
from cdc.schema import TableSchema
from cdc.state import ReadSpec
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from tests.integration.rereading import Rereading

OWN: dict[Mode, tuple[str, ...]] = {
    "soft-delete": ("_cdc_deleted_at",),
    "history": ("valid_from", "valid_to", "is_current"),
}
BOTH: tuple[Mode, ...] = ("soft-delete", "history")


def make(server: SqlServer, schema: str, mode: Mode, rows: int = 200) -> TableName:
    table = TableName(schema, f"t_{mode.replace('-', '_')}")
    server.execute(f"CREATE TABLE {table.quoted} (id INT, part VARCHAR(8), v VARCHAR(40), PRIMARY KEY (part, id))")
    values = ", ".join(f"({n}, '{'ab'[n % 2]}', 'v{n}')" for n in range(rows))
    server.execute(f"INSERT INTO {table.quoted} VALUES {values}")
    return table


def entries(*tables: TableName, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": str(t), "mode": "history" if t.name.startswith("t_history") else "soft-delete"} | more for t in tables
    ]


@contextmanager
def writes(server: SqlServer, tables: Sequence[TableName], number: int = 1) -> Iterator[None]:
    """Changes of every kind, several of a row in one transaction too, while the block runs."""
    stop = threading.Event()
    chosen = random.Random(number)

    def one(cursor: Any, table: str) -> None:
        key = (chosen.choice("ab"), chosen.randrange(300))
        match chosen.randrange(5):
            case 0:
                cursor.execute(f"DELETE FROM {table} WHERE part = %s AND id = %s", key)
            case 1:
                cursor.execute(f"UPDATE {table} SET id = %s WHERE part = %s AND id = %s", (chosen.randrange(300), *key))
            case 2:
                cursor.execute(f"REPLACE INTO {table} VALUES (%s, %s, %s)", (key[1], key[0], str(chosen.random())))
            case _:
                cursor.execute(f"UPDATE {table} SET v = %s WHERE part = %s AND id = %s", (str(chosen.random()), *key))

    def work() -> None:
        with server.root() as connection, connection.cursor() as cursor:
            while not stop.wait(0.005):
                try:
                    for _ in range(chosen.randrange(1, 5)):
                        one(cursor, chosen.choice(tables).quoted)
                    connection.commit()
                except pymysql.err.IntegrityError:
                    connection.rollback()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


def lake(rig: Rereading, table: TableName, mode: Mode) -> list[tuple[Any, ...]]:
    """All rows, as a reader that is not ours has them: the source's columns, `_cdc_ts_ms`, `_cdc_seq`, the mode's own; sorted."""
    frame = polars.read_delta(f"{rig.config.lake_root}/{table.folder}")
    names = [*schema_of(rig, table).names, "_cdc_ts_ms", "_cdc_seq", *OWN[mode]]
    return sorted(frame.select(names).rows(), key=repr)


def live(rig: Rereading, table: TableName, mode: Mode) -> list[tuple[Any, ...]]:
    """The rows that the source has, by the lake."""
    width = len(schema_of(rig, table).names)
    is_live = (lambda row: row[-1]) if mode == "history" else (lambda row: row[-1] is None)
    return sorted((row[:width] for row in lake(rig, table, mode) if is_live(row)), key=repr)


def schema_of(rig: Rereading, table: TableName) -> TableSchema:
    snapshot = LakeTable(rig.config.lake_root, table, rig.config.name).load()
    assert snapshot is not None
    return snapshot.schema


def by_the_log(rig: Rereading, table: TableName, mode: Mode) -> list[tuple[Any, ...]]:
    """What the log's changes make of the table, one after the other."""
    schema = schema_of(rig, table)
    places = [schema.names.index(name) for name in schema.key]
    there: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    ended: list[tuple[Any, ...]] = []

    def end(key: tuple[Any, ...], ts_ms: int, seq: int) -> None:
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ts_ms)
        found = there.get(key)
        if found is None:
            return
        if mode == "history":
            ended.append((*there.pop(key)[:-2], at, False))
        elif found[-1] is None:
            there[key] = (*found[:-3], ts_ms, seq, at)

    for record in rig.log.records():
        entry = record.tables.get(table.id)
        for payload in rig.log.data(table.id, entry.extent) if entry else ():
            batch = decode(payload).batch
            columns = [c.to_pylist() for c in batch.columns[: WIDTH + len(schema.names)]]
            for op, _, _, _, ts_ms, seq, *row in zip(*columns, strict=True):
                key = tuple(row[p] for p in places)
                if op == Op.TRUNCATE:
                    for one in [k for k in there if k[0] == key[0]]:
                        end(one, ts_ms, seq)
                elif op in (Op.DELETE, Op.MOVE_OUT):
                    end(key, ts_ms, seq)
                elif mode == "soft-delete":
                    there[key] = (*row, ts_ms, seq, None)
                elif op != Op.READ or key not in there or there[key][: len(row)] != tuple(row):
                    end(key, ts_ms, seq)
                    since = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ts_ms)
                    there[key] = (*row, ts_ms, seq, since, None, True)
    return sorted([*ended, *there.values()], key=repr)


def check(rig: Rereading, table: TableName, mode: Mode) -> None:
    """The table is what the log says, and what it says is there is what the source has."""
    assert lake(rig, table, mode) == by_the_log(rig, table, mode)
    width = len(schema_of(rig, table).names)
    assert live(rig, table, mode) == [row[:width] for row in rig.source(table)]


@pytest.mark.ci
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_they_begin_with_what_is_there_and_keep_every_change(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Read while they are written to, stopped and started, changed on."""
    server: SqlServer = request.getfixturevalue(kind)
    schema: str = request.getfixturevalue("schema" if kind == "mysql" else "mariadb_schema")
    tables = [make(server, schema, mode) for mode in BOTH]
    rig = Rereading(tmp_path, server, entries(*tables), window_rows=20)
    with writes(server, tables):
        with rig.running():
            rig.ready(*tables)
        with rig.running():
            rig.current()
    with rig.running():
        rig.current()
        for table, mode in zip(tables, BOTH, strict=True):
            check(rig, table, mode)
            (read,) = [r for r in rig.state.reads() if r.target == table]
            assert (read.why, read.phase) == ("first", "done")
        report = rig.pipeline.reconcile(ledger=False, values=True)
        assert report.agrees, report.to_dict()
    assert len(lake(rig, tables[1], "history")) > len(lake(rig, tables[0], "soft-delete")) > 200


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", BOTH)
def test_a_reading_puts_right_what_parted_and_makes_nothing_of_the_rest(
    mysql: MySQLServer, schema: str, tmp_path: Path, mode: Mode
) -> None:
    table = make(mysql, schema, mode)
    rig = Rereading(tmp_path, mysql, entries(table))
    with rig.running():
        rig.ready(table)
        mysql.execute(f"DELETE FROM {table.quoted} WHERE id = 7")
        rig.current()
        before = lake(rig, table, mode)
        t = table.quoted
        rig.unlogged(
            f"UPDATE {t} SET v = 'drifted' WHERE id = 10",
            f"DELETE FROM {t} WHERE id = 20",
            f"INSERT INTO {t} VALUES (7, 'b', 'back')",
        )
        job = rig.state.ask_read(table, table, ReadSpec(), "asked")
        done = rig.read(job.job)
        check(rig, table, mode)
        assert done.rows_gone == 1
        now = lake(rig, table, mode)
        if mode == "history":
            assert len(now) == len(before) + 2  # what drifted, and what came back
            assert len(set(now) & set(before)) == len(before) - 2
        else:
            assert len(now) == len(before)
            assert [row[0] for row in now if row[-1] is not None] == [20]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", BOTH)
def test_a_truncated_table_is_read_again_and_loses_nothing(
    mysql: MySQLServer, schema: str, tmp_path: Path, mode: Mode
) -> None:
    table = make(mysql, schema, mode, rows=50)
    rig = Rereading(tmp_path, mysql, entries(table))
    with rig.running():
        rig.ready(table)
        before = live(rig, table, mode)
        mysql.execute(f"TRUNCATE TABLE {table.quoted}")
        rig.until(lambda: (s := rig.state.table(table)) and s.phase == "stopped", "stopped")
        mysql.execute(f"INSERT INTO {table.quoted} VALUES (3, 'b', 'new'), (999, 'a', 'new')")
        rig.pipeline.resync(str(table))
        rig.until(lambda: (s := rig.state.table(table)) and s.phase == "reading", "reading")
        rig.ready(table)
        rig.current()
        width = 3
        assert live(rig, table, mode) == rig.source(table)
        kept = [row[:width] for row in lake(rig, table, mode) if not live_row(row, mode)]
        expected = [row for row in before if mode == "history" or row[0] != 3]
        assert sorted(kept, key=repr) == expected
        report = rig.pipeline.reconcile(ledger=False, values=True)
        assert report.agrees


def live_row(row: tuple[Any, ...], mode: Mode) -> bool:
    return bool(row[-1]) if mode == "history" else row[-1] is None


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", BOTH)
def test_other_columns_stop_it_and_its_folder_makes_way(
    mysql: MySQLServer, schema: str, tmp_path: Path, mode: Mode
) -> None:
    table = make(mysql, schema, mode, rows=20)
    rig = Rereading(tmp_path, mysql, entries(table))
    with rig.running():
        rig.ready(table)
        mysql.execute(f"ALTER TABLE {table.quoted} ADD COLUMN more INT")
        mysql.execute(f"UPDATE {table.quoted} SET more = 1")
        rig.until(lambda: (s := rig.state.table(table)) and s.phase == "stopped", "stopped")
        before = lake(rig, table, mode)
        rig.pipeline.resync(str(table))

        def refused() -> bool:
            status = rig.state.table(table)
            return bool(status and status.phase == "stopped" and (status.error or {}).get("node") == "merge")

        rig.until(refused, "refused")
        status = rig.state.table(table)
        assert status is not None
        assert "other columns, and what it keeps would be lost" in (status.error or {})["what"]
        assert lake(rig, table, mode) == before
        Path(str(rig.config.lake_root), table.folder).rename(tmp_path / "away")
        rig.pipeline.resume(str(table))
        rig.ready(table)
        assert live(rig, table, mode) == rig.source(table)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", BOTH)
def test_shards_and_the_truncation_of_one(mysql: MySQLServer, schema: str, tmp_path: Path, mode: Mode) -> None:
    shards = [TableName(schema, f"s_{n}") for n in (1, 2)]
    for shard in shards:
        mysql.execute(f"CREATE TABLE {shard.quoted} (id INT PRIMARY KEY, v VARCHAR(40))")
        mysql.execute(f"INSERT INTO {shard.quoted} VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    table = TableName(schema, "s")
    rig = Rereading(tmp_path, mysql, [{"name": f"{schema}.s_*", "into": str(table), "mode": mode}])
    with rig.running():
        rig.ready(table)
        mysql.execute(f"UPDATE {shards[0].quoted} SET v = 'x' WHERE id = 1")
        mysql.execute(f"TRUNCATE TABLE {shards[0].quoted}")
        mysql.execute(f"INSERT INTO {shards[0].quoted} VALUES (2, 'again')")
        rig.current()
        assert lake(rig, table, mode) == by_the_log(rig, table, mode)
        found = [(row[2], row[0], row[1]) for row in live(rig, table, mode)]
        one, two = map(str, shards)
        assert sorted(found) == [(one, 2, "again"), (two, 1, "a"), (two, 2, "b"), (two, 3, "c")]
        assert len(lake(rig, table, mode)) == (8 if mode == "history" else 6)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", BOTH)
def test_a_row_is_not_read_if_it_goes_before(mysql: MySQLServer, schema: str, tmp_path: Path, mode: Mode) -> None:
    """Most of it is gone before it was read: what is there is there, and the log and the lake agree."""
    table = make(mysql, schema, mode)
    rig = Rereading(tmp_path, mysql, entries(table), window_rows=5, rows_per_second=50)
    with rig.running():
        rig.until(lambda: (s := rig.state.table(table)) and s.phase == "reading", "reading")
        mysql.execute(f"DELETE FROM {table.quoted} WHERE id > 100")
        rig.ready(table)
        rig.current()
        check(rig, table, mode)


def test_columns_that_the_mode_needs_are_refused(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    table = TableName(schema, "prices")
    mysql.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, `Valid_To` DATE)")
    keyless = TableName(schema, "keyless")
    mysql.execute(f"CREATE TABLE {keyless.quoted} (id INT)")
    rig = Rereading(tmp_path, mysql, [f"{schema}.other*"])
    for mode, error in (("history", "column Valid_To has the name of one that the mode adds"), ("soft-delete", "")):
        found = [f.what for f in rig.pipeline.add(str(table), mode=mode) if f.level == "error"]  # type: ignore[arg-type]
        assert found == ([error] if not error else [f"mode: history: {error}"]) or (not error and not found)
    for mode in BOTH:
        found = [f.what for f in rig.pipeline.add(str(keyless), mode=mode) if f.level == "error"]
        assert found == ["has no primary key"]
    with pytest.raises(ConfigError, match="from_position"):
        rig.pipeline.add(f"{schema}.x", mode="history", from_position="0-1-1")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", BOTH)
def test_rows_move_between_partitions_and_the_feed_says_so(
    mysql: MySQLServer, schema: str, tmp_path: Path, mode: Mode
) -> None:
    table = TableName(schema, "parted")
    mysql.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, region VARCHAR(8), at DATETIME)")
    mysql.execute(
        f"INSERT INTO {table.quoted} VALUES (1, 'a', '2024-05-01'), (2, '', '2024-06-01'), (3, NULL, NULL), (4, 'b', '2024-05-02')"
    )
    parted = {"name": str(table), "mode": mode, "partition_by": ["region", "month(at)"], "change_feed": True}
    rig = Rereading(tmp_path, mysql, [parted])
    with rig.running():
        rig.ready(table)
        for statement in (
            "UPDATE {t} SET region = 'b' WHERE id = 1",
            "UPDATE {t} SET region = 'a', at = '2024-07-01' WHERE id = 2",
            "UPDATE {t} SET region = '' WHERE id = 2",
            "UPDATE {t} SET id = 5, region = 'a' WHERE id = 3",
            "DELETE FROM {t} WHERE id = 4",
        ):
            mysql.execute(statement.format(t=table.quoted))
        rig.current()
        before = lake(rig, table, mode)
        rig.read(rig.state.ask_read(table, table, ReadSpec(), "asked").job)
        after = lake(rig, table, mode)
        assert len(after) == len(before) == (8 if mode == "history" else 5)
        if mode == "history":
            assert after == before
        found = [(row[0], row[1] or "", row[2]) for row in live(rig, table, mode)]
        assert sorted(found, key=repr) == [(r[0], r[1] or "", r[2]) for r in rig.source(table)]
        assert rig.pipeline.reconcile(ledger=False, values=True).agrees
    feed = deltalake.DeltaTable(f"{rig.config.lake_root}/{table.folder}").load_cdf(starting_version=0).read_all()
    kinds = Counter(pa.table(feed).column("_change_type").to_pylist())
    assert kinds["update_preimage"] == kinds["update_postimage"] > 0
    assert kinds["insert"] - kinds["delete"] == len(after)


@pytest.mark.timeout(180)
def test_no_version_is_half_of_one_time_and_half_of_another(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    """The table was not followed for a while; then an image without all columns meets a row that was not read again yet."""
    table = make(mysql, schema, "history", rows=300)
    t = table.quoted
    rig = Rereading(tmp_path, mysql, [f"{schema}.none", *entries(table)][1:], window_rows=5, rows_per_second=60)
    with rig.running():
        rig.ready(table)
        rig.pipeline.remove(str(table))
        rig.until(lambda: (s := rig.state.table(table)) and s.phase == "removed", "removed")
        mysql.execute(f"ALTER TABLE {t} ALTER COLUMN v SET DEFAULT NULL")
        mysql.execute(f"UPDATE {t} SET v = concat('unseen', id)")
        rig.pipeline.add(str(table), mode="history")
        rig.until(lambda: (s := rig.state.table(table)) and s.phase == "reading", "reading")
        with mysql.root() as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION binlog_row_image = MINIMAL")
            cursor.execute(f"UPDATE {t} SET id = id + 1000 WHERE id > 250 ORDER BY id DESC")
            connection.commit()
        rig.ready(table)
        rig.current()
        found = lake(rig, table, "history")
        assert live(rig, table, "history") == rig.source(table)
    moved = [row for row in found if row[0] > 1000]
    assert {row[2] for row in moved} == {f"unseen{n}" for n in range(251, 300)}, "a row that never was"
