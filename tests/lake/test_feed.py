"""The change feed, as deltalake reads it: every version's changes lead from the rows before it to the rows after it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltalake
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.config import Mode
from cdc.errors import LakeConflictError, LakeError
from cdc.lake import Layout, MergeCounts, feed
from cdc.lake.columns import SEQ
from cdc.lake.maintain import Keep, Maintenance
from tests.integration.lake_rows import applied
from tests.lake.subject import KINDS, Crash, Subject, at_point

Changes = list[tuple[int, int | None]]
CHANGES: st.SearchStrategy[Changes] = st.lists(
    st.tuples(st.integers(0, 15), st.none() | st.integers(0, 60)), min_size=1, max_size=8
)
MODES: tuple[Mode, ...] = ("upsert", "soft-delete", "history")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a table's own for every example."""
    found = Path(tempfile.mkdtemp())
    yield found
    shutil.rmtree(found)


def of_version(subject: Subject, version: int) -> list[dict[str, Any]]:
    """What deltalake reads of one version's changes."""
    table = deltalake.DeltaTable(str(subject.folder))
    found = pa.table(table.load_cdf(starting_version=version, ending_version=version))
    return found.drop_columns(["_commit_version", "_commit_timestamp"]).to_pylist()


def rows(subject: Subject) -> Counter[str]:
    """Every row of the table, all columns."""
    found = pa.Table.from_batches(list(subject.lake.scan(subject.snapshot)), subject.lake._readable(subject.snapshot))
    return Counter(_text(row) for row in found.to_pylist())


def _text(row: dict[str, Any]) -> str:
    """A row whatever the order of its columns; a column that a version did not have yet is NULL."""
    return repr(sorted((name, value) for name, value in row.items() if value is not None))


def check(subject: Subject, before: Counter[str], changes: list[dict[str, Any]]) -> None:
    """The changes lead from the rows before to those that are there, and each is called what it is."""
    kinds: dict[str, list[dict[str, Any]]] = {feed.INSERT: [], feed.DELETE: [], feed.BEFORE: [], feed.AFTER: []}
    for change in changes:
        kinds[change.pop("_change_type")].append(change)
    gone = Counter(map(_text, kinds[feed.DELETE] + kinds[feed.BEFORE]))
    come = Counter(map(_text, kinds[feed.INSERT] + kinds[feed.AFTER]))
    assert not gone - before, "what goes was there"
    assert before - gone + come == rows(subject)
    identity = [*subject.schema.key, *([SEQ] if subject.layout.mode == "history" else [])]
    named = {kind: Counter(repr([row[name] for name in identity]) for row in found) for kind, found in kinds.items()}
    assert named[feed.BEFORE] == named[feed.AFTER], "an update has both its halves"
    assert not named[feed.INSERT] & named[feed.DELETE], "what goes and comes is an update"
    if subject.layout.mode != "upsert":
        assert not kinds[feed.DELETE], "no row goes in these modes"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("mode", MODES)
@given(
    kind=st.sampled_from(["int", "text", "decimal", "composite"]),
    partition_by=st.sampled_from([(), ("region",), ("month(at)",), ("region", "year(at)")]),
    merges=st.lists(CHANGES, min_size=1, max_size=5),
)
def test_every_version_says_what_it_changed(
    mode: Mode, kind: str, partition_by: tuple[str, ...], merges: list[Changes]
) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        subject = Subject(root, KINDS[kind], Layout(mode, partition_by, change_feed=True), file_size=1500)
        subject.bootstrap({})
        for changes in merges:
            before = rows(subject)
            subject.apply(changes if mode != "upsert" else list(dict(changes).items()))
            check(subject, before, of_version(subject, subject.snapshot.version))
        subject.close()
    finally:
        shutil.rmtree(root)


def actions(subject: Subject, kind: str) -> list[dict[str, Any]]:
    """Those of the newest version."""
    log = subject.folder / "_delta_log" / f"{subject.snapshot.version:020}.json"
    return [body for line in log.read_bytes().splitlines() if (body := orjson.loads(line).get(kind))]


def files(subject: Subject) -> list[str]:
    """Of the change feed."""
    return sorted(path.name for path in (subject.folder / feed.FOLDER).glob("**/*.parquet"))


def test_what_only_adds_rows_needs_no_files_of_its_own(folder: Path) -> None:
    subject = Subject(folder, KINDS["int"], Layout(change_feed=True))
    subject.bootstrap({n: n for n in range(10)})
    assert Counter(c["_change_type"] for c in of_version(subject, 0)) == {"insert": 10}
    subject.merge({10: 1, 11: 2}, {70})
    assert Counter(c["_change_type"] for c in of_version(subject, 1)) == {"insert": 2}
    assert files(subject) == []
    assert actions(subject, "cdc") == []


