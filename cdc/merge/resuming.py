"""`lakesync resume`: a table that the merger stopped goes on where it stands."""

from __future__ import annotations

from cdc.config import PipelineConfig
from cdc.errors import LakeOccupiedError, LakesyncError
from cdc.lake import LakeTable, manifest
from cdc.names import TableName
from cdc.state import Phase, State, TableStatus

NODES = ("merge", "reread")
"""Those whose stops are no end: `reread` stops a table that is read for the first time, where a job cannot go on."""
BEFORE = "phase"
"""In a stopped table's error: the phase that it was in."""


def take_requests(state: State, config: PipelineConfig) -> bool:
    """Do what was asked for; whether anything was."""
    requests = state.open_requests("resume")
    for request in requests:
        try:
            outcome = _resume(state, config, TableName.parse(request.argument))
        except LakesyncError as error:
            outcome = f"not resumed: {error}"
        state.request_done(request.number, outcome)
    return bool(requests)


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
