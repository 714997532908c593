"""What a table does with an epoch: by the hash chain, then by positions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdc import faults
from cdc.epoch import CommitRecord, EpochId
from cdc.errors import LogGapError
from cdc.lake import Applied
from cdc.merge.decide import Apply, Gap, Part, Skip, advance, decide
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position

SERVER = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


def gtids(text: str) -> GtidSet:
    return GtidSet.parse(f"{SERVER}:{text}") if text else GtidSet({})


def at(text: str) -> Position:
    """`1-3`: whole transactions; `1-3+4/7`: and seven row events of the fourth."""
    text, _, part = text.partition("+")
    number, _, events = part.partition("/")
    partial = Fingerprint(Gtid(SERVER, int(number)), int(number), int(events)) if part else None
    return Position(gtids(text), SERVER, BinlogEnd("binlog.000001", 4 + len(gtids(text)) * 100), partial=partial)


def record(number: int, start: str, end: str, before: str | None = None, log: str = "log") -> CommitRecord:
    """The epoch `number`, whose transactions are those of `end` that are not in `start`."""
    transactions = len(at(end).gtids.subtract(at(start).gtids))
    counts = {"transactions": transactions}
    return CommitRecord(
        log, number, before, at(start), at(end), number * 1000, number, number * 10, transactions, counts, counts, 0, 1
    )


def applied(record: CommitRecord) -> Applied:
    return Applied(record.log, record.id, record.end, record.ts_ms, record.raw_us, record.seq)


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def arm(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert name in faults.MUTANTS
    monkeypatch.setattr(faults, "_mutants", frozenset({name}))


FIRST = record(1, "", "1-2")
SECOND = record(2, "1-2", "1-5", FIRST.hash)
THIRD = record(3, "1-5", "1-9", SECOND.hash)


def test_the_chain_says_what_is_applied_and_what_follows() -> None:
    assert decide(applied(SECOND), SECOND) == Skip()
    assert decide(applied(SECOND), THIRD) == Apply()


def test_an_epoch_of_the_chain_that_lies_before_is_contained() -> None:
    assert decide(applied(THIRD), FIRST) == Skip()


def test_an_epoch_without_transactions_is_applied_in_the_chain_and_skipped_elsewhere() -> None:
    idle = record(4, "1-9", "1-9", THIRD.hash)
    assert decide(applied(THIRD), idle) == Apply()
    assert decide(replace(applied(THIRD), epoch=EpochId(4, "other")), idle) == Skip()


def test_the_same_number_with_another_hash_is_compared_by_position() -> None:
    """The log lost epochs 2 and 3 and wrote on, cut otherwise."""
    again = record(2, "1-2", "1-4", FIRST.hash)
    assert again.hash != SECOND.hash
    assert decide(applied(THIRD), again) == Skip()
    part = record(3, "1-4", "1-11", again.hash)
    assert decide(applied(THIRD), part) == Part(at("1-9"))
    after = advance(applied(THIRD), part)
    assert decide(after, record(4, "1-11", "1-12", part.hash)) == Apply()


def test_a_fresh_log_goes_on_by_position() -> None:
    fresh = record(4, "1-9", "1-12", log="another")
    assert decide(applied(THIRD), fresh) == Part(at("1-9"))
    lower = record(4, "1-7", "1-12", log="another")
    assert decide(applied(THIRD), lower) == Part(at("1-9"))


def test_what_is_missing_is_a_gap_and_named() -> None:
    assert decide(applied(SECOND), record(4, "1-7", "1-9", THIRD.hash)) == Gap(gtids("6-7"))
    assert decide(applied(SECOND), record(3, "1-7", "1-9", log="another")) == Gap(gtids("6-7"))


def test_a_number_that_comes_next_is_no_proof() -> None:
    """As the next number after a log lost records and its capture did not notice."""
    assert decide(applied(SECOND), record(3, "1-8", "1-9", "lost")) == Gap(gtids("6-8"))


def test_a_chain_with_a_hole_is_a_gap() -> None:
    assert decide(applied(SECOND), record(3, "1-7", "1-9", SECOND.hash)) == Gap(gtids("6-7"))


def test_positions_need_not_be_a_line() -> None:
    """After a failover the order of transactions may differ: what the table has beyond the epoch is kept, and asked again."""
    ahead = applied(record(2, "1-2", "1-2:4", FIRST.hash))
    other = record(2, "1-2", "1-3", FIRST.hash)
    assert decide(ahead, other) == Part(at("1-2:4"))
    after = advance(ahead, other)
    assert after.position.gtids == gtids("1-4")
    assert after.epoch == other.id
    following = record(3, "1-3", "1-5", other.hash)
    assert decide(after, following) == Part(after.position)
    assert decide(after, record(3, "1-3", "1-4", other.hash)) == Skip()
    after = advance(after, following)
    assert decide(after, record(4, "1-5", "1-6", following.hash)) == Apply()


def test_advancing_takes_the_epoch_and_never_goes_back() -> None:
    after = advance(applied(SECOND), THIRD)
    assert after == applied(THIRD)
    late = replace(applied(SECOND), ts_ms=10**6, seq=10**6)
    assert advance(late, THIRD).ts_ms == 10**6
    assert advance(late, THIRD).seq == 10**6


# -- parts of a transaction ---------------------------------------------------------------------------------------------

# 3 is large: its parts end after 4, 8 and all of its row events.
BEFORE = record(1, "", "1-2")
PART_1 = record(2, "1-2", "1-2+3/4", BEFORE.hash)
PART_2 = record(3, "1-2+3/4", "1-2+3/8", PART_1.hash)
PART_3 = record(4, "1-2+3/8", "1-4", PART_2.hash)
PARTS = (BEFORE, PART_1, PART_2, PART_3)


def test_the_parts_of_a_transaction_follow_one_another() -> None:
    for i, have in enumerate(PARTS):
        for j, one in enumerate(PARTS):
            expected = Skip() if j <= i else Apply() if j == i + 1 else Gap(gtids("3"))
            assert decide(applied(have), one) == expected, (i, j)
        if i:
            assert advance(applied(PARTS[i - 1]), have) == applied(have)


def test_the_parts_of_another_cut_are_compared_by_row_event() -> None:
    """The log lost its tail within the transaction, and it was cut otherwise the second time."""
    have = applied(PART_2)
    short, long = record(2, "1-2", "1-2+3/6", BEFORE.hash), record(2, "1-2", "1-2+3/9", BEFORE.hash)
    assert decide(have, short) == Skip()
    assert decide(have, long) == Part(at("1-2+3/8"))
    assert decide(have, record(3, "1-2+3/6", "1-2+3/9", short.hash)) == Part(at("1-2+3/8"))
    assert decide(have, record(3, "1-2+3/9", "1-4", long.hash)) == Gap(gtids("3"))
    assert decide(have, record(2, "1-2", "1-4", BEFORE.hash)) == Part(at("1-2+3/8"))
    assert decide(have, record(3, "1-4+5/2", "1-5", long.hash)) == Gap(gtids("3-5"))


def test_advancing_never_goes_back_within_a_transaction() -> None:
    short = record(2, "1-2", "1-2+3/6", BEFORE.hash)
    assert advance(applied(PART_2), short).position.is_at(at("1-2+3/8"))
    assert advance(applied(PART_2), record(2, "1-2", "1-4", BEFORE.hash)).position.is_at(at("1-4"))


def test_a_part_that_the_log_does_not_go_on_with_is_kept() -> None:
    """A log that was replaced within the transaction, on a server that has another order: what the table has stays in its position,
    until that could not be said any more."""
    other = record(2, "1-2", "1-2:4", BEFORE.hash)
    assert decide(applied(PART_2), other) == Part(at("1-2+3/8"))
    after = advance(applied(PART_2), other)
    assert after.position.is_at(at("1-2:4+3/8"))
    assert decide(after, record(3, "1-2:4", "1-4", other.hash)) == Part(at("1-2:4+3/8"))
    with pytest.raises(LogGapError, match="in part"):
        advance(after, record(3, "1-2:4", "1-2:4+5/1", other.hash))


@pytest.mark.parametrize(
    ("mutant", "have", "record", "right"),
    [
        ("parts_ignored", PART_1, PART_3, Gap(gtids("3"))),
        ("skip_by_number", THIRD, record(2, "1-9", "1-12", FIRST.hash), Part(at("1-9"))),
        ("no_gap_check", SECOND, record(4, "1-7", "1-9", THIRD.hash), Gap(gtids("6-7"))),
        ("part_applied_whole", THIRD, record(3, "1-5", "1-11", SECOND.hash), Part(at("1-9"))),
        ("applied_check_skipped", THIRD, SECOND, Skip()),
    ],
)
def test_every_mistake_decides_otherwise(
    mutant: str, have: CommitRecord, record: CommitRecord, right: object, armed: pytest.MonkeyPatch
) -> None:
    assert decide(applied(have), record) == right
    arm(armed, mutant)
    assert decide(applied(have), record) != right
