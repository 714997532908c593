"""A lake table as a state machine: whatever happens to it, it equals a dictionary. The rules are what can happen."""

from __future__ import annotations

import datetime
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import deltalake
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cdc import unfit
from cdc.errors import LakeConflictError, LakeError, LakeUnknownError
from cdc.lake import Layout, partition
from cdc.lake.columns import has_unfit, lake_columns
from cdc.lake.maintain import Keep
from tests.integration.lake_rows import Row, read_deltalake, read_polars, table_of
from tests.lake.readers import ClickHouse
from tests.lake.subject import KINDS, SHARDS, Crash, Held, Step, Subject, Version, at_point, frozen

NUMBERS = st.integers(0, 39)
VALUES = st.integers(0, 200)
CHANGES = st.lists(st.tuples(NUMBERS, st.none() | VALUES), max_size=12)
"""None: the key is deleted."""
LAYOUTS = tuple(
    Layout(mode, partition_by, change_feed)
    for mode in ("upsert", "soft-delete", "history")
    for partition_by in ((), ("region",), ("month(at)",), ("region", "year(at)"))
    for change_feed in (False, True)
)
Changes = list[Step]

MERGE_POINTS = (
    "lake.after-data-files",
    "lake.after-vectors",
    "lake.before-commit",
    "lake.after-commit",
    "lake.after-index",
)
INDEX_POINTS = ("lake.index-run", "lake.index-saved")
UPKEEP_POINTS = (
    *MERGE_POINTS,
    "lake.compact-written",
    "lake.compact-committed",
    "lake.checkpoint",
    "lake.log-clean",
    "lake.vacuum",
)
HOUR_US = 3_600_000_000
KEEP = Keep(files_s=7200.0, log_s=7200.0, orphans_s=7200.0)
"""What maintenance keeps here."""

DONE: Counter[str] = Counter()
"""How often each thing happened, over all examples."""
CLICKHOUSE: list[ClickHouse] = []


