"""Reconciliation on real servers: nothing is found where nothing is wrong, and what was planted is found."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import deltalake
import orjson
import pyarrow as pa
import pytest

from cdc.config import load
from cdc.epoch import CommitRecord
from cdc.lake import manifest
from cdc.log import open_log
from cdc.names import TableName
from cdc.state import State
from cdc.trace.client import client
from cdc.trace.tables import ARROW, NODES
from dev.mysql import MySQLServer
from reconcile.values import compare as values
from reconcile.values import sources
from reconcile.values.windows import Windows
from tests.faults.rig import PASSWORD, Rig

ROWS = 500
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        started.execute("CREATE DATABASE r")
        yield started


@pytest.fixture(scope="module")
def base(server: MySQLServer, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Two tables, caught up; no daemon runs."""
    server.execute(
        "CREATE TABLE r.items (id INT PRIMARY KEY, name VARCHAR(50), price DECIMAL(10,2), at DATETIME(3), x DOUBLE)"
    )
    server.execute(
        "CREATE TABLE r.pairs (a VARCHAR(20), b INT, v BIGINT UNSIGNED, raw VARBINARY(20), PRIMARY KEY (a, b))"
    )
    items = ", ".join(f"({i}, 'näme {i}', {i}.50, '2026-01-01 00:00:00.{i:03}', {i} / 3)" for i in range(1, ROWS + 1))
    server.execute(f"INSERT INTO r.items VALUES {items}")
    server.execute(
        f"INSERT INTO r.pairs VALUES {', '.join(f'(CHAR(97 + {i} % 26), {i}, {i}, {i})' for i in range(ROWS))}"
    )
    made = Rig(tmp_path_factory.mktemp("base") / "p", server, ["r.items", "r.pairs"])
    assert made.catch_up().returncode == 0
    server.execute("UPDATE r.items SET price = price + 1 WHERE id <= 20")
    server.execute("UPDATE r.pairs SET b = b + 1000 WHERE b < 10")
    server.execute("DELETE FROM r.items WHERE id = 500")
    assert made.catch_up().returncode == 0
    return made


@pytest.fixture
def rig(base: Rig, tmp_path: Path) -> Iterator[Rig]:
    """A copy of its own, of everything but the source; caught up, where a test before wrote to that."""
    # ClickHouse's folder cannot be copied; the trace is made again.
    shutil.copytree(base.folder, tmp_path / "p", ignore=shutil.ignore_patterns("trace", "trace.json"))
    copy = Rig(tmp_path / "p", base.server, base.tables)
    assert isinstance(copy.server, MySQLServer)
    if copy.server.gtid_executed != base_gtids(base):
        assert copy.catch_up().returncode == 0
    yield copy
    copy.close()


def base_gtids(base: Rig) -> str:
    """What the base has of the source."""
    found = manifest.read(base.lake, "p")
    assert found
    return str(found.applied.position.gtids)


def reconcile(rig: Rig, *arguments: str, code: int) -> dict[str, Any]:
    done = rig.lakesync("reconcile", *arguments, "--json")
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    report: dict[str, Any] = orjson.loads(done.stdout)
    return report


def values_of(report: dict[str, Any], table: str) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in report["values"]["tables"] if t["table"] == table)
    return found


def test_nothing_is_found_where_nothing_is_wrong(rig: Rig) -> None:
    report = reconcile(rig, "--ledger", "--values", code=0)
    assert report["agrees"]
    items = values_of(report, "r.items")
    assert (items["source_rows"], items["lake_rows"], items["different"]) == (ROWS - 1, ROWS - 1, 0)
    ledger = {t["table"]: t for t in report["ledger"]["tables"]}
    captured = next(e for e in ledger["r.items"]["equations"] if e["name"] == "captured = logged")
    assert captured["left"] == captured["right"] == 21
    assert next(e for e in ledger["r.pairs"]["equations"] if e["name"].startswith("effective"))["left"] == 20


