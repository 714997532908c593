"""What an earlier check found, compared once more: a sample would not see it again for a long time, and so would not see that it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

import pyarrow as pa

from cdc.config import PipelineConfig
from cdc.lake import LakeTable
from cdc.log import open_log
from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import TableSchema
from cdc.source import canonical
from cdc.state import State
from reconcile.runs import Runs
from reconcile.values import compare as values
from reconcile.values import keynames
from reconcile.values.found import TableValues, ValuesReport

KEYS = 1000
"""Of a table at most so many keys are compared again at a time."""


def note(config: PipelineConfig, runs: Runs, report: ValuesReport) -> None:
    """Keep the keys of what a comparison found, so that they can be compared again. Raises `LakeError`, `StateError`."""
    for table in report.tables:
        if table.found is None or not table.found.num_rows:
            continue
        rows, schema = table.found.slice(0, KEYS), _schema(config, TableName.parse(table.table))
        if schema is not None:
            runs.note_keys(table.table, dict(zip(keynames.names(schema, rows), _keys(schema, rows), strict=True)))


def compare(config: PipelineConfig, runs: Runs, tables: Sequence[TableName]) -> int:
    """Compare again what differed in these tables; what does not any more is settled. How many keys were. Raises as `values.recheck`."""
    state, over = State(config.state), 0
    with closing(open_log(config.log, config.name, config.log_settings())) as log:
        for table in tables:
            keys = runs.keys(table, KEYS)
            if not keys:
                continue
            found = values.recheck(config, log, state, table, list(keys.values()))
            over += runs.settled(table, _alike(config, table, keys, found))
    return over


def _alike(config: PipelineConfig, table: TableName, keys: Mapping[str, Key], found: TableValues) -> list[str]:
    """The names of those `keys` that do not differ any more; none where that is not said of each. Names are not compared: a finding keeps
    the one that it got, from an earlier version perhaps."""
    rows = found.found
    schema = _schema(config, table) if rows is not None else None
    differ = set(_keys(schema, rows)) if schema is not None and rows is not None else set()
    if found.unsettled or found.different > len(differ) or not differ <= set(keys.values()):
        return []
    return [name for name, key in keys.items() if key not in differ]


def _schema(config: PipelineConfig, table: TableName) -> TableSchema | None:
    snapshot = LakeTable(config.lake_root, table, config.name).load()
    return snapshot.schema if snapshot else None


def _keys(schema: TableSchema, rows: pa.Table) -> list[Key]:
    return canonical.key_texts(schema, rows.select(list(schema.key))) if rows.num_rows else []
