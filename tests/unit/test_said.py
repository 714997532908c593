"""What was said of partitions: no more is kept than is needed, however long rows come late."""

from __future__ import annotations

from pathlib import Path

from cdc.names import TableName
from cdc.ready.database import Database
from cdc.ready.said import Book, Channel, Said, Watched

WATCHED = Watched(TableName("shop", "orders"), "day", 1, "2026-03-01", "2026-03-01")
BY: tuple[Channel, ...] = ("file", "webhook")
S = 1_000_000


def book(folder: Path) -> Book:
    found = Book(Database(folder))
    found.watch(WATCHED)
    return found


def say(kept: Book, generation: int, period: str = "2026-03-01") -> None:
    kept.say(WATCHED, [Said(period, generation, 10 + generation, {"generation": generation})], BY, "2026-03-02")


def test_of_what_everybody_was_told_the_newest_is_kept(tmp_path: Path) -> None:
    kept = book(tmp_path)
    say(kept, 1, "2026-03-02")
    for generation in range(1, 50):
        say(kept, generation)
        for one in kept.open():
            for channel in one.channels:
                kept.told(one.number, channel)
    with kept._database.read() as db:
        assert db.execute("SELECT count(*) FROM said").fetchone() == (2,)
    assert kept.count() == (50, 0)
    assert {p: s.generation for p, s in kept.said(WATCHED).items()} == {"2026-03-01": 49, "2026-03-02": 1}


def test_what_somebody_was_not_told_yet_stays(tmp_path: Path) -> None:
    kept = book(tmp_path)
    for generation in (1, 2, 3):
        say(kept, generation)
        for one in kept.open():
            if "file" in one.channels:
                kept.told(one.number, "file")
    assert [(o.payload["generation"], o.channels) for o in kept.open()] == [(g, ("webhook",)) for g in (1, 2, 3)]
    assert kept.count() == (3, 3)


def test_a_clock_that_is_set_back_keeps_nothing_from_being_told(tmp_path: Path) -> None:
    kept = book(tmp_path)
    say(kept, 1)
    (one,) = kept.open()
    kept.postpone(one.number, 10**9 * S)
    assert kept.open((10**9 - 1) * S) == []
    assert [o.number for o in kept.open(1 * S)] == [one.number]
