"""A lake table's columns: Arrow types to Delta's schema and protocol, and lakesync's own columns. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from cdc import unfit
from cdc.errors import LakeError, TableStoppedError
from cdc.lake.layout import Layout
from cdc.schema import TableSchema

TS_MS = "_cdc_ts_ms"
SEQ = "_cdc_seq"
OP = "_cdc_op"
GID = "_cdc_gid"

READER_VERSION, WRITER_VERSION = 3, 7
DELETION_VECTORS = "deletionVectors"
TIMESTAMP_NTZ = "timestampNtz"
CONFIGURATION = {"delta.enableDeletionVectors": "true"}

_OWN = [pa.field(TS_MS, pa.int64()), pa.field(SEQ, pa.int64())]
_OF_APPEND = [pa.field(OP, pa.string()), pa.field(GID, pa.string())]
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
    """The source's columns, then lakesync's, `_cdc_unfit` only on demand. Raises `TableStoppedError` for a source column with a name
    of ours."""
    own = _OWN + (_OF_APPEND if layout.mode == "append" else []) + ([unfit.FIELD] if with_unfit else [])
    taken = {unfit.NAME, *(field.name for field in own)}
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


def protocol(columns: pa.Schema, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Delta's `protocol` action for these columns: exactly what they need, and what the table had before."""
    features = [*(before or {}).get("writerFeatures", ()), DELETION_VECTORS]
    features = list(dict.fromkeys(features + [TIMESTAMP_NTZ] * (pa.timestamp("us") in columns.types)))
    return {
        "minReaderVersion": READER_VERSION,
        "minWriterVersion": WRITER_VERSION,
        "readerFeatures": features,
        "writerFeatures": features,
    }


def foreign_changes(columns: pa.Schema, protocol_now: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    """What others changed about a table so that lakesync must not write to it; empty: nothing."""
    found = []
    if _fields(metadata) != [(f.name, delta_type(f.type)) for f in columns]:
        found.append("the columns")
    if metadata.get("partitionColumns"):
        found.append("the partitioning")
    return found + foreign_features(protocol_now)


def foreign_features(protocol_now: Mapping[str, Any]) -> list[str]:
    """Protocol features that lakesync does not write, each as `feature NAME`."""
    versions = (protocol_now.get("minReaderVersion"), protocol_now.get("minWriterVersion"))
    if versions != (READER_VERSION, WRITER_VERSION):
        return [f"protocol version {versions}"]
    known = {DELETION_VECTORS, TIMESTAMP_NTZ}
    listed = {*(protocol_now.get("readerFeatures") or ()), *(protocol_now.get("writerFeatures") or ())}
    return [f"feature {name}" for name in sorted(listed - known)]


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
