"""One commit of as many changes at a small table and at one ten times as large: what it takes follows the changes, not the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.measure import Process, Usage, medians
from bench.report import Table, thousands
from bench.setting import Setting
from bench.upsert import make, write_changes

OPTIONS = ("snapshot_rows", "turns")
SIZES = (0.5, 5)
"""Rows of the tables, in `snapshot_rows`."""
SHARE = 1_000
"""Changes of a commit are one in so many of `snapshot_rows`."""
COMMITS = 6
"""The first one, which builds the index, is not counted."""


def measure(setting: Setting) -> list[Table]:
    """One table."""
    number = max(20, setting.sizes.snapshot_rows // SHARE)
    result = Table(
        f"Commits of {number:,} changes (85 of 100 updates, 10 new rows, 5 deletes) at random keys, warm index",
        ("", "rows", "s", "changes/s", "CPU s", "index built, s", "anonymous MiB", "time"),
    )
    base = 0.0
    for share in SIZES:
        rows = int(setting.sizes.snapshot_rows * share)
        warm, cold = _measure(setting, rows, number)
        base = base or warm.wall_s
        figures = (f"{warm.wall_s:.4f}", thousands(number / warm.wall_s), f"{warm.cpu_s:.4f}", f"{cold.wall_s:.2f}")
        result.add(
            "`LakeTable.upsert`", f"{rows:,}", *figures, f"{warm.anonymous_mib:.0f}", f"{warm.wall_s / base:.2f}"
        )
    return [result]


def _measure(setting: Setting, rows: int, number: int) -> tuple[Usage, Usage]:
    """A commit with a warm index, and the first one, which builds it."""
    folder = setting.folder("grown")
    make(folder / "lake", rows)
    turns = setting.sizes.turns
    write_changes(folder / "changes", rows, [number] * (1 + COMMITS * turns))
    program = [sys.executable, "-m", "bench.upsert", str(folder / "lake"), str(folder / "changes")]
    process = Process(program, folder)
    used = process.wait()
    commits = [json.loads(line) for line in Path(process.output).read_text().splitlines()]
    found = [Usage(c["wall_s"], c["cpu_s"], used.peak_mib, 0.0, used.anonymous_mib) for c in commits]
    return medians(found[1:]), found[0]
