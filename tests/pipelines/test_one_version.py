"""One version of all tables by the manifest, as the docs' example reads it, while money moves between two tables of a live source."""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dev.mysql import MySQLServer
from tests.faults.rig import Rig

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "consistent.py"
ACCOUNTS, BALANCE = 50, 1000
READS = 60
TABLES = ("savings", "current", "moves")


def example() -> Any:
    """The example, as a module."""
    spec = importlib.util.spec_from_file_location("consistent", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["consistent"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def moving_money(server: MySQLServer, schema: str) -> Iterator[list[int]]:
    """Transfers from `savings` to `current` and back, each with a line in `moves`, in one transaction each; how many there were."""
    moved, stop, errors = [0], threading.Event(), list[BaseException]()
    chance = random.Random(7)

    def work() -> None:
        try:
            with server.root() as connection, connection.cursor() as cursor:
                while not stop.is_set():
                    amount, number = chance.randint(-20, 20), moved[0] + 1
                    cursor.execute("BEGIN")
                    cursor.execute(
                        f"UPDATE {schema}.savings SET amount = amount - %s WHERE id = %s",
                        (amount, chance.randrange(ACCOUNTS)),
                    )
                    cursor.execute(f"INSERT INTO {schema}.moves VALUES (%s, %s)", (number, amount))
                    cursor.execute(
                        f"UPDATE {schema}.current SET amount = amount + %s WHERE id = %s",
                        (amount, chance.randrange(ACCOUNTS)),
                    )
                    cursor.execute("COMMIT")
                    moved[0] = number
                    time.sleep(0.001)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield moved
    finally:
        stop.set()
        thread.join()
    assert not errors, errors


def wrong(sums: dict[str, int]) -> bool:
    """No money comes or goes, and `moves` says how much went over."""
    return (
        sums["savings"] + sums["current"] != 2 * ACCOUNTS * BALANCE
        or sums["current"] - ACCOUNTS * BALANCE != sums["moves"]
    )


def by_polars(now: Any, schema: str) -> dict[str, int]:
    return {t: now.polars(f"{schema}.{t}").select(pl.col("amount").sum()).collect().item() or 0 for t in TABLES}


def by_deltalake(now: Any, schema: str) -> dict[str, int]:
    found = {t: pa.table(now.delta(f"{schema}.{t}").scan(columns=["amount"])) for t in TABLES}
    return {t: int(pc.sum(rows.column("amount")).as_py() or 0) for t, rows in found.items()}


def without_the_manifest(lake: Path, schema: str) -> dict[str, int]:
    """Each table at its newest version."""
    return {
        t: pl.scan_delta(str(lake / schema / t)).select(pl.col("amount").sum()).collect().item() or 0 for t in TABLES
    }


@pytest.mark.timeout(300)
def test_no_transfer_is_seen_by_half(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    for table in ("savings", "current"):
        mysql.execute(f"CREATE TABLE {schema}.{table} (id INT PRIMARY KEY, amount BIGINT NOT NULL)")
        mysql.execute(f"INSERT INTO {schema}.{table} VALUES " + ", ".join(f"({i}, {BALANCE})" for i in range(ACCOUNTS)))
    mysql.execute(f"CREATE TABLE {schema}.moves (id BIGINT PRIMARY KEY, amount BIGINT NOT NULL)")
    consistent = example().consistent
    rig = Rig(tmp_path / "bank", mysql, [f"{schema}.{t}" for t in TABLES], settings={"merge": {"every": "100ms"}})
    names = [f"{schema}.{t}" for t in TABLES]
    try:
        # Between a table's commit and the next one's there is time for readers to look.
        daemon = rig.start(faults="sleep:lake.before-commit=0.05")
        for name in names:
            rig.wait_phase(name, "ready")
        rig.wait(lambda: set(consistent(str(rig.lake), "bank").versions) == set(names), "all are in the manifest")
        epochs: set[int] = set()
        torn = 0
        with moving_money(mysql, schema) as moved:
            deadline = time.monotonic() + 120
            while (len(epochs) < READS // 3 or torn == 0) and time.monotonic() < deadline:
                now = consistent(str(rig.lake), "bank")
                assert set(now.versions) == set(names)
                for read in (by_polars, by_deltalake):
                    sums = read(now, schema)
                    assert not wrong(sums), (now, sums)
                epochs.add(now.epoch)
                torn += wrong(without_the_manifest(rig.lake, schema))
        assert len(epochs) >= READS // 3
        assert torn, "the test cannot fail: not even the newest versions were ever from different moments"
        status = rig.status()
        assert status["manifest"]["epoch"] == status["manifest_epoch"]
        assert {t["table"] for t in status["tables"] if t["in_manifest"]["ready"]} == set(names)
        rig.stop(daemon)
        assert rig.catch_up().returncode == 0
        now = consistent(str(rig.lake), "bank")
        assert by_polars(now, schema) == by_deltalake(now, schema) == without_the_manifest(rig.lake, schema)
        assert now.polars(f"{schema}.moves").collect().height == moved[0]
        print(f"{moved[0]} transfers, {len(epochs)} manifests, {torn} reads without a manifest saw a transfer by half")
    finally:
        rig.close()
