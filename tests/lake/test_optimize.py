"""`lakesync optimize`: on demand, beside a merger or without one."""

from __future__ import annotations

import random
from pathlib import Path

import orjson
import pytest

from cdc import Pipeline
from cdc.cli import main
from cdc.errors import ConfigError
from cdc.lake import LakeTable, Snapshot, deltalog, manifest
from cdc.state import State
from tests.integration.lake_rows import SIMPLE, TABLE, bootstrap, disk, read_deltalake, read_polars
from tests.lake.test_maintenance import Model, change, check, check_readers

CONFIG = """\
name: p
source: {{url: "mysql://u@127.0.0.1:1"}}
lake: {folder}/lake
state: {folder}/state
trace: null
tables: [shop.orders, shop.new]
merge: {{keep_files: 0s, keep_log: 0s}}
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    path = tmp_path / "lakesync.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return Pipeline.load(path)


@pytest.fixture
def lake(pipeline: Pipeline) -> LakeTable:
    return LakeTable(pipeline.config.lake_root, TABLE, "p")


def filled(lake: LakeTable, commits: int = 6) -> tuple[Snapshot, Model]:
    model = {i: f"row {i}" for i in range(100)}
    snapshot, rng = bootstrap(lake, SIMPLE, list(model.items())), random.Random(1)
    for _ in range(commits):
        snapshot = change(lake, snapshot, model, rng)
    return snapshot, model


def test_a_table_becomes_one_file_without_deleted_rows(
    pipeline: Pipeline, lake: LakeTable, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot, model = filled(lake)
    dead = sum(file.deleted for file in snapshot.files.values())
    assert dead > 10
    assert main(["-c", str(pipeline.config.path), "optimize", "shop.orders", "--json"]) == 0
    (said,) = orjson.loads(capsys.readouterr().out)["tables"]
    after = lake.refresh(snapshot)
    assert (said["table"], said["version"], said["rows"]) == ("shop.orders", after.version, len(model))
    assert (said["files_before"], said["files_after"], len(after.files)) == (len(snapshot.files), 1, 1)
    assert said["rows_purged"] == dead
    assert said["files_deleted"] >= len(snapshot.files)
    assert after.applied == snapshot.applied
    assert after.checkpoint is None
    assert lake.load().checkpoint == after.version  # type: ignore[union-attr]
    assert not list((disk(lake) / "_dv").iterdir())
    assert {path.name for path in disk(lake).glob("*.parquet")} == set(after.files)
    check(lake, after, model)
    check_readers(lake, model, [read_deltalake, read_polars])
    assert main(["-c", str(pipeline.config.path), "optimize", "shop.orders"]) == 0
    assert "files 1 → 1" in capsys.readouterr().out
    assert lake.refresh(after) is after, "a table that is tidy has nothing to be committed"


def test_a_merger_goes_on_beside_it(pipeline: Pipeline, lake: LakeTable) -> None:
    snapshot, model = filled(lake)
    rng = random.Random(2)
    for _ in range(5):
        (done,) = pipeline.optimize("shop.orders")
        assert done.rows == len(model)
        snapshot = change(lake, lake.refresh(snapshot), model, rng)
    check(lake, snapshot, model)


def test_old_commits_go_and_the_position_stays(pipeline: Pipeline, lake: LakeTable) -> None:
    snapshot, model = filled(lake, commits=30)
    pipeline.optimize("shop.orders")
    snapshot = change(lake, lake.refresh(snapshot), model, random.Random(3))
    deltalog.commit(lake.folder, snapshot, [{"commitInfo": {"operation": "theirs", "timestamp": 1}}])
    (done,) = pipeline.optimize("shop.orders")
    assert done.commits_deleted >= 30
    loaded = LakeTable(pipeline.config.lake_root, TABLE, "p").load()
    assert loaded is not None
    assert loaded.applied == snapshot.applied
    check(lake, loaded, model)
    check_readers(lake, model, [read_deltalake, read_polars])


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("shop.unknown", "not a table of this pipeline"),
        ("shop.new", "does not have the table yet"),
        ("orders", "not a table name"),
    ],
)
def test_what_cannot_be_optimized_is_refused_before_anything_is_done(
    pipeline: Pipeline, lake: LakeTable, table: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot, _ = filled(lake)
    assert main(["-c", str(pipeline.config.path), "optimize", "shop.orders", table]) == 2
    assert what in capsys.readouterr().err
    assert lake.refresh(snapshot) is snapshot


def test_a_table_that_is_read_anew_is_let_alone(pipeline: Pipeline, lake: LakeTable) -> None:
    snapshot, _ = filled(lake)
    State(pipeline.config.state).set_table(TABLE, "snapshot")
    with pytest.raises(ConfigError, match="does not have the table yet"):
        pipeline.optimize("shop.orders")
    assert lake.refresh(snapshot) is snapshot


def test_the_manifest_names_the_version_of_which_the_files_stay(pipeline: Pipeline, lake: LakeTable) -> None:
    config = pipeline.config
    snapshot, _ = filled(lake)
    applied = snapshot.applied
    assert applied is not None
    assert snapshot.info_version is not None
    named = manifest.TableVersion(snapshot.version, snapshot.info_version, applied.epoch, "ready", None)
    manifest.write(config.lake_root, config.name, manifest.Manifest(applied, {TABLE: named}, 1))
    with State(config.state).lock("merge"):
        pipeline.optimize("shop.orders")
        assert (found := manifest.read(config.lake_root, config.name)) is not None
        assert found.tables[TABLE] == named  # a merger runs, and sees to it
    pipeline.optimize("shop.orders")
    found = manifest.read(config.lake_root, config.name)
    newest = lake.load()
    assert found is not None
    assert newest is not None
    assert found.tables[TABLE].version == newest.version > snapshot.version
