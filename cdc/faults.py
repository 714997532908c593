"""Named points at which tests make the pipeline fail, and named mistakes that tests make it commit.

No-ops unless armed by the environment variable `LAKESYNC_FAULTS`, a comma-separated list read once at import:

    kill:lake.before-commit          SIGKILL this process when the point is reached
    kill:lake.before-commit:3        … the third time
    fail:log.after-commit:2          raise OSError(EIO) there, the second time
    sleep:snapshot.after-e0=2.5      wait there (seconds), every time
    mutant:no_wait                   commit this mistake (see tests/faults/MUTANTS.md)

Every name is listed here; an unknown one ends the process at start, so a renamed point cannot disarm a test in silence.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

POINTS = frozenset(
    {
        "capture.before-fence",  # capture starts; nothing has been read or fenced
        "capture.event",  # a piece of the stream has been decoded
        "capture.before-epoch",  # an epoch is complete in memory
        "log.after-data",  # the data is written, the commit record is not
        "log.before-commit",  # all is written, the log's transaction is not committed
        "log.after-commit",  # the epoch is durable, the caller does not know
        "snapshot.after-added",  # the log says "table added"
        "snapshot.after-e0",  # e0 is recorded
        "snapshot.chunk",  # a chunk's file is durable and not recorded
        "snapshot.chunk-recorded",
        "snapshot.before-commit",  # all chunks are read, the Delta commit is not made
        "snapshot.after-commit",  # the Delta commit is made, the state is not changed
        "window.opened",  # capture has set a window's C0
        "window.read",  # a window's rows are read, its mark is not taken
        "window.delivered",  # … and taken: capture may emit
        "window.emitting",  # capture has put them into the next epoch
        "window.emitted",  # the epoch is durable, the job's progress is not recorded
        "merge.round",  # a round begins
        "merge.asked-again",  # keys are asked to be read again, the commit that passes over them is not made
        "merge.after-round",  # all tables are committed, the manifest is not written
        "lake.after-data-files",  # data files are written and fsynced, their folder is not
        "lake.after-vectors",  # the deletion vectors are durable, the commit is not written
        "lake.before-commit",  # the commit's temporary file is fsynced, not linked
        "lake.after-commit",  # linked, `_delta_log` not fsynced, the caller does not know
        "lake.after-index",  # the commit is durable, the key index in memory has it
        "lake.index-run",  # a run of the key index is written, its list of runs is not
        "lake.index-saved",  # … and its list of runs is
        "lake.compact-written",  # compaction: the new files are durable, the commit is not made
        "lake.compact-committed",  # … and the commit is
        "lake.checkpoint",  # a checkpoint is written, `_last_checkpoint` does not name it
        "lake.log-clean",  # some of the old commits are deleted
        "lake.vacuum",  # some of the dead files are deleted
        "lake.manifest",  # the manifest's temporary file is written, not renamed
        "trace.insert",
        "ready.scanned",  # rows that came late are noted, and not said
        "ready.recorded",  # that a partition is complete is recorded, and nobody told
        "ready.file",  # its file is written, and that it was told is not recorded
        "ready.said",  # … told by webhook or command, and not recorded
    }
)

MUTANTS = frozenset(
    {
        "no_wait",  # chunks are read as soon as e0 is taken
        "ready_by_gtid_executed",  # `ready` by gtid_executed as it was after the last chunk
        "e0_before_added",  # e0 is any epoch, also one before "table added"
        "mark_before_last_chunk",  # the end of the binary log is asked before the last chunk is read
        "skip_by_number",  # the number alone says what is applied and what comes next
        "no_gap_check",  # a record that starts after the lake's position is applied
        "part_applied_whole",  # a record that the lake has in part is applied whole
        "applied_check_skipped",  # the merger never asks what the table has applied
        "applied_from_other_snapshot",  # the applied epoch is read at one version, the commit made on another
        "no_put_if_absent",  # the Delta commit overwrites a version that exists
        "blind_retry",  # after a lost answer the batch is committed again without looking
        "no_read_back",  # after an indefinite log commit capture takes it for failed
        "producer_reused",  # after an indefinite log commit capture goes on with the same writer
        "no_fencing",  # an old capture may write on
        "read_before_fence",  # capture reads the newest record, then fences
        "position_at_gtid",  # the position takes in a transaction at its GTID event
        "never_looks_back",  # a living capture never reads the log again
        "count_only",  # an epoch's data is checked by number of records, not by digest
        "parts_ignored",  # positions are compared without the parts of transactions
        "e0_at_part",  # e0 may be an epoch that ends within a transaction
        "token_only",  # the embedded log checks the fencing token and not its own tail
        "no_fingerprint",  # the last transaction is not compared on connect
        "wait_once",  # a replica that is read from is not waited for
        "capture_behind_reader",  # what a reader's server shows need not be on the server that capture reads
        # Windowed reads, as in spec/window.py.
        "c0_after_select",  # C0 is taken after the SELECT
        "window_no_wait",  # the SELECT does not wait for C0
        "no_point_read",  # a key that the SELECT did not return is deleted without a point read
        "only_new_keys_win",  # a change in the window wins by its new key only
        "no_window",  # nothing wins over the rows that were read
        "point_read_outside",  # point reads do not wait for C0
        "point_read_by_collation",  # a point read that returns an equal key of other bytes keeps the candidate
        "emission_before_mark",  # rows are emitted at any later point of the stream
        "mark_before_point_reads",  # the mark is the end of the binary log before the point reads
        "truncate_ignored",  # a TRUNCATE in the window cancels nothing
        "window_survives_restart",  # capture starts again and goes on with the window
        "mariadb_wait_by_gtid",  # MariaDB's readers wait for gtid_binlog_pos
        "window_rows_always",  # the merger applies windowed rows wherever they stand
        # Counting mistakes, one at each node, for the ledger to find (tests/reconcile/test_ledger_planted.py).
        "capture_miscounts",  # capture counts one insert too few in what it gives to the log
        "batch_shortened",  # the last row of what is given to the log is counted and not given
        "transaction_uncounted",  # the source's framing counts one transaction too few
        "bytes_uncounted",  # ... 100 bytes too few
        "epoch_passed_over",  # the merger passes over epochs that have a DELETE of the table
        "create_select_position",  # the CREATE TABLE inside CREATE … SELECT ends its transaction
    }
)

_ACTIONS = ("kill", "fail", "sleep")
_counts: Counter[str] = Counter()


def _parse(text: str) -> tuple[dict[str, tuple[str, float]], frozenset[str]]:
    armed: dict[str, tuple[str, float]] = {}
    mutants: set[str] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        action, _, rest = item.partition(":")
        if action == "mutant" and rest in MUTANTS:
            mutants.add(rest)
            continue
        name, separator, amount = rest.partition("=" if action == "sleep" else ":")
        if action not in _ACTIONS or name not in POINTS or (action == "sleep") != bool(separator and action == "sleep"):
            raise SystemExit(f"LAKESYNC_FAULTS: unknown fault {item!r}")
        armed[name] = (action, float(amount or 1))
    return armed, frozenset(mutants)


_armed, _mutants = _parse(os.environ.get("LAKESYNC_FAULTS", ""))


def point(name: str) -> None:
    """The point `name` is reached; does nothing unless a test armed it."""
    if not _armed:
        return
    found = _armed.get(name)
    if found is None:
        return
    action, amount = found
    _counts[name] += 1
    if action == "sleep":
        time.sleep(amount)
    elif _counts[name] == int(amount):
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EIO, f"fault {name}")


def mutant(name: str) -> bool:
    """Whether the mistake `name` is to be made. False unless a test armed it."""
    return name in _mutants
