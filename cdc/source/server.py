"""What a server is, and how far it is."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pymysql.connections import Connection
from pymysql.cursors import Cursor, DictCursor

from cdc import faults
from cdc.errors import SourceError, SourceUnavailableError
from cdc.position import BinlogEnd, Gtid, GtidSet, Position
from cdc.source.connection import is_mariadb, place, release, translated, version_of

_SLICE_S = 20.0
"""A wait is asked for in pieces, each well below the limit for an answer."""
_SIDS_AT_ONCE = 1000
"""A statement names at most so many sids: about 60 kB."""
_POLL_S = 0.05
"""Between looks where the server cannot be asked to wait."""
_OWNER = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
FILE_BEGIN = 4
"""The first event's offset in a binary log file."""


@dataclass(frozen=True)
class ServerIdentity:
    """`uuid` tells servers apart, and with them places in binary logs. MySQL's is the one in GTIDs; it changes when the server is set up
    anew. MariaDB has none: there it is made of `server_id`, which differs within a replication topology, and `server_uid`, a hash of
    the machine's network address and the port (10.6.16 and later; empty before). If it changes without need, bootstraps that run
    begin again; what tells one history from another is the fingerprint, not this. `server_id` is what replication tells servers apart
    by."""

    uuid: str
    version: str
    server_id: int
    is_mariadb: bool = False


@dataclass(frozen=True)
class Channel:
    """One of the servers that a replica replicates from, and how it goes. `source_uuid` is empty where the replica does not know it.
    `behind_s` is None where it is not known: replication stands still, or is not connected. `error` is the number of its last error."""

    source_uuid: str
    source_id: int
    receives: bool
    applies: bool
    behind_s: int | None
    error: int
    filters: Mapping[str, str] = field(default_factory=dict)
    """What it leaves out or takes alone, as the server names it; mostly empty."""
    name: str = ""
    """Of the channel, or of MariaDB's connection; mostly empty."""
    received: str = ""
    """How far the source's binary log was received: `file:offset`, there."""
    applied: str = ""
    """How far it was applied, in the same places. What is between the two lies in the relay log."""
    ordered: bool = True
    """Whether it commits in the order in which its source did."""

    @property
    def runs(self) -> bool:
        """Whether it is connected and applies."""
        return self.receives and self.applies


