"""A table in the lake: bootstrapped, upserted into, appended to, read."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdc.config import Mode
from cdc.epoch import Counts
from cdc.lake.changes import Folded, MergeCounts
from cdc.lake.deltalog import Applied, Snapshot
from cdc.lake.parquet import DataFile
from cdc.names import TableName
from cdc.schema import TableSchema

FILE_SIZE = 128 * 1024 * 1024


class LakeTable:
    """A table's folder under the lake's root, for one pipeline. Raises `LakeError` if it lies outside the root."""

    def __init__(
        self,
        root: Path,
        table: TableName,
        pipeline: str,
        *,
        file_size: int = FILE_SIZE,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        raise NotImplementedError

    def load(self) -> Snapshot | None:
        """The newest version; None where nothing is. Raises `LakeOccupiedError`, `LakeDamagedError`, `LakeError`."""
        raise NotImplementedError

    def refresh(self, snapshot: Snapshot) -> Snapshot:
        """The newest version, reading only what came after `snapshot`. Raises as `load`."""
        raise NotImplementedError

    def write_file(
        self,
        batches: Iterable[pa.RecordBatch],
        schema: TableSchema,
        *,
        ts_ms: int | None = None,
        seq: int | None = None,
    ) -> DataFile:
        """A durable Parquet file, not yet visible. `batches` have the lake's columns, or only the source's: then `ts_ms` and `seq`
        are every row's."""
        raise NotImplementedError

    def bootstrap(
        self,
        files: Sequence[DataFile],
        schema: TableSchema,
        mode: Mode,
        applied: Applied,
        on: Snapshot | None,
        logged: Counts,
    ) -> Snapshot:
        """One commit that makes `files` the table; `on`: the version whose files it replaces, all of them."""
        raise NotImplementedError

    def create(
        self, schema: TableSchema, mode: Mode, applied: Applied, logged: Counts, on: Snapshot | None = None
    ) -> Snapshot:
        """One commit: the empty table."""
        raise NotImplementedError

    def upsert(self, on: Snapshot, folded: Folded, applied: Applied, merged: MergeCounts) -> Snapshot:
        """One commit: the upserts replace or become rows, the deletes' rows go."""
        raise NotImplementedError

    def append(self, on: Snapshot, rows: pa.Table, applied: Applied, merged: MergeCounts) -> Snapshot:
        """One commit: `rows` (the source's columns, `_cdc_ts_ms`, `_cdc_seq`, `_cdc_op`, `_cdc_gid`) are added."""
        raise NotImplementedError

    def scan(
        self,
        snapshot: Snapshot,
        columns: Sequence[str] | None = None,
        key_range: tuple[Any | None, Any | None] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows, in no order, in batches of bounded size. `key_range`: `low <= first key column < high`, None: no bound."""
        raise NotImplementedError

    def keys(self, snapshot: Snapshot) -> Iterator[pa.RecordBatch]:
        """The key columns of every row, in the key's order of columns."""
        raise NotImplementedError

    def rows(self, snapshot: Snapshot, keys: pa.Table) -> pa.Table:
        """The rows with these keys (the key columns), all lake columns, in no order."""
        raise NotImplementedError

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Write a checkpoint of this version. `upsert` and the others do so every 100 commits; failure there only warns."""
        raise NotImplementedError

    def vacuum(self, snapshot: Snapshot, retention_s: float = 7 * 86400.0) -> int:
        """Delete the files that were removed longer ago than this. How many."""
        raise NotImplementedError

    def remove_orphans(self, keep: Collection[str], older_than_s: float) -> int:
        """Delete data files that nothing refers to, but those named in `keep` and those younger. How many."""
        raise NotImplementedError
