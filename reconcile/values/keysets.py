"""Sets of keys: Arrow tables of the key's columns, in the lake's types, each key once. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc.lake.keys import KeyIndex

DIGEST = "_digest"
"""The column beside keys that has a row's digest."""
DIGEST_TYPE = pa.binary(16)


def distinct(rows: pa.Table, key: list[str]) -> pa.Table:
    """The keys of these rows."""
    return rows.select(key).group_by(key).aggregate([]).select(key)


class Among:
    """Says of keys whether they are in one set. Keys are compared by their bytes."""

    def __init__(self, keys: pa.Table) -> None:
        self._names = keys.column_names
        self._index = KeyIndex(keys, "") if keys.num_rows else None

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        if self._index is None or not rows.num_rows:
            return np.zeros(rows.num_rows, np.bool_)
        found: Any = pc.is_valid(self._index.locate(rows.select(self._names)))
        return np.array(found.to_numpy(), np.bool_)


def among(rows: pa.Table, keys: pa.Table) -> npt.NDArray[np.bool_]:
    """For each of these rows whether its key is one of these."""
    return Among(keys)(rows)


def without(rows: pa.Table, keys: pa.Table) -> pa.Table:
    """The rows whose keys are none of these."""
    return rows.filter(pa.array(~among(rows, keys))) if keys.num_rows else rows


def unlike(source: pa.Table, lake: pa.Table, key: list[str]) -> pa.Table:
    """Keys whose rows are not the same on both sides, or are on one side twice. Both: the key's columns and `DIGEST`."""
    other = f"{DIGEST}_lake"
    joined = source.join(lake.rename_columns([*key, other]), key, join_type="full outer")
    same: Any = pc.equal(joined.column(DIGEST), joined.column(other))
    found = joined.filter(pc.invert(same.fill_null(False))).select(key)
    counted = lake.group_by(key).aggregate([([], "count_all")])
    twice = counted.filter(pc.field("count_all") > 1).select(key)
    return distinct(pa.concat_tables([found, twice.cast(found.schema)]), key)
