"""The commands one after the other, as someone types them, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pytest

from cdc import Pipeline
from dev.mysql import MySQLServer

COMMAND = Path(sys.executable).with_name("lakesync")
PASSWORD = "c4nary-pa55word"
VALUE = "c4nary-r0w-value"


@dataclass
class Shell:
    """A folder with a pipeline in it, and what was printed there so far."""

    folder: Path
    said: str = ""

    def __call__(self, *arguments: str, code: int = 0, timeout_s: float = 90) -> str:
        """Run a command; its standard output. Fails for another exit code."""
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env={k: v for k, v in os.environ.items() if k != "LAKESYNC_CONFIG"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        self.said += done.stdout + done.stderr
        assert done.returncode == code, (
            f"lakesync {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def init(self, source: str, *arguments: str) -> None:
        """`lakesync init`, then shorter pauses than a user wants."""
        assert "Next:" in self("init", "--source", source, "--lake", "lake", *arguments)
        path = self.folder / "lakesync.yaml"
        path.write_text(path.read_text().replace("tables: []", "merge: {every: 300ms}\ntables: []"))

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The same with `--json`, parsed."""
        return orjson.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def user(mysql: MySQLServer, schema: str) -> Iterator[str]:
    """A user that may read `schema` and follow the server."""
    name = f"u_{schema}"[:32]
    mysql.add_user(name, PASSWORD, "REPLICATION SLAVE, REPLICATION CLIENT ON *.*", f"SELECT ON `{schema}`.*")
    yield name
    mysql.execute(f"DROP USER '{name}'@'%'")


@pytest.fixture
def shop(mysql: MySQLServer, schema: str) -> str:
    mysql.execute(
        f"CREATE TABLE {schema}.orders (id INT PRIMARY KEY, note VARCHAR(50), done TINYINT(1), secret INT NOT NULL DEFAULT 7)"
    )
    mysql.execute(f"CREATE TABLE {schema}.events (what VARCHAR(50))")
    mysql.execute(
        f"INSERT INTO {schema}.orders (id, note, done) VALUES (1, '{VALUE}', 0), (2, NULL, 1), (3, 'c', NULL)"
    )
    return schema


