"""Direct bootstrap: a new table's rows, read in chunks without locks while the stream goes on, in one Delta commit at e0.

The protocol, step by step and with what fails without each of them, is `spec/handoff.py`:

1. the log says "table added"; 2. e0 := its newest epoch, not before that; 3. every reading connection waits until its server shows
everything up to e0, then reads; 4. after the last chunk: mark := the end of the binary log of the server that capture reads; 5. one
Delta commit at e0, from which the merger goes on; 6. the table is ready once the merger has passed the mark; 7. if capture moves to
another server before that, it starts again at 2.
"""

from __future__ import annotations

import threading

from cdc import faults
from cdc.config import KEEPING, PipelineConfig
from cdc.errors import LakeConflictError, LakeUnknownError, TableStoppedError
from cdc.journal import logger
from cdc.lake import Applied, LakeTable, Layout, Snapshot, partition
from cdc.log import captured
from cdc.log.base import Log
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.schema import TableSchema
from cdc.state import State
from snapshot.chunks import Walk
from snapshot.copying import Copy, ProgressCallback, Shared
from snapshot.pace import Pace
from snapshot.progress import Progress, Purpose
from snapshot.reader import Ended, Reader

LOG = logger("snapshot")

POLL_S = 0.2
"""How often the log is looked at for the record that adds the table."""
COMMIT_TRIES = 10
"""Conflicts with foreign commits before the caller is left to try again."""


class _Again(Exception):  # noqa: N818 (no error)
    """What was read is of no use any more; why."""


