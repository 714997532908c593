"""`ready.db` in the state folder: how far the source is in time, and which partitions were said to be ready.

Losing it loses times until the next look at the source, and what was said by webhook and command; what was said by file is read from the
lake. The daemon and command lines use it at once, so every change is one short transaction, and readers never wait (WAL).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdc.errors import StateError

NAME = "ready.db"
VERSION = 1
BUSY_TIMEOUT_S = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS marks (
    server TEXT NOT NULL, base TEXT NOT NULL, number INTEGER NOT NULL, offset INTEGER NOT NULL, at_us INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS marks_by_server ON marks (server, at_us);
CREATE TABLE IF NOT EXISTS reached (
    id TEXT PRIMARY KEY, at_us INTEGER NOT NULL, version INTEGER NOT NULL, position TEXT NOT NULL, written_us INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS periods (
    id TEXT NOT NULL, term TEXT NOT NULL, armed_us INTEGER NOT NULL, first TEXT NOT NULL, next TEXT NOT NULL, lake TEXT,
    scanned INTEGER, PRIMARY KEY (id, term)
) STRICT;
CREATE TABLE IF NOT EXISTS said (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, term TEXT NOT NULL, period TEXT NOT NULL, generation INTEGER NOT NULL,
    version INTEGER NOT NULL, payload TEXT NOT NULL, file INTEGER, webhook INTEGER, command INTEGER, attempts INTEGER NOT NULL DEFAULT 0,
    due_us INTEGER NOT NULL DEFAULT 0, error TEXT, UNIQUE (id, term, period, generation)
) STRICT;
CREATE INDEX IF NOT EXISTS said_open ON said (number) WHERE file = 0 OR webhook = 0 OR command = 0;
CREATE TABLE IF NOT EXISTS late (
    id TEXT NOT NULL, term TEXT NOT NULL, period TEXT NOT NULL, since_us INTEGER NOT NULL, added INTEGER NOT NULL, deleted INTEGER,
    PRIMARY KEY (id, term, period)
) STRICT;
"""


class Database:
    """The file, made (0600) where it is missing, in a folder of mode 0700. Safe for several processes. Raises `StateError`."""

    def __init__(self, state: Path) -> None:
        self.file = state / NAME
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StateError(f"not usable: {error.strerror}", where=str(self.file)) from error
        with self._connection() as db:
            if (version := self._version(db)) == VERSION:
                return
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            if (version := self._version(db)) == 0:  # another process may have been faster
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
            if version not in (0, VERSION):
                raise StateError(
                    f"written by another version ({version}, this is {VERSION})",
                    where=str(self.file),
                    hint="run the version that wrote it, or move the file away: the files in the lake say what was ready",
                )

    @staticmethod
    def _version(db: sqlite3.Connection) -> int:
        return int(db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _connection(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self.file, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                yield db
            finally:
                db.close()
        except sqlite3.OperationalError as error:
            raise StateError(
                f"not usable: {error}", where=str(self.file), hint="look at its disk and folder"
            ) from error
        except sqlite3.DatabaseError as error:
            raise StateError(
                f"damaged: {error}",
                where=str(self.file),
                hint="move the file away: a new one is begun, and the files in the lake say what was ready",
            ) from error

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent state of it."""
        with self._connection() as db:
            db.execute("BEGIN")
            yield db

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction: whole, or not at all; with `durable` it outlives a power cut."""
        with self._connection(durable=durable) as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
