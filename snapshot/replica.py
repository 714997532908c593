"""A replica that rows are read from: whether it gets to a position, and whether the server that capture reads has all that it shows."""

from __future__ import annotations

import time
from collections.abc import Callable

from cdc.config import SourceConfig
from cdc.errors import SourceError, SourceUnavailableError
from cdc.journal import logger
from cdc.names import TableName
from cdc.position import GtidSet, Position
from cdc.source.connection import place
from cdc.source.server import Channel, Server, ServerIdentity

LOG = logger("snapshot")

TELL_S = 10.0
"""How often it is said that a replica is waited for."""
STANDS_S = 30.0
"""A replica that does not replicate is waited for so long: it may be starting."""
SOURCE_S = 20.0
"""What a replica shows, the server that capture reads must have within this time: it is there before, or, if capture reads a replica itself,
soon after."""
POLL_S = 0.05
SHOWN = 200
"""Of a set of transactions so many characters are shown."""


def check(server: Server, at: SourceConfig, source: ServerIdentity, table: TableName | None = None) -> None:
    """Raise `SourceUnavailableError` for a server that is no replica to read from, or not for this table."""
    identity = server.identity()
    if identity.is_mariadb != source.is_mariadb:
        raise SourceUnavailableError(
            "the server that rows are read from is no replica of the one that is followed: the one is MariaDB, the other MySQL",
            where=_where(at),
            hint=_ELSE,
        )
    channels = _channels(server)
    if identity.is_mariadb:
        # MariaDB's GTIDs are numbers: a server of another history has them as well. So it must say whose replica it is.
        if not channels:
            raise _no_replica(at)
        if all(c.source_id != source.server_id for c in channels) and not server.logs_replicated():
            raise SourceUnavailableError(
                "the replica that rows are read from follows the server that capture reads by way of others, and does not log what it replicates:"
                " what it shows cannot be told",
                where=_where(at),
                hint="start the replica with --log-slave-updates, or " + _ELSE,
            )
    if table is not None:
        for channel in channels or ():
            _check_filters(channel, at, table)


def _check_filters(channel: Channel, at: SourceConfig, table: TableName) -> None:
    """A replica that leaves out rows has executed their transactions nevertheless."""
    for name, value in channel.filters.items():
        if "_Do_" in name or table.schema.lower() in value.lower() or "%" in value.partition(".")[0]:
            raise SourceUnavailableError(
                f"the replica that rows are read from leaves out some of what it replicates ({name} = {value}): rows may be missing",
                where=_where(at),
                hint=_ELSE,
            )


def _channels(server: Server) -> list[Channel] | None:
    """None where the account may not see them."""
    try:
        return server.replication()
    except SourceUnavailableError:
        raise
    except SourceError:
        return None


def _no_replica(at: SourceConfig) -> SourceUnavailableError:
    return SourceUnavailableError(
        "it replicates from no server (or the account may not see it: GRANT REPLICATION CLIENT), and does not have what capture has read",
        where=_where(at),
        hint=_ELSE,
    )


def _where(at: SourceConfig) -> str:
    return f"snapshot.source, {place(at)}"


class Waiting:
    """The wait of a replica for a position: what to say of it, and when to give up for now."""

    def __init__(self, server: Server, at: SourceConfig, table: TableName, position: Position) -> None:
        self._server = server
        self._at = at
        self._table = table
        self._position = position
        self._began_s = self._told_s = self._moved_s = time.monotonic()
        self._missing: GtidSet | None = None

    def look(self) -> None:
        """The position was not reached in another second. Raises `SourceUnavailableError` once that will not change by waiting."""
        now_s = time.monotonic()
        missing = self._position.gtids.subtract(self._server.applied())
        if missing != self._missing:
            self._missing, self._moved_s = missing, now_s
        channels = _channels(self._server)
        if now_s - self._moved_s >= STANDS_S and (channels is None or not any(c.runs for c in channels)):
            if not channels:
                raise _no_replica(self._at)
            errors = sorted({c.error for c in channels if c.error})
            what = "is stopped" if not errors else f"has stopped with error {', '.join(map(str, errors))}"
            raise SourceUnavailableError(
                f"replication {what}: it lacks {_short(missing)}",
                where=_where(self._at),
                hint=f"START REPLICA there (SHOW REPLICA STATUS says why it stopped), or {_ELSE}",
            )
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            behind = [c.behind_s for c in channels or () if c.behind_s is not None]
            LOG.warning(
                "waits-for-replica",
                table=str(self._table),
                server=place(self._at),
                lacks=_short(missing),
                behind_s=max(behind, default=None),
                waited_s=round(now_s - self._began_s),
            )


_ELSE = "name a replica of the server under source: in snapshot.source, or leave that out"


def wait_for_source(
    source: Server, at: SourceConfig, shown: GtidSet, by: ServerIdentity, check_stop: Callable[[], None]
) -> None:
    """Wait until the binary log of the server that capture reads holds all that the replica `by` has shown.

    Else the end of that log would not be behind what was read. Raises `SourceUnavailableError` for transactions that never were on the
    source: what was read may hold rows that no stream will ever correct.
    """
    deadline_s = time.monotonic() + SOURCE_S
    while missing := source.lacks(shown, by):
        check_stop()
        if time.monotonic() >= deadline_s:
            raise errant(at, missing)
        time.sleep(POLL_S)


def errant(at: SourceConfig, gtids: GtidSet) -> SourceUnavailableError:
    """The error of a replica that shows these, which the server that capture reads does not have."""
    return SourceUnavailableError(
        f"it has transactions that the server which capture reads does not have: {_short(gtids)}",
        where=_where(at),
        hint="rows were written on the replica itself, or it follows another server: repair it, or " + _ELSE,
    )


def was_interrupted(error: SourceError) -> bool:
    """Whether a statement was ended by the server, for its length, or by somebody else."""
    return any(f"error {code})" in error.what for code in (1317, 1927, 1969, 3024, 3169))


def _short(gtids: GtidSet) -> str:
    text = str(gtids)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
