"""Where in a source's history something is: GTID sets, fingerprints, positions. Pure: no I/O, no clock.

A GTID set is no identity: after a RESET, or a restore, the same numbers name other transactions. So a position also holds
the fingerprint of its last transaction, which capture compares on every connect.

MySQL and MariaDB name transactions differently, and the two never mix. MySQL's `uuid:number` are sets with holes. MariaDB's
`domain-server-number` are lines: in each domain the numbers grow (with `gtid_strict_mode`), whichever server writes, so the last
transaction of a domain tells all that are before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import Any, NamedTuple

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UUID_LENGTH = 36
_TAG = re.compile(r"[a-z_][a-z0-9_]{0,31}")
_MARIADB_GTID = re.compile(r"(\d{1,10})-(\d{1,10})-(\d{1,20})")
Intervals = tuple[tuple[int, int], ...]
"""Inclusive (first, last), ascending, neither touching nor overlapping."""


class Gtid(NamedTuple):
    """One transaction: `sid` is the originating server's UUID, with `:tag` behind it where the GTID is tagged; `domain-server` on
    MariaDB."""

    sid: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Gtid:
        """`uuid:number`, `uuid:tag:number`, or MariaDB's `domain-server-number`. Raises `ValueError`."""
        if gtid := _mariadb(text.strip()):
            return gtid
        sid, _, number = text.strip().lower().rpartition(":")
        uuid, _, tag = sid.partition(":")
        if not _UUID.fullmatch(uuid) or (tag and not _TAG.fullmatch(tag)) or not number.isdigit() or int(number) < 1:
            raise ValueError(f"not a GTID: {text!r}")
        return cls(sid, int(number))

    @property
    def is_mariadb(self) -> bool:
        """Whether it is one of MariaDB's."""
        return _is_line(self.sid)

    def __str__(self) -> str:
        return f"{self.sid}{'-' if self.is_mariadb else ':'}{self.number}"


def _mariadb(text: str) -> Gtid | None:
    """None for what is none of MariaDB's."""
    if not (match := _MARIADB_GTID.fullmatch(text)):
        return None
    domain, server, number = map(int, match.groups())
    if domain >> 32 or server >> 32 or not 1 <= number < 1 << 64:
        return None
    return Gtid(f"{domain}-{server}", number)


def _is_line(sid: str) -> bool:
    return len(sid) < _UUID_LENGTH


