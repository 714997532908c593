"""The command line: one file a verb, each thin over `cdc.Pipeline`."""

from __future__ import annotations

from cdc.cli.app import main

__all__ = ["main"]
