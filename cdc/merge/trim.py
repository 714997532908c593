"""How far the log may be trimmed: to the lowest epoch that anything still needs, and nothing younger than it is to be kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from cdc.epoch import CommitRecord, EpochId
from cdc.log.base import Log
from cdc.names import TableName

TRACE_EPOCHS = 100_000
"""The trace may hold the log back by so many epochs; what it misses then is detail, the running totals bridge it."""


def first_needed(log: Log, oldest: CommitRecord, applied: EpochId) -> int:
    """The number of the first record that a table needs which has `applied`; the oldest's where the log does not know that epoch."""
    record = next(iter(log.records(after=applied.number - 1)), None)
    if record is not None and (record.id == applied or record.before == applied.hash):
        return record.number
    return oldest.number


def traced(state: Path, newest: CommitRecord) -> int:
    """The number of the first record that the trace needs."""
    try:
        epoch = int(orjson.loads((state / "trace.json").read_bytes())["epoch"])
    except (OSError, ValueError, TypeError, KeyError):
        epoch = 0
    return max(epoch, newest.number - TRACE_EPOCHS)


def traced_version(state: Path, table: TableName, lake_id: str, newest: int) -> int:
    """The newest version of a lake table, of this `metaData.id`, that the trace has; at most so far behind as it may hold the log back."""
    try:
        cursor = orjson.loads((state / "trace.json").read_bytes())
        version = int(cursor["versions"][table.id]) if cursor["lakes"][table.id]["id"] == lake_id else -1
    except (OSError, ValueError, TypeError, KeyError):
        version = -1
    return max(version, newest - TRACE_EPOCHS)


def trim(log: Log, oldest: CommitRecord, needed: Iterable[int], written_before_us: int) -> int | None:
    """Let go of the records before all of `needed` that were written before this time. The number of the first one kept, if any went."""
    bound, first = min(needed), oldest.number
    for record in log.records():
        first = record.number
        if first >= bound or record.written_us >= written_before_us:
            break
    if first <= oldest.number:
        return None
    log.trim(first)
    return first
