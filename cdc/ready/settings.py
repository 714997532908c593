"""`ready:` of a table in the pipeline file: who is told that a partition of time is complete."""

from __future__ import annotations

import re
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from cdc import partitioning
from cdc.proving import CommandConfig, WebhookConfig
from cdc.units import Duration, Model


class ReadyConfig(Model):
    """`ready:`"""

    delay: Duration = 0.0
    """How long after its end, by the source's commit times, a partition is complete: for changes that are committed late."""
    file: bool = True
    """Write `_SUCCESS` into the partition's folder."""
    webhook: WebhookConfig | None = None
    """A URL that it is posted to."""
    command: CommandConfig | None = None
    """A program that is started, with it on standard input."""
    period: str | None = None
    """Which of `partition_by:` tells when a partition ends: `day(created_at)`, or a column of type date. Default: the only one."""
    timezone: str = "UTC"
    """Of a DATETIME or DATE column: where its days begin. A TIMESTAMP's partitions are of UTC."""
    again: Duration = 60.0
    """Rows that come late are told of this long after the first of them, together."""
    since: str | None = Field(default=None, alias="from")
    """`2026-01-01`: partitions that had ended before the table was added, too, from this day on."""

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no such time zone is known here; write one like Europe/Berlin, or UTC") from None
        return name

    @field_validator("since", mode="before")
    @classmethod
    def _check_since(cls, value: Any) -> Any:
        text = value.isoformat() if isinstance(value, date) else value  # YAML has dates
        if text is None:
            return None
        if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError("write a day, 2026-01-01")
        try:
            date.fromisoformat(text)
        except ValueError:
            raise ValueError(f"there is no day {text}") from None
        return text

    @field_validator("period")
    @classmethod
    def _check_period(cls, text: str | None) -> str | None:
        try:
            return None if text is None else str(partitioning.parse(text))
        except ValueError as error:
            raise ValueError(str(error).replace("partition_by:", "period:")) from None

    @model_validator(mode="after")
    def _check_told(self) -> ReadyConfig:
        if not self.file and self.webhook is None and self.command is None:
            raise ValueError("nobody would be told: `file: true`, `webhook:` or `command:`")
        return self
