"""What the page draws, as positions and texts; the templates make SVG of it. Pure.

Each picture is made twice, wide and narrow, and the style sheet shows the one that fits: text that is scaled down cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

COMPACT_FROM = 1_000_000
"""Numbers from here on are short in pictures; the table beside has them whole."""
_NODES = ("source", "capture", "log", "merge", "lake")
_TITLES = {
    "source": "Source",
    "capture": "Capture",
    "log": "Log",
    "merge": "Merge",
    "lake": "Lake",
    "window": "Re-reads",
    "snapshot": "First reading",
}


@dataclass(frozen=True)
class Box:
    """A node. `gap`: what the ledger misses (negative) or has too many of there."""

    title: str
    text: str
    x: float
    y: float
    width: float
    height: float
    gap: str = ""
    unused: bool = False


@dataclass(frozen=True)
class Edge:
    """From one node to another: a path, and what passed along it. `waiting`: some of it is on its way."""

    path: str
    text: str
    x: float
    y: float
    anchor: str = "middle"
    wrong: bool = False
    waiting: str = ""
    unused: bool = False


@dataclass(frozen=True)
class Picture:
    """Boxes and edges in a view of `width` and `height`; `said` is the picture in words."""

    name: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    said: str


@dataclass(frozen=True)
class Passed:
    """What passed through the nodes, of all tables together."""

    transactions: int
    captured: int
    reread: int
    snapshot: int
    logged: int
    merged: int
    effective: int
    """Of the merged ones those that decide what the lake holds."""
    waiting: int
    rows: int | None
    gaps: Mapping[str, int]
    """By node; nodes whose equations hold are not there."""


def flow(passed: Passed) -> tuple[Picture, Picture]:
    """The way of the rows, wide and narrow."""
    said = _said(passed)
    return _wide(passed, said), _narrow(passed, said)


def _texts(passed: Passed) -> dict[str, str]:
    return {
        "source": f"{short(passed.transactions)} commits",
        "capture": "rows decoded",
        "log": f"{short(passed.logged)} changes",
        "merge": "newest per key",
        "lake": "" if passed.rows is None else f"{short(passed.rows)} rows now",
        "window": "in windows",
        "snapshot": "copied",
    }


def _wide(passed: Passed, said: str) -> Picture:
    width, height, top, low = 132.0, 58.0, 26.0, 168.0
    step = 207.0
    texts = _texts(passed)
    at = {node: 1 + step * i for i, node in enumerate(_NODES)}
    boxes = [_box(passed, node, texts, at[node], top, width, height) for node in _NODES]
    boxes.append(_box(passed, "window", texts, at["capture"], low, width, height, unused=not passed.reread))
    boxes.append(_box(passed, "snapshot", texts, at["merge"], low, width, height, unused=not passed.snapshot))
    middle = top + height / 2
    edges = []
    for a, b, text, waiting in _main(passed):
        x1, x2 = at[a] + width, at[b]
        edges.append(
            Edge(f"M{x1} {middle} H{x2 - 3}", text, (x1 + x2) / 2, middle - 10, wrong=b in passed.gaps, waiting=waiting)
        )
    side, bottom = low + height / 2, top + height
    x, log = at["source"] + width * 0.7, at["log"] + width / 2
    edges.append(
        Edge(
            f"M{x} {bottom} V{side - 10} q0 10 10 10 H{at['capture'] - 3}",
            "",
            0,
            0,
            unused=not passed.reread,
        )
    )
    edges.append(
        Edge(
            f"M{at['capture'] + width} {side} H{log - 10} q10 0 10 -10 V{bottom + 3}",
            short(passed.reread) if passed.reread else "",
            (at["capture"] + width + log) / 2 - 6,
            side - 10,
            wrong="window" in passed.gaps,
            unused=not passed.reread,
        )
    )
    x, under, lake = at["source"] + width * 0.3, low + height + 24, at["lake"] + width / 2
    edges.append(
        Edge(
            f"M{x} {bottom} V{under - 10} q0 10 10 10 H{at['merge'] + width / 2 - 10} q10 0 10 -10 V{low + height + 3}",
            "",
            0,
            0,
            unused=not passed.snapshot,
        )
    )
    edges.append(
        Edge(
            f"M{at['merge'] + width} {side} H{lake - 10} q10 0 10 -10 V{bottom + 3}",
            short(passed.snapshot) if passed.snapshot else "",
            (at["merge"] + width + lake) / 2 - 6,
            side - 10,
            wrong="snapshot" in passed.gaps,
            unused=not passed.snapshot,
        )
    )
    return Picture("wide", 962, 254, tuple(boxes), tuple(edges), said)


def _narrow(passed: Passed, said: str) -> Picture:
    width, height, step, first = 136.0, 54.0, 112.0, 18.0
    texts = _texts(passed)
    at = {node: first + step * i for i, node in enumerate(_NODES)}
    boxes = [_box(passed, node, texts, 1, at[node], width, height) for node in _NODES]
    left, side = 186.0, 118.0
    boxes.append(_box(passed, "window", texts, left, at["capture"], side, height, unused=not passed.reread))
    boxes.append(_box(passed, "snapshot", texts, left, at["merge"], side, height, unused=not passed.snapshot))
    edges = []
    for a, b, text, waiting in _main(passed):
        y1, y2 = at[a] + height, at[b]
        edges.append(
            Edge(
                f"M{width / 2} {y1} V{y2 - 3}",
                text,
                width / 2 + 10,
                (y1 + y2) / 2 + 4 - (8 if waiting else 0),
                "start",
                wrong=b in passed.gaps,
                waiting=waiting,
            )
        )
    x = left + side / 2
    far = left + side + 16
    edges += [
        Edge(
            f"M{1 + width} {at['source'] + 36} H{x - 10} q10 0 10 10 V{at['capture'] - 3}",
            "",
            0,
            0,
            unused=not passed.reread,
        ),
        Edge(
            f"M{x} {at['capture'] + height} V{at['log'] + height / 2 - 10} q0 10 -10 10 H{1 + width + 3}",
            short(passed.reread) if passed.reread else "",
            x + 8,
            at["capture"] + height + 30,
            "start",
            wrong="window" in passed.gaps,
            unused=not passed.reread,
        ),
        Edge(
            f"M{1 + width} {at['source'] + 18} H{far - 10} q10 0 10 10 V{at['merge'] + height / 2 - 10} q0 10 -10 10 H{left + side + 3}",
            "",
            0,
            0,
            unused=not passed.snapshot,
        ),
        Edge(
            f"M{x} {at['merge'] + height} V{at['lake'] + height / 2 - 10} q0 10 -10 10 H{1 + width + 3}",
            short(passed.snapshot) if passed.snapshot else "",
            x + 8,
            at["merge"] + height + 30,
            "start",
            wrong="snapshot" in passed.gaps,
            unused=not passed.snapshot,
        ),
    ]
    return Picture("narrow", 324, int(at["lake"] + height + 4), tuple(boxes), tuple(edges), said)


def _box(
    passed: Passed,
    node: str,
    texts: Mapping[str, str],
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    unused: bool = False,
) -> Box:
    gap = passed.gaps.get(node, 0)
    return Box(_TITLES[node], texts[node], x, y, width, height, f"{gap:+,}" if gap else "", unused)


def _main(passed: Passed) -> list[tuple[str, str, str, str]]:
    """The edges of the stream: from, to, what passed, what waits there."""
    return [
        ("source", "capture", "", ""),
        ("capture", "log", short(passed.captured), ""),
        ("log", "merge", short(passed.merged), f"{short(passed.waiting)} on the way" if passed.waiting else ""),
        ("merge", "lake", short(passed.effective), ""),
    ]


def _said(passed: Passed) -> str:
    parts = [
        f"{_count(passed.transactions, 'transaction')} of the source",
        f"{_count(passed.captured, 'change')} captured",
        f"{_count(passed.logged, 'change')} in the log",
        f"{_count(passed.merged, 'change')} merged, of which {passed.effective:,} were the newest of their key",
    ]
    if passed.reread:
        parts.append(f"{_count(passed.reread, 'row')} read again in windows")
    if passed.snapshot:
        parts.append(f"{_count(passed.snapshot, 'row')} of the first reading")
    if passed.waiting:
        parts.append(f"{_count(passed.waiting, 'change')} on the way into the lake")
    if passed.rows is not None:
        parts.append(f"{_count(passed.rows, 'row')} in the lake now")
    wrong = [f"a gap of {gap:+,} at {_TITLES.get(node, node)}" for node, gap in passed.gaps.items()]
    return "; ".join(parts) + (
        f". Imbalance: {', '.join(wrong)}." if wrong else ". Nothing is missing, nothing is too many."
    )


# -- latency -----------------------------------------------------------------------------------------------------------

PERCENTILES = (("p50_ms", "half"), ("p90_ms", "90 %"), ("p99_ms", "99 %"))
_TICKS_MS = (
    1,
    3,
    10,
    30,
    100,
    300,
    1000,
    3000,
    10_000,
    30_000,
    60_000,
    300_000,
    1_800_000,
    3_600_000,
    21_600_000,
    86_400_000,
)
_STEPS_S = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10_800,
    21_600,
    43_200,
    86_400,
    172_800,
    604_800,
)


@dataclass(frozen=True)
class Line:
    """A percentile: its path, and where its name stands at its end."""

    name: str
    label: str
    path: str
    dots: tuple[tuple[float, float], ...]
    label_y: float


@dataclass(frozen=True)
class Chart:
    """Percentiles over time, the latency on a logarithmic axis. Ticks: place and text."""

    name: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    said: str


def latency(points: Sequence[Mapping[str, Any]]) -> tuple[Chart, Chart] | None:
    """Of `at_us` and the percentiles, wide and narrow; None where there is nothing to draw."""
    known = sorted((p for p in points if p["rows"]), key=lambda p: p["at_us"])
    if not known:
        return None
    return _chart("wide", known, 962, 280, 64, 56, 6), _chart("narrow", known, 324, 250, 58, 46, 3)


def _chart(
    name: str, points: Sequence[Mapping[str, Any]], width: int, height: int, left: float, margin: float, ticks: int
) -> Chart:
    right, top, bottom = width - margin, 14.0, height - 30.0
    values = [max(float(p[key]), 0.5) for p in points for key, _ in PERCENTILES]
    low = max((t for t in _TICKS_MS if t <= min(values)), default=0.5)
    high = min((t for t in _TICKS_MS if t >= max(values)), default=max(values))
    if high <= low:
        high = low * 10
    first, last = points[0]["at_us"], points[-1]["at_us"]
    span = max(last - first, 1_000_000)

    def x(at_us: float) -> float:
        return left + (right - left) * (at_us - first) / span if last > first else (left + right) / 2

    def y(ms: float) -> float:
        share = (math.log(max(ms, low)) - math.log(low)) / (math.log(high) - math.log(low))
        return bottom - (bottom - top) * share

    lines = []
    for key, label in PERCENTILES:
        places = [(round(x(p["at_us"]), 1), round(y(float(p[key])), 1)) for p in points]
        path = "M" + " L".join(f"{a} {b}" for a, b in places)
        lines.append(Line(key, label, path, tuple(places) if len(places) < 3 else (), places[-1][1]))
    lines = _spread(lines, top, bottom)
    y_ticks = [(round(y(t), 1), duration(t)) for t in _TICKS_MS if low <= t <= high]
    if len(y_ticks) > 6:
        y_ticks = y_ticks[:: math.ceil(len(y_ticks) / 6)]
    said = (
        f"From {_clock(first, span)} to {_clock(last, span)} UTC, half of the changes could be read in the lake within "
        f"{duration(_median(points, 'p50_ms'))} of their commit, 99 % within {duration(max(float(p['p99_ms']) for p in points))}."
    )
    return Chart(
        name, width, height, left, right, top, bottom, _times(first, last, ticks, x), tuple(y_ticks), tuple(lines), said
    )


def _spread(lines: Sequence[Line], top: float, bottom: float) -> list[Line]:
    """Names at the lines' ends, none over another: from the lowest line (the quickest) upwards."""
    placed: list[Line] = []
    least = bottom
    for line in lines:
        at = min(line.label_y, least)
        placed.append(Line(line.name, line.label, line.path, line.dots, max(at, top)))
        least = at - 15
    return placed


