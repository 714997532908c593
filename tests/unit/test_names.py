"""Names as people write them, as MySQL quotes them, and as folders and topics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import ConfigError
from cdc.names import FOLDER_LIMIT, TOPIC_LIMIT, TableName, decode, encode, quote_identifier

identifiers = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=64)
tables = st.builds(TableName, identifiers, identifiers)


@given(st.text())
def test_encoding_keeps_the_name(name: str) -> None:
    try:
        encoded = encode(name)
    except UnicodeEncodeError:
        return
    assert decode(encoded) == name


@given(identifiers, identifiers)
def test_two_names_never_share_a_folder(a: str, b: str) -> None:
    assert (encode(a) == encode(b)) == (a == b)


@given(identifiers)
def test_a_folder_is_one_plain_part(name: str) -> None:
    assert set(encode(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("orders", "orders"), ("order-items", "order-2ditems"), ("Orders", "-4frders"), ("..", "-2e-2e"), ("é", "-c3-a9")],
)
def test_encoding_by_example(name: str, encoded: str) -> None:
    assert encode(name) == encoded


@pytest.mark.parametrize("text", ["-", "-2", "-2E", "-6f", "Orders", "a.b", "-ff", "a%20"])
def test_what_encoding_never_returns_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)


@given(tables)
def test_what_is_printed_can_be_parsed(table: TableName) -> None:
    assert TableName.parse(str(table)) == table


@given(tables)
def test_the_id_names_the_table(table: TableName) -> None:
    assert TableName.from_id(table.id) == table


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("shop.orders", ("shop", "orders")),
        ("`my.db`.`a``b`", ("my.db", "a`b")),
        ("`a b`.c", ("a b", "c")),
        ("shop.log_*", ("shop", "log_*")),
    ],
)
def test_parsing_by_example(text: str, table: tuple[str, str]) -> None:
    assert TableName.parse(text) == table


@pytest.mark.parametrize("text", ["", "orders", "a.b.c", "a.", ".b", "a..b", "a b.c", "`a.b", "a.b ", "a.`b`c", "``.a"])
def test_what_is_no_table_name(text: str) -> None:
    with pytest.raises(ConfigError):
        TableName.parse(text)


@given(identifiers)
def test_a_quoted_identifier_ends_where_it_ends(name: str) -> None:
    quoted = quote_identifier(name)
    assert quoted[0] == quoted[-1] == "`"
    assert quoted[1:-1].replace("``", "").count("`") == 0
    assert quoted[1:-1].replace("``", "`") == name


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_mysql_cannot_name(name: str) -> None:
    with pytest.raises(ConfigError):
        quote_identifier(name)


def test_names_that_are_too_long() -> None:
    long = TableName("s", "é" * 50)
    with pytest.raises(ConfigError, match=str(FOLDER_LIMIT)):
        _ = long.folder
    with pytest.raises(ConfigError, match=str(TOPIC_LIMIT)):
        long.topic("shop")
    assert TableName("s", "é" * 42).folder == "s/" + "-c3-a9" * 42
    assert TableName("s", "t").topic("My shop") == "-4dy-20shop.s.t"
