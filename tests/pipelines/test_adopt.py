"""Adoption from end to end: a copy of a table, taken at a position while it is written to, becomes the table that is followed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from cdc.config import load
from cdc.lake import deltalog, open_folder
from cdc.names import TableName
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from tests.faults.rig import Rig, seed

_FIELDS: list[pa.Field[Any]] = [
    pa.field("id", pa.int64()),
    pa.field("name", pa.string()),
    pa.field("amount", pa.decimal128(10, 2)),
    pa.field("at", pa.timestamp("us")),
]
COLUMNS = pa.schema(_FIELDS)
TABLE = "CREATE TABLE {} (id BIGINT PRIMARY KEY, name VARCHAR(60), amount DECIMAL(10, 2), at DATETIME(6))"
KEYS = 400


class Workload:
    """Inserts, updates, deletes and changes of keys, in transactions of a few rows, until the block ends."""

    def __init__(self, server: SqlServer, table: str, chosen: random.Random) -> None:
        self._server, self._table, self._chosen = server, table, chosen
        self._stop = threading.Event()
        self.transactions = 0

    def statement(self) -> str:
        key, other = self._chosen.randrange(KEYS), self._chosen.randrange(KEYS)
        value = self._chosen.randrange(10**6)
        return self._chosen.choice(
            [
                f"REPLACE INTO {self._table} VALUES ({key}, 'name {value}', {value / 100}, NOW(6))",
                f"UPDATE {self._table} SET name = 'changed {value}', at = NOW(6) WHERE id = {key}",
                f"UPDATE IGNORE {self._table} SET id = {other} WHERE id = {key}",
                f"DELETE FROM {self._table} WHERE id = {key}",
            ]
        )

    def once(self, connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            for _ in range(self._chosen.randrange(1, 5)):
                cursor.execute(self.statement())
            cursor.execute("COMMIT")
        self.transactions += 1

    def _run(self) -> None:
        with self._server.root() as connection:
            while not self._stop.is_set():
                self.once(connection)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self._stop.clear()


def copy(server: SqlServer, table: str, folder: Path, **options: Any) -> str:
    """The table as of a consistent snapshot, as a Delta table by deltalake; the snapshot's position."""
    with server.root() as connection, connection.cursor() as cursor:
        # What a dump does: no commit between the position and the view.
        cursor.execute("FLUSH TABLES WITH READ LOCK")
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        position = server.executed
        cursor.execute("UNLOCK TABLES")
        cursor.execute(f"SELECT * FROM {table}")
        rows = cursor.fetchall()
    by_column = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    arrays = [pa.array(values, field.type) for values, field in zip(by_column, COLUMNS, strict=True)]
    write_deltalake(str(folder), pa.table(arrays, schema=COLUMNS), **options)
    return position


def kinds(rig: Rig, table: str) -> list[str]:
    """What lakesync's commits of the table were."""
    return [
        commit.info["kind"] for commit in deltalog.commits(open_folder(rig.lake).folder(TableName.parse(table).folder))
    ]


def folder_of(rig_folder: Path, table: str) -> Path:
    """Where lakesync would put the table."""
    return rig_folder / "lake" / TableName.parse(table).folder


