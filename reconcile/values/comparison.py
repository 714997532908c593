"""The comparison of one table from its beginning to its end: how it is divided, group after group, what is kept to go on later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cdc.errors import ConfigError, NotFollowingError, SourceError
from cdc.names import TableName
from reconcile.values import keynames
from reconcile.values.checksums import CHUNK_ROWS, READ_S, Group, Outcome, Span
from reconcile.values.compared import Compared
from reconcile.values.division import CELL_ROWS, Buckets, Cells, Division, Range, is_ordered, sorted_keys, strips
from reconcile.values.found import Difference, TableValues, UnlikeRange
from reconcile.values.lakeside import LakeSide
from reconcile.values.scope import Checkpoint
from reconcile.values.settling import Settling, Verdicts
from reconcile.values.sources import Part, SourceSide, parts_of
from reconcile.values.turns import Turns
from reconcile.values.windows import Closing, Windows
from snapshot.boundaries import Boundaries
from snapshot.chunks import Bound, bound_from_json, bound_to_json
from snapshot.throttle import Throttle

DIFFERENCES_KEPT = 1000
"""Of those that a report names."""
KEYS_MOST = 100_000
"""If more keys differ, the comparison names no more of them, and says in which ranges there are more."""
SPEED = 300_000
"""Rows that a server adds up in a second, before it is known."""
SAMPLED = 8
"""Keys of a cell that are looked at to find where it begins."""
IDLE_GROUPS = 20
"""So many groups may come to nothing, one after the other: shards that are truncated again and again."""
_FORMAT = 2


@dataclass
class Tally:
    """What was counted and found of one table so far."""

    source_rows: int = 0
    lake_rows: int = 0
    settled: int = 0
    unsettled: int = 0
    chunks: int = 0
    chunks_unlike: int = 0
    rows_in_full: int = 0
    certain: int = 0
    """Rows that differ and are not named."""
    differences: list[Difference] = field(default_factory=list)
    keys: list[tuple[Any, ...]] = field(default_factory=list)
    """Of the differences. One with NULL in it is no key of the source's."""
    ranges: list[UnlikeRange] = field(default_factory=list)
    sampled: float | None = None
    epoch: int = 0
    version: int = -1
    position: str = ""

    def judged(self, found: Verdicts) -> None:
        """Add what settling came to."""
        self.settled += found.settled
        self.unsettled += found.unsettled
        known = set(self.keys)
        for difference, key in zip(found.differences, found.keys, strict=True):
            if key not in known:  # a key may be in two groups
                self.differences.append(difference)
                self.keys.append(key)
        if found.closing is not None:
            self._closed(found.closing)

    def grouped(self, outcome: Outcome) -> None:
        """Add what a group came to."""
        self.source_rows += outcome.source_rows
        self.lake_rows += outcome.lake_rows
        self.chunks += outcome.chunks
        self.chunks_unlike += outcome.unlike
        self.certain += outcome.certain
        self.ranges += outcome.ranges
        self._closed(outcome.closing)

    def _closed(self, closing: Closing) -> None:
        self.epoch, self.version = closing.applied.epoch.number, closing.snapshot.version
        self.position = str(closing.applied.position)

    def report(self, compared: Compared, *, seconds: float = 0.0, note: str = "") -> TableValues:
        """What came of it."""
        scope = compared.scope
        named = [dict(zip(compared.key, key, strict=True)) for key in self.keys if None not in key]
        found = pa.Table.from_pylist(named, compared.key_schema)
        words = ["a range of keys"] if scope.low is not None or scope.high is not None else []
        if scope.between is not None:
            words.append("rows with {} from {} to before {}".format(*scope.between))
        return TableValues(
            str(compared.table),
            self.epoch,
            self.source_rows,
            self.lake_rows,
            self.settled,
            self.unsettled,
            len(self.differences) + self.certain,
            tuple(self.differences[:DIFFERENCES_KEPT]),
            note,
            checked_rows=self.source_rows,
            chunks=self.chunks,
            chunks_unlike=self.chunks_unlike,
            rows_in_full=self.rows_in_full,
            version=self.version,
            position=self.position,
            sampled=self.sampled,
            columns=scope.columns,
            range=", ".join(words),
            complete=not self.ranges,
            seconds=round(seconds, 3),
            found=found,
            unlike_ranges=tuple(self.ranges),
        )

    _COUNTS = ("source_rows", "lake_rows", "settled", "unsettled", "chunks", "chunks_unlike", "rows_in_full", "certain")

    def to_dict(self, compared: Compared) -> dict[str, Any]:
        """For a checkpoint. Keys with NULL in them, which nothing can be asked for by, it does not have."""
        named = [n for n, key in enumerate(self.keys) if None not in key]
        rows = [dict(zip(compared.key, self.keys[n], strict=True)) for n in named]
        keys = compared.written(pa.Table.from_pylist(rows, compared.key_schema)) if rows else []
        found = [(key, self.differences[n]) for key, n in zip(keys, named, strict=True)]
        return {
            "counts": {name: getattr(self, name) for name in self._COUNTS},
            "at": [self.epoch, self.version, self.position],
            "sampled": self.sampled,
            "found": [[list(key), d.key, d.kind, list(d.columns)] for key, d in found],
            "null": [[d.key, d.kind] for key, d in zip(self.keys, self.differences, strict=True) if None in key],
            "ranges": [[r.table.id, r.low and list(r.low), r.high and list(r.high)] for r in self.ranges],
        }

    @classmethod
    def from_dict(cls, compared: Compared, data: dict[str, Any]) -> Tally:
        """What `to_dict` gave."""
        epoch, version, position = data["at"]
        tally = cls(**data["counts"], sampled=data["sampled"], epoch=epoch, version=version, position=position)
        found = data["found"]
        if found:
            tally.keys = [tuple(row.values()) for row in compared.typed([tuple(key) for key, *_ in found]).to_pylist()]
            tally.differences = [Difference(name, kind, tuple(columns)) for _, name, kind, columns in found]
        for name, kind in data["null"]:
            tally.keys.append((None, name))
            tally.differences.append(Difference(name, kind))
        tally.ranges = [
            UnlikeRange(TableName.from_id(table), low and tuple(low), high and tuple(high))
            for table, low, high in data["ranges"]
        ]
        return tally


