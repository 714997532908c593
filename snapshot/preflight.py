"""What `lakesync check` says of reading: whether the replica can be read from, and whether the binary log outlasts the reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from pymysql.connections import Connection

from cdc.config import PipelineConfig, SourceConfig, TableConfig
from cdc.errors import LakesyncError, SourceError
from cdc.source import catalogue
from cdc.source.connection import connect, place
from cdc.source.preflight import Finding
from cdc.source.server import Server
from snapshot import replica
from snapshot.retention import Kept, in_words

ROWS_S = 50_000
"""Rows a second that a reading is thought to make without a limit: a slow one."""


def findings(config: PipelineConfig, entries: Sequence[TableConfig]) -> list[Finding]:
    """Of the replica that rows are read from and those that are looked at, and of the time that a reading of all tables takes. Raises
    `SourceError` if the source cannot be asked."""
    with closing(connect(config.source, purpose="check")) as connection:
        found = [*_lasting(config, connection, entries)]
        if (read_from := config.snapshot.source) is not None:
            found += _replica(read_from, Server(connection))
    if config.snapshot.throttle.replica_lag is not None:
        for other in config.snapshot.throttle.replicas:
            found += _lag(other)
    return found


def _lasting(config: PipelineConfig, connection: Connection[Any], entries: Sequence[TableConfig]) -> Iterator[Finding]:
    kept = Kept.of(Server(connection))
    if kept.seconds is None:
        return
    chosen, _ = catalogue.select(entries, catalogue.tables(connection))
    rows = sum(catalogue.estimate_rows(connection, table) for table in chosen)
    pace = min(ROWS_S, config.snapshot.rows_per_second or ROWS_S)
    if rows / pace > kept.seconds:
        yield Finding(
            "warning",
            "snapshot",
            f"reading about {rows} rows takes {in_words(rows / pace)} at {pace} rows/s, and the source keeps its binary log for "
            f"{in_words(kept.seconds)}: if capture is down for so long meanwhile, all is read anew",
            kept.statement(rows / pace),
        )


def _replica(at: SourceConfig, source: Server) -> Iterator[Finding]:
    subject = "snapshot.source"
    try:
        with closing(connect(at, purpose="check")) as connection:
            server = Server(connection)
            identity = server.identity()
            if identity.uuid == source.identity().uuid:
                yield Finding("ok", subject, f"{place(at)} is the server that is followed")
                return
            replica.check(server, at, source.identity())
            if missing := source.lacks(server.shown(), identity):
                error = replica.errant(at, missing)
                yield Finding("error", subject, error.what, error.hint)
                return
            channels = server.replication()
    except LakesyncError as error:
        yield Finding("error", subject, f"{error.where}: {error.what}" if error.where else error.what, error.hint)
        return
    if any(not channel.runs for channel in channels):
        yield Finding("warning", subject, f"replication at {place(at)} stands still", "START REPLICA there")
    elif not channels:
        yield Finding(
            "warning", subject, f"{place(at)} replicates from no server that it names", "name a replica of the source"
        )
    else:
        behind = max(channel.behind_s or 0 for channel in channels)
        yield Finding("ok", subject, f"the replica {place(at)}, {behind} s behind")


def _lag(at: SourceConfig) -> Iterator[Finding]:
    subject = "snapshot.throttle.replicas"
    try:
        with closing(connect(at, purpose="check")) as connection:
            channels = Server(connection).replication()
    except SourceError as error:
        yield Finding("warning", subject, f"the lag of {place(at)} cannot be read: {error.what}", error.hint)
        return
    if not channels:
        yield Finding("warning", subject, f"{place(at)} replicates from no server", "name a replica")
