"""Metrics for Prometheus: what `lakesync status` shows, as numbers, at an address of this machine. Read-only.

A thread looks every few seconds; a scrape is answered from the last look and asks nobody. docs/operations.md has every name.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any, ClassVar, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cdc import status
from cdc.config import PipelineConfig
from cdc.errors import ConfigError
from cdc.journal import logger
from cdc.proving import MetricsConfig, is_loopback
from cdc.state import Phase, State
from cdc.status import PipelineStatus, TableView

LOG = logger("metrics")
LOOK_EVERY_S = 5.0
REQUEST_S = 5.0
"""A client that takes longer to say what it wants is gone."""
CLIENTS = 16
"""At a time; who comes then is turned away, so that no number of them takes the threads and files that the pipeline needs."""
VERDICTS = ("agrees", "differs", "failed")


def run(config: PipelineConfig, state: State, stop: threading.Event) -> None:
    """The node: serve until `stop` is set. Raises `ConfigError` for an address that cannot be had."""
    assert config.metrics
    page = Page(config.name)
    server = serve(config.metrics, page)
    thread = threading.Thread(target=server.serve_forever, name="lakesync-metrics-http", daemon=True)
    thread.start()
    LOG.info("metrics-served", address=config.metrics.listen)
    try:
        while not stop.is_set():
            began = time.monotonic()
            page.seen = status.collect(config)
            state.beat("metrics", {"at": config.metrics.listen})
            # Looking costs reads of the lake's newest versions: at most a tenth of a processor, however many tables there are.
            stop.wait(max(LOOK_EVERY_S, 9 * (time.monotonic() - began)))
    finally:
        server.shutdown()
        server.server_close()


class Page(Collector):
    """The metrics of the last look. Before the first there are none."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        self.seen: PipelineStatus | None = None
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        """What a scrape gets."""
        info = InfoMetricFamily("lakesync", "The program.", labels=["pipeline"])
        info.add_metric([self.pipeline], {"version": version("lakesync")})
        yield info
        if self.seen is not None:
            yield from _Families(self.seen).all()


