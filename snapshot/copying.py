"""The reading of a table's parts into data files: several readers, each chunk a SELECT that fills about one file.

A chunk counts once its files are durable and the progress record says so; whatever ends a reading before, the next one goes on after
the last chunk that counts. A reader that has nothing left to do gets half of what another one has left.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa

from cdc import faults, unfit
from cdc.config import PipelineConfig
from cdc.journal import logger
from cdc.lake import DataFile, LakeTable
from cdc.log.base import Log
from cdc.position import BinlogEnd
from cdc.state import State
from snapshot.boundaries import Boundaries
from snapshot.chunks import Bound, Part, Walk
from snapshot.pace import Pace
from snapshot.progress import Progress, Reached
from snapshot.reader import Chunk, Ended, Reader
from snapshot.retention import Budget
from snapshot.slots import Slots
from snapshot.throttle import Throttle

LOG = logger("snapshot")

ProgressCallback = Callable[[int, int], None]
"""Rows read so far, and about how many there are."""

POLL_S = 0.2
"""How often it is looked whether the reading shall end."""
TELL_S = 0.5
"""How often the count of rows is written down within a chunk."""
PARTS_PER_READER = 8
"""At least, in a large table: so that readers end at about the same time although parts are not quite equal."""
SMALLEST = 8
"""A chunk is not made so many times smaller than a whole one, for readers to end together."""
GATHER_S = 30.0
"""Where limits make chunks short, several are gathered into one file, as long as no more than this is lost by a kill."""
PACKED = 2.0
"""How many times smaller rows are thought to be in a file than in memory, until there is one."""
PACKED_MOST = 10.0
SLACK = 1.3
"""A file may become so many times larger than wanted, rather than leave a small rest to another one."""


@dataclass(frozen=True)
class Shared:
    """What the bootstraps of one process have in common."""

    slots: Slots
    throttle: Throttle
    budget: Budget

    @classmethod
    def alone(cls, config: PipelineConfig, log: Log) -> Self:
        """For one bootstrap by itself."""
        return cls(Slots(config.snapshot.readers), Throttle(config), Budget(config, log))


class Copy:
    """The reading of all open parts, by some threads. The first error ends the others."""

    def __init__(
        self,
        config: PipelineConfig,
        lake: LakeTable,
        state: State,
        progress: Progress,
        shared: Shared,
        pace: Pace,
        stop: threading.Event,
        tell: ProgressCallback | None,
    ) -> None:
        self._config = config
        self._lake = lake
        self._state = state
        self._progress = progress
        self._shared = shared
        self._pace = pace
        self._stop = stop
        self._tell = tell
        self._table = lake.table
        self._walk = Walk(lake.table, progress.purpose.schema)
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._told_s = 0.0
        self._sizes = _Sizes(config.merge.file_size)
        self._work = _Work([], 0, self._ending)
        self.early_mark: tuple[BinlogEnd, str] | None = None
        """A mistake, for the tests of the fault `mark_before_last_chunk`."""

    def run(self) -> None:
        """Raises `Ended` if it was stopped before the end."""
        readers = self._config.snapshot.readers
        with self._reader() as reader, self._watching():
            if not self._progress.planned:
                self._progress.plan(self._parts(reader))
            parts = self._progress.parts()
            self._pace.plan((reached.part, reached.read, reached.done) for reached in parts)
            left = [reached for reached in parts if not reached.done]
            self._say(now=True)
            if not left:
                return
            self._work = _Work(left, readers, self._ending)
            if readers == 1:
                self._read(reader)
                return
            with ThreadPoolExecutor(readers, thread_name_prefix="snapshot-reader") as pool:
                futures = [pool.submit(self._read_alone, reader if n == 0 else None) for n in range(readers)]
            failed = [e for f in futures if (e := f.exception()) is not None]
            real = [e for e in failed if not isinstance(e, Ended)]
            for error in real[:1] or failed[:1]:
                raise error
            if left := self._progress.open_parts():
                raise AssertionError(f"{len(left)} parts are left")

    def _reader(self) -> Reader:
        return Reader(self._config, self._walk, self._progress.purpose.record.end, self._ending, self._shared.throttle)

    def _parts(self, reader: Reader) -> list[Part]:
        """As many as the readers can share fairly, and no smaller than a file."""
        settings = self._config.snapshot
        boundaries = Boundaries(reader.connection(), self._walk, self._check)

        def wanted(rows: int) -> int:
            if settings.readers == 1:
                return 1
            return min(settings.readers * PARTS_PER_READER, -(-rows // settings.chunk_rows))

        began_s = time.monotonic()
        parts = boundaries.parts(wanted)
        LOG.info(
            "parts",
            table=str(self._table),
            parts=len(parts),
            rows=sum(p.rows for p in parts),
            statements=boundaries.statements,
            seconds=round(time.monotonic() - began_s, 2),
        )
        return parts

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """`ending` follows `stop` while the block runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if self._stop.wait(POLL_S):
                    self._ending.set()
                    return

        thread = threading.Thread(target=watch, name="snapshot-stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _check(self) -> None:
        if self._ending.is_set():
            raise Ended

    def _read_alone(self, reader: Reader | None) -> None:
        try:
            if reader is not None:
                self._read(reader)
                return
            with self._reader() as own:
                self._read(own)
        except BaseException:
            self._ending.set()
            raise

    def _read(self, reader: Reader) -> None:
        while (reached := self._work.take()) is not None:
            self._read_part(reader, reached)

    def _read_part(self, reader: Reader, reached: Reached) -> None:
        part, at, done = reached.part, reached.at if reached.at is not None else reached.part.low, False
        while not done:
            self._check()
            if self._is_paused():
                raise Ended
            if self._work.is_wanted:
                part = self._shared_out(reader, part, at)
            counted = [0]
            try:
                with self._shared.slots.taken(self._table, self._ending) as taken:
                    if not taken:
                        raise Ended
                    if faults.mutant("mark_before_last_chunk"):
                        self.early_mark = reader.mark()
                    gathered = _Gathered(at)
                    files = self._write(self._gather(reader, part, gathered, counted))
                faults.point("snapshot.chunk")
                at, done = gathered.at, gathered.done
                self._progress.record(part, at, done, files)
            except BaseException:
                self._pace.again(part.number, counted[0])
                raise
            faults.point("snapshot.chunk-recorded")
            LOG.debug("chunk", table=str(self._table), part=part.number, rows=counted[0], done=done)
            self._shared.budget.check(self._table, self._pace.read, self._pace.left)
        self._pace.done(part.number)
        self._say(now=True)

    def _is_paused(self) -> bool:
        return self._table in self._state.paused()

    def _gather(self, reader: Reader, part: Part, gathered: _Gathered, counted: list[int]) -> Iterator[pa.RecordBatch]:
        """The batches of a chunk, or of several short ones."""
        limit = self._limit(part)
        size = self._sizes.wanted
        began_s = time.monotonic()
        while True:
            chunk = reader.read(part, gathered.at, limit - counted[0], size=max(1, size - gathered.size))
            for batch in chunk.batches:
                yield batch
                counted[0] += batch.num_rows
                self._pace.took(part.number, batch.num_rows)
                self._say()
            gathered.took(chunk)
            self._sizes.took(chunk)
            full = counted[0] >= limit or gathered.size >= size / SLACK
            if gathered.done or full or time.monotonic() - began_s > GATHER_S or self._is_paused():
                return

    def _limit(self, part: Part) -> int:
        """Rows of the next chunk: what is left of the part in pieces of about equal size."""
        most = self._config.snapshot.chunk_rows
        if self._sizes.row_bytes:
            most = max(1, min(most, int(self._sizes.wanted / self._sizes.row_bytes)))
        left = self._pace.left_of(part.number)
        if (readers := self._config.snapshot.readers) > 1 and left:
            # Shorter and shorter towards the end, and what is left is shared out between chunks: so readers end together.
            most = max(1, most // SMALLEST, min(most, self._pace.left // (2 * readers)))
        pieces = -(-left // most)
        # A tenth more than is thought, so that no small rest remains.
        return most if pieces < 2 else min(most, int(left / pieces * 1.1) + 1)

    def _shared_out(self, reader: Reader, part: Part, at: Bound | None) -> Part:
        """Cut off half of what is left of a part, for a reader that has nothing to do; the part as it is then."""
        left = self._pace.left_of(part.number)
        if 0 < left < self._config.snapshot.chunk_rows // SMALLEST:
            return part
        halves = Boundaries(reader.connection(), self._walk, self._check).halves(at, part.high)
        if halves is None:
            return part
        cut, before, behind = halves
        number = self._work.number()
        ours, other = replace(part, high=cut, rows=before), Part(number, cut, part.high, behind)
        self._progress.cut(ours, other)
        self._pace.cut(ours, other)
        LOG.info("part-cut", table=str(self._table), part=part.number, into=number)
        self._work.give(Reached(other, None))
        return ours

    def _write(self, batches: Iterator[pa.RecordBatch]) -> list[DataFile]:
        """Durable files of about the configured size, their rows as of e0."""
        purpose = self._progress.purpose
        files: list[DataFile] = []
        taken = _Peekable(batches)
        while taken.more():
            written = self._lake.write_files(
                taken.upto(int(self._sizes.wanted * SLACK)),
                purpose.schema,
                purpose.layout,
                self._progress.announce,
                ts_ms=purpose.record.ts_ms,
                seq=purpose.record.seq,
                scratch=self._progress.folder,
            )
            self._sizes.wrote(taken.bytes, sum(file.size for file in written))
            files += written
        return files

    def _say(self, *, now: bool = False) -> None:
        """Write the count of rows down now and then. Raises `Ended` if the table is no longer ours to read."""
        with self._lock:
            if not now and time.monotonic() - self._told_s < TELL_S:
                return
            self._told_s = time.monotonic()
            read = self._pace.read
            estimate = read + self._pace.left
        if not self._state.set_table(
            self._table, "snapshot", when=("snapshot",), rows_read=read, rows_estimate=estimate
        ):
            raise Ended
        if self._tell is not None:
            self._tell(read, estimate)


@dataclass
class _Gathered:
    """Where the chunks of one file end."""

    at: Bound | None
    done: bool = False
    size: int = 0

    def took(self, chunk: Chunk) -> None:
        self.at, self.done = chunk.last if chunk.last is not None else self.at, chunk.done
        self.size += chunk.size


class _Sizes:
    """How large rows are, in memory and in files, as far as was seen."""

    def __init__(self, file_size: int) -> None:
        self._file_size = file_size
        self._lock = threading.Lock()
        self._rows = self._bytes = self._written = self._on_disk = 0

    def took(self, chunk: Chunk) -> None:
        with self._lock:
            self._rows += chunk.rows
            self._bytes += chunk.size

    def wrote(self, size: int, on_disk: int) -> None:
        with self._lock:
            self._written += size
            self._on_disk += on_disk

    @property
    def row_bytes(self) -> float:
        """In memory; 0 while it is not known."""
        with self._lock:
            return self._bytes / self._rows if self._rows else 0.0

    @property
    def wanted(self) -> int:
        """In memory, for a file of the configured size."""
        with self._lock:
            packed = self._written / self._on_disk if self._on_disk else PACKED
        return int(self._file_size * min(max(packed, 1.0), PACKED_MOST))


class _Work:
    """What is left to read, and how many readers wait for it."""

    def __init__(self, parts: list[Reached], readers: int, ending: threading.Event) -> None:
        self._left = deque(parts)
        self._readers = readers
        self._ending = ending
        self._idle = 0
        self._last = max((reached.part.number for reached in parts), default=-1)
        self._changed = threading.Condition()

    def number(self) -> int:
        """Of a new part."""
        with self._changed:
            self._last += 1
            return self._last

    @property
    def is_wanted(self) -> bool:
        """Whether a reader waits in vain."""
        with self._changed:
            return self._idle > len(self._left)

    def give(self, reached: Reached) -> None:
        """One part more."""
        with self._changed:
            self._left.append(reached)
            self._changed.notify()

    def take(self) -> Reached | None:
        """The next part; None once there is none left, and none to come. Raises `Ended`."""
        with self._changed:
            self._idle += 1
            while not self._left:
                if self._idle == self._readers:
                    self._changed.notify_all()
                    return None
                if self._ending.is_set():
                    raise Ended
                self._changed.wait(POLL_S)
            self._idle -= 1
            return self._left.popleft()


class _Peekable:
    """An iterator of batches that can be cut at a size."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._next: pa.RecordBatch | None = None
        self.bytes = 0
        """Of the batches that were given since the last cut."""

    def more(self) -> bool:
        """Whether there is another one; it is read to know that."""
        if self._next is None:
            self._next = next(self._batches, None)
        return self._next is not None

    def upto(self, size: int) -> Iterator[pa.RecordBatch]:
        """Batches until they have at least `size` bytes. One with values that do not fit ends what began without: a file has the column
        `_cdc_unfit` from its first batch on, or not at all."""
        self.bytes, plain = 0, self._next is not None and not unfit.is_last(self._next.schema)
        while self.bytes < size and self.more():
            assert self._next is not None
            if plain and unfit.is_last(self._next.schema):
                return
            batch, self._next = self._next, None
            self.bytes += batch.nbytes
            yield batch
