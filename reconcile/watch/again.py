"""What an earlier check found, compared once more: a sample would not see it again for a long time, and so would not see that it is over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from cdc.config import PipelineConfig
from cdc.lake import LakeTable
from cdc.log import open_log
from cdc.names import TableName
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
        if table.found is not None and table.found.num_rows:
            _note(config, runs, table)


def _note(config: PipelineConfig, runs: Runs, table: TableValues) -> None:
    name = TableName.parse(table.table)
    snapshot = LakeTable(config.lake_root, name, config.name).load()
    if snapshot is None or table.found is None:
        return
    rows = table.found.select(list(snapshot.schema.key)).slice(0, KEYS)
    named = keynames.names(snapshot.schema, rows)
    runs.note_keys(name, dict(zip(named, canonical.key_texts(snapshot.schema, rows), strict=True)))


def compare(config: PipelineConfig, runs: Runs, tables: Sequence[TableName]) -> int:
    """Compare again what differed in these tables; what does not any more is settled. How many keys were. Raises as `values.recheck`."""
    state, over = State(config.state), 0
    with closing(open_log(config.log, config.name, config.log_settings())) as log:
        for table in tables:
            keys = runs.keys(table, KEYS)
            if not keys:
                continue
            found = values.recheck(config, log, state, table, list(keys.values()))
            if found.unsettled or found.different > len(found.differences):
                continue  # which ones are alike is not said
            over += runs.settled(table, keys.keys() - {d.key for d in found.differences})
    return over
