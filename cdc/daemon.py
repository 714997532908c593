"""Supervision of the nodes: one thread each, restarts after what may pass, one exit for what does not.

A node is a function that runs until the stop event is set. Ended any other way, by an error that retrying cannot help, an
exception that nobody expected, or simply by returning, it ends the daemon: a dead worker never goes unnoticed.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Literal

from cdc import crash, sdnotify
from cdc.capture.capture import Capture
from cdc.clock import Clock, SystemClock
from cdc.config import PipelineConfig
from cdc.errors import (
    ConfigError,
    LakesyncError,
    TableStoppedError,
    UnexpectedError,
)
from cdc.journal import logger
from cdc.lake import manifest
from cdc.log import Log, open_log
from cdc.merge.merger import Merger
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.source import catalogue, preflight
from cdc.source.connection import connect
from cdc.source.server import Server
from cdc.state import State, TableStatus
from cdc.trace import project_in_process
from snapshot import node as snapshot_node

NodeName = Literal["capture", "snapshot", "merge", "trace"]
NODES: tuple[NodeName, ...] = ("capture", "snapshot", "merge", "trace")
Stop = threading.Event
Body = Callable[[Stop], None]

FIRST_PAUSE_S = 0.5
"""Before a node is started again the first time; doubled each time after that."""
LONGEST_PAUSE_S = 30.0
CALM_S = 60.0
"""A node that ran this long before it failed begins with the first pause again."""
TICK_S = 0.25
"""How often the supervisor looks."""
END_WITHIN_S = 20.0
"""How long the nodes have to end once they are told to."""

LOG = logger("daemon")


@dataclass(frozen=True)
class Failure:
    """What ended a node."""

    node: str
    error: LakesyncError


@dataclass(frozen=True)
class Goal:
    """What `until_current` waits for: these tables ready, and the lake past the end of the server's binary log."""

    tables: tuple[TableName, ...]
    server_uuid: str
    end: BinlogEnd

    def reached(self, config: PipelineConfig, state: State) -> bool:
        """Whether it is. Raises `TableStoppedError` for a table that will not get there by itself."""
        statuses = state.tables()
        if stopped := [s for t in self.tables if (s := statuses.get(t)) and s.phase == "stopped"]:
            raise _stopped(stopped)
        if any(t not in statuses or statuses[t].phase != "ready" for t in self.tables):
            return False
        found = manifest.read(config.lake_root, config.name)
        if found is None or not all(_consistent(found.tables.get(t)) for t in self.tables):
            return False
        position = found.applied.position
        return position.server_uuid == self.server_uuid and position.end >= self.end


def run(
    config: PipelineConfig,
    nodes: Sequence[NodeName] = NODES,
    *,
    until_current: bool = False,
    stop: Stop | None = None,
    watch: Callable[[State], None] | None = None,
    clock: Clock | None = None,
) -> None:
    """Run nodes until `stop` is set; with `until_current`, until the lake has what the source had when this began.

    `watch` is called every `TICK_S`. Raises the `LakesyncError` that ended a node, or the first look at source and log.
    """
    stop, clock = stop or Stop(), clock or SystemClock()
    state = State(config.state)
    with ExitStack() as held:
        for node in ("capture", "merge"):
            if node in nodes:
                held.enter_context(state.lock(node))
        goal = _first_look(config, nodes, until_current)
        LOG.info("started", pipeline=config.name, nodes=",".join(nodes))
        _Supervisor(config, state, nodes, stop, clock).run(goal, watch)
    if until_current and not stop.is_set() and config.trace and "trace" in nodes:
        _project(config)
    LOG.info("ended", pipeline=config.name)


def _first_look(config: PipelineConfig, nodes: Sequence[NodeName], until_current: bool) -> Goal | None:
    """What is wrong from the start is said at once, and not retried: a mistyped host is no outage."""
    if until_current and not config.tables:
        raise ConfigError("no tables", where=str(config.path), hint="`lakesync add schema.table`")
    config.lake_root  # noqa: B018 - raises for what cannot be written
    with closing(open_log(config.log, config.name, config.log_settings())) as log:
        log.newest()
    if "capture" not in nodes and not until_current:
        return None
    with closing(connect(config.source, purpose="check")) as connection:
        server = Server(connection)
        if "capture" in nodes:
            preflight.require(config, connection)
        if not until_current:
            return None
        uuid, end = server.identity().uuid, server.binlog_end()
        return Goal(tuple(catalogue.match(connection, config.tables)), uuid, end)


