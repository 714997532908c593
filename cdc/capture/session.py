"""What a capture holds from one fencing of the log to the next: the log's chain, the source's stream, the tables; and what it does to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pymysql.connections import Connection

from cdc import faults, sharding
from cdc.capture.base import Decoder
from cdc.capture.chain import Chain
from cdc.capture.native import NativeDecoder
from cdc.capture.reading import StreamQueue
from cdc.capture.tables import Joining, PipelineFile
from cdc.capture.windows import OpenWindows
from cdc.clock import Clock
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord
from cdc.errors import LogIndefiniteError
from cdc.journal import logger
from cdc.log.base import Log, LogWriter
from cdc.names import TableName
from cdc.position import Gtid, GtidSet
from cdc.schema import TableSchema
from cdc.source.dump import BinlogStream, server_id
from cdc.source.server import Server
from cdc.state import Phase, State, TableStatus
from cdc.window import Windows

NODE = "capture"
LOG = logger(NODE)
KEPT: tuple[Phase, ...] = ("reading", "catching-up", "ready", "stopped")
"""Of tables that go on where the lake is, when a new log continues from it."""

Described = tuple[TableSchema, dict[str, Any]]


class Session:
    """Opening it fences the log, then reads its newest record. `windows` are those of the readers in this process; what was read for an
    earlier session is cancelled. `writer` is only a mutant's: one that was left open."""

    connection: Connection[Any]
    server: Server
    uuid: str
    decoder: Decoder
    queue: StreamQueue
    """These are there once `follow` has opened the stream, and those above once the server is reached."""

    def __init__(
        self,
        config: PipelineConfig,
        log: Log,
        state: State,
        clock: Clock,
        file: PipelineFile,
        windows: Windows | None = None,
        writer: LogWriter | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.state = state
        self.clock = clock
        self.file = file
        self.joining: dict[TableName, Joining] = {}
        self.linger_at: float | None = None
        """When what is pending is due, by the monotonic clock; None if nothing is."""
        self.idle_at = 0.0
        """When an epoch without rows is due."""
        self._stream: StreamQueue | None = None
        self._writer: LogWriter | None = None
        self.windows = OpenWindows(self, windows or Windows(), config.capture.epoch_size)
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
        self.windows.close()
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
        self._capture()
        self.decoder.pass_over([again] if again else [])

    def _capture(self) -> None:
        sources = self.chain.sources
        self.decoder.capture(self.chain.schemas, [table for table, source in sources.items() if source.is_shard])

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
        chain = self.chain
        clamped = chain.clamped
        drained = self.decoder.drain()
        self.windows.touch(drained)
        chain.take(drained, self.uuid)
        if chain.stopped:
            stopped = [table for table, source in chain.sources.items() if source.target in chain.stopped]
            for table in stopped:
                self.decoder.stop(table)
            self.windows.cancel("the table stopped", stopped)
        if chain.clamped and not clamped:
            LOG.warning("commit-time-behind", by_ms=chain.clamped_ms, gtid=chain.clamped_gtid)

    def publish(
        self,
        added: Mapping[TableName, Described] | None = None,
        removed: Mapping[TableName, dict[str, Any]] | None = None,
        altered: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> CommitRecord:
        """Write the next epoch, as `Chain.publish`."""
        self.settle()
        chain = self.chain
        if changed := {*(added or ()), *(removed or ())}:
            self.windows.cancel(
                "the table is captured anew, or no more", [t for t, s in chain.sources.items() if s.target in changed]
            )
        for target, options in (altered or {}).items():
            kept = sharding.shards(options)
            out = [t for t, s in chain.sources.items() if s.target == target and t not in kept]
            self.windows.cancel("it is a shard no more", out)
        # Said before the epoch says it: between the two, a restart meets the same transaction again.
        for table, error in chain.stopped.items():
            LOG.error("table-stopped", table=str(table), error=error.code, what=error.what, where=error.where)
            self.state.stop_table(table, NODE, error)
        try:
            record = chain.publish(added, removed, altered)
        except LogIndefiniteError:
            if not faults.mutant("no_read_back"):
                raise
            chain.writer.close()
            self._writer = chain.writer = self.log.writer()
            record = chain.publish(added, removed, altered)
        self._tell(record)
        if record.skipped:
            for request in self.state.open_requests("skip"):
                if request.argument in record.skipped:
                    LOG.warning("transaction-skipped", gtid=request.argument, epoch=record.number)
                    self.state.request_done(request.number, f"passed over in epoch {record.id}")
        if left := chain.left:
            for target, options in left.items():
                LOG.warning("shard-dropped", table=str(target), shards=len(options["shards"]))
            self.publish(altered=left)
        return record

    def publish_behind(self) -> None:
        """The same in a thread, as `Chain.publish_behind`, unless something is to be told before the epoch or after it."""
        if self.chain.is_plain:
            self.settle()
            self.chain.publish_behind(self.windows.wake)
        else:
            self.publish()

    def settle(self) -> None:
        """Wait for what is written behind, as `Chain.settle`."""
        if record := self.chain.settle():
            self._tell(record)

    def _tell(self, record: CommitRecord) -> None:
        self.idle_at = self.clock.monotonic() + self.config.capture.idle
        self.windows.written(record)
        LOG.debug("epoch-written", epoch=record.number, transactions=record.transactions, tables=len(record.tables))

    # -- tables ------------------------------------------------------------------------------------------------------

    def asked_to_skip(self) -> Collection[Gtid]:
        """Transactions that `lakesync skip` names."""
        return {Gtid.parse(r.argument) for r in self.state.open_requests("skip")}

    def add(
        self,
        described: Mapping[TableName, Described],
        kept: Mapping[TableName, Phase],
        removed: Mapping[TableName, dict[str, Any]] | None = None,
        altered: Mapping[TableName, dict[str, Any]] | None = None,
    ) -> CommitRecord:
        """Write the epoch from whose end on these tables are captured, with these options. Those in `kept` keep a phase of theirs that
        says that the lake has them. Names are the lake's, schemas as in the lake."""
        record = self.publish(described, removed, altered)
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
            LOG.info("table-added", table=str(table), epoch=record.number)
        for request in self.state.open_requests("resync"):
            joining = self.joining.get(TableName.parse(request.argument))
            asked = joining is None or request.number in joining.requests
            if asked and TableName.parse(request.argument) in described:
                self.state.request_done(request.number, f"captured anew from epoch {record.id} on")
        self._capture()
        return record


def is_out(status: TableStatus | None) -> bool:
    """Whether capture stopped the table, so that only a resync brings it back."""
    return status is not None and status.phase == "stopped" and (status.error or {}).get("node") == NODE
