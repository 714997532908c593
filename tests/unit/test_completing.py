"""Completing rows from those before them: a source that logs what it likes of its rows, and a table that must end as the source."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc import unfit
from cdc.epoch import Counts, Op
from cdc.log.codec import DIFF, METADATA, UNKNOWN, Changes, Incomplete, decode, encode
from cdc.merge.completing import Completed, complete
from cdc.merge.fold import fold
from cdc.position import BinlogEnd, Fingerprint, Gtid, GtidSet, Position
from cdc.schema import Column, TableSchema

SERVER = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
TEXT = "utf8mb4"
SCHEMA = TableSchema(
    (Column("id", "bigint"), Column("n", "int"), Column("s", "text", charset=TEXT), Column("j", "json")), ("id",)
)
WIDTH = len(SCHEMA.columns)
KEYS = 4
Row = tuple[Any, ...]


@dataclass
class Logged:
    """One row of the log: what is known of it, and differences of `j`."""

    op: int
    seq: int
    values: Row
    known: tuple[bool, ...] = (True,) * WIDTH
    diffs: list[dict[str, Any]] = field(default_factory=list)
    job: str = ""


def changes(rows: Sequence[Logged]) -> Changes:
    """As the log has them."""
    gtids = [f"snap:{r.job}" if r.job else f"{SERVER}:{r.seq}" for r in rows]
    names = list(dict.fromkeys(gtids))
    metadata: list[list[int]] = [
        [r.op for r in rows],
        [names.index(g) for g in gtids],
        [r.seq if r.job else 0 for r in rows],
        [0] * len(rows),
        [r.seq * 10 for r in rows],
        [r.seq for r in rows],
    ]
    arrays: list[Any] = [pa.array(m, f.type) for m, f in zip(metadata, METADATA, strict=True)]
    arrays += [
        pa.array([r.values[i] if r.known[i] else None for r in rows], kind) for i, kind in enumerate(SCHEMA.arrow.types)
    ]
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*METADATA, *SCHEMA.arrow]))
    incomplete = Incomplete.of(np.array([r.known for r in rows]), pa.array([r.diffs for r in rows], pa.list_(DIFF)))
    records = encode(batch, names, SCHEMA.hash, incomplete=incomplete)
    (record,) = records
    return decode(record)


class Source:
    """A table, and the log of what happens to it."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.rows: dict[int, Row] = {k: (k, k, f"s{k}", '{"a": [0]}') for k in range(KEYS) if choose.random() < 0.7}
        self.log: list[list[Logged]] = []
        self.states = [dict(self.rows)]
        self.texts = 0

    @property
    def seq(self) -> int:
        return len(self.log) + 1

    def step(self) -> None:
        """One change."""
        choose = self.choose
        there, free = sorted(self.rows), sorted(set(range(KEYS)) - set(self.rows))
        kinds = (["update"] * 3 + ["patch"] * 2 + ["replace", "delete", "move"] if there else []) + ["insert"] * bool(
            free
        )
        kind = choose.choice(kinds)
        if kind == "move" and not free:
            kind = "update"
        key = choose.choice(free if kind == "insert" else there)
        halves: list[Logged] = []
        if kind == "insert":
            row = (key, 7, self.text(), '{"a": [7]}')
            absent = choose.random() < 0.2
            halves = [Logged(Op.INSERT, self.seq, row, (True, not absent, True, True))]
        elif kind == "delete":
            row = self.rows[key]
            halves = [Logged(Op.DELETE, self.seq, row, (True, *[choose.random() < 0.5] * 3))]
        else:
            row, known, diffs = self._after(kind, key, free)
            if row[0] != key:
                del self.rows[key]
                only = choose.random() < 0.5
                halves = [Logged(Op.MOVE_OUT, self.seq, (key, None, None, None), (True, only, only, only))]
            halves.append(Logged(Op.UPDATE, self.seq, row, known, diffs))
        if kind == "delete":
            del self.rows[key]
        else:
            self.rows[row[0]] = row
        self.log.append(halves)
        self.states.append(dict(self.rows))

    def text(self) -> str:
        self.texts += 1
        return f"t{self.texts}"

    def _after(self, kind: str, key: int, free: list[int]) -> tuple[Row, tuple[bool, ...], list[dict[str, Any]]]:
        choose, old = self.choose, self.rows[key]
        new, known = list(old), [True, False, False, False]
        diffs: list[dict[str, Any]] = []
        if kind == "move":
            new[0] = choose.choice(free)
        if kind == "replace":  # MariaDB's, of which it does not say what it gave a default
            new[1], new[2] = 7, self.text()
            return tuple(new), (True, False, True, True), [{"column": 1, "op": UNKNOWN, "path": "", "value": None}]
        if kind in ("update", "move"):
            for column in choose.sample([1, 2, 3], choose.randrange(0 if kind == "move" else 1, 3)):
                known[column] = True
                new[column] = [None, len(self.log) + 100, self.text(), json.dumps({"a": [len(self.log)]})][column]
        if (kind == "patch" or choose.random() < 0.1) and old[3] is not None and not known[3]:
            document = json.loads(old[3])
            document["a"].insert(0, len(self.log))
            new[3] = json.dumps(document)
            diffs = [{"column": 3, "op": 1, "path": "$.a[0]", "value": str(len(self.log))}]
        if choose.random() < 0.25:
            return tuple(new), (True,) * WIDTH, []
        return tuple(new), tuple(known), diffs


