"""From commit to readable: small transactions at a fixed rate, and when each is in a version of the Delta table.

A change is readable once the version that has it is in the table's log: from then on every reader that opens the table sees
it. A watcher notes when each version appears; which changes it has is read afterwards, from that version. The clock starts
before the transaction is committed.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bench.measure import Process, Usage
from bench.pipeline import Pipeline, wait
from bench.report import Table
from bench.rows import EXPRESSIONS
from bench.setting import DATABASE, Setting

OPTIONS = ("rows", "seconds")
RATE = 1000
"""Changes a second: three updates of random rows, then an insert."""
SIZE = 10
"""Changes of a transaction."""
EVERY = "1s"
SMALL = 100
"""The smaller table is this many times smaller."""
FOLLOW_S = 120.0
"""After the last change, until all are readable."""
WATCH_S = 0.002
SEED = 13

OURS, PEER = f"`lakesync run`, merge.every {EVERY}", "script: mysql-replication, a deltalake `MERGE` every 1 s"


def measure(setting: Setting) -> list[Table]:
    """One table."""
    result = Table(
        f"{RATE:,} changes a second for {setting.sizes.seconds} s, {SIZE} a transaction",
        ("", "rows in table", "median s", "p99 s", "max s", "versions", "CPU s", "peak MiB", "median, ours = 1"),
    )
    for rows in (max(1, setting.sizes.rows // SMALL), setting.sizes.rows):
        ours, peer = _lakesync(setting, rows), _script(setting, rows)
        for name, run in ((OURS, ours), (PEER, peer)):
            result.add(name, f"{rows:,}", *run.cells(), f"{run.median_s / ours.median_s:.2f}")
    return [result]


class Run:
    """Latencies of every change, and what the process took meanwhile."""

    def __init__(self, seconds: Sequence[float], versions: int, used: Usage) -> None:
        self.seconds, self.versions, self.used = sorted(seconds), versions, used

    def at(self, share: float) -> float:
        """The latency that this share of changes does not exceed."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @property
    def median_s(self) -> float:
        """Of all changes."""
        return self.at(0.5)

    def cells(self) -> tuple[str, ...]:
        """For the table."""
        latencies = (f"{self.at(share):.2f}" for share in (0.5, 0.99, 1.0))
        return (*latencies, str(self.versions), f"{self.used.cpu_s:.1f}", f"{self.used.peak_mib:.0f}")


def _lakesync(setting: Setting, rows: int) -> Run:
    table = f"latency_{rows}"
    setting.create(table, rows)
    pipeline = Pipeline(setting, f"latency-{rows}", [f"{DATABASE}.{table}"], settings={"merge": {"every": EVERY}})
    pipeline.catch_up().wait()
    process = pipeline.start("run")
    try:
        started = time.time_ns() // 1000
        state = pipeline.state
        wait(lambda: all(state.nodes()[node].at_us > started for node in ("capture", "merge")), process)
        return _watched(setting, table, rows, pipeline.lake / pipeline.tables[0].folder, process)
    finally:
        process.end()


def _script(setting: Setting, rows: int) -> Run:
    """The peer begins with a table that deltalake wrote."""
    table = f"latency_peer_{rows}"
    setting.create(table, rows)
    folder = setting.folder("latency-script")
    program = [sys.executable, "-m", "bench.peers"]
    Process(
        [*program, "snapshot", str(setting.server.socket), table, str(rows), folder / "table"], folder / "snapshot"
    ).wait()
    follow = [*program, "follow", str(setting.server.port), table, setting.server.gtid_executed, str(folder / "table")]
    process = Process(follow, folder / "run", servers=(setting.server,))
    try:
        wait(lambda: process.output.read_text().strip(), process)
        return _watched(setting, table, rows, folder / "table", process)
    finally:
        process.end()


def _watched(setting: Setting, table: str, rows: int, folder: Path, process: Process) -> Run:
    """Write, watch, stop the process, and read each version."""
    watcher = _Watcher(folder)
    watcher.start()
    try:
        sent = _write(setting, table, rows, process)
        wait(lambda: watcher.has(len(sent)), process, FOLLOW_S)
    finally:
        watcher.end()
    used = process.stop()
    seconds: list[float] = []
    seen = 0
    for version, at in sorted(watcher.appeared.items()):
        newest = _newest_change(folder, version)
        seconds += [at - moment for moment in sent[seen:newest]]
        seen = max(seen, newest)
    return Run(seconds, len(watcher.appeared), used)


class _Watcher(threading.Thread):
    """Notes when each version of a Delta table appears, from the next one on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.appeared: dict[int, float] = {}
        log = folder / "_delta_log"
        self._next = 1 + max(int(path.stem) for path in log.glob("*.json") if path.stem.isdigit())
        self._read, self._newest = 0, 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(WATCH_S):
            while (self.folder / "_delta_log" / f"{self._next:020}.json").exists():
                self.appeared[self._next] = time.monotonic()
                self._next += 1

    def has(self, change: int) -> bool:
        """Whether this change is readable. Each version is read once."""
        version = self._next - 1
        if version in self.appeared and version > self._read:
            self._read, self._newest = version, _newest_change(self.folder, version)
        return self._newest >= change

    def end(self) -> None:
        """No more versions."""
        self._ended.set()
        self.join()


def _newest_change(folder: Path, version: int) -> int:
    import deltalake

    found: Any = pa.table(deltalake.DeltaTable(str(folder), version=version).scan(columns=["change_no"]))
    return int(pc.max(found.column("change_no")).as_py() or 0)


def _write(setting: Setting, table: str, rows: int, process: Process) -> list[float]:
    """Changes number 1, 2, …; when each was sent."""
    dice = random.Random(SEED)
    sent: list[float] = []
    values = ", ".join(("n", "%s", *EXPRESSIONS[2:]))
    with setting.server.root(DATABASE, autocommit=False) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+00:00'")
        began = time.monotonic()
        for first in range(1, RATE * setting.sizes.seconds + 1, SIZE):
            time.sleep(max(0.0, began + first / RATE - time.monotonic()))
            for change in range(first, first + SIZE):
                if change % 4:
                    where = dice.randint(1, rows)
                    cursor.execute(f"UPDATE `{table}` SET change_no = %s WHERE id = %s", (change, where))
                else:
                    insert = f"INSERT INTO `{table}` SELECT {values.replace('% ', '%% ')} FROM (SELECT %s AS n) AS one"
                    cursor.execute(insert, (change, rows + change))
            sent += [time.monotonic()] * SIZE
            connection.commit()
            if first % RATE == 1:
                process.must_run()
    return sent
