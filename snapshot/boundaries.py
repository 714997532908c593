"""Where a table is cut into parts of about equal numbers of rows, for a key of any type and distribution.

The key's range is halved by values: a value about half-way between two keys, and the key that the server has next to it, is a cut.
What lies on either side, the server estimates from its index, as it does for every query. The heaviest part is cut again until there are
enough. Every statement reads one row of the index or none at all, and any cut is right: only how evenly they lie depends on the
guesses.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pymysql.connections import Connection
from pymysql.cursors import Cursor

from cdc.errors import TableStoppedError
from cdc.schema import TableSchema
from cdc.source import results
from cdc.source.connection import translated
from snapshot.between import between
from snapshot.chunks import MEMBERS_LISTED, Bound, Part, Walk

ATTEMPTS = 8
"""Guesses at one part before it is left whole."""
TYPES_WITH_WAYS = frozenset({"text", "double", "float"})
"""Those that `between` has more than one guess for."""
WAYS = 3
"""Of them are compared at most."""
LOPSIDED = 8
"""A cut that leaves less than one part in so many on a side is compared with other guesses."""
FINER = 2
"""Parts are cut until the heaviest has at most so many times a finer share; small neighbours are joined afterwards."""
STATEMENTS_PER_PART = 16
STATEMENTS_LEAST = 100


@dataclass(frozen=True, order=True)
class _Segment:
    """A part that may be cut again: `low` and `high` as a part's; `first` and `last` are keys between which it may be. Heaviest first."""

    order: int
    """Less its rows."""
    number: int
    low: Bound | None
    high: Bound | None
    first: Bound
    last: Bound

    @property
    def rows(self) -> int:
        return -self.order


