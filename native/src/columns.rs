//! Growing columns of one table, and what Arrow makes of them.
//!
//! A column is bytes that grow at the end, the same for all types, so that reading a cell is one test and one copy. What becomes of
//! a value is in `cells`.

use std::sync::Arc;

use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType, Field, Fields, TimeUnit};

use crate::error::{Error, Result};
use crate::plan::{ColumnPlan, Kind, Output};
use crate::pool;

/// The form of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A byte each while growing, a bit in Arrow.
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Float32,
    Float64,
    Date,
    Micros {
        utc: bool,
    },
    Text,
    Binary,
    /// Lists of float32.
    Floats,
}

impl Form {
    pub(crate) fn of(plan: &ColumnPlan) -> Form {
        match (plan.output, &plan.kind) {
            (Output::String, _) => Form::Text,
            (Output::Boolean, _) => Form::Bool,
            (Output::Native, kind) => match *kind {
                Kind::Int { bytes: 1, unsigned: false } => Form::Int8,
                Kind::Int { bytes: 1, unsigned: true } | Kind::Int { bytes: 2, unsigned: false } => Form::Int16,
                Kind::Int { bytes: 4, unsigned: true } | Kind::Int { bytes: 8, unsigned: false } => Form::Int64,
                Kind::Int { bytes: 8, unsigned: true } => Form::Decimal { precision: 20, scale: 0 },
                Kind::Int { .. } => Form::Int32,
                Kind::Float => Form::Float32,
                Kind::Double => Form::Float64,
                Kind::Decimal { precision, scale } if precision <= 38 => Form::Decimal { precision, scale },
                Kind::Decimal { .. } => Form::Text,
                Kind::Bit { bits: 1 } => Form::Bool,
                Kind::Bit { .. } => Form::Binary,
                Kind::Year => Form::Int16,
                Kind::Date => Form::Date,
                Kind::Datetime { .. } => Form::Micros { utc: false },
                Kind::Timestamp { .. } => Form::Micros { utc: true },
                Kind::Time { .. } => Form::Int64,
                Kind::Binary { .. } | Kind::Varbinary | Kind::Geometry => Form::Binary,
                Kind::Vector => Form::Floats,
                Kind::Text { .. } | Kind::Enum { .. } | Kind::Set { .. } | Kind::Json => Form::Text,
                Kind::Uuid | Kind::Inet4 | Kind::Inet6 => Form::Text,
            },
        }
    }

    /// Bytes of a value; 0 where they vary.
    fn width(self) -> usize {
        match self {
            Form::Bool | Form::Int8 => 1,
            Form::Int16 => 2,
            Form::Int32 | Form::Float32 | Form::Date => 4,
            Form::Int64 | Form::Float64 | Form::Micros { .. } => 8,
            Form::Decimal { .. } => 16,
            Form::Text | Form::Binary | Form::Floats => 0,
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Form::Bool => DataType::Boolean,
            Form::Int8 => DataType::Int8,
            Form::Int16 => DataType::Int16,
            Form::Int32 => DataType::Int32,
            Form::Int64 => DataType::Int64,
            Form::Decimal { precision, scale } => DataType::Decimal128(precision, i8::try_from(scale).unwrap_or(0)),
            Form::Float32 => DataType::Float32,
            Form::Float64 => DataType::Float64,
            Form::Date => DataType::Date32,
            Form::Micros { utc } => DataType::Timestamp(TimeUnit::Microsecond, utc.then(|| "UTC".into())),
            Form::Text => DataType::Utf8,
            Form::Binary => DataType::Binary,
            Form::Floats => DataType::List(Arc::new(Field::new("item", DataType::Float32, true))),
        }
    }
}

