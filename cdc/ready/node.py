"""The node `ready`: looks at the source's clock and the end of its binary log, and says of partitions of time that they are complete.

Nothing waits for it: it has a connection, and threads, of its own, and what it cannot do it does later. Whoever starts a second one waits until
the first one has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

from pymysql.connections import Connection

from cdc import crash, watermark
from cdc.clock import Clock, SystemClock
from cdc.config import PipelineConfig, TableConfig
from cdc.errors import LakesyncError, StateError
from cdc.journal import logger
from cdc.lake import manifest
from cdc.lake.manifest import Manifest
from cdc.log.base import Log
from cdc.names import TableName
from cdc.ready import telling
from cdc.ready.database import Database
from cdc.ready.marks import Marks
from cdc.ready.partitions import Partitions
from cdc.ready.said import CHANNELS, Book, Channel
from cdc.source import progress
from cdc.source.connection import abandon, connect
from cdc.source.progress import Progress
from cdc.source.server import Server
from cdc.state import State
from cdc.watermark import Watermark

LOG = logger("ready")
NODE = "ready"
LOOK_S = 1.0
"""Between looks: a watermark is no older than this, where the lake has everything."""
AWAY_S = 5.0
"""Before the next look at a source or lake that could not be reached."""
THIN_S = 600.0
READ_S = 10.0
"""How often a manifest in an object store is read although the merger did not say that there is another one."""
RECORDS = 10_000
"""Commit records that are read at a look."""
LOCK_S = 2.0
ENDS_S = 2.0
"""What is being waited for when the node is told to end, is left so soon."""


class Entries(Protocol):
    """What the pipeline file says, now (`cdc.capture.tables.PipelineFile`)."""

    def landing(self, table: TableName) -> TableConfig | None:
        """The entry of a table of the lake."""


def run(
    config: PipelineConfig, file: Entries, state: State, log: Log, stop: threading.Event, clock: Clock | None = None
) -> None:
    """Until `stop` is set. Raises `StateError`."""
    clock = clock or SystemClock()
    while not stop.is_set():
        try:
            with state.lock(NODE):
                _Running(config, file, state, log, clock).run(stop)
        except StateError as error:
            if "runs already" not in error.what:
                raise
            stop.wait(LOCK_S)


def settle(config: PipelineConfig, file: Entries, state: State, log: Log, timeout_s: float = 30.0) -> None:
    """Say at once what is to be said, and tell it, each once: for a run that ends when the lake is current. Raises nothing of a lake, a source or
    a webhook that cannot be reached."""
    running = _Running(config, file, state, log, SystemClock())
    with suppress(StateError), state.lock(NODE):
        thread = threading.Thread(target=running.once, name="lakesync-ready-once", daemon=True)
        thread.start()
        thread.join(timeout_s)
        running.ending.set()


class _Running:
    def __init__(self, config: PipelineConfig, file: Entries, state: State, log: Log, clock: Clock) -> None:
        self.ending = threading.Event()
        self._config, self._file, self._state, self._log, self._clock = config, file, state, log, clock
        database = Database(config.state)
        self._marks, self._book = Marks(database), Book(database)
        self._partitions = Partitions(config, self._book, clock)
        self._hearing = progress.Hearing()
        self._connection: Connection[Any] | None = None
        self._progress: Progress | None = None
        self._look_at = self._thin_at = 0.0
        self._read_to = -1
        self._found: Manifest | None = None
        self._merged: Any = None
        self._read_at = 0.0
        self._watermarks: dict[TableName, Watermark] = {}
        self._problems: dict[str, dict[str, Any]] = {}

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; threads that wait for somebody then are left behind."""
        threads = [
            threading.Thread(target=self._repeat, args=(what, body), name=f"lakesync-ready-{what}", daemon=True)
            for what, body in (("looks", self.turn), ("tells", self.tell))
        ]
        for thread in threads:
            thread.start()
        try:
            stop.wait()
        finally:
            self.ending.set()
            for thread in threads:
                thread.join(ENDS_S)

    def once(self) -> None:
        """One look, and what follows from it."""
        with suppress(LakesyncError, OSError):
            self.turn()
            self.tell()

    def _repeat(self, what: str, body: Callable[[], None]) -> None:
        while not self.ending.is_set():
            pause_s = LOOK_S
            try:
                body()
                self._settled(what)
            except (LakesyncError, OSError) as error:
                self._failed(what, error)
                pause_s = AWAY_S
            except Exception as error:
                if not self.ending.is_set():
                    self._failed(what, crash.record(error, self._state.folder, f"node {NODE}"))
                pause_s = telling.RETRY_MOST_S
            self.ending.wait(pause_s)

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def _failed(self, about: str, error: LakesyncError | OSError) -> None:
        """Logged and kept when it begins, shown as long as it lasts."""
        if self.ending.is_set():
            return
        if not isinstance(error, LakesyncError):
            error = StateError(error.strerror or type(error).__name__, where=f"node {NODE}", hint="it is tried again")
        known = self._problems.get(about)
        self._problems[about] = error.to_dict()
        if known != error.to_dict():
            LOG.warning("not-done", about=about, code=error.code, what=error.what, where=error.where, hint=error.hint)
            with suppress(LakesyncError):
                self._state.record_error(NODE, error)

    def _settled(self, about: str) -> None:
        if self._problems.pop(about, None) is not None:
            LOG.info("done-again", about=about)

    def _beat(self) -> None:
        said, left = self._book.count()
        behind = self._progress.trouble if self._progress else ""
        going = [w.at_us for w in self._watermarks.values() if not w.held and w.at_us is not None]
        problems = [*self._problems.values(), *self._book.failures()]
        if behind:
            hint = "look at SHOW REPLICA STATUS there; watermarks stand still meanwhile"
            problems.append({"code": "SourceBehind", "what": behind, "where": "", "hint": hint})
        self._state.beat(
            NODE,
            {
                "watermark_ms": min(going) // 1000 if going else None,
                "source_clock_ms": self._progress.clock_us // 1000 if self._progress else None,
                "said": said,
                "to_tell": left,
                "problems": problems,
            },
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One look at the source, the lake, and every table of which somebody wants to know. Raises what concerns all of them."""
        try:
            if self._look():
                self._settled("source")
        except LakesyncError as error:
            self._failed("source", error)
        if self.ending.is_set():
            return
        found = self._manifest()
        self._watermarks = watermark.of_tables(self._config, self._state, self._marks, found)
        if found is not None:
            self._marks.reach(watermark.reached(found, self._watermarks))
        for table, mark in self._watermarks.items():
            entry = self._file.landing(table)
            if entry is None or entry.ready is None or self.ending.is_set():
                self._problems.pop(str(table), None)
                continue
            try:
                self._partitions.look(entry, mark, self._progress)
                self._settled(str(table))
            except (LakesyncError, OSError) as error:
                self._failed(str(table), error)
        if not self.ending.is_set():
            self._beat()

    def _look(self) -> bool:
        """How far the source is in time, and the marks that follow from it. False: it was not due."""
        now_s = self._clock.monotonic()
        if now_s < self._look_at:
            return False
        self._look_at = now_s + AWAY_S
        # Before the source is asked for its end: what was read is before it.
        self._hearing.read(self._records())
        try:
            if self._connection is None:
                self._connection = connect(self._config.source, purpose=NODE)
            found = progress.look(Server(self._connection))
        except BaseException:
            if self._connection is not None:
                abandon(self._connection)
                self._connection = None
            raise
        if self.ending.is_set():
            return False
        before, self._progress = self._progress, found
        if before is not None and before.server == found.server and found.clock_us < before.clock_us - 1_000_000:
            LOG.warning("source-clock-went-back", by_ms=(before.clock_us - found.clock_us) // 1000)
        self._marks.add(self._hearing.marks(found), found.server, found.clock_us)
        if now_s >= self._thin_at:
            self._marks.thin(found.clock_us)
            self._thin_at = now_s + THIN_S
        self._look_at = now_s + LOOK_S / 2
        return True

    def _records(self) -> Iterator[Any]:
        newest = self._log.newest()
        if newest is None:
            return
        if self._read_to < 0 or newest.number < self._read_to:
            self._read_to = newest.number - 1  # what was before is read no more; a log that was rolled back, anew
        for record in islice(self._log.records(self._read_to), RECORDS):
            self._read_to = record.number
            yield record

    def _manifest(self) -> Manifest | None:
        """The newest one. In an object store it is read when the merger says that there is another one."""
        now_s = self._clock.monotonic()
        merged = None
        if self._config.lake.startswith("s3://") and (node := self._state.nodes().get("merge")):
            merged = node.info.get("epoch"), node.info.get("tables")
        if merged is None or merged != self._merged or now_s - self._read_at >= READ_S:
            self._found = manifest.read(self._config.lake_root, self._config.name)
            self._merged, self._read_at = merged, now_s
        return self._found

    # -- telling -------------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Whatever is due: files first, so that who does not answer keeps nobody waiting. Raises `StateError`."""
        due = self._book.open(self._clock.now_us())
        silent: dict[tuple[TableName, Channel], int] = {}
        for what, channel in [(w, c) for c in CHANNELS for w in due if c in w.channels]:
            if self.ending.is_set():
                return
            if (until_us := silent.get((what.table, channel))) is not None:
                self._book.postpone(what.number, until_us)
                continue
            entry = self._file.landing(what.table)
            try:
                telling.tell(self._config, entry.ready if entry else None, what, channel)
            except LakesyncError as error:
                pause_s = telling.pause_s(what.attempts)
                until_us = silent[what.table, channel] = self._clock.now_us() + int(pause_s * 1_000_000)
                self._book.failed(what.number, telling.described(error, what, channel), until_us)
                LOG.warning("not-told", table=str(what.table), by=channel, what=error.what, in_s=pause_s)
                continue
            self._book.told(what.number, channel)
            LOG.info(
                "told",
                table=str(what.table),
                partition=",".join(what.payload["partition"].values()),
                generation=what.payload["generation"],
                by=channel,
            )
