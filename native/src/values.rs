//! Values by themselves: calendar, packed decimals, and the texts that MySQL prints of them.

use crate::error::{Result, damaged};

pub const MICROS_PER_SECOND: i64 = 1_000_000;
pub const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Days since 1970-01-01; None for a date that does not exist, or of a year outside 1 to 9999.
#[inline]
pub fn days(year: u32, month: u32, day: u32) -> Option<i32> {
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || day == 0 || day > 31 {
        return None;
    }
    if day > 28 && day > days_in_month(year, month) {
        return None;
    }
    // Years from March on, so that a leap day is a year's last (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let in_year = (153 * m + 2) / 5 + day - 1;
    let all = 365 * y + y / 4 - y / 100 + y / 400 + in_year;
    Some(i32::try_from(all).ok()? - 719_468)
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Year, month and day of a day since 1970-01-01.
pub fn date_of(days: i64) -> (u32, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (u32::try_from(year).unwrap_or(0), u32::try_from(month).unwrap_or(0), u32::try_from(day).unwrap_or(0))
}

/// A date and a time of day as they stand, whether they exist or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    pub year: u32,
    pub month: u32,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
    pub micros: u32,
}

impl Moment {
    /// Microseconds since 1970-01-01 00:00:00; None if there is no such moment.
    #[inline]
    pub fn epoch_micros(&self) -> Option<i64> {
        let days = days(self.year, self.month, self.day)?;
        if self.hour > 23 || self.minute > 59 || self.second > 59 || self.micros > 999_999 {
            return None;
        }
        let seconds = i64::from(self.hour * 3600 + self.minute * 60 + self.second);
        Some(i64::from(days) * MICROS_PER_DAY + seconds * MICROS_PER_SECOND + i64::from(self.micros))
    }

    /// The moment, in UTC, of so many seconds since 1970.
    pub fn of_seconds(seconds: u32, micros: u32) -> Moment {
        let (year, month, day) = date_of(i64::from(seconds / 86_400));
        let rest = seconds % 86_400;
        Moment { year, month, day, hour: rest / 3600, minute: rest / 60 % 60, second: rest % 60, micros }
    }

    /// `YYYY-MM-DD HH:MM:SS.ffffff`.
    pub fn text(&self, out: &mut Vec<u8>) {
        date_text(self.year, self.month, self.day, out);
        out.push(b' ');
        padded(self.hour, 2, out);
        out.push(b':');
        padded(self.minute, 2, out);
        out.push(b':');
        padded(self.second, 2, out);
        out.push(b'.');
        padded(self.micros, 6, out);
    }
}

/// `YYYY-MM-DD`.
pub fn date_text(year: u32, month: u32, day: u32, out: &mut Vec<u8>) {
    padded(year, 4, out);
    out.push(b'-');
    padded(month, 2, out);
    out.push(b'-');
    padded(day, 2, out);
}

/// `[-]HH:MM:SS.ffffff`, with as many digits of the hours as they need.
pub fn time_text(micros: i64, out: &mut Vec<u8>) {
    if micros < 0 {
        out.push(b'-');
    }
    let all = micros.unsigned_abs();
    let seconds = all / 1_000_000;
    let part = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    padded(part(seconds / 3600), 2, out);
    out.push(b':');
    padded(part(seconds / 60 % 60), 2, out);
    out.push(b':');
    padded(part(seconds % 60), 2, out);
    out.push(b'.');
    padded(part(all % 1_000_000), 6, out);
}

/// Decimal digits, at least `width` of them.
pub fn padded(value: u32, width: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 10];
    let mut left = value;
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        if left == 0 && used >= width {
            break;
        }
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        used += 1;
    }
    out.extend(digits.iter().skip(10 - used));
}

/// Decimal digits.
pub fn unsigned_text(value: u64, out: &mut Vec<u8>) {
    decimal_text(i128::from(value), 0, out);
}

pub fn integer_text(value: i64, out: &mut Vec<u8>) {
    decimal_text(i128::from(value), 0, out);
}

