"""Delta tables that others wrote, taken over as they are: by deltalake and polars, and in the shapes that Spark writes."""

from __future__ import annotations

import datetime
import decimal
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, WriterProperties, write_deltalake

import cdc.lake.adopt as adopting
import cdc.lake.unique as uniqueness
from cdc.epoch import Counts
from cdc.errors import LakeConflictError, LakeDamagedError, LakeError, LakeOccupiedError
from cdc.lake import LakeTable, Snapshot
from cdc.lake.adopt import adopt, examine
from cdc.lake.unique import hashes, repeated
from cdc.schema import Column, TableSchema
from tests.integration import lake_rows
from tests.integration.lake_rows import (
    EVERY_TYPE,
    SIMPLE,
    TABLE,
    Row,
    applied,
    collect,
    content,
    disk,
    every_type,
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
ROWS: list[Row] = [(i, f"row {i}") for i in range(100)]


@pytest.fixture
def lake(tmp_path: Path) -> LakeTable:
    return LakeTable(tmp_path, TABLE, "p")


def by_deltalake(lake: LakeTable, rows: Sequence[Row] = ROWS, schema: TableSchema = SIMPLE, **options: Any) -> None:
    write_deltalake(str(lake.folder), table_of(rows, schema.arrow), **options)


def refused(lake: LakeTable, schema: TableSchema = SIMPLE) -> str:
    """Why the table is not adopted. It is as it was then."""
    before = sorted(path.name for path in disk(lake).rglob("*")) if disk(lake).exists() else []
    with pytest.raises(LakeError) as error:
        adopt(lake, schema, applied(1))
    assert error.value.hint
    assert before == (sorted(path.name for path in disk(lake).rglob("*")) if disk(lake).exists() else [])
    return error.value.what


# -- taken over --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_a_table_of_every_type_goes_on_as_ours(lake: LakeTable, reader: Callable[..., pa.Table]) -> None:
    rows = [every_type(key) for key in range(-50, 50)]
    by_deltalake(lake, rows[:60], EVERY_TYPE)
    by_deltalake(lake, rows[60:], EVERY_TYPE, mode="append")
    snapshot = adopt(lake, EVERY_TYPE, applied(7), Counts(1, 2, 3))
    assert snapshot == lake.load()
    assert snapshot.applied == applied(7)
    assert snapshot.rows == 100
    assert snapshot.totals["bootstrapped"] == snapshot.totals["live_after"] == 100
    assert snapshot.totals["logged"] == [1, 2, 3]
    assert content(lake, snapshot) == rows

    snapshot = upsert(lake, snapshot, [every_type(k, 2023) for k in range(45, 55)], [(k,) for k in range(-50, -40)])
    expected = [every_type(k) for k in range(-40, 45)] + [every_type(k, 2023) for k in range(45, 55)]
    found = reader(lake.folder)
    assert found.column_names == [*EVERY_TYPE.names, "_cdc_ts_ms", "_cdc_seq"]
    assert same(found, EVERY_TYPE.arrow) == same(table_of(expected, EVERY_TYPE.arrow), EVERY_TYPE.arrow)
    assert snapshot.totals["live_after"] == len(expected)
    assert snapshot.totals["foreign"] == 0
    assert same(reader(lake.folder, 1), EVERY_TYPE.arrow) == same(table_of(rows, EVERY_TYPE.arrow), EVERY_TYPE.arrow)


@pytest.mark.parametrize(
    "options",
    [
        {"writer_properties": WriterProperties(compression="SNAPPY", max_row_group_size=7)},
        {"writer_properties": WriterProperties(compression="UNCOMPRESSED", statistics_truncate_length=3)},
        {"configuration": {"delta.dataSkippingNumIndexedCols": "0"}},
        {"configuration": {"delta.logRetentionDuration": "interval 1 days", "delta.appendOnly": "false"}},
        {"target_file_size": 1000},
        {"name": "orders", "description": "what was ordered"},
    ],
    ids=["small-groups", "cut-statistics", "no-statistics", "properties", "many-files", "named"],
)
def test_tables_of_deltalake_however_they_were_written(lake: LakeTable, options: dict[str, Any]) -> None:
    by_deltalake(lake, ROWS[:50], **options)
    by_deltalake(lake, ROWS[50:], mode="append")
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert content(lake, snapshot) == ROWS
    snapshot = upsert(lake, snapshot, [(50, "new"), (1000, "more")], [(3,), (99,)])
    expected = [row for row in ROWS if row[0] not in (3, 50, 99)] + [(50, "new"), (1000, "more")]
    assert content(lake, snapshot) == sorted(expected)
    assert sorted(
        zip(*lake_rows.read_deltalake(lake.folder).select([0, 1]).to_pydict().values(), strict=True)
    ) == sorted(expected)
    table = DeltaTable(str(lake.folder))
    assert table.metadata().name == options.get("name")
    for name, value in options.get("configuration", {}).items():
        assert table.metadata().configuration[name] == value


def test_a_table_with_a_history_of_others(lake: LakeTable) -> None:
    """Merges, deletes, an optimize, a checkpoint, and the log's beginning cleaned away."""
    by_deltalake(lake)
    table = DeltaTable(str(lake.folder))
    source = table_of([(5, "merged"), (200, "merged")], SIMPLE.arrow)
    table.merge(
        source, "t.id = s.id", source_alias="s", target_alias="t"
    ).when_matched_update_all().when_not_matched_insert_all().execute()
    table.delete("id < 5")
    table.optimize.compact()
    table.create_checkpoint()
    by_deltalake(lake, [(300, "later")], mode="append")
    for version in range(3):
        (disk(lake) / "_delta_log" / f"{version:020}.json").unlink()
    snapshot = adopt(lake, SIMPLE, applied(1))
    expected = [(5, "merged"), *ROWS[6:], (200, "merged"), (300, "later")]
    assert content(lake, snapshot) == expected
    snapshot = upsert(lake, snapshot, [(6, "ours")], [(300,)])
    assert content(lake, snapshot) == [(5, "merged"), (6, "ours"), *ROWS[7:], (200, "merged")]
    assert content(lake, lake.checkpoint(snapshot)) == content(lake, snapshot)


def test_the_checkpoint_that_a_cleaned_log_begins_with_stays(lake: LakeTable) -> None:
    for i in range(4):
        by_deltalake(lake, ROWS[i * 10 : i * 10 + 10], mode="append")
    DeltaTable(str(lake.folder)).create_checkpoint()
    for version in range(3):
        (disk(lake) / "_delta_log" / f"{version:020}.json").unlink()
    snapshot = adopt(lake, SIMPLE, applied(1))
    for _ in range(5):
        snapshot = lake.checkpoint(upsert(lake, snapshot, [(1, "new")]))
    assert len(list((disk(lake) / "_delta_log").glob("*.checkpoint.parquet"))) <= 4 + 2
    assert lake_rows.read_deltalake(lake.folder, 4).num_rows == 40
    assert lake_rows.read_deltalake(lake.folder, 3).num_rows == 40
    assert DeltaTable(str(lake.folder)).history(20)[-1]["operation"] == "WRITE"
    assert "ADOPT" in [commit["operation"] for commit in DeltaTable(str(lake.folder)).history(20)]


def test_a_table_of_polars(lake: LakeTable) -> None:
    frame = polars.DataFrame(table_of(ROWS, SIMPLE.arrow))
    frame.write_delta(str(lake.folder))
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert content(lake, snapshot) == ROWS
    assert content(lake, upsert(lake, snapshot, [(0, "new")], [(1,)])) == [(0, "new"), *ROWS[2:]]


def test_an_empty_table(lake: LakeTable) -> None:
    by_deltalake(lake, [])
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert content(lake, upsert(lake, snapshot, ROWS)) == ROWS


def test_columns_in_another_order_and_comments_of_theirs(lake: LakeTable) -> None:
    fields: list[pa.Field[Any]] = [
        pa.field("name", pa.string(), metadata={"comment": "who"}),
        pa.field("id", pa.int64(), nullable=False),
    ]
    write_deltalake(str(lake.folder), pa.table([["a", "b"], [1, 2]], schema=pa.schema(fields)))
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert content(lake, upsert(lake, snapshot, [(2, "c")])) == [(1, "a"), (2, "c")]
    found = DeltaTable(str(lake.folder)).schema().fields
    assert [(f.name, f.nullable) for f in found][:2] == [("id", True), ("name", True)]
    assert found[1].metadata == {"comment": "who"}


def test_it_is_followed_from_the_version_that_was_looked_at(lake: LakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    by_deltalake(lake)

    def interfere(on: Snapshot, schema: TableSchema) -> Any:
        found = read(on, schema)
        by_deltalake(lake, [(500, "meanwhile")], mode="append")
        return found

    read = adopting._read
    monkeypatch.setattr(adopting, "_read", interfere)
    with pytest.raises(LakeConflictError):
        adopt(lake, SIMPLE, applied(1))
    monkeypatch.setattr(adopting, "_read", read)
    assert content(lake, adopt(lake, SIMPLE, applied(1))) == [*ROWS, (500, "meanwhile")]


# -- as Spark writes them ----------------------------------------------------------------------------------------------


class Spark:
    """A table in the shape that Delta on Spark writes: names and JSON as in its logs, files as parquet-mr makes them."""

    def __init__(self, folder: Path, fields: dict[str, Any], **of_metadata: Any) -> None:
        self.folder = folder
        self.fields = fields
        self.version = -1
        (folder / "_delta_log").mkdir(parents=True)
        schema = {"type": "struct", "fields": [self._field(n, k) for n, k in fields.items()]}
        protocol = of_metadata.pop("protocol", {"minReaderVersion": 1, "minWriterVersion": 2})
        metadata = {
            "id": "5fba94ed-9794-4965-ba6e-6ee3c0d22af9",
            "format": {"provider": "parquet", "options": {}},
            "schemaString": json.dumps(schema),
            "partitionColumns": [],
            "configuration": {},
            "createdTime": 1587968585495,
        } | of_metadata
        self.commit([{"protocol": protocol}, {"metaData": metadata}], "CREATE TABLE")

    @staticmethod
    def _field(name: str, kind: Any) -> dict[str, Any]:
        return {"name": name, "nullable": True, "metadata": {}} | (
            kind if isinstance(kind, dict) and "type" in kind and "metadata" in kind else {"type": kind}
        )

    def commit(self, actions: Iterable[dict[str, Any]], operation: str = "WRITE") -> None:
        self.version += 1
        info = {
            "timestamp": 1587968586154,
            "operation": operation,
            "operationParameters": {"mode": "Append", "partitionBy": "[]"},
            "isolationLevel": "Serializable",
            "isBlindAppend": True,
            "operationMetrics": {"numFiles": "1", "numOutputRows": "50", "numOutputBytes": "845"},
            "engineInfo": "Apache-Spark/3.5.0 Delta-Lake/3.2.0",
            "txnId": "d54c00f5-9500-4ed5-b1b5-9f463861f4d1",
        }
        lines = [{"commitInfo": info}, *actions]
        path = self.folder / "_delta_log" / f"{self.version:020}.json"
        path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        (path.parent / f".{path.name}.crc").write_bytes(b"crc\x00\x00\x00\x02\x00")

    def add(self, rows: pa.Table, path: str = "", stats: Any = None, name: str = "", **written: Any) -> dict[str, Any]:
        path = path or f"part-00000-{self.version + 1:08x}-80a9-4f4e-a8a8-66a2f4b8b9c9-c000.snappy.parquet"
        file = self.folder / (name or path)
        file.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"compression": "snappy", "store_schema": False} | written
        pq.write_table(rows, file, **options)
        return {
            "add": {
                "path": path,
                "partitionValues": {},
                "size": file.stat().st_size,
                "modificationTime": 1587968586000,
                "dataChange": True,
                "stats": stats if stats is not None else json.dumps({"numRecords": rows.num_rows}),
                "tags": {"INSERTION_TIME": "1587968586000000", "OPTIMIZE_TARGET_SIZE": "268435456"},
            }
        }


def spark(lake: LakeTable, **of_metadata: Any) -> Spark:
    return Spark(disk(lake), {"id": "long", "name": "string"}, **of_metadata)


def simple(rows: Sequence[Row] = ROWS) -> pa.Table:
    return table_of(rows, SIMPLE.arrow)


def test_a_table_of_spark_in_its_old_protocol(lake: LakeTable) -> None:
    writer = spark(lake)
    stats = {
        "numRecords": 50,
        "minValues": {"id": 0, "name": "row 0"},
        "maxValues": {"id": 49, "name": "row 9"},
        "nullCount": {"id": 0, "name": 0},
    }
    writer.commit([writer.add(simple(ROWS[:50]), stats=json.dumps(stats))])
    writer.commit([writer.add(simple(ROWS[50:]))])
    writer.commit([], "VACUUM START")
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert snapshot.protocol["minWriterVersion"] == 7
    snapshot = upsert(lake, snapshot, [(10, "new"), (77, "new")], [(99,)])
    expected = sorted([row for row in ROWS if row[0] not in (10, 77, 99)] + [(10, "new"), (77, "new")])
    assert content(lake, snapshot) == expected
    for reader in (lake_rows.read_deltalake, lake_rows.read_polars, lake_rows.read_chdb):
        found = reader(lake.folder)
        assert sorted(zip(*found.select(["id", "name"]).to_pydict().values(), strict=True)) == expected


@pytest.mark.parametrize(
    "stats", ["", "{}", "not JSON", json.dumps({"minValues": {"id": 1000}, "maxValues": {"id": 1001}})]
)
def test_statistics_that_are_missing_or_wrong_are_measured(lake: LakeTable, stats: str) -> None:
    """Bounds that are wrong would hide rows from upserts, and leave their keys twice."""
    writer = spark(lake)
    writer.commit([writer.add(simple(), stats=stats)])
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert snapshot.rows == 100
    assert content(lake, upsert(lake, snapshot, [(5, "new")], [(6,)])) == [*ROWS[:5], (5, "new"), *ROWS[7:]]


def test_a_file_without_the_rows_that_its_commit_says(lake: LakeTable) -> None:
    writer = spark(lake)
    writer.commit([writer.add(simple(), stats=json.dumps({"numRecords": 99}))])
    with pytest.raises(LakeDamagedError, match="has 100 rows, its commit says 99"):
        adopt(lake, SIMPLE, applied(1))


def test_paths_of_spark(lake: LakeTable) -> None:
    """Encoded, and in folders below; what others name is never taken for something else of a like name."""
    writer = spark(lake)
    writer.commit([writer.add(simple(ROWS[:30]), "sub%20folder/x%3Dy/a.parquet", name="sub folder/x=y/a.parquet")])
    writer.commit([writer.add(simple(ROWS[30:60]), "a%2520b.parquet", name="a%20b.parquet")])
    writer.commit([writer.add(simple(ROWS[60:]), "a%20b.parquet", name="a b.parquet")])
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert content(lake, snapshot) == ROWS
    assert len(snapshot.files) == 3
    (disk(lake) / "sub folder" / "theirs.parquet").write_bytes(b"?")
    snapshot = upsert(lake, snapshot, [(60, "new")], [(i,) for i in range(60)])
    # Files that were removed go, in folders below too; those that are live stay, though the log's word for one is another's name.
    assert len(snapshot.tombstones) >= 2
    deleted, after = collect(lake, -1, 0)
    assert deleted >= len(snapshot.tombstones)
    assert not after.tombstones
    assert content(lake, snapshot) == [(60, "new"), *ROWS[61:]]
    assert (disk(lake) / "sub folder" / "theirs.parquet").exists()


@pytest.mark.parametrize("removed", ["a%20b.parquet", "a%2520b.parquet", "c d.parquet"])
def test_a_live_file_is_not_vacuumed_by_the_name_of_a_removed_one(lake: LakeTable, removed: str) -> None:
    """Whatever name a file was removed by: encoded as another's name on the disk, encoded twice, or not encoded at all."""
    writer = spark(lake)
    names = {"a%2520b.parquet": "a%20b.parquet", "a%20b.parquet": "a b.parquet", "c%20d.parquet": "c d.parquet"}
    adds = {
        path: writer.add(simple(ROWS[i * 30 : i * 30 + 30]), path, name=name)
        for i, (path, name) in enumerate(names.items())
    }
    writer.commit(adds.values())
    writer.commit([{"remove": {"path": removed, "deletionTimestamp": 1, "dataChange": True}}])
    left = [path for path in names if path != removed]
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert collect(lake, 0)[0] == len(names) - len(left)
    there = {path.name for path in disk(lake).glob("*.parquet")}
    assert there == {names[path] for path in left}
    assert len(content(lake, snapshot)) == 30 * len(left)


def test_the_ways_in_which_others_store_values(lake: LakeTable) -> None:
    schema = TableSchema(
        (
            Column("id", "text", charset="utf8mb4"),
            Column("amount", "decimal", precision=12, scale=2),
            Column("moment", "timestamp", scale=6),
            Column("local", "datetime", scale=6),
            Column("small", "smallint"),
            Column("raw", "varbinary"),
            Column("day", "date"),
        ),
        ("id",),
    )
    ends = [datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)]  # noqa: DTZ001
    rows: list[Row] = [
        (
            f"k{i}",
            decimal.Decimal(i) / 100,
            ends[i % 2].replace(tzinfo=datetime.UTC),
            ends[i % 2],
            i,
            b"\x00",
            ends[0].date(),
        )
        for i in range(20)
    ]
    columns = table_of(rows, schema.arrow)
    dictionary = pa.dictionary(pa.int32(), pa.string())
    others = columns.set_column(0, "id", columns.column(0).cast(dictionary)).set_column(
        4, "small", columns.column(4).cast(pa.int8())
    )
    others = others.set_column(5, "raw", columns.column(5).cast(pa.large_binary()))
    kinds = {
        "id": "string",
        "amount": "decimal(12,2)",
        "moment": "timestamp",
        "local": "timestamp_ntz",
        "small": "short",
        "raw": "binary",
        "day": "date",
    }
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["timestampNtz"],
        "writerFeatures": ["timestampNtz", "appendOnly", "invariants"],
    }
    writer = Spark(disk(lake), kinds, protocol=protocol)
    writer.commit([writer.add(others.slice(0, 5), store_schema=True)])
    int96 = columns.drop_columns(["local"]).slice(5, 5)
    writer.commit([writer.add(int96, use_deprecated_int96_timestamps=True)])
    large = columns.slice(10, 5).set_column(0, "id", columns.column(0).slice(10, 5).cast(pa.large_string()))
    writer.commit([writer.add(large, store_schema=True)])
    writer.commit(
        [
            writer.add(
                columns.slice(15).drop_columns(["day"]).select(["raw", "id", "amount", "moment", "local", "small"])
            )
        ]
    )
    snapshot = adopt(lake, schema, applied(1))
    expected = [
        (r[0], r[1], r[2], None if 5 <= i < 10 else r[3], r[4], r[5], r[6] if i < 15 else None)
        for i, r in enumerate(rows)
    ]
    assert content(lake, snapshot) == sorted(expected)
    found = lake.rows(snapshot, pa.table({"id": ["k0", "k7", "k12", "k19"]}))
    assert sorted(map(str, found.column("id").to_pylist())) == ["k0", "k12", "k19", "k7"]
    snapshot = upsert(lake, snapshot, [rows[6]], [("k12",)])
    expected[6] = rows[6]
    assert content(lake, snapshot) == sorted(row for row in expected if row[0] != "k12")
    # Others read INT96 in nanoseconds, which end in 2262: a file that holds later ones stays as it is, and theirs to read.
    int96_ids = [f"'k{i}'" for i in range(5, 10)]
    read, ours = (
        [row for row in same(found, schema.arrow) if not any(name in row for name in int96_ids)]
        for found in (lake_rows.read_polars(lake.folder), table_of(content(lake, snapshot), schema.arrow))
    )
    assert read == ours


