//! The tables of the stream: their definitions, and rows that were read and not yet given.
//!
//! Rows are decoded as they come, straight into the columns of their table. What a transaction takes back is cut off again, so each
//! table remembers where the open transaction began.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_buffer::{Buffer, ScalarBuffer};
use arrow_data::ArrayData;
use arrow_schema::DataType;

use crate::error::{Error, Result, damaged};
use crate::image::Wire;
use crate::plan::ColumnPlan;
use crate::rowevent::{self, RowEvent};
use crate::rows::{Finished, Rows};
use crate::tablemap::{Definition, TableMap};

/// Metadata columns, by their place.
const TXN: usize = 1;
const SEQ: usize = 5;
/// The last column, if a row has a value that did not fit.
const UNFIT: &str = "_cdc_unfit";
/// Ids of tables that are remembered.
const IDS: usize = 1 << 16;
/// Table maps of one statement.
const MAPS: usize = 4096;

/// Row changes of one table, as Arrow.
#[derive(Debug, Clone)]
pub struct Change {
    pub name: Arc<Name>,
    /// Which answer to a question for a plan they were read under, from 0.
    pub answer: u32,
    pub rows: ArrayData,
    pub incomplete: Option<(ArrayData, ArrayData)>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    pub schema: String,
    pub table: String,
    /// As in TABLE_MAP events.
    raw: Vec<u8>,
}

struct Table {
    definition: Vec<u8>,
    name: Arc<Name>,
    /// None: its rows are skipped.
    reading: Option<Reading>,
    stopped: bool,
    /// Place in `touched`.
    touched: Option<usize>,
}

struct Reading {
    wire: Wire,
    plan: Arc<[ColumnPlan]>,
    rows: Rows,
    answer: u32,
}

/// What the open transaction did to a table.
struct Touched {
    table: usize,
    /// Rows of the transactions before.
    base: usize,
    /// Its rows that a drain took out of the columns and did not give.
    carried: Vec<Change>,
    carried_rows: usize,
    /// Row events that were kept since rows were given.
    events: u64,
    /// In an XA transaction: its rows, apart from the others.
    held: Option<Box<Rows>>,
}

/// Where a table's rows stood.
#[derive(Debug, Clone, Copy)]
struct Place {
    rows: usize,
    events: u64,
}

/// A point of the open transaction that it may go back to.
#[derive(Debug, Clone, Default)]
pub struct Mark(Vec<Place>);

/// What a TABLE_MAP event leads to.
pub enum Mapped {
    Known,
    /// A definition of a captured table that was not seen before.
    New(Box<Definition>),
    /// A captured table whose definition cannot be read, and why.
    Unreadable(String),
}

/// What a row event is about.
pub enum Target {
    Read(usize),
    Skip,
    Unmapped,
}

#[derive(Default)]
pub struct Tables {
    mariadb: bool,
    captured: HashSet<Vec<u8>>,
    known: HashMap<Vec<u8>, usize>,
    by_id: HashMap<u64, usize>,
    /// Of the statement at hand: id, and table if it is captured.
    maps: Vec<(u64, Option<usize>)>,
    tables: Vec<Table>,
    touched: Vec<Touched>,
    ready: Vec<Change>,
    answers: u32,
    /// Names of tables whose rows an XA transaction has and that are skipped.
    passed: Option<HashSet<Vec<u8>>>,
}

impl Tables {
    pub fn new(mariadb: bool) -> Tables {
        Tables { mariadb, ..Tables::default() }
    }

    /// From here on exactly these. Definitions are forgotten, rows are not.
    pub fn capture(&mut self, names: HashSet<Vec<u8>>) -> Result<()> {
        for i in 0..self.tables.len() {
            self.flush(i)?;
        }
        self.tables.clear();
        self.known.clear();
        self.by_id.clear();
        self.maps.clear();
        self.touched.clear();
        self.captured = names;
        Ok(())
    }

    pub fn is_captured(&self, raw: &[u8]) -> bool {
        self.captured.contains(raw)
    }

    /// Make Arrow of a table's pending rows, which all belong to whole transactions.
    fn flush(&mut self, i: usize) -> Result<()> {
        let Some(Table { name, reading: Some(reading), .. }) = self.tables.get_mut(i) else { return Ok(()) };
        if !reading.rows.is_empty() {
            self.ready.push(change(name, reading.answer, reading.rows.finish()?));
        }
        Ok(())
    }

    // -- definitions

