"""One job of rereading: its windows, one after the other, several on their way at a time.

What is done is what is in the log, and nothing else. The state folder only spares a look at the whole of it: a job goes on from
`Read.epoch`, before which every window that can matter was written, and finds the later ones by itself, so that no window is written
twice and none is missing, whatever ended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace

import pyarrow as pa

from cdc import faults, sharding
from cdc.config import PipelineConfig
from cdc.epoch import EpochId, TableState, WindowId
from cdc.errors import TableStoppedError
from cdc.journal import logger
from cdc.lake import LakeTable
from cdc.log import captured
from cdc.log.base import Log
from cdc.reads import NUMBERS
from cdc.schema import TableSchema
from cdc.state import Read, State
from cdc.window import PROBE, Opened, Window, WindowCancelled, WindowEnded, Windows
from snapshot import segments
from snapshot.chunks import Bound, Walk
from snapshot.reader import Ended
from snapshot.retention import Budget
from snapshot.segments import KEYS_AT_ONCE, LEFT, Segment
from snapshot.throttle import Throttle
from snapshot.windowed import Found, Shard, WindowReader, key_table, split_keys

LOG = logger("reread")

OUTSTANDING = 4
"""Windows of a job that are delivered and not yet in the log, at most; the next one is read meanwhile."""
RECORD_S = 0.25
"""How often progress is written down."""
WRITTEN_WITHIN_S = 30.0
"""How long a job that ends waits for windows that are being written."""
OLD_S = 1.0
"""A window that was asked for ahead is given up after a pause of this length: what the stream touched meanwhile only costs."""
PAUSES_S = (0.02, 0.1, 0.5, 2.0, 5.0)
"""Before the next window after one, two, … were cancelled in a row."""

LEAVES = 3
"""Windows that were cancelled in a row, before it is asked whether there still is such a shard."""
TRIES = 40
"""… before the job gives up."""


class Anew(Exception):  # noqa: N818 (no error)
    """What the job has done so far is of no use: from the beginning. The reason is its text."""


@dataclass
class _Flight:
    """A window that is delivered. `base`: an epoch that was in the log before the window was asked for."""

    window: Window
    segment: Segment
    completes: bool
    base: EpochId
    found: Found


@dataclass(frozen=True)
class Outcome:
    """How a job left off: all of it is in the log, or it was told to stop."""

    done: bool
    windows: int = 0
    cancelled: int = 0
    drained: bool = False
    """Nothing of it is on its way: from here on no epoch holds a window of it before it is begun again."""


class Job:
    """One run of a job. `stop` ends it at once; `drain` once the windows that are delivered are in the log."""

    def __init__(
        self,
        config: PipelineConfig,
        log: Log,
        state: State,
        windows: Windows,
        read: Read,
        *,
        stop: threading.Event,
        drain: threading.Event,
        throttle: Throttle | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.read = read
        self._config = config
        self._log = log
        self._state = state
        self._windows = windows
        self._stop = stop
        self._drain = drain
        self._throttle = throttle
        self._budget = budget
        self._todo: deque[Segment] = deque()
        self._current: Segment | None = None
        """What is being read, and is neither in `_todo` nor on its way."""
        self._flights: deque[_Flight] = deque()
        self._doubtful: list[_Flight] = []
        self._next: Window | None = None
        """Asked for, to be read later."""
        self._opened: Window | None = None
        """The one that is being read, or was last."""
        self._known: captured.Known | None = None
        self._since = -1
        self._schema = ""
        self._appended = False
        self._number = 0
        self._run = read.run
        self._last: EpochId | None = None
        self._emitted: list[tuple[int, int]] = []
        self._rows = [read.rows_read, read.rows_emitted, read.rows_gone]
        self._estimate = read.rows_estimate
        self._recorded_s = 0.0
        self._cancelled = self._in_a_row = self._vain = self._count = 0
        self._keys = pa.table({})

    def run(self) -> Outcome:
        """Read until everything is in the log, or until told to stop. It may be called again, for a new one, after any end.

        Raises `TableStoppedError` where the table is not captured, was altered or cannot be read; retryable errors, for the caller to
        call again; `RetentionError` where it must wait; `SourceError`, `LogError`, `LakeError`, `StateError`. `Anew`.
        """
        try:
            opened = self._probe()
            state = self._captured()
            self._since = state.since
            if opened.schema != sharding.own(TableSchema.from_dict(state.schema), state.options):
                raise Anew("the table was added anew")
            walk = Walk(self.read.table, opened.schema)
            self._schema = opened.schema.hash
            self._appended = appended = state.options.get("mode") == "append"
            with closing(self._reader(walk, opened, state, appended)) as reader:
                self._find(state, reader)
                if not self._estimate:
                    self._estimate = self._about(reader)
                self._record(now=True)
                self._go(reader, appended)
            done = not self._todo and not self._flights and not self._doubtful
            if done and self._last is None:
                newest = self._log.newest()
                self._last = newest.id if newest else None
            self._record(now=True)
            return Outcome(done, self._count, self._cancelled, not self._flights and not self._doubtful)
        except (Ended, WindowEnded):
            return Outcome(False, self._count, self._cancelled)
        finally:
            self._cancel_all()
            if self._budget is not None:
                self._budget.ended(self.read.table)

    def _cancel_all(self) -> None:
        windows = [w for w in (self._next, self._opened, *(f.window for f in self._flights)) if w is not None]
        for window in windows:
            window.cancel("the job ended")
        # Whoever begins the job again must find them in the log, if they get there.
        deadline_s = time.monotonic() + WRITTEN_WITHIN_S
        while any(w.phase == "emitting" for w in windows) and time.monotonic() < deadline_s:
            time.sleep(0.005)

    # -- what there is to do -------------------------------------------------------------------------------------------

    def _probe(self) -> Opened:
        """A window that nothing is read in: once it is open, capture writes, and whatever was in doubt is decided."""
        while True:
            window = self._windows.ask(WindowId(self.read.job, PROBE), self.read.table)
            try:
                opened = window.wait_open(self._stop)
            except WindowCancelled as why:
                self._pause(str(why))
            else:
                return opened
            finally:
                window.cancel("nothing was to be read")

    def _not_captured(self, why: WindowCancelled) -> TableStoppedError:
        hint = f"`lakesync status` says why; then `lakesync snapshot {self.read.target}` again"
        return TableStoppedError(f"no window is opened for the table: {why}", where=str(self.read.table), hint=hint)

    def _captured(self) -> TableState:
        self._known = captured.read(self._log, self._known)
        state = self._known.newest_tables.get(self.read.target.id) if self._known is not None else None
        if state is None:
            raise self._not_captured(WindowCancelled("it is not captured"))
        return state

    def _check_since(self) -> None:
        """A window is open. It must be one of the table as it was added when the job began: rows that are read for an earlier adding would
        come twice. Raises `Anew`."""
        if self._captured().since != self._since:
            raise Anew("the table was added anew")

    def _reader(self, walk: Walk, opened: Opened, state: TableState, appended: bool) -> WindowReader:
        config, read = self._config, self.read
        lake = None
        if not appended and not read.spec.where and read.why != "backfill" and not faults.mutant("no_window"):
            lake = LakeTable(config.lake_root, read.target, config.name)
        shard = None
        if sharding.is_sharded(state.options):
            shard = Shard(state.options["shard_column"], sharding.value(read.table))
        return WindowReader(
            config, walk, opened, self._stop, throttle=self._throttle, lake=lake, shard=shard, where=read.spec.where
        )

    def _find(self, state: TableState, reader: WindowReader) -> None:
        """What is left to do, by the log."""
        walk = reader.walk
        read, newest = self.read, self._log.newest()
        assert newest is not None
        kept = read.progress
        if kept is not None and kept["schema"] != walk.schema.hash:
            raise Anew("the table was added anew, with other columns")
        if kept is not None and kept["log"] != self._log.uuid:
            raise Anew("there is another log")
        counted: list[int] = kept["counted"] if kept else []
        if read.last is not None and not captured.has(self._log, read.last):
            raise self._lost()
        after: int | None = None
        if read.epoch is None:
            after = newest.number if read.why in ("asked", "repair") else state.since - 1
        elif captured.has(self._log, read.epoch):
            after = read.epoch.number
        else:
            # The log lost it: what it has is all there is.
            kept = None
            LOG.warning("read-looked-for", job=read.job, reason="the log does not have its epoch any more")
        found = segments.find(self._log.records(after=after), read.target.id, read.job, read.run, counted)
        if found.run > read.run:
            self._state.set_run(read.job, found.run)
        self._run = found.run
        # Never one that was given before, also where its window is not looked for any more: it names the window's rows.
        used = read.progress["number"] if read.progress else 0
        self._number = max(found.number, used, found.run * NUMBERS)
        spec = read.spec
        if spec.keys:
            self._keys = key_table(walk, spec.keys)
        if found.open is not None and not found.numbers <= set(counted):
            self._todo.extend(found.open)
        elif kept is not None:
            self._todo.extend(segments.open_of(kept))
        elif spec.keys:
            self._todo.append(Segment(keys=(0, self._keys.num_rows)))
        elif spec.where and spec.low is None and spec.high is None:
            self._todo.extend(reader.sections())
        else:
            self._todo.append(self._range(walk))
            if reader.strikes:
                self._todo.append(LEFT)
        for n, more in enumerate((found.rows_read, found.rows_emitted, found.rows_gone)):
            self._rows[n] += more
        self._last = found.last or read.last
        self._base = found.last or read.epoch or newest.id
        if read.epoch is not None and not captured.has(self._log, read.epoch):
            self._base = newest.id

    def _lost(self) -> Exception:
        """What to raise where the log does not have a window any more that was in it. The lake may have its rows: in an `append` table they
        would come twice."""
        return lost_rows(self.read) if self._appended else Anew("the log lost its windows")

    def _range(self, walk: Walk) -> Segment:
        """All that the job reads, of one without keys."""
        spec = self.read.spec
        return Segment(_bound(walk, spec.low), _bound(walk, spec.high), spec.low is not None)

    def _about(self, reader: WindowReader) -> int:
        if self.read.spec.keys:
            return self._keys.num_rows
        return reader.rows_estimate() if self.read.spec.whole else 0

    # -- windows -------------------------------------------------------------------------------------------------------

    def _go(self, reader: WindowReader, appended: bool) -> None:
        while not self._drain.is_set():
            self._harvest()
            if self._budget is not None:
                self._budget.check(self.read.table, self._rows[0], max(0, self._estimate - self._rows[0]))
            if not self._todo:
                if not self._flights and not self._doubtful:
                    return
                if self._flights:
                    self._await_first()
                    continue
            self._step(reader, appended)
        while self._flights:
            self._await_first()

    def _step(self, reader: WindowReader, appended: bool) -> None:
        early = faults.mutant("c0_after_select")
        window = opened = None
        self._hold()
        if not early:
            window, opened = self._open()
            if not self._todo:
                window.cancel("what was in doubt is in the log")
                return
        segment = whole = self._current = self._todo.popleft()
        try:
            if segment == LEFT:
                if window is not None:
                    window.cancel("it is not known yet whether there is anything to be read")
                self._suspects(reader, reader.left(self._range(reader.walk)), segment)
                return
            if segment.keys is not None:
                segment, rest = split_keys(segment)
                whole = self._current = segment
                if rest is not None:
                    self._todo.appendleft(rest)
                if window is None or opened is None:
                    window, opened = self._open()
                self._points(reader, window, opened, self._keys_of(segment), segment, completes=True, appended=appended)
                return
            found = reader.range(segment, opened)
            whole = self._current = found.read
            if found.rest is not None:
                self._todo.appendleft(found.rest)
            if window is None:
                window, _ = self._open()
            if not found.suspects.num_rows:
                self._deliver(reader, window, found, whole, completes=True)
                return
            self._deliver(reader, window, found, whole, completes=False)
            self._suspects(reader, [found.suspects], whole)
        except WindowCancelled as why:
            self._put_back(whole, str(why))
        finally:
            self._current = None

    def _hold(self) -> None:
        """Pause as the throttle says, rather now than with a window open."""
        if self._throttle is None:
            return
        began_s = time.monotonic()
        self._throttle.before(0, 0, self._stop)
        self._throttle.took(0, 0)
        if self._next is not None and time.monotonic() - began_s > OLD_S:
            self._next.cancel("it waited too long")
            self._next = None

    def _keys_of(self, segment: Segment) -> pa.Table:
        assert segment.keys is not None
        first, end = segment.keys
        return self._keys.slice(first, end - first)

    def _suspects(self, reader: WindowReader, tables: Iterable[pa.Table], segment: Segment) -> None:
        """Ask for keys of a segment that may be gone. The last window of them completes it, once all others are in the log."""
        pieces = (t.slice(first, KEYS_AT_ONCE) for t in tables for first in range(0, t.num_rows, KEYS_AT_ONCE))
        following = next(pieces, None)
        while following is not None:
            some, following = following, next(pieces, None)
            window, opened = self._open()
            if following is None:
                while any(f.segment == segment for f in self._flights):
                    self._await_first()
            if segment in self._todo:
                window.cancel("the window before was cancelled")
                return
            self._points(reader, window, opened, some, segment, completes=following is None, appended=False)

    def _points(
        self,
        reader: WindowReader,
        window: Window,
        opened: Opened,
        keys: pa.Table,
        segment: Segment,
        *,
        completes: bool,
        appended: bool,
    ) -> None:
        found = reader.points(keys, opened, segment)
        if appended:
            found = replace(found, gone=found.gone.slice(0, 0))
        self._deliver(reader, window, found, segment, completes=completes)

    def _deliver(
        self, reader: WindowReader, window: Window, found: Found, segment: Segment, *, completes: bool
    ) -> None:
        self._harvest()
        while len(self._flights) >= OUTSTANDING or self._on_the_way() > OUTSTANDING * self._config.snapshot.window_size:
            self._await_first()
        if found.empty and completes:
            window.cancel("nothing was found")
            return
        still = dict.fromkeys([*(f.segment for f in self._flights), *([] if completes else [segment]), *self._todo])
        if completes:
            still.pop(segment, None)
        gone = found.gone.num_rows
        reader.deliver(window, found, segments.progress(self._run, segment if completes else None, still, gone))
        self._flights.append(_Flight(window, segment, completes, self._base, found))

    def _on_the_way(self) -> int:
        return sum(f.found.size for f in self._flights)

    def _open(self) -> tuple[Window, Opened]:
        """The next window, open; and another one is asked for, so that it is open when this one's rows are read."""
        while True:
            window, self._next = self._next or self._ask(), None
            self._opened = window
            try:
                opened = window.wait_open(self._stop)
            except WindowCancelled as why:
                self._pause(str(why))
                continue
            if not faults.mutant("c0_after_select"):
                self._next = self._ask()
            self._check_since()
            self._settle()
            return window, opened

    def _ask(self) -> Window:
        self._number += 1
        return self._windows.ask(WindowId(self.read.job, self._number), self.read.table)

    def _pause(self, why: str) -> None:
        """A window was cancelled. Raises `TableStoppedError` where another one would be, too."""
        self._cancelled += 1
        self._in_a_row += 1
        # Of a capture that ends and starts again nothing follows.
        self._vain = self._vain + 1 if not why.startswith("capture ") else 0
        pause_s = PAUSES_S[min(self._in_a_row, len(PAUSES_S)) - 1]
        LOG.info("window-cancelled", table=str(self.read.table), job=self.read.job, reason=why, pause_s=pause_s)
        if self._stop.wait(pause_s):
            raise Ended
        status = self._state.table(self.read.target)
        if status is None or status.phase not in ("ready", "reading", "catching-up"):
            raise self._not_captured(WindowCancelled(f"{self.read.target} is {status.phase if status else 'unknown'}"))
        if self._vain < LEAVES:
            return
        options = self._captured().options
        sources = sharding.shards(options) if sharding.is_sharded(options) else (self.read.target,)
        if self.read.table not in sources:
            raise self._not_captured(WindowCancelled("it is no shard any more"))
        if self._vain >= TRIES:
            raise TableStoppedError(
                f"windows are cancelled again and again: {why}",
                where=str(self.read.table),
                hint="read less at once: fewer keys, a condition that finds its rows sooner, a smaller snapshot.window_rows",
            )

    # -- what became of them -------------------------------------------------------------------------------------------

    def _harvest(self) -> None:
        while self._flights and self._flights[0].window.phase in ("emitted", "cancelled"):
            self._await_first()

    def _await_first(self) -> None:
        flight = self._flights[0]
        try:
            epoch = flight.window.wait_emitted(self._stop)
        except WindowCancelled as why:
            self._flights.popleft()
            self._doubtful.append(flight)
            self._put_back(flight.segment, str(why))
            return
        faults.point("window.emitted")
        self._flights.popleft()
        self._landed(flight, epoch, flight.window.emitted_rows)

    def _landed(self, flight: _Flight, epoch: EpochId, emitted: int) -> None:
        # The log is a chain: as long as it has the window before, it has all before that one.
        if self._last is not None and epoch != self._last and not captured.has(self._log, self._last):
            self._state.set_read(self.read.job, when=("running", "paused"), run=self._run, last=self._last)
            raise self._lost()
        gone = flight.found.gone.num_rows
        self._count += 1
        self._in_a_row = self._vain = 0
        self._rows[0] += flight.found.count
        self._rows[1] += emitted
        self._rows[2] += gone
        self._last = self._base = epoch
        self._emitted.append((flight.window.id.number, epoch.number))
        self._record()

    def _put_back(self, segment: Segment, why: str) -> None:
        if segment not in self._todo:
            self._todo.appendleft(segment)
        self._pause(why)

    def _settle(self) -> None:
        """A window is open, so capture has written since, or looked: windows that were cancelled after they were delivered are in the log,
        or will never be."""
        if not self._doubtful:
            return
        doubtful = {f.window.id.number: f for f in self._doubtful}
        self._doubtful = []
        oldest = min((f.base for f in doubtful.values()), key=lambda e: e.number)
        for record in self._log.records(after=oldest.number):
            for entry in record.windows.get(self.read.target.id, ()):
                flight = doubtful.get(entry.id.number) if entry.id.job == self.read.job else None
                if flight is None:
                    continue
                if flight.completes and flight.segment in self._todo:
                    self._todo.remove(flight.segment)
                self._landed(flight, record.id, entry.emitted)

    def _record(self, *, now: bool = False) -> None:
        """Write down how far it is. Raises `Ended` if the job is no longer ours."""
        if not now and time.monotonic() - self._recorded_s < RECORD_S:
            return
        self._recorded_s = time.monotonic()
        pending = [*self._flights, *self._doubtful]
        base = min((f.base for f in pending), key=lambda e: e.number, default=self._base)
        self._emitted = [(number, epoch) for number, epoch in self._emitted if epoch > base.number]
        counted = [number for number, _ in self._emitted]
        reading = [self._current] if self._current is not None else []
        still = dict.fromkeys([*(f.segment for f in pending), *reading, *self._todo])
        kept = self._state.set_read(
            self.read.job,
            when=("running", "paused"),
            run=self._run,
            epoch=base,
            progress=segments.kept(still, counted, self._schema, self._log.uuid, self._number),
            rows_read=self._rows[0],
            rows_emitted=self._rows[1],
            rows_gone=self._rows[2],
            rows_estimate=max(self._estimate, self._rows[0]),
            last=self._last,
        )
        if not kept:
            raise Ended


def lost_rows(read: Read) -> TableStoppedError:
    """Of a job of an `append` table, of which the log lost windows."""
    return TableStoppedError(
        "the log lost rows that were read, and some of them may be in the lake",
        where=str(read.table),
        hint=f"move the table's folder away from the lake, then `lakesync resync {read.target}`: it begins anew",
    )


def _bound(walk: Walk, key: tuple[int | str, ...] | None) -> Bound | None:
    if key is None:
        return None
    try:
        return walk.bound_of([str(cell) for cell in key])
    except ValueError:
        raise TableStoppedError("a bound that was asked for is no key of the table", where=str(walk.table)) from None
