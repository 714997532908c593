"""Folding: rows of windowed reads among those of the stream, and the TRUNCATE of a shard."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.epoch import Counts, Op, WindowId
from cdc.errors import LakeError
from cdc.lake import FoldCounts
from cdc.log.codec import Changes
from cdc.merge.fold import fold, sequence
from cdc.position import GtidSet
from cdc.schema import Column, TableSchema
from tests.unit.test_fold import (
    ID,
    NAME,
    SCHEMA,
    Row,
    before,
    changes,
    deletes,
    gtid,
    history,
    move,
    one,
    pieces,
    same,
    upserts,
)

WINDOW = WindowId("a1b2", 3)


def read(seq: int, row: int, *values: Any, window: WindowId = WINDOW, op: int = Op.READ) -> Row:
    """A row of a windowed read, emitted as the stream's change `seq` would be."""
    return Row(op, window.gtid, window.number, row, 10 * seq, seq, values)


# -- reads ------------------------------------------------------------------------------------------------------------


def test_a_windowed_row_is_an_upsert_at_its_place() -> None:
    rows = [one(1, Op.INSERT, 1, "old"), read(2, 0, 1, "read"), read(3, 1, 2, "read"), one(4, Op.UPDATE, 2, "later")]
    for order in permutations(rows):
        folded = fold([changes([r]) for r in order], SCHEMA)
        assert upserts(folded) == [(1, "read", 20, 2), (2, "later", 40, 4)]
        assert folded.counts == FoldCounts(Counts(1, 1, 0, 2), superseded=2, effective=2)


def test_a_key_that_a_window_did_not_find_is_deleted_and_only_its_key_is_known() -> None:
    rows = [one(1, Op.INSERT, 1, "a"), read(2, 0, 1, None, op=Op.DELETE), read(3, 1, 2, None, op=Op.DELETE)]
    folded = fold([changes(rows)], SCHEMA)
    assert (upserts(folded), deletes(folded)) == ([], [(1,), (2,)])
    assert folded.counts == FoldCounts(Counts(1, 0, 2), superseded=1, effective=2)


def test_the_stream_after_a_window_brings_a_deleted_key_back() -> None:
    rows = [read(1, 0, 1, None, op=Op.DELETE), one(2, Op.INSERT, 1, "again")]
    assert upserts(fold([changes(rows)], SCHEMA)) == [(1, "again", 20, 2)]


def test_a_windowed_row_read_twice_from_the_log_counts_once() -> None:
    rows = [read(1, 0, 1, "a"), read(1, 0, 1, "a"), read(2, 1, 2, "b")]
    folded = fold([changes(rows)], SCHEMA)
    assert folded.counts == FoldCounts(Counts(reads=3), duplicate=1, effective=2)


def test_two_windows_of_a_job_are_told_apart_by_their_numbers() -> None:
    other = WindowId(WINDOW.job, 4)
    rows = [read(1, 0, 1, "a"), read(2, 0, 2, "b", window=other)]
    assert fold([changes(rows)], SCHEMA).counts.effective == 2
    kept = fold([changes(rows)], SCHEMA, dropped={WINDOW})
    assert upserts(kept) == [(2, "b", 20, 2)]
    assert kept.counts == FoldCounts(Counts(reads=2), duplicate=1, effective=1)


def test_no_position_contains_a_windowed_row() -> None:
    rows = [one(1, Op.INSERT, 1, "a"), read(2, 0, 1, "read"), one(3, Op.INSERT, 3, "c")]
    applied = before(GtidSet.parse(gtid(1)))
    assert upserts(fold([changes(rows)], SCHEMA, applied)) == [(1, "read", 20, 2), (3, "c", 30, 3)]
    without = fold([changes(rows)], SCHEMA, applied, {WINDOW, WindowId("other", 1)})
    assert upserts(without) == [(3, "c", 30, 3)]
    assert without.counts == FoldCounts(Counts(2, 0, 0, 1), duplicate=2, effective=1)


def test_append_has_windowed_rows_with_their_global_ids() -> None:
    rows = [one(1, Op.INSERT, 1, "a"), read(2, 0, 1, "a"), read(3, 1, 2, "b"), read(3, 1, 2, "b")]
    appended = sequence([changes(rows)], SCHEMA)
    assert [tuple(r.values()) for r in appended.rows.to_pylist()] == [
        (1, "a", 10, 1, "insert", f"{gtid(1)}/0.0"),
        (1, "a", 20, 2, "read", "snap:a1b2/3.0"),
        (2, "b", 30, 3, "read", "snap:a1b2/3.1"),
    ]
    assert appended.counts == FoldCounts(Counts(1, 0, 0, 3), duplicate=1, effective=3)
    assert sequence([changes(rows)], SCHEMA, dropped={WINDOW}).rows.num_rows == 1


# -- truncations ------------------------------------------------------------------------------------------------------

SHARD = Column("_shard", "text", charset="utf8mb4")
SHARDED = TableSchema((ID, NAME, SHARD), ("_shard", "id"))


