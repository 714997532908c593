"""Waiting until the lake has what the source had: at a position, or at a time. For schedulers: what runs next finds it there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pymysql.connections import Connection

from cdc import watermark
from cdc.config import PipelineConfig
from cdc.errors import ConfigError, LakesyncError, NotFollowingError, SourceUnavailableError, TableStoppedError
from cdc.lake import manifest
from cdc.names import TableName
from cdc.position import GtidSet, Position
from cdc.ready.database import Database
from cdc.ready.marks import Marks
from cdc.source import progress
from cdc.source.connection import connect, place
from cdc.source.server import Server
from cdc.state import State
from cdc.status import is_running
from cdc.watermark import Watermark

POLL_S = 0.25
"""Between looks at the lake's state."""
LOOK_S = 1.0
"""Between looks at the source's time, and between reads of a manifest that lies in an object store."""
NOW = "now"


@dataclass(frozen=True)
class Arrived:
    """What was waited for is in the lake: by table, the version of Delta from which on, and how far the table is then. `waited_s`: how long
    it took."""

    position: GtidSet | None
    at_us: int | None
    tables: tuple[Watermark, ...]
    waited_s: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, documented in docs/readiness.md."""
        return {
            "reached": True,
            "position": None if self.position is None else str(self.position),
            "time": text(self.at_us),
            "waited_ms": round(self.waited_s * 1000),
            "tables": [
                {
                    "table": str(w.table),
                    "version": w.version,
                    "watermark": text(w.at_us),
                    "gtids": str(w.position.gtids) if w.position else None,
                    "position": str(w.position.end) if w.position else None,
                }
                for w in self.tables
            ],
        }


def text(at_us: int | None) -> str | None:
    """A time as ISO 8601 in UTC, to the millisecond."""
    if at_us is None:
        return None
    found = datetime.fromtimestamp(at_us // 1000 / 1000, UTC)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(given: str) -> int | None:
    """µs since 1970 of an ISO 8601 time with its zone; None for `now`. Raises `ConfigError`."""
    if given.strip().lower() == NOW:
        return None
    hint = "write it with its zone, 2026-03-31T00:00:00+02:00 or 2026-03-31T00:00Z; or `now`"
    try:
        found = datetime.fromisoformat(given.strip())
    except ValueError:
        raise ConfigError("not a time", where=f"--time {given}", hint=hint) from None
    if found.tzinfo is None:
        raise ConfigError("the time has no zone", where=f"--time {given}", hint=hint)
    seconds = found.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return seconds.days * 86_400_000_000 + seconds.seconds * 1_000_000 + seconds.microseconds


def parse_position(given: str) -> GtidSet:
    """A GTID set, or a list of MariaDB's. Raises `ConfigError`."""
    where, hint = "--position", "write a GTID set, uuid:1-5 (on MariaDB a list, 0-1-100)"
    if re.fullmatch(r"\s*[\w.-]+\.\d+:\d+\s*", given):
        raise ConfigError("a file and an offset of a binary log are not known on other servers", where=where, hint=hint)
    try:
        found = GtidSet.parse(given)
    except ValueError:
        raise ConfigError("not a GTID set", where=where, hint=hint) from None
    if not found:
        raise ConfigError("an empty GTID set is no position", where=where, hint=hint)
    return found


def wait_for(
    config: PipelineConfig,
    tables: Sequence[TableName] = (),
    *,
    position: str | None = None,
    at: str | None = None,
    timeout_s: float = 600.0,
    told: Callable[[Sequence[Watermark]], None] | None = None,
) -> Arrived:
    """Wait until these tables (all, where none is named) have everything that is in the GTID set `position`, or that the source committed up to
    `at`: a time that may be yet to come, or `now`, when this is asked by the source's clock. `told` hears again and again which tables are
    waited for.

    Raises `ConfigError` (no position, no time, not a table, another server's position), `TableStoppedError` for a table that will not get
    there by itself, `NotFollowingError` when time is up; `StateError`, `LakeError`, `SourceError`.
    """
    if (position is None) == (at is None):
        raise ConfigError("a position, or a time", where="wait", hint="`--position GTIDS`, or `--time TIME`")
    if timeout_s < 0:
        raise ConfigError("a negative time to wait", where="wait", hint="--timeout 10m")
    wanted = None if position is None else parse_position(position)
    at_us = None if at is None else parse_time(at)
    waiting = _Waiting(config, tables, wanted, at_us, is_now=at is not None and at_us is None)
    try:
        return waiting.run(timeout_s, told or (lambda _: None))
    finally:
        waiting.close()


