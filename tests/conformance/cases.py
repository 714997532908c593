"""Tables of random columns and rows, over every type, attribute, character set and edge. One seed gives one case, always the same."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Flavor = Literal["mysql", "mariadb"]

CHARSETS = (
    *(
        "utf8mb4",
        "utf8mb3",
        "latin1",
        "ascii",
        "binary",
        "ucs2",
        "utf16",
        "utf32",
        "utf16le",
        "cp1250",
        "cp1251",
        "cp1256",
    ),
    *("cp1257", "cp850", "cp852", "cp866", "koi8r", "koi8u", "latin2", "latin5", "latin7", "greek", "hebrew", "macce"),
    *("macroman", "tis620", "dec8", "hp8", "armscii8", "geostd8", "keybcs2", "swe7", "big5", "gbk", "gb2312", "sjis"),
    *("cp932", "ujis", "eucjpms", "euckr", "gb18030"),
)
MYSQL_ONLY = frozenset({"gb18030"})
POOLS = (
    "abcXYZ 019 .,:;!?'\"\\%_`\t\n",
    "éüñßÆøÅçÐþ¡¿°µ€‚„…‰™œžŸ",
    "ЖжЩщЪъЯяЁё№Іїґ",
    "αβγΩάώΆ",
    "שלוםאבגד",
    "ابتثجحخ",
    "กขฃคฅฆงจ",
    "日本語テスト漢字かなｶﾅ〜～－‖∥￠￡￢",
    "中文汉字繁體測試㐀",
    "한국어테스트각힣",
    "ԱբգდევზŁśźňřů",
    "😀🂡𝄞𠀀",
)
"""Characters of many scripts; what a character set lacks, the server turns into question marks."""


@dataclass(frozen=True)
class CaseColumn:
    """`definition` is what stands after the name in CREATE TABLE; `literal` makes an SQL expression, never NULL."""

    name: str
    definition: str
    literal: Callable[[random.Random], str] | None
    """None for a generated column."""
    can_be_key: bool = False


@dataclass
class Case:
    """Statements for one session, in order."""

    seed: int
    flavor: Flavor
    create: str
    prepare: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)


def hexed(data: bytes) -> str:
    """An SQL literal of these bytes."""
    return f"X'{data.hex()}'"


def quoted(text: str) -> str:
    """An SQL literal of this text."""
    return f"_utf8mb4 {hexed(text.encode())}"


# values


def _integer(bits: int, unsigned: bool) -> Callable[[random.Random], str]:
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def literal(dice: random.Random) -> str:
        value = dice.choice(
            (low, high, 0, 1, low + 1, high - 1, dice.randint(low, high), dice.getrandbits(dice.randint(1, bits)))
        )
        return str(max(low, min(high, value)))

    return literal


def _decimal(precision: int, scale: int, unsigned: bool) -> Callable[[random.Random], str]:
    def literal(dice: random.Random) -> str:
        count = dice.choice((precision, dice.randint(1, precision)))
        digits = dice.choice(("9" * count, "0", "1", "".join(dice.choices("0123456789", k=count)))).rjust(
            scale + 1, "0"
        )
        sign = "" if unsigned or dice.random() < 0.5 else "-"
        return f"{sign}{digits[: len(digits) - scale]}.{digits[len(digits) - scale :]}" if scale else f"{sign}{digits}"

    return literal


def _floating(form: str, unsigned: bool) -> Callable[[random.Random], str]:
    size = struct.calcsize(form)
    digits = 9 if form == "<f" else 17
    edges = ["0e0", "1e0", "1.5e0", "1e15", "1e16", "1e-5", "1e-16", "0.1e0", "123456789e0", "1e-30", "33333.333e0"]

    def literal(dice: random.Random) -> str:
        if dice.random() < 0.4:
            return dice.choice(edges if unsigned else [*edges, "-0e0", "-1.25e0"])
        while True:
            (value,) = struct.unpack(form, dice.randbytes(size))
            if math.isfinite(value) and (abs(value) > 1e-37 or form == "<d") and abs(value) > 1e-300:
                return f"{abs(value) if unsigned else value:.{digits - 1}e}"

    return literal


def _bit(bits: int) -> Callable[[random.Random], str]:
    return lambda dice: f"b'{dice.choice((0, 1, 2**bits - 1, dice.getrandbits(bits))):b}'"


def _moment(dice: random.Random) -> str:
    return f"{dice.randint(1, 9999):04}-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}"


def _clock(dice: random.Random, scale: int) -> str:
    fraction = f".{dice.choice((0, 1, 999999, dice.randrange(10**6))):06}"[: scale + 1] if scale else ""
    return f"{dice.randint(0, 23):02}:{dice.randint(0, 59):02}:{dice.randint(0, 59):02}{fraction}"


_DATES = (
    "0000-00-00",
    "2024-02-31",
    "2024-00-00",
    "2024-02-00",
    "2023-02-29",
    "9999-12-31",
    "1000-01-01",
    "0001-01-01",
    "1970-01-01",
    "2024-02-29",
)


def _date(dice: random.Random) -> str:
    return f"'{dice.choice((dice.choice(_DATES), _moment(dice)))}'"


def _datetime(scale: int) -> Callable[[random.Random], str]:
    def literal(dice: random.Random) -> str:
        day = dice.choice((dice.choice(_DATES), _moment(dice)))
        return "'0000-00-00 00:00:00'" if day == "0000-00-00" else f"'{day} {_clock(dice, scale)}'"

    return literal


def _timestamp(scale: int, flavor: Flavor) -> Callable[[random.Random], str]:
    last = 4294967295 if flavor == "mariadb" else 2147483647
    fraction = ".999999"[: scale + 1] if scale else ""

    def literal(dice: random.Random) -> str:
        if dice.random() < 0.15:
            return "'0000-00-00 00:00:00'"
        if dice.random() < 0.2:
            return f"'1970-01-01 00:00:01{fraction}'"
        seconds = dice.choice((dice.randint(1, last - 1), dice.randint(1, 2**31 - 1)))
        part = f".{dice.randrange(10**6):06}"[: scale + 1] if scale else ""
        return f"TIMESTAMP '1970-01-01 00:00:00' + INTERVAL {seconds} SECOND + INTERVAL '0{part or '.0'}' SECOND_MICROSECOND"

    return literal


def _time(scale: int) -> Callable[[random.Random], str]:
    edges = ("-838:59:59", "838:59:59", "00:00:00", "-00:00:01", "24:00:00", "-23:59:59")

    def literal(dice: random.Random) -> str:
        if dice.random() < 0.4:
            return f"'{dice.choice(edges)}'"
        return f"'{dice.choice(('', '-'))}{dice.randint(0, 837)}:{_clock(dice, scale)[3:]}'"

    return literal


def text_of(dice: random.Random, most: int) -> str:
    """A text of up to `most` characters."""
    pools = dice.choices(POOLS, k=2)
    count = dice.choice((0, 1, dice.randint(0, most), dice.randint(0, min(most, 12))))
    text = "".join(dice.choice(dice.choice(pools)) for _ in range(count))
    return dice.choice((text, text + " ", " " + text, text, text, "\0" + text))[:most]


def _text(charset: str, most: int) -> Callable[[random.Random], str]:
    single = charset in CHARSETS[9:32] or charset == "latin1"

    def literal(dice: random.Random) -> str:
        if single and dice.random() < 0.2:
            return f"_{charset} {hexed(dice.randbytes(dice.randint(0, min(most, 40))))}"
        return f"CONVERT({quoted(text_of(dice, most))} USING {charset})"

    return literal


def _bytes(most: int) -> Callable[[random.Random], str]:
    def literal(dice: random.Random) -> str:
        data = dice.randbytes(dice.choice((0, 1, dice.randint(0, most), min(most, 8))))
        return hexed(dice.choice((data, data[:-1] + b"\0" * bool(data), data[:-2] + b" \0" * (len(data) > 1), data)))

    return literal


def _document(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.random()
    if depth < 5 and kind < 0.3:
        return {text_of(dice, 20): _document(dice, depth + 1) for _ in range(dice.randint(0, 6))}
    if depth < 5 and kind < 0.5:
        return [_document(dice, depth + 1) for _ in range(dice.randint(0, 8))]
    return dice.choice(
        (
            *(
                None,
                True,
                False,
                0,
                -1,
                2**15,
                -(2**15),
                2**31,
                -(2**31),
                2**63 - 1,
                -(2**63),
                2**64 - 1,
                1.5,
                -0.0,
                1e16,
                1e-7,
            ),
            *(
                1e300,
                0.1,
                123456789.125,
                text_of(dice, 60),
                text_of(dice, 300),
                "x" * dice.randint(120, 40_000 if dice.random() < 0.05 else 140),
            ),
        )
    )


_OPAQUE = (
    "CAST('2024-02-29' AS DATE)",
    "CAST('-12:34:56.123456' AS TIME(6))",
    "CAST('2024-02-29 12:34:56.123456' AS DATETIME(6))",
    "CAST(-1234.5600 AS DECIMAL(20,4))",
    "CAST(99999999999999999999999999999999999 AS DECIMAL(65,0))",
    "CAST(0.000001 AS DECIMAL(30,30))",
    "18446744073709551615",
    "1e-320",
    "1.7976931348623157e308",
    "NULL",
    "TRUE",
    "X'00ff10'",
    "CAST('a' AS BINARY)",
)


def _json(flavor: Flavor) -> Callable[[random.Random], str]:
    def literal(dice: random.Random) -> str:
        if flavor == "mysql" and dice.random() < 0.3:
            pairs = ", ".join(
                f"{quoted(f'k{i}' * dice.randint(1, 3))}, {dice.choice(_OPAQUE)}" for i in range(dice.randint(1, 6))
            )
            return f"JSON_OBJECT({pairs})"
        document = _document(dice)
        if dice.random() < 0.03:
            document = {f"key{i}": "v" * 400 for i in range(200)}  # more than 64 KiB: the large form
        text = json.dumps(document, ensure_ascii=False)
        return f"CONVERT({quoted(text)} USING utf8mb4)"

    return literal


def _members(dice: random.Random, most: int) -> list[str]:
    made: dict[str, str] = {}
    for _ in range(dice.randint(1, most)):
        text = dice.choice(("a", "B", "it's", 'say "x"', "back\\slash", "ü", "日本", "x y", "", "№1", text_of(dice, 8)))
        text = text.replace(",", ";").replace("\0", "").strip()
        # What a collation takes for the same would be a duplicate.
        made.setdefault("".join(c for c in text.casefold() if c.isascii()), text)
    return list(made.values())


def _choice(members: list[str]) -> Callable[[random.Random], str]:
    return lambda dice: dice.choice((quoted(dice.choice(members)), quoted(dice.choice(members)), "'no such member'"))


def _several(members: list[str]) -> Callable[[random.Random], str]:
    return lambda dice: quoted(",".join(m for m in members if dice.random() < 0.4))


def _geometry(flavor: Flavor) -> Callable[[random.Random], str]:
    def literal(dice: random.Random) -> str:
        def point() -> str:
            return f"{dice.uniform(-80, 80):.6g} {dice.uniform(-80, 80):.6g}"

        corner = f"{dice.randint(-50, 50)}"
        text = dice.choice(
            (
                f"POINT({point()})",
                f"LINESTRING({point()}, {point()}, {point()})",
                f"POLYGON(({corner} 0, {corner} 9, 60 9, {corner} 0))",
                f"MULTIPOINT({point()}, {point()})",
                f"GEOMETRYCOLLECTION(POINT({point()}), LINESTRING({point()}, {point()}))",
            )
        )
        srid = dice.choice((0, 0, 4326)) if flavor == "mysql" else dice.choice((0, 4326))
        return f"ST_GeomFromText('{text}', {srid})"

    return literal


def _vector(count: int, flavor: Flavor) -> Callable[[random.Random], str]:
    function = "STRING_TO_VECTOR" if flavor == "mysql" else "VEC_FromText"
    return lambda dice: f"{function}('[{', '.join(f'{dice.uniform(-9, 9):.7g}' for _ in range(count))}]')"


# columns


def _column(dice: random.Random, name: str, flavor: Flavor) -> CaseColumn:
    unsigned = dice.random() < 0.4
    sign = dice.choice((" UNSIGNED", " UNSIGNED", " ZEROFILL")) if unsigned else ""
    scale = dice.randint(0, 6)
    charsets = [c for c in CHARSETS if flavor == "mysql" or c not in MYSQL_ONLY]
    charset = dice.choice((*charsets, "utf8mb4", "latin1"))
    kinds: list[Callable[[], tuple[str, Callable[[random.Random], str], bool]]] = [
        lambda: (f"TINYINT{sign}", _integer(8, unsigned), True),
        lambda: (f"SMALLINT{sign}", _integer(16, unsigned), True),
        lambda: (f"MEDIUMINT{sign}", _integer(24, unsigned), True),
        lambda: (f"INT{sign}", _integer(32, unsigned), True),
        lambda: (f"BIGINT{sign}", _integer(64, unsigned), True),
        lambda: _decimal_column(dice, sign, unsigned, flavor),
        lambda: (f"FLOAT{sign.replace(' ZEROFILL', ' UNSIGNED')}", _floating("<f", unsigned), False),
        lambda: (f"DOUBLE{sign.replace(' ZEROFILL', ' UNSIGNED')}", _floating("<d", unsigned), False),
        lambda: (f"BIT({(bits := dice.choice((1, 1, 7, 8, 9, 33, 63, 64)))})", _bit(bits), True),
        lambda: ("DATE", _date, False),
        lambda: (f"DATETIME({scale})", _datetime(scale), False),
        lambda: (f"TIMESTAMP({scale}) NULL", _timestamp(scale, flavor), False),
        lambda: (f"TIME({scale})", _time(scale), True),
        lambda: ("YEAR", lambda d: d.choice(("1901", "2155", "'0000'", "2024")), True),
        lambda: _text_column(dice, charset),
        lambda: _text_column(dice, charset),
        lambda: _text_column(dice, charset),
        lambda: (f"BINARY({(n := dice.choice((1, 8, 20, 255)))})", _bytes(n), True),
        lambda: (f"VARBINARY({(n := dice.choice((1, 20, 255, 256, 1000)))})", _bytes(n), n < 1000),
        lambda: (dice.choice(("TINYBLOB", "BLOB", "MEDIUMBLOB", "LONGBLOB")), _bytes(255), False),
        lambda: (dice.choice(("MEDIUMBLOB", "LONGBLOB")), _bytes(70_000 if dice.random() < 0.2 else 3000), False),
        lambda: _enum_column(dice, charset),
        lambda: _set_column(dice, charset),
        lambda: ("JSON", _json(flavor), False),
        lambda: ("JSON", _json(flavor), False),
        lambda: ("GEOMETRY", _geometry(flavor), False),
        lambda: (f"VECTOR({(n := dice.choice((1, 3, 64)))})", _vector(n, flavor), False),
    ]
    if flavor == "mariadb":
        kinds += [
            lambda: (
                "UUID",
                lambda d: (
                    f"'{d.randbytes(4).hex()}-{d.randbytes(2).hex()}-1{d.randbytes(2).hex()[1:]}-8{d.randbytes(2).hex()[1:]}-{d.randbytes(6).hex()}'"
                ),
                True,
            ),
            lambda: (
                "INET6",
                lambda d: d.choice(
                    ("'::1'", "'2001:db8::ff00:42:8329'", "'::ffff:1.2.3.4'", f"'fe80::{d.randrange(65536):x}'")
                ),
                True,
            ),
            lambda: ("INET4", lambda d: f"'{d.randrange(256)}.{d.randrange(256)}.0.{d.randrange(256)}'", True),
        ]
    sql, literal, can_be_key = dice.choice(kinds)()
    return CaseColumn(name, sql, literal, can_be_key)


def _referred_column(dice: random.Random, name: str) -> CaseColumn:
    """Of what the reference decoder is right about: see `tests.reference.decoder.KNOWN_GAPS`."""
    unsigned = dice.random() < 0.4
    sign = " UNSIGNED" if unsigned else ""
    scale = dice.randint(0, 6)
    bits, kind = dice.choice(((8, "TINYINT"), (16, "SMALLINT"), (24, "MEDIUMINT"), (32, "INT"), (64, "BIGINT")))
    precision = dice.randint(1, 38)
    fraction = dice.randint(0, min(precision, 30))
    made: tuple[str, Callable[[random.Random], str], bool] = dice.choice(
        (
            (f"{kind}{sign}", _integer(bits, unsigned), True),
            (f"DECIMAL({precision},{fraction}){sign}", _decimal(precision, fraction, unsigned), True),
            (f"DOUBLE{sign}", _floating("<d", unsigned), False),
            ("DATE", lambda d: f"'{_moment(d)}'", True),
            (f"DATETIME({scale})", lambda d: f"'{_moment(d)} {_clock(d, scale)}'", True),
            (f"TIMESTAMP({scale}) NULL", lambda d: f"'{d.randint(1971, 2037)}-06-15 {_clock(d, scale)}'", True),
            _text_column(dice, dice.choice(("utf8mb4", "utf8mb3", "ascii"))),
            (f"BINARY({(n := dice.choice((1, 8, 255)))})", _bytes(n), True),
            (f"VARBINARY({(n := dice.choice((1, 20, 256, 1000)))})", _bytes(n), n < 1000),
            (dice.choice(("TINYBLOB", "BLOB", "MEDIUMBLOB", "LONGBLOB")), _bytes(255), False),
            _enum_column(dice, "utf8mb4"),
        )
    )
    return CaseColumn(name, *made)


def _decimal_column(
    dice: random.Random, sign: str, unsigned: bool, flavor: Flavor
) -> tuple[str, Callable[[random.Random], str], bool]:
    precision = dice.choice((1, 5, 9, 10, 18, 19, 27, 38, 39, 65, dice.randint(1, 65)))
    scale = dice.choice((0, min(precision, 30), dice.randint(0, min(precision, 30))))
    return f"DECIMAL({precision},{scale}){sign}", _decimal(precision, scale, unsigned), precision <= 38


def _text_column(dice: random.Random, charset: str) -> tuple[str, Callable[[random.Random], str], bool]:
    kind, most = dice.choice(
        (
            ("CHAR(1)", 1),
            ("CHAR(20)", 20),
            ("CHAR(255)", 60),
            ("VARCHAR(30)", 30),
            ("VARCHAR(300)", 100),
            ("TINYTEXT", 15),
            ("TEXT", 200),
            ("MEDIUMTEXT", 300),
            ("LONGTEXT", 300),
        )
    )
    return f"{kind} CHARACTER SET {charset}", _text(charset, most), most <= 30 and "TEXT" not in kind


def _enum_column(dice: random.Random, charset: str) -> tuple[str, Callable[[random.Random], str], bool]:
    if dice.random() < 0.1:
        members = [f"m{i}" for i in range(300)]
    else:
        members, charset = _members(dice, 8), "utf8mb4" if charset not in ("utf8mb3", "latin1") else charset
    if charset != "utf8mb4":
        members = [m for m in members if m.isascii()] or ["a"]
    return f"ENUM({', '.join(_plain(m) for m in members)}) CHARACTER SET {charset}", _choice(members), False


def _set_column(dice: random.Random, charset: str) -> tuple[str, Callable[[random.Random], str], bool]:
    members = [m for m in (_members(dice, 8) if dice.random() < 0.8 else [f"m{i}" for i in range(64)]) if m] or ["a"]
    return f"SET({', '.join(_plain(m) for m in members)}) CHARACTER SET utf8mb4", _several(members), False


def _plain(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


# cases


def make(seed: int, flavor: Flavor, *, referred: bool = False) -> Case:
    """The case of this seed. `referred`: only of what the reference decoder is right about."""
    dice = random.Random(f"{flavor} {seed}")
    names = [f"c{i}" if i else "weird `name` é" for i in range(dice.randint(1, 12))]
    columns = [_referred_column(dice, name) if referred else _column(dice, name, flavor) for name in names]
    key = ["id"]
    keyed = [c for c in columns if c.can_be_key]
    if keyed and dice.random() < 0.4:
        key = [c.name for c in dice.sample(keyed, min(len(keyed), dice.randint(1, 2)))]
        if dice.random() < 0.5:
            key.append("id")
    parts = ["`id` BIGINT NOT NULL"]
    for column in columns:
        definition = column.definition.replace(" NULL", "") if column.name in key else column.definition
        parts.append(f"{_name(column.name)} {definition}{' NOT NULL' if column.name in key else ''}")
    # MariaDB leaves generated columns out of the images of updates: such a column has to be excluded.
    if dice.random() < 0.3 and flavor == "mysql":
        parts.append(f"`gen` BIGINT GENERATED ALWAYS AS (`id` + 1) {dice.choice(('VIRTUAL', 'STORED'))}")
    if dice.random() < 0.2:
        parts.append("`hidden` INT DEFAULT 7 INVISIBLE")
    parts.append(f"PRIMARY KEY ({', '.join(_name(k) for k in key)})")
    create = f"CREATE TABLE t ({', '.join(parts)}) DEFAULT CHARACTER SET utf8mb4 ROW_FORMAT=DYNAMIC"
    case = Case(seed, flavor, create)
    if flavor == "mysql":
        compressed = "OFF" if referred else dice.choice(("ON", "OFF", "OFF"))
        case.prepare.append(f"SET SESSION binlog_transaction_compression = {compressed}")
        case.prepare.append(f"SET SESSION binlog_rows_query_log_events = {dice.choice(('ON', 'OFF'))}")
    _fill(case, dice, columns, key)
    return case


def _fill(case: Case, dice: random.Random, columns: list[CaseColumn], key: list[str]) -> None:
    names = ", ".join(["`id`", *(_name(c.name) for c in columns)])
    out = case.statements
    rows = dice.randint(4, 30)
    for first in range(0, rows, step := dice.choice((1, 4, 30))):
        values = []
        for number in range(first, min(rows, first + step)):
            cells = [str(number), *(_cell(dice, c, key) for c in columns)]
            values.append(f"({', '.join(cells)})")
        out.append(f"INSERT IGNORE INTO t ({names}) VALUES {', '.join(values)}")
    for _ in range(dice.randint(0, 8)):
        kind, number = dice.random(), dice.randrange(rows)
        if kind < 0.6:
            chosen = dice.sample(columns, dice.randint(1, min(3, len(columns))))
            sets = ", ".join(f"{_name(c.name)} = {_cell(dice, c, key)}" for c in chosen)
            out.append(f"UPDATE IGNORE t SET {sets} WHERE id >= {number} ORDER BY id LIMIT {dice.randint(1, 5)}")
        elif kind < 0.75:
            out.append(f"UPDATE IGNORE t SET id = id + {rows} WHERE id >= {number} ORDER BY id DESC LIMIT 3")
        elif kind < 0.9:
            out.append(f"DELETE FROM t WHERE id = {number}")
        else:
            out += [
                "BEGIN",
                f"UPDATE IGNORE t SET id = id + {2 * rows} WHERE id = {number}",
                f"DELETE FROM t WHERE id = {number + 1}",
                "COMMIT",
            ]


def _cell(dice: random.Random, column: CaseColumn, key: list[str]) -> str:
    assert column.literal is not None
    if column.name not in key and dice.random() < 0.15:
        return "NULL"
    sql = column.literal(dice)
    while column.name in key and sql.startswith("_"):
        # Bytes that may be no text: in a key they stop the table.
        sql = column.literal(dice)
    return sql


def _name(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
