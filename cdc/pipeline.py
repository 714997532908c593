"""A pipeline, in Python: the verbs of the command line, and the stream of changes for anyone else who wants it.

from cdc import Pipeline

pipeline = Pipeline.load("lakesync.yaml")
pipeline.add("shop.orders")
pipeline.run(until_current=True)
for batch in pipeline.changes("shop.orders"):
    ...
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import pyarrow as pa

from cdc import checks, daemon, pipelinefile, status, stream, waiting
from cdc import config as configuration
from cdc.clock import SystemClock
from cdc.config import Mode, PipelineConfig
from cdc.daemon import NODES, NodeName
from cdc.epoch import CommitRecord
from cdc.errors import ConfigError
from cdc.log import open_log
from cdc.merge import tidying
from cdc.merge.tidying import Optimized
from cdc.names import TableName
from cdc.position import Gtid
from cdc.source.preflight import Finding
from cdc.state import Read, State
from cdc.status import PipelineStatus
from cdc.waiting import Arrived
from cdc.watermark import Watermark
from reconcile import asked as scoping
from reconcile import reconciling
from reconcile.reconciling import Asked
from reconcile.report.document import Report
from reconcile.runs import Trigger
from reconcile.values import compare as values_of
from reconcile.values.scope import WHOLE, Scope
from snapshot import asking

Override = Literal["boolean", "string"]


class Pipeline:
    """One pipeline. Every method may be called while a daemon runs it. All raise `LakesyncError`s."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config

    @classmethod
    def load(cls, path: str | Path) -> Pipeline:
        """From its file. Raises `ConfigError`."""
        return cls(configuration.load(Path(path)))

    def __repr__(self) -> str:
        return f"Pipeline({self.config.name!r}, {str(self.config.path)!r})"

    # -- the file ------------------------------------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """Preflight: source, tables, log, lake, trace. Raises `SourceError` if the source cannot be asked at all."""
        return checks.everything(self.config)

    def add(
        self,
        *tables: str,
        mode: Mode = "upsert",
        types: Mapping[str, Override] | None = None,
        exclude: Sequence[str] = (),
        backfill: bool = False,
        partition_by: Sequence[str] = (),
        change_feed: bool = False,
        into: str | None = None,
        shard_column: str | None = None,
        from_position: str | None = None,
    ) -> list[Finding]:
        """Add tables, or patterns, to the file, unless a finding about them is an error; what was found.

        `backfill`: an `append` table begins with the rows that are there. `partition_by`: columns, or `month(c)` and its like.
        `change_feed`: with Delta's change data feed. `into`: they are shards of this one table, in which `shard_column` says of which
        one a row is. `from_position`: the lake has the table already, as of this GTID set. Raises `ConfigError` for a table that is
        there already, and for what does not go together.
        """
        given = {
            "mode": mode,
            "types": dict(types or {}),
            "exclude": tuple(exclude),
            "backfill": backfill,
            "partition_by": tuple(partition_by),
            "change_feed": change_feed,
            "into": into,
            "shard_column": shard_column,
            "from_position": from_position,
        }
        entries = [
            configuration.entry({"name": _name(t)} | {k: v for k, v in given.items() if v is not None}) for t in tables
        ]
        findings = checks.tables(self.config, entries)
        if not any(f.level == "error" for f in findings):
            self.config = pipelinefile.add(self.config.path, entries)
        return findings

    def remove(self, *tables: str) -> None:
        """Take tables, or patterns, out of the file; what is in the lake stays. Raises `ConfigError`."""
        self.config = pipelinefile.remove(self.config.path, [TableName.parse(t) for t in tables])

    # -- running -------------------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        until_current: bool = False,
        nodes: Sequence[NodeName] = NODES,
        stop: threading.Event | None = None,
        watch: Callable[[State], None] | None = None,
    ) -> None:
        """Follow the source until `stop` is set; with `until_current`, until every table is ready and has what the source had at
        the beginning. Raises the error that ended it."""
        daemon.run(self.config, nodes, until_current=until_current, stop=stop, watch=watch)

    def status(self) -> PipelineStatus:
        """What it is doing."""
        return status.collect(self.config)

    def wait_for(
        self,
        *tables: str,
        position: str | None = None,
        time: str | None = None,
        timeout_s: float = 600.0,
        told: Callable[[Sequence[Watermark]], None] | None = None,
    ) -> Arrived:
        """Wait until the lake has, of these tables (all, where none is named), everything that is in the GTID set `position`, or that the source
        committed up to `time`: ISO 8601 with a zone, or `now`. `told` hears again and again which tables are waited for.

        Raises `ConfigError` for what cannot be waited for, `TableStoppedError` for a table that is stopped, `NotFollowingError` when time
        is up.
        """
        named = [TableName.parse(t) for t in tables]
        return waiting.wait_for(self.config, named, position=position, at=time, timeout_s=timeout_s, told=told)

    def resume(self, *tables: str) -> list[int]:
        """Let stopped tables go on where they are. The requests' numbers."""
        return self._ask("resume", tables)

    def resync(self, *tables: str, everything: bool = False) -> list[int]:
        """Bootstrap tables anew; the lake keeps the old rows until the new ones are there. The requests' numbers."""
        if everything == bool(tables):
            raise ConfigError(
                "name tables, or everything", where="resync", hint="`lakesync resync shop.orders` or `--all`"
            )
        known = [str(t) for t, s in State(self.config.state).tables().items() if s.phase != "removed"]
        return self._ask("resync", known if everything else tables)

    def snapshot(
        self,
        table: str,
        *,
        where: str = "",
        low: str | None = None,
        high: str | None = None,
        keys: Sequence[str] = (),
        wait: bool = False,
        progress: Callable[[Sequence[Read]], None] | None = None,
    ) -> list[Read]:
        """Read rows of a followed table again, in windows, while the stream goes on: all of them, those that the server finds by `where`, those
        with keys from `low` to `high` (both included), or those with these `keys`. One job for each shard.

        The jobs; with `wait`, once they are over and the lake has what they read, `progress` being told of them meanwhile. Raises
        `ConfigError` for what cannot be asked for, with `wait` the error that ended a job.
        """
        reads = asking.ask(self.config, TableName.parse(table), where=where, low=low, high=high, keys=keys)
        return self.wait(reads, progress) if wait else reads

    def wait(self, reads: Sequence[Read], progress: Callable[[Sequence[Read]], None] | None = None) -> list[Read]:
        """Wait until these jobs are over and the lake has what they read; `progress` is told of them again and again. The jobs, as they ended.

        Raises the error that ended one of them.
        """
        return asking.wait(self.config, reads, progress or (lambda _: None))

    def pause(self, table: str) -> list[Read]:
        """Have what is being read of a table wait; what is on its way is written yet. The jobs. Raises `ConfigError` if there is none."""
        return asking.steer(self.config, TableName.parse(table), "paused")

    def proceed(self, table: str) -> list[Read]:
        """Have what was paused go on. The jobs. Raises `ConfigError` if there is none."""
        return asking.steer(self.config, TableName.parse(table), "waiting")

    def cancel(self, table: str) -> list[Read]:
        """End what is being read again of a table; what is in the log already stays. The jobs. Raises `ConfigError` if there is none."""
        return asking.steer(self.config, TableName.parse(table), "cancelled")

    def skip(self, gtid: str) -> int:
        """Pass over one source transaction, for ever; the lake will not have it. The request's number."""
        try:
            named = Gtid.parse(gtid)
        except ValueError:
            raise ConfigError(
                "not the GTID of one transaction",
                where=gtid,
                hint="write uuid:number (on MariaDB domain-server-number), as the error that stopped names it",
            ) from None
        return State(self.config.state).ask("skip", str(named))

    def _ask(self, kind: Literal["resume", "resync"], tables: Sequence[str]) -> list[int]:
        state = State(self.config.state)
        known, named = state.tables(), [TableName.parse(t) for t in tables]
        for table in named:
            if table not in known and self.config.landing(table) is None:
                raise ConfigError("not a table of this pipeline", where=str(table), hint="`lakesync status` lists them")
            if kind == "resume" and (table not in known or known[table].phase != "stopped"):
                phase = known[table].phase if table in known else "new"
                raise ConfigError(
                    f"the table is {phase}, not stopped", where=str(table), hint="there is nothing to resume"
                )
        return [state.ask(kind, str(table)) for table in named]

    def optimize(self, *tables: str) -> list[Optimized]:
        """Compact tables of the lake now, as a daemon does by and by; it may run meanwhile. Nothing is done unless all of them can be.

        Raises `ConfigError` for a table that the pipeline or the lake does not have, `LakeError`.
        """
        clock, named = SystemClock(), [TableName.parse(t) for t in tables]
        for table in named:
            tidying.optimizable(self.config, table, clock)
        return [tidying.optimize(self.config, table, clock) for table in named]

    # -- proof ---------------------------------------------------------------------------------------------------------

    def reconcile(
        self,
        *tables: str,
        ledger: bool = True,
        values: bool = True,
        repair: bool = False,
        dry_run: bool = False,
        scope: Scope = WHOLE,
        since: str | None = None,
        until: str | None = None,
        rows_per_second: int | None = None,
        resume: bool = False,
        follow_s: float = values_of.FOLLOW_S,
        progress: values_of.Progress | None = None,
        show_values: bool = False,
        trigger: Trigger = "asked",
    ) -> Report:
        """Close the ledger and compare values, while writes go on; with `repair`, read again what differs, and compare that once more.

        `scope`: which part of the values. `since`, `until`: the ledger's window, epoch numbers, times or ages (`2h`). `resume`: what the
        same comparison did before its process died is not done again. `show_values`: differences with both sides' values. It is recorded
        in the state folder. Raises `ConfigError` for what does not go together, `NotFollowingError` if the lake does not follow; where
        only one part fails, its error is in the report.
        """
        asked = Asked(
            tuple(TableName.parse(t) for t in tables),
            ledger,
            values,
            repair,
            dry_run,
            scope,
            since,
            until,
            rows_per_second,
            resume,
            follow_s,
            show_values,
            trigger,
        )
        return reconciling.reconcile(self.config, asked, progress)

    def scope(
        self,
        *tables: str,
        columns: Sequence[str] = (),
        low: str | None = None,
        high: str | None = None,
        between: tuple[str, str, str] | None = None,
        sample: float | None = None,
    ) -> Scope:
        """A scope of these tables for `reconcile`, from keys and times as people write them. Raises `ConfigError` for what they do not have."""
        config, named = self.config, [TableName.parse(t) for t in tables]
        with closing(open_log(config.log, config.name, config.log_settings())) as log:
            return scoping.scope(log, named, columns=columns, low=low, high=high, between=between, sample=sample)

    # -- the stream ----------------------------------------------------------------------------------------------------

    def log(self, *, from_epoch: int | None = None) -> Iterator[CommitRecord]:
        """Commit records from this epoch on, or all that are kept, up to the newest."""
        config = self.config
        with closing(open_log(config.log, config.name, config.log_settings())) as log:
            yield from stream.records(log, from_epoch)

    def changes(self, table: str, *, from_epoch: int | None = None) -> Iterator[pa.RecordBatch]:
        """Row changes of one table in commit order, as Arrow: `_op`, `_gid`, `_epoch`, `_ts_ms`, `_seq`, then the source's columns.

        A row whose image in the binary log has only some columns comes as it is: where a batch has one, its last two columns are `_cdc_present`, the
        names of those that it has (NULL: all), and `_cdc_diffs`, the differences of JSON values; the others are as before the change. A change
        of schema begins a batch of another schema. Raises `ConfigError` for a table that the log does not know.
        """
        config, named = self.config, TableName.parse(table)
        with closing(open_log(config.log, config.name, config.log_settings())) as log:
            yield from stream.changes(log, named, from_epoch)


def _name(text: str) -> str:
    """Checked, as the file writes it. Raises `ConfigError`."""
    return str(TableName.parse(text))
