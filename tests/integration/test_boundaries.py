"""Tables are cut into parts of about equal size, whatever their key is and however it lies; measured on real servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cdc.config import SourceConfig
from cdc.names import TableName
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from dev.mariadb import MariaDBServer
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


def fill(
    mysql: MySQLServer | MariaDBServer, table: TableName, columns: str, expressions: str, rows: int = ROWS
) -> None:
    with mysql.root(table.schema) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table.quoted} ({columns}) DEFAULT CHARACTER SET utf8mb4")
        depth = "max_recursive_iterations" if isinstance(mysql, MariaDBServer) else "cte_max_recursion_depth"
        cursor.execute(f"SET SESSION {depth} = {rows}, time_zone = '+00:00', sql_log_bin = 0")
        numbers = f"WITH RECURSIVE numbers AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})"
        cursor.execute(f"INSERT INTO {table.quoted} {numbers} SELECT {expressions} FROM numbers")
        cursor.execute(f"ANALYZE TABLE {table.quoted}")


def counted(mysql: MySQLServer | MariaDBServer, walk: Walk, parts: list[Part]) -> list[int]:
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


@contextmanager
def cutting(mysql: MySQLServer | MariaDBServer, table: TableName) -> Iterator[tuple[Walk, Boundaries]]:
    connection = connect(SourceConfig(url=mysql.url()), purpose="test", streaming=True)
    try:
        walk = Walk(table, read_schema(connection, table))
        yield walk, Boundaries(connection, walk)
    finally:
        connection.close()


def cut(
    mysql: MySQLServer | MariaDBServer, table: TableName, wanted: Callable[[int], int]
) -> tuple[Walk, list[Part], int]:
    with cutting(mysql, table) as (walk, boundaries):
        return walk, boundaries.parts(wanted), boundaries.statements


def check(server: MySQLServer | MariaDBServer, table: TableName, kind: str) -> None:
    fill(server, table, *KEYS[kind])
    walk, parts, statements = cut(server, table, lambda _: PARTS)
    rows = counted(server, walk, parts)
    print(f"{kind}: {len(parts)} parts, largest {max(rows) / ROWS:.3f}, {statements} statements, {rows}")
    assert sum(rows) == ROWS
    assert [p.number for p in parts] == list(range(len(parts)))
    assert parts[0].low is None
    assert parts[-1].high is None
    assert all(a.high == b.low is not None for a, b in itertools.pairwise(parts))
    assert max(rows) <= 2.5 * ROWS / PARTS
    assert PARTS / 2 <= len(parts) <= 2 * PARTS
    assert statements <= 300
    estimated = sum(p.rows for p in parts)
    assert ROWS / 2 <= estimated <= 2 * ROWS


@pytest.mark.parametrize("kind", KEYS)
def test_parts_are_of_about_equal_size(mysql: MySQLServer, schema: str, kind: str) -> None:
    check(mysql, TableName(schema, "t"), kind)


@pytest.mark.parametrize("kind", KEYS)
def test_parts_are_of_about_equal_size_in_mariadb(mariadb: MariaDBServer, mariadb_schema: str, kind: str) -> None:
    check(mariadb, TableName(mariadb_schema, "t"), kind)


@pytest.mark.parametrize(
    ("columns", "expressions"),
    [
        ("k TEXT, PRIMARY KEY (k(4))", "LPAD(n, 4, '0')"),
        ("k SET('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm') PRIMARY KEY", "n"),
    ],
)
def test_a_key_that_the_index_does_not_find_is_read_in_one_part(
    mysql: MySQLServer, schema: str, columns: str, expressions: str
) -> None:
    table = TableName(schema, "t")
    fill(mysql, table, columns, expressions, rows=8000)
    _, parts, statements = cut(mysql, table, lambda _: PARTS)
    assert [(p.low, p.high) for p in parts] == [(None, None)]
    assert statements < 10


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_small_tables(mysql: MySQLServer, schema: str, rows: int) -> None:
    table = TableName(schema, "t")
    fill(mysql, table, "k INT PRIMARY KEY", "n", rows=max(rows, 1))
    if not rows:
        mysql.execute(f"DELETE FROM {table.quoted}")
    walk, parts, _ = cut(mysql, table, lambda _: PARTS)
    assert sum(counted(mysql, walk, parts)) == rows
    assert (parts[0].low, parts[-1].high) == (None, None)


def test_how_many_parts_is_decided_by_the_rows(mysql: MySQLServer, schema: str) -> None:
    table = TableName(schema, "t")
    fill(mysql, table, "k INT PRIMARY KEY", "n")
    told: list[int] = []

    def wanted(rows: int) -> int:
        told.append(rows)
        return 1

    _, parts, statements = cut(mysql, table, wanted)
    assert len(parts) == 1
    assert statements == 3
    assert ROWS / 2 < told[0] < 2 * ROWS


@pytest.mark.parametrize(
    "kind", ["auto-increment", "case-insensitive words", "a tenant of nine tenths", "uuid as bytes"]
)
def test_the_rest_of_a_part_is_cut_in_two(mysql: MySQLServer, schema: str, kind: str) -> None:
    table = TableName(schema, "t")
    fill(mysql, table, *KEYS[kind])
    with cutting(mysql, table) as (walk, boundaries):
        _, second, *_, last = boundaries.parts(lambda _: 4)
        found = boundaries.halves(second.high, last.high)
        assert found is not None
        cut, before, behind = found
    rows = counted(mysql, walk, [Part(0, second.high, cut), Part(1, cut, last.high)])
    assert min(rows) > sum(rows) / 4
    assert min(before, behind) > 0


def test_nothing_is_cut_where_nothing_is_left(mysql: MySQLServer, schema: str) -> None:
    table = TableName(schema, "t")
    fill(mysql, table, "k INT PRIMARY KEY", "n", rows=10)
    with cutting(mysql, table) as (_, boundaries):
        assert boundaries.halves((10,), None) is None
        assert boundaries.halves((9,), None) is None
        assert boundaries.halves((8,), (9,)) is None


def test_it_ends_when_it_is_told_to(mysql: MySQLServer, schema: str) -> None:
    table = TableName(schema, "t")
    fill(mysql, table, "k INT PRIMARY KEY", "n", rows=100)

    def ended() -> None:
        raise InterruptedError

    with cutting(mysql, table) as (walk, boundaries):
        boundaries = Boundaries(boundaries.connection, walk, ended)
        with pytest.raises(InterruptedError):
            boundaries.parts(lambda _: 4)
