"""What was checked and when, what came of it, what differs since, what was repaired: kept in the state folder.

A *run* is one check of some kind. What it found is kept as *findings*, each of one key (of values) or one equation (of the ledger), until a
later run that would have seen it again does not, or whoever put it right says so: a sample that agrees says nothing of a difference that
another sample found.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from cdc.reads import Key
from reconcile.database import Database

Kind = Literal["ledger", "values", "repair"]
Trigger = Literal["asked", "schedule"]
Verdict = Literal["agrees", "differs", "failed"]
REST = ""
"""The key of a finding that stands for all rows that were too many to name."""
_PRUNED_AT_ONCE = 1000


@dataclass(frozen=True)
class Run:
    """One check. `tables`: those that were asked for, none for all. `ended_us`, `verdict` and `report` are None while it goes on, and of one
    whose process died (`dead`). Times are µs since 1970."""

    number: int
    kind: Kind
    trigger: Trigger
    tables: tuple[str, ...]
    options: dict[str, Any]
    begun_us: int
    ended_us: int | None = None
    verdict: Verdict | None = None
    report: dict[str, Any] | None = field(default=None, repr=False)
    dead: bool = False


@dataclass(frozen=True)
class TableVerdict:
    """What the newest run of a kind said of a table. `whole`: it was about everything, not about a sample, a window, some columns. `version`: of
    the lake's table, as it was compared."""

    run: int
    table: str
    kind: Kind
    verdict: Verdict
    differences: int
    whole: bool
    at_us: int
    version: int | None = None


@dataclass(frozen=True)
class Finding:
    """What differs, and is not known to be put right: a row of values by its `key`, an equation of the ledger by its name. `rows` is how many rows
    it stands for, where `key` is `REST`, or the size of an equation's gap."""

    kind: Kind
    table: str
    key: str
    what: str
    columns: tuple[str, ...]
    rows: int
    run: int
    since_us: int
    seen_us: int


@dataclass(frozen=True)
class Repaired:
    """One key that was read again. `before` and `after` are digests of the lake's row, None where there was none; `versions` are Delta's;
    `texts` only where values were asked for."""

    table: str
    key: str
    kind: str
    columns: tuple[str, ...] = ()
    before: bytes | None = None
    after: bytes | None = None
    version_before: int | None = None
    version_after: int | None = None
    outcome: str = "repaired"
    texts: Mapping[str, Any] | None = None
    run: int = 0
    at_us: int = 0


