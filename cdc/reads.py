"""Jobs of rereading, as the state folder keeps them: which rows are to be read again, why, and how far it is.

Like all of the state folder this can be lost. How far a job's rows have come is said by the log (`WindowEntry.progress`); a job goes on
from that after any end.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from cdc.epoch import EpochId
from cdc.names import TableName

ReadPhase = Literal["waiting", "running", "paused", "done", "failed", "cancelled"]
Why = Literal["asked", "backfill", "shard", "adopt", "first", "repair"]
Key = tuple[int | str, ...]
"""A row's key, in the key's order: integers and YEAR as int, everything else as its canonical text (`cdc.source.canonical`)."""

OPEN: tuple[ReadPhase, ...] = ("waiting", "running", "paused")
UNSET: Any = object()
NUMBERS = 1_000_000
"""Numbers of windows of one run of a job."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS reads (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL UNIQUE, id TEXT NOT NULL, target TEXT NOT NULL, spec TEXT NOT NULL,
    why TEXT NOT NULL, phase TEXT NOT NULL DEFAULT 'waiting', epoch TEXT, progress TEXT, rows_read INTEGER NOT NULL DEFAULT 0,
    rows_emitted INTEGER NOT NULL DEFAULT 0, rows_gone INTEGER NOT NULL DEFAULT 0, rows_estimate INTEGER NOT NULL DEFAULT 0,
    run INTEGER NOT NULL DEFAULT 0, last TEXT, error TEXT, asked_us INTEGER NOT NULL, started_us INTEGER, changed_us INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS pauses (id TEXT PRIMARY KEY, at_us INTEGER NOT NULL) STRICT;
"""
_COLUMNS = (
    "number, job, id, target, spec, why, phase, epoch, progress, rows_read, rows_emitted, rows_gone, rows_estimate, run, last, error, "
    "asked_us, started_us, changed_us"
)


@dataclass(frozen=True)
class ReadSpec:
    """Which rows: those that the server finds by `where`, those from `low` to `high` (both included), those with these `keys`; all of
    them if nothing is given. `where` goes with `low` and `high`, `keys` go alone."""

    where: str = ""
    low: Key | None = None
    high: Key | None = None
    keys: tuple[Key, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is the whole table."""
        return not self.where and self.low is None and self.high is None and not self.keys

    def to_json(self) -> dict[str, Any]:
        """Only what is given."""
        data: dict[str, Any] = {}
        if self.where:
            data["where"] = self.where
        if self.low is not None:
            data["low"] = list(self.low)
        if self.high is not None:
            data["high"] = list(self.high)
        if self.keys:
            data["keys"] = [list(key) for key in self.keys]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ReadSpec:
        """What `to_json` gave."""
        low, high = data.get("low"), data.get("high")
        return cls(
            data.get("where", ""),
            None if low is None else tuple(low),
            None if high is None else tuple(high),
            tuple(tuple(key) for key in data.get("keys", ())),
        )


@dataclass(frozen=True)
class Read:
    """One job. `table` is the source's, `target` the lake's (another one for a shard).

    `progress`, of the newest window that is in the log, is known up to the epoch `epoch`; `last` is the epoch of the last window. `run`
    counts how often it was begun anew.
    """

    number: int
    job: str
    table: TableName
    target: TableName
    spec: ReadSpec
    why: Why
    phase: ReadPhase = "waiting"
    epoch: EpochId | None = None
    progress: dict[str, Any] | None = None
    rows_read: int = 0
    rows_emitted: int = 0
    rows_gone: int = 0
    rows_estimate: int = 0
    run: int = 0
    last: EpochId | None = None
    error: dict[str, Any] | None = None
    asked_us: int = 0
    started_us: int | None = None
    changed_us: int = 0

    @property
    def open(self) -> bool:
        """Whether there is something left to do."""
        return self.phase in OPEN


def view(read: Read, at_us: int | None = None) -> dict[str, Any]:
    """A job as `status` and `lakesync snapshot --json` show it. `percent`, `rows_per_second` and `seconds_left` are None where they cannot be
    told; `what` says in words which rows it reads, without their values."""
    at_us = at_us or now_us()
    running = read.phase == "running" and read.started_us is not None
    end_us = at_us if running else read.changed_us
    seconds = max(end_us - read.started_us, 1) / 1e6 if read.started_us is not None else 0.0
    rate = read.rows_read / seconds if seconds and read.rows_read else None
    known = read.rows_estimate > read.rows_read or read.phase == "done"
    share = read.rows_read / max(read.rows_estimate, read.rows_read, 1) if known else None
    left = (read.rows_estimate - read.rows_read) / rate if running and rate and known else None
    return {
        "job": read.job,
        "table": str(read.table),
        "target": str(read.target),
        "why": read.why,
        "what": _what(read.spec),
        "phase": read.phase,
        "rows_read": read.rows_read,
        "rows_emitted": read.rows_emitted,
        "rows_gone": read.rows_gone,
        "rows_estimate": read.rows_estimate,
        "percent": None if share is None else 100.0 if read.phase == "done" else round(100 * share, 1),
        "rows_per_second": None if rate is None else round(rate),
        "seconds_left": None if left is None else round(left),
        "asked_us": read.asked_us,
        "started_us": read.started_us,
        "error": read.error,
    }


