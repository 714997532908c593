"""A merger of one lake table, to be killed: what is in the table after an epoch follows from the epoch's number.

Run as `python -m tests.faults.lake_worker ROOT KIND SEED` it imports everything once and then makes a child for each line of its
standard input, a JSON object {"faults": …, "rounds": …}, by fork: that takes milliseconds, a new Python half a second. It says
`pid N`, and `ended STATUS` when the child has ended. The child writes the number of each epoch that it committed to ROOT/acks.
"""

from __future__ import annotations

import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cdc import faults
from cdc.clock import SystemClock
from cdc.epoch import Counts
from cdc.lake import maintain
from cdc.lake.layout import Layout
from cdc.lake.maintain import Keep
from tests.integration.lake_rows import applied
from tests.lake.subject import KINDS, Held, Step, Subject, busy_upkeep

KEYS = 60
FIRST = dict.fromkeys(range(0, KEYS, 2), 1)
FIRST_EPOCH = 2
"""What the first epoch after that of the creation brings."""
KEEP = Keep(files_s=0.2, log_s=0.5, orphans_s=3.0)
"""So little that there is always something to collect; what is written takes less than that."""


def changes(seed: int, epoch: int) -> list[Step]:
    """What an epoch brings; some keys change more than once."""
    chance = random.Random(seed * 1_000_003 + epoch)
    numbers = chance.sample(range(KEYS), chance.choice([1, 3, 10, 25]))
    cut = chance.randint(0, len(numbers))
    steps: list[Step] = [(number, None) for number in numbers[:cut]]
    steps += [(number, chance.randint(0, 200)) for number in (*numbers[cut:], *numbers[:1])]
    return steps


class Oracle:
    """What must be in the table."""

    def __init__(self, seed: int, layout: Layout) -> None:
        self._seed, self._epoch = seed, FIRST_EPOCH
        self._held = Held.of(layout.mode, FIRST, FIRST_EPOCH)

    def at(self, epoch: int) -> Held:
        """After this epoch; they are asked for in order."""
        if epoch < FIRST_EPOCH:
            return Held(self._held.mode, {})
        assert epoch >= self._epoch
        while self._epoch < epoch:
            self._epoch += 1
            self._held = self._held.after(changes(self._seed, self._epoch), self._epoch)
        return self._held


def work(root: Path, kind: str, layout: Layout, seed: int, rounds: int) -> None:
    """Open the table where it is, and go on with the next epochs."""
    with ThreadPoolExecutor(1) as worker, busy_upkeep(checkpoint_every=8):
        subject = Subject(root, KINDS[kind], layout, file_size=3000, clock=SystemClock(), worker=worker)
        # Now and then files are written beside the merges, and committed later.
        maintain.AT_ONCE_BYTES = random.choice([0, maintain.AT_ONCE_BYTES])
        acks = os.open(root / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        loaded = subject.lake.load()
        if loaded is None:
            subject.snapshot = subject.lake.create(subject.schema, layout, applied(1), Counts())
            subject.epoch = 1
            os.write(acks, b"1\n")
        else:
            assert loaded.applied is not None
            subject.snapshot, subject.epoch = loaded, loaded.applied.epoch.number
            subject.held = Oracle(seed, layout).at(subject.epoch)
        for turn in range(rounds):
            first: list[Step] = list(FIRST.items())
            subject.apply(first if subject.epoch + 1 == FIRST_EPOCH else changes(seed, subject.epoch + 1))
            os.write(acks, b"%d\n" % subject.epoch)
            subject.maintain(KEEP)
            if turn % 13 == 6:
                subject.optimize(KEEP)
            if turn % 5 == 3:
                subject.save_index()
        subject.close()


def main(root: Path, kind: str, seed: int) -> None:
    """Serve."""
    layout = Layout.of(json.loads(os.environ["LAKE_LAYOUT"]))
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            faults._armed, _ = faults._parse(asked["faults"])
            status = 1
            try:
                work(root, kind, layout, seed, asked["rounds"])
                status = 0
            finally:
                if status:
                    import traceback

                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(status)
        print(f"pid {child}", flush=True)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
