"""A pipeline under test: a real source, a pipeline file, the daemon as a process of its own, and the oracle.

The oracle trusts nothing of lakesync: it reads MySQL with a plain client and the lake with polars (whose Delta reader is
delta-rs), and compares row by row. Beside it stand lakesync's own proofs, the ledger and the values, which must agree.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from deltalake import DeltaTable

from cdc.names import TableName
from dev.sqlserver import SqlServer

PASSWORD = "rig"
COMMAND = Path(sys.executable).with_name("lakesync")
ENDS_WITHIN_S = 60.0
GRANTS = ("REPLICATION SLAVE, REPLICATION CLIENT ON *.*", "SELECT ON *.*")


@dataclass
class Verdict:
    """What the oracle found wrong; empty is green."""

    problems: list[str] = field(default_factory=list)

    @property
    def green(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        return "\n".join(self.problems) or "green"


class Rig:
    """One pipeline. `log` is its URL, `tables` the entries of its file; times are short so that much happens in a second."""

    def __init__(
        self,
        folder: Path,
        server: SqlServer,
        tables: Sequence[str],
        *,
        log: str | None = None,
        settings: Mapping[str, Any] | None = None,
        user: str = "rig",
    ) -> None:
        self.folder, self.server, self.tables = folder, server, tuple(tables)
        self.config, self.lake, self.state = folder / "lakesync.yaml", folder / "lake", folder / "state"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.extra: dict[str, str] = {}
        """Further environment of the pipeline's processes."""
        if not server.execute("SELECT 1 FROM mysql.user WHERE user = %s", user):
            server.add_user(user, PASSWORD, *GRANTS)
        data: dict[str, Any] = {
            "name": folder.name[:40],
            "source": {"url": f"mysql://{user}@127.0.0.1:{server.port}", "password": "env:RIG_PASSWORD"},
            "lake": str(self.lake),
            "state": str(self.state),
            "capture": {"linger": "50ms", "idle": "200ms", "look_back": "500ms", "heartbeat": "500ms"},
            "merge": {"every": "300ms"},
            "snapshot": {"chunk_rows": 2000},
            "tables": list(tables),
        }
        if log:
            data["log"] = log
        for key, value in (settings or {}).items():
            data[key] = data[key] | value if isinstance(data.get(key), dict) else value
        self.lake_url = str(data["lake"])
        self.reader_options: dict[str, str] = {}
        """With which polars reads the lake."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_bytes(orjson.dumps(data))  # JSON is YAML

    @property
    def log_file(self) -> Path:
        """The embedded log."""
        return self.state / "log.db"

    def environment(self, faults: str = "") -> dict[str, str]:
        """For a process of the pipeline, with these faults armed."""
        return (
            os.environ
            | {"LAKESYNC_CONFIG": str(self.config), "RIG_PASSWORD": PASSWORD, "LAKESYNC_FAULTS": faults}
            | self.extra
        )

    def start(self, *arguments: str, faults: str = "") -> subprocess.Popen[bytes]:
        """`lakesync run` in the background; its output goes to `daemon.log`."""
        with (self.folder / "daemon.log").open("ab") as log:
            process = subprocess.Popen(
                [COMMAND, "run", *arguments], env=self.environment(faults), stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def lakesync(self, *arguments: str, faults: str = "", timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Any command, to its end; one that does not end in time is killed, and has the code 124 as `timeout` gives it."""
        command = [str(COMMAND), *arguments]
        try:
            return subprocess.run(
                command,
                env=self.environment(faults),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            errors = late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else ""
            return subprocess.CompletedProcess(command, 124, "", f"{errors}\nnot ended after {timeout_s:.0f} s")

    def catch_up(self, *, faults: str = "", timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """`lakesync run --until-current`."""
        return self.lakesync("run", "--until-current", faults=faults, timeout_s=timeout_s)

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """As a power cut does to a process."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> int:
        """SIGTERM; its exit code. One that has only just been started is waited for: it would die of the signal until it listens."""
        while process.poll() is None and not _listens(process.pid):
            time.sleep(0.02)
        process.terminate()
        return process.wait(ENDS_WITHIN_S)

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)

    def status(self) -> dict[str, Any]:
        """`lakesync status --json`."""
        done = self.lakesync("status", "--json")
        assert done.returncode == 0, done.stderr
        data: dict[str, Any] = orjson.loads(done.stdout)
        return data

    def phase(self, table: str) -> str:
        """A table's state, from the state folder."""
        from cdc.state import State

        status = State(self.state).table(TableName.parse(table))
        return status.phase if status else "new"

    def wait_phase(self, table: str, phase: str, timeout_s: float = 60.0) -> None:
        """Until the table is in this state."""
        self.wait(lambda: self.phase(table) == phase, f"{table} is {phase}", timeout_s)

    def wait(self, condition: Any, what: str, timeout_s: float = 60.0) -> None:
        """Until `condition()` is true; else fail, with the daemon's last words."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s:.0f} s: {what}\n{self.last_words()}")
            time.sleep(0.05)

    def last_words(self, lines: int = 30) -> str:
        """The end of `daemon.log`."""
        log = self.folder / "daemon.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    # -- the oracle ----------------------------------------------------------------------------------------------------

    def verdict(self, *, proofs: bool = True) -> Verdict:
        """Compare source and lake, which must be quiet and caught up; then ask lakesync's own proofs."""
        verdict = Verdict()
        for table in self.tables:
            verdict.problems += self.differences(table)
        if proofs and not verdict.problems:
            done = self.lakesync("reconcile", "--ledger", "--values")
            if done.returncode:
                verdict.problems.append(f"reconcile ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return verdict

    def differences(self, table: str) -> list[str]:
        """One table, row by row."""
        name = TableName.parse(table)
        key = [r[0] for r in self.server.execute(_KEY, name.schema, name.name)]
        with self.server.root() as connection, connection.cursor() as cursor:
            cursor.execute("SET time_zone = '+00:00'")
            cursor.execute(f"SELECT * FROM {name.quoted}")
            columns = [d[0] for d in cursor.description]
            rows = [dict(zip(columns, map(_plain, row), strict=True)) for row in cursor.fetchall()]
        source = {tuple(row[k] for k in key): row for row in rows}
        folder = f"{self.lake_url}/{name.folder}"
        if not DeltaTable.is_deltatable(folder, self.reader_options):
            return [f"{table}: not in the lake"]
        frame = pl.read_delta(folder, storage_options=self.reader_options)
        problems: list[str] = []
        lake: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in frame.select(columns).to_dicts():
            plain = {c: _plain(v) for c, v in row.items()}
            at = tuple(plain[k] for k in key)
            if at in lake:
                problems.append(f"{table}: key {at} is in the lake twice")
            lake[at] = plain
        problems += (
            [f"{table}: {len(missing)} rows missing, such as {missing[0]}"]
            if (missing := [k for k in source if k not in lake])
            else []
        )
        problems += (
            [f"{table}: {len(extra)} rows too many, such as {extra[0]}"]
            if (extra := [k for k in lake if k not in source])
            else []
        )
        unlike = [k for k, row in source.items() if k in lake and lake[k] != row]
        problems += [f"{table}: {len(unlike)} rows differ, such as {unlike[0]}"] if unlike else []
        return problems


_KEY = """
SELECT COLUMN_NAME FROM information_schema.STATISTICS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND INDEX_NAME = 'PRIMARY' ORDER BY SEQ_IN_INDEX
"""


def _listens(pid: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def _plain(value: Any) -> Any:
    """A value as both readers give it: decimals without trailing zeros, timestamps without a zone."""
    if isinstance(value, Decimal):
        return value.normalize()
    if hasattr(value, "tzinfo") and value.tzinfo is not None:
        return value.replace(tzinfo=None)
    return value


def seed() -> int:
    """The seed of this run, printed by pytest with a failure; `LAKESYNC_TEST_SEED` repeats one."""
    chosen = int(os.environ.get("LAKESYNC_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"LAKESYNC_TEST_SEED={chosen}")
    return chosen
