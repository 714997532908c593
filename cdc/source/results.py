"""Result sets as Arrow batches, decoded by the native module: exact, since nothing is converted on the way.

Statements are prepared, so that the server sends values as it stores them: for it that is half the work of printing them. Where
prepared statements cannot be had, the same rows come as text.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import pyarrow as pa
import pymysql
from pymysql.connections import Connection
from pymysql.constants import COMMAND, CR, ER
from pymysql.cursors import Cursor

from cdc import _native
from cdc.errors import SourceError, SourceUnavailableError, TableStoppedError
from cdc.names import quote_identifier
from cdc.schema import TableSchema
from cdc.source.connection import abandon, place, translate, translated

ROWS: Final = 65_536
"""At most about so many rows a batch …"""
SIZE: Final = 8 * 1024 * 1024
"""… and about so many bytes, unless a single row has more."""
PIECE: Final = 512 * 1024
"""Bytes asked of the socket at once."""
WAIT_S: Final = 1.0
"""A wait for the server is cut into pieces of this length."""
_COM_STMT_PREPARE, _COM_STMT_EXECUTE, _COM_STMT_CLOSE = 0x16, 0x17, 0x19
_NOT_PREPARED = frozenset({1461, ER.UNSUPPORTED_PS})
"""max_prepared_stmt_count is reached; a proxy without prepared statements."""

Statement = Callable[[bool], tuple[str, tuple[object, ...]]]
"""A SELECT and its arguments (bound as PyMySQL does, `%s`; without any, a percent sign is one), given whether its rows will come as
text."""


def select_list(schema: TableSchema, text: bool = False) -> str:
    """The columns of a table as `read` is to be given them."""
    # As text, FLOAT alone is not exact: the server prints six digits.
    return ", ".join(
        f"CAST({quote_identifier(c.name)} AS DOUBLE)" if text and c.type == "float" else quote_identifier(c.name)
        for c in schema.columns
    )


def read(
    connection: Connection[Any],
    statement: Statement,
    plans: list[dict[str, Any]],
    *,
    rows: int = ROWS,
    size: int = SIZE,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a statement, whose columns `plans` (of `TableSchema.plans`) describe; no batch is empty. `_cdc_unfit` is the last
    column of those batches that need it. `waiting` is called about once a second while the server says nothing, and may raise.

    An iterator that is closed before its end closes the connection: there is no other way to stop the server. Texts of the
    connection's other cursors are no longer converted to utf8mb4: keep a connection for it. Raises `SourceUnavailableError`,
    `SourceError`; `TableStoppedError` for a value that stops the table.
    """
    wire = cast("Any", connection)
    with translated(connection):
        prepared = _begin(connection, statement)
    found = _native.ResultSet(plans, binary=prepared is not None)
    buffer = memoryview(bytearray(PIECE))
    ended = False
    try:
        wire._sock.settimeout(wire._read_timeout)
        while not ended:
            with translated(connection):
                _wait(wire, waiting)
                length = wire._rfile.readinto1(buffer)
                if not length:
                    raise pymysql.err.OperationalError(CR.CR_SERVER_LOST, "the server closed the connection")
            ended = _feed(connection, found, buffer[:length])
            if found.rows and (ended or found.rows >= rows or found.bytes >= size):
                yield pa.record_batch(found.take())
        if prepared is not None:
            with translated(connection):
                wire._execute_command(_COM_STMT_CLOSE, prepared)
    except BaseException:
        abandon(connection)
        raise


def _wait(wire: Any, waiting: Callable[[], None]) -> None:
    """Until there is something to read. Nothing is in the reader's buffer: what is asked for is always more than that holds."""
    if getattr(wire._sock, "pending", lambda: 0)():
        return  # TLS has it already
    ready = select.poll()
    ready.register(wire._sock, select.POLLIN)
    deadline_s = time.monotonic() + wire._read_timeout
    while not ready.poll(WAIT_S * 1000):
        if time.monotonic() >= deadline_s:
            raise TimeoutError
        waiting()


def _begin(connection: Connection[Any], statement: Statement) -> bytes | None:
    """Send the statement. The prepared statement's id, or None if the rows come as text."""
    wire = cast("Any", connection)
    with connection.cursor(Cursor) as cursor:
        if not getattr(wire, "_lakesync_raw", False):
            cursor.execute("SET SESSION character_set_results = NULL")
            wire._lakesync_raw = True
        try:
            prepared = _prepare(wire, _mogrify(cursor, statement(False)))
        except pymysql.err.Error as error:
            if not error.args or error.args[0] not in _NOT_PREPARED:
                raise
            wire._execute_command(COMMAND.COM_QUERY, _mogrify(cursor, statement(True)))
            return None
    # No flags: without a cursor, all rows at once. One iteration; the protocol has no other number.
    wire._execute_command(_COM_STMT_EXECUTE, prepared + b"\0" + (1).to_bytes(4, "little"))
    return prepared


def _mogrify(cursor: Cursor, statement: tuple[str, tuple[object, ...]]) -> str:
    sql, arguments = statement
    return cursor.mogrify(sql, arguments or None)


def _prepare(wire: Any, sql: str) -> bytes:
    wire._execute_command(_COM_STMT_PREPARE, sql)
    # 0, id (4), columns (2), parameters (2), …; then the definitions of each, and an EOF after either.
    head = wire._read_packet().get_all_data()
    for count in (int.from_bytes(head[7:9], "little"), int.from_bytes(head[5:7], "little")):
        for _ in range(count + 1 if count else 0):
            wire._read_packet()
    return bytes(head[1:5])


def _feed(connection: Connection[Any], found: _native.ResultSet, data: memoryview) -> bool:
    try:
        return found.feed(data)
    except _native.ServerError as error:
        code, _, message = error.args
        raise translate(pymysql.err.OperationalError(code, message), connection) from None
    except _native.DecodeError as error:
        kind, what = error.args
        if kind == "table":
            raise TableStoppedError(
                what,
                hint="change the rows, or what types: says of the column (`string` holds most), then resync the table",
            ) from None
        if kind == "damaged":
            raise SourceUnavailableError(f"the connection broke: {what}", where=place(connection)) from None
        raise SourceError(what, where=place(connection)) from None
