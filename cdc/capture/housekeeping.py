"""Between transactions: the pipeline file, requests, tables that come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdc import sharding
from cdc.capture import identity, joining
from cdc.capture.arriving import Shards
from cdc.capture.session import LOG, Session, is_out
from cdc.capture.tables import Joining, describe, options, same
from cdc.errors import ConfigError, LakesyncError, TableStoppedError
from cdc.names import TableName
from cdc.position import Gtid
from cdc.source.catalogue import Target
from cdc.state import Request

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
        self._shards = Shards(session)
        self._wanted: dict[TableName, Target] | None = None
        self._pattern_at = 0.0
        self._waiting: dict[TableName, LakesyncError] = {}
        """Captured tables whose entry is another one by now."""

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What the file says and is not done, each as `LakesyncError.to_dict`; gone once it is right, or done."""
        return [e.to_dict() for e in (*self._file.problems, *self._waiting.values(), *self._shards.problems)]

    def look(self, now_s: float) -> None:
        """Once, at `now_s` of the monotonic clock. Raises `ConfigError` for wrong names, the first time."""
        # Requests first: what was written into the file before one of them is then seen with it. And none of them before a file that
        # was changed just now is read.
        requests = self._state.open_requests()
        changed = self._file.reload()
        if changed or self._wanted is None or (now_s >= self._pattern_at and self._file.is_open):
            self._pattern_at = now_s + PATTERN_S
            self._look_for_tables()
        elif self._is_any_new():
            self._look_for_tables()  # what was seen some seconds ago may be gone
        if not self._file.settles:
            self._take(requests)
        self._compare()
        statuses = self._state.tables()
        captured = joining.captured(self._session)
        leaving = [t for t in captured if self._is_left_out(t)]
        for table, status in statuses.items():
            if self._file.landing(table) is None:
                self._joining.pop(table, None)
                if table not in captured and status.phase != "removed":
                    self._state.set_table(table, "removed", error=None)
        self._shards.ask_reads(now_s)
        if self._joining:
            self._session.collect()
        position = self._chain.position
        assert position is not None
        # Not yet after a failover: then the place is one in the other server's log.
        here = position.server_uuid == self._session.uuid
        ready = {t: j for t, j in self._joining.items() if here and not identity.before(position.end, j.end)}
        if (leaving or ready or (here and self._shards.due(position.end))) and position.whole:
            self._change(ready, leaving)
            self._shards.ask_reads(now_s)

    def _is_left_out(self, table: TableName) -> bool:
        """Whether the file does not mean this captured table any more."""
        entry = self._file.landing(table)
        if entry is None:
            return True
        # Of shards that the file does not name any more, by a pattern that fits their table's name and no table of the source.
        was_sharded = sharding.is_sharded(self._chain.states[table.id].options)
        return was_sharded and entry.into is None and table not in (self._wanted or {})

    def _look_for_tables(self) -> None:
        session = self._session
        self._wanted = self._file.wanted(session.connection, joining.known(session, self._state.tables()))
        self._shards.forget_refusals()

    def _is_any_new(self) -> bool:
        """Whether a shard would be looked at that was not there yet."""
        for table, target in (self._wanted or {}).items():
            captured = self._chain.states.get(table.id)
            if captured and target.shards is not None and self._shards.is_new_to(table, target, captured):
                return True
        return False

    def _compare(self) -> None:
        """What is wanted with what is captured."""
        statuses, states = self._state.tables(), self._chain.states
        wanted = self._wanted or {}
        for table, target in wanted.items():
            status, captured, waiting = statuses.get(table), states.get(table.id), self._joining.get(table)
            if waiting is not None:
                if not same(options(target), waiting.options):
                    self._join(table, target, waiting.requests)  # the file changed meanwhile
            elif (captured is None and not is_out(status)) or (
                # Taken out, and named again before the log said so.
                captured is not None and status is not None and status.phase == "removed"
            ):
                joining.join(self._session, table, target)
            elif captured is not None:
                self._compare_options(table, same(options(target), captured.options))
        self._waiting = {t: e for t, e in self._waiting.items() if t in wanted and t.id in states}
        sharded = {}
        for table in joining.captured(self._session):
            entry, captured = self._file.landing(table), states[table.id]
            if entry is not None and entry.into is not None and sharding.is_sharded(captured.options):
                sharded[table] = captured, wanted.get(table, Target(entry, ()))
        self._shards.keep(sharded)
        for table, (captured, target) in sharded.items():
            self._shards.compare(table, target, captured)

    def _join(self, table: TableName, target: Target, requests: Sequence[int]) -> None:
        self._joining.pop(table, None)
        joining.join(self._session, table, target)
        for number in requests:
            if table in self._joining:
                self._joining[table].requests.append(number)
            else:
                self._state.request_done(number, "not done: the table cannot be captured; `lakesync status` says why")

    def _compare_options(self, table: TableName, are_same: bool) -> None:
        if are_same:
            self._waiting.pop(table, None)
        elif table not in self._waiting:
            error = ConfigError(
                "its entry in the pipeline file changed, and is not applied yet",
                where=str(table),
                hint=f"`lakesync resync {table}` applies the changed entry; one of mode append, soft-delete or history may stop"
                " there, and says what to do with its folder",
            )
            self._waiting[table] = error
            LOG.warning("options-wait", table=str(table), hint=error.hint)

    def _take(self, requests: Sequence[Request]) -> None:
        """Do what was asked for, or begin to."""
        position = self._chain.position
        assert position is not None
        passing = []
        fresh = False
        for request in requests:
            if request.kind == "skip":
                gtid = Gtid.parse(request.argument)
                if gtid in position.gtids:
                    self._state.request_done(request.number, "not skipped: it was read before it was asked for")
                else:
                    passing.append(gtid)
            elif request.kind == "resync":
                table = TableName.parse(request.argument)
                if not fresh and table not in self._joining:
                    self._look_for_tables()
                    fresh = True
                self._resync(table, request.number)
        self._session.decoder.pass_over(passing)

    def _resync(self, table: TableName, number: int) -> None:
        entry, waiting = self._file.landing(table), self._joining.get(table)
        if entry is None:
            self._state.request_done(number, "not done: the pipeline file does not name the table")
        elif waiting is None:
            # One that does not exist is refused with the reason.
            target = (self._wanted or {}).get(table, Target(entry, () if entry.into is not None else None))
            joining.join(self._session, table, target, number)
        elif number not in waiting.requests:
            waiting.requests.append(number)

    def _change(self, ready: Mapping[TableName, Joining], leaving: list[TableName]) -> None:
        """Capture tables, and shards of tables, from here on, or no more."""
        session, chain = self._session, self._chain
        session.collect()
        if chain.has_rows:
            session.publish()
        session.settle()
        leaving = [t for t in leaving if t.id in chain.states]
        for table in leaving:
            self._state.set_table(table, "removed", error=None)
        ready = {t: j for t, j in ready.items() if self._is_as_it_was(t, j)}
        described = {t: (j.schema, j.options) for t, j in ready.items()}
        newest, position = chain.newest, chain.position
        assert newest is not None
        assert position is not None
        altered = {}
        if position.server_uuid == session.uuid:
            altered = self._shards.altered(position.end, newest.number + 1)
        # What is added anew says which shards it has by itself.
        altered = {t: o for t, o in altered.items() if t not in described and t not in leaving}
        if not (described or leaving or altered):
            return
        session.add(described, {}, {t: {"code": "removed"} for t in leaving}, altered)
        for table in ready:
            self._waiting.pop(table, None)
            del self._joining[table]

    def _is_as_it_was(self, table: TableName, waiting: Joining) -> bool:
        """Whether shards are still what they were when they were looked at; else they are looked at anew. One that is gone would be
        waited for: the stream has passed what took it away."""
        if not sharding.is_sharded(waiting.options):
            return True
        self._look_for_tables()
        target = (self._wanted or {}).get(table)
        if target is not None:
            try:
                if describe(self._session.connection, table, target) == (waiting.schema, waiting.options):
                    return True
            except TableStoppedError:
                pass
            self._join(table, target, waiting.requests)
            return False
        del self._joining[table]
        for number in waiting.requests:
            self._state.request_done(number, "not done: no shard of it exists any more")
        return False
