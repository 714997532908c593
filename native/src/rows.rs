//! Row changes of one table: its kept columns, and of each row what it is, where it stands, and what it has values of.

use std::sync::Arc;

use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, Fields};

use crate::columns::{Table, Texts, array, offset, structure};
use crate::error::Result;
use crate::json::Diff;
use crate::plan::ColumnPlan;
use crate::pool;

/// `_op`, as `cdc.epoch.Op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum Op {
    Insert = 0,
    Update = 1,
    Delete = 2,
    MoveOut = 3,
}

/// Rows whose metadata count on by one: `row` and `seq` are the first's.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: usize,
    op: Op,
    txn: i32,
    event: i32,
    row: i32,
    seq: i64,
}

/// Rows of one table that were read and not yet given.
#[derive(Debug)]
pub struct Rows {
    pub(crate) table: Table,
    runs: Vec<Run>,
    /// A bit a kept column, whole bytes a row, up to the last incomplete row; rows beyond have all values.
    presence: Vec<u8>,
    /// Rows without values of all kept columns.
    incomplete: Vec<usize>,
    /// JSON diffs: row, kept column, diff.
    diffs: Vec<(usize, usize, Diff)>,
    diff_bytes: usize,
}

/// What `Rows::finish` gives.
#[derive(Debug)]
pub struct Finished {
    /// A struct: the metadata columns, the kept columns, and `_cdc_unfit` if a row has one.
    pub rows: ArrayData,
    /// `presence` and `diffs`, if a row is incomplete.
    pub incomplete: Option<(ArrayData, ArrayData)>,
}

impl Rows {
    pub fn new(plan: Arc<[ColumnPlan]>) -> Rows {
        Rows {
            table: Table::new(plan),
            runs: Vec::new(),
            presence: Vec::new(),
            incomplete: Vec::new(),
            diffs: Vec::new(),
            diff_bytes: 0,
        }
    }

    /// Rows, a MOVE_OUT being one.
    pub fn len(&self) -> usize {
        self.table.rows
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory, about; the metadata as large as it becomes.
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.len() * 29 + self.presence.len() + self.diff_bytes
    }

    /// How many values are kept as text in `_cdc_unfit`.
    pub fn unfit(&self) -> usize {
        self.table.unfit()
    }

    /// Forget all rows but the first `rows`.
    pub fn truncate(&mut self, rows: usize) {
        self.table.truncate(rows);
        while self.runs.last().is_some_and(|run| run.first >= rows) {
            self.runs.pop();
        }
        while self.incomplete.last().is_some_and(|row| *row >= rows) {
            self.incomplete.pop();
        }
        while let Some((_, _, diff)) = self.diffs.pop_if(|(row, _, _)| *row >= rows) {
            self.diff_bytes -= diff_size(&diff);
        }
        // Up to the last incomplete row.
        let marked = self.incomplete.last().map_or(0, |row| row + 1);
        self.presence.truncate(marked.saturating_mul(self.presence_width()));
    }

    /// Say what the next row, not yet in the table, is.
    #[inline]
    pub(crate) fn describe(&mut self, op: Op, txn: i32, event: i32, row: i32, seq: i64) {
        let first = self.table.rows;
        if let Some(run) = self.runs.last() {
            let more = first.wrapping_sub(run.first);
            let goes_on = run.op == op
                && run.txn == txn
                && run.event == event
                && usize::try_from(row.wrapping_sub(run.row)) == Ok(more)
                && usize::try_from(seq.wrapping_sub(run.seq)) == Ok(more);
            if goes_on {
                return;
            }
        }
        self.runs.push(Run { first, op, txn, event, row, seq });
    }

    /// The next row, not yet in the table, lacks values of the columns whose bit in `present` is off.
    pub(crate) fn mark(&mut self, present: &[u8], diffs: Vec<(usize, Diff)>) {
        let row = self.table.rows;
        self.fill_presence(row);
        self.presence.extend_from_slice(present);
        self.incomplete.push(row);
        self.diff_bytes += diffs.iter().map(|(_, diff)| diff_size(diff)).sum::<usize>();
        self.diffs.extend(diffs.into_iter().map(|(column, diff)| (row, column, diff)));
    }

    /// Bytes of a row's presence mask.
    pub(crate) fn presence_width(&self) -> usize {
        self.table.columns.len().div_ceil(8)
    }

    fn fill_presence(&mut self, rows: usize) {
        let columns = self.table.columns.len();
        let width = self.presence_width();
        let last = if columns.is_multiple_of(8) { 0xFF } else { (1 << (columns % 8)) - 1 };
        while self.presence.len() < rows * width {
            self.presence.extend(std::iter::repeat_n(0xFF, width - 1));
            self.presence.push(last);
        }
    }

