"""The binary log as the server sends it to a replica: `COM_BINLOG_DUMP_GTID`, as bytes, undecoded; `COM_BINLOG_DUMP` from MariaDB.

Formats: MySQL's source, `sql/rpl_source.cc` (the command) and `sql/rpl_gtid_set.cc` (GTID sets in binary form); MariaDB's,
`sql/sql_repl.cc` (the session variables by which a replica says where it goes on).
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import select
import socket
import ssl
import struct
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pymysql
from pymysql import err
from pymysql.connections import Connection
from pymysql.constants import COMMAND, CR, ER
from pymysql.cursors import Cursor

from cdc.config import SourceConfig
from cdc.errors import (
    SourceError,
    SourceIdentityError,
    SourcePurgedError,
    SourceUnavailableError,
)
from cdc.position import GtidSet
from cdc.source.connection import abandon, account, connect, grant, is_mariadb, place, translate, translated
from cdc.source.grants import REPLICATION

COM_BINLOG_DUMP_GTID = 0x1E
PIECE = 1 << 20
"""Bytes given at once, at most."""
_ANNOTATE_ROWS = 2
"""MariaDB leaves the statements of row events out of the stream without this flag; then the events' places are no chain."""
_GTID_CAPABLE = 4
"""`@mariadb_slave_capability`: knows all that MariaDB 10 logs."""
_SAME_ID = 4052
"""MariaDB's own error for a stream that another one of the same id ended."""
_START = 4
"""The first event's offset in a binary log file."""
_OURS = 0x80000000
"""Our server ids have this bit, those that people give their servers seldom."""


def server_id(pipeline: str) -> int:
    """The id with which a pipeline's capture presents itself: always the same, so that the server ends what an earlier run left."""
    return _OURS | int.from_bytes(hashlib.sha256(pipeline.encode()).digest()[:4], "big")


def encode_gtids(gtids: GtidSet) -> bytes:
    """The set as `COM_BINLOG_DUMP_GTID` takes it; sets with tags in the form that MySQL 8.3 brought."""
    tagged = any(":" in sid for sid in gtids.sids)
    count = len(gtids.sids)
    parts = [struct.pack("<Q", 1 << 56 | count << 8 | 1 if tagged else count)]
    for sid, intervals in gtids.sids.items():
        name, _, tag = sid.partition(":")
        parts.append(uuid.UUID(name).bytes)
        if tagged:
            # A length of variable size; one byte holds it up to 63, and a tag has 32 characters at most.
            parts.append(bytes([len(tag) << 1]) + tag.encode())
        parts.append(struct.pack("<Q", len(intervals)))
        parts.extend(struct.pack("<QQ", first, last + 1) for first, last in intervals)
    return b"".join(parts)


