"""Random changes into a table: `LakeTable.upsert` beside deltalake's MERGE, on the same rows, each in a process of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bench.measure import FailedError, Process, Usage, measured, medians
from bench.report import Table, thousands
from bench.rows import SCHEMA, arrow
from bench.setting import Setting
from cdc.epoch import Counts, EpochId
from cdc.lake import Applied, FoldCounts, Folded, LakeTable, Layout, MergeCounts
from cdc.lake.columns import key_columns, lake_columns
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position

OPTIONS = ("rows", "turns")
SHARES = (100, 10)
"""Changes are one in so many of the table's rows."""
FILES = 4
NAME = TableName("bench", "upserted")
PIPELINE = "bench"
UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
SEED = 11

OURS, PEER = "`LakeTable.upsert`", "deltalake `MERGE`"


def measure(setting: Setting) -> list[Table]:
    """One table."""
    rows = setting.sizes.rows
    base = setting.folder("upsert-base")
    _make(base, rows)
    result = Table(
        f"Upserts (8 of 10), new rows and deletes (1 of 10 each), at random keys of {rows:,} rows in {FILES} files",
        ("", "changes", "s", "changes/s", "CPU s", "peak MiB", "speed"),
    )
    for share in SHARES:
        changes = base / f"changes-{share}"
        number = _write_changes(changes, rows, rows // share)
        turns: dict[str, list[Usage]] = defaultdict(list)
        for _ in range(setting.sizes.turns):
            contents = {}
            for name in (OURS, PEER):
                used, contents[name] = _turn(setting, base, changes, name)
                turns[name].append(used)
            if contents[OURS] != contents[PEER]:
                raise FailedError(f"the tables differ: (rows, sum of changes) {contents}")
        found_of = {name: medians(used) for name, used in turns.items()}
        for name, used in found_of.items():
            speed = f"{found_of[OURS].wall_s / used.wall_s:.2f}"
            figures = (f"{used.wall_s:.2f}", thousands(number / used.wall_s), f"{used.cpu_s:.2f}")
            result.add(name, f"{number:,}", *figures, f"{used.peak_mib:.0f}", speed)
    return [result]


def _turn(setting: Setting, base: Path, changes: Path, name: str) -> tuple[Usage, tuple[int, int]]:
    """One contestant on a copy of the table; what it took, and a summary of what the table then holds."""
    import deltalake

    folder = setting.folder("upsert")
    target = folder / "lake"
    # Files of a Delta table are never changed, so links are a copy.
    shutil.copytree(base / ("lake" if name == OURS else "peer"), target, copy_function=os.link)
    if name == OURS:
        command = [sys.executable, "-m", "bench.upsert", target, changes]
        table = target / NAME.folder
    else:
        command = [sys.executable, "-m", "bench.peers", "merge", target, changes / "merge.arrow"]
        table = target
    process = Process([str(part) for part in command], folder)
    used = process.wait()
    used = replace(used, **json.loads(process.output.read_text()))
    found: Any = pa.table(deltalake.DeltaTable(str(table)).scan(columns=["change_no"])).column("change_no")
    return used, (len(found), pc.sum(found).as_py())


def _make(base: Path, rows: int) -> None:
    """The table twice: by lakesync and by deltalake, in as many files of the same rows."""
    import deltalake

    lake = LakeTable(base / "lake", NAME, PIPELINE)
    size = -(-rows // FILES)
    files = []
    for first in range(0, rows, size):
        part = arrow(range(first, min(first + size, rows)))
        file = lake.write_file(part.to_batches(), SCHEMA, ts_ms=1000, seq=1)
        files.append(file)
        stamped = _stamped(part, 1)
        deltalake.write_deltalake(base / "peer", stamped, mode="append")
    lake.bootstrap(files, SCHEMA, Layout(), _applied(1), None, Counts(0, 0, 0))


def _stamped(rows: pa.Table, epoch: int) -> pa.Table:
    stamps = [pa.repeat(pa.scalar(stamp, pa.int64()), rows.num_rows) for stamp in (epoch * 1000, epoch)]
    return pa.table([*rows.columns, *stamps], schema=lake_columns(SCHEMA, Layout()))


def _write_changes(folder: Path, rows: int, number: int) -> int:
    """`upserts.arrow`, `deletes.arrow` and, all in one, `merge.arrow`; how many changes."""
    folder.mkdir()
    tenth = number // 10
    old = random.Random(SEED).sample(range(rows), 9 * tenth)
    new = list(range(rows, rows + tenth))
    upserts = _stamped(arrow(old[tenth:] + new, change_no=1), 2)
    deletes = pa.table([pa.array(old[:tenth], pa.int64())], schema=key_columns(SCHEMA))
    nulls = [pa.nulls(tenth, f.type) for f in upserts.schema if f.name != "id"]
    gone = pa.table([deletes.column("id"), *nulls], schema=upserts.schema)
    both = pa.concat_tables([upserts, gone])
    both = both.append_column("op", pa.array(["u"] * upserts.num_rows + ["d"] * tenth, pa.string()))
    for name, table in (("upserts", upserts), ("deletes", deletes), ("merge", both)):
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return upserts.num_rows + tenth


def _applied(epoch: int) -> Applied:
    position = Position(GtidSet.parse(f"{UUID}:1-{epoch}"), UUID, BinlogEnd("binlog.000001", epoch))
    return Applied("bench", EpochId(epoch, f"{epoch:064x}"), position, epoch * 1000, epoch * 1_000_000, epoch)


def upsert(root: Path, changes: Path) -> None:
    """What is measured: load the table, upsert, commit; prints what it took."""
    tables = []
    for name in ("upserts", "deletes"):
        with pa.OSFile(str(changes / f"{name}.arrow"), "rb") as file:
            tables.append(pa.ipc.open_file(file).read_all())
    number = sum(table.num_rows for table in tables)
    counts = FoldCounts(Counts(0, number, 0), effective=number)
    pa.array([0])  # the first one imports pandas, where that is installed: once a process, and no part of an upsert
    with measured():
        lake = LakeTable(root, NAME, PIPELINE)
        snapshot = lake.load()
        assert snapshot is not None
        lake.upsert(snapshot, Folded(tables[0], tables[1], counts), _applied(2), MergeCounts(counts, 2))


if __name__ == "__main__":
    upsert(Path(sys.argv[1]), Path(sys.argv[2]))
