"""Values: every row of the source against every row of the lake, at one position, while writes go on.

A comparison is a window in the log. `opening` is the newest epoch before the source is read, and the server has executed it; the mark
is the end of the binary log after the read; `closing` is the epoch of a lake version that has passed the mark. A key that no
epoch between the two touches has, in that lake version, exactly the row that was read, or the two differ. A key that was
touched says nothing yet: it is read again in another window, a short one, until it is settled. A key that never rests is settled
by its history: the lake must have its last image in the log, and what was read must be one of its images in the window. All
tables share the windows.

The rows of a table that is made of shards are those of all its shards, each read from its own table of the source. The TRUNCATE of a
shard touches every key of it.

Of a table that keeps what the source has no more (`soft-delete`, `history`) the rows that are there now are compared.

Both sides are compared as canonical text (`cdc.source.canonical`), which the server makes for its side: so this does not depend on how
lakesync decodes a value. Of each row only its key and a 128-bit digest are kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pymysql

from cdc import sharding, unfit
from cdc._native import json_patch
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord, EpochId, Op, TableState
from cdc.errors import ConfigError, LakeDamagedError, LogGapError, NotFollowingError
from cdc.lake import manifest
from cdc.lake.deltalog import Applied, Snapshot
from cdc.lake.table import LakeTable
from cdc.log import captured
from cdc.log.base import Log
from cdc.log.codec import UNKNOWN, WIDTH, Changes, Incomplete, decode
from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import TableSchema
from cdc.source import canonical
from cdc.source.connection import connect, translate
from cdc.source.server import Server
from cdc.state import Read, State
from reconcile.found import Difference, TableValues, ValuesReport
from reconcile.scope import WHOLE, Checkpoint, Scope
from reconcile.sources import Rows, SourceRows
from snapshot.chunks import Walk

__all__ = ["Checkpoint", "Difference", "Progress", "Scope", "TableValues", "ValuesReport", "compare", "recheck"]

FOLLOW_S = 120.0
"""How long the lake may take to reach the mark."""
SETTLE_WINDOWS = 20
"""A key that changes all the time is read again so often, then reported as not settled."""
DIFFERENCES_KEPT = 1000
POLL_S = 0.2
ALIVE_S = 15.0
"""A merger whose last sign of life is older than this is not running."""
_DIGEST = "_digest"


Progress = Callable[[str, int], None]
"""Told the table and the rows read so far."""
_Texts = tuple[bytes | None, ...]
"""One row's canonical texts."""


def compare(
    config: PipelineConfig,
    log: Log,
    state: State,
    tables: Sequence[TableName] = (),
    *,
    scope: Scope = WHOLE,
    follow_s: float = FOLLOW_S,
    rows_per_second: int | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    show_values: bool = False,
) -> ValuesReport:
    """Compare these tables, or all that are ready, as far as `scope` says; `rows_per_second` bounds what is read of the source. With a
    `checkpoint`, what an earlier comparison of the same scope has done already is not done again. `show_values`: differences with the
    values of the columns that differ.

    Raises `NotFollowingError` if a table is not ready, the lake does not reach the mark in `follow_s`, or a table changed so that what was
    read says nothing; `ConfigError` for a table that is not configured, or a scope that it does not have; `SourceError`, `LogError`,
    `LakeError`.
    """
    known = state.tables()
    wanted = list(tables) or [t for t, status in known.items() if status.phase != "removed"]
    connection = _ready(config, state, wanted)
    try:
        windows = _Windows(config, log, state, connection, follow_s)
        return _compare([_Table(config, log, state, connection, table, progress) for table in wanted], windows)
    except pymysql.MySQLError as error:
        raise translate(error) from error
    finally:
        connection.close()


def recheck(
    config: PipelineConfig,
    log: Log,
    state: State,
    table: TableName,
    keys: Sequence[Key],
    *,
    follow_s: float = FOLLOW_S,
    show_values: bool = False,
) -> TableValues:
    """Compare the rows with these keys of one table, each until it is settled. Raises as `compare`; `ConfigError` for a key that is none
    of the table's."""
    connection = _ready(config, state, [table])
    try:
        windows = _Windows(config, log, state, connection, follow_s)
        compared = _Table(config, log, state, connection, table, None)
        compared.must_be_whole()
        compared.suspects = compared.keys_of(keys)
        _settle([compared], windows)
        return compared.report()
    except pymysql.MySQLError as error:
        raise translate(error) from error
    finally:
        connection.close()


