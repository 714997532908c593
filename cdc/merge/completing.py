"""Rows of which the log has only some values are completed from the row before, in commit order. Pure, but for `current`.

A lineage is one row of the source through time: it begins with an INSERT, or was there before, goes on over UPDATEs, also those that give
it another key, and ends with a DELETE. A value that a change does not have is that of the change before in its lineage; of the first one it is
what the table has, under the key that the row had then (of a key change the one of its MOVE_OUT). Differences of JSON values are applied to
that value. What a lineage does not have (no row in the table; a column that an INSERT left to its default; a base that does not fit a
difference) makes the change *hopeless*: it is passed over, and the key is read again in a window, whose row comes later in the stream. In the
ledger such a change is `superseded`: by that reading. Where the last change of a key in a merge is whole, nothing is read again.

What the table has is exactly what the source had before the change, as long as the table is applied change by change. It is not while a bootstrap
is caught up with (`trusted` is False): chunks were read at any time after e0, so a row may be newer than the change that is applied to it. There
holds:

- A change of given columns sets values, and setting them again leads to the same row. Let a row have been read at R. Of each column the last
  change that sets it wins: if that is after R, it is applied; if it is before R, the row has its value, and those after it that are applied
  again end with it as well. A column that nothing sets since e0 is in the row. In between a row may be a mixture that the source never had, which
  is why such a table is not ready; past its mark it is right.
- Under the same key another row may stand: the one of the change was deleted, or moved away, before R, and a new one came. What is set in the
  new row is then wrong, until the stream comes to the end of the old one, which deletes it, and to the beginning of the new one, which is whole,
  or hopeless and read again.
- So a key change must not take its row from there: it may be the new one. It takes the row that stands under its *new* key, if there is one:
  it was read after the change, since before that key was free or its row's end is ahead in the stream. Else it is hopeless.
- A difference of a JSON value does not lead to the same twice (an insertion into an array inserts again). Without a value that the stream gave
  it is hopeless.

Until a hopeless key is read again, what the table has of it is not trusted for anything (`current` does not give it): what follows from it, also
under another key, is hopeless too. The window that reads it is opened behind the change, so its row has it, and all others up to its reading; changes that come
within the window are the affair of capture (`cdc.capture.windows`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc import unfit
from cdc._native import json_patch
from cdc.epoch import Counts, Op, WindowId
from cdc.errors import LakeDamagedError
from cdc.lake import FoldCounts
from cdc.lake.steps import numbered
from cdc.log.codec import METADATA, UNKNOWN, Changes
from cdc.merge.gather import UNFIT, each_once, gather, key_places
from cdc.position import Position
from cdc.schema import TableSchema

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_GONE = -1
"""No row before; below it, -2 - n, is the row that the table has under key number n."""
_MISSING = -1
"""No value."""
_Diffs = list[dict[str, Any]]


@dataclass(frozen=True)
class Completed:
    """`changes`: all that were given and count, each once, whole. `hopeless`: keys to be read again, each once."""

    changes: list[Changes]
    hopeless: pa.Table
    logged: Counts
    duplicate: int = 0
    """Changes that are not among them since the table has them, or they were there twice."""
    passed: int = 0
    """… since nothing completes them."""

    def counted(self, counts: FoldCounts) -> FoldCounts:
        """What became of all changes, where this became of those that are left."""
        return replace(
            counts,
            logged=self.logged,
            superseded=counts.superseded + self.passed,
            duplicate=counts.duplicate + self.duplicate,
        )


def complete(
    changes: Sequence[Changes],
    schema: TableSchema,
    current: Callable[[pa.Table], pa.Table],
    exclude: Position | None = None,
    dropped: Collection[WindowId] = (),
    *,
    trusted: bool = True,
    appended: bool = False,
) -> Completed:
    """Complete what is not before `exclude` and of no window of `dropped`.

    `current`: given keys (columns in the key's order, each once), the rows that the table has of them, in any order, with the source's columns and
    `_cdc_unfit` or not. `trusted`: whether these are what the source had before the changes. `appended`: every change becomes a row; then a
    DELETE is completed too, as far as can be, and of a key change nothing is left of the row before.

    Raises what `current` raises, and as `cdc.merge.fold.fold` does.
    """
    rows, logged = gather(changes, schema, exclude, dropped)
    key_places(rows, schema)
    rows, distinct = each_once(rows)
    batch = _Batch(changes, rows, schema, trusted, appended)
    batch.follow()
    batch.fill(current)
    kept, passed = batch.result(distinct)
    return Completed(kept, batch.hopeless, logged, logged.changes - distinct, passed)


@dataclass
class _Batch:
    """All changes of a merge, in commit order: `rows`, as `gather` and `each_once` made them."""

    changes: Sequence[Changes]
    rows: pa.Table
    schema: TableSchema
    trusted: bool
    appended: bool
    _prev: Numbers = field(init=False)
    """For each row the one before in its lineage, or `_GONE`, or what the table has."""
    _depth: Numbers = field(init=False)
    """For each row that lacks values, how many such rows are before it in a row."""
    _base: pa.Table = field(init=False)
    _out: dict[int, int] = field(default_factory=dict)
    """For the second half of a key change the first one."""
    _last: dict[int, int] = field(default_factory=dict)
    """For each key number the last row, or `_GONE`."""

    def __post_init__(self) -> None:
        width = len(self.schema.columns)
        known = [
            np.ones((one.batch.num_rows, width), np.bool_) if one.incomplete is None else one.incomplete.known(width)
            for one in self.changes
        ]
        self._at = self.rows.column("at").to_numpy()
        self._known = np.concatenate(known)[self._at]
        self._ops = self.rows.column("op").to_numpy()
        completed = [Op.INSERT, Op.UPDATE, Op.READ, *([Op.DELETE] if self.appended else [])]
        self._lacking: Mask = ~self._known.all(axis=1) & np.isin(self._ops, completed)
        real = np.flatnonzero(self._ops != Op.TRUNCATE)
        self._places = [f"c{self.schema.names.index(name)}" for name in self.schema.key]
        columns = self.rows.select(self._places).take(real).columns
        found, first = numbered(columns) if len(real) else (np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._key = np.full(self.rows.num_rows, -1)
        self._key[real] = found
        self._first = real[first]
        """Of each key number the first row."""

    # -- lineages ----------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Find of each row the one before."""
        count = self.rows.num_rows
        # Lists: it is one row after the other.
        ops, lacking, key = self._ops.tolist(), self._lacking.tolist(), self._key.tolist()
        moves = Op.MOVE_OUT in ops
        truncations = self._ops == Op.TRUNCATE
        relevant = np.ones(count, np.bool_)
        if not moves:
            # A truncation's number is -1: the last place, which is no key's.
            marked = np.zeros(len(self._first) + 1, np.bool_)
            marked[self._key[self._lacking]] = True
            relevant = marked[self._key] | truncations
        shards: list[Any] = []
        if truncations.any():
            shards = self.rows.column(self._places[0]).to_pylist()
        truncated: dict[Any, int] = {}
        since: dict[int, int] = {}
        gids: list[tuple[Any, ...]] = []
        if moves:
            gids = list(zip(*(self.rows.column(c).to_pylist() for c in ("gtid", "event", "row")), strict=True))
        moved: dict[tuple[Any, ...], tuple[int, int]] = {}
        tainted, depth = [False] * count, [0] * count
        prev = [_GONE] * count
        last = self._last

        def standing(i: int, k: int) -> int:
            if shards and truncated.get(shards[i], -1) > since.get(k, -1):
                return _GONE
            return last.get(k, -2 - k)

        def is_of_table(element: int) -> bool:
            return element <= -2 or (element >= 0 and tainted[element])

        for i in np.flatnonzero(relevant).tolist():
            op, k = ops[i], key[i]
            if op == Op.TRUNCATE:
                truncated[shards[i]] = i
                continue
            if op == Op.UPDATE:
                before = standing(i, k)
                if moves and (out := moved.pop(gids[i], None)) is not None:
                    self._out[i] = out[0]
                    if self.trusted or not is_of_table(out[1]):
                        before = out[1]
                prev[i] = before
                if lacking[i]:
                    tainted[i] = is_of_table(before)
                    if before >= 0 and lacking[before]:
                        depth[i] = depth[before] + 1
                last[k] = i
            elif op == Op.DELETE:
                prev[i] = before = standing(i, k)
                if before >= 0 and lacking[i] and lacking[before]:
                    depth[i] = depth[before] + 1
                last[k] = _GONE
            elif op == Op.MOVE_OUT:
                moved[gids[i]] = i, standing(i, k)
                last[k] = _GONE
            else:
                last[k] = i
            if shards:
                since[k] = i
        self._prev, self._depth = np.array(prev, np.int64), np.array(depth, np.int64)

    # -- values ------------------------------------------------------------------------------------------------------

    def fill(self, current: Callable[[pa.Table], pa.Table]) -> None:
        """Find where each value of the rows that lack some comes from: a row, by its number, then a row that the table has, then a text that was made."""
        count = self.rows.num_rows
        lacking = np.flatnonzero(self._lacking)
        number = np.cumsum(self._lacking) - 1
        self._texts: dict[int, list[str | None]] = {}
        self._from = np.empty((len(lacking), len(self.schema.columns)), np.int64)
        before = self._look_up(self._prev[lacking], current)
        diffs = self._diffs()
        # One after the other in a lineage, and all lineages at once.
        depths = self._depth[lacking]
        order = np.argsort(depths, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(depths[order])) + 1):
            found = np.repeat(before[some, None], self._from.shape[1], axis=1)
            follows = np.flatnonzero((before[some] >= 0) & (before[some] < count))
            follows = follows[self._lacking[before[some[follows]]]]
            found[follows] = self._from[number[before[some[follows]]]]
            rows = lacking[some]
            found = np.where(self._known[rows], rows[:, None], found)
            if diffs:
                for n, at in enumerate(self._at[rows].tolist()):
                    if given := diffs.get(at):
                        self._apply(given, found[n])
            self._from[some] = found
        missing = (self._from == _MISSING).any(axis=1) & (self._ops[lacking] != Op.DELETE)
        self._hopeless = lacking[missing]

    def _look_up(self, before: Numbers, current: Callable[[pa.Table], pa.Table]) -> Numbers:
        """What is before rows, with the places of the table's rows, which are read for it."""
        of_table = before <= -2
        marked = np.zeros(len(self._first), np.bool_)
        marked[-2 - before[of_table]] = True
        numbers = np.flatnonzero(marked)
        if not len(numbers):
            self._base = self.schema.arrow.empty_table()
            return before
        keys = self._keys(numbers)
        self._base = base = current(keys)
        asked = [pa.chunked_array([*keys.column(c).chunks, *base.column(c).chunks]) for c in keys.column_names]
        codes, _ = numbered(asked)
        order = np.argsort(codes[: len(numbers)])
        places = np.full(len(numbers), _MISSING)
        if base.num_rows:
            there = order[np.searchsorted(codes[: len(numbers)][order], codes[len(numbers) :])]
            places[there] = self.rows.num_rows + np.arange(base.num_rows)
            if np.bincount(there).max() > 1:
                raise LakeDamagedError("a key is there twice", hint="`lakesync resync` the table")
        found = before.copy()
        found[of_table] = places[np.searchsorted(numbers, -2 - before[of_table])]
        return found

    def _keys(self, numbers: Numbers) -> pa.Table:
        """The keys with these numbers."""
        rows = self.rows.take(self._first[numbers])
        columns = [rows.column(place).combine_chunks() for place in self._places]
        return pa.table(columns, schema=pa.schema([self.schema.arrow.field(name) for name in self.schema.key]))

    def _diffs(self) -> dict[int, _Diffs]:
        """The differences of each row that has any, by its number among all that were given."""
        found: dict[int, _Diffs] = {}
        start = 0
        for one in self.changes:
            if one.incomplete is not None:
                diffs: Any = one.incomplete.diffs
                having = np.flatnonzero(diffs.value_lengths().to_numpy(zero_copy_only=False))
                found.update(zip((start + having).tolist(), diffs.take(pa.array(having)).to_pylist(), strict=True))
            start += one.batch.num_rows
        return found

    def _apply(self, diffs: _Diffs, found: Numbers) -> None:
        """Differences, to what a row's columns have before them."""
        of_column: dict[int, _Diffs] = {}
        for diff in diffs:
            of_column.setdefault(diff["column"], []).append(diff)
        for column, given in of_column.items():
            text = None
            if not any(diff["op"] == UNKNOWN for diff in given):
                text = self._text(column, int(found[column]))
            if text is not None:
                text = json_patch(text, [(diff["op"], diff["path"], diff["value"]) for diff in given])
            if text is None:
                found[column] = _MISSING
            else:
                made = self._texts.setdefault(column, [])
                found[column] = self.rows.num_rows + self._base.num_rows + len(made)
                made.append(text)

    def _text(self, column: int, place: int) -> str | None:
        """A JSON value to which differences may be applied."""
        count = self.rows.num_rows
        if place < 0:
            return None
        value: Any
        if place < count:
            value = self.rows.column(f"c{column}")[place].as_py()
        elif place < count + self._base.num_rows:
            value = self._base.column(self.schema.names[column])[place - count].as_py() if self.trusted else None
        else:
            value = self._texts[column][place - count - self._base.num_rows]
        return value if isinstance(value, str) else None

    # -- what comes of it ----------------------------------------------------------------------------------------------

    @property
    def hopeless(self) -> pa.Table:
        """The keys of which the last change is hopeless."""
        numbers = [int(self._key[i]) for i in self._hopeless if self._last.get(int(self._key[i])) == i]
        return self._keys(np.array(sorted(numbers), np.int64))

    def result(self, distinct: int) -> tuple[list[Changes], int]:
        """What is left, whole; and how many of the `distinct` changes are not."""
        ops = self._ops.copy()
        keep = np.ones(self.rows.num_rows, np.bool_)
        keep[self._hopeless] = False
        halves = [self._out[int(i)] for i in self._hopeless if int(i) in self._out]
        # The row has left its old key, wherever it went.
        ops[halves] = Op.DELETE
        if self.appended:
            keep[halves] = False
        left = np.flatnonzero(keep)
        rows = self.rows.take(left)
        columns: list[Any] = [
            pa.array(ops[left], pa.int8()),
            rows.column("name").cast(pa.int32()),
            rows.column("event"),
            rows.column("row"),
            rows.column("ts_ms"),
            pa.array(rows.column("order").to_numpy() >> 1, pa.int64()),
        ]
        columns += [self._column(n, left) for n in range(len(self.schema.columns))]
        fields = [*METADATA, *self.schema.arrow]
        if (kept := self._unfit(left)) is not None:
            columns.append(kept)
            fields.append(unfit.FIELD)
        batch = pa.RecordBatch.from_arrays([_one(column) for column in columns], schema=pa.schema(fields))
        names = tuple(gtid for one in self.changes for gtid in one.gtids)
        whole = int(np.isin(ops[left], [Op.MOVE_OUT, Op.TRUNCATE], invert=True).sum())
        made = [Changes(batch, names, self.schema.hash)] if len(left) else []
        return made, distinct - whole

    def _column(self, n: int, left: Numbers) -> Any:
        kind = self.schema.arrow.types[n]
        values = [_one(self.rows.column(f"c{n}")), _one(self._base.column(self.schema.names[n])).cast(kind)]
        if n in self._texts:
            values.append(pa.array(self._texts[n], kind))
        places = np.arange(self.rows.num_rows)
        places[self._lacking] = self._from[:, n]
        places = places[left]
        return pa.concat_arrays(values).take(pa.array(places, pa.int64(), mask=places < 0))

    def _unfit(self, left: Numbers) -> Any:
        """`_cdc_unfit`: of each value what there was where it comes from."""
        count = self.rows.num_rows
        own = _one(self.rows.column(UNFIT)) if UNFIT in self.rows.column_names else pa.nulls(count, unfit.TYPE)
        of_base = self._base.column_names and unfit.is_last(self._base.schema)
        base = _one(self._base.column(unfit.NAME)) if of_base else pa.nulls(self._base.num_rows, unfit.TYPE)
        if own.null_count == len(own) and base.null_count == len(base):
            return None
        texts: dict[int, dict[str, str]] = {}
        for first, column in ((0, own), (count, base)):
            having = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            texts |= {first + int(i): dict(column[int(i)].as_py()) for i in having}
        made = []
        for places in self._from:
            found = {
                name: texts[place][name]
                for name, place in zip(self.schema.names, places.tolist(), strict=True)
                if place in texts and name in texts[place]
            }
            made.append(list(found.items()) or None)
        places = np.arange(count)
        places[self._lacking] = count + np.arange(len(self._from))
        kind: Any = unfit.TYPE
        return pa.concat_arrays([own, pa.array(made, kind)]).take(pa.array(places[left]))


def _one(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
