"""The ledger: what left every node must have come into the next one, and the lake's files must show it.

Per table, over a window of epochs (by default from the table's newest beginning to its newest commit), by the trace, in which each node counts
at its own boundary (`docs/ledger.md` says what each equation can see):

    growth of capture's running total = captured
    captured = logged                                                     rows that capture says it wrote, rows that the log's data holds
    logged = merged                                                       over exactly the epochs that the lake's commits name
    captured since it was added = merged once                             by running totals, across all that the trace does not have
    merged = superseded + duplicate + effective
    effective + key changes = inserted + replaced + removed + absent      a changed key is one change with two effects
    inserted - removed - truncated = rows added - rows deleted            by lookups, and by the files' own row counts
    rows before + rows added - rows deleted = rows after                  of each commit; and the next one begins with as many
    growth of the commits' running totals = commits
    rows before + inserted - removed - truncated = rows now               and what others brought; in the footers of the files that are live
    rows of others = 0                                                    that no comparison of values has found right since
    read in windows = emitted + superseded by the stream                  rows that windowed reads found; rows of theirs in the log's data

and for the source, by framing alone (`reconcile.framing`). `truncated` are rows that went, or came, without a row change: the TRUNCATE of a
shard, a key that was there twice. What is logged and not yet in the lake is no imbalance: it is shown as in flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cdc.config import PipelineConfig
from cdc.errors import ConfigError, NotFollowingError
from cdc.lake import LakeTable, Snapshot, applied_everywhere, manifest
from cdc.log.base import Log
from cdc.names import TableName
from cdc.trace.project import project
from reconcile.ledger import balance, evidence, files, framing
from reconcile.ledger.balance import COMMITTED, FOREIGN, NOW, Stretch
from reconcile.ledger.equations import Equation, Gap, Sides
from reconcile.ledger.evidence import Commit, Edge, Epoch, Rows, Trace

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

__all__ = ["FOREIGN", "NOW", "SOURCE", "Edge", "Equation", "Gap", "LedgerReport", "TableLedger", "close"]

TRACED = "commits in the lake = commits in the trace"
SOURCE = "(source)"
"""Stands where a table's name does, in the equations of the source node."""


@dataclass(frozen=True)
class TableLedger:
    """One table's equations, over epochs `first` (exclusive) to `last`; from the commit of lake version `version_first` to `version_last`."""

    table: str
    first: int
    last: int
    equations: tuple[Equation, ...]
    in_flight: int = 0
    """Row changes that are logged and not yet in the lake."""
    note: str = ""
    """What is not known in detail, and whose rows are not ours; sentences, separated by `; `."""
    version_first: int = -1
    version_last: int = -1
    foreign: int = 0
    """Rows that others brought, less those that they took, in this window."""

    @property
    def closes(self) -> bool:
        return all(e.holds for e in self.equations)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        names = ("table", "first", "last", "in_flight", "note", "version_first", "version_last", "foreign")
        equations = [equation.to_dict() for equation in self.equations]
        return {name: getattr(self, name) for name in names} | {"equations": equations, "closes": self.closes}


@dataclass(frozen=True)
class LedgerReport:
    """All tables'. `epoch` is the newest epoch in the trace; `since`, `until` the window that was asked for, empty where it was not."""

    pipeline: str
    epoch: int
    tables: tuple[TableLedger, ...]
    since: str = ""
    until: str = ""

    @property
    def closes(self) -> bool:
        return all(t.closes for t in self.tables)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        names = ("pipeline", "epoch", "since", "until")
        return {name: getattr(self, name) for name in names} | {
            "tables": [table.to_dict() for table in self.tables],
            "closes": self.closes,
        }


