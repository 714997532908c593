"""Metrics: what a scrape gets, and who gets nothing."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from cdc import config as configuration
from cdc import metrics
from cdc.errors import ConfigError
from cdc.metrics import Page, serve
from cdc.proving import MetricsConfig
from cdc.state import State
from cdc.status import LakeStatus, NodeStatus, PipelineStatus, TableView
from reconcile.watch.overview import Checked, Checks, Scheduled

ROOT = Path(__file__).resolve().parents[2]
TABLE = TableView('shop."o\\rders', "ready", 0, 0, 1500, LakeStatus(3, 7, 12, "h", "p", "g", 1), None)
SEEN = PipelineStatus(
    "p", 1000, True, None, 12, 4096, 12, 500,
    (NodeStatus("capture", 1, True, 100, {}), NodeStatus("trace", 1, True, 0, {"behind": 40, "failing_since_us": 5})),
    (TABLE, TableView("shop.gone", "removed", 0, 0, None, None, None), TableView("shop.new", "snapshot", 5, 9, None, None, None)),
    ({"what": "x"},), (), (),
    checks=Checks(
        (Checked("values", "shop.orders", "differs", 2_000_000, 1, 3, True, 2, 1),), (Scheduled("values", "every 5m", 9_000_000, None, None),), ()
    ),
    alerts=({"kind": "differs", "over_us": None, "failures": {"webhook": {}}}, {"kind": "lag", "over_us": 5, "failures": {}}),
)  # fmt: skip


@contextmanager
def serving(listen: str = "127.0.0.1:0", **more: bool) -> Iterator[tuple[int, Page]]:
    page = Page("p")
    server = serve(MetricsConfig.model_validate({"listen": listen} | more), page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1], page
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(v for k, v in sorted(sample.labels.items()) if k != "pipeline")
            found[sample.name, labels] = sample.value
    return found


def test_a_scrape_has_what_status_shows() -> None:
    with serving() as (port, page):
        assert [name for name, _ in samples(ask(port)[1])] == ["lakesync_info"]  # before the first look
        page.seen = SEEN
        found = samples(ask(port)[1])
    assert found["lakesync_table_lag_seconds", ('shop."o\\rders',)] == 1.5
    assert ("lakesync_table_lag_seconds", ("shop.new",)) not in found
    assert found["lakesync_table_rows", ('shop."o\\rders',)] == 7
    assert found["lakesync_table_epoch", ('shop."o\\rders',)] == 12
    assert found["lakesync_table_state", ("ready", 'shop."o\\rders')] == 1
    assert found["lakesync_table_state", ("snapshot", 'shop."o\\rders')] == 0
    assert not any("shop.gone" in labels for _, labels in found)
    assert found["lakesync_node_up", ("capture",)] == 1
    assert found["lakesync_node_age_seconds", ("capture",)] == 0.1
    assert found["lakesync_log_bytes", ()] == 4096
    assert found["lakesync_trace_behind_epochs", ()] == 40
    assert found["lakesync_trace_failing", ()] == 1
    assert found["lakesync_check_verdict", ("values", "shop.orders", "differs")] == 1
    assert found["lakesync_check_verdict", ("values", "shop.orders", "agrees")] == 0
    assert found["lakesync_check_timestamp_seconds", ("values", "shop.orders")] == 2
    assert found["lakesync_check_differences", ("values", "shop.orders")] == 3
    assert found["lakesync_unresolved_differences", ("values", "shop.orders")] == 2
    assert found["lakesync_check_next_timestamp_seconds", ("values",)] == 9
    assert found["lakesync_alerts_open", ("differs",)] == 1
    assert found["lakesync_alerts_open", ("lag",)] == 0
    assert found["lakesync_alerts_undelivered", ()] == 1
    assert found["lakesync_problems", ()] == 1


def test_every_name_is_documented_and_every_documented_name_is_there() -> None:
    with serving() as (port, page):
        page.seen = SEEN
        text = ask(port)[1]
    there = {family.name for family in text_string_to_metric_families(text)}
    there = {"lakesync_info" if name == "lakesync" else name for name in there}
    page_text = (ROOT / "docs" / "operations.md").read_text()
    documented = {
        line.split("`")[1].split("{")[0] for line in page_text.splitlines() if line.startswith("| `lakesync_")
    }
    assert there == documented


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_a_scraper_gets_the_format_that_it_asks_for(accept: str) -> None:
    with serving() as (port, page):
        page.seen = SEEN
        status, text = ask(port, Accept=accept)
    assert status == 200
    assert text.endswith("# EOF\n") == accept.startswith("application/openmetrics")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9464", "localhost:9464", "[::1]:9464", "LOCALHOST"])
def test_asked_by_its_own_names(host: str) -> None:
    with serving() as (port, _):
        assert ask(port, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "", "192.0.2.1", "localhost.evil:80"]
)
def test_a_page_whose_name_leads_here_gets_nothing(host: str) -> None:
    with serving() as (port, page):
        page.seen = SEEN
        status, text = ask(port, Host=host)
        assert status == 421
        assert "shop" not in text


def test_at_an_address_that_others_reach_any_name_will_do() -> None:
    with serving("0.0.0.0:0", insecure=True) as (port, _):
        assert ask(port, Host="db1.internal:9464")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("HEAD", "/metrics", 200), ("POST", "/metrics", 501), ("DELETE", "/metrics", 501)],
)
def test_read_only(method: str, path: str, status: int) -> None:
    with serving() as (port, _):
        assert ask(port, path, method)[0] == status


def test_a_client_that_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REQUEST_S", 0.3)
    with serving() as (port, _), socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET /metr")
        assert ask(port)[0] == 200
        silent.settimeout(5)
        assert silent.recv(1) == b""


def test_however_many_clients_come_only_some_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CLIENTS", 3)
    before = threading.active_count()
    with serving() as (port, _), ExitStack() as held:
        waiting = [held.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(10)]
        for one in waiting[3:]:
            one.settimeout(5)
            assert one.recv(1) == b""
        assert threading.active_count() <= before + 1 + 3
        for one in waiting:
            one.close()
        deadline = time.monotonic() + 5
        while threading.active_count() > before + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ask(port)[0] == 200


def test_a_port_that_is_taken_is_an_error_with_a_way_out() -> None:
    with (
        serving() as (port, _),
        pytest.raises(ConfigError, match=f"cannot listen at 127\\.0\\.0\\.1:{port}: ") as caught,
    ):
        serve(MetricsConfig(listen=f"127.0.0.1:{port}"), Page("p"))
    assert "another address or port" in caught.value.hint


def test_the_node_looks_by_itself_and_ends_when_told(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = {"name": "p", "source": {"url": "mysql://u@127.0.0.1:1"}, "lake": "lake", "metrics": f"127.0.0.1:{port}"}
    config = configuration.parse(data, tmp_path / "lakesync.yaml")
    stop = threading.Event()
    node = threading.Thread(target=metrics.run, args=(config, State(config.state), stop))
    node.start()
    deadline = time.monotonic() + 20
    try:
        while True:
            try:
                found = samples(ask(port)[1])
            except ConnectionError:
                found = {}
            if ("lakesync_up", ()) in found:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        stop.set()
        node.join(10)
    assert not node.is_alive()
    assert found["lakesync_up", ()] == 0
    assert found["lakesync_problems", ()] >= 1  # there is no source


def test_the_rules_name_metrics_that_are_there() -> None:
    rules = YAML(typ="safe", pure=True).load((ROOT / "configs" / "prometheus-alerts.yml").read_text())
    with serving() as (port, page):
        page.seen = SEEN
        there = {name for name, _ in samples(ask(port)[1])}
    named = {
        name
        for group in rules["groups"]
        for rule in group["rules"]
        for name in re.findall(r"lakesync_\w+", rule["expr"])
    }
    assert named <= there
    assert len(named) > 5
