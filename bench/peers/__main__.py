"""Scripts, as programs of their own: `python -m bench.peers NAME …`. What one would write in an afternoon, with the same libraries.

None of them promises anything: no position is kept, a kill loses or repeats rows, a wide value is whatever the library makes of it.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pymysql
from pymysql.cursors import SSCursor

from bench.measure import measured
from bench.rows import SCHEMA
from bench.setting import DATABASE, PASSWORD, USER
from dev.binlog import COM_BINLOG_DUMP_GTID, payloads

BATCH_ROWS = 50_000
MERGE_EVERY_S = 1.0


def snapshot(socket: str, table: str, rows_wanted: str, folder: str) -> None:
    """Read a table's first rows and write them as one Delta table; prints how many."""
    import deltalake

    connection: pymysql.Connection[Any] = pymysql.connect(
        user="root",
        unix_socket=socket,
        database=DATABASE,
        cursorclass=SSCursor,
        init_command="SET time_zone = '+00:00'",
    )
    rows = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM `{table}` ORDER BY id LIMIT {int(rows_wanted)}")
            while found := cursor.fetchmany(BATCH_ROWS):
                rows += len(found)
                yield _batch(list(found))

    deltalake.write_deltalake(folder, pa.RecordBatchReader.from_batches(SCHEMA.arrow, batches()))
    print(rows)


def values(socket: str, table: str, rows_wanted: str, folder: str) -> None:
    """Compare a table's first rows with a Delta table's, whole rows side by side in memory; prints how many there are and how many differ."""
    import polars as pl

    connection: pymysql.Connection[Any] = pymysql.connect(
        user="root",
        unix_socket=socket,
        database=DATABASE,
        cursorclass=SSCursor,
        init_command="SET time_zone = '+00:00'",
    )
    batches = []
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM `{table}` WHERE id <= {int(rows_wanted)}")
        while found := cursor.fetchmany(BATCH_ROWS):
            batches.append(_batch(list(found)))
    source = pl.DataFrame(pa.Table.from_batches(batches))
    names = SCHEMA.names
    lake = pl.scan_delta(folder).filter(pl.col("id") <= int(rows_wanted)).select(names).collect()
    joined = source.join(lake, on="id", how="full", suffix="_lake")
    same = pl.all_horizontal(pl.col(n).eq_missing(pl.col(f"{n}_lake")) for n in names)
    print(source.height, joined.filter(~same).height)


def replication(port: str, table: str, before: str, after: str) -> None:
    """Read every row change of a table between two GTID sets; prints their number."""
    changes = 0
    for kind, rows in _changes(int(port), table, before, after):
        changes += len(rows)
        del kind
    print(changes)


def _changes(port: int, table: str, before: str, after: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(kind, rows) event by event; ends once `after` is reached, if it is given. A row is `{"values": …}` or `{"after_values": …}`."""
    from pymysqlreplication import BinLogStreamReader
    from pymysqlreplication.event import GtidEvent, XidEvent
    from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

    stream = BinLogStreamReader(
        connection_settings={"host": "127.0.0.1", "port": port, "user": USER, "passwd": PASSWORD},
        server_id=4242,
        auto_position=before,
        blocking=True,
        only_schemas=[DATABASE],
        only_tables=[table],
        only_events=[GtidEvent, XidEvent, WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent],
    )
    last = int(re.split("[:-]", after)[-1]) if after else 0  # one server, no gaps
    number = 0
    for event in stream:
        if isinstance(event, GtidEvent):
            number = int(event.gtid.rpartition(":")[2])
        elif isinstance(event, XidEvent):
            if number == last:
                break
        else:
            yield type(event).__name__, event.rows
    stream.close()


def recorded(port: str, file: str, table: str, rows: str) -> None:
    """Decode a recording of `bench.recording` from memory, at least so many row changes; prints what it took and sums of what it read.

    The library's reader talks to the server, but for the stream itself: its connection's packets are the recording's.
    """
    from pymysql.protocol import MysqlPacket
    from pymysqlreplication import BinLogStreamReader
    from pymysqlreplication.row_event import UpdateRowsEvent, WriteRowsEvent

    connection: Any = pymysql.connections.Connection
    packets = list(payloads(Path(file).read_bytes()))
    wanted = int(rows)

    class Recorded(connection):  # type: ignore[misc]
        source: Iterator[bytes] | None = None

        def _write_bytes(self, data: bytes) -> None:
            if data[4] == COM_BINLOG_DUMP_GTID:
                self.source = iter(packets)
            else:
                super()._write_bytes(data)

        def _read_packet(self, packet_type: Any = MysqlPacket) -> Any:
            if self.source is None:
                return super()._read_packet(packet_type)
            return packet_type(next(self.source), self.encoding)

    stream = BinLogStreamReader(
        connection_settings={"host": "127.0.0.1", "port": int(port), "user": USER, "passwd": PASSWORD},
        pymysql_wrapper=Recorded,
        server_id=4242,
        auto_position="00000000-0000-0000-0000-000000000001:1",
        only_schemas=[DATABASE],
        only_tables=[table],
        only_events=[WriteRowsEvent, UpdateRowsEvent],
        verify_checksum=True,
    )
    found: list[dict[str, Any]] = []
    with measured():
        for event in stream:
            found += event.rows
            if len(found) >= wanted:
                break
    stream.close()
    first = [row.get("after_values") or row["values"] for row in found[:wanted]]
    sums = [str(sum(row[name] for row in first)) for name in ("change_no", "amount")]
    sums.append(str(sum(len(row["name"]) for row in first)))
    print(json.dumps({"changes": len(found), "ids": sum(row["id"] for row in first), "sums": sums}))


def follow(port: str, table: str, before: str, folder: str) -> None:
    """Follow a table's inserts and updates into a Delta table that is there, with one MERGE a second, for ever."""
    import deltalake

    pending: dict[int, tuple[Any, ...]] = {}
    lock = threading.Lock()

    def read() -> None:
        for _, rows in _changes(int(port), table, before):
            for row in rows:
                values = row.get("after_values") or row["values"]
                with lock:
                    pending[values["id"]] = tuple(values.values())

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=read, daemon=True).start()
    print("following", flush=True)
    while True:
        began = time.monotonic()
        with lock:
            rows, pending = list(pending.values()), {}
        if rows:
            merge = deltalake.DeltaTable(folder).merge(_batch(rows), "t.id = s.id", "s", "t")
            merge.when_matched_update_all().when_not_matched_insert_all().execute()
        time.sleep(max(0.0, began + MERGE_EVERY_S - time.monotonic()))


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA.arrow, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA.arrow)


def merge(folder: str, *files: str) -> None:
    """deltalake's MERGE of upserts and deletes (`op` is 'd') from Arrow files, one after the other; prints what each took."""
    import deltalake

    for changes in files:
        with pa.OSFile(changes, "rb") as file:
            source = pa.ipc.open_file(file).read_all()
        every = {name: f"s.{name}" for name in source.column_names if name != "op"}
        with measured():
            merger = deltalake.DeltaTable(folder).merge(source, "t.id = s.id", "s", "t")
            merger = merger.when_matched_delete("s.op = 'd'").when_matched_update(every, "s.op = 'u'")
            merger.when_not_matched_insert(every, "s.op = 'u'").execute()


PROGRAMS: dict[str, Callable[..., None]] = {
    p.__name__: p for p in (snapshot, values, replication, recorded, follow, merge)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*map(str, sys.argv[2:]))