class Runs:
    """The store. Several processes may use it at once. Every method raises `StateError` where the file cannot be used."""

    def __init__(self, state: Path) -> None:
        self.database = Database(state)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def begin(self, kind: Kind, trigger: Trigger, tables: Iterable[object], options: Mapping[str, Any]) -> int:
        """A run begins, in this process. Its number. One like it whose process died counts as failed from now on."""
        names, given = _json(sorted(map(str, tables))), _json(options)
        with self.database.write() as db:
            for number, process in _open_runs(db, kind, names, given):
                if not _alive(process):
                    _end(db, number, "failed", {"error": _INTERRUPTED}, _now_us())
            cursor = db.execute(
                "INSERT INTO runs (kind, trigger, tables, options, process, begun_us) VALUES (?, ?, ?, ?, ?, ?)",
                (kind, trigger, names, given, _process(os.getpid()), _now_us()),
            )
            return int(cursor.lastrowid or 0)

    def end(self, run: int, verdict: Verdict, report: Mapping[str, Any]) -> None:
        """With its verdict and what `to_dict` of its report gave: of the whole (`Report`), or of this kind alone. A run that failed gives
        `{"error": LakesyncError.to_dict()}`. Nothing is done to a run that has ended."""
        with self.database.write() as db:
            _end(db, run, verdict, dict(report), _now_us())

    def unfinished(self, kind: Kind, tables: Iterable[object], options: Mapping[str, Any]) -> int | None:
        """The newest run like this whose process died before its end; it is this process's from now on, to go on by its checkpoint."""
        with self.database.write() as db:
            for number, process in _open_runs(db, kind, _json(sorted(map(str, tables))), _json(options)):
                if not _alive(process):
                    db.execute("UPDATE runs SET process = ? WHERE number = ?", (_process(os.getpid()), number))
                    return number
        return None

    def checkpoint(self, run: int) -> RunCheckpoint:
        """Where the run keeps how far it is."""
        return RunCheckpoint(self.database, run)

    def run(self, number: int) -> Run | None:
        """One run, with its report."""
        with self.database.read() as db:
            row = db.execute(f"SELECT {_COLUMNS}, report FROM runs WHERE number = ?", (number,)).fetchone()
        return _run(row) if row else None

    def last(
        self,
        kind: Kind,
        table: object = None,
        *,
        trigger: Trigger | None = None,
        ended: bool = True,
        report: bool = True,
    ) -> Run | None:
        """The newest run of a kind; with `table`, the one that the newest verdict about it is of; not `ended`: the newest one that began; not `report`: without
        it, which is quicker."""
        only = " AND number = (SELECT run FROM verdicts WHERE kind = runs.kind AND name = ? AND which = 'newest')"
        arguments = [kind, trigger, trigger, *([str(table)] if table is not None else [])]
        with self.database.read() as db:
            row = db.execute(
                f"SELECT {_COLUMNS}, {'report' if report else 'NULL'} FROM runs WHERE kind = ? AND (? IS NULL OR trigger = ?)"
                f"{' AND ended_us IS NOT NULL' if ended else ''}{only if table is not None else ''} ORDER BY number DESC LIMIT 1",
                arguments,
            ).fetchone()
        return _run(row) if row else None

    def history(self, limit: int = 100, kind: Kind | None = None) -> list[Run]:
        """The newest runs, of a kind or all, newest first, without their reports."""
        with self.database.read() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS}, NULL FROM runs WHERE ?1 IS NULL OR kind = ?1 ORDER BY number DESC LIMIT ?2",
                (kind, limit),
            ).fetchall()
        return [_run(row) for row in rows]

    def verdicts(self) -> list[TableVerdict]:
        """Of every table and kind the newest one, a run that failed included."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT run, name, kind, verdict, differences, whole, at_us, version FROM verdicts WHERE which = 'newest' ORDER BY name, kind"
            ).fetchall()
        return [TableVerdict(r[0], r[1], r[2], r[3], r[4], bool(r[5]), r[6], r[7]) for r in rows]

    def proven(self) -> dict[str, int]:
        """Of each table the Delta version at which all of its values were compared last and nothing that differed was left of it; what was found
        since takes nothing of that back."""
        with self.database.read() as db:
            rows = db.execute(
                f"SELECT v.name, CASE WHEN {_NOTHING_LEFT} THEN v.version ELSE p.version END FROM verdicts v LEFT JOIN verdicts p "
                # A table that was begun anew has versions from 0 on.
                "ON p.kind = v.kind AND p.name = v.name AND p.which = 'proven' AND p.version <= v.version "
                "WHERE v.kind = 'values' AND v.which = 'whole' AND v.version IS NOT NULL"
            ).fetchall()
        return {name: version for name, version in rows if version is not None}

    def prune(self, keep_s: float) -> int:
        """Forget runs that ended so long ago, but not the newest of a kind, the newest verdict about a table, and what an open finding is of.
        How many."""
        with self.database.write() as db:
            old = db.execute(
                "SELECT number FROM runs r WHERE ended_us < ? AND number < (SELECT max(number) FROM runs WHERE kind = r.kind)"
                " AND NOT EXISTS (SELECT 1 FROM verdicts WHERE run = r.number)"
                " AND NOT EXISTS (SELECT 1 FROM findings WHERE run = r.number AND resolved_us IS NULL) ORDER BY number LIMIT ?",
                (_now_us() - int(keep_s * 1e6), _PRUNED_AT_ONCE),
            ).fetchall()
            for name in ("progress", "repairs", "findings"):
                db.executemany(f"DELETE FROM {name} WHERE run = ?", old)
            db.executemany("DELETE FROM runs WHERE number = ?", old)
        return len(old)

    # -- what differs --------------------------------------------------------------------------------------------------

    def findings(self, table: object = None, limit: int = 10_000) -> list[Finding]:
        """What differs and is not known to be put right, oldest first; of one table, or all."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT kind, name, key, what, columns, rows, run, since_us, seen_us FROM findings "
                "WHERE resolved_us IS NULL AND (?1 IS NULL OR name = ?1) ORDER BY number LIMIT ?2",
                (None if table is None else str(table), limit),
            ).fetchall()
        return [Finding(a, b, c, d, tuple(orjson.loads(columns)), *rest) for a, b, c, d, columns, *rest in rows]

    def unresolved(self) -> dict[tuple[Kind, str], tuple[int, int]]:
        """How many findings are open, and since when the oldest of them is (µs), by kind and table."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT kind, name, sum(CASE kind WHEN 'values' THEN rows ELSE 1 END), min(since_us) FROM findings "
                "WHERE resolved_us IS NULL GROUP BY kind, name"
            ).fetchall()
        return {(kind, name): (count, since) for kind, name, count, since in rows}

    def settled(self, table: object, keys: Iterable[str]) -> int:
        """These keys were compared again and are alike: what was found of their values is over. How many findings were."""
        with self.database.write() as db:
            return sum(
                db.execute(
                    "UPDATE findings SET resolved_us = ? WHERE kind = 'values' AND name = ? AND key = ? AND resolved_us IS NULL",
                    (_now_us(), str(table), key),
                ).rowcount
                for key in keys
                if key != REST
            )

    def note_keys(self, table: object, keys: Mapping[str, Key]) -> None:
        """What the keys of findings are, so that they can be compared again: they are kept as people read them."""
        with self.database.write() as db:
            db.executemany(
                "UPDATE findings SET row_key = ? WHERE kind = 'values' AND name = ? AND key = ? AND resolved_us IS NULL",
                [(_json(key), str(table), text) for text, key in keys.items()],
            )

    def keys(self, table: object, limit: int = 10_000) -> dict[str, Key]:
        """The keys of a table that differ and are not known to be put right, as far as they were noted."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT key, row_key FROM findings WHERE kind = 'values' AND name = ? AND resolved_us IS NULL AND row_key IS NOT NULL "
                "ORDER BY number LIMIT ?",
                (str(table), limit),
            ).fetchall()
        return {text: tuple(orjson.loads(key)) for text, key in rows}

    # -- repairs -------------------------------------------------------------------------------------------------------

    def repaired(self, run: int, keys: Sequence[Repaired]) -> None:
        """Record keys that were read again, all of them or none."""
        with self.database.write() as db:
            db.executemany(
                "INSERT INTO repairs (run, at_us, name, key, kind, columns, before, after, version_before, version_after, outcome, texts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_row(run, k) for k in keys],
            )

    def repairs(self, run: int | None = None, table: object = None, limit: int = 10_000) -> list[Repaired]:
        """What was repaired, oldest first: of one run, of one table, or all."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT name, key, kind, columns, before, after, version_before, version_after, outcome, texts, run, at_us FROM repairs "
                "WHERE (?1 IS NULL OR run = ?1) AND (?2 IS NULL OR name = ?2) ORDER BY number LIMIT ?3",
                (run, None if table is None else str(table), limit),
            ).fetchall()
        return [
            Repaired(
                r[0],
                r[1],
                r[2],
                tuple(orjson.loads(r[3])),
                r[4],
                r[5],
                r[6],
                r[7],
                r[8],
                r[9] and orjson.loads(r[9]),
                r[10],
                r[11],
            )
            for r in rows
        ]

    # -- schedules -----------------------------------------------------------------------------------------------------

    def scheduled_since(self, kind: Kind, schedule: str, *, note: bool = True) -> int:
        """When this schedule was first seen as it is, µs: a daemon that restarts often does not begin to wait anew. Never later than now, though
        the clock was set back. Not `note`: now, if it was never seen."""
        now = _now_us()
        with self.database.read() as db:
            row = db.execute(
                "SELECT since_us FROM schedules WHERE kind = ? AND schedule = ?", (kind, schedule)
            ).fetchone()
        if row is not None and row[0] <= now:
            return int(row[0])
        if note:
            with self.database.write() as db:
                db.execute("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?)", (kind, schedule, now))
        return now


@dataclass(frozen=True)
class RunCheckpoint:
    """`reconcile.scope.Checkpoint` of one run. What it keeps goes when the run ends."""

    database: Database
    run: int

    def load(self, table: str) -> dict[str, Any] | None:
        """What was saved last of a table."""
        with self.database.read() as db:
            row = db.execute("SELECT progress FROM progress WHERE run = ? AND name = ?", (self.run, table)).fetchone()
        return orjson.loads(row[0]) if row else None

    def save(self, table: str, progress: dict[str, Any]) -> None:
        """Instead of what was saved before."""
        with self.database.write() as db:
            db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", (self.run, table, _json(progress)))


def _row(run: int, k: Repaired) -> tuple[Any, ...]:
    said = (k.outcome, None if k.texts is None else _json(k.texts))
    rows = (k.before, k.after, k.version_before, k.version_after)
    return (run, _now_us(), k.table, k.key, k.kind, _json(k.columns), *rows, *said)


_COLUMNS = "number, kind, trigger, tables, options, begun_us, ended_us, verdict, process"
_INTERRUPTED = {
    "code": "Interrupted",
    "what": "the process ended before the check did",
    "where": "",
    "hint": "it begins anew the next time; `--resume` goes on where it was",
}


def _now_us() -> int:
    return time.time_ns() // 1000


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _process(pid: int) -> str:
    """A process by its number and when it started: numbers come again. Empty: there is none, or it has ended and nobody took note."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    fields = stat.rpartition(b")")[2].split()
    return "" if fields[0] in (b"Z", b"X") else f"{pid}:{fields[19].decode()}"


