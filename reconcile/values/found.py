"""What a comparison of values found. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cdc.names import TableName
from cdc.reads import Key


@dataclass(frozen=True)
class Difference:
    """One key. `kind`: missing or extra in the lake, there more than once, or different in these columns.

    Where values were asked for: `before` is the lake's row, `after` the source's, canonical texts by column; of rows that are on both sides
    only the columns that differ. None: there is no such row, or it was not asked for.
    """

    key: str
    kind: str
    columns: tuple[str, ...] = ()
    before: Mapping[str, str | None] | None = None
    after: Mapping[str, str | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report: values only where they were asked for."""
        data: dict[str, Any] = {"key": self.key, "kind": self.kind, "columns": list(self.columns)}
        if self.before is not None or self.after is not None:
            data |= {"before": self.before and dict(self.before), "after": self.after and dict(self.after)}
        return data


@dataclass(frozen=True)
class UnlikeRange:
    """A range of keys in which too many rows differ to name them: of this table of the source (one shard of many, or the table itself), with
    keys from `low` to `high`, both included, None for no bound."""

    table: TableName
    low: Key | None = None
    high: Key | None = None


@dataclass(frozen=True)
class TableValues:
    """One table's comparison at `epoch`. `settled` keys had to be read again since they changed meanwhile.

    `different` is how many keys differ, at least so many where `complete` is false: then there were so many that the comparison stopped
    naming them, and `unlike_ranges` says where they are.
    """

    table: str
    epoch: int
    source_rows: int
    lake_rows: int
    settled: int
    unsettled: int
    different: int
    differences: tuple[Difference, ...]
    note: str = ""
    checked_rows: int = 0
    """Rows of the source that a checksum covers or that were read."""
    chunks: int = 0
    chunks_unlike: int = 0
    rows_in_full: int = 0
    """Rows of the source that were read as text, every column of them."""
    version: int = -1
    """The lake's version that the last part was compared with."""
    position: str = ""
    """The source's position, as of the lake version that the last part was compared with."""
    sampled: float | None = None
    """The share of the key ranges that was compared; None: all of them."""
    columns: tuple[str, ...] = ()
    """Those that were compared besides the key; none: all."""
    range: str = ""
    """Which rows were compared, in words; empty: all."""
    complete: bool = True
    seconds: float = 0.0
    found: pa.Table | None = field(default=None, compare=False, repr=False)
    """The keys that differ: the key's columns in the lake's types, each key once. Not in JSON."""
    unlike_ranges: tuple[UnlikeRange, ...] = field(default=(), repr=False)
    """Not in JSON."""

    @property
    def equal(self) -> bool:
        return not self.different and not self.unsettled and self.complete

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        left_out = ("found", "unlike_ranges", "differences")
        data = {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in left_out}
        data["columns"] = list(self.columns)
        return data | {"differences": [d.to_dict() for d in self.differences], "equal": self.equal}


@dataclass(frozen=True)
class ValuesReport:
    """All tables. `epoch` is the oldest epoch at which one of them was compared."""

    tables: tuple[TableValues, ...]

    @property
    def epoch(self) -> int:
        return min((t.epoch for t in self.tables if not t.note), default=0)

    @property
    def equal(self) -> bool:
        return all(t.equal for t in self.tables)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return {"epoch": self.epoch, "equal": self.equal, "tables": [t.to_dict() for t in self.tables]}
