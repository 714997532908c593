"""The decoder: `cdc._native.BinlogDecoder` reads the bytes; what it cannot know by itself is answered here.

It asks what to do with the tables that it meets and with statements that are logged as text. What it cannot read becomes an error with a
place and a way out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cdc import _native, faults
from cdc.capture import statements
from cdc.capture.base import FRAMING, Drained, Emptied, Stop, TableChanges
from cdc.capture.refusal import Refusal, ended
from cdc.capture.statements import Kind
from cdc.errors import (
    BinlogError,
    LakesyncError,
    SourceError,
    SourceIdentityError,
    TableStoppedError,
    UnsupportedEventError,
)
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet
from cdc.schema import Column, TableSchema
from cdc.source import catalogue

UNLIMITED = 1 << 62
"""Bytes; never drains, or never cuts a transaction, of itself."""
_MUTANTS = ("position_at_gtid", "create_select_position")
_WAY_OUT = "`lakesync skip {gtid}` passes over it, then `lakesync resync` the tables that it wrote to"
_RESYNC = "`lakesync resync {table}` reads it anew, as it is now"
_CONTROL: Mapping[Kind, str] = {
    Kind.BEGIN: "begin",
    Kind.COMMIT: "commit",
    Kind.ROLLBACK: "rollback",
    Kind.SAVEPOINT: "savepoint",
    Kind.ROLLBACK_TO: "rollback-to",
    Kind.CREATE_SELECT: "create-select",
}
_ENCODINGS = {
    "utf8mb4": "utf-8",
    "utf8mb3": "utf-8",
    "utf8": "utf-8",
    "ascii": "utf-8",
    "binary": "utf-8",
    "latin1": "cp1252",
}
"""Python's names of character sets of statements; others are the same as MySQL's, or no statement is read in them."""


class NativeDecoder:
    """See `cdc.capture.base.Decoder`.

    `drain_bytes`: `feed` asks for a drain once so many bytes of events are pending. `part_bytes`: a transaction with so many bytes of
    rows is given in parts. `ignore_case`: statements name tables without their case (lower_case_table_names). `refusal` makes errors
    of the server's.
    """

    def __init__(
        self,
        *,
        mariadb: bool = False,
        drain_bytes: int = UNLIMITED,
        part_bytes: int = UNLIMITED,
        ignore_case: bool = False,
        refusal: Refusal = ended,
    ) -> None:
        mutant = next(filter(faults.mutant, _MUTANTS), "")
        self._native = _native.BinlogDecoder(
            mariadb=mariadb, drain_bytes=drain_bytes, part_bytes=part_bytes, mutant=mutant
        )
        self._ignore_case = ignore_case
        self._refusal = refusal
        self._captured: dict[TableName, TableSchema] = {}
        self._shards: frozenset[TableName] = frozenset()
        self._schemas: dict[int, TableSchema] = {}
        """By the number of the answer that gave the decoder its plans."""
        self._answers = 0
        self._failed: LakesyncError | None = None
        self._stops: dict[str, dict[TableName, LakesyncError]] = {}
        """By the GTID of the transaction at which they are; told with it."""
        self._emptied: dict[str, dict[TableName, bool]] = {}
        """The same: shards, and whether they are gone."""

    # -- the protocol ------------------------------------------------------------------------------------------------

    def capture(self, tables: Mapping[TableName, TableSchema], shards: Collection[TableName] = ()) -> None:
        if not self.idle:
            raise ValueError("tables change only between transactions")
        self._captured, self._shards = dict(tables), frozenset(shards)
        self._native.capture([(t.schema, t.name) for t in tables])

    def stop(self, table: TableName) -> None:
        self._native.stop_table(table.schema, table.name)

    def pass_over(self, gtids: Collection[Gtid]) -> None:
        self._native.pass_over([str(gtid) for gtid in gtids])

    def counted(self, partial: Fingerprint) -> None:
        self._native.counted(str(partial.gtid), partial.row_events)

    def resume(self, partial: Fingerprint) -> None:
        self._native.resume(str(partial.gtid), partial.commit_us, partial.row_events)

    @property
    def idle(self) -> bool:
        return self._native.idle

    @property
    def pending_bytes(self) -> int:
        return self._native.pending_bytes

    @property
    def open_gtid(self) -> str | None:
        return self._native.open_gtid

    @property
    def place(self) -> BinlogEnd:
        file, _, offset = self._native.where.rpartition(":")
        return BinlogEnd(file, int(offset))

    @property
    def resumed_changes(self) -> int:
        return self._native.resumed_changes

    def feed(self, data: bytes) -> bool:
        if self._failed is not None:
            raise self._failed
        try:
            asked = self._native.feed(data)
            while asked is not None and asked[0] != "drain":
                if asked[0] == "table":
                    self._table(*asked[1:])
                else:
                    self._statement(*asked[1:])
                asked = self._native.feed(b"")
            return asked is None
        except _native.DecodeError as error:
            raise self._fail(_understood(*error.args)) from None
        except _native.ServerError as error:
            code, _, message = error.args
            raise self._fail(self._refusal(code, message)) from None
        except LakesyncError as error:
            raise self._fail(error) from None

    def _fail(self, error: LakesyncError) -> LakesyncError:
        gtid = self.open_gtid
        if not error.where:
            error.where = self._native.where + (f" ({gtid})" if gtid else "")
        error.hint = error.hint.replace("{gtid}", gtid or "GTID")
        self._failed = error
        return error

    def drain(self) -> Drained:
        found = self._native.drain()
        # Each made anew when it is asked for.
        gtids, row_events, whole = found.gtids, found.row_events, found.whole
        commit_us = np.frombuffer(found.commit_us_bytes(), np.int64)
        last, partial = (
            Fingerprint(Gtid.parse(gtids[i]), int(commit_us[i]), row_events[i]) if i in range(len(gtids)) else None
            for i in (whole - 1, whole)
        )
        framing = found.framing
        executed: dict[str, list[tuple[int, int]]] = {}
        for sid, first, end in found.executed:
            executed.setdefault(sid, []).append((first, end))
        return Drained(
            gtids,
            commit_us,
            row_events,
            whole,
            # A union makes the runs what a set must be.
            GtidSet({}).union(GtidSet({sid: tuple(runs) for sid, runs in executed.items()})),
            self._changes(found.changes),
            self._told(gtids, found.stops),
            BinlogEnd(found.file, found.offset),
            {name: framing[name] for name in FRAMING},
            tuple(found.skipped),
            last,
            partial,
            self._told_emptied(gtids),
            found.prepared_bytes,
        )

    # -- rows --------------------------------------------------------------------------------------------------------

    def _changes(self, found: Sequence[Any]) -> list[TableChanges]:
        return [
            TableChanges(
                TableName(schema, name),
                self._schemas[answer],
                pa.record_batch(batch),
                None if presence is None else pa.array(presence),
                None if diffs is None else pa.array(diffs),
            )
            for schema, name, answer, batch, presence, diffs in found
        ]

    def _told(self, gtids: Sequence[str], found: Sequence[tuple[int, str, str, str]]) -> list[Stop]:
        """Stops that belong to what is drained: the decoder's own, and those that were told to it."""
        stops: dict[TableName, Stop] = {}
        for txn, schema, name, what in found:
            table = TableName(schema, name)
            if "primary key" in what:
                way_out = "make dates texts (`types: {column: string}`), or correct the value"
            else:
                way_out = "leave the column out (`exclude:`), or give it another type (`types:`)"
            hint = f"{way_out}; then `lakesync resync {table}`"
            stops[table] = Stop(txn, table, TableStoppedError(what, where=f"{table} at {gtids[txn]}", hint=hint))
            self._captured.pop(table, None)
        for gtid in list(self._stops):
            if gtid in gtids:
                txn = gtids.index(gtid)
            elif gtid == self.open_gtid:
                continue
            else:
                txn = 0  # of an XA transaction that is only prepared: from there on the table's rows are missing
            for table, error in self._stops.pop(gtid).items():
                if table not in stops or txn <= stops[table].txn:
                    stops[table] = Stop(txn, table, error)
        return sorted(stops.values(), key=lambda stop: stop.txn)

    def _told_emptied(self, gtids: Sequence[str]) -> list[Emptied]:
        found = []
        for gtid in [g for g in self._emptied if g in gtids]:
            shards = self._emptied.pop(gtid)
            found += [Emptied(gtids.index(gtid), table, is_gone) for table, is_gone in shards.items()]
        return sorted(found, key=lambda emptied: emptied.txn)

    # -- questions ---------------------------------------------------------------------------------------------------

    def _table(
        self, schema: str, name: str, columns: Sequence[Mapping[str, Any]], key: Sequence[str], named: bool
    ) -> None:
        """Which columns of a table are wanted."""
        table = TableName(schema, name)
        captured = self._captured.get(table)
        if captured is None:
            self._answer(None, None)
            return
        try:
            if not named:
                raise TableStoppedError(
                    "the binary log does not name the table's columns (binlog_row_metadata=MINIMAL)",
                    hint="SET GLOBAL binlog_row_metadata = FULL, then `lakesync resync {table}`",
                )
            found = TableSchema(tuple(Column.from_dict(c) for c in columns), tuple(key))
            if said := catalogue.difference(captured, found):
                raise TableStoppedError(f"the table is not as it was when it was added: {said}", hint=_RESYNC)
        except TableStoppedError as error:
            self._stop_here(table, error)
            self._answer(None, None)
            return
        plans = {plan["name"]: plan for plan in catalogue.as_followed(captured, found).plans()}
        self._answer(captured, [plans.get(column.name) for column in found.columns])

    def _answer(self, schema: TableSchema | None, plans: list[dict[str, Any] | None] | None) -> None:
        self._native.table(plans)
        if schema is not None:
            self._schemas[self._answers] = schema
        self._answers += 1

    def _stop_here(self, table: TableName, error: LakesyncError) -> None:
        """No row of `table` from the open transaction on."""
        gtid = self.open_gtid or ""
        error.where = f"{table} at {gtid}"
        error.hint = error.hint.replace("{table}", str(table)).replace("{gtid}", gtid)
        self._stops.setdefault(gtid, {}).setdefault(table, error)
        self._captured.pop(table, None)
        self._native.stop_table(table.schema, table.name)

    def _empty_here(self, table: TableName, is_gone: bool) -> None:
        """All rows of a shard go with the open transaction."""
        self._emptied.setdefault(self.open_gtid or "", {})[table] = is_gone
        if is_gone:
            self._captured.pop(table, None)
            self._native.stop_table(table.schema, table.name)

    def _statement(
        self, database: str, sql: bytes, charset: str, ansi_quotes: bool, no_backslash_escapes: bool
    ) -> None:
        """What a statement that is logged as text does."""
        statement = statements.classify(
            sql,
            database,
            encoding=_ENCODINGS.get(charset, charset),
            ansi_quotes=ansi_quotes,
            no_backslash_escapes=no_backslash_escapes,
        )
        kind = statement.kind
        if kind is Kind.XA:
            raise UnsupportedEventError("an XA statement that is not understood", hint=_WAY_OUT)
        if kind not in _CONTROL or kind is Kind.CREATE_SELECT:
            if kind is Kind.HIDDEN and self._captured:
                raise UnsupportedEventError(
                    f"a statement ({statement.verb}) logged as text that may write to any table",
                    hint=f"SET binlog_format = ROW in the session that ran it; {_WAY_OUT}",
                )
            for table in statement.touches(self._captured, self._ignore_case):
                if statement.empties and table in self._shards:
                    self._empty_here(table, statement.drops)
                else:
                    self._stop_here(table, _reason(statement))
        self._native.statement(_CONTROL.get(kind, "statement"), statement.savepoint)


