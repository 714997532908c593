"""A table's way into a bootstrap without a capture; as a program, a bootstrap of its own process, for tests that kill it:

    bootstrapping.py FOLDER URL TABLE CHUNK_ROWS READERS

The environment's `LAKESYNC_FAULTS` says where it dies.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord, Counts, TableState
from cdc.lake import LakeTable, Snapshot
from cdc.log import open_log
from cdc.names import TableName
from cdc.position import Fingerprint, Gtid, Position
from cdc.source.catalogue import read_schema
from cdc.source.connection import connect
from cdc.source.server import Server
from cdc.state import State, TableStatus
from snapshot import Bootstrap


class Pipeline:
    """A configuration, its log and its state in `folder`, and the epochs that a capture without rows to capture would write."""

    def __init__(self, folder: Path, url: str, *, chunk_rows: int = 10, readers: int = 1) -> None:
        self.config = PipelineConfig.model_validate(
            {
                "name": "test",
                "source": {"url": url},
                "log": f"sqlite://{folder}/log.db",
                "lake": str(folder / "lake"),
                "state": folder / "state",
                "snapshot": {"chunk_rows": chunk_rows, "readers": readers},
            }
        )
        self.log = open_log(self.config.log, self.config.name)
        self.state = State(folder / "state")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()

    # the log

    def position(self) -> Position:
        """Where the source is."""
        connection = connect(self.config.source, purpose="test")
        try:
            server = Server(connection)
            return replace(server.position(), end=server.binlog_end())
        finally:
            connection.close()

    def epoch(self, end: Position | None = None, **fields: Any) -> CommitRecord:
        """Write the next epoch, without rows: at the source's position, or `end`."""
        writer = self.log.writer()
        try:
            newest = writer.newest
            end = end or self.position()
            record = CommitRecord(
                log=self.log.uuid,
                number=newest.number + 1 if newest else 1,
                before=newest.hash if newest else None,
                start=newest.end if newest else end,
                end=end,
                ts_ms=newest.ts_ms + 1 if newest else 1_700_000_000_000,
                raw_us=1_700_000_000_000_000,
                seq=newest.seq + 1 if newest else 1,
                transactions=1,
                framing={},
                framing_totals={},
                written_us=1,
                checkpoint=newest.checkpoint if newest else 1,
                states=None if newest else {},
            )
            record = replace(record, **fields)
            return writer.append({}, lambda _: record)
        finally:
            writer.close()

    def add(self, table: TableName, end: Position | None = None, **options: str) -> CommitRecord:
        """What capture does for a new table: an epoch says so, then the state does."""
        if self.log.newest() is None:
            self.epoch(end)
        newest = self.log.newest()
        assert newest is not None
        connection = connect(self.config.source, purpose="test")
        try:
            schema = read_schema(connection, table)
        finally:
            connection.close()
        what = TableState(schema.to_dict(), {"mode": "upsert", **options}, Counts(), None, newest.number + 1)
        record = self.epoch(end, added={table.id: what})
        self.state.set_table(table, "added", added=record.id)
        return record

    def invented(self, end: Position, server: str) -> Position:
        """A position on another server, one transaction later."""
        gtid = Gtid(server, 1)
        return replace(end, server_uuid=server, gtids=end.gtids.add(gtid), last=Fingerprint(gtid, 1, 1))

    # bootstrap and lake

    def bootstrap(self, table: TableName, **arguments: Any) -> bool:
        """Run one to its end."""
        return Bootstrap(self.config, self.log, self.state, table).run(threading.Event(), **arguments)

    def lake(self, table: TableName) -> LakeTable:
        """The table's folder."""
        return LakeTable(self.config.lake_root, table, self.config.name)

    def loaded(self, table: TableName) -> Snapshot:
        """Its newest version; there is one."""
        snapshot = self.lake(table).load()
        assert snapshot is not None
        return snapshot

    def status(self, table: TableName) -> TableStatus:
        """Its state; there is one."""
        status = self.state.table(table)
        assert status is not None
        return status


def main(folder: str, url: str, table: str, chunk_rows: str, readers: str) -> None:
    with Pipeline(Path(folder), url, chunk_rows=int(chunk_rows), readers=int(readers)) as pipeline:
        pipeline.bootstrap(TableName.parse(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
