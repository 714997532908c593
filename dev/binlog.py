"""Binary logs as MySQL and MariaDB send them: what answers a dump command, packet headers included, live or recorded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pymysql
from pymysql.connections import Connection

from cdc.position import GtidSet
from cdc.source.dump import encode_gtids

COM_BINLOG_DUMP, COM_BINLOG_DUMP_GTID = 0x12, 0x1E
UP_TO_THE_END = 1
"""BINLOG_DUMP_NON_BLOCK: the server ends the stream where its log ends."""
ANNOTATED = 2
"""MariaDB: with the statements' texts."""
OWN_ID = 0x80424242
LONGEST = 0xFFFFFF
EOF, ERROR = 0xFE, 0xFF


def ask(connection: Connection[Any], gtids: str) -> None:
    """From here on the connection's socket gives everything in the binary log that is not in `gtids`, up to its present end."""
    wire: Any = connection
    if "MariaDB" in wire.get_server_info():
        with connection.cursor() as cursor:
            cursor.execute(
                "SET @mariadb_slave_capability = 4, @master_binlog_checksum = 'CRC32', @slave_connect_state = %s",
                (gtids,),
            )
        wire._execute_command(COM_BINLOG_DUMP, struct.pack("<IHI", 4, UP_TO_THE_END | ANNOTATED, OWN_ID))
        return
    with connection.cursor() as cursor:
        cursor.execute("SET @source_binlog_checksum = 'CRC32'")  # an event has one if the log has it
    known = encode_gtids(GtidSet.parse(gtids))
    wire._execute_command(COM_BINLOG_DUMP_GTID, struct.pack("<HIIQI", UP_TO_THE_END, OWN_ID, 0, 4, len(known)) + known)


def answer(connection: Connection[Any]) -> Iterator[bytes]:
    """Packets with their headers, to the one that ends the stream. Raises PyMySQL's error where the server refuses."""
    wire: Any = connection
    begins = True
    while True:
        header = wire._rfile.read(4)
        payload = wire._rfile.read(int.from_bytes(header[:3], "little"))
        if begins and payload[:1] == bytes([ERROR]):
            pymysql.err.raise_mysql_exception(payload)
        yield header + payload
        if begins and payload[:1] == bytes([EOF]) and len(payload) < 9:
            return
        begins = len(payload) < LONGEST


def payloads(recorded: bytes) -> Iterator[bytes]:
    """The packets of a recording, without their headers, put together where one is several."""
    at, parts = 0, []
    while at < len(recorded):
        size = int.from_bytes(recorded[at : at + 3], "little")
        parts.append(recorded[at + 4 : at + 4 + size])
        at += 4 + size
        if size < LONGEST:
            yield b"".join(parts)
            parts = []
