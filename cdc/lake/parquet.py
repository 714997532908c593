"""Data files: Parquet, written once, measured from what was written."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from cdc import unfit
from cdc.errors import LakeDamagedError
from cdc.lake.store import Folder, Output, failed

ROW_GROUP_ROWS = 128 * 1024
ROW_GROUP_BYTES = 64 * 1024 * 1024
"""In memory: wide rows make shorter row groups, so that one can always be held."""
DICTIONARY_BYTES = 128 * 1024
"""A column with more distinct values is written plain: that is two to three times as fast, and zstd makes it smaller."""
STATS_COLUMNS = 32
"""The key's columns and the first 32 have least and greatest values, as Delta's writers do by default."""
STATS_PREFIX = 32
"""Characters of a string that its bounds keep."""
NAME = re.compile(r"part-[0-9a-f]{32}\.zstd\.parquet")


def new_name() -> str:
    """The name of a data file that is not there yet."""
    return f"part-{uuid.uuid4().hex}.zstd.parquet"


@dataclass(frozen=True)
class DataFile:
    """A durable data file that no commit names yet. `rows` and `stats` (Delta's, JSON) are what its footer says.

    A file without rows is not written: `name` is empty.
    """

    name: str
    size: int
    rows: int
    stats: str
    unfit: bool = False
    """Whether it has a column `_cdc_unfit`; the commit that names it must give the table one."""
    partition: Mapping[str, str | None] | None = None
    """In a partitioned table the values of all its rows, as Delta writes them."""

    def to_dict(self) -> dict[str, Any]:
        """For progress records. `unfit` and `partition` only where they are set."""
        data = {"name": self.name, "size": self.size, "rows": self.rows, "stats": self.stats}
        data |= {"partition": dict(self.partition)} if self.partition else {}
        return data | ({"unfit": True} if self.unfit else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataFile:
        """The file that `to_dict` was asked of."""
        return cls(
            data["name"], data["size"], data["rows"], data["stats"], data.get("unfit", False), data.get("partition")
        )


NO_FILE = DataFile("", 0, 0, "{}")


class FileWriter:
    """One data file being written. Rows are gathered into row groups; nothing is on disk before the first one is full.

    `close` fsyncs the file, not its folder. Raises `LakeError`.
    """

    def __init__(self, folder: Folder, columns: pa.Schema, key: Collection[str], name: str = "") -> None:
        self._folder, self._columns, self._key = folder, columns, key
        self._name = name or new_name()
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._file: Output | None = None
        self._writer: pq.ParquetWriter | None = None
        self._footer: list[pq.FileMetaData] = []
        """As it was written, once it was."""

    @property
    def _where(self) -> str:
        return f"{self._folder}/{self._name}"

    @property
    def size(self) -> int:
        """Bytes written so far; what waits for its row group is not in it."""
        return self._file.tell() if self._file else 0

    def write(self, rows: pa.Table) -> None:
        """Add rows; they have exactly the file's columns."""
        if not rows.num_rows:
            return
        self._waiting.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._flush(last=False)

    def _flush(self, *, last: bool) -> None:
        rows = pa.concat_tables(self._waiting)
        # What is left over waits for more, unless it is wide rows that fill the memory.
        whole = rows.num_rows - rows.num_rows % ROW_GROUP_ROWS
        if last or self._bytes >= ROW_GROUP_BYTES:
            whole = rows.num_rows
        size = max(1, min(ROW_GROUP_ROWS, rows.num_rows * ROW_GROUP_BYTES // max(1, self._bytes)))
        try:
            self._open().write_table(rows.slice(0, whole), row_group_size=size)
        except OSError as error:
            raise failed(error, "the data file cannot be written", self._where) from error
        rest = rows.slice(whole)
        self._waiting = [rest] if rest.num_rows else []
        self._rows, self._bytes = rest.num_rows, rest.nbytes

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            self._file = self._folder.create(self._name)
            sink: Any = self._file
            self._writer = pq.ParquetWriter(
                sink,
                self._columns,
                compression="zstd",
                compression_level=1,
                dictionary_pagesize_limit=DICTIONARY_BYTES,
                store_schema=False,
                metadata_collector=self._footer,
            )
        return self._writer

    def close(self) -> DataFile:
        """The file, durable and measured; `NO_FILE` if there was no row."""
        if self._waiting:
            self._flush(last=True)
        if self._writer is None or self._file is None:
            return NO_FILE
        try:
            self._writer.close()
            size, (footer,) = self._file.tell(), self._footer
            self._file.finish()
        except OSError as error:
            raise failed(error, "the data file cannot be made durable", self._where) from error
        stats = delta_stats(footer, self._columns, self._key)
        return DataFile(self._name, size, footer.num_rows, stats, unfit.is_last(self._columns))

    def abandon(self) -> None:
        """Close and remove what was written, as far as that is possible."""
        if self._file is not None:
            self._file.abandon()


def delta_stats(footer: pq.FileMetaData, columns: pa.Schema, key: Collection[str]) -> str:
    """Delta's statistics of a file, from the footer's: rows, nulls, and bounds of integers, dates and strings.

    Other types have no bounds: JSON has no exact form of them that all readers agree on. Arrays and maps are not counted at all: a
    footer counts what is in them.
    """
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    # A footer numbers the leaves; every column is one, arrays too, but for the map, which is the last.
    for i, field in enumerate(columns):
        if pa.types.is_nested(field.type) or (i >= STATS_COLUMNS and field.name not in key):
            continue
        found: list[Any] = [footer.row_group(g).column(i).statistics for g in range(footer.num_row_groups)]
        if any(s is None or not s.has_null_count for s in found):
            continue
        nulls[field.name] = sum(s.null_count for s in found)
        filled = [s for s in found if s.num_values]
        if not filled or any(not s.has_min_max for s in filled) or not _bounded(field.type):
            continue
        low, high = _bounds(min(s.min for s in filled), max(s.max for s in filled))
        if low is not None and high is not None:
            least[field.name], greatest[field.name] = low, high
    stats = {
        "numRecords": footer.num_rows,
        "minValues": least,
        "maxValues": greatest,
        "nullCount": nulls,
        "tightBounds": True,
    }
    return orjson.dumps(stats).decode()


def _bounded(arrow: pa.DataType) -> bool:
    return bool(pa.types.is_signed_integer(arrow) or pa.types.is_date32(arrow) or pa.types.is_string(arrow))


def _bounds(low: Any, high: Any) -> tuple[Any, Any]:
    if isinstance(low, datetime.date):
        return low.isoformat(), high.isoformat()
    if not isinstance(low, str):
        return low, high
    if len(high) > STATS_PREFIX:
        # The greatest character behind the prefix is above every string that begins with it, unless one goes on with it.
        high = None if high[STATS_PREFIX] == "\U0010ffff" else high[:STATS_PREFIX] + "\U0010ffff"
    return low[:STATS_PREFIX], high


def measured(stats: Mapping[str, Any], rows: int, found: Mapping[str, tuple[Any, Any]], columns: pa.Schema) -> str:
    """Statistics of a file that someone else wrote, with its number of rows, and of these columns the bounds that were found (Arrow
    scalars), in place of what its writer said of them; none for a column whose type has none here."""
    least, greatest = dict(stats.get("minValues") or {}), dict(stats.get("maxValues") or {})
    for field in columns:
        least.pop(field.name, None)
        greatest.pop(field.name, None)
        if field.name not in found or not _bounded(field.type):
            continue
        low, high = _bounds(*(value.as_py() for value in found[field.name]))
        if low is not None and high is not None:
            least[field.name], greatest[field.name] = low, high
    return orjson.dumps({**stats, "numRecords": rows, "minValues": least, "maxValues": greatest}).decode()


def bounds(stats: Mapping[str, Any], columns: pa.Schema) -> dict[str, tuple[Any, Any]]:
    """The bounds of these columns by Delta's statistics, as Arrow scalars; columns without known bounds are left out."""
    found = {}
    least, greatest = stats.get("minValues") or {}, stats.get("maxValues") or {}
    for field in columns:
        low, high = least.get(field.name), greatest.get(field.name)
        if low is None or high is None or not _bounded(field.type):
            continue
        try:
            if pa.types.is_date32(field.type):
                low, high = datetime.date.fromisoformat(low), datetime.date.fromisoformat(high)
            found[field.name] = (pa.scalar(low, field.type), pa.scalar(high, field.type))
        except (ValueError, TypeError, pa.ArrowException):
            continue  # a foreign writer's form: then the file is read
    return found


@contextmanager
def opened(folder: Folder, name: str, size: int | None = None) -> Iterator[pq.ParquetFile]:
    """A data file, open for reading. Raises `LakeDamagedError` if it is missing, torn, or not of this size, also while it is read."""
    try:
        with folder.open(name) as source:
            found = source.size()
            if size is not None and found != size:
                raise _damaged(folder, name, f"has {found} bytes, its commit says {size}")
            # Spark's old timestamps (INT96) reach further than nanoseconds in 64 bits do.
            with pq.ParquetFile(source, coerce_int96_timestamp_unit="us") as file:
                yield file
    except FileNotFoundError as error:
        raise _damaged(folder, name, "is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(folder, name, f"cannot be read ({type(error).__name__})") from error


def row_groups(file: pq.ParquetFile, columns: pa.Schema, only: range | None = None) -> Iterator[pa.Table]:
    """The rows of all row groups, or of these, with these columns, in these types; a column that the file lacks is null. Those of others
    may be large: they come in pieces."""
    have = file.schema_arrow
    present = [name for name in columns.names if name in have.names]
    for group in range(file.num_row_groups) if only is None else only:
        found = file.metadata.row_group(group)
        if found.num_rows <= ROW_GROUP_ROWS and found.total_byte_size <= 2 * ROW_GROUP_BYTES:
            yield _as(file.read_row_group(group, columns=present), columns)
            continue
        rows = max(1, min(ROW_GROUP_ROWS, found.num_rows * ROW_GROUP_BYTES // max(1, found.total_byte_size)))
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=present):
            yield _as(pa.Table.from_batches([batch]), columns)


def _as(rows: pa.Table, columns: pa.Schema) -> pa.Table:
    arrays = [
        rows.column(f.name).cast(f.type) if f.name in rows.column_names else pa.nulls(rows.num_rows, f.type)
        for f in columns
    ]
    return pa.table(arrays, schema=columns)


def _damaged(folder: Folder, name: str, what: str) -> LakeDamagedError:
    return LakeDamagedError(
        f"data file {PurePosixPath(name).name} {what}",
        where=str(folder),
        hint="restore the file, or `lakesync resync` it",
    )
