"""Telling someone outside: JSON to a webhook, or to a program's standard input. Each once; who calls says what a failure means.

Nothing here can hold its caller for longer than the time it was given: not a host that is not there, not a server that answers a byte at a
time, not a program that does not end. No answer is read but its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from cdc.errors import DeliveryError
from cdc.proving import CommandConfig, WebhookConfig, is_loopback

ATTEMPTS = 3
FIRST_PAUSE_S = 1.0
"""Before the second attempt; doubled before the third."""
_PASSING = (408, 425, 429)
"""Refusals that may be over soon; so are all of the server's own (5xx)."""


def deliver(
    webhook: WebhookConfig,
    payload: Mapping[str, Any],
    *,
    where: str = "alerts.webhook",
    attempts: int = ATTEMPTS,
    stop: threading.Event | None = None,
) -> None:
    """Post `payload`, as JSON, until it is taken (2xx), at most `attempts` times: what cannot pass is not tried again.

    Raises `DeliveryError`, which names the host and no more of the URL, and `ConfigError` for a secret that is not there.
    """
    url, headers = webhook.target(where)
    body, stop = orjson.dumps(payload), stop or threading.Event()
    for attempt in range(attempts):
        if attempt and stop.wait(FIRST_PAUSE_S * 2 ** (attempt - 1)):
            break
        try:
            status = asyncio.run(_post(url, headers, body, webhook.timeout))
        except TimeoutError:
            failure = f"no answer within {webhook.timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            failure = _described(error)
        else:
            if 200 <= status < 300:
                return
            failure = f"answered {status}"
            if 300 <= status < 400:
                raise _failed(webhook, where, f"{failure}, which is a redirection", "write the URL that it leads to")
            if status < 500 and status not in _PASSING:
                raise _failed(webhook, where, failure, "look at its URL and headers")
    raise _failed(webhook, where, failure, "it is tried again; look at the host and the network")


async def _post(url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> int:
    # A deadline for all of it: httpx's own are for each step, and there may be many.
    async with asyncio.timeout(timeout_s):
        # On loopback no proxy of the environment: it may be another host.
        async with (
            httpx.AsyncClient(timeout=timeout_s, trust_env=not is_loopback(urlsplit(url).hostname or "")) as client,
            client.stream(
                "POST",
                url,
                content=body,
                headers={"Content-Type": "application/json", "User-Agent": "lakesync", **headers},
            ) as response,
        ):
            return response.status_code


def _described(error: Exception) -> str:
    """Without the URL, which httpx likes to name."""
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"not reached: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return f"not reached: {type(error).__name__}"


def _failed(webhook: WebhookConfig, where: str, what: str, hint: str) -> DeliveryError:
    return DeliveryError(f"{webhook.shown()} {what}", where=where, hint=hint)


def run_command(
    command: CommandConfig, payload: Mapping[str, Any], *, folder: Path | None = None, where: str = "alerts.command"
) -> None:
    """Start a program in `folder` with `payload` as JSON on its standard input, and wait for its end. What it prints is thrown away; its
    standard error is the daemon's.

    Raises `DeliveryError` if it cannot be started, ends with another code than 0, or not in time: then it and what it started are killed.
    """
    name = command.run[0]
    try:
        child = subprocess.Popen(
            list(command.run),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise DeliveryError(
            f"{name} cannot be started: {error.strerror}",
            where=where,
            hint="a path, or a name in PATH; it must be executable",
        ) from error
    try:
        child.communicate(orjson.dumps(payload), timeout=command.timeout)
    except subprocess.TimeoutExpired as error:
        raise DeliveryError(
            f"{name} did not end within {command.timeout:g} s, and was killed",
            where=where,
            hint="give it more: timeout",
        ) from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode:
        raise DeliveryError(f"{name} ended with code {child.returncode}", where=where, hint="its own messages say why")
