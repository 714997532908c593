"""The node `reread`: runs the jobs that read rows of live tables again, each in windows; beside capture, in its process.

Jobs are asked for at the command line, by a shard that comes, or, here, by tables in the phase `reading`: their rows come by windows alone, and
such a table is ready once the lake has all of them.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cdc import sharding
from cdc.config import PipelineConfig
from cdc.epoch import TableState
from cdc.errors import ConfigError, LakesyncError, LogError, StateError, TableStoppedError
from cdc.journal import logger
from cdc.lake import Applied, LakeTable, manifest
from cdc.log import captured
from cdc.log.base import Log
from cdc.names import TableName
from cdc.state import Read, ReadSpec, State, TableStatus, Why
from cdc.window import Windows
from snapshot.job import Anew, Job, Outcome, lost_rows
from snapshot.retention import Budget, RetentionError
from snapshot.throttle import Throttle

LOG = logger("reread")
NODE = "reread"

POLL_S = 0.1
BEAT_S = 1.0
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Before a job is tried again after the first, second, … retryable error in a row; the last one for all further ones."""
SHARD_TRIES = 5
"""A shard that cannot be read is tried again so often before its table stops."""
_LIVE = ("ready", "reading", "catching-up")
"""A table in these phases is captured, and what is logged of it gets into the lake."""
_SOON = ("new", "added", "snapshot")


@dataclass
class _Running:
    read: Read
    future: Future[Outcome]
    stop: threading.Event
    drain: threading.Event


@dataclass
class _Retry:
    errors: int
    at_s: float
    error: LakesyncError
    rows: int


