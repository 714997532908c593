"""How fast rows are read: limits on rows and bytes a second over all readers of the process, and pauses while the server is busy.

A reader asks before each chunk and says afterwards what it took. So a pause lies between two chunks, where no statement and no
transaction is open; and a chunk is cut to about what the limits allow in a second, for the pauses to be short.

The limits are one bucket each, which holds what they allow in a second. What a chunk will take is set aside before it is read, and put
right when it is known; the bucket may be overdrawn, and the next chunk waits until it is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pymysql
from pymysql.connections import Connection

from cdc.config import PipelineConfig, SourceConfig
from cdc.errors import SourceError
from cdc.journal import logger
from cdc.source.connection import abandon, connect, place
from cdc.source.server import Server

LOG = logger("snapshot")

CHUNK_S = 1.0
"""A chunk is cut to what the limits allow in this time."""
SLICE_S = 0.2
"""A pause is cut into pieces of this length, to notice that it shall end."""
SHORTEST_S = 1.0
"""A chunk is not cut below what is read in this time because statements were ended by others."""

_T = TypeVar("_T")


class _Bucket:
    """So many units a second."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._left = 0.0
        self._at_s = time.monotonic()

    def _fill(self) -> None:
        now = time.monotonic()
        if self.rate is not None:
            self._left = min(self.rate * CHUNK_S, self._left + (now - self._at_s) * self.rate)
        self._at_s = now

    def wait_s(self) -> float:
        """Until something may be taken."""
        self._fill()
        return 0.0 if self.rate is None or self._left >= 0 else -self._left / self.rate

    def take(self, amount: float) -> None:
        self._fill()
        self._left -= amount


class Throttle:
    """One for a process, shared by all its readers. Thread-safe."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config.snapshot
        self._lock = threading.Lock()
        self._rows = _Bucket(self._config.rows_per_second)
        self._bytes = _Bucket(self._config.bytes_per_second)
        self._aside: dict[int, tuple[int, int]] = {}
        self._waiting: dict[int, str] = {}
        self._signs = _Signs(config)
        self._longest_s: float | None = None
        self._speed = 0.0

    @property
    def reason(self) -> str:
        """What readers wait for, in words; empty if none waits."""
        with self._lock:
            return "; ".join(sorted(set(self._waiting.values())))

    def limit(self, rows: int, row_bytes: float) -> int:
        """How many rows the next chunk may have at most, of `rows`, if one has about `row_bytes`; at least one."""
        if self._config.rows_per_second is not None:
            rows = min(rows, int(self._config.rows_per_second * CHUNK_S))
        if self._config.bytes_per_second is not None and row_bytes > 0:
            rows = min(rows, int(self._config.bytes_per_second * CHUNK_S / row_bytes))
        with self._lock:
            if self._longest_s is not None and self._speed > 0:
                rows = min(rows, int(self._speed * self._longest_s))
        return max(1, rows)

    def before(self, rows: int, size: int, stop: threading.Event | None = None) -> None:
        """Pause until a chunk of about this many rows and bytes may be read, or `stop` is set. Not while a statement is open."""
        stop = stop or threading.Event()
        me = threading.get_ident()
        began_s: float | None = None
        try:
            while not stop.is_set():
                if busy := self._signs.look():
                    if began_s is None:
                        began_s = time.monotonic()
                        LOG.info("reading-pauses", reason=busy)
                    pause_s = self._config.throttle.every
                else:
                    busy, pause_s = self._limited(me, rows, size)
                    if not pause_s:
                        return
                with self._lock:
                    self._waiting[me] = busy
                stop.wait(min(pause_s, SLICE_S))
        finally:
            with self._lock:
                self._waiting.pop(me, None)
            if began_s is not None:
                LOG.info("reading-goes-on", paused_s=round(time.monotonic() - began_s, 1))

    def _limited(self, me: int, rows: int, size: int) -> tuple[str, float]:
        with self._lock:
            for bucket, name in ((self._rows, "rows_per_second"), (self._bytes, "bytes_per_second")):
                if pause_s := bucket.wait_s():
                    return f"{name} = {bucket.rate}", pause_s
            # Set aside at once: the others would else take the same second.
            self._rows.take(rows if self._rows.rate is not None else 0)
            self._bytes.take(size if self._bytes.rate is not None else 0)
            self._aside[me] = (rows, size)
        return "", 0.0

    def took(self, rows: int, size: int, seconds: float = 0.0) -> None:
        """What the chunk had that this thread asked for, and how long it took. After `before`, once."""
        with self._lock:
            rows_aside, size_aside = self._aside.pop(threading.get_ident(), (0, 0))
            self._rows.take(rows - rows_aside if self._rows.rate is not None else 0)
            self._bytes.take(size - size_aside if self._bytes.rate is not None else 0)
            if rows and seconds > 0:
                self._speed = rows / seconds if not self._speed else 0.7 * self._speed + 0.3 * rows / seconds

    def interrupted(self, rows: int, seconds: float) -> None:
        """A statement was ended by the server or by somebody else after `rows` rows and this time: the next ones are kept shorter."""
        with self._lock:
            self._longest_s = max(SHORTEST_S, seconds / 2)
            if rows and seconds > 0 and not self._speed:
                self._speed = rows / seconds
            LOG.warning("statement-interrupted", after_s=round(seconds, 1), next_s=round(self._longest_s, 1))

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """What a reader waits for besides, while the block runs."""
        me = threading.get_ident()
        with self._lock:
            self._waiting[me] = reason
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(me, None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A statement of ours runs at the server that is read from, while the block runs: it is not counted."""
        self._signs.own(1)
        try:
            yield
        finally:
            self._signs.own(-1)

    def close(self) -> None:
        """Close its connections."""
        self._signs.close()


