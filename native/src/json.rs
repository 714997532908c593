//! MySQL's binary JSON as the text that the server prints, and the differences of partial updates.
//!
//! A document is a type and a value. An array or object is a count, its size, for each member the place and length of its key (of
//! objects) and the type and place of its value, then keys and values; all places count from its beginning. The documents are trusted in
//! nothing: no place is followed out of its container, and no byte counts twice, so that the text is bounded by the document's size.

use crate::cursor::Cursor;
use crate::decimals::Packed;
use crate::error::{Error, Result, damaged};
use crate::values::{Moment, date_text, double_text, integer_text, time_text, unsigned_text};

/// The server makes no deeper documents.
const MAX_DEPTH: usize = 100;

const SMALL_OBJECT: u8 = 0x00;
const LARGE_OBJECT: u8 = 0x01;
const SMALL_ARRAY: u8 = 0x02;
const LARGE_ARRAY: u8 = 0x03;
const LITERAL: u8 = 0x04;
const INT16: u8 = 0x05;
const UINT16: u8 = 0x06;
const INT32: u8 = 0x07;
const UINT32: u8 = 0x08;
const INT64: u8 = 0x09;
const UINT64: u8 = 0x0A;
const DOUBLE: u8 = 0x0B;
const STRING: u8 = 0x0C;
const OPAQUE: u8 = 0x0F;

// Column types of opaque values that have a text of their own.
const TIMESTAMP: u8 = 7;
const DATE: u8 = 10;
const TIME: u8 = 11;
const DATETIME: u8 = 12;
const DECIMAL: u8 = 246;

pub(crate) const REPLACE: u8 = 0;
pub(crate) const INSERT: u8 = 1;
pub(crate) const REMOVE: u8 = 2;
/// No difference: what a column has is not in the binary log, and not in the row before either.
pub const UNKNOWN: u8 = 3;

/// One step from a document's old value to its new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// 0 replaces, 1 inserts, 2 removes; 3 is none (`UNKNOWN`), and has no path.
    pub op: u8,
    /// As in `JSON_SET`: `$.a[3]`.
    pub path: String,
    /// The text of the new value; None if one is removed.
    pub value: Option<String>,
}

/// Append the text of a whole JSON value to `out`; on an error `out` is as it was.
pub fn text(binary: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let before = out.len();
    let found = document(binary, out);
    if found.is_err() {
        out.truncate(before);
    }
    found
}

/// The differences of a partial update: what follows its four bytes of length.
pub fn diffs(binary: &[u8]) -> Result<Vec<Diff>> {
    let mut cursor = Cursor::new(binary);
    let mut found = Vec::new();
    while !cursor.is_empty() {
        let op = cursor.u8()?;
        let path = utf8(cursor.lenenc_bytes()?.to_vec())?;
        let value = match op {
            REPLACE | INSERT => {
                let mut out = Vec::new();
                text(cursor.lenenc_bytes()?, &mut out)?;
                Some(utf8(out)?)
            }
            REMOVE => None,
            _ => return damaged("a JSON difference of an unknown kind"),
        };
        found.push(Diff { op, path, value });
    }
    Ok(found)
}

/// Append a text as a JSON string.
pub(crate) fn quoted(text: &[u8], out: &mut Vec<u8>) -> Result<()> {
    Printer { left: 0, out }.string(text)
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).or_else(|_| damaged("JSON text that is not UTF-8"))
}

fn document(binary: &[u8], out: &mut Vec<u8>) -> Result<()> {
    match binary.split_first() {
        // A NOT NULL column that an ALTER TABLE or an INSERT IGNORE filled.
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
        Some((kind, data)) => Printer { left: data.len(), out }.value(*kind, data, 1),
    }
}

struct Printer<'a> {
    /// Bytes of the document that were not printed yet.
    left: usize,
    out: &'a mut Vec<u8>,
}

