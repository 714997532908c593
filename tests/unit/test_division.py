"""Cells and buckets, and sums over them."""

from __future__ import annotations

import datetime
import decimal
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc.names import TableName
from cdc.schema import Column, TableSchema
from reconcile.values import division
from reconcile.values.division import OUTSIDE, Buckets, Cells, Range, is_ordered, runs, sorted_keys, strips
from reconcile.values.lakeside import Sums
from reconcile.values.scope import Scope
from reconcile.values.sources import Sum
from snapshot.chunks import Walk


def walk(*columns: Column) -> Walk:
    return Walk(TableName("s", "t"), TableSchema(columns, tuple(c.name for c in columns)))


def keys(of: Walk, *rows: tuple[Any, ...]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(of.schema.key, r, strict=True)) for r in rows], of.schema.arrow)


INT = Column("a", "int")


def test_the_outermost_cells_are_open() -> None:
    of = walk(INT)
    cells = Cells(of, keys(of, (10,), (20,), (20,)))
    assert cells.count == 3
    assert list(cells.of(keys(of, (-5,), (9,), (10,), (19,), (20,), (99,)))) == [0, 0, 1, 1, 2, 2]
    assert [cells.range(n, n + 1) for n in range(3)] == [
        Range(None, (10,)),
        Range((10,), (20,)),
        Range((20,), None, True, True),
    ]
    assert cells.range(0, 3) == Range(None, None, True, True)


def test_a_table_without_bounds_is_one_cell() -> None:
    of = walk(INT)
    cells = Cells(of, keys(of))
    assert (cells.count, list(cells.of(keys(of, (1,))))) == (1, [0])
    assert cells.range(0, 1) == Range(None, None, True, True)


def test_a_scope_bounds_the_outermost_cells() -> None:
    of = walk(INT)
    cells = Cells(of, keys(of, (5,), (10,), (20,), (30,)), (10,), (25,))
    assert cells.count == 2
    assert list(cells.of(keys(of, (9,), (10,), (19,), (20,), (25,), (26,)))) == [OUTSIDE, 0, 0, 1, 1, OUTSIDE]
    assert cells.range(0, 1) == Range((10,), (20,))
    assert cells.range(1, 2) == Range((20,), (25,), True, True)


@pytest.mark.parametrize(
    ("column", "make"),
    [
        (Column("a", "bigint"), lambda r: r.randrange(-(2**63), 2**63)),
        (Column("a", "bigint", unsigned=True), lambda r: decimal.Decimal(r.randrange(2**64))),
        (Column("a", "decimal", precision=12, scale=3), lambda r: decimal.Decimal(r.randrange(-(10**6), 10**6)).scaleb(-3)),
        (Column("a", "varbinary", length=4), lambda r: bytes(r.randrange(256) for _ in range(r.randrange(4)))),
        (Column("a", "date"), lambda r: datetime.date(1900, 1, 1) + datetime.timedelta(r.randrange(90_000))),
        (Column("a", "datetime", scale=6), lambda r: datetime.datetime(1900, 1, 1) + datetime.timedelta(0, r.randrange(10**9))),  # noqa: DTZ001
        (Column("a", "time", scale=6), lambda r: r.randrange(-(10**12), 10**12)),
        (Column("a", "year"), lambda r: 1901 + r.randrange(255)),
    ],
)  # fmt: skip
def test_a_key_is_in_the_cell_whose_range_has_it(column: Column, make: Any) -> None:
    r = random.Random(7)
    of = walk(column, Column("b", "smallint"))
    assert is_ordered(of.schema)
    all_keys = sorted({(make(r), r.randrange(4)) for _ in range(400)})
    edges = sorted(r.sample(all_keys, 30))
    cells = Cells(of, keys(of, *r.sample(edges, 30)))
    found = cells.of(keys(of, *all_keys))
    assert list(found) == [sum(edge <= key for edge in edges) for key in all_keys]
    for n in range(cells.count):
        assert cells.range(n, n + 1).low == (None if n == 0 else division.bound_of(of, keys(of, edges[n - 1])))


@pytest.mark.parametrize(
    "column",
    [
        Column("a", "text", charset="utf8mb4"),
        Column("a", "double"),
        Column("a", "enum", charset="utf8mb4", members=("x",)),
    ],
)
def test_an_order_that_the_lake_does_not_have_is_none(column: Column) -> None:
    assert not is_ordered(walk(INT, column).schema)


def test_buckets_are_all_used() -> None:
    of = walk(Column("a", "text", charset="utf8mb4"))
    buckets = Buckets(of.key, 4)
    found = buckets.of(keys(of, *((f"é{n}",) for n in range(500))))
    assert set(found) == set(range(16))
    assert Buckets.for_rows(of.key, 0).count == 1
    assert Buckets.for_rows(of.key, 10**9).count == 1 << division.BITS_MOST


@pytest.mark.parametrize(
    ("count", "sample"),
    [(1, 0.01), (7, 0.01), (100, 0.01), (101, 0.5), (5000, 0.01), (5000, 0.3), (99, 1.0), (33, None)],
)
def test_turns_see_every_cell_once(count: int, sample: float | None) -> None:
    period = 1 if sample is None else round(1 / sample)
    turns = [[n for first, last in strips(count, sample, turn) for n in range(first, last)] for turn in range(period)]
    if count >= period:
        assert sorted(n for turn in turns for n in turn) == list(range(count))
        assert max(map(len, turns)) - min(map(len, turns)) <= count // period + 1
    else:
        assert {n for turn in turns for n in turn} == set(range(count))


def test_runs() -> None:
    assert list(runs([])) == []
    assert list(runs([1, 2, 3, 7, 9, 10])) == [(1, 4), (7, 8), (9, 11)]


def test_sorted_keys_come_once() -> None:
    of = walk(INT, Column("b", "varbinary", length=3))
    assert sorted_keys(keys(of, (2, b"a"), (1, b"b"), (1, b"\xff"), (2, b"a"))).to_pylist() == [
        {"a": 1, "b": b"b"},
        {"a": 1, "b": b"\xff"},
        {"a": 2, "b": b"a"},
    ]


def test_sums_carry_from_word_to_word() -> None:
    r = random.Random(3)
    sums, cells = Sums(5), [Sum()] * 5
    for _ in range(20):
        rows = [r.choice((b"\xff" * 16, r.randbytes(16))) for _ in range(200)]
        places = [r.randrange(1, 4) for _ in rows]
        sums.add(pa.array(rows, pa.binary(16)), np.array(places, np.int64))
        for row, place in zip(rows, places, strict=True):
            cells[place] = cells[place].plus(Sum(1, int.from_bytes(row[:8]), int.from_bytes(row[8:])))
    assert [sums.between(n, n + 1) for n in range(5)] == cells
    assert sums.between(0, 5) == cells[1].plus(cells[2]).plus(cells[3])
    assert max(c.high for c in cells) > 2**70


def test_rows_that_are_seen_are_counted() -> None:
    sums = Sums(4)
    sums.see(np.array([1, 3, 3], np.int64))
    sums.see(np.zeros(0, np.int64))
    assert list(sums.seen) == [0, 1, 0, 2]


def test_a_scope_comes_back() -> None:
    for scope in (Scope(), Scope(("a",), (1, "b"), (2, "c"), ("at", "x", "y"), 0.01, 3)):
        assert Scope.from_dict(scope.to_dict()) == scope
    assert Scope(turn=4).whole
    assert not Scope(sample=0.5).whole
