"""Tables that keep what was there (`soft-delete`, `history`), added again: after a stop, a resync, a gap.

What such a table keeps is nowhere else, so it is never replaced: it goes on with the rows that it has. It gets what the log still has for
it; a commit says that it is followed from the epoch that adds it; then it is read whole, in windows. What the source changed while the
table was not followed it never hears of; what the source has now, it does: an end, or a version, of the time at which that was seen.
"""

from __future__ import annotations

from itertools import islice, takewhile

from cdc.config import KEEPING
from cdc.epoch import CommitRecord, TableState
from cdc.errors import LogDamagedError, LogGapError, TableStoppedError
from cdc.journal import logger
from cdc.lake import Applied, LakeTable, Layout, Snapshot, deltalog
from cdc.log.base import Log
from cdc.merge.decide import applied_at
from cdc.merge.table import TableMerge
from cdc.schema import TableSchema

LOG = logger("merge")
KIND = "rejoin"
"""Of the commit, in `commitInfo.lakesync`."""
_RECORDS = 1000


def keeps(snapshot: Snapshot) -> bool:
    """Whether the lake's table has rows that would be lost with it."""
    return snapshot.mode in KEEPING and not snapshot.is_empty


def rejoin(
    log: Log, lake: LakeTable, captured: TableState, on: Snapshot, applied: Applied | None, record: CommitRecord
) -> Snapshot:
    """Go on with a table that the lake has, from `record` on, which adds it. `applied`: what it contains, if that is known.

    Raises `TableStoppedError` where it has other columns or another mode by now; `LakeError` and its kin, and as the log.
    """
    _check(lake, captured, on)
    if (on.info or {}).get("kind") == KIND and on.applied is not None and on.applied.epoch == record.id:
        return on  # by a merger that did not live to say so
    if applied is not None:
        merge = TableMerge(log, lake, lake.table, on, applied)
        try:
            _take(log, merge, record)
        except (LogGapError, LogDamagedError) as error:
            LOG.warning("changes-missed", table=str(lake.table), error=error.code, what=error.what)
        on = merge.snapshot
    snapshot = lake.rejoin(on, applied_at(record))
    LOG.info("table-rejoined", table=str(lake.table), version=snapshot.version, epoch=record.number)
    return snapshot


def _check(lake: LakeTable, captured: TableState, on: Snapshot) -> None:
    layout = Layout.of(captured.options)
    if layout.mode != on.mode:
        what = f"mode {on.mode}"
    elif on.schema != TableSchema.from_dict(captured.schema):
        what = "other columns"
    elif layout != on.layout:
        what = "other partitions, or another change feed"
    else:
        return
    raise TableStoppedError(
        f"the lake has the table with {what}, and what it keeps would be lost",
        where=f"{lake.table}: {on.folder}",
        hint=f"move that folder away, then `lakesync resume {lake.table}`: a new table begins where the log adds it",
    )


def _take(log: Log, merge: TableMerge, until: CommitRecord) -> None:
    """Apply what the log has for the table up to the record that adds it again."""
    epoch, after = merge.applied.epoch, None
    first = next(iter(log.records(epoch.number - 1)), None)
    if first is not None and epoch.hash in (first.hash, first.before):
        after = first.number - 1
    else:
        merge.lost([commit.info["hash"] for commit in deltalog.commits(merge.lake.folder)])
    records = takewhile(lambda r: r.number <= until.number, log.records(after))
    while (some := list(islice(records, _RECORDS))) and not merge.held:
        merge.take(some)
