"""What the log says of tables: as of its newest epoch, and whether it still has a certain one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdc.epoch import CommitRecord, EpochId, TableState
from cdc.errors import LogMovedError
from cdc.log.base import Log


@dataclass(frozen=True)
class Known:
    """A record, and every captured table after it by `TableName.id`."""

    record: CommitRecord
    tables: Mapping[str, TableState]


def newest(log: Log, known: Known | None = None) -> Known | None:
    """What is captured as of the newest record; None in an empty log. `known` is what was found before, to begin from.

    Raises `LogMovedError` where the records are no chain, which a log that is being restored may be for a moment.
    """
    last = log.newest()
    if last is None:
        return None
    if known is not None and known.record.id == last.id:
        return known
    if known is not None and known.record.number >= last.checkpoint:
        found = _walk(log, last, known)
        if found is not None:
            return found
    found = _walk(log, last, None)
    if found is None:
        raise LogMovedError("the log changed while it was read", where=f"epoch {last.number}")
    return found


def _walk(log: Log, last: CommitRecord, known: Known | None) -> Known | None:
    tables: dict[str, TableState] = dict(known.tables) if known else {}
    before = known.record.hash if known else None
    for record in log.records(after=known.record.number if known else last.checkpoint - 1):
        if record.before != before if before is not None else record.states is None:
            return None
        tables = record.states_after(tables)
        before = record.hash
        if record.id == last.id:
            return Known(last, tables)
    return None


def find(log: Log, epoch: EpochId) -> CommitRecord | None:
    """The epoch's record; None if the log has it no more, or another one of that number."""
    record = next(iter(log.records(after=epoch.number - 1)), None)
    return record if record is not None and record.id == epoch else None


def added(log: Log, known: Known, table: str, epoch: EpochId) -> bool:
    """Whether `epoch` added the table, and it has been captured ever since."""
    state = known.tables.get(table)
    if state is None or state.since != epoch.number or known.record.number < epoch.number:
        return False
    first = log.oldest()
    # Trimmed: the chain from the checkpoint on vouches for the number.
    return (first is not None and first.number > epoch.number) or find(log, epoch) is not None
