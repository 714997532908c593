"""From two durable things, the log's commit records and the lake's commits, to counts of every node in ClickHouse.

Each node counts at its own boundary: `source` the framing of events against the GTID set, `capture` the rows it decoded, `window` what
windowed reads read and what of that was emitted, `log` the rows that its data holds when it is read back, `merge` what it folded,
`snapshot` what the files hold.

How far it came is in `<state>/trace.json`; when that is lost, or the log is another one, or ClickHouse is empty, it begins anew:
rows have keys, so writing them twice changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults
from cdc.config import PipelineConfig
from cdc.epoch import WINDOW, CommitRecord, Counts, Op
from cdc.lake import folders
from cdc.lake.changes import Effects
from cdc.lake.info import FOLLOWING
from cdc.log.base import Log
from cdc.log.codec import decode
from cdc.trace import framing
from cdc.trace.lake import Known, LakeCommit, Seen, commits
from cdc.trace.tables import ARROW, CREATE, NODES, widen

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

BATCH_ROWS = 20_000
"""Rows of one INSERT."""


@dataclass
class Cursor:
    """How far the projection came: the newest record, and per table the newest lake version, of which table (`cdc.trace.lake`)."""

    log: str = ""
    epoch: int = 0
    hash: str = ""
    versions: dict[str, int] = field(default_factory=dict)
    lakes: dict[str, Known] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Cursor:
        """From its file; a new one where there is none, or none that can be read."""
        try:
            return cls(**orjson.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace its file."""
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.touch(mode=0o600)
        temporary.write_bytes(orjson.dumps(self.__dict__))
        temporary.replace(path)


@dataclass(frozen=True)
class ProjectResult:
    """What one projection did. `epoch` and `hash` name the newest commit record that is in the trace."""

    epoch: int
    hash: str
    records: int
    commits: int
    rows: int
    seconds: float


def project(client: Client, config: PipelineConfig, log: Log, *, rebuild: bool = False) -> ProjectResult:
    """Bring the trace up to date. Raises `TraceError` (through the client), `LogError`, `OSError`."""
    started = time.monotonic()
    path = config.state / "trace.json"
    client.command(CREATE)
    if statement := widen({row[0] for row in client.query(f"DESCRIBE TABLE {NODES}").result_rows}):
        client.command(statement)
    cursor = Cursor() if rebuild or _is_empty(client, config.name) else Cursor.read(path)
    if cursor.log and (cursor.log != log.uuid or not _still_there(log, cursor)):
        cursor = Cursor(versions=cursor.versions, lakes=cursor.lakes)
    rows: list[dict[str, Any]] = []
    records = taken = written = 0

    def flush() -> None:
        nonlocal written
        faults.point("trace.insert")
        if rows:
            client.insert_arrow(NODES, pa.Table.from_pylist([_DEFAULTS | row for row in rows], schema=ARROW))
            written += len(rows)
            rows.clear()
        cursor.write(path)

    # The lake first: so every epoch that one of these commits names is in the log by the time that is read.
    for table, folder in folders(config.lake_root):
        for found in commits(folder, cursor.versions.get(table.id, -1), cursor.lakes.get(table.id)):
            if isinstance(found, Seen):
                cursor.versions[table.id], cursor.lakes[table.id] = found.version, found.known
            elif found.info.get("pipeline", config.name) == config.name:
                rows.append(_lake_row(config.name, table.id, found))
                taken += 1
            if len(rows) >= BATCH_ROWS:
                flush()
    for record in log.records(cursor.epoch or None):
        rows.extend(_record_rows(config.name, record, log))
        cursor.log, cursor.epoch, cursor.hash = record.log, record.number, record.hash
        records += 1
        if len(rows) >= BATCH_ROWS:
            flush()
    flush()
    return ProjectResult(cursor.epoch, cursor.hash, records, taken, written, time.monotonic() - started)


_DEFAULTS: dict[str, Any] = {
    f.name: -1 if f.name == "version" else "" if pa.types.is_string(f.type) else {} if pa.types.is_map(f.type) else 0
    for f in ARROW
}


