"""Canonical texts, as far as no server is needed; `tests/integration/test_source.py` compares them with MySQL's."""

from __future__ import annotations

import datetime
import struct
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.schema import TYPES, Column
from cdc.source import canonical
from tests.reference import texts as reference


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (-1.5, "-1.5"),
        (1e14, "100000000000000.0"),
        (1e15, "1e15"),
        (123456789012345.6, "123456789012345.6"),
        (1234567890123456.7, "1234567890123456.8"),
        (12345678901234567.0, "1.2345678901234568e16"),
        (1e-5, "0.00001"),
        (1e-15, "0.000000000000001"),
        (1e-16, "1e-16"),
        (1.25e-20, "1.25e-20"),
        (5e-324, "5e-324"),
        (-1.7976931348623157e308, "-1.7976931348623157e308"),
    ],
)
def test_doubles(value: float, text: str) -> None:
    assert canonical.double_text(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_doubles_text_names_no_other_double(value: float) -> None:
    assert struct.pack("d", float(canonical.double_text(value))) == struct.pack("d", value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e17, 1e17) | st.floats(1e-5, 1e-3))
def test_doubles_are_printed_as_by_the_oracle(value: float) -> None:
    assert canonical.double_text(value) == reference.double_text(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=20, min_value=-(10**15), max_value=10**15))
def test_decimals_have_all_digits_of_their_scale(value: Decimal) -> None:
    text: Any
    (text,) = canonical.texts(
        Column("c", "decimal", precision=38, scale=20), pa.array([value], pa.decimal128(38, 20))
    ).to_pylist()
    assert "E" not in text
    assert len(text.partition(".")[2]) == 20
    assert Decimal(text) == value


@pytest.mark.parametrize(
    ("array", "column", "texts"),
    [
        (pa.array([-1, None], pa.int8()), Column("c", "tinyint"), ["-1", None]),
        (pa.array([2**64 - 1], pa.decimal128(20, 0)), Column("c", "bigint", unsigned=True), [str(2**64 - 1)]),
        (pa.array([b"\x00\xff", b""], pa.binary()), Column("c", "varbinary"), ["00FF", ""]),
        (pa.array([datetime.date(1, 1, 1)]), Column("c", "date"), ["0001-01-01"]),
        (
            pa.array([-1, 0], pa.timestamp("us")),
            Column("c", "datetime"),
            ["1969-12-31 23:59:59.999999", "1970-01-01 00:00:00.000000"],
        ),
        (pa.array([1], pa.timestamp("us", tz="UTC")), Column("c", "timestamp"), ["1970-01-01 00:00:00.000001"]),
        (pa.array([True, False, None]), Column("c", "tinyint"), ["1", "0", None]),
        (pa.array(["1.50"]), Column("c", "decimal", precision=65, scale=2), ["1.50"]),
        (pa.array([0.1, -0.0], pa.float32()), Column("c", "float"), ["0.10000000149011612", "-0.0"]),
        (pa.array([b"\x01\xff", None], pa.binary()), Column("c", "bit", length=10), ["01FF", None]),
        (
            pa.array([0, -1, 362_439_000_001], pa.int64()),
            Column("c", "time"),
            ["00:00:00.000000", "-00:00:00.000001", "100:40:39.000001"],
        ),
        (pa.array([-3_020_399_999_999]), Column("c", "time", scale=6), ["-838:59:59.999999"]),
        (pa.array([0, 2155], pa.int16()), Column("c", "year"), ["0", "2155"]),
        (
            pa.array([[1.0, 2.5, -0.1], None], pa.list_(pa.float32())),
            Column("c", "vector"),
            ["0000803F00002040CDCCCCBD", None],
        ),
        (pa.array([""]), Column("c", "set", charset="utf8mb4", members=("a",)), [""]),
    ],
)
def test_arrays_as_the_lake_has_them(array: pa.Array, column: Column, texts: list[str | None]) -> None:  # type: ignore[type-arg]
    assert canonical.texts(column, array).to_pylist() == texts


def test_what_does_not_fit_is_where_the_value_is_not() -> None:
    column = Column("d", "date")
    array = pa.array([None, datetime.date(1, 1, 1), None, None])
    unfit = pa.array(
        [{"d": "0000-00-00"}, None, {"e": "x", "d": "2024-02-31"}, {"e": "y"}], pa.map_(pa.string(), pa.string())
    )
    expected = ["0000-00-00", "0001-01-01", "2024-02-31", None]
    assert canonical.texts(column, array, unfit).to_pylist() == expected
    assert canonical.texts(column, array).to_pylist() == [None, "0001-01-01", None, None]
    assert canonical.texts(Column("e", "date"), array, unfit).to_pylist() == [None, "0001-01-01", "x", "y"]
    nothing = pa.nulls(4, unfit.type)
    assert canonical.texts(column, array, nothing).to_pylist() == [None, "0001-01-01", None, None]


@pytest.mark.parametrize("mariadb", [False, True])
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_expressions_quote_the_column(kind: str, mariadb: bool) -> None:
    column = Column("a`b", kind, length=9, precision=10, charset="gbk")
    assert "`a``b`" in canonical.expression(column, mariadb=mariadb)
