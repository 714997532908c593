"""A table of ten columns from MySQL to a committed Delta table: the whole process, beside two other ways to read it."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from bench.measure import FailedError, Process, Usage, medians
from bench.pipeline import Pipeline
from bench.report import USAGE, Table, less, usage_cells
from bench.setting import DATABASE, TABLE, Setting
from dev.mysql import Installation

OPTIONS = ("rows", "turns")

LAKESYNC = "`lakesync run --until-current`"
IDLE = "the same with nothing to do"
LESS = "lakesync less its start-up"
TRACED = "lakesync with the trace, its default"
CLIENT = "`mysql --quick`, to /dev/null"
SCRIPT = "script: PyMySQL, pyarrow, deltalake"


def measure(setting: Setting) -> list[Table]:
    """One table."""
    rows, table = setting.sizes.rows, setting.table
    turns: dict[str, list[Usage]] = defaultdict(list)
    for turn in range(setting.sizes.turns):
        for name, trace in ((LAKESYNC, False), (TRACED, True)):
            pipeline = Pipeline(setting, f"snapshot-{turn}-{trace:d}", [table], trace=trace)
            turns[name].append(pipeline.catch_up().wait())
            if (found := pipeline.snapshot().rows) != rows:
                raise FailedError(f"{found} rows in the lake, {rows} in the source")
            if not trace:
                turns[IDLE].append(pipeline.catch_up().wait())
        turns[CLIENT].append(client(setting, f"SELECT * FROM {TABLE}", "client"))
        turns[SCRIPT].append(_script(setting))
    found_of = {name: medians(used) for name, used in turns.items()}
    found_of[LESS] = less(found_of[LAKESYNC], found_of[IDLE])
    result = Table(f"{rows:,} rows of ten columns into a Delta table", ("", *USAGE))
    for name in (LAKESYNC, IDLE, LESS, TRACED, CLIENT, SCRIPT):
        result.add(name, *usage_cells(found_of[name], 0 if name == IDLE else rows, found_of[LAKESYNC]))
    return [result]


def client(setting: Setting, sql: str, name: str) -> Usage:
    """One statement by the plain client; its rows are read and thrown away."""
    login = (f"--socket={setting.server.socket}", "--user=root")
    command = Installation.find().client(
        "mysql", *login, "--quick", "--batch", "--skip-column-names", DATABASE, "-e", sql
    )
    return Process(command, setting.folder(name), servers=(setting.server,), output=Path("/dev/null")).wait()


def _script(setting: Setting) -> Usage:
    folder = setting.folder("script")
    command = [
        sys.executable,
        "-m",
        "bench.peers",
        "snapshot",
        str(setting.server.socket),
        TABLE,
        str(folder / "table"),
    ]
    process = Process(command, folder, servers=(setting.server,))
    used = process.wait()
    if (found := int(process.output.read_text())) != setting.sizes.rows:
        raise FailedError(f"the script wrote {found} rows")
    return used
