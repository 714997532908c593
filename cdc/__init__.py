"""lakesync keeps Delta Lake tables in step with MySQL or MariaDB, and proves it.

`Pipeline` is the way in; the errors that it raises are below. Everything else in this package is its own business.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cdc.errors import (
    ConfigError,
    LakeError,
    LakesyncError,
    LogError,
    NotFollowingError,
    SourceError,
    StateError,
    TableStoppedError,
    TraceError,
    UnexpectedError,
)

if TYPE_CHECKING:
    from cdc.pipeline import Pipeline
    from cdc.status import PipelineStatus

__all__ = [
    "ConfigError",
    "LakeError",
    "LakesyncError",
    "LogError",
    "NotFollowingError",
    "Pipeline",
    "PipelineStatus",
    "SourceError",
    "StateError",
    "TableStoppedError",
    "TraceError",
    "UnexpectedError",
    "__version__",
]

try:
    __version__ = version("lakesync")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0"


def __getattr__(name: str) -> Any:
    # Loaded on first use: parts of this package import each other, and few of them need all of them.
    if name == "Pipeline":
        from cdc.pipeline import Pipeline

        return Pipeline
    if name == "PipelineStatus":
        from cdc.status import PipelineStatus

        return PipelineStatus
    raise AttributeError(f"module 'cdc' has no attribute {name!r}")
