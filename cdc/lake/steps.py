"""Changes one after the other, for tables that keep what was there: what a merge hands to `softdelete` and `history`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc import unfit
from cdc.lake.changes import Effects, FoldCounts
from cdc.lake.keys import comparable

PUT, READ, END, TRUNCATION = 0, 1, 2, 3
"""What a step is: the row is this from now on; it is this, as a windowed read saw it; there is none any more; there is none any more of
a whole shard."""

TS_MS = "_cdc_ts_ms"
SEQ = "_cdc_seq"

Numbers = npt.NDArray[np.int64]
Kinds = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]


class Plan(NamedTuple):
    """What a merge does to a table.

    `images` are the rows to be written: the source's columns, `_cdc_ts_ms`, `_cdc_seq`, the mode's own, and `_cdc_unfit` if one needs it.
    `gone`, a value for each key that was looked up (those of the steps, then the others of truncated shards): whether its row in the
    table goes.
    """

    images: pa.Table
    gone: Mask
    effects: Effects


class Turns(NamedTuple):
    """The steps of each key in a row, keys one after the other; a truncation is a step of every key of its shard.

    `first` is the place of each key's first step, so key number i has those from `first[i]` to before `first[i + 1]`: at least one.
    """

    row: Numbers
    """The number of the step's row in `Steps.rows`."""
    key: Numbers
    kind: Kinds
    real: Mask
    """A change of this very row, and not a truncation."""
    first: Numbers


@dataclass(frozen=True)
class Steps:
    """All changes of a merge, each once, in commit order.

    `rows` has the source's columns, `_cdc_ts_ms`, `_cdc_seq`, and `_cdc_unfit` if a row needs it. Of an END only the key's columns are
    sure to be known, of a TRUNCATION only the key's first. `kinds` and `of_key` have a value a row: what it is, and the number of its key
    in `keys` (each once, in the key's order of columns); -1 for a truncation.
    """

    rows: pa.Table
    kinds: Kinds
    keys: pa.Table
    of_key: Numbers
    counts: FoldCounts

    @cached_property
    def truncated(self) -> pa.Array[Any] | None:
        """Values of the key's first column of which all rows were ended at once; None: there are none."""
        return None if not len(self._truncations) else pc.unique(self._shards)

    def truncated_at(self, keys: pa.Table) -> Numbers:
        """For each of these keys the number of the row that truncated its shard first; -1: none did."""
        if self.truncated is None:
            return np.full(keys.num_rows, -1)
        shards: Any = self._shards.dictionary_encode()
        _, first = np.unique(shards.indices.to_numpy(), return_index=True)
        found: Any = pc.index_in(keys.column(0), value_set=shards.dictionary)
        places = found.combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
        return np.where(places < 0, -1, self._truncations[first[places]])

    @cached_property
    def turns(self) -> Turns:
        """The steps by key."""
        row = np.flatnonzero(self.kinds != TRUNCATION)
        key, kind = self.of_key[row], self.kinds[row]
        real = np.ones(len(row), np.bool_)
        if len(self._truncations):
            numbers = pa.array(np.arange(self.keys.num_rows))
            shards: Any = self.keys.column(0)
            keys_of = {v: numbers.filter(pc.equal(shards, v)).to_numpy() for v in pc.unique(self._shards)}
            of = [keys_of[value] for value in self._shards]
            row = np.concatenate([row, np.repeat(self._truncations, [len(keys) for keys in of])])
            key = np.concatenate([key, *of])
            kind = np.concatenate([kind, np.full(len(row) - len(kind), END, np.int8)])
            real = np.concatenate([real, np.zeros(len(row) - len(real), np.bool_)])
        order = np.lexsort((row, key))
        return Turns(row[order], key[order], kind[order], real[order], starts(key[order]))

    @cached_property
    def _truncations(self) -> Numbers:
        return np.flatnonzero(self.kinds == TRUNCATION)

    @cached_property
    def _shards(self) -> pa.Array[Any]:
        name = self.keys.column_names[0]
        column: Any = self.rows.column(name).take(self._truncations)
        found: pa.Array[Any] = column.combine_chunks()
        return found


def starts(key: Numbers) -> Numbers:
    """The places where a row of equal numbers begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(key)), np.bool_), key[1:] != key[:-1]]))


def numbered(columns: Sequence[pa.ChunkedArray[Any]]) -> tuple[Numbers, Numbers]:
    """For each row the number of its key, equal if all columns have equal bytes; and for each number the first row with that key."""
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        level: Any = comparable(column).combine_chunks().dictionary_encode()
        codes = codes * (len(level.dictionary) + 1) + level.indices.to_numpy(zero_copy_only=False)
        # Numbers of keys, and no product of levels, so that many columns do not overflow.
        _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    return codes.reshape(-1), first


def replaced(rows: pa.Table, name: str, column: pa.Array[Any]) -> pa.Table:
    """The same rows with another column of this name and type."""
    place = rows.column_names.index(name)
    return rows.set_column(place, rows.field(place), column)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of tables that differ in whether they have `_cdc_unfit`, which is then the last column."""
    if any(unfit.NAME in table.column_names for table in tables):
        plain = [t.drop_columns([unfit.NAME]) if unfit.NAME in t.column_names else t for t in tables]
        chunks, kind = [chunk for t in tables for chunk in _unfit(t)], cast("Any", unfit.TYPE)
        also: Any = pa.chunked_array(chunks, kind)
        return pa.concat_tables(plain).append_column(unfit.FIELD, also)
    return pa.concat_tables(tables)


def _unfit(rows: pa.Table) -> list[Any]:
    return rows.column(unfit.NAME).chunks if unfit.NAME in rows.column_names else [pa.nulls(rows.num_rows, unfit.TYPE)]


def times(rows: pa.Table) -> pa.Array[Any]:
    """When each row's change was committed: timestamp in µs, UTC."""
    ts_ms: Any = rows.column(TS_MS).combine_chunks()
    found: pa.Array[Any] = pc.multiply(ts_ms, 1000).cast(pa.timestamp("us", tz="UTC"))
    return found


def alike(one: pa.Table, other: pa.Table) -> Mask:
    """Whether the rows of two tables of the same length and columns are equal, row by row: NULL to NULL, numbers by their bits."""
    same = np.ones(one.num_rows, np.bool_)
    for name in one.column_names:
        left, right = one.column(name), other.column(name)
        if pa.types.is_nested(left.type):
            # Few columns are, and Arrow does not compare them. By their text, which tells NaN and -0.0 from others.
            pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
            same &= np.array([repr(a) == repr(b) for a, b in pairs], np.bool_)
            continue
        equal: Any = pc.equal(comparable(left), comparable(right))
        both_null = pc.and_(pc.is_null(left), pc.is_null(right))
        found: Any = pc.or_(equal.fill_null(False), both_null)
        same &= found.to_numpy()
    return same