/// A decimal of `scale` (38 at most) digits after the point, all of them printed.
pub fn decimal_text(value: i128, scale: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 40];
    let mut left = value.unsigned_abs();
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        if left == 0 && used > scale {
            break;
        }
        // Most are small, and dividing 128 bits is slow.
        let last = match u64::try_from(left) {
            Ok(small) => {
                left = u128::from(small / 10);
                small % 10
            }
            Err(_) => {
                let last = left % 10;
                left /= 10;
                last as u64
            }
        };
        *digit = b'0' + last as u8;
        used += 1;
    }
    if value < 0 {
        out.push(b'-');
    }
    let point = 40 - scale.min(used);
    out.extend(digits.iter().take(point).skip(40 - used));
    if scale > 0 {
        out.push(b'.');
        out.extend(digits.iter().skip(point));
    }
}

/// MySQL prints a double without an exponent while its decimal point is not further than this from the first digit.
const FIXED_DIGITS: i32 = 15;

/// A double as MySQL prints it in JSON: the fewest digits that name it, `1.0`, `1e15`, `1e-16`.
pub fn double_text(value: f64, out: &mut Vec<u8>) {
    if !value.is_finite() {
        // No column holds one.
        out.extend_from_slice(if value.is_nan() { b"NaN" } else { b"Infinity" });
        return;
    }
    let mut buffer = ryu::Buffer::new();
    // As `-1.234e-5`, `1234.5` or `1e15`.
    let found = buffer.format_finite(value);
    let (minus, found) = found.strip_prefix('-').map_or((false, found), |rest| (true, rest));
    let (mantissa, exponent) = found.split_once('e').unwrap_or((found, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let leading = digits.iter().take_while(|d| **d == b'0').count();
    // The point stands after so many digits of `digits`.
    let mut point = whole.len() as i32 - leading as i32 + exponent.parse::<i32>().unwrap_or(0);
    digits.drain(..leading);
    while digits.last() == Some(&b'0') {
        digits.pop();
    }
    if minus {
        out.push(b'-');
    }
    if digits.is_empty() {
        out.extend_from_slice(b"0.0");
        return;
    }
    let length = digits.len() as i32;
    if (-FIXED_DIGITS < point && point <= FIXED_DIGITS) || (point > 0 && length > point) {
        if point <= 0 {
            out.extend_from_slice(b"0.");
            out.extend((point..0).map(|_| b'0'));
            out.append(&mut digits);
        } else if point >= length {
            out.append(&mut digits);
            out.extend((length..point).map(|_| b'0'));
            out.extend_from_slice(b".0");
        } else {
            for digit in digits {
                if point == 0 {
                    out.push(b'.');
                }
                point -= 1;
                out.push(digit);
            }
        }
        return;
    }
    let mut digits = digits.into_iter();
    out.extend(digits.next());
    if length > 1 {
        out.push(b'.');
        out.extend(digits);
    }
    out.push(b'e');
    integer_text(i64::from(point) - 1, out);
}

/// Whether a short text is ASCII.
#[inline]
pub fn is_ascii(bytes: &[u8]) -> bool {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let mut eights = bytes.chunks_exact(8);
    let mut seen = 0_u64;
    for eight in &mut eights {
        seen |= eight.first_chunk().map_or(0, |eight| u64::from_ne_bytes(*eight));
    }
    let last = match bytes.last_chunk::<8>() {
        Some(last) => u64::from_ne_bytes(*last),
        None => eights.remainder().iter().fold(0, |all, byte| all | u64::from(*byte)),
    };
    (seen | last) & HIGH == 0
}

/// Upper-case hexadecimal digits.
pub fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// An IPv6 address as MariaDB prints it: the first of the longest runs of zeros is left out, be it one zero; IPv4 addresses in it are printed
/// as such.
pub fn inet6_text(bytes: [u8; 16], out: &mut Vec<u8>) {
    let mut words = [0_u16; 8];
    for (word, pair) in words.iter_mut().zip(bytes.chunks_exact(2)) {
        *word = pair.iter().fold(0, |value, byte| value << 8 | u16::from(*byte));
    }
    let (mut gap, mut gap_size, mut run) = (8, 0, 0);
    for (i, word) in words.iter().enumerate() {
        run = if *word == 0 { run + 1 } else { 0 };
        if run > gap_size {
            (gap, gap_size) = (i + 1 - run, run);
        }
    }
    let is_inet4 = gap == 0 && (gap_size == 6 || (gap_size == 5 && words[5] == 0xFFFF));
    let mut text = String::new();
    for (i, word) in words.into_iter().enumerate() {
        if i == gap {
            text.push_str(if i == 0 { "::" } else { ":" });
        } else if i == 6 && is_inet4 {
            let [.., a, b, c, d] = bytes;
            text.push_str(&format!("{a}.{b}.{c}.{d}"));
            break;
        } else if i < gap || i >= gap + gap_size {
            text.push_str(&format!("{word:x}"));
            text.push_str(if i < 7 { ":" } else { "" });
        }
    }
    out.extend_from_slice(text.as_bytes());
}

/// How the binary log has a DECIMAL(precision, scale): groups of nine digits in four bytes, big-endian, the short groups outermost;
/// the first bit is inverted, and all bits of a negative number.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    pub precision: u8,
    pub scale: u8,
    /// Bytes.
    pub size: usize,
}

/// How many bytes so many decimal digits take.
const DIGIT_BYTES: [u8; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];
const POWERS: [u32; 10] = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

impl Packed {
    /// None if there is no such type.
    pub fn new(precision: u8, scale: u8) -> Option<Packed> {
        // Columns have 65 digits at most; in JSON the server rounds the precision up to whole groups.
        if precision == 0 || precision > 81 || scale > 38 || scale > precision {
            return None;
        }
        let bytes = |digits: u8| usize::from(digits / 9) * 4 + usize::from(DIGIT_BYTES[usize::from(digits % 9)]);
        Some(Packed { precision, scale, size: bytes(precision - scale) + bytes(scale) })
    }

    /// Give each group's digits and their number to `each`, and say whether the number is negative.
    #[inline(always)]
    fn groups(self, raw: &[u8], mut each: impl FnMut(u32, usize)) -> Result<bool> {
        let negative = raw.first().is_none_or(|first| first & 0x80 == 0);
        let flip = if negative { u32::MAX } else { 0 };
        let mut left = raw;
        let mut sign = 0x80_u32;
        let whole = usize::from(self.precision - self.scale);
        let fraction = usize::from(self.scale);
        let mut one = |digits: usize| -> Result<()> {
            let (value, mask, rest) = match (DIGIT_BYTES[digits], left) {
                (0, _) => return Ok(()),
                (1, [a, rest @ ..]) => (u32::from(*a), 0xFF, rest),
                (2, [a, b, rest @ ..]) => (u32::from(u16::from_be_bytes([*a, *b])), 0xFFFF, rest),
                (3, [a, b, c, rest @ ..]) => (u32::from_be_bytes([0, *a, *b, *c]), 0xFF_FFFF, rest),
                (4, [a, b, c, d, rest @ ..]) => (u32::from_be_bytes([*a, *b, *c, *d]), u32::MAX, rest),
                _ => return damaged("shorter than what it announces"),
            };
            left = rest;
            // The sign's bit is the highest of the first group that there is.
            let value = (value ^ (sign << (8 * (u32::from(DIGIT_BYTES[digits]) - 1))) ^ flip) & mask;
            sign = 0;
            if value >= POWERS[digits] {
                return damaged("a decimal number with digits above nine");
            }
            each(value, digits);
            Ok(())
        };
        one(whole % 9)?;
        for _ in 0..whole / 9 {
            one(9)?;
        }
        for _ in 0..fraction / 9 {
            one(9)?;
        }
        one(fraction % 9)?;
        Ok(negative)
    }

    /// The unscaled value; the precision is at most 38.
    #[inline]
    pub fn value(self, raw: &[u8]) -> Result<i128> {
        if self.size <= 8 && raw.len() == self.size {
            return self.small(raw);
        }
        let mut value = 0_i128;
        let negative = self.groups(raw, |part, digits| {
            value = value.wrapping_mul(i128::from(POWERS[digits])).wrapping_add(i128::from(part));
        })?;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    /// Most columns': all in one register, groups from the last to the first.
    #[inline]
    fn small(self, raw: &[u8]) -> Result<i128> {
        let bits = 8 * self.size as u32; // at least 8
        let mut left = raw.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)) ^ 1 << (bits - 1);
        // The sign's bit was inverted: now it is set in negative numbers, whose other bits are inverted.
        let negative = left >> (bits - 1) == 1;
        if negative {
            left = !left & (u64::MAX >> (64 - bits));
        }
        let (mut value, mut unit) = (0_u64, 1_u64);
        let mut one = |digits: usize| {
            let size = 8 * u32::from(DIGIT_BYTES[digits]);
            let part = left & ((1 << size) - 1);
            left >>= size;
            value = value.wrapping_add(part.wrapping_mul(unit));
            unit = unit.wrapping_mul(u64::from(POWERS[digits]));
            part < u64::from(POWERS[digits])
        };
        let (whole, fraction) = (usize::from(self.precision - self.scale), usize::from(self.scale));
        let mut valid = one(fraction % 9);
        for _ in 0..fraction / 9 {
            valid &= one(9);
        }
        for _ in 0..whole / 9 {
            valid &= one(9);
        }
        valid &= one(whole % 9);
        if !valid {
            return damaged("a decimal number with digits above nine");
        }
        Ok(if negative { -i128::from(value) } else { i128::from(value) })
    }

    /// All digits, of any precision: `-0.50`.
    pub fn text(self, raw: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let mut digits = Vec::with_capacity(80);
        let negative = self.groups(raw, |part, count| padded(part, count, &mut digits))?;
        let (whole, fraction) = digits.split_at(digits.len().saturating_sub(usize::from(self.scale)));
        let whole = whole.get(whole.iter().take_while(|d| **d == b'0').count()..).unwrap_or_default();
        if negative && digits.iter().any(|d| *d != b'0') {
            out.push(b'-');
        }
        out.extend_from_slice(if whole.is_empty() { b"0" } else { whole });
        if !fraction.is_empty() {
            out.push(b'.');
            out.extend_from_slice(fraction);
        }
        Ok(())
    }
}

