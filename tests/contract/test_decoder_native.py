"""What the native decoder does beyond the reference, on events of a real server."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cdc.capture.complete import complete
from cdc.capture.native import NativeDecoder
from cdc.epoch import Op
from cdc.errors import (
    BinlogError,
    LakesyncError,
    SourceIdentityError,
    SourceUnavailableError,
    TableStoppedError,
    UnsupportedEventError,
)
from cdc.log.codec import UNKNOWN
from cdc.names import TableName
from cdc.position import Fingerprint, Gtid, GtidSet
from cdc.schema import TableSchema
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from tests.contract.binlog import (
    Decoded,
    Packets,
    Recording,
    decode,
    feed,
    query_event,
    rechained,
    recording,
    run,
    schema_of,
    transaction,
)
from tests.contract.decoding import drained, rows, stopped
from tests.reference.events import HEADER, Type
from tests.reference.splitting import LONGEST

Tables = Mapping[TableName, TableSchema]
MANY = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {0}) SELECT i, CONCAT('text ', i) FROM n"
)


@pytest.fixture
def t(mysql: MySQLServer, schema: str) -> dict[TableName, TableSchema]:
    """A small table, `t`, captured, beside `other`, which is not."""
    run(mysql, schema, "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(20))", "CREATE TABLE other (id INT PRIMARY KEY)")
    return {TableName(schema, "t"): schema_of(mysql, schema, "t")}


def changes(found: Decoded, table: str = "t") -> list[tuple[Any, ...]]:
    """Operation, transaction, event, row, number and cells of each change."""
    return [(r["op"], r["txn"], r["event"], r["row"], r["seq"], r["cells"]) for r in rows(found, table)]


def same(one: Decoded, other: Decoded) -> None:
    """Both gave the same, however they were drained."""
    assert changes(one) == changes(other)
    assert one.transactions == other.transactions
    assert (one.executed, one.end, one.framing, one.skipped) == (
        other.executed,
        other.end,
        other.framing,
        other.skipped,
    )
    assert [(s.txn, s.table, s.error.to_dict()) for s in one.stops] == [
        (s.txn, s.table, s.error.to_dict()) for s in other.stops
    ]


DML = [
    "BEGIN",
    "INSERT INTO other VALUES (1)",
    "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
    "UPDATE t SET id = id + 10 ORDER BY id DESC",
    "DELETE FROM t WHERE id = 12",
    "COMMIT",
]


# the bytes


@pytest.fixture
def sample(mysql: MySQLServer, schema: str, t: Tables) -> Recording:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            *DML,
            "FLUSH BINARY LOGS",
            "SET binlog_transaction_compression = ON",
            "UPDATE t SET v = 'compressed'",
            "CREATE INDEX i ON t (v)",
            "SET binlog_transaction_compression = OFF",
            "ALTER TABLE t ADD COLUMN x INT",
            "INSERT INTO t VALUES (5, 'f', 6)",
        )
    return recorded


def test_however_the_bytes_are_cut_the_same_comes_out(sample: Recording, t: Tables) -> None:
    data = Packets().of(*sample.events)
    whole = drained(NativeDecoder(), sample, t)
    assert len(changes(whole)) == 8
    assert [s.txn for s in whole.stops] == [3]
    generator = random.Random(5)
    cuts = [[data], [data[i : i + 1] for i in range(len(data))]]
    for most in (3, 40, 1000):
        pieces, at = [], 0
        while at < len(data):
            size = generator.randrange(1, most)
            pieces.append(data[at : at + size])
            at += size
        cuts.append(pieces)
    for pieces in cuts:
        decoder, found = NativeDecoder(), Decoded()
        decoder.capture(t)
        for piece in pieces:
            feed(decoder, piece, found)
        found.add(decoder.drain())
        same(found, whole)


def test_a_row_of_several_packets_is_put_together(mysql: MySQLServer, schema: str) -> None:
    run(mysql, schema, "CREATE TABLE l (id INT PRIMARY KEY, v LONGTEXT)")
    of = schema_of(mysql, schema, "l")
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO l VALUES (1, REPEAT('x', 40000000))", "INSERT INTO l VALUES (2, 'y')")
    assert max(map(len, recorded.events)) > 2 * LONGEST
    found = drained(NativeDecoder(), recorded, {TableName(schema, "l"): of})
    assert [(r["cells"][0], len(r["cells"][1])) for r in rows(found, "l")] == [(1, 40_000_000), (2, 1)]


def test_a_packet_out_of_order_is_refused(sample: Recording, t: Tables) -> None:
    packets = [Packets().of(sample.events[0])]
    late = Packets()
    late.of(*sample.events[:2])
    packets.append(late.of(sample.events[1]))
    decoder = NativeDecoder()
    decoder.capture(t)
    with pytest.raises(BinlogError):
        decoder.feed(b"".join(packets))


def test_what_the_server_says_in_place_of_an_event_is_told(sample: Recording, t: Tables) -> None:
    said: list[tuple[int, str]] = []

    def refusal(code: int, message: str) -> LakesyncError:
        said.append((code, message))
        return SourceUnavailableError("told")

    ends: tuple[Callable[[Packets], bytes], ...] = (lambda p: p.error(1236, "purged"), Packets.end)
    for end in ends:
        decoder, packets, found = NativeDecoder(refusal=refusal), Packets(), Decoded()
        decoder.capture(t)
        feed(decoder, packets.of(*sample.events), found)
        with pytest.raises(SourceUnavailableError, match="told"):
            decoder.feed(end(packets))
        found.add(decoder.drain())
        assert len(changes(found)) == 8
        with pytest.raises(SourceUnavailableError, match="told"):
            decoder.feed(b"")
    assert said[0] == (1236, "purged")
    assert said[1][0] == 0


def test_a_drain_is_asked_for_once_enough_is_pending(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(20)))
    whole = drained(NativeDecoder(), recorded, t)
    decoder, found = NativeDecoder(drain_bytes=1000), Decoded()
    decoder.capture(t)
    feed(decoder, Packets().of(*recorded.events), found)
    found.add(decoder.drain())
    same(found, whole)
    sizes = [d.framing["bytes"] for d in found.drains[:-1]]
    assert len(sizes) > 3
    assert all(1000 <= size < 2000 for size in sizes)


# compressed transactions


def test_compressed_transactions_are_as_others(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as plain:
        run(mysql, schema, *DML)
    run(mysql, schema, "DELETE FROM t", "DELETE FROM other")
    with recording(mysql) as recorded:
        run(mysql, schema, "SET binlog_transaction_compression = ON", *DML)
    assert recorded.of_type(Type.TRANSACTION_PAYLOAD)
    one, other = drained(NativeDecoder(), plain, t), drained(NativeDecoder(), recorded, t)
    assert changes(one) == changes(other)
    assert [x.row_events for x in one.transactions] == [x.row_events for x in other.transactions] == [4]
    assert other.framing["row_events"] == 4
    assert other.framing["rows_skipped"] == 1
    assert other.end == recorded.end


def test_a_large_compressed_transaction_is_read_whole(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET cte_max_recursion_depth = 100000, binlog_transaction_compression = ON",
            f"INSERT INTO t {MANY.format(50_000)}",
        )
    found = drained(NativeDecoder(), recorded, t)
    assert [r["cells"] for r in rows(found, "t")] == [(i, f"text {i}") for i in range(1, 50_001)]


def test_a_damaged_payload_is_refused(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "SET binlog_transaction_compression = ON", *DML)
    (place,) = recorded.of_type(Type.TRANSACTION_PAYLOAD)
    generator = random.Random(3)
    for _ in range(200):
        event = bytearray(recorded.events[place])
        event[generator.randrange(HEADER, len(event) - 4)] ^= 1 << generator.randrange(8)
        decoder = NativeDecoder()
        decoder.capture(t)
        try:
            found = decode(decoder, rechained([*recorded.events[:place], bytes(event), *recorded.events[place + 1 :]]))
        except (BinlogError, UnsupportedEventError):
            continue
        # With the event's checksum made right again, it is what another table or other values would be.
        assert len(found.transactions) == 1


# XA transactions

XA = ["XA START 'x'", "INSERT INTO other VALUES (2)", "INSERT INTO t VALUES (2, 'xa')", "XA END 'x'"]


@pytest.fixture
def xa(mysql: MySQLServer) -> MySQLServer:
    """A server on which no XA transaction is left behind."""
    return mysql


def test_rows_of_an_xa_transaction_come_with_its_commit(xa: MySQLServer, schema: str, t: Tables) -> None:
    with recording(xa) as recorded:
        run(xa, schema, *XA, "XA PREPARE 'x'")
        run(xa, schema, "INSERT INTO t VALUES (1, 'before')")
        run(xa, schema, "XA COMMIT 'x'", "INSERT INTO t VALUES (3, 'after')")
    found = drained(NativeDecoder(), recorded, t)
    assert [(r["txn"], r["event"], r["cells"]) for r in rows(found, "t")] == [
        (0, 0, (1, "before")),
        (1, 1, (2, "xa")),
        (3, 0, (3, "after")),
    ]
    assert [r["seq"] for r in rows(found, "t")] == [1, 2, 3]
    numbers = [x.gtid.number for x in found.transactions]
    assert [n - numbers[1] for n in numbers] == [1, 0, 2, 3]  # prepared first, given when it is committed
    assert [x.row_events for x in found.transactions] == [1, 2, 0, 1]
    assert found.transactions[1].commit_us == found.transactions[2].commit_us
    assert found.end == recorded.end


def test_a_prepared_transaction_is_in_no_position(xa: MySQLServer, schema: str, t: Tables) -> None:
    with recording(xa) as recorded:
        run(xa, schema, *XA, "XA PREPARE 'x'")
        run(xa, schema, "INSERT INTO t VALUES (1, 'before')")
    try:
        decoder = NativeDecoder()
        found = drained(decoder, recorded, t)
        (only,) = found.transactions
        assert found.executed == GtidSet({only.gtid.sid: ((only.gtid.number, only.gtid.number),)})
        assert [r["cells"] for r in rows(found, "t")] == [(1, "before")]
        assert decoder.idle
        assert found.framing["transactions"] == 1
    finally:
        run(xa, schema, "XA ROLLBACK 'x'")


def test_the_bytes_of_a_prepared_transaction_are_told_until_it_is_committed(
    xa: MySQLServer, schema: str, t: Tables
) -> None:
    with recording(xa) as recorded:
        run(xa, schema, *XA, "XA PREPARE 'x'", "INSERT INTO t VALUES (1, 'before')", "XA COMMIT 'x'")
    whole = [*recorded.of_type(Type.GTID), recorded.of_type(Type.HEARTBEAT)[-1]]
    prepared, before, commit = (sum(map(len, recorded.events[a:b])) for a, b in pairwise(whole))
    decoder = NativeDecoder()
    decoder.capture(t)
    packets, told = Packets(), []
    for first, last in pairwise([0, *whole[1:]]):
        found = decode(decoder, recorded.events[first:last], packets)
        told.append((found.framing["bytes"], decoder.drain().prepared_bytes))
    assert told == [(0, prepared), (before, prepared), (prepared + commit, 0)]


def test_an_xa_transaction_that_is_rolled_back_has_no_rows(xa: MySQLServer, schema: str, t: Tables) -> None:
    with recording(xa) as recorded:
        run(xa, schema, *XA, "XA PREPARE 'x'", "XA ROLLBACK 'x'", "INSERT INTO t VALUES (1, 'after')")
    found = drained(NativeDecoder(), recorded, t)
    assert [r["cells"] for r in rows(found, "t")] == [(1, "after")]
    assert found.executed == GtidSet.parse(xa.gtid_executed).intersection(found.executed)
    assert len(found.executed) == len(found.transactions) == 3


def test_an_xa_transaction_in_one_phase_is_as_any_other(xa: MySQLServer, schema: str, t: Tables) -> None:
    with recording(xa) as recorded:
        run(xa, schema, *XA, "XA COMMIT 'x' ONE PHASE", "INSERT INTO t VALUES (3, 'after')")
    found = drained(NativeDecoder(), recorded, t)
    assert [(r["txn"], r["cells"]) for r in rows(found, "t")] == [(0, (2, "xa")), (1, (3, "after"))]
    assert [x.row_events for x in found.transactions] == [2, 1]


def test_two_prepared_transactions_keep_their_rows_apart(xa: MySQLServer, schema: str, t: Tables) -> None:
    with recording(xa) as recorded:
        for name, number in (("one", 1), ("two", 2)):
            run(
                xa,
                schema,
                f"XA START '{name}', 'branch', 7",
                f"INSERT INTO t VALUES ({number}, '{name}')",
                f"XA END '{name}', 'branch', 7",
                f"XA PREPARE '{name}', 'branch', 7",
            )
        run(xa, schema, "XA COMMIT 'two', 'branch', 7", "XA COMMIT 'one', 'branch', 7")
    found = drained(NativeDecoder(), recorded, t)
    assert [(r["txn"], r["cells"]) for r in rows(found, "t")] == [(0, (2, "two")), (2, (1, "one"))]


def test_the_commit_of_an_xa_transaction_that_was_not_read_is_refused_and_can_be_passed_over(
    xa: MySQLServer, schema: str, t: Tables
) -> None:
    run(xa, schema, *XA, "XA PREPARE 'x'")
    with recording(xa) as recorded:
        run(xa, schema, "INSERT INTO t VALUES (1, 'before')", "XA COMMIT 'x'", "INSERT INTO t VALUES (3, 'after')")
    decoder = NativeDecoder()
    decoder.capture(t)
    with pytest.raises(UnsupportedEventError, match="XA") as refused:
        decode(decoder, recorded.events)
    found = Decoded()
    found.add(decoder.drain())
    before = found.transactions[-1].gtid
    bad = Gtid(before.sid, before.number + 1)
    assert f"lakesync skip {bad}" in refused.value.hint
    again = NativeDecoder()
    again.pass_over([bad])
    assert [r["cells"][0] for r in rows(drained(again, recorded, t), "t")] == [1, 3]


# tagged GTIDs


def test_tagged_gtids_are_read(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    run(server, "mysql", "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(20))")
    of = schema_of(server, "s", "t")
    tag = "a_long_tag_of_thirty_two_letters"
    with recording(server) as recorded:
        run(
            server,
            "s",
            "INSERT INTO t VALUES (1, 'a')",
            f"SET gtid_next = 'AUTOMATIC:{tag}'",
            "INSERT INTO t VALUES (2, 'b')",
            "SET gtid_next = 'AUTOMATIC:other'",
            "INSERT INTO t VALUES (3, 'c')",
        )
    assert len(recorded.of_type(Type.TAGGED_GTID)) == 2
    found = drained(NativeDecoder(), recorded, {TableName("s", "t"): of})
    assert [r["cells"][0] for r in rows(found, "t")] == [1, 2, 3]
    uuid = server.execute("SELECT @@server_uuid")[0][0]
    sids = [x.gtid.sid for x in found.transactions]
    assert sids == [uuid, f"{uuid}:{tag}", f"{uuid}:other"]
    assert GtidSet.parse(server.gtid_executed).contains(found.executed)
    assert all(x.commit_us > 1_700_000_000_000_000 for x in found.transactions)


# parts


@pytest.fixture
def large(mysql: MySQLServer, schema: str, t: Tables) -> Recording:
    """A transaction of many row events between two small ones."""
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET cte_max_recursion_depth = 100000",
            "INSERT INTO t VALUES (-1, 'before')",
            "BEGIN",
            "INSERT INTO other VALUES (1)",
            f"INSERT INTO t {MANY.format(4000)}",
            "INSERT INTO other VALUES (2)",
            "UPDATE t SET id = id + 100000 WHERE id > 0 ORDER BY id",
            "DELETE FROM t WHERE id > 102000",
            "COMMIT",
            "INSERT INTO t VALUES (-2, 'after')",
        )
    return recorded


def in_parts(recorded: Recording, t: Tables, part_bytes: int = 20_000) -> Decoded:
    decoder, found = NativeDecoder(part_bytes=part_bytes), Decoded()
    decoder.capture(t)
    feed(decoder, Packets().of(*recorded.events), found)
    found.add(decoder.drain())
    return found


def test_a_large_transaction_comes_in_parts_and_is_the_same(large: Recording, t: Tables) -> None:
    whole, found = drained(NativeDecoder(), large, t), in_parts(large, t)
    same(found, whole)
    parts = [d for d in found.drains if d.partial]
    assert len(parts) > 3
    assert sorted(d.partial.row_events for d in parts if d.partial) == [
        d.partial.row_events for d in parts if d.partial
    ]
    # The position stays before the transaction, whatever was given of it.
    assert len({d.end for d in parts}) == 1
    assert all(not d.executed or d.whole for d in parts)
    for d in parts:
        rows_ = sum(c.batch.num_rows for c in d.changes)
        assert 0 < rows_ < 2000


def parts_of(found: Decoded) -> Iterator[tuple[Fingerprint, Decoded]]:
    """Each part's end, and all that was given up to there."""
    for number, one in enumerate(found.drains, 1):
        if one.partial is not None:
            given = Decoded()
            for drain in found.drains[:number]:
                given.add(drain)
            yield one.partial, given


