"""Whatever happens to a lake table, it equals a dictionary. `LAKE_EXAMPLES=1000` for a longer run (`make test-lake`), `LAKE_SHRINK=1` for a
short story of what it found."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.lake.machine import CLICKHOUSE, DONE, LakeMachine
from tests.lake.readers import ClickHouse
from tests.lake.subject import busy_upkeep

EXAMPLES = int(os.environ.get("LAKE_EXAMPLES", "30"))
STEPS = 30
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # What was found is made shorter for up to five minutes: only on demand.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if os.environ.get("LAKE_SHRINK") else [])],
    print_blob=True,
)


@pytest.fixture(autouse=True)
def clickhouse() -> Iterator[None]:
    """One for all examples."""
    with ClickHouse() as reader, busy_upkeep():
        CLICKHOUSE.append(reader)
        yield
        CLICKHOUSE.clear()


@pytest.mark.timeout(3600)
def test_a_table_equals_a_dictionary_whatever_happens() -> None:
    DONE.clear()
    try:
        run_state_machine_as_test(LakeMachine, settings=SETTINGS)
    finally:
        print("\n" + "\n".join(f"{count:7} {what}" for what, count in sorted(DONE.items())))
