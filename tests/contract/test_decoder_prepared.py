"""XA transactions and what happens to their tables between their phases: no row of theirs may be lost in silence."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cdc.capture.native import NativeDecoder
from cdc.names import TableName
from cdc.schema import TableSchema
from dev.mysql import MySQLServer
from tests.contract.binlog import Decoded, Packets, Recording, feed, recording, run, schema_of
from tests.contract.decoding import drained, rows
from tests.reference.events import Type

Tables = Mapping[TableName, TableSchema]


@pytest.fixture
def t(mysql: MySQLServer, schema: str) -> dict[TableName, TableSchema]:
    """A small table, `t`, captured, beside `flag`, whose column `f` is a boolean."""
    run(
        mysql,
        schema,
        "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(20))",
        "CREATE TABLE flag (id INT PRIMARY KEY, f TINYINT)",
    )
    return {
        TableName(schema, "t"): schema_of(mysql, schema, "t"),
        TableName(schema, "flag"): schema_of(mysql, schema, "flag").with_overrides({"f": "boolean"}),
    }


def phases(recorded: Recording) -> tuple[list[bytes], list[bytes]]:
    """The events up to the last transaction, and that one's."""
    last = recorded.of_type(Type.GTID)[-1]
    return recorded.events[:last], recorded.events[last:]


def told(found: Decoded, table: str) -> list[str]:
    return [str(stop.error.what) for stop in found.stops if stop.table.name == table]


def recaptured(recorded: Recording, tables: Tables, table: str, stop_first: bool = False) -> Decoded:
    """What the last transaction brings, when `table` was added again right before it."""
    decoder, packets, found = NativeDecoder(), Packets(), Decoded()
    decoder.capture(tables)
    before, after = phases(recorded)
    gtids = recorded.of_type(Type.GTID)
    for number, event in enumerate(before):
        if stop_first and number == gtids[1]:
            decoder.stop(next(name for name in tables if name.name == table))
        feed(decoder, packets.of(event), found)
    found.add(decoder.drain())
    decoder.capture(tables)
    late = Decoded()
    for event in after:
        feed(decoder, packets.of(event), late)
    late.add(decoder.drain())
    return late


def test_a_table_that_stopped_inside_an_xa_transaction_lacks_its_rows_when_it_is_back(
    mysql: MySQLServer, schema: str, t: Tables
) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "XA START 'x'",
            "INSERT INTO flag VALUES (1, 1)",
            "INSERT INTO flag VALUES (2, 2)",
            "XA END 'x'",
            "XA PREPARE 'x'",
        )
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a')")
        run(mysql, schema, "XA COMMIT 'x'")
    late = recaptured(recorded, t, "flag")
    assert told(late, "flag")


def test_a_table_that_was_stopped_when_an_xa_transaction_wrote_to_it_lacks_its_rows_when_it_is_back(
    mysql: MySQLServer, schema: str, t: Tables
) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (0, 'before')")
        run(mysql, schema, "XA START 'x'", "INSERT INTO t VALUES (1, 'xa')", "XA END 'x'", "XA PREPARE 'x'")
        run(mysql, schema, "XA COMMIT 'x'")
    late = recaptured(recorded, t, "t", stop_first=True)
    assert told(late, "t")
    assert rows(late, "t") == []


def test_xa_transactions_in_one_phase_take_no_room_once_they_are_over(
    mysql: MySQLServer, schema: str, t: Tables
) -> None:
    run(mysql, schema, "CREATE TABLE l (id INT PRIMARY KEY, v LONGBLOB)")
    with recording(mysql) as recorded:
        for i in range(9):
            run(
                mysql,
                schema,
                f"XA START 'l{i}'",
                f"INSERT INTO l VALUES ({i}, REPEAT('x', 30000000))",
                f"XA END 'l{i}'",
                f"XA COMMIT 'l{i}' ONE PHASE",
            )
    found = drained(NativeDecoder(), recorded, {TableName(schema, "l"): schema_of(mysql, schema, "l")})
    assert len(rows(found, "l")) == 9


def test_an_xa_transaction_without_rows_stops_nothing(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "XA START 'e'", "SELECT 1", "XA END 'e'", "XA PREPARE 'e'", "XA COMMIT 'e'")
        run(mysql, schema, "XA START 'e'", "SELECT * FROM t", "XA END 'e'", "XA PREPARE 'e'", "XA ROLLBACK 'e'")
        run(mysql, schema, "XA START 'e'", "UPDATE t SET v = 'x'", "XA END 'e'", "XA COMMIT 'e' ONE PHASE")
        run(
            mysql,
            schema,
            "XA START 'e'",
            "INSERT INTO t VALUES (1, 'a')",
            "DELETE FROM t WHERE id = 1",
            "XA END 'e'",
            "XA PREPARE 'e'",
            "XA COMMIT 'e'",
        )
        run(
            mysql,
            schema,
            "SET sql_log_bin = 0",
            "XA START 'n'",
            "INSERT INTO t VALUES (7, 'n')",
            "XA END 'n'",
            "XA PREPARE 'n'",
            "XA COMMIT 'n'",
        )
        run(
            mysql,
            schema,
            "XA START 'e'",
            "INSERT INTO t VALUES (2, 'a')",
            "SAVEPOINT s",
            "INSERT INTO t VALUES (3, 'a')",
            "ROLLBACK TO SAVEPOINT s",
            "XA END 'e'",
            "XA PREPARE 'e'",
            "XA COMMIT 'e'",
        )
        run(mysql, schema, "XA START 'e'", "INSERT INTO t VALUES (4, 'a')", "XA END 'e'", "XA ROLLBACK 'e'")
        run(mysql, schema, "INSERT INTO t VALUES (5, 'b')")
    found = drained(NativeDecoder(), recorded, t)
    assert [r["cells"][0] for r in rows(found, "t")] == [1, 1, 2, 5]