    pub fn map(&mut self, map: &TableMap<'_>) -> Result<Mapped> {
        if let Some(i) = self.by_id.get(&map.id)
            && self.tables.get(*i).is_some_and(|t| !t.stopped && t.definition == map.definition)
        {
            let i = *i;
            self.insert(map.id, Some(i))?;
            return Ok(Mapped::Known);
        }
        if !self.captured.contains(map.name) {
            self.pass(map.name);
            self.insert(map.id, None)?;
            return Ok(Mapped::Known);
        }
        if let Some(i) = self.known.get(map.definition) {
            let i = *i;
            if self.by_id.len() >= IDS {
                self.by_id.clear();
            }
            self.by_id.insert(map.id, i);
            self.insert(map.id, Some(i))?;
            return Ok(Mapped::Known);
        }
        match Definition::read(map.definition, self.mariadb) {
            Ok(found) => Ok(Mapped::New(Box::new(found))),
            Err(Error::Table(what)) => {
                self.pass(map.name);
                self.insert(map.id, None)?;
                Ok(Mapped::Unreadable(what))
            }
            Err(Error::Damaged(what)) => damaged(format!("a TABLE_MAP event cannot be read: {what}")),
            Err(error) => Err(error),
        }
    }

    /// Remember that rows of a table are skipped, if an XA transaction is open.
    fn pass(&mut self, raw: &[u8]) {
        if let Some(passed) = &mut self.passed
            && !passed.contains(raw)
        {
            passed.insert(raw.to_vec());
        }
    }

    fn insert(&mut self, id: u64, table: Option<usize>) -> Result<()> {
        if let Some(place) = self.maps.iter_mut().rev().find(|(known, _)| *known == id) {
            place.1 = table;
        } else if self.maps.len() < MAPS {
            self.maps.push((id, table));
        } else {
            return damaged("a statement on too many tables");
        }
        Ok(())
    }

    /// The answer to `Mapped::New`. `plan`: one a wire column (None: not wanted); None: its rows are skipped.
    /// `Error::Table`: columns that cannot be read so.
    pub fn define(
        &mut self,
        id: u64,
        raw: &[u8],
        definition: &[u8],
        found: Definition,
        plan: Option<Vec<Option<ColumnPlan>>>,
    ) -> Result<()> {
        let answer = self.answers;
        self.answers += 1;
        let name = Arc::new(Name { schema: found.schema, table: found.table, raw: raw.to_vec() });
        let stopped = !self.captured.contains(raw);
        let (mut reading, mut unread) = (None, Ok(()));
        if let Some(plan) = plan.filter(|_| !stopped) {
            let (mut wire, mut kept) = (found.wire, Vec::new());
            for (column, plan) in wire.iter_mut().zip(plan) {
                if let Some(plan) = plan {
                    column.plan = Some(kept.len());
                    column.key = plan.key;
                    kept.push(plan);
                }
            }
            let plan: Arc<[ColumnPlan]> = kept.into();
            match Wire::new(&wire, &plan) {
                Ok(wire) => {
                    let wire = if self.mariadb { wire.of_mariadb() } else { wire };
                    reading = Some(Reading { wire, rows: Rows::new(plan.clone()), plan, answer });
                }
                Err(error) => unread = Err(error),
            }
        }
        if reading.is_none() {
            self.pass(raw);
        }
        let i = self.tables.len();
        self.tables.push(Table { definition: definition.to_vec(), name, reading, stopped, touched: None });
        self.known.insert(definition.to_vec(), i);
        self.by_id.insert(id, i);
        self.insert(id, Some(i))?;
        unread
    }

    /// The statement is over: ids mean nothing any more.
    #[inline]
    pub fn end_statement(&mut self) {
        self.maps.clear();
    }

    // -- rows

    #[inline]
    pub fn target(&self, id: u64) -> Target {
        let Some((_, table)) = self.maps.iter().rev().find(|(known, _)| *known == id) else { return Target::Unmapped };
        match table.and_then(|i| Some((i, self.tables.get(i)?))) {
            Some((i, Table { reading: Some(_), stopped: false, .. })) => Target::Read(i),
            _ => Target::Skip,
        }
    }

    pub fn name(&self, table: usize) -> Option<Arc<Name>> {
        self.tables.get(table).map(|t| t.name.clone())
    }

    /// Read a row event's rows; how many changes. `held`: of an XA transaction. See `rowevent::read` for errors.
    #[inline]
    pub fn read(
        &mut self,
        table: usize,
        event: &RowEvent<'_>,
        txn: i32,
        ordinal: i32,
        first_seq: i64,
        held: bool,
    ) -> Result<u32> {
        let Some(Table { reading: Some(reading), touched, .. }) = self.tables.get_mut(table) else { return Ok(0) };
        let place = *touched.get_or_insert_with(|| {
            let held = held.then(|| Box::new(Rows::new(reading.plan.clone())));
            let base = reading.rows.len();
            self.touched.push(Touched { table, base, carried: Vec::new(), carried_rows: 0, events: 0, held });
            self.touched.len() - 1
        });
        let Some(touched) = self.touched.get_mut(place) else { return Ok(0) };
        let rows = touched.held.as_deref_mut().unwrap_or(&mut reading.rows);
        let changes = rowevent::read(event, &reading.wire, txn, ordinal, first_seq, rows)?;
        touched.events += 1;
        Ok(changes)
    }

