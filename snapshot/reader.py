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
from cdc.source import results
from cdc.source.catalogue import difference, estimate_rows, read_schema
from cdc.source.connection import connect, place, translated
from cdc.source.server import Server
from snapshot.chunks import Bound, Part, Walk

LOG = logger("snapshot")

WAIT_SLICE_S = 1.0
"""A wait for the server is cut into pieces of this length, to notice that it shall end."""
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
        while not server.wait_visible(self._at, WAIT_SLICE_S):
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
        walk, table = self._walk, self._walk.table
        connection = self.connection()
        self.check_schema()
        found = results.read(connection, lambda text: walk.select(after, part.high, limit, text=text), walk.plans())
        try:
            for batch in found:
                self._check_stop()
                chunk.last = walk.bound(batch)
                chunk.rows += batch.num_rows
                yield walk.rows(batch)
        except TableStoppedError as error:
            self.close()
            self.check_schema()  # another type says more than a value that is not of the one before
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
            found = read_schema(self.connection(), walk.table)
        except TableStoppedError as error:
            raise TableStoppedError(error.what, where=error.where, hint=hint) from None
        if unlike := difference(walk.schema, found):
            raise TableStoppedError(
                f"the table was altered after it was added: {unlike}", where=str(walk.table), hint=hint
            )


def _close(connection: Connection[Any]) -> None:
    with contextlib.suppress(pymysql.err.Error):  # closed already
        connection.close()
