"""Which tables are to be captured: the pipeline file, read again when it changes, and what the server has."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from pymysql.connections import Connection

from cdc import sharding
from cdc.config import PipelineConfig, TableConfig, load
from cdc.errors import ConfigError, LakesyncError, TableStoppedError
from cdc.journal import logger
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.schema import TableSchema
from cdc.source import catalogue
from cdc.source.catalogue import Target
from cdc.source.connection import place
from cdc.state import State

LOG = logger("capture")
OWN_PREFIX = "_cdc_"
"""Columns of this prefix are lakesync's own in the lake."""
_Stamp = tuple[int, int, int]


@dataclass
class Joining:
    """A table that is to be captured once the stream has passed `end`: by then the stream has told all that made it as it is."""

    schema: TableSchema
    options: dict[str, Any]
    end: BinlogEnd
    requests: list[int] = field(default_factory=list)
    """Those that asked for it (resync); answered once it is captured."""


class PipelineFile:
    """The tables that the pipeline file names, now. Only `tables` is taken from a changed file. One for the life of a capture: what was
    read of a file that is broken since lives here."""

    def __init__(self, config: PipelineConfig, state: State) -> None:
        self._config = config
        self._state = state
        self._last = self._stamp()
        """As it was at the last look."""
        self._read: _Stamp | None = (0, 0, 0)
        """As it was when it was read here; never yet."""
        self._refusal: ConfigError | None = None
        self._misnamed: ConfigError | None = None
        self._later: ConfigError | None = None
        self._confirmed = False
        self.settles = False
        """Whether it changed since the look before, and may be written to still."""

    def _stamp(self) -> _Stamp | None:
        try:
            found = self._config.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    @property
    def problems(self) -> list[LakesyncError]:
        """What is wrong with the file, or with the names in it. What was read of it before holds meanwhile."""
        return [e for e in (self._refusal, self._misnamed, self._later) if e is not None]

    def reload(self) -> bool:
        """Read it again if it changed; whether its tables did. Of a file that is broken, or gone, it is said that it is so, and what was
        read before stays.

        A file that is not the same as at the last look may be half written, and half a list of tables is a list of tables: it is read
        at the next look that finds it as it was.
        """
        before, self._last = self._last, self._stamp()
        self.settles = self._last != before
        if self.settles or self._last == self._read:
            return False
        try:
            if self._last is None:
                raise ConfigError(
                    "the pipeline file is gone", where=str(self._config.path), hint="put it back; what it said holds"
                )
            changed = load(self._config.path)
        except ConfigError as error:
            self._read = self._last
            if self._refusal is None or str(self._refusal) != str(error):
                LOG.error("pipeline-file-refused", what=error.what, where=error.where)
                self._state.record_error("capture", error)
            self._refusal = error
            return False
        if self._stamp() != self._last:
            self.settles = True
            return False
        self._read = self._last
        if self._refusal is not None:
            LOG.info("pipeline-file-good-again")
            self._refusal = None
        return self._take(changed)

    def _take(self, changed: PipelineConfig) -> bool:
        own = self._config.model_copy(update={"tables": changed.tables})
        self._later = None
        if other := [name for name in type(own).model_fields if getattr(own, name) != getattr(changed, name)]:
            LOG.warning("pipeline-file-needs-restart", changed=",".join(other))
            self._later = ConfigError(
                f"changed under the daemon, which takes only `tables` while it runs: {', '.join(other)}",
                where=str(self._config.path),
                hint="end `lakesync run` and start it again: it goes on where it was",
            )
        if changed.tables == self._config.tables:
            return False
        LOG.info("pipeline-file-changed", tables=len(changed.tables))
        self._config = own
        return True

    @property
    def is_open(self) -> bool:
        """Whether new tables of the server may be meant: by patterns, or by names that nothing has yet."""
        return self._misnamed is not None or any(e.is_pattern or e.into is not None for e in self._config.tables)

    def entry(self, table: TableName) -> TableConfig | None:
        """The entry that means this table of the source, whether it exists or not."""
        return self._config.entry(table)

    def landing(self, table: TableName) -> TableConfig | None:
        """The entry that means this table of the lake, as `PipelineConfig.landing`."""
        return self._config.landing(table)

    def wanted(self, connection: Connection[Any], known: Container[TableName]) -> dict[TableName, Target]:
        """The lake's tables that are meant, of tables that exist.

        Raises `ConfigError` for names of tables that do not exist and are not `known`, in the source or the lake, or that are none, until
        there was none once. Later it is a problem, and the others are found.
        """
        present = catalogue.tables(connection)
        chosen, idle = catalogue.select(self._config.tables, present)
        idle = [e for e in idle if e.table not in known and e.target not in known]
        error = catalogue.misnamed(place(connection), present, chosen, idle)
        if error is not None:
            if not self._confirmed:
                raise error
            if self._misnamed is None or str(self._misnamed) != str(error):
                LOG.error("tables-refused", what=error.what, where=error.where, hint=error.hint)
                self._state.record_error("capture", error)
        self._misnamed, self._confirmed = error, True
        others = {t.name for t in present if t.kind != "BASE TABLE"}
        return catalogue.targets({t: e for t, e in chosen.items() if t not in others})


