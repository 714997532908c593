"""The epochs that one capture writes: what was decoded since the last one, and the commit record that goes with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults
from cdc.capture.base import FRAMING, Drained, Stop, TableChanges
from cdc.capture.complete import complete
from cdc.clock import Clock
from cdc.epoch import CommitRecord, Counts, Extent, Op, TableEntry, TableState
from cdc.errors import LakesyncError, LogDamagedError, SourceIdentityError, TableStoppedError
from cdc.log.base import Log, LogWriter, Payload
from cdc.log.codec import decode, encode
from cdc.names import TableName
from cdc.position import BinlogEnd, Gtid, GtidSet, Position
from cdc.schema import TableSchema

CLAMP_MS = 5000
"""A commit time that is so far behind the one before it is counted: somebody's clock is wrong."""
_TXN, _TS_MS, _SEQ = 1, 4, 5
"""Places in `METADATA`."""


@dataclass(frozen=True)
class Origin:
    """What the first epoch of a log continues from: the lake's highest values, or nothing."""

    number: int = 0
    ts_ms: int = 0
    raw_us: int = 0
    seq: int = 0


@dataclass
class _Pending:
    """What the next epoch will hold."""

    transactions: int = 0
    framing: Counter[str] = field(default_factory=Counter)
    data: dict[str, list[Payload]] = field(default_factory=dict)
    rows: dict[str, Counts] = field(default_factory=dict)
    schemas: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    stopped: dict[TableName, LakesyncError] = field(default_factory=dict)


@dataclass(frozen=True)
class _Epoch:
    """What is about to be written."""

    pending: _Pending
    position: Position
    ts_ms: int
    raw_us: int
    seq: int
    added: Mapping[str, TableState]
    removed: Mapping[str, dict[str, Any]]


