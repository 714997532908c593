"""Tables that begin without a bootstrap of their own: in the lake they are made by the merger, at the epoch that adds them.

An `append` table begins empty; so do those whose rows come in windows, through the log: one that is made of shards, and one that keeps
what was there (`soft-delete`, `history`), which goes on with the rows that it has, where the lake has it from an earlier time
(`cdc.merge.rejoining`). A table that someone else wrote is adopted (`cdc.merge.adopting`).
"""

from __future__ import annotations

from cdc import sharding
from cdc.config import Mode
from cdc.epoch import CommitRecord, Counts, TableState
from cdc.errors import LogGapError, TableStoppedError
from cdc.lake import Applied, LakeTable, Layout, Snapshot
from cdc.log.base import Log
from cdc.merge import rejoining
from cdc.merge.decide import advance, applied_at
from cdc.names import TableName
from cdc.schema import TableSchema
from cdc.state import Phase


def is_append(captured: TableState) -> bool:
    """Whether the table's changes are appended."""
    return captured.options.get("mode") == "append"


def may_begin(captured: TableState) -> bool:
    """Whether a table in the phase `added` may be the merger's to begin; no other table is."""
    return begins_empty(captured) or "from_position" in captured.options


def begins_empty(captured: TableState) -> bool:
    """Whether the table begins empty (`begin`), if it is not adopted."""
    return _mode(captured) != "upsert" or sharding.is_sharded(captured.options)


def phase(captured: TableState) -> Phase:
    """The phase in which a table that begins empty goes on: `reading` if rows are to come that were there before."""
    return "ready" if is_append(captured) and not captured.options.get("backfill") else "reading"


def begin(
    log: Log,
    lake: LakeTable,
    table: TableName,
    captured: TableState,
    snapshot: Snapshot | None,
    applied: Applied | None,
) -> tuple[Snapshot, Applied]:
    """The table's first version; of a table of shards in place of what the lake has of it from an earlier time; of an `append` table
    what is there, if it contains all that was before the epoch that adds it; of one that keeps what was there, what is there.

    Raises `TableStoppedError` if there is an `append` table that lacks something, or one that keeps something and has another mode or
    other columns: it is neither replaced nor gone on with; `LogGapError` if the log does not have that epoch any more; `LakeError` and
    its kin.
    """
    record = next(iter(log.records(captured.since - 1)), None)
    if record is not None and (record.number != captured.since or table.id not in record.added):
        record = None
    if snapshot is not None and record is not None and _is_new(snapshot, record):
        return snapshot, applied_at(record)
    schema, mode, layout = TableSchema.from_dict(captured.schema), _mode(captured), Layout.of(captured.options)
    kept = snapshot is not None and rejoining.keeps(snapshot)
    nothing = snapshot is None or (_never_had_rows(snapshot) and mode == snapshot.mode)
    replaceable = snapshot is not None and mode != "append" and snapshot.mode != "append"
    if kept or nothing or mode == "upsert" or replaceable:
        if record is None:
            raise LogGapError(
                f"the log does not have epoch {captured.since} any more, which adds the table",
                where=str(table),
                hint=f"`lakesync remove {table}` and `lakesync add {table}`: it begins with the changes from then on",
            )
        if kept and snapshot is not None:
            return rejoining.rejoin(log, lake, captured, snapshot, applied, record), applied_at(record)
        applied = applied_at(record)
        return lake.create(schema, layout, applied, Counts(), snapshot), applied
    assert snapshot is not None
    if snapshot.layout != layout or snapshot.schema != schema:
        what = "other columns" if snapshot.schema != schema else "other partitions, or another change feed"
        what = what if snapshot.mode == mode else f"mode {snapshot.mode}"
        raise TableStoppedError(
            f"the lake has the table with {what}, and a table of mode {mode} does not take its place",
            where=f"{table}: {snapshot.folder}",
            hint=f"move that folder away, then `lakesync resume {table}`: a new table begins where the log adds it",
        )
    if phase(captured) == "reading":
        raise TableStoppedError(
            "the lake has the table from an earlier time, and with `backfill` its rows would be in it twice",
            where=f"{table}: {snapshot.folder}",
            hint=f"move that folder away, then `lakesync resume {table}`: a new table begins where the log adds it",
        )
    contained = applied is not None and record is not None and applied.position.contains(record.end)
    if applied is not None and record is not None and contained and not _stopped(log, table, applied, captured.since):
        if applied.epoch == record.id:
            return snapshot, applied  # by a merger that did not live to say so
        # The log counts the table's changes anew from there on; so do the commits.
        applied = advance(applied, record)
        return lake.rejoin(snapshot, applied), applied
    raise TableStoppedError(
        "the lake has the table from an earlier time, and changes between then and now were not captured",
        where=f"{table}: {snapshot.folder}",
        hint=f"move that folder away, then `lakesync resume {table}`: a new table begins where the log adds it",
    )


def _mode(captured: TableState) -> Mode:
    return Layout.of(captured.options).mode


def _kind(snapshot: Snapshot) -> str:
    return str((snapshot.info or {}).get("kind", ""))


def _never_had_rows(snapshot: Snapshot) -> bool:
    return snapshot.is_empty and not snapshot.totals["rows_added"]


def _is_new(snapshot: Snapshot, record: CommitRecord) -> bool:
    """Whether it is the empty table of this very epoch, made by a merger that did not live to say so."""
    applied = snapshot.applied
    return _kind(snapshot) == "create" and applied is not None and applied.epoch == record.id


def _stopped(log: Log, table: TableName, applied: Applied, until: int) -> bool:
    """Whether capture stopped the table between what it has applied and this epoch, or the log cannot say: the position contains the
    transaction that stopped it, and the table has no row of that one."""
    for i, record in enumerate(log.records(applied.epoch.number - 1)):
        if record.number >= until:
            return False
        if i == 0 and applied.epoch.hash not in (record.hash, record.before):
            return True
        if record.removed.get(table.id, {}).get("code", "removed") != "removed":
            return True
    return False
