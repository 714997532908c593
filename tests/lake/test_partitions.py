"""Partitioned tables: first readings, keys in partitions, other partitions by a resync, as readers that are not ours see them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc import unfit
from cdc.epoch import Counts
from cdc.errors import LakeDamagedError, LakeOccupiedError, TableStoppedError
from cdc.lake import LakeTable, Layout, Snapshot, deltalog, partition, sorting
from cdc.lake.columns import lake_columns
from cdc.lake.snapshot import decoded
from cdc.schema import Column, TableSchema
from tests.integration import lake_rows
from tests.integration.lake_rows import TABLE, Row, applied, content, disk, same, table_of, upsert

READERS = [
    pytest.param(lake_rows.read_deltalake, id="deltalake"),
    pytest.param(lake_rows.read_polars, id="polars"),
    pytest.param(lake_rows.read_chdb, id="clickhouse"),
]
Reader = Callable[..., pa.Table]
UTF8 = "utf8mb4"
SCHEMA = TableSchema(
    (
        Column("id", "bigint"),
        Column("region", "text", charset=UTF8),
        Column("kind", "enum", charset=UTF8, members=("a", "b")),
        Column("flag", "bit", length=1),
        Column("number", "smallint"),
        Column("day", "date"),
        Column("local", "datetime", scale=6),
        Column("moment", "timestamp", scale=6),
        Column("note", "text", charset=UTF8),
    ),
    ("id",),
)
PARTITIONS = [
    ("region",),
    ("kind", "flag"),
    ("number", "day"),
    ("year(day)", "month(local)"),
    ("hour(moment)", "region"),
    ("day(moment)", "day(local)"),
]
REGIONS = [
    "north",
    "",
    None,
    "so/uth",
    "a=b c",
    "%41",
    "…ж🦆",
    "null",
    "__HIVE_DEFAULT_PARTITION__",
    "x" * 200,
    "ж" * 40,
    ".",
    " ",
]


def row(number: int, turn: int = 0) -> Row:
    """A row, with NULLs now and then."""
    n = number * 7 + turn
    at = datetime.datetime(2024, 12, 31, 22, 30) + datetime.timedelta(hours=n % 5, days=30 * (n % 3))  # noqa: DTZ001
    values = (
        REGIONS[n % len(REGIONS)],
        ("a", "b", "")[n % 3],
        n % 2 == 0,
        n % 4 - 2,
        at.date(),
        at,
        at.replace(tzinfo=datetime.UTC),
        f"note {n}",
    )
    return (number, *(None if n % 11 == i else value for i, value in enumerate(values)))


def wanted(rows: list[Row], partition_by: tuple[str, ...]) -> list[Row]:
    """As readers see them: Delta has no empty values of partitions, and some have no folder."""
    lost = {"", "__HIVE_DEFAULT_PARTITION__", "x" * 200, "ж" * 40}
    places = [i for i, name in enumerate(SCHEMA.names) if name in partition_by]
    return [tuple(None if i in places and v in lost else v for i, v in enumerate(r)) for r in rows]


def first_reading(
    lake: LakeTable, rows: list[Row], layout: Layout, scratch: Path, on: Snapshot | None = None
) -> Snapshot:
    """As a bootstrap writes them: in two batches."""
    named: list[str] = []
    table, half = table_of(rows, SCHEMA.arrow), len(rows) // 2
    batches = [*table.slice(0, half).to_batches(), *table.slice(half).to_batches()]
    files = lake.write_files(batches, SCHEMA, layout, named.append, ts_ms=1000, seq=10, scratch=scratch)
    assert {f.name for f in files} <= set(named)
    return lake.bootstrap(files, SCHEMA, layout, applied(1 if on is None else on.version + 2), on, Counts())


def check(lake: LakeTable, snapshot: Snapshot, rows: list[Row], partition_by: tuple[str, ...], reader: Reader) -> None:
    """The source's columns, by a reader; and the units of time are those of their columns."""
    expected = table_of(wanted(rows, partition_by), SCHEMA.arrow)
    found = reader(disk(lake), snapshot.version)
    assert same(found, SCHEMA.arrow) == same(expected, SCHEMA.arrow)
    columns = lake_columns(SCHEMA, snapshot.layout)
    units = pa.schema(partition.derived(partition_by))
    if len(units):
        made = partition.materialised(expected, partition_by).select(["id", *units.names])
        both = pa.schema([columns.field("id"), *units])
        assert same(found, both) == same(made, both)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("partition_by", PARTITIONS, ids=str)
