"""The lake's side of a comparison: sums over the rows of one version, keys with digests, keys with canonical texts.

Rows are read a row group at a time and never kept: sums are, and keys with digests of small ranges. Which rows those are is found by reading
the keys alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc import _native, sharding, unfit
from cdc.lake import keeping, reading
from cdc.lake.columns import has_unfit, lake_columns
from cdc.lake.deltalog import Snapshot
from cdc.lake.keys import KeyIndex
from cdc.lake.parquet import bounds
from cdc.lake.snapshot import AddFile
from cdc.source import canonical, digests
from reconcile.values.compared import Compared
from reconcile.values.division import OUTSIDE, Division, Numbers
from reconcile.values.keysets import DIGEST, DIGEST_TYPE, distinct
from reconcile.values.sources import Part, Rows, Sum
from reconcile.values.windows import Closing

STRAYS_KEPT = 100_000
"""Rows of no part whose keys are kept."""
_ROW = reading.ROW.name
_MOMENT = pa.timestamp("us")
"""In UTC, without saying so."""
Mask = npt.NDArray[np.bool_]


class Sums:
    """Of each cell of one part: rows, and the sums of both halves of their digests, as 128-bit numbers in two words each."""

    def __init__(self, count: int) -> None:
        self.seen = np.zeros(count, np.int64)
        """Rows, those that were left out too."""
        self._rows = np.zeros(count, np.int64)
        self._words = np.zeros((2, 2, count), np.uint64)

    def see(self, cells: Numbers) -> None:
        """Rows of these cells are there, added or not."""
        if len(cells):
            first = int(cells.min())
            counted = np.bincount(cells - first)
            self.seen[first : first + len(counted)] += counted

    def add(self, rows: pa.Array[Any], cells: Numbers) -> None:
        """The digests of rows, and their cells."""
        if not len(cells):
            return
        first = int(cells.min())
        count = int(cells.max()) + 1 - first
        numbers = pa.array((cells - first).astype(np.uint32))
        made: Any = _native.sums(rows, numbers, count)
        found: Any = pa.array(made)
        here = slice(first, first + count)
        self._rows[here] += found.field("rows").to_numpy()
        for words, name in zip(self._words, ("high", "low"), strict=True):
            added = np.frombuffer(found.field(name).buffers()[1], np.uint64)[: 2 * count].reshape(-1, 2)
            before = words[0, here].copy()
            words[0, here] += added[:, 0]
            words[1, here] += added[:, 1] + (words[0, here] < before)

    def between(self, first: int, last: int) -> Sum:
        """Of the cells from `first` on, before `last`."""
        high, low = (
            sum(int(w) for w in words[0, first:last]) + (sum(int(w) for w in words[1, first:last]) << 64)
            for words in self._words
        )
        return Sum(int(self._rows[first:last].sum()), high, low)


class LakeSide:
    """Reads one table of the lake. Raises `LakeError`, `LakeDamagedError`."""

    def __init__(self, compared: Compared, parts: Sequence[Part]) -> None:
        self._compared, self._parts = compared, list(parts)
        self._lake, self._key = compared.lake, compared.key
        self._timed = compared.timed
        self._sharded = sharding.is_sharded(compared.options)
        self.strays: pa.Table = compared.key_schema.empty_table()
        """Keys of rows that no source can have: with NULL in the key, or of an unknown shard."""

    # -- all rows ------------------------------------------------------------------------------------------------------

    def sample(self, snapshot: Snapshot, step: int) -> dict[Part, tuple[pa.Table, int]]:
        """For each part about every `step`th key there is, its own, and how many rows it has."""
        found: dict[Part, list[pa.Table]] = {part: [] for part in self._parts}
        counts = dict.fromkeys(self._parts, 0)
        for file in snapshot.files.values():
            for rows in self._groups(snapshot, file, self._key):
                for part, own, _ in self._by_part(rows):
                    some = np.arange(counts[part] % step, own.num_rows, step)
                    counts[part] += own.num_rows
                    found[part].append(own.take(some))
        none = {part: part.own(self._compared.key_schema.empty_table()) for part in self._parts}
        return {part: (pa.concat_tables([none[part], *found[part]]), counts[part]) for part in self._parts}

    def sums(
        self, closing: Closing, divisions: dict[Part, Division], wanted: dict[Part, Mask], stop: Callable[[], bool]
    ) -> dict[Part, Sums]:
        """For each part the sums of the cells that are wanted (a flag each), less the rows that the stream touched. `stop` is asked between
        row groups."""
        found = {part: Sums(divisions[part].count) for part in wanted}
        snapshot = closing.snapshot
        names = self._needed(snapshot)
        strays = [self.strays]
        for file in snapshot.files.values():
            if not self._may_hold(file, divisions, wanted):
                continue
            for rows in self._groups(snapshot, file, names):
                if stop():
                    return found
                for part, own, at in self._by_part(rows, strays):
                    if part not in wanted:
                        continue
                    cells = divisions[part].of(own)
                    take = cells != OUTSIDE
                    take[take] &= wanted[part][cells[take]]
                    take &= self._is_timely(rows, at)
                    found[part].see(cells[take])
                    if closing.touched.num_rows:
                        take &= ~closing.moved(part.named(own, self._key[0]))
                    some = rows if at is None else rows.filter(pa.array(at))
                    if not take.all():
                        some, cells = some.filter(pa.array(take)), cells[take]
                    found[part].add(self._digests(part, some), cells)
        self.strays = distinct(pa.concat_tables(strays), self._key).slice(0, STRAYS_KEPT)
        return found

    def _by_part(self, rows: pa.Table, strays: list[pa.Table] | None = None) -> Iterator[tuple[Part, pa.Table, Any]]:
        """Each part that rows are of, their own keys, and which rows they are; None: all."""
        keys = rows.select(self._key)
        known: Any = None
        for column in keys.columns:
            if column.null_count:
                valid = pc.is_valid(column)
                known = valid if known is None else pc.and_(known, valid)
        if self._sharded:
            shards = pa.array([part.shard for part in self._parts], pa.string())
            named = pc.is_in(keys.column(0), value_set=shards)
            known = named if known is None else pc.and_(known, named)
        if known is not None and not pc.all(known).as_py():
            if strays is not None:
                strays.append(keys.filter(pc.invert(known)))
        elif not self._sharded:
            known = None
        for part in self._parts:
            if part.shard is None:
                yield part, keys if known is None else keys.filter(known), None if known is None else _numpy(known)
                continue
            mask = pc.and_(known, pc.equal(keys.column(0), pa.scalar(part.shard)))
            if pc.any(mask).as_py():
                yield part, keys.filter(mask).select(part.key), _numpy(mask)

    def _is_timely(self, rows: pa.Table, at: Any) -> Any:
        """Which of these rows (of those `at` them) are of the scope's time."""
        count = rows.num_rows if at is None else int(at.sum())
        if self._timed is None or self._compared.scope.between is None:
            return np.ones(count, np.bool_)
        values = rows.column(self._timed.name)
        low, high = (pa.scalar(edge).cast(_MOMENT) for edge in self._compared.scope.between[1:])
        values = values.cast(_MOMENT)
        timely: Any = pc.and_(pc.greater_equal(values, low), pc.less(values, high)).fill_null(False)
        found = _numpy(timely)
        return found if at is None else found[at]

    # -- some rows -----------------------------------------------------------------------------------------------------

    def rows_in(self, closing: Closing, part: Part, division: Division, wanted: Mask) -> pa.Table:
        """Keys and digests of the rows in the cells that are wanted, less those that the stream touched."""

        def is_wanted(rows: pa.Table) -> Mask:
            found = np.zeros(rows.num_rows, np.bool_)
            for one, own, at in self._by_part(rows):
                if one == part:
                    cells = division.of(own)
                    take = cells != OUTSIDE
                    take[take] &= wanted[cells[take]]
                    found[slice(None) if at is None else at] = take
            return found

        flags = {part: wanted}
        pieces = self._found(closing.snapshot, is_wanted, self._needed(closing.snapshot), {part: division}, flags)
        found = self._with_digests(pieces)
        return found.filter(pa.array(~closing.moved(found.select(self._key))))

    def digests_of(self, snapshot: Snapshot, keys: pa.Table) -> pa.Table:
        """Keys and digests of the rows with these keys that are in the scope."""
        return self._with_digests(self._with_keys(snapshot, keys, self._needed(snapshot)))

    def texts_of(self, snapshot: Snapshot, keys: pa.Table) -> Iterator[Rows]:
        """The rows with these keys, with the text of every column, whatever the scope."""
        schema = self._compared.schema
        for rows in self._with_keys(snapshot, keys, [*schema.names, *self._unfit(snapshot)]):
            batch = _batch(rows)
            kept = batch.column(unfit.NAME) if unfit.NAME in batch.schema.names else None
            yield rows.select(self._key), [canonical.texts(c, batch.column(c.name), kept) for c in schema.columns]

    def _with_digests(self, pieces: Iterator[pa.Table]) -> pa.Table:
        schema = self._compared.key_schema.append(pa.field(DIGEST, DIGEST_TYPE))
        found = [schema.empty_table()]
        for rows in pieces:
            timely = self._is_timely(rows, None)
            some = rows if timely.all() else rows.filter(pa.array(timely))
            for part, own, at in self._by_part(some):
                of_part = some if at is None else some.filter(pa.array(at))
                keys = part.named(own, self._key[0])
                found.append(keys.append_column(DIGEST, self._digests(part, of_part)).cast(schema))
        return pa.concat_tables(found)

    def _with_keys(self, snapshot: Snapshot, keys: pa.Table, names: list[str]) -> Iterator[pa.Table]:
        if not keys.num_rows:
            return
        asked = KeyIndex(keys, str(self._compared.table))

        def is_asked(rows: pa.Table) -> Mask:
            return _numpy(pc.is_valid(asked.locate(rows.select(self._key))))

        files = [f for f in snapshot.files.values() if asked.overlaps(bounds(f.statistics, keys.schema))]
        yield from self._in_files(snapshot, files, is_asked, names)

    def _found(
        self,
        snapshot: Snapshot,
        is_wanted: Callable[[pa.Table], Mask],
        names: list[str],
        divisions: dict[Part, Division],
        wanted: dict[Part, Mask],
    ) -> Iterator[pa.Table]:
        files = [f for f in snapshot.files.values() if self._may_hold(f, divisions, wanted)]
        yield from self._in_files(snapshot, files, is_wanted, names)

    def _in_files(
        self, snapshot: Snapshot, files: Sequence[AddFile], is_wanted: Callable[[pa.Table], Mask], names: list[str]
    ) -> Iterator[pa.Table]:
        """First the keys, to know which rows they are, then those rows."""
        columns = self._columns(snapshot, names)
        for file in files:
            numbers = [
                rows.column(_ROW).to_numpy()[is_wanted(rows)]
                for rows in self._groups(snapshot, file, self._key, numbered=True)
            ]
            here = np.concatenate(numbers).astype(np.int64) if numbers else np.zeros(0, np.int64)
            if len(here):
                yield reading.rows_at(snapshot, file, here, columns, self._lake.vectors)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _groups(
        self, snapshot: Snapshot, file: AddFile, names: Sequence[str], *, numbered: bool = False
    ) -> Iterator[pa.Table]:
        """The rows that the source has, a row group at a time."""
        more = [name for name in keeping.told_by(snapshot.mode) if name not in names]
        columns = self._columns(snapshot, [*names, *more])
        for rows in reading.groups(snapshot, file, columns, self._lake.vectors, numbered=numbered):
            found = keeping.live(rows, snapshot.mode)
            if found.num_rows:
                yield found

    def _may_hold(self, file: AddFile, divisions: dict[Part, Division], wanted: dict[Part, Mask]) -> bool:
        """Whether the file can have rows of these cells; by the first column of a key that is not sharded."""
        if self._sharded:
            return True
        (part,) = self._parts
        first = self._compared.key_schema.field(0)
        found = bounds(file.statistics, pa.schema([first])).get(first.name)
        flags, division = wanted[part], divisions[part]
        edge = getattr(division, "edge", None)
        if found is None or edge is None or not flags.any():
            return True
        begin, end = int(flags.argmax()), len(flags) - int(flags[::-1].argmax())
        low, high = found
        before = begin > 0 and pc.less(high, pa.scalar(edge(begin - 1)[first.name], first.type)).as_py()
        after = end < len(flags) and pc.greater(low, pa.scalar(edge(end - 1)[first.name], first.type)).as_py()
        return not before and not after

    def _needed(self, snapshot: Snapshot) -> list[str]:
        """The columns that digests and the scope take."""
        names = [c.name for c in self._compared.columns]
        if self._timed is not None and self._timed.name not in names:
            names.append(self._timed.name)
        return [*names, *self._unfit(snapshot)]

    def _columns(self, snapshot: Snapshot, names: Sequence[str]) -> pa.Schema:
        have = lake_columns(snapshot.schema, snapshot.layout, has_unfit(snapshot.metadata))
        return pa.schema([have.field(name) for name in names])

    @staticmethod
    def _unfit(snapshot: Snapshot) -> list[str]:
        return [unfit.NAME] if has_unfit(snapshot.metadata) else []

    def _digests(self, part: Part, rows: pa.Table) -> Any:
        batch = _batch(rows)
        kept = batch.column(unfit.NAME) if unfit.NAME in batch.schema.names else None
        return digests.digests(part.columns, batch, kept)


def _numpy(mask: Any) -> Mask:
    return np.asarray(mask.to_numpy() if hasattr(mask, "num_chunks") else mask.to_numpy(zero_copy_only=False), np.bool_)


def _batch(rows: pa.Table) -> pa.RecordBatch:
    whole = rows.combine_chunks()
    columns: list[Any] = [c.chunk(0) if c.num_chunks else pa.array([], c.type) for c in whole.columns]
    return pa.RecordBatch.from_arrays(columns, schema=whole.schema)
