"""Spark with Delta Lake, in a process of its own, from the jars of Maven Central: a reader and writer of lake tables that is not ours.

Needs a JDK of version 17 (Spark 4 runs on 17 and later) and Maven, both only where it is asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from dev import packages, warden
from dev.errors import SetUpError
from dev.kafka import COPY

POM = Path(__file__).with_name("spark-pom.xml")
SHELL = Path(__file__).with_name("SparkShell.java")

HEAP = "1g"
OPENED = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
)
"""Packages of the JDK that Spark reaches into."""
SETTINGS = {
    "spark.master": "local[1]",
    "spark.app.name": "lakesync",
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "1",  # VACUUM lists folders in so many tasks
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.databricks.delta.retentionDurationCheck.enabled": "false",  # tests vacuum what is an hour old
}


class SparkError(Exception):
    """Spark refused a statement; its own words."""


def libraries() -> Path:
    """The folder of the jars, downloaded if need be."""
    return packages.made_once("spark", _download)


def _download(folder: Path) -> None:
    maven, javac = shutil.which("mvn"), shutil.which("javac")
    if maven is None or javac is None:
        raise SetUpError("Spark needs Maven and a JDK of version 17 or later", "Debian: maven, default-jdk-headless")
    command = [maven, "-q", "-B", "-f", str(POM), COPY, f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetUpError(
            f"Maven could not fetch Spark:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", "is the network there?"
        )


class Spark:
    """One session, as a context manager; `sql` as often as you like. Takes ten seconds to start and 600 MB."""

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self._settings = SETTINGS | (settings or {})
        self._libraries = libraries()
        self.folder = Path(tempfile.mkdtemp(prefix="lakesync-spark-"))
        warden.watch_folder(self.folder)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._compile()
        log = self.folder / "spark.log"
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self.folder,
                text=True,
                env=os.environ | {"SPARK_LOCAL_DIRS": str(self.folder)},
            )
        if self._answer() != "ready":
            self.close()
            raise SetUpError(f"Spark does not start:\n{log.read_text()[-3000:]}", "is this Java 17 or later?")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it, and remove its folder."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sql(self, statement: str) -> pa.Table:
        """Run one statement; its result, empty for those that have none. Raises `SparkError`."""
        assert self._process is not None
        assert self._process.stdin is not None
        result = self.folder / uuid.uuid4().hex
        self._process.stdin.write(f"{result}\t{' '.join(statement.split())}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer != "ok":
            raise SparkError(answer.removeprefix("error ") or (self.folder / "spark.log").read_text()[-3000:])
        if not result.exists():
            return pa.table({})
        found = pq.read_table(result)
        shutil.rmtree(result)
        return found

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def _compile(self) -> None:
        javac = shutil.which("javac")
        if javac is None:
            raise SetUpError("Spark needs a JDK, and there is no `javac`", "Debian: default-jdk-headless")
        command: Sequence[str] = [javac, "-nowarn", "-cp", f"{self._libraries}/*", "-d", str(self.folder), str(SHELL)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetUpError(f"SparkShell does not compile:\n{done.stderr[-2000:]}", "report this")

    def _command(self) -> list[str]:
        java = shutil.which("java")
        if java is None:
            raise SetUpError("Spark needs Java, and there is no `java`", "Debian: default-jdk-headless")
        (self.folder / "log4j2.properties").write_text(
            "rootLogger.level = error\nrootLogger.appenderRef.e.ref = e\n"
            "appender.e.type = Console\nappender.e.name = e\nappender.e.target = SYSTEM_ERR\n"
            "appender.e.layout.type = PatternLayout\nappender.e.layout.pattern = %p %c{1}: %m%n%ex\n"
        )
        return [
            java,
            f"-Xmx{HEAP}",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            *(option for name in OPENED for option in ("--add-opens", f"{name}=ALL-UNNAMED")),
            f"-Djava.io.tmpdir={self.folder}",
            f"-Dspark.sql.warehouse.dir={self.folder / 'warehouse'}",
            *(f"-D{name}={value}" for name, value in self._settings.items()),
            "-cp",
            f"{self.folder}:{self._libraries}/*",
            "SparkShell",
        ]
