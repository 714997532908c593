"""Rows that no source can have, as others' writes leave them: further ones of a key that is there already, and those with a NULL in the
key. Which of them have to go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc.errors import LakeError
from cdc.lake import unique
from cdc.lake.columns import SEQ
from cdc.lake.points import Places
from cdc.lake.reading import ROW
from cdc.lake.snapshot import Snapshot
from cdc.lake.steps import numbered

MOST = 1_000_000
"""Rows of keys that are there more than once; a table with more of them is read anew in less time than it is mended."""

Rows = Callable[[], Iterable[tuple[str, pa.Table]]]
"""Of every row that counts the key's columns, `_cdc_seq` and `row`, by the path of its file; called once for each time they are read."""


@dataclass(frozen=True)
class Surplus:
    """`keys`: the key's columns of those that are there more than once, each once, and `copies` how often (int64); `nulls`: rows with a
    NULL in the key; `places`: the rows to go, of each key all but the newest by `_cdc_seq`, of equally new ones the first written."""

    keys: pa.Table
    copies: pa.Array[Any]
    nulls: int
    places: Places


def find(snapshot: Snapshot, key: tuple[str, ...], rows: Rows, count: int) -> Surplus:
    """What there is of it among `count` rows. Raises `LakeError` for more of it than can be mended."""
    names = list(key)
    hashes = unique.suspected(lambda: (_whole(r, names).select(names) for _, r in rows()), count)
    kept, nulls = [], []
    found = 0
    for path, piece in rows():
        whole = _whole(piece, names)
        if whole.num_rows < piece.num_rows:
            nulls.append(Places.in_file(path, _without(piece, names).column(ROW.name).to_numpy()))
        twice = whole.filter(pa.array(np.isin(unique.hashes(whole.select(names)), hashes)))
        if twice.num_rows:
            found += twice.num_rows
            kept.append((path, twice))
        if found > MOST:
            raise LakeError(
                f"holds keys more than once, in more than {MOST:,} rows",
                where=str(snapshot.folder),
                hint="resync the table",
            )
    lost = sum(len(places) for places in nulls)
    if not kept:
        empty: Any = pa.array([], pa.int64())
        nothing = next((r.select(names).slice(0, 0) for _, r in rows()), None)
        return Surplus(nothing if nothing is not None else pa.table({}), empty, lost, Places.nowhere().plus(*nulls))
    together = pa.concat_tables([r for _, r in kept])
    paths = [path for path, _ in kept]
    file = np.repeat(np.arange(len(kept)), [r.num_rows for _, r in kept])
    row = np.asarray(together.column(ROW.name).to_numpy(), np.int64)
    code, _ = numbered([together.column(name) for name in names])
    written = np.array([snapshot.files[path].modified_ms for path in paths])[file]
    told: Any = together.column(SEQ)
    seq = told.fill_null(-1).to_numpy()
    order = np.lexsort((row, file, written, -seq, code))
    first = np.concatenate([[True], code[order][1:] != code[order][:-1]])
    copies = np.bincount(code)
    surplus = order[~first]
    survivors = order[first]
    several = copies[code[survivors]] > 1
    places = Places(paths, file, row).take(surplus).plus(*nulls)
    keys = together.select(names).take(pa.array(survivors[several]))
    return Surplus(keys, pa.array(copies[code[survivors]][several]), lost, places)


def _whole(rows: pa.Table, names: list[str]) -> pa.Table:
    """Those without a NULL in the key."""
    return rows.filter(_has_key(rows, names)) if any(rows.column(n).null_count for n in names) else rows


def _without(rows: pa.Table, names: list[str]) -> pa.Table:
    return rows.filter(pc.invert(_has_key(rows, names)))


def _has_key(rows: pa.Table, names: list[str]) -> Any:
    has: Any = pc.is_valid(rows.column(names[0]))
    for name in names[1:]:
        has = pc.and_(has, pc.is_valid(rows.column(name)))
    return has
