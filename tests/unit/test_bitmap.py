"""Sets of row numbers: against Python's, in the portable form that deletion vectors have, and damaged."""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc._native import Bitmap

ROWS = st.one_of(
    st.sets(st.integers(0, 300)),
    st.sets(st.integers(0, 2**32 - 1), max_size=50),
    st.builds(lambda first, count: set(range(first, first + count)), st.integers(0, 2**17), st.integers(0, 9000)),
)


def of(*rows: int) -> Bitmap:
    return Bitmap().add(pa.array(rows, pa.uint32()))


def values(batch: Any) -> list[Any]:
    return list(pa.array(batch).to_pylist())


def listed(bitmap: Bitmap) -> list[int]:
    return values(bitmap.rows())


@settings(deadline=None)
@given(ROWS, ROWS)
def test_it_is_a_set(first: set[int], second: set[int]) -> None:
    one, other = of(*first), of(*second)
    assert (len(one), listed(one)) == (len(first), sorted(first))
    assert listed(one.union(other)) == listed(one.add(pa.array(second, pa.uint32()))) == sorted(first | second)
    assert one.lacks(other) == len(second - first)
    assert (one == other) == (first == second)
    assert listed(one) == sorted(first)  # never changed


@settings(deadline=None)
@given(ROWS)
def test_what_is_serialized_is_parsed(rows: set[int]) -> None:
    bitmap = of(*rows)
    assert Bitmap.parse(bitmap.serialize()) == bitmap


@settings(deadline=None)
@given(ROWS, st.integers(0, 2**17), st.integers(0, 3000))
def test_kept_rows_are_those_that_are_not_in_it(rows: set[int], first: int, count: int) -> None:
    assert values(of(*rows).kept(first, count)) == [first + i not in rows for i in range(count)]


def test_the_portable_form_is_that_of_the_specification() -> None:
    """Of https://github.com/RoaringBitmap/RoaringFormatSpec: how many bitmaps, then each one's upper 32 bits and itself."""
    head = struct.pack("<QI", 1, 0)  # one bitmap, of rows below 2**32
    array = struct.pack("<IIHHI3H", 12346, 1, 0, 2, 16, 3, 5, 9)  # no runs, one container: of rows 0…, 3 values, at 16
    assert of(5, 3, 9).serialize() == head + array
    assert Bitmap().serialize() == struct.pack("<Q", 0)
    runs = struct.pack(
        "<HHBHHHHH", 12347, 0, 1, 0, 99, 1, 1000, 99
    )  # with runs: one container of 100 values, 1000 to 1099
    assert listed(Bitmap.parse(head + runs)) == list(range(1000, 1100))
    above = struct.pack("<Q", 2) + struct.pack("<I", 0) + array + struct.pack("<I", 3) + array
    assert listed(Bitmap.parse(above)) == [3, 5, 9] + [(3 << 32) + row for row in (3, 5, 9)]


@settings(deadline=None)
@given(ROWS, st.data())
def test_what_is_cut_is_refused(rows: set[int], data: st.DataObject) -> None:
    serialized = of(*rows).serialize()
    length = data.draw(st.integers(0, len(serialized) - 1))
    with pytest.raises(ValueError, match="bitmap"):
        Bitmap.parse(serialized[:length])
    with pytest.raises(ValueError, match="bitmap"):
        Bitmap.parse(serialized + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        bitmap = Bitmap.parse(data)
    except ValueError:
        return
    assert len(listed(bitmap)) == len(bitmap)


def test_rows_are_uint32_and_not_null() -> None:
    with pytest.raises(ValueError, match="null"):
        Bitmap().add(pa.array([1, None], pa.uint32()))
    with pytest.raises(TypeError):
        Bitmap().add(pa.array([1], pa.int64()))
    with pytest.raises(TypeError):
        Bitmap().add([1])  # type: ignore[arg-type]
    assert listed(Bitmap().add(pa.array([1, 2, 3, 4], pa.uint32())[1:3])) == [2, 3]