class LakeMachine(RuleBasedStateMachine):
    """One table's life. `make` and `Subject` do the work; here is only what can happen, and in what order is hypothesis's choice."""

    kinds = tuple(sorted(KINDS))
    layouts = LAYOUTS

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(
            tempfile.mkdtemp(prefix="lakesync-model-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self.subject: Subject
        self.versions: dict[int, Held] = {}
        """What was in versions that must still be readable."""
        self.steps = 0

    subjects: ClassVar[type[Subject]] = Subject

    def teardown(self) -> None:
        if hasattr(self, "subject"):
            self.subject.check_by(read_polars)
            if CLICKHOUSE:
                self.subject.check_by(CLICKHOUSE[0].read)
                DONE["read by ClickHouse"] += 1
            self.subject.close()
        shutil.rmtree(self.root, ignore_errors=True)

    @initialize(
        start=st.dictionaries(NUMBERS, VALUES, max_size=30),
        files=st.integers(1, 4),
        file_size=st.sampled_from([2500, 4000, 100_000]),
        data=st.data(),
    )
    def begin(self, start: dict[int, int], files: int, file_size: int, data: st.DataObject) -> None:
        kind, layout = data.draw(st.sampled_from(self.kinds)), data.draw(st.sampled_from(self.layouts))
        self.subject = self.subjects(self.root, KINDS[kind], layout, file_size=file_size)
        self.subject.bootstrap(start, files)
        DONE[f"tables of mode {layout.mode}"] += 1
        DONE["tables with partitions"] += bool(layout.partition_by)
        self._remember()

    # -- what lakesync does --------------------------------------------------------------------------------------------

    @rule(changes=CHANGES)
    def merge(self, changes: Changes) -> None:
        self.subject.apply(changes)
        DONE["merged"] += 1

    @rule(old=NUMBERS, new=NUMBERS, value=VALUES)
    def change_a_key(self, old: int, new: int, value: int) -> None:
        if old != new:
            self.subject.merge({new: value}, {old})
            DONE["changed a key"] += 1

    @precondition(lambda self: self.subject.kind.name == "composite")
    @rule(shard=st.sampled_from(SHARDS), changes=CHANGES)
    def truncate_a_shard(self, shard: str, changes: Changes) -> None:
        self.subject.apply(changes, shard)
        DONE["truncated a shard"] += 1

    @rule(start=st.dictionaries(NUMBERS, VALUES, max_size=20), files=st.integers(1, 3))
    def bootstrap_again(self, start: dict[int, int], files: int) -> None:
        self.subject.bootstrap(start, files)
        DONE["bootstrapped"] += 1

    @rule(hours=st.sampled_from([0.0, 0.0, 0.5, 3.0]))
    def maintain(self, hours: float) -> None:
        self._goes_on(hours)
        before = self.subject.snapshot.version
        self.subject.maintain(KEEP)
        self._maintained("maintained", before)

    @rule()
    def optimize(self) -> None:
        before = self.subject.snapshot.version
        self.subject.optimize(KEEP)
        self._maintained("optimized", before)

    def _maintained(self, how: str, before: int) -> None:
        DONE[how] += 1
        done = self.subject.upkeep.done
        for what in (
            "commits",
            "rows_moved",
            "rows_purged",
            "checkpoints",
            "restated",
            "commits_deleted",
            "files_deleted",
        ):
            DONE[f"{how}: {what}"] += getattr(done, what)

    @rule(theirs=CHANGES, whole=st.booleans())
    def compact_while_another_commits(self, theirs: Changes, whole: bool) -> None:
        """The compacted files are written, then someone else takes rows that are in them."""
        subject = self.subject

        def meanwhile() -> None:
            own, on = subject.lake, subject.snapshot
            subject.lake = subject.opened(indexed=False)
            subject.snapshot = subject.lake.load()
            subject.apply(theirs)
            subject.lake.close()
            subject.lake, subject.snapshot = own, on
            DONE["compacted while another committed"] += 1

        with at_point("lake.compact-written", 1, meanwhile):
            (subject.optimize if whole else subject.maintain)(KEEP)
        subject.snapshot = subject.lake.refresh(subject.snapshot)

    @rule()
    def checkpoint(self) -> None:
        self.subject.snapshot = self.subject.lake.checkpoint(self.subject.snapshot)
        DONE["checkpointed"] += 1

    @rule(hours=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, hours: float) -> None:
        self._goes_on(hours)

    def _goes_on(self, hours: float) -> None:
        self.subject.clock.us += int(hours * HOUR_US)
        if hours:
            self.versions.clear()
            self._remember()

    @rule(save=st.booleans())
    def reopen(self, save: bool) -> None:
        self.subject.reopen(close=save)
        DONE["reopened"] += 1

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    @rule(
        changes=CHANGES,
        point=st.sampled_from(MERGE_POINTS + INDEX_POINTS),
        nth=st.integers(1, 2),
        index=st.sampled_from(["kept", "lost"]),
    )
    def crash_in_a_merge(self, changes: Changes, point: str, nth: int, index: str) -> None:
        def act() -> None:
            self.subject.apply(changes)
            if point in INDEX_POINTS:
                self.subject.save_index()

        self._crash(act, point, nth, index, self.subject.after(changes))

    @rule(
        point=st.sampled_from(UPKEEP_POINTS + INDEX_POINTS),
        nth=st.integers(1, 3),
        index=st.sampled_from(["kept", "lost"]),
    )
    def crash_in_upkeep(self, point: str, nth: int, index: str) -> None:
        def act() -> None:
            self.subject.maintain(KEEP)
            self.subject.optimize(KEEP)
            self.subject.save_index()

        self._crash(act, point, nth, index, self.subject.held)

    def _crash(self, act: Callable[[], None], point: str, nth: int, index: str, after: Held) -> None:
        """Like a kill: what is on disk at the point is all that is left, and the same is done again."""
        subject, left = self.subject, self.root.with_name(self.root.name + ".left")
        before, epoch = subject.held, subject.epoch

        def die() -> None:
            frozen(self.root, left)
            raise Crash

        try:
            with at_point(point, nth, die):
                act()
        except Crash:
            DONE[f"crashed at {point}"] += 1
            subject.held = before
            subject.close(save=False)
            shutil.rmtree(self.root)
            left.rename(self.root)
            if index == "lost":
                shutil.rmtree(subject.index, ignore_errors=True)
            subject.reopen()
            assert subject.snapshot.applied is not None
            committed = subject.snapshot.applied.epoch.number > epoch
            subject.epoch = subject.snapshot.applied.epoch.number
            subject.held = after if committed else before
            subject.check(f"after a crash at {point}")
            if not committed:
                act()

    @rule(changes=CHANGES, stored=st.booleans())
    def lose_the_answer(self, changes: Changes, stored: bool) -> None:
        """The commit fails, before or after it is visible; the merger looks, and does it again if it has to."""
        subject = self.subject
        point = "lake.after-commit" if stored else "lake.before-commit"

        def fail() -> None:
            raise OSError(5, "Input/output error")

        epoch, before = subject.epoch, subject.snapshot
        with at_point(point, 1, fail), pytest.raises(LakeError) as found:
            subject.apply(changes)
        assert isinstance(found.value, LakeUnknownError) == stored
        subject.epoch = epoch
        subject.snapshot = subject.lake.refresh(before)
        assert (subject.snapshot.version > before.version) == stored
        if stored:
            subject.held, subject.epoch = subject.after(changes), epoch + 1
        else:
            subject.apply(changes)
        DONE["lost an answer"] += 1

    @rule(theirs=CHANGES, ours=CHANGES)
    def another_writer(self, theirs: Changes, ours: Changes) -> None:
        """A merger that does not know of us commits first; ours loses, looks again, and goes on from there."""
        subject = self.subject
        stale, own = subject.snapshot, subject.lake
        subject.lake = subject.opened(indexed=False)
        subject.snapshot = subject.lake.load()
        subject.apply(theirs)
        subject.lake.close()
        subject.lake, subject.snapshot = own, stale
        subject.epoch += 1
        with pytest.raises(LakeConflictError):
            subject.commit(stale, ours)
        subject.epoch -= 1
        subject.snapshot = own.refresh(stale)
        subject.apply(ours)
        DONE["lost to another writer"] += 1

    @rule(harm=st.sampled_from(["gone", "cut", "flipped", "older", "empty"]), chance=st.randoms(use_true_random=False))
    def harm_the_index(self, harm: str, chance: random.Random) -> None:
        """Something happens to the index while no one has it open."""
        subject = self.subject
        subject.close()
        kept = self.root / "older"
        if harm == "older":  # a backup of the state folder comes back
            if kept.exists():
                shutil.rmtree(subject.index, ignore_errors=True)
                shutil.copytree(kept, subject.index)
            elif subject.index.exists():
                shutil.copytree(subject.index, kept)
        files = sorted(path for path in subject.index.rglob("*") if path.is_file()) if subject.index.exists() else []
        if files and harm in ("cut", "flipped", "empty"):
            path = chance.choice(files)
            data = bytearray(path.read_bytes())
            if harm == "cut":
                del data[chance.randrange(len(data) or 1) :]
            elif harm == "empty":
                data.clear()
            elif data:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.unlink()
            path.write_bytes(data)
        if harm == "gone":
            shutil.rmtree(subject.index, ignore_errors=True)
        subject.reopen()
        DONE[f"index {harm}"] += 1

    # -- what others do ------------------------------------------------------------------------------------------------

    @rule(new=st.dictionaries(NUMBERS, VALUES, max_size=5))
    def they_append(self, new: dict[int, int]) -> None:
        subject, layout = self.subject, self.subject.layout
        taken = subject.expected if layout.mode == "history" else subject.held.versions
        rows = {n: v for n, v in new.items() if n not in taken}
        plain = Layout(layout.mode)
        columns = lake_columns(subject.schema, plain)
        modes: dict[str, Row] = {"soft-delete": (None,), "history": (_long_ago(), None, True)}
        own = modes.get(layout.mode, ())
        table = table_of([(*subject.kind.row(*item), 5, 5, *own) for item in rows.items()], columns)
        table = partition.prepared(table, layout.partition_by, subject.schema.key)
        if has_unfit(subject.snapshot.metadata) and not unfit.is_last(table.schema):
            table = table.append_column(unfit.FIELD, pa.nulls(table.num_rows, unfit.TYPE))
        if unfit.is_last(table.schema) and not has_unfit(subject.snapshot.metadata):
            return  # they do not know of that column
        deltalake.write_deltalake(str(subject.folder), table, mode="append")
        added = Held(layout.mode, {n: (*subject.held.versions.get(n, ()), Version(v, 5)) for n, v in rows.items()})
        self._theirs(Held(layout.mode, {**subject.held.versions, **added.versions}), "appended")

    @rule(value=VALUES)
    def they_delete(self, value: int) -> None:
        deltalake.DeltaTable(str(self.subject.folder)).delete(f"v >= {value}")
        self._theirs(self.subject.held.without(lambda version: version.value >= value), "deleted")

    @precondition(lambda self: len(self.versions) > 1)
    @rule(data=st.data())
    def they_restore(self, data: st.DataObject) -> None:
        """The table's rows, not its position, are what they were at an older version."""
        version = data.draw(st.sampled_from(sorted(self.versions)[:-1]))
        deltalake.DeltaTable(str(self.subject.folder)).restore(version)
        self._theirs(self.versions[version], "restored")

    @rule()
    def they_optimize(self) -> None:
        deltalake.DeltaTable(str(self.subject.folder)).optimize.compact()
        self._theirs(self.subject.held, "optimized")

    @rule()
    def they_vacuum(self) -> None:
        """Everything that is not live goes, also what older versions had."""
        table = deltalake.DeltaTable(str(self.subject.folder))
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
        self._theirs(self.subject.held, "vacuumed")

    @rule()
    def they_checkpoint(self) -> None:
        deltalake.DeltaTable(str(self.subject.folder)).create_checkpoint()
        self._theirs(self.subject.held, "checkpointed")

    def _theirs(self, held: Held, what: str) -> None:
        self.subject.held = held
        # They go by the real time: to us who are ahead of it, what they removed is old at once.
        self.versions.clear()
        self.subject.snapshot = self.subject.lake.refresh(self.subject.snapshot)
        DONE[f"they {what}"] += 1

    # -- after each of them --------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        self.versions[self.subject.snapshot.version] = self.subject.held

    @invariant()
    def the_table_is_the_dictionary(self) -> None:
        if not hasattr(self, "subject"):
            return
        self.subject.check()
        self._remember()
        self.steps += 1
        DONE["steps"] += 1
        if self.steps % 4 == 0:
            self.subject.check_by(read_deltalake)
            version = sorted(self.versions)[self.steps % len(self.versions)]
            self.subject.check_by(read_deltalake, version, self.versions[version])
        if self.steps % 9 == 0:
            self.subject.check_by(read_polars)
            self.subject.check_index()


def _long_ago() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(5, datetime.UTC)
