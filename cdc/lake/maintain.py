"""Keeping a table tidy between its commits: few files, few deleted rows, a short log, nothing that no one needs.

One `Maintenance` goes with one table in one process. What it does is measured, and said only where something was done. Small work is done
at once; large files are written by a thread of their own, while the table is merged into, and committed later: what others committed
meanwhile is mapped (`cdc.lake.compaction`). The protocol is checked in `spec/upsert.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cdc import faults
from cdc.errors import LakeConflictError, LakeError, LakeUnknownError
from cdc.journal import logger
from cdc.lake import cleaning, compaction, partition, reading
from cdc.lake.compaction import PURGED_SHARE, Compacted, Group, groups
from cdc.lake.snapshot import AddFile, Applied, Snapshot
from cdc.lake.store import failed
from cdc.lake.vectors import Vectors, name_of

if TYPE_CHECKING:
    from cdc.lake.table import LakeTable

LOGGER = logger("lake")
CHECKPOINT_EVERY = 100
"""Commits."""
AT_ONCE_BYTES = 2 * 1024 * 1024
"""Files of no more bytes together are written between two commits: that takes some hundredths of a second."""
CLEAN_LOG_S = 60.0
RESTATE_S = 15 * 86400.0
"""A position that is so old is said again: Delta's other writers delete commits of 30 days."""
LOOK_S = 600.0
"""How often a table's files are listed, at least; more often where they are kept for a shorter time."""
PAUSE_S = 60.0
"""After something failed."""
STALE_S = 12 * 3600.0
"""What was begun so long ago is not committed: what no version names is collected after a day."""
RESYNC = "`lakesync resync` the table"
ATTEMPTS = 8
"""To commit what was written, while others commit."""


@dataclass
class Done:
    """What maintenance did: numbers of rows, files and bytes."""

    commits: int = 0
    files_before: int = 0
    """Data files that were written anew."""
    files_after: int = 0
    """Those that they became."""
    rows_moved: int = 0
    rows_purged: int = 0
    """Deleted rows that are in no live file any more."""
    bytes_before: int = 0
    bytes_after: int = 0
    checkpoints: int = 0
    restated: int = 0
    commits_deleted: int = 0
    files_deleted: int = 0
    ms: dict[str, float] = field(default_factory=dict)
    """Of each step."""

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self) if f.name != "ms")

    def to_dict(self) -> dict[str, Any]:
        """What is not zero."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ms" and getattr(self, f.name)}
        return found | {"ms": {step: round(ms, 1) for step, ms in self.ms.items() if ms >= 0.05}}


@dataclass(frozen=True)
class Keep:
    """For how long what is for older versions' readers is kept, seconds; `traced`: the newest version that the trace has, if there is
    one."""

    files_s: float = 3600.0
    log_s: float = 2 * 86400.0
    traced: int | None = None
    orphans_s: float = cleaning.ORPHANS_S


Contains = Callable[[Snapshot], Applied | None]
"""What a version contains: perhaps more than its last commit says, where a manifest carried it forward. Every commit that moves rows
must say all of it, or it would be lost."""


def said(snapshot: Snapshot) -> Applied | None:
    """What the table's own commits say of it."""
    return snapshot.applied


