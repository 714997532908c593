"""Rows are read again while a workload changes these very rows: every version of the lake is judged, at its own position.

`WINDOWS` says how many windows over all; `LAKESYNC_TEST_SEED` repeats a run as far as threads let it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import snapshot
from cdc.capture.capture import Capture
from cdc.clock import SystemClock
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord
from cdc.log import open_log
from cdc.log.base import Log
from cdc.merge.merger import Merger
from cdc.reads import Key, Read, ReadSpec
from cdc.state import State
from cdc.window import Windows
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from snapshot import reread
from snapshot.chunks import bound_from_json
from tests.faults.acks import Acks, slow
from tests.faults.keykinds import Kind, kinds
from tests.faults.rig import seed
from tests.faults.torture import SCHEMA, TABLE, Lake, Oracle, Workload, create, executed

WINDOWS = int(os.environ.get("WINDOWS") or 1500)
"""Of all tests that are not for every change."""
IN_CI = 150
KINDS = tuple(kind.name for kind in kinds(""))
COLLATIONS = {"mysql": "utf8mb4_0900_ai_ci", "mariadb": "utf8mb4_uca1400_ai_ci"}
ENDS_WITHIN_S = 60.0
ROUNDS_A_RUN = 6
"""Then the nodes are ended, and started with other settings."""


class Nodes:
    """The pipeline's nodes in one process, each in a thread with a log of its own."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.state = State(config.state)
        self.windows = Windows()
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Nodes:
        config, state, stop = self.config, self.state, self._stop
        nodes: dict[str, Callable[[Log], object]] = {
            "capture": lambda log: Capture(config, log, state, SystemClock(), self.windows).run(stop),
            "merge": lambda log: Merger(config, log, state, SystemClock()).run(stop),
            "snapshot": lambda log: snapshot.run(config, log, state, stop),
            "reread": lambda log: reread.run(config, log, state, self.windows, stop),
        }
        for name, node in nodes.items():
            self._threads.append(threading.Thread(target=self._run, args=(node,), name=name))
            self._threads[-1].start()
        return self

    def _run(self, node: Callable[[Log], object]) -> None:
        log = open_log(self.config.log, self.config.name)
        try:
            node(log)
        except BaseException as error:
            self.errors.append(error)
        finally:
            log.close()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(ENDS_WITHIN_S)
        assert not any(thread.is_alive() for thread in self._threads), "a node does not end"
        self.check()

    def check(self) -> None:
        """Raise what a node raised, and what stopped a table."""
        if self.errors:
            raise self.errors[0]
        for status in self.state.tables().values():
            assert status.phase != "stopped", status.error

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait for it."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.check()
            assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
            time.sleep(0.01)


@dataclass(frozen=True)
class Closed:
    """A window of which it is known which keys it made right, and from which epoch on."""

    epoch: int
    has: Callable[[str, bool], bool]


class Ranks:
    """The order of all keys, as the server has it: those that are equal to it share a place."""

    def __init__(self, server: SqlServer, kind: Kind) -> None:
        self.kind = kind
        with server.root(SCHEMA) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE u ({kind.columns})")
            for key in (*kind.keys, kind.spare):
                cursor.execute(f"INSERT INTO u VALUES ({', '.join(key)})")
            columns = ", ".join(kind.key)
            cursor.execute(
                f"SELECT {kind.text.format('')}, DENSE_RANK() OVER (ORDER BY {columns}), {columns} FROM u ORDER BY 2"
            )
            rows = cursor.fetchall()
        self.of = {str(row[0]): int(row[1]) for row in rows}
        self.keys: list[Key] = [tuple(map(_asked, row[2:])) for row in rows]
        self.names: list[str] = [str(row[0]) for row in rows]

    def segment(self, data: list[Any]) -> Callable[[str], bool]:
        """Whether a key is in a segment of a job's progress."""
        after, to, included = bound_from_json(data[0]), bound_from_json(data[1]), bool(data[2])
        low = 0 if after is None else self.of[self.kind.printed(*after)] + (not included)
        high = 1 << 30 if to is None else self.of[self.kind.printed(*to)]
        return lambda key: low <= self.of[key] <= high


def _asked(value: Any) -> int | str:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, int) else str(value)


