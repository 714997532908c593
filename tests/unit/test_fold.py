"""Folding: the last change of every key, whatever the order and however often the changes are given."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import permutations
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc import unfit
from cdc.epoch import Counts, Op
from cdc.errors import LakeError, LogDamagedError
from cdc.lake import FoldCounts, Folded
from cdc.lake.keys import KeyIndex
from cdc.log.codec import METADATA, Changes
from cdc.merge.fold import fold, sequence
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position
from cdc.schema import Column, TableSchema

SERVER = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
OTHER = "00000000-0000-0000-0000-000000000001"
ID = Column("id", "bigint")
NAME = Column("name", "text", charset="utf8mb4")
SCHEMA = TableSchema((ID, NAME), ("id",))


class Row(NamedTuple):
    """One row of a table's changes, as the log has it."""

    op: int
    gtid: str
    event: int
    row: int
    ts_ms: int
    seq: int
    values: tuple[Any, ...]


def gtid(number: int, server: str = SERVER) -> str:
    return f"{server}:{number}"


def changes(rows: Sequence[Row], schema: TableSchema = SCHEMA) -> Changes:
    gtids = list(dict.fromkeys(r.gtid for r in rows))
    metadata = [
        [r.op for r in rows],
        [gtids.index(r.gtid) for r in rows],
        [r.event for r in rows],
        [r.row for r in rows],
        [r.ts_ms for r in rows],
        [r.seq for r in rows],
    ]
    columns = [pa.array([r.values[i] for r in rows], t) for i, t in enumerate(schema.arrow.types)]
    plain = pa.schema([*METADATA, *schema.arrow])
    arrays = [pa.array(m, f.type) for m, f in zip(metadata, METADATA, strict=True)]
    return Changes(pa.RecordBatch.from_arrays([*arrays, *columns], schema=plain), tuple(gtids), schema.hash)


def one(seq: int, op: int, *values: Any, ts_ms: int | None = None) -> Row:
    """A transaction of its own with one change."""
    return Row(op, gtid(seq), 0, 0, seq * 10 if ts_ms is None else ts_ms, seq, values)


def move(seq: int, old: tuple[Any, ...], new: tuple[Any, ...]) -> list[Row]:
    """An update that changes the key: both halves."""
    return [Row(op, gtid(seq), 0, 0, seq * 10, seq, values) for op, values in ((Op.MOVE_OUT, old), (Op.UPDATE, new))]


def before(gtids: GtidSet, partial: Fingerprint | None = None) -> Position:
    return Position(gtids, SERVER, BinlogEnd("binlog.000001", 4), None, partial)


def upserts(folded: Folded) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in folded.upserts.to_pylist()]


def deletes(folded: Folded) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in folded.deletes.to_pylist()]


def same(a: Folded, b: Folded) -> bool:
    return bool(a.upserts.equals(b.upserts)) and bool(a.deletes.equals(b.deletes))


def test_the_last_change_of_a_key_wins() -> None:
    folded = fold([changes([one(1, Op.INSERT, 1, "a"), one(2, Op.UPDATE, 1, "b"), one(3, Op.INSERT, 2, "c")])], SCHEMA)
    assert upserts(folded) == [(1, "b", 20, 2), (2, "c", 30, 3)]
    assert folded.upserts.schema.names == ["id", "name", "_cdc_ts_ms", "_cdc_seq"]
    assert deletes(folded) == []
    assert folded.counts == FoldCounts(Counts(2, 1, 0), superseded=1, duplicate=0, effective=2, key_changes=0)


def test_commit_time_decides_before_seq() -> None:
    """A log that was replaced may number anew; what is later is later."""
    folded = fold([changes([one(1, Op.INSERT, 1, "late", ts_ms=50), one(2, Op.UPDATE, 1, "early", ts_ms=40)])], SCHEMA)
    assert upserts(folded) == [(1, "late", 50, 1)]


def test_a_delete_and_an_insert_of_one_key_in_either_order() -> None:
    there = fold([changes([one(1, Op.DELETE, 1, "old"), one(2, Op.INSERT, 1, "new")])], SCHEMA)
    gone = fold([changes([one(1, Op.INSERT, 1, "new"), one(2, Op.DELETE, 1, "new")])], SCHEMA)
    assert (upserts(there), deletes(there)) == ([(1, "new", 20, 2)], [])
    assert (upserts(gone), deletes(gone)) == ([], [(1,)])


