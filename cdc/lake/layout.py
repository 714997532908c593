"""How a lake table holds its rows, beside the source's columns: mode, partitions, change feed. Values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdc.config import Mode


@dataclass(frozen=True)
class Layout:
    """What the pipeline file says of a table and a commit repeats. It does not change in the life of a table."""

    mode: Mode = "upsert"
    partition_by: tuple[str, ...] = ()
    """As the pipeline file writes them: columns, or `month(c)` and its like."""
    change_feed: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Layout:
        """From a table's options in the log, or what `to_dict` gave. Without a mode it is `upsert`."""
        return cls(
            options.get("mode", "upsert"),
            tuple(options.get("partition_by", ())),
            bool(options.get("change_feed", False)),
        )

    def to_dict(self) -> dict[str, Any]:
        """For `commitInfo`; what is as usual is not said."""
        found: dict[str, Any] = {"mode": self.mode}
        if self.partition_by:
            found["partition_by"] = list(self.partition_by)
        if self.change_feed:
            found["change_feed"] = True
        return found


PLAIN = Layout()
"""As a table is if nothing is said of it."""
