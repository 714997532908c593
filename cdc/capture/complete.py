"""Rows that the binary log holds in part only. The merger completes them from the row before, which it finds by the key (`cdc.merge.completing`);
what has none stops its table. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from cdc.capture.base import TableChanges
from cdc.errors import TableStoppedError
from cdc.log.codec import DIFF, UNKNOWN, Incomplete
from cdc.names import TableName

_TXN = 1


def complete(changes: TableChanges) -> tuple[TableChanges, int | None, TableStoppedError | None]:
    """The changes before the first transaction with an incomplete row that nothing can complete; that transaction's index, and the error, if
    there is one."""
    if changes.presence is None:
        return changes, None, None
    schema = changes.schema
    known = incomplete(changes).known(len(schema.columns))
    if schema.key:
        hopeless = np.flatnonzero(~known[:, [schema.names.index(name) for name in schema.key]].all(axis=1))
    else:
        hopeless = np.flatnonzero(~known.all(axis=1))
    if not len(hopeless):
        whole = bool(known.all())
        return (replace(changes, presence=None, diffs=None) if whole else changes), None, None
    row = int(hopeless[0])
    txns = changes.batch.column(_TXN).to_numpy()
    return first(changes, int(txns.searchsorted(txns[row]))), int(txns[row]), _error(changes, row)


def incomplete(changes: TableChanges) -> Incomplete:
    """What is known of its rows, of which one is incomplete."""
    assert changes.presence is not None
    diffs = pa.nulls(0, pa.list_(DIFF)) if changes.diffs is None else changes.diffs
    if len(diffs) != len(changes.presence):
        diffs = pa.array([[]] * len(changes.presence), pa.list_(DIFF))
    return Incomplete(changes.presence, diffs)


def first(changes: TableChanges, count: int) -> TableChanges:
    """The first so many rows."""
    presence, diffs = (None if a is None else a.slice(0, count) for a in (changes.presence, changes.diffs))
    return replace(changes, batch=changes.batch.slice(0, count), presence=presence, diffs=diffs)


def _error(changes: TableChanges, row: int) -> TableStoppedError:
    table = changes.table
    if changes.schema.key:
        return TableStoppedError(
            "the binary log has a new row without its key (binlog_row_image=MINIMAL), where a column of the key took its default",
            hint=f"name all columns of the key in the INSERT, or take the column's DEFAULT away; then `lakesync resync {table}`",
        )
    if changes.diffs is not None and any(diff["op"] != UNKNOWN for diff in changes.diffs[row].as_py() or ()):
        return TableStoppedError(
            "the binary log has differences of JSON values in place of the values (binlog_row_value_options=PARTIAL_JSON), and the table has "
            "no key to find them by",
            hint=_of_session(table, "binlog_row_value_options = ''"),
        )
    return TableStoppedError(
        "the binary log has row images without all columns (binlog_row_image=MINIMAL or NOBLOB), and the table has no key to find the row "
        "before by",
        hint=_of_session(table, "binlog_row_image = FULL"),
    )


def _of_session(table: TableName, setting: str) -> str:
    return f"give the table a primary key, or SET GLOBAL {setting}, and in sessions that set it; then `lakesync resync {table}`"