class _Node:
    def __init__(self, config: PipelineConfig, log: Log, state: State, windows: Windows, throttle: Throttle) -> None:
        self.config = config
        self.log = log
        self.state = state
        self.windows = windows
        self.throttle = throttle
        self.budget = Budget(config, log)
        self._running: dict[str, _Running] = {}
        self._retries: dict[str, _Retry] = {}
        self._known: captured.Known | None = None
        self._resting: dict[str, Read] = {}
        """Jobs that are paused, and of which nothing is on its way."""

    def turn(self, pool: ThreadPoolExecutor) -> None:
        """Take in what ended, make and begin what waits. Raises what is no job's own error."""
        for job in [j for j, r in self._running.items() if r.future.done()]:
            self._ended(self._running.pop(job))
        statuses = self.state.tables()
        if reading := [s for s in statuses.values() if s.phase == "reading"]:
            self._known = captured.read(self.log, self._known)
            for status in reading:
                self._tend(status)
        reads = self.state.reads(open_only=True)
        self._resting = {
            j: r for j, r in self._resting.items() if any(r.job == j and r.phase == "paused" for r in reads)
        }
        self._tell({r.job: r for r in reads}, statuses)
        for read in reads:
            if (
                read.job in self._running
                or read.phase == "paused"
                or len(self._running) >= self.config.snapshot.readers
            ):
                continue
            self._begin(read, statuses.get(read.target), pool)

    def _tell(self, reads: dict[str, Read], statuses: dict[TableName, TableStatus]) -> None:
        """Let the jobs that run know what others want of them."""
        for job, running in self._running.items():
            read = reads.get(job)
            status = statuses.get(running.read.target)
            if read is None or read.run != running.read.run or status is None or status.phase not in _LIVE:
                running.stop.set()
            elif read.phase == "paused":
                running.drain.set()

    def _begin(self, read: Read, status: TableStatus | None, pool: ThreadPoolExecutor) -> None:
        retry = self._retries.get(read.job)
        if retry is not None and time.monotonic() < retry.at_s:
            return
        phase = status.phase if status is not None else "new"
        if phase in _SOON:
            return
        if phase not in _LIVE and read.why == "repair" and phase == "stopped":
            return  # it is resumed with keys that are wrong still, or copied anew
        if phase not in _LIVE:
            self._fail(read, _not_live(read, status))
            return
        if self._is_stale(read):
            self.state.set_read(read.job, phase="cancelled", when=("waiting", "running", "paused"))
            LOG.info("reading-cancelled", table=str(read.table), job=read.job, reason="it is of an earlier adding")
            return
        if read.why == "shard" and not self._lake_knows(read):
            return
        if not self.state.set_read(
            read.job,
            phase="running",
            when=("waiting", "running"),
            run=read.run,
            started_us=read.started_us or time.time_ns() // 1000,
        ):
            return
        stop, drain = threading.Event(), threading.Event()
        job = Job(
            self.config,
            self.log,
            self.state,
            self.windows,
            read,
            stop=stop,
            drain=drain,
            throttle=self.throttle,
            budget=self.budget,
        )
        LOG.info("reading-begins", table=str(read.table), job=read.job, why=read.why)
        self._running[read.job] = _Running(read, pool.submit(job.run), stop, drain)

    def _is_stale(self, read: Read) -> bool:
        """Whether it was to bring the rows that were there when the table, or the shard, was added at another time than the last one."""
        if read.why not in ("backfill", "shard", "adopt", "first"):
            return False
        self._known = captured.read(self.log, self._known)
        found = self._known.newest_tables.get(read.target.id) if self._known is not None else None
        if found is None or read.table not in _sources(read.target, found):
            return True
        return read.job != sharding.job(self.log.uuid, read.target.id, found, read.table)

    def _lake_knows(self, read: Read) -> bool:
        """Whether the lake is where the shard came in: what an earlier one of that name left behind can be seen there."""
        self._known = captured.read(self.log, self._known)
        found = self._known.tables.get(read.target.id) if self._known is not None else None
        if found is None:
            return False
        since = sharding.shards(found.options).get(read.table) or found.since
        applied = self._applied(read.target)
        return applied is not None and applied.epoch.number >= since

    def _applied(self, table: TableName) -> Applied | None:
        config = self.config
        snapshot = LakeTable(config.lake_root, table, config.name).load()
        if snapshot is None:
            return None
        return manifest.carried(table, snapshot, manifest.read(config.lake_root, config.name))

    # -- tables that are read in windows -------------------------------------------------------------------------------

    def _tend(self, status: TableStatus) -> None:
        """Make the jobs of a table in the phase `reading`, and say when it is ready."""
        found = self._known.tables.get(status.table.id) if self._known is not None else None
        if found is None:
            return
        # A table of changes that were never to be preceded by rows is only here to have keys read again.
        none = found.options.get("mode") == "append" and not found.options.get("backfill")
        jobs = [self._job(status.table, found, table) for table in (() if none else _sources(status.table, found))]
        self._resume_repairs(status.table, min((job.asked_us for job in jobs), default=0))
        if any(job.phase != "done" for job in jobs) or any(
            read.open and read.target == status.table for read in self.state.reads_of("repair")
        ):
            return
        ends = [job.last for job in jobs if job.last is not None]
        for job in jobs:
            if job.last is not None and not captured.has(self.log, job.last):
                if job.why == "backfill":
                    self.state.stop_table(status.table, NODE, lost_rows(job))
                else:
                    self.state.restart_read(job.job, "the log lost its windows")
                return
        applied = self._applied(status.table)
        if applied is None or any(applied.epoch.number < end.number for end in ends):
            return
        if self.state.set_table(status.table, "ready", when=("reading",), unchanged=status):
            LOG.info("table-ready", table=str(status.table), jobs=len(jobs), epoch=applied.epoch.number)

    def _resume_repairs(self, target: TableName, since_us: int) -> None:
        """Keys that could not be read stopped the table, which is let go on: read them; those from before all of it is read are among that."""
        for read in self.state.reads_of("repair"):
            if read.target != target or read.phase != "failed":
                continue
            if read.asked_us < since_us:
                self.state.forget_read(read.job)
            else:
                self.state.set_read(read.job, phase="waiting", when=("failed",), error=None)

    def _job(self, target: TableName, found: TableState, table: TableName) -> Read:
        of_mode: dict[str, Why] = {"append": "backfill", "upsert": "adopt"}
        why = of_mode.get(found.options.get("mode", "upsert"), "first")
        if sharding.is_sharded(found.options):
            why = "shard"
        job = sharding.job(self.log.uuid, target.id, found, table)
        read = self.state.ask_read(table, target, ReadSpec(), why, job)
        if read.phase in ("failed", "cancelled"):
            # The table was stopped by it, and is let go on.
            self.state.set_read(job, phase="waiting", when=("failed", "cancelled"), error=None)
        return read

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _ended(self, running: _Running) -> None:
        read, error = running.read, running.future.exception()
        if error is None:
            self._retries.pop(read.job, None)
            outcome = running.future.result()
            if outcome.drained and not outcome.done:
                self._resting[read.job] = read
            if outcome.done and self.state.set_read(
                read.job, phase="done", when=("running", "paused"), run=read.run, error=None
            ):
                LOG.info(
                    "reading-ends",
                    table=str(read.table),
                    job=read.job,
                    windows=outcome.windows,
                    cancelled=outcome.cancelled,
                )
            return
        if isinstance(error, Anew):
            self.state.restart_read(read.job, str(error))
            return
        if not isinstance(error, LakesyncError):
            raise error
        if isinstance(error, RetentionError):
            self.state.set_read(read.job, phase="paused", when=("running",), run=read.run, error=error.to_dict())
            self.state.record_error(NODE, error, read.target)
            LOG.error("reading-paused", table=str(read.table), job=read.job, what=error.what, hint=error.hint)
            return
        if error.retryable:
            self._retry(read, error)
            return
        if isinstance(error, ConfigError | LogError | StateError):
            raise error
        if read.why == "shard" and self._failures(read) < SHARD_TRIES:
            # It may be one that was dropped or altered, and capture has not come to that yet: then it is a shard no more, and the table
            # goes on.
            self._retry(read, error)
            return
        self._fail(read, error)

    def _failures(self, read: Read) -> int:
        retry = self._retries.get(read.job)
        return retry.errors if retry is not None else 0

    def _retry(self, read: Read, error: LakesyncError) -> None:
        now = self.state.read(read.job)
        rows = now.rows_read if now is not None else 0
        before = self._retries.get(read.job)
        errors = before.errors + 1 if before is not None and before.rows == rows else 1
        pause = PAUSES_S[min(errors, len(PAUSES_S)) - 1]
        self._retries[read.job] = _Retry(errors, time.monotonic() + pause, error, rows)
        self.state.record_error(NODE, error, read.target)
        LOG.warning("reading-retried", table=str(read.table), error=error.code, what=error.what, pause_s=pause)

    def _fail(self, read: Read, error: LakesyncError) -> None:
        status = self.state.table(read.target)
        if read.why == "repair" and status is not None and status.phase == "stopped":
            return  # by something else; it goes on once the table does (`_begin`)
        failed = self.state.set_read(
            read.job, phase="failed", when=("waiting", "running", "paused"), run=read.run, error=error.to_dict()
        )
        if not failed:
            return
        LOG.error("reading-failed", table=str(read.table), job=read.job, error=error.code, what=error.what)
        status = self.state.table(read.target)
        if status is not None and self._is_needed(read, status):
            self.state.stop_table(read.target, NODE, error)

    def _is_needed(self, read: Read, status: TableStatus) -> bool:
        """Whether a table that a job failed for cannot go on."""
        if read.why == "repair":
            return status.phase in _LIVE
        return read.why != "asked" and read.spec.whole and self._lacks(read, status)

    def _lacks(self, read: Read, status: TableStatus) -> bool:
        """Whether a table without a job's rows is not what it is said to be: of a table that was ready before, a shard's."""
        if status.phase == "reading":
            return True
        found = self._known.tables.get(read.target.id) if self._known is not None else None
        return read.why == "shard" and found is not None and status.phase in _LIVE

    def rest(self) -> None:
        """A job that is paused keeps the log only from now on."""
        newest = self.log.newest() if self._resting else None
        for job, read in self._resting.items():
            if newest is not None:
                self.state.set_read(job, when=("paused",), run=read.run, epoch=newest.id)

    def end(self) -> None:
        """Have all jobs stop."""
        for running in self._running.values():
            running.stop.set()

    def beat(self) -> None:
        """A sign of life."""
        self.state.beat(
            NODE,
            {
                "reading": sorted({str(r.read.table) for r in self._running.values()}),
                "retrying": {job: r.error.to_dict() for job, r in self._retries.items()},
                "waiting": self.throttle.reason,
                "warnings": dict(self.budget.warnings),
            },
        )


