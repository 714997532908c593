"""Windows of a comparison in the log: from an epoch that the source has executed, over a mark, to a version of the lake behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pymysql
from pymysql.cursors import Cursor

from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord
from cdc.errors import NotFollowingError
from cdc.lake import manifest
from cdc.lake.deltalog import Applied, Snapshot
from cdc.log import captured
from cdc.log.base import Log
from cdc.names import TableName
from cdc.position import BinlogEnd
from cdc.source.connection import translated
from cdc.source.server import Server
from cdc.state import Read, State
from reconcile.values.compared import Compared
from reconcile.values.keysets import Among

POLL_S = 0.2
ALIVE_S = 15.0
"""A merger whose last sign of life is older than this is not running."""


@dataclass(frozen=True)
class Mark:
    """The end of a server's binary log, as it was after something was read there."""

    server: str
    end: BinlogEnd


@dataclass(frozen=True)
class Closing:
    """The first version of the lake that was found behind a mark, and what the log has between the opening and it."""

    snapshot: Snapshot
    applied: Applied
    touched: pa.Table
    """Keys that the log touched in the window, old and new, each once."""
    truncated: frozenset[str]
    """Shards that were truncated in the window."""

    def moved(self, keys: pa.Table) -> npt.NDArray[np.bool_]:
        """Of each of these keys whether it was touched."""
        found = self._touched(keys)
        if self.truncated:
            shards: Any = pc.is_in(keys.column(0), value_set=pa.array(sorted(self.truncated), pa.string()))
            found |= np.asarray(shards.to_numpy(), np.bool_)
        return found

    @cached_property
    def _touched(self) -> Among:
        return Among(self.touched)


class Windows:
    """Opens and closes windows in the log; `connection` is the one that reads the source."""

    def __init__(
        self, config: PipelineConfig, log: Log, state: State, connection: pymysql.Connection[Any], follow_s: float
    ) -> None:
        self.config, self.log, self.state, self.follow_s = config, log, state, follow_s
        self.connection = connection
        self.server = Server(connection)

    def open(self) -> CommitRecord:
        """The newest whole epoch, once the source shows all of it. Raises `NotFollowingError`."""
        known = captured.read(self.log)
        if known is None:
            raise NotFollowingError("the log is empty", where=self.config.name, hint="start `lakesync run`")
        record = known.record  # whole: of a transaction in part the window would miss the changes of its first parts
        if not self.server.wait_visible(record.end, self.follow_s):
            raise NotFollowingError(
                "the source has not executed what the log has",
                where=self.config.name,
                hint="is this the server that capture reads?",
            )
        return record

    @contextmanager
    def view(self) -> Iterator[Mark]:
        """One read view of the source on the connection, and the mark: everything that the view shows is before it."""
        connection = self.connection
        with translated(connection), connection.cursor(Cursor) as cursor:
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        try:
            yield self.mark()
        except BaseException:
            # In the middle of an answer there is no other way to end the transaction.
            with suppress(pymysql.err.Error, OSError):
                connection.rollback()
            raise
        with translated(connection):
            connection.rollback()

    def mark(self) -> Mark:
        """The end of the binary log now."""
        end = self.server.binlog_end()
        return Mark(self.server.identity().uuid, end)

    def close(self, opening: CommitRecord, mark: Mark, table: Compared, stop: threading.Event | None = None) -> Closing:
        """The first lake version found that has passed the mark. Does not use the connection. Raises `NotFollowingError`, also where
        `stop` is set meanwhile."""
        stop = stop or threading.Event()
        deadline = time.monotonic() + self.follow_s
        awaited: set[str] | None = None
        snapshot: Snapshot | None = None
        while True:
            # What could not be completed is in the lake once it is read again; what comes later is of keys that the window touches.
            again = {r.job for r in self.state.reads_of("repair") if r.target == table.table and _comes(r)}
            self.must_be_ready(table.table)
            snapshot = table.lake.refresh(snapshot) if snapshot else table.lake.load()
            if snapshot is None:
                raise NotFollowingError("the lake has no such table any more", where=str(table.table))
            found = manifest.read(self.config.lake_root, self.config.name)
            applied = manifest.carried(table.table, snapshot, found)
            if applied is not None and self._is_behind(applied, mark) and applied.epoch.number >= opening.number:
                # By number too: an epoch that only adds a table ends where the one before it did.
                if awaited is None:
                    awaited = again
                if not awaited & again:
                    self.must_be_ready(table.table)  # what was loaded is not of a table that is made anew
                    table.must_be_as_it_was(snapshot)
                    return Closing(snapshot, applied, *table.touched(opening, applied))
            self.must_follow(table.table, deadline)
            if stop.wait(POLL_S):
                raise NotFollowingError("the comparison ended", where=str(table.table))

    @staticmethod
    def _is_behind(applied: Applied, mark: Mark) -> bool:
        """Whether it has everything before the mark; of another server's binary log nobody can tell."""
        position = applied.position
        if position.server_uuid != mark.server or not position.whole or not position.end.same_log(mark.end):
            return False
        return position.end >= mark.end

    def must_follow(self, table: TableName, deadline: float) -> None:
        """Raise `NotFollowingError` where waiting is of no use."""
        merger = self.state.nodes().get("merge")
        age = time.time() - merger.at_us / 1e6 if merger else None
        if age is None or age > ALIVE_S:
            last = "never seen" if age is None else f"last seen {age:,.0f} s ago"
            raise NotFollowingError(
                f"the lake does not follow: no merger is running ({last})",
                where=str(table),
                hint="start `lakesync run`",
            )
        if time.monotonic() > deadline:
            raise NotFollowingError(
                f"the lake did not reach the source's position within {self.follow_s:.0f} s",
                where=str(table),
                hint="see the lag in `lakesync status`, and try again",
            )

    def must_be_ready(self, table: TableName) -> None:
        """Raise `NotFollowingError` where the lake is not kept at positions of the source."""
        status = self.state.table(table)
        if status is None or status.phase != "ready":
            hint = (status.error or {}).get("hint") if status else None
            raise NotFollowingError(
                f"the lake does not follow: the table is {status.phase if status else 'unknown'}",
                where=str(table),
                hint=hint or "see `lakesync status`",
            )


def _comes(read: Read) -> bool:
    """Whether its rows are to come, or are not known to be in the lake."""
    return read.open or read.phase == "done"