def describe(connection: Connection[Any], table: TableName, target: Target) -> tuple[TableSchema, dict[str, Any]]:
    """A table of the lake as it is to be captured: schema and options. Raises `TableStoppedError` for one that cannot be."""
    entry = target.entry
    if target.shards is None:
        schema = own(connection, table, entry)
        if entry.mode != "append" and not schema.key:
            raise TableStoppedError(
                "the table has no primary key",
                where=str(table),
                hint=f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…), or `mode: append`; then `lakesync resync {table}`",
            )
        if entry.backfill and not schema.key:
            raise TableStoppedError(
                "the table has no primary key, by which its rows could be read",
                where=str(table),
                hint=f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…), or no `backfill:`; then `lakesync resync {table}`",
            )
    else:
        schema = _together(connection, table, target)
    try:
        catalogue.check_layout(schema, entry)
    except TableStoppedError as error:
        raise TableStoppedError(
            error.what, where=str(table), hint=f"{error.hint}; then `lakesync resync {table}`"
        ) from None
    try:
        _ = table.folder
    except LakesyncError as error:
        raise TableStoppedError(error.what, where=str(table), hint="rename the table, or exclude it") from None
    return schema, options(target)


def own(connection: Connection[Any], table: TableName, entry: TableConfig) -> TableSchema:
    """A table of the source, as its entry has it. Raises `TableStoppedError` for columns that cannot be followed."""
    try:
        schema = catalogue.as_configured(catalogue.read_schema(connection, table), entry)
        schema.check()
        catalogue.check_logged(connection, table, schema)
    except TableStoppedError as error:
        error.where = error.where or str(table)
        raise
    if taken := [name for name in schema.names if name.lower().startswith(OWN_PREFIX)]:
        raise TableStoppedError(
            f"column {taken[0]}: names that begin with {OWN_PREFIX} are lakesync's own",
            where=str(table),
            hint=f"rename the column, then `lakesync resync {table}`",
        )
    return schema


def _together(connection: Connection[Any], table: TableName, target: Target) -> TableSchema:
    """The table that shards are together."""
    shards, entry = target.shards or (), target.entry
    if target.clash:
        raise clash(table, entry)
    if not shards:
        raise TableStoppedError("no shard of it exists", where=str(table), hint="create one, then it is added")
    first, *others = shards
    schema = own(connection, first, entry)
    for shard in others:
        if said := catalogue.unlike(schema, own(connection, shard, entry)):
            raise TableStoppedError(
                f"its shards are not alike: {shard} against {first}: {said}",
                where=str(table),
                hint=f"make them alike by ALTER TABLE, or give one an entry of its own; then `lakesync resync {table}`",
            )
    try:
        return sharding.joined(schema, entry.shard_column)
    except TableStoppedError as error:
        error.where = str(table)
        error.hint = f"{error.hint}; then `lakesync resync {table}`"
        raise


def clash(table: TableName, entry: TableConfig) -> TableStoppedError:
    """A table of the source has the name of the one that shards land in, and is meant to land there itself. Pure."""
    return TableStoppedError(
        f"a table of the source has this name too, and is meant by a pattern; {entry.name} is `into: {entry.into}`",
        where=str(table),
        hint=f"name another table by `into:`, or make it a shard: {{name: {table}, into: {table}}};"
        f" then `lakesync resync {table}`",
    )


def options(target: Target) -> dict[str, Any]:
    """What the log keeps of a table's entry: `mode` and `types`, and where they are given `exclude`, `backfill`, `partition_by`,
    `change_feed`, `from_position`; of a table that is made of shards `shards` and `shard_column`. Pure."""
    entry = target.entry
    found: dict[str, Any] = {"mode": entry.mode, "types": dict(entry.types)}
    if entry.exclude:
        found["exclude"] = sorted(entry.exclude)
    if entry.backfill:
        found["backfill"] = True
    if entry.partition_by:
        found["partition_by"] = list(entry.partition_by)
    if entry.change_feed:
        found["change_feed"] = True
    if entry.from_position is not None:
        found["from_position"] = entry.from_position
    if target.shards is not None:
        found |= {"shards": {shard.id: {} for shard in target.shards}, "shard_column": entry.shard_column}
    return found


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two options say the same of a table that is captured: which shards there are may change, and where an adopted table
    was taken over is of the past. Pure."""

    def kept(given: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in given.items() if k not in ("shards", "from_position")}

    return kept(one) == kept(other) and sharding.is_sharded(one) == sharding.is_sharded(other)
