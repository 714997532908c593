"""What `partition_by` may say, and what it may say of a table."""

from __future__ import annotations

import pytest

from cdc.errors import TableStoppedError
from cdc.partitioning import Term, check, parse, parse_all
from cdc.schema import Column, TableSchema

SCHEMA = TableSchema(
    (
        Column("id", "bigint"),
        Column("ubig", "bigint", unsigned=True),
        Column("country", "text", charset="utf8mb4"),
        Column("kind", "enum", charset="utf8mb4", members=("a",)),
        Column("amount", "decimal", precision=10, scale=2),
        Column("ratio", "double"),
        Column("raw", "varbinary"),
        Column("doc", "json"),
        Column("vec", "vector"),
        Column("flag", "bit", length=1),
        Column("day", "date"),
        Column("local", "datetime", scale=6),
        Column("moment", "timestamp", scale=6),
        Column("span", "time"),
        Column("since", "year"),
        Column("a/b", "int"),
        Column("größe", "int"),
        Column("y" * 66, "date"),
        Column("Day_Year", "int"),
    ),
    ("id",),
)


def test_an_entry_is_a_column_or_a_unit_of_one() -> None:
    assert parse("country") == Term("country")
    assert parse("month(created_at)") == Term("created_at", "month")
    assert parse(" Month ( created at ) ") == Term("created at", "month")
    assert parse("month(created_at)").name == "created_at_month"
    assert [str(t) for t in parse_all(["country", "DAY(c)"])] == ["country", "day(c)"]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["week(c)"], "there is no week"),
        (["(c)"], "there is no such function"),
        (["month(c"], "lacks a parenthesis"),
        (["month()"], "names no column"),
        ([" "], "write a column"),
        (["c", "c"], "c and c are the same column"),
        (["c_month", "month(c)"], "c_month and month(c) are the same column"),
        (["C", "c"], "C and c are the same column"),
    ],
)
def test_what_does_not_parse_is_refused_with_what_may_be_written(texts: list[str], says: str) -> None:
    with pytest.raises(ValueError) as found:
        parse_all(texts)
    assert says in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "id",
        "country",
        "kind",
        "flag",
        "day",
        "span",
        "since",
        "month(day)",
        "hour(local)",
        "year(moment)",
        "day(moment)",
    ],
)
def test_what_tells_partitions_apart_is_taken(text: str) -> None:
    check(SCHEMA, [text])


@pytest.mark.parametrize(
    ("text", "says", "way_out"),
    [
        ("contry", "contry, which does not exist", "did you mean country?"),
        ("month(nothing)", "nothing, which does not exist", "correct"),
        ("month(id)", "only DATE, DATETIME and TIMESTAMP", "correct"),
        ("hour(day)", "only DATETIME and TIMESTAMP", "correct"),
        ("local", "each microsecond", "month(local)"),
        ("moment", "each microsecond", "hour(moment)"),
        ("ubig", "ClickHouse", "types: {ubig: string}"),
        ("amount", "ClickHouse", "types: {amount: string}"),
        ("ratio", "only integers", "another"),
        ("raw", "only integers", "another"),
        ("vec", "only integers", "another"),
        ("doc", "JSON", "another"),
        ("a/b", "not every reader", "rename"),
        ("größe", "not every reader", "rename"),
        ("year(" + "y" * 66 + ")", "not every reader", "70 bytes"),
        ("year(day)", "has a column Day_Year", "exclude"),
        ("week(day)", "there is no week", "correct"),
    ],
)
def test_what_does_not_is_refused_with_the_way_out(text: str, says: str, way_out: str) -> None:
    with pytest.raises(TableStoppedError) as found:
        check(SCHEMA, [text])
    assert says in found.value.what
    assert way_out in found.value.hint


def test_types_are_those_of_the_lake() -> None:
    check(SCHEMA.with_overrides({"ubig": "string", "amount": "string"}), ["ubig", "amount"])
    with pytest.raises(TableStoppedError, match="units of time"):
        check(SCHEMA.with_overrides({"local": "string"}), ["day(local)"])
