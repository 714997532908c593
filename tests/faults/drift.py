"""Tables under a workload, some rows of which nobody touches, and drift that is planted in those: so it is known, key by key, what a comparison
must find, and everything else that it finds is a false alarm.

Every table has a column `n` that names the row; those whose `n` ends in 0 are still.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pymysql
from pymysql.constants import CLIENT, ER

from cdc.names import TableName
from dev.sqlserver import SqlServer

SCHEMA = "drift"
ROWS = 1500
BATCH = 25
"""Transactions that a client sends at once."""
_AGAIN = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT})
_TRIES = 20


@dataclass(frozen=True)
class Kind:
    """A table. `key`, `value`: SQL expressions over a number; `named`: how a comparison prints the key of one; `cells`: the key's columns of it,
    in the lake's types."""

    name: str
    columns: str
    key: str
    insert: Callable[[int, str], str]
    named: Callable[[int], str]
    cells: Callable[[int], dict[str, Any]]

    @property
    def table(self) -> TableName:
        return TableName(SCHEMA, self.name)


KINDS = (
    Kind(
        "accounts",
        "id BIGINT UNSIGNED PRIMARY KEY, n INT NOT NULL, v VARCHAR(60) NOT NULL, balance DECIMAL(18,4), at TIMESTAMP(6) NULL, x DOUBLE, KEY (n)",
        "id",
        lambda n, v: f"({n}, {n}, '{v}', {n}.5, '2026-01-01 00:00:00.5', {n} / 7e0)",
        str,
        lambda n: {"id": n},
    ),
    Kind(
        "entries",
        "a INT, b VARCHAR(20) COLLATE utf8mb4_general_ci, n INT NOT NULL, v VARCHAR(60) NOT NULL, j JSON, PRIMARY KEY (a, b), KEY (n)",
        "a, b",
        lambda n, v: f"({n % 50}, 'Key {n}', {n}, '{v}', '{{\"a\": [{n}, null]}}')",
        lambda n: f"{n % 50},Key {n}",
        lambda n: {"a": n % 50, "b": f"Key {n}"},
    ),
    Kind(
        "blobs",
        "k VARBINARY(8) PRIMARY KEY, n INT NOT NULL, v VARCHAR(60) CHARACTER SET latin1 NOT NULL, raw BLOB, KEY (n)",
        "k",
        lambda n, v: f"(UNHEX('{n:08x}'), {n}, '{v}', REPEAT(CHAR({n % 256}), {n % 40}))",
        lambda n: f"{n:08X}",
        lambda n: {"k": n.to_bytes(4)},
    ),
)


def create(server: SqlServer) -> None:
    """The tables, with rows 1 to `ROWS`."""
    with server.root() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {SCHEMA}")
        cursor.execute(f"CREATE DATABASE {SCHEMA} CHARACTER SET utf8mb4")
        cursor.execute(f"USE {SCHEMA}")
        for kind in KINDS:
            cursor.execute(f"CREATE TABLE {kind.name} ({kind.columns})")
            cursor.execute(
                f"INSERT INTO {kind.name} VALUES {', '.join(kind.insert(n, 'first') for n in range(1, ROWS + 1))}"
            )


# -- the workload ------------------------------------------------------------------------------------------------------


