"""No imbalance is reported where nothing is wrong: what was trimmed, cleaned, compacted, read again, lost and read again, cut into parts, killed."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cdc.lake import LakeTable
from cdc.log import open_log
from cdc.names import TableName
from cdc.trace.tables import NODES
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from reconcile.ledger import balance, framing
from reconcile.ledger.close import SOURCE, Edge
from tests.faults.rig import Rig, seed
from tests.integration.ledgers import closed, config_of, copied, equation, imbalances, of, records, trace

pytestmark = pytest.mark.timeout(300)
T = "legal.t"


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        yield started


@pytest.fixture(scope="module")
def base(server: MySQLServer, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """An upserted table and one that keeps every change; caught up, and four more rounds."""
    server.execute("CREATE DATABASE legal")
    server.execute("CREATE TABLE legal.t (id INT PRIMARY KEY, v VARCHAR(200))")
    server.execute("CREATE TABLE legal.a (id INT PRIMARY KEY, v VARCHAR(200))")
    server.execute(f"INSERT INTO legal.t VALUES {', '.join(f'({i}, {i})' for i in range(300))}")
    made = Rig(
        tmp_path_factory.mktemp("base") / "p",
        server,
        [T, "legal.a"],
        settings={"tables": [T, {"name": "legal.a", "mode": "append"}]},
    )
    assert made.catch_up().returncode == 0
    for step in range(4):
        change(made, step)
        assert made.catch_up().returncode == 0
    return made


@pytest.fixture
def rig(base: Rig, tmp_path: Path) -> Iterator[Rig]:
    """A copy that has everything that the source has."""
    copy = copied(base, tmp_path / "p")
    assert copy.catch_up().returncode == 0
    yield copy
    copy.close()


_numbers = iter(range(1000, 1_000_000, 10))


def change(rig: Rig, step: int = 0) -> None:
    """Some of everything, in several transactions."""
    first = next(_numbers)
    rig.server.execute(f"INSERT INTO legal.t VALUES {', '.join(f'({first + i}, {i})' for i in range(6))}")
    rig.server.execute(f"UPDATE legal.t SET v = CONCAT('step ', {first}) WHERE id < 20")
    rig.server.execute(f"UPDATE legal.t SET id = id + 5 WHERE id = {first + 4}")
    rig.server.execute(f"DELETE FROM legal.t WHERE id IN ({first}, {100 + step})")
    rig.server.execute(f"REPLACE INTO legal.a VALUES ({first % 50}, 'x'), ({first % 50 + 1}, 'y')")


def fine(rig: Rig, **arguments: Any) -> Any:
    """The ledger, which closes."""
    report = closed(rig, **arguments)
    assert report.closes, imbalances(report)
    return report


def forget(rig: Rig) -> None:
    """The trace is lost."""
    shutil.rmtree(rig.state / "trace", ignore_errors=True)
    (rig.state / "trace.json").unlink(missing_ok=True)


def trim(rig: Rig) -> int:
    """Of the log, all but the newest record; its number."""
    config = config_of(rig)
    with closing(open_log(config.log, config.name)) as log:
        newest = log.newest()
        assert newest is not None
        log.trim(newest.number)
        return newest.number


@pytest.mark.parametrize("before", ["trimmed", "trimmed before the trace was made"])
def test_a_log_that_was_trimmed(rig: Rig, before: str) -> None:
    settings = rig.config.read_bytes().replace(b'"linger":"50ms"', b'"linger":"50ms","checkpoint_epochs":1')
    rig.config.write_bytes(settings)
    change(rig)
    assert rig.catch_up().returncode == 0
    if before == "trimmed":
        fine(rig)
    else:
        forget(rig)
    trim(rig)
    assert len(records(rig)) < 3
    table = of(fine(rig), T)
    assert ("epochs that the trace does not have" in table.note) == (before != "trimmed")
    change(rig)
    assert rig.catch_up().returncode == 0
    table = of(fine(rig), T)
    assert equation(table, balance.ONCE).left > 0


def test_epochs_in_the_middle_that_neither_log_nor_trace_has(rig: Rig) -> None:
    """By the totals on both sides of the gap; and what is missing is said."""
    settings = rig.config.read_bytes().replace(b'"linger":"50ms"', b'"linger":"50ms","checkpoint_epochs":1')
    rig.config.write_bytes(settings)
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)
    change(rig)
    assert rig.catch_up().returncode == 0
    found = [r for r in records(rig) if "legal.t" in r.tables]
    lost = found[-1].number
    fine(rig)
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)
    trim(rig)
    trace(
        rig, f"ALTER TABLE {NODES} DELETE WHERE node IN ('source', 'capture', 'log') AND number IN ({lost - 1}, {lost})"
    )
    report = fine(rig)
    source = of(report, SOURCE)
    assert f"epochs {lost - 1} to {lost} are in neither the log nor the trace" in source.note
    assert "epochs that the trace does not have" in of(report, T).note


def test_a_trace_that_is_past_its_time(rig: Rig) -> None:
    """ClickHouse deletes what is older when it pleases: of that nothing is expected to be there, nor gone."""
    whole = of(fine(rig), T)
    time.sleep(3)
    for _ in range(3):
        fine(rig, keep_s=1.0)
    trace(rig, f"OPTIMIZE TABLE {NODES} FINAL")
    report = fine(rig, keep_s=1.0)
    assert of(report, T).first > whole.first
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)
    fine(rig, keep_s=1.0)


def test_commits_of_the_lake_that_were_cleaned_before_the_trace_had_them(rig: Rig) -> None:
    assert rig.lakesync("optimize", T).returncode == 0
    log = rig.lake / "legal" / "t" / "_delta_log"
    newest = max(int(f.name[:20]) for f in log.glob("*.checkpoint.parquet"))
    change(rig)
    assert rig.catch_up().returncode == 0
    for file in log.glob("*.json"):
        if file.stem.isdigit() and int(file.stem) < newest:
            file.unlink()
    forget(rig)
    table = of(fine(rig), T)
    assert "in neither the lake nor the trace" in table.note
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)


def test_commits_in_the_middle_that_were_cleaned(rig: Rig) -> None:
    """Their sums are what the totals of the commits around them differ by."""
    fine(rig)
    log = rig.lake / "legal" / "t" / "_delta_log"
    for _ in range(3):
        change(rig)
        assert rig.catch_up().returncode == 0
    assert rig.lakesync("optimize", T).returncode == 0
    fine(rig)
    version = max(int(f.name[:20]) for f in log.glob("*.checkpoint.parquet")) - 1
    for file in log.glob("*.json"):
        if file.stem.isdigit() and int(file.stem) <= version:
            file.unlink()
    trace(
        rig,
        f"ALTER TABLE {NODES} DELETE WHERE node = 'merge' AND `table` = '{T}' AND version IN ({version - 2}, {version - 1})",
    )
    table = of(fine(rig), T)
    assert equation(table, balance.NOW).right > 0


def test_compaction_resync_and_a_table_that_goes_and_comes(rig: Rig) -> None:
    assert rig.lakesync("optimize", T, "legal.a").returncode == 0
    fine(rig)
    change(rig)
    assert rig.lakesync("resync", T).returncode == 0
    assert rig.catch_up().returncode == 0
    table = of(fine(rig), T)
    assert table.version_first > 0
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)
    assert rig.lakesync("remove", T).returncode == 0
    assert rig.catch_up().returncode == 0
    change(rig)
    assert rig.lakesync("add", T).returncode == 0
    assert rig.catch_up().returncode == 0
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)


@pytest.mark.parametrize("known", [True, False], ids=["the trace had it", "the trace had it not"])
@pytest.mark.parametrize("kept", [True, False], ids=["trace kept", "trace lost"])
def test_a_log_that_lost_its_end_and_read_it_again(rig: Rig, tmp_path: Path, known: bool, kept: bool) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in rig.state.glob("log.db*"):
        shutil.copy2(file, copy / file.name)
    for _ in range(2):
        change(rig)
        assert rig.catch_up().returncode == 0
    if known:
        fine(rig)
    for file in rig.state.glob("log.db*"):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy2(file, rig.state / file.name)
    change(rig)
    assert rig.catch_up().returncode == 0
    if not kept:
        forget(rig)
    fine(rig)
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)


def test_a_log_that_lost_its_end_before_it_was_merged(rig: Rig) -> None:
    newest = records(rig)[-1].number
    process = rig.start("--node", "capture")
    change(rig)
    rig.wait(lambda: records(rig)[-1].number > newest, "an epoch is logged")
    assert rig.stop(process) == 0
    fine(rig)
    with closing(sqlite3.connect(rig.log_file, timeout=30)) as log:
        log.execute("DELETE FROM commits WHERE number > ?", (newest,))
        log.commit()
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)


def test_a_log_that_was_replaced(rig: Rig) -> None:
    fine(rig)
    for file in rig.state.glob("log.db*"):
        file.unlink()
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)
    change(rig)
    assert rig.catch_up().returncode == 0
    table = of(fine(rig), T)
    assert "another log goes on" in table.note


def test_rows_that_are_read_again(rig: Rig) -> None:
    process = rig.start()
    change(rig)
    assert rig.lakesync("snapshot", T).returncode == 0
    change(rig)
    assert rig.lakesync("snapshot", T, "--key", "3", "--key", "999999").returncode == 0
    assert rig.stop(process) == 0
    assert rig.catch_up().returncode == 0
    table = of(fine(rig), T)
    assert equation(table, balance.WINDOWS).left > 200


def test_windows_that_the_log_lost_and_that_are_read_again(rig: Rig, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in rig.state.glob("log.db*"):
        shutil.copy2(file, copy / file.name)
    process = rig.start()
    assert rig.lakesync("snapshot", T).returncode == 0
    assert rig.stop(process) == 0
    fine(rig)
    for file in rig.state.glob("log.db*"):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy2(file, rig.state / file.name)
    change(rig)
    process = rig.start()
    assert rig.lakesync("snapshot", T).returncode == 0
    change(rig)
    assert rig.stop(process) == 0
    assert rig.catch_up().returncode == 0
    fine(rig)


def test_xa_rotation_savepoints_and_statements(rig: Rig) -> None:
    server, first = rig.server, next(_numbers)
    before = records(rig)[-1].number
    process = rig.start()
    with server.root() as one, server.root() as two, one.cursor() as cursor, two.cursor() as other:
        cursor.execute("XA START 'x'")
        cursor.execute(f"INSERT INTO legal.t VALUES ({first}, 'xa')")
        cursor.execute("XA END 'x'")
        cursor.execute("XA PREPARE 'x'")
        change(rig)
        rig.wait(lambda: records(rig)[-1].number > before, "an epoch")
        other.execute("FLUSH BINARY LOGS")
        change(rig)
        fine(rig)
        other.execute("XA START 'y'")
        other.execute(f"INSERT INTO legal.t VALUES ({first + 1}, 'xa')")
        other.execute("XA END 'y'")
        other.execute("XA PREPARE 'y'")
        other.execute("XA ROLLBACK 'y'")
    with server.root() as three, three.cursor() as cursor:
        cursor.execute("XA COMMIT 'x'")
        cursor.execute("BEGIN")
        cursor.execute(f"INSERT INTO legal.t VALUES ({first + 2}, 'kept')")
        cursor.execute("SAVEPOINT s")
        cursor.execute(f"INSERT INTO legal.t VALUES ({first + 3}, 'undone')")
        cursor.execute("ROLLBACK TO s")
        cursor.execute("COMMIT")
        cursor.execute("CREATE TABLE legal.elsewhere (id INT PRIMARY KEY) AS SELECT 1 AS id")
        cursor.execute("DROP TABLE legal.elsewhere")
    change(rig)
    assert rig.stop(process) == 0
    assert rig.catch_up().returncode == 0
    assert equation(of(fine(rig), SOURCE), framing.OFFSETS).left > 0


def test_parts_of_a_large_transaction_with_kills_within(rig: Rig) -> None:
    rig.config.write_bytes(rig.config.read_bytes().replace(b'"linger":"50ms"', b'"linger":"50ms","part_size":"64KiB"'))
    first = next(_numbers) + 5_000_000
    with rig.server.root() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for start in range(first, first + 4000, 500):
            cursor.execute(
                f"INSERT INTO legal.t VALUES {', '.join(f'({i}, REPEAT(1, 150))' for i in range(start, start + 500))}"
            )
        cursor.execute(f"UPDATE legal.t SET v = REPEAT(2, 150) WHERE id >= {first}")
        cursor.execute("COMMIT")
    assert rig.catch_up(faults="kill:log.after-commit:4").returncode == -9
    report = fine(rig)
    assert any(r.end.partial for r in records(rig))
    assert report.epoch > 0
    assert rig.catch_up(faults="kill:lake.after-commit:2").returncode in (0, -9)
    fine(rig)
    assert rig.catch_up().returncode == 0
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)
    rig.server.execute(f"DELETE FROM legal.t WHERE id >= {first}")


KILLS = (
    "log.after-data",
    "log.before-commit",
    "log.after-commit",
    "capture.before-epoch",
    "merge.round",
    "merge.after-round",
    "lake.after-data-files",
    "lake.before-commit",
    "lake.after-commit",
    "lake.after-index",
    "lake.manifest",
    "trace.insert",
)


def test_kills_under_load(rig: Rig) -> None:
    """In flight or not, at every start the ledger closes."""
    dice = random.Random(seed())
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.01):
            change(rig)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for kill in dice.sample(KILLS, 6):
            process = rig.start(faults=f"kill:{kill}:{dice.randrange(1, 6)}")
            try:
                process.wait(6)
            except Exception:
                rig.kill(process)
            fine(rig)
    finally:
        stop.set()
        writer.join()
    assert rig.catch_up().returncode == 0
    fine(rig)
    assert of(fine(rig), T).in_flight == 0


def test_a_window(rig: Rig) -> None:
    """From the commit before it to the commit that holds its end; what came before and after is not in it."""
    fine(rig)
    edges = [records(rig)[-1].number]
    for _ in range(3):
        change(rig)
        assert rig.catch_up().returncode == 0
        edges.append(records(rig)[-1].number)
    whole = of(fine(rig), T)
    parts = [of(fine(rig, since=Edge(epoch=a + 1), until=Edge(epoch=b)), T) for a, b in pairwise(edges)]
    for part, (a, b) in zip(parts, pairwise(edges), strict=True):
        assert part.first <= a
        assert a < part.last <= b
        assert 27 <= equation(part, balance.LOGGED).left <= 29
    assert parts[1].version_first == parts[0].version_last
    assert parts[2].version_last == whole.version_last
    counted = [equation(p, balance.FOLDED).left for p in parts]
    assert equation(whole, balance.FOLDED).left > sum(counted) > 80
    times = {r.number: r.raw_us for r in records(rig)}
    by_time = of(fine(rig, since=Edge(us=times[edges[1]] + 1), until=Edge(us=times[edges[2]])), T)
    assert (by_time.version_first, by_time.version_last) == (parts[1].version_first, parts[1].version_last)


def test_restating_the_position(rig: Rig) -> None:
    config = config_of(rig)
    lake = LakeTable(config.lake_root, TableName("legal", "t"), config.name)
    snapshot = lake.load()
    assert snapshot is not None
    assert snapshot.applied is not None
    lake.restate(snapshot, snapshot.applied)
    fine(rig)
    change(rig)
    assert rig.catch_up().returncode == 0
    fine(rig)


@pytest.fixture(params=["mysql", "mariadb"])
def either(request: pytest.FixtureRequest) -> tuple[SqlServer, str]:
    flavor = request.param
    return request.getfixturevalue(flavor), request.getfixturevalue("schema" if flavor == "mysql" else "mariadb_schema")


def test_every_mode_and_shards(either: tuple[SqlServer, str], tmp_path: Path) -> None:
    """While writes go on, with truncations of shards, tables that rejoin, and a binary log that is rotated."""
    server, schema = either
    names = ("up", "app", "hist", "soft", "shard_1", "shard_2")
    for name in names:
        server.execute(f"CREATE TABLE `{schema}`.{name} (id INT PRIMARY KEY, v VARCHAR(40))")
        server.execute(f"INSERT INTO `{schema}`.{name} VALUES {', '.join(f'({i}, {i})' for i in range(60))}")
    entries: list[Any] = [
        f"{schema}.up",
        {"name": f"{schema}.app", "mode": "append", "backfill": True},
        {"name": f"{schema}.hist", "mode": "history"},
        {"name": f"{schema}.soft", "mode": "soft-delete"},
        {"name": f"{schema}.shard_*", "into": f"{schema}.shards", "shard_column": "shard"},
    ]
    rig = Rig(tmp_path / "p", server, [], settings={"tables": entries})
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.wait(0.02):
            n += 1
            name = names[n % len(names)]
            server.execute(f"REPLACE INTO `{schema}`.{name} VALUES ({n % 80}, 'n{n}')")
            server.execute(f"DELETE FROM `{schema}`.{name} WHERE id = {n % 7}")
            server.execute(f"UPDATE `{schema}`.{name} SET id = id + 1000 WHERE id = {n % 80} AND v = 'n{n}'")
            if n % 60 == 0:
                server.execute(f"TRUNCATE TABLE `{schema}`.shard_{1 + n // 60 % 2}")
            if n % 45 == 0:
                server.execute("FLUSH BINARY LOGS")

    writer = threading.Thread(target=write)
    try:
        process = rig.start()
        for name in ("up", "app", "hist", "soft", "shards"):
            rig.wait_phase(f"{schema}.{name}", "ready")
        writer.start()
        for _ in range(3):
            stop.wait(1.5)
            fine(rig)
        for name in ("hist", "soft", "shards"):
            assert rig.lakesync("resync", f"{schema}.{name}").returncode == 0
        stop.wait(2)
        fine(rig)
        stop.set()
        writer.join()
        assert rig.stop(process) == 0
        assert rig.catch_up().returncode == 0
        report = fine(rig)
        assert all(t.in_flight == 0 for t in report.tables)
    finally:
        stop.set()
        rig.close()
