"""Counts of what goes into and out of every node, in ClickHouse: a projection of the log and the lake, never waited for."""

from __future__ import annotations

import subprocess
import sys

from cdc.config import PipelineConfig
from cdc.errors import TraceError
from cdc.trace.client import client
from cdc.trace.project import ProjectResult, project

__all__ = ["ProjectResult", "client", "project", "project_in_process"]

PROCESS_TIMEOUT_S = 600


def project_in_process(config: PipelineConfig, *, timeout_s: float = PROCESS_TIMEOUT_S) -> None:
    """Bring the trace up to date in a process of its own, which ends with it: chDB's memory must not stay with a daemon.

    Raises `TraceError` with the child's last words.
    """
    command = [sys.executable, "-m", "cdc.trace", str(config.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise TraceError(f"the projection took longer than {timeout_s:.0f} s", where=config.name) from error
    except OSError as error:  # out of memory, processes or files: no reason for the pipeline to end
        raise TraceError(f"no process can be started: {error.strerror}", where=config.name) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TraceError(last[:500], where=config.name, hint="the pipeline goes on; the trace catches up later")
