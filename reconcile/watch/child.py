"""`python -m reconcile.watch.child FILE ledger|values`: one scheduled check, for the node `reconcile`.

A process of its own, since the memory of a comparison and of chDB must not stay with a daemon. It ends with the daemon, however that ends: its
standard input is a pipe that nobody writes to, and that breaks with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import cast

from cdc import config as configuration
from cdc import crash
from cdc.config import PipelineConfig
from cdc.errors import LakesyncError, UnexpectedError
from cdc.names import TableName
from cdc.pipeline import Pipeline
from cdc.state import State
from reconcile.runs import Kind, Runs
from reconcile.values.scope import Scope
from reconcile.watch import again

NICENESS = 10
"""The pipeline comes first."""


def main(arguments: list[str]) -> int:
    """Exit code 0 if the check was done, whatever it found; else that of the error, which is printed as one line."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a whole group of processes: the daemon says when this one ends
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    os.nice(NICENESS)
    folder = None
    try:
        config = configuration.load(Path(arguments[0]))
        folder = config.state
        check(config, cast("Kind", arguments[1]))
    except LakesyncError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:  # its message may hold a row's values
        print(crash.record(error, folder, f"the check of {arguments[1]}"), file=sys.stderr)
        return UnexpectedError.exit_code
    return 0


def check(config: PipelineConfig, kind: Kind) -> None:
    """One, of the tables that can be checked now: a table that is read for the first time, or has stopped, holds no other up."""
    given = config.reconcile
    assert given is not None
    tables = {t: s for t, s in State(config.state).tables().items() if s.phase != "removed"}
    ready = [str(t) for t, s in tables.items() if s.phase == "ready"]
    if not ready:
        runs = Runs(config.state)
        runs.end(
            runs.begin(kind, "schedule", (), {"ready": False}), "agrees", {"tables": [], "note": "no table is ready"}
        )
        return
    named = ready if len(ready) < len(tables) else []
    if kind == "ledger":
        report = Pipeline(config).reconcile(*named, values=False, trigger="schedule")
    else:
        report = Pipeline(config).reconcile(
            *named,
            ledger=False,
            repair=given.repair,
            scope=Scope(sample=given.sample),
            rows_per_second=given.rows_per_second,
            resume=True,
            trigger="schedule",
        )
        runs = Runs(config.state)
        if report.values is not None:
            again.note(config, runs, report.values)
        if given.sample is not None:
            again.compare(config, runs, [TableName.parse(name) for name in ready])
    if report.errors:
        raise report.errors[0]


def _end_with_parent() -> None:
    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
