"""Asking for rows to be read again, and what has become of it. Whatever is wrong with what is asked for is said before anything is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing

from cdc import sharding
from cdc.config import PipelineConfig
from cdc.epoch import TableState
from cdc.errors import ConfigError, NotFollowingError, TableStoppedError
from cdc.lake import manifest
from cdc.log import captured, open_log
from cdc.names import TableName
from cdc.reads import Key, ReadPhase
from cdc.schema import TableSchema
from cdc.source.connection import connect
from cdc.state import Read, ReadSpec, State, TableStatus
from cdc.status import is_running
from snapshot.keytext import parse_key
from snapshot.reader import check_where

POLL_S = 0.2
_LIVE = ("ready", "catching-up", "reading")
_FIRST = ("new", "added", "snapshot")
_FIRST_READS = ("repair", "backfill", "shard", "adopt", "first")


def ask(
    config: PipelineConfig,
    table: TableName,
    *,
    where: str = "",
    low: str | None = None,
    high: str | None = None,
    keys: Sequence[str] = (),
) -> list[Read]:
    """Record what is to be read again of a table, or of each shard of a table that is made of them. The jobs.

    Raises `ConfigError` for a table that is not followed, a condition that the server does not take, a key that is none; `SourceError`,
    `LogError`, `StateError`.
    """
    if keys and (where or low is not None or high is not None):
        raise ConfigError("keys stand alone", where=str(table), hint="leave out --where, --from and --to, or --key")
    state = State(config.state)
    target, found, sources = _found(config, state, table)
    schema = sharding.own(TableSchema.from_dict(found.schema), found.options)
    if not schema.key:
        raise ConfigError(
            "the table has no primary key, by which rows are read",
            where=str(table),
            hint="nothing of it can be read again; give it a key and resync it",
        )
    by_name = {c.name: c for c in schema.columns}
    columns = [by_name[name] for name in schema.key]
    spec = ReadSpec(
        where.strip(),
        None if low is None else parse_key(table, columns, low),
        None if high is None else parse_key(table, columns, high),
        tuple(parse_key(table, columns, key) for key in keys),
    )
    if spec.low is not None and spec.high is not None and _is_above(spec.low, spec.high):
        raise ConfigError("no key is from there to there", where=str(table), hint="--from is the lower one")
    if spec.where:
        _check_condition(table, spec.where)
        with closing(connect(config.source, purpose="check")) as connection:
            for source in sources:
                check_where(connection, source, spec.where)
    return [state.ask_read(source, target, spec, "asked") for source in sources]


def _found(config: PipelineConfig, state: State, table: TableName) -> tuple[TableName, TableState, list[TableName]]:
    """The lake's table, what is captured of it, and the source's tables that are meant."""
    with closing(open_log(config.log, config.name, config.log_settings())) as log:
        known = captured.read(log)
    tables = known.newest_tables if known is not None else {}
    for name, found in tables.items():
        target = TableName.from_id(name)
        shards = list(sharding.shards(found.options))
        if table == target or table in shards:
            _check_live(config, state.table(target), target)
            whole = shards if sharding.is_sharded(found.options) else [target]
            return target, found, whole if table == target else [table]
    _check_live(config, state.table(table), table)
    raise ConfigError("the table is not captured yet", where=str(table), hint="`lakesync status` shows how far it is")


def _is_above(low: Key, high: Key) -> bool:
    """Whether no key is between: where the first columns that differ are integers. Of other types the server knows the order."""
    one, other = next(((a, b) for a, b in zip(low, high, strict=True) if a != b), (0, 0))
    return isinstance(one, int) and isinstance(other, int) and one > other


def _check_live(config: PipelineConfig, status: TableStatus | None, table: TableName) -> None:
    if status is None and (config.entry(table) or config.landing(table)):
        raise ConfigError(
            "the pipeline file names it, and no daemon has looked at it yet",
            where=str(table),
            hint="`lakesync run` reads it, with all its rows",
        )
    if status is None:
        raise ConfigError(
            "not a table of this pipeline",
            where=str(table),
            hint=f"`lakesync status` lists them, `lakesync add {table}` adds it",
        )
    if status.phase in _FIRST:
        raise ConfigError(
            "the table is being read for the first time, with all its rows",
            where=str(table),
            hint="wait until it is ready; `lakesync status` shows how far it is",
        )
    if status.phase not in _LIVE:
        error = status.error or {}
        raise ConfigError(
            f"the table is {status.phase}" + (f": {error['what']}" if error.get("what") else ""),
            where=str(table),
            hint=error.get("hint") or f"`lakesync add {table}` follows it again",
        )


def _check_condition(table: TableName, where: str) -> None:
    """Raise `ConfigError` for what is not one condition: it stands beside others, which it must not get out of."""
    import sqlglot  # late: it takes long to load
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    hint = "write what may follow WHERE: one condition on this table's columns, in the server's SQL"
    if "/*!" in where or "/*M!" in where:
        raise ConfigError("a condition with a comment that the server executes", where=str(table), hint=hint)
    try:
        found = [statement for statement in sqlglot.parse(where, read="mysql") if statement is not None]
    except SqlglotError as error:
        details = getattr(error, "errors", None) or [{}]
        what = details[0].get("description") or "not understood"
        if "<class" in what:  # the parser's own words, of its own classes
            what = "something is missing there"
        line, column = details[0].get("line"), details[0].get("col")
        place = f" at line {line}, column {column}" if line else ""
        raise ConfigError(f"the condition has a syntax error{place}: {what}", where=str(table), hint=hint) from None
    if len(found) != 1 or not isinstance(found[0], exp.Condition) or isinstance(found[0], exp.Query):
        raise ConfigError("not one condition", where=str(table), hint=hint)
    if found[0].find(exp.Lock):
        raise ConfigError("a condition that locks rows", where=str(table), hint="leave FOR UPDATE or FOR SHARE out")


# -- what has become of it ---------------------------------------------------------------------------------------------


def merged(config: PipelineConfig, reads: Sequence[Read]) -> bool:
    """Whether the lake has what these jobs, which are done, have put into the log."""
    found = manifest.read(config.lake_root, config.name)
    for read in reads:
        version = found.tables.get(read.target) if found is not None else None
        if found is None or version is None:
            return False
        applied = version.applied or found.applied
        if read.last is not None and applied.epoch.number < read.last.number:
            return False
    return True


def wait(
    config: PipelineConfig, reads: Sequence[Read], told: Callable[[Sequence[Read]], None] = lambda _: None
) -> list[Read]:
    """Until all of these jobs are over, and the lake has what those that are done have written; `told` is called again and again.

    Raises `TableStoppedError` for one that failed, or whose table stopped; `NotFollowingError` once no daemon runs any more.
    """
    state, jobs = State(config.state), {read.job for read in reads}
    while True:
        now = [read for read in state.reads() if read.job in jobs]
        told(now)
        for read in now:
            if read.phase == "failed":
                error = read.error or {}
                raise TableStoppedError(
                    error.get("what", "it failed"),
                    where=error.get("where", str(read.table)),
                    hint=error.get("hint", ""),
                )
        done = [read for read in now if read.phase == "done"]
        if not any(read.open for read in now) and merged(config, done):
            return now
        for read in done:
            status = state.table(read.target)
            if status is not None and status.phase == "stopped":
                _check_live(config, status, read.target)
        if not is_running(state):
            raise NotFollowingError(
                "no daemon is running any more",
                where=config.name,
                hint="what was asked for is recorded: `lakesync run` goes on with it",
            )
        time.sleep(POLL_S)


# -- pause, continue, cancel -------------------------------------------------------------------------------------------

_FROM: dict[ReadPhase, tuple[ReadPhase, ...]] = {
    "paused": ("waiting", "running"),
    "waiting": ("paused",),
    "cancelled": ("waiting", "running", "paused"),
}


def steer(config: PipelineConfig, table: TableName, phase: ReadPhase) -> list[Read]:
    """Have what is being read of a table pause (`paused`), go on (`waiting`) or end (`cancelled`); the jobs that do. A table that is read
    for the first time pauses and goes on as well, without a job.

    Raises `ConfigError` where there is nothing to do that with.
    """
    state = State(config.state)
    status = state.table(table)
    first = status is not None and status.phase in (*_FIRST, "reading")
    reads = [r for r in state.reads(open_only=True) if table in (r.target, r.table)]
    if phase == "cancelled":
        needed = [r for r in reads if r.why in _FIRST_READS]
        reads = [r for r in reads if r not in needed]
    if phase == "cancelled" and not reads and needed and all(r.why == "repair" for r in needed):
        raise ConfigError(
            "keys are being read of which the log has changes in part: without that the lake would not be the source",
            where=str(table),
            hint="--pause makes it wait; it is a matter of seconds",
        )
    if phase == "cancelled" and not reads and (first or needed):
        raise ConfigError(
            "the table is being read for the first time: without that it cannot be followed",
            where=str(table),
            hint=f"`lakesync remove {table}` gives it up, --pause makes it wait",
        )
    changed = [r.job for r in reads if state.set_read(r.job, phase=phase, when=_FROM[phase], error=None)]
    if first and status is not None and status.phase != "reading":
        if phase == "waiting" and table not in state.paused():
            raise ConfigError("it is not paused", where=str(table), hint="there is nothing to continue")
        state.pause(table, phase == "paused")
    elif not changed:
        if status is None and not any(table in (r.target, r.table) for r in state.reads()):
            _check_live(config, status, table)
        what = {"paused": "is being read", "waiting": "is paused", "cancelled": "is being read"}[phase]
        raise ConfigError(f"nothing {what} of this table", where=str(table), hint="`lakesync status` shows what is")
    return [r for r in state.reads() if r.job in changed]
