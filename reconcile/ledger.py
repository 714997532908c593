"""The ledger: what left every node must have come into the next one, and the lake's files must show it.

Per table, from its newest bootstrap to the newest lake commit, by the trace (which counts each node at its own boundary):

    captured        = logged                                       rows that capture says it wrote, rows that the log's data holds
    logged          = merged                                       over exactly the epochs that the lake's commits name
    merged          = superseded + duplicate + effective
    effective + key changes = inserted + replaced + removed + absent      a changed key is one change with two effects
    inserted - removed - truncated   = rows added - rows deleted   by lookups, and by the files' own row counts
    rows before + inserted - removed - truncated = rows now        counted in the footers of the files that are live now
    read in windows         = emitted + superseded by the stream   rows that windowed reads found; rows of theirs in the log's data

`truncated` are rows that the TRUNCATE of a shard took: no row changes, so they are in no count of those.

and for the source: every epoch begins where the one before ended, and has as many transactions as its GTID set grew by.
What is logged and not yet in the lake is no imbalance: it is shown as in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from cdc.config import PipelineConfig
from cdc.epoch import Counts
from cdc.errors import ConfigError, NotFollowingError
from cdc.lake import LakeTable, Snapshot, applied_everywhere
from cdc.lake.parquet import opened
from cdc.lake.vectors import Vectors
from cdc.log.base import Log
from cdc.names import TableName
from cdc.trace.project import project
from cdc.trace.tables import NODES

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

NOW = "rows before + inserted - removed - truncated = rows now"
SOURCE = "(source)"
"""Stands where a table's name does, in the equations of the source node."""


@dataclass(frozen=True)
class Equation:
    """One line of the ledger, in row changes, rows or transactions. `gap` is right less left: what is missing is negative."""

    name: str
    left: int
    right: int
    where: str = ""

    @property
    def gap(self) -> int:
        return self.right - self.left

    @property
    def holds(self) -> bool:
        return self.gap == 0


@dataclass(frozen=True)
class TableLedger:
    """One table's equations, over epochs `first` (exclusive: the bootstrap's) to `last`."""

    table: str
    first: int
    last: int
    equations: tuple[Equation, ...]
    in_flight: int = 0
    """Row changes that are logged and not yet in the lake."""
    note: str = ""

    @property
    def closes(self) -> bool:
        return all(e.holds for e in self.equations)


@dataclass(frozen=True)
class LedgerReport:
    """All tables'. `epoch` is the newest epoch in the trace."""

    pipeline: str
    epoch: int
    tables: tuple[TableLedger, ...]

    @property
    def closes(self) -> bool:
        return all(t.closes for t in self.tables)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        data = asdict(self)
        for table, ledger in zip(data["tables"], self.tables, strict=True):
            table["closes"] = ledger.closes
            for equation, original in zip(table["equations"], ledger.equations, strict=True):
                equation |= {"holds": original.holds, "gap": original.gap}
        return data | {"closes": self.closes}


@dataclass(frozen=True)
class _Epoch:
    number: int
    before: str
    transactions: int
    gtids: int


@dataclass
class _Rows:
    """Row changes of one table in one epoch, as two nodes count them; capture's running total. Of windowed reads: rows that were read,
    those of them that the stream touched meanwhile, and those that the log has."""

    captured: Counts = Counts()
    logged: Counts = Counts()
    number: int = 0
    total: int = 0
    read: int = 0
    touched: int = 0
    windowed: int = 0