def test_after_any_part_another_decoder_goes_on_with_exactly_the_rest(large: Recording, t: Tables) -> None:
    found = in_parts(large, t)
    before, (_, *later) = found.transactions[0], found.transactions
    events = transaction(large.events, large.of_type(Type.GTID)[0])
    passed = {"events": len(events), "bytes": sum(map(len, events)), "transactions": 1, "row_events": 1}
    passed |= {"statements": 0, "rows_skipped": 1, "unfit": 0}
    for partial, given in parts_of(found):
        again = NativeDecoder(part_bytes=50_000)
        again.capture(t)
        again.pass_over([before.gtid])
        again.resume(partial)
        packets, rest = Packets(), Decoded()
        met = False
        for event in large.events:
            taken = again.feed(packets.of(event))
            while not taken:
                met = met or again.open_gtid == str(partial.gtid)
                rest.add(again.drain())
                taken = again.feed(b"")
        rest.add(again.drain())
        assert met
        # The transaction that was passed over is one of its transactions, too.
        assert [x[2:4] + x[5:] for x in changes(given) + changes(rest)] == [x[2:4] + x[5:] for x in changes(found)]
        assert rest.transactions == [before, *later]
        # Counted once, but for the transaction that was passed over and is counted with every connection.
        assert {k: given.framing[k] + rest.framing[k] - passed[k] for k in passed} == found.framing


