"""A semi-synchronous replica that holds nothing and answers when it is told: until then a commit is in the binary log, and nobody sees it.

With AFTER_SYNC a transaction is sent to every replica, lakesync's capture included, before it becomes visible; the server waits for this one's
answer. So the moments of `spec/source.py` can be held apart for as long as a test wants.
"""

from __future__ import annotations

import random
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from dev.mariadb import MariaDBServer
from dev.sqlserver import SqlServer

_MAGIC = 0xEF
_ROTATE = 4
_DUMP = 0x12
_SERVER_ID = 4_000_000
TIMEOUT_S = 60
"""After which the server would give up waiting; no test holds a commit so long."""


class Acks(threading.Thread):
    """Answers after `delay_s()` each; not at all while `held()`."""

    def __init__(self, server: SqlServer, delay_s: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(name="acks", daemon=True)
        self._server, self._delay_s = server, delay_s
        self._free = threading.Event()
        self._free.set()
        self._ended = False
        self.answers = 0

    def __enter__(self) -> Self:
        mariadb = isinstance(self._server, MariaDBServer)
        execute = self._server.execute
        name = "master" if mariadb else "source"
        if not mariadb and not execute("SELECT 1 FROM mysql.plugin WHERE name = 'rpl_semi_sync_source'"):
            execute("INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'")
        execute(f"SET GLOBAL rpl_semi_sync_{name}_timeout = {TIMEOUT_S * 1000}")
        execute(f"SET GLOBAL rpl_semi_sync_{name}_wait_point = 'AFTER_SYNC'")
        self._connection = self._server.root()
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT @@global.binlog_checksum")
            (checksum,) = cursor.fetchone() or ("NONE",)
            for variable, value in (
                ("source_binlog_checksum", checksum),
                ("master_binlog_checksum", checksum),
                ("replica_uuid", str(uuid.uuid4())),
                ("slave_uuid", str(uuid.uuid4())),
                ("rpl_semi_sync_slave", 1),
                *((("mariadb_slave_capability", 4),) if mariadb else (("rpl_semi_sync_replica", 1),)),
            ):
                cursor.execute(f"SET @{variable} = %s", (value,))
            cursor.execute("SHOW BINARY LOGS")
            file = str(cursor.fetchall()[-1][0])
        self._file = file
        self._send(0, struct.pack("<BIHI", _DUMP, 4, 0, _SERVER_ID) + file.encode())
        self.start()
        time.sleep(0.2)  # it is known as a replica once the dump has begun
        execute(f"SET GLOBAL rpl_semi_sync_{name}_enabled = ON")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.set()
        name = "master" if isinstance(self._server, MariaDBServer) else "source"
        self._server.execute(f"SET GLOBAL rpl_semi_sync_{name}_enabled = OFF")
        self._ended = True
        with suppress(OSError):
            self._socket.shutdown(2)
        self.join()
        self._connection._force_close()  # type: ignore[attr-defined]

    @contextmanager
    def held(self) -> Iterator[None]:
        """No commit becomes visible that begins now."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    @property
    def _socket(self) -> Any:
        return self._connection._sock  # type: ignore[attr-defined]

    def _send(self, number: int, payload: bytes) -> None:
        self._socket.sendall(struct.pack("<I", len(payload))[:3] + bytes([number]) + payload)

    def run(self) -> None:
        stream = self._connection._rfile  # type: ignore[attr-defined]
        with suppress(OSError, ValueError):
            while not self._ended:
                header = stream.read(4)
                if len(header) < 4:
                    return
                payload = stream.read(int.from_bytes(header[:3], "little"))
                if payload[:1] != b"\0":
                    return
                self._event(payload[1:])

    def _event(self, event: bytes) -> None:
        asked = False
        if event[0] == _MAGIC:
            asked, event = bool(event[1]), event[2:]
        kind, place = event[4], struct.unpack_from("<I", event, 13)[0]
        if kind == _ROTATE:
            name = event[19 + 8 :]
            # With a checksum, but in the made-up one at the beginning, which has none on some servers.
            text = name.decode("ascii", "replace")
            self._file = text[: text.index(".") + 7]
        if asked:
            time.sleep(self._delay_s())
            self._free.wait()
            self._send(0, bytes([_MAGIC]) + struct.pack("<Q", place) + self._file.encode())
            self.answers += 1


def slow(seed: int) -> Callable[[], float]:
    """Mostly at once, sometimes late."""
    dice = random.Random(seed)
    return lambda: dice.choice((0.0, 0.0, 0.0, 0.002, 0.01, 0.05))
