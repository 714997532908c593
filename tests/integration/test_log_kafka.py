"""What can happen to a broker, to its clients, and to topics that others touch."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, ResourceType

from cdc import faults
from cdc.epoch import CommitRecord
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
from cdc.log import Log, broker, kafka, open_log
from dev.kafka import KafkaBroker
from tests.contract.conftest import Epochs, KafkaPlace

ROOT = Path(__file__).parents[2]
ORDERS, USERS = "shop.orders", "shop.users"


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaBroker]:
    """A broker to be killed, which looks for transactions out of time twice a second."""
    with KafkaBroker(options={"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500"}) as running:
        yield running


@pytest.fixture
def place(server: KafkaBroker) -> Iterator[KafkaPlace]:
    server.start()
    made = KafkaPlace(server.bootstrap)
    yield made
    server.start()
    made.close()


@pytest.fixture
def admin(server: KafkaBroker) -> AdminClient:
    return server.admin()


@pytest.fixture
def epochs() -> Epochs:
    return Epochs()


@pytest.fixture
def at_point(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], None]], None]:
    """Calls something, once, when a fault point is reached."""

    def arm(name: str, call: Callable[[], None]) -> None:
        todo = [call]

        def reached(point: str) -> None:
            if point == name and todo:
                todo.pop()()

        monkeypatch.setattr(faults, "point", reached)

    return arm


def check_whole(log: Log, epochs: Epochs, rows: int) -> list[CommitRecord]:
    """That the log is one chain and every epoch has its data; returns the records."""
    found = list(log.records())
    assert [record.number for record in found] == list(range(1, len(found) + 1))
    assert [record.before for record in found[1:]] == [record.hash for record in found[:-1]]
    for record in found:
        for table, entry in record.tables.items():
            assert log.data(table, entry.extent) == epochs.data(record.number, {table: rows})[table]
    return found


def test_topics_keep_what_they_hold(place: KafkaPlace, admin: AdminClient, epochs: Epochs) -> None:
    log = place.open()
    epochs.fill(log, 1)
    prefix = place.pipeline.replace("-", "-2d")
    topics = [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith(prefix)]
    assert sorted(topics) == [f"{prefix}.commits", f"{prefix}.shop.orders"]
    for topic in topics:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        found = admin.describe_configs([resource])[resource].result()
        assert {name: found[name].value for name in broker.TOPIC_CONFIG} == broker.TOPIC_CONFIG
        assert found["min.insync.replicas"].value == "1"


def test_newest_and_search_step_over_aborted_epochs(place: KafkaPlace, epochs: Epochs) -> None:
    log = place.open()
    writer = log.writer()
    for burst in (0, 3, 0, 40, 1, 90):
        epochs.append(log, writer)
        for _ in range(burst):
            with pytest.raises(LogError, match="is refused"):
                epochs.append(log, writer, number=99)
    fresh = place.open()
    assert fresh.newest() == log.newest() == writer.newest
    oldest = fresh.oldest()
    assert oldest is not None
    assert oldest.number == 1
    for after in range(7):
        assert [r.number for r in place.open().records(after)] == list(range(after + 1, 7))
    writer.check()
    assert epochs.append(log, writer).number == 7
    check_whole(log, epochs, 1)
    writer.close()


def test_a_reader_that_was_given_up_midway_serves_the_next(place: KafkaPlace, epochs: Epochs) -> None:
    log = place.open()
    written = epochs.fill(log, 30)
    fresh = place.open()
    assert isinstance(fresh, kafka.KafkaLog)
    for number in (3, 17, 30, 17, 3, 30):
        assert next(iter(fresh.records(number - 1)), None) == written[number - 1]
    assert next(iter(fresh.records(30)), None) is None
    assert fresh.wait(29, 0)
    assert not fresh.wait(30, 0)
    assert len(fresh._cluster._idle) == 1


def test_what_is_remembered_of_a_log_does_not_outlive_it(place: KafkaPlace, epochs: Epochs) -> None:
    """The log is made anew behind a reader's back, with the same numbers elsewhere."""
    log = place.open()
    epochs.fill(log, 10)
    assert len(list(log.records())) == 10
    place.recreate()
    other = place.open()
    writer = other.writer()
    epochs.append(other, writer)
    for _ in range(20):
        with pytest.raises(LogError, match="is refused"):
            epochs.append(other, writer, number=99)
    for _ in range(11):
        epochs.append(other, writer)
    writer.close()
    for after in range(12):
        deadline = time.monotonic() + 20
        found: list[int] = []
        while not found and time.monotonic() < deadline:  # until the client knows of the new topic
            with contextlib.suppress(LogError):
                found = [r.number for r in log.records(after)]
        assert found == list(range(after + 1, 13))


