"""What a lake table is partitioned by: `partition_by` of the pipeline file, parsed, and checked against a table's columns. Pure.

An entry is a column, or `year(c)`, `month(c)`, `day(c)`, `hour(c)` of a date or time column. A function cuts the value off at its unit
and keeps what is before it: `month` of 31 March 2026 is `2026-03` and not 3, since a month without its year tells nothing apart and
no range of time is a range of it. Such a value stands in a column of its own, `<column>_<unit>`, in the forms for which Delta itself
derives conditions from `YEAR(c)`, `DATE_FORMAT(c, 'yyyy-MM')`, `CAST(c AS DATE)` and `DATE_FORMAT(c, 'yyyy-MM-dd-HH')`:

| entry | column | type | example |
| --- | --- | --- | --- |
| `year(c)` | `c_year` | integer | 2026 |
| `month(c)` | `c_month` | string | 2026-03 |
| `day(c)` | `c_day` | date | 2026-03-31 |
| `hour(c)` | `c_hour` | string | 2026-03-31-14 |

All of them sort as time does. A TIMESTAMP counts in UTC, a DATETIME as it stands there, and NULL has a partition of its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import pyarrow as pa

from cdc.errors import TableStoppedError
from cdc.schema import TableSchema

Unit = Literal["year", "month", "day", "hour"]
TYPES: dict[Unit, pa.DataType] = {
    "year": pa.int32(),
    "month": pa.string(),
    "day": pa.date32(),
    "hour": pa.string(),
}
"""What a unit's column holds."""
UNITS = "year(c), month(c), day(c) or hour(c)"
_CALL = re.compile(r"\s*(\w*)\s*\((.*)\)\s*", re.DOTALL)
_FOLDER = re.compile(r"[\w.~!$&'()+,;@-]+", re.ASCII)
"""What a column's name may have to name a folder that every reader finds again: polars takes it as it is, and does not find the deletion
vectors of files in whose path something is encoded."""
_LONGEST = 70
"""Bytes of it: a folder's name holds a value besides."""
_CORRECT = "correct `partition_by:`"


@dataclass(frozen=True)
class Term:
    """One entry of `partition_by`: a column, or a unit of time of one."""

    column: str
    unit: Unit | None = None

    @property
    def name(self) -> str:
        """The partition column's."""
        return f"{self.column}_{self.unit}" if self.unit else self.column

    def __str__(self) -> str:
        return f"{self.unit}({self.column})" if self.unit else self.column


def parse(text: str) -> Term:
    """An entry. Raises `ValueError`, with what may be written, for one that is none."""
    match = _CALL.fullmatch(text)
    if match is None:
        if not text.strip():
            raise ValueError(f"partition_by: write a column, or {UNITS}")
        if ("(" in text) != (")" in text):
            raise ValueError(f"partition_by: {text} lacks a parenthesis: write a column, or {UNITS}")
        return Term(text.strip())
    function, column = match[1].lower(), match[2].strip()
    if function not in TYPES:
        raise ValueError(f"partition_by: {text}: there is no {match[1] or 'such function'}: write a column, or {UNITS}")
    if not column:
        raise ValueError(f"partition_by: {text} names no column: write {function}(column)")
    return Term(column, cast("Unit", function))


def parse_all(texts: Sequence[str]) -> tuple[Term, ...]:
    """Entries, in their order. Raises `ValueError`, also for what stands there twice."""
    found = tuple(map(parse, texts))
    names = [term.name.lower() for term in found]
    if twice := [str(term) for term, name in zip(found, names, strict=True) if names.count(name) > 1]:
        raise ValueError(f"partition_by: {' and '.join(twice)} are the same column")
    return found


def check(schema: TableSchema, partition_by: Sequence[str]) -> None:
    """Raise `TableStoppedError` unless a table with these columns, which are readable (`TableSchema.check`), can be partitioned so."""
    try:
        terms = parse_all(partition_by)
    except ValueError as error:
        raise TableStoppedError(str(error), hint=_CORRECT) from None
    taken = {name.lower(): name for name in schema.names}
    types = dict(zip(schema.names, schema.arrow.types, strict=True))
    declared = {column.name: column.type for column in schema.columns}
    for term in terms:
        if term.column not in types:
            near = difflib.get_close_matches(term.column, schema.names, 1)
            hint = f"did you mean {near[0]}? {_CORRECT}" if near else _CORRECT
            raise TableStoppedError(f"partition_by: names column {term.column}, which does not exist", hint=hint)
        if not _FOLDER.fullmatch(term.name) or len(term.name.encode()) > _LONGEST:
            raise TableStoppedError(
                f"partition_by: column {term.name} has a name that not every reader finds in a folder's",
                hint="rename the column (letters, digits, `_`, at most 70 bytes with its unit), or name another one",
            )
        if term.unit is not None and (there := taken.get(term.name.lower())):
            raise TableStoppedError(
                f"partition_by: {term} would be column {term.name}, and the table has a column {there}",
                hint=f"rename that one, leave it out (`exclude:`), or partition by {there} itself",
            )
        if why := _refused(term, types[term.column], declared[term.column]):
            raise TableStoppedError(f"partition_by: {term}: {why[0]}", hint=why[1])


def _refused(term: Term, arrow: pa.DataType, declared: str) -> tuple[str, str] | None:
    """Why a table cannot be partitioned by this, and the way out."""
    is_time = pa.types.is_timestamp(arrow)
    if term.unit == "hour" and not is_time:
        return "only DATETIME and TIMESTAMP columns have hours", _CORRECT
    if term.unit is not None:
        if is_time or pa.types.is_date32(arrow):
            return None
        return "only DATE, DATETIME and TIMESTAMP columns have units of time", _CORRECT
    if is_time:
        return (
            "each microsecond would be a partition",
            f"write year({term.column}), month({term.column}), day({term.column}) or hour({term.column})",
        )
    if pa.types.is_decimal(arrow):
        text = f"`types: {{{term.column}: string}}` makes it a text, which can"
        return "readers disagree on decimals as partitions, ClickHouse reads wrong ones", text
    if declared == "json":
        return "a JSON document cannot tell partitions apart", "name another column"
    if pa.types.is_signed_integer(arrow) or pa.types.is_string(arrow) or pa.types.is_date32(arrow):
        return None
    if pa.types.is_boolean(arrow):
        return None
    return "only integers, texts, dates and booleans can tell partitions apart", "name another column"
