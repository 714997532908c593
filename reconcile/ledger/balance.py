"""A table's side of the ledger: what left each node came into the next, over every epoch and commit, and over those that only running
totals tell of. Pure; what is measured from the lake's files is given.

A table's history in the lake begins with a commit that says so (bootstrapped, created, adopted, joined again), and goes on in others, each
over a chain of epochs. What the trace does not have (trimmed from the log, cleaned out of the lake, wiped, past its time) the commits after
it tell of: the sum of what is missing between two of them is what their totals differ by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cdc.epoch import Counts
from reconcile.ledger.equations import Equation, Sides
from reconcile.ledger.evidence import EFFECTS, SUMS, Commit, Epoch, Rows, Trace

LOGGED = "captured = logged"
CAPTURED = "growth of capture's running total = captured"
MERGED = "logged = merged"
ONCE = "captured since it was added = merged once"
FOLDED = "merged = superseded + duplicate + effective"
EFFECTIVE = "effective + key changes = inserted + replaced + removed + absent"
FILES = "inserted - removed - truncated = rows added - rows deleted"
COMMITTED = "rows before + rows added - rows deleted = rows after"
TOTALS = "growth of the commits' running totals = commits"
NOW = "rows before + inserted - removed - truncated = rows now"
FOREIGN = "rows of others = 0"
WINDOWS = "read in windows = emitted + superseded by the stream"


@dataclass
class Stretch:
    """The part of a table's history that is looked at: `base`, and the commits after it."""

    base: Commit
    merges: list[Commit]
    notes: list[str] = field(default_factory=list)

    @property
    def last(self) -> Commit:
        return self.merges[-1] if self.merges else self.base

    @property
    def commits(self) -> list[Commit]:
        return [self.base, *self.merges]


def stretch(commits: Sequence[Commit], low: int, until: Commit) -> Stretch:
    """From the last commit at or before epoch `low`, or the one with which the table began anew since, to `until`."""
    commits = [c for c in commits if c.version <= until.version]
    start = max((i for i, c in enumerate(commits) if c.is_base or c.number <= low), default=0)
    found = Stretch(commits[start], commits[start + 1 :])
    if not found.base.is_base and found.base.number > low:
        found.notes.append(f"the commits before version {found.base.version} are in neither the lake nor the trace")
    return found


@dataclass
class Steps:
    """What was merged, commit by commit. `chains`: the epochs of each commit, newest first; None where the trace lacks some of them."""

    chains: list[list[str]]
    met: list[bool]


def steps(trace: Trace, found: Stretch) -> Steps:
    """Not by numbers alone: after a log lost records they recur, and only the chain of hashes says which epoch was merged."""
    chains, met = [], []
    at = found.base.hash
    for merge in found.merges:
        chain, whole = walk(trace, merge.hash, at, merge.first_number)
        chains.append(chain)
        met.append(whole)
        at = merge.hash
    return Steps(chains, met)


def walk(trace: Trace, newest: str, until: str, first: int = 0) -> tuple[list[str], bool]:
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


# -- from capture to merge ---------------------------------------------------------------------------------------------


def logged(rows: Iterable[Rows]) -> Equation:
    """What capture says it wrote, and what the log's data holds when it is read back: every epoch, by operation."""
    sides = Sides(LOGGED, "log")
    for one in rows:
        captured, kept = one.captured, one.logged
        if captured is None and kept is None:
            continue
        left, right = captured or Counts(), kept or Counts()
        what = "" if captured and kept else f"the trace has no row of {'the log' if captured else 'capture'}"
        sides.add((one.number, one.number), left.changes, right.changes, what, equal=captured == kept)
    return sides.equation()


def captured(trace: Trace, table: str, chain: Sequence[Epoch]) -> Equation | None:
    """Capture's running totals, along one chain of epochs (oldest first). A table that is added again begins at zero; over epochs that the
    trace does not have it may have been."""
    sides = Sides(CAPTURED, "capture")
    before: Rows | None = None
    at = ""
    for epoch in chain:
        before = before if epoch.before == at else None
        at = epoch.hash
        rows = trace.rows.get((table, epoch.hash))
        if rows is None or rows.captured is None:
            continue
        changes = rows.captured.changes
        if before is not None and rows.total != changes:
            sides.add((before.number + 1, rows.number), rows.total - before.total, changes)
        before = rows
    return sides.equation() if sides.looked else None