class Torture:
    """One table, one workload, rounds of drift and of reading again."""

    def __init__(
        self, folder: Path, server: SqlServer, kind: Kind, chosen: int, rows_per_second: int | None = None
    ) -> None:
        self.rows_per_second = rows_per_second
        self.folder, self.server, self.kind = folder, server, kind
        self.dice = random.Random(chosen)
        create(server, kind)
        self.ranks = Ranks(server, kind)
        self.workload = Workload(server, kind, chosen)
        self.oracle = Oracle(server, Lake(folder / "lake", kind))
        self.windows = self.rounds = 0
        self._jobs: dict[str, Read] = {}
        self._closed: list[Closed] = []
        self._seen = 0
        self._drift_epoch = 0

    def config(self) -> PipelineConfig:
        """Other settings every time."""
        dice = self.dice
        return PipelineConfig.model_validate(
            {
                "name": "torture",
                "source": {"url": self.server.url()},
                "log": f"sqlite://{self.folder}/log.db",
                "lake": str(self.folder / "lake"),
                "state": self.folder / "state",
                "capture": {"linger": f"{dice.choice((1, 5, 20))}ms", "idle": "100ms"},
                "merge": {"every": "50ms"},
                "snapshot": {"chunk_rows": 1000, "window_rows": dice.choice((1, 1, 2, 3, 5, 10, 50)), "readers": dice.choice((1, 2, 3)), "rows_per_second": self.rows_per_second},
                "tables": [str(TABLE)],
            }
        )  # fmt: skip

    def run(self, windows: int) -> None:
        """So many windows, at least. Raises `AssertionError` for what is wrong."""
        with Nodes(self.config()) as nodes:
            nodes.state.set_table(TABLE, "new")
            nodes.until(lambda: self._phase(nodes) == "ready", "the table is ready")
        with self.workload:
            while self.windows < windows:
                with Nodes(self.config()) as nodes:
                    for _ in range(ROUNDS_A_RUN):
                        self.round(nodes)
                        if self.windows >= windows:
                            break
                    with self.quiet(nodes):
                        self.judge()
                        lake, source = self.oracle.lake.rows(), self.oracle.history.at(self.server.executed)
                        assert lake == source, "not equal at the end"
                        assert source == self.source(), "the history is not what the table has"

    @staticmethod
    def _phase(nodes: Nodes) -> str:
        status = nodes.state.table(TABLE)
        return status.phase if status else "new"

    def source(self) -> dict[str, str]:
        """The table as it is now."""
        key = self.kind.text.format("")
        return {str(k): v for k, v in self.server.execute(f"SELECT {key}, CONCAT(v, '/', w) FROM {SCHEMA}.t")}

    @contextmanager
    def quiet(self, nodes: Nodes) -> Iterator[None]:
        """The workload rests, and the lake has everything."""
        with ExitStack() as held:
            held.enter_context(self.workload.paused())
            wanted = executed_all(self.server.executed)
            nodes.until(lambda: self._merged(nodes, wanted), "the lake is at the end of the binary log")
            yield

    def _merged(self, nodes: Nodes, wanted: Callable[[str], bool]) -> bool:
        from cdc.lake import manifest

        found = manifest.read(nodes.config.lake_root, nodes.config.name)
        return found is not None and wanted(str(found.applied.position.gtids))

    def round(self, nodes: Nodes) -> None:
        """Drift, and reading again until it is gone."""
        with self.quiet(nodes):
            self.judge()
            newest = self._newest(nodes)
            self._drift_epoch = newest
            self._closed.clear()
            self.workload.drift(self.dice.randrange(1, 12))
            self.oracle.drifted()
        jobs = [self._ask(nodes, self._spec()) for _ in range(self.dice.randrange(6))]
        jobs.append(self._ask(nodes, ReadSpec()))
        nodes.until(lambda: all(self._done(nodes, job) for job in jobs), "all is read again", 120)
        whole = nodes.state.read(jobs[-1].job)
        assert whole is not None
        assert whole.last is not None
        self._closed.append(Closed(whole.last.number, lambda key, there: True))
        self.rounds += 1

    def _ask(self, nodes: Nodes, spec: ReadSpec) -> Read:
        read = nodes.state.ask_read(TABLE, TABLE, spec, "asked")
        self._jobs[read.job] = read
        return read

    def _done(self, nodes: Nodes, job: Read) -> bool:
        read = nodes.state.read(job.job)
        assert read is not None
        assert read.phase not in ("failed", "cancelled"), read
        return read.phase == "done"

    def _spec(self) -> ReadSpec:
        keys = self.ranks.keys
        if self.dice.random() < 0.4:
            return ReadSpec(keys=tuple(self.dice.sample(keys, self.dice.randrange(1, len(keys)))))
        low, high = sorted(self.dice.sample(range(len(keys)), 2))
        return ReadSpec(low=keys[low] if self.dice.random() < 0.8 else None, high=keys[high])

    @staticmethod
    def _newest(nodes: Nodes) -> int:
        log = open_log(nodes.config.log, nodes.config.name)
        try:
            newest = log.newest()
            return newest.number if newest else 0
        finally:
            log.close()

    # -- judging -------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """All that came since."""
        config = self.config()
        log = open_log(config.log, config.name)
        try:
            for record in log.records(after=self._seen):
                self._windows_of(record)
                self._seen = record.number
        finally:
            log.close()
        self.oracle.judge(self._read_by)
        self.oracle.check()

    def _windows_of(self, record: CommitRecord) -> None:
        for entry in record.windows.get(TABLE.id, ()):
            self.windows += 1
            data = entry.progress["segment"]
            if data is not None and record.number > self._drift_epoch:
                self._closed.append(Closed(record.number, self._made_right(data, entry.id.job)))

    def _made_right(self, segment: list[Any], job: str) -> Callable[[str, bool], bool]:
        if len(segment) == 2:
            asked = self._jobs[job].spec.keys[segment[0] : segment[1]]
            names = frozenset(self.ranks.names[self.ranks.keys.index(key)] for key in asked)
            return lambda key, there: key in names
        # Which keys that are gone a range has seen is a matter of bytes: where these order otherwise, it is known of all ranges only.
        inside, ordered = self.ranks.segment(segment), self.kind.ordered
        return lambda key, there: (there or ordered) and inside(key)

    def _read_by(self, epoch: int) -> Callable[[str, bool], bool]:
        closed = [c for c in self._closed if c.epoch <= epoch]
        return lambda key, there: any(c.has(key, there) for c in closed)


