"""Binary log events apart from rows: headers, checksums, GTIDs, statements, heartbeats. Pure.

Layouts are those of MySQL's `libs/mysql/binlog/event`. Events are untrusted: nothing is read past an event's end, and what cannot be
read is a `BinlogError`.
"""

from __future__ import annotations

import struct
import uuid
from enum import IntEnum
from typing import NamedTuple

from pymysqlreplication.constants import CHARSET

from cdc._native import crc32
from cdc.errors import BinlogError
from cdc.position import BinlogEnd, Gtid

HEADER = 19
"""Bytes."""
CHECKSUM = 4
"""Bytes."""
ARTIFICIAL = 0x20
"""Header flag: the server made the event for this stream; it is not in the file."""
IGNORABLE = 0x80
"""Header flag: who does not know the event may pass it."""
STATEMENT_END = 0x01
"""Flag of a row event: the table maps so far are void."""


class Type(IntEnum):
    """Types of events that are known here."""

    QUERY = 2
    STOP = 3
    ROTATE = 4
    INTVAR = 5
    APPEND_BLOCK = 9
    RAND = 13
    USER_VAR = 14
    FORMAT_DESCRIPTION = 15
    XID = 16
    BEGIN_LOAD_QUERY = 17
    EXECUTE_LOAD_QUERY = 18
    TABLE_MAP = 19
    WRITE_ROWS_V1 = 23
    UPDATE_ROWS_V1 = 24
    DELETE_ROWS_V1 = 25
    INCIDENT = 26
    HEARTBEAT = 27
    IGNORABLE = 28
    ROWS_QUERY = 29
    WRITE_ROWS = 30
    UPDATE_ROWS = 31
    DELETE_ROWS = 32
    GTID = 33
    ANONYMOUS_GTID = 34
    PREVIOUS_GTIDS = 35
    VIEW_CHANGE = 37
    XA_PREPARE = 38
    PARTIAL_UPDATE_ROWS = 39
    TRANSACTION_PAYLOAD = 40
    HEARTBEAT_V2 = 41
    TAGGED_GTID = 42


ROWS = frozenset(
    {
        Type.WRITE_ROWS_V1,
        Type.UPDATE_ROWS_V1,
        Type.DELETE_ROWS_V1,
        Type.WRITE_ROWS,
        Type.UPDATE_ROWS,
        Type.DELETE_ROWS,
        Type.PARTIAL_UPDATE_ROWS,
    }
)
"""Events that hold rows."""


class Header(NamedTuple):
    """The first 19 bytes."""

    timestamp: int
    type: int
    server_id: int
    size: int
    log_pos: int
    """Where the event ends in its file, modulo 2**32; 0 for an event that is in no file."""
    flags: int

    @property
    def name(self) -> str:
        """The type, for errors."""
        return Type(self.type).name if self.type in Type.__members__.values() else f"type {self.type}"


class Reader:
    """Bytes, read from the front and never past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises `BinlogError`."""
        end = self._at + size
        if end > len(self._data):
            raise BinlogError("an event is shorter than what it announces")
        found, self._at = self._data[self._at : end], end
        return found

    def uint(self, size: int) -> int:
        """An unsigned integer, little-endian."""
        return int.from_bytes(self.take(size), "little")

    def packed(self) -> int:
        """A length-coded integer."""
        first = self.uint(1)
        if first < 251:
            return first
        sizes = {252: 2, 253: 3, 254: 8}
        if first not in sizes:
            raise BinlogError("an event has a length that is none")
        return self.uint(sizes[first])

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self._at)

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at


def header(event: bytes) -> Header:
    """The header of a whole event. Raises `BinlogError` unless the event has the length that it says."""
    if len(event) < HEADER:
        raise BinlogError(f"an event of {len(event)} bytes, which is less than a header")
    found = Header(*struct.unpack_from("<IBIIIH", event))
    if found.size != len(event):
        raise BinlogError(f"a {found.name} event of {len(event)} bytes says that it has {found.size}")
    return found


def checksum_matches(event: bytes) -> bool:
    """Whether the last four bytes are the CRC-32 of the others."""
    return len(event) >= HEADER + CHECKSUM and crc32(event[:-CHECKSUM]).to_bytes(4, "little") == event[-CHECKSUM:]


def has_checksums(event: bytes) -> bool:
    """What a FORMAT_DESCRIPTION event says of the events after it. It has room for a checksum itself in any case. Raises `BinlogError`."""
    body = Reader(event[HEADER:-CHECKSUM])
    version, _, _, header_size = body.uint(2), body.take(50), body.uint(4), body.uint(1)
    algorithm = body.rest()[-1:]
    if version != 4 or header_size != HEADER or not algorithm or algorithm[0] > 1:
        raise BinlogError(f"a binary log of format {version}, with headers of {header_size} bytes, is not known")
    # Where it says "none", its own checksum is right only until the server changes the event for the stream. So what can be seen is
    # that it was not "none" before the event was damaged.
    was = event[: -CHECKSUM - 1] + b"\1" + event[-CHECKSUM:]
    if not algorithm[0] and checksum_matches(was):
        raise BinlogError("a FORMAT_DESCRIPTION event whose checksum is wrong")
    return algorithm[0] == 1


