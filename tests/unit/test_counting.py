"""Rows are counted by operation, without a look at their values; what is no record is an error, and not a wrong number."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from cdc.epoch import Op
from cdc.errors import LogDamagedError
from cdc.log.codec import METADATA, decode, encode
from cdc.trace.counting import NAMES, ShortError, count


def records(operations: list[int], transactions: list[int], gtids: list[str], limit: int = 1 << 20) -> list[bytes]:
    n = len(operations)
    columns: list[Any] = [
        pa.array(operations, pa.int8()),
        pa.array(transactions, pa.int32()),
        *(pa.array(range(n), field.type) for field in list(METADATA)[2:]),
        pa.array([f"value {i}" for i in range(n)]),
    ]
    schema = pa.schema([*METADATA, pa.field("_op", pa.string())])  # a source's column may have any name
    return [bytes(r) for r in encode(pa.RecordBatch.from_arrays(columns, schema=schema), gtids, "h" * 64, limit)]


def test_by_operation_and_windows() -> None:
    rng = random.Random(7)
    operations = [rng.choice([*NAMES, Op.TRUNCATE]) for _ in range(5000)]
    gtids = ["u:1", "snap:job", "u:2", "snap:other"]
    transactions = [rng.randrange(4) for _ in operations]
    made = records(operations, transactions, gtids, limit=20_000)
    assert len(made) > 3
    found = count(made)
    assert {name: operations.count(op) for op, name in NAMES.items()} == {k: found[k] for k in NAMES.values()}
    assert found["windowed"] == sum(t in (1, 3) for t in transactions)
    decoded = [decode(r) for r in made]
    assert (
        sum(c.batch.num_rows for c in decoded)
        == 5000
        == operations.count(Op.TRUNCATE) + sum(found.values()) - found["windowed"]
    )


def test_the_beginning_is_enough_where_the_operations_are_in_it() -> None:
    (made,) = records([Op.UPDATE] * 3000, [0] * 3000, ["u:1"])
    assert len(made) > 100_000
    whole = count([made])
    assert whole["updates"] == 3000
    enough = next(n for n in range(1000, len(made), 500) if _counted(made[:n]))
    assert 3000 < enough < 10_000
    assert count([made[:enough]], whole=False) == whole
    for short in range(0, enough - 500, 97):
        with pytest.raises(ShortError):
            count([made[:short]], whole=False)
    (windows,) = records([Op.READ] * 3000, [0] * 3000, ["snap:job"])
    with pytest.raises(ShortError):
        count([windows[:20_000]], whole=False)


def _counted(head: bytes) -> bool:
    try:
        return bool(count([head], whole=False))
    except ShortError:
        return False


def test_nothing_is_nothing() -> None:
    assert set(count([]).values()) == {0}


def test_what_is_damaged_is_an_error_and_never_more_than_that() -> None:
    (made,) = records([Op.INSERT] * 300, [0] * 300, ["snap:job"])
    rng = random.Random(11)
    damages = 0
    for _ in range(3000):
        damaged = bytearray(made)
        if rng.random() < 0.2:
            damaged = damaged[: rng.randrange(len(damaged))]
        for _ in range(rng.randrange(1, 4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            count([bytes(damaged)])
        except LogDamagedError:
            damages += 1
    assert damages > 500


def test_a_column_that_is_shorter_than_it_says() -> None:
    (made,) = records([Op.INSERT] * 300, [0] * 300, ["u:1"])
    with pytest.raises(LogDamagedError):
        count([made[: len(made) // 2]])
