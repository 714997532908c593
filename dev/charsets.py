"""`python -m dev.charsets`: writes what the native module knows of character sets from what the servers do.

A code of a character set is what the server makes of it, `CONVERT(… USING utf8mb4)`; `?` means that it has no character for it. The
sets of one byte become tables. Those of more bytes are encoding_rs's, with the runs of codes for which the server has something else.
"""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer

NATIVE = Path(__file__).parent.parent / "native"
TARGET = NATIVE / "src" / "charset"

# What encoding_rs calls the nearest set that it has.
DOUBLE_BYTE = {
    "big5": "Big5",
    "cp932": "Shift_JIS",
    "eucjpms": "EUC-JP",
    "euckr": "EUC-KR",
    "gb18030": "gb18030",
    "gb2312": "GBK",
    "gbk": "GBK",
    "sjis": "Shift_JIS",
    "ujis": "EUC-JP",
}

DATABASE = "charsets"

UNICODE = ("binary", "utf8mb4", "utf8mb3", "ucs2", "utf16", "utf16le", "utf32")

THIRD_TABLE = 0x8F
"""In the EUC sets a character that starts with this byte has two more."""

Codes = dict[bytes, int]
"""Code points by code; codes without a character are not in it."""

HEADER = "//! Written by `python -m dev.charsets` from what the server answers.\n\n"


def convert(server: MySQLServer, charset: str, codes: Iterable[bytes]) -> Codes:
    """What the server makes of each of these codes."""
    found: Codes = {}
    with server.root(DATABASE) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE codes (code VARBINARY(4)) ENGINE = MEMORY")
        cursor.execute("INSERT INTO codes VALUES " + ",".join(f"(x'{code.hex()}')" for code in codes))
        cursor.execute(f"SELECT code, CONVERT(CONVERT(code USING {charset}) USING utf8mb4) FROM codes")
        for code, text in cursor.fetchall():
            # An EUC lead byte alone gives an empty text, and without a character "?" for each byte.
            if text and (code == b"?" or "?" not in text):
                (found[code],) = map(ord, text)
    return found


def singles(server: MySQLServer, charset: str) -> Codes:
    return convert(server, charset, (bytes([byte]) for byte in range(256)))


def multiples(server: MySQLServer, charset: str, single: Codes) -> Codes:
    """Codes of two bytes, and of three where there are such."""
    leads = [lead for lead in range(0x80, 256) if bytes([lead]) not in single and lead != THIRD_TABLE]
    if not charset.startswith(("euc", "uj")) or charset == "euckr":
        leads.append(THIRD_TABLE)
    found = convert(server, charset, map(bytes, product(leads, range(256))))
    if THIRD_TABLE not in leads:
        found |= convert(server, charset, map(bytes, product([THIRD_TABLE], range(0x80, 256), range(0x80, 256))))
    return found


def quads(server: MySQLServer) -> Iterator[tuple[int, int, int]]:
    """Runs of gb18030's four-byte codes: first and last one's number, first one's code point."""
    run: tuple[int, int, int] | None = None
    for lead in range(0x81, 0xFF):
        codes = map(bytes, product([lead], range(0x30, 0x3A), range(0x81, 0xFF), range(0x30, 0x3A)))
        for code, point in sorted(convert(server, "gb18030", codes).items()):
            a, b, c, d = code
            number = (((a - 0x81) * 10 + b - 0x30) * 126 + c - 0x81) * 10 + d - 0x30
            if run and number == run[1] + 1 and point - run[2] == number - run[0]:
                run = (run[0], number, run[2])
            else:
                if run:
                    yield run
                run = (number, number, point)
    if run:
        yield run


def encodings() -> dict[str, Codes]:
    """What encoding_rs makes of every code of two bytes, and of the EUC sets' three."""
    command = ["cargo", "run", "-q", "--locked", "--no-default-features", "--example", "encodings"]
    done = subprocess.run(command, cwd=NATIVE, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Codes] = {}
    for line in done.stdout.splitlines():
        name, code, point = line.split()
        found.setdefault(name, {})[bytes.fromhex(code)] = int(point, 16)
    return found


def differences(server: Codes, encoding: Codes) -> Iterator[tuple[int, int, int]]:
    """Runs of codes that the server has otherwise: first and last code, first one's code point; 0, of all of them, where it has none."""
    run: tuple[int, int, int] | None = None
    differs = False
    for code in sorted(server.keys() | encoding.keys(), key=lambda code: (len(code), code)):
        number, point = int.from_bytes(code), server.get(code, 0)
        if run and point == (run[2] + number - run[0] if run[2] else 0):
            run = (run[0], number, run[2])
        else:
            if run and differs:
                yield run
            run, differs = (number, number, point), False
        differs |= point != encoding.get(code, 0)
    if run and differs:
        yield run


def lines(items: Iterable[str]) -> Iterator[str]:
    """As many to a line as 120 columns hold."""
    line = ""
    for item in items:
        if line and len(line) + len(item) + 2 > 116:
            yield f"    {line},"
            line = ""
        line += f", {item}" if line else item
    if line:
        yield f"    {line},"


