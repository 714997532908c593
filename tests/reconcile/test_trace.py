"""The trace in chDB, over HTTP in a gateway to it, and in a real server where `LAKESYNC_TEST_CLICKHOUSE` gives its URL."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from cdc.config import PipelineConfig, TraceConfig, load
from cdc.errors import TraceError
from cdc.log import Log, open_log
from cdc.trace import client, project, queries
from cdc.trace.project import CURSOR
from cdc.trace.schema import prepare, retention
from cdc.trace.tables import NEWEST, NODES
from cdc.trace.views import LEDGER, MINUTES, TIMES, views
from dev.gateway import Gateway
from dev.mysql import MySQLServer
from reconcile.ledger import close as ledger
from tests.faults.rig import Rig

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

ROWS = 300
SERVER = "LAKESYNC_TEST_CLICKHOUSE"
DAY_S = 86_400.0
KEYED = "node String, `table` String, hash String, a Int8) ENGINE = ReplacingMergeTree ORDER BY (pipeline, node, `table`, hash"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        started.execute("CREATE DATABASE t")
        yield started


@pytest.fixture(scope="module")
def base(server: MySQLServer, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Two tables with changes of every kind, caught up; no daemon runs, and there is no trace yet."""
    for table in ("items", "quiet"):
        server.execute(f"CREATE TABLE t.{table} (id INT PRIMARY KEY, name VARCHAR(50))")
        server.execute(f"INSERT INTO t.{table} VALUES {', '.join(f'({i}, {i})' for i in range(ROWS))}")
    made = Rig(tmp_path_factory.mktemp("base") / "p", server, ["t.items", "t.quiet"], settings={"trace": None})
    assert made.catch_up().returncode == 0
    for step in range(3):
        server.execute(f"UPDATE t.items SET name = 'x{step}' WHERE id < {10 + step}")
        server.execute(f"INSERT INTO t.items VALUES ({1000 + step}, 'new')")
        server.execute(f"DELETE FROM t.items WHERE id = {20 + step}")
        server.execute(f"UPDATE t.items SET id = {2000 + step} WHERE id = {30 + step}")
        assert made.catch_up().returncode == 0
    return made


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway() as started:
        yield started


class Traced:
    """A copy of the base with a trace of its own."""

    def __init__(self, rig: Rig, trace: TraceConfig) -> None:
        self.rig, self.config = rig, load(rig.config).model_copy(update={"trace": trace})

    @property
    def trace(self) -> TraceConfig:
        assert self.config.trace
        return self.config.trace

    @contextmanager
    def opened(self) -> Iterator[tuple[Client, Log]]:
        with (
            closing(open_log(self.config.log, self.config.name, self.config.log_settings())) as log,
            client(self.trace) as opened,
        ):
            yield opened, log

    def keep(self, keep_s: float | None) -> PipelineConfig:
        return self.config.model_copy(update={"trace": self.trace.model_copy(update={"keep": keep_s})})


def rig_of(base: Rig, folder: Path) -> Rig:
    shutil.copytree(base.folder, folder / "p")
    rig = Rig(folder / "p", base.server, base.tables, settings={"trace": None})
    log = load(rig.config).log
    assert str(rig.state) in log
    return rig


@pytest.fixture(params=["chdb", "gateway", "server"])
def traced(request: pytest.FixtureRequest, base: Rig, tmp_path: Path) -> Iterator[Traced]:
    rig = rig_of(base, tmp_path)
    if request.param == "chdb":
        yield Traced(rig, TraceConfig(url=f"chdb://{rig.state}/trace"))
        return
    database = f"t_{uuid.uuid4().hex[:12]}"
    if request.param == "gateway":
        url = request.getfixturevalue("gateway").url.rpartition("/")[0]
    elif not (url := os.environ.get(SERVER, "").rstrip("/")):
        pytest.skip(f"{SERVER} gives no clickhouse://user@host:8123")
    password = "env:LAKESYNC_TEST_CLICKHOUSE_PASSWORD" if "LAKESYNC_TEST_CLICKHOUSE_PASSWORD" in os.environ else ""
    with client(TraceConfig(url=f"{url}/default", password=password, insecure=True)) as opened:
        opened.command(f"CREATE DATABASE {database}")
        yield Traced(rig, TraceConfig(url=f"{url}/{database}", password=password, insecure=True))
        opened.command(f"DROP DATABASE {database}")


def rows(opened: Client, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in opened.query(query).result_rows]


