"""Modes soft-delete and history: a table is the same however the changes are cut into merges, and is what one change after the other makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc import unfit
from cdc.config import Mode
from cdc.epoch import Op
from cdc.errors import LakeError
from cdc.lake import history, softdelete
from cdc.lake.changes import Effects
from cdc.lake.steps import Plan, Steps
from cdc.log.codec import METADATA, Changes
from cdc.merge.keeping import steps
from cdc.schema import Column, TableSchema
from tests.unit.test_fold import Row, changes, gtid, one

NAME = Column("name", "text", charset="utf8mb4")
SHARD = Column("shard", "text", charset="utf8mb4")
SCHEMA = TableSchema((Column("id", "bigint"), NAME, SHARD), ("shard", "id"))
MODULES: dict[Mode, Any] = {"soft-delete": softdelete, "history": history}
Key = tuple[Any, ...]


def at(ts_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ts_ms)


@dataclass
class Engine:
    """What a lake does with a plan: rows of one table, each key (each current version of one) at most once."""

    mode: Mode
    schema: TableSchema = SCHEMA
    rows: pa.Table | None = None
    effects: list[Effects] = field(default_factory=list)

    def merge(self, *parts: Changes) -> Plan:
        """One merge."""
        found = steps(self.mode, parts, self.schema)
        module = MODULES[self.mode]
        before = 0 if self.rows is None else self.rows.num_rows
        names = list(self.schema.key)
        places: dict[Key, int] = {}
        if self.rows is not None:
            current = module.live(self.rows).to_pylist()
            for n, row in enumerate(self.rows.select(names).to_pylist()):
                if self.mode == "soft-delete" or current[n]:
                    assert places.setdefault(tuple(row.values()), n) == n, "a key is there twice"
        keys = [tuple(row.values()) for row in found.keys.to_pylist()]
        others = None
        if found.truncated is not None:
            shards = set(found.truncated.to_pylist())
            more = [key for key in places if key[0] in shards and key not in keys]
            keys += more
            others = pa.Table.from_pylist([dict(zip(names, k, strict=True)) for k in more], schema=found.keys.schema)
        there = np.array([key in places for key in keys], np.bool_)
        wanted = there & module.needs(found, len(keys) - found.keys.num_rows)
        at_rows = [places[key] for key, is_wanted in zip(keys, wanted, strict=True) if is_wanted]
        base = pa.table({}) if self.rows is None else self.rows.take(pa.array(at_rows, pa.int64()))
        if self.rows is None:
            base = _empty(module, found)
        plan: Plan = module.plan(found, there, base, others)
        left = self.rows
        if left is not None:
            dead = {places[key] for key, is_gone in zip(keys, plan.gone, strict=True) if is_gone}
            left = left.take(pa.array([n for n in range(left.num_rows) if n not in dead], pa.int64()))
            self.rows = pa.concat_tables([left, plan.images], promote_options="default")
        else:
            self.rows = plan.images
        counts, effects = found.counts, plan.effects
        assert effects.growth == self.rows.num_rows - before
        assert counts.logged.changes == counts.superseded + counts.duplicate + counts.effective
        assert counts.effective + counts.key_changes == effects.of_changes
        self.effects.append(effects)
        return plan

    @property
    def content(self) -> list[dict[str, Any]]:
        assert self.rows is not None
        return sorted(self.rows.to_pylist(), key=repr)


def _empty(module: Any, found: Steps) -> pa.Table:
    plain = found.rows.drop_columns([unfit.NAME]) if unfit.is_last(found.rows.schema) else found.rows
    return pa.schema([*plain.schema, *module.FIELDS]).empty_table()


def expected(mode: Mode, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One change after the other, by hand."""
    ended: list[dict[str, Any]] = []
    there: dict[Key, dict[str, Any]] = {}
    own = ("_cdc_deleted_at",) if mode == "soft-delete" else ("valid_from", "valid_to", "is_current")

    def end(key: Key, row: Row) -> None:
        if key not in there:
            return
        if mode == "history":
            ended.append(there.pop(key) | {"valid_to": at(row.ts_ms), "is_current": False})
        elif there[key]["_cdc_deleted_at"] is None:
            there[key] |= {"_cdc_deleted_at": at(row.ts_ms), "_cdc_ts_ms": row.ts_ms, "_cdc_seq": row.seq}

    for row in rows:
        number, name, shard = row.values
        key = (shard, number)
        if row.op in (Op.DELETE, Op.MOVE_OUT):
            end(key, row)
        elif row.op == Op.TRUNCATE:
            for one_key in [k for k in there if k[0] == shard]:
                end(one_key, row)
        else:
            image = {"id": number, "name": name, "shard": shard}
            if mode == "history":
                now = there.get(key)
                if row.op == Op.READ and now is not None and all(now[n] == v for n, v in image.items()):
                    continue
                end(key, row)
            values = (None,) if mode == "soft-delete" else (at(row.ts_ms), None, True)
            there[key] = image | {"_cdc_ts_ms": row.ts_ms, "_cdc_seq": row.seq} | dict(zip(own, values, strict=True))
    return sorted([*ended, *there.values()], key=repr)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Row]]:
    """Changes one after the other, the halves of a key change together: of few keys of two shards, many in one millisecond."""
    found: list[list[Row]] = []
    ts_ms = 1_700_000_000_000
    key = st.tuples(st.sampled_from("ab"), st.integers(0, 2))
    ops = st.sampled_from([Op.INSERT, Op.UPDATE, Op.DELETE, Op.MOVE_OUT, Op.READ, Op.READ, Op.TRUNCATE])
    for seq in range(1, draw(st.integers(1, 16)) + 1):
        ts_ms += draw(st.sampled_from([0, 0, 1]))
        op, (shard, number), name = draw(ops), draw(key), draw(st.sampled_from(["x", "y", None]))
        if op == Op.MOVE_OUT:
            other, another = draw(key)
            old, new = (number, "x", shard), (another, name, other)
            if old[::2] == new[::2]:
                continue
            found.append([Row(o, gtid(seq), 0, 0, ts_ms, seq, v) for o, v in ((op, old), (Op.UPDATE, new))])
            continue
        # Of an end, and of a truncation, no more is known than has to be.
        values = {Op.DELETE: (number, None, shard), Op.TRUNCATE: (None, None, shard)}.get(op, (number, name, shard))
        found.append([Row(op, gtid(seq), 0, 0, ts_ms, seq, values)])
    return found


