"""What a capture holds from one fencing of the log to the next: the log's chain, the source's stream, the tables; and what it does to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pymysql.connections import Connection

from cdc import faults
from cdc.capture.base import Decoder
from cdc.capture.chain import Chain
from cdc.capture.native import NativeDecoder
from cdc.capture.reading import StreamQueue
from cdc.capture.tables import Joining, PipelineFile, describe
from cdc.clock import Clock
from cdc.config import PipelineConfig, TableConfig
from cdc.epoch import CommitRecord
from cdc.errors import LogIndefiniteError, TableStoppedError
from cdc.journal import logger
from cdc.log.base import Log, LogWriter
from cdc.names import TableName
from cdc.position import Gtid, GtidSet
from cdc.schema import TableSchema
from cdc.source.dump import BinlogStream, server_id
from cdc.source.server import Server
from cdc.state import Phase, State, TableStatus

NODE = "capture"
LOG = logger(NODE)
KEPT: tuple[Phase, ...] = ("catching-up", "ready", "stopped")
"""Of tables that go on where the lake is, when a new log continues from it."""

Described = tuple[TableSchema, dict[str, Any]]


class Session:
    """Opening it fences the log, then reads its newest record. `writer` is only a mutant's: one that was left open."""

    connection: Connection[Any]
    server: Server
    uuid: str
    decoder: Decoder
    queue: StreamQueue
    """These are there once `follow` has opened the stream, and those above once the server is reached."""

    def __init__(
        self, config: PipelineConfig, log: Log, state: State, clock: Clock, writer: LogWriter | None = None
    ) -> None:
        self.config = config
        self.log = log
        self.state = state
        self.clock = clock
        self.file = PipelineFile(config, state)
        self.joining: dict[TableName, Joining] = {}
        self.warned: set[TableName] = set()
        """Tables of which it was said that their changed options wait for a resync."""
        self.linger_at: float | None = None
        """When what is pending is due, by the monotonic clock; None if nothing is."""
        self.idle_at = 0.0
        """When an epoch without rows is due."""
        self._stream: StreamQueue | None = None
        self._writer: LogWriter | None = None
        try:
            self.chain = self._open_log(writer)
        except BaseException:
            self.close()
            raise

    def _open_log(self, kept: LogWriter | None) -> Chain:
        early = self.log.newest() if faults.mutant("read_before_fence") else None
        faults.point("capture.before-fence")
        self._writer = writer = kept or self.log.writer()
        newest = self.log.newest() if kept else writer.newest
        if faults.mutant("read_before_fence"):
            newest = early
        return Chain(self.log, writer, newest, self.clock, self.config.capture.checkpoint_epochs)

    def keep_writer(self) -> LogWriter | None:
        """Only a mutant's: the writer, which `close` then leaves open."""
        writer, self._writer = self._writer, None
        return writer

    def close(self) -> None:
        """Leave the source and the log."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if hasattr(self, "chain"):
            self.chain.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -- the source --------------------------------------------------------------------------------------------------

    def reach(self, connection: Connection[Any]) -> None:
        """Work with this connection's server."""
        self.connection = connection
        self.server = Server(connection)
        identity = self.server.identity()
        self.uuid, self._mariadb = identity.uuid, identity.is_mariadb
        self._ignore_case = self.server.settings().get("lower_case_table_names", "0") != "0"

    def follow(self, gtids: GtidSet, again: Gtid | None = None) -> None:
        """Open the stream of everything that is not in `gtids`, and a decoder for it that passes `again` over."""
        if self._stream is not None:
            self._stream.close()
        config = self.config
        stream = BinlogStream(config.source, gtids, heartbeat_s=config.capture.heartbeat, own_id=server_id(config.name))
        self._stream = self.queue = StreamQueue(stream)
        # Mistakes that tests plant end a transaction early, and are to be seen at once.
        size = 1 if self.is_eager else config.capture.epoch_size
        self.decoder = NativeDecoder(
            mariadb=self._mariadb,
            drain_bytes=size,
            part_bytes=config.capture.part_size,
            ignore_case=self._ignore_case,
            refusal=stream.refusal,
        )
        self.decoder.capture(self.chain.schemas)
        self.decoder.pass_over([again] if again else [])

    @property
    def is_mariadb(self) -> bool:
        """Whether the server is one of MariaDB's."""
        return self._mariadb

    @property
    def is_eager(self) -> bool:
        """Only with a mutant: whether every drain is published."""
        return faults.mutant("position_at_gtid") or faults.mutant("create_select_position")

    # -- epochs ------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Take from the decoder what is whole."""
        self.linger_at = None
        clamped = self.chain.clamped
        self.chain.take(self.decoder.drain(), self.uuid)
        for table in self.chain.stopped:
            self.decoder.stop(table)
        if self.chain.clamped and not clamped:
            LOG.warning("commit-time-behind", by_ms=self.chain.clamped_ms, gtid=self.chain.clamped_gtid)

    def publish(
        self,
        added: Mapping[TableName, Described] | None = None,
        removed: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> CommitRecord:
        """Write the next epoch, as `Chain.publish`."""
        self.settle()
        chain = self.chain
        # Said before the epoch says it: between the two, a restart meets the same transaction again.
        for table, error in chain.stopped.items():
            LOG.error("table-stopped", table=str(table), error=error.code, what=error.what, where=error.where)
            self.state.stop_table(table, NODE, error)
        try:
            record = chain.publish(added, removed)
        except LogIndefiniteError:
            if not faults.mutant("no_read_back"):
                raise
            chain.writer.close()
            self._writer = chain.writer = self.log.writer()
            record = chain.publish(added, removed)
        self._tell(record)
        if record.skipped:
            for request in self.state.open_requests("skip"):
                if request.argument in record.skipped:
                    LOG.warning("transaction-skipped", gtid=request.argument, epoch=record.number)
                    self.state.request_done(request.number, f"passed over in epoch {record.id}")
        return record

    def publish_behind(self) -> None:
        """The same in a thread, as `Chain.publish_behind`, unless something is to be told before the epoch or after it."""
        if self.chain.is_plain:
            self.settle()
            self.chain.publish_behind()
        else:
            self.publish()

    def settle(self) -> None:
        """Wait for what is written behind, as `Chain.settle`."""
        if record := self.chain.settle():
            self._tell(record)

    def _tell(self, record: CommitRecord) -> None:
        self.idle_at = self.clock.monotonic() + self.config.capture.idle
        LOG.debug("epoch-written", epoch=record.number, transactions=record.transactions, tables=len(record.tables))

    # -- tables ------------------------------------------------------------------------------------------------------

    def known(self, statuses: Mapping[TableName, TableStatus]) -> set[TableName]:
        """Tables that need not exist any more to be named."""
        return {t for t, s in statuses.items() if s.phase != "new"} | set(self.chain.schemas)

    def asked_to_skip(self) -> Collection[Gtid]:
        """Transactions that `lakesync skip` names."""
        return {Gtid.parse(r.argument) for r in self.state.open_requests("skip")}

    def join(self, table: TableName, entry: TableConfig, request: int | None = None) -> None:
        """Read a table's columns, to capture it once the stream has passed what made them."""
        try:
            schema, options = describe(self.connection, table, entry)
        except TableStoppedError as error:
            self._refuse(table, error)
            if request is not None:
                self.state.request_done(request, f"not done: {error.what}")
            return
        requests = [] if request is None else [request]
        self.joining[table] = Joining(schema, options, self.server.binlog_end(), requests)

    def _refuse(self, table: TableName, error: TableStoppedError) -> None:
        LOG.error("table-refused", table=str(table), what=error.what, hint=error.hint)
        if table.id not in self.chain.states or self.state.table(table) is None:
            self.state.stop_table(table, NODE, error)

    def describe(self, entries: Mapping[TableName, TableConfig]) -> dict[TableName, Described]:
        """Tables to be captured at once; those that cannot be are stopped."""
        found = {}
        for table, entry in entries.items():
            try:
                found[table] = describe(self.connection, table, entry)
            except TableStoppedError as error:
                self._refuse(table, error)
        return found

    def add(
        self,
        described: Mapping[TableName, Described],
        kept: Mapping[TableName, Phase],
        removed: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> None:
        """Write the epoch from whose end on these tables are captured. Those in `kept` keep a phase of theirs that says that the lake
        has them."""
        record = self.publish(described, removed)
        for table in described:
            phase = kept.get(table)
            if phase in KEPT:
                self.state.set_table(table, phase, added=record.id)
            else:
                self.state.set_table(
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
            self.warned.discard(table)
            LOG.info("table-added", table=str(table), epoch=record.number)
        for request in self.state.open_requests("resync"):
            joining = self.joining.get(TableName.parse(request.argument))
            asked = joining is None or request.number in joining.requests
            if asked and TableName.parse(request.argument) in described:
                self.state.request_done(request.number, f"captured anew from epoch {record.id} on")
        self.decoder.capture(self.chain.schemas)


def is_out(status: TableStatus | None) -> bool:
    """Whether capture stopped the table, so that only a resync brings it back."""
    return status is not None and status.phase == "stopped" and (status.error or {}).get("node") == NODE
