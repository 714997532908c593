"""The direct bootstrap on a real server: every kind of key, kills, DDL meanwhile, resync, what stops a table."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pytest

import snapshot
from cdc import faults
from cdc.epoch import CommitRecord
from cdc.errors import LakeOccupiedError, SourceUnavailableError, TableStoppedError
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet
from dev.mysql import MySQLServer
from snapshot import copying
from snapshot.progress import Progress
from tests.integration.bootstrapping import Pipeline
from tests.integration.lake_rows import disk

OTHER_SERVER = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


@pytest.fixture
def pipeline(mysql: MySQLServer, tmp_path: Path) -> Iterator[Pipeline]:
    with Pipeline(tmp_path, mysql.url()) as found:
        yield found


@pytest.fixture
def table(schema: str) -> TableName:
    return TableName(schema, "t")


def fill(mysql: MySQLServer, table: TableName, columns: str, rows: list[tuple[Any, ...]]) -> None:
    mysql.execute(f"CREATE TABLE {table.quoted} ({columns}) CHARACTER SET utf8mb4")
    if rows:
        with mysql.root(autocommit=False) as connection, connection.cursor() as cursor:
            slots = ", ".join(["%s"] * len(rows[0]))
            # Not executemany: it takes a name with a percent sign for a place for a value.
            for row in rows:
                cursor.execute(f"INSERT INTO {table.quoted.replace('%', '%%')} VALUES ({slots})", row)
            connection.commit()


def numbers(mysql: MySQLServer, table: TableName, count: int) -> None:
    fill(mysql, table, "id INT PRIMARY KEY, v INT NOT NULL", [(n, n * n) for n in range(1, count + 1)])


def lake_rows(pipeline: Pipeline, table: TableName) -> Counter[tuple[Any, ...]]:
    """As another reader sees them, without lakesync's own columns."""
    frame = polars.read_delta(str(pipeline.lake(table).folder))
    return Counter(row[:-2] for row in frame.rows())


def source_rows(mysql: MySQLServer, table: TableName) -> Counter[tuple[Any, ...]]:
    return Counter(mysql.execute(f"SELECT * FROM {table.quoted}"))


def data_files(pipeline: Pipeline, table: TableName) -> set[str]:
    return {path.name for path in disk(pipeline.lake(table)).glob("*.parquet")}


# -- keys -----------------------------------------------------------------------------------------------------------------

NEW_YEAR = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 (as in the database)
SPRING = datetime.datetime(2024, 3, 31, 0, 30)  # noqa: DTZ001 (an hour that summer time skips, elsewhere)
LETTERS = [
    "a",
    "B",
    "c",
    "D",
    "é",
    "E",
    "f",
    "Ö",
    "ß",
    "z",
    "日",
    "𝒳",
    "%",
    "_",
    "'",
    '"',
    "\\",
    "a b",
    "A C",
    "-1",
    "0",
]

