"""Keys of which the sums say nothing, or that they are unlike: each is read again on both sides until it is settled.

A window of settling is a window as in `reconcile.windows`, with point reads in it. A key that the stream did not touch in the window has,
in that version of the lake, exactly the row that was read, or the two differ. A key that was touched waits for the next window. A key
that never rests is settled by its history: the lake must have its last image in the log, and what was read must be one of its images in
the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cdc._native import json_patch
from cdc.epoch import EpochId, Op
from cdc.lake.deltalog import Applied
from cdc.log.codec import UNKNOWN, WIDTH, Changes, Incomplete
from cdc.schema import TableSchema
from cdc.source import canonical
from reconcile.values import keynames
from reconcile.values.compared import Compared
from reconcile.values.found import Difference
from reconcile.values.keysets import among, unlike
from reconcile.values.lakeside import LakeSide
from reconcile.values.sources import Rows, SourceSide
from reconcile.values.windows import Closing, Windows

WINDOWS = 20
"""A key that changes all the time is read again so often, then reported as not settled."""
DIGEST_WINDOWS = 3
"""So many windows compare digests alone, where there are more keys than …"""
FEW = 1_000
"""… this: their rows are read in full at once."""
TEXT_KEYS = 20_000
"""Rows that are held in full at once."""

_DATE = len("2026-01-31")

Texts = tuple[bytes | None, ...]
"""One row's canonical texts."""
_Key = tuple[Any, ...]


@dataclass
class Verdicts:
    """What settling came to. `settled` keys have a verdict, `unsettled` ones none."""

    settled: int = 0
    unsettled: int = 0
    differences: list[Difference] = field(default_factory=list)
    keys: list[_Key] = field(default_factory=list)
    """Of the differences, one for each."""
    closing: Closing | None = None
    """Of the last window."""


class Settling:
    """Settles keys of one table. Uses the connection of `windows`, outside of any transaction."""

    def __init__(
        self, compared: Compared, source: SourceSide, lake: LakeSide, windows: Windows, *, show_values: bool
    ) -> None:
        self._compared, self._source, self._lake, self._windows = compared, source, lake, windows
        self._schema: TableSchema = compared.schema
        self._show = show_values
        names = {c.name for c in compared.columns}
        self._judged = [n for n, c in enumerate(self._schema.columns) if c.name in names]
        self._times = _times(compared)

    def settle(self, suspects: pa.Table) -> Verdicts:
        """Settle these keys. Raises as `Windows`."""
        found = Verdicts()
        for _ in range(DIGEST_WINDOWS):
            if suspects.num_rows <= FEW:
                break
            suspects = self._by_digest(suspects, found)
        for start in range(0, suspects.num_rows, TEXT_KEYS):
            _InFull(self, suspects.slice(start, TEXT_KEYS), found).run()
        return found

    def _by_digest(self, suspects: pa.Table, found: Verdicts) -> pa.Table:
        """Those that are not settled by their digests: they differ, or were touched."""
        opening = self._windows.open()
        source = self._source.digests_of(suspects)
        closing = found.closing = self._windows.close(opening, self._windows.mark(), self._compared)
        lake = self._lake.digests_of(closing.snapshot, suspects)
        differ = unlike(source, lake, self._compared.key)
        left = suspects.filter(pa.array(closing.moved(suspects) | among(suspects, differ)))
        found.settled += suspects.num_rows - left.num_rows
        return left

    # -- one key -------------------------------------------------------------------------------------------------------

    def same(self, one: Sequence[Texts], other: Sequence[Texts]) -> bool:
        """Whether rows are the same, as far as they are compared."""
        return [self._part(row) for row in one] == [self._part(row) for row in other]

    def _part(self, row: Texts) -> Texts:
        return tuple(row[n] for n in self._judged)

    def difference(self, name: str, source: list[Texts], lake: list[Texts]) -> Difference | None:
        """What is to be said of a key that was not touched: `lake` are all rows that have it there."""
        if not any(map(self._is_timely, (*source, *lake))):
            return None
        if len(lake) > 1:
            return Difference(name, f"{len(lake)} times in the lake", (), self._shown(lake), self._shown(source))
        if self.same(source, lake):
            return None
        if not source or not lake:
            kind = "extra in the lake" if not source else "missing in the lake"
            return Difference(name, kind, (), self._shown(lake), self._shown(source))
        columns = [n for n in self._judged if source[0][n] != lake[0][n]]
        names = tuple(self._schema.names[n] for n in columns)
        return Difference(name, "different", names, self._shown(lake, columns), self._shown(source, columns))

    def _shown(self, rows: Sequence[Texts], columns: Sequence[int] | None = None) -> Mapping[str, str | None] | None:
        if not self._show or not rows:
            return None
        (row, *_) = rows
        wanted = self._judged if columns is None else columns
        return {self._schema.names[n]: _text(row[n]) for n in wanted}

    def _is_timely(self, row: Texts) -> bool:
        if self._times is None:
            return True
        place, low, high = self._times
        value = row[place]
        if value is None:
            return False
        return low <= (value + b" 00:00:00.000000" if len(value) == _DATE else value) < high


