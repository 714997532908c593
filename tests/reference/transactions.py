"""What begins, ends and undoes a transaction in the binary log: one table, and the machine that walks it. Pure.

A position may enter a commit record only where a transaction ends (invariant I1). What MySQL writes, seen on real servers:

    GTID BEGIN rows… XID                       a transaction of InnoDB tables
    GTID BEGIN rows… COMMIT                    of tables without transactions
    GTID query                                 a statement that stands alone: DDL, GRANT, ANALYZE, …
    GTID BEGIN CREATE rows… XID                CREATE TABLE … SELECT: the statement inside does not end it
    GTID BEGIN statement… XID                  statements logged as text
    GTID BEGIN rows… ROLLBACK                  what cannot be undone whole, such as temporary tables, is logged with its undoing
    … SAVEPOINT rows… ROLLBACK TO …            the same for a part; otherwise the server leaves what was undone out of the log
    GTID BEGIN COMMIT                          an empty transaction
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from cdc import faults
from cdc.errors import BinlogError


class Input(Enum):
    """An event, as far as it concerns where transactions begin and end. The value is what errors call it."""

    GTID = "a GTID event"
    BEGIN = "BEGIN"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"
    SAVEPOINT = "SAVEPOINT"
    ROLLBACK_TO = "ROLLBACK TO SAVEPOINT"
    CREATE_SELECT = "the CREATE TABLE of a CREATE TABLE … SELECT"
    STATEMENT = "a statement"
    XID = "an XID event"
    ROWS = "a table map or row event"
    CONTEXT = "an event that belongs to the one after it"
    """INTVAR, RAND, USER_VAR, ROWS_QUERY, blocks of a loaded file."""
    BOUNDARY = "the beginning or end of a binary log file"
    """ROTATE, FORMAT_DESCRIPTION, PREVIOUS_GTIDS, STOP."""


class State(Enum):
    """Where the stream is. The value is what errors call it."""

    BETWEEN = "between transactions"
    STARTED = "after a GTID event"
    OPEN = "inside a transaction"


class Action(Enum):
    """What the event means for the transaction's rows and position."""

    NOTHING = auto()
    START = auto()
    END = auto()
    """The position may pass it."""
    UNDO = auto()
    """None of its rows took place; it ends, and the position may pass it."""
    MARK = auto()
    """A savepoint: rows so far survive an UNDO_TO."""
    UNDO_TO = auto()
    """Rows after the savepoint did not take place."""
    END_EARLY = auto()
    """Only a mutant's: the position passes it, and it goes on."""


TABLE: Mapping[tuple[State, Input], tuple[Action, State]] = {
    (State.BETWEEN, Input.GTID): (Action.START, State.STARTED),
    (State.BETWEEN, Input.BOUNDARY): (Action.NOTHING, State.BETWEEN),
    (State.STARTED, Input.BEGIN): (Action.NOTHING, State.OPEN),
    (State.STARTED, Input.STATEMENT): (Action.END, State.BETWEEN),
    (State.STARTED, Input.CONTEXT): (Action.NOTHING, State.STARTED),
    (State.OPEN, Input.ROWS): (Action.NOTHING, State.OPEN),
    (State.OPEN, Input.CONTEXT): (Action.NOTHING, State.OPEN),
    (State.OPEN, Input.STATEMENT): (Action.NOTHING, State.OPEN),
    (State.OPEN, Input.CREATE_SELECT): (Action.NOTHING, State.OPEN),
    (State.OPEN, Input.SAVEPOINT): (Action.MARK, State.OPEN),
    (State.OPEN, Input.ROLLBACK_TO): (Action.UNDO_TO, State.OPEN),
    (State.OPEN, Input.XID): (Action.END, State.BETWEEN),
    (State.OPEN, Input.COMMIT): (Action.END, State.BETWEEN),
    (State.OPEN, Input.ROLLBACK): (Action.UNDO, State.BETWEEN),
}
"""Everything else is refused: `BinlogError`."""


class Transactions:
    """The machine. Each event is one `step`."""

    def __init__(self) -> None:
        self.state = State.BETWEEN

    def step(self, event: Input) -> Action:
        """What `event` means here. Raises `BinlogError` for an event that cannot stand here."""
        try:
            action, state = TABLE[self.state, event]
        except KeyError:
            raise BinlogError(f"{event.value} {self.state.value}") from None
        self.state = state
        if event is Input.GTID and faults.mutant("position_at_gtid"):
            return Action.END_EARLY
        if event is Input.CREATE_SELECT and faults.mutant("create_select_position"):
            return Action.END_EARLY
        return action

    def end(self) -> None:
        """The transaction was passed over whole, by its length."""
        self.state = State.BETWEEN
