"""Spark with Delta Lake reads our partitions and our change feed, and changes such tables itself. `make test-spark`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc.config import Mode
from cdc.lake import Layout
from dev.spark import Spark
from tests.integration.lake_rows import read_deltalake, read_polars
from tests.lake.subject import KINDS, Subject
from tests.lake.test_feed import check, rows

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def spark() -> Iterator[Spark]:
    with Spark() as running:
        yield running


def feed(spark: Spark, subject: Subject, version: int) -> list[dict[str, Any]]:
    """What Spark reads of one version's changes."""
    found = spark.sql(f"SELECT * FROM table_changes_by_path('{subject.folder}', {version}, {version})")
    changes = found.drop_columns(["_commit_version", "_commit_timestamp"])
    names = subject.lake._readable(subject.snapshot)
    for field in names:
        at = changes.column_names.index(field.name)
        changes = changes.set_column(at, field, changes.column(at).cast(field.type))
    return changes.to_pylist()


@pytest.mark.parametrize("partition_by", [(), ("region",), ("month(at)",), ("region", "hour(at)")], ids=str)
@pytest.mark.parametrize("mode", ["upsert", "soft-delete", "history"])
def test_spark_reads_the_feed_of_every_mode(
    spark: Spark, tmp_path: Path, mode: Mode, partition_by: tuple[str, ...]
) -> None:
    subject = Subject(tmp_path, KINDS["int"], Layout(mode, partition_by, change_feed=True))
    subject.bootstrap({})
    merges = (
        [(n, n) for n in range(12)],
        [(0, 40), (1, None), (20, 9), (5, 5)],
        [(2, None), (3, None)],
        [(1, 7), (20, 10), (0, None), (70, None)],
    )
    for changes in merges:
        before = rows(subject)
        subject.apply(list(changes))
        check(subject, before, feed(spark, subject, subject.snapshot.version))
    subject.check_by(lambda folder, _: spark.sql(f"SELECT * FROM delta.`{folder}`"))


def test_spark_reads_a_first_version_as_inserts(spark: Spark, tmp_path: Path) -> None:
    subject = Subject(tmp_path, KINDS["int"], Layout(change_feed=True))
    subject.bootstrap({n: n for n in range(9)})
    assert Counter(c["_change_type"] for c in feed(spark, subject, 0)) == {"insert": 9}


def test_spark_reads_a_resync_as_other_rows_in_place_of_all(spark: Spark, tmp_path: Path) -> None:
    subject = Subject(tmp_path, KINDS["int"], Layout(change_feed=True))
    subject.bootstrap({n: n for n in range(30)})
    subject.merge({1: 2, 2: 3}, {3, 4})
    before = rows(subject)
    subject.bootstrap({n: n for n in range(2, 12)})
    changes = feed(spark, subject, subject.snapshot.version)
    assert Counter(c["_change_type"] for c in changes) == {"delete": sum(before.values()), "insert": 10}


@pytest.mark.parametrize("partition_by", [("region",), ("region", "year(at)"), ("day(at)",)], ids=str)
def test_spark_changes_partitioned_tables_and_we_go_on(
    spark: Spark, tmp_path: Path, partition_by: tuple[str, ...]
) -> None:
    subject = Subject(tmp_path, KINDS["text"], Layout("upsert", partition_by, change_feed=True))
    subject.bootstrap({})
    subject.merge({n: n for n in range(40)})
    subject.merge({n: n + 3 for n in range(10, 25)}, {1, 2, 30})
    for statement in (
        f"OPTIMIZE delta.`{subject.folder}`",
        f"REORG TABLE delta.`{subject.folder}` APPLY (PURGE)",
        f"VACUUM delta.`{subject.folder}`",
    ):
        spark.sql(statement)
        subject.snapshot = subject.lake.refresh(subject.snapshot)
        before = rows(subject)
        turn = len(statement) % 7
        subject.merge({n: n + turn for n in range(turn, turn + 9)}, {35 + turn % 5})
        check(subject, before, feed(spark, subject, subject.snapshot.version))
        subject.check()
        for reader in (read_deltalake, read_polars, lambda folder, _: spark.sql(f"SELECT * FROM delta.`{folder}`")):
            subject.check_by(reader)


def test_spark_passes_over_partitions_that_cannot_have_what_is_asked_for(spark: Spark, tmp_path: Path) -> None:
    subject = Subject(tmp_path, KINDS["int"], Layout("upsert", ("month(at)",)))
    subject.bootstrap({})
    subject.merge({n: n for n in range(40)})
    table = f"delta.`{subject.folder}`"
    months = spark.sql(f"SELECT DISTINCT at_month FROM {table} ORDER BY 1").column(0).to_pylist()
    assert months[0] == "2024-01"
    plan = spark.sql(f"EXPLAIN SELECT count(v) FROM {table} WHERE at_month >= '2024-03'").to_pylist()
    assert "PartitionFilters" in str(plan)
    assert "at_month" in str(plan)
