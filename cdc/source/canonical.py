"""One text for one value, from MySQL by an expression and from Arrow by a function, byte for byte the same.

For comparing values without trusting the way of a row: the server prints what it has, and the lake's value is printed here. Also
what the override `string` makes of a column.

| type | text |
| --- | --- |
| integers | decimal digits, no leading zeros |
| decimal | all digits of the scale: `-0.50` |
| double | as MySQL's JSON has it: the fewest digits that give the same double, `1.0`, `1e15`, `1e-16`; `-0.0` is not `0.0` |
| texts, ENUM | themselves, in UTF-8 |
| BINARY, VARBINARY, BLOBs | hexadecimal digits, upper case |
| date | `YYYY-MM-DD` |
| datetime, timestamp | `YYYY-MM-DD HH:MM:SS.ffffff`; timestamp in UTC |
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc.names import quote_identifier
from cdc.schema import Column

_FIXED_DIGITS = 15
"""MySQL prints a double without an exponent while its decimal point is not further than this from the first digit."""


def expression(column: Column) -> str:
    """A SELECT expression that gives the text of a column that can be read; NULL stays NULL. The session's time zone must be UTC."""
    name = quote_identifier(column.name)
    match column.type:
        case "text" | "enum":
            return f"CONVERT({name} USING utf8mb4)"
        case "binary" | "varbinary":
            return f"HEX({name})"
        case "datetime" | "timestamp":
            return f"CAST(CAST({name} AS DATETIME(6)) AS CHAR)"
        case "date":
            return f"CAST({name} AS CHAR)"
        case "double":
            # Every other way to a text cuts digits off where there are many: CAST of an expression after 22 characters.
            return f"CAST(CAST({name} AS JSON) AS CHAR)"
        case _:
            # ZEROFILL would print leading zeros.
            return f"CAST({name} + 0 AS CHAR)"


def texts(column: Column, array: pa.Array[Any]) -> pa.Array[Any]:
    """The texts of `array`, which has the column's Arrow type, or what an override made of it; NULL stays NULL."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.cast(pa.string())
    if pa.types.is_boolean(kind):
        return array.cast(pa.int8()).cast(pa.string())
    if pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp("us")).cast(pa.string())
    if pa.types.is_floating(kind):
        return _each(array, double_text)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _each(array, lambda value: value.hex().upper())
    text = array.cast(pa.string())
    # Arrow writes small decimals with an exponent.
    if column.scale > 6 and pa.types.is_decimal(kind) and pc.any(pc.match_substring(text, "E")).as_py():
        return _each(array, decimal_text)
    return text


def _each(array: pa.Array[Any], function: Any) -> pa.Array[Any]:
    return pa.array([None if v is None else function(v) for v in array.to_pylist()], pa.string())


def decimal_text(value: Decimal) -> str:
    """All digits of the value's scale, never an exponent."""
    return f"{value:f}"


def double_text(value: float) -> str:
    """A double as MySQL prints it in JSON."""
    # Both print the shortest digits that name the double, and in this range both without an exponent.
    if 1e-4 <= abs(value) < 1e15:
        return repr(value)
    return _double_text(value)


def _double_text(value: float) -> str:
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    mantissa = "".join(map(str, digits)).rstrip("0")
    minus = "-" if sign else ""
    if not mantissa:
        return f"{minus}0.0"
    point = len(digits) + int(exponent)
    length = len(mantissa)
    if -_FIXED_DIGITS < point <= _FIXED_DIGITS or (point > 0 and length > point):
        if point <= 0:
            return f"{minus}0.{'0' * -point}{mantissa}"
        if point >= length:
            return f"{minus}{mantissa}{'0' * (point - length)}.0"
        return f"{minus}{mantissa[:point]}.{mantissa[point:]}"
    fraction = f".{mantissa[1:]}" if length > 1 else ""
    return f"{minus}{mantissa[0]}{fraction}e{point - 1}"
