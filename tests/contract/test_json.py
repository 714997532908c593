"""Binary JSON in the native module, and what a live server prints for it."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cdc._native import json_diffs, json_patch, json_text
from dev.mysql import MySQLServer
from tests.contract.binlog import recording
from tests.reference.events import HEADER, Type

PARTIAL_UPDATE_ROWS = 39
REPLACE, INSERT, REMOVE = range(3)


class Documents:
    """Random JSON documents as SQL expressions: everything that MySQL can put into one."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)

    def document(self, depth: int = 0) -> str:
        """An expression. A document of its own is in no other."""
        kinds: list[Callable[[], str]] = [self.literal, self.integer, self.double, self.text, self.text]
        kinds += [self.decimal, self.temporal, self.binary]
        if depth < 4:
            kinds += [lambda: self.array(depth), lambda: self.object(depth)] * 2
        return self.choose.choice(kinds)()

    def literal(self) -> str:
        return self.choose.choice(["NULL", "TRUE", "FALSE"])

    def integer(self) -> str:
        bits = self.choose.choice([1, 7, 8, 15, 16, 17, 31, 32, 33, 63])
        edges = [2**bits - 1, -(2**bits), 2**bits, self.choose.randrange(2**bits), -self.choose.randrange(2**bits)]
        return str(self.choose.choice(edges))

    def number(self) -> float:
        choose = self.choose
        while True:
            (anything,) = struct.unpack("<d", choose.randbytes(8))
            found: float = choose.choice(
                [
                    anything,
                    -0.0,
                    float(choose.randrange(-(10**18), 10**18)),
                    round(choose.uniform(-1e6, 1e6), choose.randrange(8)),
                    choose.choice([1, -1]) * 10.0 ** choose.randrange(-30, 30),
                    choose.random() * 10.0 ** choose.randrange(-25, 25),
                    2.0 ** choose.randrange(-1074, 1023),
                ]
            )
            if abs(found) < float("inf"):
                return found

    def double(self) -> str:
        text = repr(self.number())
        return text if "e" in text else f"{text}e0"

    def plain_text(self) -> str:
        choose = self.choose
        letters = choose.choice(
            ["abc xyz", "aä€😀", '\0\x01\x1f\x7f"\\\b\t\n\f\r/', "".join(map(chr, range(0xD7F0, 0xD800)))]
        )
        return "".join(choose.choice(letters) for _ in range(choose.choice([0, 1, 2, 5, 20, 63, 64, 127, 128, 300])))

    def text(self) -> str:
        return _text(self.plain_text())

    def decimal(self) -> str:
        choose = self.choose
        precision = choose.randrange(1, 66)
        scale = choose.randrange(min(precision, 30) + 1)
        digits = "".join(choose.choices(choose.choice(["0123456789", "0", "9"]), k=precision))
        whole, fraction = digits[: precision - scale], digits[precision - scale :]
        return f"CAST('{choose.choice(['', '-'])}{whole or 0}.{fraction or 0}' AS DECIMAL({precision},{scale}))"

    def temporal(self) -> str:
        choose = self.choose
        date = f"{choose.randrange(10_000):04}-{choose.randrange(1, 13):02}-{choose.randrange(1, 29):02}"
        minutes = f"{choose.randrange(60):02}:{choose.randrange(60):02}.{choose.randrange(1_000_000):06}"
        return choose.choice(
            [
                f"DATE'{date}'",
                f"CAST('{date} {choose.randrange(24):02}:{minutes}' AS DATETIME({choose.randrange(7)}))",
                "CAST('0000-00-00' AS DATETIME)",
                "CAST('2024-00-00' AS DATE)",
                f"CAST('{choose.choice(['', '-'])}{choose.randrange(838):02}:{minutes}' AS TIME({choose.randrange(7)}))",
            ]
        )

    def binary(self) -> str:
        size = self.choose.choice([0, 1, 2, 3, 56, 57, 58, 114, 115, 300])
        return f"CAST(x'{self.choose.randbytes(size).hex()}' AS {self.choose.choice(['BINARY', 'BINARY(400)'])})"

    def array(self, depth: int) -> str:
        # So many that places need four bytes.
        members = self.choose.choice([0, 1, 2, 3, 8, 30] if depth or self.choose.random() < 0.99 else [3000])
        return f"JSON_ARRAY({','.join(self.document(depth + 1 if members < 99 else 4) for _ in range(members))})"

    def object(self, depth: int) -> str:
        members = self.choose.choice([0, 1, 2, 3, 8, 30] if depth or self.choose.random() < 0.99 else [2000])
        texts = ",".join(f"{self.text()},{self.document(depth + 1 if members < 99 else 4)}" for _ in range(members))
        return f"JSON_OBJECT({texts})"


def _text(text: str) -> str:
    return f"CONVERT(x'{text.encode().hex()}' USING utf8mb4)"


