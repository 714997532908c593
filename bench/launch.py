"""Runs a command and writes what it used, as JSON: `python -I -S launch.py RESULT COMMAND…`. SIGTERM goes on to the command.

A process of its own, and a small one: a child's peak memory, as the kernel counts it, begins with that of the process that
started it. Standard library only, and nothing of this project.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

EVERY_S = 0.05


def main(result: str, *command: str) -> int:
    """Run the command; its exit code."""
    children: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        for pid in children:
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    began = time.monotonic()
    child = subprocess.Popen(command)
    children.append(child.pid)
    anonymous = [0]
    ended = threading.Event()
    threading.Thread(target=watch, args=(child.pid, anonymous, ended), daemon=True).start()
    _, status, used = os.wait4(child.pid, 0)  # its own children that it waited for are in it
    ended.set()
    children.clear()
    wall_s = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    usage = {"wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}
    usage["anonymous_mib"] = anonymous[0] / 1024
    with open(f"{result}.part", "w") as file:  # noqa: PTH123 - pathlib takes as long to import as the rest
        json.dump(usage, file)
    os.replace(f"{result}.part", result)  # noqa: PTH105
    return child.returncode


def watch(pid: int, most: list[int], ended: threading.Event) -> None:
    """Remember the most anonymous memory that a process was seen with, KiB: what is mapped from files can be dropped at any time."""
    while not ended.wait(EVERY_S):
        try:
            with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
                most[0] = max([most[0], *(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))])
        except OSError:  # ended, or not this kind of system
            pass


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
