"""The pipeline files in `configs/` are right, as far as that can be told without their servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.config import load

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_loads(path: Path) -> None:
    config = load(path)
    assert config.tables
    assert config.source.password, "an example without a password invites one into the URL"