    /// All rows; none are left.
    pub fn finish(&mut self) -> Result<Finished> {
        let rows = self.len();
        let incomplete = self.finish_incomplete(rows)?;
        let runs = std::mem::take(&mut self.runs);
        let (kept_fields, kept) = self.table.finish()?;
        let field = |name: &str, kind: DataType| Field::new(name, kind, false);
        let mut fields = vec![
            field("_op", DataType::Int8),
            field("_txn", DataType::Int32),
            field("_event", DataType::Int32),
            field("_row", DataType::Int32),
            field("_ts_ms", DataType::Int64),
            field("_seq", DataType::Int64),
        ];
        let ends = runs.iter().skip(1).map(|run| run.first).chain([rows]);
        let runs: Vec<(Run, usize)> = runs.iter().zip(ends).map(|(run, end)| (*run, end - run.first)).collect();
        let mut columns = vec![
            numbers(DataType::Int8, rows, &runs, |run, _| [run.op as u8])?,
            numbers(DataType::Int32, rows, &runs, |run, _| run.txn.to_ne_bytes())?,
            numbers(DataType::Int32, rows, &runs, |run, _| run.event.to_ne_bytes())?,
            numbers(DataType::Int32, rows, &runs, |run, i| run.row.wrapping_add(i as i32).to_ne_bytes())?,
            numbers(DataType::Int64, rows, &runs, |_, _| 0_i64.to_ne_bytes())?,
            numbers(DataType::Int64, rows, &runs, |run, i| run.seq.wrapping_add(i as i64).to_ne_bytes())?,
        ];
        fields.extend(kept_fields);
        columns.extend(kept);
        Ok(Finished { rows: structure(fields, columns, rows)?, incomplete })
    }

    fn finish_incomplete(&mut self, rows: usize) -> Result<Option<(ArrayData, ArrayData)>> {
        if self.incomplete.is_empty() {
            self.presence.clear();
            return Ok(None);
        }
        self.incomplete.clear();
        self.diff_bytes = 0;
        self.fill_presence(rows);
        let width = i32::try_from(self.presence_width()).unwrap_or(0);
        let presence = Buffer::from_vec(std::mem::take(&mut self.presence));
        let presence = array(DataType::FixedSizeBinary(width), rows, None, vec![presence], Vec::new())?;
        let mut offsets = Vec::with_capacity(rows + 1);
        let (mut columns, mut ops) = (Vec::<i32>::new(), Vec::<i8>::new());
        let (mut paths, mut values, mut valid) = (Texts::default(), Texts::default(), Vec::<bool>::new());
        for (row, column, diff) in std::mem::take(&mut self.diffs) {
            while offsets.len() <= row {
                offsets.push(offset(columns.len())?);
            }
            columns.push(i32::try_from(column).unwrap_or(i32::MAX));
            ops.push(diff.op as i8);
            paths.push(&diff.path);
            valid.push(diff.value.is_some());
            values.push(diff.value.as_deref().unwrap_or_default());
        }
        let count = columns.len();
        offsets.resize(rows + 1, offset(count)?);
        let bits =
            valid.chunks(8).map(|c| c.iter().enumerate().fold(0_u8, |bits, (i, bit)| bits | u8::from(*bit) << i));
        let bits = Buffer::from_vec(bits.collect::<Vec<u8>>());
        let fields = vec![
            Field::new("column", DataType::Int32, true),
            Field::new("op", DataType::Int8, true),
            Field::new("path", DataType::Utf8, true),
            Field::new("value", DataType::Utf8, true),
        ];
        let children = vec![
            array(DataType::Int32, count, None, vec![Buffer::from_vec(columns)], Vec::new())?,
            array(DataType::Int8, count, None, vec![Buffer::from_vec(ops)], Vec::new())?,
            paths.finish()?,
            values.finish_nullable(Some(bits))?,
        ];
        let entries = structure(fields, children, count)?;
        let kind = DataType::List(Arc::new(Field::new("item", DataType::Struct(entry_fields(&entries)), true)));
        let diffs = array(kind, rows, None, vec![Buffer::from_vec(offsets)], vec![entries])?;
        Ok(Some((presence, diffs)))
    }
}

/// Memory of one, about.
fn diff_size(diff: &Diff) -> usize {
    size_of::<(usize, usize, Diff)>() + 32 + diff.path.len() + diff.value.as_ref().map_or(0, String::len)
}

fn entry_fields(entries: &ArrayData) -> Fields {
    match entries.data_type() {
        DataType::Struct(fields) => fields.clone(),
        _ => Fields::empty(),
    }
}

fn numbers<const N: usize>(
    kind: DataType,
    rows: usize,
    runs: &[(Run, usize)],
    value: impl Fn(&Run, usize) -> [u8; N],
) -> Result<ArrayData> {
    let mut data = pool::take(rows * N);
    data.resize(rows * N, 0);
    let mut places = data.chunks_exact_mut(N);
    for (run, count) in runs {
        for (i, place) in places.by_ref().take(*count).enumerate() {
            place.copy_from_slice(&value(run, i));
        }
    }
    array(kind, rows, None, vec![pool::buffer(data)], Vec::new())
}
