"""A lake table's commits, for the trace: which table they are of, which of them are new, and since when they can be read.

Versions name commits only within one table. Where its folder was moved away and another one began in its place, versions come again; what
tells them apart is `metaData.id` of the Delta log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

from cdc.lake import deltalog
from cdc.lake.store import Folder

WALK_FROM = 50
"""So many new commits' times are had by listing the folder once, and not by asking for each."""


class Known(TypedDict):
    """Which table it was, and which file its newest commit, when the trace looked last: JSON of the cursor."""

    id: str
    tail: str


class LakeCommit(NamedTuple):
    """A commit of lakesync. `readable_us`: since when, by the store's clock, µs since 1970; None where that cannot be known."""

    version: int
    info: Mapping[str, Any]
    lake_id: str
    readable_us: int | None


class Seen(NamedTuple):
    """All of the table's commits up to this version have been given. `all_from`: where all that are there were given, and not the new ones alone,
    the first one's version."""

    version: int
    known: Known
    all_from: int | None = None


def commits(folder: Folder, after: int, known: Known | None) -> Iterator[LakeCommit | Seen]:
    """New commits in order, then a `Seen`; nothing where there is no table. `after` and `known`: what the last `Seen` said; of another
    table than that, or of one that was put back to an older state, all commits that are there are new.

    Raises `LakeDamagedError`, `LakeError`.
    """
    log = folder.folder(deltalog.LOG)
    if known is not None and after >= 0 and log.tail(_name(after)) == known["tail"]:
        lake_id = known["id"]
        if log.size(_name(after + 1)) is None:
            return
        all_from = None
    else:
        snapshot = deltalog.load(folder)
        if snapshot is None:
            return
        lake_id, after = str(snapshot.metadata["id"]), -1
        all_from = 0
    found = list(deltalog.commits(folder, after))
    if all_from is not None:
        all_from = found[0].version if found else None
    times = _times(log, [commit.version for commit in found])
    newest = after
    for commit in found:
        yield LakeCommit(commit.version, commit.info, lake_id, times.get(commit.version))
        newest = commit.version
    if newest >= 0 and (tail := log.tail(_name(newest))) is not None:
        yield Seen(newest, {"id": lake_id, "tail": str(tail)}, all_from)


def _times(log: Folder, versions: list[int]) -> dict[int, int]:
    if len(versions) < WALK_FROM:
        found = {version: log.made_us(_name(version)) for version in versions}
        return {version: made for version, made in found.items() if made is not None}
    made = {entry.name: entry.modified_ms * 1000 for entry in log.walk()}
    return {version: made[_name(version)] for version in versions if _name(version) in made}


def _name(version: int) -> str:
    return f"{version:020}.json"
