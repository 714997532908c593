"""Values: every row of the source against every row of the lake, at one position, while writes go on.

Both sides add up digests of their rows, over the same cells of the table (`reconcile.checksums`): the server does so itself, so nothing here
depends on how lakesync decodes a value. What the sums leave in doubt is read again until it is settled (`reconcile.settling`), and only that is
said to be different.

The rows of a table that is made of shards are those of all its shards, each read from its own table of the source. Of a table that keeps what
the source has no more (`soft-delete`, `history`) the rows that are there now are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import pymysql

from cdc.config import PipelineConfig
from cdc.errors import ConfigError, NotFollowingError, SourceError
from cdc.log.base import Log
from cdc.names import TableName
from cdc.reads import Key
from cdc.source.connection import connect, translate
from cdc.state import State
from reconcile.values.compared import Compared
from reconcile.values.comparison import Comparison, Tally
from reconcile.values.found import Difference, TableValues, ValuesReport
from reconcile.values.lakeside import LakeSide
from reconcile.values.scope import WHOLE, Checkpoint, Scope
from reconcile.values.settling import Settling
from reconcile.values.sources import SourceSide
from reconcile.values.turns import Turns
from reconcile.values.windows import Windows
from snapshot.throttle import Throttle

__all__ = ["Checkpoint", "Difference", "Progress", "Scope", "TableValues", "ValuesReport", "compare", "recheck"]

FOLLOW_S = 120.0
"""How long the lake may take to reach the mark."""
TABLES_AT_ONCE = 4
RETRIES = 3
"""So often in a row a table's group is begun again where the source was lost, or a DDL was in the way."""
TOLD_S = 5.0
"""So long after an error of the source it may take until the state says what became of the table."""

Progress = Callable[[str, int], None]
"""Told the table and the rows read so far."""


def compare(
    config: PipelineConfig,
    log: Log,
    state: State,
    tables: Sequence[TableName] = (),
    *,
    scope: Scope = WHOLE,
    follow_s: float = FOLLOW_S,
    rows_per_second: int | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    show_values: bool = False,
) -> ValuesReport:
    """Compare these tables, or all that are ready, as far as `scope` says; `rows_per_second` bounds what is read of the source. With a
    `checkpoint`, what an earlier comparison of the same scope has done already is not done again. `show_values`: differences with the
    values of the columns that differ.

    Raises `NotFollowingError` if a table is not ready, the lake does not reach the mark in `follow_s`, or a table changed so that what was
    read says nothing; `ConfigError` for a table that is not configured, or a scope that it does not have; `SourceError`, `LogError`,
    `LakeError`.
    """
    known = state.tables()
    wanted = list(tables) or [t for t, status in known.items() if status.phase != "removed"]
    if not wanted:
        raise NotFollowingError(
            "there is no table that could be compared",
            where=config.name,
            hint="`lakesync run` reads them; see `lakesync status`",
        )
    for table in wanted:
        _must_be_ready(state, table)
    if rows_per_second is not None:
        limited = config.snapshot.model_copy(update={"rows_per_second": rows_per_second})
        config = config.model_copy(update={"snapshot": limited})
    throttle, turns = Throttle(config), Turns()
    tables_compared = [Compared(config, log, state, table, scope) for table in wanted]
    for compared in tables_compared:
        if compared.mode != "append":
            compared.must_be_whole()

    def run(compared: Compared) -> TableValues:
        if compared.mode == "append":
            return Tally().report(compared, note="mode append: its rows are changes, the ledger counts them")
        one = Comparison(compared, throttle, turns, checkpoint, show_values=show_values)
        return _run(compared, one, turns, follow_s, progress or (lambda _, __: None))

    # What a table waits for, mostly the lake, several can wait for at once; the server adds up one table at a time.
    pool = ThreadPoolExecutor(TABLES_AT_ONCE)
    try:
        futures = [pool.submit(run, compared) for compared in tables_compared]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and (error := future.exception()):
                raise error
        return ValuesReport(tuple(future.result() for future in futures))
    finally:
        turns.end()
        pool.shutdown(cancel_futures=True)
        throttle.close()


def _run(compared: Compared, run: Comparison, turns: Turns, follow_s: float, progress: Progress) -> TableValues:
    """The whole comparison of one table, on connections of its own."""
    began_s = time.monotonic()
    failed = 0
    while not run.is_over:
        connection = connect(compared.config.source, purpose="reconcile", streaming=True)
        try:
            windows = Windows(compared.config, compared.log, compared.state, connection, follow_s)
            while not run.is_over:
                turns.check(compared.table)
                run.step(windows, lambda rows: progress(str(compared.table), rows))
                failed = 0
        except (SourceError, pymysql.MySQLError) as error:
            found = error if isinstance(error, SourceError) else translate(error)
            failed += 1
            _must_be_followed(compared, found)
            if not found.retryable or failed > RETRIES:
                raise found from None
        finally:
            with suppress(pymysql.err.Error, OSError):
                connection.close()
    return run.report(time.monotonic() - began_s)


def _must_be_followed(compared: Compared, error: SourceError) -> None:
    """Raise `NotFollowingError` where a table that cannot be read as it was is not as it was."""
    deadline_s = time.monotonic() + (0 if error.retryable else TOLD_S)
    while True:
        status = compared.state.table(compared.table)
        if status is None or status.phase != "ready":
            hint = (status.error or {}).get("hint") if status else None
            raise NotFollowingError(
                f"the table is {status.phase if status else 'unknown'}: it changed during the comparison",
                where=str(compared.table),
                hint=hint or "see `lakesync status`",
            ) from error
        snapshot = compared.lake.load()
        if snapshot is not None:
            compared.must_be_as_it_was(snapshot)
        if time.monotonic() >= deadline_s:
            return
        time.sleep(0.2)


def recheck(
    config: PipelineConfig,
    log: Log,
    state: State,
    table: TableName,
    keys: Sequence[Key],
    *,
    follow_s: float = FOLLOW_S,
    show_values: bool = False,
) -> TableValues:
    """Compare the rows with these keys of one table, each until it is settled. Raises as `compare`; `ConfigError` for a key that is none
    of the table's."""
    _must_be_ready(state, table)
    began_s = time.monotonic()
    compared = Compared(config, log, state, table, WHOLE)
    compared.must_be_whole()
    suspects = compared.keys_of(keys)
    connection = connect(config.source, purpose="reconcile", streaming=True)
    try:
        source = SourceSide(connection, compared)
        windows = Windows(config, log, state, connection, follow_s)
        settling = Settling(compared, source, LakeSide(compared, source.parts), windows, show_values=show_values)
        tally = Tally()
        tally.judged(settling.settle(suspects))
        tally.rows_in_full = tally.source_rows = source.in_full
        return tally.report(compared, seconds=time.monotonic() - began_s)
    except pymysql.MySQLError as error:
        raise translate(error) from error
    finally:
        connection.close()


def _must_be_ready(state: State, table: TableName) -> None:
    status = state.table(table)
    if status is None:
        raise ConfigError("not a table of this pipeline", where=str(table), hint="`lakesync status` lists them")
    if status.phase != "ready":
        error: dict[str, Any] = status.error or {}
        raise NotFollowingError(
            f"the table is {status.phase}, so there is no position at which it could be compared",
            where=str(table),
            hint=error.get("hint") or "`lakesync status` shows how far it is",
        )
