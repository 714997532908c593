"""Commit records: their bytes, their hash, what they make of tables, and what is no commit record."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.epoch import CommitRecord, Counts, EpochId, Extent, TableEntry, TableState, digest
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position

SERVER = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
HASH = "a" * 64


def position(number: int) -> Position:
    last = Fingerprint(Gtid(SERVER, number), 1_700_000_000_000_000, 3)
    return Position(GtidSet({SERVER: ((1, number),)}), SERVER, BinlogEnd("binlog.000007", number * 10), last)


def part(row_events: int = 5) -> Position:
    """Behind so many row events of the transaction 11."""
    return replace(position(10), partial=Fingerprint(Gtid(SERVER, 11), 1_700_000_000_000_001, row_events))


def state(totals: Counts = Counts(), last: EpochId | None = None) -> TableState:
    return TableState({"columns": [{"name": "id", "type": "bigint"}]}, {"mode": "upsert"}, totals, last, 3)


def entry(rows: Counts, totals: Counts, previous: EpochId | None = None) -> TableEntry:
    return TableEntry(rows, totals, Extent(4, 9, 2, 800, digest([b"a", b"b"])), previous, HASH)


def record(**changes: Any) -> CommitRecord:
    made = CommitRecord(
        log="8eadcc08-5cb1-4ea2-9c2d-e79c78fc89b2",
        number=7,
        before="b" * 64,
        start=position(10),
        end=position(12),
        ts_ms=1_700_000_000_001,
        raw_us=1_700_000_000_000_999,
        seq=55,
        transactions=2,
        framing={"events": 10, "bytes": 900},
        framing_totals={"events": 100, "bytes": 9_000},
        written_us=1_700_000_000_100_000,
        checkpoint=5,
        tables={"shop.orders": entry(Counts(1, 2, 3), Counts(10, 20, 30), EpochId(6, "c" * 64))},
        added={"shop.new": state()},
        removed={"shop.old": {"code": "TableStopped", "what": "w", "where": "", "hint": ""}},
        skipped=(f"{SERVER}:11",),
    )
    return replace(made, **changes)


def test_a_record_comes_back_from_its_bytes() -> None:
    for made in (
        record(),
        record(before=None, tables={}, added={}, removed={}, skipped=()),
        record(states={"shop.orders": state(Counts(1, 2, 3), EpochId(3, HASH))}, checkpoint=7),
        record(start=Position(GtidSet({}), SERVER, BinlogEnd("binlog.000001", 4))),
        record(end=part()),
        record(start=part(), end=part(9)),
    ):
        found = CommitRecord.parse(made.payload)
        assert found == made
        assert found.payload == made.payload
        assert found.id == EpochId(7, made.hash)


def test_a_record_is_whole_unless_it_ends_with_a_part() -> None:
    assert record().whole
    assert record(start=part()).whole
    assert not record(end=part()).whole


def test_the_hash_names_the_bytes_and_the_bytes_are_canonical() -> None:
    made = record()
    assert made.hash == hashlib.sha256(made.payload).hexdigest()
    assert made.payload == orjson.dumps(orjson.loads(made.payload), option=orjson.OPT_SORT_KEYS)
    assert record(framing={"bytes": 900, "events": 10}).hash == made.hash, (
        "the order in which a mapping was filled is nothing"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"log": "another"},
        {"number": 8},
        {"before": "d" * 64},
        {"end": position(13)},
        {"ts_ms": 1},
        {"raw_us": 1},
        {"seq": 56},
        {"transactions": 3},
        {"framing_totals": {"events": 101}},
        {"written_us": 1},
        {"checkpoint": 6},
        {"tables": {}},
        {"tables": {"shop.orders": entry(Counts(1, 2, 4), Counts(10, 20, 30))}},
        {"removed": {}},
        {"skipped": ()},
        {"states": {}},
    ],
)
def test_every_part_is_in_the_hash(changes: dict[str, Any]) -> None:
    assert record(**changes).hash != record().hash


def test_the_form_is_pinned() -> None:
    """A record that was written must be read by every later version: this hash changes only with `VERSION`."""
    assert record().hash == "1558975c3015ff9cef1ec2ced488d2120c0101350c6516de2a7474ad2bbd1591"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        record().payload + b" ",
        b" " + record().payload,
        record().payload.replace(b'"v":1', b'"v":2'),
        record().payload.replace(b'"seq":55', b'"seq":55,"seq":55'),
        record().payload.replace(b'"seq":55', b'"seq":55,"more":1'),
        record().payload.replace(b'"ts_ms"', b'"ts_mz"'),
        record().payload.replace(b"[1,2,3]", b"[1,2]"),
        record().payload.replace(b"binlog.000007", b"binlog.\\u0030"),
        orjson.dumps(orjson.loads(record().payload), option=orjson.OPT_INDENT_2),
    ],
    ids=range(14),
)
def test_what_is_no_record_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        CommitRecord.parse(payload)


def _any_value(generator: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [None, True, 0, -1, 2**63 - 1, 1.5, "", "x", HASH, [], {}]
    if depth < 2 and generator.random() < 0.3:
        return [_any_value(generator, depth + 1)] * generator.randint(1, 5)
    return generator.choice(kinds)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, child in items for p in _paths(child, (*path, key)))]


def test_any_value_in_any_place_is_refused_or_harmless() -> None:
    """Records of another program: a `ValueError`, or a record with exactly these bytes, and nothing else."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    whole = orjson.loads(record(states={"shop.orders": state(Counts(1, 2, 3), EpochId(3, HASH))}).payload)
    paths = [path for path in _paths(whole) if path]
    refused = 0
    for _ in range(5_000):
        changed = orjson.loads(orjson.dumps(whole))
        *way, last = generator.choice(paths)
        place = changed
        for key in way:
            place = place[key]
        place[last] = _any_value(generator)
        payload = orjson.dumps(changed, option=orjson.OPT_SORT_KEYS)
        try:
            assert CommitRecord.parse(payload).payload == payload
        except ValueError:
            refused += 1
    assert refused > 500


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        CommitRecord.parse(payload)


