"""What a pipeline is doing: from the state folder, the log, the lake and the source, each as far as it can be reached."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from cdc import reads, watermark
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord, EpochId
from cdc.errors import LakesyncError
from cdc.lake import Applied, LakeTable, manifest
from cdc.log import Log, open_log
from cdc.names import TableName
from cdc.source import progress
from cdc.source.connection import connect
from cdc.source.progress import Progress
from cdc.source.server import Server
from cdc.state import Node, Read, State, TableStatus
from cdc.watermark import Watermark
from reconcile.watch import overview
from reconcile.watch.overview import Checks

_FLOW = ("capture", "reread", "snapshot", "merge", "ready", "trace", "reconcile", "alerts", "metrics")
"""The nodes, in the order in which a row meets them."""
VERSION = 1
"""Of the JSON form: keys are added within a version, never changed or taken away."""
ALIVE_S = 15.0
"""A node that gave no sign of life for so long is not alive, whatever its process does."""
READS_SHOWN_S = 86_400.0
"""What was read again, and ended, is shown for so long."""


@dataclass(frozen=True)
class NodeStatus:
    """A node. `age_ms` since its last sign of life; `info` is its own."""

    name: str
    pid: int
    alive: bool
    age_ms: int
    info: dict[str, Any]


@dataclass(frozen=True)
class LakeStatus:
    """A table in the lake: the Delta version to read, its live rows, and the source position that it contains."""

    version: int
    rows: int
    epoch: int
    epoch_hash: str
    position: str
    gtids: str
    committed_ms: int | None
    """The source's own commit time of the last transaction in it, ms since 1970; None before the first one."""


@dataclass(frozen=True)
class InManifest:
    """A table in the newest manifest. `version`: of Delta, to read beside the others' of the manifest; `ready`: at it the table is the
    source at the manifest's position."""

    version: int
    ready: bool


@dataclass(frozen=True)
class Round:
    """The newest manifest: the epoch and position that all tables were moved to, and when, µs since 1970."""

    epoch: int
    epoch_hash: str
    position: str
    gtids: str
    written_us: int


@dataclass(frozen=True)
class Reading:
    """How a table's first reading goes. What is not known is None."""

    percent: float | None
    rows_per_second: int | None
    seconds_left: int | None
    paused: bool
    waiting: str
    """What it waits for, in words; empty if it does not."""
    warning: str
    """What its end may not be in time for, and what helps; mostly empty."""


@dataclass(frozen=True)
class TableView:
    """One table. `lag_ms`: 0 if the lake has what the source has, None where that is not known or the table is not ready.
    `reading`: in the phase `snapshot`."""

    table: str
    phase: str
    rows_read: int
    rows_estimate: int
    lag_ms: int | None
    lake: LakeStatus | None
    error: dict[str, Any] | None
    reading: Reading | None = None
    in_manifest: InManifest | None = None
    watermark_ms: int | None = None
    """Everything that the source committed up to then, ms since 1970 by its own clock, is in the lake; None where that is not known."""
    held: str = ""
    """Why the watermark does not go on; empty if it does."""


@dataclass(frozen=True)
class PipelineStatus:
    """Everything. What could not be reached is None, and `problems` says why."""

    pipeline: str
    at_ms: int
    running: bool
    source_end: str | None
    log_epoch: int | None
    log_bytes: int | None
    manifest_epoch: int | None
    manifest_age_ms: int | None
    nodes: tuple[NodeStatus, ...]
    tables: tuple[TableView, ...]
    problems: tuple[dict[str, Any], ...]
    requests: tuple[dict[str, Any], ...]
    errors: tuple[dict[str, Any], ...]
    reads: tuple[dict[str, Any], ...] = ()
    """What is read again: `cdc.reads.view`, and `waiting` as of `Reading`."""
    version: int = VERSION
    manifest: Round | None = None
    checks: Checks | None = None
    """What was checked, when it is checked again, what differs. None: nothing was, and nothing is to be."""
    alerts: tuple[dict[str, Any], ...] = ()
    """`reconcile.alerts.Alert.to_dict`: those that are open, and those that are over while somebody was not told yet."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, documented in docs/cli.md."""
        return asdict(self)


