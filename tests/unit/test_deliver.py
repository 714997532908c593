"""Webhooks and commands: what arrives, what is tried again, and that nothing holds the sender up or leaks."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import orjson
import pytest

from cdc.errors import ConfigError, DeliveryError
from cdc.proving import CommandConfig, WebhookConfig
from reconcile.watch import deliver as module
from reconcile.watch.deliver import deliver, run_command
from tests.unit.webhooks import Hook, hook

PAYLOAD = {"version": 1, "key": "differs/values/shop.örders"}


@pytest.fixture
def received() -> Iterator[Hook]:
    with hook() as made:
        yield made


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.02)


def webhook(url: str, **more: object) -> WebhookConfig:
    return WebhookConfig.model_validate({"url": url, "timeout": "2s"} | more)


def test_it_arrives_once_as_json_with_the_secret_header(received: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "Bearer hunter2")
    deliver(webhook(received.url, headers={"Authorization": "env:TOKEN", "X-Team": "data"}), PAYLOAD)
    assert received.posts == [PAYLOAD]
    (headers,) = received.headers
    assert (headers["Authorization"], headers["X-Team"]) == ("Bearer hunter2", "data")
    assert headers["Content-Type"] == "application/json"


def test_what_may_pass_is_tried_again(received: Hook) -> None:
    received.answer = lambda n: (503, 429, 204)[n]
    deliver(webhook(received.url), PAYLOAD)
    assert len(received.posts) == 3


def test_attempts_have_an_end(received: Hook) -> None:
    received.answer = lambda _: 500
    with pytest.raises(DeliveryError, match="answered 500") as caught:
        deliver(webhook(received.url), PAYLOAD)
    assert len(received.posts) == module.ATTEMPTS
    assert caught.value.retryable


@pytest.mark.parametrize("status", [400, 401, 404, 302, 307])
def test_what_cannot_pass_is_not_tried_again_and_no_redirection_followed(received: Hook, status: int) -> None:
    received.answer = lambda _: status
    with pytest.raises(DeliveryError, match=f"answered {status}"):
        deliver(webhook(received.url), PAYLOAD)
    assert len(received.posts) == 1


def trickle(handler: BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.05)


def test_an_answer_that_never_ends_is_a_timeout(received: Hook) -> None:
    received.slow = trickle
    began = time.monotonic()
    with pytest.raises(DeliveryError, match=r"no answer within 0.4 s"):
        deliver(webhook(received.url, timeout="400ms"), PAYLOAD, attempts=2)
    assert time.monotonic() - began < 3
    assert len(received.posts) == 2


def test_a_host_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeliveryError, match=r"https://no-such-host\.invalid not reached") as caught:
        deliver(webhook("https://no-such-host.invalid/hunter2?token=hunter2"), PAYLOAD, attempts=1)
    assert "hunter2" not in str(caught.value)
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(DeliveryError, match="not reached: "):
            deliver(webhook(f"http://127.0.0.1:{bound.getsockname()[1]}/"), PAYLOAD, attempts=2)


def test_told_to_stop_it_does_not_wait_for_the_next_attempt(received: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 60)
    received.answer = lambda _: 500
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(DeliveryError):
        deliver(webhook(received.url), PAYLOAD, stop=stop)
    assert len(received.posts) == 1


def test_a_secret_that_is_not_there_is_an_error_of_the_file(received: Hook) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_TOKEN is not set"):
        deliver(webhook(received.url, headers={"Authorization": "env:NO_SUCH_TOKEN"}), PAYLOAD)
    assert received.posts == []


def test_a_proxy_of_the_environment_does_not_get_what_is_for_this_machine(
    received: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hook() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        deliver(webhook(received.url), PAYLOAD)
        assert proxy.posts == []
    assert received.posts == [PAYLOAD]


def command(*run: str, **more: object) -> CommandConfig:
    return CommandConfig.model_validate({"run": list(run), "timeout": "5s"} | more)


def test_a_program_gets_json_and_its_arguments_as_they_are(tmp_path: Path) -> None:
    program = "import sys, pathlib; pathlib.Path('got').write_text(sys.argv[1] + '|' + sys.stdin.read())"
    run_command(command(sys.executable, "-c", program, "$(touch x); `touch y` *"), PAYLOAD, folder=tmp_path)
    argument, _, body = (tmp_path / "got").read_text().partition("|")
    assert argument == "$(touch x); `touch y` *"
    assert orjson.loads(body) == PAYLOAD
    assert sorted(p.name for p in tmp_path.iterdir()) == ["got"]


def test_a_program_may_leave_its_input_unread() -> None:
    run_command(command("true"), {"text": "x" * 1_000_000})


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (("false",), "false ended with code 1"),
        (("/no/such/program",), "/no/such/program cannot be started: No such file"),
        (("/etc/passwd",), "/etc/passwd cannot be started: Permission denied"),
    ],
)
def test_a_program_that_fails_is_said_to(run: tuple[str, ...], what: str) -> None:
    with pytest.raises(DeliveryError, match=what):
        run_command(command(*run), PAYLOAD)


def test_a_program_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    script = tmp_path / "page"
    script.write_text("#!/bin/sh\nsleep 300 &\necho $! > child\nwait\n")
    script.chmod(0o700)
    began = time.monotonic()
    with pytest.raises(DeliveryError, match=r"did not end within 0\.5 s"):
        run_command(command("./page", timeout="500ms"), PAYLOAD, folder=tmp_path)
    assert time.monotonic() - began < 4
    deadline, child = time.monotonic() + 5, int((tmp_path / "child").read_text())
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
