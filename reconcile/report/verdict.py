"""What a reconciliation comes to, in a word, in a sentence, and in one sentence a part. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from reconcile.ledger.close import LedgerReport
    from reconcile.values.found import TableValues, ValuesReport

State = Literal["agrees", "repaired", "differs", "failed"]
"""`agrees`: all that was asked for was checked and holds. `repaired`: rows differed, were read again and are equal now. `failed`: a part
could not be done, and what was done shows no difference."""


def state(
    ledger: LedgerReport | None,
    values: ValuesReport | None,
    repair: Mapping[str, Any] | None,
    failed: Sequence[Mapping[str, Any]],
) -> State:
    """The verdict in a word. A difference that was found is said even where another part failed."""
    mended = _mended(repair)
    if (ledger and not ledger.closes) or (values and not values.equal and not mended):
        return "differs"
    if failed:
        return "failed"
    if repair and not repair["dry_run"] and not mended:
        return "differs"
    return "repaired" if repair and mended and repair["keys"] else "agrees"


def _mended(repair: Mapping[str, Any] | None) -> bool:
    return repair is not None and not repair["dry_run"] and bool(repair["ok"])


def sentence(
    verdict: State,
    ledger: LedgerReport | None,
    values: ValuesReport | None,
    repair: Mapping[str, Any] | None,
    failed: Sequence[Mapping[str, Any]],
) -> str:
    """The verdict in one sentence, for people."""
    if verdict == "repaired":
        keys = repair["keys"] if repair else 0
        return f"Source and lake agree again: {_count(keys, 'row')} differed and {'was' if keys == 1 else 'were'} put right."
    if verdict == "agrees":
        if values is None:
            return "The ledger closes: every row change that was counted anywhere is accounted for."
        partly = [t for t in values.tables if _part(t)]
        if not [t for t in values.tables if not t.note]:
            return "Nothing was compared: no table keeps what the source has now."
        return "Source and lake agree" + (", as far as they were compared." if partly else ".")
    if verdict == "failed":
        return f"Not everything could be checked: {failed[0]['what']}."
    wrong: list[str] = []
    if values and not values.equal:
        differ = [t for t in values.tables if t.different or not t.complete]
        unsettled = sum(t.unsettled for t in values.tables)
        if differ:
            least = "at least " if any(not t.complete for t in differ) else ""
            rows = sum(t.different for t in differ)
            wrong.append(
                f"{least}{_count(rows, 'row')} in {_count(len(differ), 'table')} {'is' if rows == 1 else 'are'} not equal"
            )
        if unsettled:
            wrong.append(f"{_count(unsettled, 'row')} never rested long enough to be compared")
    if ledger and not ledger.closes:
        open_ = [t.table for t in ledger.tables if not t.closes]
        wrong.append(f"the ledger does not close for {open_[0] if len(open_) == 1 else _count(len(open_), 'table')}")
    if not wrong:
        wrong.append("rows that were read again differ still")
    return f"Source and lake do not agree: {', and '.join(wrong)}."


def details(
    ledger: LedgerReport | None,
    values: ValuesReport | None,
    repair: Mapping[str, Any] | None,
    failed: Sequence[Mapping[str, Any]],
) -> list[str]:
    """A sentence a part: what was looked at, and how far it reaches."""
    said: list[str] = []
    if values:
        compared = [t for t in values.tables if not t.note]
        rows = sum(t.source_rows for t in compared)
        text = f"{_count(rows, 'row')} of {_count(len(compared), 'table')} compared with the lake at epoch {values.epoch:,}"
        if settled := sum(t.settled for t in values.tables):
            text += f"; {settled:,} that changed meanwhile or {'was' if settled == 1 else 'were'} in doubt read again until settled"
        said.append(text + ".")
        if partly := [t for t in compared if _part(t)]:
            said.append(f"{_count(len(partly), 'table')} only in part: {_part(partly[0])}.")
        said += [f"{t.table}: {t.note}." for t in values.tables if t.note][:3]
    if ledger:
        tables = [t for t in ledger.tables if not t.table.startswith("(")]
        flight = sum(t.in_flight for t in tables)
        text = f"The ledger of {_count(len(tables), 'table')} {'closes' if ledger.closes else 'does not close'}, up to epoch {ledger.epoch:,}"
        if flight:
            text += f"; {_count(flight, 'change')} logged and on the way into the lake"
        said.append(text + ".")
    if repair:
        if repair["dry_run"]:
            said.append(f"Nothing was changed: a repair would read {_count(repair['keys'], 'row')} again.")
        elif repair["keys"]:
            said.append(f"{_count(repair['keys'], 'row')} read again from the source and compared once more.")
    said += [f"Not done: {one['what']}." for one in failed]
    return said


def _part(table: TableValues) -> str:
    """What of a table was left out, in words; empty where nothing was."""
    parts = []
    if table.sampled is not None:
        parts.append(f"a sample of {100 * table.sampled:g} % of the key ranges")
    if table.columns:
        parts.append(f"columns {', '.join(table.columns)}")
    if table.range:
        parts.append("a range of them")
    return ", ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
