"""A workload that changes the very rows that are being read again, a record of it that lakesync has no part in, and the oracle.

Triggers write every change of the table into a history table, in the same transaction, under a tag that is the transaction's GTID: each
connection commits under GTIDs of its own, chosen by itself. A key's changes are serialised by its row lock, so the history's own
order is theirs. What the table held at any position is then known without a binary log: of each key the last change whose tag
the position contains. Changes made past the binary log (`sql_log_bin = 0`) are in the history too, under `DRIFT`; they are what windows
have to find.

The lake is read by delta-rs, version by version.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deltalake
import orjson
import pyarrow as pa
import pymysql
from pymysql.constants import ER

from cdc.names import TableName
from dev.mariadb import MariaDBServer
from dev.sqlserver import SqlServer
from tests.faults.keykinds import Kind

DRIFT = "drift"
SCHEMA = "w"
TABLE = TableName(SCHEMA, "t")
_HARMLESS = frozenset({ER.DUP_ENTRY, 1586})
_AGAIN = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT})
Rows = dict[str, str]
"""Key, as the server prints its bytes, and value."""
Change = tuple[int, str, str | None]
"""Number in the history, tag, value after it (None: gone)."""


def create(server: SqlServer, kind: Kind) -> None:
    """The table, its history, and the triggers; half of the keys are there."""
    new, old = (kind.text.format(f"{side}.") for side in ("NEW", "OLD"))
    value = "CONCAT(NEW.v, '/', NEW.w)"
    log = f"INSERT INTO h (tag, k, v) VALUES (@tag, {new}, {value})"
    gone = f"INSERT INTO h (tag, k, v) VALUES (@tag, {old}, NULL)"
    with server.root() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {SCHEMA}")
        cursor.execute(f"CREATE DATABASE {SCHEMA} CHARACTER SET utf8mb4")
        cursor.execute(f"USE {SCHEMA}")
        # What does not compare by collation is last: an UPDATE of the key alone need not say so.
        cursor.execute(
            f"CREATE TABLE t ({kind.columns}, v VARCHAR(60) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, w INT NOT NULL,"
            f" PRIMARY KEY ({', '.join(kind.key)}))"
        )
        cursor.execute(
            "CREATE TABLE h (seq BIGINT AUTO_INCREMENT PRIMARY KEY, tag VARCHAR(80) NOT NULL,"
            " k VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, v VARCHAR(80) CHARACTER SET utf8mb4)"
        )
        cursor.execute(f"CREATE TRIGGER ti AFTER INSERT ON t FOR EACH ROW {log}")
        cursor.execute(f"CREATE TRIGGER td AFTER DELETE ON t FOR EACH ROW {gone}")
        moved = f"IF CAST({old} AS BINARY) <> CAST({new} AS BINARY) THEN {gone}; END IF"
        cursor.execute(f"CREATE TRIGGER tu AFTER UPDATE ON t FOR EACH ROW BEGIN {moved}; {log}; END")
        cursor.execute("SET @tag = %s", (DRIFT,))  # there before everything
        for key in kind.keys[::2]:
            cursor.execute(f"INSERT IGNORE INTO t VALUES ({', '.join(key)}, 'first', 0)")


class Worker(threading.Thread):
    """One connection that changes rows, each transaction under a GTID that it chose."""

    def __init__(self, server: SqlServer, kind: Kind, number: int, seed: int, pause_s: float) -> None:
        super().__init__(name=f"worker-{number}", daemon=True)
        self._server, self._kind, self._dice, self._pause_s = server, kind, random.Random(seed), pause_s
        self._number, self._next = number, 1
        self._uuid = f"{number:08x}-0000-4000-8000-{random.Random(seed).randrange(1 << 48):012x}"
        self.gate = threading.Lock()
        """Held during a transaction."""
        self.ended = threading.Event()
        self.transactions = 0
        self.error: BaseException | None = None
        self._stamp = 0

    def run(self) -> None:
        try:
            with self._server.root(SCHEMA) as connection:
                with connection.cursor() as cursor:
                    cursor.execute("SET SESSION innodb_lock_wait_timeout = 3, transaction_isolation = 'READ-COMMITTED'"
                                   if not self._mariadb else "SET SESSION innodb_lock_wait_timeout = 3")  # fmt: skip
                while not self.ended.is_set():
                    with self.gate, connection.cursor() as cursor:
                        self._transaction(cursor)
                    time.sleep(self._dice.random() * 2 * self._pause_s)
        except BaseException as error:
            self.error = error

    @property
    def _mariadb(self) -> bool:
        return isinstance(self._server, MariaDBServer)

    def _transaction(self, cursor: Any) -> None:
        if self._mariadb:
            tag = f"{100 + self._number}-{self._server.server_id}-{self._next}"
            cursor.execute(f"SET SESSION gtid_domain_id = {100 + self._number}")
            cursor.execute(f"SET SESSION gtid_seq_no = {self._next}")
        else:
            tag = f"{self._uuid}:{self._next}"
            cursor.execute("SET SESSION gtid_next = %s", (tag,))
        cursor.execute("SET @tag = %s", (tag,))
        try:
            cursor.execute("BEGIN")
            for _ in range(self._dice.choice((1, 1, 1, 2, 3, 6))):
                for statement in statements(self._kind, self._dice, self._value(tag)):
                    harmlessly(cursor, statement)
            if self._dice.random() < 0.05:
                cursor.execute("ROLLBACK")
                return
            cursor.execute("COMMIT")
        except pymysql.err.OperationalError as error:
            if error.args[0] not in _AGAIN:
                raise
            cursor.execute("ROLLBACK")
            return
        self._next += 1
        self.transactions += 1

    def _value(self, tag: str) -> str:
        self._stamp += 1
        return f"'{self._number}.{self._stamp}'"


def harmlessly(cursor: Any, statement: str) -> None:
    """Run it; a key that is there already is none of our business."""
    try:
        cursor.execute(statement)
    except pymysql.err.IntegrityError as error:
        if error.args[0] not in _HARMLESS:
            raise


def statements(kind: Kind, dice: random.Random, value: str) -> list[str]:
    """One change, of one or more statements."""
    key, other = dice.sample(kind.keys, 2)
    at = kind.condition(key)
    new = f"({', '.join(key)}, {value}, {dice.randrange(100)})"
    match dice.randrange(12):
        case 0 | 1 | 2:
            return [f"UPDATE t SET v = {value} WHERE {at}"]
        case 3 | 4:
            return [f"INSERT INTO t VALUES {new}"]
        case 5:
            return [f"INSERT INTO t VALUES {new} ON DUPLICATE KEY UPDATE v = {value}"]
        case 6:
            return [f"REPLACE INTO t VALUES {new}"]
        case 7:
            return [f"DELETE FROM t WHERE {at}"]
        case 8:
            return [f"UPDATE t SET {kind.assigned(other)} WHERE {at}"]
        case 9:
            there, spare = kind.condition(other), kind.condition(kind.spare)
            swap = ((kind.spare, at), (key, there), (other, spare))
            return [f"UPDATE t SET v = {value}, {kind.assigned(to)} WHERE {where}" for to, where in swap] + [
                f"DELETE FROM t WHERE {spare}"
            ]
        case 10:
            return [f"DELETE FROM t WHERE {at}", f"INSERT INTO t VALUES {new}"]
        case _:
            return [f"UPDATE t SET w = w + 1, v = {value} WHERE w % 5 = {dice.randrange(5)}"]


class Workload:
    """Several connections that change the same rows."""

    def __init__(
        self, server: SqlServer, kind: Kind, seed: int, *, connections: int = 3, pause_s: float = 0.01
    ) -> None:
        self._server, self._kind, self._dice = server, kind, random.Random(seed)
        self._workers = [
            Worker(server, kind, n + 1, self._dice.randrange(1 << 32), pause_s) for n in range(connections)
        ]

    def __enter__(self) -> Workload:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.ended.set()
        for worker in self._workers:
            worker.join()
        self.check()

    @property
    def transactions(self) -> int:
        """So many were committed."""
        return sum(worker.transactions for worker in self._workers)

    def check(self) -> None:
        """Raise what a connection raised."""
        for worker in self._workers:
            if worker.error is not None:
                raise worker.error

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No transaction is open, none begins."""
        self.check()
        with ExitStack() as held:
            for worker in self._workers:
                held.enter_context(worker.gate)
            yield

    def drift(self, changes: int) -> None:
        """Change rows past the binary log: to the lake they are stale, missing, or too many. While it is paused, and capture has everything."""
        with self._server.root(SCHEMA) as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_log_bin = 0")
            cursor.execute("SET @tag = %s", (DRIFT,))
            for n in range(changes):
                for statement in statements(self._kind, self._dice, f"'drift {n}'"):
                    harmlessly(cursor, statement)


