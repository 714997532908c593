"""What turns binary log events into Arrow: the decoder's protocol, and what it gives.

Sans-IO: whoever owns the connection feeds whole events, one at a time, and drains now and then. The reference implementation is
`cdc.capture.reference`; every decoder runs the suite in `tests/contract/test_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from cdc.errors import LakesyncError
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid
from cdc.schema import TableSchema

FRAMING = ("events", "bytes", "transactions", "row_events", "statements", "rows_skipped")
"""What is counted: keys of `Drained.framing`."""


@dataclass(frozen=True)
class Transaction:
    """One whole source transaction, with or without captured rows. `fingerprint.row_events` counts those of every table."""

    fingerprint: Fingerprint
    end: BinlogEnd
    """After its last event."""


@dataclass(frozen=True)
class TableChanges:
    """Row changes of one table under one schema, in commit order.

    `batch` has the columns of `cdc.log.codec.METADATA` and then the source's: `_op` as in `cdc.epoch.Op`, `_txn` the index into
    `Drained.transactions`, `_event` the row event's ordinal in its transaction (from 0, counting those of every table, captured or
    not), `_row` the row's in the event (from 0), `_ts_ms` 0 (capture fills it), `_seq` the change's number among those of this
    drain, from 1, over all tables (both halves of a key change have the same).
    """

    table: TableName
    schema: TableSchema
    batch: pa.RecordBatch


@dataclass(frozen=True)
class Stop:
    """From transaction `txn` of this drain on, `table` cannot be captured (None: nothing can); no row of it from there on is given.

    `Drained.transactions` ends before `txn` where `table` is None, and the decoder refuses to be fed.
    """

    txn: int
    table: TableName | None
    error: LakesyncError


@dataclass(frozen=True)
class Drained:
    """All whole transactions since the last drain. `end` is the place in the binary log after everything that was fed and belongs
    to no open transaction: it also moves by rotations and heartbeats."""

    transactions: list[Transaction]
    changes: list[TableChanges]
    stops: list[Stop]
    end: BinlogEnd
    framing: Mapping[str, int] = field(default_factory=dict)
    """As in `CommitRecord.framing`, of exactly these transactions' events: what stands between transactions is not counted, since it
    comes again with every connection. Row events that a ROLLBACK TO undid are among `rows_skipped`."""
    skipped: tuple[str, ...] = ()
    """GTIDs that were passed over because they were told to be. They are in `transactions` too."""


class Decoder(Protocol):
    """Fed with events in order, from a transaction's beginning on."""

    def capture(self, tables: Mapping[TableName, TableSchema]) -> None:
        """From here on decode exactly these tables. A row event whose TABLE_MAP differs from the schema stops its table.

        Only between transactions (`idle`). Raises `ValueError` otherwise.
        """

    def pass_over(self, gtids: Collection[Gtid]) -> None:
        """Of transactions that begin from here on, pass over exactly these: none of their events is understood, only counted."""

    def feed(self, event: bytes) -> None:
        """One binary log event: header, body, and checksum if the stream has them; without the packet's status byte.

        Raises `BinlogError` for a damaged event, or one that does not follow the one before; `UnsupportedEventError` for one that
        is not understood and not marked ignorable. Nothing of the open transaction is given after that.
        """

    def drain(self) -> Drained:
        """Give and forget all whole transactions so far. The open one stays inside."""

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of whole transactions that a drain would give, as events."""
