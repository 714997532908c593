"""A table of ten columns from MySQL to a committed Delta table: the whole process, beside other ways to read it.

Peers that would take minutes read the first million rows only; what is compared is rows a second.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from bench.measure import FailedError, Process, Usage, medians
from bench.peers import debezium
from bench.pipeline import Pipeline
from bench.report import Table, less, thousands
from bench.setting import DATABASE, Setting
from dev.mysql import Installation

OPTIONS = ("snapshot_rows", "turns")

NAME = "snapshot"
SLOW_ROWS = 1_000_000
"""At most so many for peers that are slow."""
COLUMNS = ("", "rows", "s", "rows/s", "CPU s", "server CPU s", "anonymous MiB", "peak MiB", "speed")

LAKESYNC = "`lakesync run --until-current`"
IDLE = "the same with nothing to do"
LESS = "lakesync less its start-up"
TRACED = "lakesync with the trace, its default"
CLIENT = "`mysql --quick`, to /dev/null"
DEBEZIUM, DEBEZIUM_JSON = "Debezium, its own records, dropped", "Debezium, JSON, dropped"
SCRIPT = "script: PyMySQL, pyarrow, deltalake"


def measure(setting: Setting) -> list[Table]:
    """What was used, and the files that came of it."""
    rows = setting.sizes.snapshot_rows
    slow = min(rows, SLOW_ROWS)
    setting.create(NAME, rows)
    turns: dict[str, list[Usage]] = defaultdict(list)
    sizes: list[int] = []
    for turn in range(setting.sizes.turns):
        for name, trace in ((LAKESYNC, False), (TRACED, True)):
            pipeline = Pipeline(setting, f"snapshot-{turn}-{trace:d}", [f"{DATABASE}.{NAME}"], trace=trace)
            turns[name].append(pipeline.catch_up().wait())
            found = pipeline.snapshot()
            if found.rows != rows:
                raise FailedError(f"{found.rows} rows in the lake, {rows} in the source")
            if not trace:
                sizes = [file.size for file in found.files.values()]
                turns[IDLE].append(pipeline.catch_up().wait())
        turns[CLIENT].append(client(setting, f"SELECT * FROM {NAME}", "client"))
        turns[DEBEZIUM].append(_debezium(setting, slow, "connect"))
        turns[DEBEZIUM_JSON].append(_debezium(setting, slow, "json"))
        turns[SCRIPT].append(_script(setting, slow))
    used = {name: medians(of) for name, of in turns.items()}
    used[LESS] = less(used[LAKESYNC], used[IDLE])
    base = rows / used[LAKESYNC].wall_s
    result = Table(f"{rows:,} rows of ten columns into a Delta table", COLUMNS)
    for name in (LAKESYNC, IDLE, LESS, TRACED, CLIENT, DEBEZIUM, DEBEZIUM_JSON, SCRIPT):
        read = 0 if name == IDLE else slow if name in (DEBEZIUM, DEBEZIUM_JSON, SCRIPT) else rows
        result.add(name, *_cells(used[name], read, base))
    return [result, _files(sizes)]


def _cells(used: Usage, rows: int, base: float) -> tuple[str, ...]:
    """`speed` is rows a second against `base`."""
    rate = rows / used.wall_s if rows and used.wall_s else 0.0
    return (
        f"{rows:,}" if rows else "-",
        f"{used.wall_s:.2f}",
        thousands(rate) if rate else "-",
        f"{used.cpu_s:.2f}",
        f"{used.servers_cpu_s:.2f}",
        f"{used.anonymous_mib:.0f}" if used.anonymous_mib else "-",
        f"{used.peak_mib:.0f}" if used.peak_mib else "-",
        f"{rate / base:.2f}" if rate else "-",
    )


def _files(sizes: list[int]) -> Table:
    table = Table("The data files of the Delta table, MiB", ("files", "together", "smallest", "median", "largest"))
    figures = [f"{size / 2**20:.1f}" for size in (sum(sizes), min(sizes), statistics.median(sizes), max(sizes))]
    table.add(str(len(sizes)), *figures)
    return table


def client(setting: Setting, sql: str, name: str) -> Usage:
    """One statement by the plain client; its rows are read and thrown away."""
    login = (f"--socket={setting.server.socket}", "--user=root")
    command = Installation.find().client(
        "mysql", *login, "--quick", "--batch", "--skip-column-names", DATABASE, "-e", sql
    )
    return Process(command, setting.folder(name), servers=(setting.server,), output=Path("/dev/null")).wait()


def _debezium(setting: Setting, rows: int, form: debezium.Form) -> Usage:
    """From its first row on: neither the machine's start nor the connector's is counted."""
    return debezium.read(setting, f"{DATABASE}.{NAME}", debezium.SNAPSHOT, rows, form).reading


def _script(setting: Setting, rows: int) -> Usage:
    folder = setting.folder("script")
    command = [
        sys.executable,
        "-m",
        "bench.peers",
        "snapshot",
        str(setting.server.socket),
        NAME,
        str(rows),
        str(folder / "table"),
    ]
    process = Process(command, folder, servers=(setting.server,))
    used = process.wait()
    if (found := int(process.output.read_text())) != rows:
        raise FailedError(f"the script wrote {found} rows")
    return used
