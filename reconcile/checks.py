"""Which check sees what: the one table of it. Reports and `docs/verification.md` show it, and every cell is a test that plants the corruption on real
servers (`tests/faults/test_verification.py`). Pure.

    python -m reconcile.checks docs/verification.md      brings the page's table up to date
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Name = Literal["pipeline", "ledger", "values", "columns", "sample", "repair"]
Sight = Literal["sees", "stops", "partly", "blind", "mends", "nothing", "refuses", "cannot"]
Place = Literal["source", "capture", "merge", "lake"]

MARKS: Final[Mapping[Sight, str]] = {
    "sees": "sees it",
    "stops": "stops the table",
    "partly": "if it looks there",
    "blind": "cannot see it",
    "mends": "mends it",
    "nothing": "nothing to mend",
    "refuses": "refuses, with a way out",
    "cannot": "reads the same again",
}
"""What a sight is called in a table."""


@dataclass(frozen=True)
class Check:
    """One check. `sees`: what it is about; `blind`: what it does not see, whatever happens."""

    name: Name
    title: str
    how: str
    sees: tuple[str, ...]
    blind: tuple[str, ...]


@dataclass(frozen=True)
class Corruption:
    """One thing that can go wrong: `place` is where it does; `sights` says of every check what it makes of it."""

    slug: str
    title: str
    place: Place
    what: str
    sights: Mapping[Name, Sight]


CHECKS: Final = (
    Check(
        "pipeline",
        "the pipeline itself",
        "always, while it runs",
        (
            "positions that do not follow one another",
            "a source whose history is another one",
            "data in the log that is not what its commit record says",
            "commits whose rows do not balance",
            "a key that is there twice",
        ),
        ("values that are wrong from the beginning", "what others write into the lake without touching a key twice"),
    ),
    Check(
        "ledger",
        "ledger",
        "`lakesync reconcile --ledger`, `reconcile: {ledger: every 5m}`",
        (
            "rows that are lost, or there twice, between any two nodes",
            "rows that others put into the lake, or took out",
        ),
        (
            "values",
            "changes that were lost before they were counted for the first time: not in the binary log, or not read",
        ),
    ),
    Check(
        "values",
        "values",
        "`lakesync reconcile --values`",
        ("every row and every column, at one position, by the server's own canonical text",),
        (
            "tables of mode `append`",
            "what `soft-delete` and `history` keep besides the rows that are there now",
            "lakesync's own columns",
        ),
    ),
    Check(
        "columns",
        "values of some columns",
        "`lakesync reconcile --values --columns a,b`",
        ("keys that are missing or too many", "these columns"),
        ("the other columns",),
    ),
    Check(
        "sample",
        "values of a sample",
        "`lakesync reconcile --values --sample 1%`",
        ("every row and column of the key ranges whose turn it is",),
        ("the other key ranges, until their turn comes",),
    ),
    Check(
        "repair",
        "repair",
        "`lakesync reconcile --values --repair`",
        ("rows that values found to differ: they are read again through the log, and compared once more",),
        ("what values does not see",),
    ),
)


def _seen(
    ledger: Sight, columns: Sight = "sees", *, pipeline: Sight = "blind", repair: Sight = "mends"
) -> dict[Name, Sight]:
    """Of what values sees."""
    return {
        "pipeline": pipeline,
        "ledger": ledger,
        "values": "sees",
        "columns": columns,
        "sample": "partly",
        "repair": repair,
    }


def _unseen(ledger: Sight, repair: Sight) -> dict[Name, Sight]:
    """Of what values does not see."""
    return {
        "pipeline": "blind",
        "ledger": ledger,
        "values": "blind",
        "columns": "blind",
        "sample": "blind",
        "repair": repair,
    }


CORRUPTIONS: Final = (
    Corruption("insert_capture", "lost insert", "capture", "a row's INSERT is dropped before it is counted", _seen("blind")),
    Corruption("insert_merge", "lost insert", "merge", "a row is folded and not written", _seen("sees")),
    Corruption("insert_lake", "lost insert", "lake", "someone else deletes a row", _seen("sees")),
    Corruption("update_capture", "lost update", "capture", "a row's UPDATE is dropped before it is counted", _seen("blind", "partly")),
    Corruption("update_merge", "lost update", "merge", "a row's UPDATE is folded and not written", _seen("sees", "partly")),
    Corruption("delete_capture", "lost delete", "capture", "a row's DELETE is dropped before it is counted", _seen("blind")),
    Corruption("delete_merge", "lost delete", "merge", "a row's DELETE is folded and not done", _seen("sees")),
    Corruption("duplicated", "duplicated row", "lake", "someone else appends a row that is there", _seen("sees", pipeline="stops")),
    Corruption("tripled", "row tripled", "lake", "someone else appends it twice", _seen("sees", pipeline="stops")),
    Corruption("swapped_rows", "values swapped between two rows", "lake", "someone else writes each row's value into the other", _seen("blind", "partly")),
    Corruption("stale", "stale row", "merge", "the first of a row's changes wins over the last", _seen("blind", "partly")),
    Corruption("swapped_columns", "swapped columns", "capture", "two columns of one type change places", _seen("blind", "partly")),
    Corruption("charset", "wrong charset", "capture", "the stream's text is decoded by another character set", _seen("blind", "partly")),
    Corruption(
        "charset_everywhere",
        "wrong charset, in readings too",
        "capture",
        "the same mistake wherever the text is read",
        _seen("blind", "partly", repair="cannot"),
    ),
    Corruption("time_zone", "wrong time zone", "capture", "a TIMESTAMP is an hour off", _seen("blind", "partly")),
    Corruption("truncated", "truncated text", "capture", "a text loses its end", _seen("blind", "partly")),
    Corruption("rounded", "rounded decimal", "capture", "a DECIMAL loses a digit", _seen("blind", "partly")),
    Corruption("rogue", "rogue write to the lake", "lake", "someone else updates a row", _seen("blind", "partly")),
    Corruption("position", "resumed from a wrong position", "capture", "capture goes on behind transactions that it never read", _seen("sees")),
    Corruption("skipped", "skipped epoch", "merge", "an epoch is passed over, and the next one applied", _seen("sees")),
    Corruption("twice", "double-applied epoch", "merge", "an epoch is upserted twice: the rows are right", _unseen("sees", "nothing")),
    Corruption("twice_append", "double-applied epoch, mode `append`", "merge", "an epoch's changes are appended twice", _unseen("sees", "refuses")),
    Corruption("cascade", "foreign-key cascade missing from the binlog", "source", "the engine deletes children, and says nothing", _seen("blind")),
)  # fmt: skip

BEGIN: Final = "<!-- checks: from reconcile/checks.py -->"
END: Final = "<!-- checks end -->"


def markdown() -> str:
    """The tables of `docs/verification.md`."""
    lines = ["| check | how | sees | does not see |", "| --- | --- | --- | --- |"]
    lines += [f"| {c.title} | {c.how} | {'; '.join(c.sees)} | {'; '.join(c.blind)} |" for c in CHECKS]
    lines += [
        "",
        f"| corruption | where | {' | '.join(c.title for c in CHECKS)} |",
        "| --- | --- |" + " --- |" * len(CHECKS),
    ]
    for one in CORRUPTIONS:
        cells = " | ".join(MARKS[one.sights[c.name]] for c in CHECKS)
        lines.append(f"| {one.title}: {one.what} | {one.place} | {cells} |")
    return "\n".join(lines)


def brought_up_to_date(page: str) -> str:
    """A page with these tables between its marks. Raises `ValueError` for one that has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks for the tables")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(brought_up_to_date(path.read_text()))
