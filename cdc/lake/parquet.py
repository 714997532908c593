"""Data files: Parquet, measured from what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataFile:
    """A durable data file that no commit names yet. `rows` and `stats` (Delta's, JSON) are read back from the file's footer.

    A file without rows is not written: `name` is empty.
    """

    name: str
    size: int
    rows: int
    stats: str

    def to_dict(self) -> dict[str, Any]:
        """For progress records."""
        return {"name": self.name, "size": self.size, "rows": self.rows, "stats": self.stats}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataFile:
        """The file that `to_dict` was asked of."""
        return cls(data["name"], data["size"], data["rows"], data["stats"])
