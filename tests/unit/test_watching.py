"""What counts as wrong: differences that are not put right, checks that fail or are late, lag, tables that stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cdc import config as configuration
from cdc.config import PipelineConfig
from cdc.errors import LakesyncError
from cdc.names import TableName
from cdc.state import State, TableStatus
from cdc.watermark import Watermark
from reconcile.runs import Kind, Runs
from reconcile.watch.alerts import Alerts
from reconcile.watch.node import planned
from reconcile.watch.watching import Watch, lagging, late
from tests.unit.test_runs import check, ledger, values

S = 1_000_000
ORDERS = TableName("shop", "orders")


def pipeline(folder: Path, **more: Any) -> PipelineConfig:
    data = {"name": "p", "source": {"url": "mysql://u@127.0.0.1:3306"}, "lake": "lake"} | more
    return configuration.parse(data, folder / "lakesync.yaml")


class Watched:
    def __init__(self, config: PipelineConfig) -> None:
        self.state, self.runs, self.alerts = State(config.state), Runs(config.state), Alerts(config.state)
        self.watch = Watch(config, self.state, self.runs, self.alerts)
        self.state.set_table(ORDERS, "ready")

    def look(self) -> dict[str, str]:
        self.watch.look()
        return {a.key: a.about.summary for a in self.alerts.all() if a.over_us is None}

    def over(self) -> dict[str, str]:
        return {a.key: a.about.summary for a in self.alerts.all() if a.over_us is not None}


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(pipeline(tmp_path))


def test_a_difference_is_wrong_until_it_is_put_right(watched: Watched) -> None:
    assert watched.look() == {}
    check(watched.runs, values("7", "9", sampled=0.1))
    assert watched.look() == {"differs/values/shop.orders": "shop.orders: 2 rows differ from the source"}
    check(watched.runs, values(sampled=0.1))
    assert watched.look().keys() == {"differs/values/shop.orders"}
    watched.runs.settled("shop.orders", ["7", "9"])
    assert watched.look() == {}
    assert watched.over().keys() == {"differs/values/shop.orders"}


def test_what_a_run_finds_and_repairs_at_once_is_told_as_over_once(watched: Watched) -> None:
    run = watched.runs.begin("values", "schedule", (), {})
    repair = {"dry_run": False, "tables": [{"table": "shop.orders", "ok": True}]}
    watched.runs.end(run, "differs", {"values": values("7"), "repair": repair})
    assert watched.look() == {}
    assert watched.over() == {
        "differs/values/shop.orders": "shop.orders: 1 row differed from the source; that is put right"
    }
    watched.alerts.due(())
    assert watched.look() == {}
    assert watched.over() == {}


def test_an_imbalance_names_its_equation(watched: Watched) -> None:
    check(watched.runs, ledger(-2), "ledger")
    (summary,) = watched.look().values()
    assert summary == "shop.orders: the ledger does not close: captured = logged, epochs 3 to 4"
    check(watched.runs, ledger(0), "ledger")
    assert watched.look() == {}


def test_of_a_table_that_is_removed_nothing_is_wrong(watched: Watched) -> None:
    check(watched.runs, values("7"))
    assert watched.look()
    watched.state.set_table(ORDERS, "removed")
    assert watched.look() == {}


def test_no_key_leaves_the_machine(watched: Watched) -> None:
    check(watched.runs, values("hunter2"))
    watched.look()
    (due,) = watched.alerts.due(("webhook",))
    assert "hunter2" not in str(due.payload("p", 1))


def test_a_table_that_stops_is_told_until_it_goes_on(watched: Watched) -> None:
    watched.state.stop_table(ORDERS, "merge", LakesyncError("its schema changed", hint="resync it"))
    assert watched.look() == {"stopped/shop.orders": "shop.orders stopped: its schema changed"}
    watched.state.set_table(ORDERS, "ready", error=None)
    assert watched.look() == {}


class Late:
    """A pipeline that closes its ledger every 10 s, and the time since then."""

    def __init__(self, folder: Path) -> None:
        self.config = pipeline(folder, reconcile={"ledger": "every 10s"})
        self.runs = Runs(self.config.state)
        self.since_us = planned(self.config.reconcile, self.runs)[0].due_us - 10 * S

    def after(self, seconds: float) -> list[str]:
        found = late(planned(self.config.reconcile, self.runs), self.runs, 60, self.since_us + int(seconds * S))
        return [a.summary for a in found.values()]

    def run(self, verdict: Any = None, trigger: Any = "schedule", kind: Kind = "ledger") -> None:
        number = self.runs.begin(kind, trigger, (), {})
        if verdict:
            error = (
                {"error": {"what": "ClickHouse is away", "where": "", "hint": "start it"}}
                if verdict == "failed"
                else ledger(0)
            )
            self.runs.end(number, verdict, error)


def test_a_check_is_late_only_after_a_while(tmp_path: Path) -> None:
    made = Late(tmp_path)
    assert made.after(69) == []
    assert made.after(71) == ["the check of ledger was due 61s ago and has not begun"]
    made.run()
    assert made.after(59) == []
    assert made.after(200)[0].endswith("and has not ended")


def test_a_check_that_failed_is_told_until_one_succeeds_whoever_asked_for_it(tmp_path: Path) -> None:
    made = Late(tmp_path)
    made.run("failed")
    assert made.after(1) == ["the check of ledger failed: ClickHouse is away"]
    made.run("agrees", "asked")
    assert made.after(1) == []


def mark(behind_s: float | None, now_us: int) -> dict[TableName, Watermark]:
    return {ORDERS: Watermark(ORDERS, None if behind_s is None else now_us - int(behind_s * S))}


@pytest.mark.parametrize(
    ("behind_s", "wrong", "known"), [(61, True, True), (59, False, False), (47, False, True), (None, False, False)]
)
def test_lag(behind_s: float | None, wrong: bool, known: bool) -> None:
    now_us = time.time_ns() // 1000
    found = lagging(mark(behind_s, now_us), {ORDERS: TableStatus(ORDERS, "ready")}, 60, now_us)
    assert bool(found.found) == wrong
    assert found.known("lag/shop.orders") == known
    assert found.known("lag/shop.gone")
    if wrong:
        assert found.found["lag/shop.orders"].summary == "shop.orders: the lake is 61s behind the source"


def test_a_lag_about_the_limit_is_one_alert(tmp_path: Path) -> None:
    alerts, now_us = Alerts(tmp_path), time.time_ns() // 1000
    seen = []
    for behind_s in (61, 59, 61, 50, 47):
        found = lagging(mark(behind_s, now_us), {ORDERS: TableStatus(ORDERS, "ready")}, 60, now_us)
        alerts.update(found.found, found.known)
        seen.append([a.over_us is None for a in alerts.all()])
    assert seen == [[True]] * 4 + [[False]]


@pytest.mark.parametrize("schedule", ["every 5m", "*/5 * * * *"])
def test_a_clock_that_is_set_back_stops_no_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    config = pipeline(tmp_path, reconcile={"ledger": schedule})
    runs, real = Runs(config.state), time.time_ns
    now_s = real() // 10**9
    monkeypatch.setattr(time, "time_ns", lambda: (now_s + 365 * 86400) * 10**9)
    planned(config.reconcile, runs)
    runs.end(runs.begin("ledger", "schedule", (), {}), "agrees", ledger(0))
    monkeypatch.setattr(time, "time_ns", lambda: now_s * 10**9)
    planned(config.reconcile, runs)
    monkeypatch.setattr(time, "time_ns", lambda: (now_s + 301) * 10**9)
    (plan,) = planned(config.reconcile, runs)
    assert plan.due_us <= (now_s + 301) * S
