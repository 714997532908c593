"""A source that exists only on paper, what a table of it holds after so many transactions, and a capture that writes it to a log.

No server is replaced by this: the log and the lake are real, and the way from a binary log to epochs has tests of its own.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cdc.clock import SystemClock
from cdc.config import Mode, PipelineConfig
from cdc.epoch import CommitRecord, Counts, Extent, Op, TableEntry, TableState, WindowEntry, WindowId
from cdc.lake import Applied, LakeTable, Layout, Snapshot, deltalog, manifest
from cdc.lake.manifest import Manifest
from cdc.log import Log, open_log
from cdc.log.codec import METADATA, encode
from cdc.merge.decide import applied_at
from cdc.merge.merger import Merger
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position
from cdc.schema import Column, TableSchema
from cdc.state import State

SERVER = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
ORDERS = TableName("shop", "orders")
ITEMS = TableName("shop", "items")
EVENTS = TableName("shop", "events")
TEXT = "utf8mb4"
SCHEMAS = {
    ORDERS: TableSchema((Column("id", "bigint"), Column("note", "text", charset=TEXT)), ("id",)),
    ITEMS: TableSchema(
        (Column("order_id", "int"), Column("sku", "text", charset=TEXT), Column("pieces", "int")), ("sku", "order_id")
    ),
    EVENTS: TableSchema((Column("id", "bigint"), Column("what", "text", charset=TEXT))),
}
MODES: dict[TableName, Mode] = {ORDERS: "upsert", ITEMS: "upsert", EVENTS: "append"}
Row = tuple[Any, ...]
Key = tuple[Any, ...]


class Change(NamedTuple):
    """One row change; `old` and `new` are rows, None where there is none."""

    table: TableName
    event: int
    row: int
    old: Row | None
    new: Row | None
    truncated: str | None = None
    """Instead of a row change: the TRUNCATE of a shard."""

    @property
    def halves(self) -> list[tuple[int, Row]]:
        """What the log has of it."""
        if self.truncated is not None:
            schema = SCHEMAS[self.table]
            return [(Op.TRUNCATE, tuple(self.truncated if n == schema.key[0] else None for n in schema.names))]
        if self.old is None:
            assert self.new is not None
            return [(Op.INSERT, self.new)]
        if self.new is None:
            return [(Op.DELETE, self.old)]
        if key(self.table, self.old) == key(self.table, self.new):
            return [(Op.UPDATE, self.new)]
        return [(Op.MOVE_OUT, self.old), (Op.UPDATE, self.new)]


def key(table: TableName, row: Row) -> Key:
    """The row's key; the whole row of a table without one."""
    schema = SCHEMAS[table]
    return tuple(row[schema.names.index(name)] for name in schema.key or schema.names)


