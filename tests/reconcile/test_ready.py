"""Partitions of time are said to be complete when they are, once, and again when rows come late."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars
import pytest
from deltalake import DeltaTable

from cdc.ready import telling
from dev.minio import MinIOServer
from dev.mysql import MySQLServer
from tests.integration.readying import FOLLOW, Readying, Webhook, hour, named, sql

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def table(mysql: MySQLServer, schema: str) -> str:
    mysql.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY AUTO_INCREMENT, created_at DATETIME(6) NULL, v INT)")
    return f"{schema}.t"


def insert(server: MySQLServer, table: str, at: datetime, rows: int = 1) -> None:
    server.execute(f"INSERT INTO {table} (created_at, v) VALUES {', '.join([f'({sql(at)!r}, 1)'] * rows)}")


def day(ago: int) -> str:
    return f"{hour(ago):%Y-%m-%d}"


@contextmanager
def inserting(server: MySQLServer, table: str, at: datetime, until: datetime) -> Iterator[list[int]]:
    """Rows of one hour, committed until a time; how many."""
    count = [0]

    def write() -> None:
        with server.root() as connection, connection.cursor() as cursor:
            while datetime.now(UTC) < until:
                cursor.execute(f"INSERT INTO {table} (created_at, v) VALUES ({sql(at)!r}, 1)")
                count[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield count
    finally:
        thread.join()


def test_a_partition_is_complete_when_all_that_was_committed_before_its_end_is_in(
    mysql: MySQLServer, table: str, tmp_path: Path
) -> None:
    over = hour(1)
    # Its end and the delay lie some seconds ahead: until then rows of it are written as fast as they can be.
    until = datetime.now(UTC) + timedelta(seconds=8)
    delay = (until - over - timedelta(hours=1)).total_seconds()
    rig = Readying(tmp_path, mysql, table, {"delay": f"{delay:.3f}s", "from": day(1)})
    rig.config = rig.config.model_copy(update={"merge": rig.config.merge.model_copy(update={"every": 1.0})})
    insert(mysql, table, over)
    with rig.running(FOLLOW), rig.readying(), inserting(mysql, table, over, until) as count:
        told = rig.until_told(lambda t: t.get(named(over)), "told")
        assert datetime.now(UTC) >= until
    assert told["rows"] == count[0] + 1
    assert (told["generation"], told["late"], told["table"]) == (1, None, table)
    assert told["end"] == f"{hour(0):%Y-%m-%dT%H:%M:%S.000Z}"
    files = [p for p in rig.folder.joinpath(named(over)).iterdir() if p.suffix == ".parquet"]
    assert files
    frame = polars.read_delta(str(rig.folder), version=told["version"])
    assert frame.filter(polars.col("created_at_hour") == f"{over:%Y-%m-%d-%H}").height == told["rows"]


def test_what_ended_before_it_was_asked_for_is_not_told(mysql: MySQLServer, table: str, tmp_path: Path) -> None:
    rig = Readying(tmp_path, mysql, table, {"again": "100ms"})
    insert(mysql, table, hour(3), 3)
    with rig.running(FOLLOW), rig.readying():
        rig.ready(rig.config.tables[0].table)
        insert(mysql, table, hour(2), 2)
        rig.pipeline.wait_for(time="now")
        time.sleep(3)
        assert rig.told() == {}
    with rig.running(FOLLOW), rig.readying(rig.with_ready(since=day(3))):
        rig.until_told(lambda t: named(hour(1)) in t, "told since")
        told = rig.told()
        assert {t["generation"] for t in told.values()} == {1}
        # Empty ones, too; and none that is not over.
        assert (told[named(hour(3))]["rows"], told[named(hour(2))]["rows"], told[named(hour(1))]["rows"]) == (3, 2, 0)
        assert named(hour(0)) not in told
        first = min(told)
        assert first == f"created_at_hour={day(3)}-00"


def test_rows_that_come_late_are_told_once_more(mysql: MySQLServer, table: str, tmp_path: Path) -> None:
    rig = Readying(tmp_path, mysql, table, {"from": day(1), "again": "1s"})
    old, name = hour(1), named(hour(1))
    insert(mysql, table, old, 5)
    with rig.running(FOLLOW), rig.readying():
        first = rig.until_told(lambda t: t.get(name), "told")
        assert (first["generation"], first["rows"]) == (1, 5)
        insert(mysql, table, old, 2)
        mysql.execute(f"UPDATE {table} SET v = 2 WHERE id = 1")
        mysql.execute(f"DELETE FROM {table} WHERE id = 2")
        second = rig.until_told(lambda t: t[name]["generation"] == 2 and t[name], "told again")
        assert second["rows"] == 6
        assert second["late"] == {"rows_added": 3, "rows_deleted": 2}
        assert second["version"] > first["version"]
        # A row that moves away is told of where it was, and where it came.
        other = named(hour(2))
        before = rig.told()[other]["generation"] if other in rig.told() else None
        mysql.execute(f"UPDATE {table} SET created_at = {sql(hour(2))!r} WHERE id = 3")
        third = rig.until_told(lambda t: t[name]["generation"] == 3 and t[name], "told of the row that left")
        assert third["late"] == {"rows_added": 0, "rows_deleted": 1}
        if before is not None:
            moved = rig.until_told(lambda t: t[other]["generation"] == before + 1 and t[other], "and that came")
            assert moved["late"] == {"rows_added": 1, "rows_deleted": 0}
        insert(mysql, table, hour(0), 3)
        rig.pipeline.wait_for(time="now")
        time.sleep(3)
        assert rig.told()[name]["generation"] == 3
    # Others' changes of the lake are late, too.
    DeltaTable(str(rig.folder)).delete("id = 4")
    with rig.running(FOLLOW), rig.readying():
        fourth = rig.until_told(lambda t: t[name]["generation"] == 4 and t[name], "told of a delete in the lake")
        assert fourth["rows"] == third["rows"] - 1


def test_a_table_that_is_read_anew_is_told_of_once(mysql: MySQLServer, table: str, tmp_path: Path) -> None:
    rig = Readying(tmp_path, mysql, table, {"from": day(1), "again": "1s"})
    name = named(hour(1))
    insert(mysql, table, hour(1), 5)
    with rig.running(FOLLOW), rig.readying():
        rig.until_told(lambda t: name in t, "told")
        empty = {folder for folder, told in rig.told().items() if not told["rows"]}
        rig.pipeline.resync(table)
        again = rig.until_told(lambda t: t[name]["generation"] == 2 and t[name], "told again", 60)
        assert again["rows"] == 5
        time.sleep(3)
        assert rig.told()[name]["generation"] == 2
        assert {rig.told()[folder]["generation"] for folder in empty} <= {1}


def test_a_webhook_and_a_program_are_told(mysql: MySQLServer, table: str, tmp_path: Path) -> None:
    hook, out = Webhook(), tmp_path / "out"
    out.mkdir()
    script = ["/bin/sh", "-c", f"cat > {out}/$$.part && mv {out}/$$.part {out}/$$.json"]
    rig = Readying(
        tmp_path,
        mysql,
        table,
        {"from": day(1), "again": "100ms", "file": False, "webhook": hook.url, "command": script},
    )
    try:
        insert(mysql, table, hour(1), 5)
        hook.refuses = True
        with rig.running(FOLLOW), rig.readying():
            rig.until(lambda: any("not told by webhook" in p for p in rig.problems()), "the webhook fails")
            rig.until(lambda: list(out.glob("*.json")), "the program is told nevertheless")
            hook.refuses = False
            rig.until(lambda: any(p["partition"]["created_at_hour"] in named(hour(1)) for p in hook.posted), "told")
            insert(mysql, table, hour(1))
            rig.until(lambda: any(p["generation"] == 2 for p in hook.posted), "told again")
        assert rig.told() == {}
        keys = [p["key"] for p in hook.posted]
        assert len(set(keys)) == len(keys)
        assert f"rereads/{table}/{named(hour(1))}/2" in keys
    finally:
        hook.close()


def test_readers_and_vacuum_pass_the_files_over(mysql: MySQLServer, table: str, tmp_path: Path) -> None:
    rig = Readying(tmp_path, mysql, table, {"from": day(1)})
    insert(mysql, table, hour(1), 5)
    with rig.running(FOLLOW), rig.readying():
        rig.until_told(lambda t: named(hour(1)) in t, "told")
    told = rig.told()
    assert polars.read_delta(str(rig.folder)).height == 5
    assert polars.scan_parquet(f"{rig.folder}/**/*.parquet", hive_partitioning=True).collect().height == 5
    delta = DeltaTable(str(rig.folder))
    delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert rig.told() == told
    # Its full one knows hidden folders at the top alone (docs/readiness.md). What was told is not told again for that.
    gone: Any = delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
    assert {name.rpartition("/")[2] for name in gone} == {"_SUCCESS"}
    with rig.running(FOLLOW), rig.readying():
        insert(mysql, table, hour(0))
        rig.pipeline.wait_for(time="now")
        time.sleep(2)
    assert rig.told() == {}


def test_settings_that_do_not_fit_the_table_are_said(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    mysql.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, created_at TIMESTAMP NULL, v INT)")
    rig = Readying(tmp_path, mysql, f"{schema}.t", {"from": day(1), "timezone": "Europe/Berlin"})
    mysql.execute(f"INSERT INTO {schema}.t VALUES (1, {sql(hour(1))!r}, 1)")
    with rig.running(FOLLOW), rig.readying():
        rig.until(lambda: any("partitions are of UTC" in p for p in rig.problems()), "refused")
        assert rig.told() == {}


def test_in_an_object_store(mysql: MySQLServer, table: str, tmp_path: Path, minio: MinIOServer) -> None:
    bucket = minio.bucket()
    rig = Readying(tmp_path, mysql, table, {"from": day(1)})
    rig.config = rig.config.model_copy(update={"lake": f"s3://{bucket}/lake", "lake_options": minio.options()})
    insert(mysql, table, hour(1), 5)
    folder = telling.folder_of(rig.config, rig.config.tables[0].table)

    def told() -> dict[str, Any] | None:
        return telling.read(folder, f"{named(hour(1))}/_SUCCESS")

    with rig.running(FOLLOW), rig.readying():
        found = rig.until(told, "told")
    assert (found["rows"], found["generation"]) == (5, 1)
