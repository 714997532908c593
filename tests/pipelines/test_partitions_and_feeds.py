"""`partition_by` and `change_feed` over a whole pipeline: from the command line to readers that are not ours, and to other partitions."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import deltalake
import orjson
import polars
import pyarrow as pa
import pytest

from dev.mysql import MySQLServer
from tests.faults.rig import Rig

COLUMNS = "id INT PRIMARY KEY, city VARCHAR(40), made DATETIME(6), changed TIMESTAMP(6) NULL, n INT"
CITIES = ["Oslo", "", None, "New York", "Zürich/CH", "a=b", "x" * 39]


def fill(mysql: MySQLServer, table: str, rows: int) -> None:
    mysql.execute(f"CREATE TABLE {table} ({COLUMNS}) CHARACTER SET utf8mb4")
    with mysql.root(autocommit=False) as connection, connection.cursor() as cursor:
        for n in range(rows):
            at = f"202{n % 3 + 4}-{n % 12 + 1:02}-28 23:30:00.000001"
            row = (n, CITIES[n % len(CITIES)], None if n % 13 == 0 else at, None if n % 17 == 0 else at, n)
            cursor.execute(f"INSERT INTO {table} VALUES (%s, %s, %s, %s, %s)", row)
        connection.commit()


def change(mysql: MySQLServer, table: str, number: int) -> None:
    """Updates that move rows between partitions or do not, deletes, inserts."""
    chosen = random.Random(number)
    with mysql.root(autocommit=False) as connection, connection.cursor() as cursor:
        for i in range(60):
            key, city = chosen.randrange(300), chosen.choice(CITIES)
            match chosen.randrange(4):
                case 0:
                    cursor.execute(f"DELETE FROM {table} WHERE id = %s", (key,))
                case 1:
                    cursor.execute(
                        f"UPDATE {table} SET city = %s, made = made + INTERVAL 40 DAY WHERE id = %s", (city, key)
                    )
                case 2:
                    cursor.execute(f"UPDATE {table} SET n = n + 1 WHERE id = %s", (key,))
                case _:
                    cursor.execute(f"REPLACE INTO {table} VALUES (%s, %s, NOW(6), NOW(6), %s)", (key, city, i))
        connection.commit()


def source(mysql: MySQLServer, table: str) -> list[tuple[Any, ...]]:
    with mysql.root() as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, NULLIF(city, ''), DATE_FORMAT(made, '%Y-%m'), DATE(changed), n FROM {table} ORDER BY id"
        )
        return [tuple(row) for row in cursor.fetchall()]


def by_polars(folder: Path) -> list[tuple[Any, ...]]:
    frame = polars.read_delta(str(folder)).sort("id")
    return frame.select("id", "city", "made_month", "changed_day", "n").rows()


def by_deltalake(folder: Path) -> list[tuple[Any, ...]]:
    rows = pa.table(deltalake.DeltaTable(str(folder)).scan()).to_pylist()
    names = ("id", "city", "made_month", "changed_day", "n")
    return sorted(tuple(row[name] for name in names) for row in rows)


def fed(folder: Path, since: int) -> dict[int, int]:
    """What the change feed makes of nothing from a version on, in order: each row's `n` by its key."""
    changes = pa.table(deltalake.DeltaTable(str(folder)).load_cdf(starting_version=since)).to_pylist()
    found: dict[int, int] = {}
    for change in sorted(
        changes, key=lambda c: (c["_commit_version"], c["_change_type"] in ("insert", "update_postimage"))
    ):
        if change["_change_type"] in ("delete", "update_preimage"):
            assert found.pop(change["id"]) == change["n"]
        else:
            assert change["id"] not in found
            found[change["id"]] = change["n"]
    return found


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer) -> Any:
    made = Rig(tmp_path / "p", mysql, [])
    yield made
    made.close()


def test_partitions_and_a_feed_from_the_command_line_to_readers(rig: Rig, mysql: MySQLServer, schema: str) -> None:
    table = f"{schema}.visits"
    fill(mysql, table, 200)
    options = [
        "--partition-by",
        "city",
        "--partition-by",
        "month(made)",
        "--partition-by",
        "day(changed)",
        "--change-feed",
    ]
    done = rig.lakesync("add", table, *options)
    assert done.returncode == 0, done.stderr + done.stdout
    folder = rig.lake / schema / "visits"
    for number in range(3):
        done = rig.catch_up()
        assert done.returncode == 0, done.stderr
        wanted = source(mysql, table)
        assert by_polars(folder) == wanted
        assert by_deltalake(folder) == wanted
        change(mysql, table, number)
    metadata = deltalake.DeltaTable(str(folder)).metadata()
    assert metadata.partition_columns == ["city", "made_month", "changed_day"]
    assert metadata.configuration["delta.enableChangeDataFeed"] == "true"
    assert rig.catch_up().returncode == 0
    report = rig.lakesync("reconcile", "--json")
    assert report.returncode == 0, report.stdout
    assert orjson.loads(report.stdout)["agrees"]


