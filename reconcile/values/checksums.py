"""One group of a comparison: sums of both sides over cells of a table, in one read view of the source, and the keys that they leave in doubt.

The protocol is `spec/compare.py`. In the view the server adds up its rows, chunk by chunk; meanwhile a thread waits for a version of the lake
that has passed the mark, and adds up that. The rows of the keys that the stream touched in between are taken off both sums. What is left
must be equal. Chunks that are not are compared cell by cell, cells that are not row by row: all in the same view, as long as its time
lasts; what is left of them is for another group.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc.epoch import CommitRecord
from reconcile.values.compared import Compared
from reconcile.values.division import CELL_ROWS, OUTSIDE, Buckets, Cells, Division, Numbers, Range, runs, written
from reconcile.values.found import UnlikeRange
from reconcile.values.keysets import distinct, unlike, without
from reconcile.values.lakeside import LakeSide, Mask, Sums
from reconcile.values.sources import Part, SourceSide, Sum
from reconcile.values.turns import Turn, Turns
from reconcile.values.windows import Closing, Mark, Windows
from snapshot.boundaries import Boundaries
from snapshot.chunks import Bound
from snapshot.throttle import Throttle

CHUNK_ROWS = 50_000
"""Rows of one statement that adds up, at most about so many."""
CHUNK_S = 0.5
"""Or as many as take so long."""
VIEW_S = 60.0
"""A read view is not used for longer: the server keeps old rows for it, and a DDL waits for its end."""
READ_S = 40.0
"""Of which sums are read for so long."""
LEAF_ROWS = 200_000
"""Rows that are compared by key and digest at once."""

BUCKETS_ROWS = 1_000_000
"""The same of buckets, for which the server goes over the whole table each time."""


@dataclass(frozen=True)
class Span:
    """Cells of a part, from `first` on, before `last`."""

    part: Part
    first: int
    last: int


@dataclass(frozen=True)
class _Chunk:
    span: Span
    sum: Sum


@dataclass
class Outcome:
    """What a group came to. `left` are cells of which it says nothing."""

    closing: Closing
    suspects: pa.Table
    left: list[Span] = field(default_factory=list)
    done: list[Span] = field(default_factory=list)
    source_rows: int = 0
    lake_rows: int = 0
    chunks: int = 0
    unlike: int = 0
    """Chunks."""
    named: int = 0
    """Of the suspects those that are unlike in the view, not only touched."""
    certain: int = 0
    """Rows that differ in `ranges`, at least so many."""
    ranges: list[UnlikeRange] = field(default_factory=list)
    """Where too many rows differ to name them."""
    read_s: float = 0.0


class Group:
    """One group. `cell_rows`: about how many rows a cell of each part has. `limit`: so many keys that are unlike are named, and no more. `told`
    of the rows that were added up."""

    def __init__(
        self,
        compared: Compared,
        source: SourceSide,
        lake: LakeSide,
        windows: Windows,
        throttle: Throttle,
        turns: Turns,
        divisions: dict[Part, Division],
        cell_rows: dict[Part, float],
        limit: int,
        told: Callable[[int], None],
    ) -> None:
        self._compared, self._source, self._lake, self._windows = compared, source, lake, windows
        self._throttle, self._turns, self._divisions, self._limit, self._told = throttle, turns, divisions, limit, told
        self._cell_rows = cell_rows
        self._stop = threading.Event()
        """The lake's thread has to end."""
        self._over = threading.Event()
        """The time for sums is over."""
        self._deadline_s = 0.0
        self._taken: dict[Part, Sums] = {}
        self._speed = 0.0
        """Rows a second of the statements so far."""

    def run(self, spans: Sequence[Span]) -> Outcome:
        """Compare these. Raises as `Windows`, `SourceSide`, `LakeSide`."""
        self._throttle.before(0, 0)
        self._throttle.took(0, 0)
        with ThreadPoolExecutor(1) as pool, self._turns.mine(self._compared.table) as turn:
            return self._run(spans, pool, turn)

    def _run(self, spans: Sequence[Span], pool: ThreadPoolExecutor, turn: Turn) -> Outcome:
        opening = self._windows.open()
        with self._windows.view() as mark:
            began_s = time.monotonic()
            self._deadline_s = began_s + VIEW_S
            over = threading.Timer(READ_S, self._over.set)
            over.daemon = True
            over.start()
            lake = pool.submit(self._lake_sums, opening, mark, list(spans))
            try:
                chunks, left = self._read(spans, lake)
                turn.over()
                read_s = time.monotonic() - began_s
                closing, sums = lake.result()
                return self._compare(chunks, left, closing, sums, read_s)
            finally:
                self._stop.set()
                over.cancel()

    # -- sums of both sides --------------------------------------------------------------------------------------------

    def _lake_sums(self, opening: CommitRecord, mark: Mark, spans: Sequence[Span]) -> tuple[Closing, dict[Part, Sums]]:
        """In a thread of its own."""
        closing = self._windows.close(opening, mark, self._compared, self._stop)
        return closing, self._lake.sums(closing, self._divisions, self._flags(spans), self._stop.is_set)

    def _flags(self, spans: Sequence[Span]) -> dict[Part, Mask]:
        found: dict[Part, Mask] = {}
        for span in spans:
            flags = found.setdefault(span.part, np.zeros(self._divisions[span.part].count, np.bool_))
            flags[span.first : span.last] = True
        return found

    def _read(
        self, spans: Sequence[Span], lake: Future[tuple[Closing, dict[Part, Sums]]]
    ) -> tuple[list[_Chunk], list[Span]]:
        """The source's sums, and what there was no time for."""
        chunks: list[_Chunk] = []
        left: list[Span] = []
        rows = 0
        for span in spans:
            division = self._divisions[span.part]
            if isinstance(division, Buckets):
                found = self._read_buckets(span, division)
                chunks += found
                rows += sum(c.sum.rows for c in found)
                self._told(rows)
                continue
            assert isinstance(division, Cells)
            at = span.first
            while at < span.last and self._pause(self._wanted()):
                self._turns.check(self._compared.table)
                if lake.done():
                    lake.result()  # where it failed, nothing more is of use
                end = min(span.last, at + max(1, int(self._wanted() / self._cell_rows[span.part])))
                chunk = Span(span.part, at, end)
                found_sum = self._timed(lambda chunk=chunk: self._source.sum(chunk.part, self._range(chunk)))  # type: ignore[misc]
                chunks.append(_Chunk(chunk, found_sum))
                at = end
                rows += found_sum.rows
                self._told(rows)
            if at < span.last:
                left.append(Span(span.part, at, span.last))
        return chunks, left

    def _range(self, span: Span) -> Range:
        division = self._divisions[span.part]
        assert isinstance(division, Cells)
        return division.range(span.first, span.last)

    def _wanted(self) -> int:
        """Rows of the next chunk."""
        rows = CHUNK_ROWS if not self._speed else min(CHUNK_ROWS, int(self._speed * CHUNK_S))
        return self._throttle.limit(max(1, rows), 0)

    def _pause(self, rows: int) -> bool:
        """Wait until so many rows may be read; whether there is time for them."""
        if not self._over.is_set():
            self._throttle.before(rows, 0, self._over)
        return not self._over.is_set()

    def _timed(self, read: Callable[[], Sum]) -> Sum:
        began_s = time.monotonic()
        with self._throttle.reading():
            found = read()
        took_s = max(time.monotonic() - began_s, 1e-6)
        self._throttle.took(found.rows, 0, took_s)
        if found.rows:
            speed = found.rows / took_s
            self._speed = speed if not self._speed else 0.7 * self._speed + 0.3 * speed
        return found

    def _read_buckets(self, span: Span, division: Buckets) -> list[_Chunk]:
        """Buckets are all over the table: it is read from its beginning to its end, whatever time that takes."""
        only = None if (span.first, span.last) == (0, division.count) else range(span.first, span.last)
        sums: dict[int, Sum] = {}
        for range_ in self._pieces(span.part):
            self._throttle.before(CHUNK_ROWS, 0)

            def read(range_: Range = range_) -> Sum:
                rows = Sum()
                for bucket, found in self._source.buckets(span.part, range_, division.bits, only).items():
                    sums[bucket] = sums.get(bucket, Sum()).plus(found)
                    rows = rows.plus(found)
                return rows

            self._timed(read)
        return [_Chunk(Span(span.part, n, n + 1), sums.get(n, Sum())) for n in range(span.first, span.last)]

    def _pieces(self, part: Part) -> list[Range]:
        """The whole table in ranges of about equal size, as the server orders and estimates them."""
        rows = self._throttle.limit(CHUNK_ROWS, 0)
        parts = Boundaries(self._source.connection, part.walk).parts(lambda count: count // rows + 1)
        return [Range(p.low, p.high, low_included=False, high_included=True) for p in parts]

    # -- what they leave -----------------------------------------------------------------------------------------------

    def _compare(
        self, chunks: list[_Chunk], left: list[Span], closing: Closing, sums: dict[Part, Sums], read_s: float
    ) -> Outcome:
        compared = self._compared
        outcome = Outcome(closing, compared.key_schema.empty_table(), left, read_s=read_s)
        truncated = {c.span.part for c in chunks if c.span.part.shard in closing.truncated}
        outcome.left += [c.span for c in chunks if c.span.part in truncated]
        chunks = [c for c in chunks if c.span.part not in truncated]
        touched = self._touched(chunks, closing)
        different: list[_Chunk] = []
        for chunk in chunks:
            outcome.chunks += 1
            if self._is_alike(chunk, sums):
                self._count(outcome, chunk, sums)
            else:
                different.append(chunk)
        outcome.unlike = len(different)
        unlike_keys = self._refined(different, closing, sums, outcome)
        outcome.named = sum(keys.num_rows for keys in unlike_keys)
        outcome.suspects = distinct(pa.concat_tables([touched, *unlike_keys]), compared.key)
        return outcome

    def _count(self, outcome: Outcome, chunk: _Chunk, sums: dict[Part, Sums]) -> None:
        outcome.done.append(chunk.span)
        outcome.source_rows += chunk.sum.rows
        outcome.lake_rows += int(sums[chunk.span.part].seen[chunk.span.first : chunk.span.last].sum())

    def _touched(self, chunks: Sequence[_Chunk], closing: Closing) -> pa.Table:
        """The keys of these chunks that the stream touched; what the view has of them is taken off the sums from now on."""
        key = self._compared.key
        flags = self._flags([c.span for c in chunks])
        keys = [self._compared.key_schema.empty_table()]
        for part, wanted in flags.items():
            self._taken[part] = Sums(len(wanted))
            own = part.own(closing.touched)
            cells = self._divisions[part].of(own)
            take = cells != OUTSIDE
            take[take] &= wanted[cells[take]]
            keys.append(part.named(own.filter(pa.array(take)), key[0]))
        touched = pa.concat_tables(keys)
        rows = self._source.digests_of(touched).drop_null()
        for part in flags:
            own = part.own(rows)
            if own.num_rows:
                digests = (rows if part.shard is None else rows.filter(_of(rows, part))).column(rows.num_columns - 1)
                self._taken[part].add(digests.combine_chunks(), self._divisions[part].of(own.select(part.key)))
        return touched

    def _is_alike(self, chunk: _Chunk, sums: dict[Part, Sums]) -> bool:
        span = chunk.span
        taken = self._taken[span.part].between(span.first, span.last)
        return chunk.sum.less(taken) == sums[span.part].between(span.first, span.last)

    def _refined(
        self, different: Sequence[_Chunk], closing: Closing, sums: dict[Part, Sums], outcome: Outcome
    ) -> list[pa.Table]:
        """The keys that are unlike in these chunks, as far as time and the limit allow."""
        found: list[pa.Table] = []
        count = 0
        for part in dict.fromkeys(c.span.part for c in different):
            division = self._divisions[part]
            of_part = [c for c in different if c.span.part == part]
            batch: list[_Chunk] = []
            for n, chunk in enumerate(of_part):
                if count + outcome.certain > self._limit:
                    self._give_up(part, [c.span for c in of_part[n:]], outcome)
                    for rest in of_part[n:]:
                        source = rest.sum.less(self._taken[part].between(rest.span.first, rest.span.last))
                        lake = sums[part].between(rest.span.first, rest.span.last)
                        outcome.certain += max(1, abs(source.rows - lake.rows))
                        self._count(outcome, rest, sums)
                    break
                # Buckets are looked at together, and all in this view: what is left of them would take a group each.
                if isinstance(division, Cells) and time.monotonic() > self._deadline_s and found:
                    outcome.left += [c.span for c in of_part[n:]]
                    break
                batch.append(chunk)
                many = sum(c.sum.rows + int(sums[part].seen[c.span.first : c.span.last].sum()) for c in batch)
                if isinstance(division, Buckets) and n + 1 < len(of_part) and many < BUCKETS_ROWS:
                    continue  # each look at buckets goes over the whole table
                keys = self._unlike(part, batch, closing, sums, outcome)
                count += keys.num_rows
                found.append(keys)
                for done in batch:
                    self._count(outcome, done, sums)
                batch = []
        return found

    def _unlike(
        self, part: Part, chunks: Sequence[_Chunk], closing: Closing, sums: dict[Part, Sums], outcome: Outcome
    ) -> pa.Table:
        """The keys of these chunks that are unlike."""
        division, key = self._divisions[part], self._compared.key
        if isinstance(division, Buckets):
            wanted = np.zeros(division.count, np.bool_)
            numbers = [c.span.first for c in chunks]
            wanted[numbers] = True
            rows = self._source.rows_in_buckets(part, Range(), division.bits, numbers)
            lake = self._lake.rows_in(closing, part, division, wanted)
            return unlike(without(rows, closing.touched), lake, key)
        assert isinstance(division, Cells)
        cells = [n for chunk in chunks for n in self._cells(chunk, sums)]
        found = [self._compared.key_schema.empty_table()]
        for begin in range(0, len(cells), max(1, LEAF_ROWS // CELL_ROWS)):
            some = cells[begin : begin + max(1, LEAF_ROWS // CELL_ROWS)]
            wanted = np.zeros(division.count, np.bool_)
            wanted[some] = True
            lake = self._lake.rows_in(closing, part, division, wanted)
            pieces = []
            for first, last in runs(some):
                rows, whole = self._source.rows(part, division.range(first, last), LEAF_ROWS)
                pieces.append(rows)
                if not whole:
                    # More than there is room for, and few of them in the lake.
                    self._give_up(part, [Span(part, first, last)], outcome)
                    here = _between(division.of(part.own(lake)), first, last)
                    outcome.certain += max(1, without(rows, closing.touched).num_rows - int(here.sum()))
                    pieces[-1] = rows.slice(0, 0)
                    lake = lake.filter(pa.array(~here))
            source = without(pa.concat_tables(pieces), closing.touched)
            found.append(unlike(source, lake, key))
        return pa.concat_tables(found)

    def _cells(self, chunk: _Chunk, sums: dict[Part, Sums]) -> list[int]:
        """The cells of a chunk whose sums are unlike."""
        span = chunk.span
        if span.last - span.first == 1:
            return [span.first]
        found = []
        for n in range(span.first, span.last):
            one = Span(span.part, n, n + 1)
            if not self._is_alike(_Chunk(one, self._timed_cell(one)), sums):
                found.append(n)
        return found

    def _timed_cell(self, span: Span) -> Sum:
        with self._throttle.reading():
            return self._source.sum(span.part, self._range(span))

    def _give_up(self, part: Part, spans: Sequence[Span], outcome: Outcome) -> None:
        division = self._divisions[part]
        if isinstance(division, Buckets):
            outcome.ranges.append(UnlikeRange(part.table))
            return
        assert isinstance(division, Cells)
        for first, last in runs([n for span in spans for n in range(span.first, span.last)]):
            of = division.range(first, last)
            outcome.ranges.append(UnlikeRange(part.table, _written(part, of.low), _written(part, of.high)))


def _written(part: Part, bound: Bound | None) -> tuple[int | str, ...] | None:
    return written(part.walk, bound)


def _of(rows: pa.Table, part: Part) -> Any:
    return pc.equal(rows.column(0), pa.scalar(part.shard or ""))


def _between(cells: Numbers, first: int, last: int) -> Mask:
    return (cells >= first) & (cells < last)