Pipeline = Callable[..., Rig]


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline of these tables, adopted where there is a position. It ends with the test."""
    made: list[Rig] = []

    def make(server: SqlServer, positions: dict[str, str | None], **settings: Any) -> Rig:
        entries = [{"name": t} | ({"from_position": p} if p else {}) for t, p in positions.items()]
        made.append(Rig(tmp_path / "p", server, list(positions), settings={"tables": entries, **settings}))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def caught_up(rig: Rig) -> None:
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr


@pytest.fixture
def chosen() -> random.Random:
    return random.Random(seed())


@pytest.fixture(params=["mysql", "mariadb"])
def place(request: pytest.FixtureRequest) -> tuple[SqlServer, str]:
    """A server of either kind, and an empty schema on it."""
    names = {"mysql": "schema", "mariadb": "mariadb_schema"}
    return request.getfixturevalue(request.param), request.getfixturevalue(names[request.param])


@pytest.fixture
def table(mysql: MySQLServer, schema: str, chosen: random.Random) -> str:
    """A table with rows."""
    return filled(mysql, f"{schema}.t", chosen)


def filled(server: SqlServer, table: str, chosen: random.Random) -> str:
    server.execute(TABLE.format(table))
    workload = Workload(server, table, chosen)
    with server.root() as connection:
        for _ in range(200):
            workload.once(connection)
    return table


# -- where a log begins ------------------------------------------------------------------------------------------------


def test_a_copy_that_was_taken_under_load_is_followed_from_its_position(
    pipeline: Pipeline, place: tuple[SqlServer, str], tmp_path: Path, chosen: random.Random
) -> None:
    server, schema = place
    table = filled(server, f"{schema}.t", chosen)
    workload = Workload(server, table, chosen)
    with workload.running():
        position = copy(server, table, folder_of(tmp_path / "p", table), target_file_size=4000)
        before = workload.transactions
        while workload.transactions < before + 200:
            pass
        rig = pipeline(server, {table: position})
        daemon = rig.start()
        rig.wait_phase(table, "ready")
        while workload.transactions < before + 600:
            pass
    assert rig.stop(daemon) == 0
    caught_up(rig)
    assert kinds(rig, table)[0] == "adopt"
    assert "bootstrap" not in kinds(rig, table)
    assert rig.verdict().green, rig.verdict()


def test_another_position_than_the_copys_is_seen(
    pipeline: Pipeline, mysql: MySQLServer, table: str, tmp_path: Path, chosen: random.Random
) -> None:
    """What lakesync cannot know, reconcile shows: the user's word was wrong."""
    copy(mysql, table, folder_of(tmp_path / "p", table))
    workload = Workload(mysql, table, chosen)
    with mysql.root() as connection:
        for _ in range(20):
            workload.once(connection)
        mysql.execute(f"REPLACE INTO {table} VALUES (1000, 'not in the copy', 1, NOW(6))")
    rig = pipeline(mysql, {table: mysql.executed})
    caught_up(rig)
    assert rig.differences(table)
    done = rig.lakesync("reconcile", "--values")
    assert done.returncode == 1, done.stdout
    # The way out: it is read anew, and its position counts no more.
    assert rig.lakesync("resync", table).returncode == 0
    caught_up(rig)
    assert kinds(rig, table)[-1] in ("bootstrap", "merge")
    assert "bootstrap" in kinds(rig, table)
    assert rig.verdict().green, rig.verdict()


def test_a_position_from_before_the_copy_was_begun_is_right_too(
    pipeline: Pipeline, mysql: MySQLServer, table: str, tmp_path: Path, chosen: random.Random
) -> None:
    position = mysql.executed
    workload = Workload(mysql, table, chosen)
    with mysql.root() as connection:
        for _ in range(60):
            workload.once(connection)
        copy(mysql, table, folder_of(tmp_path / "p", table))
        for _ in range(20):
            workload.once(connection)
    rig = pipeline(mysql, {table: position})
    caught_up(rig)
    assert rig.verdict().green, rig.verdict()


def test_several_copies_of_different_times_and_a_table_without_one(
    pipeline: Pipeline, mysql: MySQLServer, schema: str, tmp_path: Path, chosen: random.Random
) -> None:
    tables = [filled(mysql, f"{schema}.t{i}", chosen) for i in range(3)]
    loads = [Workload(mysql, t, chosen) for t in tables]
    positions: dict[str, str | None] = {}
    with mysql.root() as connection:
        for i in (1, 0):
            positions[tables[i]] = copy(mysql, tables[i], folder_of(tmp_path / "p", tables[i]))
            for _ in range(50):
                for load in loads:
                    load.once(connection)
    assert positions[tables[0]] != positions[tables[1]]
    positions[tables[2]] = None
    rig = pipeline(mysql, positions)
    caught_up(rig)
    assert [kinds(rig, t)[0] for t in tables] == ["adopt", "adopt", "bootstrap"]
    assert rig.verdict().green, rig.verdict()


