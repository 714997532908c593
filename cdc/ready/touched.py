"""Which partitions commits of a lake table changed, and how many rows of theirs: from the Delta log, whoever made them. What only moves rows
(`dataChange` is false: compaction) is no change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from cdc.errors import LakeDamagedError
from cdc.lake.deltalog import LOG
from cdc.lake.partition import NOTHING
from cdc.lake.snapshot import AddFile, Snapshot
from cdc.lake.store import Folder


class Touched(NamedTuple):
    """Rows of a partition that are there now, or in other form, and rows that are there no more; None where that is not known."""

    added: int
    deleted: int | None

    def plus(self, other: Touched) -> Touched:
        """Both."""
        unknown = self.deleted is None or other.deleted is None
        return Touched(self.added + other.added, None if unknown else (self.deleted or 0) + (other.deleted or 0))


def touched(
    folder: Folder, before: Snapshot | None, after: int, until: int, column: str
) -> Iterator[tuple[int, dict[str, Touched]]]:
    """What each of the commits above the version `after`, up to `until`, changed, by the values of a partition column. `before`: the table at
    `after`, if it is known: removed files say nothing of their rows. Raises `FileNotFoundError` for a commit that was cleaned away,
    `LakeError`."""
    log = folder.folder(LOG)
    versions = range(after + 1, until + 1)
    live: dict[str, int | None] = {}
    """Physical rows of files that these commits added."""
    for version, data in zip(versions, log.read_all(f"{v:020}.json" for v in versions), strict=True):
        if data is None:
            raise FileNotFoundError(version)
        found: dict[str, Touched] = {}
        adds: dict[str, Mapping[str, Any]] = {}
        removes: dict[str, Mapping[str, Any]] = {}
        try:
            for action in map(orjson.loads, filter(None, data.splitlines())):
                if body := action.get("add"):
                    adds[body["path"]] = body
                elif body := action.get("remove"):
                    removes[body["path"]] = body
            for path, body in removes.items():
                if body.get("dataChange", True) and (value := _value(body, column)) is not None:
                    one = _removed(path, body, adds.get(path), live, before)
                    found[value] = found.get(value, Touched(0, 0)).plus(one)
            for path, body in adds.items():
                file = AddFile.from_action(body)
                live[path] = file.num_records
                if body.get("dataChange", True) and path not in removes and (value := _value(body, column)) is not None:
                    rows = (file.num_records or 0) - file.deleted
                    found[value] = found.get(value, Touched(0, 0)).plus(Touched(rows, 0))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise LakeDamagedError(
                f"version {version} cannot be read",
                where=f"{log}/{version:020}.json",
                hint="restore the file, or `lakesync resync` the table",
            ) from error
        yield version, {value: one for value, one in found.items() if one.added or one.deleted != 0}


def _removed(
    path: str,
    body: Mapping[str, Any],
    again: Mapping[str, Any] | None,
    live: Mapping[str, int | None],
    before: Snapshot | None,
) -> Touched:
    """A file that is live no more, or with another vector."""
    dead = int((body.get("deletionVector") or {}).get("cardinality") or 0)
    if again is not None:
        more = int((again.get("deletionVector") or {}).get("cardinality") or 0) - dead
        return Touched(max(0, -more), max(0, more))
    known = before.files.get(path) if before else None
    rows = live.get(path, known.num_records if known else None)
    return Touched(0, None if rows is None else rows - dead)


def _value(body: Mapping[str, Any], column: str) -> str | None:
    values = body.get("partitionValues")
    if values:
        text = values.get(column)
        return text or None
    # Of a file that others removed the log need not say which partition it was of; its folder does.
    for part in unquote(unquote(body["path"])).split("/"):
        name, found, text = part.partition("=")
        if found and name == column:
            return None if text == NOTHING else text
    return None


def rows(snapshot: Snapshot, column: str) -> Counter[str]:
    """Live rows by the values of a partition column."""
    found: Counter[str] = Counter()
    for file in snapshot.files.values():
        if text := (file.partition or {}).get(column):
            found[text] += (file.num_records or 0) - file.deleted
    return found


def newest_ms(snapshot: Snapshot, column: str) -> dict[str, int]:
    """When the newest file of each partition was written, ms since 1970."""
    found: dict[str, int] = {}
    for file in snapshot.files.values():
        if text := (file.partition or {}).get(column):
            found[text] = max(found.get(text, 0), file.modified_ms)
    return found
