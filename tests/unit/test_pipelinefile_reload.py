"""The pipeline file, read again under the daemon."""

from __future__ import annotations

from pathlib import Path

from cdc.capture.tables import PipelineFile
from cdc.config import load
from cdc.state import State

TEXT = "name: p\nsource: {url: 'mysql://u@127.0.0.1:1'}\nlake: lake\nstate: state\n"


def test_a_setting_that_waits_for_the_next_start_is_a_problem_until_then(tmp_path: Path) -> None:
    path = tmp_path / "lakesync.yaml"
    path.write_text(TEXT)
    path.chmod(0o600)
    config = load(path)
    file = PipelineFile(config, State(config.state))

    def edited(text: str) -> list[str]:
        path.write_text(text)
        for _ in range(3):  # it is taken once it stands still
            file.reload()
        return [p.what for p in file.problems]

    assert edited(TEXT + "tables: [a.b]\n") == []
    (what,) = edited(TEXT + "snapshot: {readers: 4}\nmerge: {every: 1s}\ntables: [a.b]\n")
    assert "takes only `tables` while it runs: merge, snapshot" in what
    assert edited(TEXT + "tables: [a.b, a.c]\n") == []
