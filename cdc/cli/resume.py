"""`lakesync resume`"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc.cli import options, requests


def command(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE", help="Tables that are stopped.")],
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Let stopped tables go on where they are.

    For when the reason is gone. Recorded, and done by the daemon. A table that cannot go on from there says so, and wants `lakesync resync`.

    \b
    Example:
      lakesync resume shop.orders
    """
    pipeline = options.pipeline(config)
    requests.tell(pipeline, pipeline.resume(*tables), "resume", tables, as_json)
