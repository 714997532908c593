"""The README's commands do what it shows: run on real servers, and compared with times, ids, numbers, places and ports masked."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import polars
import pytest

from cdc.state import State
from dev import shop
from dev.mysql import MySQLServer

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LAKESYNC = Path(sys.executable).with_name("lakesync")
PASSWORD = "readme"
HOST, FOLDER = "db.example.com:3306", "/srv/shop"
"""What the README has in place of the server and the folder of this test."""
LEFT_OUT = "…"
READY_WITHIN_S = 120.0

_MASKS = (
    (r"^\[ *", "["),
    (r"MySQL \S+ at", "MySQL VERSION at"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"\d[\d,.]* (ms|s|min|h)\b", "DURATION"),
    (r"\d[\d,.]* (B|KiB|MiB|GiB)\b", "SIZE"),
    (r"\d+-\d+|none yet", "EPOCHS"),
    (r" \([\d,]+ in the manifest\)", ""),  # where status is asked between a commit and the end of its round
    (r"\d[\d,.]*\d|\d", "N"),
    (r"  trace alive(, .* behind)?$", ""),  # it shows itself once a minute
    (r" +", " "),
)


def masked(line: str) -> str:
    """A line of output as far as it is the same in every run."""
    for pattern, mask in _MASKS:
        line = re.sub(pattern, mask, line)
    return line.strip()


def lines_of(output: str) -> list[str]:
    """Its lines that are neither empty nor of the log."""
    return [masked(line) for line in output.splitlines() if line.strip() and not line.startswith("at=")]


def blocks(language: str, heading: str) -> list[str]:
    """The blocks of this language under this heading."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def shown(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a block with the output below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.partition("      #")[0], output


class Reader:
    """Someone who follows the README, at a server and in a folder of theirs."""

    def __init__(self, folder: Path, server: MySQLServer) -> None:
        self.folder, self.host = folder, f"127.0.0.1:{server.port}"
        self.environment = os.environ | {"SHOP_DB_PASSWORD": PASSWORD}
        self.environment.pop("LAKESYNC_CONFIG", None)
        self.daemon: subprocess.Popen[bytes] | None = None

    def command(self, shown: str) -> list[str]:
        name, *arguments = shlex.split(shown.replace(HOST, self.host))
        assert name == "lakesync"
        return [str(LAKESYNC), *arguments]

    def output(self, shown: str) -> str:
        done = subprocess.run(
            self.command(shown), cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr
        return done.stdout.replace(self.host, HOST).replace(str(self.folder), FOLDER)

    def run(self, shown: str) -> None:
        """Start the daemon, and wait until every table is ready."""
        with (self.folder / "daemon.log").open("wb") as log:
            self.daemon = subprocess.Popen(
                self.command(shown), cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        state, deadline = State(self.folder / ".lakesync"), time.monotonic() + READY_WITHIN_S
        while [t.phase for t in state.tables().values()] != ["ready"] * len(shop.TABLES):
            assert self.daemon.poll() is None, (self.folder / "daemon.log").read_text()
            assert time.monotonic() < deadline, state.tables()
            time.sleep(0.2)
        time.sleep(6)  # a round of the merger

    def end(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            assert self.daemon.wait(60) == 0


@pytest.fixture
def reader(mysql_server: MySQLServer, tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "shop"
    folder.mkdir()
    made = Reader(folder, mysql_server)
    yield made
    made.end()


@pytest.fixture
def mysql_server() -> Iterator[MySQLServer]:
    """A server with the shop, which grants the user what the README's statements do."""
    with MySQLServer(options=["--binlog-row-metadata=MINIMAL"]) as server:
        shop.create(server, rows=2000)
        (statements,) = blocks("sql", "Your own database")
        for statement in statements.replace("'…'", f"'{PASSWORD}'").split(";"):
            if statement.strip():
                server.execute(statement)
        yield server


def test_the_commands_for_ones_own_database(reader: Reader, mysql_server: MySQLServer) -> None:
    parts = [part for block in blocks("console", "Your own database") for part in shown(block)]
    verbs = [command.split()[1] for command, _ in parts if command.startswith("lakesync ")]
    assert verbs == ["init", "check", "add", "run", "status", "reconcile"]
    with shop.working(mysql_server, rate=20):
        for command, output in parts:
            if command.startswith("pip install"):
                assert set(re.findall(r"\[(\w+)\]", command)) <= set(
                    metadata("lakesync").get_all("Provides-Extra") or ()
                )
            elif command.startswith("export "):
                assert command == "export SHOP_DB_PASSWORD=…"
            elif command == "lakesync run":
                reader.run(command)
                log = (reader.folder / "daemon.log").read_text()
                assert all(event in log for event in re.findall(r"node=\w+ event=[\w-]+", output))
                assert not [line for line in lines_of(output) if line != LEFT_OUT]
            else:
                assert lines_of(reader.output(command)) == lines_of(output), command
    rows = rows_by_manifest(reader.folder)
    assert set(rows) == {f"shop.{table}" for table in shop.TABLES}
    assert sum(rows.values()) > 2000


def rows_by_manifest(folder: Path) -> dict[str, int]:
    """What the example for readers of manifests opens, beside the lake."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "operations.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(example, names)
        tables: dict[str, polars.LazyFrame] = names["tables"]
        return {name: table.collect().height for name, table in tables.items()}


def test_the_demo(tmp_path: Path) -> None:
    block = next(b for b in blocks("console", "Try it") if b.startswith("$ make demo\n"))
    done = subprocess.run(
        [sys.executable, ROOT / "dev" / "demo.py", "--rows", "20000"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed, at = lines_of(done.stdout), 0
    pieces = groupby(lines_of(block.removeprefix("$ make demo\n")), lambda line: line == LEFT_OUT)
    for piece in (list(lines) for left_out, lines in pieces if not left_out):
        starts = [i for i in range(at, len(printed)) if printed[i : i + len(piece)] == piece]
        assert starts, "\n".join(["not printed, or not in this order:", *piece, "", "printed:", *printed[at:]])
        at = starts[0] + len(piece)
    assert at == len(printed)