def everything(opened: Client) -> list[tuple[Any, ...]]:
    return rows(opened, f"SELECT * FROM {LEDGER} ORDER BY node, `table`, hash")


def one(opened: Client, query: str) -> Any:
    return rows(opened, query)[0][0]


def again(opened: Client) -> None:
    """Every row once more, in parts of their own, so that only FINAL or argMax sees that they are the same."""
    for table in (NODES, NEWEST):
        opened.command(f"SYSTEM STOP MERGES {table}")
        opened.command(f"INSERT INTO {table} SELECT * FROM {table} FINAL")


def test_a_replay_counts_nothing_twice(traced: Traced) -> None:
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        asked = (everything, lambda c: rows(c, f"SELECT * FROM {MINUTES} ORDER BY ALL"))
        before = [ask(opened) for ask in asked]
        times = rows(opened, f"SELECT * FROM {TIMES} ORDER BY ALL")
        flow, latency = queries.flow(opened, "p"), queries.latency(opened, "p", 0, 60)
        physical = one(opened, f"SELECT count() FROM {NODES}")
        again(opened)
        assert one(opened, f"SELECT count() FROM {NODES}") == 2 * physical
        assert [ask(opened) for ask in asked] == before
        assert rows(opened, f"SELECT * FROM {TIMES} ORDER BY ALL") == times
        assert queries.flow(opened, "p") == flow
        assert queries.latency(opened, "p", 0, 60) == latency
        assert ledger.close(opened, traced.config, log).closes


def test_every_node_counts_rows_and_bytes_in_and_out(traced: Traced) -> None:
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        flow = {(f.node, f.table): f for f in queries.flow(opened, "p")}
    items = "t.items"
    captured, logged, merged = (flow[node, items] for node in ("capture", "log", "merge"))
    changes = 33 + 3 + 3 + 3
    assert [captured.rows_in, captured.rows_out, logged.rows_in, logged.rows_out, merged.rows_in] == [changes] * 5
    assert (captured.inserts, captured.updates, captured.deletes) == (3, 36, 3)
    assert captured.bytes_out == logged.bytes_in == logged.bytes_out == merged.bytes_in > 0
    assert flow["snapshot", items].rows_out == ROWS
    assert flow["lake", items].rows_in - flow["lake", items].rows_out == ROWS
    assert flow["source", ""].bytes_out > 0
    assert ("merge", "t.quiet") not in flow


def test_times_are_in_the_order_in_which_a_row_meets_the_nodes(traced: Traced) -> None:
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        wrong = one(
            opened,
            f"SELECT count() FROM {TIMES} WHERE NOT (committed <= captured AND captured <= logged AND logged <= merged AND merged <= readable)",
        )
        epochs = one(opened, f"SELECT count() FROM {TIMES}")
        exact = f"SELECT hash, {', '.join(f'toUnixTimestamp64Micro({t})' for t in ('committed', 'captured', 'logged'))} FROM {NODES}"
        assert sorted(rows(opened, f"{exact} FINAL WHERE node = 'source'")) == sorted(
            (r.hash, r.raw_us, r.captured_us, r.written_us) for r in log.records()
        )
        found = queries.latency(opened, "p", 0, 3600)
    assert wrong == 0
    assert epochs >= 3
    assert {found_.stage for found_ in found} == set(queries.STAGES)
    assert {found_.table for found_ in found} == {"", "t.items"}
    for stage in queries.STAGES:
        assert sum(f.rows for f in found if f.stage == stage and not f.table) == 42
    assert all(0 <= f.p50_ms <= f.p90_ms <= f.p99_ms < 600_000 for f in found)


def test_a_folder_that_was_begun_anew_is_another_table(traced: Traced) -> None:
    rig = traced.rig
    with traced.opened() as (opened, log):
        assert ledger.close(opened, traced.config, log).closes
    (rig.lake / "t" / "quiet").rename(rig.folder / "away")
    assert rig.lakesync("resync", "t.quiet").returncode == 0
    assert rig.catch_up().returncode == 0
    with traced.opened() as (opened, log):
        report = ledger.close(opened, traced.config, log)
        assert report.closes, report.to_dict()
        ids = rows(opened, f"SELECT DISTINCT lake_id FROM {NODES} FINAL WHERE `table` = 't.quiet' AND lake_id != ''")
        assert len(ids) >= 1
        newest = one(opened, f"SELECT argMax(lake_id, done) FROM {NODES} FINAL WHERE `table` = 't.quiet'")
        assert f'"id":"{newest}"' in first_commit(rig, "quiet").replace(" ", "")
        flow = {(f.node, f.table): f for f in queries.flow(opened, "p")}
        assert flow["lake", "t.quiet"].rows_in == ROWS


