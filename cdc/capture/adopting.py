"""Where capture begins for tables that are in the lake already, written by someone else as of a position (`from_position`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cdc.capture import identity
from cdc.capture.session import LOG, Session
from cdc.config import PipelineConfig
from cdc.errors import LakeError, LakeOccupiedError, TableStoppedError
from cdc.lake import LakeTable
from cdc.names import TableName
from cdc.position import GtidSet, Position
from cdc.source.catalogue import Target
from cdc.source.server import Server

_AGAIN = (
    "copy the table again, with the position of that copy; then `lakesync remove {0}` and add it with the new position"
)
_WITHOUT = "or add it without a position, its folder moved away: lakesync reads it itself"


class Beginning(NamedTuple):
    """Where a new log begins."""

    position: Position
    """Of the copies the earliest one. Its place in the binary log is before it, and need not be at it."""
    tables: Mapping[TableName, Target]
    """Those that the lake has from there on. Others, and tables without a copy, are added once the stream has passed what made them."""


def settled(config: PipelineConfig, server: Server, table: TableName, options: dict[str, Any]) -> dict[str, Any]:
    """A table's options without its position, where the lake's table is this pipeline's by now: it counts the first time only.

    Raises `TableStoppedError` for a position that the server never was at.
    """
    text = options.get("from_position")
    if not text:
        return options
    if _is_ours(config, table):
        return {name: value for name, value in options.items() if name != "from_position"}
    check_executed(server, table, GtidSet.parse(text))
    return options


def check_executed(server: Server, table: TableName, position: GtidSet) -> None:
    """Raise `TableStoppedError` for a position that has transactions which the server does not have."""
    if unknown := position.subtract(server.executed()):
        raise TableStoppedError(
            f"from_position has transactions that the server does not have: {identity.shown(unknown)}",
            where=str(table),
            hint=f"{_AGAIN.format(table)}, from the server that lakesync follows or one that has no writes of its own",
        )


def check_logged(server: Server, table: TableName, position: GtidSet) -> None:
    """Raise `TableStoppedError` where the binary log no longer has all that is behind the position."""
    if gone := server.purged().subtract(position):
        raise TableStoppedError(
            f"the binary log no longer holds transactions that are behind from_position: {identity.shown(gone)}",
            where=str(table),
            hint=f"{_AGAIN.format(table)}; {_WITHOUT}",
        )


def _is_ours(config: PipelineConfig, table: TableName) -> bool:
    try:
        return LakeTable(config.lake_root, table, config.name).load() is not None
    except LakeOccupiedError:
        return False
    except LakeError as error:
        # The merger meets it too, and says so of the table.
        LOG.warning("lake-not-read", table=str(table), error=error.code, what=error.what)
        return False


def beginning(
    session: Session, wanted: Mapping[TableName, Target]
) -> tuple[Beginning | None, Mapping[TableName, TableStoppedError]]:
    """Where a log begins of which tables are to be adopted; None if none is. And the tables whose position cannot be begun at."""
    found: dict[TableName, GtidSet] = {}
    refused: dict[TableName, TableStoppedError] = {}
    for table, target in wanted.items():
        text = target.entry.from_position
        if text is None or _is_ours(session.config, table):
            continue
        position = GtidSet.parse(text)
        try:
            check_executed(session.server, table, position)
            check_logged(session.server, table, position)
        except TableStoppedError as error:
            refused[table] = error
        else:
            found[table] = position
    if not found:
        return None, refused
    lowest = min(found.values(), key=len)
    tables = {table: wanted[table] for table, position in found.items() if position.contains(lowest)}
    return Beginning(Position(lowest, session.uuid, session.server.binlog_begin()), tables), refused
