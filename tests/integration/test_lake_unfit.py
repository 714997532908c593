"""Values that do not fit, in lake tables on a real disk: the column `_cdc_unfit` comes with the first of them, and readers follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from cdc import unfit
from cdc.epoch import Counts
from cdc.errors import LakeError
from cdc.lake import FoldCounts, LakeTable, Layout, MergeCounts, Snapshot
from cdc.lake.columns import has_unfit, lake_columns
from cdc.schema import Column, TableSchema
from tests.integration import lake_rows
from tests.integration.lake_rows import SIMPLE, TABLE, applied, bootstrap, disk, folded, same, table_of, upsert

READERS = [
    pytest.param(lake_rows.read_deltalake, id="deltalake"),
    pytest.param(lake_rows.read_polars, id="polars"),
    pytest.param(lake_rows.read_chdb, id="clickhouse"),
]
Reader = Callable[..., pa.Table]
ZERO = [("name", "0000-00-00")]
HEX = [("name", "FF"), ("other", "")]
COLUMNS = lake_columns(SIMPLE, Layout(), with_unfit=True)
PLAIN = lake_columns(SIMPLE, Layout())


@pytest.fixture
def lake(tmp_path: Path) -> LakeTable:
    return LakeTable(tmp_path, TABLE, "p", file_size=4000)


def with_unfit(rows: pa.Table, values: list[Any]) -> pa.Table:
    return rows.append_column(unfit.FIELD, pa.array(values, unfit.TYPE))


def upsert_unfit(lake: LakeTable, on: Snapshot, rows: list[tuple[Any, ...]], values: list[Any]) -> Snapshot:
    """One merge with values that do not fit."""
    assert on.applied is not None
    epoch = on.applied.epoch.number + 1
    change = folded(SIMPLE, rows, [], epoch)
    change = replace(change, upserts=with_unfit(change.upserts, values))
    return lake.upsert(on, change, applied(epoch), MergeCounts(change.counts, epoch))


def actions(lake: LakeTable, version: int, kind: str) -> list[Any]:
    lines = (disk(lake) / "_delta_log" / f"{version:020}.json").read_text().splitlines()
    return [action[kind] for line in lines if kind in (action := json.loads(line))]


def everything(lake: LakeTable, snapshot: Snapshot) -> list[str]:
    return same(pa.Table.from_batches(lake.scan(snapshot)), COLUMNS)


@pytest.mark.parametrize("reader", READERS)
def test_the_first_value_that_does_not_fit_brings_the_column(lake: LakeTable, reader: Reader) -> None:
    before = [(i, f"row {i}") for i in range(100)]
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, before, files=4), [(1000, "x")])
    assert not has_unfit(snapshot.metadata)
    snapshot = upsert_unfit(lake, snapshot, [(7, None), (2000, "y"), (8, "z")], [ZERO, None, HEX])
    assert len(actions(lake, snapshot.version, "metaData")) == 1
    assert actions(lake, snapshot.version, "protocol") == []
    assert snapshot.metadata["id"] == json.loads(json.dumps(actions(lake, 0, "metaData")[0]))["id"]
    rows: list[tuple[Any, ...]] = [(i, f"row {i}", 1000, 10, None) for i in range(100) if i not in (7, 8)]
    rows += [
        (1000, "x", 2000, 20, None),
        (7, None, 3000, 30, ZERO),
        (2000, "y", 3000, 30, None),
        (8, "z", 3000, 30, HEX),
    ]
    assert everything(lake, snapshot) == same(table_of(rows, COLUMNS), COLUMNS)
    assert len(snapshot.files) > 2, "files of before, without the column, are among them"
    found = reader(lake.folder)
    assert found.column_names == COLUMNS.names
    assert same(found, COLUMNS) == same(table_of(rows, COLUMNS), COLUMNS)
    # What comes later needs none, and what it replaces is gone with its row.
    snapshot = upsert(lake, snapshot, [(7, "real")], [(8,)])
    assert actions(lake, snapshot.version, "metaData") == []
    rows = [row for row in rows if row[0] not in (7, 8)] + [(7, "real", 4000, 40, None)]
    assert everything(lake, snapshot) == same(table_of(rows, COLUMNS), COLUMNS)
    assert same(reader(lake.folder), COLUMNS) == same(table_of(rows, COLUMNS), COLUMNS)
    keys = pa.table({"id": [7, 2000, 5]})
    assert {row["id"] for row in lake.rows(snapshot, keys).to_pylist()} == {5, 7, 2000}
    # The versions of before are as they were.
    assert reader(lake.folder, 1).column_names == PLAIN.names


@pytest.mark.parametrize("reader", READERS)
def test_an_append_table_gets_the_column_too(tmp_path: Path, reader: Reader) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    schema = TableSchema((Column("d", "date"),))
    plain, wide = lake_columns(schema, Layout("append")), lake_columns(schema, Layout("append"), with_unfit=True)
    snapshot = lake.create(schema, Layout("append"), applied(1), Counts())
    counts = FoldCounts(Counts(1, 0, 0), effective=1)
    rows = [(None, e, e, "insert", f"{e}") for e in range(2, 5)]
    for epoch, row in enumerate(rows, 2):
        table = table_of([row], plain)
        if epoch == 3:
            table = with_unfit(table, [[("d", "2024-02-31")]])
        snapshot = lake.append(snapshot, table, applied(epoch), MergeCounts(counts, epoch))
    assert snapshot.metadata["schemaString"].endswith('"nullable":true,"metadata":{}}]}')
    expected = [(*row, [("d", "2024-02-31")] if row[1] == 3 else None) for row in rows]
    found = reader(lake.folder)
    assert found.column_names == wide.names
    assert same(found, wide) == same(table_of(expected, wide), wide)


@pytest.mark.parametrize("reader", READERS)
def test_a_bootstrap_of_files_of_which_some_have_it(lake: LakeTable, reader: Reader) -> None:
    """As chunks give them: the source's columns, and the last one in the batches that need it."""
    plain = [table_of([(i, "a") for i in range(n, n + 10)], SIMPLE.arrow) for n in (0, 10, 20)]
    odd = with_unfit(table_of([(30, None), (31, "b")], SIMPLE.arrow), [ZERO, None])
    files = [
        lake.write_file(plain[0].to_batches(), SIMPLE, ts_ms=1, seq=2),
        lake.write_file([*odd.to_batches(), *plain[1].to_batches()], SIMPLE, ts_ms=1, seq=2),
        lake.write_file([], SIMPLE, ts_ms=1, seq=2),
    ]
    assert [file.unfit for file in files] == [False, True, False]
    assert [type(file).from_dict(file.to_dict()) for file in files] == files
    snapshot = lake.bootstrap(files, SIMPLE, Layout(), applied(1), None, Counts())
    assert has_unfit(snapshot.metadata)
    rows: list[tuple[Any, ...]] = [(i, "a", 1, 2, None) for i in range(20)]
    rows += [(30, None, 1, 2, ZERO), (31, "b", 1, 2, None)]
    assert everything(lake, snapshot) == same(table_of(rows, COLUMNS), COLUMNS)
    assert same(reader(lake.folder), COLUMNS) == same(table_of(rows, COLUMNS), COLUMNS)
    # A resync begins without the column, unless it needs it again.
    snapshot = bootstrap(lake, SIMPLE, [(1, "x")], epoch=2)
    assert not has_unfit(snapshot.metadata)
    assert reader(lake.folder).column_names == PLAIN.names
    assert upsert_unfit(lake, snapshot, [(2, None)], [ZERO]).rows == 2


