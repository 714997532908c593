"""How a table is walked by its primary key: parts, bounds, and the SELECT of one chunk. Pure.

A chunk is what follows the last row read, in the key's own order: `WHERE key > last ORDER BY key LIMIT n`. So the server alone
decides order and equality, and any collation will do; all that is needed of a key is that what is bound names it exactly.
"""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc import _native, unfit
from cdc.errors import TableStoppedError
from cdc.names import TableName, quote_identifier
from cdc.schema import UTF8, Column, TableSchema
from cdc.source import canonical
from cdc.source.results import select_list

Cell = int | str | bytes
Bound = tuple[Cell, ...]
"""The key of a row, one value a column: integers, YEAR, BIT and the numbers of ENUM and SET as int; binary strings, and texts whose
character set has several codes for one character, as bytes; the rest as its canonical text."""

INTEGERS = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
_UNICODE = UTF8 | {"ucs2", "utf16", "utf16le", "utf32"}
MEMBERS_LISTED = 256
"""An ENUM's members after a bound are listed up to this number: the server uses its index for `IN` and not for `>`."""


@dataclass(frozen=True)
class Part:
    """A range of the key that is read from its beginning to its end: `low` excluded, `high` included, None for no bound."""

    number: int
    low: Bound | None = None
    high: Bound | None = None
    rows: int = 0
    """About how many it has, as the server estimates; 0: not known."""


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
        self._besides = tuple(c for c in self.key if _besides(c))

    def select(
        self,
        after: Bound | None,
        high: Bound | None,
        limit: int,
        also: Sequence[str] = (),
        *,
        text: bool = False,
        where: str = "",
        after_included: bool = False,
        high_included: bool = True,
    ) -> tuple[str, tuple[object, ...]]:
        """The statement for at most `limit` rows after `after` (with it, if `after_included`) and up to `high` (with it, if
        `high_included`), and its arguments. Both are compared as whole keys; `where` is a condition of the server's own SQL, for it to
        judge; `text` as of `select_list`.

        It gives the columns of `select_list`, then what `bound` needs besides, then the expressions `also`, which give bytes.
        """
        rows, arguments = self.rows_between(
            after, high, where=where, after_included=after_included, high_included=high_included
        )
        return f"SELECT {self._columns(also, text)} FROM {rows} ORDER BY {self.order()} LIMIT %s", (*arguments, limit)

    def rows_between(
        self,
        after: Bound | None,
        high: Bound | None,
        *,
        where: str = "",
        after_included: bool = False,
        high_included: bool = True,
    ) -> tuple[str, tuple[object, ...]]:
        """What stands behind FROM, for the rows of `select`, and its arguments."""
        conditions: list[str] = []
        arguments: list[object] = []
        if after is not None:
            condition, values = self.beyond(after, ">", included=after_included)
            conditions.append(condition)
            arguments += values
        if high is not None:
            condition, values = self.beyond(high, "<", included=high_included)
            conditions.append(condition)
            arguments += values
        if where:
            # On lines of its own: it may end in a comment.
            conditions.append(f"(\n{_escaped(where)}\n)")
        rows = f"{_escaped(self.table.quoted)} FORCE INDEX (PRIMARY)"
        return rows + (f" WHERE {' AND '.join(conditions)}" if conditions else ""), tuple(arguments)

    def edge(
        self, conditions: Sequence[tuple[str, tuple[object, ...]]], *, descending: bool = False, text: bool = False
    ) -> tuple[str, tuple[object, ...]]:
        """The statement for the first row, or the last one, that meets these conditions, in the columns of `select`; and its arguments."""
        where = f" WHERE {' AND '.join(condition for condition, _ in conditions)}" if conditions else ""
        sql = f"SELECT {self._columns((), text)} FROM {_escaped(self.table.quoted)} FORCE INDEX (PRIMARY){where}"
        arguments = tuple(value for _, values in conditions for value in values)
        return f"{sql} ORDER BY {self.order(' DESC' if descending else '')} LIMIT %s", (*arguments, 1)

    def weighed(self, low: Bound | None, high: Bound | None) -> tuple[str, tuple[object, ...]]:
        """The statement that asks the server for its estimate of the rows in a part; and its arguments. Not with FORCE INDEX: it spares
        itself the estimate where nothing hangs on it."""
        conditions = [self.beyond(low, ">", included=False)] if low is not None else []
        conditions += [self.beyond(high, "<", included=True)] if high is not None else []
        where = f" WHERE {' AND '.join(condition for condition, _ in conditions)}" if conditions else ""
        sql = f"EXPLAIN FORMAT=TRADITIONAL SELECT 1 FROM {_escaped(self.table.quoted)} USE INDEX (PRIMARY){where}"
        return sql, tuple(value for _, values in conditions for value in values)

    def begins(self, prefix: Bound) -> tuple[str, tuple[object, ...]]:
        """The condition that a key begins with these columns' values, and its arguments."""
        conditions = [_compared(c, "=", cell) for c, cell in zip(self.key, prefix, strict=False)]
        return " AND ".join(c for c, _ in conditions), tuple(value for _, values in conditions for value in values)

    def order(self, direction: str = "") -> str:
        """The key's columns for ORDER BY; `direction`: ` DESC`."""
        return ", ".join(f"{_name(c)}{direction}" for c in self.key)

    def beyond(self, bound: Bound, operator: str, *, included: bool) -> tuple[str, tuple[object, ...]]:
        """The condition that a key is after (`>`) or before (`<`) a bound, or is it, if `included`; and its arguments. A bound may have
        the key's first columns only: then keys that begin with it are it."""
        terms: list[str] = []
        arguments: list[object] = []
        last = len(bound) - 1
        for n, (column, cell) in enumerate(zip(self.key, bound, strict=False)):
            same = [_compared(c, "=", other) for c, other in zip(self.key[:n], bound, strict=False)]
            conditions = [*same, _beyond(column, f"{operator}=" if included and n == last else operator, cell)]
            terms.append(f"({' AND '.join(condition for condition, _ in conditions)})")
            arguments += [value for _, values in conditions for value in values]
        return f"({' OR '.join(terms)})", tuple(arguments)

    def plans(self, also: int = 0) -> list[dict[str, Any]]:
        """The columns of `select`, for `results.read`, with so many expressions."""
        return self.schema.plans() + [
            {"name": f"+{n}", "type": "varbinary", "output": "native", "key": False}
            for n in range(len(self._besides) + also)
        ]

    def points(
        self, keys: pa.Table, also: Sequence[str] = (), *, text: bool = False, where: str = ""
    ) -> tuple[str, tuple[object, ...]]:
        """The statement for the rows with these keys (the key's columns in the lake's types), and for those that the server takes for
        equal to them by collation. Its columns are those of `select`; `where` as there."""
        texts: list[Any] = [canonical.texts(c, keys.column(c.name).combine_chunks()).to_pylist() for c in self.key]
        found, arguments = [], []
        # Not `(…) IN (…)`: there MariaDB compares texts of other character sets without converting them.
        for row in zip(*texts, strict=True):
            conditions = [_equal(c, _cell(c, value)) for c, value in zip(self.key, row, strict=True)]
            found.append(f"({' AND '.join(condition for condition, _ in conditions)})")
            arguments += [value for _, values in conditions for value in values]
        sql = f"SELECT {self._columns(also, text)} FROM {_escaped(self.table.quoted)} WHERE ({' OR '.join(found)})"
        return sql + (f" AND (\n{_escaped(where)}\n)" if where else ""), tuple(arguments)

    def _columns(self, also: Sequence[str], text: bool) -> str:
        columns = [_escaped(select_list(self.schema, text))]
        columns += [_besides(c) for c in self._besides]
        return ", ".join([*columns, *map(_escaped, also)])

    def bound(self, batch: pa.RecordBatch) -> Bound:
        """The key of the last row of a batch that `select` gave."""
        last = batch.slice(batch.num_rows - 1)
        besides: dict[str, Any] = {c.name: last.column(self._width + n)[0].as_py() for n, c in enumerate(self._besides)}
        cells: list[Cell] = []
        for column, place in zip(self.key, self._places, strict=True):
            text: Any
            (text,) = canonical.texts(column, last.column(place)).to_pylist()
            if text is None:
                raise TableStoppedError("a key column is NULL", where=f"{self.table}, column {column.name}")
            cell: Any = besides.get(column.name, text)
            cells.append(int(cell) if column.type in ("enum", "set") else _cell(column, cell))
        return tuple(cells)

    def bound_of(self, texts: Sequence[str]) -> Bound:
        """The bound that the canonical texts of a key's columns say. Raises `ValueError` for what is none of the column's type."""
        return tuple(_told(column, text) for column, text in zip(self.key, texts, strict=True))

    def keys_of(self, bounds: Sequence[Bound]) -> pa.Table:
        """The key's columns, in the lake's types, of these bounds. Raises `ValueError` for what is none of the column's type."""
        arrays = []
        for n, column in enumerate(self.key):
            values = [self._lake_value(column, bound[n]).as_py() for bound in bounds]
            arrays.append(pa.array(values, self.schema.arrow_type(column)))
        return pa.Table.from_arrays(arrays, [c.name for c in self.key])

    @property
    def ordered(self) -> bool:
        """Whether the lake orders keys as the server does. Not what the lake has as text: a collation orders texts, and which one is not
        known here; members of ENUM and SET go by their numbers."""
        return not any(pa.types.is_string(self.schema.arrow_type(c)) for c in self.key)

    def lake_range(self, after: Bound | None, high: Bound | None) -> tuple[Any | None, Any | None]:
        """`key_range` for `LakeTable.scan`: the first key column of every key that is `within` these bounds, and of some others."""
        first = self.key[0]
        low = None if after is None else self._lake_value(first, after[0])
        top = None if high is None else _next(self._lake_value(first, high[0]))
        return None if low is None else low.as_py(), top

    def within(self, keys: pa.Table, after: Bound | None, high: Bound | None) -> pa.ChunkedArray[Any]:
        """For each of these keys (the key's columns, in the lake's types) whether it is after `after` and not after `high`, as the lake
        orders values: texts by their bytes.

        Where that is not the server's order (`ordered`), a chunk's rows need not be within its own bounds. But however the bounds jump,
        consecutive chunks from None to None have every key within some of them, since each is passed upwards at least once.
        """
        found: Any = pa.chunked_array([pa.repeat(True, keys.num_rows)])
        if after is not None:
            found = pc.and_(found, pc.invert(self._not_after(keys, after)))
        if high is not None:
            found = pc.and_(found, self._not_after(keys, high))
        assert isinstance(found, pa.ChunkedArray)
        return found

    def _not_after(self, keys: pa.Table, bound: Bound) -> Any:
        found: Any = pa.scalar(True)
        for column, cell in reversed(list(zip(self.key, bound, strict=True))):
            values, value = keys.column(column.name), self._lake_value(column, cell)
            found = pc.or_(pc.less(values, value), pc.and_(pc.equal(values, value), found))
        return found

    def _lake_value(self, column: Column, cell: Cell) -> pa.Scalar[Any]:
        """A bound's cell as the lake has it."""
        kind = self.schema.arrow_type(column)
        if pa.types.is_boolean(kind):
            return pa.scalar(bool(cell), kind)
        if column.type == "bit" and isinstance(cell, int):
            cell = cell.to_bytes((column.length + 7) // 8)
        if column.name in self.schema.overrides and isinstance(cell, bytes) and column.type != "text":
            return pa.scalar(
                str(int(cell[0])) if column.length == 1 and column.type == "bit" else cell.hex().upper(), kind
            )
        if pa.types.is_binary(kind):
            return pa.scalar(cell, kind)
        text = _printed(column, cell)
        if column.type == "time" and not pa.types.is_string(kind):
            return pa.scalar(time_micros(text), kind)
        if pa.types.is_timestamp(kind):
            return pa.scalar(text).cast(pa.timestamp("us")).cast(kind)
        return pa.scalar(text).cast(kind)

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The table's columns of a batch that `select` gave, and `_cdc_unfit` if it has that."""
        places = [*range(self._width), *([batch.num_columns - 1] if unfit.is_last(batch.schema) else [])]
        return batch.select(places)

    def also(self, batch: pa.RecordBatch) -> list[pa.Array[Any]]:
        """What the expressions gave."""
        first = self._width + len(self._besides)
        return batch.columns[first : batch.num_columns - unfit.is_last(batch.schema)]


def _escaped(sql: str) -> str:
    return sql.replace("%", "%%")


def _name(column: Column) -> str:
    return _escaped(quote_identifier(column.name))


def _besides(column: Column) -> str:
    """What is selected besides a column whose value alone does not tell the place in the key's order; else empty."""
    if column.type in ("enum", "set"):
        # As text: how wide a number the server makes of it is its own affair.
        return f"CAST(CAST({_name(column)} AS UNSIGNED) AS CHAR)"
    if column.type == "text" and column.charset not in _UNICODE:
        return f"CAST({_name(column)} AS BINARY)"
    return ""


def _cell(column: Column, cell: str | bytes) -> Cell:
    """What is bound for a canonical text."""
    if isinstance(cell, bytes):
        return cell
    if column.type in INTEGERS or column.type == "year":
        return int(cell)
    if column.type == "bit":
        return int(cell, 16)
    return bytes.fromhex(cell) if column.type in ("binary", "varbinary") else cell


def _told(column: Column, text: str) -> Cell:
    """As `_cell`, of a text that a person wrote: members of ENUM and SET by their names."""
    if column.type == "enum":
        return column.members.index(text) + 1 if text else 0
    if column.type == "set":
        return sum(1 << column.members.index(member) for member in filter(None, text.split(",")))
    return _cell(column, text)


def _slot(column: Column) -> str:
    """Where a value is bound: cast, where MySQL would otherwise compare as floating point or as text."""
    match column.type:
        case "decimal":
            return f"CAST(%s AS DECIMAL({column.precision}, {column.scale}))"
        case "double" | "float":
            return "CAST(%s AS DOUBLE)"
        case "date":
            return "CAST(%s AS DATE)"
        case "datetime" | "timestamp":
            return f"CAST(%s AS DATETIME({column.scale}))"
        case "time":
            return f"CAST(%s AS TIME({column.scale}))"
        case _:
            return "%s"


def _beyond(column: Column, operator: str, cell: Cell) -> tuple[str, tuple[object, ...]]:
    if column.type != "enum" or not isinstance(cell, int) or len(column.members) > MEMBERS_LISTED:
        return _compared(column, operator, cell)
    members = range(len(column.members) + 1)  # 0: what was none of them
    own = cell + 1 if operator in (">", "<=") else cell
    rest = tuple(members[own:] if operator[0] == ">" else members[:own])
    return (f"{_name(column)} IN ({', '.join(['%s'] * len(rest))})", rest) if rest else ("FALSE", ())


def _equal(column: Column, cell: Cell) -> tuple[str, tuple[object, ...]]:
    """As `_compared`, of a value without what is selected besides."""
    return f"{_name(column)} = {_slot(column)}", (cell,)


def _compared(column: Column, operator: str, cell: Cell) -> tuple[str, tuple[object, ...]]:
    """A condition, and its arguments."""
    name = _name(column)
    if column.type == "text" and isinstance(cell, bytes):
        # A literal with this introducer has the bytes as they are, and gives way to the column's collation.
        return f"{name} {operator} _{column.charset} x'{cell.hex()}'", ()
    if column.type == "set":
        name = f"CAST({name} AS UNSIGNED)"
    return f"{name} {operator} {_slot(column)}", (cell,)


def _printed(column: Column, cell: Cell) -> str:
    """The canonical text of a bound's cell that is not of a binary type."""
    if column.type == "enum" and isinstance(cell, int):
        return column.members[cell - 1] if 0 < cell <= len(column.members) else ""
    if column.type == "set" and isinstance(cell, int):
        return ",".join(member for n, member in enumerate(column.members) if cell >> n & 1)
    if isinstance(cell, bytes):
        found = _native.decode_text(column.charset, cell)
        if found is None:
            raise TableStoppedError("a key cannot be decoded", where=f"column {column.name}")
        return found
    return str(cell)


def time_micros(text: str) -> int:
    """A TIME's canonical text in microseconds."""
    hours, minutes, seconds = text.lstrip("-").split(":")
    whole, fraction = seconds.split(".")
    micros = ((int(hours) * 60 + int(minutes)) * 60 + int(whole)) * 1_000_000 + int(fraction)
    return -micros if text.startswith("-") else micros


def _next(value: pa.Scalar[Any]) -> Any:
    """The least value of a type that is greater; None if there is none."""
    kind, plain = value.type, value.as_py()
    if isinstance(plain, bool):
        return None if plain else True
    if isinstance(plain, int):
        return plain + 1 if plain < 2 ** (kind.bit_width - 1) - 1 else None
    if isinstance(plain, float):
        return math.nextafter(plain, math.inf) if kind == pa.float64() else _next_float(plain)
    if isinstance(plain, str):
        return plain + "\0"
    if isinstance(plain, bytes):
        return plain + b"\0"
    if isinstance(plain, Decimal):
        with localcontext(prec=80):
            above = plain + Decimal(1).scaleb(-kind.scale)
        return above if len(above.as_tuple().digits) <= kind.precision else None
    step = datetime.timedelta(microseconds=1) if isinstance(plain, datetime.datetime) else datetime.timedelta(days=1)
    try:
        return plain + step
    except OverflowError:
        return None


def _next_float(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))