def test_readers_see_every_state(reader: Reader, partition_by: tuple[str, ...], tmp_path: Path) -> None:
    """A first reading, and merges that move rows to other partitions, delete and insert."""
    lake = LakeTable(tmp_path / "lake", TABLE, "p")
    rows = {n: row(n) for n in range(60)}
    snapshot = first_reading(lake, list(rows.values()), Layout("upsert", partition_by), tmp_path)
    check(lake, snapshot, list(rows.values()), partition_by, reader)
    for turn in (1, 2):
        changed = {n: row(n, turn) for n in range(20 * turn, 20 * turn + 25)}
        gone = range(5 * turn, 5 * turn + 4)
        snapshot = upsert(lake, snapshot, list(changed.values()), [(n,) for n in gone])
        rows = {n: r for n, r in (rows | changed).items() if n not in gone}
    check(lake, snapshot, list(rows.values()), partition_by, reader)
    assert content(lake, snapshot) == sorted(wanted(list(rows.values()), partition_by))


def _stored(lake: LakeTable, path: str) -> list[str]:
    names: list[str] = pq.read_schema(disk(lake) / decoded(path)).names
    return names


def test_partition_columns_are_not_in_the_files(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    snapshot = first_reading(lake, [row(n) for n in range(30)], Layout("upsert", ("region", "month(local)")), tmp_path)
    snapshot = upsert(lake, snapshot, [row(n, 1) for n in range(30)])
    for path, file in snapshot.files.items():
        assert not {"region", "local_month"} & set(_stored(lake, path))
        assert set(file.partition or {}) == {"region", "local_month"}
    assert snapshot.metadata["partitionColumns"] == ["region", "local_month"]


def test_what_no_partition_can_have_is_kept_beside_the_row(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    rows = [row(n) for n in range(40)]
    first = [r for r in rows if r[1] not in ("", "x" * 200, "ж" * 40, "__HIVE_DEFAULT_PARTITION__")]
    snapshot = first_reading(lake, first, Layout("upsert", ("region",)), tmp_path)
    assert unfit.NAME not in pa.table(deltalake.DeltaTable(str(disk(lake))).scan()).column_names
    snapshot = upsert(lake, snapshot, rows)
    found = pa.table(deltalake.DeltaTable(str(disk(lake))).scan()).select(["id", "region", unfit.NAME]).to_pylist()
    said = {r["id"]: r["region"] if r["region"] is not None else dict(r[unfit.NAME] or []).get("region") for r in found}
    assert said == {r[0]: r[1] for r in rows}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    numbers=st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=80),
    partition_by=st.sampled_from(PARTITIONS),
    memory=st.integers(1, 20_000),
)
def test_a_first_reading_is_the_same_whatever_fits_into_memory(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], partition_by: tuple[str, ...], memory: int
) -> None:
    rows = [row(n) for n in numbers]
    root = tmp_path_factory.mktemp("lake")
    lake = LakeTable(root, TABLE, "p")
    whole, sorting.MEMORY = sorting.MEMORY, memory
    try:
        snapshot = first_reading(lake, rows, Layout("upsert", partition_by), root)
    finally:
        sorting.MEMORY = whole
    assert content(lake, snapshot) == sorted(wanted(rows, partition_by))
    with_unfit = sum("_cdc_unfit" in _stored(lake, path) for path in snapshot.files)
    folders = {path.rpartition("/")[0] for path in snapshot.files}
    assert len(snapshot.files) <= len(folders) + with_unfit, (
        "one file for each partition, one more for what does not fit"
    )


