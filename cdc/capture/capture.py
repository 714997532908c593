"""Capture: the binary log's transactions, as epochs in the log. The only writer of the log, and its only checkpoint is there.

Start-up, in this order: fence the log, read its newest record, connect to the source, compare its history, go on. Whenever it is in
doubt what the log holds, it starts again from there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from cdc import faults
from cdc.capture import identity
from cdc.capture.base import Decoder
from cdc.capture.chain import Chain, Origin
from cdc.capture.reading import EventQueue
from cdc.capture.reference import ReferenceDecoder
from cdc.capture.tables import Joining, PipelineFile, describe
from cdc.clock import Clock
from cdc.config import PipelineConfig, TableConfig
from cdc.epoch import CommitRecord
from cdc.errors import (
    ConfigError,
    LakesyncError,
    LogFencedError,
    LogIndefiniteError,
    LogMovedError,
    SourceIdentityError,
    SourcePurgedError,
    TableStoppedError,
)
from cdc.journal import logger
from cdc.lake import Applied, applied_everywhere, manifest
from cdc.lake.deltalog import commits
from cdc.log.base import Log, LogWriter
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position
from cdc.schema import TableSchema
from cdc.source.connection import connect
from cdc.source.dump import BinlogStream, server_id
from cdc.source.server import Server
from cdc.state import Phase, Request, State, TableStatus

NODE = "capture"
LOG = logger(NODE)
AGAIN_S = 0.2
"""Before a new start after the log was not what it should be."""
WAIT_S = 0.1
"""Longest sleep without a look at the time and at whether to stop."""
BEAT_S = 1.0
HOUSEKEEP_S = 0.5
"""Between looks at requests and the pipeline file."""
PATTERN_S = 5.0
"""Between looks for new tables that patterns mean."""
FILE_BEGIN = 4
"""The first event's offset in a binary log file."""
KEPT: tuple[Phase, ...] = ("catching-up", "ready", "stopped")
"""Of tables that go on where the lake is, when a new log continues from it."""

Described = tuple[TableSchema, dict[str, Any]]


