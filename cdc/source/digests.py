"""One digest for one row, from the server by an expression and from Arrow by the native module, bit for bit the same.

So that a whole table can be compared without its rows leaving the server: it sums the digests of a chunk's rows, and so do we. A digest is the
first 16 bytes of the SHA-256 over the row's fields, laid out one after the other. (MySQL 9.6 and later have no MD5 of their own any more; SHA-256 is
quicker on the processors that have it.) Each field says where it ends, and NULL is unlike every value, so two rows are laid out alike only
if they are alike:

| field | NULL | else |
| --- | --- | --- |
| numbers, BIT, dates and times, UUID, INET4, INET6 | `-,` | the canonical text, `,` |
| texts in UTF-8, ENUM and SET of them, binaries, geometry | `-` | length in bytes, `:`, the bytes themselves; of more than 1024 their SHA-256 in hexadecimal digits |
| texts of other character sets, JSON, vectors | `-` | SHA-256 of the canonical text, in hexadecimal digits |

So no field is longer than about a kilobyte, and no row is too long for `max_allowed_packet`. On MariaDB the canonical texts of doubles are made another
way (`cdc.source.canonical`), the layout is the same. Should the server have no digest of a row nonetheless, the sums lack it while the row
is counted: the chunk is unlike, never silently alike.

Digests need the session of `cdc.source.connection.connect`: UTC, no sql_mode, utf8mb4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cdc import _native
from cdc.names import quote_identifier
from cdc.schema import Column
from cdc.source import canonical

SIZE = 16
"""Bytes of a digest."""


@dataclass(frozen=True)
class Hints:
    """What the server says of a table's columns (`catalogue.hints`), by name. The same digests take it less time with them. Where they are not
    true (any more), rows are unlike, never silently alike."""

    required: frozenset[str] = frozenset()
    """Never NULL."""
    short: frozenset[str] = frozenset()
    """Texts and binaries that have no room for long values."""


NO_HINTS = Hints()
BUCKET_BITS = 10
LONG = 1024
"""Bytes; longer values enter by their own digest."""
_EVERYTHING = 18446744073709551615
_UTF8 = frozenset({"utf8mb4", "utf8mb3"})
"""Character sets whose bytes the server hands out as they are; ASCII's it looks at."""
_BYTES = frozenset({"binary", "varbinary", "geometry"})


def digest_expression(
    columns: Sequence[Column],
    *,
    mariadb: bool = False,
    fixed: Mapping[str, str] | None = None,
    hints: Hints = NO_HINTS,
) -> str:
    """A SELECT expression that gives a row's digest, 16 bytes, over these columns in this order. `fixed`: texts of columns that the server's
    table does not have, by name, the same in every row: a shard's."""
    return f"UNHEX(LEFT(SHA2({_layout(columns, mariadb, fixed or {}, hints)}, 256), {2 * SIZE}))"


def bucket_expression(
    columns: Sequence[Column],
    *,
    mariadb: bool = False,
    bits: int = BUCKET_BITS,
    fixed: Mapping[str, str] | None = None,
    hints: Hints = NO_HINTS,
) -> str:
    """A SELECT expression that gives a row's bucket by these columns, those of its key: 0 to 2^`bits` - 1."""
    return f"(CRC32({_layout(columns, mariadb, fixed or {}, hints)}) & {(1 << bits) - 1})"


def sums_expression(digest: str) -> list[str]:
    """Three SELECT expressions: how many rows, and the sums of the first and the last eight bytes of their digests, as unsigned big-endian
    numbers. They are 0 of no rows. `digest` is evaluated twice: see `checksum`."""
    halves = (f"LEFT({digest}, 8)", f"RIGHT({digest}, 8)")
    return ["COUNT(*)", *(f"COALESCE(SUM(CAST(CONV(HEX({half}), 16, 10) AS UNSIGNED)), 0)" for half in halves)]


