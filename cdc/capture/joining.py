"""Tables on their way into the log: read what they are, and capture them once the stream has passed what made them so."""

from __future__ import annotations

from collections.abc import Mapping

from cdc.capture import adopting
from cdc.capture.session import LOG, NODE, Described, Session
from cdc.capture.tables import Joining, describe
from cdc.errors import TableStoppedError
from cdc.names import TableName
from cdc.source.catalogue import Target
from cdc.state import TableStatus


def known(session: Session, statuses: Mapping[TableName, TableStatus]) -> set[TableName]:
    """Tables, of the source or the lake, that need not exist any more to be named."""
    return {t for t, s in statuses.items() if s.phase != "new"} | set(session.chain.schemas) | captured(session)


def captured(session: Session) -> set[TableName]:
    """The lake's tables that are captured."""
    return set(map(TableName.from_id, session.chain.states))


def join(session: Session, table: TableName, target: Target, request: int | None = None) -> None:
    """Read a table's columns, to capture it once the stream has passed what made them."""
    try:
        schema, options = describe(session.connection, table, target)
        options = adopting.settled(session.config, session.server, table, options)
    except TableStoppedError as error:
        refuse(session, table, error)
        if request is not None:
            session.state.request_done(request, f"not done: {error.what}")
        return
    requests = [] if request is None else [request]
    session.joining[table] = Joining(schema, options, session.server.binlog_end(), requests)


def refuse(session: Session, table: TableName, error: TableStoppedError) -> None:
    """It cannot be captured, or not anew: then it goes on as it is."""
    LOG.error("table-refused", table=str(table), what=error.what, hint=error.hint)
    if table.id not in session.chain.states or session.state.table(table) is None:
        session.state.stop_table(table, NODE, error)


def describe_all(session: Session, wanted: Mapping[TableName, Target]) -> dict[TableName, Described]:
    """Tables to be captured at once; those that cannot be are stopped."""
    found = {}
    for table, target in wanted.items():
        try:
            schema, options = describe(session.connection, table, target)
            found[table] = schema, adopting.settled(session.config, session.server, table, options)
        except TableStoppedError as error:
            refuse(session, table, error)
    return found
