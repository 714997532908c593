"""The source's side of a comparison: sums over rows, keys with digests, keys with canonical texts, whichever tables of the source the
rows are in. Everything is made by the server, and read on one connection."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pymysql
from pymysql.cursors import Cursor, DictCursor

from cdc import sharding
from cdc.names import TableName, quote_identifier
from cdc.schema import Column, TableSchema
from cdc.source import canonical, catalogue, results
from cdc.source.connection import is_mariadb, translated
from cdc.source.digests import Hints, bucket_expression, checksum, digest_expression
from reconcile.values.compared import Compared
from reconcile.values.division import Range
from reconcile.values.keysets import DIGEST, DIGEST_TYPE
from snapshot.boundaries import Boundaries
from snapshot.chunks import Walk

POINT_ROWS = 500
"""Keys of one statement that reads rows again."""
STATEMENT_ROWS = 500_000
"""A statement that adds up has at most about so many rows, by the server's estimate."""
PIECE_ROWS = 50_000
"""Rows of one statement that reads keys with digests."""

Rows = tuple[pa.Table, list["pa.Array[Any]"]]
"""Key columns in the lake's types, and every column's canonical text."""


class Sum(NamedTuple):
    """Of some rows: how many, and the sums of both halves of their digests. The order of rows does not matter; a row that is there twice does."""

    rows: int = 0
    high: int = 0
    low: int = 0

    def plus(self, other: Sum) -> Sum:
        return Sum(self.rows + other.rows, self.high + other.high, self.low + other.low)

    def less(self, other: Sum) -> Sum:
        return Sum(self.rows - other.rows, self.high - other.high, self.low - other.low)


@dataclass(frozen=True)
class Part:
    """A table of the source, all of one of the lake, or a shard of it: then `shard` is what the shard's column holds there."""

    table: TableName
    schema: TableSchema
    shard: str | None
    columns: tuple[Column, ...]
    """Of them those that are compared."""
    walk: Walk = field(compare=False)
    """By its key; no other columns."""

    @classmethod
    def of(cls, table: TableName, schema: TableSchema, shard: str | None, compared: Sequence[Column]) -> Part:
        by_name = {c.name: c for c in schema.columns}
        overrides = {k: v for k, v in schema.overrides.items() if k in schema.key}
        keys = TableSchema(tuple(by_name[k] for k in schema.key), schema.key, overrides)
        names = {c.name for c in compared}
        return cls(table, schema, shard, tuple(c for c in schema.columns if c.name in names), Walk(table, keys))

    @property
    def key(self) -> list[str]:
        """Its own, without the shard's column."""
        return list(self.schema.key)

    def named(self, keys: pa.Table, column: str) -> pa.Table:
        """Keys of its own as the lake has them: the shard's name comes first."""
        if self.shard is None:
            return keys.select(self.key)
        names = pa.repeat(pa.scalar(self.shard, pa.string()), keys.num_rows)
        return keys.select(self.key).add_column(0, column, names)

    def own(self, keys: pa.Table) -> pa.Table:
        """Of keys as the lake has them its own, without the shard's name."""
        if self.shard is None:
            return keys
        of_shard: Any = pc.equal(keys.column(0), pa.scalar(self.shard))
        return keys.filter(of_shard.fill_null(False)).select(self.key)


def parts_of(compared: Compared) -> list[Part]:
    """The tables of the source that this one is made of."""
    table, schema, options = compared.table, compared.schema, compared.options
    if not sharding.is_sharded(options):
        return [Part.of(table, schema, None, compared.columns)]
    own = sharding.own(schema, options)
    return [Part.of(shard, own, sharding.value(shard), compared.columns) for shard in sharding.shards(options)]