/// The same for texts that are short enough, and as MySQL prints them: digits, and all of the scale after a point. None: look closer.
#[inline]
fn parse_small_decimal(text: &[u8], precision: usize, scale: usize) -> Option<i128> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = if scale == 0 {
        (digits, &b""[..])
    } else {
        let (whole, rest) = digits.split_at_checked(digits.len().checked_sub(scale + 1)?)?;
        let (point, fraction) = rest.split_first()?;
        if *point != b'.' {
            return None;
        }
        (whole, fraction)
    };
    if whole.is_empty() || whole.len() + fraction.len() > precision.min(18) {
        return None;
    }
    let (mut value, mut wrong) = (0_i64, 0_u8);
    for byte in whole.iter().chain(fraction) {
        let digit = byte.wrapping_sub(b'0');
        wrong |= u8::from(digit > 9);
        value = value * 10 + i64::from(digit & 15);
    }
    (wrong == 0).then_some(i128::from(if negative { -value } else { value }))
}

/// A decimal number's text, as the unscaled value of a DECIMAL(precision, scale); None if it is none.
pub fn parse_decimal(text: &[u8], precision: usize, scale: usize) -> Option<i128> {
    if let Some(value) = parse_small_decimal(text, precision, scale) {
        return Some(value);
    }
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let mut value = 0_i128;
    let mut after: Option<usize> = None;
    let mut seen = 0_usize;
    for byte in digits {
        match byte {
            b'0'..=b'9' => {
                value = value.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
                seen += 1;
                if let Some(count) = after.as_mut() {
                    *count += 1;
                }
            }
            b'.' if after.is_none() && seen > 0 => after = Some(0),
            _ => return None,
        }
    }
    let missing = scale.checked_sub(after.unwrap_or(0))?;
    if seen == 0 || after == Some(0) {
        return None;
    }
    value = value.checked_mul(10_i128.checked_pow(u32::try_from(missing).ok()?)?)?;
    if value >= 10_i128.checked_pow(u32::try_from(precision).ok()?)? {
        return None;
    }
    Some(if negative { -value } else { value })
}

