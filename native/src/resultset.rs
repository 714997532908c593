//! Result sets into columns: the packets that answer a query (text rows) or COM_STMT_EXECUTE (binary rows).
//!
//! The classic protocol: column count, definitions, EOF, rows, EOF. Packets may be cut anywhere and go on over 16 MiB.

use std::sync::Arc;

use arrow_data::ArrayData;

use crate::charset::{self, Charset};
use crate::columns::{Column, Form, Table, structure};
use crate::cursor::Cursor;
use crate::error::{self, Error, Result, damaged};
use crate::image::types;
use crate::plan::{ColumnPlan, Kind};
use crate::values::{self, MICROS_PER_SECOND, Moment};

/// A packet of this size goes on in the next one.
const LONGEST: usize = 0xFF_FFFF;
/// No packet of a server is longer: `max_allowed_packet` is 1 GiB at most.
const LIMIT: usize = (1 << 30) + LONGEST;
const UNSIGNED: u16 = 32;
const MORE_RESULTS: u16 = 8;
/// Texts in no character set.
const BINARY: u16 = 63;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Count,
    Definition(usize),
    DefinitionsEnd,
    Row,
    Nothing,
}

/// Reads one result set.
#[derive(Debug)]
pub struct ResultSet {
    table: Table,
    binary: bool,
    expects: Expects,
    reads: Vec<Read>,
    sequence: u8,
    /// What was fed and not yet read; read up to `at`.
    pending: Vec<u8>,
    at: usize,
}

impl ResultSet {
    pub fn new(plan: Arc<[ColumnPlan]>, binary: bool) -> ResultSet {
        ResultSet {
            table: Table::new(plan),
            binary,
            expects: Expects::Count,
            reads: Vec::new(),
            sequence: 1,
            pending: Vec::new(),
            at: 0,
        }
    }

    /// Rows that were read and not taken.
    pub fn rows(&self) -> usize {
        self.table.rows
    }

