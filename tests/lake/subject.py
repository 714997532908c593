"""A lake table under test beside what must be in it, over keys of several kinds.

A row is made of two small numbers, its key's and its value's, so that a whole table is a dictionary of them. The value decides the
partition columns too: a row that changes moves between partitions.
"""

from __future__ import annotations

import datetime
import decimal
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdc import faults
from cdc.epoch import Counts
from cdc.lake import FoldCounts, Folded, LakeTable, MergeCounts, Snapshot
from cdc.lake.columns import key_columns, lake_columns
from cdc.lake.layout import Layout
from cdc.schema import Column, TableSchema
from tests.integration.lake_rows import TABLE, Row, applied, table_of

Values = Mapping[int, int]
"""Key number to value."""

NUMBERS = 80
"""Keys are numbered below this."""
SHARDS = ("a", "b", "", "ä", "🦆")
_VALUES = (
    Column("v", "int"),
    Column("note", "text", charset="utf8mb4"),
    Column("region", "text", charset="utf8mb4"),
    Column("at", "datetime"),
)
_PLACES = decimal.Decimal("0.0001")
_BEGAN = datetime.datetime(2024, 1, 15, 12)  # noqa: DTZ001, a DATETIME has none


@dataclass(frozen=True)
class Kind:
    """A kind of key: its columns, and the key of a number, by column."""

    name: str
    columns: tuple[Column, ...]
    key: Callable[[int], Row]

    @property
    def schema(self) -> TableSchema:
        """The key stands behind the values, in reverse, so that no order of columns is right by accident."""
        names = tuple(column.name for column in self.columns)
        return TableSchema((*_VALUES, *reversed(self.columns)), names)

    def row(self, number: int, value: int) -> Row:
        """The source's columns."""
        note = None if value % 5 == 0 else f"{value:x}" * (value % 4)
        region = None if value % 7 == 0 else ("north", "so/uth", "=é x", "")[value % 4]
        at = _BEGAN + datetime.timedelta(days=10 * (value % 12))
        return (value, note, region, at, *reversed(self.key(number)))

    def shard(self, number: int) -> str:
        """The key's first column, where that is a text."""
        return str(self.key(number)[0])


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("int", (Column("id", "bigint"),), lambda i: ((i - 20) * 2**40 + i,)),
        Kind("text", (Column("id", "text", charset="utf8mb4"),), lambda i: ("é" * (i % 4) + f"{i}" + " " * (i % 2),)),
        Kind("binary", (Column("id", "varbinary"),), lambda i: (bytes([i, 0, 255 - i]) * (1 + i % 3),)),
        Kind(
            "decimal",
            (Column("id", "decimal", precision=30, scale=4),),
            lambda i: ((decimal.Decimal(i - 20) / 4).quantize(_PLACES),),
        ),
        Kind(
            "composite",
            (Column("t", "text", charset="utf8mb4"), Column("b", "varbinary"), Column("n", "smallint")),
            lambda i: (SHARDS[i % len(SHARDS)], b"\x00" * (i % 3), i // 3),
        ),
    )
}


class Clock:
    """Time that goes on only when a test says so."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


class Crash(BaseException):
    """The process ended here."""


@contextmanager
def at_point(point: str, nth: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Do `act` when the fault point is reached for the `nth` time in this block; the list has how often it was."""
    reached, before = [0], faults.point

    def passed(name: str) -> None:
        if name == point:
            reached[0] += 1
            if reached[0] == nth:
                act()

    faults.point = passed
    try:
        yield reached
    finally:
        faults.point = before


def frozen(folder: Path, to: Path) -> None:
    """A copy of a folder as a kill would leave it, files with their identity (hard links; nothing writes into a file that is complete)."""
    shutil.copytree(folder, to, copy_function=_link, symlinks=True)


def _link(source: str, target: str) -> str:
    # A lock is held on a file, not on a name: the copy must not be locked by the object that "died".
    if Path(source).name.endswith("lock"):
        return str(shutil.copy2(source, target))
    os.link(source, target)
    return target


