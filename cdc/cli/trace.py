"""`lakesync trace`"""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from cdc.cli import options, output
from cdc.errors import ConfigError
from cdc.log import open_log
from cdc.trace import client
from cdc.trace.project import project
from cdc.trace.schema import forget
from cdc.trace.state import look

app = typer.Typer(
    name="trace",
    help="The counts in ClickHouse: what is there, and to make them anew.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.command()
def rebuild(
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Delete the pipeline's rows first, those too that nothing can bring back.",
            show_default=False,
        ),
    ] = False,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Make the trace anew, as far back as log and lake reach.

    For a ClickHouse that was lost, restored or emptied. Rows that are there already are written again, which changes nothing. The daemon may
    run meanwhile.

    \b
    Example:
      lakesync trace rebuild
    """
    loaded = options.pipeline(config).config
    if loaded.trace is None:
        raise ConfigError("the pipeline has no trace", where=str(loaded.path), hint="set `trace:`")
    with closing(open_log(loaded.log, loaded.name, loaded.log_settings())) as log, client(loaded.trace) as opened:
        if fresh:
            forget(opened, loaded.name)
        done = project(opened, loaded, log, rebuild=True)
        oldest = log.oldest()
    if as_json:
        output.as_json(
            {
                "version": 1,
                "epochs": done.records,
                "first_epoch": oldest.number if oldest else None,
                "last_epoch": done.epoch or None,
                "commits": done.commits,
                "rows": done.rows,
                "seconds": round(done.seconds, 3),
            }
        )
        return
    reach = f" ({oldest.number:,} to {done.epoch:,})" if oldest and done.epoch else ""
    output.say(
        f"trace rebuilt: {done.records:,} epochs{reach}, {done.commits:,} commits of the lake, {done.rows:,} rows,"
        f" {done.seconds:.1f} s"
    )


@app.command()
def status(config: options.ConfigFile = None, as_json: options.Json = False) -> None:
    """Show what the trace has of this pipeline.

    \b
    Example:
      lakesync trace status
    """
    loaded = options.pipeline(config).config
    if loaded.trace is None:
        raise ConfigError("the pipeline has no trace", where=str(loaded.path), hint="set `trace:`")
    with client(loaded.trace) as opened:
        found = look(opened, loaded.name)
    if as_json:
        output.as_json({"version": 1, "url": loaded.trace.url, "nodes": [node.to_dict() for node in found]})
        return
    shown = output.table(("node", "entries", "rows in", "rows out", "from", "to"), right=(1, 2, 3))
    for node in found:
        shown.add_row(
            node.node, f"{node.entries:,}", f"{node.rows_in:,}", f"{node.rows_out:,}", node.first or "", node.last or ""
        )
    output.console().print(shown)
    output.say(loaded.trace.url)
