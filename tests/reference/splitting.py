"""The packets of a server's stream, told apart in Python: for the reference decoder and for tests. Pure.

A packet is three bytes of length (little-endian), a sequence number, and that many bytes; one of 16 MiB - 1 goes on in the next. Of a
stream of the binary log it begins with a status byte: 0 and an event, 0xFF and an error, 0xFE for the end.
"""

from __future__ import annotations

from collections.abc import Iterator

from cdc.capture.refusal import Refusal, ended
from cdc.errors import BinlogError

LONGEST = 0xFFFFFF
"""A packet of this length is continued by the next one."""
_HEADER = 4


class Splitter:
    """Events out of a packet stream that is cut anywhere."""

    def __init__(self, refusal: Refusal = ended) -> None:
        self._refusal = refusal
        self._buffer = bytearray()
        self._sequence: int | None = None
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that end in `data`. Raises `BinlogError` for packets out of order, and what `refusal` makes of an error."""
        self._buffer += data
        while (packet := self._packet()) is not None:
            if packet[:1] == b"\xff":
                message = packet[9:] if packet[3:4] == b"#" else packet[3:]
                raise self._refusal(int.from_bytes(packet[1:3], "little"), message.decode(errors="replace"))
            if packet[:1] == b"\xfe":
                raise self._refusal(0, "the server ended the stream")
            if packet[:1] != b"\0":
                raise BinlogError("a packet that is neither an event nor an error")
            yield packet[1:]

    def _packet(self) -> bytes | None:
        while len(self._buffer) >= _HEADER:
            size, sequence = int.from_bytes(self._buffer[:3], "little"), self._buffer[3]
            if len(self._buffer) < _HEADER + size:
                return None
            if self._sequence is not None and sequence != (self._sequence + 1) & 0xFF:
                raise BinlogError("packets out of order")
            self._sequence = sequence
            self._parts.append(bytes(self._buffer[_HEADER : _HEADER + size]))
            del self._buffer[: _HEADER + size]
            if size < LONGEST:
                packet, self._parts = b"".join(self._parts), []
                return packet
        return None
