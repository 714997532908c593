"""Checkpoints of a Delta log: the state at one version in Parquet, so that readers need not read every commit.

Read in every form that others write (one file, several parts, V2 with sidecars); written as one file (Delta protocol,
"Checkpoints"). `_last_checkpoint` is written for other readers and never read: what is in the folder says what there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from cdc import faults
from cdc.lake.store import Folder, failed

Action = Mapping[str, Any]
"""A line of a commit: one key, the action's name, and the action."""

_NAME = re.compile(
    r"(?P<version>\d{20})\.checkpoint(?:\.(?P<part>\d{10})\.(?P<parts>\d{10})|\.(?P<uuid>[0-9a-f-]{36}))?\.(?P<form>parquet|json)"
)
_OURS = re.compile(r"\d{20}\.checkpoint\.parquet")
KEPT = 3
"""The newest checkpoints, which stay: a reader may be on its way to an older one."""
SPREAD = 8
_FIELDS = {
    "protocol": None,
    "metaData": None,
    "txn": ("appId", "version"),
    "domainMetadata": ("domain", "configuration", "removed"),
    "add": (
        *("path", "size", "modificationTime", "partitionValues", "stats", "deletionVector"),
        *("tags", "baseRowId", "defaultRowCommitVersion", "clusteringProvider"),
    ),
    "remove": ("path", "deletionTimestamp", "size", "deletionVector"),
    "sidecar": ("path",),
}
"""The actions that matter, and of those that come in great numbers the fields."""

_MAP = pa.map_(pa.string(), pa.string())
_VECTOR = pa.struct(
    [
        ("storageType", pa.string()),
        ("pathOrInlineDv", pa.string()),
        ("offset", pa.int32()),
        ("sizeInBytes", pa.int32()),
        ("cardinality", pa.int64()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("txn", pa.struct([("appId", pa.string()), ("version", pa.int64()), ("lastUpdated", pa.int64())])),
        (
            "add",
            pa.struct(
                [
                    ("path", pa.string()),
                    ("partitionValues", _MAP),
                    ("size", pa.int64()),
                    ("modificationTime", pa.int64()),
                    ("dataChange", pa.bool_()),
                    ("stats", pa.string()),
                    ("deletionVector", _VECTOR),
                    ("tags", _MAP),
                    ("baseRowId", pa.int64()),
                    ("defaultRowCommitVersion", pa.int64()),
                    ("clusteringProvider", pa.string()),
                ]
            ),
        ),
        (
            "remove",
            pa.struct(
                [
                    ("path", pa.string()),
                    ("deletionTimestamp", pa.int64()),
                    ("dataChange", pa.bool_()),
                    ("extendedFileMetadata", pa.bool_()),
                    ("partitionValues", _MAP),
                    ("size", pa.int64()),
                    ("deletionVector", _VECTOR),
                ]
            ),
        ),
        (
            "metaData",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("name", pa.string()),
                    ("description", pa.string()),
                    ("format", pa.struct([("provider", pa.string()), ("options", _MAP)])),
                    ("schemaString", pa.string()),
                    ("partitionColumns", pa.list_(pa.string())),
                    ("configuration", _MAP),
                    ("createdTime", pa.int64()),
                ]
            ),
        ),
        (
            "protocol",
            pa.struct(
                [
                    ("minReaderVersion", pa.int32()),
                    ("minWriterVersion", pa.int32()),
                    ("readerFeatures", pa.list_(pa.string())),
                    ("writerFeatures", pa.list_(pa.string())),
                ]
            ),
        ),
        (
            "domainMetadata",
            pa.struct([("domain", pa.string()), ("configuration", pa.string()), ("removed", pa.bool_())]),
        ),
    ]
)