def _ready(config: PipelineConfig, state: State, wanted: Sequence[TableName]) -> pymysql.Connection[Any]:
    """A connection to the source, once it is known that all of these tables can be compared."""
    known = state.tables()
    for table in wanted:
        if table not in known:
            raise ConfigError("not a table of this pipeline", where=str(table), hint="`lakesync status` lists them")
        if known[table].phase != "ready":
            error = known[table].error
            raise NotFollowingError(
                f"the table is {known[table].phase}, so there is no position at which it could be compared",
                where=str(table),
                hint=(error or {}).get("hint") or "`lakesync status` shows how far it is",
            )
    return connect(config.source, purpose="reconcile")


def _compare(all_tables: list[_Table], windows: _Windows) -> ValuesReport:
    tables = [t for t in all_tables if t.mode != "append"]
    for table in tables:
        table.must_be_whole()
    opening = windows.open()
    for table in tables:
        table.read_all()
    for table, closing in windows.close(opening, tables):
        table.suspect(closing)
    _settle(tables, windows)
    return ValuesReport(tuple(t.report() for t in all_tables))


def _settle(tables: list[_Table], windows: _Windows) -> None:
    for _ in range(SETTLE_WINDOWS):
        open_tables = [t for t in tables if t.suspects.num_rows]
        if not open_tables:
            break
        opening = windows.open()
        for table in open_tables:
            table.read_suspects()
        for table, closing in windows.close(opening, open_tables):
            table.settle(closing)


@dataclass(frozen=True)
class _Closing:
    snapshot: Snapshot
    applied: Applied
    touched: pa.Table
    """Keys that the log touched in the window, old and new, each once."""
    truncated: frozenset[str]
    """Shards that were truncated in the window."""

    def moved(self) -> Callable[[tuple[Any, ...]], bool]:
        """Whether a key was touched."""
        keys = {tuple(row.values()) for row in self.touched.to_pylist()}
        return lambda key: key in keys or key[0] in self.truncated


class _Windows:
    """Opens and closes windows in the log, for several tables at once."""

    def __init__(
        self, config: PipelineConfig, log: Log, state: State, connection: pymysql.Connection[Any], follow_s: float
    ) -> None:
        self.config, self.log, self.state, self.follow_s = config, log, state, follow_s
        self.server = Server(connection)

    def open(self) -> CommitRecord:
        known = captured.read(self.log)
        if known is None:
            raise NotFollowingError("the log is empty", where=self.config.name, hint="start `lakesync run`")
        record = known.record  # whole: of a transaction in part the window would miss the changes of its first parts
        if not self.server.wait_visible(record.end, self.follow_s):
            raise NotFollowingError(
                "the source has not executed what the log has",
                where=self.config.name,
                hint="is this the server that capture reads?",
            )
        return record

    def close(self, opening: CommitRecord, tables: Sequence[_Table]) -> Iterator[tuple[_Table, _Closing]]:
        """For each table the first lake version found that has passed the end of the binary log as it is now."""
        mark, server = self.server.binlog_end(), self.server.identity().uuid
        deadline = time.monotonic() + self.follow_s
        for table in tables:
            awaited: set[str] | None = None
            while True:
                # What could not be completed is in the lake once it is read again; what comes later is of keys that the window touches.
                again = {r.job for r in self.state.reads_of("repair") if r.target == table.table and _comes(r)}
                snapshot = table.lake.load()
                assert snapshot is not None
                found = manifest.read(self.config.lake_root, self.config.name)
                applied = manifest.carried(table.table, snapshot, found)
                here = applied is not None and applied.position.server_uuid == server
                # By number too: an epoch that only adds a table ends where the one before it did.
                passed = applied and here and applied.position.whole and applied.position.end >= mark
                if awaited is None and passed:
                    awaited = again
                if applied and passed and applied.epoch.number >= opening.number and awaited and awaited & again:
                    passed = False
                if applied and passed and applied.epoch.number >= opening.number:
                    table.must_be_as_it_was()
                    yield table, _Closing(snapshot, applied, *table.touched(opening, applied))
                    break
                self.must_follow(table.table, deadline)
                time.sleep(POLL_S)

    def must_follow(self, table: TableName, deadline: float) -> None:
        """Raise `NotFollowingError` where waiting is of no use."""
        merger = self.state.nodes().get("merge")
        age = time.time() - merger.at_us / 1e6 if merger else None
        if age is None or age > ALIVE_S:
            last = "never seen" if age is None else f"last seen {age:,.0f} s ago"
            raise NotFollowingError(
                f"the lake does not follow: no merger is running ({last})",
                where=str(table),
                hint="start `lakesync run`",
            )
        status = self.state.table(table)
        if status is None or status.phase != "ready":
            hint = (status.error or {}).get("hint") if status else None
            raise NotFollowingError(
                f"the lake does not follow: the table is {status.phase if status else 'unknown'}",
                where=str(table),
                hint=hint or "see `lakesync status`",
            )
        if time.monotonic() > deadline:
            raise NotFollowingError(
                f"the lake did not reach the source's position within {self.follow_s:.0f} s",
                where=str(table),
                hint="see the lag in `lakesync status`, and try again",
            )


