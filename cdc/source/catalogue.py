"""Tables and their columns, from `information_schema`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import translate as pattern
from typing import Any, NamedTuple

import pymysql
from pymysql.connections import Connection
from pymysql.constants import ER
from pymysql.cursors import Cursor

from cdc import partitioning
from cdc.config import HISTORY_COLUMNS, TableConfig
from cdc.errors import ConfigError, SourceError, TableStoppedError
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from cdc.source.connection import account, grant, is_mariadb, place, translated
from cdc.source.digests import LONG, Hints

SYSTEM_SCHEMAS = frozenset({"mysql", "sys", "information_schema", "performance_schema", "ndbinfo"})
"""Never matched by a pattern."""

# gh-ost: _t_gho, _t_ghc, _t_ghk, _t_del, _t_20240101120000_del; pt-online-schema-change: _t_new, __t_new, _t_old; Spirit: _t_chkpnt;
# LHM: lhmn_t, lhma_….
_GHOST = re.compile(r"_.*_(gho|ghc|ghk|del|new|old|chkpnt)|lhm[na]_.*", re.DOTALL)

_TYPES = {
    "char": "text",
    "varchar": "text",
    "tinytext": "text",
    "text": "text",
    "mediumtext": "text",
    "longtext": "text",
    "varbinary": "varbinary",
    "tinyblob": "varbinary",
    "blob": "varbinary",
    "mediumblob": "varbinary",
    "longblob": "varbinary",
    "integer": "int",
    **dict.fromkeys(
        (
            "point",
            "linestring",
            "polygon",
            "multipoint",
            "multilinestring",
            "multipolygon",
            "geomcollection",
            "geometrycollection",
        ),
        "geometry",
    ),
}
"""`information_schema`'s DATA_TYPE as `Column.type`, where they differ."""

FEED_COLUMNS = frozenset({"_change_type", "_commit_version", "_commit_timestamp"})
"""What readers of Delta's change data feed get beside a table's columns."""
_LOGGED = {"uuid": ("binary", 16), "inet6": ("binary", 16), "inet4": ("binary", 4), "vector": ("varbinary", 0)}
"""Types of which MariaDB's binary log says only how they are stored."""
_COMPRESSED = re.compile(r"/\*M?!\d+ COMPRESSED\*/$", re.IGNORECASE)
_SIGNED = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "double", "float"})
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r", "\\": "\\"}

_BEYOND = re.compile("[\U00010000-\U0010ffff]")

_COLUMNS = """
SELECT c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_TYPE, c.CHARACTER_OCTET_LENGTH, c.NUMERIC_PRECISION, c.NUMERIC_SCALE,
       c.DATETIME_PRECISION, c.CHARACTER_SET_NAME, s.SEQ_IN_INDEX
FROM information_schema.COLUMNS c
LEFT JOIN information_schema.STATISTICS s ON s.TABLE_SCHEMA = c.TABLE_SCHEMA AND s.TABLE_NAME = c.TABLE_NAME
     AND s.COLUMN_NAME = c.COLUMN_NAME AND s.INDEX_NAME = 'PRIMARY'
WHERE c.TABLE_SCHEMA = %s AND c.TABLE_NAME = %s ORDER BY c.ORDINAL_POSITION
"""

_GENERATED = """
SELECT COLUMN_NAME FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND IS_GENERATED = 'ALWAYS' ORDER BY ORDINAL_POSITION
"""

_HINTS = f"""
SELECT COLUMN_NAME, IS_NULLABLE = 'NO', COALESCE(CHARACTER_OCTET_LENGTH <= {LONG}, 0) FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s
"""


class TableInfo(NamedTuple):
    """A table, or a view, as `information_schema.TABLES` has it."""

    name: TableName
    kind: str
    """BASE TABLE, VIEW or SYSTEM VIEW."""
    engine: str


