"""`lakesync schema`"""

from __future__ import annotations

from cdc.cli import output
from cdc.config import json_schema


def command() -> None:
    """Print the JSON Schema of the pipeline file, for editors.

    \b
    Example:
      lakesync schema > lakesync.schema.json
    """
    output.as_json(json_schema())
