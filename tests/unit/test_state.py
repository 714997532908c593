"""The state folder: what several processes keep there at once."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cdc.epoch import EpochId
from cdc.errors import LakeError, StateError, TableStoppedError
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position
from cdc.state import ReadSpec, State

UUID = "11111111-1111-1111-1111-111111111111"
ORDERS = TableName("shop", "orders")
USERS = TableName("Shop-2", "üsers")
E7 = EpochId(7, "ab" * 32)
POSITION = Position(GtidSet.parse(f"{UUID}:1-9"), UUID, BinlogEnd("binlog.000002", 157))


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    State(folder)
    with State(folder).lock("capture"):
        pass
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_table_keeps_what_is_not_given(state: State) -> None:
    assert state.table(ORDERS) is None
    state.set_table(ORDERS, "added", added=E7)
    state.set_table(ORDERS, "snapshot", e0=E7, e0_position=POSITION, rows_estimate=100)
    state.set_table(ORDERS, "snapshot", rows_read=40)
    state.set_table(ORDERS, "catching-up", mark=BinlogEnd("binlog.000003", 4), mark_server=UUID)
    found = state.table(ORDERS)
    assert found is not None
    assert found.changed_us > 0
    assert (found.phase, found.added, found.e0, found.e0_position) == ("catching-up", E7, E7, POSITION)
    assert (found.mark, found.mark_server) == (BinlogEnd("binlog.000003", 4), UUID)
    assert (found.rows_read, found.rows_estimate, found.error) == (40, 100, None)
    state.set_table(ORDERS, "added", e0=None, e0_position=None, mark=None, mark_server=None, rows_read=0)
    found = state.table(ORDERS)
    assert found is not None
    assert (found.e0, found.e0_position, found.mark, found.mark_server, found.rows_read) == (None, None, None, None, 0)
    assert found.added == E7


def test_a_state_is_entered_only_from_where_it_may(state: State) -> None:
    assert not state.set_table(ORDERS, "ready", when=("catching-up",))
    assert state.table(ORDERS) is None
    assert state.set_table(ORDERS, "added", when=("new",))
    assert not state.set_table(ORDERS, "added", when=("new", "removed"))
    assert state.set_table(ORDERS, "snapshot", when=("added",))


def test_a_stopped_table_says_why(state: State) -> None:
    state.stop_table(USERS, "merge", TableStoppedError("cannot", where="Shop-2.üsers", hint="resync"))
    found = state.tables()[USERS]
    assert found.phase == "stopped"
    assert found.error == {
        "code": "TableStopped",
        "what": "cannot",
        "where": "Shop-2.üsers",
        "hint": "resync",
        "node": "merge",
    }
    newest = state.errors()[0]
    assert (newest["node"], newest["table"], newest["what"]) == ("merge", str(USERS), "cannot")


def test_errors_are_kept_newest_first_and_not_for_ever(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.state._ERRORS_KEPT", 5)
    for n in range(8):
        state.record_error("capture", LakeError(f"number {n}"))
    assert [e["what"] for e in state.errors(100)] == [f"number {n}" for n in (7, 6, 5, 4, 3)]
    assert [e["what"] for e in state.errors(2)] == ["number 7", "number 6"]


def test_requests_stay_open_until_they_are_done(state: State) -> None:
    first = state.ask("resync", "shop.orders")
    second = state.ask("skip", f"{UUID}:5")
    assert [(r.number, r.kind, r.argument) for r in state.open_requests()] == [
        (first, "resync", "shop.orders"),
        (second, "skip", f"{UUID}:5"),
    ]
    assert [r.number for r in state.open_requests("skip")] == [second]
    state.request_done(first, "bootstrapped anew")
    assert [r.number for r in state.open_requests()] == [second]
    assert State(state.folder).open_requests()[0].number == second
    newest, oldest = state.requests()
    assert (newest.number, newest.done_us, newest.outcome) == (second, None, None)
    assert (oldest.number, oldest.outcome) == (first, "bootstrapped anew")
    assert (oldest.done_us or 0) >= oldest.asked_us
    assert state.requests(1) == [newest]


def test_nodes_show_the_last_sign_of_life(state: State) -> None:
    state.beat("capture", {"epoch": 1})
    state.beat("capture", {"epoch": 2})
    node = state.nodes()["capture"]
    assert (node.pid, node.info) == (os.getpid(), {"epoch": 2})
    assert list(state.nodes()) == ["capture"]


def test_a_lock_has_one_holder_and_goes_with_the_process(state: State) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom cdc.state import State\n"
        "with State(Path(sys.argv[1])).lock('capture'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(state.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=f"as process {holder.pid}"), state.lock("capture"):
            pass
        with state.lock("merge"):
            pass
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with state.lock("capture"), pytest.raises(StateError, match=f"as process {os.getpid()}"), state.lock("capture"):
        pass


def test_many_writers_at_once(state: State) -> None:
    def write(n: int) -> None:
        mine = State(state.folder)
        for k in range(20):
            mine.set_table(TableName("s", f"t{n}"), "snapshot", rows_read=k)
            mine.ask("resume", f"{n}.{k}")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(state.open_requests()) == 120
    assert {t.rows_read for t in state.tables().values()} == {19}
    assert len(state.tables()) == 6


def test_a_state_of_another_version_is_refused(state: State) -> None:
    with sqlite3.connect(state.folder / "state.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateError, match="another version"):
        State(state.folder)


def test_a_damaged_state_is_named(state: State) -> None:
    (state.folder / "state.db").write_bytes(b"not a database, certainly" * 100)
    with pytest.raises(StateError, match="move the file away"):
        State(state.folder)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="not usable"):
        State(tmp_path / "file" / "state")


def test_a_job_of_rereading(state: State) -> None:
    spec = ReadSpec(where="a > 1", low=(1, "x"), high=(9, "0xff"))
    job = state.ask_read(ORDERS, USERS, spec, "shard")
    assert (job.table, job.target, job.spec, job.phase, job.open) == (ORDERS, USERS, spec, "waiting", True)
    assert state.ask_read(ORDERS, ORDERS, ReadSpec(), "asked", job.job) == job
    state.ask_read(ORDERS, ORDERS, ReadSpec(keys=((1,), (2,))), "asked")
    assert state.set_read(job.job, phase="running", when=("waiting",), epoch=E7, progress={"at": [1]}, rows_read=5)
    assert not state.set_read(job.job, phase="cancelled", when=("waiting",))
    assert state.set_read(job.job, rows_emitted=4, last=E7)
    found = state.read(job.job)
    assert found is not None
    assert (found.phase, found.epoch, found.progress, found.rows_read) == ("running", E7, {"at": [1]}, 5)
    assert (found.rows_emitted, found.last, found.spec) == (4, E7, spec)
    assert state.set_read(job.job, phase="done")
    assert [r.spec for r in state.reads(open_only=True)] == [ReadSpec(keys=((1,), (2,)))]
    assert len(state.reads()) == 2


def test_a_job_that_begins_anew_does_not_listen_to_its_run_before(state: State) -> None:
    job = state.ask_read(ORDERS, ORDERS, ReadSpec(), "backfill").job
    state.set_read(job, phase="done", epoch=E7, progress={"at": [1]}, rows_read=5)
    state.restart_read(job, "the log lost them")
    found = state.read(job)
    assert found is not None
    assert (found.phase, found.run, found.epoch, found.progress, found.rows_read) == ("waiting", 1, E7, None, 0)
    assert not state.set_read(job, run=0, rows_read=9)
    state.set_read(job, phase="cancelled")
    state.restart_read(job, "again")
    found = state.read(job)
    assert found is not None
    assert (found.phase, found.run, found.rows_read) == ("cancelled", 1, 0)


def test_a_state_of_before_gets_the_new_tables(tmp_path: Path) -> None:
    State(tmp_path)
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("DROP TABLE reads")
        db.execute("DROP TABLE pauses")
    assert State(tmp_path).reads() == []


def test_a_first_reading_that_pauses(state: State) -> None:
    state.pause(ORDERS, True)
    state.pause(ORDERS, True)
    state.pause(USERS, True)
    state.pause(USERS, False)
    assert state.paused() == {ORDERS}
