"""Repair: what differs is read again from the source, through the log, in windows, and compared once more.

Nothing is written into the lake from here. A repair asks the daemon for jobs of the keys that differ, or of ranges of them where there are
too many to name, and waits until the lake has what they read: so what is repaired is ordered against the stream like every other change,
and whoever reads the lake never sees a row that is older than one before it. Tables that keep what was there (`soft-delete`, `history`)
keep it: a repair is one more change of a row.

A key that the lake holds more than once cannot be written over: which of its rows would that be? Such a table stops. `mend` asks the merger
to take the surplus rows out, in a commit of its own, and to have those keys read again.

Every key is recorded with the digests of the lake's row before and after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cdc import sharding, unfit
from cdc.config import PipelineConfig
from cdc.epoch import TableState
from cdc.errors import NotFollowingError, TableStoppedError
from cdc.lake import LakeTable, Snapshot
from cdc.log import captured
from cdc.log.base import Log
from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import TableSchema
from cdc.source import canonical
from cdc.state import Read, ReadSpec, State
from cdc.status import is_running
from reconcile.runs import Repaired, Runs
from reconcile.values import compare as values
from reconcile.values import keynames
from reconcile.values.found import Difference, TableValues, ValuesReport
from snapshot import asking

KEYS = 10_000
"""Of one job."""
DIFFERENCES_KEPT = 1000
KEYS_CODE = "LakeKeys"
"""The code of what stops a table that holds keys more than once."""
POLL_S = 0.2
TABLES_AT_ONCE = 4

Told = Callable[[str, int, int], None]
"""The table, keys that were read again so far, and how many there are."""


@dataclass(frozen=True)
class RepairedTable:
    """What was done, or in a dry run would be. `keys` were read again, and `ranges` of keys; of these keys `repaired` are as in the source
    now, `remaining` are not. `mended` rows were taken out: further ones of keys that were there already. `refused`: it is no table that can be
    repaired so. `what` is a sentence for people, and `hint` the way out."""

    table: str
    keys: int = 0
    ranges: int = 0
    repaired: int = 0
    remaining: int = 0
    mended: int = 0
    refused: bool = False
    what: str = ""
    hint: str = ""
    rows_read: int = 0
    rows_emitted: int = 0
    rows_gone: int = 0
    version_before: int | None = None
    version_after: int | None = None
    differences: tuple[tuple[Difference, str], ...] = ()
    """The first of them, as they were found, each with what came of it: `repaired`, `differs`, or of a dry run `would be read`."""

    @property
    def ok(self) -> bool:
        return not self.remaining

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        data = {n: getattr(self, n) for n in self.__dataclass_fields__ if n != "differences"}
        return data | {"ok": self.ok, "differences": [d.to_dict() | {"outcome": o} for d, o in self.differences]}


@dataclass(frozen=True)
class RepairReport:
    """All tables that had anything to be repaired."""

    tables: tuple[RepairedTable, ...]
    dry_run: bool
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything that differed is equal now; of a dry run, whether all of it could be read again."""
        return all(table.ok for table in self.tables)

    @property
    def keys(self) -> int:
        return sum(table.keys for table in self.tables)

    def with_mended(self, mended: Sequence[RepairedTable]) -> RepairReport:
        """The same, with what `mend` did before."""
        before = {table.table: table for table in mended}
        tables = [_together(before.pop(t.table), t) if t.table in before else t for t in self.tables]
        return replace(self, tables=(*before.values(), *tables))

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        said = {"dry_run": self.dry_run, "ok": self.ok, "keys": self.keys, "seconds": self.seconds}
        return said | {"tables": [table.to_dict() for table in self.tables]}


