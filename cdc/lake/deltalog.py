"""The Delta log of one table, read and written.

A log is replayed whole and without trust: a commit that is empty, half, or without the actions that it says it has makes the table
damaged, and so does a version that is missing. Foreign commits are replayed like ours. What a table has applied stands in
`commitInfo.lakesync` of a commit and in its `txn`, and both must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from cdc.errors import LakeConflictError, LakeDamagedError, LakeError
from cdc.journal import logger
from cdc.lake import checkpoint
from cdc.lake.checkpoint import Action
from cdc.lake.info import VERSION as INFO_VERSION
from cdc.lake.snapshot import AddFile, Applied, Snapshot, Tombstone
from cdc.lake.store import Folder, Tail

__all__ = [
    "LOG",
    "AddFile",
    "Applied",
    "Commit",
    "Snapshot",
    "Tombstone",
    "app_id",
    "commit",
    "commits",
    "load",
    "refresh",
]

LOG = "_delta_log"
LOGGER = logger("lake")

_COMMIT = re.compile(r"\d{20}\.json")
_FOREIGN_COUNTS = (("num_added_files", "num_removed_files"), ("num_target_files_added", "num_target_files_removed"))
"""What delta-rs says in `operationMetrics` of a commit's adds and removes; it does not fsync its commits."""


class Commit(NamedTuple):
    """One commit that lakesync made."""

    version: int
    info: Mapping[str, Any]
    """`commitInfo.lakesync`."""


def app_id(pipeline: str, table: str) -> str:
    """The application in `txn` actions; `table` is a table's id."""
    return f"lakesync:{pipeline}:{table}"


# -- reading -----------------------------------------------------------------------------------------------------------


def load(folder: Folder) -> Snapshot | None:
    """The newest version; None where there is no table. Raises `LakeDamagedError`, `LakeError`."""
    before: list[str] = []
    while True:
        names = sorted(folder.folder(LOG).names())
        try:
            return _load(folder, names)
        except LakeDamagedError:
            # It may have been cleaned between: then what is listed now can be read.
            if names == before:
                raise
        before = names


def _load(folder: Folder, names: Sequence[str]) -> Snapshot | None:
    log = folder.folder(LOG)
    versions = {int(name[:20]) for name in names if _COMMIT.fullmatch(name)}
    checkpoints = checkpoint.complete(names)
    if not versions and not checkpoints:
        return None
    newest = max(versions, default=-1)
    if checkpoints and max(checkpoints) > newest:
        raise _damaged(
            log, max(checkpoints), "is missing, and a checkpoint of it is there: the log lost its newest commits"
        )
    replay = _Replay(folder)
    start, unreadable = _from_checkpoint(replay, log, checkpoints)
    for version in range(start, newest + 1):
        if version not in versions:
            why = f"is missing; version {newest} is there"
            why += f", and checkpoint {', '.join(map(str, unreadable))} cannot be read" if unreadable else ""
            raise _damaged(log, version, why)
    for version, actions in _read_all(log, range(start, newest + 1)):
        replay.apply(version, actions)
    if replay.info is None:
        _look_back(replay, log, versions, start - 1)
    return replay.snapshot(newest, log.tail(_name(newest)))


def refresh(snapshot: Snapshot) -> Snapshot:
    """The newest version, reading only commits after `snapshot`; the same object if there is none. A log whose newest commit is
    no longer the one that `snapshot` knows is read from the start. Raises as `load`."""
    log = snapshot.folder.folder(LOG)
    if snapshot.tail is None or log.tail(_name(snapshot.version)) != snapshot.tail:
        found = load(snapshot.folder)
        if found is None:
            raise _damaged(log, snapshot.version, "is missing, and so is the whole log")
        return found
    version = snapshot.version
    replay: _Replay | None = None
    try:
        while log.size(_name(version + 1)) is not None:
            version += 1
            replay = replay or _Replay(snapshot.folder, snapshot)
            replay.apply(version, _read(log, version))
        if log.size(_name(version + 2)) is not None and log.size(_name(version + 1)) is None:
            raise _damaged(log, version + 1, f"is missing; version {version + 2} is there")
        return replay.snapshot(version, log.tail(_name(version))) if replay else snapshot
    except LakeDamagedError:
        if log.tail(_name(snapshot.version)) == snapshot.tail:
            raise
        found = load(snapshot.folder)  # it was cleaned away
        if found is None:
            raise _damaged(log, snapshot.version, "is missing, and so is the whole log") from None
    return found