    /// Memory, about: of these rows, and of what waits for its packet's end.
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.pending.len() - self.at
    }

    /// Room for the next `size` bytes from the socket; `read` is next.
    pub fn room(&mut self, size: usize) -> &mut [u8] {
        self.pending.drain(..self.at);
        self.at = 0;
        let before = self.pending.len();
        self.pending.resize(before + size, 0);
        self.pending.get_mut(before..).unwrap_or_default()
    }

    /// The next bytes from the socket, cut anywhere. True once the result set has ended. After an error nothing more can be read.
    pub fn feed(&mut self, data: &[u8]) -> Result<bool> {
        self.room(data.len()).copy_from_slice(data);
        self.read()
    }

    /// Read all packets that are whole.
    pub fn read(&mut self) -> Result<bool> {
        let pending = std::mem::take(&mut self.pending);
        let result = self.read_packets(&pending);
        self.pending = pending;
        if result.is_err() {
            self.table.truncate(self.table.rows);
        }
        result?;
        Ok(self.expects == Expects::Nothing)
    }

    /// The pending rows as a struct, none are left: the columns, then `_cdc_unfit` if a row has one.
    pub fn take(&mut self) -> Result<ArrayData> {
        let rows = self.table.rows;
        let (fields, columns) = self.table.finish()?;
        structure(fields, columns, rows)
    }

    fn read_packets(&mut self, pending: &[u8]) -> Result<()> {
        loop {
            let mut data = Cursor::new(pending.get(self.at..).unwrap_or_default());
            if data.left() < 4 {
                return Ok(());
            }
            let size = data.u24()? as usize;
            let sequence = data.u8()?;
            if size == LONGEST {
                let Some((payload, packets)) = joined(pending.get(self.at..).unwrap_or_default(), self.sequence)?
                else {
                    return Ok(());
                };
                self.sequence = self.sequence.wrapping_add(packets as u8);
                self.at += payload.len() + 4 * packets;
                self.packet(&payload)?;
                continue;
            }
            if data.left() < size {
                return Ok(());
            }
            if sequence != self.sequence {
                return damaged("packets out of order");
            }
            self.sequence = sequence.wrapping_add(1);
            self.at += 4 + size;
            let payload = data.take(size)?;
            self.packet(payload)?;
        }
    }

    #[inline]
    fn packet(&mut self, payload: &[u8]) -> Result<()> {
        let first = payload.first().copied();
        if self.expects == Expects::Row {
            return match first {
                Some(0xFF) => Err(error::of_packet(payload)),
                Some(0xFE) if payload.len() < 9 => self.end(payload),
                Some(0) if self.binary => self.binary_row(payload),
                Some(_) if !self.binary => self.text_row(payload),
                _ => damaged("a packet that is no row"),
            };
        }
        let mut data = Cursor::new(payload);
        match (self.expects, first) {
            (_, Some(0xFF)) => return Err(error::of_packet(payload)),
            (Expects::Count, _) => {
                let count = data.lenenc()?;
                let known = self.table.columns.len();
                if count == 0 || !data.is_empty() {
                    return damaged("an answer that is no result set");
                }
                if usize::try_from(count) != Ok(known) {
                    return Err(Error::Table(format!("the result set has {count} columns, {known} were asked for")));
                }
                self.expects = Expects::Definition(0);
            }
            (Expects::Definition(i), _) => {
                let read = self.define(i, &mut data)?;
                self.reads.push(read);
                let next = i + 1;
                let all = next == self.table.columns.len();
                self.expects = if all { Expects::DefinitionsEnd } else { Expects::Definition(next) };
            }
            (Expects::DefinitionsEnd, Some(0xFE)) if payload.len() < 9 => self.expects = Expects::Row,
            (Expects::Nothing, _) => return damaged("packets after the result set's end"),
            _ => return damaged("no end of the column definitions"),
        }
        Ok(())
    }

    fn end(&mut self, payload: &[u8]) -> Result<()> {
        let mut data = Cursor::new(payload);
        data.take(3)?; // 0xFE, warnings
        if data.u16()? & MORE_RESULTS != 0 {
            return Err(Error::Unsupported("more than one result set".into()));
        }
        self.expects = Expects::Nothing;
        Ok(())
    }

    fn define(&self, i: usize, data: &mut Cursor<'_>) -> Result<Read> {
        for _ in 0..6 {
            data.lenenc_bytes()?; // catalog, schema, table, original table, name, original name
        }
        data.lenenc()?;
        let charset = data.u16()?;
        data.u32()?;
        let (type_, flags) = (data.u8()?, data.u16()?);
        let (Some(plan), Some(column)) = (self.table.plan().get(i), self.table.columns.get(i)) else {
            return damaged("more column definitions than columns");
        };
        if let Kind::Text { charset: known } | Kind::Enum { charset: known, .. } | Kind::Set { charset: known, .. } =
            &plan.kind
        {
            let found = if charset == BINARY { Some("binary") } else { charset::of_collation(u32::from(charset)) };
            if found.and_then(Charset::by_name) != Some(*known) {
                let found = found.unwrap_or("an unknown one");
                return Err(column.stop(&format!("its texts arrive in another character set than its own: {found}")));
            }
        }
        if !self.binary {
            return Ok(Read::text(&plan.kind));
        }
        Read::binary(plan, type_, flags & UNSIGNED != 0)
            .ok_or_else(|| column.stop(&format!("has wire type {type_} in the result set, which is not its type")))
    }

    #[inline]
    fn binary_row(&mut self, payload: &[u8]) -> Result<()> {
        let mut data = Cursor::new(payload);
        data.u8()?;
        let row = self.table.begin();
        let nulls = data.take((self.reads.len() + 9) / 8)?;
        if nulls.iter().all(|bits| *bits == 0) {
            for (read, column) in self.reads.iter().zip(self.table.columns.iter_mut()) {
                read.cell(&mut data, column, row)?;
            }
        } else {
            for (i, (read, column)) in self.reads.iter().zip(self.table.columns.iter_mut()).enumerate() {
                // The first two bits are of no column.
                if crate::image::bit(nulls, i + 2) {
                    column.null(row);
                } else {
                    read.cell(&mut data, column, row)?;
                }
            }
        }
        self.row_end(&data)
    }

    fn text_row(&mut self, payload: &[u8]) -> Result<()> {
        let mut data = Cursor::new(payload);
        let row = self.table.begin();
        for (read, column) in self.reads.iter().zip(self.table.columns.iter_mut()) {
            if data.peek().first() == Some(&0xFB) {
                data.u8()?;
                column.null(row);
            } else {
                read.cell(&mut data, column, row)?;
            }
        }
        self.row_end(&data)
    }

    #[inline]
    fn row_end(&mut self, data: &Cursor<'_>) -> Result<()> {
        if !data.is_empty() {
            return damaged("a row that does not end where its last column does");
        }
        self.table.rows += 1;
        Ok(())
    }
}

