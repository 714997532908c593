"""Rows in any order into one data file for each partition, in bounded memory and with few files open.

Rows wait in memory; when they are too many, they go to a temporary file, partition by partition. At the end each partition's rows are
gathered from these files, and its data file is written: one is open at a time, however many partitions there are. The temporary files have
no names, so that a process that is killed leaves none behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc import unfit
from cdc.lake import partition
from cdc.lake.parquet import ROW_GROUP_ROWS, DataFile, FileWriter, new_name
from cdc.lake.partition import Values
from cdc.lake.store import Folder, failed

MEMORY = 64 * 1024 * 1024
"""Bytes of rows that wait before they go to a temporary file."""


@dataclass
class _Run:
    """A temporary file with rows of some partitions: of each the numbers of its batches."""

    file: Any
    batches: dict[str, list[int]] = field(default_factory=dict)
    reader: Any = None

    def rows(self, folder: str) -> Iterator[pa.Table]:
        """The rows of a partition."""
        if folder in self.batches and self.reader is None:
            self.reader = pa.ipc.open_file(pa.PythonFile(self.file, "r"))
        for number in self.batches.get(folder, ()):
            yield pa.Table.from_batches([self.reader.get_batch(number)])


class Sorting:
    """Data files being made of rows that come in any order. `announce` is told each file's name before it is written; `scratch` is a local
    folder for temporary files. Raises `LakeError`."""

    def __init__(
        self,
        folder: Folder,
        names: Sequence[str],
        key: Collection[str],
        announce: Callable[[str], None],
        scratch: Path | None = None,
        memory: int = MEMORY,
    ) -> None:
        self._folder, self._names, self._key, self._announce = folder, tuple(names), key, announce
        self._scratch, self._memory = scratch, memory
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self._values: dict[str, Values] = {}
        self._runs: list[_Run] = []
        self._done: list[DataFile] = []

    def write(self, rows: pa.Table) -> None:
        """Add rows, with all columns of the table, as `partition.prepared` makes them; `_cdc_unfit` may be the last or not."""
        if not rows.num_rows:
            return
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= self._memory:
            self._spill()

    def close(self) -> list[DataFile]:
        """The files, durable; their folders are not."""
        last = dict(self._portions())
        for folder, values in self._values.items():
            # Only the rows with values that do not fit make a file with the column for them.
            writers: list[FileWriter | None] = [None, None]
            try:
                for rows in self._of(folder, last):
                    for n, part in enumerate(_parted(rows)):
                        if part.num_rows:
                            writer = writers[n] = writers[n] or self._new(folder, part.schema)
                            writer.write(part)
                self._done += [replace(w.close(), partition=dict(values)) for w in writers if w is not None]
            except BaseException:
                for writer in filter(None, writers):
                    writer.abandon()
                raise
        self._forget()
        return self._done

    def abandon(self) -> None:
        """Remove what was written."""
        self._forget()
        self._folder.delete(file.name for file in self._done)

    def _of(self, folder: str, last: dict[str, pa.Table]) -> Iterator[pa.Table]:
        for run in self._runs:
            yield from run.rows(folder)
        if folder in last:
            yield last.pop(folder)

    def _portions(self) -> Iterator[tuple[str, pa.Table]]:
        """What waits, partition by partition; then nothing does."""
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting, promote_options="default")
        self._waiting, self._bytes = [], 0
        for values, part in partition.split(rows, self._names):
            folder = partition.folder(values)
            self._values[folder] = values
            yield folder, part

    def _spill(self) -> None:
        run, writer = None, None
        count = 0
        try:
            for folder, part in self._portions():
                if run is None or writer is None:
                    run = _Run(tempfile.TemporaryFile(dir=self._scratch))  # noqa: SIM115 - `_forget` closes it
                    self._runs.append(run)
                    options = pa.ipc.IpcWriteOptions(compression="lz4")
                    writer = pa.ipc.new_file(pa.PythonFile(run.file, "w"), part.schema, options=options)
                for batch in part.to_batches(ROW_GROUP_ROWS):
                    writer.write_batch(batch)
                    run.batches.setdefault(folder, []).append(count)
                    count += 1
            if run is not None and writer is not None:
                writer.close()
                run.file.seek(0)
        except OSError as error:
            raise failed(error, "rows cannot be kept for a moment", self._scratch or tempfile.gettempdir()) from error

    def _forget(self) -> None:
        for run in self._runs:
            with suppress(OSError):
                run.file.close()
        self._runs, self._waiting = [], []

    def _new(self, folder: str, columns: pa.Schema) -> FileWriter:
        name = folder + new_name()
        self._announce(name)
        return FileWriter(self._folder, columns, self._key, name)


def _parted(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows without `_cdc_unfit`, and those that need it."""
    if not unfit.is_last(rows.schema):
        return rows, rows.slice(0, 0)
    needed = rows.column(unfit.NAME).is_valid()
    return rows.filter(pc.invert(needed)).drop_columns([unfit.NAME]), rows.filter(needed)
