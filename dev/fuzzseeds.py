"""Seeds of the fuzz targets, from a real server: `python -m dev.fuzzseeds [FOLDER]` writes those of `native/fuzz/seeds` anew.

`stream`: after a byte of options (bit 0: MariaDB), what answers a dump command, packet headers included: the beginning of every stream
and one transaction, without checksums.
`events`: the same, as events that the target seals: type (1 byte), flags (2), place of its end (4), length (2, little-endian), body.
`rows`: a byte of type and the body of a row event of the table `every` below, whose columns the target knows.
`json`: a document or a list of diffs, after a byte that says which (0, 1).
`results`: what answers a query of `every` in binary (0) or text form (1), which the first byte says.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pymysql.connections import Connection
from pymysql.cursors import Cursor

from dev import binlog
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer

Source = MySQLServer | MariaDBServer
FOLDER = Path(__file__).resolve().parent.parent / "native/fuzz/seeds"
HEADER = 19
GTIDS = frozenset((33, 42))
FORMAT_DESCRIPTION = 15
ROWS = range(30, 40)
PARTIAL = 39
COM_STMT_PREPARE, COM_STMT_EXECUTE, COM_QUERY = 0x16, 0x17, 0x03

SMALL = "CREATE TABLE small (id INT NOT NULL PRIMARY KEY, name VARCHAR(100), amount DECIMAL(10, 2)) ENGINE=InnoDB"
EVERY = """
    CREATE TABLE every (
        id INT NOT NULL PRIMARY KEY, tiny TINYINT, small SMALLINT UNSIGNED, medium MEDIUMINT, big BIGINT UNSIGNED,
        single_ FLOAT, double_ DOUBLE, money DECIMAL(12, 3), wide DECIMAL(65, 30),
        bit1 BIT(1), bit17 BIT(17), year_ YEAR, day DATE, at0 DATETIME, at6 DATETIME(6), stamp TIMESTAMP(3) NULL, span TIME(2),
        fixed CHAR(10) CHARACTER SET latin1, name VARCHAR(300), note TEXT,
        bytes5 BINARY(5), bytes20 VARBINARY(20), blob_ BLOB, choice ENUM('a', 'b', 'c'), several SET('p', 'q', 'r'),
        document JSON, place GEOMETRY, direction VECTOR(3)
    ) CHARACTER SET utf8mb4
"""
FULL = """
    INSERT INTO every VALUES (%s, -7, 65535, -8388608, 18446744073709551615, 1.5, -2.25e100, -123456789.125,
        12345678901234567890123456789012345.123456789012345678901234567890, 1, 70000, 2026, '2024-02-29', '2024-02-29 23:59:59',
        '1000-01-01 00:00:00.000001', '2024-02-29 23:59:59.125', '-838:59:59', 'grün', 'naïve 🐟', REPEAT('long ', 60),
        'ab', 'cde', 'blob', 'b', 'p,r', '{"a": [1, 2.5, null, "x"], "b": {"c": true}}', ST_GeomFromText('POINT(1 2)'),
        TO_VECTOR('[1, -2.5, 3]'))
