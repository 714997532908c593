"""The key index of one table: at which row of which data file every key is. It makes an upsert cost what its changes cost.

What the index holds can always be read from the table, and nothing is believed of it that the table does not say: it is made to describe
exactly the version that is written on, by the difference between the files (and their deletion vectors) that it knows and those of that
version. Whoever wrote what lies between (this process, another merger, Spark's OPTIMIZE) makes no difference, nor does a log that
was put back, or a save that is old. An index that is missing, damaged or of another table is built anew from the key columns.

In the folder (`<state>/index/<table>`) are the native index's own files, with the stamp that says what they describe, and a lock: who does
not get it keeps an index in memory.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults
from cdc._native import Bitmap, KeyIndex
from cdc.clock import Clock
from cdc.errors import LakeDamagedError, LakeKeysError
from cdc.journal import logger
from cdc.lake import reading
from cdc.lake.columns import key_columns
from cdc.lake.history import IS_CURRENT
from cdc.lake.parquet import ROW_GROUP_ROWS, opened
from cdc.lake.points import Places
from cdc.lake.snapshot import AddFile, Snapshot
from cdc.lake.vectors import Vectors, alive

FORM: Final = 1
"""Of the stamp."""
MEMORY: Final = 192 * 1024 * 1024
SAVE_KEYS: Final = 2_000_000
SAVE_S: Final = 300.0
"""It is saved when so many keys were added since, or so much time has passed: what is lost by a kill is read again from the newest files."""
LOGGER = logger("lake")

_PIECE_GROUPS = 8
"""Row groups of narrow keys that are read at once. Of wide ones it is one."""
_AHEAD = 2
"""Pieces of the key columns that are read before they are asked for, by a thread each."""
_LOCK = "lock"
_MEND = "lakesync never writes that, so look who else writes to it; then `lakesync reconcile TABLE --repair` takes such rows out"


@dataclass(frozen=True)
class _Known:
    """A data file as the index has it."""

    number: int
    file: AddFile
    dead: Bitmap | None


class TableIndex:
    """The index of one table. For one thread. `folder` None: in memory only; `memory`: bytes that may wait to be written."""

    def __init__(self, folder: Path | None, memory: int, clock: Clock) -> None:
        self._lock: int | None = None
        self._folder, self._memory, self._clock = folder, memory, clock
        self._index: KeyIndex | None = None
        self.forget()

    def __del__(self) -> None:
        self._release()

    def forget(self) -> None:
        """Let go of what is in memory; the next `sync` opens or builds it anew."""
        self._index = None
        self._form: dict[str, Any] = {}
        self._known: dict[str, _Known] = {}
        self._paths: dict[int, str] = {}
        self._next = 0
        self._version = -1
        self._synced: Mapping[str, AddFile] | None = None
        self._unsaved = 0
        self._changed = False
        self._saved_s = self._clock.monotonic()

    @property
    def ready(self) -> bool:
        """Whether it was built, or opened."""
        return self._index is not None

    @property
    def cheap(self) -> bool:
        """Whether it is there, or is to be kept: not built for the sake of one question."""
        return self._index is not None or self._folder is not None

    # -- asking --------------------------------------------------------------------------------------------------------

    def locate(self, keys: pa.Table) -> Places:
        """Where these keys (the key's columns, none NULL) are in the version of the last `sync`."""
        assert self._index is not None
        if not keys.num_rows:
            return Places.nowhere()
        made: Any = pa.array
        found: Any = pa.concat_arrays([made(self._index.locate(batch)) for batch in _batches(keys)])
        files: Any = pc.dictionary_encode(found.field("file").filter(found.is_valid()))
        at, row = np.full(len(found), -1, np.int64), np.full(len(found), -1, np.int64)
        valid = found.is_valid().to_numpy(zero_copy_only=False)
        at[valid] = files.indices.to_numpy()
        row[valid] = found.field("row").filter(found.is_valid()).to_numpy()
        return Places([self._paths[number] for number in files.dictionary.to_pylist()], at, row)

    # -- following the table -------------------------------------------------------------------------------------------

    def sync(self, snapshot: Snapshot, vectors: Vectors, written: Mapping[str, pa.Table] | None = None) -> None:
        """Make it describe exactly this version. `written`: of files that it does not know, `columns(snapshot)` of all rows, in their
        order; of others they are read.

        Raises `LakeKeysError` for a key that the table holds twice, `LakeDamagedError` for files that cannot be read; `LakeError`.
        """
        if self._index is not None and snapshot.files is self._synced:
            return
        try:
            self._follow(snapshot, vectors, written or {})
        except OSError as error:
            # The disk of the state folder fails, not the lake's. What it holds can be had without it.
            LOGGER.warning("index-in-memory", folder=str(self._folder), error=str(error))
            self.forget()
            self._release()
            self._folder = None
            self._follow(snapshot, vectors, {})
        except BaseException:
            self.forget()
            raise
        self._synced, self._version = snapshot.files, snapshot.version
        if self._unsaved >= SAVE_KEYS or (self._changed and self._clock.monotonic() - self._saved_s >= SAVE_S):
            self.save()

    def _follow(self, snapshot: Snapshot, vectors: Vectors, written: Mapping[str, pa.Table]) -> None:
        form = _form(snapshot)
        if self._index is None and not self._open(form):
            self._build(snapshot, vectors, form, "there is none")
        elif form != self._form:
            self._build(snapshot, vectors, form, "it was of another table")
        elif self._known and not any(path in snapshot.files for path in self._known):
            self._build(snapshot, vectors, form, "every file was replaced")
        else:
            self._update(snapshot, vectors, written)

    def _update(self, snapshot: Snapshot, vectors: Vectors, written: Mapping[str, pa.Table]) -> None:
        index = self._index
        assert index is not None
        gone = [path for path in self._known if path not in snapshot.files]
        new: list[AddFile] = []
        changed: list[tuple[_Known, AddFile]] = []
        for path, file in snapshot.files.items():
            known = self._known.get(path)
            if known is None:
                new.append(file)
            elif known.file is not file:
                if known.file.size == file.size and known.file.vector == file.vector:
                    self._known[path] = _Known(known.number, file, known.dead)
                else:
                    changed.append((known, file))
        dead = vectors.load([*new, *(file for _, file in changed)])
        for known, file in changed:
            now = dead.get(file.path)
            if file.size == known.file.size and _holds(now, known, vectors):
                index.set_file(known.number, now)
                self._known[file.path] = _Known(known.number, file, now)
                self._changed = True
            else:
                gone.append(file.path)  # rows are back that were deleted: it is read as if it were another file
                new.append(file)
        for path in gone:
            known = self._known.pop(path)
            del self._paths[known.number]
            index.drop_file(known.number)
            self._changed = True
        numbers = {file.path: self._number(file, dead.get(file.path)) for file in new}
        for file in new:
            if (rows := written.get(file.path)) is not None:
                self._add(numbers[file.path], 0, rows, dead.get(file.path), snapshot)
        twice = 0
        for file, first, rows in _pieces(snapshot, [file for file in new if file.path not in written]):
            twice += self._add_strange(numbers[file.path], first, rows, dead.get(file.path), snapshot)
        if twice:
            raise _twice(snapshot, twice)

    def _number(self, file: AddFile, dead: Bitmap | None) -> int:
        """A number for a file that was not known; it is live from now on."""
        assert self._index is not None
        number, self._next = self._next, self._next + 1
        self._known[file.path], self._paths[number] = _Known(number, file, dead), file.path
        self._index.set_file(number, dead)
        self._changed = True
        return number

    def _add(self, number: int, first: int, rows: pa.Table, dead: Bitmap | None, snapshot: Snapshot) -> None:
        assert self._index is not None
        keys, out = _split(rows, first, dead, snapshot)
        for batch in _batches(keys):
            self._index.add(number, first, batch, out)
            first += batch.num_rows
            self._unsaved += batch.num_rows

    def _add_strange(self, number: int, first: int, rows: pa.Table, dead: Bitmap | None, snapshot: Snapshot) -> int:
        """Add keys that the index did not see coming. How many of them the table has more than once."""
        assert self._index is not None
        keys, out = _split(rows, first, dead, snapshot)
        if not keys.num_rows:
            return 0
        kept = alive(out, first, keys.num_rows).to_numpy(zero_copy_only=False) if out else None
        live = keys if kept is None else keys.filter(kept)
        twice = self.locate(live).count()
        self._add(number, first, rows, dead, snapshot)
        rows_now = np.arange(first, first + keys.num_rows)
        return twice + int(np.count_nonzero(self.locate(live).row != (rows_now if kept is None else rows_now[kept])))

    # -- building ------------------------------------------------------------------------------------------------------

    def _build(self, snapshot: Snapshot, vectors: Vectors, form: dict[str, Any], why: str) -> None:
        """Anew, from the key columns of every file."""
        begun_s = self._clock.monotonic()
        self.forget()
        self._form = form
        files = list(snapshot.files.values())
        dead = vectors.load(files)
        self._index = KeyIndex(self._place(), self._memory)
        numbers = {file.path: self._number(file, dead.get(file.path)) for file in files}
        for file, first, rows in _pieces(snapshot, files):
            self._add(numbers[file.path], first, rows, dead.get(file.path), snapshot)
        if twice := self._index.compact():
            raise _twice(snapshot, twice)
        keys = self._unsaved
        self.save(snapshot.version)
        if keys:
            seconds = round(self._clock.monotonic() - begun_s, 3)
            LOGGER.info(
                "index-built", folder=str(snapshot.folder), files=len(files), keys=keys, seconds=seconds, why=why
            )

    # -- on disk -------------------------------------------------------------------------------------------------------

    def _place(self) -> str | None:
        """The folder, if this process has it; None: in memory."""
        if self._folder is None:
            return None
        if self._lock is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                LOGGER.warning("index-in-memory", folder=str(self._folder), error="another process has it")
                self._release()
                self._folder = None
                return None
        return str(self._folder)

    def _release(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def _open(self, form: dict[str, Any]) -> bool:
        """Take what was saved, if it is of this table; False: there is nothing that can be used."""
        place = self._place()
        if place is None:
            return False
        try:
            index = KeyIndex.open(place, self._memory)
        except FileNotFoundError:
            return False
        except ValueError as error:
            LOGGER.warning("index-damaged", folder=place, error=str(error))
            return False
        try:
            stamp = orjson.loads(index.stamp)
            if stamp["form"] != FORM or stamp["table"] != form:
                LOGGER.warning("index-foreign", folder=place)
                return False
            files = {
                path: (number, AddFile(path, size, None, None, deletion_vector=vector))
                for path, number, size, vector in stamp["files"]
            }
            following, version = int(stamp["next"]), int(stamp["version"])
        except (ValueError, TypeError, KeyError):
            LOGGER.warning("index-damaged", folder=place, error="its stamp cannot be read")
            return False
        self.forget()
        self._index, self._form, self._next, self._version = index, form, following, version
        self._known = {path: _Known(number, file, None) for path, (number, file) in files.items()}
        self._paths = {known.number: path for path, known in self._known.items()}
        return True

    def save(self, version: int | None = None) -> None:
        """Make it durable as it is, if it is kept on disk: after a kill it goes on from here. A disk that fails costs only that."""
        if self._index is None or self._lock is None:
            return
        stamp = {
            "form": FORM,
            "table": self._form,
            "version": self._version if version is None else version,
            "next": self._next,
            "files": [
                [path, known.number, known.file.size, known.file.deletion_vector] for path, known in self._known.items()
            ],
        }
        try:
            self._index.write_run()
            faults.point("lake.index-run")
            self._index.save(orjson.dumps(stamp))
            faults.point("lake.index-saved")
        except OSError as error:
            LOGGER.warning("index-not-saved", folder=str(self._folder), error=str(error))
        self._saved_s, self._unsaved, self._changed = self._clock.monotonic(), 0, False

    def close(self) -> None:
        """Save it, and let go of its folder."""
        if self._changed:
            self.save()
        self.forget()
        self._release()


def columns(snapshot: Snapshot) -> pa.Schema:
    """What the index reads of a row: the key's columns and, where a key may have rows that do not count, the one that says which does."""
    keys = key_columns(snapshot.schema)
    return keys.append(pa.field(IS_CURRENT, pa.bool_())) if snapshot.mode == "history" else keys


def _form(snapshot: Snapshot) -> dict[str, Any]:
    """What makes an index one of this table."""
    return {
        "id": snapshot.metadata.get("id"),
        "folder": str(snapshot.folder),
        "columns": [[field.name, str(field.type)] for field in columns(snapshot)],
    }


def _holds(now: Bitmap | None, known: _Known, vectors: Vectors) -> bool:
    """Whether all rows that were dead as the index knows the file are dead still."""
    if not known.file.deletion_vector:
        return True
    try:
        before = known.dead or vectors.of(known.file)
    except LakeDamagedError:
        return False  # it was collected, which is no damage
    return before is None or (now is not None and now.lacks(before) == 0)


def _split(rows: pa.Table, first: int, dead: Bitmap | None, snapshot: Snapshot) -> tuple[pa.Table, Bitmap | None]:
    """The keys, and which of these rows of a file are not to be found."""
    names = list(snapshot.schema.key)
    rows = _without_nulls(rows, names, first, dead, snapshot)
    if snapshot.mode != "history":
        return rows.select(names), dead
    current: Any = rows.column(IS_CURRENT)
    past = np.flatnonzero(pc.invert(current.fill_null(False)).to_numpy()) + first
    if len(past):
        dead = (dead or Bitmap()).add(pa.array(past.astype(np.uint32)))
    return rows.select(names), dead


def _without_nulls(
    rows: pa.Table, names: Sequence[str], first: int, dead: Bitmap | None, snapshot: Snapshot
) -> pa.Table:
    """The same rows; where a key has a NULL in it, which only a row that others deleted may, any value stands in for it."""
    for name in names:
        column: Any = rows.column(name)
        if not column.null_count:
            continue
        live: Any = pc.is_null(column)
        if dead is not None:
            live = pc.and_(live, alive(dead, first, rows.num_rows))
        if pc.any(live).as_py():
            raise LakeKeysError(
                f"holds rows with a NULL in column {name} of the key",
                where=str(snapshot.folder),
                hint=_MEND,
            )
        some = column.drop_null()
        if not len(some):
            return rows.slice(0, 0)
        rows = rows.set_column(rows.column_names.index(name), rows.field(name), column.fill_null(some[0]))
    return rows


def _pieces(snapshot: Snapshot, files: Sequence[AddFile]) -> Iterator[tuple[AddFile, int, pa.Table]]:
    """What the index reads of these files' rows, deleted ones too, with the number of the first in its file. Some are read ahead."""
    wanted = columns(snapshot)

    def read(file: AddFile, only: range | None, first: int) -> list[tuple[AddFile, int, pa.Table]]:
        found = []
        for rows in reading.physical(snapshot, file, wanted, only):
            found.append((file, first, rows))
            first += rows.num_rows
        return found

    waiting: deque[Future[list[tuple[AddFile, int, pa.Table]]]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        try:
            for task in _tasks(snapshot, files, wanted):
                waiting.append(pool.submit(read, *task))
                if len(waiting) > _AHEAD:
                    yield from _joined(waiting.popleft().result())
            while waiting:
                yield from _joined(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()


def _joined(pieces: list[tuple[AddFile, int, pa.Table]]) -> Iterator[tuple[AddFile, int, pa.Table]]:
    if pieces:
        file, first, _ = pieces[0]
        yield file, first, pa.concat_tables([rows for _, _, rows in pieces])


def _tasks(
    snapshot: Snapshot, files: Sequence[AddFile], wanted: pa.Schema
) -> Iterator[tuple[AddFile, range | None, int]]:
    """Files, or so many row groups of one, and the number of their first row."""
    narrow = all(_is_narrow(field.type) for field in wanted)
    step = _PIECE_GROUPS if narrow else 1
    for file in files:
        if (file.num_records or ROW_GROUP_ROWS * step + 1) <= ROW_GROUP_ROWS * step:
            yield file, None, 0
            continue
        with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
            sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        first = 0
        for start in range(0, len(sizes), step):
            only = range(start, min(start + step, len(sizes)))
            yield file, only, first
            first += sum(sizes[start : only.stop])


def _is_narrow(kind: pa.DataType) -> bool:
    return not (pa.types.is_string(kind) or pa.types.is_binary(kind))


def _batches(keys: pa.Table) -> list[pa.RecordBatch]:
    """In as few pieces as can be: of texts none has more than two GiB."""
    return keys.combine_chunks().to_batches()


def _twice(snapshot: Snapshot, keys: int) -> LakeKeysError:
    return LakeKeysError(f"holds {keys} keys more than once", where=str(snapshot.folder), hint=_MEND)