def collect(config: PipelineConfig) -> PipelineStatus:
    """Look at everything once. Raises `StateError`; what else fails becomes a problem."""
    now_us = time.time_ns() // 1000
    state = State(config.state)
    problems: list[dict[str, Any]] = []
    newest: CommitRecord | None = None
    log_bytes: int | None = None
    source: Progress | None = None
    found: manifest.Manifest | None = None
    marks: dict[TableName, Watermark] = {}
    views: list[TableView] = []
    statuses = state.tables()
    try:
        source = _look_at_source(config)
    except LakesyncError as error:
        problems.append(error.to_dict())
    try:
        found = manifest.read(config.lake_root, config.name)
        marks = watermark.of_tables(config, state, found=found)
    except LakesyncError as error:
        problems.append(error.to_dict())
    nodes = tuple(
        NodeStatus(n.name, n.pid, _is_alive(n, now_us), max(0, now_us - n.at_us) // 1000, n.info)
        for n in sorted(state.nodes().values(), key=lambda n: _FLOW.index(n.name) if n.name in _FLOW else len(_FLOW))
    )
    look = _Look(config, found, source, now_us, {n.name: n.info for n in nodes if n.alive}, state.paused(), marks)
    shown = _shown(config, statuses)
    try:
        with closing(open_log(config.log, config.name, config.log_settings())) as log:
            newest, log_bytes = log.newest(), log.size_bytes()
            views = [look.table(s, log, newest) for s in shown]
    except LakesyncError as error:
        problems.append(error.to_dict())
        views = [look.table(s, None, None) for s in shown]
    checks: Checks | None = None
    alerts: tuple[dict[str, Any], ...] = ()
    try:
        checks, alerts = overview.look(config)
    except LakesyncError as error:
        problems.append(error.to_dict())
    return PipelineStatus(
        pipeline=config.name,
        at_ms=now_us // 1000,
        running=any(n.alive and n.name in ("capture", "merge") for n in nodes),
        source_end=str(source.end) if source else None,
        log_epoch=newest.number if newest else None,
        log_bytes=log_bytes,
        manifest_epoch=found.applied.epoch.number if found else None,
        manifest_age_ms=max(0, now_us - found.written_us) // 1000 if found else None,
        nodes=nodes,
        tables=tuple(views),
        problems=tuple(problems),
        requests=tuple(asdict(r) for r in state.requests()),
        errors=tuple(state.errors()),
        reads=tuple(look.reads(state.reads())),
        manifest=_round(found) if found else None,
        checks=checks,
        alerts=alerts,
    )


def _round(found: manifest.Manifest) -> Round:
    to = found.applied
    return Round(to.epoch.number, to.epoch.hash, str(to.position.end), str(to.position.gtids), found.written_us)


def _look_at_source(config: PipelineConfig) -> Progress:
    with closing(connect(config.source, purpose="status")) as connection:
        return progress.look(Server(connection))


def _shown(config: PipelineConfig, statuses: dict[TableName, TableStatus]) -> list[TableStatus]:
    """Every table of the state, and those named in the file that no daemon has seen yet."""
    unseen = [e.table for e in config.tables if not e.is_pattern and e.table not in statuses]
    return [*statuses.values(), *(TableStatus(t, "new") for t in unseen)]


@dataclass(frozen=True)
class _Look:
    """What the tables are seen with. `infos`: what nodes that are alive say of themselves."""

    config: PipelineConfig
    found: manifest.Manifest | None
    source: Progress | None
    now_us: int
    infos: dict[str, dict[str, Any]]
    paused: frozenset[TableName]
    marks: Mapping[TableName, Watermark]

    def table(self, status: TableStatus, log: Log | None, newest: CommitRecord | None) -> TableView:
        error, lake, applied = status.error, None, None
        try:
            snapshot = LakeTable(self.config.lake_root, status.table, self.config.name).load()
            applied = manifest.carried(status.table, snapshot, self.found) if snapshot else None
            if snapshot and applied:
                lake = LakeStatus(
                    snapshot.version,
                    snapshot.rows,
                    applied.epoch.number,
                    applied.epoch.hash,
                    str(applied.position.end),
                    str(applied.position.gtids),
                    applied.raw_us // 1000 or None,
                )
        except LakesyncError as problem:
            error = error or problem.to_dict()
        ready = applied and status.phase == "ready"
        mark = self.marks.get(status.table, Watermark(status.table))
        lag = _lag_ms(applied, mark, self.source, log, newest) if applied and ready else None
        reading = self._reading(status) if status.phase == "snapshot" else None
        table = str(status.table)
        named = self.found.tables.get(status.table) if self.found else None
        there = InManifest(named.version, named.state == "ready" and named.applied is None) if named else None
        at_ms = None if mark.at_us is None else mark.at_us // 1000
        return TableView(
            *(table, status.phase, status.rows_read, status.rows_estimate, lag, lake, error, reading, there),
            watermark_ms=at_ms,
            held=mark.held,
        )

    def _reading(self, status: TableStatus) -> Reading:
        info = self.infos.get("snapshot", {})
        pace = info.get("paces", {}).get(status.table.id, {})
        return Reading(
            percent(status.rows_read, status.rows_estimate),
            pace.get("rows_per_second"),
            pace.get("seconds_left"),
            status.table in self.paused,
            str(info.get("waiting", "")) if pace else "",
            str(info.get("warnings", {}).get(status.table.id, "")),
        )

    def reads(self, found: Sequence[Read]) -> Iterator[dict[str, Any]]:
        """Those that are open, and those that ended lately."""
        waiting = str(self.infos.get("reread", {}).get("waiting", ""))
        for read in found:
            if read.open or self.now_us - read.changed_us < READS_SHOWN_S * 1e6:
                yield reads.view(read, self.now_us) | {"waiting": waiting if read.phase == "running" else ""}


def percent(read: int, estimate: int) -> float | None:
    """Of the rows that there are about, at most 99.9: the estimate knows no end. None where nothing is known."""
    return round(min(99.9, 100 * read / estimate), 1) if estimate else None


def _lag_ms(
    applied: Applied, mark: Watermark, source: Progress | None, log: Log | None, newest: CommitRecord | None
) -> int | None:
    """Since when the source, or what that replicates from, has had something that the lake does not: by the source's own clock."""
    if source is None or applied.position.server_uuid != source.server:
        return None
    try:
        has_all = applied.position.end >= source.end
    except ValueError:
        return None
    if has_all and not source.behind:
        return 0
    if mark.at_us is not None:
        return mark.lag_ms(source.clock_us)
    # As long as nobody has looked at the source's clock, by the commit times of what is logged.
    waiting_us = applied.raw_us
    if log and newest:
        # The first transaction that is logged and not applied; what was applied last may be long ago.
        after = _first_after(log, applied.epoch)
        waiting_us = after.raw_us if after else newest.raw_us
    return max(0, source.clock_us - waiting_us) // 1000 if waiting_us else None


def _first_after(log: Log, epoch: EpochId) -> CommitRecord | None:
    return next((r for r in log.records(epoch.number) if r.transactions or not r.whole), None)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_running(state: State) -> bool:
    """Whether a capture or a merger gave a sign of life lately."""
    now_us = time.time_ns() // 1000
    return any(_is_alive(n, now_us) for n in state.nodes().values() if n.name in ("capture", "merge"))


def _is_alive(node: Node, now_us: int) -> bool:
    return _alive(node.pid) and now_us - node.at_us < ALIVE_S * 1e6
