"""Shards that come to a table that is captured, and leave it: which they are, and the reads that bring their rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cdc import sharding
from cdc.capture import identity
from cdc.capture.session import LOG, NODE, Session
from cdc.capture.tables import clash, own
from cdc.epoch import TableState
from cdc.errors import LakesyncError, TableStoppedError
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.reads import OPEN, ReadSpec
from cdc.schema import TableSchema
from cdc.source import catalogue
from cdc.source.catalogue import Target

AGAIN_S = 5.0
"""Between looks at reads of shards that are none any more."""


@dataclass
class _Changing:
    """What is about to change of one table."""

    coming: dict[TableName, BinlogEnd] = field(default_factory=dict)
    """Shards, and what the stream has to pass before they are captured."""
    missing: dict[TableName, BinlogEnd] = field(default_factory=dict)
    """Shards that are captured and do not exist, and where the stream has said so, if it says so."""
    refused: dict[TableName, TableStoppedError] = field(default_factory=dict)
    """Those that cannot be captured. The table goes on without them."""


class Shards:
    """Of every sharded table that is captured: compares, and says what is due. One for a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changing: dict[TableName, _Changing] = {}
        self._said: dict[TableName, str] = {}
        self._read_for: dict[str, Mapping[str, Any]] | None = None
        self._read_at = 0.0

    @property
    def problems(self) -> list[LakesyncError]:
        """Why shards that the file names are not captured."""
        return [error for changing in self._changing.values() for error in changing.refused.values()]

    def is_new_to(self, table: TableName, target: Target, captured: TableState) -> bool:
        """Whether there is a shard that `compare` would look at."""
        changing = self._changing.get(table, _Changing())
        seen = {*sharding.shards(captured.options), *changing.coming, *changing.refused}
        return any(shard not in seen for shard in (*(target.shards or ()), *([table] if target.clash else [])))

    def forget_refusals(self) -> None:
        """Look at the shards that were refused again: they may be alike by now, or gone."""
        for changing in self._changing.values():
            changing.refused.clear()

    def keep(self, tables: Collection[TableName]) -> None:
        """Forget what was about other tables."""
        for table in self._changing.keys() - set(tables):
            del self._changing[table]

    def compare(self, table: TableName, target: Target, captured: TableState) -> None:
        """Look at the shards that the table does not have yet."""
        changing = self._changing.setdefault(table, _Changing())
        has = sharding.shards(captured.options)
        wanted = set(target.shards or ())
        for shard in changing.coming.keys() - wanted | changing.coming.keys() & has.keys():
            del changing.coming[shard]
        for shard in changing.refused.keys() - wanted - {table}:
            del changing.refused[shard]
        schema = sharding.own(TableSchema.from_dict(captured.schema), captured.options)
        for shard in changing.missing.keys() & wanted | changing.missing.keys() - has.keys():
            del changing.missing[shard]
        for shard in has.keys() - wanted - changing.missing.keys():
            if catalogue.is_gone(self._session.connection, shard):
                changing.missing[shard] = self._session.server.binlog_end()
        if target.clash:
            self._refuse(table, table, clash(table, target.entry))
        for shard in target.shards or ():
            if shard in has or shard in changing.coming or shard in changing.refused:
                continue
            try:
                self._check(table, shard, target, schema)
            except TableStoppedError as error:
                self._refuse(table, shard, error)
            else:
                self._said.pop(shard, None)
                changing.coming[shard] = self._session.server.binlog_end()

    def _check(self, table: TableName, shard: TableName, target: Target, schema: TableSchema) -> None:
        found = own(self._session.connection, shard, target.entry)
        if said := catalogue.unlike(schema, found):
            raise TableStoppedError(
                f"shard {shard} is not like the others: {said}",
                where=str(table),
                hint="make it alike by ALTER TABLE, then it joins; or give it an entry of its own;"
                f" or alter all of them, then `lakesync resync {table}`",
            )

    def _refuse(self, table: TableName, shard: TableName, error: TableStoppedError) -> None:
        self._changing[table].refused[shard] = error
        if self._said.get(shard) != error.what:
            self._said[shard] = error.what
            LOG.error("shard-refused", table=str(table), shard=str(shard), what=error.what, hint=error.hint)
            self._session.state.record_error(NODE, error, table)

    def due(self, end: BinlogEnd) -> bool:
        """Whether the stream, which is at `end`, has passed what made a shard; or one is not meant, or not there, any more."""
        return bool(self._arrived(end) or self._left(end))

    def _arrived(self, end: BinlogEnd) -> dict[TableName, list[TableName]]:
        found = {
            table: [shard for shard, at in changing.coming.items() if not identity.before(end, at)]
            for table, changing in self._changing.items()
        }
        return {table: shards for table, shards in found.items() if shards}

    def _left(self, end: BinlogEnd) -> dict[TableName, list[TableName]]:
        """Shards that the file names no more, or for another table; and those that do not exist, though the stream has passed what would
        have said that they were dropped (it was not logged, or it was, and a kill came before the log had that it is no shard any more)."""
        found: dict[TableName, list[TableName]] = {}
        for table, changing in self._changing.items():
            if captured := self._session.chain.states.get(table.id):
                for shard in sharding.shards(captured.options):
                    entry, missing = self._session.file.entry(shard), changing.missing.get(shard)
                    passed = missing is not None and not identity.before(end, missing)
                    if entry is None or entry.target != table or passed:
                        found.setdefault(table, []).append(shard)
        return found

    def altered(self, end: BinlogEnd, number: int) -> dict[TableName, dict[str, Any]]:
        """The new options of tables, as of the epoch of this number; what `due` says is done then."""
        arrived, left = self._arrived(end), self._left(end)
        arrived = {table: self._unchanged(table, shards) for table, shards in arrived.items()}
        found = {}
        for table in sorted(arrived.keys() | left.keys()):
            options = self._session.chain.states[table.id].options
            shards = {s: o for s, o in options["shards"].items() if TableName.from_id(s) not in left.get(table, ())}
            for shard in arrived.get(table, ()):
                shards[shard.id] = {"since": number}
                LOG.info("shard-added", table=str(table), shard=str(shard), epoch=number)
            for shard in left.get(table, ()):
                LOG.warning(
                    "shard-left", table=str(table), shard=str(shard), epoch=number, rows="what is in the lake stays"
                )
            if shards.keys() != options["shards"].keys():
                found[table] = options | {"shards": dict(sorted(shards.items()))}
        return found

    def _unchanged(self, table: TableName, shards: list[TableName]) -> list[TableName]:
        """Those that are as they were when they were looked at. What happened to them since and before the stream's place is passed
        already; what happens after it the stream tells."""
        found = []
        captured, changing = self._session.chain.states[table.id], self._changing[table]
        schema = sharding.own(TableSchema.from_dict(captured.schema), captured.options)
        for shard in shards:
            del changing.coming[shard]
            entry = self._session.file.entry(shard)
            if entry is not None and entry.target == table:
                try:
                    self._check(table, shard, Target(entry), schema)
                except TableStoppedError:
                    continue  # the next look says it
                found.append(shard)
        return found

    # -- reads -------------------------------------------------------------------------------------------------------

    def ask_reads(self, now_s: float) -> None:
        """Have the rows read of every shard that came to a table that was there, unless that was asked for; and no more what was the
        first reading of a shard that is none any more, or of a table that was added anew since. What is written in the log says which: a
        kill before it was asked for changes nothing."""
        session, log = self._session, self._session.log.uuid
        states = session.chain.states
        current: dict[str, Mapping[str, Any]] = {
            t: {"since": s.since} | s.options.get("shards", {}) for t, s in states.items()
        }
        if current == self._read_for and now_s < self._read_at:
            return
        self._read_at = now_s + AGAIN_S
        meant = set()
        for table, captured in states.items():
            name = TableName.from_id(table)
            parts = sharding.shards(captured.options) if sharding.is_sharded(captured.options) else {name: None}
            for part, since in parts.items():
                job = sharding.job(log, table, captured, part)
                meant.add(job)
                if since is not None:
                    session.state.ask_read(part, name, ReadSpec(), "shard", job)
        for read in session.state.reads(open_only=True):
            if read.why in ("shard", "backfill", "adopt") and read.job not in meant:
                LOG.info("read-cancelled", job=read.job, read=str(read.table), table=str(read.target))
                session.state.set_read(read.job, phase="cancelled", when=OPEN)
        self._read_for = current
