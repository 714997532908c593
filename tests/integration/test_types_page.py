"""docs/types.md says what the code does: every row of its table is made on a real server and looked at."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from cdc.errors import TableStoppedError
from cdc.names import TableName
from cdc.schema import TableSchema
from cdc.source.catalogue import read_schema
from dev.mysql import MySQLServer

PAGE = Path(__file__).parents[2] / "docs" / "types.md"
NOT_READ = {
    "FLOAT": "float",
    "BIT": "bit(8)",
    "TIME": "time",
    "YEAR": "year",
    "SET": "set('a')",
    "JSON": "json",
    "GEOMETRY": "geometry",
    "VECTOR": "vector(3)",
}
NAMES: dict[str, pa.DataType] = {
    "byte": pa.int8(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp_ntz": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", "UTC"),
}


def lake_type(name: str) -> pa.DataType:
    if match := re.fullmatch(r"decimal\((\d+),(\d+)\)", name):
        return pa.decimal128(int(match[1]), int(match[2]))
    return NAMES[name]


def schema_of(mysql: MySQLServer, schema: str, kind: str) -> TableSchema:
    mysql.execute(f"DROP TABLE IF EXISTS `{schema}`.t")
    mysql.execute(f"CREATE TABLE `{schema}`.t (id INT PRIMARY KEY, c {kind}) CHARSET utf8mb4")
    with mysql.root() as connection:
        return read_schema(connection, TableName(schema, "t"))


def test_every_type_of_the_page_becomes_what_the_page_says(mysql: MySQLServer, schema: str) -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 25
    wrong = {
        k: str(found)
        for k, n in rows
        if (found := schema_of(mysql, schema, k).arrow.field("c").type) != lake_type(n.strip())
    }
    assert not wrong


def test_what_is_not_read_yet_is_refused_by_name(mysql: MySQLServer, schema: str) -> None:
    listed = re.search(r"refused by name: ([A-Z, ]+)\.", PAGE.read_text())
    assert listed
    assert set(listed[1].split(", ")) == set(NOT_READ)
    for kind in NOT_READ.values():
        with pytest.raises(TableStoppedError, match="column c"):
            _ = schema_of(mysql, schema, kind).arrow
