"""kill -9 in every state of a window and of a job: a table that is read again is the source's, one that is filled by windows has every row once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars
import pymysql
import pytest

from cdc.lake import manifest
from cdc.names import TableName
from cdc.state import Read, ReadSpec, State
from dev.kafka import KafkaBroker
from dev.mysql import MySQLServer
from tests.faults.rig import Rig, seed

ROWS = 240
SETTINGS = {"snapshot": {"window_rows": 10, "readers": 2}}


class Killed:
    """A table that is followed, `again`, and one that windows fill and that every change is appended to, `once`."""

    def __init__(self, folder: Path, server: MySQLServer, schema: str, log: str | None = None) -> None:
        self.server = server
        self.again, self.once = TableName(schema, "again"), TableName(schema, "once")
        for table in (self.again, self.once):
            server.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, v VARCHAR(40), n INT)")
            values = ", ".join(f"({2 * n}, 'v{n}', {n})" for n in range(1, ROWS + 1))
            server.execute(f"INSERT INTO {table.quoted} VALUES {values}")
        entries: list[object] = [str(self.again), {"name": str(self.once), "mode": "append", "backfill": True}]
        self.rig = Rig(folder, server, entries, settings=SETTINGS, log=log)  # type: ignore[arg-type]
        self.state = State(self.rig.state)

    def ready(self) -> None:
        for table in (self.again, self.once):
            self.rig.wait_phase(str(table), "ready")

    def drift(self) -> Read:
        """The lake and the source part, and the source shall be read again."""
        t = self.again.quoted
        chosen = random.Random(ROWS)
        with self.server.root() as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_log_bin = 0")
            for key in chosen.sample(range(1, 2 * ROWS), 30):
                if key % 2:
                    cursor.execute(f"INSERT IGNORE INTO {t} VALUES (%s, 'new', 0)", (key,))
                elif key % 4:
                    cursor.execute(f"DELETE FROM {t} WHERE id = %s", (key,))
                else:
                    cursor.execute(f"UPDATE {t} SET v = 'drifted' WHERE id = %s", (key,))
            connection.commit()
        return self.state.ask_read(self.again, self.again, ReadSpec(), "asked")

    def done(self, job: str) -> None:
        """Wait until a job is done and the lake has it all."""

        def there() -> bool:
            read = self.state.read(job)
            assert read is not None
            assert read.phase in ("waiting", "running", "done"), read
            found = manifest.read(self.rig.lake, self.rig.folder.name[:40])
            if read.phase != "done" or found is None:
                return False
            return read.last is None or found.applied.epoch.number >= read.last.number

        self.rig.wait(there, f"{job} is done")

    @contextmanager
    def writes(self, number: int) -> Iterator[None]:
        """Some changes a second, while the block runs."""
        stop = threading.Event()
        chosen = random.Random(number)

        def work() -> None:
            with self.server.root() as connection, connection.cursor() as cursor:
                while not stop.wait(0.01):
                    table = chosen.choice((self.again, self.once)).quoted
                    a, b = chosen.randrange(2, 2 * ROWS), chosen.randrange(2, 2 * ROWS)
                    try:
                        what = chosen.randrange(4)
                        if what == 0 and table == self.again.quoted:
                            cursor.execute(f"DELETE FROM {table} WHERE id = %s", (a,))
                        elif what == 1 and table == self.again.quoted:
                            cursor.execute(f"UPDATE {table} SET id = %s WHERE id = %s", (b, a))
                        else:
                            cursor.execute(f"UPDATE {table} SET v = %s WHERE id = %s", (str(chosen.random()), a))
                        connection.commit()
                    except pymysql.err.IntegrityError:
                        connection.rollback()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(20)

    def check(self) -> None:
        """Both are right. The pipeline does not run, and is current."""
        assert self.rig.differences(str(self.again)) == []
        frame = polars.read_delta(str(self.rig.lake / self.once.folder))
        reads = frame.filter(polars.col("_cdc_op") == "read")
        assert reads["id"].is_unique().all(), "a row that was there before is there twice"
        assert set(frame["id"]) == {2 * n for n in range(1, ROWS + 1)}, "rows are missing"
        newest = frame.sort("_cdc_seq").group_by("id", maintain_order=True).last()
        source = self.server.execute(f"SELECT id, v, n FROM {self.once.quoted} ORDER BY id")
        assert newest.select("id", "v", "n").sort("id").rows() == list(map(tuple, source))
        assert frame["_cdc_gid"].is_unique().all(), "a change is there twice"

    def dies(self, faults: str) -> None:
        """Start it; it dies by its fault."""
        process = self.rig.start(faults=faults)
        assert process.wait(60) == -9, self.rig.last_words()


POINTS = [
    "window.opened:4",
    "window.read:5",
    "window.delivered:3",
    "window.emitting:2",
    "window.emitted:3",
    "log.after-data:4",
    "log.before-commit:4",
    "log.after-commit:4",
]


@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", POINTS)
def test_killed_in_every_state_of_a_window(tmp_path: Path, mysql: MySQLServer, schema: str, point: str) -> None:
    killed = Killed(tmp_path / "k", mysql, schema)
    try:
        killed.dies(f"kill:{point}")
        process = killed.rig.start()
        killed.ready()
        assert killed.rig.stop(process) == 0
        job = killed.drift().job
        # Between two windows the stream has something to say, too.
        with killed.writes(1):
            killed.dies(f"kill:{point}")
            process = killed.rig.start()
            killed.done(job)
        assert killed.rig.stop(process) == 0
        done = killed.rig.catch_up()
        assert done.returncode == 0, done.stderr
        killed.check()
    finally:
        killed.rig.close()


def at_random(folder: Path, server: MySQLServer, schema: str, log: str | None, kills: int) -> None:
    number = seed()
    chance = random.Random(number)
    killed = Killed(folder, server, schema, log)
    try:
        with killed.writes(number):
            for _ in range(kills):
                process = killed.rig.start()
                time.sleep(chance.uniform(0.5, 2.5))
                assert process.poll() is None, killed.rig.last_words()
                killed.rig.kill(process)
            process = killed.rig.start()
            killed.ready()
            job = killed.drift().job
            for _ in range(kills):
                time.sleep(chance.uniform(0.3, 2.0))
                assert process.poll() is None, killed.rig.last_words()
                killed.rig.kill(process)
                read = killed.state.read(job)
                if read is not None and not read.open:
                    job = killed.drift().job
                process = killed.rig.start()
            killed.done(job)
        assert killed.rig.stop(process) == 0, killed.rig.last_words()
        done = killed.rig.catch_up()
        assert done.returncode == 0, done.stderr
        killed.check()
    finally:
        killed.rig.close()


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_killed_at_random(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    at_random(tmp_path / "k", mysql, schema, None, 4)


@pytest.mark.timeout(900)
def test_killed_at_random_with_kafka(
    tmp_path: Path, mysql: MySQLServer, schema: str, kafka_factory: Callable[..., KafkaBroker]
) -> None:
    at_random(tmp_path / "k", mysql, schema, kafka_factory().url, 6)
