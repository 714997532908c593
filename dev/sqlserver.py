"""What throwaway MySQL and MariaDB servers have in common: how they are talked to."""

from __future__ import annotations

import shutil
import socket
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from dev.server import Server


class SqlServer(Server):
    """A server that speaks MySQL's protocol, on 127.0.0.1 and a unix socket. root has no password.

    `template` gives a folder of which `data` is copied. `replica_of`: `follow` that running server from the first start on.
    """

    def __init__(
        self,
        folder: Path | None,
        template: Callable[[], Path],
        server_id: int | None,
        options: Sequence[str],
        replica_of: Self | None,
    ) -> None:
        super().__init__(folder)
        self._template = template
        self.source = replica_of
        self.server_id: int = server_id or (1 if replica_of is None else replica_of.server_id + 1)
        self.options = tuple(options)
        if replica_of is not None and replica_of.server_id == self.server_id:
            raise ValueError(f"replica and source both have server_id {self.server_id}")
        self.datadir = self.folder / "data"
        self.socket = self.folder / "mysql.sock"
        self.ca = self.datadir / "ca.pem"

    @property
    @abstractmethod
    def executed(self) -> str:
        """What the server has executed, as GTIDs on one line."""

    @abstractmethod
    def follow(self, source: Self) -> None:
        """Replicate from `source` from now on."""

    def _prepare(self) -> None:
        if not self.datadir.exists():
            part = self.folder / "data.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self._template() / "data", part)
            part.rename(self.datadir)

    def _after_first_start(self) -> None:
        if self.source is not None and not self.execute("SHOW REPLICA STATUS"):
            self.follow(self.source)

    def _answers(self) -> bool:
        # Knock first: PyMySQL leaves its socket open when nobody listens on a unix socket.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)) != 0:
                return False
        try:
            self.root().close()
        except (pymysql.err.OperationalError, pymysql.err.InternalError):
            return False
        return True

    def url(self, user: str = "root", password: str = "") -> str:
        """`mysql://user:password@127.0.0.1:port`, without the colon where there is no password."""
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"mysql://{login}@127.0.0.1:{self.port}"

    def root(self, database: str | None = None, **options: Any) -> Connection[Cursor]:
        """A new connection as root, with autocommit, for the caller to close. `options` are PyMySQL's."""
        arguments: dict[str, Any] = {
            "user": "root",
            "unix_socket": str(self.socket),
            "database": database,
            "autocommit": True,
            "charset": "utf8mb4",
            **options,
        }
        connection: Connection[Cursor] = pymysql.connect(**arguments)
        return connection

    def execute(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Run one statement as root on a connection of its own; its rows."""
        with self.root() as connection, connection.cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return list(cursor.fetchall())

    def status(self, statement: str) -> Mapping[str, Any]:
        """The only row of a SHOW statement by column name, such as `SHOW BINARY LOG STATUS`; empty without a row."""
        with self.root(cursorclass=pymysql.cursors.DictCursor) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row: Any = cursor.fetchone()
            return row or {}

    def add_user(self, user: str, password: str, *grants: str) -> None:
        """Create `user`@'%'. Each grant is what stands between GRANT and TO: `"SELECT ON shop.*"`."""
        with self.root() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (user, password))
            for grant in grants:
                cursor.execute(f"GRANT {grant.replace('%', '%%')} TO %s@'%%'", (user,))