impl Printer<'_> {
    fn spend(&mut self, bytes: usize) -> Result<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => damaged("JSON whose parts overlap"),
        }
    }

    /// A value that begins with `data`; it is in `depth - 1` others.
    fn value(&mut self, kind: u8, data: &[u8], depth: usize) -> Result<()> {
        let mut cursor = Cursor::new(data);
        match kind {
            SMALL_OBJECT => return self.container(data, 2, true, depth),
            LARGE_OBJECT => return self.container(data, 4, true, depth),
            SMALL_ARRAY => return self.container(data, 2, false, depth),
            LARGE_ARRAY => return self.container(data, 4, false, depth),
            LITERAL => self.literal(cursor.u8()?)?,
            INT16 => integer_text(i64::from(i16::from_le_bytes(cursor.array()?)), self.out),
            INT32 => integer_text(i64::from(i32::from_le_bytes(cursor.array()?)), self.out),
            INT64 => integer_text(i64::from_le_bytes(cursor.array()?), self.out),
            UINT16 => unsigned_text(u64::from(cursor.u16()?), self.out),
            UINT32 => unsigned_text(u64::from(cursor.u32()?), self.out),
            UINT64 => unsigned_text(cursor.u64()?, self.out),
            DOUBLE => {
                let value = f64::from_le_bytes(cursor.array()?);
                if !value.is_finite() {
                    return damaged("a JSON number that is none");
                }
                double_text(value, self.out);
            }
            STRING => self.string(sized(&mut cursor)?)?,
            OPAQUE => {
                let kind = cursor.u8()?;
                self.opaque(kind, sized(&mut cursor)?)?;
            }
            _ => return damaged("JSON of an unknown type"),
        }
        self.spend(cursor.at())
    }

    fn literal(&mut self, value: u8) -> Result<()> {
        self.out.extend_from_slice(match value {
            0 => b"null",
            1 => b"true",
            2 => b"false",
            _ => return damaged("an unknown JSON literal"),
        });
        Ok(())
    }

    /// An array or object whose counts and places have `width` bytes.
    fn container(&mut self, data: &[u8], width: usize, object: bool, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return damaged("JSON nested deeper than 100 levels");
        }
        let mut head = Cursor::new(data);
        let count = place(&mut head, width)?;
        let size = place(&mut head, width)?;
        let data = data.get(..size).ok_or_else(short)?;
        // Keys stand by place and length, values by type and place.
        let mut keys = Cursor::new(head.take(if object { count.saturating_mul(width + 2) } else { 0 })?);
        let mut values = Cursor::new(head.take(count.saturating_mul(width + 1))?);
        if head.at() > size {
            return Err(short());
        }
        self.spend(head.at())?;
        self.out.push(if object { b'{' } else { b'[' });
        for i in 0..count {
            if i > 0 {
                self.out.extend_from_slice(b", ");
            }
            if object {
                let at = place(&mut keys, width)?;
                let length = usize::from(keys.u16()?);
                let key = data.get(at..).and_then(|rest| rest.get(..length)).ok_or_else(short)?;
                self.spend(length)?;
                self.string(key)?;
                self.out.extend_from_slice(b": ");
            }
            let kind = values.u8()?;
            match kind {
                LITERAL | INT16 | UINT16 => self.inline(kind, values.take(width)?, depth)?,
                INT32 | UINT32 if width == 4 => self.inline(kind, values.take(width)?, depth)?,
                _ => {
                    let at = place(&mut values, width)?;
                    self.value(kind, data.get(at..).ok_or_else(short)?, depth + 1)?;
                }
            }
        }
        self.out.push(if object { b'}' } else { b']' });
        Ok(())
    }

    /// A value that stands in the place of its place, which was paid for with its container.
    fn inline(&mut self, kind: u8, data: &[u8], depth: usize) -> Result<()> {
        self.left += data.len();
        self.value(kind, data, depth)
    }

    fn string(&mut self, text: &[u8]) -> Result<()> {
        if simdutf8::basic::from_utf8(text).is_err() {
            return damaged("JSON text that is not UTF-8");
        }
        self.out.reserve(text.len() + 2);
        self.out.push(b'"');
        let mut rest = text;
        while let Some(at) = rest.iter().position(|byte| ESCAPED[usize::from(*byte)]) {
            let (plain, behind) = rest.split_at(at);
            self.out.extend_from_slice(plain);
            if let Some((byte, behind)) = behind.split_first() {
                self.escape(*byte);
                rest = behind;
            }
        }
        self.out.extend_from_slice(rest);
        self.out.push(b'"');
        Ok(())
    }

    fn escape(&mut self, byte: u8) {
        let short = match byte {
            b'"' | b'\\' => byte,
            b'\x08' => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            b'\x0C' => b'f',
            b'\r' => b'r',
            _ => {
                let digit = |half: u8| if half < 10 { b'0' + half } else { b'a' - 10 + half };
                self.out.extend_from_slice(b"\\u00");
                self.out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
                return;
            }
        };
        self.out.extend_from_slice(&[b'\\', short]);
    }

    /// A value of SQL that JSON has no type for.
    fn opaque(&mut self, kind: u8, data: &[u8]) -> Result<()> {
        match kind {
            DECIMAL => {
                let [precision, scale, digits @ ..] = data else { return Err(short()) };
                match Packed::new(*precision, *scale) {
                    Some(packed) if packed.size == digits.len() => packed.text(digits, self.out),
                    _ => damaged("a decimal number in JSON of another size than it announces"),
                }
            }
            DATE | TIME | DATETIME | TIMESTAMP => {
                let Ok(packed) = data.try_into().map(i64::from_le_bytes) else {
                    return damaged("a time in JSON that has not eight bytes");
                };
                self.out.push(b'"');
                temporal(kind, packed, self.out)?;
                self.out.push(b'"');
                Ok(())
            }
            _ => {
                self.out.extend_from_slice(b"\"base64:type");
                unsigned_text(u64::from(kind), self.out);
                self.out.push(b':');
                base64(data, self.out);
                self.out.push(b'"');
                Ok(())
            }
        }
    }
}