    /// Begin to keep rows apart, for an XA transaction.
    pub fn hold(&mut self) {
        self.passed = Some(HashSet::new());
    }

    pub fn mark(&self) -> Mark {
        Mark(self.touched.iter().map(|touched| self.place(touched)).collect())
    }

    fn place(&self, touched: &Touched) -> Place {
        let rows = match (&touched.held, self.tables.get(touched.table)) {
            (Some(held), _) => held.len(),
            (None, Some(Table { reading: Some(reading), .. })) => {
                touched.carried_rows + reading.rows.len().saturating_sub(touched.base)
            }
            _ => 0,
        };
        Place { rows, events: touched.events }
    }

    /// Forget the rows since `mark` (an empty one is the transaction's beginning); how many row events that takes back.
    pub fn undo(&mut self, mark: &Mark) -> u64 {
        let mut undone = 0;
        for (i, touched) in self.touched.iter_mut().enumerate() {
            let keep = mark.0.get(i).copied().unwrap_or(Place { rows: 0, events: 0 });
            undone += touched.events.saturating_sub(keep.events);
            touched.events = touched.events.min(keep.events);
            if let Some(held) = &mut touched.held {
                held.truncate(keep.rows);
                continue;
            }
            let Some(Table { reading: Some(reading), .. }) = self.tables.get_mut(touched.table) else { continue };
            reading.rows.truncate(touched.base + keep.rows.saturating_sub(touched.carried_rows));
            while touched.carried_rows > keep.rows {
                let Some(mut last) = touched.carried.pop() else { break };
                let size = last.rows.len();
                touched.carried_rows -= size;
                if let Some(left) = keep.rows.checked_sub(touched.carried_rows).filter(|left| *left > 0) {
                    last = slice(&last, 0, left);
                    touched.carried_rows += left;
                    touched.carried.push(last);
                }
            }
        }
        undone
    }

    /// The open transaction is over: its rows are as those before.
    #[inline]
    pub fn commit(&mut self) {
        for mut touched in self.touched.drain(..) {
            if let Some(table) = self.tables.get_mut(touched.table) {
                table.touched = None;
            }
            self.ready.append(&mut touched.carried);
        }
        self.maps.clear();
    }

    /// The open XA transaction is over: its rows, and the names of tables that were skipped in it.
    pub fn take_held(&mut self) -> Result<(Vec<Change>, HashSet<Vec<u8>>)> {
        let mut changes = Vec::new();
        for touched in self.touched.drain(..) {
            let Some(table) = self.tables.get_mut(touched.table) else { continue };
            table.touched = None;
            if let (Some(mut held), Some(reading)) = (touched.held, &table.reading)
                && !held.is_empty()
            {
                changes.push(change(&table.name, reading.answer, held.finish()?));
            }
        }
        self.maps.clear();
        Ok((changes, self.passed.take().unwrap_or_default()))
    }

    /// Rows that were held, now of transaction `txn`, their numbers following `seq`. Those of tables that are not captured any more
    /// are dropped.
    pub fn release(&mut self, changes: Vec<Change>, txn: i32, seq: i64) -> Result<()> {
        for change in changes {
            if !self.captured.contains(&change.name.raw) {
                continue;
            }
            // What was read before comes first.
            for i in 0..self.tables.len() {
                if self.tables.get(i).is_some_and(|t| t.name == change.name) {
                    self.flush(i)?;
                }
            }
            self.ready.push(rebase(&change, txn, seq)?);
        }
        Ok(())
    }

    /// No rows of a table from the open transaction on; how many row events of that one are forgotten so.
    pub fn stop(&mut self, raw: &[u8]) -> u64 {
        self.captured.remove(raw);
        let (mut forgotten, mut written) = (0, false);
        for (i, table) in self.tables.iter_mut().enumerate() {
            if table.name.raw != raw {
                continue;
            }
            table.stopped = true;
            written |= table.touched.is_some() || self.maps.iter().any(|(_, mapped)| *mapped == Some(i));
            let Some(touched) = table.touched.and_then(|place| self.touched.get_mut(place)) else { continue };
            forgotten += touched.events;
            touched.events = 0;
            touched.carried.clear();
            touched.carried_rows = 0;
            if let Some(held) = &mut touched.held {
                held.truncate(0);
            } else if let Some(reading) = &mut table.reading {
                reading.rows.truncate(touched.base);
            }
        }
        if written {
            self.pass(raw);
        }
        forgotten
    }

