"""Lake tables on a real disk, read back by readers that are not ours: deltalake, polars, ClickHouse."""

from __future__ import annotations

import decimal
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.epoch import Counts
from cdc.errors import (
    LakeConflictError,
    LakeDamagedError,
    LakeError,
    LakeOccupiedError,
    LakeUnknownError,
    TableStoppedError,
)
from cdc.lake import FoldCounts, Folded, LakeTable, Layout, MergeCounts, applied_everywhere, deltalog
from cdc.lake.columns import lake_columns
from cdc.lake.index import TableIndex
from cdc.lake.parquet import DataFile, new_name
from cdc.lake.points import Places
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from tests.integration import lake_rows
from tests.integration.lake_rows import (
    AFTER,
    BEFORE,
    EVERY_TYPE,
    SIMPLE,
    TABLE,
    Row,
    applied,
    bootstrap,
    collect,
    content,
    disk,
    every_type,
    folded,
    same,
    table_of,
    upsert,
    write_and_die,
)

READERS = [
    pytest.param(lake_rows.read_deltalake, id="deltalake"),
    pytest.param(lake_rows.read_polars, id="polars"),
    pytest.param(lake_rows.read_chdb, id="clickhouse"),
]
Reader = Callable[..., pa.Table]


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}


def named(rows: list[Row]) -> dict[int, str]:
    """Rows of `SIMPLE` by their key."""
    return {row[0]: row[1] for row in rows}


@pytest.fixture
def lake(tmp_path: Path) -> LakeTable:
    return LakeTable(tmp_path, TABLE, "p")


# -- readers of others -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[LakeTable, list[Row]]:
    """A table of every type, bootstrapped, changed and deleted from, with nulls."""
    lake = LakeTable(tmp_path_factory.mktemp("lake"), TABLE, "p")
    snapshot = bootstrap(lake, EVERY_TYPE, [every_type(key) for key in range(-50, 50)], files=3)
    nulls = tuple(60 if name == "big" else None for name in EVERY_TYPE.names)
    snapshot = upsert(
        lake, snapshot, [nulls, *(every_type(k, 2023) for k in range(45, 55))], [(k,) for k in range(-50, -40)]
    )
    rows = [every_type(k) for k in range(-40, 45)] + [every_type(k, 2023) for k in range(45, 55)] + [nulls]
    return lake, rows


@pytest.mark.parametrize("reader", READERS)
def test_other_readers_see_every_type_as_it_is(every: tuple[LakeTable, list[Row]], reader: Reader) -> None:
    lake, rows = every
    found = reader(lake.folder)
    assert found.column_names == [*EVERY_TYPE.names, "_cdc_ts_ms", "_cdc_seq"]
    assert same(found, EVERY_TYPE.arrow) == same(table_of(rows, EVERY_TYPE.arrow), EVERY_TYPE.arrow)


@pytest.mark.parametrize("reader", READERS)
def test_other_readers_travel_in_time(every: tuple[LakeTable, list[Row]], reader: Reader) -> None:
    lake, _ = every
    rows = [every_type(key) for key in range(-50, 50)]
    assert same(reader(lake.folder, 0), EVERY_TYPE.arrow) == same(table_of(rows, EVERY_TYPE.arrow), EVERY_TYPE.arrow)


@pytest.mark.parametrize("year", [1000, 9999])
@pytest.mark.parametrize("reader", READERS[:2])
def test_the_ends_of_time_are_kept(tmp_path: Path, reader: Reader, year: int) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    bootstrap(lake, EVERY_TYPE, [every_type(1, year)])
    expected = same(table_of([every_type(1, year)], EVERY_TYPE.arrow), EVERY_TYPE.arrow)
    assert same(reader(lake.folder), EVERY_TYPE.arrow) == expected


@pytest.mark.parametrize("reader", READERS)
def test_an_append_table_is_read_by_others(tmp_path: Path, reader: Reader) -> None:
    schema = TableSchema((Column("what", "text", charset="utf8mb4"),))
    lake = LakeTable(tmp_path, TABLE, "p")
    snapshot = lake.create(schema, Layout("append"), applied(1), Counts())
    columns = lake_columns(schema, Layout("append"))
    rows: list[Row] = []
    for epoch in range(2, 5):
        new = [("same", epoch, epoch, "insert", f"{lake_rows.UUID}:{epoch}/0.{i}") for i in range(3)]
        fold = FoldCounts(Counts(3, 0, 0), effective=3)
        snapshot = lake.append(snapshot, table_of(new, columns), applied(epoch), MergeCounts(fold, epoch))
        rows += new
    assert same(reader(lake.folder), columns) == same(table_of(rows, columns), columns)
    assert (snapshot.counts["inserted"], snapshot.totals["inserted"], snapshot.rows) == (3, 9, 9)


