"""Which rows of a key that is there more than once have to go."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc.errors import LakeError
from cdc.lake import surplus
from cdc.lake.columns import SEQ
from cdc.lake.reading import ROW
from cdc.lake.snapshot import AddFile
from cdc.lake.surplus import Surplus

Row = tuple[int | None, str | None, int]
"""Both columns of the key, and `_cdc_seq`."""


def found(**files: list[Row]) -> Surplus:
    """Of these files' rows; the files were written in this order."""
    snapshot: Any = SimpleNamespace(
        folder="here",
        files={name: AddFile(name, 1, len(rows), None, n) for n, (name, rows) in enumerate(files.items())},
    )

    def rows() -> Iterator[tuple[str, pa.Table]]:
        for name, some in files.items():
            a, b, seq = zip(*some, strict=True) if some else ((), (), ())
            numbers = pa.array(np.arange(len(some), dtype=np.uint32))
            columns = [pa.array(a, pa.int32()), pa.array(b, pa.string()), pa.array(seq, pa.int64()), numbers]
            yield name, pa.table(columns, names=["a", "b", SEQ, ROW.name])

    return surplus.find(snapshot, ("a", "b"), rows, sum(map(len, files.values())))


def gone(one: Surplus) -> dict[str, list[int]]:
    return {path: sorted(rows.tolist()) for path, rows in one.places.by_path()}


def test_nothing_is_too_many_where_every_key_is_there_once() -> None:
    one = found(x=[(1, "a", 1), (1, "b", 2)], y=[(2, "a", 3)], z=[])
    assert (gone(one), one.keys.num_rows, one.nulls) == ({}, 0, 0)


def test_of_a_key_the_newest_row_stays() -> None:
    one = found(x=[(1, "a", 5), (1, "b", 2)], y=[(1, "a", 9), (1, "a", 7)])
    assert gone(one) == {"x": [0], "y": [1]}
    assert one.keys.to_pylist() == [{"a": 1, "b": "a"}]
    assert one.copies.to_pylist() == [3]


def test_of_equally_new_rows_the_first_written_stays() -> None:
    one = found(x=[(3, "c", 1)], y=[(3, "c", 1), (3, "c", 1)])
    assert gone(one) == {"y": [0, 1]}


def test_rows_with_a_null_in_the_key_go() -> None:
    one = found(x=[(1, "a", 1), (None, "a", 2)], y=[(2, None, 3), (None, "a", 4)])
    assert gone(one) == {"x": [1], "y": [0, 1]}
    assert (one.nulls, one.keys.num_rows) == (3, 0)


def test_more_than_can_be_mended_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surplus, "MOST", 3)
    with pytest.raises(LakeError, match="more than 3 rows"):
        found(x=[(1, "a", 1), (2, "a", 1)], y=[(1, "a", 1), (2, "a", 1)])


def test_a_random_table_is_left_with_one_row_a_key() -> None:
    dice = np.random.default_rng(7)
    files: dict[str, list[Row]] = {
        name: [(int(a), str(b), int(s)) for a, b, s in dice.integers(0, 9, (80, 3))] for name in ("x", "y", "z")
    }
    one = found(**files)
    went = gone(one)
    left = [row for name, rows in files.items() for n, row in enumerate(rows) if n not in went.get(name, ())]
    assert len({(a, b) for a, b, _ in left}) == len(left)
    newest: dict[tuple[int | None, str | None], int] = {}
    for a, b, seq in (row for rows in files.values() for row in rows):
        newest[a, b] = max(seq, newest.get((a, b), 0))
    assert {(a, b): seq for a, b, seq in left} == newest
