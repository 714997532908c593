"""Several tables are compared at once, and the source adds up the rows of one of them at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cdc.errors import NotFollowingError
from cdc.names import TableName

_LOOK_S = 0.2


class Turn:
    """The right to have the source add up rows; `over` gives it back early."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._has = True

    def over(self) -> None:
        """Somebody else may. Idempotent."""
        if self._has:
            self._has = False
            self._lock.release()


class Turns:
    """One for a comparison, for all its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @contextmanager
    def mine(self, table: TableName) -> Iterator[Turn]:
        """Once nobody else has it. Raises `NotFollowingError` where the comparison ends first."""
        while not self._lock.acquire(timeout=_LOOK_S):
            self.check(table)
        turn = Turn(self._lock)
        try:
            yield turn
        finally:
            turn.over()

    def end(self) -> None:
        """No table goes on."""
        self._ended.set()

    def check(self, table: TableName) -> None:
        """Raise `NotFollowingError` where the comparison has ended: of another table there was an error, or somebody stopped it."""
        if self._ended.is_set():
            raise NotFollowingError("the comparison ended", where=str(table), hint="try again, with --resume")
