"""What follows for times from how a server looks: never more than it can know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cdc.epoch import CommitRecord
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position
from cdc.ready.database import Database
from cdc.ready.marks import Marks
from cdc.source.progress import Hearing, Mark, Progress
from cdc.source.server import Channel, ServerIdentity

OWN = "11111111-1111-1111-1111-111111111111"
ONE = "22222222-2222-2222-2222-222222222222"
TWO = "33333333-3333-3333-3333-333333333333"
S = 1_000_000
IDENTITY = ServerIdentity(OWN, "9.7.4", 1)


def channel(name: str = "", source: str = ONE, received: str = "b.000001:100", **other: Any) -> Channel:
    found = Channel(source, 2, receives=True, applies=True, behind_s=0, error=0, name=name)
    return replace(found, **{"received": received, "applied": received, **other})


def at(second: float, *channels: Channel, offset: int = 1000, **other: Any) -> Progress:
    found = Progress(IDENTITY, int(second * S), BinlogEnd("binlog.000001", offset), channels, 10.0)
    return replace(found, **other)


def record(sid: str, commit_us: int, offset: int = 900, server: str = OWN) -> CommitRecord:
    last = Fingerprint(Gtid(sid, 7), commit_us, 1)
    end = Position(GtidSet.parse(f"{sid}:1-7"), server, BinlogEnd("binlog.000001", offset), last)
    return CommitRecord("log", 1, None, end, end, commit_us // 1000, commit_us, 1, 1, {}, {}, 0, 1)


def times(marks: list[Mark]) -> list[int]:
    return [m.at_us for m in marks]


def test_a_server_that_writes_for_itself_is_as_far_as_its_clock() -> None:
    hearing = Hearing()
    assert hearing.marks(at(100)) == [Mark(OWN, BinlogEnd("binlog.000001", 1000), 100 * S)]


def test_while_the_log_catches_up_what_it_has_counts() -> None:
    hearing = Hearing()
    hearing.read([record(OWN, 50 * S, offset=300)])
    marks = hearing.marks(at(100))
    assert marks[1] == Mark(OWN, BinlogEnd("binlog.000001", 300), 50 * S - 1)
    # A commit time that lies ahead of the server's clock tells nothing.
    hearing.read([record(OWN, 5000 * S, offset=400)])
    assert max(times(hearing.marks(at(101)))) == 101 * S
    # One of another server, whose time came here by other ways, neither.
    hearing.read([record(ONE, 60 * S, offset=500)])
    assert len(hearing.marks(at(102))) == 1


def test_a_replica_is_as_far_as_what_it_applied() -> None:
    hearing = Hearing()
    assert hearing.marks(at(100, channel())) == []
    hearing.read([record(ONE, 98 * S)])
    assert times(hearing.marks(at(101, channel(received="b.000001:200")))) == [98 * S - 1] * 2


def test_a_replica_that_hears_nothing_is_as_far_as_its_silence_tells() -> None:
    hearing = Hearing()
    for second in range(100, 110):
        assert hearing.marks(at(second, channel())) == []
    assert times(hearing.marks(at(110, channel()))) == [100 * S]
    assert times(hearing.marks(at(115, channel()))) == [105 * S]
    # Something came: it may be of any time.
    assert hearing.marks(at(116, channel(received="b.000001:200"))) == []
    # It lies in the relay log.
    for second in range(117, 130):
        assert hearing.marks(at(second, channel(received="b.000001:300", applied="b.000001:200"))) == []
    assert times(hearing.marks(at(131, channel(received="b.000001:300")))) == [121 * S]
    # It stopped, and what came meanwhile is not known.
    stops: list[dict[str, Any]] = [{"receives": False}, {"applies": False}]
    for stopped in stops:
        assert hearing.marks(at(140, channel(received="b.000001:300", **stopped))) == []
        assert hearing.marks(at(141, channel(received="b.000001:300"))) == []


def test_a_replica_that_commits_in_another_order_is_as_far_as_it_has_applied_all() -> None:
    hearing = Hearing()
    hearing.read([record(ONE, 50 * S, offset=300)])
    assert max(times(hearing.marks(at(60, channel(received="b.000001:200", applied="b.000001:100"))))) == 50 * S - 1
    behind = channel(received="b.000001:200", applied="b.000001:100", ordered=False)
    assert hearing.marks(at(61, behind)) == []
    assert times(hearing.marks(at(62, channel(received="b.000001:200", ordered=False)))) == [50 * S - 1]


def test_of_several_channels_the_last_one_counts() -> None:
    hearing = Hearing()
    hearing.read([record(ONE, 95 * S)])
    one, two = channel("one"), channel("two", TWO)
    assert hearing.marks(at(100, one, two)) == []
    hearing.read([record(TWO, 97 * S)])
    assert times(hearing.marks(at(101, replace(one, received="b.000001:500"), two))) == [95 * S - 1]
    hearing.read([record(ONE, 120 * S)])
    assert times(hearing.marks(at(121, one, two))) == [110 * S] or times(hearing.marks(at(121, one, two))) == [111 * S]
    assert hearing.marks(at(122, one, two, channel("three", "44444444-4444-4444-4444-444444444444"))) == []


def test_who_may_not_ask_knows_nothing() -> None:
    assert Hearing().marks(at(100, blind=True)) == []


def test_a_position_has_the_newest_mark_that_it_has_passed(tmp_path: Path) -> None:
    marks = Marks(Database(tmp_path))

    def place(offset: int, file: str = "binlog.000009", server: str = OWN) -> Position:
        return Position(GtidSet({}), server, BinlogEnd(file, offset))

    def mark(offset: int, second: int, file: str = "binlog.000009") -> Mark:
        return Mark(OWN, BinlogEnd(file, offset), second * S)

    marks.add([mark(100, 10), mark(200, 20), mark(4, 30, "binlog.000010")], OWN, 30 * S)
    assert [marks.at(place(n)) for n in (99, 100, 199, 200, 9999)] == [None, 10 * S, 10 * S, 20 * S, 20 * S]
    assert marks.at(place(4, "binlog.000010")) == 30 * S
    assert marks.at(place(4, "binlog.000100")) == 30 * S
    assert marks.at(place(9999, server=ONE)) is None
    assert marks.at(place(9999, "other.000100")) is None
    # The source's clock went back: what was said of times that come again does not hold.
    marks.add([mark(5, 15, "binlog.000010")], OWN, 15 * S)
    assert marks.at(place(9999, "binlog.000010")) == 15 * S


def test_old_marks_are_few(tmp_path: Path) -> None:
    marks, now = Marks(Database(tmp_path)), 100 * 86_400
    for start in range(0, 40 * 86_400, 3600):
        marks.add(
            [Mark(OWN, BinlogEnd("b.000001", start + n), (now - 40 * 86_400 + start + n) * S) for n in (1, 2)],
            OWN,
            now * S,
        )
    marks.thin(now * S)
    with Database(tmp_path).read() as db:
        ages = [now - at_us // S for (at_us,) in db.execute("SELECT at_us FROM marks")]
    assert max(ages) <= 30 * 86_400
    assert 700 < len(ages) < 770
    end = Position(GtidSet({}), OWN, BinlogEnd("b.000001", 1 << 40))
    assert marks.at(end) == (now - 3600 + 2) * S or marks.at(end) == (now - 3600 + 1) * S
