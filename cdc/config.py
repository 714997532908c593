"""The pipeline file: what may stand in it, and its defaults.

Unknown keys are errors that name the nearest known one. A password never stands in the file: `env:NAME` or `file:/path` does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cdc import partitioning
from cdc.errors import ConfigError
from cdc.names import TableName, encode
from cdc.position import GtidSet
from cdc.proving import AlertsConfig, MetricsConfig, ReconcileConfig
from cdc.ready import periods
from cdc.ready.settings import ReadyConfig
from cdc.roots import ObjectRoot, Root
from cdc.units import LOGIN_IN_URL, Duration, Model, Size, check_reference, format_size, not_zero
from cdc.units import LOOPBACK as LOOPBACK
from cdc.units import format_duration as format_duration
from cdc.units import read_secret as read_secret

Mode = Literal["upsert", "append", "soft-delete", "history"]
KEEPING: tuple[Mode, ...] = ("soft-delete", "history")
"""Modes whose tables have rows that the source has no more."""
HISTORY_COLUMNS = ("valid_from", "valid_to", "is_current")
"""Columns that mode `history` adds, besides those that begin with `_cdc_`."""
Tls = Literal["verify-identity", "verify-ca", "disabled"]
SHARD_COLUMN = "_cdc_shard"
"""What the column is called that says of which shard a row is, unless it is told."""
_SECRET_OPTION = re.compile(
    r"password|secret|session_token|(^|_)token$|customer_key|ssl\.key\.pem|oauthbearer\.config", re.IGNORECASE
)


class SourceConfig(Model):
    """`source:`"""

    url: str
    """`mysql://user@host:3306`, or `mariadb://…`; without a password."""
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
            raise ValueError("write mysql://user@host:3306 (or mariadb://)")
        if parts.password is not None:
            raise ValueError(LOGIN_IN_URL)
        return url

    @field_validator("password")
    @classmethod
    def _check_password(cls, value: str) -> str:
        return check_reference(value)

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


class TableConfig(Model):
    """One entry of `tables:`, a name or pattern alone being short for `{name: …}`."""

    name: str
    """`schema.table`; `*` and `?` make it a pattern."""
    mode: Mode = "upsert"
    """upsert: the lake's table is the source's; append: every change is a row; soft-delete: deleted rows stay, marked; history: every
    version of a row is a row."""
    types: dict[str, Literal["boolean", "string"]] = Field(default_factory=dict)
    """Columns that become another type than their own: TINYINT `boolean`, anything `string`."""
    exclude: tuple[str, ...] = ()
    """Columns that are left out; not those of the primary key."""
    backfill: bool = False
    """append: begin with the rows that are there, instead of with the first change."""
    partition_by: tuple[str, ...] = ()
    """Columns of the table, or `year(c)`, `month(c)`, `day(c)`, `hour(c)` of a date or time column. Each table of a pattern needs them."""
    change_feed: bool = False
    """Downstream readers get the table's changes from Delta's change data feed."""
    into: str | None = None
    """`schema.table`: the tables of this entry are shards, and land in this one together."""
    shard_column: str = SHARD_COLUMN
    """The column that says which shard a row is of, and is part of the key."""
    from_position: str | None = None
    """The lake has the table already, as of this GTID set (MariaDB: GTID list); it is taken over as it is."""
    ready: ReadyConfig | None = None
    """Who is told that a partition of time is complete; null: nobody."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        try:
            TableName.parse(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("into")
    @classmethod
    def _check_into(cls, into: str | None) -> str | None:
        if into is not None:
            cls._check_name(into)
            if any(c in into for c in "*?"):
                raise ValueError("one table, and no pattern: schema.table")
        return into

    @field_validator("from_position")
    @classmethod
    def _check_position(cls, text: str | None) -> str | None:
        if text is None:
            return None
        try:
            found = GtidSet.parse(text)
        except ValueError:
            raise ValueError("write a GTID set, uuid:1-5 (on MariaDB a list, 0-1-100)") from None
        if not found:
            raise ValueError("an empty GTID set is no position")
        return str(found)

    @field_validator("partition_by")
    @classmethod
    def _check_partition_by(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(term) for term in partitioning.parse_all(entries))

    @model_validator(mode="after")
    def _check_exclude(self) -> TableConfig:
        if len(set(self.exclude)) != len(self.exclude) or not all(self.exclude):
            raise ValueError("exclude: each column's name once")
        if both := sorted(set(self.exclude) & set(self.types)):
            raise ValueError(f"column {both[0]} stands in types: and in exclude:")
        for term in partitioning.parse_all(self.partition_by):
            if term.column in self.exclude:
                raise ValueError(f"column {term.column} stands in partition_by: and in exclude:")
        return self

    @model_validator(mode="after")
    def _check_ready(self) -> TableConfig:
        if self.ready is not None:
            periods.chosen(self.partition_by, self.ready.period)
        return self

    @model_validator(mode="after")
    def _check_together(self) -> TableConfig:
        if self.backfill and self.mode != "append":
            raise ValueError(
                "backfill: is for `mode: append`; every other table always begins with the rows that are there"
            )
        if self.into is None:
            if "shard_column" in self.model_fields_set:
                raise ValueError("shard_column: goes with `into:`")
        else:
            self._check_shards()
        if self.from_position is not None:
            for is_so, what in (
                (self.is_pattern, "a pattern"),
                (self.into is not None, "`into:`"),
                (self.mode != "upsert", f"`mode: {self.mode}`"),
                (bool(self.partition_by), "`partition_by:`"),
                (self.change_feed, "`change_feed:`"),
            ):
                if is_so:
                    raise ValueError(f"from_position: is for one table as it is, not with {what}")
        return self

    def _check_shards(self) -> None:
        if self.mode == "append":
            raise ValueError("into: is not for `mode: append`")
        if not self.shard_column:
            raise ValueError("shard_column: a column has a name")
        if self.shard_column.lower().startswith("_cdc_") and self.shard_column != SHARD_COLUMN:
            raise ValueError(f"shard_column: names that begin with _cdc_ are lakesync's own, but for {SHARD_COLUMN}")
        if self.mode == "history" and self.shard_column.lower() in HISTORY_COLUMNS:
            raise ValueError(f"shard_column: `mode: history` has a column {self.shard_column} of its own")
        if self.shard_column in self.exclude or self.shard_column in self.types:
            raise ValueError(f"shard_column: {self.shard_column} is no column of the shards")

    @property
    def table(self) -> TableName:
        """The table, or the two halves of the pattern."""
        return TableName.parse(self.name)

    @property
    def target(self) -> TableName | None:
        """The lake's table that the tables of this entry are shards of; None if each one is its own."""
        return TableName.parse(self.into) if self.into is not None else None

    @property
    def is_pattern(self) -> bool:
        """Whether it may match more than one table."""
        return any(c in part for part in self.table for c in "*?")

    def matches(self, table: TableName) -> bool:
        """Whether this entry names `table`; its case counts."""
        return all(
            re.fullmatch("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), name, re.DOTALL)
            for pattern, name in zip(self.table, table, strict=True)
        )


class CaptureConfig(Model):
    """`capture:`"""

    linger: Duration = 0.2
    """An epoch is written at the latest this long after its first transaction."""
    epoch_size: Size = 8 * 1024**2
    """… or once its transactions have this size in the binary log."""
    part_size: Size = 32 * 1024**2
    """A transaction whose row events are larger than this is written in parts, each an epoch."""
    idle: Duration = 1.0
    """How often an epoch without rows may be written, when only the position moved."""
    look_back: Duration = 3.0
    """How often the newest commit record is looked at."""
    heartbeat: Duration = 1.0
    """What the server is asked to send when it has nothing else."""
    checkpoint_epochs: int = Field(default=1000, ge=1)
    """How often a commit record restates every table."""

    @field_validator("idle", "look_back", "heartbeat")
    @classmethod
    def _check_pause(cls, value: float) -> float:
        return not_zero(value)


class MergeConfig(Model):
    """`merge:`"""

    every: Duration = 5.0
    """A round begins this long after the one before began, if there is anything to do."""
    file_size: Size = 64 * 1024**2
    """Data files are closed at about this size."""
    keep: Duration = 3600.0
    """Applied epochs stay in the log this long."""
    keep_files: Duration = 3600.0
    """Data files that a merge replaced stay this long, for readers of older versions."""
    keep_log: Duration = 2 * 86400.0
    """Versions of a lake table can be read this long, if their files are kept too; then their commits are deleted."""
    index_memory: Size = 192 * 1024**2
    """Of a table's key index so much at most is in memory before it is written to the state folder."""
    maintain: Duration = 1.0
    """Between its commits a merger tidies a table up (small files, deleted rows, the log) for at most about this long at a time."""

    @field_validator("every")
    @classmethod
    def _check_pause(cls, value: float) -> float:
        return not_zero(value)


class ThrottleConfig(Model):
    """`snapshot.throttle:`"""

    threads_running: int | None = Field(default=64, ge=1)
    """Reading pauses while the server's own Threads_running is above this; null: whatever it is."""
    replica_lag: Duration | None = None
    """… while a replica that is read from, or one of `replicas`, is further behind than this."""
    replicas: tuple[SourceConfig, ...] = ()
    """Replicas that are looked at for their lag."""
    every: Duration = 1.0
    """Between looks."""

    @field_validator("every")
    @classmethod
    def _check_pause(cls, value: float) -> float:
        return not_zero(value)


class SnapshotConfig(Model):
    """`snapshot:`"""

    chunk_rows: int = Field(default=1_000_000, ge=1)
    """Rows that one SELECT of a first reading reads at most; fewer if they fill a data file."""
    window_rows: int = Field(default=10_000, ge=1)
    """Rows that one windowed read reads at most. Changes wait while the rows of one are written to the log."""
    window_size: Size = 16 * 1024**2
    """… or about so many bytes of them."""
    readers: int = Field(default=2, ge=1, le=64)
    """Connections that read at once."""
    rows_per_second: int | None = Field(default=None, ge=1)
    """Over all readers; null: no limit."""
    bytes_per_second: Size | None = None
    """Over all readers, as Arrow holds the rows; null: no limit."""
    source: SourceConfig | None = None
    """A replica that rows are read from; it has to replicate from the server that is followed. Default: that server itself."""
    throttle: ThrottleConfig = ThrottleConfig()
    """When reading pauses."""


class TraceConfig(Model):
    """`trace:`, the URL alone being short for `{url: …}`."""

    url: str
    """`chdb:///folder` or `clickhouse://user@host:8123/database`."""
    password: str = ""
    """`env:NAME` or `file:/path`."""
    insecure: bool = False
    """Allow plaintext to a host that is not loopback."""
    every: Duration = 60.0
    """How often the counts are brought up to date where there is something new; up to ten times as long apart, so that it stays under 2 % of
    the pipeline's processor time. `lakesync reconcile` does it too."""
    keep: Duration = 90 * 86400.0
    """How long counts stay after they were made; each node's newest row of every table, with running totals, stays for good."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if urlsplit(url).password is not None:
            raise ValueError(LOGIN_IN_URL)
        return url

    @field_validator("password")
    @classmethod
    def _check_password(cls, value: str) -> str:
        return check_reference(value)

    @field_validator("every")
    @classmethod
    def _check_pause(cls, value: float) -> float:
        return not_zero(value)

    @field_validator("keep")
    @classmethod
    def _check_keep(cls, value: float) -> float:
        if value < 3600:
            raise ValueError("at least 1h: the ledger is closed by them")
        return value


class _Index(NamedTuple):
    tables: tuple[TableConfig, ...]
    exact: dict[TableName, TableConfig]
    patterns: list[TableConfig]
    targets: dict[TableName, TableConfig]


class PipelineConfig(Model):
    """The whole file. `path` is where it was read from, and no key of it."""

    name: str
    """Names the pipeline in the lake, the log's topics and the trace."""
    source: SourceConfig
    """The server that is followed."""
    log: str
    """`sqlite:///path.db` or `kafka://host:9092,host:9092`; default: log.db in the state folder."""
    log_options: dict[str, str] = Field(default_factory=dict)
    """librdkafka's settings; secrets as `env:NAME` or `file:/path`."""
    lake: str
    """The folder that tables land in, each at `<lake>/<schema>/<table>`; `s3://bucket/prefix` is one in an object store."""
    lake_options: dict[str, str] = Field(default_factory=dict)
    """The object store's settings (`endpoint`, `region`, `access_key_id`, `secret_access_key`, …); secrets as `env:NAME` or `file:/path`."""
    trace: TraceConfig | None = None
    """Where counts go; null: nowhere. Default: chDB in the state folder."""
    state: Path
    """The pipeline's own folder, mode 0700; default: .lakesync beside the pipeline file."""
    capture: CaptureConfig = CaptureConfig()
    """From the binary log to the log."""
    merge: MergeConfig = MergeConfig()
    """From the log to the lake."""
    snapshot: SnapshotConfig = SnapshotConfig()
    """The first reading of a table."""
    reconcile: ReconcileConfig | None = None
    """Checks that the daemon does by itself."""
    alerts: AlertsConfig | None = None
    """Who is told of what is wrong."""
    metrics: MetricsConfig | None = None
    """Where Prometheus finds its metrics."""
    tables: tuple[TableConfig, ...] = ()
    """What is followed; a table takes the first entry that names it, an exact name before a pattern."""
    path: Path = Path("lakesync.yaml")
    # Of the tables beside it, since a copy with other tables takes it along: names, and patterns. Every table is looked up every
    # half second, and there may be hundreds.
    _index: _Index | None = PrivateAttr(None)

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

    @field_validator("lake_options", mode="before")
    @classmethod
    def _texts(cls, options: Any) -> Any:
        """`true` and `30` without quotes are what they look like."""
        if not isinstance(options, dict):
            return options
        return {k: str(v).lower() if isinstance(v, bool | int) else v for k, v in options.items()}

    @field_validator("lake")
    @classmethod
    def _check_lake(cls, lake: str) -> str:
        scheme, found, rest = lake.partition("://")
        if not found or scheme == "file":
            return lake
        bucket, _, prefix = rest.rstrip("/").partition("/")
        if scheme != "s3":
            raise ValueError("a lake is a local folder or `s3://bucket/prefix`")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise ValueError("after `s3://` comes the bucket's name: 3 to 63 of a-z, 0-9, `.` and `-`")
        if any(part in ("", ".", "..") for part in prefix.split("/") if prefix) or re.search(
            r"[^\w/.=+@-]", prefix, re.A
        ):
            raise ValueError("the prefix behind the bucket is made of A-Z, a-z, 0-9, `_.=+@-`, and `/` between")
        return lake

    @model_validator(mode="after")
    def _check_lake_options(self) -> PipelineConfig:
        if self.lake_options and not self.lake.startswith("s3://"):
            raise ValueError("`lake_options` are for an object store, and `lake:` is none")
        given = {name.lower().removeprefix("aws_"): value for name, value in self.lake_options.items()}
        endpoint = given.get("endpoint", given.get("endpoint_url", ""))
        if endpoint.startswith("http://") and given.get("allow_http") != "true":
            raise ValueError(
                f"`lake_options`: {endpoint} is not encrypted: write https://, or `allow_http: true` beside it"
            )
        return self

    @field_validator("log_options", "lake_options")
    @classmethod
    def _check_options(cls, options: dict[str, str]) -> dict[str, str]:
        for key, value in options.items():
            if _SECRET_OPTION.search(key) and not value.startswith(("env:", "file:")):
                raise ValueError(f"`{key}` holds a secret: write env:NAME or file:/path instead")
        return options

    @field_validator("tables")
    @classmethod
    def _check_twice(cls, tables: tuple[TableConfig, ...]) -> tuple[TableConfig, ...]:
        seen: set[TableName] = set()
        for entry in tables:
            if entry.table in seen:
                raise ValueError(f"{entry.name} stands there twice")
            seen.add(entry.table)
        return tables

    @field_validator("tables")
    @classmethod
    def _check_shards(cls, tables: tuple[TableConfig, ...]) -> tuple[TableConfig, ...]:
        first: dict[TableName, TableConfig] = {}
        exact = {e.table: e for e in tables if not e.is_pattern}
        for entry in tables:
            if (target := entry.target) is None:
                continue
            if (named := exact.get(target)) and named.target != target:
                raise ValueError(f"into: {entry.into} (at {entry.name}) is a table of its own here, {named.name}")
            other = first.setdefault(target, entry)
            for key in ("mode", "types", "exclude", "partition_by", "change_feed", "shard_column", "ready"):
                if getattr(other, key) != getattr(entry, key):
                    raise ValueError(f"{other.name} and {entry.name} are into {entry.into}, with different {key}:")
        return tables

    def entry(self, table: TableName) -> TableConfig | None:
        """The entry that `table` takes: one that names it exactly, else the first pattern that matches it."""
        index = self._indexed()
        return index.exact.get(table) or next((e for e in index.patterns if e.matches(table)), None)

    def landing(self, table: TableName) -> TableConfig | None:
        """The entry that a table of the lake is of: the first one that is `into` it, else the one that the source's table takes."""
        if shards := self._indexed().targets.get(table):
            return shards
        own = self.entry(table)
        return own if own is not None and own.into is None else None

    def named(self) -> list[TableName]:
        """The lake's tables that the file names, in its order, each once: not those of patterns, which the server knows."""
        named = (e.target or e.table for e in self.tables if e.into is not None or not e.is_pattern)
        return list(dict.fromkeys(named))

    def _indexed(self) -> _Index:
        if self._index is None or self._index.tables is not self.tables:
            targets: dict[TableName, TableConfig] = {}
            for entry in self.tables:
                if (target := entry.target) is not None:
                    targets.setdefault(target, entry)
            self._index = _Index(
                self.tables,
                {e.table: e for e in self.tables if not e.is_pattern},
                [e for e in self.tables if e.is_pattern],
                targets,
            )
        return self._index

    def log_settings(self) -> dict[str, str]:
        """`log_options` with their secrets, for `open_log`. Raises `ConfigError`."""
        return {
            key: read_secret(value, f"log_options.{key}") if value.startswith(("env:", "file:")) else value
            for key, value in self.log_options.items()
        }

    @property
    def lake_root(self) -> Root:
        """The lake's folder, or where it is in an object store, secrets resolved. Raises `ConfigError` where there is none."""
        if not self.lake.startswith("s3://"):
            return Path(self.lake.removeprefix("file://"))
        options = {
            key: read_secret(value, f"lake_options.{key}") if value.startswith(("env:", "file:")) else value
            for key, value in self.lake_options.items()
        }
        return ObjectRoot(self.lake.rstrip("/"), tuple(sorted(options.items())))


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
        raise ConfigError(
            f"not YAML: {getattr(error, 'problem', None) or error}",
            where=where,
            hint="put it right; a daemon that runs keeps to the tables that it read before",
        ) from error
    if not isinstance(data, dict):
        raise ConfigError("not a pipeline file: the top level is not a mapping", where=str(path))
    return parse(data, path.resolve())


def parse(data: dict[str, Any], path: Path) -> PipelineConfig:
    """Complete and check what a pipeline file at `path` holds. Raises `ConfigError`."""
    if "path" in data:
        raise ConfigError(_unknown("path", "path", _known_keys(())), where=str(path))
    base = path.parent
    data = {**data, "path": path}
    data.setdefault("state", ".lakesync")
    data["state"] = resolve_folder(base, str(data["state"]))
    lake = data.get("lake")
    if isinstance(lake, str) and "://" not in lake:
        data["lake"] = str(resolve_folder(base, lake))
    # Folders of URLs are percent-encoded: a `?` or `#` in a folder's name is no query.
    folder = quote(str(data["state"]))
    data.setdefault("log", f"sqlite://{folder}/log.db")
    data.setdefault("trace", f"chdb://{folder}/trace")
    for part in ("source", "trace"):
        data[part] = _absolute_files(data.get(part), base)
    for part in ("log_options", "lake_options"):
        options = data.get(part)
        if isinstance(options, dict):
            data[part] = {k: _absolute_reference(v, base) for k, v in options.items()}
    data["alerts"] = _absolute_references(data.get("alerts"), base)
    if isinstance(tables := data.get("tables"), list | tuple):
        data["tables"] = [
            {**t, "ready": _absolute_references(t["ready"], base)} if isinstance(t, dict) and "ready" in t else t
            for t in tables
        ]
    try:
        return PipelineConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors()), where=str(path)) from error


