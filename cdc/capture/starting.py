"""How a capture starts: where it goes on, and whether the source's history up to there is the one that was read.

In this order: the log was fenced and its newest record read (`Session`); now compare the history, then stand in the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cdc import faults, sharding
from cdc.capture import adopting, identity, joining
from cdc.capture.base import Stop
from cdc.capture.chain import Origin
from cdc.capture.session import LOG, Session, is_out
from cdc.errors import SourceIdentityError, SourcePurgedError, TableStoppedError
from cdc.lake import Applied, applied_everywhere, manifest, open_folder
from cdc.lake.deltalog import commits
from cdc.lake.info import FOLLOWING
from cdc.names import TableName
from cdc.position import Fingerprint, Gtid, GtidSet, Position
from cdc.source.catalogue import Target
from cdc.state import Phase


def start(session: Session) -> None:
    """Stand in the source's stream where the log ends; in an empty log write the first epoch.

    Raises `SourceIdentityError` or `SourcePurgedError` where that is not possible, unless everything was asked to be read anew.
    """
    _Start(session).run()


class _Start:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._config = session.config
        self._state = session.state
        self._chain = session.chain
        self._file = session.file
        self._stops: list[Stop] = []
        """Found before the position where the log ends: in XA transactions that are prepared only, and come again."""

    def run(self) -> None:
        chain = self._chain
        try:
            if chain.newest is None:
                self._begin_log()
            else:
                self._attach(chain.newest.end)
        except (SourceIdentityError, SourcePurgedError) as error:
            if not self._is_resynced_whole():
                raise
            LOG.warning("begins-anew", error=error.code, what=error.what)
            self._begin_anew()
        self._recover()
        if left := chain.left:
            LOG.warning("shards-were-dropped", tables=[str(table) for table in left])
            self._session.publish(altered=left)
        position = chain.position
        LOG.info(
            "following",
            server=self._session.uuid,
            position=str(position.end) if position else "",
            epoch=chain.newest.number if chain.newest else 0,
            tables=len(chain.states),
        )

    # -- the source --------------------------------------------------------------------------------------------------

    def _attach(self, position: Position) -> None:
        """Follow from `position`, if the server's history up to there is the one that was read."""
        session = self._session
        server = session.server
        identity.check_history(server, position, session.uuid)
        last = position.last
        if last is not None and last.gtid in server.purged():
            LOG.warning("fingerprint-purged", gtid=str(last.gtid))
            last = None
        if last is None or faults.mutant("no_fingerprint"):
            session.follow(position.gtids)
        elif (found := self._meet(position.gtids, last.gtid)) != last:
            raise self._strange(position, last, found)
        partial, stops = position.partial, self._stops
        if partial is not None and partial.gtid in session.asked_to_skip():
            # It is passed over whole, with what was read of it; that was counted by the parts.
            session.decoder.counted(partial)
        elif partial is not None:
            LOG.info("goes-on-inside", gtid=str(partial.gtid), row_events=partial.row_events)
            if not identity.rejoin(session.queue, session.decoder, partial, server.binlog_end(), stops):
                raise self._strange(position, partial, None)
            if position.server_uuid != session.uuid:
                self._compare_part(position, partial)
        self._chain.stop(stops)

    def _compare_part(self, position: Position, partial: Fingerprint) -> None:
        """That the row events that are left out hold the changes that the log has. Another server may have put the same rows into
        other events: larger ones, if it was told so."""
        session = self._session
        known, found = self._chain.changes_of(session.log, partial.gtid), session.decoder.resumed_changes
        if known != found:
            raise SourceIdentityError(
                f"the first {partial.row_events} row events of {partial.gtid} hold {found} changes here,"
                f" and held {known} on the server from which they were read",
                where=str(position.end),
                hint="connect to that server again until the transaction is read (the two differ in binlog_row_event_max_size);"
                f" or `lakesync skip {partial.gtid}`, then `lakesync resync` the tables that it wrote to",
            )

    def _strange(self, position: Position, expected: Fingerprint, found: Fingerprint | None) -> SourceIdentityError:
        return SourceIdentityError(
            f"the server's history is not the one that was read: expected {identity.describe(expected)},"
            f" found {identity.describe(found)}",
            where=str(position.end),
            hint=f"was it reset or restored? Connect to the right server, or {identity.RESYNC_ALL}",
        )

    def _meet(self, gtids: GtidSet, last: Gtid) -> Fingerprint | None:
        """Follow from `gtids`, and read the last one of them again."""
        session = self._session
        session.follow(gtids.without(last), last)
        found = identity.meet(session.queue, session.decoder, last, session.server.binlog_end(), self._stops)
        if found is not None and session.is_mariadb:
            # What it logged of a transaction when it was killed stays in the file's end, where it cannot be read. A stream from the
            # position itself begins behind it.
            session.follow(gtids)
        return found

    def _fresh_position(self, position: Position | None = None) -> Position:
        """Where the server is now, unless this one is to be begun at; and follow from there."""
        session = self._session
        position = position or session.server.position()
        last = session.server.newest(position.gtids)
        if last and last not in session.server.purged() and (found := self._meet(position.gtids, last)):
            return replace(position, last=found)
        session.follow(position.gtids)
        return position

    # -- the log -----------------------------------------------------------------------------------------------------

    def _begin_log(self) -> None:
        """The first epoch of an empty log: where the lake is, or a copy that is to be adopted, or else where the server is."""
        session = self._session
        applied = applied_everywhere(self._config.lake_root, self._config.name)
        statuses = self._state.tables()
        wanted = self._file.wanted(session.connection, joining.known(session, statuses))
        wanted = {t: target for t, target in wanted.items() if not is_out(statuses.get(t))}
        called = {t: phase for t, phase in self._called().items() if t not in statuses}
        kept: dict[TableName, Phase] = {t: s.phase for t, s in statuses.items() if t in applied} | called
        wanted = self._without_half_filled(wanted, kept)
        live = {t: a.position for t, a in applied.items() if t in wanted}
        if live:
            described = joining.describe_all(session, {t: wanted[t] for t in live})
            # Which shards the lake has, and in whole, the log knew: all of them are read.
            number = _highest(applied).number + 1
            described = {t: (schema, sharding.since(options, number)) for t, (schema, options) in described.items()}
            # Tables are added only where a transaction ends. What the lake has of one in part, the merger knows to be applied.
            position = replace(_lowest(live), partial=None)
            self._attach(position)
        else:
            begins, refused = adopting.beginning(session, wanted)
            for table, error in refused.items():
                joining.refuse(session, table, error)
                del wanted[table]
            described = joining.describe_all(session, begins.tables if begins else wanted)
            position = self._fresh_position(begins.position if begins else None)
        origin = _highest(applied)
        self._chain.begin(position, origin)
        LOG.info("log-begun", number=origin.number + 1, position=str(position.end), lake_tables=len(live))
        session.add(described, {t: phase for t, phase in kept.items() if t in live})

    def _without_half_filled(
        self, wanted: Mapping[TableName, Target], phases: Mapping[TableName, Phase]
    ) -> dict[TableName, Target]:
        """These tables, but for those to which changes are appended and whose first rows are there in part: which ones, the log knew."""
        found = {}
        for table, target in wanted.items():
            if target.entry.backfill and phases.get(table) == "reading":
                error = TableStoppedError(
                    "the log was lost while the table's first rows were read, and some of them may be there",
                    where=str(table),
                    hint=f"move its folder away from the lake, then `lakesync resync {table}`: it begins anew",
                )
                joining.refuse(self._session, table, error)
            else:
                found[table] = target
        return found

    def _is_resynced_whole(self) -> bool:
        """Whether everything that would have a gap was asked to be bootstrapped anew."""
        asked = {r.argument for r in self._state.open_requests("resync")}
        statuses = self._state.tables()
        captured = joining.captured(self._session) or set(applied_everywhere(self._config.lake_root, self._config.name))
        left = {t for t in captured if self._file.landing(t) and not is_out(statuses.get(t))}
        return bool(left) and {str(t) for t in left} <= asked

    def _begin_anew(self) -> None:
        """Go on where the server is, with every table added anew."""
        session = self._session
        statuses = self._state.tables()
        wanted = self._file.wanted(session.connection, joining.known(session, statuses))
        asked = {r.argument for r in self._state.open_requests("resync")}
        described = joining.describe_all(
            session, {t: target for t, target in wanted.items() if str(t) in asked or not is_out(statuses.get(t))}
        )
        position = self._fresh_position()
        if self._chain.newest is None:
            self._chain.begin(position, _highest(applied_everywhere(self._config.lake_root, self._config.name)))
        else:
            self._chain.jump(position)
        gone = joining.captured(session) - set(described)
        for table in gone:
            if self._file.landing(table) is None:
                self._state.set_table(table, "removed", error=None)
        # Not as removed: what the table has contains this epoch's position then, and not the changes before it.
        session.add(described, {}, {t: {"code": "gap"} for t in gone})

    # -- the state folder --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Tables that the log has and the state folder lost: those that the lake shows to be ready are, or to be read in windows; the
        others begin anew."""
        statuses = self._state.tables()
        found: dict[TableName, Phase] | None = None
        for table, captured in self._chain.states.items():
            name = TableName.from_id(table)
            status = statuses.get(name)
            if status is not None and status.phase != "new":
                continue
            record = next(iter(self._session.log.records(after=captured.since - 1)), None)
            if record is not None and (record.number != captured.since or table not in record.added):
                record = None  # trimmed
            if found is None:
                found = self._in_lake()
            if record is not None or name in found:
                phase: Phase = found.get(name, "added")
                LOG.warning("state-lost", table=str(name), phase=phase)
                self._state.set_table(name, phase, added=record.id if record else None, error=None)
            else:
                self._begin_table(name)

    def _begin_table(self, table: TableName) -> None:
        """Add a table anew, of which neither log nor lake say how far it is."""
        session = self._session
        if self._file.landing(table) is None:
            return
        wanted = self._file.wanted(session.connection, joining.known(session, self._state.tables()))
        if target := wanted.get(table):
            joining.join(session, table, target)

    def _in_lake(self) -> dict[TableName, Phase]:
        """Tables that the newest manifest calls ready, or read in windows, and that were not added again since."""
        applied = applied_everywhere(self._config.lake_root, self._config.name)
        found = {}
        for table, phase in self._called().items():
            captured, has = self._chain.states.get(table.id), applied.get(table)
            if captured and has and has.log == self._session.log.uuid and has.epoch.number >= captured.since:
                found[table] = phase
        return found

    def _called(self) -> dict[TableName, Phase]:
        """Tables that the newest manifest calls ready, or read in windows, and that were not bootstrapped since: those may not be there
        yet."""
        lake = open_folder(self._config.lake_root)
        newest = manifest.read(self._config.lake_root, self._config.name)
        found: dict[TableName, Phase] = {}
        for table, version in newest.tables.items() if newest else ():
            if version.state not in ("ready", "reading"):
                continue
            if all(c.info["kind"] in FOLLOWING for c in commits(lake.folder(table.folder), version.commit)):
                found[table] = "ready" if version.state == "ready" else "reading"
        return found


def _lowest(positions: Mapping[TableName, Position]) -> Position:
    """The one that all others contain."""
    table, lowest = min(positions.items(), key=lambda item: item[1].reach)
    for other, position in positions.items():
        if not position.contains(lowest):
            raise SourceIdentityError(
                f"the lake's tables {table} and {other} come from different histories",
                where=str(lowest.end),
                hint=identity.RESYNC_ALL,
            )
    return lowest


def _highest(applied: Mapping[TableName, Applied]) -> Origin:
    """What a new log continues from."""
    found = applied.values()
    return Origin(
        max((a.epoch.number for a in found), default=0),
        max((a.ts_ms for a in found), default=0),
        max((a.raw_us for a in found), default=0),
        max((a.seq for a in found), default=0),
    )
