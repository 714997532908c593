"""The Delta log of one table, read and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cdc.config import Mode
from cdc.epoch import EpochId
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


@dataclass(frozen=True)
class AddFile:
    """A live data file. `path` is relative to the table's folder."""

    path: str
    size: int
    num_records: int | None
    """Physical rows by its statistics; None where a foreign writer left none."""
    stats: str | None
    modified_ms: int = 0
    partition: Mapping[str, str | None] | None = None
    deletion_vector: Mapping[str, Any] | None = None


class Tombstone(NamedTuple):
    """A file that a commit removed; its bytes stay for readers of older versions."""

    removed_ms: int
    size: int | None = None
    deletion_vector: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Snapshot:
    """A table at one version. `info` is `commitInfo.lakesync` of the newest commit that has one, `info_version` that commit's."""

    folder: Path
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

    @property
    def schema(self) -> TableSchema:
        """The source's columns and key, as of `info`."""
        raise NotImplementedError

    @property
    def mode(self) -> Mode:
        """As of `info`."""
        raise NotImplementedError

    @property
    def counts(self) -> Mapping[str, Any]:
        """Of the commit `info_version` alone."""
        raise NotImplementedError

    @property
    def totals(self) -> Mapping[str, Any]:
        """Since the bootstrap."""
        raise NotImplementedError

    @property
    def committed_us(self) -> int:
        """When `info_version` was committed, by the merger's clock, µs since 1970."""
        raise NotImplementedError

    @property
    def rows(self) -> int:
        """Live rows, by the files' statistics (of lakesync's own files: measured when they were written)."""
        raise NotImplementedError


class Commit(NamedTuple):
    """One commit that lakesync made."""

    version: int
    info: Mapping[str, Any]
    """`commitInfo.lakesync`."""


def load(folder: Path) -> Snapshot | None:
    """The newest version; None where there is no table. Raises `LakeDamagedError`, `LakeError`."""
    raise NotImplementedError


def refresh(snapshot: Snapshot) -> Snapshot:
    """The newest version, reading only commits after `snapshot`; the same object if there is none."""
    raise NotImplementedError


def commit(folder: Path, on: Snapshot | None, actions: Sequence[Mapping[str, Any]]) -> Snapshot:
    """Put-if-absent at `on.version + 1` (0 for None). Raises `LakeConflictError`, `LakeUnknownError`, `LakeError`."""
    raise NotImplementedError


def commits(folder: Path, after: int = -1) -> Iterator[Commit]:
    """Commits of lakesync with a version above `after`, in order: for the trace and the ledger."""
    raise NotImplementedError
