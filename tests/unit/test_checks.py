"""What `lakesync check` says of a lake on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc import checks, config
from cdc.source.preflight import Finding


def findings(lake: Path) -> list[Finding]:
    path = lake.parent / "lakesync.yaml"
    path.write_text(f"name: shop\nsource: {{url: 'mysql://u@127.0.0.1'}}\nlake: '{lake}'\n")
    return [found for found in checks._lake(config.load(path)) if "MiB" not in found.what]


def test_a_folder_that_is_or_can_be_made(tmp_path: Path) -> None:
    for lake in (tmp_path, tmp_path / "new" / "lake-1_2.3=x"):
        (tmp_path / "new").mkdir(exist_ok=True)
        assert [(found.level, found.what) for found in findings(lake)] == [("ok", str(lake))]


@pytest.mark.parametrize("name", ["a lake", "Süd", "50%", "a#b"])
def test_a_folder_whose_url_is_not_its_path_is_warned_of(tmp_path: Path, name: str) -> None:
    levels = {found.level: found for found in findings(tmp_path / name)}
    assert "polars" in levels["warning"].what


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = findings(tmp_path / "file")
    assert (found.level, "cannot be written to" in found.what) == ("error", True)


@pytest.mark.parametrize(
    ("tables", "keep", "warned"),
    [
        ("[a.b]", "1h", False),
        ("[{name: a.b, change_feed: true}]", "2d", False),
        ("[{name: a.b, change_feed: true}]", "1h", True),
    ],
)
def test_a_change_feed_that_cannot_be_read_back_for_a_day_is_warned_of(
    tmp_path: Path, tables: str, keep: str, warned: bool
) -> None:
    path = tmp_path / "lakesync.yaml"
    path.write_text(
        f"name: shop\nsource: {{url: 'mysql://u@127.0.0.1'}}\nlake: lake\nmerge: {{keep_files: {keep}}}\ntables: {tables}\n"
    )
    found = checks._feeds(config.load(path))
    assert [f.level for f in found] == ["warning"] * warned
    assert all("a.b can be read back for 1h only" in f.what and "keep_files" in f.fix for f in found)
