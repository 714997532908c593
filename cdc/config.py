"""The pipeline file: what may stand in it, its defaults, and the way from a reference to a secret.

Unknown keys are errors that name the nearest known one. A password never stands in the file: `env:NAME` or `file:/path` does.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cdc.errors import ConfigError
from cdc.names import TableName, encode

Mode = Literal["upsert", "append"]
Tls = Literal["verify-identity", "verify-ca", "disabled"]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def _duration(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError("write a number and a unit: 200ms, 5s, 10m, 1h, 1d")


def _size(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB)", value.strip())):
        return int(match[1]) * _SIZES[match[2]]
    raise ValueError("write a number and a unit: 512KiB, 8MiB, 1GiB")


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds; in the file a number with a unit: 200ms, 5s, 10m."""
Size = Annotated[int, BeforeValidator(_size)]
"""Bytes; in the file a number with a unit: 8MiB."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


class SourceConfig(_Model):
    """`source:`"""

    url: str
    """`mysql://user@host:3306`, without a password."""
    password: str = ""
    """`env:NAME` or `file:/path`."""
    tls: Tls | None = None
    """Default: `verify-identity`, on loopback `disabled`."""
    tls_ca: Path | None = None
    """PEM file; default: the system's authorities."""
    insecure: bool = False
    """Allow plaintext to a host that is not loopback."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("mysql", "mariadb") or not parts.hostname or not parts.username:
            raise ValueError("write mysql://user@host:3306")
        if parts.password is not None:
            raise ValueError("the URL holds a password: write `password: env:NAME` or `password: file:/path` instead")
        if parts.scheme == "mariadb":
            raise ValueError("MariaDB is not supported by this version")
        return url

    @model_validator(mode="after")
    def _check_plaintext(self) -> SourceConfig:
        if self.tls == "disabled" and self.host not in LOOPBACK and not self.insecure:
            raise ValueError(
                "tls: disabled sends everything in plain text to another host; write `insecure: true` to allow that"
            )
        return self

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 3306

    @property
    def user(self) -> str:
        return unquote(urlsplit(self.url).username or "")

    @property
    def tls_mode(self) -> Tls:
        """`tls`, its default applied."""
        return self.tls or ("disabled" if self.host in LOOPBACK else "verify-identity")

    def secret(self) -> SecretStr:
        """The password. Raises `ConfigError`."""
        return SecretStr(read_secret(self.password, "source.password") if self.password else "")


class TableConfig(_Model):
    """One entry of `tables:`, a name or pattern alone being short for `{name: …}`."""

    name: str
    """`schema.table`; `*` and `?` make it a pattern."""
    mode: Mode = "upsert"
    types: dict[str, Literal["boolean", "string"]] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        try:
            TableName.parse(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name

    @property
    def table(self) -> TableName:
        """The table, or the two halves of the pattern."""
        return TableName.parse(self.name)

    @property
    def is_pattern(self) -> bool:
        """Whether it may match more than one table."""
        return any(c in part for part in self.table for c in "*?")


class CaptureConfig(_Model):
    """`capture:`"""

    linger: Duration = 0.2
    """An epoch is written at the latest this long after its first transaction."""
    epoch_size: Size = 8 * 1024**2
    """… or once its transactions have this size in the binary log."""
    idle: Duration = 1.0
    """How often an epoch without rows may be written, when only the position moved."""
    look_back: Duration = 3.0
    """How often the newest commit record is looked at."""
    heartbeat: Duration = 1.0
    """What the server is asked to send when it has nothing else."""
    checkpoint_epochs: int = Field(default=1000, ge=1)
    """How often a commit record restates every table."""


class MergeConfig(_Model):
    """`merge:`"""

    every: Duration = 5.0
    """A round begins this long after the one before began, if there is anything to do."""
    file_size: Size = 64 * 1024**2
    """Data files are closed at about this size."""
    keep: Duration = 3600.0
    """Applied epochs stay in the log this long."""


class SnapshotConfig(_Model):
    """`snapshot:`"""

    chunk_rows: int = Field(default=50_000, ge=1)
    readers: int = Field(default=2, ge=1, le=64)


class TraceConfig(_Model):
    """`trace:`, the URL alone being short for `{url: …}`."""

    url: str
    """`chdb:///folder` or `clickhouse://user@host:8123/database`."""
    password: str = ""
    every: Duration = 60.0


class PipelineConfig(_Model):
    """The whole file. `path` is where it was read from."""

    name: str
    source: SourceConfig
    log: str
    lake: str
    trace: TraceConfig | None = None
    state: Path
    capture: CaptureConfig = CaptureConfig()
    merge: MergeConfig = MergeConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    tables: tuple[TableConfig, ...] = ()
    log_options: dict[str, str] = Field(default_factory=dict)
    path: Path = Path("lakesync.yaml")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name or len(encode(name)) > 64:
            raise ValueError("a pipeline's name has 1 to 64 characters")
        return name

    @field_validator("trace", mode="before")
    @classmethod
    def _short_trace(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("tables", mode="before")
    @classmethod
    def _short_tables(cls, value: Any) -> Any:
        entries = value or []
        return (
            tuple({"name": e} if isinstance(e, str) else e for e in entries)
            if isinstance(entries, list | tuple)
            else value
        )

    @property
    def lake_root(self) -> Path:
        """The lake's folder. Raises `ConfigError` for an object store, which this version does not write."""
        if "://" in self.lake and not self.lake.startswith("file://"):
            raise ConfigError(
                "object stores are not supported by this version", where=f"lake: {self.lake}", hint="use a local folder"
            )
        return Path(self.lake.removeprefix("file://"))


def load(path: Path) -> PipelineConfig:
    """Read, complete and check a pipeline file. Relative folders are relative to it. Raises `ConfigError`."""
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            hint="`lakesync init` writes one; `-c FILE` names another",
        ) from error
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not YAML: {getattr(error, 'problem', None) or error}", where=where) from error
    if not isinstance(data, dict):
        raise ConfigError("not a pipeline file: the top level is not a mapping", where=str(path))
    base = path.resolve().parent
    data = {**data, "path": path.resolve()}
    data.setdefault("state", ".lakesync")
    data["state"] = (base / Path(str(data["state"])).expanduser()).resolve()
    lake = data.get("lake")
    if isinstance(lake, str) and "://" not in lake:
        data["lake"] = str((base / Path(lake).expanduser()).resolve())
    data.setdefault("log", f"sqlite:///{data['state']}/log.db")
    data.setdefault("trace", f"chdb:///{data['state']}/trace")
    try:
        return PipelineConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors()), where=str(path)) from error


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1, 0.5)
        return f"unknown key `{where}`" + (
            f", did you mean `{near[0]}`?" if near else f"; known here: {', '.join(known)}"
        )
    if error["type"] == "missing":
        return f"`{where}` is missing"
    return f"`{where}`: {error['msg'].removeprefix('Value error, ')}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    models: dict[str, type[_Model]] = {
        "source": SourceConfig,
        "capture": CaptureConfig,
        "merge": MergeConfig,
        "snapshot": SnapshotConfig,
        "trace": TraceConfig,
        "tables": TableConfig,
    }
    model = models.get(str(location[0]), PipelineConfig) if location else PipelineConfig
    return sorted(set(model.model_fields) - {"path"})
