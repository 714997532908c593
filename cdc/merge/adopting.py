"""Tables that someone else wrote into the lake, as of a position: followed from there, if the log goes on from there.

The position, P, is the user's word (`from_position`). Where the log adds the table, the stream is at S:

    P contains S     the log has every change behind P: the table has P applied, and is ready
    S contains P     changes between P and S were not captured for it: it is followed from S, and read whole once, in windows
    neither          P is of another history, or the table lacks what others have: refused

It counts once, for a table that is not this pipeline's yet: what to do is told by the lake.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from cdc.epoch import WINDOW, CommitRecord, Counts, Op, TableState
from cdc.errors import LakeOccupiedError, LogGapError, TableStoppedError
from cdc.lake import Applied, LakeTable, Snapshot
from cdc.lake.adopt import Looked, adopt, look
from cdc.log.base import Log
from cdc.log.codec import Changes, decode
from cdc.merge.decide import applied_at
from cdc.names import TableName
from cdc.position import Gtid, GtidSet, Position
from cdc.schema import TableSchema
from cdc.state import Phase

_SHOWN = 200
AT_ONCE_S = 2.0
"""So long a round waits for what a look at a table finds; mostly it is there."""


class Adopted(NamedTuple):
    """A table that is this pipeline's now."""

    snapshot: Snapshot
    applied: Applied
    phase: Phase
    """`ready`, or `reading`: it lacks changes from before the log added it."""


def waits(log: Log, lake: LakeTable, captured: TableState) -> bool:
    """Whether a table in phase `added` is to be adopted, and not to be bootstrapped: it has a position, and the lake does not have it from
    an earlier time. True also where the adoption was made and is not known of yet.

    Raises `LakeError` and its kin, and as the log.
    """
    if not captured.options.get("from_position"):
        return False
    try:
        snapshot = lake.load()
    except LakeOccupiedError:
        return True
    return snapshot is None or _is_adopted(log, snapshot, captured)


class Looking:
    """Tables that are looked at before they are adopted, in threads of their own: the keys of a large one take minutes, in which the
    others are to be merged."""

    def __init__(self, at_once_s: float | None = None) -> None:
        self._at_once_s = AT_ONCE_S if at_once_s is None else at_once_s
        self._begun: dict[TableName, tuple[str, Future[Looked]]] = {}

    def look(self, lake: LakeTable, schema: TableSchema) -> Looked | None:
        """What was found; None if that takes longer. Raises as `cdc.lake.adopt.look`."""
        of, found = self._begun.get(lake.table, ("", None))
        if found is None or of != schema.hash:
            found = Future()
            self._begun[lake.table] = schema.hash, found
            # It only reads, so nobody needs to wait for its end.
            threading.Thread(target=_look, args=(lake, schema, found), name="lakesync-adopt", daemon=True).start()
        wait([found], self._at_once_s)
        if not found.done():
            return None
        del self._begun[lake.table]
        return found.result()


def _look(lake: LakeTable, schema: TableSchema, found: Future[Looked]) -> None:
    try:
        found.set_result(look(lake, schema))
    except BaseException as error:
        found.set_exception(error)


def begin(
    log: Log, lake: LakeTable, table: TableName, captured: TableState, looking: Looking | None = None
) -> Adopted | None:
    """Adopt the table, or find that it is; for one that `waits`. None: the log does not reach its position yet, or it is being looked
    at.

    Raises `TableStoppedError` for a position of another history, `LakeError` for a table that cannot be adopted, `LogGapError` if the
    log does not have the epoch any more that adds it, `LakeConflictError` and `LakeUnknownError`.
    """
    record = _adding(log, table, captured)
    start, wanted = record.end, GtidSet.parse(captured.options["from_position"])
    behind = not wanted.contains(start.gtids)
    if behind and not start.gtids.contains(wanted):
        raise _strange(table, wanted, start)
    phase: Phase = "reading" if behind else "ready"
    try:
        found = lake.load()
    except LakeOccupiedError:
        found = None
    if found is not None and found.applied is not None and _is_adopted(log, found, captured):
        return Adopted(found, found.applied, phase)
    applied, logged = applied_at(record), Counts()
    if not behind:
        reached = _reached(log, table, record, replace(start, gtids=wanted))
        if reached is None:
            return None
        applied, logged = reached
    schema = TableSchema.from_dict(captured.schema)
    looked = (looking or Looking(threading.TIMEOUT_MAX)).look(lake, schema)
    if looked is None:
        return None
    snapshot = adopt(lake, schema, applied, logged, looked)
    return Adopted(snapshot, applied, phase)


def _adding(log: Log, table: TableName, captured: TableState) -> CommitRecord:
    record = next(iter(log.records(captured.since - 1)), None)
    if record is None or record.number != captured.since or table.id not in record.added:
        raise LogGapError(
            f"the log does not have epoch {captured.since} any more, which adds the table",
            where=str(table),
            hint=f"`lakesync resync {table}`: the log adds it anew",
        )
    return record


def _is_adopted(log: Log, snapshot: Snapshot, captured: TableState) -> bool:
    """Whether the table's newest commit is the adoption that was made since the log added it."""
    applied = snapshot.applied
    if applied is None or (snapshot.info or {}).get("kind") != "adopt" or applied.epoch.number < captured.since:
        return False
    record = next(iter(log.records(applied.epoch.number - 1)), None)
    return record is not None and record.id == applied.epoch


def _reached(log: Log, table: TableName, record: CommitRecord, wanted: Position) -> tuple[Applied, Counts] | None:
    """What the table has: `wanted`, and by the log's epochs the newest one before which all is contained in it; and how many changes of
    it the log counts, those in later epochs too. None if the log does not reach it."""
    at, logged = record, Counts()
    beyond = False
    if record.end.gtids.contains(wanted.gtids):
        return applied_at(record), logged
    for following in log.records(record.number):
        entry = following.tables.get(table.id)
        beyond = beyond or not wanted.contains(following.end)
        if not beyond:
            at = following
            logged = logged.plus(entry.rows) if entry else logged
        elif entry:
            logged = logged.plus(_of(wanted.gtids, map(decode, log.data(table.id, entry.extent))))
        if following.whole and following.end.gtids.contains(wanted.gtids):
            position = replace(at.end, gtids=wanted.gtids, partial=None)
            return replace(applied_at(at), position=position), logged
    return None


def _of(gtids: GtidSet, changes: Iterable[Changes]) -> Counts:
    """How many of the changes are of these transactions."""
    counts = Counts()
    for one in changes:
        inside = pa.array([not g.startswith(WINDOW) and Gtid.parse(g) in gtids for g in one.gtids], pa.bool_())
        mine = inside.take(one.batch.column(1).cast(pa.int64()))
        found = Counter(one.batch.column(0).filter(mine).to_pylist())
        counts = counts.plus(Counts(found[Op.INSERT], found[Op.UPDATE], found[Op.DELETE]))
    return counts


def _strange(table: TableName, wanted: GtidSet, start: Position) -> TableStoppedError:
    return TableStoppedError(
        f"from_position has transactions that the stream does not have ({_text(wanted.subtract(start.gtids))}), and lacks others"
        f" ({_text(start.gtids.subtract(wanted))}): it is no place in this stream",
        where=str(table),
        hint="take the position on the server that lakesync follows, with the copy of the table, in one consistent snapshot;"
        f" then `lakesync remove {table}` and add it again with that position, or without one",
    )


def _text(gtids: GtidSet) -> str:
    text = str(gtids)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
