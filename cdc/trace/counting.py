"""Row changes counted in a table's records. Operations are a record's first column, so only the beginning of it is read, and no values.

A record is an Arrow IPC stream of one batch: an encapsulated message with the schema, one with the batch's lengths and places, then its
columns (https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc). The two messages are FlatBuffers, of
which a few fields are read here; pyarrow takes ten times as long for it. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from cdc.epoch import WINDOW, Op
from cdc.errors import LogDamagedError
from cdc.log.base import Payload
from cdc.log.codec import METADATA, OP_LIMIT

NAMES: Final = {
    Op.INSERT: "inserts",
    Op.UPDATE: "updates",
    Op.DELETE: "deletes",
    Op.MOVE_OUT: "key_changes",
    Op.READ: "reads",
}
_I32, _I64, _U16, _MARK = struct.Struct("<i"), struct.Struct("<q"), struct.Struct("<H"), struct.Struct("<Ii")
_CONTINUES: Final = 0xFFFFFFFF
_RECORD_BATCH: Final = 3
_TXN = METADATA.field(1)
_TRANSACTIONS = pa.ipc.IpcReadOptions(included_fields=[1])
_GTIDS = b"lakesync.gtids"
_WINDOW = WINDOW.encode()
_WRONG = (
    pa.ArrowException,
    struct.error,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    MemoryError,
    OverflowError,
)


class ShortError(Exception):
    """The record goes on behind what was given of it, and what is asked for is there."""


def count(records: Iterable[Payload], *, whole: bool = True) -> dict[str, int]:
    """By operation; `key_changes` are the updates that moved a row, `windowed` the rows of windowed reads, their deletions included.

    Without `whole` the records may be beginnings of such. Raises `ShortError` then, if these are too short; `LogDamagedError` for what is no
    record of row changes.
    """
    operations = np.zeros(OP_LIMIT + 1, np.int64)
    windowed = 0
    for record in records:
        try:
            schema, found = _read(record, whole=whole)
            operations += np.bincount(found, minlength=OP_LIMIT + 1)
            if _WINDOW in bytes(schema):
                if not whole:
                    raise ShortError
                windowed += _windowed(record)
        except _BeyondError as error:
            if not whole:
                raise ShortError from None
            raise LogDamagedError("a record of row changes cannot be counted: it ends too soon") from error
        except _WRONG as error:
            # Arrow's own messages may quote values.
            raise LogDamagedError(f"a record of row changes cannot be counted: {type(error).__name__}") from None
    return {name: int(operations[op]) for op, name in NAMES.items()} | {"windowed": windowed}


class _BeyondError(Exception):
    """A place behind the end."""


def _read(record: Payload, *, whole: bool) -> tuple[memoryview, npt.NDArray[np.int8]]:
    """The schema's message, and the batch's first column."""
    view = memoryview(record).cast("B")
    start, end = _message(view, 0)
    schema = view[start:end]
    start, body = _message(view, end)
    message = _table(view, start, start)
    kind, header = _field(view, message, 1), _field(view, message, 2)
    if not kind or not header or view[kind] != _RECORD_BATCH:
        raise ValueError("no batch")
    batch = header + _I32.unpack_from(view, header)[0]
    length, nodes, buffers = (_field(view, batch, i) for i in range(3))
    rows = _I64.unpack_from(view, length)[0] if length else 0
    if not nodes or not buffers or _field(view, batch, 3):
        raise ValueError("no columns, or compressed ones")
    node, place = _vector(view, nodes), _vector(view, buffers) + 16  # the first buffer says which are NULL
    in_column, nulls = _I64.unpack_from(view, node)[0], _I64.unpack_from(view, node + 8)[0]
    offset, size = _I64.unpack_from(view, place)[0], _I64.unpack_from(view, place + 8)[0]
    if in_column != rows or nulls or not 0 <= rows <= size or offset < 0:
        raise ValueError("not the column that it should be")
    size_field = _field(view, message, 3)
    ends = _I64.unpack_from(view, size_field)[0] if whole and size_field else offset + rows
    if body + max(ends, offset + rows) > len(view):
        raise _BeyondError
    return schema, np.frombuffer(view, np.int8, rows, body + offset)


def _message(view: memoryview, at: int) -> tuple[int, int]:
    """Where the metadata begins and ends of the message that is here."""
    if at + _MARK.size > len(view):
        raise _BeyondError
    mark, size = _MARK.unpack_from(view, at)
    if mark != _CONTINUES or size <= 0:
        raise ValueError("no message")
    if at + _MARK.size + size > len(view):
        raise _BeyondError
    return at + _MARK.size, at + _MARK.size + size


def _table(view: memoryview, base: int, at: int) -> int:
    return int(base + _I32.unpack_from(view, at)[0])


def _field(view: memoryview, table: int, number: int) -> int:
    """Where a table's field is; 0 where it has none."""
    slots = table - _I32.unpack_from(view, table)[0]
    slot = 4 + 2 * number
    if slots < 0 or slot + 2 > _U16.unpack_from(view, slots)[0]:
        return 0
    offset = int(_U16.unpack_from(view, slots + slot)[0])
    return table + offset if offset else 0


def _vector(view: memoryview, field: int) -> int:
    """Where the first of the structs is that a field refers to; there must be one."""
    at = field + _I32.unpack_from(view, field)[0]
    if at < 0 or _I32.unpack_from(view, at)[0] < 1:
        raise ValueError("nothing in it")
    return int(at + 4)


def _windowed(record: Payload) -> int:
    with pa.ipc.open_stream(pa.py_buffer(record), options=_TRANSACTIONS) as reader:
        named = (reader.schema.metadata or {}).get(_GTIDS, b"[]")
        windows = [i for i, gtid in enumerate(orjson.loads(named)) if str(gtid).startswith(WINDOW)]
        batch = reader.read_next_batch()
    column: Any = batch.column(0)
    if batch.schema.names[:1] != [_TXN.name] or column.type != _TXN.type or column.null_count:
        raise ValueError("not the column that it should be")
    column.validate()  # as long as it says: it is read without asking again
    return int(np.isin(column.to_numpy(), windows).sum())
