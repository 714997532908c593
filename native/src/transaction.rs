//! What begins, ends and undoes a transaction in the binary log: one table, and the machine that walks it.
//!
//! A position may pass only where a transaction ends. What servers write:
//!
//! ```text
//! GTID BEGIN rows… XID                       a transaction of InnoDB tables
//! GTID BEGIN rows… COMMIT                    of tables without transactions
//! GTID query                                 a statement that stands alone: DDL, GRANT, ANALYZE, …
//! GTID BEGIN CREATE rows… XID                CREATE TABLE … SELECT: the statement inside does not end it
//! GTID BEGIN statement… XID                  statements logged as text
//! GTID BEGIN rows… ROLLBACK                  what cannot be undone whole, such as temporary tables, is logged with its undoing
//! … SAVEPOINT rows… ROLLBACK TO …            the same for a part; otherwise the server leaves what was undone out of the log
//! GTID BEGIN COMMIT                          an empty transaction
//! GTID XA START rows… XA END XA PREPARE      the first phase: its rows wait for the second
//! GTID XA COMMIT, GTID XA ROLLBACK           the second phase
//! GTID XA START rows… XA END XA PREPARE      in one phase, which the last event says: as XID
//! ```
//!
//! MariaDB writes no BEGIN: its GTID event says whether a group of events follows, or one statement.

use crate::error::{Error, Result};

/// An event, as far as it concerns where transactions begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Gtid,
    Begin,
    Commit,
    Rollback,
    Savepoint,
    RollbackTo,
    /// The CREATE TABLE of a CREATE TABLE … SELECT.
    CreateSelect,
    Statement,
    Xid,
    /// A table map or row event.
    Rows,
    /// INTVAR, RAND, USER_VAR, ROWS_QUERY, blocks of a loaded file.
    Context,
    /// ROTATE, FORMAT_DESCRIPTION, PREVIOUS_GTIDS, STOP.
    Boundary,
    XaStart,
    XaEnd,
    XaPrepare,
    XaOnePhase,
    XaCommit,
    XaRollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Between,
    /// After a GTID event.
    Started,
    Open,
    /// Inside an XA transaction.
    Xa,
    /// After its XA END.
    XaEnded,
}

/// What the event means for the transaction's rows and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Nothing,
    Start,
    /// The position may pass it.
    End,
    /// None of its rows took place; it ends, and the position may pass it.
    Undo,
    /// A savepoint: rows so far survive an `UndoTo`.
    Mark,
    /// Rows after the savepoint did not take place.
    UndoTo,
    /// It is left, prepared; the position may not pass it.
    Hold,
}

impl State {
    /// What `input` means here, and where that leads. An event that cannot stand here is `Damaged`.
    #[inline]
    pub fn step(self, input: Input) -> Result<(Action, State)> {
        Ok(match (self, input) {
            (State::Between, Input::Gtid) => (Action::Start, State::Started),
            (State::Between, Input::Boundary) => (Action::Nothing, State::Between),
            (State::Started, Input::Begin) => (Action::Nothing, State::Open),
            (State::Started, Input::Statement) => (Action::End, State::Between),
            (State::Started, Input::Context) => (Action::Nothing, State::Started),
            (State::Started, Input::XaStart) => (Action::Nothing, State::Xa),
            (State::Started, Input::XaCommit | Input::XaRollback) => (Action::End, State::Between),
            (State::Open | State::Xa, Input::Rows | Input::Context | Input::Statement | Input::CreateSelect) => {
                (Action::Nothing, self)
            }
            (State::Open | State::Xa, Input::Savepoint) => (Action::Mark, self),
            (State::Open | State::Xa, Input::RollbackTo) => (Action::UndoTo, self),
            (State::Open, Input::Xid | Input::Commit) => (Action::End, State::Between),
            (State::Open, Input::Rollback) => (Action::Undo, State::Between),
            (State::Xa, Input::XaEnd) => (Action::Nothing, State::XaEnded),
            (State::XaEnded, Input::XaPrepare) => (Action::Hold, State::Between),
            (State::XaEnded, Input::XaOnePhase) => (Action::End, State::Between),
            (State::XaEnded, Input::XaRollback) => (Action::Undo, State::Between),
            _ => return Err(Error::Damaged(format!("{} {}", input.name(), self.name()))),
        })
    }

