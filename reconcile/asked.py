"""What is to be compared, as people write it, checked against what is captured before any work begins."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cdc import sharding
from cdc.errors import ConfigError
from cdc.log import captured
from cdc.log.base import Log
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from reconcile.values.scope import Scope
from snapshot.keytext import parse_key

TIMES = ("date", "datetime", "timestamp")
_SHARE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)")


def share(text: str) -> float:
    """A sample's share from `1%`, `0.5 %` or `0.01`. Raises `ConfigError` for none, or more than all."""
    match = _SHARE.fullmatch(text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value <= 1:
        raise ConfigError(
            "not a share of the rows",
            where=f"--sample {text}",
            hint="write more than 0 and at most 100 %, as 1% or 0.01",
        )
    return value


def scope(
    log: Log,
    tables: Sequence[TableName],
    *,
    columns: Sequence[str] = (),
    low: str | None = None,
    high: str | None = None,
    between: tuple[str, str, str] | None = None,
    sample: float | None = None,
) -> Scope:
    """A scope of these tables from texts: keys as `lakesync snapshot` takes them, times in ISO form, UTC where they say no zone.

    Raises `ConfigError` for a column that one of the tables does not have, a column of no time, a key that is none, keys or columns of no
    table; `LogError`.
    """
    if not (columns or between or low is not None or high is not None):
        return Scope(sample=sample)
    if not tables:
        raise ConfigError(
            "columns and keys are of a table, and none is named",
            where="lakesync reconcile",
            hint="`lakesync reconcile shop.orders …`",
        )
    schemas = {table: _schema(log, table) for table in tables}
    for table, schema in schemas.items():
        for name in (*columns, *([between[0]] if between else [])):
            _column(table, schema, name)
    keys = []
    for text in (low, high):
        if text is not None and len(tables) > 1:
            raise ConfigError("keys are of one table", where=str(tables[1]), hint="name one table with --from and --to")
        keys.append(None if text is None else parse_key(tables[0], _key(tables[0], schemas[tables[0]]), text))
    smallest, largest = keys
    if smallest and largest and all(isinstance(c, int) for c in (*smallest, *largest)) and smallest > largest:
        raise ConfigError(
            "no key is in this range", where=f"{tables[0]}: --from {low} --to {high}", hint="the smaller key first"
        )
    window = None
    if between:
        name, first, last = between
        ends = [_moments(table, _column(table, schema, name), (first, last)) for table, schema in schemas.items()]
        if len(set(ends)) > 1:
            raise ConfigError(
                f"column {name} is not of the same type in these tables", where=str(tables[0]), hint="name one table"
            )
        window = (name, *ends[0])
    return Scope(tuple(dict.fromkeys(columns)), keys[0], keys[1], window, sample)


def _schema(log: Log, table: TableName) -> TableSchema:
    known = captured.read(log)
    found = known.newest_tables.get(table.id) if known else None
    if found is None:
        raise ConfigError(
            "the table is not captured yet", where=str(table), hint="`lakesync status` shows how far it is"
        )
    return sharding.own(TableSchema.from_dict(found.schema), found.options)


def _key(table: TableName, schema: TableSchema) -> list[Column]:
    if not schema.key:
        raise ConfigError("the table has no primary key", where=str(table), hint="leave out --from and --to")
    columns = {c.name: c for c in schema.columns}
    return [columns[name] for name in schema.key]


def _column(table: TableName, schema: TableSchema, name: str) -> Column:
    for column in schema.columns:
        if column.name == name:
            return column
    known = ", ".join(c.name for c in schema.columns[:20])
    raise ConfigError(
        f"no column {name}", where=str(table), hint=f"it has {known}" + (", …" if len(schema.columns) > 20 else "")
    )


def _moments(table: TableName, column: Column, texts: tuple[str, str]) -> tuple[str, str]:
    """From (included) and to (excluded), canonical."""
    if column.type not in TIMES:
        raise ConfigError(
            f"column {column.name} is {column.type}, no time",
            where=f"{table}: --between",
            hint="name a column of type date, datetime or timestamp",
        )
    found: list[str] = []
    for text in texts:
        try:
            found.append(str(parse_key(table, [column], text)[0]))
        except ConfigError:
            raise ConfigError(
                f"not a {column.type}",
                where=f"{table}: --between {column.name} {text}",
                hint="write it as 2026-05-01, or 2026-05-01T12:30:00",
            ) from None
    if found[0] >= found[1]:
        raise ConfigError(
            "nothing is between",
            where=f"{table}: --between",
            hint="the earlier one first; the later one is not included",
        )
    return found[0], found[1]
