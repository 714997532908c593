"""One reading connection: it waits until its server shows a position, and then reads chunks and keys, each in a view of its own.

It reads from `snapshot.source`, a replica, or from the server that capture reads. On a replica every chunk is sound only once the server that
capture reads has all that the replica shows: then the end of that server's binary log, taken later, is behind everything that was read.

No lock is taken, ever, and no transaction is longer than one SELECT.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import pyarrow as pa
import pymysql
from pymysql.connections import Connection
from pymysql.constants import ER
from pymysql.cursors import Cursor

from cdc import faults, unfit
from cdc.config import PipelineConfig
from cdc.errors import ConfigError, SourceError, SourceUnavailableError, TableStoppedError
from cdc.journal import logger
from cdc.names import TableName
from cdc.position import BinlogEnd, Position
from cdc.source import results
from cdc.source.catalogue import difference, estimate_rows, read_schema
from cdc.source.connection import connect, place, translate, translated
from cdc.source.server import Server
from snapshot import replica
from snapshot.chunks import Bound, Part, Walk
from snapshot.throttle import Throttle

LOG = logger("snapshot")

WAIT_SLICE_S = 1.0
"""A wait for the server is cut into pieces of this length, to notice that it shall end."""
SORT_BYTES = 8 * 1024 * 1024
"""`max_sort_length`: rows whose keys agree for longer than this would have no order (where the server must sort at all)."""
FIRST_ROW_BYTES = 4096
"""What a row is taken to have before any was read, where a chunk is to be cut by its size: too many cost a connection."""
POINT_KEYS = 500
"""A statement names at most so many keys …"""
POINT_BYTES = 256 * 1024
"""… and about so many bytes of them."""
_NOT_THE_CONDITION = (ER.TABLEACCESS_DENIED_ERROR, ER.NO_SUCH_TABLE, ER.DBACCESS_DENIED_ERROR, ER.BAD_DB_ERROR)
_PROBLEMS = {
    ER.PARSE_ERROR: "a syntax error",
    ER.SP_DOES_NOT_EXIST: "a function that does not exist",
    ER.NO_DB_ERROR: "a function that does not exist (name its schema, if it is a stored one)",
    1582: "a function with a wrong number of arguments",
    ER.INVALID_GROUP_FUNC_USE: "an aggregate function",
}
_INTERRUPTED_S = 5.0
"""A statement that ran shorter was not ended because of its length."""

_T = TypeVar("_T")


class Ended(Exception):  # noqa: N818 (no error)
    """It was asked to stop."""


@dataclass
class Chunk:
    """What is known of a chunk while its batches are taken: rows so far, the last one's key, and whether nothing follows it."""

    rows: int = 0
    size: int = 0
    """Bytes, as Arrow holds them."""
    last: Bound | None = None
    done: bool = False
    batches: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()))


