"""Rows, positions and foreign readers for the tests of the lake.

Run as `python -m tests.integration.lake_rows ROOT STEPS` it is a writer of its own process, for tests that kill it: STEPS is a
comma-separated list of `bootstrap`, `adopt` and `upsert`; each is the same change every time.
"""

from __future__ import annotations

import datetime
import decimal
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdc.epoch import Counts, EpochId
from cdc.lake import Applied, FoldCounts, Folded, Folder, LakeTable, Layout, MergeCounts, Snapshot, cleaning
from cdc.lake.adopt import adopt
from cdc.lake.columns import key_columns, lake_columns
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position
from cdc.roots import ObjectRoot, Root
from cdc.schema import Column, TableSchema

UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
TABLE = TableName("shop", "orders")
Row = tuple[Any, ...]

SIMPLE = TableSchema((Column("id", "bigint"), Column("name", "text", charset="utf8mb4")), ("id",))

EVERY_TYPE = TableSchema(
    (
        Column("tiny", "tinyint"),
        Column("utiny", "tinyint", unsigned=True),
        Column("small", "smallint"),
        Column("medium", "mediumint"),
        Column("number", "int"),
        Column("unumber", "int", unsigned=True),
        Column("big", "bigint"),
        Column("ubig", "bigint", unsigned=True),
        Column("amount", "decimal", precision=38, scale=10),
        Column("ratio", "double"),
        Column("name", "text", charset="utf8mb4"),
        Column("token", "binary", length=4),
        Column("raw", "varbinary"),
        Column("day", "date"),
        Column("local", "datetime", scale=6),
        Column("moment", "timestamp", scale=6),
        Column("kind", "enum", charset="utf8mb4", members=("a", "b")),
        Column("flag", "tinyint"),
        Column("single", "float"),
        Column("bit1", "bit", length=1),
        Column("bits", "bit", length=12),
        Column("span", "time", scale=6),
        Column("since", "year"),
        Column("tags", "set", charset="utf8mb4", members=("a", "b")),
        Column("doc", "json"),
        Column("long", "decimal", precision=65, scale=30),
        Column("place", "geometry"),
        Column("vec", "vector"),
    ),
    ("big",),
    {"flag": "boolean"},
)


def every_type(key: int, year: int = 2024) -> Row:
    """A row of `EVERY_TYPE` at the edges of its types; `year` since ClickHouse's dates end in 2299 and begin in 1900."""
    sign = -1 if key % 2 else 1
    return (
        -128 if key % 2 else 127,
        255,
        sign * 32767,
        sign * 8388607,
        sign * 2147483647,
        4294967295,
        key,
        decimal.Decimal(18446744073709551615),
        decimal.Decimal(f"{'-' if key % 2 else ''}{'9' * 28}.{'9' * 10}"),
        -0.0 if key % 2 else 1.7976931348623157e308,
        "naïve 🦆 \x00'\"\\ \u00a0" + "x" * (key % 50),
        b"\x00\xff\x00\x00",
        bytes(range(256)),
        datetime.date(year, 2, 28),
        datetime.datetime(year, 12, 31, 23, 59, 59, 999999),  # noqa: DTZ001, a DATETIME has none
        datetime.datetime(year, 1, 1, 0, 0, 0, 1, tzinfo=datetime.UTC),
        "b" if key % 2 else "",
        bool(key % 2),
        -0.0 if key % 2 else 1.401298464324817e-45,
        not key % 2,
        b"\x0f\xff",
        sign * 3_020_399_999_999,
        0 if key % 2 else 2155,
        "a,b" if key % 2 else "",
        '{"a": [1, "é"]}',
        "9" * 35 + "." + "9" * 30,
        b"\x00\x00\x00\x00" + b"\x01" * 21,
        [] if key % 3 == 0 else [float(key), -0.0, 3.4028234663852886e38],
    )


def applied(epoch: int) -> Applied:
    """The end of an epoch."""
    position = Position(GtidSet.parse(f"{UUID}:1-{epoch}"), UUID, BinlogEnd("binlog.000001", 100 * epoch))
    return Applied("log-1", EpochId(epoch, f"{epoch:064x}"), position, epoch * 1000, epoch * 1_000_000, epoch * 10)


def table_of(rows: Iterable[Row], columns: pa.Schema) -> pa.Table:
    """Rows, by column."""
    by_column = list(zip(*rows, strict=True)) or [()] * len(columns)
    return pa.table([pa.array(v, f.type) for v, f in zip(by_column, columns, strict=True)], schema=columns)


def folded(schema: TableSchema, upserts: Sequence[Row], deletes: Sequence[Row], epoch: int) -> Folded:
    """Upserts (rows of the source) and deletes (keys), as a fold of one epoch gives them."""
    columns = lake_columns(schema, Layout())
    stamp = (epoch * 1000, epoch * 10)
    counts = FoldCounts(Counts(len(upserts), 0, len(deletes)), effective=len(upserts) + len(deletes))
    return Folded(
        table_of([(*row, *stamp) for row in upserts], columns), table_of(deletes, key_columns(schema)), counts
    )


