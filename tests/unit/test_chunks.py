"""Parts cover every key once; bounds survive a progress record; statements bind values and nothing else."""

from __future__ import annotations

import datetime
import itertools
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pymysql
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc import unfit
from cdc.epoch import CommitRecord, Counts
from cdc.errors import TableStoppedError
from cdc.lake import DataFile, Layout
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position
from cdc.schema import Column, TableSchema
from cdc.source import canonical
from snapshot.chunks import Bound, Cell, Part, Walk, bound_from_json, bound_to_json
from snapshot.progress import FILE, Progress, Purpose

TABLE = TableName("shop", "orders")
ID = Column("id", "bigint", unsigned=True)
NAME = Column("name", "text", charset="utf8mb4")
COLOUR = Column("colour", "enum", charset="utf8mb4", members=("red", "green", "blue"))


def walk(*columns: Column, key: tuple[str, ...]) -> Walk:
    return Walk(TABLE, TableSchema(columns, key))


cells = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(), st.binary())


@given(st.one_of(st.none(), st.lists(cells, min_size=1).map(tuple)))
def test_a_bound_survives_a_progress_record(bound: Bound | None) -> None:
    text = orjson.dumps(bound_to_json(bound))
    assert bound_from_json(orjson.loads(text)) == bound


def test_a_table_without_a_key_is_stopped_with_its_way_out() -> None:
    with pytest.raises(TableStoppedError) as caught:
        walk(ID, key=())
    assert "mode: append" in caught.value.hint
    assert "shop.orders" in caught.value.where


def test_the_first_chunk_has_no_condition() -> None:
    sql, arguments = walk(NAME, ID, key=("id",)).select(None, None, 10)
    assert sql == "SELECT `name`, `id` FROM `shop`.`orders` FORCE INDEX (PRIMARY) ORDER BY `id` LIMIT %s"
    assert arguments == (10,)


def test_a_composite_key_goes_on_in_the_keys_order() -> None:
    sql, arguments = walk(ID, NAME, key=("name", "id")).select(("x", 5), None, 10)
    assert "WHERE ((`name` > %s) OR (`name` = %s AND `id` > %s)) ORDER BY `name`, `id`" in sql
    assert arguments == ("x", "x", 5, 10)


def test_a_part_ends_at_its_upper_bound() -> None:
    sql, arguments = walk(ID, key=("id",)).select((5,), (9,), 10)
    assert "WHERE ((`id` > %s)) AND ((`id` <= %s)) ORDER" in sql
    assert arguments == (5, 9, 10)


def test_an_upper_bound_is_compared_over_the_whole_key() -> None:
    sql, arguments = walk(ID, NAME, key=("name", "id")).select(None, ("x", 5), 10)
    assert "WHERE ((`name` < %s) OR (`name` = %s AND `id` <= %s)) ORDER BY `name`, `id`" in sql
    assert arguments == ("x", "x", 5, 10)


def test_a_bound_can_be_included() -> None:
    sql, arguments = walk(ID, NAME, key=("name", "id")).select(("x", 5), None, 10, after_included=True)
    assert "WHERE ((`name` > %s) OR (`name` = %s AND `id` >= %s)) ORDER" in sql
    assert arguments == ("x", "x", 5, 10)


def test_a_condition_of_the_users_stands_by_itself() -> None:
    sql, arguments = walk(ID, key=("id",)).select((5,), (9,), 10, where="a LIKE '5%' OR b -- all")
    assert sql % arguments == (
        "SELECT `id` FROM `shop`.`orders` FORCE INDEX (PRIMARY)"
        " WHERE ((`id` > 5)) AND ((`id` <= 9)) AND (\na LIKE '5%' OR b -- all\n) ORDER BY `id` LIMIT 10"
    )


@pytest.mark.parametrize(
    ("after", "included", "high", "members"),
    [(1, False, None, (2, 3)), (1, True, None, (1, 2, 3)), (None, False, 2, (0, 1, 2)), (None, False, 0, (0,)), (3, True, None, (3,))],
)  # fmt: skip
def test_an_enums_members_are_listed(
    after: int | None, included: bool, high: int | None, members: tuple[int, ...]
) -> None:
    low, top = (None if cell is None else (cell,) for cell in (after, high))
    sql, arguments = walk(COLOUR, key=("colour",)).select(low, top, 10, after_included=included)
    assert f"`colour` IN ({', '.join(['%s'] * len(members))})" in sql
    assert arguments == (*members, 10)


