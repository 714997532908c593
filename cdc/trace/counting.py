"""Row changes counted in a table's records: of all that is in them only operations and transactions are read, no values. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
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
_OP, _TXN = METADATA.field(0), METADATA.field(1)
_OPERATIONS = pa.ipc.IpcReadOptions(included_fields=[0])
_TRANSACTIONS = pa.ipc.IpcReadOptions(included_fields=[1])
_GTIDS = b"lakesync.gtids"
_WINDOW = WINDOW.encode()


def count(records: Iterable[Payload]) -> dict[str, int]:
    """By operation; `key_changes` are the updates that moved a row, `windowed` the rows of windowed reads, their deletions included.

    Raises `LogDamagedError` for what is no record of row changes.
    """
    operations = np.zeros(OP_LIMIT + 1, np.int64)
    windowed = 0
    for record in records:
        try:
            with pa.ipc.open_stream(pa.py_buffer(record), options=_OPERATIONS) as reader:
                named = (reader.schema.metadata or {}).get(_GTIDS, b"")
                operations += np.bincount(_column(reader, _OP), minlength=OP_LIMIT + 1)
            if _WINDOW in named:
                windows = [i for i, gtid in enumerate(orjson.loads(named)) if str(gtid).startswith(WINDOW)]
                with pa.ipc.open_stream(pa.py_buffer(record), options=_TRANSACTIONS) as reader:
                    windowed += int(np.isin(_column(reader, _TXN), windows).sum())
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError) as error:
            # Arrow's own messages may quote values.
            raise LogDamagedError(f"a record of row changes cannot be counted: {type(error).__name__}") from None
    return {name: int(operations[op]) for op, name in NAMES.items()} | {"windowed": windowed}


def _column(
    reader: pa.RecordBatchStreamReader, field: pa.Field[pa.DataType]
) -> np.ndarray[tuple[int], np.dtype[np.integer]]:
    batch = reader.read_next_batch()
    if batch.schema.names[:1] != [field.name] or batch.column(0).type != field.type or batch.column(0).null_count:
        raise ValueError("not the column that it should be")
    batch.column(0).validate()  # as long as it says: it is read without asking again
    return batch.column(0).to_numpy()