class Source:
    """Transactions in a line, numbered from 1, each with a GTID of the same number."""

    def __init__(self, transactions: Sequence[Sequence[Change]] = ()) -> None:
        self.transactions = [list(t) for t in transactions]

    @classmethod
    def made_up(
        cls,
        random_: random.Random,
        length: int,
        *,
        busy: bool = False,
        events: Sequence[int] = (0, 1, 1, 2, 4),
        exactly: bool = False,
    ) -> Source:
        """So many transactions, with inserts, updates, deletes, and key changes over few keys; some without any row.

        `busy`: every transaction has an event, so that none can be lost or repeated unseen. `events`: how many more,
        one of these, or `exactly` these in a row.
        """
        source = cls()
        live: dict[TableName, dict[Key, Row]] = {t: {} for t in SCHEMAS}
        for number in range(1, length + 1):
            changes = []
            for event in range((events[number - 1] if exactly else random_.choice(events)) + busy):
                table = EVENTS if busy and event == 0 else random_.choice(list(SCHEMAS))
                rows = live[table]
                old = rows.get(random_.choice(sorted(rows))) if rows and random_.random() < 0.7 else None
                new: Row | None = cls._row(random_, table, f"{number}.{event}")
                if table == EVENTS:
                    old = None
                elif old is not None and random_.random() < 0.3:
                    new = None
                elif old is not None and random_.random() < 0.5:
                    new = (*old[:2], number) if table == ITEMS else (old[0], f"{number}.{event}")
                if new is not None and (old is None or key(table, new) != key(table, old)) and key(table, new) in rows:
                    continue
                if old is not None:
                    del rows[key(table, old)]
                if new is not None and table != EVENTS:
                    rows[key(table, new)] = new
                changes.append(Change(table, event, 0, old, new))
            source.transactions.append(changes)
        return source

    @staticmethod
    def _row(random_: random.Random, table: TableName, text: str) -> Row:
        if table == ITEMS:
            return (random_.randrange(4), random_.choice("abc"), 0)
        return (random_.randrange(12), text)

    def rows(self, table: TableName, count: int, events: int = 0) -> list[Row]:
        """The table after so many transactions, and so many row events of the next one, sorted; of an `append` table what was
        inserted."""
        live: dict[Key, Row] = {}
        for number, transaction in enumerate(self.transactions[: count + bool(events)], 1):
            for change in transaction:
                if change.table != table or (number > count and change.event >= events):
                    continue
                if change.truncated is not None:
                    live = {k: row for k, row in live.items() if k[0] != change.truncated}
                if change.old is not None:
                    del live[key(table, change.old)]
                if change.new is not None:
                    live[(number, change.event) if table == EVENTS else key(table, change.new)] = change.new
        return sorted(live.values(), key=repr)

    def position(self, count: int, server: str = SERVER, events: int = 0) -> Position:
        """After so many transactions, and so many row events of the next one."""
        last = Fingerprint(Gtid(SERVER, count), self.time_us(count), 1) if count else None
        gtids = GtidSet({SERVER: ((1, count),)}) if count else GtidSet({})
        partial = Fingerprint(Gtid(SERVER, count + 1), self.time_us(count + 1), events) if events else None
        return Position(gtids, server, self.end(count), last, partial)

    @staticmethod
    def end(count: int) -> BinlogEnd:
        """The place in the binary log after so many transactions."""
        return BinlogEnd(f"binlog.{count // 10 + 1:06}", 4 + count % 10 * 100)

    @staticmethod
    def time_us(count: int) -> int:
        """Commit time of a transaction; some share a millisecond."""
        return 1_700_000_000_000_000 + count * 400

    def seq(self, count: int, events: int = 0) -> int:
        """The number of row changes in so many transactions, and so many row events of the next one."""
        part = sum(change.event < events for change in self.transactions[count]) if events else 0
        return sum(map(len, self.transactions[:count])) + part


class Windowed(NamedTuple):
    """A windowed read, as capture emits it: rows, and keys that were not found. `touched` rows more were read, and left to the stream."""

    id: WindowId
    table: TableName
    rows: Sequence[Row] = ()
    gone: Sequence[Key] = ()
    touched: int = 0

    def halves(self) -> list[tuple[int, Row]]:
        """What the log has of it. Of a key that was not found the other columns are not known."""
        names, of_key = SCHEMAS[self.table].names, SCHEMAS[self.table].key
        keys = [dict(zip(of_key, key, strict=True)) for key in self.gone]
        return [(Op.READ, row) for row in self.rows] + [(Op.DELETE, tuple(map(k.get, names))) for k in keys]


class Cut(NamedTuple):
    """A table's changes of one epoch, for the log."""

    records: list[memoryview]
    rows: Counts


