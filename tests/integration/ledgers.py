"""Pipelines whose ledger is closed in this process: `Rig`s, and what does not hold in their ledgers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import orjson

from cdc.config import PipelineConfig, load
from cdc.epoch import CommitRecord
from cdc.log import open_log
from cdc.trace.client import client
from reconcile.ledger import close as ledger
from reconcile.ledger.close import Edge, LedgerReport, TableLedger
from reconcile.ledger.equations import Equation
from tests.faults.rig import Rig


class Imbalance(NamedTuple):
    """An equation that does not hold; `epochs` of its first narrowest place, and its gap there."""

    table: str
    equation: str
    node: str
    gap: int
    epochs: tuple[int, int]


def copied(base: Rig, folder: Path) -> Rig:
    """A pipeline of its own, of everything but the source. ClickHouse's folder cannot be copied; the trace is made again."""
    shutil.copytree(base.folder, folder, ignore=shutil.ignore_patterns("trace", "trace.json"))
    settings = {k: v for k, v in orjson.loads(base.config.read_bytes()).items() if k in ("tables", "merge", "capture")}
    return Rig(folder, base.server, base.tables, settings=settings)


def config_of(rig: Rig) -> PipelineConfig:
    """Its file."""
    return load(rig.config)


def closed(
    rig: Rig,
    *,
    since: Edge | None = None,
    until: Edge | None = None,
    proven: Mapping[str, int] | None = None,
    keep_s: float | None = None,
) -> LedgerReport:
    """Its ledger; `keep_s`: with a trace that is kept for so long."""
    config = config_of(rig)
    traced = config.trace
    assert traced is not None
    if keep_s is not None:
        traced = traced.model_copy(update={"keep": keep_s})
        config = config.model_copy(update={"trace": traced})
    with client(traced) as opened, closing(open_log(config.log, config.name)) as log:
        report = ledger.close(opened, config, log, since=since, until=until, proven=proven)
    orjson.dumps(report.to_dict())
    return report


def trace(rig: Rig, *statements: str) -> None:
    """Run these in the trace; DELETE as ALTER TABLE … DELETE."""
    config = config_of(rig)
    assert config.trace is not None
    with client(config.trace) as opened:
        for statement in statements:
            opened.command(statement, settings={"mutations_sync": 2})


def records(rig: Rig) -> list[CommitRecord]:
    """What its log has."""
    config = config_of(rig)
    with closing(open_log(config.log, config.name)) as log:
        return list(log.records())


def of(report: LedgerReport, table: str) -> TableLedger:
    """One table's."""
    return next(t for t in report.tables if t.table == table)


def equation(found: TableLedger, name: str) -> Equation:
    """The equation of this name."""
    return next(e for e in found.equations if e.name == name)


def imbalances(report: LedgerReport) -> list[Imbalance]:
    """Everything that does not hold, place by place."""
    found = []
    for table in report.tables:
        for one in table.equations:
            if one.holds:
                continue
            places = [(gap.gap, gap.epochs) for gap in one.wrong] or [(one.gap, one.epochs)]
            found += [Imbalance(table.table, one.name, one.node, *place) for place in places]
    return found
