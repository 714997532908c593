"""The reference decoder: mysql-replication's packet and row-event classes, fed by us, and made to refuse what they would bend.

Slow and plain on purpose: it is what the native decoder is compared with. Row events of captured tables are kept as bytes until their
transaction ends, so that what a ROLLBACK TO undoes, or a later error spoils, is never decoded. What it does not know is in
`KNOWN_GAPS`; it refuses that, or stops the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from cdc.capture import statements
from cdc.capture.base import FRAMING, Drained, Stop, TableChanges
from cdc.capture.refusal import Refusal, ended
from cdc.capture.statements import Kind
from cdc.errors import BinlogError, LakesyncError, SourceError, TableStoppedError, UnsupportedEventError
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet
from cdc.schema import TableSchema
from cdc.source import catalogue
from tests.reference import events, images
from tests.reference.events import Header, Type
from tests.reference.rows import PendingRows
from tests.reference.splitting import Splitter
from tests.reference.transactions import Action, Input, State, Transactions

KNOWN_GAPS = (
    "parts of large transactions",
    "XA transactions",
    "compressed transactions",
    "tagged GTIDs",
    "incomplete row images",
    "JSON differences",
    "values kept as text",
    "types of later stages",
    "MariaDB",
)
"""What the native decoder does and this one does not; tests skip it here by these names."""
_FILE_BITS = 1 << 32
"""Headers hold offsets modulo this."""
_MAPS_KEPT = 4096
"""Definitions of tables that are remembered, so that each is read once."""

_INPUTS: Mapping[int, Input] = {
    **dict.fromkeys(events.ROWS, Input.ROWS),
    Type.TABLE_MAP: Input.ROWS,
    Type.XID: Input.XID,
    Type.INTVAR: Input.CONTEXT,
    Type.RAND: Input.CONTEXT,
    Type.USER_VAR: Input.CONTEXT,
    Type.ROWS_QUERY: Input.CONTEXT,
    Type.BEGIN_LOAD_QUERY: Input.CONTEXT,
    Type.APPEND_BLOCK: Input.CONTEXT,
    Type.VIEW_CHANGE: Input.CONTEXT,
    Type.STOP: Input.BOUNDARY,
    Type.ROTATE: Input.BOUNDARY,
    Type.FORMAT_DESCRIPTION: Input.BOUNDARY,
    Type.PREVIOUS_GTIDS: Input.BOUNDARY,
}
_CONTROL: Mapping[Kind, Input] = {
    Kind.BEGIN: Input.BEGIN,
    Kind.COMMIT: Input.COMMIT,
    Kind.ROLLBACK: Input.ROLLBACK,
    Kind.SAVEPOINT: Input.SAVEPOINT,
    Kind.ROLLBACK_TO: Input.ROLLBACK_TO,
}
_WAY_OUT = "`lakesync skip {gtid}` passes over it, then `lakesync resync` the tables that it wrote to"
_REFUSED: Mapping[int, tuple[str, str]] = {
    Type.TRANSACTION_PAYLOAD: (
        "a compressed transaction, which is not read yet",
        f"SET GLOBAL binlog_transaction_compression = OFF, and in sessions that switch it on; {_WAY_OUT}",
    ),
    Type.XA_PREPARE: ("an XA transaction, which is not captured yet", _WAY_OUT),
    Type.TAGGED_GTID: (
        "a transaction with a tagged GTID, which is not read yet",
        "commit without tags (gtid_next = AUTOMATIC), then `lakesync resync --all`",
    ),
    Type.INCIDENT: (
        "an incident: the server says that events are missing from its binary log",
        "find the reason in the server's error log, then `lakesync resync --all`",
    ),
}


@dataclass
class _Open:
    """The transaction at hand."""

    gtid: Gtid
    commit_us: int
    length: int | None
    start: BinlogEnd
    pass_over: bool
    framing: Counter[str] = field(default_factory=Counter)
    kept: list[tuple[images.Mapped, int, int, bytes, int]] = field(default_factory=list)
    """Row events of captured tables: table, table id, type, event, ordinal."""
    savepoints: list[tuple[str, int]] = field(default_factory=list)
    """Names, each with how many row events were kept before it."""
    stops: dict[TableName, LakesyncError] = field(default_factory=dict)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.gtid, self.commit_us, self.framing["row_events"])


class ReferenceDecoder:
    """See `cdc.capture.base.Decoder`. `drain_bytes`: `feed` asks for a drain once so many bytes of events are pending. `ignore_case`:
    statements name tables without their case (lower_case_table_names). `refusal` makes errors of the server's."""

    def __init__(self, *, drain_bytes: int = 1 << 62, ignore_case: bool = False, refusal: Refusal = ended) -> None:
        self._drain_bytes = drain_bytes
        self._ignore_case = ignore_case
        self._splitter = Splitter(refusal)
        self._pause = False
        self._captured: dict[TableName, TableSchema] = {}
        self._pass_over: frozenset[Gtid] = frozenset()
        self._machine = Transactions()
        self._open: _Open | None = None
        self._failed: LakesyncError | None = None
        # framing of the stream
        self._checksums: bool | None = None
        self._file = ""
        self._offset = 0
        self._end = BinlogEnd("", 0)
        # tables
        self._maps: dict[int, images.Mapped] = {}
        self._known: dict[bytes, images.Mapped] = {}
        # since the last drain
        self._transactions: list[Fingerprint] = []
        self._rows: dict[tuple[TableName, str], PendingRows] = {}
        self._stops: dict[TableName, Stop] = {}
        self._framing: Counter[str] = Counter()
        self._skipped: list[str] = []
        self._seq = 0

    # -- the protocol ------------------------------------------------------------------------------------------------

    def capture(self, tables: Mapping[TableName, TableSchema], shards: Collection[TableName] = ()) -> None:
        if shards:
            raise NotImplementedError("shards")
        if not self.idle:
            raise ValueError("tables change only between transactions")
        self._captured = {t: s for t, s in tables.items() if t not in self._stops}
        self._known.clear()

    def pass_over(self, gtids: Collection[Gtid]) -> None:
        self._pass_over = frozenset(gtids)

    @property
    def idle(self) -> bool:
        return self._machine.state is State.BETWEEN

    @property
    def pending_bytes(self) -> int:
        return self._framing["bytes"]

    @property
    def open_gtid(self) -> str | None:
        return str(self._open.gtid) if self._open else None

    @property
    def place(self) -> BinlogEnd:
        return BinlogEnd(self._file, self._offset)

    @property
    def resumed_changes(self) -> int:
        return 0

    def stop(self, table: TableName) -> None:
        self._captured.pop(table, None)

    def counted(self, partial: Fingerprint) -> None:
        raise NotImplementedError("parts of large transactions")

    def resume(self, partial: Fingerprint) -> None:
        raise NotImplementedError("parts of large transactions")

    def feed(self, data: bytes) -> bool:
        if self._failed is not None:
            raise self._failed
        try:
            # Lazy: what is not asked for stays in the splitter.
            for event in self._splitter.feed(data):
                self._feed(event)
                if self._pause:
                    return False
        except LakesyncError as error:
            gtid = str(self._open.gtid) if self._open else ""
            if not error.where:
                error.where = f"{self._file}:{self._offset}" + (f" ({gtid})" if gtid else "")
            error.hint = error.hint.replace("{gtid}", gtid or "GTID")
            self._failed, self._open = error, None
            raise
        return True

    def drain(self) -> Drained:
        changes: list[TableChanges] = []
        for (table, _), rows in self._rows.items():
            self._flush(table, rows)
        for (table, _), rows in self._rows.items():
            changes += [TableChanges(table, rows.schema, batch) for batch in rows.take()]
        found = self._transactions
        executed = GtidSet({})
        for fingerprint in found:
            executed = executed.add(fingerprint.gtid)
        drained = Drained(
            [str(f.gtid) for f in found],
            np.array([f.commit_us for f in found], np.int64),
            [f.row_events for f in found],
            len(found),
            executed,
            changes,
            sorted(self._stops.values(), key=lambda stop: stop.txn),
            self._end,
            {name: self._framing[name] for name in FRAMING},
            tuple(self._skipped),
            found[-1] if found else None,
        )
        self._transactions, self._skipped, self._seq = [], [], 0
        self._rows, self._stops = {}, {}
        self._framing = Counter()
        self._pause = False
        return drained

    # -- framing -----------------------------------------------------------------------------------------------------

    def _feed(self, event: bytes) -> None:
        head = events.header(event)
        body = event[events.HEADER : -events.CHECKSUM if self._check_sum(event, head) else None]
        if not self._file and head.type != Type.ROTATE:
            raise BinlogError(f"a stream that begins with a {head.name} event and not with its file's name")
        if self._checksums is None and head.type not in (Type.ROTATE, Type.FORMAT_DESCRIPTION):
            raise BinlogError(f"a {head.name} event before the file's description")
        if head.type in (Type.HEARTBEAT, Type.HEARTBEAT_V2):
            self._heartbeat(head, body)
        elif head.type == Type.ROTATE:
            self._rotate(head, body)
        else:
            if head.log_pos or head.type != Type.FORMAT_DESCRIPTION:
                self._advance(head)
            self._event(event, head, body)
        if self.idle:
            self._end = BinlogEnd(self._file, self._offset)

    def _check_sum(self, event: bytes, head: Header) -> bool:
        """Whether the event has a checksum, which is then right."""
        right = events.checksum_matches(event)
        if head.type == Type.FORMAT_DESCRIPTION:
            self._checksums = events.has_checksums(event)
            if not self._checksums:
                return True
        elif not self._checksums:
            # Events that are in no file may have a checksum where those of the file have none.
            made = head.type in (Type.HEARTBEAT, Type.HEARTBEAT_V2) or head.flags & events.ARTIFICIAL
            return right and bool(made)
        if not right:
            raise BinlogError(f"a {head.name} event whose checksum is wrong")
        return True

    def _advance(self, head: Header) -> None:
        offset = self._offset + head.size
        if offset % _FILE_BITS != head.log_pos:
            raise BinlogError(
                f"a {head.name} event of {head.size} bytes that ends at {head.log_pos} does not follow"
                f" what ended at {self._offset % _FILE_BITS}"
            )
        self._offset = offset

    def _heartbeat(self, head: Header, body: bytes) -> None:
        if head.type == Type.HEARTBEAT_V2:
            end = events.heartbeat_v2(body)
        else:
            end = events.heartbeat(body, head.log_pos)
            end = BinlogEnd(end.file, self._offset + (end.offset - self._offset) % _FILE_BITS)
        if end.file != self._file or end.offset < self._offset or not (self.idle or end.offset == self._offset):
            raise BinlogError(f"a heartbeat at {end}, which does not follow {self._file}:{self._offset}")
        self._offset = end.offset

    def _rotate(self, head: Header, body: bytes) -> None:
        if head.log_pos and not head.flags & events.ARTIFICIAL:
            self._advance(head)
        self._machine.step(Input.BOUNDARY)
        end = events.rotate(body)
        self._file, self._offset = end.file, end.offset

    # -- transactions ------------------------------------------------------------------------------------------------

    def _event(self, event: bytes, head: Header, body: bytes) -> None:
        if head.type == Type.GTID:
            self._start(head, body)
        elif self._open is not None and self._open.pass_over:
            self._count(head)
            self._passed_over(self._open)
        elif head.type in _REFUSED:
            what, hint = _REFUSED[head.type]
            raise UnsupportedEventError(what, hint=hint)
        elif head.type == Type.ANONYMOUS_GTID:
            raise SourceError(
                "a transaction without a GTID",
                hint="switch gtid_mode to ON, step by step, then `lakesync resync --all`",
            )
        elif head.type in (Type.QUERY, Type.EXECUTE_LOAD_QUERY):
            self._count(head)
            self._statement(events.query(body, load=head.type == Type.EXECUTE_LOAD_QUERY))
        elif head.type in _INPUTS:
            self._count(head)
            self._step(_INPUTS[head.type])
            if head.type == Type.TABLE_MAP:
                self._table_map(event, body)
            elif head.type in events.ROWS:
                self._row_event(event, head, body)
        elif head.flags & events.IGNORABLE or head.type == Type.IGNORABLE:
            self._count(head)
        else:
            raise UnsupportedEventError(
                f"an event that is not known ({head.name})",
                hint=_WAY_OUT if self._open else "is there a newer version of lakesync?",
            )

    def _count(self, head: Header) -> None:
        if self._open is None:
            return
        framing = self._open.framing
        framing["events"] += 1
        framing["bytes"] += head.size
        framing["row_events"] += head.type in events.ROWS

    def _start(self, head: Header, body: bytes) -> None:
        found = events.gtid(body, head.timestamp)
        action = self._machine.step(Input.GTID)
        pass_over = found.gtid in self._pass_over
        start = BinlogEnd(self._file, self._offset - head.size)
        self._open = _Open(found.gtid, found.commit_us, found.length, start, pass_over)
        self._count(head)
        if pass_over and found.length is None:
            raise UnsupportedEventError("a transaction whose length is not known cannot be passed over")
        if action is Action.END_EARLY and not pass_over:
            self._end_early(self._open)

    def _end_early(self, open_: _Open) -> None:
        """A mutant's: what is known of the transaction is given as if it were all."""
        self._transactions.append(open_.fingerprint)
        self._framing.update(open_.framing)
        open_.framing, open_.length = Counter(), None
        self._pause = self._pause or self.pending_bytes >= self._drain_bytes

    def _passed_over(self, open_: _Open) -> None:
        open_.framing["rows_skipped"] = open_.framing["row_events"]
        if open_.framing["bytes"] == open_.length:
            self._machine.end()
            self._skipped.append(str(open_.gtid))
            self._end_transaction(open_)

    def _step(self, event: Input, savepoint: str = "") -> None:
        action = self._machine.step(event)
        open_ = self._open
        if action is Action.NOTHING or open_ is None:
            return
        if action is Action.END_EARLY:
            self._end_early(open_)
        elif action is Action.MARK:
            open_.savepoints = [s for s in open_.savepoints if s[0] != savepoint]
            open_.savepoints.append((savepoint, len(open_.kept)))
        elif action is Action.UNDO_TO:
            place = next((i for i, s in enumerate(open_.savepoints) if s[0] == savepoint), None)
            if place is None:
                raise BinlogError("ROLLBACK TO a savepoint that was not set")
            self._undo(open_, open_.savepoints[place][1])
            del open_.savepoints[place + 1 :]
        else:
            if action is Action.UNDO:
                self._undo(open_, 0)
            if open_.length not in (None, open_.framing["bytes"]):
                raise BinlogError(
                    f"a transaction of {open_.framing['bytes']} bytes, of which its GTID event says that it has {open_.length}"
                )
            self._end_transaction(open_)

    @staticmethod
    def _undo(open_: _Open, keep: int) -> None:
        open_.framing["rows_skipped"] += len(open_.kept) - keep
        del open_.kept[keep:]

    def _end_transaction(self, open_: _Open) -> None:
        txn = len(self._transactions)
        for table, error in open_.stops.items():
            self._stop(table, txn, open_, error)
        for mapped, table_id, kind, event, ordinal in open_.kept:
            if mapped.table in self._captured:
                self._decode(open_, txn, mapped, table_id, kind, event, ordinal)
            else:
                open_.framing["rows_skipped"] += 1
        open_.framing["transactions"] = 1
        self._framing.update(open_.framing)
        self._transactions.append(open_.fingerprint)
        self._open = None
        self._maps.clear()
        self._pause = self._pause or open_.pass_over or self.pending_bytes >= self._drain_bytes

    def _stop(self, table: TableName, txn: int, open_: _Open | None, error: LakesyncError) -> None:
        """No row of `table` from transaction `txn` on."""
        gtid = str(open_.gtid if open_ else self._transactions[txn].gtid)
        error.where = f"{table} at {gtid}"
        error.hint = error.hint.replace("{table}", str(table)).replace("{gtid}", gtid)
        if table not in self._stops or txn < self._stops[table].txn:
            self._stops[table] = Stop(txn, table, error)
        self._captured.pop(table, None)
        for (name, _), rows in self._rows.items():
            if name == table:
                rows.truncate(txn)

    # -- statements --------------------------------------------------------------------------------------------------

    def _statement(self, query: events.Query) -> None:
        statement = statements.classify(
            query.sql,
            query.database,
            encoding=query.encoding,
            ansi_quotes=query.ansi_quotes,
            no_backslash_escapes=query.no_backslash_escapes,
        )
        kind = statement.kind
        if kind is Kind.XA:
            raise UnsupportedEventError("an XA transaction, which is not captured yet", hint=_WAY_OUT)
        if kind in _CONTROL:
            self._step(_CONTROL[kind], statement.savepoint)
            return
        if self._open is not None:
            self._open.framing["statements"] += 1
            if kind is Kind.HIDDEN and self._captured:
                raise UnsupportedEventError(
                    f"a statement ({statement.verb}) logged as text that may write to any table",
                    hint=f"SET binlog_format = ROW in the session that ran it; {_WAY_OUT}",
                )
            for table in statement.touches(self._captured, self._ignore_case):
                self._open.stops.setdefault(table, _reason(statement))
        inside = self._machine.state is State.OPEN and kind is Kind.CREATE_SELECT
        self._step(Input.CREATE_SELECT if inside else Input.STATEMENT)

    # -- rows --------------------------------------------------------------------------------------------------------

    def _table_map(self, event: bytes, body: bytes) -> None:
        head = events.table_map(body)
        mapped = self._known.get(head.definition)
        if mapped is None:
            mapped = images.Mapped(TableName(head.schema, head.name))
            captured = self._captured.get(mapped.table)
            if captured is not None:
                try:
                    mapped, schema = images.read_table_map(event, bool(self._checksums), head)
                    if said := catalogue.difference(captured, schema):
                        raise TableStoppedError(
                            f"the table is not as it was when it was added: {said}",
                            hint="`lakesync resync {table}` reads it anew, as it is now",
                        )
                except TableStoppedError as error:
                    assert self._open is not None
                    self._open.stops.setdefault(mapped.table, error)
                    mapped = images.Mapped(mapped.table)
            if len(self._known) >= _MAPS_KEPT:
                self._known.clear()
            self._known[head.definition] = mapped
        self._maps[head.id] = mapped

    def _row_event(self, event: bytes, head: Header, body: bytes) -> None:
        open_ = self._open
        assert open_ is not None
        found = events.rows(body)
        mapped = self._maps.get(found.table)
        if mapped is None and not (found.table == events.DUMMY_TABLE and found.statement_end):
            raise BinlogError(f"a row event of a table (id {found.table}) that no TABLE_MAP names")
        if mapped is not None and mapped.columns is not None and mapped.table not in open_.stops:
            ordinal = open_.framing["row_events"] - 1
            open_.kept.append((mapped, found.table, head.type, event, ordinal))
        else:
            open_.framing["rows_skipped"] += 1
        if found.statement_end:
            self._maps.clear()

    def _decode(
        self, open_: _Open, txn: int, mapped: images.Mapped, table_id: int, kind: int, event: bytes, ordinal: int
    ) -> None:
        schema = self._captured[mapped.table]
        rows = self._rows.setdefault((mapped.table, schema.hash), PendingRows(schema))
        try:
            for number, row in enumerate(images.read_rows(event, bool(self._checksums), mapped, table_id, kind)):
                self._seq += 1
                rows.add(txn, ordinal, number, self._seq, row)
        except TableStoppedError as error:
            open_.framing["rows_skipped"] += 1
            self._stop(mapped.table, txn, open_, error)
            return
        if rows.is_large:
            self._flush(mapped.table, rows)

    def _flush(self, table: TableName, rows: PendingRows) -> None:
        """Make Arrow of what is pending; a value that does not fit stops the table at its transaction."""
        try:
            rows.flush()
        except TableStoppedError as error:
            txn = rows.first_unfit()
            self._stop(table, txn, self._open if txn == len(self._transactions) else None, error)
            rows.flush()


def _reason(statement: statements.Statement) -> LakesyncError:
    resync = "`lakesync resync {table}` reads it anew, as it is now"
    if statement.kind is Kind.WRITE:
        return TableStoppedError(
            f"{statement.verb} wrote to it and was logged as text, not as rows",
            hint=f"SET binlog_format = ROW in the session that ran it; {resync}",
        )
    if statement.kind is Kind.UNKNOWN:
        return TableStoppedError("a statement that is not understood names it", hint=resync)
    if statement.drops:
        gone = "`lakesync remove {table}` gives it up; once it is there again, `lakesync resync {table}` reads it"
        return TableStoppedError(f"{statement.verb} changed it", hint=gone)
    return TableStoppedError(f"{statement.verb} changed it", hint=resync)
