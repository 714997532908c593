"""Bytes into Arrow: recorded binary logs from memory, the server's own stream, a result set; beside mysql-replication and MySQL's clients.

What decodes runs in a process of its own (`bench.decoding`); the seconds are those of the decoding alone, without its start.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import recording
from bench.measure import FailedError, Process, Usage, medians
from bench.report import Table, thousands
from bench.setting import PASSWORD, USER, Setting
from bench.snapshot import client
from dev.mysql import Installation

OPTIONS = ("rows", "turns")

STATEMENT = 1000
"""Rows of an ordinary statement."""
UPDATES, ONE_ROW = 4, 20
"""So many times fewer rows where a row costs the server more."""
PEER_ROWS = 20
"""mysql-replication reads so many times fewer of them: it takes its time."""

HEAD = ("", "rows", "s", "CPU s", "rows/CPU s", "MB/CPU s", "speed")
OURS, PEER = "lakesync", "mysql-replication"
CHECKS = ("ids", "sums")


def measure(setting: Setting) -> list[Table]:
    """Three tables."""
    return [_from_memory(setting), _live(setting), _result_set(setting)]


# from memory


def _from_memory(setting: Setting) -> Table:
    rows = setting.sizes.rows
    one_row, updated = max(1, rows // ONE_ROW), max(1, rows // UPDATES)
    recorded: dict[str, tuple[Path, str, int, bool]] = {}

    def record(title: str, table: str, rows: int, write: Callable[[], None], *, readable: bool = True) -> None:
        before = setting.server.gtid_executed
        write()
        file = folder / f"{len(recorded)}.binlog"
        recording.record(setting.server, before, file)
        recorded[title] = (file, table, rows, readable)

    _ = setting.table
    folder = setting.folder("decode-recorded")
    for table in ("inserted", "one_by_one", "compressed"):
        setting.create(table, 0)
    by = f"{STATEMENT:,} rows a statement"
    record(f"inserts, {by}", "inserted", rows, lambda: recording.insert(setting, ["inserted"], rows, STATEMENT))
    record(f"updates, {by}", "inserted", updated, lambda: recording.update(setting, "inserted", updated, STATEMENT))
    record(
        "inserts, one a transaction",
        "one_by_one",
        one_row,
        lambda: recording.insert(setting, ["one_by_one"], one_row, 1),
    )
    record(
        f"inserts, {by}, compressed transactions",
        "compressed",
        rows,
        lambda: recording.insert(setting, ["compressed"], rows, STATEMENT, "binlog_transaction_compression = ON"),
        readable=False,
    )
    result = Table("Recorded binary logs, from memory, checksums verified", HEAD)
    for title, (file, table, count, readable) in recorded.items():
        turns: dict[str, list[Usage]] = defaultdict(list)
        _check(setting, file, [table], count, readable)
        for _turn in range(setting.sizes.turns):
            turns[OURS].append(from_memory(setting, file, [table], count))
            if readable:
                turns[PEER].append(_replication(setting, file, table, max(1, count // PEER_ROWS)))
        ours, size = medians(turns[OURS]), file.stat().st_size
        if not readable:
            result.add(f"{OURS}: {title}", *_cells(ours, count, size, None))
            continue
        part, peer = max(1, count // PEER_ROWS), medians(turns[PEER])
        result.add(f"{OURS}: {title}", *_cells(ours, count, size, _rate(peer, part)))
        result.add(f"{PEER}: the same, the first part", *_cells(peer, part, size * part // count, _rate(peer, part)))
    return result


def _rate(used: Usage, rows: int) -> float:
    return rows / max(used.cpu_s, 1e-9)


def _cells(used: Usage, rows: int, size: int, base: float | None) -> tuple[str, ...]:
    """`speed` by rows per CPU second, where there is something to compare with: one thread each, and no server at work."""
    rate = _rate(used, rows)
    return (
        f"{rows:,}",
        f"{used.wall_s:.3f}",
        f"{used.cpu_s:.3f}",
        thousands(rate),
        thousands(size / 1e6 / max(used.cpu_s, 1e-9)),
        "-" if base is None else f"{rate / base:.2f}" if rate < 10 * base else f"{rate / base:.0f}",
    )


def _program(setting: Setting, *arguments: str | Path | int, folder: str = "decode") -> tuple[Usage, dict[str, Any]]:
    """A program of this file or of `bench.peers`; what its measured part took, and what it found."""
    process = Process([sys.executable, "-m", *map(str, arguments)], setting.folder(folder))
    used = process.wait()
    timed, found = (json.loads(line) for line in process.output.read_text().splitlines()[-2:])
    return replace(used, **timed), found


def from_memory(setting: Setting, file: Path, tables: list[str], rows: int) -> Usage:
    """Decode a recording; what that took. Raises `FailedError` if it has not so many row changes."""
    used, found = _program(setting, "bench.decoding", "memory", file, ",".join(tables))
    if found["changes"] != rows:
        raise FailedError(f"{found['changes']} changes were decoded, {rows} were made")
    return used


def _replication(setting: Setting, file: Path, table: str, rows: int) -> Usage:
    used, found = _program(setting, "bench.peers", "recorded", setting.server.port, file, table, rows)
    if found["changes"] < rows:
        raise FailedError(f"mysql-replication decoded {found['changes']} changes, not {rows}")
    return used


def _check(setting: Setting, file: Path, tables: list[str], rows: int, readable: bool) -> None:
    """Both decoders find the same rows, as far as mysql-replication goes."""
    part = max(1, rows // PEER_ROWS)
    _, ours = _program(setting, "bench.decoding", "summary", file, ",".join(tables), part)
    if ours["all"] != rows:
        raise FailedError(f"{ours['all']} changes were decoded, {rows} were made")
    if readable:
        _, peer = _program(setting, "bench.peers", "recorded", setting.server.port, file, tables[0], part)
        if any(ours[key] != peer[key] for key in CHECKS):
            raise FailedError(f"the decoders differ: {ours}, {peer}")


# the server's stream


def _live(setting: Setting) -> Table:
    rows = setting.sizes.rows
    _ = setting.table
    setting.create("streamed", 0)
    setting.server.execute("FLUSH BINARY LOGS")
    first = str(setting.server.status("SHOW BINARY LOG STATUS")["File"])
    before = setting.server.gtid_executed
    recording.insert(setting, ["streamed"], rows, STATEMENT)
    names = [str(row[0]) for row in setting.server.execute("SHOW BINARY LOGS")]
    size = sum(int(row[1]) for row in setting.server.execute("SHOW BINARY LOGS") if str(row[0]) >= first)
    ours, peer = "into Arrow", "`mysqlbinlog --raw --read-from-remote-server`"
    turns: dict[str, list[Usage]] = defaultdict(list)
    for _turn in range(setting.sizes.turns):
        used, found = _program(setting, "bench.decoding", "live", setting.server.port, before, "streamed")
        if found["changes"] != rows:
            raise FailedError(f"{found['changes']} changes were decoded, {rows} were made")
        turns[ours].append(used)
        turns[peer].append(_mysqlbinlog(setting, [name for name in names if name >= first], size))
    result = Table(
        f"{rows:,} inserts, {STATEMENT:,} a statement, from the server",
        ("", "s", "rows/s", "MB/s", "CPU s", "time, the other = 1"),
    )
    other = medians(turns[peer])
    for name in (ours, peer):
        used = medians(turns[name])
        result.add(
            name,
            f"{used.wall_s:.3f}",
            thousands(rows / used.wall_s),
            thousands(size / 1e6 / used.wall_s),
            f"{used.cpu_s:.2f}",
            f"{used.wall_s / other.wall_s:.2f}",
        )
    return result


def _mysqlbinlog(setting: Setting, names: list[str], size: int) -> Usage:
    """Its files are written, and need not be on the disk."""
    folder = setting.folder("mysqlbinlog")
    login = ("--host=127.0.0.1", f"--port={setting.server.port}", f"--user={USER}", f"--password={PASSWORD}")
    command = Installation.find().client(
        "mysqlbinlog",
        "--raw",
        "--read-from-remote-server",
        *login,
        "--ssl-mode=DISABLED",
        "--get-server-public-key",
        f"--result-file={folder}/",
        *names,
    )
    used = Process(command, folder / "run", servers=(setting.server,)).wait()
    if (found := sum((folder / name).stat().st_size for name in names)) < size:
        raise FailedError(f"mysqlbinlog wrote {found} bytes of {size}")
    return used


# a result set


def _result_set(setting: Setting) -> Table:
    rows, table = setting.sizes.rows, setting.table.partition(".")[2]
    ours, peer = "`COM_STMT_EXECUTE`, into Arrow", "`mysql --quick`, to /dev/null"
    expected = setting.server.execute(f"SELECT COUNT(*), SUM(id), SUM(amount) FROM {setting.table}")[0]
    turns: dict[str, list[Usage]] = defaultdict(list)
    for _turn in range(setting.sizes.turns):
        used, found = _program(setting, "bench.decoding", "table", setting.server.port, table)
        if [str(value) for value in expected] != found["summary"]:
            raise FailedError(f"{found['summary']} was read, {expected} is there")
        turns[ours].append(used)
        turns[peer].append(client(setting, f"SELECT * FROM {table}", "client"))
    result = Table(f"{rows:,} rows of ten columns out of MySQL", ("", "s", "rows/s", "CPU s", "speed"))
    base = medians(turns[peer])
    for name in (ours, peer):
        used = medians(turns[name])
        result.add(
            name,
            f"{used.wall_s:.3f}",
            thousands(rows / used.wall_s),
            f"{used.cpu_s:.2f}",
            f"{base.wall_s / used.wall_s:.2f}",
        )
    return result