def test_one_that_was_read_in_part_and_is_passed_over_is_counted_once(large: Recording, t: Tables) -> None:
    found = in_parts(large, t)
    before = found.transactions[0].gtid
    events = transaction(large.events, large.of_type(Type.GTID)[0])
    # The first one is small, and is counted by both.
    twice = {"events": len(events), "bytes": sum(map(len, events)), "transactions": 1, "row_events": 1}
    for partial, given in parts_of(found):
        again = NativeDecoder(part_bytes=50_000)
        again.capture(t)
        again.pass_over([before, partial.gtid])
        again.counted(partial)
        rest = decode(again, large.events)
        assert {d.partial for d in rest.drains} == {None}
        assert {k: given.framing[k] + rest.framing[k] - twice[k] for k in twice} == {k: found.framing[k] for k in twice}


WRONG: dict[str, Callable[[Fingerprint], Fingerprint]] = {
    "another transaction": lambda p: p._replace(gtid=Gtid(p.gtid.sid, p.gtid.number + 1)),
    "another commit time": lambda p: p._replace(commit_us=p.commit_us + 1),
    "more row events": lambda p: p._replace(row_events=p.row_events + 10_000),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_transaction_that_is_not_the_one_that_was_read_is_not_gone_on_with(
    change: Callable[[Fingerprint], Fingerprint], large: Recording, t: Tables
) -> None:
    found = in_parts(large, t)
    partial = next(d.partial for d in found.drains if d.partial)
    decoder = NativeDecoder()
    decoder.capture(t)
    decoder.pass_over([found.transactions[0].gtid])
    decoder.resume(change(partial))
    with pytest.raises(SourceIdentityError) as refused:
        decode(decoder, large.events)
    assert "resync --all" in refused.value.hint


def test_what_is_taken_back_of_a_part_that_was_given_is_an_error(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET cte_max_recursion_depth = 100000",
            "BEGIN",
            "INSERT INTO t VALUES (0, 'a')",
            "SAVEPOINT s",
            f"INSERT INTO t {MANY.format(2000)}",
            "COMMIT",
        )
    events = list(recorded.events)
    undo = query_event(events[recorded.of_type(Type.QUERY)[1]], "ROLLBACK TO s")
    events.insert(recorded.of_type(Type.XID)[0], undo)
    recorded = Recording(rechained(events), recorded.end)
    assert [x[5] for x in changes(drained(NativeDecoder(), recorded, t))] == [(0, "a")]
    with pytest.raises((BinlogError, UnsupportedEventError)) as refused:
        in_parts(recorded, t)
    uuid = mysql.execute("SELECT @@server_uuid")[0][0]
    assert uuid in str(refused.value)


def test_a_table_that_stops_inside_a_large_transaction_gives_no_more_of_it(
    mysql: MySQLServer, schema: str, t: Tables
) -> None:
    run(mysql, schema, "CREATE TABLE flag (id INT PRIMARY KEY, f TINYINT)")
    flag = schema_of(mysql, schema, "flag").with_overrides({"f": "boolean"})
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET cte_max_recursion_depth = 100000",
            "BEGIN",
            f"INSERT INTO t {MANY.format(2000)}",
            "INSERT INTO flag VALUES (1, 1)",
            "INSERT INTO flag VALUES (2, 2)",
            "INSERT INTO t SELECT id + 10000, v FROM t",
            "INSERT INTO flag VALUES (3, 1)",
            "COMMIT",
        )
    tables = {**t, TableName(schema, "flag"): flag}
    found = in_parts(recorded, tables)
    txn, error = stopped(found, "flag")
    assert txn == 0
    assert "f" in error.what
    assert len(rows(found, "t")) == 4000
    assert [r["cells"][0] for r in rows(found, "flag")] in ([], [1])