KEYS: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "int": ("k INT PRIMARY KEY, v INT", [(n, n) for n in range(-20, 40)]),
    "int with gaps": ("k INT PRIMARY KEY, v INT", [(n**5, n) for n in range(-30, 31)]),
    "int, one far away": (
        "k BIGINT PRIMARY KEY, v INT",
        [(n, 0) for n in range(50)] + [(2**63 - 1, 1), (-(2**63), 2)],
    ),
    "unsigned bigint": ("k BIGINT UNSIGNED PRIMARY KEY, v INT", [(2**64 - 1 - n * n, n) for n in range(60)] + [(0, 0)]),
    "string, case-insensitive": (
        "k VARCHAR(20) COLLATE utf8mb4_0900_ai_ci PRIMARY KEY, v INT",
        [(f"{letter}{n}", n) for n, letter in enumerate(LETTERS * 3)],
    ),
    "string, by bytes": (
        "k VARCHAR(20) COLLATE utf8mb4_bin PRIMARY KEY, v INT",
        [(f"{letter}{n % 2}", n) for n, letter in enumerate(LETTERS)],
    ),
    "string, trailing spaces count": (
        "k VARCHAR(20) COLLATE utf8mb4_0900_ai_ci PRIMARY KEY, v INT",
        [(letter + " " * n, n) for letter in "abc" for n in range(10)],
    ),
    "string, trailing spaces do not count": (
        "k VARCHAR(20) COLLATE utf8mb4_general_ci PRIMARY KEY, v INT",
        [(f"{chr(97 + n)}{' ' * (n % 4)}", n) for n in range(26)],
    ),
    "char": ("k CHAR(8) PRIMARY KEY, v INT", [(f"x{n}", n) for n in range(40)]),
    "ascii": ("k VARCHAR(8) CHARACTER SET ascii PRIMARY KEY, v INT", [(f"x{n}", n) for n in range(40)]),
    "prefix": ("k TEXT, v INT, PRIMARY KEY (k(4))", [(f"{n:04}{'long' * 50}", n) for n in range(40)]),
    "binary": ("k VARBINARY(8) PRIMARY KEY, v INT", [(bytes([n, 0, 39, 92, 255 - n]), n) for n in range(60)]),
    "binary, prefixes of each other": ("k VARBINARY(40) PRIMARY KEY, v INT", [(b"\0" * n, n) for n in range(35)]),
    "padded binary": ("k BINARY(4) PRIMARY KEY, v INT", [(bytes([n, 0, n % 3, 0]), n) for n in range(60)]),
    "uuid": ("k BINARY(16) PRIMARY KEY, v INT", [(os.urandom(16), n) for n in range(60)]),
    "uuid as text": ("k CHAR(36) PRIMARY KEY, v INT", [(os.urandom(18).hex(), n) for n in range(60)]),
    "decimal": (
        "k DECIMAL(38, 18) PRIMARY KEY, v INT",
        # Neighbours that are one and the same double.
        [(Decimal(f"12345678901234567890.{n:018}"), n) for n in range(30)]
        + [(-Decimal(n) / 10**18, n) for n in range(30)],
    ),
    "double": (
        "k DOUBLE PRIMARY KEY, v INT",
        [(0.1 * n, n) for n in range(-30, 30)] + [(1e300, 1), (-1e-300, 2), (5e-324, 3), (1.7976931348623157e308, 4)],
    ),
    "date": (
        "k DATE PRIMARY KEY, v INT",
        [(datetime.date(1970, 1, 1) + datetime.timedelta(days=n * n), n) for n in range(50)],
    ),
    "datetime": (
        "k DATETIME(6) PRIMARY KEY, v INT",
        [(NEW_YEAR + datetime.timedelta(microseconds=n), n) for n in range(-10, 40)],
    ),
    "timestamp": (
        "k TIMESTAMP(3) PRIMARY KEY, v INT",
        [(SPRING + datetime.timedelta(milliseconds=n * 100_000), n) for n in range(60)],
    ),
    "enum": ("k ENUM('z', 'b', 'a', 'c', 'y', '10', '2') PRIMARY KEY, v INT", [(m, 1) for m in ("z", "b", "a", "c", "y", "10", "2")]),
    "composite": (
        "a SMALLINT, b VARCHAR(10), c DATE, v INT, PRIMARY KEY (b, a, c)",
        [(n % 5, f"{'Bb'[n % 2]}{n % 3}", datetime.date(2024, 1, 1 + n % 28), n) for n in range(200)],
    ),
    "composite with an enum": (
        "v INT, e ENUM('x', 'm', 'b'), id BIGINT UNSIGNED, PRIMARY KEY (e, id)",
        [(n, "xmb"[n % 3], n) for n in range(60)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEYS)
def test_every_row_is_read_once(mysql: MySQLServer, tmp_path: Path, table: TableName, kind: str) -> None:
    columns, rows = KEYS[kind]
    if kind == "composite":
        rows = list({tuple(str(c).lower() for c in row[:3]): row for row in rows}.values())
    fill(mysql, table, columns, rows)
    with Pipeline(tmp_path, mysql.url(), chunk_rows=3, readers=3) as pipeline:
        added = pipeline.add(table)
        assert pipeline.bootstrap(table)
        frame = polars.read_delta(str(pipeline.lake(table).folder))
        found = Counter(row[:-2] for row in frame.rows())
        if kind == "timestamp":  # the lake knows that they are UTC, PyMySQL does not
            found = Counter((k.replace(tzinfo=None), v) for k, v in found.elements())
        expected = source_rows(mysql, table)
        assert found == expected
        assert len(expected) == len(rows)
        assert set(frame["_cdc_ts_ms"]) == {added.ts_ms}
        assert set(frame["_cdc_seq"]) == {added.seq}


def test_an_enum_outside_its_members_is_read_too(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    fill(mysql, table, "k ENUM('b', 'a'), id INT, PRIMARY KEY (k, id)", [(1 + n % 2, n) for n in range(15)])
    with mysql.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute(f"INSERT IGNORE INTO {table.quoted} SELECT 'none', id FROM {table.quoted}")
    assert mysql.execute(f"SELECT COUNT(*) FROM {table.quoted} WHERE k = 0") == [(15,)]
    pipeline.add(table)
    assert pipeline.bootstrap(table)
    assert lake_rows(pipeline, table) == source_rows(mysql, table)


def test_a_generated_invisible_key_is_a_column(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    with mysql.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_generate_invisible_primary_key = ON")
        cursor.execute(f"CREATE TABLE {table.quoted} (v INT)")
        cursor.execute(f"INSERT INTO {table.quoted} VALUES {', '.join(f'({n})' for n in range(25))}")
    pipeline.add(table)
    assert pipeline.bootstrap(table)
    expected = Counter(mysql.execute(f"SELECT my_row_id, v FROM {table.quoted}"))
    assert {(int(k), v): n for (k, v), n in lake_rows(pipeline, table).items()} == expected


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 21])
def test_a_table_of_any_size(mysql: MySQLServer, pipeline: Pipeline, table: TableName, count: int) -> None:
    numbers(mysql, table, count)
    pipeline.add(table)
    assert pipeline.bootstrap(table)
    assert lake_rows(pipeline, table) == source_rows(mysql, table)
    assert pipeline.status(table).rows_read == count


def test_names_are_quoted(mysql: MySQLServer, pipeline: Pipeline, schema: str) -> None:
    table = TableName(schema, "a `%s` ü.b")
    fill(mysql, table, "`k %d``` INT, `sélect` INT, PRIMARY KEY (`sélect`, `k %d```)", [(n, n % 3) for n in range(35)])
    pipeline.add(table)
    assert pipeline.bootstrap(table)
    snapshot = pipeline.loaded(table)
    assert snapshot.rows == 35
    assert snapshot.schema.names == ("k %d`", "sélect")


def test_the_documented_grants_suffice(mysql: MySQLServer, tmp_path: Path, table: TableName) -> None:
    numbers(mysql, table, 35)
    user = f"reader_{table.schema[-6:]}"
    mysql.add_user(user, "", "REPLICATION SLAVE, REPLICATION CLIENT ON *.*", f"SELECT ON `{table.schema}`.*")
    with Pipeline(tmp_path, mysql.url(user)) as pipeline:
        pipeline.add(table)
        assert pipeline.bootstrap(table)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)


