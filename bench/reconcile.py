"""Proof by values: every row of the source against every row of the lake, beside the checksum query alone, pt-table-checksum, and whole rows
compared by hand; then one row that is not alike, found and repaired."""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import orjson

from bench.measure import FailedError, Process, Usage, medians
from bench.pipeline import Pipeline
from bench.report import Table, thousands
from bench.rows import SCHEMA
from bench.setting import DATABASE, Setting
from bench.snapshot import client
from cdc.config import SourceConfig
from cdc.names import TableName
from cdc.source import catalogue, digests
from cdc.source.connection import connect
from dev.mysql import Installation
from dev.sysbench import percona_command

OPTIONS = ("snapshot_rows", "turns")

NAME = "proved"
CHUNK_ROWS = 50_000
"""Of one statement of the checksum."""
SLOW_ROWS = 1_000_000
"""At most so many for peers that are slow."""
OURS = "`lakesync reconcile --values`, both sides"
CHECKSUM = "its checksum query alone, in MySQL, one side"
CRC = "`SUM(CRC32(CONCAT_WS(…)))` in MySQL, one side"
PT = "`pt-table-checksum`, one side"
BY_HAND = "script: PyMySQL, polars, both sides"
COLUMNS = ("", "rows", "s", "rows/s", "CPU s", "server CPU s", "peak MiB", "time, the checksum = 1")


def measure(setting: Setting) -> list[Table]:
    """The comparison of tables that are alike, and of one that is not."""
    rows = setting.sizes.snapshot_rows
    slow = min(rows, SLOW_ROWS)
    setting.create(NAME, rows)
    pipeline = Pipeline(setting, "reconcile", [f"{DATABASE}.{NAME}"])
    pipeline.catch_up().wait()
    daemon = pipeline.start("run")
    checksum = _checksum(setting, rows)
    crc = f"SELECT COUNT(*), SUM(CRC32(CONCAT_WS('#', {', '.join(SCHEMA.names)}))) FROM {NAME}"
    turns: dict[str, list[Usage]] = defaultdict(list)
    try:
        for _ in range(setting.sizes.turns):
            process = pipeline.start("reconcile", "--values", "--json")
            turns[OURS].append(process.wait())
            _must_cover(process, rows)
            turns[CHECKSUM].append(_run(setting, checksum))
            turns[CRC].append(client(setting, crc, "crc"))
            turns[PT].append(_percona(setting))
            turns[BY_HAND].append(_by_hand(setting, pipeline, slow))
            daemon.must_run()
        planted = _planted(setting, pipeline, rows)
    finally:
        daemon.end()
    used = {name: medians(of) for name, of in turns.items()}
    base = used[CHECKSUM].wall_s / rows
    result = Table(f"Values of {rows:,} rows of ten columns, equal", COLUMNS)
    for name in (OURS, CHECKSUM, CRC, PT, BY_HAND):
        result.add(name, *_cells(used[name], slow if name == BY_HAND else rows, base))
    return [result, planted]


def _cells(used: Usage, rows: int, base: float) -> tuple[str, ...]:
    return (
        f"{rows:,}",
        f"{used.wall_s:.2f}",
        thousands(rows / used.wall_s),
        f"{used.cpu_s:.2f}",
        f"{used.servers_cpu_s:.2f}",
        f"{used.peak_mib:.0f}" if used.peak_mib else "-",
        f"{used.wall_s / rows / base:.2f}",
    )


def _checksum(setting: Setting, rows: int) -> Path:
    """A script with the statements that lakesync's comparison asks the server, for the plain client."""
    table = TableName(DATABASE, NAME)
    source = SourceConfig(url=f"mysql://root@127.0.0.1:{setting.server.port}")
    with closing(connect(source, purpose="bench")) as connection:
        digest = digests.digest_expression(SCHEMA.columns, hints=catalogue.hints(connection, table))
    script = setting.folder("checksum-script") / "checksum.sql"
    statements = ["SET SESSION sql_mode = '', time_zone = '+00:00'"]
    for low in range(1, rows + 1, CHUNK_ROWS):
        part = f"{table.quoted} FORCE INDEX (PRIMARY) WHERE id BETWEEN {low} AND {low + CHUNK_ROWS - 1}"
        statements.append(digests.checksum(digest, part))
    script.write_text("".join(f"{statement};\n" for statement in statements))
    return script


