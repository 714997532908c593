"""One reconciliation from its beginning to its report: which parts, in which order, and what is kept of them.

Repair comes after the comparison that names the rows, and the ledger last, so that it closes over what was repaired too. A part that
fails does not take the others with it: what was found is reported and recorded, and the error beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cdc import status
from cdc.config import PipelineConfig
from cdc.errors import ConfigError, LakesyncError, TraceError
from cdc.log import open_log
from cdc.log.base import Log
from cdc.names import TableName
from cdc.state import State
from cdc.trace import queries
from cdc.trace.client import client as open_trace
from reconcile import repair
from reconcile.ledger import close as ledger_of
from reconcile.ledger.close import Edge
from reconcile.repair import RepairedTable
from reconcile.report.document import Report
from reconcile.runs import Kind, Runs, Trigger, Verdict
from reconcile.values import compare as values_of
from reconcile.values.found import Difference
from reconcile.values.scope import WHOLE, Scope

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Done = TypeVar("Done")

_INTEGER = re.compile(r"-?[0-9]{1,20}")

LATENCY_BUCKETS = 60
"""At most so many points in time of each percentile."""
BUCKETS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800)
LATENCY_US = 86_400_000_000
"""Of so long at most latencies are shown."""


@dataclass(frozen=True)
class Asked:
    """What to do. Refused, before anything is done, where it does not go together (`ConfigError`, `TraceError` without a trace)."""

    tables: tuple[TableName, ...] = ()
    ledger: bool = True
    values: bool = True
    repair: bool = False
    dry_run: bool = False
    scope: Scope = WHOLE
    since: str | None = None
    until: str | None = None
    rows_per_second: int | None = None
    resume: bool = False
    follow_s: float = values_of.FOLLOW_S
    show_values: bool = False
    trigger: Trigger = "asked"


def reconcile(config: PipelineConfig, asked: Asked, progress: values_of.Progress | None = None) -> Report:
    """Do it, and keep it in the store of runs. `progress` is told the table and the rows read so far.

    Raises, before anything is read, `ConfigError` for what does not go together and tables that are not there, `TraceError` where the
    ledger is asked for and there is no trace; later the error of a part only where every part failed, else it is in the report.
    """
    state = State(config.state)
    _check(config, asked, state)
    runs = Runs(config.state)
    with closing(open_log(config.log, config.name, config.log_settings())) as log:
        return _Reconciliation(config, asked, state, runs, log, progress).report()


def _check(config: PipelineConfig, asked: Asked, state: State) -> None:
    if asked.dry_run and not asked.repair:
        raise ConfigError(
            "a dry run is of a repair", where="--dry-run", hint="add --repair; without it nothing is changed anyway"
        )
    if asked.repair and not asked.values:
        raise ConfigError("a repair needs the comparison that names the rows", where="--repair", hint="add --values")
    if not asked.values and (not asked.scope.whole or asked.rows_per_second or asked.resume or asked.show_values):
        raise ConfigError(
            "columns, keys, samples, limits and --resume are about values", where="--ledger", hint="add --values"
        )
    if not asked.ledger and (asked.since is not None or asked.until is not None):
        raise ConfigError("--since and --until are about the ledger", where="--values", hint="add --ledger")
    if asked.rows_per_second is not None and asked.rows_per_second < 1:
        raise ConfigError("no rows a second is no speed", where="--rows-per-second", hint="write 1 or more")
    for text in (asked.since, asked.until):
        edge = _edge(text)
        if text == asked.since and edge and (edge.us or 0) > time.time_ns() // 1000:
            raise ConfigError("the window has not begun yet", where=f"--since {text}", hint="times are UTC")
    known = state.tables()
    for table in asked.tables:
        if table not in known:
            raise ConfigError("not a table of this pipeline", where=str(table), hint="`lakesync status` lists them")
    if asked.ledger and config.trace is None:
        raise TraceError(
            "the pipeline has no trace to close the ledger by",
            where=str(config.path),
            hint="set `trace:`, or ask for --values",
        )


class _Reconciliation:
    def __init__(
        self,
        config: PipelineConfig,
        asked: Asked,
        state: State,
        runs: Runs,
        log: Log,
        progress: values_of.Progress | None,
    ) -> None:
        self.config, self.asked, self.state, self.runs, self.log, self.progress = (
            config,
            asked,
            state,
            runs,
            log,
            progress,
        )
        self.began = time.monotonic()
        self.mended: list[RepairedTable] = []
        self.scope = _turned(runs, asked)
        self.found = Report(config.name, time.time_ns() // 1000, asked=_described(asked, self.scope))

    def report(self) -> Report:
        """All parts, one after the other."""
        if self.asked.repair:
            # A table that has a key twice has stopped, and cannot be compared until it goes on.
            self._try("repair", self._mend)
        if self.asked.values and not self.found.errors:
            self._part("values", self._compare)
        if self.asked.repair and not self.found.errors:
            # After the record of what differs: what is put right is taken off that.
            self._part("repair", self._repair)
        if self.asked.ledger:
            self._part("ledger", self._ledger)
        if self.found.errors and self.found.ledger is None and self.found.values is None:
            raise self.found.errors[0]
        return self.found

    def _part(self, kind: Kind, do: Callable[[int], Verdict]) -> None:
        """One part, recorded at its end: what is found is not lost when a later one does not come to its own."""
        verdict = self._try(kind, do)
        if verdict is None:
            return
        states = _states(self.config, self.asked.tables)
        self.found = replace(self.found, tables=states, seconds=time.monotonic() - self.began)
        self.runs.end(self._run(kind), verdict, self.found.kept())

    def _try(self, kind: Kind, do: Callable[[int], Done]) -> Done | None:
        """None where it failed, which is recorded."""
        run = self._run(kind)
        try:
            return do(run)
        except LakesyncError as error:
            self.found = replace(self.found, errors=(*self.found.errors, error))
            self.runs.end(run, "failed", {"error": error.to_dict()})
            return None

    def _run(self, kind: Kind) -> int:
        """The number of this part's run, which begins when it is asked for first."""
        if kind not in self.found.runs:
            tables, options = self.asked.tables, self._options(kind)
            resumed = self.runs.unfinished(kind, tables, options) if self.asked.resume and kind == "values" else None
            run = resumed or self.runs.begin(kind, self.asked.trigger, tables, options)
            self.found = replace(self.found, runs={**self.found.runs, kind: run})
        return self.found.runs[kind]

    def _options(self, kind: Kind) -> dict[str, Any]:
        if kind == "ledger":
            return {n: v for n, v in (("since", self.asked.since), ("until", self.asked.until)) if v is not None}
        flags = {"show_values": self.asked.show_values, "dry_run": self.asked.dry_run and kind == "repair"}
        return {"scope": self.scope.to_dict()} | {name: True for name, given in flags.items() if given}

    def _compare(self, run: int) -> Verdict:
        compared = values_of.compare(
            self.config,
            self.log,
            self.state,
            self.asked.tables,
            scope=self.scope,
            follow_s=self.asked.follow_s,
            rows_per_second=self.asked.rows_per_second,
            progress=self.progress,
            checkpoint=self.runs.checkpoint(run),
            show_values=self.asked.show_values,
        )
        tables = [replace(t, differences=tuple(sorted(t.differences, key=_natural))) for t in compared.tables]
        self.found = replace(self.found, values=replace(compared, tables=tuple(tables)))
        return "agrees" if compared.equal else "differs"

    def _mend(self, run: int) -> None:
        asked = self.asked
        self.mended = repair.mend(
            self.config, self.state, self.runs, run, asked.tables, dry_run=asked.dry_run, follow_s=asked.follow_s
        )

    def _repair(self, run: int) -> Verdict:
        assert self.found.values is not None
        done = repair.repair(
            self.config,
            self.log,
            self.state,
            self.runs,
            run,
            self.found.values,
            dry_run=self.asked.dry_run,
            follow_s=self.asked.follow_s,
            show_values=self.asked.show_values,
        ).with_mended(self.mended)
        self.found = replace(self.found, repair=done.to_dict())
        return "agrees" if done.ok and not (done.dry_run and done.keys) else "differs"

    def _ledger(self, _: int) -> Verdict:
        assert self.config.trace is not None
        proven = {TableName.parse(name).id: version for name, version in self.runs.proven().items()}
        with open_trace(self.config.trace) as client:
            closed = ledger_of.close(
                client,
                self.config,
                self.log,
                self.asked.tables,
                since=_edge(self.asked.since),
                until=_edge(self.asked.until),
                proven=proven,
            )
            self.found = replace(self.found, ledger=closed, **self._traced(client))
        return "agrees" if closed.closes else "differs"

    def _traced(self, client: Client) -> dict[str, Any]:
        """What the picture of the flow and the chart of latency are drawn from: of the ledger's window, of times at most a day of it."""
        edge = _edge(self.asked.since)
        since_us = (edge.us or 0) if edge else 0
        wanted = {t.id for t in self.asked.tables}
        flow = [
            one.to_dict() | {"table": _name(one.table)}
            for one in queries.flow(client, self.config.name, since_us)
            if not wanted or not one.table or one.table in wanted
        ]
        return {"flow": tuple(flow), "latency": self._latency(client, max(since_us, self.found.at_us - LATENCY_US))}

    def _latency(self, client: Client, since_us: int) -> dict[str, Any] | None:
        name = self.config.name
        minutes = queries.latency(client, name, since_us, 60)
        if not minutes:
            return None
        first, last = minutes[0].at_us, minutes[-1].at_us + 60_000_000
        bucket_s = next(s for s in BUCKETS_S if (last - first) / 1e6 / s <= LATENCY_BUCKETS)
        points = minutes if bucket_s == 60 else queries.latency(client, name, since_us, bucket_s)
        whole = [p for p in queries.latency(client, name, since_us, 10 * 86_400) if self._wants(p.table)]
        newest = {(p.table, p.stage): p for p in whole}
        return {
            "since_us": since_us,
            "bucket_s": bucket_s,
            "buckets": [p.to_dict() for p in points if not p.table],
            "tables": [p.to_dict() | {"table": _name(p.table)} for p in newest.values()],
        }

    def _wants(self, table: str) -> bool:
        return not table or not self.asked.tables or table in {t.id for t in self.asked.tables}


