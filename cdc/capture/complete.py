"""Rows that the binary log holds in part only. Until they can be completed, the first of them stops its table. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc.capture.base import TableChanges
from cdc.errors import TableStoppedError
from cdc.names import TableName

_TXN = 1


def complete(changes: TableChanges) -> tuple[TableChanges, int | None, TableStoppedError | None]:
    """The changes before the first transaction with an incomplete row; that transaction's index, and the error, if there is one."""
    if changes.presence is None:
        return changes, None, None
    incomplete = np.flatnonzero(~_whole(changes.presence, len(changes.schema.columns)))
    if not len(incomplete):
        return replace(changes, presence=None, diffs=None), None, None
    row = int(incomplete[0])
    txns = changes.batch.column(_TXN).to_numpy()
    kept = changes.batch.slice(0, int(txns.searchsorted(txns[row])))
    is_difference = changes.diffs is not None and bool(pc.list_value_length(changes.diffs)[row].as_py())
    return replace(changes, batch=kept, presence=None, diffs=None), int(txns[row]), _error(changes.table, is_difference)


def _whole(presence: pa.Array[Any], columns: int) -> npt.NDArray[np.bool_]:
    """Which rows have a value for each of the columns."""
    width = presence.type.byte_width
    buffer = presence.buffers()[1]
    if not width or buffer is None:
        return np.ones(len(presence), np.bool_)
    bits = np.frombuffer(memoryview(buffer), np.uint8)[presence.offset * width :][: len(presence) * width].reshape(
        -1, width
    )
    full = np.packbits(np.arange(width * 8) < columns, bitorder="little")
    return np.asarray((bits & full == full).all(axis=1), np.bool_)


def _error(table: TableName, is_difference: bool) -> TableStoppedError:
    if is_difference:
        return TableStoppedError(
            "the binary log has differences of JSON values in place of the values (binlog_row_value_options=PARTIAL_JSON)",
            hint=f"SET GLOBAL binlog_row_value_options = '', and in sessions that set it; then `lakesync resync {table}`",
        )
    return TableStoppedError(
        "the binary log has row images without all columns (binlog_row_image=MINIMAL or NOBLOB)",
        hint=f"SET GLOBAL binlog_row_image = FULL, and in sessions that set it; then `lakesync resync {table}`",
    )
