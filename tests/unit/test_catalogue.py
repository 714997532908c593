"""What information_schema and the binary log say of a table, against each other: what needs no server."""

from __future__ import annotations

import pytest

from cdc.config import TableConfig
from cdc.errors import TableStoppedError
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from cdc.source.catalogue import (
    TableInfo,
    as_catalogued,
    as_configured,
    as_followed,
    difference,
    make_column,
    select,
    targets,
)

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


GHOSTS = (
    "_orders_gho",
    "_orders_ghc",
    "_orders_ghk",
    "_orders_del",
    "_orders_20240101_del",
    "_orders_20240101120000_del",
    "_orders_new",
    "__orders_new",
    "_orders_old",
    "_orders_chkpnt",
    "lhmn_orders",
    "lhma_2024_01_01_12_00_00_000_orders",
)


@pytest.mark.parametrize("into", [None, "shop.all"])
def test_tables_of_online_schema_changes_are_never_meant_by_a_pattern(into: str | None) -> None:
    def table(name: str) -> TableInfo:
        return TableInfo(TableName("shop", name), "BASE TABLE", "InnoDB")

    present = [table(n) for n in (*GHOSTS, "orders", "old", "orders_new", "_orders")]
    chosen, idle = select([TableConfig(name="shop.*", into=into)], present)
    assert [t.name for t in chosen] == ["_orders", "old", "orders", "orders_new"]
    # What is named exactly is meant, whatever it is called.
    chosen, idle = select([TableConfig(name="shop._orders_new", into=into)], present)
    assert [t.name for t in chosen] == ["_orders_new"]
    assert not idle


def test_shards_land_in_one_table_and_others_in_their_own() -> None:
    def table(schema: str, name: str) -> TableInfo:
        return TableInfo(TableName(schema, name), "BASE TABLE", "InnoDB")

    entries = [
        TableConfig(name="a.*"),
        TableConfig(name="a.orders_*", into="a.orders"),
        TableConfig(name="b.orders_?", into="a.orders"),
        TableConfig(name="b.orders_9", into="a.nine"),
    ]
    present = [table("a", n) for n in ("users", "orders_0")] + [table("b", f"orders_{i}") for i in (0, 1, 9)]
    # The first pattern that matches takes a table.
    assert set(targets(select(entries, present)[0])) == {
        ("a", "users"),
        ("a", "orders_0"),
        ("a", "orders"),
        ("a", "nine"),
    }
    found = targets(select([*entries[1:], entries[0]], present)[0])
    assert list(found) == [("a", "nine"), ("a", "orders"), ("a", "users")]
    assert found[TableName("a", "orders")].shards == (("a", "orders_0"), ("b", "orders_0"), ("b", "orders_1"))
    assert found[TableName("a", "nine")].shards == (("b", "orders_9"),)
    assert found[TableName("a", "users")].shards is None
    assert not any(t.clash for t in found.values())
    present.append(table("a", "orders"))
    found = targets(select([*entries[1:], entries[0]], present)[0])
    assert found[TableName("a", "orders")].clash
    assert len(found[TableName("a", "orders")].shards or ()) == 3
