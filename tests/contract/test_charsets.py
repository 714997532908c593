"""Character sets in the native module, and on live servers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import product

import pytest

from cdc._native import charset_of_collation, decode_text
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer

AnyServer = MySQLServer | MariaDBServer

UTF8 = ("utf8mb4", "utf8mb3", "binary")
WIDE = {"ucs2": 2, "utf16": 2, "utf16le": 2, "utf32": 4}
"""Bytes of a unit."""
EUC = ("ujis", "eucjpms")
THIRD_TABLE = 0x8F
"""In the EUC sets a character that starts with this byte has two more."""


@pytest.fixture(scope="session", params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> AnyServer:
    found: AnyServer = request.getfixturevalue(request.param)
    return found


def charsets(server: AnyServer) -> dict[str, int]:
    """The longest character's bytes by name."""
    rows = server.execute("SELECT character_set_name, maxlen FROM information_schema.character_sets")
    return {"utf8mb3" if name == "utf8" else str(name): int(longest) for name, longest in rows}


def converted(server: AnyServer, charset: str, codes: Iterable[bytes]) -> Iterator[tuple[bytes, str | None]]:
    """What the server makes of bytes in a character set; None where they are no text of it, or would come out as question marks."""
    with server.root() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE test.codes (code VARBINARY(400))")
        cursor.execute("INSERT INTO test.codes VALUES " + ",".join(f"(x'{code.hex()}')" for code in codes))
        cursor.execute(
            f"SELECT code, CAST(CONVERT(CONVERT(code USING {charset}) USING utf8mb4) AS BINARY) FROM test.codes"
        )
        for code, text in cursor.fetchall():
            lost = text is None or text.count(b"?") > code.count(b"?")
            yield code, None if lost else _utf8(text)


def _utf8(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None  # MariaDB takes single surrogates for characters in ucs2


def short_codes(charset: str, longest: int) -> list[bytes]:
    """Every code of one and of two bytes, and those of three in EUC."""
    if charset in WIDE:
        # The server puts zero bytes before shorter ones.
        return [bytes(WIDE[charset] - 2) + number.to_bytes(2) for number in range(0x10000)]
    found = [bytes([byte]) for byte in range(256)]
    if longest > 1:
        found += [number.to_bytes(2) for number in range(0x8000, 0x10000)]
    if charset in EUC:
        found += [bytes([THIRD_TABLE]) + number.to_bytes(2) for number in range(0x8000, 0x10000)]
    return found


@pytest.fixture(scope="session")
def somewhere(server: AnyServer) -> None:
    """A schema for temporary tables."""
    server.execute("CREATE DATABASE IF NOT EXISTS test")


@pytest.mark.usefixtures("somewhere")
def test_every_code_is_what_the_server_converts_it_to(server: AnyServer) -> None:
    for charset, longest in charsets(server).items():
        if charset in UTF8:
            continue
        codes = short_codes(charset, longest)
        different = [
            (code.hex(), wanted, decode_text(charset, code))
            for code, wanted in converted(server, charset, codes)
            # A byte that begins an EUC character and stands alone is left out by the server.
            if decode_text(charset, code) != (wanted or None)
        ]
        assert not different, (charset, len(different), different[:5])


def four_byte_codes(lead: int) -> list[bytes]:
    """Of gb18030, with this first byte."""
    return list(map(bytes, product([lead], range(0x30, 0x3A), range(0x81, 0xFF), range(0x30, 0x3A))))


@pytest.mark.usefixtures("somewhere")
def test_some_four_byte_codes_of_gb18030(server: AnyServer) -> None:
    if "gb18030" not in charsets(server):
        pytest.skip("not a character set of MariaDB")
    # First and last of the first plane's, the first of the others.
    for lead in (0x81, 0x84, 0x90):
        for code, wanted in converted(server, "gb18030", four_byte_codes(lead)):
            assert decode_text("gb18030", code) == wanted, code.hex()


@pytest.mark.slow
@pytest.mark.usefixtures("somewhere")
def test_all_four_byte_codes_of_gb18030(server: AnyServer) -> None:
    if "gb18030" not in charsets(server):
        pytest.skip("not a character set of MariaDB")
    for lead in range(0x81, 0xFF):
        for code, wanted in converted(server, "gb18030", four_byte_codes(lead)):
            assert decode_text("gb18030", code) == wanted, code.hex()


@pytest.mark.usefixtures("somewhere")
def test_texts_are_what_the_server_has_stored(server: AnyServer) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    for charset, longest in charsets(server).items():
        codes = [code for code in short_codes(charset, longest) if len(decode_text(charset, code) or "") == 1]
        if charset in UTF8:
            codes = [chr(choose.randrange(0x20, 0xD800)).encode() for _ in range(200)]
        if charset in ("utf8mb4", "utf16", "utf16le", "utf32", "gb18030"):
            encoding = {"utf16": "utf_16_be", "utf16le": "utf_16_le", "utf32": "utf_32_be", "utf8mb4": "utf8"}.get(
                charset, charset
            )
            codes += [chr(choose.randrange(0x10000, 0x110000)).encode(encoding) for _ in range(200)]
        ascii_codes = [code for code in codes if (decode_text(charset, code) or "").isascii()] or codes
        with server.root("test") as connection, connection.cursor() as cursor:
            kind = "VARBINARY(400)" if charset == "binary" else f"VARCHAR(100) CHARACTER SET {charset}"
            cursor.execute(f"CREATE TEMPORARY TABLE texts (id INT PRIMARY KEY, text {kind})")
            rows = []
            for number in range(300):
                size = choose.choice([0, 1, 2, 15, 16, 17, 40, 100])
                # Mostly ASCII, so that its runs of every length meet the others.
                text = b"".join(choose.choice(ascii_codes if choose.random() < 0.8 else codes) for _ in range(size))
                rows.append(f"({number}, CONVERT(x'{text.hex()}' USING {charset}))")
            cursor.execute("INSERT INTO texts VALUES " + ",".join(rows))
            cursor.execute("SELECT CAST(text AS BINARY), CAST(CONVERT(text USING utf8mb4) AS BINARY) FROM texts")
            for stored, text in cursor.fetchall():
                assert decode_text(charset, stored) == text.decode(), (charset, stored.hex())


def test_collations_belong_to_their_character_sets(server: AnyServer) -> None:
    tables = {MySQLServer: "COLLATIONS", MariaDBServer: "COLLATION_CHARACTER_SET_APPLICABILITY"}
    rows = server.execute(f"SELECT id, character_set_name FROM information_schema.{tables[type(server)]}")
    assert len(rows) > 250
    for number, charset in rows:
        assert charset_of_collation(number) == ("utf8mb3" if charset == "utf8" else charset), number


def test_an_unknown_character_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such character set"):
        decode_text("klingon", b"")
    assert charset_of_collation(0) is None
