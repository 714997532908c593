"""A whole pipeline into an object store, by the real command: calm, through a bad network with kills, and over an outage."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdc.config import load
from cdc.lake import manifest
from cdc.names import TableName
from dev.minio import MinIOServer
from dev.mysql import MySQLServer
from dev.toxiproxy import Toxiproxy
from tests.faults.rig import Rig, seed
from tests.integration.losing import LosingProxy, What

ROWS = 400
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "consistent.py"


class Setting:
    """Two tables of a source, one appended to, and a lake in a bucket, by this way."""

    def __init__(self, folder: Path, server: MySQLServer, schema: str, minio: MinIOServer, endpoint: str) -> None:
        self.server, self.minio = server, minio
        self.orders, self.events = TableName(schema, "orders"), TableName(schema, "events")
        for table in (self.orders, self.events):
            server.execute(f"CREATE TABLE {table.quoted} (id INT PRIMARY KEY, v VARCHAR(40), n INT)")
            values = ", ".join(f"({n}, 'v{n}', {n})" for n in range(1, ROWS + 1))
            server.execute(f"INSERT INTO {table.quoted} VALUES {values}")
        options = minio.options(endpoint) | {
            "access_key_id": "env:LAKE_USER",
            "secret_access_key": "env:LAKE_SECRET",
            "retry_timeout": "2",
            "timeout": "3s",
        }
        entries: list[object] = [str(self.orders), {"name": str(self.events), "mode": "append", "backfill": True}]
        settings = {"lake": f"s3://{minio.bucket()}/lake", "lake_options": options}
        self.rig = Rig(folder, server, entries, settings=settings)  # type: ignore[arg-type]
        self.rig.tables = (str(self.orders),)
        self.rig.reader_options = minio.reader_options()
        self.rig.extra = {"LAKE_USER": minio.user, "LAKE_SECRET": minio.password}

    def ready(self) -> None:
        for table in (self.orders, self.events):
            self.rig.wait_phase(str(table), "ready")

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """Inserts, updates, deletes and key changes, until the end of the block."""
        stop, chance = threading.Event(), random.Random(seed())

        def write() -> None:
            with self.server.root() as connection, connection.cursor() as cursor:
                while not stop.wait(0.02):
                    for table in (self.orders, self.events):
                        key = chance.randrange(1, 2 * ROWS)
                        t = table.quoted
                        cursor.execute(f"REPLACE INTO {t} VALUES (%s, %s, %s)", (key, f"{time.time()}", key))
                        cursor.execute(f"DELETE FROM {t} WHERE id = %s", (chance.randrange(1, 2 * ROWS),))
                        cursor.execute(f"UPDATE IGNORE {t} SET id = id + 1 WHERE id = %s", (key,))
                    connection.commit()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()

    def caught_up(self) -> None:
        """Everything that was written is in the lake, and proved."""
        done = self.rig.catch_up()
        assert done.returncode == 0, done.stderr
        verdict = self.rig.verdict()
        assert verdict.green, f"{verdict}\n{self.rig.last_words()}"


@pytest.fixture
def setting(mysql: MySQLServer, schema: str, minio: MinIOServer, tmp_path: Path) -> Iterator[Callable[[str], Setting]]:
    made: list[Setting] = []

    def make(endpoint: str) -> Setting:
        made.append(Setting(tmp_path / "p", mysql, schema, minio, endpoint))
        return made[-1]

    yield make
    for one in made:
        one.rig.close()


def test_a_pipeline_into_an_object_store(
    setting: Callable[[str], Setting], minio: MinIOServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = setting(minio.endpoint)
    checked = one.rig.lakesync("check")
    assert checked.returncode == 0, checked.stdout
    assert "put only if its name is free" in checked.stdout
    process = one.rig.start()
    one.ready()
    with one.traffic():
        time.sleep(5)
    status = one.rig.status()
    assert {t["table"]: t["phase"] for t in status["tables"]} == {str(one.orders): "ready", str(one.events): "ready"}
    assert all(t["lake"]["version"] > 1 for t in status["tables"])
    assert one.rig.stop(process) == 0
    one.caught_up()
    for name, value in one.rig.extra.items():
        monkeypatch.setenv(name, value)
    config = load(one.rig.config)
    found = manifest.read(config.lake_root, config.name)
    assert found is not None
    assert set(found.tables) == {one.orders, one.events}
    assert not (tmp_path / "p" / "lake").exists()
    options = [f"{key}={value}" for key, value in minio.reader_options().items()]
    read = subprocess.run(
        [sys.executable, EXAMPLE, one.rig.lake_url, config.name, *options], capture_output=True, text=True, check=False
    )
    assert read.returncode == 0, read.stderr
    assert f"{one.orders.id}: " in read.stdout
    # The secret is nowhere: not in what was printed, and not in what was kept.
    said = [checked.stdout, checked.stderr, one.rig.lakesync("status").stdout]
    for path in one.rig.folder.rglob("*"):
        assert not path.is_file() or minio.password.encode() not in path.read_bytes(), path
    assert not [text for text in said if minio.password in text]


def test_a_bad_network_and_kills_lose_nothing(setting: Callable[[str], Setting], minio: MinIOServer) -> None:
    proxy = LosingProxy(minio.port)
    chance = random.Random(seed())

    def whim(method: str, path: str) -> What | None:
        if chance.random() < 0.1:
            kinds: list[What] = ["503", "lost", "half"] if method == "GET" else ["503", "lost", "stored-500"]
            return chance.choice(kinds)
        return "late" if method == "PUT" and chance.random() < 0.02 else None

    one = setting(proxy.endpoint)
    try:
        process = one.rig.start()
        one.ready()
        with one.traffic():
            proxy.whim = whim
            for _ in range(4):
                time.sleep(3 + chance.random())
                one.rig.kill(process)
                process = one.rig.start()
            time.sleep(3)
            proxy.whim = None
        one.rig.kill(process)
        proxy.wait()
        one.caught_up()
        assert len(proxy.requests) > 100
    finally:
        one.rig.close()
        proxy.close()


def test_an_outage_stops_no_table(setting: Callable[[str], Setting], minio: MinIOServer, toxiproxy: Toxiproxy) -> None:
    way = toxiproxy.proxy(f"outage-{os.urandom(4).hex()}", minio.port)
    one = setting(way.endpoint)
    process = one.rig.start()
    one.ready()
    with one.traffic():
        time.sleep(1)
        with way.down():
            time.sleep(8)
            assert "the store was not reached" in one.rig.last_words(200)
        time.sleep(4)
        status = one.rig.status()
    assert {t["phase"] for t in status["tables"]} == {"ready"}
    assert process.poll() is None
    assert one.rig.stop(process) == 0
    one.caught_up()
