//! Where transactions begin and end, what they take back, statements, and XA.

use super::{Asked, Framing, Mutant, Open, Prepared, Run, Stream, Txn};
use crate::batches::Saved;
use crate::error::{Error, Result, damaged};
use crate::events::{self, Gtid, GtidEvent, Header, XaVerb, Xid, kind};
use crate::mariadb::{self, kind as maria};
use crate::payload::Payload;
use crate::transaction::{Action, Input, State};

impl Stream {
    pub(super) fn start(&mut self, head: &Header, found: GtidEvent) -> Result<()> {
        self.following = true;
        let (action, state) = self.state.step(Input::Gtid)?;
        debug_assert_eq!(action, Action::Start);
        self.state = state;
        let named = !self.pass_over.is_empty() || self.resume.is_some();
        let name = if named { found.gtid.to_string() } else { String::new() };
        let pass_over = self.pass_over.contains(&name);
        let length = found.length;
        let counted = self.counted.as_ref().filter(|(gtid, _)| pass_over && *gtid == name).map_or(0, |(_, n)| *n);
        self.open = Some(Open {
            gtid: found.gtid,
            commit_us: found.commit_us,
            length,
            pass_over,
            framing: Framing::default(),
            bytes: 0,
            weight: 0,
            row_events: 0,
            seq: self.seq,
            kept: 0,
            given: 0,
            since_part: 0,
            resumed: 0,
            counted,
            again: 0,
            unexpected: false,
            outer_seq: 0,
            xid: None,
            early: false,
        });
        self.count(head, false);
        if pass_over {
            if length.is_none() && !self.options.mariadb {
                return Err(Error::Unsupported("a transaction whose length is not known cannot be passed over".into()));
            }
        } else {
            if found.xa {
                return Err(Error::Unsupported(mariadb::XA.into()));
            }
            self.meet(&name)?;
            if self.options.mutant == Mutant::PositionAtGtid {
                self.end_early();
            }
        }
        if found.group == Some(true) {
            self.state = State::Open;
            self.expected()?;
        }
        Ok(())
    }

    /// Compare the transaction with the one that is to be gone on with.
    pub(super) fn meet(&mut self, name: &str) -> Result<()> {
        let (Some(resume), Some(open)) = (&self.resume, &mut self.open) else { return Ok(()) };
        if resume.gtid != name {
            // A prepared XA transaction comes again until it is committed.
            open.unexpected = true;
            return Ok(());
        }
        if resume.commit_us != open.commit_us {
            return Err(Error::Identity(format!(
                "{name} was committed at {} µs; the transaction of this name that was read in part, at {} µs",
                open.commit_us, resume.commit_us
            )));
        }
        open.resumed = resume.row_events;
        self.resume = None;
        if open.resumed == 0 {
            self.asked = Some(Asked::Drain);
        }
        Ok(())
    }

    pub(super) fn expected(&self) -> Result<()> {
        match (&self.open, &self.resume) {
            (Some(open), Some(resume)) if open.unexpected => Err(Error::Identity(format!(
                "{} comes where {} was expected, of which a part was read",
                open.gtid, resume.gtid
            ))),
            _ => Ok(()),
        }
    }

    /// A mutant's: what is known of the transaction is given as if it were all.
    pub(super) fn end_early(&mut self) {
        let Some(open) = &mut self.open else { return };
        open.early = true;
        open.length = None;
        let framing = std::mem::take(&mut open.framing);
        let txn = Txn { gtid: open.gtid.clone(), commit_us: open.commit_us, row_events: open.row_events };
        self.pending += framing.bytes;
        self.framing.add(&framing);
        self.executed(&txn.gtid);
        self.txns.push(txn);
        self.tables.commit();
        self.asked = Some(Asked::Drain);
    }

