"""Supervision of the nodes: one thread each, restarts after what may pass, one exit for what does not.

A node is a function that runs until the stop event is set. Ended any other way, by an error that retrying cannot help, an
exception that nobody expected, or simply by returning, it ends the daemon: a dead worker never goes unnoticed.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Literal

from cdc import crash, metrics, sdnotify
from cdc.capture.capture import Capture
from cdc.capture.tables import PipelineFile
from cdc.clock import Clock, SystemClock
from cdc.config import PipelineConfig
from cdc.errors import (
    ConfigError,
    LakesyncError,
    TableStoppedError,
    UnexpectedError,
)
from cdc.journal import logger
from cdc.lake import manifest, open_folder
from cdc.log import Log, open_log
from cdc.merge.merger import Merger
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.ready import node as ready_node
from cdc.source import catalogue, preflight
from cdc.source.connection import connect
from cdc.source.server import Server
from cdc.state import State, TableStatus
from cdc.trace import node as trace_node
from cdc.trace import project_in_process
from cdc.window import Windows
from reconcile.watch import node as reconcile_node
from reconcile.watch import watching
from snapshot import node as snapshot_node
from snapshot import reread as reread_node
from snapshot.throttle import Throttle

NodeName = Literal["capture", "reread", "snapshot", "merge", "ready", "trace", "reconcile", "alerts", "metrics"]
NODES: tuple[NodeName, ...] = (
    "capture",
    "reread",
    "snapshot",
    "merge",
    "ready",
    "trace",
    "reconcile",
    "alerts",
    "metrics",
)
BESIDE: frozenset[NodeName] = frozenset({"ready", "trace", "reconcile", "alerts", "metrics"})
"""Nodes that only look at what the others do: whatever happens to one, it is started again, and the pipeline goes on."""
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
END_TRACE_S = 60.0
"""How long the last projection may take of a run that ends by itself: it is no reason to stay."""
BESIDE_END_WITHIN_S = 3.0
"""How long those beside them have: what they did not do is done the next time."""
RECORDED = 3
"""Of one mistake in a node beside the others, tracebacks are kept so many times in a row."""

LOG = logger("daemon")


@dataclass(frozen=True)
class Goal:
    """What `until_current` waits for: these tables ready, and the lake past the end of the server's binary log."""

    tables: tuple[TableName, ...]
    server_uuid: str
    end: BinlogEnd
    over: frozenset[str] = frozenset()
    """Jobs of rereading that were over at the beginning."""

    def reached(self, config: PipelineConfig, state: State) -> bool:
        """Whether it is. Raises `TableStoppedError` for a table that will not get there by itself."""
        # Before the tables' states: a request is done once the state that it asks for is entered.
        if any(r.kind in ("resync", "resume") for r in state.open_requests()):
            return False
        if any(r.phase in ("waiting", "running") for r in state.reads(open_only=True)):
            return False
        statuses = state.tables()
        if stopped := [s for t in self.tables if (s := statuses.get(t)) and s.phase == "stopped"]:
            raise _stopped(stopped)
        if any(t not in statuses or statuses[t].phase != "ready" for t in self.tables):
            return False
        found = manifest.read(config.lake_root, config.name)
        if found is None or not all(_consistent(found.tables.get(t)) for t in self.tables):
            return False
        applied = found.applied.epoch.number
        if any(r.last is not None and r.last.number > applied for r in state.reads() if r.job not in self.over):
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
        goal = _first_look(config, state, nodes, until_current)

        def done() -> bool:
            if watch:
                watch(state)
            return goal is not None and goal.reached(config, state)

        LOG.info("started", pipeline=config.name, nodes=",".join(nodes))
        throttle = held.enter_context(closing(Throttle(config)))
        bodies = _bodies(config, state, clock, nodes, throttle, hurry=goal is not None)
        Supervisor(state, bodies, stop, clock).run(done)
    if until_current and not stop.is_set() and "ready" in nodes:
        _say_ready(config, state)
    if until_current and not stop.is_set() and config.trace and "trace" in nodes:
        _project(config)
    LOG.info("ended", pipeline=config.name)


