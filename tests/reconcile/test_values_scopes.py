"""Values of a part of what there is; comparisons that go on where another one ended; how fast the source is read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltalake
import orjson
import pytest

from cdc.errors import ConfigError
from cdc.names import TableName
from dev.mysql import MySQLServer
from reconcile.values import checksums, comparison
from reconcile.values import compare as values
from reconcile.values.found import TableValues
from reconcile.values.scope import Scope
from tests.faults.rig import Rig
from tests.integration.comparing import (
    ENTRIES,
    NUMBERS,
    PAIRS,
    ROWS,
    SHARDED,
    TEXTS,
    TIMES,
    compared,
    copied,
    delta,
    fill,
    like,
    opened,
    small,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """All tables, caught up; no daemon runs."""
    with MySQLServer() as server:
        fill(server)
        rig = Rig(tmp_path_factory.mktemp("base") / "p", server, [], settings={"tables": ENTRIES})
        assert rig.catch_up().returncode == 0
        yield rig
        rig.close()


@pytest.fixture
def rig(base: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    small(monkeypatch)
    with copied(base, tmp_path) as rig:
        yield rig


def different(found: TableValues) -> list[str]:
    return sorted(d.key for d in found.differences)


# -- scopes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [NUMBERS, TEXTS, SHARDED])
def test_columns_that_are_not_asked_for_are_not_compared(rig: Rig, table: str) -> None:
    delta(rig, table).update(updates={"x": "0.25"}, predicate="price = 700.50")
    rows = 2 if table == SHARDED else 1
    assert compared(rig, table, scope=Scope(columns=("name", "at"))).equal
    found = compared(rig, table, scope=Scope(columns=("x",)))
    assert [d.columns for d in found.differences] == [("x",)] * rows
    assert found.columns == ("x",)
    with pytest.raises(ConfigError, match="no column nothing"):
        compared(rig, table, scope=Scope(columns=("nothing",)))


def test_a_range_of_keys_has_both_its_ends(rig: Rig) -> None:
    delta(rig, NUMBERS).update(updates={"x": "0.25"}, predicate="id IN (90, 100, 110, 19990, 20000, 20010)")
    found = compared(rig, NUMBERS, scope=Scope(low=(100,), high=(20000,)))
    assert different(found) == ["100", "110", "19990", "20000"]
    assert found.source_rows == found.lake_rows == 1991
    assert found.range == "a range of keys"
    assert different(compared(rig, NUMBERS, scope=Scope(low=(20000,)))) == ["20000", "20010"]
    assert different(compared(rig, NUMBERS, scope=Scope(high=(95,)))) == ["90"]
    assert compared(rig, NUMBERS, scope=Scope(low=(101,), high=(101,))).source_rows == 0
    with pytest.raises(ConfigError, match="nothing is between"):
        compared(rig, NUMBERS, scope=Scope(low=(20000,), high=(100,)))
    pairs = compared(rig, PAIRS, scope=Scope(low=(1, "6161"), high=(1, "6162")))
    assert pairs.source_rows == pairs.lake_rows == 2


def test_a_range_of_keys_of_shards_and_of_those_that_the_server_alone_orders(rig: Rig) -> None:
    delta(rig, SHARDED).update(updates={"x": "0.25"}, predicate="id IN (20, 25, 29000, 29005)")
    found = compared(rig, SHARDED, scope=Scope(low=("v.shard_a", 100), high=("v.shard_b", 100)))
    assert different(found) == ["v.shard_a,29000", "v.shard_b,25"]
    for low, high in ((("v.shard_b", 5), ("v.shard_a", 9000)), (("v.shard_b", 9000), ("v.shard_b", 5))):
        with pytest.raises(ConfigError, match="nothing is between"):
            compared(rig, SHARDED, scope=Scope(low=low, high=high))
    with pytest.raises(ConfigError, match="only the server knows"):
        compared(rig, TEXTS, scope=Scope(low=("a",)))
    with pytest.raises(ConfigError, match="not a key"):
        compared(rig, NUMBERS, scope=Scope(low=("a",)))


@pytest.mark.parametrize("table", [NUMBERS, TIMES, TEXTS])
def test_rows_of_a_time_are_those_that_either_side_has_there(rig: Rig, table: str) -> None:
    # Minutes 100, 200, … of the year; the lake's row of minute 300 was moved out, that of minute 4000 into the window.
    lake = delta(rig, table)
    for minute, to in (
        (50, None),
        (100, None),
        (199, None),
        (200, None),
        (150, "2027-01-01"),
        (2000, "2026-01-01 02:30:00"),
    ):
        change = {"at": f"arrow_cast('{to}', 'Timestamp(Microsecond, None)')"} if to else {"name": "'stale'"}
        lake.update(updates=change, predicate=f"price = {minute}.50")
    scope = Scope(between=("at", "2026-01-01 01:40:00", "2026-01-01 03:20"))
    found = compared(rig, table, scope=scope)
    columns = sorted(d.columns for d in found.differences)
    assert columns == [("at",), ("at",), ("name",), ("name",)], found.differences
    assert found.source_rows == 100
    assert "at from 2026-01-01 01:40:00" in found.range
    with pytest.raises(ConfigError, match="none of dates or times"):
        compared(rig, table, scope=Scope(between=("name", "a", "b")))
    with pytest.raises(ConfigError, match="not a time"):
        compared(rig, table, scope=Scope(between=("at", "yesterday", "2026-01-01")))


@pytest.mark.parametrize("table", [NUMBERS, TEXTS, SHARDED])
def test_as_many_turns_as_it_takes_see_every_row(rig: Rig, table: str) -> None:
    turns = [compared(rig, table, scope=Scope(sample=0.25, turn=n)) for n in range(4)]
    rows = 2 * ROWS if table == SHARDED else ROWS
    assert sum(t.source_rows for t in turns) == sum(t.lake_rows for t in turns) == rows
    assert all(rows / 8 < t.source_rows < rows / 2 for t in turns)
    assert all(t.equal and t.sampled and 0.1 < t.sampled < 0.5 for t in turns)
    delta(rig, table).delete("price = 1000.50")
    turns = [compared(rig, table, scope=Scope(sample=0.25, turn=n)) for n in range(4)]
    assert sum(t.different for t in turns) == (2 if table == SHARDED else 1)


def test_a_sample_of_a_table_of_one_cell_is_that_cell(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, cell=100_000)
    assert compared(rig, NUMBERS, scope=Scope(sample=0.01, turn=7)).source_rows == ROWS


# -- keys alone --------------------------------------------------------------------------------------------------------


def test_keys_are_rechecked(rig: Rig) -> None:
    delta(rig, TEXTS).update(updates={"x": "0.25"}, predicate="id IN ('E2', 'é3')")
    with opened(rig) as (config, log, state):
        found = values.recheck(config, log, state, TableName.parse(TEXTS), [("E2",), ("E4",), ("none",)])
    assert (different(found), found.settled, found.rows_in_full) == (["E2"], 3, 2)
    with opened(rig) as (config, log, state), pytest.raises(ConfigError, match="not a key"):
        values.recheck(config, log, state, TableName.parse(NUMBERS), [("a",)])


# -- going on ----------------------------------------------------------------------------------------------------------


class Kept:
    """A checkpoint in memory, as JSON; `most` is how often it may be saved before the process is ended."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.data: dict[str, bytes] = {}
        self.most = most

    def load(self, table: str) -> dict[str, Any] | None:
        found = self.data.get(table)
        return None if found is None else dict(orjson.loads(found))

    def save(self, table: str, progress: dict[str, Any]) -> None:
        self.data[table] = orjson.dumps(progress)
        self.most -= 1
        if not self.most:
            raise KeyboardInterrupt