def merged(trace: Trace, table: str, found: Stretch, done: Steps, passed: Sequence[str]) -> tuple[Equation, int]:
    """What the log has of exactly the epochs that each commit names; and how many changes came from epochs that the trace does not have.
    `passed`: epochs behind the last commit that the table is said to have: there is nothing for it in them."""
    sides, lost = Sides(MERGED, "merge"), 0
    at = found.base
    for merge, chain, met in zip(found.merges, done.chains, done.met, strict=True):
        if not met:
            lost += merge.logged.changes
        elif chain or merge.logged.changes:
            have = [r.logged or r.captured or Counts() for d in chain if (r := trace.rows.get((table, d)))]
            total = Counts(*map(sum, zip(*have, strict=True))) if have else Counts()
            places = (min(at.number + 1, merge.first_number), merge.number)
            sides.add(
                places, total.changes, merge.logged.changes, f"version {merge.version}", equal=total == merge.logged
            )
        at = merge
    for digest in passed:
        rows = trace.rows.get((table, digest))
        if rows is not None and rows.changes:
            sides.add((rows.number, rows.number), rows.changes, 0, "passed over without a commit")
    return sides.equation(), lost


def once(trace: Trace, table: str, found: Stretch, done: Steps) -> tuple[Equation | None, list[str]]:
    """By running totals: capture's, which count a change once, also where it was lost and read again, and the commits', less what they had
    already. From commit to commit both grow alike, across everything that is not there in detail."""
    sides, notes, base = Sides(ONCE, "merge"), list[str](), found.base
    # The commit up to which both are known, and both. A table begins with what capture had counted.
    known = (base, base.total, base.total) if base.is_base else None
    at = base
    for merge, chain, met in zip(found.merges, done.chains, done.met, strict=True):
        grown = merge.total - _duplicates(found, merge)
        rows, reached = _newest(trace, table, merge, at)
        if merge.log != at.log:
            known = None
            notes.append(f"another log goes on from epoch {merge.first_number}: running totals begin anew there")
        elif met and _forked(trace, at, chain):
            notes.append(
                f"the log lost its end after epoch {trace.epochs[chain[-1]].number - 1}, and went on from there"
            )
            if _windowed(trace, table, at, chain):
                known = None  # rows of windows that were lost are read again, and count again
        unchanged = reached and known is not None and known[0] is at
        at = merge
        if rows is None and not unchanged:
            continue  # how many there were by then is not known
        total = rows.total if rows is not None else known[1] if known else 0
        if known is not None:
            places = (min(known[0].number + 1, merge.number), merge.number)
            sides.add(places, total - known[1], grown - known[2], f"version {merge.version}")
        known = (merge, total, grown)
    return (sides.equation() if sides.looked else None), notes


def _newest(trace: Trace, table: str, merge: Commit, at: Commit) -> tuple[Rows | None, bool]:
    """What capture says of the newest epoch that touched the table; None: it did not since `at`, if the trace reaches back to there. Where
    the log lost the epoch that `at` ends with, it is the newest of those that are in its place, or before."""
    digest = merge.hash
    while digest != at.hash:
        epoch = trace.epochs.get(digest)
        if epoch is None:
            return None, False
        rows = trace.rows.get((table, digest))
        if rows is not None and rows.captured is not None:
            return rows, True
        digest = epoch.before
    return None, True


def _duplicates(found: Stretch, merge: Commit) -> int:
    """Changes since the base that the table had already."""
    if found.base.totals and merge.totals:
        return merge.totals.get("duplicate", 0) - found.base.totals.get("duplicate", 0)
    return sum(c.sums["duplicate"] for c in found.merges if c.version <= merge.version)


def _forked(trace: Trace, before: Commit, chain: Sequence[str]) -> bool:
    """Whether the epoch that the commit before ends with is not among those that led to these: the log lost it."""
    oldest = trace.epochs.get(chain[-1]) if chain else None
    return oldest is not None and oldest.before != before.hash and oldest.number <= before.number


