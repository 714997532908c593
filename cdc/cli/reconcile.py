"""`lakesync reconcile`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cdc.cli import options, output
from cdc.cli.progress import reading
from cdc.errors import ConfigError
from reconcile import asked
from reconcile.report import document as report
from reconcile.report import text


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
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Compare values, read again what differs, and compare that once more.", show_default=False
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: only say what would be read.", show_default=False)
    ] = False,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write a report there, .html for people or .json for machines; may be repeated.",
            show_default=False,
        ),
    ] = None,
    show_values: Annotated[
        bool,
        typer.Option(
            "--show-values", help="Name the values that differ, too: they are in every report then.", show_default=False
        ),
    ] = False,
    hide_keys: Annotated[
        bool, typer.Option("--hide-keys", help="Reports and output without the keys of rows.", show_default=False)
    ] = False,
    columns: Annotated[
        str, typer.Option(metavar="NAME,…", help="Values of these columns only, and the key.", show_default=False)
    ] = "",
    low: Annotated[
        str | None,
        typer.Option("--from", metavar="KEY", help="Values of rows from this key on, included.", show_default=False),
    ] = None,
    high: Annotated[
        str | None,
        typer.Option("--to", metavar="KEY", help="Values of rows up to this key, included.", show_default=False),
    ] = None,
    between: Annotated[
        tuple[str, str, str] | None,
        typer.Option(
            metavar="COLUMN FROM TO",
            help="Values of rows whose COLUMN is a time from FROM (included) to TO (excluded), on either side.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Values of a share of the rows, as 1%; another one each time.", show_default=False
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="The ledger from this epoch, time or age (2h) on.", show_default=False),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="The ledger up to this epoch, time or age.", show_default=False)
    ] = None,
    rows_per_second: Annotated[
        int | None, typer.Option(metavar="N", help="Read the source no faster than this.", show_default=False)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the same comparison, where one was interrupted.", show_default=False),
    ] = False,
    follow: Annotated[float, typer.Option(metavar="SECONDS", help="How long the lake may take to follow.")] = 120.0,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Prove that source and lake agree, and put right what does not.

    While writes go on; by the ledger, by values, by default both. Every reconciliation is kept in the state folder (`lakesync report`). Keys of rows that differ are in its output and its reports. Exit code 1 on a difference that remains, 3 where something could not be checked.

    \b
    Example:
      lakesync reconcile
      lakesync reconcile shop.orders --values --report report.html
      lakesync reconcile shop.orders --repair --dry-run
      lakesync reconcile --values --sample 1% --rows-per-second 20000
      lakesync reconcile shop.orders --values --between created 2026-05-01 2026-06-01
    """
    pipeline = options.pipeline(config)
    if repair and not values and not ledger:
        values = True
    both = ledger == values
    if hide_keys and show_values:
        raise ConfigError(
            "values are shown or keys are hidden", where="--show-values --hide-keys", hint="leave one out"
        )
    for path in reports or ():
        report.check_path(path)
    share = None if sample is None else asked.share(sample)
    scope = pipeline.scope(
        *(tables or ()),
        columns=[name.strip() for name in columns.split(",") if name.strip()],
        low=low,
        high=high,
        between=between,
        sample=share,
    )
    with reading(show=not as_json and (both or values)) as progress:
        found = pipeline.reconcile(
            *(tables or ()),
            ledger=ledger or both,
            values=values or both,
            repair=repair,
            dry_run=dry_run,
            scope=scope,
            since=since,
            until=until,
            rows_per_second=rows_per_second,
            resume=resume,
            follow_s=follow,
            progress=progress,
            show_values=show_values,
        )
    shown = report.without_keys(found.to_dict()) if hide_keys else found.to_dict()
    if as_json:
        output.as_json(shown)
    else:
        text.show(output.console(), shown)
    unwritten = _write(shown, reports or ())
    for error in (*found.errors, *unwritten[1:]):
        output.show(error, machine=as_json)
    if unwritten:
        raise unwritten[0]
    if found.state == "differs":
        raise typer.Exit(1)
    if found.errors:
        raise typer.Exit(found.errors[0].exit_code)


def _write(shown: Mapping[str, Any], paths: Sequence[Path]) -> list[ConfigError]:
    """Each of them, whatever becomes of the others."""
    failed = []
    for path in paths:
        try:
            report.write(shown, path)
        except ConfigError as error:
            failed.append(error)
    return failed
