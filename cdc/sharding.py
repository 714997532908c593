"""Sharded tables: several tables of the source that are one in the log and in the lake. Pure.

The one table has the shards' common columns and, as the last one, a text column that says which shard a row is of; that column is
the first of its key. A table's options in the log name the shards that it is made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cdc.epoch import TableState
from cdc.errors import TableStoppedError
from cdc.names import TableName
from cdc.schema import Column, TableSchema

CHARSET = "utf8mb4"
"""Of the shard's column."""


def is_sharded(options: Mapping[str, Any]) -> bool:
    """Whether a table with these options is made of shards; of none at all, maybe."""
    return "shards" in options


def shards(options: Mapping[str, Any]) -> dict[TableName, int | None]:
    """The source's tables that a table with these options is made of, and the number of the epoch from whose end on each one is: None
    for those that were there when the table was added. Empty for a table that is its own."""
    found: Mapping[str, Mapping[str, Any]] = options.get("shards", {})
    return {TableName.from_id(shard): found[shard].get("since") for shard in sorted(found)}


def since(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """These options, every shard in them as one that is since the epoch of this number, and is to be read. Of a table that is its own,
    the same options."""
    if not is_sharded(options):
        return dict(options)
    return {**options, "shards": {shard: {"since": number} for shard in options["shards"]}}


def value(shard: TableName) -> str:
    """What the shard's column holds: `schema.table`."""
    return str(shard)


def joined(own: TableSchema, column: str) -> TableSchema:
    """The table that shards with these columns are together. Raises `TableStoppedError` where they cannot be."""
    if not own.key:
        raise TableStoppedError(
            "a shard has no primary key", hint="ALTER TABLE … ADD PRIMARY KEY (…); or give it an entry without `into:`"
        )
    if taken := [name for name in own.names if name.lower() == column.lower()]:
        raise TableStoppedError(
            f"the shards have a column {taken[0]}, which is to say of which shard a row is",
            hint="name another column by `shard_column:`",
        )
    return replace(own, columns=(*own.columns, Column(column, "text", charset=CHARSET)), key=(column, *own.key))


def own(schema: TableSchema, options: Mapping[str, Any]) -> TableSchema:
    """The schema of each of the source's tables that make up the one with this schema and these options. `joined`, undone; of a
    table that is its own, `schema` itself."""
    if not is_sharded(options):
        return schema
    assert schema.names[-1] == schema.key[0] == options["shard_column"]
    return replace(schema, columns=schema.columns[:-1], key=schema.key[1:])


def job(log: str, table: str, captured: TableState, shard: TableName) -> str:
    """The name of the read that brings a shard's rows into a table (its id) that the log `log` (its UUID) captures: the same whoever
    asks, and another one whenever the shard or the table joins again."""
    since = shards(captured.options).get(shard)
    named = "\n".join((log, table, str(captured.since), shard.id, str(since)))
    return hashlib.sha256(named.encode()).hexdigest()[:12]
