"""The decoder's contract, for every implementation, on events of a real server."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pyarrow as pa
import pytest

from cdc.capture.base import FRAMING, Decoder
from cdc.capture.native import NativeDecoder
from cdc.epoch import Op
from cdc.errors import BinlogError, TableStoppedError, UnsupportedEventError
from cdc.log.codec import WIDTH
from cdc.names import TableName, quote_identifier
from cdc.position import Gtid, GtidSet
from cdc.schema import TableSchema
from dev.mysql import MySQLServer
from tests.contract.binlog import (
    Decoded,
    Packets,
    Recording,
    decode,
    query_event,
    rechained,
    recording,
    run,
    schema_of,
    sealed,
    transaction,
)
from tests.contract.decoding import drained, ends, folded, rows, stopped, table_rows
from tests.reference.decoder import KNOWN_GAPS, ReferenceDecoder
from tests.reference.events import Type

DECODERS: dict[Callable[..., Decoder], tuple[str, ...]] = {NativeDecoder: (), ReferenceDecoder: KNOWN_GAPS}
"""Each with what it is known not to do."""
TYPES = """
    id INT PRIMARY KEY,
    i8 TINYINT, u8 TINYINT UNSIGNED, i16 SMALLINT, u16 SMALLINT UNSIGNED, i24 MEDIUMINT, u24 MEDIUMINT UNSIGNED,
    i32 INT, u32 INT UNSIGNED, i64 BIGINT, u64 BIGINT UNSIGNED,
    d1 DECIMAL(38,9), d2 DECIMAL(5,0) UNSIGNED, d3 DECIMAL(3,3), d4 DECIMAL(18,9), d5 DECIMAL(1,1), f DOUBLE,
    c CHAR(200), v VARCHAR(300), a VARCHAR(20) CHARACTER SET ascii, u VARCHAR(20) CHARACTER SET utf8mb3,
    tt TINYTEXT, t TEXT, mt MEDIUMTEXT, lt LONGTEXT COLLATE utf8mb4_bin,
    b BINARY(8), vb VARBINARY(300), tb TINYBLOB, bl BLOB, mb MEDIUMBLOB, lb LONGBLOB,
    da DATE, dt DATETIME, dt1 DATETIME(1), dt2 DATETIME(2), dt3 DATETIME(3), dt4 DATETIME(4), dt5 DATETIME(5), dt6 DATETIME(6),
    ts TIMESTAMP NULL, ts1 TIMESTAMP(1) NULL, ts3 TIMESTAMP(3) NULL, ts6 TIMESTAMP(6) NULL,
    e ENUM('', 'a', 'it''s', 'ü'), big ENUM({members})
