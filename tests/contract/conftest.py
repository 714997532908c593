"""The logs that the contract suite runs over, and a made-up source to fill them from."""

from __future__ import annotations

import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cdc.epoch import CommitRecord, Counts, Extent, TableEntry
from cdc.log import Log, LogWriter, Seal, open_log
from cdc.log.codec import METADATA, encode
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position

SERVER = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
SCHEMA_HASH = "0" * 64


class Epochs:
    """A made-up source of one transaction an epoch: builds data and commit records that belong together."""

    def __init__(self) -> None:
        self.tables: dict[str, tuple[Counts, Any]] = {}

    def batch(self, number: int, rows: int, width: int = 8) -> pa.RecordBatch:
        """The changes of `rows` inserted rows, each with a text of `width` characters."""
        columns: list[pa.Array[Any]] = [
            pa.array([0] * rows, pa.int8()),
            pa.array([0] * rows, pa.int32()),
            pa.array(range(rows), pa.int32()),
            pa.array([0] * rows, pa.int32()),
            pa.array([1_000 + number] * rows, pa.int64()),
            pa.array(range(rows), pa.int64()),
            pa.array(range(rows), pa.int64()),
            pa.array([f"{number}-{i}".ljust(width, "x") for i in range(rows)]),
        ]
        fields = [*METADATA, pa.field("id", pa.int64()), pa.field("text", pa.string())]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))

    def data(self, number: int, rows: Mapping[str, int], width: int = 8) -> dict[str, list[bytes]]:
        """The records of epoch `number`: so many rows of each table (by id)."""
        gtids = [f"{SERVER}:{number}"]
        return {t: [*map(bytes, encode(self.batch(number, n, width), gtids, SCHEMA_HASH))] for t, n in rows.items()}

    def position(self, number: int, events: int = 0) -> Position:
        """After transaction `number`, and so many row events of the next one."""
        last = Fingerprint(Gtid(SERVER, number), number * 1_000, 1) if number else None
        gtids = GtidSet({SERVER: ((1, number),)}) if number else GtidSet({})
        partial = Fingerprint(Gtid(SERVER, number + 1), number * 1_000 + 1_000, events) if events else None
        return Position(gtids, SERVER, BinlogEnd("binlog.000001", 4 + number * 100), last, partial)

    def record(
        self,
        log: str,
        newest: CommitRecord | None,
        extents: Mapping[str, Extent],
        rows: Mapping[str, int] | None = None,
    ) -> CommitRecord:
        """The commit record that follows `newest`, with these extents of as many rows inserted as `rows` says (1)."""
        number = newest.number + 1 if newest else 1
        tables = {}
        for table, extent in extents.items():
            counts = Counts((rows or {}).get(table, 1))
            totals, previous = self.tables.get(table, (Counts(), None))
            tables[table] = TableEntry(counts, totals.plus(counts), extent, previous, SCHEMA_HASH)
        record = CommitRecord(
            log=log,
            number=number,
            before=newest.hash if newest else None,
            start=self.position(number - 1),
            end=self.position(number),
            ts_ms=1_000 + number,
            raw_us=(1_000 + number) * 1_000,
            seq=number,
            transactions=1,
            framing={"events": 4, "bytes": 100},
            framing_totals={"events": 4 * number, "bytes": 100 * number},
            written_us=1,
            checkpoint=1,
            tables=tables,
        )
        for table, entry in tables.items():
            self.tables[table] = (entry.totals, record.id)
        return record

    def seal(self, log: str, newest: CommitRecord | None, rows: Mapping[str, int], /, **changes: Any) -> Seal:
        """As `append` wants it. `changes` replace fields of the record."""
        return lambda extents: replace(self.record(log, newest, extents, rows), **changes)

    def append(
        self, log: Log, writer: LogWriter, rows: Mapping[str, int] | None = None, width: int = 8, /, **changes: Any
    ) -> CommitRecord:
        """Append the next epoch: one row of `shop.orders` unless told otherwise."""
        rows = {"shop.orders": 1} if rows is None else rows
        number = writer.newest.number + 1 if writer.newest else 1
        return writer.append(self.data(number, rows, width), self.seal(log.uuid, writer.newest, rows, **changes))

    def fill(
        self, log: Log, epochs: int, rows: Sequence[Mapping[str, int]] | None = None, **changes: Any
    ) -> list[CommitRecord]:
        """Open a writer, append so many epochs, close it."""
        writer = log.writer()
        try:
            return [self.append(log, writer, rows[i % len(rows)] if rows else None, **changes) for i in range(epochs)]
        finally:
            writer.close()


class Place(ABC):
    """Somewhere that a log is, with what happens to logs there."""

    kind: str
    pipeline = "shop"
    url: str

    def __init__(self) -> None:
        self._logs: list[Log] = []

    def open(self) -> Log:
        """Another handle of the log, as another process has it."""
        log = open_log(self.url, self.pipeline)
        self._logs.append(log)
        return log

    def close(self) -> None:
        """All handles."""
        for log in self._logs:
            log.close()

    @abstractmethod
    def usurp(self, log: Log) -> LogWriter:
        """A second writer beside a living one."""

    @abstractmethod
    def recreate(self) -> None:
        """Remove the log, so that it is made anew under the same name."""

    @abstractmethod
    def overwrite(self, table: str, extent: Extent, payload: bytes) -> None:
        """Put `payload` in the place of the extent's first record, behind the log's back."""


class SqlitePlace(Place):
    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "log" / "shop.db"
        self.url = f"sqlite://{self.path}"

    def usurp(self, log: Log) -> LogWriter:
        # On a file system without working locks, or after someone removed the lock file, only the token is left.
        Path(f"{self.path}.lock").unlink()
        return log.writer()

    def recreate(self) -> None:
        shutil.rmtree(self.path.parent)

    def overwrite(self, table: str, extent: Extent, payload: bytes) -> None:
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(self.path)) as sql, sql:
            changed = sql.execute(
                'UPDATE data SET payload = ? WHERE "offset" = ? AND tbl = ?', (payload, extent.first, table)
            )
            assert changed.rowcount == 1


class KafkaPlace(Place):
    kind = "kafka"

    def __init__(self, bootstrap: str) -> None:
        super().__init__()
        self.pipeline = f"shop-{uuid.uuid4().hex[:8]}"
        self.bootstrap = bootstrap
        self.url = f"kafka://{bootstrap}"

    def usurp(self, log: Log) -> LogWriter:
        return log.writer()

    def recreate(self) -> None:
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        topics = [
            t for t in admin.list_topics(timeout=10).topics if t.startswith(self.pipeline.replace("-", "-2d") + ".")
        ]
        for future in admin.delete_topics(topics, operation_timeout=10).values():
            future.result()

    def overwrite(self, table: str, extent: Extent, payload: bytes) -> None:
        pytest.skip("nobody overwrites a record in Kafka")


@pytest.fixture
def epochs() -> Epochs:
    return Epochs()


@pytest.fixture(params=["sqlite", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        made: Place = SqlitePlace(tmp_path)
    else:
        made = KafkaPlace(request.getfixturevalue("kafka").bootstrap)
    yield made
    made.close()


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Iterator[SqlitePlace]:
    made = SqlitePlace(tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(place: Place) -> Log:
    return place.open()


@pytest.fixture
def writer(log: Log) -> Iterator[LogWriter]:
    made = log.writer()
    yield made
    made.close()
