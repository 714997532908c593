"""One reading connection of a bootstrap: it waits until its server shows e0, and then reads chunks, each in a view of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from cdc import faults
from cdc.config import SourceConfig
from cdc.errors import SourceError, SourceUnavailableError, TableStoppedError
from cdc.journal import logger
from cdc.position import Position
from cdc.schema import TableSchema
from cdc.source.catalogue import as_catalogued, estimate_rows, read_schema
from cdc.source.connection import connect, place, raw_cursor, translated
from cdc.source.server import Server
from cdc.source.values import build_text
from snapshot.chunks import Bound, Part, Walk

LOG = logger("snapshot")

WAIT_SLICE_S = 1.0
"""A wait for the server is cut into pieces of this length, to notice that it shall end."""
BATCH_ROWS = 16_384
BATCH_BYTES = 8 * 1024 * 1024
"""About what is held in memory of a chunk at a time."""
FIRST_ROWS = 16
"""Of an unknown width."""
SORT_BYTES = 8 * 1024 * 1024
"""`max_sort_length`: rows whose keys agree for longer than this would have no order (where the server must sort at all)."""


class Ended(Exception):  # noqa: N818 (no error)
    """It was asked to stop."""


@dataclass
class Chunk:
    """What is known of a chunk while its batches are taken: rows so far, the last one's key, and whether nothing follows it."""

    rows: int = 0
    last: Bound | None = None
    done: bool = False
    batches: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()))


class Reader:
    """A connection, made when it is first needed and again after an error. For one thread.

    Raises `SourceUnavailableError`, `SourceError`; `TableStoppedError` where the table is not what it was when it was added, or
    holds what cannot be read; `Ended` once `stop` is set.
    """

    def __init__(self, source: SourceConfig, walk: Walk, at: Position, stop: threading.Event) -> None:
        self._source = source
        self._walk = walk
        self._at = at
        self._stop = stop
        self._open: Connection[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._open is not None:
            _close(self._open)
            self._open = None

    def connection(self) -> Connection[Any]:
        """The connection, on which everything up to e0 can be seen."""
        if self._open is None:
            connection = connect(self._source, purpose="snapshot", streaming=True)
            try:
                self._make_ready(connection)
            except BaseException:
                _close(connection)
                raise
            self._open = connection
        return self._open

    def _make_ready(self, connection: Connection[Any]) -> None:
        server = Server(connection)
        uuid = server.identity().uuid
        if uuid != self._at.server_uuid:
            raise SourceUnavailableError(
                f"another server answers than the one that capture reads ({uuid}, not {self._at.server_uuid})",
                where=place(self._source),
                hint="nothing, if it was failed over: the bootstrap starts again once capture has moved",
            )
        with translated(connection), connection.cursor(Cursor) as cursor:
            cursor.execute("SET SESSION max_sort_length = %s", (SORT_BYTES,))
        if faults.mutant("no_wait"):
            return
        # The dump thread can send a transaction before a SELECT sees it.
        while not server.wait_executed(self._at.gtids, WAIT_SLICE_S):
            LOG.info("waits-for-server", table=str(self._walk.table), position=str(self._at))
            self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Ended

    def rows_estimate(self) -> int:
        """About how many rows the table has."""
        return estimate_rows(self.connection(), self._walk.table)

    def extremes(self) -> tuple[int, int] | None:
        """The smallest and the largest key of a table that splits; None for an empty one."""
        connection = self.connection()
        with translated(connection), connection.cursor(Cursor) as cursor:
            cursor.execute(self._walk.extremes())
            row = cursor.fetchone()
        return None if row is None or row[0] is None else (int(row[0]), int(row[1]))

    def read(self, part: Part, after: Bound | None, limit: int) -> Chunk:
        """At most `limit` rows of a part, after a bound. The batches are of bounded size, and are to be taken to the end; only
        then the chunk is known to be sound."""
        chunk = Chunk()
        chunk.batches = self._batches(chunk, part, after, limit)
        return chunk

    def _batches(self, chunk: Chunk, part: Part, after: Bound | None, limit: int) -> Iterator[pa.RecordBatch]:
        table, schema, width = self._walk.table, self._walk.schema, self._walk.width()
        connection = self.connection()
        self.check_schema()
        sql, arguments = self._walk.select(after, part.high, limit)
        try:
            with raw_cursor(connection) as cursor:
                cursor.execute(sql, arguments)
                wanted = FIRST_ROWS
                while rows := cursor.fetchmany(wanted):
                    self._check_stop()
                    batch = build_text(schema, list(zip(*rows, strict=True))[:width])
                    chunk.last = self._walk.bound(rows[-1])
                    chunk.rows += len(rows)
                    yield batch
                    wanted = max(1, min(BATCH_ROWS, BATCH_BYTES * len(rows) // max(1, batch.nbytes)))
        except TableStoppedError as error:
            self.close()
            where = error.where if str(table) in error.where else ", ".join(filter(None, (str(table), error.where)))
            raise TableStoppedError(error.what, where=where, hint=error.hint) from None
        except SourceError as error:
            self.close()
            if not error.retryable:
                self.check_schema()  # a column, or the table, that is gone says more than the statement's error
            raise
        except BaseException:
            self.close()
            raise
        # What a DDL changed in between is seen now, whatever the SELECT met.
        self.check_schema()
        chunk.done = chunk.rows < limit

    def check_schema(self) -> None:
        """Raise `TableStoppedError` unless the table's columns and key are those of the record that added it."""
        walk = self._walk
        hint = f"`lakesync resync {walk.table}` reads it anew; `lakesync remove {walk.table}` gives it up"
        try:
            found = read_schema(self.connection(), walk.table).with_overrides(walk.schema.overrides)
        except TableStoppedError as error:
            raise TableStoppedError(error.what, where=error.where, hint=hint) from None
        # What the binary log says of a table may be more than what the catalogue knows.
        if found != as_catalogued(walk.schema):
            raise TableStoppedError(
                f"the table was altered after it was added: {_difference(walk.schema, found)}",
                where=str(walk.table),
                hint=hint,
            )


def _close(connection: Connection[Any]) -> None:
    with contextlib.suppress(pymysql.err.Error):  # closed already
        connection.close()


def _difference(was: TableSchema, now: TableSchema) -> str:
    """The first thing that differs, by name."""
    if was.key != now.key:
        return "another primary key"
    before, after = {c.name: c for c in was.columns}, {c.name: c for c in now.columns}
    for name in before:
        if name not in after:
            return f"column {name} is gone"
        if after[name] != before[name]:
            return f"column {name} is of another type"
    return next((f"column {name} is new" for name in after if name not in before), "another order of columns")
