"""`lakesync wait`"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc.cli import options, output
from cdc.errors import ConfigError
from cdc.units import parse_duration


def command(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", help="Default: all tables.", show_default=False)
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(metavar="GTIDS", help="A GTID set of the source (MariaDB: a list).", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="TIME",
            help="ISO 8601 with its zone, or `now`: by the source's clock.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait.")] = "10m",
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Wait until the lake has what the source had.

    For schedulers: up to a position, or everything that the source committed up to a time, also one that is yet to come. Exit code 0 once
    it is in, 3 where it is not in time or a table is stopped, 2 for what cannot be waited for.

    \b
    Example:
      lakesync wait --time now
      lakesync wait shop.orders shop.items --time 2026-03-31T00:00:00+02:00 --timeout 2h
      lakesync wait shop.orders --position 3e11fa47-71ca-11e1-9e33-c80aa9429562:1-77
    """
    pipeline = options.pipeline(config)
    try:
        timeout_s = float(parse_duration(timeout))
    except ValueError as error:
        raise ConfigError(str(error), where=f"--timeout {timeout}") from None
    found = pipeline.wait_for(*(tables or ()), position=position, time=at, timeout_s=timeout_s)
    if as_json:
        output.as_json(found.to_dict())
        return
    made = output.table(("table", "version", "has everything up to", "position"), right=(1,))
    for table in found.to_dict()["tables"]:
        made.add_row(table["table"], str(table["version"]), table["watermark"] or "", table["position"] or "")
    output.console().print(made)
