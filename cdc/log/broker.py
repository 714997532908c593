"""A Kafka cluster as the log needs it: topics of one partition, reading what is committed, and errors by name.

Only what is committed is ever read (`read_committed`). Offsets have holes, where control records and aborted records are: nothing
here subtracts them. A consumer never resets its offset by itself.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from cdc.errors import ConfigError, LogDamagedError, LogError, LogFencedError, LogUnavailableError
from cdc.log.base import RECORD_MAXIMUM

REACH_S = 10.0
"""A request to the cluster, with its retries, may take this long."""
FETCH_WAIT_MS = 20
"""The broker holds a fetch at the end of a partition this long; the next request on the connection waits behind it."""
MISSING_S = 1.0
"""How long a topic has to be unknown before it is taken for missing."""
RETRY_S = 0.05
"""Between two tries of a request while the cluster elects a leader."""
MESSAGE_MAXIMUM = RECORD_MAXIMUM + 64 * 1024
"""Bytes; a record with Kafka's own framing."""
REPLICAS = 3
"""Of each topic, where there are as many brokers."""
TOPIC_CONFIG = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",  # the log is trimmed by what was applied, never by age
    "retention.bytes": "-1",
    "max.message.bytes": str(MESSAGE_MAXIMUM),
    "segment.bytes": str(128 * 1024 * 1024),  # what is trimmed goes by whole segments
}
MUST_BE = {"cleanup.policy": ("delete",), "retention.ms": ("-1",), "retention.bytes": ("-1",)}
"""Checked in topics that somebody else made: anything else loses data that was not applied."""

OURS = frozenset(
    {
        *(
            "acks",
            "request.required.acks",
            "bootstrap.servers",
            "metadata.broker.list",
            "enable.idempotence",
            "transactional.id",
        ),
        *(
            "auto.offset.reset",
            "enable.auto.commit",
            "enable.auto.offset.store",
            "enable.partition.eof",
            "isolation.level",
        ),
        *("group.id", "group.instance.id", "enable.gapless.guarantee", "partitioner", "message.max.bytes"),
        "plugin.library.paths",
    }
)
"""Options that are lakesync's to set: with another value epochs could be lost or torn. The last would load foreign code."""

FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
    }
)
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
"""What a record's report says when its transaction failed for another reason."""
_MISSING = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
_DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
_TRANSIENT = frozenset(
    {
        *PURGED,
        # Kafka forgets a producer that was idle for transactional.id.expiration.ms (a week).
        *(KafkaError.INVALID_PRODUCER_ID_MAPPING, KafkaError.UNKNOWN_PRODUCER_ID),
        *(KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._MSG_TIMED_OUT),
        KafkaError._DESTROY_BROKER,  # type: ignore[attr-defined]  # it went away while it was asked
        *(KafkaError._WAIT_COORD, KafkaError._RESOLVE, KafkaError._TIMED_OUT_QUEUE, KafkaError._RETRY),
        *(KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.REPLICA_NOT_AVAILABLE),
        *(KafkaError.REQUEST_TIMED_OUT, KafkaError.NETWORK_EXCEPTION, KafkaError.BROKER_NOT_AVAILABLE),
        *(KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR),
        *(KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, KafkaError.NOT_CONTROLLER),
        *(KafkaError.CONCURRENT_TRANSACTIONS, KafkaError.KAFKA_STORAGE_ERROR, KafkaError.OFFSET_NOT_AVAILABLE),
        *(KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.ELIGIBLE_LEADERS_NOT_AVAILABLE),
    }
)
"""The client calls few of these retriable where it hands them to us."""
_WRONG = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL})

# librdkafka writes to stderr what no logger takes; everything that matters comes back as an error.
_silent = logging.getLogger("cdc.log.librdkafka")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class Bounds(NamedTuple):
    """The offsets of a partition that can be read: from `low`, below `end` (the last stable offset)."""

    low: int
    end: int


