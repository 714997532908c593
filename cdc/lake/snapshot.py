"""A table at one version: what the Delta log says of it. Values; nothing here reads or writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from cdc.config import Mode
from cdc.epoch import EpochId
from cdc.errors import LakeError
from cdc.lake.checkpoint import Action
from cdc.lake.layout import Layout
from cdc.lake.store import Folder, Tail
from cdc.position import Position
from cdc.schema import TableSchema


@dataclass(frozen=True)
class Applied:
    """What a table contains: every change up to the end of an epoch."""

    log: str
    """The log's uuid."""
    epoch: EpochId
    position: Position
    ts_ms: int
    raw_us: int
    seq: int

    def to_dict(self) -> dict[str, Any]:
        """For `commitInfo` and manifests."""
        return {
            "log": self.log,
            "epoch": self.epoch.number,
            "hash": self.epoch.hash,
            "position": self.position.to_dict(),
            "ts_ms": self.ts_ms,
            "raw_us": self.raw_us,
            "seq": self.seq,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Applied:
        """Raises `KeyError`, `TypeError` or `ValueError` for what `to_dict` never returns."""
        return cls(
            data["log"],
            EpochId(data["epoch"], data["hash"]),
            Position.from_dict(data["position"]),
            data["ts_ms"],
            data["raw_us"],
            data["seq"],
        )


EXTRA = ("tags", "baseRowId", "defaultRowCommitVersion", "clusteringProvider")
"""Fields of an `add` that lakesync has no use for."""


def identity(vector: Mapping[str, Any] | None) -> str:
    """What names a vector among all of them, as the protocol has it; empty for none. Vectors do not change."""
    if not vector:
        return ""
    offset = vector.get("offset")
    return f"{vector.get('storageType')}{vector.get('pathOrInlineDv')}" + (f"@{offset}" if offset is not None else "")


@dataclass(frozen=True)
class AddFile:
    """A live data file. `path` is as the log writes it: relative to the table's folder, percent-encoded."""

    path: str
    size: int
    num_records: int | None
    """Physical rows by its statistics; None where a foreign writer left none."""
    stats: str | None
    modified_ms: int = 0
    partition: Mapping[str, str | None] | None = None
    deletion_vector: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None
    """What others said of it beside that (`tags` and its like); it stays with the file."""

    @cached_property
    def statistics(self) -> Mapping[str, Any]:
        """`stats`, parsed; empty where there are none."""
        return _stats(self.stats)

    @cached_property
    def vector(self) -> str:
        """What names its deletion vector; empty where it has none."""
        return identity(self.deletion_vector)

    @classmethod
    def from_action(cls, add: Mapping[str, Any]) -> AddFile:
        """The file of an `add` action."""
        stats = add.get("stats")
        return cls(
            add["path"],
            add["size"],
            _stats(stats).get("numRecords"),
            stats,
            add.get("modificationTime") or 0,
            add.get("partitionValues") or None,
            add.get("deletionVector"),
            {name: add[name] for name in EXTRA if add.get(name) is not None} or None,
        )

    @property
    def deleted(self) -> int:
        """Rows that its deletion vector takes away."""
        return int(self.deletion_vector["cardinality"]) if self.deletion_vector else 0

    def without(self, vector: Mapping[str, Any], rows: int) -> AddFile:
        """The same file, of so many physical rows, less the rows of this vector. Bounds may be of rows that are deleted now, and say
        so; the number of rows must be there where a vector is."""
        stats = orjson.dumps({**self.statistics, "numRecords": rows, "tightBounds": False}).decode()
        return replace(self, num_records=rows, stats=stats, deletion_vector=vector)

    def to_action(self) -> dict[str, Any]:
        """The `add` action."""
        action = {
            "path": self.path,
            "partitionValues": dict(self.partition or {}),
            "size": self.size,
            "modificationTime": self.modified_ms,
            "dataChange": True,
            "stats": self.stats,
            **(self.extra or {}),
        }
        return action | ({"deletionVector": dict(self.deletion_vector)} if self.deletion_vector else {})

    def removed(self, at_ms: int) -> dict[str, Any]:
        """The `remove` action."""
        action = {
            "path": self.path,
            "deletionTimestamp": at_ms,
            "dataChange": True,
            "extendedFileMetadata": True,
            "partitionValues": dict(self.partition or {}),
            "size": self.size,
        }
        return action | ({"deletionVector": dict(self.deletion_vector)} if self.deletion_vector else {})


def decoded(path: str) -> str:
    """A path of the log as the file system has it."""
    return unquote(path)


def _stats(text: str | None) -> Mapping[str, Any]:
    try:
        found = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


class Tombstone(NamedTuple):
    """A file that a commit removed; its bytes stay for readers of older versions."""

    removed_ms: int
    size: int | None = None
    deletion_vector: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Snapshot:
    """A table at one version. `info` is `commitInfo.lakesync` of the newest commit that has one, `info_version` that commit's."""

    folder: Folder
    version: int
    protocol: Mapping[str, Any]
    metadata: Mapping[str, Any]
    files: Mapping[str, AddFile]
    tombstones: Mapping[str, Tombstone]
    txns: Mapping[str, int]
    info: Mapping[str, Any] | None
    info_version: int | None
    checkpoint: int | None
    """Version of the newest checkpoint that is known."""
    applied: Applied | None
    """From `info`, checked against `txns`; None in a table that lakesync did not write."""
    tail: Tail | None = None
    domains: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`domainMetadata` of others, by domain."""
    """Which file the newest commit is."""

    @cached_property
    def schema(self) -> TableSchema:
        """The source's columns and key, as of `info`."""
        return TableSchema.from_dict(self._info["schema_full"])

    @cached_property
    def layout(self) -> Layout:
        """As of `info`."""
        return Layout.of(self._info)

    @property
    def mode(self) -> Mode:
        """As of `info`."""
        return self.layout.mode

    @property
    def counts(self) -> Mapping[str, Any]:
        """Of the commit `info_version` alone."""
        counts: Mapping[str, Any] = self._info["counts"]
        return counts

    @property
    def totals(self) -> Mapping[str, Any]:
        """Since the bootstrap."""
        totals: Mapping[str, Any] = self._info["totals"]
        return totals

    @property
    def committed_us(self) -> int:
        """When `info_version` was committed, by the merger's clock, µs since 1970."""
        return int(self._info["committed_us"])

    @property
    def rows(self) -> int:
        """Live rows, by the files' statistics (of lakesync's own files: measured when they were written) less what their vectors
        delete. Files of others that have no statistics are not counted."""
        return sum(file.num_records - file.deleted for file in self.files.values() if file.num_records is not None)

    @property
    def is_empty(self) -> bool:
        """Whether there is certainly no live row: of a file that others left without statistics it is not known."""
        return all(file.num_records is not None and file.num_records <= file.deleted for file in self.files.values())

    @property
    def _info(self) -> Mapping[str, Any]:
        if self.info is None:
            raise LakeError("was not written by lakesync", where=str(self.folder))
        return self.info

    def path(self, file: AddFile) -> str:
        """A data file's name in the folder. Raises `LakeError` if it lies elsewhere."""
        name = decoded(file.path)
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "://" in file.path:
            raise LakeError(
                "a data file lies outside the table's folder",
                where=str(self.folder),
                hint="`lakesync resync` the table",
            )
        return name

    def actions(self, keep_since_ms: int) -> Iterator[Action]:
        """The state as a checkpoint holds it: tombstones since `keep_since_ms` only."""
        yield {"protocol": dict(self.protocol)}
        yield {"metaData": dict(self.metadata)}
        for app, version in self.txns.items():
            yield {"txn": {"appId": app, "version": version}}
        for domain in self.domains.values():
            yield {"domainMetadata": dict(domain)}
        for path, dead in self.tombstones.items():
            if dead.removed_ms >= keep_since_ms:
                remove = {"path": path, "deletionTimestamp": dead.removed_ms, "dataChange": False, "size": dead.size}
                yield {"remove": remove | {"deletionVector": dead.deletion_vector}}
        for file in self.files.values():
            yield {"add": file.to_action() | {"dataChange": False}}
