"""Many changes to the last one per key. Pure: the same rows for any permutation and duplication of the changes.

Terms of the ledger, in *changes* (one global ID is one change; the two halves of a key change are one):

    logged = superseded + duplicate + effective

A change is a `duplicate` if it is before the position `exclude`, or of a window that is `dropped`, or another change has its global ID;
`effective` if it decides what becomes of a key, and a key change does if either half does; `superseded` otherwise. A key change of which
both halves decide has two effects, so in effects (inserted, replaced, removed, absent): effective + key_changes = rows of `upserts` +
rows of `deletes`.

A change that nothing completes (`cdc.merge.completing`) is not among those that are folded. It counts as `superseded`: by the reading of its key
that is asked for in its place.

A row of a windowed read is a change like another: it has its place behind all that the stream had given before. The TRUNCATE of a
shard is none: it supersedes the shard's changes before it, and what the table has of the shard goes too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cdc.epoch import Op, WindowId
from cdc.lake import FoldCounts, Folded
from cdc.lake.changes import TRUNCATED
from cdc.log.codec import Changes
from cdc.merge.gather import changes_in, each_once, gather, is_op, key_places, lake_rows, with_rank
from cdc.position import Position
from cdc.schema import TableSchema

OPERATIONS = ("insert", "update", "delete", "", "read", TRUNCATED)
"""`_cdc_op` of an `append` table, by `Op`: it has no MOVE_OUT."""


class Appended(NamedTuple):
    """Every change once, in commit order: the lake's columns of an `append` table, `_cdc_unfit` only if a row needs it."""

    rows: pa.Table
    counts: FoldCounts


def fold(
    changes: Sequence[Changes],
    schema: TableSchema,
    exclude: Position | None = None,
    dropped: Collection[WindowId] = (),
) -> Folded:
    """The last change of every key, less what is before `exclude` (of the transaction in part its first row events) and the rows of the
    windows `dropped`. Rows of other windows have no place in `exclude`, they stay.

    `upserts` has the lake's columns (the source's, `_cdc_ts_ms`, `_cdc_seq`, and `_cdc_unfit` if a row needs it), `deletes` the key's columns in the key's order; no key is
    twice in either, none in both. `truncated` are the truncated shards: values of the key's first column. Keys are compared by their Arrow value, bytes and all. Raises `LakeError` for a NULL in a key's
    column or a table without a key, `LogDamagedError` for rows of another schema and for half a key change.
    """
    rows, logged = gather(changes, schema, exclude, dropped)
    places = key_places(rows, schema)
    rows, distinct = each_once(rows)
    ranked, truncated = _truncated(with_rank(rows), places[0])
    last = ranked.group_by(places, use_threads=False).aggregate([("rank", "max")]).column("rank_max")
    winners = rows if len(last) == rows.num_rows else rows.take(last.take(pc.sort_indices(last)))
    gone = pc.or_(is_op(winners, Op.DELETE), is_op(winners, Op.MOVE_OUT))
    effective = changes_in(winners)
    counts = FoldCounts(
        logged=logged,
        superseded=distinct - effective,
        duplicate=logged.changes - distinct,
        effective=effective,
        key_changes=winners.num_rows - effective,
    )
    upserts, deletes = winners.filter(pc.invert(gone)), winners.filter(gone)
    return Folded(
        upserts=lake_rows(upserts, schema),
        deletes=pa.table(
            [deletes.column(place) for place in places], schema=pa.schema([schema.arrow.field(n) for n in schema.key])
        ),
        counts=counts,
        truncated=truncated,
    )


def sequence(
    changes: Sequence[Changes],
    schema: TableSchema,
    exclude: Position | None = None,
    dropped: Collection[WindowId] = (),
) -> Appended:
    """Every change once, less what is before `exclude` and the rows of the windows `dropped`, in commit order, for an `append` table.

    A change is one row: of an update the row after it, also where it changed the key; so is a truncation. Columns: the source's,
    `_cdc_ts_ms`, `_cdc_seq`, `_cdc_op` (insert, update, delete, read, truncate), `_cdc_gid`, and `_cdc_unfit` if a row needs it. Raises `LogDamagedError` for rows of another schema.
    """
    rows, logged = gather(changes, schema, exclude, dropped)
    rows, distinct = each_once(rows.filter(pc.invert(is_op(rows, Op.MOVE_OUT))))
    names = pa.array([g for one in changes for g in one.gtids], pa.string())
    parts: list[Any] = [rows.column(c).cast(pa.string()).combine_chunks() for c in ("event", "row")]
    transaction: Any = names.take(rows.column("name").combine_chunks())
    gid = pc.binary_join_element_wise(pc.binary_join_element_wise(transaction, parts[0], "/"), parts[1], ".")
    op = pa.array(OPERATIONS, pa.string()).take(rows.column("op").combine_chunks())
    table = lake_rows(rows, schema, {"_cdc_op": op, "_cdc_gid": gid})
    return Appended(
        table,
        FoldCounts(logged=logged, superseded=0, duplicate=logged.changes - distinct, effective=distinct, key_changes=0),
    )


def _truncated(rows: pa.Table, shard: str) -> tuple[pa.Table, pa.Array[Any] | None]:
    """Sorted, ranked rows without truncations and without what the last one of its shard supersedes; the truncated shards."""
    truncations = rows.filter(is_op(rows, Op.TRUNCATE))
    if not truncations.num_rows:
        return rows, None
    last = truncations.group_by([shard], use_threads=False).aggregate([("rank", "max")]).combine_chunks()
    values: Any = last.column(shard).combine_chunks()
    places: Any = pc.index_in(rows.column(shard), value_set=values)
    by_value: Any = last.column("rank_max").combine_chunks().take(places.combine_chunks())
    kept = pc.greater(rows.column("rank"), by_value.fill_null(-1))
    return rows.filter(kept), values