def close(
    client: Client,
    config: PipelineConfig,
    log: Log,
    tables: Sequence[TableName] = (),
    *,
    since: Edge | None = None,
    until: Edge | None = None,
    proven: Mapping[str, int] | None = None,
) -> LedgerReport:
    """Bring the trace up to date and close the ledger of these tables, or of all that the lake has.

    `since` and `until`: both ends belong to the window; a table's is widened to the lake commits that hold them. `proven`: by table id, the
    lake version that a whole comparison of values found right: what others did to the table before it is told, and no imbalance.

    Raises `TraceError`, `LogError`, `LakeError`; `ConfigError` for a table that the lake does not have, or a window that ends before it begins;
    `NotFollowingError` where nothing was captured yet, so that there is nothing to close.
    """
    # The lake as it is now; what is committed while the trace is brought up to date is left for the next time.
    named = manifest.read(config.lake_root, config.name)
    lakes = [LakeTable(config.lake_root, table, config.name) for table in tables or _lake_tables(config)]
    versions = {lake.table: lake.load() for lake in lakes}
    projected = project(client, config, log)
    if not projected.epoch and not versions:
        raise NotFollowingError("nothing was captured yet", where=config.name, hint="start `lakesync run`")
    keep_s = config.trace.keep if config.trace else None
    trace = evidence.read(client, config.name, projected.epoch, since, until, keep_s)
    if trace.high is not None and trace.high <= trace.low:
        raise ConfigError(
            "the window has no epoch", where=f"{since or 'the beginning'} to {until}", hint="`lakesync log` lists them"
        )
    chains = framing.chains(trace, projected.hash)
    oldest = log.oldest()
    looked, notes = framing.source(chains, oldest.number if oldest else None)
    numbers = [epoch.number for chain in chains for epoch in chain] or [0]
    ledgers = [TableLedger(SOURCE, min(numbers) - 1, max(numbers), tuple(looked), note="; ".join(notes))]
    for table, snapshot in versions.items():
        commits = _commits(trace, table, snapshot) if snapshot else []
        if snapshot is None or not commits:
            raise ConfigError("the lake has no such table", where=str(table), hint="`lakesync status` lists them")
        carried = manifest.carried(table, snapshot, named)
        one = _Table(
            trace,
            table,
            commits,
            snapshot,
            chains[-1] if chains else [],
            carried.epoch.hash if carried else "",
            (proven or {}).get(table.id, -1),
        )
        ledgers.append(one.close())
    return LedgerReport(config.name, projected.epoch, tuple(ledgers), str(since or ""), str(until or ""))


def _lake_tables(config: PipelineConfig) -> list[TableName]:
    return list(applied_everywhere(config.lake_root, config.name))


def _commits(trace: Trace, table: TableName, snapshot: Snapshot) -> list[Commit]:
    """Those of the table that is there now: one that was in its place before has another id."""
    name = str(snapshot.metadata.get("id", ""))
    found = [c for c in trace.commits.get(table.id, ()) if c.version <= snapshot.version]
    return [c for c in found if c.lake_id in (name, "")]


