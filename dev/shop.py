"""A shop to try things on: customers, products, orders, order items, payments, and a workload that keeps them busy.

The same seed gives the same rows and, on the same rows, the same transactions.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from pymysql.cursors import Cursor

from dev.mariadb import MariaDBServer
from dev.sqlserver import SqlServer

DATABASE = "shop"
TABLES = ("customers", "products", "orders", "order_items", "payments")
SHARES = {"customers": 0.08, "products": 0.01, "orders": 0.22, "order_items": 0.49, "payments": 0.2}
"""Of all rows; they make one."""

# A load is cut into transactions of this size, so that neither the server nor a reader of its binary log has to hold a
# table in memory.
LOAD_ROWS = 50_000
CHANGES_KEPT = 4096  # orders that the workload may still change or delete

_CREATE = {
    "customers": """
        id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
        email VARCHAR(190) NOT NULL,
        name VARCHAR(120) NOT NULL,
        country CHAR(2) CHARACTER SET ascii NOT NULL,
        level ENUM('bronze', 'silver', 'gold') NOT NULL,
        born DATE,
        score DOUBLE NOT NULL,
        notes TEXT,
        created_at DATETIME(6) NOT NULL,
        updated_at TIMESTAMP(3) NOT NULL""",
    "products": """
        sku VARCHAR(32) NOT NULL PRIMARY KEY,
        title VARCHAR(200) NOT NULL,
        price DECIMAL(12, 2) NOT NULL,
        weight_kg DOUBLE,
        stock INT NOT NULL,
        picture VARBINARY(64),
        added_on DATE NOT NULL""",
    "orders": """
        id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
        customer_id BIGINT UNSIGNED NOT NULL,
        status ENUM('placed', 'paid', 'shipped', 'delivered', 'returned') NOT NULL,
        total DECIMAL(14, 2) NOT NULL,
        note VARCHAR(200),
        placed_at DATETIME(6) NOT NULL,
        updated_at TIMESTAMP(3) NOT NULL""",
    "order_items": """
        order_id BIGINT UNSIGNED NOT NULL,
        line SMALLINT NOT NULL,
        sku VARCHAR(32) NOT NULL,
        quantity MEDIUMINT NOT NULL,
        price DECIMAL(12, 2) NOT NULL,
        PRIMARY KEY (order_id, line)""",
    "payments": """
        id BINARY(16) NOT NULL PRIMARY KEY,
        order_id BIGINT UNSIGNED NOT NULL,
        amount DECIMAL(14, 2) NOT NULL,
        method ENUM('card', 'transfer', 'invoice', 'voucher') NOT NULL,
        reference VARCHAR(64) CHARACTER SET ascii,
        paid_at TIMESTAMP(6) NOT NULL""",
}


def _columns(table: str, count: dict[str, int], seed: int) -> list[str]:
    """One expression a column, which make row `n` (from 1) of a table."""

    def dice(name: str, sides: int) -> str:
        return f"(CRC32(CONCAT({seed}, '{name}', n)) % {sides})"

    def moment(name: str) -> str:
        seconds, micros = dice(name, 50_000_000), dice(f"{name} us", 1_000_000)
        return f"TIMESTAMP'2024-01-01 00:00:00' + INTERVAL {seconds} SECOND + INTERVAL {micros} MICROSECOND"

    def day(first: str, name: str, days: int) -> str:
        return f"DATE'{first}' + INTERVAL {dice(name, days)} DAY"

    def words(name: str) -> str:
        return f"REPEAT(CONCAT(HEX({dice(name, 1 << 30)}), ' '), 1 + {dice(f'{name} n', 5)})"

    def seldom(name: str, of: int, expression: str) -> str:
        return f"IF({dice(name, of)} = 0, {expression}, NULL)"

    def mostly(name: str, of: int, expression: str) -> str:
        return f"IF({dice(name, of)} = 0, NULL, {expression})"

    def sku(number: str) -> str:
        return f"CONCAT('SKU-', LPAD({number}, 7, '0'))"

    first_name = f"ELT(1 + {dice('first', 6)}, 'Zoë', 'Łukasz', 'Ada', '美咲', 'José', 'Max')"
    return {
        "customers": [
            "n",
            "CONCAT('customer', n, '@example.com')",
            f"CONCAT({first_name}, ' ', HEX({dice('last', 1 << 24)}))",
            f"ELT(1 + {dice('country', 4)}, 'DE', 'FR', 'JP', 'PL')",
            f"1 + {dice('level', 3)}",
            mostly("no birthday", 10, day("1940-01-01", "born", 25_000)),
            f"{dice('score', 100_000)} / 997e0",
            seldom("has notes", 3, words("notes")),
            moment("created"),
            moment("updated"),
        ],
        "products": [
            sku("n"),
            f"CONCAT('Product ', {words('title')})",
            f"{dice('price', 99_999)} / 100",
            mostly("no weight", 5, f"{dice('weight', 10_000)} / 313e0"),
            dice("stock", 1000),
            mostly("no picture", 2, "UNHEX(SHA2(n, 256))"),
            day("2020-01-01", "added", 1500),
        ],
        "orders": [
            "n",
            f"1 + {dice('customer', count['customers'])}",
            f"1 + {dice('status', 5)}",
            f"{dice('total', 1_000_000)} / 100",
            seldom("has note", 4, words("note")),
            moment("placed"),
            moment("changed"),
        ],
        "order_items": [
            f"1 + (n - 1) % {count['orders']}",
            f"1 + (n - 1) DIV {count['orders']}",
            sku(f"1 + {dice('product', count['products'])}"),
            f"1 + {dice('quantity', 9)}",
            f"{dice('item price', 99_999)} / 100",
        ],
        "payments": [
            f"UNHEX(LEFT(SHA2(CONCAT({seed}, 'payment', n), 256), 32))",
            f"1 + (n - 1) % {count['orders']}",
            f"{dice('amount', 1_000_000)} / 100",
            f"1 + {dice('method', 4)}",
            mostly("no reference", 3, f"HEX({dice('reference', 1 << 30)})"),
            moment("paid"),
        ],
    }[table]


def create(server: SqlServer, rows: int = 1_000_000, seed: int = 1, database: str = DATABASE) -> dict[str, int]:
    """Create the shop's schema, replacing one of that name, with about `rows` rows in all; rows by table."""
    count = {table: max(1, int(rows * share)) for table, share in SHARES.items()}
    with server.root() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS `{database}`")
        cursor.execute(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4")
        cursor.execute(f"USE `{database}`")
        for table in TABLES:
            cursor.execute(f"CREATE TABLE `{table}` ({_CREATE[table]})")

    def load(tables: tuple[str, ...]) -> None:
        with server.root(database) as connection, connection.cursor() as cursor:
            depth = "max_recursive_iterations" if isinstance(server, MariaDBServer) else "cte_max_recursion_depth"
            cursor.execute(f"SET SESSION {depth} = %s, time_zone = '+00:00'", (LOAD_ROWS,))
            for table in tables:
                select = ", ".join(_columns(table, count, seed))
                for first in range(1, count[table] + 1, LOAD_ROWS):
                    last = min(first + LOAD_ROWS - 1, count[table])
                    numbers = f"SELECT {first} AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}"
                    cursor.execute(
                        f"INSERT INTO `{table}` WITH RECURSIVE numbers AS ({numbers}) SELECT {select} FROM numbers"
                    )

    # Two at a time, for two cores: each half about as long.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(load, (("order_items", "products"), ("orders", "payments", "customers"))))
    server.execute(f"ANALYZE TABLE {', '.join(f'`{database}`.`{table}`' for table in TABLES)}")
    return count


@dataclass
class Work:
    """What a workload did so far: transactions that committed, row changes by kind. A key change is none of the updates."""

    transactions: int = 0
    rolled_back: int = 0
    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    moves: int = 0


_NEWEST = ("SELECT MAX(id) FROM orders", "SELECT MAX(order_id) FROM order_items")
"""Lines may be left of orders that are gone."""


@dataclass
class _Shop:
    """What the workload knows of the tables, so that it need not ask."""

    cursor: Cursor
    dice: random.Random
    seed: int
    work: Work
    customers: int = 0
    products: int = 0
    orders: int = 0
    payments: int = 0
    recent: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Its own orders: id, number of lines, payment."""

    def look(self) -> None:
        for name, sql in (
            ("customers", "SELECT COALESCE(MAX(id), 0) FROM customers"),
            ("products", "SELECT COUNT(*) FROM products WHERE sku LIKE 'SKU-%'"),
            (
                "orders",
                f"SELECT GREATEST({', '.join(f'COALESCE(({newest}), 0)' for newest in _NEWEST)})",
            ),
            ("payments", "SELECT COUNT(*) FROM payments"),
        ):
            self.cursor.execute(sql)
            row = self.cursor.fetchone()
            assert row is not None
            setattr(self, name, int(row[0]))
        # A second run must not draw the payments of the first.
        self.dice.seed(f"{self.seed} {self.customers} {self.orders} {self.payments}")

    def _do(self, kind: str, sql: str, *arguments: object) -> None:
        self.cursor.execute(sql, arguments)
        setattr(self.work, kind, getattr(self.work, kind) + self.cursor.rowcount)

    def _many(self, sql: str, rows: list[tuple[object, ...]]) -> None:
        self.work.inserts += self.cursor.executemany(sql, rows) or 0

    def _moment(self) -> str:
        d = self.dice
        return (
            f"2026-{d.randint(1, 12):02}-{d.randint(1, 28):02} "
            f"{d.randint(0, 23):02}:{d.randint(0, 59):02}:{d.randint(0, 59):02}.{d.randint(0, 999_999):06}"
        )

    def _sku(self) -> str:
        return f"SKU-{self.dice.randint(1, max(1, self.products)):07}"

    # Each of these is one transaction.

    def order(self) -> None:
        """A new order with its lines and payment; the products' stock falls."""
        d = self.dice
        self.orders += 1
        self.payments += 1
        lines = d.randint(1, 5)
        payment = d.randbytes(16)
        items = [
            (self.orders, line, self._sku(), d.randint(1, 9), d.randint(1, 99_999) / 100)
            for line in range(1, lines + 1)
        ]
        total = round(sum(quantity * price for *_, quantity, price in items), 2)
        self._do(
            "inserts",
            "INSERT INTO orders VALUES (%s, %s, 'placed', %s, NULL, %s, %s)",
            self.orders,
            d.randint(1, max(1, self.customers)),
            total,
            self._moment(),
            self._moment(),
        )
        self._many("INSERT INTO order_items VALUES (%s, %s, %s, %s, %s)", list(items))
        self._do(
            "inserts",
            "INSERT INTO payments VALUES (%s, %s, %s, 'card', NULL, %s)",
            payment,
            self.orders,
            total,
            self._moment(),
        )
        self._do("updates", "UPDATE products SET stock = stock - 1 WHERE sku = %s", items[0][2])
        self.recent.append((self.orders, lines, payment))
        if len(self.recent) > CHANGES_KEPT:
            self.recent.pop(0)

    def customer(self) -> None:
        """A new customer, and an old one who moved."""
        self.customers += 1
        d = self.dice
        self._do(
            "inserts",
            "INSERT INTO customers VALUES (%s, %s, %s, %s, 'bronze', %s, %s, %s, %s, %s)",
            self.customers,
            f"customer{self.customers}@example.org",
            d.choice(("Ólafur", "Ana", "Chloé", "Ravi", "王芳")),
            d.choice(("DE", "FR", "IS", "CN")),
            None if d.random() < 0.2 else f"19{d.randint(50, 99)}-06-15",
            d.random() * 100,
            None if d.random() < 0.5 else "joined during the show",
            self._moment(),
            self._moment(),
        )
        self._do(
            "updates",
            "UPDATE customers SET country = %s, score = score * 1.01, updated_at = %s WHERE id = %s",
            d.choice(("DE", "FR", "JP", "PL")),
            self._moment(),
            d.randint(1, self.customers),
        )

    def progress(self) -> None:
        """Some orders, anywhere in the table, are a step further."""
        first = self.dice.randint(1, max(1, self.orders))
        self._do(
            "updates",
            "UPDATE orders SET status = 1 + status %% 5, updated_at = %s WHERE id BETWEEN %s AND %s",
            self._moment(),
            first,
            first + self.dice.randint(0, 20),
        )
        self._do("updates", "UPDATE order_items SET quantity = quantity + 1 WHERE order_id = %s", first)

    def cancel(self) -> None:
        """An order goes, with all that belongs to it."""
        if self.recent and self.dice.random() < 0.5:
            order, _, payment = self.recent.pop(self.dice.randrange(len(self.recent)))
            self._do("deletes", "DELETE FROM payments WHERE id = %s", payment)
        else:
            order = self.dice.randint(1, max(1, self.orders))
        self._do("deletes", "DELETE FROM order_items WHERE order_id = %s", order)
        self._do("deletes", "DELETE FROM orders WHERE id = %s", order)

    def move(self) -> None:
        """Keys change: a product's, a payment's, the lines of an order in turn."""
        d = self.dice
        sku = self._sku()
        renamed = d.choice((f"NEW-{d.getrandbits(40):x}", sku.lower()))  # the second is equal by collation
        self._do("moves", "UPDATE IGNORE products SET sku = %s WHERE sku = %s", renamed, sku)
        if self.recent:
            at = d.randrange(len(self.recent))
            order, lines, payment = self.recent[at]
            other = d.randbytes(16)
            self._do("moves", "UPDATE payments SET id = %s WHERE id = %s", other, payment)
            self._do("moves", "UPDATE order_items SET line = line + 1 WHERE order_id = %s ORDER BY line DESC", order)
            self.recent[at] = (order, lines, other)

    def replace(self) -> None:
        """A line is deleted and written again in the same transaction."""
        order = self.dice.randint(1, max(1, self.orders))
        self._do("deletes", "DELETE FROM order_items WHERE order_id = %s AND line = 1", order)
        self._do(
            "inserts",
            "INSERT INTO order_items VALUES (%s, 1, %s, %s, 9.99)",
            order,
            self._sku(),
            self.dice.randint(1, 9),
        )

    def regret(self) -> None:
        """Changes that are rolled back."""
        self.cursor.execute("DELETE FROM orders WHERE id = %s", (self.dice.randint(1, max(1, self.orders)),))
        self.cursor.execute("UPDATE products SET stock = 0 WHERE sku = %s", (self._sku(),))


_MIX = (("order", 30), ("progress", 30), ("customer", 10), ("cancel", 10), ("move", 8), ("replace", 9), ("regret", 3))


def workload(
    server: SqlServer,
    *,
    seconds: float | None = None,
    transactions: int | None = None,
    stop: threading.Event | None = None,
    rate: float = 100.0,
    seed: int = 1,
    database: str = DATABASE,
    work: Work | None = None,
) -> Work:
    """Work on the shop, one transaction after the other, until the time is over, `transactions` are done or `stop` is set.

    `rate` is in transactions a second (0: as fast as it goes); `work` is filled while it runs. What is done depends on seed and tables
    only, when it is done on the clock. Raises pymysql's errors when the server goes away.
    """
    work = work or Work()
    begin = time.monotonic()
    done = 0
    names, weights = zip(*_MIX, strict=True)
    with server.root(database, autocommit=False) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+00:00'")
        shop = _Shop(cursor, random.Random(), seed, work)
        shop.look()
        connection.commit()
        while (transactions is None or done < transactions) and (seconds is None or time.monotonic() - begin < seconds):
            ahead = done / rate - (time.monotonic() - begin) if rate else 0.0
            if stop is not None and stop.wait(max(0.0, ahead)):
                break
            if stop is None and ahead > 0:
                time.sleep(ahead)
            name = shop.dice.choices(names, weights)[0]
            getattr(shop, name)()
            if name == "regret":
                connection.rollback()
                work.rolled_back += 1
            else:
                connection.commit()
                work.transactions += 1
            done += 1
    return work


@contextmanager
def working(server: SqlServer, *, rate: float = 100.0, seed: int = 1, database: str = DATABASE) -> Iterator[Work]:
    """The workload beside the block, and no longer. Raises what ended it before."""
    stop, work = threading.Event(), Work()
    with ThreadPoolExecutor(1, thread_name_prefix="shop") as pool:
        running = pool.submit(workload, server, stop=stop, rate=rate, seed=seed, database=database, work=work)
        try:
            yield work
        finally:
            stop.set()
        running.result()