@dataclass
class _Trace:
    epochs: dict[str, _Epoch] = field(default_factory=dict)
    rows: dict[tuple[str, str], _Rows] = field(default_factory=dict)
    commits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def close(client: Client, config: PipelineConfig, log: Log, tables: Sequence[TableName] = ()) -> LedgerReport:
    """Bring the trace up to date and close the ledger of these tables, or of all that the lake has.

    Raises `TraceError`, `LogError`, `LakeError`; `ConfigError` for a table that the lake does not have; `NotFollowingError` where
    nothing was captured yet, so that there is nothing to close.
    """
    # The lake as it is now; what is committed while the trace is brought up to date is left for the next time.
    lakes = [LakeTable(config.lake_root, table, config.name) for table in tables or _lake_tables(config)]
    versions = {lake.table: lake.load() for lake in lakes}
    projected = project(client, config, log)
    if not projected.epoch and not versions:
        raise NotFollowingError("nothing was captured yet", where=config.name, hint="start `lakesync run`")
    trace = _read(client, config.name)
    ledgers = [_source(trace, projected.hash)]
    for table, snapshot in versions.items():
        commits = [c for c in trace.commits.get(table.id, ()) if snapshot and c["version"] <= snapshot.version]
        if snapshot is None or not commits:
            raise ConfigError("the lake has no such table", where=str(table), hint="`lakesync status` lists them")
        ledgers.append(_table(trace, table, commits, snapshot, projected.hash))
    return LedgerReport(config.name, projected.epoch, tuple(ledgers))


def _lake_tables(config: PipelineConfig) -> list[TableName]:
    return list(applied_everywhere(config.lake_root, config.name))


def _read(client: Client, pipeline: str) -> _Trace:
    trace, names = _Trace(), {"p": pipeline}
    select = f"FROM {NODES} FINAL WHERE pipeline = {{p:String}} AND node"
    for row in client.query(
        f"SELECT hash, number, before, transactions, gtids {select} = 'source'", parameters=names
    ).result_rows:
        trace.epochs[row[0]] = _Epoch(*row[1:])
    columns = f"node, `table`, hash, number, total, superseded, windowed, {', '.join(Counts._fields)}"
    query = f"SELECT {columns} {select} IN ('capture', 'window', 'log')"
    for node, table, digest, number, total, touched, windowed, *counts in client.query(
        query, parameters=names
    ).result_rows:
        rows = trace.rows.setdefault((table, digest), _Rows())
        if node == "capture":
            rows.captured, rows.number, rows.total = Counts(*counts), number, total
        elif node == "window":
            rows.read, rows.touched = total, touched
        else:
            rows.logged, rows.windowed = Counts(*counts), windowed
    answer = client.query(f"SELECT * {select} IN ('merge', 'snapshot') ORDER BY `table`, version", parameters=names)
    for commit in answer.named_results():
        trace.commits.setdefault(str(commit["table"]), []).append(dict(commit))
    return trace


def _chain(trace: _Trace, newest: str, until: str, first: int = 0) -> tuple[list[str], bool]:
    """Hashes from `newest` back to `until` (exclusive) or to epoch number `first`; whether the trace reaches that far."""
    found: list[str] = []
    at = newest
    while at != until:
        epoch = trace.epochs.get(at)
        if epoch is None:
            return found, False
        if epoch.number < first:
            break
        found.append(at)
        at = epoch.before
    return found, True


def _source(trace: _Trace, newest: str) -> TableLedger:
    chain, _ = _chain(trace, newest, "")
    epochs = [trace.epochs[h] for h in chain]
    numbers = [e.number for e in epochs]
    equations = (
        Equation("GTID set growth = transactions", sum(e.gtids for e in epochs), sum(e.transactions for e in epochs)),
        Equation("epoch numbers = epochs", numbers[0] - numbers[-1] + 1 if numbers else 0, len(numbers)),
    )
    return TableLedger(SOURCE, numbers[-1] - 1 if numbers else 0, numbers[0] if numbers else 0, equations)


