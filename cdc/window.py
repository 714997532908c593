"""Windowed reads: what capture and those who read tables tell one another about a window. In memory, for the threads of one process.

A window is a chunk of a live table that is read again and written through the log; the protocol, step by step and with what fails
without each of them, is `spec/window.py`. Who does what:

1. a reader asks (`Windows.ask`);
2. capture opens the window at a point of its stream, C0, and from there on collects the keys that the stream touches, old and new;
3. the reader waits until its server shows everything up to C0 (`Window.wait_open`), reads, and delivers rows, the keys that were not found, and the
   mark: the end of the binary log as it was after the last of these reads (`Window.deliver`);
4. capture, once it has passed the mark and no transaction is open, emits them less the touched ones, and says in which epoch.

A TRUNCATE or DDL of the table, or any new start of capture, cancels it: the reader begins again at 1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from cdc.epoch import EpochId, WindowId
from cdc.names import TableName
from cdc.position import BinlogEnd, Position
from cdc.schema import TableSchema

Phase = Literal["asked", "open", "delivered", "emitting", "emitted", "cancelled"]


class WindowCancelled(Exception):  # noqa: N818 (no error)
    """What was read is of no use: read again, in a new window. The reason is its text."""


class WindowEnded(Exception):  # noqa: N818 (no error)
    """The one who waits was told to stop."""


@dataclass(frozen=True)
class Opened:
    """What capture says of an open window: C0, and the source's table as it is captured (without a shard's column)."""

    c0: Position
    schema: TableSchema


@dataclass(frozen=True)
class Delivery:
    """What a reader found. `rows` have the source's columns, and `_cdc_unfit` if a value needs it; `gone` the key's columns, in the
    key's order. `progress` is JSON."""

    rows: Sequence[pa.RecordBatch]
    gone: pa.Table | None
    mark: BinlogEnd
    mark_server: str
    progress: dict[str, Any]
    points: bool = False
    """Whether it was asked for keys: those of `rows` and `gone`, and no others."""


class Window:
    """One window, from `Windows.ask` on. The reader's methods are `wait_open`, `deliver`, `wait_emitted`, `cancel`; the others are capture's."""

    def __init__(self, windows: Windows, window: WindowId, table: TableName) -> None:
        self.id = window
        self.table = table
        """The source's."""
        self.phase: Phase = "asked"
        self.opened: Opened | None = None
        self.delivery: Delivery | None = None
        self.epoch: EpochId | None = None
        self.emitted_rows = 0
        self.reason = ""
        self.is_doubtful = False
        """Cancelled after its rows were put into an epoch of which nobody knows whether it was written. Once the reader's next window is open
        the log says so: its records name the windows that they hold."""
        self._windows = windows

    # -- the reader's --------------------------------------------------------------------------------------------------

    def wait_open(self, stop: threading.Event) -> Opened:
        """Wait for capture. Raises `WindowCancelled`; `WindowEnded` if `stop` is set."""
        # One that was opened and is cancelled by now tells nothing of what came into the log since.
        self._wait(lambda: self.opened is not None and self.phase != "cancelled", stop)
        assert self.opened is not None
        return self.opened

    def deliver(self, delivery: Delivery) -> None:
        """Hand over what was read. Raises `WindowCancelled`."""
        with self._windows.changed:
            if self.phase == "cancelled":
                raise WindowCancelled(self.reason)
            assert self.phase == "open"
            self.delivery, self.phase = delivery, "delivered"
        self._windows.wake()

    def wait_emitted(self, stop: threading.Event) -> EpochId:
        """Wait until its rows are in the log; the epoch. Raises as `wait_open`."""
        self._wait(lambda: self.epoch is not None, stop)
        assert self.epoch is not None
        return self.epoch

    def cancel(self, reason: str) -> None:
        """Of no use any more; either side may say so. Does nothing to one whose rows are on their way into the log, or there."""
        with self._windows.changed:
            if self.phase in ("emitting", "emitted", "cancelled"):
                return
            self._end("cancelled", reason)
        self._windows.wake()

    def _end(self, phase: Phase, reason: str = "") -> None:
        self.phase, self.reason, self.delivery = phase, reason, None
        self._windows.forget(self)
        self._windows.changed.notify_all()

    def _wait(self, reached: Callable[[], bool], stop: threading.Event) -> None:
        with self._windows.changed:
            while not reached():
                if self.phase == "cancelled":
                    raise WindowCancelled(self.reason)
                if stop.is_set():
                    raise WindowEnded
                self._windows.changed.wait(_LOOK_S)

    # -- capture's -----------------------------------------------------------------------------------------------------

    def open(self, opened: Opened) -> None:
        """C0 is here."""
        with self._windows.changed:
            if self.phase == "asked":
                self.opened, self.phase = opened, "open"
            self._windows.changed.notify_all()

    def take(self) -> bool:
        """Its rows go into the next epoch. False: it was cancelled meanwhile."""
        with self._windows.changed:
            if self.phase == "delivered":
                self.phase = "emitting"
            return self.phase == "emitting"

    def emitted(self, epoch: EpochId, rows: int) -> None:
        """Its rows, so many of them, are in this epoch, which is durable."""
        with self._windows.changed:
            self.epoch, self.emitted_rows = epoch, rows
            self._end("emitted")

    def lose(self, reason: str, doubtful: bool = False) -> None:
        """Its rows did not come into the log, or nobody knows whether they did."""
        with self._windows.changed:
            self.is_doubtful = doubtful
            self._end("cancelled", reason)


class Windows:
    """All windows of one process. Thread-safe."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._windows: list[Window] = []
        self._wake: Callable[[], None] = lambda: None

    def ask(self, window: WindowId, table: TableName) -> Window:
        """Ask for a window of a source's table."""
        found = Window(self, window, table)
        with self.changed:
            self._windows.append(found)
        self.wake()
        return found

    def of(self, phases: Iterable[Phase], table: TableName | None = None) -> list[Window]:
        """Those that are in one of these phases, oldest first."""
        wanted = frozenset(phases)
        with self.changed:
            return [w for w in self._windows if w.phase in wanted and table in (None, w.table)]

    def cancel(self, reason: str, table: TableName | None = None) -> None:
        """Cancel all that are open or delivered, or those of one table."""
        for window in self.of(("open", "delivered"), table):
            window.cancel(reason)

    def listen(self, wake: Callable[[], None]) -> None:
        """Capture's: called, from any thread, when there is something to look at."""
        self._wake = wake

    def wake(self) -> None:
        """There is something to look at."""
        self._wake()

    def forget(self, window: Window) -> None:
        """It has ended. The lock is held."""
        if window in self._windows:
            self._windows.remove(window)


PROBE = 0
"""The number of a window that nothing is read in: it opens once it is known which windows of its job are in the log."""
_LOOK_S = 0.25
