"""Reconciliation of what came in windows: rows read again, sharded tables, backfilled ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import deltalake
import polars
import pytest

from cdc.config import PipelineConfig, TraceConfig
from cdc.epoch import WindowId
from cdc.errors import NotFollowingError
from cdc.lake import deltalog, manifest, open_folder
from cdc.names import TableName
from cdc.reads import ReadSpec
from cdc.schema import Column, TableSchema
from cdc.trace.client import client
from cdc.trace.tables import NODES
from dev.mysql import MySQLServer
from reconcile.ledger import close as ledger
from reconcile.ledger.close import LedgerReport, TableLedger
from reconcile.values import compare as values
from reconcile.values.compared import Compared
from reconcile.values.scope import WHOLE
from tests.integration import history
from tests.integration.rereading import Rereading

pytestmark = pytest.mark.timeout(240)
SALES = TableName("w", "sales")
PLAIN = TableName("w", "plain")
KEPT = TableName("w", "kept")
ROWS = 120


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        yield started


@pytest.fixture
def rig(server: MySQLServer, tmp_path: Path) -> Rereading:
    """Three tables: one to be read again, one with a backfill, one of two shards."""
    server.execute("DROP DATABASE IF EXISTS w")
    server.execute("CREATE DATABASE w")
    for name in ("plain", "kept", "sales_1", "sales_2"):
        server.execute(f"CREATE TABLE w.{name} (id INT, name VARCHAR(20), at DATETIME(3), PRIMARY KEY (name, id))")
        rows = ", ".join(f"({i}, 'näme {i % 7}', '2026-01-01 00:00:00.{i:03}')" for i in range(ROWS))
        server.execute(f"INSERT INTO w.{name} VALUES {rows}")
    entries: list[Any] = [
        "w.plain",
        {"name": "w.kept", "mode": "append", "backfill": True},
        {"name": "w.sales_*", "into": "w.sales", "shard_column": "shard"},
    ]
    return Rereading(tmp_path, server, entries)


def config_of(rig: Rereading, folder: Path) -> PipelineConfig:
    return rig.config.model_copy(update={"trace": TraceConfig(url=f"chdb://{folder}/trace")})


def closed(rig: Rereading, folder: Path) -> tuple[LedgerReport, list[dict[str, Any]]]:
    """The ledger, and the trace's rows."""
    config = config_of(rig, folder)
    assert config.trace
    with client(config.trace) as opened:
        report = ledger.close(opened, config, rig.log)
        answer = opened.query(f"SELECT * FROM {NODES} FINAL")
        return report, [dict(row) for row in answer.named_results()]


def of(report: LedgerReport, table: TableName) -> TableLedger:
    return next(t for t in report.tables if t.table == str(table))


def equation(found: TableLedger, name: str) -> tuple[int, int]:
    return next((e.left, e.right) for e in found.equations if e.name.startswith(name))


def sharded(rig: Rereading) -> list[tuple[Any, ...]]:
    """What the lake is to have of the shards."""
    return sorted(
        (
            (*row, str(shard))
            for shard in (TableName("w", "sales_1"), TableName("w", "sales_2"))
            for row in rig.source(shard)
        ),
        key=repr,
    )


