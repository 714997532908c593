"""Proof by values: every row of the source against every row of the lake, beside a checksum of the source alone."""

from __future__ import annotations

from collections import defaultdict

from bench.measure import Usage, medians
from bench.pipeline import Pipeline
from bench.report import USAGE, Table, usage_cells
from bench.rows import SCHEMA
from bench.setting import TABLE, Setting
from bench.snapshot import client

OPTIONS = ("rows", "turns")

OURS = "`lakesync reconcile --values`, both sides"
PEER = "`SUM(CRC32(CONCAT_WS(…)))` in MySQL, one side"


def measure(setting: Setting) -> list[Table]:
    """One table."""
    rows, table = setting.sizes.rows, setting.table
    pipeline = Pipeline(setting, "reconcile", [table])
    pipeline.catch_up().wait()
    daemon = pipeline.start("run")
    checksum = f"SELECT COUNT(*), SUM(CRC32(CONCAT_WS('#', {', '.join(SCHEMA.names)}))) FROM {TABLE}"
    turns: dict[str, list[Usage]] = defaultdict(list)
    try:
        for _ in range(setting.sizes.turns):
            turns[OURS].append(pipeline.start("reconcile", "--values", "--json").wait())
            turns[PEER].append(client(setting, checksum, "checksum"))
            daemon.must_run()
    finally:
        daemon.end()
    found_of = {name: medians(used) for name, used in turns.items()}
    result = Table(f"Values of {rows:,} rows of ten columns, equal", ("", *USAGE))
    for name, used in found_of.items():
        result.add(name, *usage_cells(used, rows, found_of[OURS]))
    return [result]
