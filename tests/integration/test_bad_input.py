"""Each mistake of a user ends in one clear error: what, where, and the way out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from dev.mysql import MySQLServer
from tests.faults.rig import COMMAND, PASSWORD, Rig


class Ended:
    """How a command ended: its exit code and the only error that it printed."""

    def __init__(self, rig: Rig, *arguments: str, environment: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            [COMMAND, *arguments],
            env=rig.environment() | (environment or {}),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        parts = {}
        for title in ("error", "where", "hint"):
            lines = [line for line in done.stderr.splitlines() if line.startswith(f"{title}: ")]
            assert len(lines) <= 1, done.stderr
            parts[title] = lines[0].partition(": ")[2] if lines else ""
        self.what, self.where, self.hint = parts["error"], parts["where"], parts["hint"]
        assert "Traceback" not in done.stderr, done.stderr

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


def run(rig: Rig, **environment: str) -> Ended:
    return Ended(rig, "run", "--until-current", environment=environment)


@pytest.fixture
def rig(tmp_path: Path, mysql: MySQLServer, schema: str) -> Iterator[Rig]:
    mysql.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, v INT)")
    mysql.execute(f"INSERT INTO {schema}.t VALUES (1, 1)")
    made = Rig(tmp_path / "p", mysql, [f"{schema}.t"])
    yield made
    made.close()


def test_a_wrong_password(rig: Rig) -> None:
    for ended in (run(rig, RIG_PASSWORD="wr0ng"), Ended(rig, "check", environment={"RIG_PASSWORD": "wr0ng"})):
        assert ended.code == 3, ended
        assert "denied" in ended.what.lower()
        assert ended.where == f"127.0.0.1:{rig.server.port}"
        assert "source.password" in ended.hint
        assert "wr0ng" not in ended.err


def test_a_password_that_is_not_there(rig: Rig) -> None:
    environment = {k: v for k, v in rig.environment().items() if k != "RIG_PASSWORD"}
    done = subprocess.run([COMMAND, "run"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert (
        "error: environment variable RIG_PASSWORD is not set\nwhere: source.password\nhint: export RIG_PASSWORD"
        in done.stderr
    )


def test_a_missing_grant(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    mysql.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    user = f"g_{schema}"[:32]
    mysql.add_user(user, PASSWORD, f"SELECT ON `{schema}`.*")
    try:
        rig = Rig(tmp_path / "p", mysql, [f"{schema}.t"], user=user)
        ended = run(rig)
        assert ended.code == 3, ended
        assert "REPLICATION CLIENT" in ended.what + ended.hint
        assert ended.hint.startswith("GRANT ")
        checked = Ended(rig, "check")
        assert checked.code == 1, checked
        assert f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '{user}'@'%'" in checked.out
        # With the one but not the other, the server refuses the stream itself.
        mysql.execute(f"GRANT REPLICATION CLIENT ON *.* TO '{user}'@'%'")
        ended = run(rig)
        assert ended.code == 3, ended
        assert "REPLICATION SLAVE" in ended.what + ended.hint
    finally:
        mysql.execute(f"DROP USER '{user}'@'%'")


@pytest.mark.parametrize(("setting", "value"), [("binlog_format", "STATEMENT"), ("binlog_row_metadata", "MINIMAL")])
def test_a_binary_log_without_what_is_needed(rig: Rig, setting: str, value: str) -> None:
    (before,) = rig.server.execute(f"SELECT @@global.{setting}")[0]
    rig.server.execute(f"SET GLOBAL {setting} = '{value}'")
    try:
        ended, checked = run(rig), Ended(rig, "check")
    finally:
        rig.server.execute(f"SET GLOBAL {setting} = '{before}'")
    assert ended.code == 3, ended
    assert f"{setting} = {value}" in ended.what
    assert ended.where == f"127.0.0.1:{rig.server.port}"
    assert f"SET PERSIST {setting}" in ended.hint
    assert checked.code == 1, checked
    assert f"SET PERSIST {setting}" in checked.out


def test_a_binary_log_that_is_purged(tmp_path: Path, mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    server.execute("CREATE DATABASE s")
    server.execute("CREATE TABLE s.t (id INT PRIMARY KEY)")
    rig = Rig(tmp_path / "p", server, ["s.t"])
    assert run(rig).code == 0
    server.execute("INSERT INTO s.t VALUES (1)")
    server.execute("FLUSH BINARY LOGS")
    server.execute("INSERT INTO s.t VALUES (2)")
    newest = server.status("SHOW BINARY LOG STATUS")["File"]
    server.execute(f"PURGE BINARY LOGS TO '{newest}'")
    ended = run(rig)
    assert ended.code == 3, ended
    assert "purged" in ended.what or "no longer" in ended.what
    assert "resync --all" in ended.hint
    assert rig.lakesync("resync", "--all").returncode == 0
    assert run(rig).code == 0
    assert rig.verdict(proofs=False).green


def test_a_kafka_that_is_not_there(rig: Rig) -> None:
    unreachable = Rig(rig.folder, rig.server, rig.tables, log="kafka://127.0.0.1:1")
    ended = run(unreachable)
    assert ended.code == 3, ended
    assert "127.0.0.1:1" in ended.where + ended.what
    assert ended.hint
    checked = Ended(unreachable, "check")
    assert checked.code == 1, checked
    assert "127.0.0.1:1" in checked.out


def test_a_table_without_a_key(rig: Rig, schema: str) -> None:
    rig.server.execute(f"CREATE TABLE {schema}.keyless (v INT)")
    keyless = Rig(rig.folder, rig.server, [f"{schema}.t", f"{schema}.keyless"])
    ended = run(keyless)
    assert ended.code == 3, ended
    assert f"{schema}.keyless" in ended.what + ended.where
    assert "key" in ended.what
    assert "append" in ended.hint
    checked = Ended(keyless, "check")
    assert checked.code == 1, checked
    assert "mode: append" in checked.out


def test_an_unknown_key_in_the_file(rig: Rig) -> None:
    text = rig.config.read_text().replace('"tables"', '"tabels"')
    rig.config.write_text(text)
    ended = Ended(rig, "run")
    assert ended.code == 2, ended
    assert ended.what == "unknown key `tabels`, did you mean `tables`?"
    assert ended.where == str(rig.config)


def test_a_table_that_does_not_exist(rig: Rig, schema: str) -> None:
    missing = Rig(rig.folder, rig.server, [f"{schema}.t", f"{schema}.tt"])
    ended = run(missing)
    assert ended.code == 2, ended
    assert f"{schema}.tt" in ended.what
    assert f"{schema}.t" in ended.hint
    checked = Ended(missing, "check")
    assert checked.code == 1, checked


def test_a_lake_folder_that_is_taken(rig: Rig, schema: str) -> None:
    folder = rig.lake / schema / "t"
    folder.mkdir(parents=True)
    pl.DataFrame({"x": [1]}).write_delta(str(folder))
    ended = run(rig)
    assert ended.code == 3, ended
    assert str(folder) in ended.where + ended.what
    assert ended.hint
    assert pl.read_delta(str(folder)).rows() == [(1,)]


def test_a_state_folder_of_another_daemon(rig: Rig) -> None:
    daemon = rig.start()
    rig.wait(lambda: rig.lakesync("status", "--json").stdout.find('"running": true') > 0, "it runs")
    ended = run(rig)
    assert ended.code == 2, ended
    assert f"as process {daemon.pid}" in ended.what
    assert rig.stop(daemon) == 0