def _sources(target: TableName, found: TableState) -> list[TableName]:
    return list(sharding.shards(found.options)) if sharding.is_sharded(found.options) else [target]


def _not_live(read: Read, status: TableStatus | None) -> TableStoppedError:
    phase = status.phase if status is not None else "unknown"
    error = (status.error if status is not None else None) or {}
    why = f": {error['what']}" if error.get("what") else ""
    return TableStoppedError(
        f"the table is {phase}{why}",
        where=str(read.target),
        hint=error.get("hint") or f"once it is followed again: `lakesync snapshot {read.target}`",
    )


def run(
    config: PipelineConfig,
    log: Log,
    state: State,
    windows: Windows,
    stop: threading.Event,
    throttle: Throttle | None = None,
) -> None:
    """Run jobs until `stop` is set; what is not finished then goes on at the next start. `throttle` is the one of the process, if others in
    it read too.

    Retryable errors are retried, others fail their job (and stop its table, if that is read for the first time). Raises what is no job's
    own: `ConfigError`, `LogError`, `StateError`, and anything unexpected.
    """
    own = throttle or Throttle(config)
    node = _Node(config, log, state, windows, own)
    with ThreadPoolExecutor(config.snapshot.readers, thread_name_prefix="reread") as pool:
        try:
            beat_s = 0.0
            while not stop.is_set():
                node.turn(pool)
                if time.monotonic() - beat_s >= BEAT_S:
                    node.beat()
                    node.rest()
                    beat_s = time.monotonic()
                stop.wait(POLL_S)
        finally:
            node.end()
            if throttle is None:
                own.close()
