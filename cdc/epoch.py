"""Commit records: what capture says of an epoch, in the log's own transaction with the epoch's data.

A record is canonical JSON; its hash is the SHA-256 of exactly those bytes, and names the epoch: a number may recur after a
log lost records, a hash cannot. Records form a chain by `before`. Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import orjson

from cdc.position import Position

VERSION = 1
"""Of the record's form. A record of another version is refused, never guessed at."""


class Op:
    """Values of `_op`, one a row of a table's data. An update that changes the key is a MOVE_OUT (the row before) followed by an
    UPDATE (the row after) with the same global ID; together they are one change.

    READ is the row as a windowed read saw it; a key that such a read did not find is a DELETE of which only the key's columns are
    known. TRUNCATE says that all rows of one shard are gone: of its row only the shard's column is known.
    """

    INSERT = 0
    UPDATE = 1
    DELETE = 2
    MOVE_OUT = 3
    READ = 4
    TRUNCATE = 5


class Counts(NamedTuple):
    """Row changes by operation. A MOVE_OUT is not counted: it is half of an update; nor is a TRUNCATE, which is no change of a row."""

    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    reads: int = 0

    @property
    def changes(self) -> int:
        """All of them."""
        return sum(self)

    def plus(self, other: Counts) -> Counts:
        """The sum by operation."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def to_list(self) -> list[int]:
        """For JSON; `Counts(*…)` is the way back."""
        return list(self) if self.reads else list(self[:3])


WINDOW = "snap:"
"""How the global IDs of windowed reads' rows begin."""


class EpochId(NamedTuple):
    """An epoch: the number for people, the hash for identity."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"#{self.number} ({self.hash[:12]})"


class WindowId(NamedTuple):
    """A windowed read: the `number`th window (from 1) of a job. Its rows' global IDs are `snap:<job>/<number>.<row>`."""

    job: str
    number: int

    @property
    def gtid(self) -> str:
        """What stands in a row's global ID where others have their transaction's GTID; no server has one like it."""
        return WINDOW + self.job


@dataclass(frozen=True)
class WindowEntry:
    """A windowed read whose rows an epoch holds, as of the epoch's end. `read` and `emitted` are rows (keys that were not found
    included) before and after those that the stream touched in the window were left out; `progress` is what its job needs to go on
    after it, and nobody else's business."""

    id: WindowId
    table: str
    """The source's table, which may be a shard of the one that the rows go to."""
    read: int
    emitted: int
    progress: dict[str, Any]


@dataclass(frozen=True)
class Extent:
    """Where an epoch's data of one table is in the table's partition, and what it is.

    `first` and `last` are offsets, inclusive; between them may lie records that are not the epoch's (control records, rows of
    lost epochs): the epoch's are the `records` data records, and `digest` is the SHA-256 (hex) over each one's length (u32
    big-endian) and bytes, in order. `bytes` is their total length.
    """

    first: int
    last: int
    records: int
    bytes: int
    digest: str


def digest(records: Sequence[bytes | memoryview]) -> str:
    """The digest of an extent's records, in order."""
    state = hashlib.sha256()
    for record in records:
        state.update(len(record).to_bytes(4, "big"))
        state.update(record)
    return state.hexdigest()


@dataclass(frozen=True)
class TableEntry:
    """An epoch's changes of one table. `previous` is the epoch that touched the table before, None for the first one."""

    rows: Counts
    totals: Counts
    extent: Extent
    previous: EpochId | None
    schema: str
    """Hash of the table's schema (`TableSchema.hash`)."""


@dataclass(frozen=True)
class TableState:
    """What is known of a captured table after an epoch; restated whole in every checkpoint record.

    `last` is the epoch that touched it last, None if none did since it was added. `since` is the number of the epoch that added
    it. `schema` is `TableSchema.to_dict()`, `options` what the pipeline file says of the table (mode, types), and of a table that is
    made of shards which ones they are.
    """

    schema: dict[str, Any]
    options: dict[str, Any]
    totals: Counts
    last: EpochId | None
    since: int


