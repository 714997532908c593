"""Progress of what takes long: bars on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cdc.journal import logger
from cdc.names import TableName
from cdc.state import State, TableStatus

BAR_EVERY_S = 0.5
LINE_EVERY_S = 10.0

LOG = logger("snapshot")


class Snapshots:
    """Called by the daemon's supervisor, again and again; shows every table that is being read."""

    def __init__(self, bars: bool) -> None:
        self._progress = _bars() if bars else None
        self._tasks: dict[TableName, TaskID] = {}
        self._reading: dict[TableName, int] = {}
        self._next = 0.0

    def __call__(self, state: State) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (BAR_EVERY_S if self._progress else LINE_EVERY_S)
        statuses = state.tables()
        for table, status in statuses.items():
            if status.phase == "snapshot":
                self._show(status)
            elif table in self._reading:
                self._done(status)

    def _show(self, status: TableStatus) -> None:
        self._reading[status.table] = status.rows_read
        total = max(status.rows_estimate, status.rows_read) or None
        if self._progress is None:
            LOG.info("snapshot-progress", table=str(status.table), rows=status.rows_read, about=total or "unknown")
            return
        self._progress.start()
        if status.table not in self._tasks:
            self._tasks[status.table] = self._progress.add_task(str(status.table), total=None)
        self._progress.update(self._tasks[status.table], completed=status.rows_read, total=total)

    def _done(self, status: TableStatus) -> None:
        del self._reading[status.table]
        task = self._tasks.pop(status.table, None)
        if self._progress is None or task is None:
            return
        self._progress.update(task, completed=status.rows_read, total=status.rows_read or 1)
        if not self._reading:
            self.close()
            self._progress = _bars()

    def close(self) -> None:
        """Leave the bars as they are."""
        if self._progress:
            self._progress.stop()


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} rows"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def reading(show: bool) -> Iterator[Callable[[str, int], None] | None]:
    """Bars for tables that are read and compared, on a terminal; nothing elsewhere."""
    if not show or not sys.stderr.isatty():
        yield None
        return
    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("comparing {task.description}"),
        TextColumn("{task.completed:,.0f} rows"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:

        def told(table: str, rows: int) -> None:
            if table not in tasks:
                tasks[table] = progress.add_task(table, total=None)
            progress.update(tasks[table], completed=rows)

        yield told
