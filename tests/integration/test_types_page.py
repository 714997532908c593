"""docs/types.md says what the code does: every row of its tables is made on real servers and looked at."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from cdc.config import SourceConfig
from cdc.errors import TableStoppedError
from cdc.names import TableName
from cdc.schema import CHARSETS, TYPES, Column, TableSchema
from cdc.source.canonical import expression
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer

PAGE = (Path(__file__).parents[2] / "docs" / "types.md").read_text()
NAMES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "byte": pa.int8(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp_ntz": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", "UTC"),
    "array<float>": pa.list_(pa.float32()),
}
SqlServer = MySQLServer | MariaDBServer


def table_of(*heads: str) -> list[tuple[str, str]]:
    """The first two cells of the rows of the tables whose first column has one of these heads."""
    found = []
    for head in heads:
        (body,) = re.findall(rf"^\| {head} \|[^\n]*\n\|[- |]+\|\n((?:\|[^\n]*\n?)+)", PAGE, re.MULTILINE)
        found += re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", body, re.MULTILINE)
    return found


def lake_type(name: str) -> pa.DataType:
    if match := re.fullmatch(r"decimal\((\d+),(\d+)\)", name):
        return pa.decimal128(int(match[1]), int(match[2]))
    return NAMES[name]


def schema_of(server: SqlServer, schema: str, kind: str) -> TableSchema:
    server.execute(f"DROP TABLE IF EXISTS `{schema}`.t")
    server.execute(f"CREATE TABLE `{schema}`.t (id INT PRIMARY KEY, c {kind}) CHARACTER SET utf8mb4")
    with closing(connect(SourceConfig(url=server.url()), purpose="test")) as connection:
        return read_schema(connection, TableName(schema, "t"))


def compare(server: SqlServer, schema: str, rows: list[tuple[str, str]]) -> set[str]:
    """The types of the columns that these rows made, which became what they say."""
    wrong, seen = {}, set()
    for kind, name in rows:
        made = schema_of(server, schema, kind)
        seen.add(made.columns[1].type)
        if made.arrow.field("c").type != lake_type(name):
            wrong[kind] = str(made.arrow.field("c").type)
    assert not wrong
    return seen


def test_every_type_of_the_page_becomes_what_the_page_says(
    mysql: MySQLServer, schema: str, mariadb: MariaDBServer, mariadb_schema: str
) -> None:
    rows = table_of("MySQL, MariaDB")
    assert len(rows) > 35
    seen = compare(mysql, schema, [*rows, *table_of("MySQL")])
    seen |= compare(mariadb, mariadb_schema, [*rows, *table_of("MariaDB")])
    assert seen == TYPES, "the page has every type that there is"


def test_what_the_page_says_is_not_read_is_refused_by_name(
    mysql: MySQLServer, schema: str, mariadb: MariaDBServer, mariadb_schema: str
) -> None:
    assert "Not read: ENUM and SET with `CHARACTER SET binary`, MariaDB's `COMPRESSED` columns." in PAGE
    refused: list[tuple[SqlServer, str, str]] = [
        (mysql, schema, "ENUM('a') CHARACTER SET binary"),
        (mysql, schema, "SET('a') CHARACTER SET binary"),
        (mariadb, mariadb_schema, "ENUM('a') CHARACTER SET binary"),
        (mariadb, mariadb_schema, "VARCHAR(9) COMPRESSED"),
        (mariadb, mariadb_schema, "BLOB COMPRESSED"),
    ]
    for server, name, kind in refused:
        found = schema_of(server, name, kind)
        with pytest.raises(TableStoppedError, match="column c") as error:
            found.check()
        assert "exclude" in error.value.hint
        found.without(["c"]).check()


def test_every_character_set_of_the_servers_is_read(mysql: MySQLServer, mariadb: MariaDBServer) -> None:
    for server in (mysql, mariadb):
        names = {n for (n,) in server.execute("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS")}
        assert names - {"binary"} <= CHARSETS


EXPRESSIONS = {
    "integers, YEAR": Column("c", "year"),
    "DECIMAL": Column("c", "decimal", precision=10, scale=2),
    "DOUBLE": Column("c", "double"),
    "FLOAT": Column("c", "float"),
    "BIT(1)": Column("c", "bit", length=1),
    "BIT(12)": Column("c", "bit", length=12),
    "texts, ENUM, SET": Column("c", "set", charset="utf8mb4"),
    "texts of other character sets": Column("c", "text", charset="latin1"),
    "JSON": Column("c", "json"),
    "BINARY, VARBINARY, BLOBs, GEOMETRY, VECTOR": Column("c", "vector"),
    "DATE": Column("c", "date"),
    "DATETIME, TIMESTAMP": Column("c", "timestamp"),
    "DATETIME(3), TIMESTAMP(3)": Column("c", "datetime", scale=3),
    "TIME": Column("c", "time"),
    "UUID, INET4, INET6": Column("c", "inet6"),
}


def test_the_page_lists_the_canonical_expressions() -> None:
    found = dict(re.findall(r"^\| ([^|]+?) \| [^|]+ \| `` (.+) `` \|$", PAGE, re.MULTILINE))
    assert found.pop("FLOAT, DOUBLE of MariaDB") == expression(EXPRESSIONS["DOUBLE"], mariadb=True)
    assert found == {name: expression(column) for name, column in EXPRESSIONS.items()}
