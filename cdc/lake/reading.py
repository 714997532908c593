"""Data files as their table sees them: live rows only, columns and types of the table, values of partitions filled in.

Everything that reads rows of a table reads them here, so that no one forgets what is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cdc.errors import LakeDamagedError
from cdc.lake import partition
from cdc.lake.parquet import opened, row_groups
from cdc.lake.snapshot import AddFile, Snapshot
from cdc.lake.vectors import Vectors, alive

ROW = pa.field("row", pa.uint32())
"""The number of a row in its file, deleted ones counted: the last column of rows that are numbered."""


def groups(
    snapshot: Snapshot, file: AddFile, columns: pa.Schema, vectors: Vectors, *, numbered: bool = False
) -> Iterator[pa.Table]:
    """The live rows, in pieces of bounded size: these columns in these types, NULL where the file has no such column. `numbered`: with
    `row` as one more column, the last.

    Raises `LakeDamagedError`, `LakeError`.
    """
    dead = vectors.of(file)
    first = 0
    for rows in physical(snapshot, file, columns):
        count = rows.num_rows
        if numbered:
            numbers = pa.array(np.arange(first, first + count, dtype=np.uint32))
            rows = rows.append_column(ROW, numbers)
        if dead is not None:
            rows = rows.filter(alive(dead, first, count))
        first += count
        if rows.num_rows:
            yield rows


def physical(snapshot: Snapshot, file: AddFile, columns: pa.Schema, only: range | None = None) -> Iterator[pa.Table]:
    """All rows, deleted ones too, one piece after the other; `only`: of these row groups. Raises as `groups`."""
    stored, filled = _filled(snapshot, file, columns)
    with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
        _check(snapshot, file, parquet)
        for rows in row_groups(parquet, stored, only):
            yield _with(rows, columns, filled)


def rows_at(
    snapshot: Snapshot, file: AddFile, rows: npt.NDArray[np.int64], columns: pa.Schema, vectors: Vectors
) -> pa.Table:
    """The live ones of the rows with these numbers (ascending), reading only the row groups that hold any. Raises as `groups`."""
    dead = vectors.of(file)
    stored, filled = _filled(snapshot, file, columns)
    found: list[pa.Table] = []
    with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
        _check(snapshot, file, parquet)
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        start = 0
        for group, size in enumerate(sizes):
            low, high = np.searchsorted(rows, (start, start + size))
            if low < high:
                found += _taken(row_groups(parquet, stored, range(group, group + 1)), rows[low:high], start, dead)
            start += size
    return pa.concat_tables([columns.empty_table(), *(_with(part, columns, filled) for part in found)])


def _taken(pieces: Iterator[pa.Table], rows: npt.NDArray[np.int64], start: int, dead: Any) -> Iterator[pa.Table]:
    """Of one row group's pieces the rows with these numbers."""
    for piece in pieces:
        low, high = np.searchsorted(rows, (start, start + piece.num_rows))
        if low < high:
            at = rows[low:high] - start
            if dead is not None:
                at = at[alive(dead, start, piece.num_rows).to_numpy(zero_copy_only=False)[at]]
            yield piece.take(at)
        start += piece.num_rows


def count(snapshot: Snapshot, file: AddFile) -> int:
    """Physical rows: by the statistics, where there are none by the footer. Raises as `groups`."""
    if file.num_records is not None:
        return file.num_records
    with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
        return int(parquet.metadata.num_rows)


def live(snapshot: Snapshot) -> int:
    """The table's live rows. Raises as `groups`."""
    return sum(count(snapshot, file) - file.deleted for file in snapshot.files.values())


def _check(snapshot: Snapshot, file: AddFile, parquet: pq.ParquetFile) -> None:
    rows = int(parquet.metadata.num_rows)
    if file.num_records is not None and rows != file.num_records:
        raise LakeDamagedError(
            f"data file {file.path} has {rows} rows, its commit says {file.num_records}",
            where=str(snapshot.folder),
            hint="`lakesync resync` the table",
        )


def _filled(snapshot: Snapshot, file: AddFile, columns: pa.Schema) -> tuple[pa.Schema, dict[str, Any]]:
    """The columns to be read from the file, and the values of those that are its partition's."""
    names = snapshot.metadata.get("partitionColumns") or ()
    filled = {}
    for name in names:
        if name in columns.names:
            text = (file.partition or {}).get(name)
            kind = columns.field(name).type
            try:
                filled[name] = partition.read(text, kind)
            except pa.ArrowInvalid as error:
                raise LakeDamagedError(
                    f"data file {file.path} is of a partition whose {name} is no {kind}",
                    where=str(snapshot.folder),
                    hint="look who else writes to it, and resync the table",
                ) from error
    return pa.schema([field for field in columns if field.name not in filled]), filled


def _with(rows: pa.Table, columns: pa.Schema, filled: dict[str, Any]) -> pa.Table:
    if not filled:
        return rows
    arrays = [pa.repeat(filled[f.name], rows.num_rows) if f.name in filled else rows.column(f.name) for f in columns]
    return pa.table(arrays, schema=columns)
