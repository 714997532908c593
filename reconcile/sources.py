"""The source's side of a comparison: a table's rows as keys in the lake's types and canonical texts, whichever tables of the source
they are in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pymysql

from cdc import sharding
from cdc.names import TableName
from cdc.schema import TableSchema
from cdc.source import canonical, results
from cdc.source.connection import is_mariadb
from snapshot.chunks import Bound, Walk

CHUNK_ROWS = 50_000
POINT_ROWS = 500
"""Keys of one statement that reads rows again."""

Rows = tuple[pa.Table, list["pa.Array[Any]"]]
"""Key columns in the lake's types, and every column's canonical text."""


@dataclass(frozen=True)
class _Part:
    """A table of the source, all of one of the lake, or a shard of it: then `shard` is what the shard's column holds there."""

    table: TableName
    schema: TableSchema
    shard: str | None

    @property
    def keys_only(self) -> TableSchema:
        columns = {c.name: c for c in self.schema.columns}
        overrides = {k: v for k, v in self.schema.overrides.items() if k in self.schema.key}
        return TableSchema(tuple(columns[k] for k in self.schema.key), self.schema.key, overrides)

    def in_lake(self, keys: pa.Table, texts: list[pa.Array[Any]], column: str) -> Rows:
        """Its rows as the lake has them: with the shard's name, first of the key and last of the columns."""
        if self.shard is None:
            return keys, texts
        names = pa.repeat(pa.scalar(self.shard, pa.string()), keys.num_rows)
        return keys.add_column(0, column, names), [*texts, names]


class SourceRows:
    """Reads a table of the lake with this schema and these options from the source. What a shard's table does not have any more, or
    anything else that the server refuses, is raised as by PyMySQL."""

    def __init__(
        self,
        connection: pymysql.Connection[Any],
        table: TableName,
        schema: TableSchema,
        options: Mapping[str, Any],
        progress: Callable[[str, int], None] | None,
    ) -> None:
        self._connection, self._table, self._key, self._progress = connection, table, list(schema.key), progress
        self._parts = [_Part(table, schema, None)]
        if sharding.is_sharded(options):
            own = sharding.own(schema, options)
            self._parts = [_Part(shard, own, sharding.value(shard)) for shard in sharding.shards(options)]

    def whole(self) -> Iterator[Rows]:
        """The whole table, in chunks by key, each a short read of its own."""
        rows = 0
        for part in self._parts:
            walk, texts = Walk(part.table, part.keys_only), self._expressions(part)
            after: Bound | None = None
            while True:
                begun, found = rows, after
                for batch in self._read(walk, functools.partial(walk.select, after, None, CHUNK_ROWS, texts), part):
                    yield part.in_lake(pa.Table.from_batches([walk.rows(batch)]), walk.also(batch), self._key[0])
                    rows += batch.num_rows
                    found = walk.bound(batch)
                    if self._progress:
                        self._progress(str(self._table), rows)
                if rows - begun < CHUNK_ROWS:
                    break
                after = found

    def points(self, suspects: pa.Table) -> Iterator[Rows]:
        """Rows with the suspects' keys, each once. The server finds keys that are equal by collation too: they are left out, for
        they are suspects of their own, perhaps of another statement."""
        for part in self._parts:
            walk, texts, own = Walk(part.table, part.keys_only), self._expressions(part), suspects
            if part.shard is not None:
                of_shard = pc.equal(suspects.column(self._key[0]), pa.scalar(part.shard))
                own = suspects.filter(of_shard).select(self._key[1:])
            for start in range(0, own.num_rows, POINT_ROWS):
                keys = own.slice(start, POINT_ROWS)
                asked = {tuple(row.values()) for row in keys.to_pylist()}
                for batch in self._read(walk, functools.partial(walk.points, keys, texts), part):
                    found = pa.Table.from_batches([walk.rows(batch)]).select(list(part.schema.key))
                    exact = pa.array([tuple(row.values()) in asked for row in found.to_pylist()], pa.bool_())
                    also = [t.filter(exact) for t in walk.also(batch)]
                    yield part.in_lake(found.filter(exact), also, self._key[0])

    def _read(
        self, walk: Walk, statement: Callable[..., tuple[str, tuple[object, ...]]], part: _Part
    ) -> Iterator[pa.RecordBatch]:
        plans = walk.plans(len(part.schema.columns))
        return results.read(self._connection, lambda text: statement(text=text), plans)

    def _expressions(self, part: _Part) -> list[str]:
        mariadb = is_mariadb(self._connection)
        return [canonical.expression(c, mariadb=mariadb) for c in part.schema.columns]
