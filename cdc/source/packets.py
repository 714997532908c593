"""MySQL's packets, read from a connection in large pieces: PyMySQL's own reading costs four calls a packet.

A packet is three bytes of length (little-endian), a sequence number, and that many bytes; one of 16 MiB - 1 goes on in the next.
"""

from __future__ import annotations

from typing import Any

from pymysql import err
from pymysql.connections import Connection
from pymysql.constants import CR

PIECE = 256 * 1024
"""Bytes asked of the socket at once."""
LONGEST = 0xFFFFFF
"""A packet of this length is continued by the next one."""
_LENGTHS = {252: 2, 253: 3, 254: 8}


class Packets:
    """What the server sends from now on. While one is in use, nothing else may read from the connection.

    Errors are PyMySQL's: an error packet as `raise_mysql_exception` makes it, 2013 for a connection that ended or was silent for
    longer than the socket's time limit.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        wire: Any = connection
        self._source = wire._rfile
        self._buffer = b""
        self._at = 0
        self._sequence: int = wire._next_seq_id

    def _more(self, needed: int) -> None:
        """Have at least `needed` bytes from `_at` on; `_at` becomes 0."""
        pieces = [self._buffer[self._at :]]
        have = len(pieces[0])
        while have < needed:
            try:
                piece = self._source.read1(max(PIECE, needed - have))
            except (OSError, ValueError) as error:
                raise err.OperationalError(
                    CR.CR_SERVER_LOST, f"lost the connection ({type(error).__name__})"
                ) from error
            if not piece:
                raise err.OperationalError(CR.CR_SERVER_LOST, "the server closed the connection")
            pieces.append(piece)
            have += len(piece)
        self._buffer = b"".join(pieces)
        self._at = 0

    def next(self) -> bytes:
        """The next packet's bytes, put together if it is one of several. An error packet is raised."""
        parts: list[bytes] = []
        while True:
            if len(self._buffer) - self._at < 4:
                self._more(4)
            at, buffer = self._at, self._buffer
            length = buffer[at] | buffer[at + 1] << 8 | buffer[at + 2] << 16
            if buffer[at + 3] != self._sequence:
                raise err.OperationalError(CR.CR_SERVER_LOST, "packets out of order")
            self._sequence = (self._sequence + 1) & 0xFF
            if len(buffer) - at < 4 + length:
                self._more(4 + length)
                at, buffer = 0, self._buffer
            self._at = at + 4 + length
            parts.append(buffer[at + 4 : self._at])
            if length < LONGEST:
                break
        packet = parts[0] if len(parts) == 1 else b"".join(parts)
        if packet[:1] == b"\xff":
            err.raise_mysql_exception(packet)
        return packet

    def rows(self, size: int) -> list[tuple[bytes | None, ...]]:
        """The next `size` rows of a result set in text form; fewer if it ends before."""
        rows: list[tuple[bytes | None, ...]] = []
        while len(rows) < size:
            packet = self.next()
            if packet[0] == 0xFE and len(packet) < 9:
                break
            at, end = 0, len(packet)
            row: list[bytes | None] = []
            while at < end:
                length = packet[at]
                at += 1
                if length == 251:
                    row.append(None)
                    continue
                if length > 251:
                    width = _LENGTHS[length]
                    length = int.from_bytes(packet[at : at + width], "little")
                    at += width
                row.append(packet[at : at + length])
                at += length
            rows.append(tuple(row))
        return rows
