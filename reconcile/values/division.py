"""How a table's rows are divided so that sums of a part of them can be compared: into cells that both sides know a row's by its key.

Where the lake orders keys as the server does, cells are ranges of the key, and any run of them is a range for one statement. Where it does
not (collations, ENUM, SET, floating point), a cell is a bucket: a row's by a digest of its key, wherever the row is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc import _native
from cdc.reads import Key
from cdc.schema import Column, TableSchema
from cdc.source import canonical, digests
from reconcile.values.keysets import distinct
from snapshot.chunks import Bound, Walk

OUTSIDE = -1
"""The cell of a row that is not in the scope."""
BITS_MOST = 14
CELL_ROWS = 2_000
"""About so many rows a cell should have."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Range:
    """Of a key, as the server orders it; None: no bound."""

    low: Bound | None = None
    high: Bound | None = None
    low_included: bool = True
    high_included: bool = False


class Division(Protocol):
    """Cells 0 to `count` - 1 of one part of a table."""

    count: int

    def of(self, keys: pa.Table) -> Numbers:
        """For each of these keys (the part's own, without NULL) its cell, or `OUTSIDE`."""
        ...


class Cells:
    """Ranges of the key: cell n has the keys from bound n - 1 on, up to bound n, which is not included. `low` and `high`, both included, bound
    the first and the last one."""

    def __init__(self, walk: Walk, bounds: pa.Table, low: Bound | None = None, high: Bound | None = None) -> None:
        self._walk = walk
        self._low, self._high = low, high
        edges = sorted_keys(bounds)
        self._outer = walk.keys_of([low]) if low is not None else None
        if low is not None or high is not None:
            edges = edges.filter(pa.array(self._is_inside(edges)))
        if self._outer is not None and edges.num_rows and edges.slice(0, 1).equals(self._outer):
            edges = edges.slice(1)
        self._edges = edges
        self.count = edges.num_rows + 1

    def of(self, keys: pa.Table) -> Numbers:
        """As of `Division`."""
        found = _place(keys, self._edges)
        if self._low is not None or self._high is not None:
            found[~self._is_inside(keys)] = OUTSIDE
        return found

    def _is_inside(self, keys: pa.Table) -> npt.NDArray[np.bool_]:
        inside = np.ones(keys.num_rows, np.bool_)
        if self._outer is not None:
            inside &= _place(keys, self._outer) == 1
        if self._high is not None:
            inside &= np.asarray(self._walk.within(keys, None, self._high).to_numpy(), np.bool_)
        return inside

    def range(self, first: int, last: int) -> Range:
        """The keys of the cells from `first` on, before `last`."""
        low = self.bound(first - 1) if first > 0 else self._low
        if last >= self.count:
            return Range(low, self._high, high_included=True)
        return Range(low, self.bound(last - 1))

    def bound(self, n: int) -> Bound:
        """Number n of the bounds between cells."""
        return bound_of(self._walk, self._edges.slice(n, 1))

    def edge(self, n: int) -> dict[str, Any]:
        """The same in the lake's types."""
        found: dict[str, Any] = self._edges.slice(n, 1).to_pylist()[0]
        return found


class Buckets:
    """Buckets by a digest of the key."""

    def __init__(self, columns: Sequence[Column], bits: int) -> None:
        self._columns, self.bits = list(columns), bits
        self.count = 1 << bits

    def of(self, keys: pa.Table) -> Numbers:
        """As of `Division`."""
        if not keys.num_rows:
            return np.zeros(0, np.int64)
        found = digests.buckets(self._columns, _batch(keys), bits=self.bits)
        return np.asarray(found.to_numpy(), np.int64)

    @classmethod
    def for_rows(cls, columns: Sequence[Column], rows: int) -> Buckets:
        """As many as give cells of a good size."""
        return cls(columns, min(BITS_MOST, max(0, (rows // CELL_ROWS).bit_length())))


def bound_of(walk: Walk, key: pa.Table) -> Bound:
    """A single key as the server is told it."""
    (cells,) = canonical.key_texts(walk.schema, key)
    return walk.bound_of([str(cell) for cell in cells])


def written(walk: Walk, bound: Bound | None) -> Key | None:
    """A bound as a request to read rows has it."""
    return None if bound is None else canonical.key_texts(walk.schema, walk.keys_of([bound]))[0]


def is_ordered(schema: TableSchema) -> bool:
    """Whether the lake orders this key as the server does, and can say so."""
    columns = {c.name: c for c in schema.columns}
    return bool(schema.key) and all(_has_order(schema.arrow_type(columns[name])) for name in schema.key)


def _has_order(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_decimal, pa.types.is_date, pa.types.is_timestamp, pa.types.is_binary)
    return any(test(kind) for test in tests)


def sorted_keys(keys: pa.Table) -> pa.Table:
    """Each once, in the lake's order."""
    once = distinct(keys, keys.column_names)
    return once.sort_by([(name, "ascending") for name in once.column_names]).combine_chunks()


def strips(count: int, sample: float | None, turn: int) -> list[tuple[int, int]]:
    """Of `count` cells those of a sample, as runs from a first to before a last one. `1 / sample` turns have all of them."""
    if sample is None or sample >= 1:
        return [(0, count)]
    period = max(1, round(1 / sample))
    if count < period:
        n = turn % count
        return [(n, n + 1)]
    # As long runs as there may be, for the server to read in one go.
    width = max(1, count // (period * STRIPS))
    pieces = [(n, min(n + width, count)) for n in range(0, count, width)]
    return pieces[turn % period :: period]


STRIPS = 16
"""A sample is of about so many places in the table, or more."""


def runs(cells: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as runs from a first to before a last one."""
    begin = end = None
    for cell in cells:
        if end is not None and cell == end:
            end += 1
            continue
        if begin is not None and end is not None:
            yield begin, end
        begin, end = cell, cell + 1
    if begin is not None and end is not None:
        yield begin, end


def _place(keys: pa.Table, bounds: pa.Table) -> Numbers:
    """Of each key how many of the bounds are not after it."""
    if not bounds.num_rows or not keys.num_rows:
        return np.zeros(keys.num_rows, np.int64)
    made: Any = _native.chunk_of(_batch(keys), _batch(bounds))
    found: Any = pa.array(made)
    return np.array(found.to_numpy(zero_copy_only=False), np.int64)


def _batch(rows: pa.Table) -> pa.RecordBatch:
    """One table as one batch."""
    whole = rows.combine_chunks()
    columns: list[Any] = [c.chunk(0) if c.num_chunks else pa.array([], c.type) for c in whole.columns]
    return pa.RecordBatch.from_arrays(columns, schema=whole.schema)
