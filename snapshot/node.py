"""The snapshot node: bootstraps every table that waits for one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cdc.config import PipelineConfig
from cdc.epoch import TableState
from cdc.errors import ConfigError, LakeError, LakesyncError, LogError, StateError
from cdc.journal import logger
from cdc.lake import LakeTable
from cdc.log import captured
from cdc.log.base import Log
from cdc.merge import adding, adopting
from cdc.names import TableName
from cdc.state import State, TableStatus
from snapshot.copying import Shared
from snapshot.direct import Bootstrap
from snapshot.pace import Pace
from snapshot.retention import Budget, RetentionError
from snapshot.slots import Slots
from snapshot.throttle import Throttle

LOG = logger("snapshot")
NODE = "snapshot"

POLL_S = 0.2
BEAT_S = 1.0
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Before a bootstrap is tried again after the first, second, … retryable error in a row; the last one for all further ones."""


@dataclass
class _Retry:
    errors: int
    at_s: float
    code: str
    rows: int


class _Node:
    def __init__(self, config: PipelineConfig, log: Log, state: State, throttle: Throttle) -> None:
        self.config = config
        self.log = log
        self.state = state
        self.ending = threading.Event()
        self._shared = Shared(Slots(config.snapshot.readers), throttle, Budget(config, log))
        self._running: dict[TableName, Future[bool]] = {}
        self._paces: dict[TableName, Pace] = {}
        self._retries: dict[TableName, _Retry] = {}
        self._known: captured.Known | None = None
        self._adopted: dict[TableName, tuple[int, bool]] = {}
        """Tables that name a position: the epoch that added them, and whether they are adopted."""

    def turn(self, pool: ThreadPoolExecutor) -> None:
        """Take in what ended, begin what waits. Raises what is no table's own error."""
        for table in [t for t, future in self._running.items() if future.done()]:
            self._ended(table, self._running.pop(table))
        waiting = {
            t: s
            for t, s in self.state.tables().items()
            if s.phase in ("added", "snapshot", "catching-up") and t not in self._running
        }
        if not waiting:
            return
        paused = self.state.paused()
        self._known = captured.read(self.log, self._known)
        if self._known is None:
            return
        for table, status in waiting.items():
            if status.phase == "catching-up":
                self._check_server(status, self._known)
                continue
            retry = self._retries.get(table)
            found = self._known.tables.get(table.id)
            if found is None or adding.begins_empty(found) or table in paused:
                continue
            if found.options.get("from_position") and self._is_adopted(status, found):
                continue
            # As many as can read: one that waits for its turn would only hold a connection and an epoch.
            if len(self._running) < self.config.snapshot.readers and (retry is None or time.monotonic() >= retry.at_s):
                bootstrap = Bootstrap(self.config, self.log, self.state, table, shared=self._shared)
                self._paces[table] = bootstrap.pace
                self._running[table] = pool.submit(bootstrap.run, self.ending)

    def _is_adopted(self, status: TableStatus, captured: TableState) -> bool:
        """Whether the merger takes the table over as it is in the lake; asked once for each time that the log adds it."""
        known = self._adopted.get(status.table)
        if known is None or known[0] != captured.since:
            lake = LakeTable(self.config.lake_root, status.table, self.config.name)
            try:
                waits = adopting.waits(self.log, lake, captured)
            except LakeError:
                waits = True  # the merger meets it too, and stops the table
            known = self._adopted[status.table] = captured.since, waits
        return known[1]

    def _check_server(self, status: TableStatus, known: captured.Known) -> None:
        """Bootstrap again what capture left the server of before it was ready: a chunk may hold what the new server never had."""
        if status.mark_server is None or known.newest.end.server_uuid == status.mark_server:
            return
        if self.state.set_table(
            status.table, "added", when=("catching-up",), e0=None, e0_position=None, mark=None, mark_server=None
        ):
            LOG.warning("bootstrap-again", table=str(status.table), reason="capture moved to another server")

    def _ended(self, table: TableName, future: Future[bool]) -> None:
        error = future.exception()
        del self._paces[table]
        self._shared.budget.ended(table)
        if error is None:
            self._retries.pop(table, None)
            return
        if not isinstance(error, LakesyncError):
            raise error
        if error.retryable:
            status = self.state.table(table)
            rows = status.rows_read if status else 0
            before = self._retries.get(table)
            errors = before.errors + 1 if before is not None and before.rows == rows else 1
            pause = PAUSES_S[min(errors, len(PAUSES_S)) - 1]
            self._retries[table] = _Retry(errors, time.monotonic() + pause, error.code, rows)
            self.state.record_error(NODE, error, table)
            LOG.warning("bootstrap-retried", table=str(table), error=error.code, what=error.what, pause_s=pause)
            return
        if isinstance(error, ConfigError | LogError | StateError):
            raise error
        if isinstance(error, RetentionError):
            self._pause(table, error)
            return
        status = self.state.table(table)
        if status is not None and status.phase in ("added", "snapshot"):
            self.state.stop_table(table, NODE, error)
            LOG.error("table-stopped", table=str(table), error=error.code, what=error.what)

    def _pause(self, table: TableName, error: RetentionError) -> None:
        """What was read is kept: it goes on from there when it is told to."""
        self.state.pause(table, True)
        self.state.set_table(table, "snapshot", when=("snapshot",), error=error.to_dict() | {"node": NODE})
        self.state.record_error(NODE, error, table)
        LOG.error("reading-paused", table=str(table), error=error.code, what=error.what)

    def beat(self) -> None:
        """A sign of life."""
        self.state.beat(
            NODE,
            {
                "reading": sorted(map(str, self._running)),
                "retrying": {str(t): r.code for t, r in self._retries.items()},
                "waiting": self._shared.throttle.reason,
                "paces": {t.id: pace.to_dict() for t, pace in self._paces.items()},
                "warnings": dict(self._shared.budget.warnings),
            },
        )


def run(
    config: PipelineConfig, log: Log, state: State, stop: threading.Event, throttle: Throttle | None = None
) -> None:
    """Bootstrap tables as they are added, until `stop` is set; what is not finished then goes on at the next start. `throttle` is the one of
    the process, if others in it read too.

    Retryable errors are retried, others stop their table. Raises what is no table's own: `ConfigError`, `LogError`, `StateError`,
    and anything unexpected.
    """
    used = throttle or Throttle(config)
    node = _Node(config, log, state, used)
    with ThreadPoolExecutor(config.snapshot.readers, thread_name_prefix="snapshot") as pool:
        try:
            beat_s = 0.0
            while not stop.is_set():
                node.turn(pool)
                if time.monotonic() - beat_s >= BEAT_S:
                    node.beat()
                    beat_s = time.monotonic()
                stop.wait(POLL_S)
        finally:
            node.ending.set()
            if throttle is None:
                used.close()