def _first_look(config: PipelineConfig, state: State, nodes: Sequence[NodeName], until_current: bool) -> Goal | None:
    """What is wrong from the start is said at once, and not retried: a mistyped host is no outage."""
    if until_current and not config.tables:
        raise ConfigError("no tables", where=str(config.path), hint="`lakesync add schema.table`")
    lake = open_folder(config.lake_root)
    if {"snapshot", "merge"} & set(nodes):
        lake.probe()
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
        tables = tuple(catalogue.targets(catalogue.match(connection, config.tables)))
        return Goal(tables, uuid, end, frozenset(r.job for r in state.reads() if not r.open))


class Supervisor:
    """Runs each of `bodies` in a thread of its own until `stop` is set or one of them fails. For one use."""

    def __init__(self, state: State, bodies: Mapping[NodeName, Body], stop: Stop, clock: Clock) -> None:
        self.state, self.stop, self.clock = state, stop, clock
        self.ending = Stop()
        """What the nodes see: set by a failure, by `stop`, or when there is no more to wait for."""
        self.failures: queue.SimpleQueue[LakesyncError] = queue.SimpleQueue()
        self.threads = {
            n: threading.Thread(target=self._supervise, args=(n, body), name=f"lakesync-{n}", daemon=True)
            for n, body in bodies.items()
        }

    def run(self, done: Callable[[], bool] = lambda: False) -> None:
        """Until `stop` is set or `done`, asked every `TICK_S`, is true. Raises the first error that ended a node."""
        for thread in self.threads.values():
            thread.start()
        sdnotify.ready("following")
        try:
            while self.failures.empty() and not self.stop.wait(TICK_S):
                self._look()
                sdnotify.alive()
                if done():
                    break
        finally:
            sdnotify.stopping()
            self._end()
        if not self.failures.empty():
            raise self.failures.get()

    def _look(self) -> None:
        for name, thread in self.threads.items():
            if not thread.is_alive() and self.failures.empty():
                self._fail(name, UnexpectedError("the thread is gone", where=f"node {name}"))

    def _end(self) -> None:
        self.ending.set()
        deadline = self.clock.monotonic() + END_WITHIN_S
        for name, thread in self.threads.items():
            if name not in BESIDE:
                thread.join(max(0.0, deadline - self.clock.monotonic()))
                if thread.is_alive():
                    self._fail(name, UnexpectedError(f"did not end within {END_WITHIN_S:.0f} s", where=f"node {name}"))
        deadline = self.clock.monotonic() + BESIDE_END_WITHIN_S
        for name, thread in self.threads.items():
            if name in BESIDE:
                thread.join(max(0.0, deadline - self.clock.monotonic()))

    def _supervise(self, node: NodeName, body: Body) -> None:
        attempt = 0
        while not self.ending.is_set():
            began = self.clock.monotonic()
            error: LakesyncError
            try:
                body(self.ending)
                if self.ending.is_set():
                    return
                error = UnexpectedError("ended without being told to", where=f"node {node}")
            except LakesyncError as raised:
                error = raised
            except BaseException as raised:
                if node in BESIDE and attempt >= RECORDED:
                    error = UnexpectedError(f"unexpected {type(raised).__name__}, again", where=f"node {node}")
                else:
                    error = crash.record(raised, self.state.folder, f"node {node}")
                if node not in BESIDE:
                    self._fail(node, error)
                    return
            if self.ending.is_set():
                LOG.info("ended-with-error", ended=node, code=error.code, what=error.what)
                return
            if not error.retryable and node not in BESIDE:
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

    def _fail(self, node: str, error: LakesyncError) -> None:
        LOG.error("failed", failed=node, code=error.code, what=error.what, where=error.where, hint=error.hint)
        self.failures.put(error)
        self._record(node, error)
        self.ending.set()

    def _record(self, node: str, error: LakesyncError) -> None:
        try:
            self.state.record_error(node, error)
        except LakesyncError as second:
            LOG.error("not-recorded", failed=node, what=second.what, where=second.where)


