"""Mode `soft-delete`: one row a key, and that of a deleted key stays, with the time of the deletion. Pure.

What becomes of a key, step by step, whatever the merges in which the steps come:

    none     put: its row, `_cdc_deleted_at` NULL      end: none (a row that the table never had)
    there    put: the new row                          end: the row as it is, `_cdc_deleted_at` the end's time
    deleted  put: the new row, `_cdc_deleted_at` NULL  end: as it is

`_cdc_ts_ms` and `_cdc_seq` are those of the last step that changed something, the end's for a deleted row. Effects of a key's changes:
`inserted`, its row was not in the table (also where it is there as a deleted one now); `replaced`, it was, and is another now, deleted
or not; `absent`, nothing came of them. No row ever goes, so a table grows by `inserted`. Rows that a truncation marks are none's effect.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc.lake.changes import Effects
from cdc.lake.steps import (
    END,
    SEQ,
    TS_MS,
    Mask,
    Numbers,
    Plan,
    Steps,
    replaced,
    times,
    together,
)

DELETED_AT: Final = "_cdc_deleted_at"
FIELDS: Final[tuple[pa.Field[Any], ...]] = (pa.field(DELETED_AT, pa.timestamp("us", tz="UTC")),)
"""The mode's own columns."""


def live(rows: pa.Table) -> Any:
    """Which rows the source has."""
    return pc.is_null(rows.column(DELETED_AT))


def needs(steps: Steps, others: int) -> Mask:
    """Of which keys, those of the steps and `others` more, the row in the table must be known to plan: those that only end."""
    return np.concatenate([_last_put(steps) < 0, np.ones(others, np.bool_)])


def plan(steps: Steps, found: Mask, base: pa.Table, others: pa.Table | None = None) -> Plan:
    """What these steps do.

    `others` are keys of truncated shards of which the steps have no changes. `found`: of which keys, those of the steps and the others,
    the table has a row; `base` are these rows as far as they are needed (`needs`), in that order.
    """
    turns, last_put = steps.turns, _last_put(steps)
    rows = steps.rows
    here, count = found[: len(last_put)], len(last_put)
    # The rows of keys that the steps have a row of.
    known = last_put >= 0
    ends = _ends(steps)
    deleted = known & (turns.kind[ends] == END)
    images = rows.take(turns.row[last_put[known]])
    # A key's steps behind its last put are ends; the first of them counts.
    by = turns.row[np.where(deleted, last_put + 1, ends)[known]]
    images = _marked(images, rows.take(by), pa.array(deleted[known]))
    # The rows of keys that only end: as they are, if they are there.
    gone = np.concatenate([here & known, np.zeros(len(found) - count, np.bool_)])
    ended_by = np.concatenate([np.where(known, -1, turns.row[turns.first])])
    if others is not None:
        ended_by = np.concatenate([ended_by, steps.truncated_at(others)])
    asked = np.flatnonzero(found & needs(steps, len(found) - count))
    there = np.asarray(live(base).to_numpy(), np.bool_) & (ended_by[asked] >= 0)
    gone[asked] |= there
    taken = base.filter(pa.array(there))
    marked = _marked(taken, rows.take(ended_by[asked[there]]), pa.repeat(pa.scalar(True), taken.num_rows))
    replaced_ = int((here & known).sum() + (asked[there] < count).sum())
    inserted = int((known & ~here).sum())
    effects = Effects(inserted=inserted, replaced=replaced_, absent=count - inserted - replaced_)
    return Plan(together([images, marked.select(_order(images, marked))]), gone, effects)


def _last_put(steps: Steps) -> Numbers:
    """For each key the place of its last put among the turns; -1: it has none."""
    turns = steps.turns
    if not len(turns.key):
        return np.zeros(0, np.int64)
    places = np.where(turns.kind != END, np.arange(len(turns.key)), -1)
    return np.maximum.reduceat(places, turns.first)


def _ends(steps: Steps) -> Numbers:
    """For each key the place of its last step."""
    turns = steps.turns
    return np.concatenate([turns.first[1:], [len(turns.key)]])[: len(turns.first)] - 1


def _marked(rows: pa.Table, by: pa.Table, deleted: pa.Array[Any]) -> pa.Table:
    """Rows with `_cdc_ts_ms` and `_cdc_seq` of the steps `by`; those that are `deleted` since then. `_cdc_deleted_at` stands behind those."""
    for name in (TS_MS, SEQ):
        rows = replaced(rows, name, by.column(name).combine_chunks())
    at = pc.if_else(deleted, times(by), pa.scalar(None, FIELDS[0].type))
    if DELETED_AT in rows.column_names:
        return replaced(rows, DELETED_AT, at)
    return rows.add_column(rows.column_names.index(SEQ) + 1, FIELDS[0], at)


def _order(images: pa.Table, marked: pa.Table) -> list[str]:
    """The columns of rows that came from the table, in the order of the others; more of them, those of partitions, are made anew."""
    plain = [name for name in images.column_names if name in marked.column_names]
    more = [name for name in marked.column_names[-1:] if name == "_cdc_unfit" and name not in plain]
    return plain + more
