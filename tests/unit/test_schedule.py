"""Schedules: what parses, and which moment comes next."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from cdc.schedule import Schedule, local_zone

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("text", ["every 5m", "every  1.5h", "0 3 * * *", "*/7  8-18 * * 1-5", "0 0 29 2 *"])
def test_parses(text: str) -> None:
    assert str(Schedule.parse(text)) == " ".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5m",
        "every 5",
        "every 0s",
        "every 10ms",
        "every 4000d",
        "every 99999999999999d",
        "@daily",
        "0 3 * *",
        "0 3 * * * *",
        "60 * * * *",
        "0 0 30 2 *",
        "x * * * *",
    ],
)
def test_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match=r"write |nothing|no such day"):
        Schedule.parse(text)


def test_every_so_often_counts_from_the_last_time() -> None:
    base = datetime(2026, 3, 29, 0, 59, tzinfo=UTC)
    assert Schedule.parse("every 5m").after(base) == datetime(2026, 3, 29, 1, 4, tzinfo=UTC)


def test_cron_is_of_the_zone_that_is_named() -> None:
    base = datetime(2026, 7, 1, 0, 30, tzinfo=UTC)  # 2:30 in Berlin
    assert Schedule.parse("0 3 * * *").after(base, BERLIN) == datetime(2026, 7, 1, 1, 0, tzinfo=UTC)
    assert Schedule.parse("0 3 * * *").after(base, UTC) == datetime(2026, 7, 1, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (
            datetime(2026, 3, 28, 12, tzinfo=UTC),
            [datetime(2026, 3, 29, 1, 0, tzinfo=UTC), datetime(2026, 3, 30, 0, 30, tzinfo=UTC)],
        ),
        (
            datetime(2026, 10, 24, 12, tzinfo=UTC),
            [datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC)],
        ),
    ],
    ids=["the hour that is skipped", "the hour that comes twice"],
)
def test_summer_time_loses_and_doubles_no_day(day: datetime, expected: list[datetime]) -> None:
    found = []
    for _ in expected:
        day = Schedule.parse("30 2 * * *").after(day, BERLIN).astimezone(UTC)
        found.append(day)
    assert found == expected


def test_the_local_zone_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    assert Schedule.parse("0 3 * * *").after(datetime(2026, 7, 1, tzinfo=UTC)) == datetime(2026, 7, 1, 7, 0, tzinfo=UTC)
    monkeypatch.setenv("TZ", "No/Where")
    assert datetime.now(local_zone()).utcoffset() is not None
