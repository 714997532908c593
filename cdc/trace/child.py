"""A projection in a process of its own, which ends with it: chDB's memory must not stay with a daemon, and a ClickHouse that does not answer
must not hold one up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from cdc.config import PipelineConfig
from cdc.errors import TraceError

TIMEOUT_S = 600.0
LOOK_S = 0.25
"""How often a child is looked after, whether the daemon is to end."""
END_S = 5.0
"""How long a child may take to end once it is told to."""


@dataclass(frozen=True)
class Projected:
    """What a child did. `cpu_s`: processor seconds of its own, those of Python's start included."""

    epoch: int
    records: int
    commits: int
    rows: int
    seconds: float
    cpu_s: float


def project_in_process(
    config: PipelineConfig,
    *,
    timeout_s: float = TIMEOUT_S,
    stop: threading.Event | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Projected | None:
    """Bring the trace up to date, calling `meanwhile` several times a second; None if `stop` was set meanwhile: the child is ended then, and what it did not do is done the next time.

    Raises `TraceError`, also for what else the child failed of.
    """
    command = [sys.executable, "-P", "-m", "cdc.trace", str(config.path)]  # nothing from where the daemon was started
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:  # out of memory, processes or files: no reason for the pipeline to end
        raise TraceError(f"no process can be started: {error.strerror}", where=config.name) from error
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            out, err = child.communicate(timeout=LOOK_S)
            break
        except subprocess.TimeoutExpired:
            meanwhile()
            late = time.monotonic() > deadline
            if late or (stop is not None and stop.is_set()):
                _end(child)
                if late:
                    hint = "look at ClickHouse's load; the pipeline goes on, and the trace catches up later"
                    raise TraceError(
                        f"the projection took longer than {timeout_s:.0f} s", where=config.name, hint=hint
                    ) from None
                return None
    return _answer(config, child.returncode, out, err)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def _answer(config: PipelineConfig, code: int, out: bytes, err: bytes) -> Projected | None:
    try:
        said = orjson.loads(out.strip().splitlines()[-1])
        if code == 0:
            return Projected(**said)
        raise TraceError(said["what"], where=said["where"], hint=said["hint"])
    except (orjson.JSONDecodeError, IndexError, KeyError, TypeError):
        pass
    last = (err.decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
    raise TraceError(
        f"the projection failed: {last[:300]}",
        where=config.name,
        hint="the pipeline goes on; the trace catches up later",
    )