def test_a_table_without_a_feed_has_no_files_of_one(folder: Path) -> None:
    subject = Subject(folder, KINDS["int"])
    subject.bootstrap({n: n for n in range(10)})
    subject.merge({1: 2, 20: 3}, {3})
    assert not (subject.folder / feed.FOLDER).exists()
    assert "changeDataFeed" not in subject.snapshot.protocol["writerFeatures"]


def test_rows_in_folders_whose_names_are_encoded_are_said_again(folder: Path) -> None:
    """deltalake does not decode the paths of data files where it reads a change feed."""
    subject = Subject(folder, KINDS["int"], Layout("upsert", ("region",), change_feed=True))
    subject.bootstrap({})
    before = rows(subject)
    subject.merge({n: n for n in range(8)})
    assert any("%25" in path for path in subject.snapshot.files)
    check(subject, before, of_version(subject, subject.snapshot.version))


def test_a_feed_that_others_switch_on_is_written_from_then_on(folder: Path) -> None:
    subject = Subject(folder, KINDS["int"])
    subject.bootstrap({n: n for n in range(10)})
    table = deltalake.DeltaTable(str(subject.folder))
    table.alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    subject.snapshot = subject.lake.refresh(subject.snapshot)
    before = rows(subject)
    subject.merge({1: 2, 20: 3}, {3})
    check(subject, before, of_version(subject, subject.snapshot.version))


def test_a_feed_that_others_switch_off_stops_the_table(folder: Path) -> None:
    subject = Subject(folder, KINDS["int"], Layout(change_feed=True))
    subject.bootstrap({n: n for n in range(10)})
    table = deltalake.DeltaTable(str(subject.folder))
    table.alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    subject.snapshot = subject.lake.refresh(subject.snapshot)
    with pytest.raises(LakeError, match="change feed was switched off") as found:
        subject.merge({1: 2})
    assert "'delta.enableChangeDataFeed' = 'true'" in found.value.hint
    table.alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    subject.snapshot = subject.lake.refresh(subject.snapshot)
    subject.merge({1: 2})


def test_what_was_written_for_a_lost_commit_is_removed(folder: Path) -> None:
    subject = Subject(folder, KINDS["int"], Layout("upsert", ("month(at)",), change_feed=True))
    subject.bootstrap({n: n for n in range(10)})
    stale = subject.snapshot
    other = subject.opened(indexed=False)
    subject.merge({1: 2})
    kept = files(subject)
    assert kept
    subject.epoch += 1
    late = subject.folded({2: 3}, {4})
    with pytest.raises(LakeConflictError):
        other.upsert(stale, late, applied(subject.epoch), MergeCounts(late.counts, subject.epoch))
    assert files(subject) == kept


def test_a_kill_before_the_commit_leaves_a_version_that_says_nothing_of_it(folder: Path) -> None:
    subject = Subject(folder, KINDS["int"], Layout(change_feed=True))
    subject.bootstrap({n: n for n in range(10)})
    before = rows(subject)

    def die() -> None:
        raise Crash

    with at_point("lake.before-commit", 1, die), pytest.raises(Crash):
        subject.merge({1: 2}, {3})
    subject.epoch -= 1
    subject.reopen(close=False)
    assert rows(subject) == before
    subject.merge({1: 2}, {3})
    check(subject, before, of_version(subject, subject.snapshot.version))


def test_a_truncated_shard_goes_row_by_row_whatever_its_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "READ_ROWS", 3)
    subject = Subject(folder, KINDS["composite"], Layout("upsert", ("region",), change_feed=True))
    subject.bootstrap({n: n for n in range(40)})
    before = rows(subject)
    subject.merge({5: 7, 41: 1}, {2}, truncated="a")
    changes = of_version(subject, subject.snapshot.version)
    assert Counter(c["_change_type"] for c in changes)["delete"] >= 7
    check(subject, before, changes)


def test_maintenance_is_in_no_feed(folder: Path) -> None:
    subject = Subject(folder, KINDS["int"], Layout("upsert", ("region",), change_feed=True))
    subject.bootstrap({})
    for turn in range(12):
        subject.merge({n: n for n in range(turn * 6, turn * 6 + 6)}, {turn * 6 - 3} if turn else ())
    before, version = rows(subject), subject.snapshot.version
    upkeep = Maintenance(subject.lake)
    subject.snapshot = upkeep.optimize(subject.snapshot, Keep(3600, 86400))
    upkeep.close()
    assert subject.snapshot.version > version
    assert [of_version(subject, n) for n in range(version + 1, subject.snapshot.version + 1)] == [[]] * (
        subject.snapshot.version - version
    )
    assert rows(subject) == before
    subject.merge({1: 7}, {2})
    check(subject, before, of_version(subject, subject.snapshot.version))
