"""Sums of digests, as servers make them and as they are made of Arrow. That each digest is the same, for every type, is tested in
`test_results.py` and in `tests/conformance`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cdc import _native
from cdc.config import SourceConfig
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from cdc.source import catalogue, digests, results
from cdc.source.connection import connect, is_mariadb
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer

ROWS = 300


@pytest.fixture(params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> SqlServer:
    found: MySQLServer | MariaDBServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def table(server: SqlServer, request: pytest.FixtureRequest) -> TableName:
    """Rows of some types, NULLs, and texts around the length from which they enter by their own digest."""
    schema = request.getfixturevalue("schema" if isinstance(server, MySQLServer) else "mariadb_schema")
    found = TableName(schema, "t")
    server.execute(
        f"CREATE TABLE {found.quoted} (id INT PRIMARY KEY, d DOUBLE, t VARCHAR(2000) CHARACTER SET utf8mb4, l VARCHAR(50) CHARACTER SET latin1,"
        " b VARBINARY(1100), n DECIMAL(30, 8) NOT NULL, at DATETIME(6))"
    )
    rows = ", ".join(
        f"({i}, {i} / 7, IF({i} % 5, REPEAT('é', 490 + {i} % 40), NULL), '{i} é', REPEAT(x'00ff', 500 + {i} % 30), {i} * 1.5, '2024-01-01' + INTERVAL {i} SECOND)"
        for i in range(ROWS)
    )
    server.execute(f"INSERT INTO {found.quoted} VALUES {rows}")
    return found


@pytest.fixture
def connection(server: SqlServer) -> Iterator[Any]:
    with closing(connect(SourceConfig(url=server.url()), purpose="test")) as made:
        yield made


def rows_of(connection: Any, table: TableName) -> tuple[TableSchema, pa.RecordBatch]:
    schema = catalogue.read_schema(connection, table)

    def statement(text: bool) -> tuple[str, tuple[object, ...]]:
        return f"SELECT {results.select_list(schema, text)} FROM {table.quoted} ORDER BY id", ()

    (batch,) = results.read(connection, statement, schema.plans())
    return schema, batch


def asked(connection: Any, sql: str) -> list[tuple[int, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return [tuple(map(int, row)) for row in cursor.fetchall()]


def sums_of(found: pa.Array[Any], chunks: pa.Array[Any], n: int) -> list[tuple[int, ...]]:
    made: Any = _native.sums(found, chunks, n)
    return [(e["rows"], int(e["high"]), int(e["low"])) for e in pa.array(made).to_pylist()]


@pytest.mark.parametrize("hinted", [False, True])
def test_sums_of_chunks_are_those_of_the_server(connection: Any, table: TableName, hinted: bool) -> None:
    schema, batch = rows_of(connection, table)
    hints = catalogue.hints(connection, table) if hinted else digests.NO_HINTS
    digest = digests.digest_expression(schema.columns, mariadb=is_mariadb(connection), hints=hints)
    bounds = [7, 100, 101, 250]
    edges = [-1, *bounds, ROWS + 50, ROWS + 90]
    told = []
    for low, high in zip([-1000, *edges], edges, strict=False):
        told += asked(connection, digests.checksum(digest, f"{table.quoted} WHERE id >= {low} AND id < {high}"))
    keys = batch.select(["id"])
    made: Any = _native.chunk_of(keys, pa.record_batch([pa.array(edges, pa.int32())], ["id"]))
    mine = sums_of(digests.digests(schema.columns, batch), pa.array(made), len(edges))
    assert mine == told
    assert told[0] == told[-1] == (0, 0, 0), "no rows: no sums, and no NULLs"
    assert sum(rows for rows, _, _ in told) == ROWS


def test_sums_of_buckets_are_those_of_the_server(connection: Any, table: TableName) -> None:
    schema, batch = rows_of(connection, table)
    key, mariadb = [schema.columns[0]], is_mariadb(connection)
    bucket = digests.bucket_expression(key, mariadb=mariadb, bits=4)
    digest = digests.digest_expression(schema.columns, mariadb=mariadb)
    told = asked(connection, digests.checksum(digest, table.quoted, bucket=bucket))
    mine = sums_of(digests.digests(schema.columns, batch), digests.buckets(key, batch, bits=4), 16)
    assert {b: (rows, high, low) for b, rows, high, low in told} == {b: s for b, s in enumerate(mine) if s[0]}
    assert len(told) == 16, "a bucket without a row of 300 would be a poor hash"


def test_a_row_that_the_server_has_no_digest_of_makes_its_chunk_unlike(connection: Any, table: TableName) -> None:
    """Here since it is told of a column that it is never NULL, and it is."""
    schema, batch = rows_of(connection, table)
    hints = digests.Hints(frozenset({"t"}))
    digest = digests.digest_expression(schema.columns, mariadb=is_mariadb(connection), hints=hints)
    (told,) = asked(connection, digests.checksum(digest, f"{table.quoted} WHERE id < 10"))
    whole = digests.digests(schema.columns, batch.slice(0, 10))
    (mine,) = sums_of(whole, pa.array([0] * 10, pa.uint32()), 1)
    assert told[0] == mine[0] == 10, "it is counted"
    assert told[1:] != mine[1:]
    ((lacking,),) = asked(connection, f"SELECT SUM({digest} IS NULL) FROM {table.quoted} WHERE id < 10")
    assert lacking == 2


def test_a_fixed_column_is_like_one_of_the_lake(connection: Any, table: TableName) -> None:
    schema, batch = rows_of(connection, table)
    for text in ("it's \\ a shard", "x" * 1500):
        columns = [*schema.columns, Column("shard", "text", charset="utf8mb4")]
        digest = digests.digest_expression(columns, mariadb=is_mariadb(connection), fixed={"shard": text})
        (told,) = asked(connection, digests.checksum(digest, table.quoted))
        arrays = [batch.column(c.name) for c in schema.columns] + [pa.repeat(pa.scalar(text), batch.num_rows)]
        whole = pa.RecordBatch.from_arrays(arrays, [c.name for c in columns])
        (mine,) = sums_of(digests.digests(columns, whole), pa.array([0] * batch.num_rows, pa.uint32()), 1)
        assert mine == told


@pytest.mark.parametrize(
    "settings",
    [
        "NAMES latin1",
        "collation_connection = 'utf16_general_ci'",
        "sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,ANSI_QUOTES,NO_BACKSLASH_ESCAPES', time_zone = '+05:00'",
        "div_precision_increment = 0, lc_time_names = 'de_DE', group_concat_max_len = 8",
    ],
)
def test_digests_do_not_depend_on_what_sessions_begin_with(
    server: SqlServer, connection: Any, table: TableName, settings: str
) -> None:
    schema, batch = rows_of(connection, table)
    sql = digests.checksum(digests.digest_expression(schema.columns, mariadb=is_mariadb(connection)), table.quoted)
    server.execute("CREATE USER IF NOT EXISTS begins@'%' IDENTIFIED BY 'x'")  # root's sessions do not begin so
    server.execute(f"GRANT SELECT ON {table.quoted} TO begins@'%'")
    source = SourceConfig(url=f"mysql://begins@127.0.0.1:{server.port}", password="env:BEGINS")
    server.execute("SET GLOBAL init_connect = %s", f"SET {settings}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BEGINS", "x")
            with closing(connect(source, purpose="test")) as other:
                (told,) = asked(other, sql)
    finally:
        server.execute("SET GLOBAL init_connect = ''")
    (mine,) = sums_of(digests.digests(schema.columns, batch), pa.array([0] * batch.num_rows, pa.uint32()), 1)
    assert mine == told
    assert pc.count(batch.column("t"), "only_null").as_py() == ROWS // 5
