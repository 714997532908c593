"""What the log says of a job: which of its segments are done, whichever of its windows came in, in whatever order, and how often it ended."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cdc.epoch import CommitRecord, WindowEntry, WindowId
from cdc.position import BinlogEnd, GtidSet, Position
from snapshot import segments
from snapshot.segments import LEFT, Segment

JOB = "job"
TABLE = "s.t"
HERE = Position(GtidSet({}), "u", BinlogEnd("binlog.000001", 4))


def record(number: int, *windows: WindowEntry) -> CommitRecord:
    given: dict[str, Any] = dict.fromkeys(("ts_ms", "raw_us", "seq", "transactions", "written_us"), 0)
    return CommitRecord(
        "log", number, None, HERE, HERE, framing={}, framing_totals={}, checkpoint=1, windows={TABLE: windows}, **given
    )


def window(number: int, segment: Segment | None, still: list[Segment], run: int = 0, gone: int = 0) -> WindowEntry:
    progress = segments.progress(run, segment, still, gone)
    return WindowEntry(WindowId(JOB, number), TABLE, 5 + gone, 4 + gone, progress)


def cut(first: int, end: int | None) -> Segment:
    return Segment((first,), None if end is None else (end,))


def test_a_segment_survives_json() -> None:
    for segment in (Segment(), cut(1, 2), Segment((b"\xff", "ä", 7), None, True), Segment(keys=(0, 1000)), LEFT):
        assert Segment.from_json(segment.to_json()) == segment


def test_nothing_is_known_of_a_job_without_windows() -> None:
    found = segments.find([record(1)], TABLE, JOB, 3)
    assert (found.open, found.number, found.run, found.last) == (None, 0, 3, None)


def test_windows_of_an_earlier_run_are_of_no_account_but_their_numbers_are_taken() -> None:
    records = [record(1, window(7, cut(0, 1), [cut(1, None)])), record(2, window(8, cut(1, 2), [cut(2, None)]))]
    found = segments.find(records, TABLE, JOB, 1)
    assert (found.open, found.number, found.run, found.rows_read) == (None, 8, 1, 0)


def test_a_later_run_than_is_known_is_found() -> None:
    found = segments.find([record(1, window(3, cut(0, 1), [cut(1, None)], run=2))], TABLE, JOB, 0)
    assert (found.run, found.open) == (2, [cut(1, None)])


def test_rows_are_counted_once() -> None:
    records = [record(1, window(1, cut(0, 1), [cut(1, None)], gone=2), window(2, cut(1, 2), [cut(0, 1), cut(2, None)]))]
    found = segments.find(records, TABLE, JOB, 0, counted=[1])
    assert (found.rows_read, found.rows_emitted, found.rows_gone) == (5, 4, 0)
    assert found.open == [cut(2, None)]
    found = segments.find(records, TABLE, JOB)
    assert (found.rows_read, found.rows_emitted, found.rows_gone) == (10, 10, 2)


@given(st.data())
def test_what_is_left_is_what_no_window_in_the_log_completes(data: st.DataObject) -> None:
    """Windows are delivered in the order of their numbers; any of them may be lost, and is then read again by a later one."""
    todo: list[Segment] = [cut(0, None)]
    flights: dict[int, Segment] = {}
    done: set[Segment] = set()
    records: list[CommitRecord] = []
    entries: dict[int, WindowEntry] = {}
    number = 0
    for _ in range(data.draw(st.integers(1, 30))):
        what = data.draw(st.sampled_from(["deliver", "land", "lose"]))
        if what == "deliver" and todo and len(flights) < 4:
            first, *todo = todo
            assert first.after is not None
            begin, end = first.after[0], first.to[0] if first.to is not None else None
            assert isinstance(begin, int)
            last = isinstance(end, int) and end == begin + 1
            read = first if last else cut(begin, begin + 1)
            if not last:
                assert end is None or isinstance(end, int)
                todo.insert(0, cut(begin + 1, end))
            number += 1
            entries[number] = window(number, read, [*flights.values(), *todo])
            flights[number] = read
        elif what in ("land", "lose") and flights:
            chosen = data.draw(st.sampled_from(sorted(flights)))
            read = flights.pop(chosen)
            if what == "land":
                done.add(read)
                records.append(record(len(records) + 1, entries[chosen]))
            else:
                todo.insert(0, read)
    found = segments.find(records, TABLE, JOB)
    if not records:
        assert found.open is None
        return
    assert found.open is not None
    left = _points(found.open, number + 2)
    assert not done & left, "read twice"
    assert {cut(n, n + 1) for n in range(number + 2)} <= done | left, "not read at all"


def _points(found: list[Segment], most: int) -> set[Segment]:
    """Single steps that these segments hold."""
    points = set()
    for segment in found:
        assert segment.after is not None
        begin, end = segment.after[0], segment.to[0] if segment.to is not None else most
        assert isinstance(begin, int)
        assert isinstance(end, int)
        points |= {cut(n, n + 1) for n in range(begin, end)}
    return points
