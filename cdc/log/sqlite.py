"""The embedded log: one SQLite file, in WAL mode, fsynced at every commit.

`data` holds the tables' records, `commits` the commit records; an epoch is one SQLite transaction. Offsets ascend over all tables
and are never used twice. The right to write is a `flock` on `<file>.lock` and a fencing token, which the transaction that appends
compares, together with the newest record (a file restored from a copy brings its old token back).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cdc import faults
from cdc.epoch import CommitRecord, Extent, digest
from cdc.errors import (
    ConfigError,
    LogDamagedError,
    LogError,
    LogFencedError,
    LogGapError,
    LogIndefiniteError,
    LogMovedError,
    LogUnavailableError,
)
from cdc.log import verify
from cdc.log.base import LogWriter, Payload, Seal

APPLICATION_ID = 0x6C6B7379
"""In the file's header: `lksy`."""
FORMAT = 1
"""Of the file, in its header."""
BUSY_S = 10.0
"""A transaction of another process (trimming, at most) may take this long before ours gives up."""
POLL_S = 0.01
"""Between two looks while waiting for a record; a look takes some 10 µs."""
READ_ROWS = 64
"""Commit records read at a time, so that a slow reader holds no transaction open, which would keep the WAL from shrinking."""
TRIM_ROWS = 64
"""Records deleted in one transaction, so that the writer waits little."""
PAGE = 16 * 1024
"""Bytes of a page of a new file. Records are large, and every page costs two writes by the system: with SQLite's 4 KiB an epoch takes
twice as long and more. A small commit writes three or four pages."""
CHECKPOINT = 16 * 1024 * 1024
"""Bytes in the WAL from which a commit moves them to the file, which costs two fsyncs more."""
WAL_LIMIT = 64 * 1024 * 1024
"""Bytes that the WAL file keeps after a checkpoint."""
VACUUM = 16 * 1024 * 1024
"""Bytes given back in one transaction."""
FREE_LIMIT = 64 * 1024 * 1024
"""Bytes of the file that trimming may leave free for later epochs; what is above goes back to the file system."""

SCHEMA = (
    "CREATE TABLE meta (uuid TEXT NOT NULL, pipeline TEXT NOT NULL, token INTEGER NOT NULL, floor INTEGER NOT NULL)",
    'CREATE TABLE data ("offset" INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, payload BLOB NOT NULL)',
    "CREATE TABLE commits (number INTEGER PRIMARY KEY, hash TEXT NOT NULL, payload BLOB NOT NULL)",
)
NEWEST = "SELECT number, hash, payload FROM commits ORDER BY number DESC LIMIT 1"

_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_IOERR_SHORT_READ", "SQLITE_MISMATCH")
_NOTHING_WRITTEN = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_BUSY")
"""A COMMIT that fails so wrote no whole commit frame. After others, a failed fsync above all, a frame may come back from the WAL."""
RESTORE = "restore the file from a copy, or move it away: a new log continues from the lake"


class _Identity(NamedTuple):
    """Which file a path names at the moment."""

    device: int
    inode: int


class _Connection(NamedTuple):
    sql: sqlite3.Connection
    identity: _Identity