/// A decimal number's text, of any precision, as it is printed canonically: no leading zeros, all digits of the scale.
pub fn canonical_decimal(text: &[u8], precision: usize, scale: usize) -> Option<Vec<u8>> {
    let (minus, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let point = digits.iter().position(|b| *b == b'.');
    let (whole, fraction) = match point {
        Some(at) => (digits.get(..at)?, digits.get(at + 1..)?),
        None => (digits, &b""[..]),
    };
    let all_digits = whole.iter().chain(fraction).all(u8::is_ascii_digit);
    if whole.is_empty() || !all_digits || (point.is_some() && fraction.is_empty()) || fraction.len() > scale {
        return None;
    }
    let whole = whole.get(whole.iter().take_while(|d| **d == b'0').count()..)?;
    if whole.len() + scale > precision {
        return None;
    }
    let mut out = Vec::with_capacity(precision + 3);
    if minus && whole.iter().chain(fraction).any(|d| *d != b'0') {
        out.push(b'-');
    }
    out.extend_from_slice(if whole.is_empty() { b"0" } else { whole });
    if scale > 0 {
        out.push(b'.');
        out.extend_from_slice(fraction);
        out.resize(out.len() + scale - fraction.len(), b'0');
    }
    Some(out)
}

/// An integer's text; None if it is none or does not fit.
pub fn parse_integer(text: &[u8]) -> Option<i128> {
    let found = std::str::from_utf8(text).ok()?;
    if found.starts_with('+') { None } else { found.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_day_of_ten_thousand_years_is_the_next_ones_neighbour() {
        let mut expected = days(1, 1, 1).unwrap();
        assert_eq!(expected, -719_162);
        for year in 1..=9999 {
            for month in 1..=12 {
                for day in 1..=31 {
                    let exists = day <= days_in_month(year, month);
                    assert_eq!(days(year, month, day), exists.then_some(expected), "{year}-{month}-{day}");
                    if exists {
                        assert_eq!(date_of(i64::from(expected)), (year, month, day));
                        expected += 1;
                    }
                }
            }
        }
        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(1900, 2, 29), None);
        assert_eq!(days(2000, 2, 29), Some(11_016));
        assert_eq!((days(0, 1, 1), days(10_000, 1, 1), days(2000, 0, 1), days(2000, 13, 1)), (None, None, None, None));
    }

    #[test]
    fn doubles_are_printed_as_in_json() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (123_456.789, "123456.789"),
            (1e14, "100000000000000.0"),
            (1e15, "1e15"),
            (123_456_789_012_345.6, "123456789012345.6"),
            (1_234_567_890_123_456.0, "1.234567890123456e15"),
            (1_234_567_890_123_456.5, "1234567890123456.5"),
            (1e-14, "0.00000000000001"),
            (1e-15, "0.000000000000001"),
            (1e-16, "1e-16"),
            (1.25e-16, "1.25e-16"),
            (f64::MAX, "1.7976931348623157e308"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(text(|out| double_text(value, out)), expected);
        }
    }

    #[test]
    fn decimals_keep_all_their_digits() {
        for (value, scale, expected) in [
            (0, 0, "0"),
            (0, 2, "0.00"),
            (-50, 2, "-0.50"),
            (5, 3, "0.005"),
            (-1, 0, "-1"),
            (12_345, 2, "123.45"),
            (12_345, 5, "0.12345"),
            (i128::from(u64::MAX), 0, "18446744073709551615"),
            (-99_999_999_999_999_999_999_999_999_999_999_999_999, 38, "-0.99999999999999999999999999999999999999"),
            (99_999_999_999_999_999_999_999_999_999_999_999_999, 0, "99999999999999999999999999999999999999"),
        ] {
            let found = text(|out| decimal_text(value, scale, out));
            assert_eq!(found, expected);
            assert_eq!(parse_decimal(expected.as_bytes(), 38, scale), Some(value));
            assert_eq!(canonical_decimal(expected.as_bytes(), 38 + scale, scale).unwrap(), expected.as_bytes());
        }
    }

    #[test]
    fn ascii_is_known_wherever_the_other_byte_stands() {
        for size in 0..70 {
            let mut bytes = vec![0x7F; size];
            assert!(is_ascii(&bytes));
            for place in 0..size {
                bytes[place] = 0x80;
                assert!(!is_ascii(&bytes), "{size} {place}");
                bytes[place] = b'a';
            }
        }
    }

    #[test]
    fn texts_that_are_no_decimals_are_none() {
        for wrong in ["", "-", ".", "1.", ".5", "1.234", "1e5", "+1", "1.2.3", "12345678.00", " 1", "1 "] {
            assert_eq!(parse_decimal(wrong.as_bytes(), 9, 2), None, "{wrong}");
            assert_eq!(canonical_decimal(wrong.as_bytes(), 9, 2), None, "{wrong}");
        }
        assert_eq!(parse_decimal(b"0007", 9, 2), Some(700));
        assert_eq!(canonical_decimal(b"-0007.1", 9, 2).unwrap(), b"-7.10");
    }

    /// Digits as the server packs them (`decimal2bin`).
    fn pack(whole: &str, fraction: &str, negative: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut group = |digits: &str| {
            let size = usize::from(DIGIT_BYTES[digits.len()]);
            let value: u32 = digits.parse().unwrap_or(0);
            bytes.extend_from_slice(&value.to_be_bytes()[4 - size..]);
        };
        group(&whole[..whole.len() % 9]);
        let mut rest = &whole[whole.len() % 9..];
        while !rest.is_empty() {
            group(&rest[..9]);
            rest = &rest[9..];
        }
        let mut rest = fraction;
        while rest.len() >= 9 {
            group(&rest[..9]);
            rest = &rest[9..];
        }
        group(rest);
        if negative {
            bytes.iter_mut().for_each(|b| *b ^= 0xFF);
        }
        bytes[0] ^= 0x80;
        bytes
    }

    #[test]
    fn packed_decimals_of_every_shape() {
        let digits = "98765432101234567890123456789012345678901234567890123456789012345";
        for precision in 1..=65_usize {
            for scale in 0..=precision.min(30) {
                let all = &digits[..precision];
                let (whole, fraction) = all.split_at(precision - scale);
                let packed = Packed::new(precision as u8, scale as u8).unwrap();
                for negative in [false, true] {
                    let raw = pack(whole, fraction, negative);
                    assert_eq!(raw.len(), packed.size);
                    let minus = if negative { "-" } else { "" };
                    let whole = if whole.is_empty() { "0" } else { whole };
                    let point = if scale > 0 { "." } else { "" };
                    let expected = format!("{minus}{whole}{point}{fraction}");
                    assert_eq!(text(|out| packed.text(&raw, out).unwrap()), expected);
                    if precision <= 38 {
                        assert_eq!(text(|out| decimal_text(packed.value(&raw).unwrap(), scale, out)), expected);
                    }
                    for cut in 0..raw.len() {
                        assert!(packed.text(&raw[..cut], &mut Vec::new()).is_err());
                    }
                }
            }
        }
        // Digits above nine.
        assert!(Packed::new(1, 0).unwrap().value(&[0x80 + 10]).is_err());
        let mut wide = pack(&"1".repeat(28), "", false);
        wide[1..5].copy_from_slice(&1_000_000_000_u32.to_be_bytes());
        assert!(Packed::new(28, 0).unwrap().value(&wide).is_err());
        assert!(Packed::new(0, 0).is_none() && Packed::new(82, 0).is_none() && Packed::new(5, 6).is_none());
    }

    #[test]
    fn inet6_is_printed_as_mariadb_does() {
        for (words, expected) in [
            ([0; 8], "::"),
            ([0, 0, 0, 0, 0, 0, 0, 1], "::1"),
            ([0, 0, 0, 0, 0, 0, 1, 2], "::0.1.0.2"),
            ([0, 0, 0, 0, 0, 0xFFFF, 0x102, 0x304], "::ffff:1.2.3.4"),
            ([1, 0, 2, 3, 4, 5, 6, 7], "1::2:3:4:5:6:7"),
            ([1, 0, 0, 2, 0, 0, 0, 3], "1:0:0:2::3"),
            ([1, 0, 0, 2, 2, 0, 0, 3], "1::2:2:0:0:3"),
            ([1, 2, 3, 4, 5, 6, 7, 0], "1:2:3:4:5:6:7::"),
            ([1, 2, 3, 4, 5, 6, 7, 0xABCD], "1:2:3:4:5:6:7:abcd"),
        ] {
            let mut bytes = [0; 16];
            for (i, word) in words.iter().enumerate() {
                bytes[2 * i..2 * i + 2].copy_from_slice(&u16::to_be_bytes(*word));
            }
            assert_eq!(text(|out| inet6_text(bytes, out)), expected);
        }
    }

    #[test]
    fn times_and_moments() {
        let time = |micros| text(|out| time_text(micros, out));
        assert_eq!(time(0), "00:00:00.000000");
        assert_eq!(time(-3_020_399_999_999), "-838:59:59.999999");
        assert_eq!(time(-1), "-00:00:00.000001");
        let moment = Moment::of_seconds(4_294_967_295, 5);
        assert_eq!(text(|out| moment.text(out)), "2106-02-07 06:28:15.000005");
        assert_eq!(moment.epoch_micros(), Some(4_294_967_295_000_005));
        assert_eq!(Moment { hour: 24, ..moment }.epoch_micros(), None);
        assert_eq!(text(|out| Moment::default().text(out)), "0000-00-00 00:00:00.000000");
    }
}
