"""Where snapshot meets stream: chunks are read while rows, and keys, change; the lake must end as the source."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars
import pytest

import snapshot
from cdc.capture.capture import Capture
from cdc.clock import SystemClock
from cdc.config import PipelineConfig
from cdc.log import open_log
from cdc.merge.merger import Merger
from cdc.names import TableName
from cdc.position import GtidSet
from cdc.state import State
from dev import shop
from dev.mysql import MySQLServer

NODES: dict[str, Callable[..., None]] = {
    "capture": lambda config, log, state, stop: Capture(config, log, state, SystemClock()).run(stop),
    "merge": lambda config, log, state, stop: Merger(config, log, state, SystemClock()).run(stop),
    "snapshot": snapshot.run,
}


class Running:
    """The three nodes, each in a thread with a log of its own."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.state = State(config.state)
        self.errors: list[BaseException] = []

    @contextmanager
    def nodes(self) -> Iterator[None]:
        """Run them beside the block. Raises what one of them raised."""
        stop = threading.Event()

        def work(name: str) -> None:
            log = open_log(self.config.log, self.config.name)
            try:
                NODES[name](self.config, log, self.state, stop)
            except BaseException as error:
                self.errors.append(error)
            finally:
                log.close()

        threads = [threading.Thread(target=work, args=(name,), name=name) for name in NODES]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        if self.errors:
            raise self.errors[0]

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
        """Wait for it; fail early with what a node raised or a table stopped by."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.errors:
                raise self.errors[0]
            stopped = {str(t): s.error for t, s in self.state.tables().items() if s.phase == "stopped"}
            assert not stopped
            phases = {str(t): s.phase for t, s in self.state.tables().items()}
            assert time.monotonic() < deadline, f"not in time: {what}; {phases}"
            time.sleep(0.1)

    def ready(self, tables: list[TableName]) -> bool:
        """Whether all of them are."""
        phases = [s.phase if (s := self.state.table(t)) else "new" for t in tables]
        return all(phase == "ready" for phase in phases)

    def current(self, server: MySQLServer) -> bool:
        """Whether a manifest of everything that the server has executed is written."""
        from cdc.lake import manifest

        found = manifest.read(self.config.lake_root, self.config.name)
        return found is not None and found.applied.position.gtids.contains(GtidSet.parse(server.gtid_executed))


def lake_rows(running: Running, table: TableName) -> Counter[tuple[Any, ...]]:
    frame = polars.read_delta(str(Path(running.config.lake) / table.folder))
    plain = [
        tuple(v.replace(tzinfo=None) if getattr(v, "tzinfo", None) else v for v in row[:-2]) for row in frame.rows()
    ]
    return Counter(plain)


def source_rows(server: MySQLServer, table: TableName) -> Counter[tuple[Any, ...]]:
    with server.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+00:00'")
        cursor.execute(f"SELECT * FROM {table.quoted}")
        return Counter(cursor.fetchall())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_lake_ends_as_the_source(mysql: MySQLServer, schema: str, tmp_path: Path, seed: int) -> None:
    shop.create(mysql, rows=20_000, seed=seed, database=schema)
    tables = [TableName(schema, name) for name in shop.TABLES]
    config = PipelineConfig.model_validate(
        {
            "name": "stream",
            "source": {"url": mysql.url()},
            "log": f"sqlite://{tmp_path}/log.db",
            "lake": str(tmp_path / "lake"),
            "state": tmp_path / "state",
            "capture": {"linger": "50ms", "idle": "200ms"},
            "merge": {"every": "300ms"},
            "snapshot": {"chunk_rows": 400, "readers": 3},
            "tables": [str(t) for t in tables],
        }
    )
    running = Running(config)
    for table in tables:
        running.state.set_table(table, "new")
    with running.nodes():
        with shop.working(mysql, rate=120, seed=seed, database=schema) as work:
            running.until(lambda: running.ready(tables), "every table is ready")
            assert work.transactions > 50, "nothing was written meanwhile: nothing is tested"
            time.sleep(1)
        running.until(lambda: running.current(mysql), "the lake is at the end of the binary log")
    for table in tables:
        assert lake_rows(running, table) == source_rows(mysql, table), str(table)
