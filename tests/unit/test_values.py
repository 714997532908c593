"""Values as Arrow arrays: what each type gives, what is refused, and that both ways to an array are one."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import TableStoppedError
from cdc.schema import Column, TableSchema
from tests.reference import values

SECRET = "54321"

COLUMNS = {
    "tinyint": Column("c", "tinyint"),
    "tinyint unsigned": Column("c", "tinyint", unsigned=True),
    "smallint": Column("c", "smallint"),
    "mediumint": Column("c", "mediumint"),
    "mediumint unsigned": Column("c", "mediumint", unsigned=True),
    "int": Column("c", "int"),
    "int unsigned": Column("c", "int", unsigned=True),
    "bigint": Column("c", "bigint"),
    "bigint unsigned": Column("c", "bigint", unsigned=True),
    "decimal(10,2)": Column("c", "decimal", precision=10, scale=2),
    "decimal(38,30)": Column("c", "decimal", precision=38, scale=30),
    "decimal(38,0)": Column("c", "decimal", precision=38),
    "double": Column("c", "double"),
    "text": Column("c", "text", charset="utf8mb4"),
    "enum": Column("c", "enum", charset="utf8mb4", members=("a", "b")),
    "binary(4)": Column("c", "binary", length=4),
    "varbinary": Column("c", "varbinary"),
    "date": Column("c", "date"),
    "datetime": Column("c", "datetime", scale=6),
    "timestamp": Column("c", "timestamp", scale=6),
}
BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}


def schema(*columns: Column, **overrides: str) -> TableSchema:
    return TableSchema(columns, (), overrides)


def from_text(table: TableSchema, cells: Sequence[bytes | None]) -> pa.RecordBatch:
    (column,) = table.columns
    return values.build(table, [(values.from_text(column, cell),) for cell in cells])


def one(column: Column, cell: bytes | None, **overrides: str) -> Any:
    """The value that both ways give."""
    table = schema(column, **overrides)
    slow, fast = from_text(table, [cell]), values.build_text(table, [[cell]])
    assert slow.equals(fast)
    assert slow.schema == table.arrow
    return slow.column(0)[0].as_py()


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("tinyint", b"-128", -128),
        ("tinyint unsigned", b"255", 255),
        ("mediumint", b"-8388608", -8388608),
        ("mediumint unsigned", b"16777215", 16777215),
        ("int", b"-2147483648", -2147483648),
        ("int unsigned", b"0000000042", 42),
        ("bigint", b"-9223372036854775808", -(2**63)),
        ("bigint unsigned", b"18446744073709551615", Decimal(2**64 - 1)),
        ("decimal(10,2)", b"-12345678.90", Decimal("-12345678.90")),
        ("decimal(10,2)", b"00000001.50", Decimal("1.50")),
        (
            "decimal(38,30)",
            b"-99999999.999999999999999999999999999999",
            Decimal("-99999999.999999999999999999999999999999"),
        ),
        ("decimal(38,0)", b"9" * 38, Decimal("9" * 38)),
        ("double", b"1.7976931348623157e308", 1.7976931348623157e308),
        ("double", b"5e-324", 5e-324),
        ("text", "ß \0 🐬".encode(), "ß \0 🐬"),
        ("text", b"", ""),
        ("enum", b"", ""),
        ("binary(4)", b"\0\xff \0", b"\0\xff \0"),
        ("varbinary", b"\xff\0", b"\xff\0"),
        ("date", b"0001-01-01", datetime.date(1, 1, 1)),
        ("date", b"9999-12-31", datetime.date(9999, 12, 31)),
        ("datetime", b"0001-01-01 00:00:00", datetime.datetime.fromisoformat("0001-01-01 00:00:00")),
        ("datetime", b"9999-12-31 23:59:59.999999", datetime.datetime.fromisoformat("9999-12-31 23:59:59.999999")),
        ("datetime", b"2024-02-29 12:00:00.5", datetime.datetime.fromisoformat("2024-02-29 12:00:00.500000")),
        ("timestamp", b"1970-01-01 00:00:01", datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC)),
    ],
)
def test_a_text_gives_exactly_its_value(kind: str, text: bytes, expected: object) -> None:
    assert one(COLUMNS[kind], text) == expected


@pytest.mark.parametrize("kind", COLUMNS)
def test_null_is_null(kind: str) -> None:
    assert one(COLUMNS[kind], None) is None


def test_the_sign_of_zero_stays() -> None:
    assert math.copysign(1, one(COLUMNS["double"], b"-0")) == -1


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("tinyint", b"128"),
        ("tinyint unsigned", b"256"),
        ("tinyint unsigned", b"-1"),
        ("mediumint", b"8388608"),
        ("bigint unsigned", b"18446744073709551616"),
        ("bigint unsigned", b"-1"),
        ("int", b"54321x"),
        ("decimal(10,2)", b"543210000.00"),
        ("decimal(10,2)", b"54321.001"),
        ("double", b"54321,0"),
        ("text", b"54321\xff"),
        ("enum", b"54321\xc3"),
        ("binary(4)", b"54321"),
        ("date", b"0000-00-00"),
        ("date", b"0000-01-01"),
        ("date", b"2024-00-10"),
        ("date", b"2023-02-29"),
        ("datetime", b"0000-00-00 00:00:00"),
        ("datetime", b"0000-01-01 00:00:00"),
        ("datetime", b"2024-01-00 10:00:00.000000"),
        ("timestamp", b"0000-00-00 00:00:00"),
    ],
)
def test_what_does_not_fit_stops_the_table_by_its_column_without_the_value(kind: str, text: bytes) -> None:
    table = schema(COLUMNS[kind])
    with pytest.raises(TableStoppedError) as slow:
        from_text(table, [text])
    with pytest.raises(TableStoppedError) as fast:
        values.build_text(table, [[b"1" if kind == "double" else None, text]])
    assert slow.value.to_dict() == fast.value.to_dict()
    assert "column c: " in slow.value.what
    assert slow.value.hint
    for error in (slow.value, fast.value):
        assert SECRET not in str(error)
        assert error.__cause__ is None
        assert (
            error.__suppress_context__ or error.__context__ is None or isinstance(error.__context__, pa.ArrowException)
        )


@pytest.mark.parametrize(
    ("kind", "cell"),
    [("tinyint", 128), ("int", "x"), ("text", "\ud800"), ("decimal(10,2)", Decimal("0.001")), ("datetime", 2**62)],
)
def test_cells_that_do_not_fit_stop_the_table(kind: str, cell: object) -> None:
    with pytest.raises(TableStoppedError):
        values.build(schema(COLUMNS[kind]), [(cell,)])


def integers(kind: str) -> st.SearchStrategy[bytes]:
    name, _, unsigned = kind.partition(" ")
    bits = BITS[name]
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.integers(low - 2, high + 2).map(lambda n: str(n).encode())


def decimals(precision: int, scale: int) -> st.SearchStrategy[bytes]:
    limit = 10 ** (precision + 1)
    return st.integers(-limit, limit).map(lambda n: f"{Decimal(n).scaleb(-scale, None):.{scale}f}".encode())


DATES = st.tuples(st.integers(0, 9999), st.integers(0, 12), st.integers(0, 31)).map(
    lambda d: "{:04}-{:02}-{:02}".format(*d)
)
TIMES = st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59)).map(
    lambda t: "{:02}:{:02}:{:02}".format(*t)
)
FRACTIONS = st.one_of(st.just(""), st.text("0123456789", min_size=1, max_size=6).map(lambda d: f".{d}"))
MOMENTS = st.tuples(DATES, TIMES, FRACTIONS).map(lambda p: f"{p[0]} {p[1]}{p[2]}".encode())

TEXTS: dict[str, st.SearchStrategy[bytes]] = {
    **{kind: integers(kind) for kind in COLUMNS if kind.partition(" ")[0] in BITS},
    "decimal(10,2)": decimals(10, 2),
    "decimal(38,30)": st.integers(-(10**38) + 1, 10**38 - 1).map(
        lambda n: (f"{'-' if n < 0 else ''}{abs(n) // 10**30}.{abs(n) % 10**30:030}").encode()
    ),
    "decimal(38,0)": st.integers(-(10**39), 10**39).map(lambda n: str(n).encode()),
    "double": st.floats(allow_nan=False, allow_infinity=False).map(lambda x: repr(x).encode()),
    "text": st.one_of(st.text().map(lambda t: t.encode()), st.binary()),
    "enum": st.sampled_from([b"a", b"b", b""]),
    "binary(4)": st.binary(max_size=5),
    "varbinary": st.binary(),
    "date": DATES.map(lambda d: d.encode()),
    "datetime": MOMENTS,
    "timestamp": MOMENTS,
}


def outcome(function: Callable[..., pa.RecordBatch], *arguments: object) -> object:
    """The values, by their repr (-0.0 is not 0.0), or the error."""
    try:
        batch = function(*arguments)
    except TableStoppedError as error:
        return error.to_dict()
    return batch.schema, [repr(value) for value in batch.column(0).to_pylist()]


@pytest.mark.parametrize("kind", COLUMNS)
def test_whole_columns_and_single_values_agree(kind: str) -> None:
    table = schema(COLUMNS[kind])

    @given(st.lists(st.none() | TEXTS[kind], max_size=20))
    def agree(cells: list[bytes | None]) -> None:
        slow, fast = outcome(from_text, table, cells), outcome(values.build_text, table, [cells])
        assert slow == fast

    agree()


def test_no_rows_are_an_empty_batch() -> None:
    table = schema(COLUMNS["int"], Column("d", "text", charset="ascii"))
    for batch in (values.build(table, []), values.build_text(table, [])):
        assert batch.num_rows == 0
        assert batch.schema == table.arrow


def test_binary_is_padded_to_its_length() -> None:
    assert values.build(schema(COLUMNS["binary(4)"]), [(b"a",), (b"",), (None,)]).column(0).to_pylist() == [
        b"a\0\0\0",
        b"\0\0\0\0",
        None,
    ]


def test_boolean_takes_0_and_1_and_nothing_else() -> None:
    column = COLUMNS["tinyint"]
    assert [one(column, cell, c="boolean") for cell in (b"0", b"1", None)] == [False, True, None]
    for cell in (b"2", b"-1"):
        with pytest.raises(TableStoppedError, match="neither 0 nor 1"):
            one(column, cell, c="boolean")
    with pytest.raises(TableStoppedError, match="boolean"):
        values.check(schema(COLUMNS["int"], c="boolean"))


@pytest.mark.parametrize(
    ("kind", "cell", "text"),
    [
        ("bigint unsigned", b"18446744073709551615", "18446744073709551615"),
        ("decimal(38,30)", b"0.000000000000000000000000000001", "0.000000000000000000000000000001"),
        ("double", b"-0", "-0.0"),
        ("binary(4)", b"\x00\xabc\0", "00AB6300"),
        ("date", b"2024-02-29", "2024-02-29"),
        ("datetime", b"2024-02-29 01:02:03", "2024-02-29 01:02:03.000000"),
        ("timestamp", b"2024-02-29 01:02:03.5", "2024-02-29 01:02:03.500000"),
        ("text", b"x", "x"),
    ],
)
def test_string_gives_the_canonical_text(kind: str, cell: bytes, text: str) -> None:
    assert one(COLUMNS[kind], cell, c="string") == text


def test_a_decimal_of_more_than_38_digits_is_text() -> None:
    column = Column("c", "decimal", precision=65, scale=30)
    number = b"-" + b"9" * 35 + b"." + b"9" * 30
    assert one(column, number, c="string") == one(column, number) == number.decode()


def test_what_only_the_native_decoder_reads_is_refused() -> None:
    for column in (Column("c", "json"), Column("c", "text", charset="latin1"), Column("c", "bit", length=1)):
        with pytest.raises(TableStoppedError, match="is not read here"):
            values.build(schema(column), [(b"x",)])


def test_parts_of_row_images_become_the_same_cells_as_texts() -> None:
    date, moment, stamp = COLUMNS["date"], COLUMNS["datetime"], COLUMNS["timestamp"]
    assert values.date_cell(date, 2024, 2, 29) == values.from_text(date, b"2024-02-29")
    assert values.datetime_cell(moment, 1, 1, 1, 0, 0, 0, 1) == values.from_text(moment, b"0001-01-01 00:00:00.000001")
    assert values.timestamp_cell(stamp, 1, 5) == values.from_text(stamp, b"1970-01-01 00:00:01.000005")
    assert values.enum_cell(COLUMNS["enum"], 2) == "b"
    assert values.enum_cell(COLUMNS["enum"], 0) == ""
    for wrong in (
        lambda: values.date_cell(date, 0, 0, 0),
        lambda: values.datetime_cell(moment, 2024, 2, 30, 0, 0, 0),
        lambda: values.timestamp_cell(stamp, 0),
        lambda: values.enum_cell(COLUMNS["enum"], 3),
        lambda: values.decode_text(COLUMNS["text"], b"\xff"),
    ):
        with pytest.raises(TableStoppedError):
            wrong()


def test_select_lists_quote_every_name() -> None:
    assert values.select_list(schema(Column("a`b", "int"), Column("select", "int"))) == "`a``b`, `select`"