class _Supervisor:
    def __init__(
        self, config: PipelineConfig, state: State, nodes: Sequence[NodeName], stop: Stop, clock: Clock
    ) -> None:
        self.config, self.state, self.stop, self.clock = config, state, stop, clock
        self.ending = Stop()
        """What the nodes see: set by `stop`, by a failure, or when the goal is reached."""
        self.failures: queue.SimpleQueue[Failure] = queue.SimpleQueue()
        bodies: dict[NodeName, Body] = {
            "capture": self._capture,
            "snapshot": self._snapshot,
            "merge": self._merge,
            "trace": self._trace,
        }
        wanted = [n for n in nodes if n != "trace" or config.trace]
        self.threads = {
            n: threading.Thread(target=self._supervise, args=(n, bodies[n]), name=f"lakesync-{n}", daemon=True)
            for n in wanted
        }

    def run(self, goal: Goal | None, watch: Callable[[State], None] | None) -> None:
        for thread in self.threads.values():
            thread.start()
        sdnotify.ready(f"following as {self.config.name}")
        try:
            self._watch(goal, watch)
        finally:
            sdnotify.stopping()
            self._end()
        if not self.failures.empty():
            raise self.failures.get().error

    def _watch(self, goal: Goal | None, watch: Callable[[State], None] | None) -> None:
        while not self.stop.wait(TICK_S):
            if not self.failures.empty():
                return
            for name, thread in self.threads.items():
                if not thread.is_alive() and self.failures.empty():
                    self._fail(name, UnexpectedError("the thread is gone", where=f"node {name}"))
                    return
            sdnotify.alive()
            if watch:
                watch(self.state)
            if goal and goal.reached(self.config, self.state):
                return

    def _end(self) -> None:
        self.ending.set()
        deadline = self.clock.monotonic() + END_WITHIN_S
        for name, thread in self.threads.items():
            if name == "trace":
                continue  # it may wait for its child; both end with this process, and what they did not do is done the next time
            thread.join(max(0.0, deadline - self.clock.monotonic()))
            if thread.is_alive():
                self._fail(
                    name,
                    UnexpectedError(f"did not end within {END_WITHIN_S:.0f} s", where=f"node {name}"),
                )

    # -- a node's life ---------------------------------------------------------------------------------------------------

    def _supervise(self, node: str, body: Body) -> None:
        attempt = 0
        while not self.ending.is_set():
            began = self.clock.monotonic()
            try:
                body(self.ending)
                if not self.ending.is_set():
                    self._fail(node, UnexpectedError("ended without being told to", where=f"node {node}"))
                return
            except LakesyncError as error:
                if self.ending.is_set():
                    LOG.info("ended-with-error", ended=node, code=error.code, what=error.what)
                    return
                if not error.retryable:
                    self._fail(node, error)
                    return
                attempt = 1 if self.clock.monotonic() - began > CALM_S else attempt + 1
                pause = pause_before(attempt)
                LOG.warning(
                    "restarting",
                    failed=node,
                    code=error.code,
                    what=error.what,
                    where=error.where,
                    attempt=attempt,
                    in_s=round(pause, 1),
                )
                self._record(node, error)
                self.ending.wait(pause)
            except BaseException as error:
                self._fail(node, crash.record(error, self.config.state, f"node {node}"))
                return

    def _fail(self, node: str, error: LakesyncError) -> None:
        LOG.error("failed", failed=node, code=error.code, what=error.what, where=error.where, hint=error.hint)
        self.failures.put(Failure(node, error))
        self._record(node, error)
        self.ending.set()

    def _record(self, node: str, error: LakesyncError) -> None:
        try:
            self.state.record_error(node, error)
        except LakesyncError as second:
            LOG.error("not-recorded", failed=node, what=second.what, where=second.where)

    # -- the nodes -------------------------------------------------------------------------------------------------------

    def _log(self) -> Log:
        return open_log(self.config.log, self.config.name, self.config.log_settings())

    def _capture(self, stop: Stop) -> None:
        with closing(self._log()) as log:
            Capture(self.config, log, self.state, self.clock).run(stop)

    def _merge(self, stop: Stop) -> None:
        with closing(self._log()) as log:
            Merger(self.config, log, self.state, self.clock).run(stop)

    def _snapshot(self, stop: Stop) -> None:
        with closing(self._log()) as log:
            snapshot_node.run(self.config, log, self.state, stop)

    def _trace(self, stop: Stop) -> None:
        assert self.config.trace
        while not stop.wait(self.config.trace.every):
            _project(self.config)
            self.state.beat("trace", {})


def pause_before(attempt: int) -> float:
    """Seconds to wait before the `attempt`th restart in a row, with a jitter of a fifth: nodes that failed together come back apart."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt - 1, 10)) * random.uniform(0.8, 1.2))  # noqa: S311


def _project(config: PipelineConfig) -> None:
    try:
        project_in_process(config)
    except LakesyncError as error:
        LOG.warning("trace-failed", code=error.code, what=error.what, where=error.where, hint=error.hint)


def _consistent(version: manifest.TableVersion | None) -> bool:
    """Whether the manifest's own position is the table's."""
    return version is not None and version.state == "ready"


def _stopped(statuses: Sequence[TableStatus]) -> TableStoppedError:
    names = ", ".join(str(s.table) for s in statuses)
    error = statuses[0].error or {}
    return TableStoppedError(
        f"{names} stopped: {error.get('what', 'no reason given')}",
        where=error.get("where", ""),
        hint=error.get("hint", ""),
    )