class Capture:
    """Writes a source's transactions to a log, from where its newest record ends. As capture would, without a server."""

    def __init__(self, log: Log, source: Source, *, checkpoints: int = 4, server: str = SERVER) -> None:
        self.log = log
        self.source = source
        self.server = server
        self.checkpoints = checkpoints
        self.writer = log.writer()
        self.states: dict[str, TableState] = {}
        if newest := self.writer.newest:
            for record in log.records(newest.checkpoint - 1):
                self.states = record.states_after(self.states)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    @property
    def newest(self) -> CommitRecord:
        """The last epoch written."""
        assert self.writer.newest is not None
        return self.writer.newest

    @property
    def at(self) -> int:
        """How many transactions are in the log."""
        return len(self.writer.newest.end.gtids) if self.writer.newest else 0

    def add(
        self, *tables: TableName, fresh: tuple[int, int] | None = None, options: Mapping[str, Any] | None = None
    ) -> CommitRecord:
        """The epoch that adds these tables, or adds them again. `fresh`: as the first record of a log begun anew, number and position.
        `options`: more than their mode."""
        number = fresh[0] if fresh else self._number()
        added = {
            t.id: TableState(SCHEMAS[t].to_dict(), {"mode": MODES[t], **(options or {})}, Counts(), None, number)
            for t in tables
        }
        return self._append(0, added=added, fresh=fresh)

    def remove(self, *tables: TableName) -> CommitRecord:
        """The epoch after which these tables are not captured."""
        return self._append(0, removed={t.id: {"code": "removed"} for t in tables})

    def stop(self, table: TableName, error: dict[str, Any]) -> CommitRecord:
        """One transaction more, that the table stops at: none of its rows is there."""
        return self._append(1, removed={table.id: error}, without=table)

    def epoch(self, transactions: int = 1, *, start: int | None = None) -> CommitRecord:
        """The next epoch, of so many transactions. `start`: wrongly, as one that never looks back would, from there on."""
        return self._append(transactions, start=start)

    def windows(self, *windows: Windowed, transactions: int = 0) -> CommitRecord:
        """The next epoch, of so many transactions, and then the rows of windowed reads."""
        return self._append(transactions, windows=windows)

    def alter(self, table: TableName, options: dict[str, Any]) -> CommitRecord:
        """The epoch from which on the table has these options."""
        return self._append(0, altered={table.id: options})

    def part(self, events: int) -> CommitRecord:
        """The next epoch: of the next transaction what it lacks of its first so many row events."""
        return self._append(0, events=events)

    def epochs(self, random_: random.Random, most: int = 3, until: int | None = None) -> None:
        """All that is left, up to transaction `until`, cut anyhow."""
        until = len(self.source.transactions) if until is None else until
        while self.at < until:
            self.epoch(random_.randrange(1, min(most, until - self.at) + 1))

    def _number(self) -> int:
        return self.writer.newest.number + 1 if self.writer.newest else 1

    def _append(
        self,
        count: int,
        added: Mapping[str, TableState] | None = None,
        removed: Mapping[str, dict[str, Any]] | None = None,
        fresh: tuple[int, int] | None = None,
        start: int | None = None,
        without: TableName | None = None,
        events: int = 0,
        restated: bool = False,
        windows: Sequence[Windowed] = (),
        altered: Mapping[str, dict[str, Any]] | None = None,
    ) -> CommitRecord:
        newest = self.writer.newest
        more = self._windowed if start is None and not fresh else 0
        begun = newest.end.partial.row_events if newest and newest.end.partial and start is None else 0
        if start is None:
            start = fresh[1] if fresh else self.at
        number = fresh[0] if fresh else self._number()
        end = start + count
        cuts = {
            t.id: cut
            for t in SCHEMAS
            if t.id in self.states
            and t != without
            and (cut := self._cut(t, (start, begun), (end, events), [w for w in windows if w.table == t], more))
        }
        emitted = sum(len(w.halves()) for w in windows)

        def seal(extents: Mapping[str, Extent]) -> CommitRecord:
            tables = {}
            for table, extent in extents.items():
                state = self.states[table]
                schema = TableSchema.from_dict(state.schema)
                rows = cuts[table].rows
                tables[table] = TableEntry(rows, state.totals.plus(rows), extent, state.last, schema.hash)
            checkpoint = newest is None or restated or (number - newest.checkpoint >= self.checkpoints and not events)
            counts = {"transactions": count}
            record = CommitRecord(
                log=self.log.uuid,
                number=number,
                before=newest.hash if newest else None,
                start=self.source.position(start, self.server, begun),
                end=self.source.position(end, self.server, events),
                ts_ms=self.source.time_us(end + bool(events)) // 1000,
                raw_us=self.source.time_us(end + bool(events)),
                seq=self.source.seq(end, events) + more + emitted,
                transactions=count,
                framing=counts,
                framing_totals=counts,
                written_us=time.time_ns() // 1000,
                checkpoint=number if checkpoint or newest is None else newest.checkpoint,
                tables=tables,
                added=added or {},
                removed=removed or {},
                altered=altered or {},
                windows={
                    t.id: tuple(
                        WindowEntry(w.id, t.id, len(w.halves()) + w.touched, len(w.halves()), {})
                        for w in windows
                        if w.table == t
                    )
                    for t in {w.table for w in windows}
                },
            )
            if checkpoint:
                after = record.states_after(self.states)
                states = {
                    t: TableState(s.schema, s.options, s.totals, None if t in tables else s.last, s.since)
                    for t, s in after.items()
                }
                record = CommitRecord(**{**_fields(record), "states": states})
            return record

        record = self.writer.append({t: cut.records for t, cut in cuts.items()}, seal)
        self.states = record.states_after(self.states)
        return record

    @property
    def _windowed(self) -> int:
        """How many rows of windowed reads are numbered so far."""
        if self.writer.newest is None:
            return 0
        end = self.newest.end
        return self.newest.seq - self.source.seq(len(end.gtids), end.partial.row_events if end.partial else 0)

    def _cut(
        self,
        table: TableName,
        start: tuple[int, int],
        end: tuple[int, int],
        windows: Sequence[Windowed],
        more: int,
    ) -> Cut | None:
        schema = SCHEMAS[table]
        rows: list[tuple[Any, ...]] = []
        counts = [0, 0, 0, 0]
        seq = self.source.seq(*start) + more
        numbers = range(start[0] + 1, end[0] + 1 + bool(end[1]))
        for number in numbers:
            for change in self.source.transactions[number - 1]:
                if not start <= (number - 1, change.event) < end:
                    continue
                seq += 1
                if change.table != table:
                    continue
                if change.truncated is None:
                    counts[0 if change.old is None else 2 if change.new is None else 1] += 1
                ts_ms = self.source.time_us(number) // 1000
                at = (number - numbers[0], change.event, change.row, ts_ms, seq)
                rows += [(op, *at, *values) for op, values in change.halves]
        gtids = [f"{SERVER}:{number}" for number in numbers]
        ts_ms = self.source.time_us(end[0] + bool(end[1])) // 1000
        for window in windows:
            for n, (op, values) in enumerate(window.halves()):
                seq += 1
                counts[3 if op == Op.READ else 2] += 1
                rows.append((op, len(gtids), window.id.number, n, ts_ms, seq, *values))
            gtids.append(window.id.gtid)
        if not rows:
            return None
        fields = [*METADATA, *schema.arrow]
        arrays = [pa.array([r[i] for r in rows], f.type) for i, f in enumerate(fields)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        return Cut(encode(batch, gtids, schema.hash), Counts(*counts))


def _fields(record: CommitRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in CommitRecord.__dataclass_fields__}


@dataclass
class Pipeline:
    """A pipeline in a folder: configuration, log, lake, state."""

    folder: Path
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = State(self.config.state)

    @property
    def config(self) -> PipelineConfig:
        """As from its file."""
        return config(self.folder)

    def lake(self, table: TableName) -> LakeTable:
        """The table's folder in the lake."""
        return LakeTable(self.config.lake_root, table, self.config.name)

    def bootstrap(self, capture: Capture, *tables: TableName, mark: int = 0) -> None:
        """As the snapshot node leaves them: the table at the newest epoch, catching up to the mark after `mark` transactions."""
        e0 = capture.newest
        for table in tables:
            schema, lake = SCHEMAS[table], self.lake(table)
            rows = self.source.rows(table, capture.at)
            arrays = [pa.array([r[i] for r in rows], t) for i, t in enumerate(schema.arrow.types)]
            batch = pa.RecordBatch.from_arrays(arrays, schema=schema.arrow)
            file = lake.write_file([batch], schema, ts_ms=e0.ts_ms, seq=e0.seq)
            logged = capture.states[table.id].totals
            lake.bootstrap([file], schema, Layout(), applied_at(e0), lake.load(), logged)
            self.state.set_table(
                table,
                "catching-up",
                e0=e0.id,
                e0_position=e0.end,
                mark=Source.end(mark),
                mark_server=SERVER,
                error=None,
            )

    def start(self, capture: Capture, *, mark: int = 0) -> None:
        """Add all three tables and bootstrap those that need it."""
        record = capture.add(*SCHEMAS)
        for table in SCHEMAS:
            self.state.set_table(table, "added", added=record.id)
        self.bootstrap(capture, ORDERS, ITEMS, mark=mark)

    def log(self) -> Log:
        """Its log, opened once more."""
        return open_log(self.config.log, self.config.name)

    def merger(self, log: Log) -> Merger:
        """A merger that remembers nothing."""
        return Merger(self.config, log, self.state, SystemClock())

    # -- what is there -------------------------------------------------------------------------------------------------

    def check(self, table: TableName, count: int, events: int = 0) -> Snapshot:
        """That the table is the source after `count` transactions, and so many row events of the next one, exactly. Its newest version."""
        lake, snapshot = self.lake(table), self.snapshot(table)
        found = pa.Table.from_batches(list(lake.scan(snapshot)), lake_schema(lake, snapshot)).to_pylist()
        names = SCHEMAS[table].names
        rows = sorted((tuple(row[n] for n in names) for row in found), key=repr)
        expected = self.source.rows(table, count, events)
        assert rows == expected, f"{table} is not the source after {count} transactions and {events} row events"
        if table == EVENTS:
            gids = [row["_cdc_gid"] for row in found]
            assert len(set(gids)) == len(gids), "a change was appended twice"
        assert snapshot.rows == len(rows)
        return snapshot

    def check_all(self, count: int | None = None) -> None:
        """`check` of every table, after all transactions unless told otherwise."""
        for table in SCHEMAS:
            self.check(table, len(self.source.transactions) if count is None else count)

    def applied(self, table: TableName) -> Applied:
        """What the table's newest commit says."""
        applied = self.snapshot(table).applied
        assert applied is not None
        return applied

    def snapshot(self, table: TableName) -> Snapshot:
        """The table's newest version."""
        snapshot = self.lake(table).load()
        assert snapshot is not None, f"{table} is not there"
        return snapshot

    def commits(self, table: TableName) -> list[Mapping[str, Any]]:
        """What the table's commits say of themselves, oldest first."""
        return [commit.info for commit in deltalog.commits(self.lake(table).folder)]

    def manifest(self) -> Manifest:
        """The newest manifest."""
        found = manifest.read(self.config.lake_root, self.config.name)
        assert found is not None
        return found

    def phases(self) -> dict[TableName, str]:
        """Every table's state."""
        return {t: s.phase for t, s in self.state.tables().items()}


def lake_schema(lake: LakeTable, snapshot: Snapshot) -> pa.Schema:
    """The columns of a scan, which may be empty."""
    own: list[pa.Field[Any]] = [pa.field("_cdc_ts_ms", pa.int64()), pa.field("_cdc_seq", pa.int64())]
    if snapshot.mode == "append":
        own += [pa.field("_cdc_op", pa.string()), pa.field("_cdc_gid", pa.string())]
    return pa.schema([*snapshot.schema.arrow, *own])


def config(folder: Path) -> PipelineConfig:
    """The pipeline in this folder."""
    return PipelineConfig.model_validate(
        {
            "name": "shop",
            "source": {"url": "mysql://lakesync@127.0.0.1:3306"},
            "log": f"sqlite://{folder}/log.db",
            "lake": str(folder / "lake"),
            "state": folder / "state",
            "merge": {"every": "50ms", "keep": "0s"},
        }
    )


def copy_log(folder: Path) -> Path:
    """A copy of the pipeline's log as it is now, to be restored."""
    copy = folder / f"log-{time.monotonic_ns()}.copy"
    with closing(sqlite3.connect(folder / "log.db")) as log, closing(sqlite3.connect(copy)) as target:
        log.backup(target)
    return copy


def restore_log(folder: Path, copy: Path | None) -> None:
    """Put the copy in the log's place: the log loses what came after. None: the log is gone."""
    for suffix in ("-wal", "-shm"):
        (folder / f"log.db{suffix}").unlink(missing_ok=True)
    if copy is None:
        (folder / "log.db").unlink()
    else:
        again = copy.with_suffix(".again")
        shutil.copyfile(copy, again)
        again.replace(folder / "log.db")
