"""The rows of one commit as data files, durable and not yet visible, written while the keys are looked up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from cdc._native import Bitmap
from cdc.lake import partition, reading
from cdc.lake.parquet import ROW_GROUP_ROWS, DataFile, FileWriter, new_name
from cdc.lake.snapshot import AddFile, Snapshot
from cdc.lake.store import Folder
from cdc.lake.vectors import alive

_WRITERS = 4
"""Data files written at once: those of several partitions wait for the disk, or the object store, together."""
_POOL = ThreadPoolExecutor(_WRITERS, thread_name_prefix="lake-write")


class Written(NamedTuple):
    """A data file, with the rows that are in it, in their order; those have the columns of partitions, which the file does not."""

    file: DataFile
    rows: pa.Table


class Writing:
    """Files that are being written, by threads. `rows` have all columns of the table; `columns` are those that the caller wants back with
    each file. One that is not committed must be abandoned."""

    def __init__(
        self, folder: Folder, rows: pa.Table, wanted: list[str], names: tuple[str, ...], key: tuple[str, ...], size: int
    ) -> None:
        self._folder, self._wanted = folder, wanted
        self._schema, self._names, self._key, self._size = rows.schema, names, key, size
        self.rows = rows
        self._parts: list[Future[list[Written]]] = []
        try:
            for portion in partition.split(rows, names) if rows.num_rows else ():
                self._parts.append(_POOL.submit(self._write, portion))
        except BaseException:
            self.abandon()
            raise

    def copy(self, on: Snapshot, file: AddFile, columns: pa.Schema, dead: Bitmap) -> None:
        """Begin to write what is left of a file of the table without these rows, as one more file."""
        self._parts.append(_POOL.submit(lambda: [left_of(on, file, columns, dead, self._wanted)]))

    def result(self) -> list[Written]:
        """The files. Raises `LakeError`."""
        return [written for part in self._parts for written in part.result()]

    def abandon(self) -> None:
        """Remove what was written: no commit will name it."""
        for part in self._parts:
            part.cancel()
        for part in self._parts:
            if not part.cancelled() and part.exception() is None:
                self._folder.delete(written.file.name for written in part.result())

    def settle(self) -> None:
        """Make the files' names durable. Raises `LakeError`."""
        folders = {written.file.name.rpartition("/")[0] for written in self.result()}
        for name in sorted(folders - {""}):
            self._folder.folder(name).settle()
        self._folder.settle()

    def _write(self, portion: partition.Portion) -> list[Written]:
        """One partition's rows, in files of about this size."""
        done: list[Written] = []
        try:
            rows = portion.rows
            while rows.num_rows:
                file = self._one(portion, rows)
                done.append(Written(file, self._kept(portion, rows.slice(0, file.rows))))
                rows = rows.slice(file.rows)
        except BaseException:
            self._folder.delete(written.file.name for written in done)
            raise
        return done

    def _one(self, portion: partition.Portion, rows: pa.Table) -> DataFile:
        name = partition.folder(portion.values) + new_name()
        writer = FileWriter(self._folder, rows.schema, self._key, name)
        try:
            for piece in _pieces(rows):
                writer.write(piece)
                if writer.size >= self._size:
                    break
            return replace(writer.close(), partition=dict(portion.values) or None)
        except BaseException:
            writer.abandon()
            raise

    def _kept(self, portion: partition.Portion, rows: pa.Table) -> pa.Table:
        """What is wanted of a file's rows: its columns, and the values of its partition."""
        have = set(rows.column_names)
        fields = [self._schema.field(name) for name in self._wanted]
        arrays = [
            rows.column(f.name) if f.name in have else _repeated(portion.values[f.name], f.type, rows.num_rows)
            for f in fields
        ]
        return pa.table(arrays, schema=pa.schema(fields))


def left_of(on: Snapshot, file: AddFile, columns: pa.Schema, dead: Bitmap, wanted: list[str]) -> Written:
    """What is left of a file without these rows, as a new one with all of `columns`; `rows` are the columns `wanted` of it.

    Raises `LakeDamagedError`, `LakeError`.
    """
    names = on.metadata.get("partitionColumns") or ()
    values = {name: (file.partition or {}).get(name) for name in names}
    writer = FileWriter(
        on.folder, partition.stored(columns, names), on.schema.key, partition.folder(values) + new_name()
    )
    kept, first = [pa.schema([columns.field(name) for name in wanted]).empty_table()], 0
    try:
        for rows in reading.physical(on, file, columns):
            left = rows.filter(alive(dead, first, rows.num_rows))
            first += rows.num_rows
            writer.write(left.drop_columns(list(names)))
            kept.append(left.select(wanted))
        return Written(replace(writer.close(), partition=values or None), pa.concat_tables(kept))
    except BaseException:
        writer.abandon()
        raise


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, ROW_GROUP_ROWS):
        yield rows.slice(start, ROW_GROUP_ROWS)


def _repeated(text: str | None, kind: pa.DataType, count: int) -> pa.Array[Any]:
    repeated: pa.Array[Any] = pa.repeat(partition.read(text, kind), count)
    return repeated