def _record_rows(pipeline: str, record: CommitRecord, log: Log) -> Iterator[dict[str, Any]]:
    common = {
        "pipeline": pipeline,
        "hash": record.hash,
        "log": record.log,
        "number": record.number,
        "first_number": record.number,
        "before": record.before or "",
        "committed": record.raw_us,
        "done": record.written_us,
        "captured": record.captured_us,
        "logged": record.written_us,
    }
    counts = record.framing
    yield common | {
        "node": "source",
        "transactions": counts.get("transactions", 0),
        "gtids": len(record.end.gtids.subtract(record.start.gtids)),
        "events": counts.get("events", 0),
        "bytes": counts.get("bytes", 0),
        "bytes_out": counts.get("bytes", 0),
        "total": record.framing_totals.get("transactions", 0),
        **framing.source(record),
    }
    for table, entry in record.tables.items():
        yield common | {
            "node": "capture",
            "table": table,
            **entry.rows._asdict(),
            "total": entry.totals.changes,
            "totals": entry.totals._asdict(),
            "bytes": entry.extent.bytes,
            "rows_in": entry.rows.changes,
            "rows_out": entry.rows.changes,
            "bytes_out": entry.extent.bytes,
        }
        data = log.data(table, entry.extent)
        counted = _count(data)
        held = counted["inserts"] + counted["updates"] + counted["deletes"] + counted["reads"]
        if windows := record.windows.get(table):
            read, emitted = sum(w.read for w in windows), sum(w.emitted for w in windows)
            yield common | {
                "node": "window",
                "table": table,
                "total": read,
                "windowed": emitted,
                "superseded": read - emitted,
                "rows_in": read,
                "rows_out": emitted,
            }
        yield common | {
            "node": "log",
            "table": table,
            **counted,
            "bytes": entry.extent.bytes,
            "events": entry.extent.records,
            "rows_in": entry.rows.changes,
            "rows_out": held,
            "bytes_in": entry.extent.bytes,
            "bytes_out": sum(map(len, data)),
        }


def _count(payloads: list[bytes]) -> dict[str, int]:
    """Row changes by operation, counted from the log's own data; `key_changes` are the updates that moved a row, `windowed` the rows
    of windowed reads, their deletions included."""
    names = {
        Op.INSERT: "inserts",
        Op.UPDATE: "updates",
        Op.DELETE: "deletes",
        Op.MOVE_OUT: "key_changes",
        Op.READ: "reads",
    }
    found = dict.fromkeys((*names.values(), "windowed"), 0)
    for payload in payloads:
        changes = decode(payload)
        operations: Any = changes.batch.column(0)
        for op, name in names.items():
            found[name] += pc.sum(pc.equal(operations, pa.scalar(op, pa.int8()))).as_py() or 0
        windows = [i for i, gtid in enumerate(changes.gtids) if gtid.startswith(WINDOW)]
        if windows:
            of_windows: Any = pc.is_in(changes.batch.column(1), value_set=pa.array(windows, pa.int32()))
            found["windowed"] += pc.sum(of_windows).as_py() or 0
    return found


def _lake_row(pipeline: str, table: str, commit: LakeCommit) -> dict[str, Any]:
    info, counts, totals = commit.info, commit.info["counts"], commit.info["totals"]
    effects = ("key_changes", *Effects._fields)
    merged = Counts(*counts["logged"])
    follows = info["kind"] in FOLLOWING
    return {
        "pipeline": pipeline,
        "node": "merge" if follows else "snapshot",
        "table": table,
        # A version of its own: a table that is bootstrapped twice at one epoch has two rows.
        "hash": f"{info['hash']}@{commit.version}",
        "log": info["log"],
        "number": info["epoch"],
        "first_number": info.get("first_epoch", info["epoch"]),
        "committed": info["raw_us"],
        "done": info["committed_us"],
        "merged": info["committed_us"],
        "readable": max(commit.readable_us or 0, info["committed_us"]),  # some stores give whole seconds
        **merged._asdict(),
        "total": sum(totals["logged"]),
        "totals": Counts(*totals["logged"])._asdict() | {n: t for n, t in totals.items() if n != "logged"},
        "bytes": counts.get("bytes_added", 0),
        **{name: counts.get(name, 0) for name in ("superseded", "duplicate", "effective", *effects, *_MEASURED)},
        "rows_in": merged.changes if follows else counts.get("rows_added", 0),
        "rows_out": sum(counts.get(n, 0) for n in _OUT) if follows else counts.get("rows_added", 0),
        "bytes_out": counts.get("bytes_added", 0),
        "version": commit.version,
        "lake_id": commit.lake_id,
        "kind": info["kind"],
        "foreign": counts.get("foreign", 0),
    }


_MEASURED = ("rows_added", "rows_deleted", "live_before", "live_after")
_OUT = ("inserted", "replaced", "removed")
"""What a merge did to rows of the table, by looking their keys up."""


def _is_empty(client: Client, pipeline: str) -> bool:
    query = f"SELECT count() FROM (SELECT 1 FROM {NODES} WHERE pipeline = {{p:String}} LIMIT 1)"
    return int(client.query(query, parameters={"p": pipeline}).result_rows[0][0]) == 0


def _still_there(log: Log, cursor: Cursor) -> bool:
    """Whether the log has the cursor's record, or has trimmed it and goes on right behind it."""
    first = next(iter(log.records(cursor.epoch - 1)), None)
    if first is None:
        return False
    return first.hash == cursor.hash if first.number == cursor.epoch else first.before == cursor.hash
