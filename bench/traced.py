"""What the trace costs the stream: two daemons follow the same changes at the same time, one of them with a trace, all else at the defaults.

A round of the trace is a process of its own, with ClickHouse inside; the daemon starts one the more seldom the less there is to do. So
this runs long enough for more than one. The daemons' figures have the processes that they started in them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass

from bench.load import Load
from bench.measure import FailedError, Usage
from bench.pipeline import Pipeline, wait
from bench.report import Table
from bench.setting import DATABASE, Setting
from cdc.log import open_log
from cdc.trace.project import CURSOR, Cursor

OPTIONS = ("seconds", "turns")
RATE = 20_000
"""Row changes a second."""
BATCH = 100
"""Of one transaction."""
ROWS = 100_000
TIMES = 20
"""Times `seconds`."""
POLL_S = 1.0

WITHOUT, WITH = "`lakesync run`, no trace", "`lakesync run`, with the trace, its default"


@dataclass
class _Rounds:
    """Of the trace: their CPU seconds, and the share of the epochs that they covered."""

    cpu_s: list[float]
    covered: float


def measure(setting: Setting) -> list[Table]:
    """One table."""
    turns: dict[str, list[Usage]] = defaultdict(list)
    rounds: list[_Rounds] = []
    for turn in range(setting.sizes.turns):
        used, found = _turn(setting, turn)
        rounds.append(found)
        for name, of in used.items():
            turns[name].append(of)
    seconds = setting.sizes.seconds * TIMES
    result = Table(
        f"{RATE:,} row changes a second for {seconds} s, {BATCH} a transaction; all turns together",
        ("", "CPU s", "peak MiB", "rounds of the trace", "their CPU s", "epochs in the trace", "CPU, no trace = 1"),
    )
    cpu = {name: sum(of.cpu_s for of in used) for name, used in turns.items()}
    own = [cpu_s for of in rounds for cpu_s in of.cpu_s]
    traced = {
        WITHOUT: ("-", "-", "-"),
        WITH: (str(len(own)), f"{sum(own):.2f}", f"{100 * min(of.covered for of in rounds):.0f} %"),
    }
    for name in (WITHOUT, WITH):
        peak = max(of.peak_mib for of in turns[name])
        result.add(name, f"{cpu[name]:.2f}", f"{peak:.0f}", *traced[name], f"{cpu[name] / cpu[WITHOUT]:.3f}")
    return [result]


def _turn(setting: Setting, turn: int) -> tuple[dict[str, Usage], _Rounds]:
    """What both daemons used while changes came."""
    table = f"traced_{turn}"
    setting.create(table, ROWS)
    pipelines = {
        name: Pipeline(setting, f"traced-{turn}-{trace:d}", [f"{DATABASE}.{table}"], trace=trace)
        for name, trace in ((WITHOUT, False), (WITH, True))
    }
    for pipeline in pipelines.values():
        pipeline.catch_up().wait()
    first = Cursor.read(pipelines[WITH].state_folder / CURSOR).epoch
    started = time.time_ns() // 1000
    daemons = {name: pipeline.start("run") for name, pipeline in pipelines.items()}
    own: dict[int, float] = {}
    try:
        for name, pipeline in pipelines.items():
            state = pipeline.state
            wait(lambda s=state: s.nodes()["merge"].at_us > started, daemons[name])  # type: ignore[misc]
        with Load(setting, table, ROWS, RATE, BATCH) as load:
            ends = time.monotonic() + setting.sizes.seconds * TIMES
            while time.monotonic() < ends:
                time.sleep(POLL_S)
                info = pipelines[WITH].state.nodes()["trace"].info
                if info.get("epoch", first) > first:
                    own[info["epoch"]] = info["cpu_s"]
        for name, pipeline in pipelines.items():
            pipeline.wait_logged(f"{load.uuid}:{load.first}-{load.first + len(load.sent) - 1}", daemons[name])
        used = {name: daemon.stop() for name, daemon in daemons.items()}
    finally:
        for daemon in daemons.values():
            daemon.end()
    if len({pipeline.logged() for pipeline in pipelines.values()}) != 1:
        raise FailedError("the pipelines logged different changes")
    with closing(open_log(pipelines[WITH].log, pipelines[WITH].name)) as log:
        record = log.newest()
    assert record is not None
    reached = Cursor.read(pipelines[WITH].state_folder / CURSOR).epoch
    return used, _Rounds(list(own.values()), (reached - first) / (record.number - first))