class _InFull:
    """Some keys, with whole rows, window after window."""

    def __init__(self, settling: Settling, suspects: pa.Table, found: Verdicts) -> None:
        self._of, self._suspects, self._found = settling, suspects, found
        self._compared, self._schema, self._key = settling._compared, settling._schema, settling._compared.key
        self._last: EpochId | None = None
        self._last_lake: dict[_Key, list[Texts]] = {}

    def run(self) -> None:
        """Until all are settled, or there were enough windows."""
        windows = self._of._windows
        for _ in range(WINDOWS):
            if not self._suspects.num_rows:
                return
            opening = windows.open()
            source = _by_key(self._of._source.texts_of(self._suspects))
            self._judge(source, windows.close(opening, windows.mark(), self._compared))
        self._found.unsettled += self._suspects.num_rows

    def _judge(self, sources: dict[_Key, list[Texts]], closing: Closing) -> None:
        """Judge the suspects; those of which nothing can be said yet stay."""
        found, of = self._found, self._of
        lakes = _by_key(of._lake.texts_of(closing.snapshot, self._suspects))
        moved = closing.moved(self._suspects)
        keys = [tuple(row.values()) for row in self._suspects.to_pylist()]
        restless = {key for key, was in zip(keys, moved, strict=True) if was}
        images = self._images(closing.applied, restless) if self._last else {}
        named = keynames.names(self._schema, self._suspects)
        left = np.zeros(len(keys), np.bool_)
        for n, key in enumerate(keys):
            source, lake = sources.get(key, []), lakes.get(key, [])
            if not moved[n]:
                found.settled += 1
                if difference := of.difference(named[n], source, lake):
                    found.differences.append(difference)
                    found.keys.append(key)
            elif key in images and self._is_in_history(key, source, lake, images[key]):
                found.settled += 1
            else:
                left[n] = True
        self._suspects = self._suspects.filter(pa.array(left))
        self._last, self._last_lake = closing.applied.epoch, lakes
        found.closing = closing

    # -- history -------------------------------------------------------------------------------------------------------

    def _is_in_history(
        self, key: _Key, source: list[Texts], lake: list[Texts], images: Sequence[Sequence[Texts]]
    ) -> bool:
        """Of a key that never rests: the lake has the last image of the log, and the source had one that the log knows."""
        history = [self._last_lake.get(key, []), *images]
        same = self._of.same
        return same(lake, history[-1]) and any(same(source, image) for image in history)

    def _images(self, applied: Applied, keys: set[_Key]) -> dict[_Key, list[list[Texts]]]:
        """What these keys were, one after the other, from the window before to this one's closing; without those of which the log does not
        say it all."""
        found: dict[_Key, list[list[Texts]]] = {}
        unknown: set[_Key] = set()
        assert self._last is not None
        for changes in self._compared.changes(self._last, applied):
            operations = changes.batch.column(0).to_pylist()
            columns = changes.batch.columns[WIDTH : WIDTH + len(self._schema.columns)]
            names = zip(*(columns[self._schema.names.index(k)].to_pylist() for k in self._key), strict=True)
            texts = [
                canonical.texts(c, a, changes.unfit).cast(pa.binary())
                for c, a in zip(self._schema.columns, columns, strict=True)
            ]
            given = _Given.of(changes, self._schema)
            for n, key in enumerate(names):
                if operations[n] == Op.TRUNCATE:
                    for one in keys:
                        if one[0] == key[0]:
                            found.setdefault(one, []).append([])
                elif key in keys:
                    gone = operations[n] in (Op.DELETE, Op.MOVE_OUT)
                    image: list[Texts] = [] if gone else [tuple(t[n].as_py() for t in texts)]
                    if image and given is not None and not given.is_whole(n):
                        history = found.get(key) or [self._last_lake.get(key, [])]
                        made = given.completed(n, image[0], history[-1])
                        if made is None:
                            unknown.add(key)
                        image = [made or image[0]]
                    found.setdefault(key, []).append(image)
        return {key: history for key, history in found.items() if key not in unknown}