def entry(data: dict[str, Any]) -> TableConfig:
    """One entry of `tables:`, checked. Raises `ConfigError`."""
    try:
        return TableConfig.model_validate(data)
    except ValidationError as error:
        what = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise ConfigError(what, where=str(data["name"])) from error


def resolve_folder(base: Path, folder: str) -> Path:
    """A folder or file as the pipeline file names it, beside which it is relative."""
    return (base / Path(folder).expanduser()).resolve()


def _absolute_reference(value: Any, base: Path) -> Any:
    kind, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    return f"file:{resolve_folder(base, rest)}" if kind == "file" and rest else value


def _absolute_references(part: Any, base: Path) -> Any:
    """The same of all that is in it."""
    if isinstance(part, dict):
        return {k: _absolute_references(v, base) for k, v in part.items()}
    return _absolute_reference(part, base)


def _absolute_files(part: Any, base: Path) -> Any:
    """`source:` or `trace:` with the files that it names relative to the pipeline file."""
    if not isinstance(part, dict):
        return part
    part = dict(part)
    if "password" in part:
        part["password"] = _absolute_reference(part["password"], base)
    if isinstance(part.get("tls_ca"), str):
        part["tls_ca"] = resolve_folder(base, part["tls_ca"])
    return part


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown(where, str(error["loc"][-1]), _known_keys(error["loc"][:-1]))
    if error["type"] == "missing":
        return f"`{where}` is missing"
    what = error["msg"].removeprefix("Value error, ")
    return f"`{where}`: {what}" if where else what  # of the whole file