def _edge(text: str | None) -> Edge | None:
    return None if text is None else Edge.parse(text)


def _natural(difference: Difference) -> list[tuple[bool, int, str]]:
    """By key, numbers by their size: the order in which they were found is none that people know."""
    parts = difference.key.split(", ")
    return [(False, int(p), p) if _INTEGER.fullmatch(p) else (True, 0, p) for p in parts]


def _name(table: str) -> str:
    """As people know it; all tables are named by nothing."""
    return str(TableName.from_id(table)) if table else ""


def _described(asked: Asked, scope: Scope) -> dict[str, Any]:
    """What was asked for, for the report and for who wants to repeat it."""
    parts = [name for name in ("ledger", "values", "repair") if getattr(asked, name)]
    told: dict[str, Any] = {"parts": parts, "tables": [str(t) for t in asked.tables], "scope": scope.to_dict()}
    for name in ("dry_run", "since", "until", "rows_per_second", "show_values"):
        if value := getattr(asked, name):
            told[name] = value
    return told | {"trigger": asked.trigger}


def _turned(runs: Runs, asked: Asked) -> Scope:
    """The scope; of a sample the next turn, so that run by run all of the rows are seen. A run that is resumed keeps its own."""
    if asked.scope.sample is None:
        return asked.scope
    names = sorted(map(str, asked.tables))
    for run in runs.history(kind="values"):
        before = run.options.get("scope") or {}
        if sorted(run.tables) == names and before.get("sample") == asked.scope.sample:
            same = asked.resume and run.dead
            return replace(asked.scope, turn=int(before.get("turn", 0)) + (not same))
    return asked.scope


def _states(config: PipelineConfig, tables: Sequence[TableName]) -> tuple[dict[str, Any], ...]:
    """Each table's state, as `status` has it; without the messages of others' errors. Nothing where it cannot be had."""
    try:
        seen = status.collect(config).tables
    except LakesyncError:
        return ()
    wanted = {str(t) for t in tables}
    return tuple(
        {
            "table": view.table,
            "phase": view.phase,
            "lag_ms": view.lag_ms,
            "rows": view.lake.rows if view.lake else None,
            "version": view.lake.version if view.lake else None,
            "epoch": view.lake.epoch if view.lake else None,
            "position": view.lake.position if view.lake else None,
            "gtids": view.lake.gtids if view.lake else None,
            "committed_ms": view.lake.committed_ms if view.lake else None,
            "error": view.error,
        }
        for view in seen
        if view.phase != "removed" and (not wanted or view.table in wanted)
    )
