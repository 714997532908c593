"""A lake table's columns: Arrow types to Delta's schema and protocol, and lakesync's own columns. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from cdc import unfit
from cdc.errors import LakeError, TableStoppedError
from cdc.lake import features, history, partition, softdelete
from cdc.lake.features import HAS_FEED, HAS_VECTORS, Problem
from cdc.lake.layout import Layout
from cdc.schema import TableSchema

TS_MS = "_cdc_ts_ms"
SEQ = "_cdc_seq"
OP = "_cdc_op"
GID = "_cdc_gid"

_OWN = [pa.field(TS_MS, pa.int64()), pa.field(SEQ, pa.int64())]
_OF_MODE: Mapping[str, Sequence[pa.Field[Any]]] = {
    "append": [pa.field(OP, pa.string()), pa.field(GID, pa.string())],
    "soft-delete": softdelete.FIELDS,
    "history": history.FIELDS,
}
_NAMES: dict[pa.DataType, str] = {
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.binary(): "binary",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp_ntz",
    pa.timestamp("us", tz="UTC"): "timestamp",
}
DeltaType = str | dict[str, Any]
"""As `schemaString` has it: a name, or an object for a type that is made of others."""


def lake_columns(schema: TableSchema, layout: Layout, with_unfit: bool = False) -> pa.Schema:
    """The source's columns, then lakesync's: those of every table, those of its mode, those that it is partitioned by and the source does
    not have, `_cdc_unfit` only on demand. Raises `TableStoppedError` for a source column with a name of ours."""
    own = [*_OWN, *_OF_MODE.get(layout.mode, ()), *partition.derived(layout.partition_by)]
    own += [unfit.FIELD] if with_unfit else []
    taken = {unfit.NAME, *(field.name.lower() for field in own)}
    for name in schema.names:
        if name.lower() in taken:
            raise TableStoppedError(
                f"column {name} has the name of a column that lakesync adds",
                hint="rename it, or leave it out (`exclude:`)",
            )
    return pa.schema([*schema.arrow, *own])


def key_columns(schema: TableSchema) -> pa.Schema:
    """The key's columns, in the key's order."""
    return pa.schema([schema.arrow.field(name) for name in schema.key])


def delta_schema(columns: pa.Schema) -> str:
    """Delta's `schemaString`."""
    fields = [{"name": f.name, "type": delta_type(f.type), "nullable": True, "metadata": {}} for f in columns]
    return orjson.dumps({"type": "struct", "fields": fields}).decode()


def delta_type(arrow: Any) -> DeltaType:
    """Delta's name of a type. Raises `KeyError` for one that is not in the type contract."""
    if pa.types.is_decimal128(arrow):
        return f"decimal({arrow.precision},{arrow.scale})"
    if pa.types.is_list(arrow):
        return {"type": "array", "elementType": delta_type(arrow.value_type), "containsNull": True}
    if pa.types.is_map(arrow):
        names = {"keyType": delta_type(arrow.key_type), "valueType": delta_type(arrow.item_type)}
        return {"type": "map", **names, "valueContainsNull": True}
    return _NAMES[arrow]


def has_unfit(metadata: Mapping[str, Any]) -> bool:
    """Whether the table has a last column `_cdc_unfit`."""
    return (_fields(metadata) or [("", "")])[-1] == (unfit.NAME, delta_type(unfit.TYPE))


def _fields(metadata: Mapping[str, Any]) -> list[tuple[str, DeltaType]]:
    try:
        return [(f["name"], f["type"]) for f in orjson.loads(metadata["schemaString"])["fields"]]
    except (KeyError, TypeError, ValueError):
        return []


def protocol(columns: pa.Schema, layout: Layout, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Delta's `protocol` action for these columns: exactly what they need, and what the table had before."""
    return features.wanted(before, times=pa.timestamp("us") in columns.types, feed=layout.change_feed)


def configuration(layout: Layout) -> dict[str, str]:
    """Delta's properties of a table."""
    return {HAS_VECTORS: "true"} | ({HAS_FEED: "true"} if layout.change_feed else {})


def foreign_changes(
    columns: pa.Schema, layout: Layout, protocol_now: Mapping[str, Any], metadata: Mapping[str, Any]
) -> list[Problem]:
    """What others changed about a table so that lakesync must not write to it; empty: nothing."""
    found: list[Problem] = []
    if _fields(metadata) != [(f.name, delta_type(f.type)) for f in columns]:
        found.append(Problem("the columns", "resync the table: it is read anew and replaced in one commit"))
    names = partition.names(layout.partition_by)
    return [*found, *features.problems(protocol_now, metadata, names, layout.change_feed)]


def changed(problems: Sequence[Problem], where: str) -> LakeError:
    """The error of a table that others changed so."""
    hints = dict.fromkeys(problem.hint for problem in problems)
    return LakeError(
        f"others changed the table: {', '.join(problem.what for problem in problems)}",
        where=where,
        hint="; ".join(hints),
    )


def conform(rows: pa.Table, columns: pa.Schema, where: str) -> pa.Table:
    """`rows` with exactly these columns and types; `_cdc_unfit` is added where only the rows lack it. Raises `LakeError` where a column
    is missing, unknown or of another type."""
    if unfit.is_last(columns) and unfit.NAME not in rows.column_names:
        rows = rows.append_column(unfit.FIELD, pa.nulls(rows.num_rows, unfit.TYPE))
    if rows.schema.equals(columns):
        return rows
    differ = _differences(rows.schema, columns)
    if differ:
        raise LakeError(
            f"rows do not have the table's columns: {', '.join(differ)}",
            where=where,
            hint="if the source's table was altered, resync it",
        )
    return rows.select(columns.names).cast(columns)


def _differences(have: pa.Schema, want: pa.Schema) -> Sequence[str]:
    types = dict(zip(have.names, have.types, strict=True))
    missing = [f"{f.name} is {types.get(f.name, 'missing')}, not {f.type}" for f in want if types.get(f.name) != f.type]
    return missing + [f"{name} is unknown" for name in have.names if name not in want.names]
