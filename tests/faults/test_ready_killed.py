"""Killed between any two steps of saying that a partition is ready: its file is written once, nobody is left out; and the state folder may be lost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dev.mysql import MySQLServer
from tests.faults.rig import Rig
from tests.integration.readying import Webhook, hour, named, sql

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
POINTS = ("ready.recorded", "ready.file", "ready.said", "ready.scanned")


@pytest.fixture
def hook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


@pytest.fixture
def rig(mysql: MySQLServer, tmp_path: Path, hook: Webhook) -> Iterator[Rig]:
    schema = f"r_{uuid.uuid4().hex[:8]}"
    mysql.execute(f"CREATE DATABASE {schema}")
    mysql.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY AUTO_INCREMENT, created_at DATETIME(6), v INT)")
    ready = {"from": f"{hour(1):%Y-%m-%d}", "again": "500ms", "webhook": hook.url}
    entry: dict[str, Any] = {"name": f"{schema}.t", "partition_by": ["hour(created_at)"], "ready": ready}
    made = Rig(tmp_path / "p", mysql, [f"{schema}.t"], settings={"tables": [entry], "trace": None})
    insert(made, 5)
    yield made
    made.close()
    mysql.execute(f"DROP DATABASE {schema}")


def insert(rig: Rig, rows: int) -> None:
    values = ", ".join([f"({sql(hour(1))!r}, 1)"] * rows)
    rig.server.execute(f"INSERT INTO {rig.tables[0]} (created_at, v) VALUES {values}")


def files(rig: Rig) -> dict[str, tuple[dict[str, Any], int]]:
    """What they say, and which files they are."""
    found = {}
    for path in rig.lake.rglob("_SUCCESS"):
        found[path.parent.name] = orjson.loads(path.read_bytes()), path.stat().st_ino
    return found


def generation(rig: Rig) -> int:
    told = files(rig).get(named(hour(1)))
    return int(told[0]["generation"]) if told else 0


def posted(hook: Webhook, generation: int) -> list[str]:
    return [p["key"] for p in hook.posted if p["generation"] == generation]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(rig: Rig, hook: Webhook, point: str) -> None:
    if point == "ready.scanned":
        daemon = rig.start()
        rig.wait(lambda: generation(rig) == 1, "told")
        rig.stop(daemon)
        before = files(rig)
        insert(rig, 2)
    killed = rig.start(faults=f"kill:{point}")
    assert killed.wait(60) == -9
    if point != "ready.scanned":
        before = files(rig)
    over = named(hour(1))
    daemon = rig.start()
    if point == "ready.scanned":
        rig.wait(lambda: generation(rig) == 2, "told again")
        assert files(rig)[over][0]["late"] == {"rows_added": 2, "rows_deleted": 0}
        del before[over]
    rig.wait(lambda: over in files(rig) and posted(hook, 1), "told")
    last = max(named(hour(n)) for n in (1, 2))
    rig.wait(lambda: any(key.endswith(f"{last}/1") for key in posted(hook, 1)), "the webhook was told of all")
    rig.stop(daemon)
    # What was written is not written again, and nothing is left out.
    assert {folder: files(rig)[folder] for folder in before} == before
    hours = {f"{name}" for name in files(rig)}
    assert len(hours) == hour(1).hour + 1 if hour(1).date() == hour(0).date() else len(hours) >= 24
    keys = posted(hook, 1)
    assert {key.split("/")[-2] for key in keys} == hours
    # Told, and killed before that was recorded: once more, under the same key.
    assert len(keys) - len(set(keys)) <= (1 if point == "ready.said" else 0)


def test_the_files_say_what_was_told_when_the_state_folder_is_lost(rig: Rig, hook: Webhook) -> None:
    daemon = rig.start()
    over = named(hour(1))
    rig.wait(lambda: generation(rig) == 1, "told")
    last = hour(1).hour + 1
    rig.wait(lambda: len(files(rig)) >= last, "all")
    rig.stop(daemon)
    before = files(rig)
    for file in rig.state.glob("ready.db*"):
        file.unlink()
    insert(rig, 3)
    daemon = rig.start()
    rig.wait(lambda: generation(rig) == 2, "told again of what came late")
    assert files(rig)[over][0]["late"] == {"rows_added": 3, "rows_deleted": 0}
    rig.stop(daemon)
    after = files(rig)
    assert {folder: after[folder] for folder in before if folder != over} == {
        folder: found for folder, found in before.items() if folder != over
    }


def test_a_run_that_ends_by_itself_tells(rig: Rig, hook: Webhook) -> None:
    assert rig.catch_up().returncode == 0
    assert generation(rig) == 1
    insert(rig, 1)
    assert rig.catch_up().returncode == 0