def _table(
    trace: _Trace, name: TableName, commits: Sequence[dict[str, Any]], snapshot: Snapshot, newest: str
) -> TableLedger:
    table = name.id
    # Where the commit that began it was cleaned away before the trace had it, the oldest one is: it says what it found.
    start = max((i for i, c in enumerate(commits) if c["node"] == "snapshot"), default=0)
    base, merges = commits[start], commits[start + 1 :]
    none = _Rows()
    covered: list[str] = []
    logged_of, merged_of, lost = 0, 0, 0
    at = base["hash"].partition("@")[0]
    for merge in merges:
        digest = merge["hash"].partition("@")[0]
        # Not by numbers alone: after a log lost records they recur, and only the chain says which epoch was merged.
        chain, met = _chain(trace, digest, at, merge["first_number"])
        changes = sum(merge[operation] for operation in Counts._fields)
        if met:
            logged_of += sum(trace.rows.get((table, d), none).logged.changes for d in chain)
            merged_of += changes
        else:
            lost += changes
        covered += chain
        at = digest
    rows = [trace.rows.get((table, digest), none) for digest in dict.fromkeys(covered)]
    flight, _ = _chain(trace, newest, at, (merges[-1] if merges else base)["number"] + 1)
    waiting = [trace.rows.get((table, digest), none) for digest in flight]
    total = {column: sum(m[column] for m in merges) for column in _SUMMED}
    effects = total["inserted"] + total["replaced"] + total["removed"] + total["absent"]
    growth = total["inserted"] - total["removed"] - total["truncated"]
    last = merges[-1] if merges else base
    captured = sum(r.captured.changes for r in (*rows, *waiting))
    logged = sum(r.logged.changes for r in (*rows, *waiting))
    merged = sum(total[operation] for operation in Counts._fields)
    equations = [
        Equation("captured = logged", captured, logged, _first_gap(trace, table, [*covered, *flight])),
        Equation("logged = merged", logged_of, merged_of),
    ]
    note = ""
    if lost:
        note = f"{lost:,} changes were merged from epochs that the trace does not have"
    if base["log"] == last["log"] and (ends := _total(trace, table, covered)) is not None:
        # Reaches across epochs that were trimmed, or that the log lost and capture read again, which are duplicates then.
        once = base["total"] + merged - total["duplicate"]
        equations.append(Equation("captured since it was added = merged once", ends, once))
    equations += [
        Equation(
            "merged = superseded + duplicate + effective",
            merged,
            total["superseded"] + total["duplicate"] + total["effective"],
        ),
        Equation(
            "effective + key changes = inserted + replaced + removed + absent",
            total["effective"] + total["key_changes"],
            effects,
        ),
        Equation(
            "inserted - removed - truncated = rows added - rows deleted",
            growth,
            total["rows_added"] - total["rows_deleted"],
        ),
        Equation(
            NOW,
            base["live_after"] + growth,
            _live(snapshot),
        ),
    ]
    if read := sum(r.read for r in (*rows, *waiting)):
        emitted = sum(r.windowed + r.touched for r in (*rows, *waiting))
        equations.append(Equation("read in windows = emitted + superseded by the stream", read, emitted))
    in_flight = sum(r.logged.changes for r in waiting)
    return TableLedger(str(name), base["number"], last["number"], tuple(equations), in_flight, note)


_SUMMED = (
    *Counts._fields,
    "key_changes",
    "superseded",
    "duplicate",
    "effective",
    "inserted",
    "replaced",
    "removed",
    "absent",
    "truncated",
    "rows_added",
    "rows_deleted",
)


def _total(trace: _Trace, table: str, hashes: Sequence[str]) -> int | None:
    """Capture's running total at the newest of these epochs that touched the table."""
    touched = [r for h in hashes if (r := trace.rows.get((table, h)))]
    return max(touched, key=lambda r: r.number).total if touched else None


def _first_gap(trace: _Trace, table: str, hashes: Sequence[str]) -> str:
    """The oldest epoch in which captured and logged differ, for the report."""
    wrong = [trace.epochs[h].number for h in hashes if (r := trace.rows.get((table, h))) and r.captured != r.logged]
    return f"epoch {min(wrong)}" if wrong else ""


def _live(snapshot: Snapshot) -> int:
    """Rows in the live files, by their own footers, less those that their deletion vectors delete, by the vectors' own bits."""
    vectors = Vectors(snapshot.folder)
    rows = 0
    for file in snapshot.files.values():
        with opened(snapshot.folder, snapshot.path(file), file.size) as parquet:
            rows += parquet.metadata.num_rows
        rows -= len(vectors.of(file) or ())
    return rows
