"""`lakesync resume`: a table that the merger stopped goes on where it stands. And `mend`, which a repair asks for: rows that no source can
have go, their keys are read again, and the table goes on."""

from __future__ import annotations

from cdc.config import PipelineConfig
from cdc.epoch import TableState
from cdc.errors import LakeConflictError, LakeOccupiedError, LakesyncError, LakeUnknownError
from cdc.journal import logger
from cdc.lake import LakeTable, manifest
from cdc.log import captured
from cdc.log.base import Log
from cdc.merge import repairing
from cdc.names import TableName
from cdc.state import Phase, State, TableStatus

LOG = logger("merge")
NODES = ("merge", "reread")
"""Those whose stops are no end: `reread` stops a table that is read for the first time, where a job cannot go on."""
BEFORE = "phase"
"""In a stopped table's error: the phase that it was in."""


MENDED_FROM: tuple[Phase, ...] = ("ready", "reading", "catching-up")
KEYS = "LakeKeys"
"""The code of what stops a table that holds keys more than once."""
TRIES = 10
"""Others may commit meanwhile."""


def take_requests(state: State, config: PipelineConfig, log: Log) -> bool:
    """Do what was asked for; whether anything was."""
    requests = [*state.open_requests("resume"), *state.open_requests("mend")]
    for request in requests:
        try:
            table = TableName.parse(request.argument)
            outcome = _mend(state, config, log, table) if request.kind == "mend" else _resume(state, config, table)
        except LakesyncError as error:
            outcome = f"not {'mended' if request.kind == 'mend' else 'resumed'}: {error}"
        state.request_done(request.number, outcome)
    return bool(requests)


def _mend(state: State, config: PipelineConfig, log: Log, table: TableName) -> str:
    status = state.table(table)
    if status is None:
        return f"not mended: {table} is not a table of this pipeline"
    error = status.error or {}
    stopped = status.phase == "stopped" and error.get("node") == "merge" and error.get("code") == KEYS
    if not stopped and status.phase not in MENDED_FROM:
        return f"not mended: {table} is {status.phase}"
    known = captured.read(log)
    found = known.newest_tables.get(table.id) if known else None
    if found is None:
        return f"not mended: {table} is not captured"
    gone = _without_surplus(state, config, table, found)
    if stopped:
        return f"mended: {gone} rows are gone; {_resume(state, config, table)}"
    return f"mended: {gone} rows are gone"


def _without_surplus(state: State, config: PipelineConfig, table: TableName, found: TableState) -> int:
    """One commit that takes the surplus rows out; how many. Their keys are asked to be read again before: which of the rows that were
    there was right, the lake does not know."""
    lake = LakeTable(config.lake_root, table, config.name)
    for last in (*[False] * (TRIES - 1), True):
        snapshot = lake.load()
        if snapshot is None or snapshot.mode == "append":
            return 0
        applied = manifest.carried(table, snapshot, manifest.read(config.lake_root, config.name))
        if applied is None:
            return 0
        surplus = lake.surplus(snapshot)
        if not len(surplus.places):
            return 0
        if surplus.keys.num_rows:
            repairing.ask(state, table, found, surplus.keys)
        try:
            after = lake.mend(snapshot, surplus, applied)
        except (LakeConflictError, LakeUnknownError):
            if last:
                raise
            continue
        rows, keys = len(surplus.places), surplus.keys.num_rows
        LOG.warning("surplus-rows-gone", table=str(table), version=after.version, rows=rows, keys=keys)
        return rows
    return 0


def _resume(state: State, config: PipelineConfig, table: TableName) -> str:
    status = state.table(table)
    if status is None:
        return f"not resumed: {table} is not a table of this pipeline"
    if status.phase != "stopped":
        return f"not resumed: {table} is not stopped, it is {status.phase}"
    node = (status.error or {}).get("node")
    if node not in NODES:
        return f"not resumed: {node} stopped {table}; only `lakesync resync {table}` helps"
    phase = _phase(config, table, status)
    state.set_table(table, phase, when=("stopped",), error=None)
    return f"resumed: {table} is {phase}"


def _phase(config: PipelineConfig, table: TableName, status: TableStatus) -> Phase:
    """Where a stopped table goes on."""
    error = status.error or {}
    try:
        snapshot = LakeTable(config.lake_root, table, config.name).load()
    except LakeOccupiedError:
        if error.get(BEFORE) != "added":
            raise
        return "added"  # someone else's, and to be adopted
    if snapshot is None or error.get(BEFORE) == "added":
        return "added"
    if error["node"] == "reread" or error.get(BEFORE) == "reading":
        return "reading"
    applied = manifest.carried(table, snapshot, manifest.read(config.lake_root, config.name))
    before = applied is None or (status.added is not None and applied.epoch.number < status.added.number)
    # What the lake has of a table that is not replaced from an earlier time is looked at again: that it lacks something may have
    # stopped it.
    if snapshot.mode != "upsert" and before:
        return "added"
    # The mark goes when it is passed.
    return "ready" if status.mark is None else "catching-up"