def _understood(kind: str, what: str) -> SourceError:
    """The error of bytes that cannot be read, with its way out; the place is still missing."""
    if kind == "identity":
        return SourceIdentityError(
            what,
            hint="was it reset, restored, or failed over with a loss? Connect to the right server, or bootstrap anew:"
            " `lakesync resync --all`, then run again",
        )
    if kind == "unsupported" and "without a GTID" in what:
        return SourceError(what, hint="switch gtid_mode to ON, step by step, then `lakesync resync --all`")
    if kind == "unsupported" and "incident" in what:
        hint = "find the reason in the server's error log, then `lakesync resync --all`"
        return UnsupportedEventError(what, hint=hint)
    if kind == "unsupported":
        return UnsupportedEventError(what, hint=_WAY_OUT)
    return BinlogError(what)


def _reason(statement: statements.Statement) -> LakesyncError:
    if statement.kind is Kind.WRITE:
        return TableStoppedError(
            f"{statement.verb} wrote to it and was logged as text, not as rows",
            hint=f"SET binlog_format = ROW in the session that ran it; {_RESYNC}",
        )
    if statement.kind is Kind.UNKNOWN:
        return TableStoppedError("a statement that is not understood names it", hint=_RESYNC)
    if statement.drops:
        gone = "`lakesync remove {table}` gives it up; once it is there again, `lakesync resync {table}` reads it"
        return TableStoppedError(f"{statement.verb} changed it", hint=gone)
    return TableStoppedError(f"{statement.verb} changed it", hint=_RESYNC)
