"""Where in a source's history something is: GTID sets, fingerprints, positions. Pure: no I/O, no clock.

A GTID set is no identity: after a RESET, or a restore, the same numbers name other transactions. So a position also holds
the fingerprint of its last transaction, which capture compares on every connect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import total_ordering
from typing import Any, NamedTuple

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TAG = re.compile(r"[a-z_][a-z0-9_]{0,31}")
Intervals = tuple[tuple[int, int], ...]
"""Inclusive (first, last), ascending, neither touching nor overlapping."""


class Gtid(NamedTuple):
    """One transaction: `sid` is the originating server's UUID, with `:tag` behind it where the GTID is tagged."""

    sid: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Gtid:
        """`uuid:number` or `uuid:tag:number`. Raises `ValueError`."""
        sid, _, number = text.strip().lower().rpartition(":")
        uuid, _, tag = sid.partition(":")
        if not _UUID.fullmatch(uuid) or (tag and not _TAG.fullmatch(tag)) or not number.isdigit() or int(number) < 1:
            raise ValueError(f"not a GTID: {text!r}")
        return cls(sid, int(number))

    def __str__(self) -> str:
        return f"{self.sid}:{self.number}"


def _normal(intervals: Iterable[tuple[int, int]]) -> Intervals:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


@dataclass(frozen=True)
class GtidSet:
    """A set of transactions, immutable. `sids` maps each sid (uuid, or uuid:tag) to its intervals."""

    sids: Mapping[str, Intervals]

    @classmethod
    def parse(cls, text: str) -> GtidSet:
        """MySQL's text form: `uuid:1-5:7:tag:1-3,uuid2:9`. Raises `ValueError`."""
        found: dict[str, list[tuple[int, int]]] = {}
        for part in re.sub(r"\s+", "", text).lower().split(","):
            if not part:
                continue
            uuid, *rest = part.split(":")
            if not _UUID.fullmatch(uuid) or not rest:
                raise ValueError(f"not a GTID set: {text!r}")
            sid = uuid
            for item in rest:
                if _TAG.fullmatch(item):
                    sid = f"{uuid}:{item}"
                    continue
                match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
                if not match or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
                    raise ValueError(f"not a GTID set: {text!r}")
                found.setdefault(sid, []).append((int(match[1]), int(match[2] or match[1])))
        return cls({sid: _normal(found[sid]) for sid in sorted(found)})

    def __str__(self) -> str:
        """MySQL's text form, without spaces, sids in order: equal sets give equal texts."""
        return ",".join(
            sid + "".join(f":{a}" if a == b else f":{a}-{b}" for a, b in intervals)
            for sid, intervals in self.sids.items()
        )

    def __bool__(self) -> bool:
        return bool(self.sids)

    def __contains__(self, gtid: Gtid) -> bool:
        return any(a <= gtid.number <= b for a, b in self.sids.get(gtid.sid, ()))

    def __len__(self) -> int:
        """The number of transactions."""
        return sum(b - a + 1 for intervals in self.sids.values() for a, b in intervals)

    def __hash__(self) -> int:
        return hash(str(self))

    def add(self, gtid: Gtid) -> GtidSet:
        """This set and `gtid`."""
        return self.union(GtidSet({gtid.sid: ((gtid.number, gtid.number),)}))

    def union(self, other: GtidSet) -> GtidSet:
        """What is in either."""
        sids = sorted({*self.sids, *other.sids})
        return GtidSet({sid: _normal((*self.sids.get(sid, ()), *other.sids.get(sid, ()))) for sid in sids})

    def subtract(self, other: GtidSet) -> GtidSet:
        """What is in this one only."""
        left: dict[str, Intervals] = {}
        for sid, intervals in self.sids.items():
            rest = list(intervals)
            for a, b in other.sids.get(sid, ()):
                cut = []
                for x, y in rest:
                    if b < x or a > y:
                        cut.append((x, y))
                        continue
                    if x < a:
                        cut.append((x, a - 1))
                    if b < y:
                        cut.append((b + 1, y))
                rest = cut
            if rest:
                left[sid] = tuple(rest)
        return GtidSet(left)

    def intersection(self, other: GtidSet) -> GtidSet:
        """What is in both."""
        return self.subtract(self.subtract(other))

    def contains(self, other: GtidSet) -> bool:
        """Whether all of `other` is in this one."""
        return not other.subtract(self)


class Fingerprint(NamedTuple):
    """What a transaction looks like, beyond its GTID: original commit time in µs, number of row events of all tables."""

    gtid: Gtid
    commit_us: int
    row_events: int


@total_ordering
@dataclass(frozen=True)
class BinlogEnd:
    """A place in one server's binary log. Ordered; raises `ValueError` when logs of different base names are compared."""

    file: str
    offset: int

    @property
    def _key(self) -> tuple[str, int, int]:
        base, _, number = self.file.rpartition(".")
        return base, int(number or 0), self.offset

    def __lt__(self, other: BinlogEnd) -> bool:
        mine, theirs = self._key, other._key
        if mine[0] != theirs[0]:
            raise ValueError(f"binary logs {self.file} and {other.file} have no order")
        return mine[1:] < theirs[1:]

    def __str__(self) -> str:
        return f"{self.file}:{self.offset}"


@dataclass(frozen=True)
class Position:
    """Where in the source's history: always at a transaction's end.

    `gtids` holds every transaction before it; `end` is the place in the binary log of the server `server_uuid`, from which
    it was read; `last` is the fingerprint of the last transaction read, None before the first.
    """

    gtids: GtidSet
    server_uuid: str
    end: BinlogEnd
    last: Fingerprint | None = None

    def to_dict(self) -> dict[str, Any]:
        """For commit records and `commitInfo`."""
        last = self.last and {
            "gtid": str(self.last.gtid),
            "commit_us": self.last.commit_us,
            "row_events": self.last.row_events,
        }
        return {
            "gtids": str(self.gtids),
            "server": self.server_uuid,
            "file": self.end.file,
            "offset": self.end.offset,
            "last": last,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Position:
        """Raises `KeyError` or `ValueError` for what `to_dict` never returns."""
        last = data["last"]
        return cls(
            GtidSet.parse(data["gtids"]),
            data["server"],
            BinlogEnd(data["file"], data["offset"]),
            last and Fingerprint(Gtid.parse(last["gtid"]), last["commit_us"], last["row_events"]),
        )

    def contains(self, other: Position) -> bool:
        """Whether every transaction before `other` is before this one too."""
        return self.gtids.contains(other.gtids)

    def __str__(self) -> str:
        return f"{self.end} ({self.gtids})"
