"""Delta tables, written by lakesync's own commits (Delta protocol 3, 7) and readable by everyone."""

from __future__ import annotations

from pathlib import Path

from cdc.lake.changes import Effects, FoldCounts, Folded, MergeCounts
from cdc.lake.deltalog import AddFile, Applied, Snapshot
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
]


def applied_everywhere(root: Path, pipeline: str) -> dict[TableName, Applied]:
    """What every table of this pipeline has applied, idle ones carried forward by the manifest: where a fresh log continues.

    Raises `LakeDamagedError`, `LakeError`.
    """
    raise NotImplementedError
