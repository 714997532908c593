"""Result sets as Arrow, from real servers: every type's edges, as binary and as text; walks over keys of every type; what goes wrong."""

from __future__ import annotations

import math
import random
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pytest
from pymysql.connections import Connection

from cdc import _native, unfit
from cdc.capture.native import NativeDecoder
from cdc.config import SourceConfig
from cdc.errors import SourceError, SourceUnavailableError, TableStoppedError
from cdc.log.codec import WIDTH
from cdc.names import TableName
from cdc.position import BinlogEnd, Position
from cdc.schema import Column, TableSchema
from cdc.source import canonical, catalogue, digests, results
from cdc.source.connection import LIMITS, connect, is_mariadb, translated
from cdc.source.dump import BinlogStream
from cdc.source.server import Server
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from snapshot.chunks import Bound, Walk

SqlServer = MySQLServer | MariaDBServer


@pytest.fixture(params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def place(request: pytest.FixtureRequest, server: SqlServer) -> Any:
    return request.getfixturevalue("mariadb_schema" if isinstance(server, MariaDBServer) else "schema")


@pytest.fixture
def connection(server: SqlServer) -> Iterator[Connection[Any]]:
    with closing(opened(server)) as found:
        yield found


def opened(server: SqlServer) -> Connection[Any]:
    return connect(SourceConfig(url=server.url()), purpose="test", streaming=True)


def as_binary(sql: str, *arguments: object) -> results.Statement:
    def statement(text: bool) -> tuple[str, tuple[object, ...]]:
        assert not text
        return sql, arguments

    return statement


BYTES = [{"name": "c", "type": "varbinary"}]


# every type

_TEXTS = ["'a '", "''", "NULL"]
EDGES: dict[str, list[str]] = {
    "TINYINT": ["-128", "127", "0"],
    "TINYINT UNSIGNED": ["255"],
    "SMALLINT": ["-32768", "32767"],
    "SMALLINT UNSIGNED": ["65535"],
    "MEDIUMINT": ["-8388608", "8388607"],
    "MEDIUMINT UNSIGNED": ["16777215"],
    "INT": ["-2147483648", "2147483647"],
    "INT UNSIGNED ZEROFILL": ["42", "4294967295"],
    "BIGINT": ["-9223372036854775808", "9223372036854775807"],
    "BIGINT UNSIGNED": ["18446744073709551615", "0"],
    "BIGINT UNSIGNED ZEROFILL": ["5", "18446744073709551615"],
    "DECIMAL(10,2)": ["-0.01", "99999999.99", "0", "-0.00"],
    "DECIMAL(10,2) ZEROFILL": ["1.5"],
    "DECIMAL(38,30)": ["-99999999.999999999999999999999999999999", "0.000000000000000000000000000001"],
    "DECIMAL(38,0)": ["99999999999999999999999999999999999999", "-1"],
    "DECIMAL(65,30)": ["-99999999999999999999999999999999999.999999999999999999999999999999", "0"],
    "DECIMAL(39,0)": ["999999999999999999999999999999999999999", "-1"],
    "DECIMAL(10,10)": ["0.0000000001", "-0.9999999999", "0"],
    "FLOAT": ["0.1", "-0e0", "3.4028234663852886e38", "1e-45", "16777217", "-1e-60", "0.00001", "1e15"],
    "FLOAT(7,3)": ["0.1", "1234.5678", "-0.0004"],
    "FLOAT UNSIGNED ZEROFILL": ["1.5"],
    "DOUBLE": ["0", "-0e0", "1.7976931348623157e308", "-2.2250738585072014e-308", "5e-324", "1e15", "1e14", "1e-15", "0.1"],
    "DOUBLE(20,3)": ["1.5", "-0e0", "12345678901234567", "0.001"],
    "BIT": ["b'1'", "b'0'"],
    "BIT(9)": ["b'1'", "b'111111111'", "b'0'"],
    "BIT(64)": ["1", "18446744073709551615"],
    "YEAR": ["0", "1901", "2155", "2000"],
    "CHAR(5)": ["'a '", "''", "'🐬é'", "'0'"],
    "VARCHAR(20)": ["'a '", "'\\0\\n\\\\'", "'日本'"],
    "VARCHAR(20) CHARACTER SET utf8mb3": ["'é日'", "''"],
    "VARCHAR(20) CHARACTER SET ascii": ["'~ '"],
    "VARCHAR(20) CHARACTER SET latin1": ["'é€'", "_latin1 x'81'", "'??'"],
    "VARCHAR(20) CHARACTER SET cp1250": ["_cp1250 x'3f81'", "'ž?'", "'?'"],
    "CHAR(9) CHARACTER SET sjis": ["'日本ｱ '", "_sjis x'5c7e'"],
    "TEXT CHARACTER SET cp932": ["_cp932 x'81cafa54'", "'～'"],
    "VARCHAR(20) CHARACTER SET gbk": ["'中é'"],
    "VARCHAR(20) CHARACTER SET utf16": ["'🐬?'"],
    "CHAR(3) CHARACTER SET utf32": ["'🐬'"],
    "LONGTEXT": ["REPEAT('é', 200000)", "''"],
    "BINARY(4)": ["x'00ff2000'", "'a'", "''"],
    "VARBINARY(4)": ["x'00ff20'", "''"],
    "BLOB": ["REPEAT(x'ff00', 300)", "''"],
    "DATE": ["'1000-01-01'", "'9999-12-31'", "'0001-01-01'", "'2024-02-29'", "'0000-00-00'", "'2024-02-31'", "'2024-00-00'"],
    "DATETIME": ["'0001-01-01 00:00:00'", "'9999-12-31 23:59:59'", "'0000-00-00'", "'2024-02-31 23:59:59'"],
    "DATETIME(3)": ["'2024-02-29 12:34:56.789'", "'2024-00-01 12:34:56.789'", "'0000-00-00 00:00:00'"],
    "DATETIME(6)": ["'9999-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.999999'", "'2024-02-30 00:00:00.000001'"],
    "TIMESTAMP": ["'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "'0000-00-00'"],
    "TIMESTAMP(6)": ["'1970-01-01 00:00:01.000001'", "'2038-01-19 03:14:07.499999'", "'0000-00-00'"],
    "TIME": ["'-838:59:59'", "'838:59:59'", "'0:0:0'", "'-0:0:1'", "'100:00:00'"],
    "TIME(1)": ["'-0:0:0.5'", "'12:34:56.7'"],
    "TIME(6)": ["'838:59:58.999999'", "'-838:59:58.999999'", "'-0:0:0.000001'", "'23:59:59.999999'"],
    "ENUM('a','é','')": ["'a'", "'é'", "''", "0"],
    "ENUM('a','é','🐬') CHARACTER SET utf16": ["2", "3", "0"],
    "ENUM('a','é') CHARACTER SET latin1": ["2", "0"],
    "SET('a','é','b c')": ["7", "5", "''"],
    "SET('a','é') CHARACTER SET gbk": ["3", "0"],
    "GEOMETRY": ["ST_GeomFromText('POINT(1 2)', 4326)", "ST_GeomFromText('MULTIPOINT(1 2, 3 4)')"],
    "LINESTRING": ["ST_GeomFromText('LINESTRING(1 2, 3 4)')"],
}  # fmt: skip
"""Literals over every edge of each type."""
MYSQL_EDGES = {
    "JSON": ["'{\"b\": 1.0, \"a\": [1e20, -0.0, \"é🐬\", null, true]}'", "'[]'", "CAST(TIME'12:30:00.5' AS JSON)", "CAST(b'1' AS JSON)"],
    "VECTOR(3)": ["STRING_TO_VECTOR('[1, -0.1, 1e30]')"],
    "VARCHAR(20) CHARACTER SET gb18030": ["'中🐬'"],
}  # fmt: skip
MARIADB_EDGES = {
    "JSON": ['\'{"b": 1.0,  "a": 1}\''],
    "VECTOR(3)": ["VEC_FROMTEXT('[1, -0.1, 1e3]')"],
    "UUID": ["'F47AC10B-58CC-4372-A567-0E02B2C3D479'"],
    "INET4": ["'0.0.0.0'", "'255.1.20.3'"],
    "INET6": ["'::'", "'::ffff:1.2.3.4'", "'2001:DB8::1:0:0:1'", "'1:2:3:4:5:6:7:8'", "'::1.2.3.4'", "'1:0:0:2::'"],
    "VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin": ["_binary x'4180'", "'A?'"],
}


class Edges(NamedTuple):
    table: TableName
    schema: TableSchema
    kinds: list[str]
    unfit: set[str]
    before: Position


UNFIT = {
    *(
        "DATE",
        "DATETIME",
        "DATETIME(3)",
        "DATETIME(6)",
        "TIMESTAMP",
        "TIMESTAMP(6)",
        "VARCHAR(20) CHARACTER SET cp1250",
    ),
    "VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin",
}


@pytest.fixture
def edges(server: SqlServer, place: str, connection: Connection[Any]) -> Edges:
    """A table with one column a type, NULL where a type has no edge left, and always in the last row."""
    mariadb = isinstance(server, MariaDBServer)
    kinds = EDGES | (MARIADB_EDGES if mariadb else MYSQL_EDGES)
    columns = ", ".join(f"c{i} {kind} NULL" for i, kind in enumerate(kinds))
    with server.root(init_command="SET sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'") as writer:
        cursor = writer.cursor()
        cursor.execute(f"CREATE TABLE {place}.t (id INT PRIMARY KEY AUTO_INCREMENT, {columns}) CHARACTER SET utf8mb4")
        before = Server(connection).position()
        for row in range(max(map(len, kinds.values())) + 1):
            literals = [found[row] if row < len(found) else "NULL" for found in kinds.values()]
            cursor.execute(f"INSERT INTO {place}.t VALUES (0, {', '.join(literals)})")
    table = TableName(place, "t")
    return Edges(table, catalogue.read_schema(connection, table), ["id", *kinds], UNFIT & set(kinds), before)


def rows_of(connection: Connection[Any], edges: Edges, schema: TableSchema) -> pa.Table:
    def statement(text: bool) -> tuple[str, tuple[object, ...]]:
        return f"SELECT {results.select_list(schema, text)} FROM {edges.table.quoted} ORDER BY id", ()

    (batch,) = results.read(connection, statement, schema.plans())
    return pa.Table.from_batches([batch])


def canonical_of(connection: Connection[Any], edges: Edges) -> list[list[bytes | None]]:
    mariadb = is_mariadb(connection)
    expressions = [canonical.expression(c, mariadb=mariadb) for c in edges.schema.columns]
    sql = f"SELECT {', '.join(expressions)} FROM {edges.table.quoted} ORDER BY id"
    plans = [{"name": str(n), "type": "varbinary"} for n in range(len(expressions))]
    (told,) = results.read(connection, as_binary(sql), plans)
    return [column.to_pylist() for column in told.columns]


@pytest.mark.parametrize("protocol", ["binary", "text"])
@pytest.mark.parametrize("output", ["native", "string"])
def test_every_edge_has_the_text_that_the_server_prints(
    server: SqlServer,
    connection: Connection[Any],
    edges: Edges,
    protocol: str,
    output: str,
    request: pytest.FixtureRequest,
) -> None:
    told = canonical_of(connection, edges)
    schema = edges.schema
    if output == "string":
        schema = schema.with_overrides(dict.fromkeys(schema.names, "string"))
    if protocol == "text":
        without_prepared_statements(server, request)
    rows = rows_of(connection, edges, schema)
    assert rows.select(schema.names).schema == schema.arrow
    kept = rows.column(unfit.NAME).combine_chunks()
    for kind, column, texts in zip(edges.kinds, schema.columns, told, strict=True):
        array = rows.column(column.name).combine_chunks()
        mine = canonical.texts(column, array, kept).cast(pa.binary()).to_pylist()
        assert mine == texts, kind
        assert None in texts or kind == "id"
        if output == "native":
            assert (canonical.texts(column, array).cast(pa.binary()).to_pylist() != texts) == (kind in edges.unfit), (
                kind
            )


@pytest.mark.parametrize("output", ["native", "string"])
def test_every_edge_has_the_digest_that_the_server_computes(
    server: SqlServer, connection: Connection[Any], edges: Edges, output: str
) -> None:
    mariadb, schema = is_mariadb(connection), edges.schema
    expressions = [digests.digest_expression([c], mariadb=mariadb) for c in schema.columns]
    expressions += [
        digests.digest_expression(schema.columns, mariadb=mariadb),
        digests.bucket_expression(schema.columns, mariadb=mariadb),
    ]
    sql = f"SELECT {', '.join(expressions[:-1])}, CAST({expressions[-1]} AS CHAR) FROM {edges.table.quoted} ORDER BY id"
    plans = [{"name": str(n), "type": "varbinary"} for n in range(len(expressions))]
    (told,) = results.read(connection, as_binary(sql), plans)
    if output == "string":
        schema = schema.with_overrides(dict.fromkeys(schema.names, "string"))
    (batch,) = rows_of(connection, edges, schema).combine_chunks().to_batches()
    kept = batch.column(unfit.NAME)
    for kind, column, found in zip(edges.kinds, schema.columns, told.columns, strict=False):
        assert digests.digests([column], batch, kept).to_pylist() == found.to_pylist(), kind
        if output == "native":
            without = digests.digests([column], batch).to_pylist()
            assert (without != found.to_pylist()) == (kind in edges.unfit), kind
    assert digests.digests(schema.columns, batch, kept).to_pylist() == told.column(-2).to_pylist()
    buckets = digests.buckets(schema.columns, batch, kept).to_pylist()
    assert buckets == [int(b or b"") for b in told.column(-1).to_pylist()]


def test_hints_change_no_digest(server: SqlServer, connection: Connection[Any], edges: Edges) -> None:
    mariadb = is_mariadb(connection)
    found = catalogue.hints(connection, edges.table)
    assert found.required == {"id"}
    kinds = dict(zip(edges.schema.names, edges.kinds, strict=True))
    short = {kinds[name] for name in found.short}
    assert {"CHAR(5)", "VARBINARY(4)", "ENUM('a','é','')"} < short
    assert not short & {"LONGTEXT", "BLOB", "INT"}
    for kind, column in zip(edges.kinds, edges.schema.columns, strict=True):
        hints = digests.Hints(frozenset({column.name}), found.short)
        told, plain = (digests.digest_expression([column], mariadb=mariadb, hints=h) for h in (hints, digests.NO_HINTS))
        assert told != plain
        name = f"`{column.name}`"
        sql = f"SELECT {plain}, {told} FROM {edges.table.quoted} WHERE {name} IS NOT NULL"
        (rows,) = results.read(connection, as_binary(sql), [*BYTES, {"name": "d", "type": "varbinary"}])
        assert rows.column(0).to_pylist() == rows.column(1).to_pylist(), kind
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*), COUNT({told}) FROM {edges.table.quoted} WHERE {name} IS NULL")
            ((count, wrong),) = cursor.fetchall()
        assert wrong == 0, f"a NULL that was said to be none has the digest of a row: {kind}"
        assert count or kind == "id"


def test_the_binary_log_tells_the_same_columns_and_the_same_rows(
    server: SqlServer, connection: Connection[Any], edges: Edges
) -> None:
    decoder = NativeDecoder(mariadb=isinstance(server, MariaDBServer))
    decoder.capture({edges.table: edges.schema})
    end = Server(connection).binlog_end()
    found: list[pa.RecordBatch] = []
    with BinlogStream(SourceConfig(url=server.url()), edges.before.gtids, heartbeat_s=0.2) as stream:
        for data in stream:
            while not decoder.feed(data):
                data = b""
            drained = decoder.drain()
            assert not drained.stops, drained.stops
            found += [changes.batch for changes in drained.changes]
            if decoder.idle and drained.end >= end:
                break
    batches = [batch.select(range(WIDTH, batch.num_columns)) for batch in found]
    rows = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")
    read = rows_of(connection, edges, edges.schema)
    assert rows.schema == read.schema
    for kind, name in zip([*edges.kinds, unfit.NAME], rows.column_names, strict=True):
        assert rows.column(name).to_pylist() == read.column(name).to_pylist(), kind
        if pa.types.is_floating(rows.schema.field(name).type):  # the sign of zero
            assert canonical_texts(rows, name) == canonical_texts(read, name), kind


def canonical_texts(rows: pa.Table, name: str) -> list[object]:
    return canonical.texts(Column(name, "double"), rows.column(name).combine_chunks()).to_pylist()


def test_keys_and_generated_columns_are_in_the_binary_log_as_in_information_schema(
    server: SqlServer, place: str, connection: Connection[Any]
) -> None:
    keyed, hidden = TableName(place, "keyed"), TableName(place, "gipk")
    before = Server(connection).position()
    server.execute(
        f"CREATE TABLE {keyed.quoted} (a INT, b VARCHAR(9), c INT AS (a + 1) VIRTUAL, d INT AS (a + 2) STORED, e INT INVISIBLE DEFAULT 7,"
        " f ENUM('é','🐬') , g TEXT, PRIMARY KEY (b, g(3), a)) CHARACTER SET utf8mb4"
    )
    server.execute(f"INSERT INTO {keyed.quoted} (a, b, f, g) VALUES (1, 'x', 2, 'y')")
    tables = {keyed: catalogue.read_schema(connection, keyed)}
    if not isinstance(server, MariaDBServer):
        server.execute(f"ALTER TABLE {keyed.quoted} ADD KEY ((a * 2))")  # has a hidden column
        server.execute(f"INSERT INTO {keyed.quoted} (a, b, f, g) VALUES (2, 'x', 2, 'y')")
        with server.root() as writer, writer.cursor() as cursor:
            cursor.execute("SET SESSION sql_generate_invisible_primary_key = ON")
            cursor.execute(f"CREATE TABLE {hidden.quoted} (a INT)")
            cursor.execute(f"INSERT INTO {hidden.quoted} VALUES (1)")
        tables[hidden] = catalogue.read_schema(connection, hidden)
        assert tables[hidden].names == ("my_row_id", "a")
        assert tables[hidden].key == ("my_row_id",)
    end = Server(connection).binlog_end()
    told = definitions(server, before, end, list(tables))
    assert {table for table, _ in told} == set(tables)
    for table, schema in told:
        assert not catalogue.difference(tables[table], schema), table
        if table == keyed:
            assert schema.key == ("b", "g", "a")
            assert schema.columns[5].members == ("é", "🐬")


def definitions(
    server: SqlServer, before: Position, end: BinlogEnd, tables: list[TableName]
) -> list[tuple[TableName, TableSchema]]:
    """What TABLE_MAP events say of these tables."""
    decoder = _native.BinlogDecoder(mariadb=isinstance(server, MariaDBServer), drain_bytes=1, part_bytes=1 << 40)
    decoder.capture([(t.schema, t.name) for t in tables])
    found = []
    with BinlogStream(SourceConfig(url=server.url()), before.gtids, heartbeat_s=0.2) as stream:
        for data in stream:
            asked = decoder.feed(data)
            while asked is not None:
                if asked[0] == "table":
                    _, schema, name, columns, key, named = asked
                    assert named
                    columns = tuple(Column.from_dict(c) for c in columns)
                    found.append((TableName(schema, name), TableSchema(columns, tuple(key))))
                    decoder.table(None)
                elif asked[0] == "statement":
                    decoder.statement("statement")
                else:
                    break
                asked = decoder.feed(b"")
            drained = decoder.drain()
            if decoder.idle and BinlogEnd(drained.file, drained.offset) >= end:
                return found
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("kind", ["double", "float"])
def test_floats_come_back_bit_by_bit_and_have_the_servers_text(
    server: SqlServer, place: str, connection: Connection[Any], kind: str
) -> None:
    seed = random.randrange(10**9)
    generator = random.Random(seed)
    form = "<d" if kind == "double" else "<f"
    numbers: list[float] = []
    while len(numbers) < 6000:
        (bits,) = struct.unpack(form, generator.randbytes(struct.calcsize(form)))
        scaled = generator.uniform(-1, 1) * 10.0 ** generator.randint(-22, 25)
        numbers += [x for x in (bits, struct.unpack(form, struct.pack(form, scaled))[0]) if math.isfinite(x) and x]
    server.execute(f"CREATE TABLE {place}.t (id INT PRIMARY KEY AUTO_INCREMENT, d {kind})")
    for i in range(0, len(numbers), 2000):
        server.execute(f"INSERT INTO {place}.t (d) VALUES {','.join(f'({x:.20e})' for x in numbers[i : i + 2000])}")
    column = Column("d", kind)
    told = canonical.expression(column, mariadb=is_mariadb(connection))
    sql = f"SELECT d, {told} FROM {place}.t ORDER BY id"
    batches = list(results.read(connection, as_binary(sql), [column.to_dict(), *BYTES]))
    assert [x for b in batches for x in b.column(0).to_pylist()] == numbers, seed
    for batch in batches:
        assert canonical.texts(column, batch.column(0)).cast(pa.binary()).to_pylist() == batch.column(1).to_pylist(), (
            seed
        )


def without_prepared_statements(server: SqlServer, request: pytest.FixtureRequest) -> None:
    (before,) = server.execute("SELECT @@max_prepared_stmt_count")[0]
    server.execute("SET GLOBAL max_prepared_stmt_count = 0")
    request.addfinalizer(lambda: server.execute("SET GLOBAL max_prepared_stmt_count = %s", before))


# keys of every type

KEYS: dict[str, tuple[str, list[str]]] = {
    "float": ("FLOAT", [f"{n} * 0.1e0" for n in range(-9, 10)] + ["1e-45", "3e38"]),
    "time": ("TIME(3)", [f"SEC_TO_TIME({n} * 1000.125)" for n in range(-9, 10)]),
    "year": ("YEAR", ["0", "1901", "1969", "1970", "2000", "2069", "2155"]),
    "bit": ("BIT(10)", [str(n * n) for n in range(30)]),
    "wide bit": ("BIT(64)", ["18446744073709551615", "18446744073709551614", "9223372036854775808", "1", "0"]),
    "one bit": ("BIT", ["0", "1"]),
    "set": ("SET('c','a','b')", [str(n) for n in range(8)]),
    "wide set": (
        "SET(" + ",".join(f"'m{n}'" for n in range(64)) + ")",
        [str(2**63 + n) for n in range(6)] + [str(n) for n in range(4)],
    ),
    "one character, two codes": (
        "VARCHAR(4) CHARACTER SET cp932 COLLATE cp932_bin",
        [
            "_cp932 x'81ca'",
            "_cp932 x'eef9'",
            "_cp932 x'fa54'",
            "_cp932 x'81e6'",
            "_cp932 x'879a'",
            "_cp932 x'fa5b'",
            "'a'",
        ],
    ),
    "latin1": ("VARCHAR(9) CHARACTER SET latin1", [f"'{c}'" for c in "aÄbßçdéøzÿ%_"]),
    "gbk": ("VARCHAR(9) CHARACTER SET gbk", [f"'{c}'" for c in "a中文字b é国"]),
    "utf16": ("VARCHAR(9) CHARACTER SET utf16 COLLATE utf16_bin", [f"'{c}'" for c in "a中🐬\uffe6🂡b"]),
    "long decimal": ("DECIMAL(60, 5)", [f"{n}{'0' * 40}.00001" for n in range(-5, 5)]),
    "enum of another character set": ("ENUM('é','b','a') CHARACTER SET latin1", ["1", "2", "3"]),
    "boolean": ("TINYINT(1)", ["0", "1"]),
}
MARIADB_KEYS = {
    "uuid": ("UUID", [f"'{n * 37 % 256:02x}000000-{n:04x}-1000-8000-{n:012x}'" for n in range(20)]),
    "inet4": ("INET4", [f"'{n * 37 % 256}.0.0.{n}'" for n in range(20)]),
    "inet6": ("INET6", [f"'{n * 999:x}::{n}'" for n in range(20)]),
}


@pytest.mark.parametrize("override", [{}, {"k": "string"}], ids=["native", "string"])
@pytest.mark.parametrize("kind", [*KEYS, *MARIADB_KEYS])
def test_a_walk_reads_every_row_once(
    server: SqlServer, place: str, connection: Connection[Any], kind: str, override: dict[str, str]
) -> None:
    if kind in MARIADB_KEYS and not isinstance(server, MariaDBServer):
        pytest.skip("MariaDB's own")
    definition, literals = (KEYS | MARIADB_KEYS)[kind]
    table = TableName(place, "t")
    with server.root(init_command="SET sql_mode = ''") as writer, writer.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table.quoted} (k {definition}, v INT, PRIMARY KEY (k, v)) CHARACTER SET utf8mb4")
        cursor.execute(
            f"INSERT INTO {table.quoted} VALUES {', '.join(f'({x}, {n % 2})' for x in literals for n in (0, 1))}"
        )
    overrides = override or ({"k": "boolean"} if kind == "boolean" else {})
    walk = Walk(table, catalogue.read_schema(connection, table).with_overrides(overrides))
    found: list[pa.RecordBatch] = []
    after: Bound | None = None
    while len(found) < 3 * len(literals):

        def statement(text: bool, after: Bound | None = after) -> tuple[str, tuple[object, ...]]:
            return walk.select(after, None, 3, ["'x'"], text=text)

        chunk = list(results.read(connection, statement, walk.plans(also=1)))
        found += [walk.rows(batch) for batch in chunk]
        assert all(walk.also(batch)[0].to_pylist() == [b"x"] * batch.num_rows for batch in chunk)
        if sum(batch.num_rows for batch in chunk) < 3:
            break
        after = walk.bound(chunk[-1])
    rows = pa.Table.from_batches(found)
    assert rows.schema == walk.schema.arrow
    assert rows.num_rows == 2 * len(literals)
    seen = [tuple(row.values()) for row in rows.to_pylist()]
    codes = 2 * len(literals) - len({*seen}) if kind == "one character, two codes" else 0
    assert len({*seen}) == len(seen) - codes
    asked = rows.group_by(["k", "v"]).aggregate([]).slice(0, 8)
    points = results.read(connection, lambda text: walk.points(asked, text=text), walk.plans())
    again = [tuple(row.values()) for batch in points for row in walk.rows(batch).to_pylist()]
    assert {*again} >= {tuple(row.values()) for row in asked.to_pylist()}
    assert len(again) < 2 * asked.num_rows or codes


