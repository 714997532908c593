"""Power loss: of the local lake and the embedded log only what an fsync covered is left, and the pipeline goes on from there.

`durable.c`, preloaded into the daemon, records what its syncs covered. After a kill -9 everything else is dropped: bytes, names,
renames and links alike. Real disks keep more than that; no disk may keep less.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dev import shop
from dev.mysql import MySQLServer
from tests.faults.rig import Rig, Verdict, seed

SHIM = Path(__file__).with_name("durable.c")
TABLES = ("shop.customers", "shop.orders", "shop.order_items", "shop.payments")
ROWS = 4000
CUTS = 6
CUTS_SHORT = 2


class Power:
    """The record of one folder: begun with what is there, and what is left of it when the power fails."""

    def __init__(self, folder: Path, record: Path, library: Path) -> None:
        self.folder, self.record, self.library = folder, record, library

    def environment(self, deaf: str = "") -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "DURABLE_RECORD": str(self.record), "DURABLE_DEAF": deaf}

    def begin(self) -> None:
        """All that is there now counts as synced."""
        shutil.rmtree(self.record, ignore_errors=True)
        for part in ("data", "names"):
            (self.record / part).mkdir(parents=True)
        script = "import os,sys\nfor d,_,fs in os.walk(sys.argv[1]):\n for p in [d,*(os.path.join(d,f) for f in fs)]:\n  os.fsync(os.open(p,os.O_RDONLY))"
        subprocess.run(
            [sys.executable, "-c", script, str(self.folder)], env=os.environ | self.environment(), check=True
        )

    def cut(self) -> None:
        """Leave only what the record has."""
        status = self.folder.stat()
        rebuilt = self.folder.with_name(self.folder.name + ".rebuilt")
        self._folder(self._identity(self.folder), rebuilt)
        shutil.rmtree(self.folder)
        rebuilt.rename(self.folder)
        self.folder.chmod(status.st_mode & 0o777)

    @staticmethod
    def _identity(path: Path) -> str:
        number, birth = subprocess.run(
            ["stat", "-c", "%i %.9W", path], capture_output=True, text=True, check=True
        ).stdout.split()
        return f"{number}.{birth.replace('.', '')}"

    def _folder(self, identity: str, to: Path) -> None:
        to.mkdir(mode=0o700)
        names = self.record / "names" / identity
        if not names.exists():
            return
        for line in names.read_text().splitlines():
            inode, kind, name = line.split("\t", 2)
            if kind == "d":
                self._folder(inode, to / name)
                continue
            data = self.record / "data" / inode
            target = to / name
            target.write_bytes(data.read_bytes() if data.exists() else b"")
            target.chmod(0o600)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("durable") / "durable.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or pytest.skip("no C compiler")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", built, SHIM, "-ldl"], check=True)
    return built


def cut_and_go_on(folder: Path, server: MySQLServer, library: Path, cuts: int, deaf: str = "") -> Verdict:
    chance = random.Random(seed())
    shop.create(server, rows=ROWS)
    rig = Rig(folder / "disk" / "p", server, TABLES)
    power = Power(folder / "disk", folder / "record", library)
    power.begin()
    try:
        with shop.working(server, rate=40):
            for _ in range(cuts):
                rig.extra = power.environment(deaf)
                process = rig.start()
                time.sleep(chance.uniform(2.5, 7.0))
                if process.poll() is not None:
                    return Verdict([f"ended: {rig.last_words()}"])
                rig.kill(process)
                power.cut()
                power.begin()
        rig.extra = {}
        done = rig.catch_up()
        if done.returncode:
            return Verdict([f"run ended with {done.returncode}: {done.stderr[-2000:]}"])
        return rig.verdict()
    finally:
        rig.close()


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_two_power_cuts(tmp_path: Path, mysql_factory: Callable[..., MySQLServer], library: Path) -> None:
    verdict = cut_and_go_on(tmp_path, mysql_factory(), library, CUTS_SHORT)
    assert verdict.green, verdict


@pytest.mark.timeout(600)
def test_many_power_cuts(tmp_path: Path, mysql_factory: Callable[..., MySQLServer], library: Path) -> None:
    verdict = cut_and_go_on(tmp_path, mysql_factory(), library, CUTS)
    assert verdict.green, verdict


@pytest.mark.timeout(600)
@pytest.mark.parametrize("deaf", [".parquet"])
def test_a_missing_sync_is_seen(
    tmp_path: Path, mysql_factory: Callable[..., MySQLServer], library: Path, deaf: str
) -> None:
    """The same with the data files' syncs ignored: the test above can fail."""
    assert not cut_and_go_on(tmp_path, mysql_factory(), library, CUTS, deaf).green
