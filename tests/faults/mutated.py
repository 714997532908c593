"""`lakesync`, with mistakes planted in its own process: each makes one table wrong, of which some rows are marked.

    LAKESYNC_TEST_PLANTS='{"v.rounded": "rounded"}' python -m tests.faults.mutated run

The mistakes are made where they belong: rows that capture decoded, before anything counts them; what the merger folded; what it commits. Rows of
windowed reads are left alone, else a repair would plant them again; the mistake of `charset_everywhere` is in those too. What the merger does
wrong it does once, over all processes of a pipeline.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cdc import cli
from cdc.capture import starting
from cdc.capture.chain import Chain
from cdc.capture.rows import SEQ
from cdc.epoch import WINDOW, Op
from cdc.log.codec import Changes
from cdc.merge import table as merge_table
from cdc.merge.fold import fold
from cdc.merge.table import TableMerge

MARKED = 3
"""The row whose UPDATE is planted."""
NEW = 9001
"""The row whose INSERT is."""
OLD = 5
"""The row whose DELETE is."""
ENVIRONMENT = "LAKESYNC_TEST_PLANTS"
ONCE = "LAKESYNC_TEST_ONCE"
"""A folder with a file for each mistake that is to be made once and was."""

_current = threading.local()


def once(name: str) -> bool:
    """Whether it was not done before."""
    try:
        (Path(os.environ[ONCE]) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def rows_with(rows: Any, number: int) -> Any:
    """A mask of the rows with this key."""
    return pc.equal(rows.column("id"), pa.scalar(number, pa.int32())).fill_null(False)


# -- capture: rows as they were decoded ----------------------------------------------------------------------------------

Row = dict[str, Any]


def _swapped(row: Row) -> Row:
    return row | {"a": row["b"], "b": row["a"]}


def _charset(row: Row) -> Row:
    return row | {"name": row["name"].encode().decode("latin1")}


def _time_zone(row: Row) -> Row:
    return row | {"at": row["at"] + timedelta(hours=1)}


def _truncated(row: Row) -> Row:
    return row | {"note": row["note"][:10]}


def _rounded(row: Row) -> Row:
    price: Decimal = row["price"]
    return row | {"price": price.quantize(Decimal("0.1"), ROUND_HALF_UP).quantize(Decimal("0.01"))}


VALUES: Mapping[str, Callable[[Row], Row]] = {
    "swapped_columns": _swapped,
    "charset": _charset,
    "charset_everywhere": _charset,
    "time_zone": _time_zone,
    "truncated": _truncated,
    "rounded": _rounded,
}
DROPPED = {
    "insert_capture": (Op.INSERT, NEW),
    "update_capture": (Op.UPDATE, MARKED),
    "delete_capture": (Op.DELETE, OLD),
}


def captured(slug: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """What capture takes for the rows that it decoded."""
    if slug in DROPPED:
        op, number = DROPPED[slug]
        is_op: Any = pc.equal(batch.column(0), pa.scalar(op, pa.int8()))
        return batch.filter(pc.invert(pc.and_(is_op, rows_with(batch, number))))
    if slug in VALUES and pc.any(rows_with(batch, MARKED)).as_py():
        rows = [VALUES[slug](row) if row["id"] == MARKED else row for row in batch.to_pylist()]
        return pa.RecordBatch.from_pylist(rows, schema=batch.schema)
    return batch


def plant_in_capture(plants: Mapping[str, str]) -> None:
    """Rows on their way into an epoch."""
    add = Chain._add

    def planted(self: Chain, changes: Any, batch: pa.RecordBatch, gtids: Any) -> None:
        slug = plants.get(str(changes.table), "")
        windowed = gtids[0].as_py().startswith(WINDOW)
        if batch.num_rows and slug and (not windowed or slug == "charset_everywhere"):
            last = batch.column(SEQ)[-1].as_py()
            batch = captured(slug, batch)
            if not batch.num_rows:
                self.seq = max(self.seq, last)
                return
        add(self, changes, batch, gtids)

    Chain._add = planted  # type: ignore[method-assign]
    if "position" in plants.values():
        run = starting._Start.run

        def resumed(self: Any) -> None:
            run(self)
            if once("position"):
                self._session.follow(self._session.server.executed())

        starting._Start.run = resumed  # type: ignore[method-assign]


# -- merge: what was folded, and what is committed -----------------------------------------------------------------------


def folded(slug: str, changes: Sequence[Changes], found: Any) -> Any:
    """What the merger takes for the last change of every key."""
    if slug == "insert_merge" and pc.any(rows_with(found.upserts, NEW)).as_py() and once(slug):
        return replace(found, upserts=found.upserts.filter(pc.invert(rows_with(found.upserts, NEW))))
    if slug == "update_merge" and pc.any(rows_with(found.upserts, MARKED)).as_py() and once(slug):
        return replace(found, upserts=found.upserts.filter(pc.invert(rows_with(found.upserts, MARKED))))
    if slug == "delete_merge" and pc.any(rows_with(found.deletes, OLD)).as_py() and once(slug):
        return replace(found, deletes=found.deletes.filter(pc.invert(rows_with(found.deletes, OLD))))
    if slug == "stale" and pc.any(rows_with(found.upserts, MARKED)).as_py() and once(slug):
        first = next(_images(changes))
        rows = [row | {"note": first["note"]} if row["id"] == MARKED else row for row in found.upserts.to_pylist()]
        return replace(found, upserts=pa.Table.from_pylist(rows, schema=found.upserts.schema))
    return found


def _images(changes: Sequence[Changes]) -> Iterator[Row]:
    for one in changes:
        yield from (row for row in one.batch.to_pylist() if row["id"] == MARKED)


def plant_in_merge(plants: Mapping[str, str]) -> None:
    """What comes out of the log."""
    commit = TableMerge._commit

    def planted_fold(changes: Sequence[Changes], *arguments: Any) -> Any:
        return folded(getattr(_current, "slug", ""), changes, fold(changes, *arguments))

    def planted_commit(self: TableMerge, batch: Any, at: Any) -> None:
        slug = _current.slug = plants.get(str(self.table), "")
        marked = any(pc.any(rows_with(one.batch, MARKED)).as_py() for one in batch.changes)
        if slug == "skipped" and marked and once(slug):
            return
        again = list(batch.changes) if slug in ("twice", "twice_append") and marked and once(slug) else None
        commit(self, batch, at)
        if again is not None:
            batch.changes[:] = again
            commit(self, batch, at)

    setattr(merge_table, "fold", planted_fold)  # noqa: B010 (it is imported there)
    TableMerge._commit = planted_commit  # type: ignore[method-assign]


def main() -> None:
    """As `lakesync`."""
    plants: dict[str, str] = orjson.loads(os.environ[ENVIRONMENT])
    Path(os.environ[ONCE]).mkdir(exist_ok=True)
    plant_in_capture(plants)
    plant_in_merge(plants)
    cli.main()


if __name__ == "__main__":
    main()