def test_a_feed_leads_to_what_the_table_has(rig: Rig, mysql: MySQLServer, schema: str) -> None:
    table = f"{schema}.visits"
    fill(mysql, table, 200)
    assert rig.lakesync("add", table, "--partition-by", "year(made)", "--change-feed").returncode == 0
    folder = rig.lake / schema / "visits"
    for number in range(4):
        done = rig.catch_up()
        assert done.returncode == 0, done.stderr
        assert fed(folder, 0) == {row[0]: row[4] for row in source(mysql, table)}
        change(mysql, table, number)


def test_a_table_is_partitioned_otherwise_after_a_resync(rig: Rig, mysql: MySQLServer, schema: str) -> None:
    table = f"{schema}.visits"
    fill(mysql, table, 60)
    assert rig.lakesync("add", table).returncode == 0
    assert rig.catch_up().returncode == 0
    file = rig.folder / "lakesync.yaml"
    assert rig.lakesync("remove", table).returncode == 0
    text = file.read_text()
    assert (
        rig.lakesync(
            "add", table, "--partition-by", "month(made)", "--partition-by", "city", "--partition-by", "day(changed)"
        ).returncode
        == 0
    )
    assert file.read_text() != text
    change(mysql, table, 1)
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    folder = rig.lake / schema / "visits"
    assert deltalake.DeltaTable(str(folder)).metadata().partition_columns == []
    assert f"lakesync resync {table}" in orjson.dumps(rig.status()).decode()
    assert rig.lakesync("resync", table).returncode == 0
    change(mysql, table, 2)
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    assert deltalake.DeltaTable(str(folder)).metadata().partition_columns == ["made_month", "city", "changed_day"]
    assert by_polars(folder) == by_deltalake(folder) == source(mysql, table)


@pytest.mark.parametrize("mode", ["append", "soft-delete", "history"])
def test_every_mode_has_partitions_and_a_feed(rig: Rig, mysql: MySQLServer, schema: str, mode: str) -> None:
    table = f"{schema}.visits"
    fill(mysql, table, 100)
    more = ["--backfill"] if mode == "append" else []
    done = rig.lakesync("add", table, "--mode", mode, "--partition-by", "year(made)", "--change-feed", *more)
    assert done.returncode == 0, done.stderr + done.stdout
    for number in range(3):
        done = rig.catch_up()
        assert done.returncode == 0, done.stderr
        change(mysql, table, number)
    assert rig.catch_up().returncode == 0
    folder = rig.lake / schema / "visits"
    now = pa.table(deltalake.DeltaTable(str(folder)).scan())
    changes = pa.table(deltalake.DeltaTable(str(folder)).load_cdf(starting_version=0)).to_pylist()
    count: Counter[str] = Counter()
    for row in changes:
        kind = row.pop("_change_type")
        text = repr([row[name] for name in now.column_names])
        count[text] += 1 if kind in ("insert", "update_postimage") else -1
    wanted = Counter(repr([row[name] for name in now.column_names]) for row in now.to_pylist())
    assert +count == wanted
    assert not -count
    if mode != "append":
        live = [r for r in now.to_pylist() if (r["is_current"] if mode == "history" else r["_cdc_deleted_at"] is None)]
        assert sorted((r["id"], r["n"]) for r in live) == [(r[0], r[4]) for r in source(mysql, table)]


def test_an_append_table_is_not_replaced_for_other_partitions(rig: Rig, mysql: MySQLServer, schema: str) -> None:
    table = f"{schema}.visits"
    fill(mysql, table, 20)
    assert rig.lakesync("add", table, "--mode", "append").returncode == 0
    assert rig.catch_up().returncode == 0
    change(mysql, table, 0)  # an empty one would be replaced
    assert rig.catch_up().returncode == 0
    assert rig.lakesync("remove", table).returncode == 0
    assert rig.lakesync("add", table, "--mode", "append", "--partition-by", "year(made)").returncode == 0
    assert rig.lakesync("resync", table).returncode == 0
    change(mysql, table, 1)
    rig.catch_up()
    status = orjson.dumps(rig.status()).decode()
    assert "other partitions" in status
    assert "move that folder away" in status
