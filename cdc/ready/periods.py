"""Partitions of time: which one a moment is in, which one follows, when one ends. Pure.

A partition is named as its column has it: `2026`, `2026-03`, `2026-03-31`, `2026-03-31-14` (`cdc.partitioning`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from cdc.partitioning import Unit, parse, parse_all

_FORMS: dict[Unit, str] = {
    "year": r"\d{4}",
    "month": r"\d{4}-\d\d",
    "day": r"\d{4}-\d\d-\d\d",
    "hour": r"\d{4}-\d\d-\d\d-\d\d",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_YEAR = 9998


@dataclass(frozen=True)
class Periods:
    """The partitions of one column, `column`, whose values count in the zone `zone`."""

    column: str
    """The partition column's name: `created_at_day`."""
    unit: Unit
    zone: ZoneInfo
    source: str
    """The column of the table that it is made of."""
    place: int = 0
    """Where among the table's partition columns it stands."""

    def of(self, at_us: int) -> str:
        """The partition that a moment (µs since 1970) is in."""
        return self._named((_EPOCH + timedelta(microseconds=at_us)).astimezone(self.zone))

    def after(self, period: str) -> str:
        """The one that follows."""
        return self._named(self._next(period))

    def end_us(self, period: str) -> int:
        """When it ends, µs since 1970: for the last time, where a clock that is put back shows some of it twice; where one that is put forward
        never shows its end, when it is put forward."""
        wall = self._next(period)
        first, last = sorted(_us(wall.replace(tzinfo=self.zone, fold=fold)) for fold in (0, 1))
        # A time that is shown twice may be the beginning of what comes twice: then this one is over the first time.
        shown = (_EPOCH + timedelta(microseconds=last)).astimezone(self.zone).replace(tzinfo=None) == wall
        return first if shown and self.of(last - 1) != period else last

    def is_one(self, text: str | None) -> bool:
        """Whether a partition's value is one of these. That of NULL is not, nor a year that no calendar has."""
        try:
            return bool(text and re.fullmatch(_FORMS[self.unit], text) and self._next(text))
        except ValueError:
            return False

    def _next(self, period: str) -> datetime:
        """The wall clock at its end."""
        year, month, day, hour = ([int(p) for p in period.split("-")] + [1, 1, 0][len(period.split("-")) - 1 :])[:4]
        begin = datetime(year, month, day, hour)  # noqa: DTZ001 - of no zone: what the column's values are
        if year > _LAST_YEAR:
            raise ValueError(f"no such time: {period}")
        if self.unit == "year":
            return begin.replace(year=year + 1)
        if self.unit == "month":
            return begin.replace(year=year + month // 12, month=month % 12 + 1)
        return begin + (timedelta(days=1) if self.unit == "day" else timedelta(hours=1))

    def _named(self, wall: datetime) -> str:
        length: Literal[4, 7, 10, 13] = {"year": 4, "month": 7, "day": 10, "hour": 13}[self.unit]  # type: ignore[assignment]
        return wall.strftime("%Y-%m-%d-%H").rjust(13, "0")[:length]


def _us(at: datetime) -> int:
    since = at.astimezone(UTC) - _EPOCH
    return since.days * 86_400_000_000 + since.seconds * 1_000_000


def chosen(partition_by: tuple[str, ...], period: str | None) -> int:
    """Which of a table's partition columns is the one of time: the one that is named, the only one with a unit, or the only one.

    Raises `ValueError`.
    """
    terms = parse_all(partition_by)
    if not terms:
        raise ValueError("ready: is for a table with `partition_by:`, a partition of time")
    if period is not None:
        named = parse(period)
        if named not in terms:
            raise ValueError(f"ready.period: {named} is none of `partition_by:` ({', '.join(map(str, terms))})")
        return terms.index(named)
    found = [i for i, term in enumerate(terms) if term.unit is not None] or list(range(len(terms)))
    if len(found) > 1:
        raise ValueError(f"ready: write `period:`, which of {', '.join(map(str, terms))} tells when a partition ends")
    return found[0]
