"""Keys that are to be read again, as jobs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cdc.epoch import Counts, TableState
from cdc.merge import repairing
from cdc.names import TableName
from cdc.reads import Key
from cdc.schema import Column, TableSchema
from cdc.state import State

ORDERS, USERS = TableName("shop", "orders"), TableName("shop", "users")
SCHEMA = TableSchema((Column("id", "bigint"), Column("n", "int")), ("id",))
FOUND = TableState(SCHEMA.to_dict(), {"mode": "upsert"}, Counts(), None, 1)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


def ask(state: State, table: TableName, *ids: int) -> None:
    repairing.ask(state, table, FOUND, pa.table({"id": pa.array(ids, pa.int64())}))


def asked(state: State) -> list[tuple[Key, ...]]:
    return [read.spec.keys for read in state.reads_of("repair")]


def test_a_key_that_waits_to_be_read_is_not_asked_for_again(state: State) -> None:
    ask(state, ORDERS, 1, 2)
    ask(state, ORDERS, 2, 3)
    ask(state, ORDERS, 1, 3)
    ask(state, USERS, 1)
    assert asked(state) == [((1,), (2,)), ((3,),), ((1,),)]


def test_a_key_whose_job_has_begun_is_asked_for_again(state: State) -> None:
    """Its window may have been open before the change."""
    ask(state, ORDERS, 1)
    job = state.reads_of("repair")[0].job
    state.set_read(job, phase="running", started_us=1)
    ask(state, ORDERS, 1)
    state.restart_read(job, "the log lost its windows")
    state.set_read(state.reads_of("repair")[1].job, phase="paused")
    ask(state, ORDERS, 1)
    assert asked(state) == [((1,),)] * 3
