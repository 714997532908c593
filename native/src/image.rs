//! Row images of the binary log: cells by wire type and metadata.

use std::sync::Arc;

use crate::charset::Charset;
use crate::columns::{Column, Form, Table};
use crate::cursor::Cursor;
use crate::error::{Error, Result, damaged};
use crate::plan::{ColumnPlan, Kind};
use crate::values::{MICROS_PER_SECOND, Moment, Packed};

/// Column types, as TABLE_MAP events and column definitions have them.
pub mod types {
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const TIME: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const NEWDATE: u8 = 14;
    pub const VARCHAR: u8 = 15;
    pub const BIT: u8 = 16;
    pub const TIMESTAMP2: u8 = 17;
    pub const DATETIME2: u8 = 18;
    pub const TIME2: u8 = 19;
    pub const TYPED_ARRAY: u8 = 20;
    pub const MARIADB_BLOB_COMPRESSED: u8 = 140;
    pub const MARIADB_VARCHAR_COMPRESSED: u8 = 141;
    pub const VECTOR: u8 = 242;
    pub const JSON: u8 = 245;
    pub const NEWDECIMAL: u8 = 246;
    pub const ENUM: u8 = 247;
    pub const SET: u8 = 248;
    pub const TINY_BLOB: u8 = 249;
    pub const BLOB: u8 = 252;
    pub const VAR_STRING: u8 = 253;
    pub const STRING: u8 = 254;
    pub const GEOMETRY: u8 = 255;
}

/// A column as a TABLE_MAP event has it.
#[derive(Debug, Clone, Copy)]
pub struct WireColumn {
    /// As it stands in the event's list: ENUM and SET stand as STRING.
    pub type_: u8,
    /// The event's metadata bytes of it. One byte is itself. Two: STRING (and ENUM, SET), NEWDECIMAL: first byte << 8 | second;
    /// VARCHAR, VAR_STRING, BIT: little-endian.
    pub meta: u16,
    pub unsigned: bool,
    /// Index among the kept columns; None: passed over.
    pub plan: Option<usize>,
    /// Whether it belongs to the primary key.
    pub key: bool,
}

/// The type that a STRING's metadata hides (ENUM, SET or STRING), and its length: bytes of an ENUM's or SET's number, else the most
/// bytes of a text.
pub fn string_type(meta: u16) -> (u8, u16) {
    let (high, low) = ((meta >> 8) as u8, meta & 0xFF);
    if high & 0x30 == 0x30 {
        return (high, low);
    }
    // CHARs of more than 255 bytes have the length's bits 8 and 9 in the type, inverted.
    (high | 0x30, low | (u16::from(high & 0x30) ^ 0x30) << 4)
}

/// How many bytes a cell takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Fixed(usize),
    /// So many bytes of length first.
    Prefixed(u8),
}

impl Size {
    #[inline]
    fn skip(self, data: &mut Cursor<'_>) -> Result<()> {
        match self {
            Size::Fixed(size) => data.take(size).map(drop),
            Size::Prefixed(prefix) => data.prefixed(prefix).map(drop),
        }
    }
}

/// How a kept cell is read.
#[derive(Debug, Clone)]
pub(crate) enum Read {
    /// Integers in the native form: the first number is its bytes, `U` as the wider type that Arrow has for it.
    I8,
    U8,
    I16,
    U16,
    I24,
    U24,
    I32,
    U32,
    I64,
    U64,
    /// Integers in other forms.
    Integer {
        bytes: u8,
        unsigned: bool,
    },
    Float,
    Double,
    /// Without a sign of zeros.
    PositiveFloat,
    PositiveDouble,
    Decimal(Packed),
    Bit {
        bits: u8,
    },
    Year,
    Date,
    /// With bytes of the fraction of a second.
    Timestamp {
        fraction: u8,
    },
    Datetime {
        fraction: u8,
    },
    Time {
        fraction: u8,
    },
    /// From before MySQL 5.6.
    OldTimestamp,
    OldDatetime,
    OldTime,
    Text {
        prefix: u8,
        charset: Charset,
    },
    Binary {
        prefix: u8,
        length: usize,
    },
    Enum {
        bytes: u8,
        members: Arc<[String]>,
    },
    Set {
        bytes: u8,
        members: Arc<[String]>,
    },
    Json {
        prefix: u8,
    },
    Vector {
        prefix: u8,
    },
    Uuid {
        prefix: u8,
    },
    Inet4 {
        prefix: u8,
    },
    Inet6 {
        prefix: u8,
    },
}

