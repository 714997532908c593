"""How far a server is in time: what it, or the server that it replicates from, committed up to a moment is before a place in its binary log.

A transaction gets its commit time under the lock under which it is written to the binary log, and that lock is taken to ask for the log's
end. So whatever a server that writes for itself committed by the time that its clock shows is before the end that is asked for after that.

A replica is as far as what it has applied of each of its sources. That it shows no more says nothing: it may be stopped, or behind, or hear
nothing. What it heard is told by the commit times of what it applied, and by its silence: a replica that hears nothing for
`replica_net_timeout`, not even that there is nothing, takes its connection for lost. As long as it does not, nothing has come for so long because
there was nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cdc.epoch import CommitRecord
from cdc.errors import SourceError
from cdc.position import BinlogEnd, Gtid
from cdc.source.server import Channel, Server, ServerIdentity

LATE_S = 60
"""A replica that is so far behind is said to be."""
_WHOLE_S = 1_000_000
"""MariaDB's commit times are whole seconds, and so is how far a replica says that it is behind."""


@dataclass(frozen=True)
class Progress:
    """A server as it was at one look. `end` was asked for after `clock_us` and `channels`; `silence_s` as of `Server.silence_s`."""

    identity: ServerIdentity
    clock_us: int
    end: BinlogEnd
    channels: tuple[Channel, ...]
    silence_s: float
    blind: bool = False
    """Whether it is, or was, a replica, and the account may not ask how it replicates."""

    @property
    def server(self) -> str:
        """Its UUID."""
        return self.identity.uuid

    @property
    def behind(self) -> str:
        """Why it may lack what its own source has; empty if it does not, as far as it knows, or is no replica."""
        return self.trouble or next(
            (
                f"the source is a replica that has not applied yet what it received{_of(channel)}"
                for channel in self.channels
                if channel.received != channel.applied
            ),
            "",
        )

    @property
    def trouble(self) -> str:
        """The same, if it is for longer than moments."""
        if self.blind:
            return (
                "the source is a replica, or was one, and the account may not see which: GRANT REPLICA MONITOR ON *.*"
            )
        for channel in self.channels:
            if not channel.runs:
                error = f", with error {channel.error}" if channel.error else ""
                verb = "applies nothing" if channel.receives else "receives nothing"
                return f"the source is a replica that {verb}{error}{_of(channel)}"
            if channel.received != channel.applied and (channel.behind_s or 0) >= LATE_S:
                return f"the source is a replica that is {channel.behind_s} s behind{_of(channel)}"
        return ""


def _of(channel: Channel) -> str:
    return f" (channel {channel.name})" if channel.name else ""


def look(server: Server) -> Progress:
    """How far it is. Needs REPLICATION CLIENT, on MariaDB BINLOG MONITOR and REPLICA MONITOR. Raises `SourceError`."""
    identity, clock_us, blind = server.identity(), server.clock_us(), False
    try:
        channels = tuple(server.replication())
    except SourceError as error:
        if error.retryable:
            raise
        channels, blind = (), server.ever_replicated()
    silence_s = server.silence_s() if channels else 0.0
    return Progress(identity, clock_us, server.binlog_end(), channels, silence_s, blind)


@dataclass(frozen=True)
class Mark:
    """Everything committed up to `at_us` (µs since 1970, by the source's clock) is before `end` in the binary log of `server`."""

    server: str
    end: BinlogEnd
    at_us: int


class Hearing:
    """What of a server's looks, one after the other, and of the commit records that were read meanwhile, follows for times. For one thread."""

    def __init__(self) -> None:
        self._heard: dict[str, int] = {}
        """The commit time of the last transaction of each server, as far as it ended an epoch, µs; under "" of the last one of all others."""
        self._silent: dict[str, tuple[str, int]] = {}
        """Of each channel up to where it has received, and since when no more, by the server's clock."""
        self._newest: CommitRecord | None = None

    def read(self, records: Iterable[CommitRecord]) -> None:
        """Take note of epochs, in order; all of them before the next look."""
        for record in records:
            self._newest = record
            if record.whole and (last := record.end.last):
                self._heard[origin(last.gtid)] = last.commit_us

    def marks(self, progress: Progress) -> list[Mark]:
        """What follows from another look."""
        found = []
        clock_us, own = progress.clock_us, _own(progress.identity)
        self._listen(progress)
        at_us: int | None = clock_us
        if progress.blind:
            at_us = None
        elif progress.channels:
            times = [self._told(progress, channel, own) for channel in progress.channels]
            at_us = min((t for t in times if t is not None), default=None) if None not in times else None
        if at_us is not None:
            found.append(Mark(progress.server, progress.end, min(at_us, clock_us)))
        if (passed := self._passed(progress, own)) is not None:
            found.append(passed)
        return found

    def _listen(self, progress: Progress) -> None:
        names = {channel.name for channel in progress.channels}
        self._silent = {name: since for name, since in self._silent.items() if name in names}
        for channel in progress.channels:
            known = self._silent.get(channel.name)
            if not channel.runs:
                self._silent.pop(channel.name, None)
            elif known is None or known[0] != channel.received or known[1] > progress.clock_us:
                self._silent[channel.name] = channel.received, progress.clock_us

    def _told(self, progress: Progress, channel: Channel, own: str) -> int | None:
        """Up to when everything of a channel was applied, µs; None where that is not known."""
        times = []
        silence_us = int(progress.silence_s * 1_000_000)
        since = self._silent.get(channel.name)
        silent = since is not None and progress.clock_us - since[1] >= silence_us
        if silent and channel.runs and channel.received == channel.applied:
            times.append(progress.clock_us - silence_us)
        if not channel.ordered and channel.received != channel.applied:
            pass  # what was committed before the last one may be yet to come
        elif len(progress.channels) == 1:
            others = [heard for server, heard in self._heard.items() if server != own]
            times += [max(others) - 1] if others else []
        else:
            name = str(channel.source_id) if progress.identity.is_mariadb else channel.source_uuid
            times += [self._heard[name] - 1] if name in self._heard else []
        if progress.identity.is_mariadb and channel.behind_s is not None:
            # A session may say what time it is.
            limit = progress.clock_us - channel.behind_s * 1_000_000 - _WHOLE_S
            times = [min(time, limit) for time in times]
        return max(times, default=None)

    def _passed(self, progress: Progress, own: str) -> Mark | None:
        """While the log catches up: what was committed before the newest transaction that is in it. Not where several servers' times mix, and
        not MariaDB's, which a session may choose."""
        record = self._newest
        if record is None or not record.whole or record.end.last is None or record.end.server_uuid != progress.server:
            return None
        if progress.blind or progress.identity.is_mariadb or len(progress.channels) > 1:
            return None
        if not all(channel.ordered for channel in progress.channels):
            return None
        if (origin(record.end.last.gtid) == own) == bool(progress.channels):
            return None
        return Mark(progress.server, record.end.end, min(record.end.last.commit_us - 1, progress.clock_us))


def origin(gtid: Gtid) -> str:
    """What names the server that wrote a transaction: its UUID, on MariaDB its id."""
    return gtid.sid.partition("-")[2] if gtid.is_mariadb else gtid.sid.partition(":")[0]


def _own(identity: ServerIdentity) -> str:
    return str(identity.server_id) if identity.is_mariadb else identity.uuid