class Bootstrap:
    """The direct bootstrap of one table, whose state is `added` (or `snapshot`: it goes on by chunk).

    `shared` is what several bootstraps of a process have in common. `pace` says how far it is.
    """

    def __init__(
        self,
        config: PipelineConfig,
        log: Log,
        state: State,
        table: TableName,
        *,
        shared: Shared | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.state = state
        self.table = table
        self._owns = shared is None
        self._shared = shared or Shared.alone(config, log)
        self.pace = Pace()
        self._folder = state.folder / "snapshot" / table.folder
        self._lake = LakeTable(config.lake_root, table, config.name, file_size=config.merge.file_size)

    def run(self, stop: threading.Event, progress: ProgressCallback | None = None) -> bool:
        """Until the table is catching up; whether it is. False if `stop` was set, or the table left these states by another's hand.

        It may be called again after any end: it goes on where its progress says, and does nothing twice. Raises `SourceUnavailableError`
        and other retryable errors, for the caller to call again; `TableStoppedError` (altered, dropped, unreadable values),
        `LakeOccupiedError` and `LakeError`, `SourceError`, which stop the table; `LogError`, `StateError`, `ConfigError`.
        """
        try:
            return self._run(stop, progress)
        finally:
            if self._owns:
                self._shared.throttle.close()

    def _run(self, stop: threading.Event, progress: ProgressCallback | None) -> bool:
        while not stop.is_set():
            try:
                return self._once(stop, progress)
            except Ended:
                return False
            except _Again as why:
                LOG.warning("bootstrap-again", table=str(self.table), reason=str(why))
                again = self.state.set_table(self.table, "added", when=("snapshot",), e0=None, e0_position=None)
                if not again and self._phase() != "added":
                    return False
        return False

    def _phase(self) -> str:
        status = self.state.table(self.table)
        return status.phase if status else "new"

    def _once(self, stop: threading.Event, tell: ProgressCallback | None) -> bool:
        status = self.state.table(self.table)
        if status is None or status.phase not in ("added", "snapshot"):
            return False
        present = self._lake.load()
        if status.phase == "added":
            progress = self._begin(stop, present)
            if progress is None:
                return False
        else:
            found = Progress.resume(self._folder)
            if found is not None and found.purpose.e0 != status.e0:
                found.close()
                found = None
            if found is None:
                raise _Again("its progress is lost")
            progress = found
        try:
            return self._finish(progress, present, stop, tell)
        finally:
            progress.close()

    # -- 1, 2: e0 ----------------------------------------------------------------------------------------------------

    def _begin(self, stop: threading.Event, present: Snapshot | None) -> Progress | None:
        """Take e0, and record it before anything is read."""
        known: captured.Known | None = None
        seen = False
        while True:
            status = self.state.table(self.table)
            if status is None or status.phase != "added" or stop.is_set():
                return None
            known = captured.read(self.log, known)
            if (
                known is not None
                and status.added is not None
                and captured.added(self.log, known, self.table.id, status.added)
            ):
                if seen:
                    break
                # e0 is taken after this point: the newest epoch, not the one that adds the table.
                faults.point("snapshot.after-added")
                seen = True
                continue
            stop.wait(POLL_S)
        found = known.tables[self.table.id]
        schema = TableSchema.from_dict(found.schema)
        Walk(self.table, schema)
        self._check_readable(schema)
        self._check_replaceable(present)
        # Never a part of a transaction: its earlier parts would be in neither what is read, since a server shows none of it before its
        # end and is waited for no longer than until it has the whole ones, nor in what the merger replays from e0.
        record = known.newest if faults.mutant("e0_at_part") else known.record
        if faults.mutant("e0_before_added") and (oldest := self.log.oldest()) is not None:
            record = oldest
        base = -1 if present is None else present.version
        self._abandon()
        progress = Progress.begin(self._folder, Purpose(record, schema, Layout.of(found.options), found.totals, base))
        entered = self.state.set_table(
            self.table,
            "snapshot",
            when=("added",),
            unchanged=status,  # added again since, it needs a later e0
            e0=record.id,
            e0_position=record.end,
            mark=None,
            mark_server=None,
            rows_read=0,
            rows_estimate=0,
            error=None,
        )
        if not entered:
            progress.end()
            return None
        LOG.info("bootstrap-begins", table=str(self.table), epoch=record.number, position=str(record.end))
        faults.point("snapshot.after-e0")
        return progress

    def _abandon(self) -> None:
        """Remove what an earlier bootstrap wrote and no commit names."""
        left = Progress.resume(self._folder)
        if left is None:
            return
        self._lake.discard([*(f.name for f in left.files()), *left.unfinished()])
        left.end()

    def _check_readable(self, schema: TableSchema) -> None:
        """Raise `TableStoppedError` for what cannot be read, before anything is."""
        try:
            schema.check()
        except TableStoppedError as error:
            raise TableStoppedError(error.what, where=str(self.table), hint=error.hint) from None

    def _check_replaceable(self, present: Snapshot | None) -> None:
        """Raise `TableStoppedError` where the lake's table holds what the source does not have any more: that is not replaced."""
        if present is not None and present.mode in KEEPING and present.rows:
            raise TableStoppedError(
                f"the lake has the table with mode {present.mode}, and what it keeps would be lost",
                where=f"{self.table}: {present.folder}",
                hint=f"move that folder away, then `lakesync resync {self.table}`; or give it that mode again",
            )

    def _check_e0(self, purpose: Purpose) -> None:
        """Raise `_Again` unless the log still goes on from e0, on the server that it was taken on."""
        before = purpose.record
        if captured.find(self.log, before.id) is None:
            raise _Again("the log does not have its epoch any more")
        for record in self.log.records(after=before.number):
            if record.before != before.hash:
                raise _Again("the log does not go on from its epoch")
            if record.end.server_uuid != purpose.record.end.server_uuid:
                raise _Again("capture moved to another server")
            before = record

    # -- 3: chunks ---------------------------------------------------------------------------------------------------

    def _finish(
        self, progress: Progress, present: Snapshot | None, stop: threading.Event, tell: ProgressCallback | None
    ) -> bool:
        purpose, early = progress.purpose, None
        self._check_e0(purpose)
        files = progress.files()
        if not self._is_ours(present, progress):
            if any(not self._lake.folder.holds(f.name) for f in files):
                raise _Again("a file of its own is missing")
            self._lake.discard(progress.unfinished())
            progress.forget_unfinished()
            copy = Copy(self.config, self._lake, self.state, progress, self._shared, self.pace, stop, tell)
            copy.run()
            early = copy.early_mark
        self._check_e0(purpose)
        # 4: after all chunks, and on this server only.
        mark, server = early or self.mark(purpose)
        done = self._commit(progress)
        faults.point("snapshot.after-commit")
        caught = self.state.set_table(
            self.table,
            "catching-up",
            when=("snapshot",),
            mark=mark,
            mark_server=server,
            rows_read=done.rows,
            error=None,
        )
        if not caught:
            return False
        progress.end()
        LOG.info("bootstrap-committed", table=str(self.table), rows=done.rows, version=done.version, mark=str(mark))
        return True

    # -- 4, 5: mark and commit -----------------------------------------------------------------------------------------

    def mark(self, purpose: Purpose) -> tuple[BinlogEnd, str]:
        """The end of the binary log of the server that capture reads, and that server."""
        walk = Walk(self.table, purpose.schema)
        with Reader(self.config, walk, purpose.record.end, threading.Event()) as reader:
            return reader.mark()

    def _is_ours(self, present: Snapshot | None, progress: Progress) -> bool:
        """Whether the lake already has this bootstrap's commit: a run before got that far, or its answer was lost."""
        purpose = progress.purpose
        if present is None or present.version <= purpose.base or present.applied is None:
            return False
        return (
            present.applied.log == purpose.record.log
            and present.applied.epoch == purpose.e0
            and progress.planned
            and not progress.open_parts()
            and set(present.files) == {partition.logged(f.name) for f in progress.files()}
        )

    def _commit(self, progress: Progress) -> Snapshot:
        """One commit, whatever stands there; none if it stands there already."""
        purpose, record = progress.purpose, progress.purpose.record
        applied = Applied(record.log, record.id, record.end, record.ts_ms, record.raw_us, record.seq)
        for tried in range(COMMIT_TRIES):
            present = self._lake.load()
            if present is not None and self._is_ours(present, progress):
                return present
            faults.point("snapshot.before-commit")
            try:
                return self._lake.bootstrap(
                    progress.files(), purpose.schema, purpose.layout, applied, present, purpose.logged
                )
            except (LakeConflictError, LakeUnknownError):
                # Neither says that nothing was committed: look before deciding.
                if tried == COMMIT_TRIES - 1:
                    raise
        raise AssertionError("unreachable")