# rows that are not complete


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
def test_an_incomplete_image_says_which_columns_it_has(image: str, mysql: MySQLServer, schema: str) -> None:
    run(
        mysql,
        schema,
        "CREATE TABLE b (id INT PRIMARY KEY, v INT, x BLOB, w INT DEFAULT 7)",
        "INSERT INTO b VALUES (1, 1, 'x', 1), (3, 3, 'z', 3)",
    )
    of = schema_of(mysql, schema, "b")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            f"SET binlog_row_image = '{image}'",
            "INSERT INTO b VALUES (2, 2, 'y', 2)",
            "UPDATE b SET v = 9 WHERE id = 1",
            "UPDATE b SET id = 4 WHERE id = 3",
            "DELETE FROM b WHERE id = 1",
        )
    found = drained(NativeDecoder(), recorded, {TableName(schema, "b"): of})
    assert found.stops == []
    seen = rows(found, "b")
    assert [r["op"] for r in seen] == [Op.INSERT, Op.UPDATE, Op.MOVE_OUT, Op.UPDATE, Op.DELETE]
    assert all(r["present"][0] for r in seen)
    inserted, updated, left, moved, deleted = seen
    assert inserted["cells"] == (2, 2, b"y", 2)
    assert inserted["present"] == (True, True, True, True)
    assert updated["cells"][:2] == (1, 9)
    assert updated["present"] == ((True, True, False, False) if image == "MINIMAL" else (True, True, False, True))
    assert left["cells"][0] == 3
    assert moved["cells"][0] == 4
    assert moved["present"][2] is False
    assert deleted["cells"][0] == 1
    assert deleted["present"] == ((True, False, False, False) if image == "MINIMAL" else (True, True, False, True))
    for row in seen:
        assert all(cell is None for cell, there in zip(row["cells"], row["present"], strict=True) if not there)
    (all_,) = found.changes
    assert complete(all_) == (all_, None, None)
    # Nobody finds the row before without a key.
    kept, txn, error = complete(replace(all_, schema=replace(of, key=())))
    assert (kept.batch.num_rows, txn) == (1, 1)
    assert kept.presence is not None
    assert len(kept.presence) == 1
    assert isinstance(error, TableStoppedError)
    assert "binlog_row_image" in error.hint


