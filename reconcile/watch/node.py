"""The node `reconcile`: starts the checks of `reconcile:` when it is time, one at a time, each in a process of its own.

When a check ran last is in the store of runs, so a restart changes nothing; what was missed meanwhile is made up once. What fails here is
told by alerts, and touches nothing else.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any
from zoneinfo import ZoneInfo

from cdc.config import PipelineConfig
from cdc.errors import NotFollowingError, StateError
from cdc.journal import logger
from cdc.proving import ReconcileConfig
from cdc.schedule import Schedule
from cdc.state import State
from reconcile.runs import Kind, Run, Runs

LOG = logger("reconcile")
TICK_S = 0.2
LONGEST_WAIT_S = 1.0
"""However far away the next check is: clocks are set, and machines sleep."""
BEAT_S = 5.0
PRUNE_S = 3600.0
WORDS_READ = 4096
"""Of a child's standard error the last so many bytes are looked at."""
END_WITHIN_S = 5.0


@dataclass(frozen=True)
class Planned:
    """A check and its schedule. `due_us`: when it is to begin next, µs since 1970; in the past if it is overdue."""

    kind: Kind
    schedule: str
    due_us: int
    last: Run | None
    """The newest one that began by the schedule."""


def schedules(config: ReconcileConfig | None) -> Iterator[tuple[Kind, Schedule]]:
    """Those that there are, the quick one first."""
    if config and config.ledger:
        yield "ledger", config.ledger
    if config and config.values:
        yield "values", config.values


def planned(config: ReconcileConfig | None, runs: Runs, *, note: bool = True) -> list[Planned]:
    """When each check is due. One that the daemon's end cut off is due at once. `note`: keep when a schedule was first seen."""
    found = []
    for kind, schedule in schedules(config):
        assert config
        since_us = runs.scheduled_since(kind, f"{schedule} {config.timezone or ''}".rstrip(), note=note)
        last = runs.last(kind, trigger="schedule", ended=False, report=False)
        now_us = time.time_ns() // 1000
        if last and last.dead:
            due_us = min(last.begun_us, now_us)
        else:
            # What began at a time that is yet to come began before the clock was set back: how long ago is not known.
            base_us = max(since_us, last.begun_us if last and last.begun_us <= now_us else 0)
            base = datetime.fromtimestamp(base_us / 1e6, UTC)
            zone = ZoneInfo(config.timezone) if config.timezone else None
            due_us = int(schedule.after(base, zone).timestamp() * 1e6)
        found.append(Planned(kind, str(schedule), due_us, last))
    return found


def run(config: PipelineConfig, state: State, stop: threading.Event) -> None:
    """Until `stop` is set. Raises `StateError` where the store cannot be used."""
    assert config.reconcile
    runs = Runs(config.state)
    with _alone(state, stop):
        _Node(config, config.reconcile, state, runs, stop).run()


@contextlib.contextmanager
def _alone(state: State, stop: threading.Event) -> Iterator[None]:
    """Holds the folder's lock, once no other process does."""
    with contextlib.ExitStack() as held:
        while not stop.is_set():
            try:
                held.enter_context(state.lock("reconcile"))
                break
            except StateError as error:
                state.beat("reconcile", {"waiting": error.what})
                stop.wait(BEAT_S)
        yield


class _Node:
    def __init__(
        self, config: PipelineConfig, given: ReconcileConfig, state: State, runs: Runs, stop: threading.Event
    ) -> None:
        self.config, self.given, self.state, self.runs, self.stop = config, given, state, runs, stop
        self.beaten = self.pruned = -1e9

    def run(self) -> None:
        while not self.stop.is_set():
            plans = planned(self.given, self.runs)
            self.beat({"next": {p.kind: p.due_us for p in plans}})
            now_us = time.time_ns() // 1000
            for plan in plans:
                if plan.due_us <= now_us and not self.stop.is_set():
                    self.check(plan.kind)
            if time.monotonic() - self.pruned > PRUNE_S:
                self.pruned = time.monotonic()
                while self.runs.prune(self.given.keep) and not self.stop.is_set():
                    pass
            next_us = min((p.due_us for p in planned(self.given, self.runs)), default=now_us)
            self.stop.wait(min(LONGEST_WAIT_S, max(TICK_S, (next_us - now_us) / 1e6)))

    def beat(self, info: dict[str, Any], *, now: bool = False) -> None:
        if now or time.monotonic() - self.beaten > BEAT_S:
            self.beaten = time.monotonic()
            self.state.beat("reconcile", info)

    def check(self, kind: Kind) -> None:
        """One check, to its end. That it failed is kept as its verdict."""
        began_us = time.time_ns() // 1000
        LOG.info("check-begun", check=kind)
        with tempfile.TemporaryFile() as words:
            failure = self.ended(kind, began_us, words)
            last = self.runs.last(kind, trigger="schedule", ended=False, report=False)
            if failure is None or self.stop.is_set():  # told to end: it is gone on with by the next daemon
                verdict = (last.verdict if last else None) or "cut-off"
                tell = LOG.warning if verdict == "differs" else LOG.info
                tell("check-ended", check=kind, verdict=verdict, seconds=round(time.time() - began_us / 1e6, 1))
                return
            words.seek(max(0, words.seek(0, 2) - WORDS_READ))
            said = words.read().decode(errors="replace").strip().splitlines()
        LOG.warning("check-failed", check=kind, what=failure, said=said[-1][:500] if said else "")
        if last is None or (last.begun_us < began_us and not last.dead):
            number = self.runs.begin(kind, "schedule", (), {})
        elif last.ended_us is None:
            number = last.number
        else:
            return  # it said itself why
        error = NotFollowingError(
            failure, where=f"check {kind}", hint=said[-1][:300] if said else "see the daemon's log"
        )
        self.runs.end(number, "failed", {"error": error.to_dict() | {"code": "CheckFailed"}})

    def ended(self, kind: Kind, began_us: int, words: IO[bytes]) -> str | None:
        """Waits for the child. None if it did what it should, else why not."""
        command = [sys.executable, "-P", "-m", "reconcile.watch.child", str(self.config.path), kind]
        try:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=words)
        except OSError as error:
            return f"no process can be started: {error.strerror}"
        try:
            deadline = time.monotonic() + self.given.timeout
            while child.poll() is None:
                self.beat({"checking": kind, "since_us": began_us})
                if time.monotonic() > deadline:
                    return f"it did not end within {self.given.timeout:g} s"
                if self.stop.wait(TICK_S):
                    return "the daemon ended"
            if child.returncode < 0:
                return f"it was killed by signal {-child.returncode}, as the system does when memory is short"
            return None if child.returncode == 0 else f"it ended with code {child.returncode}"
        finally:
            if child.poll() is None:
                child.kill()
            child.wait(END_WITHIN_S)
            assert child.stdin
            child.stdin.close()
            self.beaten = -1e9