def _bodies(
    config: PipelineConfig,
    state: State,
    clock: Clock,
    nodes: Sequence[NodeName],
    throttle: Throttle,
    *,
    hurry: bool,
) -> dict[NodeName, Body]:
    """The nodes, each opening the log for itself: a restart begins from nothing. Windows are between capture and rereads, so these two are
    in one process."""
    windows = Windows()
    file = PipelineFile(config, state)

    def capture(stop: Stop, log: Log) -> None:
        Capture(config, log, state, clock, windows, file).run(stop)

    def reread(stop: Stop, log: Log) -> None:
        reread_node.run(config, log, state, windows, stop, throttle)

    def snapshot(stop: Stop, log: Log) -> None:
        snapshot_node.run(config, log, state, stop, throttle)

    def merge(stop: Stop, log: Log) -> None:
        with closing(Merger(config, log, state, clock)) as merger:
            merger.run(stop, hurry=hurry)

    def with_log(body: Callable[[Stop, Log], None]) -> Body:
        def run(stop: Stop) -> None:
            with closing(open_log(config.log, config.name, config.log_settings())) as log:
                body(stop, log)

        return run

    def ready(stop: Stop, log: Log) -> None:
        ready_node.run(config, file, state, log, stop, clock)

    def trace(stop: Stop, log: Log) -> None:
        trace_node.run(config, log, state, stop, clock)

    def reconcile(stop: Stop) -> None:
        reconcile_node.run(config, state, stop)

    def alerts(stop: Stop) -> None:
        watching.run(config, state, stop)

    def scraped(stop: Stop) -> None:
        metrics.run(config, state, stop)

    found: dict[NodeName, Body] = {
        "capture": with_log(capture),
        "reread": with_log(reread),
        "snapshot": with_log(snapshot),
        "merge": with_log(merge),
        "ready": with_log(ready),
        "trace": with_log(trace),
        "reconcile": reconcile,
        "alerts": alerts,
        "metrics": scraped,
    }
    # A run that ends by itself is for its end, not for what goes on meanwhile.
    wanted = {
        "trace": config.trace is not None,
        "reconcile": config.reconcile is not None and not hurry,
        "alerts": (config.reconcile or config.alerts) is not None and not hurry,
        "metrics": config.metrics is not None and not hurry,
    }
    return {n: found[n] for n in nodes if n in found and wanted.get(n, True)}


def pause_before(attempt: int) -> float:
    """Seconds to wait before the `attempt`th restart in a row, with a jitter of a fifth: nodes that failed together come back apart."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt - 1, 10)) * random.uniform(0.8, 1.2))  # noqa: S311


def _project(config: PipelineConfig) -> None:
    try:
        project_in_process(config, timeout_s=END_TRACE_S)
    except LakesyncError as error:
        LOG.warning("trace-failed", code=error.code, what=error.what, where=error.where, hint=error.hint)


def _say_ready(config: PipelineConfig, state: State) -> None:
    try:
        with closing(open_log(config.log, config.name, config.log_settings())) as log:
            ready_node.settle(config, PipelineFile(config, state), state, log)
    except LakesyncError as error:
        LOG.warning("ready-failed", code=error.code, what=error.what, where=error.where, hint=error.hint)


def _consistent(version: manifest.TableVersion | None) -> bool:
    """Whether the manifest's own position is the table's."""
    return version is not None and version.state == "ready" and version.applied is None


def _stopped(statuses: Sequence[TableStatus]) -> TableStoppedError:
    names = ", ".join(str(s.table) for s in statuses)
    error = statuses[0].error or {}
    return TableStoppedError(
        f"{names} stopped: {error.get('what', 'no reason given')}",
        where=error.get("where", ""),
        hint=error.get("hint", ""),
    )
