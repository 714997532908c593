"""Logs: one event a line, where they were asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import orjson
import pytest

from cdc import journal


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("lakesync")
    handlers, level = list(root.handlers), own.level
    yield
    root.handlers[:] = handlers
    own.setLevel(level)


def test_nothing_is_printed_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    journal.logger("capture").error("failed", epoch=1)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_logfmt(capsys: pytest.CaptureFixture[str]) -> None:
    journal.configure("logfmt", "info")
    log = journal.logger("capture")
    log.info("epoch-written", epoch=7, where="two words", table=("a", 1), **{"a key": True})
    log.debug("not-this")
    out = capsys.readouterr()
    assert out.out == ""
    (line,) = out.err.splitlines()
    assert line.startswith("at=20")
    assert line.partition(" ")[2] == (
        'level=info node=capture event=epoch-written epoch=7 where="two words" table="(\'a\', 1)" a_key=true'
    )


def test_json_and_other_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    journal.configure("json", "warning")
    journal.configure("json", "warning")
    journal.logger("merge").info("not-this")
    journal.logger("merge").warning("restarting", in_s=0.5)
    logging.getLogger("pymysql").warning("two\nlines %s", 1)
    first, second = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert {k: first[k] for k in ("level", "node", "event", "in_s")} == {
        "level": "warning",
        "node": "merge",
        "event": "restarting",
        "in_s": 0.5,
    }
    assert (second["node"], second["event"]) == ("pymysql", "two\nlines 1")


def test_an_exceptions_text_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    journal.configure()
    try:
        raise ValueError("hunter2")
    except ValueError:
        journal.logger("merge").exception("failed")
        logging.getLogger("pymysql").exception("lost")
    err = capsys.readouterr().err
    assert "level=error node=merge event=failed" in err
    assert "event=lost" in err
    assert "hunter2" not in err
    assert len(err.splitlines()) == 2
