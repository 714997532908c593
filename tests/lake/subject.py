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
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cdc import faults
from cdc.clock import SystemClock
from cdc.config import Mode
from cdc.epoch import Counts
from cdc.lake import (
    FoldCounts,
    Folded,
    LakeTable,
    MergeCounts,
    Snapshot,
    cleaning,
    compaction,
    history,
    maintain,
    softdelete,
)
from cdc.lake.columns import key_columns, lake_columns
from cdc.lake.layout import Layout
from cdc.lake.maintain import Keep, Maintenance
from cdc.lake.steps import END, PUT, TRUNCATION, Steps
from cdc.lake.vectors import name_of
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


class Version(NamedTuple):
    """A value that a key had, from the change of one epoch to that of another; None: it has it still."""

    value: int
    since: int
    until: int | None = None


Step = tuple[int, int | None]
"""A change: a key's number, and its value from then on; None: it is deleted."""


@dataclass(frozen=True)
class Held:
    """What must be in a table, by its mode: of each key the values that it keeps, the oldest first."""

    mode: Mode
    versions: Mapping[int, tuple[Version, ...]]

    @classmethod
    def of(cls, mode: Mode, values: Values, epoch: int = 1) -> Held:
        """A table that holds these values and was never changed."""
        return cls(mode, {number: (Version(value, epoch),) for number, value in values.items()})

    @property
    def live(self) -> dict[int, int]:
        """What the source has."""
        return {n: versions[-1].value for n, versions in self.versions.items() if versions[-1].until is None}

    def after(self, steps: Sequence[Step], epoch: int) -> Held:
        """What must be there after these changes, one after the other."""
        found = dict(self.versions)
        for number, value in steps:
            versions = found.pop(number, ())
            if versions and versions[-1].until is None and (value is None or self.mode == "history"):
                versions = (*versions[:-1], versions[-1]._replace(until=epoch))
            if value is not None:
                versions = (*versions, Version(value, epoch))
            if self.mode != "history":
                versions = versions[-1:]
            if self.mode == "upsert" and versions and versions[-1].until is not None:
                versions = ()
            if versions:
                found[number] = versions
        return Held(self.mode, found)

    def without(self, gone: Callable[[Version], bool]) -> Held:
        """What is left when someone deletes rows."""
        left = {n: tuple(v for v in versions if not gone(v)) for n, versions in self.versions.items()}
        return Held(self.mode, {n: versions for n, versions in left.items() if versions})

    def rows(self) -> Iterator[tuple[int, Version]]:
        """Every row that the table has."""
        return ((number, version) for number, versions in self.versions.items() for version in versions)


