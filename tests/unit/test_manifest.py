"""Manifests: what a round left, and how far an idle table is carried by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cdc.epoch import EpochId
from cdc.errors import LakeDamagedError, LakeError
from cdc.lake import manifest
from cdc.lake.manifest import Manifest, TableVersion
from cdc.lake.snapshot import Applied, Snapshot
from cdc.lake.store import open_folder
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position

UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
TABLE = TableName("shop", "order-items")


def applied(epoch: int) -> Applied:
    position = Position(GtidSet.parse(f"{UUID}:1-{epoch}"), UUID, BinlogEnd("binlog.000001", 100 * epoch))
    return Applied("log-1", EpochId(epoch, f"{epoch:064x}"), position, epoch, epoch * 1000, epoch)


def snapshot(epoch: int, commit: int, version: int | None = None) -> Snapshot:
    return Snapshot(open_folder(Path()), version or commit, {}, {}, {}, {}, {}, {}, commit, None, applied(epoch))


def a_round(epoch: int, table_epoch: int = 3, commit: int = 7) -> Manifest:
    entry = TableVersion(commit, commit, applied(table_epoch).epoch, "ready")
    return Manifest(applied(epoch), {TABLE: entry}, epoch * 10)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert manifest.read(tmp_path, "shop") is None
    manifest.write(tmp_path, "shop", a_round(9))
    assert manifest.read(tmp_path, "shop") == a_round(9)
    assert manifest.read(tmp_path, "other") is None


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for epoch in range(1, 20):
        manifest.write(tmp_path, "a pipeline", a_round(epoch))
    folder = tmp_path / "-lakesync" / "a-20pipeline"
    found = sorted(path.name for path in folder.iterdir())
    assert len(found) == manifest.KEPT
    assert found[0] == "manifest-00000000000000000015.json"
    assert manifest.read(tmp_path, "a pipeline") == a_round(19)
    (folder / found[-2]).replace(folder / "manifest.json")  # the way out that the error names
    assert manifest.read(tmp_path, "a pipeline") == a_round(18)


@pytest.mark.parametrize("damage", [b"", b'{"v":1', b'{"v":1}', b'{"v":2,"applied":{},"tables":{},"written_us":1}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: bytes) -> None:
    manifest.write(tmp_path, "p", a_round(9))
    path = tmp_path / "-lakesync" / "p" / "manifest.json"
    path.write_bytes(damage)
    with pytest.raises(LakeDamagedError) as found:
        manifest.read(tmp_path, "p")
    assert str(path) in str(found.value)
    manifest.write(tmp_path, "p", a_round(10))
    assert manifest.read(tmp_path, "p") == a_round(10)


def test_an_error_before_the_rename_leaves_the_manifest_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest.write(tmp_path, "p", a_round(9))
    monkeypatch.setattr("cdc.faults._armed", {"lake.manifest": ("fail", 1.0)})
    monkeypatch.setattr("cdc.faults._counts", {"lake.manifest": 0})
    with pytest.raises(LakeError):
        manifest.write(tmp_path, "p", a_round(10))
    assert manifest.read(tmp_path, "p") == a_round(9)


def test_an_idle_table_is_carried_to_the_manifests_epoch() -> None:
    assert manifest.carried(TABLE, snapshot(3, 7), a_round(9)) == applied(9)
    assert manifest.carried(TABLE, snapshot(3, 7, version=12), a_round(9)) == applied(9)  # others committed since


def test_a_table_that_stopped_is_carried_no_further_than_its_entry_says(tmp_path: Path) -> None:
    entry = TableVersion(7, 7, applied(3).epoch, "stopped", applied(5))
    stopped = replace(a_round(9), tables={TABLE: entry})
    manifest.write(tmp_path, "p", stopped)
    assert manifest.read(tmp_path, "p") == stopped
    assert manifest.carried(TABLE, snapshot(3, 7), stopped) == applied(5)


@pytest.mark.parametrize(
    ("now", "newest"),
    [
        pytest.param(snapshot(4, 8), a_round(9), id="committed since"),
        pytest.param(snapshot(3, 8), a_round(9), id="bootstrapped anew at the same epoch"),
        pytest.param(snapshot(3, 6), a_round(9), id="put back"),
        pytest.param(snapshot(3, 7), None, id="no manifest"),
        pytest.param(snapshot(3, 7), Manifest(applied(9), {}, 1), id="not in the manifest"),
        pytest.param(snapshot(3, 7), a_round(2), id="manifest behind"),
    ],
)
def test_a_table_is_not_carried_by_a_manifest_that_does_not_know_its_last_commit(
    now: Snapshot, newest: Manifest | None
) -> None:
    assert manifest.carried(TABLE, now, newest) == now.applied


def test_a_number_that_recurs_carries_nothing() -> None:
    """Epochs are named by hash: the log lost records, and others have the numbers now."""
    entry = TableVersion(7, 7, EpochId(3, "f" * 64), "ready")
    assert manifest.carried(TABLE, snapshot(3, 7), replace(a_round(9), tables={TABLE: entry})) == applied(3)
