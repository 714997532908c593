"""Few, well filled files: which files of a table to write anew together, and how, while others go on committing.

Files are merged in tiers, each eight times as large as the one before, so that a row is moved once a tier: a logarithm of times. A file
of which too many rows are deleted is written anew without them. Rows of different partitions are never in one file.

What is written is a file of the rows that were live at one version, with the number that each of them had. If other commits came
between, that is where they took a row: it is dead in the new file too, by a vector. So the work is not lost, however long it took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc._native import Bitmap
from cdc.lake import index, partition, reading
from cdc.lake.parquet import DataFile, FileWriter, new_name
from cdc.lake.snapshot import AddFile, Snapshot
from cdc.lake.vectors import Vectors

TIER = 8
"""Files of one tier that are merged into one of the next; fewer stay."""
MOST_SMALL = 24
"""In one partition there are never more files below the full size, once maintenance has caught up."""
SMALLEST = 64 * 1024
"""Bytes: what is smaller costs a reader as much as this."""
PURGED_SHARE = 0.25
"""Of a file's rows so many are deleted when it is written anew."""


@dataclass(frozen=True)
class Group:
    """Files of one partition that become one file, in their order."""

    files: tuple[AddFile, ...]

    @property
    def bytes(self) -> int:
        """To be read."""
        return sum(file.size for file in self.files)


def groups(
    snapshot: Snapshot, file_size: int, purged_share: float = PURGED_SHARE, *, everything: bool = False
) -> list[Group]:
    """What to write anew, the cheapest first. `everything`: all small files, be they few.

    Nothing that was just made by a group is in one again, if no one else commits.
    """
    partitions: dict[tuple[Any, ...], list[AddFile]] = {}
    for file in snapshot.files.values():
        partitions.setdefault(tuple(sorted((file.partition or {}).items())), []).append(file)
    found = [
        group for files in partitions.values() for group in _of_partition(files, file_size, purged_share, everything)
    ]
    return sorted(found, key=lambda group: group.bytes)


def _of_partition(files: Sequence[AddFile], file_size: int, purged_share: float, everything: bool) -> Iterator[Group]:
    full = file_size // 2
    small = [file for file in files if _left(file) < full]
    for file in files:
        if _left(file) >= full and file.deleted > purged_share * max(1, file.num_records or 0):
            yield Group((file,))
    tiers: dict[int, list[AddFile]] = {}
    for file in small:
        tiers.setdefault(0 if everything else _tier(_left(file), full), []).append(file)
    due = [tier for tier, members in tiers.items() if len(members) >= (2 if everything else TIER)]
    if not due and len(small) > MOST_SMALL:
        # Some of every tier: then of the two that cost least.
        chosen = sorted(tiers, reverse=True)[:2]
        tiers = {0: [file for tier in chosen for file in tiers[tier]]}
        due = [0]
    taken: set[str] = set()
    for tier in due:
        for group in _filled(tiers[tier], file_size):
            if len(group.files) > 1:
                taken |= {file.path for file in group.files}
                yield group
    for file in small:
        # What is smaller is merged with others before long.
        large = everything or file.size >= full // TIER
        if large and file.path not in taken and file.deleted > purged_share * max(1, file.num_records or 0):
            yield Group((file,))


def _left(file: AddFile) -> int:
    """About the bytes that it would have without what is deleted."""
    rows = file.num_records or 0
    return file.size if not rows else file.size * (rows - file.deleted) // rows


def _tier(size: int, full: int) -> int:
    """0 for the largest small files. What is smaller than `SMALLEST` is all in one tier."""
    tier, bound = 0, full // TIER
    while size < bound and bound > SMALLEST:
        tier, bound = tier + 1, bound // TIER
    return tier


def _filled(files: Sequence[AddFile], file_size: int) -> Iterator[Group]:
    """In their order, each group up to a full file."""
    members: list[AddFile] = []
    size = 0
    for file in files:
        if members and size + _left(file) > file_size:
            yield Group(tuple(members))
            members, size = [], 0
        members.append(file)
        size += _left(file)
    if members:
        yield Group(tuple(members))


