"""A report as one page: a file that needs no other, asks nothing of any server, and runs no scripts.

What a page shows comes from a source that anybody may write to: names and keys are escaped by the templates, and the page's own policy
lets nothing run and nothing be fetched, whatever it says. Tables where something is wrong come first; where there are very many,
only as much is shown as a page can carry, and it says where the rest is.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from reconcile.checks import CORRUPTIONS, MARKS
from reconcile.ledger.balance import FOLDED, LOGGED, NOW
from reconcile.ledger.framing import GTIDS
from reconcile.report import pictures
from reconcile.report.pictures import Passed

DIFFERENCES_SHOWN = 3000
"""Of all tables together, but of each at least `DIFFERENCES_LEAST`."""
DIFFERENCES_LEAST = 5
DETAILS_OF = 100
"""Of more tables than these, those in which nothing is wrong stand in the list only."""
EQUATIONS_OF = 200
"""Of more tables than these with something wrong, only equations that do not hold are shown."""
CELL_SHOWN = 300
"""Characters of a key or value."""

_SPLIT = ("source", "capture", "window", "log", "snapshot", "merge", "lake")


@dataclass(frozen=True)
class Row:
    """What is known of one table, from every part of the report."""

    name: str
    anchor: str
    state: Mapping[str, Any]
    ledger: Mapping[str, Any] | None
    values: Mapping[str, Any] | None
    repair: Mapping[str, Any] | None
    latency: Mapping[str, Any] | None
    wrong: bool
    mended: bool
    """It was wrong, and is not any more."""
    differences: Sequence[Mapping[str, Any]]
    hidden: int
    """Differences that are not shown."""

    @property
    def columns(self) -> list[str]:
        """Of the differences' values, where they were asked for."""
        return [] if not any("before" in d or "after" in d for d in self.differences) else ["lake", "source"]


