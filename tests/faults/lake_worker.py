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
from pathlib import Path

from cdc import faults
from cdc.lake.layout import Layout
from tests.lake.subject import KINDS, Subject

KEYS = 60
FIRST = dict.fromkeys(range(0, KEYS, 2), 1)
"""What the bootstrap brings; its epoch is 1."""


def changes(seed: int, epoch: int) -> tuple[dict[int, int], set[int]]:
    """Upserts and deletes of an epoch."""
    chance = random.Random(seed * 1_000_003 + epoch)
    numbers = chance.sample(range(KEYS), chance.choice([1, 3, 10, 25]))
    cut = chance.randint(0, len(numbers))
    return {number: chance.randint(0, 200) for number in numbers[cut:]}, set(numbers[:cut])


class Oracle:
    """What must be in the table."""

    def __init__(self, seed: int) -> None:
        self._seed, self._epoch, self._rows = seed, 1, dict(FIRST)

    def at(self, epoch: int) -> dict[int, int]:
        """After this epoch; they are asked for in order."""
        assert epoch >= self._epoch
        while self._epoch < epoch:
            self._epoch += 1
            upserts, deletes = changes(self._seed, self._epoch)
            self._rows = {n: v for n, v in (self._rows | upserts).items() if n not in deletes}
        return dict(self._rows)


def work(root: Path, kind: str, layout: Layout, seed: int, rounds: int) -> None:
    """Open the table where it is, and go on with the next epochs."""
    subject = Subject(root, KINDS[kind], layout, file_size=3000)
    acks = os.open(root / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    loaded = subject.lake.load()
    if loaded is None:
        subject.bootstrap(FIRST)
        os.write(acks, b"1\n")
    else:
        assert loaded.applied is not None
        subject.snapshot, subject.epoch = loaded, loaded.applied.epoch.number
        subject.expected = Oracle(seed).at(subject.epoch)
    for turn in range(rounds):
        subject.merge(*changes(seed, subject.epoch + 1))
        os.write(acks, b"%d\n" % subject.epoch)
        if turn % 3 == 1:
            subject.maintain()
        if turn % 5 == 2:
            subject.clean()
        if turn % 5 == 3:
            subject.save_index()
    subject.close()


def main(root: Path, kind: str, seed: int) -> None:
    """Serve."""
    layout = Layout(**json.loads(os.environ.get("LAKE_LAYOUT", "{}")))
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