def test_row_groups_that_are_larger_than_ours(lake: LakeTable) -> None:
    rows = 400_000
    table = pa.table({"id": pa.array(range(rows), pa.int64()), "name": pa.array([f"{i:040}" for i in range(rows)])})
    write_deltalake(str(lake.folder), table, writer_properties=WriterProperties(max_row_group_size=rows))
    snapshot = adopt(lake, SIMPLE, applied(1))
    assert max(batch.num_rows for batch in lake.scan(snapshot)) <= 128 * 1024
    snapshot = upsert(lake, snapshot, [(7, "new"), (rows - 1, "new")], [(200_000,)])
    assert snapshot.totals["live_after"] == rows - 1
    assert lake.rows(snapshot, pa.table({"id": pa.array([7, 200_000, rows - 1])})).column("name").to_pylist() == [
        "new",
        "new",
    ]


# -- refused -----------------------------------------------------------------------------------------------------------


def test_there_must_be_a_delta_table(lake: LakeTable) -> None:
    assert "there is no table" in refused(lake)
    disk(lake).mkdir(parents=True)
    pq.write_table(simple(), disk(lake) / "data.parquet")
    assert "files, and no Delta table" in refused(lake)


def test_a_source_without_a_key(lake: LakeTable) -> None:
    by_deltalake(lake)
    assert "no primary key" in refused(lake, TableSchema(SIMPLE.columns))


