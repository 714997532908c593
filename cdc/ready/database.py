"""`ready.db` in the state folder: how far the source is in time, and which partitions were said to be ready.

Losing it loses times until the next look at the source, and what was said by webhook and command; what was said by file is read from the
lake. The daemon and command lines use it at once, so every change is one short transaction, and readers never wait (WAL).
"""

from __future__ import annotations

from pathlib import Path

from cdc.statefile import StateFile

NAME = "ready.db"
VERSION = 1

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


class Database(StateFile):
    """The file in this state folder."""

    def __init__(self, state: Path) -> None:
        super().__init__(state / NAME, _SCHEMA, VERSION, "the files in the lake say what was ready")
