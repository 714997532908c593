"""Table maps and row images, on mysql-replication's event classes: what a TABLE_MAP event says of a table, and rows as cells.

mysql-replication frames the events (post-headers, bitmaps, NULLs, before and after images, optional metadata). Cells are read here,
since it gives None for zero dates, fails on dates such as 2024-02-31, takes unknown character sets for UTF-8, drops ENUM members that it
cannot decode, and cuts BINARY short. What it cannot frame without a word is refused before it is asked: column types that it does
not know (it would read their metadata as the next column's), and partial JSON.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from pymysql.protocol import MysqlPacket
from pymysqlreplication.constants import CHARSET, FIELD_TYPE
from pymysqlreplication.packet import BinLogPacketWrapper
from pymysqlreplication.row_event import DeleteRowsEvent, TableMapEvent, UpdateRowsEvent, WriteRowsEvent

from cdc.epoch import Op
from cdc.errors import BinlogError, TableStoppedError
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from tests.reference import values
from tests.reference.events import HEADER, TableMap, Type

Cells = list[object]
"""A row: a cell a column, as in `values.py`."""
_FRAMING = (AssertionError, struct.error, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What mysql-replication raises for bytes that are not as it thinks."""
_SIMPLE = {
    FIELD_TYPE.TINY: "tinyint",
    FIELD_TYPE.SHORT: "smallint",
    FIELD_TYPE.INT24: "mediumint",
    FIELD_TYPE.LONG: "int",
    FIELD_TYPE.LONGLONG: "bigint",
    FIELD_TYPE.FLOAT: "float",
    FIELD_TYPE.DOUBLE: "double",
    FIELD_TYPE.DATE: "date",
    FIELD_TYPE.YEAR: "year",
    FIELD_TYPE.JSON: "json",
    FIELD_TYPE.GEOMETRY: "geometry",
}
_FRACTIONAL = {
    FIELD_TYPE.DATETIME2: "datetime",
    FIELD_TYPE.TIMESTAMP2: "timestamp",
    FIELD_TYPE.TIME2: "time",
}
_TEXTS = (FIELD_TYPE.VARCHAR, FIELD_TYPE.VAR_STRING, FIELD_TYPE.STRING, FIELD_TYPE.BLOB)
_KNOWN = frozenset({*_SIMPLE, *_FRACTIONAL, *_TEXTS, FIELD_TYPE.NEWDECIMAL, FIELD_TYPE.BIT})
"""Column types as they stand in a TABLE_MAP's list, of which mysql-replication reads the metadata. ENUM and SET stand as STRING."""


class _Server:
    """What mysql-replication asks of a connection."""

    charset = "utf8mb4"

    @staticmethod
    def _get_dbms() -> str:
        return "mysql"


_OPTIONS: dict[str, Any] = {
    "mysql_version": (8, 0, 0),
    "only_tables": None,
    "ignored_tables": None,
    "only_schemas": None,
    "ignored_schemas": None,
    "freeze_schema": False,
    "ignore_decode_errors": False,
    "verify_checksum": False,
    "optional_meta_data": True,
    "enable_logging": False,
}


def _wrap(event: bytes, checksums: bool) -> tuple[Any, int]:
    """mysql-replication's packet around an event, its header read, and the size of the event's body."""
    # It takes the last four bytes of a TABLE_MAP for a checksum, whether there is one or not.
    data = b"\0" + event + (b"" if checksums else bytes(4))
    packet = BinLogPacketWrapper(
        MysqlPacket(data, "utf-8"),
        {},
        _Server,
        use_checksum=checksums,
        allowed_events=(),
        **_OPTIONS,
    )
    return packet, len(event) - HEADER - (4 if checksums else 0)


@dataclass(frozen=True)
class Mapped:
    """A table as one TABLE_MAP event describes it. `source` is mysql-replication's; it and `columns` are None if the table is not
    captured."""

    table: TableName
    columns: tuple[Column, ...] | None = None
    source: Any = None


def read_table_map(event: bytes, checksums: bool, head: TableMap) -> tuple[Mapped, TableSchema]:
    """A captured table's map, and its schema without overrides.

    Raises `TableStoppedError` for a table that cannot be read as it is described.
    """
    table = TableName(head.schema, head.name)
    if unknown := sorted(set(head.types) - _KNOWN):
        raise TableStoppedError(
            f"columns of types that are not read yet (wire types {', '.join(map(str, unknown))})",
            where=str(table),
            hint="exclude the table, or change the columns' types and `lakesync resync` the table",
        )
    try:
        packet, size = _wrap(event, checksums)
        found = TableMapEvent(packet, size, {}, _Server, use_checksum=checksums, **_OPTIONS)
        named = bool(found.optional_metadata.column_name_list)
        schema = _schema(found) if named else TableSchema(())
    except _FRAMING as error:
        raise BinlogError(f"a TABLE_MAP event cannot be read ({type(error).__name__})", where=str(table)) from None
    if not named:
        raise TableStoppedError(
            "the binary log does not name the table's columns (binlog_row_metadata=MINIMAL)",
            where=str(table),
            hint=f"SET GLOBAL binlog_row_metadata = FULL, then `lakesync resync {table}`",
        )
    return Mapped(table, schema.columns, found.table_obj), schema


