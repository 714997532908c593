"""`reconcile.db` in the state folder: one SQLite file for all that is kept of checks and alerts.

Losing it loses history, and no more: the log, the lake and the source are what is checked, and they are checked again. Daemon and command
lines use it at once, so every change is one short transaction, and readers never wait (WAL).
"""

from __future__ import annotations

from pathlib import Path

from cdc.statefile import StateFile

NAME = "reconcile.db"
VERSION = 1

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


class Database(StateFile):
    """The file in this state folder."""

    def __init__(self, state: Path) -> None:
        super().__init__(state / NAME, _SCHEMA, VERSION, "only the history of checks is in it")