def _unknown(where: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f"unknown key `{where}`" + (f", did you mean `{near[0]}`?" if near else f"; known here: {', '.join(known)}")


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[Model] = PipelineConfig
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return sorted({field.alias or name for name, field in model.model_fields.items()} - {"path"})


def _models(annotation: Any) -> Iterator[type[Model]]:
    """The models in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def json_schema() -> dict[str, Any]:
    """The pipeline file's JSON Schema, for editors."""
    schema = PipelineConfig.model_json_schema(mode="validation")
    del schema["properties"]["path"], schema["properties"]["trace"]["default"]
    schema["required"] = ["name", "source", "lake"]
    schema["properties"]["trace"]["anyOf"].insert(0, {"type": "string", "description": "the URL alone"})
    schema["properties"]["metrics"]["anyOf"].insert(0, {"type": "string", "description": "the address alone"})
    for name in ("AlertsConfig", "ReadyConfig"):
        told = schema["$defs"][name]["properties"]
        told["webhook"]["anyOf"].insert(0, {"type": "string", "description": "the URL alone"})
        told["command"]["anyOf"].insert(
            0, {"type": "array", "items": {"type": "string"}, "description": "the list alone"}
        )
    tables = schema["properties"]["tables"]
    tables["items"] = {"anyOf": [{"type": "string", "description": "the name alone"}, tables["items"]]}
    for part in (schema, *schema["$defs"].values()):
        part.pop("title")
        for holder in part["properties"].values():
            holder.pop("title", None)
            default = holder.get("default")
            if "KiB" in holder.get("pattern", "") and default is not None:
                holder["default"] = format_size(default)
            elif "pattern" in holder and default is not None:
                holder["default"] = format_duration(default)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lakesync pipeline file",
        **schema,
        "description": "One source server, one log, one lake, a set of tables.",
    }
