"""The epochs that one capture writes: what was decoded since the last one, and the commit record that goes with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults, sharding
from cdc.capture.base import FRAMING, Drained, Stop, TableChanges
from cdc.capture.complete import incomplete
from cdc.capture.rows import SEQ, TXN, Gaps, completed, counts, encoded, numbered
from cdc.capture.shards import Source, dropped, sources
from cdc.clock import Clock
from cdc.epoch import CommitRecord, Counts, Extent, Op, TableEntry, TableState, WindowEntry
from cdc.errors import LakesyncError, LogDamagedError, SourceIdentityError, TableStoppedError
from cdc.log.base import Log, LogWriter, Payload
from cdc.log.codec import decode
from cdc.names import TableName
from cdc.position import BinlogEnd, Gtid, GtidSet, Position
from cdc.schema import TableSchema

CLAMP_MS = 5000
"""A commit time that is so far behind the one before it is counted: somebody's clock is wrong."""


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
    windows: dict[str, list[WindowEntry]] = field(default_factory=dict)
    captured_us: int = 0
    """When the last of it was decoded."""


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
    altered: Mapping[str, dict[str, Any]]
    prepared_bytes: int


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
        self._prepared_bytes = (newest.prepared_bytes if newest else None) or 0
        if newest is not None:
            self.begin(newest.end, Origin(newest.number, newest.ts_ms, newest.raw_us, newest.seq))
        self._pending = _Pending()
        self._sources = sources(self.states)
        self._gone = _dropped(log, newest, self.states)
        """Shards that the source dropped, and that a record is still to take out."""
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
        self._prepared_bytes = 0
        self._reach(position)

    def _reach(self, position: Position) -> None:
        """The times of the last transaction before a position that was not read up to."""
        if position.last is not None:
            self.raw_us = position.last.commit_us
            self.ts_ms = max(self.ts_ms, self.raw_us // 1000)

    @property
    def schemas(self) -> dict[TableName, TableSchema]:
        """Every captured table of the source, as it was added."""
        return {table: source.own for table, source in self._sources.items()}

    @property
    def sources(self) -> Mapping[TableName, Source]:
        """The same, with where their rows go."""
        return self._sources

    @property
    def has_rows(self) -> bool:
        """Whether there is something that readers wait for: rows, a window, or a table that stops."""
        pending = self._pending
        return bool(pending.data or pending.stopped or pending.skipped or pending.windows or self.left)

    @property
    def is_plain(self) -> bool:
        """Whether the next epoch says nothing but rows, and nothing follows from it."""
        return not (self._pending.stopped or self._pending.skipped or self._gone)

    @property
    def left(self) -> dict[TableName, dict[str, Any]]:
        """Options of tables without those of their shards that the source dropped: for a record that has no rows of theirs. Empty within a
        transaction."""
        found: dict[TableName, dict[str, Any]] = {}
        if self._gone and self.position is not None and self.position.whole:
            for shard in self._gone & self._sources.keys():
                target = self._sources[shard].target
                options = found.get(target, self.states[target.id].options)
                kept = {table: since for table, since in options["shards"].items() if table != shard.id}
                found[target] = options | {"shards": kept}
        return found

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
                        own = pc.is_in(changes.batch.column(TXN), pa.array(_places(changes.gtids, gtid), pa.int32()))
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
        first, gaps = self.seq, Gaps(drained)
        for changes, stop in completed(drained):
            if changes.batch.num_rows:
                self._add(changes, numbered(changes, times, first, gaps), gtids)
            if stop is not None:
                self._stop(stop)
        self._empty(drained, times, first, gaps, gtids)
        pending.transactions += drained.whole
        pending.framing.update(drained.framing)
        if faults.mutant("transaction_uncounted") and drained.whole:
            pending.framing["transactions"] -= 1
        if faults.mutant("bytes_uncounted") and drained.whole:
            pending.framing["bytes"] -= 100
        # A new decoder meets what is prepared one after the other, all of it before anything new. What it gives meanwhile was one of these,
        # and is skipped now.
        if drained.whole and self._is_known(drained.end, server_uuid):
            self._prepared_bytes -= drained.framing["bytes"]
        elif drained.whole or drained.prepared_bytes > self._prepared_bytes:
            self._prepared_bytes = drained.prepared_bytes
        pending.captured_us = self._clock.now_us()
        pending.skipped += drained.skipped
        self.stop(drained.stops)
        self._move(drained, server_uuid)

    def _empty(self, drained: Drained, times: pa.Int64Array, first: int, gaps: Gaps, gtids: pa.StringArray) -> None:
        """Say of shards that all their rows are gone."""
        for i, emptied in enumerate(drained.emptied):
            source = self._sources.get(emptied.table)
            if source is not None and source.is_shard:
                row = sum(other.txn == emptied.txn for other in drained.emptied[:i])
                changes = source.truncation(emptied.txn, row, gaps.number(i), is_gone=emptied.is_gone)
                self._add(changes, numbered(changes, times, first), gtids)
                if emptied.is_gone:
                    self._gone.add(emptied.table)

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

    def emit(self, changes: TableChanges, entry: WindowEntry) -> bool:
        """Add what a window of one of the source's tables found, behind everything that was taken: `changes` as a decoder gives them, all of
        one transaction. False: a row is too large for the log, so that the table stops, and the window is not in the epoch.

        Only where a transaction ends, and what is pending is then to be written before anything else is taken: a window is in no part
        of a transaction.
        """
        assert self.position is not None
        assert self.position.whole
        source = self._sources[changes.table]
        if changes.batch.num_rows:
            batch = numbered(changes, pa.array([self.ts_ms], pa.int64()), self.seq)
            self._add(changes, batch, pa.array([entry.id.gtid], pa.string()))
            if source.target in self._pending.stopped:
                return False
        self._pending.windows.setdefault(source.target.id, []).append(entry)
        self._pending.captured_us = self._clock.now_us()
        return True

    def _add(self, changes: TableChanges, batch: pa.RecordBatch, gtids: pa.StringArray) -> None:
        self.seq = max(self.seq, batch.column(SEQ)[-1].as_py())
        source = self._sources.get(changes.table)
        if source is None or source.target in self._pending.stopped:
            return  # what stopped here, the decoder may go on with until it is told
        if changes.schema.hash != source.own.hash:
            # Prepared before the table was added anew with other columns, and committed now.
            error = TableStoppedError(
                "an XA transaction has rows of it as it was before it was read anew",
                where=f"{changes.table} at {gtids[batch.column(TXN)[0].as_py()]}",
                hint=f"`lakesync resync {source.target}`",
            )
            self._pending.stopped[source.target] = error
            return
        table, schema = source.target.id, source.schema.hash
        lacking = source.lacking(incomplete(changes)) if changes.presence is not None else None
        mapped = source.mapped(batch)
        short = faults.mutant("batch_shortened") and batch.num_rows > 1 and lacking is None
        records, kept, failed = encoded(mapped.slice(0, batch.num_rows - short), gtids, schema, lacking)
        if failed is not None:
            failed.where = f"{changes.table} at {failed.where}"
            self._pending.stopped[source.target] = failed
        if records:
            self._pending.data.setdefault(table, []).extend(records)
            found = counts(mapped if short else kept)
            if faults.mutant("capture_miscounts"):
                found = found._replace(inserts=max(0, found.inserts - 1))
            self._pending.rows[table] = self._pending.rows.get(table, Counts()).plus(found)
            self._pending.schemas[table] = schema

    def stop(self, stops: Iterable[Stop]) -> None:
        """Say in the next epoch that these tables are captured no more."""
        for stop in stops:
            self._stop(stop)

    def _stop(self, stop: Stop) -> None:
        source = self._sources.get(stop.table)
        if source is not None and source.target not in self._pending.stopped:
            if source.is_shard:  # what brings it back is said of the table that it is a part of
                stop.error.hint = stop.error.hint.replace(f"resync {stop.table}`", f"resync {source.target}`")
            self._pending.stopped[source.target] = stop.error

    def _is_known(self, end: BinlogEnd, server_uuid: str) -> bool:
        """Whether this place is before the position: the server begins with a file that was read in part, and passes over what is known."""
        position = self.position
        assert position is not None
        return position.server_uuid == server_uuid and _same_log(end, position.end) and end < position.end

    def _move(self, drained: Drained, server_uuid: str) -> None:
        position = self.position
        assert position is not None
        end = position.end if self._is_known(drained.end, server_uuid) else drained.end
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
        altered: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> CommitRecord:
        """Write the next epoch. `added` maps tables to schema and options, `removed` to the reason, `altered` to new options.

        Raises as `LogWriter.append` does; what was pending is pending still then.
        """
        self.settle()
        epoch = self._epoch(added, removed, altered)
        record = self._written(epoch, self._append(epoch))
        self._pending = _Pending()
        return record

    def publish_behind(self, then: Callable[[], None]) -> None:
        """Begin to write the next epoch, in a thread, once the one before it is written: what follows can be decoded meanwhile. `then` is
        called once it is written, or was not, in any thread.

        Raises as `settle` does.
        """
        self.settle()
        epoch = self._epoch()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "lakesync-epoch")
        writing = self._thread.submit(self._append, epoch)
        writing.add_done_callback(lambda _: then())
        self._behind = epoch, writing
        self._pending = _Pending()

    @property
    def is_writing(self) -> bool:
        """Whether `settle` would have to wait."""
        return self._behind is not None and not self._behind[1].done()

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
        altered: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> _Epoch:
        """What is pending, as it is now."""
        faults.point("capture.before-epoch")
        pending, position = self._pending, self.position
        assert position is not None
        assert not any(table.id in pending.data for table in (*(added or ()), *(altered or ())))
        gone = {t.id: e.to_dict() for t, e in pending.stopped.items() if t.id in self.states}
        gone |= {t.id: reason for t, reason in (removed or {}).items()}
        new = {
            t.id: TableState(schema.to_dict(), options, Counts(), None, self._number + 1)
            for t, (schema, options) in (added or {}).items()
        }
        others = {t.id: options for t, options in (altered or {}).items()}
        return _Epoch(pending, position, self.ts_ms, self.raw_us, self.seq, new, gone, others, self._prepared_bytes)

    def _append(self, epoch: _Epoch) -> CommitRecord:
        return self.writer.append(epoch.pending.data, lambda extents: self._seal(extents, epoch))

    def _written(self, epoch: _Epoch, record: CommitRecord) -> CommitRecord:
        self.states = record.states_after(self.states)
        if epoch.added or epoch.removed or epoch.altered:
            self._sources = sources(self.states)
            self._gone &= self._sources.keys()
        self.newest, self._number, self._start = record, record.number, record.end
        self.transactions += epoch.pending.transactions
        self.bytes += epoch.pending.framing["bytes"]
        self.rows += sum(c.changes for c in epoch.pending.rows.values())
        return record

    def _seal(self, extents: Mapping[str, Extent], epoch: _Epoch) -> CommitRecord:
        pending, newest, added, removed = epoch.pending, self.newest, epoch.added, epoch.removed
        number, now_us = self._number + 1, self._clock.now_us()
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
        due = newest is None or added or removed or epoch.altered or number - checkpoint >= self._checkpoint_epochs
        if due and epoch.position.whole:  # a part restates nothing: it is no place to begin at
            checkpoint, states = number, self._restated(entries, epoch)
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
            framing={name: pending.framing[name] for name in FRAMING}
            | {"captured_us": pending.captured_us or now_us, "prepared_bytes": epoch.prepared_bytes},
            framing_totals={name: totals[name] for name in FRAMING},
            written_us=now_us,
            checkpoint=checkpoint,
            tables=entries,
            added=added,
            removed=removed,
            skipped=tuple(pending.skipped),
            states=states,
            altered=epoch.altered,
            windows={t: tuple(found) for t, found in pending.windows.items()},
        )

    def _restated(self, entries: Mapping[str, TableEntry], epoch: _Epoch) -> dict[str, TableState]:
        states = {
            t: replace(s, options=epoch.altered.get(t, s.options))
            for t, s in self.states.items()
            if t not in epoch.removed
        }
        for table, entry in entries.items():
            if table in states:
                states[table] = replace(states[table], totals=entry.totals, last=None)
        return states | dict(epoch.added)


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


def _dropped(log: Log, newest: CommitRecord | None, states: Mapping[str, TableState]) -> set[TableName]:
    """Shards that the log's end says to be gone, and that are shards still: whoever wrote that did not come to take them out. What was made
    in their place since is another table, of which rows may be missing."""
    found: set[TableName] = set()
    sharded = {table: state for table, state in states.items() if sharding.is_sharded(state.options)}
    record = newest if sharded else None
    while record is not None:
        for table, state in sharded.items():
            if entry := record.tables.get(table):
                with suppress(LogDamagedError):  # who reads it next stops the table
                    found |= dropped(state, map(decode, log.data(table, entry.extent)))
        before = next(iter(log.records(after=record.number - 2)), None)
        # They are taken out behind the next record that is whole.
        record = before if before is not None and before.hash == record.before and not before.whole else None
    return found


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
