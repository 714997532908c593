"""Keys that the stream touched with incomplete rows while a window was open.

A key that the stream touches wins over the window, since the stream has its row. Of an incomplete row it has some values only, and the
others are completed from what the table has of it, which is what the window is there to mend. So such a key has to have its row from the
window, too:

- Where the stream only set columns, the window's row with these set is the row as it is at the window's end: what is read before a column is
  set is overwritten by it, and what is read after it has it, or a later value that is set again.
- Where it gave the row another key, or told differences of a JSON value, nobody can say whether the window's row was read before or after
  it. Such a key is *doubtful*, and read again in another window, behind this one.

Once the stream has all of a row, its beginning or its end, the key is the stream's again. (An INSERT that left columns to their default the
merger has read again.) Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc import unfit
from cdc.capture.base import TableChanges
from cdc.capture.complete import incomplete
from cdc.epoch import Op
from cdc.log.codec import WIDTH
from cdc.schema import TableSchema

Key = tuple[Any, ...]
_Cell = tuple[pa.RecordBatch, int]
"""A batch of changes, and the row in it."""


class Partial:
    """Of one window. `keys` makes keys of a batch's changes, equal where their bytes are."""

    def __init__(self, schema: TableSchema, keys: Callable[[pa.RecordBatch, int], list[Key]]) -> None:
        self._schema = schema
        self._keys = keys
        self._set: dict[Key, dict[int, _Cell] | None] = {}
        """By key the columns that were set, and where their values are; None: doubtful."""
        self.nbytes = 0

    def __bool__(self) -> bool:
        return bool(self._set)

    def note(self, changes: TableChanges, touched: Callable[[], set[Key]]) -> None:
        """More changes. `touched`: which of their keys were touched before them since the window was opened."""
        if changes.presence is None:
            if self._set:
                for key in self._keys(changes.batch, WIDTH):
                    self._set.pop(key, None)
            return
        batch, width = changes.batch, len(self._schema.columns)
        of_rows = incomplete(changes)
        known = of_rows.known(width)
        whole = np.asarray(known.all(axis=1), np.bool_)
        diffs: Any = of_rows.diffs
        differs = diffs.value_lengths().to_numpy(zero_copy_only=False) > 0
        ops = batch.column(0).to_numpy()
        keys = self._keys(batch, WIDTH)
        ours = touched() - self._set.keys()
        gids = list(zip(*(batch.column(n).to_pylist() for n in (1, 2, 3)), strict=True))
        left: dict[Any, bool] = {}
        used: list[int] = []
        cells: list[tuple[dict[int, _Cell], int, npt.NDArray[np.int64]]] = []
        for i, (op, key) in enumerate(zip(ops, keys, strict=True)):
            if op == Op.MOVE_OUT:
                left[gids[i]] = key in ours
            if op != Op.UPDATE or whole[i]:
                self._set.pop(key, None)
                ours.add(key)
                continue
            moved = left.pop(gids[i], None)
            if moved or (moved is None and key in ours):
                self._set.pop(key, None)
                ours.add(key)
                continue
            columns = self._set.get(key, {})
            if moved is not None or differs[i] or columns is None:
                self._set[key] = None
            else:
                self._set[key] = columns
                cells.append((columns, len(used), np.flatnonzero(known[i])))
                used.append(i)
            ours.discard(key)
        if cells:
            rows = batch.take(pa.array(used))
            self.nbytes += rows.nbytes
            for columns, row, places in cells:
                columns.update({int(place): (rows, row) for place in places})

    def doubtful(self, keys: set[Key] | None = None) -> list[Key]:
        """Those that are; of these keys, if any are given."""
        return [key for key, columns in self._set.items() if columns is None and (keys is None or key in keys)]

    def overlaid(self, rows: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Of a window's rows those of which the stream set columns, as they are with these."""
        made = []
        for n, key in enumerate(self._keys(rows, 0) if self._set else ()):
            if columns := self._set.get(key):
                made.append(self._overlaid(rows.slice(n, 1), columns))
        return made

    def _overlaid(self, row: pa.RecordBatch, columns: dict[int, _Cell]) -> pa.RecordBatch:
        arrays, kept = list(row.columns[: len(self._schema.columns)]), {}
        if unfit.is_last(row.schema):
            kept = dict(row.column(row.num_columns - 1)[0].as_py() or {})
        for place, (batch, i) in columns.items():
            name = self._schema.columns[place].name
            arrays[place] = batch.column(WIDTH + place).slice(i, 1)
            kept.pop(name, None)
            if unfit.is_last(batch.schema):
                texts = dict(batch.column(batch.num_columns - 1)[i].as_py() or {})
                kept |= {name: texts[name]} if name in texts else {}
        fields = list(row.schema)[: len(arrays)]
        if kept:
            kind: Any = unfit.TYPE
            arrays.append(pa.array([list(kept.items())], kind))
            fields.append(unfit.FIELD)
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
