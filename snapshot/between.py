"""A value about half-way between two values of a key column: a guess at where rows may be cut, and never more than that. Pure."""

from __future__ import annotations

import bisect
import datetime
import ipaddress
import itertools
import math
import struct
import unicodedata
from decimal import ROUND_DOWN, Decimal, InvalidOperation, localcontext

from cdc import _native
from cdc.schema import Column
from snapshot.chunks import INTEGERS, Cell, time_micros

_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LETTERS_BY_CODE = "".join(sorted(_LETTERS + _LETTERS.upper()[10:]))
_PLACES = 6
"""Characters, or bytes, after the common beginning that are looked at."""
_MULTI_BYTE = frozenset({"big5", "cp932", "eucjpms", "euckr", "gb18030", "gb2312", "gbk", "sjis", "ujis"})
_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 (as in the database)
_SURROGATES = range(0xD800, 0xE000)


def between(column: Column, low: Cell, high: Cell, *, by_code: bool = False, attempt: int = 0) -> Cell | None:
    """A value after `low` and not after `high`, if the server orders values as is assumed here; None if there seems to be none.

    `by_code`: texts are compared by their characters' codes, and not as people do. Each `attempt`, counted from 0, at what has more than
    one middle is another: floating point numbers are halved by value and by magnitude in turn; texts as `by_code` says, then in the
    other way, then at letters all over the alphabet.
    """
    kind = column.type
    if isinstance(low, int) and isinstance(high, int):
        return low + (high - low + 1) // 2 if high - low > 1 else None
    if kind == "text" and isinstance(low, bytes) and isinstance(high, bytes):
        return _encoded(column.charset, low, high, by_code, attempt)
    if isinstance(low, bytes) and isinstance(high, bytes):
        return _bytes(low, high)
    if not isinstance(low, str) or not isinstance(high, str) or kind in INTEGERS:
        return None
    try:
        return _of_text(column, low, high, by_code, attempt)
    except (ValueError, OverflowError, InvalidOperation):
        return None


def _of_text(column: Column, low: str, high: str, by_code: bool, attempt: int) -> str | None:
    match column.type:
        case "decimal":
            return _decimal(low, high, column.scale)
        case "double" | "float":
            return _double(float(low), float(high), by_magnitude=attempt % 2 == 1)
        case "date":
            first, last = datetime.date.fromisoformat(low).toordinal(), datetime.date.fromisoformat(high).toordinal()
            return datetime.date.fromordinal(_middle(first, last)).isoformat() if last - first > 1 else None
        case "datetime" | "timestamp":
            begin, end = _micros(low), _micros(high)
            step = 10 ** (6 - column.scale)
            middle = _middle(begin, end) // step * step
            found = _EPOCH + datetime.timedelta(microseconds=middle)
            return f"{found:%Y-%m-%d %H:%M:%S.%f}".rjust(26, "0") if begin < middle else None
        case "time":
            return _time(low, high, 10 ** (6 - column.scale))
        case "inet4" | "inet6":
            a, b = (int(ipaddress.ip_address(address)) for address in (low, high))
            of = ipaddress.IPv4Address if column.type == "inet4" else ipaddress.IPv6Address
            return str(of(_middle(a, b))) if b - a > 1 else None
        case "uuid":
            a, b = (int(uuid.replace("-", ""), 16) for uuid in (low, high))
            digits = f"{_middle(min(a, b), max(a, b)):032x}"
            return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        case "text":
            return _text(low, high, by_code, attempt)
        case _:
            return None


def _middle(low: int, high: int) -> int:
    return low + (high - low + 1) // 2


def _decimal(low: str, high: str, scale: int) -> str | None:
    with localcontext(prec=80):
        a, b = Decimal(low), Decimal(high)
        middle = ((a + b) / 2).quantize(Decimal(1).scaleb(-scale), rounding=ROUND_DOWN)
        return f"{middle:f}" if a < middle <= b else None


def _double(low: float, high: float, *, by_magnitude: bool) -> str | None:
    middle = _from_order(_middle(_order(low), _order(high))) if by_magnitude else low / 2 + high / 2
    return repr(middle) if low < middle <= high and math.isfinite(middle) else None


