"""Alerts: said once, again while they last, and once more when they are over; across restarts, and whatever the channels do."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc import config as configuration
from cdc.config import PipelineConfig
from cdc.errors import DeliveryError
from reconcile.watch import alerts as alerting
from reconcile.watch import deliver as delivering
from reconcile.watch.alerts import RETRY_MOST_S, RETRY_S, VERSION, About, Alerts, Channel, Due, Sender
from tests.unit.webhooks import Hook, hook

S = 1_000_000
ABOUT = About("differs", "shop.orders: 3 rows differ", "repair them", "shop.orders", "values", 3)
KEY = "differs/values/shop.orders"
HOOK: tuple[Channel, ...] = ("webhook",)
FAILURE = DeliveryError("https://h answered 500")


@pytest.fixture
def alerts(tmp_path: Path) -> Alerts:
    return Alerts(tmp_path / "state", 100.0)


def due(alerts: Alerts, now_s: float, channels: tuple[Channel, ...] = HOOK) -> list[tuple[str, str, int]]:
    """What is to be said now, and is said: key, state, how often before."""
    found = alerts.due(channels, int(now_s * S))
    for one in found:
        alerts.sent(one, int(now_s * S))
    return [(one.key, one.payload("p", 1)["state"], one.times) for one in found]


def update(alerts: Alerts, now_s: float, *keys: str, **more: Any) -> None:
    alerts.update(dict.fromkeys(keys, ABOUT), now_us=int(now_s * S), **more)


def test_once_again_each_interval_and_all_clear(alerts: Alerts, tmp_path: Path) -> None:
    update(alerts, 1, KEY)
    assert due(alerts, 1) == [(KEY, "open", 0)]
    update(alerts, 50, KEY)
    assert due(alerts, 50) == []
    again = Alerts(tmp_path / "state", 100.0)  # a restart says nothing twice
    update(again, 60, KEY)
    assert due(again, 60) == []
    update(again, 101, KEY)
    assert due(again, 101) == [(KEY, "repeat", 1)]
    assert due(again, 150) == []
    update(again, 160)
    assert due(again, 160) == [(KEY, "over", 2)]
    update(again, 400)
    assert due(again, 400) == []
    assert again.all() == []
    update(again, 500, KEY)
    assert due(again, 500) == [(KEY, "open", 0)]


def test_what_is_not_known_is_not_over(alerts: Alerts) -> None:
    update(alerts, 1, "lag/a.b", KEY)
    due(alerts, 1)
    update(alerts, 2, known=lambda key: not key.startswith("lag/"))
    assert due(alerts, 2) == [(KEY, "over", 1)]
    assert [a.key for a in alerts.all() if a.over_us is None] == ["lag/a.b"]


def test_what_was_put_right_between_two_looks_is_said_once(alerts: Alerts) -> None:
    update(alerts, 1, passed={KEY: ABOUT})
    assert due(alerts, 1) == [(KEY, "over", 0)]
    update(alerts, 2)
    assert due(alerts, 2) == []


def test_back_before_anybody_heard_that_it_was_over(alerts: Alerts) -> None:
    update(alerts, 1, KEY)
    due(alerts, 1)
    update(alerts, 10)
    update(alerts, 11, KEY)
    assert due(alerts, 12) == []
    assert due(alerts, 101) == [(KEY, "repeat", 1)]


def test_over_while_it_is_being_sent_is_said_at_once(alerts: Alerts) -> None:
    update(alerts, 1, KEY)
    (one,) = alerts.due(HOOK, 1 * S)
    update(alerts, 2)
    alerts.sent(one, 3 * S)
    assert due(alerts, 3) == [(KEY, "over", 1)]
    assert due(alerts, 500) == []


def test_back_while_the_all_clear_is_being_sent_is_said_at_once(alerts: Alerts) -> None:
    update(alerts, 1, KEY)
    due(alerts, 1)
    update(alerts, 2)
    (one,) = alerts.due(HOOK, 2 * S)
    update(alerts, 3, KEY)
    alerts.sent(one, 4 * S)
    assert due(alerts, 4) == [(KEY, "open", 0)]


def test_one_channel_that_fails_has_the_other_say_nothing_twice(alerts: Alerts) -> None:
    both: tuple[Channel, ...] = ("webhook", "command")
    update(alerts, 1, KEY)
    first = {d.channel: d for d in alerts.due(both, 1 * S)}
    alerts.sent(first["command"], 1 * S)
    alerts.failed(first["webhook"], FAILURE, 1 * S)
    (seen,) = alerts.all()
    assert seen.failures["webhook"]["what"] == "https://h answered 500"
    assert due(alerts, 2, both) == []
    assert due(alerts, 1 + RETRY_S, both) == [(KEY, "open", 0)]
    assert alerts.all()[0].failures == {}
    update(alerts, 20)
    over = {d.channel: d for d in alerts.due(both, 20 * S)}
    alerts.sent(over["command"], 20 * S)
    alerts.failed(over["webhook"], FAILURE, 20 * S)
    assert due(alerts, 25, both) == []
    assert [a.key for a in alerts.all()] == [KEY]  # until both have heard
    assert due(alerts, 20 + RETRY_S, both) == [(KEY, "over", 1)]
    assert due(alerts, 1000, both) == []
    assert alerts.all() == []


def test_pauses_grow_to_a_limit(alerts: Alerts) -> None:
    update(alerts, 1, KEY)
    pauses, now = [], 1.0
    for _ in range(9):
        (one,) = alerts.due(HOOK, int(now * S))
        pauses.append(alerts.failed(one, FAILURE, int(now * S)))
        now += pauses[-1] + 1
    assert pauses[:3] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S]
    assert pauses[-1] == RETRY_MOST_S


def test_without_channels_they_are_kept_and_nothing_waits(alerts: Alerts) -> None:
    update(alerts, 1, KEY)
    assert due(alerts, 1, ()) == []
    assert [a.key for a in alerts.all()] == [KEY]
    update(alerts, 2)
    assert due(alerts, 2, ()) == []
    assert alerts.all() == []


def test_what_is_sent_has_the_documented_keys() -> None:
    sent = Due(KEY, "webhook", ABOUT, 5, None, 1, 0).payload("shop", 9)
    assert sent == {
        "version": VERSION, "pipeline": "shop", "key": KEY, "state": "repeat", "text": "lakesync shop: still: shop.orders: 3 rows differ",
        "since_us": 5, "over_us": None, "at_us": 9, "times": 2, "kind": "differs", "summary": "shop.orders: 3 rows differ",
        "hint": "repair them", "table": "shop.orders", "check": "values", "differences": 3,
    }  # fmt: skip


@pytest.fixture
def received() -> Iterator[Hook]:
    with hook() as made:
        yield made


def pipeline(folder: Path, alerts: dict[str, Any]) -> PipelineConfig:
    data = {"name": "p", "source": {"url": "mysql://u@127.0.0.1:3306"}, "lake": "lake", "alerts": alerts}
    return configuration.parse(data, folder / "lakesync.yaml")


def test_sent_by_both_and_a_webhook_that_fails_costs_nothing(
    received: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "FIRST_PAUSE_S", 0.01)
    received.answer = lambda n: 500 if n < 3 else 200
    program = [sys.executable, "-c", "import sys; open('page', 'a').write(sys.stdin.read() + '\\n')"]
    config = pipeline(tmp_path, {"webhook": received.url, "command": program})
    alerts = Alerts(config.state, 100.0)
    sender = Sender(config, alerts, threading.Event())
    alerts.update({KEY: ABOUT})
    assert sender.send() == 1
    assert len((tmp_path / "page").read_text().splitlines()) == 1
    assert len(received.posts) == 3
    (one,) = alerts.all()
    assert one.failures.keys() == {"webhook"}
    assert sender.send() == 0
    later = int((time.time() + RETRY_S + 1) * S)
    (again,) = alerts.due(sender.channels, later)
    assert (again.channel, again.attempts) == ("webhook", 1)


def test_a_clock_that_is_set_back_keeps_nothing_from_being_sent(alerts: Alerts) -> None:
    update(alerts, 1, KEY)
    (one,) = alerts.due(HOOK, 10**9 * S)
    alerts.failed(one, FAILURE, 10**9 * S)
    assert due(alerts, 10**9 + 1) == []
    assert due(alerts, 1) == [(KEY, "open", 0)]


def test_a_webhook_that_does_not_answer_keeps_no_command_waiting(
    received: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerting, "SLOW_S", 0.2)
    received.slow = lambda _: time.sleep(1)
    program = [sys.executable, "-c", "import sys; open('page', 'a').write(sys.stdin.read() + '\\n')"]
    config = pipeline(tmp_path, {"webhook": {"url": received.url, "timeout": "300ms"}, "command": program})
    alerts = Alerts(config.state, 100.0)
    sender = Sender(config, alerts, threading.Event())
    alerts.update({f"{KEY}/{n}": ABOUT for n in range(4)})
    assert sender.send() == 4
    assert len(received.posts) == 3  # the attempts of one alert
    assert sender.send() == 0
    assert len(received.posts) == 3


def test_a_webhook_whose_secret_is_missing_is_a_failure_that_is_shown(received: Hook, tmp_path: Path) -> None:
    config = pipeline(tmp_path, {"webhook": {"url": received.url, "headers": {"Authorization": "env:NO_SUCH_TOKEN"}}})
    alerts = Alerts(config.state)
    alerts.update({KEY: ABOUT})
    assert Sender(config, alerts, threading.Event()).send() == 0
    assert "NO_SUCH_TOKEN is not set" in alerts.all()[0].failures["webhook"]["what"]
