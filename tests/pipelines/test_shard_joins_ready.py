"""A shard with rows joins a table that is ready: until they are in the lake, no manifest calls the table ready."""

from __future__ import annotations

import threading
from pathlib import Path

import polars
import pytest

from cdc.errors import TableStoppedError
from cdc.lake import manifest
from cdc.names import TableName
from dev.mysql import MySQLServer
from snapshot import reread
from snapshot.job import Job, Outcome
from tests.contract.binlog import run
from tests.integration.rereading import Rereading

INSERT = (
    "INSERT INTO {} WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 600) SELECT i, i FROM n"
)


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer, schema: str) -> Rereading:
    """One shard, `o_1`, and `p_2`, which is none yet, of a table `<schema>.o`."""
    for name in ("o_1", "p_2"):
        run(mysql, schema, f"CREATE TABLE {name} (id INT PRIMARY KEY, v INT)", INSERT.format(name))
    return Rereading(tmp_path, mysql, entries(schema, "o_*"), window_rows=20, rows_per_second=400)


def entries(schema: str, *names: str) -> list[dict[str, str]]:
    return [{"name": f"{schema}.{name}", "into": f"{schema}.o", "shard_column": "shard"} for name in names]


def said(rig: Rereading, table: TableName) -> str:
    """What the manifest calls the table."""
    found = manifest.read(rig.config.lake_root, rig.config.name)
    assert found is not None
    return found.tables[table].state


def name_it(rig: Rereading, schema: str) -> str:
    """Have `p_2` be a shard; the job that reads it."""
    rig.config.path.write_text(rig._file(entries(schema, "o_*", "p_*")))
    jobs: list[str] = rig.until(lambda: [r.job for r in rig.state.reads() if r.table.name == "p_2"], "a job")
    return jobs[0]


@pytest.mark.timeout(120)
def test_the_manifest_says_ready_once_the_rows_are_there(rig: Rereading, schema: str) -> None:
    into = TableName(schema, "o")
    versions: list[tuple[str, int]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            found = manifest.read(rig.config.lake_root, rig.config.name)
            if found is not None and into in found.tables and found.tables[into].applied is None:
                versions.append((found.tables[into].state, found.tables[into].version))

    with rig.running():
        rig.ready(into)
        rig.until(lambda: said(rig, into) == "ready", "ready")
        assert len(rig.lake(into)) == 600
        watching = threading.Thread(target=look)
        watching.start()
        try:
            rig.read(name_it(rig, schema))
            rig.until(lambda: said(rig, into) == "ready", "ready again, although nothing is written any more")
            rig.until(lambda: versions[-1][0] == "ready", "and it was looked at")
        finally:
            stop.set()
            watching.join()
    folder = str(Path(rig.config.lake) / into.folder)
    rows = {v: polars.scan_delta(folder, version=v).select(polars.len()).collect().item() for _, v in versions}
    assert "reading" in {state for state, _ in versions}
    joined = [state for state, _ in versions].index("reading")
    assert {rows[v] for state, v in versions[joined:] if state == "ready"} == {1200}


@pytest.mark.timeout(120)
def test_a_shard_that_cannot_be_read_stops_the_table_and_is_read_after_a_resume(
    rig: Rereading, mysql: MySQLServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = TableName(schema, "o")

    def fails(job: Job) -> Outcome:
        raise TableStoppedError("it cannot be read", where=str(job.read.table), hint="correct it")

    with rig.running():
        rig.ready(into)
        with monkeypatch.context() as patched:
            patched.setattr(Job, "run", fails)
            patched.setattr(reread, "SHARD_TRIES", 2)
            name_it(rig, schema)
            rig.until(lambda: (s := rig.state.table(into)) and s.phase == "stopped", "it stops")
        assert said(rig, into) != "ready"
        rig.pipeline.resume(str(into))
        rig.ready(into)
        rig.until(lambda: said(rig, into) == "ready", "ready")
        lake = [row[:2] for row in rig.lake(into)]
    found = [tuple(row) for name in ("o_1", "p_2") for row in mysql.execute(f"SELECT * FROM `{schema}`.{name}")]
    assert sorted(lake) == sorted(found)
