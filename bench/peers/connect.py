"""Debezium's connector in Kafka Connect, exactly once into Kafka: a worker of the usual kind (distributed), tuned, on the jars that
`bench.peers.debezium` fetches.

What it is given is a backlog: it is stopped while that is written, and started again. What it reached is read back from Kafka, committed
records only, and counted; its seconds begin when the first of them are there, without the start of the JVM, of the worker and of the
connector.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.measure import FailedError, Process, Usage
from bench.peers import debezium
from bench.pipeline import wait
from bench.setting import PASSWORD, USER, Setting
from dev.kafka import KafkaBroker

NAME = "bench"
READY_S = 120.0
LOOK_S = 0.05
_WORKER = {
    "group.id": "bench",
    "exactly.once.source.support": "enabled",
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "offset.storage.topic": "connect-offsets",
    "offset.storage.replication.factor": "1",
    "offset.storage.partitions": "1",
    "config.storage.topic": "connect-configs",
    "config.storage.replication.factor": "1",
    "status.storage.topic": "connect-status",
    "status.storage.replication.factor": "1",
    "status.storage.partitions": "1",
    "connector.client.config.override.policy": "All",
}
_CONNECTOR = {
    "connector.class": "io.debezium.connector.mysql.MySqlConnector",
    "tasks.max": "1",
    "topic.prefix": NAME,
    "database.hostname": "127.0.0.1",
    "database.user": USER,
    "database.password": PASSWORD,
    "database.server.id": "5401",
    "database.ssl.mode": "disabled",
    "driver.allowPublicKeyRetrieval": "true",
    "snapshot.mode": "no_data",
    "snapshot.locking.mode": "none",
    "tombstones.on.delete": "false",
    "schema.history.internal.kafka.topic": "bench-history",
    # Tuned: larger batches and queues, one transaction a poll, a compressed stream.
    "max.batch.size": "16384",
    "max.queue.size": "65536",
    "poll.interval.ms": "50",
    "transaction.boundary": "poll",
    "producer.override.linger.ms": "20",
    "producer.override.batch.size": "1048576",
    "producer.override.buffer.memory": "67108864",
    "producer.override.compression.type": "lz4",
    "producer.override.max.request.size": "8388608",
}


class Worker:
    """A worker with one connector that follows one table, `schema.table`."""

    def __init__(self, setting: Setting, broker: KafkaBroker, table: str) -> None:
        self._broker, self._topic = broker, f"{NAME}.{table}"
        folder = setting.folder("connect")
        built = debezium.classes()
        self._port = _free_port()
        (folder / "plugins").mkdir()
        file = folder / "worker.properties"
        worker = _WORKER | {
            "bootstrap.servers": broker.bootstrap,
            "listeners": f"http://127.0.0.1:{self._port}",
            "plugin.path": str(folder / "plugins"),
            "plugin.discovery": "hybrid_warn",
        }
        file.write_text("".join(f"{key}={value}\n" for key, value in worker.items()))
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        for found in admin.create_topics([NewTopic(self._topic, 1, 1), NewTopic(NAME, 1, 1)]).values():
            found.result(READY_S)
        command = ["java", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{built}/lib/*"]
        self._process = Process(
            [*command, "org.apache.kafka.connect.cli.ConnectDistributed", str(file)],
            folder / "run",
            servers=(setting.server, broker),
        )
        self._config = _CONNECTOR | {
            "database.port": str(setting.server.port),
            "table.include.list": table,
            "schema.history.internal.kafka.bootstrap.servers": broker.bootstrap,
        }
        wait(lambda: self._ask("GET", "/connectors") is not None, self._process, READY_S)
        self._until(lambda: self._ask("PUT", f"/connectors/{NAME}/config", self._config) is not None)
        self._until(lambda: self._state() == "RUNNING")

    def rows(self) -> int:
        """Committed records of the table that Kafka has."""
        return self._read(lambda _: False, 1.0)[0]

    def follow(self, insert: Callable[[], None]) -> int:
        """Let rows be inserted until Kafka has one, so that its place is known; how many records Kafka has."""
        while not (rows := self.rows()):
            insert()
            self._until(lambda: self._state() == "RUNNING")
        return rows

    def stop(self) -> None:
        """Its task ends; its place stays."""
        self._ask("PUT", f"/connectors/{NAME}/stop")
        self._until(lambda: self._state() == "STOPPED")

    def resume(self, before: int, rows: int) -> Usage:
        """From where it stopped, `rows` more than the `before` that Kafka has: what that took from the first of them on."""
        self._ask("PUT", f"/connectors/{NAME}/resume")
        began: list[tuple[float, float, float, int]] = []

        def enough(found: int) -> bool:
            if found > before and not began:
                began.append((time.monotonic(), *self._cpu_s(), found))
            return found >= before + rows

        found, ended = self._read(enough, READY_S * 10)
        if not began or found != before + rows:
            raise FailedError(f"Kafka has {found - before} records, {rows} rows were changed")
        at, cpu_s, servers_s, first = began[0]
        share = rows / (before + rows - first) if first < before + rows else 1.0
        now_cpu_s, now_servers_s = self._cpu_s()
        return Usage(
            (ended - at) * share, (now_cpu_s - cpu_s) * share, self._peak_mib(), (now_servers_s - servers_s) * share
        )

    def end(self) -> None:
        """End the worker."""
        self._process.end()

    def _read(self, enough: Callable[[int], bool], idle_s: float) -> tuple[int, float]:
        """Count the table's committed records from the first one on, until it is `enough`, or none came for so long."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._broker.bootstrap,
                "group.id": "count",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.message.max.bytes": 8 * 1024 * 1024,
                "log_level": 0,
            }
        )
        consumer.assign([TopicPartition(self._topic, 0, 0)])
        found, last = 0, time.monotonic()
        try:
            while time.monotonic() - last < idle_s:
                messages = [m for m in consumer.consume(10_000, LOOK_S) if m.error() is None]
                if messages:
                    found, last = found + len(messages), time.monotonic()
                    if enough(found):
                        break
                self._process.must_run()
        finally:
            consumer.close()
        return found, last

    def _state(self) -> str:
        found = self._ask("GET", f"/connectors/{NAME}/status") or {}
        state = (found.get("connector") or {}).get("state", "")
        tasks = [task["state"] for task in found.get("tasks") or ()]
        if "FAILED" in (state, *tasks):
            raise FailedError(f"the connector failed: {json.dumps(found)[:2000]}")
        return state if state != "RUNNING" or tasks == ["RUNNING"] else ""

    def _until(self, reached: Callable[[], bool]) -> None:
        wait(reached, self._process, READY_S)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON ({} if there is none); None where the worker does not answer yet."""
        data = None if body is None else json.dumps(body).encode()
        address = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):  # not yet: the group is being balanced
                return None
            raise FailedError(f"{method} {path}: {error.code} {error.read()[:1000]!r}") from error
        except OSError:
            return None
        return json.loads(text) if text else {}

    def _cpu_s(self) -> tuple[float, float]:
        return self._process.cpu_s(), self._process.servers_cpu_s()

    def _peak_mib(self) -> float:
        peaks = []
        for pid in self._process.measured():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
        return max(peaks, default=0.0)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