def test_another_pipelines_table_and_our_own(lake: LakeTable, tmp_path: Path) -> None:
    by_deltalake(lake)
    adopt(lake, SIMPLE, applied(1))
    assert "this pipeline follows it already" in refused(lake)
    assert "pipeline p follows it already" in refused(LakeTable(tmp_path, TABLE, "other"))
    with pytest.raises(LakeOccupiedError):
        LakeTable(tmp_path, TABLE, "other").load()


def test_every_difference_of_columns_is_named_at_once(lake: LakeTable) -> None:
    schema = TableSchema(
        (
            Column("id", "bigint"),
            Column("local", "datetime", scale=6),
            Column("amount", "decimal", precision=10, scale=2),
            Column("flag", "tinyint"),
            Column("number", "int", unsigned=True),
            Column("Note", "text", charset="utf8mb4"),
            Column("doc", "json"),
        ),
        ("id",),
    )
    theirs: list[pa.Field[Any]] = [
        pa.field("id", pa.int64()),
        pa.field("local", pa.timestamp("us", "UTC")),
        pa.field("amount", pa.decimal128(12, 2)),
        pa.field("flag", pa.bool_()),
        pa.field("number", pa.int32()),
        pa.field("note", pa.string()),
        pa.field("extra", pa.float64()),
    ]
    write_deltalake(str(lake.folder), pa.schema(theirs).empty_table())
    problems = {p.what: p.hint for p in examine(lake, schema)}
    assert list(problems) == [
        "column local is timestamp, and timestamp_ntz in the source",
        "column amount is decimal(12,2), and decimal(10,2) in the source",
        "column flag is boolean, and byte in the source",
        "column number is integer, and long in the source",
        "column Note is called note",
        "column doc is missing",
        "column extra is not the source's",
    ]
    assert "--type flag=boolean" in problems["column flag is boolean, and byte in the source"]
    assert "--exclude doc" in problems["column doc is missing"]
    what = refused(lake, schema)
    assert all(problem in what for problem in problems)