def test_json_differences_are_given_as_they_are(mysql: MySQLServer, schema: str) -> None:
    document = json.dumps({"a": "a long enough text", "b": [1, 2, 3], "c": {"d": None}})
    run(
        mysql,
        schema,
        "CREATE TABLE j (id INT PRIMARY KEY, j JSON, k JSON)",
        f"INSERT INTO j VALUES (1, '{document}', '[]')",
    )
    of = schema_of(mysql, schema, "j")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET binlog_row_value_options = 'PARTIAL_JSON', binlog_row_image = 'MINIMAL'",
            "UPDATE j SET j = JSON_REMOVE(JSON_SET(j, '$.a', 'short', '$.c.e', CAST('true' AS JSON)), '$.b[1]')",
        )
    assert recorded.of_type(Type.PARTIAL_UPDATE_ROWS)
    found = drained(NativeDecoder(), recorded, {TableName(schema, "j"): of})
    (row,) = rows(found, "j")
    assert row["cells"][0] == 1
    assert row["present"] == (True, False, False)
    assert [(d["column"], d["op"], d["path"], d["value"]) for d in row["diffs"]] == [
        (1, 0, "$.a", '"short"'),
        (1, 1, "$.c.e", "true"),
        (1, 2, "$.b[1]", None),
    ]
    (changes,) = found.changes
    assert complete(changes) == (changes, None, None)
    _, txn, error = complete(replace(changes, schema=replace(of, key=())))
    assert txn == 0
    assert error is not None
    assert "PARTIAL_JSON" in error.what


