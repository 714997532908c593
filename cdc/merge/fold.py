"""Many changes to the last one per key. Pure: the same rows for any permutation and duplication of the changes.

Terms of the ledger, in *changes* (one global ID is one change; the two halves of a key change are one):

    logged = superseded + duplicate + effective

A change is a `duplicate` if it is before the position `exclude`, or of a window that is `dropped`, or another change has its global ID;
`effective` if it decides what becomes of a key, and a key change does if either half does; `superseded` otherwise. A key change of which
both halves decide has two effects, so in effects (inserted, replaced, removed, absent): effective + key_changes = rows of `upserts` +
rows of `deletes`.

A row of a windowed read is a change like another: it has its place behind all that the stream had given before. The TRUNCATE of a
shard is none: it supersedes the shard's changes before it, and what the table has of the shard goes too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cdc import unfit
from cdc.epoch import WINDOW, Counts, Op, WindowId
from cdc.errors import LakeError, LogDamagedError
from cdc.lake import FoldCounts, Folded
from cdc.lake.changes import TRUNCATED
from cdc.log.codec import Changes
from cdc.position import Gtid, Position
from cdc.schema import TableSchema

OPERATIONS = ("insert", "update", "delete", "", "read", TRUNCATED)
"""`_cdc_op` of an `append` table, by `Op`: it has no MOVE_OUT."""

_UNFIT = "unfit"
_NO_EVENT = 2**32
_GID = ["gtid", "event", "row"]
"""Columns that name a change."""
_ORDER = ["ts_ms", "order", "event", "row", "gtid"]
"""Columns that order the changes: commit time, then place in commit order, MOVE_OUT before its UPDATE; the rest only makes the
order total where a log that was replaced gave one `seq` twice."""


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
    if not schema.key:
        raise LakeError("a table without a key cannot be folded", hint="write `mode: append` for the table")
    rows, logged = _gather(changes, schema, exclude, dropped)
    places = [f"c{schema.names.index(name)}" for name in schema.key]
    # Of a truncation only the key's first column is known.
    whole = rows.filter(pc.invert(_is(rows, Op.TRUNCATE))) if _count(rows, Op.TRUNCATE) else rows
    of_place = zip(schema.key, places, (rows, *(whole for _ in places[1:])), strict=True)
    if nulls := [name for name, place, found in of_place if found.column(place).null_count]:
        raise LakeError(
            f"NULL in the key's column {nulls[0]}",
            hint="is the table's key a primary key? Then the log is damaged: `lakesync resync` the table",
        )
    rows, distinct = _distinct(rows)
    ranked, truncated = _truncated(_ranked(rows), places[0])
    last = ranked.group_by(places, use_threads=False).aggregate([("rank", "max")]).column("rank_max")
    winners = rows if len(last) == rows.num_rows else rows.take(last.take(pc.sort_indices(last)))
    gone = pc.or_(_is(winners, Op.DELETE), _is(winners, Op.MOVE_OUT))
    effective = _changes(winners)
    counts = FoldCounts(
        logged=logged,
        superseded=distinct - effective,
        duplicate=logged.changes - distinct,
        effective=effective,
        key_changes=winners.num_rows - effective,
    )
    upserts, deletes = winners.filter(pc.invert(gone)), winners.filter(gone)
    return Folded(
        upserts=_lake_rows(upserts, schema),
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
    rows, logged = _gather(changes, schema, exclude, dropped)
    rows, distinct = _distinct(rows.filter(pc.invert(_is(rows, Op.MOVE_OUT))))
    names = pa.array([g for one in changes for g in one.gtids], pa.string())
    parts: list[Any] = [rows.column(c).cast(pa.string()).combine_chunks() for c in ("event", "row")]
    transaction: Any = names.take(rows.column("name").combine_chunks())
    gid = pc.binary_join_element_wise(pc.binary_join_element_wise(transaction, parts[0], "/"), parts[1], ".")
    op = pa.array(OPERATIONS, pa.string()).take(rows.column("op").combine_chunks())
    table = _lake_rows(rows, schema, {"_cdc_op": op, "_cdc_gid": gid})
    return Appended(
        table,
        FoldCounts(logged=logged, superseded=0, duplicate=logged.changes - distinct, effective=distinct, key_changes=0),
    )


def _gather(
    changes: Sequence[Changes], schema: TableSchema, exclude: Position | None, dropped: Collection[WindowId]
) -> tuple[pa.Table, Counts]:
    """All changes that are not before `exclude` and of no `dropped` window as one table, in the order given, and the count of all.

    Columns by place, since a source's column may have any name: `op`, `gtid` (a number, the same for the same transaction), `name` (index
    into all `gtids` in a row), `event`, `row`, `ts_ms`, `order`, then `c0`, `c1` … the source's, and `unfit` if a record has it.
    """
    for one in changes:
        if one.schema_hash != schema.hash or one.types != schema.arrow.types:
            raise LogDamagedError(
                f"rows under schema {one.schema_hash}, the table has {schema.hash}",
                hint="`lakesync resync` the table",
            )
    names = ["op", "txn", "event", "row", "ts_ms", "seq", *(f"c{i}" for i in range(len(schema.columns)))]
    types = [pa.int8(), pa.int32(), pa.int32(), pa.int32(), pa.int64(), pa.int64(), *schema.arrow.types]
    plain = pa.schema(list(zip(names, types, strict=True)))
    batches = [one.batch.columns for one in changes]
    if any(one.unfit is not None for one in changes):
        plain = plain.append(pa.field(_UNFIT, unfit.TYPE))
        batches = [
            columns if one.unfit is not None else [*columns, pa.nulls(one.batch.num_rows, unfit.TYPE)]
            for one, columns in zip(changes, batches, strict=True)
        ]
    rows = pa.Table.from_batches([pa.RecordBatch.from_arrays(columns, schema=plain) for columns in batches], plain)
    logged = _logged(rows)
    starts = [0, *accumulate(len(one.gtids) for one in changes)]
    name: Any = pa.chunked_array(
        [pc.add(one.batch.column(1).cast(pa.int64()), start) for one, start in zip(changes, starts, strict=False)],
        pa.int64(),
    ).combine_chunks()
    gtids = pa.array([g for one in changes for g in one.gtids], pa.string()).dictionary_encode()
    order = pc.add(pc.multiply(rows.column("seq"), 2), pc.cast(pc.invert(_is(rows, Op.MOVE_OUT)), pa.int64()))
    rows = (
        rows.drop_columns(["txn", "seq"])
        .append_column("gtid", gtids.indices.take(name))
        .append_column("name", name)
        .append_column("order", order)
    )
    if exclude:
        rows = _after(rows, gtids.dictionary, exclude)
    for window in dropped:
        of_job = pc.equal(rows.column("gtid"), pc.index(gtids.dictionary, window.gtid).cast(pa.int32()))
        rows = rows.filter(
            pc.invert(pc.and_(of_job, pc.equal(rows.column("event"), pa.scalar(window.number, pa.int32()))))
        )
    return _sorted(rows, gtids.dictionary), logged


def _after(rows: pa.Table, gtids: pa.Array[Any], position: Position) -> pa.Table:
    """The rows that are not before the position. A windowed read has no place in it."""
    names = [str(gtid) for gtid in gtids.to_pylist()]
    firsts = [0 if n.startswith(WINDOW) else position.first_event(Gtid.parse(n)) for n in names]
    if not any(first is None or first > 0 for first in firsts):
        return rows
    # All of a transaction is before the position: no row event has so high a number.
    first: Any = pa.array([_NO_EVENT if first is None else first for first in firsts], pa.int64())
    return rows.filter(pc.greater_equal(rows.column("event"), first.take(rows.column("gtid").combine_chunks())))


def _logged(rows: pa.Table) -> Counts:
    return Counts(*(_count(rows, op) for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.READ)))


def _truncated(rows: pa.Table, shard: str) -> tuple[pa.Table, pa.Array[Any] | None]:
    """Sorted, ranked rows without truncations and without what the last one of its shard supersedes; the truncated shards."""
    truncations = rows.filter(_is(rows, Op.TRUNCATE))
    if not truncations.num_rows:
        return rows, None
    last = truncations.group_by([shard], use_threads=False).aggregate([("rank", "max")]).combine_chunks()
    values: Any = last.column(shard).combine_chunks()
    places: Any = pc.index_in(rows.column(shard), value_set=values)
    by_value: Any = last.column("rank_max").combine_chunks().take(places.combine_chunks())
    kept = pc.greater(rows.column("rank"), by_value.fill_null(-1))
    return rows.filter(kept), values


def _sorted(rows: pa.Table, gtids: pa.Array[Any]) -> pa.Table:
    """In `_ORDER`. A log's own order is that already, which is quickly seen."""
    if rows.num_rows < 2:
        return rows
    ts_ms, order = (rows.column(c).combine_chunks() for c in ("ts_ms", "order"))
    rises = pc.and_(
        pc.greater_equal(ts_ms[1:], ts_ms[:-1]),
        pc.greater(order[1:], order[:-1]),
    )
    if pc.all(rises).as_py():
        return rows
    # The number of a transaction depends on the order given; its rank by name does not.
    rank = pc.rank(gtids, tiebreaker="first").cast(pa.int32())
    rows = rows.set_column(rows.column_names.index("gtid"), "gtid", rank.take(rows.column("gtid").combine_chunks()))
    return rows.sort_by([(name, "ascending") for name in _ORDER])


