"""Findings name a row by its key so that the name can be given back: to `--from`, `--to`, `--key`."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest

from cdc.names import TableName
from cdc.schema import Column, TableSchema
from reconcile.values import keynames
from snapshot.chunks import Walk
from snapshot.keytext import parse_key

TABLE = TableName("shop", "orders")
AT = datetime(2026, 1, 31, 12, 30, 1, 250_000)  # noqa: DTZ001 - a wall time
CASES: list[tuple[Column, Any, str]] = [
    (Column("k", "int"), -7, "-7"),
    (Column("k", "bigint", unsigned=True), Decimal(2**64 - 1), str(2**64 - 1)),
    (Column("k", "decimal", precision=20, scale=8), Decimal("5.00E-8"), "0.00000005"),
    (Column("k", "decimal", precision=60, scale=2), "-0.50", "-0.50"),
    (Column("k", "double"), 1e15, "1e15"),
    (Column("k", "bit", length=1), True, "1"),
    (Column("k", "bit", length=12), b"\x01\x0a", "0x010A"),
    (Column("k", "text", charset="utf8mb4"), "a, b", "a, b"),
    (Column("k", "text", charset="utf8mb4"), "[1]", '["[1]"]'),
    (Column("k", "text", charset="utf8mb4"), " x ", " x "),
    (Column("k", "enum", charset="utf8mb4", members=("a", "b,c")), "b,c", "b,c"),
    (Column("k", "set", charset="utf8mb4", members=("a", "b")), "a,b", "a,b"),
    (Column("k", "binary", length=3), b"\x00\xff\x00", "00FF00"),
    (Column("k", "varbinary"), b"\xab", "AB"),
    (Column("k", "date"), date(2026, 1, 31), "2026-01-31"),
    (Column("k", "datetime", scale=2), AT, "2026-01-31 12:30:01.250000"),
    (Column("k", "timestamp", scale=6), AT.replace(tzinfo=UTC), "2026-01-31 12:30:01.250000"),
    (Column("k", "time", scale=3), -(100 * 3600 * 1_000_000 + 1000), "-100:00:00.001000"),
    (Column("k", "year"), 2026, "2026"),
    (Column("k", "uuid"), "123e4567-e89b-12d3-a456-426655440000", "123e4567-e89b-12d3-a456-426655440000"),
]
TEXT = Column("t", "text", charset="utf8mb4")


def _table(schema: TableSchema, *cells: Any) -> pa.Table:
    arrays = [pa.array([cell], schema.arrow.field(n).type) for n, cell in zip(schema.key, cells, strict=True)]
    return pa.table(arrays, names=list(schema.key))


def _given_back(schema: TableSchema, name: str) -> pa.Table:
    walk = Walk(TABLE, schema)
    key = parse_key(TABLE, schema.columns, name)
    return walk.keys_of([walk.bound_of([str(cell) for cell in key])])


@pytest.mark.parametrize(("column", "cell", "name"), CASES, ids=lambda c: c.type if isinstance(c, Column) else "")
def test_a_name_can_be_given_back(column: Column, cell: Any, name: str) -> None:
    schema = TableSchema((column,), ("k",))
    keys = _table(schema, cell)
    assert keynames.names(schema, keys) == [name]
    assert _given_back(schema, name).equals(keys)


@pytest.mark.parametrize(("column", "cell", "name"), CASES, ids=lambda c: c.type if isinstance(c, Column) else "")
@pytest.mark.parametrize("text", ["x", " x", "a,b", "[", '"'])
def test_so_can_one_of_several_columns(column: Column, cell: Any, name: str, text: str) -> None:
    schema = TableSchema((column, TEXT), ("k", "t"))
    keys = _table(schema, cell, text)
    (found,) = keynames.names(schema, keys)
    assert _given_back(schema, found).equals(keys)
    plain = name if not name.startswith('["') else orjson.loads(name)[0]
    if "," not in plain + text and not plain.startswith("["):
        assert found == f"{plain},{text}"


def test_a_row_without_a_key_has_a_name() -> None:
    schema = TableSchema((Column("a", "int"), TEXT), ("a", "t"))
    assert keynames.names(schema, _table(schema, None, "x")) == ["NULL,x"]