def executed_all(gtids: str) -> Callable[[str], bool]:
    """Whether a set has all of another."""

    def all_of(other: str) -> bool:
        contains = executed(other)
        for part in filter(None, (p.strip() for p in gtids.split(","))):
            if ":" not in part:
                if not contains(part):
                    return False
                continue
            sid, *intervals = part.split(":")
            if not all(contains(f"{sid}:{n}") for i in intervals for n in i.split("-")):
                return False
        return True

    return all_of


def torture(folder: Path, server: SqlServer, name: str, windows: int, rows_per_second: int | None = None) -> None:
    """Run it, and say what was seen."""
    chosen = seed()
    kind = next(kind for kind in kinds(COLLATIONS[server.name]) if kind.name == name)
    run = Torture(folder, server, kind, chosen, rows_per_second)
    began = time.monotonic()
    run.run(windows)
    print(
        f"{server.name} {name}: seed {chosen}, {run.windows} windows, {run.rounds} rounds, {run.oracle.versions} versions judged,"
        f" {run.workload.transactions} transactions, {time.monotonic() - began:.0f} s"
    )


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[SqlServer]:
    """A server of the test's own, by name: transactions become visible in any order where that can be had."""
    if request.param == "mysql":
        with MySQLServer(options=["--binlog-order-commits=OFF"]) as mysql:
            yield mysql
        return
    with MariaDBServer() as mariadb:
        yield mariadb


BOTH = pytest.mark.parametrize("server", ["mysql", "mariadb"], indirect=True)


@pytest.mark.ci
@BOTH
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["text"])
def test_windows_late_acknowledgements(server: SqlServer, tmp_path: Path, name: str) -> None:
    """A commit is in the binary log, and sent to capture, some time before anyone sees it."""
    with Acks(server, slow(1)):
        torture(tmp_path, server, name, IN_CI)


@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["mysql"], indirect=True)
@pytest.mark.parametrize("name", ["int", "composite"])
def test_windows(server: SqlServer, tmp_path: Path, name: str) -> None:
    torture(tmp_path, server, name, IN_CI)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("server", ["mysql"], indirect=True)
def test_windows_at_a_slow_pace(server: SqlServer, tmp_path: Path) -> None:
    """What is read is far behind C0, and far before the mark."""
    torture(tmp_path, server, "text", IN_CI, rows_per_second=300)


@BOTH
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
@pytest.mark.parametrize("name", KINDS)
def test_many_windows(server: SqlServer, tmp_path: Path, name: str, late: bool) -> None:
    windows = WINDOWS // len(KINDS) // 4
    with Acks(server, slow(1)) if late else nullcontext():
        torture(tmp_path, server, name, windows)
