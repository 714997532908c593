//! Table maps, row events, and what a drain gives.

use super::{Asked, Drained, Framing, HELD_BYTES, Stop, Stream, TableAsked, Txn};
use crate::batches::{Mapped, Mark, Target, unfit};
use crate::cursor::Cursor;
use crate::error::{Error, Result, damaged};
use crate::events;
use crate::mariadb;
use crate::plan::ColumnPlan;
use crate::rowevent::{self, STATEMENT_END};
use crate::tablemap::TableMap;

impl Stream {
    // -- rows --------------------------------------------------------------------------------------------------------

    /// The index of the transaction at hand.
    pub(super) fn next_txn(&self) -> Result<i32> {
        i32::try_from(self.txns.len()).map_err(|_| Error::Unsupported("more transactions than a drain can have".into()))
    }

    pub(super) fn table_map(&mut self, body: &[u8]) -> Result<()> {
        let map = TableMap::of(body)?;
        match self.tables.map(&map)? {
            Mapped::Known => {}
            Mapped::New(found) => {
                self.asked = Some(Asked::Table(Box::new(TableAsked {
                    found: *found,
                    id: map.id,
                    raw: map.name.to_vec(),
                    definition: map.definition.to_vec(),
                })));
            }
            Mapped::Unreadable(what) => self.stop_named(map.name, &what),
        }
        Ok(())
    }

    pub(super) fn define(&mut self, asked: TableAsked, plan: Option<Vec<Option<ColumnPlan>>>) -> Result<()> {
        match self.tables.define(asked.id, &asked.raw, &asked.definition, asked.found, plan) {
            Err(Error::Table(what)) => {
                self.stop_named(&asked.raw, &what);
                Ok(())
            }
            done => done,
        }
    }

    pub(super) fn row_event(&mut self, type_: u8, body: &[u8], size: u32, compressed: bool) -> Result<()> {
        let mut cursor = Cursor::new(body);
        let (id, flags) = (cursor.uint(6)?, cursor.u16()?);
        let txn = self.next_txn()?;
        let limit = self.options.max_event;
        let Some(open) = &mut self.open else { return Ok(()) };
        let ordinal = i32::try_from(open.row_events);
        let ordinal = ordinal.map_err(|_| Error::Unsupported("a transaction of too many row events".into()))?;
        open.row_events += 1;
        open.framing.row_events += 1;
        let again = open.row_events <= open.resumed;
        match self.tables.target(id) {
            Target::Read(table) => {
                open.kept += 1;
                let plain = if compressed { Some(mariadb::rows(body, type_, limit)?) } else { None };
                let event = rowevent::parse(plain.as_deref().unwrap_or(body), type_)?;
                if again {
                    open.given = open.kept;
                    // Only counted.
                    match self.tables.read(table, &event, txn, ordinal, 1, false) {
                        Ok(changes) => open.again += u64::from(changes),
                        Err(Error::Table(_)) => {}
                        Err(error) => return Err(error),
                    }
                    self.tables.undo(&Mark::default());
                } else {
                    let held = open.xid.is_some();
                    open.since_part += plain.as_ref().map_or(u64::from(size), |plain| plain.len() as u64);
                    match self.tables.read(table, &event, txn, ordinal, self.seq + 1, held) {
                        Ok(changes) => self.seq += i64::from(changes),
                        Err(Error::Table(what)) => {
                            open.framing.rows_skipped += 1;
                            if let Some(name) = self.tables.name(table) {
                                self.stop_named(name.raw(), &what);
                            }
                        }
                        Err(error) => return Err(error),
                    }
                    self.after_rows(u64::from(size), held)?;
                }
            }
            Target::Skip => open.framing.rows_skipped += 1,
            Target::Unmapped if id == events::DUMMY_TABLE && flags & STATEMENT_END != 0 => {
                open.framing.rows_skipped += 1;
            }
            Target::Unmapped => {
                return damaged(format!("a row event of a table (id {id}) that no TABLE_MAP names"));
            }
        }
        if flags & STATEMENT_END != 0 {
            self.tables.end_statement();
        }
        self.resumed();
        Ok(())
    }

