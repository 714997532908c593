"""The ledger's equations on made-up histories: a true one closes, and whatever single figure of it is changed, it does not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from cdc.epoch import Counts
from cdc.errors import ConfigError
from reconcile.ledger import balance, framing
from reconcile.ledger.equations import Equation, Sides
from reconcile.ledger.evidence import EFFECTS, SUMS, Commit, Edge, Epoch, Rows, Trace

TABLE = "s.t"
SERVER = "11111111-1111-1111-1111-111111111111"


@dataclass
class Made:
    """A true history of one table: epochs with rows, and commits over one or more of them each."""

    dice: random.Random
    trace: Trace = field(default_factory=lambda: Trace(0, None))
    chain: list[Epoch] = field(default_factory=list)
    total: int = 0
    live: int = 100
    pending: list[str] = field(default_factory=list)
    rows: int | None = None
    """In the files."""

    def __post_init__(self) -> None:
        self.trace.commits[TABLE] = []
        self.sums = dict.fromkeys(SUMS, 0)

    def begin(self) -> None:
        """The bootstrap, at the newest epoch."""
        zero = dict.fromkeys(SUMS, 0) | {"rows_added": 100}
        self.pending.clear()
        totals = zero | dict(zip(Counts._fields, (self.total, 0, 0, 0), strict=True))
        self.sums = totals
        self._commit("snapshot", "bootstrap", zero, 0, self.chain[-1], totals)

    def epoch(self, *, rows: bool = True, jump: bool = False, holes: int = 0) -> Epoch:
        before = self.chain[-1] if self.chain else None
        number = before.number + 1 if before else 1
        transactions = 0 if jump else self.dice.randrange(1, 4)
        size = transactions * 100
        old = before.totals if before else {}
        first = {n: old.get(f"last_{n}", d) for n, d in (("gtids", 10), ("holes", 0), ("offset", 157), ("whole", 1))}
        totals = {
            "transactions": old.get("transactions", 0) + transactions,
            "bytes": old.get("bytes", 0) + size,
            **{f"first_{n}": v for n, v in first.items()},
            "last_gtids": first["gtids"] + (transactions or 50),
            "last_holes": holes,
            "last_offset": first["offset"] + size,
            "last_whole": 1,
            "mariadb": 0,
            "jump": int(jump),
        }
        place = f"{SERVER} binlog.000001 p{number}"
        digest = f"h{number}-{self.dice.randrange(1 << 30)}"
        begins = before.ends if before else f"{SERVER} binlog.000001 p0"
        made = Epoch(
            digest,
            number,
            before.hash if before else "",
            "log",
            transactions,
            transactions or 50,
            size,
            begins,
            place,
            totals,
        )
        self.chain.append(made)
        self.trace.epochs[digest] = made
        if rows and not jump:
            counts = Counts(*(self.dice.randrange(0, 5) for _ in range(3)))
            if counts.changes:
                self.total += counts.changes
                self.trace.rows[TABLE, digest] = Rows(number, counts, counts, self.total)
        self.pending.append(digest)
        return made

    def merge(self, kind: str = "merge") -> None:
        """One commit of everything that is pending."""
        have = [r.logged or Counts() for d in self.pending if (r := self.trace.rows.get((TABLE, d)))]
        touched = [d for d in self.pending if (TABLE, d) in self.trace.rows]
        logged = Counts(*map(sum, zip(*have, strict=True))) if have else Counts()
        superseded = self.dice.randrange(0, logged.changes + 1)
        effective = logged.changes - superseded
        parts = [self.dice.randrange(0, effective + 1) for _ in range(3)]
        cuts = sorted(parts)
        inserted, replaced, removed, absent = (b - a for a, b in pairwise([0, *cuts, effective]))
        sums = dict.fromkeys(SUMS, 0) | logged._asdict()
        sums |= {"superseded": superseded, "effective": effective}
        sums |= dict(zip(EFFECTS, (inserted, replaced, removed, absent, 0), strict=True))
        sums |= {"rows_added": inserted + replaced, "rows_deleted": replaced + removed}
        first = self.trace.epochs[touched[0]] if touched else self.chain[-1]
        self.pending.clear()
        self.sums = {n: self.sums[n] + sums[n] for n in SUMS}
        self._commit("merge", kind, sums, first.number, self.chain[-1], self.sums)

    def _commit(
        self, node: str, kind: str, sums: dict[str, int], first: int, last: Epoch, totals: dict[str, int]
    ) -> None:
        commits = self.trace.commits[TABLE]
        before = commits[-1].live_after if commits and node == "merge" else 0
        after = before + sums["rows_added"] - sums["rows_deleted"]
        version = commits[-1].version + 1 if commits else 0
        total = sum(totals[n] for n in Counts._fields)
        commits.append(
            Commit(
                node,
                kind,
                last.hash,
                "log",
                last.number,
                first or last.number,
                version,
                sums,
                before,
                after,
                dict(totals),
                total,
            )
        )


def history(seed: int, rounds: int = 6) -> Made:
    made = Made(random.Random(seed))
    made.epoch(rows=False)
    made.epoch()
    made.begin()
    for _ in range(rounds):
        for _ in range(made.dice.randrange(1, 4)):
            made.epoch(rows=made.dice.random() < 0.8)
        made.merge()
    return made


def equations(made: Made, *, oldest: int | None = 1) -> list[Equation]:
    trace = made.trace
    chains = framing.chains(trace, made.chain[-1].hash)
    found, _ = framing.source(chains, oldest)
    commits = sorted(trace.commits[TABLE], key=lambda c: c.version)
    one = balance.stretch(commits, 0, commits[-1])
    done = balance.steps(trace, one)
    rows = [r for r in trace.rows.values() if r.number > one.base.number]
    captured = balance.captured(trace, TABLE, [e for e in chains[-1] if e.number > one.base.number])
    once, _ = balance.once(trace, TABLE, one, done)
    merged, _ = balance.merged(trace, TABLE, one, done, [])
    now = Sides(balance.NOW, "lake")
    sums = balance.summed(one)
    grown = one.base.live_after + sums["inserted"] - sums["removed"] - sums["truncated"]
    brought = sum(balance.brought(a, b) for a, b in pairwise(one.commits))
    now.add((0, 0), grown, rows_now(made))
    others = Sides(balance.FOREIGN, "lake")
    others.add((0, 0), 0, brought)
    every = [*found, captured, balance.logged(rows), merged, once, *balance.lake(one)]
    return [e for e in every if e is not None] + [now.equation(), others.equation()]


def rows_now(made: Made) -> int:
    """What the files have: as the history was when this was asked first."""
    if made.rows is None:
        made.rows = made.trace.commits[TABLE][-1].live_after
    return made.rows


def wrong(made: Made, **arguments: Any) -> set[str]:
    return {e.name for e in equations(made, **arguments) if not e.holds}


@pytest.mark.parametrize("seed", range(20))
def test_a_true_history_closes(seed: int) -> None:
    assert wrong(history(seed)) == set()


def figures(made: Made) -> Iterator[tuple[str, Any, Any]]:
    """Every figure of the history after its beginning: its name, how to change it, and how to change it back."""
    trace = made.trace
    base = trace.commits[TABLE][0].number
    for digest, epoch in list(trace.epochs.items()):
        if epoch.number <= base + 1:
            continue
        for name in ("transactions", "gtids", "begins", "ends"):
            value = getattr(epoch, name)
            other: Any = value + 1 if isinstance(value, int) else value + "x"
            if name == "ends" and epoch is made.chain[-1]:
                continue
            yield f"epoch {name}", (trace.epochs, digest, epoch._replace(**{name: other})), epoch
        for name in ("transactions", "bytes", "last_offset"):
            changed = epoch._replace(totals={**epoch.totals, name: epoch.totals[name] + 1})
            yield f"epoch totals {name}", (trace.epochs, digest, changed), epoch
        yield "epoch", (trace.epochs, digest, None), epoch
    last = trace.commits[TABLE][-1].number
    for key, rows in list(trace.rows.items()):
        if not base < rows.number <= last:
            continue
        for name in ("captured", "logged"):
            counts: Counts = getattr(rows, name)
            for operation in Counts._fields[:3]:
                more = counts._replace(**{operation: getattr(counts, operation) + 1})
                yield f"rows {name} {operation}", (trace.rows, key, changed_rows(rows, name, more)), rows
        yield "rows total", (trace.rows, key, replace(rows, total=rows.total + 1)), rows
        yield "rows", (trace.rows, key, None), rows
    commits = trace.commits[TABLE]
    for i, commit in enumerate(commits[1:], 1):
        for name in SUMS:
            if name != "foreign":
                changed_commit = replace(commit, sums={**commit.sums, name: commit.sums[name] + 1})
                yield f"commit {name}", (commits, i, changed_commit), commit
        for name in ("live_before", "live_after", "total"):
            yield f"commit {name}", (commits, i, replace(commit, **{name: getattr(commit, name) + 1})), commit


def changed_rows(rows: Rows, name: str, counts: Counts) -> Rows:
    return replace(rows, captured=counts) if name == "captured" else replace(rows, logged=counts)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_figure_is_wrong_by_one_is_found(seed: int) -> None:
    made = history(seed)
    rows_now(made)
    assert wrong(made) == set()
    looked = 0
    for name, (holder, at, changed), before in list(figures(made)):
        newest = before is made.chain[-1] or (isinstance(before, Rows) and before.number == made.chain[-1].number)
        if newest and changed is None:
            continue
        if changed is None:
            del holder[at]
        else:
            holder[at] = changed
        assert wrong(made), f"{name} of {before}"
        holder[at] = before
        if isinstance(holder, dict):  # in the order in which they were
            ordered = sorted(holder.items(), key=lambda item: item[1].number)
            holder.clear()
            holder.update(ordered)
        looked += 1
    assert wrong(made) == set()
    assert looked > 200


@pytest.mark.parametrize("seed", range(10))
def test_epochs_that_were_trimmed_before_the_trace_had_them_are_known_by_totals(seed: int) -> None:
    made = history(seed, rounds=8)
    rows_now(made)
    lost = [e for e in made.chain[4:-2] if made.dice.random() < 0.4]
    for epoch in lost:
        del made.trace.epochs[epoch.hash]
        made.trace.rows.pop((TABLE, epoch.hash), None)
    assert wrong(made, oldest=made.chain[-1].number) == set()
    # What the log still has is missing.
    if lost:
        assert framing.NUMBERS in wrong(made, oldest=1)


@pytest.mark.parametrize("seed", range(10))
def test_a_mistake_beside_what_is_missing_is_found(seed: int) -> None:
    made = history(seed, rounds=8)
    rows_now(made)
    for epoch in made.chain[5:8]:
        del made.trace.epochs[epoch.hash]
        made.trace.rows.pop((TABLE, epoch.hash), None)
    commits = made.trace.commits[TABLE]
    commits[-1] = replace(commits[-1], total=commits[-1].total - 1)
    assert balance.ONCE in wrong(made, oldest=made.chain[-1].number)


@pytest.mark.parametrize("seed", range(10))
def test_commits_that_were_cleaned_before_the_trace_had_them_are_known_by_totals(seed: int) -> None:
    made = history(seed, rounds=8)
    rows_now(made)
    commits = made.trace.commits[TABLE]
    kept = [c for i, c in enumerate(commits) if i not in (3, 4, 6)]
    made.trace.commits[TABLE] = kept
    assert wrong(made) == set()
    changed = replace(kept[-1], totals={**kept[-1].totals, "inserted": kept[-1].totals["inserted"] + 1})
    middle = kept[3]
    made.trace.commits[TABLE] = [*kept[:3], replace(middle, totals={**middle.totals, "inserted": middle.totals["inserted"] + 1}), *kept[4:]]  # fmt: skip
    assert wrong(made)
    assert changed.totals["inserted"] != kept[-1].totals["inserted"]


def test_two_mistakes_that_cancel_out_are_two() -> None:
    made = history(3)
    rows_now(made)
    (one, first), (two, second) = list(made.trace.rows.items())[1:3]
    assert first.logged is not None
    assert second.logged is not None
    made.trace.rows[one] = replace(first, logged=first.logged._replace(inserts=first.logged.inserts + 1))
    made.trace.rows[two] = replace(second, logged=second.logged._replace(inserts=second.logged.inserts - 1))
    found = next(e for e in equations(made) if e.name == balance.LOGGED)
    assert found.gap == 0
    assert not found.holds
    assert [(g.epochs[0], g.gap) for g in found.wrong] == [(first.number, 1), (second.number, -1)]
    assert found.epochs == (first.number, second.number)
    assert found.to_dict()["wrong"][0]["gap"] == 1


def test_a_history_that_was_left_for_another_is_no_imbalance() -> None:
    made = Made(random.Random(1))
    made.epoch()
    made.epoch(rows=False, jump=True)
    made.begin()
    made.epoch()
    made.merge()
    assert wrong(made) == set()


def test_prepared_transactions_count_where_they_are_committed() -> None:
    """Their bytes are behind the offset already, and the epochs between say nothing."""
    made = Made(random.Random(1))
    first = made.epoch()
    prepared = made.epoch(holes=1)
    committed = made.epoch()
    made.begin()
    shifted = {**prepared.totals, "bytes": prepared.totals["bytes"] - 60}
    made.trace.epochs[prepared.hash] = prepared._replace(totals=shifted)
    found = {e.name: e for e in equations(made)}
    assert found[framing.OFFSETS].holds
    assert found[framing.OFFSETS].left == committed.totals["last_offset"] - first.totals["last_offset"]
    made.trace.epochs[committed.hash] = committed._replace(
        totals={**committed.totals, "bytes": committed.totals["bytes"] - 60}
    )
    assert framing.OFFSETS in wrong(made)


def _changed(made: Made, epoch: Epoch, **totals: int) -> Epoch:
    made.trace.epochs[epoch.hash] = epoch._replace(totals={**epoch.totals, **totals})
    return made.trace.epochs[epoch.hash]


def test_what_is_prepared_is_among_the_bytes_at_once() -> None:
    made = Made(random.Random(1))
    _changed(made, made.epoch(), last_prepared=0)
    prepared = made.epoch(holes=1)
    made.begin()
    prepared = _changed(made, prepared, last_prepared=60, bytes=prepared.totals["bytes"] - 60)
    assert wrong(made) == set()
    _changed(made, prepared, last_prepared=50)
    assert framing.OFFSETS in wrong(made)


def test_transactions_that_were_never_read_are_seen_by_their_bytes() -> None:
    """They leave a hole in the GTID set, which the growth of its size does not show."""
    made = Made(random.Random(1))
    _changed(made, made.epoch(), last_prepared=0)
    behind = made.epoch(holes=3)
    made.begin()
    _changed(made, behind, last_prepared=0, last_offset=behind.totals["last_offset"] + 1000)
    assert wrong(made) == {framing.OFFSETS}


def test_where_capture_goes_on_from_another_history_offsets_begin_anew() -> None:
    made = Made(random.Random(1))
    made.epoch()
    jump = made.epoch(rows=False, jump=True)
    _changed(made, jump, last_offset=157)
    after = made.epoch()
    made.begin()
    _changed(made, after, last_offset=157 + after.totals["last_offset"] - jump.totals["last_offset"])
    assert wrong(made) == set()


def test_a_part_of_a_transaction_is_looked_at_once_it_is_whole() -> None:
    made = Made(random.Random(1))
    made.epoch()
    part = made.epoch(rows=False)
    made.epoch()
    made.begin()
    made.trace.epochs[part.hash] = part._replace(totals={**part.totals, "last_whole": 0, "last_offset": 1})
    assert framing.OFFSETS not in wrong(made)


@pytest.mark.parametrize(("transactions", "gtids", "holds"), [(3, 5, True), (5, 3, False)])
def test_mariadb_may_leave_numbers_out_and_not_use_one_twice(transactions: int, gtids: int, holds: bool) -> None:
    made = history(1)
    last = made.chain[-1]
    totals = {
        **last.totals,
        "mariadb": 1,
        "transactions": last.totals["transactions"] + transactions - last.transactions,
    }
    made.trace.epochs[last.hash] = last._replace(transactions=transactions, gtids=gtids, totals=totals)
    assert (framing.GTIDS not in wrong(made)) == holds


@pytest.mark.parametrize(
    ("left_out", "more_bytes", "holds"),
    [(3, 0, True), (0, 45, True), (1, 90, True), (1, 163, False), (3, 500, False), (0, -1, False)],
)
def test_on_mariadb_a_transaction_that_was_not_read_has_a_number_and_bytes(
    left_out: int, more_bytes: int, holds: bool
) -> None:
    made = history(5)
    epochs = [e._replace(totals={**e.totals, "mariadb": 1}) for e in made.chain]
    last = epochs[-1]
    more = {n: last.totals[n] + d for n, d in (("last_gtids", left_out), ("last_offset", more_bytes))}
    epochs[-1] = last._replace(gtids=last.gtids + left_out, totals={**last.totals, **more})
    made.trace.epochs.update({e.hash: e for e in epochs})
    assert (wrong(made) == set()) == holds


def test_where_a_file_begins_and_ends_nothing_is_said_of_offsets() -> None:
    made = history(2)
    at = made.chain[4]
    for epoch in made.chain[4:]:
        ends = epoch.ends.replace("000001", "000002")
        begins = epoch.begins if epoch is at else epoch.begins.replace("000001", "000002")
        shift = {"last_offset": epoch.totals["last_offset"] - 300}
        made.trace.epochs[epoch.hash] = epoch._replace(ends=ends, begins=begins, totals={**epoch.totals, **shift})
    assert wrong(made) == set()


@pytest.mark.parametrize(
    ("text", "edge"),
    [
        ("1200", Edge(epoch=1200)),
        ("1970-01-02", Edge(us=86_400_000_000)),
        ("1970-01-01T00:00:01.5", Edge(us=1_500_000)),
        ("1970-01-01T01:00:00+01:00", Edge(us=0)),
    ],
)
def test_an_edge_is_an_epoch_or_a_time(text: str, edge: Edge) -> None:
    assert Edge.parse(text) == edge


def test_an_edge_is_so_long_ago() -> None:
    us = Edge.parse("2h").us
    assert us is not None
    assert abs(datetime.now(UTC).timestamp() - 7200 - us / 1e6) < 5


@pytest.mark.parametrize("text", ["", "yesterday", "-3", "2 fortnights", "2026-13-01"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="neither an epoch nor a time"):
        Edge.parse(text)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("touched", [True, False])
def test_a_log_that_lost_its_end_and_read_it_again_into_fewer_epochs(seed: int, touched: bool) -> None:
    """What is in them the table has already: duplicates, and no gap."""
    made = history(seed)
    commits = made.trace.commits[TABLE]
    lost = [e for e in made.chain if e.number > commits[-2].number]
    had = [r.logged for e in lost if (r := made.trace.rows.get((TABLE, e.hash))) and r.logged]
    again = Counts(*map(sum, zip(*had, strict=True))) if had else Counts()
    made.chain = made.chain[: -len(lost)]
    made.total -= again.changes
    one = made.epoch(rows=False)
    new = Counts(3, 0, 0) if touched else Counts()
    counts = again.plus(new)
    if counts.changes:
        made.total += counts.changes
        made.trace.rows[TABLE, one.hash] = Rows(one.number, counts, counts, made.total)
    if counts.changes and touched:
        sums = dict.fromkeys(SUMS, 0) | counts._asdict()
        sums |= {"duplicate": again.changes, "effective": 3, "inserted": 3, "rows_added": 3}
        made.sums = {n: made.sums[n] + sums[n] for n in SUMS}
        made._commit("merge", "merge", sums, one.number, one, made.sums)
    made.pending.clear()
    made.epoch()
    made.merge()
    assert wrong(made) == set()
    last = commits[-1]
    commits[-1] = replace(last, total=last.total + 1)
    assert balance.ONCE in wrong(made)
