"""The state folder: tables' states, requests from the command line, the nodes' signs of life, and locks.

Everything here can be lost. What a table contains is said by the log and the lake; this says what is being done about it.
Several processes use it at once (a daemon and command lines), so it is a SQLite file, one short transaction a change.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from cdc import reads
from cdc.epoch import EpochId
from cdc.errors import LakesyncError, StateError
from cdc.journal import logger
from cdc.names import TableName
from cdc.position import BinlogEnd, Position
from cdc.reads import UNSET as _UNSET
from cdc.reads import Read, ReadPhase, ReadSpec, Why

__all__ = ["Node", "Phase", "Read", "ReadPhase", "ReadSpec", "Request", "State", "TableStatus", "Why"]

LOG = logger("state")
VERSION = 1
BUSY_TIMEOUT_S = 30.0
Phase = Literal["new", "added", "snapshot", "reading", "catching-up", "ready", "stopped", "removed"]
"""`snapshot`: its rows are read into files of the lake. `reading`: they are read in windows, through the log, and are merged as they come."""
RequestKind = Literal["resync", "resume", "skip", "mend"]
"""`mend`: the table holds keys more than once, and the surplus rows are to go (`lakesync reconcile --repair`)."""


@dataclass(frozen=True)
class TableStatus:
    """One table. Fields that the state does not need are None."""

    table: TableName
    phase: Phase
    added: EpochId | None = None
    """The epoch whose record says "added"."""
    e0: EpochId | None = None
    e0_position: Position | None = None
    mark: BinlogEnd | None = None
    mark_server: str | None = None
    """UUID of the server whose binary log the mark is in."""
    rows_read: int = 0
    rows_estimate: int = 0
    error: dict[str, Any] | None = None
    """`LakesyncError.to_dict`, and `node`: capture, snapshot or merge."""
    changed_us: int = 0


@dataclass(frozen=True)
class Request:
    """What someone asked for at the command line; kept for ever. `done_us` and `outcome` are None while it is open."""

    number: int
    kind: RequestKind
    argument: str
    asked_us: int
    done_us: int | None = None
    outcome: str | None = None


@dataclass(frozen=True)
class Node:
    """A node's last sign of life."""

    name: str
    pid: int
    at_us: int
    info: dict[str, Any]


_SCHEMA = """
CREATE TABLE IF NOT EXISTS tables (
    id TEXT PRIMARY KEY, phase TEXT NOT NULL, added TEXT, e0 TEXT, e0_position TEXT, mark TEXT, mark_server TEXT,
    rows_read INTEGER NOT NULL DEFAULT 0, rows_estimate INTEGER NOT NULL DEFAULT 0, error TEXT, changed_us INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, argument TEXT NOT NULL, asked_us INTEGER NOT NULL,
    done_us INTEGER, outcome TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS nodes (name TEXT PRIMARY KEY, pid INTEGER NOT NULL, at_us INTEGER NOT NULL, info TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS errors (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at_us INTEGER NOT NULL, node TEXT NOT NULL, error TEXT NOT NULL
) STRICT;
"""
_ERRORS_KEPT = 1000


def _now_us() -> int:
    return time.time_ns() // 1000