def mend(
    config: PipelineConfig,
    state: State,
    runs: Runs,
    run: int,
    tables: Sequence[TableName] = (),
    *,
    dry_run: bool = False,
    follow_s: float = values.FOLLOW_S,
) -> list[RepairedTable]:
    """Let those of these tables (or all) go on that stopped since they hold keys more than once: before they can be compared. Nothing is
    done to other tables.

    Raises `NotFollowingError` if no daemon does it in `follow_s`; `TableStoppedError` where it cannot be done; `LakeError`, `StateError`.
    """
    found = [
        _mended(config, state, runs, run, table, dry_run, follow_s)
        for table, status in state.tables().items()
        if (not tables or table in tables)
        and status.phase == "stopped"
        and (status.error or {}).get("code") == KEYS_CODE
    ]
    return [table for table in found if table is not None]


def repair(
    config: PipelineConfig,
    log: Log,
    state: State,
    runs: Runs,
    run: int,
    report: ValuesReport,
    *,
    dry_run: bool = False,
    follow_s: float = values.FOLLOW_S,
    told: Told | None = None,
    show_values: bool = False,
) -> RepairReport:
    """Read again what `report` says that differs, wait until the lake has it, and compare these rows once more. With `dry_run` only say
    what would be read.

    Raises `NotFollowingError` if no daemon runs, or it gets nowhere for `follow_s`; `TableStoppedError` for a table that stopped
    meanwhile; `SourceError`, `LogError`, `LakeError`, `StateError`.
    """
    begun_s = time.monotonic()
    wrong = [t for t in report.tables if t.different or not t.complete or _is_append(t)]
    if not dry_run and any(not _is_append(t) for t in wrong) and not is_running(state):
        raise NotFollowingError(
            "no daemon is running, which would read what differs again",
            where=config.name,
            hint="start `lakesync run`, then try again",
        )
    work = _Work(config, log, state, runs, run, dry_run, follow_s, told or (lambda *_: None), show_values)
    with ThreadPoolExecutor(TABLES_AT_ONCE) as pool:  # they mostly wait for the lake
        tables = tuple(pool.map(work.table, wrong))
    return RepairReport(tables, dry_run, round(time.monotonic() - begun_s, 3))


def _is_append(table: TableValues) -> bool:
    return table.note.startswith("mode append")


# -- a key twice -------------------------------------------------------------------------------------------------------


def _mended(
    config: PipelineConfig,
    state: State,
    runs: Runs,
    run: int,
    table: TableName,
    dry_run: bool,
    follow_s: float,
) -> RepairedTable | None:
    """What became of the rows that are too many; None: there are none."""
    lake = LakeTable(config.lake_root, table, config.name)
    before = lake.load()
    if before is None or before.mode == "append":
        return None
    surplus = lake.surplus(before)
    rows, count = len(surplus.places), surplus.keys.num_rows
    if not rows:
        return None
    named = keynames.names(before.schema, surplus.keys)
    kinds = [f"{copies} times in the lake" for copies in surplus.copies.to_pylist()]
    differences = [Difference(text, kind) for text, kind in zip(named[:DIFFERENCES_KEPT], kinds, strict=False)]
    what = f"{rows} rows that are too many"
    again = f", and {count} keys read again" if count else ""
    if dry_run:
        said = f"{what} would be taken out{again}"
        outcomes = tuple((d, "would be read") for d in differences)
        return RepairedTable(str(table), keys=count, mended=rows, what=said, differences=outcomes)
    number = state.ask("mend", str(table))
    outcome = _answer(state, number, table, follow_s)
    if not outcome.startswith("mended"):
        raise TableStoppedError(f"rows that are too many could not be taken out: {outcome}", where=str(table))
    _wait_ready(state, table, follow_s)
    after = lake.load()
    version = after.version if after is not None else None
    digests = _digests(lake, before, surplus.keys), _digests(lake, after, surplus.keys) if after else {}
    recorded = [
        Repaired(
            str(table),
            name,
            kind,
            (),
            digests[0].get(name),
            digests[1].get(name),
            before.version,
            version,
        )
        for name, kind in zip(named, kinds, strict=True)
    ]
    runs.repaired(run, recorded)
    return RepairedTable(
        str(table),
        keys=count,
        repaired=count,
        mended=rows,
        what=f"{what} were taken out{again}",
        version_before=before.version,
        version_after=version,
        differences=tuple((d, "repaired") for d in differences),
    )


