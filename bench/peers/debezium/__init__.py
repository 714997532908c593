"""Debezium's embedded engine, reading a binary log or a table and dropping what it reads: a Java program, built by Maven into the cache.

Needs a JDK, 17 or later, and Maven; nothing is installed into the system. With the engine's defaults, JSON without a schema in each
message, and nothing that is kept: neither offsets nor schemas leave its memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.measure import FailedError, Process, Usage
from bench.setting import PASSWORD, USER, Setting
from dev import packages
from dev.errors import SetUpError

HERE = Path(__file__).parent
VERSION = "3.6.1"
FIRST_FILE = "binlog.000001"

SNAPSHOT = "snapshot"
"""In place of GTIDs: the table itself."""

Form = Literal["json", "connect"]
"""JSON text, or Kafka Connect's records as the connector makes them, without a conversion."""


@dataclass(frozen=True)
class Found:
    """`process` is the whole process's; `reading` from the first row on, without the start of the machine and of the engine."""

    process: Usage
    reading: Usage


def classes() -> Path:
    """The folder with `classes` and `lib`, built if it is not there yet. Raises `SetUpError`."""
    sources = sorted(path for path in HERE.rglob("*") if path.suffix in (".java", ".xml"))
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    return packages.made_once(f"debezium-{key}", _build)


def _build(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None or shutil.which("javac") is None:
        raise SetUpError("Debezium needs Maven and a JDK", "install both (Debian: maven, default-jdk-headless)")
    command = [
        maven,
        "-q",
        "-B",
        "-f",
        str(HERE / "pom.xml"),
        f"-Dfolder={folder}",
        "compile",
        "dependency:copy-dependencies",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetUpError(
            f"Maven could not build it:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", "is the network there?"
        )


def read(setting: Setting, table: str, gtids: str, rows: int, form: Form) -> Found:
    """`rows` row changes of a table of the benchmarks' schema, from after `gtids` on, or as many rows of it. Raises `FailedError`."""
    built = classes()
    folder = setting.folder(f"debezium-{form}")
    command = ["java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{built}/classes:{built}/lib/*"]
    server = setting.server
    what = (str(server.port), USER, PASSWORD, table, FIRST_FILE, gtids, str(rows), form)
    process = Process([*command, "lakesync.bench.Read", *what], folder, servers=(server,))
    used = process.wait()
    found = json.loads(process.output.read_text().splitlines()[-1])
    if found.pop("rows") != rows:
        raise FailedError(f"Debezium read {found} rows, {rows} were changed")
    return Found(used, Usage(**found, servers_cpu_s=used.servers_cpu_s, anonymous_mib=used.anonymous_mib))