def test_values_and_ledger_of_what_came_in_windows(rig: Rereading, tmp_path: Path) -> None:
    with rig.running():
        rig.ready(PLAIN, KEPT, SALES)
        rig.unlogged("DELETE FROM w.plain WHERE id < 5", "UPDATE w.plain SET at = at + INTERVAL 1 DAY WHERE id = 50")
        rig.server.execute("UPDATE w.sales_1 SET name = 'moved' WHERE id < 3")
        rig.server.execute("DELETE FROM w.sales_2 WHERE id > 100")
        rig.server.execute("TRUNCATE TABLE w.sales_1")
        rig.server.execute("INSERT INTO w.sales_1 VALUES (1, 'again', NULL)")
        rig.server.execute("DELETE FROM w.kept WHERE id = 1")
        rig.current()
        report = values.compare(rig.config, rig.log, rig.state)
        found = {t.table: t for t in report.tables}
        assert found["w.plain"].different == 6
        assert found["w.sales"].equal
        assert (found["w.sales"].source_rows, found["w.sales"].lake_rows) == (102, 102)
        assert "append" in found["w.kept"].note
        read = rig.state.ask_read(PLAIN, PLAIN, ReadSpec(), "asked")
        rig.read(read.job)
        report = values.compare(rig.config, rig.log, rig.state)
        assert report.equal, report
        assert rig.lake(SALES) == sharded(rig)
    report_, rows = closed(rig, tmp_path)
    assert report_.closes, report_.to_dict()
    in_windows = "read in windows"
    assert equation(of(report_, KEPT), in_windows) == (ROWS, ROWS)
    assert equation(of(report_, SALES), in_windows) == (2 * ROWS, 2 * ROWS)
    assert equation(of(report_, PLAIN), in_windows)[0] >= ROWS
    assert sum(r["reads"] for r in rows if r["node"] == "log" and r["table"] == PLAIN.id) == ROWS - 5
    assert sum(r["truncated"] for r in rows if r["node"] == "merge" and r["table"] == SALES.id) > 100
    assert len(polars.read_delta(str(Path(rig.config.lake) / KEPT.folder))) == ROWS + 1
    # A window's row that the log's data does not have is missed.
    config = config_of(rig, tmp_path)
    assert config.trace
    with client(config.trace) as opened:
        opened.command(
            f"INSERT INTO {NODES} SELECT * REPLACE (windowed - 1 AS windowed) FROM {NODES} FINAL"
            f" WHERE node = 'log' AND `table` = '{KEPT.id}' AND windowed > 0"
        )
        wrong = ledger.close(opened, config, rig.log)
    assert [t.table for t in wrong.tables if not t.closes] == [str(KEPT)]


def test_a_trace_of_an_older_version_gets_the_new_columns(rig: Rereading, tmp_path: Path) -> None:
    with rig.running():
        rig.ready(PLAIN, KEPT, SALES)
    closed(rig, tmp_path)
    config = config_of(rig, tmp_path)
    assert config.trace
    with client(config.trace) as opened:
        opened.command(f"ALTER TABLE {NODES} DROP COLUMN reads, DROP COLUMN windowed, DROP COLUMN truncated")
    (config.state / "trace.json").unlink()
    report, _ = closed(rig, tmp_path)
    assert report.closes
    assert equation(of(report, KEPT), "read in windows") == (ROWS, ROWS)


def test_what_others_did_to_a_sharded_table_is_found_by_shard(rig: Rereading) -> None:
    with rig.running():
        rig.ready(PLAIN, KEPT, SALES)
        rig.current()
    folder = str(Path(rig.config.lake) / SALES.folder)
    with rig.running():
        rig.ready(SALES)
        deltalake.DeltaTable(folder).delete("id = 7 AND shard = 'w.sales_2'")
        report = values.compare(rig.config, rig.log, rig.state, [SALES])
    (found,) = report.tables
    assert [(d.key, d.kind) for d in found.differences] == [("w.sales_2,näme 0,7", "missing in the lake")]


def test_no_false_alarm_while_shards_are_written_to_truncated_and_read_again(rig: Rereading) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            table = f"w.sales_{1 + number % 2}"
            rig.server.execute(f"REPLACE INTO {table} VALUES ({number % 50}, 'x', NOW(3))")
            rig.server.execute(f"DELETE FROM {table} WHERE id = {number % 13}")
            if number % 9 == 0:
                rig.server.execute(f"TRUNCATE TABLE {table}")
            time.sleep(0.005)

    writer = threading.Thread(target=write)
    with rig.running():
        rig.ready(PLAIN, KEPT, SALES)
        writer.start()
        try:
            for _ in range(3):
                shard = TableName("w", "sales_1")
                rig.state.ask_read(shard, SALES, ReadSpec(), "asked")
                report = values.compare(rig.config, rig.log, rig.state, [SALES])
                assert not report.tables[0].different, report
        finally:
            stop.set()
            writer.join(30)
        # How often the writer came to it is the machine's affair.
        rig.server.execute("REPLACE INTO w.sales_2 VALUES (77, 'x', NOW(3))")
        rig.current()
        rig.server.execute("TRUNCATE TABLE w.sales_2")
        rig.current()
        assert values.compare(rig.config, rig.log, rig.state, [SALES]).equal
        assert rig.lake(SALES) == sharded(rig)
    kinds = [
        c.info["counts"]["truncated"] for c in deltalog.commits(open_folder(rig.config.lake_root).folder(SALES.folder))
    ]
    assert sum(kinds) > 0


