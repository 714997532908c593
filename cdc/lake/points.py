"""Rows by their places: where keys are in a table, and the rows that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc.errors import LakeDamagedError
from cdc.lake import reading
from cdc.lake.snapshot import Snapshot
from cdc.lake.vectors import Vectors

Numbers = npt.NDArray[np.int64]
HINT = "remove the folder `index` in the state folder: it is built anew; if that does not help, resync the table"
_FEW = 64
"""Files."""


@dataclass(frozen=True)
class Places:
    """Where so many keys are, one after the other: `file` is an index into `paths` (of the log), -1 for a key that is nowhere; `row` the
    number of the row in the file's Parquet, deleted ones counted, -1 where the key is nowhere. int64 both."""

    paths: Sequence[str]
    file: Numbers
    row: Numbers

    @classmethod
    def nowhere(cls, count: int = 0) -> Places:
        """So many keys that are not in the table."""
        return cls((), np.full(count, -1, np.int64), np.full(count, -1, np.int64))

    @classmethod
    def in_file(cls, path: str, rows: Any) -> Places:
        """Rows of one file, by their numbers."""
        numbers = np.asarray(rows, np.int64)
        return cls((path,), np.zeros(len(numbers), np.int64), numbers)

    def __len__(self) -> int:
        return len(self.file)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Whether a key is somewhere."""
        found: npt.NDArray[np.bool_] = self.file >= 0
        return found

    def count(self, start: int = 0, end: int | None = None) -> int:
        """How many of these keys, or of those from `start` to `end`, are somewhere."""
        return int(np.count_nonzero(self.file[start:end] >= 0))

    def take(self, at: Any) -> Places:
        """Those with these numbers, or for which a mask is true."""
        return Places(self.paths, self.file[at], self.row[at])

    def plus(self, *others: Places) -> Places:
        """These, then the others."""
        paths, files = list(self.paths), [self.file]
        for other in others:
            files.append(np.where(other.file >= 0, other.file + len(paths), -1))
            paths += other.paths
        return Places(paths, np.concatenate(files), np.concatenate([self.row, *(other.row for other in others)]))

    def by_path(self) -> Iterator[tuple[str, Numbers]]:
        """The rows of each file that has any, in the order given."""
        rows: dict[str, list[Numbers]] = {}
        counts = np.bincount(self.file[self.found], minlength=1)
        numbers = np.flatnonzero(counts)
        if len(numbers) <= _FEW:  # a pass for each is faster than to sort
            parts = [self.row[self.file == number] for number in numbers.tolist()]
        else:
            order = np.argsort(self.file, kind="stable")[int(np.count_nonzero(~self.found)) :]
            parts = np.split(self.row[order], np.cumsum(counts[numbers])[:-1])
        for number, part in zip(numbers.tolist(), parts, strict=True):
            rows.setdefault(self.paths[number], []).append(part)
        for path, found in rows.items():
            yield path, found[0] if len(found) == 1 else np.concatenate(found)


def read(snapshot: Snapshot, places: Places, columns: pa.Schema, vectors: Vectors) -> pa.Table:
    """The rows at these places, in their order; of those that are nowhere no row. Only the row groups that hold any are read.

    Raises `LakeDamagedError` for a place that is not there, or whose row is deleted; `LakeError`.
    """
    wanted = places.take(places.found)
    if not len(wanted):
        return columns.empty_table()
    tables, at = [], []
    for number in np.unique(wanted.file).tolist():
        here = np.flatnonzero(wanted.file == number)
        file = snapshot.files.get(wanted.paths[number])
        if file is None:
            raise _gone(snapshot, wanted.paths[number])
        order = here[np.argsort(wanted.row[here], kind="stable")]
        taken = reading.rows_at(snapshot, file, wanted.row[order], columns, vectors)
        if taken.num_rows != len(order):
            raise _gone(snapshot, file.path)
        tables.append(taken)
        at.append(order)
    together = pa.concat_tables(tables)
    back = np.empty(len(wanted), np.int64)
    back[np.concatenate(at)] = np.arange(len(wanted))
    return together.take(back)


def _gone(snapshot: Snapshot, path: str) -> LakeDamagedError:
    return LakeDamagedError(
        f"data file {path} does not have the rows that the key index says",
        where=str(snapshot.folder),
        hint=HINT,
    )
