"""Rows into partitions, and values as Delta writes them."""

from __future__ import annotations

import datetime
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc import unfit
from cdc.errors import TableStoppedError
from cdc.lake import partition
from cdc.partitioning import TYPES, Unit

UTC = datetime.UTC
FIRST, LAST = datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["", "a/b", "..", "a=b", "%41", "null", partition.NOTHING, "x" * 181, "ж" * 31, " ", "\x00"]
)
CELLS = {
    "number": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2)),
    "text": (pa.string(), TEXTS),
    "flag": (pa.bool_(), st.booleans()),
    "day": (pa.date32(), st.dates()),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Rows with a column of each type that partitions can have, in some chunks."""
    size = draw(st.integers(0, 12))
    columns: dict[str, Any] = {"id": pa.array(range(size), pa.int64())}
    for name, (kind, values) in CELLS.items():
        columns[name] = pa.array(draw(st.lists(st.none() | values, min_size=size, max_size=size)), kind)
    rows = pa.table(columns)
    at = draw(st.integers(0, size))
    return pa.concat_tables([rows.slice(0, at), rows.slice(at)])


@settings(deadline=None)
@given(
    st.lists(st.none() | st.datetimes(FIRST, LAST), max_size=8),
    st.sampled_from([pa.timestamp("us"), pa.timestamp("us", tz="UTC")]),
)
def test_times_are_cut_off_as_python_would(values: list[datetime.datetime | None], kind: pa.DataType) -> None:
    aware = [v and (v.replace(tzinfo=UTC) if kind != pa.timestamp("us") else v) for v in values]
    cut = {u: partition.cut(pa.chunked_array([pa.array(aware, kind)]), u).to_pylist() for u in TYPES}
    assert cut["year"] == [v and v.year for v in values]
    assert cut["month"] == [v and f"{v.year:04}-{v.month:02}" for v in values]
    assert cut["day"] == [v and v.date() for v in values]
    assert cut["hour"] == [v and f"{v.date().isoformat()}-{v.hour:02}" for v in values]


@given(st.lists(st.none() | st.dates(), max_size=8))
def test_dates_are_cut_off_as_python_would(values: list[datetime.date | None]) -> None:
    column = pa.chunked_array([pa.array(values, pa.date32())])
    assert partition.cut(column, "year").to_pylist() == [v and v.year for v in values]
    assert partition.cut(column, "month").to_pylist() == [v and v.isoformat()[:7] for v in values]
    assert partition.cut(column, "day").to_pylist() == values


@given(st.lists(st.datetimes(FIRST, LAST), min_size=2, max_size=2))
def test_what_is_cut_off_sorts_as_time_does(values: list[datetime.datetime]) -> None:
    units: tuple[Unit, ...] = ("year", "month", "day", "hour")
    for unit in units:
        first, second = partition.cut(
            pa.chunked_array([pa.array(sorted(values), pa.timestamp("us"))]), unit
        ).to_pylist()
        assert str(first).zfill(4) <= str(second).zfill(4)


def test_units_stand_before_what_does_not_fit_and_in_place_of_older_ones() -> None:
    rows = pa.table({"at": pa.array([datetime.date(2026, 3, 31), None]), unfit.NAME: pa.nulls(2, unfit.TYPE)})
    made = partition.materialised(rows, ["month(at)", "at", "year(at)"])
    assert made.column_names == ["at", "at_month", "at_year", unfit.NAME]
    assert made.column("at_month").to_pylist() == ["2026-03", None]
    later = made.set_column(0, "at", pa.chunked_array([[datetime.date(2027, 1, 1), None]]))
    again = partition.materialised(later, ["month(at)", "at", "year(at)"])
    assert again.column_names == made.column_names
    assert again.column("at_year").to_pylist() == [2027, None]
    assert [f.type for f in partition.derived(["month(at)", "at", "year(at)"])] == [pa.string(), pa.int32()]
    assert partition.names(["month(at)", "at"]) == ("at_month", "at")


@settings(deadline=None)
@given(tables(), st.lists(st.sampled_from(sorted(CELLS)), unique=True, min_size=1), st.booleans())
def test_rows_come_back_from_what_the_log_and_the_folders_say(rows: pa.Table, by: list[str], beside: bool) -> None:
    """As readers see it: each row with its values, what fits no partition in `_cdc_unfit`, and one portion for each partition."""
    if beside:
        rows = rows.append_column(unfit.FIELD, pa.array([[("other", "x")]] * rows.num_rows, unfit.TYPE))
    portions = list(partition.split(partition.fitted(rows, by, ["id"]), by))
    folders = [partition.folder(values) for values, _ in portions]
    assert len(set(folders)) == len(folders)
    found: dict[int, dict[str, Any]] = {}
    for (values, part), folder in zip(portions, folders, strict=True):
        ids: list[Any] = part.column("id").to_pylist()
        assert ids == sorted(ids), "rows of a partition stay in their order"
        assert ids
        assert list(values) == by
        assert not set(by) & set(part.column_names)
        assert _by_hive(folder) == dict(values), "the folders say what the log says"
        assert all(len(name.encode()) <= 255 for name in folder.split("/"))
        assert unquote(partition.logged(folder)) == folder
        read = {name: partition.read(text, rows.schema.field(name).type).as_py() for name, text in values.items()}
        found |= {row["id"]: row | read for row in part.to_pylist()}
    for row in rows.to_pylist():
        lost = {n: row[n] for n in by if isinstance(row[n], str) and not partition._can(row[n])}
        kept = dict(found[row["id"]].pop(unfit.NAME, None) or [])
        assert kept == lost | ({"other": "x"} if beside else {})
        row.pop(unfit.NAME, None)
        assert found[row["id"]] == row | dict.fromkeys(lost)


def _by_hive(folder: str) -> dict[str, str | None]:
    """What readers take from a folder's names."""
    pairs = (part.split("=", 1) for part in folder.rstrip("/").split("/"))
    return {name: None if text == partition.NOTHING else unquote(text) for name, text in pairs}