def test_json_differences_are_applied_where_the_image_before_is_whole(mysql: MySQLServer, schema: str) -> None:
    document = (
        '{"b": [1.50, 2, 3], "aa": 1e-7, "long": "a long enough text, so that a difference is shorter", "é é": {}}'
    )
    run(mysql, schema, "CREATE TABLE j (id INT PRIMARY KEY, j JSON)", f"INSERT INTO j VALUES (1, '{document}')")
    of = schema_of(mysql, schema, "j")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "SET binlog_row_value_options = 'PARTIAL_JSON'",
            """UPDATE j SET j = JSON_REMOVE(JSON_SET(j, '$.c', 1.10, '$.b[0]', 'x', '$."é é".z', NULL), '$.b[1]')""",
        )
    assert recorded.of_type(Type.PARTIAL_UPDATE_ROWS)
    found = drained(NativeDecoder(), recorded, {TableName(schema, "j"): of})
    assert [c.presence for c in found.changes] == [None]
    (row,) = rows(found, "j")
    assert [(row["cells"][1],)] == mysql.execute(f"SELECT CAST(j AS CHAR) FROM {schema}.j")


def test_a_new_row_without_its_key_stops_its_table(mysql: MySQLServer, schema: str) -> None:
    """A column of the key that takes its default is not in the image."""
    run(mysql, schema, "CREATE TABLE d (a INT, b INT DEFAULT 4, v INT, PRIMARY KEY (a, b))")
    of = schema_of(mysql, schema, "d")
    with recording(mysql) as recorded:
        run(mysql, schema, "SET binlog_row_image = 'MINIMAL'", "INSERT INTO d (a, v) VALUES (1, 5)")
    found = drained(NativeDecoder(), recorded, {TableName(schema, "d"): of})
    kept, txn, error = complete(found.changes[0])
    assert (kept.batch.num_rows, txn) == (0, 0)
    assert error is not None
    assert "without its key" in error.what


