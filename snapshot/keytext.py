"""Keys as people write them at the command line: one text a key column, made canonical. Pure."""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation

import orjson

from cdc._native import inet6_text
from cdc.errors import ConfigError
from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import Column
from cdc.source import canonical
from snapshot.chunks import INTEGERS

_EXACT = Context(prec=65, traps=[Inexact, InvalidOperation])
_TIME = re.compile(r"(-?)(\d{1,3}):(\d{2}):(\d{2})(?:\.(\d{1,6}))?")


def parse_key(table: TableName, columns: Sequence[Column], text: str | int | Sequence[object]) -> Key:
    """A key of these columns from its text: the value itself, or several between commas, or a JSON array. Raises `ConfigError`."""
    cells: Sequence[object]
    if not isinstance(text, str):
        cells = [text] if isinstance(text, int) else text
    elif text.startswith("["):
        try:
            cells = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise _refused(table, columns, "not a JSON array") from None
    else:
        cells = [text] if len(columns) == 1 else text.split(",")
    if len(cells) != len(columns):
        raise _refused(table, columns, f"the key has {len(columns)} columns, {len(cells)} values are given")
    found: list[int | str] = []
    for column, cell in zip(columns, cells, strict=True):
        try:
            found.append(_cell(column, str(cell)))
        except (LookupError, StopIteration, ValueError, DecimalException, OverflowError):
            raise _refused(table, columns, f"not a value of column {column.name}, which is {column.type}") from None
    return tuple(found)


def _refused(table: TableName, columns: Sequence[Column], why: str) -> ConfigError:
    names = ",".join(c.name for c in columns)
    several = f"with commas between, as {names}, or as a JSON array"
    only = columns[0]
    hint = (
        "bytes in hexadecimal digits"
        if only.type in ("binary", "varbinary")
        else f"one value of {only.name}, as the key is that column"
    )
    return ConfigError(
        f"not a key of the table: {why}", where=str(table), hint=f"write {several if len(columns) > 1 else hint}"
    )


def _cell(column: Column, text: str) -> int | str:
    if column.type == "text":
        return text
    if column.type in ("enum", "set"):
        return next(found for one in (text, text.strip()) if (found := _chosen(column, one)) is not None)
    return _plain(column, text.strip())


def _chosen(column: Column, text: str) -> str | None:
    """A member of an ENUM, or a SET's in their order; None for what is neither."""
    if column.type == "enum":
        return text if not text or text in column.members else None
    chosen = set(filter(None, text.split(",")))
    return ",".join(m for m in column.members if m in chosen) if chosen <= set(column.members) else None


def _plain(column: Column, text: str) -> int | str:
    if column.type in INTEGERS or column.type == "year":
        return int(text)
    match column.type:
        case "bit" if column.length == 1:
            return {"0": "0", "1": "1"}[str(int(text, 0))]
        case "bit":
            return int(text, 0).to_bytes((column.length + 7) // 8).hex().upper()
        case "decimal":
            if not (value := Decimal(text)).is_finite():
                raise ValueError
            # A DECIMAL has up to 65 digits: Python's own limit is 28.
            return canonical.decimal_text(value.quantize(Decimal(1).scaleb(-column.scale), context=_EXACT))
        case "float" | "double":
            return canonical.double_text(float(text))
        case "date":
            return date.fromisoformat(text).isoformat()
        case "datetime" | "timestamp":
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                moment = moment.astimezone(UTC)
            return moment.strftime("%Y-%m-%d %H:%M:%S.%f").rjust(26, "0")
        case "time":
            return _time(text)
        case "binary" | "varbinary":
            raw = bytes.fromhex(text.removeprefix("0x"))
            return (raw.ljust(column.length, b"\0") if column.type == "binary" else raw).hex().upper()
        case "uuid":
            return str(uuid.UUID(text))
        case "inet4":
            return str(ipaddress.IPv4Address(text))
        case "inet6":
            return inet6_text(ipaddress.IPv6Address(text).packed)
        case _:
            return text


def _time(text: str) -> str:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError
    sign, hours, minutes, seconds, fraction = match.groups()
    micros = (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 1_000_000 + int((fraction or "0").ljust(6, "0"))
    return canonical.time_text(-micros if sign else micros)
