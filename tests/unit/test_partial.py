"""Windows, and keys that the stream touched with some of their columns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc.capture.base import TableChanges
from cdc.capture.windows import Touched, changes
from cdc.epoch import Op, WindowId
from cdc.log.codec import DIFF, METADATA, Incomplete
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.schema import Column, TableSchema
from cdc.window import Delivery, Windows

T = TableName("s", "t")
SCHEMA = TableSchema(
    (Column("id", "bigint"), Column("a", "int"), Column("b", "text", charset="utf8mb4"), Column("j", "json")), ("id",)
)
Row = tuple[Any, ...]
A = ...
"""A value that is not known."""
PATCH = {"column": 3, "op": 0, "path": "$", "value": "[]"}


def stream(*rows: tuple[int, Row], diffs: Sequence[int] = ()) -> TableChanges:
    """Changes as a decoder gives them: operation and row; `diffs`: which of them have differences. Halves of a key change follow each
    other."""
    known = np.array([[value is not A for value in row] for _, row in rows])
    numbers, number = [], 0
    for n in range(len(rows)):
        number += not (n and rows[n - 1][0] == Op.MOVE_OUT)
        numbers.append(number)
    metadata = [[op for op, _ in rows], [0] * len(rows), numbers, [0] * len(rows), [0] * len(rows), numbers]
    arrays: list[Any] = [pa.array(m, f.type) for m, f in zip(metadata, METADATA, strict=True)]
    arrays += [
        pa.array([None if row[i] is A else row[i] for _, row in rows], kind)
        for i, kind in enumerate(SCHEMA.arrow.types)
    ]
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*METADATA, *SCHEMA.arrow]))
    given = Incomplete.of(known, pa.array([[PATCH] if n in diffs else [] for n in range(len(rows))], pa.list_(DIFF)))
    whole = bool(known.all())
    return TableChanges(T, SCHEMA, batch, None if whole else given.present, None if whole else given.diffs)


def touched(*given: TableChanges, appended: bool = False) -> Touched:
    found = Touched(SCHEMA, appended=appended)
    for one in given:
        keys = found.keys(one.batch)
        found.note(one)
        found.add(keys)
    return found


def delivery(*rows: Row, gone: Sequence[int] = (), points: bool = False) -> Delivery:
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(SCHEMA.arrow.types)]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA.arrow)
    keys = pa.table([pa.array(gone, pa.int64())], names=["id"]) if gone else None
    return Delivery([batch], keys, BinlogEnd("b.1", 4), "u", {}, points)


def written(given: Delivery, since: Touched) -> list[Row]:
    """The rows that a window puts into the log."""
    window = Windows().ask(WindowId("job", 1), T)
    batch = changes(window, given, SCHEMA, since).batch
    return [tuple(row.values())[len(METADATA) :] for row in batch.to_pylist() if row["_op"] == Op.READ]


OLD = (1, 10, "old", "{}")


def test_columns_that_the_stream_set_are_set_in_the_windows_row() -> None:
    since = touched(
        stream((Op.UPDATE, (1, 11, A, A)), (Op.UPDATE, (1, A, None, A))), stream((Op.UPDATE, (1, 12, A, A)))
    )
    assert written(delivery(OLD, (2, 20, "other", "{}")), since) == [(2, 20, "other", "{}"), (1, 12, None, "{}")]
    assert since.doubtful(delivery(OLD)).num_rows == 0


@pytest.mark.parametrize(
    "whole",
    [
        stream((Op.UPDATE, (1, 1, "x", "{}"))),
        stream((Op.DELETE, (1, A, A, A)), (Op.INSERT, (1, 1, "x", "{}"))),
        stream((Op.DELETE, (1, A, A, A))),
        stream((Op.MOVE_OUT, (1, A, A, A)), (Op.UPDATE, (9, A, A, A))),
        stream((Op.INSERT, (1, 1, A, "{}"))),  # the merger's to have read again
    ],
    ids=["update", "anew", "deleted", "moved", "with a default"],
)
@pytest.mark.parametrize("order", [0, 1])
def test_a_key_of_which_the_stream_has_the_row_is_the_streams(whole: TableChanges, order: int) -> None:
    partial = stream((Op.UPDATE, (1, 11, A, A)))
    since = touched(*((partial, whole) if order else (whole, partial)))
    assert written(delivery(OLD), since) == []
    assert 1 not in since.doubtful(delivery(OLD)).column("id").to_pylist()


def test_who_cannot_tell_reads_again() -> None:
    differs = stream((Op.UPDATE, (1, A, A, A)), diffs=[0])
    moves = stream((Op.MOVE_OUT, (7, A, A, A)), (Op.UPDATE, (8, A, A, A)))
    since = touched(differs, moves, stream((Op.UPDATE, (1, 5, A, A))))
    assert written(delivery(OLD), since) == []
    assert set(since.doubtful(delivery(OLD)).column("id").to_pylist()) == {1, 8}
    # A window for keys is not read for others.
    assert since.doubtful(delivery(OLD, points=True)).column("id").to_pylist() == [1]
    assert since.doubtful(delivery(gone=[8], points=True)).column("id").to_pylist() == [8]
    since.note(stream((Op.UPDATE, (1, 1, "x", "{}"))))
    assert since.doubtful(delivery(OLD)).column("id").to_pylist() == [8]


def test_a_row_that_moved_with_all_its_columns_known_is_the_streams() -> None:
    since = touched(
        stream((Op.INSERT, (7, 1, "x", "{}"))), stream((Op.MOVE_OUT, (7, A, A, A)), (Op.UPDATE, (8, 2, A, A)))
    )
    assert since.doubtful(delivery()).num_rows == 0


def test_a_table_of_changes_mends_nothing() -> None:
    since = touched(stream((Op.UPDATE, (1, 11, A, A))), stream((Op.UPDATE, (1, A, A, A)), diffs=[0]), appended=True)
    assert written(delivery(OLD), since) == []
    assert since.doubtful(delivery(OLD)).num_rows == 0


@pytest.mark.parametrize("seed", range(200))
def test_the_row_is_right_whenever_in_the_window_it_was_read(seed: int) -> None:
    """What the lake has after all changes of the window and then the window's row, is what the source has."""
    choose = random.Random(seed)
    states: list[Row] = [OLD]
    rows: list[tuple[int, Row]] = []
    for n in range(choose.randrange(6)):
        new = list(states[-1])
        known: list[Any] = [1, A, A, A]
        for column in choose.sample([1, 2, 3], choose.randrange(1, 3)):
            known[column] = new[column] = [None, n, f"t{n}", f"[{n}]"][column]
        whole = choose.random() < 0.2
        rows.append((Op.UPDATE, tuple(new) if whole else tuple(known)))
        states.append(tuple(new))
    cut = choose.randrange(len(rows) + 1)
    since = touched(*(stream(*part) for part in (rows[:cut], rows[cut:]) if part))
    drifted: list[Any] = [1, -1, "drifted", "drifted"]
    for _, row in rows:
        drifted = [old if value is A else value for old, value in zip(drifted, row, strict=True)]
    read = written(delivery(choose.choice(states)), since)
    assert [tuple(drifted), *read][-1] == states[-1]
