"""Row images without all columns and differences of JSON values: the lake is the source all the same."""

from __future__ import annotations

import random
import time
from pathlib import Path

import orjson
import polars
import pytest
from typer.testing import CliRunner

from cdc.cli.app import app
from cdc.lake import manifest
from cdc.names import TableName
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from tests.integration.incomplete import create, working
from tests.integration.rereading import Rereading


def whole(rig: Rereading, tables: list[TableName]) -> None:
    """Everything is settled, and the lake the source, by lakesync's own proofs and row by row."""
    rig.current()
    rig.until(lambda: not rig.state.reads(open_only=True), "nothing is read any more", 60)
    rig.current()
    report = rig.pipeline.reconcile(ledger=False)
    assert report.values is not None
    assert report.values.equal, [d for t in report.values.tables for d in t.differences]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_the_lake_is_the_source_whatever_sessions_log(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: SqlServer = request.getfixturevalue(kind)
    schema: str = request.getfixturevalue("schema" if kind == "mysql" else "mariadb_schema")
    seed = random.randrange(1000)
    print(f"seed {seed}")
    tables = create(server, schema)
    rig = Rereading(tmp_path, server, list(map(str, tables)))
    with rig.running():
        with working(server, schema, seed=seed) as work:
            rig.ready(*tables)
            time.sleep(6)
        assert sum(one.statements for one in work) > 200
        whole(rig, tables)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_what_drifted_is_mended_while_sessions_write_some_columns(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A window leaves out what the stream touched; a row of which the stream has some columns has the others from the window."""
    server: SqlServer = request.getfixturevalue(kind)
    schema: str = request.getfixturevalue("schema" if kind == "mysql" else "mariadb_schema")
    seed = random.randrange(1000)
    print(f"seed {seed}")
    tables = create(server, schema)
    rig = Rereading(tmp_path, server, list(map(str, tables)), window_rows=10)
    with rig.running():
        rig.ready(*tables)
        rig.unlogged(
            f"UPDATE `{schema}`.one SET s = CONCAT('drifted ', id), b = NULL, j = '[1, 2]'",
            f"UPDATE `{schema}`.two SET v = CONCAT('drifted ', no), w = w + 1",
        )
        with working(server, schema, sessions=3, seed=seed, pause_s=0.001) as work:
            for _ in range(3):
                for table in tables:
                    rig.pipeline.snapshot(str(table))
                time.sleep(1.5)
        assert sum(one.statements for one in work) > 200
        whole(rig, tables)


def images(rig: Rereading, table: TableName, columns: str) -> list[tuple[object, ...]]:
    """What an `append` or `history` table has, in order."""
    frame = polars.read_delta(str(Path(rig.config.lake) / table.folder)).sort("_cdc_seq")
    return frame.select(columns.split()).rows()


@pytest.mark.timeout(120)
def test_tables_that_keep_what_was_there_are_completed_too(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    names = {mode: TableName(schema, mode.replace("-", "_")) for mode in ("append", "soft-delete", "history")}
    for table in names.values():
        mysql.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, n INT, s TEXT, j JSON)")
    rig = Rereading(tmp_path, mysql, [{"name": str(t), "mode": m} for m, t in names.items()])
    with rig.running():
        rig.ready(*names.values())
        for table in names.values():
            with mysql.root(schema) as connection, connection.cursor() as cursor:
                cursor.execute("SET binlog_row_image = MINIMAL, binlog_row_value_options = PARTIAL_JSON")
                for statement in (
                    "INSERT INTO {} VALUES (1, 1, 'one', '[1, 2, 3, 4, 5, 6, 7]'), (2, 2, 'two', '{{}}')",
                    "UPDATE {} SET n = 10 WHERE id = 1",
                    "UPDATE {} SET j = JSON_REPLACE(j, '$[0]', 9), s = 'uno' WHERE id = 1",
                    "UPDATE {} SET id = 3 WHERE id = 2",
                    "DELETE FROM {} WHERE id = 1",
                ):
                    cursor.execute(statement.format(table.quoted))
            rig.current()
    first, second = "[1, 2, 3, 4, 5, 6, 7]", "[9, 2, 3, 4, 5, 6, 7]"
    assert images(rig, names["append"], "_cdc_op id n s j") == [
        ("insert", 1, 1, "one", first),
        ("insert", 2, 2, "two", "{}"),
        ("update", 1, 10, "one", first),
        ("update", 1, 10, "uno", second),
        ("update", 3, 2, "two", "{}"),
        ("delete", 1, 10, "uno", second),
    ]
    assert images(rig, names["history"], "id n s j is_current") == [
        (1, 1, "one", first, False),
        (2, 2, "two", "{}", False),
        (1, 10, "one", first, False),
        (1, 10, "uno", second, False),
        (3, 2, "two", "{}", True),
    ]
    frame = polars.read_delta(str(Path(rig.config.lake) / names["soft-delete"].folder)).sort("id")
    rows = frame.select("id", "n", "s", "j", polars.col("_cdc_deleted_at").is_null()).rows()
    assert rows == [(1, 10, "uno", second, False), (2, 2, "two", "{}", False), (3, 2, "two", "{}", True)]


@pytest.mark.timeout(120)
def test_what_cannot_be_completed_is_read_again(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    """Defaults that the log does not have, and a row that someone took from the lake's side of the truth; the manifest says when it is whole."""
    t = TableName(schema, "t")
    mysql.execute(
        f"CREATE TABLE {t.quoted} (id INT PRIMARY KEY, n INT DEFAULT 5, s VARCHAR(20) NOT NULL DEFAULT 'abc')"
    )
    rig = Rereading(tmp_path, mysql, [str(t)])
    with rig.running():
        rig.ready(t)
        rig.unlogged(f"INSERT INTO {t.quoted} VALUES (7, 70, 'seven')")
        with mysql.root(schema) as connection, connection.cursor() as cursor:
            cursor.execute("SET binlog_row_image = MINIMAL")
            cursor.execute("INSERT INTO t (id) VALUES (1)")
            cursor.execute("UPDATE t SET n = 71 WHERE id = 7")

        def whole() -> bool:
            found = manifest.read(rig.config.lake_root, rig.config.name)
            return found is not None and found.tables[t].state == "ready" and rig.lake(t) == rig.source(t)

        rig.until(whole, "both rows are there, and the manifest says so")
        assert rig.lake(t) == [(1, 5, "abc"), (7, 71, "seven")]
        assert not rig.state.reads_of("repair")
        (told,) = [
            row
            for batch in rig.pipeline.changes(str(t))
            if "_cdc_present" in batch.schema.names
            for row in batch.to_pylist()
            if row["_op"] == "update"
        ]
        assert (told["_cdc_present"], told["n"], told["_cdc_diffs"]) == (["id", "n"], 71, None)
        lines = CliRunner().invoke(app, ["log", "--table", str(t), "-c", str(rig.config.path)]).stdout.splitlines()
        shown = [line["row"] for line in map(orjson.loads, lines) if line["_op"] in ("insert", "update")]
        assert shown == [{"id": 1}, {"id": 7, "n": 71}]
        assert {w.id.job for _, w in rig.windows(t)}
        report = rig.pipeline.reconcile(ledger=False)
        assert report.values is not None
        assert report.values.equal


@pytest.mark.timeout(120)
def test_shards_are_completed_each_from_its_own_rows(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    shards = [TableName(schema, f"s_{n}") for n in (1, 2)]
    for n, shard in enumerate(shards):
        mysql.execute(f"CREATE TABLE {shard.quoted} (id INT PRIMARY KEY, n INT DEFAULT 5, s TEXT)")
        mysql.execute(f"INSERT INTO {shard.quoted} VALUES (1, {n}, 'one'), (2, {n}, 'two')")
    target = TableName(schema, "all")
    rig = Rereading(tmp_path, mysql, [{"name": f"{schema}.s_*", "into": str(target)}])
    with rig.running():
        rig.ready(target)
        for n, shard in enumerate(shards):
            with mysql.root(schema) as connection, connection.cursor() as cursor:
                cursor.execute("SET binlog_row_image = MINIMAL")
                cursor.execute(f"UPDATE {shard.quoted} SET n = {n + 10} WHERE id = 1")
                cursor.execute(f"INSERT INTO {shard.quoted} (id) VALUES (3)")
                cursor.execute(f"UPDATE {shard.quoted} SET id = 4 WHERE id = 2")
        wanted = sorted((*row, str(shard)) for shard in shards for row in rig.source(shard))
        rig.until(lambda: sorted(rig.lake(target), key=repr) == sorted(wanted, key=repr), "each shard is as it is")