def test_a_key_change_is_one_change_with_two_effects() -> None:
    folded = fold([changes(move(1, (1, "a"), (2, "a")))], SCHEMA)
    assert (upserts(folded), deletes(folded)) == ([(2, "a", 10, 1)], [(1,)])
    assert folded.counts == FoldCounts(Counts(0, 1, 0), superseded=0, duplicate=0, effective=1, key_changes=1)


def test_keys_that_are_swapped() -> None:
    """By way of a third: 1 to 3, 2 to 1, 3 to 2."""
    rows = [*move(1, (1, "a"), (3, "a")), *move(2, (2, "b"), (1, "b")), *move(3, (3, "a"), (2, "a"))]
    folded = fold([changes(rows)], SCHEMA)
    assert (upserts(folded), deletes(folded)) == ([(1, "b", 20, 2), (2, "a", 30, 3)], [(3,)])
    # The first has no half left, the second only its row after, the third both.
    assert folded.counts == FoldCounts(Counts(0, 3, 0), superseded=1, duplicate=0, effective=2, key_changes=1)


def test_a_key_change_to_the_same_place_takes_its_row_after() -> None:
    """A key that compares equal: both halves have one key, and the second half wins whatever their order."""
    for rows in permutations(move(1, (1, "a"), (1, "b"))):
        folded = fold([changes(rows)], SCHEMA)
        assert (upserts(folded), deletes(folded)) == ([(1, "b", 10, 1)], [])
        assert folded.counts == FoldCounts(Counts(0, 1, 0), superseded=0, duplicate=0, effective=1, key_changes=0)


def test_half_a_key_change_is_damage() -> None:
    with pytest.raises(LogDamagedError, match="row before"):
        fold([changes(move(1, (1, "a"), (2, "a"))[:1])], SCHEMA)


def test_a_null_in_the_key_is_an_error_and_never_a_row() -> None:
    with pytest.raises(LakeError, match="NULL in the key's column id"):
        fold([changes([one(1, Op.INSERT, 1, "a"), one(2, Op.INSERT, None, "b")])], SCHEMA)
    schema = TableSchema((ID, NAME), ("id", "name"))
    with pytest.raises(LakeError, match="NULL in the key's column name"):
        fold([changes([one(1, Op.INSERT, 1, None)], schema)], schema)


def test_a_table_without_a_key_is_refused() -> None:
    schema = TableSchema((ID, NAME))
    with pytest.raises(LakeError, match="without a key"):
        fold([changes([one(1, Op.INSERT, 1, "a")], schema)], schema)


def test_rows_of_another_schema_are_refused() -> None:
    other = TableSchema((ID, Column("title", "text", charset="utf8mb4")), ("id",))
    with pytest.raises(LogDamagedError, match="under schema"):
        fold([changes([one(1, Op.INSERT, 1, "a")]), changes([one(2, Op.INSERT, 1, "a")], other)], SCHEMA)


def test_nothing_folds_to_nothing() -> None:
    folded = fold([], SCHEMA)
    assert (folded.upserts.num_rows, folded.deletes.num_rows) == (0, 0)
    assert folded.upserts.schema.names == ["id", "name", "_cdc_ts_ms", "_cdc_seq"]
    assert folded.deletes.schema.names == ["id"]
    assert folded.counts == FoldCounts(Counts())


def test_transactions_that_the_table_has_are_left_out_and_counted() -> None:
    rows = [one(1, Op.INSERT, 1, "a"), one(2, Op.UPDATE, 1, "b"), *move(3, (1, "b"), (2, "b"))]
    folded = fold([changes(rows)], SCHEMA, before(GtidSet.parse(f"{SERVER}:1:3")))
    assert (upserts(folded), deletes(folded)) == ([(1, "b", 20, 2)], [])
    assert folded.counts == FoldCounts(Counts(1, 2, 0), superseded=0, duplicate=2, effective=1, key_changes=0)


def test_a_change_repeated_under_a_later_seq_does_not_come_back() -> None:
    """What a rewritten log may do: the same global ID again, numbered after a newer change of the key."""
    again = one(1, Op.INSERT, 1, "a")._replace(seq=9, ts_ms=90)
    folded = fold([changes([one(1, Op.INSERT, 1, "a"), one(2, Op.UPDATE, 1, "b"), again])], SCHEMA)
    assert upserts(folded) == [(1, "b", 20, 2)]
    assert folded.counts == FoldCounts(Counts(2, 1, 0), superseded=1, duplicate=1, effective=1, key_changes=0)


