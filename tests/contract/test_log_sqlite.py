"""What can happen to a file, and to no broker."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cdc.errors import ConfigError, LogDamagedError, LogError, LogFencedError, LogMovedError, LogUnavailableError
from cdc.log import open_log
from cdc.log import sqlite as embedded
from tests.contract.conftest import Epochs, SqlitePlace
from tests.contract.test_log import ORDERS, ROOT, USERS


@contextlib.contextmanager
def raw(place: SqlitePlace) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(place.path, isolation_level=None)) as sql:
        yield sql


def copy_of(place: SqlitePlace) -> Path:
    """A consistent copy, as `sqlite3 log.db .backup` makes one."""
    copy = place.path.with_name("copy.db")
    with raw(place) as sql, contextlib.closing(sqlite3.connect(copy)) as target:
        sql.backup(target)
    return copy


def test_folder_and_files_are_private(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    writer = log.writer()
    epochs.append(log, writer)
    assert stat.S_IMODE(sqlite_place.path.parent.stat().st_mode) == 0o700
    files = sorted(sqlite_place.path.parent.iterdir())
    assert [file.name for file in files] == ["shop.db", "shop.db-shm", "shop.db-wal", "shop.db.lock"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    writer.close()


def test_every_commit_is_synced_to_the_disk(sqlite_place: SqlitePlace) -> None:
    log = sqlite_place.open()
    writer = log.writer()
    assert isinstance(writer, embedded.SqliteWriter)
    sql = writer._connection.sql
    assert sql.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert sql.execute("PRAGMA synchronous").fetchone()[0] == 2
    writer.close()


def test_a_lock_that_is_held_names_its_holder(sqlite_place: SqlitePlace) -> None:
    log = sqlite_place.open()
    writer = log.writer()
    with pytest.raises(LogFencedError, match=f"process {os.getpid()} writes"):
        sqlite_place.open().writer()
    writer.check()
    writer.close()
    log.writer().close()


def test_the_lock_of_a_dead_process_is_free(sqlite_place: SqlitePlace) -> None:
    script = f"import time; from cdc.log import open_log; w = open_log({sqlite_place.url!r}, 'shop').writer(); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        log = sqlite_place.open()
        with pytest.raises(LogFencedError, match=f"process {process.pid} writes"):
            log.writer()
        process.send_signal(signal.SIGKILL)
    log.writer().close()


def test_a_log_rolled_back_in_place_is_noticed(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    """An older copy brings the old token back; the newest record tells."""
    log = sqlite_place.open()
    writer = log.writer()
    first = epochs.append(log, writer)
    copy = copy_of(sqlite_place)
    epochs.append(log, writer)
    epochs.append(log, writer)
    with contextlib.closing(sqlite3.connect(copy)) as source, raw(sqlite_place) as sql:
        source.backup(sql)
    with pytest.raises(LogMovedError, match="newest epoch is #1"):
        writer.check()
    with pytest.raises(LogMovedError, match="newest epoch is #1"):
        epochs.append(log, writer)
    assert list(log.records()) == [first]
    writer.close()
    again = log.writer()
    assert again.newest == first
    again.close()


def test_a_log_rolled_back_to_nothing_is_noticed(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    writer = log.writer()
    copy = copy_of(sqlite_place)
    epochs.append(log, writer)
    with contextlib.closing(sqlite3.connect(copy)) as source, raw(sqlite_place) as sql:
        source.backup(sql)
    with pytest.raises(LogMovedError, match="newest epoch is none"):
        epochs.append(log, writer)
    writer.close()


def test_a_file_put_in_the_place_of_the_log_is_noticed(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    reader = sqlite_place.open()
    writer = log.writer()
    first = epochs.append(log, writer)
    copy = copy_of(sqlite_place)
    epochs.append(log, writer)
    assert reader.newest() == writer.newest
    for name in ("shop.db-wal", "shop.db-shm"):
        sqlite_place.path.with_name(name).unlink()
    copy.replace(sqlite_place.path)
    with pytest.raises(LogMovedError):
        writer.check()
    with pytest.raises(LogMovedError):
        epochs.append(log, writer)
    assert reader.newest() == first
    writer.close()
    again = log.writer()
    assert epochs.append(log, again).number == 2
    again.close()
    assert reader.newest() == log.newest() != first


def test_another_log_in_the_place_of_this_one_is_noticed(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    writer = log.writer()
    epochs.append(log, writer)
    sqlite_place.path.rename(sqlite_place.path.with_name("old.db"))
    with pytest.raises(LogDamagedError, match="is gone"):
        writer.check()
    sqlite_place.recreate()
    sqlite_place.open()
    with pytest.raises(LogMovedError, match="this capture wrote"):
        epochs.append(sqlite_place.open(), writer)
    assert log.newest() is None
    writer.close()


def test_another_empty_log_in_the_place_of_an_empty_one_is_noticed(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    writer = sqlite_place.open().writer()
    sqlite_place.recreate()
    sqlite_place.open().writer().close()  # which gives it the same token
    with pytest.raises(LogMovedError, match="this capture wrote"):
        writer.check()
    writer.close()


def test_a_log_of_another_pipeline_is_refused(sqlite_place: SqlitePlace) -> None:
    sqlite_place.open()
    with pytest.raises(ConfigError, match="pipeline 'shop', not of 'other'"):
        open_log(sqlite_place.url, "other")


@pytest.mark.parametrize("content", [b"Dear diary\n" * 500, b"SQLite format 3\0" + b"\0" * 4080])
def test_a_file_of_another_kind_is_refused(sqlite_place: SqlitePlace, content: bytes) -> None:
    sqlite_place.path.parent.mkdir()
    sqlite_place.path.write_bytes(content)
    with pytest.raises((ConfigError, LogDamagedError), match=r"not a lakesync log|damaged"):
        sqlite_place.open()
    assert sqlite_place.path.read_bytes() == content


def test_a_database_of_another_program_is_refused(sqlite_place: SqlitePlace) -> None:
    sqlite_place.path.parent.mkdir()
    with raw(sqlite_place) as sql:
        sql.execute("CREATE TABLE commits (number INTEGER)")
    with pytest.raises(ConfigError, match="not a lakesync log"):
        sqlite_place.open()


def test_an_empty_file_is_not_taken_for_a_new_log(sqlite_place: SqlitePlace) -> None:
    sqlite_place.path.parent.mkdir()
    sqlite_place.path.touch()
    with pytest.raises(LogDamagedError, match="empty"):
        sqlite_place.open()


def test_a_newer_format_is_refused(sqlite_place: SqlitePlace) -> None:
    sqlite_place.open().close()
    with raw(sqlite_place) as sql:
        sql.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigError, match="format 2"):
        sqlite_place.open()


def test_a_file_that_was_cut_off_is_damaged(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    epochs.fill(log, 20, [{ORDERS: 50}])
    log.close()
    whole = sqlite_place.path.read_bytes()
    sqlite_place.path.write_bytes(whole[: len(whole) // 2])

    def read_all() -> None:
        again = sqlite_place.open()
        for record in again.records():
            again.data(ORDERS, record.tables[ORDERS].extent)

    with pytest.raises(LogDamagedError):
        read_all()


def test_a_commit_record_that_changed_is_damaged(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    epochs.fill(log, 2)
    with raw(sqlite_place) as sql:
        sql.execute("UPDATE commits SET payload = replace(payload, 'binlog', 'winlog') WHERE number = 2")
    with pytest.raises(LogDamagedError, match="commit record 2 has changed"):
        log.newest()
    with pytest.raises(LogDamagedError, match="commit record 2"):
        log.writer()
    log.close()


def test_every_damaged_page_is_noticed_or_harmless(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    written = epochs.fill(log, 12, [{ORDERS: 30, USERS: 5}])
    data = {r.number: {t: log.data(t, e.extent) for t, e in r.tables.items()} for r in written}
    log.close()
    whole = sqlite_place.path.read_bytes()
    noticed = 0
    for at in range(40, len(whole), 997):
        sqlite_place.path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            again = sqlite_place.open()
            assert list(again.records()) == written
            assert {r.number: {t: again.data(t, e.extent) for t, e in r.tables.items()} for r in written} == data
        except (LogError, ConfigError):
            noticed += 1
        finally:
            sqlite_place.close()
    assert noticed > len(whole) // 997 // 3, "the rest is free space"


def test_a_full_disk_leaves_nothing_and_the_writer_goes_on(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    writer = log.writer()
    assert isinstance(writer, embedded.SqliteWriter)
    first = epochs.append(log, writer)
    sql = writer._connection.sql
    sql.execute("PRAGMA max_page_count = 40")
    with pytest.raises(LogError, match="full") as caught:
        epochs.append(log, writer, {ORDERS: 1_000}, 1_000)
    assert type(caught.value) is LogError
    assert list(log.records()) == [first]
    assert writer.newest == first
    sql.execute("PRAGMA max_page_count = 1000000")
    assert epochs.append(log, writer, {ORDERS: 1_000}, 1_000).number == 2
    writer.close()


WRITE_ERROR = """
import resource, signal, sys
from cdc.errors import LogError
from cdc.log import open_log
from tests.contract.conftest import Epochs
log = open_log(sys.argv[1], "shop"); writer = log.writer(); epochs = Epochs()
epochs.append(log, writer)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
try:
    epochs.append(log, writer, {"shop.orders": 1000}, 1000)