class _Given:
    """What changes of which some are incomplete have of their rows."""

    def __init__(self, changes: Changes, incomplete: Incomplete, width: int) -> None:
        self._known = incomplete.known(width)
        self._diffs = incomplete.diffs
        batch = changes.batch
        gids = list(zip(*(batch.column(n).to_pylist() for n in (1, 2, 3)), strict=True))
        ops = batch.column(0).to_pylist()
        out = {gid for gid, op in zip(gids, ops, strict=True) if op == Op.MOVE_OUT}
        self._follows = [op == Op.UPDATE and gid not in out for gid, op in zip(gids, ops, strict=True)]

    @classmethod
    def of(cls, changes: Changes, schema: TableSchema) -> _Given | None:
        incomplete = changes.incomplete
        return None if incomplete is None else cls(changes, incomplete, len(schema.columns))

    def is_whole(self, n: int) -> bool:
        return bool(self._known[n].all())

    def completed(self, n: int, image: Texts, before: Sequence[Texts]) -> Texts | None:
        """A row with the values of the one before it under the same key; None: they are not the same row's, or not known."""
        if not self._follows[n] or len(before) != 1:
            return None
        made = [new if known else old for new, old, known in zip(image, before[0], self._known[n], strict=True)]
        for diff in self._diffs[n].as_py():
            old = made[diff["column"]]
            text = None if old is None or diff["op"] == UNKNOWN else json_patch(old.decode(), [_patch(diff)])
            if text is None:
                return None
            made[diff["column"]] = text.encode()
        return tuple(made)


def _patch(diff: dict[str, Any]) -> tuple[int, str, str | None]:
    return diff["op"], diff["path"], diff["value"]


def _by_key(rows: Iterable[Rows]) -> dict[_Key, list[Texts]]:
    """For each key the canonical texts of every row that has it."""
    found: dict[_Key, list[Texts]] = {}
    for keys, texts in rows:
        cells = zip(*(t.cast(pa.binary()).to_pylist() for t in texts), strict=True)
        for key, row in zip(keys.to_pylist(), cells, strict=True):
            found.setdefault(tuple(key.values()), []).append(row)
    return found


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="backslashreplace")


def _times(compared: Compared) -> tuple[int, bytes, bytes] | None:
    """The place of the scope's column of times, and its edges as texts, whose order is that of times."""
    if compared.timed is None or compared.scope.between is None:
        return None
    edges = [str(pa.scalar(e).cast(pa.timestamp("us")).cast(pa.string())).encode() for e in compared.scope.between[1:]]
    low, high = edges
    return compared.schema.names.index(compared.timed.name), low, high