class Lake:
    """A table that takes the log in merges."""

    def __init__(self, rows: dict[int, Row]) -> None:
        self.rows = dict(rows)
        self.awaited: set[int] = set()
        self.passed = 0

    def current(self, keys: pa.Table) -> pa.Table:
        found = [self.rows[k] for k in keys.column("id").to_pylist() if k in self.rows and k not in self.awaited]
        columns = [pa.array([row[i] for row in found], kind) for i, kind in enumerate(SCHEMA.arrow.types)]
        return pa.table(columns, schema=SCHEMA.arrow)

    def merge(self, rows: Sequence[Logged], *, trusted: bool, cuts: Sequence[int] = ()) -> Completed:
        """The rows as several records, cut so."""
        ends = [0, *sorted(cuts), len(rows)]
        given = [changes(rows[a:b]) for a, b in itertools.pairwise(ends) if a < b]
        found = complete(given, SCHEMA, self.current, trusted=trusted)
        folded = fold(found.changes, SCHEMA)
        counts = found.counted(folded.counts)
        ops = [sum(r.op == op for r in rows) for op in (Op.INSERT, Op.UPDATE, Op.DELETE, Op.READ)]
        assert counts.logged == Counts(*ops)
        assert counts.logged.changes == counts.superseded + counts.duplicate + counts.effective
        assert counts.effective + counts.key_changes == folded.upserts.num_rows + folded.deletes.num_rows
        self.passed += found.passed
        for row in folded.upserts.to_pylist():
            self.rows[row["id"]] = tuple(row[name] for name in SCHEMA.names)
        for deleted in folded.deletes.to_pylist():
            self.rows.pop(deleted["id"], None)
        self.awaited -= {r.values[0] for r in rows if r.job}
        self.awaited |= {row["id"] for row in found.hopeless.to_pylist()}
        return found

    def wrong(self, source: dict[int, Row]) -> list[int]:
        """Keys that are not awaited and not the source's."""
        return [k for k in range(KEYS) if k not in self.awaited and self.rows.get(k) != source.get(k)]


def merges(
    source: Source, lake: Lake, choose: random.Random, first: int, last: int, *, trusted: bool, check: bool
) -> None:
    """The log's changes from one to the other, in merges of some, with readings of what is awaited in between."""
    at = first
    while at < last:
        to = min(last, at + choose.randrange(1, 9))
        rows = [row for halves in source.log[at:to] for row in halves]
        again = sorted(k for k in lake.awaited if choose.random() < 0.5)
        for key in again:
            row = source.states[to].get(key)
            # Behind what was there then; a number is a row's of its own.
            known = Logged(Op.READ if row else Op.DELETE, to, row or (key, None, None, None), job=f"j{key}")
            rows.append(known)
        lake.merge(rows, trusted=trusted, cuts=[choose.randrange(len(rows) + 1)])
        at = to
        if check:
            assert not lake.wrong(source.states[at]), (at, lake.rows, source.states[at])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_every_version_is_the_source_but_for_keys_that_are_read_again(seed: int, steps: int) -> None:
    choose = random.Random(seed)
    source = Source(choose)
    lake = Lake(source.rows)
    for _ in range(steps):
        source.step()
    merges(source, lake, choose, 0, steps, trusted=True, check=True)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 20))
def test_rows_that_were_read_at_any_time_converge(seed: int, steps: int, more: int) -> None:
    """A bootstrap: each key's row as it was at a time of its own, and all changes since the beginning applied to it."""
    choose = random.Random(seed)
    source = Source(choose)
    for _ in range(steps + more):
        source.step()
    reads = {key: choose.randrange(steps + 1) for key in range(KEYS)}
    lake = Lake({key: row for key, at in reads.items() if (row := source.states[at].get(key))})
    merges(source, lake, choose, 0, steps, trusted=False, check=False)
    assert not lake.wrong(source.states[steps]), (lake.rows, source.states[steps])
    merges(source, lake, choose, steps, steps + more, trusted=True, check=True)


# what hypothesis does not meet


def done(found: Completed) -> list[tuple[Any, ...]]:
    return [
        (row["_op"], *(row[name] for name in SCHEMA.names)) for one in found.changes for row in one.batch.to_pylist()
    ]


def nothing(keys: pa.Table) -> pa.Table:
    return SCHEMA.arrow.empty_table()


FIRST = Logged(Op.INSERT, 1, (1, 1, "a", "{}"))
SECOND = Logged(Op.UPDATE, 2, (1, 2, None, None), (True, True, False, False))


def test_what_the_table_has_is_not_completed_again() -> None:
    position = Position(GtidSet({SERVER: ((1, 1),)}), SERVER, BinlogEnd("b.1", 4), None, None)
    lake = Lake({1: (1, 1, "later", "[]")})
    found = complete([changes([FIRST, SECOND])], SCHEMA, lake.current, position)
    assert done(found) == [(Op.UPDATE, 1, 2, "later", "[]")]
    assert (found.logged, found.duplicate, found.passed) == (Counts(1, 1, 0), 1, 0)