/// One column's values. A row that is begun in some columns and not in others is undone by `truncate`.
#[derive(Debug)]
pub struct Column {
    name: Box<str>,
    key: bool,
    pub(crate) form: Form,
    width: usize,
    pub(crate) data: Vec<u8>,
    /// Where values end, in bytes (`Floats`: in numbers), after a first 0, as int32; only where the width varies.
    offsets: Vec<u8>,
    /// Bits, 0 for NULL; rows beyond its end have values.
    valid: Vec<u8>,
    /// What did not fit, by row.
    unfit: Vec<(usize, String)>,
    unfit_bytes: usize,
    /// Bytes that the last batch had of `data` and `offsets`.
    expected: (usize, usize),
}

impl Column {
    fn new(plan: &ColumnPlan) -> Column {
        let form = Form::of(plan);
        Column {
            name: plan.name.as_str().into(),
            key: plan.key,
            form,
            width: form.width(),
            data: Vec::new(),
            offsets: Vec::new(),
            valid: Vec::new(),
            unfit: Vec::new(),
            unfit_bytes: 0,
            expected: (0, 0),
        }
    }

    /// Without rows, and with room for as many as the last time.
    fn start(&mut self) {
        if self.data.capacity() == 0 {
            self.data = pool::take(self.expected.0);
        }
        if self.width == 0 && self.offsets.is_empty() {
            self.offsets = pool::take(self.expected.1);
            self.offsets.extend_from_slice(&[0; 4]);
        }
    }

    fn bytes(&self) -> usize {
        self.data.len() + self.offsets.len() + self.valid.len() + self.unfit_bytes
    }

    /// An error that stops the table.
    #[cold]
    pub(crate) fn stop(&self, what: &str) -> Error {
        Error::Table(format!("column {}: {what}", self.name))
    }

    /// A value of a fixed width.
    #[inline(always)]
    pub(crate) fn push<const N: usize>(&mut self, value: [u8; N]) {
        debug_assert_eq!(self.width, N);
        self.data.extend_from_slice(&value);
    }

    /// The bytes that were added to `data` since the last value are one.
    #[inline(always)]
    pub(crate) fn end(&mut self) -> Result<()> {
        match i32::try_from(self.data.len()) {
            Ok(end) => {
                self.offsets.extend_from_slice(&end.to_ne_bytes());
                Ok(())
            }
            Err(_) => Err(self.too_large()),
        }
    }

    /// `end` for numbers.
    pub(crate) fn end_floats(&mut self) -> Result<()> {
        match i32::try_from(self.data.len() / 4) {
            Ok(end) => {
                self.offsets.extend_from_slice(&end.to_ne_bytes());
                Ok(())
            }
            Err(_) => Err(self.too_large()),
        }
    }

    #[cold]
    fn too_large(&self) -> Error {
        self.stop("more than 2 GiB in one batch; lower capture.epoch_size or snapshot.chunk_rows")
    }

    fn last_end(&self) -> i32 {
        self.offsets.last_chunk().map_or(0, |end| i32::from_ne_bytes(*end))
    }

    #[inline]
    pub(crate) fn null(&mut self, row: usize) {
        let byte = row / 8;
        if byte >= self.valid.len() {
            self.valid.resize(byte + 1, 0xFF);
        }
        if let Some(bits) = self.valid.get_mut(byte) {
            *bits &= !(1 << (row % 8));
        }
        if self.width == 0 {
            let end = self.last_end();
            self.offsets.extend_from_slice(&end.to_ne_bytes());
        } else {
            self.data.resize(self.data.len() + self.width, 0);
        }
    }

    /// A value that the column's type cannot hold: NULL, and beside it `text`. An error in a key.
    #[cold]
    pub(crate) fn unfit(&mut self, row: usize, text: String, why: &str) -> Result<()> {
        if self.key {
            return Err(self.stop(&format!("{why}, in the primary key")));
        }
        self.null(row);
        self.unfit_bytes += unfit_size(&text);
        self.unfit.push((row, text));
        Ok(())
    }

