"""A report on a terminal: a line a table, then what is wrong, then the verdict. Made from the JSON form, so that a run that is kept can be
shown again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconcile.ledger.balance import FOLDED, LOGGED, NOW

DIFFERENCES_SHOWN = 10
TABLES_SHOWN = 40
"""Of more tables than these only those are shown in which something is wrong; the others are counted."""

_Json = Mapping[str, Any]


def show(console: Console, report: _Json) -> None:
    """Print it."""
    if report["ledger"]:
        _ledger(console, report["ledger"])
    if report["values"]:
        _values(console, report["values"], report["repair"])
    if report["repair"]:
        _repair(console, report["repair"])
    console.print(report["verdict"], style="green" if report["agrees"] else "bold red", soft_wrap=True)


def _ledger(console: Console, report: _Json) -> None:
    table = Table(
        "table", "epochs", "captured", "logged", "merged", "in flight", "rows now", "ledger", box=None, pad_edge=False
    )
    for column in table.columns[1:7]:
        column.justify = "right"
    tables = report["tables"]
    few = len(tables) <= TABLES_SHOWN
    for one in tables:
        if not few and one["closes"]:
            continue
        sides = {e["name"]: e for e in one["equations"]}
        captured, merged, now = sides.get(LOGGED), sides.get(FOLDED), sides.get(NOW)
        source = one["table"].startswith("(")
        transactions = f"{one['equations'][0]['right']:,} transactions" if source and one["equations"] else ""
        table.add_row(
            one["table"],
            f"{one['first'] + 1:,}-{one['last']:,}" if one["last"] > one["first"] else "none yet",
            f"{captured['left']:,}" if captured else transactions,
            f"{captured['right']:,}" if captured else "",
            f"{merged['left']:,}" if merged else "",
            "" if source else f"{one['in_flight']:,}",
            f"{now['right']:,}" if now else "",
            _mark(one["closes"], "closes", "DOES NOT CLOSE"),
        )
    if table.row_count:
        console.print(table)
    for one in tables:
        for equation in one["equations"]:
            if not equation["holds"]:
                left, right, gap = (
                    f"{equation[side]:{'+' if side == 'gap' else ''},}" for side in ("left", "right", "gap")
                )
                where = f", {equation['where']}" if equation["where"] else ""
                console.print(f"  {one['table']}: {equation['name']}: {left} and {right}, gap {gap}{where}")
        if one["note"]:
            console.print(f"  {one['table']}: {one['note']}")
    closing = sum(one["closes"] for one in tables)
    of = "" if few else f" for {closing:,} of {len(tables):,} tables"
    console.print(
        "Ledger: " + (f"closes{of}." if report["closes"] else f"DOES NOT CLOSE{'' if few else f'; it does{of}'}.")
    )


def _values(console: Console, report: _Json, repair: _Json | None) -> None:
    mended = {one["table"] for one in repair["tables"] if one["ok"]} if repair and not repair["dry_run"] else set()
    table = Table("table", "source rows", "lake rows", "re-read", "differ", "values", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    tables = report["tables"]
    few = len(tables) <= TABLES_SHOWN
    for one in tables:
        if not few and one["equal"]:
            continue
        unsettled = f" + {one['unsettled']:,} unsettled" if one["unsettled"] else ""
        table.add_row(
            one["table"],
            f"{one['source_rows']:,}",
            f"{one['lake_rows']:,}",
            f"{one['settled']:,}",
            f"{'' if one['complete'] else 'at least '}{one['different']:,}{unsettled}",
            Text("repaired", style="green")
            if one["table"] in mended and not one["equal"]
            else _mark(one["equal"], one["note"] or "equal", "NOT SETTLED" if not one["different"] else "DIFFERENT"),
        )
    if table.row_count:
        console.print(table)
    for one in tables:
        shown = one["differences"][:DIFFERENCES_SHOWN]
        for difference in shown:
            columns = f" in {', '.join(difference['columns'])}" if difference["columns"] else ""
            line = f"  {one['table']} key {difference['key']}: {difference['kind']}{columns}"
            console.print(printable(line))
            _sides(console, difference)
        if one["different"] > len(shown):
            console.print(f"  … and {one['different'] - len(shown):,} more")
    if report["equal"]:
        if all(one["note"] for one in tables):
            console.print("Values: no table was compared.")
            return
        of = "" if few else f" in {len(tables):,} tables"
        console.print(f"Values: equal{of}, at epoch {report['epoch']:,}.")
        return
    wrong = [one["table"] for one in tables if not one["equal"] and one["table"] not in mended]
    console.print("Values: NOT EQUAL." if wrong else "Values: not equal at first.")
    if wrong and not repair:
        console.print(f"  → `lakesync reconcile {wrong[0]} --repair` reads again what differs")


def printable(text: str) -> str:
    """On one line, and without anything that a terminal obeys: keys are what somebody wrote into a table."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _sides(console: Console, difference: _Json) -> None:
    """Values, where they were asked for."""
    lake, source = difference.get("before"), difference.get("after")
    for name in dict.fromkeys([*(lake or ()), *(source or ())]):
        console.print(f"    {printable(name)}: lake {_cell(lake, name)}, source {_cell(source, name)}")


def _cell(side: Mapping[str, str | None] | None, name: str) -> str:
    if side is None:
        return "(no row)"
    value = side.get(name)
    return "NULL" if value is None else repr(value)


def _repair(console: Console, repair: _Json) -> None:
    for one in repair["tables"]:
        if one["what"]:
            console.print(f"  {one['table']}: {one['what']}" + (f" ({one['hint']})" if one["hint"] else ""))
        else:
            still = f"; {one['remaining']:,} differ still" if one["remaining"] else ""
            console.print(f"  {one['table']}: {one['repaired']:,} repaired{still}")
    if not repair["tables"]:
        console.print("Repair: there was nothing to do.")


def _mark(good: bool, yes: str, no: str) -> Text:
    return Text(yes, style="green") if good else Text(no, style="bold red")
