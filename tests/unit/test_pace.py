"""What is left is told better with every part that is read; the speed is that of lately."""

from __future__ import annotations

from snapshot.chunks import Part
from snapshot.pace import OVER_S, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def pace(*estimates: int) -> tuple[Pace, Clock]:
    clock = Clock()
    found = Pace(clock)
    found.plan((Part(n, rows=rows), 0, False) for n, rows in enumerate(estimates))
    return found, clock


def test_an_estimate_that_is_off_is_corrected_by_what_parts_have() -> None:
    found, _ = pace(100, 100, 100)
    assert found.left == 300
    found.took(0, 50)
    assert (found.read, found.left) == (50, 250)
    found.done(0)
    assert found.left == 100, "half of what was thought, everywhere"
    found.took(1, 200)
    assert found.left == 50
    found.done(1)
    assert found.left == 125


def test_the_speed_is_that_of_lately() -> None:
    found, clock = pace(1000)
    assert found.to_dict() == {"rows_per_second": None, "seconds_left": None}
    for _ in range(10):
        clock.now += 1
        found.took(0, 10)
    assert found.rows_per_second == 10
    assert found.seconds_left == 90
    for _ in range(int(OVER_S) + 2):
        clock.now += 1
        found.took(0, 20)
    assert found.rows_per_second == 20
    assert found.to_dict()["rows_per_second"] == 20


def test_rows_that_are_read_again_count_once() -> None:
    found, _ = pace(100)
    found.took(0, 30)
    found.again(0, 30)
    assert (found.read, found.left) == (0, 100)


def test_it_goes_on_with_what_was_read_before() -> None:
    found = Pace(Clock())
    found.plan([(Part(0, rows=100), 50, True), (Part(1, rows=100), 10, False)])
    assert (found.read, found.left) == (60, 40)


def test_a_part_that_is_cut_has_two_estimates() -> None:
    found, _ = pace(100)
    found.took(0, 20)
    found.cut(Part(0, rows=30), Part(1, rows=60))
    assert (found.left_of(0), found.left_of(1), found.left) == (30, 60, 90)


def test_nothing_is_left_of_what_is_not_known() -> None:
    found, _ = pace(0)
    found.took(0, 5)
    assert (found.read, found.left) == (5, 0)