    fn name(self) -> &'static str {
        match self {
            State::Between => "between transactions",
            State::Started => "after a GTID event",
            State::Open => "inside a transaction",
            State::Xa => "inside an XA transaction",
            State::XaEnded => "after the end of an XA transaction",
        }
    }
}

impl Input {
    fn name(self) -> &'static str {
        match self {
            Input::Gtid => "a GTID event",
            Input::Begin => "BEGIN",
            Input::Commit => "COMMIT",
            Input::Rollback => "ROLLBACK",
            Input::Savepoint => "SAVEPOINT",
            Input::RollbackTo => "ROLLBACK TO SAVEPOINT",
            Input::CreateSelect => "the CREATE TABLE of a CREATE TABLE … SELECT",
            Input::Statement => "a statement",
            Input::Xid => "an XID event",
            Input::Rows => "a table map or row event",
            Input::Context => "an event that belongs to the one after it",
            Input::Boundary => "the beginning or end of a binary log file",
            Input::XaStart => "XA START",
            Input::XaEnd => "XA END",
            Input::XaPrepare => "XA PREPARE",
            Input::XaOnePhase => "XA COMMIT … ONE PHASE",
            Input::XaCommit => "XA COMMIT",
            Input::XaRollback => "XA ROLLBACK",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(inputs: &[Input]) -> Result<(Vec<Action>, State)> {
        let (mut state, mut actions) = (State::Between, Vec::new());
        for input in inputs {
            let (action, next) = state.step(*input)?;
            actions.push(action);
            state = next;
        }
        Ok((actions, state))
    }

    #[test]
    fn what_servers_write_ends_between_transactions() {
        use Input::*;
        let written: [&[Input]; 9] = [
            &[Gtid, Begin, Rows, Rows, Xid],
            &[Gtid, Begin, Rows, Commit],
            &[Gtid, Context, Statement],
            &[Gtid, Begin, CreateSelect, Rows, Xid],
            &[Gtid, Begin, Context, Statement, Xid],
            &[Gtid, Begin, Savepoint, Rows, RollbackTo, Rows, Rollback],
            &[Gtid, XaStart, Rows, XaEnd, XaPrepare, Boundary, Gtid, XaCommit],
            &[Gtid, XaStart, Rows, XaEnd, XaOnePhase],
            &[Gtid, Begin, Commit, Boundary],
        ];
        for inputs in written {
            let (actions, state) = walk(inputs).unwrap();
            assert_eq!(state, State::Between, "{inputs:?}");
            // Nothing but the last event of a group lets the position pass.
            for (input, action) in inputs.iter().zip(actions) {
                let ends = matches!(action, Action::End | Action::Undo | Action::Hold);
                assert!(!ends || !matches!(input, Rows | CreateSelect | Context | Begin | Gtid));
            }
        }
    }

    #[test]
    fn what_cannot_stand_is_refused() {
        use Input::*;
        for inputs in [
            &[Xid][..],
            &[Gtid, Gtid],
            &[Gtid, Rows],
            &[Gtid, Begin, Begin],
            &[Gtid, Begin, Boundary],
            &[Gtid, Begin, Gtid],
            &[Gtid, XaStart, Xid],
            &[Gtid, XaStart, XaPrepare],
            &[Gtid, XaStart, XaEnd, Rows],
            &[Gtid, Begin, XaCommit],
        ] {
            assert!(walk(inputs).is_err(), "{inputs:?}");
        }
    }
}
