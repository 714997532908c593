"""Copy-on-write: where changed keys are, and the files anew without them.

Memory is bounded by the changes, the key columns of one file and a few row groups, whatever the table's size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc.errors import LakeDamagedError
from cdc.lake.keys import KeyIndex, distinct
from cdc.lake.parquet import DataFile, FileWriter, bounds, opened, row_groups
from cdc.lake.snapshot import AddFile, Snapshot

SMALL_FILES = 24
"""So many files below an eighth of the full size may lie about; a commit that would leave more takes the smallest along."""
SMALL = 8
WORKERS = 2
"""Files that are written anew at once, each with a few row groups in memory."""


@dataclass(frozen=True)
class Found:
    """Where keys of an index are in a table: per file the numbers of the keys it holds."""

    by_path: dict[str, pa.Array[Any]] = field(default_factory=dict)

    def count(self, below: int) -> tuple[int, int]:
        """How many found keys have a number below this one, and how many another."""
        limit = pa.scalar(below, pa.int32())
        low = sum(len(ids.filter(pc.less(ids, limit))) for ids in self.by_path.values())
        return low, sum(map(len, self.by_path.values())) - low


def look_up(snapshot: Snapshot, index: KeyIndex) -> Found:
    """Find the index's keys, reading only key columns, and of files that can hold any.

    Raises `LakeDamagedError` for a key that the table holds twice, and for files that cannot be read.
    """
    columns = index.keys.schema
    found: dict[str, pa.Array[Any]] = {}
    for file in snapshot.files.values():
        if not index.overlaps(bounds(file.statistics, columns)):
            continue
        with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
            groups = list(row_groups(parquet, columns))
        if groups:
            ids = index.locate(pa.concat_tables(groups)).drop_null().combine_chunks()
            if len(ids):
                found[file.path] = ids
    _, twice = distinct(list(found.values()))
    if twice:
        raise LakeDamagedError(
            f"holds {twice} of the changed keys more than once",
            where=str(snapshot.folder),
            hint="resync the table; lakesync never writes a key twice, so look who else writes to it",
        )
    return Found(found)


class Rolling:
    """Files written one after the other, each up to a size. Rows in, measured files out."""

    def __init__(self, new_file: Callable[[], FileWriter], file_size: int) -> None:
        self._new_file, self._file_size = new_file, file_size
        self._writer: FileWriter | None = None
        self.files: list[DataFile] = []

    def write(self, rows: pa.Table) -> None:
        """Add rows."""
        if self._writer is None:
            self._writer = self._new_file()
        self._writer.write(rows)
        if self._writer.size >= self._file_size:
            self.close()

    def close(self) -> None:
        """End the file that is being written; fsynced, its folder not."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                file = writer.close()
            except BaseException:
                writer.abandon()
                raise
            if file.rows:
                self.files.append(file)

    def abandon(self, folder_of: Snapshot) -> None:
        """Remove what was written: no commit will name it."""
        if self._writer is not None:
            self._writer.abandon()
        folder_of.folder.delete(file.name for file in self.files)


@dataclass(frozen=True)
class Rewritten:
    """What a commit adds and removes. `rows_deleted` is counted in the removed files' footers."""

    added: tuple[DataFile, ...]
    removed: tuple[AddFile, ...]
    rows_deleted: int


