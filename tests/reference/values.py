"""Values of the source as Arrow arrays, exact or not at all: what the native readers are compared with.

Between reading a value and building an array stands its *cell*, a Python value that says nothing of how it was read; None is NULL:

| column | cell |
| --- | --- |
| integers | `int` |
| decimal | `decimal.Decimal` |
| double | `float` |
| text, enum | `str` (ENUM's index 0, the error value, is the empty text) |
| binary, varbinary | `bytes` (BINARY may lack its trailing zero bytes, as in the binary log: they are added) |
| date | `datetime.date` |
| datetime | `int`: microseconds since 1970-01-01 00:00:00, as if the value were in UTC |
| timestamp | `int`: microseconds since the epoch |

`from_text` makes cells of a result set's bytes; `decode_text`, `enum_cell`, `date_cell`, `datetime_cell` and `timestamp_cell` help
whoever decodes row images. `build_text` does the work of `from_text` and `build` for whole columns, many times faster, with
the same results and errors. A value that does not fit raises `TableStoppedError`, which names the column and the reason, never the value.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc.errors import TableStoppedError
from cdc.names import quote_identifier
from cdc.schema import UTF8, Column, TableSchema
from tests.reference import texts

_INTEGER = re.compile(rb"-?[0-9]+")
_DECIMAL = re.compile(rb"-?[0-9]+(\.[0-9]+)?")
_DATE = re.compile(rb"(\d{4})-(\d\d)-(\d\d)")
_DATETIME = re.compile(rb"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_EPOCH = datetime.date(1970, 1, 1).toordinal()
_FIRST_US = (datetime.date(1, 1, 1).toordinal() - _EPOCH) * 86_400_000_000
_LAST_US = (datetime.date(9999, 12, 31).toordinal() - _EPOCH + 1) * 86_400_000_000 - 1
_DATES_HINT = "give the rows real dates, then resync the table; or exclude it"


def stopped(column: Column, reason: str, hint: str = "") -> TableStoppedError:
    """The error of a value that does not fit; whoever knows the table adds `where`."""
    return TableStoppedError(
        f"column {column.name}: {reason}", hint=hint or "change the rows or the column's type, then resync the table"
    )


def check(schema: TableSchema) -> None:
    """`TableSchema.check`."""
    schema.check()


_READ = frozenset(
    {"decimal", "double", "text", "binary", "varbinary", "date", "datetime", "timestamp", "enum"} | set(_BITS)
)


def _check_cells(schema: TableSchema) -> None:
    """Raise `TableStoppedError` for what has no cells here: the native decoder reads every type, this module not."""
    schema.check()
    for column in schema.columns:
        if column.type not in _READ:
            raise stopped(column, f"{column.type} is not read here")
        if column.type in ("text", "enum") and column.charset not in UTF8:
            raise stopped(column, f"character set {column.charset} is not read here")


def select_list(schema: TableSchema) -> str:
    """The columns as a snapshot selects them. Every type's text form is exact as it is, also DOUBLE's (checked over random bits)."""
    return ", ".join(quote_identifier(name) for name in schema.names)


# cells


def decode_text(column: Column, value: bytes) -> str:
    """A text of the character sets that are UTF-8 already."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise stopped(column, "a text that is not valid UTF-8") from None


def enum_cell(column: Column, index: int) -> str:
    """An ENUM's member by its index in a row image."""
    if index > len(column.members):
        raise stopped(column, "an ENUM index that the column's type does not have")
    return column.members[index - 1] if index else ""


def date_cell(column: Column, year: int, month: int, day: int) -> datetime.date:
    """A DATE by its parts."""
    try:
        return datetime.date(year, month, day)
    except ValueError:
        raise stopped(column, "a date that does not exist, such as 0000-00-00", _DATES_HINT) from None


