"""How far a reading is, and how fast: an estimate that gets better with every part that is read."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from snapshot.chunks import Part

OVER_S = 15.0
"""Speed is what it was in this time."""
LEAST_S = 0.5
"""No speed is told before."""


@dataclass
class _Counted:
    estimate: int
    read: int = 0
    done: bool = False


class Pace:
    """Of one table. What the server estimates may be far off, mostly by the same factor everywhere: what parts turned out to have
    corrects what is thought of the others. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._parts: dict[int, _Counted] = {}
        self._marks: deque[tuple[float, int]] = deque()
        self._read = 0

    def plan(self, parts: Iterable[tuple[Part, int, bool]]) -> None:
        """The parts, how many rows of each are read already, and whether it is done."""
        with self._lock:
            self._parts = {part.number: _Counted(part.rows, read, done) for part, read, done in parts}
            self._read = sum(counted.read for counted in self._parts.values())
            self._marks.clear()
            self._marks.append((self._clock(), self._read))

    def took(self, part: int, rows: int) -> None:
        """So many more rows of a part."""
        with self._lock:
            self._parts[part].read += rows
            self._read += rows
            now = self._clock()
            if now - self._marks[-1][0] >= LEAST_S:
                self._marks.append((now, self._read))
            while len(self._marks) > 2 and now - self._marks[1][0] > OVER_S:
                self._marks.popleft()

    def again(self, part: int, rows: int) -> None:
        """So many rows of a part, read since its last chunk that counts, are of no use."""
        with self._lock:
            self._parts[part].read -= rows
            self._read -= rows

    def done(self, part: int) -> None:
        """A part has no more rows."""
        with self._lock:
            self._parts[part].done = True

    def cut(self, part: Part, other: Part) -> None:
        """The rest of a part was cut in two."""
        with self._lock:
            self._parts[part.number].estimate = self._parts[part.number].read + part.rows
            self._parts[other.number] = _Counted(other.rows)

    @property
    def read(self) -> int:
        """Rows so far."""
        return self._read

    def left_of(self, part: int) -> int:
        """About how many rows a part has left; 0 where that is not known."""
        with self._lock:
            counted = self._parts[part]
            return 0 if counted.done else max(0, round(counted.estimate * self._factor()) - counted.read)

    @property
    def left(self) -> int:
        """About how many rows are left."""
        with self._lock:
            return sum(self.left_of(number) for number in self._parts)

    def _factor(self) -> float:
        done = [c for c in self._parts.values() if c.done and c.estimate]
        estimated = sum(c.estimate for c in done)
        return sum(c.read for c in done) / estimated if estimated else 1.0

    @property
    def rows_per_second(self) -> float | None:
        """None while it is not known."""
        with self._lock:
            if not self._marks:
                return None
            began, before = self._marks[0]
            passed = self._clock() - began
            return (self._read - before) / passed if passed >= LEAST_S else None

    @property
    def seconds_left(self) -> float | None:
        """About; None while it is not known."""
        with self._lock:
            speed = self.rows_per_second
            return self.left / speed if speed else None

    def to_dict(self) -> dict[str, int | None]:
        """For status: `rows_per_second` and `seconds_left`."""
        speed, left = self.rows_per_second, self.seconds_left
        return {
            "rows_per_second": None if speed is None else round(speed),
            "seconds_left": None if left is None else round(left),
        }
