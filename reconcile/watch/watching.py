"""What is wrong with a pipeline now, as alerts say it, and the node `alerts` that has it said.

differs/<check>/<table>   something that a check found is not known to be put right
late/<check>              a scheduled check failed, or has not ended in time
lag/<table>               the lake is behind the source by more than `alerts.lag`
stopped/<table>           the table does not go on by itself
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cdc import watermark
from cdc.config import PipelineConfig
from cdc.errors import LakesyncError
from cdc.journal import logger
from cdc.names import TableName
from cdc.proving import AlertsConfig
from cdc.state import State, TableStatus
from cdc.units import format_duration
from reconcile.runs import REST, Run, Runs, TableVerdict
from reconcile.watch.alerts import About, Alerts, Sender
from reconcile.watch.node import Planned, planned

LOG = logger("alerts")
TICK_S = 1.0
"""Between looks: what differs is in a local file."""
LAG_EVERY_S = 5.0
OVER_AT = 0.8
"""Of the limit: where a lag is over."""
_GOING = ("ready", "reading")
BEAT_S = 5.0
_LOOKED = "alerts"


@dataclass(frozen=True)
class Wrong:
    """By key. `passed`: what was found since the last look, and put right already. `known`: of which keys it would be found."""

    found: dict[str, About] = field(default_factory=dict)
    passed: dict[str, About] = field(default_factory=dict)
    known: Callable[[str], bool] = lambda _: True


def differing(verdicts: Sequence[TableVerdict], runs: Runs, gone: frozenset[str], after_us: int) -> Wrong:
    """What checks found; nothing of tables that are `gone`. `verdicts` were read before; those since `after_us` are new."""
    wrong = Wrong()
    for (kind, table), (count, _) in runs.unresolved().items():
        if table not in gone:
            wrong.found[f"differs/{kind}/{table}"] = _differs(runs, kind, table, count)
    for one in verdicts:
        key = f"differs/{one.kind}/{one.table}"
        if one.verdict == "differs" and one.at_us > after_us and key not in wrong.found and one.table not in gone:
            what = f"{_rows(one.differences)} differed from the source; that is put right"
            if one.kind == "ledger":
                what = "the ledger did not close, and does now"
            wrong.passed[key] = About("differs", f"{one.table}: {what}", "", one.table, one.kind, one.differences)
    return wrong


def _differs(runs: Runs, kind: str, table: str, count: int) -> About:
    if kind == "values":
        hint = f"`lakesync reconcile {table} --values --repair` reads them again; `lakesync status` names them"
        return About(
            "differs",
            f"{table}: {_rows(count)} differ{'s' if count == 1 else ''} from the source",
            hint,
            table,
            kind,
            count,
        )
    named = [
        f"{f.key}{f', {f.what}' if f.what else ''}"
        for f in runs.findings(table, 20)
        if f.kind == kind and f.key != REST
    ]
    which = f": {named[0]}" if named else ""
    more = f", and {len(named) - 1} more" if len(named) > 1 else ""
    hint = f"`lakesync reconcile {table} --values` says whether rows differ"
    return About("differs", f"{table}: the ledger does not close{which}{more}", hint, table, kind, count)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def late(plans: list[Planned], runs: Runs, within_s: float, now_us: int) -> dict[str, About]:
    """Scheduled checks that failed, or are not over in time. One that was asked for and succeeded since counts as well."""
    found = {}
    for plan in plans:
        newest = runs.last(plan.kind, report=False)
        what, hint = "", "`lakesync status` shows the node `reconcile`; it runs with `lakesync run`"
        if newest and newest.verdict == "failed" and (newest := runs.run(newest.number)):
            error = (newest.report or {}).get("error") or {}
            what, hint = f"failed: {error.get('what', 'no reason given')}", str(error.get("hint", ""))
        running = _running(plan.last)
        if running and now_us - running.begun_us > within_s * 1e6:
            what = f"began {_ago(now_us - running.begun_us)} ago and has not ended"
        elif not running and now_us - plan.due_us > within_s * 1e6:
            what = f"was due {_ago(now_us - plan.due_us)} ago and has not begun"
        if what:
            found[f"late/{plan.kind}"] = About("late", f"the check of {plan.kind} {what}", hint, None, plan.kind)
    return found


def _running(run: Run | None) -> Run | None:
    return run if run and run.ended_us is None and not run.dead else None


def _ago(us: int) -> str:
    return format_duration(float(max(1, us // 1_000_000)) if us < 120e6 else float(us // 60_000_000 * 60))


def stopped(tables: dict[TableName, TableStatus]) -> dict[str, About]:
    """Tables that have stopped."""
    return {
        f"stopped/{table}": About(
            "stopped",
            f"{table} stopped: {(status.error or {}).get('what', 'no reason given')}",
            str((status.error or {}).get("hint", "")),
            str(table),
        )
        for table, status in tables.items()
        if status.phase == "stopped"
    }


def lagging(
    marks: dict[TableName, watermark.Watermark], tables: dict[TableName, TableStatus], limit_s: float, now_us: int
) -> Wrong:
    """Tables that are ready and too far behind. Of one without a watermark nothing is known; one that is hardly less behind than the limit is
    not over it: a lag that goes up and down about the limit is one alert."""
    known = {
        f"lag/{table}"
        for table, mark in marks.items()
        if (lag_ms := mark.lag_ms(now_us)) is not None
        and not (limit_s * 1000 * OVER_AT < lag_ms <= limit_s * 1000 and tables[table].phase in _GOING)
    }
    there = {f"lag/{table}" for table in marks}
    wrong = Wrong(known=lambda key: key in known or key not in there)
    for table, mark in marks.items():
        lag_ms = mark.lag_ms(now_us)
        if lag_ms is not None and lag_ms > limit_s * 1000 and tables[table].phase in _GOING:
            what = f"{table}: the lake is {_ago(lag_ms * 1000)} behind the source"
            wrong.found[f"lag/{table}"] = About(
                "lag", what, mark.held or "`lakesync status` shows what it waits for", str(table)
            )
    return wrong


class Watch:
    """Looks, and brings the store of alerts up to date."""

    def __init__(self, config: PipelineConfig, state: State, runs: Runs, alerts: Alerts) -> None:
        self.config, self.state, self.runs, self.alerts = config, state, runs, alerts
        self.given = config.alerts or AlertsConfig()
        self.lag, self.lag_at = Wrong(known=lambda _: False), -1e9

    def look(self) -> None:
        """Once. Raises `StateError`."""
        now_us, tables = time.time_ns() // 1000, self.state.tables()
        gone = frozenset(str(t) for t, s in tables.items() if s.phase == "removed")
        # Before what is unresolved: a run that ends in between is seen by it now, and by its verdict the next time.
        verdicts, before = self.runs.verdicts(), self.alerts.looked(_LOOKED)
        differs = differing(verdicts, self.runs, gone, before)
        found = differs.found | stopped(tables)
        found |= late(planned(self.config.reconcile, self.runs), self.runs, self.given.late, now_us)
        lag = self._lag(tables, now_us)
        self.alerts.update(
            found | lag.found, lambda key: not key.startswith("lag/") or lag.known(key), passed=differs.passed
        )
        if (newest := max((v.at_us for v in verdicts), default=0)) > before:
            self.alerts.set_looked(_LOOKED, newest)

    def _lag(self, tables: dict[TableName, TableStatus], now_us: int) -> Wrong:
        if self.given.lag is None:
            return Wrong()
        if time.monotonic() - self.lag_at > LAG_EVERY_S:
            self.lag_at = time.monotonic()
            try:
                self.lag = lagging(watermark.of_tables(self.config, self.state), tables, self.given.lag, now_us)
            except LakesyncError as error:
                LOG.warning("lag-not-known", code=error.code, what=error.what)
                self.lag = Wrong(known=lambda _: False)
        return self.lag


def run(config: PipelineConfig, state: State, stop: threading.Event) -> None:
    """The node: until `stop` is set. Raises `StateError` where the store cannot be used."""
    given = config.alerts or AlertsConfig()
    alerts = Alerts(config.state, given.repeat)
    watch, sender = Watch(config, state, Runs(config.state), alerts), Sender(config, alerts, stop)
    beaten = -1e9
    while not stop.is_set():
        watch.look()
        sender.send()
        if time.monotonic() - beaten > BEAT_S:
            beaten = time.monotonic()
            state.beat("alerts", {"open": sum(a.over_us is None for a in alerts.all())})
        stop.wait(TICK_S)
