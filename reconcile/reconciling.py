"""One reconciliation from its beginning to its report: which parts, in which order, and what is kept of them.

Repair comes after the comparison that names the rows, and the ledger last, so that it closes over what was repaired too. A part that
fails does not take the others with it: what was found is reported and recorded, and the error beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cdc import status
from cdc.config import PipelineConfig
from cdc.errors import ConfigError, LakesyncError, TraceError
from cdc.log import open_log
from cdc.log.base import Log
from cdc.names import TableName
from cdc.state import State
from cdc.trace.client import client as open_trace
from reconcile import ledger as ledger_of
from reconcile import values as values_of
from reconcile.report import Report
from reconcile.runs import Kind, Runs, Trigger, Verdict
from reconcile.scope import WHOLE, Scope

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

LATENCY_BUCKETS = 60
"""At most so many points in time of each percentile."""


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
        self.scope = _turned(runs, asked)
        self.found = Report(config.name, time.time_ns() // 1000, asked=_described(asked, self.scope))

    def report(self) -> Report:
        """All parts, one after the other."""
        if self.asked.values:
            self._part("values", self._values)
        if self.asked.ledger:
            self._part("ledger", self._ledger)
        if self.found.errors and self.found.ledger is None and self.found.values is None:
            raise self.found.errors[0]
        return self.found

    def _part(self, kind: Kind, do: Callable[[int], Verdict]) -> None:
        """One part, recorded at its end: what is found is not lost when a later one does not come to its own."""
        options = self._options(kind)
        resumed = self.runs.unfinished(kind, self.asked.tables, options) if self.asked.resume else None
        run = resumed or self.runs.begin(kind, self.asked.trigger, self.asked.tables, options)
        self.found = replace(self.found, runs={**self.found.runs, kind: run})
        try:
            verdict = do(run)
        except LakesyncError as error:
            self.found = replace(self.found, errors=(*self.found.errors, error))
            self.runs.end(run, "failed", {"error": error.to_dict()})
            return
        self.found = replace(
            self.found, tables=_states(self.config, self.asked.tables), seconds=time.monotonic() - self.began
        )
        self.runs.end(run, verdict, self.found.to_dict())

    def _options(self, kind: Kind) -> dict[str, Any]:
        if kind == "ledger":
            return {n: v for n, v in (("since", self.asked.since), ("until", self.asked.until)) if v is not None}
        return {"scope": self.scope.to_dict()} | ({"show_values": True} if self.asked.show_values else {})

    def _values(self, run: int) -> Verdict:
        if not self.asked.repair:
            return self._compared(run)
        from reconcile import repair  # late: who only looks needs none of it

        config, log, state, runs = self.config, self.log, self.state, self.runs
        dry_run, follow_s = self.asked.dry_run, self.asked.follow_s
        repairing = runs.begin(
            "repair", self.asked.trigger, self.asked.tables, self._options("repair") | {"dry_run": dry_run}
        )
        self.found = replace(self.found, runs={**self.found.runs, "repair": repairing})
        try:
            # A table that has a key twice has stopped, and cannot be compared until it goes on.
            mended = repair.mend(
                config, log, state, runs, repairing, self.asked.tables, dry_run=dry_run, follow_s=follow_s
            )
            verdict = self._compared(run)
            assert self.found.values is not None
            done = repair.repair(
                config,
                log,
                state,
                runs,
                repairing,
                self.found.values,
                dry_run=dry_run,
                follow_s=follow_s,
                show_values=self.asked.show_values,
            ).with_mended(mended)
        except LakesyncError as error:
            runs.end(repairing, "failed", {"error": error.to_dict()})
            if self.found.values is None:
                raise
            self.found = replace(self.found, errors=(*self.found.errors, error))
            return "differs" if not self.found.values.equal else "agrees"
        self.found = replace(self.found, repair=done.to_dict())
        runs.end(repairing, "agrees" if done.ok and not dry_run else "differs", self.found.to_dict())
        return verdict

    def _compared(self, run: int) -> Verdict:
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
        self.found = replace(self.found, values=compared)
        return "agrees" if compared.equal else "differs"

    def _ledger(self, run: int) -> Verdict:
        assert self.config.trace is not None
        with open_trace(self.config.trace) as client:
            closed = ledger_of.close(client, self.config, self.log, self.asked.tables)
            self.found = replace(self.found, ledger=closed, **self._traced(client))
        return "agrees" if closed.closes else "differs"

    def _traced(self, client: Client) -> dict[str, Any]:
        """What the picture of the flow and the chart of latency are drawn from."""
        return {}


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
    for run in runs.history():
        before = run.options.get("scope") or {}
        if run.kind == "values" and sorted(run.tables) == names and before.get("sample") == asked.scope.sample:
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
