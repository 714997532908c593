"""A table's columns, and the one place that says which Arrow type each MySQL type becomes. Pure.

The same `Column` is built from `information_schema` (a snapshot) and from a TABLE_MAP event (the stream), so that comparing two
schemas says whether the table changed, and a row read either way has the same Arrow types.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa

from cdc.errors import TableStoppedError

UTF8 = frozenset({"utf8mb4", "utf8mb3", "ascii"})
"""Character sets whose bytes are UTF-8 already."""
# fmt: off
CHARSETS = UTF8 | {
    "armscii8", "big5", "cp1250", "cp1251", "cp1256", "cp1257", "cp850", "cp852", "cp866", "cp932", "dec8", "eucjpms", "euckr",
    "gb18030", "gb2312", "gbk", "geostd8", "greek", "hebrew", "hp8", "keybcs2", "koi8r", "koi8u", "latin1", "latin2", "latin5",
    "latin7", "macce", "macroman", "sjis", "swe7", "tis620", "ucs2", "ujis", "utf16", "utf16le", "utf32",
}
# fmt: on
"""Every character set of texts that MySQL and MariaDB have."""

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
    INTEGER is `int`; POINT and its like are `geometry`. MariaDB has `uuid`, `inet4` and `inet6` besides, and its JSON is a text. A
    type that cannot be read keeps its own name.
    """

    name: str
    type: str
    unsigned: bool = False
    """Integers, DECIMAL, FLOAT, DOUBLE."""
    length: int = 0
    """BINARY: bytes; BIT: bits."""
    precision: int = 0
    """DECIMAL: digits."""
    scale: int = 0
    """DECIMAL: digits after the point; DATETIME, TIMESTAMP, TIME: digits of the fraction of a second."""
    charset: str = ""
    """Texts, ENUM, SET: the server's name of the character set."""
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
        """Why this column cannot be read; empty if it can."""
        if self.type in ("text", "enum", "set") and self.charset not in CHARSETS:
            return f"column {self.name}: character set {self.charset or 'unknown'} is not known"
        if self.type not in TYPES:
            return f"column {self.name}: type {self.type} is not known"
        return ""

    @property
    def arrow_type(self) -> pa.DataType:
        """The type contract. Raises `TableStoppedError` for what cannot be read."""
        if why := self.unsupported():
            raise TableStoppedError(why, hint=_OUT)
        if self.type in _INTEGERS:
            return _INTEGERS[self.type][self.unsigned]
        if self.type == "decimal":
            # 38 digits are what Delta has.
            return pa.decimal128(self.precision, self.scale) if self.precision <= 38 else pa.string()
        if self.type == "bit":
            return pa.bool_() if self.length == 1 else pa.binary()
        return _OTHERS[self.type]


_OTHERS: dict[str, pa.DataType] = {
    "float": pa.float32(),
    "double": pa.float64(),
    "text": pa.string(),
    "binary": pa.binary(),
    "varbinary": pa.binary(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "time": pa.int64(),
    "year": pa.int16(),
    "enum": pa.string(),
    "set": pa.string(),
    "json": pa.string(),
    "geometry": pa.binary(),
    "vector": pa.list_(pa.float32()),
    "uuid": pa.string(),
    "inet4": pa.string(),
    "inet6": pa.string(),
}
TYPES = frozenset({*_INTEGERS, *_OTHERS, "decimal", "bit"})
"""Every `Column.type` that can be read."""
_OUT = "leave the column out (`exclude:`), or change its type"


@dataclass(frozen=True)
class TableSchema:
    """The columns that are kept, in the table's order, and the primary key's in the key's order (empty: no key)."""

    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Columns whose type is not their own, by name: `boolean` or `string`."""
    exclude: tuple[str, ...] = ()
    """Names that the pipeline file leaves out, sorted, whether the table has them or not; never key columns."""

    def to_dict(self) -> dict[str, Any]:
        """For commit records. `exclude` only where there is one."""
        return {
            "columns": [c.to_dict() for c in self.columns],
            "key": list(self.key),
            "overrides": dict(self.overrides),
        } | ({"exclude": list(self.exclude)} if self.exclude else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableSchema:
        """The schema that `to_dict` was asked of."""
        columns = tuple(Column.from_dict(c) for c in data["columns"])
        return cls(columns, tuple(data["key"]), dict(data["overrides"]), tuple(data.get("exclude", ())))

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

    def plans(self) -> list[dict[str, Any]]:
        """What the native decoder is told of each column: `Column.to_dict`, and

        - `output`: `native` (the type contract), `string` (the canonical text) or `boolean`;
        - `key`: whether it belongs to the primary key.
        """
        return [
            column.to_dict() | {"output": self.overrides.get(column.name, "native"), "key": column.name in self.key}
            for column in self.columns
        ]

    def with_overrides(self, overrides: Mapping[str, str]) -> TableSchema:
        """This schema, with the overrides of the pipeline file."""
        return replace(self, overrides=dict(overrides))

    def without(self, exclude: Iterable[str]) -> TableSchema:
        """This schema less these columns; names that it does not have are remembered too. Raises `TableStoppedError` for a key's."""
        out = {*exclude, *self.exclude}
        if kept := [name for name in self.key if name in out]:
            raise TableStoppedError(
                f"exclude: names column {kept[0]}, which is in the primary key", hint="remove it from exclude:"
            )
        return replace(self, columns=tuple(c for c in self.columns if c.name not in out), exclude=tuple(sorted(out)))

    def check(self) -> None:
        """Raise `TableStoppedError` for the first column that cannot be read as the lake should have it."""
        known = set(self.names)
        for name in self.overrides:
            if name not in known:
                raise TableStoppedError(
                    f"types: names column {name}, which does not exist", hint="correct the pipeline file"
                )
        if not self.columns:
            raise TableStoppedError("no column can be read")
        for column in self.columns:
            if self.overrides.get(column.name) == "boolean" and column.type != "tinyint":
                raise TableStoppedError(
                    f"column {column.name}: {column.type} cannot be read as boolean", hint="only TINYINT can"
                )
            if why := column.unsupported():
                raise TableStoppedError(why, hint=_OUT)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableSchema) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.hash)
