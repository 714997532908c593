"""A whole pipeline on MariaDB: bootstrap and stream under writes and kills, to the same rows, and lakesync's own proofs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import shop
from dev.mariadb import MariaDBServer
from tests.faults.rig import Rig

TABLES = [f"shop.{name}" for name in shop.TABLES]


@pytest.fixture
def piped(tmp_path: Path, mariadb_factory: Callable[..., MariaDBServer]) -> Iterator[Rig]:
    """A shop on a server of its own, and a pipeline of all its tables."""
    server = mariadb_factory()
    shop.create(server, rows=6_000, seed=1)
    rig = Rig(tmp_path / "pipeline", server, TABLES, settings={"snapshot": {"chunk_rows": 200, "readers": 2}})
    yield rig
    rig.close()


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