"""
DOCUMENTS = (
    "'null'",
    "'true'",
    "'-1'",
    "'65536'",
    "'18446744073709551615'",
    "'1e300'",
    "'\"text\"'",
    "'[]'",
    "'{}'",
    """'{"a": {"b": [1, [2, [3, {"c": "d"}]]]}, "long key with many letters": "ü"}'""",
    "JSON_ARRAY(DATE'2024-02-29', TIME'-12:34:56.5', TIMESTAMP'2024-02-29 12:34:56.123456', 1.50, x'00ff', ST_GeomFromText('POINT(1 2)'))",
    "JSON_OBJECT('large', REPEAT('x', 300), 'numbers', JSON_ARRAY(1, -40000, 3000000000, 1e-7, CAST(1.10 AS DECIMAL(20, 10))))",
)
PATCHES = (
    "JSON_SET(document, '$.a', 'other')",
    "JSON_SET(document, '$.new', 17, '$.b[1]', 'z')",
    "JSON_REMOVE(document, '$.c')",
    "JSON_REPLACE(document, '$.b[0]', JSON_OBJECT('deep', JSON_ARRAY(1, 2)))",
)  # fmt: skip
TRANSACTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("inserts", ("INSERT INTO small VALUES (1, 'one', 1.5), (2, NULL, NULL), (3, 'three', -2.25)",)),
    ("every", (FULL % 2,)),
    ("updates", ("UPDATE small SET name = 'other', amount = amount + 1",)),
    ("key-change", ("UPDATE small SET id = id + 100 WHERE id = 3",)),
    ("deletes", ("DELETE FROM small WHERE id > 100",)),
    ("minimal", ("SET binlog_row_image = MINIMAL", "UPDATE small SET name = 'minimal' WHERE id = 1")),
    ("noblob", ("SET binlog_row_image = NOBLOB", "UPDATE every SET tiny = 1 WHERE id = 2")),
    ("savepoints", (
        "BEGIN", "INSERT INTO small VALUES (10, 'a', 1)", "SAVEPOINT s", "INSERT INTO small VALUES (11, 'b', 2)",
        "ROLLBACK TO s", "INSERT INTO small VALUES (12, 'c', 3)", "COMMIT",
    )),
    ("compressed", ("SET binlog_transaction_compression = ON", "INSERT INTO small VALUES (20, REPEAT('zz', 40), 1)")),
    ("tagged", ("SET gtid_next = 'AUTOMATIC:a_tag'", "INSERT INTO small VALUES (30, 'tag', 1)")),
    ("prepared", (
        "XA START 'x'", "INSERT INTO small VALUES (40, 'xa', 1)", "XA END 'x'", "XA PREPARE 'x'", "XA COMMIT 'x'",
    )),
    ("one-phase", ("XA START 'y'", "INSERT INTO small VALUES (41, 'xa', 1)", "XA END 'y'", "XA COMMIT 'y' ONE PHASE")),
    ("rolled-back", ("XA START 'z'", "INSERT INTO small VALUES (42, 'xa', 1)", "XA END 'z'", "XA PREPARE 'z'", "XA ROLLBACK 'z'")),
    ("statement", ("ALTER TABLE small ADD COLUMN more INT",)),
    ("create-select", ("CREATE TABLE other AS SELECT id FROM small",)),
    ("rotation", ("FLUSH BINARY LOGS", "INSERT INTO small (id) VALUES (50)")),
    ("other-table", ("INSERT INTO other VALUES (1)",)),
)  # fmt: skip
"""What is written, each in a session of its own."""
MARIADB: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("inserts", ("INSERT INTO small VALUES (1, 'one', 1.5), (2, NULL, NULL), (3, 'three', -2.25)",)),
    ("updates", ("UPDATE small SET name = 'other', amount = amount + 1",)),
    ("key-change", ("UPDATE small SET id = id + 100 WHERE id = 3",)),
    ("deletes", ("DELETE FROM small WHERE id > 100",)),
    ("minimal", ("SET binlog_row_image = MINIMAL", "UPDATE small SET name = 'minimal' WHERE id = 1")),
    ("savepoints", ("BEGIN", "INSERT INTO small VALUES (10, 'a', 1)", "SAVEPOINT s", "INSERT INTO small VALUES (12, 'c', 3)", "COMMIT")),
    ("compressed", (
        "SET GLOBAL log_bin_compress = ON, GLOBAL log_bin_compress_min_len = 10",
        "INSERT INTO small VALUES (20, REPEAT('zz', 40), 1)",
        "SET GLOBAL log_bin_compress = OFF",
    )),
    ("domain", ("SET gtid_domain_id = 7", "INSERT INTO small VALUES (30, 'domain', 1)")),
    ("xa", ("XA START 'x'", "INSERT INTO small VALUES (40, 'xa', 1)", "XA END 'x'", "XA PREPARE 'x'", "XA COMMIT 'x'")),
    ("statement", ("ALTER TABLE small ADD COLUMN more INT",)),
    ("create-select", ("CREATE TABLE other AS SELECT id FROM small",)),
    ("rotation", ("FLUSH BINARY LOGS", "INSERT INTO small (id) VALUES (50)")),
    ("types", ("CREATE TABLE kinds (id INT PRIMARY KEY, u UUID, i INET6, j INET4, t TIME(3), v VECTOR(2) NOT NULL)",
               "INSERT INTO kinds VALUES (1, UUID(), '::1', '127.0.0.1', '01:02:03.5', VEC_FromText('[1,2]'))")),
)  # fmt: skip


def main() -> int:
    """Write them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    with MySQLServer(options=("--binlog-checksum=NONE",)) as server:
        server.execute("CREATE DATABASE seeds CHARACTER SET utf8mb4")
        _write(folder / "json", _documents(server))
        _run(
            server, EVERY, "CREATE TABLE small (id INT NOT NULL PRIMARY KEY, name VARCHAR(100), amount DECIMAL(10, 2))"
        )
        _write(folder / "rows", _rows(server))
        _write(folder / "results", _results(server))
        streams = dict(_streams(server))
    with MariaDBServer(options=("--binlog-checksum=NONE",)) as maria:
        maria.execute("CREATE DATABASE seeds CHARACTER SET utf8mb4")
        _run(maria, SMALL)
        streams |= _streams(maria)
    _write(folder / "stream", streams.items())
    _write(folder / "events", ((name, _as_events(stream)) for name, stream in streams.items()))
    return 0


