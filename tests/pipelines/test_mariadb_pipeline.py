"""A whole pipeline on MariaDB: bootstrap and stream under writes and kills, to the same rows, and lakesync's own proofs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import polars
import pytest

from cdc import faults
from cdc.names import TableName
from dev import shop
from dev.mariadb import MariaDBServer
from tests.faults.rig import Rig
from tests.integration.bootstrapping import Pipeline
from tests.integration.test_mariadb import needs

TABLES = [f"shop.{name}" for name in shop.TABLES]


@pytest.fixture
def piped(tmp_path: Path, mariadb_factory: Callable[..., MariaDBServer]) -> Iterator[Rig]:
    """A shop on a server of its own, and a pipeline of all its tables."""
    server = mariadb_factory()
    shop.create(server, rows=6_000, seed=1)
    rig = Rig(tmp_path / "pipeline", server, TABLES, settings={"snapshot": {"chunk_rows": 200, "readers": 2}})
    yield rig
    rig.close()


KINDS = {
    "tiny": ("TINYINT UNSIGNED", "255"),
    "big": ("BIGINT UNSIGNED", "18446744073709551615"),
    "dc": ("DECIMAL(38,10)", "-1234567890.0123456789"),
    "huge": ("DECIMAL(60,5)", "12345678901234567890123456789012345678901234567890.5"),
    "f": ("FLOAT", "1.1"),
    "d": ("DOUBLE", "-2.5e-300"),
    "one": ("BIT(1)", "1"),
    "bits": ("BIT(13)", "b'1010101010101'"),
    "y": ("YEAR", "2024"),
    "day": ("DATE", "'2024-02-29'"),
    "zero": ("DATETIME(6)", "'0000-00-00'"),
    "at": ("DATETIME(3)", "'2024-02-29 12:34:56.789'"),
    "ts": ("TIMESTAMP(6) NULL", "'2024-02-29 12:34:56.789012'"),
    "tm": ("TIME(6)", "'-838:59:58.999999'"),
    "c": ("CHAR(10) CHARACTER SET latin1", "'é'"),
    "txt": ("TEXT CHARACTER SET utf16", "'🐬 é'"),
    "bin": ("BINARY(4)", "'ab'"),
    "blb": ("MEDIUMBLOB", "X'00FF'"),
    "e": ("ENUM('x','é') CHARACTER SET latin2", "'é'"),
    "st": ("SET('p','q','r')", "'r,p'"),
    "js": ("JSON", '\'{"b": 1,   "a": [1.0, null]}\''),
    "u": ("UUID", "'91a857a0-e5bc-11f1-80c1-02fc00000001'"),
    "i4": ("INET4", "'192.168.0.1'"),
    "i6": ("INET6", "'fe80::1:0'"),
    "g": ("POINT", "ST_PointFromText('POINT(1 2)', 4326)"),
    "v": ("VECTOR(3)", "VEC_FromText('[1,-2.5,3]')"),
}
"""A type for each column, and a value: what the copy and the stream must make the same of."""


def all_ready(rig: Rig) -> bool:
    return all(rig.phase(table) == "ready" for table in rig.tables)


@pytest.mark.timeout(300)
def test_the_lake_is_as_the_source_after_kills(piped: Rig) -> None:
    server = piped.server
    with shop.working(server, rate=60, seed=2) as work:
        # Killed while it copies, and while it follows.
        for wait_s in (1.5, 3.0):
            daemon = piped.start()
            time.sleep(wait_s)
            assert daemon.poll() is None, piped.last_words()
            piped.kill(daemon)
        daemon = piped.start()
        piped.wait(lambda: all_ready(piped), "all tables are ready", 120)
        piped.kill(daemon)
        assert work.transactions > 50
    done = piped.catch_up()
    assert done.returncode == 0, done.stderr
    verdict = piped.verdict()
    assert verdict.green, str(verdict)


@pytest.mark.timeout(300)
def test_a_server_that_is_killed_is_gone_on_with(piped: Rig) -> None:
    server = piped.server
    daemon = piped.start()
    piped.wait(lambda: all_ready(piped), "all tables are ready", 120)
    with shop.working(server, rate=60, seed=3):
        time.sleep(1)
    server.kill()
    time.sleep(0.5)
    server.start()
    with shop.working(server, rate=60, seed=4):
        time.sleep(1)
    assert daemon.poll() is None, piped.last_words()
    piped.stop(daemon)
    done = piped.catch_up()
    assert done.returncode == 0, done.stderr
    verdict = piped.verdict()
    assert verdict.green, str(verdict)


@pytest.mark.timeout(300)
def test_the_copy_and_the_stream_give_the_same_values(
    tmp_path: Path, mariadb_factory: Callable[..., MariaDBServer]
) -> None:
    server = mariadb_factory(options=["--log-bin-compress=ON", "--log-bin-compress-min-len=10"])
    needs(server, 11, 7)  # VECTOR
    server.execute("CREATE DATABASE shop")
    # Left out, and passed over in the stream, where the others are behind them.
    packed = {
        "p1": ("TINYBLOB COMPRESSED", "REPEAT('x', 200)"),
        "p2": ("TEXT COMPRESSED", "'x'"),
        "p3": ("VARCHAR(254) COMPRESSED CHARACTER SET latin1", "REPEAT('x', 254)"),
        "p4": ("VARCHAR(255) COMPRESSED CHARACTER SET latin1", "REPEAT('x', 255)"),
        "p5": ("VARBINARY(256) COMPRESSED", "NULL"),
        "g1": ("INT AS (tiny + 1) STORED", "DEFAULT"),
        "g2": ("INT AS (tiny + 2) VIRTUAL", "DEFAULT"),
        "p6": ("LONGTEXT COMPRESSED", "REPEAT('x', 100000)"),
    }
    all_columns = packed | KINDS
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in all_columns.items())
    server.execute(f"CREATE TABLE shop.kinds (id UUID PRIMARY KEY, {columns})")
    insert = f"INSERT INTO shop.kinds VALUES (UUID(), {', '.join(value for _, value in all_columns.values())})"
    rig = Rig(tmp_path / "pipeline", server, ["shop.kinds"])
    config = orjson.loads(rig.config.read_bytes())
    rig.config.write_bytes(orjson.dumps(config | {"tables": [{"name": "shop.kinds", "exclude": list(packed)}]}))
    with server.root("shop") as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = ''")
        cursor.execute(insert)
        assert rig.catch_up().returncode == 0
        cursor.execute(insert)
        cursor.execute(insert.replace("UUID()", "'00000000-0000-1000-8000-000000000000'"))
        cursor.execute("UPDATE shop.kinds SET id = UUID() WHERE id = '00000000-0000-1000-8000-000000000000'")
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    frame = polars.read_delta(str(rig.lake / "shop" / "kinds"))
    assert frame.height == 3
    assert not set(packed) & set(frame.columns)
    for name in KINDS:
        assert frame[name].n_unique() == 1, (name, frame[name].to_list())
        assert (frame[name].null_count() == 0) == (name != "zero")
    assert frame["_cdc_unfit"].n_unique() == 1
    done = rig.lakesync("reconcile", "--ledger", "--values")
    assert done.returncode == 0, done.stdout + done.stderr
    rig.close()


# where the copy meets the stream


@pytest.fixture
def held(mariadb_factory: Callable[..., MariaDBServer]) -> Iterator[MariaDBServer]:
    """`d.t` with five rows, and a sixth that is in the binary log and not visible for seconds: its commit waits for a replica."""
    server = mariadb_factory(
        options=["--rpl-semi-sync-master-wait-point=AFTER_SYNC", "--rpl-semi-sync-master-timeout=5000"]
    )
    server.execute("CREATE DATABASE d")
    server.execute("CREATE TABLE d.t (id INT PRIMARY KEY)")
    server.execute("INSERT INTO d.t VALUES (1), (2), (3), (4), (5)")
    server.execute("SET GLOBAL rpl_semi_sync_master_enabled = ON")
    before = server.executed
    thread = threading.Thread(target=server.execute, args=("INSERT INTO d.t VALUES (6)",))
    thread.start()
    while server.executed == before:
        time.sleep(0.01)
    assert server.execute("SELECT COUNT(*) FROM d.t") == [(5,)], "visible: nothing is tested"
    yield server
    thread.join()


def test_the_copy_waits_until_the_server_shows_e0(held: MariaDBServer, tmp_path: Path) -> None:
    """A transaction that was sent and that no SELECT sees yet must not be missing: no epoch after e0 brings it again."""
    table = TableName("d", "t")
    with Pipeline(tmp_path, held.url()) as pipeline:
        added = pipeline.add(table)
        assert str(added.end.gtids) == held.executed
        assert pipeline.bootstrap(table)
        rows = polars.read_delta(str(Path(pipeline.config.lake) / table.folder))["id"].to_list()
    assert sorted(rows) == [1, 2, 3, 4, 5, 6]


def test_the_mutant_without_the_wait_loses_a_row(
    held: MariaDBServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_mutants", frozenset({"no_wait"}))
    with pytest.raises(AssertionError, match=r"\[1, 2, 3, 4, 5\]"):
        test_the_copy_waits_until_the_server_shows_e0(held, tmp_path)
