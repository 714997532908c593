"""A pipeline with tables of many keys, for tests of comparing values: small cells and chunks, so that a few thousand rows are many of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from cdc.config import PipelineConfig, load
from cdc.log import open_log
from cdc.log.base import Log
from cdc.names import TableName
from cdc.state import State
from dev.sqlserver import SqlServer
from reconcile.values import checksums, comparison, division
from reconcile.values import compare as values
from reconcile.values.found import TableValues, ValuesReport
from tests.faults.rig import PASSWORD, Rig

ROWS = 3_000
NUMBERS, PAIRS, TIMES, TEXTS, SHARDED = (f"v.{name}" for name in ("numbers", "pairs", "times", "texts", "sharded"))
ENTRIES: list[Any] = [
    NUMBERS,
    PAIRS,
    {"name": TIMES, "mode": "history"},
    {"name": TEXTS, "mode": "soft-delete"},
    {"name": "v.shard_*", "into": SHARDED, "shard_column": "shard"},
]
COLUMNS = "name VARCHAR(40), price DECIMAL(12,2), at DATETIME(3), x DOUBLE"


def row(n: int) -> str:
    """All that is not the key, of row number n."""
    return f"'näme {n}', {n}.50, '2026-01-01' + INTERVAL {n} MINUTE, {n} / 3"


KEYS = {
    "numbers": ("id BIGINT PRIMARY KEY", "id", "{n}0"),
    "pairs": (
        "a INT, b VARBINARY(8), PRIMARY KEY (a, b)",
        "a, b",
        "{n} DIV 700, CHAR({n} % 700 DIV 26 + 97, {n} % 26 + 97)",
    ),
    "times": (
        "day DATE, id DECIMAL(20,3), PRIMARY KEY (day, id)",
        "day, id",
        "'2020-01-01' + INTERVAL {n} DIV 10 DAY, {n}.125",
    ),
    "texts": ("id VARCHAR(20) PRIMARY KEY", "id", "CONCAT(IF({n} % 2, 'é', 'E'), {n})"),
    "shard_a": ("id INT PRIMARY KEY", "id", "{n}0"),
    "shard_b": ("id INT PRIMARY KEY", "id", "{n}5"),
}
"""By table: the key's definition, its columns, their values in row number n. Those of numbers go by tens, so that there is room between them."""


def fill(server: SqlServer) -> None:
    """The source's tables."""
    server.execute("CREATE DATABASE v CHARACTER SET utf8mb4")
    for name, (key, names, value) in KEYS.items():
        server.execute(f"CREATE TABLE v.{name} ({COLUMNS}, {key})")
        rows = ", ".join(f"({value.format(n=n)}, {row(n)})" for n in range(1, ROWS + 1))
        server.execute(f"INSERT INTO v.{name} ({names}, name, price, at, x) VALUES {rows}")


@contextmanager
def copied(base: Rig, folder: Path) -> Iterator[Rig]:
    """The pipeline as it was when its source was filled, in a folder of its own."""
    shutil.copytree(base.folder, folder / "p", ignore=shutil.ignore_patterns("trace", "trace.json"))
    copy = Rig(folder / "p", base.server, base.tables, settings={"tables": ENTRIES})
    try:
        yield copy
    finally:
        copy.close()


def compared(rig: Rig, table: str, **options: Any) -> TableValues:
    """The comparison of one table, here."""
    (found,) = compare(rig, table, **options).tables
    return found


def compare(rig: Rig, *tables: str, **options: Any) -> ValuesReport:
    """The comparison of these tables, here."""
    with opened(rig) as (config, log, state):
        return values.compare(config, log, state, [TableName.parse(t) for t in tables], **options)


@contextmanager
def opened(rig: Rig) -> Iterator[tuple[PipelineConfig, Log, State]]:
    """What a comparison is given of a pipeline."""
    os.environ["RIG_PASSWORD"] = PASSWORD
    config = load(rig.config)
    with closing(open_log(config.log, config.name)) as log:
        yield config, log, State(config.state)


def small(monkeypatch: pytest.MonkeyPatch, cell: int = 40, chunk: int = 400) -> None:
    """Cells and chunks of so many rows."""
    for module in (checksums, comparison, division):
        monkeypatch.setattr(module, "CELL_ROWS", cell)
    for module in (checksums, comparison):
        monkeypatch.setattr(module, "CHUNK_ROWS", chunk)


def delta(rig: Rig, table: str) -> deltalake.DeltaTable:
    """A table of the lake, for others to write to."""
    return deltalake.DeltaTable(str(rig.lake / table.replace(".", "/")))


def like(table: deltalake.DeltaTable, predicate: str, **changes: Any) -> pa.Table:
    """One row of the table, with other values."""
    found = pa.table(table.scan(predicate=predicate))
    return pa.Table.from_pylist([found.to_pylist()[0] | changes], schema=found.schema)
