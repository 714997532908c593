"""A backlog in the binary log: into the embedded log, into Kafka, and to the end into Delta, beside mysql-replication."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

from bench import backlog
from bench.backlog import Backlog
from bench.measure import FailedError, Process, Usage, medians
from bench.pipeline import Pipeline, wait
from bench.report import USAGE, Table, usage_cells
from bench.setting import DATABASE, Setting
from dev.kafka import KafkaBroker

OPTIONS = ("changes", "turns")
SIZES = (10, 1000)
"""Row changes of a transaction."""

EMBEDDED = "`lakesync run --node capture`, embedded log"
KAFKA = "`lakesync run --node capture`, Kafka"
IDLE = "`lakesync run --node capture` until it follows"
DELTA = "`lakesync run --until-current`, into Delta"
PEER = "mysql-replication, rows thrown away"


def measure(setting: Setting) -> list[Table]:
    """One table a size of transactions."""
    with KafkaBroker() as broker:
        return [_measure(setting, broker, size) for size in SIZES]


def _measure(setting: Setting, broker: KafkaBroker, size: int) -> Table:
    table = f"stream_{size}"
    setting.create(table, 0)
    kinds: dict[str, dict[str, Any]] = {
        EMBEDDED: {},
        KAFKA: {"log": f"kafka://{broker.bootstrap}", "further": (broker,)},
        DELTA: {},
    }
    pipelines: dict[str, list[Pipeline]] = defaultdict(list)
    for turn in range(setting.sizes.turns):
        for number, (kind, how) in enumerate(kinds.items()):
            pipeline = Pipeline(setting, f"stream-{size}-{number}-{turn}", [f"{DATABASE}.{table}"], **how)
            if kind == DELTA:
                pipeline.catch_up().wait()
            else:
                pipeline.add()
            pipelines[kind].append(pipeline)
    written = backlog.write(setting, table, setting.sizes.changes, size)
    turns: dict[str, list[Usage]] = defaultdict(list)
    for turn in range(setting.sizes.turns):
        for kind in (EMBEDDED, KAFKA):
            turns[kind].append(captured(pipelines[kind][turn], written))
        turns[IDLE].append(follow(pipelines[EMBEDDED][turn]))
        turns[DELTA].append(_to_delta(pipelines[DELTA][turn], written))
        turns[PEER].append(_peer(setting, table, written))
    found_of = {kind: medians(used) for kind, used in turns.items()}
    title = (
        f"{written.insert:,} inserts, {written.update:,} updates and {written.delete:,} deletes, "
        f"{size:,} rows a transaction, {'one' if size <= backlog.ONE_BY_ONE else f'{size:,}'} a statement"
    )
    result = Table(title, ("", *USAGE))
    for kind in (EMBEDDED, IDLE, KAFKA, DELTA, PEER):
        result.add(kind, *usage_cells(found_of[kind], 0 if kind == IDLE else written.changes, found_of[PEER]))
    return result


def captured(pipeline: Pipeline, written: Backlog) -> Usage:
    """From the start of the process until the log has the backlog; CPU and memory are the whole process's."""
    process = pipeline.start("run", "--node", "capture")
    try:
        pipeline.wait_logged(written.after, process)
        wall_s = process.elapsed_s
        used = process.stop()
    finally:
        process.end()
    if (found := pipeline.logged()) != written.changes:
        raise FailedError(f"the log counts {found} changes, {written.changes} were made")
    return replace(used, wall_s=wall_s)


def follow(pipeline: Pipeline) -> Usage:
    """Until the first sign of life of a capture that has nothing to read."""
    state = pipeline.state
    before = state.nodes()["capture"].at_us
    process = pipeline.start("run", "--node", "capture")
    try:
        wait(lambda: state.nodes()["capture"].at_us > before, process)
        wall_s = process.elapsed_s
        return replace(process.stop(), wall_s=wall_s)
    finally:
        process.end()


def _to_delta(pipeline: Pipeline, written: Backlog) -> Usage:
    used = pipeline.catch_up().wait()
    if (found := pipeline.snapshot().rows) != written.insert - written.delete:
        raise FailedError(f"{found} rows in the lake, {written.insert - written.delete} in the source")
    return used


def _peer(setting: Setting, table: str, written: Backlog) -> Usage:
    folder = setting.folder("replication")
    command = [sys.executable, "-m", "bench.peers", "replication", str(setting.server.port), table, written.before]
    process = Process([*command, written.after], folder, servers=(setting.server,))
    used = process.wait()
    if (found := int(process.output.read_text())) != written.changes:
        raise FailedError(f"mysql-replication read {found} changes, {written.changes} were made")
    return used
