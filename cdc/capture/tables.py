"""Which tables are to be captured: the pipeline file, read again when it changes, and what the server has."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from pymysql.connections import Connection

from cdc.config import PipelineConfig, TableConfig, load
from cdc.errors import ConfigError, LakesyncError, TableStoppedError
from cdc.journal import logger
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.schema import TableSchema
from cdc.source import catalogue
from cdc.state import State

LOG = logger("capture")
OWN_PREFIX = "_cdc_"
"""Columns of this prefix are lakesync's own in the lake."""


@dataclass
class Joining:
    """A table that is to be captured once the stream has passed `end`: by then the stream has told all that made it as it is."""

    schema: TableSchema
    options: dict[str, Any]
    end: BinlogEnd
    requests: list[int] = field(default_factory=list)
    """Those that asked for it (resync); answered once it is captured."""


class PipelineFile:
    """The tables that the pipeline file names, now. Only `tables` is taken from a changed file."""

    def __init__(self, config: PipelineConfig, state: State) -> None:
        self._config = config
        self._state = state
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._config.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def reload(self) -> bool:
        """Read it again if it changed; whether it did. A broken file is said to be so, and what was read before stays."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False
        self._seen = stamp
        try:
            changed = load(self._config.path)
        except ConfigError as error:
            LOG.error("pipeline-file-refused", what=error.what, where=error.where)
            self._state.record_error("capture", error)
            return False
        if changed.tables == self._config.tables:
            return False
        LOG.info("pipeline-file-changed", tables=len(changed.tables))
        self._config = self._config.model_copy(update={"tables": changed.tables})
        return True

    @property
    def has_patterns(self) -> bool:
        """Whether new tables of the server may be meant."""
        return any(e.is_pattern for e in self._config.tables)

    def entry(self, table: TableName) -> TableConfig | None:
        """The entry that means this table, whether it exists or not."""
        return self._config.entry(table)

    def wanted(self, connection: Connection[Any], known: Container[TableName]) -> dict[TableName, TableConfig]:
        """The tables that exist and are meant. Raises `ConfigError` for names of tables that do not exist and are not `known`."""
        chosen, idle = catalogue.select(self._config.tables, catalogue.tables(connection))
        strange = [e for e in idle if not e.is_pattern and e.table not in known]
        if strange:
            catalogue.match(connection, strange)
        catalogue.match(connection, [e for e in self._config.tables if e not in idle])
        return chosen


def describe(connection: Connection[Any], table: TableName, entry: TableConfig) -> tuple[TableSchema, dict[str, Any]]:
    """A table as it is to be captured: schema and options. Raises `TableStoppedError` for one that cannot be."""
    try:
        schema = catalogue.as_configured(catalogue.read_schema(connection, table), entry)
        schema.check()
        catalogue.check_logged(connection, table, schema)
    except TableStoppedError as error:
        error.where = error.where or str(table)
        raise
    try:
        _ = table.folder
    except LakesyncError as error:
        raise TableStoppedError(error.what, where=str(table), hint="rename the table, or exclude it") from None
    if entry.mode == "upsert" and not schema.key:
        raise TableStoppedError(
            "the table has no primary key",
            where=str(table),
            hint=f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…), or `mode: append`; then `lakesync resync {table}`",
        )
    if own := [name for name in schema.names if name.lower().startswith(OWN_PREFIX)]:
        raise TableStoppedError(
            f"column {own[0]}: names that begin with {OWN_PREFIX} are lakesync's own",
            where=str(table),
            hint=f"rename the column, then `lakesync resync {table}`",
        )
    return schema, options(entry)


def options(entry: TableConfig) -> dict[str, Any]:
    """What the log keeps of a table's entry: `mode`, `types`, and `exclude` where there is one."""
    found: dict[str, Any] = {"mode": entry.mode, "types": dict(entry.types)}
    return found | ({"exclude": sorted(entry.exclude)} if entry.exclude else {})
