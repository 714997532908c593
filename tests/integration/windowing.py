"""A reader of windows, as plain as can be: one SELECT a window, on the server that capture reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import pyarrow as pa

from cdc.epoch import CommitRecord, EpochId, Op, WindowId
from cdc.names import TableName
from cdc.source import results
from cdc.source.connection import connect
from cdc.source.server import Server
from cdc.window import Delivery, Opened, Window, WindowCancelled
from tests.contract.binlog import source
from tests.integration.capturing import Rig

WITHIN_S = 20.0


class Reading(AbstractContextManager["Reading"]):
    """A job's windows over one table of a rig's server."""

    def __init__(self, rig: Rig, table: TableName, job: str = "job") -> None:
        self.rig, self.table, self.job = rig, table, job
        self.number = 0
        self.connection = connect(source(rig.server), purpose="test")
        self.server = Server(connect(source(rig.server), purpose="test"))
        self.stop = threading.Event()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def ask(self) -> Window:
        self.number += 1
        return self.rig.windows.ask(WindowId(self.job, self.number), self.table)

    def open(self) -> tuple[Window, Opened]:
        """A window, open, and the server shows everything up to its C0."""
        window = self.ask()
        opened = window.wait_open(self._timer())
        assert self.server.wait_executed(opened.c0.gtids, WITHIN_S)
        return window, opened

    def read(self, opened: Opened, where: str = "1") -> list[pa.RecordBatch]:
        columns = results.select_list(opened.schema)
        sql = f"SELECT {columns} FROM {self.table.quoted} WHERE {where}"
        plans = opened.schema.plans()
        return list(results.read(self.connection, lambda text: (sql, ()), plans))

    def deliver(self, window: Window, rows: list[pa.RecordBatch], gone: pa.Table | None = None, **given: Any) -> None:
        mark = given.get("mark") or self.server.binlog_end()
        uuid = given.get("mark_server") or self.server.identity().uuid
        window.deliver(Delivery(rows, gone, mark, uuid, {"at": window.id.number}))

    def emitted(self, window: Window) -> EpochId:
        return window.wait_emitted(self._timer())

    def whole(self, where: str = "1") -> EpochId:
        """One window, from beginning to end."""
        window, opened = self.open()
        self.deliver(window, self.read(opened, where))
        return self.emitted(window)

    def _timer(self) -> threading.Event:
        """What ends a wait that lasts too long."""
        stop = threading.Event()
        timer = threading.Timer(WITHIN_S, stop.set)
        timer.daemon = True
        timer.start()
        return stop


def cancelled(window: Window, deliver: Callable[[], None] = lambda: None) -> str:
    """Why it is; maybe before it could be delivered."""
    stop = threading.Event()
    timer = threading.Timer(20, stop.set)
    timer.start()
    try:
        deliver()
        window.wait_emitted(stop)
    except WindowCancelled as reason:
        return str(reason)
    finally:
        timer.cancel()
    raise AssertionError("it was not cancelled")


def windows(rig: Rig) -> list[tuple[CommitRecord, Any]]:
    """Every window in the log, with its epoch."""
    return [(r, entry) for r in rig.records() for entries in r.windows.values() for entry in entries]


def lake(
    rig: Rig, table: TableName, before: Mapping[Any, Any] | None = None, key: int = 0
) -> dict[Any, tuple[Any, ...]]:
    """What the log makes of a table that was `before`."""
    left = dict(before or {})
    for _, op, _, _, cells in sorted(rig.rows(table), key=lambda row: (row[3], row[1] != Op.MOVE_OUT)):
        if op in (Op.DELETE, Op.MOVE_OUT):
            left.pop(cells[key], None)
        else:
            left[cells[key]] = cells
    return left
