"""One table's way through the log's records: decided on one version of the lake's table, read, folded, committed on that version.

Rows of windowed reads have no place in the source's history: they count as having the position at which they were emitted, the end of
their record. A record that is taken whole has them applied. Where a table has taken a record's transactions from another log, or from
this one before it lost its tail, its windowed rows were read before what the table has, and are dropped (I5), unless the table is
exactly at that position or before it; then the job is told to read them again. An `append` table keeps what was read, whenever it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults
from cdc.config import KEEPING
from cdc.epoch import WINDOW, CommitRecord, Counts, TableEntry, WindowId
from cdc.errors import LakeConflictError, LakeUnknownError, LogDamagedError, LogGapError
from cdc.lake import Applied, LakeTable, MergeCounts, Snapshot
from cdc.lake.columns import GID, SEQ
from cdc.log import captured
from cdc.log.base import Log
from cdc.log.codec import Changes, decode
from cdc.merge.completing import Completed, complete
from cdc.merge.decide import Decision, Gap, Part, Skip, advance, decide
from cdc.merge.fold import fold, sequence
from cdc.merge.keeping import steps
from cdc.merge.repairing import known, latest
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position
from cdc.reads import Key
from cdc.state import TableStatus

BATCH_BYTES = 128 * 1024 * 1024
"""Changes of one Delta commit, as the log holds them; more become several commits, each at an epoch's end, be that a part of a
transaction. One epoch may be larger."""
KEPT_BYTES = 256
"""What a row that was there is counted as, in tables that keep it."""


@dataclass
class _Batch:
    """What one commit will take: whole epochs, of which the first may be taken in part."""

    exclude: Position | None = None
    dropped: frozenset[WindowId] = frozenset()
    touched: list[CommitRecord] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    size: int = 0


class TableMerge:
    """One table in one pass. Everything is decided on `snapshot`, which every commit replaces by the version it made.

    `applied` may be ahead of what the snapshot itself says, where nothing touched the table; a manifest then says so.
    """

    def __init__(
        self,
        log: Log,
        lake: LakeTable,
        table: TableName,
        snapshot: Snapshot,
        applied: Applied,
        status: TableStatus | None = None,
        *,
        leaving: bool = False,
        dropped: Callable[[WindowId], None] = lambda _: None,
        hopeless: Callable[[pa.Table], None] = lambda _: None,
        awaited: Callable[[], frozenset[Key]] = frozenset,
    ) -> None:
        self._log = log
        self.lake = lake
        self.table = table
        self.snapshot = snapshot
        self.applied = applied
        self.status = status
        self.leaving = leaving
        """It is not captured any more: what the log still has of it is applied, up to the record that removed it."""
        self._dropped = dropped
        """Told of each window whose rows the table never gets, before the commit that passes over them."""
        self._hopeless = hopeless
        """The same, of keys that have to be read again."""
        self._awaited = awaited
        """Those of which that is not in the lake yet."""
        self._new = False
        """Whether the records are none of those that led to what the table has."""
        self._applied: frozenset[str] = frozenset()
        self._pending: set[WindowId] = set()
        """Windows of which the rows were passed over, not told yet."""
        self.held: CommitRecord | None = None
        """The record that adds the table again: its bootstrap has to commit first."""
        self.ended = False
        """The record that removed the table is applied."""
        self.passed: bool | None = None
        """Whether a table that catches up has passed its mark; False: never will, capture moved to another server."""
        self.commits = 0
        self.blind_after = -1
        """Mutant `applied_check_skipped`: the number of the newest record taken."""
        self._look(applied.position)

    def take(self, records: Sequence[CommitRecord]) -> None:
        """Apply what the table lacks of these records, which follow one another in the log.

        Raises `LogGapError`, `LogDamagedError` (data is not what its record says), `LakeError` and its kin (after
        `LakeConflictError` and `LakeUnknownError` this object is of no use: load, and decide again), and what the log raises.
        """
        batch, at = _Batch(), self.applied
        for record in records:
            if self.held or self.ended:
                break
            if faults.mutant("applied_check_skipped") and record.number <= self.blind_after:
                continue
            decision = decide(at, record)
            self._new = self._new or at.epoch.hash == record.before
            without: frozenset[WindowId] = frozenset()
            if record.windows.get(self.table.id) and self._new and record.hash != at.epoch.hash:
                decision, without = self._windowed(at, record, decision)
            if record.hash in self._applied:
                self._pending.clear()
            self._new = self._new or at.epoch.hash == record.hash
            if isinstance(decision, Skip):
                if self._new and at.position.is_at(record.end) and not self._knows(at, record):
                    # From other records, and as far as this one: from here on the chain goes on, also while the source rests.
                    self._tell()
                    at = advance(at, record)
                continue
            if self.table.id in record.added and not self._passes(record):
                self.held = record
                break
            if isinstance(decision, Gap):
                self._flush(batch, at)
                raise LogGapError(
                    f"the table has epoch {at.epoch}; transactions {decision.missing} are neither in it "
                    f"nor in the log, which goes on with epoch {record.id}",
                    where=str(self.table),
                    hint=f"`lakesync resync {self.table}`",
                )
            self._tell()
            entry = record.tables.get(self.table.id)
            if faults.mutant("epoch_passed_over") and entry is not None and entry.rows.deletes:
                entry = None
            size = self._weight(entry) if entry else 0
            if isinstance(decision, Part) or (entry and batch.size + size > BATCH_BYTES):
                batch = self._flush(batch, at)
            if isinstance(decision, Part):
                batch.exclude, batch.dropped = decision.exclude, without
            if entry is not None:
                batch.changes += map(decode, self._log.data(self.table.id, entry.extent))
                batch.size += size
                batch.touched.append(record)
            at = advance(at, record)
            if without:
                batch = self._flush(batch, at)
            self.blind_after = record.number
            self._look(at.position)
            self.ended = self.leaving and self.table.id in record.removed
        self._flush(batch, at)
        self.applied = at

    def _weight(self, entry: TableEntry) -> int:
        """What an epoch's changes take of a batch. Where a table keeps what was there, a commit also holds the rows that they change:
        a DELETE is small, and what it ends may not be."""
        return max(entry.extent.bytes, KEPT_BYTES * entry.rows.changes if self.snapshot.mode in KEEPING else 0)

    def _knows(self, at: Applied, record: CommitRecord) -> bool:
        """Whether the record led to what the table has, or makes it another one."""
        return record.hash in (at.epoch.hash, *self._applied) or self.table.id in record.added

    def _tell(self) -> None:
        """The table has passed over windows for good."""
        for window in sorted(self._pending):
            self._dropped(window)
        self._pending.clear()

    def lost(self, applied: Collection[str]) -> None:
        """The log does not have what the table applied last; of these epochs, by their hashes, the table has what is in the log before
        them."""
        self._new, self._applied = True, frozenset(applied)

    def _windowed(self, at: Applied, record: CommitRecord, decision: Decision) -> tuple[Decision, frozenset[WindowId]]:
        """What to do with a record that has windowed rows of which the table has none, and of which windows not to take them."""
        windows = frozenset(entry.id for entry in record.windows[self.table.id] if entry.emitted)
        if not windows or not isinstance(decision, Skip | Part):
            return decision, frozenset()
        if self.snapshot.mode == "append":
            there = windows & self._there
            return (Part(at.position) if isinstance(decision, Skip) and there < windows else decision), there
        if record.end.contains(at.position) or faults.mutant("window_rows_always"):
            return (Part(at.position) if isinstance(decision, Skip) else decision), frozenset()
        self._pending |= windows
        return decision, windows

    @cached_property
    def _there(self) -> frozenset[WindowId]:
        """The windows that an `append` table has rows of."""
        found: set[str] = set()
        for batch in self.lake.scan(self.snapshot, [GID]):
            gids: Any = batch.column(0)
            of_windows = gids.filter(pc.starts_with(gids, WINDOW))
            found.update(pc.unique(pc.replace_substring_regex(of_windows, r"\.[0-9]+$", "")).to_pylist())
        names = (name.removeprefix(WINDOW).rpartition("/") for name in found)
        return frozenset(WindowId(job, int(number)) for job, _, number in names)

    def _passes(self, record: CommitRecord) -> bool:
        """Whether the table is already what it is from this epoch on: the state says that it was bootstrapped since, or kept in a log
        that was begun anew. An `append` table goes on with the rows it had, also over an epoch that added it before that one."""
        known = self.status.added if self.status is not None else None
        if faults.mutant("applied_check_skipped") or known == record.id:
            return True
        append = self.snapshot.mode == "append"
        return (
            append
            and known is not None
            and record.number < known.number
            and captured.find(self._log, known) is not None
        )

    # -- commits -------------------------------------------------------------------------------------------------------

    def _flush(self, batch: _Batch, at: Applied) -> _Batch:
        """Commit what there is, and begin a new batch."""
        if batch.touched:
            self._commit(batch, at)
            self.applied = at
        return _Batch()

    def _commit(self, batch: _Batch, at: Applied) -> None:
        schema, first = self.snapshot.schema, batch.touched[0].number
        completed = self._completed(batch)
        count = completed.counted if completed is not None else lambda counts: counts
        write: Callable[[Snapshot], Snapshot]
        if self.snapshot.mode == "append":
            appended = sequence(batch.changes, schema, batch.exclude, batch.dropped)
            counts = count(appended.counts)
            merged = MergeCounts(counts, first, len(batch.touched))
            write = lambda on: self.lake.append(on, appended.rows, at, merged)  # noqa: E731
        elif self.snapshot.mode in KEEPING:
            found = steps(self.snapshot.mode, batch.changes, schema, batch.exclude, batch.dropped)
            counts = count(found.counts)
            merged = MergeCounts(counts, first, len(batch.touched))
            write = lambda on: self.lake.keep(on, found, at, merged)  # noqa: E731
        else:
            folded = fold(batch.changes, schema, batch.exclude, batch.dropped)
            counts = count(folded.counts)
            merged = MergeCounts(counts, first, len(batch.touched))
            write = lambda on: self.lake.upsert(on, folded, at, merged)  # noqa: E731
        said = Counts()
        for record in batch.touched:
            said = said.plus(record.tables[self.table.id].rows)
        if counts.logged != said:
            raise LogDamagedError(
                f"{tuple(counts.logged)} inserts, updates, deletes and windowed rows were read, the commit records say {tuple(said)}",
                where=f"{self.table}, epochs {first} to {at.epoch.number}",
                hint=f"`lakesync resync {self.table}`",
            )
        batch.changes.clear()
        if completed is not None and completed.hopeless.num_rows and not self.leaving:
            # Before the commit that passes over them: whoever dies between has them read once too often.
            self._hopeless(completed.hopeless)
            faults.point("merge.asked-again")
        if faults.mutant("applied_from_other_snapshot"):
            self.snapshot = self.lake.refresh(self.snapshot)
        try:
            self.snapshot = write(self.snapshot)
        except (LakeConflictError, LakeUnknownError):
            if not faults.mutant("blind_retry"):
                raise
            self.snapshot = write(self.lake.refresh(self.snapshot))
        self.commits += 1

    def _completed(self, batch: _Batch) -> Completed | None:
        """Complete the batch's incomplete rows, from the version that is written on. None: it has none."""
        if all(one.incomplete is None for one in batch.changes):
            return None
        appended, awaited = self.snapshot.mode == "append", self._awaited()
        completed = complete(
            batch.changes,
            self.snapshot.schema,
            lambda keys: known(self.snapshot.schema, self._before(keys), awaited),
            batch.exclude,
            batch.dropped,
            trusted=self._is_exact,
            appended=appended,
        )
        batch.changes = completed.changes
        return completed

    def _before(self, keys: pa.Table) -> pa.Table:
        """What the table has of these keys. Of one that goes on with rows from an earlier time (`cdc.merge.rejoining`) and is being read,
        only what came since: the others may be of any time, and a version that is half of then and half of now never was."""
        on, status = self.snapshot, self.status
        rows = latest(self.lake, on, keys) if on.mode == "append" else self.lake.rows(on, keys)
        if on.mode not in KEEPING or status is None or status.phase != "reading":
            return rows
        added = status.added and captured.find(self._log, status.added)
        return (
            rows.filter(pc.greater(rows.column(SEQ), pa.scalar(added.seq, pa.int64()))) if added else rows.slice(0, 0)
        )

    @property
    def _is_exact(self) -> bool:
        """Whether what the table has of a key is what the source had where the table is: not of rows that were read at any later time, or
        that someone else wrote."""
        phase = self.status.phase if self.status is not None else "ready"
        return phase != "catching-up" and not (phase == "reading" and self.snapshot.mode == "upsert")

    # -- ready -------------------------------------------------------------------------------------------------------

    def _look(self, position: Position) -> None:
        """Notice that the table has passed its mark, or that capture moved to another server before. Only where a transaction ends:
        within one the table is not what the source ever was."""
        if self.status is None or self.status.phase != "catching-up" or self.passed is not None or not position.whole:
            return
        if self.status.mark is None:
            self.passed = False
        elif faults.mutant("ready_by_gtid_executed"):
            self.passed = position.gtids.contains(GtidSet.parse(self.status.mark.file)) or None
        elif position.server_uuid != self.status.mark_server:
            self.passed = False
        else:
            self.passed = _reached(position.end, self.status.mark)


def _reached(end: BinlogEnd, mark: BinlogEnd) -> bool | None:
    """Whether `end` has passed `mark`: None if not yet, False if it never will, in a binary log of another name."""
    try:
        return end >= mark or None
    except ValueError:
        return False
