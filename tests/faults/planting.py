"""Corruptions, each planted in a table of its own, while all of them are written to: what is done at the source, in the pipeline
(`tests.faults.mutated`) and in the lake, and which keys are wrong then."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import orjson
import pyarrow as pa

from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from reconcile.checks import CORRUPTIONS
from tests.faults import mutated
from tests.faults.mutated import MARKED, NEW, OLD
from tests.faults.rig import Rig

SCHEMA = "v"
ROWS = 200
ROOT = Path(__file__).parents[2]
COLUMNS = "id INT PRIMARY KEY, a INT, b INT, name VARCHAR(40) CHARACTER SET latin1, note VARCHAR(100), price DECIMAL(10,2), at TIMESTAMP(6) NULL"
GROUPS = (("a", "b", "note"), ("name", "price", "at"))
"""Columns that are compared by themselves: a corruption of values is in one of the two."""
BUSY_FROM = 50
"""Rows from here on are written to all the time."""
PULSE = 4
"""A row that is written to once more when everything is planted, so that there is a commit behind it."""

Sql = tuple[str, ...]


@dataclass(frozen=True)
class Plant:
    """How a corruption is planted. `source`: statements, `{t}` is the table; `lake`: what someone else does there; `wrong`: by key, as a comparison
    prints it, what it is to say; `group`: the number of the `GROUPS` with the columns that are wrong (None: rows are missing or too many).
    `quiet`: nothing else writes to the table, since the corruption would take that with it, or would be noticed too soon."""

    slug: str
    source: Sql = ()
    lake: Callable[[str], object] | None = None
    wrong: Mapping[str, str] | None = None
    group: int | None = None
    quiet: bool = False
    mode: str = "upsert"
    ledger: str = ""
    """The line of the ledger in which it shows, if not the table's."""

    @property
    def name(self) -> str:
        return f"t_{self.slug}"

    @property
    def table(self) -> str:
        return f"{SCHEMA}.{self.name}"


DIFFERENT: Mapping[str, str] = {str(MARKED): "different"}
INSERT = f"INSERT INTO {{t}} VALUES ({NEW}, 1, 2, 'Größe', 'a new row', 1.25, '2026-02-03 04:05:06')"
DELETE = f"DELETE FROM {{t}} WHERE id = {OLD}"
UPDATE = f"UPDATE {{t}} SET a = 1000, b = 2000, name = 'Ärger', note = 'changed, and rather long', price = 77.77, at = '2026-03-04 05:06:07' WHERE id = {MARKED}"


def _open(folder: str) -> deltalake.DeltaTable:
    return deltalake.DeltaTable(folder)


def _delete(folder: str) -> object:
    return _open(folder).delete("id = 7")


def _append(folder: str, copies: int) -> object:
    rows = pa.table(_open(folder).scan(predicate="id = 7"))
    for _ in range(copies):
        deltalake.write_deltalake(_open(folder), rows, mode="append")
    return None


def _swap(folder: str) -> object:
    case = "CASE WHEN id = 7 THEN 'note 8' ELSE 'note 7' END"
    return _open(folder).update(updates={"note": case}, predicate="id IN (7, 8)")


def _rogue(folder: str) -> object:
    return _open(folder).update(updates={"note": "'someone else'"}, predicate="id = 7")


