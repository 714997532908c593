"""The daemon's trace node: a projection now and then, by a child process, whenever there is something new.

A child's start costs about a second of a processor, however little there is to do. So that the trace stays small beside what it is about,
a child is started at most as often as `trace.every` says, and seldomer where that would be more than `SHARE` of the processor time of the
pipeline itself: up to `SELDOMEST` times. `lakesync reconcile` does not wait for it, it projects by itself.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from cdc.clock import Clock, SystemClock
from cdc.config import PipelineConfig
from cdc.errors import LakesyncError, TraceError
from cdc.journal import logger
from cdc.lake import manifest
from cdc.log.base import Log
from cdc.state import State
from cdc.trace.child import Projected, project_in_process
from cdc.trace.project import CURSOR, Cursor

SHARE: Final = 0.02
"""Of the pipeline's processor time."""
FIRST_COST_S: Final = 1.0
"""Processor seconds that the first projection is expected to take."""
SELDOMEST: Final = 10
"""Times `trace.every`: the longest pause."""
BEAT_S: Final = 10.0
"""Between two signs of life."""

LOG = logger("trace")


def run(config: PipelineConfig, log: Log, state: State, stop: threading.Event, clock: Clock | None = None) -> None:
    """Until `stop` is set. Raises nothing of ClickHouse's: what failed is in `status`, and is tried again.

    Its sign of life says `epoch` and `behind` (newest epoch in the trace; epochs after it), `rows` that the last projection wrote, its
    `seconds` and `cpu_s`; and while it fails `error`, as `LakesyncError.to_dict`, since `failing_since_us`.
    """
    assert config.trace
    clock = clock or SystemClock()
    every = config.trace.every
    said, pause = _Said(state, clock), every
    budget = Budget(every, clock.monotonic(), time.process_time())
    while said.pause(stop, pause):
        behind = news(config, log)
        if behind == 0:
            said.fine(0)
            continue
        if not budget.allows(clock.monotonic(), time.process_time()) and _is_beside(state):
            continue
        try:
            done = project_in_process(config, stop=stop, meanwhile=said.alive)
        except LakesyncError as error:
            said.failed(error, behind)
            pause = min(pause * 2, every * SELDOMEST)
            continue
        if done is None:
            return
        said.fine(news(config, log), done)
        pause = every
        budget = Budget(every, clock.monotonic(), time.process_time(), done.cpu_s)


@dataclass(frozen=True)
class Budget:
    """When the next projection is due: `cost_s` processor seconds are expected of it, by the last one; `since_s` and `used_s` say when that
    was, and which processor time the pipeline had taken by then."""

    every_s: float
    since_s: float
    used_s: float
    cost_s: float = FIRST_COST_S

    def allows(self, now_s: float, used_s: float) -> bool:
        """Whether it is small beside what the pipeline took meanwhile, or the longest pause is over."""
        return (used_s - self.used_s) * SHARE >= self.cost_s or now_s - self.since_s >= self.every_s * SELDOMEST


def _is_beside(state: State) -> bool:
    """Whether the pipeline runs in this process, so that its processor time is known."""
    return any(node.pid == os.getpid() for name, node in state.nodes().items() if name in ("capture", "merge"))


def news(config: PipelineConfig, log: Log) -> int:
    """How many epochs the trace is behind; -1 where it lacks other things, or that cannot be known. Cheap: ClickHouse is not asked."""
    cursor = Cursor.read(config.state / CURSOR)
    try:
        newest, found = log.newest(), manifest.read(config.lake_root, config.name)
    except LakesyncError:
        return -1  # whose it is says so; the child does what it can
    if newest is not None and newest.hash != cursor.hash:
        return max(1, newest.number - cursor.epoch) if cursor.log == newest.log else -1
    tables = found.tables if found else {}
    return 0 if all(cursor.versions.get(t.id) == known.version for t, known in tables.items()) else -1


class _Said:
    """The node's signs of life."""

    def __init__(self, state: State, clock: Clock) -> None:
        self._state, self._clock = state, clock
        self._info: dict[str, Any] = {}
        self._error: dict[str, str] | None = None
        self._beat_at = 0.0
        self._beat()

    def _beat(self) -> None:
        self._state.beat("trace", self._info)
        self._beat_at = self._clock.monotonic()

    def alive(self) -> None:
        """Now and then."""
        if self._clock.monotonic() - self._beat_at >= BEAT_S:
            self._beat()

    def pause(self, stop: threading.Event, seconds: float) -> bool:
        """Wait; whether to go on."""
        ends = self._clock.monotonic() + seconds
        while (left := ends - self._clock.monotonic()) > 0:
            if stop.wait(min(left, BEAT_S)):
                return False
            self.alive()
        return not stop.is_set()

    def fine(self, behind: int, done: Projected | None = None) -> None:
        if self._error is not None:
            LOG.info("trace-back")
        self._error = None
        if done is not None:
            self._info = {"epoch": done.epoch, "rows": done.rows, "seconds": done.seconds, "cpu_s": done.cpu_s}
        self._info = {k: v for k, v in self._info.items() if k not in ("error", "failing_since_us")}
        self._info["behind"] = max(0, behind)
        self._beat()

    def failed(self, error: LakesyncError, behind: int) -> None:
        said = error.to_dict()
        if self._error is None or said["what"] != self._error["what"]:  # once, and not every minute
            LOG.warning("trace-failed", code=error.code, what=error.what, where=error.where, hint=error.hint)
            self._state.record_error("trace", error if isinstance(error, TraceError) else TraceError(str(error)))
        since = self._info.get("failing_since_us") or self._clock.now_us()
        self._error = said
        self._info |= {"error": said, "failing_since_us": since, "behind": max(0, behind)}
        self._beat()