/// Bytes that a JSON string must not have as they are.
const ESCAPED: [bool; 256] = {
    let mut escaped = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escaped[byte] = true;
        byte += 1;
    }
    escaped[b'"' as usize] = true;
    escaped[b'\\' as usize] = true;
    escaped
};

fn short() -> Error {
    Error::Damaged("JSON that points out of itself".into())
}

fn place(cursor: &mut Cursor<'_>, width: usize) -> Result<usize> {
    Ok(usize::try_from(cursor.uint(width)?).unwrap_or(usize::MAX))
}

/// A length, seven bits a byte, the lowest first, and so many bytes.
fn sized<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8]> {
    let mut length = 0_u64;
    for shift in [0, 7, 14, 21, 28] {
        let byte = cursor.u8()?;
        length |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return cursor.take(usize::try_from(length).unwrap_or(usize::MAX));
        }
    }
    damaged("a JSON length that does not end")
}

/// A date or time as the server packs it: from the lowest bits, 24 of microseconds, 6 of seconds, 6 of minutes; then 10 of hours, or 5 of
/// hours, 5 of days and the months, 13 a year.
fn temporal(kind: u8, packed: i64, out: &mut Vec<u8>) -> Result<()> {
    let bits = |from: u32, count: u32| (packed.unsigned_abs() >> from & ((1 << count) - 1)) as u32;
    let (micros, second, minute) = (bits(0, 24), bits(24, 6), bits(30, 6));
    if micros > 999_999 || second > 59 || minute > 59 {
        return damaged("a time in JSON that is none");
    }
    if kind == TIME {
        let seconds = (i64::from(bits(36, 10)) * 60 + i64::from(minute)) * 60 + i64::from(second);
        let all = seconds * 1_000_000 + i64::from(micros);
        time_text(if packed < 0 { -all } else { all }, out);
        return Ok(());
    }
    let months = bits(46, 18);
    let moment =
        Moment { year: months / 13, month: months % 13, day: bits(41, 5), hour: bits(36, 5), minute, second, micros };
    if packed < 0 || moment.year > 9999 || moment.hour > 23 {
        return damaged("a time in JSON that is none");
    }
    if kind == DATE {
        date_text(moment.year, moment.month, moment.day, out);
    } else {
        moment.text(out);
    }
    Ok(())
}

