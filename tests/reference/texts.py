"""Canonical texts in plain Python, the slow and obvious way: the oracle for the native module's."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc.schema import Column

_FIXED_DIGITS = 15
"""MySQL prints a double without an exponent while its decimal point is not further than this from the first digit."""


def texts(column: Column, array: pa.Array[Any]) -> pa.Array[Any]:
    """The texts of an array that has the column's Arrow type, or what an override made of it; NULL stays NULL."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.cast(pa.string())
    if pa.types.is_boolean(kind):
        return array.cast(pa.int8()).cast(pa.string())
    if pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp("us")).cast(pa.string())
    if pa.types.is_floating(kind):
        return _each(array.cast(pa.float64()), double_text)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _each(array, lambda value: value.hex().upper())
    if pa.types.is_list(kind):
        return _each(array, lambda value: np.array(value, "<f4").tobytes().hex().upper())
    if column.type == "time":
        return _each(array, time_text)
    text = array.cast(pa.string())
    # Arrow writes small decimals with an exponent.
    if column.scale > 6 and pa.types.is_decimal(kind) and pc.any(pc.match_substring(text, "E")).as_py():
        return _each(array, decimal_text)
    return text


def _each(array: pa.Array[Any], function: Any) -> pa.Array[Any]:
    return pa.array([None if v is None else function(v) for v in array.to_pylist()], pa.string())


def time_text(micros: int) -> str:
    """A TIME of so many microseconds."""
    seconds, fraction = divmod(abs(micros), 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{'-' if micros < 0 else ''}{hour:02}:{minute:02}:{second:02}.{fraction:06}"


def decimal_text(value: Decimal) -> str:
    """All digits of the value's scale, never an exponent."""
    return f"{value:f}"


def double_text(value: float) -> str:
    """A double as MySQL prints it in JSON."""
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