@dataclass(frozen=True)
class Compacted:
    """A durable file that no commit names yet, and what its rows were."""

    on: Snapshot
    """The version that it was made of."""
    file: DataFile
    """`NO_FILE` where no row was left."""
    kept: Mapping[str, npt.NDArray[np.uint32]]
    """By path of the files that it replaces, in their order in it: the numbers of their rows that are in it, ascending."""
    dead: Mapping[str, Bitmap | None]
    """Their vectors then."""
    keys: pa.Table | None
    """What the key index reads of its rows."""


def write(
    snapshot: Snapshot, group: Group, columns: pa.Schema, vectors: Vectors, stopped: Callable[[], bool]
) -> Compacted | None:
    """Write the live rows of a group as one file, fsynced, its folder not; `columns` are the table's. None: it was `stopped`, or nothing
    of the group is in this version.

    Raises `LakeDamagedError`, `LakeError`.
    """
    files = [snapshot.files[file.path] for file in group.files if file.path in snapshot.files]
    if not files:
        return None
    names = snapshot.metadata.get("partitionColumns") or ()
    stored = partition.stored(columns, names)
    values = files[0].partition or {}
    of_keys = index.columns(snapshot).names if snapshot.schema.key else []
    writer = FileWriter(snapshot.folder, stored, snapshot.schema.key, partition.folder(values) + new_name())
    kept: dict[str, npt.NDArray[np.uint32]] = {}
    dead: dict[str, Bitmap | None] = {}
    keys: list[pa.Table] = []
    try:
        for file in files:
            numbers = [np.empty(0, np.uint32)]
            dead[file.path] = vectors.of(file)
            for rows in reading.groups(snapshot, file, columns, vectors, numbered=True):
                if stopped():
                    writer.abandon()
                    return None
                numbers.append(rows.column(reading.ROW.name).to_numpy())
                writer.write(rows.select(stored.names))
                if of_keys:
                    keys.append(rows.select(of_keys))
            kept[file.path] = np.concatenate(numbers)
        written = writer.close()
    except BaseException:
        writer.abandon()
        raise
    if written.name:
        written = replace(written, partition=dict(values) or None)
    known = pa.concat_tables([index.columns(snapshot).empty_table(), *keys]) if of_keys else None
    return Compacted(snapshot, written, kept, dead, known)


@dataclass(frozen=True)
class Mapped:
    """A compacted file at a later version."""

    removed: tuple[AddFile, ...]
    """The files that it replaces, as they are there."""
    dead: Bitmap | None
    """Its rows that died meanwhile."""
    moved: int
    """Its other rows."""


def mapped(done: Compacted, on: Snapshot, vectors: Vectors) -> Mapped | None:
    """What of it still holds at this version; None: nothing that is worth a commit. Raises `LakeDamagedError`, `LakeError`."""
    if on.metadata.get("id") != done.on.metadata.get("id"):
        return None
    if (on.metadata.get("partitionColumns") or []) != (done.on.metadata.get("partitionColumns") or []):
        return None
    removed: list[AddFile] = []
    dead: list[npt.NDArray[np.uint32]] = []
    first = 0
    for path, rows in done.kept.items():
        file, was = on.files.get(path), done.on.files[path]
        here = np.arange(first, first + len(rows), dtype=np.uint32)
        first += len(rows)
        if file is None:
            dead.append(here)
            continue
        if file.size != was.size:
            return None
        removed.append(file)
        if file.vector == was.vector:
            continue
        now, then = vectors.of(file) or Bitmap(), done.dead[path] or Bitmap()
        if now.lacks(then):
            return None  # someone restored rows that are not in the new file
        numbers: Any = now.rows()
        gone = np.asarray(pa.array(numbers).to_numpy(), np.uint32)
        dead.append(here[np.isin(rows, gone, assume_unique=True)])
    count = sum(len(rows) for rows in dead)
    if not removed or (count == first and first):
        return None
    if not count:
        return Mapped(tuple(removed), None, first)
    if "%" in partition.logged(done.file.name):
        return None  # polars would not see the vector
    return Mapped(tuple(removed), Bitmap().add(pa.array(np.concatenate(dead))), first - count)