class _Table:
    """One table's comparison: read, suspect, settle."""

    def __init__(
        self,
        config: PipelineConfig,
        log: Log,
        state: State,
        connection: pymysql.Connection[Any],
        table: TableName,
        progress: Progress | None,
    ) -> None:
        self.state = state
        self.log, self.table = log, table
        self.lake = LakeTable(config.lake_root, table, config.name)
        snapshot = self.lake.load()
        if snapshot is None:
            raise NotFollowingError(
                "the lake has no such table", where=str(table), hint=f"`lakesync resync {table}` makes it anew"
            )
        self.schema: TableSchema = snapshot.schema
        self.mode = snapshot.mode
        self.key = list(self.schema.key)
        self.options = self.captured().options
        self.rows = SourceRows(connection, table, self.schema, self.options, progress)
        self.suspects = self.key_schema.empty_table()
        self.source = self.lake_rows = pa.table({})
        self.again: dict[tuple[Any, ...], list[_Texts]] = {}
        self.last: EpochId | None = None
        self.last_lake: dict[tuple[Any, ...], list[_Texts]] = {}
        self.found: list[Difference] = []
        self.found_keys: list[dict[str, Any]] = []
        self.settled = self.epoch = 0

    def captured(self) -> TableState:
        """What the log says of the table now."""
        known = captured.read(self.log)
        found = known.newest_tables.get(self.table.id) if known else None
        if found is None:
            raise NotFollowingError("the table is not captured", where=str(self.table), hint="see `lakesync status`")
        return found

    def must_be_whole(self) -> None:
        """Raise `NotFollowingError` where a shard came whose rows are not in the lake yet."""
        found = self.captured()
        for shard, since in sharding.shards(found.options).items():
            if since is None:
                continue  # the table was not ready before they were read
            read = self.state.read(sharding.job(self.log.uuid, self.table.id, found, shard))
            if read is None or read.phase != "done":
                raise NotFollowingError(
                    f"the rows of its shard {shard} are being read",
                    where=str(self.table),
                    hint="`lakesync status` shows how far that is",
                )

    def must_be_as_it_was(self) -> None:
        """Raise `NotFollowingError` where shards came or went since the comparison began."""
        now = self.captured().options
        if sharding.shards(now).keys() != sharding.shards(self.options).keys():
            raise NotFollowingError("its shards changed during the comparison", where=str(self.table), hint="try again")

    def keys_of(self, keys: Sequence[Key]) -> pa.Table:
        """These keys in the lake's types, each once. Raises `ConfigError` for one that is none of the table's."""
        walk = Walk(self.table, self.schema)
        try:
            return _distinct(walk.keys_of([walk.bound_of([str(cell) for cell in key]) for key in keys]), self.key)
        except (ValueError, pa.ArrowInvalid) as error:
            raise ConfigError(
                "not a key of the table", where=str(self.table), hint="see the types of its key"
            ) from error

    def report(self) -> TableValues:
        """What came of it."""
        note = f"mode {self.mode}: its rows are changes, the ledger counts them" if self.mode == "append" else ""
        return TableValues(
            str(self.table),
            self.epoch,
            self.source.num_rows,
            self.lake_rows.num_rows,
            self.settled,
            self.suspects.num_rows,
            len(self.found),
            tuple(self.found[:DIFFERENCES_KEPT]),
            note,
            found=pa.Table.from_pylist(self.found_keys, schema=self.key_schema),
        )

    def read_all(self) -> None:
        """The whole table, from the source."""
        self.source = self.digests(self.rows.whole())

    def suspect(self, closing: _Closing) -> None:
        """Keys that differ, or that the stream touched meanwhile."""
        self.lake_rows = self.digests(self.read_lake(closing.snapshot))
        unlike = _unlike(self.source, self.lake_rows, self.key)
        touched = [unlike, closing.touched.select(self.key)]
        if closing.truncated:
            shards = pa.array(sorted(closing.truncated), pa.string())
            touched += [
                rows.filter(pc.is_in(rows.column(self.key[0]), value_set=shards)).select(self.key)
                for rows in (self.source, self.lake_rows)
            ]
        self.suspects = _distinct(pa.concat_tables(touched), self.key)
        self.epoch = closing.applied.epoch.number

    def read_suspects(self) -> None:
        """The suspects alone, from the source."""
        self.again = _by_key(self.rows.points(self.suspects))

    def settle(self, closing: _Closing) -> None:
        """Judge the suspects; those of which nothing can be said yet stay."""
        lake = _by_key(self.read_lake(closing.snapshot, self.suspects))
        moved = closing.moved()
        suspects = [tuple(row.values()) for row in self.suspects.to_pylist()]
        images = self.images(closing.applied, set(filter(moved, suspects))) if self.last else {}
        left = []
        for row, key in zip(self.suspects.to_pylist(), suspects, strict=True):
            source, there = self.again.get(key, []), lake.get(key, [])
            if not moved(key):
                self.settled += 1
                if difference := self.difference(key, source, there):
                    self.found.append(difference)
                    self.found_keys.append(row)
            elif key in images and self.is_in_history(key, source, there, images[key]):
                self.settled += 1
            else:
                left.append(row)
        self.suspects = pa.Table.from_pylist(left, schema=self.suspects.schema)
        self.epoch = closing.applied.epoch.number
        self.last, self.last_lake = closing.applied.epoch, lake

    def is_in_history(
        self, key: tuple[Any, ...], source: list[_Texts], lake: list[_Texts], images: list[list[_Texts]]
    ) -> bool:
        """Of a key that never rests: the lake has the last image of the log, and the source had one that the log knows."""
        history = [self.last_lake.get(key, []), *images]
        return lake == history[-1] and source in history

    def images(self, applied: Applied, keys: set[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[list[_Texts]]]:
        """What these keys were, one after the other, from the window before to this one's closing; without those of which the log does not
        say it all."""
        found: dict[tuple[Any, ...], list[list[_Texts]]] = {}
        unknown: set[tuple[Any, ...]] = set()
        assert self.last is not None
        for changes in self.changes(self.last, applied):
            operations = changes.batch.column(0).to_pylist()
            columns = changes.batch.columns[WIDTH : WIDTH + len(self.schema.columns)]
            names = zip(*(columns[self.schema.names.index(k)].to_pylist() for k in self.key), strict=True)
            texts = [
                canonical.texts(c, a, changes.unfit).cast(pa.binary())
                for c, a in zip(self.schema.columns, columns, strict=True)
            ]
            given = _Given.of(changes, self.schema)
            for n, key in enumerate(names):
                if operations[n] == Op.TRUNCATE:
                    for one in keys:
                        if one[0] == key[0]:
                            found.setdefault(one, []).append([])
                elif key in keys:
                    gone = operations[n] in (Op.DELETE, Op.MOVE_OUT)
                    image: list[_Texts] = [] if gone else [tuple(t[n].as_py() for t in texts)]
                    if image and given is not None and not given.is_whole(n):
                        history = found.get(key) or [self.last_lake.get(key, [])]
                        made = given.completed(n, image[0], history[-1])
                        if made is None:
                            unknown.add(key)
                        image = [made or image[0]]
                    found.setdefault(key, []).append(image)
        return {key: history for key, history in found.items() if key not in unknown}

    def difference(self, key: tuple[Any, ...], source: list[_Texts], lake: list[_Texts]) -> Difference | None:
        name = ", ".join(k.hex() if isinstance(k, bytes) else str(k) for k in key)
        if len(lake) > 1:
            return Difference(name, f"{len(lake)} times in the lake")
        if source == lake:
            return None
        if not source or not lake:
            return Difference(name, "extra in the lake" if not source else "missing in the lake")
        unlike = zip(self.schema.names, source[0], lake[0], strict=True)
        return Difference(name, "different", tuple(column for column, one, other in unlike if one != other))

    def touched(self, opening: CommitRecord, applied: Applied) -> tuple[pa.Table, frozenset[str]]:
        """Keys of every row image between the opening and the applied epoch, those of windowed reads too, each once; and the shards
        that were truncated."""
        keys, truncated = [self.key_schema.empty_table()], set[str]()
        for changes in self.changes(opening.id, applied):
            columns = {k: changes.batch.column(WIDTH + self.schema.names.index(k)) for k in self.key}
            rows = pa.table(columns, schema=self.key_schema)
            truncations: Any = pc.equal(changes.batch.column(0), pa.scalar(Op.TRUNCATE, pa.int8()))
            if pc.any(truncations).as_py():
                truncated.update(map(str, rows.filter(truncations).column(self.key[0]).to_pylist()))
                rows = rows.filter(pc.invert(truncations))
            keys.append(rows)
        return _distinct(pa.concat_tables(keys), self.key), frozenset(truncated)

    def changes(self, after: EpochId, applied: Applied) -> Iterator[Changes]:
        """The table's changes after one epoch, up to the applied one. Raises `LogGapError` if the log does not lead from there to here."""
        before = after.hash
        if applied.epoch == after:
            return
        for record in self.log.records(after.number):
            if record.before != before:
                raise LogGapError("the log changed during the comparison", where=str(self.table), hint="try again")
            before = record.hash
            if entry := record.tables.get(self.table.id):
                yield from map(decode, self.log.data(self.table.id, entry.extent))
            if record.id == applied.epoch:
                return
        raise LogGapError("the log does not lead to the lake's epoch", where=str(self.table), hint="try again")

    @property
    def key_schema(self) -> pa.Schema:
        return pa.schema([self.schema.arrow.field(k) for k in self.key])

    # -- rows ----------------------------------------------------------------------------------------------------------

    def read_lake(self, snapshot: Snapshot, only: pa.Table | None = None) -> Iterator[Rows]:
        found: Iterable[pa.RecordBatch] = self.lake.scan(snapshot, live=True)
        if only is not None:
            try:
                found = self.lake.rows(snapshot, only).to_batches()
            except LakeDamagedError:
                # A key that is there twice is what is looked for here.
                found = [b for batch in found for b in _with_keys(batch, only, self.key)]
        for batch in found:
            kept = batch.column(unfit.NAME) if unfit.is_last(batch.schema) else None
            texts = [canonical.texts(c, batch.column(c.name), kept) for c in self.schema.columns]
            yield pa.Table.from_batches([batch]).select(self.key), texts

    def digests(self, rows: Iterator[Rows]) -> pa.Table:
        """Key columns and a digest of the row, 16 bytes."""
        schema = self.key_schema.append(pa.field(_DIGEST, pa.binary(16)))
        tables = [keys.append_column(_DIGEST, _digests(texts)).cast(schema) for keys, texts in rows]
        return pa.concat_tables(tables) if tables else schema.empty_table()


class _Given:
    """What changes of which some are incomplete have of their rows."""

    def __init__(self, changes: Changes, incomplete: Incomplete, width: int) -> None:
        self._known = incomplete.known(width)
        self._diffs = incomplete.diffs
        batch = changes.batch
        gids = list(zip(*(batch.column(n).to_pylist() for n in (1, 2, 3)), strict=True))
        ops = batch.column(0).to_pylist()
        out = {gid for gid, op in zip(gids, ops, strict=True) if op == Op.MOVE_OUT}
        self._follows = [op == Op.UPDATE and gid not in out for gid, op in zip(gids, ops, strict=True)]

    @classmethod
    def of(cls, changes: Changes, schema: TableSchema) -> _Given | None:
        incomplete = changes.incomplete
        return None if incomplete is None else cls(changes, incomplete, len(schema.columns))

    def is_whole(self, n: int) -> bool:
        return bool(self._known[n].all())

    def completed(self, n: int, image: _Texts, before: list[_Texts]) -> _Texts | None:
        """A row with the values of the one before it under the same key; None: they are not the same row's, or not known."""
        if not self._follows[n] or len(before) != 1:
            return None
        made = [new if known else old for new, old, known in zip(image, before[0], self._known[n], strict=True)]
        for diff in self._diffs[n].as_py():
            old = made[diff["column"]]
            text = None if old is None or diff["op"] == UNKNOWN else json_patch(old.decode(), [_patch(diff)])
            if text is None:
                return None
            made[diff["column"]] = text.encode()
        return tuple(made)


def _patch(diff: dict[str, Any]) -> tuple[int, str, str | None]:
    return diff["op"], diff["path"], diff["value"]


def _comes(read: Read) -> bool:
    """Whether its rows are to come, or are not known to be in the lake."""
    return read.open or read.phase == "done"


def _digests(texts: list[pa.Array[Any]]) -> pa.Array[Any]:
    """One digest a row, over every column's length and bytes; NULL is unlike any text."""
    parts: list[Any] = []
    for text in texts:
        data: Any = text.cast(pa.binary())
        length: Any = pc.binary_length(data).cast(pa.string()).cast(pa.binary())
        parts += [length.fill_null(b"-"), data.fill_null(b"")]
    joined: Any = pc.binary_join_element_wise(*parts, b":")
    digests = [hashlib.blake2b(row, digest_size=16).digest() for row in joined.to_pylist()]
    return pa.array(digests, pa.binary(16))


def _unlike(source: pa.Table, lake: pa.Table, key: list[str]) -> pa.Table:
    """Keys whose rows are not the same on both sides, or are on one side twice."""
    other = f"{_DIGEST}_lake"
    joined = source.join(lake.rename_columns([*key, other]), key, join_type="full outer")
    same: Any = pc.equal(joined.column(_DIGEST), joined.column(other))
    unlike = joined.filter(pc.invert(same.fill_null(False))).select(key)
    counted = lake.group_by(key).aggregate([([], "count_all")])
    twice = counted.filter(pc.field("count_all") > 1).select(key)
    return pa.concat_tables([unlike, twice.cast(unlike.schema)])


def _with_keys(batch: pa.RecordBatch, keys: pa.Table, names: list[str]) -> list[pa.RecordBatch]:
    """The rows with these keys. By their places: joins take no maps and lists along."""
    place = "_place"
    rows = pa.Table.from_batches([batch])
    placed = rows.select(names).append_column(place, pa.array(np.arange(batch.num_rows)))
    return rows.take(placed.join(keys, names, join_type="left semi").column(place)).to_batches()


def _distinct(rows: pa.Table, key: list[str]) -> pa.Table:
    return rows.select(key).group_by(key).aggregate([]).select(key)


def _by_key(rows: Iterator[Rows]) -> dict[tuple[Any, ...], list[_Texts]]:
    """For each key the canonical texts of every row that has it."""
    found: dict[tuple[Any, ...], list[_Texts]] = {}
    for keys, texts in rows:
        cells = zip(*(t.cast(pa.binary()).to_pylist() for t in texts), strict=True)
        for key, row in zip(keys.to_pylist(), cells, strict=True):
            found.setdefault(tuple(key.values()), []).append(row)
    return found
