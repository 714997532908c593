"""A table's columns, and the one place that says which Arrow type each MySQL type becomes. Pure.

The same `Column` is built from `information_schema` (a snapshot) and from a TABLE_MAP event (the stream), so that comparing two
schemas says whether the table changed, and a row read either way has the same Arrow types.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa

from cdc.errors import TableStoppedError

CHARSETS = frozenset({"utf8mb4", "utf8mb3", "ascii"})
"""Character sets whose bytes are UTF-8 already."""

_INTEGERS: dict[str, tuple[pa.DataType, pa.DataType]] = {
    "tinyint": (pa.int8(), pa.int16()),
    "smallint": (pa.int16(), pa.int32()),
    "mediumint": (pa.int32(), pa.int32()),
    "int": (pa.int32(), pa.int64()),
    "bigint": (pa.int64(), pa.decimal128(20, 0)),
}


@dataclass(frozen=True)
class Column:
    """One column of the source.

    `type` is MySQL's name of the base type in lower case, one for types that the lake does not tell apart: `char`, `varchar` and
    the TEXTs are `text`; VARBINARY and the BLOBs are `varbinary`; BINARY(n) stays `binary` (it is padded with zero bytes to `length`);
    INTEGER is `int`. Types that are not read yet keep their own name.
    """

    name: str
    type: str
    unsigned: bool = False
    length: int = 0
    """BINARY: bytes."""
    precision: int = 0
    """DECIMAL: digits."""
    scale: int = 0
    """DECIMAL: digits after the point; DATETIME, TIMESTAMP, TIME: digits of the fraction of a second."""
    charset: str = ""
    """Texts and ENUM: the server's name of the character set."""
    members: tuple[str, ...] = ()
    """ENUM, SET: in order of their index."""

    def to_dict(self) -> dict[str, Any]:
        """Without what is at its default."""
        data = {k: getattr(self, k) for k in ("name", "type", "unsigned", "length", "precision", "scale", "charset")}
        data = {k: v for k, v in data.items() if v or k in ("name", "type")}
        return data | ({"members": list(self.members)} if self.members else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Column:
        """The column that `to_dict` was asked of."""
        return cls(**{**data, "members": tuple(data.get("members", ()))})

    def unsupported(self) -> str:
        """Why this column cannot be read yet; empty if it can."""
        if self.type in ("text", "enum") and self.charset not in CHARSETS:
            return f"column {self.name}: character set {self.charset or 'unknown'} is not read yet"
        if self.type == "decimal" and self.precision > 38:
            return f"column {self.name}: decimal({self.precision},{self.scale}) has more than 38 digits"
        if self.type not in _INTEGERS and self.type not in _OTHERS and self.type != "decimal":
            return f"column {self.name}: type {self.type} is not read yet"
        return ""

    @property
    def arrow_type(self) -> pa.DataType:
        """The type contract. Raises `TableStoppedError` for what cannot be read yet."""
        if why := self.unsupported():
            raise TableStoppedError(why, hint="exclude the table, or change the column's type")
        if self.type in _INTEGERS:
            return _INTEGERS[self.type][self.unsigned]
        if self.type == "decimal":
            return pa.decimal128(self.precision, self.scale)
        return _OTHERS[self.type]


_OTHERS: dict[str, pa.DataType] = {
    "double": pa.float64(),
    "text": pa.string(),
    "binary": pa.binary(),
    "varbinary": pa.binary(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "enum": pa.string(),
}


@dataclass(frozen=True)
class TableSchema:
    """The columns in the table's order, and the primary key's columns in the key's order (empty: no key)."""

    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For commit records."""
        return {
            "columns": [c.to_dict() for c in self.columns],
            "key": list(self.key),
            "overrides": dict(self.overrides),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableSchema:
        """The schema that `to_dict` was asked of."""
        return cls(tuple(Column.from_dict(c) for c in data["columns"]), tuple(data["key"]), dict(data["overrides"]))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over `to_dict`, 32 hex digits."""
        return hashlib.sha256(orjson.dumps(self.to_dict(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(c.name for c in self.columns)

    def arrow_type(self, column: Column) -> pa.DataType:
        """The column's type in the lake, its override applied."""
        override = self.overrides.get(column.name)
        if override is None:
            return column.arrow_type
        return pa.bool_() if override == "boolean" else pa.string()

    @cached_property
    def arrow(self) -> pa.Schema:
        """The lake's types, all nullable, without lakesync's own columns. Raises `TableStoppedError`."""
        return pa.schema([pa.field(c.name, self.arrow_type(c)) for c in self.columns])

    def with_overrides(self, overrides: Mapping[str, str]) -> TableSchema:
        """This schema, with the overrides of the pipeline file."""
        return TableSchema(self.columns, self.key, dict(overrides))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableSchema) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.hash)
