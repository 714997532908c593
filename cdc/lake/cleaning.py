"""What a table does not need any more: commits behind a checkpoint, files that no version names.

Whoever reads an older version within the retention, or is about to commit files that no version names yet, must not notice. So what no
version names goes only once it was seen to be unnamed for the retention, on the newest version each time; and a commit only if it is
before a checkpoint from which every version within its retention can be read, before the newest one that bears the position, and
taken by the trace. Commits go from the oldest on, so that what is left has no gap, whenever this ends.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import orjson
import pyarrow as pa

from cdc import faults
from cdc.journal import logger
from cdc.lake import checkpoint
from cdc.lake.deltalog import LOG
from cdc.lake.parquet import NAME
from cdc.lake.snapshot import Snapshot, decoded
from cdc.lake.store import TEMPORARY, Entry, Folder, failed
from cdc.lake.vectors import FOLDER as VECTORS
from cdc.lake.vectors import name_of

FEED: Final = "_change_data"
"""Delta's folder for files of the change data feed."""
ORPHANS_S: Final = 86400.0
"""A file that no version names and that none is known to have named is a killed writer's, once it is so old. Who writes commits nothing
that is half as old."""
FEED_S: Final = 86400.0
"""Files of the change data feed, which only their commits name, stay at least so long."""
TEMPORARY_S: Final = 3600.0
"""Temporary files of commits are a killed writer's once they were there for so long."""
DELETED_AT_ONCE: Final = 256
RECALLED: Final = 5000
"""Commits that are read for the vectors that they replaced."""

_COMMIT = re.compile(r"(\d{20})\.json")
_OF_COMMIT = re.compile(r"(\d{20})\.(json|crc)")
_VECTOR = re.compile(rf"{VECTORS}/deletion_vector_[0-9a-f-]{{36}}\.bin")
LOGGER = logger("lake")


# -- the log -------------------------------------------------------------------------------------------------------------


def clean_log(
    folder: Folder, snapshot: Snapshot, keep_s: float, traced: int | None, now_ms: int, until: Callable[[], bool]
) -> int:
    """Delete the table's old commits, and checkpoints that nothing is read from. How many commits. `traced`: the newest version that
    the trace has; None: there is no trace. `until` says that time is up: the rest is for the next time.

    Raises `LakeError`.
    """
    log = folder.folder(LOG)
    names = log.names()
    versions = sorted(int(match[1]) for name in names if (match := _COMMIT.fullmatch(name)))
    marks = checkpoint.complete(names)
    if not versions or snapshot.info_version is None:
        return 0
    needed = _needed(log, versions, now_ms - int(keep_s * 1000))
    covering = sorted(version for version in marks if version <= needed)
    if len(marks) < 2 or not covering:
        return 0
    # From the one before the newest, too: should that be torn, the table is still whole.
    base = min(covering[-1], sorted(marks)[-2])
    bound = min(base, snapshot.info_version)
    if traced is not None:
        bound = min(bound, traced + 1)
    dead = sorted(name for name in names if (match := _OF_COMMIT.fullmatch(name)) and int(match[1]) < bound)
    if not dead or not _readable(log, marks[base]):
        return 0
    deleted = 0
    for some in _batches(dead):
        log.delete(some)
        deleted += sum(name.endswith(".json") for name in some)
        _point("lake.log-clean", log)
        if until():
            return deleted
    log.delete(name for version, forms in marks.items() if version < bound for files in forms for name in files)
    return deleted


def _needed(log: Folder, versions: Sequence[int], limit_ms: int) -> int:
    """The oldest version that was the newest one within the retention."""
    first_young = bisect_left(versions, True, key=lambda version: _written_ms(log, version) >= limit_ms)
    return versions[max(0, first_young - 1)]


def _written_ms(log: Folder, version: int) -> float:
    """When a commit was made; long ago, if someone deletes it just now; never, if it does not say."""
    try:
        data = log.read(f"{version:020}.json")
    except FileNotFoundError:
        return 0
    for line in data.splitlines():
        try:
            info = orjson.loads(line).get("commitInfo")
        except (orjson.JSONDecodeError, AttributeError):
            continue
        if isinstance(info, dict):
            when = info.get("inCommitTimestamp") or info.get("timestamp")
            return when if isinstance(when, int | float) else float("inf")
    return float("inf")


def _readable(log: Folder, forms: Sequence[Sequence[str]]) -> bool:
    """Whether a table can be read from a checkpoint, by any of its forms."""
    for files in forms:
        try:
            found = {kind for action in checkpoint.read(log, files) for kind in action}
        except (OSError, ValueError, pa.ArrowException):
            continue
        if {"metaData", "protocol"} <= found:
            return True
    LOGGER.warning("log-not-cleaned", folder=str(log), why="its checkpoint cannot be read")
    return False


# -- files ---------------------------------------------------------------------------------------------------------------