def _windowed(trace: Trace, table: str, before: Commit, chain: Sequence[str]) -> bool:
    """Whether windowed rows are among what was lost, or that is not known."""
    oldest = trace.epochs[chain[-1]].number if chain else 0
    at, found = before.hash, False
    while (epoch := trace.epochs.get(at)) is not None and epoch.number >= oldest:
        rows = trace.rows.get((table, at))
        found = found or (rows is not None and bool(rows.windowed))
        at = epoch.before
    return found or epoch is None or any(r.windowed for d in chain if (r := trace.rows.get((table, d))))


def windows(rows: Iterable[Rows]) -> Equation | None:
    """What windowed reads found, and what of it is in the log's data. Of an epoch whose rows in the log are not known, `logged` tells."""
    sides = Sides(WINDOWS, "window")
    for one in rows:
        if one.logged is not None and (one.read or one.windowed):
            sides.add((one.number, one.number), one.read, one.windowed + one.touched)
    return sides.equation() if sides.looked else None


# -- in the lake -------------------------------------------------------------------------------------------------------


def lake(found: Stretch) -> list[Equation]:
    """What each commit says of itself, and what the commits' running totals say of those that are missing."""
    folded, effective = Sides(FOLDED, "merge"), Sides(EFFECTIVE, "merge")
    files, committed, totals = Sides(FILES, "lake"), Sides(COMMITTED, "lake"), Sides(TOTALS, "merge")
    at = found.base
    for merge in found.merges:
        places, name = (min(at.number + 1, merge.first_number), merge.number), f"version {merge.version}"
        between = absent(at, merge)
        for sums, where in ((between, "by running totals"), (merge.sums, name)):
            if sums is None:
                continue
            folded.add(places, *_folded(sums), where)
            effective.add(places, *_effective(sums), where)
            files.add(places, _growth(sums), sums["rows_added"] - sums["rows_deleted"], where)
        measured = merge.live_before + merge.sums["rows_added"] - merge.sums["rows_deleted"]
        committed.add(places, measured, merge.live_after, name)
        if merge.totals and at.totals:
            grown = merge.total - at.total - sum((between or {}).get(n, 0) for n in Counts._fields)
            totals.add(places, grown, merge.logged.changes, name)
        at = merge
    return [sides.equation() for sides in (folded, effective, files, committed, totals)]


def _folded(sums: Mapping[str, int]) -> tuple[int, int]:
    return sum(sums[n] for n in Counts._fields), sums["superseded"] + sums["duplicate"] + sums["effective"]


def _effective(sums: Mapping[str, int]) -> tuple[int, int]:
    return sums["effective"] + sums["key_changes"], sum(sums[n] for n in EFFECTS if n != "truncated")


def _growth(sums: Mapping[str, int]) -> int:
    return sums["inserted"] - sums["removed"] - sums["truncated"]


def absent(one: Commit, two: Commit) -> dict[str, int] | None:
    """The sums of our commits between these two that the trace does not have, by what the totals differ by; None: there are none, or the
    trace was written before it had totals. What a commit says wrongly of itself is not taken for one: there is a version between them."""
    if not one.totals or not two.totals or two.version == one.version + 1:
        return None
    sums = {name: two.totals.get(name, 0) - one.totals.get(name, 0) - two.sums[name] for name in SUMS}
    return sums if any(sums.values()) else None


def summed(found: Stretch) -> dict[str, int]:
    """The sums of all commits after the base, those included that only totals tell of."""
    sums = {name: sum(c.sums[name] for c in found.merges) for name in SUMS}
    for one, two in pairwise(found.commits):
        for name, more in (absent(one, two) or {}).items():
            sums[name] += more
    return sums


def brought(one: Commit, two: Commit) -> int:
    """By how many rows the table grew between two commits, or shrank, by none of ours."""
    between = absent(one, two) or {}
    grown = between.get("rows_added", 0) - between.get("rows_deleted", 0)
    return two.live_before - one.live_after - grown
