"""Options that commands share, and the way from them to the pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cdc.config import PipelineConfig, load
from cdc.pipeline import Pipeline

DEFAULT = Path("lakesync.yaml")
VARIABLE = "LAKESYNC_CONFIG"

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"Pipeline file. [default: ${VARIABLE}, else {DEFAULT}]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.", show_default=False)]

_named: Path | None = None
"""The `-c` before the command."""
_read: PipelineConfig | None = None
"""What this process works on, once it is read: where a crash's traceback goes."""


def name_config(path: Path | None) -> None:
    """Remember the `-c` that stands before the command."""
    global _named, _read
    _named, _read = path, None


def config_path(option: Path | None) -> Path:
    """The pipeline file that is meant."""
    return option or _named or Path(os.environ.get(VARIABLE) or DEFAULT)


def pipeline(option: Path | None) -> Pipeline:
    """The pipeline that is meant. Raises `ConfigError`."""
    global _read
    _read = load(config_path(option))
    return Pipeline(_read)


def state_folder() -> Path | None:
    """The state folder, if a pipeline file was read."""
    return _read.state if _read else None
