"""Tables are added and removed while it runs: by the pipeline file, whatever happens to it, and by what the server creates and drops."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from cdc.capture.tables import PipelineFile
from cdc.errors import ConfigError, SourceUnavailableError
from cdc.names import TableName
from dev.mysql import MySQLServer
from tests.contract.binlog import run
from tests.integration.capturing import Rig
from tests.integration.lake_rows import read_deltalake
from tests.integration.rereading import Rereading


@pytest.fixture
def t(mysql: MySQLServer, schema: str) -> TableName:
    run(mysql, schema, *(f"CREATE TABLE {n} (id INT PRIMARY KEY, v VARCHAR(20))" for n in ("t", "u", "w")))
    return TableName(schema, "t")


@pytest.fixture
def u(t: TableName) -> TableName:
    return TableName(t.schema, "u")


@pytest.fixture
def w(t: TableName) -> TableName:
    return TableName(t.schema, "w")


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer, t: TableName) -> Rig:
    return Rig(tmp_path, mysql, str(t))


def added(rig: Rig, *tables: TableName) -> None:
    rig.until(lambda: all(rig.phase(t) == "added" for t in tables))


def problems(rig: Rig) -> list[dict[str, Any]]:
    """What capture says in its beats."""
    rig.until(lambda: "capture" in rig.state.nodes())
    found: list[dict[str, Any]] = rig.state.nodes()["capture"].info["problems"]
    return found


def said(rig: Rig, what: str) -> None:
    """Wait until a problem says this; nothing: until there is none."""
    rig.until(lambda: any(what in p["what"] for p in problems(rig)) if what else not problems(rig))


def stays(rig: Rig, *tables: TableName, for_s: float = 1.5) -> None:
    """Nothing is taken out for a while."""
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        assert not any(r.removed for r in rig.records())
        assert [rig.phase(t) for t in tables] == ["added"] * len(tables)
        time.sleep(0.05)


def captures(rig: Rig, *tables: TableName) -> None:
    """A row that is inserted now gets into the log."""
    for table in tables:
        before = len(rig.rows(table))
        run(rig.server, table.schema, f"INSERT INTO `{table.name}` VALUES ({1000 + before}, 'x')")
        rig.caught_up()
        assert len(rig.rows(table)) == before + 1


# the file


def test_tables_of_a_changed_file_outlive_a_lost_connection(
    rig: Rig, mysql: MySQLServer, t: TableName, u: TableName
) -> None:
    daemon = rig.config, PipelineFile(rig.config, rig.state)
    with rig.run(ends_with=SourceUnavailableError, daemon=daemon) as thread:
        added(rig, t)
        rig.write(str(t), str(u))
        added(rig, u)
        # Broken since; then what was read before it counts, whatever becomes of the connection.
        rig.path.write_text("tables: [")
        said(rig, "not YAML")
        for (number,) in mysql.execute(
            "SELECT id FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%%'"
        ):
            mysql.execute(f"KILL {number}")
        thread.join(10)
    with rig.run(daemon=daemon):
        captures(rig, t, u)
        stays(rig, t, u)
        said(rig, "not YAML")
        rig.write(str(t), str(u))
        said(rig, "")


def test_a_broken_file_is_refused_and_the_old_one_kept_until_it_is_right(rig: Rig, t: TableName, u: TableName) -> None:
    whole = rig.path.read_text()
    with rig.run():
        added(rig, t)
        for broken, what in (
            ("tables: [", "not YAML"),
            (whole.replace("tables:", "tabels:"), "unknown key"),
            (whole.replace(str(t), f"{t}, {t}"), "twice"),
            ("", "not a pipeline file"),
            ("\x00", "not YAML"),
        ):
            rig.path.write_text(broken)
            said(rig, what)
            captures(rig, t)
        assert len(problems(rig)) == 1
        rig.write(str(t), str(u))
        said(rig, "")
        added(rig, u)
        stays(rig, t, u)
    assert len([e for e in rig.state.errors() if "not YAML" in e["what"]]) == 2


def test_a_file_that_is_gone_for_a_moment_takes_no_table_out(rig: Rig, t: TableName, u: TableName) -> None:
    rig.write(str(t), str(u))
    with rig.run():
        added(rig, t, u)
        aside = rig.path.rename(rig.path.with_suffix(".bak"))
        said(rig, "is gone")
        stays(rig, t, u)
        captures(rig, t)
        aside.rename(rig.path)
        said(rig, "")
        stays(rig, t, u)


def test_a_file_that_is_half_written_takes_no_table_out(rig: Rig, t: TableName, u: TableName, w: TableName) -> None:
    """A list of tables that is cut short is a list of tables."""
    rig.write(str(t), str(u))
    whole = rig.path.read_text().partition("tables:")[0] + f"tables:\n  - {t}\n  - {u}\n  - {w}\n"
    short = whole.partition(f"  - {u}")[0]
    with rig.run():
        added(rig, t, u)
        for _ in range(6):
            # Written slowly: each time a little later than the last look, and there for less than until the next two.
            for text in (short, whole.removesuffix(f"  - {w}\n")):
                rig.path.write_text(text)
                time.sleep(0.33)
        rig.path.write_text(whole)
        added(rig, t, u, w)
        stays(rig, t, u, w)


def test_a_file_is_replaced_by_rename(rig: Rig, t: TableName, u: TableName, w: TableName) -> None:
    with rig.run():
        added(rig, t)
        stamp = rig.path.stat()
        for tables in ((t, u), (t, u, w)):
            other = rig.path.with_suffix(".new")
            other.write_text(
                rig.path.read_text().partition("tables:")[0] + f"tables: [{', '.join(map(str, tables))}]\n"
            )
            # The same time and size, as a copy may have: it is another file all the same.
            os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            other.replace(rig.path)
            added(rig, *tables)
        stays(rig, t, u, w)


def test_a_request_waits_for_the_file_that_was_written_before_it(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    with rig.run():
        added(rig, t)
        rig.write(f"{{name: {t}, exclude: [v]}}")
        rig.state.ask("resync", str(t))
        rig.until(lambda: not rig.state.open_requests())
        said(rig, "")
    (first, second) = (r.added[t.id] for r in rig.records() if t.id in r.added)
    assert "exclude" not in first.options
    assert second.options["exclude"] == ["v"]


@pytest.mark.parametrize("change", ["mode: append", "types: {v: string}", "exclude: [v]"])
def test_a_changed_entry_waits_for_a_resync_and_says_so(rig: Rig, t: TableName, change: str) -> None:
    with rig.run():
        added(rig, t)
        rig.write(f"{{name: {t}, {change}}}")
        said(rig, "its entry in the pipeline file changed")
        (problem,) = problems(rig)
        assert problem["where"] == str(t)
        assert f"lakesync resync {t}" in problem["hint"]
        captures(rig, t)
        rig.write(str(t))
        said(rig, "")
        rig.write(f"{{name: {t}, {change}}}")
        said(rig, "its entry")
        rig.state.ask("resync", str(t))
        said(rig, "")
    assert len([r for r in rig.records() if t.id in r.added]) == 2


def test_backfill_is_for_tables_with_a_key(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    run(mysql, t.schema, "CREATE TABLE nokey (a INT)")
    nokey = TableName(t.schema, "nokey")
    rig.write(
        str(t),
        f"{{name: {nokey}, mode: append, backfill: true}}",
        f"{{name: {t.schema}.u, mode: append, backfill: true}}",
    )
    with rig.run():
        added(rig, t, TableName(t.schema, "u"))
        rig.until(lambda: rig.phase(nokey) == "stopped")
        error = rig.state.table(nokey).error  # type: ignore[union-attr]
        assert error
        assert "no `backfill:`" in error["hint"]
        rig.write(str(t), f"{{name: {nokey}, mode: append}}", f"{{name: {t.schema}.u, mode: append, backfill: true}}")
        rig.state.ask("resync", str(nokey))
        added(rig, nokey)
    (options,) = (r.added[f"{t.schema}.u"].options for r in rig.records() if f"{t.schema}.u" in r.added)
    assert options == {"mode": "append", "types": {}, "backfill": True}


# names


def test_a_wrong_name_keeps_no_other_table_out_and_is_taken_once_it_exists(
    rig: Rig, mysql: MySQLServer, t: TableName, u: TableName
) -> None:
    later = TableName(t.schema, "later")
    run(mysql, t.schema, "CREATE VIEW seen AS SELECT * FROM t")
    with rig.run():
        added(rig, t)
        rig.write(str(t), str(later), str(u))
        added(rig, u)
        said(rig, f"no such table, or it may not be read: {later}")
        run(mysql, t.schema, "CREATE TABLE later (id INT PRIMARY KEY, v VARCHAR(20))")
        added(rig, later)
        said(rig, "")
        rig.write(str(t), str(later), str(u), f"{t.schema}.seen", f"{t.schema}.w")
        added(rig, TableName(t.schema, "w"))
        said(rig, "not a table that can be followed")
        captures(rig, t, u, later)
    assert TableName(t.schema, "seen") not in rig.state.tables()
    with pytest.raises(ConfigError, match="not a table"), rig.run() as thread:
        thread.join(10)


def test_patterns_mean_tables_that_come_later_and_no_ghosts(rig: Rig, mysql: MySQLServer, t: TableName) -> None:
    rig.write(str(t), f'"{t.schema}.*"')
    ghosts = ("_t_gho", "_t_ghc", "_t_del", "_t_new", "_t_old", "_t_20240101120000_del")
    run(mysql, t.schema, *(f"CREATE TABLE {g} (id INT PRIMARY KEY, v VARCHAR(20))" for g in ghosts[:3]))
    with rig.run():
        added(rig, t, TableName(t.schema, "u"))
        run(
            mysql,
            t.schema,
            *(f"CREATE TABLE {n} (id INT PRIMARY KEY, v VARCHAR(20))" for n in (*ghosts[3:], "later", "x_new")),
        )
        added(rig, TableName(t.schema, "later"), TableName(t.schema, "x_new"))
        run(mysql, t.schema, *(f"INSERT INTO {g} VALUES (1, 'x')" for g in ghosts))
        captures(rig, t, TableName(t.schema, "later"))
        stays(rig, t)
    assert {n.name for n in rig.state.tables()} == {"t", "u", "w", "later", "x_new"}


def test_a_table_is_removed_and_added_again(rig: Rig, mysql: MySQLServer, t: TableName, u: TableName) -> None:
    rig.write(str(t), str(u))
    with rig.run():
        added(rig, t, u)
        for n in range(3):
            captures(rig, u)
            rig.write(str(t))
            rig.until(lambda: rig.phase(u) == "removed")
            run(mysql, t.schema, f"INSERT INTO u VALUES ({n}, 'unseen')")
            captures(rig, t)
            rig.write(str(t), str(u))
            added(rig, u)
        captures(rig, u)
    assert len([r for r in rig.records() if u.id in r.added]) == 4
    assert [cells[1] for *_, cells in rig.rows(u)] == ["x"] * 4


def test_a_log_that_is_lost_while_a_table_is_backfilled_never_doubles_its_rows(
    tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    run(mysql, t.schema, "INSERT INTO t VALUES " + ", ".join(f"({n}, 'v')" for n in range(300)))
    entry = {"name": str(t), "mode": "append", "backfill": True}
    rig = Rereading(tmp_path, mysql, [entry], window_rows=10, rows_per_second=200)
    folder = Path(rig.config.lake) / t.folder
    with rig.running():
        rig.until(
            lambda: any(folder.glob("_delta_log/*.json")) and read_deltalake(folder).num_rows > 20,
            "some rows are there",
        )
    rig.log.close()
    for path in tmp_path.glob("log.db*"):
        path.unlink()
    rig = Rereading(tmp_path, mysql, [entry], window_rows=10)
    with rig.running():
        rig.until(lambda: (s := rig.state.table(t)) and s.phase == "stopped", "it stops")
        error = rig.state.tables()[t].error
        assert error is not None
        assert "some of them may be there" in error["what"]
        assert f"lakesync resync {t}" in error["hint"]
        folder.rename(folder.with_name("aside"))
        rig.pipeline.resync(str(t))
        rig.ready(t)
    assert sorted(row["id"] for row in read_deltalake(folder).to_pylist()) == list(range(300))


def test_a_backfill_that_is_resynced_in_the_middle_never_doubles_its_rows(
    tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    run(mysql, t.schema, "INSERT INTO t VALUES " + ", ".join(f"({n}, 'v')" for n in range(300)))
    rig = Rereading(
        tmp_path, mysql, [{"name": str(t), "mode": "append", "backfill": True}], window_rows=10, rows_per_second=200
    )
    folder = Path(rig.config.lake) / t.folder
    with rig.running():
        rig.until(
            lambda: any(folder.glob("_delta_log/*.json")) and read_deltalake(folder).num_rows > 20,
            "some rows are there",
        )
        rig.pipeline.resync(str(t))
        # What is there in part is not gone on with.
        rig.until(lambda: (s := rig.state.table(t)) and s.phase == "stopped", "it stops")
        folder.rename(folder.with_name("aside"))
        rig.pipeline.resume(str(t))
        rig.ready(t)
    assert sorted(row["id"] for row in read_deltalake(folder).to_pylist()) == list(range(300))


def test_a_position_that_is_none_or_makes_no_sense_is_not_written(
    tmp_path: Path, mysql: MySQLServer, t: TableName
) -> None:
    rig = Rereading(tmp_path, mysql, [])
    before = rig.config.path.read_text()
    with pytest.raises(ConfigError, match="not with `mode: append`"):
        rig.pipeline.add(str(t), from_position=mysql.executed, mode="append")
    with pytest.raises(ConfigError, match="write a GTID set"):
        rig.pipeline.add(str(t), from_position="yesterday")
    assert rig.config.path.read_text() == before