def test_what_an_update_of_mariadb_leaves_out_may_have_been_set(mariadb: MariaDBServer, mariadb_schema: str) -> None:
    """A REPLACE that meets a row is logged as an update without what it gives its default."""
    run(
        mariadb,
        mariadb_schema,
        "CREATE TABLE r (id INT PRIMARY KEY, v INT DEFAULT 1, w INT DEFAULT 2)",
        "INSERT INTO r VALUES (1, 10, 20)",
    )
    of = schema_of(mariadb, mariadb_schema, "r")
    with recording(mariadb) as recorded:
        run(
            mariadb,
            mariadb_schema,
            "SET binlog_row_image = 'MINIMAL'",
            "UPDATE r SET v = 11 WHERE id = 1",
            "REPLACE INTO r (id, v) VALUES (1, 12)",
        )
    assert mariadb.execute(f"SELECT * FROM {mariadb_schema}.r") == [(1, 12, 2)]
    found = drained(NativeDecoder(mariadb=True), recorded, {TableName(mariadb_schema, "r"): of})
    updated, replaced = rows(found, "r")
    assert (updated["op"], updated["present"], updated.get("diffs")) == (Op.UPDATE, (True, True, False), None)
    assert (replaced["op"], replaced["present"]) == (Op.UPDATE, (True, True, False))
    assert [(d["column"], d["op"]) for d in replaced["diffs"]] == [(2, UNKNOWN)]


def test_an_image_that_names_every_column_is_complete(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a')", "SET binlog_row_image = 'MINIMAL'", "UPDATE t SET v = 'b'")
    found = drained(NativeDecoder(), recorded, t)
    assert [c.presence for c in found.changes] == [None]
    assert [r["cells"] for r in rows(found, "t")] == [(1, "a"), (1, "b")]


# values and columns


UNFIT = {
    "zero date": ("d DATE", "'0000-00-00'", "0000-00-00"),
    "zero in date": ("d DATE", "'2024-00-10'", "2024-00-10"),
    "no such day": ("d DATE", "'2023-02-31'", "2023-02-31"),
    "zero datetime": ("d DATETIME(3)", "'0000-00-00 00:00:00'", "0000-00-00 00:00:00.000000"),
    "no such day and time": ("d DATETIME", "'2023-02-31 10:00:00'", "2023-02-31 10:00:00.000000"),
    "zero timestamp": ("d TIMESTAMP NULL", "0", "0000-00-00 00:00:00.000000"),
}


@pytest.mark.parametrize(("column", "value", "text"), UNFIT.values(), ids=UNFIT.keys())
def test_a_value_that_does_not_fit_is_kept_as_text(
    column: str, value: str, text: str, mysql: MySQLServer, schema: str
) -> None:
    run(mysql, schema, f"CREATE TABLE unfit (id INT PRIMARY KEY, {column})")
    of = schema_of(mysql, schema, "unfit")
    with recording(mysql) as recorded:
        run(mysql, schema, f"INSERT INTO unfit VALUES (1, NULL), (2, {value})", "INSERT INTO unfit VALUES (3, NULL)")
    found = drained(NativeDecoder(), recorded, {TableName(schema, "unfit"): of})
    assert found.stops == []
    assert [(r["cells"], r.get("unfit")) for r in rows(found, "unfit")] == [
        ((1, None), None),
        ((2, None), {"d": text}),
        ((3, None), None),
    ]
    assert found.framing["unfit"] == 1


def test_a_value_that_does_not_fit_in_the_key_stops_the_table(mysql: MySQLServer, schema: str, t: Tables) -> None:
    run(mysql, schema, "CREATE TABLE k (d DATE PRIMARY KEY, v INT)")
    of = schema_of(mysql, schema, "k")
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO k VALUES ('2024-01-01', 1)",
            "INSERT INTO k VALUES ('2024-01-02', 2), ('0000-00-00', 3)",
            "INSERT INTO t VALUES (1, 'a')",
            "INSERT INTO k VALUES ('2024-01-03', 4)",
        )
    found = drained(NativeDecoder(), recorded, {**t, TableName(schema, "k"): of})
    txn, error = stopped(found, "k")
    assert txn == 1
    assert "types:" in error.hint
    assert len(rows(found, "k")) == 1
    assert len(rows(found, "t")) == 1


def test_a_flag_that_is_neither_0_nor_1_stops_its_table_at_that_transaction(mysql: MySQLServer, schema: str) -> None:
    run(mysql, schema, "CREATE TABLE flag (id INT PRIMARY KEY, f TINYINT)")
    of = schema_of(mysql, schema, "flag").with_overrides({"f": "boolean"})
    with recording(mysql) as recorded:
        run(mysql, schema, *(f"INSERT INTO flag VALUES ({n}, {2 if n == 3 else 1})" for n in range(6)))
    found = drained(NativeDecoder(), recorded, {TableName(schema, "flag"): of})
    txn, _ = stopped(found, "flag")
    assert txn == 3
    assert [r["cells"] for r in rows(found, "flag")] == [(0, True), (1, True), (2, True)]


