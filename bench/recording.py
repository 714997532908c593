"""Binary logs to measure with: the changes that are written, and the log as the server sends it, kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CLIENT

from bench.setting import DATABASE, PASSWORD, USER, Setting
from dev import binlog
from dev.server import Server


def asked(port: int, gtids: str) -> Connection[Any]:
    """A connection over TCP, without TLS, whose socket gives everything in the binary log that is not in `gtids`, up to its present end."""
    connection: Connection[Any] = pymysql.connect(
        host="127.0.0.1", port=port, user=USER, password=PASSWORD, autocommit=True, ssl_disabled=True
    )
    binlog.ask(connection, gtids)
    return connection


def record(server: Server, gtids: str, file: Path) -> None:
    """Write everything in the binary log that is not in `gtids` to a file."""
    with asked(server.port, gtids) as connection, file.open("wb") as out:
        out.writelines(binlog.answer(connection))


def insert(setting: Setting, tables: list[str], rows: int, size: int, *options: str) -> None:
    """Rows of `setting.table` into empty tables of the same columns: `size` of them a statement and transaction, each transaction into
    the next table. `options` are session variables, such as `binlog_transaction_compression = ON`."""
    together = max(1, 100 // size)
    source = setting.table.partition(".")[2]
    statements = [
        f"INSERT INTO `{tables[n % len(tables)]}` SELECT * FROM `{source}` "
        f"WHERE id BETWEEN {first} AND {min(first + size - 1, rows)}"
        for n, first in enumerate(range(1, rows + 1, size))
    ]
    connection = setting.server.root(DATABASE, client_flag=CLIENT.MULTI_STATEMENTS)
    with connection, connection.cursor() as cursor:
        for option in options:
            cursor.execute(f"SET SESSION {option}")
        for at in range(0, len(statements), together):
            cursor.execute("; ".join(statements[at : at + together]))
            while cursor.nextset():
                pass


def update(setting: Setting, table: str, rows: int, size: int) -> None:
    """Three columns of rows 1 to `rows`, `size` of them a statement and transaction."""
    with setting.server.root(DATABASE) as connection, connection.cursor() as cursor:
        for first in range(1, rows + 1, size):
            last = min(first + size - 1, rows)
            cursor.execute(
                f"UPDATE `{table}` SET change_no = change_no + 1, amount = amount + 1, name = REVERSE(name) "
                f"WHERE id BETWEEN {first} AND {last}"
            )
