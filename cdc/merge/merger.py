"""Rounds: every table to the newest whole epoch, then a manifest that names one consistent version of each.

Of a large transaction the parts are in the log before its end is; they are taken in the round that reaches the end, in several commits
where they are too much for one. What stops between those leaves versions that end within the transaction, which no manifest names.

A round is one or more passes. A pass loads every table, finds where in the log it goes on, reads the records once for all of them
and lets each take what it lacks (`cdc.merge.table`). After a conflict, an outcome that is not known, or a log that did not hold what
it should, another pass loads those tables anew and decides again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import Any

import pyarrow as pa

from cdc import faults, sharding
from cdc.clock import Clock
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord, EpochId, TableState, WindowId
from cdc.errors import (
    LakeConflictError,
    LakeDamagedError,
    LakesyncError,
    LakeUnknownError,
    LogDamagedError,
    LogGapError,
)
from cdc.journal import logger
from cdc.lake import Applied, LakeTable, Snapshot, deltalog, manifest
from cdc.lake.manifest import Manifest, TableVersion
from cdc.log import captured
from cdc.log.base import Log
from cdc.merge import adding, adopting, repairing, resuming, trim
from cdc.merge.decide import applied_at
from cdc.merge.table import TableMerge
from cdc.merge.tidying import Tidying
from cdc.names import TableName
from cdc.reads import Key, run_of
from cdc.state import Phase, State, TableStatus

LOG = logger("merge")
NODE = "merge"
RECORDS = 1000
"""Commit records in memory at a time."""
PASSES = 8
"""In one round; with the pauses between them about six seconds."""
FIRST_PAUSE_S = 0.05
BEAT_S = 1.0
LOOK_S = 0.25
"""How long the log is waited for before `stop`, the state and the requests are looked at again."""
LOOK_BACK_S = 3.0
"""How often the newest record is looked at although none with a higher number came: a log that was rolled back has another one."""
TRIM_S = 60.0
TIDY_S = 5.0
"""How often tables are tidied up although no round came."""
MERGED: tuple[Phase, ...] = ("catching-up", "reading", "ready")


@dataclass(frozen=True)
class TableResult:
    """What a round did with a table: what it has now, and how many Delta commits that took."""

    phase: Phase
    version: int | None = None
    applied: Applied | None = None
    rows: int | None = None
    commits: int = 0
    held: bool = False
    """The log adds it again: it waits for its bootstrap."""
    error: LakesyncError | None = None


@dataclass(frozen=True)
class RoundResult:
    """A round: the epoch that the tables were moved to (None: the log is empty) and each one's outcome. `newest` is the log's newest
    epoch then: that one, or a part of a transaction beyond it."""

    epoch: EpochId | None
    tables: Mapping[TableName, TableResult] = field(default_factory=dict)
    passes: int = 0
    newest: EpochId | None = None


@dataclass
class _Round:
    """`target` is the newest record read; `moving` the tables that took everything up to it, as far as they go."""

    found: Manifest | None = None
    statuses: Mapping[TableName, TableStatus] = field(default_factory=dict)
    target: CommitRecord | None = None
    moving: dict[TableName, TableMerge] = field(default_factory=dict)
    again: dict[TableName, LakesyncError] = field(default_factory=dict)
    """To be loaded and decided again."""
    suspected: set[TableName] = field(default_factory=set)
    """The log had a gap or damage for them once, or the lake's table. It may have been replaced while it was read: it is believed the
    second time."""
    commits: dict[TableName, int] = field(default_factory=dict)
    phases: dict[TableName, Phase] = field(default_factory=dict)
    stopped: dict[TableName, LakesyncError] = field(default_factory=dict)


class Merger:
    """Merges the log of one pipeline into its lake. For one thread; other mergers may run beside it: each commit has one winner."""

    def __init__(self, config: PipelineConfig, log: Log, state: State, clock: Clock) -> None:
        self._config = config
        self._log = log
        self._state = state
        self._clock = clock
        self._root = config.lake_root
        self._known: captured.Known | None = None
        self._lakes: dict[TableName, LakeTable] = {}
        """One for each table as long as this merges it: it holds the table's key index."""
        self._snapshots: dict[TableName, tuple[LakeTable, Snapshot]] = {}
        self._finished: set[TableName] = set()
        """Tables that are not captured any more and have all that the log had of them."""
        self._blind: dict[TableName, int] = {}
        self._looking = adopting.Looking()
        self._tidying = Tidying(config, clock)
        self._settled_tables: set[TableName] = set()
        """Those that the last round left as they should be."""
        self._stop = threading.Event()

    # -- rounds --------------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, hurry: bool = False) -> None:
        """Rounds, `merge.every` apart, while there is something to do; until `stop` is set. With `hurry` one follows the
        other: someone waits for what is in the log.

        Raises what is no single table's error (the log, the state), and what `round` raises: the retryable ones to be run again.
        """
        self._stop = stop
        done: tuple[EpochId | None, Mapping[TableName, tuple[Phase, int]]] | None = None
        read: set[str] = set()
        info: dict[str, Any] = {}
        round_s = trim_s = tidy_s = self._clock.monotonic()
        beat_s = look_s = -LOOK_BACK_S
        while not stop.is_set():
            now_s = self._clock.monotonic()
            if now_s - beat_s >= BEAT_S:
                self._state.beat(NODE, info)
                beat_s = now_s
            if now_s - trim_s >= TRIM_S:
                self.trim()
                trim_s = now_s
            if now_s - tidy_s >= TIDY_S:
                self.tidy()
                tidy_s = self._clock.monotonic()
            if now_s < round_s and not (done and self._is_awaited(done[1])):
                stop.wait(min(LOOK_S, round_s - now_s))
                continue
            asked = resuming.take_requests(self._state, self._config, self._log)
            phases = {t: (s.phase, s.changed_us) for t, s in self._state.tables().items()}
            reads = {r.job for r in self._state.reads(open_only=True) if r.why in ("shard", "repair")}
            due = asked or done is None or phases != done[1] or reads != read
            if not due and now_s - look_s >= LOOK_BACK_S:
                newest, look_s = self._log.newest(), now_s
                due = done is not None and (newest and newest.id) != done[0]
            if due or (done and self._log.wait(done[0].number if done[0] else -1, LOOK_S)):
                begun_s = self._clock.monotonic()
                result = self.round()
                ended_s, round_s = self._clock.monotonic(), begun_s + self._config.merge.every
                if hurry:
                    round_s = min(round_s, ended_s)
                elif any(r.phase == "catching-up" for r in result.tables.values()):
                    # It is ready once it is seen to be; but most of the time is the others'.
                    round_s = min(round_s, ended_s + max(LOOK_S, 4 * (ended_s - begun_s)))
                done, read = (result.newest, phases), reads
                info = self._info(result)
                beat_s = -LOOK_BACK_S
                self.tidy()
                tidy_s = self._clock.monotonic()

    def _is_awaited(self, known: Mapping[TableName, tuple[Phase, int]]) -> bool:
        """Whether a table waits for the next round since the last one: it was added, or its first rows are in the lake."""
        return any(
            s.phase in ("added", "catching-up") and known.get(t) != (s.phase, s.changed_us)
            for t, s in self._state.tables().items()
        )

    def round(self) -> RoundResult:
        """Move every table to the newest epoch, set those `ready` that have passed their mark, write a manifest.

        A table's own error stops that table, recorded with its way out. Raises a table's `LakeConflictError` or `LakeUnknownError` that
        did not pass in `PASSES`, after the others are done; what the log, the state and the manifest raise.
        """
        faults.point("merge.round")
        work = _Round()
        passes = 0
        pause_s = FIRST_PAUSE_S
        while True:
            passes += 1
            self._pass(work)
            if not work.again or passes == PASSES or self._stop.is_set():
                break
            self._stop.wait(pause_s)
            pause_s *= 2
        self._settled_tables = {table for table in work.moving if work.phases.get(table) in MERGED}
        if work.target is None or self._known is None:
            return RoundResult(None, {}, passes)
        faults.point("merge.after-round")
        if work.target.whole:  # unless it was told to stop within a transaction
            self._write_manifest(work, work.target)
        if work.again:
            raise next(iter(work.again.values()))
        return RoundResult(work.target.id, self._results(work), passes, self._known.newest.id)

    def _pass(self, work: _Round) -> None:
        work.found = manifest.read(self._root, self._config.name)
        work.statuses = self._state.tables()
        work.again.clear()
        work.moving.clear()
        self._known = captured.read(self._log, self._known)
        if self._known is None:
            work.target = None
            return
        work.target = self._known.record
        for table, found in self._candidates(work.statuses):
            try:
                if merge := self._open(work, table, found):
                    work.moving[table] = merge
            except LakesyncError as error:
                self._failed(work, table, error)
        for table in self._finished & set(self._lakes):
            self._snapshots.pop(table, None)
            self._lakes.pop(table).close()
        for records in self._read(work.moving.values(), work.target):
            work.target = records[-1]
            for table, merge in list(work.moving.items()):
                before = merge.commits
                try:
                    merge.take(records)
                except LakesyncError as error:
                    self._failed(work, table, error)
                finally:
                    work.commits[table] = work.commits.get(table, 0) + merge.commits - before
            if self._stop.is_set():
                break  # all are at the target so far
        for table, merge in work.moving.items():
            self._snapshots[table] = (merge.lake, merge.snapshot)
            self._blind[table] = merge.blind_after
            work.phases[table] = self._settled(table, merge)

    def _candidates(self, statuses: Mapping[TableName, TableStatus]) -> Iterator[tuple[TableName, TableState | None]]:
        """The tables to merge, with what the log says of them; None if they are not captured any more."""
        tables = {TableName.from_id(i): found for i, found in self._tables.items()}
        self._finished -= set(tables)
        for table, found in tables.items():
            status = statuses.get(table)
            if status and (status.phase in MERGED or (status.phase == "added" and adding.may_begin(found))):
                yield table, found
        for table, status in statuses.items():
            by_capture = status.phase == "stopped" and (status.error or {}).get("node") == "capture"
            # In another phase it waits for capture, which adds it again: the log lost the record that added it.
            if (status.phase == "removed" or by_capture) and table not in tables and table not in self._finished:
                yield table, None

    @property
    def _tables(self) -> Mapping[str, TableState]:
        """The captured tables, as of the newest whole epoch."""
        return self._known.tables if self._known else {}

    def _open(self, work: _Round, table: TableName, found: TableState | None) -> TableMerge | None:
        """The table at its newest version; None for one that has nothing more to take."""
        status = work.statuses[table]
        if found is not None and status.phase == "added":
            begun = self._begin(work, table, found)
            return begun and self._merge(table, *begun)
        lake, snapshot = self._load(table)
        applied = manifest.carried(table, snapshot, work.found) if snapshot else None
        if found is None:
            known = work.found.tables.get(table) if work.found else None
            if snapshot is None or applied is None or (known and known.state == "removed"):
                self._finished.add(table)
                return None
        if snapshot is None or applied is None:
            raise LakeDamagedError(
                "the lake does not have the table, or not as lakesync wrote it",
                where=f"{table}: {lake.folder}",
                hint=f"`lakesync resync {table}`",
            )
        return self._merge(table, lake, snapshot, applied, status, leaving=found is None)

    def _begin(
        self, work: _Round, table: TableName, found: TableState
    ) -> tuple[LakeTable, Snapshot, Applied, TableStatus] | None:
        """A table in the phase `added`, in the lake from now on; None: not by the merger, or not yet."""
        lake = self._lake(table)
        if adopting.waits(self._log, lake, found):
            adopted = adopting.begin(self._log, lake, table, found, self._looking)
            if adopted is None:
                return None
            snapshot, applied, phase = adopted
        elif adding.begins_empty(found):
            lake, before = self._load(table)
            applied_before = manifest.carried(table, before, work.found) if before else None
            snapshot, applied = adding.begin(self._log, lake, table, found, before, applied_before)
            phase = adding.phase(found)
        else:
            return None
        if phase == "reading":
            # What was read of it before, if anything, was for another table in its place.
            sources = sharding.shards(found.options) or (table,)
            jobs = {sharding.job(self._log.uuid, table.id, found, source) for source in sources}
            for read in self._state.reads():
                if read.job in jobs and read.epoch is not None:
                    self._state.restart_read(read.job, "the lake's table is a new one")
        self._state.set_table(table, phase, when=("added",), error=None)
        LOG.info("table-begun", table=str(table), epoch=applied.epoch.number, phase=phase)
        return lake, snapshot, applied, replace(work.statuses[table], phase=phase)

    def _merge(
        self,
        table: TableName,
        lake: LakeTable,
        snapshot: Snapshot,
        applied: Applied,
        status: TableStatus,
        *,
        leaving: bool = False,
    ) -> TableMerge:
        told = self._read_again
        merge = TableMerge(
            self._log,
            lake,
            table,
            snapshot,
            applied,
            status,
            leaving=leaving,
            dropped=told,
            hopeless=lambda keys: self._keys_again(table, keys),
            awaited=lambda: self._keys_awaited(table),
        )
        merge.blind_after = self._blind.get(table, -1)
        return merge

    def _read_again(self, window: WindowId) -> None:
        """A table passes over a window's rows: they were read before what it has."""
        why = f"the log lost records, and the table was ahead of window {window.number}"
        self._state.restart_read(window.job, why, run_of(window.number))

    def _keys_again(self, table: TableName, keys: pa.Table) -> None:
        """A table passes over changes of these keys, which nothing completes."""
        if found := self._tables.get(table.id):
            repairing.ask(self._state, table, found, keys)

    def _keys_awaited(self, table: TableName) -> frozenset[Key]:
        found = self._tables.get(table.id)
        return repairing.awaited(self._state, table, found) if found else frozenset()

    def _load(self, table: TableName) -> tuple[LakeTable, Snapshot | None]:
        lake, known = self._snapshots.pop(table, (None, None))
        if lake and known:
            return lake, lake.refresh(known)
        lake = self._lake(table)
        return lake, lake.load()

    def _lake(self, table: TableName) -> LakeTable:
        if table not in self._lakes:
            merge = self._config.merge
            self._lakes[table] = LakeTable(
                self._root,
                table,
                self._config.name,
                file_size=merge.file_size,
                clock=self._clock,
                index=self._config.state / "index",
                index_memory=merge.index_memory,
            )
        return self._lakes[table]

    def close(self) -> None:
        """Save the tables' key indexes and let go of them; another merger may take them."""
        self._tidying.close()
        for lake in self._lakes.values():
            lake.close()
        self._lakes.clear()
        self._snapshots.clear()

    def _read(self, moving: Any, newest: CommitRecord) -> Iterator[list[CommitRecord]]:
        """The log's records up to `newest`, some at a time, from the first one that a table may lack."""
        starts = {self._start(merge) for merge in moving} or {newest.number - 1}
        after = None if None in starts else min(s for s in starts if s is not None)
        records = takewhile(lambda r: r.number <= newest.number, self._log.records(after))
        while some := list(islice(records, RECORDS)):
            yield some

    def _start(self, merge: TableMerge) -> int | None:
        """Read records above this number; None for all. By number only where the log still has that epoch, or the one that follows."""
        epoch = merge.applied.epoch
        if faults.mutant("skip_by_number"):
            return epoch.number
        if faults.mutant("applied_check_skipped"):
            return merge.blind_after
        record = next(iter(self._log.records(epoch.number - 1)), None)
        if record is not None and epoch.hash in (record.hash, record.before):
            return record.number - 1
        merge.lost([commit.info["hash"] for commit in deltalog.commits(merge.lake.folder)])
        return None

    def _failed(self, work: _Round, table: TableName, error: LakesyncError) -> None:
        """A table did not get to the target: it is tried again, or stopped. Raises what concerns every table."""
        work.moving.pop(table, None)
        self._snapshots.pop(table, None)
        # Of a version that is not the newest one any more files may be gone.
        changing = isinstance(error, LogDamagedError | LogGapError | LakeDamagedError)
        doubtful = changing and table not in work.suspected
        if doubtful:
            work.suspected.add(table)
        if doubtful or isinstance(error, LakeConflictError | LakeUnknownError):
            work.again[table] = error
            LOG.info("decides-again", table=str(table), error=error.code, what=error.what)
            return
        if error.retryable:
            raise error
        error.where = error.where or str(table)
        work.stopped[table] = error
        LOG.error("table-stopped", table=str(table), error=error.code, what=error.what, hint=error.hint)
        if table.id in self._tables:
            status = work.statuses.get(table)
            stop = error.to_dict() | {"node": NODE, resuming.BEFORE: status.phase if status else None}
            # Added again meanwhile, it has nothing to do with what was wrong.
            same = status if status and status.phase in MERGED else None
            self._state.set_table(table, "stopped", when=(*MERGED, "added"), unchanged=same, error=stop)
        else:
            # Its state is another node's; it is read no more, and only a resync makes it whole.
            self._finished.add(table)
        self._state.record_error(NODE, error, table)

    def _settled(self, table: TableName, merge: TableMerge) -> Phase:
        """The phase of a table that took what it lacks."""
        assert merge.status is not None
        phase = merge.status.phase
        if merge.leaving:
            if merge.ended or merge.held or phase not in MERGED:
                self._finished.add(table)
                return "removed"
        elif merge.passed and self._state.set_table(
            table, "ready", when=("catching-up",), unchanged=merge.status, mark=None, mark_server=None, error=None
        ):
            LOG.info("table-ready", table=str(table), epoch=merge.applied.epoch.number)
            return "ready"
        elif merge.passed is False and self._state.set_table(
            table,
            "added",
            when=("catching-up",),
            unchanged=merge.status,
            e0=None,
            e0_position=None,
            mark=None,
            mark_server=None,
        ):
            LOG.warning("bootstrap-again", table=str(table), reason="capture moved to another server")
            return "added"
        return phase

    # -- what is said of it ----------------------------------------------------------------------------------------------

    def _write_manifest(self, work: _Round, target: CommitRecord) -> None:
        """Name the versions of the tables that are at the target, and keep the place of those that are not."""
        found = manifest.read(self._root, self._config.name)
        if found and found.applied.log == target.log and found.applied.epoch.number > target.number:
            later = next(iter(self._log.records(found.applied.epoch.number - 1)), None)
            if later and later.id == found.applied.epoch:
                return  # another merger was faster
        applied = applied_at(target)
        at_target = {t for t, merge in work.moving.items() if merge.applied.epoch.number >= target.number}
        lacking = repairing.settle(self._state, self._log, target, at_target)
        tables: dict[TableName, TableVersion] = {}
        for table, known in found.tables.items() if found else ():
            status = work.statuses.get(table)
            if table in self._finished:
                state = "removed"
            elif table in work.again or (status and status.phase in MERGED and table.id not in self._tables):
                state = known.state
            elif table in work.stopped or (status and status.phase == "stopped"):
                state = "stopped"
            elif status is None:
                state = known.state  # the state folder was lost; capture asks the manifest what was ready
            else:
                continue
            carried = known.applied or (found.applied if found else None)
            tables[table] = TableVersion(known.version, known.commit, known.epoch, state, carried)
        for table, merge in work.moving.items():
            snapshot = merge.snapshot
            assert snapshot.info_version is not None
            assert snapshot.applied is not None
            there = merge.applied.epoch == applied.epoch and merge.applied.position == applied.position
            if not merge.applied.position.whole:
                # It waits within a transaction, to be bootstrapped again: the version that was named before is the last whole one.
                if found and table in found.tables:
                    tables[table] = found.tables[table]
                continue
            tables[table] = TableVersion(
                snapshot.version,
                snapshot.info_version,
                snapshot.applied.epoch,
                # An `append` table in this phase would be given all its rows again, if the state folder were lost.
                "reading"
                if table in lacking and work.phases[table] == "ready" and snapshot.mode != "append"
                else self._said(table, work.phases[table], target),
                None if there else merge.applied,
            )
        manifest.write(self._root, self._config.name, Manifest(applied, tables, self._clock.now_us()))

    def _said(self, table: TableName, phase: Phase, target: CommitRecord) -> Phase:
        """What the manifest calls a table that is at the target: one that is made of shards lacks what a later one of them had, until that is
        read."""
        found = self._tables.get(table.id)
        if phase != "ready" or found is None or adding.is_append(found):
            return phase
        for shard, since in sharding.shards(found.options).items():
            if since is None:
                continue  # the table was not ready before it was read
            read = self._state.read(sharding.job(self._log.uuid, table.id, found, shard))
            if read is None or read.phase != "done" or (read.last is not None and read.last.number > target.number):
                return "reading"
        return phase

    def _results(self, work: _Round) -> dict[TableName, TableResult]:
        results = {t: TableResult("stopped", error=e, commits=work.commits.get(t, 0)) for t, e in work.stopped.items()}
        for table, merge in work.moving.items():
            results[table] = TableResult(
                work.phases[table],
                merge.snapshot.version,
                merge.applied,
                merge.snapshot.rows,
                work.commits.get(table, 0),
                merge.held is not None,
            )
        return results

    def _info(self, result: RoundResult) -> dict[str, Any]:
        """For `status`: the lag is between the source's clock and ours, as of the last transaction in the table."""
        now_us = self._clock.now_us()
        tables = {
            str(table): {
                "phase": r.phase,
                "version": r.version,
                "rows": r.rows,
                "epoch": r.applied.epoch.number,
                "lag_ms": max(0, now_us - r.applied.raw_us) // 1000 if r.applied.raw_us else None,
            }
            for table, r in result.tables.items()
            if r.applied
        }
        return {"epoch": result.epoch.number if result.epoch else None, "tables": tables}

    # -- keeping house --------------------------------------------------------------------------------------------------------

    def trim(self) -> int | None:
        """Let go of what nothing needs any more and is older than `merge.keep`. The first epoch kept, if any went. Raises as the log."""
        oldest, newest = self._log.oldest(), self._known.newest if self._known else None
        found, statuses = manifest.read(self._root, self._config.name), self._state.tables()
        if oldest is None or newest is None or found is None or found.applied.log != newest.log:
            return None
        needed = [found.applied.epoch.number]
        if self._config.trace:
            needed.append(trim.traced(self._config.state, newest))
        for table, known in found.tables.items():
            status = statuses.get(table)
            code = (status.error or {}).get("code") if status else None
            # What a gap stopped, or waits for a bootstrap, never reads on from where it is.
            if known.state != "removed" and code != "LogGap" and not (status and status.phase in ("added", "snapshot")):
                needed.append(trim.first_needed(self._log, oldest, (known.applied or found.applied).epoch))
        for table, status in statuses.items():
            state = self._tables.get(table.id)
            if status.phase == "snapshot" and status.e0:
                needed.append(status.e0.number)
            elif state and status.phase == "added" and adding.may_begin(state):
                needed.append(state.since)
            elif state and table not in found.tables and (status.phase in MERGED or _may_resume(status)):
                needed.append(oldest.number)  # made since the manifest, or stopped before one named it
        # The windows of a job are looked for in the log behind the epoch up to which they are known.
        reads = self._state.reads(open_only=True)
        needed += [trim.first_needed(self._log, oldest, read.epoch) for read in reads if read.epoch]
        written_before_us = self._clock.now_us() - int(self._config.merge.keep * 1_000_000)
        kept = trim.trim(self._log, oldest, needed, written_before_us)
        if kept is not None:
            LOG.info("log-trimmed", epoch=kept)
        return kept

    def tidy(self) -> None:
        """Small files, deleted rows, the tables' logs, what killed processes left: what is due, for about `merge.maintain` seconds."""
        tables = {t: found for t, found in self._snapshots.items() if t in self._settled_tables}
        tidied = self._tidying.tidy(tables)
        for table, snapshot in tidied.items():
            self._snapshots[table] = (tables[table][0], snapshot)
        newer = {t: snapshot for t, snapshot in tidied.items() if snapshot.version > tables[t][1].version}
        # No round may come for a long time, and the files of the versions that the last one named go.
        if newer and (found := manifest.read(self._root, self._config.name)):
            now = manifest.moved(found, newer)
            if now != found:
                manifest.write(self._root, self._config.name, now)


def _may_resume(status: TableStatus) -> bool:
    """Whether `lakesync resume` lets the table go on from where it is, if the log still has what follows."""
    error = status.error or {}
    return status.phase == "stopped" and error.get("node") == NODE and error.get("code") != "LogGap"
