"""What settings of the pipeline file are made of: durations and sizes with their unit, references to secrets, models that take no unknown key."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from cdc.errors import ConfigError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
LOGIN_IN_URL = "the URL holds a password: write `password: env:NAME` or `password: file:/path` instead"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def parse_duration(value: Any) -> Any:
    """Seconds of `200ms`, `5s`, `10m`, `1h`, `1d`. Raises `ValueError` for anything else."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError("write a number and a unit: 200ms, 5s, 10m, 1h, 1d")


def _size(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB)", value.strip())):
        return int(match[1]) * _SIZES[match[2]]
    raise ValueError("write a number and a unit: 512KiB, 8MiB, 1GiB")


def format_duration(seconds: float) -> str:
    """As the pipeline file writes it: 200ms, 5s, 10m."""
    for unit, factor in reversed(_UNITS.items()):
        if seconds >= factor and (number := round(seconds / factor, 6)) == int(number):
            return f"{int(number)}{unit}"
    return f"{seconds * 1000:g}ms"


def format_size(size: int) -> str:
    """As the pipeline file writes it: 512KiB, 8MiB."""
    unit, factor = next((u, f) for u, f in reversed(_SIZES.items()) if size % f == 0)
    return f"{size // factor}{unit}"


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|h|d)$"}),
]
"""Seconds; in the file a number with a unit: 200ms, 5s, 10m."""
Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+\s*(KiB|MiB|GiB)$"}),
]
"""Bytes; in the file a number with a unit: 8MiB."""


def not_zero(seconds: float) -> float:
    """For validators: a pause that is one. Raises `ValueError`."""
    if seconds <= 0:
        raise ValueError("must be longer than nothing")
    return seconds


class Model(BaseModel):
    """Of a part of the pipeline file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def read_secret(reference: str, where: str) -> str:
    """The secret behind `env:NAME` or `file:/path`. Raises `ConfigError` without ever showing what it found."""
    kind, _, rest = reference.partition(":")
    if kind == "env" and rest:
        if rest not in os.environ:
            raise ConfigError(
                f"environment variable {rest} is not set", where=where, hint=f"export {rest}=… and start again"
            )
        return os.environ[rest]
    if kind == "file" and rest:
        path = Path(rest)
        try:
            mode = path.stat().st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise ConfigError(f"{path} can be read by others", where=where, hint=f"chmod 600 {path}")
            return path.read_text().rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", where=where) from error
    raise ConfigError(
        "a secret is a reference, never the secret itself", where=where, hint="write env:NAME or file:/path"
    )


def check_reference(value: str) -> str:
    """For validators: a reference to a secret, or nothing. Raises `ValueError`."""
    if value and not re.match(r"(env|file):.", value):
        raise ValueError("a secret is a reference, never the secret itself: write env:NAME or file:/path")
    return value
