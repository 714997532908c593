//! One cell of a row image, from its bytes to its column.

use std::sync::Arc;

use super::{Size, WireColumn, string_type, types};
use crate::charset::Charset;
use crate::columns::{Column, Form};
use crate::cursor::Cursor;
use crate::decimals::Packed;
use crate::error::Result;
use crate::plan::{ColumnPlan, Kind};
use crate::values::{MICROS_PER_SECOND, Moment};

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
    /// None if the column of the plan cannot be what is on the wire.
    pub(crate) fn of(wire: WireColumn, size: Size, plan: &ColumnPlan) -> Option<Read> {
        use types::*;
        let string = if wire.type_ == STRING { string_type(wire.meta).0 } else { wire.type_ };
        let is_text = matches!(string, VARCHAR | VAR_STRING | STRING | TINY_BLOB..=BLOB);
        let prefix = if let Size::Prefixed(prefix) = size { prefix } else { 0 };
        let fixed = if let Size::Fixed(size) = size { size } else { 0 };
        let native =
            matches!(Form::of(plan), Form::Int8 | Form::Int16 | Form::Int32 | Form::Int64 | Form::Decimal { .. });
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

    /// One cell, whose bytes are all of `span`.
    pub(crate) fn whole(&self, span: &[u8], column: &mut Column, row: usize) -> Result<()> {
        self.cell(&mut Cursor::new(span), column, row)
    }

    #[inline(always)]
    pub(super) fn cell(&self, data: &mut Cursor<'_>, column: &mut Column, row: usize) -> Result<()> {
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