def single_byte_source(tables: dict[str, Codes]) -> str:
    """Rust: one table for each set."""
    out = HEADER + "/// The upper half of each set; 0 where it has no character. swe7 has only a lower half.\n"
    out += f"#[rustfmt::skip]\npub const TABLES: [(&str, [u16; 128]); {len(tables)}] = [\n"
    for name, codes in sorted(tables.items()):
        half = 0 if name == "swe7" else 0x80
        assert half == 0 or all(codes[bytes([byte])] == byte for byte in range(0x80)), name
        values = [codes.get(bytes([byte]), 0) for byte in range(half, half + 0x80)]
        out += f'    ("{name}", [\n' + "\n".join(f"    {line}" for line in lines(map(hex, values))) + "\n    ]),\n"
    return out + "];\n"


def runs_source(runs: Iterable[tuple[int, int, int]]) -> str:
    return "\n".join(lines(f"({first:#x}, {last:#x}, {point:#x})" for first, last, point in runs))


def checksum(codes: Codes) -> int:
    """CRC-32 of every code's character in UTF-8, a line each, for the native module's own test."""
    every = [number.to_bytes(2) for number in range(0x8000, 0x10000)]
    every += [bytes([THIRD_TABLE]) + code for code in every]
    return zlib.crc32("".join(chr(codes[code]) + "\n" if code in codes else "\n" for code in every).encode())


def multi_byte_source(server: MySQLServer) -> str:
    """Rust: what each set has otherwise than encoding_rs, and gb18030's codes of four bytes."""
    rust = encodings()
    out = HEADER + "use encoding_rs as rs;\n\n"
    out += "/// First and last code, and the first one's code point; 0, of all of them, where the set has none.\n"
    out += "pub type Run = (u32, u32, u32);\n\n"
    sets = ""
    checksums = []
    for name, encoding in sorted(DOUBLE_BYTE.items()):
        single = singles(server, name)
        codes = multiples(server, name, single)
        assert all(point < 0x10000 for point in codes.values()), name
        alone = sorted(code[0] for code in single if code[0] >= 0x80)
        assert alone in ([], list(range(0xA1, 0xE0))), name
        known = {code: point for code, point in rust[encoding].items() if code[:1] not in single}
        rows = runs_source(differences(codes, known))
        checksums.append(checksum(codes))
        static = encoding.upper().replace("-", "_")
        sets += f'    ("{name}", rs::{static}, {str(bool(alone)).lower()}, &[\n{rows}\n    ]),\n'
    out += (
        "/// The set, the nearest of encoding_rs, whether 0xA1 to 0xDF are half-width katakana, and the differences.\n"
    )
    out += (
        f"#[rustfmt::skip]\npub const SETS: [(&str, &rs::Encoding, bool, &[Run]); {len(DOUBLE_BYTE)}] = [\n{sets}];\n\n"
    )
    out += "/// CRC-32 of each set's codes of two bytes from 0x8000 on, then of three from 0x8F8000 on: the character in UTF-8, if any, and a line's\n"
    out += "/// end.\n#[cfg(test)]\n#[rustfmt::skip]\n"
    out += f"pub const CHECKSUMS: [u32; {len(checksums)}] = [\n" + "\n".join(lines(map(hex, checksums))) + "\n];\n\n"
    out += "/// gb18030's codes of four bytes, numbered from 0x81308130 on.\n"
    return out + f"#[rustfmt::skip]\npub const QUADS: &[Run] = &[\n{runs_source(quads(server))}\n];\n"


def collations(*servers: MySQLServer | MariaDBServer) -> dict[int, str]:
    """The character set of each collation of these servers, by its number."""
    found: dict[int, str] = {}
    for server in servers:
        # MariaDB's newer collations belong to several character sets, with a number in each.
        table = "COLLATIONS" if isinstance(server, MySQLServer) else "COLLATION_CHARACTER_SET_APPLICABILITY"
        for number, charset in server.execute(f"SELECT id, character_set_name FROM information_schema.{table}"):
            name = "utf8mb3" if charset == "utf8" else str(charset)
            assert found.setdefault(int(number), name) == name, (
                f"collation {number} is of {found[int(number)]} and {name}"
            )
    return found


def collations_source(found: dict[int, str]) -> str:
    """Rust: runs of numbers."""
    runs: list[tuple[int, int, str]] = []
    for number, name in sorted(found.items()):
        if runs and runs[-1][1:] == (number - 1, name):
            runs[-1] = (runs[-1][0], number, name)
        else:
            runs.append((number, number, name))
    out = HEADER + "/// First and last number, and the character set, in order; MySQL's and MariaDB's.\n"
    out += "#[rustfmt::skip]\npub const COLLATIONS: &[(u32, u32, &str)] = &[\n"
    return out + "\n".join(lines(f'({first}, {last}, "{name}")' for first, last, name in runs)) + "\n];\n"


def main() -> None:
    """Ask, and write the three files."""
    TARGET.mkdir(exist_ok=True)
    with MySQLServer() as mysql:
        mysql.execute(f"CREATE DATABASE {DATABASE}")
        names = [name for (name,) in mysql.execute("SELECT character_set_name FROM information_schema.character_sets")]
        tables = {name: singles(mysql, name) for name in names if name not in {*DOUBLE_BYTE, *UNICODE, "ascii"}}
        (TARGET / "single_byte.rs").write_text(single_byte_source(tables))
        (TARGET / "multi_byte.rs").write_text(multi_byte_source(mysql))
        with MariaDBServer() as mariadb:
            (TARGET / "collations.rs").write_text(collations_source(collations(mysql, mariadb)))


if __name__ == "__main__":
    main()
