"""How findings name a row: by its key, as `--from`, `--to` and `--key` take it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from cdc.reads import Key
from cdc.schema import Column, TableSchema
from cdc.source import canonical

NULL = "NULL"
"""A cell of a row that the lake got from others: no key has it."""


def names(schema: TableSchema, keys: pa.Table) -> list[str]:
    """Of each row, in order. `keys` has the key's columns, in the lake's types."""
    by_name = {column.name: column for column in schema.columns}
    cells = [_cells(by_name[n], keys.column(n)) for n in schema.key]
    return [_name(row) for row in zip(*cells, strict=True)]


def _cells(column: Column, values: pa.ChunkedArray[Any]) -> list[str]:
    return [_cell(column, cell) for cell in canonical.texts(column, values.combine_chunks()).to_pylist()]


def _cell(column: Column, cell: object) -> str:
    if cell is None:
        return NULL
    # Of digits alone nobody could say whether they are decimal.
    return f"0x{cell}" if column.type == "bit" and column.length > 1 else str(cell)


def bound(schema: TableSchema, key: Key) -> str:
    """The end of a range of keys, which has canonical texts already; that of a shard without the column that names it, which comes first."""
    by_name = {column.name: column for column in schema.columns}
    return _name([_cell(by_name[n], cell) for n, cell in zip(schema.key[-len(key) :], key, strict=True)])


def _name(cells: Sequence[str]) -> str:
    """The value itself, several with commas between, as a JSON array where that could be read in another way."""
    text = ",".join(cells)
    if text.startswith("[") or (len(cells) > 1 and text.count(",") >= len(cells)):
        return orjson.dumps(cells).decode()
    return text
