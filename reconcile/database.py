"""`reconcile.db` in the state folder: one SQLite file for all that is kept of checks and alerts.

Losing it loses history, and no more: the log, the lake and the source are what is checked, and they are checked again. Daemon and command
lines use it at once, so every change is one short transaction, and readers never wait (WAL).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdc.errors import StateError

NAME = "reconcile.db"
VERSION = 1
BUSY_TIMEOUT_S = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, trigger TEXT NOT NULL, tables TEXT NOT NULL, options TEXT NOT NULL,
    process TEXT NOT NULL, begun_us INTEGER NOT NULL, ended_us INTEGER, verdict TEXT, report TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS runs_by_kind ON runs (kind, number);
CREATE TABLE IF NOT EXISTS verdicts (
    kind TEXT NOT NULL, name TEXT NOT NULL, which TEXT NOT NULL, run INTEGER NOT NULL, verdict TEXT NOT NULL, differences INTEGER NOT NULL,
    whole INTEGER NOT NULL, at_us INTEGER NOT NULL, version INTEGER, PRIMARY KEY (kind, name, which)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS verdicts_by_run ON verdicts (run);
CREATE TABLE IF NOT EXISTS progress (
    run INTEGER NOT NULL, name TEXT NOT NULL, progress TEXT NOT NULL, PRIMARY KEY (run, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS repairs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, at_us INTEGER NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL,
    kind TEXT NOT NULL, columns TEXT NOT NULL, before BLOB, after BLOB, version_before INTEGER, version_after INTEGER, outcome TEXT NOT NULL,
    texts TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS repairs_by_run ON repairs (run, number);
CREATE TABLE IF NOT EXISTS findings (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, what TEXT NOT NULL,
    columns TEXT NOT NULL, rows INTEGER NOT NULL, run INTEGER NOT NULL, since_us INTEGER NOT NULL, seen_us INTEGER NOT NULL, resolved_us INTEGER,
    row_key TEXT
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS findings_open ON findings (kind, name, key) WHERE resolved_us IS NULL;
CREATE TABLE IF NOT EXISTS schedules (kind TEXT PRIMARY KEY, schedule TEXT NOT NULL, since_us INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS alerts (
    key TEXT PRIMARY KEY, about TEXT NOT NULL, since_us INTEGER NOT NULL, over_us INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS deliveries (
    key TEXT NOT NULL, channel TEXT NOT NULL, due_us INTEGER NOT NULL, sent_us INTEGER, times INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, failure TEXT, done INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (key, channel)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS looked (what TEXT PRIMARY KEY, at_us INTEGER NOT NULL) STRICT;
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
                    hint="run the version that wrote it, or move the file away: only the history of checks is in it",
                )

    @staticmethod
    def _version(db: sqlite3.Connection) -> int:
        return int(db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self.file, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                db.execute("PRAGMA synchronous = NORMAL")
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
                hint="move the file away: only the history of checks is in it, and a new one is begun",
            ) from error

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent state of it."""
        with self._connection() as db:
            db.execute("BEGIN")
            yield db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: whole, or not at all."""
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
