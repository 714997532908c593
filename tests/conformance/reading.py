"""One table three ways: as a snapshot reads it, as the binary log leaves it, and as the server prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cdc import unfit
from cdc.capture.base import Decoder, Drained
from cdc.capture.native import NativeDecoder
from cdc.config import SourceConfig
from cdc.epoch import Op
from cdc.log.codec import WIDTH
from cdc.names import TableName, quote_identifier
from cdc.position import BinlogEnd, Position
from cdc.schema import TableSchema
from cdc.source import canonical, catalogue, digests, results
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect, is_mariadb
from cdc.source.dump import BinlogStream
from cdc.source.server import Server

Row = tuple[bytes | None, ...]


def schema_of(source: SourceConfig, table: TableName) -> TableSchema:
    """The table's columns as they are captured."""
    connection = connect(source, purpose="test")
    try:
        return read_schema(connection, table)
    finally:
        connection.close()


def position(source: SourceConfig) -> Position:
    """Where the server is."""
    connection = connect(source, purpose="test")
    try:
        return Server(connection).position()
    finally:
        connection.close()


def end(source: SourceConfig) -> BinlogEnd:
    """The end of the server's binary log."""
    connection = connect(source, purpose="test")
    try:
        return Server(connection).binlog_end()
    finally:
        connection.close()


def _ordered(schema: TableSchema) -> str:
    return ", ".join(map(quote_identifier, dict.fromkeys(("id", *schema.key))))


def snapshot(source: SourceConfig, table: TableName, schema: TableSchema, *, text: bool = False) -> pa.Table:
    """The rows by SELECT, through prepared statements or (`text`) as text, in the order of `printed`."""
    connection = connect(source, purpose="test", streaming=True)
    try:

        def statement(as_text: bool) -> tuple[str, tuple[object, ...]]:
            columns = results.select_list(schema, as_text)
            return f"SELECT {columns} FROM {table.quoted} ORDER BY {_ordered(schema)}", ()

        found = list(results.read(connection, statement, schema.plans()))
    finally:
        connection.close()
    return _whole([_with_unfit(b, schema) for b in found], schema)


def printed(source: SourceConfig, table: TableName, schema: TableSchema) -> list[Row]:
    """The rows as the server's canonical text."""
    connection = connect(source, purpose="test", streaming=True)
    try:
        texts = ", ".join(canonical.expression(c, mariadb=is_mariadb(connection)) for c in schema.columns)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {texts} FROM {table.quoted} ORDER BY {_ordered(schema)}")
            return [tuple(None if v is None else v.encode() for v in row) for row in cursor.fetchall()]
    finally:
        connection.close()


def digested(source: SourceConfig, table: TableName, schema: TableSchema) -> list[bytes | None]:
    """The rows' digests as the server computes them, with the hints that it gives."""
    connection = connect(source, purpose="test")
    try:
        hints = catalogue.hints(connection, table)
        sql = digests.digest_expression(schema.columns, mariadb=is_mariadb(connection), hints=hints)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {sql} FROM {table.quoted} ORDER BY {_ordered(schema)}")
            return [row[0] for row in cursor.fetchall()]
    finally:
        connection.close()


def digests_of(rows: pa.Table, schema: TableSchema) -> list[bytes | None]:
    """Arrow's rows as digests."""
    if not rows.num_rows:
        return []
    (batch,) = rows.combine_chunks().to_batches()
    found: list[Any] = list(digests.digests(schema.columns, batch, batch.column(-1)).to_pylist())
    return found


def texts(rows: pa.Table, schema: TableSchema) -> list[Row]:
    """Arrow's rows as canonical text."""
    if not rows.num_rows:
        return []
    (batch,) = rows.combine_chunks().to_batches()
    columns = [canonical.texts(c, batch.column(i), batch.column(-1)) for i, c in enumerate(schema.columns)]
    cells = [[None if v is None else v.encode() for v in column.to_pylist()] for column in columns]
    return list(zip(*cells, strict=True))


