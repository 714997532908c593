"""A stream beside a re-read: changes at a fixed rate, and how long each takes to be durable in the log and readable in the lake, first by
itself, then while a whole other table, and at last the very same one, is read again in windows.

The clock starts before a statement is sent. A change is durable once its epoch can be read from the log by another process, and readable once a
version of the Delta table has it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson

from bench.load import Load
from bench.measure import Process
from bench.pipeline import Pipeline, wait
from bench.report import Table, thousands
from bench.setting import DATABASE, Setting
from cdc.log import open_log
from cdc.names import TableName
from cdc.position import GtidSet
from cdc.reads import ReadSpec

OPTIONS = ("rows", "seconds")
RATE = 20_000
"""Row changes a second."""
BATCH = 100
"""Of one transaction."""
EVERY = "1s"
STREAM_SHARE = 10
"""The table that changes is this many times smaller than the one that is read."""
WATCH_S = 0.002
SETTLES_S = 3.0
"""Before anything is measured."""
FOLLOW_S = 300.0


def measure(setting: Setting) -> list[Table]:
    """One table of figures."""
    rows = setting.sizes.rows
    few = max(BATCH * 10, rows // STREAM_SHARE)
    setting.create("read", rows)
    setting.create("busy", few)
    tables = [f"{DATABASE}.busy", f"{DATABASE}.read"]
    pipeline = Pipeline(setting, "reread", tables, settings={"merge": {"every": EVERY}})
    pipeline.catch_up().wait()
    process = pipeline.start("run")
    try:
        result = Table(
            f"{thousands(RATE)} rows a second, {BATCH} a transaction, into a table of {few:,} rows",
            (
                "",
                "seconds",
                "log: median ms",
                "p99 ms",
                "max ms",
                "lake: median s",
                "p99 s",
                "p99, alone = 1",
                "read rows/s",
            ),
        )
        started = time.time_ns() // 1000
        state = pipeline.state
        wait(
            lambda: all(n in state.nodes() and state.nodes()[n].at_us > started for n in ("capture", "merge")), process
        )
        with Load(setting, "busy", few, RATE, BATCH) as load, _Watched(pipeline, load) as seen:
            time.sleep(SETTLES_S)
            alone = _phase(load, seen, lambda: time.sleep(setting.sizes.seconds))
            phases = [("the stream alone", alone, 0)]
            for name, table, count in (
                ("beside a re-read of another table", "read", rows),
                ("… of the same table", "busy", few),
            ):
                took = _phase(load, seen, partial(_read, pipeline, table, process))
                phases.append((f"{name}, {count:,} rows", took, count))
            load.end()
            wait(seen.is_complete, process, FOLLOW_S)
        base = _Run.of(load, seen, alone).log(0.99)
        for name, span, count in phases:
            run = _Run.of(load, seen, span)
            seconds = span[1] - span[0]
            result.add(
                name,
                f"{seconds:.1f}",
                *(f"{run.log(share) * 1000:.0f}" for share in (0.5, 0.99, 1.0)),
                *(f"{run.lake(share):.2f}" for share in (0.5, 0.99)),
                f"{run.log(0.99) / base:.2f}",
                thousands(count / seconds) if count else "-",
            )
        if load.late_s > 1:
            result.title += f"; the source was up to {load.late_s:.1f} s behind the rate"
        return [result]
    finally:
        process.end()


def _phase(load: Load, seen: _Watched, work: Callable[[], None]) -> tuple[float, float]:
    began = time.monotonic()
    work()
    load.check()
    seen.check()
    return began, time.monotonic()


def _read(pipeline: Pipeline, table: str, process: Process) -> None:
    """Read all of it again, into the log."""
    name = TableName(DATABASE, table)
    job = pipeline.state.ask_read(name, name, ReadSpec(), "asked").job

    def done() -> bool:
        read = pipeline.state.read(job)
        assert read is not None
        assert read.phase not in ("failed", "cancelled"), read.error
        return read.phase == "done"

    wait(done, process)


@dataclass
class _Run:
    """Latencies of the transactions that were sent in a span of time."""

    logged: list[float]
    merged: list[float]

    @classmethod
    def of(cls, load: Load, seen: _Watched, span: tuple[float, float]) -> _Run:
        found = cls([], [])
        for number, sent in enumerate(load.sent):
            if span[0] <= sent < span[1]:
                found.logged.append(seen.logged.at(number) - sent)
                found.merged.append(seen.merged.at(number) - sent)
        found.logged.sort()
        found.merged.sort()
        return found

    def log(self, share: float) -> float:
        """The seconds to the log that this share of them does not exceed."""
        return self.logged[min(len(self.logged) - 1, int(share * len(self.logged)))]

    def lake(self, share: float) -> float:
        """… to the lake."""
        return self.merged[min(len(self.merged) - 1, int(share * len(self.merged)))]


@dataclass
class _Seen:
    """Up to which transaction all were there, and when."""

    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, number: int, at: float) -> None:
        if not self.numbers or number > self.numbers[-1]:
            self.numbers.append(number)
            self.times.append(at)

    def at(self, number: int) -> float:
        """When this one was."""
        return self.times[bisect_left(self.numbers, number)]

    def has(self, number: int) -> bool:
        return bool(self.numbers) and self.numbers[-1] >= number


class _Watched:
    """Looks at the log and at the lake's table all the time."""

    def __init__(self, pipeline: Pipeline, load: Load) -> None:
        self._pipeline, self._load = pipeline, load
        self.logged, self.merged = _Seen(), _Seen()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(look,), daemon=True) for look in (self._log, self._lake)
        ]

    def __enter__(self) -> _Watched:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def is_complete(self) -> bool:
        """Whether everything that was sent is in both."""
        self.check()
        last = len(self._load.sent) - 1
        return self.logged.has(last) and self.merged.has(last)

    def check(self) -> None:
        """Raise what a thread raised."""
        if self._error is not None:
            raise self._error

    def _run(self, look: Callable[[], None]) -> None:
        try:
            look()
        except BaseException as error:
            self._error = error

    def _number(self, gtids: GtidSet) -> int:
        """The last of the load's transactions that is in the set, from 0."""
        found = next((b for a, b in gtids.sids.get(self._load.uuid, ()) if a <= self._load.first), 0)
        return found - self._load.first

    def _log(self) -> None:
        with closing(open_log(self._pipeline.log, self._pipeline.name)) as log:
            newest = -1
            while not self._ended.wait(WATCH_S):
                record = log.newest()
                at = time.monotonic()
                if record is not None and record.number != newest:
                    newest = record.number
                    self.logged.add(self._number(record.end.gtids), at)

    def _lake(self) -> None:
        folder = self._pipeline.lake / self._pipeline.tables[0].folder / "_delta_log"
        version = max(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())
        while not self._ended.wait(WATCH_S):
            while (path := folder / f"{version + 1:020}.json").exists():
                at = time.monotonic()
                version += 1
                self.merged.add(self._number(_contained(path)), at)


def _contained(path: Path) -> GtidSet:
    for line in path.read_bytes().splitlines():
        with suppress(KeyError):
            return GtidSet.parse(orjson.loads(line)["commitInfo"]["lakesync"]["position"]["gtids"])
    return GtidSet({})