class Maintenance:
    """Of one table. For one thread, beside that of `worker`, which writes large files; without one they are written at once."""

    def __init__(self, lake: LakeTable, worker: Executor | None = None) -> None:
        self._lake, self._worker = lake, worker
        self._clock = lake.clock
        self._unnamed = cleaning.Unnamed()
        self._job: tuple[Group, Future[Compacted | None], float] | None = None
        self._tidy: Mapping[str, AddFile] | None = None
        """The files of a version that has nothing to be compacted."""
        self._stopped = False
        self._quiet_s = self._cleaned_s = self._looked_s = float("-inf")
        self._marked: int | None = None
        """The checkpoint that the log was cleaned behind last."""
        self.done = Done()

    # -- as the merger has it --------------------------------------------------------------------------------------------

    def run(self, on: Snapshot, keep: Keep, budget_s: float, contains: Contains = said) -> Snapshot:
        """What is due, for about so long. `on` is the newest version that is known; the newest one then. A failure is logged and passed
        over: the next time is soon enough."""
        began_s = self._clock.monotonic()
        if began_s < self._quiet_s:
            return on
        self.done = Done()
        due = lambda: self._clock.monotonic() - began_s >= budget_s  # noqa: E731
        self._unnamed.look(on)
        at = _At(self._lake, on, contains)
        try:
            self._take_job(at)
            self._restate(at, keep)
            self._checkpoint(at, keep)
            self._clean_log(at, keep, due)
            self._collect(at, keep, due)
            self._compact(at, due)
        except LakeError as error:
            self._quiet_s = self._clock.monotonic() + PAUSE_S
            LOGGER.warning("not-maintained", table=self._lake.table.id, error=error.code, what=error.what)
        if self.done:
            LOGGER.info("maintained", table=self._lake.table.id, version=at.snapshot.version, **self.done.to_dict())
        return at.snapshot

    def optimize(self, on: Snapshot, keep: Keep, contains: Contains = said) -> Snapshot:
        """Everything, now: full files, no deleted rows, a checkpoint, old commits and files gone. Raises `LakeError`."""
        self.done = Done()
        at = _At(self._lake, on, contains)
        never = lambda: False  # noqa: E731
        for group in groups(on, self._lake.file_size, 0.0, everything=True):
            at.refresh()
            began_s, columns = self._clock.monotonic(), self._lake.columns(at.snapshot)
            with self._timed("compact"):
                made = compaction.write(at.snapshot, group, columns, self._lake.vectors, never)
            if made is not None:
                self._commit(at, made, began_s)
        self._restate(at, keep, at_once=True)
        self._mark(at, keep)
        self._cleaned_s = self._looked_s = float("-inf")
        self._clean_log(at, keep, never)
        self._unnamed.recall(self._lake.folder, keep.files_s, self._clock.now_us() // 1000)
        self._collect(at, keep, never)
        return at.snapshot

    def close(self) -> None:
        """Stop what is being written; what no commit names of it is removed."""
        self._stopped = True
        if self._job is not None:
            (_, future, _), self._job = self._job, None
            if not future.cancel():
                try:
                    made = future.result()
                except LakeError:
                    return
                if made is not None:
                    self._discard(made)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.done.ms[step] = self.done.ms.get(step, 0.0) + (time.perf_counter() - began_s) * 1000

    # -- files -----------------------------------------------------------------------------------------------------------

    def _compact(self, at: _At, due: Callable[[], bool]) -> None:
        if at.snapshot.files is self._tidy:
            return
        busy = {file.path for file in self._job[0].files} if self._job else set()
        with self._timed("plan"):
            found = groups(at.snapshot, self._lake.file_size, PURGED_SHARE)
        self._tidy = None if found else at.snapshot.files
        for group in found:
            if due():
                return
            if any(file.path in busy for file in group.files):
                continue
            at_once = group.bytes <= AT_ONCE_BYTES or self._worker is None
            if not at_once and self._job is not None:
                return
            began_s, columns = self._clock.monotonic(), self._lake.columns(at.snapshot)
            if at_once:
                with self._timed("compact"):
                    vectors = self._lake.vectors
                    made = compaction.write(at.snapshot, group, columns, vectors, lambda: self._stopped)
                if made is not None:
                    self._commit(at, made, began_s)
            elif self._worker is not None:
                # It reads vectors in a thread of its own.
                vectors = Vectors(self._lake.folder)
                stopped = lambda: self._stopped  # noqa: E731
                future = self._worker.submit(compaction.write, at.snapshot, group, columns, vectors, stopped)
                self._job = group, future, began_s
                busy |= {file.path for file in group.files}

    def _take_job(self, at: _At) -> None:
        if self._job is None or not self._job[1].done():
            return
        (_, future, began_s), self._job = self._job, None
        made = future.result()
        if made is not None:
            self._commit(at, made, began_s)

    def _commit(self, at: _At, made: Compacted, began_s: float) -> None:
        """Commit a compacted file, on whatever version is the newest. One that nothing holds of any more is removed."""
        with self._timed("commit"):
            self._commit_mapped(at, made, began_s)

    def _commit_mapped(self, at: _At, made: Compacted, began_s: float) -> None:
        lake = self._lake
        folders = (
            {lake.folder} if "/" not in made.file.name else {lake.folder.folder(made.file.name.rpartition("/")[0])}
        )
        try:
            for folder in folders if made.file.name else ():
                folder.settle()
            faults.point("lake.compact-written")
        except OSError as error:
            raise failed(error, "compacted files cannot be made durable", lake.folder) from error
        for _ in range(ATTEMPTS):
            if self._clock.monotonic() - began_s > STALE_S:
                break
            vectors: list[dict[str, Any]] = []
            try:
                found = compaction.mapped(made, at.snapshot, lake.vectors)
                if found is None:
                    break
                vectors = lake.vectors.write([found.dead] if found.dead is not None else [])
                before = at.snapshot
                after = lake.optimized(before, at.applied, made, found, vectors[0] if vectors else None)
            except LakeConflictError:
                lake.folder.delete(name for vector in vectors if (name := name_of(vector)))
                at.refresh()
                continue
            except LakeUnknownError:
                # Its files stay: perhaps the commit names them.
                at.refresh()
                if partition.logged(made.file.name) in at.snapshot.files:
                    return
                raise
            at.snapshot = after
            self._count(before, made, found)
            return
        self._discard(made)

    def _count(self, before: Snapshot, made: Compacted, found: compaction.Mapped) -> None:
        done = self.done
        done.commits += 1
        done.files_before += len(found.removed)
        done.files_after += bool(made.file.name)
        done.rows_moved += found.moved
        done.rows_purged += sum(reading.count(before, file) for file in found.removed) - made.file.rows
        done.bytes_before += sum(file.size for file in found.removed)
        done.bytes_after += made.file.size

    def _discard(self, made: Compacted) -> None:
        if made.file.name:
            self._lake.folder.delete([made.file.name])

    # -- the log -----------------------------------------------------------------------------------------------------------

    def _restate(self, at: _At, keep: Keep, *, at_once: bool = False) -> None:
        """Say the position again, where the commit that says it grows old: by others' commits that lie on it, or by time alone, as others
        may clean the log too, and ask nobody."""
        on = at.snapshot
        if on.info_version is None:
            return
        age_s, behind = self._clock.now_us() / 1e6 - on.committed_us / 1e6, on.version - on.info_version
        due = behind > 0 and (at_once or age_s >= keep.log_s / 2 or behind >= CHECKPOINT_EVERY)
        if not due and age_s < RESTATE_S:
            return
        with self._timed("restate"):
            for _ in range(ATTEMPTS):
                try:
                    at.snapshot = self._lake.restate(at.snapshot, at.applied)
                except LakeConflictError:
                    at.refresh()
                    if at.snapshot.info_version != on.info_version:
                        return
                    continue
                self.done.restated += 1
                self.done.commits += 1
                return

    def _checkpoint(self, at: _At, keep: Keep) -> None:
        if at.snapshot.version - (at.snapshot.checkpoint or 0) >= CHECKPOINT_EVERY:
            self._mark(at, keep)

    def _mark(self, at: _At, keep: Keep) -> None:
        if at.snapshot.version == at.snapshot.checkpoint:
            return
        with self._timed("checkpoint"):
            try:
                at.snapshot = self._lake.checkpoint(at.snapshot, keep.files_s)
            except pa.ArrowException as error:
                raise LakeError(f"the checkpoint cannot be written: {error}", where=str(self._lake.folder)) from error
        self.done.checkpoints += 1

    def _clean_log(self, at: _At, keep: Keep, due: Callable[[], bool]) -> None:
        now_s, marked = self._clock.monotonic(), at.snapshot.checkpoint or 0
        if marked == self._marked or now_s - self._cleaned_s < min(CLEAN_LOG_S, keep.log_s / 10):
            return
        with self._timed("log"):
            on, now_ms = at.snapshot, self._clock.now_us() // 1000
            self.done.commits_deleted = cleaning.clean_log(self._lake.folder, on, keep.log_s, keep.traced, now_ms, due)
        if not due():
            self._cleaned_s, self._marked = now_s, marked

    # -- what no version names -----------------------------------------------------------------------------------------

    def _collect(self, at: _At, keep: Keep, due: Callable[[], bool]) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._looked_s < min(LOOK_S, max(keep.files_s / 6, 1.0)):
            return
        with self._timed("collect"):
            writing = [made.file.name] if (made := self._made()) else []
            now_ms = self._clock.now_us() // 1000
            self.done.files_deleted, at.snapshot = cleaning.collect(
                at.refresh, self._unnamed, writing, now_ms, keep.files_s, keep.orphans_s, due
            )
        self._looked_s = now_s

    def _made(self) -> Compacted | None:
        """What a thread has written and is not committed yet. What it still writes is younger than anything that is collected."""
        if self._job is None or not self._job[1].done() or self._job[1].exception() is not None:
            return None
        return self._job[1].result()


class _At:
    """The newest version that is known."""

    def __init__(self, lake: LakeTable, snapshot: Snapshot, contains: Contains) -> None:
        self._lake, self._contains = lake, contains
        self.snapshot = snapshot

    @property
    def applied(self) -> Applied:
        found = self._contains(self.snapshot)
        if found is None:
            raise LakeError("does not say what it contains", where=str(self._lake.folder), hint=RESYNC)
        return found

    def refresh(self) -> Snapshot:
        """The newest version: what others committed."""
        self.snapshot = self._lake.refresh(self.snapshot)
        return self.snapshot
