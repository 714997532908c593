"""What `lakesync check` says of reading before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc import checks
from cdc.config import PipelineConfig
from cdc.source.preflight import Finding
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from snapshot import preflight


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[MySQLServer, MySQLServer]]:
    with MySQLServer() as source:
        source.execute("CREATE DATABASE d")
        source.execute("CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT)")
        source.execute("INSERT INTO d.t VALUES (), (), (), (), (), (), (), (), (), ()")
        source.execute("ANALYZE TABLE d.t")
        with MySQLServer(replica_of=source) as replica:
            replica.wait_for_source()
            yield source, replica


def config(source: SqlServer, folder: Path, /, **snapshot: Any) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "p",
            "source": {"url": source.url()},
            "log": f"sqlite://{folder}/log.db",
            "lake": str(folder / "lake"),
            "state": folder / "state",
            "snapshot": snapshot,
            "tables": ["d.*"],
        }
    )


def found(source: SqlServer, folder: Path, /, **snapshot: Any) -> list[Finding]:
    settings = config(source, folder, **snapshot)
    return preflight.findings(settings, settings.tables)


def test_a_reading_that_would_outlast_the_binary_log(pair: tuple[MySQLServer, MySQLServer], tmp_path: Path) -> None:
    source, _ = pair
    assert found(source, tmp_path, rows_per_second=1) == []
    source.execute("SET GLOBAL binlog_expire_logs_seconds = 5")
    try:
        (finding,) = found(source, tmp_path, rows_per_second=1)
        assert (finding.level, finding.subject) == ("warning", "snapshot")
        assert "reading about 10 rows takes 10 s at 1 rows/s" in finding.what
        assert "binlog_expire_logs_seconds = 604800" in finding.fix
        assert found(source, tmp_path) == []
    finally:
        source.execute("SET GLOBAL binlog_expire_logs_seconds = 604800")


@pytest.fixture
def stranger() -> Iterator[MySQLServer]:
    """A server that nobody has written to."""
    with MySQLServer() as server:
        yield server


def test_the_replica(pair: tuple[MySQLServer, MySQLServer], stranger: MySQLServer, tmp_path: Path) -> None:
    source, replica = pair

    def said(of: SqlServer) -> tuple[str, str]:
        (finding,) = found(source, tmp_path, source={"url": of.url()})
        assert finding.subject == "snapshot.source"
        return finding.level, finding.what

    level, what = said(replica)
    assert level == "ok"
    assert "s behind" in what
    assert said(source)[0] == "ok"
    level, what = said(stranger)
    assert level == "warning"
    assert "replicates from no server" in what
    stranger.execute("CREATE DATABASE one_of_its_own")
    stranger.execute("DROP DATABASE one_of_its_own")
    level, what = said(stranger)
    assert level == "error"
    assert "does not have" in what
    replica.execute("STOP REPLICA")
    assert said(replica)[0] == "warning"
    replica.execute("START REPLICA")
    (finding,) = found(source, tmp_path, source={"url": "mysql://root@127.0.0.1:1"})
    assert (finding.level, finding.what) == ("error", "127.0.0.1:1: nobody listens there")
    whole = checks.everything(config(source, tmp_path, source={"url": replica.url()}))
    assert any(f.subject == "snapshot.source" and f.level == "ok" for f in whole)


def test_replicas_that_are_looked_at(pair: tuple[MySQLServer, MySQLServer], tmp_path: Path) -> None:
    source, replica = pair
    urls = [{"url": replica.url()}, {"url": source.url()}, {"url": "mysql://root@127.0.0.1:1"}]
    said = found(source, tmp_path, throttle={"replica_lag": "5s", "replicas": urls})
    assert [f.level for f in said] == ["warning", "warning"]
    assert "replicates from no server" in said[0].what
    assert "cannot be read" in said[1].what
    assert found(source, tmp_path, throttle={"replicas": urls}) == []