def test_epochs_that_were_never_committed_are_no_data(place: KafkaPlace, epochs: Epochs) -> None:
    """A reader that started while a transaction is open neither sees it nor waits for it."""
    log = place.open()
    writer = log.writer()
    epochs.append(log, writer)
    seen: list[object] = []

    def look(point: str) -> None:
        if point == "log.before-commit":
            reader = place.open()
            seen.append([r.number for r in reader.records()])
            newest = reader.newest()
            seen.append(newest and newest.number)
            seen.append(reader.wait(1, 0.2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "point", look)
        epochs.append(log, writer)
    assert seen == [[1], 1, False]
    assert place.open().wait(1, 0)
    writer.close()


@pytest.mark.slow
def test_a_broker_killed_while_epochs_are_appended(place: KafkaPlace, server: KafkaBroker, epochs: Epochs) -> None:
    """Each append that returned is there, once; nothing else but at most the one in doubt each time."""
    log = place.open()
    stop = threading.Event()
    acknowledged: list[CommitRecord] = []
    errors: list[LogError] = []
    broken: list[BaseException] = []

    def capture() -> None:
        try:
            while not stop.is_set():
                try:
                    writer = log.writer()
                    while not stop.is_set():
                        acknowledged.append(epochs.append(log, writer, {ORDERS: 20, USERS: 20}))
                except (LogUnavailableError, LogIndefiniteError, LogMovedError) as error:  # as capture does
                    errors.append(error)
                finally:
                    writer.close()
        except BaseException as error:
            broken.append(error)

    writing = threading.Thread(target=capture)
    writing.start()
    for _ in range(2):
        before = len(acknowledged)
        deadline = time.monotonic() + 30
        while len(acknowledged) < before + 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.random() * 0.05)
        server.kill()
        time.sleep(0.5)
        server.start()
    time.sleep(1)
    stop.set()
    writing.join(60)
    assert not broken
    found = check_whole(log, epochs, 20)
    assert len(acknowledged) > 10
    assert {r.hash for r in acknowledged} <= {r.hash for r in found}
    assert len(found) - len(acknowledged) <= len(errors)


