"""How a table is walked by its primary key: parts, bounds, and the SELECT of one chunk. Pure.

A chunk is what follows the last row read, in the key's own order: `WHERE key > last ORDER BY key LIMIT n`. So the server alone
decides order and equality, and any collation will do; all that is needed of a key is that its text names it exactly.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdc.errors import TableStoppedError
from cdc.names import TableName, quote_identifier
from cdc.schema import Column, TableSchema
from cdc.source.values import select_list

Cell = int | str | bytes
Bound = tuple[Cell, ...]
"""The key of a row, one value a column: integers and the index of an ENUM as int, binary strings as bytes, the rest as its text."""

INTEGERS = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
PARTS_PER_READER = 8
"""So that readers end at about the same time although ranges of equal width hold unequal numbers of rows."""
MEMBERS_LISTED = 256
"""An ENUM's members after a bound are listed up to this number: the server uses its index for `IN` and not for `>`."""


@dataclass(frozen=True)
class Part:
    """A range of the key that is read from its beginning to its end: `low` excluded, `high` included, None for no bound."""

    number: int
    low: Bound | None = None
    high: Bound | None = None


def bound_to_json(bound: Bound | None) -> list[Any] | None:
    """A bound for a progress record."""
    if bound is None:
        return None
    return [{"base64": base64.b64encode(cell).decode()} if isinstance(cell, bytes) else cell for cell in bound]


def bound_from_json(data: Sequence[Any] | None) -> Bound | None:
    """The bound that `bound_to_json` was given."""
    if data is None:
        return None
    return tuple(base64.b64decode(cell["base64"]) if isinstance(cell, Mapping) else cell for cell in data)


class Walk:
    """A table's way by its key. Raises `TableStoppedError` for a table without a key, or with a column that cannot be read."""

    def __init__(self, table: TableName, schema: TableSchema) -> None:
        if not schema.key:
            raise TableStoppedError(
                "the table has no primary key",
                where=str(table),
                hint="give it one, or follow it with `mode: append`",
            )
        columns = {c.name: c for c in schema.columns}
        self.table = table
        self.schema = schema
        self.key: tuple[Column, ...] = tuple(columns[name] for name in schema.key)
        self._places = tuple(schema.names.index(name) for name in schema.key)
        self._width = len(schema.columns)

    @property
    def splits(self) -> bool:
        """Whether the key's range can be cut into parts: one integer column."""
        return len(self.key) == 1 and self.key[0].type in INTEGERS

    def parts(self, low: int, high: int, rows: int, chunk_rows: int, readers: int) -> list[Part]:
        """Parts of about equal width for a table of about `rows` rows with keys from `low` to `high`; the outermost are open, so
        that all of them hold every key there is."""
        wanted = min(readers * PARTS_PER_READER, -(-rows // chunk_rows), high - low + 1) if readers > 1 else 1
        cuts = [low + (high - low + 1) * n // max(1, wanted) - 1 for n in range(1, wanted)]
        edges: list[Bound | None] = [None, *((cut,) for cut in cuts), None]
        return [Part(n, a, b) for n, (a, b) in enumerate(itertools.pairwise(edges))]

    def select(
        self, after: Bound | None, high: Bound | None, limit: int, also: Sequence[str] = ()
    ) -> tuple[str, tuple[object, ...]]:
        """The statement for at most `limit` rows after `after` and up to `high`, and its arguments.

        It gives the columns of `select_list`, then what `bound` needs besides, then the expressions `also`.
        """
        where: list[str] = []
        arguments: list[object] = []
        if after is not None:
            terms = []
            for n, column in enumerate(self.key):
                same = [f"{_name(c)} = {_slot(c)}" for c in self.key[:n]]
                beyond, given = self._beyond(column, after[n])
                terms.append(f"({' AND '.join([*same, beyond])})")
                arguments += [*after[:n], *given]
            where.append(f"({' OR '.join(terms)})")
        if high is not None:
            where.append(f"{_name(self.key[0])} <= {_slot(self.key[0])}")
            arguments.append(high[0])
        columns = [_escaped(select_list(self.schema))]
        columns += [f"CAST({_name(c)} AS UNSIGNED)" for c in self.key if c.type == "enum"]
        columns += map(_escaped, also)
        order = ", ".join(map(_name, self.key))
        sql = f"SELECT {', '.join(columns)} FROM {_escaped(self.table.quoted)} FORCE INDEX (PRIMARY)"
        sql += f" WHERE {' AND '.join(where)}" if where else ""
        return f"{sql} ORDER BY {order} LIMIT %s", (*arguments, limit)

    def _beyond(self, column: Column, cell: Cell) -> tuple[str, tuple[object, ...]]:
        if column.type == "enum" and isinstance(cell, int) and len(column.members) <= MEMBERS_LISTED:
            rest = tuple(range(cell + 1, len(column.members) + 1))
            return (f"{_name(column)} IN ({', '.join(['%s'] * len(rest))})", rest) if rest else ("FALSE", ())
        return f"{_name(column)} > {_slot(column)}", (cell,)

    def extremes(self) -> str:
        """The statement for the smallest and the largest key of a table that `splits`."""
        key = quote_identifier(self.key[0].name)
        return f"SELECT MIN({key}), MAX({key}) FROM {self.table.quoted}"

    def bound(self, row: Sequence[bytes | None]) -> Bound:
        """The key of a row that `select` gave."""
        cells: list[Cell] = []
        extra = self._width
        for column, place in zip(self.key, self._places, strict=True):
            cell = row[place]
            if column.type == "enum":
                cell, extra = row[extra], extra + 1
            if cell is None:
                raise TableStoppedError("a key column is NULL", where=f"{self.table}, column {column.name}")
            if column.type in INTEGERS or column.type == "enum":
                cells.append(int(cell))
            elif column.type in ("binary", "varbinary"):
                cells.append(cell)
            else:
                cells.append(cell.decode())
        return tuple(cells)

    def width(self) -> int:
        """How many cells of a row are the table's; those behind them are for `bound`."""
        return self._width


def _escaped(sql: str) -> str:
    return sql.replace("%", "%%")


def _name(column: Column) -> str:
    return _escaped(quote_identifier(column.name))


def _slot(column: Column) -> str:
    """Where a value is bound: cast, where MySQL would otherwise compare as floating point or as text."""
    match column.type:
        case "decimal":
            return f"CAST(%s AS DECIMAL({column.precision}, {column.scale}))"
        case "double":
            return "CAST(%s AS DOUBLE)"
        case "date":
            return "CAST(%s AS DATE)"
        case "datetime" | "timestamp":
            return f"CAST(%s AS DATETIME({column.scale}))"
        case _:
            return "%s"
