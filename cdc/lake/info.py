"""What a commit says of itself: `commitInfo`, for people's DESCRIBE HISTORY, and in it `lakesync`, for the ledger. Pure.

`lakesync` names the epoch and position that the table contains, how many changes were folded into it and what they did (`counts`),
and the same sums since the bootstrap (`totals`), so that commits that are cleaned up lose detail and never the balance. For both
holds: bootstrapped + inserted - removed - truncated = rows_added - rows_deleted = live_after - live_before, where the totals'
`live_before` is 0 and a bootstrap's own counts also delete what it replaces. `logged` are inserts, updates, deletes and, where there
are some, rows of windowed reads. `foreign` is how many rows others brought (negative: took) since the
commit before.

A table that keeps what was there counts its physical rows too, and loses none: `removed` and `truncated` are 0. In mode `history`
`inserted` is a version that began, whether or not it ended another one; `replaced` one that ended without another; `absent` an end of
what was not there, or a row read again that is there as it is. In mode `soft-delete` a row that is marked, or comes back, is `replaced`
(`softdelete`, `history`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cdc.epoch import Counts
from cdc.lake.changes import Effects, MergeCounts
from cdc.lake.layout import Layout
from cdc.lake.parquet import DataFile
from cdc.lake.snapshot import AddFile, Applied
from cdc.names import TableName
from cdc.schema import TableSchema

VERSION = 1
"""Of `commitInfo.lakesync`."""
ENGINE = "lakesync"
Kind = Literal["bootstrap", "create", "merge", "adopt", "rejoin", "optimize", "restate", "mend"]
"""`rejoin`: a table that keeps what was there, or every change, is followed again, from another epoch on. `optimize` moves rows and changes
none; `restate` says the position again; `mend` takes surplus rows out. They go on from what was said before, as a merge does."""
FOLLOWING: frozenset[Kind] = frozenset({"merge", "optimize", "restate", "mend"})

_SUMS = (
    "superseded",
    "duplicate",
    "effective",
    "key_changes",
    "bootstrapped",
    *Effects._fields,
    "rows_added",
    "rows_deleted",
    "files_added",
    "files_removed",
    "bytes_added",
    "foreign",
)


NO_EFFECTS = Effects()


@dataclass(frozen=True)
class Change:
    """A commit to be made. `updated`: files that lose rows by a new deletion vector, as they were and as they are from then on;
    `rows_deleted`: rows that were live in the removed files, and those of the new vectors that were; `live_before`: rows of the version it
    is made on."""

    kind: Kind
    layout: Layout
    schema: TableSchema
    applied: Applied
    added: Sequence[DataFile] = ()
    removed: Sequence[AddFile] = ()
    updated: Sequence[tuple[AddFile, AddFile]] = ()
    rows_deleted: int = 0
    live_before: int = 0
    effects: Effects = NO_EFFECTS
    merged: MergeCounts | None = None
    """Of a merge."""
    logged: Counts | None = None
    """Of a bootstrap: what the log counts up to `applied`."""
    data_change: bool = True
    """Whether rows change, and not only where they are."""


def commit_info(
    pipeline: str, table: TableName, change: Change, before: Mapping[str, Any] | None, now_us: int
) -> dict[str, Any]:
    """The action. `before` is `lakesync` of the version that a merge is made on."""
    counts = _counts(change, before)
    merged = change.merged
    return {
        "timestamp": now_us // 1000,
        "operation": _operation(change),
        "operationParameters": {},
        "isBlindAppend": change.kind == "merge" and change.layout.mode == "append" and not change.removed,
        "operationMetrics": _metrics(change, counts),
        "engineInfo": ENGINE,
        "lakesync": {
            "v": VERSION,
            "pipeline": pipeline,
            "table": table.id,
            "kind": change.kind,
            **change.layout.to_dict(),
            **change.applied.to_dict(),
            "first_epoch": merged.first_epoch if merged else change.applied.epoch.number,
            "epochs": merged.epochs if merged else 0,
            "schema": change.schema.hash,
            "schema_full": change.schema.to_dict(),
            "counts": counts,
            "totals": _totals(change, counts, before),
            "committed_us": now_us,
        },
    }


def _counts(change: Change, before: Mapping[str, Any] | None) -> dict[str, Any]:
    # A table that goes on as it is begins with the rows that it has, as if they were put in place of themselves.
    kept = change.live_before if change.kind == "rejoin" else 0
    rows_added, rows_deleted = sum(file.rows for file in change.added) + kept, change.rows_deleted + kept
    fold = change.merged.fold if change.merged else None
    return {
        "logged": (fold.logged if fold else Counts()).to_list(),
        "superseded": fold.superseded if fold else 0,
        "duplicate": fold.duplicate if fold else 0,
        "effective": fold.effective if fold else 0,
        "key_changes": fold.key_changes if fold else 0,
        "bootstrapped": 0 if change.kind in FOLLOWING else rows_added,
        **change.effects._asdict(),
        "rows_added": rows_added,
        "rows_deleted": rows_deleted,
        "live_before": change.live_before,
        "live_after": change.live_before + rows_added - rows_deleted,
        "files_added": len(change.added) + len(change.updated),
        "files_removed": len(change.removed) + len(change.updated),
        "bytes_added": sum(file.size for file in change.added),
        "foreign": change.live_before - before["totals"]["live_after"] if before else 0,
    }


def _totals(change: Change, counts: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    if change.kind not in FOLLOWING or before is None:
        start = {name: counts[name] for name in _SUMS} | {"rows_deleted": 0, "files_removed": 0, "foreign": 0}
        logged = (change.logged or Counts()).to_list()
        return {"logged": logged, **start, "live_before": 0, "live_after": counts["live_after"]}
    totals = before["totals"]
    return {
        "logged": Counts(*totals["logged"]).plus(Counts(*counts["logged"])).to_list(),
        **{name: totals.get(name, 0) + counts[name] for name in _SUMS},
        "live_before": 0,
        "live_after": counts["live_after"],
    }


def _operation(change: Change) -> str:
    names = {
        "create": "CREATE TABLE",
        "adopt": "ADOPT",
        "rejoin": "REJOIN",
        "optimize": "OPTIMIZE",
        "restate": "RESTATE",
        "mend": "DELETE",
    }
    if change.kind in names:
        return names[change.kind]
    return "MERGE" if change.kind == "merge" and change.layout.mode != "append" else "WRITE"


def _metrics(change: Change, counts: Mapping[str, Any]) -> dict[str, str]:
    """As Delta's own writers name them."""
    effects = change.effects
    metrics = {
        "numOutputRows": counts["rows_added"],
        "numOutputBytes": counts["bytes_added"],
        "numFiles": len(change.added),
    }
    if change.kind == "merge":
        before = sum(old.deletion_vector is not None for old, _ in change.updated)
        metrics |= {
            "numTargetFilesAdded": len(change.added),
            "numTargetFilesRemoved": len(change.removed),
            "numTargetDeletionVectorsAdded": len(change.updated) - before,
            "numTargetDeletionVectorsUpdated": before,
            "numTargetDeletionVectorsRemoved": sum(file.deletion_vector is not None for file in change.removed),
            "numSourceRows": effects.of_changes,
            "numTargetRowsInserted": effects.inserted,
            "numTargetRowsUpdated": effects.replaced,
            "numTargetRowsDeleted": effects.removed + max(0, effects.truncated),
            "numTargetRowsCopied": max(
                0, counts["rows_added"] - effects.inserted - effects.replaced + min(0, effects.truncated)
            ),
        }
    elif change.kind == "mend":
        metrics |= {"numDeletedRows": change.rows_deleted}
    elif change.kind != "optimize":
        metrics |= {"numTargetFilesAdded": len(change.added), "numTargetFilesRemoved": len(change.removed)}
    else:
        metrics |= {
            "numAddedFiles": len(change.added),
            "numRemovedFiles": len(change.removed),
            "numAddedBytes": counts["bytes_added"],
            "numRemovedBytes": sum(file.size for file in change.removed),
        }
    return {name: str(number) for name, number in metrics.items()}
