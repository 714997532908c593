"""Binary logs as the server sends them: what answers `COM_BINLOG_DUMP_GTID`, packet headers included, live or in a file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
from pymysql.constants import CLIENT

from bench.setting import DATABASE, PASSWORD, USER, Setting
from cdc.position import GtidSet
from cdc.source.dump import encode_gtids
from dev.server import Server

COM_BINLOG_DUMP_GTID = 0x1E
UP_TO_THE_END = 1
"""BINLOG_DUMP_NON_BLOCK: the server ends the stream where its log ends."""
OWN_ID = 0x80424242
LONGEST = 0xFFFFFF


def asked(port: int, gtids: str) -> pymysql.connections.Connection[Any]:
    """A connection over TCP whose socket gives everything in the binary log that is not in `gtids`, up to its present end."""
    connection: Any = pymysql.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("SET @source_binlog_checksum = 'CRC32'")
    known = encode_gtids(GtidSet.parse(gtids))
    command = struct.pack("<HIIQI", UP_TO_THE_END, OWN_ID, 0, 4, len(known)) + known
    connection._execute_command(COM_BINLOG_DUMP_GTID, command)
    return connection  # type: ignore[no-any-return]


def record(server: Server, gtids: str, file: Path) -> int:
    """Write the whole answer to a file; its bytes. It ends with the packet that says so."""
    connection: Any = asked(server.port, gtids)
    with connection, file.open("wb") as out:
        while True:
            header = connection._rfile.read(4)
            payload = connection._rfile.read(int.from_bytes(header[:3], "little"))
            out.write(header)
            out.write(payload)
            if payload[:1] == b"\xff":
                raise ValueError("the server refuses to send its binary log")
            if payload[:1] == b"\xfe" and len(payload) < 9:
                return out.tell()


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


def insert(setting: Setting, tables: list[str], rows: int, size: int, *options: str) -> None:
    """Rows of `setting.table` into empty tables of the same columns: `size` of them a statement and transaction, each transaction into
    the next table. `options` are session variables, such as `binlog_transaction_compression = ON`."""
    together = max(1, 100 // size)
    source = setting.table.partition(".")[2]
    statements = [
        f"INSERT INTO `{tables[n % len(tables)]}` SELECT * FROM `{source}` "
        f"WHERE id BETWEEN {first} AND {min(first + size - 1, rows)}"
        for n, first in enumerate(range(1, rows + 1, size))
    ]
    connection = setting.server.root(DATABASE, client_flag=CLIENT.MULTI_STATEMENTS)
    with connection, connection.cursor() as cursor:
        for option in options:
            cursor.execute(f"SET SESSION {option}")
        for at in range(0, len(statements), together):
            cursor.execute("; ".join(statements[at : at + together]))
            while cursor.nextset():
                pass


def update(setting: Setting, table: str, rows: int, size: int) -> None:
    """Three columns of rows 1 to `rows`, `size` of them a statement and transaction."""
    with setting.server.root(DATABASE) as connection, connection.cursor() as cursor:
        for first in range(1, rows + 1, size):
            last = min(first + size - 1, rows)
            cursor.execute(
                f"UPDATE `{table}` SET change_no = change_no + 1, amount = amount + 1, name = REVERSE(name) "
                f"WHERE id BETWEEN {first} AND {last}"
            )
