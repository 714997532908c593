"""Reports without servers: the verdict, the JSON form against its schema, the page's text, and what is left out."""

from __future__ import annotations

import io
import re
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from rich.console import Console

from cdc.errors import ConfigError, TraceError
from reconcile import reconciling
from reconcile.asked import share
from reconcile.report import document as reporting
from reconcile.report import html, text
from reconcile.report.document import Report
from reconcile.values.found import Difference, ValuesReport
from tests.unit import reporting as made

DOCS = Path(__file__).resolve().parents[2] / "docs/reports.md"


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=160, highlight=False, markup=False)
    report.print(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", made.REPORTS)
def test_the_json_form_is_what_its_schema_says(name: str) -> None:
    data = orjson.loads(orjson.dumps(made.REPORTS[name]().to_dict()))
    jsonschema.Draft202012Validator(made.strict()).validate(data)
    jsonschema.Draft202012Validator(made.strict()).validate(reporting.without_keys(data))


def test_the_schema_sees_what_it_does_not_name() -> None:
    data = made.fine().to_dict()
    data["values"]["tables"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.Draft202012Validator(made.strict()).validate(data)


def test_the_docs_describe_every_field() -> None:
    page = DOCS.read_text()

    def names(node: Any) -> set[str]:
        if isinstance(node, list):
            return {name for one in node for name in names(one)}
        if not isinstance(node, dict):
            return set()
        own = set(node["properties"]) if isinstance(node.get("properties"), dict) else set()
        return own | {name for one in node.values() for name in names(one)}

    assert {n for n in names(orjson.loads(made.SCHEMA.read_bytes())) if f"`{n}`" not in page} == set()


@pytest.mark.parametrize(
    ("report", "state", "sentence"),
    [
        (made.fine(), "agrees", "Source and lake agree."),
        (
            made.differing(),
            "differs",
            "Source and lake do not agree: 26 rows in 2 tables are not equal, and the ledger does not close for shop.payments.",
        ),
        (made.repaired(), "repaired", "Source and lake agree again: 12 rows differed and were put right."),
        (made.partial(), "failed", "Not everything could be checked: the trace does not follow."),
        (replace(made.partial(), errors=()), "agrees", "Source and lake agree, as far as they were compared."),
        (replace(made.fine(), values=None), "agrees", "The ledger closes: every row change that was counted anywhere is accounted for."),
        (
            replace(made.fine(), values=ValuesReport((made.values("a.b", 3, complete=False),))),
            "differs",
            "Source and lake do not agree: at least 3 rows in 1 table are not equal.",
        ),
        (
            replace(made.fine(), values=ValuesReport((replace(made.values("a.b"), unsettled=1),))),
            "differs",
            "Source and lake do not agree: 1 row never rested long enough to be compared.",
        ),
    ],
    ids=["fine", "differing", "repaired", "failed", "in part", "ledger alone", "very many", "restless"],
)  # fmt: skip
def test_the_verdict_is_one_sentence(report: Report, state: str, sentence: str) -> None:
    assert (report.state, report.verdict) == (state, sentence)
    assert report.agrees == (state in ("agrees", "repaired"))
    assert printed(report).splitlines()[-1] == sentence


def test_a_difference_is_said_though_a_part_failed() -> None:
    report = replace(made.differing(), ledger=None, errors=(TraceError("no trace"),))
    assert report.state == "differs"
    assert "Not done: no trace." in report.to_dict()["details"]


def test_a_repair_that_leaves_something_is_none() -> None:
    repaired = made.repaired()
    assert repaired.repair
    undone = replace(repaired, repair=dict(repaired.repair) | {"ok": False})
    assert (undone.state, undone.agrees) == ("differs", False)
    dry = replace(repaired, repair=dict(repaired.repair) | {"dry_run": True})
    assert (dry.state, dry.agrees) == ("differs", False)
    assert "Nothing was changed: a repair would read 12 rows again." in dry.to_dict()["details"]


def test_text_of_many_tables_stays_short() -> None:
    lines = printed(made.report([f"a.t{n}" for n in range(500)])).splitlines()
    assert lines == [
        "Ledger: closes for 501 of 501 tables.",
        "Values: equal in 500 tables, at epoch 90.",
        "Source and lake agree.",
    ]


def test_text_names_what_is_wrong() -> None:
    said = printed(made.differing())
    assert "shop.payments: logged = merged: 1,000 and 999, gap -1, epochs 40 to 44: version 7" in said
    assert "shop.orders key 4711: different in price, note" in said
    assert "note: lake NULL, source '<b>sale</b>'" in said
    assert "… and 15 more" in said
    assert "→ `lakesync reconcile shop.orders --repair` reads again what differs" in said


def test_keys_tell_a_terminal_nothing() -> None:
    found = Difference("\x1b]0;owned\x07\x9b31m\nשלום\u202e", "different", ("pri\x1bce",))
    values = made.differing().values
    assert values is not None
    table = replace(values.tables[0], differences=(found,), different=1)
    said = printed(replace(made.differing(), values=replace(values, tables=(table,))))
    assert not [c for c in said if c in "\x1b\x07\x9b\u202e"]
    assert r"key \x1b]0;owned\x07\x9b31m\nשלום\u202e: different in pri\x1bce" in said


def test_keys_and_values_can_be_left_out() -> None:
    report = replace(
        made.differing(), asked={"parts": ["values"], "tables": [], "scope": {"low": [4711], "columns": ["price"]}}
    )
    shown = reporting.without_keys(report.to_dict())
    for form in (orjson.dumps(shown).decode(), html.page(shown)):
        assert "4711" not in form
        assert "sale" not in form
        assert "10.50" not in form
    assert shown["asked"]["scope"] == {"columns": ["price"]}
    assert [d["key"] for d in shown["values"]["tables"][2]["differences"][:2]] == ["#1", "#2"]
    assert "4711" in html.page(report.to_dict())


@pytest.mark.parametrize("name", ["report.txt", "report", "nowhere/report.json", ".", "report.html"])
def test_a_path_that_cannot_be_written_is_found_before(tmp_path: Path, name: str) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigError) as refused:
        reporting.check_path(tmp_path / name)
    assert refused.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_report_is_written_whole_and_for_its_owner(tmp_path: Path) -> None:
    for name in ("r.json", "r.html"):
        path = tmp_path / name
        reporting.check_path(path)
        assert not path.exists()
        made.fine().write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert orjson.loads((tmp_path / "r.json").read_bytes()) == orjson.loads(orjson.dumps(made.fine().to_dict()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="No space left"):
        made.fine().write(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_hostile_names_are_text() -> None:
    page = html.page(made.hostile().to_dict())
    assert not re.findall(r"<(?:script|img|iframe|object)\b|<b>", page)
    assert page.count("</style>") == 1
    assert page.count("</title>") == 1 + page.count('<svg class="wide"') + page.count('<svg class="narrow"')
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "\x00" not in page


def test_the_page_asks_nothing_of_anyone() -> None:
    page = html.page(made.differing().to_dict())
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!#|data:)[a-z]", page)
    assert not re.findall(r"<[^>]+ (?:style|on[a-z]+)=", page)


def test_a_large_report_stays_usable() -> None:
    report = made.large()
    began = time.monotonic()
    page = html.page(report.to_dict())
    assert time.monotonic() - began < 60
    assert len(page) < 5_000_000
    assert "… and 995 more rows" in page
    assert "shop.table_0999" in page


def test_what_is_kept_of_a_scheduled_run_is_small() -> None:
    scheduled = replace(made.fine(), asked={"parts": ["ledger"], "tables": [], "scope": {}, "trigger": "schedule"})
    assert len(orjson.dumps(scheduled.kept())) < 4000
    assert "checks" not in made.fine().kept()
    assert made.fine().kept()["ledger"]["tables"][1]["equations"]
    wrong = replace(made.differing(), asked=scheduled.asked)
    assert wrong.kept()["ledger"]["tables"][3]["equations"]
    for report in (scheduled, wrong):
        kept = orjson.loads(orjson.dumps(report.kept())) | {"checks": reporting.checks()}
        assert report.verdict in html.page(kept).replace("&#39;", "'")
        text.show(Console(file=io.StringIO()), kept)


@pytest.mark.parametrize(
    ("written", "value"), [("1%", 0.01), ("0.5 %", 0.005), ("0.25", 0.25), ("100%", 1.0), ("1", 1.0)]
)
def test_a_share(written: str, value: float) -> None:
    assert share(written) == pytest.approx(value)


@pytest.mark.parametrize("written", ["0", "0%", "200 %", "1.01", "-1%", "some", "", "1e-3", "nan"])
def test_no_share(written: str) -> None:
    with pytest.raises(ConfigError, match="not a share"):
        share(written)


def test_differences_stand_in_the_order_of_their_keys() -> None:
    keys = ["10", "9", "2, b", "2, a", "-1", "x", "9A", "09"]
    ordered = sorted((Difference(key, "different") for key in keys), key=reconciling._natural)
    assert [d.key for d in ordered] == ["-1", "2, a", "2, b", "09", "9", "10", "9A", "x"]