def test_wide_rows_go_into_several_files(mysql: MySQLServer, tmp_path: Path, table: TableName) -> None:
    fill(mysql, table, "id INT PRIMARY KEY, v LONGBLOB", [(n, os.urandom(500_000)) for n in range(40)])
    with Pipeline(tmp_path, mysql.url(), chunk_rows=1000) as pipeline:
        merge = pipeline.config.merge.model_copy(update={"file_size": 4_000_000})
        pipeline.config = pipeline.config.model_copy(update={"merge": merge})
        pipeline.add(table)
        assert pipeline.bootstrap(table)
        assert len(pipeline.loaded(table).files) >= 3
        assert pipeline.loaded(table).rows == 40


# -- the protocol ---------------------------------------------------------------------------------------------------------


def test_the_commit_stands_at_e0_and_the_mark_after_it(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName
) -> None:
    numbers(mysql, table, 25)
    pipeline.add(table)
    later = pipeline.epoch()
    before = pipeline.position()
    assert pipeline.bootstrap(table)

    snapshot, status = pipeline.loaded(table), pipeline.status(table)
    assert snapshot.applied is not None
    assert (snapshot.applied.epoch, snapshot.applied.position) == (later.id, later.end)
    assert (snapshot.applied.log, snapshot.applied.seq) == (pipeline.log.uuid, later.seq)
    assert (snapshot.version, snapshot.rows, snapshot.mode) == (0, 25, "upsert")
    assert (status.phase, status.e0, status.e0_position) == ("catching-up", later.id, later.end)
    assert status.mark is not None
    assert status.mark >= before.end
    assert status.mark_server == before.server_uuid
    assert not (pipeline.state.folder / "snapshot" / table.folder).exists()