except LogError as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert len(list(log.records())) == 1
epochs.append(log, writer, {"shop.orders": 2})
print([record.number for record in log.records()])
writer.close()
log.close()
"""


def test_a_write_error_leaves_nothing_and_the_writer_goes_on(sqlite_place: SqlitePlace) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WRITE_ERROR, sqlite_place.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    first, last = ended.stdout.splitlines()
    assert first.startswith("LogError ")
    assert last == "[1, 2]"
    assert [record.number for record in sqlite_place.open().records()] == [1, 2]


def test_a_log_that_stays_busy_is_unavailable(
    sqlite_place: SqlitePlace, epochs: Epochs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "BUSY_S", 0.2)
    log = sqlite_place.open()
    writer = log.writer()
    with raw(sqlite_place) as sql:
        sql.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailableError, match="busy"):
            epochs.append(log, writer)
        sql.execute("ROLLBACK")
    assert epochs.append(log, writer).number == 1
    writer.close()


def test_trimming_gives_the_room_back(
    sqlite_place: SqlitePlace, epochs: Epochs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "FREE_LIMIT", 1_000_000)
    log = sqlite_place.open()
    writer = log.writer()
    for _ in range(20):
        epochs.append(log, writer, {ORDERS: 1_000}, 1_000, checkpoint=20)
    full = sqlite_place.path.stat().st_size
    assert full > 15_000_000
    log.trim(20)
    writer.close()
    log.close()
    assert sqlite_place.path.stat().st_size < 4_000_000
    assert [record.number for record in sqlite_place.open().records()] == [20]


def test_a_trim_beside_a_writer_stops_neither(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    writer = log.writer()
    for _ in range(30):
        epochs.append(log, writer, {ORDERS: 200}, 1_000, checkpoint=30)
    slowest = 0.0
    with ThreadPoolExecutor(1) as pool:
        trimmed = pool.submit(sqlite_place.open().trim, 30)
        for _ in range(20):
            began = time.monotonic()
            epochs.append(log, writer, {ORDERS: 1}, checkpoint=30)
            slowest = max(slowest, time.monotonic() - began)
        trimmed.result()
    assert slowest < 5
    assert [record.number for record in log.records()] == list(range(30, 51))
    writer.close()


def test_processes_that_make_the_log_at_once_agree(sqlite_place: SqlitePlace) -> None:
    script = f"from cdc.log import open_log; print(open_log({sqlite_place.url!r}, 'shop').uuid)"
    running = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    found = {process.communicate(timeout=60)[0] for process in running}
    assert len(found) == 1
    assert found == {f"{sqlite_place.open().uuid}\n"}
    assert {file.name for file in sqlite_place.path.parent.iterdir()} <= {"shop.db", "shop.db-wal", "shop.db-shm"}


def test_connections_of_ended_threads_are_closed(sqlite_place: SqlitePlace, epochs: Epochs) -> None:
    log = sqlite_place.open()
    epochs.fill(log, 1)
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(log.newest).result() is not None
    assert isinstance(log, embedded.SqliteLog)
    assert len(log._open) <= 3


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match=r"File exists|Not a directory"):
        open_log(f"sqlite://{tmp_path}/file/log.db", "shop")
    shutil.rmtree(tmp_path)