def checksum(digest: str, source: str, *, bucket: str = "") -> str:
    """The statement for `sums_expression` over the rows of `source`, what stands after FROM; with `bucket`, an expression, that first, and
    one row for each.

    Digests are computed once: a derived table with a LIMIT is never merged. It is held in memory, so read chunks, not tables."""
    rows = f"SELECT {digest} AS d{f', {bucket} AS b' if bucket else ''} FROM {source} LIMIT {_EVERYTHING}"
    columns = ", ".join((["b"] if bucket else []) + sums_expression("d"))
    return f"SELECT {columns} FROM ({rows}) AS x{' GROUP BY b' if bucket else ''}"


def digests(
    columns: Sequence[Column], batch: pa.RecordBatch, unfit: pa.Array[Any] | None = None
) -> pa.FixedSizeBinaryArray:
    """The digests of a batch's rows over these columns, found by name, in the lake's types; fixed_size_binary(16). `unfit`: the same rows'
    `_cdc_unfit`."""
    made: Any = _native.row_digests(_selected(columns, batch), _kinds(columns), _map(unfit))
    found: Any = pa.array(made)
    return found  # type: ignore[no-any-return]


def buckets(
    columns: Sequence[Column], batch: pa.RecordBatch, unfit: pa.Array[Any] | None = None, *, bits: int = BUCKET_BITS
) -> pa.UInt32Array:
    """The buckets of a batch's rows by these columns; uint32."""
    made: Any = _native.row_buckets(_selected(columns, batch), _kinds(columns), bits, _map(unfit))
    found: Any = pa.array(made)
    return found  # type: ignore[no-any-return]


def _map(unfit: Any) -> Any:
    return None if unfit is None or unfit.null_count == len(unfit) else unfit


def _selected(columns: Sequence[Column], batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([batch.column(c.name) for c in columns], [c.name for c in columns])


def _kinds(columns: Sequence[Column]) -> list[str]:
    return [_kind(c) for c in columns]


def _kind(column: Column) -> str:
    """How the native module lays a column out."""
    match column.type:
        case "text" | "enum" | "set":
            return "bytes" if column.charset in _UTF8 else "hashed"
        case "json" | "vector":
            return "hashed"
        case "time":
            return "time"
        case kind:
            return "hexed" if kind in _BYTES else "plain"


def _layout(columns: Sequence[Column], mariadb: bool, fixed: Mapping[str, str], hints: Hints) -> str:
    fields = [_constant(fixed[c.name]) if c.name in fixed else _field(c, mariadb, hints) for c in columns]
    # A binary that counts as much as a column does: so bytes stay as they are, and no two collations meet.
    return f"CONCAT(CAST('' AS BINARY), {', '.join(fields)})"


def _constant(text: str) -> str:
    value = text.encode()
    shown = hashlib.sha256(value).hexdigest().encode() if len(value) > LONG else value
    return f"X'{(b'%d:' % len(value) + shown).hex()}'"


def _field(column: Column, mariadb: bool, hints: Hints) -> str:
    """What CONCAT is given for a column: one expression or several."""
    name, required = quote_identifier(column.name), column.name in hints.required
    match _kind(column):
        case "bytes" | "hexed":
            short = column.name in hints.short
            shown = name if short else f"IF(LENGTH({name}) > {LONG}, SHA2({name}, 256), {name})"
            parts = f"LENGTH({name}), ':', {shown}"
            return parts if required else f"IFNULL(CONCAT({parts}), '-')"
        case "hashed":
            hashed = f"SHA2({canonical.expression(column, mariadb=mariadb)}, 256)"
            return hashed if required else f"IFNULL({hashed}, '-')"
        case _:
            plain = _plain(column, name, mariadb)
            return f"{plain}, ','" if required else f"IFNULL({plain}, '-'), ','"


def _plain(column: Column, name: str, mariadb: bool) -> str:
    """The canonical expression, or one that gives the same where it becomes a part of a text."""
    match column.type:
        case "date":
            return name
        case "datetime" | "timestamp" if column.scale == 6:
            return name
        case "time":
            return f"CAST({name} AS TIME(6))"
        case "float" | "double" if mariadb:
            return canonical.expression(column, mariadb=True)
        case "float" | "double" | "uuid" | "inet4" | "inet6" | "datetime" | "timestamp":
            return canonical.expression(column)
        case "bit" if column.length > 1:
            return canonical.expression(column)
        case _:
            return f"{name} + 0"
