"""Partitions as Delta has them: rows into partitions, values as the log and as folders write them. Pure.

Data files lie in a folder for each partition, `country=NL/created_at_month=2026-03`, as Hive has it: the log alone would do, but polars
takes the values from the folders' names. Values are percent-encoded there once, and the path in the log once more, as Spark does it, and no
more of them than must be: polars does not find the deletion vectors of files in whose path something is encoded, and deltalake, where it
reads a change feed, not the files (`is_plain`). The partition columns themselves are not in the data files.

What Delta cannot tell from NULL (an empty text), and what no folder can be named by, is NULL in the partition column and kept in
`_cdc_unfit`, as every value is that the lake's types cannot hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc import unfit
from cdc.errors import TableStoppedError
from cdc.partitioning import TYPES, Term, Unit, parse_all

NOTHING = "__HIVE_DEFAULT_PARTITION__"
"""The folder of NULL."""
LONGEST = 180
"""Bytes of a value as a folder's name has it; file systems give a name 255, and the column's has up to 70 of them."""

_PLAIN = "!$&'()+,;@"
"""What neither a folder's name nor a URL's path needs encoded, besides letters, digits and `-._~`; and no reader takes for a pattern."""

Values = Mapping[str, str | None]
"""A partition: its columns' values as the log writes them, in their order."""

_FORMATS: dict[Unit, str] = {"month": "%Y-%m", "hour": "%Y-%m-%d-%H"}


class Portion(NamedTuple):
    """The rows of one partition, without its columns."""

    values: Values
    rows: pa.Table


def names(partition_by: Sequence[str]) -> tuple[str, ...]:
    """The partition columns, as Delta's `partitionColumns`."""
    return tuple(term.name for term in parse_all(partition_by))


def derived(partition_by: Sequence[str]) -> list[pa.Field[Any]]:
    """The columns that a table has because of it, beside those that it has anyway."""
    return [pa.field(term.name, TYPES[term.unit]) for term in parse_all(partition_by) if term.unit is not None]


def prepared(rows: pa.Table, partition_by: Sequence[str], key: Collection[str]) -> pa.Table:
    """`rows` as a table that is partitioned so has them: `materialised`, then `fitted`. Raises `TableStoppedError`."""
    return fitted(materialised(rows, partition_by), names(partition_by), key) if partition_by else rows


def stored(columns: pa.Schema, partition: Collection[str]) -> pa.Schema:
    """The columns of a data file of a table with these columns."""
    return pa.schema([field for field in columns if field.name not in partition]) if partition else columns


def materialised(rows: pa.Table, partition_by: Sequence[str]) -> pa.Table:
    """`rows` with the columns of units of time; before `_cdc_unfit`, and in place of what there was of that name."""
    for term in parse_all(partition_by):
        if term.unit is None:
            continue
        field, values = pa.field(term.name, TYPES[term.unit]), cut(rows.column(term.column), term.unit)
        if (at := rows.schema.get_field_index(term.name)) >= 0:
            rows = rows.set_column(at, field, values)
        else:
            rows = rows.add_column(rows.num_columns - unfit.is_last(rows.schema), field, values)
    return rows


def cut(values: pa.ChunkedArray[Any], unit: Unit) -> pa.ChunkedArray[Any]:
    """Dates or times, cut off at a unit; NULL stays NULL."""
    made: Any = pa.chunked_array
    chunks: pa.ChunkedArray[Any] = made([_cut(chunk, unit) for chunk in values.chunks], TYPES[unit])
    return chunks


def _cut(values: Any, unit: Unit) -> Any:
    if unit == "year":
        return pc.year(values).cast(pa.int32())
    if unit == "day":
        return _day(values)
    # Few different values among many rows: each is written as text once.
    floor = pc.floor_temporal(values, unit=unit).dictionary_encode()
    texts = pc.strftime(floor.dictionary, format=_FORMATS[unit])
    return texts.take(floor.indices)


def _day(values: Any) -> Any:
    if pa.types.is_date32(values.type):
        return values
    # In UTC, or as it stands there: days are the same then.
    return pc.floor_temporal(values.cast(pa.int64()).cast(pa.timestamp("us")), unit="day").cast(pa.date32())