def small_files(snapshot: Snapshot, file_size: int) -> list[AddFile]:
    """Files that are far below the full size."""
    return [file for file in snapshot.files.values() if file.size < file_size // SMALL]


def rewrite(
    snapshot: Snapshot,
    columns: pa.Schema,
    index: KeyIndex | None,
    found: Found,
    images: pa.Table,
    new_file: Callable[[], FileWriter],
    file_size: int,
) -> Rewritten:
    """Write the table's touched files anew.

    Keys are numbered by `index`, the first of them being those of `images`, row by row. A row whose key has an image is replaced
    by it, in its row group; a row whose key is in the index and has none goes. Images whose key was not found are new rows.
    Files that are not touched stay, unless there are too many small ones. Raises `LakeError`, `LakeDamagedError`.
    """
    small = {file.path for file in small_files(snapshot, file_size)}
    touched = set(found.by_path)
    fresh = _not_found(images, found)
    if len(small - touched) + bool(fresh.num_rows or small & touched) > SMALL_FILES:
        touched |= _along(snapshot, small - touched, file_size)
    # Small files flow together with the new rows; each full-size one is written by itself, so that its keys stay together.
    together = Rolling(new_file, file_size)
    large = {path: Rolling(new_file, file_size) for path in sorted(touched - small)}

    def copy(path: str, into: Rolling) -> int:
        return _copy(snapshot, snapshot.files[path], columns, index, found.by_path.get(path), images, into)

    def copy_and_close(path: str) -> int:
        rows = copy(path, large[path])
        large[path].close()
        return rows

    writers = [together, *large.values()]
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            rows_deleted = sum(pool.map(copy_and_close, large))
        rows_deleted += sum(copy(path, together) for path in sorted(touched & small))
        if fresh.num_rows:
            together.write(fresh)
        together.close()
    except BaseException:
        for writer in writers:
            writer.abandon(snapshot)
        raise
    removed = [snapshot.files[path] for path in sorted(touched)]
    added = tuple(file for writer in writers for file in writer.files)
    return Rewritten(added, tuple(removed), rows_deleted)


def _along(snapshot: Snapshot, small: Collection[str], limit: int) -> set[str]:
    """The smallest of the small files, together about one full file: eight of them at least, so that they become fewer."""
    sizes = {path: snapshot.files[path].size for path in small}
    taken: set[str] = set()
    for path in sorted(small, key=lambda path: (sizes[path], path)):
        if limit <= 0:
            break
        taken.add(path)
        limit -= sizes[path]
    return taken


def _not_found(images: pa.Table, found: Found) -> pa.Table:
    ids, _ = distinct(list(found.by_path.values()))
    if not len(ids) or not images.num_rows:
        return images
    numbers = pa.array(range(images.num_rows), pa.int32())
    return images.filter(pc.invert(pc.is_in(numbers, value_set=ids)))


def _copy(
    snapshot: Snapshot,
    file: AddFile,
    columns: pa.Schema,
    index: KeyIndex | None,
    ids: pa.Array[Any] | None,
    images: pa.Table,
    into: Rolling,
) -> int:
    """One file, without the rows of changed keys and with their images. Its physical rows."""
    here = index.take(ids) if index is not None and ids is not None else None
    with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
        rows = int(parquet.metadata.num_rows)
        if file.num_records is not None and rows != file.num_records:
            raise LakeDamagedError(
                f"data file {file.path} has {rows} rows, its commit says {file.num_records}",
                where=str(snapshot.folder),
                hint="`lakesync resync` the table",
            )
        for group in row_groups(parquet, columns):
            if here is None or ids is None:
                into.write(group)
                continue
            at = here.locate(group.select(here.keys.column_names))
            if at.null_count == len(at):
                into.write(group)
                continue
            into.write(group.filter(pc.is_null(at)))
            changed = ids.take(at.drop_null().combine_chunks())
            into.write(images.take(changed.filter(pc.less(changed, pa.scalar(images.num_rows, pa.int32())))))
    return rows


def read_keys(snapshot: Snapshot, found: Found, columns: pa.Schema, index: KeyIndex) -> Sequence[pa.Table]:
    """The rows of the keys that were found. Raises `LakeDamagedError`."""
    rows = []
    for path, ids in found.by_path.items():
        here = index.take(ids)
        file = snapshot.files[path]
        with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
            for group in row_groups(parquet, columns):
                at = here.locate(group.select(here.keys.column_names))
                rows.append(group.filter(pc.is_valid(at)))
    return rows
