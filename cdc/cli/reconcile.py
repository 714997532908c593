"""`lakesync reconcile`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdc.cli import options, output
from cdc.cli.progress import reading


def command(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", help="Default: all tables.", show_default=False)
    ] = None,
    ledger: Annotated[
        bool,
        typer.Option("--ledger", help="Close the ledger: what left every node came into the next.", show_default=False),
    ] = False,
    values: Annotated[
        bool, typer.Option("--values", help="Compare source and lake row by row, at one position.", show_default=False)
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report there as JSON, too.", show_default=False)
    ] = None,
    follow: Annotated[float, typer.Option(metavar="SECONDS", help="How long the lake may take to follow.")] = 120.0,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Prove that source and lake agree.

    While writes go on; by the ledger, by values, by default both. Exit code 1 on a difference, 3 where the lake does not follow.

    \b
    Example:
      lakesync reconcile
      lakesync reconcile shop.orders --values --report report.json
    """
    pipeline = options.pipeline(config)
    both = ledger == values
    with reading(show=not as_json and (both or values)) as progress:
        found = pipeline.reconcile(
            *(tables or ()), ledger=ledger or both, values=values or both, follow_s=follow, progress=progress
        )
    if report:
        found.write(report)
    if as_json:
        output.as_json(found.to_dict())
    else:
        found.print(output.console())
    if not found.agrees:
        raise typer.Exit(1)