@dataclass
class Unnamed:
    """What was seen of a table's files so far. For one thread; a new one for each process, which then waits a retention longer."""

    _since: dict[str, int] = field(default_factory=dict)
    """Files that no version names, and when that was noticed, in ms."""
    _vectors: dict[str, str] = field(default_factory=dict)
    """Files of vectors by how the log names them."""
    _was_named: set[str] = field(default_factory=set)
    """Files of vectors that some version named."""
    _recalled: bool = False
    """Whether vectors that are not in `_since` have been unnamed for longer than the retention."""

    def recall(self, folder: Folder, keep_s: float, now_ms: int) -> None:
        """Take from the log which vectors were replaced, and whether within the retention, instead of waiting for it: for who looks but
        once. Of very long logs only the end is read. Raises `LakeError`."""
        log, limit_ms = folder.folder(LOG), now_ms - int(keep_s * 1000)
        versions = sorted(int(match[1]) for name in log.names() if (match := _COMMIT.fullmatch(name)))
        young = bisect_left(versions, True, key=lambda version: _written_ms(log, version) >= limit_ms)
        first = max(0, len(versions) - RECALLED)
        names = [f"{version:020}.json" for version in versions[first:]]
        for at, data in enumerate(log.read_all(names), first):
            for line in (data or b"").splitlines():
                with suppress(orjson.JSONDecodeError, ValueError, KeyError):
                    vector = (orjson.loads(line).get("remove") or {}).get("deletionVector")
                    if vector and (name := name_of(vector, str(folder))):
                        self._since[name] = now_ms if at >= young else 0
                        self._was_named.add(name)
        # Of commits that were cleaned away within the retention nothing is known.
        self._recalled = first <= young and (young > 0 or versions[:1] == [0])

    def look(self, snapshot: Snapshot) -> set[str]:
        """Take note of the vectors that a version names; their files."""
        found = set()
        for file in snapshot.files.values():
            if not (vector := file.deletion_vector):
                continue
            where = str(vector.get("pathOrInlineDv"))
            if (name := self._vectors.get(where)) is None:
                try:
                    name = name_of(vector, str(snapshot.folder)) or ""
                except (ValueError, KeyError):
                    name = ""
                self._vectors[where] = name
            found.add(name)
        self._was_named |= found
        return found

    def dead(
        self,
        entries: Iterable[Entry],
        snapshot: Snapshot,
        keep: Collection[str],
        now_ms: int,
        keep_s: float,
        orphans_s: float = ORPHANS_S,
        feed_s: float = FEED_S,
    ) -> list[str]:
        """Of a table's files those that can be deleted; `snapshot` is the newest version, `keep` are files that this process writes."""
        limit_ms, orphans_ms = now_ms - int(keep_s * 1000), now_ms - int(orphans_s * 1000)
        feed_ms = now_ms - int(max(keep_s, feed_s) * 1000)
        vectors = self.look(snapshot)
        live = {decoded(path) for path in snapshot.files} | vectors | set(keep)
        removed = {decoded(path): dead.removed_ms for path, dead in snapshot.tombstones.items()}
        unnamed: dict[str, int] = {}
        found = []
        for name, _, modified_ms in entries:
            if name in live:
                continue
            vector = _VECTOR.fullmatch(name) is not None
            since = unnamed[name] = self._since.get(name, 0 if vector and self._recalled else now_ms)
            if name in removed:
                gone = removed[name] < limit_ms
            elif name.startswith(f"{FEED}/"):
                gone = modified_ms < feed_ms
            elif vector:
                gone = since <= limit_ms and (name in self._was_named or modified_ms < orphans_ms)
            elif NAME.fullmatch(name.rpartition("/")[2]):
                gone = modified_ms < orphans_ms
            elif name.startswith(f"{LOG}/{TEMPORARY}"):
                gone = since <= now_ms - int(min(TEMPORARY_S, orphans_s) * 1000)
            else:
                gone = False
            if gone:
                found.append(name)
        self._since, self._recalled = unnamed, False
        self._was_named &= vectors | unnamed.keys()
        self._vectors = {where: name for where, name in self._vectors.items() if name in self._was_named}
        return found


def collect(
    newest: Callable[[], Snapshot],
    unnamed: Unnamed,
    writing: Collection[str],
    now_ms: int,
    keep_s: float,
    orphans_s: float,
    until: Callable[[], bool],
) -> tuple[int, Snapshot]:
    """Delete what can be deleted of a table's files; how many, and the newest version, which does not name them among those that were
    removed: they would be in every version and checkpoint from then on. `newest` loads it, `writing` are files that this process writes.

    Raises `LakeError`.
    """
    folder = newest().folder
    entries = [*folder.walk(without=LOG)]
    entries += [Entry(f"{LOG}/{name}", 0, 0) for name in folder.folder(LOG).names() if name.startswith(TEMPORARY)]
    # The version is loaded after that: on an older one what someone restored since, or committed, would be taken for dead.
    snapshot = newest()
    dead = unnamed.dead(entries, snapshot, writing, now_ms, keep_s, orphans_s, min(FEED_S, orphans_s))
    deleted = 0
    for some in _batches(dead):
        deleted += folder.delete(some)
        _point("lake.vacuum", folder)
        if until():
            return deleted, snapshot
    there, limit_ms = {entry.name for entry in entries} - set(dead), now_ms - int(keep_s * 1000)
    kept = {p: dead for p, dead in snapshot.tombstones.items() if dead.removed_ms >= limit_ms or decoded(p) in there}
    return deleted, snapshot if len(kept) == len(snapshot.tombstones) else replace(snapshot, tombstones=kept)


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + DELETED_AT_ONCE] for start in range(0, len(names), DELETED_AT_ONCE))


def _point(name: str, where: Folder) -> None:
    try:
        faults.point(name)
    except OSError as error:
        raise failed(error, "cannot be cleaned", where) from error