def test_an_enum_is_compared_by_index() -> None:
    sql, arguments = walk(ID, COLOUR, key=("colour",)).select((1,), None, 10)
    assert sql.startswith("SELECT `id`, `colour`, CAST(CAST(`colour` AS UNSIGNED) AS CHAR) FROM")
    assert "`colour` IN (%s, %s)" in sql
    assert arguments == (2, 3, 10)


def test_nothing_follows_the_last_member() -> None:
    sql, arguments = walk(COLOUR, ID, key=("colour", "id")).select((3, 8), None, 10)
    assert "((FALSE) OR (`colour` = %s AND `id` > %s))" in sql
    assert arguments == (3, 8, 10)


def test_a_percent_sign_in_a_name_is_not_a_place_for_a_value() -> None:
    columns = TableSchema((Column("a%s", "int"),), ("a%s",))
    sql, arguments = Walk(TableName("s%d", "t%"), columns).select((1,), None, 10)
    assert sql % arguments == (
        "SELECT `a%s` FROM `s%d`.`t%` FORCE INDEX (PRIMARY) WHERE ((`a%s` > 1)) ORDER BY `a%s` LIMIT 10"
    )


@pytest.mark.parametrize(
    ("column", "slot"),
    [
        (Column("k", "decimal", precision=20, scale=3), "CAST(%s AS DECIMAL(20, 3))"),
        (Column("k", "double"), "CAST(%s AS DOUBLE)"),
        (Column("k", "date"), "CAST(%s AS DATE)"),
        (Column("k", "datetime", scale=6), "CAST(%s AS DATETIME(6))"),
        (Column("k", "timestamp", scale=3), "CAST(%s AS DATETIME(3))"),
        (Column("k", "text", charset="utf8mb4"), "%s"),
    ],
)
def test_values_are_compared_as_their_type(column: Column, slot: str) -> None:
    sql, _ = walk(column, key=("k",)).select(("1",), None, 10)
    assert f"`k` > {slot}" in sql


def last(plan: Walk, **columns: Any) -> Bound:
    """The bound of a batch whose last row has these values; the row before has none."""
    arrays: list[Any] = [
        pa.array([None, value], plan.schema.arrow.field(name).type) for name, value in columns.items() if name[0] != "_"
    ]
    besides: list[Any] = [pa.array([None, value]) for name, value in columns.items() if name[0] == "_"]
    names = [plan["name"] for plan in plan.plans()]
    return plan.bound(pa.RecordBatch.from_arrays([*arrays, *besides], names=names))


def test_a_bound_is_the_rows_key_in_the_keys_order() -> None:
    binary = Column("b", "binary", length=2)
    plan = walk(NAME, COLOUR, binary, ID, key=("id", "colour", "b", "name"))
    found = last(plan, name="é", colour="green", b=b"\x00\xff", id=Decimal(2**64 - 1), _0=b"2")
    assert found == (2**64 - 1, 2, b"\x00\xff", "é")


