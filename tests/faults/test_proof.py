"""The whole of it, at random: a workload, kills at random moments and at random fault points, drift in the lake and past the binary log, and
reconciliations in between. Every planted difference must be found and repaired, and nothing else may be found.

    make test-proof TRANSACTIONS=100000 KILLS=200 SERVER=mysql

The seed is printed; `LAKESYNC_TEST_SEED` repeats a run, as far as the moments of kills can be.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdc.state import State
from dev.mariadb import MariaDBServer
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer
from reconcile.runs import Runs
from tests.faults import drift as drifts
from tests.faults.rig import COMMAND, Rig, seed

TRANSACTIONS = int(os.environ.get("TRANSACTIONS", "100000"))
KILLS = int(os.environ.get("KILLS", "200"))
KILLS_A_ROUND = 12
POINTS = (
    "capture.event",
    "capture.before-epoch",
    "log.after-data",
    "log.before-commit",
    "log.after-commit",
    "window.opened",
    "window.read",
    "window.delivered",
    "window.emitting",
    "window.emitted",
    "merge.round",
    "merge.after-round",
    "lake.after-data-files",
    "lake.after-vectors",
    "lake.before-commit",
    "lake.after-commit",
    "lake.after-index",
    "lake.compact-written",
    "lake.compact-committed",
    "lake.checkpoint",
    "lake.manifest",
    "trace.insert",
)
FIRES_WITHIN_S = 4.0
SCHEDULED_S = 120.0


@dataclass
class Figures:
    """What a run did."""

    transactions: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    planted: Counter[str] = field(default_factory=Counter)
    found: int = 0
    repaired: int = 0
    false_alarms: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    reconciliations: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"proof: {self.transactions:,} transactions, {self.kills.total()} kills ({_said(self.kills)}), {self.planted.total()} differences planted "
            f"({_said(self.planted)}), {self.found} found, {self.repaired} repaired, {len(self.missed)} missed, {len(self.false_alarms)} false alarms, "
            f"{self.reconciliations.total()} reconciliations ({_said(self.reconciliations)}), {self.seconds:,.0f} s"
        )


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


@dataclass
class Proof:
    """One run."""

    rig: Rig
    drift: drifts.Drift
    work: drifts.Workload
    dice: random.Random
    figures: Figures = field(default_factory=Figures)
    daemon: subprocess.Popen[bytes] | None = None
    _scheduled: int = 0

    # -- lives and deaths ----------------------------------------------------------------------------------------------

    def live_and_die(self) -> None:
        """A daemon is started, and killed: at a fault point, or at any moment."""
        self.work.check()
        self.kill_daemon()
        if self.dice.random() < 0.5:
            point = self.dice.choice(POINTS)
            process = self.rig.start(faults=f"kill:{point}:{self.dice.choice((1, 1, 2, 5))}")
            how = "at a fault point"
            try:
                process.wait(FIRES_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.rig.kill(process)
                how = "at any moment"
        else:
            process = self.rig.start()
            time.sleep(self.dice.uniform(0.3, 3.0))
            how = "at any moment"
            if process.poll() is None:
                self.rig.kill(process)
        assert process.returncode == -signal.SIGKILL, self.rig.last_words()
        self.figures.kills[how] += 1

    def kill_daemon(self) -> None:
        """No daemon is to be running."""
        if self.daemon is not None:
            assert self.daemon.poll() is None, self.rig.last_words()
            self.rig.kill(self.daemon)
            self.figures.kills["between rounds"] += 1
            self.daemon = None

    def start(self) -> None:
        """A daemon that nothing is done to."""
        if self.daemon is None:
            self.daemon = self.rig.start()
        daemon = self.daemon
        self.rig.wait(lambda: _runs(self.rig, daemon.pid), "the daemon runs")

    # -- reconciliation ------------------------------------------------------------------------------------------------

    def reconcile(self, *arguments: str, code: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """Asked for, beside the workload."""
        if self.dice.random() < 0.15:
            self._killed(*arguments)
        done = self.rig.lakesync("reconcile", *arguments, "--json", timeout_s=240)
        self.figures.reconciliations["asked for"] += 1
        assert done.returncode in code, (
            f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr}\n{self.rig.last_words()}"
        )
        report: dict[str, Any] = orjson.loads(done.stdout)
        return report

    def _killed(self, *arguments: str) -> None:
        """One that does not come to its end."""
        process = subprocess.Popen(
            [COMMAND, "reconcile", *arguments, "--json"],
            env=self.rig.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(self.dice.uniform(0.5, 4.0))
        if process.poll() is None:
            process.kill()
            self.figures.kills["reconcile"] += 1
        process.wait()

    def find_and_repair(self) -> None:
        """What is planted, and nothing else, is found and repaired; then nothing is found."""
        self.start()
        wanted = {(table, key): said for table, keys in self.drift.expected.items() for key, said in keys.items()}
        repeated = {at for at, said in wanted.items() if said.endswith("times in the lake")}
        if wanted and not repeated and self.dice.random() < 0.4:
            self.await_scheduled(set(wanted))
        self.look_at_scheduled()
        report = self.reconcile("--values", "--repair", code=(0, 1))
        found = _found(report)
        for (table, key), kind in found.items():
            said = wanted.get((table, key))
            if said is None:
                self.figures.false_alarms.append(f"{table} {key}: {kind}")
            elif said != kind and (table, key) not in repeated:
                self.figures.false_alarms.append(f"{table} {key}: {kind}, planted was {said}")
        # A run that was killed may have repaired some already; the store has them then.
        stored = {(r.table, r.key) for r in Runs(self.rig.state).repairs(limit=1_000_000)}
        missed = [at for at in wanted if at not in found and at not in stored]
        self.figures.missed += [f"{table} {key}: {wanted[table, key]}" for table, key in missed]
        self.figures.found += len(wanted) - len(missed)
        again = self.reconcile("--values", "--ledger", code=(0, 1))
        left = _found(again)
        self.figures.repaired += len([at for at in wanted if at not in left])
        assert not self.figures.missed, "\n".join([*self.figures.missed, orjson.dumps(report).decode()[:4000]])
        assert not self.figures.false_alarms, "\n".join(
            [*self.figures.false_alarms, orjson.dumps(report).decode()[:4000]]
        )
        assert not left, f"not repaired: {left}"
        wrong = [e for t in again["ledger"]["tables"] for e in t["equations"] if not e["holds"]]
        assert again["agrees"], f"{again['verdict']}\n{wrong}"
        self.drift.settled()

    def await_scheduled(self, wanted: set[tuple[str, str]]) -> None:
        """The next comparison that nobody asks for finds what is planted, too."""
        runs = Runs(self.rig.state)
        began = max((run.number for run in runs.history(1)), default=0)

        def came() -> bool:
            last = runs.last("values", trigger="schedule")
            return last is not None and last.number > began and last.verdict in ("agrees", "differs")

        self.rig.wait(came, "a scheduled comparison", SCHEDULED_S)
        found = {(f.table, f.key) for f in runs.findings() if f.kind == "values"}
        self.figures.missed += [f"scheduled: {table} {key}" for table, key in wanted - found]

    def look_at_scheduled(self) -> None:
        """What scheduled comparisons found since the last look was planted, or nothing."""
        runs = Runs(self.rig.state)
        for run in runs.history(1000):
            if run.number <= self._scheduled or run.trigger != "schedule" or run.ended_us is None:
                continue
            self.figures.reconciliations[f"scheduled {run.kind}"] += 1
        newest = runs.history(1)
        self._scheduled = newest[0].number if newest else 0
        known = {(table, key) for table, keys in self.drift.expected.items() for key in keys}
        for finding in runs.findings():
            if finding.kind == "values" and (finding.table, finding.key) not in known:
                self.figures.false_alarms.append(f"scheduled: {finding.table} {finding.key}: {finding.what}")

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, transactions: int, kills: int) -> None:
        """All of it."""
        began_s = time.monotonic()
        rounds = max(1, -(-kills // KILLS_A_ROUND))
        with self.work:
            for number in range(rounds):
                for _ in range(min(kills, KILLS_A_ROUND)):
                    if self.dice.random() < 0.5:
                        self.plant()
                    self.live_and_die()
                self.start()
                for _ in range(self.dice.randrange(3)):
                    self.plant()  # beside a daemon that lives
                self.find_and_repair()
                wanted = transactions * (number + 1) // rounds
                if self.work.transactions < wanted:
                    self.work.until(wanted)
            self.figures.transactions = self.work.transactions
        self.figures.planted = Counter(self.drift.planted)
        self.kill_daemon()
        assert self.rig.catch_up(timeout_s=240).returncode == 0
        verdict = self.rig.verdict(proofs=False)
        assert verdict.green, verdict
        self.figures.seconds = time.monotonic() - began_s

    def plant(self) -> None:
        """One more difference."""
        self.drift.plant()


def _runs(rig: Rig, pid: int) -> bool:
    nodes = State(rig.state).nodes()
    return all(name in nodes and nodes[name].pid == pid for name in ("capture", "merge"))


def _found(report: dict[str, Any]) -> dict[tuple[str, str], str]:
    """What a report says that differs, or that was put right, by table and key."""
    tables = [*((report["values"] or {}).get("tables") or ()), *((report["repair"] or {}).get("tables") or ())]
    return {(t["table"], d["key"]): d["kind"] for t in tables for d in t["differences"]}


def _proven(server: SqlServer, folder: Path, transactions: int, kills: int) -> None:
    number = seed()
    drifts.create(server)
    rig = Rig(
        folder,
        server,
        [str(kind.table) for kind in drifts.KINDS],
        settings={"merge": {"every": "100ms"}, "reconcile": {"ledger": "every 30s", "values": "every 20s"}},
    )
    dice = random.Random(number)
    proof = Proof(
        rig,
        drifts.Drift(server, rig.lake, random.Random(dice.randrange(1 << 32))),
        drifts.Workload(server, dice.randrange(1 << 32)),
        dice,
    )
    try:
        assert rig.catch_up().returncode == 0
        proof.run(transactions, kills)
    finally:
        rig.close()
        print(proof.figures)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[SqlServer]:
    with (MySQLServer if request.param == "mysql" else MariaDBServer)() as started:
        yield started


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("server", [pytest.param("mysql", marks=pytest.mark.ci), "mariadb"], indirect=True)
def test_every_planted_difference_is_found_and_nothing_else(server: SqlServer, tmp_path: Path) -> None:
    _proven(server, tmp_path / "p", min(TRANSACTIONS, 4000), min(KILLS, 8))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("server", ["mysql", "mariadb"], indirect=True)
def test_the_same_for_long(server: SqlServer, tmp_path: Path) -> None:
    _proven(server, tmp_path / "p", TRANSACTIONS, KILLS)