def _distinct(rows: pa.Table) -> tuple[pa.Table, int]:
    """Sorted rows without those that repeat an earlier one's global ID (and half), and how many changes they are, truncations not
    counted."""
    if not _gids_rise(rows):
        halves = rows.append_column("half", _is(rows, Op.MOVE_OUT))
        first = _ranked(halves).group_by([*_GID, "half"], use_threads=False).aggregate([("rank", "min")])
        if first.num_rows < rows.num_rows:
            keep = first.column("rank_min")
            rows = rows.take(keep.take(pc.sort_indices(keep)))
    moves = _count(rows, Op.MOVE_OUT)
    if moves and _changes(rows) != rows.num_rows - moves:
        raise LogDamagedError(
            "a key change has its row before and not its row after", hint="`lakesync resync` the table"
        )
    return rows, rows.num_rows - moves - _count(rows, Op.TRUNCATE)


def _gids_rise(rows: pa.Table) -> bool:
    """Whether global IDs ascend strictly, so that none is there twice: the usual case, seen without hashing."""
    gtid, event, row, order = (rows.column(c).combine_chunks() for c in (*_GID, "order"))
    later = pc.greater(order[1:], order[:-1])
    for column in (row, event, gtid):
        greater, equal = pc.greater(column[1:], column[:-1]), pc.equal(column[1:], column[:-1])
        later = pc.or_(greater, pc.and_(equal, later))
    return bool(pc.all(later).as_py())


