"""Tables of figures, printed, and recorded in RESULTS.md between two marks, under the command that made them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.measure import Usage

RESULTS = Path(__file__).with_name("RESULTS.md")
PROGRAM = ".venv/bin/python -m bench"
LIBRARIES = ("lakesync", "pyarrow", "deltalake", "PyMySQL", "mysql-replication", "confluent-kafka")


@dataclass
class Table:
    """One table of figures. The first column says what was measured."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """One more line."""
        assert len(cells) == len(self.head)
        self.rows.append(cells)

    def markdown(self) -> str:
        """Title and table."""
        widths = [max(len(line[i]) for line in (self.head, *self.rows)) for i in range(len(self.head))]

        def line(cells: Sequence[str]) -> str:
            aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            return f"| {' | '.join(aligned)} |"

        rule = f"| {'-' * widths[0]} | {' | '.join('-' * (w - 1) + ':' for w in widths[1:])} |"
        return "\n".join([self.title, "", line(self.head), rule, *map(line, self.rows)])


USAGE = ("s", "rows/s", "CPU s", "peak MiB", "server CPU s", "speed")


def usage_cells(used: Usage, rows: int, base: Usage) -> tuple[str, ...]:
    """Cells for `USAGE`. `speed` is against `base`: 2.0 takes half as long. No rows: neither speed nor rows/s."""
    compared = rows and used.wall_s
    return (
        f"{used.wall_s:.2f}",
        thousands(rows / used.wall_s) if compared else "-",
        f"{used.cpu_s:.2f}",
        f"{used.peak_mib:.0f}" if used.peak_mib else "-",
        f"{used.servers_cpu_s:.2f}",
        f"{base.wall_s / used.wall_s:.2f}" if compared else "-",
    )


def less(used: Usage, idle: Usage) -> Usage:
    """What is left without the start-up."""
    return Usage(
        max(0.0, used.wall_s - idle.wall_s),
        max(0.0, used.cpu_s - idle.cpu_s),
        0.0,
        max(0.0, used.servers_cpu_s - idle.servers_cpu_s),
    )


def thousands(number: float) -> str:
    """Three digits that count, with separators."""
    if number <= 0:
        return "0"
    digits = len(str(int(number)))
    return f"{round(number, 3 - digits):,.0f}"


def machine(mysql: str) -> str:
    """What it was measured with."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores shared with the servers, {memory_gib:.0f} GiB, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, MySQL {mysql}, {libraries}"
    )


def section(name: str, command: str, tables: Sequence[Table], measured_with: str) -> str:
    """What stands between the marks of a benchmark."""
    begin, end = marks(name)
    parts = [begin, f"`{command}`", *(t.markdown() for t in tables), f"Measured {measured_with}.", end]
    return "\n\n".join(parts)


def marks(name: str) -> tuple[str, str]:
    """The lines between which a benchmark's results stand."""
    return f"<!-- bench {name}: begin -->", f"<!-- bench {name}: end -->"


def record(name: str, text: str, path: Path = RESULTS) -> None:
    """Replace the benchmark's results in RESULTS.md. Raises `ValueError` where they have no place."""
    begin, end = marks(name)
    page = path.read_text()
    if begin not in page or end not in page:
        raise ValueError(f"{path.name} has no marks for {name}: write {begin} and {end} where its results are to stand")
    before, _, rest = page.partition(begin)
    path.write_text(before + text + rest.partition(end)[2])
