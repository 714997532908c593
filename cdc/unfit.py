"""`_cdc_unfit`: what the lake's types cannot hold (a zero date, bytes that are no text), kept as text beside the row.

One map a row, from a column's name to the value's text; the column itself is NULL there. No map: all values fit. The column stands
last, in batches, in the log's records and in the lake, and only where some row needs it. Pure.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

NAME: Final = "_cdc_unfit"
TYPE: Final = pa.map_(pa.string(), pa.string())
FIELD: Final = pa.field(NAME, TYPE)


def is_last(schema: pa.Schema) -> bool:
    """Whether the last column is this one. By its type too: no column of a source is a map, and one may have any name."""
    return len(schema) > 0 and schema.names[-1] == NAME and schema.types[-1] == TYPE


def needed(column: Any) -> bool:
    """Whether a row has a value that does not fit."""
    return bool(column.null_count < len(column))
