"""GTID sets against plain sets of transactions, and the order of places in a binary log."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position

A = "11111111-1111-1111-1111-111111111111"
B = "22222222-2222-2222-2222-222222222222"
SIDS = (A, B, f"{A}:tag", f"{A}:_other1")

gtids = st.builds(Gtid, st.sampled_from(SIDS), st.integers(1, 12))
plain = st.frozensets(gtids, max_size=40)


def as_set(members: frozenset[Gtid]) -> GtidSet:
    made = GtidSet({})
    for gtid in members:
        made = made.add(gtid)
    return made


def members(gtids: GtidSet) -> frozenset[Gtid]:
    return frozenset(Gtid(sid, n) for sid, parts in gtids.sids.items() for a, b in parts for n in range(a, b + 1))


@given(plain)
def test_the_members_are_those_put_in(x: frozenset[Gtid]) -> None:
    made = as_set(x)
    assert members(made) == x
    assert len(made) == len(x)
    assert bool(made) == bool(x)
    assert all(g in made for g in x)


@given(plain)
def test_the_text_reads_back(x: frozenset[Gtid]) -> None:
    made = as_set(x)
    assert GtidSet.parse(str(made)) == made
    assert GtidSet.parse(str(made).upper().replace(",", ",\n ")) == made
    assert hash(GtidSet.parse(str(made))) == hash(made)


@given(plain, plain)
def test_the_algebra_is_that_of_sets(x: frozenset[Gtid], y: frozenset[Gtid]) -> None:
    a, b = as_set(x), as_set(y)
    assert members(a.union(b)) == x | y
    assert members(a.subtract(b)) == x - y
    assert members(a.intersection(b)) == x & y
    assert a.contains(b) == (x >= y)
    assert (a == b) == (x == y)
    assert (str(a) == str(b)) == (x == y)


@given(plain, plain)
def test_intervals_stay_normal(x: frozenset[Gtid], y: frozenset[Gtid]) -> None:
    for made in (as_set(x).union(as_set(y)), as_set(x).subtract(as_set(y))):
        assert list(made.sids) == sorted(made.sids)
        for parts in made.sids.values():
            assert parts
            assert all(a <= b for a, b in parts)
            assert all(one[1] + 1 < two[0] for one, two in itertools.pairwise(parts))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        (f"{A}:1-5:6-9", f"{A}:1-9"),
        (f"{A}:3,{A}:1-2", f"{A}:1-3"),
        (f"{B}:1,{A}:tag:7:4-5", f"{A}:tag:4-5:7,{B}:1"),
        (f"{A}:1-3:tag:2", f"{A}:1-3,{A}:tag:2"),
        (f"\n{A.upper()}:1-3,\n", f"{A}:1-3"),
    ],
)
def test_mysqls_texts(text: str, normal: str) -> None:
    assert str(GtidSet.parse(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        A,
        f"{A}:",
        f"{A}:0",
        f"{A}:5-3",
        f"{A}:1-",
        f"{A}:-1",
        "x:1",
        f"{A}:1;{B}:1",
        f"{A}:Tag Two:1 x",
        "0-1",
        "0-1-0",
        f"0-1-{1 << 64}",
        "0-1-2,0-2-3",
        f"0-1-2,{A}:1",
        "0-1-2-3",
    ],
)
def test_what_is_no_gtid_set(text: str) -> None:
    with pytest.raises(ValueError, match="not a GTID set"):
        GtidSet.parse(text)


@pytest.mark.parametrize(
    "text", ["", A, f"{A}:0", f"{A}:x", f"{A}:1:2", f"{A}:1-2", "x:1", "0-1", "0-1-0", "0-1--1", "0-1-2,1-1-1"]
)
def test_what_is_no_gtid(text: str) -> None:
    with pytest.raises(ValueError, match="not a GTID"):
        Gtid.parse(text)


@given(gtids)
def test_a_gtid_reads_back(gtid: Gtid) -> None:
    assert Gtid.parse(str(gtid)) == gtid


def test_places_are_ordered_by_number_and_not_by_text() -> None:
    late, early, middle = (
        BinlogEnd("binlog.1000000", 157),
        BinlogEnd("binlog.999999", 5),
        BinlogEnd("binlog.1000000", 4),
    )
    assert sorted([late, early, middle]) == [early, middle, late]
    assert BinlogEnd("binlog.000001", 4) <= BinlogEnd("binlog.000001", 4)
    with pytest.raises(ValueError, match="no order"):
        _ = BinlogEnd("binlog.000001", 4) < BinlogEnd("mysql-bin.000002", 4)


@given(plain, st.none() | st.builds(Fingerprint, gtids, st.integers(0, 2**53), st.integers(0, 2**40)))
def test_a_position_reads_back(x: frozenset[Gtid], last: Fingerprint | None) -> None:
    position = Position(as_set(x), A, BinlogEnd("binlog.000007", 5_000_000_000), last)
    assert Position.from_dict(position.to_dict()) == position


@given(plain, plain)
def test_a_position_contains_by_transactions(x: frozenset[Gtid], y: frozenset[Gtid]) -> None:
    one = Position(as_set(x), A, BinlogEnd("a.1", 1))
    two = Position(as_set(y), B, BinlogEnd("b.1", 9))
    assert one.contains(two) == (x >= y)


def placed(x: frozenset[Gtid], part: Fingerprint | None = None) -> Position:
    return Position(as_set(x), A, BinlogEnd("a.1", 1), None, part if part and part.gtid not in x else None)


places = st.builds(placed, plain, st.none() | st.builds(Fingerprint, gtids, st.just(7), st.integers(1, 4)))
EVENTS = range(4)


def events(position: Position) -> frozenset[tuple[Gtid, int]]:
    """What is before a position, where every transaction has four row events."""
    part = position.partial
    rest = {(part.gtid, e) for e in EVENTS if e < part.row_events} if part else set()
    # One with all its events in part is not whole: it may have more.
    return frozenset({(g, e) for g in members(position.gtids) for e in (*EVENTS, 4)} | rest)


@given(places)
def test_a_position_in_part_reads_back(x: Position) -> None:
    assert Position.from_dict(x.to_dict()) == x
    assert ("partial" in x.to_dict()) == (not x.whole), "a form of before has no such key"


@given(places, places)
def test_positions_contain_by_row_events(x: Position, y: Position) -> None:
    assert x.contains(y) == (events(x) >= events(y))
    assert x.is_at(y) == (events(x) == events(y))


@given(places, gtids)
def test_the_first_event_that_is_not_before(x: Position, gtid: Gtid) -> None:
    missing = [e for e in (*EVENTS, 4) if (gtid, e) not in events(x)]
    assert x.first_event(gtid) == (missing[0] if missing else None)


@given(places, places)
def test_a_union_has_what_either_has(x: Position, y: Position) -> None:
    open_ = {p.gtid for p in (x.partial, y.partial) if p} - members(x.gtids.union(y.gtids))
    if len(open_) > 1:
        with pytest.raises(ValueError, match="both"):
            x.union(y)
    else:
        assert events(x.union(y)) == events(x) | events(y)


@given(places, places)
def test_a_position_that_contains_another_reaches_farther(x: Position, y: Position) -> None:
    assert not x.contains(y) or x.reach >= y.reach


@pytest.mark.parametrize("part", [Fingerprint(Gtid(A, 3), 7, 2), Fingerprint(Gtid(A, 9), 7, 0)])
def test_what_is_no_part(part: Fingerprint) -> None:
    with pytest.raises(ValueError, match="in part"):
        Position(GtidSet.parse(f"{A}:1-5"), A, BinlogEnd("a.1", 1), None, part)


# MariaDB's lines


def server_of(domain: int, number: int) -> int:
    """Who wrote it, in a history that several servers wrote one after the other, domain by domain."""
    return 1 + (number // 3 + domain) % 3


ends = st.dictionaries(st.integers(0, 11).map(lambda d: d * d), st.integers(1, 12), max_size=5)


def line(last: dict[int, int]) -> GtidSet:
    return GtidSet.parse(",".join(f"{d}-{server_of(d, n)}-{n}" for d, n in last.items()))


def before(last: dict[int, int]) -> frozenset[tuple[int, int]]:
    return frozenset((d, n) for d, end in last.items() for n in range(1, end + 1))


def numbers(gtids: GtidSet) -> frozenset[tuple[int, int]]:
    return frozenset(
        (int(sid.split("-")[0]), n) for sid, parts in gtids.sids.items() for a, b in parts for n in range(a, b + 1)
    )


@given(ends, ends)
def test_lines_are_sets_of_all_that_is_before(x: dict[int, int], y: dict[int, int]) -> None:
    a, b = line(x), line(y)
    assert numbers(a) == before(x)
    assert numbers(a.union(b)) == before(x) | before(y)
    assert numbers(a.intersection(b)) == before(x) & before(y)
    assert numbers(a.subtract(b)) == before(x) - before(y)
    assert a.contains(b) == (before(x) >= before(y))
    assert a.union(b) == b.union(a)
    assert (a == b) == (x == y)
    assert len(a) == len(before(x))
    assert bool(a.subtract(b)) == bool(before(x) - before(y))
    for d, n in before({0: 12, 1: 12}):
        assert (Gtid(f"{d}-{server_of(d, n)}", n) in a) == ((d, n) in before(x))


@given(ends)
def test_the_text_of_lines_reads_back(x: dict[int, int]) -> None:
    made = line(x)
    assert GtidSet.parse(str(made)) == made
    assert GtidSet.parse(" , ".join(reversed(str(made).split(",")))) == made
    assert [int(part.split("-")[0]) for part in str(made).split(",") if part] == sorted(x)
    position = Position(made, "mariadb-1-x", BinlogEnd("binlog.000007", 5))
    assert Position.from_dict(position.to_dict()) == position


@given(ends, st.lists(st.tuples(st.sampled_from([0, 1, 4]), st.integers(1, 12))))
def test_the_numbers_of_a_domain_must_grow(x: dict[int, int], added: list[tuple[int, int]]) -> None:
    gtids = [Gtid(f"{d}-{server_of(d, n)}", n) for d, n in added]
    last, grows = dict(x), True
    for d, n in added:
        grows = grows and n > last.get(d, 0)
        last[d] = n
    if grows:
        assert line(x).followed_by(gtids) == line(last)
    else:
        with pytest.raises(ValueError, match="must grow"):
            line(x).followed_by(gtids)


@given(plain, st.frozensets(gtids))
def test_mysqls_transactions_follow_in_any_order(x: frozenset[Gtid], y: frozenset[Gtid]) -> None:
    assert as_set(x).followed_by(y) == as_set(x | y)


@given(ends.filter(bool), st.data())
def test_without_the_last_one(x: dict[int, int], data: st.DataObject) -> None:
    d = data.draw(st.sampled_from(sorted(x)))
    gtid = Gtid(f"{d}-{server_of(d, x[d])}", x[d])
    left = line(x).without(gtid)
    assert numbers(left) == before(x) - {(d, x[d])}
    # The server that wrote it is asked for, which it had not yet been, perhaps, one number before.
    assert gtid.number == 1 or f"{gtid.sid}-{gtid.number - 1}" in str(left).split(",")


@given(plain.filter(bool))
def test_without_one_of_mysqls(x: frozenset[Gtid]) -> None:
    gtid = max(x)
    assert members(as_set(x).without(gtid)) == x - {gtid}


def test_the_same_number_of_two_servers_is_one_place() -> None:
    one, two = GtidSet.parse("0-1-100"), GtidSet.parse("0-2-100")
    assert one.contains(two)
    assert two.contains(one)
    assert one.union(two) == two.union(one)
    assert one != two


def test_mysqls_and_mariadbs_never_mix() -> None:
    one, two = GtidSet.parse(f"{A}:1-5"), GtidSet.parse("0-1-5")
    for mixed in (one, two):
        other = two if mixed is one else one
        assert not mixed.contains(other)
        assert mixed.subtract(other) == mixed
        assert not mixed.intersection(other)
        assert next(Gtid(sid, 5) for sid in other.sids) not in mixed
        assert mixed.union(GtidSet({})) == mixed == GtidSet({}).union(mixed)
        with pytest.raises(ValueError, match="nothing to do with"):
            mixed.union(other)
        with pytest.raises(ValueError, match="nothing to do with"):
            mixed.followed_by([Gtid.parse("7-1-9"), Gtid(A, 9)])


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 2**64 - 1))
def test_a_gtid_of_mariadb_reads_back(domain: int, server: int, number: int) -> None:
    text = f"{domain}-{server}-{number}"
    assert Gtid.parse(text) == (f"{domain}-{server}", number)
    assert str(Gtid.parse(text)) == text
    assert str(GtidSet({}).add(Gtid.parse(text))) == text


def test_runs_of_several_servers_in_a_domain_make_a_line() -> None:
    runs = {"0-1": ((1, 4), (9, 9)), "0-7": ((5, 8),), "3-7": ((2, 3),)}
    assert str(GtidSet({}).union(GtidSet(runs))) == "0-1-9,3-7-3"
