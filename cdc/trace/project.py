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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from cdc import faults
from cdc.config import PipelineConfig
from cdc.errors import TraceError
from cdc.lake import folders
from cdc.log.base import Log
from cdc.trace.lake import Known, Seen, commits
from cdc.trace.rows import Rows, disown, lake_row, record_rows
from cdc.trace.schema import prepare, sweep, tidy
from cdc.trace.views import LEDGER

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

BATCH_ROWS = 20_000
"""Rows of one INSERT."""
SWEEP_S = 86_400
TIDY_EVERY_S = 3600
CURSOR = "trace.json"
"""In the state folder."""
FORM = 2
"""Of what is projected: a cursor of another form begins anew, so that all rows have what this version says of them."""


@dataclass
class Cursor:
    """How far the projection came: the newest record, and per table the newest lake version, of which table (`cdc.trace.lake`)."""

    log: str = ""
    epoch: int = 0
    hash: str = ""
    versions: dict[str, int] = field(default_factory=dict)
    lakes: dict[str, Known] = field(default_factory=dict)
    form: int = FORM
    swept_s: int = 0
    """When chDB was last made to let go of what is too old, s since 1970."""
    tidied_s: int = 0
    """… and of the files of what it has merged."""

    @classmethod
    def read(cls, path: Path) -> Cursor:
        """From its file; a new one where there is none, or none that can be read."""
        try:
            found = orjson.loads(path.read_bytes())
            return cls(**found) if found.get("form") == FORM else cls()
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace its file. Raises `TraceError`."""
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            temporary.touch(mode=0o600)
            temporary.write_bytes(orjson.dumps(self.__dict__))
            temporary.replace(path)
        except OSError as error:
            what = f"how far the trace came cannot be written: {error.strerror}"
            raise TraceError(what, where=str(path), hint="look at the disk of the state folder") from error


@dataclass(frozen=True)
class ProjectResult:
    """What one projection did. `epoch` and `hash` name the newest commit record that is in the trace."""

    epoch: int
    hash: str
    records: int
    commits: int
    rows: int
    seconds: float


def project(
    client: Client,
    config: PipelineConfig,
    log: Log,
    *,
    rebuild: bool = False,
    told: Callable[[int], None] | None = None,
) -> ProjectResult:
    """Bring the trace up to date; `rebuild`: with all that log and lake still have. `told` is called with the rows written so far.

    Raises `TraceError` (through the client), `LogError`, `LakeError`, `OSError`.
    """
    started = time.monotonic()
    path = config.state / CURSOR
    assert config.trace
    widened = prepare(client, config.name, config.trace.keep, f"trace: {config.trace.url}")
    cursor = Cursor.read(path)
    if rebuild or widened or not _is_in(client, config.name, cursor):
        cursor = Cursor()
    if cursor.log and (cursor.log != log.uuid or not _still_there(log, cursor)):
        cursor = Cursor(versions=cursor.versions, lakes=cursor.lakes)
    rows = Rows()
    records = taken = 0

    def flush() -> None:
        faults.point("trace.insert")
        if len(rows):
            rows.write(client)
            if told:
                told(rows.written)
        cursor.write(path)

    # The lake first: so every epoch that one of these commits names is in the log by the time that is read.
    for table, folder in folders(config.lake_root):
        hashes: set[str] = set()
        for found in commits(folder, cursor.versions.get(table.id, -1), cursor.lakes.get(table.id)):
            if isinstance(found, Seen):
                cursor.versions[table.id], cursor.lakes[table.id] = found.version, found.known
                if found.all_from is not None:
                    disown(client, config.name, table.id, found.known["id"], found.all_from, hashes)
            elif found.info.get("pipeline", config.name) == config.name:
                row = lake_row(config.name, table.id, found)
                hashes.add(row["hash"])
                rows.add(row)
                taken += 1
            if len(rows) >= BATCH_ROWS:
                flush()
    for record in log.records(cursor.epoch or None):
        for row in record_rows(config.name, record, log):
            rows.add(row)
        cursor.log, cursor.epoch, cursor.hash = record.log, record.number, record.hash
        records += 1
        if len(rows) >= BATCH_ROWS:
            flush()
    now_s = int(time.time())
    if config.trace.url.startswith("chdb:"):
        if not now_s - SWEEP_S <= cursor.swept_s <= now_s:
            sweep(client, config.name, config.trace.keep)
            cursor.swept_s = now_s
        if not now_s - TIDY_EVERY_S <= cursor.tidied_s <= now_s:
            tidy(client)
            cursor.tidied_s = now_s
    flush()
    return ProjectResult(cursor.epoch, cursor.hash, records, taken, rows.written, time.monotonic() - started)


def _is_in(client: Client, pipeline: str, cursor: Cursor) -> bool:
    """Whether ClickHouse has what the cursor says: it may be another one, emptied, or restored from before."""
    if not cursor.hash:
        return False
    query = f"SELECT count() FROM {LEDGER} WHERE pipeline = {{p:String}} AND node = 'source' AND hash = {{h:String}}"
    return bool(client.query(query, parameters={"p": pipeline, "h": cursor.hash}).result_rows[0][0])


def _still_there(log: Log, cursor: Cursor) -> bool:
    """Whether the log has the cursor's record, or has trimmed it and goes on right behind it."""
    first = next(iter(log.records(cursor.epoch - 1)), None)
    if first is None:
        return False
    return first.hash == cursor.hash if first.number == cursor.epoch else first.before == cursor.hash
