"""The type contract, as far as no value is needed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from cdc.errors import TableStoppedError
from cdc.schema import CHARSETS, TYPES, Column, TableSchema

ID = Column("id", "int")
NAME = Column("name", "text", charset="latin1")
FLAG = Column("flag", "tinyint")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (Column("c", "mediumint", unsigned=True), pa.int32()),
        (Column("c", "bigint", unsigned=True), pa.decimal128(20, 0)),
        (Column("c", "decimal", precision=38, scale=30), pa.decimal128(38, 30)),
        (Column("c", "decimal", precision=39, scale=2), pa.string()),
        (Column("c", "float", unsigned=True), pa.float32()),
        (Column("c", "bit", length=1), pa.bool_()),
        (Column("c", "bit", length=2), pa.binary()),
        (Column("c", "time", scale=3), pa.int64()),
        (Column("c", "year"), pa.int16()),
        (Column("c", "set", charset="gbk", members=("a",)), pa.string()),
        (Column("c", "json"), pa.string()),
        (Column("c", "geometry"), pa.binary()),
        (Column("c", "vector"), pa.list_(pa.float32())),
        (Column("c", "inet6"), pa.string()),
    ],
)
def test_what_types_become(column: Column, kind: pa.DataType) -> None:
    assert column.arrow_type == kind
    assert TableSchema((column,), (), {"c": "string"}).arrow.field("c").type == pa.string()
    assert Column.from_dict(column.to_dict()) == column


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_type_has_an_arrow_type(kind: str) -> None:
    column = Column("c", kind, length=8, precision=10, charset="utf8mb4")
    assert column.unsupported() == ""
    assert isinstance(column.arrow_type, pa.DataType)


def test_what_is_not_known_is_refused_by_name() -> None:
    for column, what in (
        (Column("c", "xmltype"), "column c: type xmltype"),
        (Column("c", "text", charset="klingon"), "column c: character set klingon"),
        (Column("c", "set", members=("a",)), "column c: character set unknown"),
        (Column("c", "enum", charset="binary", members=("a",)), "column c: character set binary"),
    ):
        with pytest.raises(TableStoppedError, match=what) as error:
            TableSchema((ID, column), ("id",)).check()
        assert "exclude:" in error.value.hint
        with pytest.raises(TableStoppedError, match=what):
            _ = column.arrow_type
        TableSchema((ID, column), ("id",)).without(["c"]).check()
    assert {"utf8mb4", "latin1", "gb18030", "utf32"} <= CHARSETS
    assert not {"binary", "utf8"} & CHARSETS


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"d": "string"}, "types: names column d"),
        ({"name": "boolean"}, "column name: text cannot be read as boolean"),
    ],
)
def test_overrides_that_cannot_be(overrides: dict[str, str], what: str) -> None:
    with pytest.raises(TableStoppedError, match=what):
        TableSchema((ID, NAME), ("id",), overrides).check()


def test_a_table_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(TableStoppedError, match="no column"):
        TableSchema((NAME,)).without(["name"]).check()


def test_excluded_columns_are_gone_and_remembered() -> None:
    schema = TableSchema((ID, NAME, FLAG), ("id",), {"flag": "boolean"})
    less = schema.without(["name", "later"])
    assert less.names == ("id", "flag")
    assert less.exclude == ("later", "name")
    assert (less.arrow.names, less.arrow.types) == (["id", "flag"], [pa.int32(), pa.bool_()])
    assert less.without([]) == less
    assert less != schema
    assert less.hash != schema.hash
    assert TableSchema.from_dict(less.to_dict()) == less
    assert "exclude" not in schema.to_dict()
    assert schema.without([]) == schema


def test_a_key_column_cannot_be_excluded() -> None:
    with pytest.raises(TableStoppedError, match="exclude: names column id"):
        TableSchema((ID, NAME), ("id",)).without(["name", "id"])


def test_plans_say_what_the_decoder_is_to_make() -> None:
    schema = TableSchema((ID, NAME, FLAG), ("id",), {"flag": "boolean", "name": "string"})
    expected: list[dict[str, Any]] = [
        {"name": "id", "type": "int", "output": "native", "key": True},
        {"name": "name", "type": "text", "charset": "latin1", "output": "string", "key": False},
        {"name": "flag", "type": "tinyint", "output": "boolean", "key": False},
    ]
    assert schema.plans() == expected
