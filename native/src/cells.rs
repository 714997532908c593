//! A value becomes a cell of its column, in the form that the column has.

use std::net::Ipv4Addr;

use crate::charset::Charset;
use crate::columns::{Column, Form};
use crate::decimals::{self, Packed};
use crate::error::Result;
use crate::json;
use crate::values::{self, Moment};

/// Up to this many bytes looking at each is quicker than the ways that long texts have.
const SHORT: usize = 64;
const NO_DATE: &str = "a date that does not exist, such as 0000-00-00";

fn text_of(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut text = Vec::new();
    write(&mut text);
    String::from_utf8(text).unwrap_or_default()
}

impl Column {
    /// Any integer column.
    pub(crate) fn integer(&mut self, value: i128) -> Result<()> {
        match self.form {
            Form::Int8 => match i8::try_from(value) {
                Ok(value) => self.push(value.to_ne_bytes()),
                Err(_) => return Err(self.out_of_range()),
            },
            Form::Int16 => match i16::try_from(value) {
                Ok(value) => self.push(value.to_ne_bytes()),
                Err(_) => return Err(self.out_of_range()),
            },
            Form::Int32 => match i32::try_from(value) {
                Ok(value) => self.push(value.to_ne_bytes()),
                Err(_) => return Err(self.out_of_range()),
            },
            Form::Int64 => match i64::try_from(value) {
                Ok(value) => self.push(value.to_ne_bytes()),
                Err(_) => return Err(self.out_of_range()),
            },
            Form::Decimal { .. } => self.push(value.to_ne_bytes()),
            Form::Bool => match value {
                0 | 1 => self.push([value as u8]),
                _ => return Err(self.stop("neither 0 nor 1, and read as boolean")),
            },
            _ => {
                decimals::decimal_text(value, 0, &mut self.data);
                self.end()?;
            }
        }
        Ok(())
    }

    #[cold]
    pub(crate) fn out_of_range(&self) -> crate::error::Error {
        self.stop("a value that its type does not hold")
    }

    pub(crate) fn float(&mut self, value: f32) -> Result<()> {
        if self.form == Form::Float32 {
            self.push(value.to_ne_bytes());
            return Ok(());
        }
        self.double(f64::from(value))
    }

    pub(crate) fn double(&mut self, value: f64) -> Result<()> {
        if self.form == Form::Float64 {
            self.push(value.to_ne_bytes());
            return Ok(());
        }
        values::double_text(value, &mut self.data);
        self.end()
    }

    /// The unscaled value of a DECIMAL of this scale, whose precision is at most 38.
    #[inline]
    pub(crate) fn decimal(&mut self, value: i128, scale: u8) -> Result<()> {
        if let Form::Decimal { .. } = self.form {
            self.push(value.to_ne_bytes());
            return Ok(());
        }
        decimals::decimal_text(value, usize::from(scale), &mut self.data);
        self.end()
    }

    /// As the binary log has it, of any precision.
    #[inline]
    pub(crate) fn packed(&mut self, raw: &[u8], packed: Packed) -> Result<()> {
        if packed.precision <= 38 {
            return match packed.value(raw) {
                Ok(value) => self.decimal(value, packed.scale),
                Err(_) => Err(self.stop("not a decimal number")),
            };
        }
        if packed.text(raw, &mut self.data).is_err() {
            return Err(self.stop("not a decimal number"));
        }
        self.end()
    }

    /// As result sets have it.
    pub(crate) fn decimal_text(&mut self, text: &[u8], precision: u8, scale: u8) -> Result<()> {
        if precision <= 38 {
            return match decimals::parse_decimal(text, usize::from(precision), usize::from(scale)) {
                Some(value) => self.decimal(value, scale),
                None => Err(self.stop("a text that a decimal does not have")),
            };
        }
        let Some(canonical) = decimals::canonical_decimal(text, usize::from(precision), usize::from(scale)) else {
            return Err(self.stop("a text that a decimal does not have"));
        };
        self.data.extend_from_slice(&canonical);
        self.end()
    }