@pytest.mark.timeout(300)  # a counterexample is made small for a while
@settings(deadline=None)
@given(histories(), st.data(), st.sampled_from(["soft-delete", "history"]))
def test_a_table_is_the_same_however_its_changes_are_cut_into_merges(
    found: list[list[Row]], data: st.DataObject, mode: Mode
) -> None:
    if not found:
        return
    engine = Engine(mode)
    rest = found
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        now, rest = rest[:count], rest[count:]
        rows = [row for change in now for row in change]
        # In any order, and some of them twice.
        again = data.draw(st.lists(st.sampled_from(now), max_size=2))
        rows = data.draw(st.permutations([*rows, *(row for change in again for row in change)]))
        cut = data.draw(st.integers(0, len(rows)))
        engine.merge(*(changes(part, SCHEMA) for part in (rows[:cut], rows[cut:]) if part))
    assert engine.content == expected(mode, [row for change in found for row in change])


def test_versions_of_one_millisecond_are_all_there_in_one_merge_and_in_many() -> None:
    rows = [one(n, Op.UPDATE if n > 1 else Op.INSERT, 7, f"v{n}", "a", ts_ms=5000) for n in range(1, 6)]
    engine, slow = Engine("history"), Engine("history")
    engine.merge(changes(rows, SCHEMA))
    for row in rows:
        slow.merge(changes([row], SCHEMA))
    assert engine.content == slow.content
    found = sorted(engine.content, key=lambda row: row["_cdc_seq"])
    assert [row["name"] for row in found] == ["v1", "v2", "v3", "v4", "v5"]
    assert [row["is_current"] for row in found] == [False] * 4 + [True]
    assert {row["valid_from"] for row in found} == {at(5000)} == {row["valid_to"] for row in found[:4]}
    assert engine.effects == [Effects(inserted=5)]
    assert slow.effects == [Effects(inserted=1)] * 5


