"""An HTTP proxy before an object store that does to single requests what networks and busy stores do to them."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

What = Literal["503", "lost", "late", "stored-500", "half", "unconditional"]
"""`503`: it is not passed on, and answered by 503. `lost`: it is passed on, and the connection closed without the answer. `late`: the
connection is closed at once, and it is passed on after `delay_s`. `stored-500`: passed on, and answered by 500. `half`: of the answer's
body only half comes. `unconditional`: it is said to be stored although its condition failed, as by a store that does
not know conditions."""


@dataclass
class Rule:
    """What is done to the next `times` requests of this method whose path (with query) matches."""

    what: What
    method: str
    path: re.Pattern[str]
    times: int
    delay_s: float
    done: list[str] = field(default_factory=list)
    """The paths of those that it was done to."""


class LosingProxy:
    """On a port of 127.0.0.1, before another. Requests without a rule pass unchanged; the host that they were signed for too."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.requests: list[tuple[str, str]] = []
        """Method and path of all that came."""
        self.whim: Callable[[str, str], What | None] | None = None
        """What to do to a request for which there is no rule, by method and path."""
        self.troubled = 0
        """How many requests a whim did something to."""
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._late: list[threading.Thread] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="losing-proxy")
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def rule(
        self, what: What, method: str, path: str = "", *, times: int = 1_000_000, delay_s: float = 1.0
    ) -> Iterator[Rule]:
        """While it lasts, the rule is in force."""
        rule = Rule(what, method, re.compile(path), times, delay_s)
        with self._lock:
            self._rules.append(rule)
        try:
            yield rule
        finally:
            with self._lock:
                self._rules.remove(rule)

    def find(self, method: str, path: str) -> Rule | None:
        """The rule for a request that came; it is used up by that."""
        with self._lock:
            self.requests.append((method, path))
            for rule in self._rules:
                if rule.method == method and rule.path.search(path) and len(rule.done) < rule.times:
                    rule.done.append(path)
                    return rule
        what = self.whim(method, path) if self.whim else None
        self.troubled += what is not None
        return Rule(what, method, re.compile(""), 1, 0.5) if what else None

    def later(self, work: threading.Thread) -> None:
        """A request that is passed on later."""
        self._late.append(work)
        work.start()

    def wait(self) -> None:
        """Until all late requests were passed on."""
        for work in self._late:
            work.join()

    def close(self) -> None:
        """End it."""
        self.wait()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(proxy: LosingProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            rule = proxy.find(self.command, self.path)
            what = rule.what if rule else ""
            if rule and what == "503":
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if rule and what == "late":

                def pass_on(wait_s: float = rule.delay_s) -> None:
                    time.sleep(wait_s)
                    self._pass_on(body)

                proxy.later(threading.Thread(target=pass_on))
                self._hang_up()
                return
            status, headers, data = self._pass_on(body)
            if what == "lost":
                self._hang_up()
            elif what == "unconditional" and status == 412:
                self._answer(200, {"ETag": '"x"'}, b"")
            elif what == "stored-500":
                self._answer(500, {}, b"")
            else:
                self._answer(status, headers, data, half=what == "half")

        def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=30)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

        def _answer(self, status: int, headers: dict[str, str], data: bytes, *, half: bool = False) -> None:
            self.send_response(status)
            length = str(len(data))
            for name, value in headers.items():
                if name.lower() in ("transfer-encoding", "connection", "server", "date"):
                    continue
                if name.lower() == "content-length":
                    length = value  # of a HEAD, what would have come
                else:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if half else data)
            if half:
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    return Handler
