"""A pipeline that is measured: its file and its commands, everything at the defaults but what a benchmark names."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from bench.measure import Process
from bench.setting import PASSWORD, USER, Setting
from cdc.epoch import CommitRecord
from cdc.lake import LakeTable, Snapshot
from cdc.log import open_log
from cdc.names import TableName
from cdc.position import GtidSet
from cdc.state import State
from dev.mysql import MySQLServer
from dev.server import Server

COMMAND = Path(sys.executable).with_name("lakesync")
POLL_S = 0.02


class Pipeline:
    """One pipeline with its own state, log and lake. `trace=False` leaves the counts' projection out."""

    def __init__(
        self,
        setting: Setting,
        name: str,
        tables: Sequence[str],
        *,
        log: str = "",
        trace: bool = False,
        further: Sequence[Server] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.tables = name, [TableName.parse(t) for t in tables]
        self.folder = setting.folder(f"pipeline-{name}")
        self.server: MySQLServer = setting.server
        self.servers: tuple[Server, ...] = (self.server, *further)
        self.file, self.lake, self.state_folder = (self.folder / part for part in ("lakesync.yaml", "lake", "state"))
        self.log = log or f"sqlite://{self.state_folder}/log.db"
        data: dict[str, Any] = {
            "name": name,
            "source": {"url": f"mysql://{USER}@127.0.0.1:{self.server.port}", "password": "env:BENCH_PASSWORD"},
            "lake": str(self.lake),
            "state": str(self.state_folder),
            "log": self.log,
            "tables": list(tables),
            **({} if trace else {"trace": None}),
            **(settings or {}),
        }
        self.file.write_bytes(orjson.dumps(data))  # JSON is YAML

    def start(self, *arguments: str) -> Process:
        """A command of lakesync."""
        environment = {"LAKESYNC_CONFIG": str(self.file), "BENCH_PASSWORD": PASSWORD}
        return Process([COMMAND, *arguments], self.folder / "run", servers=self.servers, environment=environment)

    def catch_up(self) -> Process:
        """`lakesync run --until-current`."""
        return self.start("run", "--until-current")

    def add(self) -> None:
        """Capture the tables from here on."""
        process = self.start("run", "--node", "capture")
        try:
            state = self.state
            wait(lambda: all((s := state.table(t)) and s.phase == "added" for t in self.tables), process)
        finally:
            process.end()

    @property
    def state(self) -> State:
        """Its state folder."""
        return State(self.state_folder)

    def wait_logged(self, gtids: str, process: Process) -> CommitRecord:
        """Until the log has all of these transactions; its newest record."""
        wanted = GtidSet.parse(gtids)
        found: CommitRecord | None = None
        with closing(open_log(self.log, self.name)) as log:

            def there() -> bool:
                nonlocal found
                found = log.newest()
                return found is not None and found.end.gtids.contains(wanted)

            wait(there, process)
        assert found
        return found

    def logged(self) -> int:
        """Row changes that the log counts, of all tables, since they were added."""
        with closing(open_log(self.log, self.name)) as log:
            return sum(entry.rows.changes for record in log.records() for entry in record.tables.values())

    def snapshot(self, table: int = 0) -> Snapshot:
        """What the lake has of a table."""
        found = LakeTable(self.lake, self.tables[table], self.name).load()
        if found is None:
            raise FileNotFoundError(f"{self.tables[table]} is not in the lake")
        return found


def wait(condition: Callable[[], Any], process: Process, timeout_s: float = 1800.0) -> None:
    """Until `condition` is true, while `process` runs. Raises `FailedError`, `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        process.must_run()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {' '.join(process.command)}")
        time.sleep(POLL_S)