class Client(threading.Thread):
    """A connection that works on its own share of the rows, many transactions at a time; `rate` is transactions a second, 0 as many as go."""

    def __init__(self, server: SqlServer, number: int, clients: int, seed: int, rate: Callable[[], float]) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._server, self._number, self._clients, self._dice, self._rate = (
            server,
            number,
            clients,
            random.Random(seed),
            rate,
        )
        self.transactions = 0
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self.resting = threading.Event()
        """While this is set no transaction begins."""
        self.rests = threading.Event()
        self._stamp = 0

    def run(self) -> None:
        try:
            with (
                self._server.root(SCHEMA, client_flag=CLIENT.MULTI_STATEMENTS) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(
                    "SET SESSION transaction_isolation = 'READ-COMMITTED'"
                    if _is_mysql(cursor)
                    else "SET SESSION tx_isolation = 'READ-COMMITTED'"
                )
                while not self.ended.is_set():
                    if self.resting.is_set():
                        self.rests.set()
                        time.sleep(0.01)
                        continue
                    self.rests.clear()
                    began_s, count = time.monotonic(), self._batch(cursor)
                    self.transactions += count
                    if rate := self._rate():
                        self.ended.wait(max(0.0, count / rate - (time.monotonic() - began_s)))
        except BaseException as error:
            self.error = error
        finally:
            self.rests.set()

    def _batch(self, cursor: Any) -> int:
        made = [self._transaction() for _ in range(BATCH)]
        try:
            cursor.execute("; ".join(made))
            while cursor.nextset():
                pass
        except pymysql.err.OperationalError as error:
            if error.args[0] not in _AGAIN:
                raise
            cursor.execute("ROLLBACK")
            return 0
        return BATCH

    def _transaction(self) -> str:
        statements = [self._statement() for _ in range(self._dice.choice((1, 1, 1, 1, 2, 3)))]
        if len(statements) == 1:
            return statements[0]
        return "; ".join(["BEGIN", *statements, "COMMIT"])

    def _statement(self) -> str:
        kind, n = self._dice.choice(KINDS), self._own()
        self._stamp += 1
        value = f"{self._number}.{self._stamp}"
        match self._dice.randrange(8):
            case 0:
                return f"REPLACE INTO {kind.name} VALUES {kind.insert(n, value)}"
            case 1:
                return f"INSERT INTO {kind.name} VALUES {kind.insert(n, value)} ON DUPLICATE KEY UPDATE v = '{value}'"
            case 2:
                return f"DELETE FROM {kind.name} WHERE n = {n}"
            case 3 if kind.name == "entries":
                return f"UPDATE entries SET b = {self._dice.choice(('UPPER', 'LOWER'))}(b), v = '{value}' WHERE n = {n}"
            case _:
                return f"UPDATE {kind.name} SET v = '{value}' WHERE n = {n}"

    def _own(self) -> int:
        """A row that is this client's, and not still."""
        while True:
            n = self._dice.randrange(1, ROWS + 1)
            if n % 10 and n % self._clients == self._number:
                return n


def _is_mysql(cursor: Any) -> bool:
    cursor.execute("SELECT VERSION()")
    return "mariadb" not in cursor.fetchone()[0].lower()


class Workload:
    """Clients beside the block."""

    def __init__(self, server: SqlServer, seed: int, *, clients: int = 2, rate: float = 200.0) -> None:
        self.rate = rate
        dice = random.Random(seed)
        self.clients = [
            Client(server, n, clients, dice.randrange(1 << 32), lambda: self.rate / clients) for n in range(clients)
        ]

    def __enter__(self) -> Workload:
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.ended.set()
        for client in self.clients:
            client.join()
        self.check()

    @property
    def transactions(self) -> int:
        """So many were committed."""
        return sum(client.transactions for client in self.clients)

    def check(self) -> None:
        """Raise what a client raised."""
        for client in self.clients:
            if client.error is not None:
                raise client.error

    def until(self, transactions: int) -> None:
        """Go on as fast as it goes until there are so many."""
        rate, self.rate = self.rate, 0.0
        while self.transactions < transactions:
            self.check()
            time.sleep(0.05)
        self.rate = rate

    def rest(self) -> None:
        """From now on nothing is written, until `go_on`."""
        for client in self.clients:
            client.resting.set()
        for client in self.clients:
            client.rests.wait()
        self.check()

    def go_on(self) -> None:
        """After `rest`."""
        for client in self.clients:
            client.resting.clear()


# -- the drift ---------------------------------------------------------------------------------------------------------


@dataclass
class Drift:
    """Plants what differs, in still rows, and knows what a comparison must find."""

    server: SqlServer
    lake: Path
    dice: random.Random
    planted: dict[str, int] = field(default_factory=dict)
    """By what was done."""
    expected: dict[str, dict[str, str]] = field(default_factory=dict)
    """By table and key as a comparison prints it: what it is to say of it."""
    _still: dict[str, set[int]] = field(default_factory=dict)
    _next: int = 1_000_000

    def __post_init__(self) -> None:
        self._still = {kind.name: set(range(10, ROWS + 1, 10)) for kind in KINDS}
        self.expected = {str(kind.table): {} for kind in KINDS}

    @property
    def count(self) -> int:
        return sum(self.planted.values())

    def settled(self) -> None:
        """All of it was found and put right."""
        for expected in self.expected.values():
            expected.clear()

    def plant(self) -> str:
        """One difference; what it is. Raises `AssertionError` if the lake cannot be written to."""
        kind = self.dice.choice(KINDS)
        how = self.dice.choice(_HOW)
        expected = self.expected[str(kind.table)]
        free = [n for n in sorted(self._still[kind.name]) if kind.named(n) not in expected]
        n = self.dice.choice(free)
        key, said = how(self, kind, n)
        expected[key] = said
        name = how.__name__.strip("_")
        self.planted[name] = self.planted.get(name, 0) + 1
        return f"{name} {kind.name} {key}"

    def _unlogged(self, statement: str) -> None:
        with self.server.root(SCHEMA) as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_log_bin = 0")
            assert cursor.execute(statement) == 1

    def _table(self, kind: Kind) -> deltalake.DeltaTable:
        return deltalake.DeltaTable(str(self.lake / kind.table.folder))

    def _change(self, kind: Kind, change: Callable[[deltalake.DeltaTable], object]) -> None:
        """A commit of someone else's; the pipeline's own may come between."""
        for attempt in range(_TRIES):
            try:
                change(self._table(kind))
            except Exception as error:  # deltalake has many for a conflict
                if attempt + 1 == _TRIES:
                    raise AssertionError(f"the lake could not be written to: {error}") from error
                time.sleep(0.05)
            else:
                return

    def _row(self, kind: Kind, n: int, cells: dict[str, Any]) -> None:
        def append(table: deltalake.DeltaTable) -> None:
            rows = pa.table(table.scan(predicate=f"n = {n}"))
            row = rows.slice(0, 1).to_pylist()[0] | cells
            deltalake.write_deltalake(table, pa.Table.from_pylist([row], schema=rows.schema), mode="append")

        self._change(kind, append)

    def _new(self) -> int:
        self._next += 10
        return self._next

    def _lake_update(self, kind: Kind, n: int) -> tuple[str, str]:
        self._change(kind, lambda t: t.update(updates={"v": f"'rogue {self.count}'"}, predicate=f"n = {n}"))
        return kind.named(n), "different"

    def _lake_delete(self, kind: Kind, n: int) -> tuple[str, str]:
        self._change(kind, lambda t: t.delete(f"n = {n}"))
        return kind.named(n), "missing in the lake"

    def _lake_insert(self, kind: Kind, n: int) -> tuple[str, str]:
        other = self._new()
        self._row(kind, n, kind.cells(other) | {"n": other})
        return kind.named(other), "extra in the lake"

    def _lake_duplicate(self, kind: Kind, n: int) -> tuple[str, str]:
        self._row(kind, n, {"v": f"rogue {self.count}"})
        return kind.named(n), "2 times in the lake"

    def _source_update(self, kind: Kind, n: int) -> tuple[str, str]:
        self._unlogged(f"UPDATE {kind.name} SET v = 'hidden {self.count}' WHERE n = {n}")
        return kind.named(n), "different"

    def _source_delete(self, kind: Kind, n: int) -> tuple[str, str]:
        self._unlogged(f"DELETE FROM {kind.name} WHERE n = {n}")
        self._still[kind.name].discard(n)
        return kind.named(n), "extra in the lake"

    def _source_insert(self, kind: Kind, n: int) -> tuple[str, str]:
        other = self._new()
        self._unlogged(f"INSERT INTO {kind.name} VALUES {kind.insert(other, 'hidden')}")
        self._still[kind.name].add(other)
        return kind.named(other), "missing in the lake"


_HOW: Sequence[Callable[[Drift, Kind, int], tuple[str, str]]] = (
    Drift._lake_update,
    Drift._lake_update,
    Drift._lake_delete,
    Drift._lake_insert,
    Drift._lake_duplicate,
    Drift._source_update,
    Drift._source_update,
    Drift._source_delete,
    Drift._source_insert,
)