def bootstrap(lake: LakeTable, schema: TableSchema, rows: Sequence[Row], epoch: int = 1, files: int = 1) -> Snapshot:
    """A table with these rows, in so many files."""
    size = max(1, -(-len(rows) // files))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    written = [
        lake.write_file(table_of(part, schema.arrow).to_batches(), schema, ts_ms=epoch * 1000, seq=epoch * 10)
        for part in parts
    ]
    return lake.bootstrap(written, schema, Layout(), applied(epoch), lake.load(), Counts(7, 8, 9))


def upsert(
    lake: LakeTable, on: Snapshot, upserts: Sequence[Row], deletes: Sequence[Row] = (), epoch: int | None = None
) -> Snapshot:
    """One merge of one epoch, the next one."""
    assert on.applied is not None
    epoch = epoch or on.applied.epoch.number + 1
    change = folded(on.schema, upserts, deletes, epoch)
    return lake.upsert(on, change, applied(epoch), MergeCounts(change.counts, epoch))


def content(lake: LakeTable, snapshot: Snapshot) -> list[Row]:
    """The source's columns of every row, in the key's order."""
    rows = [tuple(row.values()) for batch in lake.scan(snapshot, snapshot.schema.names) for row in batch.to_pylist()]
    at = [snapshot.schema.names.index(name) for name in snapshot.schema.key]
    return sorted(rows, key=lambda row: [row[i] for i in at])


def collect(
    lake: LakeTable, keep_s: float, orphans_s: float = 86400.0, writing: Sequence[str] = ()
) -> tuple[int, Snapshot]:
    """Delete the table's files that no version within the last `keep_s` seconds names, at once; how many, and the newest version."""

    def newest() -> Snapshot:
        snapshot = lake.load()
        assert snapshot is not None
        return snapshot

    unnamed, now_ms = cleaning.Unnamed(), lake.clock.now_us() // 1000
    unnamed.recall(lake.folder, keep_s, now_ms)
    return cleaning.collect(newest, unnamed, writing, now_ms, keep_s, orphans_s, lambda: False)


# -- readers of others ---------------------------------------------------------------------------------------------------


def disk(lake: LakeTable) -> Path:
    """The table's folder on a local disk."""
    return Path(str(lake.folder))


def read_deltalake(folder: Folder | Path, version: int | None = None) -> pa.Table:
    """By delta-rs."""
    import deltalake

    return pa.table(deltalake.DeltaTable(str(folder), version=version).scan())


def read_polars(folder: Folder | Path, version: int | None = None) -> pa.Table:
    """By polars, through its own reader of Parquet."""
    import polars

    return polars.read_delta(str(folder), version=version).to_arrow()


def read_chdb(folder: Folder | Path, version: int | None = None) -> pa.Table:
    """By ClickHouse's reader (delta-kernel), in a process of its own: the engine takes long to go, and its files must lie below
    the working directory."""
    program = "import sys, chdb; sys.stdout.buffer.write(chdb.query(sys.argv[1], 'ArrowStream').bytes())"
    query = f"SELECT * FROM deltaLakeLocal('{folder}')"
    query += f" SETTINGS delta_lake_snapshot_version = {version}" if version is not None else ""
    done = subprocess.run([sys.executable, "-c", program, query], cwd="/", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return pa.ipc.open_stream(done.stdout).read_all()


def same(found: pa.Table, columns: pa.Schema) -> list[str]:
    """Rows of any reader in a form that can be compared: our types, by `repr` (which tells -0.0 from 0.0), sorted. ClickHouse has no
    NULL for arrays and maps: empty ones count as NULL."""
    arrays = []
    for field in columns:
        column: Any = found.column(field.name)
        if pa.types.is_nested(field.type):
            values = [value or None for value in column.cast(field.type).to_pylist()]
            column = pa.chunked_array([pa.array(values, field.type)])
        if pa.types.is_timestamp(field.type) and pa.types.is_timestamp(column.type) and column.type.tz != field.type.tz:
            column = column.cast(pa.int64())
        arrays.append(column.cast(field.type))
    return sorted(map(repr, pa.table(arrays, schema=columns).to_pylist()))


# -- the writer that is killed --------------------------------------------------------------------------------------------

BEFORE: list[Row] = [(i, f"row {i}") for i in range(100)]
CHANGED: list[Row] = [(i, f"changed {i}") for i in range(95, 105)]
DELETED: list[Row] = [(i,) for i in range(10)]
AFTER: list[Row] = [row for row in BEFORE if 10 <= row[0] < 95] + CHANGED


def main(where: str, steps: Sequence[str]) -> None:
    """Do the steps. For an object store its options are in the environment."""
    root: Root = Path(where)
    if where.startswith("s3://"):
        root = ObjectRoot(where, tuple(sorted(json.loads(os.environ["LAKE_OPTIONS"]).items())))
    lake = LakeTable(root, TABLE, "p")
    for step in steps:
        if step == "bootstrap":
            bootstrap(lake, SIMPLE, BEFORE, files=2)
        elif step == "adopt":
            adopt(lake, SIMPLE, applied(1))
        else:
            snapshot = lake.load()
            assert snapshot is not None
            upsert(lake, snapshot, CHANGED, DELETED)
    print("done", flush=True)


def write_and_die(root: Root, steps: str, faults: str) -> int:
    """Run the writer with these faults armed; its exit code."""
    command = [sys.executable, "-m", "tests.integration.lake_rows", str(root), steps]
    here = Path(__file__).parents[2]
    environment = os.environ | {"LAKESYNC_FAULTS": faults}
    if isinstance(root, ObjectRoot):
        environment["LAKE_OPTIONS"] = json.dumps(dict(root.options))
    return subprocess.run(command, cwd=here, env=environment, capture_output=True, check=False).returncode


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