# -- what there was -------------------------------------------------------------------------------------------------------


def executed(gtids: str) -> Callable[[str], bool]:
    """Whether a transaction is in a position's set; `gtids` as MySQL or MariaDB write it."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for part in filter(None, gtids.replace("\n", "").split(",")):
        if ":" not in part:
            sid, _, last = part.rpartition("-")
            ranges[sid] = [(1, int(last))]
            continue
        sid, *intervals = part.strip().split(":")
        ranges[sid.lower()] = [(int(a), int(b or a)) for a, _, b in (i.partition("-") for i in intervals)]

    def contains(tag: str) -> bool:
        if tag == DRIFT:
            return True
        sid, _, number = tag.rpartition(":" if ":" in tag else "-")
        return any(a <= int(number) <= b for a, b in ranges.get(sid.lower(), ()))

    return contains


class History:
    """What the triggers wrote."""

    def __init__(self, server: SqlServer) -> None:
        self._server = server
        self._seen = 0
        self.changes: dict[str, list[Change]] = {}

    def read(self) -> None:
        """What came since."""
        for seq, tag, key, value in self._server.execute(
            f"SELECT seq, tag, k, v FROM {SCHEMA}.h WHERE seq > %s ORDER BY seq", self._seen
        ):
            self.changes.setdefault(key, []).append((seq, tag, value))
            self._seen = seq

    def at(self, gtids: str) -> Rows:
        """The table at a position."""
        contains = executed(gtids)
        rows: Rows = {}
        for key, changes in self.changes.items():
            last = next((value for _, tag, value in reversed(changes) if contains(tag)), None)
            if last is not None:
                rows[key] = last
        return rows


@dataclass(frozen=True)
class Version:
    """One of the lake's: what it holds, and what it says that it contains."""

    number: int
    epoch: int
    gtids: str
    kind: str
    rows: Rows


