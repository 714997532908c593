"""Words to systemd, where it started us (`Type=notify`, `WatchdogSec=`): datagrams to the socket that it names."""

from __future__ import annotations

import contextlib
import os
import socket


def _tell(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # A service that nobody listens to goes on.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        s.sendto(message.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def ready(status: str) -> None:
    """Started; `status` is shown by systemctl."""
    _tell(f"READY=1\nSTATUS={status}")


def alive() -> None:
    """For the watchdog."""
    _tell("WATCHDOG=1")


def stopping() -> None:
    """Told to end."""
    _tell("STOPPING=1")
