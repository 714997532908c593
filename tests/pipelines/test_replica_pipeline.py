"""A whole pipeline whose rows come from a replica, under writes, with replication that stops and goes on."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql
import pytest

from cdc.names import TableName
from cdc.state import ReadSpec
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from tests.faults.rig import seed
from tests.integration.rereading import Rereading

TABLE = TableName("d", "t")
ROWS = 6000
"""So many that most are written at most once: what a stale read brings is not put right by chance."""


@pytest.fixture(params=["mysql", "mysql semi-sync", "mariadb", "mysql capture-behind"])
def servers(request: pytest.FixtureRequest) -> tuple[SqlServer, SqlServer, bool]:
    """A source and its replica; whether capture reads the replica, and rows come from the source."""
    kind: str = request.param
    factory: Callable[..., SqlServer] = request.getfixturevalue(f"{kind.split()[0]}_factory")
    options = []
    if "semi" in kind:
        # A replica without the plugin answers nothing: a commit is seen there before the source itself shows it.
        options = [
            "--plugin-load-add=semisync_source.so",
            "--rpl-semi-sync-source-timeout=150",
            "--rpl-semi-sync-source-enabled=ON",
            "--binlog-order-commits=OFF",
        ]
    source = factory(options=options)
    source.execute("CREATE DATABASE d")
    source.execute(f"CREATE TABLE {TABLE.quoted} (id INT PRIMARY KEY, v VARCHAR(40), n INT)")
    values = ", ".join(f"({2 * n}, 'v{n}', {n})" for n in range(1, ROWS + 1))
    source.execute(f"INSERT INTO {TABLE.quoted} VALUES {values}")
    replica = factory(replica_of=source)
    assert isinstance(replica, MySQLServer | MariaDBServer)
    replica.wait_for_source()
    return source, replica, "behind" in kind


@contextmanager
def writes(server: SqlServer, chance: random.Random) -> Iterator[None]:
    """Inserts, updates, deletes and other keys, from three connections."""
    over = threading.Event()

    def write(number: int) -> None:
        with server.root() as connection, connection.cursor() as cursor:
            while not over.is_set():
                key, other = chance.randrange(2 * ROWS), chance.randrange(2 * ROWS)
                sql = chance.choice(
                    (
                        f"REPLACE INTO {TABLE.quoted} VALUES ({key}, 'w{number}', {other})",
                        f"UPDATE {TABLE.quoted} SET n = n + 1 WHERE id = {key}",
                        f"DELETE FROM {TABLE.quoted} WHERE id = {key}",
                        f"UPDATE IGNORE {TABLE.quoted} SET id = {other} WHERE id = {key}",
                    )
                )
                try:
                    cursor.execute(sql)
                except pymysql.err.OperationalError:  # a deadlock
                    continue
                time.sleep(0.005)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def stuttering(replica: SqlServer, chance: random.Random) -> Iterator[None]:
    """Replication stops for moments."""
    over = threading.Event()
    word = "REPLICA" if isinstance(replica, MySQLServer) else "SLAVE"

    def stutter() -> None:
        while not over.wait(chance.random()):
            replica.execute(f"STOP {word} SQL_THREAD")
            over.wait(chance.random())
            replica.execute(f"START {word} SQL_THREAD")

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def unlogged(servers: tuple[SqlServer, SqlServer], *statements: str) -> None:
    """What no stream will ever say, on both."""
    for server in servers:
        with server.root() as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_log_bin = 0")
            for statement in statements:
                cursor.execute(statement)


@pytest.mark.timeout(180)
def test_first_reading_and_windows_from_a_replica(servers: tuple[SqlServer, SqlServer, bool], tmp_path: Path) -> None:
    chance = random.Random(seed())
    source, replica, behind = servers
    rig = Rereading(
        tmp_path,
        replica if behind else source,
        [str(TABLE)],
        source={"url": (source if behind else replica).url()},
        readers=2,
        chunk_rows=500,
        window_rows=500,
        throttle={"replica_lag": "30s", "every": "200ms"},
    )
    with writes(source, chance), stuttering(replica, chance), rig.running():
        rig.until(lambda: (s := rig.state.table(TABLE)) and s.phase == "ready", "ready", 90)
        for _ in range(2):
            job = rig.state.ask_read(TABLE, TABLE, ReadSpec(), "asked")
            rig.read(job.job, timeout_s=90)
    with rig.running():
        replica.wait_for_source()  # type: ignore[attr-defined]
        rig.current()
        assert rig.lake(TABLE) == rig.source(TABLE)
        unlogged(
            (source, replica),
            f"UPDATE {TABLE.quoted} SET v = 'drifted' WHERE id BETWEEN 100 AND 200",
            f"DELETE FROM {TABLE.quoted} WHERE id BETWEEN 300 AND 350",
            f"REPLACE INTO {TABLE.quoted} VALUES (50001, 'new', 0), (50002, 'new', 0)",
        )
        assert rig.lake(TABLE) != rig.source(TABLE)
        with writes(source, chance):
            job = rig.state.ask_read(TABLE, TABLE, ReadSpec(), "asked")
            rig.read(job.job, timeout_s=60)
        replica.wait_for_source()  # type: ignore[attr-defined]
        rig.current()
        assert rig.lake(TABLE) == rig.source(TABLE)
