"""Logs: structured, one event a line, to standard error; counts and positions, never row values or secrets.

A part takes its logger by `logger(node)` and names the event in a few lower-case words joined by hyphens:

    LOG = logger("capture")
    LOG.info("epoch-written", epoch=12, rows=345)

Events go through the standard library's `logging`, under `lakesync.<node>`: nothing is printed unless `configure` was called (the
command line does) or the program that imports `cdc` has handlers of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["logfmt", "json"]
Level = Literal["debug", "info", "warning", "error"]
_ROOT = "lakesync"
_FIRST = ("at", "level", "node", "event")

logging.getLogger(_ROOT).addHandler(logging.NullHandler())


def _level(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
    return {"level": {"warn": "warning", "exception": "error"}.get(method, method), **event}


_MARK: tuple[Processor, ...] = (_level, structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"))


def logger(node: str) -> structlog.stdlib.BoundLogger:
    """The logger of a node or part. Its methods take the event's name and keyword arguments of plain types."""
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(f"{_ROOT}.{node}"),
            processors=[
                structlog.stdlib.filter_by_level,
                *_MARK,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=False,
            node=node,
        ),
    )


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is now: a progress bar puts something of its own there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        raise AttributeError


def _ordered(_: WrappedLogger, __: str, event: EventDict) -> Mapping[str, object]:
    return {k: event[k] for k in _FIRST if k in event} | {k: v for k, v in event.items() if k not in _FIRST}


def _foreign(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {**event, "node": event["_record"].name} if "_record" in event else event


def configure(form: Format = "logfmt", level: Level = "info") -> None:
    """Print events from `level` on, as `form`, to standard error; other libraries' warnings too. Replaces earlier settings."""
    render: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=None, bool_as_flag=False)
    )
    handler = _Stderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _plain, _ordered, render],
            foreign_pre_chain=[*_MARK, _foreign],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Stderr)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger(_ROOT).setLevel(level.upper())


def _plain(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Names that a format cannot hold, and values of other types, as text; an exception's text is left out: it may hold a value."""
    event.pop("exc_info", None)
    return {k.replace(" ", "_"): v if isinstance(v, bool | int | float) else str(v) for k, v in event.items()}