@pytest.mark.parametrize(
    ("protocol", "of_metadata", "expected"),
    [
        ({}, {"partitionColumns": ["name"]}, "partitioned by name"),
        ({}, {"configuration": {"delta.constraints.positive": "id > 0"}}, "CHECK constraint, positive"),
        ({}, {"configuration": {"delta.appendOnly": "true"}}, "delta.appendOnly"),
        ({}, {"configuration": {"delta.enableChangeDataFeed": "true"}}, "delta.enableChangeDataFeed"),
        (
            {"minReaderVersion": 2, "minWriterVersion": 5},
            {"configuration": {"delta.columnMapping.mode": "name"}},
            "mapped to other names",
        ),
        ({"minReaderVersion": 4, "minWriterVersion": 8}, {}, r"protocol version \(4, 8\)"),
        (
            {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": ["v2Checkpoint"],
                "writerFeatures": ["v2Checkpoint", "rowTracking"],
            },
            {},
            "feature rowTracking.*feature v2Checkpoint",
        ),
        # A table that Delta 4.4 clusters.
        (
            {
                "minReaderVersion": 1,
                "minWriterVersion": 7,
                "writerFeatures": ["domainMetadata", "clustering", "invariants", "appendOnly"],
            },
            {},
            "feature clustering.*feature domainMetadata",
        ),
    ],
)
def test_what_binds_a_writer(
    lake: LakeTable, protocol: dict[str, Any], of_metadata: dict[str, Any], expected: str
) -> None:
    writer = spark(lake, protocol=protocol or {"minReaderVersion": 1, "minWriterVersion": 2}, **of_metadata)
    writer.commit([writer.add(simple())])
    assert re.search(expected, refused(lake))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"delta.generationExpression": "id + 1"}, "generated"),
        ({"delta.identity.start": 1, "delta.identity.step": 1}, "identity"),
        ({"delta.invariants": "{}"}, "invariant"),
        ({"CURRENT_DEFAULT": "7", "EXISTS_DEFAULT": "7"}, "default value"),
    ],
)
def test_columns_that_are_more_than_columns(lake: LakeTable, metadata: dict[str, Any], expected: str) -> None:
    Spark(disk(lake), {"id": {"type": "long", "metadata": metadata}, "name": "string"})
    assert expected in refused(lake)


