"""Delta tables, written by lakesync's own commits (Delta protocol 3, 7) and readable by everyone."""

from __future__ import annotations

from cdc.errors import LakeOccupiedError
from cdc.lake import manifest
from cdc.lake.changes import Effects, FoldCounts, Folded, MergeCounts
from cdc.lake.deltalog import LOG, AddFile, Applied, Snapshot
from cdc.lake.layout import Layout
from cdc.lake.parquet import DataFile
from cdc.lake.store import Folder, open_folder
from cdc.lake.table import LakeTable
from cdc.names import TableName
from cdc.roots import Root

__all__ = [
    "AddFile",
    "Applied",
    "DataFile",
    "Effects",
    "FoldCounts",
    "Folded",
    "Folder",
    "LakeTable",
    "Layout",
    "MergeCounts",
    "Snapshot",
    "applied_everywhere",
    "folders",
    "open_folder",
]


def folders(root: Root) -> list[tuple[TableName, Folder]]:
    """Every folder under the root that a table's name gives and that has a Delta log, whoever wrote it."""
    found = []
    lake = open_folder(root)
    for schema in sorted(lake.names()):
        for name in sorted(lake.folder(schema).names()):
            try:
                table = TableName.from_id(f"{schema}.{name}")
            except ValueError:
                continue
            folder = lake.folder(f"{schema}/{name}")
            if folder.holds(LOG):
                found.append((table, folder))
    return found


def applied_everywhere(root: Root, pipeline: str) -> dict[TableName, Applied]:
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
