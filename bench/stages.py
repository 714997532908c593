"""What each stage of a row's way costs in CPU seconds: decoder, record codec, digest, SQLite, and back: codec and fold.

The measured reason why what follows the decoder is Arrow's kernels under Python, and no code of our own.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import pyarrow as pa

from bench import recording
from bench.decode import STATEMENT
from bench.decoding import pieces
from bench.measure import FailedError, Process
from bench.report import Table
from bench.rows import SCHEMA
from bench.setting import DATABASE, Setting
from cdc.capture.base import Drained
from cdc.capture.native import NativeDecoder
from cdc.config import CaptureConfig
from cdc.epoch import CommitRecord, Counts, Extent, TableEntry, digest
from cdc.errors import SourceUnavailableError
from cdc.log.codec import Changes, decode, encode
from cdc.log.sqlite import SqliteLog
from cdc.merge.fold import fold
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position

OPTIONS = ("rows", "turns")

SIZES = (STATEMENT, 1)
ONE_ROW = 10
"""So many times fewer of one row a transaction."""
STAGES = {
    "decode": "native decoder, to Arrow in Python",
    "encode": "record codec: Arrow IPC",
    "digest": "SHA-256 of the records",
    "append": "SQLite, durable (digest left out)",
    "read": "SQLite, read (with its digest)",
    "back": "record codec, read and checked",
    "fold": "fold: the last change of each key",
}


def measure(setting: Setting) -> list[Table]:
    """One table."""
    _ = setting.table
    costs: dict[int, dict[str, list[float]]] = {size: defaultdict(list) for size in SIZES}
    files, counts = {}, {}
    for size in SIZES:
        counts[size] = setting.sizes.rows if size > 1 else max(1, setting.sizes.rows // ONE_ROW)
        table = f"stages_{size}"
        setting.create(table, 0)
        before = setting.server.gtid_executed
        recording.insert(setting, [table], counts[size], size)
        files[size] = setting.folder(f"stages-{size}") / "recorded"
        recording.record(setting.server, before, files[size])
    for _turn in range(setting.sizes.turns):
        for size, file in files.items():
            folder = setting.folder("stages")
            process = Process([sys.executable, "-m", "bench.stages", file, f"stages_{size}", folder / "log.db"], folder)
            process.wait()
            found = json.loads(process.output.read_text())
            if found.pop("rows") != counts[size] or found.pop("folded") != counts[size]:
                raise FailedError(f"not {counts[size]} rows came through")
            for stage, seconds in found.items():
                costs[size][stage].append(seconds / counts[size])
    titles = [f"{counts[size]:,} inserts, {size:,} a transaction" for size in SIZES]
    result = Table("CPU µs a row of ten columns", ("stage", *titles))
    for stage, what in STAGES.items():
        result.add(what, *(f"{median(costs[size][stage]) * 1e6:.3f}" for size in SIZES))
    return [result]


class _Clock:
    """CPU seconds of this process, by stage."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.process_time_ns()
        yield
        self.seconds[name] += (time.process_time_ns() - began) / 1e9  # type: ignore[assignment]


def run(file: Path, table: TableName, path: Path) -> None:
    """What is measured: the rows of a recording to the log, epoch by epoch as capture cuts them, and back from there."""
    clock, rows, folded = _Clock(), 0, 0
    extents: list[Extent] = []
    log = SqliteLog(path, "stages")
    with closing(log), closing(log.writer()) as writer:
        for drained in _drained(clock, file, table):
            names = pa.array(drained.gtids, pa.string())
            for changes in drained.changes:
                rows += changes.batch.num_rows
                with clock.stage("encode"):
                    records = encode(changes.batch, names, SCHEMA.hash)
                with clock.stage("digest"):
                    digest(records)
                with clock.stage("append"):
                    record = writer.append(
                        {table.id: records}, lambda extents: _record(log.uuid, writer.newest, table, extents[table.id])
                    )
                extents.append(record.tables[table.id].extent)
        for extent in extents:
            with clock.stage("read"):
                payloads = log.data(table.id, extent)
            with clock.stage("back"):
                changes_of: list[Changes] = [decode(payload) for payload in payloads]
            with clock.stage("fold"):
                folded += fold(changes_of, SCHEMA).upserts.num_rows
    clock.seconds["append"] -= clock.seconds["digest"]
    print(json.dumps({**clock.seconds, "rows": rows, "folded": folded}))


def _drained(clock: _Clock, file: Path, table: TableName) -> Iterator[Drained]:
    data = file.read_bytes()
    decoder = NativeDecoder(drain_bytes=CaptureConfig().epoch_size)
    decoder.capture({table: SCHEMA})
    for piece in pieces(data):
        taken = False
        while not taken:
            with clock.stage("decode"):
                try:
                    taken = decoder.feed(bytes(piece))
                except SourceUnavailableError:  # the log's end
                    yield decoder.drain()
                    return
                drained = None if taken else decoder.drain()
            if drained is not None:
                yield drained
            piece = memoryview(b"")


def _record(log: str, before: CommitRecord | None, table: TableName, extent: Extent) -> CommitRecord:
    position = Position(GtidSet({}), "", BinlogEnd("", 0))
    number = before.number + 1 if before else 1
    entry = TableEntry(Counts(), Counts(), extent, before.id if before else None, SCHEMA.hash)
    return CommitRecord(
        log, number, before.hash if before else None, position, position, 0, 0, 0, 0, {}, {}, 0, 1, {table.id: entry}
    )


if __name__ == "__main__":
    pa.array([0])  # the first one imports pandas, where that is installed
    run(Path(sys.argv[1]), TableName(DATABASE, sys.argv[2]), Path(sys.argv[3]))
