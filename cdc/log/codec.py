"""The record format: a table's row changes as Arrow IPC streams, one a record.

A record is one IPC stream of one batch. Its first six columns are `METADATA`, the rest are the source's columns in order; columns
are told apart by place, since a source's column may have any name. A last one, `_cdc_unfit` (`cdc.unfit`), is there if some row of
the record has a value that its column's type cannot hold; it is the only map. The schema's metadata holds `lakesync.v` (`1`),
`lakesync.schema` (hash of the table's schema) and `lakesync.gtids` (JSON list of the GTIDs that this record uses; `_txn`
indexes it). Types are plain: no extension types, dictionaries, unions or views, so that any Arrow reads them. Pure: no I/O.

A record with an incomplete row (`Incomplete`) is of format `2`: two columns more, behind all others, `_cdc_present` and `_cdc_diffs`, with
a value a row. A value that is not present is NULL in its column, and not known: it is completed from the row before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cdc import unfit
from cdc.epoch import Op
from cdc.errors import LogDamagedError, TableStoppedError
from cdc.log.base import RECORD_LIMIT, RECORD_MAXIMUM, Payload

FORMAT = b"1"
"""`lakesync.v`. A record of another format is refused, never guessed at."""
INCOMPLETE = b"2"
"""`lakesync.v` of a record with an incomplete row. Those who do not know of them refuse it."""
PRESENT, DIFFS = "_cdc_present", "_cdc_diffs"
DIFF = pa.struct([("column", pa.int32()), ("op", pa.int8()), ("path", pa.string()), ("value", pa.string())])
UNKNOWN = 3
"""The `op` of a difference that is none: the row before does not have the column's value either."""
METADATA = pa.schema(
    [
        pa.field("_op", pa.int8(), nullable=False),  # an `Op`
        pa.field("_txn", pa.int32(), nullable=False),  # index into the record's GTIDs
        pa.field("_event", pa.int32(), nullable=False),  # the row event's ordinal in its transaction
        pa.field("_row", pa.int32(), nullable=False),  # the row's in the event
        pa.field("_ts_ms", pa.int64(), nullable=False),  # commit time, monotone, ms since 1970
        pa.field("_seq", pa.int64(), nullable=False),  # the change's number in commit order
    ]
)
"""The first columns of every table's changes."""
WIDTH = len(METADATA)
COLUMN_LIMIT = 4096 + 64
"""Columns behind those that a record may have: MySQL's own limit and room for ours. More is no record."""
OP_LIMIT = Op.TRUNCATE
"""The largest `Op`."""
NESTING_LIMIT = 8
"""Levels of nested types; ours have two."""


@dataclass(frozen=True)
class Incomplete:
    """Which values of rows are known, one a row each.

    `present`: fixed-size binary; bit i, from the lowest of the first byte, says whether the source's column i has a value; the bits beyond are
    0. `diffs`: lists of `DIFF`, the differences of JSON values in their order: the column, then `op` 0 to replace, 1 to insert and 2 to remove,
    as `path` and `value` (its text) say; a column that has any is not present. `op` 3, `UNKNOWN`, has neither.
    """

    present: pa.Array[Any]
    diffs: pa.Array[Any]

    def slice(self, start: int, count: int) -> Incomplete:
        """That of these rows."""
        return Incomplete(self.present.slice(start, count), self.diffs.slice(start, count))

    def known(self, columns: int) -> npt.NDArray[np.bool_]:
        """Rows by columns: whether there is a value."""
        width = self.present.type.byte_width
        buffer = self.present.buffers()[1]
        if not len(self.present) or buffer is None:
            return np.ones((len(self.present), columns), np.bool_)
        bytes_ = np.frombuffer(memoryview(buffer), np.uint8)[self.present.offset * width :][: len(self.present) * width]
        found = np.unpackbits(bytes_.reshape(-1, width), axis=1, count=columns, bitorder="little")
        return found.view(np.bool_)

    @classmethod
    def of(cls, known: npt.NDArray[np.bool_], diffs: pa.Array[Any]) -> Incomplete:
        """The way back from `known`."""
        packed = np.packbits(known, axis=1, bitorder="little")
        buffers = [None, pa.py_buffer(packed.tobytes())]
        present: Any = pa.Array.from_buffers(pa.binary(packed.shape[1]), len(known), buffers)
        return cls(present, diffs)