    /// `bytes`, big-endian, of a BIT(bits).
    pub(crate) fn bit(&mut self, bytes: &[u8], bits: u8) -> Result<()> {
        let size = usize::from(bits).div_ceil(8);
        let missing = match size.checked_sub(bytes.len()) {
            Some(missing) => missing,
            None => return Err(self.out_of_range()),
        };
        if bits == 1 {
            let value = match bytes.last() {
                None | Some(0) => 0,
                Some(1) => 1,
                _ => return Err(self.out_of_range()),
            };
            if self.form == Form::Bool {
                self.push([value]);
                return Ok(());
            }
            self.data.push(b'0' + value);
            return self.end();
        }
        if self.form == Form::Binary {
            self.data.resize(self.data.len() + missing, 0);
            self.data.extend_from_slice(bytes);
        } else {
            self.data.resize(self.data.len() + 2 * missing, b'0');
            values::hex(bytes, &mut self.data);
        }
        self.end()
    }

    pub(crate) fn year(&mut self, year: u16) -> Result<()> {
        if self.form == Form::Int16 {
            return self.integer(i128::from(year));
        }
        values::integer_text(i64::from(year), &mut self.data);
        self.end()
    }

    #[inline]
    pub(crate) fn date(&mut self, row: usize, year: u32, month: u32, day: u32) -> Result<()> {
        if self.form == Form::Date {
            if let Some(days) = values::days(year, month, day) {
                self.push(days.to_ne_bytes());
                return Ok(());
            }
            let text = text_of(|out| values::date_text(year, month, day, out));
            return self.unfit(row, text, NO_DATE);
        }
        values::date_text(year, month, day, &mut self.data);
        self.end()
    }

    /// A DATETIME, or a TIMESTAMP by its parts in UTC.
    #[inline]
    pub(crate) fn moment(&mut self, row: usize, moment: Moment) -> Result<()> {
        if let Form::Micros { .. } = self.form {
            if let Some(micros) = moment.epoch_micros() {
                self.push(micros.to_ne_bytes());
                return Ok(());
            }
            return self.unfit(row, text_of(|out| moment.text(out)), NO_DATE);
        }
        moment.text(&mut self.data);
        self.end()
    }

    /// A TIMESTAMP of a row image. There 0 is the zero date: the type begins one second after the epoch.
    #[inline]
    pub(crate) fn timestamp(&mut self, row: usize, seconds: u32, micros: u32) -> Result<()> {
        if seconds == 0 {
            return self.moment(row, Moment::default());
        }
        if let Form::Micros { .. } = self.form {
            if micros > 999_999 {
                return Err(self.out_of_range());
            }
            let all = i64::from(seconds) * values::MICROS_PER_SECOND + i64::from(micros);
            self.push(all.to_ne_bytes());
            return Ok(());
        }
        self.moment(row, Moment::of_seconds(seconds, micros))
    }

    #[inline]
    pub(crate) fn time(&mut self, micros: i64) -> Result<()> {
        if self.form == Form::Int64 {
            self.push(micros.to_ne_bytes());
            return Ok(());
        }
        values::time_text(micros, &mut self.data);
        self.end()
    }

    #[inline]
    pub(crate) fn text(&mut self, row: usize, bytes: &[u8], charset: Charset) -> Result<()> {
        if charset == Charset::UTF8 && bytes.len() <= SHORT && values::is_ascii(bytes) {
            self.data.extend_from_slice(bytes);
            return self.end();
        }
        if charset.decode(bytes, &mut self.data) {
            return self.end();
        }
        let text = text_of(|out| values::hex(bytes, out));
        self.unfit(row, text, "a text that its character set does not have")
    }

    /// A text that is known to be one, in UTF-8.
    #[inline]
    pub(crate) fn utf8(&mut self, text: &str) -> Result<()> {
        self.data.extend_from_slice(text.as_bytes());
        self.end()
    }

