"""Exceptions that nobody expected: a traceback into the state folder, without the values that its messages may hold."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import traceback
from pathlib import Path

from cdc.errors import UnexpectedError

_SAFE = (
    AttributeError,
    NameError,
    ImportError,
    TypeError,
    NotImplementedError,
    AssertionError,
    RecursionError,
    MemoryError,
    OSError,
)
"""Exactly these of the interpreter's own speak of code and files, never of rows; other messages are left out."""

KEPT = 100
"""Of a folder the newest ones: what fails now and then, and is tried again for months, must not fill a disk."""


def describe(error: BaseException) -> str:
    """The traceback of `error` and of what caused it, as text: places and types, messages only where they cannot hold a row."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        kind = type(current)
        told = kind.__module__ == "builtins" and isinstance(current, _SAFE)
        last = f"{kind.__module__}.{kind.__qualname__}" + (f": {current}" if told else "")
        parts.append("".join(traceback.format_list(traceback.extract_tb(current.__traceback__))) + last + "\n")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nwhich was raised while handling or because of this:\n\n".join(parts)


def record(error: BaseException, folder: Path | None, doing: str) -> UnexpectedError:
    """Write the traceback into `folder`, or where temporary files go, and give the error to show instead."""
    name = f"crash-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
    descriptor, path = -1, ""
    for place in (folder, Path(tempfile.gettempdir())):
        if place is None or not place.is_dir():
            continue
        try:
            descriptor, path = tempfile.mkstemp(".log", f"{name}-", place)
            break
        except OSError:
            continue
    if descriptor >= 0:
        with os.fdopen(descriptor, "w") as file:
            file.write(describe(error))
        _forget(Path(path).parent)
    return UnexpectedError(
        f"unexpected {type(error).__name__} in {doing}",
        where=f"traceback in {path}" if path else "",
        hint="this is a mistake in lakesync: please report it with the traceback; `lakesync run` goes on where it was",
    )


def _forget(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for old in sorted(folder.glob("crash-*.log"))[:-KEPT]:
            old.unlink(missing_ok=True)
