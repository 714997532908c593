"""Every query that we hand out runs, on a trace as it is: those in `configs/trace/`, and those of the Grafana dashboard."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from cdc.config import TraceConfig
from cdc.trace import client
from cdc.trace.rows import Rows
from cdc.trace.schema import prepare

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DASHBOARD = CONFIGS / "grafana-lakesync.json"
HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Two epochs of one table, a minute ago; of the second one the lake has nothing yet."""
    with client(TraceConfig(url=f"chdb://{tmp_path_factory.mktemp('trace')}/trace")) as opened:
        prepare(opened, "p", None, "")
        now_us = time.time_ns() // 1000 - 60_000_000
        written = Rows()
        for number, at_us in ((1, now_us), (2, now_us + 1_000_000)):
            common = {"pipeline": "p", "hash": f"h{number}", "log": "l", "number": number, "first_number": number}
            common |= {"committed": at_us, "done": at_us + 20_000, "captured": at_us + 10_000, "logged": at_us + 20_000}
            moved = {"inserts": 10, "rows_in": 10, "rows_out": 10, "bytes_in": 500, "bytes_out": 500}
            written.add(common | {"node": "source", "bytes_out": 700})
            for node in ("capture", "log"):
                written.add(common | moved | {"node": node, "table": "shop.orders"})
        merged = {"merged": now_us + 900_000, "readable": now_us + 1_000_000, "done": now_us + 900_000}
        written.add(
            {"pipeline": "p", "node": "merge", "table": "shop.orders", "hash": "h1@1", "log": "l", "number": 1}
            | {"kind": "merge", "first_number": 1, "committed": now_us, "inserts": 10, "rows_in": 10, "rows_out": 10}
            | {"inserted": 10, "effective": 10, "version": 1, "live_after": 10, "lake_id": "i", "bytes_out": 300}
            | merged
        )
        written.write(opened)
        yield opened


def answer(trace: Client, query: str) -> list[dict[str, Any]]:
    return [dict(row) for row in trace.query(query, parameters={"pipeline": "p"}).named_results()]


@pytest.mark.parametrize("path", sorted((CONFIGS / "trace").glob("*.sql")), ids=lambda path: path.stem)
def test_a_query_runs_and_finds_something(trace: Client, path: Path) -> None:
    text = path.read_text()
    assert text.startswith("-- "), "it says what it asks"
    assert answer(trace, text)


def test_the_queries_say_what_is_true(trace: Client) -> None:
    (throughput, *more) = answer(trace, (CONFIGS / "trace" / "throughput.sql").read_text())
    assert throughput["changes"] + sum(row["changes"] for row in more) == 20
    (latency,) = answer(trace, (CONFIGS / "trace" / "latency.sql").read_text())
    assert (latency["changes"], latency["p50_p90_p99_ms"]) == (10, [1000, 1000, 1000])
    (stages,) = answer(trace, (CONFIGS / "trace" / "stages.sql").read_text())
    assert [v for k, v in stages.items() if k.startswith("to_")] == [10, 10, 880, 100]
    (waiting,) = answer(trace, (CONFIGS / "trace" / "waiting.sql").read_text())
    assert (waiting["table"], waiting["changes"]) == ("shop.orders", 10)
    (size,) = answer(trace, (CONFIGS / "trace" / "sizes.sql").read_text())
    assert size["live_rows"] == 10


def queries() -> list[tuple[str, str, bool]]:
    """Title, query, and whether it is drawn over time."""
    dashboard = orjson.loads(DASHBOARD.read_bytes())
    found = [(v["name"], v["query"], False) for v in dashboard["templating"]["list"] if v["type"] == "query"]
    for panel in dashboard["panels"]:
        over_time = panel["type"] == "timeseries"
        found += [(panel["title"], target["rawSql"], over_time) for target in panel["targets"]]
    return found


def expanded(query: str) -> str:
    """As the plugin `grafana-clickhouse-datasource` expands its macros, for the last hour in steps of 10 s."""
    from_s, to_s = int(time.time()) - 3600, int(time.time())
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= toDateTime({from_s}) AND \1 <= toDateTime({to_s})", query)
    query = re.sub(r"\$__timeInterval\((\w+)\)", r"toStartOfInterval(toDateTime(\1), INTERVAL 10 second)", query)
    return query.replace("$__interval_s", "10").replace("${pipeline}", "p")


@pytest.mark.parametrize(("title", "query", "over_time"), queries(), ids=lambda value: str(value)[:30])
def test_a_panel_has_something_to_show(trace: Client, title: str, query: str, over_time: bool) -> None:
    text = expanded(query)
    assert "$" not in text, "a macro or variable that this test does not know"
    found = answer(trace, text)
    assert found, title
    if over_time:
        assert next(iter(found[0])) == "time"


def test_the_dashboard_can_be_provisioned() -> None:
    dashboard = orjson.loads(DASHBOARD.read_bytes())
    assert dashboard["uid"]
    assert "id" not in dashboard, "Grafana gives it"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {v["name"] for v in dashboard["templating"]["list"]}
    text = DASHBOARD.read_text()
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= variables
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for i, a in enumerate(places):
        assert a["x"] + a["w"] <= 24
        for b in places[:i]:
            apart_x = a["x"] >= b["x"] + b["w"] or b["x"] >= a["x"] + a["w"]
            assert apart_x or a["y"] >= b["y"] + b["h"] or b["y"] >= a["y"] + a["h"], "panels overlap"