@pytest.mark.parametrize(
    ("plant", "key", "kind", "ledger_closes"),
    [
        (lambda t: t.delete("id = 77"), "77", "missing in the lake", False),
        (lambda t: t.update(updates={"price": "1.23"}, predicate="id = 77"), "77", "different", True),
        (lambda t: t.update(updates={"x": "-0.0"}, predicate="id = 77"), "77", "different", True),
        (lambda t: deltalake.write_deltalake(t, extra(t, 9999), mode="append"), "9999", "extra in the lake", False),
        (lambda t: deltalake.write_deltalake(t, extra(t, 77), mode="append"), "77", "2 times in the lake", False),
    ],
    ids=["lost", "changed", "negative-zero", "extra", "twice"],
)
def test_what_others_did_to_the_lake_is_found(
    rig: Rig, plant: Callable[[deltalake.DeltaTable], None], key: str, kind: str, ledger_closes: bool
) -> None:
    plant(deltalake.DeltaTable(str(rig.lake / "r" / "items")))
    report = reconcile(rig, "--ledger", "--values", code=1)
    found = values_of(report, "r.items")
    assert [(d["key"], d["kind"]) for d in found["differences"]] == [(key, kind)]
    assert values_of(report, "r.pairs")["equal"]
    assert report["ledger"]["closes"] == ledger_closes


def extra(table: deltalake.DeltaTable, key: int) -> pa.Table:
    """One row of the table, with another key."""
    row = pa.table(table.scan(predicate="id = 77")).to_pylist()[0] | {"id": key}
    return pa.Table.from_pylist([row], schema=pa.table(table.scan()).schema)


def test_what_is_not_in_the_binary_log_is_found(rig: Rig) -> None:
    with rig.server.root() as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_log_bin = 0")
        cursor.execute("UPDATE r.items SET name = 'hidden' WHERE id = 3")
        cursor.execute("DELETE FROM r.pairs WHERE b = 100")
        try:
            report = reconcile(rig, "--ledger", "--values", code=1)
        finally:
            # For the tests that come after: as it was, and no more in the binary log than the rest.
            cursor.execute("UPDATE r.items SET name = 'näme 3' WHERE id = 3")
            cursor.execute("INSERT INTO r.pairs VALUES (CHAR(97 + 100 % 26), 100, 100, 100)")
    assert report["ledger"]["closes"]
    assert values_of(report, "r.items")["differences"] == [{"key": "3", "kind": "different", "columns": ["name"]}]
    assert [d["kind"] for d in values_of(report, "r.pairs")["differences"]] == ["extra in the lake"]


def test_a_count_that_is_wrong_is_found(rig: Rig) -> None:
    reconcile(rig, "--ledger", code=0)
    config = load(rig.config)
    assert config.trace
    with client(config.trace) as opened:
        rows = opened.query_arrow(
            f"SELECT * FROM {NODES} FINAL WHERE node = 'capture' AND `table` = 'r.items' ORDER BY number DESC LIMIT 1"
        )
        wrong = rows.to_pylist()[0]
        wrong["updates"] += 1
        opened.insert_arrow(NODES, pa.Table.from_pylist([wrong], schema=ARROW))
    report = reconcile(rig, "--ledger", code=1)
    bad = [e for t in report["ledger"]["tables"] for e in t["equations"] if not e["holds"]]
    assert [(e["name"], e["gap"]) for e in bad] == [("captured = logged", -1)]
    assert bad[0]["where"] == f"epoch {wrong['number']}"


def test_a_lake_that_does_not_follow_is_said_to(rig: Rig) -> None:
    rig.server.execute("INSERT INTO r.items (id) VALUES (7000)")
    done = rig.lakesync("reconcile", "--values")
    assert done.returncode == 3, done.stdout
    assert "does not follow" in done.stderr
    assert "lakesync run" in done.stderr