def test_a_table_without_partitions_is_one_portion() -> None:
    rows = pa.table({"id": [1, 2]})
    ((values, same),) = partition.split(rows, ())
    assert values == {}
    assert same is rows
    assert partition.folder(values) == ""
    assert partition.stored(rows.schema, ()) == rows.schema
    assert partition.stored(rows.schema, ["id"]).names == []


def test_a_text_that_no_partition_can_have_stops_a_table_that_has_it_in_its_key() -> None:
    rows = pa.table({"id": ["x", ""], "other": ["", "y"]})
    with pytest.raises(TableStoppedError, match="column id of the key") as found:
        partition.fitted(rows, ["id"], ["id"])
    assert "partition_by" in found.value.hint
    assert partition.fitted(rows, ["other"], ["id"]).column("other").to_pylist() == [None, "y"]


def test_many_columns_of_many_values_are_told_apart() -> None:
    """The product of the numbers of values is larger than 64 bits, and two rows differ where it would be cut off."""
    numbers = list(range(1024))
    rows = pa.table({"id": [*numbers, -1], "c0": [*numbers, 16]} | {f"c{i}": [*numbers, 0] for i in range(1, 7)})
    assert len(list(partition.split(rows, [f"c{i}" for i in range(7)]))) == 1025


def test_the_log_writes_values_as_the_protocol_has_them() -> None:
    def written(value: Any, kind: pa.DataType) -> str | None:
        return partition.written(pa.scalar(value, kind))

    assert written(True, pa.bool_()) == "true"
    assert written(-5, pa.int8()) == "-5"
    assert written(datetime.date(5, 1, 2), pa.date32()) == "0005-01-02"
    assert written(None, pa.date32()) is None
    assert written("", pa.string()) is None
    assert written("a b/ü", pa.string()) == "a b/ü"
    assert partition.folder({"a": "a b/ü", "c": None}) == f"a=a%20b%2F%C3%BC/c={partition.NOTHING}/"
    assert partition.logged("a=a%20b/part.parquet") == "a=a%2520b/part.parquet"


def test_what_needs_no_encoding_is_not_encoded() -> None:
    for text in ("north-west_1.0~x", "R&D (EU)!".replace(" ", ""), "a@b.c,d;e", "1+1", "$5", "it's"):
        folder = partition.folder({"c": text})
        assert folder == f"c={text}/"
        assert partition.logged(folder) == folder
        assert partition.is_plain(folder)
    for text in ("a b", "a/b", "é", "a:b", "a=b", "a*", "[a]", "a?", "a#b", "%", '"', "\\", "{", "|", "^", "`", "<"):
        assert not partition.is_plain(partition.folder({"c": text})), text
