"""Tidying tables up between a merger's rounds: which, when, for how long. What is done is `cdc.lake.maintain`'s."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cdc.clock import Clock
from cdc.config import PipelineConfig
from cdc.lake import Applied, LakeTable, Snapshot, manifest
from cdc.lake.maintain import Keep, Maintenance
from cdc.merge import trim
from cdc.names import TableName


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
    traced = trim.traced_version(config.state, table, snapshot.version) if config.trace else None
    return Keep(config.merge.keep_files, config.merge.keep_log, traced)


def contained(config: PipelineConfig, table: TableName, snapshot: Snapshot) -> Applied | None:
    """What a version contains: the newest manifest may carry it forward, and the log be trimmed accordingly. Raises `LakeError`."""
    return manifest.carried(table, snapshot, manifest.read(config.lake_root, config.name))
