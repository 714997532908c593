"""Tracebacks of what nobody expected: useful, and without values."""

from __future__ import annotations

import stat
from pathlib import Path

import pyarrow as pa
import pytest

from cdc import crash


def _fail_with_a_value() -> None:
    try:
        pa.array(["hunter2"], pa.int64())
    except pa.ArrowInvalid as error:
        raise KeyError("hunter2") from error


def test_a_traceback_names_places_and_types_and_no_values(tmp_path: Path) -> None:
    try:
        _fail_with_a_value()
    except KeyError as error:
        shown = crash.record(error, tmp_path, "node merge")
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "_fail_with_a_value" in text
    assert "builtins.KeyError" in text
    assert "ArrowInvalid" in text
    assert "hunter2" not in text.replace('raise KeyError("hunter2")', "").replace('pa.array(["hunter2"]', "")
    assert shown.what == "unexpected KeyError in node merge"
    assert str(path) in shown.where


def test_messages_of_the_interpreter_are_kept(tmp_path: Path) -> None:
    try:
        None.x  # type: ignore[attr-defined]  # noqa: B018
    except AttributeError as error:
        text = crash.describe(error)
    assert "has no attribute 'x'" in text


def test_without_a_state_folder_it_goes_elsewhere(tmp_path: Path, monkeypatch: object) -> None:
    shown = crash.record(ValueError("x"), tmp_path / "none", "lakesync status")
    path = Path(shown.where.removeprefix("traceback in "))
    assert path.read_text() == "builtins.ValueError\n"
    path.unlink()


def test_tracebacks_do_not_fill_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "KEPT", 3)
    other = tmp_path / "state.db"
    other.touch()
    shown = [crash.record(ValueError(), tmp_path, "node trace") for _ in range(5)]
    assert len(list(tmp_path.glob("crash-*.log"))) == 3
    assert other.exists()
    assert len({one.where for one in shown}) == 5