def fitted(rows: pa.Table, partition: Collection[str], key: Collection[str]) -> pa.Table:
    """`rows` with texts that no partition can have moved to `_cdc_unfit`, which is added where it is needed.

    Raises `TableStoppedError` where the key (its columns' names) has one.
    """
    for name in partition:
        at = rows.schema.get_field_index(name)
        if not pa.types.is_string(rows.schema.types[at]):
            continue
        column: Any = rows.column(at)
        cannot = _cannot(column)
        if cannot is None:
            continue
        if name in key:
            raise TableStoppedError(
                f"column {name} of the key is to tell partitions apart, and has a text that cannot: an empty one, or one of more than"
                f" {LONGEST} bytes (characters that a folder's name needs encoded count three for each of theirs)",
                hint="take it out of `partition_by:`, and resync the table",
            )
        rows = _with_unfit(rows, name, cannot)
        rows = rows.set_column(at, rows.schema.field(at), pc.if_else(cannot, pa.scalar(None, pa.string()), column))
    return rows


def _cannot(column: Any) -> Any:
    """Which of these texts cannot be a partition, as a mask without NULL; None: none of them."""
    distinct = column.unique()
    bad = [text for text in distinct.to_pylist() if text is not None and not _can(text)]
    return pc.is_in(column, value_set=pa.array(bad, pa.string())) if bad else None


def _can(text: str) -> bool:
    return bool(text) and text != NOTHING and (len(text) * 12 <= LONGEST or len(_named(text)) <= LONGEST)


def _with_unfit(rows: pa.Table, name: str, which: Any) -> pa.Table:
    """`_cdc_unfit` says what column `name` has in these rows."""
    if not unfit.is_last(rows.schema):
        rows = rows.append_column(unfit.FIELD, pa.nulls(rows.num_rows, unfit.TYPE))
    numbers: Any = np.flatnonzero(which.to_numpy())
    kept, texts = rows.column(unfit.NAME).to_pylist(), rows.column(name).take(numbers).to_pylist()
    for number, text in zip(numbers.tolist(), texts, strict=True):
        kept[number] = [*(kept[number] or ()), (name, text)]
    return rows.set_column(rows.num_columns - 1, unfit.FIELD, pa.array(kept, unfit.TYPE))


def split(rows: pa.Table, partition: Sequence[str]) -> Iterator[Portion]:
    """`rows`, partition by partition; those of one stay in their order. Without partition columns all of them, as one."""
    if not partition:
        yield Portion({}, rows)
        return
    if not rows.num_rows:
        return
    codes = np.zeros(rows.num_rows, np.int64)
    for name in partition:
        encoded: Any = rows.column(name).combine_chunks()
        encoded = encoded.dictionary_encode(null_encoding="encode")
        numbers = encoded.indices.to_numpy().astype(np.int64)
        # Numbered anew at each column: the products of many columns' numbers could grow out of 64 bits.
        _, codes = np.unique(codes * len(encoded.dictionary) + numbers, return_inverse=True)
    others = rows.drop_columns(list(partition))
    if not codes.any():
        yield Portion(_values(rows, partition, 0), others)
        return
    order: Any = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    others = others.take(order).combine_chunks()
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        yield Portion(_values(rows, partition, int(order[start])), others.slice(start, end - start))


def _values(rows: pa.Table, partition: Sequence[str], at: int) -> Values:
    return {name: written(rows.column(name)[at]) for name in partition}


def written(value: Any) -> str | None:
    """An Arrow scalar of a partition column as the log writes it."""
    text: str | None = value.cast(pa.string()).as_py()
    return text or None


def read(text: str | None, arrow: pa.DataType) -> Any:
    """The Arrow scalar that the log writes so; Delta has no empty values: they are NULL. Raises `pa.ArrowInvalid` for what is no value of
    this type."""
    return pa.scalar(text, pa.string()).cast(arrow) if text else pa.scalar(None, arrow)


def folder(values: Values) -> str:
    """The folder of a partition in the table's, with a `/` behind it; empty for a table without partitions."""
    return "".join(f"{name}={_named(text)}/" for name, text in values.items())


def _named(text: str | None) -> str:
    return quote(text, safe=_PLAIN) if text else NOTHING


def logged(path: str) -> str:
    """The name of a data file in the table's folder, as the log writes it."""
    return quote(path, safe=f"/={_PLAIN}")


def is_plain(path: str) -> bool:
    """Whether a data file's path, in the log or in the table's folder, is the same in both."""
    return "%" not in path


__all__ = [
    "Portion",
    "Term",
    "Values",
    "cut",
    "derived",
    "fitted",
    "folder",
    "is_plain",
    "logged",
    "materialised",
    "names",
    "prepared",
    "read",
    "split",
    "stored",
    "written",
]
