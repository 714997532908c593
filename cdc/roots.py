"""Where a lake is: a folder on a local disk, or one in an object store. Values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ObjectRoot:
    """A lake in an object store. `options` hold secrets, which no text of this shows."""

    url: str
    """`s3://bucket/prefix`, without a `/` at its end."""
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The store's settings, sorted by name, secrets resolved."""

    def __str__(self) -> str:
        return self.url


Root = Path | ObjectRoot
"""What `cdc.lake` is told of where to write."""
