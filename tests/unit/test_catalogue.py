"""What information_schema and the binary log say of a table, against each other: what needs no server."""

from __future__ import annotations

import pytest

from cdc.config import TableConfig
from cdc.errors import TableStoppedError
from cdc.schema import Column, TableSchema
from cdc.source.catalogue import as_catalogued, as_configured, as_followed, difference, make_column

ID = Column("id", "int")
NAME = Column("name", "text", charset="utf8mb4")
FLAG = Column("flag", "tinyint")
CAPTURED = TableSchema((ID, NAME, FLAG), ("id",), {"flag": "boolean"})


def table(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableSchema:
    return TableSchema(columns, key)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (table(ID, NAME, FLAG), ""),
        (table(ID, NAME), "column flag is gone"),
        (table(ID, NAME, FLAG, Column("more", "int")), "column more is new"),
        (table(ID, NAME, Column("flag", "int")), "column flag is int, was tinyint"),
        (
            table(ID, Column("name", "text", charset="latin1"), FLAG),
            "column name is text (charset latin1), was text (charset utf8mb4)",
        ),
        (table(NAME, ID, FLAG), "the columns' order changed"),
        (table(ID, NAME, FLAG, key=("name",)), "the key is (name), was (id)"),
    ],
)
def test_what_differs_is_said(found: TableSchema, what: str) -> None:
    assert difference(CAPTURED, found) == what
    assert as_followed(CAPTURED, found).overrides == CAPTURED.overrides


def test_excluded_columns_may_change_as_they_like() -> None:
    captured = as_configured(CAPTURED, TableConfig(name="a.b", exclude=("name",), types={"flag": "boolean"}))
    for name in (NAME, Column("name", "xmltype")):
        assert not difference(captured, table(ID, name, FLAG))
    assert not difference(captured, table(ID, FLAG))
    assert as_followed(captured, table(ID, NAME, FLAG)) == captured


def test_the_pipeline_file_names_columns_that_exist() -> None:
    with pytest.raises(TableStoppedError, match="exclude: names column nmae"):
        as_configured(CAPTURED, TableConfig(name="a.b", exclude=("nmae",)))
    with pytest.raises(TableStoppedError, match="primary key"):
        as_configured(CAPTURED, TableConfig(name="a.b", exclude=("id",)))


def test_members_that_information_schema_cannot_tell_are_the_same() -> None:
    captured = table(ID, Column("e", "set", charset="utf8mb4", members=("?",)))
    found = table(ID, Column("e", "set", charset="utf8mb4", members=("🐬",)))
    assert not difference(captured, found)
    assert not difference(found, captured)
    assert as_catalogued(found) == captured
    assert as_followed(captured, found) == found


def test_types_that_mariadbs_log_does_not_name_stay_what_they_are() -> None:
    captured = table(ID, Column("u", "uuid"), Column("a", "inet4"), Column("b", "inet6"), Column("v", "vector"))
    logged = table(
        ID,
        Column("u", "binary", length=16),
        Column("a", "binary", length=4),
        Column("b", "binary", length=16),
        Column("v", "varbinary"),
    )
    assert not difference(captured, logged)
    assert as_followed(captured, logged) == captured
    assert not difference(captured, captured)
    other = table(*captured.columns[:4], Column("v", "text", charset="utf8mb4"))
    assert "column v is text" in difference(captured, other)
    assert "column u is uuid, was binary" in difference(
        table(Column("u", "binary", length=16)), table(Column("u", "uuid"))
    )


def test_what_mariadb_compresses_has_a_type_of_its_own() -> None:
    column = make_column("c", "varchar", "varchar(9) /*M!100301 COMPRESSED*/", 36, 0, 0, 0, "utf8mb4")
    assert column.type == "compressed varchar"
    assert column.unsupported() == "column c: type compressed varchar is not known"
    assert make_column("c", "enum", "enum('/*M!100301 COMPRESS')", 36, 0, 0, 0, "utf8mb4").type == "enum"