def test_an_unfinished_first_reading_is_no_one_elses_table(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    named: list[str] = []
    batches = table_of([row(n) for n in range(30)], SCHEMA.arrow).to_batches()
    lake.write_files(batches, SCHEMA, Layout("upsert", ("region",)), named.append, ts_ms=1, seq=1)
    assert lake.load() is None
    assert lake.discard(named) == len(named)
    assert not list(disk(lake).rglob("*.parquet"))
    (disk(lake) / "region=north" / "data.parquet").write_bytes(b"someone's")
    with pytest.raises(LakeOccupiedError):
        lake.load()


def test_files_that_a_commit_names_are_not_discarded(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    named: list[str] = []
    layout = Layout("upsert", ("region",))
    batches = table_of([row(n) for n in range(30)], SCHEMA.arrow).to_batches()
    files = lake.write_files(batches, SCHEMA, layout, named.append, ts_ms=1, seq=1)
    lake.bootstrap(files, SCHEMA, layout, applied(1), None, Counts())
    assert lake.discard(named) == 0


KEYED = TableSchema((Column("tenant", "text", charset=UTF8), Column("n", "int"), Column("v", "int")), ("n", "tenant"))


def test_a_key_may_tell_partitions_apart(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path / "lake", TABLE, "p", index=tmp_path / "index")
    layout = Layout("upsert", ("tenant",))
    snapshot = lake.create(KEYED, layout, applied(1), Counts())
    rows = {(f"t {n % 3}", n): (f"t {n % 3}", n, 0) for n in range(30)}
    snapshot = upsert(lake, snapshot, list(rows.values()))
    for turn in range(1, 4):
        changed = {(f"t {n % 4}", n): (f"t {n % 4}", n, turn) for n in range(turn, 30, 4)}
        gone = [(n, f"t {n % 3}") for n in range(turn, 30, 7) if (f"t {n % 3}", n) not in changed]
        if turn == 2:  # another process, which reads the keys of every partition anew
            lake = LakeTable(tmp_path / "lake", TABLE, "p")
        snapshot = upsert(lake, snapshot, list(changed.values()), gone)
        rows = {k: r for k, r in (rows | changed).items() if (k[1], k[0]) not in gone}
        assert content(lake, snapshot) == sorted(rows.values(), key=lambda r: (r[1], r[0]))


def test_a_key_that_can_be_in_no_partition_stops_the_table(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    snapshot = lake.create(KEYED, Layout("upsert", ("tenant",)), applied(1), Counts())
    with pytest.raises(TableStoppedError, match="tenant of the key"):
        upsert(lake, snapshot, [("", 1, 1), ("x", 2, 2)])
    assert lake.refresh(snapshot).version == snapshot.version
    assert not list(disk(lake).rglob("*.parquet"))


@pytest.mark.parametrize("reader", READERS)
def test_a_resync_gives_a_table_other_partitions(reader: Reader, tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    rows = [row(n) for n in range(30)]
    snapshot: Snapshot | None = None
    for by in ((), ("region",), ("month(local)", "kind"), ()):
        snapshot = first_reading(lake, rows, Layout("upsert", by), tmp_path, snapshot)
        check(lake, snapshot, rows, by, reader)
        snapshot = upsert(lake, snapshot, [row(3, 5)])
        check(lake, snapshot, [row(n, 5) if n == 3 else row(n) for n in range(30)], by, reader)


def test_readers_pass_over_partitions_that_cannot_have_what_is_asked_for(tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    layout = Layout("upsert", ("month(local)",))
    rows = [row(n) for n in range(60)]
    snapshot = first_reading(lake, rows, layout, tmp_path)
    table = deltalake.DeltaTable(str(disk(lake)))
    march = [r for r in rows if r[6] is not None and r[6] >= datetime.datetime(2025, 2, 1)]  # noqa: DTZ001
    assert 0 < len(march) < len(rows)
    assert pa.table(table.scan(predicate="local_month >= '2025-02'")).num_rows == len(march)
    uris: list[Any] = table.file_uris(file_pruning_predicate=[("local_month", ">=", "2025-02")])
    assert 0 < len(uris) < len(snapshot.files)


def test_a_partition_of_others_that_cannot_be_read_is_a_damaged_table(tmp_path: Path) -> None:
    lake, layout = LakeTable(tmp_path, TABLE, "p"), Layout(partition_by=("day",))
    batches = table_of([row(1)], SCHEMA.arrow).to_batches()
    files = lake.write_files(batches, SCHEMA, layout, lambda _: None, ts_ms=1, seq=1)
    snapshot = lake.bootstrap(files, SCHEMA, layout, applied(1), None, Counts(0, 0, 0))
    (file,) = snapshot.files.values()
    add = file.to_action() | {"partitionValues": {"day": "2026-01-01 00:00:00"}}
    theirs = deltalog.commit(lake.folder, snapshot, [{"remove": file.removed(1)}, {"add": add}])
    with pytest.raises(LakeDamagedError, match="day is no date32"):
        content(lake, theirs)