def truncate(number: int, shard: str | None) -> Row:
    return one(number, Op.TRUNCATE, None, None, shard)


def sharded(rows: list[Row]) -> Changes:
    return changes(rows, SHARDED)


def shards(folded: Any) -> list[str]:
    return [] if folded.truncated is None else sorted(folded.truncated.to_pylist())


def test_a_truncation_supersedes_what_its_shard_had_before() -> None:
    rows = [
        one(1, Op.INSERT, 1, "a", "s.one"),
        one(2, Op.INSERT, 1, "a", "s.two"),
        one(3, Op.DELETE, 7, None, "s.one"),
        truncate(4, "s.one"),
        one(5, Op.INSERT, 2, "b", "s.one"),
    ]
    for order in permutations(rows):
        folded = fold([sharded([r]) for r in order], SHARDED)
        assert upserts(folded) == [(1, "a", "s.two", 20, 2), (2, "b", "s.one", 50, 5)]
        assert (deletes(folded), shards(folded)) == ([], ["s.one"])
        assert folded.counts == FoldCounts(Counts(3, 0, 1), superseded=2, effective=2)


def test_key_changes_before_a_truncation_and_repeated_records_balance() -> None:
    rows = [*move(1, (1, "a", "s.one"), (2, "a", "s.one")), truncate(2, "s.one"), truncate(3, "s.one")]
    rows += [one(4, Op.INSERT, 1, "b", "s.one"), *move(5, (1, "b", "s.one"), (3, "b", "s.one"))]
    folded = fold([sharded(rows), sharded(rows)], SHARDED)
    assert upserts(folded) == [(3, "b", "s.one", 50, 5)]
    assert (deletes(folded), shards(folded)) == ([("s.one", 1)], ["s.one"])
    assert folded.counts == FoldCounts(Counts(2, 4, 0), superseded=2, duplicate=3, effective=1, key_changes=1)


def test_what_is_applied_truncates_no_more() -> None:
    rows = [truncate(1, "s.one"), one(2, Op.INSERT, 1, "a", "s.one")]
    folded = fold([sharded(rows)], SHARDED, before(GtidSet.parse(gtid(1))))
    assert (upserts(folded), shards(folded)) == ([(1, "a", "s.one", 20, 2)], [])


def test_a_truncation_without_its_shard_is_an_error() -> None:
    with pytest.raises(LakeError, match="NULL in the key's column _shard"):
        fold([sharded([truncate(1, None)])], SHARDED)
    with pytest.raises(LakeError, match="NULL in the key's column id"):
        fold([sharded([truncate(1, "s.one"), one(2, Op.INSERT, None, "a", "s.one")])], SHARDED)


def test_append_says_that_a_shard_was_truncated() -> None:
    appended = sequence([sharded([one(1, Op.INSERT, 1, "a", "s.one"), truncate(2, "s.one")])], SHARDED)
    assert [tuple(r.values()) for r in appended.rows.to_pylist()] == [
        (1, "a", "s.one", 10, 1, "insert", f"{gtid(1)}/0.0"),
        (None, None, "s.one", 20, 2, "truncate", f"{gtid(2)}/0.0"),
    ]
    assert appended.counts == FoldCounts(Counts(1), effective=1)


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30), st.integers(1, 4))
def test_any_order_of_two_shards_and_their_truncations_gives_the_same(
    random_: random.Random, length: int, keys: int
) -> None:
    """As the shard that was truncated last would be without all that it had before."""
    shard_of: dict[Any, str] = {}
    rows: list[Row] = []
    left: dict[Any, Any] = {}
    for change in history(random_, length, keys, composite=False)[0]:
        shard = shard_of.setdefault(change[0].values[0], random_.choice(("s.one", "s.two")))
        if len(change) > 1:
            continue
        (row,) = change
        if random_.random() < 0.2:
            which = random_.choice(("s.one", "s.two"))
            rows.append(Row(Op.TRUNCATE, gtid(1000 + row.seq), 0, 0, row.ts_ms, row.seq, (None, None, which)))
            left = {k: None if k[0] == which else v for k, v in left.items()}
            left[which,] = None
            continue
        rows.append(row._replace(values=(*row.values, shard)))
        left[shard, row.values[0]] = None if row.op == Op.DELETE else row.values[1]
    ordered = fold([sharded(rows)], SHARDED)
    assert {(r[2], r[0]): r[1] for r in upserts(ordered)} == {k: v for k, v in left.items() if v is not None}
    assert shards(ordered) == sorted(k[0] for k in left if len(k) == 1)
    counts = ordered.counts
    assert counts.logged.changes == counts.superseded + counts.effective
    shuffled = [row for row in rows for _ in range(random_.randrange(1, 3))]
    random_.shuffle(shuffled)
    again = fold(list(pieces(shuffled, random_, SHARDED)), SHARDED)
    assert same(again, ordered)
    assert shards(again) == shards(ordered)
