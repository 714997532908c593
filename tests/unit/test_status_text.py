"""What people see of readings in `lakesync status`."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from cdc.cli.status import _whole
from cdc.status import NodeStatus, PipelineStatus, Reading, TableView, percent

READING = Reading(41.2, 250_000, 95, False, "", "")
TABLE = TableView("shop.orders", "snapshot", 4_120_000, 10_000_000, None, None, None, READING)
READ = {
    "table": "shop.users", "target": "shop.users", "what": "whole table", "phase": "running", "rows_read": 5000, "rows_emitted": 4990, "rows_gone": 3,
    "percent": 50.0, "rows_per_second": 1000, "seconds_left": 5, "waiting": "", "error": None,
}  # fmt: skip


def shown(*tables: TableView, reads: tuple[dict[str, Any], ...] = ()) -> str:
    return text_of(PipelineStatus("p", 0, True, None, 1, 1, 1, 1, (), tables, (), (), (), reads))


def text_of(status: PipelineStatus) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(_whole(status))
    return out.getvalue()


def test_a_first_reading_tells_how_far_and_how_fast_it_is() -> None:
    assert "4,120,000 of about 10,000,000: 41 %, 250,000 rows/s, 95.0 s left" in shown(TABLE)


def test_a_first_reading_tells_what_it_waits_for() -> None:
    assert "snapshot, paused" in shown(replace(TABLE, reading=replace(READING, paused=True)))
    assert "snapshot, waits: Threads_running is 80" in shown(
        replace(TABLE, reading=replace(READING, waiting="Threads_running is 80"))
    )
    assert "shop.orders: it takes too long" in shown(
        replace(TABLE, reading=replace(READING, warning="it takes too long"))
    )


def test_what_is_not_known_is_left_out() -> None:
    table = replace(TABLE, rows_estimate=0, reading=Reading(None, None, None, False, "", ""))
    assert "4,120,000\n" in shown(table).replace(" ", "")


def test_an_error_of_a_paused_reading_is_not_that_it_stopped() -> None:
    error = {"what": "too slow", "where": "shop.orders", "hint": "wait"}
    text = shown(replace(TABLE, error=error, reading=replace(READING, paused=True)))
    assert "shop.orders paused: too slow" in text
    assert "shop.orders stopped: too slow" in shown(replace(TABLE, phase="stopped", error=error, reading=None))


def test_what_is_read_again_is_shown() -> None:
    lines = shown(TABLE, reads=(READ,)).splitlines()
    (line,) = [line for line in lines if "shop.users" in line]
    assert " ".join(line.split()) == "shop.users whole table running 5,000 4,990 3 50 %, 1,000 rows/s, 5.0 s left"
    failed = shown(TABLE, reads=(READ | {"phase": "failed", "error": {"what": "gone"}},))
    assert "reading shop.users again, failed: gone" in failed
    stopped = replace(TABLE, table="shop.users", phase="stopped", error={"what": "gone"}, reading=None)
    assert "reading shop.users again" not in shown(
        stopped, reads=(READ | {"phase": "failed", "error": {"what": "gone"}},)
    )


def test_no_reading_is_whole_before_its_end() -> None:
    assert percent(10, 0) is None
    assert percent(500, 1000) == 50.0
    assert percent(1000, 1000) == 99.9


def test_of_what_was_read_again_only_the_newest_is_shown() -> None:
    done = [READ | {"table": f"shop.t{n}", "phase": "done"} for n in range(9)]
    text = shown(TABLE, reads=(READ, *done[:5], READ | {"table": "shop.bad", "phase": "failed"}, *done[5:]))
    assert [n for n in range(9) if f"shop.t{n} " in text] == [6, 7, 8]
    assert "shop.users" in text
    assert "shop.bad" in text


def test_what_capture_waits_for_is_shown_as_long_as_it_says_so() -> None:
    problem = {"what": "not YAML", "where": "lakesync.yaml:3", "hint": "put it right", "code": "Config"}
    capture = NodeStatus("capture", 1, True, 10, {"problems": [problem]})
    past = problem | {"at_us": 0, "node": "capture", "table": None}
    status = PipelineStatus("p", 0, True, None, 1, 1, 1, 1, (capture,), (TABLE,), (), (), (past,), ())
    assert "capture says: not YAML\n  where: lakesync.yaml:3\n  hint: put it right" in text_of(status)
    assert "not YAML" not in text_of(replace(status, nodes=(replace(capture, info={}),)))
    assert "capture: out of memory" in text_of(
        replace(status, errors=(past | {"what": "out of memory", "code": "Log"},))
    )
