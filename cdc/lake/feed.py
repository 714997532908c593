"""Delta's change data feed: what a commit changed, row by row, for readers of `readChangeFeed` and `load_cdf`.

A commit that only adds rows says all of it by its data files: readers take them for inserts. One that deletes or replaces rows has files
in `_change_data` besides, named by `cdc` actions, and then readers take those alone: so they hold every change of it, inserts too. Their
rows have the table's columns and `_change_type`: `insert`, `delete`, or a row before and after an update, `update_preimage` and
`update_postimage`. They lie in one folder, whatever their partition: the log names it. Maintenance says of its files that they change no data, and is in no feed.

Rows are paired by what names them: their key, and in mode `history`, where a key has many versions, that version's `_cdc_seq`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc import unfit
from cdc.lake import partition, points
from cdc.lake.columns import SEQ
from cdc.lake.features import has_feed
from cdc.lake.keys import KeyIndex
from cdc.lake.parquet import DataFile, FileWriter
from cdc.lake.points import Places
from cdc.lake.snapshot import Snapshot
from cdc.lake.store import Folder
from cdc.lake.vectors import Vectors

FOLDER: Final = "_change_data"
CHANGE_TYPE: Final = "_change_type"
INSERT, DELETE, BEFORE, AFTER = "insert", "delete", "update_preimage", "update_postimage"
READ_ROWS = 64 * 1024
"""So many rows are read at once as they were before: a truncation may take more than fit into memory."""


class FeedFile(NamedTuple):
    """A durable file of changes that no commit names yet."""

    name: str
    size: int
    values: partition.Values

    def to_action(self) -> dict[str, Any]:
        """The `cdc` action."""
        path, values = partition.logged(self.name), dict(self.values)
        return {"cdc": {"path": path, "partitionValues": values, "size": self.size, "dataChange": False}}


def is_needed(on: Snapshot, gone: Places, added: Iterable[DataFile]) -> bool:
    """Whether a commit on this version that deletes or replaces the rows at these places, and adds these files, must say its changes in
    files of their own."""
    # deltalake's `load_cdf` does not decode the paths of data files: of what lies in such a folder it reads only what is said again.
    return has_feed(on.metadata) and (len(gone) > 0 or not all(partition.is_plain(file.name) for file in added))


def write(
    on: Snapshot, columns: pa.Schema, images: pa.Table, gone: Places, vectors: Vectors, file_size: int
) -> list[FeedFile]:
    """Files with all changes of a commit that deletes the rows at these places (none of them nowhere) and adds `images`, which have the
    table's columns from then on, `columns`. Files of more than `file_size` are begun anew.

    Durable with their names. Raises `LakeDamagedError`, `LakeError`; then nothing of it is left, as far as that is possible.
    """
    writer = _Writer(on, file_size)
    try:
        for rows, kinds in _changes(on, columns, images, gone, vectors):
            writer.write(rows, kinds)
        return writer.close()
    except BaseException:
        writer.abandon()
        raise


def discard(folder: Folder, files: Iterable[FeedFile]) -> None:
    """Remove what was written: no commit will name it."""
    folder.delete(file.name for file in files)


def _changes(
    on: Snapshot, columns: pa.Schema, images: pa.Table, gone: Places, vectors: Vectors
) -> Iterator[tuple[pa.Table, pa.Array[Any]]]:
    """Rows, each with its change type."""
    identity, named, number = list(on.schema.key), images, None
    if on.mode == "history":
        # A log that lost its tail gives a `_cdc_seq` again: of versions that are named alike the first one is taken.
        identity.append(SEQ)
        numbered = images.select(identity).append_column("", pa.array(np.arange(images.num_rows)))
        named = numbered.group_by(identity, use_threads=False).aggregate([("", "min")])
        number = named.column("_min").to_numpy()
    added = KeyIndex(named.select(identity), str(on.folder))
    is_new = np.ones(images.num_rows, np.bool_)
    order: Any = np.lexsort((gone.row, gone.file))
    for start in range(0, len(order), READ_ROWS):
        rows = points.read(on, gone.take(order[start : start + READ_ROWS]), columns, vectors)
        at: Any = added.locate(rows.select(identity)).combine_chunks()
        replaced = at.drop_null().to_numpy()
        is_new[replaced if number is None else number[replaced]] = False
        yield rows, _either(at.is_valid(), BEFORE, DELETE)
    if images.num_rows:
        yield images, _either(pa.array(is_new), INSERT, AFTER)


def _either(mask: Any, true: str, false: str) -> pa.Array[Any]:
    made: pa.Array[Any] = pc.if_else(mask, pa.scalar(true), pa.scalar(false))
    return made


class _Writer:
    """Files of changes, one open for each partition."""

    def __init__(self, on: Snapshot, file_size: int) -> None:
        self._folder, self._key, self._size = on.folder, on.schema.key, file_size
        self._names = partition.names(on.layout.partition_by)
        self._open: dict[str, tuple[FileWriter, partition.Values]] = {}
        self._done: list[FeedFile] = []

    def write(self, rows: pa.Table, kinds: pa.Array[Any]) -> None:
        """Rows with the table's columns, and their change types."""
        field: pa.Field[Any] = pa.field(CHANGE_TYPE, pa.string())
        # `_cdc_unfit`, a map, stands last in every file.
        rows = rows.add_column(rows.num_columns - unfit.is_last(rows.schema), field, kinds)
        for values, part in partition.split(rows, self._names):
            folder = partition.folder(values)
            if folder not in self._open:
                name = f"{FOLDER}/cdc-{uuid.uuid4().hex}.zstd.parquet"
                self._open[folder] = FileWriter(self._folder, part.schema, self._key, name), values
            writer = self._open[folder][0]
            writer.write(part)
            if writer.size >= self._size:
                self._close(folder)

    def _close(self, folder: str) -> None:
        writer, values = self._open[folder]
        file = writer.close()
        del self._open[folder]
        self._done.append(FeedFile(file.name, file.size, values))

    def close(self) -> list[FeedFile]:
        """The files, durable, and so are their names."""
        for folder in list(self._open):
            self._close(folder)
        self._folder.folder(FOLDER).settle()
        return self._done

    def abandon(self) -> None:
        """Remove what was written."""
        for writer, _ in self._open.values():
            writer.abandon()
        discard(self._folder, self._done)
