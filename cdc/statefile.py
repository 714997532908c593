"""SQLite files in the state folder that may be lost, for several processes at once: every change is one short transaction, and readers never
wait (WAL)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdc.errors import StateError

BUSY_TIMEOUT_S = 30.0


class StateFile:
    """One file, made (0600) with `schema` where it is missing, in a folder of mode 0700. Safe for several processes. `lost` says what is lost with
    it, and follows "move the file away: ". Raises `StateError`."""

    def __init__(self, file: Path, schema: str, version: int, lost: str) -> None:
        self.file, self._lost = file, lost
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StateError(f"not usable: {error.strerror}", where=str(self.file)) from error
        with self._connection() as db:
            if (found := self._version(db)) == version:
                return
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            if (found := self._version(db)) == 0:  # another process may have been faster
                for statement in schema.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {version}")
            db.execute("COMMIT")
            if found not in (0, version):
                raise StateError(
                    f"written by another version ({found}, this is {version})",
                    where=str(self.file),
                    hint=f"run the version that wrote it, or move the file away: {lost}",
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
                hint=f"move the file away: {self._lost}, and a new one is begun",
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
