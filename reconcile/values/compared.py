"""A table that is compared: what log and lake say of it, and what of it the comparison is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cdc import sharding
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord, EpochId, Op, TableState
from cdc.errors import ConfigError, LogGapError, NotFollowingError
from cdc.lake.deltalog import Applied, Snapshot
from cdc.lake.table import LakeTable
from cdc.log import captured
from cdc.log.base import Log
from cdc.log.codec import WIDTH, Changes, decode
from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import Column, TableSchema
from cdc.source import canonical
from cdc.state import State
from reconcile.values.keysets import distinct
from reconcile.values.scope import Scope
from snapshot.chunks import Walk

_TIMES = frozenset({"date", "datetime", "timestamp"})


class Compared:
    """One table. Raises `NotFollowingError` where the lake has none, `ConfigError` for a scope that it does not have."""

    def __init__(self, config: PipelineConfig, log: Log, state: State, table: TableName, scope: Scope) -> None:
        self.config, self.log, self.state, self.table, self.scope = config, log, state, table, scope
        self.lake = LakeTable(config.lake_root, table, config.name)
        snapshot = self.lake.load()
        if snapshot is None:
            raise NotFollowingError(
                "the lake has no such table", where=str(table), hint=f"`lakesync resync {table}` makes it anew"
            )
        self.snapshot: Snapshot = snapshot
        """The lake's as the comparison began."""
        self.schema: TableSchema = snapshot.schema
        self.mode = snapshot.mode
        self.key = list(self.schema.key)
        self.options = self.captured().options
        self.columns: tuple[Column, ...] = self._columns()
        self.timed: Column | None = self._timed()

    # -- what is asked for ---------------------------------------------------------------------------------------------

    def _columns(self) -> tuple[Column, ...]:
        """Those that are compared: the key's, and those that the scope names."""
        wanted = self.scope.columns
        if unknown := [name for name in wanted if name not in self.schema.names]:
            raise ConfigError(
                f"the table has no column {unknown[0]}", where=str(self.table), hint="its columns are those of the lake"
            )
        return tuple(c for c in self.schema.columns if not wanted or c.name in wanted or c.name in self.key)

    def _timed(self) -> Column | None:
        if self.scope.between is None:
            return None
        name, *edges = self.scope.between
        found = next((c for c in self.schema.columns if c.name == name), None)
        if found is None or found.type not in _TIMES or name in self.schema.overrides:
            raise ConfigError(
                f"column {name} is none of dates or times",
                where=str(self.table),
                hint="name a DATE, DATETIME or TIMESTAMP",
            )
        try:
            for edge in edges:
                pa.scalar(edge).cast(pa.timestamp("us"))
        except pa.ArrowInvalid:
            raise ConfigError(
                "not a time",
                where=f"{self.table}, column {name}",
                hint="write it as 2026-01-31 or 2026-01-31 12:00:00, in UTC",
            ) from None
        return found

    @property
    def key_schema(self) -> pa.Schema:
        """Of the key's columns, in the lake's types."""
        return pa.schema([self.schema.arrow.field(k) for k in self.key])

    def keys_of(self, keys: Sequence[Key]) -> pa.Table:
        """These keys in the lake's types, each once. Raises `ConfigError` for one that is none of the table's."""
        return distinct(self.typed(keys), self.key)

    def typed(self, keys: Sequence[Key]) -> pa.Table:
        """These keys in the lake's types. Raises as `keys_of`."""
        walk = Walk(self.table, self.schema)
        try:
            return walk.keys_of([walk.bound_of([str(cell) for cell in key]) for key in keys])
        except (ValueError, IndexError, pa.ArrowInvalid) as error:
            raise ConfigError(
                "not a key of the table", where=str(self.table), hint="see the types of its key"
            ) from error

    def written(self, keys: pa.Table) -> list[Key]:
        """These keys as a request to read them again has them."""
        return canonical.key_texts(self.schema, keys)

    # -- whether it can be compared ------------------------------------------------------------------------------------

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

    def must_be_as_it_was(self, snapshot: Snapshot) -> None:
        """Raise `NotFollowingError` where shards came or went, or the columns changed, since the comparison began."""
        now = self.captured().options
        if sharding.shards(now).keys() != sharding.shards(self.options).keys():
            raise NotFollowingError("its shards changed during the comparison", where=str(self.table), hint="try again")
        if snapshot.schema != self.schema or snapshot.mode != self.mode:
            raise NotFollowingError(
                "its columns changed during the comparison", where=str(self.table), hint="try again"
            )

    # -- what the stream did to it -------------------------------------------------------------------------------------

    def touched(self, opening: CommitRecord, applied: Applied) -> tuple[pa.Table, frozenset[str]]:
        """Keys of every row image between the opening and the applied epoch, those of windowed reads too, each once; and the shards
        that were truncated."""
        keys, truncated = [self.key_schema.empty_table()], set[str]()
        for changes in self.changes(opening.id, applied):
            columns = {k: changes.batch.column(WIDTH + self.schema.names.index(k)) for k in self.key}
            rows = pa.table(columns, schema=self.key_schema)
            truncations = pc.equal(changes.batch.column(0), pa.scalar(Op.TRUNCATE, pa.int8()))
            if pc.any(truncations).as_py():
                truncated.update(map(str, rows.filter(truncations).column(self.key[0]).to_pylist()))
                rows = rows.filter(pc.invert(truncations))
            keys.append(rows)
        return distinct(pa.concat_tables(keys), self.key), frozenset(truncated)

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
