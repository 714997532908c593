"""Readers that are not ours, as often as a test likes: ClickHouse in a process that stays, since it takes a second to come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

import pyarrow as pa

_PROGRAM = """
import struct, sys, chdb
for line in sys.stdin:
    try:
        kind, data = b"+", chdb.query(line, "ArrowStream").bytes()
    except Exception as error:
        kind, data = b"-", str(error).encode()
    sys.stdout.buffer.write(kind + struct.pack(">Q", len(data)) + data)
    sys.stdout.buffer.flush()
"""


class ClickHouse:
    """A context manager; `read` is a reader as those of `lake_rows` are."""

    def __enter__(self) -> Self:
        # Its files must lie below the working directory.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, folder: Path, version: int | None = None) -> pa.Table:
        """The table at a version, through delta-kernel."""
        query = f"SELECT * FROM deltaLakeLocal('{folder}')"
        query += f" SETTINGS delta_lake_snapshot_version = {version}" if version is not None else ""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(query.encode() + b"\n")
        self._process.stdin.flush()
        kind = self._process.stdout.read(1)
        data = self._process.stdout.read(int.from_bytes(self._process.stdout.read(8), "big"))
        assert kind == b"+", data.decode(errors="replace")[-2000:]
        return pa.ipc.open_stream(data).read_all()
