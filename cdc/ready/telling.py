"""Telling that a partition is complete: by a file in its folder, a webhook, a program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from cdc import faults
from cdc.config import PipelineConfig
from cdc.errors import LakesyncError
from cdc.journal import logger
from cdc.lake.store import Folder, failed, open_folder
from cdc.names import TableName
from cdc.ready.said import Channel, Open
from cdc.ready.settings import ReadyConfig
from reconcile.watch.deliver import deliver, run_command

LOG = logger("ready")
FILE = "_SUCCESS"
RETRY_S = 5.0
"""Before what was not taken is told again; doubled each time, up to `RETRY_MOST_S`."""
RETRY_MOST_S = 900.0
KIND = "partition-ready"


def folder_of(config: PipelineConfig, table: TableName) -> Folder:
    """A table's folder in the lake."""
    return open_folder(config.lake_root).folder(table.folder)


def tell(config: PipelineConfig, settings: ReadyConfig | None, what: Open, channel: Channel) -> None:
    """By one channel. What the pipeline file does not name any more is passed over. Raises `LakesyncError`."""
    payload, where = what.payload, f"ready of {what.table}"
    if settings is None:
        return
    if channel == "file":
        write(folder_of(config, what.table), payload)
    elif channel == "webhook" and settings.webhook is not None:
        deliver(settings.webhook, payload, where=f"{where}: webhook", attempts=1)
    elif channel == "command" and settings.command is not None:
        run_command(settings.command, payload, folder=Path(config.path).parent, where=f"{where}: command")
    if channel != "file":
        _point("ready.said", str(what.table))


def write(folder: Folder, payload: Mapping[str, Any]) -> None:
    """`_SUCCESS` in each of the partition's folders: once more is the same. Raises `LakeError`."""
    data = orjson.dumps(payload, option=orjson.OPT_INDENT_2) + b"\n"
    for part in payload["folders"]:
        name = f"{part}{FILE}"
        known = read(folder, name)
        if (
            known is not None
            and known.get("table") == payload["table"]
            and known["generation"] >= payload["generation"]
        ):
            continue  # by a process that did not live to say so; or what came later was told first
        folder.replace(name, data)
        _point("ready.file", str(folder))


def read(folder: Folder, name: str) -> dict[str, Any] | None:
    """What a file of that kind says; None where there is none, or it is somebody else's. Raises `LakeError`."""
    try:
        found = orjson.loads(folder.read(name))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) and found.get("event") == KIND else None


def pause_s(attempts: int) -> float:
    """Before something is told again that was told in vain so often."""
    return min(RETRY_MOST_S, RETRY_S * float(2 ** min(attempts, 10)))


def described(error: LakesyncError, what: Open, channel: Channel) -> dict[str, Any]:
    """For `status`: which partition's telling failed."""
    partition = ", ".join(f"{k}={v}" for k, v in what.payload["partition"].items())
    return error.to_dict() | {"what": f"{what.table}, {partition}: not told by {channel}: {error.what}"}


def _point(name: str, where: str) -> None:
    try:
        faults.point(name)
    except OSError as error:
        raise failed(error, "the partition cannot be said to be ready", where) from error