def _domain(sid: str) -> str:
    return sid.partition("-")[0]


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
    """A set of transactions, immutable. `sids` maps each sid (uuid, or uuid:tag) to its intervals.

    On MariaDB there is one sid (`domain-server`, of the last transaction) a domain with one interval, from 1 where it is a position.
    Only `subtract` gives lines that begin later; their text does not tell.
    """

    sids: Mapping[str, Intervals]

    @classmethod
    def parse(cls, text: str) -> GtidSet:
        """MySQL's text form, `uuid:1-5:7:tag:1-3,uuid2:9`, or MariaDB's, `0-1-100,1-1-5`. Raises `ValueError`."""
        parts = [part for part in re.sub(r"\s+", "", text).split(",") if part]
        if any(map(_MARIADB_GTID.fullmatch, parts)):
            return cls._parse_lines(parts, text)
        found: dict[str, list[tuple[int, int]]] = {}
        for part in parts:
            uuid, *rest = part.lower().split(":")
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

    @classmethod
    def _parse_lines(cls, parts: Iterable[str], text: str) -> GtidSet:
        found: dict[str, tuple[int, int]] = {}
        for part in parts:
            gtid = _mariadb(part)
            if gtid is None or _domain(gtid.sid) in map(_domain, found):
                raise ValueError(f"not a GTID set: {text!r}")
            found[gtid.sid] = (1, gtid.number)
        return cls(_in_order(found))

    @property
    def is_mariadb(self) -> bool:
        """Whether it has transactions of MariaDB's."""
        return _is_line(next(iter(self.sids), "-" * _UUID_LENGTH))

    @property
    def _lines(self) -> dict[str, tuple[str, int, int]]:
        """Of MariaDB's: the sid of the last transaction, first and last number, by domain."""
        lines: dict[str, tuple[str, int, int]] = {}
        for sid, parts in self.sids.items():
            domain = _domain(sid)
            sid, first, last = max(
                (sid, parts[0][0], parts[-1][1]), lines.get(domain, ("", 0, 0)), key=lambda line: line[2]
            )
            lines[domain] = (sid, first, last)
        return lines

    def __str__(self) -> str:
        """The server's text form, without spaces, sids in order: equal sets give equal texts."""
        if self.is_mariadb:
            return ",".join(f"{sid}-{intervals[-1][1]}" for sid, intervals in self.sids.items())
        return ",".join(
            sid + "".join(f":{a}" if a == b else f":{a}-{b}" for a, b in intervals)
            for sid, intervals in self.sids.items()
        )

    def __bool__(self) -> bool:
        return bool(self.sids)

    def __contains__(self, gtid: Gtid) -> bool:
        if self.is_mariadb and gtid.is_mariadb:
            _, first, last = self._lines.get(_domain(gtid.sid), ("", 1, 0))
            return first <= gtid.number <= last
        return any(a <= gtid.number <= b for a, b in self.sids.get(gtid.sid, ()))

    def __len__(self) -> int:
        """The number of transactions; where MariaDB left numbers out, these too."""
        return sum(b - a + 1 for intervals in self.sids.values() for a, b in intervals)

    def __hash__(self) -> int:
        return hash(str(self))

    def add(self, gtid: Gtid) -> GtidSet:
        """This set and `gtid`; on MariaDB also all before it in its domain."""
        return self.union(GtidSet({gtid.sid: ((gtid.number, gtid.number),)}))

    def without(self, gtid: Gtid) -> GtidSet:
        """What was there before `gtid`, the last one of its server, or of its domain on MariaDB, where it is the same server's number
        before: it need not exist."""
        if not self.is_mariadb or not gtid.is_mariadb:
            return self.subtract(GtidSet({gtid.sid: ((gtid.number, gtid.number),)}))
        lines = {sid: (1, last) for domain, (sid, _, last) in self._lines.items() if domain != _domain(gtid.sid)}
        if gtid.number > 1:
            lines[gtid.sid] = (1, gtid.number - 1)
        return GtidSet(_in_order(lines))

    def followed_by(self, gtids: Iterable[Gtid]) -> GtidSet:
        """This set and the transactions `gtids`, in the log's order. Raises `ValueError` for one of MariaDB's whose number does not
        grow in its domain: which transactions are before it could not be told (`gtid_strict_mode` is off there, or was)."""
        gtids = list(gtids)
        if not any(gtid.is_mariadb for gtid in gtids):
            runs: dict[str, list[tuple[int, int]]] = {}
            for gtid in gtids:
                runs.setdefault(gtid.sid, []).append((gtid.number, gtid.number))
            return self.union(GtidSet({sid: _normal(numbers) for sid, numbers in runs.items()}))
        if not all(gtid.is_mariadb for gtid in gtids) or (self and not self.is_mariadb):
            raise ValueError(_MIXED)
        lines = self._lines
        for gtid in gtids:
            domain = _domain(gtid.sid)
            sid, _, last = lines.get(domain, (gtid.sid, 1, 0))
            if gtid.number <= last:
                raise ValueError(f"{gtid} comes after {sid}-{last}: the numbers of a domain must grow")
            lines[domain] = (gtid.sid, 1, gtid.number)
        return GtidSet(_in_order({sid: (1, last) for sid, _, last in lines.values()}))

    def _kinds_differ(self, other: GtidSet) -> bool:
        return bool(self) and bool(other) and self.is_mariadb != other.is_mariadb

    def union(self, other: GtidSet) -> GtidSet:
        """What is in either. Raises `ValueError` for one of MySQL's and one of MariaDB's."""
        if self._kinds_differ(other):
            raise ValueError(_MIXED)
        if self.is_mariadb or other.is_mariadb:
            last: dict[str, tuple[int, str]] = {}
            for lines in (self._lines, other._lines):
                for domain, (sid, _, number) in lines.items():
                    last[domain] = max(last.get(domain, (0, "")), (number, sid))
            return GtidSet(_in_order({sid: (1, number) for number, sid in last.values()}))
        sids = sorted({*self.sids, *other.sids})
        return GtidSet({sid: _normal((*self.sids.get(sid, ()), *other.sids.get(sid, ()))) for sid in sids})

    def subtract(self, other: GtidSet) -> GtidSet:
        """What is in this one only: on MariaDB what is behind `other` in each domain, whichever server wrote it."""
        if self.is_mariadb and other.is_mariadb:
            lines = other._lines
            rest_of = {
                sid: (max(first, lines[domain][2] + 1) if domain in lines else first, last)
                for domain, (sid, first, last) in self._lines.items()
            }
            return GtidSet(_in_order({sid: line for sid, line in rest_of.items() if line[0] <= line[1]}))
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
        if self.is_mariadb and other.is_mariadb:
            lines = other._lines
            both = {
                min((last, sid), (lines[domain][2], lines[domain][0]))
                for domain, (sid, _, last) in self._lines.items()
                if domain in lines
            }
            return GtidSet(_in_order({sid: (1, last) for last, sid in both}))
        return self.subtract(self.subtract(other))

    def contains(self, other: GtidSet) -> bool:
        """Whether all of `other` is in this one."""
        return not other.subtract(self)


_MIXED = "MySQL's and MariaDB's GTIDs have nothing to do with each other"


def _in_order(lines: Mapping[str, tuple[int, int]]) -> dict[str, Intervals]:
    return {sid: (lines[sid],) for sid in sorted(lines, key=lambda s: tuple(map(int, s.split("-"))))}


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

    def same_log(self, other: BinlogEnd) -> bool:
        """Whether the two have an order: their files have one base name."""
        return self._key[0] == other._key[0]

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