@pytest.mark.parametrize("reader", READERS)
def test_other_readers_read_our_checkpoints(tmp_path: Path, reader: Reader) -> None:
    lake = LakeTable(tmp_path, TABLE, "p", file_size=40_000)
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=3)
    for epoch in range(2, 12):
        snapshot = upsert(lake, snapshot, [(epoch, "new"), (1000 + epoch, "new")], [(50 + epoch,)])
    lake.checkpoint(snapshot)
    for version in range(snapshot.version):
        (disk(lake) / "_delta_log" / f"{version:020}.json").unlink()
    loaded = lake.load()
    assert loaded is not None
    expected = same(table_of(content(lake, loaded), SIMPLE.arrow), SIMPLE.arrow)
    assert len(expected) == snapshot.rows == 100
    assert same(reader(lake.folder), SIMPLE.arrow) == expected


def test_statistics_do_not_hide_rows_from_others(lake: LakeTable) -> None:
    """Bounds of strings are cut off: a reader that skips files by them must still find the longest and the oddest ones."""
    schema = TableSchema((Column("k", "text", charset="utf8mb4"),), ("k",))
    keys = ["", "a" * 31, "a" * 32, "a" * 33, "a" * 40 + "z", "é" * 50, "🦆" * 40, "\U0010ffff" * 40, "z" * 5000]
    snapshot = bootstrap(lake, schema, [(key,) for key in keys], files=len(keys))
    table = deltalake.DeltaTable(str(lake.folder))
    for key in keys:
        found = pa.table(table.scan(predicate=f"k = '{key}'"))
        assert found.column("k").to_pylist() == [key]
    # and our own pruning: every key is found, once
    snapshot = upsert(lake, snapshot, [(key,) for key in keys])
    assert snapshot.counts["replaced"] == len(keys)


# -- upserts -----------------------------------------------------------------------------------------------------------------


def test_effects_are_counted_and_summed(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    assert (snapshot.totals["logged"], snapshot.totals["live_after"]) == ([7, 8, 9], 100)
    snapshot = upsert(lake, snapshot, [(1, "x"), (2, "y"), (500, "z")], [(3,), (777,)])
    effects = ("inserted", "replaced", "removed", "absent", "live_before", "live_after")
    assert [snapshot.counts[name] for name in effects] == [1, 2, 1, 1, 100, 100]
    snapshot = upsert(lake, snapshot, [], [(1,), (2,)])
    assert [snapshot.counts[name] for name in effects] == [0, 0, 2, 0, 100, 98]
    assert [snapshot.totals[name] for name in effects] == [1, 2, 3, 1, 0, 98]
    assert snapshot.totals["rows_added"] - snapshot.totals["rows_deleted"] == 98
    assert snapshot.totals["logged"] == [7 + 3, 8, 9 + 4]


def test_a_merge_without_rows_moves_the_position(lake: LakeTable) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [], [], epoch=9)
    assert (snapshot.applied, snapshot.rows, len(snapshot.files)) == (applied(9), 100, 1)
    assert lake.load() is not None


