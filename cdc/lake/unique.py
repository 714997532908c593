"""Whether every key is there once, in bounded memory whatever the number of rows: by 64-bit hashes, then by the keys themselves. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdc.lake.keys import comparable

PASS_ROWS = 16 * 1024 * 1024
"""Hashes in memory at a time, 8 bytes each; a table with more rows is read several times."""
_CANDIDATES = 10_000
"""So many hashes that are there twice are looked at; more are no news."""
_PIECE_BYTES = 4 * 1024 * 1024
"""Of strings, hashed at once: their working memory is about 24 times that."""

Hashes = npt.NDArray[np.uint64]
Keys = Callable[[], Iterable[pa.Table]]
"""All keys, in pieces; called once for each time that they are read."""


def repeated(keys: Keys, rows: int, pass_rows: int = PASS_ROWS) -> int:
    """How many keys there are beyond one of each, at least: 0 if and only if every key is there once. `rows` is how many there are."""
    passes = max(1, -(-rows // pass_rows))
    for number in range(passes):
        suspected = _suspected(keys, number, passes, rows // passes)[:_CANDIDATES]
        if len(suspected) and (found := _compared(keys, suspected)):
            return found
    return 0


def suspected(keys: Keys, rows: int, pass_rows: int = PASS_ROWS) -> Hashes:
    """Hashes that more than one of the keys has, ascending: those of all keys that are there more than once, and seldom others."""
    passes = max(1, -(-rows // pass_rows))
    found = [_suspected(keys, number, passes, rows // passes) for number in range(passes)]
    return np.sort(np.concatenate(found))


def _suspected(keys: Keys, number: int, passes: int, expected: int) -> Hashes:
    """Of the hashes of this pass those that are there more than once, ascending."""
    held = np.empty(expected + expected // 8 + 1024, np.uint64)
    filled = 0
    for piece in keys():
        found = hashes(piece)
        if passes > 1:
            found = found[found % np.uint64(passes) == np.uint64(number)]
        if filled + len(found) > len(held):
            # One key many times, then: hashes of distinct keys spread evenly.
            held = np.concatenate([held[:filled], np.empty(filled + len(found), np.uint64)])
        held[filled : filled + len(found)] = found
        filled += len(found)
    held = held[:filled]
    held.sort()
    twice: Hashes = held[1:][held[1:] == held[:-1]]
    return np.unique(twice)


def _compared(keys: Keys, suspected: Hashes) -> int:
    """How many keys with one of these hashes there are beyond one of each. Only the distinct ones are held."""
    count, distinct = 0, None
    for piece in keys():
        rows = piece.filter(pa.array(np.isin(hashes(piece), suspected)))
        if not rows.num_rows:
            continue
        count += rows.num_rows
        rows = pa.table(
            [comparable(column) for column in rows.columns], names=[str(i) for i in range(rows.num_columns)]
        )
        distinct = rows if distinct is None else pa.concat_tables([distinct, rows])
        distinct = distinct.group_by(distinct.column_names).aggregate([])
    return count - (distinct.num_rows if distinct is not None else 0)


def hashes(keys: pa.Table) -> Hashes:
    """A hash of each row's key, over the bytes of all its columns. No NULLs."""
    total = np.zeros(keys.num_rows, np.uint64)
    for column in keys.columns:
        values: Any = comparable(column)
        parts = [_hashed(chunk) for chunk in values.chunks]
        total = _mixed(total + (np.concatenate(parts) if parts else total))
    return total


def _hashed(values: Any) -> Hashes:
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _of_bytes(values)
    if pa.types.is_decimal(kind):
        words = np.frombuffer(values.buffers()[1], np.uint64).reshape(-1, 2)[
            values.offset : values.offset + len(values)
        ]
        return _mixed(words[:, 0].copy()) + words[:, 1]
    if pa.types.is_boolean(kind):
        numbers = values.cast(pa.int8())
    else:
        numbers = values.view(pa.int32() if kind.bit_width == 32 else pa.int64()) if _is_time(kind) else values
    found: Hashes = numbers.to_numpy().astype(np.int64).view(np.uint64)
    return found


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind))


def _of_bytes(values: Any) -> Hashes:
    """Multilinear: each byte times a random number of its place."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1].astype(
        np.int64
    )
    if not len(values):
        return np.zeros(0, np.uint64)
    if offsets[-1] - offsets[0] > _PIECE_BYTES and len(values) > 1:
        middle = len(values) // 2
        return np.concatenate([_of_bytes(values.slice(0, middle)), _of_bytes(values.slice(middle))])
    lengths = np.diff(offsets)
    starts = offsets[:-1] - offsets[0]
    buffer = values.buffers()[2]
    data = np.frombuffer(buffer, np.uint8)[offsets[0] : offsets[-1]] if buffer else np.zeros(0, np.uint8)
    places = np.arange(len(data)) - np.repeat(starts, lengths)
    products = data.astype(np.uint64) * _factors(int(lengths.max()))[places]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)])
    found: Hashes = sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64)
    return found


def _factors(length: int) -> Hashes:
    """Odd numbers, the same ones every time. A longer list begins as a shorter one."""
    return np.random.default_rng(20240229).integers(0, 1 << 64, max(1, length), np.uint64) | np.uint64(1)


def _mixed(numbers: Hashes) -> Hashes:
    """Every bit of the input in every bit of the output (the finalizer of splitmix64)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
