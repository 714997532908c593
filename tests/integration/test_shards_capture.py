"""Sharded tables in capture, against a real MySQL server: several tables of the source are one in the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cdc import sharding
from cdc.epoch import CommitRecord, Counts, Op
from cdc.names import TableName
from dev.mysql import MySQLServer
from tests.contract.binlog import run
from tests.integration.capturing import Rig
from tests.integration.windowing import Reading, cancelled, windows


@pytest.fixture
def into(mysql: MySQLServer, schema: str) -> TableName:
    """Two shards, o_1 and o_2, and a table that is none."""
    run(
        mysql,
        schema,
        "CREATE TABLE o_1 (id INT PRIMARY KEY, v VARCHAR(20))",
        "CREATE TABLE o_2 (id INT PRIMARY KEY, v VARCHAR(20))",
        "CREATE TABLE plain (id INT PRIMARY KEY, v VARCHAR(20))",
    )
    return TableName(schema, "o")


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer, into: TableName) -> Rig:
    schema = into.schema
    return Rig(tmp_path, mysql, f"{{name: '{schema}.o_*', into: {into}, shard_column: shard}}", f"{schema}.plain")


def added(rig: Rig, table: TableName) -> None:
    rig.until(lambda: rig.phase(table) == "added")


def of(into: TableName, n: int) -> TableName:
    return TableName(into.schema, f"o_{n}")


def lake(rig: Rig, into: TableName) -> dict[tuple[object, object], object]:
    """What the log makes of the table: by shard and key."""
    left: dict[tuple[object, object], object] = {}
    for _, op, _, _, (key, value, shard) in sorted(rig.rows(into), key=lambda r: (r[3], r[1] != Op.MOVE_OUT)):
        if op == Op.TRUNCATE:
            assert key is None
            left = {k: v for k, v in left.items() if k[0] != shard}
        elif op in (Op.DELETE, Op.MOVE_OUT):
            left.pop((shard, key), None)
        else:
            left[shard, key] = value
    return left


def source(rig: Rig, *shards: TableName) -> dict[tuple[object, object], object]:
    return {
        (str(shard), key): value
        for shard in shards
        for key, value in rig.server.execute(f"SELECT id, v FROM {shard.quoted}")
    }


def test_shards_are_one_table_whose_rows_say_which(rig: Rig, mysql: MySQLServer, into: TableName) -> None:
    with rig.run():
        added(rig, into)
        run(
            mysql,
            into.schema,
            "INSERT INTO o_1 VALUES (1, 'a'), (2, 'b')",
            "INSERT INTO o_2 VALUES (1, 'c')",
            "UPDATE o_1 SET id = 3 WHERE id = 2",
            "DELETE FROM o_2",
            "INSERT INTO o_2 VALUES (1, 'd')",
        )
        rig.caught_up()
    assert lake(rig, into) == source(rig, of(into, 1), of(into, 2))
    assert {t for r in rig.records() for t in r.tables} == {into.id}
    gids = [gid for gid, op, *_ in rig.rows(into) if op != Op.MOVE_OUT]
    assert len(set(gids)) == len(gids)


def test_a_window_of_a_shard_is_read_of_the_source_and_written_to_the_table(
    rig: Rig, mysql: MySQLServer, into: TableName
) -> None:
    run(mysql, into.schema, "INSERT INTO o_1 VALUES (1, 'a'), (2, 'b')", "INSERT INTO o_2 VALUES (1, 'x')")
    one = of(into, 1)
    with rig.run(), Reading(rig, one) as reading:
        added(rig, into)
        window, opened = reading.open()
        assert opened.schema.names == ("id", "v")
        rows = reading.read(opened)
        run(mysql, into.schema, "UPDATE o_1 SET v = 'new' WHERE id = 2", "UPDATE o_2 SET v = 'y' WHERE id = 1")
        reading.deliver(window, rows)
        reading.emitted(window)
        rig.caught_up()
    ((record, entry),) = windows(rig)
    assert (entry.table, entry.read, entry.emitted) == (one.id, 2, 1)
    assert record.windows.keys() == {into.id}
    assert record.tables[into.id].rows.reads == 1
    assert lake(rig, into) == source(rig, one, of(into, 2))


def test_ddl_of_a_shard_stops_the_table_and_every_shard_of_it(rig: Rig, mysql: MySQLServer, into: TableName) -> None:
    plain = TableName(into.schema, "plain")
    with rig.run():
        added(rig, into)
        run(mysql, into.schema, "ALTER TABLE o_1 ADD COLUMN n INT", "INSERT INTO o_2 VALUES (1, 'c')")
        rig.until(lambda: rig.phase(into) == "stopped")
        run(mysql, into.schema, "INSERT INTO o_2 VALUES (2, 'c')", "INSERT INTO plain VALUES (1, 'p')")
        rig.caught_up()
    status = rig.state.table(into)
    assert status is not None
    assert status.error is not None
    assert str(of(into, 1)) in status.error["where"]
    assert f"`lakesync resync {into}`" in status.error["hint"]
    assert 2 not in {row[4][0] for row in rig.rows(into)}
    assert len(rig.rows(plain)) == 1


def test_truncate_of_a_shard_takes_its_rows_alone_in_commit_order(
    rig: Rig, mysql: MySQLServer, into: TableName
) -> None:
    with rig.run():
        added(rig, into)
        run(
            mysql,
            into.schema,
            "INSERT INTO o_1 VALUES (1, 'a'), (2, 'b')",
            "INSERT INTO o_2 VALUES (1, 'c'), (2, 'd')",
            "INSERT INTO plain VALUES (1, 'p')",
            "TRUNCATE TABLE o_1",
            "INSERT INTO o_1 VALUES (2, 'again')",
            "INSERT INTO plain VALUES (2, 'p')",
            "TRUNCATE o_2",
            "TRUNCATE o_1",
            "INSERT INTO o_1 VALUES (3, 'last')",
            "INSERT INTO o_2 VALUES (3, 'last')",
        )
        rig.caught_up()
    assert rig.phase(into) == "added"
    assert lake(rig, into) == source(rig, of(into, 1), of(into, 2))
    found = rig.rows(into)
    assert [op for _, op, *_ in found].count(Op.TRUNCATE) == 3
    assert len({gid for gid, *_ in found}) == len(found)
    # Numbered over all tables, in commit order, without a gap.
    numbered = sorted(
        (seq, gid) for table in (into, TableName(into.schema, "plain")) for gid, _, _, seq, _ in rig.rows(table)
    )
    assert [seq for seq, _ in numbered] == list(range(1, 13))
    totals = [r.tables[into.id].totals for r in rig.records() if into.id in r.tables]
    assert totals[-1] == Counts(7, 0, 0)


def test_truncate_of_a_shard_cancels_its_windows_alone(rig: Rig, mysql: MySQLServer, into: TableName) -> None:
    one, two = of(into, 1), of(into, 2)
    run(mysql, into.schema, "INSERT INTO o_1 VALUES (1, 'a')", "INSERT INTO o_2 VALUES (1, 'x')")
    with rig.run(), Reading(rig, one, "a") as first, Reading(rig, two, "b") as second:
        added(rig, into)
        of_one, opened_one = first.open()
        of_two, opened_two = second.open()
        rows_one, rows_two = first.read(opened_one), second.read(opened_two)
        run(mysql, into.schema, "TRUNCATE o_1")
        assert "at once" in cancelled(of_one, lambda: first.deliver(of_one, rows_one))
        second.deliver(of_two, rows_two)
        second.emitted(of_two)
        rig.caught_up()
    assert lake(rig, into) == source(rig, one, two)


DROPS: list[tuple[str, ...]] = [
    ("DROP TABLE o_1",),
    ("DROP TABLE IF EXISTS nothing, o_1",),
    ("DROP TABLE o_1", "CREATE TABLE o_1 (id INT PRIMARY KEY, v VARCHAR(20))", "INSERT INTO o_1 VALUES (9, 'new')"),
]


@pytest.mark.parametrize("statements", DROPS, ids=["", "if exists", "and made again"])
def test_a_shard_that_is_dropped_leaves_with_its_rows(
    statements: tuple[str, ...], rig: Rig, mysql: MySQLServer, into: TableName
) -> None:
    one, two = of(into, 1), of(into, 2)
    with rig.run():
        added(rig, into)
        run(mysql, into.schema, "INSERT INTO o_1 VALUES (1, 'a')", "INSERT INTO o_2 VALUES (1, 'c')", *statements)
        run(mysql, into.schema, "INSERT INTO o_2 VALUES (2, 'later')")
        rig.until(lambda: any(r.altered for r in rig.records()))
        rig.caught_up()
        if len(statements) > 1:
            rig.until(lambda: one in shards_now(rig, into))
    assert rig.phase(into) == "added"
    assert lake(rig, into) == source(rig, two)
    records = rig.records()
    first = next(r for r in records if r.altered)
    assert set(sharding.shards(first.altered[into.id])) == {two}
    assert into.id not in first.tables
    dropped = next(r for r in records if into.id in r.tables and Op.TRUNCATE in ops(rig, r, into))
    assert dropped.number < first.number
    if len(statements) > 1:
        assert sharding.shards(shards_options(rig, into))[one] is not None


def test_a_database_that_is_dropped_takes_the_shards_in_it(
    tmp_path: Path, mysql_factory: Callable[..., MySQLServer]
) -> None:
    server = mysql_factory()
    for name in ("a", "b"):
        run(server, "mysql", f"CREATE DATABASE {name}", f"CREATE TABLE {name}.o (id INT PRIMARY KEY, v VARCHAR(20))")
    into = TableName("all", "o")
    rig = Rig(tmp_path, server, "{name: '*.o', into: all.o}")
    with rig.run():
        added(rig, into)
        run(server, "a", "INSERT INTO o VALUES (1, 'a')", "INSERT INTO b.o VALUES (1, 'b')", "DROP DATABASE a")
        rig.until(lambda: any(r.altered for r in rig.records()))
        run(server, "b", "INSERT INTO o VALUES (2, 'b')")
        rig.caught_up()
    assert lake(rig, into) == source(rig, TableName("b", "o"))


def test_a_shard_that_comes_later_is_captured_from_then_on(rig: Rig, mysql: MySQLServer, into: TableName) -> None:
    with rig.run():
        added(rig, into)
        run(mysql, into.schema, "CREATE TABLE o_3 LIKE o_1")
        rig.until(lambda: of(into, 3) in shards_now(rig, into))
        run(mysql, into.schema, "INSERT INTO o_3 VALUES (1, 'a')")
        rig.caught_up()
    assert lake(rig, into) == source(rig, of(into, 3))


def test_truncate_of_a_table_that_is_no_shard_stops_it(rig: Rig, mysql: MySQLServer, into: TableName) -> None:
    plain = TableName(into.schema, "plain")
    with rig.run():
        added(rig, into)
        run(mysql, into.schema, "TRUNCATE plain")
        rig.until(lambda: rig.phase(plain) == "stopped")
    assert rig.phase(into) == "added"


@pytest.mark.parametrize("before", [True, False], ids=["made again before", "made again after"])
def test_capture_that_was_killed_before_it_took_a_dropped_shard_out_goes_on(
    before: bool, rig: Rig, mysql: MySQLServer, into: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the shard still, and it was dropped: made again, it joins as a new one; and is read, also where that was in the epoch that
    says so, in which its rows are not."""
    from cdc.capture.chain import Chain

    one, two = of(into, 1), of(into, 2)
    again = ("CREATE TABLE o_1 LIKE o_2", "INSERT INTO o_1 VALUES (7, 'b')")

    class KilledError(Exception):
        pass

    def left(chain: Chain) -> dict[TableName, dict[str, object]]:
        if chain._gone and not chain._pending.data:
            raise KilledError
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(Chain, "left", property(left))
        with rig.run(ends_with=KilledError) as capture:
            added(rig, into)
            run(mysql, into.schema, "INSERT INTO o_1 VALUES (1, 'a')", "DROP TABLE o_1", *(again if before else ()))
            capture.join(20)
    assert one in shards_now(rig, into)
    with rig.run():
        run(mysql, into.schema, *(again if not before else ()))
        rig.until(lambda: sharding.shards(shards_options(rig, into)).get(one) is not None)
        run(mysql, into.schema, "INSERT INTO o_2 VALUES (1, 'c')")
        rig.caught_up()
    assert rig.phase(into) == "added"
    assert lake(rig, into) == source(rig, two)


def shards_options(rig: Rig, into: TableName) -> dict[str, object]:
    found: dict[str, object] = {}
    for record in rig.records():
        if record.states is not None:
            found = record.states[into.id].options
        found = record.altered.get(into.id, found)
    return found


def shards_now(rig: Rig, into: TableName) -> set[TableName]:
    return set(sharding.shards(shards_options(rig, into)))


def ops(rig: Rig, record: CommitRecord, into: TableName) -> set[int | None]:
    from cdc.log.codec import decode

    return {
        op
        for payload in rig.log.data(into.id, record.tables[into.id].extent)
        for op in decode(payload).batch.column(0).to_pylist()
    }