class _Families:
    """The families of one status."""

    def __init__(self, seen: PipelineStatus) -> None:
        self.seen = seen
        self.tables = [t for t in seen.tables if t.phase != "removed"]

    def all(self) -> Iterator[Metric]:
        yield from self._whole()
        yield from self._of_tables()
        yield from self._of_nodes()
        yield from self._of_checks()

    def one(self, name: str, text: str, value: float | None) -> Iterator[Metric]:
        if value is not None:
            yield self.many(name, text, (), [((), value)])

    def many(
        self, name: str, text: str, labels: Iterable[str], values: Iterable[tuple[tuple[str, ...], float | None]]
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"lakesync_{name}", text, labels=["pipeline", *labels])
        for at, value in values:
            if value is not None:
                family.add_metric([self.seen.pipeline, *at], value)
        return family

    def _whole(self) -> Iterator[Metric]:
        seen = self.seen
        yield from self.one("status_timestamp_seconds", "When this was looked at.", seen.at_ms / 1000)
        yield from self.one("up", "1 if capture or the merger gave a sign of life lately.", float(seen.running))
        yield from self.one("problems", "Parts that could not be asked: source, log, lake, checks.", len(seen.problems))
        yield from self.one("log_bytes", "Size of the log.", seen.log_bytes)
        yield from self.one("log_epoch", "Newest epoch of the log.", seen.log_epoch)
        yield from self.one("manifest_epoch", "Epoch of the newest manifest.", seen.manifest_epoch)
        age_ms = seen.manifest_age_ms
        yield from self.one(
            "manifest_age_seconds",
            "How long ago the newest manifest was written.",
            None if age_ms is None else age_ms / 1000,
        )

    def _of_tables(self) -> Iterator[Metric]:
        def each(name: str, text: str, of: Any) -> GaugeMetricFamily:
            return self.many(f"table_{name}", text, ("table",), [((t.table,), of(t)) for t in self.tables])

        yield each("lag_seconds", "How far the lake is behind the source; none where that is not known.", _lag)
        yield each(
            "watermark_timestamp_seconds",
            "All that the source committed up to this time, by its clock, is in the lake.",
            lambda t: _seconds(getattr(t, "watermark_ms", None)),
        )
        yield each("rows", "Live rows in the lake.", lambda t: t.lake and t.lake.rows)
        yield each("epoch", "Newest epoch in the lake.", lambda t: t.lake and t.lake.epoch)
        yield each("version", "Newest Delta version.", lambda t: t.lake and t.lake.version)
        yield self.many(
            "table_state",
            "1 at the state that the table is in, 0 at the others.",
            ("table", "state"),
            [((t.table, phase), float(t.phase == phase)) for t in self.tables for phase in get_args(Phase)],
        )

    def _of_nodes(self) -> Iterator[Metric]:
        nodes = self.seen.nodes
        yield self.many(
            "node_up",
            "1 if the node gave a sign of life lately.",
            ("node",),
            [((n.name,), float(n.alive)) for n in nodes],
        )
        yield self.many(
            "node_age_seconds",
            "Since the node's last sign of life.",
            ("node",),
            [((n.name,), n.age_ms / 1000) for n in nodes],
        )
        trace = next((n.info for n in nodes if n.name == "trace"), None)
        if trace is not None:
            behind, failing = trace.get("behind"), trace.get("failing_since_us")
            yield from self.one("trace_behind_epochs", "Epochs that the trace does not have yet.", behind)
            yield from self.one("trace_failing", "1 while the trace cannot be written.", float(failing is not None))

    def _of_checks(self) -> Iterator[Metric]:
        seen = self.seen
        if seen.checks is None:
            return
        by = [((c.check, c.table), c) for c in seen.checks.verdicts]
        labels = ("check", "table")
        yield self.many(
            "check_verdict",
            "1 at what the newest check of a kind said of the table, 0 at the others.",
            (*labels, "verdict"),
            [((*at, verdict), float(c.verdict == verdict)) for at, c in by for verdict in VERDICTS],
        )
        yield self.many("check_timestamp_seconds", "When it ended.", labels, [(at, c.at_us / 1e6) for at, c in by])
        yield self.many(
            "check_differences",
            "What it found: rows (values), equations (ledger).",
            labels,
            [(at, c.differences) for at, c in by],
        )
        yield self.many(
            "unresolved_differences",
            "What checks found and nobody is known to have put right.",
            labels,
            [(at, c.unresolved) for at, c in by],
        )
        yield self.many(
            "check_next_timestamp_seconds",
            "When a scheduled check is due.",
            ("check",),
            [((p.check,), p.due_us / 1e6) for p in seen.checks.schedules],
        )
        kinds = dict.fromkeys(("differs", "late", "lag", "stopped"), 0)
        for alert in seen.alerts:
            kinds[alert["kind"]] = kinds.get(alert["kind"], 0) + (alert["over_us"] is None)
        yield self.many("alerts_open", "Alerts that are open.", ("kind",), [((k,), float(n)) for k, n in kinds.items()])
        failing = sum(bool(alert["failures"]) for alert in seen.alerts)
        yield from self.one(
            "alerts_undelivered", "Alerts that a webhook or command did not take the last time.", failing
        )


def _lag(table: TableView) -> float | None:
    return _seconds(table.lag_ms)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def serve(given: MetricsConfig, page: Page) -> ThreadingHTTPServer:
    """A server that is bound, and not yet serving. Raises `ConfigError`."""
    host, port = given.address

    class Handler(_Handler):
        pages = page
        local_only = is_loopback(host)
        timeout = REQUEST_S

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        room = threading.BoundedSemaphore(CLIENTS)

        def process_request(self, request: Any, client_address: Any) -> None:
            if not self.room.acquire(blocking=False):
                self.shutdown_request(request)
                return
            try:
                super().process_request(request, client_address)
            except BaseException:
                self.room.release()
                raise

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                self.room.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away in the middle is no event."""

    try:
        return Server((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {given.listen}: {error.strerror or error}",
            where="metrics",
            hint="another address or port; the pipeline goes on without",
        ) from error


class _Handler(BaseHTTPRequestHandler):
    pages: ClassVar[Page]
    local_only: ClassVar[bool]
    server_version, sys_version = "lakesync", ""

    def do_GET(self) -> None:
        if not self._welcome():
            self._answer(
                HTTPStatus.MISDIRECTED_REQUEST, "text/plain; charset=utf-8", b"not an address of this server\n"
            )
            return
        if self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"see /metrics\n")
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        self._answer(HTTPStatus.OK, kind, encode(self.pages.registry))

    do_HEAD = do_GET  # noqa: N815

    def _welcome(self) -> bool:
        """At a loopback address only requests to it by name: a page in a browser may have had its own name resolve to it."""
        if not self.local_only:
            return True
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        name = name.strip("[]")
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name.lower() == "localhost"

    def _answer(self, code: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes are no events."""
