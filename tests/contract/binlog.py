"""Binary log events of a real server: recorded, and edited so that they still follow one another."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from cdc.capture.base import Decoder, Drained, Stop, TableChanges
from cdc.config import SourceConfig
from cdc.names import TableName
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet
from cdc.schema import TableSchema
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from cdc.source.dump import BinlogStream
from cdc.source.server import Server
from dev.sqlserver import SqlServer
from tests.reference.events import ARTIFICIAL, HEADER, Type
from tests.reference.splitting import LONGEST, Splitter


def source(server: SqlServer) -> SourceConfig:
    return SourceConfig(url=server.url())


def run(server: SqlServer, schema: str, *statements: str) -> None:
    """In one session, with autocommit and an sql_mode that takes anything."""
    with server.root(schema) as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = 'ALLOW_INVALID_DATES'")
        for statement in statements:
            cursor.execute(statement)


def schema_of(server: SqlServer, schema: str, table: str) -> TableSchema:
    connection = connect(source(server), purpose="test")
    try:
        return read_schema(connection, TableName(schema, table))
    finally:
        connection.close()


@dataclass
class Recording:
    """What the server wrote while it was recorded, as a stream gives it, with heartbeats."""

    events: list[bytes] = field(default_factory=list)
    end: BinlogEnd = field(default=BinlogEnd("", 0))

    def of_type(self, *kinds: Type) -> list[int]:
        """Where events of these types are."""
        return [i for i, event in enumerate(self.events) if event[4] in kinds]


@contextmanager
def recording(server: SqlServer) -> Iterator[Recording]:
    """Records what is written inside the block, from the file's beginning (as a real stream does), up to the log's end."""
    found = Recording()
    connection = connect(source(server), purpose="test")
    try:
        before: GtidSet = Server(connection).executed()
        yield found
        found.end = Server(connection).binlog_end()
    finally:
        connection.close()
    with BinlogStream(source(server), before, heartbeat_s=0.2) as stream:
        file = ""
        for event in events(stream):
            found.events.append(event)
            if event[4] == Type.ROTATE:
                file = event[HEADER + 8 : -4].decode()
            if event[4] == Type.HEARTBEAT and BinlogEnd(file, struct.unpack_from("<I", event, 13)[0]) >= found.end:
                break


def events(stream: BinlogStream) -> Iterator[bytes]:
    """The stream's events, without the bytes around them."""
    splitter = Splitter(stream.refusal)
    for piece in stream:
        yield from splitter.feed(piece)


class Packets:
    """Puts the bytes around events that a server puts there."""

    def __init__(self) -> None:
        self._sequence = 1

    def of(self, *events: bytes) -> bytes:
        """These events, as they come after those before."""
        return b"".join(self._packets(b"\0" + event) for event in events)

    def error(self, code: int, message: str) -> bytes:
        """An error in place of an event."""
        return self._packets(b"\xff" + struct.pack("<H", code) + b"#HY000" + message.encode())

    def end(self) -> bytes:
        """The stream's end, as a server says it."""
        return self._packets(b"\xfe\0\0\2\0")

    def _packets(self, payload: bytes) -> bytes:
        out = bytearray()
        for at in range(0, len(payload) + 1, LONGEST):
            part = payload[at : at + LONGEST]
            out += len(part).to_bytes(3, "little") + bytes([self._sequence]) + part
            self._sequence = (self._sequence + 1) & 0xFF
        return bytes(out)


