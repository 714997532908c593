"""The log in Kafka: a topic of one partition a table, one for the commit records, an epoch a transaction.

A visible commit record does not mean that the table's marker is visible too: `data` reads on to the last offset that the record names
and compares the digest. The producer's `transactional.id` is the pipeline's: opening a writer fences every earlier one and settles its
transaction, and only then is the newest record read.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from cdc import faults
from cdc.epoch import CommitRecord, Extent, digest
from cdc.errors import (
    ConfigError,
    LogDamagedError,
    LogError,
    LogFencedError,
    LogGapError,
    LogIndefiniteError,
    LogMovedError,
    LogUnavailableError,
)
from cdc.log import verify
from cdc.log.base import LogWriter, Payload, Seal
from cdc.log.broker import FENCED, PURGED, Bounds, Cluster, Reader, kafka_error, topic_uuid, transient
from cdc.names import TOPIC_LIMIT, TableName, encode

INIT_S = 30.0
"""Fencing the writer before and settling its transaction may take this long."""
FLUSH_S = 30.0
"""Writing an epoch's data may take this long."""
COMMIT_S = 30.0
"""A commit that takes longer has an outcome that is not known."""
ABORT_S = 10.0
VISIBLE_S = 30.0
"""Data of a visible commit record becomes visible within this time."""
LOST_S = 1.0
"""Data that is not even in the partition after this time, uncommitted, is lost."""
POLL_S = 0.05
"""Between two looks while waiting for a record; a look takes 2 ms."""
LOOK_S = 0.005
"""Between two looks at a marker that is about to come."""
KNOWN_OFFSETS = 10_000
"""Commit records whose offset is remembered."""
SCAN = 64
"""Offsets below which a search reads on rather than halves."""