    fn truncate(&mut self, rows: usize) {
        if self.width == 0 {
            self.offsets.truncate((rows + 1) * 4);
            let end = usize::try_from(self.last_end()).unwrap_or(0);
            self.data.truncate(if self.form == Form::Floats { end * 4 } else { end });
        } else {
            self.data.truncate(rows * self.width);
        }
        self.valid.truncate(rows.div_ceil(8));
        if let Some(last) = self.valid.get_mut(rows / 8) {
            *last |= 0xFF << (rows % 8);
        }
        while self.valid.last() == Some(&0xFF) {
            self.valid.pop();
        }
        while let Some((_, text)) = self.unfit.pop_if(|(row, _)| *row >= rows) {
            self.unfit_bytes -= unfit_size(&text);
        }
    }

    fn finish(&mut self, rows: usize) -> Result<ArrayData> {
        let kind = self.form.data_type();
        let mut valid = std::mem::take(&mut self.valid);
        let nulls = (!valid.is_empty()).then(|| {
            valid.resize(rows.div_ceil(8), 0xFF);
            Buffer::from_vec(valid)
        });
        self.start(); // for the first offset of no rows
        let data = std::mem::take(&mut self.data);
        let offsets = std::mem::take(&mut self.offsets);
        self.expected = (data.len(), offsets.len());
        let made = match self.form {
            Form::Bool => array(kind, rows, nulls, vec![pack_bits(&data)], Vec::new()),
            Form::Text | Form::Binary => {
                array(kind, rows, nulls, vec![pool::buffer(offsets), pool::buffer(data)], Vec::new())
            }
            Form::Floats => {
                let numbers = array(DataType::Float32, data.len() / 4, None, vec![pool::buffer(data)], Vec::new())?;
                array(kind, rows, nulls, vec![pool::buffer(offsets)], vec![numbers])
            }
            _ => array(kind, rows, nulls, vec![pool::buffer(data)], Vec::new()),
        };
        made.map_err(|error| match error {
            Error::Damaged(what) => self.stop(&what),
            other => other,
        })
    }
}

/// Memory of one entry, about.
fn unfit_size(text: &str) -> usize {
    size_of::<(usize, String)>() + 16 + text.len()
}

/// Arrow data, checked.
pub(crate) fn array(
    kind: DataType,
    rows: usize,
    nulls: Option<Buffer>,
    buffers: Vec<Buffer>,
    children: Vec<ArrayData>,
) -> Result<ArrayData> {
    ArrayData::builder(kind)
        .len(rows)
        .null_bit_buffer(nulls)
        .buffers(buffers)
        .child_data(children)
        .align_buffers(true)
        .build()
        .map_err(|error: ArrowError| Error::Damaged(format!("no Arrow column: {error}")))
}

/// A struct of columns without NULLs of its own.
pub(crate) fn structure(fields: Vec<Field>, columns: Vec<ArrayData>, rows: usize) -> Result<ArrayData> {
    array(DataType::Struct(Fields::from(fields)), rows, None, Vec::new(), columns)
}

fn pack_bits(bytes: &[u8]) -> Buffer {
    let packed: Vec<u8> = bytes
        .chunks(8)
        .map(|chunk| chunk.iter().enumerate().fold(0, |bits, (i, byte)| bits | (byte & 1) << i))
        .collect();
    Buffer::from_vec(packed)
}

/// The kept columns of one table.
#[derive(Debug)]
pub struct Table {
    plan: Arc<[ColumnPlan]>,
    pub(crate) columns: Vec<Column>,
    /// Rows that are whole.
    pub(crate) rows: usize,
}

impl Table {
    pub fn new(plan: Arc<[ColumnPlan]>) -> Table {
        let columns = plan.iter().map(Column::new).collect();
        Table { plan, columns, rows: 0 }
    }

    pub fn plan(&self) -> &Arc<[ColumnPlan]> {
        &self.plan
    }

    /// Memory, about.
    pub fn bytes(&self) -> usize {
        self.columns.iter().map(Column::bytes).sum()
    }

    /// How many values are kept as text.
    pub fn unfit(&self) -> usize {
        self.columns.iter().map(|c| c.unfit.len()).sum()
    }

