"""Whether the server still has the history that was read from it: on every connect, before anything is taken from the stream.

A GTID set is no identity (invariant I6): after a reset, or a restore, the same numbers name other transactions, and the server goes
on without an error. So the last transaction before the position is asked for again, and compared.
"""

from __future__ import annotations

from cdc.capture.base import Decoder, Stop
from cdc.capture.reading import StreamQueue
from cdc.errors import SourceIdentityError, SourcePurgedError
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position
from cdc.source.server import Server

EXECUTED_WITHIN_S = 15.0
"""A transaction can be sent long before the server counts it as executed: as long as a semi-synchronous replica takes to answer."""
_POLL_S = 0.2
_SHOWN = 200
RESYNC_ALL = "bootstrap anew: `lakesync resync --all`, then run again"


def check_history(server: Server, position: Position, server_uuid: str) -> None:
    """That the server has every transaction before `position`, and still logs every one after it.

    Raises `SourceIdentityError` or `SourcePurgedError`, with the GTIDs.
    """
    missing = position.gtids.subtract(server.executed())
    if missing:
        # In flight, they are in the log at least.
        reset = position.server_uuid == server_uuid and before(server.binlog_end(), position.end)
        if reset or not server.wait_executed(position.gtids, EXECUTED_WITHIN_S):
            raise SourceIdentityError(
                f"the server does not have transactions that were read before: {shown(missing)}",
                where=str(position.end),
                hint=f"was it reset, restored, or failed over with a loss? Connect to the right server, or {RESYNC_ALL}",
            )
    purged = server.purged().subtract(position.gtids)
    if purged:
        raise SourcePurgedError(
            f"the binary log no longer holds transactions that were not read yet: {shown(purged)}",
            where=str(position.end),
            hint=f"{RESYNC_ALL}; and keep the log longer (binlog_expire_logs_seconds)",
        )


def before(one: BinlogEnd, other: BinlogEnd) -> bool:
    """Whether `one` lies before `other`; so do all places of a log that changed its name."""
    try:
        return one < other
    except ValueError:
        return True


def shown(gtids: GtidSet) -> str:
    """The set, shortened for an error."""
    text = str(gtids)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(gtids)} transactions)"


def meet(queue: StreamQueue, decoder: Decoder, gtid: Gtid, end: BinlogEnd, stops: list[Stop]) -> Fingerprint | None:
    """The fingerprint of `gtid`, which is expected to be the first transaction of the stream, and is told to be passed over.

    None if another one comes first, or none up to `end`, the end of the server's log: the stream cannot be gone on with then.
    Otherwise it stands after the transaction, and all of that is drained. Tables that an XA transaction stops which is still prepared,
    and so comes before, are added to `stops`.
    """
    while True:
        for piece in queue.get(_POLL_S, most=1):
            taken = decoder.feed(piece)
            while True:
                drained = decoder.drain()
                stops += drained.stops
                if drained.whole:
                    found = Fingerprint(Gtid.parse(drained.gtids[0]), int(drained.commit_us[0]), drained.row_events[0])
                    return found if found.gtid == gtid else None
                if decoder.idle and drained.end.file and not before(drained.end, end):
                    return None
                if taken:
                    break
                taken = decoder.feed(b"")


def rejoin(queue: StreamQueue, decoder: Decoder, partial: Fingerprint, end: BinlogEnd, stops: list[Stop]) -> bool:
    """Stand inside the transaction of which a part was read before: it is expected to come first. Whether it came, up to `end`, the
    end of the server's log. `stops` as for `meet`.

    Raises `SourceIdentityError` if it is not the one that was read.
    """
    decoder.resume(partial)
    taken = decoder.feed(b"")
    while True:
        while not taken:
            stops += decoder.drain().stops
            if decoder.open_gtid == str(partial.gtid):
                return True
            taken = decoder.feed(b"")
        drained = decoder.drain()
        stops += drained.stops
        if decoder.idle and drained.end.file and not before(drained.end, end):
            return False
        for piece in queue.get(_POLL_S, most=1):
            taken = decoder.feed(piece)


def describe(fingerprint: Fingerprint | None) -> str:
    """For errors."""
    if fingerprint is None:
        return "nothing"
    return f"{fingerprint.gtid} (committed at {fingerprint.commit_us} µs, {fingerprint.row_events} row events)"
