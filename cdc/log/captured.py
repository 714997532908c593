"""Which tables are captured, as the log says: one walk over its records, from a checkpoint, or on from where the last one ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdc.epoch import CommitRecord, EpochId, TableState
from cdc.errors import LogDamagedError, LogMovedError
from cdc.log.base import Log


@dataclass(frozen=True)
class Known:
    """Every captured table by `TableName.id`, after the newest *whole* epoch, `record`, and after `newest`, which may be a part of a
    transaction beyond it.

    What must be a position of the source (a round of the merger, the e0 of a bootstrap, a window) goes by `record`: a SELECT never
    shows a part of a transaction.
    """

    record: CommitRecord
    tables: Mapping[str, TableState]
    newest: CommitRecord
    newest_tables: Mapping[str, TableState]


def read(log: Log, known: Known | None = None) -> Known | None:
    """What is captured as of the log's newest record; None in an empty log. `known` is what was found before, to go on from.

    Raises `LogMovedError` if the log changed meanwhile, `LogDamagedError` if there is no way from a checkpoint to the newest record,
    and what the log raises.
    """
    last = log.newest()
    if last is None:
        return None
    if known is not None and known.newest.id == last.id:
        return known
    for start in (known, None) if known else (None,):
        if found := _walk(log, last, start):
            return found
    again = log.newest()
    if again is None or again.id != last.id:
        raise LogMovedError("the log changed while it was read", where=f"epoch {last.id}")
    raise LogDamagedError(
        f"the log does not say which tables are captured: epoch {last.checkpoint} should, and lead to epoch {last.id}",
        hint="restore the log from a copy, or begin a new one: it continues from the lake",
    )


def _walk(log: Log, last: CommitRecord, known: Known | None) -> Known | None:
    """From what is known, or the checkpoint of the last record, to that record; None if that is no chain. A checkpoint is whole."""
    if known is not None and known.newest.number >= last.number:
        return None
    for record in log.records(after=known.newest.number if known is not None else last.checkpoint - 1):
        if known is None:
            if record.states is None or not record.whole:
                return None
            tables: Mapping[str, TableState] = record.states_after({})
            known = Known(record, tables, record, tables)
        elif record.before != known.newest.hash:
            return None
        else:
            tables = record.states_after(known.newest_tables)
            whole = (record, tables) if record.whole else (known.record, known.tables)
            known = Known(*whole, record, tables)
        if record.id == last.id:
            return known
    return None


def find(log: Log, epoch: EpochId) -> CommitRecord | None:
    """The epoch's record; None if the log has it no more, or another one of that number."""
    record = next(iter(log.records(after=epoch.number - 1)), None)
    return record if record is not None and record.id == epoch else None


def has(log: Log, epoch: EpochId) -> bool:
    """Whether the log has the epoch, or is trimmed beyond it."""
    if find(log, epoch) is not None:
        return True
    oldest = log.oldest()
    return oldest is not None and oldest.number > epoch.number


def added(log: Log, known: Known, table: str, epoch: EpochId) -> bool:
    """Whether `epoch` added the table, and it has been captured ever since."""
    state = known.tables.get(table)
    if state is None or state.since != epoch.number or known.record.number < epoch.number:
        return False
    first = log.oldest()
    # Trimmed: the chain from the checkpoint on vouches for the number.
    return (first is not None and first.number > epoch.number) or find(log, epoch) is not None
