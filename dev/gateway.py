"""ClickHouse's HTTP interface in front of chDB, for tests: a server process of its own, with switches that make it slow, full or mute.

No current ClickHouse server can be had from a package index; its engine can, as chDB. What a client sees of the interface is here: the query in the
URL or the body, parameters, data behind an INSERT, compressed or not, the login, and errors with their code in a header.

`python -m dev.gateway FOLDER PORT` serves until it is ended.
"""

from __future__ import annotations

import base64
import gzip
import re
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError
from urllib.parse import parse_qsl, urlsplit
from urllib.request import urlopen

import orjson

from dev.server import Server

SWITCHES = "switches.json"
NOT_ENOUGH_SPACE = 243
AUTHENTICATION_FAILED = 516
_FULL = "Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)"
_NO_LOGIN = "Code: 516. DB::Exception: default: Authentication failed. (AUTHENTICATION_FAILED)"
_FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
_INSERT = re.compile(rb"\A\s*(INSERT\s.*?)\s*\bFORMAT\s+(\w+)[ \t]*;?\n?", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(r"Code: (\d+)")


class Gateway(Server):
    """The gateway on 127.0.0.1. See `Server` for folder, start, stop, kill and close. With a `password`, only `default` with it may ask."""

    name = "gateway"

    def __init__(self, folder: Path | None = None, *, password: str = "") -> None:
        super().__init__(folder)
        self.password = password
        self.switch()

    @property
    def url(self) -> str:
        """For `trace:`."""
        return f"clickhouse://default@127.0.0.1:{self.port}/default"

    def switch(self, *, delay_s: float = 0.0, full: bool = False, mute: bool = False) -> None:
        """From now on: wait before each answer; say of each INSERT that the disk is full; hang up without an answer."""
        switches = {"delay_s": delay_s, "full": full, "mute": mute, "password": self.password}
        temporary = self.folder / f"{SWITCHES}.new"
        temporary.write_bytes(orjson.dumps(switches))
        temporary.replace(self.folder / SWITCHES)

    def _prepare(self) -> None:
        pass

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", "dev.gateway", str(self.folder), str(self.port)]

    def _environment(self) -> Mapping[str, str]:
        import os

        return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def _answers(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=1) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


class _Engine:
    """chDB, one query at a time."""

    def __init__(self, folder: Path) -> None:
        import chdb

        self.folder = folder
        self._lock = threading.Lock()
        connect: Any = chdb.connect
        self._connection = connect(str(folder / "chdb"))

    def run(self, database: str, query: bytes, body: bytes, parameters: Mapping[str, str]) -> tuple[bytes, str]:
        """The answer and its format. Raises `RuntimeError` with ClickHouse's words."""
        # As ClickHouse does it: what the URL does not have of the query is in the body, and behind an INSERT's query is its data.
        text = query + b"\n" + body if query and body else query or body
        with self._lock, tempfile.NamedTemporaryFile(dir=self.folder) as data:
            self._connection.query(f"USE `{database}`", "TabSeparated")
            if insert := _INSERT.match(text):
                data.write(text[insert.end() :])
                data.flush()
                text = insert[1] + f" FROM INFILE '{data.name}' FORMAT {insert[2].decode()}".encode()
                wanted = b"TabSeparated"
            elif asked := _FORMAT.search(text):
                text, wanted = text[: asked.start()], asked[1]
            else:
                wanted = b"TabSeparated"
            found = self._connection.query(text.decode(), wanted.decode(), params=dict(parameters))
            return bytes(found.bytes()), wanted.decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: ClassVar[_Engine]

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return _decompressed(body, self.headers.get("Content-Encoding", ""))

    def _serve(self, body: bytes) -> None:
        url = urlsplit(self.path)
        if url.path == "/ping":
            self._answer(200, b"Ok.\n", {})
            return
        asked = dict(parse_qsl(url.query, keep_blank_values=True))
        switches = orjson.loads((self.engine.folder / SWITCHES).read_bytes())
        time.sleep(switches["delay_s"])
        if switches["mute"]:
            self.close_connection = True
            return
        if switches["password"] and not self._may(switches["password"]):
            self._fail(_NO_LOGIN, 403)
            return
        query = asked.get("query", "").encode()
        if switches["full"] and (query or body).lstrip()[:6].upper() == b"INSERT":
            self._fail(_FULL, 500)
            return
        parameters = {name.removeprefix("param_"): value for name, value in asked.items() if name.startswith("param_")}
        try:
            answer, form = self.engine.run(asked.get("database", "default"), query, body, parameters)
        except Exception as error:
            self._fail(str(error), 500)
            return
        self._answer(
            200, answer, {"X-ClickHouse-Format": form, "X-ClickHouse-Timezone": "UTC", "X-ClickHouse-Summary": "{}"}
        )

    def _may(self, password: str) -> bool:
        kind, _, word = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            return base64.b64decode(word) == f"default:{password}".encode()
        return self.headers.get("X-ClickHouse-Key", "") == password

    def _fail(self, words: str, status: int) -> None:
        found = _CODE.search(words)
        self._answer(status, words.encode(), {"X-ClickHouse-Exception-Code": found[1] if found else "1"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class has
        """Nothing: tests say what is wrong."""


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":
        return zlib.decompress(body)
    if encoding == "lz4":
        return bytes(import_module("lz4.frame").decompress(body))
    if encoding:
        raise ValueError(f"compression {encoding}")
    return body


def main(folder: str, port: str) -> None:
    """Serve until the process is ended."""
    _Handler.engine = _Engine(Path(folder))
    ThreadingHTTPServer(("127.0.0.1", int(port)), _Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
