"""The rows that are measured with: ten columns of ten types, made by MySQL or by Arrow from their number alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc.schema import Column, TableSchema

COLUMNS = """
    id BIGINT NOT NULL PRIMARY KEY,
    change_no BIGINT NOT NULL,
    amount DECIMAL(12, 2) NOT NULL,
    score DOUBLE NOT NULL,
    name VARCHAR(60) NOT NULL,
    note VARCHAR(200),
    day DATE NOT NULL,
    created DATETIME(6) NOT NULL,
    changed TIMESTAMP(3) NOT NULL,
    status ENUM('placed', 'paid', 'shipped', 'delivered', 'returned') NOT NULL
"""
STATUS = ("placed", "paid", "shipped", "delivered", "returned")
EXPRESSIONS = (
    "n",
    "0",
    "(CRC32(n) % 1000000) / 100",
    "(CRC32(n + 1) % 100000) / 997e0",
    "CONCAT('name ', HEX(CRC32(n + 2)))",
    "IF(n % 3 = 0, NULL, REPEAT(CONCAT(HEX(CRC32(n + 3)), ' '), 1 + n % 5))",
    "DATE'1990-01-01' + INTERVAL n % 9000 DAY",
    "TIMESTAMP'2024-01-01 00:00:00' + INTERVAL n % 30000000 SECOND + INTERVAL CRC32(n) % 1000000 MICROSECOND",
    "TIMESTAMP'2025-01-01 00:00:00' + INTERVAL n % 30000000 SECOND",
    "1 + n % 5",
)
"""Row `n`, for a SELECT."""

SCHEMA = TableSchema(
    (
        Column("id", "bigint"),
        Column("change_no", "bigint"),
        Column("amount", "decimal", precision=12, scale=2),
        Column("score", "double"),
        Column("name", "text", charset="utf8mb4"),
        Column("note", "text", charset="utf8mb4"),
        Column("day", "date"),
        Column("created", "datetime", scale=6),
        Column("changed", "timestamp", scale=3),
        Column("status", "enum", charset="utf8mb4", members=STATUS),
    ),
    ("id",),
)


def arrow(numbers: Iterable[int], change_no: int = 0) -> pa.Table:
    """Rows of these numbers, as the lake has them; other values for another `change_no`."""
    ids: Any = pa.array(numbers, pa.int64())
    dice: Any = pc.bit_wise_and(pc.multiply(pc.add(ids, change_no), 2654435761), 0x3FFFFFFF)
    digits: Any = dice.cast(pa.string())
    small: Any = pc.bit_wise_and(dice, 0xFFFF)
    fourth: Any = pc.equal(pc.bit_wise_and(ids, 3), pa.scalar(0, pa.int64()))
    note: Any = pc.binary_repeat(pc.binary_join_element_wise(digits, "", " "), pc.add(pc.bit_wise_and(ids, 3), 1))
    columns: list[Any] = [
        ids,
        pa.repeat(pa.scalar(change_no, pa.int64()), len(ids)),
        small.cast(pa.int32()).cast(pa.decimal128(12, 2)),
        pc.divide(dice.cast(pa.float64()), 997.0),
        pc.binary_join_element_wise("name", digits, " "),
        pc.if_else(fourth, pa.scalar(None, pa.string()), note),
        pc.bit_wise_and(dice, 0x1FFF).cast(pa.int32()).cast(pa.date32()),
        pc.add(pc.multiply(dice, 1_000_003), 1_600_000_000_000_000).cast(pa.timestamp("us")),
        pc.multiply(pc.add(small, 1_700_000_000), 1_000_000).cast(pa.timestamp("us", tz="UTC")),
        pa.array(STATUS).take(pc.bit_wise_and(dice, 3)),
    ]
    return pa.table(columns, schema=SCHEMA.arrow)
