"""A guess at the middle lies between its ends, for every type that a key can have."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.schema import Column
from snapshot.between import between
from snapshot.chunks import time_micros

ID = Column("k", "bigint", unsigned=True)
TEXT = Column("k", "text", charset="utf8mb4")


@given(st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**64 - 1))
def test_integers_are_halved(a: int, b: int) -> None:
    low, high = min(a, b), max(a, b)
    found = between(ID, low, high)
    if high - low < 2:
        assert found is None
    else:
        assert isinstance(found, int)
        assert low < found <= high
        assert abs((found - low) - (high - found)) <= 1


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_bytes_are_halved(a: bytes, b: bytes) -> None:
    low, high = min(a, b), max(a, b)
    found = between(Column("k", "varbinary"), low, high)
    assert found is None or (isinstance(found, bytes) and low < found <= high)


@given(st.text("0123456789abcdef-", min_size=1, max_size=36), st.text("0123456789abcdef-", min_size=1, max_size=36))
def test_texts_of_letters_and_digits_are_halved(a: str, b: str) -> None:
    low, high = min(a, b), max(a, b)
    found = between(TEXT, low, high, by_code=True)
    assert found is None or (isinstance(found, str) and low < found <= high)


@given(st.text(max_size=8), st.text(max_size=8), st.booleans(), st.integers(0, 40))
def test_any_text_has_some_middle_or_none(low: str, high: str, by_code: bool, attempt: int) -> None:
    found = between(TEXT, low, high, by_code=by_code, attempt=attempt)
    assert found is None or (isinstance(found, str) and found.encode())


def test_hexadecimal_digits_are_cut_in_the_middle() -> None:
    assert str(between(TEXT, "0000", "ffff"))[0] in "78"
    assert str(between(TEXT, "0000", "FFFF"))[0] in "78"
    assert str(between(TEXT, "a0", "b0"))[0] == "a"


@given(
    st.decimals(-(10**20), 10**20, places=4, allow_nan=False), st.decimals(-(10**20), 10**20, places=4, allow_nan=False)
)
def test_decimals_are_halved_at_their_scale(a: Decimal, b: Decimal) -> None:
    low, high = min(a, b), max(a, b)
    found = between(Column("k", "decimal", precision=30, scale=4), f"{low:f}", f"{high:f}")
    if found is not None:
        assert low < Decimal(str(found)) <= high
        assert Decimal(str(found)).as_tuple().exponent == -4
    else:
        assert high - low <= Decimal("0.0002")


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 1),
)
def test_doubles_are_halved_by_value_and_by_magnitude(a: float, b: float, attempt: int) -> None:
    low, high = min(a, b), max(a, b)
    found = between(Column("k", "double"), repr(low), repr(high), attempt=attempt)
    if found is not None:
        assert low < float(str(found)) <= high
    else:
        assert math.nextafter(math.nextafter(low, math.inf), math.inf) >= high or low == -high == 0 or low == high


def test_magnitudes_are_halved() -> None:
    found = between(Column("k", "double"), "1e-100", "1e100", attempt=1)
    assert 1e-3 < float(str(found)) < 1e3


moments = st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31))  # noqa: DTZ001


@given(moments, moments, st.sampled_from([0, 3, 6]))
def test_moments_are_halved(a: datetime.datetime, b: datetime.datetime, scale: int) -> None:
    step = 10 ** (6 - scale)
    low, high = (m.replace(microsecond=m.microsecond // step * step) for m in (min(a, b), max(a, b)))
    texts = [f"{m.year:04}{m:-%m-%d %H:%M:%S.%f}" for m in (low, high)]
    found = between(Column("k", "datetime", scale=scale), texts[0], texts[1])
    if found is None:
        assert high - low <= 2 * datetime.timedelta(microseconds=step)
    else:
        assert low < datetime.datetime.fromisoformat(str(found)) <= high
        assert len(str(found)) == 26


@given(st.dates(), st.dates())
def test_dates_are_halved(a: datetime.date, b: datetime.date) -> None:
    low, high = min(a, b), max(a, b)
    found = between(Column("k", "date"), low.isoformat(), high.isoformat())
    if found is None:
        assert high - low <= datetime.timedelta(days=1)
    else:
        assert low < datetime.date.fromisoformat(str(found)) <= high


@pytest.mark.parametrize(
    ("column", "low", "high", "middle"),
    [
        (Column("k", "time", scale=0), "-10:00:00.000000", "10:00:00.000000", "00:00:00.000000"),
        (Column("k", "time", scale=3), "-00:00:01.000000", "00:00:00.000000", "-00:00:00.500000"),
        (Column("k", "inet4"), "10.0.0.0", "10.0.0.255", "10.0.0.128"),
        (Column("k", "inet6"), "::", "::ff", "::80"),
        (Column("k", "year"), 2000, 2010, 2005),
        (Column("k", "text", charset="latin1"), b"a", b"c", b"b"),
        (Column("k", "text", charset="latin1"), b"\xe40", b"\xe4f", b"\xe47"),
        (Column("k", "text", charset="cp932"), b"\x81\x40", b"\xfa\x54", None),
        (Column("k", "set", members=("a",)), 0, 1, None),
        (Column("k", "date"), "0000-00-00", "2024-01-01", None),
    ],
    ids=lambda x: x.type if isinstance(x, Column) else "",
)
def test_examples(column: Column, low: Any, high: Any, middle: Any) -> None:
    found = between(column, low, high)
    if isinstance(middle, bytes):
        assert isinstance(found, bytes)
        assert found.startswith(middle)
    else:
        assert found == middle


def test_a_time_is_read_as_it_is_printed() -> None:
    assert time_micros("-838:59:59.000001") == -(((838 * 60 + 59) * 60 + 59) * 1_000_000 + 1)