def test_chunks_wait_until_the_server_shows_e0(
    mysql_factory: Callable[..., MySQLServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that the dump thread has sent and no SELECT sees yet must not be missing: no epoch after e0 brings it again."""
    server = mysql_factory(options=["--plugin-load-add=semisync_source.so", "--rpl-semi-sync-source-timeout=6000"])
    server.execute("CREATE DATABASE d")
    table = TableName("d", "t")
    numbers(server, table, 5)
    with Pipeline(tmp_path, server.url()) as pipeline:
        position = pipeline.position()
        (sid, intervals), *_ = position.gtids.sids.items()
        hidden = Gtid(sid, intervals[-1][1] + 1)
        with held(server, f"INSERT INTO {table.quoted} VALUES (6, 6)"):
            assert GtidSet.parse(server.gtid_executed) == position.gtids
            assert pipeline.position().end > position.end, "not in the binary log: nothing is tested"
            pipeline.add(table, _with(position, hidden))
            assert pipeline.bootstrap(table)
        assert (6, 6) in lake_rows(pipeline, table)


def test_the_mutant_without_the_wait_loses_a_row(
    mysql_factory: Callable[..., MySQLServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_mutants", frozenset({"no_wait"}))
    with pytest.raises(AssertionError, match=r"\(6, 6\)"):
        test_chunks_wait_until_the_server_shows_e0(mysql_factory, tmp_path, monkeypatch)


def _with(position: Any, gtid: Gtid) -> Any:
    from dataclasses import replace

    return replace(position, gtids=position.gtids.add(gtid))


@contextmanager
def held(server: MySQLServer, statement: str) -> Iterator[None]:
    """`statement`, written to the binary log and not visible for some seconds: semi-synchronous, AFTER_SYNC, without a replica."""
    server.execute("SET GLOBAL rpl_semi_sync_source_enabled = ON")
    thread = threading.Thread(target=server.execute, args=(statement,))
    thread.start()
    time.sleep(0.7)
    try:
        yield
    finally:
        thread.join()


def test_a_table_added_again_while_its_bootstrap_begins_gets_a_later_e0(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(mysql, table, 5)
    pipeline.add(table)
    begin = Progress.begin
    again: list[CommitRecord] = []

    def late(*arguments: Any) -> Progress:
        if not again:
            again.append(pipeline.add(table))
        return begin(*arguments)

    monkeypatch.setattr(Progress, "begin", late)
    assert not pipeline.bootstrap(table)
    status = pipeline.status(table)
    assert (status.phase, status.added, status.e0) == ("added", again[0].id, None)
    assert pipeline.bootstrap(table)
    e0 = pipeline.status(table).e0
    assert e0 is not None
    assert e0.number >= again[0].number


@pytest.mark.parametrize("mutant", ["", "mark_before_last_chunk"])
def test_the_mark_is_taken_after_the_last_chunk(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    numbers(mysql, table, 35)
    pipeline.add(table)
    monkeypatch.setattr(faults, "_mutants", frozenset({mutant}))
    ends: list[BinlogEnd] = []

    def write(rows: int, _: int) -> None:
        if rows == 35 and not ends:
            mysql.execute(f"UPDATE {table.quoted} SET v = 0 WHERE id = 35")
            ends.append(pipeline.position().end)

    direct_told(pipeline, table, write)
    mark = pipeline.status(table).mark
    assert mark is not None
    assert (mark < ends[0]) == bool(mutant)


def test_other_mutants_are_made(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(mysql, table, 5)
    monkeypatch.setattr(faults, "_mutants", frozenset({"e0_before_added", "ready_by_gtid_executed"}))
    record = pipeline.add(table)
    assert pipeline.bootstrap(table)
    status = pipeline.status(table)
    assert status.e0 is not None
    assert status.e0.number < record.number
    assert status.mark is not None
    assert GtidSet.parse(status.mark.file) == GtidSet.parse(mysql.gtid_executed)


@pytest.mark.parametrize("mutant", ["", "e0_at_part"])
def test_e0_is_never_within_a_transaction(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    """Capture has logged a part of a large transaction, which the source does not show yet."""
    numbers(mysql, table, 5)
    monkeypatch.setattr(faults, "_mutants", frozenset({mutant} - {""}))
    added = pipeline.add(table)
    partial = Fingerprint(Gtid(added.end.server_uuid, 10**6), 1, 7)
    part = pipeline.epoch(replace(added.end, partial=partial), transactions=0)
    assert pipeline.bootstrap(table)
    applied = pipeline.loaded(table).applied
    assert applied is not None
    assert applied.epoch == (part.id if mutant else added.id)
    assert applied.position.whole == (not mutant)


def test_it_waits_for_the_record_that_adds_the_table(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    numbers(mysql, table, 5)
    record = pipeline.add(table)
    pipeline.state.set_table(table, "added", added=record.id._replace(number=record.number + 1))
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    assert not snapshot.Bootstrap(pipeline.config, pipeline.log, pipeline.state, table).run(stop)
    assert pipeline.status(table).phase == "added"
    assert pipeline.lake(table).load() is None


def test_another_hash_under_the_number_did_not_add_the_table(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName
) -> None:
    numbers(mysql, table, 5)
    record = pipeline.add(table)
    pipeline.state.set_table(table, "added", added=record.id._replace(hash="0" * 64))
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    assert not snapshot.Bootstrap(pipeline.config, pipeline.log, pipeline.state, table).run(stop)


def test_another_server_begins_it_anew(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    numbers(mysql, table, 35)
    pipeline.add(table)
    moved: list[int] = []

    def tell(rows: int, _: int) -> None:
        if rows and not moved:  # capture went there and came back: chunks may hold what the stream never names
            moved.append(rows)
            pipeline.epoch(pipeline.invented(pipeline.position(), OTHER_SERVER))
            pipeline.epoch()

    direct_told(pipeline, table, tell)
    newest = pipeline.log.newest()
    assert newest is not None
    assert moved
    assert pipeline.status(table).e0 == newest.id
    assert pipeline.loaded(table).version == 0
    assert lake_rows(pipeline, table) == source_rows(mysql, table)
    assert data_files(pipeline, table) == set(pipeline.loaded(table).files)


def test_chunks_are_not_read_from_another_server(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    numbers(mysql, table, 5)
    pipeline.add(table)
    pipeline.epoch(pipeline.invented(pipeline.position(), OTHER_SERVER))
    with pytest.raises(SourceUnavailableError, match="another server"):
        pipeline.bootstrap(table)
    pipeline.epoch()
    assert pipeline.bootstrap(table)


def test_a_log_without_e0_begins_it_anew(mysql: MySQLServer, tmp_path: Path, table: TableName) -> None:
    numbers(mysql, table, 30)
    with Pipeline(tmp_path, mysql.url()) as pipeline:
        pipeline.add(table)
        stop = threading.Event()
        with pytest.raises(InterruptedError):
            direct_told(pipeline, table, raising_after(10))
        assert pipeline.status(table).phase == "snapshot"
        first = pipeline.status(table).e0
    for path in tmp_path.glob("log.db*"):
        path.unlink()
    with Pipeline(tmp_path, mysql.url()) as pipeline:
        record = pipeline.add(table)
        pipeline.state.set_table(table, "snapshot", e0=first)
        pipeline.state.set_table(table, "snapshot", added=record.id)
        assert snapshot.Bootstrap(pipeline.config, pipeline.log, pipeline.state, table).run(stop)
        assert pipeline.status(table).e0 == record.id
        assert lake_rows(pipeline, table) == source_rows(mysql, table)
        assert data_files(pipeline, table) == set(pipeline.loaded(table).files)


def direct_told(pipeline: Pipeline, table: TableName, tell: Callable[[int, int], None]) -> None:
    """A bootstrap that tells of its progress after every batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "TELL_S", 0.0)
        assert pipeline.bootstrap(table, progress=tell)


def raising_after(rows: int) -> Callable[[int, int], None]:
    def tell(read: int, _: int) -> None:
        if read > rows:
            raise InterruptedError

    return tell


# -- kills ----------------------------------------------------------------------------------------------------------------


def killed(tmp_path: Path, server: MySQLServer, table: TableName, fault: str, readers: int = 1) -> None:
    """Bootstrap in another process, which dies at `fault`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.bootstrapping", str(tmp_path), server.url(), str(table), "10", str(readers)],
        env={**os.environ, "LAKESYNC_FAULTS": fault},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == -9, f"not killed at {fault}: {done.returncode}\n{done.stderr}"


@pytest.mark.parametrize(
    "fault",
    [
        "snapshot.after-added",
        "snapshot.after-e0",
        *(f"snapshot.chunk:{n}" for n in range(1, 5)),
        *(f"snapshot.chunk-recorded:{n}" for n in range(1, 5)),
        "lake.after-data-files:2",
        "snapshot.before-commit",
        "lake.before-commit",
        "lake.after-commit",
        "snapshot.after-commit",
    ],
)
def test_a_killed_bootstrap_goes_on(mysql: MySQLServer, tmp_path: Path, table: TableName, fault: str) -> None:
    numbers(mysql, table, 35)
    with Pipeline(tmp_path, mysql.url()) as pipeline:
        pipeline.add(table)
        killed(tmp_path, mysql, table, f"kill:{fault}")
        kept = kept_files(pipeline, table)
        if ":" in fault:
            assert len(kept) == int(fault[-1]) - (0 if "recorded" in fault else 1)
        mysql.execute(f"UPDATE {table.quoted} SET v = -1 WHERE id IN (1, 35)")
        later = pipeline.epoch()
        assert pipeline.bootstrap(table)

        loaded, status = pipeline.loaded(table), pipeline.status(table)
        assert loaded.version == 0, "one commit"
        assert kept <= set(loaded.files), "a chunk was read twice"
        assert data_files(pipeline, table) == set(loaded.files), "something is left over"
        assert Counter(row[0] for row in lake_rows(pipeline, table)) == Counter(range(1, 36))
        assert status.phase == "catching-up"
        assert status.mark is not None
        assert status.mark >= later.end.end, "the mark is not new"
        assert loaded.applied is not None
        assert loaded.applied.epoch == status.e0


def kept_files(pipeline: Pipeline, table: TableName) -> set[str]:
    progress = Progress.resume(pipeline.state.folder / "snapshot" / table.folder)
    if progress is None:
        return set()
    try:
        return {f.name for f in progress.files()}
    finally:
        progress.close()


def test_killed_again_and_again(mysql: MySQLServer, tmp_path: Path, table: TableName) -> None:
    numbers(mysql, table, 60)
    with Pipeline(tmp_path, mysql.url(), readers=2) as pipeline:
        pipeline.add(table)
        for fault in ("snapshot.chunk", "snapshot.chunk:2", "snapshot.chunk-recorded", "snapshot.chunk:2"):
            killed(tmp_path, mysql, table, f"kill:{fault}", readers=2)
        assert pipeline.bootstrap(table)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)
        assert data_files(pipeline, table) == set(pipeline.loaded(table).files)


def test_a_lost_connection_can_be_retried(mysql_factory: Callable[..., MySQLServer], tmp_path: Path) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE d")
    table = TableName("d", "t")
    fill(server, table, "id INT PRIMARY KEY, v BLOB", [(n, b"x" * 60_000) for n in range(300)])
    with Pipeline(tmp_path, server.url(), chunk_rows=100) as pipeline:
        pipeline.add(table)

        def kill(rows: int, _: int) -> None:
            if rows > 100:
                server.kill()

        with pytest.raises(SourceUnavailableError):
            direct_told(pipeline, table, kill)
        server.start()
        kept = kept_files(pipeline, table)
        assert len(kept) == 1
        assert pipeline.bootstrap(table)
        assert kept <= set(pipeline.loaded(table).files)
        assert lake_rows(pipeline, table) == source_rows(server, table)


def test_stop_ends_it_and_it_goes_on(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    numbers(mysql, table, 100)
    pipeline.add(table)
    stop = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "TELL_S", 0.0)
        patch.setattr(copying, "POLL_S", 0.001)
        waiting = threading.Event()

        def tell(rows: int, _: int) -> None:
            if rows > 20:
                stop.set()
                waiting.wait(0.1)

        bootstrap = snapshot.Bootstrap(pipeline.config, pipeline.log, pipeline.state, table)
        assert not bootstrap.run(stop, tell)
    assert pipeline.status(table).phase == "snapshot"
    assert 0 < len(kept_files(pipeline, table)) < 10
    assert pipeline.bootstrap(table)
    assert lake_rows(pipeline, table) == source_rows(mysql, table)


# -- what stops a table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("ALTER TABLE {t} ADD COLUMN w INT", "column w is new"),
        ("ALTER TABLE {t} DROP COLUMN v", "column v is gone"),
        ("ALTER TABLE {t} MODIFY v BIGINT", "column v is bigint, was int"),
        ("ALTER TABLE {t} DROP PRIMARY KEY, ADD PRIMARY KEY (v)", r"the key is \(v\), was \(id\)"),
        ("ALTER TABLE {t} MODIFY v INT FIRST", "the columns' order changed"),
        ("DROP TABLE {t}", "does not exist"),
    ],
)
@pytest.mark.parametrize("at", [0, 20, 35])
def test_ddl_in_the_middle_stops_the_table(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName, statement: str, what: str, at: int
) -> None:
    numbers(mysql, table, 35)
    pipeline.add(table)
    done: list[int] = []

    def alter(rows: int, _: int) -> None:
        if rows >= at and not done:
            done.append(rows)
            mysql.execute(statement.format(t=table.quoted))

    with pytest.raises(TableStoppedError, match=what) as caught:
        direct_told(pipeline, table, alter)
    assert f"resync {table}" in caught.value.hint
    assert str(table) in caught.value.where
    assert pipeline.lake(table).load() is None


def test_a_value_that_does_not_fit_is_kept_as_text(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    days = ["2024-01-01", "0000-00-00", "2024-02-31", None]
    columns = "id INT PRIMARY KEY, day DATE, t VARCHAR(9) CHARACTER SET cp1250"
    fill(mysql, table, columns, [])
    with mysql.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        rows = [(n, days[n % 4]) for n in range(40)]
        cursor.executemany(f"INSERT INTO {table.quoted} VALUES (%s, %s, _cp1250 x'81')", rows)
    pipeline.add(table)
    assert pipeline.bootstrap(table)
    found = pa.concat_tables(
        pa.Table.from_batches([b]) for b in pipeline.lake(table).scan(pipeline.loaded(table))
    ).sort_by("id")
    assert found.column("t").null_count == 40
    texts = {0: {"t": "81"}, 1: {"t": "81", "day": days[1]}, 2: {"t": "81", "day": days[2]}, 3: {"t": "81"}}
    unfit: list[Any] = found.column("_cdc_unfit").to_pylist()
    assert [dict(kept) for kept in unfit] == [texts[n % 4] for n in range(40)]
    assert found.column("day").null_count == 30


def test_a_key_that_does_not_fit_stops_the_table(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    fill(mysql, table, "day DATE PRIMARY KEY, v INT", [(f"2024-01-{n:02}", n) for n in range(1, 20)])
    with mysql.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        cursor.execute(f"INSERT INTO {table.quoted} VALUES ('2024-02-31', 1)")
    pipeline.add(table)
    with pytest.raises(TableStoppedError, match="day") as caught:
        pipeline.bootstrap(table)
    assert caught.value.where == str(table)
    assert "types:" in caught.value.hint


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ("id INT, v INT", "no primary key"),
        ("id INT PRIMARY KEY, v ENUM('a') CHARACTER SET binary", "character set binary"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_before_reading(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName, columns: str, what: str
) -> None:
    fill(mysql, table, columns, [])
    pipeline.add(table)
    with pytest.raises(TableStoppedError, match=what) as caught:
        pipeline.bootstrap(table)
    assert str(table) in caught.value.where


def test_an_occupied_folder_is_refused(mysql: MySQLServer, pipeline: Pipeline, table: TableName) -> None:
    numbers(mysql, table, 5)
    folder = Path(pipeline.config.lake) / table.folder
    folder.parent.mkdir(parents=True)
    deltalake.write_deltalake(str(folder), pa.table({"theirs": [1, 2, 3]}))
    pipeline.add(table)
    with pytest.raises(LakeOccupiedError):
        pipeline.bootstrap(table)
    assert deltalake.DeltaTable(str(folder)).version() == 0


# -- resync ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["", "snapshot.chunk:2", "snapshot.before-commit", "snapshot.after-commit"])
def test_a_resync_replaces_every_file_in_one_commit(
    mysql: MySQLServer, tmp_path: Path, table: TableName, fault: str
) -> None:
    numbers(mysql, table, 35)
    with Pipeline(tmp_path, mysql.url()) as pipeline:
        pipeline.add(table)
        assert pipeline.bootstrap(table)
        before, old = pipeline.loaded(table), lake_rows(pipeline, table)
        mysql.execute(f"UPDATE {table.quoted} SET v = -v")
        mysql.execute(f"DELETE FROM {table.quoted} WHERE id % 7 = 0")
        pipeline.add(table)
        if fault:
            killed(tmp_path, mysql, table, f"kill:{fault}")
            if fault != "snapshot.after-commit":
                assert lake_rows(pipeline, table) == old, "half of it is visible"
        assert pipeline.bootstrap(table)

        after = pipeline.loaded(table)
        assert after.version == 1
        assert not set(before.files) & set(after.files)
        assert lake_rows(pipeline, table) == source_rows(mysql, table)
        # The version before can still be read, and nothing else is there.
        old_frame = polars.read_delta(str(after.folder), version=0)
        assert Counter(row[:-2] for row in old_frame.rows()) == old
        assert data_files(pipeline, table) == {*before.files, *after.files}


def test_a_resync_of_an_idle_table_is_not_mistaken_for_done(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName
) -> None:
    """The lake stands at e0 already, and yet is not what was read."""
    numbers(mysql, table, 5)
    pipeline.add(table)
    assert pipeline.bootstrap(table)
    applied = pipeline.loaded(table).applied
    assert applied is not None
    mysql.execute("SET @x = 1")
    mysql.execute(f"UPDATE {table.quoted} SET v = 77")
    pipeline.state.set_table(table, "added")
    assert pipeline.bootstrap(table)
    assert pipeline.status(table).e0 == applied.epoch
    assert pipeline.loaded(table).version == 1
    assert lake_rows(pipeline, table) == source_rows(mysql, table)


# -- the node --------------------------------------------------------------------------------------------------------------


@contextmanager
def node(pipeline: Pipeline) -> Iterator[None]:
    stop, failed = threading.Event(), []

    def work() -> None:
        try:
            snapshot.run(pipeline.config, pipeline.log, pipeline.state, stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert not failed


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_the_node_reads_every_table_and_stops_only_what_fails(mysql: MySQLServer, tmp_path: Path, schema: str) -> None:
    tables = [TableName(schema, f"t{n}") for n in range(5)]
    for table in tables:
        numbers(mysql, table, 35)
    broken, log_only = TableName(schema, "broken"), TableName(schema, "log_only")
    fill(mysql, broken, "id INT PRIMARY KEY, v ENUM('a') CHARACTER SET binary", [])
    numbers(mysql, log_only, 5)
    with Pipeline(tmp_path, mysql.url(), readers=2) as pipeline:
        for table in [*tables, broken]:
            pipeline.add(table)
        pipeline.add(log_only, mode="append")
        with node(pipeline):
            until(lambda: all(pipeline.status(t).phase == "catching-up" for t in tables))
            until(lambda: pipeline.status(broken).phase == "stopped")
            assert pipeline.state.nodes()["snapshot"].pid == os.getpid()
            late = TableName(schema, "late")
            numbers(mysql, late, 3)
            pipeline.add(late)
            until(lambda: pipeline.status(late).phase == "catching-up")
        for table in [*tables, late]:
            assert lake_rows(pipeline, table) == source_rows(mysql, table)
        error = pipeline.status(broken).error
        assert error is not None
        assert (error["node"], error["code"]) == ("snapshot", "TableStopped")
        assert pipeline.status(log_only).phase == "added"


def test_the_node_retries_while_the_server_is_away(mysql_factory: Callable[..., MySQLServer], tmp_path: Path) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE d")
    table = TableName("d", "t")
    numbers(server, table, 35)
    with Pipeline(tmp_path, server.url()) as pipeline:
        pipeline.add(table)
        server.kill()
        with node(pipeline):
            until(lambda: bool(pipeline.state.errors()))
            assert pipeline.status(table).phase in ("added", "snapshot")
            server.start()
            until(lambda: pipeline.status(table).phase == "catching-up")
        assert lake_rows(pipeline, table) == source_rows(server, table)
        assert pipeline.state.errors()[0]["code"] == "SourceUnavailable"


def test_the_node_begins_anew_where_capture_moves_before_the_table_is_ready(
    mysql: MySQLServer, pipeline: Pipeline, table: TableName
) -> None:
    numbers(mysql, table, 5)
    pipeline.add(table)
    assert pipeline.bootstrap(table)
    first = pipeline.status(table)
    pipeline.state.set_table(table, "catching-up", mark=BinlogEnd("binlog.000001", 4), mark_server=OTHER_SERVER)
    with node(pipeline):
        until(lambda: pipeline.loaded(table).version == 1)
        until(lambda: pipeline.status(table).phase == "catching-up")
    assert pipeline.status(table).mark_server == first.mark_server
