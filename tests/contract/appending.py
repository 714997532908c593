"""A capture of its own process, for tests that kill it: `appending.py URL PIPELINE EPOCHS` appends epochs, printing each number.

The environment's `LAKESYNC_FAULTS` says where it dies.
"""

from __future__ import annotations

import sys

from cdc.log import open_log
from tests.contract.conftest import Epochs


def main(url: str, pipeline: str, count: int) -> None:
    log = open_log(url, pipeline)
    writer = log.writer()
    epochs = Epochs()
    print("open", flush=True)
    for _ in range(count):
        print(epochs.append(log, writer, {"shop.orders": 3, "shop.users": 2}).number, flush=True)
    writer.close()
    log.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