class SqliteLog:
    """See `Log`. Connections are one a thread; a file put in the place of this one is noticed and opened."""

    def __init__(self, path: Path, pipeline: str) -> None:
        self._path = path
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, _Connection] = {}
        with _translated(path):
            if not path.exists():
                _create(path, pipeline)
            self._connection()

    @property
    def uuid(self) -> str:
        with _translated(self._path):
            return str(self._one("SELECT uuid FROM meta")[0])

    def writer(self) -> LogWriter:
        return SqliteWriter(self._path, self._pipeline)

    def newest(self) -> CommitRecord | None:
        with _translated(self._path):
            return _record(self._path, self._connection().execute(NEWEST).fetchone())

    def oldest(self) -> CommitRecord | None:
        with _translated(self._path):
            row = (
                self._connection()
                .execute("SELECT number, hash, payload FROM commits ORDER BY number LIMIT 1")
                .fetchone()
            )
            return _record(self._path, row)

    def records(self, after: int | None = None) -> Iterator[CommitRecord]:
        query = "SELECT number, hash, payload FROM commits WHERE number > ? AND number <= ? ORDER BY number LIMIT ?"
        at = -1 if after is None else after
        last = self._highest()
        while last is not None and at < last:
            with _translated(self._path):
                rows = self._connection().execute(query, (at, last, READ_ROWS)).fetchall()
            for row in rows:
                record = _record(self._path, row)
                assert record is not None
                yield record
                at = record.number
            if len(rows) < READ_ROWS:
                return

    def wait(self, after: int, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            highest = self._highest()
            if highest is not None and highest > after:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(POLL_S, left))

    def data(self, table: str, extent: Extent) -> list[bytes]:
        query = 'SELECT payload FROM data WHERE "offset" BETWEEN ? AND ? AND tbl = ? ORDER BY "offset"'
        with _translated(self._path):
            sql = self._connection()
            rows = sql.execute(query, (extent.first, extent.last, table)).fetchmany(extent.records + 1)
            self._require(sql, table, extent)
        records = [payload if isinstance(payload, bytes) else b"" for (payload,) in rows]
        verify.check_data(table, extent, records, str(self._path))
        return records

    def heads(self, table: str, extent: Extent, length: int) -> list[tuple[bytes, int]]:
        query = """SELECT "offset", length(payload), typeof(payload) = 'blob' FROM data WHERE "offset" BETWEEN ? AND ? AND tbl = ? ORDER BY 1"""
        found: list[tuple[bytes, int]] = []
        with _translated(self._path):
            sql = self._connection()
            rows = sql.execute(query, (extent.first, extent.last, table)).fetchmany(extent.records + 1)
            for offset, size, is_blob in rows:
                if is_blob and size:
                    with sql.blobopen("data", "payload", offset, readonly=True) as blob:
                        found.append((blob.read(length), size))
                else:
                    found.append((b"", 0))
            self._require(sql, table, extent)
        verify.check_lengths(table, extent, [size for _, size in found], str(self._path))
        return found

    def _require(self, sql: sqlite3.Connection, table: str, extent: Extent) -> None:
        """That the epoch's data is not trimmed; looked at after it was read."""
        if extent.first < sql.execute("SELECT floor FROM meta").fetchone()[0]:
            raise LogGapError(
                f"an epoch's data of {table} has been trimmed",
                where=f"{self._path}, offset {extent.first}",
                hint=verify.RESTORED,
            )

    def trim(self, before: int) -> None:
        newest = self.newest()
        if newest is None:
            return
        keep = min(before, newest.checkpoint, newest.number)
        with _translated(self._path):
            sql = self._connection()
            floor = self._floor(keep)
            if floor is not None:
                sql.execute("UPDATE meta SET floor = max(floor, ?)", (floor,))
                _delete(
                    sql,
                    'data WHERE "offset" IN (SELECT "offset" FROM data WHERE "offset" < ? ORDER BY "offset" LIMIT ?)',
                    floor,
                )
            _delete(
                sql,
                "commits WHERE number IN (SELECT number FROM commits WHERE number < ? ORDER BY number LIMIT ?)",
                keep,
            )
            page = sql.execute("PRAGMA page_size").fetchone()[0]
            while (free := sql.execute("PRAGMA freelist_count").fetchone()[0]) * page > FREE_LIMIT:
                sql.execute(f"PRAGMA incremental_vacuum({min(free - FREE_LIMIT // page, VACUUM // page)})").fetchall()

    def size_bytes(self) -> int | None:
        total = 0
        for name in (self._path, Path(f"{self._path}-wal")):
            with contextlib.suppress(FileNotFoundError):
                total += name.stat().st_size
        return total

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].sql.close()

    def _highest(self) -> int | None:
        with _translated(self._path):
            highest: int | None = self._one("SELECT max(number) FROM commits")[0]
            return highest

    def _floor(self, keep: int) -> int | None:
        """The offset below which all data is of epochs before `keep`; None if those have none."""
        before = "SELECT number, hash, payload FROM commits WHERE number < ? ORDER BY number DESC"
        for row in self._connection().execute(before, (keep,)):
            record = _record(self._path, row)
            if record is not None and record.tables:
                return max(entry.extent.last for entry in record.tables.values()) + 1
        return None

    def _one(self, query: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._connection().execute(query).fetchone()
        return row

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection to the file that the path names now."""
        thread = threading.current_thread()
        with self._lock:
            mine = self._open.get(thread)
            if mine is not None and mine.identity == _identity(self._path):
                return mine.sql
            for other in [thread, *(other for other in self._open if not other.is_alive())]:
                if old := self._open.pop(other, None):
                    old.sql.close()
            self._open[thread] = _connect(self._path, self._pipeline)
            return self._open[thread].sql


class SqliteWriter:
    """See `LogWriter`. For one thread at a time."""

    def __init__(self, path: Path, pipeline: str) -> None:
        self._path = path
        self._pipeline = pipeline
        self._usable = True
        self._lock: int | None = _lock(path)
        try:
            with _translated(path):
                self._connection = _connect(path, pipeline)
                sql = self._connection.sql
                known = _record(path, sql.execute(NEWEST).fetchone())
                with _transaction(sql):
                    sql.execute("UPDATE meta SET token = token + 1")
                    self._token, self._uuid = sql.execute("SELECT token, uuid FROM meta").fetchone()
                    if not faults.mutant("read_before_fence"):
                        known = _record(path, sql.execute(NEWEST).fetchone())
                    sql.execute("COMMIT")
                self._newest = known
        except BaseException:
            self.close()
            raise

    @property
    def newest(self) -> CommitRecord | None:
        return self._newest

    def append(self, data: Mapping[str, Sequence[Payload]], seal: Seal) -> CommitRecord:
        verify.check_input(data)
        with _translated(self._path):
            sql = self._current()
            with _transaction(sql):
                self._refuse_if_moved(sql)
                extents = {table: _insert(sql, table, records) for table, records in data.items()}
                faults.point("log.after-data")
                record = seal(extents)
                verify.check_next(self._newest, record, self._uuid, extents, str(self._path))
                sql.execute("INSERT INTO commits VALUES (?, ?, ?)", (record.number, record.hash, record.payload))
                faults.point("log.before-commit")
                self._commit(sql)
        self._newest = record
        return record

    def check(self) -> None:
        with _translated(self._path):
            sql = self._current()
            sql.execute("BEGIN")
            try:
                self._refuse_if_moved(sql)
            finally:
                sql.execute("ROLLBACK")

    def close(self) -> None:
        self._usable = False
        if hasattr(self, "_connection"):
            self._connection.sql.close()
        if self._lock is not None:
            os.close(self._lock)  # and with it the lock
            self._lock = None

    def _current(self) -> sqlite3.Connection:
        """The connection to the file that the path names now; what it holds is compared in the transaction."""
        if not self._usable:
            raise LogError(
                "this writer cannot be used any more",
                where=str(self._path),
                hint="open a new one, and look at the newest record",
            )
        if self._connection.identity != _identity(self._path):
            self._connection.sql.close()
            self._connection = _connect(self._path, self._pipeline)
        return self._connection.sql

    def _refuse_if_moved(self, sql: sqlite3.Connection) -> None:
        token, log = sql.execute("SELECT token, uuid FROM meta").fetchone()
        if log != self._uuid:
            raise LogMovedError(
                f"the log is {log}, this capture wrote {self._uuid}", where=str(self._path), hint=verify.RESTORED
            )
        if token > self._token and not faults.mutant("no_fencing"):
            raise LogFencedError(
                "another capture has taken this log over",
                where=str(self._path),
                hint="one pipeline has one capture: end one of them",
            )
        if faults.mutant("token_only"):
            return
        row = sql.execute(NEWEST).fetchone()
        if token != self._token or (row and row[1]) != (self._newest and self._newest.hash):
            raise verify.moved(self._newest, _record(self._path, row), str(self._path))

    def _commit(self, sql: sqlite3.Connection) -> None:
        try:
            sql.execute("COMMIT")
            faults.point("log.after-commit")
        except (sqlite3.Error, OSError) as error:
            name = getattr(error, "sqlite_errorname", "")
            if any(name.startswith(known) for known in _NOTHING_WRITTEN):
                raise
            self._usable = faults.mutant("producer_reused")
            raise LogIndefiniteError(
                f"whether the epoch was committed is not known: {error}",
                where=str(self._path),
                hint="look at the newest record",
            ) from error


def _create(path: Path, pipeline: str) -> None:
    """Make the file, whole or not at all; one that another process makes meanwhile is left as it is."""
    folder = path.parent
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as sql:
            sql.execute("PRAGMA synchronous = FULL")
            sql.execute(f"PRAGMA page_size = {PAGE}")  # this and the next before the first table
            sql.execute("PRAGMA auto_vacuum = INCREMENTAL")
            sql.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                sql.execute(statement)
            sql.execute("INSERT INTO meta VALUES (?, ?, 0, 0)", (str(uuid.uuid4()), pipeline))
            sql.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            sql.execute(f"PRAGMA user_version = {FORMAT}")
            sql.execute("COMMIT")
            sql.execute("PRAGMA journal_mode = WAL")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    for parent in {folder, *(parent.parent for parent in made)}:
        _fsync_folder(parent)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _identity(path: Path) -> _Identity:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise LogDamagedError("the log's file is gone", where=str(path), hint=RESTORE) from None
    return _Identity(found.st_dev, found.st_ino)


def _connect(path: Path, pipeline: str) -> _Connection:
    """A connection to the log, which is one and is this pipeline's. Raises `ConfigError`, `LogDamagedError`."""
    identity = _identity(path)
    if path.stat().st_size == 0:
        raise LogDamagedError("the log's file is empty", where=str(path), hint=RESTORE)
    quoted = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with _translated(path):
        # The threads of one process hand a connection only to `close`.
        sql = sqlite3.connect(
            f"file:{quoted}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            _check_file(sql, path, pipeline)
            sql.execute("PRAGMA synchronous = FULL")
            sql.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
            page = sql.execute("PRAGMA page_size").fetchone()[0]
            sql.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT // page}")
            sql.execute("PRAGMA cell_size_check = ON")
        except BaseException:
            sql.close()
            raise
    return _Connection(sql, identity)


def _check_file(sql: sqlite3.Connection, path: Path, pipeline: str) -> None:
    application, version = (sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if application != APPLICATION_ID:
        raise _foreign(path)
    if version != FORMAT:
        raise ConfigError(
            f"the log has format {version}, this is format {FORMAT}",
            where=str(path),
            hint="use the version of lakesync that wrote it",
        )
    found = sql.execute("SELECT sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'").fetchall()
    if {text for (text,) in found} != set(SCHEMA) or sql.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        raise LogDamagedError("the log's file was changed by another program", where=str(path), hint=RESTORE)
    owner = sql.execute("SELECT pipeline FROM meta").fetchone()
    if owner is None:
        raise LogDamagedError("the log's file has lost its identity", where=str(path), hint=RESTORE)
    if owner[0] != pipeline:
        raise ConfigError(
            f"this is the log of the pipeline {owner[0]!r}, not of {pipeline!r}",
            where=str(path),
            hint="give each pipeline a log of its own",
        )


def _foreign(path: Path) -> ConfigError:
    return ConfigError(
        "the file is not a lakesync log", where=str(path), hint="name another file, or move this one away"
    )


def _lock(path: Path) -> int:
    """Take the lock beside the log; the file descriptor holds it. Raises `LogFencedError` while another process has it."""
    name = Path(f"{path}.lock")
    while True:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino != name.stat().st_ino:
                raise FileNotFoundError(str(name))
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
            os.close(handle)
            raise LogFencedError(
                f"process {owner or '(unknown)'} writes this log",
                where=str(path),
                hint="one pipeline has one capture: end the other one first",
            ) from None
        except FileNotFoundError:  # removed between our open and our lock: take the one that is there now
            os.close(handle)
            continue
        except BaseException:
            os.close(handle)
            raise
        return handle


def _record(path: Path, row: Sequence[Any] | None) -> CommitRecord | None:
    if row is None:
        return None
    number, hash_, payload = row
    if not isinstance(payload, bytes) or hashlib.sha256(payload).hexdigest() != hash_:
        raise LogDamagedError(f"commit record {number} has changed since it was written", where=str(path), hint=RESTORE)
    record = verify.parse(payload, f"{path}, epoch {number}")
    if record.number != number:
        raise LogDamagedError(f"commit record {record.number} has the place of {number}", where=str(path), hint=RESTORE)
    return record


def _insert(sql: sqlite3.Connection, table: str, records: Sequence[Payload]) -> Extent:
    offsets = [
        sql.execute("INSERT INTO data (tbl, payload) VALUES (?, ?)", (table, record)).lastrowid or 0
        for record in records
    ]
    return Extent(offsets[0], offsets[-1], len(records), sum(map(len, records)), digest(records))


def _delete(sql: sqlite3.Connection, what: str, below: int) -> None:
    while sql.execute(f"DELETE FROM {what}", (below, TRIM_ROWS)).rowcount:
        pass


@contextlib.contextmanager
def _transaction(sql: sqlite3.Connection) -> Iterator[None]:
    """BEGIN, and ROLLBACK unless the block commits."""
    sql.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            sql.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as lakesync's. None of them leaves anything written."""
    where = str(path)
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(_DAMAGED) or "decode to UTF-8" in str(error):
            raise LogDamagedError(f"the log's file is damaged: {error}", where=where, hint=RESTORE) from error
        if name == "SQLITE_NOTADB":
            raise _foreign(path) from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
            raise LogUnavailableError(
                f"the log was busy for {BUSY_S:g} s", where=where, hint="does another program keep the file open?"
            ) from error
        if name == "SQLITE_FULL":
            raise LogError(
                "the disk is full; the epoch was not written", where=where, hint="make room; nothing is lost"
            ) from error
        hint = "is the disk full, the folder writable? Nothing was written" if name else ""
        raise LogError(f"{error} {f'({name})' if name else ''}".strip(), where=where, hint=hint) from error
    except OSError as error:
        raise LogError(
            f"{error.strerror or error}", where=where, hint="is the disk full, the folder writable?"
        ) from error
