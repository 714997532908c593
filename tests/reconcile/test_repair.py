"""Repair on real servers: what differs is read again, compared once more and recorded; what the source never had goes; what a table keeps
stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest

from cdc.config import load
from cdc.errors import LakeConflictError, NotFollowingError
from cdc.lake import LakeTable
from cdc.log import open_log
from cdc.names import TableName
from cdc.state import State
from dev.mysql import MySQLServer
from reconcile import repair
from reconcile.repair import RepairReport
from reconcile.runs import Runs
from reconcile.values import compare as values
from reconcile.values import comparison
from tests.faults.rig import PASSWORD, Rig

pytestmark = pytest.mark.timeout(300)
ROWS = 300


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with MySQLServer() as started:
        yield started


@pytest.fixture
def rig(server: MySQLServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Tables of every mode and one of shards, ready; a daemon runs."""
    monkeypatch.setenv("RIG_PASSWORD", PASSWORD)
    server.execute("DROP DATABASE IF EXISTS f")
    server.execute("CREATE DATABASE f")
    for name in ("plain", "kept", "versions", "changes", "part_a", "part_b"):
        server.execute(
            f"CREATE TABLE f.{name} (id INT, half TINYINT, v VARCHAR(40), n DECIMAL(9,2), PRIMARY KEY (id, half))"
        )
        server.execute(
            f"INSERT INTO f.{name} VALUES {', '.join(f'({i}, {h}, CONCAT(CHAR(97 + {i} % 26), {i}), {i}.25)' for i in range(ROWS) for h in (0, 1))}"
        )
    made = Rig(
        tmp_path / "p",
        server,
        (),
        settings={
            "tables": [
                "f.plain",
                {"name": "f.kept", "mode": "soft-delete"},
                {"name": "f.versions", "mode": "history"},
                {"name": "f.changes", "mode": "append"},
                {"name": "f.part_*", "into": "f.parts", "shard_column": "part"},
            ]
        },
    )
    assert made.catch_up().returncode == 0
    daemon = made.start()
    made.wait(lambda: _follows(made, daemon.pid), "the daemon runs")
    yield made
    assert daemon.poll() is None, made.last_words()
    assert made.stop(daemon) == 0
    made.close()


def _follows(rig: Rig, pid: int) -> bool:
    merger = State(rig.state).nodes().get("merge")
    return merger is not None and merger.pid == pid


