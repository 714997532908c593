"""What a command prints: for people to standard output by rich, with `--json` for machines; errors once, to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdc.errors import LakesyncError

PLAIN_WIDTH = 160
"""Columns where there is no terminal: wide enough that no line of a table breaks."""


def console() -> Console:
    """Standard output; without a terminal plain, and never broken to a guessed width."""
    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else PLAIN_WIDTH, highlight=False, soft_wrap=not terminal, emoji=False, markup=False
    )


def table(titles: Sequence[str], right: Iterable[int] = ()) -> Table:
    """A table without lines; the columns `right` are numbers."""
    made = Table(*titles, box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(made.columns):
        column.overflow = "fold"
        if i in right:
            column.justify = "right"
            column.no_wrap = True
    return made


def say(text: str | Text) -> None:
    """One line."""
    console().print(text)


def as_json(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=_other).decode() + "\n")


def json_line(value: Any) -> None:
    """One JSON document on a line."""
    sys.stdout.write(orjson.dumps(value, default=_other).decode() + "\n")


def show(error: LakesyncError, machine: bool = False) -> None:
    """An error, once, to standard error."""
    if machine:
        sys.stderr.write(orjson.dumps({"error": error.to_dict()}).decode() + "\n")
        return
    lines = [("error", error.what), ("where", error.where), ("hint", error.hint)]
    for title, text in lines:
        if text:
            sys.stderr.write(f"{title}: {' '.join(text.split())}\n")


def duration(ms: int | None) -> str:
    """Milliseconds for people; `?` where they are not known."""
    if ms is None:
        return "?"
    if ms < 1000:
        return f"{ms} ms"
    seconds = ms / 1000
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "?"
    for unit, amount in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= amount:
            return f"{count / amount:.1f} {unit}"
    return f"{count} B"


def _other(value: Any) -> str:
    """Values of a row that JSON does not have: bytes in hex, everything else as its text."""
    return value.hex() if isinstance(value, bytes) else str(value)
