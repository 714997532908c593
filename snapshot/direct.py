"""Direct bootstrap: a new table's rows, read in chunks without locks while the stream goes on, in one Delta commit at e0.

The protocol, step by step and with what fails without each of them, is `spec/handoff.py`:

1. the log says "table added"; 2. e0 := its newest epoch, not before that; 3. every reading connection waits until its server shows
everything up to e0, then reads; 4. after the last chunk: mark := the end of the binary log of the server that capture reads; 5. one
Delta commit at e0, from which the merger goes on; 6. the table is ready once the merger has passed the mark; 7. if capture moves to
another server before that, it starts again at 2.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa

from cdc import faults, unfit
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord
from cdc.errors import LakeConflictError, LakeUnknownError, SourceUnavailableError, TableStoppedError
from cdc.journal import logger
from cdc.lake import Applied, DataFile, LakeTable, Snapshot
from cdc.lake.parquet import new_name
from cdc.log import captured
from cdc.log.base import Log
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.schema import TableSchema
from cdc.source.connection import connect, place
from cdc.source.server import Server
from cdc.state import State
from snapshot.chunks import Bound, Part, Walk
from snapshot.progress import Progress, Purpose
from snapshot.reader import Ended, Reader

LOG = logger("snapshot")

ProgressCallback = Callable[[int, int], None]
"""Rows read so far, and about how many there are."""

POLL_S = 0.2
"""How often the log is looked at for the record that adds the table."""
TELL_S = 0.5
"""How often the count of rows is written down within a chunk."""
COMMIT_TRIES = 10
"""Conflicts with foreign commits before the caller is left to try again."""


class _Again(Exception):  # noqa: N818 (no error)
    """What was read is of no use any more; why."""


class Bootstrap:
    """The direct bootstrap of one table, whose state is `added` (or `snapshot`: it goes on by chunk).

    `slots` bounds the chunks that are read at a time, over several bootstraps.
    """

    def __init__(
        self,
        config: PipelineConfig,
        log: Log,
        state: State,
        table: TableName,
        *,
        slots: threading.Semaphore | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.state = state
        self.table = table
        self._slots = slots
        self._folder = state.folder / "snapshot" / table.folder
        self._lake = LakeTable(config.lake_root, table, config.name, file_size=config.merge.file_size)
        self._early_mark: tuple[BinlogEnd, str] | None = None

    def run(self, stop: threading.Event, progress: ProgressCallback | None = None) -> bool:
        """Until the table is catching up; whether it is. False if `stop` was set, or the table left these states by another's hand.

        It may be called again after any end: it goes on where its progress says, and does nothing twice. Raises `SourceUnavailableError`
        and other retryable errors, for the caller to call again; `TableStoppedError` (altered, dropped, unreadable values),
        `LakeOccupiedError` and `LakeError`, `SourceError`, which stop the table; `LogError`, `StateError`, `ConfigError`.
        """
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
        # Never a part of a transaction: its earlier parts would be in neither what is read, since a server shows none of it before its
        # end and is waited for no longer than until it has the whole ones, nor in what the merger replays from e0.
        record = known.newest if faults.mutant("e0_at_part") else known.record
        if faults.mutant("e0_before_added") and (oldest := self.log.oldest()) is not None:
            record = oldest
        base = -1 if present is None else present.version
        self._abandon()
        progress = Progress.begin(self._folder, Purpose(record, schema, found.totals, base))
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
        purpose = progress.purpose
        self._check_e0(purpose)
        files = progress.files()
        if not self._is_ours(present, progress):
            if any(not (self._lake.folder / f.name).exists() for f in files):
                raise _Again("a file of its own is missing")
            self._lake.discard(progress.unfinished())
            progress.forget_unfinished()
            _Copy(self, progress, stop, tell).run()
        self._check_e0(purpose)
        # 4: after all chunks, and on this server only.
        mark, server = self.mark(purpose.record)
        if self._early_mark is not None:
            mark, server = self._early_mark
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

    def mark(self, e0: CommitRecord) -> tuple[BinlogEnd, str]:
        """The end of the binary log of the server that capture reads, and that server."""
        connection = connect(self.config.source, purpose="snapshot mark")
        try:
            server = Server(connection)
            uuid = server.identity().uuid
            if uuid != e0.end.server_uuid:
                raise SourceUnavailableError(
                    f"another server answers than the one that capture reads ({uuid}, not {e0.end.server_uuid})",
                    where=place(self.config.source),
                    hint="nothing, if it was failed over: the bootstrap starts again once capture has moved",
                )
            if faults.mutant("ready_by_gtid_executed"):
                return BinlogEnd(str(server.executed()), 0), uuid
            return server.binlog_end(), uuid
        finally:
            connection.close()

    def mark_early(self, e0: CommitRecord) -> None:
        """A mistake, for the tests of the fault `mark_before_last_chunk`."""
        self._early_mark = self.mark(e0)

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
            and set(present.files) == {f.name for f in progress.files()}
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
                    progress.files(), purpose.schema, "upsert", applied, present, purpose.logged
                )
            except (LakeConflictError, LakeUnknownError):
                # Neither says that nothing was committed: look before deciding.
                if tried == COMMIT_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def slot(self, stop: threading.Event) -> Iterator[None]:
        """Hold one of the slots, if there are any. Raises `Ended`."""
        if self._slots is None:
            yield
            return
        while not self._slots.acquire(timeout=POLL_S):
            if stop.is_set():
                raise Ended
        try:
            yield
        finally:
            self._slots.release()

    def write(self, batches: Iterator[pa.RecordBatch], progress: Progress) -> list[DataFile]:
        """Durable files of about the configured size, their rows as of e0."""
        purpose = progress.purpose
        files: list[DataFile] = []
        taken = _Peekable(batches)
        while taken.more():
            name = new_name()
            progress.announce(name)
            file = self._lake.write_file(
                taken.upto(self.config.merge.file_size),
                purpose.schema,
                ts_ms=purpose.record.ts_ms,
                seq=purpose.record.seq,
                name=name,
            )
            files.append(file)
        return files


class _Copy:
    """The reading of all open parts, by some threads. The first error ends the others."""

    def __init__(
        self, bootstrap: Bootstrap, progress: Progress, stop: threading.Event, tell: ProgressCallback | None
    ) -> None:
        self._bootstrap = bootstrap
        self._progress = progress
        self._stop = stop
        self._ending = threading.Event()
        self._tell = tell
        self._walk = Walk(bootstrap.table, progress.purpose.schema)
        self._lock = threading.Lock()
        self._rows = sum(f.rows for f in progress.files())
        self._estimate = 0
        self._told_s = 0.0

    def run(self) -> None:
        """Raises `Ended` if it was stopped before the end."""
        snapshot = self._bootstrap.config.snapshot
        end = self._progress.purpose.record.end
        with Reader(self._bootstrap.config, self._walk, end, self._ending) as reader, self._watching():
            self._estimate = reader.rows_estimate()
            if not self._progress.planned:
                extremes = reader.extremes() if self._walk.splits else None
                self._progress.plan(
                    self._walk.parts(*extremes, self._estimate, snapshot.chunk_rows, snapshot.readers)
                    if extremes
                    else [Part(0)]
                )
            left: queue.SimpleQueue[tuple[Part, Bound | None]] = queue.SimpleQueue()
            parts = self._progress.open_parts()
            for part in parts:
                left.put((part.part, part.at))
            self._say(0)
            workers = min(snapshot.readers, len(parts))
            if workers <= 1:
                self._work(left, reader)
                return
            with ThreadPoolExecutor(workers, thread_name_prefix="snapshot-reader") as pool:
                futures = [pool.submit(self._work_alone, left) for _ in range(workers)]
            failed = [e for f in futures if (e := f.exception()) is not None]
            real = [e for e in failed if not isinstance(e, Ended)]
            for error in real[:1] or failed[:1]:
                raise error

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """`ending` follows `stop` while the block runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if self._stop.wait(POLL_S):
                    self._ending.set()
                    return

        thread = threading.Thread(target=watch, name="snapshot-stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _work_alone(self, left: queue.SimpleQueue[tuple[Part, Bound | None]]) -> None:
        end = self._progress.purpose.record.end
        try:
            with Reader(self._bootstrap.config, self._walk, end, self._ending) as reader:
                self._work(left, reader)
        except BaseException:
            self._ending.set()
            raise

    def _work(self, left: queue.SimpleQueue[tuple[Part, Bound | None]], reader: Reader) -> None:
        while True:
            try:
                part, at = left.get_nowait()
            except queue.Empty:
                return
            self._part(reader, part, at if at is not None else part.low)

    def _part(self, reader: Reader, part: Part, at: Bound | None) -> None:
        purpose, done = self._progress.purpose, False
        while not done:
            if self._ending.is_set():
                raise Ended
            with self._bootstrap.slot(self._ending):
                if faults.mutant("mark_before_last_chunk"):
                    self._bootstrap.mark_early(purpose.record)
                chunk = reader.read(part, at, self._bootstrap.config.snapshot.chunk_rows)
                files = self._bootstrap.write(self._counted(chunk.batches), self._progress)
            faults.point("snapshot.chunk")
            at, done = chunk.last if chunk.last is not None else at, chunk.done
            self._progress.record(part, at, done, files)
            faults.point("snapshot.chunk-recorded")
            LOG.debug("chunk", table=str(self._bootstrap.table), part=part.number, rows=chunk.rows, done=done)
        self._say(0, now=True)

    def _counted(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch
            self._say(batch.num_rows)

    def _say(self, rows: int, *, now: bool = False) -> None:
        """Count rows, and write the count down now and then. Raises `Ended` if the table is no longer ours to read."""
        with self._lock:
            self._rows += rows
            if not now and time.monotonic() - self._told_s < TELL_S:
                return
            self._told_s = time.monotonic()
            read, estimate = self._rows, max(self._rows, self._estimate)
        if not self._bootstrap.state.set_table(
            self._bootstrap.table, "snapshot", when=("snapshot",), rows_read=read, rows_estimate=estimate
        ):
            raise Ended
        if self._tell is not None:
            self._tell(read, estimate)


class _Peekable:
    """An iterator of batches that can be cut at a size."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._next: pa.RecordBatch | None = None

    def more(self) -> bool:
        """Whether there is another one; it is read to know that."""
        if self._next is None:
            self._next = next(self._batches, None)
        return self._next is not None

    def upto(self, size: int) -> Iterator[pa.RecordBatch]:
        """Batches until they have at least `size` bytes. One with values that do not fit ends what began without: a file has the column
        `_cdc_unfit` from its first batch on, or not at all."""
        taken, plain = 0, self._next is not None and not unfit.is_last(self._next.schema)
        while taken < size and self.more():
            assert self._next is not None
            if plain and unfit.is_last(self._next.schema):
                return
            batch, self._next = self._next, None
            taken += batch.nbytes
            yield batch