def test_a_seq_given_to_two_transactions_has_one_winner_in_any_order() -> None:
    rows = [Row(Op.INSERT, gtid(number, SERVER), 0, 0, 10, 1, (1, f"by {number}")) for number in (5, 3, 4)]
    results = [fold([changes([r]) for r in order], SCHEMA) for order in permutations(rows)]
    assert all(same(r, results[0]) for r in results)


def test_columns_are_told_apart_by_place() -> None:
    names = ("_op", "rank", "gtid", "c0", "order", "half", "name")
    schema = TableSchema(tuple(Column(n, "int") for n in names), ("c0", "gtid"))
    rows = [one(1, Op.INSERT, *range(7)), one(2, Op.UPDATE, 9, 9, 2, 3, 9, 9, 9), *move(3, (0,) * 7, (7,) * 7)]
    for order in permutations(rows):
        folded = fold([changes(order, schema)], schema)
        assert upserts(folded) == [(9, 9, 2, 3, 9, 9, 9, 20, 2), (*(7,) * 7, 30, 3)]
        assert folded.deletes.to_pylist() == [{"c0": 0, "gtid": 0}]


EDGES: dict[str, list[Any]] = {
    "bigint": [-(2**63), -1, 0, 1, 2**63 - 1],
    "unsigned": [Decimal(0), Decimal(2**63), Decimal(2**64 - 1)],
    "decimal": [Decimal("-1.50"), Decimal("0.00"), Decimal("1.05")],
    "text": ["", "a", "A", "a ", "ä", "a\u0308", "\U0001f40b"],
    "varbinary": [b"", b"\0", b"\0\0", b"\xff"],
    "double": [0.0, -0.0, 1.5, -math.inf],
}
KINDS = {
    "bigint": ID,
    "unsigned": Column("id", "bigint", unsigned=True),
    "decimal": Column("id", "decimal", precision=10, scale=2),
    "text": Column("id", "text", charset="utf8mb4"),
    "varbinary": Column("id", "varbinary"),
    "double": Column("id", "double"),
}


@pytest.mark.parametrize("kind", EDGES)
def test_keys_are_compared_by_value_and_bytes(kind: str) -> None:
    schema = TableSchema((KINDS[kind], NAME), ("id",))
    values = EDGES[kind]
    rows = [one(i + 1, Op.INSERT, v, "first") for i, v in enumerate(values)]
    rows += [one(i + 101, Op.UPDATE, v, "second") for i, v in enumerate(values)]
    folded = fold([changes(rows, schema)], schema)
    assert [(repr(r[0]), r[1]) for r in upserts(folded)] == [(repr(v), "second") for v in values]


# -- any order, any number of times -----------------------------------------------------------------------------------


