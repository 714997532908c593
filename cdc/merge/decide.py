"""Whether a table has an epoch already, needs it, needs a part of it, or cannot take it. Pure; `spec/commit.py` is its model.

An epoch's number is no identity: after a log lost records it may recur. So a record is skipped, or taken whole, by its number's
word only where the hash chain agrees with what the table's last commit names; everywhere else positions are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cdc import faults
from cdc.epoch import CommitRecord
from cdc.errors import LogGapError
from cdc.lake import Applied
from cdc.position import GtidSet, Position


@dataclass(frozen=True)
class Skip:
    """The table contains the whole epoch."""


@dataclass(frozen=True)
class Apply:
    """The table contains nothing of the epoch, and all that was before it."""


@dataclass(frozen=True)
class Part:
    """The table contains all that was before the epoch, and of the epoch what is before `exclude`."""

    exclude: Position


@dataclass(frozen=True)
class Gap:
    """Transactions before the epoch, or row events of one of them, are neither in the table nor in the epoch: `missing`."""

    missing: GtidSet


Decision = Skip | Apply | Part | Gap


def decide(applied: Applied, record: CommitRecord) -> Decision:
    """What a table that contains `applied` does with `record`.

    1. The record is the one applied last: skip. It follows that one in the hash chain, and starts where the table is: apply all of
       it. (It may start elsewhere after a table took a part of a record and is ahead of its end, where positions are no line; or if
       the log is wrong. Then positions are compared as well.)
    2. Else its end is contained: skip.
    3. Else its start is contained: apply what is not.
    4. Else there is a gap.

    Positions are compared with their parts: a record may begin and end within a large transaction, and so may what the table has.
    """
    if faults.mutant("applied_check_skipped"):
        return Apply()
    if faults.mutant("skip_by_number"):
        if record.number <= applied.epoch.number:
            return Skip()
        missing = _missing(applied.position, record.start)
        return Gap(missing) if record.number > applied.epoch.number + 1 else Apply()
    if record.hash == applied.epoch.hash:
        return Skip()
    mine = applied.position
    if record.before == applied.epoch.hash and _same(record.start, mine):
        return Apply()
    if _contains(mine, record.end):
        return Skip()
    if _contains(mine, record.start) or faults.mutant("no_gap_check"):
        return Apply() if faults.mutant("part_applied_whole") else Part(mine)
    return Gap(_missing(mine, record.start))


def _same(one: Position, other: Position) -> bool:
    return one.gtids == other.gtids if faults.mutant("parts_ignored") else one.is_at(other)


def _contains(one: Position, other: Position) -> bool:
    return one.gtids.contains(other.gtids) if faults.mutant("parts_ignored") else one.contains(other)


def _missing(mine: Position, start: Position) -> GtidSet:
    missing, part = start.gtids.subtract(mine.gtids), start.partial
    if part is None or (first := mine.first_event(part.gtid)) is None or first >= part.row_events:
        return missing
    return missing.add(part.gtid)


def advance(applied: Applied, record: CommitRecord) -> Applied:
    """What a table contains after it took `record`, whole or the part that it lacked. Its position never goes back.

    Raises `LogGapError` where that is no position: of two transactions it has a part of each, which takes a log that was replaced
    within one of them, and a server that goes on with another.
    """
    position = record.end
    if not position.contains(applied.position):
        try:
            position = position.union(applied.position)
        except ValueError as error:
            raise LogGapError(
                f"the table has a part of a transaction that the log does not go on with: {error}",
                hint="`lakesync resync` the table",
            ) from None
    return replace(
        applied_at(record),
        position=position,
        ts_ms=max(applied.ts_ms, record.ts_ms),
        seq=max(applied.seq, record.seq),
    )


def applied_at(record: CommitRecord) -> Applied:
    """What a table contains that has everything up to the end of `record` and nothing beyond."""
    return Applied(record.log, record.id, record.end, record.ts_ms, record.raw_us, record.seq)
