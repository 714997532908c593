"""Words to systemd."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cdc import sdnotify


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        sdnotify.ready("following as shop")
        sdnotify.alive()
        sdnotify.stopping()
        assert [systemd.recv(200) for _ in range(3)] == [
            b"READY=1\nSTATUS=following as shop",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "relative"])
def test_without_systemd_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    sdnotify.alive()
    monkeypatch.delenv("NOTIFY_SOCKET")
    sdnotify.alive()