def test_a_position_that_the_binary_log_does_not_reach_back_to(
    pipeline: Pipeline, mysql_factory: Callable[..., MySQLServer], tmp_path: Path, chosen: random.Random
) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE s")
    copied, other = filled(server, "s.t", chosen), filled(server, "s.u", chosen)
    position = copy(server, copied, folder_of(tmp_path / "p", copied))
    server.execute("INSERT INTO s.t VALUES (999, 'gone', 1, NOW(6))")
    server.execute("FLUSH BINARY LOGS")
    file = server.status("SHOW BINARY LOG STATUS")["File"]
    server.execute("PURGE BINARY LOGS TO %s", file)
    rig = pipeline(server, {copied: position, other: None})
    checked = rig.lakesync("check")
    assert checked.returncode == 1
    assert "no longer holds transactions that are behind from_position" in checked.stdout
    daemon = rig.start()
    rig.wait_phase(other, "ready")
    status = {t["table"]: t for t in rig.status()["tables"]}
    assert "no longer holds" in status[copied]["error"]["what"]
    assert "lakesync remove" in status[copied]["error"]["hint"]
    assert DeltaTable(str(folder_of(rig.folder, copied))).version() == 0
    # The way out: another copy, with its position. The log goes on already: what is between is read in windows.
    assert rig.lakesync("remove", copied).returncode == 0
    rig.wait_phase(copied, "removed")
    again = copy(server, copied, folder_of(rig.folder, copied), mode="overwrite")
    done = rig.lakesync("add", copied, "--from-position", again)
    assert done.returncode == 0, done.stdout + done.stderr
    rig.wait_phase(copied, "ready")
    server.execute("INSERT INTO s.t VALUES (1001, 'later', 1, NOW(6))")
    assert rig.stop(daemon) == 0
    caught_up(rig)
    assert rig.verdict().green, rig.verdict()


def test_a_position_of_another_server(pipeline: Pipeline, mysql: MySQLServer, table: str, tmp_path: Path) -> None:
    copy(mysql, table, folder_of(tmp_path / "p", table))
    strange = f"{mysql.executed},3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5"
    rig = pipeline(mysql, {table: strange})
    daemon = rig.start()
    rig.wait_phase(table, "stopped")
    (status,) = rig.status()["tables"]
    assert "transactions that the server does not have: 3e11fa47" in status["error"]["what"]
    assert DeltaTable(str(folder_of(rig.folder, table))).version() == 0
    assert rig.stop(daemon) == 0


# -- beside a stream ---------------------------------------------------------------------------------------------------


def test_a_copy_from_before_the_streams_place_is_read_once(
    pipeline: Pipeline, place: tuple[SqlServer, str], tmp_path: Path, chosen: random.Random
) -> None:
    server, schema = place
    followed, copied = filled(server, f"{schema}.a", chosen), filled(server, f"{schema}.b", chosen)
    rig = pipeline(server, {followed: None})
    daemon = rig.start()
    rig.wait_phase(followed, "ready")
    position = copy(server, copied, folder_of(rig.folder, copied))
    # Rows that only the copy has, that only the source has, and that differ.
    server.execute(f"DELETE FROM {copied} WHERE id < 50")
    server.execute(f"REPLACE INTO {copied} VALUES (2000, 'new', 1, NOW(6)), (60, 'changed', 1, NOW(6))")
    rig.wait(lambda: rig.status()["nodes"], "a node")
    with Workload(server, copied, chosen).running():
        done = rig.lakesync("add", copied, "--from-position", position)
        assert done.returncode == 0, done.stdout + done.stderr
        rig.wait_phase(copied, "ready", 90)
    assert rig.stop(daemon) == 0
    rig.tables = (followed, copied)
    caught_up(rig)
    assert kinds(rig, copied)[0] == "adopt"
    assert "bootstrap" not in kinds(rig, copied)
    assert rig.verdict().green, rig.verdict()


# -- refused, and put right --------------------------------------------------------------------------------------------