def _schema(found: Any) -> TableSchema:
    charsets = iter(found.optional_metadata.charset_collation_list or ())
    enum_charsets = iter(found.optional_metadata.enum_and_set_collation_list or ())
    columns = []
    for name, wire in zip(found.optional_metadata.column_name_list, found.columns, strict=True):
        charset = ""
        if wire.type in _TEXTS:
            charset = _charset(next(charsets))
        elif wire.type in (FIELD_TYPE.ENUM, FIELD_TYPE.SET):
            charset = _charset(next(enum_charsets))
        columns.append(_column(name, wire, charset))
    metadata = found.optional_metadata
    key = metadata.simple_primary_key_list or list(metadata.primary_keys_with_prefix)
    return TableSchema(tuple(columns), tuple(columns[i].name for i in key))


def _charset(collation: int) -> str:
    found = CHARSET.charset_by_id(collation)
    return str(found.name) if found else f"of collation {collation}"


def _column(name: str, wire: Any, charset: str) -> Column:
    """The same as `cdc.source.catalogue.make_column` makes of information_schema."""
    if wire.type in _SIMPLE:
        return Column(name, _SIMPLE[wire.type], unsigned=wire.unsigned and wire.type != FIELD_TYPE.YEAR)
    if wire.type in _FRACTIONAL:
        return Column(name, _FRACTIONAL[wire.type], scale=wire.fsp)
    if wire.type == FIELD_TYPE.NEWDECIMAL:
        return Column(name, "decimal", unsigned=wire.unsigned, precision=wire.precision, scale=wire.decimals)
    if wire.type == FIELD_TYPE.ENUM:
        return Column(name, "enum", charset=charset, members=tuple(wire.enum_values[1:]))
    if wire.type == FIELD_TYPE.SET:
        return Column(name, "set", charset=charset, members=tuple(wire.set_values))
    if wire.type == FIELD_TYPE.BIT:
        return Column(name, "bit", length=wire.bits)
    if charset != "binary":
        return Column(name, "text", charset=charset)
    if wire.type == FIELD_TYPE.STRING:
        return Column(name, "binary", length=wire.max_length)
    return Column(name, "varbinary")


class Row(NamedTuple):
    """One row of an event: INSERT has only `after`, DELETE only `before`."""

    op: int
    before: Cells | None
    after: Cells | None