    /// BINARY(length), VARBINARY and GEOMETRY (length 0): padded with zero bytes.
    #[inline]
    pub(crate) fn binary(&mut self, bytes: &[u8], length: usize) -> Result<()> {
        let missing = if length == 0 {
            0
        } else {
            match length.checked_sub(bytes.len()) {
                Some(missing) => missing,
                None => return Err(self.out_of_range()),
            }
        };
        if self.form == Form::Binary {
            self.data.extend_from_slice(bytes);
            self.data.resize(self.data.len() + missing, 0);
        } else {
            values::hex(bytes, &mut self.data);
            self.data.resize(self.data.len() + 2 * missing, b'0');
        }
        self.end()
    }

    /// An ENUM's member by its index, from 1; 0 is the error value, an empty text.
    #[inline]
    pub(crate) fn member(&mut self, row: usize, index: u64, members: &[String]) -> Result<()> {
        let found = match index.checked_sub(1) {
            None => Some(""),
            Some(place) => usize::try_from(place).ok().and_then(|place| members.get(place)).map(String::as_str),
        };
        match found {
            Some(text) => self.utf8(text),
            None => self.unfit(row, index.to_string(), "an ENUM index that its type does not have"),
        }
    }

    /// A SET by its bits.
    pub(crate) fn members(&mut self, row: usize, bits: u64, members: &[String]) -> Result<()> {
        if members.len() < 64 && bits >> members.len() != 0 {
            return self.unfit(row, bits.to_string(), "a SET member that its type does not have");
        }
        let mut first = true;
        for (i, member) in members.iter().enumerate().take(64) {
            if bits >> i & 1 == 1 {
                if !first {
                    self.data.push(b',');
                }
                first = false;
                self.data.extend_from_slice(member.as_bytes());
            }
        }
        self.end()
    }

    /// JSON in MySQL's binary form.
    pub(crate) fn json(&mut self, binary: &[u8]) -> Result<()> {
        if binary.is_empty() {
            // So the server reads it: what an IGNORE put into a NOT NULL column.
            return self.utf8("null");
        }
        json::text(binary, &mut self.data)?;
        self.end()
    }

    /// JSON as it is printed.
    pub(crate) fn printed(&mut self, text: &[u8]) -> Result<()> {
        self.data.extend_from_slice(text);
        self.end()
    }

    /// VECTOR: float32, little-endian.
    pub(crate) fn vector(&mut self, bytes: &[u8]) -> Result<()> {
        if self.form != Form::Floats {
            values::hex(bytes, &mut self.data);
            return self.end();
        }
        if !bytes.len().is_multiple_of(4) {
            return Err(self.stop("a vector whose bytes are no whole numbers"));
        }
        for number in bytes.chunks_exact(4) {
            let number = number.first_chunk::<4>().copied().unwrap_or_default();
            self.data.extend_from_slice(&f32::from_le_bytes(number).to_ne_bytes());
        }
        self.end_floats()
    }

    /// MariaDB's UUID.
    pub(crate) fn uuid(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(bytes) = zero_padded::<16>(bytes) else { return Err(self.out_of_range()) };
        let digits = u128::from_be_bytes(bytes);
        for place in (0..32).rev() {
            if matches!(place, 23 | 19 | 15 | 11) {
                self.data.push(b'-');
            }
            let digit = (digits >> (4 * place)) as u8 & 15;
            self.data.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
        self.end()
    }

    pub(crate) fn inet4(&mut self, bytes: &[u8]) -> Result<()> {
        match zero_padded::<4>(bytes) {
            Some(bytes) => self.utf8(&Ipv4Addr::from(bytes).to_string()),
            None => Err(self.out_of_range()),
        }
    }

    pub(crate) fn inet6(&mut self, bytes: &[u8]) -> Result<()> {
        match zero_padded::<16>(bytes) {
            Some(bytes) => {
                values::inet6_text(bytes, &mut self.data);
                self.end()
            }
            None => Err(self.out_of_range()),
        }
    }
}

fn zero_padded<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut padded = [0; N];
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(padded)
}