# how rows come


def test_rows_of_any_size_come_in_bounded_batches(connection: Connection[Any], server: SqlServer) -> None:
    with connection.cursor() as session:
        name = "max_recursive_iterations" if isinstance(server, MariaDBServer) else "cte_max_recursion_depth"
        session.execute(f"SET SESSION {name} = 1000000")
    sql = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %s)"
        " SELECT CAST(i AS CHAR), REPEAT('x', i %% 300) FROM n WHERE i <= %s"
    )
    plans = BYTES * 2
    for rows in (0, 1, 251, 200_000):
        batches = list(results.read(connection, as_binary(sql, max(rows, 1), rows), plans, rows=1000))
        assert all(0 < batch.num_rows < 60_000 for batch in batches)
        values: list[Any] = [i for batch in batches for i in batch.column(0).to_pylist()]
        numbers = [int(i) for i in values]
        assert numbers == list(range(1, rows + 1))
        assert all(
            len(x) == int(i) % 300 for b in batches for i, x in zip(*(c.to_pylist() for c in b.columns), strict=True)
        )


def test_packets_beyond_sixteen_megabytes_are_put_together(connection: Connection[Any]) -> None:
    longest = 0xFFFFFF
    # The row's header and its length take six bytes of the packet.
    for size in (longest - 7, longest - 6, longest - 5, 2 * longest - 6, 40_000_000):
        (batch,) = results.read(connection, as_binary(f"SELECT REPEAT('x', {size})"), BYTES)
        assert batch.column(0)[0].as_buffer().size == size


