"""What can be lost: the state folder's file, or all of it with the embedded log in it. Tables that were ready go on where they are."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import deltalake
import pytest

from cdc.log import open_log
from dev.mysql import MySQLServer
from tests.faults.rig import Rig

pytestmark = pytest.mark.timeout(180)


def bootstraps(rig: Rig, schema: str) -> int:
    """How often the table was copied."""
    history = deltalake.DeltaTable(str(rig.lake / schema / "t")).history()
    return sum(1 for commit in history if '"kind":"bootstrap"' in str(commit).replace("'", '"').replace(" ", ""))


@pytest.mark.parametrize("lost", ["state.db", "everything"])
def test_tables_that_were_ready_go_on_without_a_new_copy(
    mysql: MySQLServer, schema: str, tmp_path: Path, lost: str
) -> None:
    mysql.execute(f"CREATE TABLE `{schema}`.t (id INT PRIMARY KEY, v VARCHAR(20))")
    mysql.execute(f"INSERT INTO `{schema}`.t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    rig = Rig(tmp_path / "p", mysql, [f"{schema}.t"])
    assert rig.catch_up().returncode == 0
    mysql.execute(f"UPDATE `{schema}`.t SET v = 'd' WHERE id = 1")
    assert rig.catch_up().returncode == 0
    mysql.execute(f"DELETE FROM `{schema}`.t WHERE id = 2")
    if lost == "everything":
        shutil.rmtree(rig.state)
    else:
        for file in rig.state.glob("state.db*"):
            file.unlink()
    mysql.execute(f"INSERT INTO `{schema}`.t VALUES (4, 'e')")
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    verdict = rig.verdict()
    assert verdict.green, verdict
    assert bootstraps(rig, schema) == 1


@pytest.mark.parametrize("gone", [False, True])
def test_the_record_that_added_a_table_may_be_trimmed(
    mysql: MySQLServer, schema: str, tmp_path: Path, gone: bool
) -> None:
    mysql.execute(f"CREATE TABLE `{schema}`.t (id INT PRIMARY KEY, v VARCHAR(20))")
    mysql.execute(f"INSERT INTO `{schema}`.t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    rig = Rig(tmp_path / "p", mysql, [f"{schema}.t"], settings={"capture": {"checkpoint_epochs": 1}})
    assert rig.catch_up().returncode == 0
    mysql.execute(f"DELETE FROM `{schema}`.t WHERE id = 2")
    assert rig.catch_up().returncode == 0
    with closing(open_log(f"sqlite://{rig.log_file}", "p")) as log:
        newest = log.newest()
        assert newest is not None
        log.trim(newest.number)
        assert not any(record.added for record in log.records())
    for file in rig.state.glob("state.db*"):
        file.unlink()
    if gone:
        # Neither the log nor the lake helps, and the table cannot be captured anew: it is not passed over in silence.
        shutil.rmtree(rig.lake)
        mysql.execute(f"ALTER TABLE `{schema}`.t ADD COLUMN _cdc_j INT")
        done = rig.catch_up()
        assert done.returncode == 3
        assert rig.phase(f"{schema}.t") == "stopped"
        return
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    assert rig.verdict(proofs=False).green
    assert bootstraps(rig, schema) == 1


def test_a_table_that_was_being_copied_begins_anew(mysql: MySQLServer, schema: str, tmp_path: Path) -> None:
    mysql.execute(f"CREATE TABLE `{schema}`.t (id INT PRIMARY KEY, v VARCHAR(20))")
    mysql.execute(f"INSERT INTO `{schema}`.t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    rig = Rig(tmp_path / "p", mysql, [f"{schema}.t"])
    assert rig.catch_up(faults="kill:snapshot.before-commit").returncode == -9
    for file in rig.state.glob("state.db*"):
        file.unlink()
    mysql.execute(f"INSERT INTO `{schema}`.t VALUES (4, 'e')")
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    verdict = rig.verdict()
    assert verdict.green, verdict


def test_a_table_that_was_copied_again_since_the_manifest_begins_anew(
    mysql: MySQLServer, schema: str, tmp_path: Path
) -> None:
    mysql.execute(f"CREATE TABLE `{schema}`.t (id INT PRIMARY KEY, v VARCHAR(20))")
    mysql.execute(f"INSERT INTO `{schema}`.t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    table = f"{schema}.t"
    rig = Rig(tmp_path / "p", mysql, [table])
    assert rig.catch_up().returncode == 0
    assert rig.lakesync("resync", table).returncode == 0
    try:
        # The merger says nothing of what comes: the manifest calls the table ready.
        daemon = rig.start(faults="sleep:merge.round=100")
        rig.wait_phase(table, "catching-up")
        rig.kill(daemon)
        for file in rig.state.glob("state.db*"):
            file.unlink()
        daemon = rig.start(faults="sleep:merge.round=100")
        rig.wait(lambda: rig.phase(table) != "new", "capture knows the table")
        assert rig.phase(table) != "ready"
        rig.kill(daemon)
    finally:
        rig.close()
    done = rig.catch_up()
    assert done.returncode == 0, done.stderr
    verdict = rig.verdict()
    assert verdict.green, verdict
