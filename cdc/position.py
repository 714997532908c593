"""Where in a source's history something is: GTID sets, fingerprints, positions. Pure: no I/O, no clock.

A GTID set is no identity: after a RESET, or a restore, the same numbers name other transactions. So a position also holds
the fingerprint of its last transaction, which capture compares on every connect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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
    """What a transaction looks like, beyond its GTID: original commit time in µs, number of row events of all tables (of a part: of all
    its parts so far)."""

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
    """Where in the source's history: at a transaction's end, or behind one of the parts of a large transaction.

    `gtids` holds every transaction that is before it as a whole; `end` is the place in the binary log of the server `server_uuid`, from
    which it was read, always at a transaction's end; `last` is the fingerprint of the last whole transaction read, None before the first.
    Raises `ValueError` for a `partial` that is among `gtids`, or of which nothing is before it.
    """

    gtids: GtidSet
    server_uuid: str
    end: BinlogEnd
    last: Fingerprint | None = None
    partial: Fingerprint | None = None
    """The transaction beyond `gtids` of which the first `row_events` row events, those of every table, are before this position."""

    def __post_init__(self) -> None:
        if self.partial is not None and (self.partial.row_events < 1 or self.partial.gtid in self.gtids):
            raise ValueError(f"{self.partial.gtid} cannot be in part before a position that has all of it, or nothing")

    def to_dict(self) -> dict[str, Any]:
        """For commit records and `commitInfo`. `partial` is there only where it is set."""
        data = {
            "gtids": str(self.gtids),
            "server": self.server_uuid,
            "file": self.end.file,
            "offset": self.end.offset,
            "last": self.last and _fingerprint_out(self.last),
        }
        return data | ({"partial": _fingerprint_out(self.partial)} if self.partial else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Position:
        """Raises `KeyError` or `ValueError` for what `to_dict` never returns."""
        last, partial = data["last"], data.get("partial")
        return cls(
            GtidSet.parse(data["gtids"]),
            data["server"],
            BinlogEnd(data["file"], data["offset"]),
            last and _fingerprint_in(last),
            partial and _fingerprint_in(partial),
        )

    @property
    def whole(self) -> bool:
        """Whether it is at a transaction's end."""
        return self.partial is None

    @property
    def reach(self) -> tuple[int, int]:
        """How many whole transactions are before it, and row events of the one in part: the least and the greatest of positions of
        which each contains the one before are so found."""
        return len(self.gtids), self.partial.row_events if self.partial else 0

    def contains(self, other: Position) -> bool:
        """Whether everything before `other` is before this one too."""
        if not self.gtids.contains(other.gtids):
            return False
        part = other.partial
        return part is None or (first := self.first_event(part.gtid)) is None or first >= part.row_events

    def is_at(self, other: Position) -> bool:
        """Whether exactly the same is before both, wherever it was read from."""
        return self.gtids == other.gtids and self._part == other._part

    def first_event(self, gtid: Gtid) -> int | None:
        """The ordinal of the transaction's first row event that is not before this position; None if all of them are before it."""
        if gtid in self.gtids:
            return None
        return self.partial.row_events if self.partial and self.partial.gtid == gtid else 0

    def union(self, other: Position) -> Position:
        """This position, and before it also everything that is before `other`. Raises `ValueError` where two transactions are in part
        then: there is no such position."""
        gtids = self.gtids.union(other.gtids)
        parts = [p for p in (self.partial, other.partial) if p is not None and p.gtid not in gtids]
        if len({p.gtid for p in parts}) > 1:
            raise ValueError(f"both {parts[0].gtid} and {parts[1].gtid} are there in part")
        return replace(self, gtids=gtids, partial=max(parts, key=lambda p: p.row_events, default=None))

    @property
    def _part(self) -> tuple[Gtid, int] | None:
        return self.partial and (self.partial.gtid, self.partial.row_events)

    def __str__(self) -> str:
        part = f", and {self.partial.row_events} row events of {self.partial.gtid}" if self.partial else ""
        return f"{self.end} ({self.gtids}{part})"


def _fingerprint_out(fingerprint: Fingerprint) -> dict[str, Any]:
    return {
        "gtid": str(fingerprint.gtid),
        "commit_us": fingerprint.commit_us,
        "row_events": fingerprint.row_events,
    }


def _fingerprint_in(data: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(Gtid.parse(data["gtid"]), data["commit_us"], data["row_events"])