class Chain:
    """Takes what a decoder drains, and appends it to the log. `newest` is the record that it goes on from, None in an empty log; then
    `begin` says where.

    Raises `LogDamagedError` for a log of which no checkpoint can be read.
    """

    def __init__(
        self, log: Log, writer: LogWriter, newest: CommitRecord | None, clock: Clock, checkpoint_epochs: int
    ) -> None:
        self.writer = writer
        self.newest = newest
        self._log = log.uuid
        self._clock = clock
        self._checkpoint_epochs = checkpoint_epochs
        self.states = _states(log, newest)
        self._number, self.ts_ms, self.raw_us, self.seq = 0, 0, 0, 0
        self.position: Position | None = None
        self.rows, self.transactions, self.bytes = 0, 0, 0
        """Written by this capture, for `status`."""
        self.clamped, self.clamped_ms = 0, 0
        self.clamped_gtid = ""
        """Transactions whose own commit time is far behind the time they were given; how far the last of them was, and which."""
        if newest is not None:
            self.begin(newest.end, Origin(newest.number, newest.ts_ms, newest.raw_us, newest.seq))
        self._pending = _Pending()
        self._hashes: dict[str, str] = {}
        self._behind: tuple[_Epoch, Future[CommitRecord]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._failed: BaseException | None = None

    def begin(self, position: Position, origin: Origin) -> None:
        """Go on from here. Nothing may be pending."""
        self._number, self.ts_ms, self.raw_us, self.seq = origin.number, origin.ts_ms, origin.raw_us, origin.seq
        self._start = self.position = position
        if self.newest is None:
            self._reach(position)

    def jump(self, position: Position) -> None:
        """Go on from another history; the next epoch must add every table that is captured. Nothing may be pending."""
        self.position = position
        self._reach(position)

    def _reach(self, position: Position) -> None:
        """The times of the last transaction before a position that was not read up to."""
        if position.last is not None:
            self.raw_us = position.last.commit_us
            self.ts_ms = max(self.ts_ms, self.raw_us // 1000)

    @property
    def schemas(self) -> dict[TableName, TableSchema]:
        """Every captured table, as it was added."""
        return {TableName.from_id(t): TableSchema.from_dict(s.schema) for t, s in self.states.items()}

    @property
    def has_rows(self) -> bool:
        """Whether there is something that readers wait for: rows, or a table that stops."""
        return bool(self._pending.data or self._pending.stopped or self._pending.skipped)

    @property
    def is_plain(self) -> bool:
        """Whether the next epoch says nothing but rows."""
        return not (self._pending.stopped or self._pending.skipped)

    @property
    def has_news(self) -> bool:
        """Whether an epoch would say anything new. Nothing may be written behind."""
        return self.has_rows or self.newest is None or self.position != self.newest.end

    @property
    def stopped(self) -> Mapping[TableName, LakesyncError]:
        """Tables that the next epoch says are captured no more, and why."""
        return self._pending.stopped

    def changes_of(self, log: Log, gtid: Gtid) -> int:
        """How many changes of captured tables the log has of the transaction of which it ends with parts.

        Raises `LogDamagedError`, and what the log raises.
        """
        record, found = self.newest, 0
        while record is not None and record.end.partial is not None and record.end.partial.gtid == gtid:
            for table in self.states:
                if entry := record.tables.get(table):
                    for changes in map(decode, log.data(table, entry.extent)):
                        own = pc.is_in(changes.batch.column(_TXN), pa.array(_places(changes.gtids, gtid), pa.int32()))
                        whole = pc.not_equal(changes.batch.column(0), pa.scalar(Op.MOVE_OUT, pa.int8()))
                        found += len(pc.indices_nonzero(pc.and_(own, whole)))
            before = next(iter(log.records(after=record.number - 2)), None)
            record = before if before is not None and before.hash == record.before else None
        return found

    def touches(self, table: TableName) -> bool:
        """Whether the next epoch has rows of the table."""
        return table.id in self._pending.data

    # -- taking ------------------------------------------------------------------------------------------------------

    def take(self, drained: Drained, server_uuid: str) -> None:
        """Add what a decoder gave to the next epoch."""
        pending = self._pending
        times = pa.array(self._times(drained), pa.int64())
        gtids = pa.array(drained.gtids, pa.string())
        first = self.seq
        for changes, stop in _completed(drained):
            if changes.batch.num_rows:
                batch = _numbered(changes, times, first)
                self.seq = max(self.seq, batch.column(_SEQ)[-1].as_py())
                self._add(changes, batch, gtids)
            if stop is not None:
                self._stop(stop)
        pending.transactions += drained.whole
        pending.framing.update(drained.framing)
        pending.skipped += drained.skipped
        self.stop(drained.stops)
        self._move(drained, server_uuid)

    def _times(self, drained: Drained) -> npt.NDArray[np.int64]:
        """The transactions' times: monotone, whatever the source's clock does. One that goes on from the part before keeps its time."""
        if not len(drained.commit_us):
            return np.zeros(0, np.int64)
        own = drained.commit_us // 1000
        times = np.maximum.accumulate(np.maximum(own, self.ts_ms))
        behind = times - own > CLAMP_MS
        if self.position is not None and self.position.partial and str(self.position.partial.gtid) == drained.gtids[0]:
            behind[0] = False  # was told before
        if behind.any():
            last = int(np.flatnonzero(behind)[-1])
            self.clamped += int(behind.sum())
            self.clamped_ms, self.clamped_gtid = int(times[last] - own[last]), drained.gtids[last]
        self.raw_us, self.ts_ms = int(drained.commit_us[-1]), int(times[-1])
        return times

    def _add(self, changes: TableChanges, batch: pa.RecordBatch, gtids: pa.StringArray) -> None:
        table, schema = changes.table.id, changes.schema.hash
        if changes.table in self._pending.stopped or table not in self.states:
            return  # what stopped here, the decoder may go on with until it is told
        if schema != self._hash(table):
            # Prepared before the table was added anew with other columns, and committed now.
            error = TableStoppedError(
                "an XA transaction has rows of it as it was before it was read anew",
                where=f"{changes.table} at {gtids[batch.column(_TXN)[0].as_py()]}",
                hint=f"`lakesync resync {changes.table}`",
            )
            self._pending.stopped[changes.table] = error
            return
        records, kept, failed = _encode(batch, gtids, schema)
        if failed is not None:
            failed.where = f"{changes.table} at {failed.where}"
            self._pending.stopped[changes.table] = failed
        if records:
            self._pending.data.setdefault(table, []).extend(records)
            self._pending.rows[table] = self._pending.rows.get(table, Counts()).plus(_counts(kept))
            self._pending.schemas[table] = schema

    def _hash(self, table: str) -> str:
        """Of the schema that a table was added with."""
        found = self._hashes.get(table)
        if found is None:
            found = self._hashes[table] = TableSchema.from_dict(self.states[table].schema).hash
        return found

    def stop(self, stops: Iterable[Stop]) -> None:
        """Say in the next epoch that these tables are captured no more."""
        for stop in stops:
            self._stop(stop)

    def _stop(self, stop: Stop) -> None:
        if stop.table.id in self.states:
            self._pending.stopped.setdefault(stop.table, stop.error)

    def _move(self, drained: Drained, server_uuid: str) -> None:
        position = self.position
        assert position is not None
        end = drained.end
        if position.server_uuid == server_uuid and _same_log(end, position.end):
            # The server begins with a file that was read in part, and passes over what is known.
            end = max(end, position.end)
        if end.file:
            position = replace(position, server_uuid=server_uuid, end=end)
        if drained.whole or drained.partial is not None:
            # Of a transaction in parts, the last one makes it whole. A part of the next one may follow it in the same drain.
            gtids = position.gtids.union(drained.executed) if drained.executed else position.gtids
            if gtids.is_mariadb:
                gtids = _grown(position, drained)
            partial = drained.partial if drained.whole else drained.partial or position.partial
            position = replace(position, gtids=gtids, last=drained.last or position.last, partial=partial)
        self.position = position

    # -- writing -----------------------------------------------------------------------------------------------------

    def publish(
        self,
        added: Mapping[TableName, tuple[TableSchema, dict[str, Any]]] | None = None,
        removed: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> CommitRecord:
        """Write the next epoch. `added` maps tables to schema and options, `removed` to the reason.

        Raises as `LogWriter.append` does; what was pending is pending still then.
        """
        self.settle()
        epoch = self._epoch(added, removed)
        record = self._written(epoch, self._append(epoch))
        self._pending = _Pending()
        return record

    def publish_behind(self) -> None:
        """Begin to write the next epoch, in a thread, once the one before it is written: what follows can be decoded meanwhile.

        Raises as `settle` does.
        """
        self.settle()
        epoch = self._epoch()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "lakesync-epoch")
        self._behind = epoch, self._thread.submit(self._append, epoch)
        self._pending = _Pending()

    def settle(self) -> CommitRecord | None:
        """Wait for what is written behind; its record, if there was something.

        Raises as `LogWriter.append` does: then nothing can be written any more, and every further call raises the same, since what
        would follow stands behind what failed.
        """
        if self._failed is not None:
            raise self._failed
        if self._behind is None:
            return None
        (epoch, writing), self._behind = self._behind, None
        try:
            record = writing.result()
        except BaseException as error:
            self._failed = error
            raise
        return self._written(epoch, record)

    def close(self) -> None:
        """Wait for what is written behind, whatever becomes of it."""
        if self._thread is not None:
            self._thread.shutdown()

    def _epoch(
        self,
        added: Mapping[TableName, tuple[TableSchema, dict[str, Any]]] | None = None,
        removed: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> _Epoch:
        """What is pending, as it is now."""
        faults.point("capture.before-epoch")
        pending, position = self._pending, self.position
        assert position is not None
        assert not any(table.id in pending.data for table in added or ())
        gone = {t.id: e.to_dict() for t, e in pending.stopped.items() if t.id in self.states}
        gone |= {t.id: reason for t, reason in (removed or {}).items()}
        new = {
            t.id: TableState(schema.to_dict(), options, Counts(), None, self._number + 1)
            for t, (schema, options) in (added or {}).items()
        }
        return _Epoch(pending, position, self.ts_ms, self.raw_us, self.seq, new, gone)

    def _append(self, epoch: _Epoch) -> CommitRecord:
        return self.writer.append(epoch.pending.data, lambda extents: self._seal(extents, epoch))

    def _written(self, epoch: _Epoch, record: CommitRecord) -> CommitRecord:
        self.states = record.states_after(self.states)
        if epoch.added or epoch.removed:
            self._hashes.clear()
        self.newest, self._number, self._start = record, record.number, record.end
        self.transactions += epoch.pending.transactions
        self.bytes += epoch.pending.framing["bytes"]
        self.rows += sum(c.changes for c in epoch.pending.rows.values())
        return record

    def _seal(self, extents: Mapping[str, Extent], epoch: _Epoch) -> CommitRecord:
        pending, newest, added, removed = epoch.pending, self.newest, epoch.added, epoch.removed
        number = self._number + 1
        entries = {}
        for table, rows in pending.rows.items():
            state = self.states[table]
            entries[table] = TableEntry(
                rows, state.totals.plus(rows), extents[table], state.last, pending.schemas[table]
            )
        totals = Counter(newest.framing_totals if newest else {})
        totals.update(pending.framing)
        checkpoint = newest.checkpoint if newest else number
        states = None
        due = newest is None or added or removed or number - checkpoint >= self._checkpoint_epochs
        if due and epoch.position.whole:  # a part restates nothing: it is no place to begin at
            checkpoint, states = number, self._restated(entries, added, removed)
        return CommitRecord(
            log=self._log,
            number=number,
            before=newest.hash if newest else None,
            start=self._start,
            end=epoch.position,
            ts_ms=epoch.ts_ms,
            raw_us=epoch.raw_us,
            seq=epoch.seq,
            transactions=pending.transactions,
            framing={name: pending.framing[name] for name in FRAMING},
            framing_totals={name: totals[name] for name in FRAMING},
            written_us=self._clock.now_us(),
            checkpoint=checkpoint,
            tables=entries,
            added=added,
            removed=removed,
            skipped=tuple(pending.skipped),
            states=states,
        )

    def _restated(
        self, entries: Mapping[str, TableEntry], added: Mapping[str, TableState], removed: Mapping[str, Any]
    ) -> dict[str, TableState]:
        states = {t: s for t, s in self.states.items() if t not in removed}
        for table, entry in entries.items():
            if table in states:
                states[table] = replace(states[table], totals=entry.totals, last=None)
        return states | dict(added)


def _states(log: Log, newest: CommitRecord | None) -> dict[str, TableState]:
    """Every captured table after `newest`."""
    states: dict[str, TableState] = {}
    if newest is None:
        return states
    first = True
    for record in log.records(after=newest.checkpoint - 1):
        if first and record.states is None:
            break
        first = False
        states = record.states_after(states)
        if record.id == newest.id:
            return states
    raise LogDamagedError(
        f"epochs {newest.checkpoint} to {newest.number} cannot be read as one chain",
        where=str(newest.id),
        hint="restore the log, or begin a new one: it continues from the lake",
    )


def _completed(drained: Drained) -> list[tuple[TableChanges, Stop | None]]:
    """The changes before each table's first transaction with an incomplete row, and the stop there. That transaction's rows may be in
    several batches."""
    found: list[tuple[TableChanges, Stop | None]] = []
    ends: dict[TableName, int] = {}
    for changes in drained.changes:
        changes, txn, error = complete(changes)
        stop = None
        if error is not None and txn is not None:
            error.where = f"{changes.table} at {drained.gtids[txn]}"
            stop = Stop(txn, changes.table, error)
            ends[changes.table] = min(txn, ends.get(changes.table, txn))
        found.append((changes, stop))
    if not ends:
        return found
    return [
        (_before(changes, ends[changes.table]) if changes.table in ends else changes, stop) for changes, stop in found
    ]


def _before(changes: TableChanges, txn: int) -> TableChanges:
    count = int(changes.batch.column(_TXN).to_numpy().searchsorted(txn))
    return replace(changes, batch=changes.batch.slice(0, count))


def _numbered(changes: TableChanges, times: pa.Int64Array, first_seq: int) -> pa.RecordBatch:
    """The changes with their times, and numbers that go on from `first_seq`."""
    columns = list(changes.batch.columns)
    columns[_TS_MS] = times.take(columns[_TXN])
    columns[_SEQ] = pc.add(columns[_SEQ], first_seq)
    return pa.RecordBatch.from_arrays(columns, schema=changes.batch.schema)


def _encode(
    batch: pa.RecordBatch, gtids: pa.StringArray, schema: str
) -> tuple[list[memoryview], pa.RecordBatch, TableStoppedError | None]:
    """The records, the rows that they hold, and why not all: a row is too large, and its transaction is left out with all after it."""
    try:
        return encode(batch, gtids, schema), batch, None
    except TableStoppedError as error:
        txns = batch.column(_TXN).to_numpy()
        for txn in np.unique(txns):
            rows = batch.slice(int(txns.searchsorted(txn)), int((txns == txn).sum()))
            try:
                encode(rows, gtids, schema)
            except TableStoppedError as this:
                kept = batch.slice(0, int(txns.searchsorted(txn)))
                return encode(kept, gtids, schema), kept, this
        raise error


def _counts(batch: pa.RecordBatch) -> Counts:
    found = np.bincount(batch.column(0).to_numpy(), minlength=4)
    return Counts(int(found[Op.INSERT]), int(found[Op.UPDATE]), int(found[Op.DELETE]))


def _grown(position: Position, drained: Drained) -> GtidSet:
    """On MariaDB a position tells what is before it only while the numbers of a domain grow."""
    try:
        return position.gtids.followed_by(Gtid.parse(gtid) for gtid in drained.gtids[: drained.whole])
    except ValueError as error:
        raise SourceIdentityError(
            f"the server's transactions are not in order: {error}",
            where=str(drained.end),
            hint="set gtid_strict_mode = ON on every server that writes, then bootstrap anew: `lakesync resync --all`",
        ) from None


def _places(gtids: Sequence[str], gtid: Gtid) -> list[int]:
    return [i for i, one in enumerate(gtids) if one == str(gtid)]


def _same_log(one: BinlogEnd, other: BinlogEnd) -> bool:
    return one.file.rpartition(".")[0] == other.file.rpartition(".")[0]