class KafkaLog:
    """See `Log`. Opening waits for no broker; `uuid` and `writer` make the topic of commit records."""

    def __init__(self, bootstrap: str, pipeline: str, options: Mapping[str, str]) -> None:
        self._cluster = Cluster(bootstrap, options)
        self._cluster.admin()  # which checks the options
        self._pipeline = pipeline
        self._commits = f"{encode(pipeline)}.commits"
        if len(self._commits) > TOPIC_LIMIT:
            raise ConfigError(
                f"the name needs {len(self._commits)} characters as a topic, {TOPIC_LIMIT} are possible", where=pipeline
            )
        self._where = f"{self._cluster.where}, {self._commits}"
        self._offsets: dict[int, int] = {}
        self._seen: tuple[Bounds, int] | None = None  # by `wait`, with the number of the newest record
        self._lock = threading.Lock()

    @property
    def uuid(self) -> str:
        found = self._cluster.describe(self._commits) or self._cluster.ensure(self._commits)
        return topic_uuid(found)

    def writer(self) -> LogWriter:
        return KafkaWriter(self._cluster, self._pipeline, self._commits)

    def newest(self) -> CommitRecord | None:
        with self._cluster.reader() as reader:
            return _newest(reader, self._commits, self._where)

    def oldest(self) -> CommitRecord | None:
        with self._cluster.reader() as reader:
            bounds = reader.bounds(self._commits)
            found = bounds and reader.first(self._commits, *bounds)
            return verify.parse(found[1], f"{self._where}, offset {found[0]}") if found else None

    def records(self, after: int | None = None) -> Iterator[CommitRecord]:
        with self._cluster.reader() as reader:
            bounds = reader.bounds(self._commits)
            if bounds is None:
                return
            for offset, payload in self._from(reader, bounds, after):
                record = self._parse(offset, payload)
                if after is None or record.number > after:
                    yield record
                if offset >= bounds.end - 2:  # what is left is the marker
                    return

    def wait(self, after: int, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        with self._cluster.reader() as reader:
            while True:
                bounds = reader.bounds(self._commits)
                if bounds is not None and (self._seen is None or self._seen[0] != bounds):
                    found = reader.last(self._commits, bounds)
                    self._seen = bounds, self._parse(*found).number if found is not None else -1
                if bounds is not None and self._seen is not None and self._seen[1] > after:
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                time.sleep(min(POLL_S, left))

    def data(self, table: str, extent: Extent) -> list[bytes]:
        records = self._data(table, extent)
        verify.check_data(table, extent, records, f"{self._cluster.where}, {self._topic(table)}")
        return records

    def heads(self, table: str, extent: Extent, length: int) -> list[tuple[bytes, int]]:  # noqa: ARG002 - a broker gives whole records
        records = [(record, len(record)) for record in self._data(table, extent)]
        lengths = [size for _, size in records]
        verify.check_lengths(table, extent, lengths, f"{self._cluster.where}, {self._topic(table)}")
        return records

    def _data(self, table: str, extent: Extent) -> list[bytes]:
        topic = self._topic(table)
        with self._cluster.reader() as reader:
            self._until_visible(reader, topic, table, extent)
            return [payload for _, payload in reader.read(topic, extent.first, extent.last + 1)]

    def trim(self, before: int) -> None:
        newest = self.newest()
        if newest is None:
            return
        keep = min(before, newest.checkpoint, newest.number)
        below: dict[str, int] = {}
        place: int | None = None
        with self._cluster.reader() as reader:
            bounds = reader.bounds(self._commits)
            if bounds is None:
                return
            for offset, payload in reader.read(self._commits, *bounds):
                record = self._parse(offset, payload)
                if record.number >= keep:
                    place = offset
                    break
                below |= {self._topic(table): entry.extent.last + 1 for table, entry in record.tables.items()}
        if below or (place is not None and place > bounds.low):
            # The records last: while they are there, what is left of the data is found by the next call.
            self._cluster.delete_records(below)
            self._cluster.delete_records({self._commits: place} if place is not None else {})

    def size_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self._cluster.close()

    def _topic(self, table: str) -> str:
        return TableName.from_id(table).topic(self._pipeline)

    def _parse(self, offset: int, payload: bytes) -> CommitRecord:
        record = verify.parse(payload, f"{self._where}, offset {offset}")
        with self._lock:
            self._offsets.pop(record.number, None)
            self._offsets[record.number] = offset
            if len(self._offsets) > KNOWN_OFFSETS:
                del self._offsets[next(iter(self._offsets))]
        return record

    def _from(self, reader: Reader, bounds: Bounds, after: int | None) -> Iterator[tuple[int, bytes]]:
        """Commit records from not after the first one with a number above `after`, and not far before it."""
        if after is None:
            return reader.read(self._commits, *bounds)
        for number in (after + 1, after):
            with self._lock:
                known = self._offsets.get(number)
            if known is None or not bounds.low <= known < bounds.end:
                continue
            records = reader.read(self._commits, known, bounds.end)
            first = next(records, None)
            if first is not None and first[0] == known and self._parse(*first).number == number:
                return chain([first], records)
            records.close()
            break  # the log was cut off since, or is another one: nothing that is remembered holds
        return reader.read(self._commits, self._search(reader, bounds, after), bounds.end)

    def _search(self, reader: Reader, bounds: Bounds, after: int) -> int:
        low, high = bounds
        while high - low > SCAN:
            middle = (low + high) // 2
            found = reader.first(self._commits, middle, high)
            if found is None or self._parse(*found).number > after:
                high = middle
            else:
                low = found[0] + 1
        return low

    def _until_visible(self, reader: Reader, topic: str, table: str, extent: Extent) -> None:
        where = f"{self._cluster.where}, {topic}"
        began = time.monotonic()
        while True:
            bounds = reader.bounds(topic)
            if bounds is None:
                raise LogDamagedError(f"the topic of {table} is gone", where=where, hint=verify.RESTORED)
            if extent.first < bounds.low:
                raise LogGapError(
                    f"an epoch's data of {table} has been trimmed",
                    where=f"{where}, offset {extent.first}",
                    hint=verify.RESTORED,
                )
            if bounds.end > extent.last:
                return
            waited = time.monotonic() - began
            if waited > LOST_S and self._cluster.high_watermark(topic) <= extent.last:
                raise LogDamagedError(
                    f"an epoch's data of {table} is lost", where=f"{where}, offset {extent.last}", hint=verify.RESTORED
                )
            if waited > VISIBLE_S:
                raise LogUnavailableError(
                    f"an epoch's data of {table} is not visible after {VISIBLE_S:g} s",
                    where=where,
                    hint="is the transaction coordinator up? Does another producer write to the topic?",
                )
            time.sleep(LOOK_S if waited < LOST_S else POLL_S)


class KafkaWriter:
    """See `LogWriter`. For one thread at a time."""

    def __init__(self, cluster: Cluster, pipeline: str, commits: str) -> None:
        self._cluster = cluster
        self._pipeline = pipeline
        self._commits = commits
        self._where = f"{cluster.where}, {commits}"
        self._topics: dict[str, str] = {}
        self._doubtful = False
        self._fenced: KafkaError | None = None
        self._producer: Producer | None = None
        self._reader = Reader(cluster)
        try:
            self._uuid = topic_uuid(cluster.ensure(commits))
            known = _newest(self._reader, commits, self._where)
            self._producer = self._fence()
            # Not earlier than here: the writer before may have committed until it was fenced.
            self._newest = known if faults.mutant("read_before_fence") else _newest(self._reader, commits, self._where)
            bounds = self._reader.bounds(commits)
            self._expected = {bounds.end} if bounds else set()
        except BaseException:
            self.close()
            raise

    @property
    def newest(self) -> CommitRecord | None:
        return self._newest

    def append(self, data: Mapping[str, Sequence[Payload]], seal: Seal) -> CommitRecord:
        verify.check_input(data)
        producer = self._usable()
        self._refuse_if_moved()
        topics = {table: self._topic(table) for table in data}
        try:
            producer.begin_transaction()
            offsets = self._send(producer, {topics[table]: records for table, records in data.items()})
            extents = {table: _extent(offsets[topics[table]], records) for table, records in data.items()}
            faults.point("log.after-data")
            record = seal(extents)
            verify.check_next(self._newest, record, self._uuid, extents, self._where)
            (place,) = self._send(producer, {self._commits: [record.payload]}, str(record.number).encode())[
                self._commits
            ]
            faults.point("log.before-commit")
        except BaseException as error:
            if (better := self._aborted(producer, error)) is not error:
                raise better from error
            raise
        self._commit(producer)
        self._newest = record
        # The transaction's marker comes a moment after the answer; until then the end is before its first record.
        self._expected = {place, place + 2}
        with contextlib.suppress(LogError):  # committed it is
            self._until_marked()
        return record

    def check(self) -> None:
        self._usable()
        described = self._cluster.describe(self._commits)
        found = topic_uuid(described) if described is not None else "gone"
        if found != self._uuid:
            raise LogMovedError(
                f"the log is {found}, this capture wrote {self._uuid}", where=self._where, hint=verify.RESTORED
            )
        self._refuse_if_moved()

    def close(self) -> None:
        self._producer = None
        self._reader.close()

    def _fence(self) -> Producer:
        name = f"lakesync-{encode(self._pipeline)}"
        producer = self._cluster.producer(f"{name}-{uuid.uuid4().hex}" if faults.mutant("no_fencing") else name)
        deadline = time.monotonic() + INIT_S
        while True:
            try:
                producer.init_transactions(max(0.1, deadline - time.monotonic()))
            except KafkaException as error:
                found = kafka_error(error)
                if not transient(found) or time.monotonic() > deadline:
                    raise self._cluster.error(found) from None
            else:
                return producer

    def _usable(self) -> Producer:
        if self._fenced is not None:
            raise self._cluster.error(self._fenced)
        if self._producer is None:
            raise LogError(
                "this writer cannot be used any more",
                where=self._where,
                hint="open a new one, and look at the newest record",
            )
        if self._doubtful:  # only under the mutant `producer_reused`
            self._producer.commit_transaction(COMMIT_S)
            self._doubtful = False
        return self._producer

    def _refuse_if_moved(self) -> None:
        """Compare the end of the commit records with the one after our last; read the newest where that is not enough."""
        bounds = self._until_marked()
        emptied = bounds is not None and self._newest is not None and bounds.low == bounds.end
        if bounds is not None and {bounds.end} == self._expected and not emptied:
            return
        found = _newest(self._reader, self._commits, self._where)
        if faults.mutant("no_fencing") or faults.mutant("producer_reused"):
            return
        if (found and found.hash) != (self._newest and self._newest.hash):
            raise verify.moved(self._newest, found, self._where)
        self._expected = {bounds.end} if bounds else set()

    def _until_marked(self) -> Bounds | None:
        """What can be read of the commit records, once our last transaction's marker is there (or does not come)."""
        deadline = time.monotonic() + VISIBLE_S
        while True:
            bounds = self._reader.bounds(self._commits)
            if bounds is not None and bounds.end == max(self._expected, default=-1):
                self._expected = {bounds.end}
                return bounds
            if bounds is None or bounds.end not in self._expected or time.monotonic() > deadline:
                return bounds
            time.sleep(LOOK_S)

    def _topic(self, table: str) -> str:
        if table not in self._topics:
            topic = TableName.from_id(table).topic(self._pipeline)
            self._cluster.ensure(topic)
            self._topics[table] = topic
        return self._topics[table]

    def _send(
        self, producer: Producer, records: Mapping[str, Sequence[Payload]], key: bytes | None = None
    ) -> dict[str, list[int]]:
        """Write records to their topics, wait until they are acknowledged, return their offsets."""
        offsets: dict[str, list[int]] = {topic: [] for topic in records}
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.append(error)
            else:
                offsets[str(message.topic())].append(message.offset() or 0)

        deadline = time.monotonic() + FLUSH_S
        for topic, payloads in records.items():
            for payload in payloads:
                while True:
                    try:
                        producer.produce(topic, value=bytes(payload), key=key, partition=0, on_delivery=delivered)
                        break
                    except BufferError:
                        producer.poll(0.1)
                        if time.monotonic() > deadline:
                            raise _TimeoutError from None
        left = producer.flush(max(0.1, deadline - time.monotonic()))
        if failed:
            raise KafkaException(failed[0])
        if left:
            raise _TimeoutError
        return offsets

    def _aborted(self, producer: Producer, error: BaseException) -> BaseException:
        """Abort, and say why: nothing of the epoch becomes visible, whether or not the abort is answered."""
        reason = _reason(error)
        if reason is not None and reason.code() in PURGED:
            try:
                producer.begin_transaction()  # which it refuses, and says why
            except KafkaException as refused:
                told = kafka_error(refused)
                reason = told if told.txn_requires_abort() else reason
        try:
            producer.abort_transaction(ABORT_S)
        except (KafkaException, SystemError) as second:
            self._producer = None  # the next writer settles it
            # A fatal error is told by every call after it, sometimes only then.
            later = _reason(second)
            if later is not None and later.code() in FENCED:
                self._fenced = later
                return self._cluster.error(later)
        if reason is not None:
            return self._cluster.error(reason)
        if isinstance(error, _TimeoutError):
            return self._cluster.unavailable(f"the epoch's data was not written within {FLUSH_S:g} s")
        if isinstance(error, OSError):
            return LogError(f"{error.strerror or error}; the epoch was not written", where=self._where)
        return error

    def _commit(self, producer: Producer) -> None:
        try:
            producer.commit_transaction(COMMIT_S)
            faults.point("log.after-commit")
        except (KafkaException, SystemError, OSError) as error:
            reason = _reason(error)
            if reason is not None and reason.code() in FENCED:
                self._producer, self._fenced = None, reason
                raise self._cluster.error(reason) from None
            if reason is not None and reason.txn_requires_abort():
                found = self._aborted(producer, error)
                if self._producer is not None or isinstance(found, LogFencedError):
                    raise found from None  # the broker took the abort: it cannot have committed
            # Thrown away even so: its background thread would go on trying to commit.
            self._doubtful = faults.mutant("producer_reused")
            self._producer = producer if self._doubtful else None
            raise LogIndefiniteError(
                f"whether the epoch was committed is not known: {reason.str() if reason else error}",
                where=self._where,
                hint="open a new writer, which settles it, and look at the newest record",
            ) from None


class _TimeoutError(Exception):
    """Records were not acknowledged in time."""


def _reason(error: BaseException) -> KafkaError | None:
    """Kafka's error in an exception. A fatal one comes out of a callback as the cause of a `SystemError`."""
    for one in (error, error.__cause__):
        if isinstance(one, KafkaException):
            return kafka_error(one)
    return None


def _extent(offsets: Sequence[int], records: Sequence[Payload]) -> Extent:
    if len(offsets) != len(records):
        raise LogError(f"{len(records)} records were written, {len(offsets)} acknowledged")
    return Extent(offsets[0], offsets[-1], len(records), sum(map(len, records)), digest(records))


def _newest(reader: Reader, commits: str, where: str) -> CommitRecord | None:
    bounds = reader.bounds(commits)
    if bounds is None:
        return None
    found = reader.last(commits, bounds)
    if found is not None:
        return verify.parse(found[1], f"{where}, offset {found[0]}")
    if bounds.low > 0:
        raise LogDamagedError("every commit record was deleted", where=where, hint=verify.RESTORED)
    return None