@pytest.mark.parametrize(
    ("column", "value", "cell", "condition"),
    [
        (Column("k", "decimal", precision=20, scale=3), Decimal("-1.500"), "-1.500", "`k` > CAST('-1.500' AS DECIMAL(20, 3))"),
        (Column("k", "decimal", precision=65), "9" * 65, "9" * 65, f"`k` > CAST('{'9' * 65}' AS DECIMAL(65, 0))"),
        (Column("k", "double"), 1e22, "1e22", "`k` > CAST('1e22' AS DOUBLE)"),
        (Column("k", "float"), 0.5, "0.5", "`k` > CAST('0.5' AS DOUBLE)"),
        (Column("k", "date"), datetime.date(2024, 2, 29), "2024-02-29", "`k` > CAST('2024-02-29' AS DATE)"),
        (Column("k", "datetime", scale=3), datetime.datetime.fromisoformat("2024-02-29T01:02:03.5"), "2024-02-29 01:02:03.500000",
         "`k` > CAST('2024-02-29 01:02:03.500000' AS DATETIME(3))"),
        (Column("k", "time", scale=1), -1_500_000, "-00:00:01.500000", "`k` > CAST('-00:00:01.500000' AS TIME(1))"),
        (Column("k", "year"), 0, 0, "`k` > 0"),
        (Column("k", "bit", length=1), True, 1, "`k` > 1"),
        (Column("k", "bit", length=12), b"\x0f\xff", 4095, "`k` > 4095"),
        (Column("k", "uuid"), "a-b", "a-b", "`k` > 'a-b'"),
        (Column("k", "varbinary"), b"\x01", b"\x01", "`k` > _binary X'01'"),
    ],
    ids=lambda x: x.type if isinstance(x, Column) else "",
)  # fmt: skip
def test_a_bound_names_its_key_exactly(column: Column, value: object, cell: object, condition: str) -> None:
    plan = walk(column, ID, key=("k",))
    bound = last(plan, k=value, id=None)
    assert bound == (cell,)
    sql, arguments = plan.select(bound, None, 10)
    given = tuple(pymysql.converters.escape_item(argument, "utf8mb4") for argument in arguments)
    assert f"WHERE (({condition}))" in sql % given
    if column.type not in ("decimal", "double", "float"):
        text = Walk(TABLE, TableSchema(plan.schema.columns, ("k",), {"k": "string"}))
        (printed,) = canonical.texts(column, pa.array([value], column.arrow_type)).to_pylist()
        assert last(text, k=printed, id=None) == bound, "an override changes nothing"


LAKE_VALUES: list[tuple[Column, Cell, Cell]] = [
    (Column("k", "int"), -5, 7),
    (Column("k", "bigint"), 2**63 - 2, 2**63 - 1),
    (Column("k", "bigint", unsigned=True), 2**63, 2**64 - 1),
    (Column("k", "decimal", precision=38, scale=3), "-1.500", "9" * 35 + ".999"),
    (Column("k", "decimal", precision=50, scale=0), "1", "2"),
    (Column("k", "double"), "-1e22", "0.1"),
    (Column("k", "float"), "0.5", "1.100000023841858"),
    (Column("k", "date"), "2024-02-29", "9999-12-31"),
    (Column("k", "datetime", scale=6), "2024-02-29 01:02:03.000001", "9999-12-31 23:59:59.999999"),
    (Column("k", "timestamp", scale=6), "2024-02-29 01:02:03.000001", "2024-02-29 01:02:03.000002"),
    (Column("k", "time", scale=6), "-838:59:59.000001", "00:00:01.500000"),
    (Column("k", "year"), 0, 2155),
    (Column("k", "bit", length=1), 0, 1),
    (Column("k", "bit", length=12), 255, 4095),
    (Column("k", "varbinary"), b"", b"\xff"),
    (Column("k", "text", charset="utf8mb4"), "Z", "a"),
    (Column("k", "text", charset="cp932"), b"a", b"\xfa\x54"),
    (Column("k", "set", charset="latin1", members=("a", "b")), 1, 3),
]


@pytest.mark.parametrize(("column", "low", "high"), LAKE_VALUES, ids=lambda x: x.type if isinstance(x, Column) else "")
@pytest.mark.parametrize("override", [False, True])
def test_bounds_are_found_in_the_lake(column: Column, low: Cell, high: Cell, override: bool) -> None:
    """The range of a scan includes both ends, whatever the type; what is within excludes the lower and includes the upper one."""
    plan = Walk(TABLE, TableSchema((column, ID), ("k", "id"), {"k": "string"} if override else {}))
    kind = plan.schema.arrow_type(column)
    ends: list[Any] = [plan.lake_range((cell, 1), None)[0] for cell in (low, high)]
    if not override or column.type in ("text", "set"):
        assert ends[0] < ends[1]
    least, above = plan.lake_range((ends_of := (low, 1)), (high, 1))
    assert least == ends[0]
    assert above is None or above > ends[1]
    keys = pa.table({"k": pa.array([*ends, *ends], kind), "id": pa.array([1, 1, 2, 0], ID.arrow_type)})
    if not override or column.type in ("text", "set"):
        assert plan.within(keys, ends_of, (high, 1)).to_pylist() == [False, True, True, True]
        assert plan.within(keys, ends_of, None).to_pylist() == [False, True, True, True]
        assert plan.within(keys, None, (low, 1)).to_pylist() == [True, False, False, False]
    if override and column.type not in ("text", "set"):
        (printed,) = canonical.texts(
            column,
            pa.array([Walk(TABLE, TableSchema((column,), ("k",))).lake_range((low,), None)[0]], column.arrow_type),
        ).to_pylist()
        assert ends[0] == printed


