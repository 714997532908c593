"""What is read in one window: a chunk of a table by its key, or the rows with given keys. The protocol is `spec/window.py`; `cdc.window`
says what reader and capture tell one another.

There are two kinds of windows. A range has rows only: which keys exist is the server's to say, by its collation. Keys of the lake that lie in
the range by their bytes, and that the SELECT did not return, may be rows that the source no longer has, so each of them is asked for by a
point read, in windows of their own: what comes back with the same bytes is a row, everything else is gone.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults
from cdc.config import PipelineConfig
from cdc.errors import TableStoppedError
from cdc.lake import LakeTable, Snapshot
from cdc.lake.columns import conform, key_columns
from cdc.lake.keys import KeyIndex
from cdc.position import BinlogEnd, Position
from cdc.source import canonical
from cdc.window import Delivery, Opened, Window
from snapshot.boundaries import Boundaries
from snapshot.chunks import Part, Walk
from snapshot.reader import Reader
from snapshot.segments import KEYS_AT_ONCE, Segment
from snapshot.throttle import Throttle

HELD_BYTES = 64 * 1024 * 1024
"""Keys of the lake that are held in memory for a job."""
STRUCK_BYTES = 256 * 1024 * 1024
"""… where the lake's order is not the server's."""
CHECK_EVERY_S = 1.0
"""How often the table's columns are compared. Capture sees a DDL in a window anyway, and cancels it."""
SECTION_ROWS = 200_000
"""Rows that one SELECT with a condition looks at, about: its transaction is to be short, however few it finds."""
SECTIONS = 500
"""At most: what is left of them is told in every window."""


class Shard(NamedTuple):
    """Of which rows of the lake's table the source's is the truth: those with this value in this column."""

    column: str
    value: str


@dataclass(frozen=True)
class Found:
    """What was read of a segment: its first part, `read`; the `rest` of it is not read yet. `suspects` are keys of the lake that may be of
    rows that are gone; `gone` are those of which that is known."""

    read: Segment
    rest: Segment | None
    rows: Sequence[pa.RecordBatch]
    suspects: pa.Table
    gone: pa.Table
    mark: tuple[BinlogEnd, str] | None = None
    points: bool = False
    """Read by keys."""

    @property
    def count(self) -> int:
        """Rows."""
        return sum(batch.num_rows for batch in self.rows)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(batch.nbytes for batch in self.rows) + self.gone.nbytes

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not self.count and not self.gone.num_rows


