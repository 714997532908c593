"""What a server says in the stream in place of an event, as an error."""

from __future__ import annotations

from collections.abc import Callable

from cdc.errors import LakesyncError, SourceUnavailableError

Refusal = Callable[[int, str], LakesyncError]
"""Makes the error: of MySQL's error code (0: the server ended the stream) and message."""


def ended(code: int, message: str) -> LakesyncError:
    """The plainest refusal."""
    return SourceUnavailableError(f"the server ended the stream: {message} (MySQL error {code})" if code else message)