class Boundaries:
    """Cuts one table. `check` is called before each statement, and may raise to end it."""

    def __init__(self, connection: Connection[Any], walk: Walk, check: Callable[[], None] = lambda: None) -> None:
        schema, key = walk.schema, walk.schema.key
        columns = {c.name: c for c in schema.columns}
        overrides = {name: of for name, of in schema.overrides.items() if name in key}
        self._keys = Walk(walk.table, TableSchema(tuple(columns[name] for name in key), key, overrides))
        self.connection = connection
        self._check = check
        self._by_code: tuple[bool, ...] = ()
        self._numbers = itertools.count()
        self.statements = 0
        """How many the server was asked."""

    def parts(self, wanted: Callable[[int], int]) -> list[Part]:
        """Parts, in order, that together have every key there is: `wanted`, told about how many rows the table has, says how many."""
        first, last = self._edge([]), self._edge([], descending=True)
        if first is None or last is None:
            return [Part(0)]
        whole = self._segment(None, None, first, last)
        number = wanted(whole.rows)
        if number <= 1 or first == last or not self._can_be_cut():
            return [Part(0, rows=whole.rows)]
        segments = self._cut(whole, number)
        edges = _joined(segments, number)
        # The parts alone are thought to have up to twice as many rows as there are: so InnoDB reckons.
        ratio = min(1.0, whole.rows / max(1, sum(rows for _, _, rows in edges)))
        return [Part(n, low, high, round(rows * ratio)) for n, (low, high, rows) in enumerate(edges)]

    def halves(self, after: Bound | None, high: Bound | None) -> tuple[Bound, int, int] | None:
        """A key that cuts what lies behind `after`, up to `high`, in two, and about how many rows are on either side; None where none is
        found."""
        inside = [self._keys.beyond(after, ">", included=False)] if after is not None else []
        inside += [self._keys.beyond(high, "<", included=True)] if high is not None else []
        if not self._can_be_cut():
            return None
        first, last = self._edge(inside), self._edge(inside, descending=True)
        if first is None or last is None or first == last:
            return None
        whole = self._segment(after, high, first, last)
        self.statements = 0
        segments = _in_order(self._cut(whole, 2), after)
        if len(segments) == 1:
            # Where the estimates say nothing, a cut by the values alone is better than none.
            segments = list(self._halves(whole) or segments)
        before, rows = 0, sum(s.rows for s in segments)
        found: tuple[Bound, int, int] | None = None
        for segment in segments[:-1]:
            before += segment.rows
            assert segment.high is not None
            if found is None or abs(2 * before - rows) < abs(2 * found[1] - rows):
                found = segment.high, before, rows - before
        return found

    def _can_be_cut(self) -> bool:
        """Whether the server can look a key up in its index."""
        first = self._keys.key[0]
        if first.type == "set" or (first.type == "enum" and len(first.members) > MEMBERS_LISTED):
            return False
        table = self._keys.table
        found = self._ask(
            "SELECT s.COLUMN_NAME, s.SUB_PART, c.COLLATION_NAME FROM information_schema.STATISTICS s"
            " JOIN information_schema.COLUMNS c USING (TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME)"
            " WHERE s.TABLE_SCHEMA = %s AND s.TABLE_NAME = %s AND s.INDEX_NAME = 'PRIMARY' ORDER BY s.SEQ_IN_INDEX",
            (table.schema, table.name),
        )
        self._by_code = tuple(str(row["COLLATION_NAME"] or "").endswith("_bin") for row in found)
        return len(found) == len(self._keys.key) and all(row["SUB_PART"] is None for row in found)

    def _cut(self, whole: _Segment, wanted: int) -> list[_Segment]:
        heap, done = [whole], list[_Segment]()
        limit = max(STATEMENTS_LEAST, STATEMENTS_PER_PART * wanted)
        while heap:
            heaviest = heapq.heappop(heap)
            rows = heaviest.rows + sum(s.rows for s in (*heap, *done))
            if self.statements > limit or heaviest.rows * wanted * FINER <= rows or heaviest.rows <= 1:
                return [heaviest, *heap, *done]
            halves = self._halves(heaviest)
            if halves:
                for half in halves:
                    heapq.heappush(heap, half)
            else:
                done.append(heaviest)
        return done

    def _halves(self, segment: _Segment) -> tuple[_Segment, _Segment] | None:
        """The two sides of a cut; None if none is found."""
        first, last = segment.first, segment.last
        best: tuple[_Segment, _Segment] | None = None
        way = shrunk = 0
        for _ in range(ATTEMPTS):
            inside = [self._keys.beyond(first, ">", included=False), self._keys.beyond(last, "<", included=False)]
            place = next((n for n, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), None)
            if place is None:
                break
            column = self._keys.key[place]
            cell = between(column, first[place], last[place], by_code=self._by_code[place], attempt=way)
            if cell is None:
                # Nothing lies between the values of this column: the cut is at the end of the first one's rows.
                cut = self._edge([*inside, self._keys.begins(first[: place + 1])], descending=True)
                if cut is None:
                    following = self._edge(inside)
                    if following is None:
                        break
                    first = following
                    continue
            else:
                probe = (*first[:place], cell)
                cut = self._edge([*inside, self._keys.beyond(probe, ">", included=True)])
                if cut is None:
                    # All of it lies before the value that was guessed, but for its last key.
                    preceding = self._edge(inside, descending=True)
                    if preceding is None:
                        break
                    last = preceding
                    way += shrunk > 0  # twice: it is rather the guesses that lie beyond all keys
                    shrunk += 1
                    continue
            halves = (
                self._segment(segment.low, cut, first, cut),
                self._segment(cut, segment.high, cut, last),
            )
            if best is None or _smaller(halves) > _smaller(best):
                best = halves
            way += 1
            if way == WAYS or column.type not in TYPES_WITH_WAYS or _smaller(best) * LOPSIDED >= segment.rows:
                break
        return best

    def _segment(self, low: Bound | None, high: Bound | None, first: Bound, last: Bound) -> _Segment:
        sql, arguments = self._keys.weighed(low, high)
        (found, *_) = self._ask(sql, arguments)
        return _Segment(-int(found["rows"] or 0), next(self._numbers), low, high, first, last)

    def _edge(self, conditions: Sequence[tuple[str, tuple[object, ...]]], *, descending: bool = False) -> Bound | None:
        self._count()
        keys = self._keys
        found = results.read(
            self.connection, lambda text: keys.edge(conditions, descending=descending, text=text), keys.plans()
        )
        try:
            return next((keys.bound(batch) for batch in list(found)), None)
        except TableStoppedError as error:
            where = error.where or str(keys.table)
            raise TableStoppedError(error.what, where=where, hint=error.hint) from None

    def _ask(self, sql: str, arguments: tuple[object, ...]) -> list[dict[str, Any]]:
        self._count()
        with translated(self.connection), self.connection.cursor(Cursor) as cursor:
            cursor.execute(sql, arguments)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _count(self) -> None:
        self._check()
        self.statements += 1


def _smaller(halves: tuple[_Segment, _Segment]) -> int:
    return min(half.rows for half in halves)


def _joined(segments: Sequence[_Segment], wanted: int) -> list[tuple[Bound | None, Bound | None, int]]:
    """Neighbours joined into about `wanted` parts."""
    share = sum(s.rows for s in segments) / wanted
    joined: list[tuple[Bound | None, Bound | None, int]] = []
    for segment in _in_order(segments, None):
        if joined and joined[-1][2] + segment.rows / 2 <= share:
            joined[-1] = (joined[-1][0], segment.high, joined[-1][2] + segment.rows)
        else:
            joined.append((segment.low, segment.high, segment.rows))
    return joined


def _in_order(segments: Sequence[_Segment], low: Bound | None) -> list[_Segment]:
    """From the one that begins at `low`; which are neighbours, their bounds say."""
    by_low = {s.low: s for s in segments}
    ordered = [by_low[low]]
    while len(ordered) < len(segments):
        ordered.append(by_low[ordered[-1].high])
    return ordered