class Cluster:
    """Clients of one cluster, with one configuration. Safe to use from several threads."""

    def __init__(self, bootstrap: str, options: Mapping[str, str]) -> None:
        self.where = f"kafka://{bootstrap}"
        wrong = sorted(OURS.intersection(options))
        if wrong:
            raise ConfigError(
                f"{wrong[0]} cannot be set", where=self.where, hint="leave the option out: lakesync sets it"
            )
        self.transaction_timeout_ms = _milliseconds(options, "transaction.timeout.ms", 60_000, self.where)
        self._options = {
            "reconnect.backoff.max.ms": 1_000,
            "socket.timeout.ms": min(int(REACH_S * 1000), self.transaction_timeout_ms - 100),
            **{key: value for key, value in options.items() if key != "transaction.timeout.ms"},
            "bootstrap.servers": bootstrap,
            "error_cb": self._note,
            "log_level": 0,
        }
        self._lock = threading.Lock()
        self._admin: AdminClient | None = None
        self._idle: list[Reader] = []
        self._last_error: tuple[float, KafkaError] | None = None

    def _note(self, error: KafkaError) -> None:
        self._last_error = time.monotonic(), error

    def make(self, kind: Callable[..., Any], **settings: Any) -> Any:
        """A client of this `kind`, with `settings` (`_` for `.`) besides the options. Raises `ConfigError`."""
        try:
            return kind({**self._options, **{k.replace("_", "."): v for k, v in settings.items()}}, logger=_silent)
        except KafkaException as error:
            # librdkafka's text may quote the value.
            name = re.search(r'configuration property:? "([^"]+)"', str(error))
            what = (
                f"the option {name[1]} is unknown or has a value that is not possible"
                if name
                else "the options do not fit together"
            )
            raise ConfigError(what, where=self.where, hint="they are librdkafka's: see its CONFIGURATION.md") from None

    def producer(self, transactional_id: str) -> Producer:
        """A transactional producer; nothing is connected yet."""
        timeout = self.transaction_timeout_ms
        producer: Producer = self.make(
            Producer,
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout,
            message_timeout_ms=min(30_000, timeout),
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            message_max_bytes=MESSAGE_MAXIMUM,
        )
        return producer

    @contextlib.contextmanager
    def reader(self) -> Iterator[Reader]:
        """A reader for the time of the block, from those at hand."""
        with self._lock:
            reader = self._idle.pop() if self._idle else None
        reader = reader or Reader(self)
        try:
            yield reader
        except Exception:
            reader.close()
            raise
        finally:  # also when an iterator over the block is given up
            if not reader.closed:
                with self._lock:
                    self._idle.append(reader)

    def close(self) -> None:
        """Give up every idle client."""
        with self._lock:
            idle, self._idle, self._admin = self._idle, [], None
        for reader in idle:
            reader.close()

    def admin(self) -> AdminClient:
        """The admin client."""
        with self._lock:
            if self._admin is None:
                self._admin = self.make(AdminClient)
            return self._admin

    def describe(self, topic: str) -> TopicDescription | None:
        """The topic, of one partition; None if there is none. Raises `LogDamagedError` for more partitions."""
        try:
            found: TopicDescription = self.ask(
                lambda admin: admin.describe_topics(TopicCollection([topic]), request_timeout=REACH_S)[topic], topic
            )
        except _MissingTopicError:
            return None
        if len(found.partitions) != 1:
            raise LogDamagedError(
                f"the topic has {len(found.partitions)} partitions",
                where=f"{self.where}, {topic}",
                hint="lakesync's topics have one each; epochs have no order across several: begin a new log",
            )
        return found

    def ensure(self, topic: str) -> TopicDescription:
        """Make the topic where it is missing; check the settings of one that is there. Raises `ConfigError`."""
        found = self.describe(topic)
        if found is not None or not self._create(topic):
            self._check_settings(topic)
        deadline = time.monotonic() + REACH_S
        while found is None or found.partitions[0].leader is None:
            if time.monotonic() > deadline:
                raise LogUnavailableError("the topic was made and has no leader", where=f"{self.where}, {topic}")
            time.sleep(RETRY_S)
            found = self.describe(topic)
        return found

    def _create(self, topic: str) -> bool:
        """Make the topic; False if another process was faster."""
        nodes = len(self.ask(lambda admin: admin.describe_cluster(request_timeout=REACH_S)).nodes)
        replicas = min(REPLICAS, nodes)
        config = {**TOPIC_CONFIG, "min.insync.replicas": str(max(1, replicas - 1))}
        new = NewTopic(topic, num_partitions=1, replication_factor=replicas, config=config)
        try:
            self.ask(lambda admin: admin.create_topics([new], request_timeout=REACH_S)[topic], topic)
        except _ExistsError:
            return False
        return True

    def _check_settings(self, topic: str) -> None:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        found = self.ask(lambda admin: admin.describe_configs([resource], request_timeout=REACH_S)[resource], topic)
        for name, allowed in MUST_BE.items():
            value = found[name].value if name in found else allowed[0]
            if value not in allowed:
                raise ConfigError(
                    f"the topic has {name}={value}: it would lose changes that were not applied",
                    where=f"{self.where}, {topic}",
                    hint=f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {name}={allowed[0]}",
                )

    def high_watermark(self, topic: str) -> int:
        """The end of the partition, with what is not committed."""
        partition = TopicPartition(topic, 0)
        found = self.ask(
            lambda admin: admin.list_offsets(
                {partition: OffsetSpec.latest()},
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=REACH_S,
            )[partition],
            topic,
        )
        return int(found.offset)

    def delete_records(self, offsets: Mapping[str, int]) -> None:
        """Let go what is below these offsets, topic by topic; a topic that is gone is passed over."""
        for topic, offset in offsets.items():
            self._delete(topic, TopicPartition(topic, 0, offset))

    def _delete(self, topic: str, below: TopicPartition) -> None:
        with contextlib.suppress(_MissingTopicError):
            self.ask(lambda admin: admin.delete_records([below], request_timeout=REACH_S)[below], topic)

    def ask(self, request: Callable[[AdminClient], Any], topic: str = "") -> Any:
        """The answer to a request of the admin client (a future), tried again while the cluster elects a leader."""
        admin = self.admin()  # held, since a client that is given up fails its futures
        deadline = time.monotonic() + REACH_S
        while True:
            try:
                answer: Future[Any] = request(admin)
                return answer.result(timeout=REACH_S + 1)
            except TimeoutError:
                raise self.unavailable("the cluster does not answer", topic) from None
            except KafkaException as error:
                found = kafka_error(error)
                if not transient(found) or found.code() in _MISSING or time.monotonic() > deadline:
                    raise self.error(found, topic) from None
                time.sleep(RETRY_S)

    def error(self, error: KafkaError, topic: str = "") -> LogError | ConfigError:
        """A lakesync error for one of Kafka's."""
        where = f"{self.where}, {topic}" if topic else self.where
        code, text = error.code(), error.str()
        if code in FENCED:
            return LogFencedError(
                "another capture has taken this log over, or this one paused for longer than transaction.timeout.ms",
                where=where,
                hint="one pipeline has one capture: end one of them",
            )
        if code in _MISSING:
            return _MissingTopicError(
                "the topic is gone", where=where, hint="begin a new log: it continues from the lake"
            )
        if code == KafkaError.TOPIC_ALREADY_EXISTS:
            return _ExistsError("the topic exists", where=where)
        if code in _DENIED:
            return LogError(
                text,
                where=where,
                hint="grant Describe, Read, Write, Create, Delete and Alter on the pipeline's topics and its transactional id",
            )
        if code in _WRONG:
            return LogError(text, where=where, hint="check log_options: security.protocol, sasl.* and ssl.*")
        if transient(error):
            return self.unavailable(text, topic)
        return LogError(f"{error.name()}: {text}", where=where)

    def unavailable(self, what: str, topic: str = "") -> LogError:
        """The error for a cluster that was not reached; a reason that no retry helps is named instead."""
        where = f"{self.where}, {topic}" if topic else self.where
        noted, last = self._last_error or (0.0, None)
        if last is not None and time.monotonic() - noted > 2 * REACH_S:
            last = None
        if last is not None and last.code() in _WRONG:
            return LogError(last.str(), where=where, hint="check log_options: security.protocol, sasl.* and ssl.*")
        return LogUnavailableError(
            f"{what}: {last.str()}" if last is not None else what,
            where=where,
            hint="are the brokers up, and reached from here?",
        )


