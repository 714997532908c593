"""What a MySQL server is, and how far it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pymysql.connections import Connection
from pymysql.cursors import Cursor

from cdc.errors import SourceError
from cdc.position import BinlogEnd, GtidSet, Position
from cdc.source.connection import place, release, translated, version_of

_SLICE_S = 20.0
"""A wait is asked for in pieces, each well below the limit for an answer."""
_SIDS_AT_ONCE = 1000
"""A statement names at most so many sids: about 60 kB."""


@dataclass(frozen=True)
class ServerIdentity:
    """`uuid` names the server in GTIDs; it changes when the server is set up anew. `server_id` is what replication tells servers
    apart by."""

    uuid: str
    version: str
    server_id: int
    is_mariadb: bool = False


class Server:
    """Questions to one server, each a statement on the connection given. Raises as `connection.translate` does."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def _query(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        with translated(self._connection), self._connection.cursor(Cursor) as cursor:
            cursor.execute(sql, arguments or None)
            return list(cursor.fetchall())

    def identity(self) -> ServerIdentity:
        """Who answers."""
        ((uuid, version, server_id),) = self._query("SELECT @@global.server_uuid, @@global.version, @@global.server_id")
        return ServerIdentity(str(uuid), str(version), int(server_id), "mariadb" in str(version).lower())

    def settings(self) -> dict[str, str]:
        """All global variables, names in lower case."""
        return {str(name).lower(): str(value) for name, value in self._query("SHOW GLOBAL VARIABLES")}

    def executed(self) -> GtidSet:
        """What is committed and visible, at least."""
        ((text,),) = self._query("SELECT @@global.gtid_executed")
        return GtidSet.parse(str(text))

    def purged(self) -> GtidSet:
        """What the binary log does not hold any more."""
        ((text,),) = self._query("SELECT @@global.gtid_purged")
        return GtidSet.parse(str(text))

    def _binlog_status(self) -> tuple[Any, ...]:
        new = release(version_of(self._connection)) >= (8, 2)
        rows = self._query("SHOW BINARY LOG STATUS" if new else "SHOW MASTER STATUS")
        if not rows:
            raise SourceError(
                "the server writes no binary log", where=place(self._connection), hint="start the server with --log-bin"
            )
        return rows[0]

    def binlog_end(self) -> BinlogEnd:
        """The end of the binary log: everything visible before this call is before it. Needs REPLICATION CLIENT."""
        file, offset, *_ = self._binlog_status()
        return BinlogEnd(str(file), int(offset))

    def binlog_filters(self) -> str:
        """The schemas that alone are logged, and those that are not, as the server was told; mostly empty."""
        _, _, only, never, _ = self._binlog_status()
        return ", ".join(f"{word} {schemas}" for word, schemas in (("only", only), ("not", never)) if schemas)

    def position(self) -> Position:
        """Where a new capture may begin: what is executed. `end` is not before it, and may be behind transactions that are in the
        binary log and not yet executed. Needs REPLICATION CLIENT."""
        file, offset, _, _, gtids = self._binlog_status()
        return Position(GtidSet.parse(str(gtids)), self.identity().uuid, BinlogEnd(str(file), int(offset)))

    def wait_executed(self, gtids: GtidSet, timeout_s: float) -> bool:
        """Wait until the server has executed all of `gtids`; whether it has in time. Sets may be of any size."""
        deadline = time.monotonic() + timeout_s
        while missing := gtids.subtract(self.executed()):
            part = GtidSet(dict(list(missing.sids.items())[:_SIDS_AT_ONCE]))
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # A timeout of 0 would wait for ever.
            seconds = max(0.001, min(left, _SLICE_S))
            self._query("SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)", str(part), round(seconds, 3))
        return True
