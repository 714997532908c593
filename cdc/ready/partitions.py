"""Which partitions of a table are complete, and which of those changed afterwards.

A partition is complete at the first look at which the table's watermark has passed its end, and the delay. What is said of it is what the
table's newest version has then. Whatever a later version changes in it came late: that is said again, as the next generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from cdc.clock import Clock
from cdc.config import PipelineConfig, TableConfig
from cdc.errors import ConfigError
from cdc.journal import logger
from cdc.lake import Snapshot, deltalog, partition
from cdc.lake.store import Folder
from cdc.names import TableName
from cdc.partitioning import parse_all
from cdc.ready import periods, telling
from cdc.ready.periods import Periods
from cdc.ready.said import CHANNELS, Book, Channel, Said, Watched
from cdc.ready.settings import ReadyConfig
from cdc.ready.touched import Touched, newest_ms, rows, touched
from cdc.source.progress import Progress
from cdc.waiting import text
from cdc.watermark import Watermark

LOG = logger("ready")
VERSION = 1
"""Of what is told: keys are added within a version, never changed or taken away."""
AT_ONCE = 200
"""Partitions of a table that are said at a look."""
ASKED_AT_ONCE = 1000
"""Of so many partitions, or of all, the store is asked what was said."""
AHEAD_S = 60.0
"""A source whose clock is further ahead of ours than this may not say that something is over."""
FOREIGN_S = 30.0
"""How often a table is looked at although the manifest names no new version: others may have changed it."""


@dataclass
class _Seen:
    """A table at the last look."""

    snapshot: Snapshot
    version: int | None
    at_s: float


class Partitions:
    """Of the tables of one pipeline. For one thread."""

    def __init__(self, config: PipelineConfig, book: Book, clock: Clock) -> None:
        self._config, self._book, self._clock = config, book, clock
        self._seen: dict[TableName, _Seen] = {}

    def look(self, entry: TableConfig, mark: Watermark, progress: Progress | None) -> bool:
        """See what is to be said of a table; whether there was something. Raises `ConfigError` for a partition that tells no time, `LakeError`,
        `StateError`."""
        assert entry.ready is not None
        table, found = mark.table, _periods(entry, entry.ready)
        watched = self._book.watched(table, found.column)
        if watched is None:
            if progress is None:
                return False  # the source's clock says which ones are over
            watched = self._watch(table, found, entry.ready, progress.clock_us)
        watched = self._from(watched, entry.ready)
        if mark.held or mark.at_us is None:
            return False
        before, now = self._snapshot(table, mark)
        if now is None:
            return False
        _check(table, now, entry, found)
        self._scan(watched, before, now)
        # A watermark may not be ahead of this machine's own time, either.
        ahead_us = mark.at_us - self._clock.now_us()
        if ahead_us > AHEAD_S * 1_000_000:
            raise ConfigError(
                f"the source's clock is {ahead_us // 1_000_000} s ahead of this machine's: no partition is said to be complete meanwhile",
                where=str(table),
                hint="set the clocks of both by NTP",
            )
        said = self._complete(entry.ready, found, watched, mark, now)
        again = self._again(entry.ready, found, watched, mark, now)
        return said or again

    # -- which ones are watched ----------------------------------------------------------------------------------------

    def _watch(self, table: TableName, found: Periods, settings: ReadyConfig, now_us: int) -> Watched:
        """From the partition of now on; or, where the files in the lake say that it was so before the state folder was lost, from then."""
        first = found.of(now_us)
        watched = Watched(table, found.column, now_us, first, first)
        known = self._recall(table, found) if settings.file else {}
        if known:
            armed_us = min(int(k.payload.get("armed_us") or now_us) for k in known.values())
            first = min(found.of(armed_us), *known)
            watched = replace(
                watched, armed_us=armed_us, first=first, next=first, scanned=min(k.version for k in known.values())
            )
            LOG.info("partitions-recalled", table=str(table), said=len(known))
        self._book.watch(watched, known.values())
        return watched

    def _recall(self, table: TableName, found: Periods) -> dict[str, Said]:
        """What the files say."""
        folder, known = telling.folder_of(self._config, table), dict[str, Said]()
        for name, *_ in folder.walk(without=deltalog.LOG):
            if name.rpartition("/")[2] != telling.FILE:
                continue
            payload = telling.read(folder, name)
            if payload is None or payload.get("table") != str(table) or payload.get("pipeline") != self._config.name:
                continue
            period = payload.get("partition", {}).get(found.column)
            if found.is_one(period):
                one = Said(period, int(payload["generation"]), int(payload["version"]), payload)
                if period not in known or known[period].generation < one.generation:
                    known[period] = one
        return known

    def _from(self, watched: Watched, settings: ReadyConfig) -> Watched:
        """Also from `from:` on, if that is earlier."""
        if settings.since is None:
            return watched
        day = date.fromisoformat(settings.since).strftime("%Y-%m-%d-%H")
        first = day[: len(watched.first)]
        if first < watched.first:
            watched = replace(watched, first=first, next=first)
            self._book.watch(watched)
            LOG.info("partitions-from", table=str(watched.table), first=first)
        return watched

    # -- the table -----------------------------------------------------------------------------------------------------

    def _snapshot(self, table: TableName, mark: Watermark) -> tuple[Snapshot | None, Snapshot | None]:
        """As it was at the last look, and as it is."""
        seen, now_s = self._seen.get(table), self._clock.monotonic()
        if seen is not None and seen.version == mark.version and now_s - seen.at_s < FOREIGN_S:
            return seen.snapshot, seen.snapshot
        before = seen.snapshot if seen else None
        now = deltalog.refresh(before) if before else deltalog.load(telling.folder_of(self._config, table))
        if now is not None:
            self._seen[table] = _Seen(now, mark.version, now_s)
        return before, now

    def _scan(self, watched: Watched, before: Snapshot | None, now: Snapshot) -> None:
        """Note what came late since the last look."""
        known = self._book.watched(watched.table, watched.term)
        assert known is not None
        identity = str(now.metadata.get("id"))
        if known.scanned is None:
            self._book.scan(known, identity, now.version, {}, self._clock.now_us())
            return
        same = known.lake in (None, identity) and now.version >= known.scanned
        if same and now.version == known.scanned:
            return
        late = dict[str, Touched]()
        try:
            if not same:
                raise FileNotFoundError(known.scanned)
            at = before if before is not None and before.version == known.scanned else None
            commits = list(touched(now.folder, at, known.scanned, now.version, watched.term))
            names = sorted({period for _, changes in commits for period in changes})
            said = self._book.said(known, names if len(names) <= ASKED_AT_ONCE else None)
            for version, changes in commits:
                for period, one in changes.items():
                    # After the state folder was lost, commits are looked at again that are older than what was said.
                    if period in said and version > said[period].version:
                        late[period] = late.get(period, Touched(0, 0)).plus(one)
        except FileNotFoundError:
            late = _suspected(self._book.said(known), now, watched.term, same_table=known.lake in (None, identity))
        self._book.scan(known, identity, now.version, late, self._clock.now_us())
        if late:
            LOG.info("rows-came-late", table=str(watched.table), partitions=len(late), version=now.version)

    # -- saying --------------------------------------------------------------------------------------------------------

    def _complete(
        self, settings: ReadyConfig, found: Periods, watched: Watched, mark: Watermark, now: Snapshot
    ) -> bool:
        """Say which partitions are complete that were not."""
        assert mark.at_us is not None
        limit_us, period = mark.at_us - int(settings.delay * 1_000_000), watched.next
        over: list[str] = []
        while len(over) < AT_ONCE and found.end_us(period) <= limit_us:
            over.append(period)
            period = found.after(period)
        if not over:
            return False
        known, counts = self._book.said(watched, over), rows(now, watched.term)
        new = [
            Said(p, 1, now.version, self._payload(found, watched, mark, now, p, 1, counts[p], None))
            for p in over
            if p not in known
        ]
        if settings.file:
            new = [self._as_told(now.folder, one) or one for one in new]
        self._book.say(watched, new, _channels(settings), period)
        for one in new:
            LOG.info("partition-ready", table=str(watched.table), partition=one.period, version=one.version)
        return bool(new)

    def _as_told(self, folder: Folder, one: Said) -> Said | None:
        """What the partition's file says already: the state folder was lost, or put back."""
        for part in one.payload["folders"]:
            known = telling.read(folder, f"{part}{telling.FILE}")
            if known is not None and known.get("table") == one.payload["table"]:
                return Said(one.period, int(known["generation"]), int(known["version"]), known)
        return None

    def _again(self, settings: ReadyConfig, found: Periods, watched: Watched, mark: Watermark, now: Snapshot) -> bool:
        """Say again which ones changed since."""
        since_us = self._clock.now_us() - int(settings.again * 1_000_000)
        due = list(islice((late for late in self._book.late(watched) if late.since_us <= since_us), AT_ONCE))
        if not due:
            return False
        current = self._book.watched(watched.table, watched.term)
        assert current is not None
        known, counts = self._book.said(watched, [late.period for late in due]), rows(now, watched.term)
        new = []
        for late in due:
            generation = known[late.period].generation + 1
            payload = self._payload(
                found, watched, mark, now, late.period, generation, counts[late.period], late.touched
            )
            new.append(Said(late.period, generation, now.version, payload))
        self._book.say(watched, new, _channels(settings), current.next)
        for one in new:
            LOG.info(
                "partition-ready-again",
                table=str(watched.table),
                partition=one.period,
                generation=one.generation,
                version=one.version,
            )
        return True

    def _payload(
        self,
        found: Periods,
        watched: Watched,
        mark: Watermark,
        now: Snapshot,
        period: str,
        generation: int,
        count: int,
        late: Touched | None,
    ) -> dict[str, Any]:
        assert mark.position is not None
        table = str(watched.table)
        applied = now.applied
        position = applied.position if applied and applied.position.contains(mark.position) else mark.position
        return {
            "v": VERSION,
            "event": telling.KIND,
            "key": f"{self._config.name}/{table}/{watched.term}={period}/{generation}",
            "pipeline": self._config.name,
            "table": table,
            "partition": {watched.term: period},
            "end": text(found.end_us(period)),
            "generation": generation,
            "version": now.version,
            "rows": count,
            "late": None if late is None else {"rows_added": late.added, "rows_deleted": late.deleted},
            "watermark": text(mark.at_us),
            "gtids": str(position.gtids),
            "position": str(position.end),
            "folders": _folders(now, found, period),
            "said_at": text(self._clock.now_us()),
            "armed_us": watched.armed_us,
        }


