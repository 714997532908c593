"""Toxiproxy: a TCP proxy that makes a network slow, narrow or broken on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from dev import gotools
from dev.server import Server, free_port

PACKAGE = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0"


def binary() -> Path:
    """The server's program: `LAKESYNC_DEV_TOXIPROXY`, else the one in the cache (built if need be)."""
    return gotools.program("toxiproxy", PACKAGE, "LAKESYNC_DEV_TOXIPROXY")


class Proxy:
    """One way through: a port on 127.0.0.1 before another one."""

    def __init__(self, server: Toxiproxy, name: str, port: int) -> None:
        self._server, self.name, self.port = server, name, port

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def toxic(
        self, kind: str, *, stream: str = "downstream", toxicity: float = 1.0, **attributes: int
    ) -> Iterator[None]:
        """While it lasts: `latency` (latency, jitter: ms), `timeout` (timeout: ms, 0 for ever), `reset_peer` (timeout: ms),
        `bandwidth` (rate: KB/s), `slow_close` (delay: ms), `limit_data` (bytes)."""
        body = {"type": kind, "name": kind, "stream": stream, "toxicity": toxicity, "attributes": attributes}
        self._server.ask("POST", f"/proxies/{self.name}/toxics", body)
        try:
            yield
        finally:
            self._server.ask("DELETE", f"/proxies/{self.name}/toxics/{kind}")

    @contextmanager
    def down(self) -> Iterator[None]:
        """While it lasts nothing listens, and what was connected is not any more."""
        self._server.ask("POST", f"/proxies/{self.name}", {"enabled": False})
        try:
            yield
        finally:
            self._server.ask("POST", f"/proxies/{self.name}", {"enabled": True})


class Toxiproxy(Server):
    """A Toxiproxy server on 127.0.0.1. See `Server` for folder, start, stop, kill and close."""

    name = "toxiproxy"

    def __init__(self, folder: Path | None = None) -> None:
        self._binary = binary()
        super().__init__(folder)

    def proxy(self, name: str, upstream_port: int) -> Proxy:
        """A new way to this port of 127.0.0.1."""
        port = free_port()
        body = {"name": name, "listen": f"127.0.0.1:{port}", "upstream": f"127.0.0.1:{upstream_port}", "enabled": True}
        self.ask("POST", "/proxies", body)
        return Proxy(self, name, port)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        """One request to its own interface. Raises `urllib.error.URLError`."""
        data = json.dumps(body).encode() if body is not None else None
        request = Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urlopen(request, timeout=10) as answer:
            answer.read()

    def _prepare(self) -> None:
        pass

    def _command(self) -> Sequence[str]:
        return [str(self._binary), "-host", "127.0.0.1", "-port", str(self.port)]

    def _port_was_taken(self) -> bool:
        return "already in use" in self._log_tail(200)

    def _answers(self) -> bool:
        try:
            self.ask("GET", "/version")
        except (URLError, OSError):
            return False
        return True