def _answer(state: State, number: int, table: TableName, follow_s: float) -> str:
    """What the merger says of a request."""
    deadline = time.monotonic() + follow_s
    while True:
        for request in state.requests(1000):
            if request.number == number and request.outcome is not None:
                return request.outcome
        if not is_running(state) or time.monotonic() > deadline:
            raise NotFollowingError(
                "the table holds keys more than once, and no merger takes the surplus rows out",
                where=str(table),
                hint="start `lakesync run`: what was asked for is recorded",
            )
        time.sleep(POLL_S)


def _wait_ready(state: State, table: TableName, follow_s: float) -> None:
    deadline = time.monotonic() + follow_s
    while True:
        status = state.table(table)
        if status is not None and status.phase == "ready":
            return
        if status is not None and status.phase == "stopped":
            error = status.error or {}
            raise TableStoppedError(error.get("what", "it stopped"), where=str(table), hint=error.get("hint", ""))
        if time.monotonic() > deadline:
            raise NotFollowingError(
                f"the table is not ready again within {follow_s:.0f} s",
                where=str(table),
                hint="see `lakesync status`, and try again",
            )
        time.sleep(POLL_S)


# -- rows that differ --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """One repair."""

    config: PipelineConfig
    log: Log
    state: State
    runs: Runs
    run: int
    dry_run: bool
    follow_s: float
    told: Told
    show_values: bool

    def table(self, found: TableValues) -> RepairedTable:
        """One table that differs."""
        table = TableName.parse(found.table)
        if _is_append(found):
            return RepairedTable(
                found.table,
                refused=True,
                what="an append table keeps every change once, and nothing is read again into it",
                hint=f"if its ledger does not close: move its folder away, then `lakesync resync {table}`; it begins anew",
            )
        keys = found.found if found.found is not None else pa.table({})
        ranges = len(found.unlike_ranges)
        mended = self._mended(table, found)
        said = [mended.what] if mended else []
        nothing_else = mended is not None and not keys.num_rows and not ranges
        surplus = mended.mended if mended else 0
        if self.dry_run:
            said += [] if nothing_else else [_would(keys.num_rows, ranges)]
            differences = tuple((d, "would be read") for d in found.differences[:DIFFERENCES_KEPT])
            return RepairedTable(
                found.table, keys.num_rows, ranges, mended=surplus, what="; ".join(said), differences=differences
            )
        lake = LakeTable(self.config.lake_root, table, self.config.name)
        before = lake.load()
        if before is None:
            raise NotFollowingError("the lake has no such table any more", where=str(table))
        was = _digests(lake, before, keys)
        reads = self._wait(table, self._ask(table, found, keys, before.schema), keys.num_rows)
        again = self._compare(table, found, keys, before.schema)
        after = lake.load()
        now = _digests(lake, after, keys) if after is not None else {}
        # Of keys that came to no verdict nobody knows which ones they are.
        sure = again.complete and not again.unsettled
        named = keynames.names(before.schema, keys) if keys.num_rows else []
        left = _names(again, before.schema) if sure else set(named)
        self._record(table, found, named, (was, now), left, (before, after), mended)
        ranged = ranges > 0
        remaining = again.different + again.unsettled
        said += [] if nothing_else and not remaining else [_done(keys.num_rows, ranges, remaining)]
        repaired = max(0, (found.different if ranged else keys.num_rows) - remaining)
        return RepairedTable(
            found.table,
            keys.num_rows,
            ranges,
            repaired,
            remaining,
            surplus,
            what="; ".join(said),
            hint="something goes on changing it: `lakesync check`, and look who else writes to the lake"
            if remaining
            else "",
            rows_read=sum(r.rows_read for r in reads),
            rows_emitted=sum(r.rows_emitted for r in reads),
            rows_gone=sum(r.rows_gone for r in reads),
            version_before=before.version,
            version_after=after.version if after is not None else None,
            differences=tuple(
                (d, "differs" if d.key in left else "repaired") for d in found.differences[:DIFFERENCES_KEPT]
            ),
        )

    def _mended(self, table: TableName, found: TableValues) -> RepairedTable | None:
        """Rows that are too many go first: behind a window's rows the merger would stop at them. Those with a NULL in the key differ and
        are no key that could be read."""
        status = self.state.table(table)
        stopped = status is not None and status.phase == "stopped" and (status.error or {}).get("code") == KEYS_CODE
        keys = found.found.num_rows if found.found is not None else 0
        surplus = found.different > keys or any(d.kind.endswith("times in the lake") for d in found.differences)
        if not stopped and not surplus and found.complete:
            return None
        return _mended(self.config, self.state, self.runs, self.run, table, self.dry_run, self.follow_s)

    def _ask(self, table: TableName, found: TableValues, keys: pa.Table, schema: TableSchema) -> list[Read]:
        asked: list[Read] = []
        for source, some in _by_source(table, self._captured(table), keys, schema).items():
            for start in range(0, len(some), KEYS):
                spec = ReadSpec(keys=tuple(some[start : start + KEYS]))
                asked.append(self.state.ask_read(source, table, spec, "asked"))
        for one in found.unlike_ranges:
            spec = ReadSpec(low=one.low, high=one.high)
            asked.append(self.state.ask_read(one.table, table, spec, "asked"))
        return asked

    def _captured(self, table: TableName) -> TableState:
        known = captured.read(self.log)
        found = known.newest_tables.get(table.id) if known else None
        if found is None:
            raise NotFollowingError("the table is not captured", where=str(table), hint="see `lakesync status`")
        return found

    def _wait(self, table: TableName, reads: Sequence[Read], keys: int) -> Sequence[Read]:
        """Until the lake has what the jobs read, and not longer than `follow_s` without a step forward."""
        said: list[tuple[Any, ...]] = []
        moved_s = time.monotonic()

        def told(now: Sequence[Read]) -> None:
            nonlocal said, moved_s
            at: list[tuple[Any, ...]] = [(r.job, r.phase, r.rows_read, r.rows_emitted, r.rows_gone) for r in now]
            if at != said:
                said, moved_s = at, time.monotonic()
            done = sum(len(r.spec.keys) if r.phase == "done" else min(r.rows_read, len(r.spec.keys)) for r in now)
            self.told(str(table), done, keys)
            if time.monotonic() - moved_s > self.follow_s:
                raise NotFollowingError(
                    f"what differs is not read again within {self.follow_s:.0f} s",
                    where=str(table),
                    hint="what was asked for is recorded, `lakesync status` shows it; compare again later",
                )

        return asking.wait(self.config, reads, told)

    def _compare(self, table: TableName, found: TableValues, keys: pa.Table, schema: TableSchema) -> TableValues:
        if found.unlike_ranges:
            whole = values.compare(self.config, self.log, self.state, [table], follow_s=self.follow_s)
            return whole.tables[0]
        return values.recheck(
            self.config, self.log, self.state, table, canonical.key_texts(schema, keys), follow_s=self.follow_s
        )

    def _record(
        self,
        table: TableName,
        found: TableValues,
        keys: Sequence[str],
        digests: tuple[Mapping[str, bytes], Mapping[str, bytes]],
        left: set[str],
        versions: tuple[Snapshot, Snapshot | None],
        mended: RepairedTable | None,
    ) -> None:
        named = {d.key: d for d in found.differences}
        before, after = versions
        rows: list[Repaired] = []
        gone = {d.key for d, _ in mended.differences} if mended else set()
        for text in keys:
            was, now = digests[0].get(text), digests[1].get(text)
            one = named.get(text)
            kind = (
                one.kind
                if one
                else "extra in the lake"
                if now is None
                else "missing in the lake"
                if was is None
                else "different"
            )
            if text in gone and was == now:
                continue  # recorded by `mend`
            rows.append(
                Repaired(
                    str(table),
                    text,
                    kind,
                    one.columns if one else (),
                    was,
                    now,
                    before.version,
                    after.version if after is not None else None,
                    "differs" if text in left else "repaired",
                    {"before": one.before, "after": one.after} if one and self.show_values else None,
                )
            )
        for part in found.unlike_ranges:
            low, high = (
                "its end" if end is None else keynames.bound(before.schema, end) for end in (part.low, part.high)
            )
            text = f"{part.table}: {low} to {high}"
            rows.append(Repaired(str(table), text, "a range of keys", version_before=before.version))
        self.runs.repaired(self.run, rows)
        self.runs.settled(table, [r.key for r in rows if r.outcome == "repaired"])