def complete(names: Sequence[str]) -> dict[int, list[list[str]]]:
    """Of the names in a log folder the checkpoints that have all their parts: by version, the files of each."""
    found: dict[int, dict[str, list[str]]] = {}
    for name in sorted(names):
        if match := _NAME.fullmatch(name):
            form = f"{match['parts'] or ''}/{match['uuid'] or ''}/{match['form']}"
            found.setdefault(int(match["version"]), {}).setdefault(form, []).append(name)
    return {
        version: whole
        for version, forms in found.items()
        if (whole := [files for form, files in forms.items() if len(files) == int(form.partition("/")[0] or 1)])
    }


def read(log: Folder, names: Sequence[str]) -> Iterator[Action]:
    """The actions of a checkpoint's files. Raises `OSError`, `ValueError` or `pa.ArrowException` where they are not there or torn,
    `LakeError` where the store fails."""
    for name in names:
        for action in _actions(log, name):
            if "sidecar" in action:
                yield from _actions(log, f"_sidecars/{PurePosixPath(action['sidecar']['path']).name}")
            else:
                yield action


def _actions(log: Folder, name: str) -> Iterator[Action]:
    if name.endswith(".json"):
        for line in log.read(name).splitlines():
            yield orjson.loads(line)
        return
    with log.open(name) as source, pq.ParquetFile(source) as file:
        for kind, fields in _FIELDS.items():
            if kind not in file.schema_arrow.names:
                continue
            column: Any = file.read(columns=[kind]).column(kind).drop_null().combine_chunks()
            if fields is None:
                yield from ({kind: _plain(row, column.type)} for row in column.to_pylist())
                continue
            # By column: rows of structs are slow to turn into Python, and there may be very many.
            children = [column.type.field(f) for f in fields if column.type.get_field_index(f) >= 0]
            values = [column.field(child.name).to_pylist() for child in children]
            for row in zip(*values, strict=True):
                found = zip(children, row, strict=True)
                yield {kind: {child.name: _plain(v, child.type) for child, v in found if v is not None}}


def _plain(value: Any, arrow: pa.DataType) -> Any:
    """As JSON would have it: maps come as lists of pairs, and what is not there as None."""
    if isinstance(arrow, pa.MapType):
        return dict(value)
    if isinstance(arrow, pa.StructType):
        return {k: _plain(v, arrow.field(k).type) for k, v in value.items() if v is not None}
    return value


def write(log: Folder, version: int, actions: Sequence[Action]) -> None:
    """Write the checkpoint of a version, durably, and name it in `_last_checkpoint`.

    Raises `LakeError`; `pa.ArrowException` for an action that is not of the protocol.
    """
    rows = {name: [action.get(name) for action in actions] for name in _SCHEMA.names}
    table = pa.table([pa.array(rows[f.name], f.type) for f in _SCHEMA], schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    data = sink.getvalue().to_pybytes()
    log.replace(f"{version:020}.checkpoint.parquet", data)
    try:
        faults.point("lake.checkpoint")
    except OSError as error:
        raise failed(error, "the checkpoint cannot be named", log) from error
    adds = sum("add" in action for action in actions)
    hint = {"version": version, "size": len(actions), "sizeInBytes": len(data), "numOfAddFiles": adds}
    log.replace("_last_checkpoint", orjson.dumps(hint))


def expire(log: Folder) -> None:
    """Delete checkpoints of the form that is written here, but the newest `KEPT` and, spread over the others, about `SPREAD`: older
    versions are read from those, and the log is cleaned up to one of them. Where its beginning was cleaned away the oldest one stays:
    it is what the commits behind it follow."""
    names = {int(name[:20]): name for name in log.names() if _OURS.fullmatch(name)}
    log.delete(names[version] for version in superfluous(sorted(names)))


def superfluous(versions: Sequence[int]) -> list[int]:
    """Of the versions that have a checkpoint, ascending, those that need none. Pure."""
    if len(versions) <= KEPT:
        return []
    last, apart = versions[0], (versions[-1] - versions[0]) / SPREAD
    found = []
    for version in versions[1:-KEPT]:
        if version - last < apart:
            found.append(version)
        else:
            last = version
    return found