""".format(members=",".join(f"'m{i}'" for i in range(300)))


def lacking(gap: str) -> pytest.MarkDecorator:
    """A test of how a decoder refuses what it is known not to do. What the others do is in `test_decoder_native.py`."""
    assert gap in KNOWN_GAPS
    found = [d for d, gaps in DECODERS.items() if gap in gaps]
    return pytest.mark.parametrize("make", found, ids=lambda d: d.__name__, indirect=True)


@pytest.fixture(params=DECODERS, ids=lambda d: d.__name__)
def make(request: pytest.FixtureRequest) -> Callable[[], Decoder]:
    """Makes a decoder."""
    made: Callable[[], Decoder] = request.param
    return made


@pytest.fixture
def decoder(make: Callable[[], Decoder]) -> Decoder:
    return make()


@pytest.fixture
def t(mysql: MySQLServer, schema: str) -> dict[TableName, TableSchema]:
    """A small table, `t`, captured."""
    run(mysql, schema, "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(20))", "CREATE TABLE other (id INT PRIMARY KEY)")
    return {TableName(schema, "t"): schema_of(mysql, schema, "t")}


# rows


def test_every_form_of_dml_leaves_the_tables_rows(
    decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, NULL), (4, 'd')",
            "UPDATE t SET v = CONCAT(v, '!')",
            "DELETE FROM t WHERE id = 4",
            "REPLACE INTO t VALUES (1, 'replaced'), (5, 'new')",
            "INSERT INTO t VALUES (2, 'x') ON DUPLICATE KEY UPDATE v = 'duplicate'",
            "UPDATE t SET id = id + 100 WHERE id > 2 ORDER BY id DESC",
            "INSERT INTO t SELECT id + 1000, v FROM t",
        )
    found = drained(decoder, recorded, t)
    (of,) = t.values()
    assert folded(found, "t", of) == [tuple(r.values()) for r in table_rows(mysql, schema, "t", of).to_pylist()]
    assert [r["seq"] for r in rows(found, "t") if r["op"] != Op.MOVE_OUT] == list(range(1, 18))
    assert {r["ts_ms"] for r in rows(found, "t")} == {0}


def test_an_update_of_the_key_is_a_move_out_and_an_update_with_one_global_id(
    decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    run(mysql, schema, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    with recording(mysql) as recorded:
        run(mysql, schema, "UPDATE t SET id = id + 10, v = 'z' ORDER BY id DESC")
    found = rows(drained(decoder, recorded, t), "t")
    assert [(r["op"], r["event"], r["row"], r["seq"], r["cells"]) for r in found] == [
        (Op.MOVE_OUT, 0, 0, 1, (2, "b")),
        (Op.UPDATE, 0, 0, 1, (12, "z")),
        (Op.MOVE_OUT, 0, 1, 2, (1, "a")),
        (Op.UPDATE, 0, 1, 2, (11, "z")),
    ]


def test_a_key_that_only_collation_equates_is_another_key(decoder: Decoder, mysql: MySQLServer, schema: str) -> None:
    run(mysql, schema, "CREATE TABLE k (id VARCHAR(10) PRIMARY KEY)", "INSERT INTO k VALUES ('a')")
    with recording(mysql) as recorded:
        run(mysql, schema, "UPDATE k SET id = 'A'")
    found = rows(drained(decoder, recorded, {TableName(schema, "k"): schema_of(mysql, schema, "k")}), "k")
    assert [(r["op"], r["cells"]) for r in found] == [(Op.MOVE_OUT, ("a",)), (Op.UPDATE, ("A",))]


def test_ordinals_count_row_events_of_every_table_and_never_depend_on_what_is_captured(
    make: Callable[[], Decoder], mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "BEGIN",
            "INSERT INTO other VALUES (1)",
            "INSERT INTO t VALUES (1, 'a')",
            "INSERT INTO other VALUES (2), (3)",
            "INSERT INTO t VALUES (2, 'b'), (3, 'c')",
            "COMMIT",
        )
    found = drained(make(), recorded, t)
    assert [(r["event"], r["row"]) for r in rows(found, "t")] == [(1, 0), (3, 0), (3, 1)]
    assert found.transactions[0].row_events == 4
    both = t | {TableName(schema, "other"): schema_of(mysql, schema, "other")}
    again = drained(make(), recorded, both)
    assert [(r["event"], r["row"]) for r in rows(again, "t")] == [(1, 0), (3, 0), (3, 1)]
    assert [r["event"] for r in rows(again, "other")] == [0, 2, 2]
    assert sorted(r["seq"] for name in ("t", "other") for r in rows(again, name)) == [1, 2, 3, 4, 5, 6]
    assert again.transactions == found.transactions
    assert (found.framing["rows_skipped"], again.framing["rows_skipped"]) == (2, 0)


EDGES = {
    "low": """-128, 0, -32768, 0, -8388608, 0, -2147483648, 0, -9223372036854775808, 0,
        -99999999999999999999999999999.999999999, 0, -0.999, -999999999.999999999, -0.9, -1.7976931348623157e308,
        '', '', '', '', '', '', '', '', '', '', '', '', '', '', '0001-01-01', '0001-01-01 00:00:00', '0001-01-01 00:00:00.1',
        '1000-01-01 00:00:00.01', '1969-12-31 23:59:59.999', '1900-02-28 01:02:03.0004', '1999-12-31 23:59:59.99999', '1000-01-01 00:00:00.000001',
        '1970-01-01 00:00:01', '1970-01-01 00:00:01.1', '1970-01-01 00:00:01.001', '1970-01-01 00:00:01.000001', '', 'm0'""",
    "high": """127, 255, 32767, 65535, 8388607, 16777215, 2147483647, 4294967295, 9223372036854775807, 18446744073709551615,
        99999999999999999999999999999.999999999, 99999, 0.999, 999999999.999999999, 0.9, 1.7976931348623157e308,
        REPEAT('😀', 200), REPEAT('é', 300), 'plain', 'ümlaut', REPEAT('x', 255), REPEAT('ß', 30000), REPEAT('y', 70000), REPEAT('z', 70000),
        0xFF00FF00FF00FF00, REPEAT(0xFF, 300), REPEAT(0x00, 255), REPEAT(0xFE, 65535), REPEAT(0x01, 70000), REPEAT(0x80, 70000),
        '9999-12-31', '9999-12-31 23:59:59', '9999-12-31 23:59:59.9', '9999-12-31 23:59:59.99', '9999-12-31 23:59:59.999',
        '9999-12-31 23:59:59.9999', '9999-12-31 23:59:59.99999', '9999-12-31 23:59:59.999999',
        '2038-01-19 03:14:07', '2038-01-19 03:14:07.9', '2038-01-19 03:14:07.999', '2038-01-19 03:14:07.999999', 'ü', 'm299'""",
    "odd": """-1, 1, -1, 1, -1, 1, -1, 1, -1, 9223372036854775808,
        -0.000000001, 1, 0.001, -0.000000001, 0.1, -0.0, ' trailing  ', 'tab\\tnull\\0', 'x', 'ﬀ', 'a', 'b', 'c', 'd',
        0x0100, 0x000000, 0x00, 0x0A, 0x0D, 0x7F, '2024-02-29', '2024-02-29 12:34:56', '2024-02-29 12:34:56.5', '2024-02-29 12:34:56.05',
        '2024-02-29 12:34:56.005', '2024-02-29 12:34:56.0005', '2024-02-29 12:34:56.00005', '2024-02-29 12:34:56.000005',
        '2024-02-29 12:34:56', '2024-02-29 12:34:56.5', '2024-02-29 12:34:56.005', '2024-02-29 12:34:56.000005', 'it''s', 'm255'""",
}


def test_every_type_gives_the_same_arrow_as_a_snapshot(decoder: Decoder, mysql: MySQLServer, schema: str) -> None:
    run(mysql, schema, f"CREATE TABLE types ({TYPES})")
    of = schema_of(mysql, schema, "types")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET time_zone = '+00:00'",
            *(f"INSERT INTO types VALUES ({n}, {cells})" for n, cells in enumerate(EDGES.values())),
            "INSERT INTO types (id) VALUES (3)",
            "SET time_zone = '+05:30'",
            "INSERT INTO types (id, ts, dt) VALUES (4, '2024-02-29 12:34:56', '2024-02-29 12:34:56')",
            "INSERT INTO types (id, e) VALUES (5, 0)",  # ENUM's error value
        )
    found = drained(decoder, recorded, {TableName(schema, "types"): of})
    assert found.stops == []
    stream = pa.Table.from_batches([c.batch for c in found.changes]).combine_chunks().to_batches()[0]
    snapshot = table_rows(mysql, schema, "types", of)
    assert stream.num_rows == 6
    for place, column in enumerate(of.columns):
        assert stream.column(WIDTH + place).equals(snapshot.column(place)), column


@pytest.mark.parametrize(
    "digits", [(p, s) for p in (1, 2, 9, 10, 18, 19, 38) for s in (0, 1, p // 2, p) if s <= min(p, 30)]
)
def test_decimals_are_exact(digits: tuple[int, int], decoder: Decoder, mysql: MySQLServer, schema: str) -> None:
    precision, scale = digits
    run(mysql, schema, f"CREATE TABLE d (id INT PRIMARY KEY, d DECIMAL({precision},{scale}))")
    of = schema_of(mysql, schema, "d")
    generator = random.Random(precision * 100 + scale)
    numbers = [10**precision - 1, 1, 0, 10 ** (precision - 1), *(generator.randrange(10**precision) for _ in range(6))]
    texts = [f"{sign}{n}e-{scale}" for n in numbers for sign in ("", "-")]
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO d VALUES " + ", ".join(f"({i}, '{n}')" for i, n in enumerate(texts)))
    found = drained(decoder, recorded, {TableName(schema, "d"): of})
    assert found.changes[0].batch.column(WIDTH + 1).equals(table_rows(mysql, schema, "d", of).column(1))


UNUSUAL = {
    "generated columns": "id INT PRIMARY KEY, a INT AS (id + 1) VIRTUAL, b INT AS (id + 2) STORED, c INT",
    "an invisible column": "id INT PRIMARY KEY, a INT INVISIBLE DEFAULT 7, b INT",
    "an index on an expression": "id INT PRIMARY KEY, a INT, KEY ((a + 1)), b INT",
    "a key on prefixes": "a VARCHAR(20), b BLOB, c INT, PRIMARY KEY (b(5), a(3))",
    "a key in another order": "a INT, b INT, c INT, PRIMARY KEY (c, a)",
    "partitions": "id INT PRIMARY KEY, c INT) PARTITION BY HASH (id) PARTITIONS 3 /*",
    "many columns": "id INT PRIMARY KEY, " + ", ".join(f"c{i} INT UNSIGNED" for i in range(300)),
    "odd names": "`id``;` INT PRIMARY KEY, `ü .%s` TEXT",
    "other charsets beside": "id INT PRIMARY KEY, a VARCHAR(9) CHARACTER SET ascii, b TEXT CHARACTER SET utf8mb3, c ENUM('x') CHARACTER SET utf8mb3, d TEXT",
}


@pytest.mark.parametrize("columns", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_tables_are_described_alike_by_snapshot_and_stream(
    columns: str, decoder: Decoder, mysql: MySQLServer, schema: str
) -> None:
    run(mysql, schema, f"CREATE TABLE x ({columns}\n{'*/' if '/*' in columns else ')'}")
    of = schema_of(mysql, schema, "x")
    names = [quote_identifier(n) for n in of.names if n not in ("a", "b") or "AS" not in columns]
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            f"INSERT INTO x ({', '.join(names)}) VALUES ({', '.join('1' for _ in names)})",
            f"UPDATE x SET {names[-1]} = '2'",
        )
    found = drained(decoder, recorded, {TableName(schema, "x"): of})
    assert found.stops == []
    assert folded(found, "x", of) == [tuple(r.values()) for r in table_rows(mysql, schema, "x", of).to_pylist()]


def test_a_table_of_every_other_type_is_described_alike(decoder: Decoder, mysql: MySQLServer, schema: str) -> None:
    run(
        mysql,
        schema,
        "CREATE TABLE later (id INT PRIMARY KEY, y YEAR, b BIT(9), f FLOAT, j JSON, g POINT, s SET('a','b'), ti TIME(3), u INT UNSIGNED,"
        " l VARCHAR(9) CHARACTER SET latin1, w DECIMAL(65,30))",
    )
    of = schema_of(mysql, schema, "later")
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO later (id, u) VALUES (1, 1)")
    found = drained(decoder, recorded, {TableName(schema, "later"): of})
    # Who cannot read the table stops it for its types, and not for a difference.
    assert not any("as it was" in stop.error.what for stop in found.stops)
    assert len(rows(found, "later")) + len(found.stops) == 1


# transactions


def test_transactions_are_told_with_fingerprint_and_end(
    make: Callable[[], Decoder], mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET timestamp = 1000000000",
            "INSERT INTO t VALUES (1, 'a')",
            "INSERT INTO other VALUES (1)",
            "ANALYZE TABLE t",
        )
    decoder = make()
    found = drained(decoder, recorded, t)
    assert len(found.transactions) == 3
    for transaction_, following in itertools.pairwise(found.transactions):
        # The commit time is the server's clock, whatever the session's is.
        assert 1_700_000_000_000_000 < transaction_.commit_us <= following.commit_us
    places = ends(make(), recorded, t)
    assert places == sorted(set(places))
    assert places[-1] == recorded.end == found.end
    uuid = mysql.execute("SELECT @@server_uuid")[0][0]
    assert all(t.gtid.sid == uuid for t in found.transactions)
    first = found.transactions[0].gtid.number
    assert found.executed == GtidSet({uuid: ((first, first + 2),)})
    size = sum(len(e) for i in recorded.of_type(Type.GTID) for e in transaction(recorded.events, i))
    assert found.framing == {
        "events": 12,
        "bytes": size,
        "transactions": 3,
        "row_events": 2,
        "statements": 1,
        "rows_skipped": 1,
        "unfit": 0,
    }
    assert decoder.drain().framing == dict.fromkeys(FRAMING, 0)


def test_a_drain_gives_whole_transactions_only(
    decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')")
    decoder.capture(t)
    packets, events, given = Packets(), 0, []
    for event in recorded.events:
        assert decoder.feed(packets.of(event))
        found = Decoded()
        found.add(decoder.drain())
        events += len(found.transactions)
        given += [(r["txn"], r["seq"], r["cells"]) for r in rows(found, "t")]
        if not decoder.idle:
            with pytest.raises(ValueError, match="between transactions"):
                decoder.capture(t)
    assert events == 2
    assert given == [(0, 1, (1, "a")), (0, 1, (2, "b"))]
    assert decoder.pending_bytes == 0


def test_create_select_ends_with_its_last_event(
    decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    run(mysql, schema, "INSERT INTO t VALUES (1, 'a')")
    with recording(mysql) as recorded:
        run(mysql, schema, "CREATE TABLE copy (PRIMARY KEY (id)) SELECT * FROM t")
    of = schema_of(mysql, schema, "copy")
    decoder.capture({TableName(schema, "other"): of})
    packets = Packets()
    for event in recorded.events[: recorded.of_type(Type.XID)[0]]:
        assert decoder.feed(packets.of(event))
        assert not decoder.drain().gtids
    found = decode(decoder, recorded.events[recorded.of_type(Type.XID)[0] :], packets)
    assert [t.row_events for t in found.transactions] == [1]


def test_tables_without_transactions_end_with_commit(decoder: Decoder, mysql: MySQLServer, schema: str) -> None:
    run(mysql, schema, "CREATE TABLE m (id INT PRIMARY KEY) ENGINE = MyISAM")
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO m VALUES (1), (2)", "DELETE FROM m WHERE id = 1")
    found = drained(decoder, recorded, {TableName(schema, "m"): schema_of(mysql, schema, "m")})
    assert recorded.of_type(Type.XID) == []
    assert [(r["op"], r["txn"], r["cells"]) for r in rows(found, "m")] == [(0, 0, (1,)), (0, 0, (2,)), (2, 1, (1,))]


def test_what_a_savepoint_took_back_is_not_there(
    decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "BEGIN", "INSERT INTO t VALUES (1, 'a')", "SAVEPOINT s", "INSERT INTO t VALUES (2, 'b')")
        run(
            mysql,
            schema,
            "BEGIN",
            "INSERT INTO t VALUES (3, 'a')",
            "SAVEPOINT s",
            "INSERT INTO t VALUES (4, 'b')",
            "ROLLBACK TO s",
            "INSERT INTO t VALUES (5, 'c')",
            "SAVEPOINT x",
            "RELEASE SAVEPOINT x",
            "COMMIT",
        )
    assert [r["cells"][0] for r in rows(drained(decoder, recorded, t), "t")] == [3, 5]


@pytest.mark.parametrize(
    ("undo", "left"),
    [("ROLLBACK TO `S`", [1, 3]), ("ROLLBACK TO SAVEPOINT s", [1, 3]), ("ROLLBACK", []), ("COMMIT", [1, 2, 3])],
)
def test_what_the_log_itself_takes_back_is_not_there(
    undo: str,
    left: list[int],
    make: Callable[[], Decoder],
    mysql: MySQLServer,
    schema: str,
    t: dict[TableName, TableSchema],
) -> None:
    # Servers write this where not everything can be undone; with GTIDs they avoid it, so the events are put together here.
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "BEGIN",
            "INSERT INTO t VALUES (1, 'a')",
            "SAVEPOINT s",
            "INSERT INTO t VALUES (2, 'b')",
            "INSERT INTO t VALUES (3, 'c')",
            "COMMIT",
        )
    events = list(recorded.events)
    event = query_event(events[recorded.of_type(Type.QUERY)[1]], undo)
    if " TO " in undo:
        events.insert(recorded.of_type(Type.WRITE_ROWS)[1] + 1, event)
    else:
        events[recorded.of_type(Type.XID)[0]] = event
    decoder = make()
    decoder.capture(t)
    found = decode(decoder, rechained(events))
    assert [r["cells"][0] for r in rows(found, "t")] == left
    assert [r["event"] for r in rows(found, "t")] == [n - 1 for n in left]
    assert found.transactions[0].row_events == 3
    assert found.framing["rows_skipped"] == 3 - len(left)
    assert decoder.idle


def test_rotations_and_heartbeats_move_the_end(
    make: Callable[[], Decoder], mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO t VALUES (1, 'a')",
            "FLUSH BINARY LOGS",
            "INSERT INTO t VALUES (2, 'b')",
            "FLUSH BINARY LOGS",
        )
    found = drained(make(), recorded, t)
    assert [r["cells"][0] for r in rows(found, "t")] == [1, 2]
    first, second = ends(make(), recorded, t)
    assert first < second < found.end == recorded.end


def test_heartbeats_of_both_versions_say_the_same(
    make: Callable[[], Decoder], mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a')", "FLUSH BINARY LOGS")
    events = []
    for event in recorded.events:
        if event[4] == Type.HEARTBEAT:
            name, offset = event[19:-4], int.from_bytes(event[13:17], "little")
            fields = bytes([1, len(name)]) + name + bytes([2, 4, 253]) + offset.to_bytes(3, "little") + b"\0"
            event = sealed(event[:4] + bytes([Type.HEARTBEAT_V2]) + event[5:19] + fields + bytes(4), 0)
        events.append(event)
    assert drained(make(), Recording(events), t).end == drained(make(), recorded, t).end == recorded.end


def test_offsets_beyond_four_gigabytes_go_on(
    make: Callable[[], Decoder], mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')")
    # The first heartbeat stands for what was not asked for; there the offset jumps.
    jump = recorded.of_type(Type.HEARTBEAT)[0]
    assert jump < recorded.of_type(Type.GTID)[0]
    gap = 2**32 - 500 - 4 - sum(map(len, recorded.events[1:jump]))
    shifted = Recording(rechained(recorded.events, gap))
    found = drained(make(), shifted, t)
    assert [r["cells"][0] for r in rows(found, "t")] == [1, 2]
    first, second = ends(make(), shifted, t)
    assert first.offset < 2**32 < second.offset == found.end.offset


def test_a_log_without_checksums_is_read(decoder: Decoder, mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory(options=["--binlog-checksum=NONE"])
    run(server, "mysql", "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(20))")
    of = schema_of(server, "s", "t")
    with recording(server) as recorded:
        run(
            server,
            "s",
            "INSERT INTO t VALUES (1, 'a')",
            "SET GLOBAL binlog_checksum = 'CRC32'",
            "INSERT INTO t VALUES (2, 'b')",
            "SET GLOBAL binlog_checksum = 'NONE'",
            "INSERT INTO t VALUES (3, 'c')",
        )
    found = drained(decoder, recorded, {TableName("s", "t"): of})
    assert [r["cells"] for r in rows(found, "t")] == [(1, "a"), (2, "b"), (3, "c")]
    assert found.end == recorded.end


# what stops a table


STATEMENTS = {
    "add a column": "ALTER TABLE t ADD COLUMN x INT",
    "truncate": "TRUNCATE t",
    "drop": "DROP TABLE t",
    "rename": "RENAME TABLE t TO t2",
    "swap": "RENAME TABLE t TO t2, other TO t",
    "statement format": "INSERT INTO t VALUES (100, 'x')",
    "statement format, two tables": "UPDATE other, t SET t.v = 'y' WHERE other.id = t.id + 100",
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_a_statement_that_changes_a_captured_table_stops_it_there_and_no_other(
    statement: str, decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    run(mysql, schema, "CREATE TABLE u (id INT PRIMARY KEY)")
    tables = t | {TableName(schema, "u"): schema_of(mysql, schema, "u")}
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO t VALUES (1, 'a')",
            "SET binlog_format = 'STATEMENT'",
            statement,
            "SET binlog_format = 'ROW'",
            "INSERT INTO u VALUES (1)",
        )
        run(
            mysql,
            schema,
            "CREATE TABLE IF NOT EXISTS t (id INT PRIMARY KEY, v VARCHAR(20))",
            "INSERT INTO t (id) VALUES (3)",
        )
    found = drained(decoder, recorded, tables)
    txn, error = stopped(found, "t")
    assert txn == 1
    assert "resync" in error.hint
    assert [r["cells"] for r in rows(found, "t")] == [(1, "a")]
    assert [r["cells"] for r in rows(found, "u")] == [(1,)]
    # Given up until it is captured anew.
    assert drained(decoder, Recording(), tables).stops == []


def test_other_statements_are_counted_and_passed(
    decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "CREATE TABLE x (id INT)",
            "ALTER TABLE other ADD COLUMN y INT",
            "RENAME TABLE x TO t2",
            "CREATE TABLE IF NOT EXISTS t (id INT)",
            "ANALYZE TABLE t",
            "OPTIMIZE TABLE t",
            "CREATE INDEX i ON t (v)",
            "CREATE VIEW w AS SELECT * FROM t",
            "CREATE TABLE y LIKE t",
            "FLUSH TABLES",
            "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW SET NEW.v = 'trigger'",
            "INSERT INTO t VALUES (1, 'a')",
            "SET binlog_format = 'STATEMENT'",
            "INSERT INTO other VALUES (1, 2)",
            "DROP TABLE y",
            "CREATE TEMPORARY TABLE t (id INT)",
        )
    found = drained(decoder, recorded, t)
    assert found.stops == []
    assert found.framing["statements"] == 15
    assert [r["cells"] for r in rows(found, "t")] == [(1, "trigger")]


@lacking("incomplete row images")
@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
def test_an_incomplete_image_stops_its_table(image: str, decoder: Decoder, mysql: MySQLServer, schema: str) -> None:
    run(mysql, schema, "CREATE TABLE b (id INT PRIMARY KEY, v INT, x BLOB)")
    of = schema_of(mysql, schema, "b")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO b VALUES (1, 1, 'x')",
            f"SET binlog_row_image = '{image}'",
            "INSERT INTO b VALUES (2, 2, 'y')",
            "UPDATE b SET v = 3 WHERE id = 1",
        )
    found = drained(decoder, recorded, {TableName(schema, "b"): of})
    txn, error = stopped(found, "b")
    assert "binlog_row_image" in error.hint
    assert [r["cells"][0] for r in rows(found, "b")] == [1, 2][:txn]


@lacking("JSON differences")
def test_a_json_difference_stops_its_table(decoder: Decoder, mysql: MySQLServer, schema: str) -> None:
    run(
        mysql,
        schema,
        "CREATE TABLE j (id INT PRIMARY KEY, j JSON)",
        """INSERT INTO j VALUES (1, '{"a": "a long enough text"}')""",
    )
    of = schema_of(mysql, schema, "j")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET binlog_row_value_options = 'PARTIAL_JSON'",
            "UPDATE j SET j = JSON_SET(j, '$.a', 'short')",
        )
    assert recorded.of_type(Type.PARTIAL_UPDATE_ROWS)
    _, error = stopped(drained(decoder, recorded, {TableName(schema, "j"): of}), "j")
    assert "PARTIAL_JSON" in error.what


def test_a_log_that_does_not_name_columns_stops_the_table(
    decoder: Decoder, mysql_factory: Callable[..., MySQLServer]
) -> None:
    server = mysql_factory(options=["--binlog-row-metadata=MINIMAL"])
    run(server, "mysql", "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(20))")
    with recording(server) as recorded:
        run(server, "s", "INSERT INTO t VALUES (1, 'a')")
    found = drained(decoder, recorded, {TableName("s", "t"): schema_of(server, "s", "t")})
    _, error = stopped(found, "t")
    assert "SET GLOBAL binlog_row_metadata = FULL" in error.hint
    assert found.changes == []


def test_a_table_that_is_not_as_it_was_added_stops_and_says_what_differs(
    decoder: Decoder, mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    run(mysql, schema, "ALTER TABLE t ADD COLUMN extra INT, MODIFY v VARCHAR(30)")
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a', 2)", "INSERT INTO t VALUES (2, 'a', 2)")
    found = drained(decoder, recorded, t)
    txn, error = stopped(found, "t")
    assert txn == 0
    assert "column extra is new" in error.what
    assert found.changes == []


UNFIT = {
    "zero date": ("d DATE", "'0000-00-00'"),
    "zero in date": ("d DATE", "'2024-00-10'"),
    "no such day": ("d DATE", "'2023-02-31'"),
    "zero datetime": ("d DATETIME(3)", "'0000-00-00 00:00:00'"),
    "no such day and time": ("d DATETIME", "'2023-02-31 10:00:00'"),
    "zero timestamp": ("d TIMESTAMP NULL", "0"),
}


@lacking("values kept as text")
@pytest.mark.parametrize(("column", "value"), UNFIT.values(), ids=UNFIT.keys())
def test_a_value_that_does_not_fit_stops_its_table_at_that_transaction(
    column: str, value: str, decoder: Decoder, mysql: MySQLServer, schema: str
) -> None:
    run(mysql, schema, f"CREATE TABLE unfit (id INT PRIMARY KEY, {column})")
    of = schema_of(mysql, schema, "unfit")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO unfit VALUES (1, NULL)",
            f"INSERT INTO unfit VALUES (2, NULL), (3, {value})",
            "INSERT INTO unfit VALUES (4, NULL)",
        )
    found = drained(decoder, recorded, {TableName(schema, "unfit"): of})
    txn, error = stopped(found, "unfit")
    assert txn == 1
    assert isinstance(error, TableStoppedError)
    assert "column d" in error.what
    assert [r["cells"][0] for r in rows(found, "unfit")] == [1]


def test_a_value_that_only_the_whole_batch_shows_stops_its_table_at_that_transaction(
    decoder: Decoder, mysql: MySQLServer, schema: str
) -> None:
    run(mysql, schema, "CREATE TABLE flag (id INT PRIMARY KEY, f TINYINT)")
    of = schema_of(mysql, schema, "flag").with_overrides({"f": "boolean"})
    with recording(mysql) as recorded:
        run(mysql, schema, *(f"INSERT INTO flag VALUES ({n}, {2 if n == 3 else 1})" for n in range(6)))
    found = drained(decoder, recorded, {TableName(schema, "flag"): of})
    txn, _ = stopped(found, "flag")
    assert txn == 3
    assert [r["cells"] for r in rows(found, "flag")] == [(0, True), (1, True), (2, True)]


# what stops everything


FUNCTION = ["SET binlog_format = 'STATEMENT'", "SELECT f()", "SET binlog_format = 'ROW'"]
GAPS = {
    "XA transactions": ["XA START 'x'", "INSERT INTO t VALUES (2, 'x')", "XA END 'x'", "XA COMMIT 'x' ONE PHASE"],
    "compressed transactions": [
        "SET binlog_transaction_compression = ON",
        "INSERT INTO t VALUES (2, 'x')",
        "SET binlog_transaction_compression = OFF",
    ],
}
REFUSED = [(make, FUNCTION) for make in DECODERS] + [
    (make, statements) for make, gaps in DECODERS.items() for gap, statements in GAPS.items() if gap in gaps
]


@pytest.mark.parametrize(("make", "statements"), REFUSED, indirect=["make"])
def test_what_is_not_understood_ends_the_stream_and_can_be_passed_over(
    statements: list[str], make: Callable[[], Decoder], mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    run(
        mysql,
        schema,
        "CREATE FUNCTION f() RETURNS INT DETERMINISTIC MODIFIES SQL DATA BEGIN INSERT INTO t VALUES (2, 'f'); RETURN 1; END",
    )
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a')", *statements, "INSERT INTO t VALUES (3, 'c')")
    decoder = make()
    decoder.capture(t)
    with pytest.raises(UnsupportedEventError) as refused:
        decode(decoder, recorded.events)
    found = Decoded()
    found.add(decoder.drain())
    assert [r["cells"] for r in rows(found, "t")] == [(1, "a")]
    assert len(found.transactions) == 1
    before = found.transactions[0].gtid
    bad = Gtid(before.sid, before.number + 1)
    assert f"lakesync skip {bad}" in refused.value.hint
    assert str(bad) in refused.value.where
    with pytest.raises(UnsupportedEventError):
        decoder.feed(b"")
    again = make()
    again.pass_over({bad})
    found = drained(again, recorded, t)
    assert found.skipped == (str(bad),)
    assert [r["cells"] for r in rows(found, "t")] == [(1, "a"), (3, "c")]
    assert [t.gtid.number - before.number for t in found.transactions] == [0, 1, 2]


@lacking("tagged GTIDs")
def test_a_tagged_gtid_ends_the_stream(decoder: Decoder, mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    with recording(server) as recorded:
        run(server, "mysql", "SET gtid_next = 'AUTOMATIC:tag'", "CREATE DATABASE s")
    with pytest.raises(UnsupportedEventError, match="tagged GTID"):
        decode(decoder, recorded.events)


def test_a_transaction_that_is_passed_over_keeps_its_fingerprint(
    make: Callable[[], Decoder], mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]
) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "BEGIN", "INSERT INTO t VALUES (1, 'a')", "INSERT INTO other VALUES (1)", "COMMIT")
    whole = drained(make(), recorded, t)
    decoder = make()
    decoder.pass_over([whole.transactions[0].gtid])
    found = drained(decoder, recorded, t)
    assert found.transactions == whole.transactions
    assert found.changes == []
    assert found.framing == {**whole.framing, "rows_skipped": 2}


# damage


@pytest.fixture
def sample(mysql: MySQLServer, schema: str, t: dict[TableName, TableSchema]) -> Recording:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
            "FLUSH BINARY LOGS",
            "UPDATE t SET v = 'c'",
            "DELETE FROM t",
        )
    return recorded


def test_no_flipped_bit_passes(make: Callable[[], Decoder], sample: Recording, t: dict[TableName, TableSchema]) -> None:
    generator = random.Random(7)
    for number, event in enumerate(sample.events):
        for bit in generator.sample(range(len(event) * 8), 40):
            damaged = bytearray(event)
            damaged[bit // 8] ^= 1 << bit % 8
            decoder = make()
            decoder.capture(t)
            with pytest.raises(BinlogError):
                decode(decoder, [*sample.events[:number], bytes(damaged), *sample.events[number + 1 :]])


def test_no_truncated_missing_or_repeated_event_passes(
    make: Callable[[], Decoder], sample: Recording, t: dict[TableName, TableSchema]
) -> None:
    generator = random.Random(7)
    for number, event in enumerate(sample.events):
        before, after = sample.events[:number], sample.events[number + 1 :]
        cuts = [[*before, event[:size], *after] for size in generator.sample(range(len(event)), 10)]
        # A rotation is said twice, by the file and by the stream; heartbeats carry nothing, and stand for what is not sent.
        if (event[4] not in (Type.ROTATE, Type.HEARTBEAT) and after[0][4] != Type.HEARTBEAT) or number == 0:
            cuts.append([*before, *after])
        if event[4] not in (Type.ROTATE, Type.HEARTBEAT):
            cuts.append([*before, event, event, *after])
        for events in cuts:
            decoder = make()
            decoder.capture(t)
            with pytest.raises(BinlogError):
                decode(decoder, events)


def test_row_events_with_right_checksums_and_wrong_contents_are_refused_or_stop_their_table(
    make: Callable[[], Decoder], sample: Recording, t: dict[TableName, TableSchema]
) -> None:
    # Whatever the bytes say, nothing but these errors may come of them.
    generator = random.Random(11)
    for number in sample.of_type(
        Type.TABLE_MAP, Type.WRITE_ROWS, Type.UPDATE_ROWS, Type.DELETE_ROWS, Type.GTID, Type.QUERY
    ):
        for _ in range(60):
            event = bytearray(sample.events[number])
            for _ in range(generator.choice((1, 1, 3))):
                event[generator.randrange(19, len(event) - 4)] = generator.randrange(256)
            log_pos = int.from_bytes(event[13:17], "little")
            decoder = make()
            decoder.capture(t)
            events = [*sample.events[:number], sealed(bytes(event), log_pos), *sample.events[number + 1 :]]
            try:
                found = decode(decoder, events)
            except (BinlogError, UnsupportedEventError):
                continue
            assert len(found.transactions) == 3 or found.stops == []


def test_a_row_event_of_an_unknown_table_is_refused(
    decoder: Decoder, sample: Recording, t: dict[TableName, TableSchema]
) -> None:
    events = list(sample.events)
    del events[sample.of_type(Type.TABLE_MAP)[0]]
    decoder.capture(t)
    with pytest.raises(BinlogError, match="no TABLE_MAP names"):
        decode(decoder, rechained(events))


def test_an_unknown_event_is_refused_unless_it_may_be_ignored(
    make: Callable[[], Decoder], sample: Recording, t: dict[TableName, TableSchema]
) -> None:
    place = sample.of_type(Type.XID)[0]
    known = sample.events[place]
    for flags, ignorable in ((0, False), (0x80, True)):
        strange = known[:4] + bytes([120]) + known[5:17] + bytes([flags, 0]) + known[19:]
        decoder = make()
        decoder.capture(t)
        events = rechained([*sample.events[:place], strange, *sample.events[place:]])
        if ignorable:
            assert len(decode(decoder, events).transactions) == 3
        else:
            with pytest.raises(UnsupportedEventError, match="type 120"):
                decode(decoder, events)


def test_the_end_is_a_place_between_transactions(
    decoder: Decoder, sample: Recording, t: dict[TableName, TableSchema]
) -> None:
    decoder.capture(t)
    packets, places = Packets(), []
    for event in sample.events:
        assert decoder.feed(packets.of(event))
        places.append(decoder.drain().end)
    gtid = sample.of_type(Type.GTID)[0]
    assert len(set(places[gtid - 1 : sample.of_type(Type.XID)[0]])) == 1
    assert places[-1] == sample.end
