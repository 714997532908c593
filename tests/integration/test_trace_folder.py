"""A chDB folder that is opened again and again, each time for less than a second, does not fill with files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_HEAD = """
import sys
from cdc.config import TraceConfig
from cdc.trace.client import client
from cdc.trace.rows import Rows
from cdc.trace.schema import prepare, tidy

def inactive(opened):
    return opened.query("SELECT count() FROM system.parts WHERE NOT active AND database = currentDatabase()").result_rows[0][0]

with client(TraceConfig(url=f"chdb://{sys.argv[1]}")) as opened:
    prepare(opened, "p", None, "trace")
"""
_FILL = """
    tidy(opened)
    for number in range(20):
        rows = Rows()
        rows.add({"pipeline": "p", "node": "source", "hash": str(number), "number": number})
        rows.write(opened)
    opened.command("OPTIMIZE TABLE lakesync_nodes FINAL")
    opened.command("OPTIMIZE TABLE lakesync_newest FINAL")
    print(inactive(opened))
"""
_TIDY = """
    tidy(opened, 30)
    print(inactive(opened), opened.query("SELECT count() FROM lakesync_nodes").result_rows[0][0])
"""


def run(folder: Path, what: str) -> list[int]:
    """In a process of its own, as chDB wants it."""
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + what, str(folder)], check=True, capture_output=True, text=True, timeout=120
    )
    return [int(number) for number in done.stdout.split()]


def test_what_was_merged_goes(tmp_path: Path) -> None:
    (left,) = run(tmp_path / "trace", _FILL)
    assert left >= 20
    files = sum(1 for _ in tmp_path.rglob("*"))
    assert run(tmp_path / "trace", _TIDY) == [0, 20]
    assert sum(1 for _ in tmp_path.rglob("*")) < files / 4
