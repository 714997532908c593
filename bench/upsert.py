"""Random changes into a table: `LakeTable.upsert` beside deltalake's MERGE, on the same rows, each in a process of its own.

The first commit of a process has no index, and builds it from the key columns; the next ones have it. The peer has nothing to keep between
merges; its first and its next ones are told apart all the same.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bench.measure import FailedError, Process, Usage, medians
from bench.report import Table, thousands
from bench.rows import SCHEMA, arrow
from bench.setting import Setting
from cdc.epoch import Counts, EpochId
from cdc.lake import Applied, FoldCounts, Folded, LakeTable, MergeCounts
from cdc.lake.columns import key_columns, lake_columns
from cdc.lake.layout import Layout
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position

OPTIONS = ("snapshot_rows", "turns")
SHARES = (100, 1_000, 10_000)
"""Changes are one in so many of the table's rows."""
REPEATS = 5
"""Commits of the smallest size are measured so many times: one is over too soon."""
FILE_ROWS = 1_000_000
NAME = TableName("bench", "upserted")
PIPELINE = "bench"
UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
SEED = 11

OURS, PEER = "`LakeTable.upsert`", "deltalake `MERGE`"
FIRST, NEXT = "{}, first of a process", "{}, the next ones"


def measure(setting: Setting) -> list[Table]:
    """One table."""
    rows = setting.sizes.snapshot_rows
    base = setting.folder("upsert-base")
    make(base / "lake", rows)
    _copy_to_peer(base, rows)
    result = Table(
        f"Updates (85 of 100), new rows (10) and deletes (5) at random keys of {rows:,} rows",
        ("", "changes", "s", "changes/s", "CPU s", "peak MiB", "speed"),
    )
    for share in SHARES:
        number = max(20, rows // share)
        changes = base / f"changes-{share}"
        repeats = REPEATS if share == SHARES[-1] else 1
        write_changes(changes, rows, [number] * (1 + repeats))
        turns: dict[str, list[Usage]] = defaultdict(list)
        for _ in range(setting.sizes.turns):
            contents = {}
            for name in (OURS, PEER):
                first, following, contents[name] = _turn(setting, base, changes, name)
                turns[FIRST.format(name)].append(first)
                turns[NEXT.format(name)].append(following)
            if contents[OURS] != contents[PEER]:
                raise FailedError(f"the tables differ: (rows, sum of changes) {contents}")
        found_of = {name: medians(used) for name, used in turns.items()}
        for form in (NEXT, FIRST):
            peer = found_of[form.format(PEER)].wall_s
            for contestant in (OURS, PEER):
                used = found_of[name := form.format(contestant)]
                seconds = f"{used.wall_s:.4f}" if used.wall_s < 0.1 else f"{used.wall_s:.2f}"
                figures = (seconds, thousands(number / used.wall_s), f"{used.cpu_s:.3f}")
                result.add(name, f"{number:,}", *figures, f"{used.peak_mib:.0f}", f"{peer / used.wall_s:.1f}")
    return [result]


def _turn(setting: Setting, base: Path, changes: Path, name: str) -> tuple[Usage, Usage, tuple[int, int]]:
    """One contestant on a copy of the table; what its first commit took and the median of the next ones, and a summary of what the table then
    holds."""
    import deltalake

    folder = setting.folder("upsert")
    target = folder / "lake"
    # Files of a Delta table are never changed, so links are a copy.
    shutil.copytree(base / ("peer" if name == PEER else "lake"), target, copy_function=os.link)
    if name == PEER:
        command = [sys.executable, "-m", "bench.peers", "merge", target, *sorted(changes.glob("*-merge.arrow"))]
        table = target
    else:
        command = [sys.executable, "-m", "bench.upsert", target, changes]
        table = target / NAME.folder
    process = Process([str(part) for part in command], folder)
    used = process.wait()
    commits = [json.loads(line) for line in process.output.read_text().splitlines()]
    taken = [Usage(commit["wall_s"], commit["cpu_s"], used.peak_mib) for commit in commits]
    found: Any = pa.table(deltalake.DeltaTable(str(table)).scan(columns=["change_no"])).column("change_no")
    return taken[0], medians(taken[1:]), (len(found), pc.sum(found).as_py())


def make(lake: Path, rows: int) -> None:
    """A table of so many rows."""
    table = LakeTable(lake, NAME, PIPELINE)
    parts = (arrow(range(first, min(first + FILE_ROWS, rows))) for first in range(0, rows, FILE_ROWS))
    files = [table.write_file(part.to_batches(), SCHEMA, ts_ms=1000, seq=1) for part in parts]
    table.bootstrap(files, SCHEMA, Layout(), applied(1), None, Counts(0, 0, 0))


def _copy_to_peer(base: Path, rows: int) -> None:
    """The same rows in as many files, by deltalake."""
    import deltalake

    for first in range(0, rows, FILE_ROWS):
        part = stamped(arrow(range(first, min(first + FILE_ROWS, rows))), 1)
        deltalake.write_deltalake(base / "peer", part, mode="append")


def stamped(rows: pa.Table, epoch: int) -> pa.Table:
    """As the lake has them."""
    stamps = [pa.repeat(pa.scalar(stamp, pa.int64()), rows.num_rows) for stamp in (epoch * 1000, epoch)]
    return pa.table([*rows.columns, *stamps], schema=lake_columns(SCHEMA, Layout()))


def write_changes(folder: Path, rows: int, sizes: Sequence[int]) -> None:
    """For each of these numbers of changes, one commit after the other: `upserts.arrow`, `deletes.arrow` and, all in one, `merge.arrow`."""
    folder.mkdir()
    dice = random.Random(SEED)
    gone: set[int] = set()
    for commit, number in enumerate(sizes):
        old = [key for key in dice.sample(range(rows), number) if key not in gone][: number * 90 // 100]
        deleted = old[: number * 5 // 100]
        gone.update(deleted)
        new = list(range(rows, rows + number // 10))
        rows += len(new)
        upserts = stamped(arrow(old[len(deleted) :] + new, change_no=commit + 1), commit + 2)
        deletes = pa.table([pa.array(deleted, pa.int64())], schema=key_columns(SCHEMA))
        nulls = [pa.nulls(len(deleted), f.type) for f in upserts.schema if f.name != "id"]
        both = pa.concat_tables([upserts, pa.table([deletes.column("id"), *nulls], schema=upserts.schema)])
        both = both.append_column("op", pa.array(["u"] * upserts.num_rows + ["d"] * len(deleted), pa.string()))
        for name, table in (("upserts", upserts), ("deletes", deletes), ("merge", both)):
            path = folder / f"{commit:03}-{name}.arrow"
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)


def applied(epoch: int) -> Applied:
    """What a table has that is at this epoch."""
    position = Position(GtidSet.parse(f"{UUID}:1-{epoch}"), UUID, BinlogEnd("binlog.000001", epoch))
    return Applied("bench", EpochId(epoch, f"{epoch:064x}"), position, epoch * 1000, epoch * 1_000_000, epoch)


def folded(upserts: pa.Table, deletes: pa.Table) -> Folded:
    """The changes of a merge."""
    number = upserts.num_rows + deletes.num_rows
    return Folded(upserts, deletes, FoldCounts(Counts(0, number, 0), effective=number))


def main(root: str, changes: str) -> None:
    """What is measured: load the table, upsert, commit, once for each file of changes; prints what each took."""
    files = [sorted(Path(changes).glob(f"*-{name}.arrow")) for name in ("upserts", "deletes")]
    pa.array([0])  # the first one imports pandas, where that is installed: once a process, and no part of an upsert
    snapshot = None
    for number, paths in enumerate(zip(*files, strict=True), start=2):
        tables = [_read(path) for path in paths]
        began = time.monotonic(), time.process_time()
        if snapshot is None:
            lake = LakeTable(Path(root), NAME, PIPELINE, index=Path(root).parent / "index")
            snapshot = lake.load()
            assert snapshot is not None
        change = folded(*tables)
        snapshot = lake.upsert(snapshot, change, applied(number), MergeCounts(change.counts, number))
        print(json.dumps({"wall_s": time.monotonic() - began[0], "cpu_s": time.process_time() - began[1]}))


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).read_all()


if __name__ == "__main__":
    main(*sys.argv[1:])