    pub(super) fn passed_over(&mut self, head: &Header, body: &[u8]) -> Result<()> {
        let mut events = u32::from(is_rows(head.type_, self.options.mariadb));
        if head.type_ == kind::TRANSACTION_PAYLOAD && !self.options.mariadb {
            events = row_events(body, self.options.max_event);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let before = open.row_events;
        open.row_events = before.saturating_add(events);
        if (before + 1..=open.row_events).contains(&open.counted) {
            // A payload's bytes were counted with the first of its rows.
            open.framing = Framing::default();
            events = open.row_events - open.counted;
        }
        open.framing.row_events += u64::from(events);
        open.framing.rows_skipped += u64::from(events);
        let ends = match open.length {
            Some(length) if open.bytes > length => {
                return damaged("a transaction that is longer than its GTID event says");
            }
            Some(length) => open.bytes == length,
            None => self.ends_unread(head, body)?,
        };
        if ends {
            let gtid = self.open.as_ref().map(|open| open.gtid.to_string());
            self.state = State::Between;
            self.skipped.extend(gtid);
            self.end_transaction(Action::End)?;
            self.asked = Some(Asked::Drain);
        }
        Ok(())
    }

    /// Whether an event ends a transaction of MariaDB of which nothing else is read.
    pub(super) fn ends_unread(&self, head: &Header, body: &[u8]) -> Result<bool> {
        Ok(match head.type_ {
            kind::XID | kind::XA_PREPARE => true,
            kind::QUERY | kind::EXECUTE_LOAD_QUERY | maria::QUERY_COMPRESSED => {
                let sql = self.sql(head.type_, body)?;
                let sql = sql.as_deref().unwrap_or(events::query(body, head.type_ == kind::EXECUTE_LOAD_QUERY)?.sql);
                self.state == State::Started || sql == b"COMMIT" || sql == b"ROLLBACK"
            }
            _ => false,
        })
    }

    // -- statements --------------------------------------------------------------------------------------------------

    /// The text of a compressed statement; None: it is not compressed.
    pub(super) fn sql(&self, type_: u8, body: &[u8]) -> Result<Option<Vec<u8>>> {
        if type_ != maria::QUERY_COMPRESSED {
            return Ok(None);
        }
        mariadb::decompress(events::query(body, false)?.sql, self.options.max_event).map(Some)
    }

    pub(super) fn query(&mut self, type_: u8, body: &[u8]) -> Result<()> {
        let raw = events::query(body, type_ == kind::EXECUTE_LOAD_QUERY)?;
        let plain = self.sql(type_, body)?;
        let sql = plain.as_deref().unwrap_or(raw.sql);
        match sql {
            b"BEGIN" => return self.step(Input::Begin),
            b"COMMIT" => return self.step(Input::Commit),
            b"ROLLBACK" => return self.step(Input::Rollback),
            _ => {}
        }
        if let Some(found) = events::xa_statement(sql) {
            if self.options.mariadb {
                return Err(Error::Unsupported(mariadb::XA.into()));
            }
            let (verb, xid) = found?;
            return self.xa(verb, xid);
        }
        if self.state == State::Between {
            return damaged("a statement between transactions");
        }
        self.asked = Some(Asked::Statement(Box::new(raw.read(plain)?)));
        Ok(())
    }

    pub(super) fn statement(&mut self, input: Input, savepoint: &str) -> Result<()> {
        if matches!(input, Input::Statement | Input::CreateSelect)
            && let Some(open) = &mut self.open
        {
            open.framing.statements += 1;
        }
        match input {
            // Where nothing is open, it is DDL that stands alone.
            Input::CreateSelect if !matches!(self.state, State::Open | State::Xa) => self.step(Input::Statement),
            Input::CreateSelect if self.options.mutant == Mutant::CreateSelectPosition => {
                self.step(input)?;
                self.end_early();
                Ok(())
            }
            Input::Savepoint => {
                self.step(input)?;
                self.save(savepoint);
                Ok(())
            }
            Input::RollbackTo => {
                self.step(input)?;
                self.roll_back_to(savepoint)
            }
            _ => self.step(input),
        }?;
        if !self.compressed {
            self.rest();
        }
        Ok(())
    }

    pub(super) fn save(&mut self, name: &str) {
        let Some(open) = &self.open else { return };
        let saved = Saved { mark: self.tables.mark(), seq: self.seq, kept: open.kept };
        self.savepoints.retain(|(known, _)| known != name);
        self.savepoints.push((name.to_owned(), saved));
    }

    pub(super) fn roll_back_to(&mut self, name: &str) -> Result<()> {
        let Some(place) = self.savepoints.iter().position(|(known, _)| known == name) else {
            return damaged("ROLLBACK TO a savepoint that was not set");
        };
        self.savepoints.truncate(place + 1);
        let saved = self.savepoints.last().map(|(_, saved)| saved.clone()).unwrap_or_default();
        self.undo(&saved)
    }

    /// Forget the open transaction's rows since then.
    pub(super) fn undo(&mut self, saved: &Saved) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if saved.kept < open.given {
            return Err(Error::Unsupported(format!(
                "a ROLLBACK in transaction {} of rows that were given before it ended, since it is so large",
                open.gtid
            )));
        }
        open.framing.rows_skipped += self.tables.undo(&saved.mark);
        open.kept = saved.kept;
        self.seq = saved.seq;
        Ok(())
    }