def _query(connection: Connection[Any], sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    with translated(connection), connection.cursor(Cursor) as cursor:
        cursor.execute(sql, arguments or None)
        return list(cursor.fetchall())


def parse_members(column_type: str) -> tuple[str, ...]:
    """The members in a COLUMN_TYPE such as `enum('a','it''s')`."""
    members, at = [], column_type.index("(") + 1
    while at < len(column_type) and column_type[at] == "'":
        at += 1
        text: list[str] = []
        while True:
            char = column_type[at]
            if char == "\\":
                text.append(_ESCAPES.get(column_type[at + 1], column_type[at + 1]))
                at += 2
            elif char != "'":
                text.append(char)
                at += 1
            elif column_type[at + 1 : at + 2] == "'":
                text.append("'")
                at += 2
            else:
                break
        members.append("".join(text))
        at += 2  # the quote and the comma
    return tuple(members)


def make_column(
    name: str, data_type: str, column_type: str, octets: int, precision: int, scale: int, fraction: int, charset: str
) -> Column:
    """One row of `information_schema.COLUMNS`, NULLs as 0 and empty. A column that MariaDB compresses has a type of its own."""
    kind = _TYPES.get(data_type, data_type)
    if _COMPRESSED.search(column_type):
        kind = f"compressed {data_type}"
    if kind in ("enum", "set"):
        charset = charset or "binary"  # MySQL has no name for that
    return Column(
        name,
        kind,
        unsigned=kind in _SIGNED and "unsigned" in column_type,
        length=octets if kind == "binary" else precision if kind == "bit" else 0,
        precision=precision if kind == "decimal" else 0,
        scale=scale if kind == "decimal" else fraction if kind in ("datetime", "timestamp", "time") else 0,
        charset={"utf8": "utf8mb3"}.get(charset, charset) if kind in ("text", "enum", "set") else "",
        members=parse_members(column_type) if kind in ("enum", "set") else (),
    )


def read_schema(connection: Connection[Any], table: TableName) -> TableSchema:
    """The table's columns and primary key, without overrides; also of types that cannot be read yet (`TableSchema.arrow` refuses).

    Invisible and generated columns, and generated invisible primary keys, are columns like others. Raises `TableStoppedError` for a
    table that does not exist, or that the account may not read as a whole.
    """
    rows = _query(connection, _COLUMNS, table.schema, table.name)
    give = grant("SELECT", table.quoted, account(connection))
    absent = TableStoppedError(
        "the table does not exist, or may not be read", where=str(table), hint=f"create it, or {give}"
    )
    if not rows:
        raise absent
    try:
        readable = may_select(connection, table)
    except SourceError:
        if is_gone(connection, table):  # since its columns were read
            raise absent from None
        raise
    if not readable:
        # With SELECT on some columns only, information_schema shows these as if they were all.
        raise TableStoppedError("the account may not read all columns", where=str(table), hint=give)
    columns, key = [], {}
    for name, data_type, column_type, octets, precision, scale, fraction, charset, seq in rows:
        column = make_column(
            name, data_type, column_type, octets or 0, precision or 0, scale or 0, fraction or 0, charset or ""
        )
        columns.append(column)
        if seq is not None:
            key[int(seq)] = name
    return TableSchema(tuple(columns), tuple(key[n] for n in sorted(key)))


def hints(connection: Connection[Any], table: TableName) -> Hints:
    """What makes digests of a table's rows quicker; nothing of a table that does not exist."""
    rows = _query(connection, _HINTS, table.schema, table.name)
    return Hints(
        frozenset(name for name, required, _ in rows if required),
        frozenset(name for name, _, short in rows if short),
    )


def may_select(connection: Connection[Any], table: TableName) -> bool:
    """Whether the account may read every column. Raises `SourceError` for a table that does not exist."""
    try:
        _query(connection, f"SELECT * FROM {table.quoted} LIMIT 0")
    except SourceError as error:
        if error.hint.startswith("GRANT"):
            return False
        raise
    return True


def is_gone(connection: Connection[Any], table: TableName) -> bool:
    """Whether the server says that there is no such table, or schema; one that may only not be read is there. Raises `SourceError`."""
    with translated(connection), connection.cursor(Cursor) as cursor:
        try:
            cursor.execute(f"SELECT * FROM {table.quoted} LIMIT 0")
        except pymysql.err.MySQLError as error:
            if error.args and error.args[0] in (ER.NO_SUCH_TABLE, ER.BAD_DB_ERROR):
                return True
            raise
    return False


def as_configured(found: TableSchema, entry: TableConfig) -> TableSchema:
    """A table's schema with what the pipeline file says of its columns. Raises `TableStoppedError` for excluded columns that do not
    exist, or are the key's. Pure."""
    if strange := sorted(set(entry.exclude) - set(found.names)):
        raise TableStoppedError(
            f"exclude: names column {strange[0]}, which does not exist", hint="correct the pipeline file"
        )
    return found.without(entry.exclude).with_overrides(entry.types)


def check_layout(schema: TableSchema, entry: TableConfig) -> None:
    """Raise `TableStoppedError` unless the lake can hold a table with these columns, which are readable, as the pipeline file says. Pure."""
    partitioning.check(schema, entry.partition_by)
    if entry.mode == "history" and (taken := [name for name in schema.names if name.lower() in HISTORY_COLUMNS]):
        raise TableStoppedError(
            f"mode: history: column {taken[0]} has the name of one that the mode adds",
            hint="rename it, leave it out (`exclude:`), or take another mode",
        )
    if entry.change_feed and (taken := [name for name in schema.names if name.lower() in FEED_COLUMNS]):
        raise TableStoppedError(
            f"change_feed: column {taken[0]} has the name of one that Delta's change data feed adds",
            hint="rename it, leave it out (`exclude:`), or have no change feed",
        )


def as_catalogued(schema: TableSchema) -> TableSchema:
    """A schema of the binary log as `information_schema` would tell it: there, characters beyond U+FFFF in ENUM and SET members are `?`
    (so are they in SHOW CREATE TABLE). Compare this with what `read_schema` gave; values are right either way. Pure."""
    columns = tuple(
        replace(c, members=tuple(_BEYOND.sub("?", m) for m in c.members)) if c.members else c for c in schema.columns
    )
    return replace(schema, columns=columns)


def as_followed(captured: TableSchema, found: TableSchema) -> TableSchema:
    """A schema of the binary log, with what only `information_schema` knows taken from the schema of the captured table: excluded
    columns, overrides, the types that MariaDB's log does not name (UUID, INET4, INET6, VECTOR). Pure.

    Where `difference` finds none, it is the captured table's, with ENUM and SET members as they really are.
    """
    known = {_as_logged(c): c for c in captured.columns if c.type in _LOGGED}
    columns = tuple(known.get(c, c) for c in found.columns if c.name not in captured.exclude)
    return TableSchema(columns, found.key, captured.overrides, captured.exclude)


def _as_logged(column: Column) -> Column:
    kind, length = _LOGGED[column.type]
    return replace(column, type=kind, length=length)


def difference(captured: TableSchema, found: TableSchema) -> str:
    """What differs between a captured table and what `information_schema` or the binary log says of it now, in words; empty if the
    columns that are kept, and the key, are the same. Pure."""
    found = as_catalogued(as_followed(captured, found))
    captured = as_catalogued(captured)
    before = {c.name: c for c in captured.columns}
    after = {c.name: c for c in found.columns}
    said = [f"column {name} is gone" for name in before if name not in after]
    said += [f"column {name} is new" for name in after if name not in before]
    said += [
        f"column {name} is {_describe(after[name])}, was {_describe(column)}"
        for name, column in before.items()
        if name in after and after[name] != column
    ]
    if not said and captured.names != found.names:
        said.append("the columns' order changed")
    if captured.key != found.key:
        said.append(f"the key is ({', '.join(found.key)}), was ({', '.join(captured.key)})")
    return "; ".join(said)


def unlike(schema: TableSchema, found: TableSchema) -> str:
    """What differs between two shards of a table, in words; empty if nothing does. Pure."""
    # Both ways: of types that MariaDB's log does not name, `difference` takes the first one's word.
    return difference(schema, found) or difference(found, schema)


def _describe(column: Column) -> str:
    parts = [f"{k} {v}" for k, v in column.to_dict().items() if k not in ("name", "type", "members")]
    parts += [f"{len(column.members)} members"] if column.members else []
    return f"{column.type} ({', '.join(parts)})" if parts else column.type


def check_logged(connection: Connection[Any], table: TableName, schema: TableSchema) -> None:
    """Raise `TableStoppedError` for a column of `schema` that the server's binary log does not always have: MariaDB leaves generated
    columns out of updates and deletes, whatever binlog_row_image says."""
    if not is_mariadb(connection):
        return
    rows = _query(connection, _GENERATED, table.schema, table.name)
    if left_out := [name for (name,) in rows if name in schema.names]:
        raise TableStoppedError(
            f"column {left_out[0]}: MariaDB's binary log leaves generated columns out of updates",
            hint=f"leave out what can be computed: `exclude: [{', '.join(left_out)}]`",
        )


def tables(connection: Connection[Any]) -> list[TableInfo]:
    """Every table and view that the account may see, outside the system schemas, by name."""
    rows = _query(connection, "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES")
    found = [TableInfo(TableName(s, n), k, e or "") for s, n, k, e in rows if s.lower() not in SYSTEM_SCHEMAS]
    return sorted(found)


def is_ghost(name: str) -> bool:
    """Whether an online schema change left or uses a table of this name."""
    return bool(_GHOST.fullmatch(name))


def select(
    entries: Sequence[TableConfig], present: Iterable[TableInfo]
) -> tuple[dict[TableName, TableConfig], list[TableConfig]]:
    """Which table is whose: an exact name goes before patterns, the first pattern before later ones. And the entries that match
    nothing. Pure."""
    here = {t.name: t for t in present}
    chosen: dict[TableName, TableConfig] = {}
    idle: list[TableConfig] = []
    for entry in sorted(entries, key=lambda e: e.is_pattern):
        if not entry.is_pattern:
            matched = [entry.table] if entry.table in here else []
        else:
            schema, name = (_glob(part) for part in entry.table)
            matched = [
                t
                for t, info in here.items()
                if info.kind == "BASE TABLE"
                and t.schema.lower() not in SYSTEM_SCHEMAS
                and not is_ghost(t.name)
                and schema.fullmatch(t.schema)
                and name.fullmatch(t.name)
            ]
        if not matched:
            idle.append(entry)
        for table in matched:
            chosen.setdefault(table, entry)
    return {t: chosen[t] for t in sorted(chosen)}, idle


class Target(NamedTuple):
    """What is to land in one table of the lake. `shards` is None where it is the source's table itself, else the tables that it is
    made of. `entry` says how; of shards it is the first one's, and the others' say the same."""

    entry: TableConfig
    shards: tuple[TableName, ...] | None = None
    clash: bool = False
    """Whether a table of the source that has the name of the shards' is meant by a pattern as well. Then it is left out."""


def targets(chosen: Mapping[TableName, TableConfig]) -> dict[TableName, Target]:
    """The lake's tables that the tables which were chosen (`select`, `match`) land in. Pure."""
    found = {table: Target(entry) for table, entry in chosen.items() if entry.target is None}
    shards: dict[TableName, list[TableName]] = {}
    for table, entry in chosen.items():
        if entry.target is not None:
            shards.setdefault(entry.target, []).append(table)
    for table, parts in shards.items():
        found[table] = Target(chosen[parts[0]], tuple(sorted(parts)), clash=table in found)
    return {table: found[table] for table in sorted(found)}


def _glob(part: str) -> re.Pattern[str]:
    return re.compile(pattern(part.replace("[", "[[]")))


def match(connection: Connection[Any], entries: Sequence[TableConfig]) -> dict[TableName, TableConfig]:
    """The tables that `entries` mean, each with its entry. A pattern may match none. Raises `ConfigError` for exact names of tables
    that do not exist (or may not be seen), and of views."""
    present = tables(connection)
    chosen, idle = select(entries, present)
    if error := misnamed(place(connection), present, chosen, idle):
        raise error
    return chosen


def misnamed(
    where: str, present: Sequence[TableInfo], chosen: Container[TableName], idle: Sequence[TableConfig]
) -> ConfigError | None:
    """What is wrong with the names that were chosen, or that nothing has (`select`): views, exact names of tables that do not exist
    (or may not be seen). Pure."""
    if others := [f"{t.name} ({t.kind.lower()})" for t in present if t.name in chosen and t.kind != "BASE TABLE"]:
        hint = "name a view's tables; leave out sequences and system-versioned tables"
        return ConfigError(f"not a table that can be followed: {', '.join(others)}", where=where, hint=hint)
    if missing := [e.table for e in idle if not e.is_pattern]:
        names = ", ".join(map(str, missing))
        return ConfigError(
            f"no such table, or it may not be read: {names}", where=where, hint=nearest(missing[0], present)
        )
    return None


def nearest(table: TableName, present: Iterable[TableInfo]) -> str:
    """A hint for a name that nothing has."""
    names = {str(t.name).lower(): str(t.name) for t in present}
    near = difflib.get_close_matches(str(table).lower(), list(names), 1, 0.6)
    return f"did you mean {names[near[0]]}?" if near else f"create it, or GRANT SELECT ON {table.quoted} to the user"


def estimate_rows(connection: Connection[Any], table: TableName) -> int:
    """About how many rows the table has, as the storage engine guesses; 0 if it does not say."""
    rows = _query(
        connection,
        "SELECT TABLE_ROWS FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
        table.schema,
        table.name,
    )
    return int(rows[0][0] or 0) if rows else 0


def foreign_key_cascades(
    connection: Connection[Any], tables: Iterable[TableName]
) -> Mapping[TableName, tuple[str, ...]]:
    """The foreign keys of `tables` that change their rows when the parent's change (CASCADE, SET NULL): before MySQL 9.6 such changes
    are not in the binary log."""
    wanted = set(tables)
    rows = _query(
        connection,
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS"
        " WHERE 'CASCADE' IN (UPDATE_RULE, DELETE_RULE) OR 'SET NULL' IN (UPDATE_RULE, DELETE_RULE)"
        " OR 'SET DEFAULT' IN (UPDATE_RULE, DELETE_RULE) ORDER BY 1, 2, 3",
    )
    found: dict[TableName, tuple[str, ...]] = {}
    for schema, name, constraint in rows:
        table = TableName(schema, name)
        if table in wanted:
            found[table] = (*found.get(table, ()), constraint)
    return found
