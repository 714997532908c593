"""Writing and editing pipeline files: comments are kept, a file is replaced whole or not at all, and only by one that loads."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from cdc import config as configuration
from cdc.config import SHARD_COLUMN, PipelineConfig, TableConfig
from cdc.errors import ConfigError, StateError
from cdc.names import TableName

_TEMPLATE = """\
# A lakesync pipeline: one source server, one log, one lake, a set of tables. Relative folders are relative to this file.
name: {name}
source:
  url: {url}
{password}{tls}{log}lake: {lake}
{lake_options}{trace}state: {state}      # lakesync's own folder, 0700

# capture:
#   linger: 200ms         # an epoch is written at the latest this long after its first transaction
# merge:
#   every: 5s             # how often the lake's tables are brought up to date
# snapshot:
#   readers: 2            # connections that read a new table at once

# `lakesync add shop.orders` writes here; so may you:
#   - shop.orders
#   - {{name: shop.users, types: {{is_admin: boolean}}}}
#   - {{name: "shop.log_*", mode: append}}                    # every change is a row; `backfill: true`: and what is there already
#   - {{name: shop.prices, mode: history}}                    # every version of a row stays; `soft-delete`: deleted rows do
#   - {{name: shop.visits, partition_by: [month(created_at)], change_feed: true}}
#   - {{name: "shop_*.orders_*", into: shop.orders}}          # shards that land in one table
tables: []
"""


_LAKE_OPTIONS = """\
# lake_options:           # without: AWS_… of the environment, or the role of the machine
#   region: eu-central-1
#   endpoint: https://minio.example:9000      # of a store that is not AWS
#   access_key_id: env:LAKE_KEY_ID
#   secret_access_key: env:LAKE_SECRET        # or file:/path, mode 0600
"""


def create(
    path: Path,
    source: str,
    *,
    lake: str,
    lake_options: Mapping[str, str] | None = None,
    name: str | None = None,
    log: str | None = None,
    trace: str | None = None,
    state: str = ".lakesync",
    password: str | None = None,
    tls_ca: str | None = None,
) -> PipelineConfig:
    """Write a commented pipeline file. A password in the URL goes to a file of its own in the state folder (0600).

    Raises `ConfigError` if the file is there already or if what is given makes no pipeline; then nothing is written.
    """
    if path.exists():
        raise ConfigError(
            "the pipeline file is there already", where=str(path), hint="name another one by -c, or edit this one"
        )
    base = path.resolve().parent
    url, secret = _split(source)
    if secret is not None and password is not None:
        raise ConfigError("two passwords: one in the URL and --password", where="--source", hint="leave one out")
    secret_file = configuration.resolve_folder(base, state) / "source-password"
    if secret is not None:
        password = f"file:{_relative(secret_file, base)}"
    scalar = _Scalar()
    text = _TEMPLATE.format(
        name=scalar(name or _name(path)),
        url=scalar(url),
        password=(
            f"  password: {scalar(password)}\n"
            if password
            else "  # password: env:SHOP_DB_PASSWORD      # or file:/path, mode 0600\n"
        ),
        tls=f"  tls_ca: {scalar(tls_ca)}\n" if tls_ca else "",
        log=(
            f"log: {scalar(log)}\n"
            if log
            else "# log: kafka://broker1:9092,broker2:9092      # default: embedded, in the state folder\n"
        ),
        lake=scalar(lake),
        lake_options=_lake_options(lake, lake_options or {}),
        trace=(
            f"trace: {scalar(trace)}\n"
            if trace
            else "# trace: clickhouse://user@host:8123/database      # default: chDB, in the state folder\n"
        ),
        state=scalar(state),
    )
    made = _check(text, path)
    try:
        if secret is not None:
            made.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.state.chmod(0o700)
            descriptor = os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(secret + "\n")
        base.mkdir(parents=True, exist_ok=True)
        _replace(path, text, mode=0o644)
    except OSError as error:
        raise StateError(f"cannot be written: {error.strerror}", where=str(error.filename or path)) from error
    return made


def _lake_options(lake: str, options: Mapping[str, str]) -> str:
    scalar = _Scalar()
    if options:
        return "lake_options:\n" + "".join(f"  {scalar(key)}: {scalar(value)}\n" for key, value in options.items())
    return _LAKE_OPTIONS if lake.startswith("s3://") else ""


def add(path: Path, entries: Sequence[TableConfig]) -> PipelineConfig:
    """Add entries to `tables:`. Raises `ConfigError` for one that is there already, or if the file would not load."""

    def change(tables: CommentedSeq, config: PipelineConfig) -> None:
        there = {entry.table for entry in config.tables}
        for entry in entries:
            if entry.table in there:
                raise ConfigError(
                    f"{entry.name} is there already", where=str(path), hint="edit its entry, or remove it first"
                )
            tables.append(_entry(entry))

    return _edit(path, change)


def remove(path: Path, tables: Sequence[TableName]) -> PipelineConfig:
    """Take the entries of these tables, or patterns, out of `tables:`; of a table that shards land in, all entries that are `into` it.

    Raises `ConfigError` for one that has no entry of its own.
    """

    def change(entries: CommentedSeq, config: PipelineConfig) -> None:
        for table in tables:
            out = [e for e in config.tables if e.target == table] or [e for e in config.tables if e.table == table]
            if out:
                names = {e.table for e in out}
                for index in reversed(range(len(entries))):
                    if TableName.parse(_name_of(entries[index])) in names:
                        del entries[index]
                config = config.model_copy(update={"tables": tuple(e for e in config.tables if e not in out)})
            elif entry := config.entry(table):
                raise ConfigError(
                    f"{table} has no entry of its own: the pattern {entry.name} matches it",
                    where=str(path),
                    hint=f"`lakesync remove '{entry.name}'`, then add those of its tables that you want",
                )
            else:
                listed = ", ".join(e.name for e in config.tables) or "no table"
                raise ConfigError(f"{table} is not there", where=str(path), hint=f"the file lists {listed}")

    return _edit(path, change)


def _edit(path: Path, change: Callable[[CommentedSeq, PipelineConfig], None]) -> PipelineConfig:
    with _alone(path):
        config = configuration.load(path)
        text = path.read_text()
        yaml = _yaml(text)
        data: Any = yaml.load(text)
        entries = data.get("tables")
        if not entries:
            fresh = CommentedSeq()
            if isinstance(entries, CommentedSeq) and entries.ca.comment:
                fresh.ca.comment = entries.ca.comment
            data["tables"] = entries = fresh
        entries.fa.set_block_style()
        change(entries, config)
        if not entries:
            entries.fa.set_flow_style()
        out = StringIO()
        yaml.dump(data, out)
        made = _check(out.getvalue(), path)
        try:
            _replace(path, out.getvalue(), stat.S_IMODE(path.stat().st_mode))
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", where=str(path)) from error
        return made


def _yaml(text: str) -> YAML:
    """Writes lists indented as the file does."""
    found = re.search(r"^tables:[^\n]*\n(?:[ \t]*(?:#[^\n]*)?\n)*( *)- ", text, re.MULTILINE)
    offset = len(found[1]) if found else 2
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    return yaml


def _name_of(entry: Any) -> str:
    return str(entry["name"] if isinstance(entry, dict) else entry)


def _entry(entry: TableConfig) -> Any:
    given: dict[str, Any] = {}
    if entry.mode != "upsert":
        given["mode"] = entry.mode
    if entry.types:
        given["types"] = CommentedMap(entry.types)
        given["types"].fa.set_flow_style()
    if entry.exclude:
        given["exclude"] = CommentedSeq(entry.exclude)
        given["exclude"].fa.set_flow_style()
    if entry.backfill:
        given["backfill"] = True
    if entry.partition_by:
        given["partition_by"] = CommentedSeq(entry.partition_by)
        given["partition_by"].fa.set_flow_style()
    if entry.change_feed:
        given["change_feed"] = True
    if entry.into is not None:
        given["into"] = entry.into
        if entry.shard_column != SHARD_COLUMN:
            given["shard_column"] = entry.shard_column
    if entry.from_position is not None:
        given["from_position"] = entry.from_position
    if not given:
        return entry.name
    made = CommentedMap({"name": entry.name} | given)
    made.fa.set_flow_style()
    return made


def _check(text: str, path: Path) -> PipelineConfig:
    return configuration.parse(YAML(typ="safe", pure=True).load(text), path.resolve())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One editor at a time: the file itself is replaced, so its folder is what is locked."""
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), hint="`lakesync init` writes one"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str, mode: int) -> None:
    target = path.resolve()
    descriptor, temporary = tempfile.mkstemp(".part", f".{target.name}.", target.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _split(source: str) -> tuple[str, str | None]:
    """The URL without its password, and the password."""
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("not a URL", where="--source", hint="write mysql://user@host:3306") from None
    if not parts.username or not host:
        raise ConfigError("no user or no host", where="--source", hint="write mysql://user@host:3306")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(
            "a source is a server, not a database",
            where="--source",
            hint="write mysql://user@host:3306, then `lakesync add`",
        )
    shown = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{parts.username}@{shown}:{port or 3306}"
    return url, unquote(parts.password) if parts.password is not None else None


def _name(path: Path) -> str:
    """The pipeline's name, if none is given: that of its file, or of the folder if the file has the usual name."""
    return (path.resolve().parent.name if path.stem == "lakesync" else path.stem) or "lakesync"


def _relative(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


class _Scalar:
    """A text as YAML writes it, quoted where it must be."""

    def __init__(self) -> None:
        self._yaml = YAML(typ="rt", pure=True)
        self._yaml.width = 4096

    def __call__(self, text: str) -> str:
        out = StringIO()
        self._yaml.dump({"x": text}, out)
        return out.getvalue().removeprefix("x: ").rstrip("\n")
