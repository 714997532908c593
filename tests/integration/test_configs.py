"""What `docker-compose.yml` feeds its MySQL works on a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pymysql

from cdc.config import load
from dev.mysql import MySQLServer

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_schema_and_its_user(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    server.mysql_cli(stdin=(ROOT / "configs/compose.sql").read_text())
    source = load(ROOT / "configs/compose.yaml").source
    connection = pymysql.connect(
        host="127.0.0.1", port=server.port, user=source.user, password="follow", ssl_ca=str(server.ca)
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM shop.orders")
        assert cursor.fetchone() == (3,)
        cursor.execute("SHOW BINARY LOG STATUS")
        assert cursor.fetchone()
