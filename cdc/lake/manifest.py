"""Manifests: one consistent version of every table, after each round of the merger."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from cdc.epoch import EpochId
from cdc.errors import LakeDamagedError
from cdc.lake.snapshot import Applied, Snapshot
from cdc.lake.store import Folder, open_folder
from cdc.names import TableName, encode
from cdc.roots import Root

FOLDER = "-lakesync"
"""Under the lake's root; no table's folder begins so."""
KEPT = 5
"""Manifests that are kept, the newest one included."""
_VERSION = 1
_NEWEST = "manifest.json"
_OLDER = re.compile(r"manifest-\d{20}\.json")


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
    applied: Applied | None = None
    """What the table has, if that is not the manifest's epoch: one that stopped keeps its place although the log behind it is
    trimmed. None: it was moved to the manifest's epoch."""


@dataclass(frozen=True)
class Manifest:
    """One round: at these versions every table that is `ready`, and has no `applied` of its own, is the source at `applied.position`."""

    applied: Applied
    """The epoch that all tables were moved to."""
    tables: Mapping[TableName, TableVersion]
    written_us: int


def read(root: Root, pipeline: str) -> Manifest | None:
    """The newest manifest; None if there is none. Raises `LakeDamagedError`, `LakeError`."""
    folder = _folder(root, pipeline)
    try:
        data = folder.read(_NEWEST)
    except FileNotFoundError:
        return None
    folder.settle()  # a process that was killed may have left it visible and not yet durable
    try:
        return _parse(orjson.loads(data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LakeDamagedError(
            "cannot be read", where=f"{folder}/{_NEWEST}", hint="put the newest of the manifests beside it in its place"
        ) from error


def write(root: Root, pipeline: str, manifest: Manifest) -> None:
    """Replace the newest manifest, atomically and durably; a few older ones are kept. Raises `LakeError`."""
    folder = _folder(root, pipeline)
    names = folder.names()
    older = sorted(name for name in names if _OLDER.fullmatch(name))
    if _NEWEST in names:
        number = int(older[-1].removeprefix("manifest-").removesuffix(".json")) + 1 if older else 1
        older.append(f"manifest-{number:020}.json")
        folder.alias(_NEWEST, older[-1])
    folder.replace(_NEWEST, orjson.dumps(_form(manifest), option=orjson.OPT_SORT_KEYS), "lake.manifest")
    folder.delete(older[: -(KEPT - 1)])


def _folder(root: Root, pipeline: str) -> Folder:
    return open_folder(root).folder(f"{FOLDER}/{encode(pipeline)}")


def carried(table: TableName, snapshot: Snapshot, manifest: Manifest | None) -> Applied | None:
    """What the table has applied: the manifest's epoch if the table's last commit is the one that the manifest names (there was
    nothing for it since), else the commit's own. None if the snapshot has no applied epoch."""
    own = snapshot.applied
    named = manifest.tables.get(table) if manifest else None
    if own is None or manifest is None or named is None:
        return own
    there = named.applied or manifest.applied
    same = (named.commit, named.epoch) == (snapshot.info_version, own.epoch)
    ahead = there.position.contains(own.position) and there.seq >= own.seq
    return there if same and ahead else own


def moved(manifest: Manifest, snapshots: Mapping[TableName, Snapshot]) -> Manifest:
    """The same, with newer versions of these tables where they contain the same: files of the older ones go after a while."""
    tables = dict(manifest.tables)
    for table, snapshot in snapshots.items():
        named, own = tables.get(table), snapshot.applied
        if named is None or own is None or snapshot.info_version is None or snapshot.version <= named.version:
            continue
        if carried(table, snapshot, manifest) == (named.applied or manifest.applied):
            version, commit = snapshot.version, snapshot.info_version
            tables[table] = replace(named, version=version, commit=commit, epoch=own.epoch)
    return replace(manifest, tables=tables)


def _form(manifest: Manifest) -> dict[str, Any]:
    tables = {
        table.id: {
            "version": v.version,
            "commit": v.commit,
            "epoch": list(v.epoch),
            "state": v.state,
            "applied": v.applied and v.applied.to_dict(),
        }
        for table, v in manifest.tables.items()
    }
    return {
        "v": _VERSION,
        "applied": manifest.applied.to_dict(),
        "tables": tables,
        "written_us": manifest.written_us,
    }


def _parse(data: Mapping[str, Any]) -> Manifest:
    if data["v"] != _VERSION:
        raise ValueError(f"a manifest of version {data['v']}")
    tables = {
        TableName.from_id(table): TableVersion(
            v["version"],
            v["commit"],
            EpochId(*v["epoch"]),
            v["state"],
            v["applied"] and Applied.from_dict(v["applied"]),
        )
        for table, v in data["tables"].items()
    }
    return Manifest(Applied.from_dict(data["applied"]), tables, data["written_us"])