def datetime_cell(
    column: Column, year: int, month: int, day: int, hour: int, minute: int, second: int, micros: int = 0
) -> int:
    """A DATETIME by its parts."""
    days = date_cell(column, year, month, day).toordinal() - _EPOCH
    if hour > 23 or minute > 59 or second > 59 or not 0 <= micros < 1_000_000:
        raise stopped(column, "a time of day that does not exist", _DATES_HINT)
    return (days * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000 + micros


def timestamp_cell(column: Column, seconds: int, micros: int = 0) -> int:
    """A TIMESTAMP of a row image. There 0 is the zero date: the type begins one second after the epoch."""
    if seconds <= 0:
        raise stopped(column, "a date that does not exist, such as 0000-00-00", _DATES_HINT)
    return seconds * 1_000_000 + micros


def from_text(column: Column, cell: bytes | None) -> object:
    """A result set's value, in MySQL's text form, as a cell. Raises `TableStoppedError`."""
    if cell is None:
        return None
    match column.type:
        case "text" | "enum":
            return decode_text(column, cell)
        case "binary" | "varbinary":
            return bytes(cell)
        case "decimal" if _DECIMAL.fullmatch(cell):
            return Decimal(cell.decode())
        case "double":
            try:
                return float(cell)
            except ValueError:
                raise stopped(column, "not a number") from None
        case "date" if date := _DATE.fullmatch(cell):
            return date_cell(column, *map(int, date.groups()))
        case "datetime" | "timestamp" if parts := _DATETIME.fullmatch(cell):
            *whole, fraction = parts.groups()
            return datetime_cell(column, *map(int, (*whole, (fraction or b"").ljust(6, b"0"))))
        case _ if column.type in _BITS and _INTEGER.fullmatch(cell):
            return int(cell)
    raise stopped(column, f"not a text that {column.type} has")


# arrays


def build(schema: TableSchema, rows: Sequence[Sequence[object]]) -> pa.RecordBatch:
    """Rows of cells as the lake has them, overrides applied: a batch of `schema.arrow`. Raises `TableStoppedError`."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema.columns)
    return build_columns(schema, list(columns))


def build_columns(schema: TableSchema, columns: Sequence[Sequence[object]]) -> pa.RecordBatch:
    """`build`, given a column's cells at a time."""
    _check_cells(schema)
    arrays = [_from_cells(c, cells) for c, cells in zip(schema.columns, columns, strict=True)]
    return _batch(schema, arrays)


def build_text(schema: TableSchema, columns: Sequence[Sequence[bytes | None]]) -> pa.RecordBatch:
    """The same as `build` over `from_text`, given a result set's columns (none at all for no rows)."""
    _check_cells(schema)
    arrays = []
    for column, cells in zip(schema.columns, columns or ((),) * len(schema.columns), strict=True):
        array = _quickly(column, cells)
        # Again by value: that knows the reason, and decides.
        arrays.append(_from_cells(column, [from_text(column, cell) for cell in cells]) if array is None else array)
    return _batch(schema, arrays)


def arrow_type(column: Column) -> pa.DataType:
    """A column's Arrow type before overrides: as in the lake, and for decimals that only an override can take, wide enough."""
    if column.type == "decimal" and column.precision > 38:
        return pa.decimal256(column.precision, column.scale)
    return column.arrow_type


def _batch(schema: TableSchema, arrays: list[pa.Array[Any]]) -> pa.RecordBatch:
    final = [_override(schema, c, a) for c, a in zip(schema.columns, arrays, strict=True)]
    return pa.RecordBatch.from_arrays(final, schema=schema.arrow)


def _override(schema: TableSchema, column: Column, array: pa.Array[Any]) -> pa.Array[Any]:
    match schema.overrides.get(column.name):
        case "string":
            return texts.texts(column, array)
        case "boolean":
            low, high = pc.min_max(array).values()
            if low.is_valid and (low.as_py() < 0 or high.as_py() > 1):
                raise stopped(
                    column,
                    "neither 0 nor 1, and read as boolean",
                    f"remove {column.name} from types:, then resync the table",
                )
            return array.cast(pa.bool_())
    if pa.types.is_decimal256(array.type):
        return texts.texts(column, array)
    return array


def _from_cells(column: Column, cells: Sequence[object]) -> pa.Array[Any]:
    if column.type == "binary":
        cells = [_padded(column, v) if isinstance(v, bytes) else v for v in cells]
    try:
        array: Any = pa.array(cells, arrow_type(column), size=len(cells))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        # Arrow's reason holds the value.
        raise stopped(column, f"a value that {_describe(column)} does not hold") from None
    return _bounded(column, _whole(column, array))


def _padded(column: Column, value: bytes) -> bytes:
    if len(value) > column.length:
        raise stopped(column, f"a value that binary({column.length}) does not hold")
    return value.ljust(column.length, b"\0")


def _quickly(column: Column, cells: Sequence[bytes | None]) -> pa.Array[Any] | None:
    try:
        return _bounded(column, _from_texts(column, cells))
    except (pa.ArrowException, TableStoppedError, ValueError, OverflowError):
        return None


def _from_texts(column: Column, cells: Sequence[bytes | None]) -> pa.Array[Any]:
    raw: Any = _whole(column, pa.array(cells, pa.binary(), size=len(cells)))
    kind = arrow_type(column)
    match column.type:
        case "varbinary":
            return _whole(column, raw)
        case "binary":
            least, most = (v.as_py() for v in pc.min_max(pc.binary_length(raw)).values())
            return _whole(column, raw) if least == most == column.length else _from_cells(column, cells)
    text: Any = raw.cast(pa.string())
    array: pa.Array[Any]
    match column.type:
        case "bigint" if column.unsigned:
            array = text.cast(pa.uint64()).cast(kind)
        case "decimal" if pa.types.is_decimal128(kind):
            # Arrow takes numbers of 39 digits for others without a word; MySQL has 65 at most.
            array = text.cast(pa.decimal256(76, column.scale)).cast(kind)
        case "timestamp":
            array = text.cast(pa.timestamp("us")).cast(kind)
        case _:
            array = text.cast(kind)
    return array


def _whole(column: Column, array: Any) -> pa.Array[Any]:
    if isinstance(array, pa.ChunkedArray):
        raise TableStoppedError(
            f"column {column.name}: more than 2 GiB in one batch",
            hint="lower snapshot.chunk_rows or capture.epoch_size",
        )
    whole: pa.Array[Any] = array
    return whole


def _describe(column: Column) -> str:
    unsigned = " unsigned" if column.unsigned else ""
    return (
        f"decimal({column.precision},{column.scale}){unsigned}"
        if column.type == "decimal"
        else f"{column.type}{unsigned}"
    )


def _bounded(column: Column, array: pa.Array[Any]) -> pa.Array[Any]:
    """Raise for what Arrow's type holds and the column's does not: a sign where there is none, a year 0."""
    low: Any
    high: Any
    if bits := _BITS.get(column.type):
        low, high = (0, 2**bits - 1) if column.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        values = array
    elif column.type in ("datetime", "timestamp"):
        low, high, values = _FIRST_US, _LAST_US, array.cast(pa.int64())
    elif column.type == "date":
        low, high, values = _FIRST_US // 86_400_000_000, _LAST_US // 86_400_000_000, array.cast(pa.int32())
    else:
        return array
    least, most = (v.as_py() for v in pc.min_max(values).values())
    if least is not None and (least < low or most > high):
        raise stopped(column, f"a value that {_describe(column)} does not hold")
    return array
