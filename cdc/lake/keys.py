"""Looking keys up by their bytes: any number of key columns, any type, by hash tables in Arrow. Pure.

Values are compared as the lake stores them: strings and binaries by bytes, floating-point numbers by bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc.errors import LakeError

Bounds = Mapping[str, tuple[Any, Any]]
"""Per key column the least and the greatest value that a file can hold; a column that is not in it is not bounded."""


class KeyIndex:
    """Distinct keys, numbered 0 to n-1 in the order given. Raises `LakeError` for a NULL in a key, or a key that is there twice."""

    def __init__(self, keys: pa.Table, where: str) -> None:
        if any(column.null_count for column in keys.columns):
            raise LakeError("a key with a NULL in it", where=where, hint="report this: a key column cannot be NULL")
        self.keys = keys.combine_chunks()
        self._levels: list[pa.Array[Any]] = []
        self._pairs: list[pa.Array[Any]] = []
        ids: Any = None
        for column in self.keys.columns:
            values = comparable(column).combine_chunks()
            distinct = pc.unique(values)
            self._levels.append(distinct)
            level = pc.index_in(values, value_set=distinct)
            if ids is None:
                ids = level
                continue
            pairs = _pair(ids, level, len(distinct))
            self._pairs.append(pc.unique(pairs))
            ids = pc.index_in(pairs, value_set=self._pairs[-1])
        # Distinct values come in the order of their first appearance: in distinct keys the last level's numbers are the rows'.
        last = self._pairs[-1] if self._pairs else self._levels[0]
        if len(last) != keys.num_rows:
            raise LakeError(
                f"{keys.num_rows - len(last)} keys are given twice",
                where=where,
                hint="report this: changes are folded by key",
            )

    def __len__(self) -> int:
        return self.keys.num_rows

    def locate(self, keys: pa.Table) -> pa.ChunkedArray[Any]:
        """For each row of `keys` (the same columns) its number here, null where it is not here. int32."""
        ids: pa.ChunkedArray[Any] | None = None
        pairs = iter(self._pairs)
        for column, distinct in zip(keys.columns, self._levels, strict=True):
            level = pc.index_in(comparable(column), value_set=distinct, skip_nulls=True)
            if ids is None:
                ids = level
                continue
            ids = pc.index_in(_pair(ids, level, len(distinct)), value_set=next(pairs), skip_nulls=True)
        assert ids is not None
        return ids

    def take(self, ids: pa.Array[Any]) -> KeyIndex:
        """An index of these keys only, numbered anew."""
        return KeyIndex(self.keys.take(ids), "")

    def overlaps(self, bounds: Bounds) -> bool:
        """Whether a file with these bounds can hold any of the keys."""
        inside: Any = None
        for name, (low, high) in bounds.items():
            column = self.keys.column(name)
            within = pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high))
            inside = within if inside is None else pc.and_(inside, within)
        return len(self) > 0 and (inside is None or bool(pc.any(inside).as_py()))


def comparable(column: Any) -> Any:
    """The column in a type in which equal means equal bytes."""
    if pa.types.is_floating(column.type):
        bits = pa.int64() if column.type == pa.float64() else pa.int32()
        return pa.chunked_array([chunk.view(bits) for chunk in column.chunks], bits)
    return column


def _pair(left: Any, right: Any, size: int) -> Any:
    """One number for two: injective, since `right` is below `size`."""
    return pc.add(pc.multiply(left.cast(pa.int64()), pa.scalar(size, pa.int64())), right.cast(pa.int64()))


def distinct(keys: pa.Table, where: str) -> None:
    """Raises `LakeError` for a NULL in a key, or a key that is there twice."""
    one = keys.column(0) if keys.num_columns == 1 else None
    if one is not None and not one.null_count and pc.count_distinct(comparable(one)).as_py() == keys.num_rows:
        return
    KeyIndex(keys, where)
