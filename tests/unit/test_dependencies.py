"""What the packages import is what the distribution says it needs; the environment of development has more, and would hide a lack."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("cdc", "snapshot", "reconcile")
OPTIONAL = {"confluent_kafka": "kafka", "clickhouse_connect": "clickhouse", "chdb": "embedded", "obstore": "s3"}
"""Modules of an extra; they are imported where they are used."""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def named(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in requirements}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_import_is_a_dependency() -> None:
    modules = {m for package in OURS for path in (ROOT / package).rglob("*.py") for m in imports(path)}
    third = modules - set(sys.stdlib_module_names) - set(OURS) - OPTIONAL.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed, distributions = named(project["dependencies"]), packages_distributions()
    assert {m for m in third if not needed & {normal(d) for d in distributions[m]}} == set()
    for module in OPTIONAL.keys() & modules:
        assert normal(module) in named(project["optional-dependencies"][OPTIONAL[module]])
