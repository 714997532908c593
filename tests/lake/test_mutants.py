"""Mistakes planted in the lake, each of which the state machine of `machine.py` must find. Listed in MUTANTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cdc._native import Bitmap, KeyIndex
from cdc.errors import LakeUnknownError
from cdc.lake import checkpoint, cleaning, compaction, index, reading
from cdc.lake.index import TableIndex
from cdc.lake.layout import Layout
from cdc.lake.points import Places
from cdc.lake.snapshot import Snapshot
from cdc.lake.table import LakeTable
from tests.lake.machine import DONE, LakeMachine
from tests.lake.subject import busy_upkeep

EXAMPLES = 400
"""At most; most mistakes are found in a few."""

Patch = pytest.MonkeyPatch


class Mistaken:
    """A key index that is not told everything, or does not say it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @classmethod
    def planted(cls, patch: Patch) -> None:
        """In place of the real one."""

        class Kind:
            def __new__(cls_, folder: str | None, memory: int) -> Any:
                return cls(KeyIndex(folder, memory))

            @staticmethod
            def open(folder: str, memory: int) -> Any:
                return cls(KeyIndex.open(folder, memory))

        patch.setattr(index, "KeyIndex", Kind)


class KeepsFiles(Mistaken):
    def drop_file(self, number: int) -> None:
        pass


class IgnoresVectors(Mistaken):
    def set_file(self, number: int, dead: Bitmap | None) -> None:
        self._inner.set_file(number, None)


class OldestWins(Mistaken):
    """Keys that it has a place of, live or not, are not added again."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._seen: set[str] = set()

    def add(self, number: int, first_row: int, keys: Any, dead: Bitmap | None) -> None:
        rows = pa.table(keys).to_pylist()
        again = [i for i, row in enumerate(rows) if repr(row) in self._seen]
        self._seen |= {repr(row) for row in rows}
        also = Bitmap().add(pa.array([first_row + i for i in again], pa.uint32()))
        self._inner.add(number, first_row, keys, also if dead is None else dead.union(also))


def vector_forgotten(patch: Patch) -> None:
    whole = LakeTable._without

    def without(*arguments: Any) -> Any:
        removed, _, taken = whole(*arguments)
        return removed, [], taken

    patch.setattr(LakeTable, "_without", without)


def vector_replaced(patch: Patch) -> None:
    whole = LakeTable._without

    def without(self: LakeTable, *arguments: Any) -> Any:
        with Patch.context() as inside:
            inside.setattr(type(self.vectors), "load", lambda vectors, files: {})
            return whole(self, *arguments)

    patch.setattr(LakeTable, "_without", without)


def index_stale(patch: Patch) -> None:
    """What others wrote is not read into it."""
    whole = TableIndex._update

    def update(*arguments: Any) -> None:
        with Patch.context() as inside:
            inside.setattr(index, "_pieces", lambda snapshot, files: iter(()))
            whole(*arguments)

    patch.setattr(TableIndex, "_update", update)


def restored_rows_unseen(patch: Patch) -> None:
    patch.setattr(index, "_holds", lambda now, known, vectors: True)


def truncation_misses(patch: Patch) -> None:
    patch.setattr(LakeTable, "_others", lambda self, on, values, gone: Places.nowhere())


def late_deletions_forgotten(patch: Patch) -> None:
    """Compaction does not ask what died while it wrote."""
    whole = compaction.mapped

    def mapped(*arguments: Any) -> Any:
        found = whole(*arguments)
        return found and replace(found, dead=None)

    patch.setattr(compaction, "mapped", mapped)


def compaction_reads_dead_rows(patch: Patch) -> None:
    whole = reading.groups

    def groups(snapshot: Snapshot, file: Any, *others: Any, numbered: bool = False) -> Iterator[pa.Table]:
        return whole(snapshot, replace(file, deletion_vector=None), *others, numbered=numbered)

    class Reading:
        def __getattr__(self, name: str) -> Any:
            return groups if name == "groups" else getattr(reading, name)

    patch.setattr(compaction, "reading", Reading())


def checkpoint_without_vectors(patch: Patch) -> None:
    whole = checkpoint.write

    def write(log: Any, version: int, actions: list[Any]) -> Any:
        for action in actions:
            (action.get("add") or {}).pop("deletionVector", None)
        return whole(log, version, actions)

    patch.setattr(checkpoint, "write", write)


def live_vectors_collected(patch: Patch) -> None:
    whole = cleaning.Unnamed.look

    def look(self: cleaning.Unnamed, snapshot: Snapshot) -> set[str]:
        whole(self, snapshot)
        return set()

    patch.setattr(cleaning.Unnamed, "look", look)


def unknown_taken_for_failed(patch: Patch) -> None:
    """After a lost answer the commit's files are removed, as if it had not been made."""
    whole = LakeTable._merge

    def merge(self: LakeTable, *arguments: Any) -> Snapshot:
        there = {entry.name for entry in self.folder.walk()}
        try:
            return whole(self, *arguments)
        except LakeUnknownError:
            self.folder.delete(e.name for e in self.folder.walk(without="_delta_log") if e.name not in there)
            raise

    patch.setattr(LakeTable, "_merge", merge)


def no_put_if_absent(patch: Patch) -> None:
    patch.setattr("cdc.faults._mutants", frozenset({"no_put_if_absent"}))


def retention_ignored(patch: Patch) -> None:
    whole = cleaning.Unnamed.dead

    def dead(self: Any, entries: Any, snapshot: Any, keep: Any, now_ms: int, keep_s: float, *others: Any) -> Any:
        return whole(self, entries, snapshot, keep, now_ms, -1.0, *others)

    patch.setattr(cleaning.Unnamed, "dead", dead)


MUTANTS: dict[str, Callable[[Patch], None]] = {
    "vector_forgotten": vector_forgotten,
    "vector_replaced": vector_replaced,
    "index_stale": index_stale,
    "index_keeps_files": KeepsFiles.planted,
    "index_ignores_vectors": IgnoresVectors.planted,
    "index_oldest_wins": OldestWins.planted,
    "restored_rows_unseen": restored_rows_unseen,
    "truncation_misses": truncation_misses,
    "late_deletions_forgotten": late_deletions_forgotten,
    "compaction_reads_dead_rows": compaction_reads_dead_rows,
    "checkpoint_without_vectors": checkpoint_without_vectors,
    "live_vectors_collected": live_vectors_collected,
    "unknown_taken_for_failed": unknown_taken_for_failed,
    "no_put_if_absent": no_put_if_absent,
    "retention_ignored": retention_ignored,
}


class Sharded(LakeMachine):
    """Only tables that shards can be truncated in."""

    kinds = ("composite",)
    layouts = (Layout(),)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_mistake_is_found(name: str, monkeypatch: Patch) -> None:
    MUTANTS[name](monkeypatch)
    DONE.clear()
    how = settings(
        max_examples=EXAMPLES,
        stateful_step_count=30,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    with busy_upkeep(), pytest.raises(Exception) as found:
        run_state_machine_as_test(Sharded if name == "truncation_misses" else LakeMachine, settings=how)
    assert "reliab" not in str(found.value), "hypothesis itself failed"
    print(f"{name}: after {DONE['steps']} steps, {type(found.value).__name__}: {str(found.value)[:200]}")


def test_every_mistake_is_listed() -> None:
    listed = Path(__file__).with_name("MUTANTS.md").read_text()
    assert [name for name in MUTANTS if f"`{name}`" not in listed] == []
