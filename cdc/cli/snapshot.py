"""`lakesync snapshot`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from cdc import reads
from cdc.cli import options, output
from cdc.cli.progress import rereading
from cdc.errors import ConfigError
from cdc.pipeline import Pipeline
from cdc.reads import Read
from cdc.state import State
from cdc.status import is_running


def command(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table that is followed, or a shard of one.")],
    where: Annotated[
        str,
        typer.Option(
            metavar="SQL", help="Only rows that meet this condition, as the server has it.", show_default=False
        ),
    ] = "",
    low: Annotated[
        str | None,
        typer.Option("--from", metavar="KEY", help="Only rows from this key on, included.", show_default=False),
    ] = None,
    high: Annotated[
        str | None, typer.Option("--to", metavar="KEY", help="Only rows up to this key, included.", show_default=False)
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--key", metavar="KEY", help="Only the row with exactly this key; may be repeated.", show_default=False
        ),
    ] = None,
    pause: Annotated[
        bool, typer.Option("--pause", help="Have what is being read of the table wait.", show_default=False)
    ] = False,
    proceed: Annotated[
        bool, typer.Option("--continue", help="Have what was paused go on.", show_default=False)
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End it; what is in the log stays there.", show_default=False)
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Record it, and do not wait for it.", show_default=False)
    ] = False,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Read rows of a table again, while the stream goes on.

    The lake's rows become the source's, where they had parted; rows that the source no longer has go, except with --where, which only brings rows. A key of several columns is written with commas between, or as a JSON array; binary ones in hexadecimal digits. Ctrl-C leaves the reading to the daemon.

    \b
    Example:
      lakesync snapshot shop.orders
      lakesync snapshot shop.orders --where "created >= '2024-05-01'"
      lakesync snapshot shop.orders --from 1000 --to 1999
      lakesync snapshot shop.items --key 17,3 --key 17,4
      lakesync snapshot shop.orders --pause
    """
    pipeline = options.pipeline(config)
    asked = [name for name, given in (("pause", pause), ("continue", proceed), ("cancel", cancel)) if given]
    if asked:
        _steer(pipeline, table, asked, bool(where or keys or low is not None or high is not None), as_json)
        return
    found = pipeline.snapshot(table, where=where, low=low, high=high, keys=keys or ())
    running = is_running(State(pipeline.config.state))
    if no_wait or not running:
        _say(found, running, as_json)
        if not as_json:
            output.say(
                "`lakesync status` shows how far it is."
                if running
                else "No daemon is running: `lakesync run` reads it when it starts."
            )
        return
    try:
        with rereading(show=not as_json) as told:
            found = pipeline.wait(found, told)
    except KeyboardInterrupt:
        if not as_json:
            output.say(f"It goes on; `lakesync status` shows it, `lakesync snapshot {table} --cancel` ends it.")
        raise
    _say(found, running, as_json)
    if any(read.phase == "cancelled" for read in found):
        raise typer.Exit(1)


def _steer(pipeline: Pipeline, table: str, asked: Sequence[str], more: bool, as_json: bool) -> None:
    if len(asked) > 1 or more:
        raise ConfigError(f"--{asked[0]} stands alone", where=table, hint=f"`lakesync snapshot {table} --{asked[0]}`")
    verbs = {"pause": pipeline.pause, "continue": pipeline.proceed, "cancel": pipeline.cancel}
    found = verbs[asked[0]](table)
    if as_json:
        _say(found, is_running(State(pipeline.config.state)), as_json)
        return
    done = {"pause": "paused", "continue": "goes on", "cancel": "cancelled"}[asked[0]]
    for read in found:
        output.say(f"{read.table}: {done}, after {_count(read.rows_read, 'row')}")
    if not found:
        output.say(f"{table}: its first reading {'is paused' if asked[0] == 'pause' else 'goes on'}")


def _say(found: Sequence[Read], running: bool, as_json: bool) -> None:
    if as_json:
        output.as_json({"version": 1, "running": running, "reads": [reads.view(read) for read in found]})
        return
    for read in found:
        if read.phase == "cancelled":
            output.say(f"{read.table}: cancelled, after {_count(read.rows_read, 'row')}")
        elif read.phase != "done":
            output.say(f"{read.table}: recorded, job {read.job}")
        elif not read.rows_read and not read.rows_gone:
            output.say(f"{read.table}: 0 rows match; the lake is as it was")
        else:
            kept = read.rows_read + read.rows_gone - read.rows_emitted
            told = f"{read.table}: {_count(read.rows_read, 'row')} read"
            told += (
                f"; {_count(read.rows_gone, 'key')} not in the source, nor in the lake now" if read.rows_gone else ""
            )
            told += f"; {kept:,} changed meanwhile, and came by the stream" if kept > 0 else ""
            output.say(told)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