def stored(events: list[bytes], kind: int) -> Iterator[tuple[int, bytes]]:
    """Number and JSON of every row of inserts into a table of INT and JSON."""
    for event in events:
        if event[4] != kind:
            continue
        body = event[HEADER:-4]
        at = 8 + struct.unpack_from("<H", body, 8)[0] + 2
        while at < len(body):
            assert body[at] == 0, "no value is NULL"
            number, size = struct.unpack_from("<iI", body, at + 1)
            yield number, body[at + 9 : at + 9 + size]
            at += 9 + size


@pytest.mark.parametrize(
    "count", [pytest.param(2_000, id="2000"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]
)
@pytest.mark.timeout(1200)
def test_documents_are_printed_as_the_server_prints_them(mysql: MySQLServer, schema: str, count: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    documents = Documents(seed)
    mysql.execute(f"CREATE TABLE {schema}.j (id INT PRIMARY KEY, j JSON NOT NULL)")
    with recording(mysql) as recorded, mysql.root(schema) as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = ''")
        for first in range(0, count, 50):
            values = (
                f"({i}, JSON_EXTRACT(JSON_ARRAY({documents.document()}), '$[0]'))" for i in range(first, first + 50)
            )
            cursor.execute(f"INSERT INTO j VALUES {','.join(values)}")
    wanted: dict[int, str] = dict(mysql.execute(f"SELECT id, CAST(j AS CHAR) FROM {schema}.j"))
    assert len(wanted) == count
    found = {number: json_text(binary) for number, binary in stored(recorded.events, Type.WRITE_ROWS)}
    assert found.keys() == wanted.keys()
    for number, text in wanted.items():
        assert found[number] == text, number


def test_an_empty_value_is_null(mysql: MySQLServer, schema: str) -> None:
    """As an ALTER TABLE leaves it, which adds a NOT NULL column."""
    mysql.execute(f"CREATE TABLE {schema}.j (id INT PRIMARY KEY)")
    mysql.execute(f"INSERT INTO {schema}.j VALUES (1)")
    mysql.execute(f"ALTER TABLE {schema}.j ADD j JSON NOT NULL")
    with recording(mysql) as recorded:
        mysql.execute(f"CREATE TABLE {schema}.copy AS SELECT * FROM {schema}.j")
    assert mysql.execute(f"SELECT CAST(j AS CHAR) FROM {schema}.copy") == [("null",)]
    assert [json_text(binary) for _, binary in stored(recorded.events, Type.WRITE_ROWS)] == ["null"]


def differences(event: bytes) -> bytes | None:
    """Of the only row of a partial update of a table of INT and JSON: id, old document, id, differences. None where the server found
    the new document to be shorter."""
    body = event[HEADER:-4]
    at = 8 + struct.unpack_from("<H", body, 8)[0] + 3
    assert body[at] == 0
    at += 5
    at += 4 + struct.unpack_from("<I", body, at)[0]
    options, partial, nulls = body[at : at + 3]
    if not options:
        return None
    assert (options, partial, nulls) == (1, 1, 0)
    at += 7
    (size,) = struct.unpack_from("<I", body, at)
    assert at + 4 + size == len(body)
    return body[at + 4 :]


def test_differences_lead_from_the_old_document_to_the_new(mysql: MySQLServer, schema: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    documents = Documents(seed)
    mysql.execute(f"CREATE TABLE {schema}.j (id INT PRIMARY KEY, j JSON NOT NULL)")
    before: dict[str, Any] = {"a": list(range(20)), "ä b": {"c": ["x" * 300, {}], "d": None}, '"q"': "y" * 500}
    paths = [
        "$.a[0]",
        "$.a[7]",
        "$.a[20]",
        "$.a[0].x",
        '$."ä b"',
        '$."ä b".c',
        '$."ä b".c[1].new',
        '$."ä b".d',
        '$."\\"q\\""',
        "$.e",
    ]
    with mysql.root(schema) as connection, connection.cursor() as cursor:
        cursor.execute("SET binlog_row_value_options = PARTIAL_JSON")
        wanted = []
        with recording(mysql) as recorded:
            for number in range(200):
                # Values that have a text which names them: no opaque ones.
                value = [documents.integer, documents.text, documents.literal][number % 3]
                change = "j"
                for path in choose.sample(paths, choose.randrange(1, 4)):
                    function = choose.choice(["JSON_SET", "JSON_SET", "JSON_REPLACE", "JSON_REMOVE"])
                    change = f"{function}({change}, '{path.replace(chr(92), chr(92) * 2)}'"
                    change += ")" if function == "JSON_REMOVE" else f", {value()})"
                cursor.execute("INSERT INTO j VALUES (%s, %s)", (number, json.dumps(before)))
                cursor.execute(f"UPDATE j SET j = {change} WHERE id = {number}")
                cursor.execute(f"SELECT CAST(j AS CHAR) FROM j WHERE id = {number}")
                wanted += [text for (text,) in cursor.fetchall()]
        seen = set()
        partial = [event for event in recorded.events if event[4] == PARTIAL_UPDATE_ROWS]
        numbers = [struct.unpack_from("<i", event, HEADER + 8 + 2 + 4)[0] for event in partial]
        assert len(partial) > 100
        for number, event in zip(numbers, partial, strict=True):
            found = differences(event)
            if found is None:
                continue
            document = json.dumps(before)
            for op, path, value_text in json_diffs(found):
                seen.add(op)
                document = applied(cursor, document, op, path, value_text)
            assert document == wanted[number], number
        assert seen == {REPLACE, INSERT, REMOVE}


def applied(cursor: Any, document: str, op: int, path: str, value: str | None) -> str:
    """The document after one difference, by the server's own functions."""
    if op == REMOVE:
        assert value is None
        cursor.execute("SELECT CAST(JSON_REMOVE(%s, %s) AS CHAR)", (document, path))
    else:
        insert = "JSON_ARRAY_INSERT" if path.endswith("]") else "JSON_INSERT"
        function = "JSON_REPLACE" if op == REPLACE else insert
        cursor.execute(f"SELECT CAST({function}(%s, %s, CAST(%s AS JSON)) AS CHAR)", (document, path, value))
    found: str = cursor.fetchone()[0]
    return found


@pytest.mark.parametrize("data", [b"\x0d", b"\x02\x01\x00", b"\x0c\x01\xff"])
def test_damaged_json_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|shorter"):
        json_text(data)
    with pytest.raises(ValueError, match=r"JSON|shorter"):
        json_diffs(b"\x00\x01$" + bytes([len(data)]) + data)


def legs(choose: random.Random, document: Any) -> str:
    """A path to some place in the document, or just beside it."""
    path = "$"
    while isinstance(document, dict | list) and (path == "$" or choose.random() < 0.7):
        beside = choose.random() < 0.2
        if isinstance(document, dict):
            key = (
                choose.choice(["new", "é é", 'a"b', "\x01", ""])
                if beside or not document
                else choose.choice(list(document))
            )
            path += f".{json.dumps(key, ensure_ascii=False)}"
            document = document.get(key)
        else:
            at = choose.randrange(len(document) + 3) if beside or not document else choose.randrange(len(document))
            path += f"[{at}]"
            document = document[at] if at < len(document) else None
    return path


@pytest.mark.timeout(300)
def test_differences_are_applied_to_the_text_as_the_server_would_print_it(mysql: MySQLServer, schema: str) -> None:
    """Any document, with values of every type in it, and any places: numbers keep their digits, keys their order."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose, documents = random.Random(seed), Documents(seed)
    mysql.execute(f"CREATE TABLE {schema}.j (id INT PRIMARY KEY, j JSON NOT NULL)")
    texts: dict[int, list[str]] = {}
    with mysql.root(schema) as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = '', binlog_row_value_options = PARTIAL_JSON")
        with recording(mysql) as recorded:
            for number in range(150):
                pad = f"'pad', REPEAT('x', 2000), 'list', JSON_ARRAY({documents.document(2)}, {documents.document(3)}, 1.50)"
                cursor.execute(
                    f"INSERT INTO j SELECT {number}, JSON_MERGE_PATCH({documents.object(1)}, JSON_OBJECT({pad}))"
                )
                for _ in range(4):
                    cursor.execute(f"SELECT CAST(j AS CHAR) FROM j WHERE id = {number}")
                    (text,) = next(iter(cursor.fetchall()))
                    texts.setdefault(number, []).append(text)
                    change = "j"
                    for _ in range(choose.randrange(1, 4)):
                        path = _text(legs(choose, json.loads(text)))
                        function = choose.choice(["JSON_SET", "JSON_SET", "JSON_REPLACE", "JSON_REMOVE"])
                        value = "" if function == "JSON_REMOVE" else f", {documents.document(3)}"
                        change = f"{function}({change}, {path}{value})"
                    cursor.execute(f"UPDATE j SET j = {change} WHERE id = {number}")
                cursor.execute(f"SELECT CAST(j AS CHAR) FROM j WHERE id = {number}")
                (text,) = next(iter(cursor.fetchall()))
                texts[number].append(text)
    seen, checked = set(), 0
    for event in recorded.events:
        if event[4] != PARTIAL_UPDATE_ROWS or (found := differences(event)) is None:
            continue
        number = struct.unpack_from("<i", event, HEADER + 8 + 2 + 4)[0]
        diffs = json_diffs(found)
        if not diffs:
            continue
        body = event[HEADER:-4]
        at = 8 + struct.unpack_from("<H", body, 8)[0] + 3 + 1 + 4
        (size,) = struct.unpack_from("<I", body, at)
        before = json_text(body[at + 4 : at + 4 + size])
        places = [n for n, text in enumerate(texts[number][:-1]) if text == before]
        made = json_patch(before, diffs)
        assert any(texts[number][n + 1] == made for n in places), (number, diffs)
        seen |= {op for op, _, _ in diffs}
        checked += 1
    assert checked > 200
    assert seen == {REPLACE, INSERT, REMOVE}
