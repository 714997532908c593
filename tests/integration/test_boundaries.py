"""Tables are cut into parts of about equal size, whatever their key is and however it lies; measured on real servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from cdc.config import SourceConfig
from cdc.names import TableName
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from dev.mysql import MySQLServer
from snapshot.boundaries import Boundaries
from snapshot.chunks import Part, Walk

ROWS = 20_000
PARTS = 16

# Column definitions, and expressions for row n of 1 to ROWS.
KEYS: dict[str, tuple[str, str]] = {
    "auto-increment": ("k INT AUTO_INCREMENT PRIMARY KEY", "n"),
    "auto-increment, one id far away": ("k BIGINT PRIMARY KEY", "IF(n = 1, 9223372036854775807, n)"),
    "both ends far away": (
        "k BIGINT PRIMARY KEY",
        "CASE n WHEN 1 THEN 9223372036854775807 WHEN 2 THEN -9223372036854775808 ELSE n END",
    ),
    "unsigned, near the end": ("k BIGINT UNSIGNED PRIMARY KEY", "18446744073709551615 - n"),
    "unsigned, both ends": ("k BIGINT UNSIGNED PRIMARY KEY", "IF(n % 2, n, 18446744073709551615 - n)"),
    "negative": ("k INT PRIMARY KEY", "-n * 100"),
    "gaps that grow": ("k BIGINT PRIMARY KEY", "n * n * n * n"),
    "clusters": ("k BIGINT PRIMARY KEY", "(n % 7) * 1000000000000 + n"),
    "uuid as text": ("k CHAR(36) CHARACTER SET ascii PRIMARY KEY", "INSERT(INSERT(LEFT(SHA2(n, 256), 32), 9, 0, '-'), 14, 0, '-')"),
    "uuid as utf8mb4, case-insensitive": ("k VARCHAR(36) PRIMARY KEY", "UPPER(LEFT(SHA2(n, 256), 32))"),
    "uuid as bytes": ("k BINARY(16) PRIMARY KEY", "UNHEX(LEFT(SHA2(n, 256), 32))"),
    "bytes that begin alike": ("k VARBINARY(40) PRIMARY KEY", "CONCAT(REPEAT('x', 20), UNHEX(LEFT(SHA2(n, 256), 32)))"),
    "case-insensitive words": (
        "k VARCHAR(60) COLLATE utf8mb4_general_ci PRIMARY KEY",
        "CONCAT(ELT(1 + n % 6, 'Alpha', 'beta', 'GAMMA', 'Über', 'épsilon', 'zeta'), ' ', IF(n % 2, 'a', 'B'), n)",
    ),
    "by bytes": ("k VARCHAR(60) COLLATE utf8mb4_bin PRIMARY KEY", "CONCAT(IF(n % 2, 'order-', 'ORDER-'), n)"),
    "latin1": ("k VARCHAR(60) CHARACTER SET latin1 PRIMARY KEY", "CONCAT(ELT(1 + n % 3, 'ä', 'b', 'c'), LEFT(SHA2(n, 256), 32))"),
    "padded numbers as text": ("k CHAR(12) PRIMARY KEY", "LPAD(n, 12, '0')"),
    "another script": (
        "k VARCHAR(20) PRIMARY KEY",
        "CONCAT(CONVERT(UNHEX(HEX(0xE4B880 + (n % 60))) USING utf8mb4), n)",
    ),
    "mail addresses": ("k VARCHAR(80) PRIMARY KEY", "CONCAT('user', n, '@example.com')"),
    "decimal": ("k DECIMAL(30, 10) PRIMARY KEY", "(n - 5000) / 7"),
    "double": ("k DOUBLE PRIMARY KEY", "(n - 5000) / 7e0"),
    "double, by magnitude": ("k DOUBLE PRIMARY KEY", "POW(1.03, n - 10000)"),
    "date": ("k DATE, id INT, PRIMARY KEY (k, id)", "DATE'2020-01-01' + INTERVAL n % 1500 DAY, n"),
    "datetime, lately": ("k DATETIME(3) PRIMARY KEY", "IF(n = 1, '1970-01-01', '2026-01-01' + INTERVAL n * 1234 SECOND)"),
    "timestamp": ("k TIMESTAMP(6) PRIMARY KEY", "'2026-01-01 00:00:00' + INTERVAL n MICROSECOND"),
    "time": ("k TIME(3), id INT, PRIMARY KEY (k, id)", "SEC_TO_TIME(n % 3000 - 1000), n"),
    "year": ("k YEAR, id INT, PRIMARY KEY (k, id)", "2000 + n % 25, n"),
    "enum": ("k ENUM('z', 'm', 'a'), id INT, PRIMARY KEY (k, id)", "1 + n % 3, n"),
    "bit": ("k BIT(40) PRIMARY KEY", "n * 1000"),
    "a tenant of nine tenths": ("t INT, id BIGINT, PRIMARY KEY (t, id)", "IF(n % 10, 5, n % 97), n"),
    "tenants as words, one of nine tenths": (
        "t VARCHAR(20), d DATE, id BIGINT, PRIMARY KEY (t, d, id)",
        "IF(n % 10, 'Acme', CONCAT('t', n % 97)), DATE'2020-01-01' + INTERVAL n % 400 DAY, n",
    ),
    "a first column of one value": ("t CHAR(3), id INT, PRIMARY KEY (t, id)", "'one', n"),
    "many small tenants": ("t BINARY(16), id INT, PRIMARY KEY (t, id)", "UNHEX((LEFT(SHA2(n DIV 20, 256), 32))), n"),
}  # fmt: skip


def fill(mysql: MySQLServer, table: TableName, columns: str, expressions: str, rows: int = ROWS) -> None:
    with mysql.root(table.schema) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table.quoted} ({columns}) DEFAULT CHARACTER SET utf8mb4")
        cursor.execute(f"SET SESSION cte_max_recursion_depth = {rows}, time_zone = '+00:00', sql_log_bin = 0")
        numbers = f"WITH RECURSIVE numbers AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})"
        cursor.execute(f"INSERT INTO {table.quoted} {numbers} SELECT {expressions} FROM numbers")
        cursor.execute(f"ANALYZE TABLE {table.quoted}")


def counted(mysql: MySQLServer, walk: Walk, parts: list[Part]) -> list[int]:
    """The rows that are really in each part."""
    found = []
    for part in parts:
        conditions = [walk.beyond(part.low, ">", included=False)] if part.low else []
        conditions += [walk.beyond(part.high, "<", included=True)] if part.high else []
        where = " AND ".join(c for c, _ in conditions) or "TRUE"
        with mysql.root() as connection, connection.cursor() as cursor:
            arguments: tuple[Any, ...] = tuple(v for _, values in conditions for v in values)
            cursor.execute(f"SELECT COUNT(*) FROM {walk.table.quoted} WHERE {where}", arguments)
            ((count,),) = cursor.fetchall()
            found.append(count)
    return found


def cut(mysql: MySQLServer, table: TableName, wanted: Callable[[int], int]) -> tuple[Walk, list[Part], int]:
    connection = connect(SourceConfig(url=mysql.url()), purpose="test", streaming=True)
    try:
        walk = Walk(table, read_schema(connection, table))
        boundaries = Boundaries(connection, walk)
        return walk, boundaries.parts(wanted), boundaries.statements
    finally:
        connection.close()


@pytest.mark.parametrize("kind", KEYS)
def test_parts_are_of_about_equal_size(mysql: MySQLServer, schema: str, kind: str) -> None:
    table = TableName(schema, "t")
    fill(mysql, table, *KEYS[kind])
    walk, parts, statements = cut(mysql, table, lambda _: PARTS)
    rows = counted(mysql, walk, parts)
    print(f"{kind}: {len(parts)} parts, largest {max(rows) / ROWS:.3f}, {statements} statements, {rows}")
    assert sum(rows) == ROWS
    assert [p.number for p in parts] == list(range(len(parts)))
    assert parts[0].low is None
    assert parts[-1].high is None
    assert all(a.high == b.low is not None for a, b in itertools.pairwise(parts))
    assert max(rows) <= 2.5 * ROWS / PARTS
    assert PARTS / 2 <= len(parts) <= 2 * PARTS
