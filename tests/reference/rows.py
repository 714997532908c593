"""Rows of one table that a decoder has read and not yet given, as cells and then as Arrow."""

from __future__ import annotations

import struct

import pyarrow as pa

from cdc.epoch import Op
from cdc.errors import TableStoppedError
from cdc.log.codec import METADATA
from cdc.schema import TableSchema
from tests.reference import values
from tests.reference.images import Cells, Row

_LARGE = 16_384
"""Rows as Python objects take twenty times what they take in Arrow; more than this many are never kept."""


class PendingRows:
    """Rows under one schema, in commit order."""

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self._key = tuple(schema.names.index(name) for name in schema.key)
        self._metadata: list[tuple[int, int, int, int, int, int]] = []
        self._cells: list[Cells] = []
        self._batches: list[pa.RecordBatch] = []

    @property
    def is_large(self) -> bool:
        """Whether it is time to flush."""
        return len(self._cells) >= _LARGE

    def add(self, txn: int, event: int, number: int, seq: int, row: Row) -> None:
        """One row of an event. An update of the key becomes two rows with one `seq`."""
        if row.op == Op.UPDATE and row.before and row.after and self._moves(row.before, row.after):
            self._append(Op.MOVE_OUT, txn, event, number, seq, row.before)
        cells = row.before if row.after is None else row.after
        assert cells is not None
        self._append(row.op, txn, event, number, seq, cells)

    def _append(self, op: int, txn: int, event: int, number: int, seq: int, cells: Cells) -> None:
        self._metadata.append((op, txn, event, number, 0, seq))
        self._cells.append(cells)

    def _moves(self, before: Cells, after: Cells) -> bool:
        return any(_bits(before[i]) != _bits(after[i]) for i in self._key)

    def flush(self) -> None:
        """Make a batch of what is pending. Raises `TableStoppedError` for a value that does not fit, and changes nothing then."""
        if not self._cells:
            return
        source = values.build(self.schema, self._cells)
        columns = [
            pa.array(column, f.type) for column, f in zip(zip(*self._metadata, strict=True), METADATA, strict=True)
        ]
        schema = pa.schema([*METADATA, *source.schema])
        self._batches.append(pa.RecordBatch.from_arrays([*columns, *source.columns], schema=schema))
        self._metadata, self._cells = [], []

    def first_unfit(self) -> int:
        """After a failed flush: the first transaction that has a value that does not fit."""
        txns = sorted({m[1] for m in self._metadata})
        for txn in txns:
            try:
                values.build(self.schema, [c for c, m in zip(self._cells, self._metadata, strict=True) if m[1] == txn])
            except TableStoppedError:
                return txn
        return txns[0]

    def truncate(self, txn: int) -> None:
        """Forget rows of transaction `txn` and later ones."""
        keep = next((i for i, m in enumerate(self._metadata) if m[1] >= txn), len(self._metadata))
        del self._metadata[keep:], self._cells[keep:]
        kept = []
        for batch in self._batches:
            txns = batch.column(1).to_numpy()
            kept.append(batch.slice(0, int(txns.searchsorted(txn))))
        self._batches = [b for b in kept if b.num_rows]

    def take(self) -> list[pa.RecordBatch]:
        """What was flushed, in as few batches as Arrow can; forgotten here."""
        batches, self._batches = self._batches, []
        if len(batches) < 2:
            return batches
        return pa.Table.from_batches(batches).combine_chunks().to_batches()


def _bits(value: object) -> object:
    """Tells -0.0 from 0.0, which are two keys."""
    return struct.pack("<d", value) if isinstance(value, float) else value