def test_keys_that_the_server_takes_for_equal_are_told_apart(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIG_PASSWORD", PASSWORD)
    monkeypatch.setattr(sources, "POINT_ROWS", 1)  # the two keys of a change are then read by two statements
    config = load(rig.config)
    opened = Windows.open
    changed: list[int] = []

    def open_and_change(of: Windows) -> CommitRecord:
        found = opened(of)
        if not changed:
            changed.append(found.number)
            rig.server.execute("UPDATE r.pairs SET a = UPPER(a) WHERE b BETWEEN 1000 AND 1003")
        return found

    monkeypatch.setattr(Windows, "open", open_and_change)
    daemon = rig.start()
    with closing(open_log(config.log, config.name)) as log:
        report = values.compare(config, log, State(config.state), [TableName("r", "pairs")])
    assert rig.stop(daemon) == 0
    assert report.equal, report
    assert report.tables[0].settled == 8


@pytest.mark.parametrize("flavor", ["mysql", "mariadb"])
def test_every_type_and_what_does_not_fit_is_compared(
    request: pytest.FixtureRequest, tmp_path: Path, flavor: str
) -> None:
    server: Any = request.getfixturevalue(flavor)
    schema = request.getfixturevalue("schema" if flavor == "mysql" else "mariadb_schema")
    table = TableName(schema, "odd")
    server.execute(
        f"CREATE TABLE {table.quoted} (k TIME(2), b BIT(9), t VARCHAR(9) CHARACTER SET cp1250, y YEAR, f FLOAT, s SET('x','é') CHARACTER SET latin1,"
        " j JSON, d DATE, dt DATETIME(1), ts TIMESTAMP(6) NULL, g POINT, l DECIMAL(50,5), bb BIT(1), secret INT, PRIMARY KEY (k, b, t))"
    )

    def write(*statements: str) -> None:
        with server.root(init_command="SET sql_mode = 'ALLOW_INVALID_DATES'") as writer, writer.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def row(n: int) -> str:
        day = ("'0000-00-00'", "'2024-02-31'", "'2024-02-29'", "NULL")[n % 4]
        return (
            f"(SEC_TO_TIME(-3000 + {n} * 100.25), {n * 5}, CONCAT('ž', {n}), {1990 + n}, {n} / 3e0, {n % 4}, '{{\"b\": {n}.50, \"a\": 1}}', {day}, {day}, NULL,"
            f" POINT({n}, 1), {n}.00001, {n % 2}, {n})"
        )

    write(f"INSERT INTO {table.quoted} VALUES {', '.join(map(row, range(60)))}")
    entry = {"name": f"{schema}.odd", "exclude": ["secret"], "types": {"dt": "string"}}
    rig = Rig(tmp_path / "p", server, [], settings={"tables": [entry]})
    try:
        assert rig.catch_up().returncode == 0
        write(
            f"INSERT INTO {table.quoted} VALUES {', '.join(map(row, range(60, 99)))}",
            f"UPDATE {table.quoted} SET d = '2023-02-30', f = -0.1, g = NULL WHERE y < 2000",
            f"UPDATE {table.quoted} SET b = b + 1, bb = NOT bb WHERE y BETWEEN 2001 AND 2010",
            f"DELETE FROM {table.quoted} WHERE y = 2020",
        )
        assert rig.catch_up().returncode == 0
        found = values_of(reconcile(rig, "--values", code=0), str(table))
        assert (found["source_rows"], found["lake_rows"], found["different"]) == (98, 98, 0)
        # By the sums alone: nothing had to be read in full.
        assert (found["chunks_unlike"], found["rows_in_full"]) == (0, 0)
        lake = deltalake.DeltaTable(str(rig.lake / schema / "odd"))
        kept = pa.table(lake.scan(columns=["y", "_cdc_unfit"])).to_pylist()
        assert {r["y"]: dict(r["_cdc_unfit"] or {}) for r in kept}[1991] == {"d": "2023-02-30"}
        assert "secret" not in [field.name for field in lake.schema().fields]
        lake.delete("y IN (1992, 2005)")
        with server.root() as connection, connection.cursor() as cursor:
            cursor.execute("SET sql_mode = 'ALLOW_INVALID_DATES', sql_log_bin = 0")
            cursor.execute(f"UPDATE {table.quoted} SET d = '0000-00-00' WHERE y = 1991")
        found = values_of(reconcile(rig, "--values", code=1), str(table))
        assert sorted((d["kind"], d["columns"]) for d in found["differences"]) == [
            ("different", ["d"]),
            ("missing in the lake", []),
            ("missing in the lake", []),
        ]
    finally:
        rig.close()


def test_no_false_alarm_while_writes_go_on(rig: Rig) -> None:
    daemon = rig.start()
    stop = threading.Event()

    def write() -> None:
        with rig.server.root() as connection, connection.cursor() as cursor:
            step = 0
            while not stop.wait(0.002):
                step += 1
                cursor.execute("UPDATE r.items SET x = %s WHERE id = %s", (step, 1 + step % 40))
                cursor.execute("UPDATE r.pairs SET b = b + 5000, v = %s WHERE b %% 97 = %s LIMIT 1", (step, step % 97))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = reconcile(rig, "--values", code=0)
        assert sum(t["settled"] for t in report["values"]["tables"]) > 0
    finally:
        stop.set()
        writer.join()
    assert rig.stop(daemon) == 0


def test_a_report_that_cannot_be_written_is_refused(rig: Rig) -> None:
    done = rig.lakesync("reconcile", "--ledger", "--report", str(rig.folder / "none" / "report.json"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_an_unknown_table_is_refused(rig: Rig) -> None:
    done = rig.lakesync("reconcile", "r.nothing", "--values")
    assert done.returncode == 2
    assert "r.nothing" in done.stderr