#[derive(Debug)]
pub(crate) struct Cell {
    size: Size,
    pub(crate) json: bool,
    pub(crate) key: bool,
    pub(crate) kept: Option<(usize, Read)>,
}

/// How the rows of one table are read: make it once for a TABLE_MAP's definition.
#[derive(Debug)]
pub struct Wire {
    pub(crate) cells: Vec<Cell>,
    /// A row without NULLs as bytes to pass over and then a text to pass over, again and again.
    strides: Vec<(usize, u8)>,
    /// Cells from the first to the last of the key.
    pub(crate) key_end: usize,
    /// How many columns are kept.
    pub(crate) kept: usize,
    pub(crate) json_columns: usize,
}

impl Wire {
    /// `Error::Table` for a type that cannot be read, or that is not what the plan says.
    pub fn new(columns: &[WireColumn], plan: &[ColumnPlan]) -> Result<Wire> {
        let mut cells = Vec::with_capacity(columns.len());
        let mut used = vec![false; plan.len()];
        for (i, wire) in columns.iter().enumerate() {
            let named = wire.plan.and_then(|place| plan.get(place));
            let name = || named.map_or_else(|| format!("column {}", i + 1), |p| format!("column {}", p.name));
            let size = size(*wire).map_err(|what| Error::Table(format!("{}: {what}", name())))?;
            let kept = match wire.plan {
                // Their size depends on digits that the table map does not have.
                None if matches!(wire.type_, types::TIMESTAMP | types::DATETIME | types::TIME) => {
                    let why = "a date or time of mysql56_temporal_format=OFF cannot be left out; keep it, or exclude the table";
                    return Err(Error::Table(format!("{}: {why}", name())));
                }
                None => None,
                Some(_) if matches!(wire.type_, types::MARIADB_BLOB_COMPRESSED | types::MARIADB_VARCHAR_COMPRESSED) => {
                    let what = "COMPRESSED columns are not read; ALTER the column without COMPRESSED";
                    return Err(Error::Table(format!("{}: {what}", name())));
                }
                Some(place) => {
                    let (Some(plan), Some(used)) = (plan.get(place), used.get_mut(place)) else {
                        return Err(Error::Table(format!("column {} is kept in a place that there is not", i + 1)));
                    };
                    if std::mem::replace(used, true) {
                        return Err(Error::Table(format!("{} is kept twice", name())));
                    }
                    let read = reader(*wire, size, plan).ok_or_else(|| {
                        let why = match (&plan.kind, wire.type_) {
                            (
                                Kind::Timestamp { .. } | Kind::Datetime { .. } | Kind::Time { .. },
                                types::TIMESTAMP | types::DATETIME | types::TIME,
                            ) => "fractions of a second of mysql56_temporal_format=OFF are not read; \
                                  set it ON and ALTER TABLE … FORCE"
                                .into(),
                            _ => format!("wire type {} is not what its plan says", wire.type_),
                        };
                        Error::Table(format!("{}: {why}", name()))
                    })?;
                    Some((place, read))
                }
            };
            cells.push(Cell { size, json: wire.type_ == types::JSON, key: wire.key, kept });
        }
        if used.contains(&false) {
            return Err(Error::Table("a kept column that the table map does not have".into()));
        }
        let mut strides = Vec::new();
        let mut fixed = 0;
        for cell in &cells {
            match cell.size {
                Size::Fixed(size) => fixed += size,
                Size::Prefixed(prefix) => strides.push((std::mem::take(&mut fixed), prefix)),
            }
        }
        strides.push((fixed, 0));
        Ok(Wire {
            key_end: cells.iter().rposition(|c| c.key).map_or(0, |last| last + 1),
            json_columns: cells.iter().filter(|c| c.json).count(),
            kept: plan.len(),
            cells,
            strides,
        })
    }

