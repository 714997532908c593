"""Throwaway Kafka: a real broker of one node (KRaft), from the jars of Maven Central, on Java 17 or later."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from dev import packages
from dev.errors import SetUpError
from dev.server import Server, free_port

POM = Path(__file__).with_name("kafka-pom.xml")
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

DEFAULTS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "message.max.bytes": "16777216",
    "auto.create.topics.enable": "false",
    # A broker that was killed may come back at once, not only when the controller has given it up.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
}


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else None
    java = java or shutil.which("java")
    if java is None:
        raise SetUpError(
            "Kafka needs Java 17 or later, and there is no `java`",
            "install a Java runtime (Debian: default-jre-headless), or run only the tests of the embedded log",
        )
    return java


def libraries() -> Path:
    """The folder of the broker's jars: `LAKESYNC_DEV_KAFKA_LIBS`, else the one in the cache (downloaded if need be)."""
    if given := os.environ.get("LAKESYNC_DEV_KAFKA_LIBS"):
        folder = Path(given).absolute()
        if not list(folder.glob("kafka_*.jar")):
            raise SetUpError(f"LAKESYNC_DEV_KAFKA_LIBS={given} has no kafka_*.jar", "give the folder `libs` of a Kafka")
        return folder
    return packages.made_once("kafka", _download)


def _download(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise SetUpError(
            "Kafka is downloaded by Maven, and there is no `mvn`",
            "install Maven (Debian: maven), or unpack a Kafka release and set LAKESYNC_DEV_KAFKA_LIBS to its folder "
            "`libs`, or with a Docker engine use `docker compose up kafka`",
        )
    command = [maven, "-q", "-B", "-f", str(POM), COPY, f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetUpError(
            f"Maven could not fetch Kafka:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", "is the network there?"
        )


class KafkaBroker(Server):
    """A Kafka broker on 127.0.0.1. See `Server` for folder, start, stop, kill and close.

    `options` are further lines of `server.properties`, such as `{"transaction.max.timeout.ms": "5000"}`.
    """

    name = "kafka"
    stop_timeout_s = 15.0

    def __init__(self, folder: Path | None = None, *, options: Mapping[str, str] | None = None) -> None:
        self._java = _java()
        self._libraries = libraries()
        super().__init__(folder)
        self.options = dict(options or {})
        self._controller_port = free_port()

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`, for `bootstrap.servers`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`kafka://127.0.0.1:port`, for the pipeline file."""
        return f"kafka://{self.bootstrap}"

    def _prepare(self) -> None:
        if not self._started_before:
            self._controller_port = free_port()
        settings = {
            **DEFAULTS,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "log.dirs": str(self.folder / "data"),
            **self.options,
        }
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        if not (self.folder / "data/meta.properties").exists():
            # Its own class of 22 characters: base64 of 16 bytes without padding, and not beginning with a dash.
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            done = subprocess.run(
                self._run("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), heap="-Xmx64m"),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise SetUpError(f"Kafka could not format its storage:\n{done.stdout}{done.stderr}", "needs Java 17")

    def _run(self, main: str, *arguments: str, heap: str) -> list[str]:
        options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"] if heap == "-Xmx64m" else ["-XX:+UseSerialGC"]
        return [self._java, heap, *options, "-cp", f"{self._libraries}/*", main, *arguments]

    def _command(self) -> Sequence[str]:
        return self._run("kafka.Kafka", str(self.folder / "server.properties"), heap="-Xmx256m")

    def _answers(self) -> bool:
        # Asked only once the broker says so itself: the client would log each refused connection.
        if self._log_since_start().count("Kafka Server started") == 0:
            return False
        try:
            return bool(self.admin().list_topics(timeout=2.0).brokers)
        except KafkaException:
            return False

    def _log_since_start(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_offset)
            return log.read().decode(errors="replace")

    def _launch(self) -> bool:
        self._log_offset = self.log.stat().st_size if self.log.exists() else 0
        return super()._launch()

    def admin(self, **settings: str) -> AdminClient:
        """A new admin client. `settings` are librdkafka's, with `_` for `.`."""
        given = {key.replace("_", "."): value for key, value in settings.items()}
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, **given})