def _write(folder: Path, seeds: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds:
        (folder / name).write_bytes(seed)


def _run(server: Source, *statements: str) -> None:
    connection = server.root("seeds")
    with connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'")
        for statement in statements:
            cursor.execute(statement)


def _recorded(server: Source, *statements: str) -> list[bytes]:
    """Packets of the stream that has what these statements write."""
    before = server.executed if isinstance(server, MariaDBServer) else server.gtid_executed
    _run(server, *statements)
    connection = server.root()
    with connection:
        binlog.ask(connection, before)
        return list(binlog.answer(connection))


def _events(packets: list[bytes]) -> Iterator[bytes]:
    return (packet[5:] for packet in packets[:-1])


def _streams(server: Source) -> Iterator[tuple[str, bytes]]:
    maria = isinstance(server, MariaDBServer)
    for name, statements in MARIADB if maria else TRANSACTIONS:
        yield f"mariadb-{name}" if maria else name, bytes([maria]) + b"".join(_recorded(server, *statements))


def _as_events(stream: bytes) -> bytes:
    parts = []
    for payload in list(binlog.payloads(stream[1:]))[:-1]:
        event = payload[1:]
        body = event[HEADER:]
        if event[4] != FORMAT_DESCRIPTION and event[-4:] == struct.pack("<I", zlib.crc32(event[:-4])):
            body = body[:-4]  # an event that is in no file has one all the same
        parts.append(event[4:5] + event[17:19] + event[13:17] + struct.pack("<H", len(body)) + body)
    return stream[:1] + b"".join(parts)


def _rows(server: MySQLServer) -> Iterator[tuple[str, bytes]]:
    for name, statements in (
        ("full", (FULL % 1,)),
        ("nulls", ("INSERT INTO every (id) VALUES (7), (8)",)),
        ("zero-dates", ("SET sql_mode = ''", "INSERT INTO every (id, day, at0, at6, stamp) VALUES (9, '0000-00-00', 0, '2024-02-00', 0)")),
        ("update", ("UPDATE every SET tiny = 2, note = NULL WHERE id = 1",)),
        ("key-change", ("UPDATE every SET id = 17 WHERE id = 7",)),
        ("delete", ("DELETE FROM every WHERE id > 7",)),
        ("minimal", ("SET binlog_row_image = MINIMAL", "UPDATE every SET tiny = 3, name = 'm' WHERE id = 1")),
        ("noblob", ("SET binlog_row_image = NOBLOB", "UPDATE every SET tiny = 4 WHERE id = 1")),
        ("partial", ("SET binlog_row_value_options = PARTIAL_JSON", "UPDATE every SET document = JSON_SET(document, '$.a', 1) WHERE id = 1")),
    ):  # fmt: skip
        packets = _recorded(server, *statements)
        for number, event in enumerate(
            e for e in _events(packets) if e[4] in ROWS and e[4] not in GTIDS | {35, 37, 38}
        ):
            yield f"{name}-{number}", bytes([event[4]]) + event[HEADER:]


def _documents(server: MySQLServer) -> Iterator[tuple[str, bytes]]:
    """The table's rows are a bitmap, four bytes of key, four of length, and the document."""
    _run(server, "CREATE TABLE documents (id INT NOT NULL PRIMARY KEY, document JSON NOT NULL)")
    for number, document in enumerate(DOCUMENTS):
        packets = _recorded(server, f"INSERT INTO documents VALUES ({number}, {document})")
        (event,) = (e for e in _events(packets) if e[4] == 30)
        yield f"document-{number}", b"\0" + event[HEADER + 10 + 1 + 1 + 1 + 4 + 4 :]
    _run(server, """INSERT INTO documents VALUES (100, '{"a": "some text", "b": [{"x": 12345}, "y"], "c": 1.5}')""")
    for number, patch in enumerate(PATCHES):
        packets = _recorded(
            server,
            "SET binlog_row_value_options = PARTIAL_JSON, binlog_row_image = MINIMAL",
            f"UPDATE documents SET document = {patch} WHERE id = 100",
        )
        for event in (e for e in _events(packets) if e[4] == PARTIAL):
            # After the bitmaps: the key's image, options, which columns are partial, a bitmap, a length.
            yield f"diffs-{number}", b"\1" + event[HEADER + 10 + 1 + 2 + 5 + 1 + 1 + 1 + 4 :]


def _results(server: MySQLServer) -> Iterator[tuple[str, bytes]]:
    connection: Connection[Cursor] = server.root("seeds")
    wire: Any = connection
    with connection:
        with connection.cursor() as cursor:
            cursor.execute("SET character_set_results = NULL, time_zone = '+00:00'")
        for name, where in (("rows", "TRUE"), ("none", "FALSE")):
            query = f"SELECT * FROM every WHERE {where}"
            wire._execute_command(COM_STMT_PREPARE, query)
            statement = struct.unpack_from("<I", wire._read_packet().get_all_data(), 1)[0]
            while not wire._read_packet().is_eof_packet():
                pass
            wire._execute_command(COM_STMT_EXECUTE, struct.pack("<IBI", statement, 0, 1))
            yield f"{name}-binary", b"\0" + _answer(wire)
            wire._execute_command(COM_QUERY, query)
            yield f"{name}-text", b"\1" + _answer(wire)
        wire._execute_command(COM_QUERY, "SELECT 1 FROM nowhere")
        yield "error", b"\1" + _answer(wire)


def _answer(wire: Any) -> bytes:
    """Packets with their headers: to an error, or to the second EOF."""
    parts, ends = [], 0
    while ends < 2:
        header = wire._rfile.read(4)
        payload = wire._rfile.read(int.from_bytes(header[:3], "little"))
        parts.append(header + payload)
        if payload[:1] == b"\xff":
            break
        ends += payload[:1] == b"\xfe" and len(payload) < 9
    return b"".join(parts)


if __name__ == "__main__":
    sys.exit(main())
