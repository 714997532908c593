"""Mode `history` (SCD2): every change of a row is a version of it, a row of its own. Pure.

What becomes of a key, step by step, whatever the merges in which the steps come:

    none     put, read: a version, current             end: none
    current  put: the version ends, a new one begins   read: as it is if equal, else as put      end: the version ends

A version is valid from its own step's commit time on, before that of the step that ended it: `valid_to`, NULL as long as it `is_current`.
`_cdc_ts_ms` and `_cdc_seq` are those of the step that began it. Versions of one millisecond are told apart by `_cdc_seq`; all but the last of
them have no length.

Effects: `inserted`, a version began (whether one of its key ended then or not); `replaced`, one ended and none began; `absent`, nothing came
of it: an end of what was not there, a read of what is there already. So a table grows by `inserted`. Versions that a truncation ends are
none's effect.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from cdc import unfit
from cdc.lake.changes import Effects
from cdc.lake.steps import END, READ, SEQ, TS_MS, Mask, Numbers, Plan, Steps, alike, replaced, starts, times, together

VALID_FROM: Final = "valid_from"
VALID_TO: Final = "valid_to"
IS_CURRENT: Final = "is_current"
_TIME = pa.timestamp("us", tz="UTC")
FIELDS: Final[tuple[pa.Field[Any], ...]] = (
    pa.field(VALID_FROM, _TIME),
    pa.field(VALID_TO, _TIME),
    pa.field(IS_CURRENT, pa.bool_()),
)
"""The mode's own columns."""


def live(rows: pa.Table) -> Any:
    """Which rows the source has: the current versions."""
    current: Any = rows.column(IS_CURRENT)
    return current.fill_null(False)


def needs(steps: Steps, others: int) -> Mask:
    """Of which keys, those of the steps and `others` more, the current version must be known to plan: all."""
    return np.ones(steps.keys.num_rows + others, np.bool_)


def plan(steps: Steps, found: Mask, base: pa.Table, others: pa.Table | None = None) -> Plan:
    """What these steps do.

    `others` are keys of truncated shards of which the steps have no changes. `found`: of which keys, those of the steps and the others,
    the table has a current version; `base` are these, in that order.
    """
    turns, rows, count = steps.turns, steps.rows, steps.keys.num_rows
    base_of = np.where(found, np.cumsum(found) - 1, -1)
    kept = ~_known(steps, base, base_of)
    row, key, kind, real = turns.row[kept], turns.key[kept], turns.kind[kept], turns.real[kept]
    begins = kind != END
    first = starts(key)
    # What stands before each step: a version that began in the step before, or the one in the table.
    before = np.concatenate([np.zeros(min(1, len(key)), np.bool_), begins[:-1]])
    before[first] = base_of[key[first]] >= 0
    effects = Effects(
        inserted=int(begins.sum()),
        replaced=int((~begins & real & before).sum()),
        absent=int((~begins & real & ~before).sum() + (~kept).sum()),
    )
    last = np.ones(len(key), np.bool_)
    last[:-1] = key[1:] != key[:-1]
    ended_by = np.where(last, -1, np.concatenate([row[1:], [-1]])[: len(row)])
    versions = rows.take(row[begins])
    versions = _valid(versions, rows, times(versions), ended_by[begins])
    # The versions in the table that a key's first step ended, and those that a truncation did.
    closed_by = np.full(len(found), -1)
    closed_by[key[first]] = row[first]
    if others is not None:
        closed_by[count:] = steps.truncated_at(others)
    gone = found & (closed_by >= 0)
    closed = base.take(base_of[gone])
    closed = _valid(closed, rows, closed.column(VALID_FROM).combine_chunks(), closed_by[gone])
    images = together([versions, closed.select(_names(versions, closed))])
    return Plan(images, gone, effects)


def _known(steps: Steps, base: pa.Table, base_of: Numbers) -> Mask:
    """Which turns are reads of what is there already. A read that is equal to another right before it is equal to what stands before both,
    so each is compared with its neighbour only."""
    turns = steps.turns
    known = np.zeros(len(turns.key), np.bool_)
    reads = turns.kind == READ
    if not reads.any():
        return known
    is_first = np.zeros(len(turns.key), np.bool_)
    is_first[turns.first] = True
    source = [n for n in steps.rows.column_names if n not in (TS_MS, SEQ, unfit.NAME)]
    follows = np.flatnonzero(reads & ~is_first & (np.roll(turns.kind, 1) != END))
    of_base = np.flatnonzero(reads & is_first & (base_of[turns.key] >= 0))
    for places, there in (
        (follows, steps.rows.take(turns.row[follows - 1])),
        (of_base, base.take(base_of[turns.key[of_base]])),
    ):
        read = steps.rows.take(turns.row[places])
        known[places] = alike(_compared(read, source), _compared(there, source))
    return known


def _compared(rows: pa.Table, source: list[str]) -> pa.Table:
    """The source's columns, and what did not fit them."""
    found = rows.select(source)
    if unfit.NAME in rows.column_names:
        return found.append_column(unfit.FIELD, rows.column(unfit.NAME))
    return found.append_column(unfit.FIELD, pa.nulls(rows.num_rows, unfit.TYPE))


def _valid(versions: pa.Table, rows: pa.Table, since: pa.Array[Any], ended_by: Numbers) -> pa.Table:
    """Versions with the mode's columns, behind `_cdc_seq`. `ended_by`: the number of the row whose step ended it; -1: none did."""
    current = pa.array(ended_by < 0)
    taken: Any = pa.array(np.maximum(ended_by, 0), mask=ended_by < 0)
    ends = times(rows).take(taken)
    own: dict[str, Any] = {VALID_FROM: since, VALID_TO: ends, IS_CURRENT: current}
    if VALID_FROM in versions.column_names:
        for name, column in own.items():
            versions = replaced(versions, name, column)
        return versions
    place = versions.column_names.index(SEQ) + 1
    for n, field in enumerate(FIELDS):
        versions = versions.add_column(place + n, field, own[field.name])
    return versions


def _names(versions: pa.Table, closed: pa.Table) -> list[str]:
    """The columns of rows that came from the table, in the order of the others; more of them, those of partitions, are made anew."""
    plain = [name for name in versions.column_names if name in closed.column_names]
    return plain + [unfit.NAME] * (unfit.NAME in closed.column_names and unfit.NAME not in plain)
