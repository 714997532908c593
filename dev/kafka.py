"""Throwaway Kafka: a real broker of one node (KRaft), from the jars of Maven Central, on Java 17 or later."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from dev import packages
from dev.errors import SetUpError
from dev.server import Server

POM = Path(__file__).with_name("kafka-pom.xml")
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

SESSION_TIMEOUT_MS = 1500
NOTICED_AFTER_S = 2.0

# Only the first of the two compilers: starts sooner, and never gets to need the second.
SHORT_LIVED = ("-Xmx64m", "-XX:TieredStopAtLevel=1")

DEFAULTS: Mapping[str, str] = {
    "process.roles": "broker",
    "node.id": "2",
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
    "broker.session.timeout.ms": str(SESSION_TIMEOUT_MS),
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


def _uuid() -> str:
    """A new one in Kafka's own form: base64 of 16 bytes, 22 characters, not beginning with a dash."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


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


class _Node(Server):
    """One Kafka process."""

    stop_timeout_s = 15.0
    _jvm: Sequence[str]

    def __init__(self, folder: Path | None, cluster: str) -> None:
        self._java = _java()
        self._libraries = libraries()
        super().__init__(folder)
        self._cluster = cluster
        self._log_offset = 0

    @abstractmethod
    def _settings(self) -> Mapping[str, str]:
        """What `server.properties` says."""

    def _prepare(self) -> None:
        self._write_properties(self.folder, self._settings())
        data = self.folder / "data"
        if data.exists():
            return
        # Formatting takes a JVM and a second, so it is done once for all, and the copy gets identities of its own.
        key = hashlib.sha256(str(self._libraries).encode()).hexdigest()[:12]
        template = packages.made_once(f"{self.name}-template-{key}", self._format)
        part = self.folder / "data.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(template / "data", part)
        identity = part / "meta.properties"
        text = re.sub(r"(?m)^cluster\.id=.*$", f"cluster.id={self._cluster}", identity.read_text())
        identity.write_text(re.sub(r"(?m)^directory\.id=.*$", f"directory.id={_uuid()}", text))
        part.rename(data)

    def _format(self, folder: Path) -> None:
        self._write_properties(folder, {**self._settings(), "log.dirs": str(folder / "data")})
        command = self._run("kafka.tools.StorageTool", "format", "-t", _uuid(), "-c", str(folder / "server.properties"))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetUpError(
                f"Kafka could not format its storage:\n{done.stdout[-1000:]}{done.stderr[-1000:]}", "is this Java 17?"
            )

    @staticmethod
    def _write_properties(folder: Path, settings: Mapping[str, str]) -> None:
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        (folder / "server.properties").write_text(lines)

    def _run(self, main: str, *arguments: str, jvm: Sequence[str] = SHORT_LIVED) -> list[str]:
        return [self._java, *jvm, "-XX:+UseSerialGC", "-cp", f"{self._libraries}/*", main, *arguments]

    def _command(self) -> Sequence[str]:
        return self._run("kafka.Kafka", str(self.folder / "server.properties"), jvm=self._jvm)

    def _launch(self) -> bool:
        self._log_offset = self.log.stat().st_size if self.log.exists() else 0
        return super()._launch()

    def _answers(self) -> bool:
        with self.log.open("rb") as log:
            log.seek(self._log_offset)
            return b"Kafka Server started" in log.read()


class _Controller(_Node):
    """The cluster's memory of who leads what."""

    name = "kafka-controller"
    _jvm = ("-Xmx128m", "-XX:TieredStopAtLevel=1")

    def _settings(self) -> Mapping[str, str]:
        return {
            "process.roles": "controller",
            "node.id": "1",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{self.port}",
            "listeners": f"CONTROLLER://127.0.0.1:{self.port}",
            "log.dirs": str(self.folder / "data"),
            # A broker that was killed may come back at once.
            "broker.session.timeout.ms": str(SESSION_TIMEOUT_MS),
        }


class KafkaBroker(_Node):
    """A Kafka broker on 127.0.0.1. See `Server` for folder, start, stop, kill and close.

    `options` are further lines of `server.properties`, such as `{"transaction.max.timeout.ms": "5000"}`.

    Its controller is a process of its own, as in a cluster of any size, and lives until `close()`. A node that is both
    finds itself the leader when it comes back from `kill -9`, takes its transactions up before it serves anyone, and
    can then declare one complete without having written its marker: readers wait for it for ever (seen with 4.4.0).
    """

    name = "kafka"
    _jvm = ("-Xms64m", "-Xmx256m")

    def __init__(self, folder: Path | None = None, *, options: Mapping[str, str] | None = None) -> None:
        identity = folder / "cluster-id" if folder else None
        cluster = identity.read_text() if identity is not None and identity.exists() else _uuid()
        super().__init__(folder, cluster)
        (self.folder / "cluster-id").write_text(cluster)
        self.options = dict(options or {})
        self._controller = _Controller(self.folder / "controller", cluster)
        self._ended_at = 0.0

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`, for `bootstrap.servers`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`kafka://127.0.0.1:port`, for the pipeline file."""
        return f"kafka://{self.bootstrap}"

    def _settings(self) -> Mapping[str, str]:
        return {
            **DEFAULTS,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller.port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "log.dirs": str(self.folder / "data"),
            **self.options,
        }

    def start(self) -> Self:
        """See `Server`. After a kill it takes as long as the controller needs to notice that."""
        self._controller.start()
        if not self.running:
            time.sleep(max(0.0, self._ended_at + NOTICED_AFTER_S - time.monotonic()))
        return super().start()

    def kill(self) -> None:
        """See `Server`."""
        super().kill()
        self._ended_at = time.monotonic()

    def close(self) -> None:
        """See `Server`."""
        if self._owns_folder:
            self.kill()
            self._controller.kill()
        else:
            self.stop()
            self._controller.stop()
        super().close()

    def _answers(self) -> bool:
        # Asked only once the broker says so itself: the client would log each refused connection.
        if not super()._answers():
            return False
        try:
            return bool(self.admin().list_topics(timeout=2.0).brokers)
        except KafkaException:
            return False

    def admin(self, **settings: str) -> AdminClient:
        """A new admin client; hold on to it until its answers are there. `settings` are librdkafka's, with `_` for `.`."""
        given = {key.replace("_", "."): value for key, value in settings.items()}
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, **given})