def test_batches_are_bounded_in_bytes(connection: Connection[Any]) -> None:
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) SELECT REPEAT('x', 1000000) FROM n"
    sizes = [batch.num_rows for batch in results.read(connection, as_binary(sql), BYTES, size=3_000_000)]
    assert sum(sizes) == 50
    assert max(sizes) <= 5


def test_statements_follow_one_another_and_none_is_left_prepared(
    server: SqlServer, connection: Connection[Any]
) -> None:
    def prepared() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'")
            return int(cursor.fetchone()[1])

    before = prepared()
    for n in range(20):
        (batch,) = results.read(connection, as_binary("SELECT %s", str(n)), BYTES)
        assert batch.column(0).to_pylist() == [b"%d" % n]
    assert prepared() == before


def test_a_percent_sign_is_one_where_nothing_is_bound(connection: Connection[Any]) -> None:
    for sql, arguments in (("SELECT '%s'", ()), ("SELECT '%%s' FROM DUAL WHERE 1 = %s", (1,))):
        (batch,) = results.read(connection, as_binary(sql, *arguments), BYTES)
        assert batch.column(0).to_pylist() == [b"%s"]


def test_a_reader_that_leaves_closes_the_connection(server: SqlServer) -> None:
    connection = opened(server)
    found: Any = results.read(connection, as_binary("SELECT '1' UNION ALL SELECT '2'"), BYTES, rows=1)
    next(found)
    found.close()
    assert not connection.open
    with pytest.raises(SourceUnavailableError), translated(connection), connection.cursor() as other:
        other.execute("SELECT 1")