def _what(spec: ReadSpec) -> str:
    if spec.whole:
        return "whole table"
    if spec.keys:
        return "1 key" if len(spec.keys) == 1 else f"{len(spec.keys)} keys"
    parts = ["a range of keys"] if spec.low is not None or spec.high is not None else []
    return " and ".join([*parts, *(["a condition"] if spec.where else [])])


def find(
    db: sqlite3.Connection, job: str | None = None, *, open_only: bool = False, why: Why | None = None
) -> list[Read]:
    """Jobs, oldest first."""
    where, values = ["1"], []
    if job is not None:
        where.append("job = ?")
        values.append(job)
    if why is not None:
        where.append("why = ?")
        values.append(why)
    if open_only:
        where.append(f"phase IN ({', '.join('?' * len(OPEN))})")
        values += OPEN
    rows = db.execute(f"SELECT {_COLUMNS} FROM reads WHERE {' AND '.join(where)} ORDER BY number", values).fetchall()
    return [_read(row) for row in rows]


def forget(db: sqlite3.Connection, job: str) -> None:
    """Without a trace."""
    db.execute("DELETE FROM reads WHERE job = ?", (job,))


def ask(db: sqlite3.Connection, table: TableName, target: TableName, spec: ReadSpec, why: Why, job: str = "") -> Read:
    """A new job; the one that is there, if there is one of this name."""
    job = job or uuid.uuid4().hex[:12]
    now = now_us()
    db.execute(
        "INSERT OR IGNORE INTO reads (job, id, target, spec, why, asked_us, changed_us) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (job, table.id, target.id, _json(spec.to_json()), why, now, now),
    )
    return find(db, job)[0]


def change(
    db: sqlite3.Connection, job: str, when: tuple[ReadPhase, ...] | None, run: int | None, given: dict[str, Any]
) -> bool:
    """Set what is given and not `UNSET`, only from one of the phases `when`, and in this run. Whether it was done."""
    values = {name: _out(name, value) for name, value in given.items() if value is not UNSET}
    values["changed_us"] = now_us()
    assignments = ", ".join(f"{name} = ?" for name in values)
    condition = f" AND phase IN ({', '.join('?' * len(when))})" if when is not None else ""
    cursor = db.execute(
        f"UPDATE reads SET {assignments} WHERE job = ? AND run = ifnull(?, run){condition}",
        (*values.values(), job, run, *(when or ())),
    )
    return cursor.rowcount > 0


def run_of(window: int) -> int:
    """Of which run of its job a window is, by its number."""
    return window // NUMBERS


def restart(db: sqlite3.Connection, job: str, run: int | None) -> bool:
    """Everything from the beginning, unless it was cancelled, or another run than this one has begun. `epoch` stays: windows of the runs
    before are told by their `run`. Whether it was done."""
    cursor = db.execute(
        "UPDATE reads SET phase = iif(phase = 'paused', 'paused', 'waiting'), run = run + 1, progress = NULL, last = NULL, error = NULL, "
        "rows_read = 0, rows_emitted = 0, rows_gone = 0, changed_us = ? WHERE job = ? AND phase != 'cancelled' AND run = coalesce(?, run)",
        (now_us(), job, run),
    )
    return cursor.rowcount > 0


def now_us() -> int:
    """By the local clock."""
    return time.time_ns() // 1000


def _out(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in ("epoch", "last"):
        return _json(list(value))
    return _json(value) if name in ("progress", "error") else value


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _epoch(text: str | None) -> EpochId | None:
    return EpochId(*orjson.loads(text)) if text else None


def _read(row: tuple[Any, ...]) -> Read:
    number, job, table, target, spec, why, phase, epoch, progress = row[:9]
    read, emitted, gone, estimate, run, last, error, asked, started, changed = row[9:]
    return Read(
        number,
        job,
        TableName.from_id(table),
        TableName.from_id(target),
        ReadSpec.from_json(orjson.loads(spec)),
        why,
        phase,
        _epoch(epoch),
        orjson.loads(progress) if progress else None,
        read,
        emitted,
        gone,
        estimate,
        run,
        _epoch(last),
        orjson.loads(error) if error else None,
        asked,
        started,
        changed,
    )