class Capture:
    """Follows one source into one log. `run` may be called again after it raised a retryable error."""

    def __init__(self, config: PipelineConfig, log: Log, state: State, clock: Clock) -> None:
        self._config = config
        self._log = log
        self._state = state
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; then the last whole transactions are written.

        Raises what ends it: `SourceUnavailableError` and `LogUnavailableError` (run again later), `LogFencedError` (a newer capture
        writes), `SourceIdentityError`, `SourcePurgedError`, `UnsupportedEventError`, `BinlogError`, and other errors of source and log.
        """
        writer: LogWriter | None = None
        while not stop.is_set():
            session = _Session(self._config, self._log, self._state, self._clock, writer)
            writer = None
            try:
                session.run(stop)
                return
            except (LogIndefiniteError, LogMovedError) as error:
                LOG.warning("starts-again", error=error.code, what=error.what, where=error.where)
                if faults.mutant("producer_reused") and isinstance(error, LogIndefiniteError):
                    writer = session.keep_writer()
            finally:
                session.close()
            stop.wait(AGAIN_S)


class _Session:
    """From one fencing of the log to the next."""

    def __init__(
        self, config: PipelineConfig, log: Log, state: State, clock: Clock, writer: LogWriter | None = None
    ) -> None:
        self._config = config
        self._log = log
        self._state = state
        self._clock = clock
        self._file = PipelineFile(config, state)
        self._joining: dict[TableName, Joining] = {}
        self._warned: set[TableName] = set()
        self._queue: EventQueue | None = None
        self._writer: LogWriter | None = None
        self._wanted: dict[TableName, TableConfig] | None = None
        self._linger_at: float | None = None
        self._idle_at = 0.0
        try:
            self._chain = self._open_log(writer)
        except BaseException:
            self.close()
            raise

    def _open_log(self, kept: LogWriter | None) -> Chain:
        early = self._log.newest() if faults.mutant("read_before_fence") else None
        faults.point("capture.before-fence")
        self._writer = writer = kept or self._log.writer()
        newest = self._log.newest() if kept else writer.newest
        if faults.mutant("read_before_fence"):
            newest = early
        return Chain(self._log, writer, newest, self._clock, self._config.capture.checkpoint_epochs)

    def keep_writer(self) -> LogWriter | None:
        """Only a mutant's: the writer, which `close` then leaves open."""
        writer, self._writer = self._writer, None
        return writer

    def close(self) -> None:
        """Leave the source and the log."""
        if self._queue is not None:
            self._queue.close()
            self._queue = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def run(self, stop: threading.Event) -> None:
        """Connect, compare, follow until `stop` is set."""
        with closing(connect(self._config.source, purpose=NODE)) as connection:
            self._connection = connection
            self._server = Server(connection)
            self._uuid = self._server.identity().uuid
            settings = self._server.settings()
            self._ignore_case = settings.get("lower_case_table_names", "0") != "0"
            self._start()
            self._recover()
            self._follow(stop)

    # -- start -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
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
        position = chain.position
        LOG.info(
            "following",
            server=self._uuid,
            position=str(position.end) if position else "",
            epoch=chain.newest.number if chain.newest else 0,
            tables=len(chain.states),
        )

    def _attach(self, position: Position) -> None:
        """Follow from `position`, if the server's history up to there is the one that was read."""
        identity.check_history(self._server, position, self._uuid)
        last = position.last
        if last is not None and last.gtid in self._server.purged():
            LOG.warning("fingerprint-purged", gtid=str(last.gtid))
            last = None
        if last is None or faults.mutant("no_fingerprint"):
            self._open_stream(position.gtids)
            return
        found = self._meet(position.gtids, last.gtid)
        if found != last:
            raise SourceIdentityError(
                f"the server's history is not the one that was read: expected {identity.describe(last)},"
                f" found {identity.describe(found)}",
                where=str(position.end),
                hint=f"was it reset or restored? Connect to the right server, or {identity.RESYNC_ALL}",
            )

    def _meet(self, gtids: GtidSet, last: Gtid) -> Fingerprint | None:
        """Follow from `gtids`, and read the last one of them again."""
        queue, decoder = self._open_stream(gtids.subtract(GtidSet({}).add(last)), last)
        return identity.meet(queue, decoder, last, self._server.binlog_end())

    def _open_stream(self, gtids: GtidSet, again: Gtid | None = None) -> tuple[EventQueue, Decoder]:
        if self._queue is not None:
            self._queue.close()
        config = self._config
        stream = BinlogStream(config.source, gtids, heartbeat_s=config.capture.heartbeat, own_id=server_id(config.name))
        self._queue = EventQueue(stream)
        self._decoder: Decoder = ReferenceDecoder(ignore_case=self._ignore_case)
        self._decoder.capture(self._chain.schemas)
        self._decoder.pass_over([again] if again else [])
        return self._queue, self._decoder

    def _fresh_position(self) -> Position:
        """Where the server is now; and follow from there."""
        position = self._server.position()
        # Transactions in flight may be before the end of the log, and are not in the set.
        position = replace(position, end=BinlogEnd(position.end.file, FILE_BEGIN))
        own = position.gtids.sids.get(self._uuid)
        last = Gtid(self._uuid, own[-1][1]) if own else None
        if last and last not in self._server.purged() and (found := self._meet(position.gtids, last)):
            return replace(position, last=found)
        self._open_stream(position.gtids)
        return position

    def _begin_log(self) -> None:
        """The first epoch of an empty log: where the lake is, or else where the server is."""
        applied = applied_everywhere(self._config.lake_root, self._config.name)
        statuses = self._state.tables()
        wanted = self._file.wanted(self._connection, self._known(statuses))
        wanted = {t: e for t, e in wanted.items() if not _is_out(statuses.get(t))}
        live = {t: a.position for t, a in applied.items() if t in wanted}
        if live:
            described = self._describe({t: wanted[t] for t in live})
            position = _lowest(live)
            self._attach(position)
        else:
            described = self._describe(wanted)
            position = self._fresh_position()
        origin = _highest(applied)
        self._chain.begin(position, origin)
        LOG.info("log-begun", number=origin.number + 1, position=str(position.end), lake_tables=len(live))
        kept: dict[TableName, Phase] = {t: s.phase for t, s in statuses.items() if t in live}
        for table in self._called_ready() - set(statuses):
            kept[table] = "ready"
        self._add(described, kept)

    def _known(self, statuses: Mapping[TableName, TableStatus]) -> set[TableName]:
        """Tables that need not exist any more to be named."""
        return {t for t, s in statuses.items() if s.phase != "new"} | set(self._chain.schemas)

    def _is_resynced_whole(self) -> bool:
        """Whether everything that would have a gap was asked to be bootstrapped anew."""
        asked = {r.argument for r in self._state.open_requests("resync")}
        statuses = self._state.tables()
        captured = set(self._chain.schemas) or set(applied_everywhere(self._config.lake_root, self._config.name))
        left = {t for t in captured if self._file.entry(t) and not _is_out(statuses.get(t))}
        return bool(left) and {str(t) for t in left} <= asked

    def _begin_anew(self) -> None:
        """Go on where the server is, with every table added anew."""
        statuses = self._state.tables()
        wanted = self._file.wanted(self._connection, self._known(statuses))
        asked = {r.argument for r in self._state.open_requests("resync")}
        described = self._describe({t: e for t, e in wanted.items() if str(t) in asked or not _is_out(statuses.get(t))})
        position = self._fresh_position()
        if self._chain.newest is None:
            self._chain.begin(position, _highest(applied_everywhere(self._config.lake_root, self._config.name)))
        else:
            self._chain.jump(position)
        gone = set(self._chain.schemas) - set(described)
        for table in gone:
            if self._file.entry(table) is None:
                self._state.set_table(table, "removed", error=None)
        # Not as removed: what the table has contains this epoch's position then, and not the changes before it.
        self._add(described, {}, {t: {"code": "gap"} for t in gone})

    def _recover(self) -> None:
        """Tables that the log has and the state folder lost: those that the lake shows to be ready are, the others begin anew."""
        statuses = self._state.tables()
        ready: set[TableName] | None = None
        for table, captured in self._chain.states.items():
            name = TableName.from_id(table)
            status = statuses.get(name)
            if status is not None and status.phase != "new":
                continue
            record = next(iter(self._log.records(after=captured.since - 1)), None)
            if record is not None and (record.number != captured.since or table not in record.added):
                record = None  # trimmed
            if ready is None:
                ready = self._ready_in_lake()
            entry = self._file.entry(name)
            if record is not None or name in ready:
                phase: Phase = "ready" if name in ready else "added"
                LOG.warning("state-lost", table=str(name), phase=phase)
                self._state.set_table(name, phase, added=record.id if record else None, error=None)
            elif entry is not None:
                self._join(name, entry)

    def _ready_in_lake(self) -> set[TableName]:
        """Tables that the newest manifest calls ready, and that were not added again since."""
        applied = applied_everywhere(self._config.lake_root, self._config.name)
        ready = set()
        for table in self._called_ready() & set(applied):
            captured, has = self._chain.states.get(table.id), applied[table]
            if captured and has.log == self._log.uuid and has.epoch.number >= captured.since:
                ready.add(table)
        return ready

    def _called_ready(self) -> set[TableName]:
        """Tables that the newest manifest calls ready, and that were not bootstrapped since: those may not be there yet."""
        root = self._config.lake_root
        found = manifest.read(root, self._config.name)
        ready = {t: v.commit for t, v in found.tables.items() if v.state == "ready"} if found else {}
        return {t for t, at in ready.items() if all(c.info["kind"] == "merge" for c in commits(root / t.folder, at))}

    # -- following ---------------------------------------------------------------------------------------------------

    def _follow(self, stop: threading.Event) -> None:
        assert self._queue is not None
        now_s = self._clock.monotonic()
        self._idle_at = now_s + self._config.capture.idle
        self._look_at = now_s + self._config.capture.look_back
        self._housekeep_at = self._beat_at = self._pattern_at = now_s
        self._first = True
        self._eager = faults.mutant("position_at_gtid") or faults.mutant("create_select_position")
        try:
            while not stop.is_set():
                self._tick()
                for event in self._queue.get(self._patience()):
                    self._decoder.feed(event)
                    faults.point("capture.event")
                    self._after_event()
        except LakesyncError as error:
            if isinstance(error, LogIndefiniteError | LogMovedError):
                raise
            # The log's errors leave nothing to be written; the source's leave what was read before them.
            self._last_epoch(error)
            raise
        self._last_epoch(None)

    def _last_epoch(self, error: LakesyncError | None) -> None:
        """Write the whole transactions that were read. Of two errors the first is told, unless a newer capture is the reason."""
        try:
            self._collect()
            if self._chain.has_news:
                self._publish()
            elif error is not None:
                self._chain.writer.check()
            self._beat(self._clock.monotonic())
        except LogFencedError:
            raise
        except LakesyncError:
            if error is None:
                raise

    def _patience(self) -> float:
        """Seconds until something is due."""
        if self._linger_at is None:
            return WAIT_S
        return max(0.0, min(WAIT_S, self._linger_at - self._clock.monotonic()))

    def _after_event(self) -> None:
        pending = self._decoder.pending_bytes
        if pending and self._linger_at is None:
            self._linger_at = self._clock.monotonic() + self._config.capture.linger
        if pending >= self._config.capture.epoch_size or (pending and self._eager):
            self._collect()
            if self._chain.has_rows or self._eager:
                self._publish()
        self._tick()

    def _tick(self) -> None:
        """Whatever is due."""
        now_s = self._clock.monotonic()
        if self._linger_at is not None and now_s >= self._linger_at:
            self._collect()
            if self._chain.has_rows:
                self._publish()
        if now_s >= self._idle_at:
            self._collect()
            if self._chain.has_news:
                self._publish()
            self._idle_at = now_s + self._config.capture.idle
        if now_s >= self._look_at:
            if not faults.mutant("never_looks_back"):
                self._chain.writer.check()
            self._look_at = now_s + self._config.capture.look_back
        if now_s >= self._housekeep_at and self._decoder.idle:
            self._housekeep(now_s)
            self._housekeep_at = now_s + HOUSEKEEP_S
        if now_s >= self._beat_at:
            self._beat(now_s)

    def _collect(self) -> None:
        """Take from the decoder what is whole."""
        self._linger_at = None
        clamped = self._chain.clamped
        self._chain.take(self._decoder.drain(), self._uuid)
        if self._chain.clamped and not clamped:
            LOG.warning("commit-time-behind", by_ms=self._chain.clamped_ms, gtid=str(self._chain.clamped_gtid))

    def _publish(
        self,
        added: Mapping[TableName, Described] | None = None,
        removed: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> CommitRecord:
        chain = self._chain
        # Said before the epoch says it: between the two, a restart meets the same transaction again.
        for table, error in chain.stopped.items():
            LOG.error("table-stopped", table=str(table), error=error.code, what=error.what, where=error.where)
            self._state.stop_table(table, NODE, error)
        try:
            record = chain.publish(added, removed)
        except LogIndefiniteError:
            if not faults.mutant("no_read_back"):
                raise
            chain.writer.close()
            self._writer = chain.writer = self._log.writer()
            record = chain.publish(added, removed)
        self._idle_at = self._clock.monotonic() + self._config.capture.idle
        LOG.debug("epoch-written", epoch=record.number, transactions=record.transactions, tables=len(record.tables))
        if record.skipped:
            for request in self._state.open_requests("skip"):
                if request.argument in record.skipped:
                    LOG.warning("transaction-skipped", gtid=request.argument, epoch=record.number)
                    self._state.request_done(request.number, f"passed over in epoch {record.id}")
        return record

    # -- tables and requests -----------------------------------------------------------------------------------------

    def _housekeep(self, now_s: float) -> None:
        """Between transactions: the pipeline file, requests, tables that come and go."""
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
            if table not in captured and not _is_out(status):
                self._join(table, entry)
            elif table in captured and status is not None and status.phase == "removed":
                self._join(table, entry)  # taken out, and named again before the log said so
            elif table in captured:
                self._compare_options(table, entry)
        leaving = [t for t in captured if self._file.entry(t) is None]
        for table, status in statuses.items():
            if self._file.entry(table) is None:
                self._joining.pop(table, None)
                if table not in captured and status.phase != "removed":
                    self._state.set_table(table, "removed", error=None)
        if self._joining:
            self._collect()
        position = self._chain.position
        assert position is not None
        here = (
            position.server_uuid == self._uuid
        )  # not yet after a failover: then the place is one in the other server's log
        ready = {t: j for t, j in self._joining.items() if here and not identity.before(position.end, j.end)}
        if leaving or ready:
            self._change(ready, leaving)

    def _look_for_tables(self, statuses: Mapping[TableName, TableStatus]) -> None:
        try:
            self._wanted = self._file.wanted(self._connection, self._known(statuses))
        except ConfigError as error:
            if self._first:
                raise
            LOG.error("tables-refused", what=error.what, where=error.where, hint=error.hint)
            self._state.record_error(NODE, error)
            self._wanted = self._wanted or {}
        self._first = False

    def _compare_options(self, table: TableName, entry: TableConfig) -> None:
        options = {"mode": entry.mode, "types": dict(entry.types)}
        if options != self._chain.states[table.id].options and table not in self._warned:
            self._warned.add(table)
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
                    self._join(table, entry, request.number)
                elif request.number not in joining.requests:
                    joining.requests.append(request.number)
        self._decoder.pass_over(passing)

    def _join(self, table: TableName, entry: TableConfig, request: int | None = None) -> None:
        """Read a table's columns, to capture it once the stream has passed what made them."""
        try:
            schema, options = describe(self._connection, table, entry)
        except TableStoppedError as error:
            self._refuse(table, error)
            if request is not None:
                self._state.request_done(request, f"not done: {error.what}")
            return
        requests = [] if request is None else [request]
        self._joining[table] = Joining(schema, options, self._server.binlog_end(), requests)

    def _refuse(self, table: TableName, error: TableStoppedError) -> None:
        LOG.error("table-refused", table=str(table), what=error.what, hint=error.hint)
        if table.id not in self._chain.states or self._state.table(table) is None:
            self._state.stop_table(table, NODE, error)

    def _describe(self, entries: Mapping[TableName, TableConfig]) -> dict[TableName, Described]:
        """Tables to be captured at once; those that cannot be are stopped."""
        found = {}
        for table, entry in entries.items():
            try:
                found[table] = describe(self._connection, table, entry)
            except TableStoppedError as error:
                self._refuse(table, error)
        return found

    def _change(self, ready: Mapping[TableName, Joining], leaving: list[TableName]) -> None:
        """Capture tables from here on, or no more."""
        self._collect()
        if self._chain.has_rows:
            self._publish()
        leaving = [t for t in leaving if t.id in self._chain.states]
        for table in leaving:
            self._state.set_table(table, "removed", error=None)
        described = {t: (j.schema, j.options) for t, j in ready.items()}
        self._add(described, {}, {t: {"code": "removed"} for t in leaving})
        for table in ready:
            del self._joining[table]

    def _add(
        self,
        described: Mapping[TableName, Described],
        kept: Mapping[TableName, Phase],
        removed: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> None:
        """Write the epoch from whose end on these tables are captured. Those in `kept` keep a phase of theirs that says that the lake
        has them."""
        record = self._publish(described, removed)
        for table in described:
            phase = kept.get(table)
            if phase in KEPT:
                self._state.set_table(table, phase, added=record.id)
            else:
                self._state.set_table(
                    table,
                    "added",
                    added=record.id,
                    e0=None,
                    e0_position=None,
                    mark=None,
                    mark_server=None,
                    rows_read=0,
                    rows_estimate=0,
                    error=None,
                )
            self._warned.discard(table)
            LOG.info("table-added", table=str(table), epoch=record.number)
        for request in self._state.open_requests("resync"):
            joining = self._joining.get(TableName.parse(request.argument))
            asked = joining is None or request.number in joining.requests
            if asked and TableName.parse(request.argument) in described:
                self._state.request_done(request.number, f"captured anew from epoch {record.id} on")
        self._decoder.capture(self._chain.schemas)

    # -- signs of life -----------------------------------------------------------------------------------------------

    def _beat(self, now_s: float) -> None:
        self._beat_at = now_s + BEAT_S
        chain, position = self._chain, self._chain.position
        assert position is not None
        end = self._server.binlog_end()
        behind = position.server_uuid != self._uuid or identity.before(position.end, end)
        lag_ms = max(0, self._clock.now_us() - chain.raw_us) // 1000 if behind and chain.raw_us else 0
        self._state.beat(
            NODE,
            {
                "epoch": chain.newest.number if chain.newest else 0,
                "position": str(position.end),
                "source_end": str(end),
                "lag_ms": lag_ms,
                "rows": chain.rows,
                "transactions": chain.transactions,
                "bytes": chain.bytes,
                "tables": len(chain.states),
                "clamped": chain.clamped,
            },
        )


def _is_out(status: TableStatus | None) -> bool:
    """Whether capture stopped the table, so that only a resync brings it back."""
    return status is not None and status.phase == "stopped" and (status.error or {}).get("node") == NODE


def _lowest(positions: Mapping[TableName, Position]) -> Position:
    """The one that all others contain."""
    table, lowest = min(positions.items(), key=lambda item: len(item[1].gtids))
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
