"""The app: its commands, and the one place where errors become lines and exit codes.

0    fine
1    a difference, or a check that failed
2    wrong use or configuration
3    the source, the log or the lake failed
130  interrupted
141  whoever read the output went away
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cdc import __version__, crash
from cdc.cli import (
    add,
    check,
    init,
    log,
    optimize,
    options,
    output,
    reconcile,
    remove,
    report,
    resume,
    resync,
    run,
    schema,
    skip,
    snapshot,
    status,
    trace,
    wait,
)
from cdc.errors import ConfigError, LakesyncError

INTERRUPTED = 130
BROKEN_PIPE = 141

app = typer.Typer(
    name="lakesync",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _verb in (
    init,
    check,
    add,
    remove,
    run,
    status,
    wait,
    snapshot,
    resume,
    resync,
    skip,
    optimize,
    reconcile,
    report,
    log,
    schema,
):
    app.command(_verb.__name__.rpartition(".")[2])(_verb.command)
app.add_typer(trace.app)


def _version(asked: bool) -> None:
    if asked:
        output.say(f"lakesync {__version__}")
        raise typer.Exit


@app.callback()
def _lakesync(
    config: options.ConfigFile = None,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.", show_default=False)
    ] = False,
) -> None:
    """lakesync keeps Delta Lake tables in step with MySQL or MariaDB, and proves it.

    \b
    Example:
      lakesync init --source mysql://lakesync@db.example:3306 --password env:DB_PASSWORD --lake /data/lake
      lakesync check
      lakesync add shop.orders 'shop.log_*'
      lakesync run

    \b
    Exit codes:
      0  fine
      1  a difference, or a check that failed
      2  wrong use or configuration
      3  the source, the log or the lake failed
    """
    options.name_config(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    machine = "--json" in given
    try:
        code = app(args=given, prog_name="lakesync", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except LakesyncError as error:
        output.show(error, machine)
        return error.exit_code
    except TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        output.show(ConfigError(message, hint=_usage(given)), machine)
        return ConfigError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as error:
        # typer ends the process by itself where whoever read its output went away.
        if isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE:
            return _reader_left()
        return error.code if isinstance(error.code, int) else 0
    except Exception as error:
        output.show(crash.record(error, options.state_folder(), f"lakesync {_verb_of(given)}".strip()), machine)
        return LakesyncError.exit_code


def _reader_left() -> int:
    # What is still buffered has nowhere to go, and the interpreter would complain when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _verb_of(arguments: Sequence[str]) -> str:
    commands = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    return next((a for a in arguments if a in commands), "")


def _usage(arguments: Sequence[str]) -> str:
    return f"see `{f'lakesync {_verb_of(arguments)}'.strip()} --help`"
