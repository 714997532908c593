"""How findings name a row: by its key, as `--from`, `--to` and `--key` take it. Pure."""

from __future__ import annotations

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
    return [name(row) for row in zip(*cells, strict=True)]


def _cells(column: Column, values: pa.ChunkedArray[Any]) -> list[str]:
    found = canonical.texts(column, values.combine_chunks()).to_pylist()
    # Of digits alone nobody could say whether they are decimal.
    prefix = "0x" if column.type == "bit" and column.length > 1 else ""
    return [NULL if cell is None else f"{prefix}{cell}" for cell in found]


def name(key: Key) -> str:
    """The value itself, several with commas between, as a JSON array where that could be read in another way."""
    cells = [str(cell) for cell in key]
    text = ",".join(cells)
    if text.startswith("[") or (len(cells) > 1 and text.count(",") >= len(cells)):
        return orjson.dumps(cells).decode()
    return text
