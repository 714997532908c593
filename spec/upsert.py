"""A table that takes changes by deletion vectors while it is tidied up (design, section 7; maintenance).

The source is a fixed line of units, each a put or a delete of one key. A table begins with one file that has both keys. A data file's rows
never change; a commit says of each live file which of its rows are dead, in a vector file. A position is the number of units applied.

Actors: two mergers, of which the first keeps its index on disk; someone else who rewrites, deletes, restores. Time passes in ticks; the
retention is one tick: what a version needs that was the newest within it must be there. Accidents, each with a budget: a merger dies, the
answer to a commit is lost, others commit, the table's log is slow to be read while it is cleaned.

Protocol as checked:

* a merger brings its index up to the snapshot that it writes on by the difference of the files that the two know: files that are new to
  it are read (live rows), files that are gone are dropped, a vector that has rows less than the one it knew makes it read the file again;
* an upsert: look the key up; write the new image as a file, and the vector file; put the commit in the next version's place if no one else
  did. On a conflict its files are deleted and it decides again; where the outcome is unknown they stay;
* compaction: the live rows of some files are written as a new file, with the number of the row that each of them was. If other commits
  came first, it looks again: rows whose file is gone or that died meanwhile are dead in the new file, by a vector of its own; where a
  file has rows alive that were dead, it is given up. Its commit states the position of the version that it is made on. Only live rows go into the index;
* a writer whose files are older than the retention gives up: what no version names for so long is taken for an orphan;
* collecting: on the *newest* version, what is named neither by a live file nor by one that was removed within the retention, and is itself older
  than it; decided at one moment, deleted later;
* a checkpoint holds a version's whole state. Commits are deleted from the oldest on, while they are before a checkpoint and before the
  newest commit that bears a position, are taken by the trace, and no version within the retention needs them. Where others' commits lie on the one
  that bears the position, it is restated first;
* a commit is put only where the version that it is made on is still there: else the next one's name may be free because it was deleted;
* who reads the log lists it, then reads; finds that what it listed is gone, and lists again.

Invariants, at every version: the table is what its commits said (no key twice, none lost, none back from the dead); the newest
version and each that was it within the retention can be read, with all files and vectors; the position is there and never goes back; the
trace lacks no commit. At rest all units are applied, and no file is left that can be collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from checker import Label, main

UNITS = (("put", 0), ("put", 1), ("del", 1), ("put", 0))
KEYS = 2
Place = tuple[int, int]
"""A file and a row of it."""


class Live(NamedTuple):
    file: int
    vector: int  # the vector file's number, -1: none
    dead: int  # rows, as bits


class Commit(NamedTuple):
    version: int
    live: tuple[Live, ...]
    removed: tuple[tuple[int, int, int], ...]  # file, vector, when
    position: int
    bears: int  # the version of the newest commit that states the position
    truth: tuple[int, ...]  # what the table should be: a value per key, -1: none
    at: int


class Index(NamedTuple):
    known: tuple[tuple[int, int], ...]  # file, dead rows
    places: tuple[Place | None, ...]  # the newest place of each key


class Work(NamedTuple):
    """What is written and not yet committed."""

    on: Commit
    file: int
    vector: int
    at: int
    kept: tuple[Place, ...]  # of a compaction: what each of its rows was
    compacts: bool


class Merger(NamedTuple):
    snapshot: Commit | None
    index: Index
    work: Work | None
    dead: tuple[tuple[str, int], ...]  # to be deleted
    listed: int  # the first version that a slow reading of the log goes on from, -1: none


class S(NamedTuple):
    now: int
    log: tuple[Commit, ...]  # every version, also those whose JSON is gone
    first: int  # the oldest version whose JSON is there
    checkpoints: tuple[int, ...]
    files: tuple[tuple[int, tuple[tuple[int, int], ...], int], ...]  # number, rows as (key, value), when
    vectors: tuple[tuple[int, int], ...]  # number, when
    mergers: tuple[Merger, ...]
    saved: Index
    number: int  # the next file's
    traced: int  # the newest version that the trace has
    crashes: int
    answers: int
    compactions: int
    ticks: int
    saves: int
    marks: int  # checkpoints
    foreign: str  # what others may still do
    alarm: str


EMPTY = Index((), (None,) * KEYS)
DOWN = Merger(None, EMPTY, None, (), -1)

MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "index_not_synced": ("what others commit is not brought into the index", {"foreign": "o"}),
    "restored_not_read": (
        "a file whose vector lost rows is not read again",
        {"foreign": "r", "units": 4, "mergers": 1},
    ),
    "new_files_not_read": (
        "a saved index is taken as it is, without what came after it",
        {"saves": 1, "crashes": 1, "units": 4, "mergers": 1},
    ),
    "all_rows_indexed": (
        "of a compacted file the rows that died meanwhile are indexed too",
        {"compactions": 1, "units": 4},
    ),
    "no_mapping": ("a compaction that met other commits is committed as it was planned", {"compactions": 1}),
    "mapped_by_number": ("rows that died are mapped as if none had been dead before", {"compactions": 1}),
    "gone_file_kept": ("a file that is gone meanwhile is not mapped", {"compactions": 1}),
    "restored_in_compaction": (
        "rows that came back to life meanwhile are forgotten",
        {"compactions": 1, "foreign": "r", "units": 2},
    ),
    "compacts_over": ("a compaction's commit replaces a version that exists", {"compactions": 1}),
    "old_position": ("a compaction states the position of the version that it was planned on", {"compactions": 1}),
    "unlink_on_unknown": ("the files of a commit with an unknown outcome are deleted", {"answers": 1}),
    "no_put_if_absent": ("a commit replaces a version that exists", {}),
    "old_files_committed": ("a writer commits files, however old they are", {"ticks": 1, "mergers": 2}),
    "collects_at_once": ("what no version names is deleted, however young", {"mergers": 2}),
    "no_retention": ("what was removed is deleted, although older versions need it", {"ticks": 1, "mergers": 1}),
    "collects_on_old": ("what is dead is decided on whatever version the merger knows", {"ticks": 1, "mergers": 2}),
    "vectors_as_files": (
        "a vector file goes once one of the files that it is for does not name it",
        {"ticks": 1, "mergers": 1},
    ),
    "no_restate": (
        "the commit that bears the position is deleted like any other",
        {"ticks": 1, "marks": 1, "foreign": "o"},
    ),
    "cleaned_uncovered": ("commits are deleted without a checkpoint behind them", {"ticks": 1, "mergers": 1}),
    "no_log_retention": (
        "commits are deleted although older versions need them",
        {"ticks": 1, "marks": 1, "mergers": 1},
    ),
    "trace_forgotten": (
        "commits are deleted that the trace has not taken",
        {"ticks": 1, "marks": 1, "mergers": 1, "trace": 1},
    ),
    "commits_below": (
        "a commit is put on a version whose own commit is deleted",
        {"ticks": 1, "marks": 1},
    ),
    "listed_once": ("a reader of the log does not list it again", {"ticks": 1, "marks": 1, "slow": 1}),
}
BOUNDS = {
    "units": 2,
    "mergers": 2,
    "crashes": 0,
    "answers": 0,
    "compactions": 0,
    "ticks": 0,
    "saves": 0,
    "marks": 0,
    "trace": 0,
    "slow": 0,
    "foreign": "",  # o: OPTIMIZE, d: DELETE of key 0, r: RESTORE of an older version
}

RUNS: list[dict[str, Any]] = [
    {"compactions": 1, "answers": 1, "crashes": 1, "units": 4},
    {"compactions": 2, "units": 4},
    {"compactions": 1, "foreign": "od", "units": 3},
    {"compactions": 1, "foreign": "r", "units": 4},
    {"saves": 2, "crashes": 1, "foreign": "r", "mergers": 1, "compactions": 1},
    {"saves": 1, "crashes": 1, "foreign": "o"},
    {"ticks": 1, "compactions": 1, "answers": 1},
    {"ticks": 1, "crashes": 1, "units": 1},
    {"ticks": 2, "foreign": "r"},
    {"ticks": 1, "marks": 1, "foreign": "o"},
    {"ticks": 2, "marks": 2, "trace": 1, "compactions": 1, "mergers": 1},
    {"ticks": 1, "marks": 1, "slow": 1},
]


class Upsert:
    def __init__(self, mutant: str | None, bounds: dict[str, Any]) -> None:
        self.mutant, self.bounds = mutant, bounds
        self.units = UNITS[: bounds["units"]]

    def initial(self) -> Iterator[S]:
        b = self.bounds
        rows = tuple((key, 100) for key in range(KEYS))
        first = Commit(0, (Live(0, -1, 0),), (), 0, 0, (100,) * KEYS, 0)
        yield S(
            now=0,
            log=(first,),
            first=0,
            checkpoints=(),
            files=((0, rows, 0),),
            vectors=(),
            mergers=(DOWN,) * b["mergers"],
            saved=EMPTY,
            number=1,
            traced=0,
            crashes=b["crashes"],
            answers=b["answers"],
            compactions=b["compactions"],
            ticks=b["ticks"],
            saves=b["saves"],
            marks=b["marks"],
            foreign=b["foreign"],
            alarm="",
        )

    def steps(self, s: S) -> Iterator[tuple[Label, S]]:
        for label, after in self.all_steps(s):
            yield label, self.normal(after)

    def normal(self, s: S) -> S:
        """The same state, with what can make no difference any more left out: old versions, gaps between numbers, who of two is which."""
        log = s.log if self.bounds["ticks"] or "r" in self.bounds["foreign"] else s.log[-1:]
        mergers = s.mergers if self.bounds["saves"] else tuple(sorted(s.mergers, key=repr))
        commits = {*log, *(m.snapshot for m in mergers if m.snapshot), *(m.work.on for m in mergers if m.work)}
        numbers = {n for n, _, _ in s.files} | {n for n, _ in s.vectors} | {p[0] for p in s.saved.places if p}
        numbers |= {f for f, _ in s.saved.known}
        for c in commits:
            numbers |= {f.file for f in c.live} | {f.vector for f in c.live} | {n for r in c.removed for n in r[:2]}
        for m in mergers:
            numbers |= {n for _, n in m.dead} | {f for f, _ in m.index.known} | {p[0] for p in m.index.places if p}
            if m.work:
                numbers |= {m.work.file, m.work.vector, *(f for f, _ in m.work.kept)}
        numbers.discard(-1)
        new = {n: rank for rank, n in enumerate(sorted(numbers))} | {-1: -1}
        if s.number == len(numbers):
            return s._replace(log=log, mergers=mergers)
        places = lambda found: tuple(p and (new[p[0]], p[1]) for p in found)  # noqa: E731
        index = lambda i: Index(tuple((new[f], d) for f, d in i.known), places(i.places))  # noqa: E731
        renamed = {
            c: c._replace(
                live=tuple(Live(new[f.file], new[f.vector], f.dead) for f in c.live),
                removed=tuple((new[f], new[v], at) for f, v, at in c.removed),
            )
            for c in commits
        }
        return s._replace(
            log=tuple(renamed[c] for c in log),
            files=tuple((new[n], rows, at) for n, rows, at in s.files),
            vectors=tuple((new[n], at) for n, at in s.vectors),
            saved=index(s.saved),
            number=len(numbers),
            mergers=tuple(
                Merger(
                    m.snapshot and renamed[m.snapshot],
                    index(m.index),
                    m.work
                    and m.work._replace(
                        on=renamed[m.work.on],
                        file=new[m.work.file],
                        vector=new[m.work.vector],
                        kept=places(m.work.kept),
                    ),
                    tuple((kind, new[n]) for kind, n in m.dead),
                    m.listed,
                )
                for m in mergers
            ),
        )

    def within(self, s: S) -> list[Commit]:
        """The versions that were the newest one within the retention."""
        return [c for c, after in zip(s.log, s.log[1:]) if after.at >= s.now] + [s.log[-1]]

    def all_steps(self, s: S) -> Iterator[tuple[Label, S]]:
        if s.alarm:
            return
        if s.ticks:
            yield "time passes", s._replace(ticks=s.ticks - 1, now=s.now + 1)
        if self.bounds["trace"] and s.traced < s.log[-1].version:
            yield "the trace takes the commits", s._replace(traced=s.log[-1].version)
        yield from self.foreign_steps(s)
        for i, merger in enumerate(s.mergers):
            yield from self.merger_steps(s, i, merger)

    # -- what the store holds ---------------------------------------------------------------------------------------------

    @staticmethod
    def rows(s: S, file: int) -> tuple[tuple[int, int], ...] | None:
        return next((rows for number, rows, _ in s.files if number == file), None)

    @staticmethod
    def alive(s: S, live: tuple[Live, ...]) -> list[tuple[Place, int, int]]:
        """Place, key and value of every live row."""
        return [
            ((number, row), key, value)
            for number, rows, _ in s.files
            for f in live
            if f.file == number
            for row, (key, value) in enumerate(rows)
            if not f.dead >> row & 1
        ]

    @staticmethod
    def with_file(s: S, rows: tuple[tuple[int, int], ...]) -> tuple[S, int]:
        return s._replace(files=(*s.files, (s.number, rows, s.now)), number=s.number + 1), s.number

    @staticmethod
    def with_vector(s: S) -> tuple[S, int]:
        return s._replace(vectors=(*s.vectors, (s.number, s.now)), number=s.number + 1), s.number

    @staticmethod
    def without(s: S, dead: tuple[tuple[str, int], ...]) -> S:
        return s._replace(
            files=tuple(f for f in s.files if ("file", f[0]) not in dead),
            vectors=tuple(v for v in s.vectors if ("vector", v[0]) not in dead),
        )

    @staticmethod
    def put(s: S, i: int, merger: Merger) -> S:
        return s._replace(mergers=s.mergers[:i] + (merger,) + s.mergers[i + 1 :])

    def append(
        self, s: S, on: Commit, live: tuple[Live, ...], position: int, truth: tuple[int, ...], *, bears: bool
    ) -> S:
        """The version behind `on`. What `live` does not have any more of its files and vectors is removed now."""
        gone = [(f.file, f.vector, s.now) for f in on.live if f not in live]
        removed = tuple(sorted({r for r in on.removed if r[2] >= s.now} | set(gone)))
        version = on.version + 1
        after = Commit(version, tuple(sorted(live)), removed, position, version if bears else on.bears, truth, s.now)
        last = s.log[-1]
        alarm = f"version {version} has position {position}, version {last.version} {last.position}"
        s = s._replace(alarm=alarm if position < last.position else s.alarm)
        return s._replace(log=(*(c for c in s.log if c.version < version), after))

    # -- others ---------------------------------------------------------------------------------------------------------

    def foreign_steps(self, s: S) -> Iterator[tuple[Label, S]]:
        on = s.log[-1]
        for what in sorted(set(s.foreign)):
            left = s._replace(foreign=s.foreign.replace(what, "", 1))
            if what == "o" and on.live:
                rows = tuple((key, value) for _, key, value in self.alive(s, on.live))
                after, file = self.with_file(left, rows)
                yield (
                    "others: OPTIMIZE",
                    self.append(after, on, (Live(file, -1, 0),), on.position, on.truth, bears=False),
                )
            elif what == "d":
                place = next((p for p, key, _ in self.alive(s, on.live) if key == 0), None)
                if place:
                    truth = (-1, *on.truth[1:])
                    after, live, _ = self.kill(left, on.live, [place])
                    yield "others: DELETE", self.append(after, on, live, on.position, truth, bears=False)
            elif what == "r":
                for old in self.within(s)[:-1]:
                    after = self.append(left, on, old.live, on.position, old.truth, bears=False)
                    yield f"others: RESTORE of version {old.version}", after

    def kill(self, s: S, live: tuple[Live, ...], places: list[Place]) -> tuple[S, tuple[Live, ...], int]:
        """These rows are dead: one vector file for all touched files; a file without live rows goes. The vector file's number."""
        after: list[Live] = []
        touched = []
        for f in live:
            dead = f.dead
            for file, row in places:
                dead |= (1 << row) if file == f.file else 0
            if dead == f.dead:
                after.append(f)
            elif dead != (1 << len(self.rows(s, f.file) or ())) - 1:
                touched.append((f.file, dead))
        number = -1
        if touched:
            s, number = self.with_vector(s)
        return s, tuple(sorted([*after, *(Live(file, number, dead) for file, dead in touched)])), number

    # -- mergers --------------------------------------------------------------------------------------------------------

    def sync(self, s: S, index: Index, commit: Commit) -> Index:
        """The index as of a version, by what has changed since the one that it knows."""
        known = dict(index.known)
        places = list(index.places)
        for f in commit.live:
            rows = self.rows(s, f.file) or ()
            restored = known.get(f.file, 0) & ~f.dead
            if f.file in known and (not restored or self.mutant == "restored_not_read"):
                continue
            if f.file in known or self.mutant != "index_not_synced":
                for row, (key, _) in enumerate(rows):
                    if not f.dead >> row & 1:
                        places[key] = (f.file, row)
        live = {f.file: f.dead for f in commit.live}
        found = (p if p and p[0] in live and not live[p[0]] >> p[1] & 1 else None for p in places)
        return Index(tuple(sorted(live.items())), tuple(found))

    def merger_steps(self, s: S, i: int, merger: Merger) -> Iterator[tuple[Label, S]]:
        name = f"merger {i}"
        newest, on, work = s.log[-1], merger.snapshot, merger.work
        if s.crashes and merger != DOWN:
            yield f"{name} dies", self.put(s._replace(crashes=s.crashes - 1), i, DOWN)
        if on != newest and work is None:
            yield from self.load(s, i, merger)
        if merger.dead:
            yield f"{name} deletes {merger.dead}", self.put(self.without(s, merger.dead), i, merger._replace(dead=()))
        if on is None:
            return
        if work is not None:
            yield from self.commit(s, i, merger, work)
            return
        if i == 0 and s.saves and s.saved != merger.index:
            yield f"{name} saves its index", s._replace(saves=s.saves - 1, saved=merger.index)
        if on.position < len(self.units):
            yield f"{name} writes unit {on.position}", self.write(s, i, merger, on)
        if s.compactions and (len(on.live) > 1 or any(f.dead for f in on.live)):
            rows = self.alive(s, on.live)
            if rows:
                after, file = self.with_file(
                    s._replace(compactions=s.compactions - 1), tuple((k, v) for _, k, v in rows)
                )
                begun = Work(on, file, -1, s.now, tuple(place for place, _, _ in rows), True)
                yield f"{name} writes compacted file {file}", self.put(after, i, merger._replace(work=begun))
        yield from self.tidy(s, i, merger, on)

    def load(self, s: S, i: int, merger: Merger) -> Iterator[tuple[Label, S]]:
        name, newest = f"merger {i}", s.log[-1]
        if self.bounds["slow"] and merger.snapshot is None and merger.listed < 0:
            start = max((*s.checkpoints, -1)) + 1
            yield f"{name} lists the log", self.put(s, i, merger._replace(listed=start))
            return
        if merger.listed >= 0 and s.first > merger.listed:
            if self.mutant == "listed_once":
                yield f"{name} misses version {merger.listed}", s._replace(alarm="a whole table is taken for damaged")
            else:
                yield f"{name} misses version {merger.listed}, lists again", self.put(s, i, merger._replace(listed=-1))
            return
        index = merger.index
        if merger.snapshot is None and i == 0 and index == EMPTY:
            index = s.saved
        if not (self.mutant == "new_files_not_read" and index != EMPTY and merger.snapshot is None):
            index = self.sync(s, index, newest)
        yield f"{name} loads version {newest.version}", self.put(s, i, Merger(newest, index, None, merger.dead, -1))

    def write(self, s: S, i: int, merger: Merger, on: Commit) -> S:
        """The files of an upsert on the merger's snapshot."""
        op, key = self.units[on.position]
        place = merger.index.places[key]
        file = vector = -1
        if op == "put":
            s, file = self.with_file(s, ((key, on.position),))
        if place:
            s, _, vector = self.kill(s, on.live, [place])
        return self.put(s, i, merger._replace(work=Work(on, file, vector, s.now, (place,) if place else (), False)))

    def commit(self, s: S, i: int, merger: Merger, work: Work) -> Iterator[tuple[Label, S]]:
        name, newest = f"merger {i}", s.log[-1]
        mine = (("file", work.file), ("vector", work.vector))
        if work.at < s.now and self.mutant != "old_files_committed":
            yield (
                f"{name}: its files are too old, gives up",
                self.put(self.without(s, mine), i, merger._replace(work=None)),
            )
            return
        if work.on.version + 1 < s.first and self.mutant == "commits_below":
            yield f"{name} commits version {work.on.version + 1} again", s._replace(alarm="a commit that no one reads")
            return
        over = self.mutant == "no_put_if_absent" or (self.mutant == "compacts_over" and work.compacts)
        if work.on != newest and not over:
            if not work.compacts:
                after = self.put(self.without(s, mine), i, merger._replace(work=None))
                yield f"{name}: version {work.on.version + 1} exists", after
            else:
                yield from self.look_again(s, i, merger, work)
            return
        on = work.on
        if work.compacts:
            files = {file for file, _ in work.kept}
            dead = self.dead_in(work, on)
            rest = tuple(f for f in on.live if f.file not in files)
            new = (Live(work.file, work.vector, dead),) if dead != (1 << len(work.kept)) - 1 else ()
            after = self.append(s, on, rest + new, on.position, on.truth, bears=True)
            if self.mutant == "old_position" and merger.snapshot:
                after = self.append(s, on, rest + new, merger.snapshot.position, on.truth, bears=True)
        else:
            op, key = self.units[on.position]
            truth = list(on.truth)
            truth[key] = on.position if op == "put" else -1
            _, live, number = self.kill(s, on.live, list(work.kept))
            live = tuple(f._replace(vector=work.vector) if f.vector == number >= 0 else f for f in live)
            added = (Live(work.file, -1, 0),) if work.file >= 0 else ()
            after = self.append(s, on, live + added, on.position + 1, tuple(truth), bears=True)
        done = after.log[-1]
        known = merger.index
        if work.compacts and self.mutant == "all_rows_indexed":
            rows = self.rows(after, work.file) or ()
            places = list(self.sync(after, known, done).places)
            for row, (key, _) in enumerate(rows):
                places[key] = (work.file, row)
            index = Index(self.sync(after, known, done).known, tuple(places))
        else:
            index = self.sync(after, known, done)
        if self.mutant == "index_not_synced":  # its own files it knows
            places = list(index.places)
            for place, key, _ in self.alive(after, done.live):
                if place[0] == work.file:
                    places[key] = place
            index = Index(index.known, tuple(places))
        yield f"{name} commits version {done.version}", self.put(after, i, Merger(done, index, None, merger.dead, -1))
        if s.answers:
            lost = after._replace(answers=s.answers - 1)
            if self.mutant == "unlink_on_unknown":
                lost = self.without(lost, mine)
            forgot = Merger(None, merger.index, None, merger.dead, -1)
            yield f"{name} commits version {done.version}, answer lost", self.put(lost, i, forgot)

    def dead_in(self, work: Work, on: Commit) -> int:
        """Which rows of a compacted file are not alive in the version it is committed on."""
        live = {f.file: f.dead for f in on.live}
        dead = 0
        for row, (file, was) in enumerate(work.kept):
            if self.mutant == "no_mapping":
                continue
            if self.mutant == "mapped_by_number":
                was = sum(other == file for other, _ in work.kept[:row])
            if file not in live:
                dead |= 0 if self.mutant == "gone_file_kept" else 1 << row
            elif live[file] >> was & 1:
                dead |= 1 << row
        return dead

    def look_again(self, s: S, i: int, merger: Merger, work: Work) -> Iterator[tuple[Label, S]]:
        """A compaction met other commits."""
        name, newest = f"merger {i}", s.log[-1]
        files = {file for file, _ in work.kept}
        back = any(place[0] in files and place not in work.kept for place, _, _ in self.alive(s, newest.live))
        left = files & {f.file for f in newest.live}
        index = self.sync(s, merger.index, newest)
        mine = (("file", work.file), ("vector", work.vector))
        s = self.without(s, mine[1:])
        if (back and self.mutant != "restored_in_compaction") or (not left and self.mutant != "gone_file_kept"):
            after = self.put(self.without(s, mine), i, merger._replace(snapshot=newest, index=index, work=None))
            yield f"{name} gives compacted file {work.file} up", after
            return
        vector = -1
        if self.dead_in(work, newest):
            s, vector = self.with_vector(s)
        # The mutant needs to know on what it was planned.
        snapshot = merger.snapshot if self.mutant == "old_position" else newest
        again = merger._replace(snapshot=snapshot, index=index, work=work._replace(on=newest, vector=vector))
        yield f"{name} maps compacted file {work.file} to version {newest.version}", self.put(s, i, again)

    # -- tidying up -----------------------------------------------------------------------------------------------------

    def tidy(self, s: S, i: int, merger: Merger, on: Commit) -> Iterator[tuple[Label, S]]:
        name, newest = f"merger {i}", s.log[-1]
        if not merger.dead and (on == newest or self.mutant == "collects_on_old"):
            dead = self.garbage(s, on)
            if dead:
                yield f"{name} finds {dead} dead", self.put(s, i, merger._replace(dead=dead))
        if s.marks and on.version > max((*s.checkpoints, -1)):
            marks = s._replace(marks=s.marks - 1, checkpoints=(*s.checkpoints, on.version))
            yield f"{name} writes checkpoint {on.version}", marks
        oldest = self.within(s)[0].version
        if self.mutant == "no_log_retention":
            oldest = newest.version
        # From this checkpoint on every version within the retention can be read.
        covered = max((c for c in s.checkpoints if c <= oldest), default=-1)
        if self.mutant == "cleaned_uncovered":
            covered = oldest
        if self.bounds["trace"] and s.traced < s.first and self.mutant != "trace_forgotten":
            return
        if s.first >= covered:
            return
        if s.first < on.bears or self.mutant == "no_restate":
            yield f"{name} deletes commit {s.first}", s._replace(first=s.first + 1)
        elif on == newest and on.bears < on.version:
            after = self.append(s, on, on.live, on.position, on.truth, bears=True)
            done = after.log[-1]
            index = self.sync(after, merger.index, done)
            yield (
                f"{name} restates position {on.position}",
                self.put(after, i, merger._replace(snapshot=done, index=index)),
            )

    def garbage(self, s: S, on: Commit) -> tuple[tuple[str, int], ...]:
        young = [] if self.mutant == "no_retention" else [r for r in on.removed if r[2] >= s.now]
        files = {f.file for f in on.live} | {r[0] for r in young}
        vectors = {f.vector for f in on.live} | {r[1] for r in young}
        if self.mutant == "vectors_as_files":
            vectors -= {r[1] for r in on.removed}
        limit = s.now + (self.mutant in ("collects_at_once", "no_retention"))
        if self.mutant == "no_retention":
            files |= {n for n, _, _ in s.files if all(n != r[0] for r in on.removed)}
            vectors |= {n for n, _ in s.vectors if all(n != r[1] for r in on.removed)}
        dead = [("file", n) for n, _, at in s.files if n not in files and at < limit]
        return tuple(dead + [("vector", n) for n, at in s.vectors if n not in vectors and at < limit])

    # -- what must hold -------------------------------------------------------------------------------------------------

    def broken(self, s: S) -> str | None:
        if s.alarm:
            return s.alarm
        newest = s.log[-1]
        found = sorted((key, value) for _, key, value in self.alive(s, newest.live))
        if any(found[n][0] == found[n + 1][0] for n in range(len(found) - 1)):
            return f"version {newest.version} has a key twice: {found}"
        missing = self.missing(s, newest)
        if missing:
            return missing
        said = [(key, value) for key, value in enumerate(newest.truth) if value >= 0]
        if found != said:
            return f"version {newest.version} holds {found}, its commits say {said}"
        for older in self.within(s)[:-1]:
            if missing := self.missing(s, older):
                return f"within the retention: {missing}"
        if newest.bears < s.first:
            return f"the position's commit {newest.bears} is deleted"
        if self.bounds["trace"] and s.traced + 1 < s.first:
            return f"the trace has commits up to {s.traced}, and they are deleted up to {s.first - 1}"
        return None

    def missing(self, s: S, commit: Commit) -> str | None:
        files, vectors = {n for n, _, _ in s.files}, {n for n, _ in s.vectors}
        for f in commit.live:
            if f.file not in files:
                return f"version {commit.version} lacks file {f.file}"
            if f.vector >= 0 and f.vector not in vectors:
                return f"version {commit.version} lacks vector file {f.vector}"
        base = max((c for c in s.checkpoints if c <= commit.version), default=-1)
        return f"version {commit.version} lacks commits" if s.first > base + 1 else None

    def unfinished(self, s: S) -> str | None:
        newest = s.log[-1]
        if newest.position < len(self.units):
            return f"at rest at position {newest.position} of {len(self.units)}"
        if left := self.garbage(s, newest):
            return f"at rest with {left} dead and not deleted"
        return None

    def show(self, s: S) -> str:
        newest = s.log[-1]
        live = " ".join(f"{f.file}" + (f"-{f.dead:b}@{f.vector}" if f.dead else "") for f in newest.live) or "nothing"
        parts = [f"v{newest.version} position {newest.position}: {live}", f"files {[n for n, _, _ in s.files]}"]
        if s.vectors:
            parts.append(f"vectors {[n for n, _ in s.vectors]}")
        if s.first or s.checkpoints:
            parts.append(f"commits from {s.first} checkpoints {list(s.checkpoints)}")
        return ", ".join(parts)


def build(mutant: str | None, bounds: dict[str, Any]) -> Upsert:
    return Upsert(mutant, bounds)


if __name__ == "__main__":
    main(__doc__ or "", build, MUTANTS, BOUNDS)
