"""Keys that the merger could not complete, as jobs that read them again in windows (`snapshot`); and when these are over.

A job is recorded before the commit that passes over its keys. As long as one is there that the lake has not caught up with, the manifest
calls the table `reading`: of some keys it lacks a change. The state folder may be lost with it; then all of the table is read again.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc import sharding
from cdc.epoch import CommitRecord, TableState
from cdc.journal import logger
from cdc.lake import LakeTable, Snapshot
from cdc.lake.columns import OP, SEQ
from cdc.lake.keys import KeyIndex
from cdc.log import captured
from cdc.log.base import Log
from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import TableSchema
from cdc.source import canonical
from cdc.state import ReadSpec, State

LOG = logger("merge")
KEYS = 10_000
"""Of one job."""


def ask(state: State, target: TableName, found: TableState, keys: pa.Table) -> None:
    """Have these keys of the lake's table read again, from the table of the source that each is of; those that are yet to be read anyway are
    not asked for twice. Raises `StateError`."""
    waiting = _waiting(state, target)
    schema = TableSchema.from_dict(found.schema)
    own = sharding.own(schema, found.options)
    tables: dict[TableName, pa.Table] = {target: keys}
    if sharding.is_sharded(found.options):
        shard = keys.column(schema.key[0])
        of_value = {sharding.value(table): table for table in sharding.shards(found.options)}
        # A shard that is gone has no rows to be read: they went with it, or go.
        tables = {
            of_value[value]: keys.filter(pc.equal(shard, pa.scalar(value)))
            for value in pc.unique(shard).to_pylist()
            if value in of_value
        }
    for table, some in tables.items():
        texts = [key for key in canonical.key_texts(own, some) if (table, key) not in waiting]
        for start in range(0, len(texts), KEYS):
            spec = ReadSpec(keys=tuple(texts[start : start + KEYS]))
            read = state.ask_read(table, target, spec, "repair")
            LOG.info("keys-read-again", table=str(table), job=read.job, keys=len(spec.keys))


def _waiting(state: State, target: TableName) -> set[tuple[TableName, Key]]:
    """The keys of jobs that never began: their windows will be opened behind all that is in the log by now. Else a key that changes all the time
    would be in a new job of every round, for as long as no reader is free."""
    reads = [read for read in state.reads_of("repair") if read.target == target]
    never = [read for read in reads if read.phase == "waiting" and read.started_us is None]
    return {(read.table, key) for read in never for key in read.spec.keys}


def awaited(state: State, target: TableName, found: TableState) -> frozenset[Key]:
    """The keys of a table, as jobs have them, that are to be read again and of which the lake may not have that yet: its row is not what the
    source had, and neither is what follows from it."""
    keys: set[Key] = set()
    for read in state.reads_of("repair"):
        if read.target == target and (read.open or read.phase == "done"):
            shard = (sharding.value(read.table),) if sharding.is_sharded(found.options) else ()
            keys.update((*shard, *key) for key in read.spec.keys)
    return frozenset(keys)


def known(schema: TableSchema, rows: pa.Table, awaited: Collection[Key]) -> pa.Table:
    """Rows without those of keys that are awaited."""
    if not awaited or not rows.num_rows:
        return rows
    keys = canonical.key_texts(schema, rows.select(list(schema.key)))
    return rows.filter(pa.array([key not in awaited for key in keys]))


def settle(state: State, log: Log, target: CommitRecord, tables: Collection[TableName]) -> set[TableName]:
    """The lake has these tables as of `target`: forget the jobs of which it has everything. Of which tables there are others."""
    unsettled: set[TableName] = set()
    for read in state.reads_of("repair"):
        if not read.open and read.phase != "done":
            continue
        if read.phase == "done" and read.target in tables and (read.last is None or read.last.number <= target.number):
            if read.last is None or captured.has(log, read.last):
                state.forget_read(read.job)
                continue
            state.restart_read(read.job, "the log lost its windows")
        unsettled.add(read.target)
    return unsettled


def latest(lake: LakeTable, on: Snapshot, keys: pa.Table) -> pa.Table:
    """The last row of each of these keys in an `append` table, if that is none of a deletion."""
    index = KeyIndex(keys, str(lake.table))
    found: list[pa.Table] = []
    for batch in lake.scan(on):
        rows = pa.Table.from_batches([batch])
        rows = rows.filter(pc.is_valid(index.locate(rows.select(keys.column_names))))
        if rows.num_rows:
            found.append(rows)
    if not found:
        return on.schema.arrow.empty_table()
    rows = pa.concat_tables(found)
    place = index.locate(rows.select(keys.column_names)).to_numpy()
    order = np.lexsort((rows.column(SEQ).to_numpy(), place))
    last = order[np.append(place[order][1:] != place[order][:-1], True)]
    rows = rows.take(pa.array(last))
    return rows.filter(pc.not_equal(rows.column(OP), pa.scalar("delete")))
