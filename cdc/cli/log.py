"""`lakesync log`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import orjson
import pyarrow as pa
import typer

from cdc import unfit
from cdc.cli import options, output
from cdc.epoch import CommitRecord
from cdc.log.codec import DIFFS, PRESENT
from cdc.names import TableName
from cdc.pipeline import Pipeline


def command(
    table: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="Show this table's row changes, values and all.", show_default=False),
    ] = None,
    from_epoch: Annotated[
        int | None, typer.Option("--from", metavar="EPOCH", help="Begin with this epoch.", show_default=False)
    ] = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,  # noqa: ARG001 - it always is
) -> None:
    """Show epochs, or row changes, as JSON lines.

    \b
    Example:
      lakesync log --from 100
      lakesync log --table shop.orders
    """
    pipeline = options.pipeline(config)
    for line in _changes(pipeline, table, from_epoch) if table else _epochs(pipeline, from_epoch):
        output.json_line(line)


def _epochs(pipeline: Pipeline, from_epoch: int | None) -> Iterator[dict[str, Any]]:
    for record in pipeline.log(from_epoch=from_epoch):
        yield _epoch(record)


def _epoch(record: CommitRecord) -> dict[str, Any]:
    full: dict[str, Any] = orjson.loads(record.payload)
    line = {
        k: full[k]
        for k in ("number", "before", "ts_ms", "raw_us", "seq", "transactions", "framing", "end", "skipped", "removed")
    }
    return {
        **line,
        "hash": record.hash,
        "tables": {
            str(TableName.from_id(t)): {n: count for n, count in e.rows._asdict().items() if count or n != "reads"}
            for t, e in record.tables.items()
        },
        "added": [str(TableName.from_id(t)) for t in record.added],
        "removed": {str(TableName.from_id(t)): why for t, why in record.removed.items()},
        **_windowed(record),
    }


def _windowed(record: CommitRecord) -> dict[str, Any]:
    """What only some epochs have: windowed reads, tables whose options changed."""
    found: dict[str, Any] = {}
    if record.windows:
        found["windows"] = [
            {"gid": f"{w.id.gtid}/{w.id.number}", "table": w.table, "read": w.read, "emitted": w.emitted}
            for windows in record.windows.values()
            for w in windows
        ]
    if record.altered:
        found["altered"] = [str(TableName.from_id(t)) for t in record.altered]
    return found


def _changes(pipeline: Pipeline, table: str, from_epoch: int | None) -> Iterator[dict[str, Any]]:
    for batch in pipeline.changes(table, from_epoch=from_epoch):
        names = batch.schema.names
        own, end = names.index("_seq") + 1, len(names)
        incomplete = names[-2:] == [PRESENT, DIFFS] and pa.types.is_list(batch.schema.types[-1])
        if incomplete:
            end -= 2
        kept = unfit.is_last(pa.schema(list(batch.schema)[:end]))
        end -= kept
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            # A source's column may have any name, also one of ours: so its values are in an object of their own.
            line = dict(zip(names[:own], row[:own], strict=True))
            line["row"] = dict(zip(names[own:end], row[own:end], strict=True))
            if kept and row[end] is not None:
                line["unfit"] = dict(row[end])
            if incomplete and row[-2] is not None:
                # What it does not have is not NULL, but as it was before.
                line["row"] = {name: value for name, value in line["row"].items() if name in row[-2]}
                line["diffs"] = row[-1] or []
            yield line