class Repairing:
    """What `lakesync reconcile --values --repair` does, in this process."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.config = rig, load(rig.config)
        self.state, self.runs = State(self.config.state), Runs(self.config.state)

    def compare(self, *tables: str) -> values.ValuesReport:
        with closing(open_log(self.config.log, self.config.name)) as log:
            return values.compare(self.config, log, self.state, [TableName.parse(t) for t in tables])

    def repair(self, *tables: str, dry_run: bool = False) -> tuple[values.ValuesReport, RepairReport]:
        named = [TableName.parse(t) for t in tables]
        run = self.runs.begin("repair", "asked", named, {})
        with closing(open_log(self.config.log, self.config.name)) as log:
            mended = repair.mend(self.config, self.state, self.runs, run, named, dry_run=dry_run)
            found = values.compare(self.config, log, self.state, named)
            done = repair.repair(self.config, log, self.state, self.runs, run, found, dry_run=dry_run)
        report = done.with_mended(mended)
        self.runs.end(run, "agrees" if report.ok else "differs", {"repair": report.to_dict()})
        return found, report

    def lake(self, table: str) -> deltalake.DeltaTable:
        return deltalake.DeltaTable(str(self.rig.lake / TableName.parse(table).folder))

    def rows(self, table: str) -> pl.DataFrame:
        return pl.read_delta(str(self.rig.lake / TableName.parse(table).folder))


@contextmanager
def unlogged(server: MySQLServer) -> Iterator[Any]:
    with server.root("f") as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_log_bin = 0")
        yield cursor


def test_what_differs_is_said_and_then_repaired(rig: Rig) -> None:
    own = Repairing(rig)
    own.lake("f.plain").update(updates={"v": "'someone else'"}, predicate="id IN (5, 6) AND half = 0")
    own.lake("f.plain").delete("id = 7")
    with unlogged(rig.server) as cursor:  # type: ignore[arg-type]
        cursor.execute("DELETE FROM plain WHERE id = 9 AND half = 1")
        cursor.execute("UPDATE plain SET n = -1 WHERE id = 10")
    wrong = {"5,0", "6,0", "7,0", "7,1", "9,1", "10,0", "10,1"}
    before = own.lake("f.plain").version()

    found, said = own.repair("f.plain", dry_run=True)
    assert {d.key for d in found.tables[0].differences} == wrong
    assert (said.dry_run, said.ok, said.keys) == (True, True, len(wrong))
    assert {o for _, o in said.tables[0].differences} == {"would be read"}
    assert own.lake("f.plain").version() == before
    assert own.runs.repairs() == []

    _, done = own.repair("f.plain")
    one = done.tables[0]
    assert (done.ok, one.keys, one.repaired, one.remaining, one.rows_gone) == (True, 7, 7, 0, 1)
    assert own.compare("f.plain").equal
    assert rig.differences("f.plain") == []
    recorded = {r.key: r for r in own.runs.repairs(table="f.plain")}
    assert set(recorded) == wrong
    assert recorded["7,0"].before is None
    assert recorded["9,1"].after is None
    assert recorded["5,0"].before not in (None, recorded["5,0"].after)
    assert recorded["10,0"].columns == ("n",)
    assert {r.outcome for r in recorded.values()} == {"repaired"}


def test_a_key_that_is_there_three_times_is_mended_when_that_is_asked_for(rig: Rig) -> None:
    own = Repairing(rig)
    lake = own.lake("f.plain")
    again = pa.table(lake.scan(predicate="id IN (3, 4)"))
    again = again.set_column(again.column_names.index("v"), "v", pa.array(["planted"] * again.num_rows, pa.string()))
    for _ in range(2):
        deltalake.write_deltalake(own.lake("f.plain"), again, mode="append")
    rig.server.execute("UPDATE f.plain SET n = n + 1 WHERE id < 10")
    rig.wait_phase("f.plain", "stopped")
    error = own.state.table(TableName("f", "plain")).error  # type: ignore[union-attr]
    assert error is not None
    assert error["code"] == "LakeKeys"
    assert "--repair" in error["hint"]
    with pytest.raises(NotFollowingError, match="stopped"):
        own.compare("f.plain")
    with pytest.raises(NotFollowingError, match="stopped"):
        own.repair("f.plain", dry_run=True)
    assert rig.phase("f.plain") == "stopped"  # nothing was done

    found, done = own.repair("f.plain")
    assert found.equal
    assert (done.ok, done.tables[0].mended, done.tables[0].keys) == (True, 8, 4)
    assert rig.differences("f.plain") == []
    assert own.rows("f.plain").height == 2 * ROWS
    assert {r.kind for r in own.runs.repairs(table="f.plain")} == {"3 times in the lake"}
    operations = [entry["operation"] for entry in own.lake("f.plain").history(20)]
    assert "DELETE" in operations
    rig.server.execute("UPDATE f.plain SET n = n + 1 WHERE id < 10")
    assert own.compare("f.plain").equal


def test_a_key_that_is_there_twice_and_that_no_merger_saw(rig: Rig) -> None:
    """No write came to the table since, so it is ready."""
    own = Repairing(rig)
    again = pa.table(own.lake("f.plain").scan(predicate="id = 8 AND half = 1"))
    deltalake.write_deltalake(own.lake("f.plain"), again, mode="append")
    found = own.compare("f.plain")
    assert [(d.key, d.kind) for d in found.tables[0].differences] == [("8,1", "2 times in the lake")]
    _, done = own.repair("f.plain")
    assert (done.ok, done.tables[0].mended) == (True, 1)
    assert own.compare("f.plain").equal
    assert own.rows("f.plain").height == 2 * ROWS


def test_rows_with_no_key_are_taken_out(rig: Rig) -> None:
    own = Repairing(rig)
    row = pa.table(own.lake("f.plain").scan(predicate="id = 8 AND half = 1"))
    row = row.set_column(0, row.schema.field(0), pa.nulls(1, row.schema.field(0).type))
    deltalake.write_deltalake(own.lake("f.plain"), row, mode="append")
    rig.server.execute("UPDATE f.plain SET n = n + 1 WHERE id < 10")
    rig.wait_phase("f.plain", "stopped")
    _, done = own.repair("f.plain")
    assert done.ok
    assert own.rows("f.plain").height == 2 * ROWS
    assert own.compare("f.plain").equal


def test_rows_with_no_key_that_no_merger_saw_are_taken_out(rig: Rig) -> None:
    own = Repairing(rig)
    row = pa.table(own.lake("f.plain").scan(predicate="id = 8 AND half = 1"))
    row = row.set_column(0, row.schema.field(0), pa.nulls(1, row.schema.field(0).type))
    deltalake.write_deltalake(own.lake("f.plain"), row, mode="append")
    _, planned = own.repair("f.plain", dry_run=True)
    assert [(t.mended, t.what) for t in planned.tables] == [(1, "1 rows that are too many would be taken out")]
    found, done = own.repair("f.plain")
    assert found.tables[0].different == 1
    assert [(t.ok, t.mended, t.what) for t in done.tables] == [(True, 1, "1 rows that are too many were taken out")]
    assert own.compare("f.plain").equal


def test_every_key_that_still_differs_is_recorded_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Repairing(rig)
    own.lake("f.plain").update(updates={"v": "'rogue'"}, predicate="id < 5")
    monkeypatch.setattr(comparison, "DIFFERENCES_KEPT", 2)
    monkeypatch.setattr(repair._Work, "_ask", lambda *_: [])
    monkeypatch.setattr(repair._Work, "_wait", lambda *_: [])
    _, done = own.repair("f.plain")
    assert not done.ok
    assert [r.outcome for r in own.runs.repairs(table="f.plain")] == ["differs"] * 10


def test_modes_keep_what_they_keep(rig: Rig) -> None:
    own = Repairing(rig)
    server = rig.server
    server.execute("DELETE FROM f.kept WHERE id = 1")
    server.execute("UPDATE f.versions SET v = 'second' WHERE id = 1")
    assert own.compare("f.kept", "f.versions").equal
    own.lake("f.kept").update(updates={"v": "'rogue'"}, predicate="id = 2 AND half = 0")
    own.lake("f.versions").update(updates={"v": "'rogue'"}, predicate="id = 2 AND half = 0")
    with unlogged(server) as cursor:  # type: ignore[arg-type]
        cursor.execute("DELETE FROM kept WHERE id = 3")
        cursor.execute("DELETE FROM versions WHERE id = 3")
    found, done = own.repair("f.kept", "f.versions")
    assert {t.different for t in found.tables} == {3}
    assert done.ok
    assert own.compare("f.kept", "f.versions").equal
    kept, versions = own.rows("f.kept"), own.rows("f.versions")
    assert kept.filter(pl.col("id") == 1).height == 2  # marked, and there
    assert kept.filter((pl.col("id") == 3) & pl.col("_cdc_deleted_at").is_not_null()).height == 2
    assert versions.filter((pl.col("id") == 1) & (pl.col("half") == 0)).height == 2
    second = versions.filter((pl.col("id") == 2) & (pl.col("half") == 0)).sort("_cdc_seq")
    assert second["v"].to_list() == ["rogue", "c2"]
    assert second["is_current"].to_list() == [False, True]
    assert versions.filter((pl.col("id") == 3) & pl.col("is_current")).height == 0


def test_shards_are_read_each_from_its_table(rig: Rig) -> None:
    own = Repairing(rig)
    own.lake("f.parts").update(updates={"v": "'rogue'"}, predicate="id = 2 AND half = 0 AND part = 'f.part_a'")
    own.lake("f.parts").delete("id = 4 AND part = 'f.part_b'")
    found, done = own.repair("f.parts")
    assert {d.key for d in found.tables[0].differences} == {"f.part_a,2,0", "f.part_b,4,0", "f.part_b,4,1"}
    assert done.ok
    assert own.compare("f.parts").equal


def test_a_mend_that_another_commit_beats_is_decided_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as the merger does it; the daemon has nothing to do meanwhile."""
    from cdc.log import captured
    from cdc.merge import resuming

    own, table = Repairing(rig), TableName("f", "plain")
    again = pa.table(own.lake("f.plain").scan(predicate="id = 8"))
    deltalake.write_deltalake(own.lake("f.plain"), again, mode="append")
    mend, beaten = LakeTable.mend, list[int]()

    def slow(self: LakeTable, *arguments: Any) -> Any:
        if not beaten:
            beaten.append(1)
            raise LakeConflictError("another writer took the version", where="here")
        return mend(self, *arguments)

    monkeypatch.setattr(LakeTable, "mend", slow)
    with closing(open_log(own.config.log, own.config.name)) as log:
        known = captured.read(log)
    assert known is not None
    assert resuming._without_surplus(own.state, own.config, table, known.newest_tables[table.id]) == 2
    assert own.rows("f.plain").height == 2 * ROWS
    assert own.compare("f.plain").equal


def test_without_a_daemon_nothing_is_asked_for(
    server: MySQLServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIG_PASSWORD", PASSWORD)
    server.execute("CREATE DATABASE IF NOT EXISTS g")
    server.execute("CREATE TABLE g.t (id INT PRIMARY KEY, v INT)")
    server.execute("INSERT INTO g.t VALUES (1, 1), (2, 2)")
    rig = Rig(tmp_path / "p", server, ["g.t"])
    assert rig.catch_up().returncode == 0
    own = Repairing(rig)
    own.lake("g.t").delete("id = 1")
    with pytest.raises(NotFollowingError, match="no daemon"):
        own.repair("g.t")
    assert own.state.reads() == []