class Server:
    """Questions to one server, each a statement on the connection given. Raises as `connection.translate` does."""

    def __new__(cls, connection: Connection[Any]) -> Server:
        """A `MariaDBServer` where that is what answers."""
        return super().__new__(MariaDBServer if is_mariadb(connection) else cls)

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def _query(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        with translated(self._connection), self._connection.cursor(Cursor) as cursor:
            cursor.execute(sql, arguments or None)
            return list(cursor.fetchall())

    def identity(self) -> ServerIdentity:
        """Who answers."""
        ((uuid, version, server_id),) = self._query("SELECT @@global.server_uuid, @@global.version, @@global.server_id")
        return ServerIdentity(str(uuid), str(version), int(server_id))

    def settings(self) -> dict[str, str]:
        """All global variables, names in lower case."""
        return {str(name).lower(): str(value) for name, value in self._query("SHOW GLOBAL VARIABLES")}

    def executed(self) -> GtidSet:
        """What is committed and visible, at least."""
        ((text,),) = self._query("SELECT @@global.gtid_executed")
        return GtidSet.parse(str(text))

    def shown(self) -> GtidSet:
        """At least everything that a SELECT may have shown before this call."""
        # What is visible and not counted has an owner still; whose ownership ended between the two questions is counted.
        owned = self._owned()
        return owned.union(self.executed())

    def lacks(self, shown: GtidSet, _by: ServerIdentity) -> GtidSet:
        """What of this, shown by another server, may not be in the binary log. There is what is executed, and what it wrote itself and
        does not show before a semi-synchronous replica has answered."""
        uuid = self.identity().uuid
        # A transaction of its own gets its number as it is written.
        own = {sid: numbers for sid, numbers in self._owned().sids.items() if sid.startswith(uuid)}
        return shown.subtract(GtidSet(own).union(self.executed()))

    def _owned(self) -> GtidSet:
        """Those that threads have in hand: begun, written or visible, and not counted."""
        ((text,),) = self._query("SELECT @@global.gtid_owned")
        # uuid:number#thread#thread:number#threaduuid:…, and nothing between a thread and the next uuid.
        _, *parts = _OWNER.split(str(text))
        found = GtidSet({})
        for uuid, numbers in zip(parts[::2], parts[1::2], strict=True):
            found = found.union(GtidSet.parse(uuid + re.sub(r"#\d+|[\s,]+", "", numbers)))
        return found

    def applied(self) -> GtidSet:
        """What it shows at least, written or replicated."""
        return self.executed()

    def replication(self) -> list[Channel]:
        """The servers that it replicates from; none for one that is no replica. Needs REPLICATION CLIENT."""
        new = release(version_of(self._connection)) >= (8, 0, 22)
        found = self._channels("SHOW REPLICA STATUS" if new else "SHOW SLAVE STATUS")
        return [replace(channel, ordered=False) for channel in found] if found and not self._ordered() else found

    def _ordered(self) -> bool:
        rows = self._query(
            "SHOW GLOBAL VARIABLES WHERE Variable_name RLIKE '^(replica|slave)_(preserve_commit_order|parallel_workers)$'"
        )
        found = {str(name).lower().partition("_")[2]: str(value) for name, value in rows}
        return found.get("preserve_commit_order", "ON") in ("ON", "1") or int(found.get("parallel_workers", "0")) < 2

    def _channels(self, statement: str) -> list[Channel]:
        with translated(self._connection), self._connection.cursor(DictCursor) as cursor:
            cursor.execute(statement)
            rows: Any = cursor.fetchall()
        found = []
        for row in rows:
            # Older versions have other words for them.
            new = {str(k).replace("Master", "Source").replace("Slave", "Replica"): v for k, v in row.items()}
            behind = new.get("Seconds_Behind_Source")
            found.append(
                Channel(
                    str(new.get("Source_UUID") or ""),
                    int(new.get("Source_Server_Id") or 0),
                    new.get("Replica_IO_Running") == "Yes",
                    new.get("Replica_SQL_Running") == "Yes",
                    None if behind is None else int(behind),
                    int(new.get("Last_SQL_Errno") or new.get("Last_IO_Errno") or 0),
                    {
                        k: str(v)
                        for k, v in new.items()
                        if re.match(r"Replicate_(Wild_)?(Do|Ignore)_(DB|Table)", k) and v
                    },
                    str(new.get("Channel_Name") or new.get("Connection_name") or ""),
                    f"{new.get('Source_Log_File')}:{new.get('Read_Source_Log_Pos')}",
                    f"{new.get('Relay_Source_Log_File')}:{new.get('Exec_Source_Log_Pos')}",
                )
            )
        return found

    def clock_us(self) -> int:
        """The server's own clock as this is asked, µs since 1970."""
        ((now_us,),) = self._query("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)")
        return int(now_us)

    def silence_s(self) -> float:
        """A replica that hears nothing from its source for so long, not even that there is nothing, takes the connection for lost."""
        settings = {
            str(name).lower(): value for name, value in self._query("SHOW GLOBAL VARIABLES LIKE '%net\\_timeout'")
        }
        return float(settings.get("replica_net_timeout") or settings.get("slave_net_timeout") or 60)

    def ever_replicated(self) -> bool:
        """Whether it may be a replica, or have been one, for who may not ask for `replication`."""
        return True

    def logs_replicated(self) -> bool:
        """Whether what it replicates is in its own binary log."""
        # MariaDB's name, and MySQL's before 8.0.26, which newer ones know too, until they do not.
        settings = self._query("SHOW GLOBAL VARIABLES LIKE 'log\\_%\\_updates'")
        return any(str(value) == "ON" for _, value in settings)

    def end(self, thread: int) -> None:
        """End another connection of the same account, if it is there still."""
        with contextlib.suppress(SourceError):
            self._query(f"KILL {int(thread)}")

    def threads_running(self) -> int:
        """How many threads do something now; the one that answers is among them."""
        ((_, count),) = self._query("SHOW GLOBAL STATUS LIKE 'Threads\\_running'")
        return int(count)

    def purged(self) -> GtidSet:
        """What the binary log does not hold any more."""
        ((text,),) = self._query("SELECT @@global.gtid_purged")
        return GtidSet.parse(str(text))

    def _binlog_status(self) -> tuple[Any, ...]:
        # MariaDB's older versions know the older name alone, and newer ones both.
        new = release(version_of(self._connection)) >= (8, 2) and not is_mariadb(self._connection)
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

    def binlog_begin(self) -> BinlogEnd:
        """The beginning of the oldest file of the binary log. Needs REPLICATION CLIENT, on MariaDB BINLOG MONITOR."""
        files = self._query("SHOW BINARY LOGS")
        if not files:
            raise SourceError(
                "the server has no binary log", where=place(self._connection), hint="start the server with --log-bin"
            )
        return BinlogEnd(str(files[0][0]), FILE_BEGIN)

    def binary_logs(self) -> list[str]:
        """The binary log's files, oldest first. Needs REPLICATION CLIENT."""
        return [str(row[0]) for row in self._query("SHOW BINARY LOGS")]

    def managed_retention(self) -> tuple[str | None] | None:
        """What RDS and Aurora keep instead of their own settings, in hours; (None,) if nothing is set there, None elsewhere."""
        try:
            rows = self._query("SELECT value FROM mysql.rds_configuration WHERE name = 'binlog retention hours'")
        except SourceError as error:
            if error.retryable:
                raise
            return None
        return (None if not rows or rows[0][0] is None else str(rows[0][0]),)

    def binlog_filters(self) -> str:
        """The schemas that alone are logged, and those that are not, as the server was told; mostly empty."""
        _, _, only, never, *_ = self._binlog_status()
        return ", ".join(f"{word} {schemas}" for word, schemas in (("only", only), ("not", never)) if schemas)

    def position(self) -> Position:
        """Where a new capture may begin: what is executed. `end` is not behind anything that is not in `gtids`. Needs REPLICATION CLIENT."""
        file, _, _, _, gtids = self._binlog_status()
        # Transactions in flight may be before the end of the log, and are not in the set.
        return Position(GtidSet.parse(str(gtids)), self.identity().uuid, BinlogEnd(str(file), FILE_BEGIN))

    def newest(self, gtids: GtidSet) -> Gtid | None:
        """The last of `gtids` that this server wrote itself: whichever is asked for to tell this history from another. None if it wrote none."""
        uuid = self.identity().uuid
        own = gtids.sids.get(uuid)
        return Gtid(uuid, own[-1][1]) if own else None

    def wait_executed(self, gtids: GtidSet, timeout_s: float) -> bool:
        """Wait until the server has executed all of `gtids`; whether it has in time. Sets may be of any size."""
        deadline = time.monotonic() + timeout_s
        while missing := gtids.subtract(self.executed()):
            if gtids.is_mariadb:
                return False
            part = GtidSet(dict(list(missing.sids.items())[:_SIDS_AT_ONCE]))
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # A timeout of 0 would wait for ever.
            seconds = max(0.001, min(left, _SLICE_S))
            self._query("SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)", str(part), round(seconds, 3))
        return True

    def wait_visible(self, position: Position, timeout_s: float) -> bool:
        """Wait until a read view that is opened from now on shows everything before `position`; whether it does in time."""
        return self.wait_executed(position.gtids, timeout_s)


class MariaDBServer(Server):
    """The same of MariaDB. It names no set of what is executed, but the last transaction of each domain in its binary log; and those
    are there before a SELECT sees them."""

    def identity(self) -> ServerIdentity:
        """Who answers."""
        ((version, server_id),) = self._query("SELECT @@global.version, @@global.server_id")
        uid = "".join(str(value) for _, value in self._query("SHOW GLOBAL VARIABLES LIKE 'server\\_uid'"))
        return ServerIdentity(f"mariadb-{server_id}-{uid}", str(version), int(server_id), is_mariadb=True)

    def executed(self) -> GtidSet:
        """What is in the binary log. It need not be visible yet."""
        ((text,),) = self._query("SELECT @@global.gtid_binlog_pos")
        return GtidSet.parse(str(text))

    def shown(self) -> GtidSet:
        """At least everything that a SELECT may have shown before this call, if it logs what it replicates: the last of each server, not
        of each domain alone."""
        ((current, logged),) = self._query("SELECT @@global.gtid_current_pos, @@global.gtid_binlog_state")
        last: dict[str, int] = {}
        for gtid in map(Gtid.parse, filter(None, f"{current},{logged}".split(","))):
            last[gtid.sid] = max(last.get(gtid.sid, 0), gtid.number)
        return GtidSet({sid: ((1, number),) for sid, number in last.items()})

    def lacks(self, shown: GtidSet, by: ServerIdentity) -> GtidSet:
        """What of this, shown by the server `by`, is not in the binary log. What `by` wrote itself has to be there under its name; elsewhere
        the domain's numbers tell."""
        ((state, replicated),) = self._query("SELECT @@global.gtid_binlog_state, @@global.gtid_slave_pos")
        logged = [Gtid.parse(text) for text in str(state).split(",") if text]
        before = GtidSet.parse(str(replicated))
        missing = {}
        for sid, parts in shown.sids.items():
            last = Gtid(sid, parts[-1][1])
            domain, server = sid.split("-")
            lines = [
                g.number
                for g in logged
                if g.sid == sid or (int(server) != by.server_id and g.sid.startswith(f"{domain}-"))
            ]
            if last.number > max(lines, default=0) and last not in before:
                missing[sid] = ((1, last.number),)
        return GtidSet(missing)

    def applied(self) -> GtidSet:
        """What it shows at least, written or replicated."""
        ((text,),) = self._query("SELECT @@global.gtid_current_pos")
        return GtidSet.parse(str(text))

    def replication(self) -> list[Channel]:
        """The servers that it replicates from; none for one that is no replica. Needs REPLICA MONITOR."""
        return self._channels("SHOW ALL SLAVES STATUS")

    def ever_replicated(self) -> bool:
        """Whether it may be a replica, or have been one, for who may not ask for `replication`."""
        return bool(self._replicated())

    def purged(self) -> GtidSet:
        """What the binary log does not hold any more. Needs BINLOG MONITOR."""
        files = self._query("SHOW BINARY LOGS")
        return self._before(BinlogEnd(str(files[0][0]), FILE_BEGIN)) if files else GtidSet({})

    def _before(self, end: BinlogEnd) -> GtidSet:
        """What is before a place in the binary log, which must be one between two transactions."""
        ((text,),) = self._query("SELECT BINLOG_GTID_POS(%s, %s)", end.file, end.offset)
        if text is None:
            raise SourceUnavailableError(f"the binary log has nothing at {end} any more", where=place(self._connection))
        return GtidSet.parse(str(text))

    def position(self) -> Position:
        """Where a new capture may begin: the end of the binary log. Needs BINLOG MONITOR."""
        end = self.binlog_end()
        return Position(self._before(end), self.identity().uuid, end)

    def newest(self, gtids: GtidSet) -> Gtid | None:
        """The last of `gtids` in the domain that this server writes to, or else in any."""
        ((domain,),) = self._query("SELECT @@global.gtid_domain_id")
        lines = sorted(gtids.sids.items(), key=lambda line: not line[0].startswith(f"{domain}-"))
        return Gtid(lines[0][0], lines[0][1][-1][1]) if lines else None

    def wait_executed(self, gtids: GtidSet, timeout_s: float) -> bool:
        """Wait until all of `gtids` are in the server's binary log; whether they are in time."""
        deadline = time.monotonic() + timeout_s
        while not self.executed().contains(gtids):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _POLL_S))
        return True

    def wait_visible(self, position: Position, timeout_s: float) -> bool:
        """Wait until a read view that is opened from now on shows everything before `position`; whether it does in time.

        A consistent snapshot tells the place in the binary log up to which it shows everything. Views only grow.
        """
        if faults.mutant("mariadb_wait_by_gtid"):
            return self.wait_executed(position.gtids, timeout_s)
        deadline = time.monotonic() + timeout_s
        own = position.server_uuid == self.identity().uuid
        while True:
            # Of what it replicated, this is the last that is visible, whether it logs it or not.
            if not own and self._replicated().contains(position.gtids):
                return True
            end = self._snapshot()
            by_place = own and end.same_log(position.end)
            if end >= position.end if by_place else self._before(end).contains(position.gtids):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _POLL_S))

    def _replicated(self) -> GtidSet:
        ((text,),) = self._query("SELECT @@global.gtid_slave_pos")
        return GtidSet.parse(str(text))

    def _snapshot(self) -> BinlogEnd:
        self._query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        try:
            status = {
                str(name).lower(): str(value) for name, value in self._query("SHOW STATUS LIKE 'binlog\\_snapshot\\_%'")
            }
        finally:
            self._query("ROLLBACK")
        return BinlogEnd(status["binlog_snapshot_file"], int(status["binlog_snapshot_position"]))
