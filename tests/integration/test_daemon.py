"""The daemon as a process, against a real server: it follows, takes what is asked of it, and ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc.state import State
from dev.kafka import KafkaBroker
from dev.mysql import MySQLServer
from tests.faults.rig import Rig


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer, schema: str) -> Iterator[Rig]:
    mysql.execute(f"CREATE TABLE {schema}.a (id INT PRIMARY KEY, v INT)")
    mysql.execute(f"CREATE TABLE {schema}.b (id INT PRIMARY KEY, v INT)")
    mysql.execute(f"INSERT INTO {schema}.a VALUES (1, 1), (2, 2)")
    mysql.execute(f"INSERT INTO {schema}.b VALUES (1, 10)")
    made = Rig(tmp_path / "p", mysql, [f"{schema}.a"])
    yield made
    made.close()


def follows(rig: Rig, *tables: str) -> None:
    """Wait until the lake has what the source has."""
    rig.wait(lambda: not any(rig.differences(t) for t in tables), f"{tables} are followed")


def test_it_follows_until_it_is_told_to_end(rig: Rig, schema: str) -> None:
    daemon = rig.start()
    rig.wait_phase(f"{schema}.a", "ready")
    rig.server.execute(f"UPDATE {schema}.a SET v = 100 WHERE id = 1")
    follows(rig, f"{schema}.a")
    rig.wait(lambda: rig.status()["tables"][0]["lag_ms"] == 0, "no lag")
    status = rig.status()
    assert status["running"]
    assert {n["name"] for n in status["nodes"] if n["alive"]} >= {"capture", "merge", "snapshot"}
    began = time.monotonic()
    assert rig.stop(daemon) == 0
    assert time.monotonic() - began < 10
    assert not rig.status()["running"]
    assert "level=error" not in rig.last_words(1000)


def test_systemd_is_told(rig: Rig, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = rig.start()
        assert systemd.recv(200).startswith(b"READY=1")
        assert systemd.recv(200) == b"WATCHDOG=1"
        assert rig.stop(daemon) == 0


def test_tables_come_and_go_while_it_runs(rig: Rig, schema: str) -> None:
    daemon = rig.start()
    rig.wait_phase(f"{schema}.a", "ready")
    done = rig.lakesync("add", f"{schema}.b")
    assert done.returncode == 0, done.stderr
    rig.wait_phase(f"{schema}.b", "ready")
    rig.server.execute(f"INSERT INTO {schema}.b VALUES (2, 20)")
    follows(rig, f"{schema}.a", f"{schema}.b")
    assert rig.lakesync("remove", f"{schema}.a").returncode == 0
    rig.wait_phase(f"{schema}.a", "removed")
    rig.server.execute(f"INSERT INTO {schema}.a VALUES (3, 3)")
    rig.server.execute(f"INSERT INTO {schema}.b VALUES (3, 30)")
    follows(rig, f"{schema}.b")
    assert rig.differences(f"{schema}.a")
    # What is added again is read anew: the lake never shows less than it had.
    assert rig.lakesync("add", f"{schema}.a").returncode == 0
    rig.wait_phase(f"{schema}.a", "ready")
    follows(rig, f"{schema}.a")
    assert rig.stop(daemon) == 0


def test_a_resync_is_taken_and_recorded(rig: Rig, schema: str) -> None:
    daemon = rig.start()
    rig.wait_phase(f"{schema}.a", "ready")
    before = rig.status()["tables"][0]["lake"]["version"]
    assert rig.lakesync("resync", f"{schema}.a").returncode == 0
    rig.wait(lambda: not State(rig.state).open_requests(), "the request is done")
    rig.wait_phase(f"{schema}.a", "ready")
    rig.wait(lambda: rig.status()["tables"][0]["lake"]["version"] > before, "a new version")
    follows(rig, f"{schema}.a")
    assert rig.stop(daemon) == 0


def test_a_server_that_restarts_is_waited_for(tmp_path: Path, mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE s")
    server.execute("CREATE TABLE s.t (id INT PRIMARY KEY)")
    server.execute("INSERT INTO s.t VALUES (1)")
    rig = Rig(tmp_path / "p", server, ["s.t"])
    try:
        daemon = rig.start()
        rig.wait_phase("s.t", "ready")
        server.kill()
        rig.wait(lambda: "restarting" in rig.last_words(), "it is noticed")
        server.start()
        server.execute("INSERT INTO s.t VALUES (2)")
        follows(rig, "s.t")
        assert daemon.poll() is None
        errors = rig.status()["errors"]
        assert "SourceUnavailable" in {e["code"] for e in errors}
        assert rig.stop(daemon) == 0
    finally:
        rig.close()


@pytest.mark.parametrize("point", ["merge.round", "capture.before-epoch"])
def test_a_node_that_fails_ends_the_process_by_name(rig: Rig, point: str) -> None:
    daemon = rig.start(faults=f"fail:{point}")
    assert daemon.wait(60) == 3
    words = rig.last_words(100)
    assert words.count("\nerror: ") == 1, words
    assert f"in node {point.partition('.')[0]}" in words
    assert "where: traceback in" in words
    assert [e["node"] for e in rig.status()["errors"]] == [point.partition(".")[0]]
    assert rig.catch_up().returncode == 0
    assert rig.verdict(proofs=False).green


def test_nodes_may_be_processes_of_their_own(rig: Rig, schema: str) -> None:
    capture, merge = rig.start("--node", "capture"), rig.start("--node", "merge")
    rig.wait_phase(f"{schema}.a", "ready")
    rig.server.execute(f"DELETE FROM {schema}.a WHERE id = 1")
    follows(rig, f"{schema}.a")
    assert rig.stop(capture) == 0
    assert rig.stop(merge) == 0


def test_over_kafka(rig: Rig, schema: str, kafka: KafkaBroker) -> None:
    over = Rig(rig.folder.with_name(schema), rig.server, rig.tables, log=f"kafka://{kafka.bootstrap}")
    daemon = over.start()
    try:
        over.wait_phase(f"{schema}.a", "ready")
        over.server.execute(f"UPDATE {schema}.a SET id = 20 WHERE id = 2")
        follows(over, f"{schema}.a")
        assert over.stop(daemon) == 0
        assert over.catch_up().returncode == 0
        done = over.lakesync("reconcile")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        over.close()


def test_until_current_ends_where_the_source_was(rig: Rig, schema: str) -> None:
    for _ in range(2):
        done = rig.catch_up()
        assert done.returncode == 0, done.stderr
        assert rig.differences(f"{schema}.a") == []
        rig.server.execute(f"INSERT INTO {schema}.a SELECT max(id) + 1, 7 FROM {schema}.a")
    assert rig.differences(f"{schema}.a")


def test_until_current_does_what_was_asked_for_before(rig: Rig, schema: str) -> None:
    assert rig.catch_up().returncode == 0
    before = rig.status()["tables"][0]["lake"]["version"]
    assert rig.lakesync("resync", "--all").returncode == 0
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    status = rig.status()
    assert [r["outcome"] is None for r in status["requests"]] == [False]
    assert (status["tables"][0]["phase"], status["tables"][0]["lake"]["version"] > before) == ("ready", True)


def test_until_current_without_tables(tmp_path: Path, mysql: MySQLServer) -> None:
    rig = Rig(tmp_path / "p", mysql, [])
    done = rig.catch_up()
    assert done.returncode == 2
    assert "lakesync add" in done.stderr
