"""Whether a table has an epoch already, needs it, needs a part of it, or cannot take it. Pure; `spec/commit.py` is its model.

An epoch's number is no identity: after a log lost records it may recur. So a record is skipped, or taken whole, by its number's
word only where the hash chain agrees with what the table's last commit names; everywhere else positions are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cdc import faults
from cdc.epoch import CommitRecord
from cdc.lake import Applied
from cdc.position import GtidSet


@dataclass(frozen=True)
class Skip:
    """The table contains the whole epoch."""


@dataclass(frozen=True)
class Apply:
    """The table contains nothing of the epoch, and all that was before it."""


@dataclass(frozen=True)
class Part:
    """The table contains all that was before the epoch, and those of its transactions that are in `exclude`."""

    exclude: GtidSet


@dataclass(frozen=True)
class Gap:
    """Transactions before the epoch are neither in the table nor in the epoch: `missing`."""

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
    """
    if faults.mutant("applied_check_skipped"):
        return Apply()
    if faults.mutant("skip_by_number"):
        if record.number <= applied.epoch.number:
            return Skip()
        missing = record.start.gtids.subtract(applied.position.gtids)
        return Gap(missing) if record.number > applied.epoch.number + 1 else Apply()
    if record.hash == applied.epoch.hash:
        return Skip()
    mine = applied.position.gtids
    if record.before == applied.epoch.hash and record.start.gtids == mine:
        return Apply()
    if mine.contains(record.end.gtids):
        return Skip()
    if mine.contains(record.start.gtids) or faults.mutant("no_gap_check"):
        return Apply() if faults.mutant("part_applied_whole") else Part(mine)
    return Gap(record.start.gtids.subtract(mine))


def advance(applied: Applied, record: CommitRecord) -> Applied:
    """What a table contains after it took `record`, whole or the part that it lacked. Its position never goes back."""
    position, mine = record.end, applied.position.gtids
    if not position.gtids.contains(mine):
        position = replace(position, gtids=position.gtids.union(mine))
    return replace(
        applied_at(record),
        position=position,
        ts_ms=max(applied.ts_ms, record.ts_ms),
        seq=max(applied.seq, record.seq),
    )


def applied_at(record: CommitRecord) -> Applied:
    """What a table contains that has everything up to the end of `record` and nothing beyond."""
    return Applied(record.log, record.id, record.end, record.ts_ms, record.raw_us, record.seq)