def test_what_the_writer_before_committed_until_it_was_fenced_is_seen(
    place: KafkaPlace, epochs: Epochs, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.open()
    first = log.writer()
    epochs.append(log, first)
    fence = kafka.KafkaWriter._fence

    def late(writer: kafka.KafkaWriter) -> Producer:
        epochs.append(log, first)
        return fence(writer)

    monkeypatch.setattr(kafka.KafkaWriter, "_fence", late)
    second = place.open().writer()
    assert second.newest == first.newest
    assert epochs.append(log, second).number == 3
    first.close()
    second.close()


def start_appending(place: KafkaPlace, faults: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.contract.appending",
            f"{place.url}?transaction.timeout.ms=2000",
            place.pipeline,
            "3",
        ],
        cwd=ROOT,
        env={**os.environ, "LAKESYNC_FAULTS": faults},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("replaced", [False, True])
def test_a_writer_that_was_stopped_for_too_long_is_fenced(place: KafkaPlace, epochs: Epochs, replaced: bool) -> None:
    with start_appending(place, "sleep:log.before-commit=1") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            assert process.stdout.readline() == "1\n"
            time.sleep(0.5)  # in the second append, before its commit
            process.send_signal(signal.SIGSTOP)
            log = place.open()
            if replaced:
                writer = log.writer()
                assert writer.newest is not None
                assert writer.newest.number == 1
                assert epochs.append(log, writer, {ORDERS: 3, USERS: 2}).number == 2
                writer.close()
            else:
                time.sleep(4)
            process.send_signal(signal.SIGCONT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "LogFencedError" in said
    assert [r.number for r in log.records()] == ([1, 2] if replaced else [1])
    writer = log.writer()
    assert epochs.append(log, writer, {ORDERS: 3, USERS: 2}).number == (3 if replaced else 2)
    writer.close()


def test_a_commit_without_an_answer_is_indefinite(
    place: KafkaPlace,
    server: KafkaBroker,
    epochs: Epochs,
    at_point: Callable[[str, Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker is killed before it has the commit: a new writer settles it, and finds the epoch not there."""
    monkeypatch.setattr(kafka, "COMMIT_S", 2.0)
    log = place.open()
    writer = log.writer()
    first = epochs.append(log, writer)
    at_point("log.before-commit", server.kill)
    with pytest.raises(LogIndefiniteError):
        epochs.append(log, writer)
    gc.collect()  # the producer: as long as a traceback holds it, its thread asks for the commit, and might get it
    server.start()
    with pytest.raises(LogError, match="cannot be used"):
        epochs.append(log, writer)
    writer.close()
    again = log.writer()
    assert again.newest == first
    assert epochs.append(log, again).number == 2
    check_whole(log, epochs, 1)
    again.close()


TRIES = 8


def test_a_commit_that_took_place_without_an_answer_is_found(
    place: KafkaPlace, server: KafkaBroker, epochs: Epochs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is stopped a moment after the commit was asked for. Either outcome may be; the next writer knows which. How often it is
    the one in question is a matter of luck, so at last the answer itself is lost."""
    monkeypatch.setattr(kafka, "COMMIT_S", 1.0)
    log = place.open()
    outcomes: list[str] = []
    newest: CommitRecord | None = None
    for number in range(TRIES):
        writer = log.writer()
        expected = newest.number + 1 if newest else 1
        delay = random.random() * 0.006

        def stop_soon(point: str, delay: float = delay, last: bool = number == TRIES - 1) -> None:
            if last and point == "log.after-commit":
                raise OSError(errno.EIO, "the answer is lost")
            if point == "log.before-commit" and not last:
                threading.Timer(delay, lambda: os.kill(server.pid, signal.SIGSTOP)).start()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faults, "point", stop_soon)
            patch.setattr(kafka, "VISIBLE_S", 0.1)
            patch.setattr(broker, "REACH_S", 0.5)
            try:
                epochs.append(log, writer, {ORDERS: 2})
                outcomes.append("answered")
            except LogIndefiniteError:
                outcomes.append("indefinite")
        time.sleep(0.05)
        os.kill(server.pid, signal.SIGCONT)
        writer.close()
        again = log.writer()
        newest = again.newest
        found = newest.number if newest else 0
        assert found in ({expected} if outcomes[-1] == "answered" else {expected - 1, expected})
        outcomes[-1] += ", there" if found == expected else ", not there"
        newest = epochs.append(log, again, {ORDERS: 2})
        again.close()
    print(outcomes)
    check_whole(log, epochs, 2)
    assert "indefinite, there" in outcomes


def test_a_broker_that_is_gone_is_unavailable_soon(place: KafkaPlace, server: KafkaBroker, epochs: Epochs) -> None:
    log = place.open()
    writer = log.writer()
    record = epochs.append(log, writer)
    server.kill()
    calls: list[Callable[[], object]] = [
        lambda: log.uuid,
        log.newest,
        lambda: list(log.records()),
        lambda: log.data(ORDERS, record.tables[ORDERS].extent),
        lambda: log.wait(1, 0.1),
        lambda: log.trim(1),
        writer.check,
        lambda: epochs.append(log, writer),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker, "REACH_S", 2.0)
        for call in calls:
            began = time.monotonic()
            with pytest.raises(LogUnavailableError):
                call()
            assert time.monotonic() - began < 6
    server.start()
    assert log.newest() == record
    assert epochs.append(log, writer).number == 2
    writer.close()


def test_a_broker_that_never_was_is_unavailable_in_time(epochs: Epochs) -> None:
    log = open_log("kafka://127.0.0.1:1", "shop")
    began = time.monotonic()
    with pytest.raises(LogUnavailableError, match=r"127\.0\.0\.1:1") as caught:
        log.writer()
    assert time.monotonic() - began < 15
    assert caught.value.retryable
    log.close()


def test_a_broker_that_dies_before_the_commit_leaves_nothing(
    place: KafkaPlace,
    server: KafkaBroker,
    epochs: Epochs,
    at_point: Callable[[str, Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka, "FLUSH_S", 2.0)
    monkeypatch.setattr(kafka, "ABORT_S", 1.0)
    log = place.open()
    writer = log.writer()
    first = epochs.append(log, writer)
    at_point("log.after-data", server.kill)
    with pytest.raises(LogUnavailableError):
        epochs.append(log, writer)
    writer.close()
    server.start()
    again = log.writer()
    assert again.newest == first
    assert epochs.append(log, again).number == 2
    check_whole(log, epochs, 1)
    again.close()


def test_a_writer_that_the_broker_forgot_goes_on(kafka_factory: Callable[..., KafkaBroker], epochs: Epochs) -> None:
    """After a week without an epoch, here two seconds."""
    forgetful = kafka_factory(
        options={
            "transactional.id.expiration.ms": "2000",
            "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
            "producer.id.expiration.ms": "2000",
            "producer.id.expiration.check.interval.ms": "500",
        }
    )
    log = open_log(forgetful.url, "shop")
    writer = log.writer()
    epochs.append(log, writer)
    time.sleep(6)
    with pytest.raises(LogUnavailableError, match="producer id"):
        epochs.append(log, writer)
    writer.close()
    again = log.writer()
    assert epochs.append(log, again).number == 2
    check_whole(log, epochs, 1)
    again.close()
    log.close()


def test_a_topic_of_several_partitions_is_refused(place: KafkaPlace, admin: AdminClient, epochs: Epochs) -> None:
    log = place.open()
    epochs.fill(log, 1)
    topic = f"{place.pipeline.replace('-', '-2d')}.commits"
    for future in admin.create_partitions([NewPartitions(topic, 2)]).values():
        future.result()
    deadline = time.monotonic() + 20
    while len(admin.list_topics(topic, timeout=10).topics[topic].partitions) != 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(LogDamagedError, match="2 partitions"):
        place.open().writer()


@pytest.mark.parametrize(("name", "value"), [("retention.ms", "604800000"), ("cleanup.policy", "compact")])
def test_a_topic_that_would_lose_epochs_is_refused(
    place: KafkaPlace, admin: AdminClient, name: str, value: str
) -> None:
    topic = f"{place.pipeline.replace('-', '-2d')}.commits"
    config = {"retention.ms": "-1", "retention.bytes": "-1", name: value}
    for future in admin.create_topics([NewTopic(topic, 1, 1, config=config)]).values():
        future.result()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        place.open().writer()


def delete_below(admin: AdminClient, topic: str, offset: int) -> None:
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result()


def test_records_that_another_program_deleted_are_missed(place: KafkaPlace, admin: AdminClient, epochs: Epochs) -> None:
    log = place.open()
    writer = log.writer()
    records = [epochs.append(log, writer) for _ in range(3)]
    prefix = place.pipeline.replace("-", "-2d")
    delete_below(admin, f"{prefix}.shop.orders", records[1].tables[ORDERS].extent.last + 1)
    with pytest.raises(LogGapError, match="trimmed"):
        log.data(ORDERS, records[1].tables[ORDERS].extent)
    assert log.data(ORDERS, records[2].tables[ORDERS].extent)
    delete_below(admin, f"{prefix}.commits", -1)
    for look in (log.newest, writer.check, place.open().newest, lambda: place.open().writer()):
        with pytest.raises(LogDamagedError, match="every commit record was deleted"):
            look()
    writer.close()


def test_topics_that_were_made_anew_are_noticed(place: KafkaPlace, server: KafkaBroker, epochs: Epochs) -> None:
    log = place.open()
    writer = log.writer()
    record = epochs.append(log, writer)
    place.recreate()
    time.sleep(1)
    with pytest.raises(LogMovedError, match="gone"):
        writer.check()
    assert place.open().newest() is None
    with pytest.raises(LogDamagedError, match="gone"):
        place.open().data(ORDERS, record.tables[ORDERS].extent)
    other = place.open().writer()
    with pytest.raises(LogMovedError, match="this capture wrote"):
        writer.check()
    with pytest.raises((LogFencedError, LogMovedError)):
        epochs.append(log, writer)
    assert other.newest is None
    writer.close()
    other.close()


def test_a_table_topic_that_lost_its_tail_is_damaged(place: KafkaPlace, admin: AdminClient, epochs: Epochs) -> None:
    log = place.open()
    records = epochs.fill(log, 2)
    topic = f"{place.pipeline.replace('-', '-2d')}.shop.orders"
    for future in admin.delete_topics([topic], operation_timeout=10).values():
        future.result()
    epochs.fill(log, 1)  # the topic is made anew, and has offset 0 again
    fresh = place.open()
    for record in records:
        with pytest.raises(LogDamagedError, match=ORDERS):
            fresh.data(ORDERS, record.tables[ORDERS].extent)


def test_what_is_no_commit_record_is_damage(place: KafkaPlace, server: KafkaBroker, epochs: Epochs) -> None:
    log = place.open()
    epochs.fill(log, 1)
    foreign = Producer({"bootstrap.servers": server.bootstrap})
    foreign.produce(f"{place.pipeline.replace('-', '-2d')}.commits", value=b"hello")
    foreign.flush(10)
    with pytest.raises(LogDamagedError, match="cannot be read"):
        list(log.records())
    with pytest.raises(LogDamagedError, match="cannot be read"):
        place.open().writer()


@pytest.mark.parametrize("option", ["acks", "transactional.id", "isolation.level", "plugin.library.paths"])
def test_options_that_are_not_for_users_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} cannot be set"):
        open_log(f"kafka://127.0.0.1:1?{option}=1", "shop")


def test_a_wrong_option_is_named_and_no_value_shown() -> None:
    with pytest.raises(ConfigError, match=r"nonsense\.option") as caught:
        open_log("kafka://127.0.0.1:1?nonsense.option=hush", "shop")
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"security\.protocol") as caught:
        open_log("kafka://127.0.0.1:1", "shop", {"security.protocol": "hush", "sasl.password": "hush"})
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"transaction\.timeout\.ms"):
        open_log("kafka://127.0.0.1:1?transaction.timeout.ms=5", "shop")
