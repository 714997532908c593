"""How findings of a preflight look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from cdc.cli import output
from cdc.source.preflight import Finding

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("ERROR", "bold red")}


def failed(findings: Sequence[Finding]) -> bool:
    """Whether one of them is an error."""
    return any(f.level == "error" for f in findings)


def show(findings: Sequence[Finding]) -> None:
    """A line each, and its fix below it."""
    console = output.console()
    width = max((len(f.subject) for f in findings), default=0)
    for f in findings:
        mark, style = _MARKS[f.level]
        line = Text.assemble((f"{mark:<7}", style), f"  {f.subject:<{width}}  {f.what}")
        console.print(line)
        if f.fix and f.level != "ok":
            console.print(f"{'':<7}  {'':<{width}}  → {f.fix}")


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """For `--json`."""
    return [asdict(f) for f in findings]
