"""Where the rows of each of the source's tables go: to the table of that name, or to the one of which it is a shard. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc import sharding, unfit
from cdc.capture.base import TableChanges
from cdc.epoch import Op, TableState
from cdc.log.codec import METADATA, WIDTH, Changes, Incomplete
from cdc.names import TableName
from cdc.schema import TableSchema

GONE = 1
"""`_event` of the change that says that a shard is gone. It has a transaction of its own, without row events."""

_EVENT = METADATA.get_field_index("_event")


@dataclass(frozen=True)
class Source:
    """A captured table of the source. `own` is its schema, `schema` that of `target`, the log's and the lake's table."""

    table: TableName
    own: TableSchema
    target: TableName
    schema: TableSchema

    @property
    def is_shard(self) -> bool:
        """Whether its rows need the shard's column."""
        return self.own is not self.schema

    def mapped(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Changes of this table as changes of the target; `batch` itself where the two are one."""
        if not self.is_shard:
            return batch
        place = batch.num_columns - unfit.is_last(batch.schema)
        column = pa.repeat(pa.scalar(sharding.value(self.table), pa.string()), batch.num_rows)
        columns, fields = list(batch.columns), list(batch.schema)
        columns.insert(place, column)
        fields.insert(place, self.schema.arrow.field(len(self.schema.columns) - 1))
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))

    def lacking(self, incomplete: Incomplete) -> Incomplete:
        """What is known of changes of this table, of them as changes of the target."""
        if not self.is_shard:
            return incomplete
        known = incomplete.known(len(self.own.columns))
        return Incomplete.of(np.concatenate([known, np.ones((len(known), 1), np.bool_)], axis=1), incomplete.diffs)

    def truncation(self, txn: int, row: int, seq: int, *, is_gone: bool = False) -> TableChanges:
        """The change that says that all rows of this shard are gone, the `row`th of its transaction; `is_gone`: and the shard itself. Of its
        row `mapped` makes known which shard it is, and nothing else is."""
        values = {"_op": Op.TRUNCATE, "_txn": txn, "_event": GONE if is_gone else 0, "_row": row, "_seq": seq}
        columns: list[pa.Array[Any]] = [pa.array([values.get(f.name, 0)], f.type) for f in METADATA]
        columns += [pa.nulls(1, field.type) for field in self.own.arrow]
        batch = pa.RecordBatch.from_arrays(columns, schema=pa.schema([*METADATA, *self.own.arrow]))
        assert batch.num_columns == WIDTH + len(self.own.columns)
        return TableChanges(self.table, self.own, batch)


def dropped(state: TableState, found: Iterable[Changes]) -> set[TableName]:
    """Which shards of the log's table these changes say to be gone, of those that it has."""
    names: set[str] = set()
    place = TableSchema.from_dict(state.schema).names.index(state.options["shard_column"])
    for changes in found:
        op, event, shard = (changes.batch.column(i) for i in (0, _EVENT, WIDTH + place))
        rows: Any = pc.and_(
            pc.equal(op, pa.scalar(Op.TRUNCATE, pa.int8())), pc.equal(event, pa.scalar(GONE, pa.int32()))
        )
        names.update(map(str, shard.filter(rows).to_pylist()))
    return {shard for shard in sharding.shards(state.options) if sharding.value(shard) in names}


def sources(states: Mapping[str, TableState]) -> dict[TableName, Source]:
    """Every table of the source that the log's tables are fed from."""
    found: dict[TableName, Source] = {}
    for table, state in states.items():
        target, schema = TableName.from_id(table), TableSchema.from_dict(state.schema)
        if not sharding.is_sharded(state.options):
            found[target] = Source(target, schema, target, schema)
            continue
        own = sharding.own(schema, state.options)
        found |= {shard: Source(shard, own, target, schema) for shard in sharding.shards(state.options)}
    return found
