"""`lakesync reconcile` and `lakesync report` against a real server and a running daemon: what is refused, what is found, what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltalake
import jsonschema
import orjson
import pytest

from cdc.cli import main
from cdc.state import State
from dev.mysql import MySQLServer
from reconcile.runs import Runs
from tests.faults.rig import PASSWORD, Rig
from tests.unit import reporting as made

pytestmark = pytest.mark.timeout(300)
ROWS = 400
VALIDATOR = jsonschema.Draft202012Validator(made.strict())


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two tables, ready; a daemon runs."""
    with MySQLServer() as server:
        server.execute("CREATE DATABASE r")
        server.execute(
            "CREATE TABLE r.items (id INT PRIMARY KEY, name VARCHAR(50), made DATETIME(3), price DECIMAL(8,2))"
        )
        server.execute("CREATE TABLE r.pairs (a VARCHAR(20), b INT, v BIGINT, PRIMARY KEY (a, b))")
        items = ", ".join(f"({i}, 'näme {i}', '2026-01-{1 + i % 28:02} 12:00:00', {i}.50)" for i in range(ROWS))
        server.execute(f"INSERT INTO r.items VALUES {items}")
        server.execute(f"INSERT INTO r.pairs VALUES {', '.join(f'(CHAR(97 + {i} % 26), {i}, {i})' for i in range(50))}")
        folder = tmp_path_factory.mktemp("report") / "p"
        rig = Rig(folder, server, ["r.items", "r.pairs"])
        assert rig.catch_up().returncode == 0
        daemon = rig.start()
        rig.wait(lambda: (node := State(rig.state).nodes().get("merge")) and node.pid == daemon.pid, "the daemon runs")
        server.execute("UPDATE r.items SET price = price + 1 WHERE id < 10")
        yield rig
        assert rig.stop(daemon) == 0, rig.last_words()
        rig.close()


