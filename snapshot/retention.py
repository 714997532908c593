"""What the source keeps of its binary log, against the time that a reading will take.

Reading a table needs nothing of the binary log itself; but capture does, and a reading can be what makes it fall behind. If capture's
place is purged, every table must be read anew. So:

- before a reading, or as soon as its pace is known: if it will take longer than the binary log is kept, that is a warning, with the
  statement that helps;
- while it goes on: capture is behind as long as there are binary log files after the one that it has come to, and by as much as the last
  transaction that it has logged is old. If that grows, then as fast as it grew lately it will have grown further by the end of the reading;
  if this comes near what is kept, or the oldest file that is left is capture's, the reading stops, with its progress kept. A capture that
  catches up stops nothing.

Files are purged by age or size; the server does not say by which, so both signs are looked at. Clocks of two machines are compared: what is
kept is hours, and what they may differ by is not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cdc.clock import Clock, SystemClock
from cdc.config import PipelineConfig
from cdc.epoch import CommitRecord
from cdc.errors import SourceError, TableStoppedError
from cdc.journal import logger
from cdc.log.base import Log
from cdc.names import TableName
from cdc.source.connection import connect
from cdc.source.server import Server

LOG = logger("snapshot")

EVERY_S = 10.0
"""Between looks at the source."""
PACE_S = 10.0
"""A reading's pace is known after this time."""
TREND_S = 60.0
"""Whether capture falls behind further is told by what happened in this time."""
LEAST_LAG_S = 60.0
"""Capture is not behind before this."""
SHARE = 0.8
"""Of what is kept: what lies beyond is "near"."""
HALF = 0.5
"""… of which a capture that falls behind further may use so much, however soon the reading ends."""
WANTED_S = 7 * 86_400
"""What the statement that helps asks for, or twice what is needed."""


class RetentionError(TableStoppedError):
    """The source will not keep its binary log long enough for capture, if the reading goes on. What was read is kept."""


@dataclass(frozen=True)
class Kept:
    """How long the source keeps its binary log: None for ever. `kind` of server: mysql, mariadb, rds."""

    seconds: float | None
    kind: str

    @classmethod
    def of(cls, server: Server) -> Kept:
        """What the server says. Raises `SourceError`."""
        if (hours := server.managed_retention()) is not None:
            # Without a value it purges as soon as it likes.
            return cls(float(hours[0] or 0) * 3600, "rds")
        settings = server.settings()
        kind = "mariadb" if "mariadb" in settings.get("version", "").lower() else "mysql"
        if settings.get("binlog_expire_logs_auto_purge", "ON") != "ON":
            return cls(None, kind)
        seconds = float(settings.get("binlog_expire_logs_seconds", "0")) or 86_400 * float(
            settings.get("expire_logs_days", "0")
        )
        return cls(seconds or None, kind)

    def statement(self, needed_s: float) -> str:
        """What makes it keep the log longer."""
        seconds = int(max(WANTED_S, 2 * needed_s))
        if self.kind == "rds":
            return f"CALL mysql.rds_set_configuration('binlog retention hours', {-(-seconds // 3600)})"
        if self.kind == "mariadb":
            return f"SET GLOBAL binlog_expire_logs_seconds = {seconds}, and the same in the server's configuration"
        return f"SET PERSIST binlog_expire_logs_seconds = {seconds}"


@dataclass
class _Pace:
    began_s: float
    rows: int


@dataclass
class _Trend:
    """How capture's lag went: (monotonic seconds, lag in seconds), the last few minutes."""

    points: list[tuple[float, float]] = field(default_factory=list)

    def slope(self, now_s: float, lag_s: float) -> float | None:
        """Seconds by which it grows in a second; None while that is not known."""
        self.points.append((now_s, lag_s))
        while len(self.points) > 2 and self.points[1][0] <= now_s - TREND_S:
            del self.points[0]
        then_s, before_s = self.points[0]
        return (lag_s - before_s) / (now_s - then_s) if now_s - then_s >= TREND_S else None


