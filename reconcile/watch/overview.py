"""What `lakesync status` and the metrics say of checks and alerts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cdc.config import PipelineConfig
from reconcile.database import NAME
from reconcile.runs import REST, Finding, Runs
from reconcile.watch.alerts import Alerts
from reconcile.watch.node import planned

FINDINGS_SHOWN = 1000


@dataclass(frozen=True)
class Checked:
    """What the newest check of a kind said of a table. `differences` it found: rows (values), or equations (ledger). `unresolved` of all that
    were ever found, since `since_us`: a sample that agrees says nothing of what another found. Times are µs since 1970."""

    check: str
    table: str
    verdict: str
    at_us: int
    run: int
    differences: int
    whole: bool
    unresolved: int
    since_us: int | None


@dataclass(frozen=True)
class Scheduled:
    """A check of `reconcile:`. `due_us`: when it begins, or should have begun; `running_us`: since when it runs; `error`: why the last one failed."""

    check: str
    schedule: str
    due_us: int
    running_us: int | None
    error: dict[str, Any] | None


@dataclass(frozen=True)
class Found:
    """One thing that differs: a row by its key, an equation by its name; `key` is empty where it stands for `rows` that are not named."""

    check: str
    table: str
    key: str
    what: str
    columns: tuple[str, ...]
    rows: int
    since_us: int


@dataclass(frozen=True)
class Checks:
    """All of it. `findings`: the first of those that are unresolved."""

    verdicts: tuple[Checked, ...]
    schedules: tuple[Scheduled, ...]
    findings: tuple[Found, ...]


def look(config: PipelineConfig) -> tuple[Checks | None, tuple[dict[str, Any], ...]]:
    """The checks, None if there never was one and none is to be, and the alerts (`Alert.to_dict`). Raises `StateError`."""
    if not (config.state / NAME).exists():
        return None, ()
    runs = Runs(config.state)
    unresolved, verdicts = runs.unresolved(), []
    for one in runs.verdicts():
        count, since = unresolved.get((one.kind, one.table), (0, None))
        verdicts.append(
            Checked(one.kind, one.table, one.verdict, one.at_us, one.run, one.differences, one.whole, count, since)
        )
    checks = Checks(
        tuple(verdicts),
        tuple(_scheduled(config, runs)),
        tuple(_found(f) for f in runs.findings(limit=FINDINGS_SHOWN)),
    )
    if not (config.reconcile or config.alerts):
        return checks, ()  # nobody looks any more: what was open then says nothing
    return checks, tuple(a.to_dict() for a in Alerts(config.state).all())


def _scheduled(config: PipelineConfig, runs: Runs) -> list[Scheduled]:
    found = []
    for plan in planned(config.reconcile, runs, note=False):
        last = plan.last
        running = last.begun_us if last and last.ended_us is None and not last.dead else None
        newest = runs.last(plan.kind)
        error = (newest.report or {}).get("error") if newest and newest.verdict == "failed" else None
        found.append(Scheduled(plan.kind, plan.schedule, plan.due_us, running, error))
    return found


def _found(one: Finding) -> Found:
    key = "" if one.key == REST else one.key
    return Found(one.kind, one.table, key, one.what, one.columns, one.rows, one.since_us)
