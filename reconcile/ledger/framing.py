"""The source's side of the ledger: by the events' framing alone, without a look into a row.

epochs in the log            = epochs in the trace          numbers follow one another; what is trimmed is known by totals
epochs                       = epochs that begin where the one before ended
GTID set growth              = transactions
growth of the offsets        = bytes of transactions        within one file of the binary log, those that are prepared included
growth of the running totals = transactions
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from reconcile.ledger.equations import Equation, Sides
from reconcile.ledger.evidence import Epoch, Trace

GTIDS = "GTID set growth = transactions"
NUMBERS = "epoch numbers = epochs"
CHAIN = "epochs = epochs that begin where the one before ended"
OFFSETS = "growth of the binary log's offsets = bytes of transactions"
TRANSACTION_BYTES = 120
"""On MariaDB a transaction takes more; what it writes between transactions (a checkpoint of some 45 bytes, once a file) takes less."""
TOTALS = "growth of the source's running total = transactions"


def chains(trace: Trace, newest: str) -> list[list[Epoch]]:
    """The epochs of each log, oldest first, each log as one chain: what it lost is not in it. The one that `newest` is of comes last."""
    by_log: dict[str, list[Epoch]] = {}
    for epoch in trace.epochs.values():
        by_log.setdefault(epoch.log, []).append(epoch)
    head = trace.epochs.get(newest)
    last = head.log if head is not None else ""
    found = []
    for log, epochs in sorted(by_log.items(), key=lambda item: (item[0] == last, max(e.number for e in item[1]))):
        end = head if log == last and head is not None else max(epochs, key=lambda e: e.number)
        found.append(_chain(trace, epochs, end))
    return found


def _chain(trace: Trace, epochs: Iterable[Epoch], end: Epoch) -> list[Epoch]:
    """Back from `end`; over what the trace does not have to the newest epoch before it."""
    ordered = sorted((e for e in epochs if e.number < end.number), key=lambda e: e.number)
    found = [end]
    while True:
        before = trace.epochs.get(found[-1].before)
        if before is None:
            while ordered and ordered[-1].number >= found[-1].number:
                ordered.pop()
            if not ordered or not found[-1].before:
                break
            before = ordered[-1]
        found.append(before)
    return found[::-1]


def missing(chain: Sequence[Epoch]) -> Iterator[tuple[Epoch, Epoch]]:
    """Neighbours between which the trace lacks epochs."""
    return ((one, two) for one, two in pairwise(chain) if two.before != one.hash)


def source(found: Sequence[Sequence[Epoch]], oldest: int | None) -> tuple[list[Equation], list[str]]:
    """The equations over these chains, and what is to be said of them. `oldest`: the first epoch that the log has; what the trace lacks of
    it is missing, and of what is before it only totals are known."""
    gtids, numbers, chain, offsets, totals = (Sides(n, "source") for n in (GTIDS, NUMBERS, CHAIN, OFFSETS, TOTALS))
    notes: list[str] = []
    for epochs in found:
        for epoch in epochs:
            _transactions(gtids, epoch)
        for one, two in pairwise(epochs):
            gap = two.number - one.number - 1
            at = (two.number, two.number)
            if two.before == one.hash:
                numbers.add(at, 1 + gap, 1)
                if one.ends and two.begins:
                    chain.add(at, 1, int(one.ends == two.begins), _places(one, two))
                    _total(totals, at, one, two, two.transactions)
                continue
            between = (one.number + 1, two.number - 1)
            here = oldest is not None and two.number - 1 >= oldest and epochs is found[-1]
            if here:
                text = "the log has them, the trace does not: `lakesync trace rebuild`"
                numbers.add((max(between[0], oldest or 0), between[1]), gap, 0, text, equal=False)
            else:
                notes.append(
                    f"epochs {between[0]} to {between[1]} are in neither the log nor the trace: only their totals are known"
                )
            _skipped(gtids, totals, between, one, two)
        _offsets(offsets, epochs)
    looked = [sides.equation() for sides in (gtids, numbers, chain, offsets, totals) if sides.looked]
    return looked, notes


def _transactions(gtids: Sides, epoch: Epoch) -> None:
    if epoch.totals.get("jump"):
        return  # another history: what is between was asked to be read anew
    # MariaDB may leave numbers out; more transactions than numbers there cannot be.
    left_out = epoch.totals.get("mariadb", 0) and epoch.transactions <= epoch.gtids
    gtids.add((epoch.number, epoch.number), epoch.transactions if left_out else epoch.gtids, epoch.transactions)


def _skipped(gtids: Sides, totals: Sides, between: tuple[int, int], one: Epoch, two: Epoch) -> None:
    """Across epochs that the trace does not have."""
    if not (one.totals and two.totals):
        return
    grown = two.totals["first_gtids"] - one.totals["last_gtids"]
    counted = two.totals["transactions"] - two.transactions - one.totals["transactions"]
    if two.totals.get("mariadb"):
        grown = max(0, min(grown, counted)) if grown >= counted else grown
    elif grown < 0:
        return  # another history, and which transactions are in it is not known
    gtids.add(between, grown, counted, "by running totals")
    totals.add(between, counted, counted)


def _total(totals: Sides, at: tuple[int, int], one: Epoch, two: Epoch, transactions: int) -> None:
    totals.add(at, two.totals.get("transactions", 0) - one.totals.get("transactions", 0), transactions)


def _places(one: Epoch, two: Epoch) -> str:
    """The two places, without the hashes."""
    if one.ends == two.begins:
        return ""
    return f"the one before ends in {one.ends.rpartition(' ')[0]}, it begins in {two.begins.rpartition(' ')[0]}"


def _offsets(offsets: Sides, epochs: Sequence[Epoch]) -> None:
    """Within a file, from the end of one transaction to that of a later one. At a file's head are events that belong to none, and MariaDB
    has such between transactions too: there bytes must not be more than what the offsets grow by, and where GTIDs were left out not so few
    that a transaction may have been."""
    anchor: Epoch | None = None
    for epoch in epochs:
        told = epoch.totals
        if not told or not told.get("last_whole"):
            continue
        if told.get("jump"):
            anchor = None
            continue
        begins, ends = epoch.begins.rpartition(" ")[0], epoch.ends.rpartition(" ")[0]
        inside = anchor is not None and anchor.ends.rpartition(" ")[0] == ends
        if anchor is not None and inside:
            before = anchor.totals
            grown = told["last_offset"] - before["last_offset"]
            counted = told["bytes"] - before["bytes"]
            # What is prepared is behind the offset already, and is counted once it is committed.
            if "last_prepared" in told and "last_prepared" in before:
                counted += told["last_prepared"] - before["last_prepared"]
            elif told["last_holes"] != before["last_holes"]:
                continue
            if told.get("mariadb") and counted <= grown:
                # Numbers that no transaction has have no bytes either, and what stands between transactions has no number.
                numbers = told["last_gtids"] - anchor.totals["last_gtids"]
                left_out = numbers - (told["transactions"] - anchor.totals["transactions"])
                grown = grown if left_out > 0 and grown - counted >= TRANSACTION_BYTES else counted
            offsets.add(
                (min(anchor.number + 1, epoch.number), epoch.number), grown, counted, f"in {ends.partition(' ')[2]}"
            )
        in_file = begins == ends and epoch.transactions > 0
        anchor = epoch if inside or in_file else None
