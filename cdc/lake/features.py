"""What others changed about a table's protocol and properties: what lakesync goes on beside, and what it must stop on. Pure.

Delta's features are of two kinds: some bind a writer as soon as the protocol lists them, most only where a property, a column or a file
uses them. Spark and deltalake list features of the second kind for reasons of their own (whoever sets any property through deltalake
gets `variantType`), and a table must not stop for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

DELETION_VECTORS = "deletionVectors"
TIMESTAMP_NTZ = "timestampNtz"
CHANGE_FEED = "changeDataFeed"
HAS_VECTORS = "delta.enableDeletionVectors"
HAS_FEED = "delta.enableChangeDataFeed"
READER_VERSION, WRITER_VERSION = 3, 7

UNUSED = frozenset(
    {
        DELETION_VECTORS,
        TIMESTAMP_NTZ,
        CHANGE_FEED,
        "allowColumnDefaults",
        "appendOnly",
        "checkConstraints",
        "columnMapping",
        "domainMetadata",
        "generatedColumns",
        "icebergCompatV1",
        "icebergCompatV2",
        "identityColumns",
        "inCommitTimestamp",
        "invariants",
        "typeWidening",
        "typeWidening-preview",
        "v2Checkpoint",
        "vacuumProtocolCheck",
        "variantShredding-preview",
        "variantType",
        "variantType-preview",
    }
)
"""Features that mean nothing to a writer as long as no property, column or file uses them; that, `problems` looks at."""
BINDING = {
    "delta.appendOnly": "rows of it may not be changed",
    "delta.enableInCommitTimestamps": "its commits have timestamps of their own",
    "delta.enableRowTracking": "its rows are tracked",
    "delta.enableTypeWidening": "its columns' types may be widened",
    "delta.enableIcebergCompatV1": "it is kept readable for Iceberg",
    "delta.enableIcebergCompatV2": "it is kept readable for Iceberg",
    "delta.enableIcebergCompatV3": "it is kept readable for Iceberg",
}
"""Properties that bind a writer where they are true, and how."""
OF_COLUMNS = {
    "delta.generationExpression": "is generated from others",
    "delta.identity.start": "is an identity column",
    "delta.identity.step": "is an identity column",
    "delta.invariants": "has a condition (invariant)",
    "delta.typeChanges": "had its type widened",
    "CURRENT_DEFAULT": "has a default value",
    "EXISTS_DEFAULT": "has a default value",
}
"""What a column's metadata may say that binds a writer."""

_RESYNC = "`lakesync resync` the table: it is read anew and replaced in one commit"
_AWAY = "move the table's folder away, then `lakesync resync` the table"


class Problem(NamedTuple):
    """Something that others changed and lakesync cannot write beside, and the way out."""

    what: str
    hint: str


def problems(
    protocol: Mapping[str, Any], metadata: Mapping[str, Any], partition: Sequence[str], feed: bool
) -> Iterator[Problem]:
    """What stands in the way of a table that lakesync wrote with these partition columns, with a change feed or without; of columns'
    names and types nothing."""
    yield from of_protocol(protocol)
    listed = {*(protocol.get("readerFeatures") or ()), *(protocol.get("writerFeatures") or ())}
    if DELETION_VECTORS not in listed:
        yield Problem(f"feature {DELETION_VECTORS} was dropped", _RESYNC)
    configuration = metadata.get("configuration") or {}
    yield from _of_properties(configuration)
    if DELETION_VECTORS in listed and not _is_true(configuration, HAS_VECTORS):
        hint = f"ALTER TABLE … SET TBLPROPERTIES ('{HAS_VECTORS}' = 'true'), then `lakesync resume` the table"
        yield Problem(f"deletion vectors were switched off ({HAS_VECTORS})", hint)
    if feed and not _is_true(configuration, HAS_FEED):
        hint = (
            f"ALTER TABLE … SET TBLPROPERTIES ('{HAS_FEED}' = 'true'), or have no `change_feed:` and resync the table"
        )
        yield Problem(f"the change feed was switched off ({HAS_FEED})", hint)
    if list(metadata.get("partitionColumns") or ()) != list(partition):
        yield Problem("the partitioning", _RESYNC)
    yield from _of_columns(metadata)


def of_protocol(protocol: Mapping[str, Any]) -> Iterator[Problem]:
    """Versions and features that bind a writer whatever else the table says."""
    versions = (protocol.get("minReaderVersion"), protocol.get("minWriterVersion"))
    if versions != (READER_VERSION, WRITER_VERSION):
        yield Problem(f"protocol version {versions}", _AWAY)
    for name in sorted({*(protocol.get("readerFeatures") or ()), *(protocol.get("writerFeatures") or ())} - UNUSED):
        yield Problem(
            f"feature {name}", f"ALTER TABLE … DROP FEATURE {name}, then `lakesync resume` the table; or {_AWAY}"
        )


def _of_properties(configuration: Mapping[str, Any]) -> Iterator[Problem]:
    for name, why in BINDING.items():
        if _is_true(configuration, name):
            hint = f"ALTER TABLE … UNSET TBLPROPERTIES ('{name}'), then `lakesync resume` the table"
            yield Problem(f"{why} ({name})", hint)
    for name in sorted(configuration):
        if name.startswith("delta.constraints."):
            short = name.removeprefix("delta.constraints.")
            hint = f"ALTER TABLE … DROP CONSTRAINT {short}, then `lakesync resume` the table"
            yield Problem(f"it has a constraint ({short})", hint)
    if str(configuration.get("delta.columnMapping.mode", "none")).lower() != "none":
        yield Problem("its columns are mapped to other names (delta.columnMapping.mode)", _AWAY)


def _of_columns(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        fields = orjson.loads(metadata["schemaString"])["fields"]
        said = [
            (field["name"], OF_COLUMNS[key])
            for field in fields
            for key in field.get("metadata") or {}
            if key in OF_COLUMNS
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return  # then the columns are not ours, which is said elsewhere
    for name, what in dict(said).items():
        yield Problem(f"column {name} {what}", _RESYNC)


def has_feed(metadata: Mapping[str, Any]) -> bool:
    """Whether readers expect a change feed of the table: because it was asked for, or since others switched it on."""
    return _is_true(metadata.get("configuration") or {}, HAS_FEED)


def _is_true(configuration: Mapping[str, Any], name: str) -> bool:
    return str(configuration.get(name, "")).lower() == "true"


def wanted(before: Mapping[str, Any] | None, *, times: bool, feed: bool) -> dict[str, Any]:
    """Delta's `protocol` action: exactly what a table needs, whether it has DATETIME columns (`times`) and a change feed or not, and what
    it had before."""
    reading = [DELETION_VECTORS] + [TIMESTAMP_NTZ] * times
    readers = [*((before or {}).get("readerFeatures") or ()), *reading]
    writers = [*((before or {}).get("writerFeatures") or ()), *reading, *[CHANGE_FEED] * feed]
    return {
        "minReaderVersion": READER_VERSION,
        "minWriterVersion": WRITER_VERSION,
        "readerFeatures": list(dict.fromkeys(readers)),
        "writerFeatures": list(dict.fromkeys(writers)),
    }