@given(
    st.lists(
        st.tuples(st.text("aBc", max_size=2), st.integers(0, 3)), min_size=1, unique_by=lambda k: (k[0].lower(), k[1])
    )
)
def test_every_key_of_the_lake_is_within_some_chunk_whatever_the_servers_order(ends: list[tuple[str, int]]) -> None:
    plan = walk(NAME, Column("id", "int"), key=("name", "id"))
    assert not plan.ordered
    bounds: list[Bound | None] = [None, *sorted(ends, key=lambda k: (k[0].lower(), k[1])), None]
    names = ["", "B", "Ba", "a", "aB", "c", "cc", "x"]
    keys = pa.table(
        {"name": [n for n in names for _ in range(5)], "id": pa.array([*range(5)] * len(names), pa.int32())}
    )
    covered = [False] * keys.num_rows
    for after, high in itertools.pairwise(bounds):
        low, above = plan.lake_range(after, high)
        for n, inside in enumerate(plan.within(keys, after, high).to_pylist()):
            name = keys.column("name")[n].as_py()
            assert not inside or ((low is None or low <= name) and (above is None or name < above))
            covered[n] = covered[n] or bool(inside)
    assert all(covered)


def test_what_the_lake_has_as_text_is_not_in_the_servers_order() -> None:
    assert walk(ID, key=("id",)).ordered
    assert not walk(COLOUR, ID, key=("id", "colour")).ordered
    assert not Walk(TABLE, TableSchema((ID,), ("id",), {"id": "string"})).ordered


def test_sets_and_texts_with_several_codes_for_a_character_are_compared_as_they_are_stored() -> None:
    letters = Column("s", "set", charset="latin1", members=("a", "b"))
    japanese = Column("t", "text", charset="cp932")
    plan = walk(letters, japanese, key=("t", "s"))
    sql, arguments = plan.select(None, None, 10)
    assert sql.startswith("SELECT `s`, `t`, CAST(`t` AS BINARY), CAST(CAST(`s` AS UNSIGNED) AS CHAR) FROM")
    bound = last(plan, s="a,b", t="￢", _0=b"\xfa\x54", _1=b"3")
    assert bound == (b"\xfa\x54", 3)
    sql, arguments = plan.select(bound, None, 10)
    assert "(`t` > _cp932 x'fa54') OR (`t` = _cp932 x'fa54' AND CAST(`s` AS UNSIGNED) > %s)" in sql
    assert arguments == (3, 10)


def test_what_besides_the_tables_columns_was_selected_is_told_apart() -> None:
    plan = walk(COLOUR, key=("colour",))
    assert [p["name"] for p in plan.plans(also=2)] == ["colour", "+0", "+1", "+2"]
    columns: list[Any] = [pa.array(["red"]), pa.array([b"1"]), pa.array([b"x"]), pa.array([b"y"])]
    batch = pa.RecordBatch.from_arrays(columns, names=["colour", "+0", "+1", "+2"])
    assert plan.rows(batch).schema.names == ["colour"]
    assert [a.to_pylist() for a in plan.also(batch)] == [[b"x"], [b"y"]]
    batch = batch.append_column(unfit.FIELD, pa.array([{"colour": "x"}], unfit.TYPE))
    assert plan.rows(batch).schema.names == ["colour", unfit.NAME]
    assert [a.to_pylist() for a in plan.also(batch)] == [[b"x"], [b"y"]]