def test_a_batch_that_needs_the_column_later_has_a_file_of_its_own(lake: LakeTable) -> None:
    odd = with_unfit(table_of([(30, None)], SIMPLE.arrow), [ZERO])
    plain = table_of([(1, "a")], SIMPLE.arrow)
    with pytest.raises(LakeError, match="_cdc_unfit is unknown"):
        lake.write_file([*plain.to_batches(), *odd.to_batches()], SIMPLE, ts_ms=1, seq=2)


def test_a_column_of_that_name_that_is_not_ours_is_foreign(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, [(1, "a")])
    field = deltalake.Field("_cdc_unfit", deltalake.schema.PrimitiveType("string"))
    deltalake.DeltaTable(str(lake.folder)).alter.add_columns([field])
    with pytest.raises(LakeError, match="others changed the table: the columns"):
        upsert(lake, lake.refresh(snapshot), [(1, "x")])


def test_a_checkpoint_and_other_writers_keep_it(lake: LakeTable) -> None:
    snapshot = upsert_unfit(lake, bootstrap(lake, SIMPLE, [(1, "a"), (2, "b")]), [(1, None)], [ZERO])
    deltalake.DeltaTable(str(lake.folder)).optimize.compact()
    snapshot = lake.checkpoint(lake.refresh(snapshot))
    loaded = lake.load()
    assert loaded is not None
    assert has_unfit(loaded.metadata)
    assert everything(lake, upsert(lake, loaded, [(3, "c")])) == same(
        table_of([(1, None, 2000, 20, ZERO), (2, "b", 1000, 10, None), (3, "c", 3000, 30, None)], COLUMNS), COLUMNS
    )


def test_statistics_of_columns_behind_an_array_are_their_own(lake: LakeTable) -> None:
    """What a footer counts of an array is what is in it, which is not said of the column."""
    schema = TableSchema(
        (Column("v", "vector"), Column("id", "int"), Column("b", "bit", length=8), Column("n", "year")), ("id",)
    )
    rows = [([1.0], 5, b"a", None), (None, 7, None, 1999)]
    snapshot = bootstrap(lake, schema, rows)
    (file,) = snapshot.files.values()
    assert file.statistics["minValues"] == {"id": 5, "n": 1999, "_cdc_ts_ms": 1000, "_cdc_seq": 10}
    assert file.statistics["maxValues"]["id"] == 7
    assert file.statistics["nullCount"] == {"id": 0, "b": 1, "n": 1, "_cdc_ts_ms": 0, "_cdc_seq": 0}