def _names(found: TableValues, schema: TableSchema) -> set[str]:
    """All keys that differ, those too that `differences` has no room for."""
    keys = keynames.names(schema, found.found) if found.found is not None and found.found.num_rows else []
    return {d.key for d in found.differences}.union(keys)


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _would(keys: int, ranges: int) -> str:
    parts = [_several(keys, "key")] if keys or not ranges else []
    parts += [f"{_several(ranges, 'range')} of keys"] if ranges else []
    return f"{' and '.join(parts)} would be read again"


def _done(keys: int, ranges: int, remaining: int) -> str:
    parts = [_several(keys, "key")] if keys or not ranges else []
    parts += [f"{_several(ranges, 'range')} of keys"] if ranges else []
    if keys == 1 and not ranges:
        return f"1 key was read again, and {'differs still' if remaining else 'is equal now'}"
    end = f"{remaining} of them still differ" if remaining else "all of them are equal now"
    return f"{' and '.join(parts)} were read again, and {end}"


def _by_source(table: TableName, found: TableState, keys: pa.Table, schema: TableSchema) -> dict[TableName, list[Key]]:
    """The keys as jobs have them, by the table of the source that each is of. Those of a shard that is none any more are left out: nothing
    can be read of them."""
    if not keys.num_rows:
        return {}
    texts = canonical.key_texts(schema, keys)
    if not sharding.is_sharded(found.options):
        return {table: texts}
    of_value = {sharding.value(shard): shard for shard in sharding.shards(found.options)}
    parts: dict[TableName, list[Key]] = {}
    for key in texts:
        if (shard := of_value.get(str(key[0]))) is not None:
            parts.setdefault(shard, []).append(key[1:])
    return parts


