"""A pipeline whose partitions are said to be ready, for tests: its nodes in this process, and who is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import orjson

from cdc.clock import SystemClock
from cdc.config import PipelineConfig
from cdc.daemon import NodeName
from cdc.log import open_log
from cdc.ready import node
from cdc.ready.telling import FILE
from dev.sqlserver import SqlServer
from tests.integration.rereading import Rereading

FOLLOW: tuple[NodeName, ...] = ("capture", "reread", "snapshot", "merge")


class Webhook:
    """A server that keeps what is posted to it. `refuses`: it answers 503 meanwhile."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.refuses = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(503 if outer.refuses else 204)
                self.end_headers()
                if not outer.refuses:
                    outer.posted.append(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/ready"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Readying(Rereading):
    """One pipeline over one table, `d.t (id, created_at, v)`, with `ready`."""

    def __init__(self, folder: Path, server: SqlServer, table: str, ready: Mapping[str, Any], **entry: Any) -> None:
        self.name = table
        super().__init__(
            folder, server, [{"name": table, "partition_by": ["hour(created_at)"], **entry, "ready": ready}]
        )

    @property
    def folder(self) -> Path:
        """The table's, in the lake."""
        return Path(self.config.lake) / self.config.tables[0].table.folder

    def told(self) -> dict[str, dict[str, Any]]:
        """What the files say, by their folders."""
        found = {}
        for path in self.folder.rglob(FILE):
            found[path.parent.relative_to(self.folder).as_posix()] = orjson.loads(path.read_bytes())
        return found

    @contextmanager
    def readying(self, config: PipelineConfig | None = None) -> Iterator[None]:
        """The node `ready`, until the block ends."""
        stop = threading.Event()
        used = config or self.config

        def body() -> None:
            try:
                with closing(open_log(used.log, used.name)) as log:
                    node.run(used, used, self.state, log, stop, SystemClock())
            except BaseException as error:
                self.error = error

        thread = threading.Thread(target=body, name="ready")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    def with_ready(self, **changes: Any) -> PipelineConfig:
        """The same pipeline with other settings of `ready`."""
        table = self.config.tables[0]
        assert table.ready is not None
        ready = table.ready.model_copy(update=changes)
        return self.config.model_copy(update={"tables": (table.model_copy(update={"ready": ready}),)})

    def problems(self) -> list[str]:
        """What the node says that is wrong."""
        found = self.state.nodes().get("ready")
        return [p["what"] for p in found.info["problems"]] if found else []

    def until_told(
        self, condition: Callable[[dict[str, dict[str, Any]]], Any], what: str, timeout_s: float = 30
    ) -> Any:
        """Wait for files."""
        return self.until(lambda: condition(self.told()), f"{what}; {self.problems()}", timeout_s)


def hour(ago: int) -> datetime:
    """The beginning of the hour so many hours ago, UTC."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=ago)


def named(at: datetime) -> str:
    """The folder of its hour."""
    return f"created_at_hour={at:%Y-%m-%d-%H}"


def sql(at: datetime) -> str:
    """For the server."""
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"