class Lake:
    """The table's versions, in order."""

    def __init__(self, root: Path, kind: Kind, table: TableName = TABLE) -> None:
        self._folder, self._kind = root / table.folder, kind
        self._next = 0

    def newer(self) -> Iterator[Version]:
        """Those that were not given yet."""
        while (path := self._folder / "_delta_log" / f"{self._next:020}.json").exists():
            infos = [a["commitInfo"] for a in map(orjson.loads, path.read_bytes().splitlines()) if "commitInfo" in a]
            found = infos[0].get("lakesync") if infos else None
            if found is not None:
                yield Version(
                    self._next, found["epoch"], found["position"]["gtids"], found["kind"], self.rows(self._next)
                )
            self._next += 1

    def rows(self, version: int | None = None) -> Rows:
        """Of one version, or the newest. Raises `AssertionError` if a key is there twice."""
        table = pa.table(deltalake.DeltaTable(str(self._folder), version=version).scan())
        rows: Rows = {}
        for row in table.to_pylist():
            key = self._kind.printed(*(row[c] for c in self._kind.key))
            assert key not in rows, f"version {version} has the key {key} twice"
            rows[key] = f"{row['v']}/{row['w']}"
        return rows


# -- the oracle -----------------------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """Judges every version of the lake: at its position each key is as in the source, or still as it was before (a drift that no window
    has reached yet). Once a window has read a key, it must be right; and what is right stays right."""

    server: SqlServer
    lake: Lake
    history: History = field(init=False)
    problems: list[str] = field(default_factory=list)
    versions: int = 0
    _before: Rows = field(default_factory=dict)
    _epoch: int = -1
    _gtids: str = ""
    _wrong: set[str] = field(default_factory=set)
    """Keys that may be wrong still: there was a drift."""

    def __post_init__(self) -> None:
        self.history = History(self.server)

    def drifted(self) -> None:
        """From now on any key may be wrong, until it is read. The lake is at the end of the source, and judged so far."""
        self.history.read()
        self._wrong = set(self.history.changes)

    def judge(self, closed: Callable[[int], Callable[[str, bool], bool]]) -> None:
        """All new versions. `closed(epoch)` says which keys windows have read that are in the log up to this epoch, those that are in the
        source, or are not."""
        versions = list(self.lake.newer())
        self.history.read()
        for version in versions:
            self._one(version, closed(version.epoch))
            self.versions += 1

    def _one(self, version: Version, read: Callable[[str, bool], bool]) -> None:
        name = f"version {version.number} (epoch {version.epoch}, {version.gtids})"
        if version.epoch < self._epoch or not _covers(version.gtids, self._gtids):
            self.problems.append(f"{name}: behind version {version.number - 1} (epoch {self._epoch}, {self._gtids})")
        at = self.history.at(version.gtids)
        for key in set(at) | set(version.rows) | set(self._before):
            source, lake = at.get(key), version.rows.get(key)
            if source == lake:
                continue
            if version.kind != "merge":
                why = "just after its bootstrap"
            elif read(key, source is not None):
                why = "which a window has read"
            elif key not in self._wrong:
                why = "which was right before"
            elif lake != self._before.get(key):
                why = f"and before that {self._before.get(key)}, so that something else was written"
            else:
                continue
            self.problems.append(f"{name}: of key {key} the source has {source}, the lake {lake}, {why}")
        self._before, self._epoch, self._gtids = version.rows, version.epoch, version.gtids

    def check(self) -> None:
        """Raise `AssertionError` with what was found."""
        assert not self.problems, "\n".join([f"{len(self.problems)} problems", *self.problems[:20]])


def _covers(one: str, other: str) -> bool:
    contains = executed(one)
    for part in filter(None, other.split(",")):
        if ":" not in part:
            if not contains(part):
                return False
            continue
        sid, *intervals = part.split(":")
        if not all(contains(f"{sid}:{n}") for i in intervals for n in i.split("-")):
            return False
    return True
