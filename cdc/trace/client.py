"""The way to ClickHouse: a server, or chDB in this process. The same client for both.

chDB lets one process at a time open a folder, takes some 280 MB, and grows with every reopening: so it is opened for one job
and the process that did so ends soon (`cdc.trace.project_in_process`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from cdc.config import LOOPBACK, TraceConfig, read_secret
from cdc.errors import ConfigError, TraceError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

CONNECT_TIMEOUT_S = 10
QUERY_TIMEOUT_S = 60
FOLDER_WAIT_S = 60.0
"""How long to wait for another process that has the chDB folder open."""


@contextmanager
def client(config: TraceConfig) -> Iterator[Client]:
    """An open client; closed at the end. Raises `ConfigError` for a URL that is not one, `TraceError` for the rest."""
    try:
        import clickhouse_connect
    except ImportError as error:
        raise ConfigError(
            "the ClickHouse client is not installed",
            where=f"trace: {config.url}",
            hint="pip install 'lakesync[embedded]'",
        ) from error
    parts = urlsplit(config.url)
    if parts.scheme == "chdb":
        with _folder(Path(unquote(parts.path))) as folder, _errors(config):
            opened = clickhouse_connect.get_client(interface="chdb", path=str(folder))
            try:
                yield opened
            finally:
                opened.close()
    elif parts.scheme in ("clickhouse", "clickhouses") and parts.hostname:
        secure = parts.scheme == "clickhouses"
        if not secure and parts.hostname not in LOOPBACK and not config.insecure:
            hint = "write clickhouses://…, or `insecure: true` to allow it"
            raise ConfigError("plain text to another host", where=f"trace: {config.url}", hint=hint)
        with _errors(config):
            opened = clickhouse_connect.get_client(
                host=parts.hostname,
                port=parts.port or (8443 if secure else 8123),
                username=unquote(parts.username or "default"),
                password=read_secret(config.password, "trace.password") if config.password else "",
                database=parts.path.strip("/") or "default",
                secure=secure,
                connect_timeout=CONNECT_TIMEOUT_S,
                send_receive_timeout=QUERY_TIMEOUT_S,
            )
            try:
                yield opened
            finally:
                opened.close()
    else:
        raise ConfigError(
            "not a trace", where=f"trace: {config.url}", hint="write chdb:///folder or clickhouse://host:8123/database"
        )


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """The chDB folder, held by this process alone."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TraceError(f"the trace's folder cannot be used: {error.strerror}", where=str(path)) from error
    try:
        deadline = time.monotonic() + FOLDER_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TraceError(
                        "another process has the trace open", where=str(path), hint="try again in a minute"
                    ) from None
                time.sleep(0.1)
        yield path
    finally:
        os.close(descriptor)


_WAYS_OUT: Final = {
    60: ("a table of the trace is gone", "run `lakesync trace rebuild`"),
    76: (
        "its files cannot be opened",
        "make room or restore the folder; a chDB folder that is damaged can be moved away",
    ),
    81: ("there is no such database", "create the database, or name another one in `trace:`"),
    159: ("it was too slow", "look at its load"),
    164: ("the user may only read", "grant it CREATE TABLE, CREATE VIEW, ALTER, INSERT and SELECT on the database"),
    192: ("the user is not known", "look at the user in `trace:`, and at `trace.password`"),
    241: ("it has no memory left", "give it more, or look at its load"),
    242: ("the table is read-only", "look at its replication and its disk"),
    243: ("its disk is full", "make room on its disk"),
    252: ("it has too many parts that are not merged yet", "look at its load"),
    497: ("the user lacks a right", "grant it CREATE TABLE, CREATE VIEW, ALTER, INSERT and SELECT on the database"),
    516: ("the login is refused", "look at the user in `trace:`, and at `trace.password`"),
}
"""By ClickHouse's error codes: what it means, and what helps."""
_ERRNO: Final = re.compile(r"\[Errno -?\d+\] ([^'\")\]]+)")
_CODE: Final = re.compile(r"\b[Cc]ode: (\d+)")
_GOES_ON: Final = "; the pipeline goes on, and the trace catches up later"


@contextmanager
def _errors(config: TraceConfig) -> Iterator[None]:
    from clickhouse_connect.driver.exceptions import Error

    # It says on its logger, and so on standard error, what it then raises.
    logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())
    try:
        yield
    except (Error, OSError) as error:
        what, hint = _explained(error)
        raise TraceError(f"ClickHouse: {what}", where=f"trace: {config.url}", hint=hint + _GOES_ON) from error


def _explained(error: Exception) -> tuple[str, str]:
    words = str(error).strip()
    code = getattr(error, "code", None) or next((int(found) for found in _CODE.findall(words)), None)
    if code in _WAYS_OUT:
        what, hint = _WAYS_OUT[code]
        return f"{what} (code {code})", hint
    if found := _ERRNO.search(words):
        return f"it cannot be reached: {found[1].strip().lower()}", "is it running, and is the address right?"
    if "timed out" in words.lower():
        return "it did not answer in time", "look at its load, and at the way to it"
    if "closed connection" in words or "Connection aborted" in words:
        return "it hung up", "look at its log"
    first = (words.splitlines() or [type(error).__name__])[0][:300]
    return first, "look at its log"