def _alive(process: str) -> bool:
    return bool(process) and _process(int(process.partition(":")[0])) == process


def _run(row: tuple[Any, ...]) -> Run:
    number, kind, trigger, tables, options, begun_us, ended_us, verdict, process, report = row
    dead = ended_us is None and not _alive(process)
    tables, options = tuple(orjson.loads(tables)), orjson.loads(options)
    return Run(
        number, kind, trigger, tables, options, begun_us, ended_us, verdict, report and orjson.loads(report), dead
    )


def _open_runs(db: sqlite3.Connection, kind: Kind, tables: str, options: str) -> list[tuple[int, str]]:
    return db.execute(
        "SELECT number, process FROM runs WHERE kind = ? AND tables = ? AND options = ? AND ended_us IS NULL ORDER BY number DESC",
        (kind, tables, options),
    ).fetchall()


def _end(db: sqlite3.Connection, run: int, verdict: Verdict, report: dict[str, Any], at_us: int) -> None:
    row = db.execute(
        "SELECT kind, tables, options, begun_us FROM runs WHERE number = ? AND ended_us IS NULL", (run,)
    ).fetchone()
    if row is None:
        return
    db.execute(
        "UPDATE runs SET ended_us = ?, verdict = ?, report = ? WHERE number = ?", (at_us, verdict, _json(report), run)
    )
    db.execute("DELETE FROM progress WHERE run = ?", (run,))
    kind, tables, options, begun_us = row[0], orjson.loads(row[1]), orjson.loads(row[2]), row[3]
    seen = _tables(report, kind)
    if kind != "repair":
        windowed = any(options.get(name) is not None for name in ("since", "until"))
        for one in seen:
            _end_table(db, run, kind, one, at_us, windowed=windowed)
        if not seen:
            db.executemany(_VERDICT, [(kind, t, "newest", run, verdict, 0, False, at_us, None) for t in tables])
    if kind != "ledger":
        _resolve_repaired(db, report, begun_us, at_us)