def history(random_: random.Random, length: int, keys: int, composite: bool) -> tuple[list[list[Row]], dict[Any, Any]]:
    """A possible history of a table, change by change, and what it leaves: key to values, None where a key was deleted."""
    live: dict[Any, Any] = {}
    left: dict[Any, Any] = {}
    found: list[list[Row]] = []

    def values(key: Any, text: str) -> tuple[Any, ...]:
        return (*key, text) if composite else (key, text)

    transaction, event, ts_ms = 1, 0, 1000
    for seq in range(1, length + 1):
        if random_.random() < 0.4:
            transaction, event, ts_ms = transaction + 1, 0, ts_ms + random_.choice((0, 0, 1, 7))
        else:
            event += 1
        at = (gtid(transaction, random_.choice((SERVER, OTHER))), event, random_.randrange(3), ts_ms, seq)
        pick = random_.randrange(keys)
        key = (pick % 2, str(pick // 2)) if composite else pick
        text = f"v{seq}"
        if key not in live:
            found.append([Row(Op.INSERT, *at, values(key, text))])
            live[key] = left[key] = values(key, text)
        elif random_.random() < 0.4:
            found.append([Row(Op.DELETE, *at, live.pop(key))])
            left[key] = None
        else:
            other = random_.randrange(keys)
            new = (other % 2, str(other // 2)) if composite else other
            if new in live or random_.random() < 0.5:
                found.append([Row(Op.UPDATE, *at, values(key, text))])
                live[key] = left[key] = values(key, text)
            else:
                old = live.pop(key)
                found.append([Row(Op.MOVE_OUT, *at, old), Row(Op.UPDATE, *at, values(new, text))])
                left[key] = None
                live[new] = left[new] = values(new, text)
    return found, left


def pieces(rows: Sequence[Row], random_: random.Random, schema: TableSchema) -> Iterable[Changes]:
    """The rows in this order, cut into records anywhere."""
    at = 0
    while at < len(rows):
        size = random_.randrange(1, 5)
        yield changes(rows[at : at + size], schema)
        at += size


COMPOSITE = TableSchema((Column("a", "int"), Column("b", "text", charset="utf8mb4"), NAME), ("b", "a"))


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 25), st.integers(1, 5), st.booleans())
def test_any_permutation_and_duplication_gives_the_same_rows(
    random_: random.Random, length: int, keys: int, composite: bool
) -> None:
    schema = COMPOSITE if composite else SCHEMA
    found, left = history(random_, length, keys, composite)
    rows = [row for change in found for row in change]
    ordered = fold([changes(rows, schema)], schema)

    width = len(schema.columns)
    expected = sorted(v for v in left.values() if v is not None)
    assert sorted(r[:width] for r in upserts(ordered)) == expected
    gone = [(k[1], k[0]) if composite else (k,) for k, v in left.items() if v is None]
    assert sorted(deletes(ordered)) == sorted(gone)
    counts = ordered.counts
    assert counts.logged.changes == len(found) == counts.superseded + counts.effective
    assert counts.effective + counts.key_changes == ordered.upserts.num_rows + ordered.deletes.num_rows

    repeated = [change for change in found for _ in range(random_.randrange(1, 4))]
    shuffled = [row for change in repeated for row in change]
    random_.shuffle(shuffled)
    again = fold(list(pieces(shuffled, random_, schema)), schema)
    assert same(again, ordered)
    assert again.counts.logged.changes == len(repeated)
    assert again.counts.duplicate == len(repeated) - len(found)
    unchanged = ("superseded", "effective", "key_changes")
    assert all(getattr(again.counts, n) == getattr(counts, n) for n in unchanged)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 30), st.integers(1, 4))
def test_leaving_out_what_is_applied_equals_folding_the_rest(random_: random.Random, length: int, keys: int) -> None:
    found, _ = history(random_, length, keys, composite=False)
    rows = [row for change in found for row in change]
    names = sorted({r.gtid for r in rows})
    applied = set(random_.sample(names, random_.randrange(len(names) + 1)))
    gtids = GtidSet({})
    for name in applied:
        gtids = gtids.add(Gtid.parse(name))
    exclude = before(gtids)
    rest = [r for r in rows if r.gtid not in applied]
    whole = fold(list(pieces(rows, random_, SCHEMA)), SCHEMA, exclude)
    part = fold(list(pieces(rest, random_, SCHEMA)), SCHEMA)
    assert same(whole, part)
    assert whole.counts.duplicate == sum(r.gtid in applied and r.op != Op.MOVE_OUT for r in rows)


def test_of_a_transaction_in_part_its_first_row_events_are_left_out() -> None:
    rows = [one(1, Op.INSERT, 1, "a")]
    rows += [Row(Op.INSERT, gtid(2), e, r, 20, 10 * e + r, (10 * e + r, "b")) for e in range(2, 6) for r in range(2)]
    rows += [Row(op, gtid(2), 6, 0, 20, 60, (v, "b")) for op, v in ((Op.MOVE_OUT, 20), (Op.UPDATE, 60))]
    part = before(GtidSet.parse(gtid(1)), Fingerprint(Gtid(SERVER, 2), 20, 4))
    for records in ([changes(rows)], [changes(rows[:4]), changes(rows[4:])]):
        folded = fold(records, SCHEMA, part)
        assert [row[0] for row in upserts(folded)] == [40, 41, 50, 51, 60]
        assert deletes(folded) == [(20,)]
        assert folded.counts.duplicate == 5
        assert [
            str(g).rpartition(":")[2] for g in sequence(records, SCHEMA, part).rows.column("_cdc_gid").to_pylist()
        ] == [
            *(f"2/{e}.{r}" for e in (4, 5) for r in range(2)),
            "2/6.0",
        ]
    all_of_it = before(GtidSet.parse(f"{SERVER}:1-2"))
    assert fold([changes(rows)], SCHEMA, all_of_it).counts.effective == 0