class State:
    """The state folder, made (0700) if it is missing. Raises `StateError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
            self._file = folder / "state.db"
            if not self._file.exists():
                self._file.touch(mode=0o600)
            with self._transaction() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, VERSION):
                    raise StateError(
                        f"written by another version ({version}, this is {VERSION})",
                        where=str(self._file),
                        hint="run the version that wrote it, or move the file away: tables that are not ready bootstrap again",
                    )
                for statement in (_SCHEMA + reads.SCHEMA).split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
        except OSError as error:
            raise StateError(f"not usable: {error.strerror}", where=str(folder)) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self._file, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            finally:
                db.close()
        except sqlite3.OperationalError as error:
            raise StateError(
                f"not usable: {error}", where=str(self._file), hint="look at its disk and folder"
            ) from error
        except sqlite3.DatabaseError as error:
            raise StateError(
                f"damaged: {error}",
                where=str(self._file),
                hint="move the file away: tables that are not ready bootstrap again",
            ) from error

    # -- tables ------------------------------------------------------------------------------------------------------

    def tables(self) -> dict[TableName, TableStatus]:
        """Every table ever configured, removed ones too."""
        with self._transaction() as db:
            found = db.execute(f"SELECT {_COLUMNS} FROM tables ORDER BY id").fetchall()
        return {status.table: status for status in map(_status, found)}

    def table(self, table: TableName) -> TableStatus | None:
        """One table; None if it was never configured."""
        with self._transaction() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM tables WHERE id = ?", (table.id,)).fetchone()
        return _status(row) if row else None

    def set_table(
        self,
        table: TableName,
        phase: Phase,
        *,
        when: tuple[Phase, ...] | None = None,
        unchanged: TableStatus | None = None,
        added: EpochId | None = _UNSET,
        e0: EpochId | None = _UNSET,
        e0_position: Position | None = _UNSET,
        mark: BinlogEnd | None = _UNSET,
        mark_server: str | None = _UNSET,
        rows_read: int = _UNSET,
        rows_estimate: int = _UNSET,
        error: dict[str, Any] | None = _UNSET,
    ) -> bool:
        """Enter a state, keeping what is not given. With `when`, only from one of these states (a new table is in `new`);
        with `unchanged`, only if the table is still exactly so: a phase may be left and entered again meanwhile. Whether it was done."""
        assert phase in get_args(Phase)
        given: dict[str, Any] = {"phase": phase, "changed_us": _now_us()}
        if added is not _UNSET:
            given["added"] = added and _json(list(added))
        if e0 is not _UNSET:
            given["e0"] = e0 and _json(list(e0))
        if e0_position is not _UNSET:
            given["e0_position"] = e0_position and _json(e0_position.to_dict())
        if mark is not _UNSET:
            given["mark"] = mark and _json([mark.file, mark.offset])
        if mark_server is not _UNSET:
            given["mark_server"] = mark_server
        if rows_read is not _UNSET:
            given["rows_read"] = rows_read
        if rows_estimate is not _UNSET:
            given["rows_estimate"] = rows_estimate
        if error is not _UNSET:
            given["error"] = error and _json(error)
        with self._transaction() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM tables WHERE id = ?", (table.id,)).fetchone()
            found = _status(row) if row else None
            if when is not None and (found.phase if found else "new") not in when:
                return False
            if unchanged is not None and found != unchanged:
                return False
            db.execute("INSERT OR IGNORE INTO tables (id, phase, changed_us) VALUES (?, 'new', 0)", (table.id,))
            assignments = ", ".join(f"{name} = ?" for name in given)
            db.execute(f"UPDATE tables SET {assignments} WHERE id = ?", (*given.values(), table.id))
        return True

    def stop_table(self, table: TableName, node: str, error: LakesyncError) -> None:
        """The table cannot go on; `status` shows the error and its way out."""
        self.set_table(table, "stopped", error=error.to_dict() | {"node": node})
        self.record_error(node, error, table)

    # -- requests ----------------------------------------------------------------------------------------------------

    def ask(self, kind: RequestKind, argument: str) -> int:
        """Record a request; the node that it concerns takes it. Its number."""
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO requests (kind, argument, asked_us) VALUES (?, ?, ?)", (kind, argument, _now_us())
            )
            return int(cursor.lastrowid or 0)

    def open_requests(self, kind: RequestKind | None = None) -> list[Request]:
        """Those that are not done, oldest first."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT number, kind, argument, asked_us FROM requests WHERE done_us IS NULL AND (? IS NULL OR kind = ?) ORDER BY number",
                (kind, kind),
            ).fetchall()
        return [Request(*row) for row in rows]

    def requests(self, limit: int = 10) -> list[Request]:
        """The newest ones, done or not, newest first."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT number, kind, argument, asked_us, done_us, outcome FROM requests ORDER BY number DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [Request(*row) for row in rows]

    def request_done(self, number: int, outcome: str) -> None:
        """Recorded with its outcome, one sentence."""
        with self._transaction() as db:
            db.execute("UPDATE requests SET done_us = ?, outcome = ? WHERE number = ?", (_now_us(), outcome, number))

    # -- rereading -----------------------------------------------------------------------------------------------------

    def ask_read(self, table: TableName, target: TableName, spec: ReadSpec, why: Why, job: str = "") -> Read:
        """Have rows of a source's table read again, in windows; `target` is the lake's table. `job` names it: the one that is there, if
        it was asked for before."""
        with self._transaction() as db:
            return reads.ask(db, table, target, spec, why, job)

    def reads(self, open_only: bool = False) -> list[Read]:
        """All jobs ever asked for, oldest first; `open_only`: those that are waiting, running or paused."""
        with self._transaction() as db:
            return reads.find(db, open_only=open_only)

    def reads_of(self, why: Why) -> list[Read]:
        """The jobs that were asked for so, oldest first."""
        with self._transaction() as db:
            return reads.find(db, why=why)

    def forget_read(self, job: str) -> None:
        """A job is over, and nobody asks for it any more."""
        with self._transaction() as db:
            reads.forget(db, job)

    def read(self, job: str) -> Read | None:
        """One job; None if there is none of this name."""
        with self._transaction() as db:
            return next(iter(reads.find(db, job)), None)

    def set_read(
        self,
        job: str,
        *,
        phase: ReadPhase = _UNSET,
        when: tuple[ReadPhase, ...] | None = None,
        run: int | None = None,
        epoch: EpochId | None = _UNSET,
        progress: dict[str, Any] | None = _UNSET,
        rows_read: int = _UNSET,
        rows_emitted: int = _UNSET,
        rows_gone: int = _UNSET,
        rows_estimate: int = _UNSET,
        last: EpochId | None = _UNSET,
        error: dict[str, Any] | None = _UNSET,
        started_us: int | None = _UNSET,
    ) -> bool:
        """Change a job, keeping what is not given; with `when`, only from one of these phases; with `run`, only in this one. Whether it was done."""
        given = {
            "phase": phase,
            "epoch": epoch,
            "progress": progress,
            "rows_read": rows_read,
            "rows_emitted": rows_emitted,
            "rows_gone": rows_gone,
            "rows_estimate": rows_estimate,
            "last": last,
            "error": error,
            "started_us": started_us,
        }
        with self._transaction() as db:
            return reads.change(db, job, when, run, given)

    def restart_read(self, job: str, reason: str, run: int | None = None) -> None:
        """Rows of its windows did not reach the lake, for this reason: from the beginning, in new windows, unless it was cancelled.
        `run`: that they are of; if another one has begun since, all is done."""
        with self._transaction() as db:
            restarted = reads.restart(db, job, run)
        if restarted:
            LOG.warning("read-again", job=job, reason=reason)

    def set_run(self, job: str, run: int) -> None:
        """The log knows of a later run than this folder, which was lost."""
        with self._transaction() as db:
            reads.change(db, job, None, None, {"run": run})

    def pause(self, table: TableName, paused: bool) -> None:
        """Have the first reading of a table pause, or go on. What is read again pauses by job (`set_read`)."""
        with self._transaction() as db:
            if paused:
                db.execute("INSERT OR IGNORE INTO pauses VALUES (?, ?)", (table.id, _now_us()))
            else:
                db.execute("DELETE FROM pauses WHERE id = ?", (table.id,))

    def paused(self) -> frozenset[TableName]:
        """The tables whose first reading shall pause."""
        with self._transaction() as db:
            return frozenset(TableName.from_id(table) for (table,) in db.execute("SELECT id FROM pauses"))

    # -- nodes and errors ----------------------------------------------------------------------------------------------

    def beat(self, node: str, info: dict[str, Any]) -> None:
        """A sign of life, with what `status` shows of the node."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?)", (node, os.getpid(), _now_us(), _json(info)))

    def nodes(self) -> dict[str, Node]:
        """The last sign of life of every node."""
        with self._transaction() as db:
            rows = db.execute("SELECT name, pid, at_us, info FROM nodes").fetchall()
        return {name: Node(name, pid, at_us, orjson.loads(info)) for name, pid, at_us, info in rows}

    def record_error(self, node: str, error: LakesyncError, table: TableName | None = None) -> None:
        """Keep an error for `status`; the last thousand are kept."""
        data = error.to_dict() | {"table": str(table) if table else None}
        with self._transaction() as db:
            db.execute("INSERT INTO errors (at_us, node, error) VALUES (?, ?, ?)", (_now_us(), node, _json(data)))
            db.execute("DELETE FROM errors WHERE number <= (SELECT max(number) FROM errors) - ?", (_ERRORS_KEPT,))

    def errors(self, limit: int = 10) -> list[dict[str, Any]]:
        """The newest errors, newest first: `at_us`, `node` and what `LakesyncError.to_dict` gives."""
        with self._transaction() as db:
            rows = db.execute("SELECT at_us, node, error FROM errors ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
        return [{"at_us": at_us, "node": node, **orjson.loads(error)} for at_us, node, error in rows]

    # -- locks -------------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock of this folder, by `flock`: it goes with the process. Raises `StateError` if another one holds it."""
        path = self.folder / f"{name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise StateError(
                    f"{name} runs already, as process {holder}",
                    where=str(self.folder),
                    hint="one daemon a pipeline; `lakesync status` shows it",
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)


_COLUMNS = "id, phase, added, e0, e0_position, mark, mark_server, rows_read, rows_estimate, error, changed_us"


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _status(row: tuple[Any, ...]) -> TableStatus:
    table, phase, added, e0, e0_position, mark, mark_server, rows_read, rows_estimate, error, changed_us = row
    return TableStatus(
        TableName.from_id(table),
        phase,
        EpochId(*orjson.loads(added)) if added else None,
        EpochId(*orjson.loads(e0)) if e0 else None,
        Position.from_dict(orjson.loads(e0_position)) if e0_position else None,
        BinlogEnd(*orjson.loads(mark)) if mark else None,
        mark_server,
        rows_read,
        rows_estimate,
        orjson.loads(error) if error else None,
        changed_us,
    )