@dataclass(frozen=True)
class _Rest:
    """A range that a comparison before this one had not done: from `low` on, before `high`."""

    table: str
    low: Bound | None
    high: Bound | None


class Comparison:
    """One table. `step` does one group; after each one the checkpoint has what is done."""

    def __init__(
        self,
        compared: Compared,
        throttle: Throttle,
        turns: Turns,
        checkpoint: Checkpoint | None,
        *,
        show_values: bool,
    ) -> None:
        self._compared, self._throttle, self._turns, self._checkpoint = compared, throttle, turns, checkpoint
        self._show_values = show_values
        self._parts = parts_of(compared)
        self._lake = LakeSide(compared, self._parts)
        self._divisions: dict[Part, Division] = {}
        self._cell_rows: dict[Part, float] = {}
        self._speed = float(SPEED)
        self._pending: list[Span] | None = None
        self._idle = 0
        self._tally = Tally()
        self._rest = self._load()
        self._check()

    def _check(self) -> None:
        scope = self._compared.scope
        for part in self._parts:
            if (scope.low is not None or scope.high is not None) and not is_ordered(part.schema):
                raise ConfigError(
                    "a range of keys whose order only the server knows",
                    where=str(self._compared.table),
                    hint="compare all of it, a sample, or the rows of a time (--between)",
                )

    @property
    def is_over(self) -> bool:
        """Whether all of it was compared."""
        return (self._pending is not None and not self._pending) or self._rest == []

    def step(self, windows: Windows, told: Callable[[int], None]) -> None:
        """One group, and the settling of what it leaves in doubt. Raises as these do."""
        source = SourceSide(windows.connection, self._compared)
        if self._pending is None:
            self._divide(source)
        assert self._pending is not None
        spans, later = self._planned(self._pending)
        before = self._tally.source_rows
        group = Group(
            self._compared,
            source,
            self._lake,
            windows,
            self._throttle,
            self._turns,
            self._divisions,
            self._cell_rows,
            KEYS_MOST - len(self._tally.keys) - self._tally.certain,
            lambda rows: told(before + rows),
        )
        outcome = group.run(spans)
        settling = Settling(self._compared, source, self._lake, windows, show_values=self._show_values)
        verdicts = settling.settle(outcome.suspects)
        self._tally.grouped(outcome)
        self._tally.judged(verdicts)
        self._tally.judged(self._strays(outcome.closing))
        self._tally.rows_in_full += source.in_full
        if outcome.certain and outcome.named and not self._tally.differences and not verdicts.unsettled:
            raise SourceError(
                "rows have other digests in the server than in the lake, and are the same",
                where=str(self._compared.table),
                hint="this is a mistake in lakesync: please report it, with the types of the table's columns",
            )
        self._pending = [*outcome.left, *later]
        self._idle = 0 if outcome.done else self._idle + 1
        self._measured(outcome)
        self._save()
        if self._idle > IDLE_GROUPS:
            raise NotFollowingError(
                "its shards are truncated again and again", where=str(self._compared.table), hint="try again later"
            )

    def _measured(self, outcome: Outcome) -> None:
        if outcome.read_s and outcome.source_rows:
            self._speed = outcome.source_rows / outcome.read_s

    def report(self, seconds: float) -> TableValues:
        """What came of it."""
        return self._tally.report(self._compared, seconds=seconds)

    # -- how it is divided ---------------------------------------------------------------------------------------------

    def _divide(self, source: SourceSide) -> None:
        compared = self._compared
        # Other tables may have taken hours until now, and files of old versions go.
        snapshot = compared.lake.refresh(compared.snapshot)
        compared.must_be_as_it_was(snapshot)
        sampled = self._lake.sample(snapshot, max(1, CELL_ROWS // SAMPLED))
        spans: list[Span] = []
        cells = chosen = 0
        for part in self._parts:
            edges = self._edges(part)
            if edges is None:
                continue
            keys, count = sampled[part]
            estimate = source.estimate(part, Range())
            if not is_ordered(part.schema):
                division: Division = Buckets.for_rows(part.walk.key, max(count, estimate))
            else:
                bounds = [sorted_keys(keys)]
                bounds = [bounds[0].take(np.arange(SAMPLED - 1, bounds[0].num_rows, SAMPLED))]
                if estimate > 2 * count + 10 * CELL_ROWS:
                    bounds.append(_by_estimates(source, part))
                bounds += self._rest_edges(part)
                division = Cells(part.walk, pa.concat_tables(bounds), *edges)
            self._divisions[part] = division
            self._cell_rows[part] = max(1.0, max(count, estimate) / division.count)
            cells += division.count
            if self._rest is not None:
                of_part = self._rest_spans(part, division)
            else:
                of_part = [
                    Span(part, a, b) for a, b in strips(division.count, compared.scope.sample, compared.scope.turn)
                ]
            chosen += sum(s.last - s.first for s in of_part)
            spans += of_part
        if self._parts and not self._divisions:
            raise self._nothing()
        if compared.scope.sample is not None and self._rest is None:
            self._tally.sampled = round(chosen / max(1, cells), 4)
        self._pending = spans

    def _edges(self, part: Part) -> tuple[Bound | None, Bound | None] | None:
        """The scope's own range in a part; None: nothing of it is in there."""
        scope = self._compared.scope
        found: list[Bound | None] = []
        for key, below in ((scope.low, True), (scope.high, False)):
            if key is None:
                found.append(None)
                continue
            own = key
            if part.shard is not None:
                if str(key[0]) != part.shard:
                    if (str(key[0]).encode() > part.shard.encode()) == below:
                        return None
                    found.append(None)
                    continue
                own = key[1:]
            try:
                found.append(part.walk.bound_of([str(cell) for cell in own]))
            except (ValueError, IndexError) as error:
                raise ConfigError(
                    "not a key of the table", where=str(self._compared.table), hint="see the types of its key"
                ) from error
        low, high = found
        if (
            low is not None
            and high is not None
            and not part.walk.within(part.walk.keys_of([low]), None, high)[0].as_py()
        ):
            raise self._nothing()
        return low, high

    def _nothing(self) -> ConfigError:
        return ConfigError(
            "nothing is between",
            where=f"{self._compared.table}: --from, --to",
            hint="the smaller key first; both are included",
        )

    def _planned(self, pending: list[Span]) -> tuple[list[Span], list[Span]]:
        """What one group may get done, and the rest."""
        most = READ_S * self._speed
        limit = self._compared.config.snapshot.rows_per_second
        if limit is not None:
            most = min(most, READ_S * limit)
        now: list[Span] = []
        later: list[Span] = []
        for n, span in enumerate(pending):
            if isinstance(self._divisions[span.part], Buckets):
                # They are all over the table: no group has anything else besides.
                return ([span], pending[1:]) if not now else (now, [*later, *pending[n:]])
            cells = int(most / self._cell_rows[span.part])
            if now and cells <= 0:
                return now, [*later, *pending[n:]]
            end = min(span.last, span.first + max(1, cells))
            now.append(Span(span.part, span.first, end))
            most -= (end - span.first) * self._cell_rows[span.part]
            if end < span.last:
                later.append(Span(span.part, end, span.last))
        return now, later

    def _strays(self, closing: Closing) -> Verdicts:
        found = Verdicts()
        strays = self._lake.strays
        moved = closing.moved(strays)
        named = keynames.names(self._compared.schema, strays)
        for row, name, was in zip(strays.to_pylist(), named, moved, strict=True):
            if not was and len(found.keys) < KEYS_MOST:
                found.differences.append(Difference(name, "extra in the lake"))
                # Of a key with NULL there is no more than its name: it is kept so between two sittings, and counted once.
                found.keys.append((None, name) if None in row.values() else tuple(row.values()))
        return found

    # -- to go on later ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._checkpoint is None or self._pending is None:
            return
        rest = []
        for span in self._pending:
            division = self._divisions[span.part]
            low = high = None
            if isinstance(division, Cells):
                low = division.bound(span.first - 1) if span.first else None
                high = division.bound(span.last - 1) if span.last < division.count else None
            rest.append([span.part.table.id, bound_to_json(low), bound_to_json(high)])
        saved = {"v": _FORMAT, "of": self._identity(), "rest": rest, **self._tally.to_dict(self._compared)}
        self._checkpoint.save(str(self._compared.table), saved)

    def _load(self) -> list[_Rest] | None:
        saved = self._checkpoint.load(str(self._compared.table)) if self._checkpoint else None
        if not saved or saved.get("v") != _FORMAT or saved.get("of") != self._identity():
            return None
        self._tally = Tally.from_dict(self._compared, saved)
        return [_Rest(table, bound_from_json(low), bound_from_json(high)) for table, low, high in saved["rest"]]

    def _identity(self) -> dict[str, Any]:
        """Of what was compared; another one is not gone on with."""
        compared = self._compared
        return {
            "log": compared.log.uuid,
            "schema": compared.schema.hash,
            "lake": str(compared.snapshot.metadata.get("id")),
            "scope": compared.scope.to_dict(),
            "parts": [part.table.id for part in self._parts],
        }

    def _rest_edges(self, part: Part) -> list[pa.Table]:
        found = [b for r in self._rest or () if r.table == part.table.id for b in (r.low, r.high) if b is not None]
        return [part.walk.keys_of(found)] if found else []

    def _rest_spans(self, part: Part, division: Division) -> list[Span]:
        found = []
        for rest in self._rest or ():
            if rest.table != part.table.id:
                continue
            first, last = 0, division.count
            if isinstance(division, Cells):
                if rest.low is not None:
                    first = int(division.of(part.walk.keys_of([rest.low]))[0])
                if rest.high is not None:
                    last = int(division.of(part.walk.keys_of([rest.high]))[0])
            found.append(Span(part, first, last))
        return found


def _by_estimates(source: SourceSide, part: Part) -> pa.Table:
    """Bounds of about equal parts, as the server estimates them."""
    parts = Boundaries(source.connection, part.walk).parts(lambda rows: rows // CHUNK_ROWS + 1)
    return part.walk.keys_of([p.high for p in parts if p.high is not None])
