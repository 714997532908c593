"""`make demo`: the whole way of a row, on real servers, from an empty folder to a reconciliation that closes.

Starts a MySQL of its own, makes a shop database of a million rows, follows it into Delta tables while a workload writes, kills the
daemon in the snapshot and again in the stream, starts it again each time, and shows that ledger and values agree. Then it changes rows in a
way that no binary log tells of, has that found and repaired, and writes a report. Everything is in one folder: lake and report stay until the
next run, the server is gone at the end.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cdc.state import State, TableStatus
from dev import shop
from dev.errors import SetUpError
from dev.mysql import MySQLServer

FOLDER = Path(".demo")
CONFIG = "lakesync.yaml"
ROWS = 1_000_000
RATE = 100
"""Transactions a second of the workload."""
GRANTS = ("REPLICATION SLAVE, REPLICATION CLIENT ON *.*", "SELECT ON shop.*")
ROUNDS = "merge: {every: 2s}"
"""The default is 5s; the demo is in a hurry."""
STREAM_S = 3.0
"""How long the stream runs before it is killed."""
DRIFT = (
    "SET sql_log_bin = 0",
    "UPDATE shop.payments SET amount = amount + 0.01 WHERE order_id IN (17, 18)",
    "DELETE FROM shop.payments WHERE order_id = 42",
)
"""What parts source and lake, and no binary log tells of. The workload leaves these rows alone, else it would put them right."""
PATIENCE_S = 300.0
POLL_S = 0.05


class Demo:
    """One run. `say` prints what is done, `lakesync` the command and what it prints."""

    def __init__(self, rows: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self.started = time.monotonic()
        self.command = Path(sys.executable).with_name("lakesync")
        self.environment = os.environ | {"SHOP_DB_PASSWORD": "demo"}
        self.environment.pop("LAKESYNC_CONFIG", None)
        self.daemon: subprocess.Popen[bytes] | None = None

    def say(self, text: str) -> None:
        """One step of the demo, with the time since its beginning."""
        print(f"\n[{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def lakesync(self, *arguments: str) -> None:
        """Run a command of lakesync, shown as one types it; the demo ends if it fails."""
        print(f"$ lakesync {shlex.join(arguments)}", flush=True)
        done = subprocess.run([self.command, *arguments], env=self.environment, cwd=self.folder, check=False)
        if done.returncode:
            raise SystemExit(f"lakesync {arguments[0]} ended with exit code {done.returncode}")

    def follow(self) -> subprocess.Popen[bytes]:
        """Start the daemon in the background; its log goes to a file."""
        print("$ lakesync run 2>> daemon.log &", flush=True)
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [self.command, "run"], env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )
        return self.daemon

    def wait(self, until: Callable[[list[TableStatus]], bool]) -> None:
        """Until the tables' states are as told. The demo ends if the daemon does, or if it takes too long."""
        assert self.daemon is not None
        state, deadline = State(self.folder / ".lakesync"), time.monotonic() + PATIENCE_S
        while not until(list(state.tables().values())):
            if self.daemon.poll() is not None:
                raise SystemExit(
                    f"the daemon ended with exit code {self.daemon.returncode}: see {self.folder / 'daemon.log'}"
                )
            if time.monotonic() > deadline:
                raise SystemExit(f"not done after {PATIENCE_S:.0f} s: see {self.folder / 'daemon.log'}")
            time.sleep(POLL_S)

    def in_snapshot(self, tables: list[TableStatus]) -> bool:
        """Whether some rows are read, and some are not."""
        some = sum(t.rows_read for t in tables) >= self.rows / 5
        if some and all(t.phase not in ("added", "snapshot") for t in tables):
            raise SystemExit("the snapshot is over before it could be killed: try more --rows")
        return some

    def kill(self) -> None:
        """kill -9 of the daemon."""
        assert self.daemon is not None
        print(f"$ kill -9 {self.daemon.pid}", flush=True)
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def end(self) -> None:
        """SIGTERM for the daemon, which ends it in an orderly way."""
        if self.daemon is None or self.daemon.poll() is not None:
            return
        self.daemon.terminate()
        if code := self.daemon.wait(60):
            raise SystemExit(f"the daemon ended with exit code {code}: see {self.folder / 'daemon.log'}")

    def run(self) -> None:
        """From an empty folder to a reconciliation."""
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / CONFIG).exists():
            raise SystemExit(f"{self.folder} is no folder of an earlier demo: name another, or remove it")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        self.say("A MySQL server of its own")
        with MySQLServer() as server:
            server.add_user("lakesync", "demo", *GRANTS)
            self.say(f"A shop database: {self.rows:,} rows in five tables")
            shop.create(server, rows=self.rows)
            self.say("Set up")
            url = f"mysql://lakesync@127.0.0.1:{server.port}"
            self.lakesync(
                "init", "--source", url, "--password", "env:SHOP_DB_PASSWORD", "--lake", "lake", "--name", "shop"
            )
            print(f"$ echo {shlex.quote(ROUNDS)} >> {CONFIG}", flush=True)
            with (self.folder / CONFIG).open("a") as file:
                file.write(f"{ROUNDS}\n")
            self.lakesync("add", "shop.*")
            self.lakesync("check")
            self.say(f"Follow it, while {RATE} transactions a second insert, update, delete and change keys")
            with shop.working(server, rate=RATE) as work:
                try:
                    self.prove(server)
                finally:
                    self.end()
            self.say(
                f"Done: {work.transactions:,} transactions went by ({work.inserts:,} inserts, {work.updates:,} updates, "
                f"{work.deletes:,} deletes, {work.moves:,} key changes). The tables are in {self.folder / 'lake'}; open "
                f"{self.folder / 'report.html'} in a browser"
            )

    def prove(self, server: MySQLServer) -> None:
        """Follow, kill, follow, kill, follow; then ledger and values, and a drift that is found and repaired, while the workload goes on."""
        self.follow()
        self.wait(self.in_snapshot)
        self.say("kill -9 in the middle of the snapshot, and start again")
        self.kill()
        self.lakesync("status")
        self.follow()
        self.wait(lambda tables: len(tables) == len(shop.TABLES) and all(t.phase == "ready" for t in tables))
        time.sleep(STREAM_S)
        self.say("All tables are ready. kill -9 in the middle of the stream, and start again")
        self.kill()
        self.follow()
        self.say("The proof, while the workload goes on: the ledger closes, and the values are equal")
        self.lakesync("reconcile")
        self.say("Someone changes rows of the source past the binary log: no reader of it can know")
        with server.root() as connection, connection.cursor() as cursor:
            # The statements read the whole table: otherwise they would lock what the workload is at, and one of the two would die of it.
            cursor.execute("SET SESSION transaction_isolation = 'READ-COMMITTED'")
            for statement in DRIFT:
                print(f"mysql> {statement};", flush=True)
                cursor.execute(statement)
        self.say("The proof finds them; only these rows are read again, through the log like any other change")
        self.lakesync(
            "reconcile", "--ledger", "--values", "--repair", "--report", "report.html", "--report", "report.json"
        )
        self.lakesync("status")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of the shop database (default: {ROWS:,})")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"made anew each time (default: {FOLDER})")
    given = parser.parse_args(arguments)
    try:
        Demo(given.rows, given.folder).run()
    except SetUpError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
