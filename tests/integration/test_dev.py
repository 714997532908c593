"""The throwaway servers themselves: several at once, replicas, kills, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pymysql
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import NewTopic

from dev import packages
from dev.errors import SetUpError
from dev.kafka import KafkaBroker
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sysbench import Sysbench

ROOT = Path(__file__).resolve().parents[2]


def _ended(pid: int) -> bool:
    # A process that nobody waited for stays as a zombie; in a container its new parent may never wait.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_two_servers_at_once_share_nothing(mysql_factory: Callable[..., MySQLServer]) -> None:
    one, two = mysql_factory(), mysql_factory(server_id=2)
    one.execute("CREATE DATABASE only_one")
    assert one.port != two.port
    assert two.execute("SHOW DATABASES LIKE 'only_one'") == []
    uuids = {server.execute("SELECT @@server_uuid")[0] for server in (one, two)}
    assert len(uuids) == 2


def test_the_source_is_set_up_for_capture(mysql: MySQLServer) -> None:
    settings = "@@gtid_mode, @@log_bin, @@binlog_format, @@binlog_row_metadata, @@binlog_row_image"
    assert mysql.execute(f"SELECT {settings}") == [("ON", 1, "ROW", "FULL", "FULL")]


def test_certificate_names_the_host(mysql: MySQLServer, schema: str) -> None:
    user = f"tls_{schema[:12]}"
    mysql.add_user(user, "p@ss'w%s", f"SELECT ON `{schema}`.*")
    connection = pymysql.connect(
        host="127.0.0.1",
        port=mysql.port,
        user=user,
        password="p@ss'w%s",
        ssl_ca=str(mysql.ca),
        ssl_verify_cert=True,
        ssl_verify_identity=True,
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
        row = cursor.fetchone()
    mysql.execute(f"DROP USER {user}")
    assert row
    assert str(row[1]).startswith("TLS_")


def test_replica_follows_and_is_promoted(mysql_factory: Callable[..., MySQLServer]) -> None:
    source = mysql_factory()
    source.execute("CREATE DATABASE shop")
    source.execute("CREATE TABLE shop.t (id INT PRIMARY KEY)")
    replica = mysql_factory(replica_of=source)
    source.execute("INSERT INTO shop.t VALUES (%s), (%s)", 1, 2)
    replica.wait_for_source()
    assert replica.execute("SELECT id FROM shop.t ORDER BY id") == [(1,), (2,)]
    assert replica.execute("SELECT @@read_only") == [(1,)]

    replica.kill()
    source.execute("INSERT INTO shop.t VALUES (3)")
    replica.start()
    replica.wait_for_source()
    assert replica.execute("SELECT COUNT(*) FROM shop.t") == [(3,)]

    replica.promote()
    replica.execute("INSERT INTO shop.t VALUES (4)")
    source.follow(replica)
    source.wait_for_source()
    assert source.execute("SELECT COUNT(*) FROM shop.t") == [(4,)]


def test_a_replica_that_cannot_follow_says_why(mysql_factory: Callable[..., MySQLServer]) -> None:
    source = mysql_factory()
    replica = mysql_factory(replica_of=source)
    replica.wait_for_source()
    replica.execute("CREATE DATABASE shop")
    source.execute("CREATE DATABASE shop")
    with pytest.raises(TimeoutError, match="database exists"):
        replica.wait_for_source(timeout_s=2)


def test_killed_server_comes_back_with_its_data(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    port = server.port
    server.execute("CREATE DATABASE shop")
    server.execute("CREATE TABLE shop.t (id INT PRIMARY KEY)")
    server.execute("INSERT INTO shop.t VALUES (7)")
    before = server.gtid_executed
    server.kill()
    assert not server.running
    with pytest.raises(pymysql.err.OperationalError):
        pymysql.connect(host="127.0.0.1", port=port, user="root")
    server.start()
    assert server.port == port
    assert server.gtid_executed == before
    assert server.execute("SELECT id FROM shop.t") == [(7,)]


def test_given_folder_is_kept_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with MySQLServer(folder) as server:
        server.execute("CREATE DATABASE shop")
    with MySQLServer(folder) as server:
        assert server.execute("SHOW DATABASES LIKE 'shop'") == [("shop",)]


def test_own_folder_goes_with_the_server() -> None:
    with MySQLServer() as server:
        pid, folder = server.pid, server.folder
        assert folder.exists()
    assert _ended(pid)
    assert not folder.exists()


def test_servers_go_when_their_owner_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from dev.mysql import MySQLServer\n"
        "with MySQLServer() as own, MySQLServer(Path(sys.argv[1])) as given:\n"
        "    print(own.pid, given.pid, own.folder, flush=True); time.sleep(600)"
    )
    kept = tmp_path / "kept"
    owner = subprocess.Popen([sys.executable, "-c", script, str(kept)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    own, given, folder = owner.stdout.readline().split()
    assert not _ended(int(own))
    owner.kill()
    owner.communicate()
    assert _within(5, lambda: _ended(int(own)) and _ended(int(given)))
    assert _within(5, lambda: not Path(folder).exists())
    assert (kept / "data").exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(SetUpError, match="unknown option '--no-such-option'"),
        MySQLServer(options=["--no-such-option"]),
    ):
        pass


def test_clients(mysql: MySQLServer, schema: str) -> None:
    mysql.mysql_cli(schema, stdin="CREATE TABLE t (a INT);\nINSERT INTO t VALUES (1), (2);\n")
    assert mysql.mysql_cli("-N", "-e", f"SELECT COUNT(*) FROM `{schema}`.t").stdout == "2\n"
    newest = str(mysql.status("SHOW BINARY LOG STATUS")["File"])
    assert f"`{schema}`.`t`" in mysql.mysqlbinlog("--verbose", newest).stdout


def test_sysbench(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory()
    bench = Sysbench(server, tables=2, table_size=500)
    bench.prepare()
    assert server.execute("SELECT COUNT(*) FROM sbtest.sbtest2") == [(500,)]
    before = server.gtid_executed
    with bench.running(rate=50) as process:
        time.sleep(1)
        assert process.poll() is None
    assert server.gtid_executed != before
    outcome = bench.run(seconds=2, rate=20)
    assert 5 < outcome.transactions < 100


def test_mariadb_is_set_up_for_capture(mariadb: MariaDBServer) -> None:
    settings = "@@gtid_strict_mode, @@log_bin, @@binlog_format, @@binlog_row_metadata, @@binlog_row_image"
    assert mariadb.execute(f"SELECT {settings}") == [(1, 1, "ROW", "FULL", "FULL")]
    assert "MariaDB" in mariadb.execute("SELECT VERSION()")[0][0]


def test_mariadb_certificate_names_the_host(mariadb: MariaDBServer, mariadb_schema: str) -> None:
    user = f"tls_{mariadb_schema[:12]}"
    mariadb.add_user(user, "p@ss'w%s", f"SELECT ON `{mariadb_schema}`.*")
    connection = pymysql.connect(
        host="127.0.0.1",
        port=mariadb.port,
        user=user,
        password="p@ss'w%s",
        ssl_ca=str(mariadb.ca),
        ssl_verify_cert=True,
        ssl_verify_identity=True,
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
        row = cursor.fetchone()
    mariadb.execute(f"DROP USER {user}")
    assert row
    assert str(row[1]).startswith("TLS_")


def test_mariadb_killed_comes_back_and_its_replica_goes_on(mariadb_factory: Callable[..., MariaDBServer]) -> None:
    source = mariadb_factory()
    source.execute("CREATE DATABASE shop")
    source.execute("CREATE TABLE shop.t (id INT PRIMARY KEY)")
    replica = mariadb_factory(replica_of=source)
    source.execute("INSERT INTO shop.t VALUES (1), (2)")
    replica.wait_for_source()
    before = source.executed
    source.kill()
    source.start()
    assert source.executed == before
    source.execute("INSERT INTO shop.t VALUES (3)")
    replica.wait_for_source()
    assert replica.executed == source.executed
    replica.promote()
    replica.execute("INSERT INTO shop.t VALUES (4)")
    source.follow(replica)
    source.wait_for_source()
    assert source.execute("SELECT COUNT(*) FROM shop.t") == [(4,)]
    newest = str(source.status("SHOW MASTER STATUS")["File"])
    assert "`shop`.`t`" in source.mariadb_binlog("--verbose", newest).stdout


def test_kafka_broker_killed_and_restarted_keeps_what_was_committed(kafka_factory: Callable[..., KafkaBroker]) -> None:
    broker = kafka_factory()
    admin = broker.admin()
    (created,) = admin.create_topics([NewTopic("t", 1, 1)]).values()
    created.result(timeout=20)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": "x", "log_level": 0})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce("t", b"value")
    producer.commit_transaction(20)
    port = broker.port
    broker.kill()
    broker.start()
    assert broker.port == port
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap, "group.id": "g", "auto.offset.reset": "earliest", "log_level": 0}
    )
    consumer.subscribe(["t"])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    assert message.error() is None
    assert message.value() == b"value"


def test_command_line_ends_cleanly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dev", "mysql", "--", "--server-id=7"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("mysql://root@127.0.0.1:")
    folder = Path(line.split("socket ")[1].split(",")[0]).parent
    assert folder.exists()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not folder.exists()


# without apt


def test_without_apt_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKESYNC_DEV_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LAKESYNC_DEV_MYSQLD", raising=False)
    with pytest.raises(SetUpError, match=r"apt-get is not there.*\n.*install apt.*Docker.*LAKESYNC_DEV_MYSQLD"):
        MySQLServer()
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(SetUpError, match="Java 17"):
        KafkaBroker()


def test_an_interrupted_download_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKESYNC_DEV_CACHE", str(tmp_path))

    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("interrupted")

    with pytest.raises(OSError, match="interrupted"):
        packages.made_once("tree", fails)
    assert not (tmp_path / "tree").exists()
    assert (packages.made_once("tree", lambda folder: (folder / "whole").touch()) / "whole").exists()


def test_processes_that_want_the_same_download_wait_for_the_first(tmp_path: Path) -> None:
    script = (
        "import time; from dev.packages import made_once\n"
        "def make(folder): print('made', flush=True); time.sleep(0.5); (folder / 'whole').touch()\n"
        "assert (made_once('tree', make) / 'whole').exists()"
    )
    environment = {**os.environ, "LAKESYNC_DEV_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "".join(outputs).count("made") == 1


def test_an_installed_server_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKESYNC_DEV_MYSQLD", str(tmp_path / "nothing"))
    with pytest.raises(SetUpError, match="full path of mysqld"):
        MySQLServer()
