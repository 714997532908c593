"""Delta tables, written by lakesync's own commits (Delta protocol 3, 7) and readable by everyone."""

from __future__ import annotations

from pathlib import Path

from cdc.errors import LakeOccupiedError
from cdc.lake import manifest
from cdc.lake.changes import Effects, FoldCounts, Folded, MergeCounts
from cdc.lake.deltalog import LOG, AddFile, Applied, Snapshot
from cdc.lake.parquet import DataFile
from cdc.lake.table import LakeTable
from cdc.names import TableName

__all__ = [
    "AddFile",
    "Applied",
    "DataFile",
    "Effects",
    "FoldCounts",
    "Folded",
    "LakeTable",
    "MergeCounts",
    "Snapshot",
    "applied_everywhere",
    "folders",
]


def folders(root: Path) -> list[tuple[TableName, Path]]:
    """Every folder under the root that a table's name gives and that has a Delta log, whoever wrote it."""
    found = []
    for log in sorted(root.glob(f"*/*/{LOG}")):
        try:
            table = TableName.from_id(f"{log.parent.parent.name}.{log.parent.name}")
        except ValueError:
            continue
        found.append((table, log.parent))
    return found


def applied_everywhere(root: Path, pipeline: str) -> dict[TableName, Applied]:
    """What every table of this pipeline has applied, idle ones carried forward by the manifest: where a fresh log continues.

    Raises `LakeDamagedError`, `LakeError`.
    """
    found = {}
    newest = manifest.read(root, pipeline)
    for table, _ in folders(root):
        try:
            snapshot = LakeTable(root, table, pipeline).load()
        except LakeOccupiedError:
            continue
        if snapshot is not None and (applied := manifest.carried(table, snapshot, newest)):
            found[table] = applied
    return found
