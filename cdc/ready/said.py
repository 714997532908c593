"""What was said of which partition, to whom, and what is still to be said. All of it durable before anybody is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from cdc import faults
from cdc.names import TableName
from cdc.ready.database import Database
from cdc.ready.touched import Touched

Channel = Literal["file", "webhook", "command"]
CHANNELS: tuple[Channel, ...] = ("file", "webhook", "command")
PUT_OFF_MOST_US = 3600 * 1_000_000
"""Nothing is put off for longer."""


@dataclass(frozen=True)
class Watched:
    """A table whose partitions of one column (`term`) are watched: from `first` on, `next` being the first one that may not have been said yet.
    `lake`: the table's Delta id, `scanned`: its version up to which changes were looked for; None before the first look."""

    table: TableName
    term: str
    armed_us: int
    first: str
    next: str
    lake: str | None = None
    scanned: int | None = None


@dataclass(frozen=True)
class Said:
    """That a partition is complete, for the `generation`th time, at a Delta version."""

    period: str
    generation: int
    version: int
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Open:
    """Something that is still to be told, by these channels. `attempts`: how often it failed."""

    number: int
    table: TableName
    payload: Mapping[str, Any]
    channels: tuple[Channel, ...]
    attempts: int


@dataclass(frozen=True)
class Late:
    """Rows of a partition that was complete; since when, by our clock."""

    period: str
    since_us: int
    touched: Touched


