"""Alerts: what is wrong is said once, again every so often while it lasts, and once more when it is over.

What is wrong has a stable key. All that was said is kept, so a restart says nothing twice, and what could not be said is said later; between
sending and keeping there is a moment in which a kill has it sent once more, with the same `key`, `since_us` and `times`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from cdc.config import PipelineConfig
from cdc.errors import LakesyncError
from cdc.journal import logger
from reconcile.database import Database
from reconcile.watch.deliver import deliver, run_command

__all__ = ["About", "Alert", "Alerts", "Sender", "deliver", "run_command"]

LOG = logger("alerts")
VERSION = 1
"""Of the JSON that is sent: keys are added within a version, never changed or taken away."""
RETRY_S = 10.0
"""Before what was not taken is sent again; doubled each time, up to `RETRY_MOST_S`."""
RETRY_MOST_S = 900.0
SLOW_S = 1.0
"""A channel that took longer than this to fail is left alone for `RETRY_S`, whatever else it is to be told: the other one waits meanwhile."""
Kind = Literal["differs", "late", "lag", "stopped"]
Channel = Literal["webhook", "command"]


@dataclass(frozen=True)
class About:
    """What is wrong: `summary` is a sentence, `hint` the way out. No row's values, and no keys: this leaves the machine."""

    kind: Kind
    summary: str
    hint: str = ""
    table: str | None = None
    check: str | None = None
    differences: int | None = None