@contextmanager
def busy_upkeep(checkpoint_every: int = 5) -> Iterator[None]:
    """Maintenance that has something to do on tables of some rows: in this block."""
    with ExitStack() as stack:
        for module, name, value in (
            (compaction, "TIER", 3),
            (compaction, "MOST_SMALL", 6),
            (maintain, "CHECKPOINT_EVERY", checkpoint_every),
            (maintain, "CLEAN_LOG_S", 0.0),
            (maintain, "LOOK_S", 0.0),
            (maintain, "PAUSE_S", 0.0),
            (cleaning, "DELETED_AT_ONCE", 2),
            (cleaning, "FEED_S", 0.0),
        ):
            assert hasattr(module, name)
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


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
        clock: Clock | SystemClock | None = None,
        worker: Executor | None = None,
    ) -> None:
        self.root, self.kind, self.layout = root, kind, layout or Layout("upsert")
        self.schema = kind.schema
        self._clock, self._worker = clock or Clock(), worker
        self.file_size, self.indexed, self.index_memory = file_size, indexed, index_memory
        self.held = Held(self.layout.mode, {})
        self.epoch = 0
        self.lake = self.opened()
        self.upkeep = Maintenance(self.lake, self._worker)
        self._snapshot: Snapshot | None = None

    @property
    def clock(self) -> Clock:
        """The test's, if it has one."""
        assert isinstance(self._clock, Clock)
        return self._clock

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
            clock=self._clock,
            index=self.index if kept else None,
            index_memory=self.index_memory,
        )

    def reopen(self, *, close: bool = True) -> None:
        """A process ends, well or not, and the next one begins."""
        self.close(save=close)
        self.lake = self.opened()
        self.upkeep = Maintenance(self.lake, self._worker)
        self.snapshot = self.lake.load()

    def close(self, *, save: bool = True) -> None:
        """Let go of the table, as a process does that ends, or, without `save`, is killed."""
        if save:
            self.upkeep.close()
            self.lake.close()
        else:
            self.lake.index.forget()
            self.lake.index._release()

    # -- changes -------------------------------------------------------------------------------------------------------

    @property
    def expected(self) -> dict[int, int]:
        """What the source has."""
        return self.held.live

    @expected.setter
    def expected(self, values: Values) -> None:
        self.held = Held.of(self.layout.mode, values)

    def bootstrap(self, values: Values, files: int = 3) -> None:
        """The table anew, with these rows."""
        self.epoch += 1
        on = self.lake.load()
        if self.layout.mode != "upsert" or self.layout.partition_by:
            self.snapshot = self.lake.create(self.schema, self.layout, applied(self.epoch), Counts(), on)
            self.held = Held(self.layout.mode, {})
            self.merge(values)
            return
        rows = [self.kind.row(*item) for item in values.items()]
        size = max(1, -(-len(rows) // files))
        written = [
            self.lake.write_file(
                table_of(rows[i : i + size], self.schema.arrow).to_batches(),
                self.schema,
                ts_ms=self.epoch * 1000,
                seq=self.epoch * 10,
                layout=self.layout,
            )
            for i in range(0, len(rows), size)
        ]
        self.snapshot = self.lake.bootstrap(written, self.schema, self.layout, applied(self.epoch), on, Counts())
        self.held = Held.of("upsert", values, self.epoch)

    def folded(self, upserts: Values, deletes: Collection[int] = (), truncated: str | None = None) -> Folded:
        """Changes as a fold gives them."""
        epoch = self.epoch
        stamp = (epoch * 1000, epoch * 10)
        counts = FoldCounts(Counts(len(upserts), 0, len(deletes)), effective=len(upserts) + len(deletes))
        columns = lake_columns(self.schema, Layout())
        return Folded(
            table_of([(*self.kind.row(*item), *stamp) for item in upserts.items()], columns),
            table_of([self.kind.key(number) for number in deletes], key_columns(self.schema)),
            counts,
            pa.array([truncated]) if truncated is not None else None,
        )

    def steps(self, changes: Sequence[Step], truncated: str | None = None) -> Steps:
        """The same for modes that fold nothing."""
        columns = lake_columns(self.schema, Layout())
        nothing = [None] * len(self.schema.columns)
        rows: list[Row] = []
        kinds: list[int] = []
        if truncated is not None:
            row = [*nothing]
            row[self.schema.names.index(self.schema.key[0])] = truncated  # type: ignore[call-overload]
            rows, kinds = [tuple(row)], [TRUNCATION]
        for number, value in changes:
            known = dict(zip(self.schema.key, self.kind.key(number), strict=True))
            ended = tuple(known.get(name) for name in self.schema.names)
            rows.append(ended if value is None else self.kind.row(number, value))
            kinds.append(END if value is None else PUT)
        numbers = list(dict.fromkeys(number for number, _ in changes))
        of_key = [-1] * (truncated is not None) + [numbers.index(number) for number, _ in changes]
        stamped = [(*row, self.epoch * 1000, self.epoch * 1000 + i) for i, row in enumerate(rows)]
        keys = table_of([self.kind.key(number) for number in numbers], key_columns(self.schema))
        puts = sum(kind == PUT for kind in kinds)
        effective = len(changes) if self.layout.mode == "history" else len(numbers)
        counts = FoldCounts(
            Counts(puts, 0, len(changes) - puts), superseded=len(changes) - effective, effective=effective
        )
        return Steps(table_of(stamped, columns), np.array(kinds, np.int8), keys, np.array(of_key, np.int64), counts)

    def after(self, changes: Sequence[Step], truncated: str | None = None) -> Held:
        """What must be in the table after the next epoch, if it brings these changes."""
        first = [(n, None) for n in self.expected if truncated is not None and self.kind.shard(n) == truncated]
        return self.held.after([*first, *changes], self.epoch + 1)

    def merge(self, upserts: Values, deletes: Collection[int] = (), truncated: str | None = None) -> None:
        """One epoch's changes, one a key. Raises as `LakeTable.upsert`."""
        self.apply([*((number, None) for number in deletes), *upserts.items()], truncated)

    def apply(self, changes: Sequence[Step], truncated: str | None = None) -> None:
        """One epoch's changes. Raises as `LakeTable.upsert`."""
        wanted = self.after(changes, truncated)
        self.epoch += 1
        self.snapshot = self.commit(self.snapshot, changes, truncated)
        self.held = wanted
        assert self.snapshot.counts["live_after"] == sum(1 for _ in wanted.rows())

    def commit(self, on: Snapshot, changes: Sequence[Step], truncated: str | None = None) -> Snapshot:
        """These changes as the present epoch, on this version."""
        to = applied(self.epoch)
        if self.layout.mode == "upsert":
            last = dict(changes)
            upserts = {n: v for n, v in last.items() if v is not None}
            folded = self.folded(upserts, [n for n, v in last.items() if v is None], truncated)
            return self.lake.upsert(on, folded, to, MergeCounts(folded.counts, self.epoch))
        steps = self.steps(changes, truncated)
        return self.lake.keep(on, steps, to, MergeCounts(steps.counts, self.epoch))

    def maintain(self, keep: Keep, budget_s: float = 60.0) -> None:
        """What the merger does between commits."""
        self.snapshot = self.upkeep.run(self.snapshot, keep, budget_s)

    def optimize(self, keep: Keep) -> None:
        """What `lakesync optimize` does."""
        self.snapshot = self.upkeep.optimize(self.snapshot, keep)

    def named(self) -> set[str]:
        """The files that the newest version needs, by their names in the folder."""
        found = {self.snapshot.path(file) for file in self.snapshot.files.values()}
        vectors = (name_of(file.deletion_vector) for file in self.snapshot.files.values() if file.deletion_vector)
        return found | {name for name in vectors if name}

    def files(self) -> set[str]:
        """The files that are there, but those of the log and of the change feed, which only older versions name."""
        there = (str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return {name for name in there if not name.startswith(("_delta_log/", "_change_data/"))}

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
        there = self.held.versions if self.layout.mode == "soft-delete" else self.expected
        assert [place is not None for place in found[0]] == [number in there for number in range(NUMBERS)], why

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> pa.Schema:
        """What is compared: the source's columns, and those of the mode."""
        own = {"soft-delete": softdelete.FIELDS, "history": history.FIELDS}.get(self.layout.mode, ())
        return pa.schema([*self.schema.arrow, *own])

    def row(self, number: int, version: Version) -> Row:
        """What a reader sees."""
        row = list(self.kind.row(number, version.value))
        at = self.schema.names.index("region")
        if "region" in self.layout.partition_by:
            row[at] = row[at] or None  # Delta has no empty values of partitions
        since, until = _time(version.since), None if version.until is None else _time(version.until)
        match self.layout.mode:
            case "soft-delete":
                row.append(until)
            case "history":
                row += [since, until, until is None]
        return tuple(row)

    def wanted(self, held: Held | None = None) -> list[str]:
        """The rows that must be there, as `seen` gives them."""
        rows = (self.held if held is None else held).rows()
        return self.seen(table_of([self.row(*item) for item in rows], self.columns))

    def seen(self, rows: pa.Table) -> list[str]:
        """Rows of any reader, by `repr`."""
        found = rows.select(self.columns.names).cast(self.columns)
        return sorted(repr(tuple(row.values())) for row in found.to_pylist())

    def read(self) -> list[str]:
        """By ourselves, on the snapshot at hand."""
        batches = list(self.lake.scan(self.snapshot, self.columns.names))
        return self.seen(pa.Table.from_batches(batches, self.columns))

    def check(self, why: str = "") -> None:
        """What we read is what must be there, and so is what a new process reads."""
        wanted = self.wanted()
        self.compare(self.read(), wanted, why)
        other = self.opened(indexed=False)
        loaded = other.load()
        assert loaded is not None
        assert loaded.version == self.snapshot.version, why
        batches = list(other.scan(loaded, self.columns.names))
        self.compare(self.seen(pa.Table.from_batches(batches, self.columns)), wanted, f"a new process, {why}")
        assert loaded.rows == len(wanted), why

    def check_by(self, reader: Any, version: int | None = None, held: Held | None = None) -> None:
        """The same by a reader of others."""
        self.compare(
            self.seen(reader(self.folder, version)), self.wanted(held), f"{reader.__name__}, version {version}"
        )

    @staticmethod
    def compare(found: list[str], wanted: list[str], why: str) -> None:
        """Two lists of rows, and what differs."""
        if found != wanted:
            missing, strange = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
            raise AssertionError(
                f"{why}: missing {list(missing)[:3]} ({missing.total()}); not to be there {list(strange)[:3]} ({strange.total()})"
            )


def _time(epoch: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC)
