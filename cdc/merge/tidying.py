"""Tidying tables up between a merger's rounds: which, when, for how long. What is done is `cdc.lake.maintain`'s."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from cdc.clock import Clock
from cdc.config import PipelineConfig
from cdc.errors import ConfigError, StateError
from cdc.lake import Applied, LakeTable, Snapshot, manifest
from cdc.lake.maintain import Keep, Maintenance
from cdc.merge import trim
from cdc.names import TableName
from cdc.state import State


class Tidying:
    """The maintenance of a merger's tables. For one thread; large files are written by another."""

    def __init__(self, config: PipelineConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lake-tidy")
        self._tables: dict[TableName, tuple[LakeTable, Maintenance]] = {}
        self._first = 0

    def tidy(self, tables: Mapping[TableName, tuple[LakeTable, Snapshot]]) -> dict[TableName, Snapshot]:
        """What is due of these tables, for about `merge.maintain` seconds in all; the others have their turn the next time. Their newest
        versions."""
        ends_s = self._clock.monotonic() + self._config.merge.maintain
        for table in [*self._tables]:
            if table not in tables:
                self._tables.pop(table)[1].close()
        names = [*tables]
        start = self._first % len(names) if names else 0
        found = {}
        for done, table in enumerate(names[start:] + names[:start]):
            left_s = ends_s - self._clock.monotonic()
            if left_s <= 0 and done:
                break
            self._first += 1
            lake, snapshot = tables[table]
            known = self._tables.get(table)
            if known is None or known[0] is not lake:
                if known is not None:
                    known[1].close()
                known = self._tables[table] = lake, Maintenance(lake, self._worker)
            keep = keeping(self._config, table, snapshot)
            found[table] = known[1].run(snapshot, keep, left_s, partial(contained, self._config, table))
        return found

    def close(self) -> None:
        """Stop what is being written, and remove it."""
        for _, maintenance in self._tables.values():
            maintenance.close()
        self._tables.clear()
        self._worker.shutdown()


def keeping(config: PipelineConfig, table: TableName, snapshot: Snapshot) -> Keep:
    """For how long the pipeline keeps what."""
    lake_id = str(snapshot.metadata["id"])
    traced = trim.traced_version(config.state, table, lake_id, snapshot.version) if config.trace else None
    return Keep(config.merge.keep_files, config.merge.keep_log, traced)


def contained(config: PipelineConfig, table: TableName, snapshot: Snapshot) -> Applied | None:
    """What a version contains: the newest manifest may carry it forward, and the log be trimmed accordingly. Raises `LakeError`."""
    return manifest.carried(table, snapshot, manifest.read(config.lake_root, config.name))


@dataclass(frozen=True)
class Optimized:
    """What `optimize` did to a table. `files` and `bytes` are of its live data files, `rows_purged` the deleted rows that were still in
    them."""

    table: str
    version: int
    rows: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    rows_purged: int
    commits_deleted: int
    files_deleted: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def optimizable(config: PipelineConfig, table: TableName, clock: Clock) -> tuple[LakeTable, Snapshot]:
    """A table that can be optimized, and its newest version. Raises as `optimize`."""
    status = State(config.state).table(table)
    if status is None and config.landing(table) is None:
        raise ConfigError("not a table of this pipeline", where=str(table), hint="`lakesync status` lists them")
    lake = LakeTable(config.lake_root, table, config.name, file_size=config.merge.file_size, clock=clock)
    snapshot = lake.load()
    if snapshot is None or (status is not None and status.phase in ("added", "snapshot")):
        raise ConfigError(
            "the lake does not have the table yet",
            where=str(table),
            hint="wait until `lakesync status` says that it is ready",
        )
    return lake, snapshot


def optimize(config: PipelineConfig, table: TableName, clock: Clock) -> Optimized:
    """Compact one table, whether a merger follows it just now or not: both go on, and what one does the other takes in.

    Raises `ConfigError` for a table that is not there, or not yet; `LakeError`.
    """
    began_s = clock.monotonic()
    lake, before = optimizable(config, table, clock)
    maintenance = Maintenance(lake)
    after = maintenance.optimize(before, keeping(config, table, before), partial(contained, config, table))
    done = maintenance.done
    _name(config, table, after)
    return Optimized(
        str(table),
        after.version,
        after.rows,
        len(before.files),
        len(after.files),
        sum(file.size for file in before.files.values()),
        sum(file.size for file in after.files.values()),
        done.rows_purged,
        done.commits_deleted,
        done.files_deleted,
        round(clock.monotonic() - began_s, 3),
    )


def _name(config: PipelineConfig, table: TableName, snapshot: Snapshot) -> None:
    """The manifest names the new version: the files of the older one go. A merger that runs does that by itself."""
    with suppress(StateError), State(config.state).lock("merge"):
        found = manifest.read(config.lake_root, config.name)
        if found is not None and (now := manifest.moved(found, {table: snapshot})) != found:
            manifest.write(config.lake_root, config.name, now)