def _times(first: int, last: int, most: int, x: Any) -> tuple[tuple[float, str], ...]:
    span_s = (last - first) / 1e6
    step = next((s for s in _STEPS_S if span_s / s <= most), _STEPS_S[-1]) * 1_000_000
    if last == first:
        return ((round(x(first), 1), _clock(first, 1)),)
    found = range(-(-first // step) * step, last + 1, step)
    return tuple((round(x(at), 1), _clock(at, step)) for at in found)


def _clock(at_us: int, step_us: float) -> str:
    moment = datetime.fromtimestamp(at_us / 1e6, UTC)
    if step_us >= 86_400e6:
        return f"{moment.day} {moment:%b}"
    return f"{moment:%H:%M}" if step_us >= 60e6 else f"{moment:%H:%M:%S}"


def _median(points: Sequence[Mapping[str, Any]], key: str) -> float:
    ordered = sorted(float(p[key]) for p in points)
    return ordered[len(ordered) // 2]


def duration(ms: float) -> str:
    """For people, in two or three digits."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if ms >= size:
            return f"{ms / size:.3g} {unit}" if ms < 100 * size else f"{ms / size:,.0f} {unit}"
    return f"{ms:.3g} ms"


def short(number: int) -> str:
    """A number for a picture."""
    if abs(number) < COMPACT_FROM:
        return f"{number:,}"
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if abs(number) >= size:
            part = number / size
            return (
                f"{part:.2f} {unit}"
                if abs(part) < 10
                else f"{part:.1f} {unit}"
                if abs(part) < 100
                else f"{part:,.0f} {unit}"
            )
    return f"{number:,}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