/// The payload of a packet that goes on over 16 MiB, and in how many packets it is; None: not all is there.
fn joined(pending: &[u8], first: u8) -> Result<Option<(Vec<u8>, usize)>> {
    // Look before copying: this comes again with every feed until all is there.
    let mut data = Cursor::new(pending);
    let (mut total, mut packets) = (0, 0_usize);
    loop {
        if data.left() < 4 {
            return Ok(None);
        }
        let size = data.u24()? as usize;
        if data.u8()? != first.wrapping_add(packets as u8) {
            return damaged("packets out of order");
        }
        total += size;
        packets += 1;
        if total > LIMIT {
            return damaged("a packet of more than 1 GiB");
        }
        if data.left() < size {
            return Ok(None);
        }
        data.take(size)?;
        if size < LONGEST {
            break;
        }
    }
    let mut payload = Vec::with_capacity(total);
    let mut data = Cursor::new(pending);
    for _ in 0..packets {
        let size = data.u24()? as usize;
        data.u8()?;
        payload.extend_from_slice(data.take(size)?);
    }
    Ok(Some((payload, packets)))
}

/// How a column's values are read from rows.
#[derive(Debug, Clone)]
enum Read {
    /// In the native form: copied, or widened if unsigned.
    Fixed1,
    Fixed2,
    Fixed4,
    Fixed8,
    U8,
    U16,
    U32,
    U64,
    Integer {
        bytes: u8,
        unsigned: bool,
    },
    Float,
    Double,
    Year,
    Date,
    Moment,
    Time,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Bit {
        bits: u8,
    },
    Text(Charset),
    Binary {
        length: usize,
    },
    Vector,
    // As texts print them.
    PrintedInteger,
    PrintedFloat,
    PrintedDouble,
    PrintedYear,
    PrintedDate,
    PrintedMoment,
    PrintedTime,
}

impl Read {
    /// What printed values and binary ones have in common.
    fn common(kind: &Kind) -> Option<Read> {
        Some(match *kind {
            Kind::Decimal { precision, scale } => Read::Decimal { precision, scale },
            Kind::Bit { bits } => Read::Bit { bits },
            Kind::Text { charset } | Kind::Enum { charset, .. } | Kind::Set { charset, .. } => Read::Text(charset),
            Kind::Json | Kind::Uuid | Kind::Inet4 | Kind::Inet6 => Read::Text(Charset::UTF8),
            Kind::Binary { length } => Read::Binary { length },
            Kind::Varbinary | Kind::Geometry => Read::Binary { length: 0 },
            Kind::Vector => Read::Vector,
            _ => return None,
        })
    }

    fn text(kind: &Kind) -> Read {
        if let Some(read) = Read::common(kind) {
            return read;
        }
        match kind {
            Kind::Float => Read::PrintedFloat,
            Kind::Double => Read::PrintedDouble,
            Kind::Year => Read::PrintedYear,
            Kind::Date => Read::PrintedDate,
            Kind::Datetime { .. } | Kind::Timestamp { .. } => Read::PrintedMoment,
            Kind::Time { .. } => Read::PrintedTime,
            _ => Read::PrintedInteger,
        }
    }