def test_from_nothing_to_a_proof(shell: Shell, mysql: MySQLServer, user: str, shop: str) -> None:
    shell.init(mysql.url(user, PASSWORD), "--name", "shop")
    assert "Ready to run." in shell("check")
    out = shell("add", f"{shop}.orders", "--type", "done=boolean", "--exclude", "secret")
    assert "added, mode upsert" in out
    shell("add", f"{shop}.events", "--mode", "append")
    shell("run", "--until-current")
    assert pl.read_delta(str(shell.folder / "lake" / shop / "orders")).sort("id").select(
        "id", "note", "done"
    ).rows() == [
        (1, VALUE, False),
        (2, None, True),
        (3, "c", None),
    ]

    status = shell.json("status")
    assert not status["running"]
    assert {t["table"]: t["phase"] for t in status["tables"]} == {f"{shop}.orders": "ready", f"{shop}.events": "ready"}
    (orders,) = [t for t in status["tables"] if t["table"].endswith("orders")]
    assert (orders["lake"]["rows"], orders["error"]) == (3, None)
    assert orders["lag_ms"] is not None
    assert status["problems"] == []

    mysql.execute(f"UPDATE {shop}.orders SET id = 30, note = '{VALUE}-2' WHERE id = 3")
    mysql.execute(f"DELETE FROM {shop}.orders WHERE id = 2")
    mysql.execute(f"INSERT INTO {shop}.events VALUES ('{VALUE}-3')")
    shell("run", "--until-current")
    orders_now = pl.read_delta(str(shell.folder / "lake" / shop / "orders")).sort("id")
    assert "secret" not in orders_now.columns
    assert orders_now.select("id", "note").rows() == [(1, VALUE), (30, f"{VALUE}-2")]
    events = pl.read_delta(str(shell.folder / "lake" / shop / "events"))
    assert events.select("what", "_cdc_op").rows() == [(f"{VALUE}-3", "insert")]

    report = shell.json("reconcile")
    assert report["agrees"]
    assert report["ledger"]["closes"]
    assert {t["table"]: t["equal"] for t in report["values"]["tables"]}[f"{shop}.orders"]
    # Nothing follows now: of a source that moves on there is no equal position.
    mysql.execute(f"INSERT INTO {shop}.orders (id, note, done) VALUES (5, '{VALUE}', 1)")
    shell("reconcile", "--ledger")
    shell("reconcile", "--values", "--follow", "1", code=3)

    nothing_told = shell.said
    assert PASSWORD not in nothing_told
    assert VALUE not in nothing_told
    state = shell.folder / ".lakesync"
    for path in [p for p in state.rglob("*") if p.is_file() and not p.name.startswith("log.db")]:
        if path.name != "source-password":
            assert PASSWORD.encode() not in path.read_bytes(), path
        assert VALUE.encode() not in path.read_bytes(), path
        assert not path.stat().st_mode & 0o077 or "trace" in path.parts or "snapshot" in path.parts, path

    epochs = [orjson.loads(line) for line in shell("log").splitlines()]
    assert [e["number"] for e in epochs] == list(range(epochs[0]["number"], epochs[-1]["number"] + 1))
    assert sum(e["tables"].get(f"{shop}.orders", {}).get("updates", 0) for e in epochs) == 1
    changes = [orjson.loads(line) for line in shell("log", "--table", f"{shop}.orders").splitlines()]
    assert [(c["_op"], c["row"]["id"]) for c in changes] == [("update-old-key", 3), ("update", 30), ("delete", 2)]
    assert len({c["_gid"] for c in changes}) == 2
    shell("log", "--table", f"{shop}.none", code=2)
    shell("log", "--from", "100000", code=2)

    shell("remove", f"{shop}.events")
    assert f"{shop}.events" not in (shell.folder / "lakesync.yaml").read_text()


def test_the_same_in_python(tmp_path: Path, mysql: MySQLServer, user: str, shop: str) -> None:
    shell = Shell(tmp_path)
    shell.init(mysql.url(user, PASSWORD))
    pipeline = Pipeline.load(tmp_path / "lakesync.yaml")
    assert not [f for f in pipeline.check() if f.level == "error"]
    pipeline.add(f"{shop}.orders")
    pipeline.run(until_current=True)
    mysql.execute(f"INSERT INTO {shop}.orders (id, note, done) VALUES (4, 'd', 1)")
    pipeline.run(until_current=True)
    assert [t.phase for t in pipeline.status().tables] == ["ready"]
    batches = list(pipeline.changes(f"{shop}.orders"))
    table = pa.Table.from_batches(batches)
    assert table.select(["_op", "id", "note"]).to_pylist() == [{"_op": "insert", "id": 4, "note": "d"}]
    assert pipeline.reconcile(values=False).agrees


def test_tables_that_cannot_be_followed_are_not_added(shell: Shell, mysql: MySQLServer, user: str, shop: str) -> None:
    shell.init(mysql.url(user, PASSWORD))
    before = (shell.folder / "lakesync.yaml").read_text()
    found = shell.json("add", f"{shop}.orders", f"{shop}.events", code=1)
    assert not found["ok"]
    assert found["added"] == []
    assert [f["subject"] for f in found["findings"] if f["level"] == "error"] == [f"{shop}.events"]
    assert "append" in shell("add", f"{shop}.events", code=1)
    assert f": lakesync add {shop}.orders\n" in shell("add", f"{shop}.*", code=1)
    shell("add", f"{shop}.nothing", code=1)
    assert (shell.folder / "lakesync.yaml").read_text() == before
    shell("add", f"{shop}.ord*")
    shell("add", f"{shop}.ord*", code=2)