def test_rows_deleted_by_vector(lake: LakeTable) -> None:
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"],
        "writerFeatures": ["deletionVectors"],
    }
    writer = spark(lake, protocol=protocol)
    add = writer.add(simple())
    add["add"]["deletionVector"] = {
        "storageType": "u",
        "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^",
        "offset": 4,
        "sizeInBytes": 40,
        "cardinality": 6,
    }
    writer.commit([add])
    assert "deleted by vector, in 1 files" in refused(lake)


@pytest.mark.parametrize(
    "path", ["s3://bucket/table/x.parquet", "/data/x.parquet", "../x.parquet", "file:///data/x.parquet"]
)
def test_files_of_another_place(lake: LakeTable, path: str) -> None:
    writer = spark(lake)
    add = writer.add(simple(), name="x.parquet")
    add["add"]["path"] = path
    writer.commit([add])
    assert "lie outside of its folder" in refused(lake)


def test_files_that_are_stored_otherwise(lake: LakeTable) -> None:
    writer = spark(lake)
    writer.commit([writer.add(pa.table({"id": pa.array([1.0, 2.0]), "name": ["a", "b"]}))])
    writer.commit([writer.add(pa.table({"id": [3], "name": pa.array([b"c"])}))])
    writer.commit([writer.add(pa.table({"id": [4], "Name": ["d"]}))])
    what = refused(lake)
    assert "column name is called Name in 1 of its 3 files" in what
    assert "column id is stored as double in 1 of its 3 files" in what
    assert "column name is stored as binary in 1 of its 3 files" in what