def test_a_copy_with_a_key_twice_stops_alone_and_goes_on_once_it_is_right(
    pipeline: Pipeline, mysql: MySQLServer, schema: str, tmp_path: Path, chosen: random.Random
) -> None:
    other, copied = filled(mysql, f"{schema}.a", chosen), filled(mysql, f"{schema}.b", chosen)
    mysql.execute(f"REPLACE INTO {copied} VALUES (7, 'twice', 1, NOW(6))")
    folder = folder_of(tmp_path / "p", copied)
    position = copy(mysql, copied, folder)
    write_deltalake(str(folder), DeltaTable(str(folder)).to_pyarrow_table(filters=[("id", "=", 7)]), mode="append")
    rig = pipeline(mysql, {other: None, copied: position})
    daemon = rig.start()
    rig.wait_phase(copied, "stopped")
    rig.wait_phase(other, "ready")
    status = {t["table"]: t for t in rig.status()["tables"]}
    assert "1 rows or more have a key (id)" in status[copied]["error"]["what"]
    assert f"lakesync resume {copied}" in status[copied]["error"]["hint"]
    DeltaTable(str(folder)).restore(0)
    assert rig.lakesync("resume", copied).returncode == 0
    rig.wait_phase(copied, "ready")
    assert rig.stop(daemon) == 0
    caught_up(rig)
    assert rig.verdict().green, rig.verdict()


def test_add_says_what_is_in_the_way(
    pipeline: Pipeline, mysql: MySQLServer, table: str, schema: str, tmp_path: Path, chosen: random.Random
) -> None:
    other = filled(mysql, f"{schema}.other", chosen)
    rig = pipeline(mysql, {other: None})
    position = copy(mysql, table, folder_of(rig.folder, table))
    missing = rig.lakesync("add", table, "--from-position", position.replace(":1-", ":1-9"))
    assert missing.returncode == 1
    assert "transactions that the server does not have" in missing.stdout
    write_deltalake(
        str(folder_of(rig.folder, table)),
        pa.table({"id": ["1"], "name": ["a"]}),
        mode="overwrite",
        schema_mode="overwrite",
    )
    wrong = rig.lakesync("add", table, "--from-position", position)
    assert wrong.returncode == 1
    for said in ("column id is string, and long in the source", "column amount is missing", "column at is missing"):
        assert said in " ".join(wrong.stdout.split())
    assert table not in [entry.name for entry in load(rig.config).tables]
    nothing = rig.lakesync("add", table, "--from-position", "not a set")
    assert nothing.returncode == 2


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    ["log.after-commit", "lake.before-commit", "lake.after-commit", "merge.after-round"],
)
def test_killed_anywhere_it_is_adopted_once(
    pipeline: Pipeline, mysql: MySQLServer, table: str, tmp_path: Path, chosen: random.Random, point: str
) -> None:
    position = copy(mysql, table, folder_of(tmp_path / "p", table))
    workload = Workload(mysql, table, chosen)
    with mysql.root() as connection:
        for _ in range(30):
            workload.once(connection)
    rig = pipeline(mysql, {table: position})
    assert rig.catch_up(faults=f"kill:{point}").returncode == -9
    caught_up(rig)
    assert kinds(rig, table).count("adopt") == 1
    assert "bootstrap" not in kinds(rig, table)
    assert rig.verdict().green, rig.verdict()


@pytest.mark.parametrize("point", ["lake.before-commit", "lake.after-commit", "window.emitting", "window.emitted"])
def test_killed_while_it_is_read_once(
    pipeline: Pipeline, mysql: MySQLServer, schema: str, tmp_path: Path, chosen: random.Random, point: str
) -> None:
    followed, copied = filled(mysql, f"{schema}.a", chosen), filled(mysql, f"{schema}.b", chosen)
    rig = pipeline(mysql, {followed: None})
    caught_up(rig)
    position = copy(mysql, copied, folder_of(rig.folder, copied))
    mysql.execute(f"DELETE FROM {copied} WHERE id < 50")
    caught_up(rig)
    done = rig.lakesync("add", copied, "--from-position", position)
    assert done.returncode == 0, done.stdout + done.stderr
    rig.tables = (followed, copied)
    assert rig.catch_up(faults=f"kill:{point}").returncode == -9
    caught_up(rig)
    assert kinds(rig, copied).count("adopt") == 1
    assert "bootstrap" not in kinds(rig, copied)
    assert rig.verdict().green, rig.verdict()
