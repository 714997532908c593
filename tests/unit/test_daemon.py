"""Supervision: nodes are started again, or end the whole; never in silence."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cdc import daemon
from cdc.clock import SystemClock
from cdc.daemon import Body, NodeName, Stop, Supervisor
from cdc.errors import LakesyncError, LogFencedError, SourceUnavailableError, UnexpectedError
from cdc.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(daemon, "TICK_S", 0.02)


def waits(stop: Stop) -> None:
    stop.wait()


def supervisor(state: State, bodies: dict[NodeName, Body], stop: Stop | None = None) -> Supervisor:
    return Supervisor(state, bodies, stop or Stop(), SystemClock())


def test_told_to_stop_all_nodes_end(state: State) -> None:
    stop = Stop()
    ran = supervisor(state, {"capture": waits, "merge": waits}, stop)
    threading.Timer(0.1, stop.set).start()
    ran.run()
    assert not any(t.is_alive() for t in ran.threads.values())
    assert state.errors() == []


def test_done_ends_all_nodes(state: State) -> None:
    ran = supervisor(state, {"capture": waits})
    ran.run(done=lambda: True)
    assert not ran.threads["capture"].is_alive()


def test_what_may_pass_is_tried_again_after_growing_pauses(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    stop = Stop()

    def fails_thrice(ending: Stop) -> None:
        starts.append(time.monotonic())
        if len(starts) <= 3:
            raise SourceUnavailableError("lost", where="db:3306")
        stop.set()
        ending.wait()

    supervisor(state, {"capture": fails_thrice, "merge": waits}, stop).run()
    assert len(starts) == 4
    assert [e["code"] for e in state.errors()] == ["SourceUnavailable"] * 3
    assert starts[3] - starts[2] > starts[1] - starts[0]


def test_pauses_grow_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "FIRST_PAUSE_S", 0.5)
    pauses = [daemon.pause_before(n) for n in (1, 2, 3, 50, 5000)]
    for pause, middle in zip(pauses, (0.5, 1, 2, daemon.LONGEST_PAUSE_S, daemon.LONGEST_PAUSE_S), strict=True):
        assert 0.8 * middle <= pause <= 1.2 * middle


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (LogFencedError("a newer capture"), LogFencedError),
        (ValueError("hunter2"), UnexpectedError),
        (SystemExit(0), UnexpectedError),
    ],
)
def test_what_does_not_pass_ends_everything(state: State, raised: BaseException, expected: type[LakesyncError]) -> None:
    def fails(_: Stop) -> None:
        raise raised

    ran = supervisor(state, {"capture": fails, "merge": waits})
    with pytest.raises(expected) as caught:
        ran.run()
    assert not ran.threads["merge"].is_alive()
    assert "hunter2" not in str(caught.value)
    (error,) = state.errors()
    assert error["node"] == "capture"
    assert error["what"] == caught.value.what


def test_a_node_that_just_ends_is_an_error(state: State) -> None:
    with pytest.raises(UnexpectedError, match="ended without being told to"):
        supervisor(state, {"merge": lambda _: None, "capture": waits}).run()


def test_a_node_that_does_not_end_is_an_error(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "END_WITHIN_S", 0.2)
    release = threading.Event()

    def deaf(_: Stop) -> None:
        release.wait()

    ran = supervisor(state, {"merge": deaf})
    with pytest.raises(UnexpectedError, match="did not end"):
        ran.run(done=lambda: True)
    release.set()
    ran.threads["merge"].join()


def test_an_error_while_ending_is_no_failure(state: State) -> None:
    def fails_at_the_end(stop: Stop) -> None:
        stop.wait()
        raise SourceUnavailableError("closed under us")

    supervisor(state, {"capture": fails_at_the_end}).run(done=lambda: True)


def test_the_first_failure_counts(state: State) -> None:
    def second(stop: Stop) -> None:
        stop.wait()
        raise LogFencedError("second")

    def first(_: Stop) -> None:
        raise LogFencedError("first")

    with pytest.raises(LogFencedError, match="first"):
        supervisor(state, {"capture": second, "merge": first}).run()


@pytest.mark.parametrize("raised", [LogFencedError("no way"), ValueError("hunter2"), SystemExit(0), None])
@pytest.mark.parametrize("node", sorted(daemon.BESIDE))
def test_whatever_happens_to_a_node_that_looks_on_the_pipeline_goes_on(
    state: State, node: NodeName, raised: BaseException | None
) -> None:
    stop, starts = Stop(), 0

    def fails(_: Stop) -> None:
        nonlocal starts
        starts += 1
        if starts == 5:
            stop.set()
        if raised:
            raise raised

    supervisor(state, {"capture": waits, node: fails}, stop).run()
    assert starts == 5
    errors = state.errors()
    assert {e["node"] for e in errors} == {node}
    assert "hunter2" not in str(errors)
    assert len(list(state.folder.glob("crash-*"))) <= daemon.RECORDED


def test_a_node_that_looks_on_and_does_not_end_holds_nobody_up(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "BESIDE_END_WITHIN_S", 0.2)
    release = threading.Event()

    def deaf(_: Stop) -> None:
        release.wait()

    began = time.monotonic()
    ran = supervisor(state, {"capture": waits, "alerts": deaf})
    ran.run(done=lambda: True)
    assert time.monotonic() - began < 5
    release.set()
    ran.threads["alerts"].join()
