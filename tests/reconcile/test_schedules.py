"""Checks that a daemon does by itself: found, told, repeated, cleared; restarts, kills and failures in between."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dev.mysql import MySQLServer
from reconcile.database import NAME
from reconcile.runs import Runs
from tests.faults.rig import Rig
from tests.unit.webhooks import Hook, hook

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
PAGE = [sys.executable, "-c", "import sys; open('page', 'a').write(sys.stdin.read() + chr(10))"]


@pytest.fixture
def received() -> Iterator[Hook]:
    with hook() as made:
        yield made


@pytest.fixture
def table(mysql: MySQLServer, schema: str) -> str:
    mysql.execute(f"CREATE TABLE {schema}.a (id INT PRIMARY KEY, v INT)")
    mysql.execute(f"INSERT INTO {schema}.a VALUES {', '.join(f'({i}, {i})' for i in range(1, 101))}")
    return f"{schema}.a"


class Made:
    """Rigs that are closed at the end."""

    def __init__(self, folder: Path, server: MySQLServer, table: str) -> None:
        self.folder, self.server, self.table = folder, server, table
        self.rigs: list[Rig] = []

    def __call__(self, **settings: Any) -> Rig:
        made = Rig(self.folder / "p", self.server, [self.table], settings=settings)
        self.rigs.append(made)
        return made


@pytest.fixture
def pipeline(tmp_path: Path, mysql: MySQLServer, table: str) -> Iterator[Made]:
    made = Made(tmp_path, mysql, table)
    yield made
    for rig in made.rigs:
        rig.close()


def drift(rig: Rig, statement: str) -> None:
    """A change that is not in the binary log."""
    with rig.server.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_log_bin = 0")
        cursor.execute(statement)
        connection.commit()


def metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def runs_of(rig: Rig, kind: Any) -> list[Any]:
    return [r for r in Runs(rig.state).history(1000, kind) if r.ended_us is not None]


def agreed(rig: Rig, kind: Any) -> bool:
    """Whether a check of the table, not of none, found nothing."""
    return any(r.verdict == "agrees" and "ready" not in r.options for r in runs_of(rig, kind))


def children() -> list[int]:
    """Checks that run, of anybody."""
    found = subprocess.run(["pgrep", "-f", "reconcile[.]watch[.]child"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_a_difference_is_found_told_repeated_and_cleared(pipeline: Made, received: Hook) -> None:
    at, table = port(), pipeline.table
    rig = pipeline(
        reconcile={"ledger": "every 2s", "values": "every 2s", "rows_per_second": 1_000_000},
        alerts={"webhook": received.url, "command": PAGE, "repeat": "3s"},
        metrics=f"127.0.0.1:{at}",
    )
    daemon = rig.start()
    rig.wait_phase(table, "ready")
    rig.wait(lambda: agreed(rig, "ledger") and agreed(rig, "values"), "both agreed")
    rig.wait(lambda: f'table="{table}",verdict="agrees"' in metrics(at), "metrics of a check")
    key = f"differs/values/{table}"
    assert not [p for p in received.posts if p["kind"] == "differs"]

    drift(rig, f"UPDATE {table} SET v = -1 WHERE id IN (7, 8)")
    opened = received.wait(lambda p: p["key"] == key, 60)
    assert (opened["state"], opened["differences"], opened["table"], opened["check"]) == ("open", 2, table, "values")
    received.wait(lambda p: p["key"] == key and p["state"] == "repeat" and p["times"] == 2)
    status = rig.status()
    (found,) = [c for c in status["checks"]["verdicts"] if c["check"] == "values"]
    assert (found["verdict"], found["unresolved"]) == ("differs", 2)
    assert {f["key"] for f in status["checks"]["findings"]} == {"7", "8"}
    assert {a["key"] for a in status["alerts"]} == {key}
    assert {p["check"] for p in status["checks"]["schedules"]} == {"ledger", "values"}
    text = rig.lakesync("status").stdout
    assert f"{table} values: key 7: different in v" in text
    assert f"alert: {table}: 2 rows differ from the source" in text
    rig.wait(
        lambda: f'lakesync_unresolved_differences{{check="values",pipeline="p",table="{table}"}} 2.0' in metrics(at),
        "a metric",
    )

    done = rig.lakesync("reconcile", table, "--values", "--repair")
    assert done.returncode == 0, done.stdout + done.stderr
    over = received.wait(lambda p: p["key"] == key and p["state"] == "over")
    assert over["since_us"] == opened["since_us"]
    assert rig.stop(daemon) == 0
    states = [p["state"] for p in received.posts if p["key"] == key]
    assert states == ["open", *["repeat"] * (len(states) - 2), "over"]
    paged = [orjson.loads(line) for line in (rig.folder / "page").read_text().splitlines()]
    told = [p["state"] for p in paged if p["key"] == key]
    assert (told[0], told[-1], set(told[1:-1]) <= {"repeat"}) == ("open", "over", True)
    assert "level=error" not in rig.last_words(10_000)


def test_what_a_sample_found_is_compared_again_until_it_is_put_right(pipeline: Made, received: Hook) -> None:
    table = pipeline.table
    rig = pipeline(reconcile={"values": "every 1s", "sample": "50%"}, alerts={"webhook": received.url})
    daemon = rig.start()
    rig.wait_phase(table, "ready")
    drift(rig, f"UPDATE {table} SET v = -1")  # every row: whatever the sample is
    received.wait(lambda p: p["key"] == f"differs/values/{table}" and p["state"] == "open", 60)
    drift(rig, f"UPDATE {table} SET v = id")
    received.wait(lambda p: p["key"] == f"differs/values/{table}" and p["state"] == "over", 60)
    assert rig.stop(daemon) == 0
    assert all(r.options["scope"]["sample"] == 0.5 for r in runs_of(rig, "values") if "scope" in r.options)


def test_what_differs_is_repaired_by_itself_and_told_as_over(pipeline: Made, received: Hook) -> None:
    table = pipeline.table
    rig = pipeline(reconcile={"values": "every 1s", "repair": True}, alerts={"webhook": received.url})
    daemon = rig.start()
    rig.wait_phase(table, "ready")
    drift(rig, f"DELETE FROM {table} WHERE id = 9")
    received.wait(lambda p: p["key"] == f"differs/values/{table}" and p["state"] == "over", 60)
    assert rig.differences(table) == []
    assert rig.stop(daemon) == 0
    assert [r.key for r in Runs(rig.state).repairs()] == ["9"]


def test_a_restart_repeats_nothing_and_makes_up_what_was_missed_once(pipeline: Made, received: Hook) -> None:
    table = pipeline.table
    rig = pipeline(reconcile={"values": "every 8s"}, alerts={"webhook": received.url, "repeat": "1h"})
    daemon = rig.start()
    rig.wait_phase(table, "ready")
    drift(rig, f"UPDATE {table} SET v = -1 WHERE id = 7")
    received.wait(lambda p: p["state"] == "open" and p["kind"] == "differs", 60)
    assert rig.stop(daemon) == 0
    before = len(runs_of(rig, "values"))
    time.sleep(20)  # two and a half times the schedule
    daemon = rig.start()
    rig.wait(lambda: len(runs_of(rig, "values")) == before + 1, "the missed check")
    began = Runs(rig.state).history(1)[0].begun_us
    rig.wait(lambda: len(runs_of(rig, "values")) == before + 2, "the next one")
    assert Runs(rig.state).history(1)[0].begun_us - began >= 7_900_000  # and not three in a row
    assert rig.stop(daemon) == 0
    assert [p["state"] for p in received.posts if p["kind"] == "differs"] == ["open"]


def test_a_check_ends_with_the_daemon_that_is_killed_and_is_gone_on_with(pipeline: Made) -> None:
    table = pipeline.table
    rig = pipeline(reconcile={"values": "every 1h", "rows_per_second": 10})  # ten seconds
    rig.lakesync("run", "--until-current")
    daemon = rig.start()
    runs = Runs(rig.state)
    rig.wait(lambda: runs.database.file.exists() and daemon.poll() is None, "it runs")
    with runs.database.write() as db:
        db.execute("DELETE FROM schedules")
        db.execute("INSERT INTO schedules VALUES ('values', 'every 1h', 1)")
    rig.wait(lambda: runs.last("values", ended=False) is not None, "the check has begun")
    mine = [pid for pid in children() if os.getpgid(pid) == os.getpgid(daemon.pid) and parent(pid) == daemon.pid]
    assert len(mine) == 1
    assert os.getpriority(os.PRIO_PROCESS, mine[0]) >= 10
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    rig.wait(lambda: mine[0] not in children(), "the child is gone", 10)
    last = runs.last("values", ended=False)
    assert last is not None
    # A process that ends has no command line any more before it is gone.
    rig.wait(lambda: (r := runs.last("values", ended=False)) is not None and r.dead, "the run is known to be dead", 10)
    daemon = rig.start()
    rig.wait(lambda: (r := runs.run(last.number)) is not None and r.verdict == "agrees", "the same run goes on")
    assert len(runs.history()) == 1
    assert rig.stop(daemon) == 0
    assert rig.differences(table) == []


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_a_check_that_fails_is_told_and_costs_the_pipeline_nothing(pipeline: Made, received: Hook) -> None:
    table = pipeline.table
    rig = pipeline(
        trace=f"clickhouse://x@127.0.0.1:{port()}/x",
        reconcile={"ledger": "every 1s", "values": "every 2s"},
        alerts={"webhook": received.url},
    )
    daemon = rig.start()
    failed = received.wait(lambda p: p["key"] == "late/ledger", 60)
    assert failed["state"] == "open"
    assert failed["summary"].startswith("the check of ledger failed: ")
    rig.server.execute(f"UPDATE {table} SET v = 1000 WHERE id = 1")
    rig.wait(lambda: not rig.differences(table), "the pipeline goes on")
    rig.wait(lambda: any(r.verdict == "agrees" for r in runs_of(rig, "values")), "so do the other checks")
    assert "the check of ledger failed" in rig.lakesync("status").stdout
    assert daemon.poll() is None
    assert rig.stop(daemon) == 0


def test_a_check_that_takes_too_long_is_ended(pipeline: Made, received: Hook) -> None:
    rig = pipeline(
        reconcile={"values": "every 2s", "rows_per_second": 1, "timeout": "4s"}, alerts={"webhook": received.url}
    )
    # A limit is kept from one cell to the next, so there must be more than one.
    rows = ", ".join(f"({n}, {n})" for n in range(10_000, 20_000))
    rig.server.execute(f"INSERT INTO {pipeline.table} VALUES {rows}")
    daemon = rig.start()
    rig.wait_phase(pipeline.table, "ready")
    told = received.wait(lambda p: p["key"] == "late/values" and "did not end within" in p["summary"], 60)
    assert told["summary"] == "the check of values failed: it did not end within 4 s"
    assert rig.stop(daemon) == 0


def test_webhook_and_command_that_fail_cost_nothing_and_are_shown(pipeline: Made, received: Hook) -> None:
    table, taken = pipeline.table, received.url.removeprefix("http://").removesuffix("/hook")
    received.answer = lambda _: 500
    rig = pipeline(
        reconcile={"values": "every 2s"},
        alerts={"webhook": received.url, "command": ["/no/such/program"]},
        metrics=taken,
    )
    daemon = rig.start()
    rig.wait_phase(table, "ready")
    drift(rig, f"INSERT INTO {table} VALUES (1000, 1)")
    rig.wait(
        lambda: any(set(a["failures"]) == {"webhook", "command"} for a in rig.status()["alerts"]),
        "both are shown to fail",
    )
    text = rig.lakesync("status").stdout
    assert "answered 500" in text
    assert "/no/such/program cannot be started: No such file or directory" in text
    assert f"cannot listen at {taken}: Address already in use" in text
    rig.server.execute(f"UPDATE {table} SET v = 1000 WHERE id = 1")
    rig.wait(lambda: len(rig.differences(table)) == 1, "the pipeline goes on")
    assert daemon.poll() is None
    assert rig.stop(daemon) == 0


def test_a_store_that_is_damaged_costs_the_pipeline_nothing(pipeline: Made, received: Hook) -> None:
    table = pipeline.table
    rig = pipeline(reconcile={"values": "every 1s"}, alerts={"webhook": received.url})
    rig.state.mkdir(mode=0o700)
    (rig.state / NAME).write_bytes(b"no database at all, " * 1000)
    daemon = rig.start()
    rig.wait_phase(table, "ready")
    rig.server.execute(f"UPDATE {table} SET v = 1000 WHERE id = 1")
    rig.wait(lambda: not rig.differences(table), "the pipeline goes on")
    assert "move the file away: only the history of checks is in it" in rig.lakesync("status").stdout
    assert daemon.poll() is None
    (rig.state / NAME).unlink()
    rig.wait(lambda: agreed(rig, "values"), "checks go on by themselves")
    assert rig.stop(daemon) == 0


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"reconcile": {"ledger": "every 5 minutes"}}, "`reconcile.ledger`: write a number and a unit"),
        ({"reconcile": {"values": "0 25 * * *"}}, "`reconcile.values`: bad hour"),
        ({"alerts": {"webhok": "https://h/"}}, "unknown key `alerts.webhok`, did you mean `webhook`?"),
        ({"metrics": "0.0.0.0:9464"}, "0.0.0.0 can be reached by others"),
    ],
)
def test_a_file_that_is_wrong_is_refused_before_anything_runs(
    pipeline: Made, settings: dict[str, Any], what: str
) -> None:
    done = pipeline(**settings).lakesync("run")
    assert done.returncode == 2
    assert what in done.stderr