def _tables(report: Mapping[str, Any], kind: Kind) -> list[dict[str, Any]]:
    """The tables of one part of a report; of a whole one, or of that part alone."""
    part = report.get(kind) if kind in report else report
    tables = part.get("tables") if isinstance(part, dict) else None
    return [t for t in tables or () if isinstance(t, dict) and "table" in t]


def _end_table(
    db: sqlite3.Connection, run: int, kind: Kind, one: dict[str, Any], at_us: int, *, windowed: bool
) -> None:
    found = _found_of_ledger(one) if kind == "ledger" else _found_of_values(one)
    if kind != "ledger" and one.get("note") and one.get("equal") and not found:
        return  # it was not compared: that is no verdict, and least of all that it is equal
    whole = not windowed if kind == "ledger" else not any(one.get(n) for n in ("sampled", "columns", "range", "note"))
    if kind == "values":
        db.execute(_PROVEN, (one["table"],))
    if whole:
        _resolve_others(db, kind, one["table"], {key for key, *_ in found}, at_us)
    for key, what, columns, rows in found:
        _find(db, kind, one["table"], key, what, columns, rows, run, at_us)
    differences = sum(rows for *_, rows in found) if kind == "values" else len(found)
    unproven = not found and (one.get("equal") is False or one.get("closes") is False)  # keys that never rest
    holds = "failed" if unproven else "differs" if found else "agrees"
    for which in ("newest", "whole") if whole and holds != "failed" else ("newest",):
        db.execute(_VERDICT, (kind, one["table"], which, run, holds, differences, whole, at_us, one.get("version")))