    /// With zeros for negative zeros: MariaDB has these in its binary log, and shows them to no reader.
    pub fn without_negative_zeros(mut self) -> Wire {
        for cell in &mut self.cells {
            if let Some((_, read)) = &mut cell.kept {
                match read {
                    Read::Float => *read = Read::PositiveFloat,
                    Read::Double => *read = Read::PositiveDouble,
                    _ => {}
                }
            }
        }
        self
    }

    /// Pass over an image of all columns.
    #[inline]
    pub(crate) fn skip(&self, data: &mut Cursor<'_>) -> Result<()> {
        let nulls = data.take(self.cells.len().div_ceil(8))?;
        if nulls.iter().any(|bits| *bits != 0) {
            for (i, cell) in self.cells.iter().enumerate() {
                if !bit(nulls, i) {
                    cell.size.skip(data)?;
                }
            }
            return Ok(());
        }
        for (fixed, prefix) in &self.strides {
            data.take(*fixed)?;
            if *prefix != 0 {
                data.prefixed(*prefix)?;
            }
        }
        Ok(())
    }

    /// Read an image of all columns into `table`, as the row after its last.
    #[inline]
    pub(crate) fn row(&self, data: &mut Cursor<'_>, table: &mut Table) -> Result<()> {
        let nulls = data.take(self.cells.len().div_ceil(8))?;
        let row = table.begin();
        let mut at = *data;
        if nulls.iter().all(|bits| *bits == 0) {
            for cell in &self.cells {
                match &cell.kept {
                    Some((place, read)) => match table.columns.get_mut(*place) {
                        Some(column) => read.cell(&mut at, column, row)?,
                        None => return damaged("a column beyond the table's"),
                    },
                    None => cell.size.skip(&mut at)?,
                }
            }
        } else {
            for (i, cell) in self.cells.iter().enumerate() {
                let null = bit(nulls, i);
                match &cell.kept {
                    Some((place, read)) => match table.columns.get_mut(*place) {
                        Some(column) if null => column.null(row),
                        Some(column) => read.cell(&mut at, column, row)?,
                        None => return damaged("a column beyond the table's"),
                    },
                    None if null => {}
                    None => cell.size.skip(&mut at)?,
                }
            }
        }
        *data = at;
        table.rows += 1;
        Ok(())
    }

