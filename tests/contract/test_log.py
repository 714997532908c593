"""What every log promises: `cdc.log.base`, checked over each implementation on real files and real brokers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cdc import faults
from cdc.epoch import CommitRecord, Counts, Extent, TableState, digest
from cdc.errors import LogDamagedError, LogError, LogFencedError, LogGapError, LogIndefiniteError
from cdc.log import RECORD_LIMIT, RECORD_MAXIMUM, Log, LogWriter
from cdc.log.codec import decode
from tests.contract.conftest import Epochs, Place

ROOT = Path(__file__).parents[2]
ORDERS, USERS = "shop.orders", "shop.users"


def test_an_empty_log_has_an_identity_and_no_records(log: Log) -> None:
    assert log.uuid
    assert log.newest() is None
    assert log.oldest() is None
    assert list(log.records()) == []
    assert not log.wait(0, 0.05)


def test_what_was_appended_is_read_in_order_by_another_handle(place: Place, log: Log, epochs: Epochs) -> None:
    written = epochs.fill(log, 7, [{ORDERS: 2, USERS: 1}, {}, {USERS: 3}])
    other = place.open()
    found = list(other.records())
    assert found == written
    assert [record.number for record in found] == list(range(1, 8))
    assert [record.before for record in found[1:]] == [record.hash for record in written[:-1]]
    assert other.newest() == written[-1]
    assert other.oldest() == written[0]
    assert other.uuid == log.uuid


def test_records_after_a_number(place: Place, log: Log, epochs: Epochs) -> None:
    written = epochs.fill(log, 40)
    other = place.open()
    for after in (None, 0, 1, 17, 38, 39, 40, 99):
        assert [r.number for r in other.records(after)] == [r.number for r in written if r.number > (after or 0)]
    assert [r.number for r in log.records(20)] == list(range(21, 41)), "the handle that wrote them finds them too"


def test_the_number_of_the_first_record_is_free(place: Place, log: Log, epochs: Epochs) -> None:
    writer = log.writer()
    first = epochs.append(log, writer, number=5000, before="f" * 64)
    second = epochs.append(log, writer)
    assert (first.number, second.number) == (5000, 5001)
    writer.close()
    assert [r.number for r in place.open().records(5000)] == [5001]
    assert [r.number for r in place.open().records(17)] == [5000, 5001]


def test_extents_name_the_data(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    first = epochs.append(log, writer, {ORDERS: 5, USERS: 2})
    second = epochs.append(log, writer, {ORDERS: 1})
    for record, rows in ((first, {ORDERS: 5, USERS: 2}), (second, {ORDERS: 1})):
        assert set(record.tables) == set(rows)
        for table, entry in record.tables.items():
            payloads = log.data(table, entry.extent)
            assert payloads == epochs.data(record.number, rows)[table]
            assert entry.extent.records == len(payloads)
            assert entry.extent.bytes == sum(map(len, payloads))
            assert entry.extent.digest == digest(payloads)
            assert sum(decode(payload).batch.num_rows for payload in payloads) == rows[table]
    assert first.tables[ORDERS].extent.last < second.tables[ORDERS].extent.first


def test_heads_are_the_beginnings_of_the_data(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    record, records = epochs.append(log, writer, {ORDERS: 500, USERS: 1}), epochs.data(1, {ORDERS: 500, USERS: 1})
    for table, entry in record.tables.items():
        for length in (1, 100, 1 << 20):
            heads = log.heads(table, entry.extent, length)
            assert [size for _, size in heads] == [len(r) for r in records[table]]
            assert all(r.startswith(head) for (head, _), r in zip(heads, records[table], strict=True))
            assert all(len(head) >= min(length, len(r)) for (head, _), r in zip(heads, records[table], strict=True))
        extent = entry.extent
        for wrong in (replace(extent, bytes=extent.bytes + 1), replace(extent, records=extent.records + 1)):
            with pytest.raises(LogDamagedError):
                log.heads(table, wrong, 10)


def test_a_large_epoch_is_many_records(place: Place, log: Log, writer: LogWriter, epochs: Epochs) -> None:
    record = epochs.append(log, writer, {ORDERS: 3_000}, 7_000)
    extent = record.tables[ORDERS].extent
    assert extent.records >= 5
    payloads = place.open().data(ORDERS, extent)
    assert max(map(len, payloads)) <= RECORD_LIMIT
    ids = [i for payload in payloads for i in decode(payload).batch.column(6).to_pylist()]
    assert ids == list(range(3_000))


def test_a_record_of_the_maximum_size_passes_and_a_larger_one_does_not(
    log: Log, writer: LogWriter, epochs: Epochs
) -> None:
    largest = os.urandom(RECORD_MAXIMUM)
    seal = epochs.seal(log.uuid, None, {ORDERS: 1})
    record = writer.append({ORDERS: [largest]}, seal)
    assert log.data(ORDERS, record.tables[ORDERS].extent) == [largest]
    with pytest.raises(LogError, match="are possible"):
        writer.append({ORDERS: [largest + b"x"]}, seal)
    assert log.newest() == record


def test_a_table_without_records_is_an_error_of_the_caller(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    with pytest.raises(ValueError, match="leave the table out"):
        writer.append({ORDERS: []}, epochs.seal(log.uuid, None, {}))


def test_a_seal_that_fails_leaves_nothing(place: Place, log: Log, writer: LogWriter, epochs: Epochs) -> None:
    def failing(extents: Mapping[str, Extent]) -> CommitRecord:
        raise RuntimeError("no")

    first = epochs.append(log, writer)
    with pytest.raises(RuntimeError, match="no"):
        writer.append(epochs.data(2, {ORDERS: 4}), failing)
    assert log.newest() == first
    assert writer.newest == first
    second = epochs.append(log, writer, {ORDERS: 2})
    assert [r.number for r in place.open().records()] == [1, 2]
    assert log.data(ORDERS, second.tables[ORDERS].extent) == epochs.data(2, {ORDERS: 2})[ORDERS]


@pytest.mark.parametrize("wrong", [{"number": 3}, {"before": "e" * 64}, {"log": "another"}, {"tables": {}}])
def test_a_record_that_does_not_follow_is_refused(
    log: Log, writer: LogWriter, epochs: Epochs, wrong: dict[str, object]
) -> None:
    first = epochs.append(log, writer)
    with pytest.raises(LogError, match="is refused"):
        epochs.append(log, writer, **wrong)
    assert log.newest() == first
    assert epochs.append(log, writer).number == 2


def test_parts_of_a_transaction_are_records_like_others(place: Place, log: Log, epochs: Epochs) -> None:
    """Each ends where the next one starts, and a second writer goes on within the transaction."""
    parts = [epochs.position(0), *(epochs.position(0, events) for events in (5, 9)), epochs.position(1)]
    written = []
    for start, end in itertools.pairwise(parts):
        with closing(log.writer()) as writer:
            written.append(epochs.append(log, writer, {ORDERS: 2}, start=start, end=end))
    found = list(place.open().records())
    assert found == written
    assert [record.whole for record in found] == [False, False, True]
    assert [one.end.is_at(two.start) for one, two in itertools.pairwise(found)] == [True, True]
    assert place.open().newest() == written[-1]


@pytest.mark.parametrize("wrong", ["added", "states"])
def test_a_part_that_adds_or_restates_tables_is_refused(
    log: Log, writer: LogWriter, epochs: Epochs, wrong: str
) -> None:
    state = TableState({}, {}, Counts(), None, 1)
    with pytest.raises(LogError, match="within a transaction"):
        epochs.append(log, writer, {}, end=epochs.position(0, 5), **{wrong: {"shop.new": state}})
    assert log.newest() is None
    assert epochs.append(log, writer, {}, **{wrong: {"shop.new": state}}).whole


def test_a_writer_sees_the_newest(log: Log, epochs: Epochs) -> None:
    writer = log.writer()
    found = writer.newest
    assert found is None
    record = epochs.append(log, writer)
    assert writer.newest == record
    writer.check()
    writer.close()
    writer.close()
    again = log.writer()
    assert again.newest == record
    again.check()
    again.close()


def test_a_closed_writer_does_not_write(log: Log, epochs: Epochs) -> None:
    writer = log.writer()
    writer.close()
    with pytest.raises(LogError, match="cannot be used"):
        epochs.append(log, writer)
    assert log.newest() is None


def test_a_second_writer_fences_the_first(place: Place, log: Log, epochs: Epochs) -> None:
    first = log.writer()
    epochs.append(log, first)
    second = place.usurp(place.open())
    assert second.newest == first.newest
    with pytest.raises(LogFencedError):
        epochs.append(log, first)
    assert epochs.append(log, second).number == 2
    with pytest.raises(LogFencedError):
        first.check()
    with pytest.raises(LogFencedError):
        epochs.append(log, first)
    assert [r.number for r in log.records()] == [1, 2]
    first.close()
    second.check()
    assert epochs.append(log, second).number == 3
    second.close()


def test_a_fenced_writer_that_wrote_nothing_yet_is_fenced_too(place: Place, log: Log, epochs: Epochs) -> None:
    first = log.writer()
    second = place.usurp(log)
    with pytest.raises(LogFencedError):
        epochs.append(log, first)
    assert epochs.append(log, second).number == 1
    first.close()
    second.close()


def run_appending(place: Place, count: int, faults: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.contract.appending", place.url, place.pipeline, str(count)],
        cwd=ROOT,
        env={**os.environ, "LAKESYNC_FAULTS": faults},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("point", "visible"), [("log.after-data", 2), ("log.before-commit", 2), ("log.after-commit", 3)]
)
def test_a_killed_writer_leaves_whole_epochs(place: Place, epochs: Epochs, point: str, visible: int) -> None:
    ended = run_appending(place, 5, f"kill:{point}:3")
    assert ended.returncode == -9, ended.stderr
    log = place.open()
    writer = log.writer()
    found = list(log.records())
    assert [r.number for r in found] == list(range(1, visible + 1))
    for record in found:
        for table, entry in record.tables.items():
            assert log.data(table, entry.extent) == epochs.data(record.number, {ORDERS: 3, USERS: 2})[table]
    assert writer.newest == found[-1]
    following = epochs.append(log, writer, {ORDERS: 2, USERS: 1})
    assert following.number == visible + 1
    assert log.data(USERS, following.tables[USERS].extent) == epochs.data(following.number, {USERS: 1})[USERS]
    writer.close()


def test_readers_never_see_half_an_epoch(place: Place, log: Log, epochs: Epochs) -> None:
    """Two readers in threads of their own, a writer beside them: each record seen is followed and its data there."""
    stop = threading.Event()
    failures: list[BaseException] = []
    seen: list[list[int]] = [[], []]

    def read(handle: Log, numbers: list[int]) -> None:
        try:
            while not stop.is_set() or (numbers[-1] if numbers else 0) < 30:
                handle.wait(numbers[-1] if numbers else 0, 0.2)
                for record in handle.records(numbers[-1] if numbers else None):
                    numbers.append(record.number)
                    for table, entry in record.tables.items():
                        handle.data(table, entry.extent)
        except BaseException as error:
            failures.append(error)

    readers = [
        threading.Thread(target=read, args=(handle, numbers))
        for handle, numbers in ((log, seen[0]), (place.open(), seen[1]))
    ]
    for reader in readers:
        reader.start()
    epochs.fill(log, 30, [{ORDERS: 20, USERS: 1}, {USERS: 2}])
    stop.set()
    for reader in readers:
        reader.join(60)
    assert not failures
    assert seen == [list(range(1, 31))] * 2


def test_data_that_is_not_what_the_record_says_is_refused(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    first = epochs.append(log, writer, {ORDERS: 2})
    epochs.append(log, writer, {ORDERS: 2})
    extent = first.tables[ORDERS].extent
    for wrong in (
        Extent(extent.first, extent.last, extent.records, extent.bytes, "0" * 64),
        Extent(extent.first, extent.last, extent.records, extent.bytes + 1, extent.digest),
        Extent(extent.first, extent.last, extent.records + 1, extent.bytes, extent.digest),
    ):
        with pytest.raises(LogDamagedError, match=ORDERS):
            log.data(ORDERS, wrong)
    assert log.data(ORDERS, extent)


def test_data_that_was_changed_is_refused(place: Place, log: Log, writer: LogWriter, epochs: Epochs) -> None:
    record = epochs.append(log, writer, {ORDERS: 2})
    extent = record.tables[ORDERS].extent
    (payload,) = log.data(ORDERS, extent)
    place.overwrite(ORDERS, extent, payload[:-20] + bytes([payload[-20] ^ 1]) + payload[-19:])
    with pytest.raises(LogDamagedError, match="other bytes"):
        log.data(ORDERS, extent)


def test_data_of_a_table_that_the_log_never_had(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    record = epochs.append(log, writer, {ORDERS: 2})
    with pytest.raises(LogDamagedError, match=r"shop\.nothing"):
        log.data("shop.nothing", record.tables[ORDERS].extent)


def test_data_beyond_the_end_of_the_log(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    record = epochs.append(log, writer, {ORDERS: 2})
    extent = record.tables[ORDERS].extent
    with pytest.raises(LogDamagedError, match=ORDERS):
        log.data(ORDERS, Extent(extent.first + 1000, extent.last + 1000, extent.records, extent.bytes, extent.digest))


def test_trim_takes_what_it_may_and_keeps_the_rest(place: Place, log: Log, epochs: Epochs) -> None:
    written = epochs.fill(log, 10, [{ORDERS: 1, USERS: 1}, {ORDERS: 1}], checkpoint=1)
    written += epochs.fill(log, 10, [{ORDERS: 1}], checkpoint=15)
    log.trim(0)
    assert len(list(log.records())) == 20
    log.trim(8)
    assert next(r.number for r in place.open().records()) == 8
    for record in list(log.records()):
        for table, entry in record.tables.items():
            assert len(log.data(table, entry.extent)) == entry.extent.records
    with pytest.raises(LogGapError, match="trimmed"):
        log.data(ORDERS, written[5].tables[ORDERS].extent)
    with pytest.raises(LogGapError, match="trimmed"):
        log.data(USERS, written[6].tables[USERS].extent)
    log.trim(8)
    log.trim(3)
    assert log.oldest() == written[7]
    log.trim(10_000)
    assert log.oldest() == written[14], "the checkpoint that the newest record names stays, with all after it"
    assert log.newest() == written[-1]
    assert [r.number for r in place.open().records(17)] == [18, 19, 20]
    writer = log.writer()
    assert writer.newest == written[-1]
    following = epochs.append(log, writer, {ORDERS: 1, USERS: 1}, checkpoint=21)
    assert following.tables[USERS].extent.first > written[8].tables[USERS].extent.last, "offsets are never used twice"
    log.trim(10_000)
    assert list(log.records()) == [following]
    writer.check()
    writer.close()


def test_offsets_of_trimmed_data_are_never_used_again(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    first = epochs.append(log, writer, {ORDERS: 1})
    epochs.append(log, writer, {}, checkpoint=2)
    log.trim(2)
    again = epochs.append(log, writer, {ORDERS: 1}, checkpoint=2)
    assert again.tables[ORDERS].extent.first > first.tables[ORDERS].extent.last
    with pytest.raises(LogGapError, match="trimmed"):
        log.data(ORDERS, first.tables[ORDERS].extent)


def test_trim_of_an_empty_log(log: Log) -> None:
    log.trim(5)
    assert log.newest() is None


def test_a_log_made_anew_has_another_identity(place: Place, log: Log, epochs: Epochs) -> None:
    before = log.uuid
    epochs.fill(log, 1)
    place.close()
    place.recreate()
    again = place.open()
    assert again.uuid != before
    assert again.newest() is None
    assert again.uuid == place.open().uuid


def test_wait_ends_when_a_record_comes(place: Place, log: Log, writer: LogWriter, epochs: Epochs) -> None:
    assert not log.wait(0, 0.1)
    epochs.append(log, writer)
    assert log.wait(0, 5)
    assert not log.wait(1, 0.1)
    ended: list[tuple[bool, float]] = []

    def wait() -> None:
        came = place.open().wait(1, 30)
        ended.append((came, time.monotonic()))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.5)
    began = time.monotonic()
    epochs.append(log, writer)
    waiting.join(30)
    assert ended
    assert ended[0][0]
    assert ended[0][1] - began < 2


def test_an_answer_that_is_lost_is_indefinite(
    place: Place, log: Log, epochs: Epochs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is there, the writer does not know, and a new one finds out."""
    writer = log.writer()
    epochs.append(log, writer)
    monkeypatch.setattr(faults, "_armed", {"log.after-commit": ("fail", 1.0)})
    monkeypatch.setattr(faults, "_counts", Counter())
    with pytest.raises(LogIndefiniteError):
        epochs.append(log, writer)
    monkeypatch.setattr(faults, "_armed", {})
    with pytest.raises(LogError, match="cannot be used"):
        epochs.append(log, writer)
    writer.close()
    again = place.open().writer()
    assert again.newest is not None
    assert again.newest.number == 2
    again.close()


@pytest.mark.parametrize("point", ["log.after-data", "log.before-commit"])
def test_an_append_that_fails_leaves_nothing(
    log: Log, writer: LogWriter, epochs: Epochs, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    epochs.append(log, writer)
    monkeypatch.setattr(faults, "_armed", {point: ("fail", 1.0)})
    monkeypatch.setattr(faults, "_counts", Counter())
    with pytest.raises(LogError) as caught:
        epochs.append(log, writer, {ORDERS: 5})
    assert type(caught.value) is LogError
    assert len(list(log.records())) == 1
    assert epochs.append(log, writer, {ORDERS: 5}).number == 2


def test_size(log: Log, writer: LogWriter, epochs: Epochs) -> None:
    before = log.size_bytes()
    epochs.append(log, writer, {ORDERS: 1_000}, 1_000)
    after = log.size_bytes()
    assert before is None or (after is not None and after > before + 900_000)
