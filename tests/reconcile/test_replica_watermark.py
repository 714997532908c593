"""A source that is itself a replica: what it does not have does not count as in, whether it is stopped, behind, delayed, or one of its sources is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdc import watermark
from cdc.daemon import NodeName
from cdc.errors import NotFollowingError
from cdc.names import TableName
from dev.mariadb import MariaDBServer
from dev.mysql import REPLICATION_PASSWORD, REPLICATION_USER, MySQLServer
from dev.sqlserver import SqlServer
from tests.integration.rereading import Rereading

TABLE = TableName("d", "t")
NODES: tuple[NodeName, ...] = ("capture", "reread", "snapshot", "merge", "ready")
SILENCE_S = 3
pytestmark = pytest.mark.timeout(240)


class Truth:
    """What was committed on the source, and when it certainly was: rows by the time after their commit."""

    def __init__(self, server: SqlServer, first: int) -> None:
        self.server, self.next = server, first
        self.committed: list[tuple[int, int]] = []

    def write(self) -> int:
        """One more row. When it was in, µs since 1970: servers and tests have one clock here."""
        number, self.next = self.next, self.next + 1
        self.server.execute(f"INSERT INTO {TABLE.quoted} VALUES ({number}, 1)")
        at_us = time.time_ns() // 1000
        self.committed.append((at_us, number))
        return at_us


@contextmanager
def watched(rig: Rereading, *truths: Truth) -> Iterator[list[int]]:
    """That whatever was committed by the watermark is in the lake, looked at all the time; the watermarks that were seen."""
    over, wrong, seen = threading.Event(), list[str](), list[int]()

    def look() -> None:
        while not over.is_set():
            at_us = at(rig)
            if at_us is not None:
                due = {number for truth in truths for when, number in list(truth.committed) if when <= at_us}
                missing = due - {row[0] for row in rig.lake(TABLE)}
                if missing:
                    wrong.append(f"at {at_us} not in the lake: {sorted(missing)[:5]}")
                    return
                seen.append(at_us)
            over.wait(0.2)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert not wrong, wrong
    assert seen


def at(rig: Rereading) -> int | None:
    found = watermark.of_tables(rig.config, rig.state).get(TABLE)
    return found.at_us if found else None


def passes(rig: Rereading, when_us: int, timeout_s: float = 30) -> None:
    rig.until(lambda: (found := at(rig)) is not None and found >= when_us, "the watermark has passed", timeout_s)


def lag_ms(rig: Rereading) -> int:
    (table,) = rig.pipeline.status().tables
    assert table.lag_ms is not None
    return table.lag_ms


@pytest.fixture(params=["mysql", "mariadb"])
def servers(request: pytest.FixtureRequest) -> tuple[SqlServer, SqlServer]:
    """A source and its replica, which knows within seconds that it hears nothing."""
    kind: str = request.param
    factory: Callable[..., SqlServer] = request.getfixturevalue(f"{kind}_factory")
    source = factory()
    source.execute("CREATE DATABASE d")
    source.execute(f"CREATE TABLE {TABLE.quoted} (id INT PRIMARY KEY, v INT)")
    source.execute(f"INSERT INTO {TABLE.quoted} VALUES (1, 1)")
    option = "--replica-net-timeout" if kind == "mysql" else "--slave-net-timeout"
    replica = factory(replica_of=source, options=[f"{option}={SILENCE_S}"])
    assert isinstance(replica, MySQLServer | MariaDBServer)
    replica.wait_for_source()
    return source, replica


def test_what_the_replica_does_not_have_does_not_count(servers: tuple[SqlServer, SqlServer], tmp_path: Path) -> None:
    source, replica = servers
    word, delay = (
        ("REPLICA", "CHANGE REPLICATION SOURCE TO SOURCE_DELAY")
        if isinstance(replica, MySQLServer)
        else (
            "SLAVE",
            "CHANGE MASTER TO MASTER_DELAY",
        )
    )
    truth = Truth(source, 100)
    rig = Rereading(tmp_path, replica, [str(TABLE)])
    with rig.running(NODES):
        rig.ready(TABLE)
        with watched(rig, truth) as seen:
            # Busy: as far as what it applied was committed.
            for _ in range(20):
                truth.write()
                time.sleep(0.1)
            passes(rig, truth.committed[-2][0] - 1_000_000)
            # Idle: as far as its silence tells.
            passes(rig, time.time_ns() // 1000, SILENCE_S + 20)
            assert lag_ms(rig) == 0
            for thread in ("SQL_THREAD", "IO_THREAD"):
                replica.execute(f"STOP {word} {thread}")
                written = truth.write()
                time.sleep(SILENCE_S + 3)
                assert max(seen) < written
                assert lag_ms(rig) > 1000 * SILENCE_S
                with pytest.raises(NotFollowingError, match="replica"):
                    rig.pipeline.wait_for(time="now", timeout_s=1)
                replica.execute(f"START {word} {thread}")
                passes(rig, written, SILENCE_S + 30)
            replica.execute(f"STOP {word}")
            replica.execute(f"{delay} = {SILENCE_S + 5}")
            replica.execute(f"START {word}")
            written = truth.write()
            time.sleep(SILENCE_S + 2)
            assert max(seen) < written
            assert lag_ms(rig) > 1000
            passes(rig, written, 2 * SILENCE_S + 40)


def test_one_of_several_channels_that_stands_still_holds_the_watermark(
    mysql_factory: Callable[..., MySQLServer], tmp_path: Path
) -> None:
    one, other = mysql_factory(), mysql_factory(server_id=7)
    one.execute("CREATE DATABASE d")
    one.execute(f"CREATE TABLE {TABLE.quoted} (id INT PRIMARY KEY, v INT)")
    one.execute(f"INSERT INTO {TABLE.quoted} VALUES (1, 1)")
    replica = mysql_factory(replica_of=one, server_id=9, options=[f"--replica-net-timeout={SILENCE_S}"])
    replica.wait_for_source()
    # The other one has the same table, by transactions of which the replica hears nothing.
    other.execute("CREATE DATABASE d")
    other.execute(f"CREATE TABLE {TABLE.quoted} (id INT PRIMARY KEY, v INT)")
    other.add_user(REPLICATION_USER, REPLICATION_PASSWORD, "REPLICATION SLAVE ON *.*")
    other.execute("RESET BINARY LOGS AND GTIDS")
    replica.execute("STOP REPLICA")
    replica.execute(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = %s, SOURCE_USER = %s, SOURCE_PASSWORD = %s,"
        " SOURCE_AUTO_POSITION = 1, SOURCE_CONNECT_RETRY = 1, GET_SOURCE_PUBLIC_KEY = 1 FOR CHANNEL 'other'",
        other.port,
        REPLICATION_USER,
        REPLICATION_PASSWORD,
    )
    replica.execute("START REPLICA")
    first, second = Truth(one, 1000), Truth(other, 2000)
    rig = Rereading(tmp_path, replica, [str(TABLE)])
    with rig.running(NODES):
        rig.ready(TABLE)
        with watched(rig, first, second) as seen:
            passes(rig, time.time_ns() // 1000, SILENCE_S + 30)
            for _ in range(5):
                first.write()
                second.write()
            passes(rig, second.committed[-1][0], SILENCE_S + 30)
            replica.execute("STOP REPLICA SQL_THREAD FOR CHANNEL 'other'")
            written = second.write()
            for _ in range(10 * (SILENCE_S + 3)):
                first.write()
                time.sleep(0.1)
            assert max(seen) < written
            replica.execute("START REPLICA SQL_THREAD FOR CHANNEL 'other'")
            passes(rig, written, SILENCE_S + 30)
