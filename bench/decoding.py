"""What decodes and is measured, in a process of its own: `python -m bench.decoding PROGRAM …`. Prints what it took, and what it found."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bench import recording
from bench.measure import measured
from bench.rows import SCHEMA
from bench.setting import DATABASE, PASSWORD, USER
from cdc._native import BinlogDecoder, ServerError
from cdc.config import SourceConfig
from cdc.source import results
from cdc.source.connection import connect

DRAIN_BYTES, PART_BYTES = 8 << 20, 64 << 20
PIECE = 256 * 1024
"""Bytes fed at once, as capture does."""


def _batches(pieces: Iterable[Any], tables: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """Every change in a stream of packets, batch by batch."""
    decoder = BinlogDecoder(drain_bytes=DRAIN_BYTES, part_bytes=PART_BYTES)
    decoder.capture([(DATABASE, table) for table in tables])
    plan: list[dict[str, Any] | None] = list(SCHEMA.plans())

    def drained() -> Iterator[pa.RecordBatch]:
        for _schema, _table, _definition, batch, _presence, _diffs in decoder.drain().changes:
            yield pa.record_batch(batch)

    try:
        for piece in pieces:
            wanted = decoder.feed(piece)
            while wanted is not None:
                if wanted[0] == "drain":
                    yield from drained()
                elif wanted[0] == "table":
                    decoder.table(plan)
                else:
                    decoder.statement("statement")
                wanted = decoder.feed(b"")
    except ServerError as error:
        if error.args[0] != 0:  # other than the log's end
            raise
    yield from drained()


def pieces(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[at : at + PIECE] for at in range(0, len(view), PIECE))


def memory(file: str, tables: str) -> None:
    """A recording into Arrow, each batch given up as it comes."""
    data = Path(file).read_bytes()
    with measured():
        changes = sum(batch.num_rows for batch in _batches(pieces(data), tables.split(",")))
    print(json.dumps({"changes": changes}))


def summary(file: str, tables: str, part: str) -> None:
    """What the first changes of a recording are in sum, for comparison; and how many it has."""
    data = Path(file).read_bytes()
    with measured():
        batches = list(_batches(pieces(data), tables.split(",")))
    found: Any = pa.Table.from_batches(batches)
    first: Any = found.slice(0, int(part))
    sums = [
        pc.sum(first.column("change_no")),
        pc.sum(first.column("amount")),
        pc.sum(pc.utf8_length(first.column("name"))),
    ]
    ids = pc.sum(first.column("id")).as_py()
    print(json.dumps({"changes": len(first), "ids": ids, "sums": [str(s.as_py()) for s in sums], "all": len(found)}))


def live(port: str, before: str, table: str) -> None:
    """The server's stream into Arrow, up to its end."""
    buffer = bytearray(PIECE)
    view = memoryview(buffer)

    def received(connection: Any) -> Iterator[memoryview]:
        # Past PyMySQL's own buffer, which is empty: the server says nothing before it is asked.
        while size := connection._sock.recv_into(buffer):
            yield view[:size]

    with measured(), recording.asked(int(port), before) as connection:
        changes = sum(batch.num_rows for batch in _batches(received(connection), [table]))
    print(json.dumps({"changes": changes}))


def table(port: str, name: str) -> None:
    """A table into Arrow, as a snapshot reads it."""
    os.environ["BENCH_PASSWORD"] = PASSWORD
    source = SourceConfig(url=f"mysql://{USER}@127.0.0.1:{port}", password="env:BENCH_PASSWORD")
    connection = connect(source, purpose="bench")
    with measured():
        batches = list(results.read(connection, lambda _: (f"SELECT * FROM {DATABASE}.{name}", ()), SCHEMA.plans()))
    found: Any = pa.Table.from_batches(batches)
    sums = [pc.sum(found.column(column)).as_py() for column in ("id", "amount")]
    print(json.dumps({"summary": [str(len(found)), *map(str, sums)]}))
    connection.close()


PROGRAMS: dict[str, Callable[..., None]] = {p.__name__: p for p in (memory, summary, live, table)}

if __name__ == "__main__":
    pa.array([0])  # the first one imports pandas, where that is installed
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
