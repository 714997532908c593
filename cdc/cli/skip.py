"""`lakesync skip`"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc.cli import options, requests


def command(
    gtid: Annotated[
        str, typer.Argument(metavar="GTID", help="uuid:number of one transaction; on MariaDB domain-server-number.")
    ],
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Pass over one source transaction.

    The way out where one cannot be read; the lake will not have it. Recorded, for ever, in the log. Where it changed a table that is followed, `lakesync resync` that table afterwards.

    \b
    Example:
      lakesync skip 3e11fa47-71ca-11e1-9e33-c80aa9429562:23
    """
    pipeline = options.pipeline(config)
    requests.tell(pipeline, [pipeline.skip(gtid)], "skip", [gtid], as_json)