def streamed(source: SourceConfig, table: TableName, schema: TableSchema, before: Position, end: BinlogEnd) -> pa.Table:
    """All changes of the table from `before` to `end`: the six columns of metadata, the table's, and `_cdc_unfit`."""
    connection = connect(source, purpose="test")
    decoder = NativeDecoder(mariadb=is_mariadb(connection))
    connection.close()
    decoder.capture({table: schema})
    batches = []
    with BinlogStream(source, before.gtids, heartbeat_s=0.1) as stream:
        for data in stream:
            while not decoder.feed(data):
                data = b""
            drained = decoder.drain()
            assert not drained.stops, drained.stops
            for changes in drained.changes:
                assert changes.presence is None
                changes.batch.validate(full=True)
                batches.append(_with_unfit(changes.batch, schema, WIDTH))
            if decoder.idle and drained.end.file and drained.end >= end:
                break
    return pa.Table.from_batches(batches) if batches else pa.table([])


def sent(source: SourceConfig, before: Position, end: BinlogEnd) -> list[bytes]:
    """What the server sends from `before` to `end`, in pieces."""
    pieces: list[bytes] = []
    probe = NativeDecoder()
    with BinlogStream(source, before.gtids, heartbeat_s=0.1) as stream:
        for data in stream:
            pieces.append(data)
            assert probe.feed(data)
            at = probe.drain().end
            if probe.idle and at.file and at >= end:
                return pieces
    raise AssertionError("the stream ended")


def decoded(decoder: Decoder, pieces: list[bytes], table: TableName, schema: TableSchema) -> tuple[Drained, pa.Table]:
    """All that a decoder makes of these pieces, and the table's changes alone."""
    decoder.capture({table: schema})
    for piece in pieces:
        assert decoder.feed(piece)
    drained = decoder.drain()
    assert not drained.stops, drained.stops
    batches = [changes.batch for changes in drained.changes]
    return drained, pa.Table.from_batches(batches).combine_chunks() if batches else pa.table([])


def left(changes: pa.Table, schema: TableSchema) -> dict[tuple[Any, ...], int]:
    """The keys that the changes leave of an empty table, each with the place of its row in `changes`."""
    if not changes.num_rows:
        return {}
    keys = list(zip(*(changes.column(n).to_pylist() for n in schema.key), strict=True))
    found: dict[tuple[Any, ...], int] = {}
    ops = changes.column(0).to_pylist()
    moved = False
    for place, (op, key) in enumerate(zip(ops, keys, strict=True)):
        if op in (Op.DELETE, Op.MOVE_OUT):
            del found[key]
        else:
            assert (key in found) == (op == Op.UPDATE and not moved), f"{op} of a key that is {key in found} there"
            found[key] = place
        moved = op == Op.MOVE_OUT
    return found


def rows_of(changes: pa.Table, places: Sequence[int], schema: TableSchema) -> pa.Table:
    """Rows of `changes`, without metadata."""
    if not places:
        return _whole([], schema)
    return changes.take(pa.array(places)).select(changes.column_names[WIDTH:]).combine_chunks()


def _with_unfit(batch: pa.RecordBatch, schema: TableSchema, width: int = 0) -> pa.RecordBatch:
    if batch.num_columns == width + len(schema.columns):
        return batch.append_column(unfit.FIELD, pa.nulls(batch.num_rows, unfit.TYPE))
    return batch


def _whole(batches: list[pa.RecordBatch], schema: TableSchema) -> pa.Table:
    return pa.Table.from_batches(batches, pa.schema([*schema.arrow, unfit.FIELD])).combine_chunks()


__all__ = [
    "digested",
    "digests_of",
    "end",
    "left",
    "position",
    "printed",
    "rows_of",
    "schema_of",
    "snapshot",
    "streamed",
    "texts",
]
