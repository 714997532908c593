"""A whole pipeline in this process, for tests that read rows again: its nodes, its lake, and an oracle that trusts none of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars

from cdc import daemon
from cdc.config import SHARD_COLUMN, PipelineConfig
from cdc.epoch import CommitRecord, WindowEntry
from cdc.lake import manifest
from cdc.log import open_log
from cdc.names import TableName
from cdc.pipeline import Pipeline
from cdc.position import GtidSet
from cdc.state import Read, State
from dev.sqlserver import SqlServer


class Rereading:
    """One pipeline over `tables` (entries of the pipeline file). `window_rows`: of a window."""

    def __init__(
        self, folder: Path, server: SqlServer, tables: Sequence[Any], *, window_rows: int = 50, **snapshot: Any
    ) -> None:
        self.server = server
        self.config = PipelineConfig.model_validate(
            {
                "name": "rereads",
                "source": {"url": server.url()},
                "log": f"sqlite://{folder}/log.db",
                "lake": str(folder / "lake"),
                "state": folder / "state",
                "path": folder / "lakesync.yaml",
                "trace": None,
                "capture": {"linger": "20ms", "idle": "100ms", "look_back": "300ms", "heartbeat": "200ms"},
                "merge": {"every": "100ms"},
                "snapshot": {"window_rows": window_rows, **snapshot},
                "tables": list(tables),
            }
        )
        self.config.path.write_text(self._file(tables))
        self.pipeline = Pipeline(self.config)
        self.state = State(self.config.state)
        self.log = open_log(self.config.log, self.config.name)
        self.error: BaseException | None = None

    def _file(self, tables: Sequence[Any]) -> str:
        import orjson

        data = self.config.model_dump(
            mode="json", include={"name", "source", "log", "lake", "trace", "capture", "merge", "snapshot"}
        )
        data["capture"] = {"linger": "20ms", "idle": "100ms", "look_back": "300ms", "heartbeat": "200ms"}
        data["merge"], data["source"] = {"every": "100ms"}, {"url": self.config.source.url}
        data["snapshot"] = {
            k: v for k, v in data["snapshot"].items() if k in ("window_rows", "readers", "rows_per_second")
        }
        data["state"] = str(self.config.state)
        return orjson.dumps({**data, "tables": list(tables)}).decode()  # JSON is YAML

    @contextmanager
    def running(self, nodes: Sequence[daemon.NodeName] = daemon.NODES) -> Iterator[None]:
        """The nodes, until the block ends. Raises what ended one of them."""
        stop = threading.Event()
        self.error = None

        def body() -> None:
            try:
                daemon.run(self.config, nodes, stop=stop)
            except BaseException as error:
                self.error = error

        thread = threading.Thread(target=body, name="daemon")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(40)
        if self.error is not None:
            raise self.error

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 40) -> Any:
        """Wait for it; what it gave."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline:
                phases = {str(t): (s.phase, s.error) for t, s in self.state.tables().items()}
                raise AssertionError(f"not in time: {what}; {phases}; {self.state.reads()}")
            time.sleep(0.02)
        return found

    def ready(self, *tables: TableName) -> None:
        """Wait until these tables are ready."""
        self.until(lambda: all((s := self.state.table(t)) and s.phase == "ready" for t in tables), "ready")

    def current(self) -> None:
        """Wait until the lake has what the server has now."""
        executed = GtidSet.parse(self.server.executed)

        def there() -> bool:
            found = manifest.read(self.config.lake_root, self.config.name)
            return found is not None and found.applied.position.gtids.contains(executed)

        self.until(there, "the lake is current")

    def read(self, job: str, *phases: str, timeout_s: float = 40) -> Read:
        """Wait until a job is in one of these phases (default: done), and then merged."""

        def there() -> Read | None:
            found = self.state.read(job)
            assert found is not None
            if found.phase in ("failed", "cancelled") and found.phase not in phases:
                raise AssertionError(str(found))
            return found if found.phase in (phases or ("done",)) else None

        found: Read = self.until(there, f"{job} is {phases or 'done'}", timeout_s)
        if found.phase == "done" and found.last is not None:
            last = found.last
            self.until(lambda: self.applied() >= last.number, "merged", timeout_s)
        return found

    def applied(self) -> int:
        """The number of the epoch that the lake has."""
        found = manifest.read(self.config.lake_root, self.config.name)
        return found.applied.epoch.number if found is not None else -1

    # -- what is there -------------------------------------------------------------------------------------------------

    def lake(self, table: TableName) -> list[tuple[Any, ...]]:
        """The rows in the lake, without lakesync's columns, sorted."""
        frame = polars.read_delta(str(Path(self.config.lake) / table.folder))
        frame = frame.select([c for c in frame.columns if not c.startswith("_cdc") or c == SHARD_COLUMN])
        return sorted(frame.rows(), key=repr)

    def source(self, table: TableName) -> list[tuple[Any, ...]]:
        """The rows in the source, sorted."""
        return sorted(map(tuple, self.server.execute(f"SELECT * FROM {table.quoted}")), key=repr)

    def windows(self, table: TableName) -> list[tuple[CommitRecord, WindowEntry]]:
        """Every window of a lake's table in the log."""
        return [(r, w) for r in self.log.records() for w in r.windows.get(table.id, ())]

    def unlogged(self, *statements: str) -> None:
        """Change the source so that no stream will ever say it: the lake drifts from it."""
        with self.server.root() as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_log_bin = 0")
            for statement in statements:
                cursor.execute(statement)
            connection.commit()
