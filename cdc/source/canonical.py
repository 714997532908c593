"""One text for one value, from MySQL by an expression and from Arrow by a function, byte for byte the same.

For comparing values without trusting the way of a row: the server prints what it has, and the lake's value is printed here. Also
what the override `string` makes of a column.

| type | text |
| --- | --- |
| integers | decimal digits, no leading zeros |
| decimal | all digits of the scale: `-0.50` |
| double | as MySQL's JSON has it: the fewest digits that give the same double, `1.0`, `1e15`, `1e-16`; `-0.0` is not `0.0` (on MariaDB zero has no sign) |
| float | that of the same number as double |
| bit | BIT(1): `0`, `1`; else hexadecimal digits, upper case, of its bytes |
| texts, ENUM, SET | themselves, in UTF-8 |
| JSON | MySQL's own text of it |
| BINARY, VARBINARY, BLOBs | hexadecimal digits, upper case |
| geometry, vector | likewise, as the server stores them: SRID and WKB; floats, little-endian |
| date | `YYYY-MM-DD` |
| datetime, timestamp | `YYYY-MM-DD HH:MM:SS.ffffff`; timestamp in UTC |
| time | `HH:MM:SS.ffffff`, with a sign if negative, three digits of hours where it needs them |
| year | decimal digits; `0` for 0000 |
| uuid, inet4, inet6 | as MariaDB prints them |

A value that the lake's type cannot hold has a text too, which the lake keeps in `_cdc_unfit`: a date that does not exist, such as
`0000-00-00 00:00:00.000000`, in the form of its type; of a text that its character set cannot decode, the hexadecimal digits.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc import _native
from cdc.names import quote_identifier
from cdc.schema import Column, TableSchema

_NUMBERS = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint", "year"})


def expression(column: Column, *, mariadb: bool = False) -> str:
    """A SELECT expression that gives the text of a column; NULL stays NULL. The session's time zone must be UTC."""
    name = quote_identifier(column.name)
    match column.type:
        case "text" | "enum" | "set":
            return _text(name) if column.charset not in ("utf8mb4", "utf8mb3") else f"CONVERT({name} USING utf8mb4)"
        case "json":
            return f"CONVERT({name} USING utf8mb4)"
        case "binary" | "varbinary" | "geometry" | "vector":
            return f"HEX({name})"
        case "bit" if column.length > 1:
            # HEX of a number has no leading zeros.
            return f"LPAD(HEX({name} + 0), {(column.length + 7) // 8 * 2}, '0')"
        case "datetime" | "timestamp":
            # Not by a cast to DATETIME(6): whether that keeps dates that do not exist depends on sql_mode.
            text = f"CAST({name} AS CHAR)" if column.scale else f"CONCAT({name}, '.')"
            return f"RPAD({text}, 26, '0')"
        case "time":
            return f"CAST(CAST({name} AS TIME(6)) AS CHAR)"
        case "date" | "uuid" | "inet4" | "inet6":
            return f"CAST({name} AS CHAR)"
        case "float" | "double" if mariadb:
            return _mariadb_double(f"CAST({name} AS DOUBLE)")
        case "float":
            return f"CAST(CAST(CAST({name} AS DOUBLE) AS JSON) AS CHAR)"
        case "double":
            # Every other way to a text cuts digits off where there are many: CAST of an expression after 22 characters.
            return f"CAST(CAST({name} AS JSON) AS CHAR)"
        case _:
            # ZEROFILL would print leading zeros.
            return f"CAST({name} + 0 AS CHAR)"


def key_texts(schema: TableSchema, keys: pa.Table) -> list[tuple[int | str, ...]]:
    """Keys of a table (the key's columns, in the lake's types) as a request to read them again has them: integers and YEAR as numbers."""
    by_name = {column.name: column for column in schema.columns}
    columns: list[list[Any]] = []
    for name in schema.key:
        column, values = by_name[name], keys.column(name).combine_chunks()
        found = texts(column, values).to_pylist()
        columns.append([int(str(text)) for text in found] if column.type in _NUMBERS else found)
    return list(zip(*columns, strict=True))


def _text(name: str) -> str:
    # The server puts a `?` in the place of what it cannot convert: if there are more of them now, the bytes are the text.
    text = f"CONVERT({name} USING utf8mb4)"
    marks, before = (f"CHAR_LENGTH({t}) - CHAR_LENGTH(REPLACE({t}, '?', ''))" for t in (text, name))
    return f"IF(LOCATE('?', {text}) > 0 AND {marks} <> {before}, HEX({name}), {text})"


def _mariadb_double(number: str) -> str:
    # MariaDB prints the same digits without `.0`. It shows no zero's sign to any reader, so there it is `0.0`, whatever is stored.
    # From 1e15 on there is an exponent, or digits after the point.
    return f"CONCAT(CAST({number} AS CHAR), IF({number} = FLOOR({number}) AND ABS({number}) < 1e15, '.0', ''))"


def texts(column: Column, array: pa.Array[Any], unfit: pa.Array[Any] | None = None) -> pa.Array[Any]:
    """The texts of `array`, which has the column's Arrow type, or what an override made of it; NULL stays NULL, unless `unfit`, the
    same rows' `_cdc_unfit` (a map of strings by column name), has a text for the column."""
    found = _texts(column, array)
    if unfit is None or not found.null_count or unfit.null_count == len(unfit):
        return found
    kept: Any = pc.map_lookup(unfit, column.name, "first")
    return pc.coalesce(found, kept.cast(pa.string()))


def _texts(column: Column, array: pa.Array[Any]) -> pa.Array[Any]:
    kind: Any = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.cast(pa.string())
    if pa.types.is_timestamp(kind) and kind.unit != "us":
        array = array.cast(pa.timestamp("us"))
    return _native_texts(array, column.type == "time")


def _native_texts(array: pa.Array[Any], time: bool = False) -> pa.Array[Any]:
    made: Any = _native.texts(array, time)
    found: Any = pa.array(made)
    return found  # type: ignore[no-any-return]


def time_text(micros: int) -> str:
    """A TIME of so many microseconds."""
    return str(_native_texts(pa.array([micros], pa.int64()), True)[0])


def decimal_text(value: Decimal) -> str:
    """All digits of the value's scale, never an exponent."""
    return f"{value:f}"


def double_text(value: float) -> str:
    """A double as MySQL prints it in JSON."""
    return str(_native_texts(pa.array([value], pa.float64()))[0])
