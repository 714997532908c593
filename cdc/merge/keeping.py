"""Changes of tables that keep what was there, `soft-delete` and `history`: one after the other, none folded away. Pure: the same for any
permutation and duplication of the changes.

Of a `history` table every change is effective. A `soft-delete` table shows the last change of a key, and a change before it is
`superseded` as where it folds: although an image may come from there, that of a row which a later change deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from cdc.config import Mode
from cdc.epoch import Op, WindowId
from cdc.lake import FoldCounts
from cdc.lake.steps import END, PUT, READ, TRUNCATION, Numbers, Steps, numbered
from cdc.log.codec import Changes
from cdc.merge.gather import changes_in, each_once, gather, key_places, lake_rows
from cdc.position import Position
from cdc.schema import TableSchema

_KINDS = {
    Op.INSERT: PUT,
    Op.UPDATE: PUT,
    Op.DELETE: END,
    Op.MOVE_OUT: END,
    Op.READ: READ,
    Op.TRUNCATE: TRUNCATION,
}


def steps(
    mode: Mode,
    changes: Sequence[Changes],
    schema: TableSchema,
    exclude: Position | None = None,
    dropped: Collection[WindowId] = (),
) -> Steps:
    """Every change once, in commit order, less what is before `exclude` and the rows of the windows `dropped`, as `cdc.merge.fold.fold`. A
    change of the key is two steps, the end of the old one and a put of the new one.

    Raises `LakeError` for a NULL in a key's column or a table without a key, `LogDamagedError` for rows of another schema and for half
    a key change.
    """
    rows, logged = gather(changes, schema, exclude, dropped)
    places = key_places(rows, schema)
    rows, distinct = each_once(rows)
    ops = rows.column("op").to_numpy()
    kinds = np.zeros(len(ops), np.int8)
    for op, kind in _KINDS.items():
        kinds[ops == op] = kind
    real = np.flatnonzero(kinds != TRUNCATION)
    changed = rows.take(real) if len(real) < len(ops) else rows
    numbers, first = numbered([changed.column(place) for place in places])
    of_key = np.full(len(ops), -1)
    of_key[real] = numbers
    effective = distinct if mode == "history" else changes_in(_last(changed, numbers))
    counts = FoldCounts(
        logged=logged,
        superseded=distinct - effective,
        duplicate=logged.changes - distinct,
        effective=effective,
        key_changes=(changed.num_rows if mode == "history" else len(first)) - effective,
    )
    keys = pa.table(
        [changed.column(place).take(first).combine_chunks() for place in places],
        schema=pa.schema([schema.arrow.field(name) for name in schema.key]),
    )
    return Steps(lake_rows(rows, schema), kinds, keys, of_key, counts)


def _last(rows: pa.Table, numbers: Numbers) -> pa.Table:
    """The last row of each key."""
    last = np.full(int(numbers.max(initial=-1)) + 1, -1)
    np.maximum.at(last, numbers, np.arange(len(numbers)))
    return rows.take(last)