class _Signs:
    """What the servers say of themselves. At most one thread looks at a time, and not more often than it was told."""

    def __init__(self, config: PipelineConfig) -> None:
        settings = config.snapshot.throttle
        self._settings = settings
        self._read_from = config.snapshot.source or config.source
        self._replicas = (*filter(None, [config.snapshot.source]), *settings.replicas)
        self._lock = threading.Lock()
        self._own = 0
        self._open: dict[SourceConfig, Connection[Any]] = {}
        self._told: set[str] = set()
        self._next_s = 0.0
        self._busy = ""

    def own(self, more: int) -> None:
        """So many more statements of ours run."""
        with self._lock:
            self._own += more

    def look(self) -> str:
        """Why reading should pause; empty if it need not."""
        with self._lock:
            if time.monotonic() >= self._next_s:
                self._busy = self._threads() or self._lag()
                self._next_s = time.monotonic() + self._settings.every
            return self._busy

    def close(self) -> None:
        with self._lock:
            for connection in self._open.values():
                with suppress(pymysql.err.Error):
                    connection.close()
            self._open.clear()

    def _threads(self) -> str:
        limit = self._settings.threads_running
        if limit is None:
            return ""
        running = self._ask(self._read_from, "Threads_running", lambda server: server.threads_running())
        # Ours do not count, nor the one that asks.
        if running is None or running - self._own - 1 <= limit:
            return ""
        return f"{running - self._own - 1} threads run at {place(self._read_from)}, more than {limit}"

    def _lag(self) -> str:
        limit = self._settings.replica_lag
        if limit is None:
            return ""
        for replica in self._replicas:
            channels = self._ask(replica, "the replica's lag", lambda server: server.replication())
            if channels is None:
                continue
            if not channels:
                self._tell(replica, "lag-unknown", "it replicates from no server, or the account may not see it")
            for channel in channels:
                if channel.behind_s is None:
                    return f"replication at {place(replica)} stands still"
                if channel.behind_s > limit:
                    return f"the replica {place(replica)} is {channel.behind_s} s behind, more than {limit:g} s"
        return ""

    def _ask(self, at: SourceConfig, what: str, ask: Callable[[Server], _T]) -> _T | None:
        """What the server at `at` says; None where it cannot be asked, which is said once, and is then as if it were good."""
        try:
            connection = self._open.get(at)
            if connection is None:
                connection = self._open[at] = connect(at, purpose="throttle")
            return ask(Server(connection))
        except SourceError as error:
            if error.retryable and (lost := self._open.pop(at, None)) is not None:
                abandon(lost)
            self._tell(at, "sign-unreadable", f"{what}: {error.what}")
            return None

    def _tell(self, at: SourceConfig, event: str, what: str) -> None:
        if (told := f"{at.url} {event}") not in self._told:
            self._told.add(told)
            LOG.warning(event, server=place(at), what=what)