def _suspected(said: Mapping[str, Said], now: Snapshot, term: str, *, same_table: bool) -> dict[str, Touched]:
    """What may have changed since it was said, where the commits since are not there: of another table in its place, everything."""
    counts, newest = rows(now, term), newest_ms(now, term)
    if not same_table:
        return {period: Touched(counts[period], None) for period in said}
    return {
        period: Touched(0, None)
        for period, one in said.items()
        if one.payload.get("rows") != counts[period] or newest.get(period, 0) > _ms(one.payload.get("said_at"))
    }


def _ms(said_at: Any) -> int:
    try:
        return int(datetime.fromisoformat(str(said_at)).timestamp() * 1000)
    except ValueError:
        return 0


def _periods(entry: TableConfig, settings: ReadyConfig) -> Periods:
    place = periods.chosen(entry.partition_by, settings.period)
    term = parse_all(entry.partition_by)[place]
    return Periods(term.name, term.unit or "day", ZoneInfo(settings.timezone), term.column, place)


def _check(table: TableName, now: Snapshot, entry: TableConfig, found: Periods) -> None:
    """Raise `ConfigError` unless the lake's table has partitions of time like these."""
    where, layout = f"{table}: ready", now.layout
    if tuple(layout.partition_by) != tuple(entry.partition_by):
        raise ConfigError(
            f"the lake's table is partitioned by {', '.join(layout.partition_by) or 'nothing'}",
            where=where,
            hint=f"`lakesync resync {table}` partitions it as the file says",
        )
    schema = now.schema.arrow
    arrow = schema.field(found.source).type if found.source in schema.names else None
    if parse_all(entry.partition_by)[found.place].unit is None and (arrow is None or not pa.types.is_date32(arrow)):
        raise ConfigError(
            f"partitions of {found.source} are not of time",
            where=where,
            hint="name one that is by `period:`: day(c), or a column of type DATE",
        )
    if arrow is not None and pa.types.is_timestamp(arrow) and arrow.tz is not None and found.zone.key != "UTC":
        raise ConfigError(
            f"{found.source} is a TIMESTAMP: its partitions are of UTC, and do not end by {found.zone.key}",
            where=where,
            hint="leave out `timezone:`; it is for DATETIME and DATE columns",
        )


def _folders(now: Snapshot, found: Periods, period: str) -> list[str]:
    """The folders of a partition in the table's: one, if it is partitioned by time first; else one for each of what comes before that has
    rows."""
    names = list(now.metadata.get("partitionColumns") or ())[: found.place + 1]
    if found.place == 0:
        return [partition.folder({found.column: period})]
    values = {
        tuple((file.partition or {}).get(name) for name in names)
        for file in now.files.values()
        if (file.partition or {}).get(found.column) == period
    }
    return sorted(partition.folder(dict(zip(names, one, strict=True))) for one in values)


def _channels(settings: ReadyConfig) -> list[Channel]:
    given: Mapping[Channel, Any] = {
        "file": settings.file or None,
        "webhook": settings.webhook,
        "command": settings.command,
    }
    return [channel for channel in CHANNELS if given[channel] is not None]
