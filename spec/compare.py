"""Comparing values: source and lake at one position, while writes go on (`docs/values.md`).

The lake follows the stream; some of its rows may have drifted before (`~`), in whatever way: stale, missing, too many. A change with a
whole row image, or a deletion, mends the row that it touches; one that the binary log holds in part (`partial`) is completed from the
drifted row, and does not.

Protocol as checked. A group compares one range of keys by sums:

1. A := capture's place in the stream (the newest commit record's end); wait until the server has made visible all up to A;
2. open one read view, a consistent snapshot; everything that is read of the source in this group is read in it;
3. mark := the end of the binary log, asked after the view was opened;
4. V := the first version of the lake that has passed the mark, or any later one;
5. T := keys that the stream touched in (A, V]; their rows are taken off both sums: the source's as they are in the view, the lake's as at V;
6. the sums of what is left must be equal. Where they are not, the keys that are unlike are suspects; so are those of T.

Suspects are settled in windows of their own, as often as it takes: A and the wait again, a point read of each key, a mark after the last
of them, V behind it. A key that the stream touched in (A, V] stays for the next window; of any other key the verdict is said: a
difference if what was read is not what the lake has at V.

Invariants. *Quiet*: without drift no sums are unlike, at any rate of writes. *No false alarm*: a key that is said to be different is so, at V. *Nothing
missed*: a key that is settled, or was in equal sums and not in T, is the source's at every version from V on unless it was said.

Bounds: keys, transactions, windows of settling; `drift` keys at most; `flavour` as in `source.py`; `whole`: there are no partial changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import source
from checker import Label, main
from source import ABSENT, COUNTED, VISIBLE, WRITTEN, Change, Rows


class G(NamedTuple):
    """The group, or a window of settling."""

    a: int  # -1: not open
    view: Rows | None  # the group's read view; of a window what was read, UNREAD where it was not yet
    mark: int


class S(NamedTuple):
    first: Rows
    drift: tuple[bool, ...]  # at the beginning
    binlog: tuple[Change, ...]
    partial: tuple[bool, ...]
    stage: tuple[int, ...]
    passed: int  # the newest commit record
    merged: int  # the lake's newest version
    windows: int
    group: G
    suspects: tuple[bool, ...] | None  # None: the group is not over
    verdict: tuple[str, ...]  # by key: "" none yet, "equal", "different"
    at: tuple[int, ...]  # V of the verdict
    alarm: bool  # sums were unlike, and nothing had drifted


UNREAD = -9
CLOSED = G(-1, None, -1)

MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no_wait": ("the view is opened without a wait for A", {"whole": 1}),
    "mark_before_view": ("the mark is the end of the binary log before the view is opened", {"whole": 1}),
    "lake_before_mark": ("any version of the lake will do", {"whole": 1}),
    "touched_since_mark": ("T has the keys that were touched after the mark", {"whole": 1}),
    "touched_up_to_mark": ("T has the keys that were touched up to the mark, V is later", {"whole": 1}),
    "no_subtraction": ("T's rows stay in the sums", {"whole": 1}),
    "touched_read_later": ("T's rows of the source are read when T is known, in a view of their own", {"whole": 1}),
    "only_new_keys": ("of a row that moved T has the new key only", {"whole": 1}),
    "touched_are_equal": ("keys of T are no suspects: the stream has written them anyway", {"drift": 1}),
    "settled_at_once": ("a suspect that was touched in its window is judged all the same", {"whole": 1}),
    "settle_mark_early": ("the mark of a settling window is taken before its point reads", {"whole": 1}),
    "settle_no_wait": ("point reads do not wait for A", {"whole": 1}),
    "mariadb_wait_by_gtid": ("the wait asks gtid_binlog_pos", {"flavour": "mariadb", "whole": 1}),
}
BOUNDS = {"keys": 2, "txns": 2, "windows": 2, "drift": 1, "flavour": "mysql", "truncate": 1, "whole": 0}
RUNS: list[dict[str, Any]] = [
    {},
    {"drift": 2, "windows": 1},
    {"txns": 3, "windows": 2, "keys": 1},
    {"keys": 3, "windows": 1, "truncate": 0, "whole": 1},
    {"flavour": "mariadb"},
]


class Compare:
    def __init__(self, mutant: str | None, bounds: dict[str, Any]) -> None:
        self.mutant, self.txns, self.windows = mutant, bounds["txns"], bounds["windows"]
        self.keys, self.drift, self.truncate = range(bounds["keys"]), bounds["drift"], bool(bounds["truncate"])
        self.whole = bool(bounds["whole"])
        self.last = VISIBLE if bounds["flavour"] == "mariadb" else COUNTED
        self.waits = WRITTEN if mutant == "mariadb_wait_by_gtid" else self.last

    def initial(self) -> Iterator[S]:
        none = tuple("" for _ in self.keys)
        for size in range(len(self.keys) + 1):
            for there in combinations(self.keys, size):
                rows = tuple(0 if k in there else ABSENT for k in self.keys)
                for many in range(self.drift + 1):
                    for off in combinations(self.keys, many):
                        drift = tuple(k in off for k in self.keys)
                        yield S(rows, drift, (), (), (), 0, 0, 0, CLOSED, None, none, tuple(-1 for _ in self.keys), False)

    # -- both sides -------------------------------------------------------------------------------------------------------

    def lake(self, s: S, version: int) -> tuple[tuple[int, bool], ...]:
        """Of each key what the source has there at this version, and whether the lake's row is another."""
        rows, drift = source.fold(s.first, s.binlog[:version]), list(s.drift)
        for change, partial in zip(s.binlog[:version], s.partial):
            if not partial:
                for k in self.touched(change):
                    drift[k] = False
        return tuple(zip(rows, drift))

    def touched(self, change: Change, *, new_only: bool = False) -> tuple[int, ...]:
        if change.kind == "truncate":
            return tuple(self.keys)
        return (change.new,) if new_only and change.new >= 0 else change.touched()

    def between(self, s: S, after: int, until: int) -> set[int]:
        new_only = self.mutant == "only_new_keys"
        return {k for c in s.binlog[max(after, 0) : until] for k in self.touched(c, new_only=new_only)}

    # -- steps ------------------------------------------------------------------------------------------------------------

    def steps(self, s: S) -> Iterator[tuple[Label, S]]:
        if self.over(s):
            return
        yield from self.source_steps(s)
        for place in range(s.passed + 1, len(s.binlog) + 1):
            yield f"capture writes up to T{place}", s._replace(passed=place)
        for place in range(s.merged + 1, s.passed + 1):
            yield f"the lake has T{place}", s._replace(merged=place)
        yield from self.group_steps(s) if s.suspects is None else self.settle_steps(s)

    def over(self, s: S) -> bool:
        return s.suspects is not None and not any(s.suspects) or s.windows > self.windows

    def source_steps(self, s: S) -> Iterator[tuple[Label, S]]:
        same = tuple(self.keys)
        if len(s.binlog) < self.txns:
            rows = source.fold(s.first, s.binlog)
            for change in source.possible(rows, 1 + len(s.binlog), same, self.truncate):
                if source.may_write(change, s.binlog, s.stage, same):
                    after = s._replace(binlog=s.binlog + (change,), stage=s.stage + (WRITTEN,))
                    yield ("written:", change), after._replace(partial=s.partial + (False,))
                    if change.kind == "update" and not self.whole:
                        yield ("written in part:", change), after._replace(partial=s.partial + (True,))
        for i, stage in source.advance(s.stage, self.last):
            yield (f"T{i + 1}", "visible" if stage[i] == VISIBLE else "in gtid_executed"), s._replace(stage=stage)

    def waited(self, s: S, mutant: str) -> bool:
        return self.mutant == mutant or all(st >= self.waits for st in s.stage[: s.group.a])

    def group_steps(self, s: S) -> Iterator[tuple[Label, S]]:
        g = s.group
        if g.a < 0:
            yield f"A := {s.passed}", s._replace(group=g._replace(a=s.passed))
        elif self.mutant == "mark_before_view" and g.mark < 0:
            yield f"mark := {len(s.binlog)}", s._replace(group=g._replace(mark=len(s.binlog)))
        elif g.view is None:
            if self.waited(s, "no_wait"):
                yield "view opened", s._replace(group=g._replace(view=source.visible(s.first, s.binlog, s.stage)))
        elif g.mark < 0:
            yield f"mark := {len(s.binlog)}", s._replace(group=g._replace(mark=len(s.binlog)))
        elif s.merged >= g.mark or self.mutant == "lake_before_mark":
            yield f"compared at V = {s.merged}", self.compared(s, s.merged)

    def compared(self, s: S, v: int) -> S:
        g, lake = s.group, self.lake(s, v)
        assert g.view is not None
        since = g.mark if self.mutant == "touched_since_mark" else g.a
        touched = self.between(s, since, min(v, g.mark) if self.mutant == "touched_up_to_mark" else v)
        later = source.visible(s.first, s.binlog, s.stage)
        unlike = set()
        for k in self.keys:
            if k not in touched or self.mutant == "no_subtraction":
                if lake[k][1] or g.view[k] != lake[k][0]:
                    unlike.add(k)
            elif self.mutant == "touched_read_later" and later[k] != g.view[k]:
                unlike.add(k)  # what is left of the source's sum is no row at all
        suspects = unlike | (set() if self.mutant == "touched_are_equal" else touched)
        verdict = tuple("" if k in suspects else "equal" for k in self.keys)
        return s._replace(
            group=CLOSED,
            suspects=tuple(k in suspects for k in self.keys),
            verdict=verdict,
            at=tuple(-1 if k in suspects else v for k in self.keys),
            alarm=bool(unlike) and not any(s.drift),
        )

    def settle_steps(self, s: S) -> Iterator[tuple[Label, S]]:
        g = s.group
        assert s.suspects is not None
        asked = [k for k in self.keys if s.suspects[k]]
        if g.a < 0:
            none = tuple(UNREAD for _ in self.keys)
            yield f"A := {s.passed}, to settle", s._replace(group=G(s.passed, none, -1), windows=s.windows + 1)
            return
        assert g.view is not None
        unread = [k for k in asked if g.view[k] == UNREAD]
        if self.waited(s, "settle_no_wait"):
            seen = source.visible(s.first, s.binlog, s.stage)
            for k in unread:
                view = g.view[:k] + (seen[k],) + g.view[k + 1 :]
                yield f"point read of k{k}", s._replace(group=g._replace(view=view))
        if g.mark < 0 and (not unread or self.mutant == "settle_mark_early"):
            yield f"mark := {len(s.binlog)}", s._replace(group=g._replace(mark=len(s.binlog)))
        if g.mark >= 0 and not unread and (s.merged >= g.mark or self.mutant == "lake_before_mark"):
            yield f"settled at V = {s.merged}", self.settled(s, s.merged)

    def settled(self, s: S, v: int) -> S:
        g, lake = s.group, self.lake(s, v)
        assert g.view is not None and s.suspects is not None
        since = g.mark if self.mutant == "touched_since_mark" else g.a
        touched = set() if self.mutant == "settled_at_once" else self.between(s, since, v)
        suspects, verdict, at = list(s.suspects), list(s.verdict), list(s.at)
        for k in self.keys:
            if s.suspects[k] and k not in touched:
                unlike = lake[k][1] or g.view[k] != lake[k][0]
                suspects[k], verdict[k], at[k] = False, "different" if unlike else "equal", v
        return s._replace(group=CLOSED, suspects=tuple(suspects), verdict=tuple(verdict), at=tuple(at))

    # -- what must hold ---------------------------------------------------------------------------------------------------

    def broken(self, s: S) -> str | None:
        if s.alarm:
            return "sums are unlike, and nothing has drifted"
        for k in self.keys:
            unlike = s.at[k] >= 0 and self.lake(s, s.at[k])[k][1]
            if s.verdict[k] == "different" and not unlike:
                return f"k{k} is said to be different, and is not at {s.at[k]}"
            if s.verdict[k] == "equal" and unlike:
                return f"k{k} is different at {s.at[k]}, and is passed over"
        return None

    def unfinished(self, s: S) -> str | None:
        return None if self.over(s) else "at rest, and the comparison is not over"

    def show(self, s: S) -> str:
        rows = source.render(source.fold(s.first, s.binlog))
        off = ", ".join(f"k{k}" for k in self.keys if self.lake(s, s.merged)[k][1]) or "nothing"
        parts = [f"source {rows} moments [{''.join(' wvc'[st] for st in s.stage)}]", f"passed {s.passed}, lake at {s.merged}, drifted {off}"]
        if s.group.a >= 0:
            read = "" if s.group.view is None else f" read {s.group.view}"
            parts.append(f"A {s.group.a}{read} mark {s.group.mark}")
        if s.suspects is not None:
            parts.append(f"suspects {[k for k in self.keys if s.suspects[k]]} verdicts {list(s.verdict)}")
        return ", ".join(parts)


def build(mutant: str | None, bounds: dict[str, Any]) -> Compare:
    return Compare(mutant, bounds)


if __name__ == "__main__":
    main(__doc__ or "", build, MUTANTS, BOUNDS)
