"""`make demo`: the whole way of a row, on real servers, from an empty folder to a reconciliation that closes.

Starts a MySQL of its own, makes a shop database of a million rows, follows it into Delta tables while a workload writes, kills the
daemon in the middle, starts it again, and shows status, ledger and values. Everything is under `.demo/` and goes at the next run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dev import shop
from dev.mysql import MySQLServer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
ROWS = 1_000_000
RATE = 100
"""Transactions a second of the workload."""
KILL_AFTER_S = 6.0


class Demo:
    """One run. `say` prints what is done, `lakesync` the command and what it prints."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.started = time.monotonic()
        self.command = Path(sys.executable).with_name("lakesync")
        self.config = FOLDER / "lakesync.yaml"
        self.environment = os.environ | {
            "LAKESYNC_CONFIG": str(self.config),
            "SHOP_DB_PASSWORD": "demo",
            "COLUMNS": "120",
        }

    def say(self, text: str) -> None:
        """One step of the demo, with the time since its beginning."""
        print(f"\n[{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def lakesync(self, *arguments: str) -> int:
        """Run a command of lakesync, shown as one types it. Its exit code."""
        print(f"$ lakesync {' '.join(arguments)}", flush=True)
        return subprocess.run([self.command, *arguments], env=self.environment, check=False).returncode

    def must(self, *arguments: str) -> None:
        """The same; the demo ends if it fails."""
        if code := self.lakesync(*arguments):
            raise SystemExit(f"lakesync {arguments[0]} ended with exit code {code}")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command of lakesync in the background; its log lines go to `.demo/daemon.log`."""
        print(f"$ lakesync {' '.join(arguments)} &", flush=True)
        with (FOLDER / "daemon.log").open("ab") as log:
            return subprocess.Popen([self.command, *arguments], env=self.environment, stdout=log, stderr=log)

    def run(self) -> None:
        """From an empty folder to a reconciliation."""
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(mode=0o700)
        self.say("a MySQL server of its own")
        with MySQLServer() as server:
            server.add_user("lakesync", "demo", "REPLICATION SLAVE, REPLICATION CLIENT ON *.*", "SELECT ON shop.*")
            self.say(f"a shop database: {self.rows:,} rows in five tables")
            shop.create(server, rows=self.rows)
            stop, writer = threading.Event(), None
            try:
                self.say("set up, check, add the tables")
                url = f"mysql://lakesync@127.0.0.1:{server.port}"
                self.must(
                    "init",
                    "--source",
                    url,
                    "--password",
                    "env:SHOP_DB_PASSWORD",
                    "--lake",
                    str(FOLDER / "lake"),
                    "--name",
                    "shop",
                )
                self.must("check")
                self.must("add", "shop.*")
                self.say(f"follow it, while {RATE} transactions a second insert, update, delete and change keys")
                writer = threading.Thread(
                    target=shop.workload, kwargs={"server": server, "stop": stop, "rate": RATE, "seed": 1}
                )
                writer.start()
                daemon = self.start("run")
                time.sleep(KILL_AFTER_S)
                self.say("kill -9 of the daemon, in the middle of the snapshot")
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
                self.lakesync("status")
                self.say("start it again")
                self.must("run", "--until-current")
                daemon = self.start("run")
                self.say("kill -9 once more, in the middle of the stream")
                time.sleep(KILL_AFTER_S)
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
                daemon = self.start("run")
                try:
                    self.say(
                        "status, and the proof: the ledger closes and the values are equal, while the workload goes on"
                    )
                    time.sleep(3)
                    self.must("status")
                    self.must("reconcile", "--ledger", "--values", "--report", str(FOLDER / "report.json"))
                    stop.set()
                    writer.join()
                finally:
                    daemon.terminate()
                    code = daemon.wait(30)
                if code:
                    raise SystemExit(f"the daemon ended with exit code {code}, see {FOLDER / 'daemon.log'}")
            finally:
                stop.set()
                if writer is not None:
                    writer.join()
        self.say(
            f"done. The tables are in {(FOLDER / 'lake').relative_to(ROOT)}; the report in {(FOLDER / 'report.json').relative_to(ROOT)}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of the shop database (default: {ROWS:,})")
    Demo(parser.parse_args(arguments).rows).run()


if __name__ == "__main__":
    main()
