"""How a table's parts are read into files: shared among readers, gathered under limits, cut by size, paused, and told of."""

from __future__ import annotations

import json
import sqlite3
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import snapshot
from cdc.config import PipelineConfig
from cdc.names import TableName
from cdc.status import collect
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from snapshot import boundaries, copying
from snapshot.chunks import Part
from snapshot.progress import FILE, Progress
from snapshot.retention import Budget, RetentionError
from tests.integration.bootstrapping import Pipeline
from tests.integration.test_boundaries import fill
from tests.integration.test_snapshot import KEYS, data_files, lake_rows, node, source_rows, until


@pytest.fixture
def table(schema: str) -> TableName:
    return TableName(schema, "t")


def configured(pipeline: Pipeline, section: str, **settings: Any) -> None:
    data = pipeline.config.model_dump(mode="json", exclude={"path"})
    data[section] = (data.get(section) or {}) | settings
    pipeline.config = PipelineConfig.model_validate({k: v for k, v in data.items() if v is not None})


def reached(pipeline: Pipeline, table: TableName) -> Progress:
    found = Progress.resume(pipeline.state.folder / "snapshot" / table.folder)
    assert found is not None
    return found


@pytest.mark.parametrize("estimated", [True, False])
def test_a_reader_that_has_nothing_to_do_gets_half_of_what_another_has_left(
    mysql: MySQLServer, tmp_path: Path, table: TableName, monkeypatch: pytest.MonkeyPatch, estimated: bool
) -> None:
    fill(mysql, table, "k INT PRIMARY KEY, v INT", "n, n", rows=4000)
    names: dict[int, set[str]] = {}
    lock = threading.Lock()
    whole = boundaries.Boundaries.parts
    record = Progress.record

    def one(self: boundaries.Boundaries, _: Any) -> list[Part]:
        (part,) = whole(self, lambda rows: 1)
        return [Part(0, rows=part.rows if estimated else 0)]

    def recorded(self: Progress, part: Part, *arguments: Any) -> None:
        with lock:
            names.setdefault(part.number, set()).add(threading.current_thread().name)
        record(self, part, *arguments)

    monkeypatch.setattr(boundaries.Boundaries, "parts", one)
    monkeypatch.setattr(Progress, "record", recorded)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=200, readers=3) as pipeline:
        pipeline.add(table)
        assert pipeline.bootstrap(table)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)
        assert data_files(pipeline, table) == set(pipeline.loaded(table).files)
    assert len(names) > 1, "nothing was cut"
    assert len(set.union(*names.values())) > 1


@pytest.mark.parametrize("planned", [24, 1])
def test_parts_and_their_cuts_survive_an_end(
    mysql: MySQLServer, tmp_path: Path, table: TableName, monkeypatch: pytest.MonkeyPatch, planned: int
) -> None:
    """With one part planned, all others are cuts."""
    fill(mysql, table, "a INT, k VARBINARY(64), v INT, PRIMARY KEY (a, k)", "n % 3, SHA2(n, 256), n", rows=3000)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=100, readers=3) as pipeline:
        pipeline.add(table)
        stop = threading.Event()
        seen: list[int] = []

        def tell(rows: int, estimate: int) -> None:
            seen.append(rows)
            if rows > 1200:
                stop.set()

        with monkeypatch.context() as patch:
            whole = boundaries.Boundaries.parts
            if planned == 1:
                patch.setattr(boundaries.Boundaries, "parts", lambda self, _: whole(self, lambda rows: 1))
            patch.setattr(copying, "TELL_S", 0.0)
            patch.setattr(copying, "POLL_S", 0.001)
            assert not snapshot.Bootstrap(pipeline.config, pipeline.log, pipeline.state, table).run(stop, tell)
        progress = reached(pipeline, table)
        parts, kept = progress.parts(), {f.name for f in progress.files()}
        progress.close()
        assert len(parts) > planned // 2
        assert len(parts) > 1, "nothing was cut"
        assert sum(p.read for p in parts) == sum(f.rows for f in _files(pipeline, table))
        ends = {p.part.low for p in parts}
        assert {p.part.high for p in parts} == ends, "each part ends where another one begins"
        assert pipeline.bootstrap(table)
        assert kept <= set(pipeline.loaded(table).files)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)


def _files(pipeline: Pipeline, table: TableName) -> list[Any]:
    progress = reached(pipeline, table)
    try:
        return progress.files()
    finally:
        progress.close()