class SourceSide:
    """Reads a table from the source. What a shard's table does not have any more, or anything else that the server refuses, is raised
    as `SourceError`."""

    def __init__(self, connection: pymysql.Connection[Any], compared: Compared) -> None:
        self.connection = connection
        self.parts = parts_of(compared)
        self._key = compared.key
        self._key_schema = compared.key_schema
        self._mariadb = is_mariadb(connection)
        self._hints: dict[Part, Hints] = {}
        self._where = ""
        self.in_full = 0
        """Rows that were read as text, every column of them."""
        if compared.scope.between is not None and compared.timed is not None:
            self._where = _between(compared.timed, *compared.scope.between[1:])

    def digest(self, part: Part) -> str:
        """The expression for a row's digest."""
        return digest_expression(part.columns, mariadb=self._mariadb, hints=self._hints_of(part))

    def _hints_of(self, part: Part) -> Hints:
        if part not in self._hints:
            self._hints[part] = catalogue.hints(self.connection, part.table)
        return self._hints[part]

    # -- sums ----------------------------------------------------------------------------------------------------------

    def sum(self, part: Part, of: Range) -> Sum:
        """Of the rows of this range, by as many statements as keep each one short."""
        total = Sum()
        for piece in self._cut(part, of):
            rows, arguments = self._from(part, piece, self._where)
            (found,) = self._ask(checksum(_escaped(self.digest(part)), rows), arguments)
            total = total.plus(Sum(*map(int, found)))
        return total

    def _cut(self, part: Part, of: Range) -> list[Range]:
        """A range in pieces, where the server estimates that it has many more rows than was thought: those that the lake lost."""
        if self.estimate(part, of) <= STATEMENT_ROWS:
            return [of]
        halves = Boundaries(self.connection, part.walk).halves(of.low, of.high)
        if halves is None:
            return [of]
        middle, *_ = halves
        first = Range(of.low, middle, of.low_included, high_included=True)
        return self._cut(part, first) + self._cut(part, Range(middle, of.high, False, of.high_included))

    def estimate(self, part: Part, of: Range) -> int:
        """About how many rows a range has, by the server's index."""
        sql, arguments = part.walk.weighed(of.low, of.high)
        with translated(self.connection), self.connection.cursor(DictCursor) as cursor:
            cursor.execute(sql, arguments)
            found: Any = cursor.fetchone()
        return int(found["rows"] or 0)

    def buckets(self, part: Part, of: Range, bits: int, only: Sequence[int] | None) -> dict[int, Sum]:
        """Of the rows of this range, by their keys' bucket, of those buckets alone."""
        rows, arguments = self._from(part, of, self._in_buckets(part, bits, only))
        bucket = self._bucket(part, bits)
        found = self._ask(checksum(_escaped(self.digest(part)), rows, bucket=_escaped(bucket)), arguments)
        return {int(number): Sum(*map(int, rest)) for number, *rest in found}

    def _from(self, part: Part, of: Range, where: str) -> tuple[str, tuple[object, ...]]:
        return part.walk.rows_between(
            of.low, of.high, where=where, after_included=of.low_included, high_included=of.high_included
        )

    def _bucket(self, part: Part, bits: int) -> str:
        return bucket_expression(part.walk.key, mariadb=self._mariadb, bits=bits, hints=self._hints_of(part))

    def _in_buckets(self, part: Part, bits: int, only: Sequence[int] | None) -> str:
        listed = f"{self._bucket(part, bits)} IN ({', '.join(map(str, only))})" if only is not None else ""
        return " AND ".join(filter(None, (f"({self._where})" if self._where else "", listed)))

    def _ask(self, sql: str, arguments: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with translated(self.connection), self.connection.cursor(Cursor) as cursor:
            cursor.execute(sql, arguments)
            return list(cursor.fetchall())

    # -- keys with digests ---------------------------------------------------------------------------------------------

    def rows(self, part: Part, of: Range, most: int) -> tuple[pa.Table, bool]:
        """Keys and digests of the rows that `sum` adds up, and whether they are all: where there are more than `most`, the first ones."""
        found, count = [self._none()], 0
        after, included = of.low, of.low_included
        while True:
            select = functools.partial(
                part.walk.select,
                after,
                of.high,
                PIECE_ROWS,
                [self.digest(part)],
                where=self._where,
                after_included=included,
                high_included=of.high_included,
            )
            before = count
            for batch in self._read(part, select, 1):
                found.append(self._digests(part, batch))
                count += batch.num_rows
                after, included = part.walk.bound(batch), False
            if count - before < PIECE_ROWS or count > most:
                return pa.concat_tables(found), count - before < PIECE_ROWS

    def rows_in_buckets(self, part: Part, of: Range, bits: int, only: Sequence[int]) -> pa.Table:
        """Keys and digests of the rows that `buckets` adds up."""
        select = functools.partial(
            part.walk.select,
            of.low,
            of.high,
            2**63 - 1,
            [self.digest(part)],
            where=self._in_buckets(part, bits, only),
            after_included=of.low_included,
            high_included=of.high_included,
        )
        return pa.concat_tables([self._none(), *(self._digests(part, batch) for batch in self._read(part, select, 1))])

    def digests_of(self, keys: pa.Table) -> pa.Table:
        """Keys and digests of the rows with these keys that are in the scope."""
        found = [self._none()]
        for part in self.parts:
            points = self._points(part, keys, [self.digest(part)], where=self._where)
            found += [self._digests(part, batch) for batch in points]
        return pa.concat_tables(found)

    def _digests(self, part: Part, batch: pa.RecordBatch) -> pa.Table:
        keys = part.named(pa.Table.from_batches([part.walk.rows(batch)]), self._key[0])
        (digest,) = part.walk.also(batch)
        return keys.append_column(DIGEST, digest.cast(DIGEST_TYPE)).cast(self._none().schema)

    def _none(self) -> pa.Table:
        return self._key_schema.append(pa.field(DIGEST, DIGEST_TYPE)).empty_table()

    # -- keys with texts -----------------------------------------------------------------------------------------------

    def texts_of(self, keys: pa.Table) -> Iterator[Rows]:
        """The rows with these keys, each once, with the text of every column, whatever the scope."""
        for part in self.parts:
            texts = [canonical.expression(c, mariadb=self._mariadb) for c in part.schema.columns]
            for batch in self._points(part, keys, texts):
                found = part.named(pa.Table.from_batches([part.walk.rows(batch)]), self._key[0])
                also = part.walk.also(batch)
                if part.shard is not None:
                    also.append(pa.repeat(pa.scalar(part.shard, pa.string()), found.num_rows))
                self.in_full += found.num_rows
                yield found, also

    def _points(self, part: Part, keys: pa.Table, also: Sequence[str], *, where: str = "") -> Iterator[pa.RecordBatch]:
        """The server finds keys that are equal by collation too: they are left out, for they are asked for themselves, perhaps by another
        statement."""
        own = part.own(keys)
        for start in range(0, own.num_rows, POINT_ROWS):
            piece = own.slice(start, POINT_ROWS)
            asked = None if part.walk.ordered else {tuple(row.values()) for row in piece.to_pylist()}
            select = functools.partial(part.walk.points, piece, also, where=where)
            for batch in self._read(part, select, len(also)):
                if asked is None:
                    yield batch
                    continue
                rows = pa.Table.from_batches([part.walk.rows(batch)]).select(part.key).to_pylist()
                exact = pa.array([tuple(row.values()) in asked for row in rows], pa.bool_())
                yield batch.filter(exact)

    def _read(
        self, part: Part, select: Callable[..., tuple[str, tuple[object, ...]]], also: int
    ) -> Iterator[pa.RecordBatch]:
        return results.read(self.connection, lambda text: select(text=text), part.walk.plans(also))


def _between(column: Column, low: str, high: str) -> str:
    name = quote_identifier(column.name)
    edges = [str(pa.scalar(edge).cast(pa.timestamp("us")).cast(pa.string())) for edge in (low, high)]
    return f"{name} >= CAST('{edges[0]}' AS DATETIME(6)) AND {name} < CAST('{edges[1]}' AS DATETIME(6))"


def _escaped(sql: str) -> str:
    return sql.replace("%", "%%")
