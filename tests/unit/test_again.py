"""What an earlier check found and a later one looks at again: which of it is over."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import Column, TableSchema
from reconcile.values.found import TableValues
from reconcile.watch import again

TABLE = TableName("shop", "items")
SCHEMA = TableSchema((Column("a", "int"), Column("b", "binary", length=2), Column("v", "int")), ("a", "b"))
KEYS: dict[str, Key] = {"5,00FF": (5, "00FF"), "5, 00fe": (5, "00FE"), "6,00FF": (6, "00FF")}
"""By names, of which one is of an earlier version."""


def _found(*keys: tuple[int, bytes], **others: Any) -> TableValues:
    rows = pa.table(
        [pa.array([a for a, _ in keys], pa.int32()), pa.array([b for _, b in keys], pa.binary())], names=["a", "b"]
    )
    values = {"unsettled": 0, "different": len(keys)} | others
    return TableValues(str(TABLE), 1, 3, 3, 0, differences=(), found=rows, **values)


@pytest.fixture(autouse=True)
def _lake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "_schema", lambda config, table: SCHEMA)


def alike(found: TableValues) -> list[str]:
    return again._alike(None, TABLE, KEYS, found)  # type: ignore[arg-type]


def test_what_differs_still_is_not_over_whatever_it_was_named() -> None:
    assert alike(_found((5, b"\x00\xfe"))) == ["5,00FF", "6,00FF"]
    assert alike(_found((5, b"\x00\xff"), (6, b"\x00\xff"))) == ["5, 00fe"]
    assert alike(_found()) == list(KEYS)


def test_nothing_is_over_where_it_is_not_said_of_each() -> None:
    assert alike(_found(unsettled=1)) == []
    assert alike(_found((5, b"\x00\xff"), different=2)) == []
    assert alike(_found((7, b"\x00\xff"))) == []