def test_nanoseconds_are_not_cut(lake: LakeTable) -> None:
    schema = TableSchema((Column("id", "bigint"), Column("moment", "timestamp", scale=6)), ("id",))
    writer = Spark(disk(lake), {"id": "long", "moment": "timestamp"})
    writer.commit([writer.add(pa.table({"id": [1], "moment": pa.array([1], pa.timestamp("ns", "UTC"))}))])
    assert "moment is stored as timestamp[ns" in refused(lake, schema)


def test_a_key_that_is_null(lake: LakeTable) -> None:
    by_deltalake(lake, [(1, "a"), (None, "b")])
    assert "column id is in the key, and NULL" in refused(lake)


def test_a_key_that_a_file_lacks(lake: LakeTable) -> None:
    writer = spark(lake)
    writer.commit([writer.add(simple([(1, "a")]).select(["name"]))])
    assert "column id is in the key, and NULL" in refused(lake)


@pytest.mark.parametrize("key", [("id",), ("name",), ("id", "name")])
def test_a_key_that_is_there_twice(lake: LakeTable, key: tuple[str, ...]) -> None:
    by_deltalake(lake, ROWS)
    by_deltalake(lake, [ROWS[17], ROWS[99]], mode="append")
    what = refused(lake, TableSchema(SIMPLE.columns, key))
    assert f"2 rows or more have a key ({', '.join(key)})" in what
    assert "17" not in what


