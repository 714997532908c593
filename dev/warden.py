"""Ends the servers of a process that died, however it died, and removes their folders.

Run as `python warden.py` with a pipe as standard input, whose other end the owner holds: lines `start PID`, `end PID`,
`folder PATH`, `done PATH`. When the owner is gone, even by `kill -9`, the pipe ends, and what is left over goes.
(PR_SET_PDEATHSIG would do the first half, but it fires when the *thread* that forked ends.)

Standard library only, and nothing of this project: it starts in 20 ms.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_pipe: int | None = None

KILL_GRACE_S = 5.0


def _tell(verb: str, what: object) -> None:
    """Say one line to this process's warden, starting it first where there is none."""
    global _pipe
    if _pipe is None:
        reading, _pipe = os.pipe()
        # A session of its own: an interrupt at the terminal must not end the warden before its owner.
        subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ).returncode = 0  # never waited for: it outlives us, so it must not be reported as forgotten
        os.close(reading)
    os.write(_pipe, f"{verb} {what}\n".encode())


def watch(pid: int) -> None:
    """Kill `pid` when this process is gone."""
    _tell("start", pid)


def unwatch(pid: int) -> None:
    """`pid` has ended."""
    _tell("end", pid)


def watch_folder(folder: Path) -> None:
    """Remove `folder` when this process is gone."""
    _tell("folder", folder)


def unwatch_folder(folder: Path) -> None:
    """`folder` was removed."""
    _tell("done", folder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    pids: set[int] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        verb, _, what = line.rstrip("\n").partition(" ")
        if verb == "start":
            pids.add(int(what))
        elif verb == "end":
            pids.discard(int(what))
        elif verb == "folder":
            folders.add(what)
        elif verb == "done":
            folders.discard(what)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + KILL_GRACE_S
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
