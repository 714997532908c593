"""What is said once a request is recorded: what became of it, if a daemon takes it soon."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from cdc.cli import output
from cdc.pipeline import Pipeline
from cdc.state import Request, State
from cdc.status import is_running

OUTCOME_WITHIN_S = 15.0
"""How long a daemon that runs may take to say what became of a request; it is done anyway, later."""
POLL_S = 0.2


def tell(pipeline: Pipeline, numbers: Sequence[int], kind: str, about: Sequence[str], as_json: bool) -> None:
    """Which requests there are now, who takes them, and what came of them."""
    state = State(pipeline.config.state)
    running = is_running(state)
    if not as_json:
        named = ", ".join(f"#{n}" for n in numbers) or "none: there is no table"
        output.say(f"{kind} {', '.join(about)}: recorded ({named})")
    found = _outcomes(state, numbers, OUTCOME_WITHIN_S if running else 0.0)
    if as_json:
        output.as_json({"version": 1, "requests": [asdict(r) for r in found], "running": running})
        return
    for request in found:
        if request.outcome is not None:
            output.say(f"#{request.number} {request.argument}: {request.outcome}")
    if any(r.outcome is None for r in found):
        output.say(
            "The daemon has not taken it yet; `lakesync status` shows it."
            if running
            else "No daemon is running: `lakesync run` takes it when it starts."
        )


def _outcomes(state: State, numbers: Sequence[int], within_s: float) -> list[Request]:
    deadline = time.monotonic() + within_s
    while True:
        found = [r for r in reversed(state.requests(len(numbers) + 100)) if r.number in numbers]
        if all(r.outcome is not None for r in found) or time.monotonic() >= deadline:
            return found
        time.sleep(POLL_S)
