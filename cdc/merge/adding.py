"""Tables that need no bootstrap: an `append` table begins empty at the epoch that adds it."""

from __future__ import annotations

from cdc.epoch import Counts, TableState
from cdc.errors import LogGapError, TableStoppedError
from cdc.lake import Applied, LakeTable, Snapshot
from cdc.log.base import Log
from cdc.merge.decide import applied_at
from cdc.names import TableName
from cdc.schema import TableSchema


def is_append(captured: TableState) -> bool:
    """Whether the table's changes are appended."""
    return captured.options.get("mode") == "append"


def begin(
    log: Log,
    lake: LakeTable,
    table: TableName,
    captured: TableState,
    snapshot: Snapshot | None,
    applied: Applied | None,
) -> tuple[Snapshot, Applied]:
    """The table's first version, or the one that is there if it contains all that was before the epoch that adds it.

    Raises `TableStoppedError` if there is one that lacks something: it is neither replaced nor gone on with; `LogGapError` if the
    log does not have that epoch any more; `LakeError` and its kin.
    """
    record = next(iter(log.records(captured.since - 1)), None)
    if record is not None and (record.number != captured.since or table.id not in record.added):
        record = None
    if snapshot is None:
        if record is None:
            raise LogGapError(
                f"the log does not have epoch {captured.since} any more, which adds the table",
                where=str(table),
                hint=f"`lakesync remove {table}` and `lakesync add {table}`: it begins with the changes from then on",
            )
        applied = applied_at(record)
        return lake.create(TableSchema.from_dict(captured.schema), "append", applied, Counts()), applied
    if snapshot.mode != "append" or snapshot.schema != TableSchema.from_dict(captured.schema):
        what = "other columns" if snapshot.mode == "append" else f"mode {snapshot.mode}"
        raise TableStoppedError(
            f"the lake has the table with {what}, and an `append` table is not read anew",
            where=f"{table}: {snapshot.folder}",
            hint=f"move that folder away, then `lakesync resume {table}`: a new table begins where the log adds it",
        )
    contained = applied is not None and record is not None and applied.position.contains(record.end)
    if applied is not None and contained and not _stopped(log, table, applied, captured.since):
        return snapshot, applied
    raise TableStoppedError(
        "the lake has the table from an earlier time, and changes between then and now were not captured",
        where=f"{table}: {snapshot.folder}",
        hint=f"move that folder away, then `lakesync resume {table}`: a new table begins where the log adds it",
    )


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