@dataclass(frozen=True)
class CommitRecord:
    """One epoch: a numbered, atomic group of source transactions with the exact position after it.

    They are whole, but for one that is too large for memory: it is cut into parts, each the end of an epoch (`end.partial`, and not
    `whole`), but for the last one, whose epoch ends with it or later.

    `added` are tables captured from this epoch's end on (never with data in the same record, never in a part); a table that is added
    again starts anew, its totals at zero. `removed` maps tables no longer captured to the reason: `removed`, or a stop's error as by
    `LakesyncError.to_dict`. `altered` are captured tables whose options are others from here on (a shard came or went); nothing else of
    them changes. `windows` maps tables to the windowed reads whose rows are in. `checkpoint` is the number of the newest record, this one included, whose `states` restates every
    captured table; elsewhere, and in every part, `states` is None. In `states` a table that this very record touched has `last` None, since a record
    cannot hold its own hash: `states_after` resolves it.
    """

    log: str
    number: int
    before: str | None
    start: Position
    end: Position
    ts_ms: int
    """Commit time of the last transaction, also if only a part of it is in, made monotone, ms since 1970."""
    raw_us: int
    """The same as the source gave it, µs since 1970; 0 before the first transaction."""
    seq: int
    """The last row change's number so far."""
    transactions: int
    """Source transactions that end in this epoch, those without a captured row included."""
    framing: Mapping[str, int]
    """The source node's count of this epoch: `events`, `bytes`, `transactions`, `row_events`, `statements`, each from the events'
    framing and not from decoded rows; `rows_skipped` row events of tables that are not captured. Beside the counts `captured_us`, `prepared_bytes`."""
    framing_totals: Mapping[str, int]
    written_us: int
    """When capture wrote it, by its own clock, µs since 1970."""
    checkpoint: int
    tables: Mapping[str, TableEntry] = field(default_factory=dict)
    added: Mapping[str, TableState] = field(default_factory=dict)
    removed: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    """GTIDs passed over by `lakesync skip`."""
    states: Mapping[str, TableState] | None = None
    altered: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """New options by table."""
    windows: Mapping[str, tuple[WindowEntry, ...]] = field(default_factory=dict)

    @property
    def id(self) -> EpochId:
        """Number and hash."""
        return EpochId(self.number, self.hash)

    @property
    def whole(self) -> bool:
        """Whether it ends at a transaction's end, and not behind a part of one."""
        return self.end.whole

    @property
    def captured_us(self) -> int:
        """When capture had decoded the last of it, by its own clock, µs since 1970; `written_us` in records of before this was known."""
        return self.framing.get("captured_us", self.written_us)

    @property
    def prepared_bytes(self) -> int | None:
        """Of the binary log's bytes before `end`, those of transactions that are prepared and no more: `framing` has them once they are
        committed. None in records of before this was known."""
        return self.framing.get("prepared_bytes")

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the record's bytes, hex."""
        return hashlib.sha256(self.payload).hexdigest()

    @cached_property
    def payload(self) -> bytes:
        """The record's bytes: JSON with sorted keys."""
        tables = {
            t: {
                "rows": e.rows.to_list(),
                "totals": e.totals.to_list(),
                "extent": [e.extent.first, e.extent.last, e.extent.records, e.extent.bytes, e.extent.digest],
                "previous": e.previous and list(e.previous),
                "schema": e.schema,
            }
            for t, e in self.tables.items()
        }
        data = {
            "v": VERSION,
            "log": self.log,
            "number": self.number,
            "before": self.before,
            "start": self.start.to_dict(),
            "end": self.end.to_dict(),
            "ts_ms": self.ts_ms,
            "raw_us": self.raw_us,
            "seq": self.seq,
            "transactions": self.transactions,
            "framing": dict(self.framing),
            "framing_totals": dict(self.framing_totals),
            "written_us": self.written_us,
            "checkpoint": self.checkpoint,
            "tables": tables,
            "added": {t: _state_out(s) for t, s in self.added.items()},
            "removed": dict(self.removed),
            "skipped": list(self.skipped),
            "states": None if self.states is None else {t: _state_out(s) for t, s in self.states.items()},
        }
        # Only where there are some: records of before these were known stay as they are.
        if self.altered:
            data["altered"] = dict(self.altered)
        if self.windows:
            data["windows"] = {t: [_window_out(w) for w in found] for t, found in self.windows.items()}
        return orjson.dumps(data, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def parse(cls, payload: bytes) -> CommitRecord:
        """The record with these bytes. Raises `ValueError` for anything else."""
        try:
            data = orjson.loads(payload)
            if data["v"] != VERSION:
                raise ValueError(f"commit record of version {data['v']}, this is version {VERSION}")
            states = data["states"]
            record = cls(
                log=data["log"],
                number=data["number"],
                before=data["before"],
                start=Position.from_dict(data["start"]),
                end=Position.from_dict(data["end"]),
                ts_ms=data["ts_ms"],
                raw_us=data["raw_us"],
                seq=data["seq"],
                transactions=data["transactions"],
                framing=data["framing"],
                framing_totals=data["framing_totals"],
                written_us=data["written_us"],
                checkpoint=data["checkpoint"],
                tables={
                    t: TableEntry(
                        Counts(*e["rows"]),
                        Counts(*e["totals"]),
                        Extent(*e["extent"]),
                        e["previous"] and EpochId(*e["previous"]),
                        e["schema"],
                    )
                    for t, e in data["tables"].items()
                },
                added={t: _state_in(s) for t, s in data["added"].items()},
                removed=data["removed"],
                skipped=tuple(data["skipped"]),
                states=None if states is None else {t: _state_in(s) for t, s in states.items()},
                altered=data.get("altered", {}),
                windows={t: tuple(map(_window_in, found)) for t, found in data.get("windows", {}).items()},
            )
            canonical = record.payload == payload
        except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
            raise ValueError(f"not a commit record: {type(error).__name__}") from error
        if not canonical:
            raise ValueError("not a commit record in canonical form")
        return record

    def states_after(self, before: Mapping[str, TableState]) -> dict[str, TableState]:
        """Every captured table after this epoch, given those after the epoch before (ignored by a checkpoint record)."""
        if self.states is not None:
            return {t: self._resolved(t, s) for t, s in self.states.items()}
        after = {t: s for t, s in before.items() if t not in self.removed}
        after.update(self.added)
        for t, options in self.altered.items():
            if t in after:
                after[t] = replace(after[t], options=options)
        for t, entry in self.tables.items():
            if t in after:
                after[t] = replace(after[t], totals=entry.totals, last=self.id)
        return after

    def _resolved(self, table: str, state: TableState) -> TableState:
        return replace(state, last=self.id) if table in self.tables and table not in self.added else state


def _state_out(state: TableState) -> dict[str, Any]:
    return {
        "schema": state.schema,
        "options": state.options,
        "totals": state.totals.to_list(),
        "last": state.last and list(state.last),
        "since": state.since,
    }


def _state_in(data: dict[str, Any]) -> TableState:
    last = data["last"]
    return TableState(data["schema"], data["options"], Counts(*data["totals"]), last and EpochId(*last), data["since"])


def _window_out(window: WindowEntry) -> list[Any]:
    return [window.id.job, window.id.number, window.table, window.read, window.emitted, window.progress]


def _window_in(data: list[Any]) -> WindowEntry:
    job, number, table, read, emitted, progress = data
    return WindowEntry(WindowId(job, number), table, read, emitted, progress)
