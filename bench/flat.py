"""What a row costs, by how many tables the rows are spread over and how many are in a transaction: decoded from memory, and captured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import recording
from bench.backlog import Backlog
from bench.decode import from_memory
from bench.measure import Usage, medians
from bench.pipeline import Pipeline
from bench.report import Table, thousands
from bench.setting import DATABASE, Setting
from bench.stream import captured, follow

OPTIONS = ("rows", "turns")

TABLES = (1, 10, 100, 500)
SPREAD = 100
"""Rows a transaction where they are spread over tables; each transaction writes to one."""
SIZES = (10_000, 1000, 100, 10, 1)
ONE_ROW = 10
"""So many times fewer of one row a transaction: they cost the server more."""

HEAD = (
    "rows",
    "decoding: rows/CPU s",
    "ns/row",
    "against the first",
    "capture: rows/CPU s",
    "ns/row",
    "against the first",
)


@dataclass
class Variant:
    """Rows as they are written."""

    title: str
    tables: Sequence[str]
    size: int
    rows: int
    file: Path
    pipelines: list[Pipeline]
    written: Backlog


def measure(setting: Setting) -> list[Table]:
    """Two tables."""
    rows = setting.sizes.rows // 2
    by_tables = [_written(setting, f"tables_{n}", f"{n:,}", n, SPREAD, rows) for n in TABLES]
    by_size = [
        _written(setting, f"size_{n}", f"{n:,}", 1, n, rows if n > 1 else max(1, rows // ONE_ROW)) for n in SIZES
    ]
    return [
        _measured(setting, f"Inserts, {SPREAD} a transaction, into so many tables in turn", "tables", by_tables),
        _measured(
            setting, "Inserts into one table, so many a transaction and statement", "rows a transaction", by_size
        ),
    ]


def _written(setting: Setting, key: str, title: str, tables: int, size: int, rows: int) -> Variant:
    _ = setting.table
    names = [f"{key}_{n}" for n in range(tables)]
    for name in names:
        setting.create(name, 0)
    pipelines = []
    for turn in range(setting.sizes.turns):
        pipelines.append(Pipeline(setting, f"{key.replace('_', '-')}-{turn}", [f"{DATABASE}.{name}" for name in names]))
        pipelines[-1].add()
    before = setting.server.gtid_executed
    recording.insert(setting, names, rows, size)
    written = Backlog(before, setting.server.gtid_executed, insert=rows)
    file = setting.folder(key) / "recorded"
    recording.record(setting.server, before, file)
    return Variant(title, names, size, rows, file, pipelines, written)


def _measured(setting: Setting, title: str, head: str, variants: Sequence[Variant]) -> Table:
    decoding: dict[str, list[Usage]] = defaultdict(list)
    capture: dict[str, list[Usage]] = defaultdict(list)
    idle: dict[str, list[Usage]] = defaultdict(list)
    for turn in range(setting.sizes.turns):
        for variant in variants:
            decoding[variant.title].append(from_memory(setting, variant.file, list(variant.tables), variant.rows))
            capture[variant.title].append(captured(variant.pipelines[turn], variant.written))
            idle[variant.title].append(follow(variant.pipelines[turn]))
    result = Table(title, (head, *HEAD))
    firsts: list[float] = []
    for variant in variants:
        decoded = medians(decoding[variant.title]).cpu_s / variant.rows
        started = medians(idle[variant.title]).cpu_s
        taken = max(0.0, medians(capture[variant.title]).cpu_s - started) / variant.rows
        firsts = firsts or [decoded, taken]
        cells = []
        for cost, first in zip((decoded, taken), firsts, strict=True):
            known = cost and first  # not less than a start with nothing to read
            cells += [thousands(1 / cost), f"{cost * 1e9:.0f}", f"{cost / first:.2f}"] if known else ["-", "-", "-"]
        result.add(variant.title, f"{variant.rows:,}", *cells)
    return result
