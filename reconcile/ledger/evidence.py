"""What the ledger reads: the trace's rows of one pipeline, in the form that its equations take. Bounded: of a trace of any length only the
newest part is read in detail, or the part that was asked for; what lies before it is known by running totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from cdc.epoch import Counts
from cdc.errors import ConfigError
from cdc.trace.tables import NODES
from cdc.units import parse_duration

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

DETAIL = 50_000
"""Epochs that are read one by one, and lake commits of each table; what is older is held against running totals."""
SKEW_S = 3600.0
"""So much earlier than ClickHouse may delete it a row is not looked at any more: its clock is another."""
EFFECTS = ("inserted", "replaced", "removed", "absent", "truncated")
SUMS = (
    *Counts._fields,
    *("key_changes", "superseded", "duplicate", "effective"),
    *EFFECTS,
    *("rows_added", "rows_deleted", "foreign"),
)
"""Of a lake commit, what is added up."""


@dataclass(frozen=True)
class Edge:
    """One end of a window: an epoch's number, or a commit time at the source, µs since 1970. Both ends belong to the window."""

    epoch: int | None = None
    us: int | None = None

    @classmethod
    def parse(cls, text: str) -> Edge:
        """An epoch's number (`1200`), a time (`2026-11-22`, `2026-11-22T03:00`; UTC unless it says otherwise), or how long ago (`2h`).

        Raises `ConfigError`.
        """
        text = text.strip()
        if text.isdigit():
            return cls(epoch=int(text))
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            at = _ago(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return cls(us=(at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))

    def __str__(self) -> str:
        if self.us is None:
            return f"epoch {self.epoch}"
        return datetime.fromtimestamp(self.us / 1e6, UTC).isoformat(sep=" ", timespec="seconds")


def _ago(text: str) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(
            "neither an epoch nor a time", where=text, hint="write 1200, 2026-11-22T03:00, or 2h for two hours ago"
        ) from None


class Epoch(NamedTuple):
    """An epoch, by its framing."""

    hash: str
    number: int
    before: str
    log: str
    transactions: int
    gtids: int
    bytes: int
    begins: str
    ends: str
    totals: Mapping[str, int]


@dataclass
class Rows:
    """Row changes of one table in one epoch, as the nodes count them. `captured` is None where capture's row is missing, `logged` where
    the log's is; `read`, `touched`: rows that windowed reads found, those of them that the stream touched meanwhile; `windowed`: those
    that the log has."""

    number: int
    captured: Counts | None = None
    logged: Counts | None = None
    total: int = 0
    read: int = 0
    touched: int = 0
    windowed: int = 0

    @property
    def changes(self) -> int:
        """As the log has them, else as capture says."""
        return (self.logged or self.captured or Counts()).changes


@dataclass(frozen=True)
class Commit:
    """A commit of lakesync to a table of the lake."""

    node: str
    kind: str
    hash: str
    """Of the epoch that it ends with."""
    log: str
    number: int
    first_number: int
    version: int
    sums: Mapping[str, int]
    live_before: int
    live_after: int
    totals: Mapping[str, int]
    """Since the bootstrap; empty where the trace was written before it had them."""
    total: int
    """Of the changes in them."""
    lake_id: str = ""

    @property
    def logged(self) -> Counts:
        """The changes that it took from the log."""
        return Counts(*(self.sums[name] for name in Counts._fields))

    @property
    def growth(self) -> int:
        """Rows that came, less rows that went, by keys."""
        return self.sums["inserted"] - self.sums["removed"] - self.sums["truncated"]

    @property
    def is_base(self) -> bool:
        """Whether a table begins with it: bootstrapped, created, adopted, joined again."""
        return self.node == "snapshot"


@dataclass
class Trace:
    """Of one pipeline. `low` is the number of the first epoch in detail, less one; `high` that of the last, None: the newest."""

    low: int
    high: int | None
    epochs: dict[str, Epoch] = field(default_factory=dict)
    rows: dict[tuple[str, str], Rows] = field(default_factory=dict)
    commits: dict[str, list[Commit]] = field(default_factory=dict)


def relation(client: Client) -> str:
    """What is selected from: the view that also has what is older than the trace keeps, where there is one."""
    found = client.query(
        "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'lakesync_ledger'"
    )
    return "lakesync_ledger" if found.result_rows[0][0] else f"{NODES} FINAL"


def read(
    client: Client, pipeline: str, newest: int, since: Edge | None, until: Edge | None, keep_s: float | None = None
) -> Trace:
    """The trace from `since` to `until`, of lake commits also the last before it, and each table's beginning. `keep_s`: for how long it is
    kept, seconds: of what is older some rows may be gone, and others not yet."""
    source, names = relation(client), {"p": pipeline}
    of = f"FROM {source} WHERE pipeline = {{p:String}} AND node"
    high = _number(client, of, names, until, "max", "<=") if until else None
    low = (_number(client, of, names, since, "min", ">=") or newest + 1) - 1 if since else 0
    low = max(low, (newest if high is None else high) - DETAIL)
    if keep_s is not None:
        seconds = round(keep_s - min(keep_s / 10, SKEW_S))
        query = f"SELECT max(number) {of} = 'source' AND done <= now64(6) - toIntervalSecond({seconds})"
        low = max(low, int(_select(client, query, names)[0][0]))
    trace = Trace(low, high)
    window = f"AND number > {low}" + (f" AND number <= {high}" if high is not None else "")
    for row in _select(client, f"SELECT {', '.join(Epoch._fields)} {of} = 'source' {window}", names):
        epoch = Epoch(*row)
        trace.epochs[epoch.hash] = epoch
    columns = f"node, `table`, hash, number, total, superseded, windowed, {', '.join(Counts._fields)}"
    for node, table, digest, number, total, touched, windowed, *counts in _select(
        client, f"SELECT {columns} {of} IN ('capture', 'window', 'log') {window}", names
    ):
        rows = trace.rows.setdefault((table, digest), Rows(number))
        if node == "capture":
            rows.captured, rows.total = Counts(*counts), total
        elif node == "window":
            rows.read, rows.touched = total, touched
        else:
            rows.logged, rows.windowed = Counts(*counts), windowed
    _read_commits(client, of, names, trace)
    return trace


def _select(client: Client, query: str, names: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    found: Sequence[Sequence[Any]] = client.query(query, parameters=dict(names)).result_rows
    return found


def _number(client: Client, of: str, names: Mapping[str, Any], edge: Edge, least: str, compared: str) -> int | None:
    """The epoch that an edge means: of a time, the first or last one committed since or until then."""
    if edge.epoch is not None:
        return edge.epoch
    at = f"fromUnixTimestamp64Micro(toInt64({edge.us}))"
    query = f"SELECT count(), {least}(number) {of} = 'source' AND committed {compared} {at}"
    ((count, number),) = _select(client, query, names)
    return int(number) if count else (None if least == "min" else 0)


def _read_commits(client: Client, of: str, names: Mapping[str, Any], trace: Trace) -> None:
    lake = "IN ('merge', 'snapshot')"
    columns = (
        "node",
        "kind",
        "hash",
        "log",
        "number",
        "first_number",
        "version",
        "live_before",
        "live_after",
        "total",
        "lake_id",
    )
    # A window begins with the last commit before it, whatever its number; a table, with the commit that began it.
    before = f"SELECT `table`, max(version) {of} {lake} AND number <= {trace.low} GROUP BY `table`"
    query = (
        f"SELECT `table`, {', '.join((*columns, *SUMS))}, totals {of} {lake}"
        f" AND (number > {trace.low} OR node = 'snapshot' OR (`table`, version) IN ({before})) ORDER BY `table`, version"
    )
    for table, *values, totals in _select(client, query, names):
        told = dict(zip(columns, values, strict=False))
        sums = dict(zip(SUMS, values[len(columns) :], strict=True))
        told["hash"] = told["hash"].partition("@")[0]
        commit = Commit(**told, sums=sums, totals=dict(totals))
        trace.commits.setdefault(str(table), []).append(commit)
