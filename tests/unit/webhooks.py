"""A real HTTP server that takes what is posted to it, and answers as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@dataclass
class Hook:
    """`posts`: what came, as JSON, with its headers. `answer`: the status of each, from how many came before it."""

    url: str = ""
    posts: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answer: Callable[[int], int] = lambda _: 200
    slow: Callable[[BaseHTTPRequestHandler], None] | None = None

    def wait(self, wanted: Callable[[dict[str, Any]], bool], within_s: float = 30.0) -> dict[str, Any]:
        """The first post that is wanted."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := next((p for p in list(self.posts) if wanted(p)), None):
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {within_s} s; there are {self.posts}")


@contextmanager
def hook() -> Iterator[Hook]:
    """One, on a free port."""
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.headers.append(dict(self.headers))
            made.posts.append(orjson.loads(body))
            if made.slow:
                made.slow(self)
                return
            status = made.answer(len(made.posts) - 1)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", made.url + "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that gave up is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