    /// Whether what was given before has been passed.
    pub(super) fn resumed(&mut self) {
        if let Some(open) = &mut self.open
            && open.resumed > 0
            && open.row_events == open.resumed
        {
            open.framing = Framing::default();
            open.weight = 0;
            self.asked = Some(Asked::Drain);
        }
    }

    pub(super) fn after_rows(&mut self, size: u64, held: bool) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        if held {
            self.held += size;
            if self.held > HELD_BYTES {
                return Err(Error::Unsupported(
                    "XA transactions of more rows than can be held until they are committed".into(),
                ));
            }
        } else if open.since_part >= self.options.part_bytes {
            self.part_ready = true;
            self.asked = Some(Asked::Drain);
        }
        Ok(())
    }

    pub(super) fn stop_table(&mut self, raw: &[u8]) {
        let forgotten = self.tables.stop(raw);
        if let Some(open) = &mut self.open {
            open.framing.rows_skipped += forgotten;
        }
    }

    pub(super) fn stop_named(&mut self, raw: &[u8], what: &str) {
        let mut cursor = Cursor::new(raw);
        let mut name = || {
            let part = cursor.u8().and_then(|size| cursor.take(usize::from(size))).unwrap_or_default();
            let part = String::from_utf8_lossy(part).into_owned();
            let _ = cursor.u8();
            part
        };
        let (schema, table) = (name(), name());
        self.stop_table(raw);
        self.stops.push(Stop { txn: self.txns.len(), schema, table, what: what.to_owned() });
    }

    // -- drains ------------------------------------------------------------------------------------------------------

    /// How many changes of the open transaction were numbered since the last drain.
    pub(super) fn numbers(&self) -> i64 {
        self.open.as_ref().map_or(0, |open| if open.xid.is_some() { self.seq } else { self.seq - open.seq })
    }

    pub(super) fn drain(&mut self) -> Result<Drained> {
        let part = std::mem::take(&mut self.part_ready);
        let mut framing = std::mem::take(&mut self.framing);
        let whole = self.txns.len();
        let mut txns = std::mem::take(&mut self.txns);
        let before = match &self.open {
            Some(open) if open.xid.is_none() => open.seq,
            Some(open) => open.outer_seq,
            None => self.seq,
        };
        let changes = self.tables.take(part, before)?;
        if let Some(open) = &mut self.open {
            if part {
                txns.push(Txn { gtid: open.gtid.clone(), commit_us: open.commit_us, row_events: open.row_events });
                framing.add(&std::mem::take(&mut open.framing));
                open.since_part = 0;
                open.weight = 0;
                open.given = open.kept;
                self.seq = 0;
                for (_, saved) in &mut self.savepoints {
                    saved.given();
                }
            } else if open.xid.is_some() {
                open.outer_seq = 0;
            } else {
                self.seq -= before;
                for (_, saved) in &mut self.savepoints {
                    saved.seq -= before;
                }
            }
            open.seq = 0;
        } else {
            self.seq = 0;
        }
        framing.unfit += changes.iter().map(|change| unfit(&change.rows)).sum::<u64>();
        let given = txns.len();
        let (stops, kept) = std::mem::take(&mut self.stops).into_iter().partition(|stop| stop.txn < given);
        self.stops = kept;
        for stop in &mut self.stops {
            stop.txn -= whole.min(stop.txn);
        }
        self.pending = 0;
        if matches!(self.asked, Some(Asked::Drain)) {
            self.asked = None;
        }
        Ok(Drained {
            txns,
            whole,
            executed: std::mem::take(&mut self.executed),
            changes,
            stops,
            framing,
            prepared_bytes: self.prepared.values().map(|prepared| prepared.framing.bytes).sum(),
            skipped: std::mem::take(&mut self.skipped),
            file: self.file.clone(),
            offset: self.end,
        })
    }
}