class _Exact:
    """Replaces how mysql-replication's row events read a row's columns."""

    packet: Any
    columns: Sequence[Any]
    mapped: Mapped

    def _read_column_data(self, *_: object) -> Cells:
        columns = self.mapped.columns or ()
        nulls = int.from_bytes(self.packet.read((len(columns) + 7) // 8), "little")
        return [
            None if nulls >> i & 1 else _READERS[wire.type](self.packet, wire, column)
            for i, (wire, column) in enumerate(zip(self.columns, columns, strict=True))
        ]

    def _get_none_sources(self, *_: object) -> dict[str, str]:
        return {}


class _Write(_Exact, WriteRowsEvent):  # type: ignore[misc]
    pass


class _Update(_Exact, UpdateRowsEvent):  # type: ignore[misc]
    pass


class _Delete(_Exact, DeleteRowsEvent):  # type: ignore[misc]
    pass


_EVENTS: Mapping[int, Any] = {
    Type.WRITE_ROWS_V1: _Write,
    Type.WRITE_ROWS: _Write,
    Type.UPDATE_ROWS_V1: _Update,
    Type.UPDATE_ROWS: _Update,
    Type.DELETE_ROWS_V1: _Delete,
    Type.DELETE_ROWS: _Delete,
}


def read_rows(event: bytes, checksums: bool, mapped: Mapped, table_id: int, kind: int) -> list[Row]:
    """The rows of an event of a captured table.

    Raises `TableStoppedError` for an incomplete image, a JSON difference or a value that does not fit; `BinlogError` for bytes that
    are not as the TABLE_MAP says.
    """
    if kind == Type.PARTIAL_UPDATE_ROWS:
        raise TableStoppedError(
            "the binary log has differences of JSON values in place of the values (binlog_row_value_options=PARTIAL_JSON)",
            hint="SET GLOBAL binlog_row_value_options = '', and in sessions that set it; then resync the table",
        )
    assert mapped.columns is not None
    count = len(mapped.columns)
    try:
        packet, size = _wrap(event, checksums)
        found = _EVENTS[kind](packet, size, {table_id: mapped.source}, _Server, use_checksum=checksums, **_OPTIONS)
        found.mapped = mapped
        if found.number_of_columns != count:
            raise BinlogError(f"a row event has {found.number_of_columns} columns, its TABLE_MAP {count}")
        for bitmap in (found.columns_present_bitmap, getattr(found, "columns_present_bitmap2", None)):
            if bitmap is not None and int.from_bytes(bitmap, "little") & ((1 << count) - 1) != (1 << count) - 1:
                raise TableStoppedError(
                    "the binary log has row images without all columns (binlog_row_image=MINIMAL or NOBLOB)",
                    hint="SET GLOBAL binlog_row_image = FULL, and in sessions that set it; then resync the table",
                )
        rows = found.rows
        if packet.read_bytes != size:
            raise BinlogError("a row event does not end where its last row does")
    except _FRAMING as error:
        raise BinlogError(f"a row event cannot be read ({type(error).__name__})", where=str(mapped.table)) from None
    if isinstance(found, _Update):
        return [Row(Op.UPDATE, row["before_values"], row["after_values"]) for row in rows]
    if isinstance(found, _Write):
        return [Row(Op.INSERT, None, row["values"]) for row in rows]
    return [Row(Op.DELETE, row["values"], None) for row in rows]


# cells


def _integer(size: int) -> Callable[[Any, Any, Column], object]:
    def read(packet: Any, _: Any, column: Column) -> object:
        return int.from_bytes(packet.read(size), "little", signed=not column.unsigned)

    return read


def _double(packet: Any, *_: object) -> object:
    return struct.unpack("<d", packet.read(8))[0]


_DIGIT_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
"""How many bytes so many decimal digits take."""


def _decimal(packet: Any, wire: Any, column: Column) -> object:
    # Groups of nine digits in four bytes, big-endian, the short groups outermost. The first bit is inverted, and all
    # bits of a negative number.
    whole, fraction = wire.precision - wire.decimals, wire.decimals
    groups = [whole % 9, *[9] * (whole // 9), *[9] * (fraction // 9), fraction % 9]
    raw = bytearray(packet.read(sum(_DIGIT_BYTES[n] for n in groups)))
    negative = not raw[0] & 0x80
    raw[0] ^= 0x80
    if negative:
        raw = bytearray(b ^ 0xFF for b in raw)
    digits, at = "", 0
    for n in groups:
        part = int.from_bytes(raw[at : at + _DIGIT_BYTES[n]], "big")
        at += _DIGIT_BYTES[n]
        if part >= 10**n:
            raise values.stopped(column, "not a decimal number")
        digits += f"{part:0{n}d}" if n else ""
    return Decimal((int(negative), tuple(map(int, digits or "0")), -fraction))


def _bytes(packet: Any, wire: Any) -> bytes:
    size = wire.length_size if wire.type == FIELD_TYPE.BLOB else 2 if wire.max_length > 255 else 1
    found: bytes = packet.read(int.from_bytes(packet.read(size), "little"))
    return found


def _text(packet: Any, wire: Any, column: Column) -> object:
    found = _bytes(packet, wire)
    return values.decode_text(column, found) if column.type == "text" else found


def _enum(packet: Any, wire: Any, column: Column) -> object:
    return values.enum_cell(column, int.from_bytes(packet.read(wire.size), "little"))


def _date(packet: Any, _: Any, column: Column) -> object:
    bits = int.from_bytes(packet.read(3), "little")
    return values.date_cell(column, bits >> 9, bits >> 5 & 15, bits & 31)


def _fraction(packet: Any, wire: Any) -> int:
    """Microseconds. As many bytes as pairs of digits; an odd number of digits is stored as the next even one."""
    size = (wire.fsp + 1) // 2
    return int.from_bytes(packet.read(size), "big") * 100 ** (3 - size) if size else 0


def _datetime(packet: Any, wire: Any, column: Column) -> object:
    # From the highest bit: sign 1, year * 13 + month 17, day 5, hour 5, minute 6, second 6.
    bits = int.from_bytes(packet.read(5), "big")
    micros = _fraction(packet, wire)
    if not bits >> 39:
        raise values.stopped(column, "a negative date")
    months = bits >> 22 & 0x1FFFF
    day, hour, minute, second = bits >> 17 & 31, bits >> 12 & 31, bits >> 6 & 63, bits & 63
    return values.datetime_cell(column, months // 13, months % 13, day, hour, minute, second, micros)


def _timestamp(packet: Any, wire: Any, column: Column) -> object:
    seconds = int.from_bytes(packet.read(4), "big")
    return values.timestamp_cell(column, seconds, _fraction(packet, wire))


_READERS: Mapping[int, Callable[[Any, Any, Column], object]] = {
    FIELD_TYPE.TINY: _integer(1),
    FIELD_TYPE.SHORT: _integer(2),
    FIELD_TYPE.INT24: _integer(3),
    FIELD_TYPE.LONG: _integer(4),
    FIELD_TYPE.LONGLONG: _integer(8),
    FIELD_TYPE.DOUBLE: _double,
    FIELD_TYPE.NEWDECIMAL: _decimal,
    FIELD_TYPE.VARCHAR: _text,
    FIELD_TYPE.VAR_STRING: _text,
    FIELD_TYPE.STRING: _text,
    FIELD_TYPE.BLOB: _text,
    FIELD_TYPE.ENUM: _enum,
    FIELD_TYPE.DATE: _date,
    FIELD_TYPE.DATETIME2: _datetime,
    FIELD_TYPE.TIMESTAMP2: _timestamp,
}
