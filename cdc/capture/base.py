"""What turns the binary log's bytes into Arrow: the decoder's protocol, and what it gives.

Sans-IO: whoever owns the connection feeds what the server sends, in pieces of any size, and drains when the decoder says so, or when it
is time. Columnar: nothing here is an object for each transaction or row. `cdc.capture.native` is the decoder; every decoder runs the
suite in `tests/contract/test_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc.errors import LakesyncError
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet
from cdc.schema import TableSchema

FRAMING = ("events", "bytes", "transactions", "row_events", "statements", "rows_skipped", "unfit")
"""What is counted: keys of `Drained.framing`."""


@dataclass(frozen=True)
class TableChanges:
    """Row changes of one table under one schema, in commit order.

    `batch` has the columns of `cdc.log.codec.METADATA`, then the source's, then `_cdc_unfit` if a value did not fit its type: `_op`
    as in `cdc.epoch.Op`, `_txn` the index into `Drained.gtids`, `_event` the row event's ordinal in its transaction (from 0,
    counting those of every table, captured or not), `_row` the row's in the event (from 0), `_ts_ms` 0 (capture fills it), `_seq`
    the change's number among those of this drain, from 1, over all tables (both halves of a key change have the same).

    `presence` and `diffs` are None unless a row is incomplete (row images without all columns, differences of JSON values). Then
    each has a value a row: `presence` fixed-size binary, bit i (from the lowest of the first byte) says whether column i of the
    schema has a value; `diffs` a list of `{column, op, path, value}` in order, as in `cdc.log.codec.Incomplete`.
    """

    table: TableName
    schema: TableSchema
    batch: pa.RecordBatch
    presence: pa.Array[Any] | None = None
    diffs: pa.Array[Any] | None = None


@dataclass(frozen=True)
class Stop:
    """From transaction `txn` of this drain on, `table` cannot be captured; no row of it from there on is given."""

    txn: int
    table: TableName
    error: LakesyncError


@dataclass(frozen=True)
class Emptied:
    """Transaction `txn` of this drain, which has no rows itself, took all rows of a shard; `is_gone`: and the table itself, so that nothing
    more is given of it."""

    txn: int
    table: TableName
    is_gone: bool


@dataclass(frozen=True)
class Drained:
    """Everything since the last drain: whole transactions, and rows of the open one if it is so large that it is given in parts.

    Index i of `gtids`, `commit_us` and `row_events` is `_txn` of rows: the whole transactions in commit order, then the open one if
    `partial` says so. A transaction of which a part was given before comes again as index 0, with the rows that followed.
    """

    gtids: Sequence[str]
    commit_us: npt.NDArray[np.int64]
    """Original commit times, µs since 1970."""
    row_events: Sequence[int]
    """Row events of every table, captured or not; of an open transaction those so far."""
    whole: int
    """How many of `gtids` are whole."""
    executed: GtidSet
    """What the position gains. A prepared XA transaction is among `gtids` only once it is committed."""
    changes: list[TableChanges]
    stops: list[Stop]
    end: BinlogEnd
    """The place in the binary log after everything that was fed and belongs to no open transaction: it also moves by rotations and
    heartbeats."""
    framing: Mapping[str, int] = field(default_factory=dict)
    """As in `CommitRecord.framing`, of exactly these transactions' events: what stands between transactions is not counted, since it
    comes again with every connection. Row events that a ROLLBACK TO undid are among `rows_skipped`."""
    skipped: tuple[str, ...] = ()
    """GTIDs that were passed over because they were told to be. They are in `gtids` and `executed` too."""
    last: Fingerprint | None = None
    """Of the last whole transaction of this drain."""
    partial: Fingerprint | None = None
    """Of the open transaction, if rows of it were given in this drain: its row events so far."""
    emptied: Sequence[Emptied] = ()
    """In commit order."""
    prepared_bytes: int = 0
    """Of the binary log's bytes before `end`, those of transactions that are prepared and no more: `framing` has them once they are
    committed."""


class Decoder(Protocol):
    """Fed with what answers COM_BINLOG_DUMP, from the beginning."""

    def capture(self, tables: Mapping[TableName, TableSchema], shards: Collection[TableName] = ()) -> None:
        """From here on decode exactly these tables. A row event whose TABLE_MAP differs from the schema stops its table. What empties one of
        `shards`, or drops it, stops nothing, and is told (`Drained.emptied`).

        Only between transactions (`idle`). Raises `ValueError` otherwise.
        """

    def stop(self, table: TableName) -> None:
        """Give no more rows of `table`, from the open transaction on (or the next one)."""

    def pass_over(self, gtids: Collection[Gtid]) -> None:
        """Of transactions that begin from here on, pass over exactly these: none of their events is understood, only counted. `feed`
        asks for a drain after each."""

    def counted(self, partial: Fingerprint) -> None:
        """If this transaction is passed over, its first `row_events` row events, and what was before them, were counted before."""

    def resume(self, partial: Fingerprint) -> None:
        """The first transaction that is not passed over is this one, and its first `row_events` row events were given before: neither
        they nor the events before them are given or counted again. `feed` asks for a drain once it has met it (`open_gtid`), and
        raises `SourceIdentityError` if another one comes, or it has another commit time, or fewer row events."""

    def feed(self, data: bytes) -> bool:
        """What the server sent, cut anywhere: packets, each a status byte and an event.

        True: everything is taken. False: first `drain()`, then `feed(b"")`, which goes on with what was fed before.

        Raises `BinlogError` for a damaged event, or one that does not follow the one before; `UnsupportedEventError` for one that is
        not understood and not marked ignorable; what the stream makes of an error that the server sent. Nothing of the open
        transaction is given after that, and every further `feed` raises the same.
        """

    def drain(self) -> Drained:
        """Give and forget all whole transactions so far, and the open one's rows if they are many. Otherwise that one stays inside."""

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of events that a drain would give."""

    @property
    def open_gtid(self) -> str | None:
        """The transaction at hand."""

    @property
    def place(self) -> BinlogEnd:
        """The end of the last event that was taken; never before the `Drained.end` of a drain that would follow."""

    @property
    def resumed_changes(self) -> int:
        """Of the open transaction: how many changes of captured tables are in the row events that `resume` left out."""