class Reader:
    """A connection, made when it is first needed and again after an error. For one thread.

    `at` is what its server must show before anything is read, and says which server capture reads. `check_every_s`: how often it is made sure
    of the table's columns and of that server; 0: before and after everything that is read. (Where a window is open, capture sees either change.)

    Raises `SourceUnavailableError`, `SourceError`; `TableStoppedError` where the table is not what it was when it was added, or
    holds what cannot be read; `Ended` once `stop` is set.
    """

    def __init__(
        self,
        config: PipelineConfig,
        walk: Walk,
        at: Position,
        stop: threading.Event,
        throttle: Throttle | None = None,
        *,
        check_every_s: float = 0.0,
    ) -> None:
        self._check_every_s = check_every_s
        self._checked_s: dict[str, float] = {}
        self._config = config
        self._from = config.snapshot.source or config.source
        self._walk = walk
        self._at = at
        self._stop = stop
        self._throttle = throttle
        self._open: Connection[Any] | None = None
        self._uuid = ""
        self._is_checked = False
        self._source: Connection[Any] | None = None
        self._row_bytes = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, if there are any."""
        self._close_reading()
        self._close_source()

    def _close_reading(self) -> None:
        if self._open is not None:
            _close(self._open)
            self._open = None

    def _close_source(self) -> None:
        if self._source is not None:
            _close(self._source)
            self._source = None

    # -- the server that is read from ----------------------------------------------------------------------------------

    def connection(self) -> Connection[Any]:
        """The connection, on which everything up to the position can be seen. Statements on it are the caller's."""
        if self._open is None:
            connection = connect(self._from, purpose="snapshot", streaming=True)
            try:
                self._make_ready(connection)
            except BaseException:
                _close(connection)
                raise
            self._open = connection
        return self._open

    def wait(self, position: Position) -> None:
        """Wait until the server shows everything up to `position`: reads from now on do, on later connections too."""
        self._at = position
        if self._open is None:
            self.connection()
            return
        try:
            self._await(self._open)
        except BaseException:
            self._close_reading()
            raise

    @property
    def _is_replica(self) -> bool:
        return self._uuid != self._at.server_uuid

    def _make_ready(self, connection: Connection[Any]) -> None:
        identity = Server(connection).identity()
        self._uuid, self._is_checked = identity.uuid, False
        with translated(connection), connection.cursor(Cursor) as cursor:
            cursor.execute("SET SESSION max_sort_length = %s", (SORT_BYTES,))
        self._await(connection)

    def _await(self, connection: Connection[Any]) -> None:
        if self._is_replica and self._config.snapshot.source is None:
            raise self._other_server(self._uuid)
        if faults.mutant("no_wait") or faults.mutant("window_no_wait"):
            return
        if faults.mutant("wait_once") and self._is_replica:
            return
        # The dump thread can send a transaction before a SELECT sees it.
        server = Server(connection)
        waiting: replica.Waiting | None = None
        if self._is_replica:
            if not self._is_checked:
                source = self._on_source(lambda s: s.identity())
                replica.check(server, self._from, source, self._walk.table)
                self._is_checked = True
            waiting = replica.Waiting(server, self._from, self._walk.table, self._at)
        with self._telling(f"{place(self._from)} does not show {self._at.end} yet"):
            while not server.wait_visible(self._at, WAIT_SLICE_S):
                self._check_stop()
                if waiting is not None:
                    waiting.look()
                else:
                    LOG.info("waits-for-server", table=str(self._walk.table), position=str(self._at.end))

    @contextlib.contextmanager
    def _telling(self, reason: str) -> Iterator[None]:
        with contextlib.nullcontext() if self._throttle is None else self._throttle.waiting(reason):
            yield

    def _other_server(self, uuid: str) -> SourceUnavailableError:
        return SourceUnavailableError(
            f"another server answers than the one that capture reads ({uuid}, not {self._at.server_uuid})",
            where=place(self._config.source),
            hint="nothing, if it was failed over: reading begins again once capture has moved",
        )

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Ended

    # -- the server that capture reads ---------------------------------------------------------------------------------

    def mark(self) -> tuple[BinlogEnd, str]:
        """The end of the binary log of the server that capture reads, and which that is: behind all that was read before."""
        return self._on_source(self._mark)

    def _mark(self, server: Server) -> tuple[BinlogEnd, str]:
        uuid = self._at.server_uuid
        if faults.mutant("ready_by_gtid_executed"):
            return BinlogEnd(str(server.executed()), 0), uuid
        return server.binlog_end(), uuid

    def _on_source(self, ask: Callable[[Server], _T]) -> _T:
        """Ask the server that capture reads; once more if the connection was lost meanwhile, for it rests for long."""
        rested = self._source is not None
        try:
            return self._ask_source(ask)
        except SourceUnavailableError:
            self._close_source()
            if not rested:
                raise
        try:
            return self._ask_source(ask)
        except BaseException:
            self._close_source()
            raise

    def _ask_source(self, ask: Callable[[Server], _T]) -> _T:
        if self._source is None:
            self._checked_s.clear()
            self._source = connect(self._config.source, purpose="snapshot mark")
        server = Server(self._source)
        if self._due(self._at.server_uuid) and (uuid := server.identity().uuid) != self._at.server_uuid:
            raise self._other_server(uuid)
        return ask(server)

    def _check_sound(self) -> None:
        """On a replica: wait until the server that capture reads has everything that can have been read."""
        if not self._is_replica or faults.mutant("capture_behind_reader"):
            return
        read_from = self._uuid
        server = Server(self.connection())
        if self._uuid != read_from:
            raise SourceUnavailableError("another server answers than before", where=place(self._from))
        shown, by = server.shown(), server.identity()
        with self._telling(f"{place(self._config.source)} does not have yet what {place(self._from)} shows"):
            self._on_source(lambda source: replica.wait_for_source(source, self._from, shown, by, self._check_stop))

    # -- reading -------------------------------------------------------------------------------------------------------

    def rows_estimate(self) -> int:
        """About how many rows the table has."""
        return estimate_rows(self.connection(), self._walk.table)

    def read(
        self,
        part: Part,
        after: Bound | None,
        limit: int,
        *,
        where: str = "",
        size: int | None = None,
        after_included: bool = False,
    ) -> Chunk:
        """At most `limit` rows of a part, after a bound (with it, if `after_included`), that fulfil `where`; no more once they have `size`
        bytes. The batches are of bounded size, and are to be taken to the end; only then the chunk is known to be sound, and how it ended.
        It pauses as the throttle says before the first of them."""
        chunk = Chunk()
        select = partial(self._walk.select, after, part.high, where=where, after_included=after_included)
        chunk.batches = self._batches(chunk, select, limit, size)
        return chunk

    def _batches(
        self, chunk: Chunk, select: Callable[..., tuple[str, tuple[object, ...]]], limit: int, size: int | None
    ) -> Iterator[pa.RecordBatch]:
        walk = self._walk
        limit = self._limit(limit, size)
        with self._chunk(chunk, limit):
            connection = self.connection()
            self._look()
            batch_size = results.SIZE if size is None else min(results.SIZE, max(size // 4, 1))
            found = results.read(
                connection,
                lambda text: select(limit, text=text),
                walk.plans(),
                size=batch_size,
                waiting=self._check_stop,
            )
            cut = False
            with self._errors():
                for batch in found:
                    self._check_stop()
                    chunk.last = walk.bound(batch)
                    chunk.rows += batch.num_rows
                    rows = walk.rows(batch)
                    chunk.size += rows.nbytes
                    # Where rows become wider, the last ones tell what comes.
                    self._row_bytes = max(chunk.size / chunk.rows, rows.nbytes / rows.num_rows)
                    yield rows
                    rest = (limit - chunk.rows) * self._row_bytes
                    # A little is on its way already; what is more is not worth waiting for.
                    if size is not None and chunk.size >= size and rest > size // 4:
                        cut = True
                        break
                if cut:
                    self._abandon()
            # What a DDL changed in between is seen now, whatever the SELECT met.
            self._look()
            self._check_sound()
            chunk.done = not cut and chunk.rows < limit

    def _limit(self, limit: int, size: int | None) -> int:
        row_bytes = self._row_bytes or FIRST_ROW_BYTES
        if size is not None:
            limit = max(1, min(limit, int(size / row_bytes) + 1))
        return limit if self._throttle is None else self._throttle.limit(limit, row_bytes)

    @contextlib.contextmanager
    def _chunk(self, chunk: Chunk, limit: int) -> Iterator[None]:
        """The throttle is asked before, and told after."""
        throttle = self._throttle
        if throttle is None:
            yield
            return
        throttle.before(limit, int(limit * (self._row_bytes or FIRST_ROW_BYTES)), self._stop)
        began_s = time.monotonic()
        try:
            self._check_stop()
            with throttle.reading():
                yield
        except SourceError as error:
            took_s = time.monotonic() - began_s
            if error.retryable and took_s > _INTERRUPTED_S and replica.was_interrupted(error):
                throttle.interrupted(chunk.rows, took_s)
            raise
        finally:
            throttle.took(chunk.rows, chunk.size, time.monotonic() - began_s)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of a statement; the connection does not outlive them."""
        table = str(self._walk.table)
        try:
            yield
        except TableStoppedError as error:
            self._abandon()
            self.check_schema()  # another type says more than a value that is not of the one before
            where = error.where if table in error.where else ", ".join(filter(None, (table, error.where)))
            raise TableStoppedError(error.what, where=where, hint=error.hint) from None
        except SourceError as error:
            self._close_reading()
            if not error.retryable:
                self.check_schema()  # a column, or the table, that is gone says more than the statement's error
            raise
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Close the connection in the middle of an answer, and end the statement: the server notices the one when it next sends a row,
        and where few rows fulfil a condition it would search on for long."""
        if self._open is None:
            return
        thread = int(cast("Any", self._open).thread_id())
        _close(self._open)
        self._open = None
        with (
            contextlib.suppress(SourceError, pymysql.err.Error),  # it is a courtesy
            contextlib.closing(connect(self._from, purpose="snapshot")) as other,
        ):
            server = Server(other)
            if server.identity().uuid == self._uuid:  # behind one address there may be several
                server.end(thread)

    def points(self, keys: pa.Table) -> pa.Table:
        """The rows that the server returns for these keys (the key's columns, in the lake's types), those included that are merely equal
        to them by collation: the schema's columns, and `_cdc_unfit` if some row needs it."""
        walk = self._walk
        found: list[pa.Table] = []
        for piece in _pieces(keys):
            chunk = Chunk()
            with self._chunk(chunk, piece.num_rows):
                connection = self.connection()
                self._look()
                with self._errors():
                    for batch in results.read(
                        connection, partial(_points, walk, piece), walk.plans(), waiting=self._check_stop
                    ):
                        self._check_stop()
                        rows = walk.rows(batch)
                        chunk.rows += rows.num_rows
                        chunk.size += rows.nbytes
                        found.append(pa.Table.from_batches([rows]))
                self._look()
                self._check_sound()
        arrow = walk.schema.arrow
        if any(unfit.is_last(table.schema) for table in found):
            arrow = arrow.append(unfit.FIELD)
        return pa.concat_tables([arrow.empty_table(), *found], promote_options="default")

    def _due(self, what: str) -> bool:
        """Whether it is time to look again."""
        now_s = time.monotonic()
        if self._check_every_s and now_s - self._checked_s.get(what, -math.inf) < self._check_every_s:
            return False
        self._checked_s[what] = now_s
        return True

    def _look(self) -> None:
        if self._due("schema"):
            self.check_schema()

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


def check_where(connection: Connection[Any], table: TableName, where: str) -> None:
    """Raise `ConfigError` for a condition that the server does not take. Nothing is read. Raises `SourceError` for what is not the
    condition's fault."""
    try:
        with connection.cursor(Cursor) as cursor:
            # On lines of its own, as in a reading: it may end in a comment.
            cursor.execute(f"EXPLAIN SELECT 1 FROM {table.quoted} WHERE (\n{where}\n)")
    except (pymysql.err.Error, OSError) as error:
        code = error.args[0] if error.args else 0
        failed = translate(error, connection)
        if failed.retryable or isinstance(error, OSError) or code in _NOT_THE_CONDITION:
            raise failed from None
        # What the server says of others may hold what the condition compares with.
        what = str(error.args[1]) if code == ER.BAD_FIELD_ERROR else _PROBLEMS.get(code, "it is not understood")
        raise ConfigError(
            f"the server does not take the condition: {what} (error {code})",
            where=str(table),
            hint="write what may follow WHERE: a condition on this table's columns, in the server's SQL",
        ) from None


def _points(walk: Walk, keys: pa.Table, text: bool) -> tuple[str, tuple[object, ...]]:
    return walk.points(keys, text=text)


def _pieces(keys: pa.Table) -> Iterator[pa.Table]:
    """Slices of a number of keys, and of bytes, that a statement may name."""
    at = 0
    while at < keys.num_rows:
        count = min(POINT_KEYS, keys.num_rows - at)
        while count > 1 and keys.slice(at, count).nbytes > POINT_BYTES:
            count //= 2
        yield keys.slice(at, count)
        at += count


def _close(connection: Connection[Any]) -> None:
    with contextlib.suppress(pymysql.err.Error):  # closed already
        connection.close()
