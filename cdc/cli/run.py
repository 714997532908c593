"""`lakesync run`"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Literal

import typer

from cdc import journal
from cdc.cli import options
from cdc.cli.progress import Snapshots
from cdc.daemon import NODES, NodeName

_NODES: dict[str, tuple[NodeName, ...]] = {
    "all": NODES,
    "capture": ("capture", "reread"),
    "merge": ("snapshot", "merge", "ready"),
    "trace": ("trace",),
    "reconcile": ("reconcile", "alerts", "metrics"),
}


def command(
    node: Annotated[
        Literal["all", "capture", "merge", "trace", "reconcile"],
        typer.Option(
            help="Run one part; capture reads live tables again too, merge new ones for the first time; reconcile checks, alerts, serves metrics."
        ),
    ] = "all",
    until_current: Annotated[
        bool,
        typer.Option(
            "--until-current",
            help="End once every table is ready and has what the source had at the start.",
            show_default=False,
        ),
    ] = False,
    log_format: Annotated[Literal["logfmt", "json"], typer.Option(help="Of the log on standard error.")] = "logfmt",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="The least that is logged.")
    ] = "info",
    config: options.ConfigFile = None,
    as_json: options.Json = False,  # noqa: ARG001 - of errors
) -> None:
    """Follow the source: the daemon.

    Ends cleanly on SIGTERM and Ctrl-C. What may pass is tried again; anything else ends it with exit code 3 and the reason.

    \b
    Example:
      lakesync run
      lakesync run --until-current
    """
    pipeline = options.pipeline(config)
    journal.configure(log_format, log_level)
    bars = Snapshots(bars=sys.stderr.isatty())
    with _signals() as stop:
        try:
            pipeline.run(until_current=until_current, nodes=_NODES[node], stop=stop, watch=bars)
        finally:
            bars.close()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the second one ends the process at once, which is safe as well."""
    stop = threading.Event()

    def end(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