def test_a_lake_that_was_put_back_has_no_commits_of_the_time_that_is_gone(traced: Traced) -> None:
    rig = traced.rig
    shutil.copytree(rig.lake, rig.folder / "copy")
    for number in range(2):
        rig.server.execute(f"REPLACE INTO t.items VALUES ({5000 + number}, 'later'), ({6000 + number}, 'later')")
        assert rig.catch_up().returncode == 0
    with traced.opened() as (opened, log):
        assert ledger.close(opened, traced.config, log).closes
    shutil.rmtree(rig.lake)
    (rig.folder / "copy").rename(rig.lake)
    rig.server.execute("DELETE FROM t.items WHERE id = 5000")
    assert rig.catch_up().returncode == 0
    with traced.opened() as (opened, log):
        report = ledger.close(opened, traced.config, log)
        assert report.closes, report.to_dict()
        versions = f"SELECT count(), uniqExact(`table`, lake_id, version) FROM {NODES} FINAL WHERE version >= 0 AND NOT endsWith(lake_id, ' lost')"
        assert [count == apart for count, apart in rows(opened, versions)] == [True]
        project(opened, traced.config, log, rebuild=True)
        assert ledger.close(opened, traced.config, log).closes


def first_commit(rig: Rig, table: str) -> str:
    return (rig.lake / "t" / table / "_delta_log" / f"{0:020}.json").read_text()


def test_a_trace_of_an_older_version_is_widened_and_filled(traced: Traced) -> None:
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        whole = everything(opened)
        dropped = ("lake_id", "captured", "logged", "merged", "readable", "rows_in", "rows_out", "totals", "reads")
        for name in views():
            opened.command(f"DROP VIEW {name}")
        opened.command(f"DROP TABLE {NEWEST}")
        opened.command(f"ALTER TABLE {NODES} {', '.join(f'DROP COLUMN {name}' for name in dropped)}")
    cursor = traced.config.state / CURSOR
    cursor.write_bytes(cursor.read_bytes().replace(b'"form":2', b'"former":2'))
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        names = opened.query(f"SELECT * FROM {NODES} LIMIT 1").column_names
        assert set(dropped) <= set(names)
        in_order = ", ".join(f"`{name}`" for name in opened.query(f"SELECT * FROM {NEWEST} LIMIT 1").column_names)
        assert rows(opened, f"SELECT {in_order} FROM {LEDGER} ORDER BY node, `table`, hash") == whole
        assert ledger.close(opened, traced.config, log).closes


def ttl(opened: Client) -> dict[str, int]:
    query = f"SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = '{NODES}'"
    return retention(str(one(opened, query)))


def test_retention_is_changed_with_the_setting_and_by_pipeline(traced: Traced) -> None:
    others = ["other", "it's (an) \\ other"]
    with traced.opened() as (opened, log):
        project(opened, traced.keep(90 * DAY_S), log)
        assert ttl(opened) == {"p": 90 * DAY_S}
        for name in others:
            prepare(opened, name, 90 * DAY_S, "")
        project(opened, traced.keep(30 * DAY_S), log)
        assert ttl(opened) == {"p": 30 * DAY_S} | dict.fromkeys(others, 90 * DAY_S)
        prepare(opened, "p", None, "")
        prepare(opened, others[0], None, "")
        assert ttl(opened) == {others[1]: 90 * DAY_S}
        prepare(opened, others[1], None, "")
        assert ttl(opened) == {}


def test_retention_never_takes_what_the_newest_balance_needs(traced: Traced) -> None:
    config = traced.keep(1.0)
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        detailed = everything(opened)
        project(opened, config, log)
        opened.command(f"OPTIMIZE TABLE {NODES} FINAL")
        assert one(opened, f"SELECT count() FROM {NODES}") == 0
        left = everything(opened)
        assert 0 < len(left) < len(detailed)
        assert set(map(str, left)) <= set(map(str, detailed))
        report = ledger.close(opened, config, log)
        assert report.closes, report.to_dict()
        # The cursor stays: what is gone is not written again to be taken again.
        assert project(opened, config, log).rows == 0