def test_excluded_columns_are_not_there(mysql: MySQLServer, schema: str) -> None:
    run(mysql, schema, "CREATE TABLE e (a INT, secret JSON, b VARCHAR(9), id INT PRIMARY KEY, x BLOB)")
    of = schema_of(mysql, schema, "e").without(["secret", "x"])
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO e VALUES (1, '{\"s\": 1}', 'b', 1, 'x')",
            "UPDATE e SET secret = '{}', x = NULL",
            "UPDATE e SET id = 2, b = NULL",
            "DELETE FROM e",
        )
    found = drained(NativeDecoder(), recorded, {TableName(schema, "e"): of})
    assert found.stops == []
    assert [(r["op"], r["cells"]) for r in rows(found, "e")] == [
        (Op.INSERT, (1, "b", 1)),
        (Op.UPDATE, (1, "b", 1)),
        (Op.MOVE_OUT, (1, "b", 1)),
        (Op.UPDATE, (1, None, 2)),
        (Op.DELETE, (1, None, 2)),
    ]


def test_a_table_that_is_stopped_from_outside_gives_no_more(mysql: MySQLServer, schema: str, t: Tables) -> None:
    with recording(mysql) as recorded:
        run(mysql, schema, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')")
    decoder, packets, found = NativeDecoder(), Packets(), Decoded()
    decoder.capture(t)
    (table,) = t
    second = recorded.of_type(Type.GTID)[1]
    for number, event in enumerate(recorded.events):
        feed(decoder, packets.of(event), found)
        if number == second:
            decoder.stop(table)
    found.add(decoder.drain())
    assert [r["cells"][0] for r in rows(found, "t")] == [1]
    assert len(found.transactions) == 2
    assert found.framing["rows_skipped"] == 1


# shards


def test_what_empties_a_shard_is_told_in_its_transaction_and_stops_nothing(
    mysql: MySQLServer, schema: str, t: Tables
) -> None:
    run(mysql, schema, "CREATE TABLE gone (id INT PRIMARY KEY)", "CREATE TABLE plain (id INT PRIMARY KEY)")
    names = ("gone", "plain")
    tables = dict(t) | {TableName(schema, n): schema_of(mysql, schema, n) for n in names}
    shards = [TableName(schema, "t"), TableName(schema, "gone")]
    with recording(mysql) as recorded:
        run(
            mysql,
            schema,
            "INSERT INTO t VALUES (1, 'a')",
            "TRUNCATE TABLE t",
            "INSERT INTO t VALUES (2, 'b')",
            "INSERT INTO gone VALUES (1)",
            "DROP TABLE gone, plain",
            "CREATE TABLE gone (id INT PRIMARY KEY)",
            "INSERT INTO gone VALUES (2)",
            "ALTER TABLE t ADD COLUMN n INT",
        )
    for every in (False, True):
        decoder, packets, found, told = NativeDecoder(), Packets(), [], []
        decoder.capture(tables, shards)
        for event in recorded.events:
            assert decoder.feed(packets.of(event))
            if every:
                found.append(decoder.drain())
        found.append(decoder.drain())
        gtids = [gtid for one in found for gtid in one.gtids]
        for one in found:
            told += [(gtids.index(one.gtids[e.txn]), e.table.name, e.is_gone) for e in one.emptied]
        assert told == [(1, "t", False), (4, "gone", True)]
        assert [s.table.name for one in found for s in one.stops] == ["plain", "t"]
        rows_of = [(c.table.name, c.batch.column(6).to_pylist()) for one in found for c in one.changes]
        assert sorted((n, i) for n, ids in rows_of for i in ids) == [("gone", 1), ("t", 1), ("t", 2)]


@pytest.mark.parametrize("statement", ["CREATE TABLE {0}.t (id INT)", "DROP DATABASE {0}", "DROP SCHEMA IF EXISTS {0}"])
def test_a_shard_is_gone_too_where_it_is_made_anew_or_its_database_goes(
    statement: str, mysql: MySQLServer, schema: str, t: Tables
) -> None:
    with recording(mysql) as recorded:
        if statement.startswith("CREATE"):
            run(mysql, schema, "SET sql_log_bin = 0", "DROP TABLE t", "SET sql_log_bin = 1", statement.format(schema))
        else:
            run(mysql, schema, statement.format(schema))
    decoder, packets = NativeDecoder(), Packets()
    decoder.capture(t, list(t))
    for event in recorded.events:
        assert decoder.feed(packets.of(event))
    found = decoder.drain()
    assert [(e.table, e.is_gone) for e in found.emptied] == [(TableName(schema, "t"), True)]
    assert found.stops == []