class Subject:
    """A table, opened as a merger does, and what must be in it."""

    def __init__(
        self,
        root: Path,
        kind: Kind,
        layout: Layout | None = None,
        *,
        file_size: int = 4000,
        indexed: bool = True,
        index_memory: int = 1 << 20,
        clock: Clock | None = None,
    ) -> None:
        self.root, self.kind, self.layout = root, kind, layout or Layout("upsert")
        self.schema = kind.schema
        self.clock = clock or Clock()
        self.file_size, self.indexed, self.index_memory = file_size, indexed, index_memory
        self.expected: dict[int, int] = {}
        self.epoch = 0
        self.lake = self.opened()
        self._snapshot: Snapshot | None = None

    @property
    def lake_root(self) -> Path:
        return self.root / "lake"

    @property
    def index(self) -> Path:
        """Where the key index is kept between processes."""
        return self.root / "index"

    @property
    def folder(self) -> Path:
        """The table's, for readers."""
        return self.lake_root / TABLE.folder

    @property
    def snapshot(self) -> Snapshot:
        assert self._snapshot is not None
        return self._snapshot

    @snapshot.setter
    def snapshot(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot

    def opened(self, *, indexed: bool | None = None) -> LakeTable:
        """The table as another process would open it."""
        kept = self.indexed if indexed is None else indexed
        return LakeTable(
            self.lake_root,
            TABLE,
            "p",
            file_size=self.file_size,
            clock=self.clock,
            index=self.index if kept else None,
            index_memory=self.index_memory,
        )

    def reopen(self, *, close: bool = True) -> None:
        """A process ends, well or not, and the next one begins."""
        self.close(save=close)
        self.lake = self.opened()
        self.snapshot = self.lake.load()

    def close(self, *, save: bool = True) -> None:
        """Let go of the table, as a process does that ends, or, without `save`, is killed."""
        if save:
            self.lake.close()
        else:
            self.lake.index.forget()
            self.lake.index._release()

    # -- changes -------------------------------------------------------------------------------------------------------

    def bootstrap(self, values: Values, files: int = 3) -> None:
        """The table anew, with these rows."""
        self.epoch += 1
        rows = [self.kind.row(*item) for item in values.items()]
        size = max(1, -(-len(rows) // files))
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        written = [
            self.lake.write_file(
                table_of(part, self.schema.arrow).to_batches(),
                self.schema,
                ts_ms=self.epoch * 1000,
                seq=self.epoch * 10,
            )
            for part in parts
        ]
        on = self.lake.load()
        self.snapshot = self.lake.bootstrap(written, self.schema, Layout(), applied(self.epoch), on, Counts())
        self.expected = dict(values)

    def folded(self, upserts: Values, deletes: Collection[int] = (), truncated: str | None = None) -> Folded:
        """Changes as a fold gives them."""
        epoch = self.epoch
        stamp = (epoch * 1000, epoch * 10)
        counts = FoldCounts(Counts(len(upserts), 0, len(deletes)), effective=len(upserts) + len(deletes))
        return Folded(
            table_of(
                [(*self.kind.row(*item), *stamp) for item in upserts.items()], lake_columns(self.schema, Layout())
            ),
            table_of([self.kind.key(number) for number in deletes], key_columns(self.schema)),
            counts,
            pa.array([truncated]) if truncated is not None else None,
        )

    def after(self, upserts: Values, deletes: Collection[int] = (), truncated: str | None = None) -> dict[int, int]:
        """What must be in the table after these changes."""
        stays = {n: v for n, v in self.expected.items() if truncated is None or self.kind.shard(n) != truncated}
        return {n: v for n, v in (stays | dict(upserts)).items() if n not in deletes}

    def merge(self, upserts: Values, deletes: Collection[int] = (), truncated: str | None = None) -> None:
        """One epoch's changes. Raises as `LakeTable.upsert`."""
        self.epoch += 1
        change = self.folded(upserts, deletes, truncated)
        before = self.snapshot
        self.snapshot = self.lake.upsert(before, change, applied(self.epoch), MergeCounts(change.counts, self.epoch))
        wanted = self.after(upserts, deletes, truncated)
        self.expected = wanted
        assert self.snapshot.counts["live_after"] == len(wanted)

    def maintain(self) -> None:
        """What the merger does between commits."""

    def clean(self) -> None:
        """Checkpoint, and collect what nothing needs, however young."""
        self.snapshot = self.lake.checkpoint(self.snapshot)
        self.lake.vacuum(self.snapshot, -1)
        self.snapshot = self.lake.forget(self.snapshot, -1)
        self.lake.remove_orphans([], -1)

    def save_index(self) -> None:
        """What the merger does now and then."""
        self.lake.index.save()

    def check_index(self, why: str = "") -> None:
        """The index says of every key what one that is built anew says."""
        keys = table_of([self.kind.key(number) for number in range(NUMBERS)], key_columns(self.schema))
        fresh = self.opened(indexed=False)
        found = []
        for lake in (self.lake, fresh):
            lake.index.sync(self.snapshot, lake.vectors)
            places = lake.index.locate(keys)
            at = zip(places.file.tolist(), places.row.tolist(), strict=True)
            found.append([(places.paths[file], row) if file >= 0 else None for file, row in at])
        assert found[0] == found[1], why
        assert [place is not None for place in found[0]] == [number in self.expected for number in range(NUMBERS)], why

    # -- what is there -------------------------------------------------------------------------------------------------

    def wanted(self, values: Values | None = None) -> list[str]:
        """The rows that must be there, as `seen` gives them."""
        rows = self.expected if values is None else values
        return sorted(repr(self.kind.row(*item)) for item in rows.items())

    def seen(self, rows: pa.Table) -> list[str]:
        """Rows of any reader, by `repr` of the source's columns."""
        names = self.schema.names
        found = rows.select(names).cast(self.schema.arrow)
        return sorted(repr(tuple(row.values())) for row in found.to_pylist())

    def read(self) -> list[str]:
        """By ourselves, on the snapshot at hand."""
        batches = list(self.lake.scan(self.snapshot, self.schema.names))
        return self.seen(pa.Table.from_batches(batches, self.schema.arrow))

    def check(self, why: str = "") -> None:
        """What we read is what must be there, and so is what a new process reads."""
        wanted = self.wanted()
        assert self.read() == wanted, why
        other = self.opened(indexed=False)
        loaded = other.load()
        assert loaded is not None
        assert loaded.version == self.snapshot.version, why
        batches = list(other.scan(loaded, self.schema.names))
        assert self.seen(pa.Table.from_batches(batches, self.schema.arrow)) == wanted, why
        assert loaded.rows == len(wanted), why

    def check_by(self, reader: Any, version: int | None = None, values: Values | None = None) -> None:
        """The same by a reader of others."""
        assert self.seen(reader(self.folder, version)) == self.wanted(values), reader.__name__