def commits(folder: Folder, after: int = -1) -> Iterator[Commit]:
    """Commits of lakesync with a version above `after` whose JSON is there, in order: for the trace and the ledger.

    Raises `LakeDamagedError`.
    """
    log = folder.folder(LOG)
    versions = sorted(v for name in log.names() if _COMMIT.fullmatch(name) and (v := int(name[:20])) > after)
    for version, data in zip(versions, log.read_all(map(_name, versions)), strict=True):
        if data is None:
            continue  # it was cleaned away
        for action in _parse(log, version, data):
            if info := _lakesync(action):
                yield Commit(version, info)


class _Replay:
    """Actions, applied one commit after the other."""

    def __init__(self, folder: Folder, on: Snapshot | None = None) -> None:
        self.folder, self.log = folder, folder.folder(LOG)
        self.protocol = dict(on.protocol) if on else {}
        self.metadata = dict(on.metadata) if on else {}
        self.files = dict(on.files) if on else {}
        self.tombstones = dict(on.tombstones) if on else {}
        self.txns = dict(on.txns) if on else {}
        self.domains = dict(on.domains) if on else {}
        self.info = on.info if on else None
        self.info_version = on.info_version if on else None
        self.checkpoint = on.checkpoint if on else None

    def apply(self, version: int, actions: Sequence[Action]) -> None:
        """One commit's actions, or a checkpoint's. The order of the lines means nothing: a path that is both removed and added is
        added (its deletion vector changed)."""
        try:
            for action in actions:
                if body := action.get("remove"):
                    dead = Tombstone(body.get("deletionTimestamp") or 0, body.get("size"), body.get("deletionVector"))
                    self.files.pop(body["path"], None)
                    self.tombstones[body["path"]] = dead
            for action in actions:
                if body := action.get("add"):
                    self.files[body["path"]] = AddFile.from_action(body)
                    self.tombstones.pop(body["path"], None)
                elif body := action.get("txn"):
                    self.txns[body["appId"]] = body["version"]
                elif body := action.get("domainMetadata"):
                    self.domains.pop(body["domain"], None)
                    if not body.get("removed"):
                        self.domains[body["domain"]] = body
                elif body := action.get("protocol"):
                    self.protocol = dict(body)
                elif body := action.get("metaData"):
                    self.metadata = dict(body)
                elif info := _lakesync(action):
                    self.info, self.info_version = info, version
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.log, version, "has an action without what the protocol asks for") from error

    def snapshot(self, version: int, tail: Tail | None = None) -> Snapshot:
        """The table as it is after `version`, whose commit has this identity."""
        if not self.metadata or not self.protocol:
            raise _damaged(self.log, version, "is there, but no commit describes the table")
        return Snapshot(
            folder=self.folder,
            version=version,
            protocol=self.protocol,
            metadata=self.metadata,
            files=self.files,
            tombstones=self.tombstones,
            txns=self.txns,
            domains=self.domains,
            info=self.info,
            info_version=self.info_version,
            checkpoint=self.checkpoint,
            applied=self._applied(version),
            tail=tail,
        )

    def _applied(self, version: int) -> Applied | None:
        info, log = self.info, self.log
        if info is None:
            ours = sorted(app for app in self.txns if app.startswith("lakesync:"))
            if ours:
                raise _damaged(log, version, f"names {ours[0]}, but the commit with its position is gone")
            return None
        if info.get("v") != INFO_VERSION:
            raise LakeError(
                f"written by another version of lakesync (form {info.get('v')}, this is {INFO_VERSION})",
                where=f"{log}/{_name(self.info_version or version)}",
                hint="run the version that wrote it, or `lakesync resync` it",
            )
        try:
            applied = Applied.from_dict(info)
            named = self.txns.get(app_id(info["pipeline"], info["table"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(log, self.info_version or version, "has a position that cannot be read") from error
        if named != applied.epoch.number:
            raise _damaged(log, version, f"names epoch {named} in txn and {applied.epoch.number} in commitInfo")
        return applied


def _from_checkpoint(replay: _Replay, log: Folder, checkpoints: Mapping[int, list[list[str]]]) -> tuple[int, list[int]]:
    """Start from the newest checkpoint that can be read. The first version to replay; checkpoints that could not be read."""
    unreadable: list[int] = []
    for version in sorted(checkpoints, reverse=True):
        for files in checkpoints[version]:
            try:
                actions = list(checkpoint.read(log, files))
            except (OSError, ValueError, pa.ArrowException) as error:
                LOGGER.warning("checkpoint-unreadable", file=f"{log}/{files[0]}", error=type(error).__name__)
                continue
            if any("metaData" in a for a in actions) and any("protocol" in a for a in actions):
                replay.apply(version, actions)
                replay.checkpoint = version
                return version + 1, unreadable
        unreadable.append(version)
    return 0, unreadable


def _look_back(replay: _Replay, log: Folder, versions: set[int], version: int) -> None:
    """The newest position-bearing commit behind the checkpoint: checkpoints hold no `commitInfo`."""
    while version in versions and replay.info is None:
        for action in _read(log, version):
            if info := _lakesync(action):
                replay.info, replay.info_version = info, version
        version -= 1


def _read(log: Folder, version: int) -> list[Action]:
    (_, actions), *_ = _read_all(log, [version])
    return actions


def _read_all(log: Folder, versions: Sequence[int]) -> Iterator[tuple[int, list[Action]]]:
    for version, data in zip(versions, log.read_all(map(_name, versions)), strict=True):
        if data is None:
            raise _damaged(log, version, "is missing")
        yield version, _parse(log, version, data)


def _parse(log: Folder, version: int, data: bytes) -> list[Action]:
    if not data.strip():
        raise _damaged(log, version, "is empty")
    actions: list[Action] = []
    for line in data.splitlines():
        if not line.strip():
            continue
        try:
            action = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _damaged(log, version, "is torn: it ends, or has a gap, within a line") from error
        if not isinstance(action, dict):
            raise _damaged(log, version, "has a line that is no action")
        actions.append(action)
    _check_counts(log, version, actions)
    return actions


def _check_counts(log: Folder, version: int, actions: Sequence[Action]) -> None:
    """A commit that says how many files it adds and removes must do so: it may have lost whole lines."""
    have = (sum("add" in a for a in actions), sum("remove" in a for a in actions))
    with_feed = (have[0] + sum("cdc" in a for a in actions), have[1])  # delta-rs counts them too
    for action in actions:
        body = action.get("commitInfo")
        if not isinstance(body, Mapping):
            continue
        if info := _lakesync(action):
            counts = info.get("counts") or {}
            said = (counts.get("files_added"), counts.get("files_removed"))
            if have != said or not any("txn" in a for a in actions):
                raise _damaged(log, version, f"is torn: it says {said} files added and removed, and has {have}")
        metrics = body.get("operationMetrics")
        if str(body.get("engineInfo", "")).startswith("delta-rs") and isinstance(metrics, Mapping):
            for names in _FOREIGN_COUNTS:
                said = (metrics.get(names[0]), metrics.get(names[1]))
                if all(isinstance(n, int) for n in said) and said not in (have, with_feed):
                    raise _damaged(log, version, f"is torn: it says {said} files added and removed, and has {have}")


def _lakesync(action: Action) -> Mapping[str, Any] | None:
    body = action.get("commitInfo")
    info = body.get("lakesync") if isinstance(body, Mapping) else None
    return info if isinstance(info, Mapping) else None


# -- writing -----------------------------------------------------------------------------------------------------------


def commit(folder: Folder, on: Snapshot | None, actions: Sequence[Action]) -> Snapshot:
    """Put `actions` at `on.version + 1` (0 for None), if no one else has. The table as it is then.

    Raises `LakeConflictError`, `LakeUnknownError`, `LakeError`.
    """
    log = folder.folder(LOG)
    version = on.version + 1 if on else 0
    replay = _Replay(folder, on)
    replay.apply(version, actions)
    after = replay.snapshot(version)  # what cannot be replayed is not committed
    data = b"".join(orjson.dumps(action) + b"\n" for action in actions)
    if on is not None and log.tail(_name(on.version)) != on.tail:
        # Commits are cleaned away from the oldest on. Without that one, it says nothing that the next one's name is free.
        raise LakeConflictError(
            f"version {on.version} is not there any more, or another one",
            where=f"{log}/{_name(on.version)}",
            hint="the table is read again, and the merge decided anew",
        )
    return replace(after, tail=log.put_if_absent(_name(version), data))


def _name(version: int) -> str:
    return f"{version:020}.json"


def _damaged(log: Folder, version: int, what: str) -> LakeDamagedError:
    return LakeDamagedError(
        f"version {version} {what}",
        where=f"{log}/{_name(version)}",
        hint="restore the file; or, if it is the newest version, move it away and resume the table;"
        " or move the table's folder away and resync the table",
    )
