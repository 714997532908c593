"""Every figure in bench/RESULTS.md stands beside the command that repeats it, and that command exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bench import report
from bench.__main__ import BENCHMARKS, command, parser, sizes_of
from bench.measure import Usage
from bench.report import Table

PAGE = report.RESULTS.read_text()
FIGURE = re.compile(r"\d")


def block(name: str) -> str:
    """What the benchmark recorded."""
    begin, end = report.marks(name)
    assert PAGE.count(begin) == PAGE.count(end) == 1, f"no place for {name}"
    return PAGE.partition(begin)[2].partition(end)[0]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_results_begin_with_the_command_that_repeats_them(name: str) -> None:
    lines = [line for line in block(name).splitlines() if line]
    assert lines, f"{name} has no results"
    words = shlex.split(lines[0].strip("`"))
    program = report.PROGRAM.split()
    assert words[: len(program)] == program
    options = parser().parse_args(words[len(program) :])
    assert options.names == [name]
    assert lines[0] == f"`{command(name, sizes_of(options))}`", "the command leaves a size out, or names one twice"
    assert not options.quick, "a look whether it works is no result"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_results_name_machine_date_and_versions(name: str) -> None:
    last = [line for line in block(name).splitlines() if line][-1]
    assert re.match(r"Measured \d{4}-\d\d-\d\d, \d+ cores", last)
    assert all(f"{library} " in last for library in ("MySQL", *report.LIBRARIES))


def test_figures_stand_beside_a_command() -> None:
    sections = re.split(r"(?m)^## ", PAGE)
    # The introduction has none of its own but the 1.00 that it explains.
    assert not FIGURE.search(sections[0].replace("1.00", ""))
    for section in sections[1:]:
        if section.startswith("Proof\n"):
            continue  # not a benchmark's, but a test's
        assert sum(report.marks(name)[0] in section for name in BENCHMARKS) == 1, section.splitlines()[0]


def test_the_proof_is_what_its_test_prints() -> None:
    section = PAGE.partition("\n## Proof\n")[2].partition("\n## ")[0]
    target, *sizes = section.strip().splitlines()[0].strip("`").removeprefix("make ").split()
    makefile = (report.RESULTS.parents[1] / "Makefile").read_text()
    assert f"\n{target}: " in makefile
    assert all(f"\n{size.partition('=')[0]} ?= " in makefile for size in sizes)
    line = next(line for line in section.splitlines() if line.startswith("    proof: "))
    transactions, kills = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:transactions|kills)", line))
    asked = dict(size.split("=") for size in sizes)
    assert transactions >= int(asked["TRANSACTIONS"])
    assert kills >= int(asked["KILLS"])
    assert " 0 missed, 0 false alarms," in section
    assert "LAKESYNC_TEST_SEED=" in section


def test_tables_are_recorded_and_not_typed() -> None:
    typed = PAGE
    for name in BENCHMARKS:
        typed = typed.replace(block(name), "")
    assert not [line for line in typed.splitlines() if line.startswith("|")]


def test_a_record_replaces_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    begin, end = report.marks("snapshot")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    table = Table("Rows", ("", *report.USAGE))
    used = Usage(wall_s=2.0, cpu_s=1.0, peak_mib=10.0)
    table.add("ours", *report.usage_cells(used, 1000, used))
    for _ in range(2):
        report.record("snapshot", report.section("snapshot", "command", [table], "here"), page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"\n{end}\nafter\n")
    assert text.count("| ours | 2.00 |    500 |  1.00 |       10 |         0.00 |  1.00 |") == 1
    with pytest.raises(ValueError, match="no marks for stream"):
        report.record("stream", "text", page)


def test_medians_are_taken_figure_by_figure() -> None:
    from bench.measure import medians

    turns = [Usage(1.0, 9.0, 5.0), Usage(3.0, 1.0, 6.0), Usage(2.0, 5.0, 7.0)]
    assert medians(turns) == Usage(2.0, 5.0, 6.0)
