"""The matrix of `reconcile/checks.py`, cell by cell: every corruption is planted on a real server while its table is written to, and every check must
see of it what the table says, neither less nor more.

For each server all corruptions are planted in one pipeline, and each check is made once over all of its tables; a cell then is a test that
looks at what the check said.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from reconcile import checks
from reconcile.checks import CORRUPTIONS, Corruption, Sight
from tests.faults.planting import BY_SLUG, GROUPS, PLANTS, Plant, Planted, server_of

pytestmark = pytest.mark.timeout(1800)
TURNS = 2
Report = dict[str, Any]


@dataclass
class Said:
    """What the checks said, each over all tables."""

    ledger: Report
    values: Report
    groups: list[Report]
    samples: list[Report]
    phases: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    repair: Report = field(default_factory=dict)
    wrong_after: dict[str, list[str]] = field(default_factory=dict)
    """What an oracle that trusts nothing of lakesync finds then."""
    ledger_after: Report = field(default_factory=dict)


def _reconcile(planted: Planted, *arguments: str, code: tuple[int, ...]) -> Report:
    done = planted.rig.lakesync("reconcile", *arguments, "--json", timeout_s=240)
    assert done.returncode in code, (
        f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr}\n{planted.rig.last_words()}"
    )
    report: Report = orjson.loads(done.stdout)
    return report


def _said(planted: Planted) -> Said:
    planted.plant()
    tables = [plant.table for plant in PLANTS]
    sample = f"{100 / TURNS}%"
    # They mostly wait for the lake; one turn of a sample follows the other.
    with ThreadPoolExecutor(2) as pool:
        ledger = pool.submit(_reconcile, planted, "--ledger", code=(1,))
        values = pool.submit(_reconcile, planted, "--values", code=(1,))
        groups = [
            pool.submit(_reconcile, planted, *tables, "--values", "--columns", ",".join(g), code=(1,)) for g in GROUPS
        ]
        samples = [_reconcile(planted, "--values", "--sample", sample, code=(0, 1)) for _ in range(TURNS)]
    said = Said(ledger.result(), values.result(), [group.result() for group in groups], samples)
    for slug in ("duplicated", "tripled"):
        planted.pulse(BY_SLUG[slug])
    for slug in ("duplicated", "tripled"):
        planted.rig.wait_phase(BY_SLUG[slug].table, "stopped")
    status = planted.rig.status()
    said.phases = {t["table"]: t["phase"] for t in status["tables"]}
    said.errors = {t["table"]: (t.get("error") or {}).get("code", "") for t in status["tables"]}
    said.repair = _reconcile(planted, "--values", "--repair", code=(1,))
    said.ledger_after = _reconcile(planted, "--ledger", code=(0, 1))
    planted.load.end()
    planted.follow()
    said.wrong_after = {p.table: planted.rig.differences(p.table) for p in PLANTS if p.mode == "upsert"}
    assert planted.daemon is not None
    assert planted.daemon.poll() is None, planted.rig.last_words()
    return said


@pytest.fixture(scope="module", params=[pytest.param("mysql", marks=pytest.mark.ci), "mariadb"])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    """All of it, on one server."""
    with server_of(request.param) as server:
        planted = Planted(server, tmp_path_factory.mktemp(request.param) / "p")
        try:
            yield _said(planted)
        finally:
            planted.close()


def _table(report: Report, part: str, table: str) -> Report:
    found: Report = next(t for t in report[part]["tables"] if t["table"] == table)
    return found


def _differences(report: Report, plant: Plant) -> dict[str, str]:
    return {d["key"]: d["kind"] for d in _table(report, "values", plant.table)["differences"]}


def _by_pipeline(said: Said, plant: Plant, sight: Sight) -> None:
    expected = ("stopped", "LakeKeys") if sight == "stops" else ("ready", "")
    assert (said.phases[plant.table], said.errors[plant.table]) == expected


def _by_ledger(said: Said, plant: Plant, sight: Sight) -> None:
    table = _table(said.ledger, "ledger", plant.ledger or plant.table)
    assert table["closes"] == (sight == "blind"), [e for e in table["equations"] if not e["holds"]]


def _by_values(said: Said, plant: Plant, sight: Sight) -> None:
    assert _differences(said.values, plant) == (plant.wrong if sight == "sees" else {})


def _by_columns(said: Said, plant: Plant, sight: Sight) -> None:
    found = [_differences(report, plant) for report in said.groups]
    if sight == "partly":
        assert plant.group is not None
        assert found == [plant.wrong if n == plant.group else {} for n in range(len(GROUPS))]
    else:
        assert found == [plant.wrong if sight == "sees" else {}] * len(GROUPS)


def _by_sample(said: Said, plant: Plant, sight: Sight) -> None:
    found = [_differences(report, plant) for report in said.samples]
    assert {k: v for one in found for k, v in one.items()} == (plant.wrong if sight == "partly" else {})


def _by_repair(said: Said, plant: Plant, sight: Sight) -> None:
    done = [t for t in said.repair["repair"]["tables"] if t["table"] == plant.table]
    after = said.wrong_after.get(plant.table)
    if sight in ("nothing", "refuses"):
        assert [(t["refused"], bool(t["hint"])) for t in done] == ([(True, True)] if sight == "refuses" else [])
        assert not after
    elif sight == "cannot":
        assert [(t["ok"], t["remaining"]) for t in done] == [(False, len(plant.wrong or {}))]
        assert after
    else:
        assert [(t["ok"], t["remaining"]) for t in done] == [(True, 0)]
        assert {d["key"] for d in done[0]["differences"]} == set(plant.wrong or {})
        assert not after


CELLS = {
    "pipeline": _by_pipeline,
    "ledger": _by_ledger,
    "values": _by_values,
    "columns": _by_columns,
    "sample": _by_sample,
    "repair": _by_repair,
}


@pytest.mark.parametrize("check", [c.name for c in checks.CHECKS])
@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.slug)
def test_the_check_sees_of_it_what_the_table_says(said: Said, corruption: Corruption, check: checks.Name) -> None:
    CELLS[check](said, BY_SLUG[corruption.slug], corruption.sights[check])


def test_others_in_the_lake_are_settled_by_a_repair(said: Said) -> None:
    """Rows that others put in or took out are named, and not held against a table that was compared since."""
    for plant in PLANTS:
        if plant.lake is not None:
            assert _table(said.ledger_after, "ledger", plant.table)["closes"], plant.slug


@pytest.mark.ci
def test_every_cell_is_tested() -> None:
    assert {c.name for c in checks.CHECKS} == set(CELLS)
    for one in CORRUPTIONS:
        assert set(one.sights) == set(CELLS), one.slug
