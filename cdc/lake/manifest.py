"""Manifests: one consistent version of every table, after each round of the merger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdc.epoch import EpochId
from cdc.lake.deltalog import Applied, Snapshot
from cdc.names import TableName


@dataclass(frozen=True)
class TableVersion:
    """A table in a manifest."""

    version: int
    """The Delta version to read."""
    commit: int
    """The version of the newest commit that bears a position (`Snapshot.info_version`): `version`, or before it if others
    committed since."""
    epoch: EpochId
    """What that commit applied."""
    state: str
    """`cdc.state.Phase` as of the round."""


@dataclass(frozen=True)
class Manifest:
    """One round: at these versions every table that is ready is the source at `applied.position`."""

    applied: Applied
    """The epoch that all tables were moved to."""
    tables: Mapping[TableName, TableVersion]
    written_us: int


def read(root: Path, pipeline: str) -> Manifest | None:
    """The newest manifest; None if there is none. Raises `LakeDamagedError`."""
    raise NotImplementedError


def write(root: Path, pipeline: str, manifest: Manifest) -> None:
    """Replace the newest manifest, atomically and durably; a few older ones are kept. Raises `LakeError`."""
    raise NotImplementedError


def carried(table: TableName, snapshot: Snapshot, manifest: Manifest | None) -> Applied | None:
    """What the table has applied: the manifest's epoch if the table's last commit is the one that the manifest names (there was
    nothing for it since), else the commit's own. None if the snapshot has no applied epoch."""
    raise NotImplementedError
