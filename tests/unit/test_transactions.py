"""The machine of transactions: its table, whole."""

from __future__ import annotations

import itertools

import pytest

from cdc.errors import BinlogError
from tests.reference.transactions import TABLE, Action, Input, State, Transactions

FORMS = {
    "rows": [Input.GTID, Input.BEGIN, Input.ROWS, Input.ROWS, Input.XID],
    "no transactional engine": [Input.GTID, Input.BEGIN, Input.ROWS, Input.COMMIT],
    "a statement alone": [Input.GTID, Input.STATEMENT],
    "a statement with its variables": [Input.GTID, Input.CONTEXT, Input.STATEMENT],
    "create select": [Input.GTID, Input.BEGIN, Input.CREATE_SELECT, Input.ROWS, Input.XID],
    "statements": [Input.GTID, Input.BEGIN, Input.CONTEXT, Input.STATEMENT, Input.STATEMENT, Input.XID],
    "savepoints": [Input.GTID, Input.BEGIN, Input.ROWS, Input.SAVEPOINT, Input.ROWS, Input.ROLLBACK_TO, Input.XID],
    "empty": [Input.GTID, Input.BEGIN, Input.COMMIT],
    "undone": [Input.GTID, Input.BEGIN, Input.ROWS, Input.ROLLBACK],
}


@pytest.mark.parametrize("events", FORMS.values(), ids=FORMS.keys())
def test_a_transaction_begins_with_its_gtid_and_ends_with_its_last_event_only(events: list[Input]) -> None:
    machine = Transactions()
    actions = [machine.step(event) for event in events]
    assert actions[0] is Action.START
    assert [a in (Action.END, Action.UNDO) for a in actions] == [*[False] * (len(events) - 1), True]
    assert machine.state is State.BETWEEN
    assert machine.step(Input.BOUNDARY) is Action.NOTHING
    assert machine.step(Input.GTID) is Action.START


def test_what_the_table_does_not_name_is_refused_and_changes_nothing() -> None:
    for state, event in itertools.product(State, Input):
        machine = Transactions()
        machine.state = state
        if (state, event) in TABLE:
            assert machine.step(event) is TABLE[state, event][0]
            assert machine.state is TABLE[state, event][1]
        else:
            with pytest.raises(BinlogError, match=event.value):
                machine.step(event)
            assert machine.state is state


def test_only_ends_lead_out_of_a_transaction() -> None:
    for (state, event), (action, after) in TABLE.items():
        assert (action in (Action.END, Action.UNDO)) == (state is not State.BETWEEN and after is State.BETWEEN), event
        assert (action is Action.START) == (state is State.BETWEEN and after is State.STARTED), event


def test_nothing_is_undone_that_was_not_marked_or_open() -> None:
    for (state, _), (action, _) in TABLE.items():
        if action in (Action.UNDO, Action.UNDO_TO, Action.MARK):
            assert state is State.OPEN
