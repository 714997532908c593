"""Progress of what takes long: bars on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cdc import reads
from cdc.journal import logger
from cdc.reads import Read
from cdc.state import State
from cdc.status import percent

BAR_EVERY_S = 0.5
LINE_EVERY_S = 10.0

LOG = logger("snapshot")
_WHY = {
    "asked": "again",
    "backfill": "what was there before",
    "first": "for the first time",
    "shard": "shard",
    "adopt": "adopted",
    "repair": "repair",
}


class Snapshots:
    """Called by the daemon's supervisor, again and again; shows every table that is being read."""

    def __init__(self, bars: bool) -> None:
        self._progress = _bars() if bars else None
        self._tasks: dict[str, TaskID] = {}
        self._reading: dict[str, int] = {}
        self._next = 0.0

    def __call__(self, state: State) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (BAR_EVERY_S if self._progress else LINE_EVERY_S)
        node = state.nodes().get("snapshot")
        paces = node.info.get("paces", {}) if node is not None else {}
        found = {
            str(t): (s.rows_read, s.rows_estimate, paces.get(t.id, {}))
            for t, s in state.tables().items()
            if s.phase == "snapshot"
        }
        for read in state.reads(open_only=True):
            if read.phase == "running":
                found[f"{read.table}, {_WHY[read.why]}"] = read.rows_read, read.rows_estimate, reads.view(read)
        for name, (rows, about, pace) in found.items():
            self._show(name, rows, about, pace)
        for name in [n for n in self._reading if n not in found]:
            self._done(name)

    def _show(self, name: str, rows: int, about: int, pace: Mapping[str, Any]) -> None:
        """`pace`: `rows_per_second` and `seconds_left`, as far as they are known."""
        self._reading[name] = rows
        total = max(rows, about) or None
        rate = pace.get("rows_per_second")
        if self._progress is None:
            told = {"percent": percent(rows, about)} | {k: pace.get(k) for k in ("rows_per_second", "seconds_left")}
            known = {key: value for key, value in told.items() if value is not None}
            LOG.info("snapshot-progress", table=name, rows=rows, about=total or "unknown", **known)
            return
        self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, rate="")
        self._progress.update(self._tasks[name], completed=rows, total=total, rate=f"{rate:,}/s" if rate else "")

    def _done(self, name: str) -> None:
        rows = self._reading.pop(name)
        task = self._tasks.pop(name, None)
        if self._progress is None or task is None:
            return
        self._progress.update(task, completed=rows, total=rows or 1)
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
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def rereading(show: bool) -> Iterator[Callable[[Sequence[Read]], None]]:
    """Bars for jobs that are waited for, on a terminal; a line now and then elsewhere."""
    if not show:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    tasks: dict[str, TaskID] = {}
    with _bars() as progress:

        def told(jobs: Sequence[Read]) -> None:
            for read in jobs:
                if read.job not in tasks:
                    tasks[read.job] = progress.add_task(str(read.table), total=None, rate="")
                rate = reads.view(read)["rows_per_second"]
                total = read.rows_read if read.phase == "done" else read.rows_estimate
                progress.update(
                    tasks[read.job],
                    description=str(read.table) if read.phase == "running" else f"{read.table} ({read.phase})",
                    completed=read.rows_read,
                    total=max(total, read.rows_read) or None,
                    rate=f"{rate:,}/s" if rate else "",
                )

        yield told


class _Lines:
    """Progress where there is no terminal."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + LINE_EVERY_S

    def __call__(self, jobs: Sequence[Read]) -> None:
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + LINE_EVERY_S
        for read in jobs:
            shown = reads.view(read)
            parts = [f"{read.table}: {read.phase}, {read.rows_read:,} rows"]
            parts += [f"{shown['percent']} %"] if shown["percent"] is not None else []
            parts += [f"{shown['rows_per_second']:,} rows/s"] if shown["rows_per_second"] else []
            parts += [f"{shown['seconds_left']} s left"] if shown["seconds_left"] is not None else []
            sys.stderr.write(", ".join(parts) + "\n")


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