def test_a_table_that_is_being_read_is_not_compared(rig: Rereading) -> None:
    with rig.running():
        rig.ready(PLAIN, KEPT, SALES)
        rig.current()
    rig.state.set_table(SALES, "reading")
    with pytest.raises(NotFollowingError, match="the table is reading"):
        values.compare(rig.config, rig.log, rig.state, [SALES])


@pytest.mark.parametrize("lost", [False, True], ids=["killed", "state lost"])
def test_a_table_that_was_being_read_when_its_state_was_lost_is_whole_in_the_end(
    server: MySQLServer, tmp_path: Path, lost: bool
) -> None:
    server.execute("DROP DATABASE IF EXISTS w")
    server.execute("CREATE DATABASE w")
    for name in ("kept", "sales_1", "sales_2"):
        server.execute(f"CREATE TABLE w.{name} (id INT PRIMARY KEY, name VARCHAR(20))")
        server.execute(f"INSERT INTO w.{name} VALUES {', '.join(f'({i}, {i})' for i in range(600))}")
    entries: list[Any] = [
        {"name": "w.kept", "mode": "append", "backfill": True},
        {"name": "w.sales_*", "into": "w.sales", "shard_column": "shard"},
    ]
    first = Rereading(tmp_path, server, entries, window_rows=50, rows_per_second=200)

    def half() -> bool:
        found = manifest.read(first.config.lake_root, first.config.name)
        states = {t: v.state for t, v in found.tables.items()} if found else {}
        return states == {KEPT: "reading", SALES: "reading"} and len(first.windows(KEPT)) > 1

    with first.running():
        first.until(half, "both are being read")
    assert {s.phase for s in first.state.tables().values()} == {"reading"}
    first.log.close()
    if lost:
        for path in first.config.state.glob("state.db*"):
            path.unlink()
    server.execute("UPDATE w.sales_1 SET name = 'later' WHERE id % 3 = 0")
    server.execute("DELETE FROM w.sales_2 WHERE id % 5 = 0")
    rig = Rereading(tmp_path, server, entries, window_rows=50)
    with rig.running():
        rig.ready(KEPT, SALES)
        rig.current()
        assert values.compare(rig.config, rig.log, rig.state).equal
        assert rig.lake(SALES) == sharded(rig)
    kept = polars.read_delta(str(Path(rig.config.lake) / KEPT.folder))
    assert sorted(kept["id"].to_list()) == list(range(600))
    assert set(kept["_cdc_op"].to_list()) == {"read"}
    report, _ = closed(rig, tmp_path)
    assert report.closes, report.to_dict()


def test_a_truncation_touches_its_shard_and_no_key_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = TableSchema((Column("id", "bigint"), Column("shard", "text", charset="utf8mb4")), ("shard", "id"))
    monkeypatch.setitem(history.SCHEMAS, SALES, schema)
    monkeypatch.setitem(history.MODES, SALES, "upsert")
    rows = [history.Change(SALES, 0, 0, None, (1, "w.b")), history.Change(SALES, 0, 0, None, None, "w.a")]
    pipeline = history.Pipeline(tmp_path, history.Source([[row] for row in rows]))
    options = {"shards": {"w.a": {}, "w.b": {}}, "shard_column": "shard"}
    with closing(pipeline.log()) as log, history.Capture(log, pipeline.source) as capture:
        added = capture.add(SALES, options=options)
        pipeline.state.set_table(SALES, "added", added=added.id)
        capture.windows(
            history.Windowed(WindowId("job", 1), SALES, [(2, "w.b")], [("w.b", 3)]),
            transactions=2,
        )
        pipeline.merger(log).round()
        table = Compared(pipeline.config, log, pipeline.state, SALES, WHOLE)
        keys, truncated = table.touched(added, pipeline.applied(SALES))
    assert sorted(tuple(row.values()) for row in keys.to_pylist()) == [("w.b", 1), ("w.b", 2), ("w.b", 3)]
    assert truncated == {"w.a"}