# what goes wrong


def test_a_statement_that_cannot_be_prepared_is_an_error_and_the_connection_goes_on(server: SqlServer) -> None:
    for sql, code in (("SELECT * FROM mysql.no_such_table", "1146"), ("SELEC 1", "1064")):
        connection = opened(server)
        with pytest.raises(SourceError, match=code) as caught:
            list(results.read(connection, as_binary(sql), BYTES))
        assert not caught.value.retryable
        assert connection.open
        (batch,) = results.read(connection, as_binary("SELECT '1'"), BYTES)
        assert batch.num_rows == 1
        connection.close()


def test_an_error_within_a_result_is_an_error(server: SqlServer, connection: Connection[Any]) -> None:
    sql = "SELECT 1e0 UNION ALL SELECT SLEEP(0.2) + 1e0 UNION ALL SELECT EXP(1000 + RAND())"
    with pytest.raises(SourceError, match="1690"):
        list(results.read(connection, as_binary(sql), [{"name": "c", "type": "double"}]))


def test_columns_that_are_not_as_the_table_was_stop_it(connection: Connection[Any]) -> None:
    with pytest.raises(TableStoppedError, match="2 columns"):
        list(results.read(connection, as_binary("SELECT 1, 2"), BYTES))


def test_a_value_that_its_table_cannot_have_stops_the_table_without_showing_it(
    server: SqlServer, place: str, connection: Connection[Any]
) -> None:
    server.execute(f"CREATE TABLE {place}.t (flag TINYINT)")
    server.execute(f"INSERT INTO {place}.t VALUES (1), (57)")
    plans = [{"name": "flag", "type": "tinyint", "output": "boolean"}]
    with pytest.raises(TableStoppedError, match="column flag") as caught:
        list(results.read(connection, as_binary(f"SELECT flag FROM {place}.t"), plans))
    assert "57" not in str(caught.value)
    assert "wire" not in str(caught.value)
    assert "types:" in caught.value.hint


def test_a_killed_connection_is_unavailable(server: SqlServer) -> None:
    connection = opened(server)
    killer = threading.Timer(0.3, server.execute, ["KILL %s", cast("Any", connection).thread_id()])
    killer.start()
    with pytest.raises(SourceUnavailableError):
        list(results.read(connection, as_binary("SELECT SLEEP(5)"), BYTES))
    killer.join()


def test_a_silent_server_is_unavailable(server: SqlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.source.connection.LIMITS", type(LIMITS)(stream=0.5))
    connection = opened(server)
    started = time.monotonic()
    with pytest.raises(SourceUnavailableError, match="no answer in time"):
        list(results.read(connection, as_binary("SELECT SLEEP(5)"), BYTES))
    assert time.monotonic() - started < 4
    assert not connection.open


def test_what_a_server_says_of_an_error_is_not_repeated(connection: Connection[Any]) -> None:
    with pytest.raises(SourceError) as caught:
        list(results.read(connection, as_binary("SELECT hunter2secret"), BYTES))
    assert caught.value.hint or "1054" in str(caught.value)
