"""A merger in a process of its own, for tests that kill it: `merging.py FOLDER ROUNDS BATCH_BYTES`.

The environment's `LAKESYNC_FAULTS` says where it dies.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from cdc.clock import SystemClock
from cdc.log import open_log
from cdc.merge import table
from cdc.merge.merger import Merger
from cdc.state import State
from tests.integration.history import config


def main(folder: Path, rounds: int, batch_bytes: int) -> None:
    table.BATCH_BYTES = batch_bytes
    settings = config(folder)
    with closing(open_log(settings.log, settings.name)) as log:
        merger = Merger(settings, log, State(settings.state), SystemClock())
        for _ in range(rounds):
            result = merger.round()
            print(result.epoch.number if result.epoch else 0, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
