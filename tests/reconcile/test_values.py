"""Values by sums: what was planted is found, wherever it is, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import pytest

from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from reconcile.values import comparison
from reconcile.values.found import TableValues
from tests.faults.rig import Rig
from tests.integration.comparing import (
    ENTRIES,
    NUMBERS,
    PAIRS,
    ROWS,
    SHARDED,
    TEXTS,
    TIMES,
    compare,
    compared,
    copied,
    delta,
    fill,
    like,
    small,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=["mysql", "mariadb"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """All tables, caught up; no daemon runs."""
    with (MySQLServer if request.param == "mysql" else MariaDBServer)() as server:
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


def test_nothing_is_found_where_nothing_is_wrong(rig: Rig) -> None:
    report = compare(rig)
    found = {t.table: t for t in report.tables}
    assert report.equal
    assert {t: f.source_rows for t, f in found.items()} == {
        NUMBERS: ROWS,
        PAIRS: ROWS,
        TIMES: ROWS,
        TEXTS: ROWS,
        SHARDED: 2 * ROWS,
    }
    for one in found.values():
        assert (one.lake_rows, one.checked_rows, one.rows_in_full) == (one.source_rows, one.source_rows, 0), one
        assert one.chunks >= 4
        assert (one.chunks_unlike, one.version >= 0, bool(one.position)) == (0, True, True)


@pytest.mark.parametrize(
    ("table", "first", "middle", "last", "below", "above"),
    [
        (NUMBERS, "id = 10", "id = 15000", "id = 30000", {"id": -7}, {"id": 2**40}),
        (PAIRS, "a = 0 AND b = 'ab'", "a = 2 AND b = 'cd'", None, {"a": -1, "b": b""}, {"a": 0, "b": b"\xff"}),
        (TEXTS, "id = 'E2'", "id = 'é1501'", "id = 'é999'", {"id": ""}, {"id": "zzz"}),
        (SHARDED, "shard = 'v.shard_a' AND id = 10", "id = 15005", "shard = 'v.shard_b' AND id = 30005", {"id": 0}, {"id": 70000}),
    ],
    ids=["numbers", "pairs", "texts", "shards"],
)  # fmt: skip
def test_what_others_did_to_the_lake_is_found(
    rig: Rig, table: str, first: str, middle: str, last: str | None, below: dict[str, Any], above: dict[str, Any]
) -> None:
    lake = delta(rig, table)
    more = [like(lake, middle, **below), like(lake, middle, **above), like(lake, middle)]
    for rows in more:
        deltalake.write_deltalake(lake, rows, mode="append")
    for where in filter(None, (first, last)):
        lake.delete(_sql(where))
    found = compared(rig, table)
    kinds = sorted(d.kind for d in found.differences)
    lost = ["missing in the lake"] * (1 + (last is not None))
    assert kinds == ["2 times in the lake", *["extra in the lake"] * 2, *lost], found.differences
    assert not found.equal
    assert (found.different, found.complete) == (len(kinds), True)
    assert found.found is not None
    assert found.found.num_rows == found.different
    # Of most rows not one value was read.
    assert found.rows_in_full <= len(kinds)


def _sql(predicate: str) -> str:
    """`predicate`, for binary columns too."""
    return predicate.replace("b = 'ab'", "b = arrow_cast('ab', 'Binary')").replace(
        "b = 'cd'", "b = arrow_cast('cd', 'Binary')"
    )


@pytest.mark.parametrize("table", [NUMBERS, TIMES, TEXTS, SHARDED])
def test_what_is_not_in_the_binary_log_is_found(rig: Rig, table: str) -> None:
    name = "v.shard_a" if table == SHARDED else table
    with rig.server.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_log_bin = 0")
        cursor.execute(f"UPDATE {name} SET name = 'stale' WHERE price = 1234.50")
        cursor.execute(f"UPDATE {name} SET x = NULL, price = 0 WHERE price = 7.50")
        cursor.execute(f"CREATE TABLE v.kept AS SELECT * FROM {name} WHERE price = 99.50")
        cursor.execute(f"DELETE FROM {name} WHERE price = 99.50")
        try:
            found = compared(rig, table, show_values=True)
        finally:
            cursor.execute(f"INSERT INTO {name} SELECT * FROM v.kept")
            cursor.execute("DROP TABLE v.kept")
            cursor.execute(f"UPDATE {name} SET name = 'näme 1234' WHERE name = 'stale'")
            cursor.execute(f"UPDATE {name} SET x = 7 / 3, price = 7.50 WHERE price = 0")
    by_kind = {d.kind + str(d.columns): d for d in found.differences}
    assert len(by_kind) == len(found.differences) == 3
    stale = by_kind["different('name',)"]
    assert (stale.before, stale.after) == ({"name": "näme 1234"}, {"name": "stale"})
    nulled = by_kind["different('price', 'x')"]
    assert nulled.after == {"price": "0.00", "x": None}
    extra = by_kind["extra in the lake()"]
    assert extra.after is None
    assert extra.before is not None
    assert extra.before["price"] == "99.50"
    assert compared(rig, table).equal


def test_a_lake_that_lost_all_its_rows_is_compared(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (NUMBERS, TEXTS, SHARDED):
        delta(rig, table).delete()
        found = compared(rig, table)
        assert found.source_rows == found.different == (2 * ROWS if table == SHARDED else ROWS)
        assert found.lake_rows == 0
        assert {d.kind for d in found.differences} == {"missing in the lake"}
    monkeypatch.setattr(comparison, "KEYS_MOST", 100)
    many = compared(rig, NUMBERS)
    assert not many.complete
    assert not many.equal
    assert many.different >= ROWS
    assert_ranges(many, range(10, 10 * ROWS + 1, 10))


def test_a_source_that_lost_all_its_rows_is_compared(rig: Rig) -> None:
    with rig.server.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_log_bin = 0")
        for name in ("numbers", "texts"):
            cursor.execute(f"CREATE TABLE v.all_{name} AS SELECT * FROM v.{name}")
            cursor.execute(f"DELETE FROM v.{name}")
        try:
            reports = [compared(rig, table) for table in (NUMBERS, TEXTS)]
        finally:
            for name in ("numbers", "texts"):
                cursor.execute(f"INSERT INTO v.{name} SELECT * FROM v.all_{name}")
                cursor.execute(f"DROP TABLE v.all_{name}")
    for found in reports:
        assert (found.source_rows, found.lake_rows, found.different) == (0, ROWS, ROWS)


def assert_ranges(found: TableValues, keys: Iterable[int]) -> None:
    """Every one of these keys is named, or in one of the ranges."""
    assert found.found is not None
    named = {row["id"] for row in found.found.to_pylist()}
    for key in keys:
        assert key in named or any(low <= key <= high for low, high in ranges(found)), key


def ranges(found: TableValues) -> list[tuple[float, float]]:
    """Of a table whose key is a number."""
    return [
        (float(r.low[0]) if r.low else -math.inf, float(r.high[0]) if r.high else math.inf) for r in found.unlike_ranges
    ]


def test_where_too_many_differ_the_rest_is_in_ranges(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "KEYS_MOST", 50)
    lake = delta(rig, NUMBERS)
    lake.update(updates={"price": "price + 1"}, predicate="id > 9000 AND id <= 24000")
    found = compared(rig, NUMBERS)
    assert (found.complete, found.equal) == (False, False)
    assert 50 < len(found.differences) < 1500
    assert found.unlike_ranges
    assert_ranges(found, range(9010, 24001, 10))
    # A chunk more on either side at most.
    assert all(low > 9000 - 8000 and high < 24000 + 8000 for low, high in ranges(found))


def test_rows_that_no_source_can_have_are_found(rig: Rig) -> None:
    lake = delta(rig, NUMBERS)
    deltalake.write_deltalake(lake, like(lake, "id = 70", id=None), mode="append")
    found = compared(rig, NUMBERS)
    assert [(d.key, d.kind) for d in found.differences] == [("NULL", "extra in the lake")]
    lake = delta(rig, SHARDED)
    deltalake.write_deltalake(lake, like(lake, "id = 70", shard="v.gone"), mode="append")
    found = compared(rig, SHARDED)
    assert [(d.key, d.kind) for d in found.differences] == [("v.gone,70", "extra in the lake")]
