"""Before a table is adopted: what `lakesync check` and `lakesync add --from-position` say of the copy in the lake, and of its position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from cdc.capture import adopting
from cdc.capture.tables import own
from cdc.config import PipelineConfig, TableConfig
from cdc.errors import LakeError, LakeOccupiedError, LakesyncError, TableStoppedError
from cdc.lake import LakeTable, applied_everywhere
from cdc.lake.adopt import examine
from cdc.log import open_log
from cdc.position import GtidSet, Position
from cdc.schema import TableSchema
from cdc.source.connection import connect
from cdc.source.preflight import Finding
from cdc.source.server import Server


def findings(config: PipelineConfig, entries: Sequence[TableConfig]) -> list[Finding]:
    """Of the entries that name a position. What only the files tell, each key once among it, is looked at when the table is adopted.

    Raises `SourceError`.
    """
    named = [entry for entry in entries if entry.from_position is not None]
    if not named:
        return []
    found: list[Finding] = []
    with closing(connect(config.source, purpose="check")) as connection:
        server = Server(connection)
        for entry in named:
            try:
                schema = own(connection, entry.table, entry)
            except LakesyncError:
                continue  # preflight says what is wrong with it
            found += _of_table(config, server, entry, schema)
    return found


def _of_table(config: PipelineConfig, server: Server, entry: TableConfig, schema: TableSchema) -> list[Finding]:
    lake = LakeTable(config.lake_root, entry.table, config.name)
    try:
        try:
            if lake.load() is not None:
                return [
                    Finding(
                        "ok", entry.name, "the lake's table is this pipeline's already: its position counts no more"
                    )
                ]
        except LakeOccupiedError:
            pass
        problems = examine(lake, schema)
    except LakeError as error:
        return [Finding("error", entry.name, f"{error.where}: {error.what}", error.hint)]
    found = [Finding("error", entry.name, f"cannot be adopted: {p.what}", p.hint) for p in problems]
    return found + list(_of_position(config, server, entry))


def _of_position(config: PipelineConfig, server: Server, entry: TableConfig) -> Iterator[Finding]:
    wanted = GtidSet.parse(entry.from_position or "")
    begins = _stream(config)
    try:
        adopting.check_executed(server, entry.table, wanted)
        if begins is None:
            adopting.check_logged(server, entry.table, wanted)
    except TableStoppedError as error:
        yield Finding("error", entry.name, error.what, error.hint)
        return
    if begins is None or wanted.contains(begins.gtids):
        yield Finding("ok", entry.name, "the lake has it, and it is followed from its position")
    elif begins.gtids.contains(wanted):
        what = "the lake has it as of a position that the stream has passed: its rows are read once, beside the stream"
        yield Finding("ok", entry.name, what)
    else:
        yield Finding(
            "error",
            entry.name,
            "its position is none of the stream: it lacks transactions that the stream has, and has others",
            "take it on the server that lakesync follows, with the copy, in one consistent snapshot",
        )


def _stream(config: PipelineConfig) -> Position | None:
    """Where the stream is; None where the position may say where it begins."""
    with closing(open_log(config.log, config.name, config.log_settings())) as log:
        newest = log.newest()
    if newest is not None:
        return newest.end
    applied = [a.position for a in applied_everywhere(config.lake_root, config.name).values()]
    return min(applied, key=lambda position: position.reach) if applied else None
