"""Spark with Delta Lake on our tables: it reads them, it changes them, and we go on from what it left. `make test-spark`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc.lake import LakeTable
from cdc.lake.maintain import Keep
from dev.spark import Spark
from tests.integration.lake_rows import (
    EVERY_TYPE,
    TABLE,
    bootstrap,
    disk,
    every_type,
    read_deltalake,
    read_polars,
    same,
    table_of,
    upsert,
)
from tests.lake.subject import KINDS, Subject, busy_upkeep

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="session")
def spark() -> Iterator[Spark]:
    with Spark() as running:
        yield running


def read_spark(spark: Spark, folder: Path, version: int | None = None) -> pa.Table:
    """By Spark's reader of Delta tables."""
    return spark.sql(f"SELECT * FROM delta.`{folder}`" + (f" VERSION AS OF {version}" if version is not None else ""))


def check(subject: Subject, spark: Spark) -> None:
    """We, Spark, deltalake and polars see the same rows, those that must be there."""
    subject.check()
    for reader in (partial(read_spark, spark), read_deltalake, read_polars):
        found, wanted = subject.seen(reader(subject.folder)), subject.wanted()
        assert found == wanted, reader


# -- it reads ----------------------------------------------------------------------------------------------------------


def test_spark_sees_every_type_as_it_is_and_travels_in_time(spark: Spark, tmp_path: Path) -> None:
    lake = LakeTable(tmp_path, TABLE, "p")
    before = [every_type(key) for key in range(-50, 50)]
    snapshot = bootstrap(lake, EVERY_TYPE, before, files=3)
    nulls = tuple(60 if name == "big" else None for name in EVERY_TYPE.names)
    changed = [nulls, *(every_type(k, 2023) for k in range(45, 55))]
    upsert(lake, snapshot, changed, [(k,) for k in range(-50, -40)])
    columns = EVERY_TYPE.arrow
    after = [every_type(k) for k in range(-40, 45)] + [every_type(k, 2023) for k in range(45, 55)] + [nulls]
    assert same(read_spark(spark, disk(lake)), columns) == same(table_of(after, columns), columns)
    assert same(read_spark(spark, disk(lake), 0), columns) == same(table_of(before, columns), columns)
    assert spark.sql(f"SELECT count(*) n FROM delta.`{lake.folder}`").column("n").to_pylist() == [len(after)]


def test_spark_tells_the_history(spark: Spark, tmp_path: Path) -> None:
    subject = Subject(tmp_path, KINDS["int"])
    subject.bootstrap(dict.fromkeys(range(20), 1))
    subject.merge({1: 2, 2: 3, 30: 4}, {3, 4})
    rows = spark.sql(f"DESCRIBE HISTORY delta.`{subject.folder}`").to_pylist()
    assert [(row["version"], row["operation"]) for row in rows] == [(1, "MERGE"), (0, "WRITE")]
    metrics = dict(rows[0]["operationMetrics"])
    wanted = {"numTargetRowsInserted": "1", "numTargetRowsUpdated": "2", "numTargetRowsDeleted": "2"}
    assert wanted.items() <= metrics.items()


# -- it changes --------------------------------------------------------------------------------------------------------


def _assignments(subject: Subject, value: int) -> str:
    """SET for all columns that a value decides."""
    _, note, region, at = subject.kind.row(0, value)[:4]
    texts = ["NULL" if text is None else f"'{text}'" for text in (note, region)]
    return f"v = {value}, note = {texts[0]}, region = {texts[1]}, at = TIMESTAMP_NTZ'{at}'"


def _optimize(subject: Subject, spark: Spark) -> None:
    spark.sql(f"OPTIMIZE delta.`{subject.folder}`")


def _purge(subject: Subject, spark: Spark) -> None:
    spark.sql(f"REORG TABLE delta.`{subject.folder}` APPLY (PURGE)")


def _vacuum(subject: Subject, spark: Spark) -> None:
    spark.sql(f"VACUUM delta.`{subject.folder}` RETAIN 0 HOURS")


