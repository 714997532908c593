"""What can go wrong before a server runs."""

from __future__ import annotations


class SetUpError(RuntimeError):
    """A throwaway server cannot be had or does not start.

    `hint` is the way out; it is part of the message.
    """

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what}\n{hint}")
        self.what = what
        self.hint = hint