    /// Whether two images of all columns, from their NULL bits on, have other key cells.
    #[inline]
    pub(crate) fn moves(&self, before: Cursor<'_>, after: Cursor<'_>) -> Result<bool> {
        if self.key_end == 0 {
            return Ok(false);
        }
        let (mut before, mut after) = (before, after);
        let size = self.cells.len().div_ceil(8);
        let (nulls_before, nulls_after) = (before.take(size)?, after.take(size)?);
        for (i, cell) in self.cells.iter().enumerate().take(self.key_end) {
            let old = if bit(nulls_before, i) { None } else { Some(cell.span(&mut before)?) };
            let new = if bit(nulls_after, i) { None } else { Some(cell.span(&mut after)?) };
            if cell.key && old != new {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Cell {
    /// The cell's bytes, with its length's.
    #[inline]
    pub(crate) fn span<'a>(&self, data: &mut Cursor<'a>) -> Result<&'a [u8]> {
        let start = *data;
        self.size.skip(data)?;
        let mut found = start;
        found.take(start.left() - data.left())
    }
}

#[inline(always)]
pub(crate) fn bit(bits: &[u8], i: usize) -> bool {
    bits.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1)
}

/// The size of a cell; an error says why there is none.
fn size(wire: WireColumn) -> std::result::Result<Size, String> {
    use types::*;
    let fraction = || match wire.meta {
        0..=6 => Ok(usize::from(wire.meta).div_ceil(2)),
        _ => Err("more digits of a second's fraction than there are".to_string()),
    };
    Ok(match wire.type_ {
        TINY | YEAR => Size::Fixed(1),
        SHORT => Size::Fixed(2),
        INT24 | DATE | NEWDATE | TIME => Size::Fixed(3),
        LONG | FLOAT | TIMESTAMP => Size::Fixed(4),
        LONGLONG | DOUBLE | DATETIME => Size::Fixed(8),
        TIMESTAMP2 => Size::Fixed(4 + fraction()?),
        DATETIME2 => Size::Fixed(5 + fraction()?),
        TIME2 => Size::Fixed(3 + fraction()?),
        NEWDECIMAL => match Packed::new((wire.meta >> 8) as u8, (wire.meta & 0xFF) as u8) {
            Some(packed) => Size::Fixed(packed.size),
            None => return Err("a decimal of more digits than there are".into()),
        },
        BIT => Size::Fixed(usize::from(wire.meta >> 8) + usize::from(wire.meta & 0xFF > 0)),
        VARCHAR | VAR_STRING | MARIADB_VARCHAR_COMPRESSED => Size::Prefixed(if wire.meta > 255 { 2 } else { 1 }),
        TINY_BLOB..=BLOB | JSON | GEOMETRY | VECTOR | MARIADB_BLOB_COMPRESSED => match wire.meta {
            1..=4 => Size::Prefixed(wire.meta as u8),
            _ => return Err("a length of more bytes than there are".into()),
        },
        STRING | ENUM | SET => match string_type(wire.meta) {
            (ENUM, bytes @ 1..=2) | (SET, bytes @ 1..=8) => Size::Fixed(usize::from(bytes)),
            (ENUM | SET, _) => return Err("an ENUM or SET of more bytes than there are".into()),
            (_, most) => Size::Prefixed(if most > 255 { 2 } else { 1 }),
        },
        TYPED_ARRAY => return Err("typed arrays are not read".into()),
        other => return Err(format!("wire type {other} is not read")),
    })
}

/// None if the column of the plan cannot be what is on the wire.
fn reader(wire: WireColumn, size: Size, plan: &ColumnPlan) -> Option<Read> {
    use types::*;
    let string = if wire.type_ == STRING { string_type(wire.meta).0 } else { wire.type_ };
    let is_text = matches!(string, VARCHAR | VAR_STRING | STRING | TINY_BLOB..=BLOB);
    let prefix = if let Size::Prefixed(prefix) = size { prefix } else { 0 };
    let fixed = if let Size::Fixed(size) = size { size } else { 0 };
    let native = matches!(Form::of(plan), Form::Int8 | Form::Int16 | Form::Int32 | Form::Int64 | Form::Decimal { .. });
    let fraction = u8::try_from(wire.meta.div_ceil(2)).unwrap_or(0);
    Some(match (&plan.kind, string) {
        (&Kind::Int { bytes, unsigned }, TINY | SHORT | INT24 | LONG | LONGLONG)
            if (if string == INT24 { 3 } else { fixed }) == usize::from(bytes) && unsigned == wire.unsigned =>
        {
            match (bytes, unsigned) {
                _ if !native => Read::Integer { bytes, unsigned },
                (1, false) => Read::I8,
                (1, true) => Read::U8,
                (2, false) => Read::I16,
                (2, true) => Read::U16,
                (3, false) => Read::I24,
                (3, true) => Read::U24,
                (4, false) => Read::I32,
                (4, true) => Read::U32,
                (8, false) => Read::I64,
                (8, true) => Read::U64,
                _ => return None,
            }
        }
        (Kind::Float, FLOAT) => Read::Float,
        (Kind::Double, DOUBLE) => Read::Double,
        (&Kind::Decimal { precision, scale }, NEWDECIMAL)
            if wire.meta == u16::from(precision) << 8 | u16::from(scale) =>
        {
            Read::Decimal(Packed::new(precision, scale)?)
        }
        (&Kind::Bit { bits }, BIT) if usize::from(bits).div_ceil(8) == fixed => Read::Bit { bits },
        (Kind::Year, YEAR) => Read::Year,
        (Kind::Date, DATE | NEWDATE) => Read::Date,
        (Kind::Timestamp { .. }, TIMESTAMP2) => Read::Timestamp { fraction },
        (Kind::Datetime { .. }, DATETIME2) => Read::Datetime { fraction },
        (Kind::Time { .. }, TIME2) => Read::Time { fraction },
        // MariaDB's own form of fractions (mysql56_temporal_format=OFF) has the old type codes and other sizes.
        (Kind::Timestamp { scale: 0 }, TIMESTAMP) => Read::OldTimestamp,
        (Kind::Datetime { scale: 0 }, DATETIME) => Read::OldDatetime,
        (Kind::Time { scale: 0 }, TIME) => Read::OldTime,
        (&Kind::Text { charset }, _) if is_text => Read::Text { prefix, charset },
        (&Kind::Binary { length }, _) if is_text => Read::Binary { prefix, length },
        (Kind::Varbinary, _) if is_text => Read::Binary { prefix, length: 0 },
        (Kind::Geometry, GEOMETRY) => Read::Binary { prefix, length: 0 },
        (Kind::Enum { members, .. }, ENUM) => Read::Enum { bytes: fixed as u8, members: members.clone() },
        (Kind::Set { members, .. }, SET) => Read::Set { bytes: fixed as u8, members: members.clone() },
        (Kind::Json, JSON) => Read::Json { prefix },
        // MariaDB has it in a VARBINARY.
        (Kind::Vector, VECTOR | VARCHAR) => Read::Vector { prefix },
        (Kind::Uuid, STRING) => Read::Uuid { prefix },
        (Kind::Inet4, STRING) => Read::Inet4 { prefix },
        (Kind::Inet6, STRING) => Read::Inet6 { prefix },
        _ => return None,
    })
}

/// Microseconds. As many bytes as pairs of digits; an odd number of digits is stored as the next even one.
#[inline(always)]
fn micros(data: &mut Cursor<'_>, fraction: u8) -> Result<u32> {
    Ok(match fraction {
        0 => 0,
        1 => u32::from(data.u8()?) * 10_000,
        2 => u32::from(u16::from_be_bytes(data.array()?)) * 100,
        _ => {
            let [a, b, c] = data.array()?;
            u32::from_be_bytes([0, a, b, c])
        }
    })
}

/// Sign-extend 24 bits.
#[inline(always)]
fn signed24(value: u32) -> i32 {
    (value << 8) as i32 >> 8
}

impl Read {
    /// One cell, whose bytes are all of `span`.
    pub(crate) fn whole(&self, span: &[u8], column: &mut Column, row: usize) -> Result<()> {
        self.cell(&mut Cursor::new(span), column, row)
    }

