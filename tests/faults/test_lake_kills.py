"""A merger of a lake table is killed, hundreds of times, wherever it is; after each the table is what it must be.

What an epoch changes follows from its number (`lake_worker`), so what must be in the table follows from what it says it has applied;
and it must have applied what was acknowledged, or one epoch more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cdc import faults
from cdc.clock import SystemClock
from cdc.errors import LakeError
from cdc.lake.layout import Layout
from cdc.lake.maintain import Keep
from tests.faults.lake_worker import KEEP, Oracle
from tests.faults.rig import seed
from tests.faults.test_power_loss import Power, library
from tests.integration.lake_rows import read_deltalake, read_polars
from tests.lake.subject import KINDS, Subject, busy_upkeep

__all__ = ["library"]

POINTS = sorted(name for name in faults.POINTS if name.startswith("lake.") and name != "lake.manifest")
ROUNDS = 40
"""Of a life that is not ended; enough for every point to be reached."""
PLAIN = Layout()
KILLS_SHORT, KILLS = 60, 300
CUTS_SHORT, CUTS = 8, 60


class Worker:
    """The process that makes children to be killed."""

    def __init__(self, root: Path, kind: str, chosen: int, layout: Layout, extra: dict[str, str]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.kind, self.layout = root, kind, layout
        self.errors = root.parent / "worker.log"
        environment = os.environ | {"LAKESYNC_FAULTS": "", "LAKE_LAYOUT": json.dumps(layout.to_dict())} | extra
        command = [sys.executable, "-m", "tests.faults.lake_worker", str(root), kind, str(chosen)]
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[2],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def live(self, armed: str = "", *, rounds: int = ROUNDS, kill_after_s: float | None = None) -> int:
        """One child; killed after so long, or by a fault. How it ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"faults": armed, "rounds": rounds}) + "\n")
        self._process.stdin.flush()
        child = int(self._said("pid"))
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self._said("ended"))
        assert status in (0, -signal.SIGKILL), self.errors.read_text()[-3000:]
        return status

    def _said(self, word: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith(word), self.errors.read_text()[-3000:]
        return line.split()[1]

    def acknowledged(self) -> int:
        """The newest epoch that a child knew to be committed; 0: none."""
        acks = self.root / "acks"
        return max(map(int, acks.read_text().split()), default=0) if acks.exists() else 0

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def worker(
    root: Path, kind: str, chosen: int, layout: Layout = PLAIN, extra: dict[str, str] | None = None
) -> Iterator[Worker]:
    made = Worker(root, kind, chosen, layout, extra or {})
    try:
        yield made
    finally:
        made.close()


def check(found: Worker, oracle: Oracle, why: str, *, thorough: bool, seen: int = 0) -> int:
    """The table is what it must be, not before what was `seen` of it or acknowledged, and at most one epoch further. The epoch that it
    is at; 0: there is none yet."""
    subject = Subject(found.root, KINDS[found.kind], found.layout, file_size=3000, clock=SystemClock())
    loaded = subject.lake.load()
    known = max(seen, found.acknowledged())
    if loaded is None:
        assert known == 0, why
        return 0
    assert loaded.applied is not None
    epoch = loaded.applied.epoch.number
    assert known <= epoch <= known + 1, why
    subject.snapshot, subject.epoch, subject.held = loaded, epoch, oracle.at(epoch)
    subject.check(why)
    subject.check_by(read_deltalake)
    subject.check_index()
    if thorough:
        subject.check_by(read_polars)
    subject.close()
    return epoch


def tidy(found: Worker) -> None:
    """After all that, one look at what is there leaves nothing that no one needs."""
    subject = Subject(found.root, KINDS[found.kind], found.layout, file_size=3000, clock=SystemClock())
    subject.snapshot = subject.lake.load()
    with busy_upkeep():
        for _ in range(2):  # what was seen to be needed by no one, goes when it is seen so again
            subject.optimize(Keep(files_s=0.0, log_s=0.0, orphans_s=0.0))
            time.sleep(0.01)
    subject.close()
    assert subject.files() == subject.named()


def kill_and_look(root: Path, kind: str, kills: int, layout: Layout = PLAIN) -> Counter[str]:
    """So many kills: one in three at a moment of chance, the others at the points, in turn. What was done, counted."""
    chosen = seed()
    chance, oracle, done = random.Random(chosen), Oracle(chosen, layout), Counter[str]()
    with worker(root / "p", kind, chosen, layout) as found:
        epoch = 0
        for turn in range(kills):
            if turn % 3 == 2:
                why, after = "at random", chance.uniform(0.0, 0.6)
                status = found.live(rounds=1000, kill_after_s=after)
            else:
                point = POINTS[(turn - turn // 3) % len(POINTS)]
                why = f"at {point}"
                status = found.live(f"kill:{point}:{chance.randint(1, 4)}")
            done[why if status else f"not reached: {why}"] += 1
            epoch = check(found, oracle, f"killed {why}, turn {turn}", thorough=turn % 10 == 0, seen=epoch)
        found.live()
        time.sleep(KEEP.orphans_s)
        tidy(found)
        done["epochs"] = check(found, oracle, "at the end", thorough=True, seen=epoch)
    print("\n" + "\n".join(f"{count:7} {what}" for what, count in sorted(done.items())))
    return done


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_a_merger_is_killed_wherever_it_is(tmp_path: Path) -> None:
    done = kill_and_look(tmp_path, "int", KILLS_SHORT)
    assert done["at random"] >= KILLS_SHORT // 4


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("int", PLAIN),
        ("composite", Layout("upsert", ("month(at)",), change_feed=True)),
        ("text", Layout("history", ("region",))),
        ("decimal", Layout("soft-delete")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_a_merger_is_killed_hundreds_of_times(tmp_path: Path, kind: str, layout: Layout) -> None:
    done = kill_and_look(tmp_path, kind, KILLS, layout)
    assert {point for point in POINTS if not done[f"at {point}"]} == set()


# -- power -------------------------------------------------------------------------------------------------------------


def cut_and_look(folder: Path, library: Path, cuts: int, deaf: str = "") -> Counter[str]:
    """Kills, each followed by the loss of everything that no fsync covered: of lake, index, and all."""
    chosen = seed()
    chance, oracle, done = random.Random(chosen), Oracle(chosen, PLAIN), Counter[str]()
    root = folder / "disk" / "p"
    root.mkdir(parents=True)
    power = Power(folder / "disk", folder / "record", library)
    power.begin()
    known = 0
    for turn in range(cuts):
        with worker(root, "int", chosen, extra=power.environment(deaf)) as found:
            if turn % 2:
                point = chance.choice(POINTS)
                found.live(f"kill:{point}:{chance.randint(1, 4)}")
            else:
                found.live(rounds=1000, kill_after_s=chance.uniform(0.1, 0.8))
            known = max(known, found.acknowledged())
        power.cut()
        (root / "acks").write_text(f"{known}\n")  # it is the test's, and stands for those who were told
        done["cuts"] += 1
        known = check(found, oracle, f"power cut {turn}", thorough=turn % 10 == 0, seen=known)
        done["epochs"] = known
        power.begin()
    print("\n" + "\n".join(f"{count:7} {what}" for what, count in sorted(done.items())))
    return done


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_power_cuts_leave_the_table_whole(tmp_path: Path, library: Path) -> None:
    assert cut_and_look(tmp_path, library, CUTS_SHORT)["epochs"] > 1


@pytest.mark.timeout(3600)
def test_many_power_cuts_leave_the_table_whole(tmp_path: Path, library: Path) -> None:
    assert cut_and_look(tmp_path, library, CUTS)["epochs"] > 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("deaf", [".parquet", ".bin", "_delta_log"])
def test_a_missing_sync_of_the_lake_is_seen(tmp_path: Path, library: Path, deaf: str) -> None:
    """The same with some files' syncs ignored: the tests above can fail."""
    with pytest.raises((AssertionError, LakeError)):
        cut_and_look(tmp_path, library, CUTS_SHORT, deaf)
