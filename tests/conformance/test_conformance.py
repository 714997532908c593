"""A row is the same however it is read: by snapshot, by binary log, and as the server prints it. Over random tables; `make test-conformance`.

`CONFORMANCE_SECONDS` (20) is the time for each server, `CONFORMANCE_SEED` the first seed, printed where something differs; a seed alone
repeats its case.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pyarrow as pa
import pymysql
import pytest

from cdc.capture.native import NativeDecoder
from cdc.config import SourceConfig
from cdc.names import TableName
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from tests.conformance import reading
from tests.conformance.cases import Flavor, make
from tests.reference.decoder import ReferenceDecoder

SECONDS = float(os.environ.get("CONFORMANCE_SECONDS", "20"))
LEAST_ROWS = 1000
"""Rows compared on each server, however slow the machine."""
_TOO_WIDE = (1118, 1139)


def execute(server: MySQLServer | MariaDBServer, schema: str, statements: list[str]) -> None:
    with server.root(schema) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'")
        for statement in statements:
            cursor.execute(statement)


def check(server: MySQLServer | MariaDBServer, schema: str, seed: int, flavor: Flavor) -> int:
    """Run one case; the number of rows compared."""
    case = make(seed, flavor)
    source = SourceConfig(url=server.url())
    table = TableName(schema, "t")
    execute(server, schema, ["DROP TABLE IF EXISTS t"])
    try:
        execute(server, schema, [case.create])
    except pymysql.MySQLError as error:
        if error.args[0] in _TOO_WIDE:
            return 0
        raise
    before = reading.position(source)
    execute(server, schema, [*case.prepare, *case.statements])
    end = reading.end(source)
    of = reading.schema_of(source, table)
    if any(c.charset == "binary" for c in of.columns):
        return 0  # ENUM and SET of bytes are refused, as docs/types.md says
    told = f"seed {seed} on {flavor}: {case.create}"
    read = reading.snapshot(source, table, of)
    compare(reading.snapshot(source, table, of, text=True), read, f"text and binary rows, {told}")
    assert reading.texts(read, of) == reading.printed(source, table, of), told
    assert reading.digests_of(read, of) == reading.digested(source, table, of), told
    changes = reading.streamed(source, table, of, before, end)
    left = reading.left(changes, of)
    keys = list(zip(*(read.column(n).to_pylist() for n in of.key), strict=True)) if read.num_rows else []
    assert set(left) == set(keys), told
    compare(reading.rows_of(changes, [left[k] for k in keys], of), read, told)
    return int(changes.num_rows)


def compare(found: pa.Table, read: pa.Table, told: str) -> None:
    if found.equals(read):
        return
    assert found.schema == read.schema, told
    for name, one, other in zip(found.column_names, found.columns, read.columns, strict=True):
        if not bits(one).equals(bits(other)):
            assert one.to_pylist() == other.to_pylist(), f"column {name}, {told}"
            raise AssertionError(f"column {name} differs in its bits, {told}")


def bits(column: Any) -> Any:
    """-0.0 is another value than 0.0."""
    if pa.types.is_floating(column.type):
        kind = pa.int32() if column.type == pa.float32() else pa.int64()
        return column.combine_chunks().view(kind)
    return column


@pytest.mark.timeout(0)
@pytest.mark.parametrize("flavor", ["mysql", "mariadb"])
def test_snapshot_stream_and_server_agree(flavor: Flavor, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(flavor)
    schema = request.getfixturevalue("schema" if flavor == "mysql" else "mariadb_schema")
    given = os.environ.get("CONFORMANCE_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(10**9)
    print(f"CONFORMANCE_SEED={seed}")
    deadline, rows = time.monotonic() + SECONDS, 0
    while time.monotonic() < deadline or rows < LEAST_ROWS:
        rows += check(server, schema, seed, flavor)
        seed += 1
    print(f"{rows} rows compared on {flavor}")


@pytest.mark.timeout(0)
def test_the_reference_decoder_gives_the_same(mysql: MySQLServer, schema: str) -> None:
    source, table = SourceConfig(url=mysql.url()), TableName(schema, "t")
    given = os.environ.get("CONFORMANCE_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(10**9)
    print(f"CONFORMANCE_SEED={seed}")
    deadline, rows = time.monotonic() + SECONDS / 2, 0
    while time.monotonic() < deadline or rows < LEAST_ROWS:
        case = make(seed, "mysql", referred=True)
        told = f"seed {seed}: {case.create}"
        execute(mysql, schema, ["DROP TABLE IF EXISTS t", case.create])
        before = reading.position(source)
        execute(mysql, schema, [*case.prepare, *case.statements])
        of = reading.schema_of(source, table)
        pieces = reading.sent(source, before, reading.end(source))
        one, changes = reading.decoded(NativeDecoder(), pieces, table, of)
        other, expected = reading.decoded(ReferenceDecoder(), pieces, table, of)
        compare(changes, expected, told)
        for name in ("whole", "executed", "end", "framing", "last", "partial", "skipped"):
            assert getattr(one, name) == getattr(other, name), told
        assert (list(one.gtids), list(one.commit_us)) == (list(other.gtids), list(other.commit_us)), told
        rows += changes.num_rows
        seed += 1
    print(f"{rows} rows compared")
