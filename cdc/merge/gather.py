"""All changes of a merge as one table: each once, in commit order, less what the lake has already. Pure: the same for any permutation and
duplication of the changes. What becomes of them, `cdc.merge.fold` and `cdc.merge.keeping` say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc import unfit
from cdc.epoch import WINDOW, Counts, Op, WindowId
from cdc.errors import LakeError, LogDamagedError
from cdc.log.codec import Changes
from cdc.position import Gtid, Position
from cdc.schema import TableSchema

UNFIT = "unfit"
"""The column of what does not fit, in what `gather` gives."""
_NO_EVENT = 2**32
_GID = ["gtid", "event", "row"]
"""Columns that name a change."""
_ORDER = ["ts_ms", "order", "event", "row", "gtid"]
"""Columns that order the changes: commit time, then place in commit order, MOVE_OUT before its UPDATE; the rest only makes the
order total where a log that was replaced gave one `seq` twice."""


def gather(
    changes: Sequence[Changes], schema: TableSchema, exclude: Position | None, dropped: Collection[WindowId]
) -> tuple[pa.Table, Counts]:
    """All changes that are not before `exclude` and of no `dropped` window as one table, in the order given, and the count of all.

    Columns by place, since a source's column may have any name: `op`, `gtid` (a number, the same for the same transaction), `name` (index
    into all `gtids` in a row), `at` (the row's place among all that were given), `event`, `row`, `ts_ms`, `order`, then `c0`, `c1` … the
    source's, and `unfit` if a record has it.
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
        plain = plain.append(pa.field(UNFIT, unfit.TYPE))
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
    order = pc.add(pc.multiply(rows.column("seq"), 2), pc.cast(pc.invert(is_op(rows, Op.MOVE_OUT)), pa.int64()))
    rows = (
        rows.drop_columns(["txn", "seq"])
        .append_column("gtid", gtids.indices.take(name))
        .append_column("name", name)
        .append_column("at", pa.arange(0, rows.num_rows))  # type: ignore[attr-defined]
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


def key_places(rows: pa.Table, schema: TableSchema) -> list[str]:
    """The key's columns in what `gather` gave, in the key's order. Raises `LakeError` for a NULL in one, or a table without a key."""
    if not schema.key:
        raise LakeError("a table without a key cannot be folded", hint="write `mode: append` for the table")
    places = [f"c{schema.names.index(name)}" for name in schema.key]
    # Of a truncation only the key's first column is known.
    whole = rows.filter(pc.invert(is_op(rows, Op.TRUNCATE))) if count_op(rows, Op.TRUNCATE) else rows
    of_place = zip(schema.key, places, (rows, *(whole for _ in places[1:])), strict=True)
    if nulls := [name for name, place, found in of_place if found.column(place).null_count]:
        raise LakeError(
            f"NULL in the key's column {nulls[0]}",
            hint="is the table's key a primary key? Then the log is damaged: `lakesync resync` the table",
        )
    return places


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
    return Counts(*(count_op(rows, op) for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.READ)))


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


def each_once(rows: pa.Table) -> tuple[pa.Table, int]:
    """Sorted rows without those that repeat an earlier one's global ID (and half), and how many changes they are, truncations not
    counted."""
    if not _gids_rise(rows):
        halves = rows.append_column("half", is_op(rows, Op.MOVE_OUT))
        first = with_rank(halves).group_by([*_GID, "half"], use_threads=False).aggregate([("rank", "min")])
        if first.num_rows < rows.num_rows:
            keep = first.column("rank_min")
            rows = rows.take(keep.take(pc.sort_indices(keep)))
    moves = count_op(rows, Op.MOVE_OUT)
    if moves and changes_in(rows) != rows.num_rows - moves:
        raise LogDamagedError(
            "a key change has its row before and not its row after", hint="`lakesync resync` the table"
        )
    return rows, rows.num_rows - moves - count_op(rows, Op.TRUNCATE)


def _gids_rise(rows: pa.Table) -> bool:
    """Whether global IDs ascend strictly, so that none is there twice: the usual case, seen without hashing."""
    gtid, event, row, order = (rows.column(c).combine_chunks() for c in (*_GID, "order"))
    later = pc.greater(order[1:], order[:-1])
    for column in (row, event, gtid):
        greater, equal = pc.greater(column[1:], column[:-1]), pc.equal(column[1:], column[:-1])
        later = pc.or_(greater, pc.and_(equal, later))
    return bool(pc.all(later).as_py())


def changes_in(rows: pa.Table) -> int:
    """The number of global IDs of rows of which none repeats another's, its half included."""
    if not pc.any(is_op(rows, Op.MOVE_OUT)).as_py():
        return rows.num_rows
    return rows.select(_GID).group_by(_GID, use_threads=False).aggregate([]).num_rows


def is_op(rows: pa.Table, op: int) -> Any:
    """Which rows are of this operation."""
    return pc.equal(rows.column("op"), pa.scalar(op, pa.int8()))


def count_op(rows: pa.Table, op: int) -> int:
    """How many are."""
    return pc.sum(is_op(rows, op)).as_py() or 0


def with_rank(rows: pa.Table) -> pa.Table:
    """With a column `rank`: the row's number."""
    return rows.append_column("rank", pa.arange(0, rows.num_rows))  # type: ignore[attr-defined]


def lake_rows(rows: pa.Table, schema: TableSchema, more: Mapping[str, Any] | None = None) -> pa.Table:
    """The lake's columns: the source's, lakesync's two, `more`, and what does not fit if a row needs that."""
    columns: dict[str, Any] = {
        "_cdc_ts_ms": rows.column("ts_ms"),
        "_cdc_seq": pc.shift_right(rows.column("order"), 1),
        **(more or {}),
    }
    if UNFIT in rows.column_names and unfit.needed(found := rows.column(UNFIT)):
        columns[unfit.NAME] = found
    fields = [*schema.arrow, *(pa.field(name, column.type) for name, column in columns.items())]
    source = [rows.column(f"c{i}") for i in range(len(schema.columns))]
    return pa.table([*source, *columns.values()], schema=pa.schema(fields))
