"""The lake's side of the ledger, measured: rows in the files' own footers less the bits of their deletion vectors, and what every version
of the Delta log did, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from cdc.errors import LakeDamagedError
from cdc.lake import checkpoint
from cdc.lake.deltalog import LOG
from cdc.lake.parquet import opened
from cdc.lake.snapshot import AddFile, Snapshot
from cdc.lake.store import Folder
from cdc.lake.vectors import Vectors

READERS = 4
"""Files whose footers are read at once."""
_COMMIT = re.compile(r"\d{20}\.json")


@dataclass(frozen=True)
class FileGap:
    """A live file that does not hold what the Delta log says: `said` rows, and `found`; None: it cannot be read."""

    path: str
    said: int
    found: int | None
    what: str


@dataclass(frozen=True)
class Measured:
    """The live files of one version. `rows` as they are there; `said` by the log's statistics; `silent`: rows in files of others that have
    no statistics, which `said` does not have."""

    rows: int
    said: int
    silent: int
    wrong: tuple[FileGap, ...]


def measure(snapshot: Snapshot) -> Measured:
    """By the footers and the vectors' own bits. What cannot be read counts as no row, and is named."""
    vectors = Vectors(snapshot.folder)

    def of(file: AddFile) -> tuple[AddFile, int, str]:
        try:
            with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
                rows = parquet.metadata.num_rows
            return file, rows - len(vectors.of(file) or ()), ""
        except LakeDamagedError as error:
            return file, 0, f"{error.what} ({file.path})"

    rows = said = silent = 0
    wrong = []
    with ThreadPoolExecutor(READERS) as pool:
        for file, found, what in pool.map(of, snapshot.files.values()):
            rows += found
            if file.num_records is None:
                silent += found
                continue
            expected = file.num_records - file.deleted
            said += expected
            if what or found != expected:
                text = what or f"{found:,} live rows by its footer and vector, {expected:,} by its commit"
                wrong.append(FileGap(file.path, expected, None if what else found, text))
    return Measured(rows, said, silent, tuple(wrong))


@dataclass(frozen=True)
class Version:
    """What one commit of the Delta log did. `change` and `rows` are by statistics; None where a file has none."""

    number: int
    ours: bool
    engine: str
    """`engineInfo` and `operation`, of someone else's."""
    change: int
    rows: int


def history(folder: Folder, after: int = -1) -> dict[int, Version]:
    """The versions above `after` whose commits are there and follow on one that is known whole: as far back as the log can be replayed.

    Raises `LakeError`; what cannot be read ends it.
    """
    log = folder.folder(LOG)
    names = sorted(log.names())
    numbers = sorted(int(name[:20]) for name in names if _COMMIT.fullmatch(name))
    if not numbers:
        return {}
    replay, first = _Replay(), _first(names, numbers[0], after)
    if first is None or (first and not replay.begin(log, names, first - 1)):
        return {}
    found = {}
    wanted = [n for n in numbers if n >= first]
    for expected, (number, data) in enumerate(zip(wanted, log.read_all(map(_name, wanted)), strict=True), first):
        if data is None or number != expected:
            break
        actions = list(_actions(data))
        before = replay.rows
        replay.apply(actions)
        if number > after:
            info: Mapping[str, Any] = next(
                (a["commitInfo"] for a in actions if isinstance(a.get("commitInfo"), Mapping)), {}
            )
            found[number] = Version(
                number,
                isinstance(info.get("lakesync"), Mapping),
                f"{info.get('operation') or 'a commit'} by {info.get('engineInfo') or 'someone else'}",
                replay.rows - before,
                replay.rows,
            )
    return found


def _first(names: list[str], oldest: int, after: int) -> int | None:
    """The version to begin with: behind the newest checkpoint up to `after`, at the table's beginning, or behind the oldest checkpoint
    from which on every commit is there; None: there is none."""
    known = sorted(v for v in checkpoint.complete(names) if v >= oldest - 1)
    if early := [v for v in known if v <= after]:
        return early[-1] + 1
    return 0 if oldest == 0 else known[0] + 1 if known else None


class _Replay:
    """Live rows by file, one commit after the other."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self.rows = 0

    def begin(self, log: Folder, names: list[str], version: int) -> bool:
        """From a checkpoint; whether it could be read."""
        try:
            self.apply(list(checkpoint.read(log, checkpoint.complete(names)[version][0])))
        except (OSError, ValueError, pa.ArrowException):
            return False
        return True

    def apply(self, actions: list[Mapping[str, Any]]) -> None:
        for action in actions:
            if body := action.get("remove"):
                self.rows -= self._files.pop(body["path"], 0)
        for action in actions:
            if body := action.get("add"):
                file = AddFile.from_action(body)
                live = (file.num_records or 0) - (file.deleted if file.num_records is not None else 0)
                self.rows += live - self._files.get(file.path, 0)
                self._files[file.path] = live


def _actions(data: bytes) -> Iterator[Mapping[str, Any]]:
    for line in data.splitlines():
        if line.strip():
            yield orjson.loads(line)


def _name(version: int) -> str:
    return f"{version:020}.json"