    #[inline(always)]
    fn cell(&self, data: &mut Cursor<'_>, column: &mut Column, row: usize) -> Result<()> {
        match self {
            Read::I8 => column.push([data.u8()?]),
            Read::U8 => column.push(i16::from(data.u8()?).to_ne_bytes()),
            Read::I16 => column.push((data.u16()? as i16).to_ne_bytes()),
            Read::U16 => column.push(i32::from(data.u16()?).to_ne_bytes()),
            Read::I24 => column.push(signed24(data.u24()?).to_ne_bytes()),
            Read::U24 => column.push(data.u24()?.to_ne_bytes()),
            Read::I32 => column.push(data.u32()?.to_ne_bytes()),
            Read::U32 => column.push(i64::from(data.u32()?).to_ne_bytes()),
            Read::I64 => column.push(data.u64()?.to_ne_bytes()),
            Read::U64 => column.push(i128::from(data.u64()?).to_ne_bytes()),
            Read::Integer { bytes, unsigned } => {
                let found = data.uint(usize::from(*bytes))?;
                let unused = 64 - 8 * u32::from(*bytes);
                let signed = ((found << unused) as i64) >> unused;
                column.integer(if *unsigned { i128::from(found) } else { i128::from(signed) })?;
            }
            Read::Float => column.float(f32::from_bits(data.u32()?))?,
            Read::Double => column.double(f64::from_bits(data.u64()?))?,
            // Only of zeros does adding zero change anything.
            Read::PositiveFloat => column.float(f32::from_bits(data.u32()?) + 0.0)?,
            Read::PositiveDouble => column.double(f64::from_bits(data.u64()?) + 0.0)?,
            Read::Decimal(packed) => column.packed(data.take(packed.size)?, *packed)?,
            Read::Bit { bits } => column.bit(data.take(usize::from(*bits).div_ceil(8))?, *bits)?,
            Read::Year => {
                let year = u16::from(data.u8()?);
                column.year(if year == 0 { 0 } else { 1900 + year })?;
            }
            Read::Date => {
                let bits = data.u24()?;
                column.date(row, bits >> 9, bits >> 5 & 15, bits & 31)?;
            }
            Read::Timestamp { fraction } => {
                let seconds = u32::from_be_bytes(data.array()?);
                let micros = micros(data, *fraction)?;
                column.timestamp(row, seconds, micros)?;
            }
            Read::Datetime { fraction } => {
                // From the highest bit: sign 1, year * 13 + month 17, day 5, hour 5, minute 6, second 6.
                let [a, b, c, d, e] = data.array()?;
                let bits = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
                let micros = micros(data, *fraction)?;
                if bits >> 39 == 0 {
                    return Err(column.stop("a negative date"));
                }
                let part = |shift: u32, width: u32| (bits >> shift & ((1 << width) - 1)) as u32;
                let months = part(22, 17);
                let moment = Moment {
                    year: months / 13,
                    month: months % 13,
                    day: part(17, 5),
                    hour: part(12, 5),
                    minute: part(6, 6),
                    second: part(0, 6),
                    micros,
                };
                column.moment(row, moment)?;
            }
            Read::Time { fraction } => {
                // Sign 1, unused 1, hour 10, minute 6, second 6, fraction, offset by half the range: negative ones count backwards,
                // the fraction included.
                let [a, b, c] = data.array()?;
                let whole = i64::from(u32::from_be_bytes([0, a, b, c])) - 0x80_0000;
                let (bits, unit) = match fraction {
                    0 => (0, 0),
                    1 => (i64::from(data.u8()?), 10_000),
                    2 => (i64::from(u16::from_be_bytes(data.array()?)), 100),
                    _ => {
                        let [a, b, c] = data.array()?;
                        (i64::from(u32::from_be_bytes([0, a, b, c])), 1)
                    }
                };
                let all = (whole << (8 * fraction)) + bits;
                let size = all.unsigned_abs();
                let parts = size >> (8 * fraction);
                let micros = (size & ((1 << (8 * fraction)) - 1)) as i64 * unit;
                let (hour, minute, second) = (parts >> 12 & 0x3FF, parts >> 6 & 63, parts & 63);
                if minute > 59 || second > 59 || micros > 999_999 {
                    return Err(column.stop("a time that does not exist"));
                }
                let seconds = (hour * 3600 + minute * 60 + second) as i64;
                let size = seconds * MICROS_PER_SECOND + micros;
                column.time(if all < 0 { -size } else { size })?;
            }
            Read::OldTimestamp => column.timestamp(row, data.u32()?, 0)?,
            Read::OldDatetime => {
                let digits = data.u64()?;
                let part = |unit: u64, base: u64| (digits / unit % base) as u32;
                let moment = Moment {
                    year: part(10_000_000_000, 10_000),
                    month: part(100_000_000, 100),
                    day: part(1_000_000, 100),
                    hour: part(10_000, 100),
                    minute: part(100, 100),
                    second: part(1, 100),
                    micros: 0,
                };
                column.moment(row, moment)?;
            }
            Read::OldTime => {
                let digits = signed24(data.u24()?);
                let size = i64::from(digits.unsigned_abs());
                if size / 100 % 100 > 59 || size % 100 > 59 {
                    return Err(column.stop("a time that does not exist"));
                }
                let micros = (size / 10_000 * 3600 + size / 100 % 100 * 60 + size % 100) * MICROS_PER_SECOND;
                column.time(if digits < 0 { -micros } else { micros })?;
            }
            Read::Text { prefix, charset } => column.text(row, data.prefixed(*prefix)?, *charset)?,
            Read::Binary { prefix, length } => column.binary(data.prefixed(*prefix)?, *length)?,
            Read::Enum { bytes, members } => column.member(row, data.uint(usize::from(*bytes))?, members)?,
            Read::Set { bytes, members } => column.members(row, data.uint(usize::from(*bytes))?, members)?,
            Read::Json { prefix } => column.json(data.prefixed(*prefix)?)?,
            Read::Vector { prefix } => column.vector(data.prefixed(*prefix)?)?,
            Read::Uuid { prefix } => column.uuid(data.prefixed(*prefix)?)?,
            Read::Inet4 { prefix } => column.inet4(data.prefixed(*prefix)?)?,
            Read::Inet6 { prefix } => column.inet6(data.prefixed(*prefix)?)?,
        }
        Ok(())
    }
}
