"""What reading costs after many commits with maintenance on, beside the same rows freshly written: a full scan through polars."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.measure import FailedError, Process
from bench.report import Table
from bench.rows import SCHEMA, arrow
from bench.setting import Setting
from bench.upsert import NAME, PIPELINE, applied, folded, make, stamped
from cdc.epoch import Counts
from cdc.lake import LakeTable, MergeCounts
from cdc.lake.columns import key_columns
from cdc.lake.layout import Layout
from cdc.lake.maintain import Keep, Maintenance

OPTIONS = ("rows", "commits", "turns")
CHANGES = 100
"""Of a commit: 85 updates, 10 new rows, 5 deletes."""
SEED = 17
EVERY = 100
"""Commits, between two looks at the number of files."""
AGED, FRESH = "after {:,} commits", "the same rows, freshly written"


def measure(setting: Setting) -> list[Table]:
    """One table."""
    rows, commits = setting.sizes.rows, setting.sizes.commits
    folder = setting.folder("aged")
    make(folder / "lake", rows)
    used = Process([sys.executable, "-m", "bench.aged", str(folder), str(rows), str(commits)], folder / "run")
    used.wait()
    found = json.loads(used.output.read_text())
    paths = {AGED.format(commits): folder / "lake" / NAME.folder, FRESH: folder / "fresh" / NAME.folder}
    contents = {name: _scanned(path)[1] for name, path in paths.items()}  # the first one warms the page cache up
    if len({*contents.values()}) != 1:
        raise FailedError(f"the tables differ: (rows, sum of changes) {contents}")
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(max(3, setting.sizes.turns)):
        for name, path in paths.items():
            seconds[name].append(_scanned(path)[0])
    result = Table(
        f"A table of {rows:,} rows, {CHANGES} changes a commit at random keys; a commit took {found['commit_ms']:.1f} ms (median),"
        f" maintenance {found['maintain_ms']:.1f} ms a commit, {found['longest_ms']:.0f} ms at most; files at any time: at most"
        f" {found['files']}, of the log at most {found['log']}",
        ("", "files", "scan, s", "time"),
    )
    base = statistics.median(seconds[FRESH])
    for name, path in paths.items():
        snapshot = LakeTable(path.parent.parent, NAME, PIPELINE).load()
        assert snapshot is not None
        median = statistics.median(seconds[name])
        result.add(name, str(len(snapshot.files)), f"{median:.3f}", f"{median / base:.2f}")
    return [result]


def _scanned(path: Path) -> tuple[float, tuple[int, int]]:
    import polars

    began = time.monotonic()
    found = polars.scan_delta(str(path)).collect()
    return time.monotonic() - began, (found.height, int(found["change_no"].sum()))


def main(base: str, rows: str, commits: str) -> None:
    """Commit and tidy up; then write the rows anew, as another table. Prints what it took."""
    folder, newest = Path(base), int(rows)
    lake = LakeTable(folder / "lake", NAME, PIPELINE, index=folder / "index")
    snapshot = lake.load()
    assert snapshot is not None
    maintenance = Maintenance(lake)
    keep = Keep(files_s=5.0, log_s=5.0, traced=None)
    dice = random.Random(SEED)
    merges: list[float] = []
    cares: list[float] = []
    files = log = 0
    for epoch in range(2, 2 + int(commits)):
        keys = dice.sample(range(newest), CHANGES * 90 // 100)
        deleted, old = keys[: CHANGES * 5 // 100], keys[CHANGES * 5 // 100 :]
        new = range(newest, newest + CHANGES // 10)
        newest += len(new)
        upserts = stamped(arrow([*old, *new], change_no=epoch), epoch)
        change = folded(upserts, pa.table([pa.array(deleted, pa.int64())], schema=key_columns(SCHEMA)))
        began = time.monotonic()
        snapshot = lake.upsert(snapshot, change, applied(epoch), MergeCounts(change.counts, epoch))
        merges.append(time.monotonic() - began)
        began = time.monotonic()
        snapshot = maintenance.run(snapshot, keep, 1.0)
        cares.append(time.monotonic() - began)
        files = max(files, len(snapshot.files))
        if epoch % EVERY == 0:
            log = max(log, len(snapshot.folder.folder("_delta_log").names()))
    maintenance.close()
    _write_anew(lake, snapshot, folder / "fresh")
    lake.close()
    found: dict[str, Any] = {
        "commit_ms": statistics.median(merges) * 1000,
        "maintain_ms": sum(cares) / len(cares) * 1000,
        "longest_ms": max(cares) * 1000,
        "files": files,
        "log": log,
    }
    print(json.dumps(found))


def _write_anew(lake: LakeTable, snapshot: Any, root: Path) -> None:
    table = LakeTable(root, NAME, PIPELINE)
    rows = pa.Table.from_batches(lake.scan(snapshot))
    size = 1_000_000
    parts = [rows.slice(first, size) for first in range(0, rows.num_rows, size)]
    table.bootstrap(
        [table.write_file(part.to_batches(), SCHEMA) for part in parts], SCHEMA, Layout(), applied(1), None, Counts()
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