    /// None if a column of the plan does not arrive as this type.
    fn binary(plan: &ColumnPlan, type_: u8, is_unsigned: bool) -> Option<Read> {
        use types::*;
        let arrives = match plan.kind {
            Kind::Decimal { .. } => matches!(type_, NEWDECIMAL | 0),
            Kind::Bit { .. } => type_ == BIT,
            Kind::Geometry => type_ == GEOMETRY,
            Kind::Vector => matches!(type_, VECTOR | STRING | VAR_STRING | VARCHAR),
            Kind::Json => type_ == JSON,
            _ => matches!(type_, VARCHAR | TINY_BLOB..=STRING | ENUM | SET),
        };
        if let Some(read) = Read::common(&plan.kind) {
            return arrives.then_some(read);
        }
        Some(match (&plan.kind, type_) {
            (&Kind::Int { bytes, unsigned }, TINY | SHORT | INT24 | LONG | LONGLONG) => {
                let size = match type_ {
                    TINY => 1,
                    SHORT => 2,
                    INT24 => 3,
                    LONG => 4,
                    _ => 8,
                };
                if size != bytes || unsigned != is_unsigned {
                    return None;
                }
                // MEDIUMINT arrives in four bytes.
                let bytes = if bytes == 3 { 4 } else { bytes };
                let native = !matches!(Form::of(plan), Form::Text | Form::Bool);
                match (bytes, unsigned) {
                    _ if !native => Read::Integer { bytes, unsigned },
                    (1, false) => Read::Fixed1,
                    (2, false) => Read::Fixed2,
                    (8, false) => Read::Fixed8,
                    (4, _) if type_ == INT24 => Read::Fixed4,
                    (4, false) => Read::Fixed4,
                    (1, true) => Read::U8,
                    (2, true) => Read::U16,
                    (4, true) => Read::U32,
                    _ => Read::U64,
                }
            }
            (Kind::Float, FLOAT) => Read::Float,
            (Kind::Double, DOUBLE) => Read::Double,
            (Kind::Year, YEAR) => Read::Year,
            (Kind::Date, DATE | NEWDATE) => Read::Date,
            (Kind::Datetime { .. }, DATETIME | DATETIME2) => Read::Moment,
            (Kind::Timestamp { .. }, TIMESTAMP | TIMESTAMP2) => Read::Moment,
            (Kind::Time { .. }, TIME | TIME2) => Read::Time,
            _ => return None,
        })
    }

    #[inline(always)]
    fn cell(&self, data: &mut Cursor<'_>, column: &mut Column, row: usize) -> Result<()> {
        match self {
            Read::Fixed1 => column.push([data.u8()?]),
            Read::Fixed2 => column.push(data.u16()?.to_ne_bytes()),
            Read::Fixed4 => column.push(data.u32()?.to_ne_bytes()),
            Read::Fixed8 => column.push(data.u64()?.to_ne_bytes()),
            Read::U8 => column.push(i16::from(data.u8()?).to_ne_bytes()),
            Read::U16 => column.push(i32::from(data.u16()?).to_ne_bytes()),
            Read::U32 => column.push(i64::from(data.u32()?).to_ne_bytes()),
            Read::U64 => column.push(i128::from(data.u64()?).to_ne_bytes()),
            Read::Integer { bytes, unsigned } => {
                let found = data.uint(usize::from(*bytes))?;
                let unused = 64 - 8 * u32::from(*bytes);
                let signed = ((found << unused) as i64) >> unused;
                column.integer(if *unsigned { i128::from(found) } else { i128::from(signed) })?;
            }
            Read::Float => column.float(f32::from_bits(data.u32()?))?,
            Read::Double => column.double(f64::from_bits(data.u64()?))?,
            Read::Year => column.year(data.u16()?)?,
            Read::Date => {
                let found = moment(data)?;
                column.date(row, found.year, found.month, found.day)?;
            }
            Read::Moment => column.moment(row, moment(data)?)?,
            Read::Time => column.time(time(data)?)?,
            Read::Decimal { precision, scale } => column.decimal_text(data.lenenc_bytes()?, *precision, *scale)?,
            Read::Bit { bits } => column.bit(data.lenenc_bytes()?, *bits)?,
            Read::Text(charset) => column.text(row, data.lenenc_bytes()?, *charset)?,
            Read::Binary { length } => column.binary(data.lenenc_bytes()?, *length)?,
            Read::Vector => column.vector(data.lenenc_bytes()?)?,
            printed => printed.printed(data.lenenc_bytes()?, column, row)?,
        }
        Ok(())
    }

    fn printed(&self, text: &[u8], column: &mut Column, row: usize) -> Result<()> {
        let number = || std::str::from_utf8(text).ok();
        let done = match self {
            Read::PrintedInteger => values::parse_integer(text).map(|value| column.integer(value)),
            Read::PrintedFloat => number().and_then(|t| t.parse().ok()).map(|value| column.float(value)),
            Read::PrintedDouble => number().and_then(|t| t.parse().ok()).map(|value| column.double(value)),
            Read::PrintedYear => number().and_then(|t| t.parse().ok()).map(|value| column.year(value)),
            Read::PrintedDate => {
                parse_moment(text).filter(|_| text.len() == 10).map(|d| column.date(row, d.year, d.month, d.day))
            }
            Read::PrintedMoment => parse_moment(text).map(|moment| column.moment(row, moment)),
            _ => parse_time(text).map(|micros| column.time(micros)),
        };
        match done {
            Some(done) => done,
            None => Err(column.stop("a text that its type does not have")),
        }
    }
}

