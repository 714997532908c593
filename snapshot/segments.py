"""What is left of a job of rereading: segments of its table, and how the log says which of them are done. Pure.

A window in the log says in its `progress` which segment its rows complete, and which others were not yet in the log when it was
delivered. So the newest window alone says what is left, less the segments of those before it: nothing else has to outlive a process.

    {"run": 0, "segment": [after, to, included], "open": [[after, to, included], …], "gone": 0}

`segment` is null for a window that completes none: of a range some keys are still to be looked for. A segment is `[first, end]`, of
the job's list of keys, where it has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdc.epoch import CommitRecord, EpochId, WindowEntry
from snapshot.chunks import Bound, bound_from_json, bound_to_json

KEYS_AT_ONCE = 1000
"""Keys that one window reads by point reads."""


@dataclass(frozen=True)
class Segment:
    """Rows after the key `after` (with it, if `included`) up to the key `to`, which is included; None: no bound. Or the job's keys number
    `keys[0]` to before `keys[1]`."""

    after: Bound | None = None
    to: Bound | None = None
    included: bool = False
    keys: tuple[int, int] | None = None

    def to_json(self) -> list[Any]:
        """For a commit record."""
        if self.keys is not None:
            return list(self.keys)
        return [bound_to_json(self.after), bound_to_json(self.to), self.included]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Segment:
        """What `to_json` gave."""
        if len(data) == 2:
            return cls(keys=(data[0], data[1]))
        return cls(bound_from_json(data[0]), bound_from_json(data[1]), data[2])


LEFT = Segment(keys=(-1, -1))
"""The keys of the lake that were in nothing that was read, where windows cannot tell which of them are theirs: looked for last."""


@dataclass
class Found:
    """What the log says of a job."""

    run: int = 0
    number: int = 0
    """The greatest number of a window, of any run."""
    open: list[Segment] | None = None
    """What is left; None if no window of this run is in the log."""
    rows_read: int = 0
    rows_emitted: int = 0
    rows_gone: int = 0
    last: EpochId | None = None
    """The epoch of the newest window."""
    numbers: set[int] = field(default_factory=set)
    """Those of this run."""


def find(records: Iterable[CommitRecord], table: str, job: str, run: int = 0, counted: Iterable[int] = ()) -> Found:
    """Look for a job's windows in these records; `table` is the id of the lake's. Windows of a run before the newest, or before `run`,
    are of no account, nor do the rows of windows in `counted` count."""
    found = Found(run)
    windows: list[tuple[WindowEntry, EpochId]] = []
    for record in records:
        if entries := record.windows.get(table):
            windows += [(w, record.id) for w in entries if w.id.job == job]
    if not windows:
        return found
    found.number = max(w.id.number for w, _ in windows)
    found.run = max(run, *(w.progress["run"] for w, _ in windows))
    windows = [(w, epoch) for w, epoch in windows if w.progress["run"] == found.run]
    if not windows:
        return found
    newest = max((w for w, _ in windows), key=lambda w: w.id.number)
    done = {Segment.from_json(w.progress["segment"]) for w, _ in windows if w.progress["segment"] is not None}
    found.open = [s for s in map(Segment.from_json, newest.progress["open"]) if s not in done]
    before = frozenset(counted)
    for window, epoch in windows:
        found.last = epoch
        found.numbers.add(window.id.number)
        if window.id.number not in before:
            found.rows_read += window.read - window.progress["gone"]
            found.rows_emitted += window.emitted
            found.rows_gone += window.progress["gone"]
    return found


def progress(run: int, segment: Segment | None, still_open: Iterable[Segment], gone: int) -> dict[str, Any]:
    """For a window: the segment that it completes, those that are open besides, and how many keys it did not find."""
    return {
        "run": run,
        "segment": segment and segment.to_json(),
        "open": [s.to_json() for s in still_open],
        "gone": gone,
    }


def kept(still_open: Iterable[Segment], counted: Iterable[int], schema: str, log: str, number: int) -> dict[str, Any]:
    """For the state folder: what is left, the numbers of windows beyond its epoch whose rows are counted, the hash of the columns and the
    log that all this is about, and the last number that was given to a window."""
    left = [s.to_json() for s in still_open]
    return {"open": left, "counted": sorted(counted), "schema": schema, "log": log, "number": number}


def open_of(data: Mapping[str, Any]) -> list[Segment]:
    """What `kept` says is left."""
    return [Segment.from_json(s) for s in data["open"]]