def _vacuum_lite(subject: Subject, spark: Spark) -> None:
    spark.sql(f"VACUUM delta.`{subject.folder}` LITE RETAIN 0 HOURS")


def _update(subject: Subject, spark: Spark) -> None:
    spark.sql(f"UPDATE delta.`{subject.folder}` SET {_assignments(subject, 13)} WHERE v >= 20 AND v < 26")
    subject.expected = {n: 13 if 20 <= v < 26 else v for n, v in subject.expected.items()}


def _delete(subject: Subject, spark: Spark) -> None:
    spark.sql(f"DELETE FROM delta.`{subject.folder}` WHERE v >= 10 AND v < 14")
    subject.expected = {n: v for n, v in subject.expected.items() if not 10 <= v < 14}


def _merge(subject: Subject, spark: Spark) -> None:
    source = subject.root / "source"
    values = {5: 77, 6: 78, 35: 79, 36: 80}
    source.mkdir(exist_ok=True)
    pq.write_table(subject.folded(values).upserts, source / "rows.parquet")
    on = " AND ".join(f"t.{name} = s.{name}" for name in subject.schema.key)
    spark.sql(
        f"MERGE INTO delta.`{subject.folder}` t USING parquet.`{source}` s ON {on}"
        " WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
    )
    subject.expected |= values


def _restore(subject: Subject, spark: Spark) -> None:
    spark.sql(f"RESTORE TABLE delta.`{subject.folder}` TO VERSION AS OF 1")
    subject.expected = {n: n for n in range(30) if n != 20} | {n: 40 + n for n in range(10)}


FOREIGN: dict[str, Callable[[Subject, Spark], None]] = {
    "optimize": _optimize,
    "purge": _purge,
    "vacuum": _vacuum,
    "vacuum-lite": _vacuum_lite,
    "update": _update,
    "delete": _delete,
    "merge": _merge,
    "restore": _restore,
}


def begun(root: Path, kind: str) -> Subject:
    """Three files, and two merges on top: rows replaced, removed, inserted, in each file."""
    subject = Subject(root, KINDS[kind])
    subject.bootstrap({n: n for n in range(30)})
    subject.merge({n: 40 + n for n in range(10)}, {20})
    subject.merge({n: 60 + n for n in range(8, 14)} | {31: 3}, {21, 0})
    return subject


@pytest.mark.parametrize("kind", ["int", "composite"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_we_go_on_from_what_spark_did(spark: Spark, tmp_path: Path, foreign: str, kind: str) -> None:
    subject = begun(tmp_path, kind)
    check(subject, spark)
    FOREIGN[foreign](subject, spark)
    subject.snapshot = subject.lake.refresh(subject.snapshot)
    check(subject, spark)
    subject.merge({n: 100 + n for n in range(3, 8)} | {33: 5}, {12, 22, 35})
    check(subject, spark)
    with busy_upkeep():
        subject.maintain(Keep())
    subject.merge({n: 110 + n for n in range(28, 33)}, {4, 15})
    check(subject, spark)


def test_spark_and_we_in_turns(spark: Spark, tmp_path: Path) -> None:
    """Everything that Spark does, one after the other, each followed by a merge of ours, and by clean-up now and then."""
    subject = begun(tmp_path, "text")
    for turn, name in enumerate(["update", "optimize", "delete", "vacuum-lite", "merge", "purge", "vacuum", "delete"]):
        FOREIGN[name](subject, spark)
        subject.snapshot = subject.lake.refresh(subject.snapshot)
        subject.merge(
            {(turn * 5 + n) % 40: turn * 20 + n for n in range(5)},
            {(turn * 7 + 20) % 40} - set(range(turn * 5, turn * 5 + 5)),
        )
        if turn % 3 == 2:
            subject.snapshot = subject.lake.checkpoint(subject.snapshot)
            subject.optimize(Keep())
        check(subject, spark)
