"""Row changes for a binary log: inserts, updates and deletes of rows that are there, in transactions of one size."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CLIENT

from bench.rows import EXPRESSIONS
from bench.setting import DATABASE, Setting

SHARES = {"insert": 200, "update": 50, "delete": 10}
SEED = 7
ONE_BY_ONE = 10
"""Transactions up to this size change one row a statement, as applications do: each row is an event of its own."""


@dataclass
class Backlog:
    """What was written: the server's GTID sets before and after, and row changes by kind."""

    before: str
    after: str = ""
    insert: int = 0
    update: int = 0
    delete: int = 0

    @property
    def changes(self) -> int:
        """Row changes."""
        return self.insert + self.update + self.delete


def write(setting: Setting, table: str, changes: int, size: int) -> Backlog:
    """At least `changes` row changes of the empty table, `size` of them a transaction."""
    dice = random.Random(SEED)
    live: list[int] = []
    newest = 0
    done = Backlog(setting.server.gtid_executed)
    connection: Connection[pymysql.cursors.Cursor] = setting.server.root(DATABASE, client_flag=CLIENT.MULTI_STATEMENTS)
    with connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+00:00'")
        while done.changes < changes:
            kind = dice.choices(list(SHARES), list(SHARES.values()))[0] if len(live) > 2 * size else "insert"
            if kind == "insert":
                ids = list(range(newest + 1, newest + size + 1))
                newest += size
                live += ids
            elif kind == "update":
                ids = dice.sample(live, size)
            else:
                ids = [_taken(live, dice) for _ in range(size)]
            parts = [[n] for n in ids] if size <= ONE_BY_ONE else [ids]
            cursor.execute("; ".join(["BEGIN", *(_sql(table, kind, part) for part in parts), "COMMIT"]))
            rows = 0
            while cursor.nextset():
                rows += cursor.rowcount
            if rows != size:
                raise AssertionError(f"{kind} changed {rows} rows, not {size}")
            setattr(done, kind, getattr(done, kind) + size)
    done.after = setting.server.gtid_executed
    return done


def _taken(live: list[int], dice: random.Random) -> int:
    at = dice.randrange(len(live))
    live[at], live[-1] = live[-1], live[at]
    return live.pop()


def _sql(table: str, kind: str, ids: list[int]) -> str:
    if kind == "insert":
        rows = " UNION ALL ".join(f"SELECT {n} AS n" for n in ids)
        return f"INSERT INTO `{table}` SELECT {', '.join(EXPRESSIONS)} FROM ({rows}) AS numbers"
    where = f"WHERE id IN ({', '.join(map(str, ids))})"
    if kind == "update":
        return f"UPDATE `{table}` SET change_no = change_no + 1, amount = amount + 1, name = REVERSE(name) {where}"
    return f"DELETE FROM `{table}` {where}"
