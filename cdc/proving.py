"""`reconcile:`, `alerts:` and `metrics:` of the pipeline file: which checks run by themselves, who is told, what can be scraped."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, field_validator, model_validator

from cdc.errors import ConfigError
from cdc.schedule import ScheduleText
from cdc.units import LOOPBACK, Duration, Model, not_zero, read_secret

_SECRET_HEADER = re.compile(r"auth|token|secret|key|cookie|password|signature", re.IGNORECASE)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REFERENCE = re.compile(r"(env|file):.")


def _share(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())):
        share = float(match[1]) / 100
        if 0 < share <= 1:
            return share
    raise ValueError("write a percentage, more than 0% and at most 100%: 1%, 0.5%")


Share = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(lambda share: f"{share * 100:g}%", return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?\s*%$"}),
]
"""A part of one; in the file a percentage."""


class ReconcileConfig(Model):
    """`reconcile:`, the checks that a daemon does by itself. A schedule is `every 5m`, or the five fields of cron."""

    ledger: ScheduleText | None = None
    """When the ledger is closed; null: only when it is asked for."""
    values: ScheduleText | None = None
    """When values are compared; null: only when it is asked for."""
    sample: Share | None = None
    """Of each table so much is compared at a time, another part every time, so that 100 runs of 1% see everything; null: all of it."""
    rows_per_second: int | None = Field(default=None, ge=1)
    """Values are read from the source no faster than this; null: as fast as `snapshot.throttle` lets them."""
    repair: bool = False
    """What differs is read again at once, by the same windows that `lakesync snapshot` uses, and compared once more."""
    keep: Duration = 90 * 86400.0
    """Results stay this long. What differs and is not put right stays anyway."""
    timeout: Duration = 12 * 3600.0
    """A check that takes longer is ended, and has failed."""
    timezone: str | None = None
    """Of cron's fields, `Europe/Berlin`; default: this machine's."""

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                ZoneInfo(name)
            return name
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no such time zone is known here; write one like Europe/Berlin, or UTC") from None

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, value: float) -> float:
        return not_zero(value)

    @model_validator(mode="after")
    def _check_repair(self) -> ReconcileConfig:
        if self.values is None and (self.repair or self.sample is not None):
            raise ValueError("repair: and sample: go with a schedule for `values:`")
        return self


class WebhookConfig(Model):
    """A URL that JSON is posted to; it alone is short for `{url: …}`."""

    url: str = Field(repr=False)
    """`https://…`, on loopback also `http://…`; `env:NAME` or `file:/path` where the URL itself is a secret."""
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    """What is sent along; secrets as `env:NAME` or `file:/path`."""
    timeout: Duration = 10.0
    """For one attempt."""
    insecure: bool = False
    """Allow plaintext to a host that is not loopback."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, value: float) -> float:
        return not_zero(value)

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header")
            if _SECRET_HEADER.search(name) and not _REFERENCE.match(value):
                raise ValueError(f"{name} holds a secret: write env:NAME or file:/path instead")
            if not value.isprintable():
                raise ValueError(f"{name}: a header is one line of printable text")
        return headers

    @model_validator(mode="after")
    def _check_url(self) -> WebhookConfig:
        if not _REFERENCE.match(self.url):
            checked_url(self.url, self.insecure)
        return self

    def target(self, where: str) -> tuple[str, dict[str, str]]:
        """The URL and the headers, secrets resolved. Raises `ConfigError`, which never shows them."""
        url = self.url
        if _REFERENCE.match(url):
            try:
                url = checked_url(read_secret(url, f"{where}.url"), self.insecure)
            except ValueError as error:
                raise ConfigError(str(error), where=f"{where}.url") from None
        headers = {
            name: read_secret(value, f"{where}.headers.{name}") if _REFERENCE.match(value) else value
            for name, value in self.headers.items()
        }
        return url, headers

    def shown(self) -> str:
        """Where it goes, for messages: without path and query, which may be secret."""
        if _REFERENCE.match(self.url):
            return self.url
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def checked_url(url: str, insecure: bool) -> str:
    """A URL that may be posted to. Raises `ValueError`, without the URL in it."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        port, host = 0, None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError("write https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL holds a login: write `headers: {Authorization: env:NAME}` instead")
    if parts.scheme == "http" and not is_loopback(host) and not insecure:
        raise ValueError(
            "http:// sends everything in plain text to another host; write https://, or `insecure: true` beside it"
        )
    return url


class CommandConfig(Model):
    """A program that is started, with JSON on its standard input; the list alone is short for `{run: […]}`."""

    run: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments, as they are: there is no shell. It starts in the pipeline file's folder."""
    timeout: Duration = 30.0
    """After this it is killed, and has failed."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("write a list, the program and each of its arguments: [/usr/bin/page, --team, data]")
        return {"run": value} if isinstance(value, list | tuple) else value

    @field_validator("run")
    @classmethod
    def _check_run(cls, run: tuple[str, ...]) -> tuple[str, ...]:
        if not run[0] or any("\0" in part for part in run):
            raise ValueError("write a list, the program and each of its arguments: [/usr/bin/page, --team, data]")
        return run

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, value: float) -> float:
        return not_zero(value)


class AlertsConfig(Model):
    """`alerts:`, who is told when something differs, is late, or stays unresolved, and when it is over."""

    webhook: WebhookConfig | None = None
    """A URL that each alert is posted to."""
    command: CommandConfig | None = None
    """A program that is started for each alert, with it on standard input."""
    repeat: Duration = 4 * 3600.0
    """An alert that goes on is sent again this often."""
    late: Duration = 3600.0
    """A scheduled check is late this long after its time, if it has not ended by then."""
    lag: Duration | None = None
    """A table is late once the lake is behind the source by more than this; null: however far it is."""

    @field_validator("repeat", "late", "lag")
    @classmethod
    def _check_pause(cls, value: float | None) -> float | None:
        return None if value is None else not_zero(value)


class MetricsConfig(Model):
    """`metrics:`, an address that Prometheus scrapes; `127.0.0.1:9464` alone is short for `{listen: …}`."""

    listen: str
    """`host:port`; the host is an address of this machine."""
    insecure: bool = False
    """Allow an address that is not loopback: whoever reaches it reads names of tables, lags and counts."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"listen": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_listen(self) -> MetricsConfig:
        host, port = self.address
        if not host or not 0 <= port <= 65535:
            raise ValueError("write host:port, 127.0.0.1:9464")
        if not is_loopback(host) and not self.insecure:
            raise ValueError(f"{host} can be reached by others; write 127.0.0.1, or `insecure: true` beside it")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; the host empty if it is none."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port) if port.isdecimal() and len(port) < 6 else -1


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, by its name or address alone: nothing is resolved."""
    try:
        return host in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
