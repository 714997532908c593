"""The log: epochs, each visible whole or not at all, between capture and the merger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from cdc.errors import ConfigError
from cdc.log.base import RECORD_LIMIT, RECORD_MAXIMUM, Log, LogWriter, Seal

__all__ = ["RECORD_LIMIT", "RECORD_MAXIMUM", "Log", "LogWriter", "Seal", "open_log"]

FORMS = "sqlite:///absolute/path.db or kafka://host:9092,host:9092?option=value"


def open_log(url: str, pipeline: str, options: Mapping[str, str] | None = None) -> Log:
    """The log at `url` of the pipeline `pipeline`.

    `sqlite:///absolute/path.db`: the file and its folder are made where missing. `kafka://host:port,host:port?option=value`: the
    query and `options` (which win, and hold what is secret) are librdkafka's; nothing is connected yet. Raises `ConfigError` for any other URL or
    an option that is not for users to set, and what the log raises on opening.
    """
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.strip("/") or parts.path.startswith("//") or parts.query or parts.fragment:
            raise ConfigError("not the URL of an embedded log", where=shown, hint=f"write {FORMS}")
        if options:
            raise ConfigError(
                "the embedded log has no options", where=shown, hint=f"leave out {', '.join(sorted(options))}"
            )
        from cdc.log.sqlite import SqliteLog

        return SqliteLog(Path(unquote(parts.path)), pipeline)
    if parts.scheme == "kafka":
        if not parts.netloc or "@" in parts.netloc or parts.path.strip("/") or parts.fragment:
            raise ConfigError(
                "not the URL of a Kafka log",
                where=shown,
                hint=f"write {FORMS}; user and password are the options sasl.username and sasl.password",
            )
        try:
            from cdc.log.kafka import KafkaLog
        except ImportError as error:
            if error.name is None or not error.name.startswith("confluent_kafka"):
                raise
            raise ConfigError(
                "the Kafka client is not installed",
                where=shown,
                hint="pip install 'lakesync[kafka]', or use the embedded log",
            ) from None
        return KafkaLog(
            parts.netloc, pipeline, {**dict(parse_qsl(parts.query, keep_blank_values=True)), **(options or {})}
        )
    raise ConfigError(f"unknown kind of log {parts.scheme!r}", where=shown, hint=f"write {FORMS}")
