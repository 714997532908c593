"""The trace's tables in ClickHouse. Rows are keyed by the hash of the commit record, so writing them twice changes nothing.

`lakesync_nodes` has one row a node, table and epoch (nodes source, capture, window, log) or lake commit (nodes merge, snapshot),
named by the epoch's hash; ask it with FINAL. `lakesync_newest` has the newest of them of every node and table, which stays when retention
takes the others: with the running totals in it the ledger's balance does not depend on how long detail is kept. What a column means at
which node is in docs/trace.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import pyarrow as pa

NODES: Final = "lakesync_nodes"
NEWEST: Final = "lakesync_newest"

_COLUMNS: Final = (
    ("pipeline", "LowCardinality(String)", pa.string()),
    ("node", "LowCardinality(String)", pa.string()),
    ("table", "LowCardinality(String)", pa.string()),
    ("hash", "String", pa.string()),
    ("log", "LowCardinality(String)", pa.string()),
    ("number", "Int64", pa.int64()),
    ("first_number", "Int64", pa.int64()),
    ("before", "String", pa.string()),
    ("committed", "DateTime64(6, 'UTC')", pa.timestamp("us", "UTC")),
    ("done", "DateTime64(6, 'UTC')", pa.timestamp("us", "UTC")),
    ("transactions", "Int64", pa.int64()),
    ("gtids", "Int64", pa.int64()),
    ("events", "Int64", pa.int64()),
    ("bytes", "Int64", pa.int64()),
    ("inserts", "Int64", pa.int64()),
    ("updates", "Int64", pa.int64()),
    ("deletes", "Int64", pa.int64()),
    ("key_changes", "Int64", pa.int64()),
    ("reads", "Int64", pa.int64()),
    ("windowed", "Int64", pa.int64()),
    ("total", "Int64", pa.int64()),
    ("superseded", "Int64", pa.int64()),
    ("duplicate", "Int64", pa.int64()),
    ("effective", "Int64", pa.int64()),
    ("inserted", "Int64", pa.int64()),
    ("replaced", "Int64", pa.int64()),
    ("removed", "Int64", pa.int64()),
    ("absent", "Int64", pa.int64()),
    ("truncated", "Int64", pa.int64()),
    ("rows_added", "Int64", pa.int64()),
    ("rows_deleted", "Int64", pa.int64()),
    ("live_before", "Int64", pa.int64()),
    ("live_after", "Int64", pa.int64()),
    ("version", "Int64", pa.int64()),
    ("lake_id", "LowCardinality(String)", pa.string()),
    ("captured", "DateTime64(6, 'UTC')", pa.timestamp("us", "UTC")),
    ("logged", "DateTime64(6, 'UTC')", pa.timestamp("us", "UTC")),
    ("merged", "DateTime64(6, 'UTC')", pa.timestamp("us", "UTC")),
    ("readable", "DateTime64(6, 'UTC')", pa.timestamp("us", "UTC")),
    ("rows_in", "Int64", pa.int64()),
    ("rows_out", "Int64", pa.int64()),
    ("bytes_in", "Int64", pa.int64()),
    ("bytes_out", "Int64", pa.int64()),
    ("totals", "Map(String, Int64)", pa.map_(pa.string(), pa.int64())),
    ("kind", "LowCardinality(String)", pa.string()),
    ("foreign", "Int64", pa.int64()),
    ("begins", "String", pa.string()),
    ("ends", "String", pa.string()),
)

ARROW: Final = pa.schema([pa.field(name, arrow) for name, _, arrow in _COLUMNS])
"""The rows to insert: strings and timestamps are never null, counts that a node does not have are 0, `version` -1."""

KEYS: Final = {NODES: "pipeline, node, table, hash", NEWEST: "pipeline, node, table"}
"""What rows are keyed by, as ClickHouse says it without quotes."""

_ENGINES: Final = {
    # By month: what is old goes in whole parts, and a question about some days does not read all the others.
    NODES: "ReplacingMergeTree PARTITION BY toYYYYMM(committed) ORDER BY (pipeline, node, `table`, hash)",
    NEWEST: "ReplacingMergeTree(done) ORDER BY (pipeline, node, `table`)",
}


def create(table: str) -> str:
    """The statement that makes one of the tables where it is not there."""
    columns = ",\n    ".join(f"`{name}` {kind}" for name, kind, _ in _COLUMNS)
    return f"CREATE TABLE IF NOT EXISTS {table} (\n    {columns}\n) ENGINE = {_ENGINES[table]}"


def widen(table: str, have: Collection[str]) -> str | None:
    """The statement for a table that another version made and that has these columns; None if it has all."""
    new = [f"ADD COLUMN IF NOT EXISTS `{name}` {kind}" for name, kind, _ in _COLUMNS if name not in have]
    return f"ALTER TABLE {table} " + ", ".join(new) if new else None


def foreign(table: str, engine: str, key: str, columns: Mapping[str, str]) -> str:
    """Why a table of this name cannot be the trace's, whichever version made it; empty where it can. `columns`: types by name."""
    if not engine.endswith("ReplacingMergeTree"):
        return f"its engine is {engine}"
    if key.replace("`", "") != KEYS[table]:
        return f"it is ordered by ({key})"
    for name, kind, _ in _COLUMNS:
        if name in columns and columns[name] != kind:
            return f"its column {name} is {columns[name]}"
    return ""
