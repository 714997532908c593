"""Watermarks: up to when everything that the source committed is in a lake table, by the source's own clock.

Not the commit time of the last transaction that was applied: a table without changes would look late, and one whose source stands still would
look current. A watermark is a mark (`cdc.source.progress`) whose place in the binary log the table has passed, whether or not there was anything
for it. So tables that are idle go on, and so does an idle source; a source that is a replica, and stopped or behind, does not.

A table that stops, is read anew, or waits for rows to be read again keeps the watermark that it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdc.config import PipelineConfig
from cdc.lake import manifest
from cdc.lake.manifest import Manifest
from cdc.names import TableName
from cdc.position import Position
from cdc.ready.database import Database
from cdc.ready.marks import Marks, Reached
from cdc.state import State, TableStatus


@dataclass(frozen=True)
class Watermark:
    """Of one table. At the Delta version `version`, and later ones, it has everything that is before `position`, and that was committed up to
    `at_us` (µs since 1970, by the source's clock). None where that is not known, or was never so."""

    table: TableName
    at_us: int | None = None
    version: int | None = None
    position: Position | None = None
    held: str = ""
    """Why it does not go on; empty if it does."""

    def lag_ms(self, now_us: int) -> int | None:
        """How far it is behind a time of the source's clock."""
        return None if self.at_us is None else max(0, now_us - self.at_us) // 1000


def of_tables(
    config: PipelineConfig, state: State, marks: Marks | None = None, found: Manifest | None = None
) -> dict[TableName, Watermark]:
    """The watermark of every table that the state folder knows. `found`: the newest manifest, if it was read. Raises `StateError`, `LakeError`."""
    marks = marks or Marks(Database(config.state))
    found = found or manifest.read(config.lake_root, config.name)
    # Afterwards: what was asked for before the manifest was written is seen.
    statuses = state.tables()
    again = {r.target for r in state.reads_of("repair") if r.open or r.phase == "done"}
    known = marks.reached()
    at_us = marks.at(found.applied.position) if found and found.applied.position.whole else None
    return {
        table: _of(table, status, found, again, known.get(table), at_us)
        for table, status in statuses.items()
        if status.phase != "removed"
    }


def _of(
    table: TableName,
    status: TableStatus,
    found: Manifest | None,
    again: set[TableName],
    known: Reached | None,
    at_us: int | None,
) -> Watermark:
    named = found.tables.get(table) if found else None
    if held := _held(status, found, table, again):
        # Of a lake that was put back to an earlier state it says nothing.
        if known is None or found is None or named is None or found.written_us < known.written_us:
            return Watermark(table, held=held)
        return Watermark(table, known.at_us, known.version, known.position, held)
    assert found is not None
    assert named is not None
    return Watermark(table, at_us, named.version, found.applied.position)


def _held(status: TableStatus, found: Manifest | None, table: TableName, again: set[TableName]) -> str:
    named = found.tables.get(table) if found else None
    if status.phase == "stopped":
        return f"the table is stopped: {(status.error or {}).get('what', 'no reason given')}"
    if status.phase != "ready":
        return f"the table is {status.phase}: not all of its rows are in the lake"
    if found is None or named is None:
        return "the table is in no manifest yet"
    if table in again:
        return "rows that the binary log has in part are being read again"
    if named.state != "ready":
        return f"the table was {named.state} in the newest manifest"
    if named.applied is not None:
        return "the table was behind the others in the newest manifest"
    return ""


def reached(found: Manifest, watermarks: Mapping[TableName, Watermark]) -> dict[TableName, Reached]:
    """What is kept of tables that go on, for when they do not."""
    return {
        w.table: Reached(w.at_us, w.version, w.position, found.written_us)
        for w in watermarks.values()
        if not w.held and w.at_us is not None and w.version is not None and w.position is not None
    }
