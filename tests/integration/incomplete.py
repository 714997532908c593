"""Sessions that write as they like: row images with some of the columns, JSON values as differences, at random and under load."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pymysql

from cdc.names import TableName
from dev.mariadb import MariaDBServer
from dev.sqlserver import SqlServer

KEYS = 60
CREATE = {
    "one": """CREATE TABLE {} (id INT PRIMARY KEY, n INT DEFAULT 5, s VARCHAR(40) NOT NULL DEFAULT 'abc', d DECIMAL(20,4), b TEXT, x BLOB,
        z DATETIME NULL, j JSON, k JSON, at TIMESTAMP(6) NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6))""",
    "two": """CREATE TABLE {} (tenant VARCHAR(20) COLLATE utf8mb4_bin, no INT, u INT UNIQUE, v VARCHAR(30), w BIGINT UNSIGNED DEFAULT 7,
        j JSON, PRIMARY KEY (no, tenant))""",
}
COLUMNS = {"one": ["n", "s", "d", "b", "x", "z", "j", "k"], "two": ["v", "w", "j"]}
DOCUMENT = '{"a": [1, 2.50, {"x": null}], "b": "text, of some length so that a difference is shorter", "long key": {"c": true}, "e": 1e-7}'


def create(server: SqlServer, schema: str) -> list[TableName]:
    """The tables, with rows."""
    for name, sql in CREATE.items():
        server.execute(sql.format(f"`{schema}`.`{name}`"))
    work = Work(server, schema, 0)
    with server.root(schema) as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = ''")
        for _ in range(80):
            work.attempt(cursor, work.insert(full=True))
    return [TableName(schema, name) for name in CREATE]


class Work:
    """One session's statements."""

    def __init__(self, server: SqlServer, schema: str, seed: int) -> None:
        self.server, self.schema, self.choose = server, schema, random.Random(seed)
        self.mariadb = isinstance(server, MariaDBServer)
        self.statements = 0

    def run(self, stop: threading.Event, pause_s: float = 0.004) -> None:
        """Until told to stop; connections are taken anew, since settings are of sessions."""
        while not stop.is_set():
            self.session(stop, pause_s)

    def session(self, stop: threading.Event, pause_s: float = 0.0, statements: int = 12) -> None:
        """Some statements, in transactions of some of them."""
        choose = self.choose
        images = ["FULL", "MINIMAL", "MINIMAL", "NOBLOB"] + ["FULL_NODUP"] * self.mariadb
        with self.server.root(self.schema) as connection, connection.cursor() as cursor:
            cursor.execute("SET sql_mode = ''")
            cursor.execute(f"SET binlog_row_image = '{choose.choice(images)}'")
            if not self.mariadb:
                cursor.execute(f"SET binlog_row_value_options = '{choose.choice(['', 'PARTIAL_JSON'])}'")
            for _ in range(statements):
                if stop.is_set():
                    return
                several = choose.random() < 0.3
                if several:
                    cursor.execute("BEGIN")
                for _ in range(choose.randrange(1, 5) if several else 1):
                    self.attempt(cursor, self.statement())
                if several:
                    cursor.execute(choose.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]))
                stop.wait(pause_s)

    def attempt(self, cursor: pymysql.cursors.Cursor, sql: str) -> None:
        """A statement, which may meet a key that is there, or another session."""
        try:
            cursor.execute(sql)
            self.statements += 1
        except (pymysql.err.IntegrityError, pymysql.err.OperationalError) as error:
            if error.args[0] not in (1062, 1205, 1213, 1364):
                raise

    def statement(self) -> str:
        choose = self.choose
        kinds = [self.update] * 6 + [self.insert] * 2 + [self.delete, self.move, self.replace, self.upsert]
        kinds += [self.patch] * 4 * (not self.mariadb)
        return choose.choice(kinds)()

    # -- kinds -------------------------------------------------------------------------------------------------------

    def insert(self, verb: str = "INSERT", *, full: bool = False) -> str:
        choose, (table, key) = self.choose, self.place()
        columns = [c for c in COLUMNS[table] if full or choose.random() < 0.5]
        names = {**key, **{c: self.value(c) for c in columns}}
        if table == "two" and choose.random() < 0.5:
            names["u"] = str(choose.randrange(100))
        return f"{verb} INTO {table} ({', '.join(names)}) VALUES ({', '.join(names.values())})"

    def replace(self) -> str:
        return self.insert("REPLACE")

    def upsert(self) -> str:
        sql = self.insert()
        table = sql.split()[2]
        column = self.choose.choice(COLUMNS[table])
        return f"{sql} ON DUPLICATE KEY UPDATE {column} = {self.value(column)}"

    def update(self) -> str:
        table, key = self.place()
        columns = self.choose.sample(COLUMNS[table], self.choose.randrange(1, 3))
        where = self.where(key) if self.choose.random() < 0.9 else f"{next(iter(key))} % 7 = 3"
        if "tenant" in key and where != self.where(key):
            where = f"no % 7 = {self.choose.randrange(7)}"
        return f"UPDATE {table} SET {', '.join(f'{c} = {self.value(c)}' for c in columns)} WHERE {where}"

    def patch(self) -> str:
        """A JSON column by the functions of which differences can be logged."""
        choose, (table, key) = self.choose, self.place()
        column = choose.choice([c for c in COLUMNS[table] if c in "jk"])
        paths = ["$.a[0]", "$.a[2].x", "$.b", '$."long key".c', '$."long key".d', "$.z", "$.a[9]", "$.ab", "$.e"]
        made = column
        for _ in range(choose.randrange(1, 4)):
            path = choose.choice(paths)
            function = choose.choice(["JSON_SET", "JSON_SET", "JSON_REPLACE", "JSON_REMOVE"])
            value = choose.choice(["1", "'two'", "CAST('[1.5e0, {}]' AS JSON)", "TRUE", "1.10", "NULL"])
            made = f"{function}({made}, '{path}'{'' if function == 'JSON_REMOVE' else ', ' + value})"
        more = f", v = {self.value('v')}" if table == "two" and choose.random() < 0.3 else ""
        return f"UPDATE {table} SET {column} = {made}{more} WHERE {self.where(key)}"

    def move(self) -> str:
        (table, key), choose = self.place(), self.choose
        to = self.key(table)
        if table == "two" and choose.random() < 0.5:
            del to["tenant"]
        more = ""
        if choose.random() < 0.5:
            column = choose.choice(COLUMNS[table])
            more = f", {column} = {self.value(column)}"
        return f"UPDATE {table} SET {', '.join(f'{c} = {v}' for c, v in to.items())}{more} WHERE {self.where(key)}"

    def delete(self) -> str:
        table, key = self.place()
        return f"DELETE FROM {table} WHERE {self.where(key)}"

    # -- values ------------------------------------------------------------------------------------------------------

    def place(self) -> tuple[str, dict[str, str]]:
        table = self.choose.choice(["one", "one", "two"])
        return table, self.key(table)

    def key(self, table: str) -> dict[str, str]:
        number = self.choose.randrange(KEYS)
        if table == "one":
            return {"id": str(number)}
        return {"tenant": f"'{self.choose.choice(['A', 'a', 'ä b'])}'", "no": str(number // 3)}

    @staticmethod
    def where(key: dict[str, str]) -> str:
        return " AND ".join(f"{c} = {v}" for c, v in key.items())

    def value(self, column: str) -> str:
        choose = self.choose
        number = choose.randrange(1000)
        if choose.random() < 0.1 and column != "s":
            return "NULL"
        match column:
            case "d":
                return f"{number}.25"
            case "b" | "x":
                return f"REPEAT('{number} ', {choose.choice([1, 300])})"
            case "z":
                return choose.choice(["'0000-00-00'", "'2024-02-29 01:02:03'"])
            case "j" | "k":
                return choose.choice([f"'{DOCUMENT}'", f"'{DOCUMENT}'", f"'[{number}]'", "'null'"])
            case "s" | "v":
                return f"'text {number}'"
            case _:
                return str(number)


@contextmanager
def working(
    server: SqlServer, schema: str, sessions: int = 2, seed: int = 1, pause_s: float = 0.004
) -> Iterator[list[Work]]:
    """So many sessions at work, until the block ends. Raises what ended one."""
    stop, errors = threading.Event(), list[BaseException]()
    work = [Work(server, schema, seed * 100 + n) for n in range(sessions)]

    def body(one: Work) -> None:
        try:
            one.run(stop, pause_s)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield work
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    if errors:
        raise errors[0]
