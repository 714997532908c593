"""The one place that time comes from. What is written down is wall time; what is waited for is monotonic time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a node asks the time of."""

    def now_us(self) -> int:
        """Wall time, µs since 1970; may jump."""

    def monotonic(self) -> float:
        """Seconds from some moment; never goes back. For deadlines."""


class SystemClock:
    """This machine's clocks."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()