def _order(value: float) -> int:
    """Whole numbers in the order of the doubles."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits) if bits >= 0 else -(int(bits) & 0x7FFF_FFFF_FFFF_FFFF)


def _from_order(number: int) -> float:
    (value,) = struct.unpack("<d", struct.pack("<q", abs(number)))
    return float(value) if number >= 0 else -float(value)


def _micros(text: str) -> int:
    return (datetime.datetime.fromisoformat(text) - _EPOCH) // datetime.timedelta(microseconds=1)


def _time(low: str, high: str, step: int) -> str | None:
    begin, end = time_micros(low), time_micros(high)
    middle = _middle(begin, end) // step * step
    if not begin < middle:
        return None
    seconds, fraction = divmod(abs(middle), 1_000_000)
    sign = "-" if middle < 0 else ""
    return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"


def _bytes(low: bytes, high: bytes) -> bytes | None:
    same = _common(low, high)
    # One place more than is different at least, so that something lies between.
    a, b = (int.from_bytes(value[same : same + _PLACES + 2].ljust(_PLACES + 2, b"\0")) for value in (low, high))
    middle = _middle(a, b)
    return high[:same] + middle.to_bytes(_PLACES + 2).rstrip(b"\0") if a < middle <= b else None


def _common(low: str | bytes, high: str | bytes) -> int:
    return next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _encoded(charset: str, low: bytes, high: bytes, by_code: bool, attempt: int) -> bytes | None:
    same = _common(low, high)
    first, last = low[same:], high[same:]
    if attempt > 1 or (first.isascii() and last.isascii()):
        # What they have in common is taken over as it is.
        text = _text(first.decode("ascii", "replace"), last.decode("ascii", "replace"), by_code, attempt)
        found = None if text is None else low[:same] + text.encode("ascii", "ignore")
    else:
        found = None if charset in _MULTI_BYTE else _bytes(low, high)
    return found if found is not None and _native.decode_text(charset, found) is not None else None


def _text(low: str, high: str, by_code: bool, attempt: int) -> str | None:
    if attempt > 1:
        return low[: _common(low, high)] + _LETTERS[int(_scattered(attempt - 1) * len(_LETTERS))]
    by_code = by_code != (attempt == 1)
    a, b = (low, high) if by_code else (_folded(low), _folded(high))
    same = _common(a, b)
    rest_a, rest_b = a[same : same + _PLACES], b[same : same + _PLACES]
    if not rest_b:
        return None
    letters = _LETTERS_BY_CODE if by_code else _LETTERS
    if rest_b[0].isascii():
        numbers = [_number(rest, letters) for rest in (rest_a, rest_b)]
        found = _from_number(_middle(*numbers), letters) or rest_b[0]
        return b[:same] + found if numbers[0] < _number(found, letters) <= numbers[1] else None
    first, last = ord(rest_a[0]) if rest_a else 0, ord(rest_b[0])
    if last - first < 2:
        return b[: same + 1]
    code = _middle(first, last)
    return b[:same] + chr(_SURROGATES.stop if code in _SURROGATES else code)


def _scattered(number: int) -> float:
    """1/2, 1/4, 3/4, 1/8, …: van der Corput's sequence."""
    reversed_bits: int = int(f"{number:b}"[::-1], 2)
    return reversed_bits / float(2 ** number.bit_length())


def _folded(text: str) -> str:
    """Without accents and case, in which most collations see smaller differences."""
    plain = unicodedata.normalize("NFD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c))


def _number(text: str, letters: str) -> int:
    """The text as a number of `_PLACES` digits, each a letter's place from 1 on; what is no letter takes the place between two."""
    number = 0
    for n in range(_PLACES):
        place = bisect.bisect_right(letters, text[n]) if n < len(text) else 0
        number = number * (len(letters) + 1) + place
    return number


def _from_number(number: int, letters: str) -> str:
    places: list[int] = []
    for _ in range(_PLACES):
        number, place = divmod(number, len(letters) + 1)
        places.insert(0, place)
    # Where there is no letter, the text ends: another letter would be above it.
    return "".join(letters[place - 1] for place in itertools.takewhile(bool, places))
