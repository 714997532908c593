"""`lakesync report`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cdc.cli import options, output
from cdc.errors import ConfigError
from reconcile.report import document as reporting
from reconcile.report import text
from reconcile.runs import Run, Runs

SHOWN = 20
_STYLES = {"agrees": "green", "differs": "bold red", "failed": "yellow"}


def command(
    run: Annotated[
        int | None, typer.Argument(metavar="RUN", help="Its number. Default: list the newest runs.", show_default=False)
    ] = None,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write it there, .html for people or .json for machines; may be repeated.",
            show_default=False,
        ),
    ] = None,
    hide_keys: Annotated[
        bool, typer.Option("--hide-keys", help="Without the keys of rows.", show_default=False)
    ] = False,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Show a reconciliation again that was kept.

    Of those that the daemon's schedule ran and that found nothing, only the verdicts are kept.

    \b
    Example:
      lakesync report
      lakesync report 17 --report report.html
    """
    for path in reports or ():
        reporting.check_path(path)
    runs = Runs(options.pipeline(config).config.state)
    if run is None:
        _list(runs.history(SHOWN), as_json)
        return
    found = runs.run(run)
    kept = _kept(run, found)
    if hide_keys:
        kept = reporting.without_keys(kept)
    if as_json:
        output.as_json(kept)
    else:
        text.show(output.console(), kept)
    for path in reports or ():
        reporting.write(kept, path)


def _kept(number: int, run: Run | None) -> dict[str, Any]:
    """A run's report. Raises `ConfigError` where there is none."""
    where = f"run {number}"
    if run is None:
        raise ConfigError("no such run", where=where, hint="`lakesync report` lists the newest; old ones are forgotten")
    if run.report is None:
        going = "it ended before it had a result" if run.dead else "it has not ended"
        raise ConfigError(f"the run has no report: {going}", where=where, hint="`lakesync reconcile` makes a new one")
    if error := run.report.get("error"):
        raise ConfigError(
            f"the run failed: {error['what']}", where=error.get("where") or where, hint=error.get("hint", "")
        )
    return run.report | {"checks": reporting.checks()}


def _list(runs: list[Run], as_json: bool) -> None:
    if as_json:
        fields = ("number", "kind", "trigger", "tables", "begun_us", "ended_us", "verdict")
        output.as_json({"version": 1, "runs": [{f: getattr(run, f) for f in fields} for run in runs]})
        return
    if not runs:
        output.say("Nothing was reconciled yet: `lakesync reconcile`")
        return
    table = output.table(("run", "what", "when", "took", "by", "tables", "verdict"), right=(0,))
    now_us = time.time_ns() // 1000
    for run in runs:
        took = "" if run.ended_us is None else output.duration((run.ended_us - run.begun_us) // 1000)
        verdict = run.verdict or ("interrupted" if run.dead else "goes on")
        table.add_row(
            str(run.number),
            run.kind,
            f"{output.duration((now_us - run.begun_us) // 1000)} ago",
            took,
            run.trigger,
            ", ".join(run.tables) or "all",
            Text(verdict, style=_STYLES.get(verdict, "")),
        )
    output.console().print(table)