@dataclass(frozen=True)
class Alert:
    """One, open or over but not yet said to be so. `failures`: by channel, why it was not taken the last time. Times are µs since 1970."""

    key: str
    about: About
    since_us: int
    over_us: int | None
    sent_us: int | None
    times: int
    failures: Mapping[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For `status --json`."""
        return {"key": self.key, "since_us": self.since_us, "over_us": self.over_us, "sent_us": self.sent_us} | {
            "times": self.times,
            "failures": dict(self.failures),
            **asdict(self.about),
        }


@dataclass(frozen=True)
class Due:
    """One that is to be sent by a channel. `times` it was before."""

    key: str
    channel: Channel
    about: About
    since_us: int
    over_us: int | None
    times: int
    attempts: int

    def payload(self, pipeline: str, at_us: int) -> dict[str, Any]:
        """What is sent (docs/operations.md). `text` is for chats, which show that alone."""
        state = "over" if self.over_us is not None else "repeat" if self.times else "open"
        mark = {"open": "", "repeat": "still: ", "over": "over: "}[state]
        return {
            "version": VERSION,
            "pipeline": pipeline,
            "key": self.key,
            "state": state,
            "text": f"lakesync {pipeline}: {mark}{self.about.summary}",
            "since_us": self.since_us,
            "over_us": self.over_us,
            "at_us": at_us,
            "times": self.times + 1,
            **asdict(self.about),
        }


class Alerts:
    """The store. `repeat_s`: how long after it was said what goes on is said again. Every method raises `StateError` where the file cannot be
    used."""

    def __init__(self, state: Path, repeat_s: float = 4 * 3600.0) -> None:
        self.database, self.repeat_us = Database(state), int(repeat_s * 1e6)

    def update(
        self,
        found: Mapping[str, About],
        known: Callable[[str], bool] = lambda _: True,
        *,
        passed: Mapping[str, About] | None = None,
        now_us: int | None = None,
    ) -> None:
        """What is wrong now, by key. What was and is not any more is over, if that is `known` of its key. `passed` was wrong since the last
        time, and is over already."""
        now = now_us or time.time_ns() // 1000
        with self.database.write() as db:
            there = dict(db.execute("SELECT key, over_us FROM alerts").fetchall())
            for key, about in found.items():
                if key not in there:
                    db.execute("INSERT INTO alerts VALUES (?, ?, ?, NULL)", (key, _json(about), now))
                    continue
                db.execute("UPDATE alerts SET about = ?, over_us = NULL WHERE key = ?", (_json(about), key))
                if (
                    there[key] is not None
                ):  # it is back: whoever was told that it is over hears of it anew, the others when it is time
                    db.execute(
                        "UPDATE deliveries SET due_us = iif(done OR times = 0, ?1, sent_us + ?2), times = iif(done, 0, times), done = 0 "
                        "WHERE key = ?3",
                        (now, self.repeat_us, key),
                    )
            for key, about in (passed or {}).items():
                if key not in found and key not in there:
                    db.execute("INSERT INTO alerts VALUES (?, ?, ?, ?)", (key, _json(about), now, now))
            for key in there.keys() - found.keys():
                if there[key] is None and known(key):
                    db.execute("UPDATE alerts SET over_us = ? WHERE key = ?", (now, key))
                    db.execute("UPDATE deliveries SET due_us = ?, attempts = 0 WHERE key = ?", (now, key))

    def due(self, channels: tuple[Channel, ...], now_us: int | None = None) -> list[Due]:
        """What is to be sent now by these channels, which are all there are. What is over and was said to be so by all of them is forgotten."""
        now = now_us or time.time_ns() // 1000
        with self.database.write() as db:
            marks = ",".join("?" * len(channels))
            db.execute(f"DELETE FROM deliveries WHERE channel NOT IN ({marks})", channels)
            for channel in channels:
                db.execute(
                    "INSERT OR IGNORE INTO deliveries (key, channel, due_us) SELECT key, ?, ? FROM alerts",
                    (channel, now),
                )
            db.execute(
                "DELETE FROM alerts WHERE over_us IS NOT NULL AND key NOT IN (SELECT key FROM deliveries WHERE NOT done)"
            )
            db.execute("DELETE FROM deliveries WHERE key NOT IN (SELECT key FROM alerts)")
            rows = db.execute(
                "SELECT key, channel, about, since_us, over_us, times, attempts FROM alerts JOIN deliveries USING (key) "
                "WHERE NOT (due_us BETWEEN ?1 + 1 AND ?1 + ?2) AND NOT done ORDER BY since_us, key, channel",
                (now, max(self.repeat_us, int(RETRY_MOST_S * 1e6))),  # later than that: the clock was set back
            ).fetchall()
        return [Due(key, channel, _about(about), *rest) for key, channel, about, *rest in rows]

    def sent(self, due: Due, now_us: int | None = None) -> None:
        """It was taken."""
        now = now_us or time.time_ns() // 1000
        with self.database.write() as db:
            row = db.execute("SELECT over_us FROM alerts WHERE key = ?", (due.key,)).fetchone()
            over = row is not None and row[0] is not None
            # What changed while it was on its way is to be said at once: that it is over, or that it is back.
            again = now if over != (due.over_us is not None) else now + self.repeat_us
            db.execute(
                "UPDATE deliveries SET sent_us = ?, times = iif(?, 0, times + 1), attempts = 0, failure = NULL, due_us = ?, done = ? "
                "WHERE key = ? AND channel = ?",
                (now, due.over_us is not None, again, over and due.over_us is not None, due.key, due.channel),
            )

    def failed(self, due: Due, error: LakesyncError, now_us: int | None = None) -> float:
        """It was not taken; in how many seconds it is tried again."""
        now = now_us or time.time_ns() // 1000
        pause = float(min(RETRY_MOST_S, RETRY_S * 2.0 ** min(due.attempts, 20)))
        with self.database.write() as db:
            db.execute(
                "UPDATE deliveries SET attempts = attempts + 1, failure = ?, due_us = ? WHERE key = ? AND channel = ?",
                (orjson.dumps(error.to_dict()).decode(), now + int(pause * 1e6), due.key, due.channel),
            )
        return pause

    def all(self) -> list[Alert]:
        """Those that are open, and those that are over while someone was not yet told, oldest first."""
        with self.database.read() as db:
            rows = db.execute("SELECT key, about, since_us, over_us FROM alerts ORDER BY since_us, key").fetchall()
            told: dict[str, list[tuple[str, int | None, int, str | None]]] = {}
            for key, *rest in db.execute("SELECT key, channel, sent_us, times, failure FROM deliveries"):
                told.setdefault(key, []).append((rest[0], rest[1], rest[2], rest[3]))
        return [
            Alert(
                key,
                _about(about),
                since,
                over,
                max((s for _, s, _, _ in told.get(key, ()) if s is not None), default=None),
                max((n for _, _, n, _ in told.get(key, ())), default=0),
                {channel: orjson.loads(f) for channel, _, _, f in told.get(key, ()) if f is not None},
            )
            for key, about, since, over in rows
        ]

    def looked(self, what: str) -> int:
        """Up to which time `what` has looked, µs since 1970."""
        with self.database.read() as db:
            row = db.execute("SELECT at_us FROM looked WHERE what = ?", (what,)).fetchone()
        return int(row[0]) if row else 0

    def set_looked(self, what: str, at_us: int) -> None:
        """… up to this one."""
        with self.database.write() as db:
            db.execute("INSERT OR REPLACE INTO looked VALUES (?, ?)", (what, at_us))


class Sender:
    """Sends what is due by the channels of `alerts:`. Failures are logged and kept, and end nothing."""

    def __init__(self, config: PipelineConfig, alerts: Alerts, stop: threading.Event) -> None:
        self.config, self.alerts, self.stop = config, alerts, stop
        self.channels = _channels(config)
        self.rests: dict[Channel, float] = {}
        """Until when, by the monotonic clock."""

    def send(self) -> int:
        """All that is due, but for channels that rest. How many were taken."""
        taken = 0
        for due in self.alerts.due(self.channels):
            if self.stop.is_set():
                break
            began = time.monotonic()
            if began < self.rests.get(due.channel, began):
                continue
            try:
                self._one(due)
            except LakesyncError as error:
                pause = self.alerts.failed(due, error)
                if time.monotonic() - began > SLOW_S:
                    self.rests[due.channel] = time.monotonic() + RETRY_S
                LOG.warning(
                    "not-sent", key=due.key, channel=due.channel, code=error.code, what=error.what, again_in_s=pause
                )
                continue
            self.alerts.sent(due)
            taken += 1
            LOG.info("sent", key=due.key, channel=due.channel, over=due.over_us is not None, times=due.times + 1)
        return taken

    def _one(self, due: Due) -> None:
        told = self.config.alerts
        assert told
        payload = due.payload(self.config.name, time.time_ns() // 1000)
        if due.channel == "webhook":
            assert told.webhook
            deliver(told.webhook, payload, stop=self.stop)
        else:
            assert told.command
            run_command(told.command, payload, folder=self.config.path.parent)


def _channels(config: PipelineConfig) -> tuple[Channel, ...]:
    found: list[Channel] = []
    if config.alerts and config.alerts.webhook:
        found.append("webhook")
    if config.alerts and config.alerts.command:
        found.append("command")
    return tuple(found)


def _json(about: About) -> str:
    return orjson.dumps(asdict(about)).decode()


def _about(text: str) -> About:
    return About(**orjson.loads(text))
