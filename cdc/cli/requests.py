"""What is said once a request is recorded."""

from __future__ import annotations

from collections.abc import Sequence

from cdc.cli import output
from cdc.pipeline import Pipeline
from cdc.state import State
from cdc.status import is_running


def tell(pipeline: Pipeline, numbers: Sequence[int], kind: str, about: Sequence[str], as_json: bool) -> None:
    """Which requests there are now, and who takes them."""
    running = is_running(State(pipeline.config.state))
    if as_json:
        output.as_json({"version": 1, "requests": list(numbers), "running": running})
        return
    named = ", ".join(f"#{n}" for n in numbers) or "none: there is no table"
    output.say(f"{kind} {', '.join(about)}: recorded ({named})")
    if numbers:
        output.say(
            "The daemon takes it." if running else "No daemon is running: `lakesync run` takes it when it starts."
        )
