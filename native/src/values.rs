//! Values by themselves: the calendar, and the texts that MySQL prints of them.

use crate::decimals::decimal_text;

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
