"""A capture in this process, over the embedded log, and what it wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdc.capture.capture import Capture
from cdc.capture.tables import PipelineFile
from cdc.clock import SystemClock
from cdc.config import PipelineConfig, load
from cdc.epoch import CommitRecord, Counts, Op
from cdc.log import Log, open_log
from cdc.log.codec import WIDTH, decode
from cdc.names import TableName
from cdc.position import GtidSet
from cdc.state import State
from cdc.window import Windows
from dev.sqlserver import SqlServer


class Rig:
    """One pipeline: its file, its log and its state. `run()` starts a capture and ends it with the block."""

    def __init__(
        self, folder: Path, server: SqlServer, *tables: str, log: str = "", pipeline: str = "p", **capture: str
    ) -> None:
        self.folder = folder
        self.server = server
        self.pipeline = pipeline
        self.path = folder / "lakesync.yaml"
        self.log_url = log or f"sqlite://{folder}/log.db"
        self.capture = {"linger": "50ms", "idle": "200ms", "look_back": "300ms", "heartbeat": "200ms"} | capture
        self.write(*tables)
        self.state = State(folder / "state")
        self.log: Log = open_log(self.log_url, self.pipeline)
        self.windows = Windows()
        self.error: BaseException | None = None

    def write(self, *tables: str) -> None:
        """The pipeline file, anew."""
        text = f"name: {self.pipeline}\nsource: {{url: '{self.server.url()}'}}\nlog: '{self.log_url}'\nlake: {self.folder}/lake\n"
        text += f"state: {self.folder}/state\ntrace: 'chdb://{self.folder}/trace'\n"
        text += "capture: {" + ", ".join(f"{k}: {v}" for k, v in self.capture.items()) + "}\n"
        text += "tables: [" + ", ".join(tables) + "]\n"
        self.path.write_text(text)

    @property
    def config(self) -> PipelineConfig:
        return load(self.path)

    @contextmanager
    def run(
        self, ends_with: type[Exception] | None = None, daemon: tuple[PipelineConfig, PipelineFile] | None = None
    ) -> Iterator[threading.Thread]:
        """A capture, until the block ends. Raises what it raised, unless it is what it should end with: then it is `error`. `daemon`: what
        a daemon read when it began, and what its captures read since."""
        stop = threading.Event()
        self.error = None

        def body() -> None:
            try:
                log = open_log(self.log_url, self.pipeline)
                config, file = daemon or (self.config, None)
                Capture(config, log, self.state, SystemClock(), self.windows, file).run(stop)
            except BaseException as error:
                self.error = error

        thread = threading.Thread(target=body)
        thread.start()
        try:
            yield thread
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()
        self._check_end(ends_with)

    def _check_end(self, expected: type[Exception] | None) -> None:
        if expected is not None and self.error is None:
            raise AssertionError(f"it did not end with {expected.__name__}")
        if self.error is not None and not (expected and isinstance(self.error, expected)):
            raise self.error

    def process(self, faults: str = "") -> subprocess.Popen[str]:
        """A capture as a process, to be killed, with these faults armed."""
        armed = ",".join(filter(None, (os.environ.get("LAKESYNC_FAULTS"), faults)))
        environment = {**os.environ, "LAKESYNC_FAULTS": armed}
        command = [sys.executable, "-m", "tests.integration.capturing", str(self.path)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        """Wait for it; what it returned."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"not in time; newest {self.log.newest()}")
            time.sleep(0.02)
        return found

    def caught_up(self) -> CommitRecord:
        """Wait until the log has what the server has executed."""
        executed = self.server.executed

        def there() -> CommitRecord | None:
            newest = self.log.newest()
            return newest if newest and newest.end.gtids.contains(GtidSet.parse(executed)) else None

        return self.until(there)  # type: ignore[no-any-return]

    def records(self) -> list[CommitRecord]:
        return list(self.log.records())

    def rows(self, table: TableName) -> list[tuple[str, int, int, int, tuple[Any, ...]]]:
        """Every change of the table in the log: global ID, `_op`, `_ts_ms`, `_seq`, cells; checked on the way."""
        found = []
        chain = None
        for record in self.records():
            assert chain is None or record.before == chain.hash
            assert chain is None or record.start == chain.end
            chain = record
            entry = record.tables.get(table.id)
            if entry is None:
                continue
            changes = [decode(r) for r in self.log.data(table.id, entry.extent)]
            counts = [0] * (Op.TRUNCATE + 1)
            for one in changes:
                assert one.schema_hash == entry.schema
                for i in range(one.batch.num_rows):
                    cells = [c[i].as_py() for c in one.batch.columns]
                    counts[cells[0]] += 1
                    found.append((one.gid(i), cells[0], cells[4], cells[5], tuple(cells[WIDTH:])))
            assert Counts(*(counts[op] for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.READ))) == entry.rows
        return found

    def phase(self, table: TableName) -> str:
        status = self.state.table(table)
        return status.phase if status else ""


def fold(rows: list[tuple[str, int, int, int, tuple[Any, ...]]], key: int = 0) -> dict[Any, tuple[Any, ...]]:
    """What the changes leave of an empty table, by the key's column."""
    left: dict[Any, tuple[Any, ...]] = {}
    for _, op, _, _, cells in rows:
        if op in (Op.DELETE, Op.MOVE_OUT):
            left.pop(cells[key])
        else:
            left[cells[key]] = cells
    return left


def main(path: Path) -> None:
    """A capture as a process of its own, until SIGTERM; prints its first epoch's number."""
    config, stop = load(path), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Capture(config, open_log(config.log, config.name), State(config.state), SystemClock()).run(stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
