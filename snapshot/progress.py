"""How far a bootstrap is, on disk: what it reads for, its parts, and the durable files of its finished chunks.

A SQLite file in the state folder. Losing it costs the work and nothing else: the bootstrap begins anew.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from cdc.epoch import CommitRecord, Counts, EpochId
from cdc.errors import StateError
from cdc.lake import DataFile, Layout
from cdc.schema import TableSchema
from snapshot.chunks import Bound, Part, bound_from_json, bound_to_json

VERSION = 3
FILE = "progress.db"

_SCHEMA = """
CREATE TABLE purpose (data TEXT NOT NULL) STRICT;
CREATE TABLE parts (
    number INTEGER PRIMARY KEY, low TEXT, high TEXT, at TEXT, done INTEGER NOT NULL DEFAULT 0, estimate INTEGER NOT NULL,
    read INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE files (name TEXT PRIMARY KEY, data TEXT) STRICT;
"""


@dataclass(frozen=True)
class Purpose:
    """What a bootstrap reads for: the record of e0, what the table was then, and what stood in the lake."""

    record: CommitRecord
    schema: TableSchema
    layout: Layout
    logged: Counts
    """The table's totals in the log, as of e0."""
    base: int
    """Version of the lake table that is to be replaced; -1 if there is none."""

    @property
    def e0(self) -> EpochId:
        """The epoch at which the Delta commit will stand."""
        return self.record.id

    def to_json(self) -> bytes:
        """For the file."""
        data = {
            "v": VERSION,
            "record": self.record.payload.decode(),
            "schema": self.schema.to_dict(),
            "layout": self.layout.to_dict(),
            "logged": list(self.logged),
            "base": self.base,
        }
        return orjson.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Purpose:
        """Raises `ValueError` or `KeyError` for what this version did not write."""
        data = orjson.loads(text)
        if data["v"] != VERSION:
            raise ValueError("of another version")
        record = CommitRecord.parse(data["record"].encode())
        schema, layout = TableSchema.from_dict(data["schema"]), Layout.of(data["layout"])
        return cls(record, schema, layout, Counts(*data["logged"]), data["base"])


@dataclass(frozen=True)
class Reached:
    """How far a part is read: up to the key `at`, the last one of its finished chunks, or to its end; `read` rows so far."""

    part: Part
    at: Bound | None
    done: bool = False
    read: int = 0


class Progress:
    """One bootstrap's progress, in a folder of its own. Safe to use from several threads."""

    def __init__(self, folder: Path, purpose: Purpose, db: sqlite3.Connection) -> None:
        self.folder = folder
        self.purpose = purpose
        self._db = db
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, folder: Path, purpose: Purpose) -> Progress:
        """Begin anew: whatever was there is forgotten. Raises `StateError`."""
        discard(folder)
        try:
            folder.mkdir(mode=0o700, parents=True)
            db = _connect(folder / FILE)
            with db:
                db.execute("BEGIN")
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    db.execute(statement)
                db.execute("INSERT INTO purpose VALUES (?)", (purpose.to_json().decode(),))
        except (OSError, sqlite3.OperationalError) as error:
            raise StateError(f"not written: {error}", where=str(folder)) from error
        return cls(folder, purpose, db)

    @classmethod
    def resume(cls, folder: Path) -> Progress | None:
        """What was begun there; None if nothing was, or it cannot be read."""
        if not (folder / FILE).exists():
            return None
        db = None
        try:
            db = _connect(folder / FILE)
            (text,) = db.execute("SELECT data FROM purpose").fetchone()
            return cls(folder, Purpose.from_json(text), db)
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError):
            if db is not None:
                db.close()
            return None

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()

    def end(self) -> None:
        """All is done: close and remove."""
        self.close()
        discard(self.folder)

    def plan(self, parts: Iterable[Part]) -> None:
        """Record the parts, once."""
        rows = [(p.number, _text(p.low), _text(p.high), p.rows) for p in parts]
        self._change(("INSERT INTO parts (number, low, high, estimate) VALUES (?, ?, ?, ?)", rows))

    @property
    def planned(self) -> bool:
        """Whether the parts are recorded."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM parts LIMIT 1").fetchone() is not None

    def parts(self) -> list[Reached]:
        """All parts, by number."""
        with self._lock:
            rows = self._db.execute(
                "SELECT number, low, high, estimate, at, done, read FROM parts ORDER BY number"
            ).fetchall()
        return [
            Reached(Part(n, _bound(low), _bound(high), estimate), _bound(at), bool(done), read)
            for n, low, high, estimate, at, done, read in rows
        ]

    def open_parts(self) -> list[Reached]:
        """The parts that are left, by number."""
        return [reached for reached in self.parts() if not reached.done]

    def cut(self, part: Part, other: Part) -> None:
        """A part ends earlier from now on, and another one has the rest of it."""
        self._change(
            ("UPDATE parts SET high = ? WHERE number = ?", [(_text(part.high), part.number)]),
            (
                "INSERT INTO parts (number, low, high, estimate) VALUES (?, ?, ?, ?)",
                [(other.number, _text(other.low), _text(other.high), other.rows)],
            ),
        )

    def announce(self, name: str) -> None:
        """A file of this name is going to be written: whatever happens, it is ours to remove."""
        self._change(("INSERT INTO files (name) VALUES (?)", [(name,)]))

    def record(self, part: Part, at: Bound | None, done: bool, files: Sequence[DataFile]) -> None:
        """A chunk is read and its files, all announced, are durable: the part goes on after `at`, or is done."""
        self._change(
            ("UPDATE files SET data = ? WHERE name = ?", [(orjson.dumps(f.to_dict()).decode(), f.name) for f in files]),
            (
                "UPDATE parts SET at = ?, done = ?, read = read + ? WHERE number = ?",
                [(_text(at), done, sum(f.rows for f in files), part.number)],
            ),
        )

    def _change(self, *statements: tuple[str, Sequence[tuple[Any, ...]]]) -> None:
        try:
            with self._lock, self._db as db:
                db.execute("BEGIN")
                for statement, rows in statements:
                    db.executemany(statement, rows)
        except sqlite3.OperationalError as error:
            raise StateError(f"not written: {error}", where=str(self.folder)) from error

    def files(self) -> list[DataFile]:
        """The files of all finished chunks."""
        with self._lock:
            rows = self._db.execute("SELECT data FROM files WHERE data IS NOT NULL ORDER BY rowid").fetchall()
        return [DataFile.from_dict(orjson.loads(data)) for (data,) in rows]

    def unfinished(self) -> list[str]:
        """Names of announced files that belong to no finished chunk."""
        with self._lock:
            return [name for (name,) in self._db.execute("SELECT name FROM files WHERE data IS NULL")]

    def forget_unfinished(self) -> None:
        """They are removed."""
        self._change(("DELETE FROM files WHERE data IS NULL", [()]))


def discard(folder: Path) -> None:
    """Forget what was begun there, if anything was."""
    shutil.rmtree(folder, ignore_errors=True)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    # A chunk that is recorded stays so through a power loss: its file is never written again.
    db.execute("PRAGMA synchronous = FULL")
    return db


def _text(bound: Bound | None) -> str | None:
    data: list[Any] | None = bound_to_json(bound)
    return None if data is None else orjson.dumps(data).decode()


def _bound(text: str | None) -> Bound | None:
    return bound_from_json(None if text is None else orjson.loads(text))