def test_a_key_change_ends_the_old_key_and_begins_the_new_one() -> None:
    rows = [one(1, Op.INSERT, 1, "x", "a", ts_ms=10)]
    rows += [Row(o, gtid(2), 0, 0, 20, 2, v) for o, v in ((Op.MOVE_OUT, (1, "x", "a")), (Op.UPDATE, (2, "x", "a")))]
    for cuts in ([rows], [rows[:1], rows[1:]]):
        engine = Engine("history")
        for part in cuts:
            engine.merge(changes(part, SCHEMA))
        old, new = sorted(engine.content, key=lambda row: row["_cdc_seq"])
        assert (old["id"], old["valid_from"], old["valid_to"], old["is_current"]) == (1, at(10), at(20), False)
        assert (new["id"], new["valid_from"], new["valid_to"], new["is_current"]) == (2, at(20), None, True)
    assert engine.effects[-1] == Effects(inserted=1, replaced=1)


@pytest.mark.parametrize("before", [True, False], ids=["in the table", "in the merge"])
def test_a_read_that_finds_what_is_there_makes_no_version(before: bool) -> None:
    there, again = one(1, Op.INSERT, 1, None, "a"), one(2, Op.READ, 1, None, "a")
    engine = Engine("history")
    for part in ([there], [again, one(3, Op.READ, 1, None, "a")]) if before else ([there, again],):
        engine.merge(changes(part, SCHEMA))
    assert len(engine.content) == 1
    assert engine.content[0]["_cdc_seq"] == 1
    assert engine.effects[-1].absent == (2 if before else 1)
    engine.merge(changes([one(4, Op.READ, 1, "other", "a")], SCHEMA))
    assert [row["is_current"] for row in sorted(engine.content, key=lambda row: row["_cdc_seq"])] == [False, True]


def test_what_did_not_fit_is_a_difference_and_is_kept() -> None:
    def read(seq: int, text: str | None) -> Changes:
        row = changes([one(seq, Op.READ, 1, None, "a")], SCHEMA)
        if text is None:
            return row
        also = pa.array([[("name", text)]], unfit.TYPE)
        schema = pa.schema([*row.batch.schema, unfit.FIELD])
        return Changes(pa.RecordBatch.from_arrays([*row.batch.columns, also], schema=schema), row.gtids, SCHEMA.hash)

    engine = Engine("history")
    for n, text in enumerate([None, "ff", "ff", "fe", None], 1):
        engine.merge(read(n, text))
    found = sorted(engine.content, key=lambda row: row["_cdc_seq"])
    assert [row["_cdc_unfit"] and row["_cdc_unfit"][0][1] for row in found] == [None, "ff", "fe", None]
    assert engine.rows is not None
    assert engine.rows.column_names[-1] == unfit.NAME


@pytest.mark.parametrize("mode", ["soft-delete", "history"])
def test_floats_are_told_apart_by_their_bits(mode: Mode) -> None:
    schema = TableSchema((Column("id", "bigint"), Column("x", "double")), ("id",))
    nan = float("nan")
    engine = Engine(mode, schema)
    for n, x in enumerate([0.0, -0.0, nan, nan], 1):
        engine.merge(changes([one(n, Op.READ, 1, x)], schema))
    assert len(engine.content) == (3 if mode == "history" else 1)
    keyed = TableSchema((Column("x", "double"),), ("x",))
    engine = Engine(mode, keyed)
    engine.merge(changes([one(1, Op.INSERT, 0.0), one(2, Op.INSERT, -0.0)], keyed))
    assert len(engine.content) == 2