class WindowReader:
    """Reads for the windows of one job, by a connection of its own. For one thread.

    `lake`: where keys that are gone are looked for; None where there cannot be any, or they are nobody's business. Raises as
    `snapshot.reader.Reader`, and `LakeError` and its kin.
    """

    def __init__(
        self,
        config: PipelineConfig,
        walk: Walk,
        opened: Opened,
        stop: threading.Event,
        *,
        throttle: Throttle | None = None,
        lake: LakeTable | None = None,
        shard: Shard | None = None,
        where: str = "",
    ) -> None:
        self.walk = walk
        self._settings = config.snapshot
        self._reader = Reader(config, walk, opened.c0, stop, throttle, check_every_s=CHECK_EVERY_S)
        self._lake = LakeKeys(lake, walk, shard) if lake is not None and not where else None
        self._where = where
        self._shown: Position | None = None
        self._key = key_columns(walk.schema)

    def close(self) -> None:
        """Close its connections."""
        self._reader.close()

    def rows_estimate(self) -> int:
        """About how many rows the table has."""
        return self._reader.rows_estimate()

    def sections(self) -> list[Segment]:
        """The whole table, in ranges of about so many rows that one SELECT may look at: with a condition it looks at many for few."""
        boundaries = Boundaries(self._reader.connection(), self.walk)
        parts = boundaries.parts(lambda rows: min(SECTIONS, -(-rows // SECTION_ROWS)))
        return [Segment(part.low, part.high) for part in parts]

    def range(self, segment: Segment, opened: Opened | None) -> Found:
        """The first rows of a range, as many as one window has. `opened`: the window; None is a mistake of `c0_after_select`."""
        if opened is not None:
            self._await(opened)
        chunk = self._reader.read(
            Part(0, segment.after, segment.to),
            segment.after,
            self._settings.window_rows,
            where=self._where,
            size=self._settings.window_size,
            after_included=segment.included,
        )
        rows = list(chunk.batches)
        to = segment.to if chunk.done else chunk.last
        read = Segment(segment.after, to, segment.included)
        rest = None if chunk.done else Segment(to, segment.to)
        none = self._key.empty_table()
        suspects = none if self._lake is None else self._lake.beside(self._keys(rows), read)
        faults.point("window.read")
        if faults.mutant("no_point_read"):
            return Found(read, rest, rows, none, suspects)
        return Found(read, rest, rows, suspects, none)

    def points(self, keys: pa.Table, opened: Opened, segment: Segment) -> Found:
        """The rows with these keys, each given once, and which of the keys the server does not have."""
        if not faults.mutant("point_read_outside"):
            self._await(opened)
        mark = self._reader.mark() if faults.mutant("mark_before_point_reads") else None
        keys = conform(keys, self._key, str(self.walk.table))
        if faults.mutant("no_point_read"):
            return Found(segment, None, [], self._key.empty_table(), keys)
        found = self._reader.points(keys)
        asked = KeyIndex(keys, str(self.walk.table))
        places = asked.locate(found.select(self._key.names))
        # Rows that are equal by collation alone were not asked for.
        rows = found.filter(pc.is_valid(places))
        there = pc.is_in(pa.array(range(len(asked)), pa.int32()), value_set=places.combine_chunks())
        gone = keys.filter(pc.invert(there))
        if faults.mutant("point_read_by_collation"):
            gone = self._gone_by_collation(gone)
        faults.point("window.read")
        return Found(segment, None, rows.to_batches(), self._key.empty_table(), gone, mark, points=True)

    def _await(self, opened: Opened) -> None:
        """Wait until the server shows C0: a connection of the reader, whichever, then does."""
        if opened.c0 != self._shown:
            self._reader.wait(opened.c0)
            self._shown = opened.c0

    def _gone_by_collation(self, keys: pa.Table) -> pa.Table:
        """A mistake, for the tests of the fault `point_read_by_collation`."""
        missing = [n for n in range(keys.num_rows) if not self._reader.points(keys.slice(n, 1)).num_rows]
        return keys.take(pa.array(missing, pa.int64()))

    @property
    def strikes(self) -> bool:
        """Whether suspects are only known at the end: `left`."""
        return self._lake is not None and not self.walk.ordered

    def left(self, segment: Segment) -> Iterator[pa.Table]:
        """Keys of the lake that lie in this range and were in nothing that was read."""
        return self._lake.left(segment) if self._lake is not None else iter(())

    def deliver(self, window: Window, found: Found, progress: dict[str, Any]) -> None:
        """Take the mark, after all that was read, and hand over. Raises `WindowCancelled` as well."""
        mark, server = found.mark or self._reader.mark()
        gone = found.gone if found.gone.num_rows else None
        window.deliver(Delivery(found.rows, gone, mark, server, progress, found.points))
        faults.point("window.delivered")

    def _keys(self, rows: Sequence[pa.RecordBatch]) -> pa.Table:
        if not rows:
            return self._key.empty_table()
        return pa.Table.from_batches([batch.select(self._key.names) for batch in rows])


class LakeKeys:
    """The keys that the lake says the source has of a table, or of one shard of it, as of the first time it is asked. Any version would do: what the stream
    changes after it, the stream says itself.

    They are held in memory as far as they are few; else the lake is scanned for each window. Where the lake's order is not the server's (a
    collation's), a window's keys need not lie between its bounds by their bytes, and half of all keys may lie there that are not the window's:
    so keys that are held are struck out as they are read, and those that are left at the end are the suspects; where there are too many to hold,
    all are.
    """

    def __init__(self, lake: LakeTable, walk: Walk, shard: Shard | None) -> None:
        self._lake = lake
        self._walk = walk
        self._shard = shard
        self._key = key_columns(walk.schema)
        self._snapshot: Snapshot | None = None
        self._looked = False
        self._held: pa.Table | None = None
        """In the order of the first column."""
        self._strikes = not walk.ordered

    def beside(self, keys: pa.Table, segment: Segment) -> pa.Table:
        """Those that lie in the segment by their bytes, and are none of `keys`."""
        if not self._looked:
            self._look()
        if self._strikes:
            if self._held is not None and self._held.num_rows and keys.num_rows:
                self._held = self._held.filter(pc.is_null(KeyIndex(keys, str(self._walk.table)).locate(self._held)))
            return self._key.empty_table()
        index: KeyIndex | None = None
        found = []
        for there in self._between(segment):
            there = there.filter(self._within(there, segment))
            if there.num_rows:
                index = index or KeyIndex(keys, str(self._walk.table))
                there = there.filter(pc.is_null(index.locate(there)))
            if there.num_rows:
                found.append(there)
        return pa.concat_tables(found) if found else self._key.empty_table()

    def left(self, segment: Segment) -> Iterator[pa.Table]:
        """Those that lie in the segment and were never among the keys that were read; none where each window had its own."""
        if not self._looked:
            self._look()
        if self._strikes:
            for there in self._scan(None) if self._held is None else [self._held]:
                there = there.filter(self._within(there, segment))
                if there.num_rows:
                    yield there

    def _look(self) -> None:
        self._looked = True
        self._snapshot = self._lake.load()
        held: list[pa.Table] = []
        size = 0
        for there in self._scan(None):
            held.append(there)
            size += there.nbytes
            if size > (STRUCK_BYTES if self._strikes else HELD_BYTES):
                return
        table = pa.concat_tables(held) if held else self._key.empty_table()
        self._held = table if self._strikes else table.take(pc.sort_indices(table.column(0))).combine_chunks()

    def _between(self, segment: Segment) -> Iterator[pa.Table]:
        bounds = self._walk.lake_range(segment.after, segment.to)
        if self._held is None:
            yield from self._scan(bounds)
            return
        low, high = bounds
        first: Any = self._held.column(0)
        rows = range(self._held.num_rows)
        begin = 0 if low is None else bisect_left(rows, low, key=lambda n: first[n].as_py())
        end = len(rows) if high is None else bisect_left(rows, high, lo=begin, key=lambda n: first[n].as_py())
        if begin < end:
            yield self._held.slice(begin, end - begin)

    def _scan(self, bounds: tuple[Any | None, Any | None] | None) -> Iterator[pa.Table]:
        if self._snapshot is None:
            return
        names = self._key.names
        if self._shard is not None:
            names = [self._shard.column, *names]
            bounds = (self._shard.value, f"{self._shard.value}\0")
        for batch in self._lake.scan(self._snapshot, names, bounds, live=True):
            there = pa.Table.from_batches([batch])
            if self._shard is not None:
                there = there.filter(pc.equal(there.column(self._shard.column), pa.scalar(self._shard.value)))
            if there.num_rows:
                yield conform(there.select(self._key.names), self._key, str(self._walk.table))

    def _within(self, keys: pa.Table, segment: Segment) -> Any:
        inside: Any = self._walk.within(keys, segment.after, segment.to)
        if segment.included and segment.after is not None:
            first = KeyIndex(self._walk.keys_of([segment.after]), str(self._walk.table))
            inside = pc.or_(inside, pc.is_valid(first.locate(keys)))
        return inside


def split_keys(segment: Segment) -> tuple[Segment, Segment | None]:
    """The keys of a segment that one window reads, and the rest."""
    assert segment.keys is not None
    first, end = segment.keys
    middle = min(first + KEYS_AT_ONCE, end)
    return Segment(keys=(first, middle)), Segment(keys=(middle, end)) if middle < end else None


def key_table(walk: Walk, keys: Sequence[Sequence[int | str]]) -> pa.Table:
    """The keys of a request, in the lake's types, each once. Raises `TableStoppedError` where they are not keys of the table (any more)."""
    try:
        bounds = [walk.bound_of([str(cell) for cell in key]) for key in keys]
        table = walk.keys_of(bounds)
    except (ValueError, pa.ArrowInvalid):
        raise TableStoppedError("a key that was asked for is none of the table's", where=str(walk.table)) from None
    texts = [canonical.texts(c, table.column(c.name).combine_chunks()).to_pylist() for c in walk.key]
    first: dict[tuple[Any, ...], int] = {}
    for n, row in enumerate(zip(*texts, strict=True)):
        first.setdefault(row, n)
    return table.take(list(first.values()))