def _run(setting: Setting, script: Path) -> Usage:
    login = (f"--socket={setting.server.socket}", "--user=root")
    command = Installation.find().client("mysql", *login, "--batch", "--skip-column-names", DATABASE)
    process = Process(
        ["/bin/sh", "-c", 'exec "$@" < "$0"', script, *command], setting.folder("checksum"), servers=(setting.server,)
    )
    return process.wait()


def _must_cover(process: Process, rows: int) -> None:
    (found,) = orjson.loads(process.output.read_bytes())["values"]["tables"]
    if not found["equal"] or found["source_rows"] != rows or found["lake_rows"] != rows:
        raise FailedError(f"of {rows} rows, {found['source_rows']} and {found['lake_rows']} were compared")


def _percona(setting: Setting) -> Usage:
    command, environment = percona_command(
        setting.server,
        "pt-table-checksum",
        f"--databases={DATABASE}",
        f"--tables={NAME}",
        "--recursion-method=none",
        # It does not understand what EXPLAIN says by default today, and would make the table one chunk.
        "--set-vars=explain_format=TRADITIONAL",
    )
    return Process(command, setting.folder("percona"), servers=(setting.server,), environment=environment).wait()


def _by_hand(setting: Setting, pipeline: Pipeline, rows: int) -> Usage:
    folder = pipeline.lake / pipeline.tables[0].folder
    arguments = ("values", str(setting.server.socket), NAME, str(rows), str(folder))
    process = Process(
        [sys.executable, "-m", "bench.peers", *arguments], setting.folder("by-hand"), servers=(setting.server,)
    )
    used = process.wait()
    if process.output.read_text().split() != [str(rows), "0"]:
        raise FailedError(f"the script found {process.output.read_text()}")
    return used


def _planted(setting: Setting, pipeline: Pipeline, rows: int) -> Table:
    """One row of the source changes unseen: it is found, repaired, and the tables are alike again."""
    key = rows // 2
    with setting.server.root(DATABASE) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_log_bin = 0")
        cursor.execute(f"UPDATE `{NAME}` SET amount = amount + 1 WHERE id = {key}")
    result = Table("One row differs", ("", "s", "CPU s", "server CPU s", "rows read in full", "% of the rows"))
    found = pipeline.start("reconcile", "--values", "--json")
    used = found.wait(good=(1,))
    (table,) = orjson.loads(found.output.read_bytes())["values"]["tables"]
    if [d["key"] for d in table["differences"]] != [str(key)] or table["different"] != 1:
        raise FailedError(f"{table['different']} rows differ, one was planted")
    result.add("found", *_figures(used), *_share(table["rows_in_full"], rows))
    repairing = pipeline.start("reconcile", "--values", "--repair", "--json")
    used = repairing.wait()
    report = orjson.loads(repairing.output.read_bytes())
    (table,), (repaired,) = report["values"]["tables"], report["repair"]["tables"]
    if (repaired["repaired"], repaired["remaining"]) != (1, 0):
        raise FailedError(f"{repaired['repaired']} rows were repaired, one was planted")
    # Compared, read again, and looked at once more.
    read = table["rows_in_full"] + repaired["rows_read"] + repaired["keys"]
    result.add("found again, repaired and compared once more", *_figures(used), *_share(read, rows))
    process = pipeline.start("reconcile", "--values", "--json")
    process.wait()
    _must_cover(process, rows)
    return result


def _figures(used: Usage) -> tuple[str, ...]:
    return f"{used.wall_s:.2f}", f"{used.cpu_s:.2f}", f"{used.servers_cpu_s:.2f}"


def _share(read: int, rows: int) -> tuple[str, str]:
    return f"{read:,}", f"{100 * read / rows:.4f}"