    /// A row comes. Its number; a table without rows has no memory yet.
    #[inline(always)]
    pub(crate) fn begin(&mut self) -> usize {
        if self.rows == 0 {
            self.columns.iter_mut().for_each(Column::start);
        }
        self.rows
    }

    /// Forget all rows but the first `rows`, and what there is of an unfinished one.
    pub fn truncate(&mut self, rows: usize) {
        let rows = rows.min(self.rows);
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
        self.rows = rows;
    }

    /// Fields and columns, then `_cdc_unfit` if a row has one; nothing is left.
    pub(crate) fn finish(&mut self) -> Result<(Vec<Field>, Vec<ArrayData>)> {
        let rows = std::mem::take(&mut self.rows);
        let mut fields: Vec<Field> =
            self.columns.iter().map(|c| Field::new(c.name.as_ref(), c.form.data_type(), true)).collect();
        let unfit = self.finish_unfit(rows)?;
        let mut columns = self.columns.iter_mut().map(|c| c.finish(rows)).collect::<Result<Vec<_>>>()?;
        if let Some(unfit) = unfit {
            fields.push(Field::new("_cdc_unfit", unfit.data_type().clone(), true));
            columns.push(unfit);
        }
        Ok((fields, columns))
    }

    /// A map of column names to texts; NULL for rows where all fits, None if that is all of them.
    fn finish_unfit(&mut self, rows: usize) -> Result<Option<ArrayData>> {
        let mut all: Vec<(usize, usize, String)> = Vec::new();
        for (i, column) in self.columns.iter_mut().enumerate() {
            column.unfit_bytes = 0;
            all.extend(std::mem::take(&mut column.unfit).into_iter().map(|(row, text)| (row, i, text)));
        }
        if all.is_empty() {
            return Ok(None);
        }
        all.sort_unstable_by_key(|(row, column, _)| (*row, *column));
        let mut valid = vec![0_u8; rows.div_ceil(8)];
        let mut offsets = Vec::with_capacity(rows + 1);
        let (mut keys, mut texts) = (Texts::default(), Texts::default());
        for (row, column, text) in all {
            while offsets.len() <= row {
                offsets.push(keys.len()?);
            }
            if let Some(bits) = valid.get_mut(row / 8) {
                *bits |= 1 << (row % 8);
            }
            keys.push(self.columns.get(column).map_or("", |c| &c.name));
            texts.push(&text);
        }
        offsets.resize(rows + 1, keys.len()?);
        let fields = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
        let count = keys.ends.len();
        let entries = structure(fields, vec![keys.finish()?, texts.finish()?], count)?;
        let kind = DataType::Map(Arc::new(Field::new("entries", entries.data_type().clone(), false)), false);
        array(kind, rows, Some(Buffer::from_vec(valid)), vec![Buffer::from_vec(offsets)], vec![entries]).map(Some)
    }
}

/// Texts without NULLs, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    pub(crate) fn push(&mut self, text: &str) {
        self.data.extend_from_slice(text.as_bytes());
        self.ends.push(self.data.len());
    }

    pub(crate) fn len(&self) -> Result<i32> {
        offset(self.ends.len())
    }

    pub(crate) fn finish(self) -> Result<ArrayData> {
        self.finish_nullable(None)
    }

    pub(crate) fn finish_nullable(self, valid: Option<Buffer>) -> Result<ArrayData> {
        let rows = self.ends.len();
        let offsets = std::iter::once(Ok(0)).chain(self.ends.into_iter().map(offset)).collect::<Result<Vec<i32>>>()?;
        array(DataType::Utf8, rows, valid, vec![Buffer::from_vec(offsets), Buffer::from_vec(self.data)], Vec::new())
    }
}

pub(crate) fn offset(place: usize) -> Result<i32> {
    i32::try_from(place).map_err(|_| Error::Table("more than 2 GiB beside one batch; lower capture.epoch_size".into()))
}
