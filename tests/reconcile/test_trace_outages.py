"""ClickHouse down, slow, full, mute or with a foreign schema: it costs the pipeline nothing, is said, and is caught up with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdc.config import TraceConfig, load
from cdc.errors import TraceError
from cdc.state import State
from cdc.trace import client, project_in_process
from cdc.trace.node import SELDOMEST, SHARE, Budget
from cdc.trace.tables import NODES
from dev.gateway import Gateway
from dev.mysql import MySQLServer
from tests.faults.rig import Rig

pytestmark = pytest.mark.timeout(300)
TABLE = "o.items"
SOON_S = 45.0


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        started.execute("CREATE DATABASE o")
        yield started


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as started:
        yield started


@pytest.fixture
def rig(server: MySQLServer, gateway: Gateway, tmp_path: Path) -> Iterator[Rig]:
    server.execute(f"DROP TABLE IF EXISTS {TABLE}")
    server.execute(f"CREATE TABLE {TABLE} (id INT PRIMARY KEY, name VARCHAR(50))")
    server.execute(f"INSERT INTO {TABLE} VALUES (0, 'first')")
    made = Rig(tmp_path / "p", server, [TABLE], settings={"trace": {"url": gateway.url, "every": "1s"}})
    yield made
    made.close()


def said(rig: Rig) -> dict[str, Any]:
    node = State(rig.state).nodes().get("trace")
    return node.info if node else {}


def written_to(rig: Rig, number: int) -> None:
    rig.server.execute(f"REPLACE INTO {TABLE} VALUES ({number}, 'x{number}')")


def in_the_lake(rig: Rig) -> Callable[[], bool]:
    return lambda: not rig.differences(TABLE)


def close_gateway(gateway: Gateway) -> None:
    gateway.stop()


def forget_gateway(gateway: Gateway) -> None:
    gateway.switch()
    gateway.start()


FAILURES: dict[str, tuple[Callable[[Gateway], None], str]] = {
    "down": (close_gateway, "cannot be reached"),
    "full": (lambda gateway: gateway.switch(full=True), "disk is full"),
    "mute": (lambda gateway: gateway.switch(mute=True), "hung up"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_an_outage_costs_the_pipeline_nothing_and_is_caught_up_with(rig: Rig, gateway: Gateway, kind: str) -> None:
    fail, words = FAILURES[kind]
    daemon = rig.start()
    rig.wait_phase(TABLE, "ready")
    rig.wait(lambda: said(rig).get("epoch"), "the trace has something")
    fail(gateway)
    written_to(rig, 1)
    rig.wait(in_the_lake(rig), "the lake follows")
    rig.wait(lambda: "error" in said(rig), "the outage is said", SOON_S)
    error = said(rig)["error"]
    assert words in error["what"]
    assert error["where"] == f"trace: {gateway.url}"
    assert "the pipeline goes on" in error["hint"]
    assert said(rig)["behind"] > 0
    assert any(e["node"] == "trace" and words in e["what"] for e in State(rig.state).errors())
    written_to(rig, 2)
    rig.wait(in_the_lake(rig), "the lake follows while it lasts")
    forget_gateway(gateway)
    rig.wait(lambda: "error" not in said(rig) and said(rig).get("behind") == 0, "caught up", 60)
    assert rig.stop(daemon) == 0
    assert rig.verdict().green


def test_a_slow_clickhouse_is_not_waited_for(rig: Rig, gateway: Gateway) -> None:
    daemon = rig.start()
    rig.wait_phase(TABLE, "ready")
    gateway.switch(delay_s=30)
    for number in range(1, 6):
        written_to(rig, number)
        rig.wait(in_the_lake(rig), "the lake follows", SOON_S)
        time.sleep(0.5)
    assert rig.phase(TABLE) == "ready"
    began = time.monotonic()
    assert rig.stop(daemon) == 0
    assert time.monotonic() - began < 15, "the child is not waited for either"


def test_a_child_that_takes_too_long_is_ended(rig: Rig, gateway: Gateway) -> None:
    assert rig.catch_up().returncode == 0
    gateway.switch(delay_s=30)
    config = load(rig.config)
    began = time.monotonic()
    with pytest.raises(TraceError, match="took longer than 2 s") as raised:
        project_in_process(config, timeout_s=2)
    assert time.monotonic() - began < 12
    assert "pipeline goes on" in raised.value.hint


def test_a_foreign_table_of_the_same_name_is_said_and_left_alone(rig: Rig, gateway: Gateway) -> None:
    with client(TraceConfig(url=gateway.url)) as opened:
        opened.command(f"CREATE TABLE {NODES} (a Int32) ENGINE = MergeTree ORDER BY a")
        opened.command(f"INSERT INTO {NODES} VALUES (1)")
    daemon = rig.start()
    rig.wait_phase(TABLE, "ready")
    rig.wait(lambda: "error" in said(rig), "it is said", SOON_S)
    assert NODES in said(rig)["error"]["what"]
    assert "another database" in said(rig)["error"]["hint"]
    written_to(rig, 1)
    rig.wait(in_the_lake(rig), "the lake follows")
    with client(TraceConfig(url=gateway.url)) as opened:
        assert opened.query(f"SELECT * FROM {NODES}").result_rows == [(1,)]
        opened.command(f"RENAME TABLE {NODES} TO theirs")
    rig.wait(lambda: "error" not in said(rig) and said(rig).get("behind") == 0, "caught up", 60)
    assert rig.stop(daemon) == 0
    done = rig.lakesync("reconcile", "--ledger")
    assert done.returncode == 0, done.stdout


def test_a_login_that_is_refused(rig: Rig, tmp_path: Path) -> None:
    with Gateway(password="right") as guarded:
        secret = tmp_path / "secret"
        for word, right in (("wrong", False), ("right", True)):
            secret.write_text(word)
            secret.chmod(0o600)
            config = TraceConfig(url=guarded.url, password=f"file:{secret}")
            if right:
                with client(config) as opened:
                    assert opened.command("SELECT 1") == 1
            else:
                with pytest.raises(TraceError, match="login is refused") as raised, client(config):
                    pass
                assert "wrong" not in str(raised.value)


def test_nothing_is_started_where_nothing_is_new(rig: Rig, gateway: Gateway) -> None:
    daemon = rig.start()
    rig.wait_phase(TABLE, "ready")
    rig.wait(lambda: said(rig).get("behind") == 0, "caught up")
    time.sleep(2.5)
    rig.wait(lambda: said(rig).get("behind") == 0, "caught up")
    before = said(rig)
    close_gateway(gateway)  # whoever asked it now would fail
    time.sleep(4)
    assert "error" not in said(rig), said(rig)
    assert said(rig) == before
    assert rig.stop(daemon) == 0


def test_how_often_follows_what_the_pipeline_takes() -> None:
    budget = Budget(60, 1000, 50, 1.2)
    assert budget.allows(1060, 50 + 1.2 / SHARE), "a busy pipeline: as the setting says"
    assert not budget.allows(1060, 50 + 0.9 * 1.2 / SHARE)
    assert not budget.allows(1000 + 60 * SELDOMEST - 1, 51)
    assert budget.allows(1000 + 60 * SELDOMEST, 51)
    assert not Budget(60, 1000, 50).allows(1060, 51), "nor is the first one due at once"


def test_what_a_child_says_last_is_not_lost(rig: Rig) -> None:
    assert rig.catch_up().returncode == 0
    config = load(rig.config)
    (config.state / "trace.json").write_bytes(orjson.dumps({"form": 2, "nonsense": 1}))
    done = project_in_process(config)
    assert done is not None
    assert done.rows > 0
    assert 0.2 < done.cpu_s < 60
