"""`lakesync remove`"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc.cli import options, output


def command(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE", help="As they stand in the pipeline file, patterns too; or one that shards land in."
        ),
    ],
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Stop following tables; their data in the lake stays.

    Takes their entries out of the pipeline file; a running daemon sees it. Of a table that shards land in, the entries of all its shards.

    \b
    Example:
      lakesync remove shop.orders
    """
    options.pipeline(config).remove(*tables)
    if as_json:
        output.as_json({"version": 1, "removed": tables})
        return
    for table in tables:
        output.say(f"{table}: removed; its data in the lake stays")
