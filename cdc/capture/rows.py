"""Decoded row changes on their way into an epoch: cut before what nothing can complete, numbered, encoded, counted. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc.capture.base import Drained, Stop, TableChanges
from cdc.capture.complete import complete, first
from cdc.epoch import Counts, Op
from cdc.errors import TableStoppedError
from cdc.log.codec import METADATA, Incomplete, encode
from cdc.names import TableName

TXN, TS_MS, SEQ = (METADATA.get_field_index(name) for name in ("_txn", "_ts_ms", "_seq"))
"""Places of columns."""


def completed(drained: Drained) -> list[tuple[TableChanges, Stop | None]]:
    """The changes before each table's first transaction with a row that nothing can complete, and the stop there. That transaction's rows may be
    in several batches."""
    found: list[tuple[TableChanges, Stop | None]] = []
    ends: dict[TableName, int] = {}
    for changes in drained.changes:
        changes, txn, error = complete(changes)
        stop = None
        if error is not None and txn is not None:
            error.where = f"{changes.table} at {drained.gtids[txn]}"
            stop = Stop(txn, changes.table, error)
            ends[changes.table] = min(txn, ends.get(changes.table, txn))
        found.append((changes, stop))
    if not ends:
        return found
    return [
        (_before(changes, ends[changes.table]) if changes.table in ends else changes, stop) for changes, stop in found
    ]


def _before(changes: TableChanges, txn: int) -> TableChanges:
    return first(changes, int(changes.batch.column(TXN).to_numpy().searchsorted(txn)))


class Gaps:
    """Numbers that are left free among those of a drain's changes, one for every shard that is emptied in it."""

    def __init__(self, drained: Drained) -> None:
        self._txns = np.array([emptied.txn for emptied in drained.emptied], np.int64)
        self._ends = [0] * len(drained.emptied)
        """The last number of the transactions before it, as the decoder counts."""
        for changes in drained.changes if drained.emptied else ():
            txns, seqs = (changes.batch.column(place).to_numpy() for place in (TXN, SEQ))
            for i, count in enumerate(txns.searchsorted(self._txns)):
                self._ends[i] = max(self._ends[i], int(seqs[count - 1]) if count else 0)

    def number(self, i: int) -> int:
        """The one of the `i`th."""
        return self._ends[i] + i + 1

    def before(self, txns: pa.Array[Any]) -> pa.Array[Any] | None:
        """How many there are before a change, by its transaction; None: there are none at all."""
        if not len(self._txns):
            return None
        return pa.array(self._txns.searchsorted(txns.to_numpy(), side="right"), pa.int64())


def numbered(changes: TableChanges, times: pa.Int64Array, first_seq: int, gaps: Gaps | None = None) -> pa.RecordBatch:
    """The changes with their times, and numbers that go on from `first_seq`, with gaps."""
    columns = list(changes.batch.columns)
    columns[TS_MS] = times.take(columns[TXN])
    columns[SEQ] = pc.add(columns[SEQ], first_seq)
    if gaps is not None and (free := gaps.before(columns[TXN])) is not None:
        columns[SEQ] = pc.add(columns[SEQ], free)
    return pa.RecordBatch.from_arrays(columns, schema=changes.batch.schema)


def encoded(
    batch: pa.RecordBatch, gtids: pa.StringArray, schema: str, incomplete: Incomplete | None = None
) -> tuple[list[memoryview], pa.RecordBatch, TableStoppedError | None]:
    """The records, the rows that they hold, and why not all: a row is too large, and its transaction is left out with all after it."""

    def records(start: int, count: int) -> list[memoryview]:
        part = incomplete and incomplete.slice(start, count)
        return encode(batch.slice(start, count), gtids, schema, incomplete=part)

    try:
        return records(0, batch.num_rows), batch, None
    except TableStoppedError as error:
        txns = batch.column(TXN).to_numpy()
        for txn in np.unique(txns):
            start = int(txns.searchsorted(txn))
            try:
                records(start, int((txns == txn).sum()))
            except TableStoppedError as this:
                return records(0, start), batch.slice(0, start), this
        raise error


def counts(batch: pa.RecordBatch) -> Counts:
    """The changes by operation."""
    found = np.bincount(batch.column(0).to_numpy(), minlength=Op.READ + 1)
    return Counts(*(int(found[op]) for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.READ)))