class _MissingTopicError(LogDamagedError):
    """The topic is not there."""


class _ExistsError(LogError):
    """The topic is there already."""


class Reader:
    """One consumer, for one thread at a time."""

    def __init__(self, cluster: Cluster) -> None:
        self.closed = False
        self._cluster = cluster
        self._consumer: Consumer = cluster.make(
            Consumer,
            group_id="lakesync",  # of no meaning: partitions are assigned by hand and nothing is committed
            isolation_level="read_committed",
            auto_offset_reset="error",
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            enable_partition_eof=True,
            fetch_wait_max_ms=FETCH_WAIT_MS,
            fetch_error_backoff_ms=50,
            fetch_queue_backoff_ms=10,
        )

    def bounds(self, topic: str) -> Bounds | None:
        """What can be read of a topic; None if there is none. Raises `LogUnavailableError`."""
        deadline = time.monotonic() + REACH_S
        missing_at = time.monotonic() + MISSING_S
        while True:
            try:
                found = self._consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=REACH_S, cached=False)
            except KafkaException as error:
                what = kafka_error(error)
                if what.code() in _MISSING:
                    # A broker that has just started does not know its topics yet.
                    if time.monotonic() > missing_at:
                        return None
                elif not transient(what) or time.monotonic() > deadline:
                    raise self._cluster.error(what, topic) from None
                time.sleep(RETRY_S)
                continue
            if found is None:
                raise self._cluster.unavailable("the cluster does not answer", topic)
            return Bounds(*found)

    def read(self, topic: str, start: int, end: int) -> Generator[tuple[int, bytes], None, None]:
        """Visible records with offsets from `start` and below `end`, which is at most the last stable offset.

        Raises `LogUnavailableError` when nothing comes for `REACH_S`, `LogDamagedError` when `start` is not there.
        """
        if start >= end:
            return
        self._consumer.assign([TopicPartition(topic, 0, start)])
        try:
            deadline = time.monotonic() + REACH_S
            while True:
                message = self._consumer.poll(min(1.0, REACH_S))
                if message is None:
                    if time.monotonic() > deadline:
                        raise self._silence(topic)
                    continue
                offset = message.offset()
                if (error := message.error()) is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        if offset is not None and offset >= end:
                            return
                    elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                        raise LogDamagedError(
                            f"the topic does not have offset {start}",
                            where=f"{self._cluster.where}, {topic}",
                            hint="was the topic trimmed, made anew, or cut off? Begin a new log: it continues from the lake",
                        )
                    elif not transient(error):
                        raise self._cluster.error(error, topic)
                    if time.monotonic() > deadline:
                        raise self._cluster.error(error, topic)
                    continue
                assert offset is not None
                if offset >= end:
                    return
                yield offset, _value(message)
                if offset >= end - 1:
                    return
                deadline = time.monotonic() + REACH_S
        finally:
            self._consumer.unassign()

    def first(self, topic: str, start: int, end: int) -> tuple[int, bytes] | None:
        """The first visible record of `read`."""
        with contextlib.closing(self.read(topic, start, end)) as records:
            return next(records, None)

    def last(self, topic: str, bounds: Bounds) -> tuple[int, bytes] | None:
        """The last visible record: steps back from the end, over control records and aborted ones, until there is one."""
        step, end = 2, bounds.end
        while end > bounds.low:
            start = max(bounds.low, end - step)
            found = None
            for found in self.read(topic, start, end):
                # The last offset of a partition is a control record: behind the last but one is nothing to wait for.
                if found[0] >= bounds.end - 2:
                    return found
            if found is not None:
                return found
            end, step = start, step * 4
        return None

    def close(self) -> None:
        """Release the consumer. Idempotent."""
        self.closed = True
        with contextlib.suppress(RuntimeError):
            self._consumer.close()

    def _silence(self, topic: str) -> LogError:
        if self._cluster.describe(topic) is None:
            return _MissingTopicError("the topic is gone", where=f"{self._cluster.where}, {topic}")
        return self._cluster.unavailable(f"nothing came for {REACH_S:g} s", topic)


def topic_uuid(topic: TopicDescription) -> str:
    """Identity of a topic: one that is made anew under the same name has another."""
    high, low = topic.topic_id.get_most_significant_bits(), topic.topic_id.get_least_significant_bits()
    return str(uuid.UUID(int=(high % 2**64) << 64 | low % 2**64))


def kafka_error(error: KafkaException) -> KafkaError:
    """Kafka's error in an exception of the client's."""
    found: Any = error.args[0]
    return found if isinstance(found, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def transient(error: KafkaError) -> bool:
    """Whether the same request, later, may succeed."""
    return error.retriable() or error.code() in _TRANSIENT


def _value(message: Message) -> bytes:
    value = message.value()
    return value if isinstance(value, bytes) else b""


def _milliseconds(options: Mapping[str, str], name: str, default: int, where: str) -> int:
    value = options.get(name, str(default))
    if not value.isdigit() or not 1_000 <= int(value) <= 900_000:
        raise ConfigError(f"{name} must be from 1000 to 900000", where=where)
    return int(value)