def _digests(lake: LakeTable, snapshot: Snapshot, keys: pa.Table) -> dict[str, bytes]:
    """By name a digest of the row with each of these keys that the lake has: over its canonical texts. Of a key that is there twice, of both."""
    if not keys.num_rows:
        return {}
    found: dict[str, list[bytes]] = {}
    for batch in lake.rows(snapshot, keys).to_batches():
        kept = batch.column(unfit.NAME) if unfit.is_last(batch.schema) else None
        texts = [canonical.texts(c, batch.column(c.name), kept) for c in snapshot.schema.columns]
        for name, digest in zip(keynames.names(snapshot.schema, pa.table(batch)), _of_rows(texts), strict=True):
            found.setdefault(name, []).append(digest)
    return {name: b"".join(sorted(digests)) for name, digests in found.items()}


def _of_rows(texts: list[pa.Array[Any]]) -> Iterator[bytes]:
    cells = [text.cast(pa.binary()).to_pylist() for text in texts]
    for row in zip(*cells, strict=True):
        parts = (b"-" if cell is None else b"%d:%s" % (len(cell), cell) for cell in row)
        yield hashlib.md5(b"".join(parts), usedforsecurity=False).digest()


def _together(mended: RepairedTable, repaired: RepairedTable) -> RepairedTable:
    return replace(
        repaired,
        keys=mended.keys + repaired.keys,
        repaired=mended.repaired + repaired.repaired,
        mended=mended.mended + repaired.mended,
        version_before=mended.version_before,
        differences=(*mended.differences, *repaired.differences),
        what=f"{mended.what}; {repaired.what}",
    )
