"""What `lakesync check` looks at: the source by preflight, what reading needs, then whether log, lake, trace and state can be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from cdc import adoptable
from cdc.config import PipelineConfig, TableConfig, format_duration
from cdc.errors import LakeError, LakesyncError
from cdc.lake import open_folder
from cdc.log import open_log
from cdc.roots import ObjectRoot
from cdc.source import preflight
from cdc.source.preflight import Finding
from cdc.state import State
from cdc.trace.client import client as open_trace
from snapshot import preflight as reading

LEAST_FED_S = 86_400.0
"""A change feed that can be read back for less is worth a warning."""
LEAST_FREE_BYTES = 1024**3
"""Less free space than this is worth a warning."""


def everything(config: PipelineConfig) -> list[Finding]:
    """All of it. Raises `SourceError` if the source cannot be asked at all; what else fails is a finding."""
    findings = preflight.check(config, config.tables) + adoptable.findings(config, config.tables)
    findings += _finding("snapshot", lambda c: reading.findings(c, c.tables), config)
    for subject, look in (("state", _state), ("log", _log), ("lake", _lake), ("merge", _feeds), ("trace", _trace)):
        findings += _finding(subject, look, config)
    return findings


def tables(config: PipelineConfig, entries: Sequence[TableConfig]) -> list[Finding]:
    """What the source says of these entries' tables. Raises `SourceError`."""
    # A table's name has a dot, and no other subject does: what the server lacks is not said again at every table.
    found = [f for f in preflight.check(config, entries) if "." in f.subject]
    return found + adoptable.findings(config, entries)


def _finding(subject: str, look: Callable[[PipelineConfig], list[Finding]], config: PipelineConfig) -> list[Finding]:
    try:
        return look(config)
    except LakesyncError as error:
        return [Finding("error", subject, f"{error.where}: {error.what}" if error.where else error.what, error.hint)]


def _state(config: PipelineConfig) -> list[Finding]:
    State(config.state)
    return [Finding("ok", "state", str(config.state), ""), *_space("state", config.state)]


def _log(config: PipelineConfig) -> list[Finding]:
    with closing(open_log(config.log, config.name, config.log_settings())) as log:
        newest = log.newest()
    return [Finding("ok", "log", f"{config.log}, " + (f"at epoch {newest.number}" if newest else "empty"), "")]


def _lake(config: PipelineConfig) -> list[Finding]:
    root = config.lake_root
    try:
        open_folder(root).probe()
    except LakeError as error:
        return [Finding("error", "lake", error.what, error.hint)]
    if isinstance(root, ObjectRoot):
        return [Finding("ok", "lake", f"{root}; a commit is put only if its name is free", "")]
    existing = next(p for p in (root, *root.parents) if p.exists())
    return [Finding("ok", "lake", str(root), ""), *_plain(root), *_space("lake", existing)]


def _plain(root: Path) -> list[Finding]:
    """polars 2.1 does not find the deletion vectors of files whose URL is not their path, and says nothing."""
    if quote(str(root), safe="/!$&'()*+,;=:@") == str(root):
        return []
    what = f"{root} is written with % in URLs: polars reads rows there that are deleted"
    return [Finding("warning", "lake", what, "name a folder of A-Z, a-z, 0-9, - _ and . only")]


def _feeds(config: PipelineConfig) -> list[Finding]:
    fed = [entry.name for entry in config.tables if entry.change_feed]
    if not fed or config.merge.keep_files >= LEAST_FED_S:
        return []
    what = f"the change feed of {fed[0]}" + (f" and {len(fed) - 1} more" if fed[1:] else "")
    what += f" can be read back for {format_duration(config.merge.keep_files)} only"
    return [Finding("warning", "merge", what, "`merge: {keep_files: 2d}`, for jobs that run once a day")]


def _space(subject: str, folder: Path) -> list[Finding]:
    free = shutil.disk_usage(folder).free
    if free >= LEAST_FREE_BYTES:
        return []
    return [Finding("warning", subject, f"{free // 1024**2} MiB are free at {folder}", "make room")]


def _trace(config: PipelineConfig) -> list[Finding]:
    if config.trace is None:
        return [Finding("warning", "trace", "none", "without one `lakesync reconcile --ledger` has nothing to close")]
    with open_trace(config.trace) as client:
        client.command("SELECT 1")
    return [Finding("ok", "trace", config.trace.url, "")]


__all__ = ["Finding", "everything", "tables"]