    // -- transactions ------------------------------------------------------------------------------------------------

    pub(super) fn step(&mut self, input: Input) -> Result<()> {
        let (action, state) = self.state.step(input)?;
        if self.state == State::Started && !matches!(input, Input::XaStart | Input::Context) {
            self.expected()?;
        }
        self.state = state;
        match action {
            Action::End | Action::Undo | Action::Hold if self.compressed => {
                self.ending = Some(action);
                Ok(())
            }
            Action::End | Action::Undo | Action::Hold => self.end_transaction(action),
            Action::Nothing | Action::Start | Action::Mark | Action::UndoTo => Ok(()),
        }
    }

    pub(super) fn end_transaction(&mut self, action: Action) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        if let Some(length) = open.length.filter(|length| *length != open.bytes) {
            return damaged(format!(
                "a transaction of {} bytes, of which its GTID event says that it has {length}",
                open.bytes
            ));
        }
        if open.row_events < open.resumed {
            return Err(Error::Identity(format!(
                "{} has {} row events, and {} of them were read before",
                open.gtid, open.row_events, open.resumed
            )));
        }
        if action == Action::Undo {
            // Numbers start again where the transaction did.
            let seq = self.seq - self.numbers();
            self.undo(&Saved { seq, ..Saved::default() })?;
        }
        let Some(open) = self.open.take() else { return Ok(()) };
        self.savepoints.clear();
        self.part_ready = false;
        let txn = Txn { gtid: open.gtid, commit_us: open.commit_us, row_events: open.row_events };
        if let Some(xid) = open.xid {
            let (changes, passed) = self.tables.take_held()?;
            let numbers = self.seq;
            self.seq = open.outer_seq;
            let prepared = Prepared {
                txn,
                framing: open.framing,
                changes,
                numbers,
                weight: open.weight,
                held: open.since_part,
                passed,
            };
            if action == Action::Hold {
                return match self.prepared.insert(xid, prepared) {
                    // Its name is free again, and the log does not say why: of what had it nothing was logged that took place.
                    Some(gone) => {
                        self.held = self.held.saturating_sub(gone.held);
                        self.give_prepared(gone, false)
                    }
                    None => Ok(()),
                };
            }
            self.held = self.held.saturating_sub(prepared.held);
            return self.give_prepared(prepared, true);
        }
        self.tables.commit();
        self.give(txn, open.framing, open.weight, open.early);
        Ok(())
    }

    /// The transaction is among the whole ones.
    pub(super) fn give(&mut self, txn: Txn, mut framing: Framing, weight: u64, early: bool) {
        framing.transactions += 1;
        self.framing.add(&framing);
        self.pending += weight;
        if !early {
            self.executed(&txn.gtid);
        }
        self.txns.push(txn);
        if self.pending >= self.options.drain_bytes || early {
            self.asked = Some(Asked::Drain);
        }
    }

    pub(super) fn executed(&mut self, gtid: &Gtid) {
        match self.executed.last_mut() {
            Some(run) if run.last.checked_add(1) == Some(gtid.number) && run.sid == gtid.sid => run.last = gtid.number,
            _ => self.executed.push(Run { sid: gtid.sid.clone(), first: gtid.number, last: gtid.number }),
        }
    }

    // -- XA ----------------------------------------------------------------------------------------------------------

    pub(super) fn xa(&mut self, verb: XaVerb, xid: Xid) -> Result<()> {
        let own = self.open.as_ref().is_some_and(|open| open.xid.as_ref() == Some(&xid));
        match verb {
            XaVerb::Start => {
                self.step(Input::XaStart)?;
                self.tables.hold();
                if let Some(open) = &mut self.open {
                    open.outer_seq = std::mem::take(&mut self.seq);
                    open.xid = Some(xid);
                }
                Ok(())
            }
            XaVerb::End if own => self.step(Input::XaEnd),
            XaVerb::Rollback if own => self.step(Input::XaRollback),
            XaVerb::End => damaged("XA END of another XA transaction"),
            XaVerb::Commit | XaVerb::Rollback => {
                let commit = verb == XaVerb::Commit;
                // Where it must not stand, the rows stay.
                self.state.step(if commit { Input::XaCommit } else { Input::XaRollback })?;
                self.expected()?;
                let commit_us = self.open.as_ref().map_or(0, |open| open.commit_us);
                match self.prepared.remove(&xid) {
                    Some(mut prepared) => {
                        prepared.txn.commit_us = commit_us;
                        self.held = self.held.saturating_sub(prepared.held);
                        self.give_prepared(prepared, commit)?;
                    }
                    None if commit => {
                        return Err(Error::Unsupported(
                            "XA COMMIT of a transaction that was prepared before the position".into(),
                        ));
                    }
                    None => {}
                }
                self.step(if commit { Input::XaCommit } else { Input::XaRollback })
            }
        }
    }

    pub(super) fn give_prepared(&mut self, prepared: Prepared, commit: bool) -> Result<()> {
        let Prepared { txn, mut framing, changes, numbers, weight, passed, .. } = prepared;
        if commit {
            let place = self.next_txn()?;
            self.tables.release(changes, place, self.seq)?;
            self.seq += numbers;
            for raw in passed {
                if self.tables.is_captured(&raw) {
                    self.stop_named(
                        &raw,
                        "an XA transaction wrote to it before it was captured, and was committed after",
                    );
                }
            }
        } else {
            framing.rows_skipped = framing.row_events;
        }
        self.give(txn, framing, weight, false);
        Ok(())
    }
}

fn is_rows(type_: u8, mariadb: bool) -> bool {
    let type_ = if mariadb { mariadb::plain(type_).unwrap_or(type_) } else { type_ };
    matches!(
        type_,
        kind::WRITE_ROWS
            | kind::UPDATE_ROWS
            | kind::DELETE_ROWS
            | kind::WRITE_ROWS_V1
            | kind::UPDATE_ROWS_V1
            | kind::DELETE_ROWS_V1
            | kind::PARTIAL_UPDATE_ROWS
    )
}

/// Row events of a compressed transaction that is passed over, as far as it can be read.
fn row_events(body: &[u8], limit: usize) -> u32 {
    let (mut found, Ok(mut payload)) = (0, Payload::new(body, limit)) else { return 0 };
    while let Ok(Some(event)) = payload.event() {
        found += u32::from(event.get(4).is_some_and(|type_| is_rows(*type_, false)));
    }
    found
}
