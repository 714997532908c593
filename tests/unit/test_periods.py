"""Partitions of time: where they end, whatever the clocks of a place do."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from cdc.errors import ConfigError
from cdc.partitioning import Unit
from cdc.ready.periods import Periods, chosen


def periods(unit: Unit, zone: str = "UTC") -> Periods:
    return Periods("c", unit, ZoneInfo(zone), "c")


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1_000_000)


@pytest.mark.parametrize(
    ("unit", "period", "following", "end"),
    [
        ("year", "2026", "2027", "2027-01-01T00:00+00:00"),
        ("month", "2026-12", "2027-01", "2027-01-01T00:00+00:00"),
        ("month", "2026-03", "2026-04", "2026-04-01T00:00+00:00"),
        ("day", "2028-02-28", "2028-02-29", "2028-02-29T00:00+00:00"),
        ("day", "2026-12-31", "2027-01-01", "2027-01-01T00:00+00:00"),
        ("hour", "2026-12-31-23", "2027-01-01-00", "2027-01-01T00:00+00:00"),
    ],
)
def test_what_follows_and_when(unit: Unit, period: str, following: str, end: str) -> None:
    found = periods(unit)
    assert (found.after(period), found.end_us(period)) == (following, us(end))
    assert found.of(us(end)) == following
    assert found.of(us(end) - 1) == period
    assert found.is_one(period)


@pytest.mark.parametrize(
    ("zone", "unit", "period", "end"),
    [
        ("Europe/Berlin", "day", "2026-03-31", "2026-03-31T22:00+00:00"),
        ("America/New_York", "day", "2026-01-01", "2026-01-02T05:00+00:00"),
        # Put back at 3: two o'clock is there twice, and the hour of it is over the second time.
        ("Europe/Berlin", "hour", "2026-10-25-02", "2026-10-25T02:00+00:00"),
        # Put forward at 2: there is no hour of two o'clock, and that of one is over when the clock is put forward.
        ("Europe/Berlin", "hour", "2026-03-29-01", "2026-03-29T01:00+00:00"),
        ("Europe/Berlin", "hour", "2026-10-25-01", "2026-10-25T00:00+00:00"),
        # Midnight is there twice, and then the next day has begun; or an hour before it, or a minute behind it.
        ("America/Havana", "day", "2026-10-31", "2026-11-01T04:00+00:00"),
        ("Asia/Beirut", "day", "2026-10-24", "2026-10-24T22:00+00:00"),
        ("America/St_Johns", "day", "2010-11-06", "2010-11-07T03:30+00:00"),
    ],
)
def test_a_day_ends_where_the_clocks_say_so(zone: str, unit: Unit, period: str, end: str) -> None:
    assert datetime.fromtimestamp(periods(unit, zone).end_us(period) / 1e6, UTC) == datetime.fromisoformat(end)


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia", "America/St_Johns"]
)
@pytest.mark.parametrize("unit", ["hour", "day"])
def test_no_moment_of_a_partition_lies_behind_its_end(zone: str, unit: Unit) -> None:
    found = periods(unit, zone)
    minutes = 15 * 60 * 1_000_000
    year = {"Pacific/Apia": 2011, "America/St_Johns": 2010}.get(zone, 2026)
    at = us(f"{year}-01-01T00:00+00:00")
    for moment in range(at, at + 366 * 96 * minutes, minutes):
        assert moment < found.end_us(found.of(moment))


@pytest.mark.parametrize(
    "text", [None, "", "2026-3", "2026-13", "9999", "0000", "2026-02-30", "__HIVE_DEFAULT_PARTITION__"]
)
@pytest.mark.parametrize("unit", ["year", "month", "day", "hour"])
def test_what_is_no_partition_of_time(unit: Unit, text: str | None) -> None:
    assert not periods(unit).is_one(text)


def test_which_column_tells_the_time() -> None:
    assert chosen(("day(c)",), None) == 0
    assert chosen(("country", "day(c)"), None) == 1
    assert chosen(("d",), None) == 0
    assert chosen(("day(a)", "day(b)"), "DAY( b )") == 1
    for partition_by, period, what in (
        ((), None, "partition_by"),
        (("a", "b"), None, "write `period:`"),
        (("day(a)", "day(b)"), None, "write `period:`"),
        (("day(a)",), "month(a)", "none of"),
    ):
        with pytest.raises(ValueError, match=what):
            chosen(partition_by, period)


def test_settings_that_make_no_sense() -> None:
    from cdc.config import entry

    def given(**ready: object) -> object:
        return entry({"name": "a.b", "partition_by": ["day(c)"], "ready": ready}).ready

    assert given(**{"from": "2026-01-01", "delay": "10m"})
    for wrong, what in (
        ({"file": False}, "nobody would be told"),
        ({"timezone": "Mars/Olympus"}, "time zone"),
        ({"from": "2026-02-30"}, "no day"),
        ({"from": "yesterday"}, "write a day"),
        ({"period": "week(c)"}, "there is no week"),
        ({"webhook": "http://example.com/x"}, "plain text"),
        ({"command": "rm -rf"}, "write a list"),
        ({"delay": "10"}, "a number and a unit"),
    ):
        with pytest.raises(ConfigError, match=what):
            given(**wrong)
