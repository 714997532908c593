"""A report on a terminal: a line a table, then what is wrong, then the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconcile.ledger import NOW, LedgerReport

if TYPE_CHECKING:
    from reconcile.found import ValuesReport
    from reconcile.report import Report

DIFFERENCES_SHOWN = 10
TABLES_SHOWN = 40
"""Of more tables than these only those are shown in which something is wrong; the others are counted."""


def show(console: Console, report: Report, *, hide_keys: bool = False) -> None:
    """Print it."""
    if report.ledger:
        _ledger(console, report.ledger)
    if report.values:
        _values(console, report.values, advise=report.repair is None, hide_keys=hide_keys)
    if report.repair:
        _repair(console, report.repair)
    console.print(report.verdict, style="green" if report.agrees else "bold red", soft_wrap=True)


def _ledger(console: Console, report: LedgerReport) -> None:
    table = Table(
        "table", "epochs", "captured", "logged", "merged", "in flight", "rows now", "ledger", box=None, pad_edge=False
    )
    for column in table.columns[1:7]:
        column.justify = "right"
    few = len(report.tables) <= TABLES_SHOWN
    for one in report.tables:
        if not few and one.closes:
            continue
        sides = {e.name: e for e in one.equations}
        captured, merged = sides.get("captured = logged"), sides.get("merged = superseded + duplicate + effective")
        now = sides.get(NOW)
        first = one.equations[0].left if one.equations else 0
        table.add_row(
            one.table,
            f"{one.first + 1:,}-{one.last:,}" if one.last > one.first else "none yet",
            f"{captured.left:,}" if captured else f"{first:,} transactions",
            f"{captured.right:,}" if captured else "",
            f"{merged.left:,}" if merged else "",
            f"{one.in_flight:,}" if captured else "",
            f"{now.right:,}" if now else "",
            _mark(one.closes, "closes", "DOES NOT CLOSE"),
        )
    if table.row_count:
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
    closing = sum(one.closes for one in report.tables)
    of = "" if few else f" for {closing:,} of {len(report.tables):,} tables"
    console.print("Ledger: " + (f"closes{of}." if report.closes else "DOES NOT CLOSE."))


def _values(console: Console, report: ValuesReport, *, advise: bool, hide_keys: bool) -> None:
    table = Table("table", "source rows", "lake rows", "re-read", "differ", "values", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    few = len(report.tables) <= TABLES_SHOWN
    for one in report.tables:
        if not few and one.equal:
            continue
        table.add_row(
            one.table,
            f"{one.source_rows:,}",
            f"{one.lake_rows:,}",
            f"{one.settled:,}",
            f"{'' if one.complete else 'at least '}{one.different:,}"
            + (f" + {one.unsettled:,} unsettled" if one.unsettled else ""),
            _mark(one.equal, one.note or "equal", "DIFFERENT" if one.different else "NOT SETTLED"),
        )
    if table.row_count:
        console.print(table)
    for one in report.tables:
        for number, difference in enumerate(one.differences[:DIFFERENCES_SHOWN], 1):
            columns = f" in {', '.join(difference.columns)}" if difference.columns else ""
            key = f"#{number}" if hide_keys else difference.key
            console.print(f"  {one.table} key {key}: {difference.kind}{columns}")
            _sides(console, difference.before, difference.after)
        if one.different > DIFFERENCES_SHOWN:
            console.print(f"  … and {one.different - DIFFERENCES_SHOWN:,} more")
    if report.equal:
        of = "" if few else f" in {len(report.tables):,} tables"
        console.print(f"Values: equal{of}, at epoch {report.epoch:,}.")
        return
    console.print("Values: NOT EQUAL.")
    wrong = [one.table for one in report.tables if one.different]
    if wrong and advise:
        console.print(f"  → `lakesync reconcile {wrong[0]} --repair` reads again what differs")


def _sides(console: Console, before: Mapping[str, str | None] | None, after: Mapping[str, str | None] | None) -> None:
    """Values, where they were asked for."""
    for name in dict.fromkeys([*(before or ()), *(after or ())]):
        console.print(f"    {name}: lake {_cell(before, name)}, source {_cell(after, name)}")


def _cell(side: Mapping[str, str | None] | None, name: str) -> str:
    if side is None:
        return "(no row)"
    value = side.get(name)
    return "NULL" if value is None else repr(value)


def _repair(console: Console, repair: Mapping[str, Any]) -> None:
    for one in repair["tables"]:
        if one.get("what"):
            console.print(f"  {one['table']}: {one['what']}")


def _mark(good: bool, yes: str, no: str) -> Text:
    return Text(yes, style="green") if good else Text(no, style="bold red")