def test_every_order_of_a_few_changes() -> None:
    rows = [
        one(1, Op.INSERT, 1, "a"),
        *move(2, (1, "a"), (2, "a")),
        one(3, Op.DELETE, 2, "a"),
        one(4, Op.INSERT, 1, "b"),
    ]
    expected = fold([changes(rows)], SCHEMA)
    assert (upserts(expected), deletes(expected)) == ([(1, "b", 40, 4)], [(2,)])
    for order in permutations(rows):
        assert same(fold([changes([r]) for r in order], SCHEMA), expected)


# -- values that do not fit -----------------------------------------------------------------------------------------------


def with_unfit(found: Changes, values: Sequence[Any]) -> Changes:
    batch = found.batch.append_column(unfit.FIELD, pa.array(values, unfit.TYPE))
    return Changes(batch, found.gtids, found.schema_hash)


def test_what_does_not_fit_stays_with_its_row() -> None:
    zero = [("name", "0000-00-00")]
    plain = changes([one(1, Op.INSERT, 1, "a"), one(2, Op.INSERT, 2, "b")])
    odd = with_unfit(changes([one(3, Op.UPDATE, 1, None), one(4, Op.INSERT, 3, "c")]), [zero, None])
    for records in ([plain, odd], [odd, plain]):
        folded = fold(records, SCHEMA)
        assert folded.upserts.schema.names == ["id", "name", "_cdc_ts_ms", "_cdc_seq", "_cdc_unfit"]
        assert upserts(folded) == [(2, "b", 20, 2, None), (1, None, 30, 3, zero), (3, "c", 40, 4, None)]
        appended = sequence(records, SCHEMA).rows
        assert appended.schema.names[-3:] == ["_cdc_op", "_cdc_gid", "_cdc_unfit"]
        assert appended.column("_cdc_unfit").to_pylist() == [None, None, zero, None]
        assert folded.deletes.schema.names == ["id"]


def test_what_does_not_fit_and_is_superseded_brings_no_column() -> None:
    odd = with_unfit(changes([one(1, Op.INSERT, 1, None)]), [[("name", "FF")]])
    folded = fold([odd, changes([one(2, Op.UPDATE, 1, "b")])], SCHEMA)
    assert folded.upserts.schema.names == ["id", "name", "_cdc_ts_ms", "_cdc_seq"]


# -- keys of every type -----------------------------------------------------------------------------------------------

KEYS: list[tuple[Column, list[Any]]] = [
    (Column("k", "float"), [0.0, -0.0, 1.5, -3.4028234663852886e38]),
    (Column("k", "double"), [0.0, -0.0, 1.5, 5e-324]),
    (Column("k", "bit", length=1), [False, True]),
    (Column("k", "bit", length=12), [b"\x00\x00", b"\x00\x01", b"\x0f\xff"]),
    (Column("k", "time"), [-3_020_399_000_000, 0, 3_020_399_999_999]),
    (Column("k", "year"), [0, 1901, 2155]),
    (Column("k", "enum", members=("a", "b"), charset="utf8mb4"), ["", "a", "b"]),
    (Column("k", "set", members=("a", "b"), charset="utf8mb4"), ["", "a", "a,b"]),
    (Column("k", "bigint", unsigned=True), [Decimal(0), Decimal(2**64 - 1)]),
    (Column("k", "decimal", precision=10, scale=2), [Decimal("-1.10"), Decimal("1.10")]),
    (Column("k", "decimal", precision=60), ["1" + "0" * 59, "-1"]),
    (Column("k", "varbinary"), [b"", b"\x00", b"\x00\x00"]),
    (Column("k", "text", charset="utf8mb4"), ["", "a", "A", "a "]),
    (Column("k", "date"), [date(1, 1, 1), date(9999, 12, 31)]),
    (Column("k", "datetime"), [datetime(1, 1, 1), datetime(2024, 2, 29, 23, 59, 59, 999999)]),  # noqa: DTZ001
    (Column("k", "timestamp"), [datetime(1970, 1, 1, tzinfo=UTC), datetime(2038, 1, 19, tzinfo=UTC)]),
]