class BinlogStream:
    """Everything in the server's binary log that is not in `gtids`, from then on for ever. Connects at once.

    An iterator of pieces of MySQL's packet stream, as they come, at most `PIECE` bytes each; a packet holds an event (header, body,
    and CRC-32: the session asks for checksums, a log written without them has none) or says why there is none. First come an
    artificial rotate event and a format description; when there is nothing to send, a heartbeat every `heartbeat_s` seconds.
    `own_id` is the server id to present (default: a random one); a second stream with the same one ends the first.

    MariaDB goes on in each domain behind the transaction that `gtids` names; where that one is missing, and the same server wrote later
    ones, with the first of these. That lets `GtidSet.without` name one that need not exist, and so what comes must be compared.

    Raises `SourceUnavailableError` (lost, killed, silent for more than three heartbeats), and on connecting what `refusal` makes of
    the server's errors. After `close()` the iterator ends.
    """

    def __init__(self, source: SourceConfig, gtids: GtidSet, *, heartbeat_s: float, own_id: int | None = None) -> None:
        self._source = source
        self._heartbeat_s = heartbeat_s
        self._id = own_id or _OURS | secrets.randbits(31)
        self._closed = threading.Event()
        self._connection: Connection[Any] = connect(source, purpose="binlog")
        try:
            with translated(source):
                self._prepare(gtids)
            try:
                self._register()
                self._request(gtids)
            except (pymysql.err.Error, OSError) as error:
                raise self._translate(error) from None
            # Kept apart: a closing connection forgets it.
            self._socket: socket.socket = self._wire._sock
            self._socket.settimeout(3 * heartbeat_s)
            self._source_file: Any = self._wire._rfile
            self._piece = memoryview(bytearray(PIECE))
            self._more = select.poll()
            self._more.register(self._socket, select.POLLIN)
        except BaseException:
            abandon(self._connection)
            raise

    @property
    def _wire(self) -> Any:
        return self._connection

    @property
    def thread_id(self) -> int:
        """The server's number of this connection, as in its process list."""
        return int(self._connection.thread_id())  # type: ignore[no-untyped-call]

    def _prepare(self, gtids: GtidSet) -> None:
        nanoseconds = int(self._heartbeat_s * 1e9)
        if is_mariadb(self._connection):
            with self._connection.cursor(Cursor) as cursor:
                cursor.execute(
                    "SET @mariadb_slave_capability = %s, @master_binlog_checksum = 'CRC32', @master_heartbeat_period = %s,"
                    " @slave_connect_state = %s, @slave_gtid_strict_mode = 0, @slave_gtid_ignore_duplicates = 0",
                    (_GTID_CAPABLE, nanoseconds, str(gtids)),
                )
            return
        own_uuid = uuid.uuid5(uuid.NAMESPACE_OID, f"lakesync {self._id}")
        with self._connection.cursor(Cursor) as cursor:
            # Servers before 8.0.26 know the older names alone.
            cursor.execute(
                "SET @source_binlog_checksum = 'CRC32', @master_binlog_checksum = 'CRC32',"
                " @source_heartbeat_period = %s, @master_heartbeat_period = %s, @replica_uuid = %s, @slave_uuid = %s",
                (nanoseconds, nanoseconds, str(own_uuid), str(own_uuid)),
            )

    def _register(self) -> None:
        """Be named in SHOW REPLICAS."""
        name = b"lakesync"
        payload = struct.pack("<I", self._id) + bytes([len(name)]) + name + b"\0\0" + struct.pack("<HII", 0, 0, 0)
        self._wire._execute_command(COMMAND.COM_REGISTER_SLAVE, payload)
        self._wire._read_ok_packet()

    def _request(self, gtids: GtidSet) -> None:
        if is_mariadb(self._connection):
            payload = struct.pack("<IHI", _START, _ANNOTATE_ROWS, self._id)
            self._wire._execute_command(COMMAND.COM_BINLOG_DUMP, payload)
            return
        data = encode_gtids(gtids)
        payload = struct.pack("<HII", 0, self._id, 0) + struct.pack("<QI", _START, len(data)) + data
        self._wire._execute_command(COM_BINLOG_DUMP_GTID, payload)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._closed.is_set():
            raise StopIteration
        try:
            size = self._read()
        except (OSError, ValueError) as error:
            if self._closed.is_set():
                raise StopIteration from None
            failure = self._lost(f"lost the connection ({type(error).__name__})", isinstance(error, TimeoutError))
            self.close()
            raise failure from None
        if not size:
            if self._closed.is_set():
                raise StopIteration
            self.close()
            raise self._lost("the server closed the connection")
        return bytes(self._piece[:size])

    def _read(self) -> int:
        """Fill `_piece` with what is there, or else with what comes next; how much that is, 0 at the end."""
        size: int = self._source_file.readinto1(self._piece)
        # TLS gives 16 KiB at a time: too little to decode for itself.
        while (
            0 < size < PIECE
            and isinstance(self._socket, ssl.SSLSocket)
            and (self._socket.pending() or self._more.poll(0))
        ):
            more: int = self._source_file.readinto1(self._piece[size:])
            if not more:
                break  # told by the next read
            size += more
        return size

    def _lost(self, what: str, silent: bool = False) -> SourceError:
        where = place(self._source)
        if silent:
            return SourceUnavailableError(
                f"silent for more than {3 * self._heartbeat_s:g} s, three heartbeats",
                where=where,
                hint="check the network; raise capture.heartbeat on a slow one",
            )
        return translate(err.OperationalError(CR.CR_SERVER_LOST, what), self._source)

    def refusal(self, code: int, message: str) -> SourceError:
        """What the server said in the stream in place of an event: MySQL's error code (0: it ended the stream) and message.

        `SourcePurgedError` (the log does not reach back to `gtids`), `SourceIdentityError` (`gtids` holds transactions of the server
        that it does not have), `SourceError` (REPLICATION SLAVE is missing, another stream took over), `SourceUnavailableError` (it
        ended the stream, or a file in which it was killed).
        """
        if not code:
            return SourceUnavailableError("the server ended the stream", where=place(self._source))
        return self._translate(err.OperationalError(code, message))

    def _translate(self, error: BaseException) -> SourceError:
        where = place(self._source)
        code, message = (*error.args, 0, "")[:2]
        if code == ER.ACCESS_DENIED_ERROR:  # we are logged in: it is about what the account may do
            what = "the account may not read the binary log"
            return SourceError(what, where=where, hint=grant(", ".join(REPLICATION), "*.*", account(self._source)))
        if code not in (ER.MASTER_FATAL_ERROR_READING_BINLOG, _SAME_ID):
            return translate(error, self._source)
        text = str(message).lower()
        if "purged" in text or "could not find first log file" in text:
            return SourcePurgedError(
                "the binary log no longer holds what follows the position",
                where=where,
                hint="bootstrap anew: lakesync resync --all; and keep the log longer (binlog_expire_logs_seconds)",
            )
        if "more gtids than" in text or "not in the master's binlog" in text or "missing the gtid" in text:
            return SourceIdentityError(
                "the server does not have all transactions that were read from it",
                where=where,
                hint="it was reset, restored, or failed over with a loss: bootstrap anew with lakesync resync --all",
            )
        if code == _SAME_ID or "same server_uuid" in text or "same server_id" in text:
            return SourceError(
                "another stream took over under the same id", where=where, hint="run one capture of a pipeline only"
            )
        if "truncated in the middle" in text:
            return SourceUnavailableError(
                "a file of the binary log ends within an event",
                where=where,
                hint="nothing, if the server was killed while it wrote: the next connection begins behind it",
            )
        return SourceError(f"the server cannot send the binary log: {message} (error {code})", where=where)

    def close(self) -> None:
        """End the stream, also from another thread: whoever waits for the next event stops waiting. Again is fine."""
        self._closed.set()
        with contextlib.suppress(OSError):  # closed already
            # Past SSLSocket's own, which takes the session away from under a reading thread.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def __enter__(self) -> BinlogStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        abandon(self._connection)

    def __del__(self) -> None:
        if connection := getattr(self, "_connection", None):
            abandon(connection)