def test_a_torn_table(lake: LakeTable) -> None:
    by_deltalake(lake)
    (data,) = disk(lake).glob("*.parquet")
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(LakeDamagedError):
        adopt(lake, SIMPLE, applied(1))
    data.unlink()
    with pytest.raises(LakeDamagedError, match="is missing"):
        adopt(lake, SIMPLE, applied(1))


def test_a_log_without_its_beginning(lake: LakeTable) -> None:
    for i in range(3):
        by_deltalake(lake, ROWS[i * 10 : i * 10 + 10], mode="append")
    (disk(lake) / "_delta_log" / f"{0:020}.json").unlink()
    with pytest.raises(LakeDamagedError, match="version 0 is missing"):
        adopt(lake, SIMPLE, applied(1))


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["lake.before-commit", "lake.after-commit"])
def test_an_adoption_that_is_killed_is_whole_or_not_there(lake: LakeTable, tmp_path: Path, point: str) -> None:
    by_deltalake(lake, lake_rows.BEFORE)
    assert write_and_die(tmp_path, "adopt", f"kill:{point}") == -9
    if point == "lake.before-commit":
        with pytest.raises(LakeOccupiedError):
            lake.load()
        assert DeltaTable(str(lake.folder)).version() == 0
        adopt(lake, SIMPLE, applied(1))
    else:
        snapshot = lake.load()
        assert snapshot is not None
        assert snapshot.info is not None
        assert snapshot.info["kind"] == "adopt"
        assert "this pipeline follows it already" in refused(lake)
    assert write_and_die(tmp_path, "upsert", "") == 0
    after = lake.load()
    assert after is not None
    assert content(lake, after) == lake_rows.AFTER