PLANTS = (
    Plant("insert_capture", (INSERT,), wrong={str(NEW): "missing in the lake"}),
    Plant("insert_merge", (INSERT,), wrong={str(NEW): "missing in the lake"}),
    Plant("insert_lake", lake=_delete, wrong={"7": "missing in the lake"}),
    Plant("update_capture", (f"UPDATE {{t}} SET note = 'changed' WHERE id = {MARKED}",), wrong=DIFFERENT, group=0),
    Plant("update_merge", (f"UPDATE {{t}} SET note = 'changed' WHERE id = {MARKED}",), wrong=DIFFERENT, group=0),
    Plant("delete_capture", (DELETE,), wrong={str(OLD): "extra in the lake"}),
    Plant("delete_merge", (DELETE,), wrong={str(OLD): "extra in the lake"}),
    Plant("duplicated", lake=lambda f: _append(f, 1), wrong={"7": "2 times in the lake"}, quiet=True),
    Plant("tripled", lake=lambda f: _append(f, 2), wrong={"7": "3 times in the lake"}, quiet=True),
    Plant("swapped_rows", lake=_swap, wrong={"7": "different", "8": "different"}, group=0),
    Plant(
        "stale",
        (
            "BEGIN",
            f"UPDATE {{t}} SET note = 'first' WHERE id = {MARKED}",
            f"UPDATE {{t}} SET note = 'last' WHERE id = {MARKED}",
            "COMMIT",
        ),
        wrong=DIFFERENT,
        group=0,
    ),
    Plant("swapped_columns", (UPDATE,), wrong=DIFFERENT, group=0),
    Plant("charset", (UPDATE,), wrong=DIFFERENT, group=1),
    Plant("charset_everywhere", (UPDATE,), wrong=DIFFERENT, group=1),
    Plant("time_zone", (UPDATE,), wrong=DIFFERENT, group=1),
    Plant("truncated", (UPDATE,), wrong=DIFFERENT, group=0),
    Plant("rounded", (UPDATE,), wrong=DIFFERENT, group=1),
    Plant("rogue", lake=_rogue, wrong={"7": "different"}, group=0),
    Plant("position", (UPDATE, INSERT, DELETE), wrong={**DIFFERENT, str(NEW): "missing in the lake", str(OLD): "extra in the lake"}, quiet=True, ledger="(source)"),
    Plant("skipped", (UPDATE,), wrong=DIFFERENT, quiet=True),
    Plant("twice", (UPDATE,), wrong={}, quiet=True),
    Plant("twice_append", (UPDATE,), wrong={}, quiet=True, mode="append"),
    Plant("cascade", (f"DELETE FROM {SCHEMA}.parents WHERE id = {MARKED}",), wrong={str(MARKED): "extra in the lake"}),
)  # fmt: skip
BY_SLUG = {plant.slug: plant for plant in PLANTS}
LATE = ("position",)
"""Planted when all others are: capture has to start again for it."""
assert [p.slug for p in PLANTS] == [c.slug for c in CORRUPTIONS]


def server_of(flavor: str) -> SqlServer:
    """One whose foreign keys cascade without a word in its binary log: MySQL did before 9.6, and does when it is asked to; MariaDB does."""
    return MySQLServer(options=("--innodb-native-foreign-keys=ON",)) if flavor == "mysql" else MariaDBServer()


def create(server: SqlServer) -> None:
    """A table for each corruption, with rows 1 to `ROWS`."""
    values = ", ".join(
        f"({i}, {i}, {-i}, 'Name {i} ä', 'note {i}', {i}.37, '2026-01-01 00:00:00.{i:03}')" for i in range(1, ROWS + 1)
    )
    with server.root() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {SCHEMA}")
        cursor.execute(f"CREATE DATABASE {SCHEMA} CHARACTER SET utf8mb4")
        cursor.execute(f"USE {SCHEMA}")
        cursor.execute("SET time_zone = '+00:00'")
        cursor.execute("CREATE TABLE parents (id INT PRIMARY KEY)")
        cursor.execute(f"INSERT INTO parents VALUES {', '.join(f'({i})' for i in range(1, ROWS + 1))}")
        for plant in PLANTS:
            more = ", FOREIGN KEY (id) REFERENCES parents (id) ON DELETE CASCADE" if plant.slug == "cascade" else ""
            cursor.execute(f"CREATE TABLE {plant.name} ({COLUMNS}{more})")
            cursor.execute(f"INSERT INTO {plant.name} VALUES {values}")


class Load(threading.Thread):
    """Writes to the tables that are not quiet, to rows that nothing is planted in."""

    def __init__(self, server: SqlServer) -> None:
        super().__init__(name="load", daemon=True)
        self._server = server
        self._ended = threading.Event()
        self.transactions = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        tables = [plant.name for plant in PLANTS if not plant.quiet]
        try:
            with self._server.root(SCHEMA) as connection, connection.cursor() as cursor:
                while not self._ended.wait(0.05):
                    step, table = self.transactions, tables[self.transactions % len(tables)]
                    n = BUSY_FROM + step % (ROWS - BUSY_FROM)
                    cursor.execute(f"UPDATE {table} SET a = {step}, note = 'load {step}', at = NOW(6) WHERE id = {n}")
                    if step % 7 == 0 and table != "t_cascade":
                        cursor.execute(f"REPLACE INTO {table} VALUES ({n}, {step}, 0, 'é', 'again', 1.5, NOW(6))")
                    self.transactions += 1
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """No more, and raise what it raised."""
        self._ended.set()
        self.join()
        if self.error is not None:
            raise self.error


