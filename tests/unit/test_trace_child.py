"""What the projection's process says when it fails in a way that nobody expected."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from cdc.errors import TraceError, UnexpectedError
from cdc.trace import __main__ as child


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (pa.ArrowInvalid("no int: hunter2"), UnexpectedError.exit_code),
        (OSError(28, "No space left on device", "/hunter2"), TraceError.exit_code),
    ],
)
def test_a_message_that_may_hold_a_row_is_not_said(
    raised: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def load(_: Path) -> None:
        raise raised

    monkeypatch.setattr(child, "load", load)
    monkeypatch.setattr(sys, "argv", ["trace", "lakesync.yaml"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert child.main() == code
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err
    assert orjson.loads(said.out)["what"]