/// A length, then as many of year, month, day, hour, minute, second, microseconds; none for a zero date.
#[inline(always)]
fn moment(data: &mut Cursor<'_>) -> Result<Moment> {
    let size = data.u8()?;
    let mut found = Moment::default();
    if !matches!(size, 0 | 4 | 7 | 11) {
        return damaged("a date of a length that there is not");
    }
    if size >= 4 {
        found.year = u32::from(data.u16()?);
        let [month, day] = data.array()?;
        (found.month, found.day) = (u32::from(month), u32::from(day));
    }
    if size >= 7 {
        let [hour, minute, second] = data.array()?;
        (found.hour, found.minute, found.second) = (u32::from(hour), u32::from(minute), u32::from(second));
    }
    if size == 11 {
        found.micros = data.u32()?;
    }
    Ok(found)
}

/// A length, then sign, days, hours, minutes, seconds, microseconds as far as they are not zero. Microseconds.
fn time(data: &mut Cursor<'_>) -> Result<i64> {
    let size = data.u8()?;
    match size {
        0 => return Ok(0),
        8 | 12 => {}
        _ => return damaged("a time of a length that there is not"),
    }
    let negative = data.u8()? != 0;
    let days = data.u32()?;
    let [hour, minute, second] = data.array()?;
    let micros = if size == 12 { data.u32()? } else { 0 };
    if days > 34 || hour > 23 || minute > 59 || second > 59 || micros > 999_999 {
        return damaged("a time that does not exist");
    }
    let hours = i64::from(days) * 24 + i64::from(hour);
    let seconds = hours * 3600 + i64::from(minute) * 60 + i64::from(second);
    let all = seconds * MICROS_PER_SECOND + i64::from(micros);
    Ok(if negative { -all } else { all })
}

/// Digits only, `count` of them.
fn digits(text: &mut &[u8], count: usize) -> Option<u32> {
    let (found, rest) = text.split_at_checked(count)?;
    *text = rest;
    found.iter().try_fold(0_u32, |value, byte| {
        byte.is_ascii_digit().then(|| value.checked_mul(10)?.checked_add(u32::from(byte - b'0')))?
    })
}

fn separator(text: &mut &[u8], separator: u8) -> Option<()> {
    let (found, rest) = text.split_first()?;
    *text = rest;
    (*found == separator).then_some(())
}

/// `.ffffff` of up to six digits, or nothing: microseconds.
fn parse_fraction(mut text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return Some(0);
    }
    separator(&mut text, b'.')?;
    let count = text.len();
    let missing = u32::try_from(6_usize.checked_sub(count)?).ok()?;
    Some(digits(&mut text, count)? * 10_u32.pow(missing))
}

/// `YYYY-MM-DD`, or with ` HH:MM:SS` and a fraction.
fn parse_moment(text: &[u8]) -> Option<Moment> {
    let mut left = text;
    let year = digits(&mut left, 4)?;
    separator(&mut left, b'-')?;
    let month = digits(&mut left, 2)?;
    separator(&mut left, b'-')?;
    let day = digits(&mut left, 2)?;
    let mut found = Moment { year, month, day, ..Moment::default() };
    if left.is_empty() {
        return Some(found);
    }
    separator(&mut left, b' ')?;
    found.hour = digits(&mut left, 2)?;
    separator(&mut left, b':')?;
    found.minute = digits(&mut left, 2)?;
    separator(&mut left, b':')?;
    found.second = digits(&mut left, 2)?;
    found.micros = parse_fraction(left)?;
    Some(found)
}

/// `[-]HH(H):MM:SS` and a fraction: microseconds.
fn parse_time(text: &[u8]) -> Option<i64> {
    let (negative, mut left) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let count = left.iter().position(|b| *b == b':').filter(|n| (2..=3).contains(n))?;
    let hour = digits(&mut left, count)?;
    separator(&mut left, b':')?;
    let minute = digits(&mut left, 2)?;
    separator(&mut left, b':')?;
    let second = digits(&mut left, 2)?;
    if minute > 59 || second > 59 {
        return None;
    }
    let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    let all = seconds * MICROS_PER_SECOND + i64::from(parse_fraction(left)?);
    Some(if negative { -all } else { all })
}

#[cfg(test)]
mod tests;