class Book:
    """The file's tables of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- what is watched -----------------------------------------------------------------------------------------------

    def watched(self, table: TableName, term: str) -> Watched | None:
        """None if it is not yet."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT armed_us, first, next, lake, scanned FROM periods WHERE id = ? AND term = ?", (table.id, term)
            ).fetchone()
        return Watched(table, term, *row) if row else None

    def watch(self, found: Watched, said: Iterable[Said] = ()) -> None:
        """From now on, or otherwise; these were said already."""
        with self._database.write(durable=True) as db:
            db.execute(
                "INSERT OR REPLACE INTO periods VALUES (?, ?, ?, ?, ?, ?, ?)",
                (found.table.id, found.term, found.armed_us, found.first, found.next, found.lake, found.scanned),
            )
            for one in said:
                db.execute(
                    "INSERT OR IGNORE INTO said (id, term, period, generation, version, payload) VALUES (?, ?, ?, ?, ?, ?)",
                    (found.table.id, found.term, one.period, one.generation, one.version, _json(one.payload)),
                )

    def said(self, found: Watched, periods: Sequence[str] | None = None) -> dict[str, Said]:
        """The newest generation of these partitions, or of all, as far as they were said."""
        condition, values = "", []
        if periods is not None:
            condition = f"AND period IN ({', '.join('?' * len(periods))})"
            values = list(periods)
        with self._database.read() as db:
            rows = db.execute(
                f"SELECT period, generation, version, payload FROM said WHERE id = ? AND term = ? {condition} ORDER BY generation",
                (found.table.id, found.term, *values),
            ).fetchall()
        return {p: Said(p, generation, version, orjson.loads(payload)) for p, generation, version, payload in rows}

    # -- saying --------------------------------------------------------------------------------------------------------

    def say(self, found: Watched, said: Sequence[Said], channels: Iterable[Channel], following: str) -> None:
        """These partitions are complete, or complete again, and are to be told of by these channels; `following` is the next one to be looked
        at."""
        flags = [0 if channel in set(channels) else None for channel in CHANNELS]
        with self._database.write(durable=True) as db:
            for one in said:
                db.execute(
                    "INSERT OR IGNORE INTO said (id, term, period, generation, version, payload, file, webhook, command)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(found.table.id, found.term, one.period, one.generation, one.version, _json(one.payload)),
                        *flags,
                    ),
                )
                place = found.table.id, found.term, one.period
                # Rows may come late every minute, for years: of what everybody was told the newest is enough.
                db.execute(
                    "DELETE FROM said WHERE id = ? AND term = ? AND period = ? AND generation < ?"
                    " AND coalesce(file, 1) = 1 AND coalesce(webhook, 1) = 1 AND coalesce(command, 1) = 1",
                    (*place, one.generation),
                )
                db.execute("DELETE FROM late WHERE id = ? AND term = ? AND period = ?", place)
            db.execute("UPDATE periods SET next = ? WHERE id = ? AND term = ?", (following, found.table.id, found.term))
        faults.point("ready.recorded")

    def late(self, found: Watched) -> list[Late]:
        """What came late and was not said yet."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT period, since_us, added, deleted FROM late WHERE id = ? AND term = ? ORDER BY period",
                (found.table.id, found.term),
            ).fetchall()
        return [Late(period, since_us, Touched(added, deleted)) for period, since_us, added, deleted in rows]

    def scan(self, found: Watched, lake: str, version: int, late: Mapping[str, Touched], now_us: int) -> None:
        """Changes were looked for up to this version; these are of partitions that were complete."""
        with self._database.write(durable=bool(late)) as db:
            for period, one in late.items():
                row = db.execute(
                    "SELECT since_us, added, deleted FROM late WHERE id = ? AND term = ? AND period = ?",
                    (found.table.id, found.term, period),
                ).fetchone()
                since_us = row[0] if row else now_us
                both = one.plus(Touched(row[1], row[2])) if row else one
                db.execute(
                    "INSERT OR REPLACE INTO late VALUES (?, ?, ?, ?, ?, ?)",
                    (found.table.id, found.term, period, since_us, both.added, both.deleted),
                )
            db.execute(
                "UPDATE periods SET lake = ?, scanned = ? WHERE id = ? AND term = ?",
                (lake, version, found.table.id, found.term),
            )
        if late:
            faults.point("ready.scanned")

    # -- telling -------------------------------------------------------------------------------------------------------

    def open(self, now_us: int | None = None, limit: int = 100) -> list[Open]:
        """What is still to be told, oldest first; with a time, what is due by then."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT number, id, payload, file, webhook, command, attempts FROM said"
                " WHERE (file = 0 OR webhook = 0 OR command = 0) AND NOT (due_us BETWEEN ?1 + 1 AND ?1 + ?2) ORDER BY number LIMIT ?3",
                # What is due later than anything is put off was put off before the clock was set back.
                (1 << 61 if now_us is None else now_us, PUT_OFF_MOST_US, limit),
            ).fetchall()
        return [
            Open(
                number,
                TableName.from_id(table),
                orjson.loads(payload),
                tuple(c for c, flag in zip(CHANNELS, flags, strict=True) if flag == 0),
                attempts,
            )
            for number, table, payload, *flags, attempts in rows
        ]

    def told(self, number: int, channel: Channel) -> None:
        """It was told by this channel; or nobody is to be told by it any more."""
        with self._database.write(durable=True) as db:
            db.execute(f"UPDATE said SET {channel} = 1, error = NULL WHERE number = ?", (number,))

    def failed(self, number: int, error: Mapping[str, Any], due_us: int) -> None:
        """It was not; it is tried again at this time."""
        with self._database.write() as db:
            db.execute(
                "UPDATE said SET attempts = attempts + 1, error = ?, due_us = ? WHERE number = ?",
                (_json(error), due_us, number),
            )

    def postpone(self, number: int, due_us: int) -> None:
        """It is not tried before this time."""
        with self._database.write() as db:
            db.execute("UPDATE said SET due_us = ? WHERE number = ?", (due_us, number))

    def failures(self) -> list[dict[str, Any]]:
        """Why what is still to be told was not."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT error FROM said WHERE error IS NOT NULL AND (file = 0 OR webhook = 0 OR command = 0) ORDER BY number LIMIT 3"
            ).fetchall()
        return [orjson.loads(error) for (error,) in rows]

    def count(self) -> tuple[int, int]:
        """How often something was said, and how much of it is still to be told."""
        with self._database.read() as db:
            (said,) = db.execute(
                "SELECT coalesce(sum(times), 0) FROM (SELECT max(generation) AS times FROM said GROUP BY id, term, period)"
            ).fetchone()
            (left,) = db.execute("SELECT count(*) FROM said WHERE file = 0 OR webhook = 0 OR command = 0").fetchone()
        return int(said), int(left)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
