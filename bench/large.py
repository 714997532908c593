"""One transaction of two gigabytes: what capture's memory comes to, its own (anonymous) and not what is mapped from files."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from bench.measure import FailedError, Process, Usage
from bench.pipeline import Pipeline
from bench.report import Table, thousands
from bench.setting import DATABASE, Setting

OPTIONS = ("rows",)

ROW_BYTES = 2048
TABLE = "large"
SAMPLE_S = 0.02


def measure(setting: Setting) -> list[Table]:
    """One table."""
    rows = setting.sizes.rows
    setting.server.execute(f"CREATE TABLE {DATABASE}.{TABLE} (id BIGINT NOT NULL PRIMARY KEY, filler TEXT NOT NULL)")
    pipeline = Pipeline(setting, "large", [f"{DATABASE}.{TABLE}"])
    pipeline.add()
    _write(setting, rows)
    gtids = setting.server.gtid_executed
    process = pipeline.start("run", "--node", "capture")
    with _Sampler(process) as sampler:
        try:
            pipeline.wait_logged(gtids, process)
            wall_s = process.elapsed_s
            used = replace(process.stop(), wall_s=wall_s)
        finally:
            process.end()
    if (found := pipeline.logged()) != rows:
        raise FailedError(f"the log counts {found} changes, {rows} were made")
    return [_table(rows, used, sampler.peak_mib)]


def _table(rows: int, used: Usage, anonymous_mib: float) -> Table:
    size = rows * ROW_BYTES
    result = Table(
        f"One transaction of {rows:,} rows, {size / 1e9:.2f} GB, into the embedded log",
        ("", "s", "MB/s", "CPU s", "peak MiB", "of it anonymous, MiB"),
    )
    speed = thousands(size / 1e6 / used.wall_s)
    figures = (f"{used.wall_s:.2f}", speed, f"{used.cpu_s:.2f}", f"{used.peak_mib:.0f}", f"{anonymous_mib:.0f}")
    result.add("`lakesync run --node capture`", *figures)
    return result


def _write(setting: Setting, rows: int) -> None:
    step = 20_000
    connection = setting.server.root(DATABASE, autocommit=False)
    with connection, connection.cursor() as cursor:
        cursor.execute(f"SET SESSION cte_max_recursion_depth = {step}")
        for first in range(1, rows + 1, step):
            last = min(first + step - 1, rows)
            numbers = f"SELECT {first} AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}"
            cursor.execute(
                f"INSERT INTO {TABLE} WITH RECURSIVE numbers AS ({numbers}) "
                f"SELECT n, REPEAT(HEX(CRC32(n) | 0x10000000), {ROW_BYTES // 8}) FROM numbers"
            )
        connection.commit()


class _Sampler(threading.Thread):
    """The largest RssAnon of the process that a `Process` measures."""

    def __init__(self, process: Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._ended = threading.Event()
        self.peak_mib = 0.0

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            for pid in self._process.measured():
                self.peak_mib = max(self.peak_mib, _anonymous_mib(pid))

    def __enter__(self) -> _Sampler:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.join()


def _anonymous_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024
