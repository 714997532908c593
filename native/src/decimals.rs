//! Decimal numbers: as the binary log packs them, as result sets print them, and as text.

use crate::error::{Result, damaged};
use crate::values::padded;

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
}