def page(report: Mapping[str, Any]) -> str:
    """The page of a report in its JSON form, version 2."""
    environment = _environment()
    style = Path(__file__).with_name("templates").joinpath("style.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rows = _rows(report)
    return environment.get_template("report.html").render(
        report=report,
        style=style,
        style_hash=digest,
        at=_moment(report["at_us"]),
        facts=_facts(report),
        flow=_flow(report),
        latency=_latency(report),
        rows=rows,
        wrong=sum(row.wrong for row in rows),
        first=[row for row in rows if row.wrong or row.mended],
        fine=[row for row in rows if not (row.wrong or row.mended)] if len(rows) <= DETAILS_OF else [],
        nodes=_nodes(report),
        brief=sum(row.wrong for row in rows) > EQUATIONS_OF,
        checks=report["checks"],
        corruptions=CORRUPTIONS,
        marks=MARKS,
    )


class _Environment(jinja2.Environment):
    """In which `report.values` is what stands under that name, and never a method of the mapping."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping):
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = _Environment(
        loader=jinja2.PackageLoader("reconcile.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters |= {
        "count": lambda number: "–" if number is None else f"{number:,}",
        "gap": lambda number: f"{number:+,}".replace("-", "−"),
        "size": _size,
        "ms": lambda ms: "–" if ms is None else pictures.duration(float(ms)),
        "seconds": lambda s: pictures.duration(1000 * float(s)),
        "moment": _moment,
        "clock": lambda at_us: f"{datetime.fromtimestamp(at_us / 1e6, UTC):%Y-%m-%d %H:%M:%S}",
        "shown": _shown,
        "prose": _prose,
        "cell": _cell,
        "plural": lambda number, what: f"{number:,} {what}" + ("" if number == 1 else "s"),
    }
    return environment


def _moment(at_us: int) -> str:
    moment = datetime.fromtimestamp(at_us / 1e6, UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M:%S} UTC"


def _shown(text: object) -> str:
    """A name or key as it can be shown: control characters as their pictures, and no longer than anyone reads."""
    seen = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 else "\u2421" if c == "\x7f" else c for c in str(text))
    return seen if len(seen) <= CELL_SHOWN else f"{seen[:CELL_SHOWN]}… ({len(seen):,} characters)"


def _prose(text: str) -> Markup:
    """Our own sentences, in which code stands between backticks."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def _cell(side: Mapping[str, str | None] | None, name: str) -> str | None:
    """A value; None for NULL, or where there is no row."""
    value = None if side is None else side.get(name)
    return None if value is None else _shown(value)


def _size(count: int | None) -> str:
    if not count:
        return "–"
    for unit, amount in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= amount:
            return f"{count / amount:.1f} {unit}"
    return f"{count} B"


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures at the top: a name, and the number."""
    facts: list[tuple[str, str]] = []
    values, ledger, repair = report.get("values"), report.get("ledger"), report.get("repair")
    names = {t["table"] for part in (values, ledger) if part for t in part["tables"]} - {"(source)"}
    facts.append(("Tables", f"{len(names):,}"))
    if values:
        compared = [t for t in values["tables"] if not t.get("note")]
        facts.append(("Rows compared", f"{sum(t['source_rows'] for t in compared):,}"))
        least = "≥ " if any(t.get("complete") is False for t in compared) else ""
        name = "Rows that differed" if repair and not repair["dry_run"] else "Rows that differ"
        facts.append((name, f"{least}{sum(t['different'] for t in values['tables']):,}"))
    if repair:
        done = sum(t.get("repaired", 0) for t in repair["tables"])
        facts.append(("Would be read again", f"{repair['keys']:,}") if repair["dry_run"] else ("Repaired", f"{done:,}"))
    if ledger:
        equations = [e for t in ledger["tables"] for e in t["equations"]]
        facts.append(("Equations hold", f"{sum(e['holds'] for e in equations):,} of {len(equations):,}"))
        facts.append(("On the way", f"{sum(t['in_flight'] for t in ledger['tables']):,}"))
    facts.append(("Took", pictures.duration(1000 * report.get("seconds", 0))))
    return facts


def _nodes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What passed each node, all tables together, in the order in which a row meets them."""
    found: dict[str, dict[str, Any]] = {}
    for one in report.get("flow") or ():
        node = found.setdefault(str(one["node"]), {"node": one["node"]})
        for name, number in one.items():
            if isinstance(number, int):
                node[name] = node.get(name, 0) + number
    return sorted(found.values(), key=lambda n: _SPLIT.index(n["node"]) if n["node"] in _SPLIT else len(_SPLIT))


def _flow(report: Mapping[str, Any]) -> tuple[pictures.Picture, pictures.Picture] | None:
    """Numbers of the ledger, as far as it has them: the nodes' own totals have also what a table's first reading held already."""
    ledger = report.get("ledger")
    nodes = {node["node"]: node for node in _nodes(report)}
    if not ledger or not nodes:
        return None
    gaps: dict[str, int] = {}
    sides: dict[str, tuple[int, int]] = {}
    for table in ledger["tables"]:
        for equation in table["equations"]:
            left, right = sides.get(equation["name"], (0, 0))
            sides[equation["name"]] = (left + equation["left"], right + equation["right"])
            if not equation["holds"]:
                gaps[equation["node"]] = gaps.get(equation["node"], 0) + equation["gap"]

    def passed(node: str, name: str = "rows_out") -> int:
        return int(nodes.get(node, {}).get(name, 0))

    captured = passed("capture")
    return pictures.flow(
        Passed(
            transactions=sides.get(GTIDS, (0, 0))[1],
            captured=sides.get(LOGGED, (captured, 0))[0],
            reread=passed("window"),
            snapshot=passed("snapshot"),
            logged=sides.get(LOGGED, (0, passed("log")))[1],
            merged=sides.get(FOLDED, (passed("merge", "rows_in"), 0))[0],
            effective=passed("merge"),
            waiting=sum(t["in_flight"] for t in ledger["tables"]),
            rows=sides[NOW][1] if NOW in sides else None,
            gaps=gaps,
        )
    )


def _latency(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The charts, the figures that they are drawn from, and each stage over all the time."""
    found = report.get("latency")
    if not found:
        return None
    points = [p for p in found["buckets"] if p["stage"] == "readable"]
    charts = pictures.latency(points)
    stages = {p["stage"]: p for p in found["tables"] if not p["table"]}
    ordered = [stages[s] for s in ("captured", "logged", "merged", "readable") if s in stages]
    return {"charts": charts, "points": sorted(points, key=lambda p: p["at_us"]), "stages": ordered} if charts else None


def _rows(report: Mapping[str, Any]) -> list[Row]:
    """Tables where something is wrong first, each half by name."""
    ledger, values, repair = (
        {t["table"]: t for t in (report.get(part) or {}).get("tables", ())} for part in ("ledger", "values", "repair")
    )
    states = {t["table"]: t for t in report.get("tables") or ()}
    latency = {
        p["table"]: p
        for p in (report.get("latency") or {}).get("tables", ())
        if p["stage"] == "readable" and p["table"]
    }
    names = sorted({*ledger, *values, *repair})
    differing = sum(bool(t.get("differences")) for t in values.values())
    most = max(DIFFERENCES_LEAST, DIFFERENCES_SHOWN // max(differing, 1))
    rows = []
    for number, name in enumerate(names, 1):
        of, mended = values.get(name), repair.get(name)
        outcomes = {d["key"]: d.get("outcome") for d in (mended or {}).get("differences", ())}
        differences = [d | {"outcome": outcomes.get(d["key"])} for d in (of or {}).get("differences", ())[:most]]
        state = states.get(name, {})
        right = bool(mended and mended["ok"] and not report["repair"]["dry_run"])
        wrong = bool(
            (name in ledger and not ledger[name]["closes"])
            or (of and not of["equal"] and not right)
            or (mended and not mended["ok"])
            or state.get("error")
        )
        rows.append(
            Row(
                name,
                f"table-{number}",
                state,
                ledger.get(name),
                of,
                mended,
                latency.get(name),
                wrong,
                right and not wrong,
                differences,
                max(0, int((of or {}).get("different", 0)) - len(differences)),
            )
        )
    return sorted(rows, key=lambda row: (not row.wrong, not row.mended, row.name))