def told(rig: Rig, *arguments: str, code: int = 0) -> dict[str, Any]:
    """`lakesync reconcile --json`, which is what its schema says."""
    done = rig.lakesync("reconcile", "--json", *arguments)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    report: dict[str, Any] = orjson.loads(done.stdout)
    VALIDATOR.validate(report)
    return report


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["r.nothing"], "not a table of this pipeline"),
        (["r.items", "--values", "--columns", "id,colour"], "no column colour"),
        (["r.items", "--values", "--between", "price", "1", "2"], "column price is decimal, no time"),
        (["r.items", "--values", "--between", "made", "soon", "later"], "not a datetime"),
        (["r.items", "--values", "--between", "made", "2026-02-01", "2026-01-01"], "nothing is between"),
        (["r.items", "--values", "--from", "abc"], "not a key of the table"),
        (["r.items", "r.pairs", "--values", "--from", "1"], "keys are of one table"),
        (["--values", "--columns", "price"], "none is named"),
        (["--values", "--sample", "0"], "not a share of the rows"),
        (["--values", "--sample", "200%"], "not a share of the rows"),
        (["--ledger", "--sample", "1%"], "about values"),
        (["--ledger", "--resume"], "about values"),
        (["--values", "--since", "2h"], "about the ledger"),
        (["--ledger", "--since", "last tuesday"], "last tuesday"),
        (["--values", "--dry-run"], "a dry run is of a repair"),
        (["--ledger", "--repair"], "a repair needs the comparison"),
        (["--values", "--rows-per-second", "0"], "no speed"),
        (["--values", "--show-values", "--hide-keys"], "leave one out"),
        (["--values", "--report", "report.txt"], "not a kind of report"),
        (["--values", "--report", "/nowhere/report.html"], "cannot be written: No such file"),
        (["--values", "--report", "/proc/report.json"], "cannot be written"),
        (["--values", "--report", "/tmp"], "not a kind of report"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_said_before_anything_is_read(
    rig: Rig, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAKESYNC_CONFIG", str(rig.config))
    monkeypatch.setenv("RIG_PASSWORD", PASSWORD)
    before = Runs(rig.state).history()
    assert main(["reconcile", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert "hint:" in printed.err
    assert Runs(rig.state).history() == before


def test_a_report_in_every_form(rig: Rig, tmp_path: Path) -> None:
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    done = rig.lakesync("reconcile", "--report", str(page), "--report", str(data))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Source and lake agree."
    report = orjson.loads(data.read_bytes())
    VALIDATOR.validate(report)
    assert (report["state"], report["agrees"], report["version"]) == ("agrees", True, 2)
    assert {t["table"]: t["source_rows"] for t in report["values"]["tables"]} == {"r.items": ROWS, "r.pairs": 50}
    assert {one["node"] for one in report["flow"]} >= {"source", "capture", "log", "merge", "snapshot", "lake"}
    assert {p["stage"] for p in report["latency"]["buckets"]} == {"captured", "logged", "merged", "readable"}
    assert {t["table"]: t["phase"] for t in report["tables"]} == {"r.items": "ready", "r.pairs": "ready"}
    text = page.read_text()
    assert "<h1>" in text
    assert 'class="wide"' in text

    again = tmp_path / "again.json"
    done = rig.lakesync("report", str(report["runs"]["ledger"]), "--report", str(again))
    assert done.stdout.splitlines()[-1] == "Source and lake agree."
    assert orjson.loads(again.read_bytes()) == report
    listed = orjson.loads(rig.lakesync("report", "--json").stdout)["runs"]
    assert [(r["kind"], r["verdict"]) for r in listed[:2]] == [("ledger", "agrees"), ("values", "agrees")]
    assert f"{report['runs']['values']}  values" in rig.lakesync("report").stdout


def test_runs_that_are_not_there(rig: Rig, tmp_path: Path) -> None:
    done = rig.lakesync("report", "999999")
    assert (done.returncode, "no such run" in done.stderr) == (2, True)
    runs = Runs(rig.state)
    number = runs.begin("values", "asked", [], {})
    assert "it has not ended" in rig.lakesync("report", str(number)).stderr
    runs.end(number, "failed", {"error": {"code": "X", "what": "the server is gone", "where": "db", "hint": "wait"}})
    assert "the run failed: the server is gone" in rig.lakesync("report", str(number)).stderr


def test_parts_of_the_values_and_of_the_ledger(rig: Rig) -> None:
    some = told(rig, "r.items", "--values", "--from", "10", "--to", "19", "--columns", "price,made")
    (table,) = some["values"]["tables"]
    assert (table["source_rows"], table["lake_rows"], table["equal"]) == (10, 10, True)
    assert table["columns"]
    assert some["verdict"] == "Source and lake agree, as far as they were compared."
    window = told(rig, "r.items", "--values", "--between", "made", "2026-01-05", "2026-01-07T00:00:00")
    assert window["values"]["tables"][0]["source_rows"] == sum(1 + i % 28 in (5, 6) for i in range(ROWS))
    since = told(rig, "--ledger", "--since", "1h")
    assert since["values"] is None
    assert since["ledger"]["closes"]
    turns = [told(rig, "r.items", "--values", "--sample", "50%")["asked"]["scope"]["turn"] for _ in range(2)]
    assert turns[1] == turns[0] + 1


def test_drift_is_found_shown_and_repaired(rig: Rig, tmp_path: Path) -> None:
    lake = deltalake.DeltaTable(str(rig.lake / "r/items"))
    lake.update(updates={"name": "'s3cret'"}, predicate="id = 77")
    lake.delete("id = 78")

    found = told(rig, "--values", code=1)
    assert (found["state"], found["verdict"]) == (
        "differs",
        "Source and lake do not agree: 2 rows in 1 table are not equal.",
    )
    (items,) = [t for t in found["values"]["tables"] if t["table"] == "r.items"]
    assert {d["key"]: d["columns"] for d in items["differences"]} == {"77": ["name"], "78": []}
    assert b"s3cret" not in orjson.dumps(found)
    assert b"s3cret" not in orjson.dumps([r.report for r in (Runs(rig.state).last("values"),) if r])

    hidden = told(rig, "--values", "--hide-keys", code=1)
    assert {d["key"] for t in hidden["values"]["tables"] for d in t["differences"]} == {"#1", "#2"}
    shown = told(rig, "r.items", "--values", "--show-values", code=1)
    (named,) = [d for d in shown["values"]["tables"][0]["differences"] if d["key"] == "77"]
    assert (named["before"], named["after"]) == ({"name": "s3cret"}, {"name": "näme 77"})

    dry = told(rig, "--repair", "--dry-run", code=1)
    assert (dry["repair"]["dry_run"], dry["repair"]["keys"], dry["state"]) == (True, 2, "differs")
    done = rig.lakesync("reconcile", "--ledger")
    assert done.returncode == 1, done.stdout

    page = tmp_path / "r.html"
    repaired = told(rig, "--ledger", "--values", "--repair", "--report", str(page))
    assert (repaired["state"], repaired["agrees"]) == ("repaired", True)
    assert repaired["verdict"] == "Source and lake agree again: 2 rows differed and were put right."
    assert repaired["ledger"]["closes"], "what others did is known and put right: no imbalance"
    assert set(repaired["runs"]) == {"ledger", "values", "repair"}
    assert "were put right" in page.read_text()
    assert Runs(rig.state).findings() == []
    assert told(rig)["state"] == "agrees"


def test_a_trace_that_is_down_does_not_take_the_values_with_it(rig: Rig) -> None:
    settings = orjson.loads(rig.config.read_bytes())
    other = rig.config.with_name("down.json")
    other.write_bytes(orjson.dumps(settings | {"trace": "clickhouse://127.0.0.1:9/x"}))
    done = rig.lakesync("-c", str(other), "reconcile", "--json")
    assert done.returncode == 3
    report = orjson.loads(done.stdout)
    VALIDATOR.validate(report)
    assert (report["state"], report["values"]["equal"], report["ledger"]) == ("failed", True, None)
    assert report["errors"][0]["code"] == "Trace"
    assert report["errors"][0]["hint"]
    assert b"ClickHouse" in done.stderr.encode()
    last = Runs(rig.state).history(2)
    assert [(r.kind, r.verdict) for r in last] == [("ledger", "failed"), ("values", "agrees")]
    alone = rig.lakesync("-c", str(other), "reconcile", "--ledger")
    assert (alone.returncode, alone.stdout) == (3, "")


def test_a_report_that_cannot_be_written_in_the_end_loses_nothing(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("LAKESYNC_CONFIG", str(rig.config))
    monkeypatch.setenv("RIG_PASSWORD", PASSWORD)
    monkeypatch.setattr(Path, "write_bytes", full)
    code = main(["reconcile", "r.pairs", "--values", "--report", str(tmp_path / "r.html")])
    said = capsys.readouterr()
    assert code == 2
    assert "Source and lake agree." in said.out
    assert "No space left" in said.err
    last = Runs(rig.state).last("values")
    assert last
    assert last.verdict == "agrees"
    assert list(tmp_path.iterdir()) == []
