"""Transactions that are larger than capture's memory may be, and values that fit no type of the lake, from a real source to the proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from tests.faults.rig import Rig

ROWS = 4000
PARTS = {"capture": {"part_size": "64KiB"}, "snapshot": {"chunk_rows": 700}}


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with MySQLServer(options=["--sql-mode="]) as started:
        yield started


@pytest.fixture
def rig(server: MySQLServer, tmp_path: Path) -> Iterator[Rig]:
    """Two tables with rows, caught up."""
    server.execute("DROP DATABASE IF EXISTS large")
    server.execute("CREATE DATABASE large")
    server.execute("CREATE TABLE large.items (id INT PRIMARY KEY, n INT, note VARCHAR(60))")
    server.execute("CREATE TABLE large.events (id INT PRIMARY KEY, n INT)")
    values = ", ".join(f"({i}, {i}, REPEAT('x', {i % 50}))" for i in range(ROWS))
    server.execute(f"INSERT INTO large.items VALUES {values}")
    made = Rig(tmp_path / "p", server, ["large.items"], settings=PARTS | {"tables": TABLES})
    assert made.catch_up().returncode == 0
    yield made
    made.close()


TABLES: list[Any] = ["large.items", {"name": "large.events", "mode": "append"}]


def epochs(rig: Rig) -> list[dict[str, Any]]:
    done = rig.lakesync("log")
    assert done.returncode == 0, done.stderr
    return [orjson.loads(line) for line in done.stdout.splitlines()]


def large(server: SqlServer) -> None:
    """One transaction over both tables, in many row events: changed keys, deletions, insertions."""
    with server.root() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE large.items SET n = n + 1")
        cursor.execute(f"UPDATE large.items SET id = id + {10 * ROWS} WHERE id % 7 = 0")
        cursor.execute("INSERT INTO large.events SELECT id, n FROM large.items WHERE id % 3 = 0")
        cursor.execute("DELETE FROM large.items WHERE id % 5 = 0")
        cursor.execute("INSERT INTO large.items SELECT id - 100000, n, note FROM large.items WHERE id % 2 = 0")
        cursor.execute("COMMIT")


def check(rig: Rig) -> None:
    verdict = rig.verdict()
    assert verdict.green, str(verdict)
    source = rig.server.execute("SELECT id, n FROM large.events ORDER BY id")
    lake = pl.read_delta(str(rig.lake / "large" / "events")).sort("id")
    assert lake.select("id", "n").rows() == [tuple(row) for row in source], "each change is appended once"


@pytest.mark.timeout(300)
def test_a_large_transaction_comes_in_parts_and_the_proofs_hold(rig: Rig) -> None:
    large(rig.server)
    assert rig.catch_up().returncode == 0
    parts = [epoch for epoch in epochs(rig) if epoch["end"].get("partial")]
    assert len(parts) > 3
    assert sum(epoch["transactions"] for epoch in parts) == 0
    check(rig)


KILLS = [
    "log.after-commit:5",
    "log.before-commit:6",
    "lake.after-commit:2",
    "lake.before-commit:2",
    "merge.after-round:1",
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", KILLS)
def test_killed_within_a_large_transaction(rig: Rig, fault: str) -> None:
    large(rig.server)
    assert rig.catch_up(faults=f"kill:{fault}").returncode == -9
    assert rig.catch_up().returncode == 0
    check(rig)


@pytest.mark.timeout(300)
def test_a_table_is_added_while_a_large_transaction_comes_in(rig: Rig) -> None:
    """It is added behind its end, and bootstrapped from there."""
    large(rig.server)
    rig.server.execute("CREATE TABLE large.late AS SELECT id, n FROM large.items")
    rig.server.execute("ALTER TABLE large.late ADD PRIMARY KEY (id)")
    with rig.server.root() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for _ in range(3):
            cursor.execute("UPDATE large.late SET n = n + 1")
            cursor.execute("UPDATE large.items SET n = n + 1")
        cursor.execute("COMMIT")
    data = orjson.loads(rig.config.read_bytes())
    data["tables"].append("large.late")
    rig.config.write_bytes(orjson.dumps(data))
    rig.tables = (*rig.tables, "large.late")
    assert rig.catch_up(faults="kill:log.after-commit:3").returncode == -9
    assert rig.catch_up().returncode == 0
    assert [e["end"].get("partial") for e in epochs(rig) if e["added"]] == [None] * 2
    check(rig)


@pytest.mark.timeout(300)
def test_values_that_do_not_fit_reach_the_lake_as_text_and_are_no_difference(
    server: MySQLServer, tmp_path: Path
) -> None:
    server.execute("DROP DATABASE IF EXISTS odd")
    server.execute("CREATE DATABASE odd")
    server.execute("CREATE TABLE odd.dates (id INT PRIMARY KEY, d DATE, at DATETIME(3))")
    server.execute("CREATE TABLE odd.log (id INT PRIMARY KEY, d DATE)")
    for i in range(20):
        server.execute(f"INSERT INTO odd.dates VALUES ({i}, '2024-01-02', '2024-01-02 03:04:05.678')")
    rig = Rig(
        tmp_path / "p", server, ["odd.dates"], settings={"tables": ["odd.dates", {"name": "odd.log", "mode": "append"}]}
    )
    read: Callable[[str], pl.DataFrame] = lambda table: pl.read_delta(str(rig.lake / "odd" / table)).sort("id")  # noqa: E731
    try:
        assert rig.catch_up().returncode == 0
        assert "_cdc_unfit" not in read("dates").columns
        server.execute("UPDATE odd.dates SET d = '0000-00-00' WHERE id IN (3, 4)")
        server.execute("UPDATE odd.dates SET at = '2024-00-01 00:00:00' WHERE id = 4")
        server.execute("INSERT INTO odd.log VALUES (1, '2024-01-01'), (2, '0000-00-00')")
        assert rig.catch_up().returncode == 0
        dates = read("dates")
        assert dates.columns[-1] == "_cdc_unfit"
        unfit = {row["id"]: row["_cdc_unfit"] for row in dates.to_dicts() if row["_cdc_unfit"]}
        assert unfit == {3: {"d": "0000-00-00"}, 4: {"d": "0000-00-00", "at": "2024-00-01 00:00:00.000000"}}
        assert dates.filter(pl.col("id") == 3)["d"].to_list() == [None]
        assert [bool(v) for v in read("log")["_cdc_unfit"].to_list()] == [False, True]
        done = rig.lakesync("reconcile", "--ledger", "--values")
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [orjson.loads(line) for line in rig.lakesync("log", "--table", "odd.log").stdout.splitlines()]
        assert [line.get("unfit") for line in lines] == [None, {"d": "0000-00-00"}]
        assert all("_cdc_unfit" not in line["row"] for line in lines)
        # Bootstrapped again, it has the column since its rows need it; and no more once they do not.
        for expected in (True, False):
            assert rig.lakesync("resync", "odd.dates").returncode == 0
            assert rig.catch_up().returncode == 0
            assert ("_cdc_unfit" in read("dates").columns) == expected
            done = rig.lakesync("reconcile", "--ledger", "--values")
            assert done.returncode == 0, done.stdout + done.stderr
            server.execute("DELETE FROM odd.dates WHERE id IN (3, 4)")
    finally:
        rig.close()
