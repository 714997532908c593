"""Capture of a backlog into the embedded log and into Kafka, beside Debezium's embedded engine, which drops what it reads.

Debezium's figures begin with its first row; lakesync's are given as a whole process and less what a start with nothing to do takes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from bench import backlog
from bench.backlog import Backlog
from bench.measure import Usage, medians
from bench.peers import debezium
from bench.pipeline import Pipeline
from bench.report import USAGE, Table, less, usage_cells
from bench.setting import DATABASE, Setting
from bench.stream import captured, follow
from dev.kafka import KafkaBroker

OPTIONS = ("rows", "turns")

SIZE = 1000
"""Row changes of a transaction and statement."""

EMBEDDED, KAFKA = "lakesync, embedded log", "lakesync, Kafka, exactly once"
STARTED = "{}, until it follows"
JSON, CONNECT = "Debezium, JSON", "Debezium, its own records"


def measure(setting: Setting) -> list[Table]:
    """One table."""
    table = "captured"
    setting.create(table, 0)
    with KafkaBroker() as broker:
        kinds: dict[str, dict[str, Any]] = {
            EMBEDDED: {},
            KAFKA: {"log": f"kafka://{broker.bootstrap}", "further": (broker,)},
        }
        pipelines: dict[str, list[Pipeline]] = defaultdict(list)
        for turn in range(setting.sizes.turns + 1):
            for number, (kind, how) in enumerate(kinds.items()):
                pipelines[kind].append(Pipeline(setting, f"captured-{number}-{turn}", [f"{DATABASE}.{table}"], **how))
                pipelines[kind][-1].add()
        written = backlog.write(setting, table, setting.sizes.rows, SIZE)
        captured(pipelines[KAFKA].pop(), written)  # not counted: brokers run for months, and this one has just started
        turns: dict[str, list[Usage]] = defaultdict(list)
        for turn in range(setting.sizes.turns):
            for kind in kinds:
                turns[kind].append(captured(pipelines[kind][turn], written))
                turns[STARTED.format(kind)].append(follow(pipelines[kind][turn]))
            turns[JSON].append(_debezium(setting, table, written, "json"))
            turns[CONNECT].append(_debezium(setting, table, written, "connect"))
    found = {kind: medians(used) for kind, used in turns.items()}
    for kind in kinds:
        found[f"{kind}, less the start"] = less(found[kind], found[STARTED.format(kind)])
    result = Table(
        f"{written.insert:,} inserts, {written.update:,} updates and {written.delete:,} deletes of ten columns, "
        f"{SIZE:,} rows a transaction and statement",
        ("", *USAGE),
    )
    for kind in kinds:
        started, rest = STARTED.format(kind), f"{kind}, less the start"
        result.add(kind, *usage_cells(found[kind], written.changes, found[JSON]))
        result.add(started, *usage_cells(found[started], 0, found[JSON]))
        result.add(rest, *usage_cells(found[rest], written.changes, found[JSON]))
    for kind in (JSON, CONNECT):
        result.add(kind, *usage_cells(found[kind], written.changes, found[JSON]))
    return [result]


def _debezium(setting: Setting, table: str, written: Backlog, form: debezium.Form) -> Usage:
    return debezium.read(setting, f"{DATABASE}.{table}", written.before, written.changes, form).reading