# -- each key once -----------------------------------------------------------------------------------------------------


def _pieces(keys: pa.Table, size: int = 1000) -> Callable[[], Iterable[pa.Table]]:
    return lambda: (keys.slice(i, size) for i in range(0, keys.num_rows, size))


KEYS = {
    "int8": pa.array([i % 256 - 128 for i in range(256)], pa.int8()),
    "int64": pa.array([i * 7919 - 5_000_000_000 for i in range(20_000)]),
    "text": pa.array([f"{'é' * (i % 7)}{i}" for i in range(20_000)]),
    "binary": pa.array([bytes([0] * (i % 300)) + i.to_bytes(4, "big") for i in range(20_000)]),
    "zeros": pa.array([bytes(i) for i in range(3000)]),
    "decimal": pa.array([decimal.Decimal(i - 10_000) * 10**15 for i in range(20_000)], pa.decimal128(38, 0)),
    "date": pa.array(range(20_000), pa.int32()).cast(pa.date32()),
    "timestamp": pa.array(range(20_000), pa.int64()).cast(pa.timestamp("us", "UTC")),
    "double": pa.array([0.0, -0.0, *(i / 3 for i in range(1, 20_000))]),
    "boolean": pa.array([False, True]),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("passes", [1, 7])
def test_distinct_keys_are_told_from_one_that_is_there_twice(kind: str, passes: int) -> None:
    keys = pa.table({"k": KEYS[kind]})
    at_once = -(-keys.num_rows // passes)
    assert repeated(_pieces(keys), keys.num_rows, at_once) == 0
    again = pa.concat_tables([keys, keys.slice(keys.num_rows // 2, 1)])
    assert repeated(_pieces(again), again.num_rows, at_once) == 1
    assert repeated(_pieces(pa.concat_tables([keys] * 3)), keys.num_rows * 3, at_once) >= 1


def test_keys_of_several_columns() -> None:
    keys = pa.table({"a": [f"{i % 100}" for i in range(10_000)], "b": [i // 100 for i in range(10_000)]})
    assert repeated(_pieces(keys), 10_000) == 0
    assert repeated(_pieces(pa.concat_tables([keys, keys.slice(9_999)])), 10_001) == 1
    swapped = pa.table({"a": ["ab", "a"], "b": ["c", "bc"]})
    assert repeated(_pieces(swapped), 2) == 0


def test_hashes_that_meet_are_not_keys_that_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uniqueness, "hashes", lambda keys: hashes(keys) % 16)
    keys = pa.table({"k": KEYS["int64"]})
    assert repeated(_pieces(keys), keys.num_rows) == 0
    again = pa.concat_tables([keys, keys.slice(5, 2)])
    assert repeated(_pieces(again), again.num_rows) == 2


def test_the_check_of_keys_is_not_blind_to_slices() -> None:
    keys = pa.table({"k": KEYS["text"], "d": KEYS["decimal"], "b": KEYS["binary"]})
    whole = hashes(keys)
    assert (hashes(keys.slice(777, 100)) == whole[777:877]).all()
