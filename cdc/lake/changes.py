"""What a merge hands to the lake, and what comes of it. Plain values: `cdc.merge` and the lake both import them from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from cdc.epoch import Counts

TRUNCATED = "truncate"
"""`_cdc_op` of the row of an `append` table that says that a shard was truncated."""


@dataclass(frozen=True)
class FoldCounts:
    """What became of the changes of a merge: logged = superseded + duplicate + effective.

    One global ID is one change: an update that changes the key is effective if at least one of its halves decides its key.
    """

    logged: Counts
    """Row changes read from the log, by operation."""
    superseded: int = 0
    """A later change of the same merge has the same key."""
    duplicate: int = 0
    """The table has the change already, or it was read twice."""
    effective: int = 0
    """Decide what the table will hold. With `key_changes`: the number of keys looked up, upserts and deletes."""
    key_changes: int = 0
    """Updates that change the key and of which both halves are effective."""


@dataclass(frozen=True)
class Folded:
    """The last change of every key.

    `upserts` has the source's columns in lake types, then `_cdc_ts_ms` and `_cdc_seq` (int64), and `_cdc_unfit` if a row has a value
    that does not fit; `deletes` the key columns only, in the key's order. At most one row a key in each, no key in both.
    `truncated`: values of the key's first column of which all rows go that are in neither.
    """

    upserts: pa.Table
    deletes: pa.Table
    counts: FoldCounts
    truncated: pa.Array[Any] | None = None


@dataclass(frozen=True)
class MergeCounts:
    """What a merge says of itself, for `commitInfo`."""

    fold: FoldCounts
    first_epoch: int
    """Number of the first epoch in it; the last one is the commit's own."""
    epochs: int = 1
    """How many of its epochs touch the table."""


class Effects(NamedTuple):
    """What a merge did: effective changes, each found by looking its key up in the table, and truncations."""

    inserted: int = 0
    """The key was not there, and is."""
    replaced: int = 0
    """The key was there, with another row."""
    removed: int = 0
    """The key was there, and is not."""
    absent: int = 0
    """A deletion of a key that was not there."""
    truncated: int = 0
    """No changes' effect, but what the TRUNCATE of a shard took: rows whose key no later change has. Likewise rows that were too many, of
    a key that others had written twice (a commit of kind `mend`). In an `append` table, which loses
    none and gets a row for each TRUNCATE, so many less than 0."""

    @property
    def of_changes(self) -> int:
        """Those of row changes."""
        return self.inserted + self.replaced + self.removed + self.absent

    @property
    def growth(self) -> int:
        """By how much the number of rows grew."""
        return self.inserted - self.removed - self.truncated
