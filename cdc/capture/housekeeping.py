"""Between transactions: the pipeline file, requests, tables that come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdc.capture import identity
from cdc.capture.session import LOG, NODE, Session, is_out
from cdc.capture.tables import Joining, options
from cdc.config import TableConfig
from cdc.errors import ConfigError
from cdc.names import TableName
from cdc.position import Gtid
from cdc.state import Request, TableStatus

PATTERN_S = 5.0
"""Between looks for new tables that patterns mean."""


class Housekeeping:
    """Looks, and acts on what it sees. Nothing that it does happens inside a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._state = session.state
        self._chain = session.chain
        self._file = session.file
        self._joining = session.joining
        self._wanted: dict[TableName, TableConfig] | None = None
        self._pattern_at = 0.0
        self._first = True

    def look(self, now_s: float) -> None:
        """Once, at `now_s` of the monotonic clock. Raises `ConfigError` for wrong names, the first time."""
        session = self._session
        # Requests first: what was written into the file before one of them is then seen with it.
        requests = self._state.open_requests()
        changed = self._file.reload()
        statuses = self._state.tables()
        if changed or self._wanted is None or (now_s >= self._pattern_at and self._file.has_patterns):
            self._pattern_at = now_s + PATTERN_S
            self._look_for_tables(statuses)
        self._take(requests)
        captured = self._chain.schemas
        for table, entry in (self._wanted or {}).items():
            status = statuses.get(table)
            if table in self._joining:
                continue
            if table not in captured and not is_out(status):
                session.join(table, entry)
            elif table in captured and status is not None and status.phase == "removed":
                session.join(table, entry)  # taken out, and named again before the log said so
            elif table in captured:
                self._compare_options(table, entry)
        leaving = [t for t in captured if self._file.entry(t) is None]
        for table, status in statuses.items():
            if self._file.entry(table) is None:
                self._joining.pop(table, None)
                if table not in captured and status.phase != "removed":
                    self._state.set_table(table, "removed", error=None)
        if self._joining:
            session.collect()
        position = self._chain.position
        assert position is not None
        # Not yet after a failover: then the place is one in the other server's log.
        here = position.server_uuid == session.uuid
        ready = {t: j for t, j in self._joining.items() if here and not identity.before(position.end, j.end)}
        if (leaving or ready) and position.whole:
            self._change(ready, leaving)

    def _look_for_tables(self, statuses: Mapping[TableName, TableStatus]) -> None:
        try:
            self._wanted = self._file.wanted(self._session.connection, self._session.known(statuses))
        except ConfigError as error:
            if self._first:
                raise
            LOG.error("tables-refused", what=error.what, where=error.where, hint=error.hint)
            self._state.record_error(NODE, error)
            self._wanted = self._wanted or {}
        self._first = False

    def _compare_options(self, table: TableName, entry: TableConfig) -> None:
        if options(entry) != self._chain.states[table.id].options and table not in self._session.warned:
            self._session.warned.add(table)
            LOG.warning("options-wait", table=str(table), hint=f"`lakesync resync {table}` applies the changed entry")

    def _take(self, requests: Sequence[Request]) -> None:
        """Do what was asked for, or begin to."""
        position = self._chain.position
        assert position is not None
        passing = []
        for request in requests:
            if request.kind == "skip":
                gtid = Gtid.parse(request.argument)
                if gtid in position.gtids:
                    self._state.request_done(request.number, "not skipped: it was read before it was asked for")
                else:
                    passing.append(gtid)
            elif request.kind == "resync":
                table = TableName.parse(request.argument)
                entry = self._file.entry(table)
                joining = self._joining.get(table)
                if entry is None:
                    self._state.request_done(request.number, "not done: the pipeline file does not name the table")
                elif joining is None:
                    self._session.join(table, entry, request.number)
                elif request.number not in joining.requests:
                    joining.requests.append(request.number)
        self._session.decoder.pass_over(passing)

    def _change(self, ready: Mapping[TableName, Joining], leaving: list[TableName]) -> None:
        """Capture tables from here on, or no more."""
        session = self._session
        session.collect()
        if self._chain.has_rows:
            session.publish()
        leaving = [t for t in leaving if t.id in self._chain.states]
        for table in leaving:
            self._state.set_table(table, "removed", error=None)
        described = {t: (j.schema, j.options) for t, j in ready.items()}
        session.add(described, {}, {t: {"code": "removed"} for t in leaving})
        for table in ready:
            del self._joining[table]
