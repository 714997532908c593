"""`lakesync snapshot`, as someone types it, beside a daemon and without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdc.names import TableName
from dev.mysql import MySQLServer
from tests.integration.rereading import Rereading
from tests.pipelines.test_rereads import drift, make

COMMAND = Path(sys.executable).with_name("lakesync")


class Shell:
    def __init__(self, rig: Rereading) -> None:
        self.rig = rig

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [COMMAND, "-c", str(self.rig.config.path), *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        return orjson.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def table(mysql: MySQLServer, schema: str) -> TableName:
    return make(mysql, schema)


@pytest.fixture
def rig(mysql: MySQLServer, table: TableName, tmp_path: Path, request: pytest.FixtureRequest) -> Rereading:
    pace = request.param if hasattr(request, "param") else 4000
    return Rereading(tmp_path, mysql, [str(table)], window_rows=20, rows_per_second=pace)


@pytest.mark.ci
@pytest.mark.timeout(120)
def test_rows_are_read_again(rig: Rereading, table: TableName) -> None:
    shell, name = Shell(rig), str(table)
    with rig.running():
        rig.ready(table)
        drift(rig, table)
        said = shell("snapshot", name, "--where", "v = 'drifted'")
        assert f"{name}: 5 rows read\n" in said
        said = shell("snapshot", name, "--where", "v = 'nothing of that kind'")
        assert "0 rows match; the lake is as it was" in said
        said = shell("snapshot", name, "--key", "4", "--key", "402")
        assert f"{name}: 0 rows read; 2 keys not in the source, nor in the lake now\n" in said
        whole = shell.json("snapshot", name)
        (read,) = whole["reads"]
        assert (read["phase"], read["percent"], read["rows_read"], read["rows_gone"]) == ("done", 100.0, 500, 3)
        assert rig.lake(table) == rig.source(table)
        # What is wrong with what is asked for.
        refused = shell("snapshot", name, "--where", "v >= ", code=2)
        assert "syntax error" in refused
        assert "<class" not in refused
        assert "no key is from there to there" in shell("snapshot", name, "--from", "9", "--to", "3", code=2)
        assert "column" in shell("snapshot", name, "--where", "nowhere = 1", code=2)
        assert "not a key" in shell("snapshot", name, "--from", "x", code=2)
        assert "not a table" in shell("snapshot", f"{table.schema}.nowhere", code=2)
        assert "stands alone" in shell("snapshot", name, "--pause", "--where", "1", code=2)
        assert "nothing is being read" in shell("snapshot", name, "--cancel", code=2)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("rig", [25], indirect=True)
def test_it_pauses_goes_on_and_ends(rig: Rereading, table: TableName) -> None:
    shell, name = Shell(rig), str(table)
    with rig.running():
        rig.ready(table)
        (read,) = shell.json("snapshot", name, "--no-wait")["reads"]
        assert read["phase"] in ("waiting", "running")
        assert "paused" in shell("snapshot", name, "--pause")
        (shown,) = [r for r in shell.json("status")["reads"] if r["job"] == read["job"]]
        assert shown["phase"] == "paused"
        assert "goes on" in shell("snapshot", name, "--continue")
        assert "cancelled, after" in shell("snapshot", name, "--cancel")
        # Somebody who waits and is interrupted leaves it to the daemon.
        process = subprocess.Popen(
            [COMMAND, "-c", str(rig.config.path), "snapshot", name], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        rig.until(lambda: any(r.phase == "running" for r in rig.state.reads()), "it runs")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "It goes on" in said
        (job,) = [r.job for r in rig.state.reads(open_only=True)]
        rig.pipeline.cancel(name)
        rig.read(job, "cancelled")


@pytest.mark.timeout(120)
def test_without_a_daemon_it_is_recorded(rig: Rereading, table: TableName) -> None:
    shell, name = Shell(rig), str(table)
    assert "no daemon has looked at it yet" in shell("snapshot", name, code=2)
    for verb in ((), ("--pause",), ("--cancel",)):
        assert "not a table of this pipeline" in shell("snapshot", f"{name}_not", *verb, code=2)
    with rig.running():
        rig.ready(table)
    rig.until(lambda: not shell.json("status")["running"], "the daemon is known to have ended")
    assert "No daemon is running: `lakesync run` reads it when it starts." in shell("snapshot", name)
    (read,) = rig.state.reads(open_only=True)
    drift(rig, table)
    shell("run", "--until-current")
    assert rig.lake(table) == rig.source(table)
    assert not rig.state.reads(open_only=True)
    assert rig.state.read(read.job) is not None
