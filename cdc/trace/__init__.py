"""Counts of what goes into and out of every node, in ClickHouse: a projection of the log and the lake, never waited for."""

from __future__ import annotations

from cdc.trace.child import Projected, project_in_process
from cdc.trace.client import client
from cdc.trace.project import ProjectResult, project

__all__ = ["ProjectResult", "Projected", "client", "project", "project_in_process"]