    /// All rows of whole transactions, and with `open` those of the open one. What stays of that one is of transaction 0 from now
    /// on, and its numbers are less by `seq`.
    pub fn take(&mut self, open: bool, seq: i64) -> Result<Vec<Change>> {
        let mut out = std::mem::take(&mut self.ready);
        for table in &mut self.tables {
            let Some(reading) = &mut table.reading else { continue };
            let touched = table.touched.and_then(|place| self.touched.get_mut(place));
            let size = reading.rows.len();
            let Some(touched) = touched else {
                if size > 0 {
                    out.push(change(&table.name, reading.answer, reading.rows.finish()?));
                }
                continue;
            };
            if open {
                out.append(&mut touched.carried);
                touched.carried_rows = 0;
                touched.events = 0;
            }
            let base = if open { size } else { touched.base };
            touched.base = 0;
            if size == 0 {
                continue;
            }
            let all = change(&table.name, reading.answer, reading.rows.finish()?);
            if base >= size {
                out.push(all);
                continue;
            }
            if base > 0 {
                out.push(slice(&all, 0, base));
            }
            touched.carried_rows += size - base;
            touched.carried.push(rebase(&slice(&all, base, size - base), 0, -seq)?);
        }
        Ok(out)
    }
}

/// A savepoint.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    pub mark: Mark,
    pub seq: i64,
    /// Row events of captured tables before it.
    pub kept: u64,
}

impl Saved {
    /// What came before was given: it is where the transaction's rows begin now.
    pub fn given(&mut self) {
        *self = Saved { kept: self.kept, ..Saved::default() };
    }
}

impl Name {
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}

fn change(name: &Arc<Name>, answer: u32, finished: Finished) -> Change {
    Change { name: name.clone(), answer, rows: finished.rows, incomplete: finished.incomplete }
}

/// A struct's rows from `start` on, its own offset staying 0.
fn cut(data: &ArrayData, start: usize, size: usize) -> Vec<ArrayData> {
    data.child_data().iter().map(|child| child.slice(start, size)).collect()
}

fn slice(change: &Change, start: usize, size: usize) -> Change {
    let rows =
        rebuilt(&change.rows, cut(&change.rows, start, size), size).unwrap_or_else(|_| change.rows.slice(start, size));
    let incomplete = change.incomplete.as_ref().map(|(p, d)| (p.slice(start, size), d.slice(start, size)));
    Change { name: change.name.clone(), answer: change.answer, rows, incomplete }
}

fn rebuilt(like: &ArrayData, children: Vec<ArrayData>, size: usize) -> Result<ArrayData> {
    ArrayData::builder(like.data_type().clone())
        .len(size)
        .child_data(children)
        .build()
        .map_err(|error| Error::Unsupported(format!("rows that Arrow cannot hold: {error}")))
}

/// The same rows as those of transaction `txn`, their numbers changed by `seq`.
fn rebase(change: &Change, txn: i32, seq: i64) -> Result<Change> {
    let size = change.rows.len();
    let mut children = cut(&change.rows, 0, size);
    if let Some(column) = children.get_mut(TXN) {
        *column = column_of(DataType::Int32, ScalarBuffer::<i32>::from(vec![txn; size]).into_inner(), size)?;
    }
    if let Some(column) = children.get_mut(SEQ) {
        let numbers: Vec<i64> = match column.buffers().first() {
            Some(buffer) => {
                let numbers = ScalarBuffer::<i64>::new(buffer.clone(), column.offset(), size);
                numbers.iter().map(|n| n.wrapping_add(seq)).collect()
            }
            None => Vec::new(),
        };
        *column = column_of(DataType::Int64, ScalarBuffer::<i64>::from(numbers).into_inner(), size)?;
    }
    let rows = rebuilt(&change.rows, children, size)?;
    Ok(Change { name: change.name.clone(), answer: change.answer, rows, incomplete: change.incomplete.clone() })
}

fn column_of(type_: DataType, buffer: Buffer, size: usize) -> Result<ArrayData> {
    ArrayData::builder(type_)
        .len(size)
        .add_buffer(buffer)
        .build()
        .map_err(|error| Error::Unsupported(format!("rows that Arrow cannot hold: {error}")))
}

/// How many values of these rows are kept as text.
pub fn unfit(rows: &ArrayData) -> u64 {
    let DataType::Struct(fields) = rows.data_type() else { return 0 };
    let (Some(field), Some(column)) = (fields.last(), rows.child_data().last()) else { return 0 };
    if field.name() != UNFIT {
        return 0;
    }
    let offsets = column.buffers().first().map(|b| b.typed_data::<i32>()).unwrap_or_default();
    let at = |i: usize| offsets.get(column.offset() + i).copied().unwrap_or_default();
    u64::try_from(at(column.len()) - at(0)).unwrap_or(0)
}
