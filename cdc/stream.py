"""The log read by others: commit records, and one table's changes as Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc.epoch import CommitRecord
from cdc.errors import ConfigError
from cdc.log import Log
from cdc.log.codec import DIFFS, METADATA, PRESENT, UNKNOWN, WIDTH, Incomplete, decode
from cdc.names import TableName

_join: Any = pc.binary_join_element_wise
"""Its stubs know no separator."""
OPERATIONS = ("insert", "update", "delete", "update-old-key", "read", "truncate")
"""Names of `cdc.epoch.Op`. A key change is `update-old-key`, the row before, and `update`, the row after, with the same `_gid`."""


DIFFERENCES = ("replace", "insert", "remove")
_DIFFERENCE: Any = pa.struct([(name, pa.string()) for name in ("column", "op", "path", "value")])


def records(log: Log, from_epoch: int | None) -> Iterator[CommitRecord]:
    """Commit records from this epoch on. Raises `ConfigError` for one that is trimmed, `LogError`."""
    oldest, newest = log.oldest(), log.newest()
    if from_epoch is not None and oldest and newest and not oldest.number <= from_epoch <= newest.number + 1:
        raise ConfigError(
            f"the log has epochs {oldest.number} to {newest.number}",
            where=f"--from {from_epoch}",
            hint="begin with one of those",
        )
    yield from log.records(None if from_epoch is None else from_epoch - 1)


def changes(log: Log, table: TableName, from_epoch: int | None) -> Iterator[pa.RecordBatch]:
    """One table's changes, a batch a record of the log; `_cdc_unfit` is the last column where a row of the record needs it. Where a row lacks
    values (`cdc.log.codec.Incomplete`), `_cdc_present` and `_cdc_diffs` follow: the names of the columns that it has, and differences of JSON
    values.

    Raises `ConfigError` for a table that no record names, `LogError`.
    """
    seen = False
    for record in records(log, from_epoch):
        seen = seen or table.id in record.tables or table.id in record.added or table.id in (record.states or ())
        entry = record.tables.get(table.id)
        for payload in log.data(table.id, entry.extent) if entry else ():
            decoded = decode(payload)
            batch = decoded.batch
            rows = batch.num_rows
            txn, event, row = (batch.column(METADATA.get_field_index(n)) for n in ("_txn", "_event", "_row"))
            gtids = pc.take(pa.array(decoded.gtids, pa.string()), txn)
            place = _join(event.cast(pa.string()), row.cast(pa.string()), ".")
            columns: dict[str, pa.Array[Any]] = {
                "_op": pc.take(pa.array(OPERATIONS), batch.column(0)),
                "_gid": _join(gtids, place, "/"),
                "_epoch": pa.array([record.number] * rows, pa.int64()),
                "_ts_ms": batch.column(METADATA.get_field_index("_ts_ms")),
                "_seq": batch.column(METADATA.get_field_index("_seq")),
            }
            fields = [pa.field(k, v.type) for k, v in columns.items()] + list(batch.schema)[WIDTH:]
            arrays = [*columns.values(), *batch.columns[WIDTH:]]
            if decoded.incomplete is not None:
                found = _told(decoded.incomplete, [f.name for f in list(batch.schema)[WIDTH:]][: len(decoded.types)])
                arrays += found.columns
                fields += list(found.schema)
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
    if not seen:
        raise ConfigError(
            "no epoch that the log has names this table", where=str(table), hint="`lakesync status` lists them"
        )


def _told(incomplete: Incomplete, names: Sequence[str]) -> pa.RecordBatch:
    """By name, which rows have which columns, and their differences; NULL: all of them, and none."""
    present, diffs = [], []
    for known, row in zip(incomplete.known(len(names)), incomplete.diffs.to_pylist(), strict=True):
        present.append(None if known.all() else [name for name, there in zip(names, known, strict=True) if there])
        told = [
            {"column": names[d["column"]], "op": DIFFERENCES[d["op"]], "path": d["path"], "value": d["value"]}
            for d in row or ()
            if d["op"] != UNKNOWN
        ]
        diffs.append(told or None)
    columns: list[pa.Array[Any]] = [pa.array(present, pa.list_(pa.string())), pa.array(diffs, pa.list_(_DIFFERENCE))]
    return pa.RecordBatch.from_arrays(columns, names=[PRESENT, DIFFS])
