"""What a process used: seconds, CPU seconds, peak memory, and the CPU seconds of the servers it made work."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from dev import warden
from dev.server import Server

ENDS_WITHIN_S = 60.0
UNCOMPILED = "PYTHONDONTWRITEBYTECODE"
"""Where it is set, every start compiles every module; installed programs are compiled once."""
_LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Usage:
    """Of one process and those of its children that it waited for. `peak_mib` is the largest single one's; `anonymous_mib` what of the
    process's own memory is not mapped from files."""

    wall_s: float
    cpu_s: float
    peak_mib: float = 0.0
    servers_cpu_s: float = 0.0
    anonymous_mib: float = 0.0


def medians(turns: Iterable[Usage]) -> Usage:
    """The median of each figure by itself."""
    turns = list(turns)
    return Usage(*(statistics.median(getattr(u, f.name) for u in turns) for f in fields(Usage)))


class FailedError(Exception):
    """A measured command did not do what is measured; what it said."""


class Process:
    """A measured command, running. Its output goes to a file beside `result`; `servers` are those that work for it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        *,
        servers: Sequence[Server] = (),
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command, self.servers = [str(part) for part in command], tuple(servers)
        self.result, self.output = folder / "usage.json", output or folder / "output.txt"
        self.errors = folder / "errors.txt"
        self.result.unlink(missing_ok=True)
        self._servers_s = self._servers()
        self.began = time.monotonic()
        with self.output.open("wb") as out, self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _LAUNCH, self.result, *self.command],
                env={k: v for k, v in os.environ.items() if k != UNCOMPILED} | dict(environment or {}),
                stdout=out,
                stderr=errors,
            )
        warden.watch(self._process.pid)

    def _servers(self) -> float:
        return sum(_cpu_s(server.pid) for server in self.servers)

    @property
    def elapsed_s(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    def cpu_s(self) -> float:
        """CPU seconds of the command so far, while it runs."""
        return sum(map(_cpu_s, self.measured()))

    def servers_cpu_s(self) -> float:
        """… and of the servers that work for it, since it was started."""
        return self._servers() - self._servers_s

    def measured(self) -> list[int]:
        """The process ids of the command, while it runs."""
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        except OSError:  # ended, or not this kind of system
            return []
        return [int(pid) for pid in children.split()]

    def must_run(self) -> None:
        """Raise `FailedError` if it has ended."""
        if self._process.poll() is not None:
            raise FailedError(f"{' '.join(self.command)} ended with {self._process.returncode}: {self._said()}")

    def wait(self, timeout_s: float = 3600.0, good: Sequence[int] = (0,)) -> Usage:
        """To its end. Raises `FailedError` if its code is not among the good ones."""
        code = self._process.wait(timeout_s)
        warden.unwatch(self._process.pid)
        if code not in good:
            raise FailedError(f"{' '.join(self.command)} ended with {code}: {self._said()}")
        used = json.loads(self.result.read_text())
        return Usage(**used, servers_cpu_s=self.servers_cpu_s())

    def stop(self) -> Usage:
        """SIGTERM, and wait."""
        self._process.terminate()
        return self.wait(ENDS_WITHIN_S)

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(ENDS_WITHIN_S)
        warden.unwatch(self._process.pid)

    def _said(self) -> str:
        return "\n".join(self.errors.read_text(errors="replace").splitlines()[-20:])


class measured:  # noqa: N801 - reads as a verb
    """Prints the block's seconds and CPU seconds of this process, all its threads, as JSON."""

    def __enter__(self) -> None:
        self._began = time.monotonic(), time.process_time()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            wall_s, cpu_s = time.monotonic() - self._began[0], time.process_time() - self._began[1]
            print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}))


def _cpu_s(pid: int) -> float:
    """What a running process of this machine has used; 0 where that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