def test_chdb_lets_go_of_what_is_too_old_though_it_is_never_open_for_long(base: Rig, tmp_path: Path) -> None:
    rig = rig_of(base, tmp_path)
    traced = Traced(rig, TraceConfig(url=f"chdb://{rig.state}/trace"))
    config, cursor = traced.keep(4.0), traced.config.state / CURSOR
    old = f"SELECT count() FROM {NODES} FINAL WHERE hash = 'old'"
    with traced.opened() as (opened, log):
        project(opened, config, log)
        opened.command(f"SYSTEM STOP TTL MERGES {NODES}")
        opened.command(
            f"INSERT INTO {NODES} SELECT * REPLACE ('old' AS hash, now() AS done, now() AS committed) FROM {NEWEST} LIMIT 1"
        )
        time.sleep(5)
        assert one(opened, old) == 1
        opened.command(f"SYSTEM START TTL MERGES {NODES}")
        data = orjson.loads(cursor.read_bytes())
        assert data["swept_s"] > 0
        cursor.write_bytes(orjson.dumps(data | {"swept_s": 0}))
        project(opened, config, log)
        assert one(opened, old) == 0


def test_clickhouse_that_was_emptied_is_filled_again(traced: Traced) -> None:
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        whole = everything(opened)
        newest = one(opened, f"SELECT max(number) FROM {NODES} WHERE node = 'source'")
        for table in (NODES, NEWEST):  # as a backup has it
            opened.command(f"ALTER TABLE {table} DELETE WHERE number > {newest - 3} SETTINGS mutations_sync = 2")
        assert everything(opened) != whole
        project(opened, traced.config, log)
        assert everything(opened) == whole
        opened.command(f"TRUNCATE TABLE {NODES}")
        opened.command(f"TRUNCATE TABLE {NEWEST}")
        project(opened, traced.config, log)
        assert everything(opened) == whole
        assert project(opened, traced.config, log).rows == 0


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE TABLE {NODES} (a Int32) ENGINE = MergeTree ORDER BY a",
        f"CREATE TABLE {NODES} (pipeline String, {KEYED})",
        f"CREATE VIEW {NEWEST} AS SELECT 1 AS a",
        f"CREATE TABLE {MINUTES} (a Int32) ENGINE = MergeTree ORDER BY a",
    ],
)
def test_what_has_the_traces_names_and_is_another_thing_is_left_alone(traced: Traced, statement: str) -> None:
    name = statement.split()[2]
    with traced.opened() as (opened, log):
        opened.command(statement)
        before = one(opened, f"SHOW CREATE TABLE {name}")
        with pytest.raises(TraceError, match=name) as raised:
            project(opened, traced.config, log)
        assert raised.value.where == f"trace: {traced.trace.url}"
        assert "database" in raised.value.hint
        assert one(opened, f"SHOW CREATE TABLE {name}") == before


def test_rebuild_makes_a_lost_trace_anew(traced: Traced) -> None:
    with traced.opened() as (opened, log):
        project(opened, traced.config, log)
        whole = everything(opened)
        opened.command(f"ALTER TABLE {NODES} UPDATE rows_in = 7 WHERE 1 SETTINGS mutations_sync = 2")
        assert everything(opened) != whole
    write_trace(traced)
    done = traced.rig.lakesync("trace", "rebuild")
    assert done.returncode == 0, done.stderr
    assert "trace rebuilt" in done.stdout
    with traced.opened() as (opened, _):
        assert everything(opened) == whole
        opened.command(f"INSERT INTO {NODES} SELECT * REPLACE ('lost' AS hash) FROM {NODES} FINAL LIMIT 1")
        opened.command(f"INSERT INTO {NODES} SELECT * REPLACE ('other' AS pipeline) FROM {NODES} FINAL LIMIT 1")
    done = traced.rig.lakesync("trace", "rebuild", "--fresh", "--json")
    assert done.returncode == 0, done.stderr
    with traced.opened() as (opened, _):
        assert [row for row in everything(opened) if row[0] == "p"] == whole
        assert one(opened, f"SELECT count() FROM {NODES} WHERE pipeline = 'other'") == 1
    done = traced.rig.lakesync("trace", "status")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:6]] == [
        "source",
        "capture",
        "log",
        "merge",
        "snapshot",
    ]


def write_trace(traced: Traced) -> None:
    """Into the pipeline file, for processes."""
    rig = traced.rig
    setting = {"url": traced.trace.url, "password": traced.trace.password, "insecure": True}
    Rig(rig.folder, rig.server, rig.tables, settings={"trace": setting})