/// Base64 as the server prints it: an escaped line's end after every 76 characters, but not at the end.
fn base64(data: &[u8], out: &mut Vec<u8>) {
    const LINE: usize = 76 / 4 * 3;
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |number: u32, shift: u32| DIGITS[(number >> shift & 63) as usize];
    out.reserve(data.len() / 3 * 4);
    for (i, line) in data.chunks(LINE).enumerate() {
        if i > 0 {
            out.extend_from_slice(b"\\n");
        }
        for group in line.chunks(3) {
            let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
            let number = byte(0) << 16 | byte(1) << 8 | byte(2);
            let mut four = [18, 12, 6, 0].map(|shift| digit(number, shift));
            if let Some(padding) = four.get_mut(group.len() + 1..) {
                padding.fill(b'=');
            }
            out.extend_from_slice(&four);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(binary: &[u8]) -> String {
        let mut out = b"before ".to_vec();
        text(binary, &mut out).unwrap();
        String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_string()
    }

    fn refused(binary: &[u8]) -> String {
        let mut out = b"before".to_vec();
        let error = text(binary, &mut out).unwrap_err();
        assert_eq!(out, b"before");
        error.to_string()
    }

    /// `{"b": [1, -40000, 3000000000, true, null, "x\n\"", 1.5], "k": 18446744073709551615, "aa": {}, "ab": []}` as a server wrote it.
    const DOCUMENT: &[u8] = b"\x00\x04\0g\0\x20\0\x01\0!\0\x01\0\x22\0\x02\0$\0\x02\0\x02&\0\x0aW\0\0_\0\x02c\0bkaaab\
        \x07\x001\0\x05\x01\0\x07\x19\0\x09\x1d\0\x04\x01\0\x04\0\0\x0c%\0\x0b)\0\xc0c\xff\xff\0^\xd0\xb2\0\0\0\0\x03x\x0a\x22\
        \0\0\0\0\0\0\xf8?\xff\xff\xff\xff\xff\xff\xff\xff\0\0\x04\0\0\0\x04\0";

    #[test]
    fn a_document_keeps_the_order_of_its_keys() {
        let text = r#"{"b": [1, -40000, 3000000000, true, null, "x\n\"", 1.5], "k": 18446744073709551615, "aa": {}, "ab": []}"#;
        assert_eq!(printed(DOCUMENT), text);
    }

    #[test]
    fn scalars() {
        for (binary, text) in [
            (&b""[..], "null"),
            (b"\x04\0", "null"),
            (b"\x04\x01", "true"),
            (b"\x04\x02", "false"),
            (b"\x05\0\x80", "-32768"),
            (b"\x06\xff\xff", "65535"),
            (b"\x07\0\0\0\x80", "-2147483648"),
            (b"\x08\xff\xff\xff\xff", "4294967295"),
            (b"\x09\0\0\0\0\0\0\0\x80", "-9223372036854775808"),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"),
            (b"\x0b\0\0\0\0\0\0\0\x80", "-0.0"),
            (b"\x0c\0", r#""""#),
            (b"\x0c\x0da\"\\\x08\t\n\x0c\r\x1f\x7f/\xc3\xa4", "\"a\\\"\\\\\\b\\t\\n\\f\\r\\u001f\x7f/ä\""),
        ] {
            assert_eq!(printed(binary), text, "{binary:x?}");
        }
    }

    #[test]
    fn values_of_sql_without_a_type_in_json() {
        for (binary, text) in [
            (&b"\x0f\xf6\x07\x0b\x02\x7f\xff\xff\xf3\xcd"[..], "-12.50"),
            (b"\x0f\xf6\x06\x09\0\x80\0\0c", "99"),
            // A precision of 72.
            (
                b"\x0f\xf6\x22\x48\0\x80\0\0\x63\x3b\x9a\xc9\xff\x3b\x9a\xc9\xff\x3b\x9a\xc9\xff\x3b\x9a\xc9\xff\x3b\x9a\xc9\xff\
                \x3b\x9a\xc9\xff\x3b\x9a\xc9\xff",
                &"9".repeat(65),
            ),
            (b"\x0f\x0a\x08\0\0\0\0\0\xba\xb2\x19", r#""2024-02-29""#),
            (b"\x0f\x0c\x08\x20\xa1\x07\x83\x10\xba\xb2\x19", r#""2024-02-29 01:02:03.500000""#),
            (b"\x0f\x07\x08\x20\xa1\x07\x83\x10\xba\xb2\x19", r#""2024-02-29 01:02:03.500000""#),
            (b"\x0f\x0c\x08\0\0\0\0\0\0\0\0", r#""0000-00-00 00:00:00.000000""#),
            (b"\x0f\x0b\x08\xff\xff\xff\x04\xa1\xcb\xff\xff", r#""-837:59:59.000001""#),
            (b"\x0f\x10\x02\0\x05", r#""base64:type16:AAU=""#),
            (b"\x0f\x0f\x00", r#""base64:type15:""#),
        ] {
            assert_eq!(printed(binary), text, "{binary:x?}");
        }
    }

    #[test]
    fn base64_has_lines() {
        let of = |size: u8| printed(&[&b"\x0f\x0f"[..], &[size], &vec![0; usize::from(size)]].concat());
        let line = "A".repeat(76);
        assert_eq!(of(57), format!("\"base64:type15:{line}\""));
        assert_eq!(of(58), format!("\"base64:type15:{line}\\nAA==\""));
        assert_eq!(of(114), format!("\"base64:type15:{line}\\n{line}\""));
    }

    #[test]
    fn large_containers() {
        // Two members of an object: 1 in place, a 32-bit number in place; and an array that must follow a place of four bytes.
        let mut large =
            b"\x01\x02\0\0\0\x26\0\0\0\x1e\0\0\0\x01\0\x1f\0\0\0\x01\0\x07\xff\xff\xff\xff\x03\x20\0\0\0ab".to_vec();
        assert_eq!(refused(&large), "JSON that points out of itself");
        large.extend_from_slice(b"\0\0\0\0\x08\0\0\0");
        large[5] = 0x28;
        assert_eq!(printed(&large), r#"{"a": -1, "b": []}"#);
    }

    /// So many arrays in one another.
    fn nested(depth: usize) -> Vec<u8> {
        let mut array = b"\0\0\x04\0".to_vec();
        for _ in 1..depth {
            let size = u16::try_from(array.len() + 7).unwrap();
            array = [&b"\x01\0"[..], &size.to_le_bytes(), b"\x02\x07\0", &array].concat();
        }
        [b"\x02", &array[..]].concat()
    }

    #[test]
    fn depth_has_a_limit() {
        assert_eq!(printed(&nested(MAX_DEPTH)), "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH));
        assert_eq!(refused(&nested(MAX_DEPTH + 1)), "JSON nested deeper than 100 levels");
    }

    /// Each array of two has both members at the same place: 2^40 values in 500 bytes.
    #[test]
    fn parts_that_overlap_are_refused() {
        let mut array = b"\0\0\x04\0".to_vec();
        for _ in 0..40 {
            let size = u16::try_from(array.len() + 10).unwrap();
            array = [&b"\x02\0"[..], &size.to_le_bytes(), b"\x02\x0a\0\x02\x0a\0", &array].concat();
        }
        assert_eq!(refused(&[b"\x02", &array[..]].concat()), "JSON whose parts overlap");
        // One text for two members.
        let text = b"\x02\x02\0\x3e\0\x0c\x0a\0\x0c\x0a\0\x33012345678901234567890123456789012345678901234567890";
        assert_eq!(refused(text), "JSON whose parts overlap");
    }

    #[test]
    fn what_is_damaged_is_refused() {
        for (binary, what) in [
            (&b"\x0d"[..], "JSON of an unknown type"),
            (b"\x04\x03", "an unknown JSON literal"),
            (b"\x05\0", "shorter than what it announces"),
            (b"\x0b\0\0\0\0\0\0\xf0\x7f", "a JSON number that is none"),
            (b"\x0c\x02a", "shorter than what it announces"),
            (b"\x0c\x01\xff", "JSON text that is not UTF-8"),
            (b"\x0c\xff\xff\xff\xff\xff\x01", "a JSON length that does not end"),
            (b"\x02\x01\0\x04\0", "shorter than what it announces"),
            (b"\x02\x01\0\x05\0\x05\x01\0", "JSON that points out of itself"),
            (b"\x02\x01\0\x07\0\x0c\x09\0\0", "JSON that points out of itself"),
            (b"\x03\xff\xff\xff\xff\xff\xff\xff\xff", "JSON that points out of itself"),
            (b"\x0f\xf6\x02\x42\x01", "a decimal number in JSON of another size than it announces"),
            (b"\x0f\xf6\x01\x42", "JSON that points out of itself"),
            (b"\x0f\x0a\x01\0", "a time in JSON that has not eight bytes"),
            (b"\x0f\x0c\x08\x40\x42\x0f\x83\x10\xba\xb2\x19", "a time in JSON that is none"),
            (b"\x0f\x0c\x08\0\0\0\0\0\0\0\x80", "a time in JSON that is none"),
        ] {
            assert_eq!(refused(binary), what, "{binary:x?}");
        }
    }

    #[test]
    fn no_damage_panics_or_blows_up() {
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for end in 0..DOCUMENT.len() {
            let _ = text(&DOCUMENT[..end], &mut Vec::new());
        }
        for _ in 0..100_000 {
            let mut damaged = DOCUMENT.to_vec();
            for _ in 0..=random(3) {
                let at = random(damaged.len());
                damaged[at] = random(256) as u8;
            }
            let mut out = Vec::new();
            let _ = text(&damaged, &mut out);
            assert!(out.len() <= damaged.len() * 9, "{damaged:x?}");
        }
    }

    /// As a server wrote them.
    const DIFFS: &[u8] =
        b"\0\x06$.a[1]\x0f\0\x01\0\x0e\0\x0b\0\x01\0\x0c\x0c\0k\x01v\x01\x03$.e\x07\x0f\xf6\x04\x02\x01\x81\x05\
        \x01\x06$.a[3]\x05\x0c\x03new\x02\x05$.b.c";

    #[test]
    fn differences_in_their_order() {
        let found: Vec<_> = diffs(DIFFS).unwrap().into_iter().map(|diff| (diff.op, diff.path, diff.value)).collect();
        let wanted = [
            (REPLACE, "$.a[1]", Some(r#"{"k": "v"}"#)),
            (INSERT, "$.e", Some("1.5")),
            (INSERT, "$.a[3]", Some(r#""new""#)),
            (REMOVE, "$.b.c", None),
        ];
        assert_eq!(found, wanted.map(|(op, path, value)| (op, path.to_string(), value.map(str::to_string))));
        assert_eq!(diffs(b"").unwrap(), []);
    }

    #[test]
    fn damaged_differences_are_refused() {
        for end in 1..DIFFS.len() {
            let whole = [24, 37, 51].contains(&end);
            assert_eq!(diffs(&DIFFS[..end]).is_ok(), whole, "{end}");
        }
        assert!(diffs(b"\x03\x01$").is_err());
        assert!(diffs(b"\x02\x01\xff").is_err());
    }
}