@dataclass
class _Table:
    """One table."""

    trace: Trace
    name: TableName
    commits: list[Commit]
    snapshot: Snapshot
    chain: list[Epoch]
    """Of the newest log, oldest first."""
    carried: str
    """The epoch that the merger says the table has, by its hash."""
    proven: int
    notes: list[str] = field(default_factory=list)
    _base_version: int = -1

    def close(self) -> TableLedger:
        """Its equations."""
        trace, table = self.trace, self.name.id
        until = self._until()
        found = balance.stretch(self.commits, trace.low, until)
        done = balance.steps(trace, found)
        newest = until is self.commits[-1] and trace.high is None
        flight, passed = self._waiting(found) if newest else ([], [])
        rows = self._rows(found, newest)
        merged, lost = balance.merged(trace, table, found, done, passed)
        once, notes = balance.once(trace, table, found, done)
        if lost:
            self.notes.append(f"{lost:,} changes were merged from epochs that the trace does not have")
        self.notes += [*found.notes, *notes]
        grown = [e for e in self.chain if found.base.number < e.number]
        equations = [
            balance.captured(trace, table, grown),
            balance.logged(rows),
            merged,
            once,
            *balance.lake(found),
        ]
        now, foreign, others = self._now(found, newest)
        equations += [*now, balance.windows(rows)]
        in_flight = sum(r.changes for d in flight if (r := trace.rows.get((table, d))))
        return TableLedger(
            str(self.name),
            found.base.number,
            found.last.number,
            tuple(e for e in equations if e is not None),
            in_flight,
            "; ".join(dict.fromkeys([*self.notes, *others])),
            found.base.version,
            found.last.version,
            foreign,
        )

    def _until(self) -> Commit:
        """The commit that the window ends with: the last at the first epoch that holds its end."""
        high = self.trace.high
        if high is None:
            return self.commits[-1]
        number = min((c.number for c in self.commits if c.number >= high), default=None)
        return next((c for c in reversed(self.commits) if c.number == number), self.commits[-1])

    def _waiting(self, found: Stretch) -> tuple[list[str], list[str]]:
        """Epochs that are logged and not in a commit: those that the merger has not come to, and those that it passed over."""
        flight, _ = balance.walk(
            self.trace, self.chain[-1].hash if self.chain else "", found.last.hash, found.last.number + 1
        )
        passed, met = balance.walk(self.trace, self.carried, found.last.hash)
        passed = passed if met and self.carried in flight else []
        return [d for d in flight if d not in set(passed)], passed

    def _rows(self, found: Stretch, newest: bool) -> list[Rows]:
        """Whatever capture and the log say of the table in this window, also of epochs that the log lost since."""
        rows = (
            r
            for (table, _), r in self.trace.rows.items()
            if table == self.name.id and found.base.number < r.number and (newest or r.number <= found.last.number)
        )
        return sorted(rows, key=lambda r: r.number)

    # -- rows in the lake ----------------------------------------------------------------------------------------------

    @cached_property
    def _history(self) -> dict[int, files.Version]:
        """What each version did: only read where something does not add up."""
        return files.history(self.snapshot.folder, max(self._base_version, self.proven))

    def _now(self, found: Stretch, newest: bool) -> tuple[list[Equation], int, list[str]]:
        """Rows that are there now, and those that others brought."""
        self._base_version = found.base.version
        between, now, others = Sides(COMMITTED, "lake"), Sides(NOW, "lake"), Sides(FOREIGN, "lake")
        foreign, notes = 0, list[str]()
        for one, two in pairwise(found.commits):
            brought = balance.brought(one, two)
            epochs = (min(one.number + 1, two.number), two.number)
            if brought and not self._is_foreign(one.version, two.version, brought):
                where = f"between versions {one.version} and {two.version}"
                between.add(epochs, one.live_after, two.live_before, where)
            elif brought:
                foreign += brought
                self._told(others, notes, epochs, one.version, two.version, brought)
        last, sums = found.last, balance.summed(found)
        expected = found.base.live_after + sums["inserted"] - sums["removed"] - sums["truncated"]
        epochs = (found.base.number, last.number)
        if newest:
            measured = files.measure(self.snapshot)
            tail = measured.said + measured.silent - last.live_after
            beyond = self.snapshot.version + 1
            if beyond > last.version + 1 and tail and self._is_foreign(last.version, beyond, tail):
                foreign += tail
                self._told(others, notes, (last.number, last.number), last.version, beyond, tail)
            for gap in measured.wrong:
                now.add(epochs, gap.said, gap.found or 0, gap.what)
            right = measured.rows
        else:
            version = self._history.get(last.version)
            right = version.rows if version else last.live_after
            if version is None:
                notes.append(
                    f"of version {last.version} the files are not known any more: its rows are as its commit says"
                )
        if not now.wrong and expected + foreign != right:
            self._narrow(now, found, expected + foreign, right)
        equations = [between.equation()] if between.looked else []
        equations += [self._untraced(found)] if newest else []
        equations.append(now.equation(expected + foreign, right))
        if others.looked or foreign:
            equations.append(others.equation())
        return equations, foreign, notes

    def _untraced(self, found: Stretch) -> Equation:
        """Commits of ours that the lake has and the trace does not. Right behind the table's beginning some may be past the trace's time."""
        sides = Sides(TRACED, "trace")
        known = {c.version for c in found.commits}
        first = found.merges[0].version if found.merges else found.base.version
        newest = self.snapshot.info_version or found.last.version
        wanted = range(first, newest + 1)
        for commit in found.merges:
            sides.add((commit.number, commit.number), 1, 1)
        for version in (v for v in wanted if v not in known and v in self._history and self._history[v].ours):
            before = max((c for c in found.commits if c.version < version), key=lambda c: c.version)
            where = f"version {version}: the trace does not have it: `lakesync trace rebuild`"
            sides.add((before.number, before.number), 1, 0, where)
        return sides.equation()

    def _is_foreign(self, after: int, before: int, brought: int) -> bool:
        """Whether versions of others lie between these two; where the log cannot say any more, whether there is room for one."""
        versions = range(after + 1, before)
        known = [self._history[v] for v in versions if v in self._history]
        if len(known) == len(versions):
            return sum(v.change for v in known if not v.ours) == brought or any(not v.ours for v in known)
        return len(versions) > 0

    def _told(
        self, others: Sides, notes: list[str], epochs: tuple[int, int], after: int, before: int, brought: int
    ) -> None:
        """Say whose rows they are; and whether that is an imbalance yet."""
        known = [self._history[v] for v in range(after + 1, before) if v in self._history and not self._history[v].ours]
        named = [v for v in known if v.change] or known
        who = ", ".join(f"version {v.number}: {v.engine} ({v.change:+,} rows)" for v in named[:3])
        who = who or f"versions {after + 1} to {before - 1}, by someone else"
        if before - 1 <= self.proven:
            notes.append(f"others changed rows ({brought:+,}; {who}); values were compared since, and agreed")
        else:
            others.add(epochs, 0, brought, who)

    def _narrow(self, now: Sides, found: Stretch, expected: int, right: int) -> None:
        """The first version whose files do not hold as many rows as its commit says."""
        for commit in found.commits:
            version = self._history.get(commit.version)
            if version is not None and version.rows != commit.live_after:
                where = f"version {commit.version}: its files have {version.rows:,} rows, its commit says {commit.live_after:,}"
                now.add((commit.number, commit.number), commit.live_after, version.rows, where)
                return
        now.add((found.base.number, found.last.number), expected, right)
