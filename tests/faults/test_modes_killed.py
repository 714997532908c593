"""kill -9 at any moment of a pipeline with a soft-delete and a history table: no version is lost, none is there twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdc.log import open_log
from dev.kafka import KafkaBroker
from dev.mysql import MySQLServer
from tests.faults.rig import Rig, seed
from tests.integration.test_modes import BOTH, by_the_log, entries, lake, live, make, writes

SETTINGS = {"snapshot": {"window_rows": 10, "readers": 2}, "merge": {"every": "100ms"}}
POINTS = [
    "window.delivered:3",
    "window.emitted:3",
    "log.after-commit:6",
    "merge.round:3",
    "lake.after-data-files:6",
    "lake.after-vectors:4",
    "lake.before-commit:8",
    "lake.after-commit:8",
    "lake.after-index:5",
    "lake.index-saved:1",
]


class Killed:
    """The pipeline, and what its log makes of its tables."""

    def __init__(self, folder: Path, server: MySQLServer, schema: str, log: str | None = None) -> None:
        self.server = server
        self.tables = [make(server, schema, mode) for mode in BOTH]
        self.rig = Rig(folder, server, entries(*self.tables), settings=SETTINGS, log=log)  # type: ignore[arg-type]
        self.log = log or f"sqlite://{self.rig.log_file}"

    def ready(self) -> None:
        for table in self.tables:
            self.rig.wait_phase(str(table), "ready")

    def check(self) -> None:
        """Both are what the log says, and the source. The pipeline does not run, and is current."""
        name = self.rig.folder.name[:40]
        with closing(open_log(self.log, name)) as log:
            rig: Any = SimpleNamespace(config=SimpleNamespace(lake_root=self.rig.lake, name=name), log=log)
            for table, mode in zip(self.tables, BOTH, strict=True):
                assert lake(rig, table, mode) == by_the_log(rig, table, mode), f"{table} is not what the log says"
                rows = self.server.execute(f"SELECT * FROM {table.quoted}")
                assert live(rig, table, mode) == sorted(map(tuple, rows), key=repr), f"{table} is not the source"
        ledger = self.rig.lakesync("reconcile", "--ledger")
        assert ledger.returncode == 0, ledger.stdout + ledger.stderr


@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_step(tmp_path: Path, mysql: MySQLServer, schema: str, point: str) -> None:
    killed = Killed(tmp_path / "k", mysql, schema)
    try:
        with writes(mysql, killed.tables):
            process = killed.rig.start(faults=f"kill:{point}")
            assert process.wait(60) == -9, killed.rig.last_words()
            process = killed.rig.start()
            killed.ready()
        assert killed.rig.stop(process) == 0, killed.rig.last_words()
        done = killed.rig.catch_up()
        assert done.returncode == 0, done.stderr
        killed.check()
    finally:
        killed.rig.close()


def at_random(folder: Path, server: MySQLServer, schema: str, log: str | None, kills: int) -> None:
    number = seed()
    chance = random.Random(number)
    killed = Killed(folder, server, schema, log)
    try:
        with writes(server, killed.tables, number):
            for n in range(kills):
                process = killed.rig.start()
                time.sleep(chance.uniform(0.5, 3.0))
                assert process.poll() is None, killed.rig.last_words()
                if n % 2:
                    # Added again under it, at any time.
                    killed.rig.lakesync("resync", *map(str, killed.tables))
                    time.sleep(chance.uniform(0.0, 1.0))
                killed.rig.kill(process)
            process = killed.rig.start()
            killed.ready()
        assert killed.rig.stop(process) == 0, killed.rig.last_words()
        done = killed.rig.catch_up()
        assert done.returncode == 0, done.stderr
        killed.check()
    finally:
        killed.rig.close()


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_killed_at_random(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    at_random(tmp_path / "k", mysql, schema, None, 6)


@pytest.mark.timeout(900)
def test_killed_at_random_with_kafka(
    tmp_path: Path, mysql: MySQLServer, schema: str, kafka_factory: Callable[..., KafkaBroker]
) -> None:
    at_random(tmp_path / "k", mysql, schema, kafka_factory().url, 6)