def test_digest_tells_where_records_end() -> None:
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"])
    assert digest([b"ab"]) != digest([b"ab", b""])
    assert digest([b"a", b"b"]) != digest([b"b", b"a"])
    assert digest([b"ab"]) == hashlib.sha256(b"\0\0\0\x02ab").hexdigest()


def test_counts() -> None:
    assert Counts(1, 2, 3).changes == 6
    assert Counts(1, 2, 3).plus(Counts(10, 20, 30)) == Counts(11, 22, 33)


def test_states_follow_from_epoch_to_epoch() -> None:
    before = {"shop.orders": state(Counts(9, 18, 27), EpochId(6, "c" * 64)), "shop.old": state()}
    made = record()
    after = made.states_after(before)
    assert set(after) == {"shop.orders", "shop.new"}
    assert after["shop.orders"].totals == Counts(10, 20, 30)
    assert after["shop.orders"].last == made.id
    assert after["shop.orders"].since == 3
    assert after["shop.new"] == state()


def test_a_table_that_is_added_again_starts_anew() -> None:
    made = record(tables={}, removed={"shop.orders": {}}, added={"shop.orders": state()})
    assert made.states_after({"shop.orders": state(Counts(9, 9, 9), EpochId(6, HASH))}) == {"shop.orders": state()}


def test_a_checkpoint_says_all_by_itself() -> None:
    """What a reader gets who starts at the checkpoint is what one gets who read everything before it."""
    idle = state(Counts(1, 0, 0), EpochId(2, HASH))
    states = {"shop.orders": state(Counts(10, 20, 30)), "shop.idle": idle, "shop.new": state()}
    made = record(states=states, checkpoint=7)
    before = {"shop.orders": state(Counts(9, 18, 27), EpochId(6, "c" * 64)), "shop.idle": idle, "shop.old": state()}
    assert made.states_after({}) == replace(made, states=None).states_after(before) | {
        "shop.orders": replace(states["shop.orders"], last=made.id)
    }
    assert made.states_after({})["shop.orders"].last == made.id
    assert made.states_after({})["shop.idle"] == idle
