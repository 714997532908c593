"""Findings name a row by its key so that the name can be given back: to `--from`, `--to`, `--key`."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest

from cdc.errors import ConfigError
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from reconcile.values import keynames
from snapshot.chunks import Walk
from snapshot.keytext import parse_key

TABLE = TableName("shop", "orders")
EXACT = Context(prec=65)
AT = datetime(2026, 1, 31, 12, 30, 1, 250_000)  # noqa: DTZ001 - a wall time
CASES: list[tuple[Column, Any, str]] = [
    (Column("k", "int"), -7, "-7"),
    (Column("k", "bigint", unsigned=True), Decimal(2**64 - 1), str(2**64 - 1)),
    (Column("k", "decimal", precision=20, scale=8), Decimal("5.00E-8"), "0.00000005"),
    (Column("k", "decimal", precision=60, scale=2), "-0.50", "-0.50"),
    (Column("k", "decimal", precision=38, scale=0), Decimal("1" * 38), "1" * 38),
    (
        Column("k", "decimal", precision=38, scale=30),
        Decimal("5").quantize(Decimal("1e-30"), context=EXACT),
        "5." + "0" * 30,
    ),
    (Column("k", "decimal", precision=65, scale=30), "9" * 35 + "." + "9" * 30, "9" * 35 + "." + "9" * 30),
    (Column("k", "double"), 1e15, "1e15"),
    (Column("k", "bit", length=1), True, "1"),
    (Column("k", "bit", length=12), b"\x01\x0a", "0x010A"),
    (Column("k", "text", charset="utf8mb4"), "a, b", "a, b"),
    (Column("k", "text", charset="utf8mb4"), "[1]", '["[1]"]'),
    (Column("k", "text", charset="utf8mb4"), " x ", " x "),
    (Column("k", "enum", charset="utf8mb4", members=("a", "b,c")), "b,c", "b,c"),
    (Column("k", "set", charset="utf8mb4", members=("a", "b")), "a,b", "a,b"),
    (Column("k", "enum", charset="utf8mb4", members=(" a", "a ")), " a", " a"),
    (Column("k", "set", charset="utf8mb4", members=(" a", "b")), " a,b", " a,b"),
    (Column("k", "inet6"), "::1.2.3.4", "::1.2.3.4"),
    (Column("k", "inet6"), "1::2:3:4:5:6:7", "1::2:3:4:5:6:7"),
    (Column("k", "inet6"), "1:2:3:4:5:6:7::", "1:2:3:4:5:6:7::"),
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


def test_the_end_of_a_range_is_named_as_a_row_is() -> None:
    schema = TableSchema((Column("s", "text", charset="utf8mb4"), Column("b", "bit", length=12), TEXT), ("s", "b", "t"))
    assert keynames.bound(schema, ("0010", "x")) == "0x0010,x"
    assert keynames.bound(schema, ("shop.part_a", "0010", "x")) == "shop.part_a,0x0010,x"


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (Column("k", "decimal", precision=10, scale=2), "1.005"),
        (Column("k", "decimal", precision=10, scale=2), "x"),
        (Column("k", "decimal", precision=10, scale=2), "NaN"),
        (Column("k", "enum", charset="utf8mb4", members=("a",)), "b"),
        (Column("k", "set", charset="utf8mb4", members=("a",)), "a,b"),
        (Column("k", "inet6"), "1.2.3.4"),
        (Column("k", "bit", length=1), "2"),
    ],
)
def test_what_is_no_value_of_the_column_is_refused(column: Column, text: str) -> None:
    with pytest.raises(ConfigError, match="not a value of column k"):
        parse_key(TABLE, [column], text)


def test_blanks_around_what_people_write_are_no_part_of_it() -> None:
    columns = [
        Column("e", "enum", charset="utf8mb4", members=("a",)),
        Column("n", "int"),
        Column("d", "decimal", scale=1),
    ]
    assert parse_key(TABLE, columns, "a , 7, 0.5") == ("a", 7, "0.5")
