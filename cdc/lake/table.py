"""A table in the lake: bootstrapped, upserted into, appended to, read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults, unfit
from cdc._native import Bitmap
from cdc.clock import Clock, SystemClock
from cdc.config import Mode
from cdc.epoch import Counts
from cdc.errors import LakeConflictError, LakeError, LakeOccupiedError
from cdc.journal import logger
from cdc.lake import checkpoint, deltalog, features, feed, index, keeping, partition, points, reading, surplus
from cdc.lake.changes import TRUNCATED, Effects, FoldCounts, Folded, MergeCounts
from cdc.lake.checkpoint import Action
from cdc.lake.columns import (
    OP,
    SEQ,
    TS_MS,
    changed,
    configuration,
    conform,
    delta_schema,
    foreign_changes,
    has_unfit,
    key_columns,
    lake_columns,
    protocol,
)
from cdc.lake.compaction import Compacted, Mapped
from cdc.lake.deltalog import LOG, app_id
from cdc.lake.feed import FeedFile
from cdc.lake.index import MEMORY, TableIndex
from cdc.lake.info import FOLLOWING, Change, Kind, commit_info
from cdc.lake.keys import KeyIndex, distinct
from cdc.lake.layout import PLAIN, Layout
from cdc.lake.parquet import NAME, DataFile, FileWriter, bounds, new_name, opened
from cdc.lake.points import Places
from cdc.lake.snapshot import AddFile, Applied, Snapshot, decoded
from cdc.lake.sorting import Sorting
from cdc.lake.steps import Steps
from cdc.lake.store import Folder, failed, open_folder, unknown
from cdc.lake.surplus import Surplus
from cdc.lake.vectors import FOLDER, Vectors, name_of
from cdc.lake.writing import Writing
from cdc.names import TableName
from cdc.roots import Root
from cdc.schema import TableSchema

FILE_SIZE = 128 * 1024 * 1024
RETENTION_S = 7 * 86400.0
"""For how long a file that a commit removed stays, for readers of older versions; Delta's default."""
STALE_S = 12 * 3600.0
"""A commit is not made on files that were written so long ago: what no commit names is collected after a day."""
LOGGER = logger("lake")

_OCCUPIED = "give this pipeline another lake, or move the folder away"
_RESYNC = "resync the table: it is read anew and replaced in one commit"
_NO_KEY = "give the source's table a primary key, or add it with mode append"


