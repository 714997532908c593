"""What reconciliation found: as JSON for machines, as a page for people, as text on a terminal.

The JSON form has `version` (docs/reports.md, configs/report.schema.json); within a version it grows, and a field's meaning does not change. The
page is made from the JSON form, so a run that is kept can be shown again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console

from cdc.errors import ConfigError, LakesyncError
from reconcile.checks import CHECKS
from reconcile.ledger.close import LedgerReport
from reconcile.report import text
from reconcile.report import verdict as verdicts
from reconcile.values.found import ValuesReport

VERSION: Final = 2
SUFFIXES: Final = (".json", ".html", ".htm")


@dataclass(frozen=True)
class Report:
    """One reconciliation; a part that was not asked for, or that failed, is None. Times are µs since 1970."""

    pipeline: str
    at_us: int
    ledger: LedgerReport | None = None
    values: ValuesReport | None = None
    repair: Mapping[str, Any] | None = None
    """`RepairReport.to_dict`."""
    seconds: float = 0.0
    runs: Mapping[str, int] = field(default_factory=dict)
    """The number under which each part is kept (`reconcile.runs`)."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for: parts, tables, scope, window."""
    flow: tuple[Mapping[str, Any], ...] = ()
    """Per node and table what went in and out: `cdc.trace.queries.Flow`."""
    latency: Mapping[str, Any] | None = None
    """`buckets`, all tables together over time, and `tables`, each over all the time (`cdc.trace.queries.Latency`)."""
    tables: tuple[Mapping[str, Any], ...] = ()
    """The state of each table, as `status` has it."""
    errors: tuple[LakesyncError, ...] = ()
    """What could not be done."""

    @property
    def state(self) -> verdicts.State:
        """The verdict in a word."""
        return verdicts.state(self.ledger, self.values, self.repair, self._failed)

    @property
    def agrees(self) -> bool:
        """Whether everything that was asked for was checked, and holds now."""
        return self.state in ("agrees", "repaired")

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        return verdicts.sentence(self.state, self.ledger, self.values, self.repair, self._failed)

    @property
    def _failed(self) -> list[dict[str, Any]]:
        return [error.to_dict() for error in self.errors]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "version": VERSION,
            "lakesync": version("lakesync"),
            "pipeline": self.pipeline,
            "at_us": self.at_us,
            "seconds": round(self.seconds, 3),
            "runs": dict(self.runs),
            "asked": dict(self.asked),
            "agrees": self.agrees,
            "state": self.state,
            "verdict": self.verdict,
            "details": verdicts.details(self.ledger, self.values, self.repair, self._failed),
            "ledger": self.ledger and self.ledger.to_dict(),
            "values": self.values and self.values.to_dict(),
            "repair": self.repair and dict(self.repair),
            "flow": [dict(one) for one in self.flow],
            "latency": self.latency and dict(self.latency),
            "tables": [dict(one) for one in self.tables],
            "checks": checks(),
            "errors": self._failed,
        }

    def kept(self) -> dict[str, Any]:
        """The JSON form as it is kept: without what is the same in every report, and of a scheduled run that found nothing only the verdicts,
        since there are hundreds of them a day."""
        data = self.to_dict()
        del data["checks"]
        if self.asked.get("trigger") == "schedule" and self.state == "agrees":
            data |= {"flow": [], "latency": None, "tables": []}
            if data["ledger"]:
                data["ledger"]["tables"] = [t | {"equations": []} for t in data["ledger"]["tables"]]
        return data

    def write(self, path: Path) -> None:
        """Into a file, whole or not at all, in the form that its suffix names. Raises `ConfigError` for a path that cannot be written."""
        write(self.to_dict(), path)

    def print(self, console: Console) -> None:
        """As text."""
        text.show(console, self.to_dict())


def checks() -> list[dict[str, Any]]:
    """What each check can and cannot see, for the JSON form."""
    return [
        {"name": c.name, "title": c.title, "how": c.how, "sees": list(c.sees), "blind": list(c.blind)} for c in CHECKS
    ]


def write(report: Mapping[str, Any], path: Path) -> None:
    """A report in its JSON form, as `Report.write`."""
    if path.suffix.lower() == ".json":
        data = orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n"
    else:
        from reconcile.report import html

        data = html.page(report).encode()
    temporary = _beside(path)
    try:
        temporary.touch(mode=0o600)  # keys are of rows, and may be of people
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def check_path(path: Path) -> None:
    """Raise `ConfigError` for a path to which no report can be written: before the work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            "not a kind of report", where=str(path), hint="name a file that ends in .json (machines) or .html (people)"
        )
    if path.is_dir():
        raise ConfigError("the report cannot be written: it is a folder", where=str(path), hint="name a file in it")
    temporary = _beside(path)
    try:
        temporary.touch(mode=0o600)
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def without_keys(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without keys of rows, and without values: what differs is counted, and has numbers in place of keys."""
    hidden = dict(report) | {"keys_hidden": True}
    asked = dict(report.get("asked") or {})
    if scope := asked.get("scope"):
        asked["scope"] = {name: value for name, value in scope.items() if name not in ("low", "high", "between")}
    hidden["asked"] = asked
    for part in ("values", "repair"):
        if of := report.get(part):
            hidden[part] = dict(of) | {"tables": [_table_without_keys(t) for t in of["tables"]]}
    return hidden


def _table_without_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    shown = [
        {k: v for k, v in difference.items() if k not in ("before", "after")} | {"key": f"#{number}"}
        for number, difference in enumerate(table.get("differences") or (), 1)
    ]
    return dict(table) | {"differences": shown} | ({"range": "a part of the rows"} if table.get("range") else {})


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{os.getpid()}")


def _unwritable(path: Path, error: OSError) -> ConfigError:
    hint = (
        "make the folder first" if isinstance(error, FileNotFoundError) else "name a place that this user may write to"
    )
    return ConfigError(f"the report cannot be written: {error.strerror}", where=str(path), hint=hint)
