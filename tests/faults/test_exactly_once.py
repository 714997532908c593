"""kill -9 at random moments, under a workload: afterwards every table is the source, value by value."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev.kafka import KafkaBroker
from dev.mysql import MySQLServer
from dev.sysbench import Sysbench
from tests.faults.rig import Rig, seed

KILLS = 20
KILLS_SHORT = 4
ROWS = 3000
TABLES = 2
RATE = 20
"""sysbench transactions a second: 18 statements each, of which 4 write."""


@pytest.fixture(params=["sqlite", "kafka"])
def log_url(request: pytest.FixtureRequest) -> Iterator[tuple[str | None, KafkaBroker | None]]:
    if request.param == "sqlite":
        yield None, None
        return
    with KafkaBroker() as broker:
        yield broker.url, broker


def run(folder: Path, server: MySQLServer, log: tuple[str | None, KafkaBroker | None], kills: int) -> None:
    chance = random.Random(seed())
    url, broker = log
    load = Sysbench(server, tables=TABLES, table_size=ROWS)
    load.prepare()
    rig = Rig(folder, server, [f"{load.database}.sbtest{n + 1}" for n in range(TABLES)], log=url)
    try:
        with load.running(rate=RATE):
            process = rig.start()
            for number in range(kills):
                time.sleep(chance.uniform(0.3, 4.0))
                assert process.poll() is None, rig.last_words()
                rig.kill(process)
                if broker and number == kills // 2:
                    broker.kill()
                    broker.start()
                process = rig.start()
            time.sleep(2)
            assert process.poll() is None, rig.last_words()
            assert rig.stop(process) == 0, rig.last_words()
        done = rig.catch_up()
        assert done.returncode == 0, done.stderr
        verdict = rig.verdict()
        assert verdict.green, f"{verdict}\n{rig.last_words()}"
    finally:
        rig.close()


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_four_kills(
    tmp_path: Path, mysql_factory: Callable[..., MySQLServer], log_url: tuple[str | None, KafkaBroker | None]
) -> None:
    run(tmp_path / "kills", mysql_factory(), log_url, KILLS_SHORT)


@pytest.mark.timeout(1200)
def test_twenty_kills(
    tmp_path: Path, mysql_factory: Callable[..., MySQLServer], log_url: tuple[str | None, KafkaBroker | None]
) -> None:
    run(tmp_path / "kills", mysql_factory(), log_url, KILLS)