def test_floats_are_exact_as_text_too() -> None:
    plan = walk(ID, Column("f", "float"), key=("id",))
    assert plan.select(None, None, 1)[0].startswith("SELECT `id`, `f` FROM")
    assert plan.select(None, None, 1, text=True)[0].startswith("SELECT `id`, CAST(`f` AS DOUBLE) FROM")


# -- progress -----------------------------------------------------------------------------------------------------------


def purpose(**changes: Any) -> Purpose:
    position = Position(GtidSet({}), "3e11fa47-71ca-11e1-9e33-c80aa9429562", BinlogEnd("binlog.000001", 4))
    record = CommitRecord("log", 7, "ab", position, position, 5, 5000, 9, 1, {}, {}, 1, 1, **changes)
    return Purpose(record, TableSchema((ID,), ("id",)), Layout(), Counts(1, 2, 3), -1)


def test_progress_goes_on_where_it_was_left(tmp_path: Path) -> None:
    begun = Progress.begin(tmp_path / "p", purpose())
    begun.plan([Part(0, None, (b"\xff",)), Part(1, (b"\xff",), None)])
    begun.announce("a.parquet")
    begun.record(Part(0), (b"\x80",), False, [DataFile("a.parquet", 10, 2, "{}")])
    begun.announce("b.parquet")
    begun.close()

    resumed = Progress.resume(tmp_path / "p")
    assert resumed is not None
    assert resumed.purpose == purpose()
    assert resumed.planned
    assert [(o.part, o.at) for o in resumed.open_parts()] == [
        (Part(0, None, (b"\xff",)), (b"\x80",)),
        (Part(1, (b"\xff",), None), None),
    ]
    assert resumed.files() == [DataFile("a.parquet", 10, 2, "{}")]
    assert resumed.unfinished() == ["b.parquet"]
    resumed.forget_unfinished()
    resumed.record(Part(0), (b"\x80",), True, [])
    assert [o.part.number for o in resumed.open_parts()] == [1]
    assert resumed.unfinished() == []
    resumed.end()
    assert Progress.resume(tmp_path / "p") is None


def test_progress_begun_anew_forgets_what_was(tmp_path: Path) -> None:
    Progress.begin(tmp_path / "p", purpose()).close()
    anew = Progress.begin(tmp_path / "p", purpose(skipped=("x",)))
    assert not anew.planned
    anew.close()


def test_unreadable_progress_is_none(tmp_path: Path) -> None:
    Progress.begin(tmp_path / "p", purpose()).close()
    (tmp_path / "p" / FILE).write_bytes(b"no database" * 100)
    assert Progress.resume(tmp_path / "p") is None
    Progress.begin(tmp_path / "q", purpose()).close()
    db = sqlite3.connect(tmp_path / "q" / FILE)
    with db:
        db.execute("UPDATE purpose SET data = '{\"v\": 99}'")
    db.close()
    assert Progress.resume(tmp_path / "q") is None


def test_a_key_as_a_person_writes_it() -> None:
    schema = TableSchema(
        (
            Column("i", "int", unsigned=True),
            Column("t", "text", charset="latin1"),
            Column("b", "varbinary"),
            Column("e", "enum", charset="utf8mb4", members=("x", "y")),
            Column("s", "set", charset="utf8mb4", members=("p", "q", "r")),
            Column("d", "datetime", scale=3),
        ),
        ("i", "t", "b", "e", "s", "d"),
    )
    walk = Walk(TableName("a", "b"), schema)
    bound = walk.bound_of(["7", "ä", "00FF", "y", "p,r", "2024-01-02 03:04:05.500000"])
    assert bound == (7, "ä", b"\x00\xff", 2, 5, "2024-01-02 03:04:05.500000")
    (row,) = walk.keys_of([bound]).to_pylist()
    assert row == {
        "i": 7,
        "t": "ä",
        "b": b"\x00\xff",
        "e": "y",
        "s": "p,r",
        "d": datetime.datetime(2024, 1, 2, 3, 4, 5, 500000),  # noqa: DTZ001 - as the server has it
    }
    with pytest.raises(ValueError):
        walk.bound_of(["7", "ä", "00FF", "z", "p,r", ""])
    with pytest.raises(ValueError):
        walk.bound_of(["seven", "", "", "x", "", ""])