def test_a_deleted_row_keeps_its_last_image_and_comes_back() -> None:
    """Whether its last image was in the table, or came and went within one merge; of the delete nothing but the key is known."""
    insert, delete = one(1, Op.INSERT, 1, "x", "a", ts_ms=10), one(2, Op.DELETE, 1, None, "a", ts_ms=20)
    twice, back = one(3, Op.DELETE, 1, None, "a", ts_ms=30), one(4, Op.INSERT, 1, "y", "a", ts_ms=40)
    gone = {"id": 1, "name": "x", "shard": "a", "_cdc_ts_ms": 20, "_cdc_seq": 2, "_cdc_deleted_at": at(20)}
    for cuts, effects in (
        ([[insert], [delete], [twice]], [Effects(inserted=1), Effects(replaced=1), Effects(absent=1)]),
        ([[insert, delete, twice]], [Effects(inserted=1)]),
        ([[insert, delete], [twice]], [Effects(inserted=1), Effects(absent=1)]),
    ):
        engine = Engine("soft-delete")
        for part in cuts:
            engine.merge(changes(part, SCHEMA))
        assert engine.content == [gone]
        assert engine.effects == effects
        engine.merge(changes([back], SCHEMA))
        assert [(row["name"], row["_cdc_deleted_at"]) for row in engine.content] == [("y", None)]
        assert engine.effects[-1] == Effects(replaced=1)


@pytest.mark.parametrize("mode", ["soft-delete", "history"])
def test_the_truncation_of_a_shard_ends_its_rows_only(mode: Mode) -> None:
    engine = Engine(mode)
    engine.merge(changes([one(n, Op.INSERT, n, "x", shard) for n, shard in ((1, "a"), (2, "a"), (3, "b"))], SCHEMA))
    before = one(4, Op.UPDATE, 1, "y", "a"), one(5, Op.INSERT, 9, "z", "a")
    engine.merge(changes([*before, one(6, Op.TRUNCATE, None, None, "a"), one(7, Op.INSERT, 2, "new", "a")], SCHEMA))
    live = MODULES[mode].live(engine.rows).to_pylist()
    assert engine.rows is not None
    found = {row["id"]: row["name"] for row, is_live in zip(engine.rows.to_pylist(), live, strict=True) if is_live}
    assert found == {2: "new", 3: "x"}
    assert engine.rows.num_rows == (6 if mode == "history" else 4)


@pytest.mark.parametrize("mode", ["soft-delete", "history"])
def test_a_key_with_a_null_or_none_at_all_is_an_error(mode: Mode) -> None:
    with pytest.raises(LakeError, match="NULL"):
        steps(mode, [changes([one(1, Op.INSERT, None, "x", "a")], SCHEMA)], SCHEMA)
    schema = TableSchema(SCHEMA.columns, ())
    with pytest.raises(LakeError, match="without a key"):
        steps(mode, [changes([one(1, Op.INSERT, 1, "x", "a")], schema)], schema)


def test_a_hundred_thousand_steps_are_planned_in_a_moment() -> None:
    import time

    ids = np.random.default_rng(1).integers(0, 50_000, 100_000)
    schema = TableSchema((Column("id", "bigint"), NAME), ("id",))
    count = len(ids)
    metadata = [np.zeros(count), np.zeros(count), np.arange(count), np.zeros(count), np.arange(count), np.arange(count)]
    arrays = [pa.array(m, f.type) for m, f in zip(metadata, METADATA, strict=True)]
    batch = pa.RecordBatch.from_arrays(
        [*arrays, pa.array(ids), pa.array(["x"] * count)], schema=pa.schema([*METADATA, *schema.arrow])
    )
    for mode, module in MODULES.items():
        began = time.monotonic()
        found = steps(mode, [Changes(batch, (gtid(1),), schema.hash)], schema)
        there = np.zeros(found.keys.num_rows, np.bool_)
        plan = module.plan(found, there, _empty(module, found))
        assert time.monotonic() - began < 2
        assert plan.images.num_rows == (count if mode == "history" else len(set(ids.tolist())))
