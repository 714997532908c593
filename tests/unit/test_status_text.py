"""What people see of readings in `lakesync status`."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from cdc.cli.status import _whole
from cdc.status import NodeStatus, PipelineStatus, Reading, TableView, percent
from reconcile.watch.overview import Checked, Checks, Found, Scheduled

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


NOW_MS = 1_800_000_000_000
ALERT = {
    "key": "differs/values/shop.orders", "kind": "differs", "summary": "shop.orders: 3 rows differ from the source", "hint": "repair them",
    "since_us": (NOW_MS - 7_200_000) * 1000, "over_us": None, "sent_us": 1, "times": 2, "failures": {"webhook": {"what": "https://h answered 500"}},
    "table": "shop.orders", "check": "values", "differences": 3,
}  # fmt: skip


def with_checks(checks: Checks, *alerts: dict[str, Any], nodes: tuple[NodeStatus, ...] = ()) -> str:
    status = PipelineStatus("p", NOW_MS, True, None, 1, 1, 1, 1, nodes, (), (), (), (), checks=checks, alerts=alerts)
    return text_of(status)


def test_checks_say_what_they_found_when_and_when_next() -> None:
    ago, since = (NOW_MS - 600_000) * 1000, (NOW_MS - 7_200_000) * 1000
    text = with_checks(
        Checks(
            (
                Checked("ledger", "shop.orders", "agrees", ago, 1, 0, True, 0, None),
                Checked("values", "shop.orders", "agrees", ago, 2, 0, False, 3, since),
                Checked("values", "shop.users", "failed", ago, 2, 0, True, 0, None),
                Checked("values", "shop.mended", "differs", ago, 2, 3, True, 0, None),
            ),
            (
                Scheduled(
                    "ledger",
                    "every 5m",
                    (NOW_MS + 60_000) * 1000,
                    None,
                    {"what": "ClickHouse is not there", "hint": "start it"},
                ),
                Scheduled("values", "0 3 * * *", 0, (NOW_MS - 30_000) * 1000, None),
            ),
            (
                Found("values", "shop.orders", "7", "different", ("note",), 1, since),
                Found("values", "shop.orders", "", "more rows that differ", (), 2, since),
                Found("ledger", "shop.users", "log: captured = logged", "epochs 3 to 4", (), 2, since),
            ),
        ),
        ALERT,
    )
    assert "closes, 10.0 min ago" in text
    assert "equal (a part), 3 unresolved, 10.0 min ago" in text
    assert "failed, 10.0 min ago" in text
    assert "differed, put right, 10.0 min ago" in text
    assert "shop.orders values: key 7: different in note, since 2.0 h" in text
    assert "shop.orders values: 2 more rows that differ, since 2.0 h" in text
    assert "shop.users ledger: log: captured = logged, epochs 3 to 4, since 2.0 h" in text
    assert "the check of ledger failed: ClickHouse is not there" in text
    assert "next: ledger in 60.0 s (every 5m), values runs for 30.0 s" in text
    assert "alert: shop.orders: 3 rows differ from the source, for 2.0 h; sent 2 times" in text
    assert "webhook: https://h answered 500" in text


def test_the_trace_says_how_far_behind_it_is_and_why() -> None:
    info = {"behind": 1200, "error": {"what": "not reached", "where": "clickhouse", "hint": "start it"}}
    text = with_checks(Checks((), (), ()), nodes=(NodeStatus("trace", 1, True, 0, info),))
    assert "trace alive, 1,200 epochs behind" in text
    assert "the trace fails: not reached" in text
    assert "hint: start it" in text
