"""`lakesync resync`"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc.cli import options, requests


def command(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", help="Tables to read anew.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All tables of the pipeline.", show_default=False)] = False,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Read whole tables anew.

    The way out where the lake and the source have parted. Recorded, and done by the daemon. The lake keeps the old rows until one commit replaces them all: it is never empty in between.

    \b
    Example:
      lakesync resync shop.orders
      lakesync resync --all
    """
    pipeline = options.pipeline(config)
    asked = pipeline.resync(*(tables or ()), everything=everything)
    requests.tell(pipeline, asked, "resync", tables or ["all tables"], as_json)
