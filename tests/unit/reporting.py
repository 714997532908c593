"""Reports made by hand: of what is well and what is not, with names as nobody should choose them, and very large ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from cdc.errors import NotFollowingError
from reconcile.ledger.balance import FOLDED, LOGGED, MERGED, NOW
from reconcile.ledger.close import SOURCE, LedgerReport, TableLedger
from reconcile.ledger.equations import Equation, Gap
from reconcile.ledger.framing import GTIDS
from reconcile.repair import RepairedTable, RepairReport
from reconcile.report.document import Report
from reconcile.values.found import Difference, TableValues, ValuesReport

AT_US = 1_794_528_000_000_000
SCHEMA = Path(__file__).resolve().parents[2] / "configs/report.schema.json"
NAUGHTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "שלום.עולם\u202eevil",
    "😀𝒳🏳️‍🌈",
    "x" * 200,
    "a\nb\tc\x00d\x7f",
    "&lt;b&gt; </style></title>",
    "javascript:alert(1)",
)


def strict() -> dict[str, Any]:
    """The schema, but nothing may be there that it does not name."""

    def closed(node: Any) -> Any:
        if isinstance(node, list):
            return [closed(one) for one in node]
        if not isinstance(node, dict):
            return node
        known = {name: closed(value) for name, value in node.items()}
        return (
            known | {"additionalProperties": False} if "properties" in node and node.get("type") == "object" else known
        )

    made: dict[str, Any] = closed(orjson.loads(SCHEMA.read_bytes()))
    return made


def ledger(names: list[str], *, wrong: tuple[str, ...] = (), changes: int = 1000) -> LedgerReport:
    """Of these tables and the source. In `wrong` ones a change was logged and not merged."""
    tables = [TableLedger(SOURCE, 0, 90, (Equation(GTIDS, 300, 300, node="source", epochs=(1, 90)),))]
    for name in names:
        lost = name in wrong
        gap = (Gap((40, 44), 20, 19, "version 7"),) if lost else ()
        equations = (
            Equation(LOGGED, changes, changes, node="log", epochs=(2, 90)),
            Equation(
                MERGED,
                changes,
                changes - lost,
                gap[0].place if gap else "",
                "merge",
                (40, 44) if lost else (2, 90),
                gap,
            ),
            Equation(FOLDED, changes - lost, changes - lost, node="merge", epochs=(2, 90)),
            Equation(NOW, 5000, 5000, node="lake", epochs=(2, 90)),
        )
        tables.append(TableLedger(name, 1, 90, equations, 12, "", 0, 9, 0))
    return LedgerReport("shop", 91, tuple(tables))


def values(name: str, differences: int = 0, **more: Any) -> TableValues:
    """A table, of which the first so many rows differ."""
    kinds = ("missing in the lake", "extra in the lake", "different")
    found = tuple(
        Difference(str(n), kinds[n % 3], ("price", "note") if n % 3 == 2 else ()) for n in range(min(differences, 1000))
    )
    given: dict[str, Any] = {"position": "binlog.000004:1234567", "checked_rows": 5000, "chunks": 4, "version": 9}
    return TableValues(name, 90, 5000, 5000, 17, 0, differences, found, **(given | more))


def flow(names: list[str]) -> tuple[dict[str, Any], ...]:
    """What passed each node."""
    counts = {"inserts": 400, "updates": 500, "deletes": 100, "reads": 0}
    rows: list[dict[str, Any]] = [
        {"node": "source", "table": "", "rows_in": 0, "rows_out": 0, "bytes_in": 0, "bytes_out": 9_000_000}
        | dict.fromkeys(counts, 0)
    ]
    sizes = {"rows_in": 1000, "rows_out": 990, "bytes_in": 40_000, "bytes_out": 39_000}
    nodes = ("capture", "log", "merge", "window", "snapshot", "lake")
    rows += [{"node": node, "table": name, **sizes, **counts} for name in names for node in nodes]
    return tuple(rows)


def latency(names: list[str], points: int = 50) -> dict[str, Any]:
    """Over so many minutes."""

    def one(at: int, table: str, stage: str, ms: float) -> dict[str, Any]:
        return {
            "at_us": AT_US + at * 60_000_000,
            "table": table,
            "stage": stage,
            "p50_ms": ms,
            "p90_ms": ms * 2.1,
            "p99_ms": ms * 6,
            "rows": 100,
        }

    stages = {"captured": 12.0, "logged": 14.5, "merged": 600.0, "readable": 640.0}
    return {
        "since_us": AT_US,
        "bucket_s": 60,
        "buckets": [
            one(n, "", stage, ms * (1 + (n * 7 % 11) / 5)) for n in range(points) for stage, ms in stages.items()
        ],
        "tables": [one(0, table, stage, ms) for table in ("", *names) for stage, ms in stages.items()],
    }


def state(name: str) -> dict[str, Any]:
    """As of a table that is well."""
    return {
        "table": name, "phase": "ready", "lag_ms": 120, "rows": 5000, "version": 9, "epoch": 90, "position": "binlog.000004:1234567",
        "gtids": "0a1b:1-300", "committed_ms": AT_US // 1000, "error": None,
    }  # fmt: skip


def report(
    names: list[str], of: list[TableValues] | None = None, *, wrong: tuple[str, ...] = (), **more: Any
) -> Report:
    """All parts of it."""
    given: dict[str, Any] = {
        "ledger": ledger(names, wrong=wrong),
        "values": ValuesReport(tuple(of if of is not None else [values(name) for name in names])),
        "seconds": 12.3,
        "runs": {"values": 16, "ledger": 17},
        "asked": {"parts": ["ledger", "values"], "tables": [], "scope": {}, "trigger": "asked"},
        "flow": flow(names),
        "latency": latency(names),
        "tables": tuple(state(name) for name in names),
    }
    return Report("shop", AT_US, **(given | more))


def fine() -> Report:
    """Nothing is wrong."""
    return report(["shop.customers", "shop.orders", "shop.payments"])


def level() -> Report:
    """All percentiles are alike, and numbers are as large as they get."""
    found = latency(["shop.orders"], 3)
    for points in (found["buckets"], found["tables"]):
        for point in points:
            point |= {"p50_ms": 1000.0, "p90_ms": 1001.0, "p99_ms": 1002.0}
    passed = tuple(one | {"rows_in": 987_654_321_012, "rows_out": 987_654_321_012} for one in flow(["shop.orders"]))
    changes = ledger(["shop.orders"], changes=999_999)
    return report(["shop.orders"], ledger=changes, latency=found, flow=passed)


def differing() -> Report:
    """The ledger has a gap, and rows differ, one of them with its values."""
    shown = Difference(
        "4711",
        "different",
        ("price", "note"),
        {"price": "10.50", "note": None},
        {"price": "11.50", "note": "<b>sale</b>"},
    )
    orders = values("shop.orders", 1, chunks_unlike=1, rows_in_full=3)
    return report(
        ["shop.customers", "shop.orders", "shop.payments"],
        [values("shop.customers"), _with(orders, (shown,)), values("shop.payments", 25)],
        wrong=("shop.payments",),
    )


def repaired() -> Report:
    """Rows differed and are equal now."""
    found = values("shop.orders", 12)
    done = RepairedTable(
        "shop.orders",
        12,
        0,
        12,
        version_before=9,
        version_after=11,
        differences=tuple((d, "repaired") for d in found.differences),
    )
    return report(
        ["shop.customers", "shop.orders"],
        [values("shop.customers"), found],
        repair=RepairReport((done,), dry_run=False, seconds=2.0).to_dict(),
        runs={"values": 16, "repair": 17, "ledger": 18},
    )


def partial() -> Report:
    """Only values, only a part of them, and the ledger failed."""
    return report(
        ["shop.orders"],
        [values("shop.orders", sampled=0.01, columns=("price",), range="key from 1 to 99")],
        ledger=None, flow=(), latency=None,
        errors=(NotFollowingError("the trace does not follow", where="shop", hint="wait a minute"),),
    )  # fmt: skip


def hostile() -> Report:
    """Names and keys as somebody might choose them who means no good."""
    names = [f"s.{name}" for name in NAUGHTY]
    tables = [
        _with(
            values(name, 1, note="", range=naughty),
            (
                Difference(
                    naughty, "different", (naughty, "b"), {naughty: naughty, "b": None}, {naughty: "x", "b": naughty}
                ),
            ),
        )
        for name, naughty in zip(names, NAUGHTY, strict=True)
    ]
    errors = (NotFollowingError(NAUGHTY[0], where=NAUGHTY[1], hint=NAUGHTY[2]),)
    return report(names, tables, wrong=tuple(names[:3]), errors=errors)


def large(tables: int = 1000, differences: int = 1000) -> Report:
    """Very many tables, in all of which very many rows differ."""
    names = [f"shop.table_{n:04}" for n in range(tables)]
    return report(names, [values(name, differences) for name in names], wrong=tuple(names))


def _with(table: TableValues, differences: tuple[Difference, ...]) -> TableValues:
    return replace(table, differences=differences)


REPORTS = {
    "fine": fine,
    "level": level,
    "differing": differing,
    "repaired": repaired,
    "partial": partial,
    "hostile": hostile,
}
