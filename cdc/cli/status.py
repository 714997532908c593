"""`lakesync status`"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cdc.cli import options, output
from cdc.errors import ConfigError
from cdc.status import NodeStatus, PipelineStatus, TableView
from reconcile.report.text import printable
from reconcile.watch.overview import Checked, Scheduled

WATCH_EVERY_S = 1.0
ERRORS_SHOWN = 3
RECENT_MS = 3_600_000
ENDED_SHOWN = 3
FINDINGS_SHOWN = 5
_CHECKS = ("ledger", "values")

_STYLES = {"ready": "green", "stopped": "bold red", "removed": "dim"}
_READ_STYLES = {"done": "dim", "cancelled": "dim", "failed": "bold red", "paused": "yellow"}


def command(
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.", show_default=False)
    ] = False,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Show what the pipeline is doing.

    Per table its state, rows, position and lag; how far readings are, how fast, what they wait for; which nodes are alive; errors with
    their way out.

    \b
    Example:
      lakesync status
      lakesync status --watch
    """
    pipeline = options.pipeline(config)
    if watch and as_json:
        raise ConfigError("--watch is for people, --json for machines", where="lakesync status", hint="leave one out")
    if as_json:
        output.as_json(pipeline.status().to_dict())
        return
    console = output.console()
    if not watch:
        console.print(_whole(pipeline.status()))
        return
    with Live(_whole(pipeline.status()), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            time.sleep(WATCH_EVERY_S)
            live.update(_whole(pipeline.status()), refresh=True)


def _whole(status: PipelineStatus) -> RenderableType:
    parts: list[RenderableType] = [_head(status), _tables(status)]
    if status.reads:
        parts.append(_reads(status))
    parts += _checks(status)
    parts += [
        Text(f"{t.table}: {t.reading.warning}", "yellow") for t in status.tables if t.reading and t.reading.warning
    ]
    parts += [_error(f"{t.table} {_ended(t)}", t.error) for t in status.tables if t.error]
    stopped = {
        t.table for t in status.tables if t.phase == "stopped"
    }  # what was read of it ended with it, for the same reason
    parts += [
        _error(f"reading {r['table']} again, {r['phase']}", r["error"])
        for r in status.reads
        if r["error"] and r["target"] not in stopped
    ]
    parts += [_alert(a, status.at_ms) for a in status.alerts]
    parts += [_error("problem", p) for p in status.problems]
    parts += [
        _error("the trace fails", e)
        for n in status.nodes
        if n.name == "trace" and n.alive and (e := n.info.get("error"))
    ]
    parts += [_error(f"{n.name} says", p) for n in status.nodes if n.alive for p in n.info.get("problems", ())]
    parts += [_request(r, status.at_ms) for r in reversed(status.requests) if r["outcome"] is None]
    parts += [_error(f"{_ago(status, e)}, {e['node']}", e) for e in _unsettled(status)]
    return Group(*parts)


def _unsettled(status: PipelineStatus) -> list[dict[str, Any]]:
    """The newest errors that are still of interest: of the daemon, not long ago. Those of tables stand at the tables; whether the pipeline
    file is good is what capture says now, and whether the trace can be written what its node does."""
    alive = {n.name for n in status.nodes if n.alive}
    recent = [
        e
        for e in status.errors
        if e["table"] is None
        and status.at_ms - e["at_us"] // 1000 < RECENT_MS
        and (e["node"], e["code"]) != ("capture", "Config")
        and not (e["code"] == "Trace" and "trace" in alive)
    ]
    return recent[:ERRORS_SHOWN]


def _ago(status: PipelineStatus, error: dict[str, Any]) -> str:
    return f"{output.duration(status.at_ms - error['at_us'] // 1000)} ago"


def _request(request: dict[str, Any], now_ms: int) -> Text:
    asked = output.duration(now_ms - request["asked_us"] // 1000)
    return Text(f"open: #{request['number']} {request['kind']} {request['argument']}, asked {asked} ago")


def _head(status: PipelineStatus) -> Text:
    nodes = "  ".join(
        f"{n.name} {_doing(n) if n.alive else f'last seen {output.duration(n.age_ms)} ago'}" for n in status.nodes
    )
    log = (
        f"log at epoch {status.log_epoch:,}, {output.size(status.log_bytes)}"
        if status.log_epoch is not None
        else "log empty"
    )
    lake = (
        f"lake at epoch {status.manifest_epoch:,}, {output.duration(status.manifest_age_ms)} ago"
        if status.manifest_epoch is not None
        else "lake empty"
    )
    text = Text(f"{status.pipeline}: ")
    text.append("running" if status.running else "not running", "green" if status.running else "yellow")
    text.append(f"; {log}; {lake}; source at {status.source_end or '?'}")
    if nodes:
        text.append(f"\nnodes: {nodes}")
    return text


def _doing(node: NodeStatus) -> str:
    behind = node.info.get("behind") if node.name == "trace" else None
    return f"alive, {behind:,} epochs behind" if behind else "alive"


def _tables(status: PipelineStatus) -> RenderableType:
    if not status.tables:
        return Text("no tables: `lakesync add schema.table`")
    made = output.table(("table", "state", "rows", "version", "epoch", "position", "lag"), right=(2, 3, 4, 6))
    for t in status.tables:
        made.add_row(t.table, Text(_state(t), _STYLES.get(t.phase, "")), *_lake(t), _lag(t))
    return made


def _state(t: TableView) -> str:
    if t.reading is None:
        return t.phase
    how = "paused" if t.reading.paused else f"waits: {t.reading.waiting}" if t.reading.waiting else ""
    return f"{t.phase}, {how}" if how else t.phase


def _ended(t: TableView) -> str:
    return "paused" if t.reading is not None and t.reading.paused else "stopped"


def _lake(t: TableView) -> tuple[str, str, str, str]:
    if t.phase == "snapshot":
        about = f" of about {t.rows_estimate:,}" if t.rows_estimate else ""
        reading = t.reading
        how = _pace(reading.percent, reading.rows_per_second, reading.seconds_left) if reading else ""
        return f"{t.rows_read:,}{about}{how and ': '}{how}", "", "", ""
    if t.lake is None:
        return "", "", "", ""
    version, named = str(t.lake.version), t.in_manifest
    if named is not None and named.version != t.lake.version:
        version += f" ({named.version} in the manifest)"
    return f"{t.lake.rows:,}", version, f"{t.lake.epoch:,}", t.lake.position


def _pace(percent: float | None, rows_per_second: int | None, seconds_left: int | None) -> str:
    found = [f"{percent:.0f} %"] if percent is not None else []
    if rows_per_second is not None:
        found.append(f"{rows_per_second:,} rows/s")
    if seconds_left is not None:
        found.append(f"{output.duration(1000 * seconds_left)} left")
    return ", ".join(found)


def _reads(status: PipelineStatus) -> RenderableType:
    made = output.table(("read again", "what", "state", "rows", "emitted", "gone", "pace"), right=(3, 4, 5))
    ended = [r for r in status.reads if r["phase"] in ("done", "cancelled")]
    for r in (r for r in status.reads if r not in ended[:-ENDED_SHOWN]):
        phase = f"{r['phase']}, waits: {r['waiting']}" if r["waiting"] else r["phase"]
        rows = [f"{r[key]:,}" for key in ("rows_read", "rows_emitted", "rows_gone")]
        left = _pace(r["percent"], r["rows_per_second"], r["seconds_left"])
        made.add_row(r["table"], r["what"], Text(phase, _READ_STYLES.get(r["phase"], "")), *rows, left)
    return made


def _checks(status: PipelineStatus) -> list[RenderableType]:
    """What was checked last, and when; what differs; when it is checked again."""
    if status.checks is None:
        return []
    parts: list[RenderableType] = []
    by = {(c.table, c.check): c for c in status.checks.verdicts}
    if by:
        made = output.table(("checked", *_CHECKS))
        for table in dict.fromkeys(table for table, _ in by):
            made.add_row(table, *(_checked(by.get((table, check)), status.at_ms) for check in _CHECKS))
        parts.append(made)
    for found in status.checks.findings[:FINDINGS_SHOWN]:
        what = f"key {found.key}: {found.what}" if found.check == "values" and found.key else found.key or found.what
        what = f"{found.rows:,} {found.what}" if found.check == "values" and not found.key else what
        where = (
            f" in {', '.join(found.columns)}" if found.columns else f", {found.what}" if found.check == "ledger" else ""
        )
        since = output.duration(status.at_ms - found.since_us // 1000)
        parts.append(Text(printable(f"{found.table} {found.check}: {what}{where}, since {since}"), "red"))
    if (more := len(status.checks.findings) - FINDINGS_SHOWN) > 0:
        parts.append(Text(f"… and {more:,} more: `lakesync status --json`", "red"))
    parts += [_error(f"the check of {one.check} failed", one.error) for one in status.checks.schedules if one.error]
    if status.checks.schedules:
        parts.append(Text("next: " + ", ".join(_next(one, status.at_ms) for one in status.checks.schedules)))
    return parts


def _checked(one: Checked | None, now_ms: int) -> Text:
    if one is None:
        return Text("")
    said = {"agrees": "closes" if one.check == "ledger" else "equal", "differs": "DIFFERS", "failed": "failed"}[
        one.verdict
    ]
    if one.verdict == "differs" and not one.unresolved:
        said = "differed, put right"
    text = said + ("" if one.whole or one.verdict == "failed" else " (a part)")
    if one.unresolved:
        text += f", {one.unresolved:,} unresolved"
    style = "bold red" if one.unresolved else "yellow" if one.verdict == "failed" else "green"
    return Text(f"{text}, {output.duration(now_ms - one.at_us // 1000)} ago", style)


def _next(one: Scheduled, now_ms: int) -> str:
    if one.running_us is not None:
        return f"{one.check} runs for {output.duration(max(0, now_ms - one.running_us // 1000))}"
    left_ms = one.due_us // 1000 - now_ms
    return f"{one.check} {'in ' + output.duration(left_ms) if left_ms > 0 else 'now'} ({one.schedule})"


def _alert(alert: dict[str, Any], now_ms: int) -> Text:
    since = output.duration(now_ms - alert["since_us"] // 1000)
    text = Text("alert: ", "bold")
    text.append(f"{alert['summary']}, for {since}" + (", over" if alert["over_us"] else ""), "not bold red")
    text.append({0: "; not sent", 1: "; sent once"}.get(alert["times"], f"; sent {alert['times']} times"), "not bold")
    for channel, failure in alert["failures"].items():
        text.append(f"\n  {channel}: {failure['what']}", "not bold yellow")
    if alert["hint"]:
        text.append(f"\n  hint: {alert['hint']}", "not bold")
    return text


def _lag(t: TableView) -> str:
    return output.duration(t.lag_ms) if t.phase == "ready" else ""


def _error(title: str, error: dict[str, str] | None) -> Text:
    error = error or {}
    text = Text(f"{title}: ", "bold")
    text.append(error.get("what", ""), "not bold")
    for key in ("where", "hint"):
        if error.get(key):
            text.append(f"\n  {key}: {error[key]}", "not bold")
    return text
