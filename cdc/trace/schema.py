"""What must be in ClickHouse before rows are written: tables as this version has them, views, retention.

Tables that an older version made get the new columns; whatever else has their names is left alone, and said to be in the way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cdc.errors import TraceError
from cdc.trace.tables import KEYS, NEWEST, NODES, create, foreign, widen
from cdc.trace.views import views

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

TIDY_S = 10.0
_AT_ONCE = (
    "old_parts_lifetime = 1",
    "merge_tree_clear_old_parts_interval_seconds = 1",
    "cleanup_delay_period = 1",
    "max_cleanup_delay_period = 1",
    "cleanup_delay_period_random_add = 0",
)
_TTL = re.compile(
    r"toDateTime\(done\) \+ toIntervalSecond\((\d+)\) WHERE pipeline IN \(((?:'(?:[^'\\]|\\.)*'(?:, )?)+)\)"
)
_TTL_OF_ONE = re.compile(r"toDateTime\(done\) \+ toIntervalSecond\((\d+)\) WHERE pipeline = ('(?:[^'\\]|\\.)*')")
_NAME = re.compile(r"'((?:[^'\\]|\\.)*)'")
_OTHER_PLACE = (
    "name another database in `trace:` (clickhouse://host:8123/database), or rename what is there; the pipeline goes on"
)


def prepare(client: Client, pipeline: str, keep_s: float | None, where: str) -> bool:
    """Make, or bring up to date, what is not as it should be; whether a table lacked columns, so that its rows do.

    `keep_s`: for how long the pipeline's rows stay after they were written at their node, seconds; None: for good. Raises `TraceError`.
    """
    named = ", ".join(f"'{name}'" for name in (*KEYS, *views()))
    inside = f"WHERE database = currentDatabase() AND {{}} IN ({named})"
    have = {
        name: (engine, key, full, comment)
        for name, engine, key, full, comment in client.query(
            f"SELECT name, engine, sorting_key, engine_full, comment FROM system.tables {inside.format('name')}"
        ).result_rows
    }
    columns: dict[str, dict[str, str]] = {}
    for table, name, kind in client.query(
        f"SELECT table, name, type FROM system.columns {inside.format('table')}"
    ).result_rows:
        columns.setdefault(table, {})[name] = kind
    widened = False
    for table in KEYS:
        if table not in have:
            client.command(create(table))
            continue
        engine, key, _, _ = have[table]
        if why := foreign(table, engine, key, columns.get(table, {})):
            raise TraceError(f"a table {table} that is not the trace's is there: {why}", where=where, hint=_OTHER_PLACE)
        if statement := widen(table, columns.get(table, {})):
            client.command(statement)
            widened = True
    _retain(client, pipeline, keep_s, have[NODES][2] if NODES in have else "")
    for name, (mark, statement) in views().items():
        engine, _, _, comment = have.get(name, ("", "", "", ""))
        if engine not in ("", "View"):
            what = f"{name} is there and is no view: its engine is {engine}"
            raise TraceError(what, where=where, hint=_OTHER_PLACE)
        if comment != mark or widened:  # `*` of a view means the columns of when it was made
            client.command(statement)
    return widened


def sweep(client: Client, pipeline: str, keep_s: float | None) -> None:
    """Let go now of what retention takes; for chDB, which is not open for long enough to do so by itself. Raises as the client."""
    if keep_s is None:
        return
    late = f"SELECT count() FROM {NODES} WHERE pipeline = {{p:String}} AND done < now() - toIntervalSecond({{s:Int64}})"
    if client.query(late, parameters={"p": pipeline, "s": max(1, round(keep_s))}).result_rows[0][0]:
        client.command(f"OPTIMIZE TABLE {NODES} FINAL")


def tidy(client: Client, within_s: float = TIDY_S) -> None:
    """Have chDB delete the files of parts that it has merged, which it would do later, but it is never open for so long: some thirty files for
    every projection would stay. Raises as the client."""
    made = f"SELECT name, engine_full FROM system.tables WHERE database = currentDatabase() AND name IN ('{NODES}', '{NEWEST}')"
    new = [name for name, full in client.query(made).result_rows if "old_parts_lifetime = 1," not in full]
    for name in new:
        client.command(f"ALTER TABLE {name} MODIFY SETTING {', '.join(_AT_ONCE)}")
    left = f"SELECT count() FROM system.parts WHERE NOT active AND database = currentDatabase() AND table IN ('{NODES}', '{NEWEST}')"
    ends = time.monotonic() + within_s
    # Settings count from the next opening on.
    while not new and client.query(left).result_rows[0][0] and time.monotonic() < ends:
        time.sleep(0.2)


def is_there(client: Client) -> bool:
    """Whether the trace's table is. Raises as the client."""
    query = f"SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = '{NODES}'"
    return bool(client.query(query).result_rows[0][0])


def forget(client: Client, pipeline: str) -> None:
    """Delete a pipeline's rows, and wait until they are gone. Raises as the client."""
    if is_there(client):
        for table in KEYS:
            client.command(f"ALTER TABLE {table} DELETE WHERE pipeline = {_text(pipeline)} SETTINGS mutations_sync = 2")


def retention(engine_full: str) -> dict[str, int]:
    """For how many seconds each pipeline's rows stay, by what ClickHouse says of the table."""
    found = {}
    for seconds, names in (*_TTL.findall(engine_full), *_TTL_OF_ONE.findall(engine_full)):
        for name in _NAME.findall(names):
            found[re.sub(r"\\(.)", r"\1", name)] = int(seconds)
    return found


def _retain(client: Client, pipeline: str, keep_s: float | None, engine_full: str) -> None:
    """Several pipelines may have their rows in one table, and each its own retention."""
    before = retention(engine_full)
    after = {name: seconds for name, seconds in before.items() if name != pipeline}
    if keep_s is not None:
        after[pipeline] = max(1, round(keep_s))
    if after != before:
        change = f"MODIFY TTL {_ttl(after)}" if after else "REMOVE TTL"
        client.command(f"ALTER TABLE {NODES} {change}")


def _ttl(keep: Mapping[str, int]) -> str:
    # One term for each time: ClickHouse takes no two that differ by their conditions alone.
    by_time: dict[int, list[str]] = {}
    for name, seconds in sorted(keep.items()):
        by_time.setdefault(seconds, []).append(_text(name))
    return ", ".join(
        f"toDateTime(done) + toIntervalSecond({seconds}) DELETE WHERE pipeline IN ({', '.join(names)})"
        for seconds, names in sorted(by_time.items())
    )


def _text(value: str) -> str:
    """As a literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
