"""A backlog in the binary log, to Delta rows that anyone can read, beside Debezium with exactly-once, tuned, which gets it as far as Kafka.

Each has a table and a backlog of its own, the same changes in both, and the machine to itself. lakesync's seconds are those of the whole
command, `lakesync run --until-current`, and less those of a start with nothing to read. Debezium's begin with the first records that are
committed in Kafka, and are without the start of the JVM, of Kafka Connect and of the connector.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pyarrow as pa

from bench import backlog
from bench.backlog import Backlog
from bench.measure import FailedError, Usage, medians
from bench.peers import connect
from bench.pipeline import Pipeline
from bench.report import Table, less, thousands
from bench.rows import EXPRESSIONS
from bench.setting import DATABASE, Setting
from dev.kafka import KafkaBroker

OPTIONS = ("rows", "turns")
SIZE = 1000
"""Row changes of a transaction and statement."""

OURS, PEER = "`lakesync run --until-current`, MySQL to Delta", "Debezium, exactly-once, MySQL to Kafka"
STARTED, REST = "… a start with nothing to read", "… less the start"
COLUMNS = ("", "changes", "s", "rows/s", "CPU s", "servers' CPU s", "anonymous MiB", "peak MiB", "speed")


def measure(setting: Setting) -> list[Table]:
    """One table."""
    turns: dict[str, list[Usage]] = defaultdict(list)
    for turn in range(setting.sizes.turns):
        table = f"endtoend_{turn}"
        setting.create(table, 0)
        pipeline = Pipeline(setting, f"endtoend-{turn}", [f"{DATABASE}.{table}"])
        pipeline.catch_up().wait()
        turns[STARTED].append(pipeline.catch_up().wait())
        written = backlog.write(setting, table, setting.sizes.rows, SIZE)
        turns[OURS].append(_to_delta(pipeline, written))
        turns[PEER].append(_to_kafka(setting, f"{table}_peer"))
    found = {kind: medians(used) for kind, used in turns.items()}
    found[REST] = replace(less(found[OURS], found[STARTED]), peak_mib=0.0)
    result = Table(
        f"{written.insert:,} inserts, {written.update:,} updates and {written.delete:,} deletes of ten columns, "
        f"{SIZE:,} rows a transaction and statement",
        COLUMNS,
    )
    for kind in (OURS, STARTED, REST, PEER):
        used, changes = found[kind], 0 if kind == STARTED else written.changes
        result.add(
            kind,
            f"{changes:,}",
            f"{used.wall_s:.2f}",
            thousands(changes / used.wall_s) if changes else "-",
            f"{used.cpu_s:.2f}",
            f"{used.servers_cpu_s:.2f}",
            f"{used.anonymous_mib:.0f}" if used.anonymous_mib else "-",
            f"{used.peak_mib:.0f}" if used.peak_mib else "-",
            f"{found[PEER].wall_s / used.wall_s:.2f}" if changes else "-",
        )
    return [result]


def _to_kafka(setting: Setting, table: str) -> Usage:
    setting.create(table, 0)
    with KafkaBroker() as broker:
        worker = connect.Worker(setting, broker, f"{DATABASE}.{table}")
        try:
            before = worker.follow(_Inserts(setting, table))
            worker.stop()
            written = backlog.write(setting, table, setting.sizes.rows, SIZE)
            return worker.resume(before, written.changes)
        finally:
            worker.end()


class _Inserts:
    """Rows of numbers that the backlog does not use: before the first one Debezium keeps no place."""

    def __init__(self, setting: Setting, table: str) -> None:
        self._setting, self._table, self.rows = setting, table, 0

    def __call__(self) -> None:
        self.rows += 1
        values = ", ".join((f"-{self.rows}", *EXPRESSIONS[1:]))
        with self._setting.server.root(DATABASE) as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION time_zone = '+00:00'")
            cursor.execute(f"INSERT INTO `{self._table}` SELECT {values} FROM (SELECT 1 AS n) AS one")
            connection.commit()


def _to_delta(pipeline: Pipeline, written: Backlog) -> Usage:
    import deltalake

    used = pipeline.catch_up().wait()
    table = deltalake.DeltaTable(str(pipeline.lake / pipeline.tables[0].folder))
    rows: Any = pa.table(table.scan(columns=["id"])).num_rows
    if rows != written.insert - written.delete:
        raise FailedError(f"the lake has {rows} rows, the source {written.insert - written.delete}")
    return used