@pytest.mark.parametrize(("column", "values"), KEYS, ids=lambda v: getattr(v, "type", ""))
@pytest.mark.parametrize("composite", [False, True])
def test_keys_of_every_type_are_told_apart_by_their_bytes(column: Column, values: list[Any], composite: bool) -> None:
    schema = TableSchema((column, ID, NAME), ("k", "id") if composite else ("k",))
    rows = [one(i, Op.INSERT, v, 7, f"{i}") for i, v in enumerate(values, 1)]
    rows += [one(len(rows) + i, Op.UPDATE, v, 7, f"{i} again") for i, v in enumerate(values, 1)]
    rows.append(one(len(rows) + 1, Op.DELETE, values[-1], 7, ""))
    folded = fold([changes(rows, schema)], schema)
    assert [r["name"] for r in folded.upserts.to_pylist()] == [f"{i} again" for i in range(1, len(values))]
    values = pa.array(values, schema.arrow.field("k").type).to_pylist()
    assert repr(folded.upserts.column("k").to_pylist()) == repr(values[:-1]), "bits, the sign of zero included"
    assert repr(folded.deletes.column("k").to_pylist()) == repr(values[-1:])
    index = KeyIndex(folded.upserts.select(list(schema.key)), "")
    everything = pa.table({"k": pa.array(values, schema.arrow.field("k").type), "id": [7] * len(values)})
    located = index.locate(everything.select(list(schema.key)))
    assert located.to_pylist() == [*range(len(values) - 1), None]


# -- append -----------------------------------------------------------------------------------------------------------


def test_append_keeps_every_change_once_with_its_global_id() -> None:
    rows = [
        one(1, Op.INSERT, 1, "a"),
        *move(2, (1, "a"), (2, "b")),
        one(3, Op.DELETE, 2, "b"),
        one(3, Op.DELETE, 2, "b"),
    ]
    for order in permutations(rows):
        appended = sequence([changes([r]) for r in order], SCHEMA)
        assert [tuple(r.values()) for r in appended.rows.to_pylist()] == [
            (1, "a", 10, 1, "insert", f"{gtid(1)}/0.0"),
            (2, "b", 20, 2, "update", f"{gtid(2)}/0.0"),
            (2, "b", 30, 3, "delete", f"{gtid(3)}/0.0"),
        ]
        assert appended.counts == FoldCounts(Counts(1, 1, 2), superseded=0, duplicate=1, effective=3, key_changes=0)
    assert appended.rows.schema.names == ["id", "name", "_cdc_ts_ms", "_cdc_seq", "_cdc_op", "_cdc_gid"]


def test_append_needs_no_key_and_takes_nulls() -> None:
    schema = TableSchema((ID, NAME))
    appended = sequence([changes([one(1, Op.INSERT, None, None)], schema)], schema)
    assert appended.rows.num_rows == 1
    assert sequence([], schema).rows.schema.names[-1] == "_cdc_gid"


def test_append_leaves_out_what_is_applied() -> None:
    appended = sequence(
        [changes([one(1, Op.INSERT, 1, "a"), one(2, Op.INSERT, 2, "b")])], SCHEMA, before(GtidSet.parse(gtid(1)))
    )
    assert appended.rows.column("_cdc_gid").to_pylist() == [f"{gtid(2)}/0.0"]
    assert appended.counts.duplicate == 1


# -- speed ------------------------------------------------------------------------------------------------------------


def test_a_million_changes_fold_in_seconds() -> None:
    """About 0.3 s; ten times that would be row by row."""
    rows, step = 1_000_000, 50_000
    records = []
    ids = pa.array([i * 7919 % 300_000 for i in range(step)], pa.int64())
    texts = pa.array([f"row {i}" for i in range(step)])
    zeros = pa.array([0] * step, pa.int32())
    for start in range(0, rows, step):
        seq = pa.array(range(start, start + step), pa.int64())
        columns: list[Any] = [
            pa.array([Op.UPDATE] * step, pa.int8()),
            zeros,
            pa.array(range(step), pa.int32()),
            zeros,
            seq,
            seq,
            ids,
            texts,
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=pa.schema([*METADATA, *SCHEMA.arrow]))
        records.append(Changes(batch, (gtid(start + 1),), SCHEMA.hash))
    began = time.process_time()
    folded = fold(records, SCHEMA)
    assert time.process_time() - began < 6
    assert folded.counts.logged.changes == rows
    assert folded.counts.effective == folded.upserts.num_rows == len(set(ids.to_pylist()))