class _Waiting:
    def __init__(
        self,
        config: PipelineConfig,
        tables: Sequence[TableName],
        wanted: GtidSet | None,
        at_us: int | None,
        *,
        is_now: bool,
    ) -> None:
        self._config, self._state = config, State(config.state)
        self._marks = Marks(Database(config.state))
        self._wanted, self._at_us, self._is_now = wanted, at_us, is_now
        self._connection: Connection[Any] | None = None
        self._hearing = progress.Hearing()
        self._own: list[progress.Mark] = []
        """Marks of its own: it needs no daemon's."""
        self._look_at = self._read_at = 0.0
        self._behind = ""
        self._found: manifest.Manifest | None = None
        self._named = [self._target(table) for table in tables]

    def close(self) -> None:
        """Leave the source."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.close()

    def run(self, timeout_s: float, told: Callable[[Sequence[Watermark]], None]) -> Arrived:
        """As `wait_for`."""
        began_s = time.monotonic()
        if self._wanted is not None:
            self._check_server(self._wanted)
        while True:
            self._look()
            found = self._watermarks()
            left = [w for w in found if not self._is_in(w)]
            waited_s = time.monotonic() - began_s
            if not left and (self._wanted is not None or self._at_us is not None):
                return Arrived(self._wanted, self._at_us, tuple(found), waited_s)
            for w in left:
                self._check_stopped(w)
            if waited_s >= timeout_s:
                raise self._late(left or found, timeout_s)
            told(left)
            time.sleep(max(0.0, min(POLL_S, timeout_s - waited_s)))

    # -- tables --------------------------------------------------------------------------------------------------------

    def _target(self, table: TableName) -> TableName:
        """The lake's table; of a shard that which it is part of. Raises `ConfigError`."""
        statuses = self._state.tables()
        entry = self._config.entry(table)
        if table not in statuses and entry is not None and entry.target is not None:
            table = entry.target
        status = statuses.get(table)
        if status is not None and status.phase == "removed":
            raise ConfigError(
                "the table is followed no more", where=str(table), hint=f"`lakesync add {table}` follows it again"
            )
        if status is None and self._config.landing(table) is None:
            raise ConfigError("not a table of this pipeline", where=str(table), hint="`lakesync status` lists them")
        return table

    def _watermarks(self) -> list[Watermark]:
        now_s = time.monotonic()
        if self._found is None or not self._config.lake.startswith("s3://") or now_s - self._read_at >= LOOK_S:
            self._found, self._read_at = manifest.read(self._config.lake_root, self._config.name), now_s
        known = watermark.of_tables(self._config, self._state, self._marks, self._found)
        named = self._named or list(dict.fromkeys([*known, *self._config.named()]))
        if not named:
            raise ConfigError("no tables", where=str(self._config.path), hint="`lakesync add schema.table`")
        return [known.get(t) or Watermark(t, held="no daemon has looked at the table yet") for t in named]

    def _is_in(self, found: Watermark) -> bool:
        if self._wanted is not None:
            return found.position is not None and found.position.gtids.contains(self._wanted)
        if self._at_us is None:
            return False
        if found.at_us is not None and found.at_us >= self._at_us:
            return True
        return not found.held and found.position is not None and _passed(found.position, self._own, self._at_us)

    def _check_stopped(self, found: Watermark) -> None:
        status = self._state.table(found.table)
        if status is not None and status.phase == "stopped":
            error = status.error or {}
            raise TableStoppedError(
                f"{found.table} is stopped, and will not get there by itself: {error.get('what', 'no reason given')}",
                where=str(error.get("where") or found.table),
                hint=str(error.get("hint") or f"`lakesync resync {found.table}`"),
            )

    def _late(self, left: Sequence[Watermark], timeout_s: float) -> NotFollowingError:
        names = ", ".join(str(w.table) for w in left[:10]) + (f" and {len(left) - 10} more" if len(left) > 10 else "")
        what = f"not in the lake after {timeout_s:g} s: {names}"
        details = [f"{w.table} is at {text(w.at_us) or '?'}" + (f" ({w.held})" if w.held else "") for w in left[:3]]
        hint = "`lakesync status` shows how far it is; a larger --timeout waits longer"
        if not is_running(self._state):
            hint = "no daemon runs: `lakesync run`"
        elif self._behind:
            hint = f"{self._behind}; {hint}"
        return NotFollowingError(what, where="; ".join(details), hint=hint)

    # -- the source ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See how far the source is in time. What cannot be reached is looked at again later: the daemon's own looks may do."""
        now_s = time.monotonic()
        if self._at_us is None and not self._is_now:
            return
        if now_s < self._look_at:
            return
        self._look_at = now_s + LOOK_S
        try:
            found = progress.look(Server(self._connect()))
        except SourceUnavailableError:
            self.close()
            self._connection = None
            return
        self._behind = found.behind
        if self._is_now and self._at_us is None:
            self._at_us = found.clock_us
        new = [m for m in self._hearing.marks(found) if self._at_us is not None and m.at_us >= self._at_us]
        self._own = (self._own + new)[:1000]  # the first ones are those that are passed first

    def _connect(self) -> Connection[Any]:
        if self._connection is None:
            self._connection = connect(self._config.source, purpose="wait")
        return self._connection

    def _check_server(self, wanted: GtidSet) -> None:
        """Raise `ConfigError` for a position that the source will never have: one of another server. Where it cannot be asked, the lake knows."""
        try:
            server = Server(self._connect())
            executed, replicates = server.executed(), bool(_channels(server))
        except SourceUnavailableError:
            self._found = manifest.read(self._config.lake_root, self._config.name)
            if self._found is None:
                return
            executed, replicates = self._found.applied.position.gtids, True
        where, there = "--position", place(self._config.source)
        if executed and executed.is_mariadb != wanted.is_mariadb:
            kind, other = ("MariaDB", "MySQL's") if executed.is_mariadb else ("MySQL", "MariaDB's")
            raise ConfigError(
                f"the source is {kind}, and these GTIDs are {other}",
                where=where,
                hint="ask the source for its position: SELECT @@global."
                + ("gtid_binlog_pos" if executed.is_mariadb else "gtid_executed"),
            )
        if replicates:
            return  # what its own source wrote may be yet to come, under names that it never saw
        known, asked = _names(executed), _names(wanted)
        if strange := sorted(asked - known):
            raise ConfigError(
                f"the source has no transaction of {', '.join(strange[:3])}: this is another server's position",
                where=f"{where}, at {there}",
                hint="ask the server that lakesync follows, or one that replicates to it",
            )


def _passed(position: Position, marks: Sequence[progress.Mark], at_us: int) -> bool:
    """Whether a mark of that time lies before a position."""
    return any(
        mark.server == position.server_uuid
        and mark.at_us >= at_us
        and mark.end.same_log(position.end)
        and position.end >= mark.end
        for mark in marks
    )


def _channels(server: Server) -> bool:
    try:
        return bool(server.replication())
    except SourceUnavailableError:
        raise
    except LakesyncError:
        return True  # it cannot be told


def _names(gtids: GtidSet) -> set[str]:
    """The servers that wrote them; on MariaDB the domains, whose numbers all servers share."""
    return {sid.partition("-")[0] if gtids.is_mariadb else sid.partition(":")[0] for sid in gtids.sids}
