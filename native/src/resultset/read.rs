//! One cell of a result set's row, from its bytes to its column.

use crate::charset::Charset;
use crate::columns::{Column, Form};
use crate::cursor::Cursor;
use crate::decimals::parse_integer;
use crate::error::{Result, damaged};
use crate::image::types;
use crate::plan::{ColumnPlan, Kind};
use crate::values::{MICROS_PER_SECOND, Moment};

/// How a column's values are read from rows.
#[derive(Debug, Clone)]
pub(super) enum Read {
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

    pub(super) fn text(kind: &Kind) -> Read {
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
    pub(super) fn binary(plan: &ColumnPlan, type_: u8, is_unsigned: bool) -> Option<Read> {
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
    pub(super) fn cell(&self, data: &mut Cursor<'_>, column: &mut Column, row: usize) -> Result<()> {
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
            Read::PrintedInteger => parse_integer(text).map(|value| column.integer(value)),
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
