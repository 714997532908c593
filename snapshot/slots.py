"""Who may read now: so many chunks at a time over all tables, and of those that wait the table that has least."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cdc.names import TableName

_LOOK_S = 0.2


class Slots:
    """A number of slots, shared by the readers of a process. Thread-safe."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._changed = threading.Condition()
        self._held: Counter[TableName] = Counter()
        self._waiting: dict[int, TableName] = {}
        self._tickets = itertools.count()

    @contextmanager
    def taken(self, table: TableName, stop: threading.Event) -> Iterator[bool]:
        """Hold one for a chunk of `table`; False, and none is held, if `stop` was set first."""
        got = self._take(table, stop)
        try:
            yield got
        finally:
            if got:
                with self._changed:
                    self._held[table] -= 1
                    self._changed.notify_all()

    def _take(self, table: TableName, stop: threading.Event) -> bool:
        with self._changed:
            ticket = next(self._tickets)
            self._waiting[ticket] = table
            try:
                while not stop.is_set():
                    if self._held.total() < self.number and ticket == self._next():
                        self._held[table] += 1
                        return True
                    self._changed.wait(_LOOK_S)
                return False
            finally:
                del self._waiting[ticket]
                self._changed.notify_all()

    def _next(self) -> int:
        """Whose turn it is."""
        return min(self._waiting, key=lambda ticket: (self._held[self._waiting[ticket]], ticket))
