"""Mutants that a test of `make test` shows: run with the mistake made, that test must fail. Real logs, real lakes, no MySQL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdc import faults

ROOT = Path(__file__).parents[2]
LOG, SQLITE = "tests/contract/test_log.py", "tests/contract/test_log_sqlite.py"
PARTS = "tests/integration/test_merge_parts.py"
MERGE, LAKE = "tests/integration/test_merge_exactly_once.py", "tests/integration/test_lake.py"

CASES = (
    ("count_only", f"{LOG}::test_data_that_was_changed_is_refused[sqlite]"),
    ("token_only", f"{SQLITE}::test_a_log_rolled_back_in_place_is_noticed"),
    ("no_fencing", f"{LOG}::test_a_second_writer_fences_the_first[sqlite]"),
    ("no_fencing", f"{LOG}::test_a_second_writer_fences_the_first[kafka]"),
    ("applied_from_other_snapshot", f"{MERGE}::test_a_merger_that_was_overtaken_decides_again"),
    ("parts_ignored", f"{PARTS}::test_a_transaction_that_is_cut_otherwise_the_second_time"),
    ("no_put_if_absent", f"{LAKE}::test_the_second_of_two_mergers_loses_and_leaves_nothing"),
)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("mutant", "test"), CASES)
def test_the_mistake_is_seen(mutant: str, test: str) -> None:
    assert mutant in faults.MUTANTS
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    environment = os.environ | {"LAKESYNC_FAULTS": f"mutant:{mutant}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    # 1: tests were run, and some failed. Anything else would be no proof.
    assert done.returncode == 1, done.stdout[-2000:]


def test_every_case_is_listed() -> None:
    listed = Path(__file__).with_name("MUTANTS.md").read_text()
    assert [m for m, _ in CASES if f"`{m}`" not in listed] == []
