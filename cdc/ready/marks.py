"""Marks, kept: up to when the source's binary log holds everything at which place; and how far each table was in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from cdc.names import TableName
from cdc.position import Position
from cdc.ready.database import Database
from cdc.source.progress import Mark

THIN_S: Sequence[tuple[int, int]] = ((600, 10), (7_200, 60), (172_800, 600))
"""Marks that are older than so many seconds need be no closer than so many: the lake may be far behind, and then it jumps that far."""
KEEP_S = 30 * 86_400
"""The oldest mark."""


@dataclass(frozen=True)
class Reached:
    """How far a table was in time when it was last known to go on: a table that stops has that still. `written_us`: of the manifest."""

    at_us: int
    version: int
    position: Position
    written_us: int


class Marks:
    """What the file has of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, marks: Iterable[Mark], server: str, clock_us: int) -> None:
        """Keep marks of a server whose clock shows this. What was said of times that are yet to come, by a clock that went back, is forgotten."""
        rows = [(m.server, *_place(m), m.at_us) for m in marks]
        with self._database.write() as db:
            db.execute("DELETE FROM marks WHERE server = ? AND at_us > ?", (server, clock_us))
            db.execute("DELETE FROM reached WHERE at_us > ?", (clock_us,))
            db.executemany("INSERT INTO marks VALUES (?, ?, ?, ?, ?)", rows)

    def thin(self, clock_us: int) -> None:
        """Let go of most of what is old."""
        with self._database.write() as db:
            db.execute("DELETE FROM marks WHERE at_us < ?", (clock_us - KEEP_S * 1_000_000,))
            for age_s, apart_s in THIN_S:
                before_us, apart_us = clock_us - age_s * 1_000_000, apart_s * 1_000_000
                db.execute(
                    "DELETE FROM marks WHERE at_us < ? AND rowid NOT IN"
                    " (SELECT min(rowid) FROM marks WHERE at_us < ? GROUP BY server, at_us / ?)",
                    (before_us, before_us, apart_us),
                )

    def at(self, position: Position) -> int | None:
        """Up to when everything is before this position, µs by the source's clock; None where nothing is known."""
        base, _, number = position.end.file.rpartition(".")
        with self._database.read() as db:
            found = db.execute(
                "SELECT max(at_us) FROM marks WHERE server = ? AND base = ? AND (number < ? OR (number = ? AND offset <= ?))",
                (position.server_uuid, base, int(number or 0), int(number or 0), position.end.offset),
            ).fetchone()
        return None if found[0] is None else int(found[0])

    def reached(self) -> dict[TableName, Reached]:
        """How far each table was."""
        with self._database.read() as db:
            rows = db.execute("SELECT id, at_us, version, position, written_us FROM reached").fetchall()
        return {
            TableName.from_id(i): Reached(at, version, Position.from_dict(orjson.loads(position)), written)
            for i, at, version, position, written in rows
        }

    def reach(self, found: Mapping[TableName, Reached]) -> None:
        """These tables are so far."""
        rows = [
            (t.id, r.at_us, r.version, orjson.dumps(r.position.to_dict()).decode(), r.written_us)
            for t, r in found.items()
        ]
        with self._database.write() as db:
            db.executemany("INSERT OR REPLACE INTO reached VALUES (?, ?, ?, ?, ?)", rows)


def _place(mark: Mark) -> tuple[str, int, int]:
    base, _, number = mark.end.file.rpartition(".")
    return base, int(number or 0), mark.end.offset
