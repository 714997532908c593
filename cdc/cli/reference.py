"""What the docs take from the code, between two marks of a page: the commands' help, and the keys of the pipeline file.

`python -m cdc.cli.reference docs` brings the pages up to date.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from cdc.cli.app import app
from cdc.config import json_schema

BEGIN, END = "<!-- from the code, by `python -m cdc.cli.reference docs`: begin -->", "<!-- end -->"
WIDTH = 100


@functools.cache
def helps() -> dict[str, str]:
    """The help text of every command by name (`trace rebuild`), as `--help` prints it, at a fixed width."""
    os.environ["COLUMNS"] = str(WIDTH)
    group = typer.main.get_command(app)
    return dict(_helps(group, group.make_context("lakesync", [], resilient_parsing=True), ""))


def _helps(group: Any, parent: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for name, command in group.commands.items():
        with command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH) as context:
            if hasattr(command, "commands"):
                yield from _helps(command, context, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", command.get_help(context).rstrip()


def _commands() -> str:
    return "\n".join(f"## lakesync {name}\n\n```text\n{text}\n```\n" for name, text in helps().items())


def _keys() -> str:
    lines = ["| key | default | |", "| --- | --- | --- |"]
    schema = json_schema()
    for key, holder in _walk(schema, schema["properties"], ""):
        default = holder.get("default")
        shown = (
            ""
            if default in (None, "", [], {}) or isinstance(default, dict)
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        values = holder.get("enum") or next((o["enum"] for o in holder.get("anyOf", ()) if "enum" in o), ())
        choice = f" One of {', '.join(f'`{v}`' for v in values)}." if values else ""
        lines.append(f"| `{key}` | {shown} | {' '.join(holder.get('description', '').split())}{choice} |")
    return "\n".join(lines) + "\n"


def _walk(schema: dict[str, Any], properties: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, holder in properties.items():
        yield f"{prefix}{name}", holder
        for option in (holder, *holder.get("anyOf", ()), *holder.get("items", {}).get("anyOf", ())):
            if "$ref" in option:
                part = schema["$defs"][option["$ref"].rpartition("/")[2]]
                inner = f"{prefix}{name}[]." if "items" in holder else f"{prefix}{name}."
                yield from _walk(schema, part["properties"], inner)


PAGES: dict[str, Callable[[], str]] = {"cli.md": _commands, "pipeline-file.md": _keys}
"""What stands between the marks of each page."""


def updated(page: str, text: str) -> str:
    """The page with this name and text, brought up to date. Raises `ValueError` for one without marks."""
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"{page}: no {BEGIN} … {END}")
    return f"{head}{BEGIN}\n\n{PAGES[page]()}\n{END}{tail}"


if __name__ == "__main__":
    for name in PAGES:
        path = Path(sys.argv[1]) / name
        path.write_text(updated(name, path.read_text()))
