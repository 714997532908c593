"""The store of checks: what is kept across processes, and when a difference counts as put right."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cdc.errors import StateError
from reconcile.database import NAME
from reconcile.runs import REST, Repaired, Runs


def values(*keys: str, table: str = "shop.orders", **more: Any) -> dict[str, Any]:
    differences = [{"key": k, "kind": "different", "columns": ["note"]} for k in keys]
    one = {
        "table": table,
        "different": len(keys),
        "differences": differences,
        "equal": not keys,
        "complete": True,
    } | more
    return {"epoch": 7, "equal": not keys, "tables": [one]}


def ledger(gap: int, table: str = "shop.orders") -> dict[str, Any]:
    equation = {
        "name": "captured = logged",
        "left": 10 + gap,
        "right": 10,
        "gap": gap,
        "holds": not gap,
        "where": "epochs 3 to 4",
    }
    return {"closes": not gap, "tables": [{"table": table, "closes": not gap, "equations": [equation]}]}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "state")


def check(runs: Runs, report: dict[str, Any], kind: Any = "values", **options: Any) -> int:
    run = runs.begin(kind, "schedule", (), options)
    tables = report["tables"]
    runs.end(run, "agrees" if all(t.get("equal", t.get("closes")) for t in tables) else "differs", report)
    return run


def keys(runs: Runs) -> list[str]:
    return [f.key for f in runs.findings()]


def test_file_and_folder_are_their_owners_alone(runs: Runs, tmp_path: Path) -> None:
    check(runs, values("7"))
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_run_is_kept_with_its_verdict_and_report(runs: Runs, tmp_path: Path) -> None:
    number = check(runs, values("7", "9"))
    last = Runs(tmp_path / "state").last("values")
    assert last is not None
    assert (last.number, last.verdict, last.dead) == (number, "differs", False)
    assert last.report is not None
    assert last.report["tables"][0]["different"] == 2
    assert runs.last("values", "shop.orders") == last
    assert runs.last("values", "shop.other") is None
    assert runs.last("ledger") is None
    (verdict,) = runs.verdicts()
    assert (verdict.verdict, verdict.differences, verdict.whole) == ("differs", 2, True)


def test_a_difference_stays_until_a_run_over_everything_does_not_see_it(runs: Runs) -> None:
    check(runs, values("7", "9"))
    since = runs.unresolved()["values", "shop.orders"]
    check(runs, values("9"))
    assert keys(runs) == ["9"]
    assert runs.unresolved() == {("values", "shop.orders"): (1, since[1])}
    check(runs, values())
    assert keys(runs) == []


@pytest.mark.parametrize("part", [{"sampled": 0.01}, {"columns": ["note"]}, {"range": "keys from 5 to 8"}])
def test_a_part_that_agrees_puts_nothing_right(runs: Runs, part: dict[str, Any]) -> None:
    check(runs, values("7"))
    check(runs, values(**part))
    assert keys(runs) == ["7"]
    assert runs.verdicts()[0].verdict == "agrees"


def test_keys_that_were_compared_again_are_put_right(runs: Runs) -> None:
    check(runs, values("7", "9", sampled=0.5))
    assert runs.settled("shop.orders", ["7", "8"]) == 1
    assert keys(runs) == ["9"]


def test_more_than_can_be_named_is_one_finding_and_hides_no_other(runs: Runs) -> None:
    check(runs, values("7"))
    check(runs, values("8", "9", different=500, complete=False))
    assert keys(runs) == ["7", "8", "9", REST]
    assert runs.unresolved()["values", "shop.orders"][0] == 3 + 498
    runs.settled("shop.orders", ["7", "8", "9", REST])
    assert keys(runs) == [REST]
    check(runs, values())
    assert keys(runs) == []


def test_keys_that_do_not_rest_are_no_difference_and_no_agreement(runs: Runs) -> None:
    check(runs, values(unsettled=3, equal=False))
    assert keys(runs) == []
    assert runs.verdicts()[0].verdict == "failed"


def test_an_imbalance_of_the_ledger_is_over_when_it_closes(runs: Runs) -> None:
    check(runs, ledger(2), "ledger")
    (finding,) = runs.findings("shop.orders")
    assert (finding.kind, finding.key, finding.what, finding.rows) == (
        "ledger",
        "captured = logged",
        "epochs 3 to 4",
        2,
    )
    check(runs, ledger(0), "ledger", since=5)
    assert len(runs.findings()) == 1  # of another window
    check(runs, ledger(0), "ledger")
    assert runs.findings() == []


def test_a_run_that_failed_says_so_and_changes_no_finding(runs: Runs) -> None:
    check(runs, values("7"))
    run = runs.begin("values", "schedule", ["shop.orders"], {})
    runs.end(run, "failed", {"error": {"code": "NotFollowing", "what": "no", "where": "", "hint": ""}})
    assert keys(runs) == ["7"]
    assert [(v.run, v.verdict) for v in runs.verdicts()] == [(run, "failed")]


KILLED = """
import os, sys
from pathlib import Path
from reconcile.runs import Runs
runs = Runs(Path(sys.argv[1]))
run = runs.begin("values", "asked", ["shop.orders"], {"sample": 0.5})
runs.checkpoint(run).save("shop.orders", {"low": [5, "é"]})
print(run, flush=True)
os.kill(os.getpid(), 9)
"""


def killed(runs: Runs) -> int:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(runs.database.file.parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    return int(done.stdout)


def test_a_run_whose_process_was_killed_is_gone_on_with(runs: Runs) -> None:
    number = killed(runs)
    assert runs.history()[0].dead
    assert runs.unfinished("values", ["shop.orders"], {"sample": 0.25}) is None
    assert runs.unfinished("ledger", ["shop.orders"], {"sample": 0.5}) is None
    assert runs.unfinished("values", ["shop.orders"], {"sample": 0.5}) == number
    assert runs.checkpoint(number).load("shop.orders") == {"low": [5, "é"]}
    assert runs.checkpoint(number).load("shop.other") is None
    assert not runs.history()[0].dead
    runs.end(number, "agrees", values())
    assert runs.checkpoint(number).load("shop.orders") is None


def test_a_process_that_nobody_reaped_is_dead(runs: Runs) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(runs.database.file.parent)], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.read()  # it has ended; it is a zombie until it is waited for
    try:
        deadline = time.monotonic() + 10
        while not runs.history()[0].dead:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.stdout.close()
        child.wait()


def test_one_that_goes_on_is_not_taken_over(runs: Runs) -> None:
    runs.begin("values", "asked", ["shop.orders"], {})
    assert runs.unfinished("values", ["shop.orders"], {}) is None


def test_a_new_one_makes_a_killed_one_a_failure(runs: Runs) -> None:
    number = killed(runs)
    runs.begin("values", "asked", ["shop.orders"], {"sample": 0.5})
    found = runs.run(number)
    assert found is not None
    assert found.verdict == "failed"
    assert found.report is not None
    assert found.report["error"]["code"] == "Interrupted"


def test_what_was_repaired_is_kept_with_before_and_after(runs: Runs) -> None:
    run = runs.begin("repair", "asked", ["shop.orders"], {})
    given = [
        Repaired("shop.orders", "7", "different", ("note",), b"\x01" * 16, b"\x02" * 16, 3, 4),
        Repaired(
            "shop.orders",
            "8",
            "missing in the lake",
            (),
            None,
            b"\x02" * 16,
            3,
            4,
            "repaired",
            {"after": {"note": "x"}},
        ),
    ]
    runs.repaired(run, given)
    found = runs.repairs(run)
    assert [(r.key, r.columns, r.before, r.after, r.texts) for r in found] == [
        (g.key, g.columns, g.before, g.after, g.texts) for g in given
    ]
    assert all(r.run == run and r.at_us for r in found)
    assert runs.repairs(run + 1) == []
    assert runs.repairs(table="shop.other") == []


@pytest.mark.parametrize("values_first", [True, False])
@pytest.mark.parametrize("ok", [True, False])
def test_what_a_run_repairs_is_no_finding_in_whatever_order_it_is_recorded(
    runs: Runs, values_first: bool, ok: bool
) -> None:
    compared, repairing = runs.begin("values", "asked", (), {}), runs.begin("repair", "asked", (), {})
    found = values("7", "9", different=4)
    report = {"values": found, "repair": {"dry_run": False, "tables": [{"table": "shop.orders", "ok": ok}]}}
    if values_first:
        runs.end(compared, "differs", {"values": found})
    runs.repaired(
        repairing,
        [Repaired("shop.orders", "7", "different"), Repaired("shop.orders", "9", "different", outcome="differs")],
    )
    runs.settled("shop.orders", ["7"])
    runs.end(repairing, "agrees", report)
    if not values_first:
        runs.end(compared, "differs", report)
    assert keys(runs) == ([] if ok else ["9", REST])


def test_a_dry_run_puts_nothing_right(runs: Runs) -> None:
    run = runs.begin("values", "asked", (), {})
    repair = {"dry_run": True, "tables": [{"table": "shop.orders", "ok": True}]}
    runs.end(run, "differs", {"values": values("7"), "repair": repair})
    assert keys(runs) == ["7"]


def test_old_runs_go_and_what_still_counts_stays(runs: Runs) -> None:
    first = check(runs, values("7"))
    check(runs, values(sampled=0.5))
    check(runs, values(sampled=0.5))
    newest = check(runs, values(sampled=0.5))
    assert runs.prune(3600) == 0
    time.sleep(0.01)
    assert runs.prune(0.005) == 2
    assert [r.number for r in runs.history()] == [newest, first]  # the first has a finding that is open


def test_proven_is_the_version_of_the_newest_whole_run_with_nothing_left(runs: Runs) -> None:
    check(runs, values(version=3))
    check(runs, values(version=4))
    check(runs, values(sampled=0.1, version=5))
    assert runs.proven() == {"shop.orders": 4}
    check(runs, values("7", version=6))
    assert runs.proven() == {"shop.orders": 4}  # what was proven is proven
    runs.settled("shop.orders", ["7"])
    assert runs.proven() == {"shop.orders": 6}
    check(runs, values(equal=False, unsettled=1, version=7))
    assert runs.proven() == {"shop.orders": 6}
    assert runs.prune(0) == 3
    assert runs.proven() == {"shop.orders": 6}
    check(runs, values("8", version=2))  # begun anew
    assert runs.proven() == {}


def test_many_at_once(runs: Runs) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            mine = Runs(runs.database.file.parent)
            for n in range(10):
                check(mine, values(str(n)))
                mine.findings()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(runs.history()) == 60


def test_two_that_make_the_file_at_once(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from reconcile.runs import Runs; print(len(Runs(Path(sys.argv[1])).history()))"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "s")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    assert [(c.communicate(), c.returncode) for c in children] == [((b"0\n", b""), 0)] * 4


def test_of_another_version_it_is_left_alone(runs: Runs, tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "state" / NAME)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateError, match="another version \\(99") as caught:
        Runs(tmp_path / "state")
    assert "move the file away" in caught.value.hint


def test_damaged_it_says_what_to_do(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "state" / NAME
    for extra in file.parent.glob(NAME + "-*"):
        extra.unlink()
    file.write_bytes(os.urandom(8192))
    with pytest.raises(StateError) as caught:
        Runs(tmp_path / "state")
    assert "move the file away" in caught.value.hint


def test_lost_it_is_begun_anew(runs: Runs, tmp_path: Path) -> None:
    check(runs, values("7"))
    for path in (tmp_path / "state").glob(NAME + "*"):
        path.unlink()
    assert Runs(tmp_path / "state").history() == []


def test_a_schedule_is_remembered_as_it_was_first_seen(runs: Runs) -> None:
    since = runs.scheduled_since("values", "0 3 * * *")
    assert runs.scheduled_since("values", "0 3 * * *") == since
    assert runs.scheduled_since("values", "0 4 * * *") > since