class Planted:
    """A pipeline with all corruptions in it, and a daemon that goes on."""

    def __init__(self, server: SqlServer, folder: Path) -> None:
        create(server)
        tables: list[Any] = [p.table if p.mode == "upsert" else {"name": p.table, "mode": p.mode} for p in PLANTS]
        self.server, self.rig = server, Rig(folder, server, (), settings={"tables": tables})
        self.rig.extra = {
            mutated.ENVIRONMENT: orjson.dumps({p.table: p.slug for p in PLANTS if p.slug not in LATE}).decode(),
            mutated.ONCE: str(folder / "once"),
        }
        self.load = Load(server)
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The daemon, with what is planted in it."""
        with (self.rig.folder / "daemon.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.faults.mutated", "run"]
            self.daemon = subprocess.Popen(command, env=self.rig.environment(), cwd=ROOT, stdout=log, stderr=log)
        self.rig.processes.append(self.daemon)

    def plant(self) -> None:
        """All of it."""
        assert self.rig.catch_up().returncode == 0
        self.start()
        self.load.start()
        for plant in PLANTS:
            if plant.slug not in LATE:
                self._source(plant)
        self.follow()
        for plant in PLANTS:
            if plant.lake is not None:
                _again(plant.lake, str(self.rig.lake / SCHEMA / plant.name))
        self._resume_wrong()
        for plant in PLANTS:
            if plant.slug not in ("duplicated", "tripled"):
                self.pulse(plant)
        self.follow()

    def _resume_wrong(self) -> None:
        """Transactions that capture does not read when it starts again."""
        self.load.end()
        self.follow()
        assert self.daemon is not None
        assert self.rig.stop(self.daemon) == 0, self.rig.last_words()
        for slug in LATE:
            self._source(BY_SLUG[slug])
        self.rig.extra[mutated.ENVIRONMENT] = orjson.dumps({p.table: p.slug for p in PLANTS}).decode()
        self.start()
        self.rig.wait((self.rig.folder / "once" / "position").exists, "capture goes on behind them")
        self.load = Load(self.server)
        self.load.start()

    def pulse(self, plant: Plant) -> None:
        """One more change, behind what is planted."""
        self.server.execute(f"UPDATE {plant.table} SET a = a + 1 WHERE id = {PULSE}")

    def follow(self) -> None:
        """Until the lake has what the source has now."""
        end = self.rig.lakesync("status", "--json")
        assert end.returncode == 0, end.stderr
        newest = _positions(self.server)
        self.rig.wait(lambda: _is_past(self.rig, newest), "the lake follows")

    def close(self) -> None:
        """End it."""
        try:
            if self.load.ident is not None:
                self.load.end()
        finally:
            self.rig.close()

    def _source(self, plant: Plant) -> None:
        with self.server.root(SCHEMA) as connection, connection.cursor() as cursor:
            cursor.execute("SET time_zone = '+00:00'")
            for statement in plant.source:
                cursor.execute(statement.format(t=plant.table))


def _again(change: Callable[[str], object], folder: str) -> None:
    """A commit of someone else's: the pipeline's own may come between."""
    for attempt in range(20):
        try:
            change(folder)
        except Exception:
            if attempt == 19:
                raise
            time.sleep(0.05)
        else:
            return


def _positions(server: SqlServer) -> tuple[str, int]:
    row = server.execute("SHOW MASTER STATUS" if isinstance(server, MariaDBServer) else "SHOW BINARY LOG STATUS")[0]
    return str(row[0]), int(row[1])


def _is_past(rig: Rig, end: tuple[str, int]) -> bool:
    from cdc.lake import manifest

    found = manifest.read(rig.lake, rig.folder.name[:40])
    return found is not None and (found.applied.position.end.file, found.applied.position.end.offset) >= end
