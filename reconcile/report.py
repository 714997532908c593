"""What reconciliation found: for people on a terminal, and as JSON for machines.

The JSON form has `version`; it grows, and a field's meaning does not change within a version.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdc.errors import ConfigError
from reconcile.ledger import NOW, LedgerReport
from reconcile.values import ValuesReport

VERSION = 1
DIFFERENCES_SHOWN = 10


@dataclass(frozen=True)
class Report:
    """One reconciliation; a part that was not asked for is None."""

    pipeline: str
    at_us: int
    ledger: LedgerReport | None = None
    values: ValuesReport | None = None

    @property
    def agrees(self) -> bool:
        """The verdict: everything that was asked for was checked and holds."""
        return (self.ledger is None or self.ledger.closes) and (self.values is None or self.values.equal)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "version": VERSION,
            "pipeline": self.pipeline,
            "at_us": self.at_us,
            "agrees": self.agrees,
            "ledger": self.ledger and self.ledger.to_dict(),
            "values": self.values and self.values.to_dict(),
        }

    def write(self, path: Path) -> None:
        """As JSON into a file, whole or not at all. Raises `ConfigError` for a path that cannot be written."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(orjson.dumps(self.to_dict(), option=orjson.OPT_INDENT_2) + b"\n")
            temporary.replace(path)
        except OSError as error:
            raise ConfigError(f"the report cannot be written: {error.strerror}", where=str(path)) from error

    def print(self, console: Console) -> None:
        """As text: a line a table, then what is wrong, then the verdict."""
        if self.ledger:
            _print_ledger(console, self.ledger)
        if self.values:
            _print_values(console, self.values)


def _print_ledger(console: Console, report: LedgerReport) -> None:
    table = Table(
        "table", "epochs", "captured", "logged", "merged", "in flight", "rows now", "ledger", box=None, pad_edge=False
    )
    for column in table.columns[1:7]:
        column.justify = "right"
    for one in report.tables:
        sides = {e.name: e for e in one.equations}
        captured, merged = sides.get("captured = logged"), sides.get("merged = superseded + duplicate + effective")
        now = sides.get(NOW)
        table.add_row(
            one.table,
            f"{one.first + 1:,}-{one.last:,}" if one.last > one.first else "none yet",
            f"{captured.left:,}" if captured else f"{one.equations[0].left:,} transactions",
            f"{captured.right:,}" if captured else "",
            f"{merged.left:,}" if merged else "",
            f"{one.in_flight:,}" if captured else "",
            f"{now.right:,}" if now else "",
            _mark(one.closes, "closes", "DOES NOT CLOSE"),
        )
    console.print(table)
    for one in report.tables:
        for equation in one.equations:
            if not equation.holds:
                where = f", {equation.where}" if equation.where else ""
                console.print(
                    f"  {one.table}: {equation.name}: {equation.left:,} and {equation.right:,}, gap {equation.gap:+,}{where}"
                )
        if one.note:
            console.print(f"  {one.table}: {one.note}")
    console.print("Ledger: " + ("closes." if report.closes else "DOES NOT CLOSE."))


def _print_values(console: Console, report: ValuesReport) -> None:
    table = Table("table", "source rows", "lake rows", "re-read", "differ", "values", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    for one in report.tables:
        table.add_row(
            one.table,
            f"{one.source_rows:,}",
            f"{one.lake_rows:,}",
            f"{one.settled:,}",
            f"{one.different:,}" + (f" + {one.unsettled:,} unsettled" if one.unsettled else ""),
            _mark(one.equal, one.note or "equal", "DIFFERENT" if one.different else "NOT SETTLED"),
        )
    console.print(table)
    for one in report.tables:
        for difference in one.differences[:DIFFERENCES_SHOWN]:
            columns = f" in {', '.join(difference.columns)}" if difference.columns else ""
            console.print(f"  {one.table} key {difference.key}: {difference.kind}{columns}")
        if one.different > DIFFERENCES_SHOWN:
            console.print(f"  … and {one.different - DIFFERENCES_SHOWN:,} more")
    if report.equal:
        console.print(f"Values: equal, at epoch {report.epoch:,}.")
    else:
        console.print("Values: NOT EQUAL.")
        wrong = [one.table for one in report.tables if one.different]
        if wrong:
            console.print(
                f"  → `lakesync snapshot {wrong[0]}` reads it again; with --key, --from and --to, some of its rows"
            )


def _mark(good: bool, yes: str, no: str) -> Text:
    return Text(yes, style="green") if good else Text(no, style="bold red")