def test_chunks_that_limits_make_short_are_gathered_into_one_file(
    mysql: MySQLServer, tmp_path: Path, table: TableName
) -> None:
    fill(mysql, table, "k INT PRIMARY KEY, v INT", "n, n", rows=1500)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=1_000_000) as pipeline:
        configured(pipeline, "snapshot", rows_per_second=500)
        pipeline.add(table)
        assert pipeline.bootstrap(table)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)
        assert len(pipeline.loaded(table).files) == 1


def test_files_have_about_the_configured_size(mysql: MySQLServer, tmp_path: Path, table: TableName) -> None:
    wide = "n, " + ", ".join(f"CONCAT(SHA2(n * 4 + {i}, 512), SHA2(n * 5 + {i}, 512))" for i in range(4))
    fill(mysql, table, "k INT PRIMARY KEY, a TEXT, b TEXT, c TEXT, d TEXT", wide, rows=16_000)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=1_000_000, readers=1) as pipeline:
        configured(pipeline, "merge", file_size="1MiB")
        pipeline.add(table)
        assert pipeline.bootstrap(table)
        sizes = sorted(f.size for f in pipeline.loaded(table).files.values())
        print(sizes)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)
    assert len(sizes) > 4
    assert all(size < 2.5 * 2**20 for size in sizes)
    assert sum(size > 0.5 * 2**20 for size in sizes) >= len(sizes) - 2


def test_memory_is_bounded_by_batches_and_not_by_chunks(mysql: MySQLServer, tmp_path: Path, table: TableName) -> None:
    fill(mysql, table, "k INT PRIMARY KEY, v LONGBLOB", "n, REPEAT(CHAR(n), 4000000)", rows=60)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=1_000_000, readers=1) as pipeline:
        pipeline.add(table)
        before = pa.total_allocated_bytes()
        most = [0]
        watching = threading.Event()

        def watch() -> None:
            while not watching.wait(0.005):
                most[0] = max(most[0], pa.total_allocated_bytes() - before)

        thread = threading.Thread(target=watch)
        thread.start()
        tracemalloc.start()
        try:
            assert pipeline.bootstrap(table)
        finally:
            _, python = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            watching.set()
            thread.join()
        assert pipeline.loaded(table).rows == 60
    assert most[0] < 200 * 2**20
    assert python < 60 * 2**20


def test_a_progress_record_of_an_earlier_version_is_discarded(
    mysql: MySQLServer, tmp_path: Path, table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(mysql, table, "k INT PRIMARY KEY, v INT", "n, n", rows=100)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=10) as pipeline:
        pipeline.add(table)
        stop = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(copying, "TELL_S", 0.0)
            patch.setattr(copying, "POLL_S", 0.001)
            run = snapshot.Bootstrap(pipeline.config, pipeline.log, pipeline.state, table).run
            assert not run(stop, lambda rows, _: stop.set() if rows > 30 else None)
        before = data_files(pipeline, table)
        assert before
        with sqlite3.connect(pipeline.state.folder / "snapshot" / table.folder / FILE) as db:
            ((text,),) = db.execute("SELECT data FROM purpose").fetchall()
            db.execute("UPDATE purpose SET data = ?", (json.dumps(json.loads(text) | {"v": 1}),))
        db.close()
        assert pipeline.bootstrap(table)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)
        assert not before & set(pipeline.loaded(table).files)


@pytest.fixture
def slow(mysql: MySQLServer, tmp_path: Path, table: TableName) -> Iterator[Pipeline]:
    """A pipeline that reads 20,000 rows in 20 seconds, or what is left of them."""
    fill(mysql, table, "k INT PRIMARY KEY, v INT", "n, n", rows=20_000)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=1000) as pipeline:
        configured(pipeline, "snapshot", rows_per_second=1000)
        yield pipeline