@pytest.mark.parametrize("table", [NUMBERS, PAIRS, SHARDED])
def test_what_was_done_before_is_not_done_again(rig: Rig, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    rows = 2 * ROWS if table == SHARDED else ROWS
    # Groups of about 700 rows.
    monkeypatch.setattr(comparison, "READ_S", 700.0)
    monkeypatch.setattr(comparison, "SPEED", 1)
    monkeypatch.setattr(comparison.Comparison, "_measured", lambda *_: None)
    delta(rig, table).delete("price IN (1.50, 1500.50, 3000.50)")
    at_once = compared(rig, table)
    kept = Kept(most=2)
    with pytest.raises(KeyboardInterrupt):
        compared(rig, table, checkpoint=kept)
    done = orjson.loads(kept.data[table])["counts"]["source_rows"]
    assert 0 < done < rows
    kept.most = 1 << 30
    told: list[int] = []
    found = compared(rig, table, checkpoint=kept, progress=lambda _, n: told.append(n))
    assert told[0] > done
    assert (found.source_rows, found.lake_rows) == (rows, rows - found.different)
    assert found.differences == at_once.differences
    assert found.found == at_once.found
    # A comparison that is over has nothing left to read.
    again = compared(rig, table, checkpoint=kept, progress=lambda *_: pytest.fail("read again"))
    assert (again.source_rows, again.different) == (found.source_rows, found.different)
    # Another scope is another comparison.
    assert compared(rig, table, checkpoint=kept, scope=Scope(columns=("x",))).source_rows == rows


def test_a_checkpoint_keeps_rows_that_no_source_can_have(rig: Rig) -> None:
    lake = delta(rig, NUMBERS)
    deltalake.write_deltalake(lake, like(lake, "id = 70", id=None), mode="append")
    kept = Kept()
    found = compared(rig, NUMBERS, checkpoint=kept)
    assert different(found) == ["NULL"]
    assert found.found is not None
    assert found.found.num_rows == 0
    assert compared(rig, NUMBERS, checkpoint=kept).differences == found.differences


def test_bounds_of_a_checkpoint_hold_no_values(rig: Rig) -> None:
    kept = Kept()
    compared(rig, NUMBERS, checkpoint=kept)
    assert b"n\xc3\xa4me" not in kept.data[NUMBERS]


# -- load --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [NUMBERS, TEXTS])
def test_the_source_is_read_as_fast_as_is_allowed(rig: Rig, table: str) -> None:
    began_s = time.monotonic()
    assert compared(rig, table, rows_per_second=1000).equal
    # A second's worth may be read at once.
    assert time.monotonic() - began_s > (ROWS - 1000) / 1000 - 0.5


def test_a_pause_ends_the_view(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "READ_S", 0.5)
    views: list[float] = []
    view = checksums.Group.run

    def counted(group: checksums.Group, spans: Any) -> Any:
        began_s = time.monotonic()
        found = view(group, spans)
        views.append(time.monotonic() - began_s)
        return found

    monkeypatch.setattr(checksums.Group, "run", counted)
    found = compared(rig, NUMBERS, rows_per_second=600)
    assert found.equal
    assert found.source_rows == ROWS
    assert len(views) > 2
