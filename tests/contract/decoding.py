"""What the decoders' suites ask of what was decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cdc.capture.base import Decoder
from cdc.epoch import Op
from cdc.errors import LakesyncError
from cdc.log.codec import METADATA, WIDTH
from cdc.names import TableName, quote_identifier
from cdc.position import BinlogEnd
from cdc.schema import TableSchema
from cdc.source import results
from cdc.source.connection import connect
from cdc.unfit import FIELD, is_last
from dev.mysql import MySQLServer
from tests.contract.binlog import Decoded, Packets, Recording, decode, source


def drained(decoder: Decoder, recorded: Recording, tables: Mapping[TableName, TableSchema]) -> Decoded:
    decoder.capture(tables)
    return decode(decoder, recorded.events)


def ends(decoder: Decoder, recorded: Recording, tables: Mapping[TableName, TableSchema]) -> list[BinlogEnd]:
    """Where each transaction ends."""
    decoder.capture(tables)
    packets, found = Packets(), []
    for event in recorded.events:
        assert decoder.feed(packets.of(event))
        one = decoder.drain()
        found += [one.end] * one.whole
    return found


def rows(found: Decoded, table: str) -> list[dict[str, Any]]:
    """The changes of a table, in order: the six first columns by their names without underline, `cells`, and what only some rows have:
    `unfit` (text by column), `present` (a flag a column) and `diffs` (of JSON values)."""
    out = []
    for changes in found.changes:
        if changes.table.name != table:
            continue
        batch = changes.batch
        fields = [*METADATA, *changes.schema.arrow] + [FIELD] * is_last(batch.schema)
        assert batch.schema.equals(pa.schema(fields))
        batch.validate(full=True)
        width = len(changes.schema.columns)
        for i in range(batch.num_rows):
            cells = [c[i].as_py() for c in batch.columns]
            row = dict(zip(("op", "txn", "event", "row", "ts_ms", "seq"), cells, strict=False))
            row["cells"] = tuple(cells[WIDTH : WIDTH + width])
            if is_last(batch.schema) and cells[-1] is not None:
                row["unfit"] = dict(cells[-1])
            if changes.presence is not None:
                assert len(changes.presence) == batch.num_rows
                mask = int.from_bytes(changes.presence[i].as_py(), "little")
                row["present"] = tuple(bool(mask >> c & 1) for c in range(width))
            if changes.diffs is not None and changes.diffs[i].as_py():
                row["diffs"] = changes.diffs[i].as_py()
            out.append(row)
    return out


def table_rows(server: MySQLServer, schema: str, table: str, of: TableSchema) -> pa.RecordBatch:
    """The table as a snapshot reads it."""
    connection = connect(source(server), purpose="test", streaming=True)
    try:
        key = ", ".join(quote_identifier(k) for k in of.key)
        sql = f"SELECT {results.select_list(of)} FROM `{schema}`.`{table}` ORDER BY {key}"
        (batch,) = results.read(connection, lambda _: (sql, ()), of.plans())
        return batch
    finally:
        connection.close()


def folded(found: Decoded, table: str, of: TableSchema) -> list[tuple[Any, ...]]:
    """The rows that the changes leave of an empty table."""
    places = [of.names.index(k) for k in of.key]
    left: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for row in rows(found, table):
        key = tuple(row["cells"][p] for p in places)
        if row["op"] in (Op.DELETE, Op.MOVE_OUT):
            del left[key]
        else:
            assert (key in left) == (
                row["op"] == Op.UPDATE and (row["row"], row["event"], row["txn"]) not in moved(found, table)
            )
            left[key] = row["cells"]
    return [left[k] for k in sorted(left)]


def moved(found: Decoded, table: str) -> set[tuple[int, int, int]]:
    return {(r["row"], r["event"], r["txn"]) for r in rows(found, table) if r["op"] == Op.MOVE_OUT}


def stopped(found: Decoded, table: str) -> tuple[int, LakesyncError]:
    (stop,) = [s for s in found.stops if s.table.name == table]
    assert stop.error.hint
    assert str(stop.table) in stop.error.where
    assert str(found.transactions[stop.txn].gtid) in stop.error.where
    return stop.txn, stop.error
