"""Kinds of keys: how the server compares them, few enough values of each that changes meet, and how they are printed by their bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Kind:
    """A kind of key. `keys` are SQL literals, one a column; `spare` is none of them. `text` gives the key's bytes as the server prints them,
    `{0}` being where its columns are, and `printed` the same of values. `ordered`: the server orders by bytes, as the lake does."""

    name: str
    columns: str
    key: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    spare: tuple[str, ...]
    text: str
    printed: Callable[..., str]
    ordered: bool = False

    def condition(self, key: Sequence[str]) -> str:
        """That a row has this key, as the server compares."""
        return " AND ".join(f"{c} = {v}" for c, v in zip(self.key, key, strict=True))

    def assigned(self, key: Sequence[str]) -> str:
        """For SET."""
        return ", ".join(f"{c} = {v}" for c, v in zip(self.key, key, strict=True))


_LETTERS = (*"aAáÁàbBäÄzZßeéEÉêoöOÖøuü", *"12", "", "10", "ss", "sS", "SS", "aa", "Aa", "áa", "😀", "æ", "ae", "Ae")
_PADDED = ("", " ", "   ", *(f"{c}{end}" for c in "aAbBcCdDéeE" for end in ("", " ")), "A  ", "ab", "a b")
_LATIN1 = (*"aAáäÄbBzZßeéEÉoöOÖuü", "ss", "", "a ", "A ")
_BYTES = "00 0000 00FF 20 2020 41 61 4100 FF FFFF FE 7F 80 81 0A 27 5C C3A9 E9"
_NUMBERS = "0 -0.001 0.001 1 -1 1.5 -1.5 10 9.999 -10 100 999999999.999 -999999999.999 2 2.5 3 -3 12.345 0.1 0.01 7 8 9 -7 -8.5"
_TEXT = "HEX(CONVERT({0}k USING utf8mb4))"


def kinds(collation: str) -> tuple[Kind, ...]:
    """All of them. `collation` ignores case and accents, and is one of the server's."""

    def texts(name: str, values: Sequence[str], charset: str, collation: str) -> Kind:
        keys = tuple((f"'{value}'",) for value in values)
        columns = f"k VARCHAR(20) CHARACTER SET {charset} COLLATE {collation} NOT NULL"

        def printed(value: str | bytes) -> str:
            # Bounds are in the column's own character set.
            return _hex(value.decode(charset) if isinstance(value, bytes) else value)

        return Kind(name, columns, ("k",), keys, ("'zzz'",), _TEXT, printed)

    numbers = tuple((str(n),) for n in range(-12, 48))
    return (
        Kind("int", "k INT NOT NULL", ("k",), numbers, ("1000",), "{0}k", str, ordered=True),
        texts("text", _LETTERS, "utf8mb4", collation),
        texts("padded", _PADDED, "utf8mb4", "utf8mb4_general_ci"),
        texts("latin1", _LATIN1, "latin1", "latin1_german1_ci"),
        Kind(
            "binary",
            "k VARBINARY(8) NOT NULL",
            ("k",),
            (("''",), *((f"X'{digits}'",) for digits in _BYTES.split())),
            ("X'DEAD'",),
            "HEX({0}k)",
            _hex,
            ordered=True,
        ),
        Kind(
            "decimal",
            "k DECIMAL(12,3) NOT NULL",
            ("k",),
            tuple((number,) for number in _NUMBERS.split()),
            ("77777",),
            "{0}k",
            lambda k: f"{Decimal(k):.3f}",
            ordered=True,
        ),
        Kind(
            "composite",
            f"a SMALLINT NOT NULL, k VARCHAR(9) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL, c BINARY(2) NOT NULL",
            ("a", "k", "c"),
            tuple((a, f"'{k}'", f"X'{c}'") for a in ("-1", "0", "1") for k in (*"aAábB", "") for c in ("00", "0A")),
            ("99", "'zzz'", "X'FF'"),
            "CONCAT({0}a, '|', HEX({0}k), '|', HEX({0}c))",
            lambda a, k, c: f"{a}|{_hex(k)}|{_hex(c)}",
        ),
    )


def _hex(value: str | bytes) -> str:
    return (value.encode() if isinstance(value, str) else value).hex().upper()
