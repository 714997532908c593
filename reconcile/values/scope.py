"""What of the tables is compared: all of them, or some columns, a range of keys, the rows of a time, a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from cdc.reads import Key


@dataclass(frozen=True)
class Scope:
    """A part of what there is. What is not restricted is compared whole.

    `columns`: only these, and the key always. `low` and `high`: keys, both included, as the server orders them. `between`: a column of
    dates or times, from (included), to (excluded), in the canonical form of its type, in UTC: the rows that have such a value on either
    side. `sample`: a share of the key ranges, more than 0 and at most 1; which ones, `turn` says, so that 1 / sample turns see all of them.
    """

    columns: tuple[str, ...] = ()
    low: Key | None = None
    high: Key | None = None
    between: tuple[str, str, str] | None = None
    sample: float | None = None
    turn: int = 0

    @property
    def whole(self) -> bool:
        """Whether it is everything."""
        return self == Scope(turn=self.turn)

    def to_dict(self) -> dict[str, Any]:
        """For records of runs: only what is restricted. Keys are row values: it is for nothing that leaves this machine."""
        data: dict[str, Any] = {}
        if self.columns:
            data["columns"] = list(self.columns)
        if self.low is not None:
            data["low"] = list(self.low)
        if self.high is not None:
            data["high"] = list(self.high)
        if self.between is not None:
            data["between"] = list(self.between)
        if self.sample is not None:
            data |= {"sample": self.sample, "turn": self.turn}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scope:
        """What `to_dict` gave."""
        between = data.get("between")
        return cls(
            tuple(data.get("columns", ())),
            None if data.get("low") is None else tuple(data["low"]),
            None if data.get("high") is None else tuple(data["high"]),
            None if between is None else (between[0], between[1], between[2]),
            data.get("sample"),
            data.get("turn", 0),
        )


WHOLE = Scope()
"""Everything."""


class Checkpoint(Protocol):
    """Where a comparison keeps how far it is, so that another process can go on."""

    def load(self, table: str) -> dict[str, Any] | None:
        """What was saved last of a table, None where nothing was."""
        ...

    def save(self, table: str, progress: dict[str, Any]) -> None:
        """Keep this of a table, durably; JSON can hold it. It has keys of rows, and no other values."""
        ...