@dataclass(frozen=True)
class Changes:
    """Row changes of one table, of one record: `METADATA`'s columns, the source's, `_cdc_unfit` if a row needs it. `_txn` indexes `gtids`.
    `incomplete`: what of them is known, None if all is."""

    batch: pa.RecordBatch
    gtids: tuple[str, ...]
    schema_hash: str
    incomplete: Incomplete | None = None

    @property
    def unfit(self) -> pa.Array[Any] | None:
        """`_cdc_unfit`; None where all values fit."""
        return self.batch.column(self.batch.num_columns - 1) if unfit.is_last(self.batch.schema) else None

    @property
    def types(self) -> list[pa.DataType]:
        """Of the source's columns."""
        types = self.batch.schema.types[WIDTH:]
        return types if self.unfit is None else types[:-1]

    def gid(self, i: int) -> str:
        """The global ID of row `i`: `<gtid>/<event>.<row>`, or `snap:<job>/<window>.<row>` of a windowed read."""
        txn, event, row = (self.batch.column(c)[i].as_py() for c in (1, 2, 3))
        return f"{self.gtids[txn]}/{event}.{row}"


def encode(
    changes: pa.RecordBatch,
    gtids: Sequence[str] | pa.StringArray,
    schema_hash: str,
    limit: int = RECORD_LIMIT,
    incomplete: Incomplete | None = None,
) -> list[memoryview]:
    """`changes` as records of at most `limit` bytes, in order; a single row may take more. No rows give no records.

    `changes` has `METADATA`'s columns, with `_txn` an index into `gtids`, the source's, and `_cdc_unfit` or not. `incomplete`: what of the
    rows is known; records without a row that lacks something do not mention it. Raises
    `TableStoppedError` for a row that needs more than `RECORD_MAXIMUM` bytes, `ValueError` for columns that are not as described.
    """
    batch = _plain(changes)
    if batch.num_rows == 0:
        return []
    columns = batch.num_columns - WIDTH - unfit.is_last(batch.schema)
    lacking = None if incomplete is None else _lacking(incomplete, columns)
    names = gtids if isinstance(gtids, pa.StringArray) else pa.array(gtids, pa.string())
    # A first guess; the loop below makes it exact.
    guess = batch.nbytes + names.nbytes * 5 // 4
    if incomplete is not None:
        guess += incomplete.present.nbytes + incomplete.diffs.nbytes
    step = max(1, -(-batch.num_rows // max(1, -(-guess * 17 // 16 // limit))))
    todo = [(start, min(step, batch.num_rows - start)) for start in range(0, batch.num_rows, step)]
    todo.reverse()
    records: list[memoryview] = []
    while todo:
        start, count = todo.pop()
        needs = incomplete if lacking is not None and lacking[start : start + count].any() else None
        record = _record(batch.slice(start, count), names, schema_hash, needs and needs.slice(start, count))
        size = _size(record)
        if size <= limit or (count == 1 and size <= RECORD_MAXIMUM):
            records.append(_payload(record, size))
        elif count == 1:
            txn, event, row = (batch.column(c)[start].as_py() for c in (1, 2, 3))
            raise TableStoppedError(
                f"a row change needs {size} bytes in the log; {RECORD_MAXIMUM} are possible",
                where=f"{gtids[txn]}/{event}.{row}",
                hint="leave the large column out (`exclude:`), or shorten the value; then `lakesync resync` the table",
            )
        else:
            todo += [(start + count // 2, count - count // 2), (start, count // 2)]
    return records


def decode(payload: Payload) -> Changes:
    """The changes in one record. The bytes are untrusted: raises `LogDamagedError` for anything that `encode` never returns."""
    try:
        return _decode(payload)
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        # Arrow's own messages may quote values.
        reason = str(error) if type(error) is _FramingError else type(error).__name__
        raise LogDamagedError(f"a record of row changes cannot be read: {reason}") from None


class _FramingError(ValueError):
    """What is wrong with a record, in words that hold no values."""


def _lacking(incomplete: Incomplete, columns: int) -> npt.NDArray[np.bool_]:
    """Which rows lack a value."""
    return np.asarray(~incomplete.known(columns).all(axis=1), np.bool_)


def _record(
    batch: pa.RecordBatch, names: pa.StringArray, schema_hash: str, incomplete: Incomplete | None = None
) -> pa.RecordBatch:
    """The batch as it is written: with its own GTIDs only, and all that the schema's metadata says."""
    last = batch.num_columns - 1
    if unfit.is_last(batch.schema) and not unfit.needed(batch.column(last)):
        batch = batch.select(range(last))
    txn = batch.column(1)
    used = pc.unique(txn)
    columns = batch.columns
    columns[1] = pc.index_in(txn, value_set=used)
    fields = list(batch.schema)
    if incomplete is not None:
        columns += [incomplete.present, incomplete.diffs]
        fields += [pa.field(PRESENT, incomplete.present.type), pa.field(DIFFS, incomplete.diffs.type)]
    schema = pa.schema(fields).with_metadata(
        {
            b"lakesync.v": FORMAT if incomplete is None else INCOMPLETE,
            b"lakesync.schema": schema_hash.encode(),
            b"lakesync.gtids": orjson.dumps(names.take(used).to_pylist()),
        }
    )
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _size(record: pa.RecordBatch) -> int:
    """Bytes that it needs as a stream. Nothing is copied."""
    sink = pa.MockOutputStream()
    _write(record, sink)
    return sink.size()


def _payload(record: pa.RecordBatch, size: int) -> memoryview:
    """The stream, copied once, to where it stays: memory that Arrow uses again, unlike that of `bytes`, costs no page faults."""
    buffer = pa.allocate_buffer(size)
    _write(record, pa.FixedSizeBufferWriter(buffer))
    return memoryview(buffer).cast("B").toreadonly()


def _write(record: pa.RecordBatch, sink: Any) -> None:
    with pa.ipc.new_stream(sink, record.schema) as writer:
        writer.write_batch(record)


def _plain(changes: pa.RecordBatch) -> pa.RecordBatch:
    """`changes` as the format wants them: fields without metadata, plain types, no NULL in the first six columns."""
    _check_metadata(changes)
    columns, fields = list(changes.columns[:WIDTH]), list(METADATA)
    end = changes.num_columns - unfit.is_last(changes.schema)
    for column, field in zip(changes.columns[WIDTH:end], list(changes.schema)[WIDTH:end], strict=True):
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        _check_type(column.type)
        columns.append(column)
        fields.append(pa.field(field.name, column.type, field.nullable))
    for column in changes.columns[end:]:
        columns.append(column.cast(unfit.TYPE))
        fields.append(unfit.FIELD)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _decode(payload: Payload) -> Changes:
    if len(payload) > RECORD_MAXIMUM:
        raise _FramingError(f"{len(payload)} bytes; {RECORD_MAXIMUM} are possible")
    source = pa.BufferReader(payload)
    with pa.ipc.open_stream(source) as reader:
        metadata = reader.schema.metadata or {}
        is_incomplete = metadata.get(b"lakesync.v") == INCOMPLETE
        if metadata.get(b"lakesync.v") != FORMAT and not is_incomplete:
            raise _FramingError("not a record of this format")
        schema = pa.schema(list(reader.schema)[:-2]) if is_incomplete else reader.schema
        for column in list(schema)[: len(schema) - unfit.is_last(schema)]:
            _check_type(column.type.storage_type if isinstance(column.type, pa.BaseExtensionType) else column.type)
        batches = iter(reader)
        batch = next(batches, None)
        if batch is None:
            raise _FramingError("no batch")
        if next(batches, None) is not None:
            raise _FramingError("more than one batch")
        if source.tell() != len(payload):
            raise _FramingError("bytes after its end")
    batch.validate(full=True)  # before anything else looks at the buffers, even their size
    if batch.nbytes > len(payload):  # compressed, or buffers that overlap
        raise _FramingError("it claims more bytes than it has")
    incomplete = None
    if is_incomplete:
        batch, incomplete = _split(batch)
    batch = _plain(batch)
    gtids = orjson.loads(metadata[b"lakesync.gtids"])
    if not isinstance(gtids, list) or not all(isinstance(gtid, str) for gtid in gtids):
        raise _FramingError("its GTIDs are not a list")
    if batch.num_rows == 0:
        raise _FramingError("no rows")
    if unfit.is_last(batch.schema) and not unfit.needed(batch.column(batch.num_columns - 1)):
        raise _FramingError(f"{unfit.NAME} without a value")
    for place, highest in ((0, OP_LIMIT), (1, len(gtids) - 1), (2, None), (3, None)):
        least, most = (pc.min_max(batch.column(place))[key].as_py() for key in ("min", "max"))
        if least < 0 or (highest is not None and most > highest):
            raise _FramingError(f"{METADATA.field(place).name} is out of range")
    return Changes(batch, tuple(gtids), metadata[b"lakesync.schema"].decode(), incomplete)


def _split(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Incomplete]:
    """Without the last two columns, and those."""
    end = batch.num_columns - 2
    if end <= WIDTH or batch.schema.names[end:] != [PRESENT, DIFFS]:
        raise _FramingError("its last columns do not say what is known")
    present: Any
    diffs: Any
    present, diffs = batch.columns[end:]
    batch = batch.select(range(end))
    columns = end - WIDTH - unfit.is_last(batch.schema)
    if present.type != pa.binary(-(-columns // 8)) or present.null_count or diffs.null_count:
        raise _FramingError("what it says is known is of another form")
    if diffs.type != pa.list_(DIFF):  # whatever its fields are called by who made it
        diffs = diffs.cast(pa.list_(DIFF))
    found: Any = diffs.flatten()
    # Unset where they have to be: `flatten` gives what is in lists alone.
    for name, highest in (("column", columns - 1), ("op", UNKNOWN)):
        values = found.field(name)
        least, most = (pc.min_max(values)[key].as_py() for key in ("min", "max"))
        if values.null_count or (len(values) and (least < 0 or most > highest)):
            raise _FramingError(f"the {name} of a difference is out of range")
    if found.null_count or found.field("path").null_count:
        raise _FramingError("a difference without its path")
    incomplete = Incomplete(present, diffs)
    if not _lacking(incomplete, columns).any():
        raise _FramingError("it lacks no value")
    return batch, incomplete


def _check_metadata(batch: pa.RecordBatch) -> None:
    found = list(batch.schema)
    if len(found) > WIDTH + COLUMN_LIMIT:
        raise _FramingError(f"{len(found)} columns")
    if [(f.name, f.type) for f in found[:WIDTH]] != [(f.name, f.type) for f in METADATA]:
        raise _FramingError(f"its first columns are not {', '.join(METADATA.names)}")
    if any(column.null_count for column in batch.columns[:WIDTH]):
        raise _FramingError("NULL in its first columns")


def _check_type(found: pa.DataType, level: int = 0) -> None:
    """Refuse what is not plain: what another Arrow may not read, or what hides its size."""
    types = pa.types
    if level > NESTING_LIMIT:
        raise _FramingError("types nested too deeply")
    if inner := _inner(found):
        for child in inner:
            _check_type(child, level + 1)
    elif isinstance(found, pa.BaseExtensionType) or not (
        types.is_primitive(found)
        or (types.is_decimal128(found) and 0 <= found.scale <= found.precision)
        or types.is_string(found)
        or types.is_large_string(found)
        or types.is_binary(found)
        or types.is_large_binary(found)
        or types.is_fixed_size_binary(found)
    ):
        raise _FramingError("a type that records do not have")


def _inner(found: Any) -> list[pa.DataType]:
    """The types of which a nested type is made."""
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        return [found.value_type]
    return [found.field(i).type for i in range(found.num_fields)] if pa.types.is_struct(found) else []