class LakeTable:
    """A table's folder under the lake's root, for one pipeline. Raises `LakeError` if it lies outside the root.

    `index` is the folder of key indexes in the state folder; a writer that has none builds one in memory, of at most `index_memory` bytes
    beside its files."""

    def __init__(
        self,
        root: Root,
        table: TableName,
        pipeline: str,
        *,
        file_size: int = FILE_SIZE,
        clock: Clock | None = None,
        index: Path | None = None,
        index_memory: int = MEMORY,
    ) -> None:
        self.table, self.pipeline, self.file_size = table, pipeline, file_size
        self._clock = clock or SystemClock()
        self.folder = open_folder(root).folder(table.folder)
        self.vectors = Vectors(self.folder)
        index_folder = index / table.folder if index else None
        self.index = TableIndex(index_folder, index_memory, self._clock)

    def close(self) -> None:
        """Save the key index and let go of it. The table can be used again: then it is opened anew."""
        self.index.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def load(self) -> Snapshot | None:
        """The newest version; None where nothing is. Raises `LakeOccupiedError`, `LakeDamagedError`, `LakeError`."""
        snapshot = deltalog.load(self.folder)
        if snapshot is None:
            self._check_empty()
            return None
        return self._ours(snapshot)

    def refresh(self, snapshot: Snapshot) -> Snapshot:
        """The newest version, reading only what came after `snapshot`. Raises as `load`."""
        found = deltalog.refresh(snapshot)
        return snapshot if found is snapshot else self._ours(found)

    def _ours(self, snapshot: Snapshot) -> Snapshot:
        info = snapshot.info or {}
        if (info.get("pipeline"), info.get("table")) != (self.pipeline, self.table.id):
            owner = f"pipeline {info['pipeline']}" if info.get("pipeline") else "someone else"
            raise LakeOccupiedError(f"holds a table of {owner}", where=str(self.folder), hint=_OCCUPIED)
        # A writer that was killed may have left a commit visible and not yet durable: nothing follows from it before it is.
        self.folder.folder(LOG).settle()
        return snapshot

    def _check_empty(self) -> None:
        """An unfinished bootstrap of ours leaves data files that no commit names: that is no one else's table."""
        tops = {name for name in self.folder.names() if name not in (LOG, FOLDER)}
        if not any("=" in name for name in tops):
            strange = any(not NAME.fullmatch(name) for name in tops)
        else:  # folders of partitions
            files = [e.name for e in self.folder.walk() if e.name.partition("/")[0] not in (LOG, FOLDER)]
            strange = any(not NAME.fullmatch(name.rpartition("/")[2]) for name in files)
        if strange:
            raise LakeOccupiedError("holds files that are no Delta table", where=str(self.folder), hint=_OCCUPIED)

    def scan(
        self,
        snapshot: Snapshot,
        columns: Sequence[str] | None = None,
        key_range: tuple[Any | None, Any | None] | None = None,
        *,
        live: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """The rows, in no order, in batches of bounded size. `key_range`: `low <= first key column < high`, None: no bound. `live`: only
        rows that the source has, and not those that a table keeps besides.

        Raises `LakeError`, `LakeDamagedError`.
        """
        have = self._readable(snapshot)
        wanted = have.names if columns is None else list(columns)
        more = [name for name in keeping.told_by(snapshot.mode) if live and name not in wanted]
        for _, rows in self._numbered(snapshot, [*wanted, *more], key_range):
            found = keeping.live(rows, snapshot.mode) if live else rows
            yield from found.select(wanted).to_batches()

    def _numbered(
        self, snapshot: Snapshot, wanted: Sequence[str], key_range: tuple[Any | None, Any | None] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Live rows by the path of their file: these columns and others, and `row`, their number in it."""
        have = self._readable(snapshot)
        first = have.field(snapshot.schema.key[0]) if key_range and snapshot.schema.key else None
        low, high = (pa.scalar(v, first.type) if first and v is not None else None for v in key_range or (None, None))
        read = pa.schema([have.field(name) for name in wanted])
        read = read if first is None or first.name in read.names else read.append(first)
        for file in snapshot.files.values():
            if first is not None and _outside(bounds(file.statistics, pa.schema([first])).get(first.name), low, high):
                continue
            for group in reading.groups(snapshot, file, read, self.vectors, numbered=True):
                rows = group if first is None else _between(group, first.name, low, high)
                if rows.num_rows:
                    yield file.path, rows

    def keys(self, snapshot: Snapshot) -> Iterator[pa.RecordBatch]:
        """The key columns of every row, in the key's order of columns."""
        return self.scan(snapshot, snapshot.schema.key)

    def rows(self, snapshot: Snapshot, keys: pa.Table) -> pa.Table:
        """The rows with these keys (the key columns, each key once) that the source has, all lake columns, in no order."""
        columns = self._readable(snapshot)
        wanted = conform(keys, key_columns(snapshot.schema), str(self.table))
        if self.index.cheap and snapshot.mode != "append":
            distinct(wanted, str(self.table))
            self.index.sync(snapshot, self.vectors)
            found = points.read(snapshot, self.index.locate(wanted), columns, self.vectors)
        else:
            found = pa.concat_tables([columns.empty_table(), *self._searched(snapshot, wanted, columns)])
        return keeping.live(found, snapshot.mode)

    def _searched(self, snapshot: Snapshot, keys: pa.Table, columns: pa.Schema) -> Iterator[pa.Table]:
        """The rows with these keys, of the files that can hold any. For who has no index and reads but once."""
        asked = KeyIndex(keys, str(self.table))
        for file in snapshot.files.values():
            if asked.overlaps(bounds(file.statistics, keys.schema)):
                for rows in reading.groups(snapshot, file, columns, self.vectors):
                    found = rows.filter(pc.is_valid(asked.locate(rows.select(keys.column_names))))
                    if found.num_rows:
                        yield found

    def surplus(self, snapshot: Snapshot) -> Surplus:
        """Rows that no source can have, and that stop a merger: of keys that are there more than once, or have a NULL in them. Reads the keys
        of all rows. Raises `LakeError`."""
        told = [] if snapshot.mode != "history" else list(keeping.told_by(snapshot.mode))

        def rows() -> Iterator[tuple[str, pa.Table]]:
            for path, found in self._numbered(snapshot, [*snapshot.schema.key, SEQ, *told]):
                yield path, keeping.live(found, snapshot.mode) if told else found

        return surplus.find(snapshot, snapshot.schema.key, rows, reading.live(snapshot))

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_file(
        self,
        batches: Iterable[pa.RecordBatch],
        schema: TableSchema,
        *,
        ts_ms: int | None = None,
        seq: int | None = None,
        name: str = "",
        layout: Layout = PLAIN,
    ) -> DataFile:
        """A durable Parquet file of a table, not yet visible. `batches` have the lake's columns, or only the source's: then
        `ts_ms` and `seq` are every row's. `_cdc_unfit` may be the last column; if so, already of the first batch. `name` is one of
        `parquet.new_name()`; what a killed process left under it is replaced.

        Raises `LakeError`.
        """
        batches = iter(batches)
        first = next(batches, None)
        columns = lake_columns(schema, layout, first is not None and unfit.is_last(first.schema))
        if name and not NAME.fullmatch(name):
            raise LakeError("not a name of a data file", where=name)
        if name and self.folder.holds(name) and not self.discard([name]):
            raise LakeError("is named by a commit", where=f"{self.folder}/{name}", hint="report this")
        writer = FileWriter(self.folder, columns, schema.key, name)
        try:
            for batch in chain((first,) if first is not None else (), batches):
                rows = pa.table(batch)
                if ts_ms is not None and seq is not None:
                    rows = _stamped(rows, ts_ms, seq)
                writer.write(conform(rows, columns, str(self.table)))
            file = writer.close()
            self._data_written(self.folder)
        except BaseException:
            writer.abandon()
            raise
        return file

    def write_files(
        self,
        batches: Iterable[pa.RecordBatch],
        schema: TableSchema,
        layout: Layout,
        announce: Callable[[str], None],
        *,
        ts_ms: int,
        seq: int,
        scratch: Path | None = None,
    ) -> list[DataFile]:
        """Durable Parquet files of an upsert table with these rows, all of one time, one file for each partition; not yet visible. `batches`
        have the source's columns, and `_cdc_unfit` as the last or not: all of them, where there are no partitions. `announce` is told each
        file's name before it is written; `scratch` is a local folder for what does not fit into memory meanwhile.

        Raises `TableStoppedError` for a key that can be in no partition; `LakeError`.
        """
        names = partition.names(layout.partition_by)
        if not names:
            name = new_name()
            announce(name)
            return [self.write_file(batches, schema, ts_ms=ts_ms, seq=seq, name=name, layout=layout)]
        sorting = Sorting(self.folder, names, schema.key, announce, scratch)
        try:
            for batch in batches:
                rows = partition.prepared(_stamped(pa.table(batch), ts_ms, seq), layout.partition_by, schema.key)
                columns = lake_columns(schema, layout, unfit.is_last(rows.schema))
                sorting.write(conform(rows, columns, str(self.table)))
            files = sorting.close()
            for name in sorted({file.name.rpartition("/")[0] for file in files}):
                self.folder.folder(name).settle()
            self._data_written(self.folder)
        except BaseException:
            sorting.abandon()
            raise
        return files

    def _data_written(self, files: Folder | Writing) -> None:
        """The files are durable, now their names."""
        try:
            faults.point("lake.after-data-files")
        except OSError as error:
            raise failed(error, "data files cannot be made durable", self.folder) from error
        files.settle()

    def bootstrap(
        self,
        files: Sequence[DataFile],
        schema: TableSchema,
        layout: Layout,
        applied: Applied,
        on: Snapshot | None,
        logged: Counts,
    ) -> Snapshot:
        """One commit that makes `files` the table; `on`: the version whose files it replaces, all of them. `logged` are the changes
        that the log counts up to `applied`: totals go on from them.

        Raises `LakeConflictError`, `LakeUnknownError`, `LakeDamagedError` for a file that is not there any more, `LakeError`.
        """
        written = [file for file in files if file.rows]
        for file in written:
            with opened(self.folder, file.name, file.size):
                pass
        return self._found(Change("bootstrap", layout, schema, applied, written, logged=logged), on)

    def create(
        self, schema: TableSchema, layout: Layout, applied: Applied, logged: Counts, on: Snapshot | None = None
    ) -> Snapshot:
        """One commit: the empty table; `on`: instead of this version. Raises as `bootstrap`."""
        return self._found(Change("create", layout, schema, applied, logged=logged), on)

    def upsert(self, on: Snapshot, folded: Folded, applied: Applied, merged: MergeCounts) -> Snapshot:
        """One commit: the upserts replace or become rows, the deletes' rows go, and those of truncated shards. It gives the table the
        column `_cdc_unfit` if they are the first to have it.

        Raises `LakeConflictError`, `LakeUnknownError`, `LakeDamagedError`, `LakeError`.
        """
        images, columns = self._images(on, "upsert", folded.upserts)
        keys = key_columns(on.schema)
        deletes = conform(folded.deletes, keys, str(self.table))
        changed = pa.concat_tables([images.select(keys.names), deletes])
        distinct(changed, str(self.table))
        writing = self._write(on, images)
        try:
            self.index.sync(on, self.vectors)
            places = self.index.locate(changed)
            replaced, removed = places.count(0, images.num_rows), places.count(images.num_rows)
            gone, truncated = places.take(places.found), 0
            if folded.truncated is not None:
                others = self._others(on, folded.truncated, gone)
                gone, truncated = gone.plus(others), len(others)
        except BaseException:
            writing.abandon()
            raise
        inserted, absent = images.num_rows - replaced, deletes.num_rows - removed
        effects = Effects(inserted, replaced, removed, absent, truncated)
        return self._merge(on, columns, writing, gone, effects, applied, merged)

    def _others(self, on: Snapshot, values: pa.Array[Any], gone: Places) -> Places:
        """The rows whose keys begin with one of these values, less those that are gone already. Only that column is read."""
        name = on.schema.key[0]
        taken = dict(gone.by_path())
        found = Places.nowhere()
        for value in values.to_pylist():
            for path, rows in self._numbered(on, [name], _of_shard(value, str(self.table))):
                numbers = np.asarray(rows.column(reading.ROW.name).to_numpy(), np.int64)
                if path in taken:
                    numbers = np.setdiff1d(numbers, taken[path])
                found = found.plus(Places.in_file(path, numbers))
        return found

    def keep(self, on: Snapshot, steps: Steps, applied: Applied, merged: MergeCounts) -> Snapshot:
        """One commit to a table that keeps what was there: what its mode (`softdelete`, `history`) makes of these steps. Raises as
        `upsert`."""
        mode, key = keeping.MODES[on.mode], key_columns(on.schema)
        if by := partition.names(on.layout.partition_by):
            # As the table has them, so that what is read again is found to be equal.
            steps = replace(steps, rows=partition.fitted(steps.rows, set(by) & set(on.schema.names), on.schema.key))
        keys = conform(steps.keys, key, str(self.table))
        self.index.sync(on, self.vectors)
        places, others = self.index.locate(keys), None
        if steps.truncated is not None:
            others = self._other_keys(on, steps.truncated, keys)
            places = places.plus(self.index.locate(others))
        found = places.found
        needed = found & mode.needs(steps, len(places) - keys.num_rows)
        base = points.read(on, places.take(needed), self._readable(on), self.vectors)
        plan = mode.plan(steps, found, base, others)
        images, columns = self._images(on, on.mode, plan.images)
        return self._merge(on, columns, images, places.take(plan.gone), plan.effects, applied, merged)

    def _other_keys(self, on: Snapshot, values: pa.Array[Any], keys: pa.Table) -> pa.Table:
        """Keys that begin with one of these values, of rows that the source has, less these."""
        known, found = KeyIndex(keys, str(self.table)), [keys.slice(0, 0)]
        for value in values.to_pylist():
            for batch in self.scan(on, keys.column_names, _of_shard(value, str(self.table)), live=True):
                there = pa.Table.from_batches([batch])
                found.append(there.filter(pc.is_null(known.locate(there))))
        return pa.concat_tables(found)

    def append(self, on: Snapshot, rows: pa.Table, applied: Applied, merged: MergeCounts) -> Snapshot:
        """One commit: `rows` (the source's columns, `_cdc_ts_ms`, `_cdc_seq`, `_cdc_op`, `_cdc_gid`, `_cdc_unfit` or not) are added.
        Raises as `upsert`."""
        images, columns = self._images(on, "append", rows)
        says = rows.filter(pc.equal(rows.column(OP), pa.scalar(TRUNCATED))).num_rows
        effects = Effects(inserted=rows.num_rows - says, truncated=-says)
        return self._merge(on, columns, images, Places.nowhere(), effects, applied, merged)

    def mend(self, on: Snapshot, found: Surplus, applied: Applied) -> Snapshot:
        """One commit of kind `mend`: these rows, `surplus` of this very version, go. Raises as `upsert`."""
        images, columns = self._images(on, on.mode, self._readable(on).empty_table())
        none = MergeCounts(FoldCounts(Counts()), applied.epoch.number, 0)
        effects = Effects(truncated=len(found.places))
        return self._merge(on, columns, images, found.places, effects, applied, none, kind="mend")

    def _images(self, on: Snapshot, mode: Mode, rows: pa.Table) -> tuple[pa.Table, pa.Schema]:
        """Rows to be written, and the table's columns from then on: exactly these, those of partitions made from the others."""
        if on.mode != mode:
            raise LakeError(f"is a table of mode {on.mode}, not {mode}", where=str(self.folder), hint=_RESYNC)
        columns = self._readable(on)
        if by := on.layout.partition_by:
            rows = partition.prepared(rows, by, on.schema.key)
        if unfit.is_last(rows.schema) and not unfit.is_last(columns):
            columns = columns.append(unfit.FIELD)
        return conform(rows, columns, str(self.table)), columns

    def _write(self, on: Snapshot, images: pa.Table) -> Writing:
        """Begin to write these rows: all columns of the table."""
        wanted = index.columns(on).names if on.schema.key else []
        names = partition.names(on.layout.partition_by)
        return Writing(self.folder, images, wanted, names, on.schema.key, self.file_size)

    def _merge(
        self,
        on: Snapshot,
        columns: pa.Schema,
        images: pa.Table | Writing,
        gone: Places,
        effects: Effects,
        applied: Applied,
        merged: MergeCounts,
        kind: Kind = "merge",
    ) -> Snapshot:
        """One commit: these rows are added, and the rows at these places (none of them nowhere) deleted by vector. `columns` are the
        table's from then on.

        Nothing is committed unless the keys' effects balance with what the files and vectors do: rows counted in the footers and bits.
        """
        writing = images if isinstance(images, Writing) else self._write(on, images)
        began_s = self._clock.monotonic()
        vectors: str | None = None
        feeds: list[FeedFile] = []

        def undo() -> None:
            writing.abandon()
            feed.discard(self.folder, feeds)
            self.folder.delete([vectors] if vectors else ())

        try:
            removed, updated, rows_deleted = self._without(on, columns, gone, writing)
            if updated:
                vectors = name_of(updated[0][1].deletion_vector or {})
            written = writing.result()
            rows_added = sum(file.rows for file, _ in written)
            if effects.growth != rows_added - rows_deleted:
                raise LakeError(
                    f"the files do not balance: by keys {effects.inserted} rows are inserted, {effects.removed} removed and"
                    f" {effects.truncated} truncated, by files {rows_added} added and {rows_deleted} deleted",
                    where=str(self.folder),
                    hint="nothing was committed; report this",
                )
            if feed.is_needed(on, gone, [file for file, _ in written]):
                feeds += feed.write(on, columns, writing.rows, gone, self.vectors, self.file_size)
            self._data_written(writing)
        except BaseException:
            undo()
            raise
        change = Change(
            kind,
            on.layout,
            on.schema,
            applied,
            [file for file, _ in written],
            removed,
            updated,
            rows_deleted=rows_deleted,
            live_before=reading.live(on),
            effects=effects,
            merged=merged,
        )
        try:
            if self._clock.monotonic() - began_s > STALE_S:
                raise LakeConflictError(
                    "the files were written too long ago: they may be taken for those of a writer that was killed",
                    where=str(self.folder),
                    hint="the table is read again, and the merge decided anew",
                )
            after = self._commit(on, change, [*_widening(on, columns), *(file.to_action() for file in feeds)])
        except LakeConflictError:
            undo()
            raise
        self._index_follows(after, {partition.logged(file.name): rows for file, rows in written})
        return after

    def _without(
        self, on: Snapshot, columns: pa.Schema, gone: Places, writing: Writing
    ) -> tuple[list[AddFile], list[tuple[AddFile, AddFile]], int]:
        """The files without these rows: those that go, the others as they were and with their new vectors, which are durable; and how
        many live rows that takes. What is left of a file that cannot have a vector is written anew."""
        files = [(on.files[path], rows) for path, rows in gone.by_path()]
        before = self.vectors.load(file for file, _ in files)
        removed, changed, bitmaps, taken = [], [], [], 0
        for file, rows in files:
            dead = before.get(file.path) or Bitmap()
            now = dead.add(pa.array(rows.astype(np.uint32)))
            physical = reading.count(on, file)
            if partition.is_plain(file.path) and len(now) < physical:
                changed.append((file, physical))
                bitmaps.append(now)
                taken += len(now) - len(dead)
                continue
            removed.append(file)
            taken += physical - len(dead)
            if len(now) < physical:
                writing.copy(on, file, columns, now)
        descriptors = self.vectors.write(bitmaps)
        updated = [(f, f.without(vector, rows)) for (f, rows), vector in zip(changed, descriptors, strict=True)]
        return removed, updated, taken

    def _index_follows(self, after: Snapshot, written: Mapping[str, pa.Table]) -> None:
        """The index as of a commit that was just made. What fails here does not undo the commit: the index is read from the table then."""
        if not self.index.ready:
            return
        try:
            self.index.sync(after, self.vectors, written)
            faults.point("lake.after-index")
        except (LakeError, OSError) as error:
            LOGGER.warning("index-behind", table=self.table.id, version=after.version, error=str(error))
            self.index.forget()

    def _found(self, change: Change, on: Snapshot | None) -> Snapshot:
        """The first commit of a table, or one that begins it anew."""
        columns = lake_columns(change.schema, change.layout, any(file.unfit for file in change.added))
        if change.layout.mode != "append" and not change.schema.key:
            raise LakeError("a table without a key cannot be upserted into", where=str(self.table), hint=_NO_KEY)
        if on is None:
            wanted, identity = protocol(columns, change.layout), str(uuid.uuid4())
            created_ms: Any = self._clock.now_us() // 1000
        else:
            if foreign := list(features.of_protocol(on.protocol)):
                raise changed(foreign, str(self.folder))
            wanted, identity = protocol(columns, change.layout, on.protocol), on.metadata["id"]
            created_ms = on.metadata.get("createdTime")
            rows = reading.live(on)
            change = replace(change, removed=tuple(on.files.values()), rows_deleted=rows, live_before=rows)
        metadata = {
            "id": identity,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": delta_schema(columns),
            "partitionColumns": list(partition.names(change.layout.partition_by)),
            "configuration": configuration(change.layout),
            "createdTime": created_ms,
        }
        actions: list[Action] = []
        if on is None or wanted != on.protocol:
            actions.append({"protocol": wanted})
        if on is None or metadata != {name: on.metadata.get(name) for name in metadata}:
            actions.append({"metaData": metadata})
        return self._commit(on, change, actions)

    def rejoin(self, on: Snapshot, applied: Applied) -> Snapshot:
        """One commit of kind `rejoin`: the table as it is, followed from `applied` on. Its totals begin anew, with the rows that it has.
        Raises as `bootstrap`."""
        self._readable(on)
        return self._commit(on, Change("rejoin", on.layout, on.schema, applied, live_before=reading.live(on)), [])

    def take_over(self, on: Snapshot, change: Change, actions: Sequence[Action], files: Sequence[AddFile]) -> Snapshot:
        """One commit of kind `adopt`: the table that someone else wrote, `on`, is this pipeline's. `files` are its files, all of them, as
        they are from now on said to be; `actions` its protocol and metadata. For `adopt.adopt`; raises as `bootstrap`."""
        if on.folder != self.folder or change.kind != "adopt" or {file.path for file in files} != set(on.files):
            raise LakeError("is no adoption", where=str(self.folder), hint="report this")
        return self._commit(on, change, actions, files)

    def _commit(
        self,
        on: Snapshot | None,
        change: Change,
        actions: Sequence[Action],
        restated: Sequence[AddFile] = (),
        adds: Sequence[AddFile] | None = None,
    ) -> Snapshot:
        """`restated`: files that are live already, as they are from now on said to be. `adds`: the new files, as they are to be said,
        where `change.added` does not say all of them."""
        now_us = self._clock.now_us()
        now_ms = now_us // 1000
        before = on.info if on and change.kind in FOLLOWING else None
        info = commit_info(self.pipeline, self.table, change, before, now_us)
        if foreign := info["lakesync"]["counts"]["foreign"]:
            LOGGER.warning("rows-changed-by-others", table=self.table.id, rows=foreign)
        txn = {
            "appId": app_id(self.pipeline, self.table.id),
            "version": change.applied.epoch.number,
            "lastUpdated": now_ms,
        }
        if adds is None:
            new = () if restated else change.added
            adds = [AddFile(partition.logged(f.name), f.size, f.rows, f.stats, now_ms, f.partition) for f in new]
        adds = [*(after for _, after in change.updated), *adds]
        removes = [*(before for before, _ in change.updated), *change.removed]
        data = {"dataChange": change.data_change}
        return deltalog.commit(
            self.folder,
            on,
            [
                {"commitInfo": info},
                *actions,
                {"txn": txn},
                *({"remove": file.removed(now_ms) | data} for file in removes),
                *({"add": file.to_action() | data} for file in adds),
                *({"add": file.to_action() | {"dataChange": False}} for file in restated),
            ],
        )

    # -- maintenance ---------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """As it was given."""
        return self._clock

    def columns(self, snapshot: Snapshot) -> pa.Schema:
        """The table's columns. Raises `LakeError` for a table that others changed in a way that lakesync does not follow."""
        return self._readable(snapshot)

    def optimized(
        self, on: Snapshot, applied: Applied, made: Compacted, found: Mapped, vector: Mapping[str, Any] | None
    ) -> Snapshot:
        """One commit: a compacted file in place of those that it was made of, as `found` on this version; `vector` is that of its rows
        that died meanwhile. For `cdc.lake.maintain`; raises as `upsert`."""
        file, dead = made.file, len(found.dead) if found.dead is not None else 0
        gone = sum(reading.count(on, old) - old.deleted for old in found.removed)
        if gone != file.rows - dead:
            raise LakeError(
                f"the files do not balance: {gone} rows are live in the old ones, {file.rows - dead} in the new one",
                where=str(self.folder),
                hint="nothing was committed; report this",
            )
        change = Change(
            "optimize",
            on.layout,
            on.schema,
            applied,
            [file] if file.name else [],
            found.removed,
            rows_deleted=gone + dead,
            live_before=reading.live(on),
            data_change=False,
        )
        now_ms = self._clock.now_us() // 1000
        add = AddFile(partition.logged(file.name), file.size, file.rows, file.stats, now_ms, file.partition)
        add = add.without(vector, file.rows) if vector else add
        after = self._commit(on, change, (), adds=[add] if file.name else [])
        try:
            faults.point("lake.compact-committed")
        except OSError as error:
            raise unknown("fault", str(self.folder)) from error
        self._index_follows(after, {add.path: made.keys} if made.keys is not None else {})
        return after

    def restate(self, on: Snapshot, applied: Applied) -> Snapshot:
        """One commit that says again what the table contains, and nothing else. Raises as `upsert`."""
        live = reading.live(on)
        return self._commit(
            on, Change("restate", on.layout, on.schema, applied, live_before=live, data_change=False), ()
        )

    def checkpoint(self, snapshot: Snapshot, keep_s: float = RETENTION_S) -> Snapshot:
        """Write a checkpoint of this version; the snapshot that knows of it. Files that were removed within `keep_s` seconds, and within
        `RETENTION_S`, stay known as such: what is not is taken for what a killed writer left. Raises `LakeError`."""
        since_ms = self._clock.now_us() // 1000 - int(max(RETENTION_S, keep_s) * 1000)
        log = self.folder.folder(LOG)
        checkpoint.write(log, snapshot.version, list(snapshot.actions(since_ms)))
        checkpoint.expire(log)
        return replace(snapshot, checkpoint=snapshot.version)

    def discard(self, names: Iterable[str]) -> int:
        """Delete those of these data files that are there and that no commit names. How many. Raises as `load`."""
        there = {name for name in names if NAME.fullmatch(name.rpartition("/")[2]) and self.folder.holds(name)}
        if not there:
            return 0
        snapshot = self.load()
        return self.folder.delete(there - _decoded((*snapshot.files, *snapshot.tombstones) if snapshot else ()))

    # -- what may be read and written ------------------------------------------------------------------------------------

    def _readable(self, snapshot: Snapshot) -> pa.Schema:
        """The columns. Raises `LakeError` for a table that others changed in a way that lakesync does not follow."""
        columns = lake_columns(snapshot.schema, snapshot.layout, has_unfit(snapshot.metadata))
        foreign = foreign_changes(columns, snapshot.layout, snapshot.protocol, snapshot.metadata)
        if foreign:
            raise changed(foreign, str(self.folder))
        return columns


def _widening(on: Snapshot, columns: pa.Schema) -> list[Action]:
    """The action that gives the table the column `_cdc_unfit`, where it is the first to be needed. Older files have no such column, and
    every reader takes that for NULL."""
    if has_unfit(on.metadata) or not unfit.is_last(columns):
        return []
    return [{"metaData": {**on.metadata, "schemaString": delta_schema(columns)}}]


def _of_shard(value: Any, where: str) -> tuple[str, str]:
    """The range of the key's first column that has a shard's rows. In the order of strings by their bytes nothing is between a text and
    the same with a NUL."""
    if not isinstance(value, str):
        raise LakeError("the key of a table of shards begins with the shard's name", where=where)
    return value, value + "\0"


def _stamped(rows: pa.Table, ts_ms: int, seq: int) -> pa.Table:
    """The source's columns, the same `_cdc_ts_ms` and `_cdc_seq` for every row, and `_cdc_unfit` if it was there."""
    source = len(rows.column_names) - unfit.is_last(rows.schema)
    stamps = [pa.repeat(pa.scalar(v, pa.int64()), rows.num_rows) for v in (ts_ms, seq)]
    columns = [*rows.columns[:source], *stamps, *rows.columns[source:]]
    return pa.table(columns, names=[*rows.column_names[:source], TS_MS, SEQ, *rows.column_names[source:]])


def _decoded(paths: Iterable[str]) -> set[str]:
    return {decoded(path) for path in paths}


def _outside(found: tuple[Any, Any] | None, low: Any, high: Any) -> bool:
    if found is None:
        return False
    below = low is not None and pc.less(found[1], low).as_py()
    return below or (high is not None and pc.greater_equal(found[0], high).as_py())


def _between(rows: pa.Table, name: str, low: Any, high: Any) -> pa.Table:
    if low is not None:
        rows = rows.filter(pc.greater_equal(rows.column(name), low))
    if high is not None:
        rows = rows.filter(pc.less(rows.column(name), high))
    return rows