class GtidEvent(NamedTuple):
    """What a GTID event says of its transaction."""

    gtid: Gtid
    commit_us: int
    """Original commit time, µs since 1970; the event's own time, in whole seconds, where the server gave none."""
    length: int | None
    """Bytes of the transaction's events, this one included."""


def gtid(body: bytes, timestamp: int) -> GtidEvent:
    """Raises `BinlogError`."""
    reader = Reader(body)
    reader.uint(1)
    sid, number = uuid.UUID(bytes=reader.take(16)), reader.uint(8)
    name = Gtid(str(sid), number)
    if reader.left < 17 or reader.uint(1) != 2:
        return GtidEvent(name, timestamp * 1_000_000, None)
    reader.take(16)
    if reader.left < 7:
        return GtidEvent(name, timestamp * 1_000_000, None)
    commit_us = reader.uint(7)
    if commit_us >> 55:  # the transaction was first committed elsewhere, and then
        commit_us, original = commit_us & ~(1 << 55), reader.uint(7)
        commit_us = original or commit_us
    length = reader.packed() if reader.left else None
    return GtidEvent(name, commit_us or timestamp * 1_000_000, length)


def rotate(body: bytes) -> BinlogEnd:
    """Where the stream goes on. Raises `BinlogError`."""
    reader = Reader(body)
    offset = reader.uint(8)
    return BinlogEnd(_file(reader.rest()), offset)


def _file(name: bytes) -> str:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    if not text.rpartition(".")[2].isdigit():
        raise BinlogError("an event names a binary log file that has no number")
    return text


def heartbeat(body: bytes, log_pos: int) -> BinlogEnd:
    """How far the server is. The offset is modulo 2**32. Raises `BinlogError`."""
    return BinlogEnd(_file(body), log_pos)


def heartbeat_v2(body: bytes) -> BinlogEnd:
    """The same with a whole offset. Raises `BinlogError`."""
    reader, file, offset = Reader(body), "", -1
    while reader.left and (field := reader.packed()):
        value = reader.take(reader.packed())
        if field == 1:
            file = _file(value)
        elif field == 2:
            offset = Reader(value).packed()
    if not file or offset < 0:
        raise BinlogError("a heartbeat does not say where the server is")
    return BinlogEnd(file, offset)


class Query(NamedTuple):
    """A statement as text, and how to read it."""

    database: str
    sql: bytes
    encoding: str
    """Python's name of the client's character set."""
    ansi_quotes: bool
    no_backslash_escapes: bool


_ANSI_QUOTES, _NO_BACKSLASH_ESCAPES = 1 << 2, 1 << 20
_FLAGS2, _SQL_MODE, _AUTO_INCREMENT, _CHARSET, _CATALOG = 0, 1, 3, 4, 6
_ENCODINGS = {"utf8mb4": "utf-8", "utf8mb3": "utf-8", "ascii": "utf-8", "binary": "utf-8", "latin1": "cp1252"}
"""Python's names; others are the same as MySQL's, or no statement is read in them."""


def query(body: bytes, *, load: bool = False) -> Query:
    """The statement of a QUERY event, or (`load`) of an EXECUTE_LOAD_QUERY event. Raises `BinlogError`."""
    reader = Reader(body)
    reader.take(8)
    database_size, _, status_size = reader.uint(1), reader.uint(2), reader.uint(2)
    if load:
        reader.take(13)
    status, database = Reader(reader.take(status_size)), reader.take(database_size)
    reader.take(1)
    sql_mode, charset = _status(status)
    return Query(
        database.decode(errors="replace"),
        reader.rest(),
        charset,
        bool(sql_mode & _ANSI_QUOTES),
        bool(sql_mode & _NO_BACKSLASH_ESCAPES),
    )


def _status(status: Reader) -> tuple[int, str]:
    """sql_mode and the client's character set, which the server writes among the first."""
    sql_mode, encoding = 0, "utf-8"
    while status.left:
        code = status.uint(1)
        if code == _SQL_MODE:
            sql_mode = status.uint(8)
        elif code == _CHARSET:
            found = CHARSET.charset_by_id(status.uint(6) & 0xFFFF)
            encoding = _ENCODINGS.get(found.name, found.name) if found else ""
            break
        elif code == _CATALOG:
            status.take(status.uint(1))
        elif code in (_FLAGS2, _AUTO_INCREMENT):
            status.take(4)
        else:
            break
    return sql_mode, encoding


class TableMap(NamedTuple):
    """The head of a TABLE_MAP event: which table, and the bytes that tell one table's definition from another's."""

    id: int
    schema: str
    name: str
    definition: bytes
    types: bytes
    """Each column's wire type."""


def table_map(body: bytes) -> TableMap:
    """Raises `BinlogError`."""
    definition = body[8:]
    number = Reader(body).uint(6)
    reader = Reader(definition)
    names = []
    for _ in range(2):
        names.append(reader.take(reader.uint(1)).decode(errors="replace"))
        reader.take(1)
    return TableMap(number, names[0], names[1], definition, reader.take(reader.packed()))


class RowsHead(NamedTuple):
    """The head of an event that holds rows."""

    table: int
    statement_end: bool


DUMMY_TABLE = 0xFFFFFF
"""The table of a row event without rows, that only ends a statement."""


def rows(body: bytes) -> RowsHead:
    """Raises `BinlogError`."""
    reader = Reader(body)
    return RowsHead(reader.uint(6), bool(reader.uint(2) & STATEMENT_END))