class Budget:
    """One for a process, shared by all who read. Thread-safe."""

    def __init__(self, config: PipelineConfig, log: Log, clock: Clock | None = None) -> None:
        self._config = config
        self._log = log
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._paces: dict[str, _Pace] = {}
        self._trend = _Trend()
        self._next_s = 0.0
        self._kept: Kept | None = None
        self._told = False
        self._danger: tuple[str, float, float | None] | None = None
        self.warnings: dict[str, str] = {}
        """By table: what is to be told of readings that go on, with what helps. For status."""

    def check(self, table: TableName, rows_read: int, rows_left: int) -> None:
        """To be called between chunks, as often as one likes: `rows_read` is what has been read so far. Raises `RetentionError` if the reading must
        stop, its progress kept."""
        with self._lock:
            now_s = self._clock.monotonic()
            left_s = self._left_s(table, rows_read, rows_left, now_s)
            if now_s >= self._next_s:
                self._next_s = now_s + EVERY_S
                self._look(now_s)
            if self._kept is None or self._kept.seconds is None:
                return
            self._warn(table, left_s, self._kept, self._kept.seconds)
            self._stop(table, left_s, self._kept, self._kept.seconds)

    def ended(self, table: TableName) -> None:
        """The table's reading has ended, or begins anew."""
        with self._lock:
            self._paces.pop(table.id, None)
            self.warnings.pop(table.id, None)

    def _left_s(self, table: TableName, rows_read: int, rows_left: int, now_s: float) -> float | None:
        pace = self._paces.get(table.id)
        if pace is None or rows_read < pace.rows:
            self._paces[table.id] = _Pace(now_s, rows_read)
            return None
        took_s, rows = now_s - pace.began_s, rows_read - pace.rows
        return rows_left * took_s / rows if rows and took_s >= PACE_S else None

    def _look(self, now_s: float) -> None:
        """What is kept, and how far capture is. A source that cannot be asked is the concern of those who read from it."""
        record = self._log.newest()
        try:
            connection = connect(self._config.source, purpose="snapshot retention")
        except SourceError:
            return
        try:
            server = Server(connection)
            self._kept = Kept.of(server)
            here = record is not None and server.identity().uuid == record.end.server_uuid
            files = server.binary_logs() if here else []
        except SourceError as error:
            if not self._told and not error.retryable:
                self._told = True
                LOG.warning("retention-unreadable", what=error.what)
            return
        finally:
            with suppress(Exception):
                connection.close()
        self._danger = None if record is None or not files else self._behind(record, files, now_s)

    def _behind(
        self, record: CommitRecord, names: Sequence[str], now_s: float
    ) -> tuple[str, float, float | None] | None:
        """(what is wrong apart from ages, capture's lag, how it grows); None if capture is not behind."""
        at = record.end.end.file
        lag_s = self._clock.now_us() / 1e6 - record.raw_us / 1e6
        if at == names[-1] or lag_s < LEAST_LAG_S:
            self._trend.points.clear()
            return None
        slope = self._trend.slope(now_s, lag_s)
        if at not in names:
            return f"the binary log file that capture has come to, {at}, is purged", lag_s, 1.0
        # One that begins with number 1 has purged nothing yet.
        if at == names[0] and len(names) > 2 and int(at.rpartition(".")[2] or 1) > 1:
            return f"the binary log file that capture has come to, {at}, is the next to be purged", lag_s, slope
        return "", lag_s, slope

    def _warn(self, table: TableName, left_s: float | None, kept: Kept, kept_s: float) -> None:
        if left_s is None or left_s <= kept_s:
            if left_s is not None:
                self.warnings.pop(table.id, None)
            return
        what = f"reading takes another {in_words(left_s)}, and the source keeps its binary log for {in_words(kept_s)}"
        if table.id not in self.warnings:
            LOG.warning("reading-outlasts-binlog", table=str(table), what=what, fix=kept.statement(left_s))
        self.warnings[table.id] = f"{what}: {kept.statement(left_s)}"

    def _stop(self, table: TableName, left_s: float | None, kept: Kept, kept_s: float) -> None:
        if self._danger is None:
            return
        purged, lag_s, slope = self._danger
        if slope is None or slope <= 0:
            return
        then_s = lag_s + slope * (left_s or 0.0)
        if not purged and then_s < SHARE * kept_s and lag_s < HALF * kept_s:
            return
        what = f"capture is {in_words(lag_s)} behind and falls behind further, and the source keeps its binary log for {in_words(kept_s)}"
        if left_s is not None:
            what += f"; reading takes another {in_words(left_s)}"
        if purged:
            what += f"; {purged}"
        snapshot = self._config.snapshot
        limits = [
            name
            for name, value in (
                ("rows_per_second", snapshot.rows_per_second),
                ("bytes_per_second", snapshot.bytes_per_second),
            )
            if value is not None
        ]
        ways = [kept.statement(then_s), "or read fewer tables at once"]
        ways += [f"or lift snapshot.{' and '.join(limits)}"] if limits else []
        raise RetentionError(
            what,
            where=str(table),
            hint=f"{'; '.join(ways)}; let capture catch up, then `lakesync snapshot {table} --continue`",
        )


def in_words(seconds: float) -> str:
    """A time for a person."""
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