def test_of_a_transaction_in_part_only_the_rest_is_completed() -> None:
    gtids = GtidSet({})
    position = Position(gtids, SERVER, BinlogEnd("b.1", 4), None, Fingerprint(Gtid(SERVER, 1), 10, 1))
    found = complete([changes([FIRST, SECOND])], SCHEMA, nothing, position)
    assert done(found) == []
    assert found.hopeless.to_pylist() == [{"id": 1}]


def test_a_change_that_is_there_twice_is_completed_once() -> None:
    found = complete([changes([FIRST, SECOND]), changes([SECOND])], SCHEMA, nothing)
    assert done(found) == [(Op.INSERT, 1, 1, "a", "{}"), (Op.UPDATE, 1, 2, "a", "{}")]
    assert (found.duplicate, found.passed) == (1, 0)


def test_a_key_change_that_nothing_completes_still_takes_the_old_key_away() -> None:
    rows = [
        Logged(Op.MOVE_OUT, 2, (1, None, None, None), (True, False, False, False)),
        Logged(Op.UPDATE, 2, (2, None, None, None), (True, False, False, False)),
    ]
    found = complete([changes(rows)], SCHEMA, nothing)
    assert done(found) == [(Op.DELETE, 1, None, None, None)]
    assert found.hopeless.to_pylist() == [{"id": 2}]
    counts = found.counted(fold(found.changes, SCHEMA).counts)
    assert (counts.logged, counts.superseded, counts.effective) == (Counts(0, 1, 0), 0, 1)
    appended = complete([changes(rows)], SCHEMA, nothing, appended=True)
    assert (appended.changes, appended.passed) == ([], 1)


def test_a_deletion_of_a_table_of_changes_has_what_is_known() -> None:
    gone = Logged(Op.DELETE, 3, (1, None, None, None), (True, False, False, False))
    found = complete([changes([FIRST, SECOND, gone])], SCHEMA, nothing, appended=True)
    assert done(found)[-1] == (Op.DELETE, 1, 2, "a", "{}")
    found = complete([changes([SECOND, gone])], SCHEMA, nothing, appended=True)
    assert done(found) == [(Op.DELETE, 1, 2, None, None)]  # the column that the update set
    assert found.hopeless.num_rows == 0


def test_what_does_not_fit_goes_with_its_value() -> None:
    kind: Any = unfit.TYPE
    base = Lake({1: (1, None, None, "{}")}).current(pa.table({"id": [1]}))
    base = base.append_column(unfit.FIELD, pa.array([[("n", "0000"), ("s", "FF")]], kind))
    found = complete([changes([SECOND])], SCHEMA, lambda _: base)
    (one,) = found.changes
    assert done(found) == [(Op.UPDATE, 1, 2, None, "{}")]
    assert one.unfit is not None
    assert one.unfit.to_pylist() == [[("s", "FF")]]


def test_a_truncated_shard_has_no_rows_before() -> None:
    schema = TableSchema(
        (Column("id", "bigint"), Column("n", "int"), Column("shard", "text", charset=TEXT)), ("shard", "id")
    )

    def given(ops: list[int], rows: list[Row], known: list[bool]) -> Changes:
        count = range(len(ops))
        metadata: list[Any] = [ops, [0] * len(ops), list(count), [0] * len(ops), [1] * len(ops), [n + 1 for n in count]]
        arrays: list[Any] = [pa.array(m, f.type) for m, f in zip(metadata, METADATA, strict=True)]
        arrays += [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(schema.arrow.types)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*METADATA, *schema.arrow]))
        there = np.array([[True, k, True] for k in known])
        incomplete = Incomplete.of(there, pa.array([[]] * len(ops), pa.list_(DIFF)))
        return Changes(batch, (f"{SERVER}:1",), schema.hash, incomplete)

    base = pa.table({"id": [1, 1], "n": [7, 8], "shard": ["a", "b"]}, schema=schema.arrow)

    def current(keys: pa.Table) -> pa.Table:
        return base.filter(pa.array([s in keys.column("shard").to_pylist() for s in ["a", "b"]]))

    ops = [Op.TRUNCATE, Op.UPDATE, Op.UPDATE]
    rows: list[Row] = [(None, None, "a"), (1, None, "a"), (1, None, "b")]
    found = complete([given(ops, rows, [True, False, False])], schema, current)
    assert found.hopeless.to_pylist() == [{"shard": "a", "id": 1}]
    assert found.changes[0].batch.column("n").to_pylist() == [None, 8]


@pytest.mark.parametrize("chained", [1, 3000])
def test_many_changes_of_one_row(chained: int) -> None:
    rows = [Logged(Op.UPDATE, n + 2, (1, n, None, None), (True, True, False, False)) for n in range(chained)]
    found = complete([changes([FIRST, *rows])], SCHEMA, nothing)
    assert done(found)[-1] == (Op.UPDATE, 1, chained - 1, "a", "{}")