def sealed(event: bytes, log_pos: int) -> bytes:
    """The event with another end, its size and checksum made right."""
    head = event[:9] + struct.pack("<II", len(event), log_pos & 0xFFFFFFFF) + event[17:19]
    body = head + event[HEADER:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def rechained(events: Sequence[bytes], shift: int = 0) -> list[bytes]:
    """The events with ends and transaction lengths made right after some were put in, taken out or changed. `shift` moves everything
    after the first GTID event that many bytes down the file."""
    out: list[bytes] = []
    at = 4
    for i, event in enumerate(events):
        kind, flags = event[4], struct.unpack_from("<H", event, 17)[0]
        if kind == Type.ROTATE and flags & ARTIFICIAL:
            at = 4
            out.append(event)
        elif kind == Type.HEARTBEAT:
            at += shift
            shift = 0
            out.append(sealed(event, at))
        else:
            if kind == Type.GTID:
                event = with_length(event, sum(len(e) for e in transaction(events, i)))
            at += len(event)
            out.append(sealed(event, at))
    return out


def transaction(events: Sequence[bytes], start: int) -> list[bytes]:
    """The events from a GTID event to the next one, without what is in no file."""
    found = [events[start]]
    for event in events[start + 1 :]:
        if event[4] in (Type.GTID, Type.TAGGED_GTID, Type.ROTATE, Type.HEARTBEAT):
            break
        found.append(event)
    return found


def with_length(event: bytes, length: int) -> bytes:
    """A GTID event that says that its transaction has `length` bytes; in the same space, so only lengths of alike size will do."""
    at = HEADER + 42 + 7
    if event[at - 1] & 0x80:
        at += 7
    if event[at] < 251:
        assert length < 251
        return event[:at] + bytes([length]) + event[at + 1 :]
    assert event[at] == 252
    return event[: at + 1] + struct.pack("<H", length) + event[at + 3 :]


def query_event(like: bytes, sql: str) -> bytes:
    """A QUERY event with another text."""
    body = like[HEADER:-4]
    database, status = body[8], struct.unpack_from("<H", body, 11)[0]
    return like[:HEADER] + body[: 13 + status + database + 1] + sql.encode() + bytes(4)


@dataclass
class Decoded:
    """Several drains as if they were one: transactions, and changes whose `_txn` and `_seq` go on from drain to drain."""

    transactions: list[Fingerprint] = field(default_factory=list)
    """Whole ones."""
    changes: list[TableChanges] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    end: BinlogEnd = field(default=BinlogEnd("", 0))
    framing: dict[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    executed: GtidSet = field(default_factory=lambda: GtidSet({}))
    partial: Fingerprint | None = None
    """The part that the drains end in."""
    drains: list[Drained] = field(default_factory=list)
    seq: int = 0

    def add(self, found: Drained) -> None:
        """The next drain."""
        self.drains.append(found)
        assert len(found.gtids) == len(found.commit_us) == len(found.row_events)
        assert 0 <= len(found.gtids) - found.whole <= 1
        assert (found.partial is not None) == (len(found.gtids) > found.whole)
        prints = [
            Fingerprint(Gtid.parse(g), int(us), n)
            for g, us, n in zip(found.gtids, found.commit_us, found.row_events, strict=True)
        ]
        if self.partial and prints:
            assert prints[0].gtid == self.partial.gtid
            assert prints[0].commit_us == self.partial.commit_us
            assert prints[0].row_events >= self.partial.row_events
        txns, seq = len(self.transactions), self.seq
        for one in found.changes:
            columns = list(one.batch.columns)
            columns[1] = pc.add(columns[1], pa.scalar(txns, pa.int32()))
            columns[5] = pc.add(columns[5], seq)
            self.seq = max(self.seq, columns[5][-1].as_py())
            batch = pa.RecordBatch.from_arrays(columns, schema=one.batch.schema)
            self.changes.append(replace(one, batch=batch))
        self.stops += [replace(stop, txn=stop.txn + txns) for stop in found.stops]
        self.transactions += prints[: found.whole]
        assert found.last == (prints[found.whole - 1] if found.whole else None)
        if found.whole or found.partial:
            assert found.partial == (prints[-1] if found.partial else None)
            self.partial = found.partial
        self.end = found.end
        counts = Counter(self.framing)
        counts.update(found.framing)
        self.framing = {name: counts[name] for name in found.framing}
        self.skipped += found.skipped
        self.executed = self.executed.union(found.executed)


def feed(decoder: Decoder, data: bytes, found: Decoded) -> None:
    """Feed, and drain whenever it is asked for."""
    taken = decoder.feed(data)
    while not taken:
        found.add(decoder.drain())
        taken = decoder.feed(b"")


def decode(decoder: Decoder, events: Iterable[bytes], packets: Packets | None = None) -> Decoded:
    """Feed everything and drain."""
    packets, found = packets or Packets(), Decoded()
    for event in events:
        feed(decoder, packets.of(event), found)
    found.add(decoder.drain())
    return found
