"""Digests as far as no server is needed; `tests/integration/test_results.py` and `tests/conformance` compare them with the servers'."""

from __future__ import annotations

import datetime
import hashlib
import zlib
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc import _native
from cdc.schema import TYPES, Column
from cdc.source import canonical, digests
from tests.reference import texts as reference

TEXT = Column("t", "text", charset="utf8mb4")
COLUMNS = (
    (Column("i", "bigint"), pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (Column("s", "tinyint"), pa.int8(), st.integers(-128, 127)),
    (Column("b", "tinyint"), pa.bool_(), st.booleans()),
    (Column("u", "bigint", unsigned=True), pa.decimal128(20, 0), st.decimals(0, 2**64 - 1, places=0)),
    (Column("d", "decimal", precision=38, scale=12), pa.decimal128(38, 12), st.decimals(-(10**25), 10**25, places=12)),
    (Column("f", "double"), pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    (Column("g", "float"), pa.float32(), st.floats(allow_nan=False, allow_infinity=False, width=32)),
    (Column("day", "date"), pa.date32(), st.dates()),
    (Column("at", "datetime", scale=6), pa.timestamp("us"), st.datetimes()),
    (Column("z", "timestamp"), pa.timestamp("us", tz="UTC"), st.datetimes(timezones=st.just(datetime.UTC))),
    (Column("time", "time"), pa.int64(), st.integers(-3_020_399_999_999, 3_020_399_999_999)),
    (TEXT, pa.string(), st.text()),
    (Column("l", "text", charset="latin1"), pa.large_string(), st.text()),
    (Column("v", "varbinary"), pa.binary(), st.binary()),
    (Column("w", "bit", length=12), pa.binary(), st.binary(min_size=2, max_size=2)),
    (Column("x", "vector"), pa.list_(pa.float32()), st.lists(st.floats(width=32, allow_nan=False), max_size=4)),
)
ROWS = st.lists(st.tuples(*(st.none() | values for _, _, values in COLUMNS)), max_size=20)


def batch_of(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    arrays = [pa.array([row[n] for row in rows], kind) for n, (_, kind, _) in enumerate(COLUMNS)]
    return pa.RecordBatch.from_arrays(arrays, [c.name for c, _, _ in COLUMNS])


def laid_out(column: Column, text: str | None, raw: Any) -> bytes:
    """One field, by the table in `cdc.source.digests`."""
    is_bytes = column.type == "varbinary" or column is TEXT
    is_hashed = column.type == "vector" or column.charset == "latin1"
    if text is None:
        return b"-" if is_bytes or is_hashed else b"-,"
    if is_hashed:
        return hashlib.sha256(text.encode()).hexdigest().encode()
    if is_bytes:
        data = raw if isinstance(raw, bytes) else text.encode()
        return b"%d:" % len(data) + (hashlib.sha256(data).hexdigest().encode() if len(data) > 1024 else data)
    return text.encode() + b","


@settings(deadline=None)
@given(ROWS)
def test_texts_are_those_of_the_oracle(rows: list[tuple[Any, ...]]) -> None:
    batch = batch_of(rows)
    for column, _, _ in COLUMNS:
        array = batch.column(column.name)
        assert canonical.texts(column, array).equals(reference.texts(column, array)), column
        part = array.slice(len(array) // 3)
        assert canonical.texts(column, part).equals(reference.texts(column, part)), column


@settings(deadline=None)
@given(ROWS, st.integers(0, 32))
def test_a_digest_is_of_the_fields_of_its_row(rows: list[tuple[Any, ...]], bits: int) -> None:
    batch, columns = batch_of(rows), [c for c, _, _ in COLUMNS]
    texts = [reference.texts(c, batch.column(c.name)).to_pylist() for c in columns]
    expected = [
        b"".join(laid_out(c, texts[n][row], batch.column(c.name)[row].as_py()) for n, c in enumerate(columns))
        for row in range(len(rows))
    ]
    assert digests.digests(columns, batch).to_pylist() == [hashlib.sha256(row).digest()[:16] for row in expected]
    buckets = [zlib.crc32(row) & ((1 << bits) - 1) for row in expected]
    assert digests.buckets(columns, batch, bits=bits).to_pylist() == buckets
    part = batch.slice(len(rows) // 3)
    assert digests.digests(columns, part).equals(digests.digests(columns, batch).slice(len(rows) // 3))


def bytes_of(found: Any) -> bytes:
    return bytes(found[0].as_py())


def array_of(made: Any) -> Any:
    return pa.array(made)


def one(column: Column, value: Any, kind: Any = None, unfit: dict[str, str] | None = None) -> bytes:
    batch = pa.RecordBatch.from_arrays([pa.array([value], kind or column.arrow_type)], [column.name])
    kept = None if unfit is None else pa.array([unfit], pa.map_(pa.string(), pa.string()))
    return bytes_of(digests.digests([column], batch, kept))


def test_rows_that_differ_are_never_laid_out_alike() -> None:
    """Pairs that a careless layout would take for the same."""
    a, b = Column("a", "text", charset="utf8mb4"), Column("b", "text", charset="utf8mb4")

    def pair(one: str | None, other: str | None) -> bytes:
        batch = pa.RecordBatch.from_arrays([pa.array([one], pa.string()), pa.array([other], pa.string())], ["a", "b"])
        return bytes_of(digests.digests([a, b], batch))

    rows = [
        ("ab", "c"),
        ("a", "bc"),
        ("", "abc"),
        ("abc", ""),
        (None, "abc"),
        ("-", "abc"),
        ("abc", None),
        (None, None),
    ]
    rows += [
        ("", ""),
        ("-", ""),
        ("", "-"),
        ("1:a", "b"),
        ("1:a1:b", None),
        ("a\0", ""),
        ("a", "\0"),
        ("a ", ""),
        ("a", " "),
    ]
    assert len({pair(*row) for row in rows}) == len(rows)


def test_the_same_value_has_one_digest_whatever_type_an_override_gave_it() -> None:
    assert one(Column("c", "tinyint"), True, pa.bool_()) == one(Column("c", "tinyint"), 1)
    for column, value in (
        (Column("c", "double"), -0.0),
        (Column("c", "decimal", precision=9, scale=4), Decimal("-0.0500")),
        (Column("c", "varbinary"), b"\x00\xffa,"),
        (Column("c", "geometry"), b"\x00" * 2000),
        (Column("c", "bit", length=9), b"\x01\xff"),
        (Column("c", "time"), -1),
        (Column("c", "vector"), [0.5, -1.0]),
        (Column("c", "date"), datetime.date(2024, 2, 29)),
    ):
        text: Any = canonical.texts(column, pa.array([value], column.arrow_type))[0].as_py()
        assert one(column, text, pa.string()) == one(column, value), column.type


def test_texts_that_the_source_cannot_have_are_unlike_those_it_has() -> None:
    number, data = Column("c", "int"), Column("c", "varbinary")
    assert len({one(number, t, pa.string()) for t in ("-", "1,", "1", "!1:1", None, "")}) == 6
    assert one(data, "zz", pa.string()) != one(data, b"zz")
    assert one(data, "0a", pa.string()) != one(data, b"\x0a")
    assert one(data, "A", pa.string()) != one(data, b"\x0a")


def test_signs_of_zero_and_blanks_and_letters_count() -> None:
    assert one(Column("c", "double"), 0.0) != one(Column("c", "double"), -0.0)
    assert len({one(TEXT, t) for t in ("a", "A", "a ", "\u00e1", "a\u0301")}) == 5
    long = "x" * 1024
    assert len({one(TEXT, t) for t in (long, f"{long}x", f"{long}y")}) == 3


def test_what_did_not_fit_is_a_part_of_the_row() -> None:
    day, text = Column("c", "date"), Column("c", "text", charset="sjis")
    zero = one(day, None, unfit={"c": "0000-00-00"})
    assert zero == one(day, "0000-00-00", pa.string())
    assert len({zero, one(day, None), one(day, None, unfit={"c": "2024-02-31"}), one(day, None, unfit={"d": "x"})}) == 3
    assert one(text, None, unfit={"c": "81AD"}) == one(text, "81AD")
    # A value that is there wins.
    assert one(day, datetime.date(1, 1, 1), unfit={"c": "x"}) == one(day, datetime.date(1, 1, 1))


def test_arguments_that_do_not_belong_together_are_refused() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2])], ["a"])
    with pytest.raises(ValueError, match="2 kinds of 1 columns"):
        _native.row_digests(batch, ["plain", "plain"])
    with pytest.raises(ValueError, match="no such kind: odd"):
        _native.row_digests(batch, ["odd"])
    with pytest.raises(ValueError, match="column a: Int64 has no bytes"):
        _native.row_digests(batch, ["bytes"])
    with pytest.raises(ValueError, match="of other rows"):
        _native.row_digests(batch, ["plain"], pa.nulls(1, pa.map_(pa.string(), pa.string())))
    with pytest.raises(TypeError, match="a map of texts"):
        _native.row_digests(batch, ["plain"], pa.array([1, 2]))
    with pytest.raises(TypeError, match="no text is known of Date64"):
        _native.texts(pa.array([1], pa.date64()))
    with pytest.raises(TypeError, match="Arrow array"):
        _native.texts([1])  # type: ignore[arg-type]


KEYS = (
    (pa.int64(), st.integers(-5, 5)),
    (pa.decimal128(20, 0), st.integers(0, 5).map(Decimal)),
    (pa.string(), st.text("aAé", max_size=3)),
    (pa.binary(), st.binary(max_size=2)),
    (pa.timestamp("us", tz="UTC"), st.integers(-2, 2)),
    (pa.date32(), st.integers(-2, 2)),
    (pa.bool_(), st.booleans()),
)


@settings(deadline=None)
@given(st.data())
def test_chunks_are_found_as_by_sorting(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))
    rows = st.lists(st.tuples(*(values for _, values in kinds)), max_size=30)

    def ordered(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(v.encode() if isinstance(v, str) else v for v in row)

    keys, bounds = data.draw(rows), sorted(data.draw(rows), key=ordered)

    def table(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
        arrays = [pa.array([row[n] for row in rows], kind) for n, (kind, _) in enumerate(kinds)]
        return pa.RecordBatch.from_arrays(arrays, [str(n) for n in range(len(kinds))])

    found = array_of(_native.chunk_of(table(keys), table(bounds)))
    assert found.type == pa.uint32()
    assert found.to_pylist() == [sum(ordered(b) <= ordered(key) for b in bounds) for key in keys]


def test_chunks_of_keys_that_cannot_be_ordered_are_refused() -> None:
    keys = pa.RecordBatch.from_arrays([pa.array([1, None])], ["a"])
    with pytest.raises(ValueError, match="a key that is null"):
        _native.chunk_of(keys, keys.slice(0, 0))
    with pytest.raises(ValueError, match="other types"):
        _native.chunk_of(keys.slice(0, 1), pa.RecordBatch.from_arrays([pa.array(["1"])], ["a"]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 4))))
def test_sums_are_of_both_halves(rows: list[tuple[bytes, int]]) -> None:
    found = array_of(
        _native.sums(pa.array([r[0] for r in rows], pa.binary(16)), pa.array([r[1] for r in rows], pa.uint32()), 5)
    )
    for chunk, entry in enumerate(found.to_pylist()):
        own = [digest for digest, n in rows if n == chunk]
        assert entry["rows"] == len(own)
        assert int(entry["high"]) == sum(int.from_bytes(d[:8]) for d in own)
        assert int(entry["low"]) == sum(int.from_bytes(d[8:]) for d in own)


def test_sums_of_a_chunk_that_is_none_are_refused() -> None:
    digest = pa.array([bytes(16)], pa.binary(16))
    with pytest.raises(ValueError, match="chunk 3 of 3"):
        _native.sums(digest, pa.array([3], pa.uint32()), 3)
    with pytest.raises(ValueError, match="one for each"):
        _native.sums(digest, pa.array([], pa.uint32()), 3)


@pytest.mark.parametrize("mariadb", [False, True])
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_expressions_quote_the_column(kind: str, mariadb: bool) -> None:
    column = Column("a`b", kind, length=9, precision=10, charset="gbk")
    assert "`a``b`" in digests.digest_expression([column], mariadb=mariadb)


def test_a_fixed_column_is_a_constant() -> None:
    sql = digests.digest_expression([Column("shard", "text", charset="utf8mb4")], fixed={"shard": "it's"})
    assert "`shard`" not in sql
    assert "X'" + b"4:it's".hex() + "'" in sql
