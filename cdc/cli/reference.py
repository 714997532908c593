"""The commands' help in docs/cli.md, between two marks. `python -m cdc.cli.reference docs/cli.md` brings it up to date."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from cdc.cli.app import app

BEGIN, END = "<!-- the commands' help begins -->", "<!-- the commands' help ends -->"
WIDTH = 100


def helps() -> dict[str, str]:
    """The help text of every command by name, as `--help` prints it, at a fixed width."""
    os.environ["COLUMNS"] = str(WIDTH)
    group = typer.main.get_command(app)
    parent = group.make_context("lakesync", [], resilient_parsing=True)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        with command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH) as context:
            found[name] = command.get_help(context).rstrip()
    return found


def updated(text: str) -> str:
    """The page `text` with every command's help between the marks. Raises `ValueError` for a page without them."""
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"no {BEGIN} … {END}")
    parts = [f"## lakesync {name}\n\n```text\n{help_text}\n```\n" for name, help_text in helps().items()]
    return f"{head}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{tail}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(updated(page.read_text()))