def test_status_tells_how_far_it_is_and_a_reading_pauses_and_goes_on(
    slow: Pipeline, mysql: MySQLServer, table: TableName
) -> None:
    pipeline = slow
    pipeline.add(table)
    with node(pipeline):
        until(lambda: pipeline.status(table).rows_read > 2000)

        def told() -> bool:
            (view,) = collect(pipeline.config).tables
            return view.reading is not None and bool(view.reading.rows_per_second and view.reading.seconds_left)

        until(told)
        (view,) = collect(pipeline.config).tables
        reading = view.reading
        assert reading is not None
        assert reading.percent is not None
        assert 5 < reading.percent < 90
        assert 300 < (reading.rows_per_second or 0) < 3000
        assert 3 < (reading.seconds_left or 0) < 60
        assert not reading.paused

        def waits() -> bool:
            (view,) = collect(pipeline.config).tables
            return view.reading is not None and "rows_per_second" in view.reading.waiting

        until(waits)
        pipeline.state.pause(table, True)
        until(lambda: not collect(pipeline.config).nodes[0].info["reading"])
        (view,) = collect(pipeline.config).tables
        assert view.reading is not None
        assert view.reading.paused
        rows = pipeline.status(table).rows_read
        kept = {f.name for f in _files(pipeline, table)}
        assert kept
        configured(pipeline, "snapshot", rows_per_second=None)
    with node(pipeline):
        assert not threading.Event().wait(1.0)
        assert pipeline.status(table).rows_read == rows, "it went on"
        pipeline.state.pause(table, False)
        until(lambda: pipeline.status(table).phase == "catching-up")
    assert kept <= set(pipeline.loaded(table).files)
    assert lake_rows(pipeline, table) == source_rows(mysql, table)


def test_a_reading_that_the_source_will_not_wait_for_pauses_with_its_progress(
    slow: Pipeline, mysql: MySQLServer, table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = slow
    pipeline.add(table)

    def check(self: Any, table: TableName, rows_read: int, rows_left: int) -> None:
        if rows_read > 2000:
            raise RetentionError("too slow", where=str(table), hint="keep it longer")

    with monkeypatch.context() as patch, node(pipeline):
        patch.setattr(Budget, "check", check)
        until(lambda: table in pipeline.state.paused())
        until(lambda: pipeline.status(table).error is not None)
    status = pipeline.status(table)
    assert status.phase == "snapshot"
    assert status.error is not None
    assert status.error["hint"] == "keep it longer"
    kept = {f.name for f in _files(pipeline, table)}
    assert kept
    pipeline.state.pause(table, False)
    configured(pipeline, "snapshot", rows_per_second=None)
    with node(pipeline):
        until(lambda: pipeline.status(table).phase == "catching-up")
    assert kept <= set(pipeline.loaded(table).files)
    assert pipeline.status(table).error is None


def test_several_tables_share_the_readers(mysql: MySQLServer, tmp_path: Path, schema: str) -> None:
    tables = [TableName(schema, name) for name in "abc"]
    for table in tables:
        fill(mysql, table, "k INT PRIMARY KEY, v INT", "n, n", rows=500)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=50, readers=2) as pipeline:
        for table in tables:
            pipeline.add(table)
        with node(pipeline):
            until(lambda: all(pipeline.status(t).phase == "catching-up" for t in tables))
        for table in tables:
            assert lake_rows(pipeline, table) == source_rows(mysql, table)


IN_MARIADB = (
    "int, one far away",
    "unsigned bigint",
    "string, by bytes",
    "string, trailing spaces do not count",
    "binary, prefixes of each other",
    "uuid",
    "decimal",
    "double",
    "datetime",
    "timestamp",
    "enum",
    "composite",
    "composite with an enum",
)


@pytest.mark.parametrize("kind", IN_MARIADB)
def test_every_row_is_read_once_from_mariadb(
    mariadb: MariaDBServer, mariadb_schema: str, tmp_path: Path, kind: str
) -> None:
    """In parts with ends of their own, of several columns too."""
    columns, rows = KEYS[kind]
    if kind == "composite":
        rows = list({tuple(str(c).lower() for c in row[:3]): row for row in rows}.values())
    table = TableName(mariadb_schema, "t")
    mariadb.execute(f"CREATE TABLE {table.quoted} ({columns}) CHARACTER SET utf8mb4")
    with mariadb.root(autocommit=False) as connection, connection.cursor() as cursor:
        slots = ", ".join(["%s"] * len(rows[0]))
        cursor.executemany(f"INSERT INTO {table.quoted} VALUES ({slots})", rows)
        connection.commit()
    with Pipeline(tmp_path, mariadb.url(), chunk_rows=3, readers=3) as pipeline:
        pipeline.add(table)
        assert pipeline.bootstrap(table)
        rows_in_lake = lake_rows(pipeline, table)
        if kind == "timestamp":  # the lake knows that they are UTC, PyMySQL does not
            rows_in_lake = Counter((k.replace(tzinfo=None), v) for k, v in rows_in_lake.elements())
        assert rows_in_lake == Counter(mariadb.execute(f"SELECT * FROM {table.quoted}"))
        assert len(list(rows_in_lake.elements())) == len(rows)