def _changes(rows: pa.Table) -> int:
    """The number of global IDs of rows of which none repeats another's, its half included."""
    if not pc.any(_is(rows, Op.MOVE_OUT)).as_py():
        return rows.num_rows
    return rows.select(_GID).group_by(_GID, use_threads=False).aggregate([]).num_rows


def _is(rows: pa.Table, op: int) -> Any:
    return pc.equal(rows.column("op"), pa.scalar(op, pa.int8()))


def _count(rows: pa.Table, op: int) -> int:
    return pc.sum(_is(rows, op)).as_py() or 0


def _ranked(rows: pa.Table) -> pa.Table:
    return rows.append_column("rank", pa.arange(0, rows.num_rows))  # type: ignore[attr-defined]


def _lake_rows(rows: pa.Table, schema: TableSchema, more: Mapping[str, Any] | None = None) -> pa.Table:
    """The lake's columns: the source's, lakesync's two, `more`, and what does not fit if a row needs that."""
    columns: dict[str, Any] = {
        "_cdc_ts_ms": rows.column("ts_ms"),
        "_cdc_seq": pc.shift_right(rows.column("order"), 1),
        **(more or {}),
    }
    if _UNFIT in rows.column_names and unfit.needed(found := rows.column(_UNFIT)):
        columns[unfit.NAME] = found
    fields = [*schema.arrow, *(pa.field(name, column.type) for name, column in columns.items())]
    source = [rows.column(f"c{i}") for i in range(len(schema.columns))]
    return pa.table([*source, *columns.values()], schema=pa.schema(fields))
