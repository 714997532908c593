"""The first copy of a table: primary-key chunks and the direct bootstrap."""

from snapshot.direct import Bootstrap
from snapshot.node import run

__all__ = ["Bootstrap", "run"]