_VERDICT = "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NOTHING_LEFT = "NOT EXISTS (SELECT 1 FROM findings WHERE kind = 'values' AND name = v.name AND resolved_us IS NULL)"
_PROVEN = (
    "INSERT OR REPLACE INTO verdicts SELECT kind, name, 'proven', run, verdict, differences, whole, at_us, version FROM verdicts v "
    f"WHERE kind = 'values' AND which = 'whole' AND name = ? AND version IS NOT NULL AND {_NOTHING_LEFT}"
)
"""Before anything is found: until then the newest whole run proved the table."""


def _resolve_repaired(db: sqlite3.Connection, report: Mapping[str, Any], since_us: int, at_us: int) -> None:
    """What the repair of this run put right, whichever of the two is recorded first."""
    db.execute(
        "UPDATE findings SET resolved_us = ?1 WHERE kind = 'values' AND resolved_us IS NULL AND seen_us >= ?2 AND EXISTS (SELECT 1 "
        "FROM repairs r WHERE r.name = findings.name AND r.key = findings.key AND r.outcome = 'repaired' AND r.at_us >= ?2)",
        (at_us, since_us),
    )
    repair = report.get("repair")
    if not isinstance(repair, dict) or repair.get("dry_run"):
        return
    for one in _tables(report, "repair"):
        if one.get("ok"):
            db.execute(
                "UPDATE findings SET resolved_us = ?1 WHERE kind = 'values' AND name = ?2 AND seen_us >= ?3 AND resolved_us IS NULL",
                (at_us, one["table"], since_us),
            )


_Found = tuple[str, str, list[str], int]
"""Key, what, columns, rows."""


def _found_of_values(table: Mapping[str, Any]) -> list[_Found]:
    named = {d["key"]: (d["key"], d["kind"], list(d.get("columns", ())), 1) for d in table.get("differences") or ()}
    more = int(table.get("different") or 0) - len(named)
    incomplete = table.get("complete") is False
    rest: list[_Found] = [(REST, "more rows that differ", [], max(more, 1))] if more > 0 or incomplete else []
    return [*named.values(), *rest]


def _found_of_ledger(table: Mapping[str, Any]) -> list[_Found]:
    found: dict[str, _Found] = {}
    for e in table.get("equations") or ():
        if not e.get("holds", True):
            key = f"{e['node']}: {e['name']}" if e.get("node") else e["name"]
            found[key] = (key, str(e.get("where") or ""), [], abs(int(e.get("gap") or 0)))
    if not found and table.get("closes") is False:
        found[REST] = (REST, str(table.get("note") or ""), [], 0)
    return list(found.values())


def _resolve_others(db: sqlite3.Connection, kind: str, table: str, keys: set[str], at_us: int) -> None:
    rows = db.execute(
        "SELECT number, key FROM findings WHERE kind = ? AND name = ? AND resolved_us IS NULL", (kind, table)
    ).fetchall()
    gone = [(at_us, number) for number, key in rows if key not in keys and not (REST in keys and kind == "values")]
    db.executemany("UPDATE findings SET resolved_us = ? WHERE number = ?", gone)


def _find(
    db: sqlite3.Connection,
    kind: str,
    table: str,
    key: str,
    what: str,
    columns: list[str],
    rows: int,
    run: int,
    at_us: int,
) -> None:
    db.execute(
        "INSERT INTO findings (kind, name, key, what, columns, rows, run, since_us, seen_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8) "
        "ON CONFLICT (kind, name, key) WHERE resolved_us IS NULL DO UPDATE SET what = ?4, columns = ?5, rows = ?6, run = ?7, seen_us = ?8",
        (kind, table, key, what, _json(columns), rows, run, at_us),
    )
