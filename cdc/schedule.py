"""When something is to be done again: every so often, or by the fields of cron."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from cdc.units import parse_duration

EVERY = "every "
SHORTEST_S = 1.0
LONGEST_S = 3653 * 86_400.0
_HINT = "write `every 5m`, or the five fields of cron: `0 3 * * *` is every day at 3:00"


@dataclass(frozen=True)
class Schedule:
    """As the pipeline file writes it: `every 5m`, or cron's five fields (minute, hour, day, month, weekday)."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Raises `ValueError` for what is neither, and for a time that never comes."""
        text = " ".join(text.split())
        if text.startswith(EVERY):
            pause_s = parse_duration(text.removeprefix(EVERY))
            if pause_s < SHORTEST_S:
                raise ValueError("oftener than every second: write `every 5m`, or the like")
            if pause_s > LONGEST_S:
                raise ValueError("that is more than ten years: write `every 5m`, or the like")
            return cls(text)
        if len(text.split(" ")) != 5:
            raise ValueError(_HINT)
        try:
            next(CronSim(text, datetime(2024, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            raise ValueError(f"{str(error).lower()}: {_HINT}") from None
        except StopIteration:
            raise ValueError("there is no such day") from None
        return cls(text)

    def after(self, moment: datetime, zone: tzinfo | None = None) -> datetime:
        """The first time after `moment` (with a zone). Cron's fields are of `zone`, by default this machine's: of an hour that summer time
        skips a fixed time comes after it, one that it repeats comes once."""
        if self.text.startswith(EVERY):
            return moment + timedelta(seconds=parse_duration(self.text.removeprefix(EVERY)))
        return next(CronSim(self.text, moment.astimezone(zone or local_zone())))

    def __str__(self) -> str:
        return self.text


def local_zone() -> tzinfo:
    """This machine's, with its rules of summer time where they can be found: a fixed offset would be wrong half of the year."""
    name = os.environ.get("TZ", "").removeprefix(":")
    file = Path(name or "/etc/localtime")
    try:
        if name and not name.startswith("/"):
            return ZoneInfo(name)
        with file.open("rb") as opened:
            return ZoneInfo.from_file(opened)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return datetime.now(UTC).astimezone().tzinfo or UTC


def _schedule(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        raise ValueError(_HINT)
    return Schedule.parse(value)


ScheduleText = Annotated[
    Schedule,
    BeforeValidator(_schedule),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "description": "`every 5m`, or cron's five fields: `0 3 * * *`"}),
]
"""A `Schedule` in the pipeline file."""