def test_an_upsert_writes_one_file_and_deletes_by_vector(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    first = bootstrap(lake, SIMPLE, [(i, f"{i:0100}") for i in range(100)], files=4)
    second = upsert(lake, first, [(10, "x")], [(11,), (60,), (5000,)])
    assert set(first.files) < set(second.files)
    assert len(second.files) == 5
    assert sorted(file.deleted for file in second.files.values()) == [0, 0, 0, 1, 2]
    assert len(list((disk(lake) / "_dv").iterdir())) == 1
    third = upsert(lake, second, [], [(i,) for i in range(25)])
    # Nothing is left of the first file, and of the row that replaced one of it: both go, and no vector is written for them.
    assert len(third.files) == 3
    assert third.rows == 74
    actions = [json.loads(line) for line in (disk(lake) / "_delta_log" / f"{2:020}.json").read_text().splitlines()]
    removed = [a["remove"] for a in actions if "remove" in a]
    assert [("deletionVector" in remove) for remove in removed].count(True) == 1
    assert not [a for a in actions if "add" in a]


def test_a_key_given_twice_is_refused(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    with pytest.raises(LakeError, match="given twice"):
        upsert(lake, snapshot, [(1, "x"), (1, "y")])
    with pytest.raises(LakeError, match="given twice"):
        upsert(lake, snapshot, [(1, "x")], [(1,)])
    assert lake.load() == snapshot


def test_a_null_key_is_refused(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    for change in ([[(None, "x")], []], [[], [(None,)]]):
        with pytest.raises(LakeError, match="NULL"):
            upsert(lake, snapshot, *change)


@pytest.mark.parametrize("files", [1, 2])
def test_a_key_that_is_in_the_table_twice_is_noticed(lake: LakeTable, files: int) -> None:
    snapshot = bootstrap(lake, SIMPLE, [(1, "a"), (2, "b"), (1, "c"), (4, "d")], files=files)
    for key in (1, 2):
        with pytest.raises(LakeDamagedError, match="holds 1 keys more than once"):
            upsert(lake, snapshot, [(key, "x")])


def test_files_that_do_not_balance_with_the_effects_are_not_committed(
    lake: LakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(5, "x")])
    there = {path for path in disk(lake).rglob("*") if path.is_file()}
    locate = TableIndex.locate

    def finds_a_row_twice(index: TableIndex, keys: pa.Table) -> Places:
        found = locate(index, keys)
        return Places(found.paths, found.file, np.full_like(found.row, found.row[0]))

    monkeypatch.setattr(TableIndex, "locate", finds_a_row_twice)
    with pytest.raises(LakeError, match="do not balance"):
        upsert(lake, snapshot, [(1, "x"), (2, "y")])
    assert lake.load() == snapshot
    assert {path for path in disk(lake).rglob("*") if path.is_file()} == there


def test_rows_of_other_columns_are_refused(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    wrong = TableSchema((Column("id", "int"), SIMPLE.columns[1]), ("id",))
    change = folded(wrong, [(1, "x")], [], 2)
    with pytest.raises(LakeError, match="id is int32, not int64"):
        lake.upsert(snapshot, change, applied(2), MergeCounts(change.counts, 2))


@pytest.mark.parametrize(
    "key",
    [
        Column("k", "decimal", precision=20, scale=4),
        Column("k", "double"),
        Column("k", "varbinary"),
        Column("k", "date"),
        Column("k", "datetime"),
        Column("k", "timestamp"),
        Column("k", "bigint", unsigned=True),
        Column("k", "tinyint"),
        Column("k", "text", charset="utf8mb4"),
        Column("k", "float"),
        Column("k", "bit", length=12),
        Column("k", "time"),
        Column("k", "year"),
        Column("k", "set", charset="utf8mb4", members=("a",)),
    ],
    ids=lambda column: column.type,
)
def test_keys_of_every_type(lake: LakeTable, key: Column) -> None:
    schema = TableSchema((key, Column("v", "int")), ("k",))
    numbers = pa.array(range(100), pa.int64())
    values: Any
    match key.type:
        case "varbinary" | "bit":
            values = [bytes([i, 0, 255 - i]) for i in range(100)]
        case "text" | "set":
            values = [f"{'aA'[i % 2]}{i // 2}" + " " * (i % 3) for i in range(100)]
        case "date":
            values = numbers.cast(pa.int32()).cast(pa.date32()).to_pylist()
        case "decimal":
            values = [decimal.Decimal(i) / 4 for i in range(100)]
        case "double" | "float":
            values = [i / 3 - 7.1 for i in range(98)] + [0.0, -0.0]
        case _:
            values = numbers.cast(schema.arrow.field("k").type).to_pylist()
    snapshot = bootstrap(lake, schema, [(k, 0) for k in values], files=3)
    snapshot = upsert(lake, snapshot, [(k, 1) for k in values[50:]], [(k,) for k in values[:10]])
    assert [snapshot.counts[n] for n in ("inserted", "replaced", "removed", "absent")] == [0, 50, 10, 0]
    assert sorted(v for _, v in content(lake, snapshot)) == [0] * 40 + [1] * 50


TEXTS = st.sampled_from(["", "a", "A", "a ", "ab", "b", "é", "e\u0301", "🦆", "\x00", "a\x00b"])
KEYS = st.tuples(TEXTS, st.sampled_from([b"", b"\x00", b"a", b"ab"]), st.integers(0, 3))
ROUNDS = st.lists(
    st.tuples(st.dictionaries(KEYS, st.integers(0, 10**6), max_size=12), st.sets(KEYS, max_size=8)), max_size=8
)
COMPOSITE = TableSchema(
    (
        Column("v", "bigint"),
        Column("b", "varbinary"),
        Column("n", "smallint"),
        Column("t", "text", charset="utf8mb4"),
    ),
    ("t", "b", "n"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    start=st.dictionaries(KEYS, st.integers(0, 9), max_size=30), rounds=ROUNDS, file_size=st.sampled_from([400, 4000])
)
def test_a_table_is_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    start: dict[tuple[str, bytes, int], int],
    rounds: list[tuple[dict[tuple[str, bytes, int], int], set[tuple[str, bytes, int]]]],
    file_size: int,
) -> None:
    lake = LakeTable(tmp_path_factory.mktemp("model"), TABLE, "p", file_size=file_size)

    def row(key: tuple[str, bytes, int], value: int) -> Row:
        return value, key[1], key[2], key[0]

    model = dict(start)
    snapshot = bootstrap(lake, COMPOSITE, [row(*item) for item in model.items()], files=3)
    for upserts, others in rounds:
        deletes = others - set(upserts)
        inserted, removed = len(set(upserts) - set(model)), len(deletes & set(model))
        snapshot = upsert(lake, snapshot, [row(*item) for item in upserts.items()], list(deletes))
        model = {k: v for k, v in (model | upserts).items() if k not in deletes}
        effects = (inserted, len(upserts) - inserted, removed, len(deletes) - removed)
        assert tuple(snapshot.counts[n] for n in ("inserted", "replaced", "removed", "absent")) == effects
        assert snapshot.rows == len(model)
    expected = sorted(row(*item) for item in model.items())
    assert sorted(content(lake, snapshot)) == expected
    loaded = lake.load()
    assert loaded is not None
    assert sorted(content(lake, loaded)) == expected
    found: list[Any] = [tuple(r.values()) for batch in lake.keys(loaded) for r in batch.to_pylist()]
    assert sorted(found) == sorted(model)


@pytest.mark.slow
def test_random_keys_of_a_million_rows_take_seconds(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    count = 1_000_000
    rows = pa.table({"id": pa.array(range(count), pa.int64()), "name": [f"name {i}" for i in range(count)]})
    file = lake.write_file(rows.to_batches(), SIMPLE, ts_ms=1, seq=1)
    snapshot = lake.bootstrap([file], SIMPLE, Layout(), applied(1), None, Counts())
    ids = [i * 7919 % (count * 11 // 10) for i in range(10_000)]
    started = time.perf_counter()
    snapshot = upsert(lake, snapshot, [(i, "new") for i in ids])
    assert time.perf_counter() - started < 5
    assert snapshot.counts["inserted"] + snapshot.counts["replaced"] == 10_000


def test_wide_rows_make_short_row_groups(lake: LakeTable) -> None:
    from pyarrow import parquet as pq

    schema = TableSchema((Column("id", "int"), Column("blob", "varbinary")), ("id",))
    snapshot = bootstrap(lake, schema, [(i, os.urandom(1 << 20)) for i in range(150)])
    (file,) = snapshot.files.values()
    footer = pq.read_metadata(disk(lake) / file.path)
    assert (footer.num_row_groups, footer.num_rows) == (3, 150)


# -- reading -----------------------------------------------------------------------------------------------------------------


def test_scans_take_columns_and_ranges_of_keys(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p", file_size=1000)
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=4)

    def scan(*arguments: Any) -> list[Any]:
        rows = [tuple(r.values()) for batch in lake.scan(snapshot, *arguments) for r in batch.to_pylist()]
        return sorted(rows)

    assert scan(["name"], (10, 12)) == [("row 10",), ("row 11",)]
    assert scan(["id"], (None, 2)) == [(0,), (1,)]
    assert scan(["name", "id"], (98, None)) == [("row 98", 98), ("row 99", 99)]
    assert len(scan()[0]) == 4


def test_rows_are_read_by_their_keys(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p", file_size=1000)
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=4)
    found = lake.rows(snapshot, pa.table({"id": pa.array([5, 99, 1234, 50], pa.int64())}))
    assert set(found.column("name").to_pylist()) == {"row 5", "row 50", "row 99"}
    assert found.num_rows == 3
    assert found.schema == lake_columns(SIMPLE, Layout())


# -- damage ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "shorter", "torn"])
def test_damaged_data_files_are_named(lake: LakeTable, how: str) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    path = disk(lake) / next(iter(snapshot.files))
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-20] if how == "shorter" else data[:4] + bytes(len(data) - 8) + data[-4:])
    with pytest.raises(LakeDamagedError, match=path.name):
        upsert(lake, snapshot, [(1, "x")])
    with pytest.raises(LakeDamagedError, match=path.name):
        list(lake.scan(snapshot))
    loaded = lake.load()
    assert loaded is not None
    again = bootstrap(lake, SIMPLE, BEFORE)  # the way out that the error names
    assert len(content(lake, again)) == 100


def test_a_bootstrap_whose_file_went_away_is_not_committed(lake: LakeTable) -> None:
    file = lake.write_file(table_of(BEFORE, SIMPLE.arrow).to_batches(), SIMPLE, ts_ms=1, seq=1)
    assert DataFile.from_dict(json.loads(json.dumps(file.to_dict()))) == file
    (disk(lake) / file.name).unlink()
    with pytest.raises(LakeDamagedError, match="is missing"):
        lake.bootstrap([file], SIMPLE, Layout(), applied(1), None, Counts())
    assert lake.load() is None


# -- whose folder it is ------------------------------------------------------------------------------------------------------


def test_a_folder_of_someone_else_is_refused(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    disk(lake).mkdir(parents=True)
    assert lake.load() is None
    (disk(lake) / "report.txt").write_text("mine")
    with pytest.raises(LakeOccupiedError, match="no Delta table"):
        lake.load()
    (disk(lake) / "report.txt").unlink()
    deltalake.write_deltalake(str(lake.folder), pa.table({"id": [1]}))
    with pytest.raises(LakeOccupiedError, match="someone else"):
        lake.load()


def test_a_table_of_another_pipeline_is_refused(lake: LakeTable, tmp_path: Path) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    other = LakeTable(tmp_path, TABLE, "q")
    with pytest.raises(LakeOccupiedError, match="pipeline p"):
        other.load()
    with pytest.raises(LakeOccupiedError):
        other.refresh(snapshot.__class__(**{**vars_of(snapshot), "version": 0, "tail": None}))


def vars_of(snapshot: Any) -> dict[str, Any]:
    """A dataclass's fields."""
    return {name: getattr(snapshot, name) for name in snapshot.__dataclass_fields__}


@pytest.mark.parametrize("name", ["_CDC_seq", "_cdc_Unfit"])
def test_a_column_with_a_name_of_ours_stops_the_table(lake: LakeTable, name: str) -> None:
    schema = TableSchema((Column("id", "int"), Column(name, "int")), ("id",))
    with pytest.raises(TableStoppedError, match=name):
        lake.create(schema, Layout(), applied(1), Counts())


def test_a_table_without_a_key_is_not_upserted_into(lake: LakeTable) -> None:
    with pytest.raises(LakeError, match="without a key") as found:
        lake.create(TableSchema((Column("id", "int"),)), Layout(), applied(1), Counts())
    assert "mode append" in found.value.hint


# -- other writers -----------------------------------------------------------------------------------------------------------


def test_the_second_of_two_mergers_loses_and_leaves_nothing(lake: LakeTable, tmp_path: Path) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    other = LakeTable(tmp_path, TABLE, "p")
    won = upsert(lake, snapshot, [(1, "first")])
    files = names(disk(lake))
    with pytest.raises(LakeConflictError):
        upsert(other, snapshot, [(1, "second")])
    assert names(disk(lake)) == files
    assert other.refresh(snapshot).applied == won.applied
    assert content(other, other.refresh(snapshot))[1] == (1, "first")


def test_other_writers_changes_are_followed(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p", file_size=1000)
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=4)
    snapshot = upsert(lake, snapshot, [(1, "x")])
    table = deltalake.DeltaTable(str(lake.folder))
    table.optimize.compact()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    compacted = lake.refresh(snapshot)
    assert compacted.version > snapshot.version
    assert (len(compacted.files), compacted.applied) == (1, snapshot.applied)
    after = upsert(lake, compacted, [(2, "y"), (500, "z")], [(3,)])
    expected = named(BEFORE) | {1: "x", 2: "y", 500: "z"}
    del expected[3]
    assert named(content(lake, after)) == expected
    assert after.counts["foreign"] == 0
    table = deltalake.DeltaTable(str(lake.folder))
    table.delete("id >= 90")
    more = lake.refresh(after)
    assert more.rows == 90 - 1
    final = upsert(lake, more, [(95, "again")])
    assert (final.counts["inserted"], final.counts["foreign"]) == (1, -11)
    assert named(content(lake, final)) == {k: v for k, v in expected.items() if k < 90} | {95: "again"}
    assert same(lake_rows.read_deltalake(lake.folder), SIMPLE.arrow) == same(
        table_of(content(lake, final), SIMPLE.arrow), SIMPLE.arrow
    )


def test_a_schema_that_others_changed_stops_us(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    table = deltalake.DeltaTable(str(lake.folder))
    table.alter.add_columns([deltalake.Field("extra", deltalake.schema.PrimitiveType("string"))])
    changed = lake.refresh(snapshot)
    with pytest.raises(LakeError, match="others changed the table: the columns") as found:
        upsert(lake, changed, [(1, "x")])
    assert "resync" in found.value.hint
    again = bootstrap(lake, SIMPLE, BEFORE, epoch=2)
    assert named(content(lake, upsert(lake, again, [(1, "x")])))[1] == "x"
    assert deltalake.DeltaTable(str(lake.folder)).schema().fields[-1].name == "_cdc_seq"


def test_a_property_that_binds_writers_stops_us(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    deltalake.DeltaTable(str(lake.folder)).alter.set_table_properties({"delta.appendOnly": "true"})
    changed = lake.refresh(snapshot)
    with pytest.raises(LakeError, match="rows of it may not be changed"):
        upsert(lake, changed, [(1, "x")])


# -- bootstrapped anew ---------------------------------------------------------------------------------------------------------


def test_a_resync_replaces_every_file_in_one_commit_and_may_change_the_schema(lake: LakeTable) -> None:
    first = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    wider = TableSchema((*SIMPLE.columns, Column("at", "datetime")), ("id",))
    second = bootstrap(lake, wider, [(1, "new", None)], epoch=5)
    assert (second.version, second.rows, second.schema, second.applied) == (2, 1, wider, applied(5))
    assert not set(first.files) & set(second.files)
    assert second.protocol["writerFeatures"] == ["deletionVectors", "timestampNtz"]
    assert second.metadata["id"] == first.metadata["id"]
    assert (second.counts["rows_deleted"], second.totals["rows_added"], second.totals["live_after"]) == (100, 1, 1)
    assert second.totals["logged"] == [7, 8, 9]
    assert lake_rows.read_deltalake(lake.folder).column_names == ["id", "name", "at", "_cdc_ts_ms", "_cdc_seq"]
    third = bootstrap(lake, SIMPLE, BEFORE, epoch=6)
    assert third.protocol == second.protocol
    assert len(lake_rows.read_polars(lake.folder)) == 100


def test_what_a_killed_bootstrap_wrote_can_be_discarded_and_live_files_cannot(lake: LakeTable) -> None:
    name = new_name()
    batches = table_of(BEFORE, SIMPLE.arrow).to_batches()
    disk(lake).mkdir(parents=True)
    (disk(lake) / name).write_bytes(b"half")
    file = lake.write_file(batches, SIMPLE, ts_ms=1, seq=1, name=name)
    assert file.name == name
    lost = lake.write_file(batches, SIMPLE, ts_ms=1, seq=1)
    snapshot = lake.bootstrap([file], SIMPLE, Layout(), applied(1), None, Counts())
    assert lake.discard([name, lost.name, "../../x", new_name()]) == 1
    assert names(disk(lake)) == {name, "_delta_log"}
    with pytest.raises(LakeError, match="is named by a commit"):
        lake.write_file(batches, SIMPLE, ts_ms=1, seq=1, name=name)
    assert len(content(lake, snapshot)) == 100


# -- maintenance -------------------------------------------------------------------------------------------------------------


def test_what_was_removed_long_ago_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    lake = LakeTable(tmp_path, TABLE, "p", clock=clock)
    snapshot = bootstrap(lake, SIMPLE, [(1, "a")])
    old = set(snapshot.files)
    snapshot = upsert(lake, snapshot, [(1, "x")])
    middle = set(snapshot.files)
    clock.us += 3_600_000_000
    snapshot = upsert(lake, snapshot, [(1, "y")])
    assert collect(lake, 7200)[0] == 0
    clock.us += 3_700_000_000
    assert collect(lake, 7200)[0] == 1
    there = names(disk(lake)) - {"_delta_log"}
    assert there == middle | set(snapshot.files)
    assert not old & there
    assert collect(lake, 7200)[0] == 0
    assert collect(lake, 0)[0] == 1
    assert content(lake, snapshot) == [(1, "y")]


def test_what_was_deleted_is_in_no_later_snapshot_or_checkpoint(tmp_path: Path) -> None:
    clock = Clock()
    lake = LakeTable(tmp_path, TABLE, "p", clock=clock)
    snapshot = bootstrap(lake, SIMPLE, [(1, "")])
    for value in "abcde":
        snapshot = lake.checkpoint(upsert(lake, snapshot, [(1, value)]))
        clock.us += 3_600_000_000
    deleted, snapshot = collect(lake, 7200)
    assert deleted == 3
    assert len(snapshot.tombstones) == 2
    assert snapshot.tombstones.keys() <= names(disk(lake))
    snapshot = lake.checkpoint(upsert(lake, snapshot, [(1, "f")]))
    loaded = lake.load()
    assert loaded is not None
    assert loaded.tombstones.keys() == snapshot.tombstones.keys()
    assert len(loaded.tombstones) == 3
    assert content(lake, loaded) == [(1, "f")]


def test_orphans_are_removed_and_nothing_that_is_named(tmp_path: Path) -> None:
    clock = Clock()
    lake = LakeTable(tmp_path, TABLE, "p", clock=clock)
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(1, "x")])
    named = names(disk(lake))
    orphan, kept = (lake.write_file(table_of(BEFORE, SIMPLE.arrow).to_batches(), SIMPLE, ts_ms=1, seq=1) for _ in "ab")
    (disk(lake) / "notes.txt").write_bytes(b"")
    assert collect(lake, 0, 3600)[0] == 0
    clock.us += 3_700_000_000
    assert collect(lake, 0, 3600, [kept.name])[0] == 1
    assert names(disk(lake)) == named | {kept.name, "notes.txt"}
    assert not (disk(lake) / orphan.name).exists()
    assert len(content(lake, snapshot)) == 100


# -- durable before acknowledged -----------------------------------------------------------------------------------------------


def test_everything_is_durable_in_order_before_the_commit_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = LakeTable(tmp_path / "new" / "lake", TABLE, "p")
    done: list[str] = []
    fsync, link = os.fsync, Path.hardlink_to

    def record_fsync(descriptor: int) -> None:
        done.append("fsync " + os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), tmp_path))
        fsync(descriptor)

    def record_link(self: Path, target: Path) -> None:
        done.append("link " + os.path.relpath(self, tmp_path))
        link(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "hardlink_to", record_link)
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    table, log = "new/lake/shop/orders", "new/lake/shop/orders/_delta_log"
    (commit,) = (i for i, what in enumerate(done) if what.startswith("link"))
    assert done[commit] == f"link {log}/{0:020}.json"
    data = done.index(f"fsync {table}/{next(iter(snapshot.files))}")
    folders = [done.index(f"fsync {folder}") for folder in (table, "new/lake/shop", "new/lake", "new")]
    # The folder's own fsync after `_delta_log` was made in it:
    made = len(done) - 1 - done[::-1].index(f"fsync {table}")
    temporary = next(i for i, what in enumerate(done) if what.endswith(".json.tmp"))
    assert data < folders[0] < folders[1] < folders[2] < folders[3] < made < temporary < commit
    assert f"fsync {log}" in done[commit:]
    mask = os.umask(0)
    os.umask(mask)
    for path in (*disk(lake).glob("*.parquet"), *(disk(lake) / "_delta_log").glob("*.json")):
        assert path.stat().st_mode & 0o777 == 0o640 & ~mask
    done.clear()
    upsert(lake, snapshot, [(1, "x")])
    assert "fsync new/lake/shop" not in done  # folders above were made durable once


def test_what_a_killed_writer_left_visible_is_made_durable_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_and_die(tmp_path, "bootstrap", "kill:lake.after-commit") == -signal.SIGKILL
    lake = LakeTable(tmp_path, TABLE, "p")
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    assert lake.load() is not None
    assert disk(lake) / "_delta_log" in synced


def test_a_folder_that_was_moved_away_is_made_durable_again(lake: LakeTable, tmp_path: Path) -> None:
    bootstrap(lake, SIMPLE, BEFORE)
    disk(lake).rename(tmp_path / "away")
    synced: list[Path] = []
    fsync = os.fsync
    with pytest.MonkeyPatch.context() as patch:

        def record(descriptor: int) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            fsync(descriptor)

        patch.setattr(os, "fsync", record)
        bootstrap(lake, SIMPLE, BEFORE)
    assert tmp_path / "shop" in synced


POINTS = ["lake.after-data-files", "lake.before-commit", "lake.after-commit"]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_in_a_bootstrap_leaves_no_table_or_all_of_it(tmp_path: Path, point: str) -> None:
    assert write_and_die(tmp_path, "bootstrap", f"kill:{point}") == -signal.SIGKILL
    lake = LakeTable(tmp_path, TABLE, "p")
    snapshot = lake.load()
    if point == "lake.after-commit":
        assert snapshot is not None
        assert content(lake, snapshot) == BEFORE
    else:
        assert snapshot is None
    assert write_and_die(tmp_path, "bootstrap,upsert", "") == 0
    after = lake.load()
    assert after is not None
    assert content(lake, after) == AFTER
    assert same(lake_rows.read_deltalake(lake.folder), SIMPLE.arrow) == same(
        table_of(AFTER, SIMPLE.arrow), SIMPLE.arrow
    )
    assert collect(lake, 3600, -1)[0] == {POINTS[0]: 1, POINTS[1]: 3, POINTS[2]: 1}[point]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_in_an_upsert_leaves_the_version_before_or_after(tmp_path: Path, point: str) -> None:
    assert write_and_die(tmp_path, "bootstrap", "") == 0
    assert write_and_die(tmp_path, "upsert", f"kill:{point}") == -signal.SIGKILL
    lake = LakeTable(tmp_path, TABLE, "p")
    snapshot = lake.load()
    assert snapshot is not None
    committed = point == "lake.after-commit"
    assert (snapshot.version, snapshot.applied) == ((1, applied(2)) if committed else (0, applied(1)))
    assert content(lake, snapshot) == (AFTER if committed else BEFORE)
    expected = same(table_of(AFTER if committed else BEFORE, SIMPLE.arrow), SIMPLE.arrow)
    assert same(lake_rows.read_polars(lake.folder), SIMPLE.arrow) == expected
    assert same(lake_rows.read_deltalake(lake.folder), SIMPLE.arrow) == expected


@pytest.mark.parametrize(
    ("point", "error", "version"),
    [
        ("lake.after-data-files", LakeError, 0),
        ("lake.before-commit", LakeError, 0),
        ("lake.after-commit", LakeUnknownError, 1),
    ],
)
def test_an_error_at_each_point_says_whether_the_outcome_is_known(
    lake: LakeTable, monkeypatch: pytest.MonkeyPatch, point: str, error: type[LakeError], version: int
) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    monkeypatch.setattr("cdc.faults._armed", {point: ("fail", 1.0)})
    monkeypatch.setattr("cdc.faults._counts", {point: 0})
    with pytest.raises(LakeError) as found:
        upsert(lake, snapshot, [(1, "x")])
    assert type(found.value) is error
    assert lake.refresh(snapshot).version == version
    assert len(list((disk(lake) / "_delta_log").glob("_commit_*"))) == version


def test_the_mutant_without_put_if_absent_loses_the_other_writers_commit(
    lake: LakeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    upsert(lake, snapshot, [(1, "first")])
    monkeypatch.setattr("cdc.faults._mutants", frozenset({"no_put_if_absent"}))
    upsert(LakeTable(tmp_path, TABLE, "p"), snapshot, [(2, "second")])
    loaded = lake.load()
    assert loaded is not None
    assert named(content(lake, loaded))[1] == "row 1"


# -- where a fresh log continues ----------------------------------------------------------------------------------------------


def test_applied_everywhere_knows_only_our_tables(tmp_path: Path) -> None:
    for name, epoch in (("orders", 3), ("Users & more", 5)):
        bootstrap(LakeTable(tmp_path, TableName("shop", name), "p"), SIMPLE, BEFORE, epoch=epoch)
    bootstrap(LakeTable(tmp_path, TableName("shop", "theirs"), "q"), SIMPLE, BEFORE, epoch=9)
    deltalake.write_deltalake(str(tmp_path / "shop" / "foreign"), pa.table({"id": [1]}))
    (tmp_path / "Not a name" / "x" / "_delta_log").mkdir(parents=True)
    assert applied_everywhere(tmp_path, "p") == {
        TableName("shop", "orders"): applied(3),
        TableName("shop", "Users & more"): applied(5),
    }
    assert applied_everywhere(tmp_path / "nothing", "p") == {}


def test_commits_of_a_table_are_listed_for_the_trace(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    upsert(lake, snapshot, [(1, "x")])
    found = list(deltalog.commits(lake.folder))
    assert [(c.version, c.info["kind"], c.info["first_epoch"], c.info["epoch"]) for c in found] == [
        (0, "bootstrap", 1, 1),
        (1, "merge", 2, 2),
    ]
    empty = Folded(
        lake_columns(SIMPLE, Layout()).empty_table(), SIMPLE.arrow.empty_table().select(["id"]), FoldCounts(Counts())
    )
    assert empty.upserts.num_rows == 0
